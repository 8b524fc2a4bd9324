//! Many hosts that want the same at once, while the registry has more to do.

use super::*;

/// Body bytes of the image's blobs that left the registry.
fn sent_of_image(world: &World) -> u64 {
    world
        .image
        .blobs
        .keys()
        .map(|digest| world.sent(digest))
        .sum()
}

/// All hosts pull the image at once, and the registry gives one copy. Returns how long it took.
fn one_copy_for_all(world: &World) -> Duration {
    let hosts = world.cluster.agents().len();
    let began = Instant::now();
    let pulled = world.pull_at_once(hosts);
    let took = began.elapsed();
    for one in &pulled {
        world.check(one);
    }
    let (sent, size) = (sent_of_image(world), size(&pulled[0]));
    let first = pulled.iter().map(|pulled| pulled.first_byte).max().unwrap();
    println!("{hosts} pulls in {took:?}: origin/image {sent}/{size}, slowest first byte {first:?}");
    assert!(sent * 100 <= size * 102, "{sent} of {size}");
    took
}

#[test]
fn sixteen_hosts_that_pull_at_once_cost_the_registry_one_copy() {
    one_copy_for_all(&World::new(16, &ImageSpec::plain(48, 8)));
}

#[test]
fn a_slow_registry_gives_one_copy_although_staging_has_its_streams() {
    let world = World::new(16, &ImageSpec::plain(32, 8));
    let registry = &world.site.registry;
    // another image, whose layers take all leases for longer than all of this
    let staged = ImageSpec::incompressible(192 << 20, 48 << 20, 7);
    let staged = world.site.image(&staged).unwrap();
    let reference = registry.hold("fleet/staged", "1", &staged);
    registry.limit_each(Some(1 << 20));
    world.cluster.stage(&[&reference]).unwrap();
    let busy = || registry.counters().blob_requests >= 4;
    assert!(wait_until(PATIENCE, busy));
    let took = one_copy_for_all(&world);
    // longer than a host waits that nobody tells to
    assert!(took > Duration::from_secs(15), "{took:?}");
}

#[test]
fn without_a_coordinator_one_host_after_the_other_goes_to_the_registry() {
    let mut world = World::new(4, &ImageSpec::plain(16, 8));
    let together = |agent: &Agent| {
        let connected = agent.metric("parbake_agent_peers{state=\"connected\"}");
        connected == Some(3.0)
    };
    let all = || world.cluster.agents().iter().all(together);
    assert!(wait_until(PATIENCE, all));
    world.cluster.kill_coordinator().unwrap();
    world.site.registry.limit_each(Some(1 << 20));
    one_copy_for_all(&world);
}

#[test]
fn a_blob_that_a_peer_has_is_had_at_once() {
    let world = World::new(2, &ImageSpec::plain(8, 8));
    let mut slowest = Duration::ZERO;
    for (at, size) in [(1u8, 500), (2, 1 << 20), (3, 20 << 20)] {
        let good = Bytes::from(vec![at; size]);
        let digest = world.put(&good);
        let mut took = [Duration::ZERO; 2];
        for (host, took) in took.iter_mut().enumerate() {
            let blob = world.blob(host, &digest);
            let began = Instant::now();
            let bytes = world.run(whole(&blob));
            *took = began.elapsed();
            assert!(bytes == good);
        }
        println!(
            "{size} bytes: {:?} from the registry, {:?} with a peer that has them",
            took[0], took[1]
        );
        slowest = slowest.max(took[1]);
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    // from the peer, not from the registry once more
    let blobs = world.site.registry.counters().blobs;
    let samples = 500 + 512 + 512;
    assert!(
        blobs
            .values()
            .all(|blob| blob.bytes <= (20 << 20) + samples)
    );
    let once = 500 + (1 << 20) + (20 << 20);
    assert_eq!(world.site.served(), once + samples);
}
