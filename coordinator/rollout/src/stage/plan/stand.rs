//! The plan's parts without a plan, for tests of the decisions that use them.

use alloc::{format, string::String, vec, vec::Vec};
use core::time::Duration;

use proto::{Digest, HostId, Moment};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use super::{
    contents::Contents,
    desk::Desk,
    effects::Effects,
    hosts::Hosts,
    images::{Images, Order},
    leases::{Grant, Lease, Leases},
    origins::Origins,
    records::Records,
    view::View,
};
use crate::stage::{
    Action, Config,
    event::{Content, Purpose, Selection, Standing},
};

/// The plan's parts.
pub(super) struct Stand {
    pub(super) now: Moment,
    pub(super) config: Config,
    pub(super) hosts: Hosts,
    pub(super) images: Images,
    pub(super) contents: Contents,
    pub(super) leases: Leases,
    pub(super) origins: Origins,
    pub(super) records: Records,
    pub(super) rng: ChaCha8Rng,
    pub(super) effects: Effects,
}

pub(super) fn host(number: u32) -> HostId {
    format!("host-{number}").parse().unwrap()
}

pub(super) fn content(number: u32) -> Digest {
    Digest::of(format!("content {number}").as_bytes())
}

pub(super) fn image(number: u32) -> Digest {
    Digest::of(format!("image {number}").as_bytes())
}

impl Stand {
    /// Hosts 1 to `count`, connected for a minute. Hosts with even numbers lie in one zone, the others in another.
    pub(super) fn new(count: u32) -> Self {
        let start = Moment(1_000_000_000);
        let mut hosts = Hosts::default();
        for number in 1..=count {
            let zone = format!("zone-{}", number % 2);
            hosts.know(start, &host(number), zone);
            hosts.connect(start, &host(number));
        }
        Self {
            now: start + Duration::from_mins(1),
            config: Config::default(),
            hosts,
            images: Images::default(),
            contents: Contents::new(),
            leases: Leases::default(),
            origins: Origins::default(),
            records: Records::default(),
            rng: ChaCha8Rng::seed_from_u64(3),
            effects: Effects::default(),
        }
    }

    /// Adds an image of these contents, in a repository of its own, that is wanted everywhere. Every host stages it. It
    /// has been wanted for 30 s.
    pub(super) fn want(&mut self, number: u32, contents: &[u32]) {
        self.order(number, contents, Purpose::Stage, "registry.example");
    }

    /// Adds a blob that clients of all hosts' mirrors wait for.
    pub(super) fn ask(&mut self, number: u32, of: u32) {
        self.order(number, &[of], Purpose::Mirror, "mirrored.example");
    }

    fn order(&mut self, number: u32, contents: &[u32], purpose: Purpose, registry: &str) {
        let specs = contents.iter().map(|number| Content {
            digest: content(*number),
            chunks: 100,
            size: 100 << 20,
            origin_bytes: 100_000,
        });
        let order = Order::new(
            image(number),
            vec![format!("{registry}/image-{number}:1")],
            (specs.collect(), None),
            (Selection::All, Vec::new()),
            purpose,
        );
        let before = self.now - Duration::from_secs(30);
        self.images.order(before, order, &self.hosts);
        let specs = self.images.get(&image(number)).unwrap().specs().to_vec();
        self.contents.want(before, &specs);
        let hosts: Vec<HostId> = self.hosts.ids().cloned().collect();
        for id in hosts {
            self.report(&id, number, Standing::Staging);
        }
    }

    /// Has an image as if it were wanted since a second, and this host alone had said that it stages.
    pub(super) fn want_now(&mut self, number: u32, says: &HostId) {
        let urgency = self.images.get(&image(number)).unwrap().urgency(says);
        let specs = self.images.cancel(&image(number)).unwrap().specs().to_vec();
        let order = Order::new(
            image(number),
            vec![format!("registry.example/image-{number}:1")],
            (specs, None),
            (Selection::All, Vec::new()),
            Purpose::Stage,
        );
        let before = self.now - Duration::from_secs(1);
        self.images.order(before, order, &self.hosts);
        let of = (urgency.priority, urgency.asked_ms);
        self.images.rank(&image(number), of, [].into());
        self.report(says, number, Standing::Staging);
    }

    /// Gives an image a priority, and has Pods on these hosts wait for it. Images of lower numbers were asked for
    /// earlier.
    pub(super) fn rank(&mut self, number: u32, priority: i32, awaited: &[u32]) {
        let awaited = awaited.iter().map(|number| host(*number)).collect();
        let urgency = (priority, number.into());
        self.images.rank(&image(number), urgency, awaited);
    }

    /// A host reports the state of an image.
    pub(super) fn report(&mut self, id: &HostId, number: u32, standing: Standing) {
        let of = (id, &image(number));
        self.images.report(self.now, of, standing, 0);
    }

    /// Leases a content to a host, under an image's name.
    pub(super) fn lease(&mut self, to: u32, of: u32, number: u32) {
        let ordered = self.images.get(&image(number)).unwrap();
        let grant = Grant {
            host: host(to),
            content: content(of),
            range: None,
            image: image(number),
            registry: ordered.registry().into(),
            repository: ordered.repository().into(),
            purpose: ordered.purpose(),
        };
        self.desk().grant(grant);
        self.actions();
    }

    /// Ends the first lease of a content, and tells nobody.
    pub(super) fn end(&mut self, of: Digest) -> Option<Lease> {
        let id = self.leases.holder(&of)?.clone();
        self.desk().end(of, &id)
    }

    pub(super) fn view(&self) -> View<'_> {
        View {
            now: self.now,
            config: &self.config,
            seed: 3,
            hosts: &self.hosts,
            images: &self.images,
            contents: &self.contents,
            leases: &self.leases,
            origins: &self.origins,
            records: &self.records,
        }
    }

    pub(super) fn desk(&mut self) -> Desk<'_> {
        Desk {
            now: self.now,
            config: &self.config,
            seed: 3,
            hosts: &self.hosts,
            images: &self.images,
            contents: &mut self.contents,
            leases: &mut self.leases,
            origins: &mut self.origins,
            records: &mut self.records,
            rng: &mut self.rng,
            effects: &mut self.effects,
        }
    }

    /// The actions for the shell since the last call.
    pub(super) fn actions(&mut self) -> Vec<Action> {
        core::iter::from_fn(|| self.effects.next()).collect()
    }

    pub(super) fn wait(&mut self, time: Duration) {
        self.now += time;
    }
}

/// The repository of an image that [`Stand::want`] made.
pub(super) fn repository(number: u32) -> String {
    format!("registry.example/image-{number}")
}
