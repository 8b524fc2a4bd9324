//! What goes wrong, when it does.

use super::{
    coordinator::{
        close_office, lose_sessions, office_stands, office_works, open_office, order_images,
        pause_image, plan_wanted,
    },
    due::Fault,
    life::{begin_life, come_back, crash, disk_fails, some_holder, vanish},
    lines::{NOTICED_AFTER, break_line},
    origin::break_fetches,
    registry::Registry,
    state::State,
    units::index,
};

/// The planned fault of this number happens.
pub(super) fn strike(world: &mut State, at: usize) {
    world.faults_left -= 1;
    match world.faults[at].1 {
        Fault::Crash(host) => crash(world, host),
        Fault::Return(host) => come_back(world, host),
        Fault::Join(host) => {
            world.node_mut(host).alive = true;
            begin_life(world, host);
        }
        Fault::HolderVanishes => vanish(world, some_holder(world)),
        Fault::FetcherVanishes => {
            let fetches = |host: &u32| !world.node(*host).fetches.is_empty();
            let fetcher = (0..index(world.nodes.len())).find(fetches);
            vanish(world, fetcher);
        }
        Fault::DiskFails => disk_fails(world),
        Fault::Cut => {
            world.cut = true;
            let split = world.nodes.len() / 2;
            for a in 0..split {
                for b in split..world.nodes.len() {
                    break_line(world, index(a), index(b), NOTICED_AFTER);
                }
            }
        }
        Fault::Heal => world.cut = false,
        Fault::CoordinatorGone => close_office(world),
        Fault::CoordinatorChanges => {
            close_office(world);
            open_office(world);
        }
        Fault::CoordinatorStands(time) => office_stands(world, time),
        Fault::CoordinatorWorks(each) => office_works(world, each),
        Fault::SessionsLost(time) => lose_sessions(world, time),
        Fault::Unwanted => {
            for host in 0..world.nodes.len() {
                let node = &mut world.nodes[host];
                if !node.alive && node.wanted && node.finished_at.is_none() {
                    node.wanted = false;
                    world.unfinished -= 1;
                    world.office.unwanted.insert(index(host), false);
                }
            }
            plan_wanted(world);
        }
        Fault::OriginRate(rate) => {
            let at = world.nodes.len();
            world.uplinks[at].rate = rate.max(1);
        }
        Fault::Order(image) => order_images(world, |at| at == image),
        Fault::OriginDown => {
            world.registry = Registry::Down;
            break_fetches(world);
        }
        Fault::OriginUp => world.registry = Registry::Up,
        Fault::OriginThrottles(seconds) => {
            let until = world.clock.now() + seconds * 1_000_000_000;
            world.registry = Registry::Throttles {
                until,
                told_at: None,
            };
            break_fetches(world);
        }
        Fault::OriginCorrupt => corrupt_some(world),
        Fault::Pause => pause_image(world, true),
        Fault::Still => {
            world.tally.moved_at_pause = world.tally.origin_bytes + world.tally.peer_bytes
        }
        Fault::Resume => {
            if world.tally.origin_bytes + world.tally.peer_bytes != world.tally.moved_at_pause {
                world
                    .findings
                    .note("bytes moved while the image was paused");
            }
            pause_image(world, false);
        }
        Fault::AllDown => {
            close_office(world);
            for host in 0..world.nodes.len() {
                crash(world, index(host));
            }
        }
        Fault::AllUp => {
            for host in 0..world.nodes.len() {
                come_back(world, index(host));
            }
            open_office(world);
        }
    }
}

/// What comes next of the content that is furthest from its end is false.
fn corrupt_some(world: &mut State) {
    let fetches = world.nodes.iter_mut().flat_map(|node| &mut node.fetches);
    let most = fetches
        .filter(|(_, fetching)| !fetching.again && fetching.false_from.is_none())
        .max_by_key(|(content, fetching)| {
            let chunks = world.specs[**content as usize].geometry.chunks();
            chunks - fetching.next
        });
    if let Some((_, fetching)) = most {
        fetching.false_from = Some(fetching.next);
    }
}
