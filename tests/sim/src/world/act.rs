//! What the swarms want done, and how the network does it.

use super::*;
use proto::statement::Contradiction;
use swarm::{Action, action::Declined, event::OriginEnd};

/// How often a liar lies, in percent of its uploads; half of them are bytes that don't fit, half are invented links.
const LIES_PERCENT: usize = 20;
/// False runs of one host from which on nothing that it made of the content is taken, as in the agent.
const RUNS_OF_MAKER: usize = 8;

impl World {
    pub(super) fn act(&mut self, host: u32, action: Action) {
        if self.is_mute(host) && matches!(action, Action::Announce { .. } | Action::Push { .. }) {
            return;
        }
        match action {
            Action::Dial(key) => self.dial(host, key),
            Action::HangUp(key) => {
                if let Some(peer) = self.find(key) {
                    self.node_mut(host).believes[peer as usize] = false;
                    self.break_line(host, peer, 0);
                }
            }
            Action::Request {
                peer: key,
                id,
                chunk,
            } => {
                let Some(peer) = self.check_peer(host, key) else {
                    return;
                };
                if !self.node(host).believes[peer as usize] {
                    self.checks.note("request to a peer that isn't connected");
                }
                // over a line that is dead and not known to be, it is lost
                if self.node(host).connected[peer as usize] {
                    self.check_request(host, peer, id.0, chunk.0);
                    self.send(Message::Ask(Question {
                        asker: host,
                        server: peer,
                        content: id.0,
                        chunk: chunk.0,
                    }));
                }
            }
            Action::Cancel {
                peer: key,
                id,
                chunk,
            } => {
                if let Some(peer) = self.find(key) {
                    self.cancel(host, peer, id.0, chunk.0);
                }
            }
            Action::Push {
                peer: key,
                id,
                chunk,
                spread,
            } => {
                let Some(peer) = self.check_peer(host, key) else {
                    return;
                };
                if !self.node(host).believes[peer as usize] {
                    self.checks.note("push to a peer that isn't connected");
                }
                if !self.node(host).connected[peer as usize] {
                    return;
                }
                self.count_upload(host, id.0, chunk.0);
                let transfer = self.new_transfer(host, peer, id.0, chunk.0, Kind::Push, spread);
                self.send(Message::Offer(transfer));
            }
            Action::Accept(ticket) => match self.offer.take() {
                Some((open, transfer)) if open == ticket => self.begin_transfer(transfer),
                _ => self.checks.note("accepted an offer that isn't open"),
            },
            Action::Decline(ticket, reason) => match self.offer.take() {
                Some((open, transfer)) if open == ticket => {
                    let delivery = match reason {
                        Declined::Busy => Delivery::Busy,
                        Declined::Already => Delivery::Already,
                        Declined::Unwanted => Delivery::Unwanted,
                        Declined::Missing | Declined::Quarantined | Declined::NotEntitled => {
                            Delivery::Broken
                        }
                    };
                    self.declined += 1;
                    self.end_transfer(transfer, delivery, 0);
                }
                _ => self.checks.note("declined an offer that isn't open"),
            },
            Action::Serve(ticket) => {
                if let Some(question) = self.questions.remove(&ticket) {
                    self.count_upload(host, question.content, question.chunk);
                    let transfer = self.new_transfer(
                        host,
                        question.asker,
                        question.content,
                        question.chunk,
                        Kind::Answer(ticket),
                        None,
                    );
                    self.begin_transfer(transfer);
                }
            }
            Action::Refuse(ticket, reason) => {
                if let Some(question) = self.questions.remove(&ticket) {
                    let failure = match reason {
                        Declined::Busy => Failure::Busy,
                        Declined::Missing => Failure::Missing,
                        Declined::Already
                        | Declined::Unwanted
                        | Declined::Quarantined
                        | Declined::NotEntitled => Failure::Refused,
                    };
                    self.not_arrived(&question, failure);
                }
            }
            Action::Announce {
                peer: key,
                id,
                chunks,
                reset,
            } => {
                self.check_announced(host, id.0, &chunks);
                if let Some(peer) = self.check_peer(host, key) {
                    let me = self.node(host).key;
                    let connected = self.node(host).connected[peer as usize];
                    if connected && !self.stages(peer, id.0) && self.is_mirrored(id.0) {
                        self.mirrors.remember((host, peer), id.0, &chunks);
                    } else if connected && self.stages(peer, id.0) {
                        self.tell(
                            peer,
                            swarm::Event::Announced {
                                peer: me,
                                id,
                                chunks,
                                reset,
                            },
                        );
                    }
                }
            }
            Action::AnnounceLoad {
                peer: key,
                backlog_bytes,
                upload_bytes_per_second,
            } => {
                if let Some(peer) = self.check_peer(host, key) {
                    let me = self.node(host).key;
                    if self.node(host).connected[peer as usize] {
                        self.tell(
                            peer,
                            swarm::Event::Load {
                                peer: me,
                                backlog_bytes,
                                upload_bytes_per_second,
                            },
                        );
                    }
                }
            }
            Action::Fetch { id, until } => self.fetch(host, id.0, until.0),
            Action::StopFetch(id) => {
                let fetching = self.node_mut(host).fetches.remove(&id.0);
                self.lose_part(id.0, fetching.as_ref());
                self.abort_origin(host, id.0);
                if fetching.is_some_and(|fetching| fetching.again) {
                    self.take_all_back(host, id.0);
                }
            }
            Action::ReleaseLease(id) => {
                self.node_mut(host).leases.remove(&id.0);
                self.tell_lease_ended(host, id.0, stage::event::LeaseEnd::Released);
            }
            Action::Report { peer: key, .. } => {
                if let Some(peer) = self.find(key) {
                    self.check_shunned(host, peer);
                }
            }
        }
    }

    pub(super) fn find(&self, key: HostKey) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    // ---- connections --------------------------------------------------------------------------------------------

    fn dial(&mut self, host: u32, key: HostKey) {
        let Some(peer) = self.check_peer(host, key) else {
            return;
        };
        let lives = (self.node(host).life, self.node(peer).life);
        if self.reachable(host, peer) {
            let at = self.now + self.setup.delay * HANDSHAKE_DELAYS + HANDSHAKE_WORK;
            self.at(
                at,
                Due::Handshake {
                    a: host,
                    b: peer,
                    lives,
                },
            );
        } else {
            self.at(
                self.now + NOTICED_AFTER,
                Due::LineDead {
                    host,
                    peer,
                    life: lives.0,
                },
            );
        }
    }

    pub(super) fn reachable(&self, a: u32, b: u32) -> bool {
        let split = self.nodes.len() / 2;
        self.node(b).alive
            && self.node(a).alive
            && !(self.cut && ((a as usize) < split) != ((b as usize) < split))
    }

    pub(super) fn handshake(&mut self, a: u32, b: u32, lives: (u32, u32)) {
        if self.node(a).life != lives.0 || !self.node(a).alive {
            return;
        }
        // a host lets in only whom its roster names
        let welcome = self.node(b).life == lives.1
            && self.reachable(a, b)
            && self.node(b).roster[a as usize]
            && self.node(a).roster[b as usize];
        let (key_a, key_b) = (self.node(a).key, self.node(b).key);
        if !welcome {
            self.feed(a, swarm::Event::Disconnected(key_b));
            return;
        }
        if !self.node(a).connected[b as usize] {
            // a new line takes the place of one that died unnoticed
            for (one, other, key) in [(a, b, key_b), (b, a, key_a)] {
                if self.node(one).believes[other as usize] {
                    self.node_mut(one).believes[other as usize] = false;
                    self.feed(one, swarm::Event::Disconnected(key));
                }
            }
            self.node_mut(a).connected[b as usize] = true;
            self.node_mut(b).connected[a as usize] = true;
            self.node_mut(a).up_count += 1;
            self.node_mut(b).up_count += 1;
        }
        self.node_mut(a).believes[b as usize] = true;
        self.node_mut(b).believes[a as usize] = true;
        self.feed(a, swarm::Event::Connected(key_b));
        self.feed(b, swarm::Event::Connected(key_a));
    }

    /// Takes the connection down; both ends notice, the nearer one at once.
    pub(super) fn break_line(&mut self, host: u32, peer: u32, noticed_after: Nanos) {
        if !self.node(host).connected[peer as usize] {
            return;
        }
        self.node_mut(host).connected[peer as usize] = false;
        self.node_mut(peer).connected[host as usize] = false;
        self.node_mut(host).up_count -= 1;
        self.node_mut(peer).up_count -= 1;
        for at in 0..self.transfers.len() {
            let transfer = &self.transfers[at];
            let between = (transfer.from, transfer.to) == (host, peer)
                || (transfer.from, transfer.to) == (peer, host);
            if transfer.live && between {
                let id = TransferId {
                    at: index(at),
                    use_: transfer.use_,
                };
                self.drop_transfer(id);
            }
        }
        self.questions.retain(|_, question| {
            (question.asker, question.server) != (host, peer)
                && (question.asker, question.server) != (peer, host)
        });
        self.settle_requests_of(host, peer);
        self.settle_requests_of(peer, host);
        for (one, other) in [(host, peer), (peer, host)] {
            let life = self.node(one).life;
            self.at(
                self.now + self.setup.delay + noticed_after,
                Due::LineDead {
                    host: one,
                    peer: other,
                    life,
                },
            );
        }
    }

    pub(super) fn line_dead(&mut self, host: u32, peer: u32, life: u32) {
        let node = self.node(host);
        if node.alive && node.life == life && !node.connected[peer as usize] {
            self.node_mut(host).believes[peer as usize] = false;
            let key = self.node(peer).key;
            self.feed(host, swarm::Event::Disconnected(key));
        }
    }

    // ---- transfers ----------------------------------------------------------------------------------------------

    pub(super) fn new_transfer(
        &mut self,
        from: u32,
        to: u32,
        content: u32,
        chunk: u32,
        kind: Kind,
        spread: Option<Spread>,
    ) -> TransferId {
        let bytes = u64::from(self.specs[content as usize].geometry.len(ChunkIndex(chunk)));
        let transfer = |use_| Transfer {
            use_,
            live: true,
            from,
            to,
            content,
            chunk,
            kind,
            spread,
            bytes,
            begun: false,
            queued: 0,
            came: 0,
        };
        if let Some(at) = self.free_transfers.pop() {
            let use_ = self.transfers[at as usize].use_ + 1;
            self.transfers[at as usize] = transfer(use_);
            TransferId { at, use_ }
        } else {
            self.transfers.push(transfer(0));
            TransferId {
                at: index(self.transfers.len() - 1),
                use_: 0,
            }
        }
    }

    fn transfer(&self, id: TransferId) -> Option<&Transfer> {
        self.transfers
            .get(id.at as usize)
            .filter(|transfer| transfer.live && transfer.use_ == id.use_)
    }

    pub(super) fn offered(&mut self, id: TransferId) {
        let Some(transfer) = self.transfer(id) else {
            return;
        };
        let (from, to, content, chunk) = (
            transfer.from,
            transfer.to,
            ContentId(transfer.content),
            ChunkIndex(transfer.chunk),
        );
        if !self.stages(to, content.0) {
            self.end_transfer(id, Delivery::Unwanted, 0);
            return;
        }
        if !self.node(to).alive || !self.node(to).connected[from as usize] {
            self.drop_transfer(id);
            return;
        }
        if self.leaves_unanswered(id, to) {
            return;
        }
        let spread = self.transfers[id.at as usize].spread.take();
        let ticket = self.ticket();
        self.offer = Some((ticket, id));
        let peer = self.node(from).key;
        self.feed(
            to,
            swarm::Event::Offered {
                ticket,
                peer,
                id: content,
                chunk,
                spread,
            },
        );
        if self.offer.take().is_some() {
            self.checks.note("an offer wasn't answered at once");
        }
    }

    pub(super) fn asked(&mut self, question: Question) {
        let server = question.server;
        if !self.node(server).connected[question.asker as usize] {
            return;
        }
        if !self.stages(server, question.content) {
            self.not_arrived(&question, Failure::Missing);
            return;
        }
        let Some(question) = self.rogue_answers(question) else {
            return;
        };
        let ticket = self.ticket();
        let event = swarm::Event::Requested {
            ticket,
            peer: self.node(question.asker).key,
            id: ContentId(question.content),
            chunk: ChunkIndex(question.chunk),
        };
        self.questions.insert(ticket, question);
        self.feed(server, event);
    }

    pub(super) fn not_arrived(&mut self, question: &Question, failure: Failure) {
        self.settle_request(
            question.asker,
            question.server,
            question.content,
            question.chunk,
        );
        let peer = self.node(question.server).key;
        self.tell(
            question.asker,
            swarm::Event::NotArrived {
                peer,
                id: ContentId(question.content),
                chunk: ChunkIndex(question.chunk),
                failure,
            },
        );
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    pub(super) fn begin_transfer(&mut self, id: TransferId) {
        let from = {
            let transfer = &mut self.transfers[id.at as usize];
            transfer.begun = true;
            transfer.from
        };
        if self.falls_into_pit(id) {
            return;
        }
        for _ in 0..PIECES_UNDER_WAY.min(self.pieces) {
            self.queue_piece(id);
        }
        self.start_piece(from);
    }

    /// Whether a tar-pit at one end holds the transfer up.
    fn falls_into_pit(&mut self, id: TransferId) -> bool {
        let transfer = &self.transfers[id.at as usize];
        let (from, to, kind) = (transfer.from, transfer.to, transfer.kind);
        if kind == Kind::Origin {
            return false;
        }
        let after = match (self.node(from).pit, self.node(to).pit) {
            (Some(Pit::Sender), None) => STUCK_AFTER,
            (None, Some(Pit::Reader)) => 2 * STUCK_AFTER,
            _ => return false,
        };
        self.at(self.now + after, Due::Stuck(id));
        if self.node(from).pit == Some(Pit::Sender) {
            // it goes on to the next
            let transfer = &self.transfers[id.at as usize];
            let event = swarm::Event::Sent {
                peer: self.node(to).key,
                id: ContentId(transfer.content),
                chunk: ChunkIndex(transfer.chunk),
                ticket: match kind {
                    Kind::Answer(ticket) => Some(ticket),
                    Kind::Push | Kind::Origin => None,
                },
                delivery: Delivery::Stored,
                wire_bytes: transfer.bytes,
            };
            self.tell(from, event);
        }
        true
    }

    pub(super) fn pit_given_up(&mut self, id: TransferId) {
        let Some(transfer) = self.transfer(id) else {
            return;
        };
        let (from, to, content, chunk) =
            (transfer.from, transfer.to, transfer.content, transfer.chunk);
        self.settle_request(to, from, content, chunk);
        let failed = swarm::Event::NotArrived {
            peer: self.node(from).key,
            id: ContentId(content),
            chunk: ChunkIndex(chunk),
            failure: Failure::Broken,
        };
        self.end_transfer(id, Delivery::Broken, 0);
        if self.node(to).alive {
            self.feed(to, failed);
        }
    }

    fn queue_piece(&mut self, id: TransferId) {
        let transfer = &mut self.transfers[id.at as usize];
        transfer.queued += 1;
        let from = transfer.from;
        self.uplinks[from as usize].queue.push_back(id);
    }

    /// The line takes its next piece, if it is idle.
    pub(super) fn start_piece(&mut self, line: u32) {
        if self.uplinks[line as usize].busy {
            return;
        }
        while let Some(id) = self.uplinks[line as usize].queue.pop_front() {
            let Some((to, bytes)) = self
                .transfer(id)
                .map(|transfer| (transfer.to, transfer.bytes))
            else {
                continue;
            };
            let bytes = bytes.div_ceil(u64::from(self.pieces));
            let uplink = &mut self.uplinks[line as usize];
            let out = takes(bytes, uplink.rate);
            uplink.busy = true;
            uplink.used += out;
            let delay = self.setup.delay;
            let (first, last) = (self.now + delay, self.now + out + delay);
            let came = self.node_mut(to).down.take(first, last, bytes);
            self.at(self.now + out, Due::UplinkFree(line));
            self.at(came, Due::Piece(id));
            return;
        }
    }

    pub(super) fn piece_came(&mut self, id: TransferId) {
        let Some(transfer) = self.transfer(id) else {
            return;
        };
        let (from, queued, came) = (transfer.from, transfer.queued, transfer.came + 1);
        self.transfers[id.at as usize].came = came;
        if came == self.pieces {
            self.completed(id);
        } else if queued < self.pieces {
            self.queue_piece(id);
            self.start_piece(from);
        }
    }

    /// All of a transfer came in.
    fn completed(&mut self, id: TransferId) {
        let Some(transfer) = self.transfer(id) else {
            return;
        };
        let (from, to, content, chunk, kind, bytes) = (
            transfer.from,
            transfer.to,
            transfer.content,
            transfer.chunk,
            transfer.kind,
            transfer.bytes,
        );
        if kind == Kind::Origin {
            self.drop_transfer(id);
            self.origin_bytes += bytes;
            self.take_from_origin(to, content, chunk);
            return;
        }
        self.peer_bytes += bytes;
        self.arrived += 1;
        if matches!(kind, Kind::Answer(_)) {
            self.pulled += 1;
            self.settle_request(to, from, content, chunk);
        }
        let lie = if self.lies {
            self.lie(from, to, content, chunk)
        } else {
            Lie::None
        };
        let peer = self.node(from).key;
        let (content_id, chunk_index) = (ContentId(content), ChunkIndex(chunk));
        let (run, false_link) = self.signed(from, content, chunk, lie);
        if let Some(failure) = self.refuted(to, content, chunk, lie, run, false_link) {
            if failure == Failure::Bad {
                self.blame(to, from);
            }
            self.feed(
                to,
                swarm::Event::NotArrived {
                    peer,
                    id: content_id,
                    chunk: chunk_index,
                    failure,
                },
            );
            self.end_transfer(id, Delivery::Bad, bytes);
            return;
        }
        self.store(to, content, chunk, run, false_link);
        self.feed(
            to,
            swarm::Event::Arrived {
                peer,
                id: content_id,
                chunk: chunk_index,
                wire_bytes: bytes,
            },
        );
        self.end_transfer(id, Delivery::Stored, bytes);
        self.close(to, content);
    }

    /// A transfer is over; its sender hears of it.
    fn end_transfer(&mut self, id: TransferId, delivery: Delivery, wire_bytes: u64) {
        let Some(transfer) = self.transfer(id) else {
            return;
        };
        let (from, to, begun) = (transfer.from, transfer.to, transfer.begun);
        let event = swarm::Event::Sent {
            peer: self.node(to).key,
            id: ContentId(transfer.content),
            chunk: ChunkIndex(transfer.chunk),
            ticket: match transfer.kind {
                Kind::Answer(ticket) => Some(ticket),
                Kind::Push | Kind::Origin => None,
            },
            delivery,
            wire_bytes,
        };
        self.drop_transfer(id);
        if begun && delivery == Delivery::Stored {
            // the sender's next upload doesn't wait for the acknowledgement: others are under way
            if self.node(from).alive {
                self.feed(from, event);
            }
        } else {
            self.tell(from, event);
        }
    }

    pub(super) fn drop_transfer(&mut self, id: TransferId) {
        let transfer = &mut self.transfers[id.at as usize];
        if !transfer.live || transfer.use_ != id.use_ {
            return;
        }
        transfer.live = false;
        let (from, kind, to, content, chunk) = (
            transfer.from,
            transfer.kind,
            transfer.to,
            transfer.content,
            transfer.chunk,
        );
        self.free_transfers.push(id.at);
        if kind != Kind::Origin {
            let node = self.node_mut(from);
            node.uploads = node.uploads.saturating_sub(1);
        }
        if matches!(kind, Kind::Answer(_)) {
            self.settle_request(to, from, content, chunk);
        }
    }

    fn cancel(&mut self, host: u32, peer: u32, content: u32, chunk: u32) {
        self.settle_request(host, peer, content, chunk);
        let found = (0..self.transfers.len()).find(|at| {
            let transfer = &self.transfers[*at];
            transfer.live
                && transfer.kind != Kind::Origin
                && transfer.begun
                && (transfer.from, transfer.to) == (peer, host)
                && (transfer.content, transfer.chunk) == (content, chunk)
        });
        if let Some(at) = found {
            let id = TransferId {
                at: index(at),
                use_: self.transfers[at].use_,
            };
            let held = self.node(host).held[content as usize].contains(ChunkIndex(chunk));
            let delivery = if held {
                Delivery::Already
            } else {
                Delivery::Broken
            };
            self.end_transfer(id, delivery, 0);
            return;
        }
        let ticket = self
            .questions
            .iter()
            .filter(|(_, question)| {
                (question.asker, question.server) == (host, peer)
                    && (question.content, question.chunk) == (content, chunk)
            })
            .map(|(ticket, _)| *ticket)
            .min();
        if let Some(ticket) = ticket {
            self.questions.remove(&ticket);
            self.tell(peer, swarm::Event::Withdrawn(ticket));
        }
    }

    // ---- the registry -------------------------------------------------------------------------------------------

    fn fetch(&mut self, host: u32, content: u32, until: u32) {
        self.check_fetch(host, content);
        if !self.node(host).fetches.contains_key(&content) {
            self.client_fetches(host, content);
        }
        let run = self.new_run(host, content);
        let fetching = self
            .node_mut(host)
            .fetches
            .entry(content)
            .or_insert(Fetching {
                run,
                next: 0,
                until: 0,
                under_way: 0,
                open: false,
                refused: None,
                slow: None,
                false_from: None,
                again: false,
            });
        if until < fetching.until {
            self.checks.note("a fetch went back");
            return;
        }
        fetching.until = until;
        self.pump_origin(host, content);
    }

    pub(super) fn pump_origin(&mut self, host: u32, content: u32) {
        let chunks = self.specs[content as usize].geometry.chunks();
        let origin = index(self.nodes.len());
        loop {
            let node = &mut self.nodes[host as usize];
            let Some(fetching) = node.fetches.get_mut(&content) else {
                return;
            };
            while !fetching.again
                && fetching.next < fetching.until
                && node.held[content as usize].contains(ChunkIndex(fetching.next))
            {
                fetching.next += 1;
            }
            if fetching.next >= chunks && fetching.under_way == 0 {
                node.fetches.remove(&content);
                node.leases.remove(&content);
                self.tell(
                    host,
                    swarm::Event::OriginEnded {
                        id: ContentId(content),
                        end: OriginEnd::Done,
                    },
                );
                self.tell_lease_ended(host, content, stage::event::LeaseEnd::Done);
                return;
            }
            if fetching.under_way >= FETCH_AHEAD || fetching.next >= fetching.until {
                return;
            }
            if !fetching.open {
                let waits = fetching
                    .refused
                    .as_ref()
                    .is_some_and(|refused| refused.waits(self.now));
                if waits || !self.asks_registry(host, content) {
                    return;
                }
                if let Some(fetching) = self.node_mut(host).fetches.get_mut(&content) {
                    fetching.open = true;
                }
                continue;
            }
            let chunk = fetching.next;
            if fetching.slow.is_some() {
                return;
            }
            if let Some(takes) = self.slowness(content, chunk) {
                self.give_slowly(host, content, chunk, takes);
                return;
            }
            let Some(fetching) = self.node_mut(host).fetches.get_mut(&content) else {
                return;
            };
            fetching.next += 1;
            fetching.under_way += 1;
            let id = self.new_transfer(origin, host, content, chunk, Kind::Origin, None);
            self.begin_transfer(id);
        }
    }

    fn take_from_origin(&mut self, host: u32, content: u32, chunk: u32) {
        if !self.node(host).alive {
            return;
        }
        let geometry = self.specs[content as usize].geometry;
        let (chunks, wire_bytes) = (geometry.chunks(), geometry.len(ChunkIndex(chunk)).into());
        let Some(fetching) = self.node_mut(host).fetches.get_mut(&content) else {
            return;
        };
        fetching.under_way -= 1;
        let last = chunk + 1 == chunks;
        let (run, again) = (fetching.run, fetching.again);
        let false_bytes = fetching.false_from.is_some_and(|from| chunk >= from);
        // what stands before it is false, and it goes on from that without knowing
        let before = chunk.checked_sub(1).filter(|_| !again);
        let links = self.node(host).false_links.get(&content);
        let base = before.and_then(|before| links?.get(&before).copied());
        let false_link = match (false_bytes, base) {
            (_, Some(base)) => {
                // its own judgement is that of the link which its run went on from, and no further
                let one_run = base.run == run;
                let first_hand = base.guilty == Some(self.runs[base.run as usize].maker);
                let guilty = base.guilty.filter(|_| one_run || first_hand);
                Some(FalseLink {
                    run,
                    guilty,
                    ..base
                })
            }
            (true, None) => Some(FalseLink {
                run,
                guilty: Some(host),
                registry: true,
            }),
            (false, None) => None,
        };
        if false_link.is_some() && last {
            let run = self.new_run(host, content);
            let Some(fetching) = self.node_mut(host).fetches.get_mut(&content) else {
                return;
            };
            // the chain doesn't end in the digest: everything is fetched again
            *fetching = Fetching {
                run,
                next: 0,
                again: true,
                false_from: None,
                open: false,
                refused: None,
                ..*fetching
            };
            self.pump_origin(host, content);
            return;
        }
        if let Some(fetching) = self.node_mut(host).fetches.get_mut(&content) {
            fetching.refused = None;
        }
        if again {
            self.take_back(host, content, chunk);
            // what is held and true is signed once more
            if let Some(runs) = self.node_mut(host).sources.get_mut(content as usize) {
                runs[chunk as usize] = Some(run);
            }
        }
        if let Some(fetched) = self.node_mut(host).leases.get_mut(&content) {
            *fetched += 1;
        }
        self.store(host, content, chunk, Some(run), false_link);
        if chunk == 0 {
            self.mirrors.began(self.now, host, content);
        }
        self.feed(
            host,
            swarm::Event::OriginChunk {
                id: ContentId(content),
                chunk: ChunkIndex(chunk),
                wire_bytes,
            },
        );
        self.close(host, content);
        self.pump_origin(host, content);
    }

    pub(super) fn abort_origin(&mut self, host: u32, content: u32) {
        for at in 0..self.transfers.len() {
            let transfer = &self.transfers[at];
            if transfer.live
                && transfer.kind == Kind::Origin
                && transfer.to == host
                && transfer.content == content
            {
                let id = TransferId {
                    at: index(at),
                    use_: transfer.use_,
                };
                self.drop_transfer(id);
            }
        }
    }

    // ---- what arrives -------------------------------------------------------------------------------------------

    /// Enters a chunk at a host: its bytes fit its link, true or not.
    fn store(
        &mut self,
        host: u32,
        content: u32,
        chunk: u32,
        run: Option<u32>,
        false_link: Option<FalseLink>,
    ) {
        let now = self.now;
        let (lies, staged) = (self.lies, self.is_staged(content));
        let node = self.node_mut(host);
        if !node.held[content as usize].insert(ChunkIndex(chunk)) {
            return;
        }
        node.missing -= u64::from(staged);
        node.grown_at = now;
        if node.keeps_recent {
            node.recent.push_back((now, content, chunk));
            while node
                .recent
                .front()
                .is_some_and(|(at, ..)| *at + JOURNAL_LAG < now)
            {
                node.recent.pop_front();
            }
        }
        if lies {
            node.sources[content as usize][chunk as usize] = run;
            if let Some(link) = false_link {
                node.false_links
                    .entry(content)
                    .or_default()
                    .insert(chunk, link);
            }
        }
        self.client_hears(host, content);
    }

    /// A host begins a run, under the ticket that it has.
    fn new_run(&mut self, maker: u32, content: u32) -> u32 {
        let ticket = self.node(maker).tickets.get(&content).copied();
        let run = Run {
            maker,
            // without a coordinator: its standing one, which is its own
            ticket: ticket.unwrap_or(u32::MAX - maker),
        };
        self.runs.push(run);
        index(self.runs.len() - 1)
    }

    /// Whether this upload is a lie.
    fn lie(&mut self, from: u32, to: u32, content: u32, chunk: u32) -> Lie {
        if !self.node(from).liar || self.node(to).liar {
            return Lie::None;
        }
        if self.random(100) >= LIES_PERCENT {
            return Lie::None;
        }
        let last = chunk + 1 == self.specs[content as usize].geometry.chunks();
        // Links are signed: only who was leased the content makes any, and in its own name. An invented link of the last chunk
        // doesn't end in the digest: it is seen at once, like false bytes, and like a signature that isn't its maker's.
        let manner = self.node(from).manner;
        let may = self.node(from).tickets.contains_key(&content);
        if manner == Manner::Perjured {
            let victim = index(self.random(self.nodes.len()));
            self.blame(from, victim);
            if victim != from && self.node(victim).tickets.contains_key(&content) {
                self.show_maker(from, victim, content);
            }
        }
        if last || !may || self.random(2) == 0 {
            return Lie::Bytes;
        }
        let fetching = self.node(from).fetches.get(&content);
        let run = fetching.filter(|_| manner == Manner::Plain);
        let run = run.map(|fetching| fetching.run);
        Lie::Link(run.unwrap_or_else(|| self.new_run(from, content)))
    }

    /// Under which run the link of a chunk comes, and whether it is false. `None`: its sender vouches for it.
    fn signed(
        &self,
        from: u32,
        content: u32,
        chunk: u32,
        lie: Lie,
    ) -> (Option<u32>, Option<FalseLink>) {
        if let Lie::Link(run) = lie {
            let link = FalseLink {
                run,
                guilty: Some(from),
                registry: false,
            };
            return (Some(run), Some(link));
        }
        let sender = self.node(from);
        if sender
            .proved_from
            .get(content as usize)
            .is_none_or(|from| *from <= chunk)
        {
            return (None, None);
        }
        let links = sender.false_links.get(&content);
        let link = links.and_then(|links| links.get(&chunk)).copied();
        (sender.sources[content as usize][chunk as usize], link)
    }

    /// Whether the receiver sees at once that a chunk is false, or doesn't take its run any more.
    fn refuted(
        &mut self,
        to: u32,
        content: u32,
        chunk: u32,
        lie: Lie,
        run: Option<u32>,
        false_link: Option<FalseLink>,
    ) -> Option<Failure> {
        if lie == Lie::Bytes {
            return Some(Failure::Bad);
        }
        let run = run.filter(|_| self.lies)?;
        let Run { maker, ticket } = self.runs[run as usize];
        let node = self.node(to);
        // nothing more is taken of a run of which a link was false, nor of a ticket that made three or a host that made eight;
        // this host's own is what it has just dropped
        let suspects = node.suspects.get(&content).map_or(&[][..], Vec::as_slice);
        let of_ticket = suspects.iter().filter(|link| {
            let other = self.runs[link.run as usize];
            (other.maker, other.ticket) == (maker, ticket)
        });
        let refused = suspects.iter().any(|link| link.run == run)
            || of_ticket.count() >= 3
            || self.false_runs(to, content, maker) >= RUNS_OF_MAKER;
        if refused || (maker == to && false_link.is_some()) {
            return Some(Failure::Disproved);
        }
        // a link that should end where a proved one starts
        let proved = node.proved_from.get(content as usize).copied();
        if let Some(link) = false_link
            && proved.is_some_and(|from| chunk + 1 >= from)
        {
            self.suspect(to, content, link);
            return Some(Failure::Disproved);
        }
        self.contradicts(to, content, chunk, run, false_link)
            .then(|| {
                let event = stage::Event::Contradicted {
                    maker: self.node(maker).id.clone(),
                    says: Contradiction::Lie,
                };
                self.tell_plan_from(to, |_| event);
                self.feed(to, swarm::Event::Blamed(self.node(maker).key));
                Failure::Disproved
            })
    }

    /// Whether a link doesn't join what is held beside it of the same run: one of the two was invented.
    fn contradicts(
        &self,
        host: u32,
        content: u32,
        chunk: u32,
        run: u32,
        false_link: Option<FalseLink>,
    ) -> bool {
        let node = self.node(host);
        if !self.node(self.runs[run as usize].maker).liar {
            return false;
        }
        let runs = &node.sources[content as usize];
        let held = &node.held[content as usize];
        let links = node.false_links.get(&content);
        [chunk.checked_sub(1), Some(chunk + 1)]
            .into_iter()
            .flatten()
            .any(|near| {
                let same = (near as usize) < runs.len()
                    && held.contains(ChunkIndex(near))
                    && runs[near as usize] == Some(run);
                let invented = links.is_some_and(|links| links.contains_key(&near));
                same && (invented || false_link.is_some())
            })
    }

    /// A host blames another for bytes that didn't fit their link.
    fn blame(&mut self, by: u32, sender: u32) {
        self.tell_plan_from(by, |world| stage::Event::Blamed {
            by: world.node(by).id.clone(),
            host: world.node(sender).id.clone(),
        });
    }

    /// The registry's bytes come a second time: where they differ from what was made of them the first time, that is
    /// taken back.
    fn take_back(&mut self, host: u32, content: u32, chunk: u32) {
        let false_link = self
            .node(host)
            .false_links
            .get(&content)
            .is_some_and(|links| links.contains_key(&chunk));
        if !false_link {
            return;
        }
        // what it made after it rests on it
        let made = |link: &FalseLink| self.runs[link.run as usize].maker == host;
        let links = self.node(host).false_links.get(&content);
        if links.is_some_and(|links| links.range(chunk..).any(|(_, link)| made(link))) {
            self.tell_plan_from(host, |world| stage::Event::Retracted {
                host: world.node(host).id.clone(),
                content: world.specs[content as usize].digest,
                from: chunk,
            });
        }
        self.drop_made_by(host, content, host, chunk);
        // another's lie is replaced where it lies
        self.drop_chunk(host, content, chunk);
    }

    /// The registry's bytes don't come a second time after all: nothing tells which of them were false.
    fn take_all_back(&mut self, host: u32, content: u32) {
        let false_links = self.node(host).false_links.get(&content);
        let made = |link: &FalseLink| self.runs[link.run as usize].maker == host;
        let own = false_links.is_some_and(|links| links.values().any(made));
        if own {
            self.tell_plan_from(host, |world| stage::Event::Retracted {
                host: world.node(host).id.clone(),
                content: world.specs[content as usize].digest,
                from: 0,
            });
            self.drop_made_by(host, content, host, 0);
        }
    }

    /// A host drops what this one made of a content from a chunk on.
    pub(super) fn drop_made_by(&mut self, host: u32, content: u32, maker: u32, from: u32) {
        let node = self.node(host);
        if !node.alive {
            return;
        }
        let end = node.proved_from.get(content as usize).copied();
        let end = end.unwrap_or(0);
        let Some(sources) = node.sources.get(content as usize) else {
            return;
        };
        let chunks: Vec<u32> = (from..end)
            .filter(|chunk| {
                let run = sources[*chunk as usize];
                run.is_some_and(|run| self.runs[run as usize].maker == maker)
            })
            .collect();
        for chunk in chunks {
            self.drop_chunk(host, content, chunk);
        }
    }

    fn drop_chunk(&mut self, host: u32, content: u32, chunk: u32) {
        let staged = self.is_staged(content);
        let node = self.node_mut(host);
        if !node.held[content as usize].remove(ChunkIndex(chunk)) {
            return;
        }
        node.missing += u64::from(staged);
        if let Some(links) = node.false_links.get_mut(&content) {
            links.remove(&chunk);
        }
        self.feed(
            host,
            swarm::Event::ChunkLost {
                id: ContentId(content),
                chunk: ChunkIndex(chunk),
            },
        );
    }

    /// Once everything of a content is there, the chain is walked back from the digest: the first false link has its maker's
    /// signature, and everything before it from the same maker is dropped. When the chain is closed, makers of what was false
    /// are shown to the coordinator.
    fn close(&mut self, host: u32, content: u32) {
        while self.node(host).held[content as usize].is_full() {
            let false_link = self
                .node(host)
                .false_links
                .get(&content)
                .and_then(|links| links.last_key_value())
                .map(|(chunk, link)| (*chunk, *link));
            let Some((top, link)) = false_link else {
                if let Some(proved) = self.node_mut(host).proved_from.get_mut(content as usize) {
                    *proved = 0;
                }
                self.show_makers(host, content);
                self.note_whole(host, content);
                self.maybe_finished(host);
                return;
            };
            self.suspect(host, content, link);
            let of = self.runs[link.run as usize];
            let node = self.node_mut(host);
            node.proved_from[content as usize] = top + 1;
            let node = self.node(host);
            let dropped: Vec<u32> = (0..=top)
                .filter(|chunk| {
                    let run = node.sources[content as usize][*chunk as usize];
                    run.is_some_and(|run| self.runs[run as usize] == of)
                })
                .collect();
            for chunk in dropped {
                self.drop_chunk(host, content, chunk);
            }
        }
    }

    /// A link was proved false: nothing more of its run is taken, and after so many runs nothing that its maker made.
    fn suspect(&mut self, host: u32, content: u32, link: FalseLink) {
        let maker = self.runs[link.run as usize].maker;
        let before = self.false_runs(host, content, maker);
        let suspects = &mut self.node_mut(host).suspects;
        suspects.entry(content).or_default().push(link);
        let now = self.false_runs(host, content, maker);
        if before < RUNS_OF_MAKER && now >= RUNS_OF_MAKER && maker != host {
            self.drop_made_by(host, content, maker, 0);
        }
    }

    /// Runs of one maker of which a host knows false links.
    fn false_runs(&self, host: u32, content: u32, maker: u32) -> usize {
        let suspects = self.node(host).suspects.get(&content);
        let runs = suspects.into_iter().flatten().map(|link| link.run);
        let made = runs.filter(|run| self.runs[*run as usize].maker == maker);
        made.collect::<BTreeSet<_>>().len()
    }

    /// The content is whole: who made what was false in it is known.
    fn show_makers(&mut self, host: u32, content: u32) {
        let suspects = self.node_mut(host).suspects.remove(&content);
        let mut shown = BTreeSet::new();
        for link in suspects.into_iter().flatten() {
            let Some(guilty) = link.guilty.filter(|guilty| *guilty != host) else {
                continue;
            };
            if !self.node(guilty).liar && !link.registry {
                self.checks
                    .note("an honest host is held to have made a false link");
            }
            if shown.insert(guilty) {
                self.show_maker(host, guilty, content);
            }
        }
    }

    fn show_maker(&mut self, by: u32, maker: u32, content: u32) {
        let digest = self.specs[content as usize].digest;
        self.tell_plan_from(by, |world| stage::Event::FalseLink {
            by: world.node(by).id.clone(),
            maker: world.node(maker).id.clone(),
            content: digest,
            vouched: false,
        });
    }

    /// Whether the host is to hold this content, and its agent knows that.
    pub(super) fn stages(&self, host: u32, content: u32) -> bool {
        self.node(host).stages[self.specs[content as usize].image]
    }

    fn is_staged(&self, content: u32) -> bool {
        self.images[self.specs[content as usize].image].is_staged()
    }

    /// All of a content is there: perhaps of its image too.
    fn note_whole(&mut self, host: u32, content: u32) {
        let image = self.specs[content as usize].image;
        let mut of_it = (0..)
            .zip(&self.specs)
            .filter(|(_, spec)| spec.image == image);
        let node = self.node(host);
        if node.whole_at[image].is_none()
            && of_it.all(|(at, _): (usize, _)| node.held[at].is_full())
        {
            let now = self.now;
            self.node_mut(host).whole_at[image] = Some(now);
        }
        self.client_served(host, content);
    }

    fn maybe_finished(&mut self, host: u32) {
        let now = self.now;
        let node = self.node_mut(host);
        if node.missing > 0 {
            return;
        }
        let false_left = node.false_links.values().any(|links| !links.is_empty());
        if false_left {
            return;
        }
        if node.finished_at.is_none() {
            node.finished_at = Some(now);
            if node.wanted {
                self.unfinished -= 1;
            }
        }
        self.check_installed(host);
    }
}

/// What a transfer really carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    /// Bytes that don't fit their link.
    Bytes,
    /// An invented link, and bytes that fit it, in this run of this host's.
    Link(u32),
}
