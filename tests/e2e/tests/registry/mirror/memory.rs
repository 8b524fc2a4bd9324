//! How much memory an agent needs while many clients read.

use super::*;

/// The most that an agent may need.
const MOST_BYTES: u64 = 200 << 20;

/// What a client gets that keeps nothing: the digest of all bytes, and how many there are.
async fn hashed(uri: String) -> (Digest, usize) {
    let response = request(Method::GET, &uri, &[]).await.unwrap();
    let mut body = response.into_body();
    let (mut hash, mut length) = (sha2::Sha256::default(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.unwrap();
        let data = frame.data_ref().unwrap();
        sha2::Digest::update(&mut hash, data);
        length += data.len();
    }
    let found = sha2::Digest::finalize(hash);
    (Digest::try_from(&found[..]).unwrap(), length)
}

/// Clients read these blobs at once, one each.
fn read_all(world: &World, blobs: Vec<(Digest, usize)>) {
    world.run(async {
        let mut readers = JoinSet::new();
        for blob in blobs {
            let found = hashed(world.blob(0, &blob.0));
            readers.spawn(async move { assert_eq!(found.await, blob) });
        }
        readers.join_all().await;
    });
    let peak = world.cluster.agents()[0].peak_rss();
    println!("peak memory: {} MiB", peak >> 20);
    assert!(peak <= MOST_BYTES, "{peak}");
}

#[test]
fn sixty_four_clients_at_once_fit_into_memory() {
    let world = World::small();
    let bytes = noise(0, 64 << 20);
    let blob = (world.put(&bytes), bytes.len());
    read_all(&world, vec![blob; 64]);
    assert_eq!(world.sent(&blob.0), bytes.len() as u64);
}

/// Both ways out at once, more bytes than the agent may have memory, and as many blobs as clients.
#[test]
fn sixty_four_blobs_and_one_that_is_larger_than_memory_fit() {
    let world = World::small();
    let put = |seed: u32, bytes: usize| (world.put(&noise(seed, bytes)), bytes);
    let small = (0..64u32).map(|seed| put(seed, (4 << 20) + seed as usize));
    let blobs = std::iter::once(put(99, 320 << 20)).chain(small);
    read_all(&world, blobs.collect());
}
