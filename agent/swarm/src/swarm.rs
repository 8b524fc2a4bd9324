//! The swarm itself: how events change its parts, and the order in which the consequences follow.
//!
//! Each part owns the state that it decides by: `downloads` asks for chunks and takes pushes, `pushes` passes chunks
//! on, `uploads` and `serve` are what goes out, `leases` fetches from the registry, `wants` knows what clients wait
//! for, `news` announces. All of them share `ground`: the fleet, the contents, the pace of this host, and the list of
//! actions. This module handles what concerns several parts.

use alloc::{collections::BTreeMap, vec::Vec};
use core::time::Duration;

use proto::{ChunkIndex, ChunkRange, ChunkSet, Geometry, HostKey, Moment, pause::doubled};

use crate::{
    Action, Config, Event, Status,
    action::Declined,
    agenda::TICK,
    choose,
    content::{Content, Grantor},
    downloads::{self, Downloads, Offer},
    event::{ContentId, Delivery, Entitled, Failure, OriginEnd, Peer as Entry, Spread, Ticket},
    ground::Ground,
    jobs::LOOK_LEAST,
    leases::{self, Leases},
    news::{self, News},
    peer::{Line, Peer, PeerIndex},
    promises,
    push::Wisher,
    pushes::Pushes,
    report,
    serve::{Askers, Next, Serve},
    uploads::Uploads,
    want::Wants,
};

/// A peer that didn't want a content is offered it again after this long, since orders to stage reach hosts at
/// different times.
const UNWANTED_FOR: Duration = Duration::from_secs(5);
/// Of two neighbours, the one with the larger key waits this long for the other's connection. Both hear of each other
/// within a few hundred milliseconds, and a connection then takes a few. The wait is bounded: after a restart only one
/// of the two hears of the other, and the other may take the earlier connection for alive.
const DIAL_HEAD_START: Duration = Duration::from_millis(500);
/// A peer that refused a chunk for another reason isn't asked for this long.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// One host's part of the swarm.
#[derive(Debug)]
pub struct Swarm {
    ground: Ground,
    downloads: Downloads,
    pushes: Pushes,
    uploads: Uploads,
    serve: Serve,
    leases: Leases,
    wants: Wants,
    news: News,
    forget_unwanted_at: Moment,
}

impl Swarm {
    /// An empty swarm of this host.
    #[must_use]
    pub fn new(me: HostKey, config: Config, seed: u64) -> Self {
        Self {
            ground: Ground::new(me, config, seed),
            downloads: Downloads::default(),
            pushes: Pushes::default(),
            uploads: Uploads::default(),
            serve: Serve::default(),
            leases: Leases::new(),
            wants: Wants::default(),
            news: News::new(),
            forget_unwanted_at: Moment::START,
        }
    }

    /// Takes note of an event. Any event is legal in any state. `now` shouldn't go back; if it does, the latest moment
    /// seen counts.
    pub fn handle(&mut self, now: Moment, event: Event) {
        self.ground.now = self.ground.now.max(now);
        self.apply(event);
        if self.ground.agenda.pass(self.ground.now) {
            self.tick();
        }
        self.settle();
    }

    /// The next action for the shell. After every [`handle`](Self::handle), call this until it returns `None`.
    pub fn poll(&mut self) -> Option<Action> {
        self.ground.actions.pop_front()
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Moment> {
        let ground = &self.ground;
        let idle = ground.fleet.roster().is_empty() && ground.contents.is_empty();
        (!idle).then(|| ground.agenda.next())
    }

    /// The state of the swarm at `now`.
    #[must_use]
    pub fn status(&self, now: Moment) -> Status {
        let ground = &self.ground;
        let now = now.max(ground.now);
        let status = |of| report::content_status(ground, &self.downloads, now, of);
        let roster = ground.fleet.roster();
        let roster = roster.iter().map(|index| &ground.fleet[*index]);
        Status {
            contents: ground.contents.iter().map(status).collect(),
            peers: roster.len(),
            connected: ground.fleet.up().len(),
            quarantined: roster
                .filter(|peer| peer.is_quarantined())
                .map(|peer| peer.key)
                .collect(),
            backlog_bytes: self.pushes.backlog_bytes(),
            upload_bytes_per_second: ground.pace.measured_rate(),
            uploads: self.uploads.len(),
            headless: self.leases.is_headless(),
        }
    }

    fn apply(&mut self, event: Event) {
        let ground = &mut self.ground;
        match event {
            Event::Roster(roster) => self.set_roster(&roster),
            Event::Coordinator(up) => self.leases.set_coordinator(ground, up),
            Event::Connected(peer) => self.connected(peer),
            Event::Disconnected(peer) => self.disconnected(peer),
            Event::Content {
                id,
                key,
                size,
                held,
                order,
                entitled,
            } => self.set_content((id, key, size), held, order, entitled),
            Event::Dropped(id) => self.drop_content(id),
            Event::Wanted {
                id,
                alone_after,
                admitted,
            } => self.want(id, alone_after, admitted),
            Event::Unwanted(id) => self.unwant(id),
            Event::Coming(id) => self.wants.heard(ground.now, id),
            Event::ChunkLost { id, chunk } => self.lose_chunk(id, chunk),
            Event::Announced {
                peer,
                id,
                chunks,
                reset,
            } => news::hear(ground, peer, id, &chunks, reset),
            Event::Load {
                peer,
                backlog_bytes,
                upload_bytes_per_second,
            } => news::hear_load(ground, peer, backlog_bytes, upload_bytes_per_second),
            Event::Leased(id) => self.grant(id, Grantor::Coordinator, None),
            Event::RangeLeased(id, range) => self.grant(id, Grantor::Coordinator, Some(range)),
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
            } => self.offered(ticket, peer, (id, chunk), spread),
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
            } => {
                if self.serve.requested(ground, ticket, peer, id, chunk) {
                    self.news.served(ground.now);
                }
            }
            Event::Withdrawn(ticket) => self.serve.withdrawn(ticket),
            Event::Sent {
                peer,
                id,
                chunk,
                ticket,
                delivery,
                wire_bytes,
                work_bytes,
            } => self.sent(
                peer,
                (id, chunk, ticket),
                delivery,
                (wire_bytes, work_bytes),
            ),
            Event::Blamed(peer) => self.blamed(peer),
            Event::Bandwidth {
                upload_bytes_per_second: up,
                download_bytes_per_second: down,
            } => ground.pace.set_budgets(ground.now, up, down),
            Event::StepBack(step_back) => ground.step_back = step_back,
            Event::Tick => {}
        }
    }

    /// Does whatever has become possible.
    fn settle(&mut self) {
        let ground = &mut self.ground;
        if ground.agenda.take_assign() {
            self.pushes.assign_fresh(ground);
        }
        if ground.agenda.take_order() {
            self.leases.order(ground);
        }
        if ground.agenda.take_pull() {
            self.downloads.pull(ground);
        }
        if ground.agenda.take_upload() {
            self.fill_uploads();
        }
    }

    fn tick(&mut self) {
        let ground = &mut self.ground;
        let busy = !ground.contents.is_complete()
            || !self.pushes.is_idle()
            || !self.uploads.is_empty()
            || !self.serve.is_empty()
            || self.news.is_due()
            || ground.leaves_dialling_to_others();
        ground.agenda.tick(ground.now, busy);
        ground.fleet.release_quarantined(ground.now);
        ground.dial_about();
        self.downloads.expire(ground);
        promises::forget(ground);
        self.news.ask_for_vouchers(ground);
        self.watch_uploads();
        downloads::turn_grace(&mut self.ground);
        self.hurry();
        for id in self.leases.watch_coordinator(&mut self.ground) {
            self.grant(id, Grantor::Headless, None);
        }
        self.fetch_alone();
        let ground = &mut self.ground;
        self.news.announce(ground, self.pushes.backlog_bytes());
        if self.forget_unwanted_at <= ground.now {
            self.forget_unwanted_at = ground.now + UNWANTED_FOR;
            ground.contents.forget_unwanted();
        }
        ground.agenda.all();
    }

    // ---- contents -------------------------------------------------------------------------------------------------

    fn set_content(
        &mut self,
        (id, key, size): (ContentId, u64, u64),
        held: ChunkSet,
        order: u32,
        entitled: Entitled,
    ) {
        let ground = &mut self.ground;
        ground.contents.set_order(id, order);
        if let Some(content) = ground.contents.get_mut(id) {
            if content.entitled != entitled {
                content.entitled = entitled;
                // hosts that may have the content from now on haven't heard of the content
                news::announce_all_of(ground, id);
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
        let mut content = Content::new(ground.now, key, geometry, order, held);
        content.entitled = entitled;
        ground.contents.add(id, content);
        news::announce_all_of(ground, id);
        ground.agenda.wake(ground.now);
    }

    fn drop_content(&mut self, id: ContentId) {
        let ground = &mut self.ground;
        self.leases.end(ground, id);
        self.wants.end(id);
        if !ground.contents.remove(id) {
            return;
        }
        self.news.drop_content(id);
        self.downloads.drop_content(ground, id);
        self.pushes.drop_content(ground, &self.uploads, id);
        self.serve.drop_content(ground, id);
    }

    fn lose_chunk(&mut self, id: ContentId, chunk: ChunkIndex) {
        let ground = &mut self.ground;
        if ground.contents.lose(ground.now, id, chunk) {
            self.news.lost(ground.now, id);
            ground.agenda.wake(ground.now);
        }
    }

    /// Notes that a chunk is here, wherever it came from. Returns whether the chunk is new.
    fn hold(&mut self, id: ContentId, chunk: ChunkIndex) -> bool {
        let ground = &mut self.ground;
        let Some(leased) = ground.contents.hold(ground.now, id, chunk) else {
            return false;
        };
        self.wants.heard(ground.now, id);
        if leased {
            ground.agenda.order();
        }
        self.news.came(ground, id);
        true
    }

    // ---- chunks from peers ----------------------------------------------------------------------------------------

    /// Whether this host has too much work to pass one more chunk on to everyone. Chunks that are still coming have no
    /// job yet, and count too. Pushes to hosts that take nothing don't: they keep no other host from being served.
    fn is_loaded(&self, id: ContentId, chunk: ChunkIndex) -> bool {
        let promised = self.downloads.promised_bytes(&self.ground);
        let work_bytes = self.pushes.ready_bytes(&self.ground) + promised;
        choose::is_loaded(&self.ground, id, chunk, work_bytes)
    }

    fn offered(
        &mut self,
        ticket: Ticket,
        key: HostKey,
        (id, chunk): (ContentId, ChunkIndex),
        spread: Option<Spread>,
    ) {
        let loaded = spread == Some(Spread::Everyone)
            && !self.ground.contents.holds(id, chunk)
            && self.is_loaded(id, chunk);
        let offer = self
            .downloads
            .judge(&mut self.ground, key, (id, chunk), spread, loaded);
        let peer = self.ground.fleet.find(key);
        let peer = peer.filter(|peer| loaded && self.ground.fleet[*peer].is_up());
        if let Some(peer) = peer {
            // who chose us knows too little of our load
            let backlog_bytes =
                self.pushes.backlog_bytes() + self.downloads.promised_bytes(&self.ground);
            news::tell_load(&mut self.ground, peer, backlog_bytes);
        }
        let answer = match offer {
            Offer::Taken => Action::Accept(ticket),
            Offer::Declined(reason) => Action::Decline(ticket, reason),
            Offer::Held(peer, spread) => {
                if let Some(spread) = spread
                    && self.pushes.may_spread_held(peer, id, chunk)
                {
                    self.take_spread((peer, Wisher::Again(peer)), id, chunk, spread);
                }
                Action::Decline(ticket, Declined::Already)
            }
        };
        self.ground.act(answer);
    }

    fn take_spread(
        &mut self,
        from: (PeerIndex, Wisher),
        id: ContentId,
        chunk: ChunkIndex,
        spread: Spread,
    ) {
        let ground = &mut self.ground;
        self.news.chosen_by(ground.now, from.0);
        self.pushes.take_spread(ground, from, id, chunk, spread);
    }

    fn arrived(&mut self, key: HostKey, id: ContentId, chunk: ChunkIndex, wire_bytes: u64) {
        let ground = &mut self.ground;
        let Some(peer) = ground.fleet.find(key) else {
            self.hold(id, chunk);
            return;
        };
        ground.pace.received(wire_bytes);
        let spread = self.downloads.arrived(ground, peer, id, chunk);
        self.hold(id, chunk);
        let ground = &mut self.ground;
        if let Some(content) = ground.contents.get_mut(id) {
            content.give_patience_back(ground.now);
        }
        self.downloads.cancel_others(ground, id, chunk);
        if let Some(spread) = spread {
            self.take_spread((peer, Wisher::Peer(peer)), id, chunk, spread);
        }
        self.leases.done_by_peers(&mut self.ground, id);
    }

    fn not_arrived(&mut self, key: HostKey, id: ContentId, chunk: ChunkIndex, failure: Failure) {
        let ground = &mut self.ground;
        let now = ground.now;
        let Some(peer) = ground.fleet.find(key) else {
            return;
        };
        self.downloads.failed(ground, peer, id, chunk);
        match failure {
            // the peer's copy may have rotted: the peer isn't asked for the chunk again before it announces it anew
            Failure::Bad => {
                ground.lacks(peer, id, chunk);
                self.strike(peer);
            }
            Failure::Busy => ground.fleet[peer].not_asked_before = now + TICK,
            Failure::Missing => promises::missed(ground, peer, id, chunk),
            Failure::Disproved => {
                ground.lacks(peer, id, chunk);
                self.news.disproved(now, id);
            }
            Failure::Refused => ground.fleet[peer].not_asked_before = now + REFUSED_FOR,
            // the transfer brought nothing, whoever is to blame
            Failure::Broken | Failure::Unfit => ground.silent(peer),
            Failure::NotStored => {
                if let Some(content) = ground.contents.get_mut(id) {
                    content.was_not_stored(now);
                }
            }
            Failure::Cancelled => {}
        }
    }

    // ---- the registry ---------------------------------------------------------------------------------------------

    fn grant(&mut self, id: ContentId, grantor: Grantor, range: Option<ChunkRange>) {
        let unassigned = self.pushes.unassigned_of(id);
        let ground = &mut self.ground;
        if self.leases.grant(ground, id, (grantor, range), unassigned) {
            self.wants.began(ground.now, id);
        }
    }

    /// The coordinator took its lease back. A fetch for our own clients goes on.
    fn lose_lease(&mut self, id: ContentId) {
        let ground = &mut self.ground;
        let lease = ground.contents.lease_mut(id);
        if lease.is_some_and(|lease| lease.grantor == Grantor::Client) {
            return;
        }
        // the coordinator leases the content to another host, or leaves the registry alone for a while
        self.wants.heard(ground.now, id);
        self.leases.end(ground, id);
    }

    fn origin_chunk(&mut self, id: ContentId, chunk: ChunkIndex, wire_bytes: u64) {
        self.ground.pace.received(wire_bytes);
        let new = self.hold(id, chunk);
        let ground = &mut self.ground;
        self.downloads.cancel_others(ground, id, chunk);
        let Some(content) = ground.contents.get_mut(id) else {
            return;
        };
        if let Some(lease) = &mut content.lease {
            lease.origin_at = ground.now;
        }
        ground.agenda.assign();
        ground.agenda.order();
        if new
            && self.pushes.take_fresh(ground, id, chunk)
            && let Some(lease) = ground.contents.lease_mut(id)
        {
            lease.waiting += 1;
        }
    }

    fn origin_ended(&mut self, id: ContentId, end: OriginEnd) {
        if end == OriginEnd::Refused {
            self.wants.refused(id);
        }
        self.leases.origin_ended(&mut self.ground, id, end);
    }

    fn want(&mut self, id: ContentId, alone_after: Duration, admitted: bool) {
        let ground = &mut self.ground;
        if ground.contents.get(id).is_some() {
            self.wants.begin(ground.now, id, alone_after, admitted);
            self.set_read(id, true);
            let ground = &mut self.ground;
            ground.agenda.wake(ground.now);
            self.fetch_alone();
        }
    }

    fn set_read(&mut self, id: ContentId, read: bool) {
        let now = self.ground.now;
        self.ground.contents.set_read(now, id, read);
    }

    /// Asks sooner for what clients read next.
    fn hurry(&mut self) {
        if self.wants.is_empty() {
            return;
        }
        let ground = &mut self.ground;
        let incomplete: Vec<ContentId> = ground.contents.incomplete().map(|(_, id)| id).collect();
        for id in incomplete {
            if let Some(content) = ground.contents.get_mut(id) {
                content.hurry(ground.now);
            }
        }
    }

    /// No client waits for the content any more: a fetch for clients alone ends.
    fn unwant(&mut self, id: ContentId) {
        self.wants.end(id);
        self.set_read(id, false);
        let ground = &mut self.ground;
        let lease = ground.contents.lease_mut(id);
        if lease.is_some_and(|lease| lease.grantor == Grantor::Client) {
            self.leases.end(ground, id);
        }
    }

    /// Fetches without a lease the contents that clients of this host have waited for long enough.
    fn fetch_alone(&mut self) {
        if self.wants.is_empty() {
            return;
        }
        let ground = &self.ground;
        let alone = self.leases.count(ground, Grantor::Client);
        let room = ground.config.lone_fetches.saturating_sub(alone);
        let turn = |id: ContentId| {
            let content = ground.contents.get(id)?;
            let waits = content.lease.is_none() && !content.held.is_full();
            (waits && !content.is_paused(ground.now)).then(|| leases::turn(ground, content))
        };
        let coordinator = self.leases.has_coordinator();
        let due = self.wants.due(ground.now, coordinator, turn);
        for id in due.into_iter().take(room) {
            self.grant(id, Grantor::Client, None);
        }
    }

    // ---- uploads --------------------------------------------------------------------------------------------------

    /// Begins uploads while there is room and something to send.
    fn fill_uploads(&mut self) {
        let ground = &mut self.ground;
        let bound = ground.upload_bound();
        while self.uploads.quick() < bound {
            if self.pushes.is_idle() && self.serve.is_empty() {
                break;
            }
            if !ground.pace.may_send(ground.now) {
                if let Some(due) = ground.pace.may_send_at() {
                    let least = ground.now + LOOK_LEAST;
                    ground.agenda.tick_by(due.max(least));
                }
                break;
            }
            let answer_first = self.uploads.answers() < (bound / 2).max(1);
            let next = if let Some(upload) = self.pushes.next_handover(ground) {
                Next::Answered(upload)
            } else {
                let reliable = match answer_first {
                    true => self.serve.next(ground, Askers::Reliable),
                    false => Next::Nothing,
                };
                match reliable {
                    Next::Nothing => match self.pushes.next_spread(ground) {
                        Some(upload) => Next::Answered(upload),
                        None => self.serve.next(ground, Askers::All),
                    },
                    other => other,
                }
            };
            match next {
                Next::Answered(upload) => self.uploads.begin(ground, upload),
                Next::Refused => {}
                Next::Nothing => break,
            }
        }
        if self.uploads.len() < bound {
            self.pushes.wake_for_retries(ground);
        }
        let full = self.uploads.len() >= bound.min(2);
        ground.pace.is_full(ground.now, full);
    }

    fn sent(
        &mut self,
        key: HostKey,
        (id, chunk, ticket): (ContentId, ChunkIndex, Option<Ticket>),
        delivery: Delivery,
        bytes: (u64, u64),
    ) {
        let ground = &mut self.ground;
        let Some(peer) = ground.fleet.find(key) else {
            return;
        };
        let of = (peer, id, chunk, ticket);
        if let Some(upload) = self.uploads.sent(ground, of, delivery, bytes) {
            self.pushes.settle(ground, upload, delivery);
        }
    }

    /// A peer that takes far longer than others holds up nobody else: what depends on the upload goes on as if the
    /// upload were over.
    fn watch_uploads(&mut self) {
        let ground = &mut self.ground;
        let mut from = 0;
        while let Some(upload) = self.uploads.next_slow(ground, &mut from) {
            self.pushes.settle(ground, upload, Delivery::Broken);
        }
    }

    // ---- the fleet ------------------------------------------------------------------------------------------------

    fn set_roster(&mut self, entries: &[Entry]) {
        let me = self.ground.me;
        let others = entries.iter().filter(|entry| entry.key != me);
        let wanted: BTreeMap<HostKey, Entry> = others.map(|entry| (entry.key, *entry)).collect();
        let keys = self.ground.fleet.keys();
        let gone: Vec<HostKey> = keys.filter(|key| !wanted.contains_key(key)).collect();
        for key in gone {
            self.forget_peer(key);
        }
        let ground = &mut self.ground;
        let mut new_neighbours = Vec::new();
        for entry in wanted.values() {
            let index = ground.fleet.find(entry.key).unwrap_or_else(|| {
                let rate = ground.config.assumed_rate_bytes_per_second;
                let mut peer = Peer::new(entry.key, rate);
                if me > entry.key {
                    peer.head_start_until = ground.now + DIAL_HEAD_START;
                }
                ground.fleet.add(peer)
            });
            let peer = &mut ground.fleet[index];
            peer.zone = entry.zone;
            if entry.neighbour && !peer.neighbour && peer.line == Line::Up {
                new_neighbours.push(index);
            }
            peer.neighbour = entry.neighbour;
        }
        ground.fleet.settle();
        let spread_takes = ground.spread_time();
        ground.grace.spread_takes(spread_takes);
        for index in new_neighbours {
            news::introduce(ground, index, self.pushes.backlog_bytes());
        }
        ground.agenda.tick_now(ground.now);
    }

    fn forget_peer(&mut self, key: HostKey) {
        let Some(index) = self.ground.fleet.take_off(key) else {
            return;
        };
        if self.ground.fleet[index].line != Line::Down {
            self.ground.act(Action::HangUp(key));
        }
        self.drop_line(index);
        let ground = &mut self.ground;
        self.pushes.forget_peer(ground, &self.uploads, index);
        self.news.forget_peer(index);
        ground.contents.forget_peer(index);
        ground.fleet.release(index);
    }

    fn connected(&mut self, key: HostKey) {
        let ground = &mut self.ground;
        let Some(index) = ground.fleet.find(key) else {
            ground.act(Action::HangUp(key));
            return;
        };
        if ground.fleet[index].is_quarantined() {
            ground.fleet.set_line(index, Line::Down);
            ground.act(Action::HangUp(key));
            return;
        }
        if ground.fleet[index].line == Line::Up {
            return;
        }
        ground.fleet.set_line(index, Line::Up);
        let now = ground.now;
        ground.fleet[index].came_up(now);
        news::introduce(ground, index, self.pushes.backlog_bytes());
        ground.dial_about();
        ground.agenda.assign();
        ground.agenda.upload();
        ground.agenda.pull();
    }

    fn disconnected(&mut self, key: HostKey) {
        let Some(index) = self.ground.fleet.find(key) else {
            return;
        };
        if self.ground.fleet[index].line == Line::Down {
            return;
        }
        self.drop_line(index);
        self.ground.dial_later(index);
        self.ground.agenda.pull();
    }

    /// Everything that went over this peer's connection is over.
    fn drop_line(&mut self, index: PeerIndex) {
        let ground = &mut self.ground;
        ground.fleet.set_line(index, Line::Down);
        if let Some(slot) = ground.fleet.free_slot(index) {
            ground.contents.forget_slot(slot);
        }
        self.downloads.drop_peer(ground, index);
        self.serve.drop_peer(ground, index);
        while let Some(upload) = self.uploads.drop_peer(ground, index) {
            self.pushes.settle(ground, upload, Delivery::Broken);
        }
    }

    /// The peer sent a bad chunk.
    fn strike(&mut self, index: PeerIndex) {
        let most = self.ground.config.strikes;
        let peer = &mut self.ground.fleet[index];
        peer.strikes = peer.strikes.saturating_add(1);
        if peer.strikes >= most {
            self.quarantine(index);
        }
    }

    /// The chain proved that the peer lied: no second chance.
    fn blamed(&mut self, key: HostKey) {
        if let Some(index) = self.ground.fleet.find(key) {
            let peer = &mut self.ground.fleet[index];
            peer.strikes = peer.strikes.saturating_add(1);
            self.quarantine(index);
        }
    }

    fn quarantine(&mut self, index: PeerIndex) {
        let ground = &mut self.ground;
        let peer = &mut ground.fleet[index];
        let strikes = core::mem::take(&mut peer.strikes);
        if peer.is_quarantined() {
            return;
        }
        let config = &ground.config;
        let lasts = doubled(config.quarantine, config.quarantine_most, peer.quarantines);
        peer.quarantines = peer.quarantines.saturating_add(1);
        let key = peer.key;
        ground.fleet.quarantine(index, ground.now + lasts);
        ground.act(Action::Report { peer: key, strikes });
        ground.act(Action::HangUp(key));
        self.drop_line(index);
        self.ground.agenda.pull();
    }
}

#[cfg(test)]
mod tests;
