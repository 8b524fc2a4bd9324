//! Tests the gate without a cluster: hosts that report as agents do, and callers that ask for places.

use client::gate::{AtMost, GateDoneReply, GateList, GateReply, GateVerdict, GateView, PlaceEnd};
use proto::Reason;
use rollout::places::{Back, PlaceNumber};

use super::*;
use crate::wants::KeptPlaces;

/// The reference that [`want`] gives the image `one`.
const NAME: &str = "127.0.0.1:5000/one:latest";

/// A fleet whose hosts hold an image, and callers.
struct Rack {
    world: World,
    sessions: Vec<(String, u64, Receiver<Arc<message::Order>>)>,
    /// The places that were last written.
    kept: KeptPlaces,
}

/// The number of a caller's places.
fn number(caller: u8) -> PlaceNumber {
    format!("{caller:016x}").parse().unwrap()
}

/// The first caller asks.
fn ask(hosts: &[&str], cap: Option<&str>) -> GateAsk {
    by(Some(1), hosts, cap)
}

fn by(caller: Option<u8>, hosts: &[&str], cap: Option<&str>) -> GateAsk {
    GateAsk {
        image: NAME.into(),
        digest: None,
        hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
        group: Some(GroupAsk {
            name: "ci".parse().unwrap(),
            at_most: cap.map(|cap| cap.parse::<AtMost>().unwrap()),
            lasts: Duration::from_mins(1),
            number: caller.map(number),
        }),
    }
}

impl Rack {
    /// Connected hosts, on which the image is wanted. None of them holds it yet.
    fn new(hosts: &[&str]) -> Self {
        Self::after(World::new(), hosts)
    }

    fn after(mut world: World, hosts: &[&str]) -> Self {
        world.driver.apply(Input::Recalled);
        let sessions = hosts.iter().map(|host| {
            let hello = message::Hello {
                takes_names: true,
                ..World::hello()
            };
            let (session, orders) = world.open(host, hello);
            ((*host).to_owned(), session, orders)
        });
        let sessions = sessions.collect();
        world.stage("one").unwrap();
        Self {
            world,
            sessions,
            kept: KeptPlaces::default(),
        }
    }

    /// The host says that it holds the image, by a look at its disk that is this old.
    fn holds(&mut self, host: &str, age: Duration) {
        self.says(host, vec![NAME.to_owned()], age);
    }

    fn says(&mut self, host: &str, names: Vec<String>, age: Duration) {
        let (_, session, orders) = self
            .sessions
            .iter_mut()
            .find(|(id, ..)| id == host)
            .unwrap();
        let told = taken(orders, |kind| match kind {
            Kind::Names(names) => Some(names.number),
            _ => None,
        });
        let image = message::ImageState {
            manifest: want("one", 1, 1 << 20).digest().as_bytes().to_vec(),
            state: message::StageState::Present.into(),
            ready_references: names,
            presence_age_ms: u64::try_from(age.as_millis()).unwrap(),
            ..message::ImageState::default()
        };
        let report = message::Report {
            images: vec![image],
            names: told.last().copied().unwrap_or(u64::MAX),
            ..message::Report::default()
        };
        let session = *session;
        self.world.report(host, session, report);
    }

    /// What the writer is given, as if it had written it.
    fn write(&mut self) {
        while let Ok(write) = self.world.writer.try_recv() {
            if let Write::Gate(kept, _) = &write {
                self.kept = kept.clone();
            }
            write.done();
        }
    }

    fn asks(&mut self, ask: GateAsk) -> Result<Vec<GateView>, PlaceError> {
        let (reply, mut answer) = oneshot::channel();
        let ask = PlaceAsk::Open(Box::new(ask), reply);
        self.world.driver.apply(Input::Asked(Ask::Places(ask)));
        self.write();
        let answer: Result<GateReply, PlaceError> = answer.try_recv().unwrap();
        answer.map(|reply| reply.hosts)
    }

    fn one(&mut self, ask: GateAsk) -> GateView {
        self.asks(ask).unwrap().remove(0)
    }

    fn done(&mut self, host: &str) -> Vec<String> {
        let back = Back::Numbered(number(1));
        self.gives_back(host, back).unwrap().given_back
    }

    fn gives_back(&mut self, host: &str, back: Back) -> Result<GateDoneReply, PlaceError> {
        let (reply, mut answer) = oneshot::channel();
        let host = host.parse().unwrap();
        let group = None;
        let ask = PlaceAsk::Done(DoneAsk { host, group, back }, reply);
        self.world.driver.apply(Input::Asked(Ask::Places(ask)));
        self.write();
        answer.try_recv().unwrap()
    }

    /// Another coordinator, with what was written.
    fn restarted(&self, hosts: &[&str]) -> Self {
        let kept = Kept {
            places: self.kept.clone(),
            ..Kept::default()
        };
        let world = World::after(false, BTreeSet::new(), kept);
        let mut rack = Self::after(world, hosts);
        rack.kept = self.kept.clone();
        for host in hosts {
            rack.holds(host, Duration::ZERO);
        }
        rack
    }

    fn revoke(&mut self, host: &str) {
        let now = self.world.driver.now();
        let mut membership = self.world.driver.members.membership().clone();
        let revocation = crate::enrolment::Revocation::default();
        membership.revoked.insert(host.parse().unwrap(), revocation);
        self.world.driver.join(now, Arc::new(membership));
    }

    fn list(&mut self) -> GateList {
        let (reply, mut answer) = oneshot::channel();
        let ask = PlaceAsk::List(reply);
        self.world.driver.apply(Input::Asked(Ask::Places(ask)));
        answer.try_recv().unwrap()
    }
}

fn reason(view: &GateView) -> (GateVerdict, Option<Reason>) {
    (view.verdict, view.reason.known())
}

const OPEN: (GateVerdict, Option<Reason>) = (GateVerdict::Open, Some(Reason::Open));

const fn waits(reason: Reason) -> (GateVerdict, Option<Reason>) {
    (GateVerdict::Waits, Some(reason))
}

const fn refused(reason: Reason) -> (GateVerdict, Option<Reason>) {
    (GateVerdict::Refused, Some(reason))
}

#[tokio::test]
async fn a_host_is_ready_by_its_own_word_about_this_name_at_most_30_s_old() {
    let mut rack = Rack::new(&["mini-1"]);
    let without = GateAsk {
        group: None,
        ..ask(&["mini-1"], None)
    };
    let before = rack.one(without.clone());
    assert_eq!(reason(&before), waits(Reason::ImageMissing));
    assert!(
        before.next.contains("parbake why mini-1"),
        "{}",
        before.next
    );
    rack.says("mini-1", vec!["r.test/other:1".into()], Duration::ZERO);
    assert_eq!(
        reason(&rack.one(without.clone())),
        waits(Reason::ImageMissing)
    );
    rack.holds("mini-1", Duration::from_secs(31));
    assert_eq!(
        reason(&rack.one(without.clone())),
        waits(Reason::PresenceOld)
    );
    rack.holds("mini-1", Duration::from_secs(20));
    let open = rack.one(without.clone());
    assert_eq!(reason(&open), OPEN);
    assert!(open.message.contains("20 s ago"), "{}", open.message);
    let digest = want("one", 1, 1 << 20).digest();
    assert_eq!(open.digest, Some(digest.to_string()));
    let bare = GateAsk {
        image: digest.to_string(),
        ..without
    };
    assert_eq!(reason(&rack.one(bare)), OPEN);
    assert!(
        rack.list().groups.is_empty(),
        "without a group there is no place"
    );
}

#[tokio::test]
async fn what_waiting_doesnt_cure_is_refused_with_the_next_step() {
    let mut rack = Rack::new(&["mini-1"]);
    rack.holds("mini-1", Duration::ZERO);
    let unstaged = GateAsk {
        image: "r.test/none:1".into(),
        ..ask(&["mini-1"], Some("1"))
    };
    let view = rack.one(unstaged);
    assert_eq!(reason(&view), refused(Reason::NotSelected));
    let stage = "`parbake stage r.test/none:1 --hosts mini-1 --wait`";
    assert!(view.next.contains(stage), "{}", view.next);
    let stranger = rack.one(ask(&["mini-9"], Some("1")));
    assert_eq!(reason(&stranger), refused(Reason::NotInFleet));
    let moved = GateAsk {
        digest: Some(Digest::of(b"another")),
        ..ask(&["mini-1"], Some("1"))
    };
    assert_eq!(reason(&rack.one(moved)), refused(Reason::Superseded));
    assert!(matches!(
        rack.asks(ask(&["mini-1"], None)),
        Err(PlaceError::NoCap(_))
    ));
    assert!(rack.list().groups.is_empty());

    // a host that is revoked while it waits
    rack.revoke("mini-1");
    let view = rack.one(ask(&["mini-1"], Some("1")));
    assert_eq!(reason(&view), refused(Reason::Revoked));
    assert!(view.message.contains("revoked"), "{}", view.message);
}

/// The answer that gave the place may have been lost: then this one is the first of which its caller hears.
#[tokio::test]
async fn whoever_has_a_place_hears_of_it_also_where_the_answer_is_a_refusal() {
    let mut rack = Rack::new(&["mini-1"]);
    rack.holds("mini-1", Duration::ZERO);
    assert_eq!(reason(&rack.one(ask(&["mini-1"], Some("1")))), OPEN);
    let place = |view: &GateView| view.place.as_ref().and_then(|place| place.number.clone());
    let mine = Some("0000000000000001".to_owned());
    let moved = GateAsk {
        digest: Some(Digest::of(b"another")),
        ..ask(&["mini-1"], Some("1"))
    };
    let view = rack.one(moved);
    assert_eq!(reason(&view), refused(Reason::Superseded));
    assert_eq!(place(&view), mine);
    rack.revoke("mini-1");
    let view = rack.one(ask(&["mini-1"], Some("1")));
    assert_eq!(reason(&view), refused(Reason::Revoked));
    assert_eq!(place(&view), mine);
    // no other caller's
    let view = rack.one(by(Some(2), &["mini-1"], Some("1")));
    assert_eq!(
        (reason(&view), place(&view)),
        (refused(Reason::Revoked), None)
    );
    assert_eq!(rack.done("mini-1"), ["ci"]);
    let view = rack.one(ask(&["mini-1"], Some("1")));
    assert_eq!(place(&view), None);
}

#[tokio::test]
async fn no_more_hosts_have_a_place_than_the_cap_also_after_a_restart() {
    let hosts = ["mini-1", "mini-2", "mini-3"];
    let mut rack = Rack::new(&hosts);
    for host in hosts {
        rack.holds(host, Duration::ZERO);
    }
    let reasons = |views: &[GateView]| views.iter().map(reason).collect::<Vec<_>>();
    let first = rack.asks(ask(&hosts, Some("40%"))).unwrap();
    let full = waits(Reason::CapReached);
    assert_eq!(
        reasons(&first),
        [OPEN, full, full],
        "40% of three hosts is one"
    );
    assert!(
        first[1]
            .message
            .contains("1 of 1 places of group ci are taken: by mini-1"),
        "{}",
        first[1].message
    );
    let again = rack.one(ask(&["mini-1"], Some("1")));
    assert_eq!(
        again.place.unwrap().host,
        "mini-1",
        "it has its own place again"
    );

    // another coordinator with what was written: its hosts have to report first, and nobody else gets the place
    let kept = Kept {
        places: rack.kept.clone(),
        ..Kept::default()
    };
    let world = World::after(false, BTreeSet::new(), kept);
    let mut rack = Rack::after(world, &hosts);
    let missing = waits(Reason::ImageMissing);
    let views = rack.asks(ask(&hosts, Some("3"))).unwrap();
    assert_eq!(reasons(&views), [missing; 3]);
    for host in hosts {
        rack.holds(host, Duration::ZERO);
    }
    let views = rack
        .asks(ask(&["mini-2", "mini-3", "mini-1"], Some("3")))
        .unwrap();
    assert_eq!(
        reasons(&views),
        [full, full, OPEN],
        "the first caller's cap holds"
    );
    let list = rack.list();
    assert_eq!(
        (list.groups[0].cap, list.groups[0].places.len()),
        (Some(1), 1)
    );
    assert_eq!(list.groups[0].waits.len(), 2);
    assert_eq!(rack.done("mini-1"), ["ci"]);
    assert_eq!(rack.done("mini-1"), [""; 0]);
    // what was given back is on disk before it is told
    let places = |rack: &Rack| rack.kept.clone().parse(Moment::START).len();
    assert_eq!((places(&rack), rack.kept.ended().len()), (0, 1));
    assert_eq!(reason(&rack.one(ask(&["mini-2"], Some("3")))), OPEN);

    // nobody gives it back: its time is over, and that is on disk too
    assert_eq!(places(&rack), 1);
    rack.world.pass(Duration::from_secs(59));
    rack.world.driver.flush();
    rack.write();
    assert_eq!(places(&rack), 1);
    rack.world.pass(Duration::from_secs(2));
    rack.world.driver.flush();
    rack.write();
    assert_eq!((places(&rack), rack.kept.ended().len()), (0, 2));
    let view = rack.one(by(Some(2), &["mini-1"], Some("1")));
    assert_eq!(reason(&view), OPEN);
}

#[tokio::test]
async fn late_and_repeated_calls_touch_no_place_of_others_also_after_a_restart() {
    let mut rack = Rack::new(&["mini-1"]);
    rack.holds("mini-1", Duration::ZERO);
    let mine = |caller| Back::Numbered(number(caller));
    let first = rack.one(ask(&["mini-1"], Some("1")));
    assert_eq!(reason(&first), OPEN);
    let named = "`parbake gate done HOST --group ci --place 0000000000000001`";
    assert!(first.next.contains(named), "{}", first.next);
    let shown = first.place.unwrap().number;
    assert_eq!(shown.as_deref(), Some("0000000000000001"));

    // a second caller for the host hears who has it, and no place is called its own
    let second = by(Some(2), &["mini-1"], Some("1"));
    let view = rack.one(second.clone());
    assert_eq!(reason(&view), waits(Reason::PlaceTaken));
    assert_eq!(view.place, None);
    let back = "`parbake gate done mini-1 --group ci --place 0000000000000001`";
    assert!(view.next.contains(back), "{}", view.next);
    // nor does one of an earlier version, which names no place
    let old = by(None, &["mini-1"], Some("1"));
    assert_eq!(reason(&rack.one(old.clone())), waits(Reason::PlaceTaken));
    let refused_done = rack.gives_back("mini-1", Back::Unnumbered);
    assert!(matches!(refused_done, Err(PlaceError::Numbered(_))));

    let mut rack = rack.restarted(&["mini-1"]);
    assert_eq!(rack.done("mini-1"), ["ci"]);
    assert_eq!(reason(&rack.one(second.clone())), OPEN);
    let mut rack = rack.restarted(&["mini-1"]);
    let late = rack.gives_back("mini-1", mine(1)).unwrap();
    assert_eq!(late.before, Some(PlaceEnd::GivenBack));
    assert_eq!(late.given_back, [""; 0]);
    let stays = "has now in ci is another caller's, and stays";
    assert!(late.message.contains(stays), "{}", late.message);
    let again = rack.one(ask(&["mini-1"], Some("1")));
    assert_eq!(reason(&again), refused(Reason::PlaceOver));
    assert_eq!(
        reason(&rack.one(second)),
        OPEN,
        "it has its own place again"
    );
    let unknown = rack.gives_back("mini-1", mine(9)).unwrap();
    assert_eq!(unknown.before, Some(PlaceEnd::Unknown));

    let operator = rack.gives_back("mini-1", Back::Any).unwrap();
    assert_eq!(operator.given_back, ["ci"]);
    let late = rack.gives_back("mini-1", mine(2)).unwrap();
    assert_eq!(late.before, Some(PlaceEnd::ByOperator));
    // callers of earlier versions share their places, as before
    for _ in 0..2 {
        assert_eq!(reason(&rack.one(old.clone())), OPEN);
    }
    assert_eq!(rack.list().groups[0].places[0].number, None);
    let done = rack.gives_back("mini-1", Back::Unnumbered).unwrap();
    assert_eq!(done.given_back, ["ci"]);
}

#[tokio::test]
async fn a_coordinator_that_doesnt_know_all_wants_yet_refuses_nothing() {
    let mut world = World::new();
    let (_, _orders) = world.open("mini-1", World::hello());
    let mut rack = Rack {
        world,
        sessions: Vec::new(),
        kept: KeptPlaces::default(),
    };
    let view = rack.one(ask(&["mini-1"], Some("1")));
    assert_eq!(reason(&view), waits(Reason::NotSynced));
    rack.world.driver.apply(Input::Recalled);
    let view = rack.one(ask(&["mini-1"], Some("1")));
    assert_eq!(reason(&view), refused(Reason::NotSelected));
}
