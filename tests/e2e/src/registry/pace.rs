//! The rate at which bytes leave a registry.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::lock::lock;

/// The most bytes in a frame: small, so that counts are exact and paces even.
const FRAME_BYTES: u64 = 64 << 10;

/// Lets so many bytes per second pass.
#[derive(Debug)]
pub(super) struct Pace {
    /// 0 is no limit.
    bytes_per_s: AtomicU64,
    /// When everything that was let pass has passed.
    free: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(bytes_per_s: u64) -> Self {
        Self {
            bytes_per_s: AtomicU64::new(bytes_per_s),
            free: Mutex::new(Instant::now()),
        }
    }

    pub(super) fn set(&self, bytes_per_s: u64) {
        self.bytes_per_s.store(bytes_per_s, Ordering::Relaxed);
        *lock(&self.free) = Instant::now();
    }

    /// The most bytes to ask for at a time, so that they take about 20 ms.
    pub(super) fn step(&self) -> u64 {
        match self.bytes_per_s.load(Ordering::Relaxed) {
            0 => FRAME_BYTES,
            rate => (rate / 50).clamp(1, FRAME_BYTES),
        }
    }

    pub(super) async fn pass(&self, bytes: u64) {
        let rate = self.bytes_per_s.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let until = {
            let mut free = lock(&self.free);
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
            let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            *free = (*free).max(Instant::now()) + takes;
            *free
        };
        sleep_until(until).await;
    }
}
