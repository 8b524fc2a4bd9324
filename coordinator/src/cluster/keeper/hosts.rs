//! What the driver tells the keeper about the fleet: its members, the progress of staging, and what each host reports
//! to hold.

use std::{sync::Arc, time::Duration};

use proto::{Digest, HostId};
use rollout::{gate, presence};

use crate::{
    cluster::{clock::Now, index::NodeFacts},
    driver::{HostPresence, PresenceView, View},
};

/// The newest view and the newest presence.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    view: Arc<View>,
    presence: Arc<PresenceView>,
}

impl Hosts {
    /// Takes in a new view: staging made progress, or the fleet changed.
    pub(super) fn show(&mut self, view: Arc<View>) {
        self.view = view;
    }

    /// Takes in new presence: some hosts hold other images, or looked again. Returns the events for the gate.
    pub(super) fn hear(&mut self, now: Now, presence: Arc<PresenceView>) -> Vec<gate::Event> {
        let before = std::mem::replace(&mut self.presence, presence);
        let mut events = Vec::new();
        for (host, word) in self.presence.iter() {
            let known = before.get(host);
            if known == Some(word) {
                continue;
            }
            let age = now.since(word.checked_at);
            let same = known.is_some_and(|known| known.holdings == word.holdings);
            events.push(if same {
                gate::Event::Seen(host.clone(), age)
            } else {
                gate::Event::Holds(host.clone(), (*word.holdings).clone(), age)
            });
        }
        events
    }

    /// The progress of staging.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// The last report of a host. `None` where the host hasn't reported since this coordinator started.
    pub(super) fn word(&self, host: &HostId) -> Option<&HostPresence> {
        self.presence.get(host)
    }

    /// Whether a host is part of the fleet and isn't revoked.
    pub(super) fn is_member(&self, host: &HostId) -> bool {
        let shown = self.view.hosts.get(host);
        shown.is_some_and(|host| !host.revoked)
    }

    /// Whether a fresh report says that a host holds this image under this name.
    pub(super) fn holds(&self, now: Now, host: &HostId, digest: &Digest, image: &str) -> bool {
        self.presence.get(host).is_some_and(|word| {
            is_fresh(now, word)
                && word
                    .holdings
                    .get(digest)
                    .is_some_and(|references| references.contains(image))
        })
    }

    /// Whether a Node counts for staging: it is Ready, it takes Pods, and its agent is part of the fleet.
    pub(super) fn is_usable(&self, name: &str, node: &NodeFacts) -> bool {
        node.ready
            && node.schedulable
            && name.parse().is_ok_and(|host: HostId| self.is_member(&host))
    }
}

/// Whether a host's report is fresh enough to count.
pub(super) fn is_fresh(now: Now, word: &HostPresence) -> bool {
    now.since(word.checked_at) <= presence::MAX_AGE
}

/// Whether every host has had the time to report since the keeper started.
pub(super) fn all_had_time(up: Duration) -> bool {
    up > presence::MAX_AGE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::HostView;

    fn digest() -> Digest {
        Digest::of(b"image")
    }

    fn host() -> HostId {
        "mac-0".parse().unwrap()
    }

    fn said(now: Now, references: &[&str]) -> Arc<PresenceView> {
        let references = references.iter().map(|name| (*name).to_owned()).collect();
        let word = HostPresence {
            holdings: Arc::new([(digest(), references)].into()),
            checked_at: now.instant,
        };
        Arc::new([(host(), word)].into())
    }

    #[test]
    fn the_gate_hears_of_holdings_once_and_of_looks_each_time() {
        let (mut hosts, now) = (Hosts::default(), Now::start());
        let first = hosts.hear(now, said(now, &["r/i:1"]));
        assert!(matches!(&first[..], [gate::Event::Holds(_, held, _)] if held.len() == 1));
        assert!(hosts.hear(now, said(now, &["r/i:1"])).is_empty());
        // the host looked again, and its report arrives a second later
        let looked = said(now.after(Duration::from_secs(5)), &["r/i:1"]);
        let again = hosts.hear(now.after(Duration::from_secs(6)), looked);
        let second = Duration::from_secs(1);
        assert!(matches!(&again[..], [gate::Event::Seen(_, age)] if *age == second));
        let other = hosts.hear(now, said(now, &["r/i:2"]));
        assert!(matches!(&other[..], [gate::Event::Holds(..)]));
    }

    #[test]
    fn a_word_counts_for_its_reference_until_it_is_too_old() {
        let (mut hosts, now) = (Hosts::default(), Now::start());
        hosts.hear(now, said(now, &["r/i:1"]));
        let last = now.after(presence::MAX_AGE);
        assert!(hosts.holds(last, &host(), &digest(), "r/i:1"));
        assert!(!hosts.holds(last, &host(), &digest(), "r/i:2"));
        assert!(!hosts.holds(last, &host(), &Digest::of(b"other"), "r/i:1"));
        let late = last.after(Duration::from_millis(1));
        assert!(!hosts.holds(late, &host(), &digest(), "r/i:1"));
        assert!(!all_had_time(last.up) && all_had_time(late.up));
    }

    #[test]
    fn a_host_that_is_revoked_or_unknown_is_no_member() {
        let mut hosts = Hosts::default();
        let shown = |revoked| {
            let host_view = HostView {
                revoked,
                ..HostView::default()
            };
            let view = View {
                hosts: [(host(), Arc::new(host_view))].into(),
                ..View::default()
            };
            Arc::new(view)
        };
        assert!(!hosts.is_member(&host()));
        hosts.show(shown(false));
        assert!(hosts.is_member(&host()));
        hosts.show(shown(true));
        assert!(!hosts.is_member(&host()));
    }
}
