//! The swarm itself: state, and how events change it. What it decides lies in the modules below: `fleet` (roster,
//! connections, trust), `lease` (fetching from the registry), `push` (passing chunks on), `pull` (asking for what no
//! push brought), `serve` (answering), `news` (announcements), `promise` (promises that peers break), `report` (status).

mod fleet;
mod lease;
mod news;
mod promise;
mod pull;
mod push;
mod report;
mod serve;

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    vec::Vec,
};
use core::time::Duration;

use proto::{ChunkIndex, ChunkSet, Geometry, HostKey, Moment};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

use self::{
    push::{Handover, Job},
    serve::Waiting,
};
use crate::{
    Action, Config, Event,
    bucket::Bucket,
    content::Content,
    event::{ContentId, Delivery, Entitled, Failure, Spread, Ticket},
    peer::{Keys, Peer, PeerIndex},
    want::Wants,
};

/// How often time-outs, announcements and retries are looked at. Well below every time that matters to them.
const TICK: Duration = Duration::from_millis(250);
/// The same when nothing is wanted and nobody waits.
const IDLE_TICK: Duration = Duration::from_secs(2);
/// A transfer that takes so many times what others take is slow, and so is none that takes less than this.
const SLOW: (u32, Duration) = (8, Duration::from_millis(500));
/// Whoever didn't want a content is offered it again after this long: orders to stage reach hosts at different times.
const UNWANTED_FOR: Duration = Duration::from_secs(5);

/// One host's part of the swarm.
#[derive(Debug)]
pub struct Swarm {
    me: HostKey,
    config: Config,
    rng: ChaCha8Rng,
    now: Moment,
    actions: VecDeque<Action>,

    peers: Vec<Peer>,
    free_peers: Vec<PeerIndex>,
    by_key: Keys,
    quarantined: Vec<PeerIndex>,
    /// The roster by zone and key: the same order on every host.
    roster: Vec<PeerIndex>,
    up: Vec<PeerIndex>,
    neighbours: Vec<PeerIndex>,
    slots: Vec<Option<PeerIndex>>,
    dials: usize,

    contents: BTreeMap<ContentId, Content>,
    incomplete: BTreeSet<(u32, ContentId)>,
    unannounced: BTreeSet<ContentId>,
    /// Contents of which peers offered links that aren't taken, and since when.
    disproved: BTreeMap<ContentId, Moment>,
    leased: BTreeSet<ContentId>,
    wants: Wants,

    requests: Vec<Request>,
    incoming: Vec<Incoming>,
    uploads: Vec<Upload>,
    waiting: Vec<Waiting>,
    /// Chunks from the registry that have no spreader yet.
    unassigned: VecDeque<(ContentId, ChunkIndex)>,
    handovers: VecDeque<Handover>,
    jobs: VecDeque<Job>,
    next_job: u64,
    /// Bytes of pushes that lie before us.
    backlog_bytes: u64,

    up_bucket: Bucket,
    down_bucket: Bucket,
    /// Measured upload rate, bytes per second.
    rate: u64,
    rate_measured: bool,
    busy_since: Option<Moment>,
    busy_us: u64,
    busy_bytes: u64,
    /// How long what we send takes until it is received, smoothed, in microseconds; 0 before the first.
    sent_us: u64,
    /// How long accepted pushes take, smoothed, in microseconds; 0 before the first.
    push_us: u64,
    /// How long answers take, over all peers.
    answer_us: u64,
    step_back: bool,

    coordinator: bool,
    coordinator_lost_at: Moment,
    headless: bool,

    grace: Duration,
    turn_at: Moment,
    /// Pushes since the last turn that came for chunks that were due already.
    late_pushes: u32,
    pushes: u32,

    tick_at: Moment,
    /// Something can go on at this moment that a tick would be late for.
    soon: Option<Moment>,
    announce_at: Option<Moment>,
    load_at: Moment,
    load_to_all_at: Moment,
    forget_unwanted_at: Moment,
    /// Who handed us chunks to spread, and when last.
    choosers: Vec<(PeerIndex, Moment)>,
    announced_backlog: u64,
    announced_rate: u64,
    served_at: Option<Moment>,
    /// What the event at hand may have made possible.
    pull_wanted: bool,
    assign_wanted: bool,
    order_wanted: bool,
    upload_wanted: bool,
}

#[derive(Clone, Debug)]
struct Request {
    peer: PeerIndex,
    id: ContentId,
    chunk: ChunkIndex,
    since: Moment,
    deadline: Moment,
    /// To whom it shall be passed on, when a push of the same chunk was offered meanwhile.
    spread: Option<Spread>,
}

#[derive(Clone, Debug)]
struct Incoming {
    peer: PeerIndex,
    id: ContentId,
    chunk: ChunkIndex,
    since: Moment,
    deadline: Moment,
    spread: Option<Spread>,
}

#[derive(Clone, Debug)]
struct Upload {
    peer: PeerIndex,
    id: ContentId,
    chunk: ChunkIndex,
    ticket: Option<Ticket>,
    purpose: Purpose,
    since: Moment,
    /// It takes far too long: what it was for goes on without it, and it holds up no other.
    slow: bool,
}

#[derive(Clone, Debug)]
enum Purpose {
    Handover(Handover),
    Spread {
        job: u64,
        tries: u8,
    },
    /// Nothing depends on how it ends.
    Answer,
}

impl Swarm {
    /// An empty swarm of this host.
    #[must_use]
    pub fn new(me: HostKey, config: Config, seed: u64) -> Self {
        let grace = config.grace;
        let rate = config.assumed_rate_bytes_per_second.max(1);
        Self {
            me,
            config,
            rng: ChaCha8Rng::seed_from_u64(seed),
            now: Moment::START,
            actions: VecDeque::new(),
            peers: Vec::new(),
            free_peers: Vec::new(),
            by_key: Keys::default(),
            quarantined: Vec::new(),
            roster: Vec::new(),
            up: Vec::new(),
            neighbours: Vec::new(),
            slots: Vec::new(),
            dials: 0,
            contents: BTreeMap::new(),
            incomplete: BTreeSet::new(),
            unannounced: BTreeSet::new(),
            disproved: BTreeMap::new(),
            leased: BTreeSet::new(),
            wants: Wants::default(),
            requests: Vec::new(),
            incoming: Vec::new(),
            uploads: Vec::new(),
            waiting: Vec::new(),
            unassigned: VecDeque::new(),
            handovers: VecDeque::new(),
            jobs: VecDeque::new(),
            next_job: 0,
            backlog_bytes: 0,
            up_bucket: Bucket::unlimited(),
            down_bucket: Bucket::unlimited(),
            rate,
            rate_measured: false,
            busy_since: None,
            busy_us: 0,
            busy_bytes: 0,
            sent_us: 0,
            push_us: 0,
            answer_us: 0,
            step_back: false,
            coordinator: false,
            coordinator_lost_at: Moment::START,
            headless: false,
            grace,
            turn_at: Moment::START,
            late_pushes: 0,
            pushes: 0,
            tick_at: Moment::START,
            soon: None,
            announce_at: None,
            load_at: Moment::START,
            load_to_all_at: Moment::START,
            forget_unwanted_at: Moment::START,
            choosers: Vec::new(),
            announced_backlog: 0,
            announced_rate: 0,
            served_at: None,
            pull_wanted: false,
            assign_wanted: false,
            order_wanted: false,
            upload_wanted: false,
        }
    }

    /// Takes note of what happened. Any event is legal in any state. `now` never goes back; where it does, the latest
    /// moment seen counts.
    pub fn handle(&mut self, now: Moment, event: Event) {
        self.now = self.now.max(now);
        match event {
            Event::Roster(roster) => self.set_roster(&roster),
            Event::Coordinator(up) => self.set_coordinator(up),
            Event::Connected(peer) => self.connected(peer),
            Event::Disconnected(peer) => self.disconnected(peer),
            Event::Content {
                id,
                key,
                size,
                held,
                order,
                entitled,
            } => self.set_content(id, key, size, held, order, entitled),
            Event::Dropped(id) => self.drop_content(id),
            Event::Wanted {
                id,
                alone_after,
                admitted,
            } => self.want(id, alone_after, admitted),
            Event::Unwanted(id) => self.unwant(id),
            Event::Coming(id) => self.wants.heard(self.now, id),
            Event::ChunkLost { id, chunk } => self.lose_chunk(id, chunk),
            Event::Announced {
                peer,
                id,
                chunks,
                reset,
            } => self.hear(peer, id, &chunks, reset),
            Event::Load {
                peer,
                backlog_bytes,
                upload_bytes_per_second,
            } => self.hear_load(peer, backlog_bytes, upload_bytes_per_second),
            Event::Leased(id) => self.take_lease(id),
            Event::LeaseLost(id) => self.lose_lease(id),
            Event::OriginChunk {
                id,
                chunk,
                wire_bytes,
            } => self.origin_chunk(id, chunk, wire_bytes),
            Event::OriginEnded { id, end } => self.origin_ended(id, end),
            Event::Offered {
                ticket,
                peer,
                id,
                chunk,
                spread,
            } => self.offered(ticket, peer, id, chunk, spread),
            Event::Arrived {
                peer,
                id,
                chunk,
                wire_bytes,
            } => self.arrived(peer, id, chunk, wire_bytes),
            Event::NotArrived {
                peer,
                id,
                chunk,
                failure,
            } => self.not_arrived(peer, id, chunk, failure),
            Event::Requested {
                ticket,
                peer,
                id,
                chunk,
            } => self.requested(ticket, peer, id, chunk),
            Event::Withdrawn(ticket) => self.waiting.retain(|waiting| waiting.ticket != ticket),
            Event::Sent {
                peer,
                id,
                chunk,
                ticket,
                delivery,
                wire_bytes,
            } => self.sent(peer, id, chunk, ticket, delivery, wire_bytes),
            Event::Blamed(peer) => self.blamed(peer),
            Event::Bandwidth {
                upload_bytes_per_second,
                download_bytes_per_second,
            } => {
                self.up_bucket.set_rate(self.now, upload_bytes_per_second);
                self.down_bucket
                    .set_rate(self.now, download_bytes_per_second);
            }
            Event::StepBack(step_back) => self.step_back = step_back,
            Event::Tick => {}
        }
        if self.soon.is_some_and(|soon| soon <= self.now) {
            self.soon = None;
            self.assign_wanted = true;
            self.upload_wanted = true;
        }
        if self.now >= self.tick_at {
            self.tick();
        }
        self.settle();
    }

    /// The next thing to do; to be called until `None` after every [`handle`](Self::handle).
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Moment> {
        if self.roster.is_empty() && self.contents.is_empty() {
            return None;
        }
        Some(self.soon.map_or(self.tick_at, |at| at.min(self.tick_at)))
    }

    /// Whatever has become possible.
    fn settle(&mut self) {
        if core::mem::take(&mut self.assign_wanted) {
            self.assign_fresh();
        }
        if core::mem::take(&mut self.order_wanted) {
            self.order_from_origin();
        }
        if core::mem::take(&mut self.pull_wanted) {
            self.pull();
        }
        if core::mem::take(&mut self.upload_wanted) {
            self.fill_uploads();
        }
    }

    /// Looks at everything again at this moment, if not before.
    fn wake_at(&mut self, due: Moment) {
        self.soon = Some(self.soon.map_or(due, |soon| soon.min(due)));
    }

    fn tick(&mut self) {
        let busy = !self.incomplete.is_empty()
            || !self.jobs.is_empty()
            || !self.handovers.is_empty()
            || !self.uploads.is_empty()
            || !self.waiting.is_empty()
            || self.announce_at.is_some()
            || self.leaves_dialling_to_others();
        self.tick_at = self.now + if busy { TICK } else { IDLE_TICK };
        self.release_quarantined();
        self.dial_about();
        self.expire();
        self.forget_promises();
        self.ask_for_vouchers();
        self.watch_uploads();
        self.turn_grace();
        self.watch_coordinator();
        self.fetch_alone();
        self.announce();
        if self.forget_unwanted_at <= self.now {
            self.forget_unwanted_at = self.now + UNWANTED_FOR;
            for content in self.contents.values_mut() {
                content.forget_unwanted();
            }
        }
        self.pull_wanted = true;
        self.assign_wanted = true;
        self.order_wanted = true;
        self.upload_wanted = true;
    }

    fn set_content(
        &mut self,
        id: ContentId,
        key: u64,
        size: u64,
        held: ChunkSet,
        order: u32,
        entitled: Entitled,
    ) {
        if let Some(content) = self.contents.get_mut(&id) {
            if self.incomplete.remove(&(content.order, id)) {
                self.incomplete.insert((order, id));
            }
            content.order = order;
            if content.entitled != entitled {
                content.entitled = entitled;
                // who may have it now hasn't heard of it
                self.announce_all_of(id);
            }
            return;
        }
        let Ok(geometry) = Geometry::new(size) else {
            return;
        };
        let held = if held.chunks() == geometry.chunks() {
            held
        } else {
            ChunkSet::empty(geometry.chunks())
        };
        let mut content = Content::new(self.now, key, geometry, order, held);
        content.entitled = entitled;
        if !content.held.is_full() {
            self.incomplete.insert((order, id));
        }
        self.contents.insert(id, content);
        self.announce_all_of(id);
        self.wake();
    }

    fn drop_content(&mut self, id: ContentId) {
        self.end_lease(id);
        self.wants.end(id);
        let Some(content) = self.contents.remove(&id) else {
            return;
        };
        self.incomplete.remove(&(content.order, id));
        self.unannounced.remove(&id);
        for at in (0..self.requests.len()).rev() {
            if self.requests[at].id == id {
                let request = self.drop_request(at);
                self.cancel(request.peer, id, request.chunk);
            }
        }
        for at in (0..self.incoming.len()).rev() {
            if self.incoming[at].id == id {
                let incoming = self.drop_incoming(at);
                self.cancel(incoming.peer, id, incoming.chunk);
            }
        }
        self.unassigned.retain(|(other, _)| *other != id);
        self.drop_pushes_of(id);
        let (gone, kept): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).partition(|waiting| waiting.id == id);
        self.waiting = kept;
        for waiting in gone {
            self.actions.push_back(Action::Refuse(
                waiting.ticket,
                crate::action::Declined::Missing,
            ));
        }
    }

    fn lose_chunk(&mut self, id: ContentId, chunk: ChunkIndex) {
        let Some(content) = self.contents.get_mut(&id) else {
            return;
        };
        if !content.held.remove(chunk) {
            return;
        }
        content.unannounced.remove(chunk);
        content.was_lost(self.now, chunk);
        self.incomplete.insert((content.order, id));
        if let Some(lease) = &mut content.lease
            && chunk.0 < lease.until
        {
            // the shell fetches it again only when it is told to go back: it isn't; peers have it, or the next lease
            lease.order(self.now);
        }
        content.announce_anew = true;
        self.unannounced.insert(id);
        self.announce_at.get_or_insert(self.now);
        self.wake();
    }

    /// A chunk is here, wherever from. Whether it is new.
    fn hold(&mut self, id: ContentId, chunk: ChunkIndex) -> bool {
        let Some(content) = self.contents.get_mut(&id) else {
            return false;
        };
        if !content.held.insert(chunk) {
            return false;
        }
        content.unannounced.insert(chunk);
        content.grown_at = self.now;
        content.news_at = self.now;
        content.was_stored();
        self.wants.heard(self.now, id);
        if let Some(lease) = &mut content.lease
            && chunk.0 < lease.until
        {
            lease.ordered = lease.ordered.saturating_sub(1);
        }
        if content.held.is_full() {
            self.incomplete.remove(&(content.order, id));
        }
        self.order_wanted |= content.lease.is_some();
        self.unannounced.insert(id);
        if self.announce_at.is_none() {
            self.announce_at = Some(self.now + self.announce_every());
        }
        true
    }

    fn arrived(&mut self, key: HostKey, id: ContentId, chunk: ChunkIndex, wire_bytes: u64) {
        let Some(peer) = self.find(key) else {
            self.hold(id, chunk);
            return;
        };
        self.down_bucket.spend(wire_bytes);
        let mut spread = None;
        if let Some(at) = self.find_incoming(peer, id, chunk) {
            let incoming = self.drop_incoming(at);
            smooth(&mut self.push_us, self.now.0 - incoming.since.0);
            spread = incoming.spread;
            self.pushes += 1;
            if let Some(content) = self.contents.get_mut(&id) {
                content.pushed_at = Some(self.now);
                self.late_pushes += u32::from(content.is_due(chunk));
            }
            self.peers[peer.at()].silent = 0;
        } else if let Some(at) = self.find_request(peer, id, chunk) {
            let request = self.drop_request(at);
            let took = self.now.0 - request.since.0;
            smooth(&mut self.answer_us, took);
            let state = &mut self.peers[peer.at()];
            smooth(&mut state.answer_us, took);
            state.silent = 0;
            spread = request.spread;
            self.pull_wanted = true;
        }
        self.hold(id, chunk);
        self.give_patience_back(id);
        self.cancel_others(id, chunk);
        if let Some(spread) = spread {
            self.take_spread(Some(peer), id, chunk, spread);
        }
        self.lease_done_by_peers(id);
    }

    /// The chunk is here: what else was under way for it isn't needed.
    fn cancel_others(&mut self, id: ContentId, chunk: ChunkIndex) {
        let pending = self
            .contents
            .get(&id)
            .is_some_and(|content| content.pending.contains(chunk));
        if !pending {
            return;
        }
        for at in (0..self.requests.len()).rev() {
            if self.requests[at].id == id && self.requests[at].chunk == chunk {
                let request = self.drop_request(at);
                self.cancel(request.peer, id, chunk);
            }
        }
        for at in (0..self.incoming.len()).rev() {
            if self.incoming[at].id == id && self.incoming[at].chunk == chunk {
                let incoming = self.drop_incoming(at);
                self.cancel(incoming.peer, id, chunk);
            }
        }
    }

    fn cancel(&mut self, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) {
        let peer = self.peers[peer.at()].key;
        self.actions.push_back(Action::Cancel { peer, id, chunk });
    }

    fn not_arrived(&mut self, key: HostKey, id: ContentId, chunk: ChunkIndex, failure: Failure) {
        let Some(peer) = self.find(key) else {
            return;
        };
        let spread = if let Some(at) = self.find_incoming(peer, id, chunk) {
            self.drop_incoming(at).spread
        } else if let Some(at) = self.find_request(peer, id, chunk) {
            let request = self.drop_request(at);
            self.pull_wanted = true;
            request.spread
        } else {
            None
        };
        // who was to pass it on can't; the sender hears of it and chooses another, and the pull swarm heals the rest
        drop(spread);
        match failure {
            // its copy may have rotted: it isn't asked for it again before it announces it anew
            Failure::Bad => {
                self.lacks(peer, id, chunk);
                self.strike(peer);
            }
            Failure::Busy => {
                self.peers[peer.at()].not_asked_before = self.now + TICK;
            }
            Failure::Missing => self.missed(peer, id, chunk),
            Failure::Disproved => {
                self.lacks(peer, id, chunk);
                self.disproved.entry(id).or_insert(self.now);
            }
            Failure::Refused => {
                self.peers[peer.at()].not_asked_before = self.now + Duration::from_secs(1);
            }
            Failure::Broken => self.silent(peer),
            Failure::NotStored => {
                let now = self.now;
                if let Some(content) = self.contents.get_mut(&id) {
                    content.was_not_stored(now);
                }
            }
            Failure::Cancelled => {}
        }
    }

    /// The peer doesn't have the chunk, whatever it announced.
    fn lacks(&mut self, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) {
        if let Some(slot) = self.peers[peer.at()].slot
            && let Some(content) = self.contents.get_mut(&id)
        {
            content.lose(slot, chunk);
        }
    }

    fn find(&self, key: HostKey) -> Option<PeerIndex> {
        self.by_key.get(key)
    }

    fn find_request(&self, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) -> Option<usize> {
        self.requests
            .iter()
            .position(|other| other.chunk == chunk && other.peer == peer && other.id == id)
    }

    fn find_incoming(&self, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) -> Option<usize> {
        self.incoming
            .iter()
            .position(|other| other.chunk == chunk && other.peer == peer && other.id == id)
    }

    fn drop_request(&mut self, at: usize) -> Request {
        let request = self.requests.swap_remove(at);
        let peer = &mut self.peers[request.peer.at()];
        peer.requests = peer.requests.saturating_sub(1);
        self.settle_pending(request.id, request.chunk);
        request
    }

    fn drop_incoming(&mut self, at: usize) -> Incoming {
        let incoming = self.incoming.swap_remove(at);
        self.settle_pending(incoming.id, incoming.chunk);
        incoming
    }

    fn settle_pending(&mut self, id: ContentId, chunk: ChunkIndex) {
        let under_way = self
            .requests
            .iter()
            .any(|other| other.chunk == chunk && other.id == id)
            || self
                .incoming
                .iter()
                .any(|other| other.chunk == chunk && other.id == id);
        if !under_way && let Some(content) = self.contents.get_mut(&id) {
            content.pending.remove(chunk);
        }
    }

    /// Looks at everything again soon.
    fn wake(&mut self) {
        self.tick_at = self.tick_at.min(self.now + TICK);
        self.pull_wanted = true;
        self.order_wanted = true;
    }

    /// A random number below `below`, which isn't 0.
    fn random(&mut self, below: usize) -> usize {
        let wide = u64::from(self.rng.next_u32()) * u64::try_from(below).unwrap_or(1);
        usize::try_from(wide >> 32).unwrap_or(0)
    }
}

/// From when on a transfer is slow, where those that ended took so many microseconds; 0 where none has.
fn slow_after(mean_us: u64, assumed: Duration) -> Duration {
    match mean_us {
        0 => assumed * 2,
        mean => (Duration::from_micros(mean) * SLOW.0).max(SLOW.1),
    }
}

/// A running mean over about eight samples; the first one counts whole.
fn smooth(mean: &mut u64, sample: u64) {
    *mean = if *mean == 0 {
        sample.max(1)
    } else {
        (*mean * 7 + sample) / 8
    };
}

/// A hash for breaking ties (splitmix64's finaliser over the sum of odd multiples): spreads well, costs nothing, and
/// nothing rests on its strength.
fn mix(a: u64, b: u64) -> u64 {
    let mut x = a
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(b.wrapping_mul(0xd1b5_4a32_d192_ed03));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn is_received(delivery: Delivery) -> bool {
    matches!(delivery, Delivery::Stored | Delivery::Already)
}

#[cfg(test)]
mod tests;
