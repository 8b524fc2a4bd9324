//! Tickets: permissions for hosts to sign links (`proto::statement`).
//!
//! A host gets a standing ticket with its session. With the standing ticket it vouches for what it has verified. A host
//! also gets a ticket with each lease. With that ticket it makes links of what it fetches. Both tickets are for the key
//! that the host names in its hello. A host whose version names no key keeps its session, so that the coordinator knows
//! what it holds, but takes no part in staging.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use proto::{Digest, HostId, Moment, message, statement::LinkKey};
use tracing::error;

use super::order::order;
use crate::authority::Authority;

/// The shortest lifetime of a ticket. A ticket is good for as long as a certificate, by the receiver's clock, and never
/// shorter than this: a clock that is good enough for certificates has to be good enough for tickets. The lifetime
/// bounds what a key can do after it was lost or after its host left the fleet. The lifetime also bounds how long hosts
/// can serve each other without a coordinator.
const LEAST_LIFETIME: Duration = Duration::from_hours(24);

/// The tickets of hosts with sessions.
#[derive(Debug)]
pub(super) struct Tickets {
    authority: Arc<Authority>,
    lifetime: Duration,
    /// The number of the last ticket.
    last: u64,
    hosts: BTreeMap<HostId, Standing>,
}

#[derive(Debug)]
struct Standing {
    key: LinkKey,
    /// When the host is given its next standing ticket.
    due: Moment,
}

impl Tickets {
    pub(super) fn new(authority: Arc<Authority>, certificate_lifetime: Duration) -> Self {
        Self {
            authority,
            lifetime: certificate_lifetime.max(LEAST_LIFETIME),
            last: 0,
            hosts: BTreeMap::new(),
        }
    }

    /// A session of a host began. The host signs links with this key.
    pub(super) fn connected(&mut self, now: Moment, host: &HostId, key: LinkKey) {
        let standing = Standing { key, due: now };
        self.hosts.insert(host.clone(), standing);
    }

    /// The host has no session any more.
    pub(super) fn disconnected(&mut self, host: &HostId) {
        self.hosts.remove(host);
    }

    /// The hosts that need a new standing ticket, because half of the life of their last one is over.
    pub(super) fn due(&self, now: Moment) -> Vec<HostId> {
        let hosts = self.hosts.iter();
        let due = hosts.filter(|(_, standing)| standing.due <= now);
        due.map(|(host, _)| host.clone()).collect()
    }

    /// A standing ticket for a host that signs links.
    pub(super) fn standing(
        &mut self,
        (now, clock): (Moment, SystemTime),
        host: &HostId,
    ) -> Option<message::Order> {
        let ticket = self.ticket(clock, host, None)?;
        if let Some(standing) = self.hosts.get_mut(host) {
            standing.due = now + self.lifetime / 2;
        }
        Some(order(message::order::Kind::Ticket(ticket)))
    }

    /// A ticket for the host's key: for one content, or a standing one. Its number is the clock's microseconds. So the
    /// number is greater than that of any earlier ticket, also of other replicas and of earlier processes.
    pub(super) fn ticket(
        &mut self,
        clock: SystemTime,
        host: &HostId,
        content: Option<Digest>,
    ) -> Option<message::Ticket> {
        let key = self.hosts.get(host)?.key;
        let since_1970 = clock.duration_since(SystemTime::UNIX_EPOCH);
        let micros = since_1970.unwrap_or_default().as_micros();
        let micros = u64::try_from(micros).unwrap_or(u64::MAX);
        self.last = micros.max(self.last.saturating_add(1));
        let ticket = self
            .authority
            .ticket(content, host, key, self.last, self.lifetime);
        match ticket {
            Ok(ticket) => Some(ticket.to_message()),
            Err(error) => {
                error!(%host, %error, "ticket can't be signed");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn tickets(lifetime: Duration) -> Tickets {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(&dir.path().join("authority")).unwrap();
        Tickets::new(Arc::new(authority), lifetime)
    }

    fn at(clock: Duration) -> (Moment, SystemTime) {
        let since_1970 = Duration::from_hours(500_000);
        (
            Moment::START + clock,
            SystemTime::UNIX_EPOCH + since_1970 + clock,
        )
    }

    #[test]
    fn a_standing_ticket_is_renewed_after_half_of_its_life() {
        let mut tickets = tickets(4 * DAY);
        let host: HostId = "mini-1".parse().unwrap();
        tickets.connected(Moment::START, &host, [1; 32]);
        assert_eq!(tickets.due(Moment::START), std::slice::from_ref(&host));
        assert!(tickets.standing(at(Duration::ZERO), &host).is_some());
        let half = Moment::START + 2 * DAY;
        assert!(tickets.due(Moment(half.0 - 1)).is_empty());
        assert_eq!(tickets.due(half), std::slice::from_ref(&host));
        tickets.disconnected(&host);
        assert!(tickets.due(half).is_empty());
        assert_eq!(tickets.standing(at(2 * DAY), &host), None);
    }

    #[test]
    fn certificates_of_an_hour_make_tickets_of_a_day() {
        let mut tickets = tickets(Duration::from_hours(1));
        let host: HostId = "mini-1".parse().unwrap();
        tickets.connected(Moment::START, &host, [1; 32]);
        tickets.standing(at(Duration::ZERO), &host).unwrap();
        assert!(
            tickets
                .due(Moment::START + Duration::from_hours(11))
                .is_empty()
        );
        assert_eq!(tickets.due(Moment::START + DAY / 2).len(), 1);
    }

    #[test]
    fn numbers_grow_also_where_the_clock_is_set_back() {
        let mut tickets = tickets(DAY);
        let host: HostId = "mini-1".parse().unwrap();
        tickets.connected(Moment::START, &host, [1; 32]);
        let mut number = |seconds| {
            let ticket = tickets.ticket(at(Duration::from_secs(seconds)).1, &host, None);
            proto::Ticket::parse(&ticket.unwrap()).unwrap().number()
        };
        let numbers = [number(100), number(5), number(100), number(101)];
        assert!(
            numbers.is_sorted_by(|one, other| one < other),
            "{numbers:?}"
        );
    }
}
