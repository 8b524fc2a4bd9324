//! A peer: what this host knows of another host.

use alloc::vec::Vec;
use core::time::Duration;

use proto::{HostKey, Moment, pause::doubled};

use crate::pace::{Mean, micros};

/// A peer's place in the swarm's table. The place is reused only after every mention of the peer was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PeerIndex(u32);

impl PeerIndex {
    pub(crate) fn new(at: usize) -> Self {
        Self(u32::try_from(at).unwrap_or(u32::MAX))
    }

    pub(crate) const fn at(self) -> usize {
        self.0 as usize
    }
}

/// The peers by key. Keys are hashes that are spread evenly, so that a key's place in the sorted list can be guessed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys(Vec<(HostKey, PeerIndex)>);

impl Keys {
    pub(crate) fn get(&self, key: HostKey) -> Option<PeerIndex> {
        let count = u64::try_from(self.0.len()).ok()?;
        let guess = usize::try_from((u128::from(key.0) * u128::from(count)) >> 64).ok()?;
        let mut at = guess;
        if self.0.get(at)?.0 < key {
            // in an uneven list, the walk ends after `WALK` steps and a binary search follows
            for _ in 0..WALK {
                at += 1;
                match self.0.get(at) {
                    Some((other, index)) if *other == key => return Some(*index),
                    Some((other, _)) if *other < key => {}
                    _ => return None,
                }
            }
        } else {
            for _ in 0..WALK {
                match self.0.get(at) {
                    Some((other, index)) if *other == key => return Some(*index),
                    Some((other, _)) if *other > key && at > 0 => at -= 1,
                    _ => return None,
                }
            }
        }
        let at = self.0.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        self.0.get(at).map(|(_, index)| *index)
    }

    pub(crate) fn insert(&mut self, key: HostKey, index: PeerIndex) {
        match self.0.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(at) => self.0[at].1 = index,
            Err(at) => self.0.insert(at, (key, index)),
        }
    }

    pub(crate) fn remove(&mut self, key: HostKey) -> Option<PeerIndex> {
        let at = self.0.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        Some(self.0.remove(at).1)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (HostKey, PeerIndex)> + '_ {
        self.0.iter().copied()
    }
}

/// Entries that are looked at around the guess before a binary search: four times what 4,000 evenly spread keys need.
const WALK: usize = 128;

/// Whether we can talk to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Down,
    Dialling,
    Up,
}

#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) key: HostKey,
    pub(crate) zone: u32,
    pub(crate) neighbour: bool,
    pub(crate) line: Line,
    pub(crate) up_since: Moment,
    pub(crate) dial_not_before: Moment,
    /// Until this moment the peer is left to dial us, unless we need the connection.
    pub(crate) head_start_until: Moment,
    pub(crate) dial_failures: u32,
    /// Bad chunks since the last quarantine.
    pub(crate) strikes: u32,
    /// Transfers in a row that brought nothing.
    pub(crate) silent: u32,
    pub(crate) quarantines: u32,
    pub(crate) quarantined_until: Option<Moment>,
    /// Our uploads to the peer that are under way.
    pub(crate) uploads: usize,
    /// Those of our uploads that take far too long.
    pub(crate) slow_uploads: usize,
    /// Our requests to the peer that are under way.
    pub(crate) requests: usize,
    /// How long its answers take.
    pub(crate) answer: Mean,
    pub(crate) not_asked_before: Moment,
    /// Our uploads in a row that the peer didn't take.
    pub(crate) stuck: u32,
    /// A push was among the uploads that the peer didn't take. Only a push that it takes shows that it passes chunks
    /// on; answers to its own requests don't.
    pub(crate) ignores_pushes: bool,
    pub(crate) not_sent_before: Moment,
    /// The moment at which our uplink would have sent the peer bytes for all the work of our answers. Answers whose
    /// work was sending their bytes aren't among them.
    owes_until: Moment,
    /// The peer broke its promises of a content: until this moment the peer isn't waited for.
    pub(crate) distrusted_until: Moment,
    load: Load,
    /// Where its announcements are kept in each content.
    pub(crate) slot: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Load {
    backlog_bytes: u64,
    bytes_per_second: u64,
    at: Moment,
    /// Work that we assigned and that it hasn't confirmed.
    assigned_bytes: u64,
}

impl Peer {
    pub(crate) fn new(key: HostKey, rate: u64) -> Self {
        Self {
            key,
            zone: 0,
            neighbour: false,
            line: Line::Down,
            up_since: Moment::START,
            dial_not_before: Moment::START,
            head_start_until: Moment::START,
            dial_failures: 0,
            strikes: 0,
            silent: 0,
            quarantines: 0,
            quarantined_until: None,
            uploads: 0,
            slow_uploads: 0,
            requests: 0,
            answer: Mean::default(),
            not_asked_before: Moment::START,
            stuck: 0,
            ignores_pushes: false,
            not_sent_before: Moment::START,
            owes_until: Moment::START,
            distrusted_until: Moment::START,
            load: Load {
                backlog_bytes: 0,
                bytes_per_second: rate.max(1),
                at: Moment::START,
                assigned_bytes: 0,
            },
            slot: None,
        }
    }

    pub(crate) const fn is_quarantined(&self) -> bool {
        self.quarantined_until.is_some()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.line == Line::Up && !self.is_quarantined()
    }

    /// Whether the peer lets transfers to us expire, and is left alone for that.
    pub(crate) fn dribbles(&self, now: Moment) -> bool {
        self.silent > 0 && self.not_asked_before > now
    }

    /// Whether the peer broke too many promises lately to be waited for.
    pub(crate) fn is_distrusted(&self, now: Moment) -> bool {
        now < self.distrusted_until
    }

    /// Whether chunks are pushed to the peer: as far as we know, it takes the chunks that it is sent, and delivers the
    /// chunks that it promises. A peer that delivers nothing has to ask.
    pub(crate) fn is_pushed_to(&self, now: Moment) -> bool {
        self.slow_uploads == 0 && !self.rests(now) && self.delivers(now)
    }

    /// Whether the peer is left alone because it didn't take what we sent.
    pub(crate) fn rests(&self, now: Moment) -> bool {
        self.not_sent_before > now
    }

    /// An answer that began at this moment took work that is worth so many microseconds of our uplink.
    pub(crate) fn owes(&mut self, since: Moment, us: u64) {
        self.owes_until = self.owes_until.max(since) + Duration::from_micros(us);
    }

    /// The moment from which on the peer is answered.
    pub(crate) fn answered_from(&self) -> Moment {
        Moment(self.owes_until.0.saturating_sub(OWED_MOST_US))
    }

    /// Whether the peer delivers what it promises, as far as we know.
    pub(crate) fn delivers(&self, now: Moment) -> bool {
        self.silent < BARREN && !self.is_distrusted(now)
    }

    /// Whether the peer delivers what it promises, and takes what it is to pass on.
    pub(crate) fn is_reliable(&self, now: Moment) -> bool {
        self.stuck == 0 && self.delivers(now)
    }

    /// A transfer from the peer brought nothing. The peer isn't asked for a while.
    pub(crate) fn was_silent(&mut self, now: Moment, least: Duration) {
        // several transfers that one dead moment ended count once
        if self.not_asked_before > now {
            return;
        }
        // silence is no lie: slow, dead and cut-off hosts are avoided, not accused
        self.not_asked_before = now + doubled(least, SILENT_MOST, self.silent);
        self.silent = self.silent.saturating_add(1);
    }

    /// An upload to the peer ended: the peer took what it was sent.
    pub(crate) fn took(&mut self, now: Moment, push: bool) {
        self.ignores_pushes &= !push;
        if !self.ignores_pushes {
            self.stuck = 0;
            self.not_sent_before = now;
        }
    }

    /// An upload to the peer broke. One upload may be lost; a peer that takes none is left alone for a while.
    pub(crate) fn took_nothing(&mut self, now: Moment, least: Duration, push: bool) {
        if self.stuck > 0 {
            self.not_sent_before = now + doubled(least, SILENT_MOST, self.stuck - 1);
        }
        self.stuck = self.stuck.saturating_add(1);
        self.ignores_pushes |= push;
    }

    /// An upload to the peer takes far too long.
    pub(crate) fn takes_slowly(&mut self, now: Moment, least: Duration, push: bool) {
        self.slow_uploads += 1;
        let wait = doubled(least, SILENT_MOST, self.stuck);
        self.not_sent_before = self.not_sent_before.max(now + wait);
        self.stuck = self.stuck.saturating_add(1);
        self.ignores_pushes |= push;
    }

    /// The peer has a new connection. Failures of an earlier connection say nothing about this one.
    pub(crate) fn came_up(&mut self, now: Moment) {
        self.up_since = now;
        self.dial_failures = 0;
        self.silent = 0;
        self.not_asked_before = now;
        self.stuck = 0;
        self.ignores_pushes = false;
        self.not_sent_before = now;
    }

    /// The requests that the peer may have in flight: at least two, and more where it answers quickly.
    pub(crate) fn allowance(&self, most: usize) -> usize {
        /// Two requests keep a link full that needs this many microseconds for each chunk. Faster links want more
        /// requests.
        const QUICK_US: u64 = 50_000;
        let answer = self.answer.us();
        if answer > 0 && answer < QUICK_US {
            most.max(2)
        } else {
            2
        }
    }

    /// Notes what the peer said about its load. Work that we assigned and that the peer hasn't confirmed comes on top.
    pub(crate) fn set_load(&mut self, now: Moment, backlog_bytes: u64, rate: u64) {
        self.load.backlog_bytes = backlog_bytes.min(MOST_BACKLOG);
        if rate > 0 {
            self.load.bytes_per_second = rate;
        }
        self.load.at = now;
    }

    /// Whether we heard of its load within this time.
    pub(crate) fn spoke_within(&self, now: Moment, time: Duration) -> bool {
        self.load.at > Moment::START && now.since(self.load.at) < time
    }

    /// The peer has at least this much push work: it declined more.
    pub(crate) fn is_busy(&mut self, now: Moment, least_bytes: u64) {
        self.load.backlog_bytes = self.aged(now).max(least_bytes).min(MOST_BACKLOG);
        self.load.at = now;
    }

    pub(crate) fn assign(&mut self, bytes: u64) {
        self.load.assigned_bytes = self.load.assigned_bytes.saturating_add(bytes);
    }

    pub(crate) fn unassign(&mut self, bytes: u64) {
        self.load.assigned_bytes = self.load.assigned_bytes.saturating_sub(bytes);
    }

    /// The peer took over work that was assigned to it.
    pub(crate) fn confirm(&mut self, now: Moment, bytes: u64) {
        self.unassign(bytes);
        self.load.backlog_bytes = self.aged(now).saturating_add(bytes).min(MOST_BACKLOG);
        self.load.at = now;
    }

    /// Microseconds that the peer's outstanding push work takes, with `more` bytes on top.
    pub(crate) fn outstanding_us(&self, now: Moment, more: u64) -> u64 {
        let bytes = self
            .aged(now)
            .saturating_add(self.load.assigned_bytes)
            .saturating_add(more);
        micros(bytes, self.load.bytes_per_second)
    }

    /// Microseconds until the peer has no more than `allowed` bytes of push work left.
    pub(crate) fn excess_us(&self, now: Moment, allowed: u64) -> u64 {
        let bytes = self
            .aged(now)
            .saturating_add(self.load.assigned_bytes)
            .saturating_sub(allowed);
        micros(bytes, self.load.bytes_per_second)
    }

    fn aged(&self, now: Moment) -> u64 {
        let elapsed = u128::from(now.0.saturating_sub(self.load.at.0));
        let done = u128::from(self.load.bytes_per_second) * elapsed / 1_000_000;
        self.load
            .backlog_bytes
            .saturating_sub(u64::try_from(done).unwrap_or(u64::MAX))
    }
}

/// Upper bound of the back-off for a peer whose last transfers moved no chunk, in either direction. The back-off
/// doubles on each failure in a row.
const SILENT_MOST: Duration = Duration::from_secs(30);

/// Nothing is expected of a peer that brought nothing this many times in a row.
const BARREN: u32 = 2;

/// A peer is answered on while it owes this many microseconds of our uplink at most: an honest one that takes parts
/// isn't held up between two of them.
const OWED_MOST_US: u64 = 100_000;

/// The most push work that a peer is believed to have: a petabyte. The bound keeps sums from saturating.
const MOST_BACKLOG: u64 = 1 << 50;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_is_found_however_the_keys_lie(keys in prop::collection::btree_set(prop_oneof![any::<u64>(), 0u64..500], 0..400), others in prop::collection::vec(0u64..600, 20)) {
            let mut index = Keys::default();
            for (at, key) in keys.iter().enumerate() {
                index.insert(HostKey(*key), PeerIndex::new(at));
            }
            for (at, key) in keys.iter().enumerate() {
                prop_assert_eq!(index.get(HostKey(*key)), Some(PeerIndex::new(at)));
            }
            for key in others {
                prop_assert_eq!(index.get(HostKey(key)).is_some(), keys.contains(&key));
            }
        }
    }
}
