//! Tests the gate without a cluster: hosts that report as agents do, and callers that ask for places.

use client::gate::{AtMost, GateDoneReply, GateList, GateReply, GateVerdict, GateView};
use proto::Reason;

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

fn ask(hosts: &[&str], cap: Option<&str>) -> GateAsk {
    GateAsk {
        image: NAME.into(),
        digest: None,
        hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
        group: Some(GroupAsk {
            name: "ci".parse().unwrap(),
            at_most: cap.map(|cap| cap.parse::<AtMost>().unwrap()),
            lasts: Duration::from_mins(1),
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
        let (reply, mut answer) = oneshot::channel();
        let ask = PlaceAsk::Done((host.parse().unwrap(), None), reply);
        self.world.driver.apply(Input::Asked(Ask::Places(ask)));
        self.write();
        let answer: Result<GateDoneReply, PlaceError> = answer.try_recv().unwrap();
        answer.unwrap().given_back
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
    let now = rack.world.driver.now();
    let mut membership = rack.world.driver.members.membership().clone();
    let revocation = crate::enrolment::Revocation::default();
    membership
        .revoked
        .insert("mini-1".parse().unwrap(), revocation);
    rack.world.driver.join(now, Arc::new(membership));
    let view = rack.one(ask(&["mini-1"], Some("1")));
    assert_eq!(reason(&view), refused(Reason::Revoked));
    assert!(view.message.contains("revoked"), "{}", view.message);
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
    assert_eq!(rack.kept, KeptPlaces::default());
    assert_eq!(reason(&rack.one(ask(&["mini-2"], Some("3")))), OPEN);

    // nobody gives it back: its time is over, and that is on disk too
    assert_ne!(rack.kept, KeptPlaces::default());
    rack.world.pass(Duration::from_secs(59));
    rack.world.driver.flush();
    rack.write();
    assert_ne!(rack.kept, KeptPlaces::default());
    rack.world.pass(Duration::from_secs(2));
    rack.world.driver.flush();
    rack.write();
    assert_eq!(rack.kept, KeptPlaces::default());
    assert_eq!(reason(&rack.one(ask(&["mini-1"], Some("1")))), OPEN);
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
