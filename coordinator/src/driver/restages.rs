//! Images that hosts lost: each is ordered there again after a pause that grows, because whoever removed it may do so
//! again and again.

use std::{collections::BTreeMap, time::Duration};

use proto::{Digest, HostId, Moment, pause::doubled};

/// The first pause before an image is ordered again on a host that lost it. Each further loss makes the pause four
/// times as long, up to [`PAUSE_MOST`].
pub(super) const PAUSE: Duration = Duration::from_secs(1);
pub(super) const PAUSE_MOST: Duration = Duration::from_mins(10);

/// The hosts that lost an image, and when the image is ordered there again.
#[derive(Debug, Default)]
pub(super) struct Restages(BTreeMap<Digest, BTreeMap<HostId, Restage>>);

/// A host that lost an image.
#[derive(Debug, Default)]
struct Restage {
    due: Option<Moment>,
    tries: u32,
}

impl Restages {
    /// A host lost an image that is wanted there. Returns the pause until the image is ordered again; `None` when that
    /// is planned already.
    pub(super) fn lost(&mut self, now: Moment, host: &HostId, image: Digest) -> Option<Duration> {
        let hosts = self.0.entry(image).or_default();
        let restage = hosts.entry(host.clone()).or_default();
        if restage.due.is_some() {
            return None;
        }
        let pause = doubled(PAUSE, PAUSE_MOST, restage.tries.saturating_mul(2));
        restage.tries = restage.tries.saturating_add(1);
        restage.due = Some(now + pause);
        Some(pause)
    }

    /// The image isn't wanted any more, or somebody asks for it again. The pauses of all its hosts begin anew.
    pub(super) fn forget(&mut self, image: &Digest) {
        self.0.remove(image);
    }

    /// The next time at which an image is to be ordered again.
    pub(super) fn due(&self) -> Option<Moment> {
        let all = self.0.values().flat_map(BTreeMap::values);
        all.filter_map(|restage| restage.due).min()
    }

    /// The hosts and images that are to be ordered again now; each is returned once.
    pub(super) fn take_due(&mut self, now: Moment) -> Vec<(HostId, Digest)> {
        let mut due = Vec::new();
        for (image, hosts) in &mut self.0 {
            for (host, restage) in hosts {
                if restage.due.take_if(|at| *at <= now).is_some() {
                    due.push((host.clone(), *image));
                }
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_fourfold_to_ten_minutes_and_begin_anew_with_an_ask() {
        let (mut restages, host) = (Restages::default(), "mini-1".parse::<HostId>().unwrap());
        let image = Digest::of(b"image");
        let mut now = Moment::START;
        for seconds in [1, 4, 16, 64, 256, 600, 600] {
            let pause = Duration::from_secs(seconds);
            assert_eq!(restages.lost(now, &host, image), Some(pause));
            assert_eq!(restages.lost(now, &host, image), None, "it is known");
            let due = now + pause;
            assert_eq!(restages.due(), Some(due));
            assert!(restages.take_due(Moment(due.0 - 1)).is_empty());
            assert_eq!(restages.take_due(due), [(host.clone(), image)]);
            assert_eq!(restages.due(), None);
            now = due;
        }
        restages.forget(&image);
        assert_eq!(restages.lost(now, &host, image), Some(PAUSE));
    }
}
