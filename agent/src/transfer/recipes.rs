//! Tests of chunks that travel by a recipe: what is believed, what is blamed, and how a false recipe is left.

use proto::{HostId, Source, State};

use super::{
    liars::{Host, World, take_packed},
    *,
};
use crate::{
    fetch::FetchEnd,
    shelf::{Arrival, Shelf},
    store::tests::{recipe, recipe_with},
};

const AT: ChunkIndex = ChunkIndex(1);

/// The host has the chunk, and nobody answers for its link.
fn hold(world: &World, host: &Host) {
    let me: HostId = "mac-1".parse().unwrap();
    let source = Source {
        sender: me.key(),
        maker: me.key(),
    };
    let arrival = Arrival {
        content: world.spec.digest,
        chunk: AT,
        bytes: world.bytes(AT),
        link: world.links()[1],
        source,
        maker: &me,
        statement: None,
    };
    host.shelf.write(arrival).unwrap();
}

/// What a host sends of the chunk.
async fn sent(world: &World, by: &Host) -> Option<ChunkHeader> {
    let subject = world.subject(by, AT);
    let recipes = subject.recipes();
    let packed = load(subject).await?;
    Some(header((world.spec.digest, AT), &packed, &recipes))
}

fn take(world: &World, to: &Host, header: &ChunkHeader, bytes: &[u8]) -> Receipt {
    let peer: HostId = "mac-1".parse().unwrap();
    let link = header.link.as_ref().unwrap();
    take_packed(&world.subject(to, AT), peer.key(), link, bytes)
}

#[tokio::test]
async fn hosts_with_the_same_recipe_need_nobody_who_answers_for_a_chunk() {
    let world = World::new(4);
    let by = recipe(&world.sample());
    let [holder, same] = ["mac-1", "mac-2"].map(|name| world.host_by(name, &by));
    let without = world.host("mac-3");
    hold(&world, &holder);
    let header = sent(&world, &holder).await.unwrap();
    assert!(header.link.as_ref().unwrap().statement.is_none());
    let bytes = world.bytes(AT);
    assert_eq!(take(&world, &same, &header, bytes).result, Ok(()));
    // passed on in the same way
    assert_eq!(sent(&world, &same).await, Some(header.clone()));

    let refused = take(&world, &without, &header, bytes);
    assert_eq!(refused.result, Err(Failure::Disproved));
    assert!(!refused.false_bytes, "nobody is blamed");
    hold(&world, &without);
    assert_eq!(sent(&world, &without).await, None);
}

#[tokio::test]
async fn a_false_chunk_by_the_recipe_convicts_its_sender_at_once() {
    let world = World::new(4);
    let by = recipe(&world.sample());
    let [holder, to] = ["mac-1", "mac-2"].map(|name| world.host_by(name, &by));
    hold(&world, &holder);
    let header = sent(&world, &holder).await.unwrap();
    let lie = vec![7; 1 << 20];
    let false_bytes = take(&world, &to, &header, &lie);
    assert_eq!(false_bytes.result, Err(Failure::Bad));
    assert!(false_bytes.false_bytes);
    // a link that fits its bytes and isn't the recipe's, although the sender says so
    let invented = Link::forge(world.spec.geometry, AT, State::from_bytes(&[1; 32]), &lie);
    let mut lying = header.clone();
    let link = lying.link.as_mut().unwrap();
    let (name, maker) = (link.recipe.clone(), "mac-1".parse().unwrap());
    *link = WireLink::new(&invented, &maker);
    link.recipe = name;
    let invented = take(&world, &to, &lying, &lie);
    assert_eq!(invented.result, Err(Failure::Bad));
    assert!(invented.false_bytes);
    assert!(!to.shelf.held(world.spec.digest).contains(AT));
    assert_eq!(take(&world, &to, &header, world.bytes(AT)).result, Ok(()));
}

#[tokio::test]
async fn nobody_is_blamed_for_a_link_that_a_false_recipe_contradicts() {
    let world = World::new(4);
    let by = recipe_with(&world.sample(), world.spec.digest, |of| of.states[40] ^= 1);
    let (without, misled) = (world.host("mac-1"), world.host_by("mac-2", &by));
    // a host without the recipe fetches and signs
    let (end, _, signed, _) = world.fetch(&without).await;
    assert_eq!(end, FetchEnd::Done);
    let link = signed[1].to_message();
    let receipt = take_packed(
        &world.subject(&misled, AT),
        signed[1].maker().key(),
        &link,
        world.bytes(AT),
    );
    assert_eq!(receipt.result, Err(Failure::Disproved));
    assert!(!receipt.false_bytes && receipt.false_link.is_none());
    // told by the coordinator that the recipe is in doubt, it goes on by the chain
    assert_eq!(
        misled.shelf.leave_recipe(world.spec.digest),
        Some(by.file.digest)
    );
    let receipt = take_packed(
        &world.subject(&misled, AT),
        signed[1].maker().key(),
        &link,
        world.bytes(AT),
    );
    assert_eq!(receipt.result, Ok(()));
}

#[tokio::test]
async fn a_false_recipe_of_one_image_keeps_no_chunk_from_another_image() {
    let world = World::new(4);
    let content = world.spec.digest;
    let by = recipe_with(&world.sample(), content, |of| of.states[40] ^= 1);
    let (_, _, signed, _) = world.fetch(&world.host("mac-1")).await;
    for misled_first in [true, false] {
        let (without, misled) = (world.host("mac-2"), world.host_by("mac-2", &by));
        let mut shelves = vec![without.shelf.clone(), misled.shelf.clone()];
        if misled_first {
            shelves.reverse();
        }
        for signed in &signed {
            let subject = Subject {
                shelves: shelves.clone(),
                ..world.subject(&without, signed.chunk)
            };
            let (link, bytes) = (signed.to_message(), world.bytes(signed.chunk));
            let receipt = take_packed(&subject, signed.maker().key(), &link, bytes);
            assert_eq!(receipt.result, Ok(()), "{}", signed.chunk);
        }
        assert!(without.shelf.held(content).is_full());
        assert!(!misled.shelf.held(content).is_full());
    }
}

#[tokio::test]
async fn a_chunk_goes_by_the_recipe_that_both_hosts_have_whatever_other_images_go_by() {
    let world = World::new(4);
    let content = world.spec.digest;
    let by = recipe(&world.sample());
    let lie = recipe_with(&world.sample(), content, |of| of.states[40] ^= 1);
    let [holder, to] = ["mac-1", "mac-2"].map(|name| world.host_by(name, &by));
    let misled = world.host_by("mac-2", &lie);
    hold(&world, &holder);
    // on both sides an image with another recipe comes first
    let both = |host: &Host| Subject {
        shelves: vec![misled.shelf.clone(), host.shelf.clone()],
        ..world.subject(host, AT)
    };
    let subject = both(&holder);
    let recipes = subject.recipes();
    let packed = load(subject).await.unwrap();
    let header = header((content, AT), &packed, &recipes);
    let link = header.link.as_ref().unwrap();
    assert_eq!(link.recipe, by.file.digest.as_bytes());
    let peer: HostId = "mac-1".parse().unwrap();
    let taken = take_packed(&both(&to), peer.key(), link, world.bytes(AT));
    assert_eq!(taken.result, Ok(()));
    assert!(to.shelf.held(content).contains(AT));
    assert!(!misled.shelf.held(content).contains(AT));
}

#[tokio::test]
async fn an_image_leaves_a_recipe_of_hosts_that_a_holder_of_the_image_contradicts() {
    let world = World::new(4);
    let content = world.spec.digest;
    let by = recipe_with(&world.sample(), content, |of| of.states[40] ^= 1);
    let holder = world.host("mac-1");
    // nobody reads the registry's bytes any more: the holder has all of them, and vouches for its links
    let (end, _, _, _) = world.fetch(&holder).await;
    assert_eq!(end, FetchEnd::Done);
    holder.shelf.walk(content).unwrap();
    assert!(holder.shelf.is_closed(content));
    for of_hosts in [false, true] {
        let misled = world.host_by("mac-2", &by);
        let Shelf::Stage(stage) = &misled.shelf else {
            unreachable!("the host has a stage");
        };
        assert_eq!(stage.proved_recipe(), Some(by.file));
        stage.standing().set_of_hosts(of_hosts);
        let mut came = Vec::new();
        for chunk in world.chunks() {
            // what was packed before the chain was closed isn't vouched for
            let subject = Subject {
                cache: std::sync::Arc::default(),
                ..world.subject(&holder, chunk)
            };
            let packed = load(subject).await.unwrap();
            let header = header((content, chunk), &packed, &[]);
            let statement = header.link.as_ref().unwrap().statement.as_ref();
            assert_eq!(statement.unwrap().run, 0, "it is vouched for");
            let (link, bytes) = (header.link.as_ref().unwrap(), world.bytes(chunk));
            let peer: HostId = "mac-1".parse().unwrap();
            let receipt = take_packed(&world.subject(&misled, chunk), peer.key(), link, bytes);
            assert!(!receipt.false_bytes);
            came.push(receipt.result.is_ok());
        }
        let all = came.iter().all(|came| *came);
        assert_eq!(all, of_hosts, "{came:?}");
        misled.shelf.walk(content).unwrap();
        assert_eq!(misled.shelf.is_closed(content), of_hosts);
        // and it isn't said to have the recipe
        let proved = stage.proved_recipe().is_some();
        assert_eq!(proved, !of_hosts);
    }
}

#[tokio::test]
async fn a_mirror_with_the_recipe_refuses_false_chunks_and_passes_on_true_ones() {
    let world = World::new(4);
    let by = recipe(&world.sample());
    let holder = world.host_by("mac-1", &by);
    let (mirror, reading) = world.mirror_by("mac-2", &by);
    hold(&world, &holder);
    let header = sent(&world, &holder).await.unwrap();
    let lie = take(&world, &mirror, &header, &vec![7; 1 << 20]);
    assert_eq!(lie.result, Err(Failure::Bad));
    assert!(lie.false_bytes, "the sender is blamed at once");
    let came = take(&world, &mirror, &header, world.bytes(AT));
    assert_eq!(came.result, Ok(()));
    // named again for the next host with the recipe
    assert_eq!(sent(&world, &mirror).await, Some(header));
    assert_eq!(reading.ready(0), 0, "the first chunk isn't here");
}

#[tokio::test]
async fn a_mirror_leaves_a_recipe_that_the_holder_of_the_lease_contradicts() {
    let world = World::new(4);
    let by = recipe_with(&world.sample(), world.spec.digest, |of| of.states[40] ^= 1);
    let without = world.host("mac-3");
    let (mirror, reading) = world.mirror_by("mac-2", &by);
    let (_, _, signed, _) = world.fetch(&without).await;
    let take = |at: usize| {
        let signed = &signed[at];
        let (bytes, maker) = (world.bytes(signed.chunk), signed.maker().key());
        let subject = world.subject(&mirror, signed.chunk);
        take_packed(&subject, maker, &signed.to_message(), bytes).result
    };
    assert_eq!(take(0), Ok(()));
    assert_eq!(reading.ready(0), 1 << 20);
    assert_eq!(take(1), Ok(()));
    assert_eq!(mirror.shelf.recipe(world.spec.digest), None);
    // from here on as without a recipe
    assert_eq!(reading.ready(0), 0);
    for at in 2..4 {
        assert_eq!(take(at), Ok(()));
    }
    reading.blob.walk().unwrap();
    assert!(reading.blob.is_whole() && !reading.is_misled());
}

#[tokio::test]
async fn a_mirror_leaves_a_recipe_that_a_host_with_the_whole_blob_contradicts() {
    let world = World::new(4);
    let by = recipe_with(&world.sample(), world.spec.digest, |of| of.states[40] ^= 1);
    let holder = world.host("mac-3");
    let (mirror, reading) = world.mirror_by("mac-2", &by);
    for (chunk, link) in world.chunks().zip(world.links()) {
        let vouched = holder.notary.vouch(world.spec.digest, chunk, link).unwrap();
        assert!(vouched.statement.run.is_vouched());
        let (bytes, maker) = (world.bytes(chunk), vouched.maker().key());
        let subject = world.subject(&mirror, chunk);
        let taken = take_packed(&subject, maker, &vouched.to_message(), bytes);
        assert_eq!(taken.result, Ok(()), "{chunk}");
    }
    assert_eq!(mirror.shelf.recipe(world.spec.digest), None);
    reading.blob.walk().unwrap();
    assert!(reading.blob.is_whole() && !reading.is_misled());
}

#[tokio::test]
async fn a_mirror_that_reads_the_registrys_bytes_leaves_a_false_recipe() {
    let world = World::new(4);
    let by = recipe_with(&world.sample(), world.spec.digest, |of| of.states[40] ^= 1);
    let (mirror, reading) = world.mirror_by("mac-1", &by);
    // as the driver fetches the layer: what comes is decoded, which a mirror's blob isn't
    let (end, doubts, signed, _) = world.fetch(&mirror).await;
    assert_eq!((end, doubts, signed.len()), (FetchEnd::Done, 0, 4));
    assert_eq!(mirror.shelf.recipe(world.spec.digest), None);
    reading.blob.walk().unwrap();
    assert!(reading.blob.is_whole());
}

#[tokio::test]
async fn whoever_reads_the_registrys_bytes_leaves_a_false_recipe_and_goes_on() {
    let world = World::new(4);
    let content = world.spec.digest;
    // of each kind of lie, where the truth stands last
    for lie in [0, 40, 64] {
        let by = recipe_with(&world.sample(), content, |of| of.states[lie] ^= 1);
        let host = world.host_by("mac-1", &by);
        let (end, doubts, signed, _) = world.fetch(&host).await;
        assert_eq!((end, doubts), (FetchEnd::Done, 0));
        assert_eq!(host.shelf.recipe(content), None);
        assert_eq!(signed.len(), 4, "what it made is signed");
        assert_eq!(host.shelf.walk(content).unwrap(), []);
        assert!(host.shelf.is_closed(content));
    }
    // a true one stays
    let host = world.host_by("mac-1", &recipe(&world.sample()));
    assert_eq!(world.fetch(&host).await.0, FetchEnd::Done);
    assert!(host.shelf.recipe(content).is_some());
}

#[tokio::test]
async fn a_fetch_goes_on_behind_what_is_here_by_the_recipes_places() {
    let world = World::new(24);
    let host = world.host_by("mac-1", &recipe(&world.sample()));
    let me: HostId = "mac-1".parse().unwrap();
    let source = Source {
        sender: me.key(),
        maker: me.key(),
    };
    // as they are found on another image's disk
    for chunk in world.chunks().filter(|chunk| chunk.0 % 8 != 0) {
        let arrival = Arrival {
            content: world.spec.digest,
            chunk,
            bytes: world.bytes(chunk),
            link: host.shelf.recipe_link(world.spec.digest, chunk).unwrap(),
            source,
            maker: &me,
            statement: None,
        };
        host.shelf.write(arrival).unwrap();
    }
    let (end, doubts, _, moved) = world.fetch(&host).await;
    assert_eq!((end, doubts), (FetchEnd::Done, 0));
    assert!(moved < 6 << 20, "{moved} bytes for three chunks");
}
