//! When the loop wakes, and what it does then.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn at(world: &mut World, now: Instant) -> Vec<&'static str> {
    world.now = now;
    words(&world.turn())
}

/// A look at an empty disk ended.
fn seen(world: &World, load_percent: u32) -> Input {
    Input::Presence {
        seen: Seen {
            look: crate::reconcile::Look::default(),
            there: BTreeSet::new(),
            refused: BTreeMap::new(),
            began: world.now,
        },
        load_percent: Some(load_percent),
    }
}

#[test]
fn after_the_first_turn_nothing_is_due_at_once() {
    let world = World::new();
    assert!(world.state.next_wake(world.now) > world.now);
}

#[test]
fn the_disk_is_looked_at_when_the_loop_said_that_it_wakes_and_not_before() {
    let mut world = World::new();
    let look = world.now + upkeep::LOOK_EVERY;
    let before = look - Duration::from_millis(1);
    assert!(at(&mut world, before).is_empty());
    world.apply(Input::Tick);
    assert_eq!(world.state.next_wake(before), look);
    // beside the look, old images are looked after
    assert_eq!(at(&mut world, look), ["blocking", "blocking"]);
    assert!(at(&mut world, look + SECOND).is_empty(), "that look runs");
}

#[test]
fn a_look_that_ended_is_followed_by_a_measurement_and_the_next_look_comes_in_its_time() {
    let mut world = World::new();
    let look = world.now + upkeep::LOOK_EVERY;
    at(&mut world, look);
    let ended = seen(&world, 0);
    world.apply(ended);
    assert_eq!(at(&mut world, look), ["blocking"]);
    let next = look + upkeep::LOOK_EVERY;
    assert!(at(&mut world, next - SECOND).is_empty());
    assert!(!at(&mut world, next).is_empty());
}

#[test]
fn a_report_that_is_due_soon_wakes_the_loop_in_time() {
    let (mut world, mut reports) = World::up();
    world.order(roster(5, &["a"]));
    world.apply(nonsense("a"));
    world.turn();
    let due = world.now + Duration::from_millis(500);
    assert!(world.state.next_wake(world.now) <= due);
    at(&mut world, due);
    assert!(reports.try_recv().is_ok());
}

#[test]
fn a_volume_that_has_filled_up_ends_what_comes_for_images() {
    let (mut world, mut reports) = World::filling();
    assert!(!world.status().contents.is_empty());
    world.apply(Input::Measured(Volume {
        total_bytes: 1_000,
        free_bytes: 99,
        floor_bytes: 100,
        clones: false,
    }));
    world.turn_later();
    assert!(world.status().contents.is_empty());
    let mut free = None;
    while let Ok(report) = reports.try_recv() {
        free = report.volume.map(|volume| volume.free_bytes);
    }
    assert_eq!(free, Some(99));
}

#[test]
fn a_host_that_is_busier_than_its_operator_wants_reads_no_disks_until_it_is_idle_again() {
    let mut world = World::with("step_back_load_percent = 80\n");
    let may = |world: &World| world.state.upkeep.may_survey(world.state.needs());
    assert!(may(&world));
    for (load, reads) in [(90, false), (70, false), (50, true)] {
        let ended = seen(&world, load);
        world.apply(ended);
        assert_eq!(may(&world), reads, "{load} %");
    }
}

#[test]
fn disks_that_are_found_are_told_when_there_is_news_of_them() {
    let mut world = World::new();
    let found = Surveyed {
        disks: 2,
        ..Surveyed::default()
    };
    let told_soon = |world: &mut World| {
        world.apply(Input::Surveyed(Ok(found)));
        let soon = world.state.reporting.next_due().is_some();
        world.turn_later();
        soon
    };
    assert!(told_soon(&mut world));
    assert!(!told_soon(&mut world));
}
