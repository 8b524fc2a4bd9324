use std::os::unix::process::ExitStatusExt as _;

use client::gate::{GateVerdict, PlaceView};
use proto::Reason;

use super::*;

fn view(host: &str, verdict: GateVerdict, reason: Reason) -> GateView {
    GateView {
        host: host.into(),
        digest: Some("sha256:1".into()),
        verdict,
        reason: reason.into(),
        message: "words".into(),
        next: String::new(),
        failed_seconds: None,
        image_failed: None,
        place: None,
    }
}

fn open(host: &str) -> GateView {
    view(host, GateVerdict::Open, Reason::Open)
}

fn batch(hosts: &[&str], keep_going: bool) -> Batch {
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    let (story, _writer) = Story::start(|_| {}).unwrap();
    Batch::new("r.test/image:1", hosts, keep_going, story)
}

/// The hosts whose commands begin, and whose places go back unused.
fn answered(batch: &mut Batch, hosts: Vec<GateView>) -> (Vec<String>, Vec<String>) {
    let now = Instant::now();
    let (begin, unused) = batch.answered(now, now, GateReply { hosts });
    let begin = begin.into_iter().map(|view| view.host).collect();
    (begin, unused)
}

fn exits(batch: &mut Batch, host: &str, code: i32) {
    let status = ExitStatus::from_raw(code << 8);
    batch.ended(Instant::now(), host, Ok(How::Exited(status)));
}

fn states(batch: Batch) -> Vec<State> {
    batch.finish().iter().map(|line| line.state).collect()
}

#[test]
fn a_command_begins_once_for_each_host_that_is_open() {
    let mut batch = batch(&["a", "b", "c"], false);
    assert_eq!(batch.next_asked(), ["a", "b", "c"]);
    let full = view("b", GateVerdict::Waits, Reason::CapReached);
    let gone = view("c", GateVerdict::Refused, Reason::Revoked);
    let (begin, unused) = answered(&mut batch, vec![open("a"), full, gone]);
    assert_eq!((begin, unused), (vec!["a".into()], vec![]));
    assert_eq!(batch.next_asked(), ["b"]);
    let (begin, unused) = answered(&mut batch, vec![open("a"), open("nobody")]);
    assert_eq!(
        (begin, unused),
        (vec![], vec![]),
        "an answer that comes twice begins nothing"
    );
    exits(&mut batch, "a", 0);
    assert!(!batch.is_over());
    answered(&mut batch, vec![open("b")]);
    assert!(!batch.is_over());
    exits(&mut batch, "b", 0);
    assert!(batch.is_over());
    assert_eq!(states(batch), [State::Done, State::Done, State::NotReady]);
}

#[test]
fn a_place_of_an_answer_that_was_lost_goes_back_where_no_command_began() {
    let placed = |host: &str| with_place(view(host, GateVerdict::Refused, Reason::Revoked));
    let mut batch = batch(&["a", "b"], true);
    answered(&mut batch, vec![open("b")]);
    exits(&mut batch, "b", 0);
    // the host's command has ended, and gave its place back itself: another caller may have it now
    let (begin, unused) = answered(&mut batch, vec![placed("a"), placed("b")]);
    assert_eq!((begin, unused), (vec![], vec!["a".into()]));
    assert_eq!(states(batch), [State::NotReady, State::Done]);
}

/// The host's own place, in an answer of this kind.
fn with_place(view: GateView) -> GateView {
    let place = PlaceView {
        host: view.host.clone(),
        number: Some("00000000000000ab".into()),
        image: "r.test/image:1".into(),
        digest: "sha256:1".into(),
        cap: 1,
        taken_at: 0,
        ends_in_seconds: 60,
    };
    GateView {
        place: Some(place),
        ..view
    }
}

#[test]
fn what_may_have_a_place_and_began_no_command_is_left_at_the_end() {
    let mut batch = batch(&["a", "b", "c", "d", "e"], true);
    let now = Instant::now();
    let left = |batch: &mut Batch| batch.left().into_iter().collect::<Vec<_>>();
    batch.lost(["a", "b", "c"].map(str::to_owned).to_vec());
    // the next answer says that one has no place, and gives the other one its command
    let full = view("a", GateVerdict::Waits, Reason::CapReached);
    answered(&mut batch, vec![full, open("b")]);
    // one has its place, and isn't ready any more; for another the answer comes too late
    let unready = view("d", GateVerdict::Waits, Reason::PresenceOld);
    answered(&mut batch, vec![with_place(unready)]);
    let late = now + ANSWER_AWAITED + Duration::from_secs(1);
    let hosts = vec![with_place(open("e"))];
    batch.answered(late, now, GateReply { hosts });
    batch.stop("interrupted".into());
    assert!(!batch.is_over());
    exits(&mut batch, "b", 0);
    assert!(batch.is_over());
    assert_eq!(left(&mut batch), ["c", "d", "e"]);
    assert!(left(&mut batch).is_empty());
}

#[test]
fn an_answer_that_comes_so_late_that_its_place_may_end_first_begins_nothing() {
    let mut batch = batch(&["a"], false);
    let asked_at = Instant::now();
    let reply = || GateReply {
        hosts: vec![open("a")],
    };
    let late = asked_at + ANSWER_AWAITED + Duration::from_millis(1);
    let (begin, unused) = batch.answered(late, asked_at, reply());
    assert_eq!((begin.len(), unused.len()), (0, 0));
    assert_eq!(batch.next_asked(), ["a"], "it is asked for again");
    let (begin, _) = batch.answered(asked_at + ANSWER_AWAITED, asked_at, reply());
    assert_eq!(begin.len(), 1);
}

#[test]
fn a_failure_keeps_others_from_beginning_unless_asked_otherwise() {
    for keep_going in [false, true] {
        let mut batch = batch(&["a", "b", "c", "d"], keep_going);
        let waits = |host| view(host, GateVerdict::Waits, Reason::CapReached);
        let lacks = view("d", GateVerdict::Waits, Reason::ImageMissing);
        answered(&mut batch, vec![open("a"), open("b"), waits("c"), lacks]);
        exits(&mut batch, "a", 3);
        assert_eq!(batch.next_asked().is_empty(), !keep_going);
        // an answer that was on its way: its place goes back unused
        let (begin, unused) = answered(&mut batch, vec![open("c")]);
        match keep_going {
            true => {
                assert_eq!((begin.len(), unused.len()), (1, 0));
                continue;
            }
            false => assert_eq!((begin.len(), unused.len()), (0, 1)),
        }
        assert!(!batch.is_over(), "b's command runs on");
        exits(&mut batch, "b", 0);
        assert!(batch.is_over());
        let lines = batch.finish();
        assert_eq!(lines[0].exit_status, Some(3));
        assert!(
            lines[0].message.contains("exit status: 3"),
            "{}",
            lines[0].message
        );
        assert!(
            lines[2].message.contains("the command for a failed"),
            "{}",
            lines[2].message
        );
        let states: Vec<_> = lines.iter().map(|line| line.state).collect();
        let expected = [
            State::Failed,
            State::Done,
            State::NotStarted,
            State::NotReady,
        ];
        assert_eq!(states, expected);
    }
}

#[test]
fn what_is_over_begins_nothing_and_names_what_each_host_waited_for() {
    let mut batch = batch(&["a"], false);
    answered(
        &mut batch,
        vec![view("a", GateVerdict::Waits, Reason::PresenceOld)],
    );
    batch.stop("the time is up".into());
    assert!(batch.is_over() && batch.next_asked().is_empty());
    let lines = batch.finish();
    assert_eq!(lines[0].message, "not ready: the time is up (last: words)");
}

#[test]
fn more_hosts_than_one_ask_takes_are_asked_about_by_turns() {
    let names: Vec<String> = (0..MAX_GATE_HOSTS + 2)
        .map(|number| format!("h{number:04}"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut batch = batch(&names, false);
    assert_eq!(batch.next_asked(), names[..MAX_GATE_HOSTS]);
    let next = batch.next_asked();
    assert_eq!(next[..2], names[MAX_GATE_HOSTS..]);
    assert_eq!(next.len(), MAX_GATE_HOSTS);
}
