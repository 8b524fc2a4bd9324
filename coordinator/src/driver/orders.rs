//! What the plan wants done: orders into the sessions' queues, rosters, and pull tokens for hosts.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use proto::{Digest, HostId, Moment, codec, message};
use rollout::stage::{Action, Event, RevokeCause};
use tokio::sync::mpsc::error::TrySendError;
use tracing::{debug, error, warn};

use super::{
    Driver, Input, PUBLISH_EVERY, RESTAGE_PAUSE, RESTAGE_PAUSE_MOST, ROSTER_PAUSE,
    ROSTER_PAUSE_MOST_MICROS, TOKEN_MARGIN, TOKEN_RENEWED_AFTER, TOKEN_RETRY, Wanted, Write,
    roster,
};
use crate::{
    metrics::Metrics,
    resolve::{Granted, PullToken},
    view::{BandwidthRequest, HostState},
    wants::Want,
};

impl Driver {
    pub(super) fn act(&mut self, now: Moment) {
        while let Some(action) = self.plan.poll() {
            match action {
                Action::Neighbours { host, neighbours } => {
                    let Some(known) = self.hosts.get_mut(&host) else {
                        continue;
                    };
                    known.neighbours = neighbours;
                    let session = known.session.as_ref();
                    if session.is_some_and(|session| !session.greeted) {
                        // who comes back waits for nobody
                        self.tell_roster_to(&host, true);
                    } else {
                        self.neighbours_due.insert(host);
                        self.roster_changes(now);
                    }
                }
                Action::Cancel { image, .. }
                | Action::Hold { image, .. }
                | Action::Stage { image, .. }
                    if self.mirror.is_blob(&image) => {}
                Action::Stage { host, image } => self.order_stage(&host, image),
                Action::Cancel { host, image } => self.order_stop(&host, image, false),
                Action::Hold { host, image } => self.order_stop(&host, image, true),
                Action::Grant {
                    host,
                    content,
                    image,
                } => {
                    self.metrics.granted.inc();
                    let content = self.mirror.digest(content);
                    debug!(%host, %content, %image, "lease granted");
                    let order = message::LeaseGrant {
                        content: content.as_bytes().to_vec(),
                        manifest_digest: image.as_bytes().to_vec(),
                        ticket: self.ticket(&host, Some(content)),
                    };
                    self.order(&host, kind(message::order::Kind::Lease(order)));
                }
                Action::Revoke {
                    host,
                    content,
                    cause,
                } => {
                    match cause {
                        RevokeCause::OriginFailed => {
                            Metrics::count(&self.metrics.lease_ends, "origin_failed");
                        }
                        RevokeCause::Ended => Metrics::count(&self.metrics.lease_ends, "revoked"),
                        // counted when it ended
                        RevokeCause::NotHeld => {}
                    }
                    let content = self.mirror.digest(content);
                    debug!(%host, %content, ?cause, "lease revoked");
                    let order = message::LeaseRevoke {
                        content: content.as_bytes().to_vec(),
                    };
                    self.order(&host, kind(message::order::Kind::Revoke(order)));
                }
                Action::Retract {
                    maker,
                    content,
                    from,
                } => {
                    let content = self.mirror.digest(content);
                    let order = message::Retraction {
                        content: content.as_bytes().to_vec(),
                        from_chunk: from,
                        maker: maker.to_string(),
                    };
                    let order = Arc::new(kind(message::order::Kind::Retraction(order)));
                    let hosts: Vec<HostId> = self.hosts.keys().cloned().collect();
                    for host in hosts {
                        self.order_shared(&host, &order);
                    }
                }
                Action::Quarantine(host) => {
                    error!(%host, "host is quarantined: its own signatures, or several others, say that it sent false data; look at its disk and memory");
                }
            }
        }
        if !self.entitled_due.is_empty() {
            self.tell_entitled();
            self.act(now);
        }
    }

    /// Tells the hosts of images who may have what those hold, where that changed.
    fn tell_entitled(&mut self) {
        for image in std::mem::take(&mut self.entitled_due) {
            let hosts = self.wants.get(&image).map(|wanted| wanted.ordered.clone());
            for host in hosts.unwrap_or_default() {
                self.tell_stage(&host, image, true);
            }
        }
    }

    /// Orders a host to stage an image, unless it has the order already.
    pub(super) fn order_stage(&mut self, host: &HostId, image: Digest) {
        self.tell_stage(host, image, false);
    }

    /// As [`order_stage`](Self::order_stage). With `news_only` who has the order isn't asked to try again.
    fn tell_stage(&mut self, host: &HostId, image: Digest, news_only: bool) {
        let Some(wanted) = self.wants.get_mut(&image) else {
            return;
        };
        wanted.ordered.insert(host.clone());
        let names = self.claims.on(host).into_iter();
        let named: Vec<String> = names
            .filter(|(_, (named, _))| *named == image)
            .map(|(reference, _)| reference)
            .collect();
        let orders = wanted.orders_for(named);
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        let state = known.images.get(&image).map(|progress| progress.state);
        let Some(session) = &mut known.session else {
            return;
        };
        let has = session.has.get(&image).copied();
        // who can't go on is asked to try again, and whoever isn't done needs each new token
        let goes_on = match state {
            Some(HostState::Present) => true,
            Some(HostState::Queued | HostState::Staging | HostState::Installing) => {
                !orders.with_token
            }
            Some(HostState::Failed | HostState::Gone | HostState::Waiting) | None => false,
        };
        if has == Some(orders.number) && (goes_on || news_only) {
            return;
        }
        let order = match has {
            Some(_) => orders.brief.clone(),
            None => orders.whole.clone(),
        };
        // a version that names no roster's epoch can't say either that it lacks the manifest
        if session.roster.is_some() {
            session.has.insert(image, orders.number);
        }
        self.order_shared(host, &order);
    }

    fn order_stop(&mut self, host: &HostId, image: Digest, keep: bool) {
        if let Some(wanted) = self.wants.get_mut(&image) {
            // a new pull token is nothing to it now
            wanted.ordered.remove(host);
        }
        if let Some(session) = self
            .hosts
            .get_mut(host)
            .and_then(|known| known.session.as_mut())
        {
            session.has.remove(&image);
        }
        let order = message::CancelOrder {
            manifest_digest: image.as_bytes().to_vec(),
            keep,
        };
        self.order(host, kind(message::order::Kind::Cancel(order)));
    }

    pub(super) fn order(&mut self, host: &HostId, order: message::Order) {
        self.order_shared(host, &Arc::new(order));
    }

    pub(super) fn order_shared(&mut self, host: &HostId, order: &Arc<message::Order>) {
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        let Some(session) = &known.session else {
            return;
        };
        if let Err(error) = session.orders.try_send(order.clone()) {
            // Its end comes in as an input once the session's task sees that the queue is gone.
            match error {
                TrySendError::Full(_) => {
                    warn!(%host, "host doesn't take its orders; its session is given up");
                }
                TrySendError::Closed(_) => debug!(%host, "order for a session that has ended"),
            }
            known.session = None;
            known.lost_at = Some(Moment::START + self.started.elapsed());
            let now = self.now();
            self.plan.handle(now, Event::HostDisconnected(host.clone()));
        }
    }

    /// Does what is due by time: rosters, files, tokens, the view.
    pub(super) fn flush(&mut self) {
        let now = self.now();
        if self.roster_due.is_some_and(|due| due <= now) {
            self.roster_due = None;
            self.tell_roster();
            self.act(now);
        }
        if self.places_due.is_some_and(|due| due <= now) {
            self.places_due = None;
            let places = self.hosts.iter();
            let places =
                places.filter_map(|(host, known)| Some((host.clone(), known.place.clone()?)));
            self.keep(Write::Places(places.collect()));
        }
        self.restage(now);
        self.ask_for_tokens(now);
        self.renew_tickets(now);
        if self.publish_due <= now {
            self.publish_due = now + PUBLISH_EVERY;
            self.dirty = false;
            self.ask_to_look();
            self.send_owed_rosters();
            self.show(now);
        }
    }

    /// Sends whole rosters to hosts that had to wait for theirs.
    fn send_owed_rosters(&mut self) {
        for host in std::mem::take(&mut self.rosters_owed) {
            self.tell_roster_to(&host, true);
        }
    }

    /// Tells hosts for which chunks others blame them. With the view, so that no accuser can fill a host's queue of orders.
    fn ask_to_look(&mut self) {
        let mut suspect = Vec::new();
        for (host, known) in &mut self.hosts {
            if !known.suspect.is_empty() {
                suspect.push((host.clone(), std::mem::take(&mut known.suspect)));
            }
        }
        for (host, chunks) in suspect {
            let chunks = chunks.into_iter().map(|(content, chunk)| message::Suspect {
                content: content.as_bytes().to_vec(),
                chunk,
            });
            let order = message::Recheck {
                chunks: chunks.collect(),
            };
            self.order(&host, kind(message::order::Kind::Recheck(order)));
        }
    }

    /// Something may have changed that is told of by the roster.
    pub(super) fn roster_changes(&mut self, now: Moment) {
        let hosts = u64::try_from(self.hosts.len()).unwrap_or(u64::MAX);
        let more = hosts.saturating_mul(hosts).min(ROSTER_PAUSE_MOST_MICROS);
        let pause = ROSTER_PAUSE + Duration::from_micros(more);
        self.roster_due.get_or_insert(now + pause);
    }

    /// Makes the roster of the hosts as they are. Those that are away stay on it: after a restart of the coordinator the
    /// others go on with those that haven't connected again yet. Those whose version doesn't sign links don't. Whether it
    /// changed.
    pub(super) fn refresh_roster(&mut self) -> bool {
        let trusted = self.hosts.iter().filter(|(host, known)| {
            let old = known.session.as_ref();
            let old = old.is_some_and(|session| session.link_key.is_none());
            !old && !self.quarantined.contains(host)
        });
        let enrolled = &self.membership.enrolled;
        let entries = trusted.filter_map(|(host, known)| {
            let entry = roster::Entry {
                place: known.place.clone()?,
                enrolled_at: enrolled.get(host).copied().unwrap_or_default(),
            };
            Some((host.clone(), entry))
        });
        self.roster.set(entries.collect())
    }

    /// Tells every host what changed in the roster since the one that it has, and whom it follows where that changed.
    fn tell_roster(&mut self) {
        let changed = self.refresh_roster();
        let due = std::mem::take(&mut self.neighbours_due);
        let hosts: Vec<HostId> = match changed {
            true => self.hosts.keys().cloned().collect(),
            false => due.iter().cloned().collect(),
        };
        for host in hosts {
            self.tell_roster_to(&host, due.contains(&host));
        }
    }

    /// Tells a host what changed in the roster since the one that it has, and (`follows`) whom it follows.
    ///
    /// Whole rosters are large, and a host may come or ask for one as often as it likes: beyond its allowance it waits.
    pub(super) fn tell_roster_to(&mut self, host: &HostId, follows: bool) {
        let now = self.now();
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        let session = known.session.as_mut();
        // nobody would take anything from a version that doesn't sign links, or give it anything
        let Some(session) = session.filter(|session| session.link_key.is_some()) else {
            return;
        };
        session.greeted = true;
        let whole = session
            .roster
            .is_none_or(|has| self.roster.is_whole_since(has));
        if whole && !known.wholes.take(now, self.roster.hosts()) {
            self.rosters_owed.insert(host.clone());
            return;
        }
        let Some(has) = session.roster else {
            let whole = self.roster.whole(&known.neighbours);
            return self.order(host, whole);
        };
        session.roster = Some(self.roster.epoch());
        let neighbours = follows.then(|| roster::neighbours(&known.neighbours));
        if let Some(change) = self.roster.since(has) {
            self.order_shared(host, &change);
        }
        if let Some(neighbours) = neighbours {
            self.order(host, neighbours);
        }
    }

    pub(super) fn limits(&self) -> message::Order {
        let revoked_hosts = self.quarantined.iter().map(ToString::to_string).collect();
        kind(message::order::Kind::Limits(message::Limits {
            revoked_hosts,
        }))
    }

    /// Tells every host whom the fleet shuns, when that changed.
    pub(super) fn shun(&mut self, quarantined: BTreeSet<HostId>) {
        if quarantined == self.quarantined {
            return;
        }
        self.quarantined = quarantined;
        let now = self.now();
        self.roster_changes(now);
        let order = Arc::new(self.limits());
        let hosts: Vec<HostId> = self.hosts.keys().cloned().collect();
        for host in hosts {
            self.order_shared(&host, &order);
        }
    }

    /// A host lost an image that is still wanted there: it is ordered again after a pause that grows, because whoever
    /// removed it may do so again and again.
    pub(super) fn restage_later(&mut self, now: Moment, host: &HostId, image: Digest) {
        let Some(wanted) = self.wants.get_mut(&image) else {
            return;
        };
        let selected = wanted.want.hosts.as_ref();
        if selected.is_some_and(|hosts| !hosts.contains(host)) {
            return;
        }
        let restage = wanted.restage.entry(host.clone()).or_default();
        if restage.due.is_some() {
            return;
        }
        let pause = RESTAGE_PAUSE
            .saturating_mul(4u32.saturating_pow(restage.tries))
            .min(RESTAGE_PAUSE_MOST);
        restage.tries = restage.tries.saturating_add(1);
        restage.due = Some(now + pause);
        warn!(%host, %image, pause_s = pause.as_secs(), "wanted image is gone from a host; it is staged again");
    }

    fn restage(&mut self, now: Moment) {
        let mut due = Vec::new();
        for (image, wanted) in &mut self.wants {
            for (host, restage) in &mut wanted.restage {
                if restage.due.is_some_and(|due| due <= now) {
                    restage.due = None;
                    due.push((host.clone(), *image));
                }
            }
        }
        for (host, image) in due {
            let held = self
                .hosts
                .get(&host)
                .and_then(|known| known.images.get(&image));
            if held.is_some_and(|progress| progress.state == HostState::Gone) {
                self.order_stage(&host, image);
            }
        }
    }

    pub(super) fn ask_for_tokens(&mut self, now: Moment) {
        for (image, wanted) in &mut self.wants {
            if wanted.token_due.is_none_or(|due| due > now) {
                continue;
            }
            wanted.token_due = None;
            let (registries, image) = (self.registries.clone(), *image);
            let reference = wanted.token_reference();
            let secret = reference
                .as_ref()
                .and_then(|name| wanted.want.secrets.get(name))
                .cloned();
            self.jobs.spawn(async move {
                let granted = match reference {
                    None => None,
                    Some(reference) => registries
                        .pull_token(&reference, secret.as_ref())
                        .await
                        .inspect_err(|error| warn!(%error, reference, "no pull token for hosts; trying again"))
                        .ok(),
                };
                Input::Token { image, granted }
            });
        }
    }

    /// Hosts say that the registry refuses the token that they were given, whatever its life was to be: another one is
    /// fetched at once, and no more often than a registry may be asked.
    pub(super) fn token_refused(&mut self, now: Moment, content: Digest) {
        for wanted in self.wants.values_mut() {
            let old = |at: &Moment| now.since(*at) >= TOKEN_RENEWED_AFTER;
            let given = wanted.token.as_ref().map(|(_, at)| *at);
            let contents = wanted.want.layout.contents();
            if given.as_ref().is_some_and(old) && contents.iter().any(|of| of.digest == content) {
                wanted.token_due = Some(now);
                wanted.token_refused = true;
            }
        }
    }

    pub(super) fn take_token(&mut self, now: Moment, image: Digest, granted: Option<Granted>) {
        let Some(wanted) = self.wants.get_mut(&image) else {
            return;
        };
        let token = match granted {
            Some(Granted::Token(token)) => token,
            Some(Granted::Unneeded) => return,
            Some(Granted::PasswordOnly) => {
                warn!(
                    %image,
                    "registry gives no tokens, only a password, which isn't handed down: \
                     set origin.hand_down_passwords = true, or give hosts credentials of their own"
                );
                return;
            }
            None => {
                wanted.token_due = Some(now + TOKEN_RETRY);
                return;
            }
        };
        // At least half of its life: a registry may give tokens of a minute.
        let pause = token
            .expires_in
            .checked_sub(TOKEN_MARGIN)
            .unwrap_or_default()
            .max(token.expires_in / 2)
            .max(Duration::from_secs(1));
        wanted.token_due = Some(now + pause);
        wanted.token = Some((token, now));
        if core::mem::take(&mut wanted.token_refused) {
            // what was refused for the one before may be had with this one
            self.plan.handle(now, Event::Urged(image));
        }
        wanted.orders.clear();
        let hosts = wanted.ordered.clone();
        for host in hosts {
            let held = self
                .hosts
                .get(&host)
                .and_then(|known| known.images.get(&image));
            if held.is_none_or(|progress| progress.state != HostState::Present) {
                self.order_stage(&host, image);
            }
        }
    }
}

pub(super) fn kind(kind: message::order::Kind) -> message::Order {
    message::Order { kind: Some(kind) }
}

pub(super) fn bandwidth(limits: BandwidthRequest) -> message::Order {
    kind(message::order::Kind::Bandwidth(message::Bandwidth {
        upload_bytes_per_second: limits.upload_bytes_per_second,
        download_bytes_per_second: limits.download_bytes_per_second,
    }))
}

impl Wanted {
    /// The reference that pull tokens are asked for: one whose object names a pull Secret first, which was given for it.
    fn token_reference(&self) -> Option<String> {
        let references = &self.want.references;
        let mut named = self.want.secrets.keys();
        let named = named.find(|name| references.contains(*name));
        named.or(references.first()).cloned()
    }

    /// The orders to a host where these references name the image. Made once for all such hosts.
    fn orders_for(&mut self, named: Vec<String>) -> &StageOrders {
        let known = self.orders.iter().position(|(names, _)| *names == named);
        let at = known.unwrap_or_else(|| {
            let token = self.token.as_ref().map(|(token, _)| token);
            let mut references = named.clone();
            // the registry is asked by the first, and the token is for one repository
            let first = self.token_reference();
            references.sort_by_key(|reference| Some(reference) != first.as_ref());
            let orders = StageOrders::new(&self.want, references, self.entitled.as_ref(), token);
            self.orders.push((named, orders));
            self.orders.len() - 1
        });
        &self.orders[at].1
    }
}

/// What hosts are ordered that shall hold an image.
#[derive(Clone, Debug)]
pub(super) struct StageOrders {
    /// Names all that they say but for the token: who has it needs it no more.
    number: u64,
    with_token: bool,
    whole: Arc<message::Order>,
    /// The same without the manifest, for hosts that have that.
    brief: Arc<message::Order>,
}

impl StageOrders {
    fn new(
        want: &Want,
        references: Vec<String>,
        entitled: Option<&BTreeSet<HostId>>,
        token: Option<&PullToken>,
    ) -> Self {
        let mut entitled_hosts: Vec<u64> = entitled
            .into_iter()
            .flatten()
            .map(|host| host.key().0)
            .collect();
        entitled_hosts.sort_unstable();
        let mut order = message::StageOrder {
            manifest_digest: want.digest().as_bytes().to_vec(),
            references,
            media_type: want.media_type.clone(),
            plain_http: want.plain_http,
            entitled_hosts,
            ..message::StageOrder::default()
        };
        let said = kind(message::order::Kind::Stage(order.clone()));
        // without a manifest it is far below the limit
        let digest = Digest::of(&codec::encode(&said).unwrap_or_default());
        let first = digest.as_bytes().first_chunk();
        order.order = first.map_or(1, |bytes| u64::from_be_bytes(*bytes).max(1));
        order.token = token.map(|token| message::PullToken {
            authorization: token.authorization.clone(),
            expires_in_seconds: token.expires_in.as_secs(),
        });
        let whole = message::StageOrder {
            manifest: want.manifest.to_vec(),
            ..order.clone()
        };
        Self {
            number: order.order,
            with_token: token.is_some(),
            whole: Arc::new(kind(message::order::Kind::Stage(whole))),
            brief: Arc::new(kind(message::order::Kind::Stage(order))),
        }
    }
}
