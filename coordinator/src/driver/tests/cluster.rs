//! Tests the wants of the cluster's objects, beside operators' wants.

use super::*;

#[test]
fn what_the_cluster_wants_outlives_a_cancel_and_ends_with_its_objects() {
    let mut world = World::new();
    let (_one, mut orders) = world.open("mini-1", World::hello());
    world.open("mini-2", World::hello());
    drop(world.stage("image"));
    let image = want("image", 1, 1 << 20);
    let placed = Want {
        hosts: Some(["mini-1".parse().unwrap()].into()),
        references: ["127.0.0.1:5000/image:other".to_owned()].into(),
        ..image.clone()
    };
    place(&mut world, vec![placed.clone()], Limits::default());
    let selected = |world: &World| {
        let view = world.view.borrow().clone();
        let image = view.images.get(&image.digest());
        image.map(|image| (image.hosts_selected, image.references.len()))
    };
    assert_eq!(selected(&world), Some((2, 2)));

    let (reply, _answer) = oneshot::channel();
    let image_digest = image.digest();
    world.driver.apply(Input::Asked(Ask::Cancel {
        name: image_digest.to_string(),
        reply,
    }));
    assert_eq!(selected(&world), Some((1, 1)));

    // the objects' limits reach hosts, and end with the objects
    while orders.try_recv().is_ok() {}
    let limits = Limits {
        bandwidth: BandwidthRequest {
            upload_bytes_per_second: 7,
            download_bytes_per_second: 0,
        },
        origin_streams: Some(1),
    };
    place(&mut world, vec![placed], limits);
    let told = |orders: &mut Receiver<Arc<message::Order>>| {
        let mut last = None;
        while let Ok(order) = orders.try_recv() {
            if let Some(Kind::Bandwidth(bandwidth)) = &order.kind {
                last = Some(bandwidth.upload_bytes_per_second);
            }
        }
        last
    };
    assert_eq!(told(&mut orders), Some(7));
    place(&mut world, Vec::new(), Limits::default());
    assert_eq!(told(&mut orders), Some(0));
    assert_eq!(selected(&world), None);
}

#[test]
fn what_the_cluster_wants_beyond_the_most_images_waits_until_there_is_room() {
    let mut world = World::new();
    world.open("mini-1", World::hello());
    let image = |number: usize| want(&format!("image {number}"), 1, 1 << 20);
    let all: Vec<Want> = (0..MAX_WANTS + 2).map(image).collect();
    place(&mut world, all.clone(), Limits::default());
    let shown = |world: &World| {
        let view = world.view.borrow().clone();
        (view.images.len(), view.waiting.len())
    };
    assert_eq!(shown(&world), (MAX_WANTS, 2));
    // the same wants again change nothing; with one less, one that waits has its turn
    place(&mut world, all.clone(), Limits::default());
    assert_eq!(shown(&world), (MAX_WANTS, 2));
    let waits: Vec<Digest> = world
        .driver
        .staging
        .images()
        .waiting()
        .into_iter()
        .collect();
    let fewer = |gone: usize| {
        let mut gone = gone;
        let mut kept = all.clone();
        kept.retain(|want| {
            let goes = gone > 0 && !waits.contains(&want.digest());
            gone -= usize::from(goes);
            !goes
        });
        kept
    };
    place(&mut world, fewer(1), Limits::default());
    assert_eq!(shown(&world), (MAX_WANTS, 1));
    // nobody wants the images that wait any more
    let without: Vec<Want> = all
        .iter()
        .filter(|want| !waits.contains(&want.digest()))
        .cloned()
        .collect();
    place(&mut world, without, Limits::default());
    assert_eq!(shown(&world), (MAX_WANTS, 0));

    // room that operators make is used too
    let mut world = World::new();
    world.open("mini-1", World::hello());
    drop(world.stage("asked"));
    place(&mut world, all[..MAX_WANTS].to_vec(), Limits::default());
    assert_eq!(shown(&world), (MAX_WANTS, 1));
    let (reply, _answer) = oneshot::channel();
    let name = want("asked", 1, 1 << 20).digest().to_string();
    world
        .driver
        .apply(Input::Asked(Ask::Cancel { name, reply }));
    let now = world.driver.now();
    world.driver.show(now);
    assert_eq!(shown(&world), (MAX_WANTS, 0));
}

#[test]
fn a_host_that_the_cluster_holds_is_told_to_keep_what_it_has() {
    let mut world = World::new();
    let (_one, mut orders) = world.open("mini-1", World::hello());
    let mini: HostId = "mini-1".parse().unwrap();
    let image = want("image", 1, 1 << 20);
    let mut told = || {
        let mut kinds = Vec::new();
        while let Ok(order) = orders.try_recv() {
            match &order.kind {
                Some(Kind::Stage(_)) => kinds.push("stage"),
                Some(Kind::Cancel(order)) if order.keep => kinds.push("keep"),
                Some(Kind::Cancel(_)) => kinds.push("drop"),
                _ => {}
            }
        }
        kinds
    };
    let on = |hosts: &[&HostId], paused: &[&HostId]| {
        let set = |hosts: &[&HostId]| hosts.iter().copied().cloned().collect();
        vec![Placed {
            want: Want {
                hosts: Some(set(hosts)),
                ..image.clone()
            },
            paused: set(paused),
            awaited: BTreeSet::new(),
        }]
    };
    let mut place = |wants| {
        let limits = Limits::default();
        let ask = Ask::Place {
            wants,
            limits,
            whole: true,
        };
        world.driver.apply(Input::Asked(ask));
        told()
    };
    assert_eq!(place(on(&[&mini], &[])), ["stage"]);
    assert_eq!(place(on(&[], &[&mini])), ["keep"]);
    assert_eq!(place(on(&[&mini], &[])), ["stage"]);
    assert_eq!(place(on(&[], &[&mini])), ["keep"]);
    assert_eq!(place(Vec::new()), ["drop"]);
}
