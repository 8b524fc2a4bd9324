//! A host's life: it starts, stages, crashes, comes back, and leaves.

use proto::ChunkIndex;
use rollout::stage;
use swarm::{Swarm, event::ContentId};

use super::{
    act::feed,
    due::Due,
    lines::{NOTICED_AFTER, break_line, drop_transfer},
    node::JOURNAL_LAG,
    origin::abort_origin,
    reports::{open_session, report_held, report_image, report_recipe, report_standing},
    state::{REPORT_EVERY, State},
    units::index,
};

/// A host's agent starts: it finds what its journal vouches for, and opens its session.
pub(super) fn begin_life(world: &mut State, host: u32) {
    let seed = world.seed();
    let config = world.setup.swarm.clone();
    let (now, images) = (world.clock.now(), world.images.len());
    let node = world.node_mut(host);
    node.life += 1;
    node.alive = true;
    node.swarm = Swarm::new(node.key, config, seed);
    node.timer_at = u64::MAX;
    node.grown_at = now;
    node.staged = false;
    let resumes = core::mem::replace(&mut node.stages, vec![false; images]);
    node.believes.fill(false);
    node.roster.fill(false);
    node.session = false;
    node.reported.fill(None);
    let life = node.life;
    let jitter = world.random(usize::try_from(REPORT_EVERY).unwrap_or(1)) as u64;
    world.at(world.clock.now() + jitter, Due::Report { host, life });
    // what it was staging lies in its journal: it goes on without an order
    for (image, resumes) in resumes.into_iter().enumerate() {
        if resumes {
            stage_image(world, host, image);
        }
    }
    open_session(world, host);
}

/// The agent learns that it is to hold an image.
pub(super) fn stage_image(world: &mut State, host: u32, image: usize) {
    if world.node(host).stages[image] || world.node(host).broken {
        return;
    }
    world.node_mut(host).staged = true;
    world.node_mut(host).stages[image] = true;
    introduce(world, host, image);
    if world.node(host).session {
        report_standing(world, host);
        // as agents do it: what a new release shares with the one before is found when the stage begins
        if world.setup.recipe {
            world.node_mut(host).held_said = None;
            report_recipe(world, host);
            report_held(world, host);
        }
    }
}

/// The agent learns in which order it is to finish its images.
pub(super) fn take_sequence(world: &mut State, host: u32, sequence: Vec<usize>) {
    world.node_mut(host).sequence = sequence;
    for image in 0..world.images.len() {
        if world.node(host).stages[image] {
            introduce(world, host, image);
        }
    }
}

/// Tells the swarm of an image's contents, or of their order.
fn introduce(world: &mut State, host: u32, image: usize) {
    for at in 0..world.specs.len() {
        let spec = &world.specs[at];
        if spec.image != image {
            continue;
        }
        let event = swarm::Event::Content {
            id: ContentId(index(at)),
            key: spec.key,
            size: spec.geometry.size(),
            held: world.node(host).held[at].clone(),
            order: world.node(host).order_of(index(at), image),
            entitled: None,
        };
        feed(world, host, event);
    }
}

/// The agent learns that it is to stop, and to keep what it has.
pub(super) fn pause_stage(world: &mut State, host: u32) {
    if !world.node(host).staged || world.node(host).finished_at.is_some() {
        return;
    }
    let contents: Vec<u32> = world.node(host).fetches.keys().copied().collect();
    for content in contents {
        abort_origin(world, host, content);
    }
    let node = world.node_mut(host);
    node.fetches.clear();
    node.leases.clear();
    node.ranges.clear();
    node.staged = false;
    node.stages.fill(false);
    for at in 0..world.specs.len() {
        feed(world, host, swarm::Event::Dropped(ContentId(index(at))));
    }
}

/// The agent is killed: its lines break, and what its journal didn't vouch for is lost.
pub(super) fn crash(world: &mut State, host: u32) {
    if !world.node(host).alive {
        return;
    }
    let contents: Vec<u32> = world.node(host).fetches.keys().copied().collect();
    for content in contents {
        abort_origin(world, host, content);
    }
    for peer in 0..world.nodes.len() {
        break_line(world, host, index(peer), NOTICED_AFTER);
    }
    let now = world.clock.now();
    let lies = world.lies;
    let node = world.node_mut(host);
    node.alive = false;
    node.session = false;
    node.fetches.clear();
    node.leases.clear();
    node.ranges.clear();
    node.uploads = 0;
    node.requested.clear();
    let finished = node.finished_at.is_some();
    for (at, content, chunk) in core::mem::take(&mut node.recent) {
        if !finished
            && at + JOURNAL_LAG >= now
            && node.held[content as usize].remove(ChunkIndex(chunk))
        {
            node.missing += 1;
            if lies && let Some(links) = node.false_links.get_mut(&content) {
                links.remove(&chunk);
            }
        }
    }
    let of_it = world
        .transfers
        .find(|transfer| transfer.from == host || transfer.to == host);
    for id in of_it {
        drop_transfer(world, id);
    }
    let id = world.node(host).id.clone();
    world.tell_office(stage::Event::HostDisconnected(id));
}

/// A host that crashed starts again, unless it left.
pub(super) fn come_back(world: &mut State, host: u32) {
    if world.node(host).alive || world.node(host).left {
        return;
    }
    let held: u64 = world
        .node(host)
        .held
        .iter()
        .map(|set| u64::from(set.count()))
        .sum();
    world.tally.local_bytes += held * proto::CHUNK_BYTES;
    begin_life(world, host);
}

/// The host gives up its stage; without it, it takes no part in what is simulated here.
pub(super) fn give_up(world: &mut State, host: u32) {
    crash(world, host);
    let node = world.node_mut(host);
    node.staged = false;
    node.stages.fill(false);
    node.left = true;
}

/// A host leaves for ever.
pub(super) fn vanish(world: &mut State, host: Option<u32>) {
    let Some(host) = host else {
        return;
    };
    crash(world, host);
    world.node_mut(host).left = true;
    expect_nothing_of(world, host);
}

/// As agents do it: the host says that it failed, gives its leases back, and takes part in nothing of the image.
pub(super) fn disk_fails(world: &mut State) {
    let Some(host) = some_holder(world).filter(|host| world.node(*host).alive) else {
        return;
    };
    expect_nothing_of(world, host);
    let leases: Vec<u32> = world.node(host).leases.keys().copied().collect();
    let ranges = world.node(host).ranges.clone();
    pause_stage(world, host);
    world.node_mut(host).ranges = ranges;
    world.node_mut(host).broken = true;
    for image in 0..world.images.len() {
        report_image(world, host, image);
    }
    for content in leases {
        world.tell_lease_ended(host, content, stage::event::LeaseEnd::Released);
    }
}

/// The first host that the coordinator thinks has a lease.
pub(super) fn some_holder(world: &State) -> Option<u32> {
    world.office.leases.first().map(|(_, id)| world.by_id[id])
}

/// The host needn't complete.
fn expect_nothing_of(world: &mut State, host: u32) {
    let node = world.node_mut(host);
    if node.wanted {
        node.wanted = false;
        if node.finished_at.is_none() {
            world.unfinished -= 1;
        }
    }
}
