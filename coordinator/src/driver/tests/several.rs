//! Tests of several images on one host: the host is told their order.

use proto::Reason;

use super::*;
use crate::metrics::encode;

fn digest(seed: &str) -> Digest {
    want(seed, 1, 1 << 20).digest()
}

/// The orders among images that a host was sent since the last call.
fn sequences(orders: &mut Receiver<Arc<message::Order>>) -> Vec<Vec<Digest>> {
    let told = taken(orders, |kind| match kind {
        Kind::Sequence(order) => Some(order.manifest_digests.clone()),
        _ => None,
    });
    let parse = |image: Vec<u8>| Digest::try_from(image.as_slice()).unwrap();
    let told = told.into_iter();
    told.map(|told| told.into_iter().map(parse).collect())
        .collect()
}

#[test]
fn a_host_is_told_the_order_of_its_images_and_a_new_one_when_a_priority_changes() {
    let mut world = World::new();
    world.driver.apply(Input::Recalled);
    let (_, mut orders) = world.open("mini-1", World::hello());
    let asked = |seed: &str, priority| Want {
        priority,
        ..want(seed, 1, 1 << 20)
    };
    let (one, two) = (digest("one"), digest("two"));
    world.stage_want(asked("one", None)).unwrap();
    assert_eq!(sequences(&mut orders), [] as [Vec<Digest>; 0], "one image");
    world.stage_want(asked("two", None)).unwrap();
    assert_eq!(sequences(&mut orders).last(), Some(&vec![one, two]));
    world.stage_want(asked("two", Some(4))).unwrap();
    assert_eq!(sequences(&mut orders).last(), Some(&vec![two, one]));
    // asking again without a priority changes nothing
    world.stage_want(asked("two", None)).unwrap();
    assert_eq!(sequences(&mut orders), [] as [Vec<Digest>; 0]);
    // a new session hears all again, and a restart forgets no priority
    let (_, mut orders) = world.open("mini-1", World::hello());
    assert_eq!(sequences(&mut orders).last(), Some(&vec![two, one]));
    let kept = world.driver.staging.images().asked(&two).unwrap();
    assert_eq!(kept.priority, Some(4));
}

#[test]
fn a_coordinator_that_has_just_started_tells_no_order_before_all_wants_are_known() {
    let mut world = World::new();
    let (_, mut orders) = world.open("mini-1", World::hello());
    // an image that is wanted and not known yet would give way to these two
    world.stage("one").unwrap();
    world.stage("two").unwrap();
    world.settle();
    assert_eq!(sequences(&mut orders), [] as [Vec<Digest>; 0]);
    world.driver.apply(Input::Recalled);
    let told = sequences(&mut orders);
    assert_eq!(told, [vec![digest("one"), digest("two")]]);
    // from then on each change is told at once
    world.stage("three").unwrap();
    let all = ["one", "two", "three"].map(digest).to_vec();
    assert_eq!(sequences(&mut orders).last(), Some(&all));
}

#[test]
fn one_image_of_a_host_is_present_while_the_other_lacks_room() {
    let mut world = World::new();
    let hello = message::Hello {
        takes_names: true,
        ..World::hello()
    };
    let (session, mut orders) = world.open("mini-1", hello);
    world.stage("one").unwrap();
    world.stage("two").unwrap();
    world.settle();
    let told = taken(&mut orders, |kind| match kind {
        Kind::Names(names) => Some(names.number),
        _ => None,
    });
    let (one, two) = (digest("one"), digest("two"));
    let state = |image: &Digest, state: message::StageState| message::ImageState {
        manifest: image.as_bytes().to_vec(),
        state: state.into(),
        ..message::ImageState::default()
    };
    let present = message::ImageState {
        ready_references: vec!["127.0.0.1:5000/one:latest".into()],
        ..state(&one, message::StageState::Present)
    };
    let waits = message::ImageState {
        reason: Reason::NoRoom.as_str().into(),
        message: "needs 60 GB, of which 10 GB are lacking; room is kept for one".into(),
        ..state(&two, message::StageState::Queued)
    };
    let report = message::Report {
        images: vec![present, waits],
        names: *told.last().unwrap(),
        ..message::Report::default()
    };
    world.report("mini-1", session, report);
    world.settle();
    let view = world.view.borrow().clone();
    let shown = |image: &Digest| {
        let host = &view.images[image].hosts[0];
        (
            host.state,
            host.reason.as_ref().and_then(|reason| reason.known()),
        )
    };
    assert_eq!(shown(&one), (HostState::Present, None));
    assert_eq!(shown(&two), (HostState::Queued, Some(Reason::NoRoom)));
    // an operator who asks why hears of the one image alone
    let why = world.host("mini-1").why.join("\n");
    assert!(why.contains("127.0.0.1:5000/two:latest"), "{why}");
    assert!(why.contains("room is kept for one"), "{why}");
    assert!(!why.contains("127.0.0.1:5000/one:latest"), "{why}");
    // the figures count each pair of an image and a host by itself
    let metrics = encode(&world.registry).unwrap();
    for line in ["state=\"present\"} 1", "state=\"queued\"} 1"] {
        let line = format!("parbake_coordinator_placements{{{line}");
        assert!(metrics.contains(&line), "{metrics}");
    }
}
