//! Blobs that clients of hosts' mirrors wait for. One of the hosts that ask for a blob gets a lease of it, as with a
//! content of a staged image.
//!
//! In the plan, such a blob is an image of one content, wanted on the hosts that ask for it now. The blob is remembered
//! for as long as a session says that somebody waits, and a minute longer: a host that asks late then gets the blob
//! from hosts that have it, and needs no lease. Nothing is kept on disk. The wants of a host end when its session ends.
//! What hosts may ask for is bounded; hosts fetch anything beyond that by themselves.
//!
//! With each digest a host says a size, which its registry named. The coordinator can't tell whether that size is true.
//! So a digest and a size together are one blob: hosts that say another size have another blob, and neither group waits
//! for the other. The plan knows the first size of a digest under the digest itself, and any other size under a name
//! that is made here. Whatever a host says of a digest is about the size that the host asked for.

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

/// The most blobs in the whole fleet, including those that linger.
const MAX_BLOBS: usize = 512;
/// For this long after the last host stopped asking, the plan remembers which hosts hold a blob.
const LINGER: Duration = Duration::from_mins(1);
/// How often hosts are told which of their wants are coming or have a place in the queue: a fifth of the time after
/// which a host would fetch the blob by itself.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// The blobs for which hosts ask, and the names of these blobs in the plan.
#[derive(Debug, Default)]
pub(super) struct Mirrored {
    /// The blobs, by digest and size.
    blobs: BTreeMap<(Digest, u64), Blob>,
    /// The wants of each host: the size and the number of the want, by digest.
    hosts: BTreeMap<HostId, BTreeMap<Digest, (u64, u64)>>,
    /// The digests of the images that stand for blobs in the plan.
    names: BTreeSet<Digest>,
    /// The real digests of blobs of another size, by the plan's names of their contents.
    digests: BTreeMap<Digest, Digest>,
    /// Contents of blobs that are forgotten. Orders that the plan has already made may still name them.
    forgotten: Vec<Digest>,
    told_at: Option<Moment>,
}

#[derive(Debug)]
struct Blob {
    /// The plan's name of the content.
    content: Digest,
    chunks: u32,
    hosts: BTreeSet<HostId>,
    /// The hosts that named this size when they last asked for the digest.
    asked: BTreeSet<HostId>,
    /// Since when no host asks for the blob.
    left_at: Option<Moment>,
}

impl Mirrored {
    /// Whether this image stands for a blob in the plan. Hosts don't know such images.
    pub(super) fn is_blob(&self, image: &Digest) -> bool {
        self.names.contains(image)
    }

    /// The plan's name of the content that this host means by a digest.
    pub(super) fn meant(&self, host: &HostId, digest: Digest) -> Digest {
        if self.digests.is_empty() {
            return digest;
        }
        let mut sizes = self.blobs.range((digest, 0)..=(digest, u64::MAX));
        let asked = sizes.find(|(_, blob)| blob.asked.contains(host));
        asked.map_or(digest, |(_, blob)| blob.content)
    }

    /// The digest under which hosts know a content.
    pub(super) fn digest(&self, content: Digest) -> Digest {
        self.digests.get(&content).copied().unwrap_or(content)
    }

    /// The plan's name for the content of a blob that is wanted for the first time. `known` is the size that the plan
    /// knows for the digest.
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

/// The digest of the image that stands for a blob in the plan. It never equals an image's own digest, whatever digest a
/// host asks for; otherwise the plan would confuse a want of the blob with a want of the image.
fn name(content: &Digest) -> Digest {
    let mut bytes = b"parbake mirror ".to_vec();
    bytes.extend_from_slice(content.as_bytes());
    Digest::of(&bytes)
}

impl Mirrored {
    /// Time passed. Returns orders that tell hosts which of their wants are coming.
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

    /// The plan's orders were carried out, so no order names a forgotten blob any more.
    pub(super) fn carried_out(&mut self) {
        for content in std::mem::take(&mut self.forgotten) {
            // the blob may be wanted again by now, under the same name
            if self.blobs.values().all(|blob| blob.content != content) {
                self.digests.remove(&content);
                self.names.remove(&name(&content));
            }
        }
    }

    /// Tells each host that waits its turn that its blob is coming. Otherwise the host would fetch from the registry by
    /// itself, and so would all others that wait.
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

    /// A host says everything that its clients wait for.
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

    /// The host has no session, so its wants end.
    pub(super) fn disconnected(&mut self, now: Moment, host: &HostId, plan: &mut Plan) {
        self.wants(now, host, &MirrorWants::default(), plan);
    }

    /// A host asks for a blob. Returns whether the want is kept track of.
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
        // what the host said before of this digest was about the size that it named then
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
        // a host that asks is ready to fetch
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

    /// Forgets the blobs that no host has asked for during `after` or longer. Returns whether there were any.
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
        // the names are kept until the plan's orders about these blobs were sent under the digests that hosts know
        self.forgotten.append(&mut over);
        any
    }

    /// Tells the plan which hosts want a blob.
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
                recipe: None,
                hosts: word::Selection::Hosts(blob.hosts.iter().cloned().collect()),
                paused: Vec::new(),
                purpose: word::Purpose::Mirror,
            },
        );
    }
}

#[cfg(test)]
mod tests;
