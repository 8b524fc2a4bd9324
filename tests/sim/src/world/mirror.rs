//! How clients of mirrors come, are served, and are known to the coordinator.

use std::time::Duration;

use rollout::stage::{
    self,
    event::{Content, Purpose, Selection, Standing},
};
use swarm::event::ContentId;

use crate::network::Nanos;

use super::{act::feed, clients::ALONE_AFTER, due::Due, state::State};

/// The coordinator says this often what comes.
const QUEUE_EVERY: Nanos = 2_000_000_000;

/// A client wants a content of its host.
pub(super) fn client_comes(world: &mut State, host: u32, content: u32) {
    world.mirrors.expected();
    if !world.node(host).alive {
        return;
    }
    world.mirrors.begin(world.clock.now(), host, content);
    let spec = &world.specs[content as usize];
    let (image, key, size) = (spec.image, spec.key, spec.geometry.size());
    let held = world.node(host).held[content as usize].clone();
    world.node_mut(host).stages[image] = true;
    let id = ContentId(content);
    let event = swarm::Event::Content {
        id,
        key,
        size,
        held,
        order: 0,
        entitled: None,
    };
    feed(world, host, event);
    let wanted = swarm::Event::Wanted {
        id,
        alone_after: Duration::from_nanos(ALONE_AFTER),
        admitted: false,
    };
    feed(world, host, wanted);
    for (peer, chunks) in world.mirrors.take_early(host, content) {
        let event = swarm::Event::Announced {
            peer: world.node(peer).key,
            id,
            chunks,
            reset: true,
        };
        feed(world, host, event);
    }
    tell_wanters(world, host, content);
    world.tell_plan_from(host, |world| stage::Event::Reported {
        host: world.node(host).id.clone(),
        image: world.images[image].digest,
        standing: Standing::Staging,
        held_bytes: 0,
    });
}

/// All of a content is at a host: its client has it, and peers may.
pub(super) fn client_served(world: &mut State, host: u32, content: u32) {
    if !world.mirrors.serve(world.clock.now(), host, content) {
        return;
    }
    feed(world, host, swarm::Event::Unwanted(ContentId(content)));
    tell_wanters(world, host, content);
}

/// The coordinator hears from a host who wants a blob now.
fn tell_wanters(world: &mut State, host: u32, content: u32) {
    let hosts = world.mirrors.hosts(content);
    world.tell_plan_from(host, |world| {
        let spec = &world.specs[content as usize];
        let (digest, geometry) = (spec.digest, spec.geometry);
        stage::Event::Wanted {
            image: world.images[spec.image].digest,
            references: Vec::new(),
            contents: vec![Content {
                digest,
                chunks: geometry.chunks(),
                size: geometry.size(),
                origin_bytes: geometry.size(),
            }],
            recipe: None,
            hosts: Selection::Hosts(hosts.iter().map(|at| world.node(*at).id.clone()).collect()),
            paused: Vec::new(),
            purpose: Purpose::Mirror,
        }
    });
}

/// The coordinator says whose wants come, or have their place in the queue.
pub(super) fn tell_queue(world: &mut State) {
    world.at(world.clock.now() + QUEUE_EVERY, Due::Queue);
    let come = |(host, content): &(u32, u32)| {
        let (node, spec) = (world.node(*host), &world.specs[*content as usize]);
        node.alive && node.session && world.office.is_coming(&node.id, &spec.digest)
    };
    let wants: Vec<(u32, u32)> = world.mirrors.wants().filter(come).collect();
    for (host, content) in wants {
        world.client_hears(host, content);
        world.tell(host, swarm::Event::Coming(ContentId(content)));
    }
}
