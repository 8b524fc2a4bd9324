//! Tests what a fleet at rest costs: words that repeat what is known don't make the view anew.

use super::*;

const NAME: &str = "r.test/one:1";

/// How long after the last view the next one comes.
fn next_view(world: &mut World) -> Duration {
    let now = world.driver.now();
    world.driver.views.due().since(now)
}

/// Whether the view is made anew at once after this report.
fn is_news(world: &mut World, session: u64, report: message::Report) -> bool {
    world.settle();
    assert!(
        next_view(world) > Duration::from_millis(500),
        "the view is new"
    );
    world.report("mini-1", session, report);
    next_view(world) <= Duration::from_millis(250)
}

#[test]
fn a_hosts_word_that_it_holds_what_it_held_is_no_news_and_any_other_word_is() {
    let mut world = World::new();
    let hello = message::Hello {
        takes_names: true,
        ..World::hello()
    };
    let (session, mut orders) = world.open("mini-1", hello);
    world.stage("one").unwrap();
    world.settle();
    let told = taken(&mut orders, |kind| match kind {
        Kind::Names(names) => Some(names.clone()),
        _ => None,
    });
    let told = told.last().expect("it was told of names");
    let (number, name) = (told.number, told.names[0].reference.clone());
    let image = want("one", 1, 1 << 20).digest();
    let ready = |name: &str| message::ImageState {
        manifest: image.as_bytes().to_vec(),
        state: message::StageState::Present.into(),
        ready_references: vec![name.to_owned()],
        ..message::ImageState::default()
    };
    let report = |image: Option<&message::ImageState>, names| message::Report {
        images: image.into_iter().cloned().collect(),
        names,
        ..message::Report::default()
    };
    let state = ready(&name);
    let before = report(Some(&state), 0);
    assert!(
        is_news(&mut world, session, before.clone()),
        "it has the image"
    );
    assert!(!is_news(&mut world, session, before.clone()));
    let now = report(Some(&state), number);
    assert!(
        is_news(&mut world, session, now.clone()),
        "it has the name since it was told"
    );
    assert!(!is_news(&mut world, session, now.clone()));
    assert!(!is_news(&mut world, session, report(None, number)));
    let golden = message::ImageState {
        golden: true,
        ..state.clone()
    };
    assert!(is_news(&mut world, session, report(Some(&golden), number)));
    assert!(!is_news(&mut world, session, report(Some(&golden), number)));
    assert!(is_news(&mut world, session, report(Some(&state), number)));
    let says_more = [
        message::Report {
            full: true,
            ..now.clone()
        },
        message::Report {
            mirror: Some(message::MirrorWants::default()),
            ..now.clone()
        },
        message::Report {
            held: Some(message::Held::default()),
            ..now.clone()
        },
        message::Report {
            without_source: Some(message::WithoutSource::default()),
            ..now.clone()
        },
        message::Report {
            leases: vec![message::LeaseState::default()],
            ..now.clone()
        },
    ];
    for more in says_more {
        assert!(is_news(&mut world, session, more.clone()), "{more:?}");
    }
    assert!(
        is_news(&mut world, session, report(Some(&ready(NAME)), number)),
        "the name is gone"
    );
    assert!(is_news(&mut world, session, now.clone()));
    let gone = message::ImageState {
        state: message::StageState::Gone.into(),
        ..state
    };
    assert!(is_news(&mut world, session, report(Some(&gone), number)));
}

#[test]
fn a_tick_that_changes_nothing_is_no_news_and_ages_are_shown_once_a_second() {
    let mut world = World::new();
    let (_session, _orders) = world.open("mini-1", World::hello());
    world.stage("one").unwrap();
    world.settle();
    world.driver.apply(Input::Tick);
    assert!(next_view(&mut world) > Duration::from_millis(500));
    world.pass(Duration::from_secs(1));
    assert_eq!(next_view(&mut world), Duration::ZERO);
}

#[test]
fn a_fleet_that_only_confirms_what_it_holds_has_its_view_made_once_a_second() {
    let mut world = World::new();
    let (session, _orders) = world.open("mini-1", World::hello());
    world.stage("one").unwrap();
    let present = message::Report {
        images: vec![message::ImageState {
            manifest: want("one", 1, 1 << 20).digest().as_bytes().to_vec(),
            state: message::StageState::Present.into(),
            ready_references: vec![NAME.to_owned()],
            ..message::ImageState::default()
        }],
        ..message::Report::default()
    };
    world.report("mini-1", session, present.clone());
    world.settle();
    let mut views = 0;
    world.view.mark_unchanged();
    // the loop flushes after each input; a fleet of hundreds confirms all the time
    for _ in 0..40 {
        world.pass(Duration::from_millis(100));
        world.report("mini-1", session, present.clone());
        world.driver.flush();
        views += u32::from(world.view.has_changed().unwrap());
        world.view.mark_unchanged();
    }
    assert!((3..=4).contains(&views), "{views} views in 4 s");
}
