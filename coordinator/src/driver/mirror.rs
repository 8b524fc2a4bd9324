//! Blobs that clients of hosts' mirrors wait for: one of the hosts that ask is leased each, as of a staged image.
//!
//! To the plan such a blob is an image of one content, wanted on the hosts that ask for it now. It lives as long as a
//! session says that somebody waits, and a minute longer: a host that asks late is to get it from those that have it
//! rather than a lease. Nothing is kept on disk, and a host that goes away takes its wants along. What hosts may ask
//! for is bounded; beyond, they fetch by themselves.
//!
//! A host says a size with each digest, which its registry named, and nobody can tell here whether that is true. So
//! digest and size together are a blob: hosts that say another size have one of their own, and neither waits for the
//! other. The plan knows the first size of a digest under the digest itself, and any other under a name of ours.
//! Whatever a host says of a digest is about the size that it asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proto::{
    Digest, Geometry, HostId, Moment,
    message::{MirrorQueue, MirrorWants, order::Kind},
};
use rollout::stage::{Event, Plan, event as word};
use tracing::debug;

use super::order::{Addressed, order};

/// Blobs in the whole fleet, those that linger included.
const MAX_BLOBS: usize = 512;
/// Who holds a blob is remembered for so long after the last host stopped asking.
const LINGER: Duration = Duration::from_mins(1);
/// Hosts are told this often what of their wants comes or has a place in the queue. A fifth of the time after which
/// they would fetch it by themselves.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// What hosts ask for.
#[derive(Debug, Default)]
pub(super) struct Mirrored {
    /// By digest and size.
    blobs: BTreeMap<(Digest, u64), Blob>,
    /// By the size and the number of each want.
    hosts: BTreeMap<HostId, BTreeMap<Digest, (u64, u64)>>,
    /// What the plan calls the blobs.
    names: BTreeSet<Digest>,
    /// Digests of those of another size, by what the plan calls these contents.
    digests: BTreeMap<Digest, Digest>,
    /// Contents of blobs that are forgotten, and that the plan's last orders may still speak of.
    forgotten: Vec<Digest>,
    told_at: Option<Moment>,
}

#[derive(Debug)]
struct Blob {
    /// What the plan calls the content.
    content: Digest,
    chunks: u32,
    hosts: BTreeSet<HostId>,
    /// All that asked for it under this size last.
    asked: BTreeSet<HostId>,
    /// Since when nobody asks.
    left_at: Option<Moment>,
}

impl Mirrored {
    /// Whether the plan means a blob by this image: hosts know nothing of it.
    pub(super) fn is_blob(&self, image: &Digest) -> bool {
        self.names.contains(image)
    }

    /// What the plan calls the content that this host means by a digest.
    pub(super) fn meant(&self, host: &HostId, digest: Digest) -> Digest {
        if self.digests.is_empty() {
            return digest;
        }
        let mut sizes = self.blobs.range((digest, 0)..=(digest, u64::MAX));
        let asked = sizes.find(|(_, blob)| blob.asked.contains(host));
        asked.map_or(digest, |(_, blob)| blob.content)
    }

    /// The digest of a content, as hosts know it.
    pub(super) fn digest(&self, content: Digest) -> Digest {
        self.digests.get(&content).copied().unwrap_or(content)
    }

    /// What the plan is to call the content of a blob that is wanted first now.
    fn called(&self, digest: Digest, size: u64, known: Option<u64>) -> Digest {
        let mut sizes = self.blobs.range((digest, 0)..=(digest, u64::MAX));
        let taken = known.is_some_and(|known| known != size);
        if !taken && sizes.all(|(_, blob)| blob.content != digest) {
            return digest;
        }
        let mut bytes = b"parbake mirror size ".to_vec();
        bytes.extend_from_slice(&size.to_be_bytes());
        bytes.extend_from_slice(digest.as_bytes());
        Digest::of(&bytes)
    }
}

/// The name under which the plan knows a blob. Never an image's, whatever digest a host asks for: the plan would take a
/// want of the one for the other.
fn name(content: &Digest) -> Digest {
    let mut bytes = b"parbake mirror ".to_vec();
    bytes.extend_from_slice(content.as_bytes());
    Digest::of(&bytes)
}

impl Mirrored {
    /// Time passed. What hosts are told: that what they wait for comes.
    pub(super) fn tidy(&mut self, now: Moment, plan: &mut Plan) -> Vec<Addressed> {
        self.forget_lingering(now, LINGER, plan);
        if self
            .told_at
            .is_some_and(|told| now.since(told) < TELL_EVERY)
        {
            return Vec::new();
        }
        self.told_at = Some(now);
        self.queue(plan)
    }

    /// The plan's orders were carried out: none speaks of a blob any more that was forgotten before.
    pub(super) fn carried_out(&mut self) {
        for content in std::mem::take(&mut self.forgotten) {
            // it may be wanted again by now, under the same name
            if self.blobs.values().all(|blob| blob.content != content) {
                self.digests.remove(&content);
                self.names.remove(&name(&content));
            }
        }
    }

    /// A host that waits its turn is told so: it would go to the registry by itself, as all others that wait would.
    fn queue(&self, plan: &Plan) -> Vec<Addressed> {
        let mut queues = Vec::new();
        for (host, wanted) in &self.hosts {
            let coming = wanted.keys().filter(|digest| {
                let content = self.meant(host, **digest);
                plan.is_coming(host, &content)
            });
            let contents: Vec<_> = coming.map(|digest| digest.as_bytes().to_vec()).collect();
            if !contents.is_empty() {
                let queue = order(Kind::Queue(MirrorQueue { contents }));
                queues.push((host.clone(), Arc::new(queue)));
            }
        }
        queues
    }

    /// A host says what its clients wait for, all of it.
    pub(super) fn wants(
        &mut self,
        now: Moment,
        host: &HostId,
        wants: &MirrorWants,
        plan: &mut Plan,
    ) {
        let mut wanted = BTreeMap::new();
        for want in &wants.wants {
            let digest = Digest::try_from(want.content.as_slice());
            if let (Ok(digest), Ok(geometry)) = (digest, Geometry::new(want.size)) {
                wanted.insert(digest, (geometry, want.number));
            }
        }
        let before = self.hosts.remove(host).unwrap_or_default();
        let same = |wanted: &BTreeMap<Digest, (Geometry, u64)>, digest, size, number| {
            let now = wanted.get(digest);
            now.is_some_and(|(geometry, now)| (geometry.size(), *now) == (size, number))
        };
        for (digest, (size, number)) in &before {
            if !same(&wanted, digest, *size, *number) {
                self.unwanted(now, host, (*digest, *size), plan);
            }
        }
        let mut kept = BTreeMap::new();
        for (digest, (geometry, number)) in wanted {
            let want = (geometry.size(), number);
            let known = before.get(&digest) == Some(&want);
            if known || self.wanted(now, host, (digest, geometry), plan) {
                kept.insert(digest, want);
            }
        }
        if !kept.is_empty() {
            self.hosts.insert(host.clone(), kept);
        }
    }

    /// Nobody waits on this host any more.
    pub(super) fn disconnected(&mut self, now: Moment, host: &HostId, plan: &mut Plan) {
        self.wants(now, host, &MirrorWants::default(), plan);
    }

    /// A host asks for a blob. Whether it is kept track of.
    fn wanted(
        &mut self,
        now: Moment,
        host: &HostId,
        (digest, geometry): (Digest, Geometry),
        plan: &mut Plan,
    ) -> bool {
        let key = (digest, geometry.size());
        if !self.blobs.contains_key(&key)
            && self.blobs.len() >= MAX_BLOBS
            && !self.forget_lingering(now, Duration::ZERO, plan)
        {
            debug!(%host, limit = MAX_BLOBS, "more blobs are asked for than are kept track of");
            return false;
        }
        // what it said before of that digest was of the size that it asked for then
        let sizes = self.blobs.range_mut((digest, 0)..=(digest, u64::MAX));
        for (_, blob) in sizes {
            blob.asked.remove(host);
        }
        let content = match self.blobs.get(&key) {
            Some(blob) => blob.content,
            None => {
                let known = plan.size_of(&digest);
                self.called(digest, geometry.size(), known)
            }
        };
        if content != digest {
            debug!(%host, content = %digest, bytes = geometry.size(), "a blob is wanted with two sizes");
            self.digests.insert(content, digest);
        }
        let blob = self.blobs.entry(key).or_insert_with(|| Blob {
            content,
            chunks: geometry.chunks(),
            hosts: BTreeSet::new(),
            asked: BTreeSet::new(),
            left_at: None,
        });
        blob.hosts.insert(host.clone());
        blob.asked.insert(host.clone());
        blob.left_at = None;
        self.tell(now, key, plan);
        // it asks, so it is ready to fetch
        plan.handle(
            now,
            Event::Reported {
                host: host.clone(),
                image: name(&content),
                standing: word::Standing::Staging,
                held_bytes: 0,
            },
        );
        true
    }

    fn unwanted(&mut self, now: Moment, host: &HostId, key: (Digest, u64), plan: &mut Plan) {
        let Some(blob) = self.blobs.get_mut(&key) else {
            return;
        };
        blob.hosts.remove(host);
        if blob.hosts.is_empty() {
            blob.left_at = Some(now);
        }
        self.tell(now, key, plan);
    }

    /// Forgets blobs that nobody asks for any more. Whether there were any.
    fn forget_lingering(&mut self, now: Moment, after: Duration, plan: &mut Plan) -> bool {
        let mut over = Vec::new();
        self.blobs.retain(|_, blob| {
            let goes = blob.left_at.is_some_and(|left| now.since(left) >= after);
            if goes {
                over.push(blob.content);
            }
            !goes
        });
        for content in &over {
            plan.handle(now, Event::Cancelled(name(content)));
        }
        let any = !over.is_empty();
        // hosts are told so by the digests that they know
        self.forgotten.append(&mut over);
        any
    }

    /// Tells the plan who wants a blob.
    fn tell(&mut self, now: Moment, key: (Digest, u64), plan: &mut Plan) {
        let Some(blob) = self.blobs.get(&key) else {
            return;
        };
        let size = key.1;
        self.names.insert(name(&blob.content));
        plan.handle(
            now,
            Event::Wanted {
                image: name(&blob.content),
                references: Vec::new(),
                contents: vec![word::Content {
                    digest: blob.content,
                    chunks: blob.chunks,
                    size,
                    origin_bytes: size,
                }],
                hosts: word::Selection::Hosts(blob.hosts.iter().cloned().collect()),
                held: Vec::new(),
                purpose: word::Purpose::Mirror,
            },
        );
    }
}

#[cfg(test)]
mod tests;
