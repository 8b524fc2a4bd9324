//! Handshakes that failed because one side didn't take the other. The last refusal of each host is kept, and shown to
//! an operator who asks why the host is away.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use proto::{HostId, Moment};
use wire::{AcceptError, Fault, utc};

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
    /// Why.
    pub(crate) cause: Cause,
}

/// Why one side of a handshake didn't take the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The host is revoked.
    Revoked,
    /// This coordinator has something against the host.
    Host(Fault),
    /// The host has something against this coordinator.
    Coordinator(Fault),
    /// By the client's clock the certificate of this coordinator's API has expired. Here it was this time.
    Clock(SystemTime),
}

impl Cause {
    /// The name for logs: one of a closed set.
    pub(super) const fn as_str(&self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Host(fault) | Self::Coordinator(fault) => fault.as_str(),
            Self::Clock(_) => "expired",
        }
    }
}

impl fmt::Display for Cause {
    /// What is wrong, and what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Revoked => f.write_str("it was turned away, because it is revoked"),
            Self::Host(fault) => fault.of_peer().fmt(f),
            Self::Coordinator(fault) => {
                write!(f, "it doesn't take this coordinator: {}", fault.of_us())
            }
            Self::Clock(here) => write!(
                f,
                "by its clock the certificate of this coordinator's API isn't good, and by the clock here it is {}; \
                 set the clock that is wrong",
                utc(*here)
            ),
        }
    }
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
                cause: Cause::Host(fault.clone()),
            }),
            AcceptError::Refused { address, fault, .. } => Some(Self {
                host: None,
                address: *address,
                cause: Cause::Coordinator(fault.clone()),
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
    /// The cause in words, which name the time of the refusal.
    message: String,
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
            .filter(|before| before.refused.cause.as_str() == refused.cause.as_str())
            .map(|before| before.logged_at)
            .filter(|at| recent(*at));
        let kept = Kept {
            at: now,
            logged_at: logged.unwrap_or(now),
            message: refused.cause.to_string(),
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
            message: kept.message.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPIRED: Fault = Fault::Expired(None);

    fn refused(fault: Fault, last: u8) -> Refused {
        Refused {
            host: None,
            address: SocketAddr::from(([10, 0, 0, last], 7471)),
            cause: Cause::Host(fault),
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
            |seconds, fault| refusals.note(at(seconds), Some(host.clone()), refused(fault, 1));
        assert!(note(0, EXPIRED));
        assert!(!note(10, EXPIRED) && !note(599, EXPIRED));
        assert!(note(600, EXPIRED));
        // a refusal for another reason is logged at once
        assert!(note(610, Fault::Unauthorised) && !note(620, Fault::Unauthorised));
        let shown = refusals.of(at(625), &host).unwrap();
        assert_eq!(shown.seconds_ago, 5);
        assert_eq!(shown.message, Fault::Unauthorised.of_peer().to_string());
        refusals.forget(&host);
        assert_eq!(refusals.of(at(625), &host), None);
    }

    #[test]
    fn strangers_fill_neither_memory_nor_log() {
        let mut refusals = Refusals::default();
        let logged = (0..200).filter(|last| {
            let first = refusals.note(at(0), None, refused(EXPIRED, *last));
            let again = refusals.note(at(1), None, refused(EXPIRED, *last));
            assert!(!again);
            first
        });
        assert_eq!(logged.count(), MAX_STRANGERS);
        assert!(refusals.note(at(700), None, refused(EXPIRED, 0)));
        for number in 0..MAX_HOSTS + 10 {
            let host = Some(format!("h{number}").parse().unwrap());
            refusals.note(at(1), host, refused(EXPIRED, 1));
        }
        assert_eq!(refusals.hosts.len(), MAX_HOSTS);
    }
}
