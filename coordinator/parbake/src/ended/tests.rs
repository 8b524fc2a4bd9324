//! Tests of the table of exit statuses. The operators' page must have the same table.

use std::collections::BTreeSet;

use super::*;
use crate::frame::tests as made_up;

/// The page that operators read.
const OPERATING: &str = include_str!("../../../../docs/OPERATING.md");

/// Reasons for which a failed image isn't waited for.
const HOPELESS: [Reason; 6] = [
    Reason::ContentBad,
    Reason::ContentMissing,
    Reason::ContentRefused,
    Reason::ContentUnusable,
    Reason::ContentUnavailable,
    Reason::Contradicts,
];

/// Reasons of Pods that aren't blocked.
const FREE: [Reason; 5] = [
    Reason::Open,
    Reason::Current,
    Reason::AlreadyLabelled,
    Reason::Admitted,
    Reason::NotGated,
];

fn host(name: &str, state: HostState, failed_seconds: Option<u64>) -> HostProgress {
    HostProgress {
        failed_seconds,
        ..made_up::host(name, state, 0)
    }
}

fn image(hosts: Vec<HostProgress>) -> ImageView {
    ImageView {
        references: vec!["r.test/image:1".into()],
        reason: None,
        ..made_up::image(hosts)
    }
}

#[test]
fn waiting_ends_when_all_selected_hosts_have_it_or_the_rest_has_failed_for_long() {
    let outcome = |hosts: Vec<HostProgress>, selected: Option<&[String]>| {
        let request = StageRequest {
            reference: "r.test/image:1".into(),
            hosts: selected.map(<[String]>::to_vec),
            priority: None,
        };
        settled(&image(hosts), &request).map(|ended| ended.outcome)
    };
    let present = || host("a", HostState::Present, None);
    assert_eq!(outcome(vec![present()], None), Some(Outcome::Yes));
    assert_eq!(
        outcome(vec![present(), host("b", HostState::Staging, None)], None),
        None
    );
    let failed = |seconds| host("b", HostState::Failed, Some(seconds));
    assert_eq!(
        outcome(vec![present(), failed(GIVE_UP_AFTER_SECONDS - 1)], None),
        None
    );
    assert_eq!(
        outcome(vec![present(), failed(GIVE_UP_AFTER_SECONDS)], None),
        Some(Outcome::No)
    );
    let mut busy = failed(10 * GIVE_UP_AFTER_SECONDS);
    busy.reason = Some(Reason::TartBusy.into());
    assert_eq!(outcome(vec![present(), busy], None), None);
    let only = ["a".to_owned()];
    assert_eq!(
        outcome(vec![present(), failed(0)], Some(&only)),
        Some(Outcome::Yes)
    );
    assert_eq!(outcome(vec![], None), None);
}

/// Every reason of this version, and one of a later version.
fn told() -> Vec<ToldReason> {
    let known = Reason::ALL.iter().map(|reason| (*reason).into());
    known.chain(["moon_is_full".into()]).collect()
}

/// The exit status after waiting for an image. `None` while the wait goes on.
fn status(image: &ImageView) -> Option<u8> {
    let request = StageRequest {
        reference: "r.test/image:1".into(),
        hosts: None,
        priority: None,
    };
    settled(image, &request).map(|ended| ended.outcome.status())
}

#[test]
fn waiting_for_an_image_ends_by_its_reason_only_where_it_failed_as_a_whole() {
    for reason in told() {
        for state in [ImageState::Staging, ImageState::Failed] {
            let mut image = image(vec![host("a", HostState::Staging, None)]);
            (image.state, image.reason) = (state, Some(reason.clone()));
            let hopeless = reason
                .known()
                .is_some_and(|reason| HOPELESS.contains(&reason));
            let ends = hopeless && state == ImageState::Failed;
            assert_eq!(status(&image), ends.then_some(1), "{reason} {state:?}");
        }
    }
}

#[test]
fn a_host_that_failed_for_long_is_given_up_whatever_its_reason_unless_tart_is_busy_there() {
    for reason in told() {
        for (seconds, long) in [
            (GIVE_UP_AFTER_SECONDS - 1, false),
            (GIVE_UP_AFTER_SECONDS, true),
        ] {
            let mut failed = host("a", HostState::Failed, Some(seconds));
            failed.reason = Some(reason.clone());
            let given_up = long && reason.known() != Some(Reason::TartBusy);
            let status = status(&image(vec![failed]));
            assert_eq!(status, given_up.then_some(1), "{reason} {seconds}");
        }
        // hosts that are at work or away are waited for
        for state in [
            HostState::Waiting,
            HostState::Queued,
            HostState::Staging,
            HostState::Installing,
            HostState::Gone,
        ] {
            let mut host = host("a", state, None);
            host.reason = Some(reason.clone());
            assert_eq!(status(&image(vec![host])), None, "{reason} {state:?}");
        }
        let mut present = host("a", HostState::Present, None);
        present.reason = Some(reason.clone());
        assert_eq!(status(&image(vec![present])), Some(0), "{reason}");
    }
}

#[test]
fn an_image_that_isnt_wanted_under_its_name_any_more_isnt_waited_for() {
    let present = || image(vec![host("a", HostState::Present, None)]);
    assert_eq!(status(&present()), Some(0));
    let mut cancelled = present();
    cancelled.state = ImageState::Cancelled;
    assert_eq!(status(&cancelled), Some(1));
    let mut moved = present();
    moved.references = vec!["r.test/image:2".into()];
    assert_eq!(status(&moved), Some(1));
}

#[test]
fn why_a_pod_waits_is_a_yes_only_where_nothing_keeps_it() {
    for reason in told() {
        let pod = PodView {
            namespace: "ci".into(),
            name: "p".into(),
            pool: None,
            image: String::new(),
            node: None,
            stale: true,
            in_flight: false,
            message: String::new(),
            reason: reason.clone(),
        };
        let free = reason.known().is_some_and(|reason| FREE.contains(&reason));
        assert_eq!(of_pod(&pod).status(), u8::from(!free), "{reason}");
    }
}

#[test]
fn a_host_lacks_nothing_and_a_roll_is_done_when_nothing_is_left() {
    let host = |why: &[&str]| HostView {
        why: why.iter().map(|why| (*why).to_owned()).collect(),
        ..HostView::default()
    };
    assert_eq!(of_host(&host(&[])).status(), 0);
    assert_eq!(of_host(&host(&["it is away"])).status(), 1);
    let pool = |stale| PoolView {
        namespace: "ci".into(),
        name: "runners".into(),
        mode: "own".into(),
        image: String::new(),
        digest: None,
        paused: false,
        alive: 2,
        stale,
        labelled: 0,
        in_flight: 0,
        reserved: 0,
        cap: 1,
        hosts_usable: 2,
        hosts_ready: 2,
        pods: Vec::new(),
    };
    assert_eq!(of_pools(&[]).status(), 0);
    assert_eq!(of_pools(&[pool(0), pool(0)]).status(), 0);
    assert_eq!(of_pools(&[pool(0), pool(1)]).status(), 1);
}

/// The reasons in the cells of a row of the page. The first cell says what the row is about.
fn cells(row: &str) -> Vec<BTreeSet<Reason>> {
    let lines = OPERATING.lines();
    let found = lines.filter_map(|line| line.strip_prefix(&format!("| {row} |")));
    let [row] = found.collect::<Vec<_>>()[..] else {
        panic!("{row} is in the page once");
    };
    row.split('|')
        .map(|cell| {
            cell.split('`')
                .filter_map(|text| text.parse().ok())
                .collect()
        })
        .collect()
}

#[test]
fn time_that_is_up_is_a_no_for_all_that_wait() {
    assert_eq!(TIME_IS_UP.status(), 1);
    for row in ["`stage --wait`", "`roll`", "`gate wait`"] {
        let start = format!("| {row} |");
        let mut lines = OPERATING.lines().filter(|line| line.starts_with(&start));
        let line = lines.next().expect("the page has the row");
        let no = line.split('|').nth(3).expect("the row has three cells");
        assert!(no.contains("the time is up"), "{row}: {no}");
    }
}

#[test]
fn the_operators_page_has_the_same_table_and_explains_every_reason() {
    let image = &cells("`stage --wait`, an image that failed")[1];
    assert_eq!(*image, HOPELESS.into());
    let pod = &cells("`why POD`")[0];
    assert_eq!(*pod, FREE.into());
    let explained: BTreeSet<Reason> = OPERATING
        .lines()
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| line.split('|').nth(1))
        .flat_map(|cell| cell.split('`'))
        .filter_map(|text| text.parse().ok())
        .collect();
    let missing: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| !explained.contains(reason) && **reason != Reason::Open)
        .collect();
    assert_eq!(missing, Vec::<&Reason>::new());
}

#[test]
fn waiting_at_the_gate_ends_by_what_waiting_doesnt_cure() {
    let view = |verdict, reason: ToldReason| GateView {
        host: "a".into(),
        digest: None,
        verdict,
        reason,
        message: "words".into(),
        next: "a step".into(),
        failed_seconds: None,
        image_failed: None,
        place: None,
    };
    let end = |view: &GateView| of_gate(view, "r.test/image:1");
    for reason in told() {
        let story = GateEnd::Over(format!("a: {reason}: words; next: a step\n"));
        assert_eq!(end(&view(GateVerdict::Open, reason.clone())), GateEnd::Open);
        assert_eq!(end(&view(GateVerdict::Refused, reason.clone())), story);
        // a reason of a later version ends no wait either
        let waits = view(GateVerdict::Waits, reason.clone());
        assert_eq!(end(&waits), GateEnd::Waits);
        let failed = |seconds| GateView {
            failed_seconds: Some(seconds),
            ..waits.clone()
        };
        assert_eq!(end(&failed(GIVE_UP_AFTER_SECONDS - 1)), GateEnd::Waits);
        let busy = reason.known() == Some(Reason::TartBusy);
        let over = if busy { GateEnd::Waits } else { story };
        assert_eq!(end(&failed(GIVE_UP_AFTER_SECONDS)), over);
        let whole = GateView {
            image_failed: Some(reason.clone()),
            ..view(GateVerdict::Waits, Reason::ImageMissing.into())
        };
        let hopeless = reason
            .known()
            .is_some_and(|reason| HOPELESS.contains(&reason));
        assert_eq!(
            matches!(end(&whole), GateEnd::Over(_)),
            hopeless,
            "{reason}"
        );
    }
}
