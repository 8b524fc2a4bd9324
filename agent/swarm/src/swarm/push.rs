//! Passing chunks on: whom a fresh chunk is handed to for spreading, and spreading those that were handed to us.

use super::{fleet::SILENT_MOST, serve::Askers, *};
use crate::{
    action::Declined,
    event::Spread,
    peer::{Line, doubled, micros},
};

/// A push that a receiver declined as busy is tried again so often, then left to the pull swarm.
const BUSY_TRIES: u8 = 24;
/// And at most.
const BUSY_WAIT_MOST: Duration = Duration::from_secs(1);
/// A part finds a spreader within so many tries, or is spread to by ourselves.
const HANDOVER_TRIES: u8 = 8;
/// Jobs looked into for a target that isn't busy. More than are ever under way at one time: several may wait for the
/// same dead host.
const JOBS_AHEAD: usize = 16;
/// Targets of one job looked at again in one go.
const RETRIES_AHEAD: usize = 16;
/// Spreads of chunks that were here already, under way at one time for each host that asked for them: more than an honest
/// host's share of its window.
const SPREADS_OF_HELD: usize = 16;
/// A blocked lease holder looks for a spreader again after this long at least.
const ASSIGN_LEAST: Duration = Duration::from_millis(1);

/// A chunk to be handed to one host, which is to pass it on.
#[derive(Clone, Debug)]
pub(super) struct Handover {
    id: ContentId,
    chunk: ChunkIndex,
    /// Among whom it is to be spread; `None`: everyone.
    part: Option<Vec<HostKey>>,
    /// The chosen host.
    peer: PeerIndex,
    /// Push work that this gives it.
    work_bytes: u64,
    tries: u8,
    origin: Origin,
}

/// A chunk that we pass on to many.
#[derive(Clone, Debug)]
pub(super) struct Job {
    seq: u64,
    id: ContentId,
    chunk: ChunkIndex,
    targets: Targets,
    /// No target is ready before this moment.
    quiet_until: Moment,
    /// Targets that weren't ready, how often they were tried, and not before when.
    retry: VecDeque<(PeerIndex, u8, Moment)>,
    in_flight: usize,
    /// Targets that aren't settled.
    left: usize,
    origin: Origin,
}

/// Whose wish it is that a chunk is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// We fetched it from the registry, and it hasn't left us once: fetching is paced by it.
    Ours,
    /// This peer's; the chunk came from it, or was here already.
    Peer(PeerIndex),
    /// Nobody's any more: it has left us once, or who wished it is forgotten.
    Nobody,
}

impl Origin {
    fn is_ours(self) -> bool {
        self == Self::Ours
    }
}

#[derive(Clone, Debug)]
enum Targets {
    /// The roster from a random start with a random stride, so that spreaders don't all hit the same hosts.
    Everyone {
        at: usize,
        stride: usize,
        left: usize,
        except: Option<PeerIndex>,
    },
    List(Vec<PeerIndex>),
}

enum Fitness {
    Ready,
    Later,
    Never,
}

/// Who was chosen.
enum Choice {
    Me,
    Peer(PeerIndex),
    /// All are loaded; how long until the least of them isn't.
    Wait(u64),
    Nobody,
}

impl Swarm {
    // ---- offered pushes -----------------------------------------------------------------------------------------

    pub(super) fn offered(
        &mut self,
        ticket: Ticket,
        key: HostKey,
        id: ContentId,
        chunk: ChunkIndex,
        spread: Option<Spread>,
    ) {
        let answer = self.judge_offer(key, id, chunk, spread);
        self.actions.push_back(match answer {
            Ok(()) => Action::Accept(ticket),
            Err(reason) => Action::Decline(ticket, reason),
        });
    }

    fn judge_offer(
        &mut self,
        key: HostKey,
        id: ContentId,
        chunk: ChunkIndex,
        spread: Option<Spread>,
    ) -> Result<(), Declined> {
        let peer = self
            .find(key)
            .filter(|index| !self.peers[index.at()].is_quarantined())
            .ok_or(Declined::Quarantined)?;
        let now = self.now;
        let content = self.contents.get_mut(&id).ok_or(Declined::Unwanted)?;
        if !content.geometry.contains(chunk) {
            return Err(Declined::Unwanted);
        }
        content.pushed_at = Some(now);
        let paused = content.is_paused(now);
        if content.held.contains(chunk) {
            // it was asked for before its push came
            self.late_pushes += u32::from(spread.is_none());
            if let Some(spread) = spread
                && self.may_spread_held(peer, id, chunk)
            {
                self.take_spread(Some(peer), id, chunk, spread);
            }
            return Err(Declined::Already);
        }
        if content.pending.contains(chunk) {
            // what is under way brings it, unless that has taken too long; the spread goes with whatever brings it
            if let Some(at) = self
                .incoming
                .iter()
                .position(|other| other.chunk == chunk && other.id == id)
            {
                if !self.is_slow(&self.incoming[at]) {
                    let other = &mut self.incoming[at];
                    other.spread = other.spread.take().or(spread);
                    return Err(Declined::Already);
                }
            } else if let Some(at) = self
                .requests
                .iter()
                .position(|other| other.chunk == chunk && other.id == id)
            {
                self.late_pushes += 1;
                let other = &mut self.requests[at];
                if !half_over(now, other.since, other.deadline) {
                    other.spread = other.spread.take().or(spread);
                    return Err(Declined::Already);
                }
            }
        }
        if paused {
            return Err(Declined::Busy);
        }
        // fewer places than uploads would have the fleet's pushes wait for each other
        let bound = if self.step_back {
            self.config.incoming / 4
        } else {
            self.config.incoming.max(self.config.uploads + 1)
        };
        // a chunk that others wait for finds room sooner than one that is for us alone
        let bound = bound.max(1) << u32::from(spread.is_some());
        // what takes far too long keeps out nobody but its sender
        let slow = |other: &&Incoming| self.is_slow(other);
        let slow = self.incoming.iter().filter(slow);
        let (mut count, mut sends_slowly) = (0, false);
        for other in slow {
            count += 1;
            sends_slowly |= other.peer == peer;
        }
        let own = self.incoming.iter().filter(|other| other.peer == peer);
        if self.incoming.len() - count >= bound
            || self.incoming.len() >= bound + self.config.slow_uploads
            || sends_slowly
            || own.count() >= self.config.incoming_per_peer.max(1)
            || self.peers[peer.at()].dribbles(now)
            || !self.down_bucket.allows(now)
        {
            return Err(Declined::Busy);
        }
        let expected = if self.push_us == 0 {
            self.config.push_assumed
        } else {
            Duration::from_micros(self.push_us)
        };
        let limit = (expected * self.config.timeout_factor * 2)
            .max(self.config.timeout_least * 5)
            .min(self.config.limit_most);
        if let Some(content) = self.contents.get_mut(&id) {
            content.pending.insert(chunk);
        }
        self.incoming.push(Incoming {
            peer,
            id,
            chunk,
            since: now,
            deadline: now + limit,
            spread,
        });
        Ok(())
    }

    /// Whether an accepted push takes far too long.
    pub(super) fn is_slow(&self, incoming: &Incoming) -> bool {
        let took = self.now.since(incoming.since);
        took >= slow_after(self.push_us, self.config.push_assumed)
            || half_over(self.now, incoming.since, incoming.deadline)
    }

    /// Whether a chunk that was here before its push is passed on for this peer: that costs it no byte.
    fn may_spread_held(&self, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) -> bool {
        let jobs = self.jobs.iter().map(|job| (job.id, job.chunk, job.origin));
        let handovers = self.handovers.iter();
        let handovers = handovers.map(|of| (of.id, of.chunk, of.origin));
        let mut own = 0;
        for (other, of, origin) in jobs.chain(handovers) {
            if other == id && of == chunk {
                return false;
            }
            own += usize::from(origin == Origin::Peer(peer));
        }
        own < SPREADS_OF_HELD
    }

    /// We are to pass this chunk, which is here, on.
    pub(super) fn take_spread(
        &mut self,
        from: Option<PeerIndex>,
        id: ContentId,
        chunk: ChunkIndex,
        spread: Spread,
    ) {
        if let Some(from) = from {
            self.chosen_by(from);
        }
        let origin = from.map_or(Origin::Nobody, Origin::Peer);
        match spread {
            Spread::Everyone => self.spread_to_all(id, chunk, from, origin),
            Spread::To(mut keys) => {
                keys.retain(|key| *key != self.me);
                self.spread_to(id, chunk, &keys, from, origin);
            }
        }
    }

    /// Passes a chunk on to every host that may have it.
    fn spread_to_all(
        &mut self,
        id: ContentId,
        chunk: ChunkIndex,
        except: Option<PeerIndex>,
        origin: Origin,
    ) {
        let for_all = self
            .contents
            .get(&id)
            .is_none_or(|content| content.entitled.is_none());
        if for_all && self.roster.len() <= self.config.direct_targets {
            let left = self.roster.len();
            let targets = self.everyone(except);
            self.add_job(id, chunk, targets, left, origin);
        } else {
            let keys = self.roster_keys(id, except);
            self.spread_to(id, chunk, &keys, except, origin);
        }
    }

    fn spread_to(
        &mut self,
        id: ContentId,
        chunk: ChunkIndex,
        keys: &[HostKey],
        except: Option<PeerIndex>,
        origin: Origin,
    ) {
        if keys.len() <= self.config.direct_targets {
            let list = self.shuffled(keys, except);
            let left = list.len();
            self.add_job(id, chunk, Targets::List(list), left, origin);
        } else {
            let ours = origin.is_ours();
            let origin = if ours { Origin::Nobody } else { origin };
            self.split(id, chunk, keys, origin);
            if ours {
                self.handed_on(id);
            }
        }
    }

    fn everyone(&mut self, except: Option<PeerIndex>) -> Targets {
        let count = self.roster.len();
        let at = self.random(count.max(1));
        let mut stride = 1 + self.random(count.max(1));
        while gcd(stride, count.max(1)) != 1 {
            stride += 1;
        }
        Targets::Everyone {
            at,
            stride,
            left: count,
            except,
        }
    }

    fn shuffled(&mut self, keys: &[HostKey], except: Option<PeerIndex>) -> Vec<PeerIndex> {
        let mut list: Vec<PeerIndex> = keys
            .iter()
            .take(self.roster.len())
            .filter_map(|key| self.find(*key))
            .filter(|index| Some(*index) != except)
            .collect();
        for at in (1..list.len()).rev() {
            let other = self.random(at + 1);
            list.swap(at, other);
        }
        list
    }

    /// All hosts of the roster that may have the content.
    fn roster_keys(&self, id: ContentId, except: Option<PeerIndex>) -> Vec<HostKey> {
        let content = self.contents.get(&id);
        self.roster
            .iter()
            .filter(|index| Some(**index) != except)
            .map(|index| self.peers[index.at()].key)
            .filter(|key| content.is_none_or(|content| content.entitles(*key)))
            .collect()
    }

    /// Hands the chunk to one host of each part, which is to spread it there.
    fn split(&mut self, id: ContentId, chunk: ChunkIndex, keys: &[HostKey], origin: Origin) {
        let most = keys.len().min(self.roster.len());
        let keys = &keys[..most];
        if keys.is_empty() {
            return;
        }
        for part in keys.chunks(most.div_ceil(self.config.fan_out.max(2))) {
            self.hand_over(id, chunk, Some(part.to_vec()), origin, 0);
        }
    }

    fn add_job(
        &mut self,
        id: ContentId,
        chunk: ChunkIndex,
        targets: Targets,
        left: usize,
        origin: Origin,
    ) {
        if left == 0 || self.jobs.len() >= self.config.jobs || !self.contents.contains_key(&id) {
            if origin.is_ours() {
                self.handed_on(id);
            }
            return;
        }
        self.backlog_bytes += self.chunk_len(id, chunk) * left as u64;
        self.next_job += 1;
        self.upload_wanted = true;
        self.jobs.push_back(Job {
            seq: self.next_job,
            id,
            chunk,
            targets,
            quiet_until: Moment::START,
            retry: VecDeque::new(),
            in_flight: 0,
            left,
            origin,
        });
    }

    fn chunk_len(&self, id: ContentId, chunk: ChunkIndex) -> u64 {
        self.contents
            .get(&id)
            .map_or(0, |content| content.len(chunk))
    }

    // ---- choosing spreaders -------------------------------------------------------------------------------------

    /// Finds spreaders for the chunks that came from the registry, in order, while there are any with little to do.
    pub(super) fn assign_fresh(&mut self) {
        while let Some((id, chunk)) = self.unassigned.front().copied() {
            if self.handovers.len() >= self.config.jobs {
                return;
            }
            if !self.holds(id, chunk) {
                self.unassigned.pop_front();
                self.handed_on(id);
                continue;
            }
            match self.choose_for_all(id, chunk) {
                Choice::Me => {
                    self.unassigned.pop_front();
                    self.spread_to_all(id, chunk, None, Origin::Ours);
                }
                Choice::Peer(peer) => {
                    self.unassigned.pop_front();
                    let work_bytes = self.spread_bytes(id, chunk);
                    self.enqueue_handover(Handover {
                        id,
                        chunk,
                        part: None,
                        peer,
                        work_bytes,
                        tries: 0,
                        origin: Origin::Ours,
                    });
                }
                Choice::Wait(micros) => {
                    let wait = Duration::from_micros(micros).clamp(ASSIGN_LEAST, TICK);
                    let due = self.now + wait;
                    self.wake_at(due);
                    return;
                }
                Choice::Nobody => {
                    self.unassigned.pop_front();
                    self.handed_on(id);
                }
            }
        }
    }

    /// Bytes that the host which is handed a chunk for everyone sends.
    fn spread_bytes(&self, id: ContentId, chunk: ChunkIndex) -> u64 {
        let content = self.contents.get(&id);
        let unwanted = content.map_or(0, Content::unwanted_count);
        // this host is one of those that may have it, and isn't on its own roster
        let most = content
            .and_then(|content| content.entitled.as_ref())
            .map_or(usize::MAX, |entitled| entitled.len().saturating_sub(1));
        let hosts = self.roster.len().min(most);
        let targets = hosts.saturating_sub(unwanted);
        let sends = if hosts > self.config.direct_targets {
            self.config.fan_out
        } else {
            targets
        };
        self.chunk_len(id, chunk) * sends as u64
    }

    /// The host with the least to do among some random connected ones and ourselves.
    fn choose_for_all(&mut self, id: ContentId, chunk: ChunkIndex) -> Choice {
        if self.up.is_empty() {
            let coming = self
                .roster
                .iter()
                .any(|index| self.peers[index.at()].line == Line::Dialling);
            return if coming {
                Choice::Wait(100_000)
            } else {
                Choice::Nobody
            };
        }
        let work = self.spread_bytes(id, chunk);
        let mut best: Option<(u64, PeerIndex)> = None;
        // where few may have it, most of all that are connected would be the wrong ones
        let entitled: Option<Vec<PeerIndex>> = self
            .contents
            .get(&id)
            .filter(|content| content.entitled.is_some())
            .map(|content| {
                let up = self.up.iter().copied();
                up.filter(|index| content.entitles(self.peers[index.at()].key))
                    .collect()
            });
        let count = entitled.as_ref().map_or(self.up.len(), Vec::len);
        let all = count <= self.config.candidates;
        let tries = if all { count } else { self.config.candidates };
        for at in 0..tries {
            let at = if all { at } else { self.random(count) };
            let index = entitled.as_ref().map_or(self.up[at], |some| some[at]);
            let peer = &self.peers[index.at()];
            let unwanted = self
                .contents
                .get(&id)
                .is_some_and(|content| content.is_unwanted_by(index));
            if !peer.is_up() || !peer.is_pushed_to(self.now) || unwanted {
                continue;
            }
            let score = peer.outstanding_us(self.now, work);
            if best.is_none_or(|(least, _)| score < least) {
                best = Some((score, index));
            }
        }
        let own_work = work + self.chunk_len(id, chunk);
        let own_score = micros(self.backlog_bytes + own_work, self.rate);
        let slack = self.chunk_len(id, chunk) * self.config.spread_backlog_chunks;
        let allowed = work.saturating_mul(self.config.spread_backlog_percent) / 100 + slack;
        match best {
            Some((score, index)) if score <= own_score => {
                match self.peers[index.at()].excess_us(self.now, allowed) {
                    0 => Choice::Peer(index),
                    excess => Choice::Wait(excess),
                }
            }
            _ => match self.backlog_bytes.saturating_sub(allowed) {
                0 => Choice::Me,
                excess => Choice::Wait(micros(excess, self.rate)),
            },
        }
    }

    /// Hands a chunk to the host with the least to do among some of `part`.
    fn hand_over(
        &mut self,
        id: ContentId,
        chunk: ChunkIndex,
        part: Option<Vec<HostKey>>,
        origin: Origin,
        tries: u8,
    ) {
        if !self.holds(id, chunk) {
            if origin.is_ours() {
                self.handed_on(id);
            }
            return;
        }
        if tries >= HANDOVER_TRIES || self.handovers.len() >= self.config.jobs {
            // nobody takes the part over: we spread it there ourselves
            let list = self.shuffled(part.as_deref().unwrap_or_default(), None);
            let left = list.len();
            self.add_job(id, chunk, Targets::List(list), left, origin);
            return;
        }
        let Some(part) = part else {
            // a spreader failed: the chunk looks for another like a fresh one
            self.unassigned.push_front((id, chunk));
            self.assign_wanted = true;
            if !origin.is_ours()
                && let Some(lease) = self.lease_mut(id)
            {
                lease.waiting += 1;
            }
            return;
        };
        let work_bytes = self.chunk_len(id, chunk) * part.len().saturating_sub(1) as u64;
        // some that are connected; while those are few, some more are dialled for the next time
        let mut best: Option<(bool, u64, PeerIndex)> = None;
        let start = self.random(part.len().max(1));
        for connected in [true, false] {
            let mut seen = 0;
            for at in 0..part.len() {
                let enough = match connected {
                    true => self.config.candidates,
                    false => self.config.candidates / 2,
                };
                if seen >= enough {
                    break;
                }
                let key = part[(start + at) % part.len()];
                let Some(index) = self.find(key) else {
                    continue;
                };
                let unwanted = self
                    .contents
                    .get(&id)
                    .is_none_or(|content| content.is_unwanted_by(index) || !content.entitles(key));
                let peer = &self.peers[index.at()];
                let up = peer.is_up();
                let unwanted = unwanted || !peer.is_pushed_to(self.now);
                if unwanted || up != connected || !(up || self.may_come_up(index)) {
                    continue;
                }
                if !up && self.up.len() < self.config.connections * 3 / 4 {
                    self.dial(index);
                }
                seen += 1;
                let score = self.peers[index.at()].outstanding_us(self.now, work_bytes);
                if best.is_none_or(|(best_up, least, _)| (!up, score) < (!best_up, least)) {
                    best = Some((up, score, index));
                }
            }
            if seen >= self.config.candidates / 2 {
                break;
            }
        }
        let Some((_, _, peer)) = best else {
            if origin.is_ours() {
                self.handed_on(id);
            }
            return;
        };
        self.enqueue_handover(Handover {
            id,
            chunk,
            part: Some(part),
            peer,
            work_bytes,
            tries,
            origin,
        });
    }

    fn enqueue_handover(&mut self, handover: Handover) {
        self.peers[handover.peer.at()].assign(handover.work_bytes);
        self.backlog_bytes += self.chunk_len(handover.id, handover.chunk);
        self.handovers.push_back(handover);
        self.upload_wanted = true;
    }

    fn settle_handover(&mut self, handover: &Handover) {
        self.backlog_bytes = self
            .backlog_bytes
            .saturating_sub(self.chunk_len(handover.id, handover.chunk));
    }

    /// A chunk that we fetched has left us, or can't: there is room for the next one.
    fn handed_on(&mut self, id: ContentId) {
        self.order_wanted = true;
        if let Some(lease) = self.lease_mut(id) {
            lease.waiting = lease.waiting.saturating_sub(1);
        }
    }

    // ---- uploads ------------------------------------------------------------------------------------------------

    fn upload_bound(&self) -> usize {
        if self.step_back {
            1
        } else {
            self.config.uploads.max(1)
        }
    }

    /// Begins uploads while there is room and something to send.
    pub(super) fn fill_uploads(&mut self) {
        while self.uploads.iter().filter(|upload| !upload.slow).count() < self.upload_bound() {
            if self.handovers.is_empty() && self.jobs.is_empty() && self.waiting.is_empty() {
                break;
            }
            if !self.up_bucket.allows(self.now) {
                if let Some(due) = self.up_bucket.due() {
                    self.tick_at = self.tick_at.min(due.max(self.now + ASSIGN_LEAST));
                }
                break;
            }
            let answers = self
                .uploads
                .iter()
                .filter(|upload| upload.ticket.is_some())
                .count();
            let answer_first = answers < (self.upload_bound() / 2).max(1);
            if self.begin_handover()
                || (answer_first && self.serve_next(Askers::Reliable))
                || self.push_next()
                || self.serve_next(Askers::All)
            {
                continue;
            }
            break;
        }
        self.wake_for_retries();
        self.measure_busy();
    }

    /// With an upload to spare, receivers that were busy are tried again in time.
    fn wake_for_retries(&mut self) {
        if self.jobs.is_empty() || self.uploads.len() >= self.upload_bound() {
            return;
        }
        let due = self
            .jobs
            .iter()
            .take(JOBS_AHEAD)
            .map(|job| job.quiet_until)
            .filter(|quiet_until| *quiet_until > self.now)
            .min();
        if let Some(due) = due {
            let due = due.max(self.now + ASSIGN_LEAST);
            self.wake_at(due);
        }
    }

    /// Counts the time in which the uplink could have been full.
    fn measure_busy(&mut self) {
        let full = self.uploads.len() >= self.upload_bound().min(2);
        match (full, self.busy_since) {
            (true, None) => self.busy_since = Some(self.now),
            (false, Some(since)) => {
                self.busy_us += self.now.0 - since.0;
                self.busy_since = None;
            }
            _ => {}
        }
    }

    fn measure_sent(&mut self, bytes: u64) {
        /// Long enough for a few uploads at 100 Mbit/s.
        const SAMPLE_US: u64 = 1_000_000;
        let Some(since) = self.busy_since else {
            return;
        };
        self.busy_us += self.now.0 - since.0;
        self.busy_since = Some(self.now);
        self.busy_bytes += bytes;
        if self.busy_us >= SAMPLE_US && self.busy_bytes > 0 {
            let sample =
                (u128::from(self.busy_bytes) * 1_000_000 / u128::from(self.busy_us)).max(1);
            let sample = u64::try_from(sample).unwrap_or(u64::MAX);
            // receivers that are slow for a while don't make our uplink slower: it falls slowly, and rises at once
            self.rate = if !self.rate_measured || sample > self.rate {
                sample
            } else {
                (self.rate * 15 + sample) / 16
            };
            self.rate_measured = true;
            self.busy_us = 0;
            self.busy_bytes = 0;
        }
    }

    fn begin_handover(&mut self) -> bool {
        let mut at = 0;
        while at < self.handovers.len().min(self.config.uploads * 4) {
            let Handover {
                peer, id, chunk, ..
            } = self.handovers[at];
            if !self.holds(id, chunk) {
                if let Some(handover) = self.handovers.remove(at) {
                    self.rechoose(handover, HANDOVER_TRIES);
                }
                continue;
            }
            let (up, uploads, takes, entitled, most) = {
                let (peer, content) = (&self.peers[peer.at()], &self.contents[&id]);
                let most = match peer.stuck {
                    0 => self.config.uploads_per_peer.max(1),
                    _ => 1,
                };
                let entitled = content.entitles(peer.key);
                let takes = peer.is_pushed_to(self.now);
                (peer.is_up(), peer.uploads, takes, entitled, most)
            };
            if !entitled || (up && !takes) {
                // it may have been entitled when it was chosen
                if let Some(handover) = self.handovers.remove(at) {
                    self.rechoose(handover, 1);
                }
                continue;
            }
            if up && uploads < most {
                let Some(handover) = self.handovers.remove(at) else {
                    return false;
                };
                self.actions.push_back(Action::Push {
                    peer: self.peers[peer.at()].key,
                    id: handover.id,
                    chunk: handover.chunk,
                    spread: Some(match &handover.part {
                        None => Spread::Everyone,
                        Some(part) => {
                            let key = self.peers[peer.at()].key;
                            let mut rest = part.clone();
                            rest.retain(|other| *other != key);
                            rest.sort_unstable();
                            Spread::To(rest)
                        }
                    }),
                });
                self.begin_upload(Upload {
                    peer,
                    id: handover.id,
                    chunk: handover.chunk,
                    ticket: None,
                    purpose: Purpose::Handover(handover),
                    since: self.now,
                    slow: false,
                });
                return true;
            }
            if !up && !self.dial(peer) && !self.may_come_up(peer) {
                if let Some(handover) = self.handovers.remove(at) {
                    self.rechoose(handover, 1);
                }
                continue;
            }
            at += 1;
        }
        false
    }

    /// The chosen host didn't take it over: another one shall.
    fn rechoose(&mut self, handover: Handover, more_tries: u8) {
        self.settle_handover(&handover);
        self.peers[handover.peer.at()].unassign(handover.work_bytes);
        let tries = handover.tries.saturating_add(more_tries);
        self.hand_over(
            handover.id,
            handover.chunk,
            handover.part,
            handover.origin,
            tries,
        );
    }

    pub(super) fn begin_upload(&mut self, upload: Upload) {
        self.up_bucket
            .spend(self.chunk_len(upload.id, upload.chunk));
        self.peers[upload.peer.at()].uploads += 1;
        self.uploads.push(upload);
    }

    fn push_next(&mut self) -> bool {
        let mut at = 0;
        while at < self.jobs.len().min(JOBS_AHEAD) {
            if self.jobs[at].quiet_until > self.now {
                at += 1;
                continue;
            }
            if let Some((peer, tries)) = self.next_target(at) {
                let job = &mut self.jobs[at];
                job.in_flight += 1;
                let (id, chunk, seq) = (job.id, job.chunk, job.seq);
                self.actions.push_back(Action::Push {
                    peer: self.peers[peer.at()].key,
                    id,
                    chunk,
                    spread: None,
                });
                self.begin_upload(Upload {
                    peer,
                    id,
                    chunk,
                    ticket: None,
                    purpose: Purpose::Spread { job: seq, tries },
                    since: self.now,
                    slow: false,
                });
                return true;
            }
            if self.jobs[at].left == 0 {
                self.remove_job(at);
            } else {
                let job = &self.jobs[at];
                let pause = micros(self.chunk_len(job.id, job.chunk), self.rate) / 4;
                let pause = Duration::from_micros(pause).clamp(ASSIGN_LEAST, TICK);
                self.jobs[at].quiet_until = self.now + pause;
                at += 1;
            }
        }
        false
    }

    fn remove_job(&mut self, at: usize) {
        if let Some(job) = self.jobs.remove(at) {
            self.backlog_bytes = self
                .backlog_bytes
                .saturating_sub(self.chunk_len(job.id, job.chunk) * job.left as u64);
            if job.origin.is_ours() {
                self.handed_on(job.id);
            }
        }
    }

    /// The next target of a job that can be pushed to now.
    fn next_target(&mut self, at: usize) -> Option<(PeerIndex, u8)> {
        loop {
            let (next, except) = match &mut self.jobs[at].targets {
                Targets::Everyone {
                    at,
                    stride,
                    left,
                    except,
                } if *left > 0 && !self.roster.is_empty() => {
                    *left -= 1;
                    *at %= self.roster.len();
                    let index = self.roster[*at];
                    *at += *stride;
                    (Some(index), *except)
                }
                Targets::Everyone { .. } => (None, None),
                Targets::List(list) => (list.pop(), None),
            };
            let Some(index) = next else {
                break;
            };
            if except == Some(index) {
                self.settle_target(at);
                continue;
            }
            match self.fitness(at, index) {
                Fitness::Ready => return Some((index, 0)),
                Fitness::Later => self.jobs[at].retry.push_back((index, 0, self.now)),
                Fitness::Never => self.settle_target(at),
            }
        }
        for _ in 0..self.jobs[at].retry.len().min(RETRIES_AHEAD) {
            let Some((index, tries, not_before)) = self.jobs[at].retry.pop_front() else {
                break;
            };
            if not_before > self.now {
                self.jobs[at].retry.push_back((index, tries, not_before));
                continue;
            }
            match self.fitness(at, index) {
                Fitness::Ready => return Some((index, tries)),
                Fitness::Later => self.jobs[at].retry.push_back((index, tries, not_before)),
                Fitness::Never => self.settle_target(at),
            }
        }
        None
    }

    /// One target of a job is done with, one way or the other.
    fn settle_target(&mut self, at: usize) {
        let job = &mut self.jobs[at];
        job.left = job.left.saturating_sub(1);
        let (id, chunk) = (job.id, job.chunk);
        self.backlog_bytes = self.backlog_bytes.saturating_sub(self.chunk_len(id, chunk));
    }

    fn fitness(&mut self, at: usize, index: PeerIndex) -> Fitness {
        let (id, chunk) = (self.jobs[at].id, self.jobs[at].chunk);
        let peer = &self.peers[index.at()];
        let Some(content) = self
            .contents
            .get(&id)
            .filter(|content| content.held.contains(chunk))
        else {
            return Fitness::Never;
        };
        if peer.is_quarantined()
            || content.is_unwanted_by(index)
            || !content.entitles(peer.key)
            // a peer that takes nothing would hold an upload that others wait for; one that gives nothing has to ask
            || !peer.is_pushed_to(self.now)
            || content.peer_has(peer.slot, chunk)
        {
            return Fitness::Never;
        }
        match peer.line {
            Line::Up if peer.uploads > 0 => Fitness::Later,
            Line::Up => Fitness::Ready,
            // who was connected and went away is left to the pull swarm: it would hold up the others' chunks
            Line::Dialling | Line::Down if peer.dial_failures > 0 => Fitness::Never,
            Line::Dialling => Fitness::Later,
            Line::Down => {
                if self.dial(index) || self.may_come_up(index) {
                    Fitness::Later
                } else {
                    Fitness::Never
                }
            }
        }
    }

    pub(super) fn sent(
        &mut self,
        key: HostKey,
        id: ContentId,
        chunk: ChunkIndex,
        ticket: Option<Ticket>,
        delivery: Delivery,
        wire_bytes: u64,
    ) {
        let Some(index) = self.find(key) else {
            return;
        };
        let Some(at) = self.uploads.iter().position(|upload| {
            upload.peer == index
                && upload.id == id
                && upload.chunk == chunk
                && upload.ticket == ticket
        }) else {
            return;
        };
        let (now, least) = (self.now, self.config.timeout_least);
        let peer = &mut self.peers[index.at()];
        if is_received(delivery) {
            peer.ignores_pushes &= ticket.is_some();
            if !peer.ignores_pushes {
                peer.stuck = 0;
                peer.not_sent_before = now;
            }
            if delivery == Delivery::Stored {
                smooth(&mut self.sent_us, now.0 - self.uploads[at].since.0);
            }
            self.measure_sent(wire_bytes);
        } else if delivery == Delivery::Broken {
            // one may be lost; who takes none is left alone for a while
            if peer.stuck > 0 {
                peer.not_sent_before = now + doubled(least, peer.stuck - 1, SILENT_MOST);
            }
            peer.stuck = peer.stuck.saturating_add(1);
            peer.ignores_pushes |= ticket.is_none();
        }
        // charged whole when it began: zeros, packed chunks and declined pushes cost less
        let charged = self.chunk_len(id, chunk);
        self.up_bucket.refund(charged.saturating_sub(wire_bytes));
        self.end_upload(at, delivery);
    }

    /// Who takes far longer than others holds up nobody else: what was to come of the upload goes on as if it were over.
    pub(super) fn watch_uploads(&mut self) {
        let (now, least) = (self.now, self.config.timeout_least);
        let after = slow_after(self.sent_us, self.config.push_assumed);
        let slow = self.uploads.iter().filter(|upload| upload.slow).count();
        let mut room = self.config.slow_uploads.saturating_sub(slow);
        for at in 0..self.uploads.len() {
            let upload = &mut self.uploads[at];
            if room == 0 || upload.slow || now.since(upload.since) < after {
                continue;
            }
            room -= 1;
            upload.slow = true;
            let settled = Upload {
                purpose: core::mem::replace(&mut upload.purpose, Purpose::Answer),
                ..upload.clone()
            };
            let peer = &mut self.peers[settled.peer.at()];
            peer.slow_uploads += 1;
            let wait = doubled(least, peer.stuck, SILENT_MOST);
            peer.not_sent_before = peer.not_sent_before.max(now + wait);
            peer.stuck = peer.stuck.saturating_add(1);
            peer.ignores_pushes |= settled.ticket.is_none();
            self.settle_upload(settled, Delivery::Broken);
            self.upload_wanted = true;
        }
    }

    /// An upload is over.
    pub(super) fn end_upload(&mut self, at: usize, delivery: Delivery) {
        let upload = self.uploads.swap_remove(at);
        self.upload_wanted = true;
        self.assign_wanted = !self.unassigned.is_empty();
        let state = &mut self.peers[upload.peer.at()];
        state.uploads = state.uploads.saturating_sub(1);
        state.slow_uploads -= usize::from(upload.slow).min(state.slow_uploads);
        if delivery == Delivery::Unwanted
            && let Some(content) = self.contents.get_mut(&upload.id)
        {
            content.set_unwanted_by(upload.peer, true);
        }
        self.settle_upload(upload, delivery);
    }

    /// What depended on an upload goes on.
    fn settle_upload(&mut self, upload: Upload, delivery: Delivery) {
        let now = self.now;
        match upload.purpose {
            Purpose::Answer => {}
            Purpose::Handover(handover) => match delivery {
                // who holds it already, or is receiving it, takes the spreading over all the same
                Delivery::Stored | Delivery::Already => {
                    self.settle_handover(&handover);
                    self.peers[handover.peer.at()].confirm(now, handover.work_bytes);
                    if handover.origin.is_ours() {
                        self.handed_on(handover.id);
                    }
                }
                Delivery::Busy | Delivery::Unwanted | Delivery::Bad | Delivery::Broken => {
                    self.rechoose(handover, 1);
                }
            },
            Purpose::Spread { job, tries } => {
                let Some(at) = self.jobs.iter().position(|other| other.seq == job) else {
                    return;
                };
                let entry = &mut self.jobs[at];
                entry.in_flight -= 1;
                if is_received(delivery) && entry.origin.is_ours() {
                    entry.origin = Origin::Nobody;
                    self.handed_on(upload.id);
                }
                if delivery == Delivery::Busy && tries < BUSY_TRIES {
                    let chunks = self.config.busy_wait_chunks * (u64::from(tries) / 4 + 1);
                    let wait = micros(self.chunk_len(upload.id, upload.chunk), self.rate);
                    let wait =
                        Duration::from_micros(wait.saturating_mul(chunks)).min(BUSY_WAIT_MOST);
                    self.jobs[at]
                        .retry
                        .push_back((upload.peer, tries + 1, now + wait));
                } else {
                    self.settle_target(at);
                    if self.jobs[at].left == 0 {
                        self.remove_job(at);
                    }
                }
            }
        }
    }

    /// The content is dropped: nothing of it is passed on.
    pub(super) fn drop_pushes_of(&mut self, id: ContentId) {
        for at in (0..self.jobs.len()).rev() {
            if self.jobs[at].id == id {
                self.jobs.remove(at);
            }
        }
        for at in (0..self.handovers.len()).rev() {
            if self.handovers[at].id == id
                && let Some(handover) = self.handovers.remove(at)
            {
                self.peers[handover.peer.at()].unassign(handover.work_bytes);
            }
        }
        self.recount();
    }

    /// The peer is forgotten: nothing may mention it.
    pub(super) fn purge_pushes_to(&mut self, index: PeerIndex) {
        for handover in &mut self.handovers {
            if handover.origin == Origin::Peer(index) {
                handover.origin = Origin::Nobody;
            }
        }
        for at in 0..self.jobs.len() {
            let job = &mut self.jobs[at];
            if job.origin == Origin::Peer(index) {
                job.origin = Origin::Nobody;
            }
            let before = job.retry.len();
            job.retry.retain(|(other, _, _)| *other != index);
            let mut gone = before - job.retry.len();
            match &mut job.targets {
                Targets::List(list) => {
                    let before = list.len();
                    list.retain(|other| *other != index);
                    gone += before - list.len();
                }
                Targets::Everyone { except, .. } => {
                    if *except == Some(index) {
                        *except = None;
                    }
                }
            }
            job.left = job.left.saturating_sub(gone);
        }
        for at in (0..self.handovers.len()).rev() {
            if self.handovers[at].peer == index
                && let Some(handover) = self.handovers.remove(at)
            {
                self.rechoose(handover, 1);
            }
        }
        self.recount();
    }

    /// The backlog from scratch, after a rare event.
    fn recount(&mut self) {
        let jobs: u64 = self
            .jobs
            .iter()
            .map(|job| self.chunk_len(job.id, job.chunk) * job.left as u64)
            .sum();
        let waiting: u64 = self
            .handovers
            .iter()
            .map(|handover| self.chunk_len(handover.id, handover.chunk))
            .sum();
        let under_way: u64 = self
            .uploads
            .iter()
            .filter(|upload| matches!(upload.purpose, Purpose::Handover(_)))
            .map(|upload| self.chunk_len(upload.id, upload.chunk))
            .sum();
        self.backlog_bytes = jobs + waiting + under_way;
    }
}

pub(super) fn half_over(now: Moment, since: Moment, deadline: Moment) -> bool {
    now.since(since) * 2 > deadline.since(since)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
