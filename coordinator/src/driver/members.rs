//! The members of the fleet: which hosts belong to it, which of them have a session, and what each is told at its
//! start.
//!
//! [`Members`] brings a host into all parts that know hosts, and out of them. So no part knows a host that another part
//! doesn't know.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::SystemTime};

use proto::{HostId, Moment, message, retention::Rule};
use rollout::stage::Event;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::{
    ask::{Ask, OldImagesError},
    effect::Effects,
    hosts::{self, Hosts, Known},
    images::At,
    input::Input,
    order::{Addressed, Orders},
    presence::Presence,
    refusals::{Cause, Refusals, Refused},
    retention::{Question, Retention},
    roster::Entry,
    rosters::Rosters,
    selection::selected,
    sessions::Sessions,
    tickets::Tickets,
    took::unix_ms,
};
use crate::{fleet::Membership, network::Network, progress, view::OldImagesReply};

/// The parts that know hosts.
#[derive(Debug)]
pub(super) struct Members {
    membership: Arc<Membership>,
    hosts: Hosts,
    sessions: Sessions,
    presence: Presence,
    rosters: Rosters,
    tickets: Tickets,
    refusals: Refusals,
    retention: Retention,
}

impl Members {
    /// A fleet without members.
    pub(super) fn new(presence: Presence, tickets: Tickets, retention: Retention) -> Self {
        Self {
            membership: Arc::default(),
            hosts: Hosts::default(),
            sessions: Sessions::default(),
            presence,
            rosters: Rosters::new(),
            tickets,
            refusals: Refusals::default(),
            retention,
        }
    }

    // ---- coming and going ------------------------------------------------------------------------------------------

    /// The known hosts that don't belong to this membership.
    pub(super) fn strangers(&self, membership: &Membership) -> Vec<HostId> {
        let strangers = self.hosts.ids().filter(|host| !membership.admits(host));
        strangers.cloned().collect()
    }

    /// Makes this the membership. The caller has made all of its hosts known, and has removed all others.
    pub(super) fn belong(&mut self, now: Moment, membership: Arc<Membership>) {
        if self.membership.enrolled != membership.enrolled {
            self.rosters.changes(now);
        }
        self.membership = membership;
    }

    /// Makes a host known.
    pub(super) fn know(&mut self, host: &HostId, zone: &str) -> Known {
        let known = self.hosts.know(host, zone);
        if known == Known::New {
            self.presence.joined(host);
            self.rosters.joined(host);
        }
        known
    }

    /// Whether the view may differ after this input by more than ages, which it shows once a second in any case. Most
    /// inputs of a fleet at rest are hosts' words that they still hold what they held.
    pub(super) fn is_news(&self, input: &Input) -> bool {
        match input {
            Input::Reported { host, report, .. } => !self.confirms(host, report),
            // places aren't in the view
            Input::Tick | Input::Asked(Ask::Places(_)) => false,
            Input::Opened(_)
            | Input::Closed { .. }
            | Input::Refused(_)
            | Input::Asked(_)
            | Input::Recalled
            | Input::Token { .. } => true,
        }
    }

    /// Whether a report only repeats that the host still holds its images.
    fn confirms(&self, host: &HostId, report: &message::Report) -> bool {
        let message::Report {
            images,
            full,
            leases,
            blames,
            mirror,
            retractions,
            roster_wanted,
            without_source,
            recipe_doubts,
            held,
            // answers a question, and is no part of the view
            old_images: _,
            // shown once a second, or by what presence makes of it
            volume: _,
            load: _,
            names: _,
        } = report;
        let says_more = *full
            || *roster_wanted
            || mirror.is_some()
            || without_source.is_some()
            || held.is_some()
            || !leases.is_empty()
            || !blames.is_empty()
            || !retractions.is_empty()
            || !recipe_doubts.is_empty();
        let repeats = |image: &message::ImageState| {
            let digest = message::digest(&image.manifest);
            digest.is_ok_and(|digest| self.hosts.confirms(host, &digest, image))
        };
        !says_more && images.iter().all(repeats)
    }

    /// How many of the images that a host reports are present there, by all that the host said until now.
    pub(super) fn present_of(&self, host: &HostId, report: &message::Report) -> usize {
        let images = report.images.iter();
        let digests = images.filter_map(|image| message::digest(&image.manifest).ok());
        digests
            .filter(|image| self.presence.is_present(host, image))
            .count()
    }

    /// The host isn't part of the fleet any more. Its session ends, because its queue is dropped.
    pub(super) fn left(&mut self, now: Moment, host: &HostId) {
        self.hosts.left(host);
        self.sessions.left(host);
        self.presence.left(host);
        self.tickets.disconnected(host);
        self.retention.disconnected(host);
        self.rosters.left(host);
        self.rosters.changes(now);
    }

    /// The zone of a host that says hello; `None` where its session isn't taken. The session then ends, because the
    /// caller drops its queue.
    pub(super) fn admit(&self, host: &HostId, hello: &message::Hello) -> Option<String> {
        if hello.peer_port == 0 && hello.peer_address.is_empty() {
            // The agent said hello before it knew its own state. It will connect again.
            debug!(%host, "hello says nothing; the session isn't taken");
            return None;
        }
        // The membership may have changed between the handshake and now.
        if !self.membership.admits(host) {
            return None;
        }
        let named = self.membership.fleet.hosts.get(host);
        let zone = named.map(|entry| entry.zone.clone());
        let zone = zone.filter(|zone| !zone.is_empty());
        Some(zone.unwrap_or_else(|| hosts::zone(&hello.zone)))
    }

    /// A session of a known host is up. `clock` is the same moment as `now`. Returns what follows for the plan and the
    /// host.
    pub(super) fn open(
        &mut self,
        (now, clock): (Moment, SystemTime),
        host: &HostId,
        (session, queue): (u64, Orders),
        (hello, remote): (&message::Hello, SocketAddr),
        networks: &[Network],
    ) -> Effects {
        let mut effects = Effects::default();
        let moved = self.hosts.greet(now, host, hello, remote, networks);
        self.refusals.forget(host);
        let version = progress::clean(&hello.version);
        info!(%host, %remote, version, "host is connected");
        let key = hello.link_key.as_slice().try_into().ok();
        let replaced = self
            .sessions
            .open(now, host, (session, queue), key.is_some());
        if replaced {
            debug!(%host, "a new session replaces the one before");
            effects.tell(Event::HostDisconnected(host.clone()));
        }
        if let Some(key) = key {
            self.tickets.connected(now, host, key);
            self.rosters.connected(host, hello.roster_epoch);
            effects.tell(Event::HostConnected(host.clone()));
            if hello.takes_ranges {
                effects.tell(Event::TakesRanges(host.clone()));
            }
            // the host needs the standing ticket before any lease
            if let Some(ticket) = self.tickets.standing((now, clock), host) {
                effects.order(host, ticket);
            }
        } else {
            self.tickets.disconnected(host);
            self.rosters.disconnected(host);
            warn!(%host, version, "this host's agent doesn't sign links and takes no part in staging: upgrade it");
        }
        if moved {
            self.rosters.changes(now);
        }
        self.presence.connected(host, hello.takes_names);
        if let Some(rule) = self.retention.connected(host, hello.takes_retention) {
            effects.order(host, rule);
        }
        effects
    }

    /// This session of the host ended. Returns whether it was the host's current one.
    pub(super) fn close(&mut self, now: Moment, host: &HostId, session: u64) -> bool {
        let lasted = self.sessions.close(now, host, session);
        if let Some(lasted) = lasted {
            info!(%host, lasted_s = lasted.as_secs(), "host is disconnected");
            self.disconnected(host);
        }
        lasted.is_some()
    }

    /// Queues an order for a host. Returns whether the session was given up, because its queue is full or closed.
    #[must_use]
    pub(super) fn send(&mut self, now: Moment, host: &HostId, order: &Arc<message::Order>) -> bool {
        let given_up = self.sessions.send(now, host, order);
        if given_up {
            self.disconnected(host);
        }
        given_up
    }

    fn disconnected(&mut self, host: &HostId) {
        self.hosts.disconnected(host);
        self.tickets.disconnected(host);
        self.rosters.disconnected(host);
        self.retention.disconnected(host);
    }

    /// A handshake was refused. The refusal is kept for an operator who asks why the host is away.
    pub(super) fn refused(&mut self, now: Moment, mut refused: Refused) {
        let host = refused.host.clone();
        let host = host.or_else(|| self.hosts.at(refused.address));
        let revoked = |host: &HostId| self.membership.revoked.contains_key(host);
        let part = |host: &HostId| self.hosts.contains(host) || revoked(host);
        let known = host.clone().filter(part);
        if host.as_ref().is_some_and(revoked) {
            refused.cause = Cause::Revoked;
        }
        let (address, error) = (refused.address, refused.cause.clone());
        let reason = error.as_str();
        if self.refusals.note(now, known, refused) {
            let host = host.map(tracing::field::display);
            warn!(host, %address, reason, %error, "a host and this coordinator don't take each other");
        } else {
            debug!(%address, reason, %error, "a host and this coordinator don't take each other");
        }
    }

    // ---- what members are told -------------------------------------------------------------------------------------

    /// Makes the roster anew. Hosts whose version doesn't sign links are left out, and so are hosts that the fleet
    /// shuns. Hosts that are away stay on it. Returns whether the roster changed.
    pub(super) fn refresh_roster(&mut self) -> bool {
        let enrolled = &self.membership.enrolled;
        let entries = self.hosts.iter().filter_map(|(host, known)| {
            if self.sessions.is_old(host) || self.rosters.quarantined().contains(host) {
                return None;
            }
            let entry = Entry {
                place: known.place.clone()?,
                enrolled_at: enrolled.get(host).copied().unwrap_or_default(),
            };
            Some((host.clone(), entry))
        });
        self.rosters.set(entries.collect())
    }

    /// The orders that tell hosts what changed in the roster, if that is due now.
    pub(super) fn tell_roster(&mut self, now: Moment) -> Option<Vec<Addressed>> {
        self.rosters.take_due(now).then(|| {
            let changed = self.refresh_roster();
            self.rosters.tell(now, changed)
        })
    }

    /// Orders with the standing tickets that are due.
    pub(super) fn tell_tickets(&mut self, now: Moment, clock: SystemTime) -> Effects {
        let mut effects = Effects::default();
        for host in self.tickets.due(now) {
            if let Some(ticket) = self.tickets.standing((now, clock), &host) {
                effects.order(&host, ticket);
            }
        }
        effects
    }

    /// The moment of a change of wants, with what is known of the hosts at that moment.
    pub(super) fn at(&self, now: Moment) -> At<'_> {
        At {
            now,
            unix_ms: unix_ms(),
            hosts: &self.hosts,
            presence: &self.presence,
        }
    }

    /// The same order, addressed to every host.
    pub(super) fn to_all(&self, order: message::Order) -> Vec<Addressed> {
        let order = Arc::new(order);
        let hosts = self.hosts.ids();
        hosts.map(|host| (host.clone(), order.clone())).collect()
    }

    /// The fleet shuns exactly these hosts. Returns the orders that say so, where that changed.
    pub(super) fn shun(&mut self, now: Moment, quarantined: BTreeSet<HostId>) -> Vec<Addressed> {
        let limits = self.rosters.shun(now, quarantined);
        limits.map_or_else(Vec::new, |limits| self.to_all(limits))
    }

    /// Asks hosts which of their old images would go; `None`: all hosts. Returns the orders.
    pub(super) fn ask_old_images(
        &mut self,
        now: Moment,
        hosts: Option<&BTreeSet<HostId>>,
        rule: Option<Rule>,
        reply: oneshot::Sender<Result<OldImagesReply, OldImagesError>>,
    ) -> Vec<Addressed> {
        match selected(&self.hosts, &self.membership, hosts) {
            Ok(hosts) => self.retention.ask(now, Question { rule, hosts, reply }),
            Err(error) => {
                drop(reply.send(Err(error.into())));
                Vec::new()
            }
        }
    }

    // ---- the parts -------------------------------------------------------------------------------------------------

    pub(super) fn membership(&self) -> &Membership {
        &self.membership
    }

    pub(super) const fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    pub(super) const fn hosts_mut(&mut self) -> &mut Hosts {
        &mut self.hosts
    }

    pub(super) const fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    pub(super) const fn presence(&self) -> &Presence {
        &self.presence
    }

    pub(super) const fn presence_mut(&mut self) -> &mut Presence {
        &mut self.presence
    }

    pub(super) const fn rosters(&self) -> &Rosters {
        &self.rosters
    }

    pub(super) const fn rosters_mut(&mut self) -> &mut Rosters {
        &mut self.rosters
    }

    pub(super) const fn tickets_mut(&mut self) -> &mut Tickets {
        &mut self.tickets
    }

    pub(super) const fn retention(&self) -> &Retention {
        &self.retention
    }

    pub(super) const fn retention_mut(&mut self) -> &mut Retention {
        &mut self.retention
    }

    pub(super) const fn refusals(&self) -> &Refusals {
        &self.refusals
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::{mpsc, watch};

    use super::{super::effect::Effect, *};
    use crate::{
        authority::Authority,
        config::{Fleet, HostEntry},
        enrolment::Revocation,
    };

    fn at(seconds: u64) -> Moment {
        Moment::START + Duration::from_secs(seconds)
    }

    fn id(name: &str) -> HostId {
        name.parse().unwrap()
    }

    /// Members of an open fleet whose file names `mini-1` in a zone.
    fn members() -> Members {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(&dir.path().join("authority")).unwrap();
        let tickets = Tickets::new(Arc::new(authority), Duration::from_hours(48));
        let presence = Presence::new(watch::channel(Arc::default()).0);
        let mut members = Members::new(presence, tickets, Retention::new(None, false));
        let entry = HostEntry {
            zone: "rack 1".into(),
            ..HostEntry::default()
        };
        let fleet = Fleet {
            open: true,
            hosts: [(id("mini-1"), entry)].into(),
        };
        let membership = Membership {
            fleet,
            revoked: [(id("gone"), Revocation::default())].into(),
            ..Membership::default()
        };
        members.belong(at(0), Arc::new(membership));
        members
    }

    fn hello() -> message::Hello {
        message::Hello {
            peer_port: 7471,
            link_key: vec![1; 32],
            roster_epoch: Some(0),
            zone: "its own".into(),
            ..message::Hello::default()
        }
    }

    fn open(
        members: &mut Members,
        host: &str,
        number: u64,
        hello: &message::Hello,
    ) -> (Vec<Effect>, mpsc::Receiver<Arc<message::Order>>) {
        let (queue, orders) = mpsc::channel(1);
        let remote = "10.0.0.1:40000".parse().unwrap();
        members.know(&id(host), "");
        let effects = members.open(
            (at(number), SystemTime::now()),
            &id(host),
            (number, queue),
            (hello, remote),
            &[],
        );
        (effects.into_iter().collect(), orders)
    }

    #[test]
    fn the_fleet_files_zone_counts_before_the_hosts_own_and_strangers_arent_taken() {
        let members = members();
        let zone = |host| members.admit(&id(host), &hello());
        assert_eq!(zone("mini-1").as_deref(), Some("rack 1"));
        assert_eq!(zone("mini-2").as_deref(), Some("its own"));
        assert_eq!(zone("gone"), None);
        let silent = message::Hello::default();
        assert_eq!(members.admit(&id("mini-1"), &silent), None);
    }

    #[test]
    fn a_host_that_signs_links_gets_its_ticket_after_the_plan_knows_it() {
        let mut members = members();
        let (effects, _orders) = open(&mut members, "mini-1", 1, &hello());
        let [
            Effect::Tell(Event::HostConnected(_)),
            Effect::Order(_, order),
        ] = &effects[..]
        else {
            panic!("{effects:?}");
        };
        assert!(matches!(order.kind, Some(message::order::Kind::Ticket(_))));
        let (effects, _orders) = open(&mut members, "mini-1", 2, &hello());
        assert!(matches!(
            effects.first(),
            Some(Effect::Tell(Event::HostDisconnected(_)))
        ));
        // a host that doesn't sign links takes no part, even if it did before
        let old = message::Hello {
            link_key: Vec::new(),
            ..hello()
        };
        let (effects, _orders) = open(&mut members, "mini-1", 3, &old);
        assert!(matches!(
            &effects[..],
            [Effect::Tell(Event::HostDisconnected(_))]
        ));
        assert!(members.sessions().is_old(&id("mini-1")));
        members.rosters_mut().changes(at(4));
        assert!(members.tell_roster(at(99)).unwrap().is_empty());
        let tickets = members.tell_tickets(at(1_000_000), SystemTime::now());
        assert!(tickets.is_empty());
    }

    #[test]
    fn a_session_that_is_given_up_is_as_over_as_one_that_closed() {
        let mut members = members();
        let host = id("mini-1");
        let order = Arc::new(message::Order::default());
        for given_up in [true, false] {
            let (_, orders) = open(&mut members, "mini-1", 1, &hello());
            if given_up {
                assert!(!members.send(at(2), &host, &order));
                assert!(members.send(at(2), &host, &order));
                assert!(!members.close(at(2), &host, 1), "it is over already");
            } else {
                assert!(!members.close(at(2), &host, 9));
                assert!(members.close(at(2), &host, 1));
            }
            drop(orders);
            assert!(!members.sessions().is_open(&host));
            let later = members.tell_tickets(at(1_000_000), SystemTime::now());
            assert!(later.is_empty());
            assert_eq!(
                members.sessions().away_for(at(5), &host),
                Some(Duration::from_secs(3))
            );
        }
    }

    #[test]
    fn the_roster_names_hosts_with_places_but_for_old_versions_and_the_shunned() {
        let mut members = members();
        let old = message::Hello {
            link_key: Vec::new(),
            ..hello()
        };
        let mut queues = Vec::new();
        for (host, hello) in [("a", &hello()), ("b", &hello()), ("old", &old)] {
            queues.push(open(&mut members, host, 1, hello).1);
        }
        members.know(&id("nowhere"), "");
        assert!(members.refresh_roster());
        assert_eq!(members.rosters().roster().hosts(), 2);
        assert!(!members.refresh_roster());
        let told = members.shun(at(1), [id("b")].into());
        assert_eq!(told.len(), 4, "everybody hears of it");
        assert!(members.shun(at(1), [id("b")].into()).is_empty());
        assert!(members.refresh_roster());
        assert_eq!(members.rosters().roster().hosts(), 1);
        members.left(at(2), &id("a"));
        assert!(members.refresh_roster());
        assert_eq!(members.rosters().roster().hosts(), 0);
    }

    #[test]
    fn hosts_that_the_fleet_admits_no_more_are_strangers() {
        let mut members = members();
        for host in ["mini-1", "mini-2"] {
            members.know(&id(host), "");
        }
        let membership = members.membership().clone();
        assert!(members.strangers(&membership).is_empty());
        let mut closed = membership;
        closed.fleet.open = false;
        assert_eq!(members.strangers(&closed), [id("mini-2")]);
    }
}
