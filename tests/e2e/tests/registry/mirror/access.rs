//! Who gets what from a mirror: what the registry gives a client, or the mirror's own token, and nothing beyond.

use origin::{Client, Config, Credentials, OriginError};
use proto::{RegistryReference, image::MANIFEST_TYPE};
use serde_json::json;

use super::*;

/// Whoever brings nothing, or what is wrong, gets nothing.
async fn refuses_strangers(uri: &str) {
    for headers in [
        &[][..],
        &[("authorization", "Bearer wrong")],
        &[("authorization", "Basic bWFjOndyb25n")],
    ] {
        for method in [Method::GET, Method::HEAD] {
            let answer = ask(method, uri, headers).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{uri} {headers:?}");
            assert!(!answer.header("www-authenticate").is_empty());
        }
    }
}

#[test]
fn private_images_are_for_those_whom_the_registry_accepts() {
    let account = ("mac".to_owned(), "hunter2-hunter2".to_owned());
    let basic = registry::Auth::Basic {
        user: account.0.clone(),
        password: account.1.clone(),
    };
    let bearer = registry::Auth::Bearer {
        account: Some(account.clone()),
        life: Duration::from_secs(60),
        announced: None,
    };
    for auth in [basic, bearer] {
        let options = registry::Options {
            auth,
            ..registry::Options::default()
        };
        let world = World::of(1, &ImageSpec::plain(8, 8), options, "");
        let name = world.name();
        world.run(async {
            let client = world.client(0).with_account(&account.0, &account.1);
            let pulled = client.pull(&name, "1").await.unwrap();
            world.check(&pulled);
            let sent = world.site.served();
            // all of it is here now, and still nobody else gets it
            for path in [
                "manifests/1".to_owned(),
                format!("manifests/{}", world.image.digest),
                format!("blobs/{}", world.image.largest_blob().0),
            ] {
                refuses_strangers(&world.at(0, &path)).await;
            }
            let wrong = world.client(0).with_account(&account.0, "wrong");
            assert!(wrong.pull(&name, "1").await.is_err());
            world.check(&client.pull(&name, "1").await.unwrap());
            assert_eq!(world.site.served(), sent);
        });
        let log = std::fs::read_to_string(world.cluster.agents()[0].dir.join("log")).unwrap();
        assert!(!log.contains(&account.1) && !log.contains("Bearer ") && !log.contains("Basic "));
    }
}

#[test]
fn a_mirror_with_a_token_answers_nobody_without_it_and_counts_what_it_does() {
    let secrets = tempfile::tempdir().unwrap();
    let token = secrets.path().join("token");
    std::fs::write(&token, "open-sesame\n").unwrap();
    let settings = format!(
        "[mirror]\nlisten = '127.0.0.1:0'\ntoken_file = '{}'\n",
        token.display()
    );
    let world = World::set(&settings);
    let admin = world.cluster.agents()[0].admin();
    world.run(async {
        let manifest = world.at(0, "manifests/1");
        for headers in [
            &[][..],
            &[("authorization", "Bearer open")],
            &[("authorization", "Basic bm9ib2R5Om9wZW4=")],
        ] {
            let answer = ask(Method::GET, &manifest, headers).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
            assert!(answer.header("www-authenticate").starts_with("Basic "));
        }
        let bearer = [("authorization", "Bearer open-sesame")];
        let answer = ask(Method::GET, &manifest, &bearer).await;
        assert_eq!(answer.status, StatusCode::OK);
        let client = world.client(0).with_account("anybody", "open-sesame");
        world.check(&client.pull(&world.name(), "1").await.unwrap());
        let metrics = get(&format!("http://{admin}/metrics")).await;
        let metrics = String::from_utf8(metrics.body.to_vec()).unwrap();
        for line in [
            "mirror_requests_total{what=\"manifest\",result=\"denied\"} ",
            "mirror_requests_total{what=\"blob\",result=\"ok\"} ",
            "mirror_blobs_total{outcome=\"miss\"} ",
            "mirror_first_byte_seconds_count ",
        ] {
            assert!(metrics.contains(line), "{line}: {metrics}");
        }
    });
    let log = std::fs::read_to_string(world.cluster.agents()[0].dir.join("log")).unwrap();
    assert!(!log.contains("sesame"));
}

#[test]
fn a_mirror_behind_tls_serves_those_who_know_its_token() {
    let secrets = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let at = |name: &str| secrets.path().join(name);
    std::fs::write(at("certificate"), made.cert.pem()).unwrap();
    std::fs::write(at("key"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(at("token"), "open-sesame").unwrap();
    let settings = format!(
        "[mirror]\nlisten = '127.0.0.1:0'\ntls_certificate = '{}'\ntls_key = '{}'\ntoken_file = '{}'\n",
        at("certificate").display(),
        at("key").display(),
        at("token").display(),
    );
    let world = World::set(&settings);
    let client = Client::new(Config {
        extra_roots: vec![made.cert.der().clone()],
        ..Config::default()
    })
    .unwrap();
    let (port, origin) = (world.mirror(0).port(), world.site.registry.addr());
    let reference: RegistryReference = format!(
        "localhost:{port}/{}_{}/{NAME}:1",
        origin.ip(),
        origin.port()
    )
    .parse()
    .unwrap();
    world.run(async {
        let stranger = client
            .repository(&reference, Credentials::Anonymous)
            .unwrap();
        let refused = stranger.manifest(stranger.version()).await;
        assert!(
            matches!(refused, Err(OriginError::Unauthorised { .. })),
            "{refused:?}"
        );
        let friend = Credentials::Basic {
            user: "anybody".into(),
            password: "open-sesame".into(),
        };
        let friend = client.repository(&reference, friend).unwrap();
        let manifest = friend.manifest(friend.version()).await.unwrap();
        assert_eq!(manifest.bytes, world.image.manifest);
        for (digest, size) in &world.image.blobs {
            let mut stream = friend.blob(digest, 0, *size).await.unwrap();
            let mut bytes = Vec::new();
            while let Some(piece) = stream.piece().await.unwrap() {
                bytes.extend_from_slice(&piece);
            }
            assert!(bytes == world.image.blob(digest).unwrap(), "{digest}");
        }
        // nothing is said without TLS
        let plain = format!("http://127.0.0.1:{port}/v2/");
        let plain = tokio::time::timeout(PATIENCE, request(Method::GET, &plain, &[]));
        assert!(plain.await.is_ok_and(|answer| answer.is_err()));
    });
}

/// A local user names a registry of his own, which says that it has whatever it is asked for.
#[test]
fn who_runs_a_registry_and_knows_a_digest_gets_nothing_of_others() {
    let elsewhere = site::runtime().unwrap();
    let start = || elsewhere.block_on(Registry::start(registry::Options::default()));
    let (evil, second) = (start().unwrap(), start().unwrap());
    let (spec, options) = (ImageSpec::plain(8, 8), registry::Options::default());
    let world = World::beside(&[&evil, &second], 2, &spec, options, "");
    let (good, invented) = (noise(0, 5 << 20), noise(2, 5 << 20));
    let digest = world.put(&good);
    evil.put_blob_as(digest, invented.clone()).unwrap();
    let blob = |host: usize, registry: &Registry| {
        let (mirror, registry) = (world.mirror(host), registry.addr());
        format!("http://{mirror}/v2/{registry}/some/thing/blobs/{digest}")
    };
    let own = |host: usize| assert!(world.run(whole(&world.blob(host, &digest))) == good);
    own(0);
    // what the one host has in its cache, and the other one gets from a peer
    for host in [0, 1, 0, 1] {
        for range in [None, Some("bytes=2097152-2097999")] {
            let (status, bytes, broken) = world.run(read(&blob(host, &evil), range));
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
        assert!(world.run(whole(&blob(host, &second))) == good);
    }
    assert_eq!(second.counters().blobs[&digest].bytes, 2 * 512);
}

#[test]
fn what_a_manifest_claims_opens_nobody_elses_blob_and_poisons_no_size() {
    let world = World::small();
    let good = noise(3, 2 << 20);
    let digest = world.put(&good);
    // a manifest anybody may push: it lists the blob, of another size
    let manifest = json!({
        "schemaVersion": 2,
        "layers": [{"mediaType": "x/y", "digest": digest.to_string(), "size": 5}],
    });
    let (mirror, registry) = (world.mirror(0), &world.site.registry);
    let push = async |name: &str| {
        let manifest = manifest.to_string().into();
        registry.put_manifest(name, "1", MANIFEST_TYPE, manifest);
        let repository = format!("http://{mirror}/v2/{}/{name}", registry.addr());
        let answer = get(&format!("{repository}/manifests/1")).await;
        assert_eq!(answer.status, StatusCode::OK);
        format!("{repository}/blobs/{digest}")
    };
    world.run(async {
        let evil = push("evil/image").await;
        // a HEAD is answered from the manifest, a GET by the registry's word
        let head = ask(Method::HEAD, &evil, &[]).await;
        assert_eq!(head.header("content-length"), "5");
        for blob in [evil, world.blob(0, &digest)] {
            assert!(whole(&blob).await == good);
        }
        // it is here now, and the next repository that lists it doesn't have it
        let refusal = Misbehaviour::status(404);
        // a HEAD alone isn't believed: some registries refuse it where a GET is answered
        for target in [Target::BlobHead(digest), Target::Blob(digest)] {
            let fault = Fault::always(target, refusal.clone());
            registry.script(fault);
        }
        let (status, ..) = read(&push("evil/other").await, None).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    });
}
