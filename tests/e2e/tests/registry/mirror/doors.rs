//! The ways into a mirror that tart doesn't take: TLS, and requests for parts from many clients at once.

use origin::{Client, Config, Credentials, OriginError, Reference};
use proto::Digest;

use super::*;

fn noise(seed: u32, bytes: usize) -> Bytes {
    let words = (0u32..).flat_map(|at| {
        at.wrapping_mul(0x9e37_79b9)
            .wrapping_add(seed)
            .to_le_bytes()
    });
    words.take(bytes).collect::<Vec<u8>>().into()
}

#[test]
fn parts_are_parts_and_false_bytes_make_nothing_whole() {
    let world = World::new(1, &spec(8, 8), registry::Options::default(), "");
    let good = noise(1, (12 << 20) + 77);
    let digest = world.registry.put_blob(good.clone()).unwrap();
    let (mirror, name) = (world.mirror(0), world.name());
    let blob = format!("http://{mirror}/v2/{name}/blobs/{digest}");
    world.registry.limit_each(Some(4 << 20));
    let fault = Fault::once(Target::Blob(digest), Misbehaviour::CorruptAt(1000));
    world.registry.script(fault);
    world.runtime.block_on(async {
        let (status, bytes, broken) = read_with(blob.clone(), &[]).await;
        assert!(status == StatusCode::OK && broken, "{status} {broken}");
        assert!(!bytes.is_empty() && bytes.len() < good.len());
        let rest = format!("bytes={}-", bytes.len());
        let resumed = read_with(blob.clone(), &[("range", &rest)]).await;
        assert_eq!(resumed.0, StatusCode::RANGE_NOT_SATISFIABLE);
        let (status, bytes, broken) = read_with(blob, &[]).await;
        assert!(status == StatusCode::OK && !broken && bytes == good);

        // of a blob that arrives, and of the same when it is whole
        let good = noise(2, (12 << 20) + 77);
        let digest = world.registry.put_blob(good.clone()).unwrap();
        let blob = format!("http://{mirror}/v2/{name}/blobs/{digest}");
        for _ in 0..2 {
            let mut parts = JoinSet::new();
            for start in [0, 5, 1 << 20, (3 << 20) - 1, 12 << 20, (12 << 20) + 76] {
                let (blob, good) = (blob.clone(), good.clone());
                parts.spawn(async move {
                    let range = format!("bytes={start}-");
                    let (status, bytes, broken) = read_with(blob, &[("range", &range)]).await;
                    assert_eq!((status, broken), (StatusCode::PARTIAL_CONTENT, false));
                    assert!(bytes == good[start..], "{range}");
                });
            }
            parts.join_all().await;
        }
    });
}

/// Both ways out at once, more bytes than the agent may have memory, and as many blobs as clients.
#[test]
fn sixty_four_blobs_and_one_that_is_larger_than_memory_fit() {
    let world = World::new(1, &spec(8, 8), registry::Options::default(), "");
    let (mirror, name) = (world.mirror(0), world.name());
    let blob = |digest: Digest| format!("http://{mirror}/v2/{name}/blobs/{digest}");
    let large = noise(99, 320 << 20);
    let mut wanted = vec![(world.registry.put_blob(large.clone()).unwrap(), large.len())];
    drop(large);
    for seed in 0..64 {
        let bytes = noise(seed, (4 << 20) + seed as usize);
        let length = bytes.len();
        wanted.push((world.registry.put_blob(bytes).unwrap(), length));
    }
    world.runtime.block_on(async {
        let mut readers = JoinSet::new();
        for (digest, length) in wanted {
            let blob = blob(digest);
            readers.spawn(async move {
                let http = legacy::Client::builder(TokioExecutor::new()).build_http();
                let request = Request::get(blob);
                let request = request.body(Empty::<Bytes>::new()).unwrap();
                let mut body = http.request(request).await.unwrap().into_body();
                let (mut hash, mut read) = (sha2::Sha256::default(), 0);
                while let Some(frame) = body.frame().await {
                    let frame = frame.unwrap();
                    let data = frame.data_ref().unwrap();
                    sha2::Digest::update(&mut hash, data);
                    read += data.len();
                }
                assert_eq!(read, length);
                assert_eq!(sha2::Digest::finalize(hash)[..], digest.as_bytes()[..]);
            });
        }
        readers.join_all().await;
    });
    let peak = world.cluster.agents()[0].peak_rss();
    println!("peak memory: {} MiB", peak >> 20);
    assert!(peak <= 200 << 20, "{peak}");
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
    let world = World::new(1, &spec(8, 8), registry::Options::default(), &settings);
    let client = Client::new(Config {
        extra_roots: vec![made.cert.der().clone()],
        ..Config::default()
    })
    .unwrap();
    let (port, origin) = (world.mirror(0).port(), world.registry.addr());
    let reference: Reference = format!(
        "localhost:{port}/{}_{}/{NAME}:1",
        origin.ip(),
        origin.port()
    )
    .parse()
    .unwrap();
    world.runtime.block_on(async {
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
        let plain = ask_once(format!("http://127.0.0.1:{port}/v2/")).await;
        assert_eq!(plain, None, "nothing is said without TLS");
    });
}

/// The status of an answer, where there is one.
async fn ask_once(uri: String) -> Option<StatusCode> {
    let http = legacy::Client::builder(TokioExecutor::new()).build_http();
    let request = Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
    let answer = tokio::time::timeout(PATIENCE, http.request(request)).await;
    Some(answer.ok()?.ok()?.status())
}
