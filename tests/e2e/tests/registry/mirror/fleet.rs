//! Many hosts that want the same at once, while the registry has more to do.

use super::*;

/// All hosts pull the image at once; what each got, and when the last was done.
fn pull_everywhere(world: &World) -> Vec<Pulled> {
    let hosts = world.cluster.agents().len();
    world.runtime.block_on(async {
        let mut pulls = JoinSet::new();
        for host in 0..hosts {
            let (client, name) = (world.client(host), world.name());
            pulls.spawn(async move { client.pull(&name, "1").await.unwrap() });
        }
        pulls.join_all().await
    })
}

/// Body bytes of the image's blobs that left the registry.
fn served_of_image(world: &World) -> u64 {
    let blobs = world.registry.counters().blobs;
    let served = |digest| blobs.get(digest).map_or(0, |blob| blob.bytes);
    world.image.blobs.keys().map(served).sum()
}

#[test]
fn a_slow_registry_gives_one_copy_although_staging_has_its_streams() {
    let world = World::new(16, &spec(32, 8), registry::Options::default(), "");
    // another image, whose layers take all leases for longer than all of this
    let dir = tempfile::tempdir().unwrap();
    let staged = ImageSpec::incompressible(192 << 20, 48 << 20, 7)
        .generate(dir.path())
        .unwrap();
    let reference = world.registry.hold("fleet/staged", "1", &staged);
    world.registry.limit_each(Some(1 << 20));
    let ordered = world.cluster.parbake(&["stage", &reference]).unwrap();
    assert!(ordered.status.success());
    let busy = || world.registry.counters().blob_requests >= 4;
    assert!(wait_until(PATIENCE, busy));
    let began = Instant::now();
    let pulled = pull_everywhere(&world);
    let took = began.elapsed();
    for one in &pulled {
        world.check(one);
    }
    let (sent, size) = (served_of_image(&world), size(&pulled[0]));
    println!("16 pulls beside staging in {took:?}: origin/image {sent}/{size}");
    // longer than a host waits that nobody tells to
    assert!(took > Duration::from_secs(15), "{took:?}");
    assert!(sent * 100 <= size * 102, "{sent} of {size}");
}

#[test]
fn without_a_coordinator_one_host_after_the_other_goes_to_the_registry() {
    let mut world = World::new(4, &spec(16, 8), registry::Options::default(), "");
    let together = |host: usize| {
        let connected = r#"parbake_agent_peers{state="connected"} 3"#;
        let admin = world.cluster.agents()[host].admin();
        let metrics = ask(Method::GET, format!("http://{admin}/metrics"), &[]);
        let metrics = world.runtime.block_on(metrics).body;
        String::from_utf8_lossy(&metrics).contains(connected)
    };
    assert!(wait_until(PATIENCE, || (0..4).all(together)));
    world.cluster.kill_coordinator().unwrap();
    world.registry.limit_each(Some(1 << 20));
    let pulled = pull_everywhere(&world);
    for one in &pulled {
        world.check(one);
    }
    let (sent, size) = (served_of_image(&world), size(&pulled[0]));
    println!("4 pulls without a coordinator: origin/image {sent}/{size}");
    assert!(sent * 100 <= size * 102, "{sent} of {size}");
}

#[test]
fn a_blob_that_a_peer_has_is_had_at_once() {
    let world = World::new(2, &spec(8, 8), registry::Options::default(), "");
    let mut slowest = Duration::ZERO;
    for (at, size) in [(1u8, 500), (2, 1 << 20), (3, 20 << 20)] {
        let good = Bytes::from(vec![at; size]);
        let digest = world.registry.put_blob(good.clone()).unwrap();
        let mut took = [Duration::ZERO; 2];
        for (host, took) in took.iter_mut().enumerate() {
            let blob = format!(
                "http://{}/v2/{}/blobs/{digest}",
                world.mirror(host),
                world.name()
            );
            let began = Instant::now();
            let (status, bytes, broken) = world.runtime.block_on(read(blob, None));
            *took = began.elapsed();
            assert!(
                status == StatusCode::OK && !broken && bytes == good,
                "{status}"
            );
        }
        println!(
            "{size} bytes: {:?} from the registry, {:?} with a peer that has them",
            took[0], took[1]
        );
        slowest = slowest.max(took[1]);
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    // from the peer, not from the registry once more
    let blobs = world.registry.counters().blobs;
    let samples = 500 + 512 + 512;
    assert!(
        blobs
            .values()
            .all(|blob| blob.bytes <= (20 << 20) + samples)
    );
    assert_eq!(world.served(), 500 + (1 << 20) + (20 << 20) + samples);
}

/// A local user names a registry of his own, which says that it has whatever it is asked for.
#[test]
fn who_runs_a_registry_and_knows_a_digest_gets_nothing_of_others() {
    let elsewhere = runtime();
    let start = || elsewhere.block_on(Registry::start(registry::Options::default()));
    let (evil, second) = (start().unwrap(), start().unwrap());
    let world = World::beside(
        &[&evil, &second],
        2,
        &spec(8, 8),
        registry::Options::default(),
        "",
    );
    let bytes = |seed: u32| -> Bytes {
        let words = (0u32..).flat_map(|at| at.wrapping_mul(0x9e37_79b9 ^ seed).to_le_bytes());
        words.take(5 << 20).collect::<Vec<u8>>().into()
    };
    let (good, invented) = (bytes(0), bytes(2));
    let digest = world.registry.put_blob(good.clone()).unwrap();
    evil.put_blob_as(digest, invented.clone()).unwrap();
    let get = |host: usize, registry: SocketAddr, range: Option<&str>| {
        let mirror = world.mirror(host);
        let blob = format!("http://{mirror}/v2/{registry}/some/thing/blobs/{digest}");
        world.runtime.block_on(read(blob, range))
    };
    let own = |host: usize| {
        let (mirror, name) = (world.mirror(host), world.name());
        let blob = format!("http://{mirror}/v2/{name}/blobs/{digest}");
        let (status, bytes, broken) = world.runtime.block_on(read(blob, None));
        assert!(
            status == StatusCode::OK && !broken && bytes == good,
            "{status}"
        );
    };
    own(0);
    // what the one host has in its cache, and the other one gets from a peer
    for host in [0, 1, 0, 1] {
        for range in [None, Some("bytes=2097152-2097999")] {
            let (status, bytes, broken) = get(host, evil.addr(), range);
            println!("host {host}, {range:?}: {status}, {} bytes", bytes.len());
            assert!(status != StatusCode::OK || broken, "{status}");
            // the registry's own bytes may leave, as without a mirror
            let from = range.map_or(0, |_| 2 << 20);
            assert!(bytes == invented[from..from + bytes.len()] || status.is_client_error());
        }
    }
    own(1);
    // a registry that has it costs a sample, once for each host
    second.put_blob(good.clone()).unwrap();
    for host in [0, 1, 0, 1] {
        let (status, bytes, broken) = get(host, second.addr(), None);
        assert!(
            status == StatusCode::OK && !broken && bytes == good,
            "{status}"
        );
    }
    assert_eq!(second.counters().blobs[&digest].bytes, 2 * 512);
}

#[test]
fn a_peer_whose_bytes_went_bad_is_found_out_before_any_leaves() {
    use std::os::unix::fs::FileExt as _;

    let mut world = World::new(2, &spec(8, 8), registry::Options::default(), "");
    let words = (0u32..).flat_map(|at| at.wrapping_mul(0x9e37_79b9).to_le_bytes());
    let good: Bytes = words.take(24 << 20).collect::<Vec<u8>>().into();
    let digest = world.registry.put_blob(good.clone()).unwrap();
    let whole = |world: &World, host| {
        let (mirror, name) = (world.mirror(host), world.name());
        let blob = format!("http://{mirror}/v2/{name}/blobs/{digest}");
        let (status, bytes, broken) = world.runtime.block_on(read(blob, None));
        assert!(
            status == StatusCode::OK && !broken && bytes == good,
            "{status}"
        );
    };
    whole(&world, 0);
    // what it has in memory is true still
    world.cluster.kill_agent(0).unwrap();
    let kept = world.cluster.agents()[0]
        .dir
        .join(format!("state/mirror/whole/{}", digest.hex()));
    let file = std::fs::File::options().write(true).open(kept).unwrap();
    for chunk in 0..24 {
        let at = (chunk << 20) + 7;
        file.write_all_at(&[!good[at]], at as u64).unwrap();
    }
    world.cluster.start_agent(0).unwrap();
    whole(&world, 1);
    let by_the_other = says(
        &world.cluster,
        1,
        "peer sent a chunk that doesn't fit its link",
    );
    let by_itself = "a blob of the mirror changed on disk since it was verified; dropping it";
    assert!(by_the_other || says(&world.cluster, 0, by_itself));
}
