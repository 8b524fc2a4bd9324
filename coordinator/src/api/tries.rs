//! Bounds enrolments and late renewals. Whoever reaches the port may try, so refused tries must cost other callers
//! nothing.
//!
//! A few tries are worked on at one time, in the order in which they came. A refusal is answered at once, until its
//! address has had many. From then on each refusal of that address is answered a second later, so that a connection can
//! make one try a second. A try that succeeds is never delayed, not even from such an address, because a whole fleet
//! may share one address.

use std::{
    net::IpAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{sleep, timeout},
};
use tracing::warn;

use crate::{allowance::Allowances, lock::lock, seldom::Seldom};

/// The most tries that are worked on at one time: each signs, and writes to the disk or reads from it.
const AT_ONCE: usize = 16;
/// How long a try waits for the tries before it, each of which takes some milliseconds. The API takes 512 connections.
const WAIT: Duration = Duration::from_secs(5);
/// The number of refusals that an address gets without a delay, and the time after which it may have one more.
const REFUSALS: u32 = 20;
const REFUSED_EVERY: Duration = Duration::from_secs(2);
/// The delay of a refusal when its address has had too many.
const PAUSE: Duration = Duration::from_secs(1);
/// At most one refusal is logged within this time.
const LOGGED_EVERY: Duration = Duration::from_secs(1);

/// The tries to get a certificate by callers that have no valid one.
#[derive(Debug)]
pub(crate) struct Tries {
    slots: Semaphore,
    /// Locked only briefly, never across an await.
    allowances: Mutex<Allowances>,
    log: Seldom,
}

impl Tries {
    pub(crate) const fn new() -> Self {
        Self {
            slots: Semaphore::const_new(AT_ONCE),
            allowances: Mutex::new(Allowances::new(REFUSALS, REFUSED_EVERY)),
            log: Seldom::new(LOGGED_EVERY),
        }
    }

    /// A place to work on one try; `None` when too many tries were before it for the whole wait.
    pub(super) async fn begin(&self) -> Option<SemaphorePermit<'_>> {
        timeout(WAIT, self.slots.acquire()).await.ok()?.ok()
    }

    /// A try from this address is refused. Logs the refusal, and waits until it may be answered. The caller must have
    /// given its place back.
    pub(super) async fn refused(&self, from: IpAddr, what: &'static str, error: &str) {
        let now = Instant::now();
        if let Some(others) = self.log.due(now) {
            warn!(%from, what, error, others, "a certificate is refused");
        }
        let allowed = lock(&self.allowances).take(wire::network(from), now);
        if !allowed {
            sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    const BAD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    #[tokio::test]
    async fn an_address_that_fails_all_the_time_has_one_refusal_a_second_for_each_connection() {
        let tries = Tries::new();
        let begun = Instant::now();
        // connections that try again as soon as they are answered
        let failing = (0..80).map(async |_| {
            let mut refused = 0;
            while begun.elapsed() < Duration::from_millis(1_500) {
                drop(tries.begin().await.unwrap());
                tries.refused(BAD, "enrolment", "no such token").await;
                refused += 1;
            }
            refused
        });
        let refused: u32 = join_all(failing).await.into_iter().sum();
        // two rounds, and the refusals that are answered at once
        assert!(refused <= 2 * 80 + REFUSALS + 5, "{refused}");
        assert!(refused >= 80);
    }

    #[tokio::test]
    async fn who_has_a_good_token_waits_for_nobody_that_is_refused() {
        let tries = Tries::new();
        for _ in 0..REFUSALS {
            tries.refused(BAD, "enrolment", "no such token").await;
        }
        let pausing = join_all((0..1_000).map(async |_| {
            drop(tries.begin().await.unwrap());
            tries.refused(BAD, "enrolment", "no such token").await;
        }));
        tokio::pin!(pausing);
        tokio::select! {
            biased;
            _ = &mut pausing => panic!("refused at once"),
            place = tries.begin() => assert!(place.is_some()),
        }
        // another address has an allowance of its own
        tokio::select! {
            biased;
            _ = &mut pausing => panic!("refused at once"),
            () = tries.refused([10, 0, 0, 2].into(), "renewal", "no") => {}
        }
    }

    #[tokio::test]
    async fn more_tries_than_are_worked_on_wait_in_a_line() {
        let tries = Tries::new();
        let all = join_all((0..512).map(async |_| {
            let Some(_place) = tries.begin().await else {
                return false;
            };
            sleep(Duration::from_millis(5)).await;
            true
        }));
        assert!(all.await.into_iter().all(|done| done));
        assert_eq!(tries.slots.available_permits(), AT_ONCE);
    }
}
