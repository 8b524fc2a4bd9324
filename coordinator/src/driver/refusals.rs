//! Handshakes that failed because one side didn't take the other: the last one of each host, for whoever asks why it
//! is away.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use link::AcceptError;
use proto::{HostId, Moment};

use crate::view::RefusalView;

/// Hosts whose last refusal is kept: a fleet, and as many that were revoked.
const MAX_HOSTS: usize = 2 * crate::config::MAX_HOSTS;
/// Addresses of no known host that are told apart in the log; beyond these, and again within [`LOG_AGAIN`], they aren't
/// logged.
const MAX_STRANGERS: usize = 64;
/// The same refusal is logged again after this long: agents try every ten seconds.
const LOG_AGAIN: Duration = Duration::from_mins(10);

/// A handshake that failed because one side didn't take the other.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    /// Who it was, where its certificate proves it.
    pub(crate) host: Option<HostId>,
    /// Where it called from.
    pub(crate) address: SocketAddr,
    /// What it is about: a name of a closed set.
    pub(crate) reason: &'static str,
    /// What is wrong, and what to do.
    pub(crate) message: String,
}

impl Refused {
    /// What a failed handshake tells of a host. `None` where neither side refused the other: it broke, or took too
    /// long.
    pub(crate) fn of(error: &AcceptError) -> Option<Self> {
        match error {
            AcceptError::PeerUntrusted {
                host,
                address,
                fault,
            } => Some(Self {
                host: host.clone(),
                address: *address,
                reason: fault.as_str(),
                message: fault.of_peer().to_string(),
            }),
            AcceptError::Refused { address, fault, .. } => Some(Self {
                host: None,
                address: *address,
                reason: fault.as_str(),
                message: format!("it doesn't take this coordinator: {}", fault.of_us()),
            }),
            AcceptError::TimedOut { .. }
            | AcceptError::GaveWay { .. }
            | AcceptError::Broken { .. } => None,
        }
    }
}

#[derive(Debug)]
struct Kept {
    at: Moment,
    logged_at: Moment,
    refused: Refused,
}

/// The last refusal of each host.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    hosts: BTreeMap<HostId, Kept>,
    strangers: BTreeMap<IpAddr, Moment>,
}

impl Refusals {
    /// Remembers a refusal of this host, or of an address that is no known host's. Whether it is worth a line in the
    /// log.
    pub(super) fn note(&mut self, now: Moment, host: Option<HostId>, refused: Refused) -> bool {
        let recent = |at: Moment| now.since(at) < LOG_AGAIN;
        let Some(host) = host else {
            self.strangers.retain(|_, at| recent(*at));
            let ip = refused.address.ip();
            let news = !self.strangers.contains_key(&ip) && self.strangers.len() < MAX_STRANGERS;
            if news {
                self.strangers.insert(ip, now);
            }
            return news;
        };
        let before = self.hosts.get(&host);
        if before.is_none() && self.hosts.len() >= MAX_HOSTS {
            return false;
        }
        let logged = before
            .filter(|before| before.refused.reason == refused.reason)
            .map(|before| before.logged_at)
            .filter(|at| recent(*at));
        let kept = Kept {
            at: now,
            logged_at: logged.unwrap_or(now),
            refused,
        };
        self.hosts.insert(host, kept);
        logged.is_none()
    }

    /// The host has a session: what kept it away is over.
    pub(super) fn forget(&mut self, host: &HostId) {
        self.hosts.remove(host);
    }

    pub(super) fn of(&self, now: Moment, host: &HostId) -> Option<RefusalView> {
        let kept = self.hosts.get(host)?;
        Some(RefusalView {
            seconds_ago: now.since(kept.at).as_secs(),
            address: kept.refused.address.to_string(),
            message: kept.refused.message.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(reason: &'static str, last: u8) -> Refused {
        Refused {
            host: None,
            address: SocketAddr::from(([10, 0, 0, last], 7471)),
            reason,
            message: format!("because of {reason}"),
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment::START + Duration::from_secs(seconds)
    }

    #[test]
    fn the_last_refusal_of_a_host_is_kept_until_it_has_a_session_and_logged_now_and_then() {
        let host: HostId = "mini-1".parse().unwrap();
        let mut refusals = Refusals::default();
        let mut note =
            |seconds, reason| refusals.note(at(seconds), Some(host.clone()), refused(reason, 1));
        assert!(note(0, "expired"));
        assert!(!note(10, "expired") && !note(599, "expired"));
        assert!(note(600, "expired"));
        // another cause is news
        assert!(note(610, "unauthorised") && !note(620, "unauthorised"));
        let shown = refusals.of(at(625), &host).unwrap();
        assert_eq!(shown.seconds_ago, 5);
        assert_eq!(shown.message, "because of unauthorised");
        refusals.forget(&host);
        assert_eq!(refusals.of(at(625), &host), None);
    }

    #[test]
    fn strangers_fill_neither_memory_nor_log() {
        let mut refusals = Refusals::default();
        let logged = (0..200).filter(|last| {
            let first = refusals.note(at(0), None, refused("expired", *last));
            let again = refusals.note(at(1), None, refused("expired", *last));
            assert!(!again);
            first
        });
        assert_eq!(logged.count(), MAX_STRANGERS);
        assert!(refusals.note(at(700), None, refused("expired", 0)));
        for number in 0..MAX_HOSTS + 10 {
            let host = Some(format!("h{number}").parse().unwrap());
            refusals.note(at(1), host, refused("expired", 1));
        }
        assert_eq!(refusals.hosts.len(), MAX_HOSTS);
    }
}
