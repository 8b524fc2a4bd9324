use std::{string::ToString as _, vec};

use proptest::prelude::*;

use super::*;

const LASTS: Duration = Duration::from_secs(60);

fn at(seconds: u64) -> Moment {
    Moment::START + Duration::from_secs(seconds)
}

fn id(name: &str) -> HostId {
    name.parse().unwrap()
}

fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

fn ask(host: &str, cap: Option<u32>) -> Ask {
    Ask {
        host: id(host),
        purpose: Purpose {
            image: Digest::of(b"image"),
            reference: "r.test/image:1".into(),
        },
        ready: Ok(()),
        cap,
        lasts: LASTS,
    }
}

fn unready(host: &str, cap: Option<u32>) -> Ask {
    Ask {
        ready: Err(Reason::ImageMissing),
        ..ask(host, cap)
    }
}

/// One group, with a clock in seconds.
#[derive(Default)]
struct Rack {
    places: Places,
}

impl Rack {
    fn asks(&mut self, seconds: u64, ask: Ask) -> Result<Answer, Refused> {
        self.places.ask(at(seconds), 7, &group("ci"), ask)
    }

    /// Whether the host has a place after it asked.
    fn opens(&mut self, seconds: u64, host: &str, cap: u32) -> bool {
        let answer = self.asks(seconds, ask(host, Some(cap)));
        matches!(answer, Ok(Answer::Open { .. }))
    }

    fn done(&mut self, host: &str) -> bool {
        self.places.done(&group("ci"), &id(host)).is_some()
    }
}

#[test]
fn names_of_groups_are_short_and_plain() {
    for good in ["a", "9", "ci.rack_1-b", &"x".repeat(MAX_GROUP_BYTES)] {
        assert_eq!(good.parse::<GroupName>().unwrap().to_string(), *good);
    }
    for bad in [
        "",
        ".",
        "-a",
        "a/b",
        "a b",
        "ä",
        &"x".repeat(MAX_GROUP_BYTES + 1),
    ] {
        assert!(bad.parse::<GroupName>().is_err(), "{bad}");
    }
}

#[test]
fn a_host_that_asks_again_has_its_own_place_again_and_its_whole_time() {
    let mut rack = Rack::default();
    assert_eq!(
        rack.asks(0, ask("a", Some(1))),
        Ok(Answer::Open { again: false })
    );
    assert_eq!(
        rack.asks(50, ask("a", Some(1))),
        Ok(Answer::Open { again: true })
    );
    assert!(rack.places.expire(at(109)).is_empty());
    let over = rack.places.expire(at(110));
    assert_eq!(over.len(), 1);
    assert_eq!((&over[0].1, over[0].2.taken_ms), (&id("a"), 7));
    assert_eq!(rack.places.groups().len(), 0);
    assert_eq!(rack.places.due(), None);
}

#[test]
fn who_waits_longest_comes_first_and_who_isnt_ready_holds_up_nobody() {
    let mut rack = Rack::default();
    assert!(rack.opens(0, "a", 1));
    let missing = Ok(Answer::Waits(Wait::Unready(Reason::ImageMissing)));
    assert_eq!(rack.asks(1, unready("late", Some(1))), missing);
    let (taken, cap) = (1, 1);
    let reached = Ok(Answer::Waits(Wait::CapReached { taken, cap }));
    assert_eq!(rack.asks(1, ask("b", Some(1))), reached);
    assert_eq!(rack.asks(2, ask("c", Some(1))), reached);
    assert!(rack.done("a"));
    assert!(!rack.done("a"), "it is given back once");
    assert_eq!(
        rack.asks(3, ask("c", Some(1))),
        Ok(Answer::Waits(Wait::Behind { others: 1 }))
    );
    assert!(rack.opens(3, "b", 1));
    assert!(rack.done("b"));
    // the host that wasn't ready waits for longer than c, and is ready now
    assert_eq!(
        rack.asks(4, ask("late", Some(1))),
        Ok(Answer::Open { again: false })
    );
}

#[test]
fn a_wait_that_isnt_repeated_is_over() {
    let mut rack = Rack::default();
    assert!(rack.opens(0, "a", 1));
    assert!(!rack.opens(0, "gone", 1));
    assert!(!rack.opens(1, "b", 1));
    assert!(rack.done("a"));
    let lives = WAIT_LIVES.as_secs();
    assert!(!rack.opens(lives, "b", 1), "the other one may ask again");
    assert!(rack.opens(lives + 1, "b", 1));
    assert!(!rack.opens(lives + 1, "gone", 1));
}

#[test]
fn the_strictest_cap_of_those_that_have_a_place_or_wait_holds() {
    let mut rack = Rack::default();
    assert_eq!(rack.asks(0, ask("a", None)), Err(Refused::NoCap));
    assert_eq!(rack.places.groups().len(), 0);
    assert!(rack.opens(0, "a", 3));
    // a caller that says nothing takes the cap that it finds
    assert_eq!(
        rack.asks(0, ask("b", None)),
        Ok(Answer::Open { again: false })
    );
    assert!(!rack.opens(0, "c", 2), "two have a place already");
    // that caller's cap holds for others too, as long as the caller waits
    assert!(!rack.opens(1, "d", 3));
    assert!(rack.done("c") || rack.opens(2, "d", 3));
    assert_eq!(rack.places.group(&group("ci")).unwrap().cap(), Some(3));
    // a second caller can't raise the cap
    assert!(!rack.opens(3, "e", 100));
    // nor does it get somebody else's place while more are taken than it allows
    let (taken, cap) = (3, 1);
    let reached = Ok(Answer::Waits(Wait::CapReached { taken, cap }));
    assert_eq!(rack.asks(4, ask("a", Some(1))), reached);
    assert!(rack.done("b") && rack.done("d"));
    assert_eq!(
        rack.asks(5, ask("a", Some(1))),
        Ok(Answer::Open { again: true })
    );
}

#[test]
fn a_place_stays_while_its_host_isnt_ready_any_more() {
    let mut rack = Rack::default();
    assert!(rack.opens(0, "a", 1));
    let missing = Ok(Answer::Waits(Wait::Unready(Reason::ImageMissing)));
    assert_eq!(rack.asks(1, unready("a", Some(1))), missing);
    assert!(!rack.opens(1, "b", 1));
    assert_eq!(rack.places.due(), Some(at(60)), "and gets no more time");
    assert!(rack.done("a"));
    assert!(rack.opens(2, "b", 1), "a waits no longer either");
}

#[test]
fn groups_places_waits_and_times_have_bounds() {
    let mut places = Places::default();
    for number in 0..MAX_GROUPS {
        let name = group(&std::format!("g{number}"));
        let answer = places.ask(at(0), 0, &name, unready("a", Some(1)));
        assert!(answer.is_ok());
    }
    let more = group("more");
    assert_eq!(
        places.ask(at(0), 0, &more, ask("a", Some(1))),
        Err(Refused::TooManyGroups)
    );
    // waits that nobody repeats leave room
    let later = WAIT_LIVES.as_secs() + 1;
    assert!(places.ask(at(later), 0, &more, ask("a", Some(1))).is_ok());
    assert_eq!(places.groups_of(&id("a")), std::slice::from_ref(&more));

    let mut places = Places::default();
    let open = |places: &mut Places, number: usize| {
        let host = std::format!("h{number}");
        places.ask(at(0), 0, &more, ask(&host, Some(u32::MAX)))
    };
    for number in 0..MAX_PLACES {
        assert_eq!(open(&mut places, number), Ok(Answer::Open { again: false }));
    }
    assert_eq!(open(&mut places, MAX_PLACES), Ok(Answer::Waits(Wait::Full)));
    assert_eq!(open(&mut places, 0), Ok(Answer::Open { again: true }));
    for number in 0..MAX_WAITS + 2 {
        let host = std::format!("w{number}");
        let answer = places.ask(at(1), 0, &more, unready(&host, None));
        assert!(matches!(answer, Ok(Answer::Waits(_))));
    }
    let waits = places.group(&more).unwrap().waits().len();
    assert_eq!(waits, MAX_WAITS);

    let mut places = Places::default();
    let long = Ask {
        lasts: Duration::MAX,
        ..ask("a", Some(0))
    };
    assert!(
        places.ask(at(0), 0, &more, long).is_ok(),
        "no cap is below one"
    );
    assert_eq!(places.due(), Some(Moment::START + MAX_LASTS));
}

/// What can happen to one group.
#[derive(Clone, Debug)]
enum Step {
    /// A host asks. The answer may be lost on its way.
    Ask {
        host: u8,
        cap: Option<u32>,
        ready: bool,
        lasts: u64,
        lost: bool,
    },
    /// Whoever has a place gives it back.
    Done { host: u8 },
    /// Seconds pass.
    Pass(u64),
    /// The coordinator dies and starts again, with what was kept.
    Restart {
        /// The last write didn't reach the disk, where no answer that waited for it was heard.
        torn: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ask = (
        0..6_u8,
        proptest::option::of(1..4_u32),
        any::<bool>(),
        1..90_u64,
        any::<bool>(),
    );
    let ask = ask.prop_map(|(host, cap, ready, lasts, lost)| Step::Ask {
        host,
        cap,
        ready,
        lasts,
        lost,
    });
    let step = prop_oneof![
        8 => ask,
        2 => (0..6_u8).prop_map(|host| Step::Done { host }),
        2 => (0..40_u64).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(|torn| Step::Restart { torn }),
    ];
    proptest::collection::vec(step, 0..80)
}

fn kept(places: &Places) -> Vec<(GroupName, HostId, Place)> {
    let groups = places.groups();
    let all = groups.flat_map(|(name, group)| {
        group
            .places()
            .map(|(host, place)| (name.clone(), host.clone(), place.clone()))
    });
    all.collect()
}

proptest! {
    /// Whatever happens: an answer that opens is given only to a host that is ready, and where no more hosts have a
    /// place than every caller says whose answer opened and whose time isn't over. A place that its caller knows of is
    /// there until it is given back or its time is over, also after restarts.
    #[test]
    fn no_order_of_asks_losses_and_restarts_gives_more_places_than_any_cap(steps in steps()) {
        let mut places = Places::default();
        // what is kept, and what was before the last write, where nobody heard an answer that waited for it
        let (mut now, mut on_disk, mut before) = (at(0), Vec::new(), None);
        // what callers know: whose answer opened, by which cap, until when
        let mut told: BTreeMap<HostId, (Option<u32>, Moment)> = BTreeMap::new();
        for step in steps {
            for (_, host, _) in places.expire(now) {
                let known = told.remove(&host);
                prop_assert!(known.is_none_or(|(_, until)| until <= now), "{host} lost its place early");
                (before, on_disk) = (Some(on_disk), kept(&places));
            }
            match step {
                Step::Ask { host, cap, ready, lasts, lost } => {
                    let host = std::format!("h{host}");
                    let asked = Ask {
                        ready: if ready { Ok(()) } else { Err(Reason::PresenceOld) },
                        lasts: Duration::from_secs(lasts),
                        ..ask(&host, cap)
                    };
                    let had = places.group(&group("ci")).is_some_and(|of| of.places.contains_key(&id(&host)));
                    let answer = places.ask(now, 0, &group("ci"), asked);
                    if let Ok(Answer::Open { again }) = answer {
                        prop_assert!(ready);
                        prop_assert_eq!(again, had);
                        (before, on_disk) = (lost.then_some(on_disk), kept(&places));
                        let taken = places.group(&group("ci")).unwrap().taken();
                        prop_assert!(cap.is_none_or(|cap| taken <= cap), "{taken} of {cap:?}");
                        if !again {
                            let strictest = told.values().filter_map(|(cap, _)| *cap).min();
                            prop_assert!(strictest.is_none_or(|cap| taken <= cap), "{taken} of {strictest:?}");
                        }
                        if !lost {
                            told.insert(id(&host), (cap, now + Duration::from_secs(lasts)));
                        } else if let Some((_, until)) = told.get_mut(&id(&host)) {
                            // its caller knows of the earlier time only
                            *until = (*until).min(now + Duration::from_secs(lasts));
                        }
                    }
                }
                Step::Done { host } => {
                    let host = id(&std::format!("h{host}"));
                    if told.remove(&host).is_some() {
                        prop_assert!(places.done(&group("ci"), &host).is_some());
                        (before, on_disk) = (Some(on_disk), kept(&places));
                    }
                }
                Step::Pass(seconds) => now += Duration::from_secs(seconds),
                Step::Restart { torn } => {
                    let state = before.take().filter(|_| torn).unwrap_or(on_disk);
                    places = Places::default();
                    for (name, host, place) in state {
                        places.restore(now, name, host, place);
                    }
                    on_disk = kept(&places);
                }
            }
            let there = kept(&places);
            for (host, (_, until)) in &told {
                let place = there.iter().find(|(_, other, _)| other == host);
                prop_assert!(place.is_some_and(|(.., place)| place.ends_at >= *until), "{host}");
            }
        }
    }

    /// Hosts that go on asking, and whose places come back, all get one: nobody starves.
    #[test]
    fn every_host_that_is_ready_and_goes_on_asking_gets_a_place(order in Just((0..9_u8).collect::<Vec<_>>()).prop_shuffle(), cap in 1..4_u32) {
        let mut rack = Rack::default();
        let mut opened = vec![];
        for round in 0..20 {
            for host in &order {
                let host = std::format!("h{host}");
                if !opened.contains(&host) && rack.opens(round, &host, cap) {
                    opened.push(host);
                }
            }
            let taken = rack.places.group(&group("ci")).map_or(0, Group::taken);
            prop_assert!(taken <= cap);
            for host in &opened {
                rack.done(host);
            }
        }
        let first: Vec<_> = order.iter().map(|host| std::format!("h{host}")).collect();
        prop_assert_eq!(opened, first, "in the order in which they came");
    }
}
