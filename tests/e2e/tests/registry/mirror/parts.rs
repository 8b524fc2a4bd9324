//! Parts of blobs that clients ask for, of blobs that arrive and of blobs that are whole.

use proptest::{prelude::*, test_runner::TestRunner};

use super::*;

#[test]
fn parts_that_many_ask_for_at_once_are_parts() {
    let world = World::small();
    world.site.registry.limit_each(Some(4 << 20));
    let good = noise(2, (12 << 20) + 77);
    let blob = world.blob(0, &world.put(&good));
    world.run(async {
        // of a blob that arrives, and of the same when it is whole
        for _ in 0..2 {
            let mut parts = JoinSet::new();
            for start in [0, 5, 1 << 20, (3 << 20) - 1, 12 << 20, (12 << 20) + 76] {
                let (blob, good) = (blob.clone(), good.clone());
                parts.spawn(async move {
                    let range = format!("bytes={start}-");
                    assert!(part(&blob, &range).await == good[start..], "{range}");
                });
            }
            parts.join_all().await;
        }
    });
}

/// Whatever part is asked for, of a blob that arrives and of one that is whole, is that part.
#[test]
fn any_range_is_that_part_of_the_blob() {
    let world = World::new(1, &ImageSpec::plain(16, 16));
    let (digest, size) = world.image.largest_blob();
    let good = world.image.blob(&digest).unwrap();
    let blob = world.blob(0, &digest);
    world.site.registry.limit_each(Some(12 << 20));
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let size = usize::try_from(size).unwrap();
    let ran = runner.run(&(0..size, 0..size + 10, 0..3u8), |(a, b, form)| {
        let (range, start, end) = match form {
            0 => (format!("bytes={a}-"), a, size),
            1 => (format!("bytes=-{}", a + 1), size - a - 1, size),
            _ => {
                let last = a + (b % (3 << 20));
                (format!("bytes={a}-{last}"), a, (last + 1).min(size))
            }
        };
        let (status, bytes, broken) = world.run(read(&blob, Some(&range)));
        prop_assert!(
            status == StatusCode::PARTIAL_CONTENT && !broken,
            "{range}: {status}"
        );
        prop_assert!(bytes == good[start..end], "{range}");
        Ok(())
    });
    ran.unwrap();
}
