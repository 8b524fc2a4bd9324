//! Which old images go: a function of facts, without a disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use proto::Digest;

use crate::retention::{InUse, Terms};

/// An image rests this long after it was wanted or cloned from. Whoever cancels the wrong image has this long to stage
/// it again.
const REST: Duration = Duration::from_hours(1);

/// What is known of an installed image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Old {
    pub(super) image: Digest,
    /// The references that name it, by their places (`Reference::place`).
    pub(super) names: BTreeSet<String>,
    /// Where tart's cache has it.
    pub(super) repositories: BTreeSet<PathBuf>,
    pub(super) wanted: bool,
    /// When its staging began.
    pub(super) since: SystemTime,
    /// When it was last wanted, or cloned from.
    pub(super) used: SystemTime,
    /// tart set the note of the last clone back: it pulled another image under the same tag. So clones may be younger
    /// than `used` says.
    pub(super) outdated: bool,
    /// A link or a marker of somebody else in tart's cache that names it.
    pub(super) elsewhere: Option<String>,
    /// A golden of it that runs.
    pub(super) running: Option<String>,
}

impl Old {
    /// Whether a VM that was made at this moment may be a clone of the image.
    ///
    /// The last clone is younger than `used`: tart notes the use first, in whole seconds, and then makes the VM's
    /// directory (tart, Sources/tart/Commands/Clone.swift: run; URL+AccessDate.swift: asTimeval). Where the times
    /// contradict each other, nothing is known of the beginning.
    fn may_have_made(&self, made: SystemTime) -> bool {
        let until = self.used.checked_add(REST).filter(|_| !self.outdated);
        let began = self.since > self.used || made >= self.since;
        began && until.is_none_or(|until| made <= until)
    }

    /// tart noted in this access time that the image was cloned from, or set it to 1970 because it pulls another image
    /// under the same tag (tart, Sources/tart/VMStorageOCI.swift: open, pull).
    pub(super) fn cloned(&mut self, at: SystemTime) {
        self.used = self.used.max(at);
        self.outdated |= at == SystemTime::UNIX_EPOCH;
    }
}

/// Why an image stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stays {
    /// It is wanted.
    #[error("it is wanted")]
    Wanted,
    /// It is among the newest of a repository.
    #[error("it is among the newest of its repository")]
    Newest,
    /// It was used within so many days, as the rule says.
    #[error("it was wanted or cloned from within the last {0} days")]
    Young(u32),
    /// A Pod or a pool in the cluster refers to it by this name.
    #[error("Pods or pools refer to {0}")]
    InUse(String),
    /// More images are in use by Pods and pools than the host is told.
    #[error("not all images that Pods and pools refer to are known here")]
    UsersUnknown,
    /// It was used within the last hour.
    #[error("it was wanted or cloned from within the last hour")]
    UsedLately,
    /// Somebody else named it by this link or marker in tart's cache.
    #[error("somebody else named it: {0}")]
    NamedElsewhere(String),
    /// This golden of it runs.
    #[error("its golden runs: {0}")]
    Runs(String),
    /// This VM may be a clone of it.
    #[error("VM {0} may be a clone of it")]
    MayBeCloned(String),
}

/// Decides which images go by these terms. `machines` are local VMs that aren't goldens of ours, with the times when
/// they were made.
pub(super) fn decide(
    images: &[Old],
    machines: &[(String, SystemTime)],
    terms: &Terms,
    now: SystemTime,
) -> BTreeMap<Digest, Option<Stays>> {
    // a rule by age alone gives no place to anybody
    let keep = terms.rule.images().unwrap_or_default();
    let keep = usize::try_from(keep).unwrap_or(usize::MAX);
    let mut newest: Vec<&Old> = images.iter().collect();
    newest.sort_by_key(|old| (!old.wanted, std::cmp::Reverse((old.used, old.image))));
    let mut kept: BTreeMap<&PathBuf, usize> = BTreeMap::new();
    let mut verdicts = BTreeMap::new();
    for old in newest {
        let places = old.repositories.iter();
        let has_place = places
            .clone()
            .any(|place| kept.get(place).copied().unwrap_or(0) < keep);
        let verdict = if old.wanted {
            Some(Stays::Wanted)
        } else if has_place {
            Some(Stays::Newest)
        } else {
            needed(old, machines, terms, now)
        };
        // what stays for another reason takes no place from a newer image
        if matches!(verdict, Some(Stays::Wanted | Stays::Newest)) {
            for place in places {
                *kept.entry(place).or_default() += 1;
            }
        }
        verdicts.insert(old.image, verdict);
    }
    verdicts
}

/// Decides for each of these goldens whether it goes. Their images are wanted, under other names than the goldens'. Of
/// each image the newest goldens stay: as many as the rule keeps of a repository beside what is wanted.
pub(super) fn decide_outlived(
    goldens: &[Old],
    machines: &[(String, SystemTime)],
    terms: &Terms,
    now: SystemTime,
) -> Vec<bool> {
    let keep = terms.rule.images().unwrap_or_default().saturating_sub(1);
    let goes = |golden: &Old| {
        let newer = goldens.iter().filter(|other| {
            other.image == golden.image && (other.used, &other.names) > (golden.used, &golden.names)
        });
        let is_among_newest = newer.count() < usize::try_from(keep).unwrap_or(usize::MAX);
        !is_among_newest && needed(golden, machines, terms, now).is_none()
    };
    goldens.iter().map(goes).collect()
}

/// Why an image stays that isn't wanted and isn't among the newest.
fn needed(
    old: &Old,
    machines: &[(String, SystemTime)],
    terms: &Terms,
    now: SystemTime,
) -> Option<Stays> {
    if let Some(used) = used_by_pods(old, &terms.in_use) {
        return Some(used);
    }
    if let Some(name) = &old.elsewhere {
        return Some(Stays::NamedElsewhere(name.clone()));
    }
    if let Some(golden) = &old.running {
        return Some(Stays::Runs(golden.clone()));
    }
    // a clock that was set back makes it rest again
    let rested = now.duration_since(old.used).ok();
    if rested.is_none_or(|rested| rested < REST) {
        return Some(Stays::UsedLately);
    }
    if let (Some(age), Some(days)) = (terms.rule.age(), terms.rule.days())
        && rested.is_none_or(|rested| rested < age)
    {
        return Some(Stays::Young(days));
    }
    let clone = machines.iter().find(|(_, made)| old.may_have_made(*made));
    clone.map(|(name, _)| Stays::MayBeCloned(name.clone()))
}

/// Whether a Pod or a pool in the cluster refers to the image.
fn used_by_pods(old: &Old, in_use: &InUse) -> Option<Stays> {
    if let Some(name) = in_use.find(&old.names, &old.image) {
        return Some(Stays::InUse(name.to_owned()));
    }
    in_use.is_cut().then_some(Stays::UsersUnknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_hours(hours)
    }

    fn old(name: &str, wanted: bool, since: u64, used: u64) -> Old {
        Old {
            image: Digest::of(name.as_bytes()),
            names: [format!("ghcr.io/org/image:{name}")].into(),
            repositories: [PathBuf::from("org/image")].into(),
            wanted,
            since: at(since),
            used: at(used),
            outdated: false,
            elsewhere: None,
            running: None,
        }
    }

    /// What becomes of each image where so many of a repository stay, at hour 100.
    fn verdicts(images: &[Old], machines: &[(&str, u64)], keep: u32) -> Vec<Option<Stays>> {
        judged(images, machines, &Terms::of(Some(keep), None))
    }

    /// What becomes of each image, in the order in which they are given, at hour 100.
    fn judged(images: &[Old], machines: &[(&str, u64)], terms: &Terms) -> Vec<Option<Stays>> {
        let machines: Vec<_> = machines
            .iter()
            .map(|(name, made)| ((*name).to_owned(), at(*made)))
            .collect();
        let verdicts = decide(images, &machines, terms, at(100));
        let of = images.iter().map(|old| verdicts[&old.image].clone());
        of.collect()
    }

    #[test]
    fn the_wanted_and_the_newest_of_a_repository_stay() {
        let images = [
            old("a", false, 10, 20),
            old("b", false, 20, 30),
            old("c", false, 30, 40),
            old("d", true, 40, 99),
        ];
        use Stays::{Newest, Wanted};
        let of = |keep| verdicts(&images, &[], keep);
        assert_eq!(of(1), [None, None, None, Some(Wanted)]);
        assert_eq!(of(2), [None, None, Some(Newest), Some(Wanted)]);
        assert_eq!(
            of(4),
            [Some(Newest), Some(Newest), Some(Newest), Some(Wanted)]
        );
        // wanted images stay whatever their number
        let wanted = [
            old("a", true, 10, 20),
            old("b", true, 20, 30),
            old("c", false, 30, 40),
        ];
        assert_eq!(
            verdicts(&wanted, &[], 1),
            [Some(Wanted), Some(Wanted), None]
        );
        // each repository has places of its own, and an image that has one in any of them stays
        let mut elsewhere = images.clone();
        elsewhere[0].repositories = [PathBuf::from("org/other")].into();
        elsewhere[1].repositories.insert("org/third".into());
        assert_eq!(
            verdicts(&elsewhere, &[], 1),
            [Some(Newest), Some(Newest), None, Some(Wanted)]
        );
    }

    #[test]
    fn what_may_be_needed_stays_and_takes_no_place() {
        let one = |since, used| [old("old", false, since, used), old("new", true, 50, 99)];
        let of =
            |images: &[Old], machines: &[(&str, u64)]| verdicts(images, machines, 1)[0].clone();
        // it was used an hour ago, or less
        assert_eq!(of(&one(10, 99), &[]), None);
        let mut lately = one(10, 99);
        lately[0].used += Duration::from_secs(1);
        assert_eq!(of(&lately, &[]), Some(Stays::UsedLately));
        // the clock was set back
        assert_eq!(of(&one(10, 101), &[]), Some(Stays::UsedLately));
        // a VM that was made while the image was in use, or within an hour after, may be its clone; others aren't
        let clone = Some(Stays::MayBeCloned("vm".into()));
        for (made, stays) in [(9, false), (10, true), (20, true), (21, true), (22, false)] {
            let expected = clone.clone().filter(|_| stays);
            assert_eq!(of(&one(10, 20), &[("vm", made)]), expected, "{made}");
        }
        // tart set the access time back: how old clones are isn't known
        let mut outdated = one(10, 20);
        outdated[0].outdated = true;
        for (made, stays) in [(9, false), (10, true), (90, true)] {
            let expected = clone.clone().filter(|_| stays);
            assert_eq!(of(&outdated, &[("vm", made)]), expected, "{made}");
        }
        // the times contradict each other
        for (made, stays) in [(1, true), (21, true), (22, false)] {
            let expected = clone.clone().filter(|_| stays);
            assert_eq!(of(&one(30, 20), &[("vm", made)]), expected, "{made}");
        }
        let mut running = one(10, 20);
        running[0].running = Some("golden".into());
        assert_eq!(of(&running, &[]), Some(Stays::Runs("golden".into())));
        let mut elsewhere = one(10, 20);
        elsewhere[0].elsewhere = Some("stable".into());
        let named = Stays::NamedElsewhere("stable".into());
        assert_eq!(of(&elsewhere, &[]), Some(named));
        // what stays for such a reason leaves the place to the newest
        let images = [
            old("a", false, 10, 20),
            old("b", false, 30, 40),
            old("c", false, 50, 60),
        ];
        let stays = verdicts(&images, &[("vm", 35)], 1);
        let clone = Some(Stays::MayBeCloned("vm".into()));
        assert_eq!(stays, [None, clone, Some(Stays::Newest)]);
    }

    #[test]
    fn an_image_stays_if_its_number_or_its_age_says_so() {
        use Stays::{Newest, UsedLately, Wanted, Young};
        let images = [
            old("a", false, 1, 20),
            old("b", false, 2, 52),
            old("c", false, 3, 53),
            old("d", true, 4, 99),
        ];
        let of = |images: &[Old], keep, days| judged(images, &[], &Terms::of(keep, days));
        let rows = [
            // age alone: 48 hours are over at hour 52, and not at 53
            (None, Some(2), [None, None, Some(Young(2)), Some(Wanted)]),
            (
                None,
                Some(3),
                [None, Some(Young(3)), Some(Young(3)), Some(Wanted)],
            ),
            // both: whoever has a place stays however old it is, and whoever is young stays without a place
            (Some(1), Some(2), [None, None, Some(Young(2)), Some(Wanted)]),
            (Some(2), Some(2), [None, None, Some(Newest), Some(Wanted)]),
            (
                Some(3),
                Some(2),
                [None, Some(Newest), Some(Newest), Some(Wanted)],
            ),
            (
                Some(1),
                Some(30),
                [
                    Some(Young(30)),
                    Some(Young(30)),
                    Some(Young(30)),
                    Some(Wanted),
                ],
            ),
        ];
        for (keep, days, expected) in rows {
            assert_eq!(of(&images, keep, days), expected, "{keep:?} {days:?}");
        }
        // by age alone the last image of a repository goes, too, if nobody wants it
        assert_eq!(of(&images[..1], None, Some(2)), [None]);
        assert_eq!(of(&images[..1], Some(1), Some(2)), [Some(Newest)]);
        // the hour of rest holds also then, and so do clocks that were set back
        assert_eq!(
            of(&[old("e", false, 1, 100)], None, Some(1)),
            [Some(UsedLately)]
        );
        assert_eq!(
            of(&[old("e", false, 1, 101)], None, Some(1)),
            [Some(UsedLately)]
        );
        // a VM that may be a clone keeps what is old enough
        let clone = Some(Stays::MayBeCloned("vm".into()));
        let by_age = judged(&images[..1], &[("vm", 5)], &Terms::of(None, Some(2)));
        assert_eq!(by_age, [clone]);
    }

    #[test]
    fn what_pods_refer_to_stays_whoevers_rule_it_is() {
        let images = [
            old("a", false, 10, 20),
            old("b", false, 20, 30),
            old("c", true, 30, 40),
        ];
        let used = |references: &[&str], more| {
            let references = references.iter().map(|name| (*name).to_owned());
            let terms = Terms {
                in_use: InUse::new(references, more),
                ..Terms::of(Some(1), None)
            };
            judged(&images, &[], &terms)
        };
        let [a, b] = ["a", "b"].map(|name| format!("ghcr.io/org/image:{name}"));
        let wanted = Some(Stays::Wanted);
        assert_eq!(used(&[], false), [None, None, wanted.clone()]);
        assert_eq!(
            used(&[&a, "x"], false),
            [Some(Stays::InUse(a.clone())), None, wanted.clone()]
        );
        // by digest, in whatever repository, and in another spelling
        let by_digest = format!("ghcr.io/org/other@{}", images[1].image);
        let spelled = "GHCR.io/org/image:A";
        assert_eq!(
            used(&[&by_digest, spelled], false),
            [
                Some(Stays::InUse(spelled.to_lowercase())),
                Some(Stays::InUse(by_digest)),
                wanted.clone()
            ]
        );
        // nobody knows who uses what isn't named
        assert_eq!(
            used(&[&b], true),
            [Some(Stays::UsersUnknown), Some(Stays::InUse(b)), wanted]
        );
    }
}
