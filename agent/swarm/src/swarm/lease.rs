//! Fetching from the registry: leases, their pace, and doing without a coordinator.

use super::*;
use crate::{
    content::{Grantor, Lease, PATIENCE},
    event::OriginEnd,
};

/// Each chunk that a peer delivers gives so much of the time back that is waited for peers: who keeps promises is waited for.
const PATIENCE_BACK: Duration = Duration::from_millis(500);
/// Headless, the next host in line takes a content over when nothing was heard of it for this long.
const HEADLESS_TURN: Duration = Duration::from_secs(10);
/// Headless, a host that the registry failed asks it again after this long: nobody else may be left to do it.
const HEADLESS_AGAIN: Duration = Duration::from_mins(1);
/// Headless, nothing was heard of a content for this long before anybody takes it over: whoever was leased it may go on.
const HEADLESS_QUIET: Duration = Duration::from_secs(3);

impl Swarm {
    pub(super) fn take_lease(&mut self, id: ContentId) {
        self.grant(id, Grantor::Coordinator);
    }

    fn grant(&mut self, id: ContentId, grantor: Grantor) {
        let now = self.now;
        let Some(content) = self.contents.get_mut(&id) else {
            self.actions.push_back(Action::ReleaseLease(id));
            return;
        };
        if content.held.is_full() {
            if grantor == Grantor::Coordinator {
                self.actions.push_back(Action::ReleaseLease(id));
            }
            return;
        }
        content.origin_failed = false;
        content.origin_retry_at = Some(now);
        if let Some(lease) = &mut content.lease {
            lease.grantor = grantor;
            return;
        }
        let waiting = self
            .unassigned
            .iter()
            .filter(|(other, _)| *other == id)
            .count();
        content.lease = Some(Lease {
            grantor,
            until: 0,
            ordered: 0,
            ordered_at: now,
            waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
            blocked_since: None,
            origin_at: now,
        });
        self.leased.insert(id);
        self.wants.began(now, id);
        self.pull_wanted = true;
        self.order_wanted = true;
    }

    /// The coordinator took its lease back. What we fetch on our own account goes on.
    pub(super) fn lose_lease(&mut self, id: ContentId) {
        let ours = self
            .lease_mut(id)
            .is_some_and(|lease| lease.grantor == Grantor::Client);
        if !ours {
            // whoever took it back leases it to another host, or leaves the registry alone for a while
            self.wants.heard(self.now, id);
            self.end_lease(id);
        }
    }

    pub(super) fn want(&mut self, id: ContentId, alone_after: Duration, admitted: bool) {
        if self.contents.contains_key(&id) {
            self.wants.begin(self.now, id, alone_after, admitted);
            self.fetch_alone();
            self.wake();
        }
    }

    /// No client waits any more: what is fetched for clients alone ends.
    pub(super) fn unwant(&mut self, id: ContentId) {
        self.wants.end(id);
        let lease = self.lease_mut(id);
        if lease.is_some_and(|lease| lease.grantor == Grantor::Client) {
            self.end_lease(id);
        }
    }

    /// Fetches without a lease what clients of this host have waited for long enough.
    pub(super) fn fetch_alone(&mut self) {
        if self.wants.is_empty() {
            return;
        }
        let alone = self.leased.iter().filter(|id| {
            let lease = self.contents.get(id).and_then(|of| of.lease.as_ref());
            lease.is_some_and(|lease| lease.grantor == Grantor::Client)
        });
        let room = self.config.lone_fetches.saturating_sub(alone.count());
        let turn = |id: ContentId| {
            let content = self.contents.get(&id)?;
            let waits = content.lease.is_none() && !content.held.is_full();
            (waits && !content.is_paused(self.now)).then(|| self.turn(content))
        };
        let due = self.wants.due(self.now, self.coordinator, turn);
        for id in due.into_iter().take(room) {
            self.grant(id, Grantor::Client);
        }
    }

    pub(super) fn lease_mut(&mut self, id: ContentId) -> Option<&mut Lease> {
        self.contents.get_mut(&id)?.lease.as_mut()
    }

    /// The lease is over; fetching stops.
    pub(super) fn end_lease(&mut self, id: ContentId) {
        self.leased.remove(&id);
        let lease = self
            .contents
            .get_mut(&id)
            .and_then(|content| content.lease.take());
        if lease.is_some_and(|lease| lease.until > 0) {
            self.actions.push_back(Action::StopFetch(id));
        }
    }

    /// The last chunk came from a peer: nothing is left to fetch.
    pub(super) fn lease_done_by_peers(&mut self, id: ContentId) {
        let done = self
            .contents
            .get(&id)
            .is_some_and(|content| content.held.is_full() && content.lease.is_some());
        if done {
            let ours = self.lease_mut(id).map(|lease| lease.grantor);
            self.end_lease(id);
            if ours == Some(Grantor::Coordinator) {
                self.actions.push_back(Action::ReleaseLease(id));
            }
        }
    }

    pub(super) fn origin_chunk(&mut self, id: ContentId, chunk: ChunkIndex, wire_bytes: u64) {
        let now = self.now;
        self.down_bucket.spend(wire_bytes);
        let new = self.hold(id, chunk);
        self.cancel_others(id, chunk);
        let Some(content) = self.contents.get_mut(&id) else {
            return;
        };
        if let Some(lease) = &mut content.lease {
            lease.origin_at = now;
            if new {
                lease.waiting += 1;
            }
        }
        self.assign_wanted = true;
        self.order_wanted = true;
        let most = self.config.jobs;
        if new && !self.roster.is_empty() && self.unassigned.len() < most {
            self.unassigned.push_back((id, chunk));
        } else if new && let Some(lease) = self.lease_mut(id) {
            lease.waiting -= 1;
        }
    }

    pub(super) fn origin_ended(&mut self, id: ContentId, end: OriginEnd) {
        let Some(content) = self.contents.get_mut(&id) else {
            return;
        };
        content.origin_failed = end != OriginEnd::Done;
        content.origin_retry_at = match end {
            OriginEnd::Done => Some(self.now),
            OriginEnd::Failed | OriginEnd::Refused => Some(self.now + HEADLESS_AGAIN),
            OriginEnd::Bad => None,
        };
        if end == OriginEnd::Refused {
            self.wants.refused(id);
        }
        let had = content.lease.take().map(|lease| lease.grantor);
        let full = content.held.is_full();
        self.leased.remove(&id);
        if end == OriginEnd::Done && !full && had == Some(Grantor::Coordinator) {
            // something wasn't stored, or was lost since: another host, or a new lease
            self.actions.push_back(Action::ReleaseLease(id));
        }
    }

    /// Orders more chunks, while those that came before are being spread.
    pub(super) fn order_from_origin(&mut self) {
        if !self.down_bucket.allows(self.now) {
            return;
        }
        let now = self.now;
        let window = self.config.lease_window.max(1);
        // What was ordered and didn't come yet is as good as spent. But each stream is owed a chunk, or slow streams would use less
        // than the budget: it is overdrawn by a chunk for each lease at most.
        let mut budget = self.down_bucket;
        let leases = self.leased.iter().filter_map(|id| self.contents.get(id));
        let owed = leases.filter_map(|content| Some(content.lease.as_ref()?.ordered));
        budget.spend(owed.map(u64::from).sum::<u64>() * proto::CHUNK_BYTES);
        for id in &self.leased {
            let Some(content) = self.contents.get_mut(id) else {
                continue;
            };
            if content.is_paused(now) {
                continue;
            }
            let Some(mut lease) = content.lease.take() else {
                continue;
            };
            let ordered = lease.ordered;
            let mut blocked = false;
            while lease.until < content.chunks()
                && lease.ordered.saturating_add(lease.waiting) < window
            {
                let chunk = ChunkIndex(lease.until);
                if content.held.contains(chunk) {
                    lease.until += 1;
                    continue;
                }
                // what peers have doesn't leave the registry again
                let elsewhere = content.pending.contains(chunk)
                    || content
                        .is_held_by(chunk, |slot| delivers(&self.slots, &self.peers, slot, now));
                if elsewhere && lease.blocked(now) < content.patience {
                    self.pull_wanted = true;
                    blocked = true;
                    break;
                }
                if lease.ordered > 0 && !budget.allows(now) {
                    break;
                }
                budget.spend(content.geometry.len(chunk).into());
                lease.order(now);
                lease.until += 1;
            }
            if blocked {
                lease.blocked_since.get_or_insert(now);
            } else {
                content.patience = content.patience.saturating_sub(lease.blocked(now));
                lease.blocked_since = None;
            }
            // to pass over what is held orders nothing: whoever begins to fetch there fetches what peers are about to bring
            if lease.ordered > ordered {
                self.actions.push_back(Action::Fetch {
                    id: *id,
                    until: ChunkIndex(lease.until),
                });
            }
            content.lease = Some(lease);
        }
    }

    /// A peer delivered a chunk of this content: it is worth waiting for peers.
    pub(super) fn give_patience_back(&mut self, id: ContentId) {
        let now = self.now;
        let Some(content) = self.contents.get_mut(&id) else {
            return;
        };
        if let Some(lease) = &mut content.lease {
            content.patience = content.patience.saturating_sub(lease.blocked(now));
            if let Some(since) = &mut lease.blocked_since {
                *since = now;
            }
        }
        content.patience = (content.patience + PATIENCE_BACK).min(PATIENCE.1);
    }

    /// How many of those who are known to want this content, and lack some of it, come before us where it is fetched without
    /// a lease. Who is connected and no neighbour of ours isn't known: in a fleet of more than a few dozen hosts several
    /// come first.
    fn turn(&self, content: &Content) -> u32 {
        let mine = mix(self.me.0, content.key);
        let before = self.neighbours.iter().filter(|index| {
            let peer = &self.peers[index.at()];
            let wants = peer
                .slot
                .and_then(|slot| content.have.get(slot)?.as_ref())
                .is_some_and(|held| !held.is_full());
            peer.is_up() && wants && mix(peer.key.0, content.key) > mine
        });
        u32::try_from(before.count()).unwrap_or(u32::MAX)
    }

    pub(super) fn set_coordinator(&mut self, up: bool) {
        if self.coordinator && !up {
            self.coordinator_lost_at = self.now;
        }
        self.coordinator = up;
        if up && self.headless {
            self.headless = false;
            for content in self.contents.values_mut() {
                content.headless_since = None;
            }
            for id in self.leased.clone() {
                if self
                    .lease_mut(id)
                    .is_some_and(|lease| lease.grantor == Grantor::Headless)
                {
                    self.end_lease(id);
                }
            }
        }
    }

    /// Without a coordinator for long, hosts take leases by rendezvous order.
    pub(super) fn watch_coordinator(&mut self) {
        if self.coordinator || self.now.since(self.coordinator_lost_at) < self.config.headless_after
        {
            return;
        }
        self.headless = true;
        let wanted: Vec<ContentId> = self
            .incomplete
            .iter()
            .map(|(_, id)| *id)
            .filter(|id| {
                self.contents.get(id).is_some_and(|content| {
                    !content.is_complete_elsewhere()
                        && !content.is_paused(self.now)
                        && content.origin_retry_at.is_some_and(|at| at <= self.now)
                })
            })
            .take(self.config.origin_streams)
            .collect();
        let mut room = self.config.origin_streams.saturating_sub(self.leased.len());
        for id in wanted {
            if room == 0 {
                return;
            }
            let now = self.now;
            let Some(content) = self.contents.get_mut(&id) else {
                continue;
            };
            let first_seen = *content.headless_since.get_or_insert(now);
            if content.lease.is_some() {
                continue;
            }
            let key = content.key;
            let quiet = now.since(content.news_at.max(content.grown_at));
            let since = now.since(first_seen);
            let mine = mix(self.me.0, key);
            let rank = self
                .up
                .iter()
                .map(|index| &self.peers[index.at()])
                .filter(|peer| peer.is_up() && mix(peer.key.0, key) > mine)
                .count();
            let turn = HEADLESS_TURN * u32::try_from(rank).unwrap_or(u32::MAX);
            let quiet_long = quiet >= turn.max(HEADLESS_QUIET) && since >= turn;
            if quiet_long {
                self.grant(id, Grantor::Headless);
                room -= 1;
            }
        }
    }
}

/// Whether what the peer at this slot announced can be expected of it.
fn delivers(slots: &[Option<PeerIndex>], peers: &[Peer], slot: usize, now: Moment) -> bool {
    slots
        .get(slot)
        .copied()
        .flatten()
        .is_some_and(|index| peers[index.at()].delivers(now))
}
