//! The watches of the cluster: they show changes late, and in order for each kind.

use super::{
    due::{Due, Sight},
    world::World,
};

pub(super) fn show(world: &mut World, sight: Sight) {
    if !world.office.up {
        return;
    }
    let delay = match world.below(200) {
        0 => world.between(500, 5_000),
        _ => world.between(2, 200),
    };
    let free = &mut world.office.free[sight.watch()];
    let at = (*free).max(world.now + delay);
    *free = at;
    let term = world.office.term;
    world.push_at(at, Due::Sight(term, sight));
}

pub(super) fn show_node(world: &mut World, at: usize) {
    let host = &world.hosts[at];
    let sight = if host.exists {
        Sight::Node(at, host.ready, host.schedulable)
    } else {
        Sight::NodeGone(at)
    };
    show(world, sight);
}

pub(super) fn show_prepull(world: &mut World, at: usize) {
    let rule = world.rule(at);
    show(world, Sight::PrePull(at, rule));
}
