//! Chunks that are on their way here: accepted pushes, and requests for chunks that no push brought. A host that came
//! late, lost a push, or was restarted, asks for what it lacks.

use alloc::vec::Vec;
use core::time::Duration;

use proto::{ChunkIndex, HostKey, Moment, tie::mix};

use crate::{
    Action,
    action::Declined,
    agenda::TICK,
    choose::spread_bytes,
    content::Content,
    event::{ContentId, Spread, rank_of},
    ground::Ground,
    peer::PeerIndex,
    promises,
};

/// Chunks that are requested in one pass at most.
const WISHES: usize = 64;
/// Hedging begins when this few chunks are missing, over all contents.
const NEAR_THE_END: u64 = 8;

/// A chunk on its way.
#[derive(Clone, Debug)]
struct Download {
    peer: PeerIndex,
    id: ContentId,
    chunk: ChunkIndex,
    since: Moment,
    deadline: Moment,
    /// The hosts to which this host passes the chunk on. A request takes the spread over from a push of the same chunk
    /// that was offered meanwhile.
    spread: Option<Spread>,
}

#[derive(Debug, Default)]
pub(crate) struct Downloads {
    requests: Vec<Download>,
    /// Accepted pushes.
    incoming: Vec<Download>,
}

/// The outcome of an offered push.
pub(crate) enum Offer {
    Taken,
    Declined(Declined),
    /// The chunk is here already. This host may pass it on all the same.
    Held(PeerIndex, Option<Spread>),
}

struct Wish {
    id: ContentId,
    chunk: ChunkIndex,
}

impl Download {
    fn is(&self, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) -> bool {
        self.is_of(id, chunk) && self.peer == peer
    }

    fn is_of(&self, id: ContentId, chunk: ChunkIndex) -> bool {
        self.chunk == chunk && self.id == id
    }

    /// Whether more than half of the download's time is over.
    fn is_half_over(&self, now: Moment) -> bool {
        now.since(self.since) * 2 > self.deadline.since(self.since)
    }

    /// Whether an accepted push takes far too long.
    fn is_slow(&self, ground: &Ground) -> bool {
        let took = ground.now.since(self.since);
        took >= ground.pace.slow_push() || self.is_half_over(ground.now)
    }
}

impl Downloads {
    pub(crate) fn requests(&self) -> usize {
        self.requests.len()
    }

    #[cfg(test)]
    pub(crate) fn incoming(&self) -> usize {
        self.incoming.len()
    }

    /// Chunks of a content that are on their way.
    pub(crate) fn of(&self, id: ContentId) -> usize {
        let all = self.requests.iter().chain(&self.incoming);
        all.filter(|download| download.id == id).count()
    }

    // ---- how downloads end ----------------------------------------------------------------------------------------

    /// Notes that a chunk came from a peer. Returns the hosts to which the chunk is to be passed on.
    pub(crate) fn arrived(
        &mut self,
        ground: &mut Ground,
        peer: PeerIndex,
        id: ContentId,
        chunk: ChunkIndex,
    ) -> Option<Spread> {
        let now = ground.now;
        if let Some(at) = self.find_incoming(peer, id, chunk) {
            let incoming = self.drop_incoming(ground, at);
            ground.pace.push_took(now.0 - incoming.since.0);
            ground.grace.pushed();
            if let Some(content) = ground.contents.get_mut(id) {
                content.pushed_at = Some(now);
                if content.is_due(chunk) {
                    ground.grace.late();
                }
            }
            ground.fleet[peer].silent = 0;
            incoming.spread
        } else if let Some(at) = self.find_request(peer, id, chunk) {
            let request = self.drop_request(ground, at);
            let took = now.0 - request.since.0;
            ground.pace.answer_took(took);
            let state = &mut ground.fleet[peer];
            state.answer.add(took);
            state.silent = 0;
            ground.agenda.pull();
            request.spread
        } else {
            None
        }
    }

    /// A chunk won't come from this peer. If this host was to pass the chunk on, the sender hears of the failure and
    /// chooses another spreader. This host asks for the chunk if it misses it.
    pub(crate) fn failed(
        &mut self,
        ground: &mut Ground,
        peer: PeerIndex,
        id: ContentId,
        chunk: ChunkIndex,
    ) {
        if let Some(at) = self.find_incoming(peer, id, chunk) {
            self.drop_incoming(ground, at);
        } else if let Some(at) = self.find_request(peer, id, chunk) {
            self.drop_request(ground, at);
            ground.agenda.pull();
        }
    }

    /// The chunk is here: other downloads of it aren't needed.
    pub(crate) fn cancel_others(&mut self, ground: &mut Ground, id: ContentId, chunk: ChunkIndex) {
        let content = ground.contents.get(id);
        if content.is_some_and(|content| content.pending.contains(chunk)) {
            self.cancel(ground, |download| download.is_of(id, chunk));
        }
    }

    /// The content is dropped.
    pub(crate) fn drop_content(&mut self, ground: &mut Ground, id: ContentId) {
        self.cancel(ground, |download| download.id == id);
    }

    fn cancel(&mut self, ground: &mut Ground, which: impl Fn(&Download) -> bool) {
        for at in (0..self.requests.len()).rev() {
            if which(&self.requests[at]) {
                let request = self.drop_request(ground, at);
                ground.cancel(request.peer, request.id, request.chunk);
            }
        }
        for at in (0..self.incoming.len()).rev() {
            if which(&self.incoming[at]) {
                let incoming = self.drop_incoming(ground, at);
                ground.cancel(incoming.peer, incoming.id, incoming.chunk);
            }
        }
    }

    /// The line to a peer is gone.
    pub(crate) fn drop_peer(&mut self, ground: &mut Ground, peer: PeerIndex) {
        for at in (0..self.requests.len()).rev() {
            if self.requests[at].peer == peer {
                self.drop_request(ground, at);
            }
        }
        for at in (0..self.incoming.len()).rev() {
            if self.incoming[at].peer == peer {
                self.drop_incoming(ground, at);
            }
        }
    }

    /// Gives up downloads that take too long.
    pub(crate) fn expire(&mut self, ground: &mut Ground) {
        let now = ground.now;
        for at in (0..self.requests.len()).rev() {
            if self.requests[at].deadline <= now {
                let request = self.drop_request(ground, at);
                ground.cancel(request.peer, request.id, request.chunk);
                // an answer would have taken at least this long
                let took = now.0 - request.since.0;
                ground.fleet[request.peer].answer.add(took);
                ground.silent(request.peer);
            }
        }
        for at in (0..self.incoming.len()).rev() {
            if self.incoming[at].deadline <= now {
                let incoming = self.drop_incoming(ground, at);
                ground.cancel(incoming.peer, incoming.id, incoming.chunk);
                // this push isn't entered into the mean: one peer could stretch the time that pushes are given
                ground.silent(incoming.peer);
                promises::broke(ground, incoming.peer, incoming.id, incoming.chunk);
            }
        }
    }

    fn find_request(&self, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) -> Option<usize> {
        let mut requests = self.requests.iter();
        requests.position(|other| other.is(peer, id, chunk))
    }

    fn find_incoming(&self, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) -> Option<usize> {
        let mut incoming = self.incoming.iter();
        incoming.position(|other| other.is(peer, id, chunk))
    }

    fn drop_request(&mut self, ground: &mut Ground, at: usize) -> Download {
        let request = self.requests.swap_remove(at);
        let peer = &mut ground.fleet[request.peer];
        peer.requests = peer.requests.saturating_sub(1);
        self.settle_pending(ground, request.id, request.chunk);
        request
    }

    fn drop_incoming(&mut self, ground: &mut Ground, at: usize) -> Download {
        let incoming = self.incoming.swap_remove(at);
        self.settle_pending(ground, incoming.id, incoming.chunk);
        incoming
    }

    fn settle_pending(&self, ground: &mut Ground, id: ContentId, chunk: ChunkIndex) {
        let mut all = self.requests.iter().chain(&self.incoming);
        let under_way = all.any(|other| other.is_of(id, chunk));
        if !under_way && let Some(content) = ground.contents.get_mut(id) {
            content.pending.remove(chunk);
        }
    }

    // ---- offered pushes -------------------------------------------------------------------------------------------

    /// Bytes that this host will send for the chunks under way that it is to pass on to everyone.
    pub(crate) fn promised_bytes(&self, ground: &Ground) -> u64 {
        let coming = self.requests.iter().chain(&self.incoming);
        coming
            .filter(|download| download.spread == Some(Spread::Everyone))
            .filter(|download| !download.is_slow(ground))
            .map(|download| spread_bytes(ground, download.id, download.chunk))
            .sum()
    }

    /// Decides on an offered push. A push that is taken is noted as under way. `loaded`: this host lacks the chunk, and
    /// has too much work to pass it on.
    pub(crate) fn judge(
        &mut self,
        ground: &mut Ground,
        key: HostKey,
        (id, chunk): (ContentId, ChunkIndex),
        spread: Option<Spread>,
        loaded: bool,
    ) -> Offer {
        let now = ground.now;
        let peer = ground.fleet.find(key);
        let Some(peer) = peer.filter(|index| !ground.fleet[*index].is_quarantined()) else {
            return Offer::Declined(Declined::Quarantined);
        };
        let content = ground.contents.get_mut(id);
        let Some(content) = content.filter(|content| content.geometry.contains(chunk)) else {
            return Offer::Declined(Declined::Unwanted);
        };
        content.pushed_at = Some(now);
        let paused = content.is_paused(now);
        if loaded {
            return Offer::Declined(Declined::Busy);
        }
        if content.held.contains(chunk) {
            // this host asked for the chunk before the push came
            if spread.is_none() {
                ground.grace.late();
            }
            return Offer::Held(peer, spread);
        }
        let mut spread = spread;
        if content.pending.contains(chunk) && self.is_coming(ground, id, chunk, &mut spread) {
            return Offer::Declined(Declined::Already);
        }
        if paused || !self.has_room(ground, peer, spread.is_some()) {
            return Offer::Declined(Declined::Busy);
        }
        let limit = (ground.pace.push_takes() * ground.config.timeout_factor * 2)
            .max(ground.config.timeout_least * 5)
            .min(ground.config.limit_most);
        if let Some(content) = ground.contents.get_mut(id) {
            content.pending.insert(chunk);
        }
        self.incoming.push(Download {
            peer,
            id,
            chunk,
            since: now,
            deadline: now + limit,
            spread,
        });
        Offer::Taken
    }

    /// Whether a download under way brings the chunk in good time. If so, it takes `spread` over.
    fn is_coming(
        &mut self,
        ground: &mut Ground,
        id: ContentId,
        chunk: ChunkIndex,
        spread: &mut Option<Spread>,
    ) -> bool {
        let mut incoming = self.incoming.iter_mut();
        let download = if let Some(other) = incoming.find(|other| other.is_of(id, chunk)) {
            (!other.is_slow(ground)).then_some(other)
        } else if let Some(other) = self
            .requests
            .iter_mut()
            .find(|other| other.is_of(id, chunk))
        {
            ground.grace.late();
            (!other.is_half_over(ground.now)).then_some(other)
        } else {
            None
        };
        let Some(download) = download else {
            return false;
        };
        download.spread = download.spread.take().or_else(|| spread.take());
        true
    }

    /// Whether one more push of this peer is taken now. `spreads`: the chunk is to be passed on.
    fn has_room(&self, ground: &mut Ground, peer: PeerIndex, spreads: bool) -> bool {
        let config = &ground.config;
        // with fewer places than uploads, the fleet's pushes would wait for each other
        let bound = if ground.step_back {
            config.incoming / 4
        } else {
            config.incoming.max(config.uploads + 1)
        };
        // a chunk that others wait for has twice the room of a chunk that is for us alone
        let bound = bound.max(1) << u32::from(spreads);
        // a push that takes far too long only blocks its own sender
        let (mut slow, mut sends_slowly) = (0, false);
        for other in self.incoming.iter().filter(|other| other.is_slow(ground)) {
            slow += 1;
            sends_slowly |= other.peer == peer;
        }
        let own = self.incoming.iter().filter(|other| other.peer == peer);
        self.incoming.len() - slow < bound
            && self.incoming.len() < bound + config.slow_uploads
            && !sends_slowly
            && own.count() < config.incoming_per_peer.max(1)
            && !ground.fleet[peer].dribbles(ground.now)
            && ground.pace.may_receive(ground.now)
    }

    // ---- requests -------------------------------------------------------------------------------------------------

    /// Requests chunks while there is room.
    pub(crate) fn pull(&mut self, ground: &mut Ground) {
        if ground.contents.is_complete() || ground.fleet.up().is_empty() {
            return;
        }
        let bound = if ground.step_back {
            2
        } else {
            ground.config.requests
        };
        // contents of lower ranks have nothing that can be asked for now
        let mut from = 0;
        while self.requests.len() < bound && ground.pace.may_receive(ground.now) {
            let (wishes, rank) = wishes(ground, from);
            let mut asked = 0;
            for wish in &wishes {
                if self.requests.len() >= bound || !ground.pace.may_receive(ground.now) {
                    return;
                }
                if let Some(peer) = pick_source(ground, wish.id, wish.chunk, None) {
                    self.request(ground, peer, wish.id, wish.chunk);
                    asked += 1;
                }
            }
            if wishes.len() < WISHES {
                break;
            }
            if asked == 0 {
                from = rank + 1;
            }
        }
        self.hedge(ground);
        self.overtake(ground);
    }

    fn request(&mut self, ground: &mut Ground, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) {
        let Some(content) = ground.contents.get_mut(id) else {
            return;
        };
        content.pending.insert(chunk);
        let state = &mut ground.fleet[peer];
        state.requests += 1;
        let expected = ground.pace.answer_takes(state.answer.us());
        let limit = (expected * ground.config.timeout_factor)
            .max(ground.config.timeout_least)
            .min(ground.config.limit_most);
        let key = state.key;
        ground.act(Action::Request {
            peer: key,
            id,
            chunk,
        });
        self.requests.push(Download {
            peer,
            id,
            chunk,
            since: ground.now,
            deadline: ground.now + limit,
            spread: None,
        });
    }

    /// Near the end, asks a second peer for chunks that take long. The end is that of the first image and of all that
    /// clients wait for: later images don't hold it up.
    fn hedge(&mut self, ground: &mut Ground) {
        let rank = first_rank(ground);
        let missing: u64 = missing(ground, rank).sum();
        if missing > NEAR_THE_END {
            return;
        }
        for at in 0..self.requests.len() {
            let request = &self.requests[at];
            let (peer, id, chunk) = (request.peer, request.id, request.chunk);
            let content = ground.contents.get(id);
            if content.is_none_or(|content| rank_of(content.order()) > rank) {
                continue;
            }
            let same = self.requests.iter();
            let same = same.filter(|other| other.is_of(id, chunk)).count();
            let expected = Duration::from_micros(ground.pace.answer_us().max(1)) * 2;
            if same > 1
                || ground.now.since(request.since) < expected.max(TICK)
                || self.requests.len() >= ground.config.requests
            {
                continue;
            }
            if let Some(other) = pick_source(ground, id, chunk, Some(peer)) {
                self.request(ground, other, id, chunk);
            }
        }
    }

    /// Asks another peer for the chunk of a push that takes long.
    fn overtake(&mut self, ground: &mut Ground) {
        for at in 0..self.incoming.len() {
            let incoming = &self.incoming[at];
            let (peer, id, chunk) = (incoming.peer, incoming.id, incoming.chunk);
            if incoming.is_slow(ground)
                && self.requests.len() < ground.config.requests
                && !self.requests.iter().any(|other| other.is_of(id, chunk))
                && let Some(other) = pick_source(ground, id, chunk, Some(peer))
            {
                self.request(ground, other, id, chunk);
            }
        }
    }
}

/// Every grace time, announced chunks come a step nearer to being asked for.
pub(crate) fn turn_grace(ground: &mut Ground) {
    let least = ground.spread_time().max(ground.config.grace_least);
    if !ground.grace.turn(ground.now, least) {
        return;
    }
    let incomplete: Vec<ContentId> = ground.contents.incomplete().map(|(_, id)| id).collect();
    for id in incomplete {
        if let Some(content) = ground.contents.get_mut(id) {
            content.turn();
        }
    }
}

/// The rank of the image that this host finishes first. Lower ranks than an image's are what clients wait for.
fn first_rank(ground: &Ground) -> u32 {
    let incomplete = ground.contents.incomplete();
    let mut ranks = incomplete.map(|(order, _)| rank_of(order));
    ranks.find(|rank| *rank > 0).unwrap_or(0)
}

/// How many chunks are missing of each incomplete content of this rank and of lower ones.
fn missing(ground: &Ground, rank: u32) -> impl Iterator<Item = u64> {
    let incomplete = ground.contents.incomplete();
    incomplete
        .take_while(move |(order, _)| rank_of(*order) <= rank)
        .filter_map(|(_, id)| ground.contents.get(id))
        .map(|content| u64::from(content.chunks() - content.held.count()))
}

/// Whether this host has nearly all of the image that it finishes first: it lacks no more chunks than one spread has
/// targets, so its line brings them within the time of one spread. Then nothing is waited for that other hosts hold:
/// chunks that wait in one spreader's queue come sooner from the many hosts that have them, and their uplinks have
/// little else to do (simulator, 1,000 hosts × 5 GB: makespan over bound 1.66 without, 1.21 with it).
fn is_at_the_end(ground: &Ground, rank: u32) -> bool {
    let targets = ground.fleet.roster().len();
    let most = targets.min(ground.config.direct_targets) as u64;
    let mut chunks = 0;
    missing(ground, rank).all(|more| {
        chunks += more;
        chunks <= most
    })
}

/// Whether no push of this content is waited for: then its chunks are asked for at once.
fn at_once(ground: &Ground, content: &Content, at_the_end: bool) -> bool {
    if at_the_end && content.is_complete_elsewhere() {
        return true;
    }
    if content
        .lease
        .as_ref()
        .is_some_and(|lease| lease.range.is_none())
    {
        return true;
    }
    let (grace, config) = (ground.grace.time(), &ground.config);
    let quiet = content
        .pushed_at
        .map_or(Duration::MAX, |at| ground.now.since(at));
    if content.is_complete_elsewhere() {
        quiet >= grace.min(config.grace.max(config.grace_least))
    } else {
        quiet >= grace * 2
    }
}

/// The chunks to ask for next, of contents of this rank or higher ones, and the highest rank that was looked at.
/// Contents come in their order. In a content the chunks come first that a reader needs next, and then the rarest ones.
/// A hash that differs between hosts breaks ties.
fn wishes(ground: &Ground, from: u32) -> (Vec<Wish>, u32) {
    let mut wishes: Vec<(u32, usize, u64, Wish)> = Vec::new();
    let incomplete = ground.contents.incomplete();
    let first = first_rank(ground);
    let at_the_end = is_at_the_end(ground, first);
    let mut rank = from;
    for (order, id) in incomplete.filter(|(order, _)| rank_of(*order) >= from) {
        rank = rank_of(order);
        let Some(content) = ground.contents.get(id) else {
            continue;
        };
        if !content.is_heard_of() || content.is_paused(ground.now) {
            continue;
        }
        // more chunks are looked at than are taken, so that rarity has a say
        let most = WISHES * 8;
        let at_once = at_once(ground, content, at_the_end && rank <= first);
        let read_to = content.next_read().last();
        let mut seen = 0;
        content.visit_askable(at_once, |chunk| {
            let rarity = content.rarity(chunk);
            if rarity > 0 && read_to.is_some_and(|last| chunk <= last) {
                wishes.push((order, 0, chunk.0.into(), Wish { id, chunk }));
                seen += 1;
            } else if rarity > 0 {
                let tie = mix(ground.me.0 ^ content.key, u64::from(chunk.0));
                wishes.push((order, rarity, tie, Wish { id, chunk }));
                seen += 1;
            }
            seen < most
        });
        if wishes.len() >= WISHES {
            break;
        }
    }
    wishes.sort_unstable_by_key(|(order, rarity, tie, _)| (*order, *rarity, *tie));
    let first = wishes.into_iter().take(WISHES);
    (first.map(|(_, _, _, wish)| wish).collect(), rank)
}

/// The least busy peer that has the chunk and may be asked now, other than `except`.
fn pick_source(
    ground: &Ground,
    id: ContentId,
    chunk: ChunkIndex,
    except: Option<PeerIndex>,
) -> Option<PeerIndex> {
    let content = ground.contents.get(id)?;
    let most = ground.config.requests_per_peer;
    let heard = ground.fleet.heard().filter(|index| {
        let peer = &ground.fleet[*index];
        Some(*index) != except
            && peer.is_up()
            && peer.not_asked_before <= ground.now
            && peer.requests < peer.allowance(most)
            && content.peer_has(peer.slot, chunk)
    });
    heard.min_by_key(|index| {
        let peer = &ground.fleet[*index];
        let answer = peer.answer.us().max(1);
        (
            (peer.requests as u64 + 1).saturating_mul(answer),
            mix(ground.me.0, peer.key.0 ^ u64::from(chunk.0)),
        )
    })
}
