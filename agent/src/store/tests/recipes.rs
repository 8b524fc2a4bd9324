//! Stages with a recipe: what they take, and what they find on the disks of other images.

use super::*;
use crate::store::alike::{self, Lacking};

/// An image of one layer with these bytes.
fn image_of(raw: &[u8]) -> Sample {
    sample_of(7, raw, 5_000, None)
}

const MIB: usize = 1 << 20;

/// Two releases: of the second one's common layer one chunk is new, and the others lie elsewhere.
fn releases() -> (Sample, Sample) {
    let mut old = noise(4 * MIB + 100_000, 1);
    old[2 * MIB..3 * MIB].fill(0);
    let mut new = old.clone();
    new.copy_within(0..MIB, 3 * MIB);
    new[..MIB].copy_from_slice(&noise(MIB, 2));
    (image_of(&old), image_of(&new))
}

#[test]
fn what_another_image_has_anywhere_needs_no_transfer() {
    let (home, (old, new)) = (tempfile::tempdir().unwrap(), releases());
    let store = open(&home);
    let (first, _) = begin(&store, &old, &[TAG]);
    fill(&first, &old);
    install(&first, &[TAG]).unwrap();

    let by = recipe(&new);
    let (second, copied) = begin_by(&store, &new, &by);
    let layer = Digest::of(&new.disk[..4 * MIB + 100_000]);
    let lacks: Vec<u32> = {
        let held = second.held(layer);
        (0..held.chunks())
            .filter(|chunk| !held.contains(ChunkIndex(*chunk)))
            .collect()
    };
    assert_eq!(lacks, [0], "only what no disk has");
    assert!(copied > 3 * MIB as u64);
    let (chunk, link, bytes) = links(&new.contents[&layer])[0];
    let arrived = (&host("mac-1"), None);
    second
        .write(layer, chunk, bytes, link, source("mac-1"), arrived)
        .unwrap();
    second.walk(layer).unwrap();
    assert!(second.is_closed(layer));
    store.flush().unwrap();
    drop((first, second, store));

    // a restart goes on with the recipe, if it is there; its absence costs nothing else
    let store = open(&home);
    let second = store.stage(new.layout.digest()).unwrap();
    assert_eq!(second.recipe(), Some(by.file));
    assert!(second.is_closed(layer));
}

#[test]
fn a_clone_is_compared_where_it_lies() {
    let (home, (old, new)) = (tempfile::tempdir().unwrap(), releases());
    let store = open(&home);
    let (first, _) = begin(&store, &old, &[TAG]);
    fill(&first, &old);
    install(&first, &[TAG]).unwrap();
    let by = recipe(&new);
    // the second, the third and the last chunk of each place of the layer, and the layer between both
    let in_place = alike::common_bytes(&new.layout, &by.recipe, &first);
    assert_eq!(in_place, 2 * (2 * MIB as u64 + 100_000) + 5_000);

    let elsewhere = tempfile::tempdir().unwrap();
    let other = open(&elsewhere);
    let (second, _) = begin_by(&other, &new, &by);
    let body = &second.files().bodies()[0];
    body.disk.write_all_at(&old.disk, 0).unwrap();
    let mut lacking = Lacking::of(&second);
    let mut go_on = || Ok::<_, WriteError>(());
    let copied = alike::copy(&second, &mut lacking, &first, true, &mut go_on).unwrap();
    // each chunk once, and zeros need no other disk
    assert_eq!(copied.in_place, MIB as u64 + 100_000 + 5_000);
    let mut disk = vec![0; new.disk.len()];
    body.disk.read_exact_at(&mut disk, 0).unwrap();
    let layer = Digest::of(&new.disk[..4 * MIB + 100_000]);
    let held = second.held(layer);
    for chunk in held.iter() {
        let from = chunk.0 as usize * MIB;
        let to = (from + MIB).min(4 * MIB + 100_000);
        assert!(disk[from..to] == new.disk[from..to], "chunk {chunk}");
    }
    assert!(!held.contains(ChunkIndex(0)));
}

#[test]
fn a_stage_with_a_recipe_takes_only_its_links_until_it_is_left() {
    let (home, (_, new)) = (tempfile::tempdir().unwrap(), releases());
    let store = open(&home);
    let (stage, _) = begin_by(&store, &new, &recipe(&new));
    let layer = Digest::of(&new.disk[..4 * MIB + 100_000]);
    let geometry = Geometry::new(new.contents[&layer].len() as u64).unwrap();
    let lie = vec![9; MIB];
    let invented = Link::forge(geometry, ChunkIndex(1), State::from_bytes(&[1; 32]), &lie);
    let write = || {
        let liar = (&host("liar"), None);
        stage.write(layer, ChunkIndex(1), &lie, invented, source("liar"), liar)
    };
    let refused = write().unwrap_err();
    let against = RejectLinkError::AgainstRecipe(ChunkIndex(1));
    assert!(
        matches!(&refused, WriteError::Rejected(error) if *error == against),
        "{refused}"
    );
    // its place is written with what the recipe says later
    assert!(!stage.held(layer).contains(ChunkIndex(1)));
    let known = || stage.known(layer).unwrap();
    assert!(known().recipe().is_some());
    assert!(known().leave_recipe());
    assert!(known().recipe().is_none());
    write().unwrap();
}
