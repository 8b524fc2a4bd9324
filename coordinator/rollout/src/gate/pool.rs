//! What is known of one pool: how many Pods it is taken to have, and whether its owner makes the Pods that it wants.
//!
//! No clock of another machine is compared with ours. "After the image was set" means after the gate was told so. A
//! Pod came when the shell saw it first. Each of the two may be late, because each has a watch of its own. So a Pod
//! of another image that comes within [`Config::owner_lag`] after a change proves nothing for good.

use alloc::{collections::BTreeSet, string::String, vec::Vec};
use core::time::Duration;

use proto::Moment;

use super::{Before, Config, Pod, PodId, Pool, Template, status};

/// A pool that shrank may have had Pods made before, which its Pods' watch shows only later: watches of two kinds are
/// seldom further apart than this.
const APART: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub(super) struct PoolState {
    pool: Pool,
    /// When what it shall run changed.
    changed_at: Moment,
    pods: BTreeSet<PodId>,
    /// What a gate before this one left to remember, until that was looked at.
    before: Before,
    /// How many Pods it has when none is missing: its replicas, or more where they are too few to be true.
    meant: usize,
    /// How many it had in mind a moment ago, and until when that still counts.
    shrunk: Vec<(usize, Moment)>,
    /// When its image, or what its owner makes, was said anew.
    said_at: Moment,
    /// What its owner was last known to make, since its image is what it is.
    makes: Option<String>,
    lag: Option<Lag>,
}

#[derive(Clone, Debug)]
struct Lag {
    since: Moment,
    pod: Option<PodId>,
    /// When it is over by itself.
    until: Option<Moment>,
    /// The owner says so itself: only its own other word, or a Pod of the pool's image, ends it.
    said: bool,
}

impl PoolState {
    pub(super) fn new(now: Moment, pool: Pool, pods: BTreeSet<PodId>, alive: usize) -> Self {
        let mut this = Self {
            changed_at: now,
            pods,
            before: Before::default(),
            meant: replicas(&pool).max(alive),
            shrunk: Vec::new(),
            said_at: now,
            makes: None,
            lag: None,
            pool,
        };
        this.hear_owner(now);
        this
    }

    /// The pool, as it was told last.
    pub(super) const fn pool(&self) -> &Pool {
        &self.pool
    }

    /// When what it shall run changed.
    pub(super) const fn changed_at(&self) -> Moment {
        self.changed_at
    }

    /// Its Pods.
    pub(super) const fn pods(&self) -> &BTreeSet<PodId> {
        &self.pods
    }

    /// A Pod is in it.
    pub(super) fn add_pod(&mut self, id: PodId) {
        self.pods.insert(id);
    }

    /// A Pod isn't in it any more.
    pub(super) fn drop_pod(&mut self, id: &PodId) {
        self.pods.remove(id);
    }

    /// What a gate before this one left to remember. It is told once.
    pub(super) fn take_before(&mut self) -> Before {
        core::mem::take(&mut self.before)
    }

    /// It is as told from now on.
    pub(super) fn set(&mut self, now: Moment, pool: Pool) {
        if (&self.pool.image, &self.pool.digest) != (&pool.image, &pool.digest) {
            self.changed_at = now;
        }
        self.shrunk.retain(|(_, until)| *until > now);
        let (before, after) = (replicas(&self.pool), replicas(&pool));
        if after < before {
            self.shrunk.push((self.meant, now + APART));
            self.meant -= before - after;
        }
        self.meant = self.meant.max(after);
        if self.pool.image != pool.image {
            (self.said_at, self.makes, self.lag) = (now, None, None);
        } else if self.pool.paused && !pool.paused {
            // an operator who lets it go on wants to see what comes
            self.said_at = now;
            self.lag.take_if(|lag| !lag.said);
        }
        self.pool = pool;
        self.hear_owner(now);
    }

    fn hear_owner(&mut self, now: Moment) {
        let Template::Image(makes) = &self.pool.template else {
            return;
        };
        if self.makes.as_ref() == Some(makes) {
            return;
        }
        self.makes = Some(makes.clone());
        self.said_at = now;
        self.lag = (*makes != self.pool.image).then_some(Lag {
            since: now,
            pod: None,
            until: None,
            said: true,
        });
    }

    /// What a gate before saw.
    pub(super) fn remember(&mut self, now: Moment, before: Before) {
        self.before = before;
        if before.lags {
            self.lag = Some(Lag {
                since: now,
                pod: None,
                until: None,
                said: false,
            });
            // Pods showed it although the owner said the pool's image, or nothing: that it still does is no news
            self.makes = Some(self.pool.image.clone());
        }
    }

    /// A Pod that wasn't known came into it; everything has been known since `synced`.
    pub(super) fn came(
        &mut self,
        now: Moment,
        synced: Option<Moment>,
        config: &Config,
        id: &PodId,
        pod: &Pod,
    ) {
        // what a list shows may have been there for long
        let Some(synced) = synced.filter(|synced| pod.seen > *synced) else {
            return;
        };
        if pod.image == self.pool.image {
            self.lag = None;
        } else if pod.seen > self.said_at.max(synced) {
            let settled = self.said_at + config.owner_lag;
            let known = self.lag.take();
            let stands = known.as_ref().filter(|lag| lag.until.is_none());
            self.lag = Some(Lag {
                since: known.as_ref().map_or(now, |lag| lag.since),
                pod: Some(id.clone()),
                until: (stands.is_none() && now < settled).then_some(settled),
                said: stands.is_some_and(|lag| lag.said),
            });
        }
    }

    /// How it shows that its owner makes Pods of another image, while that holds the pool.
    pub(super) fn lag(&self, now: Moment) -> Option<status::Lag> {
        let lag = self.lag.as_ref()?;
        lag.until
            .is_none_or(|until| until > now)
            .then(|| status::Lag {
                since: lag.since,
                pod: lag.pod.clone(),
                said: lag.said,
            })
    }

    /// Whether its owner makes Pods of another image.
    pub(super) fn lags(&self, now: Moment) -> bool {
        self.lag
            .as_ref()
            .is_some_and(|lag| lag.until.is_none_or(|until| until > now))
    }

    /// It has so many Pods, of which one came just now.
    pub(super) fn grew(&mut self, alive: usize) {
        self.meant = self.meant.max(alive);
    }

    /// It has so many Pods. Whether it has all that it shall have.
    pub(super) fn is_whole(&mut self, now: Moment, alive: usize) -> bool {
        let replicas = replicas(&self.pool);
        if alive <= replicas {
            self.meant = replicas;
        }
        alive >= self.wanted(now)
    }

    /// How many Pods it shall have, or might not have heard yet that it shall have fewer.
    pub(super) fn wanted(&self, now: Moment) -> usize {
        self.shrunk
            .iter()
            .filter(|(_, until)| *until > now)
            .map(|(before, _)| *before)
            .fold(self.meant, usize::max)
    }
}

fn replicas(pool: &Pool) -> usize {
    usize::try_from(pool.replicas).unwrap_or(0)
}
