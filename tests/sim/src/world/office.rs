//! The coordinator: a real plan, and its sessions with the hosts.

use super::*;
use stage::{
    Plan,
    event::{Content, LeaseEnd, Purpose, Selection, Standing, Trouble},
};

/// An order to stage is carried out within this time: the agent has to read the manifest and reserve room.
const STAGGER: Nanos = 200_000_000;

/// Hosts that lost their session come back within this time after they can.
const REOPENED_WITHIN: Nanos = 500_000_000;

/// What a host lacks for this long without a source is reported.
const NO_SOURCE: Nanos = 2_000_000_000;

#[derive(Debug)]
pub(super) struct Office {
    config: stage::Config,
    plan: Option<Plan>,
    seed: u64,
    /// Which coordinator this is: messages to an earlier one are lost.
    term: u32,
    timer_at: Nanos,
    /// What it was told and hasn't heard yet, while it stands still or falls behind.
    inbox: VecDeque<stage::Event>,
    /// It handles nothing before.
    busy_until: Nanos,
    /// How long each event takes it.
    work: Nanos,
    pub(super) ordered: bool,
    /// Hosts on which the image isn't wanted any more, and whether they have heard of it.
    pub(super) unwanted: BTreeMap<u32, bool>,
    /// Nobody is to go on for now.
    pub(super) held: bool,
    pub(super) quarantined: Vec<bool>,
    /// Leases that it thinks are out.
    pub(super) leases: BTreeMap<Digest, HostId>,
}

impl Office {
    pub(super) const fn new(config: stage::Config, seed: u64) -> Self {
        Self {
            config,
            plan: None,
            seed,
            term: 0,
            timer_at: u64::MAX,
            inbox: VecDeque::new(),
            busy_until: 0,
            work: 0,
            ordered: false,
            unwanted: BTreeMap::new(),
            held: false,
            quarantined: Vec::new(),
            leases: BTreeMap::new(),
        }
    }

    /// Whether it says to a host that a content comes.
    pub(super) fn is_coming(&self, host: &HostId, content: &Digest) -> bool {
        let plan = self.plan.as_ref();
        plan.is_some_and(|plan| plan.is_coming(host, content))
    }
}

impl World {
    pub(super) fn open_office(&mut self) {
        let office = &mut self.office;
        office.term += 1;
        office.seed += 1;
        office.plan = Some(Plan::new(office.config.clone(), office.seed));
        office.timer_at = u64::MAX;
        office.quarantined = vec![false; self.nodes.len()];
        office.leases.clear();
        for host in 0..self.nodes.len() {
            if !self.nodes[host].left {
                let zone = format!("zone-{}", host % self.setup.zones);
                let id = self.nodes[host].id.clone();
                self.plan_event(stage::Event::HostKnown { host: id, zone });
            }
        }
        if self.office.ordered {
            self.plan_wanted();
        }
        self.plan_event(stage::Event::WantsKnown);
        for host in 0..self.nodes.len() {
            if self.nodes[host].alive && self.nodes[host].life > 0 {
                self.open_session(index(host));
            }
        }
    }

    pub(super) fn close_office(&mut self) {
        self.office.term += 1;
        self.office.plan = None;
        self.office.inbox.clear();
        self.office.busy_until = 0;
        self.office.leases.clear();
        for host in 0..self.nodes.len() {
            let host = index(host);
            if self.node(host).alive && self.node(host).session {
                self.node_mut(host).session = false;
                self.node_mut(host).headless_since = Some(self.now);
                self.tell(host, swarm::Event::Coordinator(false));
            }
        }
    }

    pub(super) const fn office_is_open(&self) -> bool {
        self.office.plan.is_some()
    }

    /// The host's session opens, if anybody is there.
    pub(super) fn open_session(&mut self, host: u32) {
        if !self.office_is_open() {
            return;
        }
        let unheard = self.office.busy_until > self.now || !self.office.inbox.is_empty();
        self.node_mut(host).session = true;
        self.node_mut(host).unheard = unheard;
        self.node_mut(host).headless_since = None;
        self.node_mut(host).reported.fill(None);
        self.tell(host, swarm::Event::Coordinator(true));
        let id = self.node(host).id.clone();
        self.tell_office(stage::Event::HostConnected(id));
        // what it holds and fetches is known before anything is asked of it
        if self.node(host).staged {
            self.report_standing(host);
        }
        let node = self.node_mut(host);
        node.without_source.clear();
        node.held_said = None;
        let leases: Vec<u32> = node.leases.keys().copied().collect();
        let id = node.id.clone();
        self.tell_office(stage::Event::LeasesHeld {
            host: id,
            contents: self.digests(&leases),
        });
        self.report_held(host);
    }

    fn digests(&self, contents: &[u32]) -> Vec<Digest> {
        let digest = |content: &u32| self.specs[*content as usize].digest;
        contents.iter().map(digest).collect()
    }

    /// These images are wanted from now on.
    pub(super) fn order(&mut self, which: impl Fn(usize) -> bool) {
        let now = self.now;
        for (at, image) in self.images.iter_mut().enumerate() {
            if which(at) {
                image.ordered_at.get_or_insert(now);
            }
        }
        self.office.ordered = true;
        if self.office_is_open() {
            self.plan_wanted();
        }
    }

    /// The image is held everywhere from now on, or wanted again.
    pub(super) fn hold_image(&mut self, held: bool) {
        self.office.held = held;
        if self.office_is_open() {
            self.plan_wanted();
        }
    }

    pub(super) fn plan_wanted(&mut self) {
        // the one that can't be had stands before the others
        let mut wanted: Vec<usize> = (0..self.images.len()).collect();
        wanted.sort_by_key(|at| self.images[*at].kind != ImageKind::Hopeless);
        for image in wanted {
            if self.images[image].ordered_at.is_some() {
                self.plan_image(image);
            }
        }
    }

    fn plan_image(&mut self, image: usize) {
        let contents = self
            .specs
            .iter()
            .filter(|spec| spec.image == image)
            .map(|spec| Content {
                digest: spec.digest,
                chunks: spec.geometry.chunks(),
                size: spec.geometry.size(),
                origin_bytes: spec.geometry.size(),
            })
            .collect();
        let unwanted = &self.office.unwanted;
        let held = match self.office.held {
            true => self.nodes.iter().map(|node| node.id.clone()).collect(),
            false => Vec::new(),
        };
        let hosts = if self.office.held {
            Selection::Hosts(Vec::new())
        } else if unwanted.is_empty() {
            Selection::All
        } else {
            let wanted = (0..).zip(&self.nodes);
            let wanted = wanted.filter(|(at, _)| !unwanted.contains_key(at));
            Selection::Hosts(wanted.map(|(_, node)| node.id.clone()).collect())
        };
        self.plan_event(stage::Event::Wanted {
            image: self.images[image].digest,
            references: vec![format!("registry.example/image-{image}:1")],
            contents,
            hosts,
            held,
            purpose: Purpose::Stage,
        });
    }

    pub(super) fn tell_office(&mut self, event: stage::Event) {
        let term = self.office.term;
        self.send(Message::ToPlan { term, event });
    }

    pub(super) fn tell_plan_from(&mut self, host: u32, event: impl FnOnce(&Self) -> stage::Event) {
        if self.node(host).session {
            let event = event(self);
            self.tell_office(event);
        }
    }

    pub(super) fn tell_lease_ended(&mut self, host: u32, content: u32, end: LeaseEnd) {
        self.tell_plan_from(host, |world| stage::Event::LeaseEnded {
            host: world.node(host).id.clone(),
            content: world.specs[content as usize].digest,
            end,
        });
    }

    pub(super) fn tell_plan(&mut self, term: u32, event: stage::Event) {
        if term != self.office.term {
            return;
        }
        let office = &mut self.office;
        if office.inbox.is_empty() && office.busy_until <= self.now {
            office.busy_until = self.now + office.work;
            self.hear(event);
        } else {
            office.inbox.push_back(event);
            if office.inbox.len() == 1 {
                let (at, term) = (office.busy_until, office.term);
                self.at(at, Due::Office { term });
            }
        }
    }

    /// The coordinator stands still for so long.
    pub(super) fn office_stands(&mut self, time: Nanos) {
        self.office.busy_until = self.office.busy_until.max(self.now + time);
    }

    pub(super) const fn office_works(&mut self, each: Nanos) {
        self.office.work = each;
    }

    /// Hosts don't hear from the coordinator any more, and connect anew when it can be reached again.
    pub(super) fn lose_sessions(&mut self, time: Nanos) {
        for host in (0..self.nodes.len()).map(index) {
            if !self.node(host).alive || !self.node(host).session {
                continue;
            }
            let id = self.node(host).id.clone();
            self.tell_office(stage::Event::HostDisconnected(id));
            self.node_mut(host).session = false;
            self.node_mut(host).headless_since = Some(self.now);
            self.tell(host, swarm::Event::Coordinator(false));
            let after = time + self.random(usize::try_from(REOPENED_WITHIN).unwrap_or(1)) as u64;
            let life = self.node(host).life;
            self.at(self.now + after, Due::Session { host, life });
        }
    }

    /// It has time for what it was told. Its clock goes first: that is what a plan has to bear.
    pub(super) fn office_turns(&mut self, term: u32) {
        if term != self.office.term {
            return;
        }
        if self.office.busy_until <= self.now {
            self.plan_timer();
            while let Some(event) = self.office.inbox.pop_front() {
                self.hear(event);
                if self.office.work > 0 {
                    self.office.busy_until = self.now + self.office.work;
                    break;
                }
            }
        }
        if !self.office.inbox.is_empty() {
            let at = self.office.busy_until;
            self.at(at, Due::Office { term });
        }
    }

    fn hear(&mut self, event: stage::Event) {
        match &event {
            stage::Event::HostConnected(host) => {
                let host = self.by_id[host];
                self.node_mut(host).unheard = false;
            }
            stage::Event::LeaseEnded { host, content, .. }
                if self.office.leases.get(content) == Some(host) =>
            {
                self.office.leases.remove(content);
            }
            // what a host that comes back doesn't name is over
            stage::Event::LeasesHeld { host, contents } => {
                let goes_on =
                    |content: &Digest, of: &mut HostId| of != host || contents.contains(content);
                self.office.leases.retain(goes_on);
            }
            _ => {}
        }
        self.plan_event(event);
    }

    pub(super) fn plan_event(&mut self, event: stage::Event) {
        let moment = self.moment();
        let Some(plan) = &mut self.office.plan else {
            return;
        };
        plan.handle(moment, event);
        let mut actions = Vec::new();
        while let Some(action) = plan.poll() {
            actions.push(action);
        }
        let next = plan.next_timeout();
        for action in actions {
            self.plan_act(action);
        }
        if let Some(next) = next {
            let at = (next.0 * 1_000).max(self.now + 1_000);
            if at < self.office.timer_at {
                self.office.timer_at = at;
                self.at(at, Due::PlanTimer);
            }
        }
    }

    /// Whether what the plan orders reaches the host: it has a session that the plan has heard of.
    fn is_reached(&self, host: u32) -> bool {
        let node = self.node(host);
        node.session && !node.unheard
    }

    pub(super) fn plan_timer(&mut self) {
        if self.office.busy_until > self.now {
            let at = self.office.busy_until;
            if self.office.timer_at < at {
                self.office.timer_at = at;
                self.at(at, Due::PlanTimer);
            }
            return;
        }
        if self.office.timer_at <= self.now {
            self.office.timer_at = u64::MAX;
            self.plan_event(stage::Event::Tick);
        }
    }

    fn plan_act(&mut self, action: stage::Action) {
        match action {
            stage::Action::Neighbours { host, neighbours } => {
                let host = self.by_id[&host];
                let follows = neighbours.iter().map(|id| self.by_id[id]).collect();
                self.node_mut(host).follows = follows;
                self.tell_roster(host);
            }
            stage::Action::Stage { host, image } => {
                let host = self.by_id[&host];
                self.node_mut(host).on_hold = false;
                if self.node(host).alive && self.is_reached(host) {
                    // orders reach hosts at different times
                    let after = self.random(usize::try_from(STAGGER).unwrap_or(1)) as u64;
                    let life = self.node(host).life;
                    let of = |known: &Image| known.digest == image;
                    // a blob is no image to the host
                    let image = self.images.iter().position(of);
                    if let Some(image) = image.filter(|at| self.images[*at].is_known_to_hosts()) {
                        self.at(self.now + after, Due::Stage { host, life, image });
                    }
                }
            }
            stage::Action::Cancel { image, .. } if self.is_blob(image) => {}
            stage::Action::Cancel { host, .. } => {
                let host = self.by_id[&host];
                match self.office.unwanted.get_mut(&host) {
                    None => self.checks.note("a wanted image was cancelled"),
                    // an order to a host that is away is lost
                    Some(_) if !self.nodes[host as usize].session => {}
                    Some(told) => {
                        *told = true;
                        self.give_up(host);
                    }
                }
            }
            stage::Action::Hold { host, .. } => {
                let host = self.by_id[&host];
                if self.node(host).alive && self.is_reached(host) {
                    self.node_mut(host).on_hold = true;
                    self.hold(host);
                }
            }
            stage::Action::Grant { host, content, .. } => {
                self.office.leases.insert(content, host.clone());
                self.check_leases();
                let host = self.by_id[&host];
                if let Some(content) = self.content_of(content)
                    && self.is_reached(host)
                    && !self.abuses_lease(host, content)
                {
                    let ticket = self.tickets;
                    self.tickets += 1;
                    let node = self.node_mut(host);
                    node.leases.insert(content, 0);
                    node.tickets.insert(content, ticket);
                    self.tell(host, swarm::Event::Leased(ContentId(content)));
                }
            }
            stage::Action::Revoke { host, content, .. } => {
                if self.office.leases.get(&content) == Some(&host) {
                    self.office.leases.remove(&content);
                }
                let host = self.by_id[&host];
                if let Some(content) = self.content_of(content)
                    && self.is_reached(host)
                {
                    self.check_revoked(host, content);
                    self.node_mut(host).leases.remove(&content);
                    self.node_mut(host).hoarded.remove(&content);
                    self.client_hears(host, content);
                    self.tell(host, swarm::Event::LeaseLost(ContentId(content)));
                }
            }
            stage::Action::Retract {
                maker,
                content,
                from,
            } => {
                let maker = self.by_id[&maker];
                if let Some(content) = self.content_of(content) {
                    for host in (0..self.nodes.len()).map(index) {
                        if host != maker && self.node(host).session {
                            self.drop_made_by(host, content, maker, from);
                        }
                    }
                }
            }
            stage::Action::Quarantine(host) => {
                let host = self.by_id[&host];
                self.check_quarantine(host);
                self.office.quarantined[host as usize] = true;
                for other in 0..self.nodes.len() {
                    if self.nodes[other].session {
                        self.tell_roster(index(other));
                    }
                }
            }
        }
    }

    /// Tells a host everybody whom it may talk to, and whom of them it follows.
    fn tell_roster(&mut self, host: u32) {
        let mut named = vec![false; self.nodes.len()];
        let mut roster: Vec<swarm::event::Peer> = Vec::with_capacity(self.nodes.len());
        for (at, node) in self.nodes.iter().enumerate() {
            if at != host as usize && !node.left && !self.office.quarantined[at] {
                named[at] = true;
                roster.push(swarm::event::Peer {
                    key: node.key,
                    zone: 1 + index(at % self.setup.zones),
                    neighbour: false,
                });
            }
        }
        let follows = self.node(host).follows.iter();
        let keys: Vec<HostKey> = follows.map(|at| self.node(*at).key).collect();
        for peer in &mut roster {
            peer.neighbour = keys.contains(&peer.key);
        }
        // the shell that lets peers in knows the roster when the swarm does
        let node = self.node_mut(host);
        if node.alive {
            node.roster = named;
            self.feed(host, swarm::Event::Roster(roster));
        }
    }

    /// Whether the plan means a blob of mirrors by this image.
    fn is_blob(&self, image: Digest) -> bool {
        let mut images = self.images.iter();
        images.any(|of| of.digest == image && !of.is_known_to_hosts())
    }

    fn content_of(&self, digest: Digest) -> Option<u32> {
        self.specs
            .iter()
            .position(|spec| spec.digest == digest)
            .map(index)
    }

    pub(super) fn report(&mut self, host: u32, life: u32) {
        let node = self.node(host);
        if node.life != life || !node.alive {
            return;
        }
        self.at(self.now + REPORT_EVERY, Due::Report { host, life });
        let node = self.node(host);
        if !node.session || !node.stages.contains(&true) {
            return;
        }
        if self.node(host).liar {
            self.defame(host);
        }
        if self.rogue_reports(host) {
            return;
        }
        self.report_standing(host);
        let node = self.node(host);
        let leases: Vec<(u32, u32, u64, Option<Trouble>)> = node
            .leases
            .iter()
            .map(|(content, fetched)| {
                let refused = node.fetches.get(content).map(|fetch| &fetch.refused);
                let refused = refused.and_then(Option::as_ref);
                let trouble = refused.map(|refused| refused.trouble(self.now));
                let part = node
                    .fetches
                    .get(content)
                    .map_or(0, |fetch| self.part(fetch));
                let bytes = u64::from(*fetched) * proto::CHUNK_BYTES + part;
                (*content, *fetched, bytes, trouble)
            })
            .collect();
        let status = self.node(host).swarm.status(self.moment());
        self.report_lack(host, &status);
        self.report_held(host);
        for (content, chunks, bytes, trouble) in leases {
            let paced = status
                .contents
                .iter()
                .any(|status| status.id.0 == content && status.paced);
            let event = stage::Event::LeaseProgress {
                host: self.node(host).id.clone(),
                content: self.specs[content as usize].digest,
                chunks,
                bytes,
                paced,
                trouble,
            };
            self.tell_office(event);
        }
    }

    /// As agents do it: how much the host holds of each content, where that changed.
    fn report_held(&mut self, host: u32) {
        let node = self.node(host);
        let held = node.held.iter().enumerate().map(|(at, held)| {
            // what isn't verified isn't whole
            let false_links = node.false_links.get(&index(at));
            let closed = false_links.is_none_or(BTreeMap::is_empty);
            held.count().min(held.chunks() - u32::from(!closed))
        });
        let held: Vec<u32> = held.collect();
        let said = node.held_said.clone();
        let before = said.clone().unwrap_or_else(|| vec![0; held.len()]);
        let news = held.iter().zip(&before).zip(&self.specs);
        let news = news.filter(|((held, before), _)| held != before);
        let contents: Vec<(Digest, u32)> =
            news.map(|((held, _), spec)| (spec.digest, *held)).collect();
        if said.is_some() && contents.is_empty() {
            return;
        }
        let id = node.id.clone();
        self.node_mut(host).held_said = Some(held);
        self.tell_office(stage::Event::Holds { host: id, contents });
    }

    /// As agents do it: the first contents that nobody has more of whom the host is connected with, where they changed.
    fn report_lack(&mut self, host: u32, status: &swarm::Status) {
        let lacking = status.contents.iter().filter(|content| {
            let waits = content
                .stall
                .is_some_and(swarm::Stall::is_for_want_of_a_source);
            waits && content.idle.as_nanos() >= u128::from(NO_SOURCE)
        });
        let contents: Vec<u32> = lacking.map(|content| content.id.0).take(16).collect();
        if contents == self.node(host).without_source {
            return;
        }
        let event = stage::Event::WithoutSource {
            host: self.node(host).id.clone(),
            contents: self.digests(&contents),
        };
        self.node_mut(host).without_source = contents;
        self.tell_office(event);
    }

    /// A liar accuses the honest: all liars the same few, and each somebody of its own.
    pub(super) fn defame(&mut self, liar: u32) {
        let honest: Vec<u32> = (0..self.nodes.len())
            .map(index)
            .filter(|host| self.node(*host).is_honest())
            .collect();
        let some = self.random(honest.len().max(1));
        for victim in honest.iter().take(3).chain(honest.get(some)) {
            let victim = *victim;
            self.tell_plan_from(liar, |world| stage::Event::Blamed {
                by: world.node(liar).id.clone(),
                host: world.node(victim).id.clone(),
            });
        }
    }

    pub(super) fn report_standing(&mut self, host: u32) {
        for image in 0..self.images.len() {
            if self.node(host).stages[image] && self.images[image].is_known_to_hosts() {
                self.report_image(host, image);
            }
        }
    }

    pub(super) fn report_image(&mut self, host: u32, image: usize) {
        let of_it = || self.specs.iter().filter(|spec| spec.image == image);
        let all: u64 = of_it().map(|spec| spec.geometry.size()).sum();
        let node = self.node(host);
        let sets = self.specs.iter().zip(&node.held);
        let sets = sets.filter(|(spec, _)| spec.image == image);
        let missing: u64 = sets
            .map(|(_, set)| u64::from(set.chunks() - set.count()))
            .sum();
        let held = all.saturating_sub(missing * proto::CHUNK_BYTES);
        let whole = match self.images.len() {
            1 => node.finished_at.is_some(),
            _ => node.whole_at[image].is_some(),
        };
        let standing = if node.broken {
            Standing::Failed
        } else if whole {
            Standing::Present
        } else {
            Standing::Staging
        };
        if node.reported[image] == Some((standing, held)) {
            return;
        }
        let id = node.id.clone();
        self.node_mut(host).reported[image] = Some((standing, held));
        let image = self.images[image].digest;
        self.tell_office(stage::Event::Reported {
            host: id,
            image,
            standing,
            held_bytes: held,
        });
    }
}
