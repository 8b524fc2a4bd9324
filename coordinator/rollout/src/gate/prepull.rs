//! The state of one pre-pull: how many Pods it is taken to have, and whether its owner makes Pods of the pre-pull's
//! image.
//!
//! No clock of another machine is compared with this one. "After the image was set" means after the gate was told so. A
//! Pod came when the shell saw it first. Each of the two may be late, because each comes by its own watch. So a Pod of
//! another image that comes within [`Config::owner_lag`] after a change proves nothing lasting.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};
use core::time::Duration;

use proto::{HostId, Moment};

use super::{Before, Config, Pod, PodId, PrePull, Template, status};

/// A pre-pull that shrank may have Pods from before that the watch of Pods shows only later. The two watches are seldom
/// further apart than this.
const APART: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub(super) struct PrePullState {
    prepull: PrePull,
    /// Since when each host has been reserved for other pools.
    reserved_since: BTreeMap<HostId, Moment>,
    /// When the image, or its digest, last changed.
    changed_at: Moment,
    pods: BTreeSet<PodId>,
    /// What an earlier coordinator recorded, until the gate has used it.
    before: Before,
    /// The number of Pods when none is missing: the replicas, or more where the replicas are too few to be true.
    meant: usize,
    /// Earlier values of `meant`, and until when each still counts.
    shrunk: Vec<(usize, Moment)>,
    /// When the image, or what the owner makes, was last set or said anew.
    said_at: Moment,
    /// The image that the owner was last known to make, since the pre-pull's image is the present one.
    makes: Option<String>,
    lag: Option<Lag>,
}

#[derive(Clone, Debug)]
struct Lag {
    since: Moment,
    pod: Option<PodId>,
    /// When this evidence expires.
    until: Option<Moment>,
    /// Whether the owner itself says so. Then only another word of the owner, or a Pod of the pre-pull's image, ends
    /// the lag.
    said: bool,
}

impl PrePullState {
    pub(super) fn new(now: Moment, prepull: PrePull, pods: BTreeSet<PodId>, alive: usize) -> Self {
        let mut this = Self {
            reserved_since: BTreeMap::new(),
            changed_at: now,
            pods,
            before: Before::default(),
            meant: replicas(&prepull).max(alive),
            shrunk: Vec::new(),
            said_at: now,
            makes: None,
            lag: None,
            prepull,
        };
        this.note_reserved(now);
        this.hear_owner(now);
        this
    }

    /// The pre-pull, as last told.
    pub(super) const fn prepull(&self) -> &PrePull {
        &self.prepull
    }

    /// When the image, or its digest, last changed.
    pub(super) const fn changed_at(&self) -> Moment {
        self.changed_at
    }

    /// The pre-pull's Pods.
    pub(super) const fn pods(&self) -> &BTreeSet<PodId> {
        &self.pods
    }

    /// Adds a Pod.
    pub(super) fn add_pod(&mut self, id: PodId) {
        self.pods.insert(id);
    }

    /// Removes a Pod.
    pub(super) fn drop_pod(&mut self, id: &PodId) {
        self.pods.remove(id);
    }

    /// What an earlier coordinator recorded. Returned once.
    pub(super) fn take_before(&mut self) -> Before {
        core::mem::take(&mut self.before)
    }

    /// Sets the pre-pull's present state.
    pub(super) fn set(&mut self, now: Moment, prepull: PrePull) {
        if (&self.prepull.image, &self.prepull.digest) != (&prepull.image, &prepull.digest) {
            self.changed_at = now;
        }
        self.shrunk.retain(|(_, until)| *until > now);
        let (before, after) = (replicas(&self.prepull), replicas(&prepull));
        if after < before {
            self.shrunk.push((self.meant, now + APART));
            self.meant -= before - after;
        }
        self.meant = self.meant.max(after);
        if self.prepull.image != prepull.image {
            (self.said_at, self.makes, self.lag) = (now, None, None);
        } else if self.prepull.paused && !prepull.paused {
            // an operator who ends a pause wants to see what the owner makes
            self.said_at = now;
            self.lag.take_if(|lag| !lag.said);
        }
        self.prepull = prepull;
        self.note_reserved(now);
        self.hear_owner(now);
    }

    /// Since when this host has been reserved for other pools, if it is.
    pub(super) fn reserved_since(&self, host: &HostId) -> Option<Moment> {
        self.reserved_since.get(host).copied()
    }

    fn note_reserved(&mut self, now: Moment) {
        let reserved = &self.prepull.reserved;
        self.reserved_since
            .retain(|host, _| reserved.contains(host));
        for host in reserved {
            self.reserved_since.entry(host.clone()).or_insert(now);
        }
    }

    fn hear_owner(&mut self, now: Moment) {
        let Template::Image(makes) = &self.prepull.template else {
            return;
        };
        if self.makes.as_ref() == Some(makes) {
            return;
        }
        self.makes = Some(makes.clone());
        self.said_at = now;
        self.lag = (*makes != self.prepull.image).then_some(Lag {
            since: now,
            pod: None,
            until: None,
            said: true,
        });
    }

    /// Takes what an earlier coordinator recorded.
    pub(super) fn remember(&mut self, now: Moment, before: Before) {
        self.before = before;
        if before.lags {
            self.lag = Some(Lag {
                since: now,
                pod: None,
                until: None,
                said: false,
            });
            // Pods showed the lag although the owner said the pre-pull's image, or nothing. That it still says so is no
            // news.
            self.makes = Some(self.prepull.image.clone());
        }
    }

    /// A Pod came that wasn't known. Everything has been known since `synced`.
    pub(super) fn came(
        &mut self,
        now: Moment,
        synced: Option<Moment>,
        config: &Config,
        id: &PodId,
        pod: &Pod,
    ) {
        // a Pod that a list shows may have been there for long
        let Some(synced) = synced.filter(|synced| pod.seen > *synced) else {
            return;
        };
        if pod.image == self.prepull.image {
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

    /// The evidence that the owner makes Pods of another image, while that holds up the pre-pull.
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

    /// Whether the owner makes Pods of another image, by evidence that still counts.
    pub(super) fn lags(&self, now: Moment) -> bool {
        self.lag
            .as_ref()
            .is_some_and(|lag| lag.until.is_none_or(|until| until > now))
    }

    /// Notes that the pre-pull has `alive` Pods, of which one came just now.
    pub(super) fn grew(&mut self, alive: usize) {
        self.meant = self.meant.max(alive);
    }

    /// Takes the number of Pods that are alive. Returns whether the pre-pull has all Pods that it shall have.
    pub(super) fn is_whole(&mut self, now: Moment, alive: usize) -> bool {
        let replicas = replicas(&self.prepull);
        if alive <= replicas {
            self.meant = replicas;
        }
        alive >= self.wanted(now)
    }

    /// The number of Pods that the pre-pull shall have. A larger number from a moment ago still counts, because the
    /// Pods may not reflect the change yet.
    pub(super) fn wanted(&self, now: Moment) -> usize {
        self.shrunk
            .iter()
            .filter(|(_, until)| *until > now)
            .map(|(before, _)| *before)
            .fold(self.meant, usize::max)
    }
}

fn replicas(prepull: &PrePull) -> usize {
    usize::try_from(prepull.replicas).unwrap_or(0)
}
