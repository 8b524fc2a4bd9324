//! Leases, and fetches from registries.

use super::*;

/// The content is leased to this host, which neither neighbour has a chunk of, and its fetch runs.
fn fetching() -> (World, ContentId, Fetch<MadeShelf>) {
    let (mut world, id) = World::with([]);
    world.exchange.leased(spec().digest, Granted::default());
    let wanted = fetches(&world.effects()).remove(0);
    let origin = ("r.test/a:1".into(), Access::default());
    world.exchange.fetch(&wanted, Some(image(1)), origin);
    let mut effects = world.effects();
    let Some(Effect::Run(Errand::Fetch(fetch))) = effects.pop() else {
        panic!("{effects:?}");
    };
    (world, id, fetch)
}

impl World {
    fn lease_states(&mut self) -> Vec<LeaseState> {
        let status = self.exchange.status();
        self.exchange.lease_states(&status)
    }

    fn end(&mut self, fetch: &Fetch<MadeShelf>, end: FetchEnd) -> Vec<Effect<Made>> {
        self.exchange.fetch_ended(fetch.id, fetch.reins.number, end);
        self.effects()
    }
}

fn forgets_the_ticket(effects: &[Effect<Made>]) -> bool {
    let forgets =
        |effect: &Effect<Made>| matches!(effect, Effect::ForgetTicket(of) if *of == spec().digest);
    effects.iter().any(forgets)
}

fn reports_now(effects: &[Effect<Made>]) -> bool {
    effects
        .iter()
        .any(|effect| matches!(effect, Effect::ReportNow))
}

#[test]
fn a_lease_has_the_content_fetched_as_the_image_names_it() {
    let (_, id, fetch) = fetching();
    assert_eq!((fetch.id, fetch.content), (id, spec().digest));
    assert_eq!(fetch.reference, "r.test/a:1");
    assert!(*fetch.reins.until.borrow() > 0);
}

#[test]
fn a_chunk_from_the_registry_counts_as_the_registrys_and_not_as_a_peers() {
    let (mut world, id, _) = fetching();
    let chunk = News::Chunk {
        chunk: ChunkIndex(0),
        origin_bytes: 300,
        conflict: false,
    };
    world.exchange.fetch_news(id, chunk);
    let effects = world.effects();
    assert_eq!(
        (
            world.bytes_from(From::Origin),
            world.bytes_from(From::Peers)
        ),
        (300, 0)
    );
    assert!(news(&effects, image(1)).contains(&ImageNews::FromOrigin(300)));
    assert_eq!(world.held(id), Some(1));
}

#[test]
fn a_fetch_that_ends_ends_its_lease_which_is_told_at_once() {
    let (mut world, id, fetch) = fetching();
    let effects = world.end(&fetch, FetchEnd::Done);
    assert!(forgets_the_ticket(&effects) && reports_now(&effects));
    assert!(effects.iter().any(|effect| matches!(
        effect,
        Effect::FetchEnded { content, end: FetchEnd::Done } if *content == spec().digest
    )));
    assert!(!world.exchange.is_leased(id));
    assert_eq!(world.lease_states()[0].end(), LeaseEnd::Done);
}

#[test]
fn the_end_of_an_earlier_fetch_does_not_end_the_one_that_runs() {
    let (mut world, id, fetch) = fetching();
    let wanted = FetchWanted {
        id,
        content: spec().digest,
        images: vec![image(1)],
        range: None,
        until: ChunkIndex(1),
    };
    let origin = ("r.test/b:1".into(), Access::default());
    world.exchange.fetch(&wanted, None, origin);
    world.effects();
    assert!(fetch.reins.token.is_cancelled());
    let effects = world.end(&fetch, FetchEnd::Done);
    assert!(effects.is_empty(), "{effects:?}");
    assert!(world.exchange.is_leased(id));
}

#[test]
fn an_end_of_a_lease_that_was_not_sent_is_told_with_the_next_report() {
    let (mut world, _, fetch) = fetching();
    world.end(&fetch, FetchEnd::Done);
    let told = world.lease_states();
    assert!(world.lease_states().is_empty());
    world.exchange.lease_states_unsent(told.clone());
    assert_eq!(world.lease_states(), told);
}

#[test]
fn a_lease_that_is_taken_back_stops_its_fetch() {
    let (mut world, id, fetch) = fetching();
    world.exchange.lease_lost(&spec().digest);
    let effects = world.effects();
    assert!(fetch.reins.token.is_cancelled());
    assert!(forgets_the_ticket(&effects));
    assert!(!world.exchange.is_leased(id));
}

#[test]
fn a_lease_that_comes_before_its_stage_is_fetched_once_the_stage_is_there() {
    let mut world = World::new();
    world.exchange.leased(spec().digest, Granted::default());
    assert!(world.effects().is_empty());
    let id = world.add(image(1), ChunkSet::empty(CHUNKS));
    assert!(fetches(&world.effects()).is_empty());
    world.exchange.take_early_leases();
    assert_eq!(fetches(&world.effects())[0].id, id);
}

#[test]
fn an_image_that_leaves_takes_its_fetch_and_its_lease_with_it() {
    let (mut world, id, fetch) = fetching();
    world.exchange.withdraw(&image(1), None);
    let effects = world.effects();
    assert!(fetch.reins.token.is_cancelled());
    // with the next report, which also says the image's new state
    assert!(forgets_the_ticket(&effects) && !reports_now(&effects));
    assert!(world.exchange.status().content(id).is_none());
    assert_eq!(world.lease_states()[0].end(), LeaseEnd::Released);
}

#[test]
fn a_content_of_two_images_stays_when_one_leaves() {
    let (mut world, id, fetch) = fetching();
    world.add(image(2), ChunkSet::empty(CHUNKS));
    world.exchange.withdraw(&image(1), None);
    assert!(!fetch.reins.token.is_cancelled());
    assert_eq!(world.held(id), Some(0));
}

#[test]
fn a_blob_of_the_mirror_that_goes_gives_its_lease_back_at_once() {
    let mut world = World::new();
    let what = (spec().digest, spec().geometry);
    let shelf = world.shelf.clone();
    let none = (ChunkSet::empty(CHUNKS), false);
    let id = world.exchange.add_blob(what, shelf, none);
    world.exchange.introduce(id, 0, |_| None);
    world.exchange.leased(spec().digest, Granted::default());
    world.effects();
    world.exchange.drop_blob(&spec().digest);
    assert!(reports_now(&world.effects()));
    assert!(world.exchange.status().content(id).is_none());
}

#[test]
fn a_content_of_an_image_is_not_dropped_as_a_blob_of_the_mirror() {
    let (mut world, id, fetch) = fetching();
    world.exchange.drop_blob(&spec().digest);
    assert!(world.effects().is_empty());
    assert_eq!(world.held(id), Some(0));
    assert!(!fetch.reins.token.is_cancelled());
}

#[test]
fn links_that_a_fetch_made_are_dropped_here_and_taken_back_from_the_fleet() {
    let (mut world, id, fetch) = fetching();
    world.exchange.fetch_news(id, News::Doubted);
    let effects = world.end(&fetch, FetchEnd::Bad("a broken push".into()));
    assert_eq!(world.false_from(From::Origin), 1);
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::Run(Errand::Retract { .. })))
    );
    world.exchange.retracted(id, ChunkIndex(0), Ok(Vec::new()));
    let effects = world.effects();
    assert!(effects.iter().any(|effect| matches!(
        effect,
        Effect::TakeBack { content, from: ChunkIndex(0) } if *content == spec().digest
    )));
}

#[test]
fn an_agent_that_stops_ends_every_fetch() {
    let (mut world, _, fetch) = fetching();
    world.exchange.stop();
    assert!(fetch.reins.token.is_cancelled());
}

#[test]
fn the_leases_that_are_held_are_shown() {
    let (mut world, _, fetch) = fetching();
    world.exchange.flush_updates();
    assert_eq!(world.metrics.leases.get(), 1);
    world.end(&fetch, FetchEnd::Done);
    world.exchange.flush_updates();
    assert_eq!(world.metrics.leases.get(), 0);
}

#[test]
fn the_swarms_time_is_counted_from_the_exchanges_beginning() {
    let (mut world, _, _) = fetching();
    let began = world.now;
    world.pass(Duration::from_secs(60));
    let due = world
        .exchange
        .next_timeout()
        .expect("a running fetch is watched");
    assert!(due >= began + Duration::from_secs(60), "{:?}", due - began);
}
