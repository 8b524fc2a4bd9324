//! Passing chunks on: choosing a spreader for a fresh chunk, and spreading the chunks that were handed to us.

use alloc::{collections::VecDeque, vec::Vec};
use core::time::Duration;

use proto::{ChunkIndex, HostKey};

use crate::{
    Action,
    agenda::TICK,
    choose::{Choice, choose, choose_among, declined, spread_bytes},
    event::{ContentId, Delivery, Spread},
    ground::Ground,
    jobs::{Jobs, LOOK_LEAST, Target},
    peer::PeerIndex,
    push::{Handover, Purpose, Upload, Wisher},
    uploads::Uploads,
};

/// If a part has found no spreader within this many tries, we spread the chunk there ourselves.
const HANDOVER_TRIES: u8 = 8;
/// The most spreads under way at one time for one peer, of chunks that were here before its push. More than an honest
/// host's share of its window.
const SPREADS_OF_HELD: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Pushes {
    /// Chunks from the registry that have no spreader yet.
    unassigned: VecDeque<(ContentId, ChunkIndex)>,
    handovers: VecDeque<Handover>,
    jobs: Jobs,
}

impl Pushes {
    pub(crate) fn is_idle(&self) -> bool {
        self.handovers.is_empty() && self.jobs.is_empty()
    }

    /// Bytes of pushes that we have yet to send.
    pub(crate) const fn backlog_bytes(&self) -> u64 {
        self.jobs.backlog_bytes()
    }

    /// Bytes of pushes to hosts that take what they are sent.
    pub(crate) fn ready_bytes(&self, ground: &Ground) -> u64 {
        let handovers = self.handovers.iter();
        let bytes = handovers.map(|of| ground.contents.len(of.id, of.chunk));
        self.jobs.ready_bytes(ground) + bytes.sum::<u64>()
    }

    /// Chunks of a content that have no spreader yet.
    pub(crate) fn unassigned_of(&self, id: ContentId) -> u32 {
        let of_it = self.unassigned.iter().filter(|(other, _)| *other == id);
        u32::try_from(of_it.count()).unwrap_or(u32::MAX)
    }

    /// Whether a chunk that was here before its push is passed on for this peer. Such a push costs the peer no byte, so
    /// the number of spreads is bounded.
    pub(crate) fn may_spread_held(
        &self,
        peer: PeerIndex,
        id: ContentId,
        chunk: ChunkIndex,
    ) -> bool {
        let handovers = self.handovers.iter();
        let handovers = handovers.map(|of| (of.id, of.chunk, of.wisher));
        let mut own = 0;
        for (other, of, wisher) in self.jobs.wishers().chain(handovers) {
            if other == id && of == chunk {
                return false;
            }
            own += usize::from(wisher.peer() == Some(peer));
        }
        own < SPREADS_OF_HELD
    }

    /// This peer asked us to pass on this chunk, which is here.
    pub(crate) fn take_spread(
        &mut self,
        ground: &mut Ground,
        (from, wisher): (PeerIndex, Wisher),
        id: ContentId,
        chunk: ChunkIndex,
        spread: Spread,
    ) {
        match spread {
            Spread::Everyone => self.spread_to_all(ground, id, chunk, (Some(from), wisher)),
            Spread::To(mut keys) => {
                keys.retain(|key| *key != ground.me);
                self.spread_to(ground, id, chunk, &keys, (Some(from), wisher));
            }
        }
    }

    /// A chunk came from the registry. It gets a spreader when there is one with little to do. Returns `false` if there
    /// is no room, or nobody to spread it to.
    pub(crate) fn take_fresh(&mut self, ground: &Ground, id: ContentId, chunk: ChunkIndex) -> bool {
        let room = self.unassigned.len() < ground.config.jobs;
        let taken = !ground.fleet.roster().is_empty() && room;
        if taken {
            self.unassigned.push_back((id, chunk));
        }
        taken
    }

    /// Passes a chunk on to every host that may have it.
    fn spread_to_all(
        &mut self,
        ground: &mut Ground,
        id: ContentId,
        chunk: ChunkIndex,
        (except, wisher): (Option<PeerIndex>, Wisher),
    ) {
        let content = ground.contents.get(id);
        let for_all = content.is_none_or(|content| content.entitled.is_none());
        if for_all && ground.fleet.roster().len() <= ground.config.direct_targets {
            self.jobs.add_everyone(ground, id, chunk, except, wisher);
        } else {
            let keys = roster_keys(ground, id, except);
            self.spread_to(ground, id, chunk, &keys, (except, wisher));
        }
    }

    fn spread_to(
        &mut self,
        ground: &mut Ground,
        id: ContentId,
        chunk: ChunkIndex,
        keys: &[HostKey],
        (except, wisher): (Option<PeerIndex>, Wisher),
    ) {
        if keys.len() <= ground.config.direct_targets {
            self.jobs
                .add_list(ground, id, chunk, keys, (except, wisher));
        } else {
            let ours = wisher.is_ours();
            let wisher = if ours { Wisher::Nobody } else { wisher };
            self.split(ground, id, chunk, keys, wisher);
            if ours {
                ground.handed_on(id);
            }
        }
    }

    /// Hands the chunk to one host of each part, which spreads it there.
    fn split(
        &mut self,
        ground: &mut Ground,
        id: ContentId,
        chunk: ChunkIndex,
        keys: &[HostKey],
        wisher: Wisher,
    ) {
        let most = keys.len().min(ground.fleet.roster().len());
        let keys = &keys[..most];
        if keys.is_empty() {
            return;
        }
        for part in keys.chunks(most.div_ceil(ground.config.fan_out.max(2))) {
            self.hand_over(ground, (id, chunk), Some(part.to_vec()), wisher, 0);
        }
    }

    // ---- handing over ---------------------------------------------------------------------------------------------

    /// Finds spreaders for the chunks that came from the registry, in order, while there are spreaders with little to
    /// do.
    pub(crate) fn assign_fresh(&mut self, ground: &mut Ground) {
        while let Some((id, chunk)) = self.unassigned.front().copied() {
            if self.handovers.len() >= ground.config.jobs {
                return;
            }
            if !ground.contents.holds(id, chunk) {
                self.unassigned.pop_front();
                ground.handed_on(id);
                continue;
            }
            match choose(ground, id, chunk, self.backlog_bytes()) {
                Choice::Me => {
                    self.unassigned.pop_front();
                    self.spread_to_all(ground, id, chunk, (None, Wisher::Ours));
                }
                Choice::Peer(peer) => {
                    self.unassigned.pop_front();
                    let handover = Handover {
                        id,
                        chunk,
                        part: None,
                        peer,
                        work_bytes: spread_bytes(ground, id, chunk),
                        tries: 0,
                        wisher: Wisher::Ours,
                    };
                    self.enqueue(ground, handover);
                }
                Choice::Wait(micros) => {
                    let wait = Duration::from_micros(micros).clamp(LOOK_LEAST, TICK);
                    ground.agenda.wake_at(ground.now + wait);
                    return;
                }
                Choice::Nobody => {
                    self.unassigned.pop_front();
                    ground.handed_on(id);
                }
            }
        }
    }

    /// Hands a chunk to the host with the least to do among some of `part`.
    fn hand_over(
        &mut self,
        ground: &mut Ground,
        (id, chunk): (ContentId, ChunkIndex),
        part: Option<Vec<HostKey>>,
        wisher: Wisher,
        tries: u8,
    ) {
        if !ground.contents.holds(id, chunk) {
            if wisher.is_ours() {
                ground.handed_on(id);
            }
            return;
        }
        if tries >= HANDOVER_TRIES || self.handovers.len() >= ground.config.jobs {
            // no host takes the part over: we spread the chunk there ourselves
            let part = part.as_deref().unwrap_or_default();
            self.jobs.add_list(ground, id, chunk, part, (None, wisher));
            return;
        }
        let Some(part) = part else {
            // a spreader failed: the chunk gets another like a fresh one
            self.unassigned.push_front((id, chunk));
            ground.agenda.assign();
            if !wisher.is_ours()
                && let Some(lease) = ground.contents.lease_mut(id)
            {
                lease.waiting += 1;
            }
            return;
        };
        let work_bytes = ground.contents.len(id, chunk) * part.len().saturating_sub(1) as u64;
        let Some(peer) = choose_among(ground, id, &part, work_bytes) else {
            if wisher.is_ours() {
                ground.handed_on(id);
            }
            return;
        };
        let handover = Handover {
            id,
            chunk,
            part: Some(part),
            peer,
            work_bytes,
            tries,
            wisher,
        };
        self.enqueue(ground, handover);
    }

    fn enqueue(&mut self, ground: &mut Ground, handover: Handover) {
        ground.fleet[handover.peer].assign(handover.work_bytes);
        let bytes = ground.contents.len(handover.id, handover.chunk);
        self.jobs.add_backlog(bytes);
        self.handovers.push_back(handover);
        ground.agenda.upload();
    }

    /// The next chunk that can be handed over now.
    pub(crate) fn next_handover(&mut self, ground: &mut Ground) -> Option<Upload> {
        let mut at = 0;
        while at < self.handovers.len().min(ground.config.uploads * 4) {
            let Handover {
                peer, id, chunk, ..
            } = self.handovers[at];
            let Some(content) = ground.contents.get(id) else {
                self.rechoose(ground, at, HANDOVER_TRIES);
                continue;
            };
            if !content.held.contains(chunk) {
                self.rechoose(ground, at, HANDOVER_TRIES);
                continue;
            }
            let state = &ground.fleet[peer];
            let up = state.is_up();
            if !content.entitles(state.key) || (up && !state.is_pushed_to(ground.now)) {
                // the peer may have been entitled when it was chosen
                self.rechoose(ground, at, 1);
                continue;
            }
            let most = match state.stuck {
                0 => ground.config.uploads_per_peer.max(1),
                _ => 1,
            };
            if up && state.uploads < most {
                let handover = self.handovers.remove(at)?;
                return Some(push_handover(ground, handover));
            }
            if !up && !ground.dial(peer) && !ground.may_come_up(peer) {
                self.rechoose(ground, at, 1);
                continue;
            }
            at += 1;
        }
        None
    }

    /// The chosen host doesn't take this handover: another host is chosen.
    fn rechoose(&mut self, ground: &mut Ground, at: usize, more_tries: u8) {
        if let Some(handover) = self.handovers.remove(at) {
            self.hand_elsewhere(ground, handover, more_tries);
        }
    }

    fn hand_elsewhere(&mut self, ground: &mut Ground, handover: Handover, more_tries: u8) {
        self.settle_handover(ground, &handover);
        ground.fleet[handover.peer].unassign(handover.work_bytes);
        let tries = handover.tries.saturating_add(more_tries);
        let of = (handover.id, handover.chunk);
        self.hand_over(ground, of, handover.part, handover.wisher, tries);
    }

    fn settle_handover(&mut self, ground: &Ground, handover: &Handover) {
        let bytes = ground.contents.len(handover.id, handover.chunk);
        self.jobs.take_backlog(bytes);
    }

    // ---- spreading ------------------------------------------------------------------------------------------------

    /// The next chunk that can be spread now.
    pub(crate) fn next_spread(&mut self, ground: &mut Ground) -> Option<Upload> {
        let target = self.jobs.next(ground)?;
        let Target {
            job,
            tries,
            peer,
            id,
            chunk,
        } = target;
        let key = ground.fleet[peer].key;
        ground.act(Action::Push {
            peer: key,
            id,
            chunk,
            spread: None,
        });
        Some(Upload {
            peer,
            id,
            chunk,
            ticket: None,
            purpose: Purpose::Spread { job, tries },
            since: ground.now,
            slow: false,
        })
    }

    /// With an upload to spare, makes sure that busy receivers are tried again in time.
    pub(crate) fn wake_for_retries(&self, ground: &mut Ground) {
        if let Some(due) = self.jobs.quiet_until(ground.now) {
            let due = due.max(ground.now + LOOK_LEAST);
            ground.agenda.wake_at(due);
        }
    }

    // ---- how pushes end -------------------------------------------------------------------------------------------

    /// An upload ended: what depended on it goes on.
    pub(crate) fn settle(&mut self, ground: &mut Ground, upload: Upload, delivery: Delivery) {
        match upload.purpose {
            Purpose::Answer => {}
            Purpose::Handover(handover) => match delivery {
                // a host that holds or is receiving the chunk already takes the spreading over all the same
                Delivery::Stored | Delivery::Already => {
                    self.settle_handover(ground, &handover);
                    let now = ground.now;
                    ground.fleet[handover.peer].confirm(now, handover.work_bytes);
                    if handover.wisher.is_ours() {
                        ground.handed_on(handover.id);
                    }
                }
                Delivery::Busy | Delivery::Unwanted | Delivery::Bad | Delivery::Broken => {
                    if delivery == Delivery::Busy && handover.part.is_none() {
                        declined(ground, handover.peer, handover.id, handover.chunk);
                    }
                    self.hand_elsewhere(ground, handover, 1);
                }
            },
            Purpose::Spread { job, tries } => {
                let target = Target {
                    job,
                    tries,
                    peer: upload.peer,
                    id: upload.id,
                    chunk: upload.chunk,
                };
                self.jobs.settle(ground, &target, delivery);
            }
        }
    }

    /// The content is dropped: none of its chunks is passed on.
    pub(crate) fn drop_content(&mut self, ground: &mut Ground, uploads: &Uploads, id: ContentId) {
        self.unassigned.retain(|(other, _)| *other != id);
        self.jobs.drop_content(id);
        for at in (0..self.handovers.len()).rev() {
            if self.handovers[at].id == id
                && let Some(handover) = self.handovers.remove(at)
            {
                ground.fleet[handover.peer].unassign(handover.work_bytes);
            }
        }
        self.recount(ground, uploads);
    }

    /// The peer is forgotten: nothing may mention it.
    pub(crate) fn forget_peer(&mut self, ground: &mut Ground, uploads: &Uploads, index: PeerIndex) {
        for handover in &mut self.handovers {
            if handover.wisher.peer() == Some(index) {
                handover.wisher = Wisher::Nobody;
            }
        }
        self.jobs.forget_peer(index);
        for at in (0..self.handovers.len()).rev() {
            if self.handovers[at].peer == index {
                self.rechoose(ground, at, 1);
            }
        }
        self.recount(ground, uploads);
    }

    /// Counts the backlog from scratch, after a rare event.
    fn recount(&mut self, ground: &Ground, uploads: &Uploads) {
        let len = |id, chunk| ground.contents.len(id, chunk);
        let waiting = self.handovers.iter();
        let waiting: u64 = waiting.map(|of| len(of.id, of.chunk)).sum();
        let under_way = uploads.iter();
        let under_way: u64 = under_way
            .filter(|upload| matches!(upload.purpose, Purpose::Handover(_)))
            .map(|upload| len(upload.id, upload.chunk))
            .sum();
        self.jobs.recount(ground, waiting + under_way);
    }

    #[cfg(test)]
    pub(crate) fn jobs(&mut self) -> &mut Jobs {
        &mut self.jobs
    }

    #[cfg(test)]
    pub(crate) fn handovers(&self) -> usize {
        self.handovers.len()
    }

    #[cfg(test)]
    pub(crate) fn unassigned(&self) -> usize {
        self.unassigned.len()
    }
}

fn push_handover(ground: &mut Ground, handover: Handover) -> Upload {
    let (peer, id, chunk) = (handover.peer, handover.id, handover.chunk);
    let key = ground.fleet[peer].key;
    let spread = match &handover.part {
        None => Spread::Everyone,
        Some(part) => {
            let mut rest = part.clone();
            rest.retain(|other| *other != key);
            rest.sort_unstable();
            Spread::To(rest)
        }
    };
    ground.act(Action::Push {
        peer: key,
        id,
        chunk,
        spread: Some(spread),
    });
    Upload {
        peer,
        id,
        chunk,
        ticket: None,
        purpose: Purpose::Handover(handover),
        since: ground.now,
        slow: false,
    }
}

/// All hosts of the roster that may have the content, without `except`.
fn roster_keys(ground: &Ground, id: ContentId, except: Option<PeerIndex>) -> Vec<HostKey> {
    let roster = ground.fleet.roster().iter();
    roster
        .filter(|index| Some(**index) != except)
        .map(|index| ground.fleet[*index].key)
        .filter(|key| ground.contents.entitles(id, *key))
        .collect()
}
