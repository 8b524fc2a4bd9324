//! Registries that say no, or nothing, for a while: what one client was told is no answer to the next.

use super::*;

#[test]
fn a_refusal_is_for_whoever_was_refused_and_not_for_the_next_client() {
    let world = World::small();
    let (digest, size) = world.image.largest_blob();
    let good = world.image.blob(&digest).unwrap();
    let blob = world.blob(0, &digest);
    world.run(async {
        // so that the blob's size is known from here on
        let head = ask(Method::HEAD, &blob, &[]).await;
        assert_eq!(head.header("content-length"), size.to_string());
        for (status, told) in [
            (404, StatusCode::NOT_FOUND),
            (403, StatusCode::FORBIDDEN),
            // nobody can tell the client what else to bring
            (401, StatusCode::FORBIDDEN),
        ] {
            let refusal = Misbehaviour::status(status);
            let fault = Fault::always(Target::Blob(digest), refusal);
            let fault = world.site.registry.script(fault);
            for _ in 0..2 {
                let (answered, bytes, broken) = read(&blob, None).await;
                assert!(answered == told && !broken, "{status}: {answered}");
                assert!(bytes.len() < good.len());
            }
            assert!(world.site.registry.clear(fault) > 0);
        }
        assert!(whole(&blob).await == good);
    });
}

#[test]
fn a_client_gets_a_blob_whatever_the_registry_says_to_head() {
    let world = World::small();
    let refused = |status| Misbehaviour::status(status);
    let faults = [
        refused(403),
        refused(405),
        refused(503),
        Misbehaviour::Chunked,
    ];
    for (at, what) in (0u8..).zip(faults) {
        let good = Bytes::from(vec![at; 3 << 20]);
        let digest = world.put(&good);
        let fault = Fault::always(Target::BlobHead(digest), what.clone());
        let fault = world.site.registry.script(fault);
        let blob = world.blob(0, &digest);
        world.run(async {
            // as tart does: HEAD first, for the size
            let head = ask(Method::HEAD, &blob, &[]).await;
            assert_eq!(head.status, StatusCode::OK, "{what:?}");
            assert_eq!(head.header("content-length"), good.len().to_string());
            assert!(whole(&blob).await == good, "{what:?}");
        });
        assert!(world.site.registry.clear(fault) > 0, "{what:?}");
    }
}

#[test]
fn an_outage_that_outlasts_a_fetch_is_waited_out() {
    let mut world = World::new(1, &ImageSpec::plain(16, 8));
    world.site.registry.limit_each(Some(1 << 20));
    let (client, name) = (world.client(0), world.name());
    let World { cluster, site, .. } = &mut world;
    let registry = &mut site.registry;
    let pulled = site.runtime.block_on(async {
        let mut pulls = JoinSet::new();
        pulls.spawn(async move { client.pull(&name, "1").await });
        while registry.counters().bytes < 2 << 20 {
            tokio::task::yield_now().await;
        }
        registry.go_down().await;
        registry.limit_each(None);
        // the lease was taken back, as the registry is left alone, and then the host tried by itself
        let alone = "nothing comes of a blob that a client wants; fetching it without a lease";
        assert!(wait_until(PATIENCE, || cluster.agents()[0].logged(alone)));
        registry.come_back().await;
        pulls.join_next().await.unwrap().unwrap().unwrap()
    });
    world.check(&pulled);
}

#[test]
fn a_registry_that_wants_to_be_left_alone_for_long_is_and_its_client_waits() {
    let settings = "[mirror]\nlisten = '127.0.0.1:0'\nbreak_after_seconds = 3\n";
    let world = World::set(settings);
    let throttled = Misbehaviour::come_back(429, "3600");
    let fault = Fault::always(Target::Everything, throttled);
    world.site.registry.script(fault);
    let manifest = world.at(0, "manifests/1");
    let began = Instant::now();
    let (_, _, broken) = world.run(read(&manifest, None));
    // the client comes again at once, and only so often
    assert!(broken && began.elapsed() >= Duration::from_secs(3));
    assert!(world.site.registry.counters().manifest_requests <= 2);
}

#[test]
fn a_client_that_can_fall_back_stays_while_the_blob_arrives() {
    let settings = "[mirror]\nlisten = '127.0.0.1:0'\nstall_seconds = 3\n";
    let options = registry::Options::default();
    let world = World::of(2, &ImageSpec::plain(16, 16), options, settings);
    world.site.registry.limit_each(Some(768 << 10));
    let (digest, size) = world.image.largest_blob();
    let good = world.image.blob(&digest).unwrap();
    // the host that isn't leased it gets all of it from the other one, and its client's first byte comes after the last
    assert!(size > 4 << 20, "{size}");
    let origin = world.site.registry.addr();
    let blobs: Vec<_> = (0..2)
        .map(|host| {
            let mirror = world.mirror(host);
            format!("http://{mirror}/v2/{NAME}/blobs/{digest}?ns={origin}")
        })
        .collect();
    let both = world.run(async {
        let mut readers = JoinSet::new();
        for blob in blobs {
            readers.spawn(async move { whole(&blob).await });
        }
        readers.join_all().await
    });
    for bytes in both {
        assert!(bytes == good);
    }
    // with the sample that shows the other host that the registry has what a peer brought
    assert_eq!(world.site.served(), size + 512);
}

#[test]
fn a_client_waits_for_an_answer_that_does_not_come_as_long_as_is_said() {
    let settings = "[mirror]\nlisten = '127.0.0.1:0'\nstall_seconds = 1\nbreak_after_seconds = 2\n";
    let world = World::set(settings);
    // longer than the registry's client would bear itself
    let silent = Fault::always(Target::Everything, Misbehaviour::Silence);
    world.site.registry.script(silent);
    let (mirror, origin) = (world.mirror(0), world.site.registry.addr());
    for (path, breaks, seconds) in [
        (format!("{NAME}/manifests/1?ns={origin}"), false, 1),
        (format!("{origin}/{NAME}/manifests/1"), true, 2),
    ] {
        let began = Instant::now();
        let uri = format!("http://{mirror}/v2/{path}");
        let (status, _, broken) = world.run(read(&uri, None));
        let took = began.elapsed();
        assert!(broken == breaks, "{path}: {status}");
        assert!(
            broken || status == StatusCode::NOT_FOUND,
            "{path}: {status}"
        );
        let within = Duration::from_secs(seconds)..Duration::from_secs(seconds + 3);
        assert!(within.contains(&took), "{path}: {took:?}");
    }
}

#[test]
fn a_blob_that_was_evicted_a_moment_ago_is_fetched_again() {
    let settings = "[mirror]\nlisten = '127.0.0.1:0'\ncache_bytes = 9437184\n";
    let world = World::set(settings);
    let put = |seed: u32| {
        let bytes = noise(seed, 6 << 20);
        let blob = world.blob(0, &world.put(&bytes));
        (bytes, blob)
    };
    let (one, other) = (put(1), put(2));
    // the cache has room for one of them
    for (good, blob) in [&one, &other, &one, &other] {
        let within = Duration::from_secs(5);
        let pulled = world.run(async { tokio::time::timeout(within, whole(blob)).await.unwrap() });
        assert!(pulled == *good);
    }
    assert_eq!(world.site.served(), 4 * (6 << 20));
}

#[test]
fn an_agent_whose_cache_cant_be_used_goes_on_without_a_mirror() {
    let settings = "[mirror]\nlisten = '127.0.0.1:0'\ndirectory = '/dev/null/mirror'\n";
    let world = World::set(settings);
    let without =
        "the mirror's cache can't be used; running without a mirror: look at mirror.directory";
    let agent = &world.cluster.agents()[0];
    assert!(agent.logged(without));
    assert_eq!(agent.mirror(), None);
    let reference = world.site.registry.reference(NAME, "1").to_string();
    world.cluster.stage(&[&reference]).unwrap();
    let digest = world.image.digest.to_string();
    world.cluster.wait_present(&digest, PATIENCE).unwrap();
}

#[test]
fn a_registry_that_breaks_off_throttles_and_goes_away_costs_clients_nothing() {
    let mut world = World::new(2, &ImageSpec::plain(32, 8));
    let throttled = Misbehaviour::come_back(429, "1");
    let failing = Misbehaviour::status(503);
    for fault in [
        Fault::times(Target::Blobs, Misbehaviour::CloseAfter(1_500_000), 3),
        Fault::times(Target::Blobs, Misbehaviour::Hangup, 2),
        Fault::times(Target::Blobs, throttled, 2),
        Fault::times(Target::Blobs, failing.clone(), 2),
        Fault::times(Target::Manifests, failing, 2),
    ] {
        world.site.registry.script(fault);
    }
    let (clients, name) = ([world.client(0), world.client(1)], world.name());
    let World { cluster, site, .. } = &mut world;
    let registry = &mut site.registry;
    let pulled = site.runtime.block_on(async {
        let mut pulls = JoinSet::new();
        for client in clients {
            let name = name.clone();
            pulls.spawn(async move { client.pull(&name, "1").await.unwrap() });
        }
        // it goes away amid the pull
        while registry.counters().bytes < 4 << 20 {
            tokio::task::yield_now().await;
        }
        registry.go_down().await;
        let trouble = "fetching from the registry has trouble; trying again";
        let noticed = || cluster.agents().iter().any(|agent| agent.logged(trouble));
        assert!(wait_until(PATIENCE, noticed));
        registry.come_back().await;
        pulls.join_all().await
    });
    for one in &pulled {
        world.check(one);
        println!("connections that broke: {}", one.breaks);
    }
}

#[test]
fn what_was_pulled_once_is_had_while_the_registry_is_away() {
    let mut world = World::small();
    let (client, name) = (world.client(0), world.name());
    world.run(client.pull(&name, "1")).unwrap();
    world.site.down();
    let pulled = world.run(client.pull(&name, "1")).unwrap();
    world.check(&pulled);
    // what the tag names may have changed since: the client and the log are told
    let tag = world.run(get(&world.at(0, "manifests/1")));
    let by_digest = world.at(0, &format!("manifests/{}", world.image.digest));
    let digest = world.run(get(&by_digest));
    assert!(
        tag.header("warning")
            .starts_with("110 parbake \"the registry is away")
    );
    assert!(tag.header("age").parse::<u64>().unwrap() < PATIENCE.as_secs());
    assert_eq!((digest.header("warning"), digest.header("age")), ("", ""));
    let log = world.cluster.agents()[0].log();
    let told = log.iter().filter(|line| {
        line["message"] == "a tag is answered as it was before its registry went away"
    });
    assert_eq!(told.count(), 1);
    // nobody vouches for another client, and nothing is made up for it
    let stranger = world.run(async {
        let manifest = world.at(0, "manifests/1");
        let headers = [("authorization", "Bearer other")];
        let ask = ask(Method::GET, &manifest, &headers);
        tokio::time::timeout(Duration::from_secs(2), ask)
            .await
            .is_err()
    });
    assert!(stranger);
}
