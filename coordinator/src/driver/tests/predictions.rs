//! Tests of predictions: what is kept when a staging begins, and what stands beside it later.

use proto::message::{Report, StageState};

use super::*;
use crate::view::{ImageView, ShortOfRoom, StagingBytes};

fn shown(world: &World, image: &Digest) -> ImageView {
    world.view.borrow().images[image].as_ref().clone()
}

fn show(world: &mut World) {
    let now = world.driver.now();
    world.driver.show(now);
}

/// Has a host report this image.
fn reports(world: &mut World, (host, session): (&str, u64), image: message::ImageState) {
    let report = Report {
        images: vec![image],
        ..Report::default()
    };
    world.report(host, session, report);
}

fn state(want: &Want, state: StageState, bytes: StagingBytes) -> message::ImageState {
    message::ImageState {
        manifest: want.digest().as_bytes().to_vec(),
        state: state.into(),
        held_bytes: if state == StageState::Present {
            want.layout.content_bytes()
        } else {
            0
        },
        origin_bytes: bytes.origin,
        peer_bytes: bytes.peers,
        local_bytes: bytes.local,
        written_bytes: bytes.written,
        begun_at_ms: 77_000,
        ready_references: want.references.iter().cloned().collect(),
        ..message::ImageState::default()
    }
}

/// Operators ask for an image. Returns what was written to disk of it last.
fn ask(world: &mut World, want: &Want) -> Want {
    let (reply, _answer) = oneshot::channel();
    let want = Box::new(want.clone());
    let image = want.digest();
    world.driver.apply(Input::Asked(Ask::Stage { want, reply }));
    while let Ok(keep) = world.writer.try_recv() {
        keep.done();
    }
    show(world);
    world.driver.staging.images().asked(&image).unwrap()
}

const NOTHING: StagingBytes = StagingBytes {
    origin: 0,
    peers: 0,
    local: 0,
    written: 0,
};

#[test]
fn a_prediction_stands_beside_the_fact_and_outlives_the_coordinator() {
    let mut world = World::new();
    let mut hello = World::hello();
    if let Some(volume) = &mut hello.volume {
        volume.clones = Some(true);
    }
    let (old, mut new) = (want("old", 2, 1 << 20), want("new", 1, 1 << 20));
    let (a, _a) = world.open("a", hello);
    let (_, _b) = world.open("b", World::hello());
    ask(&mut world, &old);
    let moved = StagingBytes {
        origin: 7,
        peers: 8,
        local: 0,
        written: 9,
    };
    reports(
        &mut world,
        ("a", a),
        state(&old, StageState::Present, moved),
    );

    // two hosts share what the registry gives; a has nothing of it in its other image
    let packed = (1 << 19) + 1 + 2 * 10;
    let raw = (1 << 20) + 2 * 10;
    let kept = ask(&mut world, &new);
    let first = shown(&world, &new.digest());
    let predicted = first.prediction.clone().unwrap();
    let expected = StagingBytes {
        origin: packed,
        peers: packed,
        local: 0,
        written: 2 * raw,
    };
    assert_eq!((predicted.bytes, first.measured), (expected, Some(NOTHING)));
    let each = first.hosts.iter().map(|host| host.predicted.unwrap());
    assert_eq!(each.fold(NOTHING, StagingBytes::and), expected);
    assert_eq!(predicted.milliseconds, None, "no rate is known");
    assert!(predicted.unknown.contains(&"registry".to_owned()));

    reports(
        &mut world,
        ("a", a),
        state(&new, StageState::Staging, moved),
    );
    show(&mut world);
    let later = shown(&world, &new.digest());
    assert_eq!(
        later.prediction.as_ref(),
        Some(&predicted),
        "it doesn't follow what comes"
    );
    assert_eq!(later.measured, Some(moved));

    // a host that enrolled later has no part in the prediction, so its bytes don't stand beside it
    let (c, _c) = world.open("c", World::hello());
    reports(
        &mut world,
        ("c", c),
        state(&new, StageState::Staging, moved),
    );
    show(&mut world);
    let later = shown(&world, &new.digest());
    assert_eq!(later.hosts.len(), 3);
    assert_eq!(later.measured, Some(moved));

    // another coordinator goes on with what was written down
    let kept = Kept {
        wants: vec![kept],
        ..Kept::default()
    };
    let mut world = World::after(false, BTreeSet::new(), kept);
    let (a, _a) = world.open("a", World::hello());
    reports(
        &mut world,
        ("a", a),
        state(&new, StageState::Staging, moved),
    );
    show(&mut world);
    let again = shown(&world, &new.digest());
    assert_eq!(again.prediction, Some(predicted));
    assert_eq!(again.measured, Some(moved));

    // the same image under another name: nothing is to move, and what moved before doesn't count
    reports(
        &mut world,
        ("a", a),
        state(&new, StageState::Present, moved),
    );
    new.references = ["127.0.0.1:5000/new:again".to_owned()].into();
    ask(&mut world, &new);
    let renamed = shown(&world, &new.digest());
    assert_eq!(renamed.prediction.unwrap().bytes, NOTHING);
    assert_eq!(renamed.measured, Some(NOTHING));
}

#[test]
fn layers_of_an_image_that_a_host_has_are_local_and_on_a_volume_that_clones_not_written() {
    let plan = |clones| {
        let mut world = World::new();
        let mut hello = World::hello();
        if let Some(volume) = &mut hello.volume {
            volume.clones = clones;
        }
        let (a, _a) = world.open("a", hello);
        let old = want("one", 2, 1 << 20);
        ask(&mut world, &old);
        reports(
            &mut world,
            ("a", a),
            state(&old, StageState::Present, NOTHING),
        );
        // the same two layers, and a third one
        let new = want("one", 3, 1 << 20);
        let (reply, mut answer) = oneshot::channel();
        let want = Box::new(new);
        world
            .driver
            .apply(Input::Asked(Ask::Preview { want, reply }));
        let plan = answer.try_recv().unwrap().unwrap();
        assert_eq!(plan.hosts[0].bytes, plan.prediction.unwrap().bytes);
        plan.hosts[0].bytes
    };
    // config and NVRAM are the same, too, and lie in files of their own
    let layer = 1 << 20;
    let expected = StagingBytes {
        origin: (1 << 19) + 1,
        peers: 0,
        local: 2 * layer + 20,
        written: layer + 20,
    };
    assert_eq!(plan(Some(true)), expected);
    for unknown in [Some(false), None] {
        let copied = StagingBytes {
            written: 3 * layer + 20,
            ..expected
        };
        assert_eq!(plan(unknown), copied);
    }
}

#[test]
fn a_host_lacks_room_only_for_what_it_will_write() {
    let short = |clones, free_bytes| {
        let mut world = World::new();
        let mut hello = World::hello();
        if let Some(volume) = &mut hello.volume {
            (volume.clones, volume.free_bytes) = (clones, free_bytes);
        }
        let (a, _a) = world.open("a", hello);
        let old = want("one", 2, 1 << 20);
        ask(&mut world, &old);
        let there = state(&old, StageState::Present, NOTHING);
        reports(&mut world, ("a", a), there);
        // the same two layers, and a third one
        let new = Box::new(want("one", 3, 1 << 20));
        let (reply, mut answer) = oneshot::channel();
        let preview = Ask::Preview {
            want: new.clone(),
            reply,
        };
        world.driver.apply(Input::Asked(preview));
        let plan = answer.try_recv().unwrap().unwrap();
        let planned = plan.hosts[0].short_of_room.clone();
        let (reply, mut answer) = oneshot::channel();
        let stage = Ask::Stage { want: new, reply };
        world.driver.apply(Input::Asked(stage));
        while let Ok(keep) = world.writer.try_recv() {
            keep.done();
        }
        let staged = answer.try_recv().unwrap().unwrap();
        assert_eq!(
            planned.iter().collect::<Vec<_>>(),
            staged.short_of_room.iter().collect::<Vec<_>>()
        );
        planned.map(|short| short.needed_bytes)
    };
    let layer = 1 << 20;
    for (clones, needs) in [(Some(true), layer + 20), (Some(false), 3 * layer + 20)] {
        assert_eq!(short(clones, needs), None);
        assert_eq!(short(clones, needs - 1), Some(needs));
    }
}

/// What the first host lacks for an image, by the plan.
fn planned(world: &mut World, want: &Want) -> Option<ShortOfRoom> {
    let (reply, mut answer) = oneshot::channel();
    let want = Box::new(want.clone());
    let preview = Ask::Preview { want, reply };
    world.driver.apply(Input::Asked(preview));
    let plan = answer.try_recv().unwrap().unwrap();
    plan.hosts[0].short_of_room.clone()
}

#[test]
fn a_host_needs_room_for_unfinished_images_that_come_before_too() {
    const HELD: u64 = 1_000;
    let raw: u64 = (1 << 20) + 2 * 10;
    let world = |free_bytes| {
        let mut world = World::new();
        let mut hello = World::hello();
        if let Some(volume) = &mut hello.volume {
            volume.free_bytes = free_bytes;
        }
        let (a, orders) = world.open("a", hello);
        ask(&mut world, &want("first", 1, 1 << 20));
        (world, a, orders)
    };
    let lacks = |world: &mut World, want: &Want| {
        planned(world, want).map(|short| (short.needed_bytes, short.before_bytes))
    };
    let first = want("first", 1, 1 << 20);
    let second = Want {
        wanted_at: first.wanted_at + 1,
        ..want("second", 1, 1 << 20)
    };
    for (free_bytes, short) in [(2 * raw, None), (2 * raw - 1, Some((raw, raw)))] {
        let (mut world, _, _orders) = world(free_bytes);
        assert_eq!(lacks(&mut world, &second), short);
        ask(&mut world, &second);
        assert_eq!(lacks(&mut world, &second), short);
        assert_eq!(lacks(&mut world, &first), None, "it comes first");
    }

    // what a host has of the first image is written already
    let (mut world, a, _orders) = world(2 * raw - HELD);
    let half = message::ImageState {
        held_bytes: HELD,
        ..state(&first, StageState::Staging, NOTHING)
    };
    reports(&mut world, ("a", a), half);
    assert_eq!(lacks(&mut world, &second), None);
}

#[test]
fn images_that_are_there_come_later_or_give_their_names_away_need_no_room_before() {
    let raw: u64 = (1 << 20) + 2 * 10;
    let mut world = World::new();
    let mut hello = World::hello();
    if let Some(volume) = &mut hello.volume {
        volume.free_bytes = raw;
    }
    let (a, _a) = world.open("a", hello);
    let (first, second) = (want("first", 1, 1 << 20), want("second", 1, 1 << 20));
    ask(&mut world, &first);
    assert_eq!(planned(&mut world, &second).unwrap().before_bytes, raw);
    let urgent = Want {
        priority: Some(1),
        ..second.clone()
    };
    assert_eq!(planned(&mut world, &urgent), None);
    let next = Want {
        references: first.references.clone(),
        ..second.clone()
    };
    assert_eq!(planned(&mut world, &next), None);
    let there = state(&first, StageState::Present, NOTHING);
    reports(&mut world, ("a", a), there);
    assert_eq!(planned(&mut world, &second), None);
}
