//! Fetching from the registry: leases, the pace of orders, and doing without a coordinator.

use alloc::{collections::BTreeSet, vec::Vec};
use core::time::Duration;

use proto::{ChunkIndex, ChunkRange, Moment, tie::mix};

use crate::{
    Action,
    content::{Content, Grantor, Lease},
    event::{ContentId, OriginEnd},
    ground::Ground,
};

/// Without a coordinator, each host in line waits this much longer than the host before it, and then takes over a
/// content that nothing was heard of.
const HEADLESS_TURN: Duration = Duration::from_secs(10);
/// Without a coordinator, a host that the registry failed asks it again after this long: no other host may be left to
/// do so.
const HEADLESS_AGAIN: Duration = Duration::from_mins(1);
/// Without a coordinator, a content is taken over at the earliest when nothing was heard of it for this long: the host
/// that had the lease may go on.
const HEADLESS_QUIET: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(crate) struct Leases {
    /// Contents that we fetch from the registry.
    leased: BTreeSet<ContentId>,
    coordinator: bool,
    coordinator_lost_at: Moment,
    /// Hosts assign leases to themselves, for want of a coordinator.
    headless: bool,
}

impl Leases {
    pub(crate) const fn new() -> Self {
        Self {
            leased: BTreeSet::new(),
            coordinator: false,
            coordinator_lost_at: Moment::START,
            headless: false,
        }
    }

    pub(crate) const fn has_coordinator(&self) -> bool {
        self.coordinator
    }

    pub(crate) const fn is_headless(&self) -> bool {
        self.headless
    }

    /// The number of leases from this grantor.
    pub(crate) fn count(&self, ground: &Ground, grantor: Grantor) -> usize {
        let leases = self.leased.iter();
        let leases = leases.filter_map(|id| ground.contents.get(*id)?.lease.as_ref());
        leases.filter(|lease| lease.grantor == grantor).count()
    }

    /// Grants a lease: a content, or a range of it, may be fetched from the registry. `unassigned`: chunks of the
    /// content that came from the registry and have no spreader yet. Returns whether the lease is new.
    pub(crate) fn grant(
        &mut self,
        ground: &mut Ground,
        id: ContentId,
        (grantor, granted): (Grantor, Option<ChunkRange>),
        unassigned: u32,
    ) -> bool {
        let now = ground.now;
        let before = ground.contents.lease_mut(id);
        // a fetch for our own clients goes on as it is
        if before.is_some_and(|of| of.granted != granted && of.grantor != Grantor::Client) {
            self.end(ground, id);
        }
        let Some(content) = ground.contents.get_mut(id) else {
            ground.act(Action::ReleaseLease(id));
            return false;
        };
        if content.held.is_full() {
            if grantor == Grantor::Coordinator {
                ground.act(Action::ReleaseLease(id));
            }
            return false;
        }
        content.origin_failed = false;
        content.origin_retry_at = Some(now);
        if let Some(lease) = &mut content.lease {
            lease.grantor = grantor;
            return false;
        }
        let range = granted.and_then(|granted| content.to_fetch(granted));
        if granted.is_some() && range.is_none_or(|range| content.holds(range)) {
            ground.act(Action::RangeDone(id));
            return false;
        }
        content.lease = Some(Lease {
            grantor,
            granted,
            range,
            until: range.map_or(0, ChunkRange::from),
            ordered: 0,
            ordered_at: now,
            waiting: unassigned,
            blocked_since: None,
            origin_at: now,
        });
        self.leased.insert(id);
        ground.agenda.pull();
        ground.agenda.order();
        true
    }

    /// The lease is over; fetching stops.
    pub(crate) fn end(&mut self, ground: &mut Ground, id: ContentId) {
        self.leased.remove(&id);
        let content = ground.contents.get_mut(id);
        let lease = content.and_then(|content| content.lease.take());
        if lease.is_some_and(|lease| lease.until > lease.first()) {
            ground.act(Action::StopFetch(id));
        }
    }

    /// A chunk came from a peer. If it was the last one, nothing is left to fetch.
    pub(crate) fn done_by_peers(&mut self, ground: &mut Ground, id: ContentId) {
        let Some(content) = ground.contents.get(id) else {
            return;
        };
        let Some(lease) = &content.lease else {
            return;
        };
        let granted = lease.grantor == Grantor::Coordinator;
        let action = match lease.range {
            _ if content.held.is_full() => Action::ReleaseLease(id),
            Some(range) if content.holds(range) => Action::RangeDone(id),
            _ => return,
        };
        self.end(ground, id);
        if granted {
            ground.act(action);
        }
    }

    pub(crate) fn origin_ended(&mut self, ground: &mut Ground, id: ContentId, end: OriginEnd) {
        let now = ground.now;
        let Some(content) = ground.contents.get_mut(id) else {
            return;
        };
        content.origin_failed = end != OriginEnd::Done;
        content.origin_retry_at = match end {
            OriginEnd::Done => Some(now),
            OriginEnd::Failed | OriginEnd::Refused => Some(now + HEADLESS_AGAIN),
            OriginEnd::Bad => None,
        };
        let had = content.lease.take();
        let range = had.as_ref().and_then(|lease| lease.range);
        let granted = had.is_some_and(|lease| lease.grantor == Grantor::Coordinator);
        let full = match range {
            Some(range) => content.holds(range),
            None => content.held.is_full(),
        };
        self.leased.remove(&id);
        if end == OriginEnd::Done && !full && granted {
            // some chunk wasn't stored, or was lost since: another host or a new lease brings it
            ground.act(Action::ReleaseLease(id));
        }
    }

    /// Orders more chunks, while those that came before are being spread. Where a limit doesn't allow all, contents
    /// come in their order.
    pub(crate) fn order(&self, ground: &mut Ground) {
        if !ground.pace.may_receive(ground.now) {
            return;
        }
        let now = ground.now;
        let window = ground.config.lease_window.max(1);
        // Chunks that were ordered and haven't come count as spent. But each stream may have one chunk on order in any
        // case, or slow streams would use less than the budget. Thus the budget is overdrawn by at most one chunk for
        // each lease.
        let mut budget = ground.pace.budget();
        let leases = self.leased.iter();
        let leases = leases.filter_map(|id| ground.contents.get(*id)?.lease.as_ref());
        let owed = leases.map(|lease| u64::from(lease.ordered)).sum::<u64>();
        budget.spend(owed * proto::CHUNK_BYTES);
        let order = |id: &ContentId| ground.contents.get(*id).map(Content::order);
        let mut leased: Vec<ContentId> = self.leased.iter().copied().collect();
        leased.sort_by_key(order);
        for id in &leased {
            let Some(content) = ground.contents.get_mut(*id) else {
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
            let end = lease.end(content.chunks());
            while lease.until < end && lease.ordered.saturating_add(lease.waiting) < window {
                let chunk = ChunkIndex(lease.until);
                if content.held.contains(chunk) {
                    lease.until += 1;
                    continue;
                }
                // the registry isn't asked for chunks that peers have
                let fleet = &ground.fleet;
                let elsewhere = content.pending.contains(chunk)
                    || content.is_held_by(chunk, |slot| fleet.delivers(slot, now));
                if elsewhere && lease.blocked(now) < content.patience {
                    ground.agenda.pull();
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
            // passing over held chunks orders nothing: a fetch that began there would fetch chunks that peers are about
            // to bring
            if lease.ordered > ordered {
                ground.actions.push_back(Action::Fetch {
                    id: *id,
                    range: lease.range,
                    until: ChunkIndex(lease.until),
                });
            }
            content.lease = Some(lease);
        }
    }

    // ---- without a coordinator ------------------------------------------------------------------------------------

    pub(crate) fn set_coordinator(&mut self, ground: &mut Ground, up: bool) {
        if self.coordinator && !up {
            self.coordinator_lost_at = ground.now;
        }
        self.coordinator = up;
        if up && self.headless {
            self.headless = false;
            for (_, content) in ground.contents.iter_mut() {
                content.headless_since = None;
            }
            for id in self.leased.clone() {
                let lease = ground.contents.lease_mut(id);
                if lease.is_some_and(|lease| lease.grantor == Grantor::Headless) {
                    self.end(ground, id);
                }
            }
        }
    }

    /// When there has been no coordinator for long, hosts take leases by rendezvous order. Returns the contents that it
    /// is our turn to take.
    pub(crate) fn watch_coordinator(&mut self, ground: &mut Ground) -> Vec<ContentId> {
        let (now, most) = (ground.now, ground.config.origin_streams);
        if self.coordinator || now.since(self.coordinator_lost_at) < ground.config.headless_after {
            return Vec::new();
        }
        self.headless = true;
        let open = |id: &ContentId| {
            ground.contents.get(*id).is_some_and(|content| {
                !content.is_complete_elsewhere()
                    && !content.is_paused(now)
                    && content.origin_retry_at.is_some_and(|at| at <= now)
            })
        };
        let incomplete = ground.contents.incomplete().map(|(_, id)| id);
        let wanted: Vec<ContentId> = incomplete.filter(open).take(most).collect();
        let room = most.saturating_sub(self.leased.len());
        let mut turns = Vec::new();
        for id in wanted {
            if turns.len() == room {
                break;
            }
            if is_our_turn(ground, id) {
                turns.push(id);
            }
        }
        turns
    }
}

/// Whether, without a coordinator, it is our turn to fetch a content: each host before us has had its turn.
fn is_our_turn(ground: &mut Ground, id: ContentId) -> bool {
    let now = ground.now;
    let Some(content) = ground.contents.get_mut(id) else {
        return false;
    };
    let first_seen = *content.headless_since.get_or_insert(now);
    if content.lease.is_some() {
        return false;
    }
    let key = content.key;
    let quiet = now.since(content.news_at.max(content.grown_at));
    let since = now.since(first_seen);
    let mine = mix(ground.me.0, key);
    let up = ground.fleet.up().iter().map(|index| &ground.fleet[*index]);
    let before = up.filter(|peer| peer.is_up() && mix(peer.key.0, key) > mine);
    let turn = HEADLESS_TURN * u32::try_from(before.count()).unwrap_or(u32::MAX);
    quiet >= turn.max(HEADLESS_QUIET) && since >= turn
}

/// How many hosts come before us when a content is fetched without a lease for a client. Counted are the neighbours
/// that are known to want this content and lack some of it. Other connected hosts aren't known: in a fleet of more than
/// a few dozen hosts, several hosts may come first.
pub(crate) fn turn(ground: &Ground, content: &Content) -> u32 {
    let mine = mix(ground.me.0, content.key);
    let before = ground.fleet.neighbours().iter().filter(|index| {
        let peer = &ground.fleet[**index];
        peer.is_up() && content.is_lacked_at(peer.slot) && mix(peer.key.0, content.key) > mine
    });
    u32::try_from(before.count()).unwrap_or(u32::MAX)
}
