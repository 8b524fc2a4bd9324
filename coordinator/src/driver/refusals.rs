//! Handshakes that failed because one side didn't take the other. The last refusal of each host is kept, and shown to
//! an operator who asks why the host is away.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use proto::{HostId, Moment};
use wire::AcceptError;

use crate::view::RefusalView;

/// The most hosts whose last refusal is kept: a whole fleet, and as many revoked hosts.
const MAX_HOSTS: usize = 2 * crate::config::MAX_HOSTS;
/// The most addresses of unknown hosts that are remembered. A refusal of such an address isn't logged when it comes
/// again within [`LOG_AGAIN`], nor when this many addresses are remembered already.
const MAX_STRANGERS: usize = 64;
/// The same refusal is logged again after this time: agents try every ten seconds.
const LOG_AGAIN: Duration = Duration::from_mins(10);

/// A handshake that failed because one side didn't take the other.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    /// The host, where its certificate proves who it is.
    pub(crate) host: Option<HostId>,
    /// The address from which the connection came.
    pub(crate) address: SocketAddr,
    /// The kind of the refusal: a name of a closed set.
    pub(crate) reason: &'static str,
    /// What is wrong, and what to do.
    pub(crate) message: String,
}

impl Refused {
    /// The refusal that a failed handshake means. `None` where neither side refused the other: the handshake broke, or
    /// took too long.
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
    /// Remembers a refusal of this host, or of the address when no known host is there. Returns whether the refusal is
    /// worth a log line.
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

    /// The host has a session, so its last refusal doesn't matter any more.
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
        // a refusal for another reason is logged at once
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
