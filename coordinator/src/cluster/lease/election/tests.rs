//! Candidates against each other, without an API server.

use std::collections::BTreeMap;

use super::*;

const T0: Duration = Duration::from_secs(1_000);

fn at(seconds: u64) -> Duration {
    T0 + Duration::from_secs(seconds)
}

fn candidate(name: &str) -> Election {
    Election::new(Settings {
        identity: name.into(),
        duration: Duration::from_secs(15),
    })
}

fn record(holder: &str, beat: i64) -> Record {
    Record {
        holder: Some(holder.to_owned()).filter(|holder| !holder.is_empty()),
        transitions: 7,
        duration: Duration::from_secs(15),
        renewed: Some(jiff::Timestamp::from_second(beat).unwrap()),
        acquired: None,
        new: false,
        version: Some(beat.to_string()),
        uid: None,
    }
}

#[test]
fn a_lease_that_nobody_holds_is_taken_at_once() {
    let mut a = candidate("a");
    assert_eq!(a.step(at(0)), Step::Look);
    a.see(None, at(0));
    assert_eq!((a.step(at(0)), a.next_number()), (Step::Take, 1));
    a.see(Some(record("", 1)), at(1));
    assert_eq!((a.step(at(1)), a.next_number()), (Step::Take, 8));
    // the candidate's own lease, from before its restart
    a.see(Some(record("a", 1)), at(1));
    assert_eq!((a.step(at(1)), a.next_number()), (Step::Take, 8));
}

#[test]
fn a_term_is_later_than_the_leases_and_the_secrets() {
    let mut a = candidate("a");
    a.see(Some(record("", 1)), at(0));
    for (claimed, number) in [(0, 8), (6, 8), (7, 8), (50, 51), (u32::MAX, LAST_TERM)] {
        a.claimed = claimed;
        assert_eq!(a.next_number(), number);
    }
}

fn new(record: Record) -> Record {
    Record {
        new: true,
        ..record
    }
}

#[test]
fn who_makes_a_lease_where_somebody_led_waits_until_that_one_has_stopped() {
    // the Secret comes from a backup, in a cluster that never had the Lease
    let mut b = candidate("b");
    b.see(None, at(0));
    assert_eq!(b.step(at(0)), Step::Take);
    b.claimed = 50;
    assert_eq!(b.next_number(), 51);
    b.won(new(record("b", 1)), at(0), at(1));
    assert_eq!(b.step(at(3)), Step::Renew);
    for second in [3, 6, 9, 12] {
        b.won(new(record("b", 2)), at(second), at(second));
    }
    let last = at(13) - Duration::from_millis(1);
    assert_eq!((b.leads(last), b.step(last)), (None, Step::Wait(at(13))));
    assert_eq!(b.leads(at(13)), Some(at(22)));

    // the lost Lease had a longer duration than this candidate's own
    let mut c = candidate("c");
    let long = Record {
        duration: Duration::from_secs(20),
        ..record("a", 1)
    };
    c.see(Some(long), at(0));
    c.see(None, at(3));
    assert_eq!(c.step(at(3)), Step::Take);
    c.won(new(record("c", 2)), at(3), at(3));
    c.won(new(record("c", 3)), at(18), at(18));
    assert_eq!((c.leads(at(18)), c.leads(at(19))), (None, Some(at(28))));

    // the lease is lost before the candidate led, so it is a candidate again
    let mut d = candidate("d");
    d.claimed = 1;
    d.won(new(record("d", 1)), at(0), at(0));
    d.see(Some(record("a", 2)), at(3));
    assert_eq!(d.step(at(3)), Step::Wait(at(6)));
    assert_eq!(d.leads(at(12)), None);

    // the candidate's own new lease, from before its restart: nobody has led by it yet
    let mut e = candidate("e");
    e.claimed = 1;
    e.see(Some(new(record("e", 1))), at(0));
    assert_eq!(
        (e.step(at(0)), e.is_new(&Step::Take, at(0))),
        (Step::Take, true)
    );
    e.won(new(record("e", 2)), at(0), at(0));
    assert!(e.leads(at(11)).is_none() && e.is_new(&Step::Renew, at(11)));
    assert!(!e.is_new(&Step::Renew, at(12)));
}

#[test]
fn anothers_lease_is_taken_only_after_its_whole_duration_was_watched() {
    let mut b = candidate("b");
    b.see(Some(record("a", 1)), at(0));
    assert_eq!(b.step(at(0)), Step::Wait(at(3)));
    assert_eq!(b.step(at(3)), Step::Look);
    // the lease was renewed, so the wait starts anew, whatever time the lease names
    b.see(Some(record("a", -5_000)), at(3));
    for second in [6, 9, 12, 15] {
        assert_eq!(b.step(at(second)), Step::Look);
        b.see(Some(record("a", -5_000)), at(second));
    }
    let before = at(18) - Duration::from_millis(1);
    assert_ne!(b.step(before), Step::Take);
    assert_eq!(b.step(at(18)), Step::Take);
}

#[test]
fn a_longer_lease_than_our_own_is_waited_for() {
    let mut b = candidate("b");
    let long = Record {
        duration: Duration::from_secs(60),
        ..record("a", 1)
    };
    b.see(Some(long), at(0));
    assert_eq!(b.step(at(59)), Step::Look);
    assert_eq!(b.step(at(60)), Step::Take);
}

#[test]
fn a_leader_renews_and_stops_at_two_thirds_without_a_renewal() {
    let mut a = candidate("a");
    a.won(record("a", 1), at(0), at(1));
    assert_eq!(a.step(at(2)), Step::Wait(at(3)));
    assert_eq!(a.step(at(3)), Step::Renew);
    a.won(record("a", 2), at(3), at(4));
    assert_eq!(a.end(), Some(at(13)));
    assert_eq!(a.step(at(13) - Duration::from_millis(1)), Step::Renew);
    assert_eq!(a.step(at(13)), Step::Lose(LostError::Expired));
}

#[test]
fn a_leader_whose_lease_is_taken_or_deleted_has_lost() {
    let mut a = candidate("a");
    a.won(record("a", 1), at(0), at(0));
    a.see(Some(record("b", 2)), at(1));
    assert_eq!(a.step(at(1)), Step::Lose(LostError::Taken("b".into())));
    a.see(None, at(1));
    assert_eq!(a.step(at(1)), Step::Lose(LostError::Deleted));
}

/// The time of a request to the server and of its answer back, in milliseconds, and whether the answer is lost.
type Fate = (u64, u64, bool);

/// A candidate's request, with the version that the candidate knows. Where the answer is lost, the election never
/// learns the time of sending.
struct Request {
    step: Step,
    number: u32,
    new: bool,
    version: Option<String>,
    sent: Duration,
}

/// An event of one candidate.
enum Moment {
    Acts,
    /// The candidate's request reaches the server.
    Arrives(Request),
    /// The answer reaches the candidate: what the server has, and whether the candidate's write succeeded.
    Answered {
        record: Option<Record>,
        won: bool,
        sent: Duration,
    },
    /// The candidate claims the Secret for its term.
    Claims(u32),
    /// Somebody deletes the Lease.
    Deleted,
    /// Somebody restores a Secret of a later term.
    Restored,
}

/// The planned events in order, and the fates of future requests.
struct Course<F> {
    fates: F,
    queue: BTreeMap<(Duration, u64), (usize, Moment)>,
    sequence: u64,
}

impl<F> Course<F> {
    fn then(&mut self, at: Duration, who: usize, moment: Moment) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), (who, moment));
    }
}

/// Two candidates and a server. A leader writes from its claim of the Secret on.
struct World {
    both: [Election; 2],
    /// The term that each candidate leads, and whether the candidate has claimed the Secret for it.
    leads: [Option<(u32, bool)>; 2],
    server: Option<Record>,
    secret: u32,
    lives: u32,
    beats: i64,
    /// The times from which and until which each candidate could write.
    terms: Vec<(usize, Duration, Duration)>,
    /// The number of claims that were refused because the Secret had a later term.
    refused: u32,
}

impl World {
    fn new() -> Self {
        Self {
            both: [candidate("a"), candidate("b")],
            leads: [None, None],
            server: None,
            secret: 0,
            lives: 0,
            beats: 0,
            terms: Vec::new(),
            refused: 0,
        }
    }

    /// The candidate's process ends and is started again.
    fn restart(&mut self, who: usize) {
        self.lives += 1;
        self.both[who] = candidate(&format!("{}{}", ["a", "b"][who], self.lives));
        self.leads[who] = None;
    }

    fn writes(&mut self, who: usize, from: Duration) {
        let until = self.both[who].end().expect("it leads");
        self.terms.push((who, from, until));
    }

    fn run(&mut self, fates: impl Iterator<Item = Fate>, odd: &[(u64, bool)]) {
        let mut course = Course {
            fates,
            queue: BTreeMap::new(),
            sequence: 0,
        };
        for who in [0, 1] {
            course.then(T0, who, Moment::Acts);
        }
        for (at, restored) in odd {
            let event = if *restored {
                Moment::Restored
            } else {
                Moment::Deleted
            };
            course.then(T0 + Duration::from_millis(*at), 0, event);
        }
        while let Some(((now, _), (who, moment))) = course.queue.pop_first() {
            let goes_on = match moment {
                Moment::Acts => self.acts(now, who, &mut course),
                Moment::Arrives(request) => self.arrives(now, who, request, &mut course),
                Moment::Answered { record, won, sent } => {
                    self.answered(now, who, (record, won, sent), &mut course)
                }
                Moment::Claims(number) => self.claims(now, who, number),
                Moment::Deleted => {
                    self.server = None;
                    Some(())
                }
                Moment::Restored => {
                    self.secret += 50;
                    Some(())
                }
            };
            if goes_on.is_none() {
                break;
            }
        }
    }

    fn acts(
        &mut self,
        now: Duration,
        who: usize,
        course: &mut Course<impl Iterator<Item = Fate>>,
    ) -> Option<()> {
        let step = self.both[who].step(now);
        if self.both[who].renewed.is_none() {
            self.leads[who] = None;
        }
        match step {
            Step::Wait(until) => {
                course.then(until, who, Moment::Acts);
                return Some(());
            }
            Step::Lose(_) => {
                self.restart(who);
                course.then(now + Duration::from_secs(1), who, Moment::Acts);
                return Some(());
            }
            Step::Look | Step::Take | Step::Renew => {}
        }
        let (there, _, lost) = course.fates.next()?;
        if step == Step::Take {
            self.both[who].claimed = self.secret;
        }
        let candidate = &self.both[who];
        let known = candidate.record();
        let request = Request {
            number: match step {
                Step::Take => candidate.next_number(),
                _ => known.map_or(0, |record| record.transitions),
            },
            new: candidate.is_new(&step, now),
            version: known.and_then(|record| record.version.clone()),
            sent: if lost { Duration::MAX } else { now },
            step,
        };
        if lost {
            // the candidate gives up after a time-out, and the request may arrive nevertheless
            course.then(now + Duration::from_secs(5), who, Moment::Acts);
        }
        let arrives = Moment::Arrives(request);
        course.then(now + Duration::from_millis(there), who, arrives);
        Some(())
    }

    fn arrives(
        &mut self,
        now: Duration,
        who: usize,
        request: Request,
        course: &mut Course<impl Iterator<Item = Fate>>,
    ) -> Option<()> {
        let there = self.server.as_ref();
        let there = there.and_then(|record| record.version.as_ref());
        let won =
            there == request.version.as_ref() && matches!(request.step, Step::Take | Step::Renew);
        if won {
            self.beats += 1;
            let name = self.both[who].settings.identity.clone();
            self.server = Some(Record {
                transitions: request.number,
                new: request.new,
                ..record(&name, self.beats)
            });
        }
        let sent = request.sent;
        if sent == Duration::MAX {
            return Some(());
        }
        let (_, back, _) = course.fates.next()?;
        let record = self.server.clone();
        let answered = Moment::Answered { record, won, sent };
        course.then(now + Duration::from_millis(back), who, answered);
        Some(())
    }

    fn answered(
        &mut self,
        now: Duration,
        who: usize,
        (record, won, sent): (Option<Record>, bool, Duration),
        course: &mut Course<impl Iterator<Item = Fate>>,
    ) -> Option<()> {
        if won {
            let record = record.expect("just written");
            let number = record.transitions;
            self.both[who].won(record, sent, now);
            match self.leads[who] {
                Some((_, true)) => self.writes(who, now),
                Some((_, false)) => {}
                None => {
                    let (there, ..) = course.fates.next()?;
                    self.leads[who] = Some((number, false));
                    let begins = self.both[who].from.max(now);
                    let claims = Moment::Claims(number);
                    course.then(begins + Duration::from_millis(there), who, claims);
                }
            }
        } else {
            self.both[who].see(record, now);
        }
        course.then(now, who, Moment::Acts);
        Some(())
    }

    fn claims(&mut self, now: Duration, who: usize, number: u32) -> Option<()> {
        let leads = self.both[who].leads(now).is_some_and(|end| now < end);
        if self.leads[who] != Some((number, false)) || !leads {
            return Some(());
        }
        if self.secret >= number {
            self.refused += 1;
            self.restart(who);
        } else {
            self.secret = number;
            self.leads[who] = Some((number, true));
            self.writes(who, now);
        }
        Some(())
    }
}

#[test]
fn a_deleted_lease_and_a_later_secret_cost_a_lease_time_at_most() {
    // requests take 10 ms. The Lease is deleted at 60 s. At 120 s a later Secret is restored and the Lease is deleted
    // again.
    let mut world = World::new();
    world.run(
        (0..600).map(|_| (10, 10, false)),
        &[(60_000, false), (120_000, true), (120_000, false)],
    );
    assert_eq!(world.refused, 0);
    let mut until = T0;
    for (_, from, end) in &world.terms {
        let gap = from.saturating_sub(until);
        assert!(
            gap <= Duration::from_secs(15),
            "{gap:?} without a leader at {from:?}"
        );
        until = until.max(*end);
    }
    assert!(until > at(200), "{until:?}");
}

proptest::proptest! {
    #[test]
    fn two_candidates_never_both_lead_however_requests_are_delayed_or_lost(
        fates in proptest::collection::vec((0_u64..6_000, 0_u64..6_000, proptest::bool::weighted(0.2)), 300),
        odd in proptest::collection::vec((0_u64..400_000, proptest::bool::weighted(0.3)), 0..8),
    ) {
        let mut world = World::new();
        world.run(fates.into_iter(), &odd);
        let terms = &world.terms;
        for (index, one) in terms.iter().enumerate() {
            for other in &terms[index + 1..] {
                let apart = one.2 <= other.1 || other.2 <= one.1;
                proptest::prop_assert!(one.0 == other.0 || apart, "{one:?} {other:?}");
            }
        }
    }
}
