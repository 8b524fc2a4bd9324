//! The exchange of chunks between this host, its peers and the registries. It carries out the swarm's actions, and
//! tells the swarm how they ended.
//!
//! The swarm decides which chunk to ask of which peer. This part joins the swarm with hosts, contents, transfers,
//! fetches and leases. Work for other parts (jobs, images, reports) goes into a queue of [`Effect`]s, which the driver
//! empties by [`Exchange::poll`]. This part opens no stream and touches no disk: such work goes out as an [`Errand`].
//! `moves` has how a chunk begins to move.

mod effect;
mod errand;
mod moves;

use std::{sync::Arc, time::Instant};

use proto::{
    ChunkIndex, ChunkRange, ChunkSet, Digest, Geometry, HostId, HostKey, Moment,
    image::{ContentSpec, Layout},
    message::{BlameKind, LeaseState, RosterChange, RosterEntry},
};
use swarm::{
    Action, Event, Swarm,
    event::{ContentId, Delivery, Ticket},
};
use tracing::{info, warn};
use wire::ConnectError;

pub(super) use self::{
    effect::Effect,
    errand::{Asked, Errand, Fetch, Offer},
};
use self::{
    effect::Effects,
    moves::{Begun, Moves, PeerTransfers},
};
use super::{
    contents::{self, Content, Contents, Terms},
    handles::{Handles, Line, Real},
    hosts::{self, Hosts},
    image_news::ImageNews,
    input::Input,
    leases::Granted,
    origins::{self, FetchWanted, Origins},
    transfers::Transfer,
    trouble::Trouble,
    walk::Walked,
};
use crate::{
    fetch::{FetchEnd, News},
    metrics::{From, Metrics},
    peer::Brought,
    registries::Access,
    transfer::{Cache, Receipt, Shipment},
};

/// The swarm, and the parts that carry out its actions.
pub(super) struct Exchange<H: Handles = Real> {
    me: HostId,
    swarm: Swarm,
    epoch: Instant,
    /// The time of everything that is heard now.
    now: Instant,
    /// Packed chunks.
    cache: Arc<Cache>,
    metrics: Metrics,
    hosts: Hosts<H::Line>,
    contents: Contents<H::Shelf>,
    transfers: PeerTransfers<H>,
    origins: Origins,
    effects: Effects<H>,
}

impl<H: Handles> Exchange<H> {
    pub(super) fn new(
        me: HostId,
        swarm: Swarm,
        epoch: Instant,
        cache: Arc<Cache>,
        metrics: Metrics,
    ) -> Self {
        Self {
            contents: Contents::new(me.key(), cache.clone()),
            me,
            swarm,
            epoch,
            now: epoch,
            cache,
            metrics,
            hosts: Hosts::default(),
            transfers: PeerTransfers::<H>::default(),
            origins: Origins::default(),
            effects: Effects::default(),
        }
    }

    // ---- the loop -------------------------------------------------------------------------------------------------

    /// Sets the time of everything that is heard from now on.
    pub(super) const fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    fn moment(&self) -> Moment {
        let since = self.now.saturating_duration_since(self.epoch);
        Moment(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    /// When the swarm has to hear that time passed.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let at = self.swarm.next_timeout()?;
        Some(self.epoch + at.since(Moment::START))
    }

    /// The next effect for other parts, in order. `None` once no effect is left and the swarm wants nothing.
    pub(super) fn poll(&mut self) -> Option<Effect<H>> {
        while self.effects.is_empty() {
            match self.swarm.poll() {
                Some(action) => self.act(action),
                None => break,
            }
        }
        self.effects.take()
    }

    /// Hands on the announcements that wait, as far as peers take them.
    pub(super) fn flush_updates(&mut self) {
        self.hosts.flush_updates();
        let leases = i64::try_from(self.origins.leases()).unwrap_or(i64::MAX);
        self.metrics.leases.set(leases);
    }

    pub(super) fn tell(&mut self, event: Event) {
        let now = self.moment();
        self.swarm.handle(now, event);
    }

    pub(super) fn status(&self) -> swarm::Status {
        self.swarm.status(self.moment())
    }

    /// Begins to move a chunk, or tells the swarm that it doesn't move.
    fn begin(&mut self, how: impl FnOnce(Moves<'_, H>) -> Option<Begun<H>>) {
        let begun = how(Moves {
            now: self.now,
            hosts: &self.hosts,
            contents: &self.contents,
            transfers: &mut self.transfers,
        });
        match begun {
            Some(Begun::Run(errand)) => self.effects.run(errand),
            Some(Begun::Tell(event)) => self.tell(event),
            None => {}
        }
    }

    fn blame(
        &mut self,
        peer: HostKey,
        content: Option<Digest>,
        chunk: ChunkIndex,
        kind: BlameKind,
    ) {
        if let Some(host) = self.hosts.id(peer).cloned() {
            self.effects.push(Effect::Blame {
                host,
                content,
                chunk,
                kind,
            });
        }
    }

    /// Stops every fetch: the agent stops.
    pub(super) fn stop(&mut self) {
        self.origins.stop_all();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Dial(peer) => {
                let effect = self.hosts.dial(peer);
                self.follow_hosts([effect]);
            }
            Action::HangUp(peer) => {
                let effects = self.hosts.hang_up(peer);
                self.follow_hosts(effects);
            }
            Action::Request { peer, id, chunk } => {
                self.begin(|moves| Some(moves.request(Transfer { peer, id, chunk })))
            }
            Action::Cancel { peer, id, chunk } => {
                self.transfers.cancel(&Transfer { peer, id, chunk });
            }
            Action::Push {
                peer,
                id,
                chunk,
                spread,
            } => self.begin(|moves| Some(moves.push(Transfer { peer, id, chunk }, spread))),
            Action::Accept(ticket) => self.begin(|moves| moves.accept(ticket)),
            Action::Decline(ticket, why) => self.begin(|moves| moves.decline(ticket, why)),
            Action::Serve(ticket) => self.begin(|moves| moves.serve(ticket)),
            Action::Refuse(ticket, why) => self.begin(|moves| moves.refuse(ticket, why)),
            Action::Announce {
                peer,
                id,
                chunks,
                reset,
            } => {
                if let Some(content) = self.contents.find(id).map(Content::digest) {
                    self.hosts.announce(peer, content, chunks, reset);
                }
            }
            Action::AnnounceLoad {
                peer,
                backlog_bytes,
                upload_bytes_per_second,
            } => {
                self.hosts
                    .announce_load(peer, backlog_bytes, upload_bytes_per_second);
            }
            Action::Fetch { id, range, until } => {
                let effect = self.origins.want(&self.contents, id, (range, until));
                self.follow_origins(effect);
            }
            Action::StopFetch(id) => {
                let effect = self.origins.stop(&mut self.contents, id);
                self.follow_origins(effect);
            }
            Action::RangeDone(id) => {
                let effects = self.origins.range_done(&self.contents, id);
                self.follow_origins(effects);
            }
            Action::ReleaseLease(id) => {
                let effects = self.origins.release(&self.contents, id);
                self.follow_origins(effects);
            }
            Action::Report { peer, strikes } => {
                if let Some(host) = self.hosts.id(peer) {
                    warn!(peer = %host, strikes, "peer is quarantined");
                }
                self.blame(peer, None, ChunkIndex(0), BlameKind::Silence);
            }
        }
    }

    // ---- hosts ----------------------------------------------------------------------------------------------------

    pub(super) const fn hosts(&self) -> &Hosts<H::Line> {
        &self.hosts
    }

    /// Takes a new roster and new neighbours.
    pub(super) fn roster(&mut self, epoch: u64, roster: &[RosterEntry], neighbours: &[String]) {
        let effects = self.hosts.replace(&self.me, epoch, roster, neighbours);
        self.follow_hosts(effects);
    }

    /// Changes the roster. Returns whether the change is of the roster that is here.
    pub(super) fn change_roster(&mut self, change: &RosterChange) -> bool {
        let effects = self.hosts.change(&self.me, change);
        let fits = effects.is_some();
        self.follow_hosts(effects.into_iter().flatten());
        fits
    }

    /// Follows these hosts from now on.
    pub(super) fn follow(&mut self, neighbours: Vec<String>) {
        let effects = self.hosts.follow(neighbours);
        self.follow_hosts(effects);
    }

    /// A peer connected, or was dialled (`Err`: why not).
    pub(super) fn connected(&mut self, peer: HostKey, result: Result<H::Line, ConnectError>) {
        match result {
            Ok(connection) => {
                let effects = self.hosts.connected(peer, connection);
                self.follow_hosts(effects);
            }
            Err(error) => {
                let before = self.apart();
                let effect = self.hosts.not_connected(peer, &error);
                self.follow_hosts(effect);
                if let (None, Some(apart)) = (before, self.apart()) {
                    warn!("{}", apart.message);
                }
            }
        }
    }

    /// Why this host reaches no peer, if its own system keeps it from all.
    pub(super) fn apart(&self) -> Option<Trouble> {
        let found = self.hosts.no_route()?;
        Some(Trouble::no_route(&found, cfg!(target_os = "macos")))
    }

    /// A connection ended.
    pub(super) fn connection_ended(&mut self, peer: HostKey, serial: u64, reason: &str) {
        let effects = self.hosts.ended(peer, serial, reason);
        self.follow_hosts(effects);
    }

    fn follow_hosts(&mut self, effects: impl IntoIterator<Item = hosts::Effect<H::Line>>) {
        for effect in effects {
            match effect {
                hosts::Effect::Tell(event) => self.tell(event),
                hosts::Effect::Dial(dial) => self.effects.run(Errand::Dial(dial)),
                hosts::Effect::Listen {
                    peer,
                    serial,
                    connection,
                } => self.effects.run(Errand::Listen {
                    peer,
                    serial,
                    connection,
                }),
                hosts::Effect::Announce {
                    connection,
                    updates,
                } => self.effects.run(Errand::Announce {
                    connection,
                    updates,
                }),
                hosts::Effect::Close {
                    connection,
                    code,
                    reason,
                } => connection.close(code, reason),
                hosts::Effect::Cancel(peer) => self.transfers.cancel_peer(peer),
                hosts::Effect::Blame(peer) => {
                    self.blame(peer, None, ChunkIndex(0), BlameKind::Protocol);
                }
            }
        }
    }

    /// A peer sent something.
    pub(super) fn brought(&mut self, peer: HostKey, brought: Brought<H::Answer, H::Bytes>) {
        match brought {
            Brought::Request { request, sender } => {
                self.begin(|moves| Some(moves.requested(peer, request, sender)))
            }
            Brought::Push {
                push,
                sender,
                receiver,
            } => self.begin(|moves| Some(moves.offered(peer, *push, (sender, receiver)))),
            Brought::Introduced { serial, life } => {
                let effects = self.hosts.introduced(peer, serial, life);
                self.follow_hosts(effects);
            }
            Brought::Update(update) => {
                let contents = &self.contents;
                let known = |content: &Digest, runs: &[u32]| contents.announced(content, runs);
                let effects = self.hosts.updated(peer, update, known);
                self.follow_hosts(effects);
            }
            Brought::Nonsense(error) => {
                let effects = self.hosts.nonsense(peer, &error);
                self.follow_hosts(effects);
            }
        }
    }

    // ---- transfers ------------------------------------------------------------------------------------------------

    /// An upload ended.
    pub(super) fn sent(&mut self, transfer: Transfer, ticket: Option<Ticket>, shipment: Shipment) {
        let Shipment {
            delivery,
            wire_bytes,
            work_bytes,
        } = shipment;
        let Transfer { peer, id, chunk } = transfer;
        self.metrics.sent_bytes.inc_by(wire_bytes);
        self.effects
            .tell_images(self.first_image(id), ImageNews::Uploaded(wire_bytes));
        if delivery == Delivery::Bad
            && let Some(content) = self.contents.find(id).map(Content::digest)
        {
            self.effects.push(Effect::Look { content, chunk });
        }
        self.tell(Event::Sent {
            peer,
            id,
            chunk,
            ticket,
            delivery,
            wire_bytes,
            work_bytes,
        });
    }

    /// A chunk that was requested or accepted came or didn't.
    pub(super) fn received(&mut self, transfer: Transfer, number: u64, mut receipt: Receipt) {
        if !receipt.unwritable.is_empty() {
            // these images are withdrawn before the chunk counts
            self.effects
                .tell_unwritable(std::mem::take(&mut receipt.unwritable));
            let again = Input::Received {
                transfer,
                number,
                receipt,
            };
            self.effects.push(Effect::Hear(again));
            return;
        }
        if !self.transfers.received(&transfer, number) && receipt.is_lost() {
            // the chunk was sent over a connection that is gone, and is asked for again over the next one
            return;
        }
        self.metrics.received(From::Peers, receipt.wire_bytes);
        let first = self.first_image(transfer.id);
        self.effects
            .tell_images(first.clone(), ImageNews::FromPeers(receipt.wire_bytes));
        if receipt.local_bytes > 0 {
            self.count_local(receipt.local_bytes);
            self.effects
                .tell_images(first, ImageNews::FromHere(receipt.local_bytes));
        }
        let effects = match receipt.result {
            Ok(()) => self.contents.came(transfer, &receipt),
            Err(failure) => self.contents.not_arrived(transfer, failure, receipt),
        };
        self.follow_contents(effects);
    }

    /// Counts bytes of a stage that were here already, in other images.
    pub(super) fn count_local(&self, bytes: u64) {
        self.metrics.received(From::Local, bytes);
    }

    /// Bytes are counted with the first image that a content is part of.
    fn first_image(&self, id: ContentId) -> Vec<Digest> {
        let images = self.contents.find(id).map(Content::images);
        images.into_iter().flatten().take(1).collect()
    }

    // ---- contents -------------------------------------------------------------------------------------------------

    pub(super) const fn contents(&self) -> &Contents<H::Shelf> {
        &self.contents
    }

    fn follow_contents(&mut self, effects: impl IntoIterator<Item = contents::Effect<H::Shelf>>) {
        for effect in effects {
            match effect {
                contents::Effect::Tell(event) => self.tell(event),
                contents::Effect::Recall {
                    id,
                    content,
                    chunks,
                } => {
                    let effects = self.hosts.recall(id, &content, chunks);
                    self.follow_hosts(effects);
                }
                contents::Effect::Walk {
                    id,
                    content,
                    chunks,
                    shelves,
                } => self.effects.run(Errand::Walk {
                    id,
                    content,
                    chunks,
                    shelves,
                }),
                contents::Effect::Retract {
                    id,
                    content,
                    shelves,
                } => self.effects.run(Errand::Retract {
                    id,
                    content,
                    shelves,
                }),
                contents::Effect::Drop {
                    from,
                    content,
                    shelves,
                } => {
                    // the chunks that the maker is sending were made before the retraction
                    self.transfers.cancel_from(from);
                    self.effects.run(Errand::DropMade {
                        from,
                        content,
                        shelves,
                    });
                }
                contents::Effect::Images { images, news } => self.effects.tell_images(images, news),
                contents::Effect::NotStored { mirrored, error } => {
                    self.effects.push(Effect::NotStored { mirrored, error });
                }
                contents::Effect::CountFalse { source, chunks } => {
                    self.metrics.found_false(source, chunks);
                }
                contents::Effect::Convict(links) => self.effects.push(Effect::Convict(links)),
                contents::Effect::BlameBytes(Transfer { peer, id, chunk }) => {
                    if let Some(host) = self.hosts.id(peer) {
                        warn!(peer = %host, chunk = chunk.0, "peer sent a chunk that doesn't fit its link");
                    }
                    let content = self.contents.find(id).map(Content::digest);
                    self.blame(peer, content, chunk, BlameKind::Bytes);
                }
                contents::Effect::TakeBack { content, from } => {
                    self.effects.push(Effect::TakeBack { content, from });
                }
                contents::Effect::Stored => self.effects.push(Effect::Stored),
                contents::Effect::Report => self.effects.push(Effect::ReportSoon),
            }
        }
    }

    /// Adds a content of an image, or another image to a content. Returns whether the content is new.
    pub(super) fn add(
        &mut self,
        spec: &ContentSpec,
        of: (Digest, H::Shelf),
        (held, closed): (ChunkSet, bool),
    ) -> (ContentId, bool) {
        self.contents.add(spec, of, held, closed)
    }

    /// Adds the bytes of an image's recipe. Returns whether the content is new.
    pub(super) fn add_recipe(
        &mut self,
        what: (Digest, Geometry),
        of: (Digest, H::Shelf),
        (held, closed): (ChunkSet, bool),
    ) -> (ContentId, bool) {
        self.contents.add_recipe(what, of, held, closed)
    }

    /// Adds a blob of the mirror, which is no part of an image here.
    pub(super) fn add_blob(
        &mut self,
        what: (Digest, Geometry),
        shelf: H::Shelf,
        (held, closed): (ChunkSet, bool),
    ) -> ContentId {
        self.contents.add_mirrored(what, shelf, held, closed)
    }

    /// Makes a content known to the swarm, with its place among the contents of its image. `of_image` gives the image's
    /// terms; `None` for an image that is forgotten.
    pub(super) fn introduce(
        &mut self,
        id: ContentId,
        order: u32,
        of_image: impl Fn(&Digest) -> Option<Terms>,
    ) {
        let effects = self.contents.introduce(id, order, of_image);
        self.follow_contents(effects);
    }

    /// Tells the swarm anew of an image's contents and its recipe: the hosts that may have them may have changed.
    pub(super) fn retell(&mut self, layout: &Layout, of_image: impl Fn(&Digest) -> Option<Terms>) {
        for (id, order) in self.contents.with_recipe(layout) {
            self.introduce(id, order, &of_image);
        }
    }

    /// Takes an image away from its contents. Contents that no other image has leave the swarm. Their leases end with
    /// the next report, which also says the image's new state. They don't end earlier: the coordinator would think that
    /// a host that returns a lease while it stages holds the content.
    ///
    /// With a recipe, the image leaves the recipe's content alone, because the image doesn't use the recipe.
    pub(super) fn withdraw(&mut self, image: &Digest, recipe: Option<&Digest>) {
        for (id, content) in self.contents.remove_image(image, recipe) {
            let effects = self.origins.give_up(id, content);
            self.follow_origins(effects);
            self.tell(Event::Dropped(id));
        }
    }

    /// Takes a blob of the mirror out of the swarm. A content of an image stays.
    pub(super) fn drop_blob(&mut self, content: &Digest) {
        let mirrored = self.contents.by_digest(content);
        let Some(id) = mirrored
            .filter(|content| content.is_mirrored())
            .map(Content::id)
        else {
            return;
        };
        if self.origins.is_leased(id) {
            self.effects.push(Effect::ReportNow);
        }
        let effects = self.origins.give_up(id, *content);
        self.follow_origins(effects);
        self.contents.remove_mirrored(content);
        self.tell(Event::Dropped(id));
    }

    pub(super) fn walk_if_whole(&mut self, id: ContentId) {
        let effect = self.contents.walk_if_whole(id);
        self.follow_contents(effect);
    }

    /// A content's chain was walked.
    pub(super) fn walked(&mut self, id: ContentId, mut walked: Walked) {
        if !walked.unwritable.is_empty() {
            self.effects
                .tell_unwritable(std::mem::take(&mut walked.unwritable));
            self.effects
                .push(Effect::Hear(Input::Walked { id, walked }));
            return;
        }
        let effects = self.contents.walked(id, walked);
        self.follow_contents(effects);
    }

    /// Chunks of an image aren't held any more, because their bytes on disk changed or can't be read.
    pub(super) fn rotted(&mut self, image: Digest, content: Digest, chunks: &[ChunkIndex]) {
        let effects = self.contents.rotted(image, content, chunks);
        self.follow_contents(effects);
    }

    /// Drops the links that another host made of a content, from a chunk on: that host took them back.
    pub(super) fn drop_made(&mut self, content: &Digest, maker: HostKey, from: ChunkIndex) {
        let effect = self.contents.drop_made(content, maker, from);
        self.follow_contents(effect);
    }

    /// Chunks of a content were dropped from the disk, or couldn't be.
    pub(super) fn dropped(&mut self, id: ContentId, result: Result<Vec<ChunkIndex>, String>) {
        let effects = self.contents.dropped(id, result);
        self.follow_contents(effects);
    }

    /// This host dropped the links that it made of a content from a chunk on.
    pub(super) fn retracted(
        &mut self,
        id: ContentId,
        from: ChunkIndex,
        result: Result<Vec<ChunkIndex>, String>,
    ) {
        let effects = self.contents.retracted(self.now, id, from, result);
        self.follow_contents(effects);
    }

    /// Forgets the packed copy of a chunk: that copy may be the wrong one.
    pub(super) fn forget_packed(&self, content: Digest, chunk: ChunkIndex) {
        self.cache.forget(content, chunk);
    }

    // ---- registries -----------------------------------------------------------------------------------------------

    fn follow_origins(&mut self, effects: impl IntoIterator<Item = origins::Effect<H::Shelf>>) {
        for effect in effects {
            match effect {
                origins::Effect::Tell(event) => self.tell(event),
                origins::Effect::Contents(effect) => self.follow_contents([effect]),
                origins::Effect::Images { images, news } => self.effects.tell_images(images, news),
                origins::Effect::Fetch(wanted) => {
                    self.effects.push(Effect::Fetch(wanted));
                }
                origins::Effect::FetchEnded { content, end } => {
                    self.effects.push(Effect::FetchEnded { content, end });
                }
                origins::Effect::Doubt(doubt) => self.effects.push(Effect::Doubt(doubt)),
                origins::Effect::Came(bytes) => self.metrics.received(From::Origin, bytes),
                origins::Effect::Unwritable(images) => self.effects.tell_unwritable(images),
                origins::Effect::ForgetTicket(content) => {
                    self.effects.push(Effect::ForgetTicket(content));
                }
                origins::Effect::ReportSoon => self.effects.push(Effect::ReportSoon),
                origins::Effect::ReportNow => self.effects.push(Effect::ReportNow),
            }
        }
    }

    /// Fetches a content from the registry, by the order of image `by`; `None` for a client of the mirror.
    pub(super) fn fetch(
        &mut self,
        wanted: &FetchWanted,
        by: Option<Digest>,
        (reference, access): (String, Access),
    ) {
        let Some(content) = self.contents.find(wanted.id) else {
            return;
        };
        info!(content = %wanted.content, image = reference, "fetching from the registry");
        let reins = self.origins.begin(wanted, by, access);
        self.effects.run(Errand::Fetch(Fetch {
            id: content.id(),
            content: content.digest(),
            geometry: content.geometry(),
            kind: content.kind(),
            shelves: content.shelves(),
            reference,
            reins,
        }));
    }

    /// The coordinator handed down a newer token for an image. Running fetches use the new token from now on.
    pub(super) fn renew_access(&self, image: &Digest, access: &Access) {
        self.origins.renew(image, access);
    }

    /// A running fetch reports its progress.
    pub(super) fn fetch_news(&mut self, id: ContentId, news: News) {
        let effects = self.origins.news(&mut self.contents, self.now, id, news);
        self.follow_origins(effects);
    }

    /// A fetch ended.
    pub(super) fn fetch_ended(&mut self, id: ContentId, number: u64, end: FetchEnd) {
        let effects = self.origins.ended(&mut self.contents, id, number, end);
        self.follow_origins(effects);
    }

    /// The states of leases for a report.
    pub(super) fn lease_states(&mut self, status: &swarm::Status) -> Vec<LeaseState> {
        let contents = &self.contents;
        self.origins.lease_states(contents, self.now, status)
    }

    /// A report with these states wasn't sent.
    pub(super) fn lease_states_unsent(&mut self, states: Vec<LeaseState>) {
        self.origins.unsent(states);
    }

    /// Whether the coordinator leased a content to this host.
    pub(super) fn is_leased(&self, id: ContentId) -> bool {
        self.origins.is_leased(id)
    }

    /// The coordinator leased this host a content, or a range of it.
    pub(super) fn leased(&mut self, content: Digest, granted: Granted) {
        let effects = self.origins.leased(&self.contents, content, granted);
        self.follow_origins(effects);
    }

    /// A stage is ready: leases of its contents may have come before.
    pub(super) fn take_early_leases(&mut self) {
        let effects = self.origins.take_early(&self.contents);
        self.follow_origins(effects);
    }

    /// The coordinator took a lease back.
    pub(super) fn lease_lost(&mut self, content: &Digest) {
        let effects = self.origins.lease_lost(&self.contents, content);
        self.follow_origins(effects);
    }

    /// Gives a lease back that can't be used: no host would take the links that are made with it.
    pub(super) fn give_lease_back(&mut self, of: (Digest, Option<ChunkRange>), error: &str) {
        let effect = self.origins.give_back(of, error);
        self.follow_origins([effect]);
    }
}

#[cfg(test)]
mod tests;
