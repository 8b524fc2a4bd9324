use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{chunks::CHUNK_BYTES, fingerprint::Fingerprint, recipe::Maker};

const HONEST: Source = Source {
    sender: HostKey(1),
    maker: HostKey(1),
};
const LIAR: Source = Source {
    sender: HostKey(2),
    maker: HostKey(2),
};

fn content(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..size)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33).to_le_bytes()[0]
        })
        .collect()
}

fn bytes_of(content: &[u8], geometry: Geometry, chunk: ChunkIndex) -> &[u8] {
    let start = usize::try_from(geometry.offset(chunk)).unwrap();
    &content[start..start + geometry.len(chunk) as usize]
}

fn chain(content: &[u8]) -> (Digest, Geometry, Vec<Link>) {
    chain_from(content, 0, State::INITIAL)
}

/// The links of `content` from chunk `first` on, starting in `state`.
fn chain_from(content: &[u8], first: u32, state: State) -> (Digest, Geometry, Vec<Link>) {
    let geometry = Geometry::new(content.len() as u64).unwrap();
    let mut before = state;
    let links = (first..geometry.chunks())
        .map(ChunkIndex)
        .map(|chunk| {
            let link = Link::forge(geometry, chunk, before, bytes_of(content, geometry, chunk));
            before = link.after;
            link
        })
        .collect();
    (Digest::of(content), geometry, links)
}

#[test]
fn a_chain_ends_in_the_digest_at_every_padding_boundary() {
    for extra in [0u64, 1, 55, 56, 57, 63, 64, 65, 119, 120, 128] {
        for whole in [0, 1, 2] {
            let content = content(usize::try_from(whole * CHUNK_BYTES + extra).unwrap(), 7);
            let (digest, geometry, links) = chain(&content);
            let mut ledger = Ledger::new(digest, geometry);
            for (chunk, link) in (0..).map(ChunkIndex).zip(&links) {
                assert_eq!(ledger.enter(chunk, *link, HONEST), Ok(Entered::New));
            }
            assert_eq!(ledger.walk(), vec![]);
            assert!(ledger.is_closed(), "{whole} chunks and {extra} bytes");
        }
    }
}

#[test]
fn an_empty_content_is_closed_only_under_its_own_digest() {
    let geometry = Geometry::new(0).unwrap();
    assert!(Ledger::new(Digest::of(b""), geometry).is_closed());
    let mut other = Ledger::new(Digest::of(b"x"), geometry);
    other.walk();
    assert!(!other.is_closed());
}

#[test]
fn a_forgotten_chunk_opens_the_chain() {
    let content = content(3 << 20, 1);
    let (digest, geometry, links) = chain(&content);
    let mut ledger = Ledger::new(digest, geometry);
    for (chunk, link) in (0..).map(ChunkIndex).zip(&links) {
        ledger.enter(chunk, *link, HONEST).unwrap();
    }
    ledger.walk();
    ledger.forget(ChunkIndex(1));
    assert!(!ledger.is_closed());
    assert!(ledger.is_proved(ChunkIndex(2)) && !ledger.is_proved(ChunkIndex(1)));
    ledger.enter(ChunkIndex(1), links[1], HONEST).unwrap();
    assert_eq!(ledger.walk(), vec![]);
    assert!(ledger.is_closed());
}

fn shuffled(count: u32, seed: u64) -> Vec<ChunkIndex> {
    let mut order: Vec<_> = (0..count).map(ChunkIndex).collect();
    let noise = content(order.len() * 2, seed);
    order.sort_by_key(|chunk| (noise[chunk.0 as usize * 2], noise[chunk.0 as usize * 2 + 1]));
    order
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_content_closes_in_any_order_at_exactly_its_digest(size in 0usize..5 << 20, seed: u64) {
        let content = content(size, seed);
        let (digest, geometry, links) = chain(&content);
        let mut ledger = Ledger::new(digest, geometry);
        let mut wrong = Ledger::new(Digest::of(b"another"), geometry);
        for chunk in shuffled(geometry.chunks(), seed) {
            let link = links[chunk.0 as usize];
            prop_assert!(!ledger.is_closed());
            prop_assert!(link.holds(geometry, chunk, bytes_of(&content, geometry, chunk)));
            prop_assert_eq!(ledger.enter(chunk, link, HONEST), Ok(Entered::New));
            prop_assert_eq!(ledger.enter(chunk, link, LIAR), Ok(Entered::Held));
            prop_assert_eq!(ledger.walk(), vec![]);
            let rejected = wrong.enter(chunk, link, LIAR);
            prop_assert_eq!(rejected.is_err(), geometry.is_last(chunk));
            wrong.walk();
        }
        prop_assert!(ledger.is_closed());
        prop_assert!(!wrong.is_closed());
    }

    #[test]
    fn a_flipped_bit_breaks_its_own_link(size in 1usize..3 << 20, seed: u64, at: prop::sample::Index, bit in 0u8..8) {
        let mut content = content(size, seed);
        let (_, geometry, links) = chain(&content);
        let at = at.index(size);
        content[at] ^= 1 << bit;
        for chunk in (0..geometry.chunks()).map(ChunkIndex) {
            let hit = at as u64 / CHUNK_BYTES == u64::from(chunk.0);
            prop_assert_eq!(links[chunk.0 as usize].holds(geometry, chunk, bytes_of(&content, geometry, chunk)), !hit);
        }
    }

    /// A liar replaces a run of chunks by bytes of its own, with links that fit them. It does so in one of the ways
    /// that pass a check of single links. Only the liar is named, every true link is kept or can be entered again, and
    /// the chain closes.
    #[test]
    fn a_consistent_lie_is_blamed_on_its_sender(
        chunks in 2u32..6, tail in 1usize..(1 << 20), seed: u64, at: prop::sample::Index, run in 1u32..4, kind in 0u8..4,
    ) {
        let content = content((chunks as usize - 1) * (1 << 20) + tail, seed);
        let (digest, geometry, truth) = chain(&content);
        // the digest fixes the end of the last chunk, so the lie must come before it
        let first = u32::try_from(at.index(chunks as usize - 1)).unwrap();
        let last = (first + run).min(chunks - 1);
        let mut fake = content.clone();
        let start = first as usize * (1 << 20);
        match kind {
            0 => fake[start] ^= 1,
            1 if first + 2 < chunks => fake.copy_within(start + (1 << 20)..start + (2 << 20), start),
            2 if first > 0 => fake.copy_within(start - (1 << 20)..start, start),
            _ => fake[start..start + 64].fill(0xee),
        }
        prop_assume!(fake[start..start + (1 << 20)] != content[start..start + (1 << 20)]);
        let (_, _, forged) = chain_from(&fake, first, truth[first as usize].before);
        let mut ledger = Ledger::new(digest, geometry);
        for chunk in shuffled(chunks, seed) {
            let lie = (first..last).contains(&chunk.0);
            let (link, source) = if lie { (forged[(chunk.0 - first) as usize], LIAR) } else { (truth[chunk.0 as usize], HONEST) };
            match ledger.enter(chunk, link, source) {
                Ok(_) => {
                    for verdict in ledger.walk() {
                        prop_assert_eq!(verdict.source, LIAR);
                    }
                }
                Err(_) => prop_assert!(lie),
            }
            prop_assert!(!ledger.is_closed());
        }
        for chunk in (0..chunks).map(ChunkIndex) {
            prop_assert!(ledger.held().contains(chunk) || (first..last).contains(&chunk.0));
            if !ledger.held().contains(chunk) {
                prop_assert_eq!(ledger.enter(chunk, truth[chunk.0 as usize], HONEST), Ok(Entered::New));
            }
        }
        for verdict in ledger.walk() {
            prop_assert_eq!(verdict.source, LIAR);
            ledger.enter(verdict.chunk, truth[verdict.chunk.0 as usize], HONEST).unwrap();
        }
        ledger.walk();
        prop_assert!(ledger.is_closed());
    }

    /// One bit of one link is flipped. In any order of arrival, the link doesn't fit its bytes, or the bit is in a
    /// hint.
    #[test]
    fn a_flipped_bit_of_a_link_is_caught_by_its_own_bytes(chunks in 1u32..4, tail in 1usize..(1 << 20), seed: u64, at: prop::sample::Index, bit in 0usize..512) {
        let content = content((chunks as usize - 1) * (1 << 20) + tail, seed);
        let (_, geometry, truth) = chain(&content);
        let chunk = ChunkIndex(u32::try_from(at.index(chunks as usize)).unwrap());
        let mut link = truth[chunk.0 as usize];
        let state = if bit < 256 { &mut link.before } else { &mut link.after };
        let mut bytes = state.to_bytes();
        bytes[bit % 256 / 8] ^= 1 << (bit % 8);
        *state = State::from_bytes(&bytes);
        prop_assert!(!link.holds(geometry, chunk, bytes_of(&content, geometry, chunk)));
        // a changed hint proves nothing and does no harm
        let hint = Link { fingerprint: Fingerprint::of(b"other"), resume: None, ..truth[chunk.0 as usize] };
        prop_assert!(hint.holds(geometry, chunk, bytes_of(&content, geometry, chunk)));
    }

    /// Two chunks are swapped with their bytes and links; or a chunk is replaced by a copy of another; or a chunk is
    /// left out and those after it move up, with links that fit. In any order of arrival, the chain doesn't close, and
    /// only the liar is named. Once the true chunks are entered, the chain closes.
    #[test]
    fn swapped_repeated_and_dropped_entries_are_caught_in_any_order(
        chunks in 3u32..6, seed: u64, a: prop::sample::Index, b: prop::sample::Index, kind in 0u8..4,
    ) {
        let content = content(chunks as usize * (1 << 20), seed);
        let (digest, geometry, truth) = chain(&content);
        let count = chunks as usize;
        let (a, b) = (a.index(count), b.index(count));
        prop_assume!(a != b);
        let slice = |at: usize| &content[at << 20..(at + 1) << 20];
        // what the liar sends in place of the truth: chunk, link, and the bytes
        let mut sent: Vec<(usize, Link, &[u8])> = Vec::new();
        match kind {
            0 => sent.extend([(a, truth[b], slice(b)), (b, truth[a], slice(a))]),
            1 => sent.push((a, truth[b], slice(b))),
            // the links are forged again, so that each fits the one before
            2 => {
                let (first, last) = (a.min(b), a.max(b));
                let mut before = truth[first].before;
                for at in first..=last {
                    let bytes = if at == first { slice(last) } else if at == last { slice(first) } else { slice(at) };
                    let link = Link::forge(geometry, ChunkIndex(u32::try_from(at).unwrap()), before, bytes);
                    before = link.after;
                    sent.push((at, link, bytes));
                }
            }
            _ => {
                let mut before = truth[a].before;
                for at in a..count - 1 {
                    let link = Link::forge(geometry, ChunkIndex(u32::try_from(at).unwrap()), before, slice(at + 1));
                    before = link.after;
                    sent.push((at, link, slice(at + 1)));
                }
            }
        }
        prop_assume!(!sent.is_empty());
        let mut ledger = Ledger::new(digest, geometry);
        for chunk in shuffled(chunks, seed) {
            let lie = sent.iter().find(|(at, ..)| *at == chunk.0 as usize);
            let (link, bytes, source) = match lie {
                Some((_, link, bytes)) => (*link, *bytes, LIAR),
                None => (truth[chunk.0 as usize], slice(chunk.0 as usize), HONEST),
            };
            // bytes that don't fit their link convict their sender at once
            if !link.holds(geometry, chunk, bytes) {
                prop_assert_eq!(source, LIAR);
                continue;
            }
            if let Err(error) = ledger.enter(chunk, link, source) {
                prop_assert_eq!(source, LIAR, "{}", error);
            }
            for verdict in ledger.walk() {
                prop_assert_eq!(verdict.source, LIAR);
            }
            prop_assert!(!ledger.is_closed());
        }
        // any false chunk that is still believed is found out as true chunks come in
        for _ in 0..=chunks {
            for chunk in (0..chunks).map(ChunkIndex) {
                let held = ledger.held().contains(chunk);
                let entered = ledger.enter(chunk, truth[chunk.0 as usize], HONEST);
                prop_assert_eq!(entered, Ok(if held { Entered::Held } else { Entered::New }));
            }
            for verdict in ledger.walk() {
                prop_assert_eq!(verdict.source, LIAR);
            }
        }
        prop_assert!(ledger.is_closed());
    }
}

// ---- with a recipe
// ----------------------------------------------------------------------------------------------------

fn recipe_of(content: &[u8]) -> Arc<ContentRecipe> {
    let geometry = Geometry::new(content.len() as u64).unwrap();
    let mut maker = Maker::new(Digest::of(content), geometry);
    maker.take(content).unwrap();
    Arc::new(maker.finish().unwrap())
}

#[test]
fn with_a_recipe_each_chunk_is_proved_when_it_arrives_in_any_order() {
    let content = content(4 << 20, 3);
    let (_, geometry, links) = chain(&content);
    let mut ledger = Ledger::new(Digest::of(&content), geometry);
    ledger.take_recipe(recipe_of(&content)).unwrap();
    let bytes = bytes_of(&content, geometry, ChunkIndex(1));
    // a link that fits its bytes, as a liar makes it
    let invented = Link::forge(geometry, ChunkIndex(1), State::from_bytes(&[7; 32]), bytes);
    let refused = RejectLinkError::AgainstRecipe(ChunkIndex(1));
    assert_eq!(ledger.enter(ChunkIndex(1), invented, LIAR), Err(refused));
    for chunk in [1, 3, 0, 2] {
        let link = links[chunk as usize];
        assert_eq!(
            ledger.recipe_link(ChunkIndex(chunk)).unwrap().after,
            link.after
        );
        assert_eq!(
            ledger.enter(ChunkIndex(chunk), link, LIAR),
            Ok(Entered::New)
        );
        assert_eq!(ledger.answer(ChunkIndex(chunk)), Answer::Recipe);
    }
    // who made it doesn't matter
    assert_eq!(ledger.doubtful(LIAR.maker, ChunkIndex(0)), vec![]);
    assert_eq!(ledger.walk(), vec![]);
    assert!(ledger.is_closed());
    assert_eq!(ledger.answer(ChunkIndex(2)), Answer::Holder);
    // a chain that is closed has proved the recipe
    assert!(!ledger.leave_recipe());
}

#[test]
fn a_recipe_that_contradicts_a_held_link_isnt_taken() {
    let content = content(3 << 20, 3);
    let (digest, geometry, links) = chain(&content);
    let mut ledger = Ledger::new(digest, geometry);
    ledger.enter(ChunkIndex(2), links[2], HONEST).unwrap();
    ledger.take_recipe(recipe_of(&content)).unwrap();
    let invented = Link {
        before: State::from_bytes(&[7; 32]),
        ..links[2]
    };
    let mut ledger = Ledger::new(digest, geometry);
    ledger.enter(ChunkIndex(2), invented, LIAR).unwrap();
    let refused = RejectLinkError::AgainstRecipe(ChunkIndex(2));
    assert_eq!(ledger.take_recipe(recipe_of(&content)), Err(refused));
    assert!(!ledger.has_recipe());
}

#[test]
fn without_its_recipe_a_ledger_goes_on_by_the_chain() {
    let content = content(3 << 20, 3);
    let (_, geometry, links) = chain(&content);
    let mut other = content.clone();
    other[5] ^= 1;
    // a recipe whose first states are of other bytes
    let mut ledger = Ledger::new(Digest::of(&content), geometry);
    ledger.recipe = Some(recipe_of(&other));
    let false_link = recipe_of(&other).link(ChunkIndex(0)).unwrap();
    assert_eq!(
        ledger.enter(ChunkIndex(0), false_link, LIAR),
        Ok(Entered::New)
    );
    let refused = RejectLinkError::AgainstRecipe(ChunkIndex(1));
    assert_eq!(ledger.enter(ChunkIndex(1), links[1], HONEST), Err(refused));
    assert!(ledger.leave_recipe());
    assert!(!ledger.leave_recipe());
    assert_eq!(ledger.answer(ChunkIndex(0)), Answer::Nobody);
    for chunk in [1, 2] {
        let link = links[chunk as usize];
        assert_eq!(
            ledger.enter(ChunkIndex(chunk), link, HONEST),
            Ok(Entered::New)
        );
    }
    let dropped: Vec<_> = ledger.walk().iter().map(|verdict| verdict.chunk).collect();
    assert_eq!(dropped, [ChunkIndex(0)]);
    assert_eq!(
        ledger.enter(ChunkIndex(0), links[0], HONEST),
        Ok(Entered::New)
    );
    ledger.walk();
    assert!(ledger.is_closed());
}
