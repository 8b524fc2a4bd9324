//! Hosts: who belongs to the fleet, whose session is up, and what they report.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use proto::{
    ChunkIndex, Digest, HostId, Moment, Signed, message,
    statement::{Contradiction, contradiction},
};
use rollout::stage::{Event, event as word};
use tracing::{debug, error, info, warn};

use super::{
    Driver, Host, MAX_BAD_CONTENTS, MAX_BLAMES, MAX_SUSPECT, Opened, ROSTER_KEEP, Refused, Session,
    lines::Line, orders::bandwidth,
};
use crate::{
    config::MAX_HOSTS,
    fleet::Membership,
    intake::MAX_IMAGES,
    metrics::{KindLabel, Metrics},
    network::Network,
    progress::{self, Progress},
    view::VolumeView,
    wants::Place,
};

/// The same trouble with a registry is logged again when nothing was heard of it for this long.
const ORIGIN_SAYS_ANEW: Duration = Duration::from_mins(1);

/// No line is faster, in bytes a second; what a host says beyond it would only spoil predictions.
const MAX_RATE: u64 = 1_000_000_000_000;

impl Driver {
    pub(super) fn join(&mut self, now: Moment, membership: Arc<Membership>) {
        let gone: Vec<HostId> = self
            .hosts
            .keys()
            .filter(|host| !membership.admits(host))
            .cloned()
            .collect();
        for host in gone {
            self.leave(now, &host);
        }
        for (host, entry) in membership.members() {
            let zone = entry.map_or(String::new(), |entry| entry.zone.clone());
            self.know(now, host, zone);
        }
        if self.membership.enrolled != membership.enrolled {
            self.roster_changes(now);
        }
        self.membership = membership;
        self.dirty = true;
    }

    /// Whether the host could be made known.
    pub(super) fn know(&mut self, now: Moment, host: &HostId, zone: String) -> bool {
        if let Some(known) = self.hosts.get_mut(host) {
            if !zone.is_empty() && known.zone != zone {
                known.zone.clone_from(&zone);
                let host = host.clone();
                self.plan.handle(now, Event::HostKnown { host, zone });
            }
            return true;
        }
        if self.hosts.len() >= MAX_HOSTS {
            error!(%host, limit = MAX_HOSTS, "fleet is full; the host isn't taken in");
            return false;
        }
        if let Some(other) = self.keys.get(&host.key()) {
            error!(%host, %other, "host has the same key as another; rename one of them");
            return false;
        }
        self.keys.insert(host.key(), host.clone());
        self.hosts.insert(host.clone(), Host::new(zone.clone()));
        self.names_due.insert(host.clone());
        let host = host.clone();
        self.plan.handle(now, Event::HostKnown { host, zone });
        // where images share a name, the hosts that each is wanted on are counted
        self.follow_claims(now, None);
        true
    }

    /// The host isn't part of the fleet any more: its session ends with its queue.
    pub(super) fn leave(&mut self, now: Moment, host: &HostId) {
        info!(%host, "host left the fleet");
        self.mirror_left(now, host);
        self.hosts.remove(host);
        self.presence_changed = true;
        self.keys.remove(&host.key());
        for wanted in self.wants.values_mut() {
            wanted.ordered.remove(host);
        }
        self.plan.handle(now, Event::HostForgotten(host.clone()));
        self.roster_changes(now);
    }

    pub(super) fn open(&mut self, now: Moment, opened: Opened) {
        let Opened {
            host,
            session,
            remote,
            hello,
            orders,
        } = opened;
        if hello.peer_port == 0 && hello.peer_address.is_empty() {
            // Its agent said hello before it knew its own state. Without a queue the session ends, and it comes again.
            debug!(%host, "hello says nothing; the session isn't taken");
            return;
        }
        // The membership may have changed between the handshake and now. Without a queue the session ends.
        if !self.membership.admits(&host) {
            return;
        }
        let named = self.membership.fleet.hosts.get(&host);
        let zone = named
            .map(|entry| entry.zone.clone())
            .filter(|zone| !zone.is_empty())
            .unwrap_or_else(|| zone(&hello.zone));
        if !self.know(now, &host, zone) {
            return;
        }
        let Some(known) = self.hosts.get_mut(&host) else {
            return;
        };
        let advertised = peer_address(remote, &hello, &self.config.peer_networks);
        match &advertised {
            None => {
                warn!(%host, address = progress::clean(&hello.peer_address), "host's address for peers can't be used");
            }
            Some((used, true)) => {
                warn!(
                    %host,
                    address = progress::clean(&hello.peer_address),
                    %used,
                    "host names an address for peers that is of none of coordinator.peer_networks; the one that it comes from is used"
                );
            }
            Some((_, false)) => {}
        }
        let advertised = advertised.map(|(address, _)| address);
        let place = advertised.map(|address| Place {
            address,
            zone: known.zone.clone(),
        });
        let moved = known.place != place;
        if moved {
            known.place = place;
            self.places_due.get_or_insert(now + ROSTER_KEEP);
        }
        let has = hello.images.iter().filter_map(|image| {
            let manifest = message::digest(&image.manifest).ok()?;
            Some((manifest, image.order?))
        });
        let replaced = known.session.replace(Session {
            number: session,
            orders,
            since: now,
            greeted: false,
            roster: hello.roster_epoch,
            link_key: hello.link_key.as_slice().try_into().ok(),
            ticket_due: now,
            has: has.take(MAX_IMAGES).collect(),
        });
        known.lost_at = None;
        self.refusals.forget(&host);
        known.version = progress::clean(&hello.version);
        known.volume = hello.volume.as_ref().map(volume);
        for wanted in self.wants.values_mut() {
            wanted.ordered.remove(&host);
        }
        info!(%host, %remote, version = known.version, "host is connected");
        if replaced.is_some() {
            debug!(%host, "a new session replaces the one before");
            self.plan.handle(now, Event::HostDisconnected(host.clone()));
        }
        if self.signs_links(&host) {
            self.plan.handle(now, Event::HostConnected(host.clone()));
            // before any lease
            self.give_standing_ticket(now, &host);
        } else {
            self.warn_of_old_version(&host, &progress::clean(&hello.version));
        }
        if moved {
            self.roster_changes(now);
        }
        for image in &hello.images {
            self.image(now, &host, image);
        }
        self.presence_anew(&host);
        if let Some(known) = self.hosts.get_mut(&host) {
            known.told.connected(hello.takes_names);
        }
        self.presence_heard(now, &host, &hello.images, true, 0);
        self.names_due.insert(host.clone());
        if let Some(limits) = self.effective_bandwidth() {
            self.order(&host, bandwidth(limits));
        }
        if !self.quarantined.is_empty() {
            let limits = self.limits();
            self.order(&host, limits);
        }
    }

    /// A handshake was refused: it is kept for whoever asks why the host is away.
    pub(super) fn refused(&mut self, now: Moment, refused: Refused) {
        let host = refused.host.clone().or_else(|| self.at(refused.address));
        let part = |host: &HostId| {
            self.hosts.contains_key(host) || self.membership.revoked.contains_key(host)
        };
        let known = host.clone().filter(part);
        let mut refused = refused;
        if let Some(host) = &host
            && self.membership.revoked.contains_key(host)
        {
            refused.reason = "revoked";
            "it was turned away, because it is revoked".clone_into(&mut refused.message);
        }
        let (address, reason, error) = (refused.address, refused.reason, refused.message.clone());
        if self.refusals.note(now, known, refused) {
            let host = host.map(tracing::field::display);
            warn!(host, %address, reason, error, "a host and this coordinator don't take each other");
        } else {
            debug!(%address, reason, error, "a host and this coordinator don't take each other");
        }
    }

    /// The host that peers reach at this address, or the only one on that machine: who refuses us doesn't say who it is.
    fn at(&self, address: SocketAddr) -> Option<HostId> {
        let places = || {
            let hosts = self.hosts.iter();
            hosts.filter_map(|(host, known)| Some((host, known.place.as_ref()?.address)))
        };
        if let Some((host, _)) = places().find(|(_, place)| *place == address) {
            return Some(host.clone());
        }
        let mut there = places().filter(|(_, place)| place.ip() == address.ip());
        match (there.next(), there.next()) {
            (Some((host, _)), None) => Some(host.clone()),
            _ => None,
        }
    }

    pub(super) fn close(&mut self, now: Moment, host: &HostId, session: u64) {
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        // A session that was replaced says goodbye late.
        if known
            .session
            .as_ref()
            .is_none_or(|held| held.number != session)
        {
            return;
        }
        let held = known.session.take();
        known.lost_at = Some(now);
        for progress in known.images.values_mut() {
            progress.disconnected();
        }
        let lasted = held.map_or(Duration::ZERO, |held| now.since(held.since));
        info!(%host, lasted_s = lasted.as_secs(), "host is disconnected");
        self.mirror_left(now, host);
        self.plan.handle(now, Event::HostDisconnected(host.clone()));
    }

    pub(super) fn report(
        &mut self,
        now: Moment,
        host: &HostId,
        session: u64,
        report: &message::Report,
    ) {
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        if known
            .session
            .as_ref()
            .is_none_or(|held| held.number != session)
        {
            return;
        }
        if let Some(reported) = &report.volume {
            known.volume = Some(volume(reported));
        }
        if let Some(load) = &report.load {
            known.backlog_bytes = load.backlog_bytes;
            known.upload_bytes_per_second = load.upload_bytes_per_second.min(MAX_RATE);
        }
        for image in &report.images {
            self.image(now, host, image);
        }
        self.presence_heard(now, host, &report.images, report.full, report.names);
        if report.full {
            self.forget_unreported(now, host, report);
            self.leases_held(now, host, report);
        }
        if report.roster_wanted {
            self.roster_lost(host);
        }
        if let Some(without) = &report.without_source {
            let contents = without.contents.iter();
            let event = Event::WithoutSource {
                host: host.clone(),
                contents: contents
                    .filter_map(|content| self.meant(host, content))
                    .collect(),
            };
            self.plan.handle(now, event);
        }
        if let Some(held) = &report.held {
            let contents = held.contents.iter();
            let event = Event::Holds {
                host: host.clone(),
                contents: contents
                    .filter_map(|of| Some((self.meant(host, &of.content)?, of.chunks)))
                    .collect(),
            };
            self.plan.handle(now, event);
        }
        // what is over was before a want that is new, and what runs may be for one
        let runs = |lease: &&message::LeaseState| lease.end() == message::LeaseEnd::Unspecified;
        for lease in report.leases.iter().filter(|lease| !runs(lease)) {
            self.lease(now, host, lease);
        }
        if let Some(wants) = &report.mirror {
            self.mirror_wants(now, host, wants);
        }
        for lease in report.leases.iter().filter(runs) {
            self.lease(now, host, lease);
        }
        for retraction in &report.retractions {
            self.retraction(now, host, retraction);
        }
        self.blames(now, host, &report.blames);
    }

    /// The content that a host means by this digest, as the plan knows it.
    fn meant(&self, host: &HostId, digest: &[u8]) -> Option<Digest> {
        let digest = message::digest(digest).ok()?;
        Some(self.mirror.meant(host, digest))
    }

    fn retraction(&mut self, now: Moment, host: &HostId, retraction: &message::Retraction) {
        let Some(content) = self.meant(host, &retraction.content) else {
            return;
        };
        let from = retraction.from_chunk;
        if !self.plan.takes_retraction(now, host, &content) {
            return;
        }
        if let Some(left_out) = self.line(now, host, Line::Retracted) {
            info!(%host, %content, from_chunk = from, left_out, "host takes back what it made of the registry's false bytes");
        }
        let event = Event::Retracted {
            host: host.clone(),
            content,
            from,
        };
        self.plan.handle(now, event);
    }

    /// Whether a line about what this host says is written now, and how many were left out before it.
    fn line(&mut self, now: Moment, host: &HostId, line: Line) -> Option<u64> {
        self.hosts.get_mut(host)?.lines.due(now, line)
    }

    pub(super) fn image(&mut self, now: Moment, host: &HostId, report: &message::ImageState) {
        let Ok(image) = message::digest(&report.manifest) else {
            debug!(%host, "report names an image by no digest");
            return;
        };
        let total = self
            .wants
            .get(&image)
            .map(|wanted| wanted.want.layout.content_bytes());
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        if !known.images.contains_key(&image) && known.images.len() >= MAX_IMAGES {
            debug!(%host, "host reports more images than are kept track of");
            return;
        }
        let progress = known.images.entry(image).or_insert_with(Progress::new);
        progress.report(now, report, total);
        if !report.reference.is_empty() {
            known
                .references
                .insert(image, progress::clean(&report.reference));
        }
        let standing = match progress::state(report.state) {
            crate::view::HostState::Queued => word::Standing::Queued,
            crate::view::HostState::Staging => word::Standing::Staging,
            crate::view::HostState::Installing => word::Standing::Installing,
            crate::view::HostState::Present => word::Standing::Present,
            crate::view::HostState::Failed => word::Standing::Failed,
            crate::view::HostState::Gone => word::Standing::Gone,
            // A state that this version doesn't know says nothing that can be acted on.
            crate::view::HostState::Waiting => return,
        };
        // as the host says, not as it is shown: that it holds less than before is news
        let held_bytes = report.held_bytes;
        if standing == word::Standing::Gone {
            self.restage_later(now, host, image);
        }
        self.plan.handle(
            now,
            Event::Reported {
                host: host.clone(),
                image,
                standing,
                held_bytes,
            },
        );
    }

    /// A full report is all that there is: an image that it leaves out isn't on the host any more.
    pub(super) fn forget_unreported(
        &mut self,
        now: Moment,
        host: &HostId,
        report: &message::Report,
    ) {
        let reported: BTreeSet<Digest> = report
            .images
            .iter()
            .filter_map(|image| message::digest(&image.manifest).ok())
            .collect();
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        if let Some(session) = &mut known.session {
            session.has.retain(|image, _| reported.contains(image));
        }
        let gone: Vec<Digest> = known
            .images
            .keys()
            .filter(|image| !reported.contains(image))
            .copied()
            .collect();
        for image in gone {
            known.images.remove(&image);
            known.references.remove(&image);
            self.plan.handle(
                now,
                Event::Reported {
                    host: host.clone(),
                    image,
                    standing: word::Standing::Gone,
                    held_bytes: 0,
                },
            );
        }
    }

    /// A full report names all leases that the host has.
    fn leases_held(&mut self, now: Moment, host: &HostId, report: &message::Report) {
        let held = report
            .leases
            .iter()
            .filter_map(|lease| self.meant(host, &lease.content));
        let event = Event::LeasesHeld {
            host: host.clone(),
            contents: held.collect(),
        };
        self.plan.handle(now, event);
    }

    /// The host has another roster than it was thought to have.
    fn roster_lost(&mut self, host: &HostId) {
        debug!(%host, "host needs a whole roster");
        if let Some(session) = self
            .hosts
            .get_mut(host)
            .and_then(|known| known.session.as_mut())
            && let Some(epoch) = &mut session.roster
        {
            *epoch = 0;
        }
        self.tell_roster_to(host, true);
    }

    /// A host speaks of a lease. What it says counts where the lease is its own, as the plan knows; of another's content it has
    /// nothing to say, and that isn't written down anywhere.
    pub(super) fn lease(&mut self, now: Moment, host: &HostId, lease: &message::LeaseState) {
        let Some(content) = self.meant(host, &lease.content) else {
            return;
        };
        match lease.end() {
            message::LeaseEnd::Unspecified => self.lease_runs(now, host, content, lease),
            message::LeaseEnd::Done
            | message::LeaseEnd::OriginFailed
            | message::LeaseEnd::ContentBad
            | message::LeaseEnd::Released => self.lease_ended(now, host, content, lease),
        }
    }

    fn lease_runs(
        &mut self,
        now: Moment,
        host: &HostId,
        content: Digest,
        lease: &message::LeaseState,
    ) {
        let wish = Duration::from_millis(lease.retry_after_ms);
        let trouble = match lease.trouble() {
            message::OriginTrouble::Unspecified | message::OriginTrouble::Unauthorised => None,
            message::OriginTrouble::Silent => Some(word::Trouble::Silent),
            message::OriginTrouble::Throttled if !wish.is_zero() => {
                Some(word::Trouble::Throttled(wish))
            }
            message::OriginTrouble::Failing | message::OriginTrouble::Throttled => {
                Some(word::Trouble::Failing)
            }
        };
        let held = self.plan.holds_lease(host, &content);
        self.plan.handle(
            now,
            Event::LeaseProgress {
                host: host.clone(),
                content,
                chunks: lease.chunks,
                bytes: lease.bytes,
                paced: lease.paced,
                trouble,
            },
        );
        // its word may have ended the lease, and a coordinator that has just started takes over those that run
        if !held && !self.plan.holds_lease(host, &content) {
            return;
        }
        match trouble {
            Some(trouble) => self.note_origin(now, host, content, trouble, &lease.message),
            None if lease.trouble() == message::OriginTrouble::Unauthorised => {
                if let Some(left_out) = self.line(now, host, Line::TokenRefused) {
                    let error = progress::clean(&lease.message);
                    warn!(%host, %content, error, left_out, "the registry refuses the token that was handed down");
                }
                self.token_refused(now, content);
                self.note_remark(now, content, &lease.message);
            }
            None => self.note_remark(now, content, &lease.message),
        }
    }

    fn lease_ended(
        &mut self,
        now: Moment,
        host: &HostId,
        content: Digest,
        lease: &message::LeaseState,
    ) {
        let (end, outcome) = ended(lease);
        if self.plan.holds_lease(host, &content) {
            Metrics::count(&self.metrics.lease_ends, outcome);
            let message = progress::clean(&lease.message);
            match end {
                word::LeaseEnd::Done | word::LeaseEnd::Released => {
                    debug!(%host, %content, reason = outcome, "lease ended");
                }
                word::LeaseEnd::OriginFailed
                | word::LeaseEnd::Faulty(_)
                | word::LeaseEnd::HostUnable => {
                    if let Some(left_out) = self.line(now, host, Line::LeaseFailed) {
                        warn!(%host, %content, reason = outcome, message, left_out, "lease failed on its holder");
                    }
                }
            }
            match end {
                word::LeaseEnd::OriginFailed => {
                    self.note_origin(now, host, content, word::Trouble::Failing, &message);
                }
                word::LeaseEnd::Faulty(fault) => {
                    if fault == word::Fault::Refused {
                        self.token_refused(now, content);
                    }
                    self.note_bad(content, message);
                }
                word::LeaseEnd::HostUnable | word::LeaseEnd::Done | word::LeaseEnd::Released => {}
            }
        }
        self.plan.handle(
            now,
            Event::LeaseEnded {
                host: host.clone(),
                content,
                end,
            },
        );
    }

    /// Remembers what a holder found wrong with a content.
    fn note_bad(&mut self, content: Digest, message: String) {
        if self.bad_contents.len() >= MAX_BAD_CONTENTS {
            let plan = &self.plan;
            self.bad_contents.retain(|content, _| plan.knows(content));
        }
        if self.bad_contents.len() < MAX_BAD_CONTENTS {
            self.bad_contents.insert(content, message);
        }
    }

    /// Remembers what a holder says about a registry that gives something all the same.
    fn note_remark(&mut self, now: Moment, content: Digest, message: &str) {
        if message.is_empty() {
            return;
        }
        for wanted in self.wants.values_mut() {
            let contents = wanted.want.layout.contents();
            if contents.iter().any(|of| of.digest == content) {
                wanted.origin_remark = Some((now, progress::clean(message)));
            }
        }
    }

    /// Remembers what a holder says about its registry: it is shown while the registry is left alone. The log has it once
    /// for each outage.
    fn note_origin(
        &mut self,
        now: Moment,
        host: &HostId,
        content: Digest,
        trouble: word::Trouble,
        message: &str,
    ) {
        let error = progress::clean(message);
        let mut news = false;
        for wanted in self.wants.values_mut() {
            let contents = wanted.want.layout.contents();
            if !contents.iter().any(|of| of.digest == content) {
                continue;
            }
            let same = wanted.origin_said.as_ref().is_some_and(|(at, said)| {
                // a silence has other words each time
                let alike = *said == error || trouble == word::Trouble::Silent;
                alike && now.since(*at) < ORIGIN_SAYS_ANEW
            });
            news |= !same;
            wanted.origin_said = Some((now, error.clone()));
        }
        if !news {
            return;
        }
        let Some(left_out) = self.line(now, host, Line::Registry) else {
            return;
        };
        match trouble {
            word::Trouble::Failing => {
                warn!(%host, %content, error, left_out, "the registry fails the holder of a lease");
            }
            word::Trouble::Silent => {
                warn!(%host, %content, error, left_out, "the registry is silent to the holder of a lease");
            }
            word::Trouble::Throttled(wish) => {
                let wish_s = wish.as_secs();
                warn!(%host, %content, error, wish_s, left_out, "the registry asked to be left alone");
            }
        }
    }

    /// What a host holds against others, as far as it is heard: an honest host shuns a liar after a few of its lies, and has no
    /// more to say of it.
    fn blames(&mut self, now: Moment, by: &HostId, blames: &[message::Blame]) {
        let Some(known) = self.hosts.get_mut(by) else {
            return;
        };
        let room = known.blamed.room(now).min(MAX_BLAMES);
        if blames.len() > room {
            debug!(%by, blames = blames.len(), heard = room, "host blames others too often to be heard");
        }
        for blame in blames.iter().take(room) {
            if let Some(known) = self.hosts.get_mut(by) {
                known.blamed.count += 1;
            }
            self.blame(now, by, blame);
        }
    }

    fn blame(&mut self, now: Moment, by: &HostId, blame: &message::Blame) {
        let kind = match blame.kind() {
            message::BlameKind::Unspecified => "other",
            message::BlameKind::Bytes => "bytes",
            message::BlameKind::Link => return self.false_link(now, by, blame),
            message::BlameKind::Silence => "silence",
            message::BlameKind::Protocol => "protocol",
        };
        self.metrics.blames.get_or_create(&KindLabel { kind }).inc();
        let Ok(host) = blame.host.parse::<HostId>() else {
            return;
        };
        let Some(known) = self.hosts.get_mut(&host).filter(|_| host != *by) else {
            return;
        };
        known.blames = known.blames.saturating_add(1);
        // its disk may have rotted: whoever keeps a chunk like that looks at it at once, and mends it
        if blame.kind() == message::BlameKind::Bytes
            && known.suspect.len() < MAX_SUSPECT
            && let Ok(content) = message::digest(&blame.content)
        {
            known.suspect.insert((content, blame.chunk));
        }
        if let Some(left_out) = self.line(now, by, Line::Blames) {
            warn!(%by, %host, kind, chunk = blame.chunk, left_out, "host is blamed");
        }
        // Silence and broken manners are faults, not lies: the accuser shuns such a host by itself.
        if blame.kind() == message::BlameKind::Bytes && self.is_news(by, 0, &host, None) {
            let by = by.clone();
            self.plan.handle(now, Event::Blamed { by, host });
        }
    }

    /// Whether a host blames this one for the first time in a while, of this content where it shows links: the same again says
    /// nothing new.
    fn is_news(&mut self, by: &HostId, links: usize, of: &HostId, content: Option<Digest>) -> bool {
        let said = (links, of.clone(), content);
        let accuser = self.hosts.get_mut(by);
        accuser.is_some_and(|accuser| accuser.blamed.said.insert(said))
    }

    /// A host shows a link that another signed and that is false, or two that contradict each other. Whom it says to blame
    /// counts for nothing: the signatures say whose the links are.
    ///
    /// A link that was made may be the registry's fault: that is told apart, and nobody is blamed for it.
    fn false_link(&mut self, now: Moment, by: &HostId, blame: &message::Blame) {
        let Some(evidence) = evidence(blame) else {
            debug!(%by, "a host blames another and shows no signed link");
            return;
        };
        let (maker, content) = (evidence[0].maker().clone(), evidence[0].content);
        if maker == *by || !self.hosts.contains_key(&maker) {
            return;
        }
        let signed = |signed: &Signed| signed.verify_signed(true, &self.signatures).is_ok();
        if !evidence.iter().all(signed) {
            debug!(%by, "a host blames another and shows links that nobody signed");
            return;
        }
        let (chunk, vouched) = (evidence[0].chunk, evidence[0].statement.run.is_vouched());
        let event = match &evidence[..] {
            [one, other] => {
                let Some(says) = contradiction(one, other) else {
                    return;
                };
                Event::Contradicted { maker, says }
            }
            _ => Event::FalseLink {
                by: by.clone(),
                maker,
                content: self.mirror.meant(by, content),
                vouched,
            },
        };
        if let Event::Contradicted { maker, .. } | Event::FalseLink { maker, .. } = &event {
            let maker = maker.clone();
            if !self.is_news(by, evidence.len(), &maker, Some(content)) {
                return;
            }
        }
        let left_out = self.line(now, by, Line::FalseLinks);
        let (kind, maker) = match &event {
            Event::Contradicted {
                maker,
                says: Contradiction::Lie,
            } => {
                if let Some(left_out) = left_out {
                    error!(%by, %maker, %content, %chunk, left_out, "two links that a host signed contradict each other");
                }
                ("link", Some(maker))
            }
            Event::FalseLink {
                maker,
                vouched: true,
                ..
            } => {
                if let Some(left_out) = left_out {
                    warn!(%by, %maker, %content, %chunk, left_out, "a host says that a link which another vouched for is false");
                }
                ("link", Some(maker))
            }
            _ => {
                debug!(%by, %content, %chunk, "what was made of the registry's bytes is false, as a host says");
                ("made", None)
            }
        };
        self.metrics.blames.get_or_create(&KindLabel { kind }).inc();
        if let Some(known) = maker.and_then(|maker| self.hosts.get_mut(maker)) {
            known.blames = known.blames.saturating_add(1);
        }
        self.plan.handle(now, event);
    }
}

/// How a lease ended, and what metrics call that.
fn ended(lease: &message::LeaseState) -> (word::LeaseEnd, &'static str) {
    use message::{LeaseEnd, OriginFault};
    use word::{Fault, LeaseEnd as End};
    match lease.end() {
        LeaseEnd::Unspecified | LeaseEnd::Released => (End::Released, "released"),
        LeaseEnd::Done => (End::Done, "done"),
        LeaseEnd::ContentBad => (End::Faulty(Fault::Bad), "content_bad"),
        LeaseEnd::OriginFailed => match lease.fault() {
            OriginFault::Unspecified => (End::OriginFailed, "origin_failed"),
            OriginFault::Missing => (End::Faulty(Fault::Missing), "content_missing"),
            OriginFault::Refused => (End::Faulty(Fault::Refused), "content_refused"),
            OriginFault::Unusable => (End::Faulty(Fault::Unusable), "content_unusable"),
            OriginFault::CutShort => (End::Faulty(Fault::CutShort), "content_unusable"),
            OriginFault::Host => (End::HostUnable, "host_unable"),
        },
    }
}

/// What a blame shows: one signed link or two of one content. Their signatures aren't checked yet.
fn evidence(blame: &message::Blame) -> Option<Vec<Signed>> {
    let content = message::digest(&blame.content).ok()?;
    if !(1..=2).contains(&blame.evidence.len()) {
        return None;
    }
    let shown = blame.evidence.iter().map(|shown| {
        let chunk = ChunkIndex(shown.chunk);
        Signed::parse(content, chunk, shown.link.as_ref()?).ok()
    });
    shown.collect()
}

fn volume(volume: &message::Volume) -> VolumeView {
    VolumeView {
        path: progress::clean(&volume.path),
        total_bytes: volume.total_bytes,
        free_bytes: volume.free_bytes.min(volume.total_bytes),
        floor_bytes: volume.floor_bytes,
    }
}

/// Where peers reach a host: what it advertises, else where its connection comes from with the port that it names. The whole
/// fleet sends packets there, so what it advertises has to be its own address or of one of these networks; otherwise only
/// the port is taken of it, which is told.
fn peer_address(
    remote: SocketAddr,
    hello: &message::Hello,
    networks: &[Network],
) -> Option<(SocketAddr, bool)> {
    let own = remote.ip().to_canonical();
    let address = if hello.peer_address.is_empty() {
        let port = u16::try_from(hello.peer_port).ok()?;
        SocketAddr::new(own, port)
    } else {
        hello.peer_address.parse().ok()?
    };
    let ip = address.ip();
    let usable = address.port() != 0
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && ip != Ipv4Addr::BROADCAST;
    let foreign = ip.to_canonical() != own && !networks.iter().any(|network| network.contains(ip));
    let used = match foreign {
        true => SocketAddr::new(own, address.port()),
        false => address,
    };
    usable.then_some((used, foreign))
}

/// A zone as a host names its own, cut: every roster carries it.
fn zone(text: &str) -> String {
    const MAX_CHARS: usize = 63;
    progress::clean(text).chars().take(MAX_CHARS).collect()
}
