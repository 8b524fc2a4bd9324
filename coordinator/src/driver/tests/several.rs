//! Tests of several images on one host: the host is told their order.

use super::*;

fn digest(seed: &str) -> Digest {
    want(seed, 1, 1 << 20).digest()
}

/// The orders among images that a host was sent since the last call.
fn sequences(orders: &mut Receiver<Arc<message::Order>>) -> Vec<Vec<Digest>> {
    let told = taken(orders, |kind| match kind {
        Kind::Sequence(order) => Some(order.manifest_digests.clone()),
        _ => None,
    });
    let parse = |image: Vec<u8>| Digest::try_from(image.as_slice()).unwrap();
    let told = told.into_iter();
    told.map(|told| told.into_iter().map(parse).collect())
        .collect()
}

#[test]
fn a_host_is_told_the_order_of_its_images_and_a_new_one_when_a_priority_changes() {
    let mut world = World::new();
    let (_, mut orders) = world.open("mini-1", World::hello());
    let asked = |seed: &str, priority| Want {
        priority,
        ..want(seed, 1, 1 << 20)
    };
    let (one, two) = (digest("one"), digest("two"));
    world.stage_want(asked("one", None)).unwrap();
    assert_eq!(sequences(&mut orders), [] as [Vec<Digest>; 0], "one image");
    world.stage_want(asked("two", None)).unwrap();
    assert_eq!(sequences(&mut orders).last(), Some(&vec![one, two]));
    world.stage_want(asked("two", Some(4))).unwrap();
    assert_eq!(sequences(&mut orders).last(), Some(&vec![two, one]));
    // asking again without a priority changes nothing
    world.stage_want(asked("two", None)).unwrap();
    assert_eq!(sequences(&mut orders), [] as [Vec<Digest>; 0]);
    // a new session hears all again, and a restart forgets no priority
    let (_, mut orders) = world.open("mini-1", World::hello());
    assert_eq!(sequences(&mut orders).last(), Some(&vec![two, one]));
    let kept = world.driver.staging.images().asked(&two).unwrap();
    assert_eq!(kept.priority, Some(4));
}
