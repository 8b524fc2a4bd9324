//! What the coordinator is told, and when.

use super::*;

#[test]
fn the_first_report_of_a_session_says_everything() {
    let mut world = World::new();
    let mut reports = world.begin_session(8);
    assert!(reports.try_recv().is_err(), "it is made by the turn");
    world.turn();
    let report = reports.try_recv().unwrap();
    assert!(report.full);
    let volume = report.volume.unwrap();
    assert_eq!((volume.total_bytes, volume.free_bytes), (1_000, 900));
}

#[test]
fn the_next_sessions_first_message_is_kept_from_the_start() {
    let world = World::new();
    let hello = world.hello.borrow();
    assert_eq!((hello.peer_port, hello.zone.as_str()), (7471, "here"));
    assert_eq!(hello.link_key, world.notary.key());
    assert_eq!(hello.roster_epoch, Some(0));
}

#[test]
fn a_session_that_ends_is_answered_when_the_next_hello_has_the_state_by_then() {
    let (mut world, _reports) = World::filling();
    world.turn_later();
    let (taken_in, mut answer) = oneshot::channel();
    assert!(world.snapshot.borrow().coordinator);
    world.apply(Input::Heard(Heard::Down(taken_in)));
    assert_eq!(answer.try_recv(), Ok(()));
    let hello = world.hello.borrow();
    assert_eq!(hello.images[0].manifest, image().as_bytes());
    assert!(!world.snapshot.borrow().coordinator);
}

#[test]
fn a_peer_that_breaks_the_protocol_is_told_of_within_half_a_second() {
    let (mut world, mut reports) = World::up();
    world.order(roster(5, &["a"]));
    world.apply(nonsense("a"));
    world.turn();
    assert!(reports.try_recv().is_err(), "not before its time");
    world.turn_later();
    let blames = reports.try_recv().unwrap().blames;
    let blamed = (blames[0].host.as_str(), blames[0].kind());
    assert_eq!(blamed, ("a", BlameKind::Protocol));
}

#[test]
fn what_is_to_be_told_without_a_session_waits_for_the_next() {
    let mut world = World::new();
    world.order(roster(5, &["a"]));
    world.apply(nonsense("a"));
    world.turn_later();
    let mut reports = world.begin_session(8);
    world.turn();
    assert_eq!(reports.try_recv().unwrap().blames[0].host, "a");
}

#[test]
fn a_report_that_finds_no_room_is_made_again_with_what_it_said() {
    let mut world = World::new();
    world.order(roster(5, &["a"]));
    let mut reports = world.begin_session(1);
    world.turn();
    // the first report takes the only place
    world.apply(nonsense("a"));
    world.turn_later();
    assert!(reports.try_recv().unwrap().blames.is_empty());
    world.turn_later();
    assert_eq!(reports.try_recv().unwrap().blames[0].host, "a");
}

#[test]
fn an_image_that_fills_is_told_as_being_staged() {
    let (mut world, mut reports) = World::filling();
    world.turn_later();
    let told = images(&mut reports);
    assert_eq!(told.last().unwrap().state(), StageState::Staging);
}
