//! A random sequence of events against a plain model of what the shell knows.

use super::*;

/// The state of the shell, as the property below believes it to be.
#[derive(Debug, Default)]
struct Model {
    known: BTreeSet<HostKey>,
    up: BTreeSet<HostKey>,
    held: BTreeMap<ContentId, ChunkSet>,
    entitled: BTreeMap<ContentId, Entitled>,
    leased: BTreeSet<ContentId>,
    wanted: BTreeSet<ContentId>,
    coordinator_lost: Option<u64>,
    asked: Vec<(HostKey, ContentId, ChunkIndex)>,
    uploads: Vec<(HostKey, ContentId, ChunkIndex, Option<Ticket>)>,
    questions: BTreeMap<Ticket, (HostKey, ContentId, ChunkIndex)>,
}

impl Model {
    fn end_line(&mut self, peer: HostKey) {
        self.up.remove(&peer);
        self.asked.retain(|(other, ..)| *other != peer);
        self.uploads.retain(|(other, ..)| *other != peer);
    }

    fn entitles(&self, peer: HostKey, id: ContentId) -> bool {
        let entitled = self.entitled[&id].as_ref();
        entitled.is_none_or(|entitled| entitled.contains(&peer))
    }

    fn missing(&self) -> u32 {
        self.held
            .values()
            .map(|set| set.chunks() - set.count())
            .sum()
    }
}

fn any_set() -> impl Strategy<Value = ChunkSet> {
    prop_oneof![
        prop::collection::vec(0u32..70, 0..20).prop_map(|chunks| set(70, chunks)),
        Just(ChunkSet::full(70)),
        Just(ChunkSet::empty(70)),
        Just(ChunkSet::full(3)),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    let some = prop::collection::btree_set((0u64..8).prop_map(key), 0..8);
    let entitled = move || prop::option::of(some.clone().prop_map(Arc::new));
    let peer = || (0u64..8).prop_map(key);
    let id = || (0u32..4).prop_map(ContentId);
    let chunk = || (0u32..72).prop_map(ChunkIndex);
    let failure = prop_oneof![
        Just(Failure::Bad),
        Just(Failure::Disproved),
        Just(Failure::Unfit),
        Just(Failure::Busy),
        Just(Failure::Missing),
        Just(Failure::Refused),
        Just(Failure::Broken),
        Just(Failure::NotStored),
        Just(Failure::Cancelled),
    ];
    let delivery = || {
        prop_oneof![
            4 => Just(Delivery::Stored),
            1 => Just(Delivery::Already),
            1 => Just(Delivery::Busy),
            1 => Just(Delivery::Unwanted),
            1 => Just(Delivery::Bad),
            1 => Just(Delivery::Broken),
        ]
    };
    let spread = prop_oneof![
        Just(None),
        Just(Some(Spread::Everyone)),
        prop::collection::vec(0u64..10, 0..10)
            .prop_map(|keys| Some(Spread::To(keys.into_iter().map(key).collect()))),
    ];
    prop_oneof![
        1 => prop::collection::vec((0u64..7, 0u32..2, any::<bool>()), 0..7).prop_map(|entries| Event::Roster(
            entries.into_iter().map(|(peer, zone, neighbour)| Entry { key: key(peer), zone, neighbour }).collect()
        )),
        1 => any::<bool>().prop_map(Event::Coordinator),
        6 => peer().prop_map(Event::Connected),
        2 => peer().prop_map(Event::Disconnected),
        3 => (id(), any_set(), 0u32..5, entitled()).prop_map(|(id, held, order, entitled)| Event::Content {
            id, key: u64::from(id.0), size: 70 * CHUNK - 5, held, order, entitled
        }),
        1 => id().prop_map(Event::Dropped),
        1 => (id(), chunk()).prop_map(|(id, chunk)| Event::ChunkLost { id, chunk }),
        6 => (peer(), id(), any_set(), any::<bool>()).prop_map(|(peer, id, chunks, reset)| Event::Announced { peer, id, chunks, reset }),
        2 => (peer(), any::<u64>(), any::<u64>()).prop_map(|(peer, backlog_bytes, upload_bytes_per_second)| Event::Load { peer, backlog_bytes, upload_bytes_per_second }),
        3 => id().prop_map(Event::Leased),
        2 => (id(), 0u32..75, 1u32..75).prop_map(|(id, from, count)| {
            let range = ChunkRange::new(from, from + count);
            Event::RangeLeased(id, range.unwrap())
        }),
        1 => id().prop_map(Event::LeaseLost),
        2 => (id(), 0u64..20_000, any::<bool>()).prop_map(|(id, after, admitted)| Event::Wanted { id, alone_after: Duration::from_millis(after), admitted }),
        1 => id().prop_map(Event::Unwanted),
        1 => id().prop_map(Event::Coming),
        6 => (id(), chunk()).prop_map(|(id, chunk)| Event::OriginChunk { id, chunk, wire_bytes: CHUNK }),
        1 => (id(), prop_oneof![Just(OriginEnd::Done), Just(OriginEnd::Failed), Just(OriginEnd::Refused), Just(OriginEnd::Bad)]).prop_map(|(id, end)| Event::OriginEnded { id, end }),
        6 => (any::<u64>(), peer(), id(), chunk(), spread).prop_map(|(ticket, peer, id, chunk, spread)| Event::Offered { ticket: Ticket(ticket), peer, id, chunk, spread }),
        6 => (peer(), id(), chunk()).prop_map(|(peer, id, chunk)| Event::Arrived { peer, id, chunk, wire_bytes: CHUNK }),
        4 => (peer(), id(), chunk(), failure).prop_map(|(peer, id, chunk, failure)| Event::NotArrived { peer, id, chunk, failure }),
        6 => (0u64..1_000, peer(), id(), chunk()).prop_map(|(ticket, peer, id, chunk)| Event::Requested { ticket: Ticket(ticket), peer, id, chunk }),
        1 => (0u64..1_000).prop_map(|ticket| Event::Withdrawn(Ticket(ticket))),
        8 => (peer(), id(), chunk(), prop::option::of(0u64..1_000), delivery()).prop_map(|(peer, id, chunk, ticket, delivery)| Event::Sent {
            peer, id, chunk, ticket: ticket.map(Ticket), delivery, wire_bytes: CHUNK, work_bytes: 2 * CHUNK
        }),
        1 => peer().prop_map(Event::Blamed),
        1 => (prop_oneof![Just(0u64), Just(1), Just(10 * CHUNK), Just(u64::MAX)], prop_oneof![Just(0u64), Just(1), Just(10 * CHUNK), Just(u64::MAX)]).prop_map(|(up, down)| Event::Bandwidth { upload_bytes_per_second: up, download_bytes_per_second: down }),
        1 => any::<bool>().prop_map(Event::StepBack),
        8 => Just(Event::Tick),
    ]
}

/// Checks one event's actions against the model. The shell ends what the swarm began when `prompt`.
fn check(
    swarm: &mut Swarm,
    model: &mut Model,
    now: u64,
    event: Event,
) -> Result<(), TestCaseError> {
    let config = swarm.ground.config.clone();
    let mut offer = None;
    match &event {
        Event::Roster(entries) => {
            model.known = entries.iter().map(|entry| entry.key).collect();
            for peer in model.up.clone() {
                if !model.known.contains(&peer) {
                    model.end_line(peer);
                }
            }
        }
        Event::Coordinator(up) => {
            if *up {
                model.coordinator_lost = None;
            } else {
                model.coordinator_lost.get_or_insert(now);
            }
        }
        Event::Connected(peer) if model.known.contains(peer) => {
            model.up.insert(*peer);
        }
        Event::Disconnected(peer) => model.end_line(*peer),
        Event::Content {
            id, held, entitled, ..
        } => {
            model.entitled.insert(*id, entitled.clone());
            model.held.entry(*id).or_insert_with(|| {
                if held.chunks() == 70 {
                    held.clone()
                } else {
                    ChunkSet::empty(70)
                }
            });
        }
        Event::Dropped(id) => {
            model.held.remove(id);
            model.leased.remove(id);
            model.wanted.remove(id);
            model.asked.retain(|(_, other, _)| other != id);
        }
        Event::ChunkLost { id, chunk } => {
            if let Some(held) = model.held.get_mut(id) {
                held.remove(*chunk);
            }
        }
        Event::Leased(id) | Event::RangeLeased(id, _) => {
            model.leased.insert(*id);
        }
        Event::Wanted { id, .. } => {
            model.wanted.insert(*id);
        }
        Event::Unwanted(id) => {
            model.wanted.remove(id);
        }
        Event::LeaseLost(id) => {
            model.leased.remove(id);
        }
        Event::OriginEnded { id, .. } => {
            model.leased.remove(id);
        }
        Event::OriginChunk { id, chunk, .. } => {
            if let Some(held) = model.held.get_mut(id) {
                held.insert(*chunk);
            }
        }
        Event::Arrived {
            peer, id, chunk, ..
        } => {
            if let Some(held) = model.held.get_mut(id) {
                held.insert(*chunk);
            }
            model.asked.retain(|other| *other != (*peer, *id, *chunk));
        }
        Event::NotArrived {
            peer, id, chunk, ..
        } => {
            model.asked.retain(|other| *other != (*peer, *id, *chunk));
        }
        Event::Offered { ticket, .. } => offer = Some(*ticket),
        Event::Requested {
            ticket,
            peer,
            id,
            chunk,
        } => {
            model.questions.insert(*ticket, (*peer, *id, *chunk));
        }
        Event::Sent {
            peer,
            id,
            chunk,
            ticket,
            ..
        } => {
            let ended = model
                .uploads
                .iter()
                .position(|other| *other == (*peer, *id, *chunk, *ticket));
            if let Some(at) = ended {
                model.uploads.remove(at);
            }
        }
        _ => {}
    }
    let leased = match &event {
        Event::Leased(id) | Event::RangeLeased(id, _) => Some(*id),
        _ => None,
    };
    swarm.handle(at(now), event);
    while let Some(action) = swarm.poll() {
        match action {
            Action::Dial(peer) => prop_assert!(model.known.contains(&peer)),
            Action::HangUp(peer) => model.end_line(peer),
            Action::Request { peer, id, chunk } => {
                prop_assert!(
                    model.up.contains(&peer),
                    "asked a peer that isn't connected"
                );
                prop_assert!(!model.held[&id].contains(chunk), "asked for what is held");
                let twice = model
                    .asked
                    .iter()
                    .any(|(_, other, of)| (*other, *of) == (id, chunk));
                prop_assert!(!twice || model.missing() <= 8, "asked twice before the end");
                model.asked.push((peer, id, chunk));
                prop_assert!(model.asked.len() <= config.requests);
            }
            Action::Cancel { peer, id, chunk } => {
                model.asked.retain(|other| *other != (peer, id, chunk));
            }
            Action::Push {
                peer,
                id,
                chunk,
                spread,
            } => {
                prop_assert!(
                    model.up.contains(&peer),
                    "pushed to a peer that isn't connected"
                );
                prop_assert!(model.held[&id].contains(chunk), "pushed what isn't held");
                prop_assert!(model.entitles(peer, id), "pushed to who may not have it");
                if let Some(Spread::To(part)) = spread {
                    prop_assert!(!part.contains(&peer));
                }
                model.uploads.push((peer, id, chunk, None));
            }
            Action::Serve(ticket) => {
                let (peer, id, chunk) = model.questions[&ticket];
                prop_assert!(
                    model.up.contains(&peer),
                    "served a peer that isn't connected"
                );
                prop_assert!(model.held[&id].contains(chunk), "served what isn't held");
                prop_assert!(model.entitles(peer, id), "served to who may not have it");
                model.uploads.push((peer, id, chunk, Some(ticket)));
            }
            Action::Accept(ticket) | Action::Decline(ticket, _) => {
                prop_assert_eq!(offer.take(), Some(ticket), "an offer is answered once");
            }
            Action::Refuse(..)
            | Action::ReleaseLease(_)
            | Action::RangeDone(_)
            | Action::Report { .. } => {}
            Action::Announce {
                peer, id, chunks, ..
            } => {
                prop_assert!(model.up.contains(&peer));
                prop_assert!(model.entitles(peer, id), "told who may not have it");
                let mut more = chunks;
                more.subtract(&model.held[&id]);
                prop_assert!(more.is_empty(), "announced what isn't held");
            }
            Action::AnnounceLoad { peer, .. } => prop_assert!(model.up.contains(&peer)),
            Action::Fetch { id, range, until } => {
                let within = |range: ChunkRange| range.from() < until.0 && until.0 <= range.until();
                prop_assert!(range.is_none_or(within), "fetched beyond the range");
                let headless = model
                    .coordinator_lost
                    .is_some_and(|since| now - since >= 15_000)
                    || model.coordinator_lost.is_none();
                prop_assert!(
                    model.leased.contains(&id) || model.wanted.contains(&id) || headless,
                    "fetched without a lease"
                );
            }
            // a lease may take the place of another one
            Action::StopFetch(id) if leased == Some(id) => {}
            Action::StopFetch(id) => {
                model.leased.remove(&id);
            }
        }
        prop_assert!(
            model.uploads.len() <= config.uploads + config.slow_uploads,
            "more uploads than the bound"
        );
    }
    prop_assert_eq!(offer, None, "an offer is answered at once");
    prop_assert!(swarm.downloads.incoming() <= 2 * config.incoming);
    prop_assert!(swarm.serve.len() <= config.waiting);
    prop_assert!(swarm.pushes.jobs().len() <= config.jobs);
    prop_assert!(swarm.pushes.unassigned() <= 2 * config.jobs);
    prop_assert!(swarm.pushes.handovers() <= config.jobs + config.fan_out);
    prop_assert!(swarm.ground.fleet.heard().count() <= 64);
    prop_assert!(
        swarm.next_timeout().is_none_or(|due| due > at(now)),
        "a timer that is never in the past"
    );
    for content in swarm.status(at(now)).contents {
        prop_assert_eq!(content.held, model.held[&content.id].count());
        prop_assert!(
            content.held == content.chunks
                || content.stall.is_some()
                || now < 10_000 + swarm.ground.contents.get(content.id).unwrap().grown_at.0 / 1_000
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn any_event_is_legal_in_any_state(seed in any::<u64>(), peers in 0u64..8, events in prop::collection::vec((any_event(), 0u64..3_000), 1..300)) {
        let mut swarm = Swarm::new(ME, Config { direct_targets: 3, fan_out: 2, uploads: 3, ..Config::default() }, seed);
        let mut model = Model::default();
        let mut now = 0;
        let mut begin = vec![roster(peers), Event::Coordinator(true)];
        begin.extend((0..3).map(|id| content(id, 70, ChunkSet::empty(70))));
        // the last chunk is shorter, as in the random events
        for event in begin.drain(..) {
            let event = match event {
                Event::Content { id, key, held, order, entitled, .. } => Event::Content { id, key, size: 70 * CHUNK - 5, held, order, entitled },
                other => other,
            };
            check(&mut swarm, &mut model, now, event)?;
        }
        for (event, wait) in events {
            now += wait;
            check(&mut swarm, &mut model, now, event)?;
        }
        // whatever happened, an hour later every stall has a reason
        for _ in 0..50 {
            now += 60_000;
            check(&mut swarm, &mut model, now, Event::Tick)?;
        }
    }
}
