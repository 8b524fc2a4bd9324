//! Registries that say no, or nothing, for a while: what one client was told is no answer to the next.

use super::*;

#[test]
fn a_refusal_is_for_whoever_was_refused_and_not_for_the_next_client() {
    let world = World::new(1, &spec(8, 8), registry::Options::default(), "");
    let (name, mirror) = (world.name(), world.mirror(0));
    let (digest, size) = world
        .image
        .blobs
        .iter()
        .max_by_key(|(_, size)| **size)
        .unwrap();
    let good = world.image.blob(digest).unwrap();
    let blob = format!("http://{mirror}/v2/{name}/blobs/{digest}");
    world.runtime.block_on(async {
        // so that the blob's size is known from here on
        let head = ask(Method::HEAD, blob.clone(), &[]).await;
        assert_eq!(head.header("content-length"), size.to_string());
        for (status, told) in [
            (404, StatusCode::NOT_FOUND),
            (403, StatusCode::FORBIDDEN),
            // nobody can tell the client what else to bring
            (401, StatusCode::FORBIDDEN),
        ] {
            let refusal = Misbehaviour::Status {
                status,
                retry_after: None,
            };
            let fault = world
                .registry
                .script(Fault::always(Target::Blob(*digest), refusal));
            for _ in 0..2 {
                let (answered, bytes, broken) = read(blob.clone(), None).await;
                assert!(answered == told && !broken, "{status}: {answered}");
                assert!(bytes.len() < good.len());
            }
            assert!(world.registry.clear(fault) > 0);
        }
        let (status, bytes, broken) = read(blob, None).await;
        assert!(
            status == StatusCode::OK && !broken && bytes == good,
            "{status}"
        );
    });
}

#[test]
fn a_client_gets_a_blob_whatever_the_registry_says_to_head() {
    let world = World::new(1, &spec(8, 8), registry::Options::default(), "");
    let (name, mirror) = (world.name(), world.mirror(0));
    let refused = |status| Misbehaviour::Status {
        status,
        retry_after: None,
    };
    let faults = [
        refused(403),
        refused(405),
        refused(503),
        Misbehaviour::Chunked,
    ];
    for (at, what) in (0u8..).zip(faults) {
        let good = Bytes::from(vec![at; 3 << 20]);
        let digest = world.registry.put_blob(good.clone()).unwrap();
        let fault = Fault::always(Target::BlobHead(digest), what.clone());
        let fault = world.registry.script(fault);
        let blob = format!("http://{mirror}/v2/{name}/blobs/{digest}");
        world.runtime.block_on(async {
            // as tart does: HEAD first, for the size
            let head = ask(Method::HEAD, blob.clone(), &[]).await;
            assert_eq!(head.status, StatusCode::OK, "{what:?}");
            assert_eq!(head.header("content-length"), good.len().to_string());
            let (status, bytes, broken) = read(blob, None).await;
            assert!(status == StatusCode::OK && !broken, "{what:?}: {status}");
            assert!(bytes == good, "{what:?}");
        });
        assert!(world.registry.clear(fault) > 0, "{what:?}");
    }
}

#[test]
fn an_outage_that_outlasts_a_fetch_is_waited_out() {
    let mut world = World::new(1, &spec(16, 8), registry::Options::default(), "");
    world.registry.limit_each(Some(1 << 20));
    let (client, name) = (world.client(0), world.name());
    let World {
        runtime,
        registry,
        cluster,
        ..
    } = &mut world;
    let pulled = runtime.block_on(async {
        let mut pulls = JoinSet::new();
        pulls.spawn(async move { client.pull(&name, "1").await });
        while registry.counters().bytes < 2 << 20 {
            tokio::task::yield_now().await;
        }
        registry.go_down().await;
        registry.limit_each(None);
        // the lease was taken back, as the registry is left alone, and then the host tried by itself
        let alone = "nothing comes of a blob that a client wants; fetching it without a lease";
        assert!(wait_until(PATIENCE, || says(cluster, 0, alone)));
        registry.come_back().await;
        pulls.join_next().await.unwrap().unwrap().unwrap()
    });
    world.check(&pulled);
}

#[test]
fn a_registry_that_wants_to_be_left_alone_for_long_is_and_its_client_waits() {
    let settings = "[mirror]\nlisten = '127.0.0.1:0'\nbreak_after_seconds = 3\n";
    let world = World::new(1, &spec(8, 8), registry::Options::default(), settings);
    let throttled = Misbehaviour::Status {
        status: 429,
        retry_after: Some("3600".into()),
    };
    world
        .registry
        .script(Fault::always(Target::Everything, throttled));
    let manifest = format!("http://{}/v2/{}/manifests/1", world.mirror(0), world.name());
    let began = Instant::now();
    let (_, _, broken) = world.runtime.block_on(read(manifest, None));
    // the client comes again at once, and only so often
    assert!(broken && began.elapsed() >= Duration::from_secs(3));
    assert!(world.registry.counters().manifest_requests <= 2);
}

#[test]
fn a_client_that_can_fall_back_stays_while_the_blob_arrives() {
    let settings = "[mirror]\nlisten = '127.0.0.1:0'\nstall_seconds = 3\n";
    let world = World::new(2, &spec(16, 16), registry::Options::default(), settings);
    world.registry.limit_each(Some(768 << 10));
    let (digest, size) = world
        .image
        .blobs
        .iter()
        .max_by_key(|(_, size)| **size)
        .unwrap();
    let good = world.image.blob(digest).unwrap();
    // the host that isn't leased it gets all of it from the other one, and its client's first byte comes after the last
    assert!(*size > 4 << 20, "{size}");
    let origin = world.registry.addr();
    let blobs: Vec<_> = (0..2)
        .map(|host| {
            let mirror = world.mirror(host);
            format!("http://{mirror}/v2/{NAME}/blobs/{digest}?ns={origin}")
        })
        .collect();
    let both = world.runtime.block_on(async {
        let mut readers = JoinSet::new();
        for blob in blobs {
            readers.spawn(read(blob, None));
        }
        readers.join_all().await
    });
    for (status, bytes, broken) in both {
        assert!(
            status == StatusCode::OK && !broken && bytes == good,
            "{status}"
        );
    }
    // with the sample that shows the other host that the registry has what a peer brought
    assert_eq!(world.served(), *size + 512);
}

#[test]
fn a_client_waits_for_an_answer_that_does_not_come_as_long_as_is_said() {
    let settings = "[mirror]\nlisten = '127.0.0.1:0'\nstall_seconds = 1\nbreak_after_seconds = 2\n";
    let world = World::new(1, &spec(8, 8), registry::Options::default(), settings);
    // longer than the registry's client would bear itself
    let silent = Fault::always(Target::Everything, Misbehaviour::Silence);
    world.registry.script(silent);
    let (mirror, origin) = (world.mirror(0), world.registry.addr());
    for (path, breaks, seconds) in [
        (format!("{NAME}/manifests/1?ns={origin}"), false, 1),
        (format!("{origin}/{NAME}/manifests/1"), true, 2),
    ] {
        let began = Instant::now();
        let answer = read(format!("http://{mirror}/v2/{path}"), None);
        let (status, _, broken) = world.runtime.block_on(answer);
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

/// A blob of this many MiB that is in the registry, and its address at the first host's mirror.
fn put(world: &World, seed: u8, mib: usize) -> (Bytes, String) {
    let words = (0u32..).flat_map(|at| at.wrapping_mul(0x9e37_79b9).to_le_bytes());
    let bytes: Vec<u8> = words.map(|byte| byte ^ seed).take(mib << 20).collect();
    let bytes = Bytes::from(bytes);
    let digest = world.registry.put_blob(bytes.clone()).unwrap();
    let (mirror, name) = (world.mirror(0), world.name());
    (bytes, format!("http://{mirror}/v2/{name}/blobs/{digest}"))
}

#[test]
fn a_blob_that_was_evicted_a_moment_ago_is_fetched_again() {
    let settings = "[mirror]\nlisten = '127.0.0.1:0'\ncache_bytes = 9437184\n";
    let world = World::new(1, &spec(8, 8), registry::Options::default(), settings);
    let (one, other) = (put(&world, 1, 6), put(&world, 2, 6));
    // the cache has room for one of them
    for (good, blob) in [&one, &other, &one, &other] {
        let pulled = world.runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(5), read(blob.clone(), None)).await
        });
        let (status, bytes, broken) = pulled.unwrap();
        assert!(
            status == StatusCode::OK && !broken && bytes == *good,
            "{status}"
        );
    }
    assert_eq!(world.served(), 4 * (6 << 20));
}

#[test]
fn an_agent_whose_cache_cant_be_used_goes_on_without_a_mirror() {
    let settings = "[mirror]\nlisten = '127.0.0.1:0'\ndirectory = '/dev/null/mirror'\n";
    let world = World::new(1, &spec(8, 8), registry::Options::default(), settings);
    let without =
        "the mirror's cache can't be used; running without a mirror: look at mirror.directory";
    assert!(says(&world.cluster, 0, without));
    assert_eq!(world.cluster.agents()[0].mirror(), None);
    let reference = world.registry.reference(NAME, "1").whole();
    let staged = world.cluster.parbake(&["stage", &reference]).unwrap();
    assert!(staged.status.success());
    let digest = world.image.digest.to_string();
    world.cluster.wait_present(&digest, PATIENCE).unwrap();
}

#[test]
fn what_a_manifest_claims_opens_nobody_elses_blob_and_poisons_no_size() {
    let world = World::new(1, &spec(8, 8), registry::Options::default(), "");
    let (good, blob) = put(&world, 3, 2);
    let digest = proto::Digest::of(&good);
    // a manifest anybody may push: it lists the blob, of another size
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "layers": [{"mediaType": "x/y", "digest": digest.to_string(), "size": 5}],
    });
    world.registry.put_manifest(
        "evil/image",
        "1",
        proto::image::MANIFEST_TYPE,
        manifest.to_string().into(),
    );
    let (mirror, origin) = (world.mirror(0), world.registry.addr());
    let evil = format!("http://{mirror}/v2/{origin}/evil/image");
    world.runtime.block_on(async {
        let answer = ask(Method::GET, format!("{evil}/manifests/1"), &[]).await;
        assert_eq!(answer.status, StatusCode::OK);
        // a HEAD is answered from the manifest, a GET by the registry's word
        let head = ask(Method::HEAD, format!("{evil}/blobs/{digest}"), &[]).await;
        assert_eq!(head.header("content-length"), "5");
        for blob in [format!("{evil}/blobs/{digest}"), blob.clone()] {
            let (status, bytes, broken) = read(blob, None).await;
            assert!(
                status == StatusCode::OK && !broken && bytes == good,
                "{status}"
            );
        }
        // it is here now, and the next repository that lists it doesn't have it
        let refusal = Misbehaviour::Status {
            status: 404,
            retry_after: None,
        };
        // a HEAD alone isn't believed: some registries refuse it where a GET is answered
        for target in [Target::BlobHead(digest), Target::Blob(digest)] {
            let fault = Fault::always(target, refusal.clone());
            world.registry.script(fault);
        }
        world.registry.put_manifest(
            "evil/other",
            "1",
            proto::image::MANIFEST_TYPE,
            manifest.to_string().into(),
        );
        let other = format!("http://{mirror}/v2/{origin}/evil/other");
        let answer = ask(Method::GET, format!("{other}/manifests/1"), &[]).await;
        assert_eq!(answer.status, StatusCode::OK);
        let (status, ..) = read(format!("{other}/blobs/{digest}"), None).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    });
}
