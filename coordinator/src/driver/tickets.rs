//! Tickets: permission for hosts to answer for links (`proto::statement`).
//!
//! A host gets a standing ticket with its session, to vouch for what it has verified, and one with each lease, to make links
//! of what it fetches. Both are for the key that the host names in its hello. A host whose version names no key keeps its
//! session, so that what it holds is known, and takes no part in staging.

use std::time::{Duration, SystemTime};

use proto::{Digest, HostId, Moment, message};
use tracing::{error, warn};

use super::{Driver, orders::kind};

/// A ticket is good for as long as a certificate, by the receiver's clock, and no shorter than this: a clock that is good enough
/// for certificates has to be good enough for tickets. That bounds what a key does that is lost or left the fleet, and how long hosts
/// can be without a coordinator and still serve each other.
const LEAST_LIFETIME: Duration = Duration::from_hours(24);

impl Driver {
    /// Gives each host a standing ticket anew when half of the life of the one before is over.
    pub(super) fn renew_tickets(&mut self, now: Moment) {
        let due = self.hosts.iter().filter_map(|(host, known)| {
            let session = known.session.as_ref()?;
            let due = session.link_key.is_some() && session.ticket_due <= now;
            due.then(|| host.clone())
        });
        for host in due.collect::<Vec<_>>() {
            self.give_standing_ticket(now, &host);
        }
    }

    /// Gives a host that signs links a standing ticket.
    pub(super) fn give_standing_ticket(&mut self, now: Moment, host: &HostId) {
        let half = self.ticket_lifetime() / 2;
        let Some(ticket) = self.ticket(host, None) else {
            return;
        };
        if let Some(session) = self.session_of(host) {
            session.ticket_due = now + half;
        }
        self.order(host, kind(message::order::Kind::Ticket(ticket)));
    }

    /// A ticket for the host's key, numbered behind all earlier ones, in earlier lives and by other replicas too.
    pub(super) fn ticket(
        &mut self,
        host: &HostId,
        content: Option<Digest>,
    ) -> Option<message::Ticket> {
        let key = self.session_of(host)?.link_key?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = u64::try_from(now.unwrap_or_default().as_micros()).unwrap_or(u64::MAX);
        self.last_ticket = now.max(self.last_ticket.saturating_add(1));
        let lifetime = self.ticket_lifetime();
        let ticket = self
            .authority
            .ticket(content, host, key, self.last_ticket, lifetime);
        match ticket {
            Ok(ticket) => Some(ticket.to_message()),
            Err(error) => {
                error!(%host, %error, "ticket can't be signed");
                None
            }
        }
    }

    pub(super) fn ticket_lifetime(&self) -> Duration {
        self.config.certificate_lifetime.max(LEAST_LIFETIME)
    }

    fn session_of(&mut self, host: &HostId) -> Option<&mut super::Session> {
        self.hosts.get_mut(host)?.session.as_mut()
    }

    /// Whether the host's agent signs links. One that doesn't is told apart by name.
    pub(super) fn signs_links(&self, host: &HostId) -> bool {
        let session = self
            .hosts
            .get(host)
            .and_then(|known| known.session.as_ref());
        session.is_some_and(|session| session.link_key.is_some())
    }

    pub(super) fn warn_of_old_version(&self, host: &HostId, version: &str) {
        warn!(%host, version, "this host's agent doesn't sign links and takes no part in staging: upgrade it");
    }
}
