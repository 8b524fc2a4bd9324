//! Presence: which hosts hold which images, verified and ready to use, and how old each host's word is.
//!
//! Presence comes only from a host's own authenticated reports. Silence isn't loss: a host that hasn't reported since
//! this coordinator started may still hold what it held before. So the gate doesn't open for that host, and takes
//! nothing back until the silence has lasted.

use alloc::{collections::BTreeMap, collections::BTreeSet, string::String};
use core::time::Duration;

use proto::{Digest, HostId, Moment};

/// How long a host's word about what it holds counts, unless configured otherwise. Agents look at their disks every 5
/// s.
pub const MAX_AGE: Duration = Duration::from_secs(30);

/// What a host holds: the references that are ready there, by manifest digest.
pub type Holdings = BTreeMap<Digest, BTreeSet<String>>;

/// What is known of one image on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// The host holds the image, and said so lately.
    Fresh,
    /// The host held the image when it last reported, this long ago.
    Old(Duration),
    /// The host says that it doesn't hold the image.
    Missing,
    /// The host hasn't reported since this coordinator started.
    Unheard,
}

#[derive(Clone, Debug, Default)]
struct Host {
    seen_at: Option<Moment>,
    holdings: Holdings,
}

/// What every host holds.
#[derive(Clone, Debug, Default)]
pub struct Presence {
    hosts: BTreeMap<HostId, Host>,
}

impl Presence {
    /// The host reports everything that it holds. It looked at its disk `at` that moment.
    pub fn report(&mut self, at: Moment, host: HostId, holdings: Holdings) {
        let host = self.hosts.entry(host).or_default();
        host.seen_at = Some(at);
        host.holdings = holdings;
    }

    /// The host looked at its disk again `at` that moment, and nothing changed. Returns how old its word had become;
    /// `None` where it hadn't reported.
    pub fn seen(&mut self, at: Moment, host: &HostId) -> Option<Duration> {
        let host = self.hosts.get_mut(host)?;
        let before = host.seen_at.replace(at)?;
        Some(at.since(before))
    }

    /// What is known of the image with this digest under `reference` on `host`. A word older than `max_age` is old.
    #[must_use]
    pub fn of(
        &self,
        now: Moment,
        host: &HostId,
        reference: &str,
        digest: &Digest,
        max_age: Duration,
    ) -> Held {
        let Some((host, seen_at)) = self
            .hosts
            .get(host)
            .and_then(|host| Some((host, host.seen_at?)))
        else {
            return Held::Unheard;
        };
        let holds = host
            .holdings
            .get(digest)
            .is_some_and(|references| references.contains(reference));
        let age = now.since(seen_at);
        match (holds, age <= max_age) {
            (true, true) => Held::Fresh,
            (true, false) => Held::Old(age),
            (false, _) => Held::Missing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString as _;

    const AGE: Duration = Duration::from_secs(30);

    fn second(at: u64) -> Moment {
        Moment::START + Duration::from_secs(at)
    }

    #[test]
    fn presence_is_for_one_name_and_digest_and_ages() {
        let host = "mini-1".parse().unwrap();
        let (image, other) = (Digest::of(b"image"), Digest::of(b"other"));
        let mut presence = Presence::default();
        let of = |presence: &Presence, at, name: &str, digest| {
            presence.of(second(at), &host, name, digest, AGE)
        };
        assert_eq!(of(&presence, 1, "r/a:1", &image), Held::Unheard);
        let names = BTreeSet::from(["r/a:1".to_string()]);
        presence.report(second(1), host.clone(), [(image, names)].into());
        assert_eq!(of(&presence, 31, "r/a:1", &image), Held::Fresh);
        assert_eq!(
            of(&presence, 32, "r/a:1", &image),
            Held::Old(Duration::from_secs(31))
        );
        assert_eq!(of(&presence, 2, "r/a:2", &image), Held::Missing);
        assert_eq!(of(&presence, 2, "r/a:1", &other), Held::Missing);
        presence.seen(second(40), &host);
        assert_eq!(of(&presence, 70, "r/a:1", &image), Held::Fresh);
        presence.report(second(41), host.clone(), Holdings::new());
        assert_eq!(of(&presence, 41, "r/a:1", &image), Held::Missing);
    }
}
