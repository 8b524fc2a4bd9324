//! The plan: state, and how events change it. Leases are decided in `lease`, those for mirrors in `mirror`, when a registry
//! may be asked in `origin` and `wish`, what can't be had from it in `fault`, neighbours in `graph`, whom the fleet shuns in
//! `trust`, who is believed about what moves in `witness`, and `report` says where everything stands.

mod fault;
mod graph;
mod lease;
mod mirror;
mod origin;
mod report;
mod trust;
mod wish;
mod witness;

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    string::{String, ToString as _},
    vec::Vec,
};
use core::time::Duration;

use proto::{Digest, HostId, Moment};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

use self::{
    fault::Unable, graph::Graph, lease::ContentState, mirror::Yield, origin::Origin, trust::Charges,
};
use super::{
    Action, Config, Event,
    event::{Content, Purpose, Selection, Standing, Trouble},
};

/// Hosts hear of their neighbours at most this often while others come and go, so that a fleet that starts costs little.
const NEIGHBOURS_EVERY: Duration = Duration::from_millis(200);
/// Who fetched what for an earlier coordinator has found out within this time that the registry's bytes were false.
const FORMER_HOLDERS: Duration = Duration::from_mins(10);
/// How often leases and absences are looked at while there is something to do.
const TICK: Duration = Duration::from_millis(500);
/// A plan that is told the time later than this after it was due was held up with all that hosts said meanwhile.
const LATE: Duration = Duration::from_secs(1);

/// The coordinator's plan of what is staged where.
#[derive(Debug)]
pub struct Plan {
    config: Config,
    rng: ChaCha8Rng,
    seed: u64,
    /// The plan's own time: the caller's without what was `missed`.
    now: Moment,
    missed: Duration,
    started: Option<Moment>,
    actions: VecDeque<Action>,

    hosts: BTreeMap<HostId, Host>,
    images: Vec<Image>,
    contents: BTreeMap<Digest, ContentState>,
    leases: usize,
    /// Those of them that are mirrors'.
    mirror_leases: usize,

    graph: Graph,
    /// When hosts are told whose neighbours changed.
    neighbours_at: Option<Moment>,
    tick_at: Moment,

    /// What isn't among the images isn't wanted.
    wants_known: bool,
    /// By the names that references begin with.
    origins: BTreeMap<String, Origin>,
    grants_not_before: Moment,
    moved_at: Moment,
    /// A chunk came under a mirror's lease.
    mirror_moved_at: Moment,
    /// Hosts got something of a content that was never leased: they have it from whoever says to hold it.
    unleased_seen_at: Moment,
    /// Something happened that may let a lease be granted.
    grant_wanted: bool,
}

#[derive(Debug)]
struct Host {
    zone: String,
    connected: bool,
    /// When its session came or went last.
    since: Moment,
    /// Contents of which it lacks something that no peer of it has, and since when it says so.
    without_source: BTreeMap<Digest, Moment>,
    /// It says what it holds of each content: always, and in this session.
    counts: bool,
    said: bool,
    /// Until when its word that a registry asks to be left alone counts for itself only, because it wasn't so.
    cried_until: Option<Moment>,
    quarantined_until: Option<Moment>,
    charges: Charges,
    leases: usize,
    /// Leases that it let expire or that failed: others are preferred.
    failures: u32,
    /// What came of its leases for mirrors.
    mirror_yield: Yield,
    /// Registries that it can't ask, because of its own settings.
    unable: BTreeMap<String, Unable>,
}

#[derive(Debug)]
struct Image {
    digest: Digest,
    references: Vec<String>,
    registry: String,
    /// With the registry's name.
    repository: String,
    contents: Vec<Digest>,
    selection: Selection,
    /// Not selected, but to keep what they have.
    held: BTreeSet<HostId>,
    purpose: Purpose,
    standings: BTreeMap<HostId, (Standing, u64)>,
    /// Since when a host says that it holds all of it.
    whole_since: BTreeMap<HostId, Moment>,
    /// Bytes that a host held when it last said that it stages, and when that was.
    staging: BTreeMap<HostId, (u64, Moment)>,
    wanted_at: Moment,
    /// Its contents as its manifest has them.
    specs: Vec<Content>,
    /// A content that an image which goes before this one gives another size.
    contradicts: Option<Digest>,
    /// A content that was found not to be what this image says, where another image gives it another size: that one goes before.
    disproved: Option<Digest>,
    /// When a lease was last granted for it.
    asked_at: Option<Moment>,
}

impl Plan {
    /// A plan of nothing.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        Self {
            graph: Graph::new(config.neighbours, config.far_neighbours),
            config,
            rng: ChaCha8Rng::seed_from_u64(seed),
            seed,
            now: Moment::START,
            missed: Duration::ZERO,
            started: None,
            actions: VecDeque::new(),
            hosts: BTreeMap::new(),
            images: Vec::new(),
            contents: BTreeMap::new(),
            leases: 0,
            mirror_leases: 0,
            neighbours_at: None,
            tick_at: Moment::START,
            wants_known: false,
            origins: BTreeMap::new(),
            grants_not_before: Moment::START,
            moved_at: Moment::START,
            mirror_moved_at: Moment::START,
            unleased_seen_at: Moment::START,
            grant_wanted: false,
        }
    }

    /// Takes note of what happened. Any event is legal in any state. `now` never goes back; where it does, the latest
    /// moment seen counts.
    ///
    /// Who comes more than a second after [`next_timeout`](Self::next_timeout) was held up, and what hosts said meanwhile is
    /// still to come: the time beyond doesn't count. Without that, a coordinator that stood still for some seconds would
    /// take back every lease that goes on, because its holder seems to have been silent.
    pub fn handle(&mut self, now: Moment, event: Event) {
        let mut own = now - self.missed;
        if let Some(due) = self.due() {
            self.missed += own.since(due).saturating_sub(LATE);
            own = now - self.missed;
        }
        self.note(own, event);
    }

    /// The same by the plan's own clock.
    fn note(&mut self, now: Moment, event: Event) {
        self.now = self.now.max(now);
        self.started.get_or_insert(self.now);
        let tick = self.tick_at <= self.now;
        if tick {
            self.forget_old_charges();
        }
        match event {
            Event::HostKnown { host, zone } => self.know(host, zone),
            Event::HostForgotten(host) => self.forget(&host),
            Event::HostConnected(host) => self.connected(host),
            Event::HostDisconnected(host) => self.disconnected(&host),
            Event::Wanted {
                image,
                references,
                contents,
                hosts,
                held,
                purpose,
            } => self.want(image, references, &contents, hosts, held, purpose),
            Event::Cancelled(image) => self.cancel(image),
            Event::Urged(image) => self.forgive(&image),
            Event::WantsKnown => self.wants_known = true,
            Event::Reported {
                host,
                image,
                standing,
                held_bytes,
            } => self.reported(host, image, standing, held_bytes),
            Event::LeaseProgress {
                host,
                content,
                chunks,
                bytes,
                paced,
                trouble,
            } => self.lease_progress(&host, content, (chunks, bytes), paced, trouble),
            Event::LeaseEnded { host, content, end } => self.lease_ended(&host, content, end),
            Event::LeasesHeld { host, contents } => self.leases_held(&host, &contents),
            Event::WithoutSource { host, contents } => self.without_source(&host, &contents),
            Event::Holds { host, contents } => self.holds(&host, &contents),
            Event::Blamed { by, host } => self.blamed(&by, &host),
            Event::FalseLink {
                by,
                maker,
                content,
                vouched,
            } => self.found_false(&by, &maker, content, vouched),
            Event::Contradicted { maker, says } => self.contradicted(&maker, says),
            Event::Retracted {
                host,
                content,
                from,
            } => self.retracted(&host, content, from),
            Event::Limited { origin_streams } => {
                self.config.origin_streams = origin_streams.max(1);
                self.grant_wanted = true;
            }
            Event::Tick => {}
        }
        if self.neighbours_at.is_some_and(|at| at <= self.now) {
            self.neighbours_at = None;
            for host in self.graph.take_changed() {
                self.tell_neighbours(&host);
            }
        }
        if tick {
            self.tick_at = self.now + TICK;
            self.release_quarantined();
            self.weigh();
            self.judge_origins();
            self.expire_leases();
            self.expire_unseen();
            self.audit();
            self.grant_wanted = true;
        }
        if core::mem::take(&mut self.grant_wanted) {
            self.grant();
        }
    }

    /// The next thing to do; to be called until `None` after every [`handle`](Self::handle).
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Moment> {
        Some(self.due()? + self.missed)
    }

    fn due(&self) -> Option<Moment> {
        let busy = !self.images.is_empty()
            || self
                .hosts
                .values()
                .any(|host| host.quarantined_until.is_some());
        let tick = busy.then_some(self.tick_at);
        match (tick, self.neighbours_at) {
            (Some(tick), Some(neighbours)) => Some(tick.min(neighbours)),
            (tick, neighbours) => tick.or(neighbours),
        }
    }

    /// Whether a content is part of something that is wanted.
    #[must_use]
    pub fn knows(&self, content: &Digest) -> bool {
        self.contents.contains_key(content)
    }

    /// Raw bytes of a content that is part of something that is wanted.
    #[must_use]
    pub fn size_of(&self, content: &Digest) -> Option<u64> {
        self.contents.get(content).map(|content| content.size)
    }

    /// Whether this host has the lease of a content now. Nobody else has anything to say about how its fetch goes.
    #[must_use]
    pub fn holds_lease(&self, host: &HostId, content: &Digest) -> bool {
        let lease = self.contents.get(content).and_then(|of| of.lease.as_ref());
        lease.is_some_and(|lease| lease.host == *host)
    }

    /// Whether [`Event::Retracted`] moves anything now: the host may have made something of this content, and hasn't taken back
    /// too much lately.
    #[must_use]
    pub fn takes_retraction(&self, now: Moment, host: &HostId, content: &Digest) -> bool {
        self.contents.contains_key(content)
            && self.may_retract(host, *content)
            && self
                .hosts
                .get(host)
                .is_some_and(|host| host.charges.may_retract(now, self.config.quarantine))
    }

    /// Whether a host may have made something of a content: it had a lease of it, perhaps of an earlier coordinator.
    fn may_retract(&self, id: &HostId, digest: Digest) -> bool {
        let content = self.contents.get(&digest);
        let held = content.is_some_and(|content| content.holders.contains(id));
        held || self
            .started
            .is_none_or(|started| self.now.since(started) < FORMER_HOLDERS)
    }

    // ---- hosts --------------------------------------------------------------------------------------------------

    fn know(&mut self, id: HostId, zone: String) {
        if let Some(host) = self.hosts.get_mut(&id) {
            if host.zone != zone {
                host.zone = zone;
                self.graph.leave(&id);
                self.join_graph(&id);
                self.graph_changed();
            }
            return;
        }
        self.hosts.insert(
            id.clone(),
            Host {
                zone,
                connected: false,
                since: self.now,
                without_source: BTreeMap::new(),
                counts: false,
                said: false,
                cried_until: None,
                quarantined_until: None,
                charges: Charges::default(),
                leases: 0,
                failures: 0,
                mirror_yield: Yield::default(),
                unable: BTreeMap::new(),
            },
        );
        self.join_graph(&id);
        self.graph_changed();
    }

    /// Gives a host neighbours, unless the fleet shuns it.
    fn join_graph(&mut self, id: &HostId) {
        if let Some(host) = self.hosts.get(id)
            && host.quarantined_until.is_none()
        {
            self.graph.join(id, &host.zone, &mut self.rng);
        }
    }

    fn forget(&mut self, id: &HostId) {
        if !self.hosts.contains_key(id) {
            return;
        }
        self.drop_leases_of(id, false);
        self.graph.leave(id);
        self.hosts.remove(id);
        for image in &mut self.images {
            image.standings.remove(id);
            image.whole_since.remove(id);
            image.staging.remove(id);
        }
        for content in self.contents.values_mut() {
            content.forget_host(id);
        }
        for host in self.hosts.values_mut() {
            host.charges.forget_host(id);
        }
        self.graph_changed();
    }

    fn connected(&mut self, id: HostId) {
        if !self.hosts.contains_key(&id) {
            self.know(id.clone(), String::new());
        }
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        if host.connected {
            return;
        }
        host.connected = true;
        host.since = self.now;
        self.grant_wanted = true;
        self.graph.told(&id);
        self.tell_neighbours(&id);
        for at in 0..self.images.len() {
            let image = &self.images[at];
            let (host, digest) = (id.clone(), image.digest);
            if image.held.contains(&id) {
                // after a restart it goes on by itself with what it finds
                self.actions.push_back(Action::Hold {
                    host,
                    image: digest,
                });
            } else if image.contradicts.is_none() && self.selects(image, &id) {
                self.actions.push_back(Action::Stage {
                    host,
                    image: digest,
                });
            }
        }
    }

    fn disconnected(&mut self, id: &HostId) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        if host.connected {
            host.connected = false;
            host.since = self.now;
            host.said = false;
            host.without_source.clear();
            // its leases run on: it may still fetch and spread; they expire without news
        }
    }

    fn graph_changed(&mut self) {
        if self.graph.is_changed() {
            self.neighbours_at
                .get_or_insert(self.now + NEIGHBOURS_EVERY);
        }
    }

    fn tell_neighbours(&mut self, id: &HostId) {
        if self.hosts.get(id).is_some_and(|host| host.connected) {
            self.actions.push_back(Action::Neighbours {
                host: id.clone(),
                neighbours: self.graph.neighbours(id),
            });
        }
    }

    // ---- images -------------------------------------------------------------------------------------------------

    fn want(
        &mut self,
        digest: Digest,
        references: Vec<String>,
        contents: &[Content],
        selection: Selection,
        held: Vec<HostId>,
        purpose: Purpose,
    ) {
        let selection = match selection {
            Selection::Hosts(mut hosts) => {
                hosts.sort_unstable();
                hosts.dedup();
                Selection::Hosts(hosts)
            }
            Selection::All => Selection::All,
        };
        let held: BTreeSet<HostId> = match &selection {
            Selection::All => BTreeSet::new(),
            Selection::Hosts(hosts) => held
                .into_iter()
                .filter(|host| hosts.binary_search(host).is_err())
                .collect(),
        };
        let old = self.images.iter().position(|image| image.digest == digest);
        let before: Vec<HostId> = old.map_or_else(Vec::new, |at| self.selected(&self.images[at]));
        let mut held_before = BTreeSet::new();
        let mut moved = false;
        let changed = if let Some(at) = old {
            let image = &mut self.images[at];
            let changed = image.references != references;
            moved = image.references.first() != references.first();
            image.registry = origin::registry(digest, &references);
            image.repository = origin::repository(digest, &references);
            image.references = references;
            image.selection = selection;
            held_before = core::mem::replace(&mut image.held, held.clone());
            changed
        } else {
            let mut seen = BTreeSet::new();
            let specs: Vec<Content> = contents
                .iter()
                .filter(|content| seen.insert(content.digest))
                .copied()
                .collect();
            for content in &specs {
                self.contents
                    .entry(content.digest)
                    .or_insert_with(|| ContentState::new(self.now, content));
            }
            self.images.push(Image {
                digest,
                registry: origin::registry(digest, &references),
                repository: origin::repository(digest, &references),
                references,
                contents: specs.iter().map(|content| content.digest).collect(),
                specs,
                selection,
                held: held.clone(),
                purpose,
                standings: BTreeMap::new(),
                whole_since: BTreeMap::new(),
                staging: BTreeMap::new(),
                wanted_at: self.now,
                contradicts: None,
                disproved: None,
                asked_at: None,
            });
            self.settle_contradictions();
            true
        };
        if moved {
            self.forgive(&digest);
        }
        self.moved_at = self.now;
        self.grant_wanted = true;
        self.tick_at = self.tick_at.min(self.now + TICK);
        let Some(at) = self.images.iter().position(|image| image.digest == digest) else {
            return;
        };
        let after = self.selected(&self.images[at]);
        let image = &mut self.images[at];
        // what hosts said before they were told to stop is over: they are leased nothing before they say that they stage
        let fresh = |host: &HostId| before.binary_search(host).is_err();
        image.standings.retain(|host, (standing, _)| {
            matches!(standing, Standing::Present | Standing::Installing) || !fresh(host)
        });
        if before.is_empty() {
            image.wanted_at = self.now;
        }
        for host in &after {
            let connected = self.hosts.get(host).is_some_and(|host| host.connected);
            if image.contradicts.is_none() && connected && (changed || fresh(host)) {
                self.actions.push_back(Action::Stage {
                    host: host.clone(),
                    image: digest,
                });
            }
        }
        for host in held.difference(&held_before) {
            self.actions.push_back(Action::Hold {
                host: host.clone(),
                image: digest,
            });
        }
        let before: BTreeSet<HostId> = before.into_iter().chain(held_before).collect();
        for host in before {
            if after.binary_search(&host).is_err() && !held.contains(&host) {
                self.actions.push_back(Action::Cancel {
                    host,
                    image: digest,
                });
            }
        }
        self.revoke_pointless();
    }

    fn cancel(&mut self, digest: Digest) {
        let Some(at) = self.images.iter().position(|image| image.digest == digest) else {
            return;
        };
        let image = self.images.remove(at);
        for host in self.selected(&image).iter().chain(&image.held).cloned() {
            if self.hosts.get(&host).is_some_and(|host| host.connected) {
                self.actions.push_back(Action::Cancel {
                    host,
                    image: digest,
                });
            }
        }
        self.revoke_pointless();
        let used: BTreeSet<Digest> = self
            .images
            .iter()
            .flat_map(|image| image.contents.iter().copied())
            .collect();
        self.contents.retain(|content, _| used.contains(content));
        for content in self.contents.values_mut() {
            content.forgive(&digest);
        }
        self.settle_contradictions();
        self.forget_origins();
    }

    fn reported(&mut self, id: HostId, digest: Digest, standing: Standing, held_bytes: u64) {
        if !self.hosts.contains_key(&id) {
            return;
        }
        let at = self.images.iter().position(|image| image.digest == digest);
        if at.is_none_or(|at| !self.selects(&self.images[at], &id)) {
            let held = at.is_some_and(|at| self.images[at].held.contains(&id));
            self.clear_leftover(&id, digest, standing, held);
        }
        let Some(at) = at else {
            return;
        };
        let image = &mut self.images[at];
        let before = image.standings.insert(id.clone(), (standing, held_bytes));
        // what other hosts get is told by what they say they hold
        let counts = self.hosts.get(&id).is_some_and(|host| host.counts);
        if before != Some((standing, held_bytes)) && !counts {
            self.moved_at = self.now;
        }
        self.grant_wanted |= before.is_none_or(|(before, _)| before != standing);
        if matches!(standing, Standing::Present | Standing::Installing) {
            image.whole_since.entry(id.clone()).or_insert(self.now);
        } else {
            image.whole_since.remove(&id);
        }
        match standing {
            Standing::Present | Standing::Installing => {
                if before.is_none_or(|(before, _)| before != standing) {
                    for content in &image.contents {
                        if let Some(content) = self.contents.get_mut(content) {
                            content.claim(&id, self.now);
                        }
                    }
                }
            }
            // a mirror asks only for what it doesn't hold
            Standing::Staging if image.purpose == Purpose::Mirror => {
                for content in &image.contents {
                    if let Some(content) = self.contents.get_mut(content) {
                        content.forget_holder(&id);
                    }
                }
            }
            Standing::Gone => {
                image.staging.remove(&id);
                for content in &image.contents {
                    if let Some(content) = self.contents.get_mut(content) {
                        content.forget_host(&id);
                    }
                }
            }
            Standing::Staging => {
                // something that it held whole isn't what it was, or all was removed: nobody else may have it
                let was_whole = before.is_some_and(|(before, _)| {
                    matches!(before, Standing::Present | Standing::Installing)
                });
                if was_whole || held_bytes == 0 {
                    for content in &image.contents {
                        if let Some(content) = self.contents.get_mut(content) {
                            content.forget_holder(&id);
                        }
                    }
                }
                let before = image.staging.insert(id.clone(), (held_bytes, self.now));
                // it was killed before it had journaled what it spoke of
                if let Some((held_before, heard_at)) = before
                    && held_bytes < held_before
                {
                    for content in &image.contents {
                        if let Some(content) = self.contents.get_mut(content) {
                            content.doubt(&id, heard_at);
                        }
                    }
                    self.grant_wanted = true;
                }
            }
            Standing::Failed if before.is_none_or(|(before, _)| before != standing) => {
                self.lost(&id, digest);
            }
            Standing::Queued | Standing::Failed => {}
        }
        // hosts that come with parts of the image have been here before: let the others connect, and what they hold be
        // announced, before the registry is asked
        if before.is_none()
            && held_bytes > 0
            && let Some(started) = self.started
        {
            let settled = started + self.config.settle;
            if self.now < settled {
                self.grants_not_before = settled;
            }
        }
    }

    /// A host can't stage an image any more, and takes part in nothing of it: what it held may be on its disk, and is nowhere for
    /// others. What another image of the host shares with this one is still served from there.
    fn lost(&mut self, id: &HostId, digest: Digest) {
        let served: BTreeSet<Digest> = self
            .images
            .iter()
            .filter(|image| {
                image.digest != digest
                    && matches!(
                        image.standings.get(id),
                        Some((
                            Standing::Staging | Standing::Installing | Standing::Present,
                            _
                        ))
                    )
            })
            .flat_map(|image| image.contents.iter().copied())
            .collect();
        let failed = self.images.iter().find(|image| image.digest == digest);
        for content in failed.into_iter().flat_map(|image| &image.contents) {
            if !served.contains(content)
                && let Some(content) = self.contents.get_mut(content)
            {
                content.forget_holder(id);
            }
        }
        self.grant_wanted = true;
    }

    /// A host that was away when an image was cancelled, superseded or wanted elsewhere never heard of it: it would stage on, and
    /// keep its room. Its next report, a second later, is answered again if this order is lost.
    fn clear_leftover(&mut self, id: &HostId, image: Digest, standing: Standing, held: bool) {
        let staging = match standing {
            Standing::Queued | Standing::Staging | Standing::Failed => true,
            // what is there stays, and what is about to be
            Standing::Installing | Standing::Present | Standing::Gone => false,
        };
        let connected = self.hosts.get(id).is_some_and(|host| host.connected);
        let host = id.clone();
        if staging && connected && held {
            self.actions.push_back(Action::Hold { host, image });
        } else if self.wants_known && staging && connected {
            self.actions.push_back(Action::Cancel { host, image });
        }
    }

    fn selects(&self, image: &Image, id: &HostId) -> bool {
        match &image.selection {
            Selection::All => self.hosts.contains_key(id),
            Selection::Hosts(hosts) => hosts.binary_search(id).is_ok(),
        }
    }

    /// The hosts that an image is wanted on, sorted.
    fn selected(&self, image: &Image) -> Vec<HostId> {
        match &image.selection {
            Selection::All => self.hosts.keys().cloned().collect(),
            Selection::Hosts(hosts) => hosts.clone(),
        }
    }

    /// A random number below `bound`, which isn't 0.
    fn random(&mut self, bound: usize) -> usize {
        below(&mut self.rng, bound)
    }
}

/// A random number below `bound`, which isn't 0.
fn below(rng: &mut ChaCha8Rng, bound: usize) -> usize {
    let wide = u64::from(rng.next_u32()) * u64::try_from(bound).unwrap_or(1);
    usize::try_from(wide >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests;
