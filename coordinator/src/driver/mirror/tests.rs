use proto::{
    limits::MAX_MIRROR_WANTS,
    message::{LeaseEnd, LeaseState, MirrorWant, Report, order::Kind},
};

use super::{
    super::tests::{World, taken},
    *,
};

fn wants(blobs: &[(Digest, u64)]) -> Report {
    numbered(1, blobs)
}

/// A report of wants that all have this number.
fn numbered(number: u64, blobs: &[(Digest, u64)]) -> Report {
    let wants = blobs.iter().map(|(digest, size)| MirrorWant {
        content: digest.as_bytes().to_vec(),
        size: *size,
        number,
    });
    Report {
        mirror: Some(MirrorWants {
            wants: wants.collect(),
        }),
        ..Report::default()
    }
}

/// Forgets the blobs that nobody asks for. Returns whether there were any.
fn forget(world: &mut World) -> bool {
    let driver = &mut world.driver;
    let any = driver
        .mirror
        .forget_lingering(Moment(u64::MAX), LINGER, &mut driver.plan);
    driver.act(driver.now());
    any
}

fn leased(kind: &Kind) -> Option<Digest> {
    match kind {
        Kind::Lease(grant) => Digest::try_from(grant.content.as_slice()).ok(),
        _ => None,
    }
}

#[tokio::test]
async fn a_blob_is_leased_to_one_of_those_that_ask_and_not_again_to_one_that_asks_late() {
    let mut world = World::new();
    let blob = Digest::of(b"blob");
    let (a, mut to_a) = world.open("a", World::hello());
    let (b, mut to_b) = world.open("b", World::hello());
    let (_c, mut to_c) = world.open("c", World::hello());
    world.report("a", a, wants(&[(blob, 3 << 20)]));
    world.report("b", b, wants(&[(blob, 3 << 20)]));
    assert_eq!(taken(&mut to_a, leased), [blob]);
    assert_eq!(taken(&mut to_b, leased), []);
    let done = LeaseState {
        content: blob.as_bytes().to_vec(),
        chunks: 3,
        end: LeaseEnd::Done.into(),
        ..LeaseState::default()
    };
    let report = Report {
        leases: vec![done],
        ..wants(&[])
    };
    world.report("a", a, report);
    world.report("b", b, wants(&[]));
    // nobody asks now, but the hosts that have the blob aren't forgotten yet
    world.report("b", b, wants(&[(blob, 3 << 20)]));
    world.settle();
    for queue in [&mut to_a, &mut to_b, &mut to_c] {
        assert_eq!(taken(queue, leased), []);
    }
}

#[tokio::test]
async fn a_holder_that_asks_anew_holds_it_no_longer() {
    let mut world = World::new();
    let blob = Digest::of(b"blob");
    let (a, mut to_a) = world.open("a", World::hello());
    world.report("a", a, wants(&[(blob, 1)]));
    assert_eq!(taken(&mut to_a, leased), [blob]);
    // the blob came, left the cache, and a client asked for it again, all between two reports
    let done = LeaseState {
        content: blob.as_bytes().to_vec(),
        chunks: 1,
        end: LeaseEnd::Done.into(),
        ..LeaseState::default()
    };
    let report = Report {
        leases: vec![done],
        ..numbered(2, &[(blob, 1)])
    };
    world.report("a", a, report);
    assert_eq!(taken(&mut to_a, leased), [blob]);
    world.report("a", a, numbered(2, &[(blob, 1)]));
    assert_eq!(taken(&mut to_a, leased), []);
}

#[tokio::test]
async fn a_holder_that_goes_away_takes_its_want_along_and_another_is_leased() {
    let mut world = World::new();
    let blob = Digest::of(b"blob");
    let (a, mut to_a) = world.open("a", World::hello());
    let (b, mut to_b) = world.open("b", World::hello());
    world.report("a", a, wants(&[(blob, 1)]));
    assert_eq!(taken(&mut to_a, leased), [blob]);
    world.report("b", b, wants(&[(blob, 1)]));
    world.driver.apply(super::super::Input::Closed {
        host: "a".parse().unwrap(),
        session: a,
    });
    world.settle();
    world.settle();
    assert_eq!(taken(&mut to_b, leased), [blob]);
}

#[tokio::test]
async fn what_a_host_may_ask_for_is_bounded_and_nonsense_is_passed_over() {
    let mut world = World::new();
    let many: Vec<_> = (0..=MAX_MIRROR_WANTS)
        .map(|at| (Digest::of(&at.to_le_bytes()), 1))
        .collect();
    let (a, _to_a) = world.open("a", World::hello());
    world.report("a", a, wants(&many));
    assert_eq!(world.driver.mirror.blobs.len(), MAX_MIRROR_WANTS);
    let nonsense = MirrorWant {
        content: vec![1; 31],
        size: 1,
        number: 1,
    };
    let huge = MirrorWant {
        content: vec![1; 32],
        size: u64::MAX,
        number: 1,
    };
    let report = Report {
        mirror: Some(MirrorWants {
            wants: vec![nonsense, huge],
        }),
        ..Report::default()
    };
    world.report("a", a, report);
    assert!(world.driver.mirror.hosts.is_empty());
    assert!(forget(&mut world));
    assert!(world.driver.mirror.blobs.is_empty());
    // other hosts may reach the fleet's bound; blobs that linger make room
    for host in 0..=MAX_BLOBS / MAX_MIRROR_WANTS {
        let name = format!("host-{host}");
        let (session, _queue) = world.open(&name, World::hello());
        let theirs: Vec<_> = (0..MAX_MIRROR_WANTS)
            .map(|at| (Digest::of(format!("{host} {at}").as_bytes()), 1))
            .collect();
        world.report(&name, session, wants(&theirs));
        assert!(world.driver.mirror.blobs.len() <= MAX_BLOBS);
    }
    assert_eq!(world.driver.mirror.blobs.len(), MAX_BLOBS);
}

#[tokio::test]
async fn a_blob_never_passes_for_an_image() {
    let mut world = World::new();
    let (a, mut to_a) = world.open("a", World::hello());
    let image: Digest = world.stage("one").unwrap().image.digest.parse().unwrap();
    let staged = |kind: &Kind| match kind {
        Kind::Stage(order) => Some(order.manifest_digest.clone()),
        Kind::Cancel(order) => Some(order.manifest_digest.clone()),
        _ => None,
    };
    assert_eq!(taken(&mut to_a, staged), [image.as_bytes().to_vec()]);
    world.report("a", a, wants(&[(image, 5)]));
    world.report("a", a, wants(&[]));
    assert_eq!(taken(&mut to_a, staged), Vec::<Vec<u8>>::new());
}

#[tokio::test]
async fn a_host_that_waits_its_turn_is_told_so_and_one_that_nobody_serves_is_not() {
    let mut world = World::new();
    let queued = |kind: &Kind| match kind {
        Kind::Queue(queue) => Some(queue.contents.len()),
        _ => None,
    };
    let blobs: Vec<_> = (0..6u8).map(|at| (Digest::of(&[at]), 3 << 20)).collect();
    let (a, mut to_a) = world.open("a", World::hello());
    let (b, mut to_b) = world.open("b", World::hello());
    world.report("a", a, wants(&blobs));
    world.report("b", b, wants(&blobs[..2]));
    world.driver.started -= TELL_EVERY;
    world.driver.apply(super::super::Input::Tick);
    assert_eq!(taken(&mut to_a, queued), [6]);
    assert_eq!(taken(&mut to_b, queued), [2]);
    // the queue isn't told at every tick
    world.driver.apply(super::super::Input::Tick);
    assert_eq!(taken(&mut to_a, queued), [] as [usize; 0]);
    // nothing came of any blob for so long that the leases have passed on
    world.settle();
    while to_a.try_recv().is_ok() {}
    world.driver.started -= TELL_EVERY;
    world.driver.apply(super::super::Input::Tick);
    assert_eq!(taken(&mut to_a, queued), [] as [usize; 0]);
}

#[tokio::test]
async fn hosts_that_say_another_size_have_a_blob_of_their_own_and_wait_for_nobody() {
    let mut world = World::new();
    let blob = Digest::of(b"blob");
    let (rogue, mut to_rogue) = world.open("rogue", World::hello());
    let (a, mut to_a) = world.open("a", World::hello());
    let (b, mut to_b) = world.open("b", World::hello());
    world.report("rogue", rogue, wants(&[(blob, 1)]));
    assert_eq!(taken(&mut to_rogue, leased), [blob]);
    // both name the same size: one of them gets a lease at once, under the digest that hosts know
    world.report("a", a, wants(&[(blob, 3 << 20)]));
    world.report("b", b, wants(&[(blob, 3 << 20)]));
    assert_eq!(taken(&mut to_a, leased), [blob]);
    assert_eq!(taken(&mut to_b, leased), []);
    // a host's words are about the blob of its own size: the end of the rogue's lease says nothing of the other blob
    let state = |end: LeaseEnd, chunks| Report {
        leases: vec![LeaseState {
            content: blob.as_bytes().to_vec(),
            chunks,
            end: end.into(),
            ..LeaseState::default()
        }],
        ..Report::default()
    };
    world.report("rogue", rogue, state(LeaseEnd::Done, 1));
    assert_eq!(world.driver.plan.status(world.driver.now()).leases.len(), 1);
    world.report("a", a, state(LeaseEnd::Unspecified, 2));
    let leases = world.driver.plan.status(world.driver.now()).leases;
    assert_eq!(
        (leases[0].host.as_str(), leases[0].chunks, leases.len()),
        ("a", 2, 1)
    );
    let revoked = |kind: &Kind| matches!(kind, Kind::Revoke(_)).then_some(());
    assert_eq!(taken(&mut to_a, revoked), []);
    world.report("a", a, state(LeaseEnd::Done, 3));
    world.settle();
    assert_eq!(taken(&mut to_b, leased), [], "it is there");
    // everything is forgotten after the last host stops asking; then the rogue's next want is as good as any
    for (host, session) in [("rogue", rogue), ("a", a), ("b", b)] {
        world.report(host, session, wants(&[]));
    }
    forget(&mut world);
    assert!(world.driver.mirror.blobs.is_empty() && world.driver.mirror.digests.is_empty());
    assert!(world.driver.mirror.names.is_empty());
}

#[tokio::test]
async fn a_host_that_changes_its_mind_about_a_size_is_meant_by_the_last_one() {
    let mut world = World::new();
    let blob = Digest::of(b"blob");
    let (a, mut to_a) = world.open("a", World::hello());
    let (b, mut to_b) = world.open("b", World::hello());
    world.report("a", a, wants(&[(blob, 1)]));
    world.report("b", b, wants(&[(blob, 2)]));
    assert_eq!(taken(&mut to_a, leased), [blob]);
    assert_eq!(taken(&mut to_b, leased), [blob]);
    let id: HostId = "b".parse().unwrap();
    let other = world.driver.mirror.meant(&id, blob);
    assert_ne!(other, blob);
    assert_eq!(world.driver.mirror.digest(other), blob);
    world.report("b", b, numbered(2, &[(blob, 1)]));
    assert_eq!(world.driver.mirror.meant(&id, blob), blob);
    // nobody wants the other size any more, so its lease is revoked under the digest that the host knows
    world.settle();
    forget(&mut world);
    let revoked = |kind: &Kind| match kind {
        Kind::Revoke(revoke) => Digest::try_from(revoke.content.as_slice()).ok(),
        _ => None,
    };
    let revoked = taken(&mut to_b, revoked);
    assert!(
        !revoked.is_empty() && revoked.iter().all(|of| *of == blob),
        "{revoked:?}"
    );
}

#[tokio::test]
async fn a_size_that_contradicts_a_wanted_image_is_a_blob_of_its_own() {
    let mut world = World::new();
    let (a, mut to_a) = world.open("a", World::hello());
    let (reply, _answer) = tokio::sync::oneshot::channel();
    let image = crate::wants::tests::want("one", 1, 1 << 20);
    let content = image.layout.contents()[0].digest;
    world
        .driver
        .apply(super::super::Input::Asked(super::super::Ask::Stage {
            want: Box::new(image),
            reply,
        }));
    while to_a.try_recv().is_ok() {}
    world.report("a", a, wants(&[(content, 7)]));
    assert_eq!(taken(&mut to_a, leased), [content]);
    assert_ne!(world.driver.plan.size_of(&content), Some(7));
    assert_eq!(world.driver.mirror.blobs.len(), 1);
}

#[tokio::test]
async fn a_host_whose_session_is_given_up_waits_for_nothing_any_more() {
    let mut world = World::new();
    let blob = Digest::of(b"blob");
    let (a, stuck) = world.open("a", World::hello());
    world.report("a", a, wants(&[(blob, 1)]));
    assert_eq!(world.driver.mirror.hosts.len(), 1);
    // the host takes no orders, until its queue is full
    let host = "a".parse().unwrap();
    while world.driver.members.sessions().is_open(&host) {
        let now = world.driver.now();
        world
            .driver
            .order(now, &host, order(Kind::Queue(MirrorQueue::default())));
    }
    assert_eq!(stuck.len(), crate::driver::ORDERS);
    assert!(world.driver.mirror.hosts.is_empty());
    // the end of its session comes late, and changes nothing
    world
        .driver
        .apply(crate::driver::Input::Closed { host, session: a });
    assert!(forget(&mut world));
    assert!(world.driver.mirror.blobs.is_empty());
}
