//! The counters that all hosts share.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

/// The counters that all hosts share.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    up: AtomicUsize,
    sessions: AtomicUsize,
    present: AtomicUsize,
    failed_handshakes: AtomicUsize,
    received_bytes: AtomicU64,
    /// How many orders of each kind came, and their bytes.
    orders: Mutex<BTreeMap<&'static str, (u64, u64)>>,
    failures: Mutex<BTreeMap<String, u64>>,
    /// Whether the first host's agent restarts every few seconds.
    flap: AtomicBool,
}

/// Counters at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// Sessions that are up.
    pub(crate) up: usize,
    /// Sessions that were begun so far.
    pub(crate) sessions: usize,
    /// Hosts that hold the image.
    pub(crate) present: usize,
    /// Handshakes that the coordinator refused or didn't answer in time.
    pub(crate) failed_handshakes: usize,
    /// Bytes of UDP payload that the hosts received.
    pub(crate) received_bytes: u64,
}

impl Counters {
    pub(crate) fn begin(&self) {
        self.up.fetch_add(1, Relaxed);
        self.sessions.fetch_add(1, Relaxed);
    }

    pub(crate) fn end(&self) {
        self.up.fetch_sub(1, Relaxed);
    }

    pub(crate) fn became_present(&self) {
        self.present.fetch_add(1, Relaxed);
    }

    pub(crate) fn received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn failed(&self, why: String) {
        self.failed_handshakes.fetch_add(1, Relaxed);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        *failures.entry(why).or_default() += 1;
    }

    pub(crate) fn order(&self, kind: &'static str, bytes: usize) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = orders.entry(kind).or_default();
        entry.0 += 1;
        entry.1 += bytes as u64;
    }

    /// Sets whether the first host's agent restarts every few seconds.
    pub(crate) fn flap(&self, flaps: bool) {
        self.flap.store(flaps, Relaxed);
    }

    pub(crate) fn flaps(&self) -> bool {
        self.flap.load(Relaxed)
    }

    pub(crate) fn now(&self) -> Counts {
        Counts {
            up: self.up.load(Relaxed),
            sessions: self.sessions.load(Relaxed),
            present: self.present.load(Relaxed),
            failed_handshakes: self.failed_handshakes.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
        }
    }

    /// How many orders of each kind came so far, and their bytes.
    pub(crate) fn orders(&self) -> BTreeMap<&'static str, (u64, u64)> {
        let orders = self.orders.lock();
        orders.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why handshakes failed, and how often for each reason.
    pub(crate) fn failures(&self) -> BTreeMap<String, u64> {
        let failures = self.failures.lock();
        failures.unwrap_or_else(PoisonError::into_inner).clone()
    }
}
