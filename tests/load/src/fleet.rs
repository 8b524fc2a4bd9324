//! The fleet: the credentials and the session of every host, and their shared counters.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};
use coordinator::{authority::Authority, enrolment::Enrolment};
use proto::HostId;
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::watch};
use wire::{Credentials, Endpoint};

use crate::{
    counters::{Counters, Counts},
    host::Host,
};

/// Hosts in one zone.
const RACK: usize = 24;

/// The lifetime of certificates, which is longer than any measurement.
const LIFETIME: Duration = Duration::from_hours(24);

/// Hosts and their sessions.
pub(crate) struct Fleet {
    runtime: Runtime,
    counters: Arc<Counters>,
    hosts: Vec<(HostId, Credentials)>,
    coordinator: watch::Sender<SocketAddr>,
}

impl Fleet {
    /// Enrols `count` hosts.
    ///
    /// # Errors
    /// Records or certificates can't be made.
    pub(crate) fn new(
        count: usize,
        authority: &Authority,
        enrolment: &Enrolment,
    ) -> anyhow::Result<Self> {
        let mut hosts = Vec::with_capacity(count);
        for number in 0..count {
            let host: HostId = format!("mini-{number:04}").parse()?;
            let now = SystemTime::now();
            let token = enrolment.mint(&host, LIFETIME, now)?;
            let (_, from) = enrolment.redeem(&token, now)?;
            let key = rcgen::KeyPair::generate()?;
            let request = rcgen::CertificateParams::default().serialize_request(&key)?;
            let chain = authority.issue_from(&host, request.der(), from, LIFETIME)?;
            let key = PrivatePkcs8KeyDer::from(key.serialize_der());
            let credentials = Credentials::new(chain, key, vec![authority.certificate().clone()])?;
            hosts.push((host, credentials));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        Ok(Self {
            runtime,
            counters: Arc::default(),
            hosts,
            coordinator: watch::channel(([127, 0, 0, 1], 0).into()).0,
        })
    }

    /// Starts the agents of all hosts at one moment.
    ///
    /// # Errors
    /// A socket can't be opened.
    pub(crate) fn connect(&mut self, coordinator: SocketAddr) -> anyhow::Result<()> {
        self.coordinator.send_replace(coordinator);
        let _runtime = self.runtime.enter();
        let mut ready = Vec::with_capacity(self.hosts.len());
        for (number, (id, credentials)) in self.hosts.iter().enumerate() {
            let settings = wire::Settings::default();
            let endpoint =
                Endpoint::bind(([127, 0, 0, 1], 0).into(), credentials.clone(), &settings)
                    .with_context(|| format!("socket of {id}"))?;
            ready.push(Host::new(
                endpoint,
                format!("rack-{:02}", number / RACK),
                number == 0,
                self.counters.clone(),
            ));
        }
        for host in ready {
            self.runtime.spawn(host.keep(self.coordinator.subscribe()));
        }
        Ok(())
    }

    /// Waits until `holds` is true of the counters. Returns how long that took.
    ///
    /// # Errors
    /// `holds` is still false after `patience`.
    pub(crate) fn wait(
        &self,
        what: &str,
        patience: Duration,
        holds: impl Fn(Counts) -> bool,
    ) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        while !holds(self.counts()) {
            if begun.elapsed() > patience {
                bail!(
                    "waited {patience:?} for {what}: {:?}, {:?}",
                    self.counts(),
                    self.failures()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(begun.elapsed())
    }

    /// Waits until only keep-alives move: no order for two seconds.
    pub(crate) fn rest(&self) {
        let mut before = self.orders();
        loop {
            std::thread::sleep(Duration::from_secs(2));
            let now = self.orders();
            if now == before {
                return;
            }
            before = now;
        }
    }

    pub(crate) fn flap(&self, flaps: bool) {
        self.counters.flap(flaps);
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counters.now()
    }

    /// How many orders of each kind came so far, and their bytes.
    pub(crate) fn orders(&self) -> Value {
        json!(self.counters.orders())
    }

    /// Why handshakes failed, and how often for each reason.
    pub(crate) fn failures(&self) -> BTreeMap<String, u64> {
        self.counters.failures()
    }
}

/// What a process has used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Processor seconds in user mode and in the system.
    pub(crate) cpu_s: f64,
    /// Memory now, and the most so far.
    pub(crate) rss_bytes: u64,
    pub(crate) peak_rss_bytes: u64,
}

impl Usage {
    /// What the process of this id has used so far, by Linux's own count.
    ///
    /// # Errors
    /// `/proc` doesn't tell.
    pub(crate) fn of(process: u32) -> anyhow::Result<Self> {
        // user and system time are the 14th and 15th field, and the second field, a name in parentheses, may contain
        // spaces
        const TICKS_PER_S: f64 = 100.0;
        let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
        let fields = stat.rsplit_once(')').context("a name in parentheses")?.1;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |at: usize| -> anyhow::Result<f64> {
            Ok(fields.get(at).context("a short line")?.parse()?)
        };
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let kibibytes = |name: &str| -> anyhow::Result<u64> {
            let mut lines = status.lines();
            let line = lines.find(|line| line.starts_with(name));
            let number = line.and_then(|line| line.split_whitespace().nth(1));
            Ok(number.with_context(|| format!("no {name}"))?.parse()?)
        };
        Ok(Self {
            cpu_s: (ticks(11)? + ticks(12)?) / TICKS_PER_S,
            rss_bytes: kibibytes("VmRSS:")? << 10,
            peak_rss_bytes: kibibytes("VmHWM:")? << 10,
        })
    }
}
