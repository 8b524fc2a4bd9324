//! The wishes of a registry (`Retry-After`): for how long nobody shall ask it, and for what.
//!
//! Most registries count requests by account, or by the address that a whole fleet shares. There, the next host that
//! asks makes the wait longer. But some registries count per blob or per repository, and so does some storage that
//! registries redirect to. Also, a host may claim a wish that its registry never had. A second host and a third may
//! claim it too.
//!
//! So a wish counts for as much as nothing speaks against:
//! - It counts for the content that the host asked for.
//! - Wishes about two contents of one repository count for the repository, while the repository gives nothing to newer
//!   leases.
//! - Wishes about two repositories count for the registry, while the registry gives nothing to newer leases.
//! - The first wish stops all hosts for two seconds. A registry that really wants to be left alone tells all its
//!   streams in that time.
//!
//! A wish lasts the longer the more hosts report it. One host's word stops the others for seconds, and each further
//! host's word for longer, up to a minute. The full time of the wish is believed when four hosts report it within
//! seconds, or when a third of the fleet, and at least two hosts, report it one after the other. For a repository or a
//! registry, the full time is believed only while no stream of another host runs.
//!
//! A host's word is false when its content comes to a lease that began after the word and before the wished time was
//! over. The next words of that host then stop no other host.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};
use core::time::Duration;

use proto::{Digest, HostId, Moment};

/// The pauses after the words of one, two, three, and four or more hosts.
const WORDS: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_mins(1),
];
/// The number of hosts that are believed when all speak within `WORDS_WITHIN`.
const WORDS_ENOUGH: usize = 4;
const WORDS_WITHIN: Duration = Duration::from_secs(3);
/// A registry that asks all streams to stop tells all of them within this time.
const ALL_TOLD: Duration = Duration::from_secs(2);

/// The wishes of one registry.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    by_content: BTreeMap<Digest, Wish>,
    /// The repositories that nobody asks, and until when.
    repositories: BTreeMap<String, Moment>,
    /// Until when nobody asks the registry.
    until: Option<Moment>,
}

/// What a wish counts for that a host was told when it asked for a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Content,
    Repository,
    Registry,
}

/// What hosts were told when they asked for a content, since the content last came.
#[derive(Debug)]
struct Wish {
    repository: String,
    /// The hosts that were told, and when each was told last.
    by: BTreeMap<HostId, Moment>,
    told_at: Moment,
    /// The end of the longest time that the registry asked for.
    wish_until: Moment,
    /// The content isn't asked for before this moment.
    rests_until: Moment,
    reach: Reach,
}

/// A host's word that a registry asks to be left alone.
pub(super) struct Told<'a> {
    pub(super) by: HostId,
    pub(super) content: Digest,
    pub(super) repository: &'a str,
    /// How long the registry wants to be left alone from now on.
    pub(super) wish: Duration,
    /// This many hosts are believed, however long ago they spoke.
    pub(super) enough: usize,
    /// The repositories of the registry in which streams run.
    pub(super) streams: &'a [&'a str],
}

impl Told<'_> {
    fn is_believed(&self, now: Moment, told: &BTreeMap<HostId, Moment>) -> bool {
        let lately = |at: &&Moment| now.since(**at) <= WORDS_WITHIN;
        let lately = told.values().filter(lately).count();
        lately >= WORDS_ENOUGH || told.len() >= self.enough
    }

    fn until(&self, now: Moment, told: &BTreeMap<HostId, Moment>, believed: bool) -> Moment {
        let pause = WORDS.get(told.len().saturating_sub(1)).or(WORDS.last());
        now + match pause {
            Some(pause) if !believed => self.wish.min(*pause),
            _ => self.wish,
        }
    }
}

impl Wishes {
    /// Until when nobody asks this repository.
    pub(super) fn waits_until(&self, repository: &str, now: Moment) -> Option<Moment> {
        let repository = self.repositories.get(repository).copied();
        repository.max(self.until).filter(|at| *at > now)
    }

    /// Until when nobody asks for this content.
    pub(super) fn rests_until(&self, content: &Digest, now: Moment) -> Option<Moment> {
        let wish = self.by_content.get(content)?;
        Some(wish.rests_until).filter(|at| *at > now)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_content.is_empty() && self.repositories.is_empty() && self.until.is_none()
    }

    /// Forgets wishes whose time is over, unless they are about a known content.
    pub(super) fn forget(&mut self, now: Moment, known: impl Fn(&Digest) -> bool) {
        self.by_content
            .retain(|content, wish| known(content) || wish.rests_until > now);
        self.repositories.retain(|_, until| *until > now);
        self.until = self.until.filter(|until| *until > now);
    }

    /// A holder was told a wish. What waits, and for how long, depends on the weight of the holder's word. Returns
    /// whether one lease is to try the repository first.
    pub(super) fn hear(&mut self, now: Moment, told: &Told<'_>) -> bool {
        let repository = told.repository;
        let here = told.streams.contains(&repository);
        let said = self.by_content.entry(told.content).or_insert_with(|| Wish {
            repository: repository.into(),
            by: BTreeMap::new(),
            told_at: now,
            wish_until: now,
            rests_until: now,
            reach: Reach::Registry,
        });
        said.by.insert(told.by.clone(), now);
        said.told_at = now;
        said.wish_until = said.wish_until.max(now + told.wish);
        let rests_until = told.until(now, &said.by, told.is_believed(now, &said.by));
        said.rests_until = said.rests_until.max(rests_until);
        let reach = said.reach;
        if reach == Reach::Registry {
            self.until = self.until.max(Some(now + told.wish.min(ALL_TOLD)));
        }
        let of_repository =
            |wish: &Wish| wish.reach >= Reach::Repository && wish.repository == repository;
        let contents = self.by_content.values();
        if reach >= Reach::Repository && contents.filter(|wish| of_repository(wish)).count() >= 2 {
            let by = self.told(of_repository);
            let believed = !here && told.is_believed(now, &by);
            let until = told.until(now, &by, believed);
            let waits = self.repositories.entry(repository.into());
            let waits = waits.or_insert(until);
            *waits = until.max(*waits);
        }
        let of_registry = |wish: &Wish| wish.reach == Reach::Registry;
        let all = self.by_content.values().filter(|wish| of_registry(wish));
        let repositories: BTreeSet<&str> = all.map(|wish| wish.repository.as_str()).collect();
        if reach == Reach::Registry && repositories.len() >= 2 {
            let by = self.told(of_registry);
            let believed = told.streams.is_empty() && told.is_believed(now, &by);
            self.until = self.until.max(Some(told.until(now, &by, believed)));
        }
        reach >= Reach::Repository && !here
    }

    /// The registry gave a content to a lease that was granted at `granted_at`. So words from before that moment count
    /// for less: a word about this repository counts for its content only, and a word about another repository for
    /// that repository at most. Returns the hosts whose word about this content was false.
    pub(super) fn disprove(
        &mut self,
        content: &Digest,
        repository: &str,
        granted_at: Moment,
    ) -> Vec<HostId> {
        let mut disproved = false;
        for wish in self.by_content.values_mut() {
            if wish.told_at < granted_at {
                disproved = true;
                let reach = match wish.repository == repository {
                    true => Reach::Content,
                    false => Reach::Repository,
                };
                wish.reach = wish.reach.min(reach);
            }
        }
        if !disproved {
            return Vec::new();
        }
        self.until = None;
        self.repositories.remove(repository);
        let told = self.by_content.get(content);
        if told.is_none_or(|wish| wish.told_at >= granted_at) {
            return Vec::new();
        }
        match self.by_content.remove(content) {
            Some(wish) if granted_at < wish.wish_until => wish.by.into_keys().collect(),
            _ => Vec::new(),
        }
    }

    /// The hosts that were told a wish for which `reaches` holds, and when each was told last.
    fn told(&self, reaches: impl Fn(&Wish) -> bool) -> BTreeMap<HostId, Moment> {
        let mut told: BTreeMap<HostId, Moment> = BTreeMap::new();
        for wish in self.by_content.values().filter(|wish| reaches(wish)) {
            for (id, at) in &wish.by {
                let last = told.entry(id.clone()).or_insert(*at);
                *last = (*last).max(*at);
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment(1_000_000_000);
    const MOMENT: Duration = Duration::from_micros(1);
    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_hours(1);

    fn content(number: u32) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    fn host(number: u32) -> HostId {
        alloc::format!("host-{number}").parse().unwrap()
    }

    /// A host's word that a registry wants an hour, about one content of a repository, in a large fleet.
    fn hear(
        wishes: &mut Wishes,
        now: Moment,
        by: u32,
        of: u32,
        repository: &str,
        streams: &[&str],
    ) -> bool {
        let told = Told {
            by: host(by),
            content: content(of),
            repository,
            wish: HOUR,
            enough: 10,
            streams,
        };
        wishes.hear(now, &told)
    }

    #[test]
    fn a_first_wish_stops_everybody_for_two_seconds_and_its_content_for_five() {
        let mut wishes = Wishes::default();
        assert!(hear(&mut wishes, START, 1, 1, "a", &[]));
        assert_eq!(wishes.waits_until("b", START), Some(START + ALL_TOLD));
        assert_eq!(wishes.waits_until("b", START + ALL_TOLD), None);
        let until = START + 5 * SECOND;
        assert_eq!(wishes.rests_until(&content(1), until - MOMENT), Some(until));
        assert_eq!(wishes.rests_until(&content(1), until), None);
        assert_eq!(wishes.rests_until(&content(2), START), None);
    }

    #[test]
    fn wishes_about_two_contents_count_for_their_repository_and_about_two_repositories_for_all() {
        let mut wishes = Wishes::default();
        hear(&mut wishes, START, 1, 1, "a", &[]);
        hear(&mut wishes, START, 2, 2, "a", &[]);
        assert_eq!(wishes.waits_until("a", START), Some(START + 10 * SECOND));
        assert_eq!(wishes.waits_until("b", START), Some(START + ALL_TOLD));
        hear(&mut wishes, START, 3, 3, "b", &[]);
        assert_eq!(wishes.waits_until("c", START), Some(START + 30 * SECOND));
    }

    #[test]
    fn four_hosts_are_believed_within_three_seconds_and_not_later() {
        for (late, until) in [
            (3 * SECOND, START + 3 * SECOND + HOUR),
            (
                3 * SECOND + MOMENT,
                START + 3 * SECOND + MOMENT + Duration::from_mins(1),
            ),
        ] {
            let mut wishes = Wishes::default();
            for by in 1..=3 {
                hear(&mut wishes, START, by, 1, "a", &[]);
            }
            hear(&mut wishes, START + late, 4, 1, "a", &[]);
            assert_eq!(wishes.rests_until(&content(1), START + late), Some(until));
        }
    }

    #[test]
    fn no_word_is_believed_of_a_repository_in_which_a_stream_runs() {
        for (streams, believed) in [(&["a"][..], false), (&[][..], true)] {
            let mut wishes = Wishes::default();
            for by in 1..=4 {
                let first = hear(&mut wishes, START, by, by % 2, "a", streams);
                assert_eq!(first, believed);
            }
            let until = wishes.waits_until("a", START).unwrap();
            assert_eq!(until == START + HOUR, believed);
        }
    }

    #[test]
    fn a_content_that_comes_before_the_time_is_over_shows_whose_word_was_false() {
        let later = START + SECOND;
        let mut wishes = Wishes::default();
        hear(&mut wishes, START, 1, 1, "a", &[]);
        // a lease that began before the word says nothing about it
        assert_eq!(wishes.disprove(&content(1), "a", START), []);
        assert!(wishes.rests_until(&content(1), START).is_some());
        assert_eq!(wishes.disprove(&content(1), "a", later), [host(1)]);
        assert!(wishes.is_empty());
        // another content of the repository shows only how far the wish reaches
        hear(&mut wishes, START, 1, 1, "a", &[]);
        assert_eq!(wishes.disprove(&content(2), "a", later), []);
        assert_eq!(wishes.waits_until("a", START), None);
        assert!(wishes.rests_until(&content(1), START).is_some());
        assert!(
            !hear(&mut wishes, later, 2, 1, "a", &[]),
            "it is the content's alone"
        );
        // once the wished time is over, the word may have been true
        assert_eq!(wishes.disprove(&content(1), "a", later + HOUR), []);
    }

    #[test]
    fn what_is_over_is_forgotten_with_its_content() {
        let mut wishes = Wishes::default();
        hear(&mut wishes, START, 1, 1, "a", &[]);
        wishes.forget(START + 5 * SECOND - MOMENT, |_| false);
        assert!(!wishes.is_empty());
        wishes.forget(START + 5 * SECOND, |_| true);
        assert!(!wishes.is_empty());
        wishes.forget(START + 5 * SECOND, |_| false);
        assert!(wishes.is_empty());
    }
}
