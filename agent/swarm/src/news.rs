//! Announcements: the chunks that we hold, our load, and what other hosts announce of theirs.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::time::Duration;

use proto::{ChunkSet, HostKey, Moment};

use crate::{Action, event::ContentId, ground::Ground, peer::PeerIndex, promises};

/// A host that handed us a chunk to spread within this time may choose us again, so it hears of our load often.
const CHOSEN_LATELY: Duration = Duration::from_secs(10);
/// All other hosts hear of our load after this time for each connected host, since they may become lease holders. That
/// is a hundred small messages a second in all.
const LOAD_TO_EACH: Duration = Duration::from_millis(10);
/// Where chunks are spread in parts, a quarter of those messages: the hosts that choose us do so often, and hear of us
/// anyway.
const LOAD_TO_EACH_IN_PARTS: Duration = Duration::from_millis(40);
/// For this long after a connection begins, full announcements are introductions: both ends tell all that they hold. A
/// full announcement that comes later is a question. An announcement that a peer holds nothing of a content is a
/// question at any time.
const INTRODUCED: Duration = Duration::from_secs(2);
/// The most choosers that are remembered at one time.
const CHOOSERS: usize = 64;
/// The shortest time between announcements while pushes bring everything. Announcements then only help to find lost
/// chunks, which takes seconds anyway.
const LAZY: Duration = Duration::from_secs(1);
/// After this long, peers are asked again what they hold of a content of which a link wasn't taken.
const DISPROVED_FOR: Duration = Duration::from_secs(2);
/// A host that was asked for chunks within this time announces eagerly.
const ASKED_LATELY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct News {
    /// Contents with chunks that aren't announced yet, and the moment at which they are announced.
    unannounced: BTreeSet<ContentId>,
    announce_at: Option<Moment>,
    /// Contents of which peers offered links that weren't taken, and the moment of the first.
    disproved: BTreeMap<ContentId, Moment>,
    /// When a peer last requested something.
    served_at: Option<Moment>,
    /// The hosts that handed us chunks to spread, and the last time at which each did.
    choosers: Vec<(PeerIndex, Moment)>,
    /// The load that all hosts were told last: bytes of push work, and our upload rate.
    announced: (u64, u64),
    load_at: Moment,
    load_to_all_at: Moment,
}

impl News {
    pub(crate) const fn new() -> Self {
        Self {
            unannounced: BTreeSet::new(),
            announce_at: None,
            disproved: BTreeMap::new(),
            served_at: None,
            choosers: Vec::new(),
            announced: (0, 0),
            load_at: Moment::START,
            load_to_all_at: Moment::START,
        }
    }

    /// Whether something is to be announced.
    pub(crate) const fn is_due(&self) -> bool {
        self.announce_at.is_some()
    }

    // ---- what happens here ----------------------------------------------------------------------------------------

    /// A chunk came. Others are told of it before long.
    pub(crate) fn came(&mut self, ground: &Ground, id: ContentId) {
        self.unannounced.insert(id);
        if self.announce_at.is_none() {
            self.announce_at = Some(ground.now + self.every(ground));
        }
    }

    /// A chunk was lost: its announcement is taken back.
    pub(crate) fn lost(&mut self, now: Moment, id: ContentId) {
        self.unannounced.insert(id);
        self.announce_at.get_or_insert(now);
    }

    pub(crate) fn drop_content(&mut self, id: ContentId) {
        self.unannounced.remove(&id);
    }

    /// A peer offered a link that wasn't taken.
    pub(crate) fn disproved(&mut self, now: Moment, id: ContentId) {
        self.disproved.entry(id).or_insert(now);
    }

    /// A peer requested something.
    pub(crate) const fn served(&mut self, now: Moment) {
        self.served_at = Some(now);
    }

    /// The peer chose us to spread something.
    pub(crate) fn chosen_by(&mut self, now: Moment, index: PeerIndex) {
        if let Some(entry) = self.choosers.iter_mut().find(|(peer, _)| *peer == index) {
            entry.1 = now;
        } else if self.choosers.len() < CHOOSERS {
            self.choosers.push((index, now));
        }
    }

    pub(crate) fn forget_peer(&mut self, index: PeerIndex) {
        self.choosers.retain(|(peer, _)| *peer != index);
    }

    /// The time between two announcements.
    fn every(&self, ground: &Ground) -> Duration {
        let asked = self.served_at;
        let asked = asked.is_some_and(|at| ground.now.since(at) < ASKED_LATELY);
        if asked || !ground.grace.sees_pushes() {
            ground.config.announce_every
        } else {
            ground.config.announce_every.max(LAZY)
        }
    }

    // ---- announcing -----------------------------------------------------------------------------------------------

    /// A peer whose links weren't taken may have verified its copy since, and may vouch for the chunks. So neighbours
    /// are asked anew what they have.
    pub(crate) fn ask_for_vouchers(&mut self, ground: &mut Ground) {
        let now = ground.now;
        let due = |at: &Moment| now.since(*at) >= DISPROVED_FOR;
        let over: Vec<ContentId> = self
            .disproved
            .iter()
            .filter_map(|(id, at)| due(at).then_some(*id))
            .collect();
        for id in over {
            self.disproved.remove(&id);
            let Some(content) = ground.contents.get_mut(id) else {
                continue;
            };
            if !content.held.is_full() {
                content.announce_anew = true;
                self.lost(now, id);
            }
        }
    }

    /// Tells neighbours of new chunks, and others our load, where that is due. `backlog_bytes`: the pushes that we have
    /// yet to send.
    pub(crate) fn announce(&mut self, ground: &mut Ground, backlog_bytes: u64) {
        if self.announce_at.is_some_and(|at| at <= ground.now) {
            self.announce_at = None;
            for id in core::mem::take(&mut self.unannounced) {
                announce_new(ground, id);
            }
        }
        self.announce_load(ground, backlog_bytes);
    }

    fn announce_load(&mut self, ground: &mut Ground, backlog_bytes: u64) {
        let (now, rate) = (ground.now, ground.pace.rate());
        let (announced_backlog, announced_rate) = self.announced;
        let moved = backlog_bytes != announced_backlog || rate.abs_diff(announced_rate) > rate / 8;
        if !moved || self.load_at > now {
            return;
        }
        self.load_at = now + ground.config.load_every;
        let up = ground.fleet.up();
        let all = self.load_to_all_at <= now || up.len() <= ground.config.candidates;
        let each = if ground.fleet.roster().len() > ground.config.direct_targets {
            LOAD_TO_EACH_IN_PARTS
        } else {
            LOAD_TO_EACH
        };
        if all {
            self.load_to_all_at = now + each * u32::try_from(up.len()).unwrap_or(u32::MAX);
            self.announced = (backlog_bytes, rate);
        }
        let lately = |at: Moment| now.since(at) < CHOSEN_LATELY;
        self.choosers
            .retain(|(index, at)| lately(*at) && ground.fleet[*index].is_up());
        let choosers = self.choosers.iter().map(|(index, _)| *index);
        let to: Vec<PeerIndex> = if all { up.to_vec() } else { choosers.collect() };
        for index in to {
            tell_load(ground, index, backlog_bytes);
        }
    }
}

/// Tells a peer how much push work we have.
pub(crate) fn tell_load(ground: &mut Ground, index: PeerIndex, backlog_bytes: u64) {
    let (peer, rate) = (ground.fleet[index].key, ground.pace.rate());
    ground.act(Action::AnnounceLoad {
        peer,
        backlog_bytes,
        upload_bytes_per_second: rate,
    });
}

/// Tells a peer that has just connected everything that it should know, also the contents that we want and hold nothing
/// of. The peer may have missed our earlier announcements. An announcement that we hold nothing of a content is a
/// question too: the peer answers with its chunks.
pub(crate) fn introduce(ground: &mut Ground, index: PeerIndex, backlog_bytes: u64) {
    tell_load(ground, index, backlog_bytes);
    let peer = &ground.fleet[index];
    if !peer.neighbour {
        return;
    }
    for (id, content) in ground.contents.iter() {
        if content.entitles(peer.key) {
            ground.actions.push_back(Action::Announce {
                peer: peer.key,
                id,
                chunks: content.held.clone(),
                reset: true,
            });
        }
    }
}

/// Tells all neighbours which chunks of one content we hold.
pub(crate) fn announce_all_of(ground: &mut Ground, id: ContentId) {
    let Some(content) = ground.contents.get(id) else {
        return;
    };
    for index in ground.fleet.neighbours() {
        let peer = &ground.fleet[*index];
        if peer.is_up() && content.entitles(peer.key) {
            ground.actions.push_back(Action::Announce {
                peer: peer.key,
                id,
                chunks: content.held.clone(),
                reset: true,
            });
        }
    }
}

/// Tells neighbours which chunks of a content are new, or all that we hold where a chunk was lost.
fn announce_new(ground: &mut Ground, id: ContentId) {
    let Some(content) = ground.contents.get_mut(id) else {
        return;
    };
    let empty = ChunkSet::empty(content.chunks());
    let news = core::mem::replace(&mut content.unannounced, empty);
    if core::mem::take(&mut content.announce_anew) {
        announce_all_of(ground, id);
        return;
    }
    if news.is_empty() {
        return;
    }
    for index in ground.fleet.neighbours() {
        let peer = &ground.fleet[*index];
        // a peer that has the whole content needs no news
        if peer.is_up() && !content.is_full_at(peer.slot) && content.entitles(peer.key) {
            ground.actions.push_back(Action::Announce {
                peer: peer.key,
                id,
                chunks: news.clone(),
                reset: false,
            });
        }
    }
}

// ---- what others say ----------------------------------------------------------------------------------------------

/// A peer announces chunks.
pub(crate) fn hear(
    ground: &mut Ground,
    key: HostKey,
    id: ContentId,
    chunks: &ChunkSet,
    reset: bool,
) {
    let Some(index) = ground.fleet.find(key) else {
        return;
    };
    if !ground.fleet[index].is_up() {
        return;
    }
    let content = ground.contents.get(id);
    if content.is_none_or(|content| content.chunks() != chunks.chunks()) {
        return;
    }
    let Some(slot) = ground.fleet.slot(index) else {
        return;
    };
    if promises::is_disbelieved(ground, index, id, chunks, reset) {
        return;
    }
    if let Some(content) = ground.contents.get_mut(id) {
        content.set_unwanted_by(index, false);
        content.hear(ground.now, slot, chunks, reset);
        if content.pushed_at.is_none() && content.is_complete_elsewhere() {
            ground.agenda.pull();
        }
    }
    let introduced = ground.now.since(ground.fleet[index].up_since) >= INTRODUCED;
    if reset && (introduced || chunks.is_empty()) {
        answer_news(ground, index, id);
    }
}

/// Answers a peer that announces a content anew, and not because it has just connected. The peer may have learnt of the
/// content only now, so that our earlier announcements were lost on it. The answer isn't a reset, so that the peer
/// doesn't answer in turn.
fn answer_news(ground: &mut Ground, index: PeerIndex, id: ContentId) {
    let peer = &ground.fleet[index];
    if let Some(content) = ground.contents.get(id)
        && peer.neighbour
        && content.entitles(peer.key)
        && !content.held.is_empty()
    {
        ground.actions.push_back(Action::Announce {
            peer: peer.key,
            id,
            chunks: content.held.clone(),
            reset: false,
        });
    }
}

/// A peer says how busy it is.
pub(crate) fn hear_load(ground: &mut Ground, key: HostKey, backlog_bytes: u64, rate: u64) {
    if let Some(index) = ground.fleet.find(key) {
        // a host that claims more would be chosen to spread every chunk, however much work it has
        let assumed = ground.config.assumed_rate_bytes_per_second;
        let ours = ground.pace.rate().max(assumed);
        let rate = rate.min(ours.saturating_mul(ground.config.believed_rate));
        let now = ground.now;
        ground.fleet[index].set_load(now, backlog_bytes, rate);
        ground.agenda.assign();
    }
}
