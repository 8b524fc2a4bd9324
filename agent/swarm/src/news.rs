//! Announcements: what we hold and how busy we are, and what others say of themselves.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::time::Duration;

use proto::{ChunkSet, HostKey, Moment};

use crate::{Action, event::ContentId, ground::Ground, peer::PeerIndex, promises};

/// Whoever handed us a chunk to spread within this time chooses among us again: it hears of our load often.
const CHOSEN_LATELY: Duration = Duration::from_secs(10);
/// All others now and then, for they may become lease holders: a hundred small messages a second in all.
const LOAD_TO_EACH: Duration = Duration::from_millis(10);
/// A quarter of that where chunks are spread in parts: whoever chooses among us does so often, and hears of us anyway.
const LOAD_TO_EACH_IN_PARTS: Duration = Duration::from_millis(40);
/// Both ends of a new connection tell all they hold at once; what is announced anew later is a question. That a peer
/// holds nothing of a content is one at any time: no introduction says so.
const INTRODUCED: Duration = Duration::from_secs(2);
/// Choosers remembered at one time.
const CHOOSERS: usize = 64;
/// While pushes bring everything, announcements only serve healing, which waits for seconds anyway.
const LAZY: Duration = Duration::from_secs(1);
/// Who offered a link that isn't taken is asked again what it has after this long.
const DISPROVED_FOR: Duration = Duration::from_secs(2);
/// Whoever was asked for chunks within this time announces eagerly.
const ASKED_LATELY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct News {
    /// Contents of which something isn't announced yet, and when it is.
    unannounced: BTreeSet<ContentId>,
    announce_at: Option<Moment>,
    /// Contents of which peers offered links that aren't taken, and since when.
    disproved: BTreeMap<ContentId, Moment>,
    /// When a peer last requested something.
    served_at: Option<Moment>,
    /// Who handed us chunks to spread, and when last.
    choosers: Vec<(PeerIndex, Moment)>,
    /// The load that all were told last: push work, and our upload rate.
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

    /// A chunk came, which others are told of before long.
    pub(crate) fn came(&mut self, ground: &Ground, id: ContentId) {
        self.unannounced.insert(id);
        if self.announce_at.is_none() {
            self.announce_at = Some(ground.now + self.every(ground));
        }
    }

    /// A chunk was lost: what was announced is taken back.
    pub(crate) fn lost(&mut self, now: Moment, id: ContentId) {
        self.unannounced.insert(id);
        self.announce_at.get_or_insert(now);
    }

    pub(crate) fn drop_content(&mut self, id: ContentId) {
        self.unannounced.remove(&id);
    }

    /// A peer offered a link that isn't taken.
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

    /// Whose links weren't taken may have verified its copy since, and vouches for it: what neighbours have is asked
    /// anew.
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

    /// Tells neighbours what is new, and others our load, where that is due. `backlog_bytes`: the pushes that lie
    /// before us.
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

fn tell_load(ground: &mut Ground, index: PeerIndex, backlog_bytes: u64) {
    let (peer, rate) = (ground.fleet[index].key, ground.pace.rate());
    ground.act(Action::AnnounceLoad {
        peer,
        backlog_bytes,
        upload_bytes_per_second: rate,
    });
}

/// Tells a peer that has just come everything that it should know: also what we hold nothing of and want. Who was here
/// before may have missed what we said then, and that it is asked shows it that it has to say what it holds.
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

/// Tells all neighbours all of one content.
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

/// Tells neighbours what is new of a content, or all of it where something was lost.
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
        // who has it all needs no news
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

/// A peer announces a content anew, and not because it has just connected: it may have learnt of it only now, and what
/// we announced before was lost on it. It is told again; not as a reset, so that it doesn't answer in turn.
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
        // whoever claims more would be chosen to spread every chunk, whatever lies before it
        let assumed = ground.config.assumed_rate_bytes_per_second;
        let ours = ground.pace.rate().max(assumed);
        let rate = rate.min(ours.saturating_mul(ground.config.believed_rate));
        let now = ground.now;
        ground.fleet[index].set_load(now, backlog_bytes, rate);
        ground.agenda.assign();
    }
}
