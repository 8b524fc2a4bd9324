//! Chunks between this host and its peers: who is asked, what comes of it, what is counted, and who is blamed.

use super::*;

// ---- asking and receiving -------------------------------------------------------------------------------------------

#[test]
fn what_a_peer_announces_is_asked_of_it_over_its_connection() {
    let (mut world, id) = World::with([]);
    let asked = world.asking();
    assert_eq!((asked.transfer.peer, asked.transfer.id), (key("a"), id));
    assert_eq!(asked.line, Some(1));
}

#[test]
fn a_chunk_that_came_is_held_and_is_to_be_journaled() {
    let (mut world, id) = World::with([]);
    let asked = world.asking();
    let effects = world.received(&asked, stored(100));
    assert_eq!(world.held(id), Some(1));
    assert_eq!(
        news(&effects, image(1)),
        [
            ImageNews::FromPeers(100),
            ImageNews::OriginIsFine,
            ImageNews::Gained(proto::CHUNK_BYTES),
        ]
    );
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::Stored))
    );
}

#[test]
fn bytes_are_counted_with_one_image_and_the_gain_with_each() {
    let (mut world, _) = World::with([]);
    world.add(image(2), ChunkSet::empty(CHUNKS));
    world.effects();
    let asked = world.asking();
    let effects = world.received(&asked, stored(100));
    let second = news(&effects, image(2));
    assert!(news(&effects, image(1)).contains(&ImageNews::FromPeers(100)));
    assert!(!second.contains(&ImageNews::FromPeers(100)));
    assert!(second.contains(&ImageNews::Gained(proto::CHUNK_BYTES)));
}

#[test]
fn of_a_chunk_that_came_in_part_the_rest_counts_as_this_hosts_own() {
    let (mut world, _) = World::with([]);
    let asked = world.asking();
    let receipt = Receipt {
        local_bytes: 900,
        ..stored(100)
    };
    let effects = world.received(&asked, receipt);
    assert_eq!(
        (world.bytes_from(From::Peers), world.bytes_from(From::Local)),
        (100, 900)
    );
    assert!(news(&effects, image(1)).contains(&ImageNews::FromHere(900)));
}

#[test]
fn a_chunk_that_comes_twice_is_gained_once_and_its_bytes_are_counted_twice() {
    let (mut world, id) = World::with([]);
    let asked = world.asking();
    world.received(&asked, stored(100));
    let effects = world.received(&asked, stored(100));
    assert!(!news(&effects, image(1)).contains(&ImageNews::Gained(proto::CHUNK_BYTES)));
    assert_eq!(
        (world.held(id), world.bytes_from(From::Peers)),
        (Some(1), 200)
    );
}

#[test]
fn a_chunk_of_a_content_that_left_meanwhile_is_heard_without_harm() {
    let (mut world, id) = World::with([]);
    let asked = world.asking();
    world.exchange.withdraw(&image(1), None);
    world.effects();
    let effects = world.received(&asked, stored(100));
    assert!(effects.is_empty(), "{effects:?}");
    assert_eq!((world.held(id), world.bytes_from(From::Peers)), (None, 100));
}

#[test]
fn an_image_whose_files_cant_be_written_is_told_before_the_chunk_counts() {
    let (mut world, id) = World::with([]);
    let asked = world.asking();
    let receipt = Receipt {
        unwritable: vec![(image(1), "no space".into())],
        ..stored(100)
    };
    let mut effects = world.received(&asked, receipt);
    assert_eq!(
        news(&effects, image(1)),
        [ImageNews::Unwritable("no space".into())]
    );
    assert_eq!(
        (world.held(id), world.bytes_from(From::Peers)),
        (Some(0), 0)
    );
    let Some(Effect::Hear(Input::Received {
        transfer,
        number,
        receipt,
    })) = effects.pop()
    else {
        panic!("the chunk is heard again: {effects:?}");
    };
    world.exchange.received(transfer, number, receipt);
    assert_eq!(
        (world.held(id), world.bytes_from(From::Peers)),
        (Some(1), 100)
    );
}

#[test]
fn a_volume_that_takes_nothing_is_no_fault_of_the_peer() {
    let (mut world, _) = World::with([]);
    let asked = world.asking();
    let receipt = Receipt {
        storage_error: Some("no space".into()),
        ..failed(Failure::NotStored)
    };
    let effects = world.received(&asked, receipt);
    assert!(effects.iter().any(|effect| matches!(
        effect,
        Effect::NotStored { mirrored: false, error } if error == "no space"
    )));
    assert!(blamed(&effects).is_empty() && world.false_from(From::Peers) == 0);
}

#[test]
fn when_the_last_chunk_came_the_chain_is_walked_and_then_the_image_is_told() {
    let (mut world, id) = World::with([0, 1, 2]);
    let asked = world.asking();
    let effects = world.received(&asked, stored(100));
    let walks = effects.iter().filter(|effect| {
        matches!(effect, Effect::Run(Errand::Walk { id: walked, chunks: CHUNKS, .. }) if *walked == id)
    });
    assert_eq!(walks.count(), 1);
    world.shelf.closed.set(true);
    let walked = Walked {
        closed: true,
        ..Walked::default()
    };
    world.exchange.walked(id, walked);
    let effects = world.effects();
    assert!(news(&effects, image(1)).contains(&ImageNews::Closed(spec().digest)));
}

// ---- peers that lie -------------------------------------------------------------------------------------------------

#[test]
fn a_peer_that_lies_is_blamed_with_its_content_and_counted() {
    let (mut world, _) = World::with([]);
    let asked = world.asking();
    let effects = world.received(&asked, lie());
    let content = Some(spec().digest);
    assert_eq!(blamed(&effects)[0], ("a".into(), content, BlameKind::Bytes));
    assert_eq!(world.false_from(From::Peers), 1);
}

#[test]
fn what_a_peer_lied_about_is_asked_of_another() {
    let (mut world, _) = World::with([0, 1, 2]);
    let from_a = world.asking();
    world.brought("b", Brought::Update(whole()));
    let mut effects = world.received(&from_a, lie());
    effects.extend(world.pass(Duration::from_secs(1)));
    let again = asked(&effects).remove(0);
    assert_eq!(
        again.transfer,
        Transfer {
            peer: key("b"),
            ..from_a.transfer
        }
    );
}

#[test]
fn a_peer_whose_part_turns_out_false_is_blamed_when_the_whole_chunk_is_here() {
    let (mut world, id) = World::with([]);
    let asked = world.asking();
    let receipt = Receipt {
        liars: vec![key("b")],
        ..stored(100)
    };
    let effects = world.received(&asked, receipt);
    let content = Some(spec().digest);
    assert_eq!(blamed(&effects)[0], ("b".into(), content, BlameKind::Bytes));
    assert_eq!(
        (world.held(id), world.false_from(From::Peers)),
        (Some(1), 1)
    );
}

#[test]
fn a_stranger_that_lied_is_counted_but_cant_be_named() {
    let (mut world, _) = World::with([]);
    let asked = world.asking();
    let receipt = Receipt {
        liars: vec![key("stranger")],
        ..stored(100)
    };
    assert!(blamed(&world.received(&asked, receipt)).is_empty());
    assert_eq!(world.false_from(From::Peers), 1);
}

#[test]
fn who_signed_two_links_that_contradict_is_convicted_and_not_the_sender() {
    let (mut world, _) = World::with([]);
    let asked = world.asking();
    let content = spec().digest;
    let liar = notary(&Authority::new(), "b", content);
    let link = |after: u8| Link {
        before: State::INITIAL,
        after: State::from_bytes(&[after; 32]),
        fingerprint: Fingerprint([0; 16]),
        resume: None,
    };
    let signed = [1, 2].map(|after| liar.vouch(content, ChunkIndex(0), link(after)).unwrap());
    let receipt = Receipt {
        contradiction: Some(Box::new(signed.clone())),
        ..failed(Failure::Disproved)
    };
    let effects = world.received(&asked, receipt);
    let convicted = effects.iter().find_map(|effect| match effect {
        Effect::Convict(links) => Some(links.clone()),
        _ => None,
    });
    assert_eq!(convicted, Some(signed.to_vec()));
    assert_eq!(world.exchange.status().quarantined, [key("b")]);
}

#[test]
fn links_that_their_maker_takes_back_are_dropped_and_what_it_sends_is_given_up() {
    let (mut world, id) = World::with([]);
    let asked = world.asking();
    world
        .exchange
        .drop_made(&spec().digest, key("a"), ChunkIndex(0));
    assert!(asked.receiving.token.is_cancelled());
    let from = Transfer {
        peer: key("a"),
        id,
        chunk: ChunkIndex(0),
    };
    let effects = world.effects();
    assert!(effects.iter().any(
        |effect| matches!(effect, Effect::Run(Errand::DropMade { from: of, .. }) if *of == from)
    ));
}

#[test]
fn chunks_that_rotted_are_lost_to_their_image_and_wanted_again() {
    let (mut world, id) = World::with([0, 1]);
    world
        .exchange
        .rotted(image(1), spec().digest, &[ChunkIndex(1)]);
    let effects = world.effects();
    assert!(news(&effects, image(1)).contains(&ImageNews::Lost(proto::CHUNK_BYTES)));
    assert_eq!(world.held(id), Some(1));
}

// ---- asked and sent -------------------------------------------------------------------------------------------------

#[test]
fn a_request_is_answered_on_the_stream_on_which_it_came() {
    let (mut world, id) = World::with([0]);
    let effects = world.brought("a", request(0));
    let Effect::Run(Errand::Serve {
        transfer,
        asked,
        chunk,
        ..
    }) = &effects[0]
    else {
        panic!("{effects:?}");
    };
    assert_eq!(
        (transfer.peer, transfer.id, asked.answer),
        (key("a"), id, "answer")
    );
    assert_eq!((chunk.content, chunk.index), (spec().digest, ChunkIndex(0)));
}

#[test]
fn a_request_for_what_no_content_has_is_refused_without_asking_the_swarm() {
    let (mut world, _) = World::with([0]);
    let effects = world.brought("a", request(CHUNKS));
    assert!(matches!(
        effects[..],
        [Effect::Run(Errand::Refuse {
            answer: "answer",
            why: Declined::Missing
        })]
    ));
}

#[test]
fn an_upload_is_counted_with_the_first_image_whatever_became_of_it() {
    let (mut world, id) = World::with([0]);
    world.add(image(2), ChunkSet::empty(CHUNKS));
    world.effects();
    let effects = world.sent(id, 0, Delivery::Broken);
    assert_eq!(world.metrics.sent_bytes.get(), 70);
    assert_eq!(news(&effects, image(1)), [ImageNews::Uploaded(70)]);
    assert!(news(&effects, image(2)).is_empty());
}

#[test]
fn a_chunk_that_a_peer_calls_false_is_looked_at() {
    let (mut world, id) = World::with([0]);
    let looks = |effects: Vec<Effect<Made>>| {
        let look = |effect: &&Effect<Made>| matches!(effect, Effect::Look { .. });
        effects.iter().filter(look).count()
    };
    assert_eq!(looks(world.sent(id, 0, Delivery::Stored)), 0);
    assert_eq!(looks(world.sent(id, 0, Delivery::Bad)), 1);
    // of a content that left, there is nothing to look at
    world.exchange.withdraw(&image(1), None);
    assert_eq!(looks(world.sent(id, 0, Delivery::Bad)), 0);
}

#[test]
fn an_offer_is_taken_with_its_header_and_its_streams() {
    let (mut world, id) = World::with([]);
    let header = ChunkHeader {
        wire_bytes: 77,
        ..ChunkHeader::default()
    };
    let effects = world.brought("a", push(1, Some(header)));
    let Effect::Run(Errand::Accept {
        transfer, offer, ..
    }) = &effects[0]
    else {
        panic!("{effects:?}");
    };
    assert_eq!((transfer.id, transfer.chunk), (id, ChunkIndex(1)));
    assert_eq!((offer.answer, offer.bytes), ("answer", "bytes"));
    assert_eq!((offer.header.wire_bytes, offer.sends_parts), (77, true));
}

#[test]
fn an_offer_of_what_is_here_is_declined_and_one_without_a_header_is_unwanted() {
    let (mut world, _) = World::with([0]);
    let mut declined = |brought| {
        let effects = world.brought("a", brought);
        match effects[0] {
            Effect::Run(Errand::Decline {
                answer: "answer",
                bytes: "bytes",
                why,
            }) => why,
            ref other => panic!("{other:?}"),
        }
    };
    let header = Some(ChunkHeader::default());
    assert_eq!(declined(push(0, header.clone())), Declined::Already);
    assert_eq!(declined(push(1, None)), Declined::Unwanted);
    assert_eq!(declined(push(CHUNKS, header)), Declined::Unwanted);
}

impl World {
    /// An upload of 70 bytes to `a` ended, which was a push.
    fn sent(&mut self, id: ContentId, chunk: u32, delivery: Delivery) -> Vec<Effect<Made>> {
        let transfer = Transfer {
            peer: key("a"),
            id,
            chunk: ChunkIndex(chunk),
        };
        let shipment = Shipment {
            delivery,
            wire_bytes: 70,
            work_bytes: 70,
        };
        self.exchange.sent(transfer, None, shipment);
        self.effects()
    }
}
