//! Measures how long Pods take from their creation to running, and whether they found the image on their Node.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use rollout::gate::Phase;

/// Pods that were seen Pending and whose start is being timed, by uid. The value says whether the Node held the image
/// when the Pod was first seen there. The value is `None` while the Pod has no Node.
#[derive(Debug, Default)]
pub(super) struct Starts(BTreeMap<String, Option<bool>>);

/// A Pod started to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// Whether the Pod's Node held the image when the Pod came there.
    pub(super) staged: bool,
    /// The time from the Pod's creation to running.
    pub(super) took: Duration,
}

impl Starts {
    /// Takes in a Pod's phase. `staged` says whether the Pod's Node holds the image now, and is `None` without a Node.
    /// Returns the Pod's start once, and only if the Pod was seen Pending before.
    pub(super) fn see(
        &mut self,
        time: SystemTime,
        uid: &str,
        phase: Phase,
        created: Option<SystemTime>,
        staged: Option<bool>,
    ) -> Option<Start> {
        match phase {
            Phase::Pending => {
                // a Pod that waited for its own pull finds the image there when it runs, so the first sight counts
                let met = self.0.entry(uid.to_owned()).or_default();
                *met = met.or(staged);
                None
            }
            Phase::Running => {
                let met = self.0.remove(uid)?;
                Some(Start {
                    staged: met.or(staged)?,
                    took: time.duration_since(created?).ok()?,
                })
            }
            Phase::Ended | Phase::Unknown => {
                self.0.remove(uid);
                None
            }
        }
    }

    /// Forgets a Pod that is gone.
    pub(super) fn forget(&mut self, uid: &str) {
        self.0.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn what_a_pod_met_on_its_node_counts_and_not_what_came_later() {
        for met in [true, false] {
            let (mut starts, made) = (Starts::default(), SystemTime::UNIX_EPOCH);
            let mut see =
                |phase, staged| starts.see(made + MINUTE, "uid", phase, Some(made), staged);
            assert_eq!(see(Phase::Pending, None), None);
            assert_eq!(see(Phase::Pending, Some(met)), None);
            assert_eq!(see(Phase::Pending, Some(!met)), None);
            let (staged, took) = (met, MINUTE);
            assert_eq!(
                see(Phase::Running, Some(!met)),
                Some(Start { staged, took })
            );
            assert_eq!(see(Phase::Running, Some(!met)), None, "once");
        }
    }

    #[test]
    fn a_pod_that_was_never_pending_here_or_has_no_node_or_time_is_not_timed() {
        let (mut starts, now) = (Starts::default(), SystemTime::UNIX_EPOCH);
        assert_eq!(
            starts.see(now, "a", Phase::Running, Some(now), Some(true)),
            None
        );
        for (uid, created, staged) in [
            ("b", None, Some(true)),
            ("c", Some(now), None),
            // the time of creation is by another clock
            ("d", Some(now + MINUTE), Some(true)),
        ] {
            starts.see(now, uid, Phase::Pending, created, None);
            assert_eq!(
                starts.see(now, uid, Phase::Running, created, staged),
                None,
                "{uid}"
            );
        }
        starts.see(now, "e", Phase::Pending, Some(now), Some(true));
        starts.forget("e");
        assert_eq!(
            starts.see(now, "e", Phase::Running, Some(now), Some(true)),
            None
        );
    }
}
