//! Blobs that clients of hosts' mirrors wait for: one of the hosts that ask is leased each, as of a staged image.
//!
//! To the plan such a blob is an image of one content, wanted on the hosts that ask for it now. It lives as long as a
//! session says that somebody waits, and a minute longer: a host that asks late is to get it from those that have it
//! rather than a lease. Nothing is kept on disk, and a host that goes away takes its wants along. What hosts may ask for is
//! bounded; beyond, they fetch by themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::{
    Digest, Geometry, HostId, Moment,
    message::{MirrorQueue, MirrorWants, order},
};
use rollout::stage::{Event, event as word};
use tracing::debug;

use super::{Driver, orders};

/// Blobs in the whole fleet, those that linger included.
const MAX_BLOBS: usize = 512;
/// Who holds a blob is remembered for so long after the last host stopped asking.
const LINGER: Duration = Duration::from_mins(1);
/// Hosts are told this often what of their wants comes or has a place in the queue. A fifth of the time after which they
/// would fetch it by themselves.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// What hosts ask for.
#[derive(Debug, Default)]
pub(super) struct Mirrored {
    blobs: BTreeMap<Digest, Blob>,
    /// By the number of each want.
    hosts: BTreeMap<HostId, BTreeMap<Digest, u64>>,
    /// What the plan calls the blobs.
    names: BTreeSet<Digest>,
    told_at: Option<Moment>,
}

impl Mirrored {
    /// Whether the plan means a blob by this image: hosts know nothing of it.
    pub(super) fn is_blob(&self, image: &Digest) -> bool {
        self.names.contains(image)
    }
}

#[derive(Debug)]
struct Blob {
    chunks: u32,
    bytes: u64,
    hosts: BTreeSet<HostId>,
    /// Since when nobody asks.
    left_at: Option<Moment>,
}

/// The name under which the plan knows a blob. Never an image's, whatever digest a host asks for: the plan would take a
/// want of the one for the other.
fn name(blob: &Digest) -> Digest {
    let mut bytes = b"parbake mirror ".to_vec();
    bytes.extend_from_slice(blob.as_bytes());
    Digest::of(&bytes)
}

impl Driver {
    /// Time passed.
    pub(super) fn tidy_mirror(&mut self, now: Moment) {
        self.forget_lingering(now, LINGER);
        let told = self.mirror.told_at;
        if told.is_none_or(|told| now.since(told) >= TELL_EVERY) {
            self.mirror.told_at = Some(now);
            self.tell_queue();
        }
    }

    /// Whoever waits its turn is told so: it would go to the registry by itself, as all others that wait would.
    fn tell_queue(&mut self) {
        let mut queues = Vec::new();
        for (host, wanted) in &self.mirror.hosts {
            let coming = wanted
                .keys()
                .filter(|digest| self.plan.is_coming(host, digest));
            let contents: Vec<_> = coming.map(|digest| digest.as_bytes().to_vec()).collect();
            if !contents.is_empty() {
                queues.push((host.clone(), MirrorQueue { contents }));
            }
        }
        for (host, queue) in queues {
            self.order(&host, orders::kind(order::Kind::Queue(queue)));
        }
    }

    /// A host says what its clients wait for, all of it.
    pub(super) fn mirror_wants(&mut self, now: Moment, host: &HostId, wants: &MirrorWants) {
        let mut wanted = BTreeMap::new();
        for want in &wants.wants {
            let digest = Digest::try_from(want.content.as_slice());
            if let (Ok(digest), Ok(geometry)) = (digest, Geometry::new(want.size)) {
                wanted.insert(digest, (geometry, want.number));
            }
        }
        let before = self.mirror.hosts.remove(host).unwrap_or_default();
        for (digest, number) in &before {
            if wanted.get(digest).is_none_or(|(_, now)| now != number) {
                self.mirror_unwanted(now, host, digest);
            }
        }
        let mut kept = BTreeMap::new();
        for (digest, (geometry, number)) in wanted {
            let known = before.get(&digest) == Some(&number);
            if known || self.mirror_wanted(now, host, digest, geometry) {
                kept.insert(digest, number);
            }
        }
        if !kept.is_empty() {
            self.mirror.hosts.insert(host.clone(), kept);
        }
    }

    /// Nobody waits on this host any more.
    pub(super) fn mirror_left(&mut self, now: Moment, host: &HostId) {
        self.mirror_wants(now, host, &MirrorWants::default());
    }

    fn mirror_wanted(
        &mut self,
        now: Moment,
        host: &HostId,
        digest: Digest,
        geometry: Geometry,
    ) -> bool {
        if !self.mirror.blobs.contains_key(&digest)
            && self.mirror.blobs.len() >= MAX_BLOBS
            && !self.forget_lingering(now, Duration::ZERO)
        {
            debug!(%host, limit = MAX_BLOBS, "more blobs are asked for than are kept track of");
            return false;
        }
        let known = self.mirror.blobs.get(&digest);
        if known.is_some_and(|blob| blob.bytes != geometry.size()) {
            // one of the two was misled by its registry: what either fetches is of no use to the other
            debug!(%host, content = %digest, bytes = geometry.size(), "a blob is wanted with two sizes");
            return false;
        }
        let blob = self.mirror.blobs.entry(digest).or_insert_with(|| Blob {
            chunks: geometry.chunks(),
            bytes: geometry.size(),
            hosts: BTreeSet::new(),
            left_at: None,
        });
        blob.hosts.insert(host.clone());
        blob.left_at = None;
        self.tell_mirrored(now, digest);
        // it asks, so it is ready to fetch
        self.plan.handle(
            now,
            Event::Reported {
                host: host.clone(),
                image: name(&digest),
                standing: word::Standing::Staging,
                held_bytes: 0,
            },
        );
        true
    }

    fn mirror_unwanted(&mut self, now: Moment, host: &HostId, digest: &Digest) {
        let Some(blob) = self.mirror.blobs.get_mut(digest) else {
            return;
        };
        blob.hosts.remove(host);
        if blob.hosts.is_empty() {
            blob.left_at = Some(now);
        }
        self.tell_mirrored(now, *digest);
    }

    /// Forgets blobs that nobody asks for any more. Whether there were any.
    fn forget_lingering(&mut self, now: Moment, after: Duration) -> bool {
        let over: Vec<Digest> = self
            .mirror
            .blobs
            .iter()
            .filter(|(_, blob)| blob.left_at.is_some_and(|left| now.since(left) >= after))
            .map(|(digest, _)| *digest)
            .collect();
        for digest in &over {
            self.mirror.blobs.remove(digest);
            self.mirror.names.remove(&name(digest));
            self.plan.handle(now, Event::Cancelled(name(digest)));
        }
        !over.is_empty()
    }

    fn tell_mirrored(&mut self, now: Moment, digest: Digest) {
        let Some(blob) = self.mirror.blobs.get(&digest) else {
            return;
        };
        self.mirror.names.insert(name(&digest));
        self.plan.handle(
            now,
            Event::Wanted {
                image: name(&digest),
                references: Vec::new(),
                contents: vec![word::Content {
                    digest,
                    chunks: blob.chunks,
                    size: blob.bytes,
                    origin_bytes: blob.bytes,
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
