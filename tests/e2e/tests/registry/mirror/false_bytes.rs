//! Bytes that aren't the blob's, from the registry or from a peer: no client ever has them as a whole blob.

use std::os::unix::fs::FileExt as _;

use super::*;

#[test]
fn false_bytes_never_make_a_whole_blob_not_even_by_resuming() {
    let world = World::new(1, &ImageSpec::plain(16, 16));
    let (layer, size) = world.image.largest_blob();
    assert!(size > 4 << 20);
    let unnamed = noise(1, (12 << 20) + 77);
    // so slow that the first bytes have left long before the last ones tell that they are false
    world.site.registry.limit_each(Some(4 << 20));
    for (digest, good) in [
        (layer, world.image.blob(&layer).unwrap()),
        (world.put(&unnamed), unnamed),
    ] {
        let fault = Fault::once(Target::Blob(digest), Misbehaviour::CorruptAt(1000));
        world.site.registry.script(fault);
        let blob = world.blob(0, &digest);
        world.run(async {
            let (status, bytes, broken) = read(&blob, None).await;
            assert!(status == StatusCode::OK && broken, "{status} {broken}");
            assert!(!bytes.is_empty() && bytes.len() < good.len());
            assert!(bytes[..1001] != good[..1001]);
            let rest = format!("bytes={}-", bytes.len());
            let resumed = read(&blob, Some(&rest)).await;
            assert_eq!(resumed.0, StatusCode::RANGE_NOT_SATISFIABLE);
            assert!(whole(&blob).await == good);
            // still: somebody may hold the false half
            let late = read(&blob, Some("bytes=2000-")).await;
            assert_eq!(late.0, StatusCode::RANGE_NOT_SATISFIABLE);
        });
    }
}

#[test]
fn a_blob_that_is_always_false_is_never_had_whole() {
    let world = World::small();
    let (digest, size) = world.image.largest_blob();
    let fault = Fault::always(Target::Blob(digest), Misbehaviour::CorruptAt(size / 2));
    world.site.registry.script(fault);
    world.run(async {
        let error = world.client(0).pull(&world.name(), "1").await.unwrap_err();
        println!("{error}");
        let (status, bytes, broken) = read(&world.blob(0, &digest), None).await;
        assert!(status == StatusCode::NOT_FOUND || broken, "{status}");
        assert!((bytes.len() as u64) < size);
    });
}

#[test]
fn a_peer_whose_bytes_went_bad_is_found_out_before_any_leaves() {
    let mut world = World::new(2, &ImageSpec::plain(8, 8));
    let good = noise(0, 24 << 20);
    let digest = world.put(&good);
    assert!(world.run(whole(&world.blob(0, &digest))) == good);
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
    assert!(world.run(whole(&world.blob(1, &digest))) == good);
    let by_the_other = "peer sent a chunk that doesn't fit its link";
    let by_itself = "a blob of the mirror changed on disk since it was verified; dropping it";
    let [one, other] = world.cluster.agents() else {
        panic!("two hosts");
    };
    assert!(other.logged(by_the_other) || one.logged(by_itself));
}
