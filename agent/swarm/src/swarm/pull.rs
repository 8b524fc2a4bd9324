//! Asking peers for chunks that no push brought: whoever came late, lost a push, or was restarted.

use super::*;
use crate::event::Failure;

/// Chunks looked at in one go.
const WISHES: usize = 64;
/// Chunks that are still missing when hedging begins.
const NEAR_THE_END: usize = 8;
/// One push in so many may come too late before the grace grows.
const LATE_ONE_IN: u32 = 200;

struct Wish {
    id: ContentId,
    chunk: ChunkIndex,
}

impl Swarm {
    /// Requests chunks while there is room.
    pub(super) fn pull(&mut self) {
        if self.incomplete.is_empty() || self.up.is_empty() {
            return;
        }
        let bound = if self.step_back {
            2
        } else {
            self.config.requests
        };
        while self.requests.len() < bound && self.down_bucket.allows(self.now) {
            let wishes = self.wishes();
            let mut asked = 0;
            for wish in &wishes {
                if self.requests.len() >= bound || !self.down_bucket.allows(self.now) {
                    return;
                }
                if let Some(peer) = self.pick_source(wish.id, wish.chunk, None) {
                    self.request(peer, wish.id, wish.chunk);
                    asked += 1;
                }
            }
            if asked == 0 || wishes.len() < WISHES {
                break;
            }
        }
        self.hedge();
        self.overtake();
    }

    /// Whether no push of this content can be expected, so that it is asked for at once.
    fn at_once(&self, content: &Content) -> bool {
        if content.lease.is_some() {
            return true;
        }
        let quiet = content
            .pushed_at
            .map_or(Duration::MAX, |at| self.now.since(at));
        if content.is_complete_elsewhere() {
            quiet
                >= self
                    .grace
                    .min(self.config.grace.max(self.config.grace_least))
        } else {
            quiet >= self.grace * 2
        }
    }

    /// The chunks to ask for next: of the first contents first, the rarest of them first, ties by a hash that differs
    /// between hosts.
    fn wishes(&self) -> Vec<Wish> {
        let mut wishes: Vec<(u32, usize, u64, Wish)> = Vec::new();
        for (order, id) in &self.incomplete {
            let Some(content) = self.contents.get(id) else {
                continue;
            };
            if !content.is_heard_of() || content.is_paused(self.now) {
                continue;
            }
            // look at more than are taken, so that rarity has a say
            let most = WISHES * 8;
            let at_once = self.at_once(content);
            let mut seen = 0;
            content.visit_askable(at_once, |chunk| {
                let rarity = content.rarity(chunk);
                if rarity > 0 {
                    let tie = mix(self.me.0 ^ content.key, u64::from(chunk.0));
                    wishes.push((*order, rarity, tie, Wish { id: *id, chunk }));
                    seen += 1;
                }
                seen < most
            });
            if wishes.len() >= WISHES {
                break;
            }
        }
        wishes.sort_unstable_by_key(|(order, rarity, tie, _)| (*order, *rarity, *tie));
        wishes
            .into_iter()
            .take(WISHES)
            .map(|(_, _, _, wish)| wish)
            .collect()
    }

    /// The least busy peer that has it and isn't asked for it yet.
    fn pick_source(
        &self,
        id: ContentId,
        chunk: ChunkIndex,
        except: Option<PeerIndex>,
    ) -> Option<PeerIndex> {
        let content = self.contents.get(&id)?;
        self.slots
            .iter()
            .flatten()
            .copied()
            .filter(|index| {
                let peer = &self.peers[index.at()];
                Some(*index) != except
                    && peer.is_up()
                    && peer.not_asked_before <= self.now
                    && peer.requests < self.allowance(*index)
                    && content.peer_has(peer.slot, chunk)
            })
            .min_by_key(|index| {
                let peer = &self.peers[index.at()];
                let answer = peer.answer_us.max(1);
                (
                    (peer.requests as u64 + 1).saturating_mul(answer),
                    mix(self.me.0, peer.key.0 ^ u64::from(chunk.0)),
                )
            })
    }

    /// Requests that a peer may have in flight: two at least, more where it answers quickly.
    fn allowance(&self, index: PeerIndex) -> usize {
        /// Two requests keep a link of this many microseconds per chunk full; faster ones want more.
        const QUICK_US: u64 = 50_000;
        let most = self.config.requests_per_peer.max(2);
        let answer = self.peers[index.at()].answer_us;
        if answer > 0 && answer < QUICK_US {
            most
        } else {
            2
        }
    }

    fn request(&mut self, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) {
        let Some(content) = self.contents.get_mut(&id) else {
            return;
        };
        content.pending.insert(chunk);
        let state = &mut self.peers[peer.at()];
        state.requests += 1;
        let expected = match (state.answer_us, self.answer_us) {
            (0, 0) => self.config.push_assumed,
            (0, all) => Duration::from_micros(all),
            (own, _) => Duration::from_micros(own),
        };
        let limit = (expected * self.config.timeout_factor)
            .max(self.config.timeout_least)
            .min(self.config.limit_most);
        self.actions.push_back(Action::Request {
            peer: state.key,
            id,
            chunk,
        });
        self.requests.push(Request {
            peer,
            id,
            chunk,
            since: self.now,
            deadline: self.now + limit,
            spread: None,
        });
    }

    /// Near the end, what takes long is asked of a second peer.
    fn hedge(&mut self) {
        let missing: u64 = self
            .incomplete
            .iter()
            .filter_map(|(_, id)| self.contents.get(id))
            .map(|content| u64::from(content.chunks() - content.held.count()))
            .sum();
        if missing > NEAR_THE_END as u64 {
            return;
        }
        for at in 0..self.requests.len() {
            let request = &self.requests[at];
            let (peer, id, chunk) = (request.peer, request.id, request.chunk);
            let same = self
                .requests
                .iter()
                .filter(|other| other.id == id && other.chunk == chunk)
                .count();
            let expected = Duration::from_micros(self.answer_us.max(1)) * 2;
            if same > 1
                || self.now.since(request.since) < expected.max(TICK)
                || self.requests.len() >= self.config.requests
            {
                continue;
            }
            if let Some(other) = self.pick_source(id, chunk, Some(peer)) {
                self.request(other, id, chunk);
            }
        }
    }

    /// A push that takes long doesn't keep its chunk from being asked for.
    fn overtake(&mut self) {
        for at in 0..self.incoming.len() {
            let incoming = &self.incoming[at];
            let (peer, id, chunk) = (incoming.peer, incoming.id, incoming.chunk);
            let asked = |other: &Request| other.id == id && other.chunk == chunk;
            if self.is_slow(incoming)
                && self.requests.len() < self.config.requests
                && !self.requests.iter().any(asked)
                && let Some(other) = self.pick_source(id, chunk, Some(peer))
            {
                self.request(other, id, chunk);
            }
        }
    }

    /// Gives up what takes too long.
    pub(super) fn expire(&mut self) {
        for at in (0..self.requests.len()).rev() {
            if self.requests[at].deadline <= self.now {
                let request = self.drop_request(at);
                self.cancel(request.peer, request.id, request.chunk);
                // it took at least this long
                let took = self.now.0 - request.since.0;
                let state = &mut self.peers[request.peer.at()];
                smooth(&mut state.answer_us, took);
                self.gave_up(request.peer);
            }
        }
        for at in (0..self.incoming.len()).rev() {
            if self.incoming[at].deadline <= self.now {
                let incoming = self.drop_incoming(at);
                self.cancel(incoming.peer, incoming.id, incoming.chunk);
                // how long pushes take isn't for one peer to say: it would be given ever more time
                self.gave_up(incoming.peer);
                self.broke_promise(incoming.peer, incoming.id, incoming.chunk);
            }
        }
    }

    fn gave_up(&mut self, peer: PeerIndex) {
        let key = self.peers[peer.at()].key;
        self.not_arrived(
            key,
            ContentId(u32::MAX),
            ChunkIndex(u32::MAX),
            Failure::Broken,
        );
    }

    /// Every grace time, announced chunks come a step nearer to being asked for.
    pub(super) fn turn_grace(&mut self) {
        if self.now < self.turn_at {
            return;
        }
        // how long pushes really take after the first announcement sets how long we wait for them
        if self.late_pushes.saturating_mul(LATE_ONE_IN) > self.pushes {
            self.grace = (self.grace * 3 / 2).min(self.config.grace_most);
        } else if self.pushes > 0 && self.late_pushes == 0 {
            let least = self.spread_time().max(self.config.grace_least);
            self.grace = (self.grace * 15 / 16).max(least.min(self.config.grace_most));
        }
        self.pushes = 0;
        self.late_pushes = 0;
        self.turn_at = self.now + self.grace;
        for (_, id) in &self.incomplete {
            if let Some(content) = self.contents.get_mut(id) {
                content.turn();
            }
        }
    }
}
