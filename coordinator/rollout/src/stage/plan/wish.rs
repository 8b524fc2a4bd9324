//! What registries ask for themselves (`Retry-After`).
//!
//! Most registries count requests by account or by the address that a whole fleet shares, and the next host that asks makes
//! the wait longer. But some ask for it per blob or per repository, or the storage that they redirect to does. And a host may
//! say so that wasn't told, and so may a second and a third.
//!
//! So a wish counts for the content that got it. While nothing of the same repository is given to a newer lease, wishes about two
//! contents count for the repository, and while nothing of the registry is, wishes about two repositories count for the registry.
//! A first wish has everybody wait for two seconds, in which all streams of a registry that really wants to be left alone are told.
//!
//! A host's word holds up others for seconds, and each further host's for longer, up to a minute. When four hosts say so within
//! seconds, or a third of the fleet and two at least one after the other, all that was asked for is believed; of a repository or a
//! registry only where no stream of another runs. When a content comes to a lease that began after the word and before its
//! time was over, the word wasn't true, and the next words of the same hosts hold up nobody else.

use super::*;
use crate::stage::action::RevokeCause;

/// Pauses after the words of one host, two and more that a registry asks to be left alone.
const WORDS: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_mins(1),
];
/// Words of so many hosts, within this time, are believed.
const WORDS_ENOUGH: usize = 4;
const WORDS_WITHIN: Duration = Duration::from_secs(3);
/// Streams that run are told within this time, where a registry asks all of them.
const ALL_TOLD: Duration = Duration::from_secs(2);

/// What a registry asked for.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    by_content: BTreeMap<Digest, Wish>,
    /// Repositories that nobody asks until then.
    repositories: BTreeMap<String, Moment>,
    /// Nobody asks the registry until then.
    until: Option<Moment>,
}

/// How far a wish reaches that a host was told with one content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Content,
    Repository,
    Registry,
}

/// What hosts were told when they asked for a content, since that last came.
#[derive(Debug)]
struct Wish {
    repository: String,
    /// Who was told, and when.
    by: BTreeMap<HostId, Moment>,
    told_at: Moment,
    /// The end of the longest time that was asked for.
    wish_until: Moment,
    /// The content isn't asked for before.
    rests_until: Moment,
    reach: Reach,
}

impl Wishes {
    /// Until when nobody asks this repository.
    pub(super) fn held_until(&self, repository: &str, now: Moment) -> Option<Moment> {
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

    /// Forgets what is over, and isn't about a content that is known.
    pub(super) fn forget(&mut self, now: Moment, known: impl Fn(&Digest) -> bool) {
        self.by_content
            .retain(|content, wish| known(content) || wish.rests_until > now);
        self.repositories.retain(|_, until| *until > now);
        self.until = self.until.filter(|until| *until > now);
    }

    /// Who was told, of those whose wish reaches so far, and when last.
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

/// What the words of so many hosts weigh.
struct Weight {
    now: Moment,
    wish: Duration,
    /// So many are believed, however long ago they spoke.
    enough: usize,
}

impl Weight {
    fn is_believed(&self, told: &BTreeMap<HostId, Moment>) -> bool {
        let lately = |at: &&Moment| self.now.since(**at) <= WORDS_WITHIN;
        let lately = told.values().filter(lately).count();
        lately >= WORDS_ENOUGH || told.len() >= self.enough
    }

    fn until(&self, told: &BTreeMap<HostId, Moment>, believed: bool) -> Moment {
        let pause = WORDS.get(told.len().saturating_sub(1)).or(WORDS.last());
        self.now
            + match pause {
                Some(pause) if !believed => self.wish.min(*pause),
                _ => self.wish,
            }
    }
}

impl Plan {
    /// A holder says that its registry asks to be left alone: its lease ends, and as much waits as its word weighs.
    pub(super) fn refused(&mut self, digest: Digest, wish: Duration) {
        let now = self.now;
        let wish = wish.min(self.config.origin_wish_most);
        let Some(lease) = self.end(digest) else {
            return;
        };
        let id = lease.host;
        self.revoke(&id, digest, RevokeCause::OriginFailed);
        if let Some(content) = self.contents.get_mut(&digest) {
            content.tried.insert(id.clone());
        }
        let hosts = self.hosts.values().filter(|host| host.connected).count();
        let enough = self.share(hosts).max(self.config.accusers).min(hosts);
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        host.failures = host.failures.saturating_add(1);
        if host.cried_until.is_some_and(|until| now < until) {
            return;
        }
        let (registry, repository) = (lease.registry, lease.repository);
        let streams: Vec<&str> = self
            .contents
            .values()
            .filter_map(|content| content.lease.as_ref())
            .filter(|lease| lease.registry == registry && lease.trouble.is_none())
            .map(|lease| lease.repository.as_str())
            .collect();
        let here = streams.contains(&repository.as_str());
        let Some(origin) = self.origins.get_mut(&registry) else {
            return;
        };
        let wishes = &mut origin.wishes;
        let said = wishes.by_content.entry(digest).or_insert_with(|| Wish {
            repository: repository.clone(),
            by: BTreeMap::new(),
            told_at: now,
            wish_until: now,
            rests_until: now,
            reach: Reach::Registry,
        });
        said.by.insert(id, now);
        said.told_at = now;
        said.wish_until = said.wish_until.max(now + wish);
        let weight = Weight { now, wish, enough };
        let rests_until = weight.until(&said.by, weight.is_believed(&said.by));
        said.rests_until = said.rests_until.max(rests_until);
        let reach = said.reach;
        if reach == Reach::Registry {
            wishes.until = wishes.until.max(Some(now + wish.min(ALL_TOLD)));
        }
        let of_repository =
            |wish: &Wish| wish.reach >= Reach::Repository && wish.repository == repository;
        let contents = wishes.by_content.values();
        if reach >= Reach::Repository && contents.filter(|wish| of_repository(wish)).count() >= 2 {
            let told = wishes.told(of_repository);
            let believed = !here && weight.is_believed(&told);
            let until = weight.until(&told, believed);
            let held = wishes.repositories.entry(repository.clone());
            let held = held.or_insert(until);
            *held = until.max(*held);
        }
        let of_registry = |wish: &Wish| wish.reach == Reach::Registry;
        let all = wishes.by_content.values().filter(|wish| of_registry(wish));
        let repositories: BTreeSet<&str> = all.map(|wish| wish.repository.as_str()).collect();
        if reach == Reach::Registry && repositories.len() >= 2 {
            let told = wishes.told(of_registry);
            let believed = streams.is_empty() && weight.is_believed(&told);
            wishes.until = wishes.until.max(Some(weight.until(&told, believed)));
        }
        if reach >= Reach::Repository && !here {
            // one tries first
            origin.try_first(&repository, now);
        }
    }

    /// A registry gave a content to a lease. Who said before that lease began that it asked to be left alone for longer then
    /// lied about this content, or was alone with that; and what it was told of others is about those.
    pub(super) fn disprove_refusals(&mut self, digest: Digest, lease: (&str, &str, Moment)) {
        let now = self.now;
        let (registry, repository, granted_at) = lease;
        let Some(origin) = self.origins.get_mut(registry) else {
            return;
        };
        let wishes = &mut origin.wishes;
        let mut disproved = false;
        for wish in wishes.by_content.values_mut() {
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
            return;
        }
        wishes.until = None;
        wishes.repositories.remove(repository);
        let told = wishes.by_content.get(&digest);
        if told.is_none_or(|wish| wish.told_at >= granted_at) {
            return;
        }
        let Some(wish) = wishes.by_content.remove(&digest) else {
            return;
        };
        if granted_at < wish.wish_until {
            for id in wish.by.into_keys() {
                if let Some(host) = self.hosts.get_mut(&id) {
                    host.cried_until = Some(now + self.config.origin_wish_most);
                }
            }
        }
    }
}
