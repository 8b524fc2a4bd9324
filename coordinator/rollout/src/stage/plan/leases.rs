//! The leases: which host fetches which content from its registry now, and how each fetch goes.

use alloc::{collections::BTreeMap, string::String, vec::Vec};
use core::time::Duration;

use proto::{ChunkRange, Digest, HostId, Moment};

use crate::stage::event::{Purpose, Trouble};

/// More bytes than one compressed chunk can have, with the bytes before its end. A holder that reports more bytes and
/// no whole chunk isn't believed.
const MOST_OF_A_CHUNK: u64 = 2 * proto::CHUNK_BYTES;

/// A lease to be granted: which content to which host.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) host: HostId,
    pub(super) content: Digest,
    /// The chunks to fetch, where several hosts fetch the content; `None`: all of them.
    pub(super) range: Option<ChunkRange>,
    /// The image under whose name the content is fetched.
    pub(super) image: Digest,
    /// The registry that the holder asks.
    pub(super) registry: String,
    /// The repository that the holder asks. Its name begins with the registry's name.
    pub(super) repository: String,
    pub(super) purpose: Purpose,
}

/// The circumstances under which a lease begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    /// The chunks that the holder says that it has fetched.
    pub(super) chunks: u32,
    /// Whether the registry gave something a moment before.
    pub(super) gives: bool,
    /// Whether the holder is on trial, and so takes no other host's place.
    pub(super) trial: bool,
    /// Whether the holder reported the lease, and this coordinator didn't grant it.
    pub(super) taken_over: bool,
}

/// The lease of one content, or of a range of its chunks.
#[derive(Debug)]
pub(super) struct Lease {
    grant: Grant,
    start: Start,
    granted_at: Moment,
    chunks: u32,
    /// The blob's bytes that the holder got, by its own word.
    bytes: u64,
    /// The value of `bytes` when the last chunk came.
    chunk_bytes: u64,
    /// The value of `bytes` at the last report that counts as progress.
    progress_bytes: u64,
    /// When the last report came that counts as progress.
    progress_at: Moment,
    /// When the last new chunk came.
    chunk_at: Moment,
    /// When other hosts last got some of it.
    seen_at: Moment,
    /// The value of `chunks` when other hosts last got some of the content.
    seen_chunks: u32,
    /// When the last of `seen_chunks` had come.
    seen_chunk_at: Moment,
    /// Since when the holder has whole chunks that no other host got.
    unseen_since: Option<Moment>,
    /// What keeps the registry from giving the holder more, and since when.
    trouble: Option<(Moment, Trouble)>,
}

impl Lease {
    fn new(now: Moment, grant: Grant, start: Start) -> Self {
        Self {
            grant,
            start,
            granted_at: now,
            chunks: start.chunks,
            bytes: 0,
            chunk_bytes: 0,
            progress_bytes: 0,
            progress_at: now,
            chunk_at: now,
            seen_at: now,
            seen_chunks: start.chunks,
            seen_chunk_at: now,
            unseen_since: None,
            trouble: None,
        }
    }

    pub(super) const fn host(&self) -> &HostId {
        &self.grant.host
    }

    /// The chunks that the holder fetches; `None`: all of them.
    pub(super) const fn range(&self) -> Option<ChunkRange> {
        self.grant.range
    }

    /// The image under whose name the content is fetched.
    pub(super) const fn image(&self) -> Digest {
        self.grant.image
    }

    /// The registry that the holder asks.
    pub(super) fn registry(&self) -> &str {
        &self.grant.registry
    }

    /// The repository that the holder asks. Its name begins with the registry's name.
    pub(super) fn repository(&self) -> &str {
        &self.grant.repository
    }

    /// Whether the lease was granted for clients of a mirror.
    pub(super) fn is_mirrors(&self) -> bool {
        self.grant.purpose == Purpose::Mirror
    }

    /// Whether the holder is on trial, and no other host got anything of the content yet.
    pub(super) const fn is_trial(&self) -> bool {
        self.start.trial
    }

    /// Whether the holder reported the lease, and this coordinator didn't grant it.
    pub(super) const fn is_taken_over(&self) -> bool {
        self.start.taken_over
    }

    /// Whether the registry gave something a moment before the lease was granted.
    pub(super) const fn begins_amid_gifts(&self) -> bool {
        self.start.gives
    }

    pub(super) const fn granted_at(&self) -> Moment {
        self.granted_at
    }

    /// The chunks that the holder says that it has fetched.
    pub(super) const fn chunks(&self) -> u32 {
        self.chunks
    }

    /// The chunks that came since other hosts last got some of the content.
    pub(super) const fn unseen_chunks(&self) -> u32 {
        self.chunks.saturating_sub(self.seen_chunks)
    }

    /// When the last report came that counts as progress.
    pub(super) const fn progress_at(&self) -> Moment {
        self.progress_at
    }

    /// When the last new chunk came.
    pub(super) const fn chunk_at(&self) -> Moment {
        self.chunk_at
    }

    /// When other hosts last got some of the content.
    pub(super) const fn seen_at(&self) -> Moment {
        self.seen_at
    }

    /// Since when the holder has whole chunks that no other host got.
    pub(super) const fn unseen_since(&self) -> Option<Moment> {
        self.unseen_since
    }

    /// What keeps the registry from giving the holder more, and since when.
    pub(super) const fn trouble(&self) -> Option<(Moment, Trouble)> {
        self.trouble
    }

    /// Whether the holder has reported nothing that counts as progress.
    pub(super) fn never_moved(&self) -> bool {
        self.progress_at == self.granted_at
    }

    /// Whether other hosts got something of the content; or the holder did, where no host could say otherwise.
    pub(super) fn has_brought(&self) -> bool {
        self.seen_at > self.granted_at
    }

    /// The bytes per second since the last whole chunk, by the holder's word.
    pub(super) fn bytes_per_s_of_chunk(&self, now: Moment) -> u64 {
        let millis = proto::millis(now.since(self.chunk_at));
        let bytes = self.bytes - self.chunk_bytes;
        bytes.saturating_mul(1_000).checked_div(millis).unwrap_or(0)
    }

    /// The average bytes per second from the registry since the grant, by the holder's word.
    pub(super) fn bytes_per_s(&self, now: Moment) -> u64 {
        let micros = u64::try_from(now.since(self.granted_at).as_micros()).unwrap_or(u64::MAX);
        self.bytes
            .saturating_mul(1_000_000)
            .checked_div(micros)
            .unwrap_or(0)
    }

    /// The holder reports its chunks, and the blob's bytes that it got. Returns whether there is a new chunk.
    pub(super) fn fetch(&mut self, now: Moment, chunks: u32, bytes: u64) -> bool {
        if chunks <= self.chunks {
            return false;
        }
        self.chunks = chunks;
        self.progress_at = now;
        self.chunk_at = now;
        self.bytes = self.bytes.max(bytes);
        (self.chunk_bytes, self.progress_bytes) = (self.bytes, self.bytes);
        // other hosts may report a chunk before its holder does
        if self.unseen_chunks() > 1 {
            self.unseen_since.get_or_insert(now);
        }
        true
    }

    /// The holder reports bytes without a new chunk. Returns whether that is progress: enough bytes for each second
    /// since the last progress.
    pub(super) fn moves(&mut self, now: Moment, bytes: u64, slowest_bytes_per_s: u64) -> bool {
        self.bytes = self.bytes.max(bytes);
        let new = self.bytes - self.progress_bytes;
        let seconds = now.since(self.progress_at).as_secs().max(1);
        let moves = new >= slowest_bytes_per_s.saturating_mul(seconds)
            && self.bytes - self.chunk_bytes <= MOST_OF_A_CHUNK;
        if moves {
            (self.progress_at, self.progress_bytes) = (now, self.bytes);
        }
        moves
    }

    /// The holder waits until other hosts have what it fetched. That counts as progress for `most` after a chunk.
    pub(super) fn pace(&mut self, now: Moment, most: Duration) {
        if now.since(self.chunk_at) < most {
            self.progress_at = now;
        }
    }

    /// Counts the holder's word about bytes, because no host can say whether others got something.
    pub(super) const fn believe_bytes(&mut self, now: Moment) {
        self.seen_at = now;
    }

    /// Counts the holder's word about chunks, because no host can say whether others got them.
    pub(super) const fn believe_chunks(&mut self, now: Moment) {
        self.seen_at = now;
        self.seen_chunks = self.chunks;
        self.seen_chunk_at = now;
        self.unseen_since = None;
    }

    /// Notes that other hosts got something of the content. Returns the bytes per second that the registry brought
    /// since they last did, if whole chunks came.
    pub(super) fn see(&mut self, now: Moment, bytes_per_chunk: u64) -> Option<u64> {
        let chunks = self.unseen_chunks();
        let took = self.chunk_at.since(self.seen_chunk_at);
        let took = took.as_millis().max(1);
        let bytes = u128::from(chunks) * u128::from(bytes_per_chunk) * 1_000 / took;
        self.seen_at = now;
        self.seen_chunks = self.chunks;
        self.seen_chunk_at = self.chunk_at;
        self.unseen_since = None;
        // from now on the lease takes a place like any other
        self.start.trial = false;
        (chunks > 0).then(|| u64::try_from(bytes).unwrap_or(u64::MAX))
    }

    /// Notes what the holder says of its registry. Time in silence and time with other trouble are counted apart.
    pub(super) fn suffer(&mut self, now: Moment, trouble: Option<Trouble>) {
        self.trouble = trouble.map(|trouble| {
            let since = self
                .trouble
                .filter(|(_, before)| trouble.is_silence() == before.is_silence())
                .map_or(now, |(since, _)| since);
            (since, trouble)
        });
    }
}

/// The running leases, by content.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// A content has one lease of all of it, or several leases of ranges that don't overlap. No host has two of one
    /// content. No list is empty.
    by_content: BTreeMap<Digest, Vec<Lease>>,
    /// When something was last leased under each image's name.
    asked_at: BTreeMap<Digest, Moment>,
}

impl Leases {
    /// The lease that a host has of a content.
    pub(super) fn of(&self, content: &Digest, id: &HostId) -> Option<&Lease> {
        self.all_of(content).iter().find(|of| of.host() == id)
    }

    pub(super) fn of_mut(&mut self, content: &Digest, id: &HostId) -> Option<&mut Lease> {
        self.all_of_mut(content)
            .iter_mut()
            .find(|of| of.host() == id)
    }

    /// The leases of a content: one of all of it, or those of its ranges.
    pub(super) fn all_of(&self, content: &Digest) -> &[Lease] {
        self.by_content.get(content).map_or(&[], Vec::as_slice)
    }

    pub(super) fn all_of_mut(&mut self, content: &Digest) -> &mut [Lease] {
        let leases = self.by_content.get_mut(content);
        leases.map_or(&mut [], Vec::as_mut_slice)
    }

    pub(super) fn contains(&self, content: &Digest) -> bool {
        self.by_content.contains_key(content)
    }

    /// The holder of a content's first lease.
    #[cfg(test)]
    pub(super) fn holder(&self, content: &Digest) -> Option<&HostId> {
        self.all_of(content).first().map(Lease::host)
    }

    /// Whether this host has a lease of the content.
    pub(super) fn holds(&self, content: &Digest, id: &HostId) -> bool {
        self.of(content, id).is_some()
    }

    /// All leases, by content.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Digest, &Lease)> {
        let all = self.by_content.iter();
        all.flat_map(|(content, leases)| leases.iter().map(move |lease| (content, lease)))
    }

    /// The holders and contents of the leases for which `is` holds, by content.
    pub(super) fn that(&self, is: impl Fn(&Digest, &Lease) -> bool) -> Vec<(HostId, Digest)> {
        let those = self.iter().filter(|(content, lease)| is(content, lease));
        those
            .map(|(content, lease)| (lease.host().clone(), *content))
            .collect()
    }

    pub(super) fn len(&self) -> usize {
        self.by_content.values().map(Vec::len).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_content.is_empty()
    }

    /// How many leases are for mirrors.
    pub(super) fn mirrors(&self) -> usize {
        let all = self.by_content.values().flatten();
        all.filter(|lease| lease.is_mirrors()).count()
    }

    /// How many leases a host has.
    pub(super) fn of_host(&self, id: &HostId) -> usize {
        let all = self.by_content.values().flatten();
        all.filter(|lease| lease.host() == id).count()
    }

    /// When something was last leased under an image's name.
    pub(super) fn asked_at(&self, image: &Digest) -> Option<Moment> {
        self.asked_at.get(image).copied()
    }

    /// Leases a content, or a range of it. The caller has checked that no host has a lease of what is granted.
    pub(super) fn begin(&mut self, now: Moment, grant: Grant, start: Start) {
        self.asked_at.insert(grant.image, now);
        let lease = Lease::new(now, grant, start);
        let leases = self.by_content.entry(lease.grant.content).or_default();
        leases.retain(|of| of.host() != lease.host());
        leases.push(lease);
    }

    /// Ends the lease that a host has of a content.
    pub(super) fn end(&mut self, content: &Digest, id: &HostId) -> Option<Lease> {
        let leases = self.by_content.get_mut(content)?;
        let at = leases.iter().position(|of| of.host() == id)?;
        let lease = leases.remove(at);
        if leases.is_empty() {
            self.by_content.remove(content);
        }
        Some(lease)
    }

    /// Forgets an image that isn't wanted any more.
    pub(super) fn forget_image(&mut self, image: &Digest) {
        self.asked_at.remove(image);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment(1_000_000_000);
    const SECOND: Duration = Duration::from_secs(1);

    fn grant(host: u32, content: &str, purpose: Purpose) -> Grant {
        Grant {
            host: alloc::format!("host-{host}").parse().unwrap(),
            content: Digest::of(content.as_bytes()),
            range: None,
            image: Digest::of(b"image"),
            registry: "registry.example".into(),
            repository: "registry.example/image".into(),
            purpose,
        }
    }

    fn start() -> Start {
        Start {
            chunks: 0,
            gives: false,
            trial: false,
            taken_over: false,
        }
    }

    fn lease() -> Lease {
        Lease::new(START, grant(1, "content", Purpose::Stage), start())
    }

    #[test]
    fn leases_are_counted_by_host_and_purpose() {
        let mut leases = Leases::default();
        leases.begin(START, grant(1, "a", Purpose::Stage), start());
        leases.begin(START, grant(1, "b", Purpose::Mirror), start());
        leases.begin(START, grant(2, "c", Purpose::Mirror), start());
        let host = grant(1, "a", Purpose::Stage).host;
        assert_eq!(
            (leases.len(), leases.mirrors(), leases.of_host(&host)),
            (3, 2, 2)
        );
        let content = Digest::of(b"b");
        assert!(leases.holds(&content, &host));
        assert!(leases.end(&content, &host).is_some());
        assert!(leases.end(&content, &host).is_none());
        assert_eq!(
            (leases.len(), leases.mirrors(), leases.of_host(&host)),
            (2, 1, 1)
        );
        // the image was asked for, and is until it isn't wanted any more
        let image = Digest::of(b"image");
        assert_eq!(leases.asked_at(&image), Some(START));
        leases.forget_image(&image);
        assert_eq!(leases.asked_at(&image), None);
    }

    #[test]
    fn a_chunk_that_is_said_twice_is_no_news() {
        let mut lease = lease();
        assert!(lease.never_moved());
        assert!(lease.fetch(START + SECOND, 1, 100));
        assert!(!lease.fetch(START + 2 * SECOND, 1, 200));
        assert_eq!(lease.progress_at(), START + SECOND);
        // one chunk may be on its way to other hosts; two that no host got are noted
        assert_eq!(lease.unseen_since(), None);
        assert!(lease.fetch(START + 3 * SECOND, 2, 200));
        assert!(lease.fetch(START + 4 * SECOND, 3, 300));
        assert_eq!(lease.unseen_since(), Some(START + 3 * SECOND));
    }

    #[test]
    fn bytes_are_progress_at_the_slowest_rate_and_for_as_much_as_a_chunk_has() {
        let mut lease = lease();
        assert!(!lease.moves(START + 2 * SECOND, 1_999, 1_000));
        assert!(lease.moves(START + 2 * SECOND, 2_000, 1_000));
        assert!(lease.moves(START + 3 * SECOND, MOST_OF_A_CHUNK, 1_000));
        assert!(!lease.moves(START + 4 * SECOND, MOST_OF_A_CHUNK + 1_000, 1_000));
        assert_eq!(lease.progress_at(), START + 3 * SECOND);
        // another chunk, and bytes count again
        assert!(lease.fetch(START + 5 * SECOND, 1, MOST_OF_A_CHUNK + 1_000));
        assert!(lease.moves(START + 6 * SECOND, MOST_OF_A_CHUNK + 2_000, 1_000));
    }

    #[test]
    fn waiting_for_others_is_progress_for_a_time_after_a_chunk() {
        let mut lease = lease();
        lease.pace(START + 59 * SECOND, 60 * SECOND);
        assert_eq!(lease.progress_at(), START + 59 * SECOND);
        lease.pace(START + 60 * SECOND, 60 * SECOND);
        assert_eq!(lease.progress_at(), START + 59 * SECOND);
    }

    #[test]
    fn what_others_see_tells_the_registrys_pace_and_ends_a_trial() {
        let trial = Start {
            trial: true,
            ..start()
        };
        let mut lease = Lease::new(START, grant(1, "content", Purpose::Mirror), trial);
        assert!(!lease.has_brought());
        assert_eq!(lease.see(START, 1_000), None, "no chunk came");
        assert!(!lease.is_trial());
        lease.fetch(START + 2 * SECOND, 4, 0);
        assert_eq!(lease.see(START + 3 * SECOND, 1_000), Some(2_000));
        assert!(lease.has_brought());
        assert_eq!((lease.unseen_chunks(), lease.unseen_since()), (0, None));
    }

    #[test]
    fn trouble_lasts_while_it_is_of_one_kind() {
        let mut lease = lease();
        lease.suffer(START, Some(Trouble::Failing));
        lease.suffer(START + SECOND, Some(Trouble::Throttled(SECOND)));
        assert_eq!(lease.trouble(), Some((START, Trouble::Throttled(SECOND))));
        lease.suffer(START + 2 * SECOND, Some(Trouble::Silent));
        assert_eq!(lease.trouble(), Some((START + 2 * SECOND, Trouble::Silent)));
        lease.suffer(START + 3 * SECOND, None);
        assert_eq!(lease.trouble(), None);
    }
}
