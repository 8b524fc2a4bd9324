//! Tests names: what hosts are told of them, and which words of hosts about them count.

use proto::{Reason, ToldReason};

use super::*;
use crate::{
    view::CancelReply,
    wants::{Timed, Timing},
};

mod model;

/// A host whose agent looks at its disk when it is told names, and says so.
struct Mini {
    session: u64,
    orders: Receiver<Arc<message::Order>>,
}

impl Mini {
    fn open(world: &mut World, host: &str) -> Self {
        let hello = message::Hello {
            takes_names: true,
            ..World::hello()
        };
        let (session, orders) = world.open(host, hello);
        Self { session, orders }
    }

    /// The orders to stage since the last call, each with its references, and the newest order about names.
    fn told(&mut self) -> (Vec<(Digest, Vec<String>)>, Option<message::Names>) {
        let (mut staged, mut names) = (Vec::new(), None);
        while let Ok(order) = self.orders.try_recv() {
            match &order.kind {
                Some(Kind::Stage(order)) => {
                    let image = message::digest(&order.manifest_digest).unwrap();
                    staged.push((image, order.references.clone()));
                }
                Some(Kind::Names(order)) => names = Some(order.clone()),
                _ => {}
            }
        }
        (staged, names)
    }

    /// The number of the newest order about names.
    fn number(&mut self) -> u64 {
        self.told().1.expect("it was told of names").number
    }
}

/// The report of a host that has the whole image under these names.
fn ready(image: &Digest, names: &[&str]) -> message::ImageState {
    message::ImageState {
        manifest: image.as_bytes().to_vec(),
        state: message::StageState::Present.into(),
        ready_references: names.iter().map(ToString::to_string).collect(),
        ..message::ImageState::default()
    }
}

fn says(images: Vec<message::ImageState>, names: u64) -> message::Report {
    message::Report {
        images,
        names,
        ..message::Report::default()
    }
}

impl World {
    fn ask(&mut self, want: Want) -> Result<StageReply, StageError> {
        let (reply, mut answer) = oneshot::channel();
        let want = Box::new(want);
        self.driver.apply(Input::Asked(Ask::Stage { want, reply }));
        while let Ok(keep) = self.writer.try_recv() {
            keep.done();
        }
        answer.try_recv().unwrap()
    }

    fn cancel(&mut self, name: &str) -> Result<CancelReply, CancelError> {
        let (reply, mut answer) = oneshot::channel();
        let name = name.to_owned();
        self.driver.apply(Input::Asked(Ask::Cancel { name, reply }));
        while let Ok(keep) = self.writer.try_recv() {
            keep.done();
        }
        answer.try_recv().unwrap()
    }

    /// The image's state in the view and that of its first host; `None` when the image isn't wanted.
    fn shown(&mut self, image: &Digest) -> Option<(ImageState, HostState, Option<ToldReason>)> {
        self.settle();
        let view = self.view.borrow().clone();
        let shown = view.images.get(image)?;
        let host = &shown.hosts[0];
        Some((shown.state, host.state, host.reason.clone()))
    }
}

const PRESENT: Option<(ImageState, HostState, Option<ToldReason>)> =
    Some((ImageState::Present, HostState::Present, None));

fn installing(reason: Reason) -> Option<(ImageState, HostState, Option<ToldReason>)> {
    let reason = Some(reason.into());
    Some((ImageState::Staging, HostState::Installing, reason))
}

fn named(seed: &str, reference: &str) -> Want {
    Want {
        references: [reference.to_owned()].into(),
        ..want(seed, 1, 1 << 20)
    }
}

#[test]
fn an_image_is_present_on_a_host_once_it_is_ready_under_every_name_that_is_wanted() {
    let mut world = World::new();
    let mut mini = Mini::open(&mut world, "mini-1");
    world.ask(named("one", "r.test/one:1")).unwrap();
    let image = want("one", 1, 1 << 20).digest();
    let number = mini.number();
    let report = |world: &mut World, names: &[&str], number| {
        world.report(
            "mini-1",
            mini.session,
            says(vec![ready(&image, names)], number),
        );
        world.shown(&image)
    };
    assert_eq!(report(&mut world, &["r.test/one:1"], number), PRESENT);
    let more = ["r.test/other:1", "r.test/one:1"];
    assert_eq!(report(&mut world, &more, number), PRESENT);
    // the host has the bytes, but tart doesn't find them by the name that was asked for
    for names in [&["r.test/other:1"][..], &[]] {
        assert_eq!(
            report(&mut world, names, number),
            installing(Reason::Installing)
        );
    }
}

#[test]
fn what_a_host_said_before_the_newest_order_is_no_presence() {
    let mut world = World::new();
    let presence = watch::channel(Arc::default());
    world.driver.members.presence_mut().publish_to(presence.0);
    let mut mini = Mini::open(&mut world, "mini-1");
    let host: HostId = "mini-1".parse().unwrap();
    let (a, b) = (named("a", "r.test/i:latest"), named("b", "r.test/i:latest"));
    let (one, other) = (a.digest(), b.digest());
    let counts = |image: &Digest| {
        let view = presence.1.borrow().clone();
        let word = view.get(&host).unwrap();
        word.holdings.contains_key(image)
    };
    world.ask(a.clone()).unwrap();
    let first = mini.number();
    let has = |image| says(vec![ready(image, &["r.test/i:latest"])], first);
    world.report("mini-1", mini.session, has(&one));
    assert_eq!(world.shown(&one), PRESENT);
    assert!(counts(&one));

    // the name moves to another image and back before the host reports
    world.ask(b).unwrap();
    assert!(!counts(&one), "the gate goes by the newest order too");
    let away = mini.number();
    let answer = world.ask(a.clone()).unwrap();
    assert_eq!(answer.image.state, ImageState::Staging);
    let back = mini.number();
    assert!(first < away && away < back);
    // reports from before count for nothing, nor does the report of a host that is still working on the first order
    for number in [first, away] {
        let mut report = has(&one);
        report.names = number;
        world.report("mini-1", mini.session, report);
        assert_eq!(world.shown(&one), installing(Reason::Confirming));
        assert!(!counts(&one) && !counts(&other));
    }
    world.report("mini-1", mini.session, says(Vec::new(), back));
    assert_eq!(world.shown(&one), PRESENT);
    assert!(counts(&one));

    // after another ask the host looks again; the gate stays open, because nothing moved for it
    world.ask(a.clone()).unwrap();
    assert_eq!(world.shown(&one), installing(Reason::Confirming));
    assert!(counts(&one));
    let again = mini.number();
    world.report("mini-1", mini.session, says(Vec::new(), again));
    assert_eq!(world.shown(&one), PRESENT);

    // a host without a session can't confirm the image
    world.driver.apply(Input::Closed {
        host: host.clone(),
        session: mini.session,
    });
    assert_eq!(world.shown(&one), PRESENT, "nobody asked anything");
    world.ask(a).unwrap();
    let away = Some("disconnected".into());
    let expected = Some((ImageState::Staging, HostState::Waiting, away));
    assert_eq!(world.shown(&one), expected);
    let mut hello = message::Hello {
        takes_names: true,
        ..World::hello()
    };
    hello.images = vec![ready(&one, &["r.test/i:latest"])];
    let (session, orders) = world.open("mini-1", hello);
    mini = Mini { session, orders };
    assert_eq!(world.shown(&one), installing(Reason::Confirming));
    assert!(
        counts(&one),
        "what it says of itself at first is good for the gate"
    );
    let number = mini.number();
    world.report("mini-1", session, says(Vec::new(), number));
    assert_eq!(world.shown(&one), PRESENT);
}

#[test]
fn an_agent_that_confirms_nothing_is_believed_after_its_next_look() {
    let mut world = World::new();
    let (session, mut orders) = world.open("mini-1", World::hello());
    let image = named("a", "r.test/i:1");
    world.ask(image.clone()).unwrap();
    let names = taken(&mut orders, |kind| {
        matches!(kind, Kind::Names(_)).then_some(())
    });
    assert_eq!(names.len(), 0, "it doesn't know the order");
    let digest = image.digest();
    let looked = |age| {
        let mut state = ready(&digest, &["r.test/i:1"]);
        state.presence_age_ms = age;
        says(vec![state], 0)
    };
    world.report("mini-1", session, looked(0));
    let view = |world: &mut World| {
        let now = world.driver.now();
        world.driver.show(now);
        let view = world.view.borrow().clone();
        view.images[&digest].state
    };
    assert_eq!(view(&mut world), ImageState::Staging);
    world.driver.started -= Duration::from_secs(7);
    world.report("mini-1", session, looked(3_000));
    assert_eq!(view(&mut world), ImageState::Staging, "it looked too early");
    world.report("mini-1", session, looked(1_000));
    assert_eq!(view(&mut world), ImageState::Present);
    // a report of the image without any references doesn't count
    world.report("mini-1", session, says(vec![ready(&digest, &[])], 0));
    assert_eq!(view(&mut world), ImageState::Staging);
}

#[test]
fn cancelling_one_reference_leaves_the_others_with_their_stage() {
    let mut world = World::new();
    let (mut one, mut two) = (
        Mini::open(&mut world, "mini-1"),
        Mini::open(&mut world, "mini-2"),
    );
    let on = |reference: &str, hosts: &[&str]| Want {
        hosts: Some(hosts.iter().map(|host| host.parse().unwrap()).collect()),
        ..named("a", reference)
    };
    let image = want("a", 1, 1 << 20).digest();
    world.ask(on("r.test/a:v1", &["mini-1"])).unwrap();
    world.ask(on("r.test/a:v2", &["mini-1", "mini-2"])).unwrap();
    world.ask(on("r.test/b:v1", &["mini-2"])).unwrap();
    // each host is told exactly the names that are wanted on it
    let all = |names: &message::Names| {
        let names = names.names.iter();
        names.map(|name| name.reference.clone()).collect::<Vec<_>>()
    };
    let (staged, names) = one.told();
    assert_eq!(
        staged.last().unwrap(),
        &(image, vec!["r.test/a:v1".into(), "r.test/a:v2".into()])
    );
    assert_eq!(all(&names.unwrap()), ["r.test/a:v1", "r.test/a:v2"]);
    assert_eq!(all(&two.told().1.unwrap()), ["r.test/a:v2", "r.test/b:v1"]);

    let reply = world.cancel("r.test/a:v1").unwrap();
    assert_eq!(reply.references, ["r.test/a:v1"]);
    let still: Vec<_> = reply
        .still_wanted
        .iter()
        .map(|name| name.reference.as_str())
        .collect();
    assert_eq!(still, ["r.test/a:v2", "r.test/b:v1"]);
    let (staged, names) = one.told();
    assert_eq!(staged, [(image, vec!["r.test/a:v2".to_owned()])]);
    assert_eq!(all(&names.unwrap()), ["r.test/a:v2"]);
    let kinds = taken(&mut one.orders, |kind| {
        matches!(kind, Kind::Cancel(_)).then_some(())
    });
    assert!(kinds.is_empty(), "nothing of its stage is given up");

    // a host on which the image has no other wanted name gives it up
    world.cancel("r.test/a:v2").unwrap();
    let mut cancelled = false;
    while let Ok(order) = one.orders.try_recv() {
        cancelled |= matches!(order.kind, Some(Kind::Cancel(_)));
    }
    assert!(cancelled);
    assert_eq!(all(&two.told().1.unwrap()), ["r.test/b:v1"]);

    // cancels of a name that nobody asked for, and of an image by its bare digest
    let error = world.cancel("r.test/a:v2").unwrap_err().to_string();
    assert!(error.contains("isn't wanted"), "{error}");
    let by_digest = format!("r.test/a@{image}");
    let error = world.cancel(&by_digest).unwrap_err().to_string();
    assert!(error.contains("but as r.test/b:v1"), "{error}");
    let reply = world.cancel(&image.to_string()).unwrap();
    assert_eq!(
        (reply.references, reply.still_wanted),
        (vec!["r.test/b:v1".into()], vec![])
    );
    assert_eq!(world.shown(&image), None);
}

#[test]
fn operators_and_objects_cancel_each_for_themselves() {
    let mut world = World::new();
    let _mini = Mini::open(&mut world, "mini-1");
    let image = named("a", "r.test/a:v1");
    let digest = image.digest();
    let placed = Want {
        hosts: Some(["mini-1".parse().unwrap()].into()),
        ..named("a", "r.test/a:pool")
    };
    world.ask(image.clone()).unwrap();
    place(&mut world, vec![placed.clone()], Limits::default());
    let error = world.cancel("r.test/a:pool").unwrap_err().to_string();
    assert!(error.contains("ImagePrePulls"), "{error}");
    let reply = world.cancel("r.test/a:v1").unwrap();
    let still = &reply.still_wanted[0];
    assert!(still.cluster && !still.operators && still.reference == "r.test/a:pool");
    assert!(world.shown(&digest).is_some());
    // now operators want it, and the cluster doesn't any more
    world.ask(image).unwrap();
    place(&mut world, Vec::new(), Limits::default());
    let view = world.view.borrow().clone();
    assert_eq!(view.images[&digest].references, ["r.test/a:v1"]);
    world.cancel("r.test/a:v1").unwrap();
    assert_eq!(world.shown(&digest), None);
}

#[test]
fn what_the_cluster_wanted_before_a_start_is_no_news_after_it() {
    let timing = Timing::Known(Timed {
        asked_at_ms: 1_000,
        staged_ms: Some(27_600),
    });
    let image = Want {
        timing,
        ..named("a", "r.test/a:v1")
    };
    let digest = image.digest();
    let kept = Kept {
        wants: vec![image],
        ..Kept::default()
    };
    let mut world = World::after(true, ["mini-1".parse().unwrap()].into(), kept);
    let timed = |world: &World| world.driver.staging.images().asked(&digest).unwrap().timing;
    assert_eq!(timed(&world), timing);
    place(
        &mut world,
        vec![named("a", "r.test/a:pool")],
        Limits::default(),
    );
    assert_eq!(timed(&world), timing, "it was wanted before");
    let more = Want {
        references: ["r.test/a:pool".to_owned(), "r.test/a:more".to_owned()].into(),
        ..named("a", "r.test/a:pool")
    };
    place(&mut world, vec![more], Limits::default());
    assert_ne!(timed(&world), timing, "that is news");
}

#[test]
fn an_object_whose_tag_was_asked_for_later_with_another_image_waits_and_is_named() {
    let mut world = World::new();
    let mut mini = Mini::open(&mut world, "mini-1");
    let pinned = Want {
        hosts: Some(["mini-1".parse().unwrap()].into()),
        ..named("a", "r.test/i:latest")
    };
    let (a, b) = (pinned.digest(), named("b", "r.test/i:latest").digest());
    place(&mut world, vec![pinned.clone()], Limits::default());
    world.ask(named("b", "r.test/i:latest")).unwrap();
    let names = |mini: &mut Mini| {
        let names = mini.told().1.unwrap().names;
        let images = names
            .iter()
            .map(|name| message::digest(&name.manifest_digest));
        images.map(Result::unwrap).collect::<Vec<_>>()
    };
    assert_eq!(names(&mut mini), [b]);
    assert_eq!(world.shown(&a), None, "its tag names another image");
    let overruled = world.view.borrow().overruled.clone();
    assert_eq!(
        overruled,
        [(a, vec![("r.test/i:latest".to_owned(), b)])].into()
    );
    // The same wants of the cluster again don't take the name back. When operators don't want theirs any more, the
    // cluster's counts.
    place(
        &mut world,
        vec![pinned],
        Limits {
            origin_streams: Some(2),
            ..Limits::default()
        },
    );
    assert_eq!(world.shown(&a), None);
    world.cancel("r.test/i:latest").unwrap();
    assert_eq!(names(&mut mini), [a]);
    assert!(world.shown(&a).is_some());
    assert!(world.view.borrow().overruled.is_empty());
}

/// A reference of 360 characters.
fn long_name(number: usize) -> String {
    format!("r.test/{}:{number:08}", "a".repeat(344))
}

#[test]
fn no_more_names_are_wanted_than_hosts_can_report() {
    let mut world = World::new();
    world.open("mini-1", World::hello());
    let mut number = 0;
    let mut next = |image: usize| {
        number += 1;
        Want {
            references: [long_name(number)].into(),
            ..want(&format!("image {image}"), 1, 1 << 20)
        }
    };
    let most = ask::MAX_NAME_BYTES / long_name(0).len();
    for name in 0..most {
        world.ask(next(name / 20)).unwrap();
    }
    assert!(matches!(world.ask(next(60)), Err(StageError::TooManyNames)));
    // an image that has its name already may be asked for again
    let again = Want {
        references: [long_name(1)].into(),
        ..want("image 0", 1, 1 << 20)
    };
    assert!(world.ask(again).is_ok());
    // the cluster's want waits for room
    let late = next(61);
    let image = late.digest();
    place(&mut world, vec![late], Limits::default());
    let waiting = |world: &World| world.view.borrow().waiting.len();
    assert_eq!(waiting(&world), 1);
    world.cancel(&long_name(2)).unwrap();
    let now = world.driver.now();
    world.driver.show(now);
    assert_eq!(waiting(&world), 0);
    assert!(world.view.borrow().images[&image].prediction.is_some());
}

#[test]
fn a_host_with_thousands_of_names_is_present_under_the_one_that_is_wanted() {
    let mut world = World::new();
    let mut mini = Mini::open(&mut world, "mini-1");
    let image = Want {
        references: [long_name(4_999)].into(),
        ..want("image", 1, 1 << 20)
    };
    let digest = image.digest();
    world.ask(image).unwrap();
    let number = mini.number();
    let names: Vec<String> = (0..5_000).map(long_name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    world.report(
        "mini-1",
        mini.session,
        says(vec![ready(&digest, &names)], number),
    );
    let host: HostId = "mini-1".parse().unwrap();
    let presence = world.driver.members.presence();
    let names = presence.names(&host, &digest).unwrap();
    assert!(names.contains(&long_name(4_999)));
    assert!(names.len() < 300);
    assert!(presence.is_present(&host, &digest));
}
