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

/// The number of a caller's places.
fn number(caller: u8) -> PlaceNumber {
    std::format!("{caller:016x}").parse().unwrap()
}

/// The first caller asks.
fn ask(host: &str, cap: Option<u32>) -> Ask {
    by(1, host, cap)
}

fn by(caller: u8, host: &str, cap: Option<u32>) -> Ask {
    Ask {
        host: id(host),
        number: Some(number(caller)),
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
        matches!(self.gives_back(1, host), Done::Now(_))
    }

    fn gives_back(&mut self, caller: u8, host: &str) -> Done {
        let back = Back::Numbered(number(caller));
        self.places.done(Some(&group("ci")), &id(host), back)
    }

    fn has(&self, caller: u8, host: &str) -> bool {
        let group = self.places.group(&group("ci"));
        group.is_some_and(|of| of.own(&id(host), Some(number(caller))).is_some())
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
    // nor is a place open again while more are taken than its caller allows now
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

fn now() -> Done {
    Done::Now(vec![group("ci")])
}

#[test]
fn a_number_is_sixteen_hex_digits() {
    for good in ["0000000000000000", "ffffffffffffffff", "0123456789abcdef"] {
        assert_eq!(good.parse::<PlaceNumber>().unwrap().to_string(), *good);
    }
    for bad in [
        "",
        "1",
        "0123456789ABCDEF",
        "0123456789abcdef0",
        "+123456789abcdef",
    ] {
        assert!(bad.parse::<PlaceNumber>().is_err(), "{bad}");
    }
}

/// The first caller's place was given back and the second caller took one, when the first one's call came once more.
#[test]
fn a_late_or_repeated_done_gives_back_nothing_of_another_caller() {
    let mut rack = Rack::default();
    assert!(rack.opens(0, "a", 1));
    assert_eq!(rack.gives_back(1, "a"), now());
    let second = rack.asks(1, by(2, "a", Some(1)));
    assert_eq!(second, Ok(Answer::Open { again: false }));
    for _ in 0..2 {
        assert_eq!(rack.gives_back(1, "a"), Done::Before(PlaceEnd::GivenBack));
        assert!(rack.has(2, "a") && !rack.opens(2, "b", 1));
    }
    // the second one's time is over before it is done
    assert_eq!(rack.places.expire(at(61)).len(), 1);
    assert!(rack.opens(61, "b", 1));
    assert_eq!(rack.gives_back(2, "a"), Done::Before(PlaceEnd::TimeOver));
    assert_eq!(rack.gives_back(2, "a"), Done::Before(PlaceEnd::TimeOver));
    assert_eq!(rack.gives_back(3, "b"), Done::Before(PlaceEnd::Unknown));
    assert!(rack.has(1, "b"));
    // in a group of another name there is nothing either
    let back = Back::Numbered(number(1));
    let other = group("other");
    let done = rack.places.done(Some(&other), &id("b"), back);
    assert_eq!(done, Done::Before(PlaceEnd::Unknown));
    assert_eq!(rack.places.done(None, &id("b"), back), now());
}

#[test]
fn a_second_caller_for_a_host_waits_until_the_first_is_done() {
    let mut rack = Rack::default();
    assert!(rack.opens(0, "a", 2));
    let taken = Ok(Answer::Waits(Wait::Taken));
    assert_eq!(rack.asks(1, by(2, "a", Some(2))), taken);
    // and its cap holds while it waits, beside that of a third caller for the same host
    assert_eq!(rack.asks(1, by(3, "a", Some(1))), taken);
    assert_eq!(rack.places.group(&group("ci")).unwrap().cap(), Some(1));
    assert!(!rack.opens(2, "b", 2));
    assert_eq!(rack.gives_back(3, "a"), Done::Before(PlaceEnd::Unknown));
    assert!(rack.opens(2, "b", 2), "who gave up waits no longer");
    // who waits for a host that is worked on holds up no other host
    assert!(rack.done("b"));
    assert_eq!(
        rack.asks(3, by(2, "b", Some(2))),
        Ok(Answer::Open { again: false })
    );
    assert!(rack.done("a"));
    assert_eq!(
        rack.asks(4, by(2, "a", Some(2))),
        Ok(Answer::Open { again: false })
    );
}

#[test]
fn an_ask_that_comes_after_its_place_was_given_back_takes_nothing() {
    let mut rack = Rack::default();
    assert!(rack.opens(0, "a", 1));
    assert!(rack.done("a"));
    let over = |how| Ok(Answer::Over(how));
    assert_eq!(rack.asks(1, ask("a", Some(1))), over(PlaceEnd::GivenBack));
    // the call that gives it back may also overtake the only ask
    assert_eq!(rack.gives_back(2, "a"), Done::Before(PlaceEnd::Unknown));
    assert_eq!(rack.asks(2, by(2, "a", Some(1))), over(PlaceEnd::Unknown));
    assert_eq!(rack.places.groups().len(), 0);
    // whose time was over before it heard of its place asks on, until it gives up
    let third = |rack: &mut Rack, seconds| rack.asks(seconds, by(3, "a", Some(1)));
    assert_eq!(third(&mut rack, 3), Ok(Answer::Open { again: false }));
    assert_eq!(rack.places.expire(at(63)).len(), 1);
    assert_eq!(third(&mut rack, 64), Ok(Answer::Open { again: false }));
    assert_eq!(rack.places.expire(at(124)).len(), 1);
    assert_eq!(rack.gives_back(3, "a"), Done::Before(PlaceEnd::TimeOver));
    assert_eq!(third(&mut rack, 125), over(PlaceEnd::TimeOver));
}

#[test]
fn an_operator_gives_back_whatever_place_a_host_has_and_its_caller_hears_of_it() {
    let mut rack = Rack::default();
    assert!(rack.opens(0, "a", 1));
    assert_eq!(rack.places.done(None, &id("a"), Back::Any), now());
    assert_eq!(rack.places.done(None, &id("a"), Back::Any), Done::Nothing);
    let over = PlaceEnd::ByOperator;
    assert_eq!(rack.asks(1, ask("a", Some(1))), Ok(Answer::Over(over)));
    assert_eq!(rack.gives_back(1, "a"), Done::Before(over));
}

#[test]
fn callers_without_a_number_touch_only_places_without_one() {
    let mut rack = Rack::default();
    let old = |host, cap| Ask {
        number: None,
        ..ask(host, cap)
    };
    let done = |rack: &mut Rack, host| rack.places.done(None, &id(host), Back::Unnumbered);
    assert!(rack.opens(0, "a", 2));
    let taken = Ok(Answer::Waits(Wait::Taken));
    assert_eq!(rack.asks(0, old("a", Some(2))), taken);
    assert_eq!(done(&mut rack, "a"), Done::Numbered);
    for again in [false, true] {
        assert_eq!(rack.asks(0, old("b", None)), Ok(Answer::Open { again }));
    }
    assert_eq!(rack.asks(0, ask("b", Some(2))), taken);
    assert_eq!(rack.gives_back(1, "b"), Done::Before(PlaceEnd::Unknown));
    assert_eq!(done(&mut rack, "b"), now());
    assert_eq!(done(&mut rack, "b"), Done::Nothing);
    assert!(rack.has(1, "a"));
}

#[test]
fn so_many_ended_places_are_remembered_and_no_unknown_one_pushes_them_out() {
    let mut rack = Rack::default();
    let ended = |rack: &Rack, how| {
        let ended = rack.places.ended().filter(|of| of.how == how);
        ended.map(|of| of.host.clone()).collect::<Vec<_>>()
    };
    for host in 0..=MAX_ENDED {
        let host = std::format!("h{host}");
        assert!(rack.opens(0, &host, 1) && rack.done(&host));
    }
    for host in 0..=MAX_UNKNOWN {
        rack.gives_back(1, &std::format!("u{host}"));
    }
    let known = ended(&rack, PlaceEnd::GivenBack);
    assert_eq!(known.len(), MAX_ENDED);
    assert_eq!(known[0], id("h1"), "the oldest one is forgotten");
    let unknown = ended(&rack, PlaceEnd::Unknown);
    assert_eq!((unknown.len(), &unknown[0]), (MAX_UNKNOWN, &id("u1")));
}

#[test]
fn a_number_that_ended_in_one_group_is_whole_in_another() {
    let (ci, other, third) = (group("ci"), group("other"), group("third"));
    let mut places = Places::default();
    let open = |places: &mut Places, name| places.ask(at(0), 7, name, ask("a", Some(1)));
    let back = Back::Numbered(number(1));
    let taken = Ok(Answer::Open { again: false });
    for name in [&ci, &other] {
        assert_eq!(open(&mut places, name), taken);
    }
    assert_eq!(places.done(Some(&ci), &id("a"), back), now());
    // a restart
    let (there, ended) = kept(&places);
    let mut places = Places::default();
    for (name, host, place) in there {
        places.restore(at(0), name, host, place);
    }
    for ended in ended {
        places.restore_ended(ended);
    }
    assert_eq!(open(&mut places, &other), Ok(Answer::Open { again: true }));
    // nor does the place there let the other one be taken anew
    let over = Ok(Answer::Over(PlaceEnd::GivenBack));
    assert_eq!(open(&mut places, &ci), over);
    // what is given back in every group is taken in none any more
    let done = places.done(None, &id("a"), back);
    assert_eq!(done, Done::Now(vec![other.clone()]));
    for name in [&ci, &other, &third] {
        assert_eq!(open(&mut places, name), over);
    }
    // one that an earlier version kept is without a group, and ends as before
    let mut places = Places::default();
    assert_eq!(open(&mut places, &other), taken);
    places.restore_ended(Ended {
        group: None,
        host: id("a"),
        number: number(1),
        how: PlaceEnd::GivenBack,
        again: false,
    });
    assert_eq!(open(&mut places, &other), over);
}

/// A loop asks with a new number each time. What it asked before leaves nothing that holds others up.
#[test]
fn a_host_that_had_its_place_comes_behind_all_that_wait() {
    let mut rack = Rack::default();
    assert!(rack.opens(0, "a", 1));
    for caller in 2..4 {
        let answer = rack.asks(1, by(caller, "b", Some(1)));
        assert!(matches!(answer, Ok(Answer::Waits(_))));
    }
    assert!(!rack.opens(2, "c", 1));
    assert!(rack.done("a"));
    let opened = rack.asks(3, by(4, "b", Some(1)));
    assert_eq!(opened, Ok(Answer::Open { again: false }));
    assert_eq!(rack.gives_back(4, "b"), now());
    assert!(rack.opens(4, "c", 1), "two stale turns of b come behind");
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
    let names: Vec<_> = places.groups().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, std::slice::from_ref(&more));

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
    /// A caller asks, maybe once more, maybe when it was done long ago. The answer may be lost on its way.
    Ask {
        caller: u8,
        host: u8,
        cap: Option<u32>,
        ready: bool,
        lasts: u64,
        lost: bool,
    },
    /// A caller gives its place back, or one that it never had or gave back before. The answer may be lost.
    Done { caller: u8, host: u8, lost: bool },
    /// An operator gives back what the host has.
    Operator { host: u8 },
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
        0..3_u8,
        0..6_u8,
        proptest::option::of(1..4_u32),
        any::<bool>(),
        1..90_u64,
        any::<bool>(),
    );
    let ask = ask.prop_map(|(caller, host, cap, ready, lasts, lost)| Step::Ask {
        caller,
        host,
        cap,
        ready,
        lasts,
        lost,
    });
    let done = (0..3_u8, 0..6_u8, any::<bool>());
    let done = done.prop_map(|(caller, host, lost)| Step::Done { caller, host, lost });
    let step = prop_oneof![
        16 => ask,
        6 => done,
        1 => (0..6_u8).prop_map(|host| Step::Operator { host }),
        4 => (0..40_u64).prop_map(Step::Pass),
        2 => any::<bool>().prop_map(|torn| Step::Restart { torn }),
    ];
    proptest::collection::vec(step, 0..80)
}

/// What is kept on disk.
type Disk = (Vec<(GroupName, HostId, Place)>, Vec<Ended>);

fn kept(places: &Places) -> Disk {
    let groups = places.groups();
    let all = groups.flat_map(|(name, group)| {
        group
            .places()
            .map(|(host, place)| (name.clone(), host.clone(), place.clone()))
    });
    (all.collect(), places.ended().cloned().collect())
}

proptest! {
    /// Whatever happens: an answer that opens is given only to a host that is ready, and where no more hosts have a
    /// place than every caller says whose answer opened and whose time isn't over. A place that its caller knows of is
    /// there until this caller gives it back, an operator does, or its time is over, also after restarts. No other
    /// caller's answer opens meanwhile. What was given back never opens again.
    #[test]
    fn no_order_of_asks_losses_and_restarts_gives_more_places_than_any_cap(steps in steps()) {
        let mut places = Places::default();
        // what is kept, and what was before the last write, where nobody heard an answer that waited for it
        let (mut now, mut on_disk, mut before) = (at(0), Disk::default(), None);
        // what callers know: whose answer opened, by which cap, until when
        let mut told: BTreeMap<HostId, (u8, Option<u32>, Moment)> = BTreeMap::new();
        // what callers heard that they gave back
        let mut spent: BTreeSet<(u8, HostId)> = BTreeSet::new();
        for step in steps {
            for (_, host, _) in places.expire(now) {
                let known = told.remove(&host);
                prop_assert!(known.is_none_or(|(.., until)| until <= now), "{host} lost its place early");
                (before, on_disk) = (Some(on_disk), kept(&places));
            }
            match step {
                Step::Ask { caller, host, cap, ready, lasts, lost } => {
                    let host = std::format!("h{host}");
                    let asked = Ask {
                        ready: if ready { Ok(()) } else { Err(Reason::PresenceOld) },
                        lasts: Duration::from_secs(lasts),
                        ..by(caller, &host, cap)
                    };
                    let host = id(&host);
                    let had = places.group(&group("ci")).is_some_and(|of| of.own(&host, Some(number(caller))).is_some());
                    let answer = places.ask(now, 0, &group("ci"), asked);
                    if let Ok(Answer::Open { again }) = answer {
                        prop_assert!(ready);
                        prop_assert_eq!(again, had);
                        prop_assert!(!spent.contains(&(caller, host.clone())), "{host} was given back");
                        let other = told.get(&host).is_some_and(|(of, ..)| *of != caller);
                        prop_assert!(!other, "another caller works on {host}");
                        (before, on_disk) = (lost.then_some(on_disk), kept(&places));
                        let taken = places.group(&group("ci")).unwrap().taken();
                        prop_assert!(cap.is_none_or(|cap| taken <= cap), "{taken} of {cap:?}");
                        if !again {
                            let strictest = told.values().filter_map(|(_, cap, _)| *cap).min();
                            prop_assert!(strictest.is_none_or(|cap| taken <= cap), "{taken} of {strictest:?}");
                        }
                        let until = now + Duration::from_secs(lasts);
                        if !lost {
                            told.insert(host, (caller, cap, until));
                        } else if let Some((.., known)) = told.get_mut(&host) {
                            // its caller knows of the earlier time only
                            *known = (*known).min(until);
                        }
                    }
                }
                Step::Done { caller, host, lost } => {
                    let host = id(&std::format!("h{host}"));
                    let owns = told.get(&host).is_some_and(|(of, ..)| *of == caller);
                    let done = places.done(Some(&group("ci")), &host, Back::Numbered(number(caller)));
                    prop_assert!(!owns || matches!(done, Done::Now(_)), "{done:?}");
                    let twice = spent.contains(&(caller, host.clone()));
                    prop_assert!(!twice || matches!(done, Done::Before(_)), "{done:?}");
                    if owns {
                        told.remove(&host);
                    }
                    (before, on_disk) = (lost.then_some(on_disk), kept(&places));
                    if !lost {
                        spent.insert((caller, host));
                    }
                }
                Step::Operator { host } => {
                    let host = id(&std::format!("h{host}"));
                    places.done(None, &host, Back::Any);
                    told.remove(&host);
                    (before, on_disk) = (None, kept(&places));
                }
                Step::Pass(seconds) => now += Duration::from_secs(seconds),
                Step::Restart { torn } => {
                    let (there, ended) = before.take().filter(|_| torn).unwrap_or(on_disk);
                    places = Places::default();
                    for (name, host, place) in there {
                        places.restore(now, name, host, place);
                    }
                    for ended in ended {
                        places.restore_ended(ended);
                    }
                    on_disk = kept(&places);
                }
            }
            let (there, _) = kept(&places);
            for (host, (caller, _, until)) in &told {
                let place = there.iter().find(|(_, other, _)| other == host);
                let stays = |place: &Place| place.number == Some(number(*caller)) && place.ends_at >= *until;
                prop_assert!(place.is_some_and(|(.., place)| stays(place)), "{host}");
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
