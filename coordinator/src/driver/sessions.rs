//! Sessions: which hosts have one now, the queue of each session's orders, and since when a host has no session.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proto::{HostId, Moment, message};
use tokio::sync::mpsc::error::TrySendError;
use tracing::{debug, warn};

use super::order::Orders;

/// The sessions of a fleet. A host has one at most.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    open: BTreeMap<HostId, Session>,
    /// Hosts that had a session since this start and have none now, and when they lost it.
    lost_at: BTreeMap<HostId, Moment>,
}

#[derive(Debug)]
struct Session {
    number: u64,
    queue: Orders,
    since: Moment,
    /// Whether the host's version signs links. A host that doesn't sign links takes no part in staging.
    signs_links: bool,
}

impl Sessions {
    /// A session is up. The host's earlier session ends, because its queue is dropped. Returns whether there was one.
    pub(super) fn open(
        &mut self,
        now: Moment,
        host: &HostId,
        (number, queue): (u64, Orders),
        signs_links: bool,
    ) -> bool {
        self.lost_at.remove(host);
        let session = Session {
            number,
            queue,
            since: now,
            signs_links,
        };
        self.open.insert(host.clone(), session).is_some()
    }

    /// This session of the host ended. Returns how long it lasted; `None` where the host has another session now, or
    /// none.
    pub(super) fn close(&mut self, now: Moment, host: &HostId, number: u64) -> Option<Duration> {
        if !self.is_current(host, number) {
            return None;
        }
        let ended = self.open.remove(host)?;
        self.lost_at.insert(host.clone(), now);
        Some(now.since(ended.since))
    }

    /// Queues an order for a host that has a session. Returns whether the session was given up, because its queue is
    /// full or closed.
    #[must_use]
    pub(super) fn send(&mut self, now: Moment, host: &HostId, order: &Arc<message::Order>) -> bool {
        let Some(session) = self.open.get(host) else {
            return false;
        };
        let Err(error) = session.queue.try_send(order.clone()) else {
            return false;
        };
        match error {
            TrySendError::Full(_) => {
                warn!(%host, "host doesn't take its orders; its session is given up");
            }
            TrySendError::Closed(_) => debug!(%host, "order for a session that has ended"),
        }
        self.open.remove(host);
        self.lost_at.insert(host.clone(), now);
        true
    }

    /// The host isn't part of the fleet any more. Its session ends, because its queue is dropped.
    pub(super) fn left(&mut self, host: &HostId) {
        self.open.remove(host);
        self.lost_at.remove(host);
    }

    /// Whether this session is the host's current one.
    pub(super) fn is_current(&self, host: &HostId, number: u64) -> bool {
        let session = self.open.get(host);
        session.is_some_and(|session| session.number == number)
    }

    /// The number of the host's session, where it has one.
    pub(super) fn number(&self, host: &HostId) -> Option<u64> {
        Some(self.open.get(host)?.number)
    }

    pub(super) fn is_open(&self, host: &HostId) -> bool {
        self.open.contains_key(host)
    }

    /// Whether the host has a session and its agent signs links.
    pub(super) fn signs_links(&self, host: &HostId) -> bool {
        let session = self.open.get(host);
        session.is_some_and(|session| session.signs_links)
    }

    /// Whether the host has a session and its agent is of a version that doesn't sign links.
    pub(super) fn is_old(&self, host: &HostId) -> bool {
        self.is_open(host) && !self.signs_links(host)
    }

    /// For how long the host has had no session; `None` where it has one, or had none since this start.
    pub(super) fn away_for(&self, now: Moment, host: &HostId) -> Option<Duration> {
        self.lost_at.get(host).map(|at| now.since(*at))
    }

    /// How many hosts have a session.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::START + Duration::from_secs(seconds)
    }

    fn host() -> HostId {
        "mini-1".parse().unwrap()
    }

    #[test]
    fn a_session_that_was_replaced_neither_speaks_nor_ends_the_one_that_came_after() {
        let (mut sessions, host) = (Sessions::default(), host());
        let (first, mut old) = mpsc::channel(1);
        let (second, _queue) = mpsc::channel(1);
        assert!(!sessions.open(at(0), &host, (1, first), true));
        assert!(sessions.open(at(5), &host, (2, second), true));
        assert!(old.try_recv().is_err() && old.is_closed());
        assert!(!sessions.is_current(&host, 1) && sessions.is_current(&host, 2));
        assert_eq!(sessions.close(at(6), &host, 1), None);
        assert!(sessions.is_open(&host));
        assert_eq!(sessions.away_for(at(6), &host), None);
        assert_eq!(
            sessions.close(at(9), &host, 2),
            Some(Duration::from_secs(4))
        );
        assert_eq!(
            sessions.away_for(at(11), &host),
            Some(Duration::from_secs(2))
        );
        assert_eq!((sessions.count(), sessions.is_open(&host)), (0, false));
    }

    #[test]
    fn a_host_that_takes_no_orders_loses_its_session_with_the_first_order_too_many() {
        let (mut sessions, host) = (Sessions::default(), host());
        let order = Arc::new(message::Order::default());
        let (queue, taken) = mpsc::channel(2);
        sessions.open(at(0), &host, (1, queue), true);
        assert!(!sessions.send(at(1), &host, &order) && !sessions.send(at(1), &host, &order));
        assert!(sessions.send(at(2), &host, &order));
        assert!(!sessions.is_open(&host));
        assert_eq!(sessions.away_for(at(2), &host), Some(Duration::ZERO));
        // the end of the session is told once
        assert!(!sessions.send(at(3), &host, &order));
        assert_eq!(sessions.close(at(3), &host, 1), None);
        assert_eq!(taken.len(), 2);
    }

    #[test]
    fn whether_links_are_signed_is_known_of_those_with_a_session_alone() {
        let (mut sessions, host) = (Sessions::default(), host());
        assert!(!sessions.signs_links(&host) && !sessions.is_old(&host));
        for signs in [true, false] {
            sessions.open(at(0), &host, (1, mpsc::channel(1).0), signs);
            assert_eq!(sessions.signs_links(&host), signs);
            assert_eq!(sessions.is_old(&host), !signs);
        }
        sessions.left(&host);
        assert!(!sessions.is_old(&host));
        assert_eq!(
            sessions.away_for(at(9), &host),
            None,
            "it isn't of the fleet"
        );
    }
}
