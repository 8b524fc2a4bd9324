//! The coordinator: what its plan is told, and how the plan's orders are carried out.

use proto::{ChunkRange, Digest, HostId, HostKey};
use rollout::stage::{
    self, Plan,
    event::{Content, Purpose, Selection},
};
use swarm::event::ContentId;

use crate::{network::Nanos, scenario::Scenario};

use super::{
    act::{drop_made_by, feed},
    check::{check_granted, check_leases, check_quarantine, check_revoked},
    contents::{ImageKind, SECOND},
    due::Due,
    life::{give_up, pause_stage, take_sequence},
    reports::open_session,
    rogue::abuses_lease,
    state::State,
    units::index,
};

/// An order to stage is carried out within this time: the agent has to read the manifest and reserve room.
const STAGGER: Nanos = 200_000_000;
/// Hosts that lost their session come back within this time after they can.
const REOPENED_WITHIN: Nanos = 500_000_000;

/// A coordinator starts: it learns the hosts and what is wanted, and opens sessions.
pub(super) fn open_office(world: &mut State) {
    let office = &mut world.office;
    office.term += 1;
    office.seed += 1;
    office.plan = Some(Plan::new(office.config.clone(), office.seed));
    office.timer_at = u64::MAX;
    office.quarantined = vec![false; world.nodes.len()];
    office.leases.clear();
    office.granted.clear();
    for host in 0..world.nodes.len() {
        if !world.nodes[host].left {
            let zone = format!("zone-{}", host % world.setup.zones);
            let id = world.nodes[host].id.clone();
            plan_event(world, stage::Event::HostKnown { host: id, zone });
        }
    }
    if world.office.ordered {
        plan_wanted(world);
    }
    plan_event(world, stage::Event::WantsKnown);
    for host in 0..world.nodes.len() {
        if world.nodes[host].alive && world.nodes[host].life > 0 {
            open_session(world, index(host));
        }
    }
}

/// The coordinator goes: its sessions end, and what was sent to it is lost.
pub(super) fn close_office(world: &mut State) {
    world.office.term += 1;
    world.office.plan = None;
    world.office.inbox.clear();
    world.office.busy_until = 0;
    world.office.leases.clear();
    for host in 0..world.nodes.len() {
        let host = index(host);
        if world.node(host).alive && world.node(host).session {
            world.node_mut(host).session = false;
            world.node_mut(host).headless_since = Some(world.clock.now());
            world.tell(host, swarm::Event::Coordinator(false));
        }
    }
}

/// These images are wanted from now on. Blobs of mirrors are wanted by clients alone.
pub(super) fn order_images(world: &mut State, which: impl Fn(usize) -> bool) {
    let now = world.clock.now();
    for (at, image) in world.images.iter_mut().enumerate() {
        if which(at) && image.is_known_to_hosts() {
            image.ordered_at.get_or_insert(now);
        }
    }
    world.office.ordered = true;
    if world.office.is_open() {
        plan_wanted(world);
    }
}

/// The image is paused everywhere from now on, or wanted again.
pub(super) fn pause_image(world: &mut State, paused: bool) {
    world.office.paused = paused;
    if world.office.is_open() {
        plan_wanted(world);
    }
}

/// The plan is told of each image that was ordered.
pub(super) fn plan_wanted(world: &mut State) {
    // the one that can't be had stands before the others
    let mut wanted: Vec<usize> = (0..world.images.len()).collect();
    wanted.sort_by_key(|at| world.images[*at].kind != ImageKind::Hopeless);
    for image in wanted {
        if world.images[image].ordered_at.is_some() {
            plan_image(world, image);
        }
    }
}

fn opposite(world: &State) -> bool {
    world.setup.scenario == Scenario::Opposite
}

fn plan_image(world: &mut State, image: usize) {
    let contents = world
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
    let unwanted = &world.office.unwanted;
    let paused = match world.office.paused {
        true => world.nodes.iter().map(|node| node.id.clone()).collect(),
        false => Vec::new(),
    };
    let hosts = if world.office.paused {
        Selection::Hosts(Vec::new())
    } else if unwanted.is_empty() {
        Selection::All
    } else {
        let wanted = (0..).zip(&world.nodes);
        let wanted = wanted.filter(|(at, _)| !unwanted.contains_key(at));
        Selection::Hosts(wanted.map(|(_, node)| node.id.clone()).collect())
    };
    plan_event(
        world,
        stage::Event::Wanted {
            image: world.images[image].digest,
            references: vec![format!("registry.example/image-{image}:1")],
            contents,
            recipe: world.recipe(),
            hosts,
            paused,
            purpose: Purpose::Stage,
        },
    );
    if world.setup.has_two_images() {
        let waiting = world.nodes.iter().skip(1).step_by(2);
        let waiting = waiting.filter(|_| image == SECOND && opposite(world));
        let ranked = stage::Event::Ranked {
            image: world.images[image].digest,
            priority: 0,
            asked_ms: image as u64,
            awaited: waiting.map(|node| node.id.clone()).collect(),
        };
        plan_event(world, ranked);
    }
    // every host has it from the start
    if let Some(recipe) = world.recipe() {
        let hosts = world.nodes.iter().filter(|node| node.session);
        let hosts: Vec<HostId> = hosts.map(|node| node.id.clone()).collect();
        for host in hosts {
            let contents = vec![(recipe.digest, recipe.chunks)];
            plan_event(world, stage::Event::Holds { host, contents });
        }
    }
}

/// An event comes to the coordinator. It waits while the coordinator is busy.
pub(super) fn tell_plan(world: &mut State, term: u32, event: stage::Event) {
    if term != world.office.term {
        return;
    }
    let office = &mut world.office;
    if office.inbox.is_empty() && office.busy_until <= world.clock.now() {
        office.busy_until = world.clock.now() + office.work;
        hear(world, event);
    } else {
        office.inbox.push_back(event);
        if office.inbox.len() == 1 {
            let (at, term) = (office.busy_until, office.term);
            world.at(at, Due::Office { term });
        }
    }
}

/// The coordinator stands still for so long.
pub(super) fn office_stands(world: &mut State, time: Nanos) {
    world.office.busy_until = world.office.busy_until.max(world.clock.now() + time);
}

/// Each event takes the coordinator so long from now on.
pub(super) const fn office_works(world: &mut State, each: Nanos) {
    world.office.work = each;
}

/// Hosts don't hear from the coordinator any more, and connect anew when it can be reached again.
pub(super) fn lose_sessions(world: &mut State, time: Nanos) {
    for host in (0..world.nodes.len()).map(index) {
        if !world.node(host).alive || !world.node(host).session {
            continue;
        }
        let id = world.node(host).id.clone();
        world.tell_office(stage::Event::HostDisconnected(id));
        world.node_mut(host).session = false;
        world.node_mut(host).headless_since = Some(world.clock.now());
        world.tell(host, swarm::Event::Coordinator(false));
        let after = time + world.random(usize::try_from(REOPENED_WITHIN).unwrap_or(1)) as u64;
        let life = world.node(host).life;
        world.at(world.clock.now() + after, Due::Session { host, life });
    }
}

/// It has time for what it was told. Its clock goes first: that is what a plan has to bear.
pub(super) fn office_turns(world: &mut State, term: u32) {
    if term != world.office.term {
        return;
    }
    if world.office.busy_until <= world.clock.now() {
        plan_timer(world);
        while let Some(event) = world.office.inbox.pop_front() {
            hear(world, event);
            if world.office.work > 0 {
                world.office.busy_until = world.clock.now() + world.office.work;
                break;
            }
        }
    }
    if !world.office.inbox.is_empty() {
        let at = world.office.busy_until;
        world.at(at, Due::Office { term });
    }
}

fn hear(world: &mut State, event: stage::Event) {
    match &event {
        stage::Event::HostConnected(host) => {
            let host = world.by_id[host];
            world.node_mut(host).unheard = false;
        }
        // a word about another lease than the one that the host has ends none
        stage::Event::LeaseEnded {
            host,
            content,
            range,
            ..
        } if leased_range(world, content, host) == Some(*range) => {
            world.office.leases.remove(&(*content, host.clone()));
        }
        // what a host that comes back doesn't name is over
        stage::Event::LeasesClaimed { host, leases } => {
            let mut held = core::mem::take(&mut world.office.leases);
            held.retain(|(content, of)| {
                let range = leased_range(world, content, of);
                of != host || range.is_some_and(|range| leases.contains(&(*content, range)))
            });
            world.office.leases = held;
        }
        _ => {}
    }
    plan_event(world, event);
}

/// The chunks of the lease that the plan knows as this host's; `Some(None)`: all of the content.
fn leased_range(world: &State, content: &Digest, host: &HostId) -> Option<Option<ChunkRange>> {
    let leases = world.office.plan.as_ref()?.status(world.moment()).leases;
    let lease = leases
        .iter()
        .find(|of| of.content == *content && of.host == *host);
    lease.map(|lease| lease.range)
}

fn plan_event(world: &mut State, event: stage::Event) {
    let moment = world.moment();
    let Some(plan) = &mut world.office.plan else {
        return;
    };
    plan.handle(moment, event);
    let mut actions = Vec::new();
    while let Some(action) = plan.poll() {
        actions.push(action);
    }
    let next = plan.next_timeout();
    for action in actions {
        plan_act(world, action);
    }
    if let Some(next) = next {
        let at = (next.0 * 1_000).max(world.clock.now() + 1_000);
        if at < world.office.timer_at {
            world.office.timer_at = at;
            world.at(at, Due::PlanTimer);
        }
    }
}

/// Whether what the plan orders reaches the host: it has a session that the plan has heard of.
fn is_reached(world: &State, host: u32) -> bool {
    let node = world.node(host);
    node.session && !node.unheard
}

/// The plan's timer is due.
pub(super) fn plan_timer(world: &mut State) {
    if world.office.busy_until > world.clock.now() {
        let at = world.office.busy_until;
        if world.office.timer_at < at {
            world.office.timer_at = at;
            world.at(at, Due::PlanTimer);
        }
        return;
    }
    if world.office.timer_at <= world.clock.now() {
        world.office.timer_at = u64::MAX;
        plan_event(world, stage::Event::Tick);
    }
}

/// Does what the plan wants.
fn plan_act(world: &mut State, action: stage::Action) {
    match action {
        stage::Action::Neighbours { host, neighbours } => {
            let host = world.by_id[&host];
            let follows = neighbours.iter().map(|id| world.by_id[id]).collect();
            world.node_mut(host).follows = follows;
            tell_roster(world, host);
        }
        stage::Action::Stage { host, image } => order_stage(world, &host, image),
        stage::Action::Cancel { image, .. } if world.is_blob(image) => {}
        stage::Action::Cancel { host, .. } => order_cancel(world, &host),
        stage::Action::Pause { host, .. } => {
            let host = world.by_id[&host];
            if world.node(host).alive && is_reached(world, host) {
                world.node_mut(host).paused = true;
                pause_stage(world, host);
            }
        }
        stage::Action::Sequence { host, images } => {
            let host = world.by_id[&host];
            if !world.setup.unordered && world.node(host).alive && is_reached(world, host) {
                let all = world.images.iter();
                let place = |digest: &Digest| all.clone().position(|of| of.digest == *digest);
                let sequence = images.iter().filter_map(place).collect();
                take_sequence(world, host, sequence);
            }
        }
        stage::Action::Grant {
            host,
            content,
            range,
            ..
        } => grant(world, host, content, range),
        stage::Action::Revoke { host, content, .. } => revoke(world, &host, content),
        stage::Action::LeaveRecipe(left) => {
            if let Some(content) = world.content_of(left.content) {
                world.leave_recipe(content);
            }
        }
        // no recipe moves here: every host has it
        stage::Action::DropRecipe { .. } => {}
        stage::Action::Retract {
            maker,
            content,
            from,
        } => {
            let maker = world.by_id[&maker];
            if let Some(content) = world.content_of(content) {
                for host in (0..world.nodes.len()).map(index) {
                    if host != maker && world.node(host).session {
                        drop_made_by(world, host, content, maker, from);
                    }
                }
            }
        }
        stage::Action::Quarantine(host) => {
            let host = world.by_id[&host];
            check_quarantine(world, host);
            world.office.quarantined[host as usize] = true;
            for other in 0..world.nodes.len() {
                if world.nodes[other].session {
                    tell_roster(world, index(other));
                }
            }
        }
    }
}

/// A host is to stage an image. Orders reach hosts at different times.
fn order_stage(world: &mut State, host: &HostId, image: Digest) {
    let host = world.by_id[host];
    world.node_mut(host).paused = false;
    if !world.node(host).alive || !is_reached(world, host) {
        return;
    }
    let after = world.random(usize::try_from(STAGGER).unwrap_or(1)) as u64;
    let life = world.node(host).life;
    let mut images = world.images.iter();
    let image = images.position(|known| known.digest == image);
    // a blob is no image to the host
    if let Some(image) = image.filter(|at| world.images[*at].is_known_to_hosts()) {
        let at = world.clock.now() + after;
        world.at(at, Due::Stage { host, life, image });
    }
}

/// A host is to give an image up.
fn order_cancel(world: &mut State, host: &HostId) {
    let host = world.by_id[host];
    match world.office.unwanted.get_mut(&host) {
        None => world.findings.note("a wanted image was cancelled"),
        // an order to a host that is away is lost
        Some(_) if !world.nodes[host as usize].session => {}
        Some(told) => {
            *told = true;
            give_up(world, host);
        }
    }
}

/// A host gets the lease of a content, if the order reaches it.
fn grant(world: &mut State, host: HostId, content: Digest, range: Option<ChunkRange>) {
    let at = world.by_id[&host];
    // a recipe that nobody says to have for a moment: it doesn't move here
    if world.content_of(content).is_none() {
        return;
    }
    world.office.leases.insert((content, host));
    check_leases(world);
    check_granted(world, at, content);
    if let Some(content) = world.content_of(content)
        && is_reached(world, at)
    {
        match range {
            Some(range) => drop(world.node_mut(at).ranges.insert(content, range)),
            None => drop(world.node_mut(at).ranges.remove(&content)),
        }
        if abuses_lease(world, at, content) {
            return;
        }
        let ticket = world.tickets;
        world.tickets += 1;
        let node = world.node_mut(at);
        node.leases.insert(content, 0);
        node.tickets.insert(content, ticket);
        let event = match range {
            Some(range) => swarm::Event::RangeLeased(ContentId(content), range),
            None => swarm::Event::Leased(ContentId(content)),
        };
        world.tell(at, event);
    }
}

/// A host loses the lease of a content. It hears of that if the order reaches it.
fn revoke(world: &mut State, host: &HostId, content: Digest) {
    world.office.leases.remove(&(content, host.clone()));
    let host = world.by_id[host];
    if let Some(content) = world.content_of(content)
        && is_reached(world, host)
    {
        check_revoked(world, host, content);
        world.node_mut(host).leases.remove(&content);
        world.node_mut(host).ranges.remove(&content);
        world.node_mut(host).hoarded.remove(&content);
        world.client_hears(host, content);
        world.tell(host, swarm::Event::LeaseLost(ContentId(content)));
    }
}

/// Tells a host everybody whom it may talk to, and whom of them it follows.
fn tell_roster(world: &mut State, host: u32) {
    let mut named = vec![false; world.nodes.len()];
    let mut roster: Vec<swarm::event::Peer> = Vec::with_capacity(world.nodes.len());
    for (at, node) in world.nodes.iter().enumerate() {
        if at != host as usize && !node.left && !world.office.quarantined[at] {
            named[at] = true;
            roster.push(swarm::event::Peer {
                key: node.key,
                zone: 1 + index(at % world.setup.zones),
                neighbour: false,
            });
        }
    }
    let follows = world.node(host).follows.iter();
    let keys: Vec<HostKey> = follows.map(|at| world.node(*at).key).collect();
    for peer in &mut roster {
        peer.neighbour = keys.contains(&peer.key);
    }
    // the shell that lets peers in knows the roster when the swarm does
    let node = world.node_mut(host);
    if node.alive {
        node.roster = named;
        feed(world, host, swarm::Event::Roster(roster));
    }
}
