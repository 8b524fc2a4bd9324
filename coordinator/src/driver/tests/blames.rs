//! Tests blames, with proofs and without.

use super::*;

#[tokio::test]
async fn hosts_that_two_others_prove_to_lie_are_shunned_by_all() {
    let mut world = World::new();
    let (one, mut first) = world.open("one", World::hello());
    let (two, _second) = world.open("two", World::hello());
    let (_, _liar) = world.open("liar", World::hello());
    for (host, session) in [("one", one), ("two", two)] {
        assert!(
            !world
                .host_or_none("liar")
                .is_some_and(|host| host.quarantined)
        );
        world.report(
            host,
            session,
            message::Report {
                blames: vec![message::Blame {
                    host: "liar".into(),
                    maker: "liar".into(),
                    kind: message::BlameKind::Bytes.into(),
                    ..message::Blame::default()
                }],
                ..message::Report::default()
            },
        );
        world.settle();
    }
    assert!(world.host("liar").quarantined);
    world.settle();
    let shunned = taken(&mut first, |kind| match kind {
        Kind::Limits(limits) => Some(limits.revoked_hosts.clone()),
        _ => None,
    });
    assert_eq!(shunned.last().unwrap(), &["liar"]);
}

#[test]
fn a_host_that_is_blamed_for_bytes_is_asked_to_look_at_them_once() {
    let mut world = World::new();
    let (_, mut orders) = world.open("mini-1", World::hello());
    let (accuser, _other) = world.open("mini-2", World::hello());
    let mut blame = |world: &mut World, chunks: &[u32], kind: message::BlameKind| {
        let blames = chunks.iter().map(|chunk| message::Blame {
            host: "mini-1".into(),
            maker: "mini-1".into(),
            content: vec![7; 32],
            chunk: *chunk,
            kind: kind.into(),
            ..message::Blame::default()
        });
        let report = message::Report {
            blames: blames.collect(),
            ..message::Report::default()
        };
        world.report("mini-2", accuser, report);
        world.driver.views.hurry();
        world.driver.flush();
        let orders = std::iter::from_fn(|| orders.try_recv().ok());
        let asked = orders.filter_map(|order| match &order.kind {
            Some(Kind::Recheck(recheck)) => Some(recheck.chunks.clone()),
            _ => None,
        });
        asked.collect::<Vec<_>>()
    };
    let asked = blame(&mut world, &[3, 3, 9], message::BlameKind::Bytes);
    let chunks: Vec<_> = asked.concat().iter().map(|asked| asked.chunk).collect();
    assert_eq!((asked.len(), chunks), (1, vec![3, 9]));
    assert_eq!(asked[0][0].content, vec![7; 32]);
    // one order, however many blames
    let many: Vec<u32> = (0..500).collect();
    let asked = blame(&mut world, &many, message::BlameKind::Bytes);
    assert_eq!(
        (asked.len(), asked[0].len()),
        (1, crate::driver::blames::MAX_BLAMES)
    );
    // a blame of a false link doesn't ask for a look at the disk
    assert!(blame(&mut world, &[3], message::BlameKind::Link).is_empty());
    // a host is heard only 64 times a minute: 3, 16 and 1 so far, and 44 more
    let heard = [16, 16, 12, 0];
    for (round, heard) in (1..).zip(heard) {
        let chunks: Vec<u32> = (round * 1_000..round * 1_000 + 100).collect();
        let asked = blame(&mut world, &chunks, message::BlameKind::Bytes).concat();
        assert_eq!(asked.len(), heard, "{round}");
    }
}

#[test]
fn a_flood_of_blames_costs_the_coordinator_little() {
    let mut world = World::new();
    let hosts: Vec<String> = (0..50).map(|number| format!("mini-{number}")).collect();
    let opened: Vec<_> = hosts
        .iter()
        .map(|host| world.open(host, World::hello()))
        .collect();
    let liar = opened[0].0;
    let began = Instant::now();
    let mut said = 0;
    for host in &hosts[1..] {
        // with more blames in a report, the session would end
        let blames = (0u32..2_560).map(|number| message::Blame {
            host: host.clone(),
            maker: host.clone(),
            content: Digest::of(&number.to_le_bytes()).as_bytes().to_vec(),
            chunk: number,
            kind: message::BlameKind::Bytes.into(),
            ..message::Blame::default()
        });
        let report = message::Report {
            blames: blames.collect(),
            ..message::Report::default()
        };
        said += report.blames.len();
        world.report("mini-0", liar, report);
        world.driver.views.hurry();
        world.driver.flush();
    }
    let took = began.elapsed();
    println!("{said} blames of one host cost {took:?}");
    assert_eq!(said, 125_440);
    assert!(took < Duration::from_secs(5), "{took:?}");
    let view = world.view.borrow().clone();
    let blames: u64 = view.hosts.values().map(|host| host.blames).sum();
    assert_eq!(blames, 64);
    assert!(view.hosts.values().all(|host| !host.quarantined));
}

/// A link that this host made in the run of this number, or vouched for (0), with a ticket of the fleet's authority.
fn signed(
    world: &World,
    maker: &str,
    run: u64,
    chunk: u32,
    before: u8,
    after: u8,
) -> proto::Signed {
    use proto::statement::Run;

    let signer = wire::LinkSigner::from_seed(&[maker.as_bytes()[0]; 32]);
    let content = Digest::from_bytes([7; 32]);
    let of = (run > 0).then_some(content);
    let (host, hour) = (maker.parse().unwrap(), Duration::from_hours(1));
    let authority = &world.authority;
    let ticket = authority.ticket(of, &host, signer.public(), run + 1, hour);
    let ticket = Arc::new(ticket.unwrap());
    let run = match run {
        0 => Run::vouched(ticket),
        number => Run::made(ticket, number, None),
    };
    let link = proto::Link {
        before: proto::State::from_bytes(&[before; 32]),
        after: proto::State::from_bytes(&[after; 32]),
        fingerprint: proto::Fingerprint([0; 16]),
        resume: None,
    };
    let sign = |bytes: &[u8]| signer.sign(bytes);
    proto::Signed::new(content, proto::ChunkIndex(chunk), link, Arc::new(run), sign)
}

fn shown(links: &[proto::Signed]) -> message::Report {
    let evidence = links.iter().map(|signed| message::SignedLink {
        chunk: signed.chunk.0,
        link: Some(signed.to_message()),
    });
    message::Report {
        blames: vec![message::Blame {
            content: vec![7; 32],
            kind: message::BlameKind::Link.into(),
            evidence: evidence.collect(),
            ..message::Blame::default()
        }],
        ..message::Report::default()
    }
}

fn blamed(world: &mut World, host: &str) -> (u64, bool) {
    world.driver.apply(Input::Tick);
    let now = world.driver.now();
    world.driver.show(now);
    let host: HostId = host.parse().unwrap();
    let view = world.view.borrow().clone();
    (view.hosts[&host].blames, view.hosts[&host].quarantined)
}

#[test]
fn two_links_that_a_host_signed_and_that_contradict_each_other_convict_it() {
    let mut world = World::new();
    let (_, _liar) = world.open("liar", World::hello());
    let (session, _one) = world.open("one", World::hello());
    // links that the host didn't sign, or that don't contradict each other, prove nothing
    let mut forged = signed(&world, "liar", 1, 5, 2, 9);
    forged.statement.signature[0] ^= 1;
    let first = signed(&world, "liar", 1, 4, 1, 2);
    world.report("one", session, shown(&[first.clone(), forged]));
    let after = signed(&world, "liar", 1, 5, 2, 3);
    world.report("one", session, shown(&[first.clone(), after]));
    assert_eq!(blamed(&mut world, "liar"), (0, false));
    // two links of different hosts prove nothing, whichever host the blame names
    let (two, _two) = world.open("two", World::hello());
    let other = signed(&world, "two", 1, 5, 8, 9);
    world.report("two", two, shown(&[first.clone(), other]));
    assert_eq!(blamed(&mut world, "liar"), (0, false));
    // one blame that shows both links is enough
    let apart = signed(&world, "liar", 1, 5, 8, 9);
    world.report("two", two, shown(&[first, apart]));
    assert_eq!(blamed(&mut world, "liar"), (1, true));
}

#[test]
fn false_registry_bytes_blame_no_host() {
    let mut world = World::new();
    world.open("maker", World::hello());
    let made = signed(&world, "maker", 1, 5, 8, 9);
    let vouched = signed(&world, "maker", 0, 5, 8, 9);
    for number in 0..5 {
        let (session, _) = world.open(&format!("other-{number}"), World::hello());
        world.report(
            &format!("other-{number}"),
            session,
            shown(std::slice::from_ref(&made)),
        );
    }
    assert_eq!(blamed(&mut world, "maker"), (0, false));
    let kinds = |world: &World, kind| {
        let label = KindLabel { kind };
        world.driver.metrics.blames.get_or_create(&label).get()
    };
    assert_eq!((kinds(&world, "made"), kinds(&world, "link")), (5, 0));
    // a host that vouches for a link says that it has verified it
    for number in 5..9 {
        let (session, _) = world.open(&format!("other-{number}"), World::hello());
        world.report(
            &format!("other-{number}"),
            session,
            shown(std::slice::from_ref(&vouched)),
        );
    }
    assert_eq!(blamed(&mut world, "maker"), (4, true));
    assert_eq!((kinds(&world, "made"), kinds(&world, "link")), (5, 4));
}
