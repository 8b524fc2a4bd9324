//! One content, as this host sees it.

use alloc::{collections::BTreeMap, vec, vec::Vec};
use core::time::Duration;

use proto::{ChunkIndex, ChunkRange, ChunkSet, Geometry, HostKey, Moment, pause::doubled};

use crate::{
    event::{Entitled, order_of, place_of},
    peer::PeerIndex,
    promise::Promises,
};

/// The chunks that a reader needs next and that are asked for before others. With four chunks in each [`HURRY_AFTER`],
/// a reader has 16 MiB in a second.
const READ_AHEAD: usize = 4;
/// A chunk that a reader needs next is asked for when it was announced this long ago. A push over a line of 100 Mbit/s
/// takes a third of that.
const HURRY_AFTER: Duration = Duration::from_millis(250);

/// Bytes of a content that may be lost on this host before the content pauses, beside twice the content's size. Thus
/// some losses cost no time: liars among the sources, a registry that sent false bytes, or a disk that was emptied
/// once.
const LOST_FREELY: u64 = 16 << 20;
/// After the first pause, bytes that may be lost between two pauses, beside a quarter of the content's size.
const LOST_BETWEEN: u64 = 4 << 20;
/// First and longest pause of a content that is lost again and again.
const LOST_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));
/// First and longest pause of a content whose chunks can't be stored. The shell stops staging when a volume fails, and
/// says why. This pause is for failures that the shell hasn't noticed yet.
const STORE_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// How long this host waits for chunks that peers announced, before it fetches them from the registry: the time for
/// each content at first, and the most after peers delivered chunks.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));

/// Each chunk that a peer delivers gives this much of that time back: peers that keep promises are waited for.
const PATIENCE_BACK: Duration = Duration::from_millis(500);

/// The origin of our permission to fetch from the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grantor {
    Coordinator,
    /// We ourselves, without a coordinator.
    Headless,
    /// We ourselves, because a client of ours has waited long enough.
    Client,
}

#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) grantor: Grantor,
    /// The range that was leased; `None`: all chunks.
    pub(crate) granted: Option<ChunkRange>,
    /// The chunks to fetch of that range ([`Content::to_fetch`]); `None`: all of them.
    pub(crate) range: Option<ChunkRange>,
    /// Fetching may go up to and without this chunk; the first chunk to fetch before the first order.
    pub(crate) until: u32,
    /// Chunks before `until` that aren't here.
    pub(crate) ordered: u32,
    /// When the registry came to owe us chunks after it had owed none.
    pub(crate) ordered_at: Moment,
    /// Chunks that came from the registry and weren't handed on.
    pub(crate) waiting: u32,
    /// The moment since which chunks that peers announced hold up the fetching.
    pub(crate) blocked_since: Option<Moment>,
    /// When the lease began, or the registry's last chunk came.
    pub(crate) origin_at: Moment,
}

impl Lease {
    /// The first chunk to fetch.
    pub(crate) fn first(&self) -> u32 {
        self.range.map_or(0, ChunkRange::from)
    }

    /// The chunk behind the last one to fetch, in a content of this many chunks.
    pub(crate) fn end(&self, chunks: u32) -> u32 {
        self.range.map_or(chunks, |range| range.until().min(chunks))
    }

    /// Whether fetching may go beyond this chunk.
    const fn has_passed(&self, chunk: ChunkIndex) -> bool {
        let before = match self.range {
            Some(range) => chunk.0 < range.from(),
            None => false,
        };
        !before && chunk.0 < self.until
    }

    /// The registry owes us one chunk more.
    pub(crate) fn order(&mut self, now: Moment) {
        if self.ordered == 0 {
            self.ordered_at = now;
        }
        self.ordered += 1;
    }

    /// How long chunks that peers announced have held up the fetching this time.
    pub(crate) fn blocked(&self, now: Moment) -> Duration {
        self.blocked_since
            .map_or(Duration::ZERO, |since| now.since(since))
    }

    /// How long the registry has given nothing although it owes us chunks; `None` while it owes none. Time before the
    /// first order isn't counted: the lease may have waited for its turn, for peers or for our own limit.
    pub(crate) fn silent(&self, now: Moment) -> Option<Duration> {
        (self.ordered > 0).then(|| now.since(self.origin_at.max(self.ordered_at)))
    }
}

/// A client that reads a content from its first chunk on.
#[derive(Clone, Debug)]
struct Reader {
    /// When it was last looked after, and what peers had announced by then.
    looked_at: Moment,
    announced: ChunkSet,
}

#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) key: u64,
    pub(crate) geometry: Geometry,
    /// The order by the shell's word. See [`order`](Self::order).
    pub(crate) told_order: u32,
    /// The hosts that may have the content.
    pub(crate) entitled: Entitled,
    pub(crate) held: ChunkSet,
    /// Chunks that are requested, or are coming by an accepted push.
    pub(crate) pending: ChunkSet,
    /// Chunks that are held and not announced.
    pub(crate) unannounced: ChunkSet,
    /// The chunks that peers announced, by the peer's slot.
    have: Vec<Option<ChunkSet>>,
    /// Promises that peers broke lately.
    pub(crate) promises: BTreeMap<PeerIndex, Promises>,
    /// How long chunks that peers announced may still hold up fetching from the registry.
    pub(crate) patience: Duration,
    /// How many slots have an announcement, and how many of the announcements are full.
    heard: usize,
    full: usize,
    /// Three ages of announced chunks: announced since the last turn of the grace (`fresh`), before the last turn
    /// (`old`), and before the turn before that (`due`). Due chunks are asked for.
    fresh: ChunkSet,
    old: ChunkSet,
    due: ChunkSet,
    /// Set while a client reads the content from its first chunk on.
    reader: Option<Reader>,
    /// Peers that don't want the content: a bitmap by index.
    unwanted: Vec<u64>,
    pub(crate) lease: Option<Lease>,
    pub(crate) origin_failed: bool,
    /// Before this moment the content isn't fetched without a coordinator. `None`: never, since a fetch would bring the
    /// same false bytes again.
    pub(crate) origin_retry_at: Option<Moment>,
    /// When a chunk last arrived.
    pub(crate) grown_at: Moment,
    /// When a push was last offered, or when a peer first announced a part of the content.
    pub(crate) pushed_at: Option<Moment>,
    /// When a chunk arrived or a peer announced something, whichever was last.
    pub(crate) news_at: Moment,
    pub(crate) not_stored: bool,
    /// Pauses in a row for chunks that couldn't be stored, without one that was.
    store_pauses: u32,
    /// Bytes that were held and then lost since the last pause for such losses, and the number of those pauses.
    lost_bytes: u64,
    lost_pauses: u32,
    /// No chunk of the content is fetched before this moment.
    paused_until: Moment,
    /// All chunks have to be announced anew, for instance because a chunk was lost that was announced.
    pub(crate) announce_anew: bool,
    /// Without a coordinator: the moment since which the content is among the first contents that no peer has in full.
    pub(crate) headless_since: Option<Moment>,
    /// How often each chunk was sent in answer to requests; empty until the first.
    sent: Vec<u8>,
}

impl Content {
    pub(crate) fn new(
        now: Moment,
        key: u64,
        geometry: Geometry,
        order: u32,
        held: ChunkSet,
    ) -> Self {
        let chunks = geometry.chunks();
        Self {
            key,
            geometry,
            told_order: order,
            entitled: None,
            held,
            pending: ChunkSet::empty(chunks),
            unannounced: ChunkSet::empty(chunks),
            have: Vec::new(),
            promises: BTreeMap::new(),
            patience: PATIENCE.0,
            heard: 0,
            full: 0,
            fresh: ChunkSet::empty(chunks),
            old: ChunkSet::empty(chunks),
            due: ChunkSet::empty(chunks),
            reader: None,
            unwanted: Vec::new(),
            lease: None,
            origin_failed: false,
            origin_retry_at: Some(Moment::START),
            grown_at: now,
            pushed_at: None,
            news_at: now,
            not_stored: false,
            store_pauses: 0,
            lost_bytes: 0,
            lost_pauses: 0,
            paused_until: now,
            announce_anew: false,
            headless_since: None,
            sent: Vec::new(),
        }
    }

    /// The content's place among all that this host wants. What a client reads comes before all images.
    pub(crate) const fn order(&self) -> u32 {
        match self.reader {
            Some(_) => order_of(0, place_of(self.told_order)),
            None => self.told_order,
        }
    }

    /// Whether a host may have the content.
    pub(crate) fn entitles(&self, host: HostKey) -> bool {
        self.entitled
            .as_ref()
            .is_none_or(|entitled| entitled.contains(&host))
    }

    pub(crate) fn chunks(&self) -> u32 {
        self.geometry.chunks()
    }

    /// The chunks that the holder of this range fetches; `None` for none of them.
    ///
    /// The registry's bytes of a chunk can be decoded only behind a chunk that is held: they may repeat its last bytes.
    /// So a range begins, and the range before it ends, at the first such place.
    pub(crate) fn to_fetch(&self, range: ChunkRange) -> Option<ChunkRange> {
        let behind_held = |from: u32| {
            let held = |chunk: &u32| *chunk == 0 || self.held.contains(ChunkIndex(*chunk - 1));
            let place = (from..self.chunks()).find(held);
            place.unwrap_or(self.chunks())
        };
        ChunkRange::new(behind_held(range.from()), behind_held(range.until()))
    }

    /// Whether all of these chunks are held.
    pub(crate) fn holds(&self, range: ChunkRange) -> bool {
        self.held.is_full() || range.chunks().all(|chunk| self.held.contains(chunk))
    }

    pub(crate) fn len(&self, chunk: ChunkIndex) -> u64 {
        u64::from(self.geometry.len(chunk))
    }

    /// Enters an announcement of the peer at `slot`.
    pub(crate) fn hear(&mut self, now: Moment, slot: usize, chunks: &ChunkSet, reset: bool) {
        if self.have.len() <= slot {
            self.have.resize(slot + 1, None);
        }
        let entry = &mut self.have[slot];
        self.heard += usize::from(entry.is_none());
        self.full -= usize::from(entry.as_ref().is_some_and(ChunkSet::is_full));
        match entry {
            Some(set) if !reset => set.union_with(chunks),
            _ => *entry = Some(chunks.clone()),
        }
        self.full += usize::from(entry.as_ref().is_some_and(ChunkSet::is_full));
        self.news_at = now;
        if !self.held.is_full() && !chunks.is_empty() {
            self.fresh.union_with(chunks);
            // A first announcement that is full, with no push offered, shows that the content isn't being spread: the
            // spread ended before we wanted the content. No push is waited for.
            if !chunks.is_full() {
                self.pushed_at.get_or_insert(now);
            }
        }
    }

    pub(crate) fn forget_slot(&mut self, slot: usize) {
        if let Some(entry) = self.have.get_mut(slot).and_then(Option::take) {
            self.heard -= 1;
            self.full -= usize::from(entry.is_full());
        }
    }

    /// Whether the content is left alone for a while, because its chunks couldn't be stored or were lost again.
    pub(crate) fn is_paused(&self, now: Moment) -> bool {
        now < self.paused_until
    }

    /// A chunk came and couldn't be stored.
    pub(crate) fn was_not_stored(&mut self, now: Moment) {
        self.not_stored = true;
        // only the first of several failures counts that were under way together
        if !self.is_paused(now) {
            let pause = doubled(STORE_PAUSE.0, STORE_PAUSE.1, self.store_pauses);
            self.store_pauses = self.store_pauses.saturating_add(1);
            self.paused_until = now + pause;
        }
    }

    /// A chunk came and was stored.
    fn was_stored(&mut self) {
        self.not_stored = false;
        self.store_pauses = 0;
    }

    /// Notes that a chunk that was held isn't any more.
    fn was_lost(&mut self, now: Moment, chunk: ChunkIndex) {
        self.lost_bytes += self.len(chunk);
        let size = self.geometry.size();
        let most = if self.lost_pauses == 0 {
            size.saturating_mul(2).saturating_add(LOST_FREELY)
        } else {
            (size / 4).saturating_add(LOST_BETWEEN)
        };
        if self.lost_bytes > most {
            self.lost_bytes = 0;
            let pause = doubled(LOST_PAUSE.0, LOST_PAUSE.1, self.lost_pauses);
            self.lost_pauses = self.lost_pauses.saturating_add(1);
            self.paused_until = self.paused_until.max(now + pause);
        }
    }

    /// Notes that a chunk is here. Returns whether the chunk is new.
    pub(crate) fn hold(&mut self, now: Moment, chunk: ChunkIndex) -> bool {
        if !self.held.insert(chunk) {
            return false;
        }
        self.unannounced.insert(chunk);
        self.grown_at = now;
        self.news_at = now;
        self.was_stored();
        if let Some(lease) = &mut self.lease
            && lease.has_passed(chunk)
        {
            lease.ordered = lease.ordered.saturating_sub(1);
        }
        true
    }

    /// Notes that a chunk isn't here any more. Returns whether it was here.
    pub(crate) fn lose_own(&mut self, now: Moment, chunk: ChunkIndex) -> bool {
        if !self.held.remove(chunk) {
            return false;
        }
        self.unannounced.remove(chunk);
        self.was_lost(now, chunk);
        if let Some(lease) = &mut self.lease
            && lease.has_passed(chunk)
        {
            // the shell fetches a chunk again only when it is told to go back, and it isn't told: a peer or the next
            // lease brings the chunk
            lease.order(now);
        }
        self.announce_anew = true;
        true
    }

    /// A peer delivered a chunk of the content: peers are worth waiting for.
    pub(crate) fn give_patience_back(&mut self, now: Moment) {
        if let Some(lease) = &mut self.lease {
            self.patience = self.patience.saturating_sub(lease.blocked(now));
            if let Some(since) = &mut lease.blocked_since {
                *since = now;
            }
        }
        self.patience = (self.patience + PATIENCE_BACK).min(PATIENCE.1);
    }

    /// The peer at `slot` doesn't have the chunk that it announced.
    pub(crate) fn lose(&mut self, slot: usize, chunk: ChunkIndex) {
        if let Some(Some(set)) = self.have.get_mut(slot) {
            self.full -= usize::from(set.is_full());
            set.remove(chunk);
            self.full += usize::from(set.is_full());
        }
    }

    /// Whether any peer announced anything of the content.
    pub(crate) const fn is_heard_of(&self) -> bool {
        self.heard > 0
    }

    pub(crate) fn peer_has(&self, slot: Option<usize>, chunk: ChunkIndex) -> bool {
        self.announced(slot).is_some_and(|set| set.contains(chunk))
    }

    /// Whether the peer at `slot` announced the whole content.
    pub(crate) fn is_full_at(&self, slot: Option<usize>) -> bool {
        self.announced(slot).is_some_and(ChunkSet::is_full)
    }

    /// Whether the peer at `slot` announced the content, and lacks some of it.
    pub(crate) fn is_lacked_at(&self, slot: Option<usize>) -> bool {
        self.announced(slot).is_some_and(|held| !held.is_full())
    }

    /// Whether any peer announced a chunk that isn't here.
    pub(crate) fn has_news(&self) -> bool {
        self.have.iter().flatten().any(|set| {
            let words = set.words().iter().zip(self.held.words());
            words.into_iter().any(|(theirs, ours)| theirs & !ours != 0)
        })
    }

    fn announced(&self, slot: Option<usize>) -> Option<&ChunkSet> {
        self.have.get(slot?)?.as_ref()
    }

    /// How many peers announced the chunk.
    pub(crate) fn rarity(&self, chunk: ChunkIndex) -> usize {
        self.have
            .iter()
            .flatten()
            .filter(|set| set.contains(chunk))
            .count()
    }

    /// Whether the chunk was announced by a peer whose slot satisfies `meant`.
    pub(crate) fn is_held_by(&self, chunk: ChunkIndex, meant: impl Fn(usize) -> bool) -> bool {
        self.have
            .iter()
            .enumerate()
            .any(|(slot, set)| set.as_ref().is_some_and(|set| set.contains(chunk)) && meant(slot))
    }

    pub(crate) const fn is_complete_elsewhere(&self) -> bool {
        self.full > 0
    }

    /// A turn of the grace: chunks that were announced before the last turn become due.
    pub(crate) fn turn(&mut self) {
        if self.held.is_full() {
            return;
        }
        self.due.union_with(&self.old);
        self.due.subtract(&self.held);
        core::mem::swap(&mut self.old, &mut self.fresh);
        self.fresh = ChunkSet::empty(self.chunks());
    }

    /// A client begins to read the content from its first chunk on, or reads it no more. Nobody pushes chunks to this
    /// host that were announced before the host wanted them, so that these are due at once.
    pub(crate) fn set_read(&mut self, now: Moment, read: bool) {
        if read == self.reader.is_some() {
            return;
        }
        self.reader = None;
        if read {
            self.reader = Some(Reader {
                looked_at: now,
                announced: self.announced_anywhere(),
            });
            self.make_next_due();
        }
    }

    /// The chunks that a reader needs next become due if they were announced some time ago: the reader can't wait for
    /// the grace, which gives a push of any chunk its time.
    pub(crate) fn hurry(&mut self, now: Moment) {
        let looked_at = self.reader.as_ref().map(|reader| reader.looked_at);
        if looked_at.is_some_and(|at| now.since(at) >= HURRY_AFTER) {
            self.make_next_due();
            self.reader = Some(Reader {
                looked_at: now,
                announced: self.announced_anywhere(),
            });
        }
    }

    fn make_next_due(&mut self) {
        let next: Vec<_> = self.next_read().collect();
        let Some(reader) = &self.reader else {
            return;
        };
        for chunk in next {
            if reader.announced.contains(chunk) {
                self.due.insert(chunk);
            }
        }
    }

    /// The chunks that a reader needs next. None without a reader.
    pub(crate) fn next_read(&self) -> impl Iterator<Item = ChunkIndex> + use<'_> {
        let missing = (0..self.chunks()).map(ChunkIndex);
        let missing = missing.filter(|chunk| !self.held.contains(*chunk));
        let most = if self.reader.is_some() { READ_AHEAD } else { 0 };
        missing.take(most)
    }

    fn announced_anywhere(&self) -> ChunkSet {
        let mut all = ChunkSet::empty(self.chunks());
        for set in self.have.iter().flatten() {
            all.union_with(set);
        }
        all
    }

    pub(crate) fn is_due(&self, chunk: ChunkIndex) -> bool {
        self.due.contains(chunk)
    }

    /// Visits the chunks to ask for: due ones, or (`at_once`) all that any peer announced. Chunks that are held or
    /// under way are left out. Calls `visit` with each until `visit` returns false.
    pub(crate) fn visit_askable(&self, at_once: bool, mut visit: impl FnMut(ChunkIndex) -> bool) {
        let words = self.held.words();
        for (at, held) in words.iter().enumerate() {
            let mut askable = if at_once {
                self.have
                    .iter()
                    .flatten()
                    .map(|set| set.words().get(at).copied().unwrap_or(0))
                    .fold(0, |all, word| all | word)
            } else {
                self.due.words()[at]
            };
            askable &= !held & !self.pending.words()[at];
            while askable != 0 {
                let bit = askable.trailing_zeros();
                askable &= askable - 1;
                let base = u32::try_from(at * 64).unwrap_or(u32::MAX);
                if !visit(ChunkIndex(base + bit)) {
                    return;
                }
            }
        }
    }

    pub(crate) fn is_unwanted_by(&self, peer: PeerIndex) -> bool {
        self.unwanted
            .get(peer.at() / 64)
            .is_some_and(|word| word >> (peer.at() % 64) & 1 == 1)
    }

    pub(crate) fn set_unwanted_by(&mut self, peer: PeerIndex, unwanted: bool) {
        let (word, bit) = (peer.at() / 64, 1u64 << (peer.at() % 64));
        if self.unwanted.len() <= word {
            if !unwanted {
                return;
            }
            self.unwanted.resize(word + 1, 0);
        }
        if unwanted {
            self.unwanted[word] |= bit;
        } else {
            self.unwanted[word] &= !bit;
        }
    }

    /// Forgets which peers didn't want the content: they may have changed their minds.
    pub(crate) fn forget_unwanted(&mut self) {
        self.unwanted.clear();
    }

    pub(crate) fn unwanted_count(&self) -> usize {
        self.unwanted
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    pub(crate) fn times_sent(&self, chunk: ChunkIndex) -> u8 {
        self.sent.get(chunk.0 as usize).copied().unwrap_or(0)
    }

    pub(crate) fn count_sent(&mut self, chunk: ChunkIndex) {
        if self.sent.is_empty() {
            self.sent = vec![0; self.chunks() as usize];
        }
        if let Some(count) = self.sent.get_mut(chunk.0 as usize) {
            *count = count.saturating_add(1);
        }
    }
}
