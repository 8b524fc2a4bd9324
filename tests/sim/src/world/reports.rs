//! What hosts tell the coordinator about themselves.

use std::collections::BTreeMap;

use proto::{ChunkRange, Digest};
use rollout::stage::{
    self,
    event::{Standing, Trouble},
};

use crate::network::Nanos;

use super::{
    due::Due,
    origin::slow_part,
    rogue::{defame, rogue_reports},
    state::{REPORT_EVERY, State},
    units::index,
};

/// What a host lacks for this long without a source is reported.
const NO_SOURCE: Nanos = 2_000_000_000;

/// The host's session opens, if anybody is there.
pub(super) fn open_session(world: &mut State, host: u32) {
    if !world.office.is_open() {
        return;
    }
    let unheard = world.office.busy_until > world.clock.now() || !world.office.inbox.is_empty();
    world.node_mut(host).session = true;
    world.node_mut(host).unheard = unheard;
    world.node_mut(host).headless_since = None;
    world.node_mut(host).reported.fill(None);
    world.tell(host, swarm::Event::Coordinator(true));
    let id = world.node(host).id.clone();
    world.tell_office(stage::Event::HostConnected(id.clone()));
    if world.setup.recipe {
        world.tell_office(stage::Event::TakesRanges(id));
    }
    // what it holds and fetches is known before anything is asked of it
    if world.node(host).staged {
        report_standing(world, host);
    }
    let node = world.node_mut(host);
    node.without_source.clear();
    node.held_said = None;
    let leases = node.leases.keys();
    let leases = leases.map(|content| (*content, node.ranges.get(content).copied()));
    let leases: Vec<(u32, Option<ChunkRange>)> = leases.collect();
    let leases = leases.into_iter();
    let leases = leases.map(|(content, range)| (world.specs[content as usize].digest, range));
    let event = stage::Event::LeasesClaimed {
        host: world.node(host).id.clone(),
        leases: leases.collect(),
    };
    world.tell_office(event);
    report_recipe(world, host);
    report_held(world, host);
}

/// A host reports to the coordinator, and will again.
pub(super) fn report(world: &mut State, host: u32, life: u32) {
    let node = world.node(host);
    if node.life != life || !node.alive {
        return;
    }
    world.at(world.clock.now() + REPORT_EVERY, Due::Report { host, life });
    let node = world.node(host);
    if !node.session || !node.stages.contains(&true) {
        return;
    }
    if world.node(host).liar {
        defame(world, host);
    }
    if rogue_reports(world, host) {
        return;
    }
    report_standing(world, host);
    let node = world.node(host);
    let leases: Vec<(u32, u32, u64, Option<Trouble>)> = node
        .leases
        .iter()
        .map(|(content, fetched)| {
            let refused = node.fetches.get(content).map(|fetch| &fetch.refused);
            let refused = refused.and_then(Option::as_ref);
            let trouble = refused.map(|refused| refused.trouble(world.clock.now()));
            let part = node
                .fetches
                .get(content)
                .map_or(0, |fetch| slow_part(world, fetch));
            let bytes = u64::from(*fetched) * proto::CHUNK_BYTES + part;
            (*content, *fetched, bytes, trouble)
        })
        .collect();
    let status = world.node(host).swarm.status(world.moment());
    report_lack(world, host, &status);
    report_held(world, host);
    for (content, chunks, bytes, trouble) in leases {
        let paced = status
            .contents
            .iter()
            .any(|status| status.id.0 == content && status.paced);
        let event = stage::Event::LeaseProgress {
            range: world.node(host).ranges.get(&content).copied(),
            host: world.node(host).id.clone(),
            content: world.specs[content as usize].digest,
            chunks,
            bytes,
            paced,
            trouble,
        };
        world.tell_office(event);
    }
}

/// As agents do it: the host says that it has the image's recipe, if there is one.
pub(super) fn report_recipe(world: &mut State, host: u32) {
    if let Some(recipe) = world.recipe() {
        let contents = vec![(recipe.digest, recipe.chunks)];
        let host = world.node(host).id.clone();
        world.tell_office(stage::Event::Holds { host, contents });
    }
}

/// As agents do it: how much the host holds of each content, where that changed.
pub(super) fn report_held(world: &mut State, host: u32) {
    let node = world.node(host);
    let held = node.held.iter().enumerate().map(|(at, held)| {
        // what isn't verified isn't whole
        let false_links = node.false_links.get(&index(at));
        let closed = false_links.is_none_or(BTreeMap::is_empty);
        held.count().min(held.chunks() - u32::from(!closed))
    });
    let held: Vec<u32> = held.collect();
    let said = node.held_said.clone();
    let before = said.clone().unwrap_or_else(|| vec![0; held.len()]);
    let news = held.iter().zip(&before).zip(&world.specs);
    let news = news.filter(|((held, before), _)| held != before);
    let contents: Vec<(Digest, u32)> = news.map(|((held, _), spec)| (spec.digest, *held)).collect();
    if said.is_some() && contents.is_empty() {
        return;
    }
    let id = node.id.clone();
    world.node_mut(host).held_said = Some(held);
    world.tell_office(stage::Event::Holds { host: id, contents });
}

/// As agents do it: the first contents that nobody has more of whom the host is connected with, where they changed.
fn report_lack(world: &mut State, host: u32, status: &swarm::Status) {
    let lacking = status.contents.iter().filter(|content| {
        let waits = content
            .stall
            .is_some_and(swarm::Stall::is_for_want_of_a_source);
        waits && content.idle.as_nanos() >= u128::from(NO_SOURCE)
    });
    let contents: Vec<u32> = lacking.map(|content| content.id.0).take(16).collect();
    if contents == world.node(host).without_source {
        return;
    }
    let event = stage::Event::WithoutSource {
        host: world.node(host).id.clone(),
        contents: world.digests(&contents),
    };
    world.node_mut(host).without_source = contents;
    world.tell_office(event);
}

/// A host reports each image that it stages.
pub(super) fn report_standing(world: &mut State, host: u32) {
    for image in 0..world.images.len() {
        if world.node(host).stages[image] && world.images[image].is_known_to_hosts() {
            report_image(world, host, image);
        }
    }
}

/// A host reports where it stands with an image, if that changed.
pub(super) fn report_image(world: &mut State, host: u32, image: usize) {
    let of_it = || world.specs.iter().filter(|spec| spec.image == image);
    let all: u64 = of_it().map(|spec| spec.geometry.size()).sum();
    let node = world.node(host);
    let sets = world.specs.iter().zip(&node.held);
    let sets = sets.filter(|(spec, _)| spec.image == image);
    let missing: u64 = sets
        .map(|(_, set)| u64::from(set.chunks() - set.count()))
        .sum();
    let held = all.saturating_sub(missing * proto::CHUNK_BYTES);
    let whole = match world.images.len() {
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
    world.node_mut(host).reported[image] = Some((standing, held));
    let image = world.images[image].digest;
    world.tell_office(stage::Event::Reported {
        host: id,
        image,
        standing,
        held_bytes: held,
    });
}
