use std::{cell::Cell, rc::Rc, time::Duration};

use proto::{Fingerprint, HostId, Link, Source, State, image::ContentKind, ledger::Verdict};

use super::*;
use crate::{identity::tests::Authority, notary::tests::notary};

/// A shelf that is verified when the test says so. Its links are true: the state before chunk n is made of n.
#[derive(Clone, Debug, Default)]
struct Made {
    name: u8,
    closed: Rc<Cell<bool>>,
}

impl Proving for Made {
    fn is_closed(&self, _: Digest) -> bool {
        self.closed.get()
    }

    fn state_before(&self, _: Digest, chunk: ChunkIndex) -> Option<State> {
        Some(state(chunk.0))
    }
}

fn shelf(name: u8) -> Made {
    Made {
        name,
        closed: Rc::default(),
    }
}

fn state(at: u32) -> State {
    State::from_bytes(Digest::of(&at.to_le_bytes()).as_bytes())
}

fn image(at: u8) -> Digest {
    Digest::of(&[b'i', at])
}

fn peer(at: u64) -> HostKey {
    HostKey(at)
}

fn me() -> HostId {
    "me".parse().unwrap()
}

/// A content of three chunks.
fn spec() -> ContentSpec {
    ContentSpec {
        digest: Digest::of(b"content"),
        geometry: Geometry::new(2 * proto::CHUNK_BYTES + 5).unwrap(),
        kind: ContentKind::Blob,
        places: Vec::new(),
    }
}

const CHUNKS: u32 = 3;

fn contents() -> Contents<Made> {
    Contents::new(me().key(), Arc::default())
}

/// Image 1 has the content, and none of its chunks is held.
fn empty() -> (Contents<Made>, ContentId, Made) {
    with(0)
}

/// Image 1 has the content, and this many of its chunks are held.
fn with(held: u32) -> (Contents<Made>, ContentId, Made) {
    let (mut all, shelf) = (contents(), shelf(1));
    let set = ChunkSet::from_runs(CHUNKS, &[0, held][..if held > 0 { 2 } else { 0 }]).unwrap();
    let (id, new) = all.add(&spec(), (image(1), shelf.clone()), set, false);
    assert!(new);
    (all, id, shelf)
}

/// A blob of the mirror, none of whose chunks is held.
fn mirrored() -> (Contents<Made>, ContentId) {
    let mut all = contents();
    let what = (spec().digest, spec().geometry);
    let id = all.add_mirrored(what, shelf(9), ChunkSet::empty(CHUNKS), false);
    (all, id)
}

fn of(id: ContentId, chunk: u32) -> Transfer {
    Transfer {
        peer: peer(7),
        id,
        chunk: ChunkIndex(chunk),
    }
}

fn told(effects: &[Effect<Made>]) -> Vec<Event> {
    let told = |effect: &Effect<Made>| match effect {
        Effect::Tell(event) => Some(event.clone()),
        _ => None,
    };
    effects.iter().filter_map(told).collect()
}

/// Chunks that the swarm is told to ask for again.
fn asked_again(effects: &[Effect<Made>]) -> Vec<u32> {
    let lost = |event: &Event| match event {
        Event::ChunkLost { chunk, .. } => Some(chunk.0),
        _ => None,
    };
    told(effects).iter().filter_map(lost).collect()
}

fn walks(effects: &[Effect<Made>]) -> usize {
    let walk = |effect: &&Effect<Made>| matches!(effect, Effect::Walk { .. });
    effects.iter().filter(walk).count()
}

/// The change, in bytes, of what is held of image 1.
fn change(effects: &[Effect<Made>]) -> i64 {
    let of_one = |images: &[Digest], bytes: u64| match images.contains(&image(1)) {
        true => i64::try_from(bytes).unwrap(),
        false => 0,
    };
    let changes = effects.iter().map(|effect| match effect {
        Effect::Images { images, news } => match news {
            ImageNews::Gained(bytes) => of_one(images, *bytes),
            ImageNews::Lost(bytes) => -of_one(images, *bytes),
            _ => 0,
        },
        _ => 0,
    });
    changes.sum()
}

/// The images that are told that the content is verified.
fn closed_images(effects: &[Effect<Made>]) -> Vec<Digest> {
    let closed = effects.iter().find_map(|effect| match effect {
        Effect::Images {
            images,
            news: ImageNews::Closed(content),
        } if *content == spec().digest => Some(images.clone()),
        _ => None,
    });
    closed.unwrap_or_default()
}

fn failed(failure: Failure) -> Receipt {
    Receipt {
        result: Err(failure),
        ..Receipt::cancelled()
    }
}

/// A link from one state to another, which a host of the fleet made or vouches for.
fn signed(maker: &str, chunk: u32, (before, after): (State, State), vouched: bool) -> Signed {
    let content = spec().digest;
    let notary = notary(&Authority::new(), maker, content);
    let link = Link {
        before,
        after,
        fingerprint: Fingerprint([0; 16]),
        resume: None,
    };
    let chunk = ChunkIndex(chunk);
    if vouched {
        notary.vouch(content, chunk, link).unwrap()
    } else {
        let run = notary.run(&content, None).unwrap();
        notary.sign(content, chunk, link, &run)
    }
}

fn verdict(signed: &Signed) -> Verdict {
    let maker = signed.maker().key();
    Verdict {
        chunk: signed.chunk,
        link: signed.link,
        source: Source {
            sender: maker,
            maker,
        },
        statement: Some(signed.statement.clone()),
    }
}

fn convicted(effects: &[Effect<Made>]) -> Vec<String> {
    let names = |effect: &Effect<Made>| match effect {
        Effect::Convict(links) => Some(links[0].maker().to_string()),
        _ => None,
    };
    effects.iter().filter_map(names).collect()
}

fn sound() -> Walked {
    Walked {
        closed: true,
        ..Walked::default()
    }
}

// ---- coming and going -----------------------------------------------------------------------------------------------

#[test]
fn a_content_of_two_images_has_one_number_and_lies_in_both() {
    let (mut all, id, _) = empty();
    let second = all.add(
        &spec(),
        (image(2), shelf(2)),
        ChunkSet::empty(CHUNKS),
        false,
    );
    assert_eq!(second, (id, false));
    // the image is added twice, and counts once
    all.add(
        &spec(),
        (image(2), shelf(2)),
        ChunkSet::empty(CHUNKS),
        false,
    );
    let content = all.find(id).unwrap();
    assert_eq!(content.images(), [image(1), image(2)]);
    let names: Vec<_> = content.shelves().iter().map(|shelf| shelf.name).collect();
    assert_eq!(names, [1, 2]);
}

#[test]
fn the_last_image_takes_the_content_with_it_and_its_number_is_not_used_again() {
    let (mut all, id, _) = empty();
    all.add(
        &spec(),
        (image(2), shelf(2)),
        ChunkSet::empty(CHUNKS),
        false,
    );
    assert!(all.remove_image(&image(1), None).is_empty());
    assert!(all.remove_image(&image(1), None).is_empty());
    assert_eq!(all.remove_image(&image(2), None), [(id, spec().digest)]);
    assert!(all.find(id).is_none() && all.by_digest(&spec().digest).is_none());
    let (next, new) = all.add(&spec(), (image(1), shelf(1)), ChunkSet::empty(CHUNKS), true);
    assert!(new && next != id);
}

#[test]
fn a_blob_of_the_mirror_goes_by_itself_and_a_content_of_an_image_does_not() {
    let (mut all, id) = mirrored();
    assert!(all.find(id).unwrap().is_mirrored());
    assert!(all.remove_image(&image(1), None).is_empty());
    assert_eq!(all.remove_mirrored(&spec().digest), Some(id));
    assert_eq!(all.remove_mirrored(&spec().digest), None);
    let (mut all, id, _) = empty();
    assert_eq!(all.remove_mirrored(&spec().digest), None);
    assert!(all.find(id).is_some());
}

#[test]
fn peers_name_contents_that_are_known_and_chunks_that_they_have() {
    let (all, id, _) = empty();
    let digest = spec().digest;
    let last = CHUNKS - 1;
    assert_eq!(
        all.locate(digest.as_bytes(), last),
        Some((id, ChunkIndex(last)))
    );
    assert_eq!(all.locate(digest.as_bytes(), CHUNKS), None);
    assert_eq!(all.locate(image(1).as_bytes(), 0), None);
    assert_eq!(all.locate(b"no digest", 0), None);
    let announced = all.announced(&digest, &[1, 2]).unwrap();
    let chunks = ChunkSet::from_runs(CHUNKS, &[1, 2]).unwrap();
    assert_eq!(announced, Some((id, chunks)));
    assert_eq!(all.announced(&image(1), &[1, 2]), Ok(None));
    assert_eq!(
        all.announced(&digest, &[1, 3]),
        Err(ParseRunsError::PastEnd)
    );
}

#[test]
fn a_content_is_for_the_hosts_of_all_its_images() {
    let hosts = |keys: &[u64]| Some(Arc::new(keys.iter().copied().map(HostKey).collect()));
    let entitled = |all: &mut Contents<Made>, id, of: &dyn Fn(&Digest) -> Option<Entitled>| {
        let terms = |image: &Digest| of(image).map(|entitled| Terms { entitled, rank: 0 });
        let effects = all.introduce(id, 4, terms);
        assert!(matches!(effects[1], Effect::Recall { chunks: CHUNKS, .. }));
        match told(&effects).pop() {
            Some(Event::Content { entitled, .. }) => entitled,
            other => panic!("{other:?}"),
        }
    };
    let (mut all, id, _) = empty();
    assert_eq!(
        entitled(&mut all, id, &|_| Some(hosts(&[1, 2]))),
        hosts(&[1, 2])
    );
    // no host may have a forgotten image's contents; if the order names no hosts, every host may
    assert_eq!(entitled(&mut all, id, &|_| None), hosts(&[]));
    assert_eq!(entitled(&mut all, id, &|_| Some(None)), None);
    all.add(
        &spec(),
        (image(2), shelf(2)),
        ChunkSet::empty(CHUNKS),
        false,
    );
    let both = |of: &Digest| Some(hosts(if *of == image(1) { &[1, 2] } else { &[2, 3] }));
    assert_eq!(entitled(&mut all, id, &both), hosts(&[1, 2, 3]));
    let one_open = |of: &Digest| Some(hosts(&[1]).filter(|_| *of == image(1)));
    assert_eq!(entitled(&mut all, id, &one_open), None);
    assert_eq!(all.find(id).unwrap().order(), 4);
    let (mut all, id) = mirrored();
    assert_eq!(entitled(&mut all, id, &|_| Some(hosts(&[1]))), None);
}

#[test]
fn a_content_comes_with_the_first_of_its_images_and_a_blob_of_the_mirror_before_all() {
    let order = |all: &mut Contents<Made>, id, ranks: &dyn Fn(&Digest) -> Option<u16>| {
        let terms = |image: &Digest| {
            Some(Terms {
                entitled: None,
                rank: ranks(image)?,
            })
        };
        match told(&all.introduce(id, 4, terms)).pop() {
            Some(Event::Content { order, .. }) => order,
            other => panic!("{other:?}"),
        }
    };
    let (mut all, id, _) = empty();
    assert_eq!(order(&mut all, id, &|_| Some(0)), order_of(1, 4));
    all.add(
        &spec(),
        (image(2), shelf(2)),
        ChunkSet::empty(CHUNKS),
        false,
    );
    let ranks = |of: &Digest| Some(if *of == image(1) { 3 } else { 1 });
    assert_eq!(order(&mut all, id, &ranks), order_of(2, 4));
    let forgotten = |of: &Digest| ranks(of).filter(|rank| *rank > 1);
    assert_eq!(order(&mut all, id, &forgotten), order_of(4, 4));
    assert_eq!(
        order(&mut all, id, &|_| Some(u16::MAX)),
        order_of(u16::MAX, 4)
    );
    let (mut all, id) = mirrored();
    assert_eq!(order(&mut all, id, &|_| Some(7)), 4);
}

// ---- chunks come ----------------------------------------------------------------------------------------------------

#[test]
fn a_chunk_that_comes_twice_is_counted_once() {
    let (mut all, id, _) = empty();
    let last = i64::from(spec().geometry.len(ChunkIndex(2)));
    assert_eq!(change(&all.arrived(of(id, 2), 5)), last);
    let again = all.arrived(of(id, 2), 5);
    assert_eq!(change(&again), 0);
    // the swarm hears of each arrival
    assert!(matches!(told(&again)[..], [Event::Arrived { .. }]));
}

#[test]
fn the_last_chunk_begins_the_walk_and_no_other() {
    let (mut all, id, _) = with(1);
    assert_eq!(walks(&all.arrived(of(id, 1), 5)), 0);
    assert_eq!(walks(&all.fetched(id, ChunkIndex(2), 5, false)), 1);
    // the walk is under way
    assert!(all.walk_if_whole(id).is_none());
    assert_eq!(walks(&all.arrived(of(id, 2), 5)), 0);
}

#[test]
fn who_sent_a_false_part_is_blamed_for_the_chunk_and_struck() {
    let (_, id, _) = with(1);
    let liar = of(id, 1).peer;
    let effects = Contents::<Made>::lied(id, ChunkIndex(1), &[liar]);
    assert!(matches!(
        effects[..],
        [
            Effect::CountFalse { chunks: 1, .. },
            Effect::BlameBytes(blamed),
            Effect::Tell(Event::NotArrived {
                peer,
                failure: Failure::Bad,
                ..
            }),
        ] if blamed == of(id, 1) && peer == liar
    ));
}

#[test]
fn a_chunk_of_the_registrys_that_differs_from_the_held_one_is_announced_anew() {
    let (mut all, id, _) = with(2);
    let effects = all.fetched(id, ChunkIndex(1), 100, true);
    assert!(matches!(
        told(&effects)[..],
        [
            Event::ChunkLost { .. },
            Event::OriginChunk {
                wire_bytes: 100,
                ..
            }
        ]
    ));
    assert_eq!(change(&effects), 0);
    assert!(matches!(
        &effects[0],
        Effect::Images { images, news: ImageNews::FromOrigin(100) } if *images == [image(1)]
    ));
}

#[test]
fn news_of_a_content_that_is_gone_is_told_to_the_swarm_alone() {
    let (mut all, id, _) = with(2);
    all.remove_image(&image(1), None);
    let effects = all.arrived(of(id, 2), 5);
    assert!(matches!(told(&effects)[..], [Event::Arrived { .. }]));
    assert_eq!((change(&effects), walks(&effects)), (0, 0));
    assert!(all.walked(id, sound()).is_empty());
    assert!(
        all.dropped(id, Ok(vec![ChunkIndex(0)])).is_empty() && all.retract_doubted(id).is_none()
    );
    let failure = all.dropped(id, Err("no room".into()));
    assert!(failure.is_empty());
}

#[test]
fn bytes_that_do_not_fit_their_link_are_blamed_on_who_sent_them() {
    let (mut all, id, _) = empty();
    let receipt = Receipt {
        false_bytes: true,
        other_size: true,
        ..failed(Failure::Bad)
    };
    let effects = all.not_arrived(of(id, 2), Failure::Bad, receipt);
    assert!(matches!(effects[1], Effect::BlameBytes(whose) if whose == of(id, 2)));
    assert!(matches!(
        told(&effects)[..],
        [Event::NotArrived {
            failure: Failure::Bad,
            ..
        }]
    ));
}

#[test]
fn who_sent_a_false_part_is_blamed_when_the_chunk_comes_from_another() {
    let (mut all, id, _) = empty();
    let receipt = Receipt {
        result: Ok(()),
        liars: vec![HostKey(77)],
        ..failed(Failure::Cancelled)
    };
    let effects = all.came(of(id, 2), &receipt);
    let liar = Transfer {
        peer: HostKey(77),
        ..of(id, 2)
    };
    let blamed = |effect: &Effect<_>| matches!(effect, Effect::BlameBytes(who) if *who == liar);
    assert_eq!(effects.iter().filter(|effect| blamed(effect)).count(), 1);
    assert!(matches!(
        told(&effects)[..],
        [
            Event::Arrived { .. },
            Event::NotArrived {
                peer: HostKey(77),
                failure: Failure::Bad,
                ..
            }
        ]
    ));
}

#[test]
fn a_peer_that_was_told_another_size_of_a_mirrors_blob_is_not_blamed() {
    let (mut all, id) = mirrored();
    let receipt = || Receipt {
        false_bytes: true,
        ..failed(Failure::Bad)
    };
    let other_size = Receipt {
        other_size: true,
        ..receipt()
    };
    let effects = all.not_arrived(of(id, 2), Failure::Bad, other_size);
    assert!(matches!(
        told(&effects)[..],
        [Event::NotArrived {
            failure: Failure::Refused,
            ..
        }]
    ));
    assert_eq!(effects.len(), 1);
    // another size doesn't explain these failures
    let effects = all.not_arrived(of(id, 0), Failure::Bad, receipt());
    assert!(matches!(effects[1], Effect::BlameBytes(_)));
}

#[test]
fn a_volume_that_fails_is_that_of_images_or_that_of_the_mirror() {
    let failing = |(mut all, id): (Contents<Made>, ContentId)| {
        let receipt = Receipt {
            storage_error: Some("no space".into()),
            ..failed(Failure::NotStored)
        };
        let effects = all.not_arrived(of(id, 0), Failure::NotStored, receipt);
        match &effects[0] {
            Effect::NotStored { mirrored, error } if error == "no space" => *mirrored,
            other => panic!("{other:?}"),
        }
    };
    let (all, id, _) = empty();
    assert!(!failing((all, id)));
    assert!(failing(mirrored()));
}

#[test]
fn links_that_contradict_each_other_convict_their_maker_at_once() {
    let (mut all, id, _) = empty();
    let links = [1, 2].map(|at| signed("liar", 0, (State::INITIAL, state(at)), false));
    let receipt = Receipt {
        contradiction: Some(Box::new(links)),
        ..failed(Failure::Disproved)
    };
    let effects = all.not_arrived(of(id, 0), Failure::Disproved, receipt);
    assert_eq!(convicted(&effects), ["liar"]);
    let liar: HostId = "liar".parse().unwrap();
    assert!(told(&effects).contains(&Event::Blamed(liar.key())));
}

// ---- verifying ------------------------------------------------------------------------------------------------------

#[test]
fn a_walk_that_ends_well_closes_the_content_for_each_of_its_images() {
    let (mut all, id, shelf_one) = with(3);
    let shelf_two = shelf(2);
    all.add(
        &spec(),
        (image(2), shelf_two.clone()),
        ChunkSet::empty(CHUNKS),
        false,
    );
    assert!(all.walk_if_whole(id).is_some());
    shelf_one.closed.set(true);
    shelf_two.closed.set(true);
    let effects = all.walked(id, sound());
    assert_eq!(closed_images(&effects), [image(1), image(2)]);
    assert!(all.find(id).unwrap().is_closed());
    assert!(all.walk_if_whole(id).is_none());
}

#[test]
fn what_rotted_while_the_walk_looked_is_walked_again() {
    let (mut all, id, shelf) = with(3);
    all.walk_if_whole(id);
    // the walk found the chain closed, and the chain isn't closed any more
    let effects = all.walked(id, sound());
    assert_eq!((walks(&effects), closed_images(&effects).len()), (1, 0));
    shelf.closed.set(true);
    assert_eq!(closed_images(&all.walked(id, sound())), [image(1)]);
}

#[test]
fn an_image_that_comes_during_the_walk_is_looked_at_in_the_next() {
    let (mut all, id, shelf_one) = with(3);
    all.walk_if_whole(id);
    all.add(
        &spec(),
        (image(2), shelf(2)),
        ChunkSet::empty(CHUNKS),
        false,
    );
    assert!(all.walk_if_whole(id).is_none());
    shelf_one.closed.set(true);
    assert_eq!(walks(&all.walked(id, sound())), 1);
}

#[test]
fn an_image_that_brings_a_verified_content_unverified_opens_it() {
    let (mut all, shelf_one) = (contents(), shelf(1));
    shelf_one.closed.set(true);
    let full = ChunkSet::full(CHUNKS);
    let (id, _) = all.add(&spec(), (image(1), shelf_one), full.clone(), true);
    assert!(all.find(id).unwrap().is_closed());
    all.add(&spec(), (image(2), shelf(2)), full.clone(), true);
    assert!(all.find(id).unwrap().is_closed());
    all.add(&spec(), (image(3), shelf(3)), full, false);
    assert!(!all.find(id).unwrap().is_closed());
    assert!(all.walk_if_whole(id).is_some());
}

#[test]
fn a_walk_that_proves_a_chunk_false_asks_for_it_again_and_names_nobody_yet() {
    let (mut all, id, _) = with(3);
    all.walk_if_whole(id);
    let lie = signed("liar", 1, (state(1), state(99)), true);
    let walked = Walked {
        verdicts: vec![verdict(&lie)],
        ..Walked::default()
    };
    let effects = all.walked(id, walked);
    assert_eq!(asked_again(&effects), [1]);
    assert_eq!(
        change(&effects),
        -i64::from(spec().geometry.len(ChunkIndex(1)))
    );
    assert!(convicted(&effects).is_empty());
    // nothing more of that run is taken
    let chunk = all.find(id).unwrap().chunk(ChunkIndex(0), Instant::now());
    assert!(chunk.suspects.refuse(&lie.statement.run));
}

#[test]
fn who_vouched_for_a_false_link_is_named_and_blamed_once_the_content_is_verified() {
    for vouched in [true, false] {
        let (mut all, id, shelf) = with(3);
        all.walk_if_whole(id);
        let lie = signed("liar", 1, (state(1), state(99)), vouched);
        all.walked(
            id,
            Walked {
                verdicts: vec![verdict(&lie)],
                ..Walked::default()
            },
        );
        assert_eq!(walks(&all.arrived(of(id, 1), 5)), 1);
        shelf.closed.set(true);
        let effects = all.walked(id, sound());
        assert_eq!(convicted(&effects), ["liar"]);
        // links that were made of the registry's bytes may be false through the registry's fault
        let blamed = told(&effects).contains(&Event::Blamed(lie.maker().key()));
        assert_eq!(blamed, vouched);
        assert_eq!(closed_images(&effects), [image(1)]);
    }
}

#[test]
fn a_true_link_and_a_link_of_this_host_convict_nobody() {
    let (mut all, id, shelf) = with(3);
    all.walk_if_whole(id);
    shelf.closed.set(true);
    all.walked(id, sound());
    for innocent in [
        signed("honest", 1, (state(1), state(2)), true),
        signed("me", 1, (state(1), state(99)), true),
    ] {
        let receipt = Receipt {
            false_link: Some(Box::new(innocent)),
            ..failed(Failure::Disproved)
        };
        let effects = all.not_arrived(of(id, 1), Failure::Disproved, receipt);
        assert!(convicted(&effects).is_empty(), "{effects:?}");
    }
}

#[test]
fn what_an_image_lacks_after_a_walk_is_asked_for_again_unless_the_volume_failed() {
    let lacking = |storage_error: Option<&str>| {
        let (mut all, id, _) = with(3);
        all.walk_if_whole(id);
        let walked = Walked {
            lacking: vec![ChunkIndex(2)],
            storage_error: storage_error.map(Into::into),
            ..Walked::default()
        };
        all.walked(id, walked)
    };
    let effects = lacking(None);
    assert_eq!(asked_again(&effects), [2]);
    let effects = lacking(Some("no space"));
    assert!(asked_again(&effects).is_empty());
    assert!(
        matches!(&effects[..], [Effect::NotStored { mirrored: false, error }] if error == "no space")
    );
}

#[test]
fn a_verified_content_that_rots_is_opened_and_walked_before_anything_is_asked_for() {
    let (mut all, id, shelf) = with(3);
    all.walk_if_whole(id);
    shelf.closed.set(true);
    all.walked(id, sound());
    let effects = all.rotted(image(1), spec().digest, &[ChunkIndex(1)]);
    assert!(effects.iter().any(|effect| matches!(
        effect,
        Effect::Images { images, news: ImageNews::Opened(content) }
            if *images == [image(1)] && *content == spec().digest
    )));
    assert_eq!((walks(&effects), asked_again(&effects).len()), (1, 0));
    assert!(!all.find(id).unwrap().is_closed());
}

#[test]
fn what_rots_of_a_content_that_is_still_coming_is_asked_for_again() {
    let (mut all, id, _) = with(2);
    let effects = all.rotted(image(1), spec().digest, &[ChunkIndex(1), ChunkIndex(2)]);
    // the third chunk wasn't held
    assert_eq!(asked_again(&effects), [1]);
    assert_eq!(walks(&effects), 0);
    // an image that doesn't have the content any more
    let effects = all.rotted(image(2), spec().digest, &[ChunkIndex(0)]);
    assert!(asked_again(&effects).is_empty());
    assert!(all.find(id).unwrap().held().contains(ChunkIndex(0)));
}

#[test]
fn a_chunk_that_is_dropped_while_the_walk_looks_keeps_the_content_open() {
    let (mut all, id, shelf) = with(3);
    all.walk_if_whole(id);
    assert_eq!(asked_again(&all.dropped(id, Ok(vec![ChunkIndex(1)]))), [1]);
    shelf.closed.set(true);
    let effects = all.walked(id, sound());
    assert!(closed_images(&effects).is_empty());
    assert!(!all.find(id).unwrap().is_closed());
    // the chunk comes again, and the next walk closes the content
    assert_eq!(walks(&all.arrived(of(id, 1), 5)), 1);
    assert_eq!(closed_images(&all.walked(id, sound())), [image(1)]);
}

#[test]
fn the_scrub_goes_around_the_verified_contents_of_images() {
    let mut all = contents();
    let full = ChunkSet::full(CHUNKS);
    let mut add = |seed: u8, closed| {
        let spec = ContentSpec {
            digest: Digest::of(&[seed]),
            ..spec()
        };
        all.add(&spec, (image(1), shelf(1)), full.clone(), closed).0
    };
    let (first, _open, third) = (add(1, true), add(2, false), add(3, true));
    let what = (Digest::of(b"blob"), spec().geometry);
    let blob = all.add_mirrored(what, shelf(9), full, true);
    let next = |id| all.closed_from(id).map(Content::id);
    assert_eq!(next(first), Some(first));
    assert_eq!(next(ContentId(first.0 + 1)), Some(third));
    assert_eq!(next(blob), Some(first));
    assert!(contents().closed_from(first).is_none());
}

// ---- what is false --------------------------------------------------------------------------------------------------

#[test]
fn what_a_doubted_fetch_made_is_taken_back_once() {
    let (mut all, id, _) = with(2);
    assert!(all.retract_doubted(id).is_none());
    all.fetch_doubted(id);
    assert!(matches!(
        all.retract_doubted(id),
        Some(Effect::Retract { .. })
    ));
    assert!(all.retract_doubted(id).is_none());
    // the second download brought the same bytes: the links that this host made are true
    all.fetch_doubted(id);
    all.fetch_done(id);
    assert!(all.retract_doubted(id).is_none());
    all.fetch_bad(id);
    assert!(all.retract_doubted(id).is_some());
}

#[test]
fn a_retraction_is_told_to_the_fleet_and_its_chunks_are_asked_for_again() {
    let (mut all, id, _) = with(2);
    all.fetch_doubted(id);
    let now = Instant::now();
    let effects = all.retracted(now, id, ChunkIndex(1), Ok(vec![ChunkIndex(1)]));
    assert!(matches!(
        effects[0],
        Effect::TakeBack {
            from: ChunkIndex(1),
            ..
        }
    ));
    assert_eq!(asked_again(&effects), [1]);
    assert!(all.retract_doubted(id).is_none());
    // for a while, the links that this host made aren't taken from others
    let content = all.find(id).unwrap();
    let almost = now + Duration::from_millis(9_999);
    assert!(content.chunk(ChunkIndex(0), almost).dropped_lately);
    let later = now + Duration::from_secs(10);
    assert!(!content.chunk(ChunkIndex(0), later).dropped_lately);
}

#[test]
fn what_another_host_made_is_dropped_from_the_chunk_on_unless_the_content_is_verified() {
    let (mut all, id, shelf) = with(3);
    let digest = spec().digest;
    let effect = all.drop_made(&digest, peer(7), ChunkIndex(1));
    assert!(matches!(effect, Some(Effect::Drop { from, .. }) if from == of(id, 1)));
    assert!(
        all.drop_made(&digest, me().key(), ChunkIndex(1)).is_none(),
        "its own is retracted otherwise"
    );
    assert!(
        all.drop_made(&image(1), peer(7), ChunkIndex(1)).is_none(),
        "a content that isn't known"
    );
    all.walk_if_whole(id);
    shelf.closed.set(true);
    all.walked(id, sound());
    assert!(all.drop_made(&digest, peer(7), ChunkIndex(1)).is_none());
}

#[test]
fn no_recipe_of_hosts_takes_the_name_of_something_else() {
    let (mut contents, id) = mirrored();
    let blob = contents.find(id).unwrap();
    let (name, geometry) = (blob.digest(), blob.geometry());
    // the mirror may have the registry's recipe as a blob
    assert!(contents.may_be_recipe((&name, geometry), false));
    assert!(!contents.may_be_recipe((&name, geometry), true));
    contents.remove_mirrored(&name);
    assert!(contents.may_be_recipe((&name, geometry), true));
    let (recipe, _) = contents.add_recipe(
        (name, geometry),
        (image(1), shelf(1)),
        ChunkSet::empty(CHUNKS),
        false,
    );
    assert!(contents.may_be_recipe((&name, geometry), true));
    let other = Geometry::new(geometry.size() + 1).unwrap();
    assert!(!contents.may_be_recipe((&name, other), false));
    // what an image doesn't use leaves, and nothing else does
    contents.add_recipe(
        (name, geometry),
        (image(2), shelf(2)),
        ChunkSet::empty(CHUNKS),
        false,
    );
    assert_eq!(contents.remove_image(&image(1), Some(&name)), []);
    let gone = contents.remove_image(&image(2), Some(&name));
    assert_eq!(gone, [(recipe, name)]);

    let (mut contents, id, _) = empty();
    let of_image = contents.find(id).unwrap();
    let (name, geometry) = (of_image.digest(), of_image.geometry());
    assert!(!contents.may_be_recipe((&name, geometry), false));
    assert_eq!(contents.remove_image(&image(1), Some(&name)), []);
    assert!(contents.find(id).is_some());
}
