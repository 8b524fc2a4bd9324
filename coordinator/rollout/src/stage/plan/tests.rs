use std::{format, vec};

use proptest::prelude::*;

mod liars;
mod mirrors;
mod origins;

use proto::statement::Contradiction;

use super::*;
use crate::stage::{
    action::RevokeCause,
    event::{Fault, LeaseEnd},
    status::{HostReason, ImageReason},
};

fn host(at: usize) -> HostId {
    format!("host-{at}").parse().unwrap()
}

fn digest(at: usize) -> Digest {
    Digest::of(format!("content {at}").as_bytes())
}

fn image(at: usize) -> Digest {
    Digest::of(format!("image {at}").as_bytes())
}

fn at(millis: u64) -> Moment {
    Moment(millis * 1_000)
}

fn wanted(number: usize, contents: impl IntoIterator<Item = usize>, hosts: Selection) -> Event {
    Event::Wanted {
        image: image(number),
        references: vec![format!("registry.example/image:{number}")],
        contents: contents
            .into_iter()
            .map(|content| Content {
                digest: digest(content),
                chunks: 100,
                size: 100 << 20,
                origin_bytes: 1_000,
            })
            .collect(),
        hosts,
        held: Vec::new(),
        purpose: Purpose::Stage,
    }
}

/// The same, with these hosts held.
fn with_held(event: Event, hosts: &[usize]) -> Event {
    match event {
        Event::Wanted {
            image,
            references,
            contents,
            hosts: selection,
            purpose,
            ..
        } => Event::Wanted {
            image,
            references,
            contents,
            hosts: selection,
            held: hosts.iter().map(|number| host(*number)).collect(),
            purpose,
        },
        other => other,
    }
}

/// The same, of a blob that clients of these hosts' mirrors wait for.
fn asked(number: usize, content: usize, hosts: &[usize]) -> Event {
    let hosts = hosts.iter().map(|number| host(*number)).collect();
    let mut event = wanted(number, [content], Selection::Hosts(hosts));
    if let Event::Wanted { purpose, .. } = &mut event {
        *purpose = Purpose::Mirror;
    }
    event
}

/// By the plan's own clock: nothing happens in between, and nobody was held up.
fn feed(plan: &mut Plan, millis: u64, event: Event) -> Vec<Action> {
    plan.note(at(millis), event);
    core::iter::from_fn(|| plan.poll()).collect()
}

/// A plan with this many connected hosts.
fn fleet(count: usize) -> Plan {
    let mut plan = Plan::new(Config::default(), 3);
    for number in 0..count {
        feed(
            &mut plan,
            0,
            Event::HostKnown {
                host: host(number),
                zone: format!("zone-{}", number % 2),
            },
        );
        feed(&mut plan, 0, Event::HostConnected(host(number)));
    }
    feed(&mut plan, 1_000, Event::Tick);
    plan
}

/// Feeds an order; then every connected host says that it stages.
fn want(plan: &mut Plan, millis: u64, event: Event) -> Vec<Action> {
    let Event::Wanted { image, .. } = &event else {
        panic!("an order");
    };
    let image = *image;
    let mut actions = feed(plan, millis, event);
    for number in 0..10 {
        let event = Event::Reported {
            host: host(number),
            image,
            standing: Standing::Staging,
            held_bytes: 0,
        };
        actions.extend(feed(plan, millis, event));
    }
    actions
}

#[test]
fn what_a_host_stages_that_nobody_wants_is_cancelled_once_all_wants_are_known() {
    let cancels = |actions: &[Action]| -> Vec<HostId> {
        let hosts = actions.iter().filter_map(|action| match action {
            Action::Cancel { host, image: left } if *left == image(0) => Some(host.clone()),
            _ => None,
        });
        hosts.collect()
    };
    let mut plan = fleet(2);
    // it may be wanted still: this coordinator has just started
    let staging = |host| report(host, 0, Standing::Staging, 7);
    assert_eq!(cancels(&feed(&mut plan, 2_000, staging(0))), []);
    feed(&mut plan, 2_100, wanted(1, [1], Selection::All));
    feed(&mut plan, 2_200, Event::WantsKnown);
    for standing in [Standing::Queued, Standing::Staging, Standing::Failed] {
        let left = feed(&mut plan, 3_000, report(0, 0, standing, 7));
        assert_eq!(cancels(&left), [host(0)], "{standing:?}");
    }
    for standing in [Standing::Installing, Standing::Present, Standing::Gone] {
        assert_eq!(
            cancels(&feed(&mut plan, 3_000, report(0, 0, standing, 7))),
            [],
            "{standing:?}"
        );
    }
    // cancelled on one host while that was away, and staged on by it when it is back
    feed(&mut plan, 4_000, wanted(0, [0], Selection::All));
    assert_eq!(cancels(&feed(&mut plan, 4_100, staging(0))), []);
    feed(&mut plan, 4_200, Event::HostDisconnected(host(0)));
    let only = Selection::Hosts(vec![host(1)]);
    feed(&mut plan, 4_300, wanted(0, [0], only));
    feed(&mut plan, 4_400, Event::HostConnected(host(0)));
    assert_eq!(cancels(&feed(&mut plan, 4_500, staging(0))), [host(0)]);
    assert_eq!(cancels(&feed(&mut plan, 4_500, staging(1))), []);
    // and everywhere
    feed(&mut plan, 5_000, Event::HostDisconnected(host(1)));
    feed(&mut plan, 5_100, Event::Cancelled(image(0)));
    feed(&mut plan, 5_200, Event::HostConnected(host(1)));
    assert_eq!(cancels(&feed(&mut plan, 5_300, staging(1))), [host(1)]);
}

#[test]
fn hosts_that_stage_are_leased_to_before_others() {
    let mut plan = fleet(2);
    assert_eq!(
        grants(&feed(&mut plan, 2_000, wanted(0, [0, 1], Selection::All))),
        []
    );
    let first = grants(&feed(&mut plan, 2_100, report(1, 0, Standing::Staging, 0)));
    assert_eq!(
        first,
        [(host(1), digest(0))],
        "the second waits for another host"
    );
    let second = grants(&feed(&mut plan, 2_200, report(0, 0, Standing::Staging, 0)));
    assert_eq!(second, [(host(0), digest(1))]);
    // nobody says anything for long: anybody
    let mut plan = fleet(3);
    feed(&mut plan, 2_000, wanted(0, [0, 1], Selection::All));
    assert_eq!(grants(&feed(&mut plan, 6_900, Event::Tick)), []);
    assert_eq!(grants(&feed(&mut plan, 7_500, Event::Tick)).len(), 2);
}

fn grants(actions: &[Action]) -> Vec<(HostId, Digest)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Grant { host, content, .. } => Some((host.clone(), *content)),
            _ => None,
        })
        .collect()
}

fn ended(host: &HostId, content: Digest, end: LeaseEnd) -> Event {
    Event::LeaseEnded {
        host: host.clone(),
        content,
        end,
    }
}

fn report(number: usize, of: usize, standing: Standing, held_bytes: u64) -> Event {
    Event::Reported {
        host: host(number),
        image: image(of),
        standing,
        held_bytes,
    }
}

#[test]
fn so_many_contents_are_leased_in_order_to_different_hosts() {
    let mut plan = fleet(10);
    let first = grants(&want(&mut plan, 2_000, wanted(0, 0..8, Selection::All)));
    assert_eq!(
        first
            .iter()
            .map(|(_, content)| *content)
            .collect::<Vec<_>>(),
        (0..4).map(digest).collect::<Vec<_>>()
    );
    let holders: BTreeSet<&HostId> = first.iter().map(|(host, _)| host).collect();
    assert_eq!(holders.len(), 4);
    let (holder, content) = first[1].clone();
    let next = grants(&feed(
        &mut plan,
        3_000,
        ended(&holder, content, LeaseEnd::Done),
    ));
    assert_eq!(next.len(), 1);
    assert_eq!(next[0].1, digest(4));
}

#[test]
fn a_content_of_two_images_is_leased_once() {
    let mut plan = fleet(4);
    let mut all = grants(&want(&mut plan, 2_000, wanted(0, [0, 1], Selection::All)));
    all.extend(grants(&want(
        &mut plan,
        2_000,
        wanted(1, [1, 2], Selection::All),
    )));
    let contents: Vec<Digest> = all.iter().map(|(_, content)| *content).collect();
    assert_eq!(contents, [digest(0), digest(1), digest(2)]);
}

#[test]
fn a_lease_without_progress_passes_to_another_host() {
    let mut plan = fleet(5);
    let first = grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)));
    let (holder, content) = first[0].clone();
    let progress = |chunks, paced| Event::LeaseProgress {
        host: holder.clone(),
        content,
        chunks,
        bytes: 0,
        paced,
        trouble: None,
    };
    feed(&mut plan, 8_000, progress(5, false));
    assert_eq!(feed(&mut plan, 17_900, Event::Tick), []);
    let actions = feed(&mut plan, 18_500, Event::Tick);
    // nobody said that the registry is to blame
    assert!(actions.contains(&Action::Revoke {
        host: holder.clone(),
        content,
        cause: RevokeCause::Ended,
    }));
    let next = grants(&actions);
    assert_eq!(next.len(), 1);
    assert_ne!(next[0].0, holder);
}

#[test]
fn a_plan_that_was_held_up_takes_no_lease_back_for_that() {
    let mut plan = fleet(5);
    let first = grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)));
    let (holder, content) = first[0].clone();
    let told = |plan: &mut Plan, millis: u64, event: Event| {
        plan.handle(at(millis), event);
        core::iter::from_fn(|| plan.poll()).collect::<Vec<_>>()
    };
    told(&mut plan, 2_500, Event::Tick);
    told(&mut plan, 2_900, progress(&holder, content, 3));
    // the coordinator stands still for half a minute: what its holder said meanwhile comes after the first look at the clock
    assert_eq!(told(&mut plan, 33_000, Event::Tick), []);
    assert_eq!(told(&mut plan, 33_010, progress(&holder, content, 90)), []);
    // from then on silence counts as ever
    let mut revoked_at = None;
    while revoked_at.is_none() {
        let due = plan.next_timeout().unwrap();
        plan.handle(due, Event::Tick);
        let actions: Vec<Action> = core::iter::from_fn(|| plan.poll()).collect();
        let revoked = |action: &Action| matches!(action, Action::Revoke { .. });
        revoked_at = actions.iter().any(revoked).then_some(due);
    }
    let silent = revoked_at.unwrap().since(at(33_010));
    assert!((10_000..10_600).contains(&silent.as_millis()), "{silent:?}");
}

#[test]
fn who_has_just_come_back_is_leased_to_after_the_others() {
    let mut plan = fleet(4);
    let order = wanted(0, 0..4, Selection::All);
    let first = grants(&want(&mut plan, 2_000, order));
    let (holder, content) = first[0].clone();
    let (newcomer, _) = first[1].clone();
    let back = |plan: &mut Plan, millis: u64, host: &HostId| {
        let mut actions = feed(plan, millis, Event::HostDisconnected(host.clone()));
        actions.extend(feed(plan, millis, Event::HostConnected(host.clone())));
        let (host, contents) = (host.clone(), Vec::new());
        actions.extend(feed(plan, millis, Event::LeasesHeld { host, contents }));
        grants(&actions)
    };
    // it has no lease, and the others have one each; all the same one of them gets what it had
    let passed = back(&mut plan, 5_000, &newcomer);
    assert!(
        passed.iter().all(|(host, _)| *host != newcomer),
        "{passed:?}"
    );
    assert_eq!(passed.len(), 1);
    // and again when another one comes back, as long as it was here for less than 2 s
    let passed = back(&mut plan, 6_900, &holder);
    assert_eq!(passed.len(), 1);
    assert_eq!(passed[0].1, content);
    assert!(
        passed[0].0 != newcomer && passed[0].0 != holder,
        "{passed:?}"
    );
    let idle = back(&mut plan, 9_000, &passed[0].0);
    assert!(
        idle.iter()
            .any(|(host, _)| *host == newcomer || *host == holder),
        "{idle:?}"
    );
}

#[test]
fn a_content_that_is_fetched_twice_keeps_its_lease_and_no_more() {
    let mut plan = fleet(3);
    let actions = want(&mut plan, 2_000, wanted(0, [1], Selection::All));
    let (holder, content) = grants(&actions)[0].clone();
    let mut revoked = None;
    for step in 1..=300u32 {
        let progress = Event::LeaseProgress {
            host: holder.clone(),
            content,
            chunks: step,
            bytes: 0,
            paced: false,
            trouble: None,
        };
        let now = 2_000 + u64::from(step) * 1_000;
        for event in [progress, Event::Tick] {
            let taken = feed(&mut plan, now, event);
            let taken = taken
                .iter()
                .any(|action| matches!(action, Action::Revoke { .. }));
            if taken && revoked.is_none() {
                revoked = Some(step);
            }
        }
    }
    // a hundred chunks, twice, and the time that a lease without progress has
    assert_eq!(revoked, Some(210));
}

#[test]
fn pacing_keeps_a_lease_but_not_for_ever() {
    let mut plan = fleet(5);
    let (holder, content) =
        grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)))[0].clone();
    let mut lost_at = None;
    for second in 3..120 {
        let paced = Event::LeaseProgress {
            host: holder.clone(),
            content,
            chunks: 0,
            bytes: 0,
            paced: true,
            trouble: None,
        };
        if !grants(&feed(&mut plan, second * 1_000, paced)).is_empty() {
            lost_at = Some(second);
            break;
        }
    }
    let lost_at = lost_at.unwrap();
    assert!((60..=75).contains(&lost_at), "{lost_at}");
}

#[test]
fn a_registry_that_fails_several_hosts_is_left_alone_for_longer_and_longer() {
    let mut plan = fleet(6);
    let mut open = grants(&want(&mut plan, 2_000, wanted(0, 0..6, Selection::All)));
    assert_eq!(open.len(), 4);
    let mut now = 2_000;
    let mut gaps = Vec::new();
    for _ in 0..6 {
        let failed_at = now;
        for (holder, content) in core::mem::take(&mut open) {
            open.extend(grants(&feed(
                &mut plan,
                now,
                ended(&holder, content, LeaseEnd::OriginFailed),
            )));
        }
        while open.is_empty() {
            now += 100;
            assert!(now < failed_at + 120_000);
            open.extend(grants(&feed(&mut plan, now, Event::Tick)));
        }
        gaps.push(now - failed_at);
    }
    assert!(gaps.last() > Some(&8_000), "{gaps:?}");
    assert_eq!(open.len(), 1, "one tries first");
    let (holder, content) = open[0].clone();
    let progress = Event::LeaseProgress {
        host: holder,
        content,
        chunks: 3,
        bytes: 0,
        paced: false,
        trouble: None,
    };
    assert_eq!(
        grants(&feed(&mut plan, now + 10, progress)).len(),
        3,
        "it is back: all streams again"
    );
}

fn running(host: &HostId, content: Digest, chunks: u32, trouble: Option<Trouble>) -> Event {
    Event::LeaseProgress {
        host: host.clone(),
        content,
        chunks,
        bytes: 0,
        paced: false,
        trouble,
    }
}

/// Leases that are taken back because the registry fails them. Here none is taken back for another reason.
fn revokes(actions: &[Action]) -> usize {
    let revoked = actions.iter().filter_map(|action| match action {
        Action::Revoke { cause, .. } => Some(*cause),
        _ => None,
    });
    let revoked: Vec<RevokeCause> = revoked.collect();
    let failed = |cause: &RevokeCause| *cause == RevokeCause::OriginFailed;
    assert!(revoked.iter().all(failed), "{actions:?}");
    revoked.len()
}

#[test]
fn what_a_registry_asks_of_all_streams_is_kept_by_everybody() {
    let mut plan = fleet(6);
    let open = grants(&want(&mut plan, 2_000, wanted(0, 0..6, Selection::All)));
    let wish = Some(Trouble::Throttled(Duration::from_secs(60)));
    for (host, content) in &open {
        let actions = feed(&mut plan, 3_000, running(host, *content, 0, wish));
        assert_eq!(revokes(&actions), 1, "its holder stops asking: {actions:?}");
    }
    for millis in (3_500..63_000).step_by(500) {
        assert_eq!(feed(&mut plan, millis, Event::Tick), []);
    }
    let status = &plan.status(at(62_900)).images[0];
    assert_eq!(status.reason, Some(ImageReason::OriginThrottled));
    assert_eq!(status.origin_retry_in, Some(Duration::from_millis(100)));
    let first = grants(&feed(&mut plan, 63_500, Event::Tick));
    assert_eq!(first.len(), 1, "one tries first");
    let going = feed(&mut plan, 64_000, running(&first[0].0, first[0].1, 7, None));
    assert_eq!(grants(&going).len(), 3, "all streams again");
}

#[test]
fn one_hosts_word_that_a_registry_asks_to_be_left_alone_holds_up_others_for_seconds() {
    let mut plan = fleet(6);
    let open = grants(&want(&mut plan, 2_000, wanted(0, 0..5, Selection::All)));
    let wish = Some(Trouble::Throttled(Duration::from_secs(3_600)));
    let (liar, content) = open[0].clone();
    let actions = feed(&mut plan, 3_000, running(&liar, content, 0, wish));
    assert_eq!(revokes(&actions), 1);
    let mut next = Vec::new();
    for second in 4..9 {
        // streams that are open already go on, and prove nothing about new ones
        for (host, content) in &open[1..] {
            let going = running(host, *content, second, None);
            let actions = feed(&mut plan, u64::from(second) * 1_000, going);
            next.extend(grants(&actions).into_iter().map(|grant| (second, grant)));
        }
    }
    // had the registry asked all streams, they would have been told within two seconds
    let [(5, (_, fifth))] = &next[..] else {
        panic!("{next:?}");
    };
    assert_eq!(*fifth, digest(4));
    let (holder, done) = &open[1];
    let again = grants(&feed(
        &mut plan,
        8_100,
        ended(holder, *done, LeaseEnd::Done),
    ));
    let [(other, again)] = &again[..] else {
        panic!("{again:?}");
    };
    assert_eq!(*again, content);
    assert_ne!(*other, liar, "another tries first");
    // that one gets something: the word wasn't true, and the next one of the same host holds up nobody
    for (host, content) in &open[2..] {
        feed(&mut plan, 8_500, ended(host, *content, LeaseEnd::Done));
    }
    let holds = |number: usize, chunks: u32| Event::Holds {
        host: host(number),
        contents: vec![(content, chunks)],
    };
    for chunks in [0, 5] {
        for number in 0..6 {
            feed(&mut plan, 8_600, holds(number, chunks));
        }
        feed(&mut plan, 9_200, Event::Tick);
    }
    feed(&mut plan, 10_000, Event::Tick);
    assert!(plan.hosts[&liar].cried_until.is_some());
    assert_eq!(plan.status(at(10_000)).images[0].origin_retry_in, None);
}

#[test]
fn after_its_wish_one_lease_asks_first() {
    let mut plan = fleet(6);
    let open = grants(&want(&mut plan, 2_000, wanted(0, 0..6, Selection::All)));
    let wish = |seconds| Some(Trouble::Throttled(Duration::from_secs(seconds)));
    for (host, content) in &open {
        feed(&mut plan, 3_000, running(host, *content, 0, wish(60)));
    }
    let mut asked = Vec::new();
    for millis in (3_000..200_000).step_by(500) {
        for (host, content) in grants(&feed(&mut plan, millis, Event::Tick)) {
            asked.push(millis);
            let report = running(&host, content, 0, wish(30));
            assert_eq!(revokes(&feed(&mut plan, millis + 100, report)), 1);
            // a report that crossed the revocation doesn't bring the lease back
            let late = running(&host, content, 0, wish(30));
            let again = Action::Revoke {
                host,
                content,
                cause: RevokeCause::NotHeld,
            };
            assert_eq!(feed(&mut plan, millis + 200, late), [again]);
        }
    }
    assert!(asked[0] >= 63_000, "{asked:?}");
    assert!(
        asked.windows(2).all(|pair| pair[1] - pair[0] >= 30_000),
        "{asked:?}"
    );
    assert!((4..=5).contains(&asked.len()), "{asked:?}");
    // no wish holds it for ever, whoever says so
    let (host, content) = (0..)
        .find_map(|step| grants(&feed(&mut plan, 200_000 + step * 500, Event::Tick)).pop())
        .unwrap();
    let endless = Some(Trouble::Throttled(Duration::MAX));
    let now = plan.now;
    feed(
        &mut plan,
        now.0 / 1_000,
        running(&host, content, 0, endless),
    );
    assert_eq!(
        plan.status(now).images[0].origin_retry_in,
        Some(Config::default().origin_wish_most)
    );
}

#[test]
fn a_registry_that_goes_on_failing_two_hosts_is_left_alone() {
    let mut plan = fleet(6);
    let open = grants(&want(&mut plan, 2_000, wanted(0, 0..6, Selection::All)));
    let failing = Some(Trouble::Failing);
    let fail = |plan: &mut Plan, millis, which: &[(HostId, Digest)]| {
        let mut actions = Vec::new();
        for (host, content) in which {
            actions.extend(feed(plan, millis, running(host, *content, 0, failing)));
        }
        actions
    };
    assert_eq!(revokes(&fail(&mut plan, 3_000, &open)), 0);
    assert_eq!(
        revokes(&fail(&mut plan, 5_900, &open)),
        0,
        "connections break and are made again"
    );
    assert_eq!(revokes(&fail(&mut plan, 6_100, &open[..1])), 4);
    let status = &plan.status(at(6_200)).images[0];
    assert_eq!(status.reason, Some(ImageReason::OriginDown));
    assert!(status.origin_retry_in > Some(Duration::from_millis(800)));
    // each try fails, for ten minutes
    let mut tries = 0;
    for millis in (6_500..606_000).step_by(500) {
        for (host, content) in grants(&feed(&mut plan, millis, Event::Tick)) {
            tries += 1;
            let report = running(&host, content, 0, failing);
            assert_eq!(revokes(&feed(&mut plan, millis + 100, report)), 1);
            assert_eq!(
                plan.status(at(millis + 200)).images[0].reason,
                Some(ImageReason::OriginDown)
            );
        }
    }
    assert!((10..=16).contains(&tries), "{tries}");
    // it is back: full streams with the first chunk
    let (now, (host, content)) = (0..)
        .find_map(|step| {
            let now = 606_000 + step * 500;
            Some((now, grants(&feed(&mut plan, now, Event::Tick)).pop()?))
        })
        .unwrap();
    let back = feed(&mut plan, now + 100, running(&host, content, 1, None));
    assert_eq!(grants(&back).len(), 3);
}

#[test]
fn one_hosts_trouble_passes_its_lease_on_and_holds_up_nobody() {
    // a host that is answered with errors knows sooner than one that only waits
    for (trouble, passes) in [(Trouble::Failing, 6..=7), (Trouble::Silent, 12..=13)] {
        let mut plan = fleet(6);
        let open = grants(&want(&mut plan, 2_000, wanted(0, 0..6, Selection::All)));
        let mut passed = Vec::new();
        for second in 3..14 {
            for (at, (host, content)) in (0..).zip(&open) {
                let report = match at {
                    0 => running(host, *content, 0, Some(trouble)),
                    _ => running(host, *content, second, None),
                };
                let actions = feed(&mut plan, u64::from(second) * 1_000, report);
                passed.extend(grants(&actions).into_iter().map(|to| (second, to)));
            }
        }
        let [(second, (to, content))] = &passed[..] else {
            panic!("{passed:?}");
        };
        assert!(passes.contains(second), "{trouble:?}: {second}");
        assert_eq!(*content, open[0].1);
        assert_ne!(*to, open[0].0);
    }
}

#[test]
fn a_registry_that_is_silent_to_one_host_after_another_is_left_alone() {
    let mut plan = fleet(4);
    let mut held = grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)));
    let mut granted = Vec::new();
    for millis in (2_500..120_000).step_by(500) {
        let (host, content) = held[0].clone();
        let silent = running(&host, content, 0, Some(Trouble::Silent));
        if let Some(next) = grants(&feed(&mut plan, millis, silent)).pop() {
            granted.push(millis);
            held = vec![next];
        }
    }
    assert!(granted.len() <= 8, "{granted:?}");
}

#[test]
fn one_registrys_trouble_doesnt_hold_up_another() {
    let mut plan = fleet(6);
    let (host, content) =
        grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)))[0].clone();
    let wish = Some(Trouble::Throttled(Duration::from_secs(600)));
    feed(&mut plan, 3_000, running(&host, content, 0, wish));
    let Event::Wanted {
        image,
        contents,
        hosts,
        ..
    } = wanted(1, [1, 2], Selection::All)
    else {
        panic!("an order");
    };
    let other = Event::Wanted {
        image,
        references: vec!["other.example/image:1".into()],
        contents,
        hosts,
        held: Vec::new(),
        purpose: Purpose::Stage,
    };
    let open = grants(&want(&mut plan, 4_000, other));
    let contents: Vec<Digest> = open.iter().map(|(_, content)| *content).collect();
    assert_eq!(contents, [digest(1), digest(2)]);
    // and it is remembered while nothing is wanted from there
    feed(&mut plan, 5_000, Event::Cancelled(self::image(0)));
    assert_eq!(
        grants(&want(&mut plan, 6_000, wanted(0, [0], Selection::All))),
        []
    );
}

#[test]
fn a_held_host_is_told_to_keep_what_it_has_and_gets_nothing_until_it_is_selected_again() {
    let some = |hosts: &[usize]| Selection::Hosts(hosts.iter().map(|n| host(*n)).collect());
    let stops = |actions: &[Action]| -> Vec<(usize, bool)> {
        let number = |id: &HostId| (0..9).find(|number| host(*number) == *id).unwrap();
        let stop = |action: &Action| match action {
            Action::Hold { host, .. } => Some((number(host), true)),
            Action::Cancel { host, .. } => Some((number(host), false)),
            _ => None,
        };
        actions.iter().filter_map(stop).collect()
    };
    let mut plan = fleet(3);
    let leased = grants(&want(&mut plan, 2_000, wanted(0, [0, 1], some(&[0, 1, 2]))));
    assert_eq!(leased.len(), 2);

    // all are held: leases end at once, and nobody gets one
    let held = with_held(wanted(0, [0, 1], some(&[])), &[0, 1, 2]);
    let actions = feed(&mut plan, 3_000, held.clone());
    assert_eq!(stops(&actions), [(0, true), (1, true), (2, true)]);
    let revoked = actions
        .iter()
        .filter(|action| matches!(action, Action::Revoke { .. }));
    assert_eq!(revoked.count(), 2);
    assert_eq!(stops(&feed(&mut plan, 3_100, held.clone())), []);
    for millis in (4_000..60_000).step_by(500) {
        assert_eq!(feed(&mut plan, millis, Event::Tick), []);
    }
    let reason = plan.status(at(60_000)).images[0].reason;
    assert_eq!(reason, Some(ImageReason::Held));
    // an order that was lost is repeated
    feed(&mut plan, 60_000, Event::WantsKnown);
    let says = feed(&mut plan, 60_000, report(2, 0, Standing::Staging, 7));
    assert_eq!(stops(&says), [(2, true)]);
    // one that was away may go on by itself with what it finds
    feed(&mut plan, 60_000, Event::HostDisconnected(host(1)));
    let back = feed(&mut plan, 61_000, Event::HostConnected(host(1)));
    assert_eq!(stops(&back), [(1, true)]);

    // one is selected again, one stays held, one has to drop what it has
    let actions = feed(
        &mut plan,
        62_000,
        with_held(wanted(0, [0, 1], some(&[0])), &[0, 1]),
    );
    assert_eq!(stops(&actions), [(2, false)]);
    assert!(actions.contains(&Action::Stage {
        host: host(0),
        image: image(0)
    }));
    // nobody wants it any more
    let over = feed(&mut plan, 63_000, Event::Cancelled(image(0)));
    assert_eq!(stops(&over), [(0, false), (1, false)]);
}

#[test]
fn two_witnesses_of_bad_content_fail_the_image_of_a_small_fleet_by_name() {
    let mut plan = fleet(5);
    let (holder, content) =
        grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)))[0].clone();
    let next = grants(&feed(
        &mut plan,
        3_000,
        ended(&holder, content, LeaseEnd::Faulty(Fault::Bad)),
    ));
    assert_eq!(next.len(), 1);
    assert_eq!(
        plan.status(at(3_000)).images[0].reason,
        Some(ImageReason::Moving)
    );
    let actions = feed(
        &mut plan,
        4_000,
        ended(&next[0].0, content, LeaseEnd::Faulty(Fault::Bad)),
    );
    assert_eq!(grants(&actions), []);
    let status = plan.status(at(4_000));
    assert_eq!(
        status.images[0].reason,
        Some(ImageReason::ContentFaulty(content, Fault::Bad))
    );
    assert_eq!(
        status.images[0].hosts[0].reason,
        Some(HostReason::ImageFailed)
    );
    // that other hosts are to hold it says nothing new; whoever asks for it anew is heard
    assert_eq!(
        grants(&want(&mut plan, 5_000, wanted(0, [0], Selection::All))).len(),
        0
    );
    assert_eq!(
        grants(&feed(&mut plan, 6_000, Event::Urged(image(0)))).len(),
        1
    );
}

#[test]
fn what_one_host_took_with_it_is_leased_again() {
    let mut plan = fleet(3);
    let (holder, content) =
        grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)))[0].clone();
    assert_eq!(
        grants(&feed(
            &mut plan,
            3_000,
            ended(&holder, content, LeaseEnd::Done)
        )),
        []
    );
    assert_eq!(
        grants(&feed(&mut plan, 5_000, Event::Tick)),
        [],
        "it is complete somewhere"
    );
    let again = grants(&feed(
        &mut plan,
        6_000,
        Event::HostForgotten(holder.clone()),
    ));
    assert_eq!(again.len(), 1);
    assert_ne!(again[0].0, holder);
}

#[test]
fn what_a_killed_holder_had_not_journaled_is_leased_again_at_once() {
    let mut plan = fleet(1);
    let open = grants(&want(&mut plan, 2_000, wanted(0, [0, 1], Selection::All)));
    let ((holder, early), (_, late)) = (open[0].clone(), open[1].clone());
    feed(&mut plan, 3_000, ended(&holder, early, LeaseEnd::Done));
    feed(&mut plan, 3_000, report(0, 0, Standing::Staging, 100));
    feed(&mut plan, 9_500, ended(&holder, late, LeaseEnd::Done));
    feed(&mut plan, 9_500, report(0, 0, Standing::Staging, 200));
    // killed before its next flush
    feed(&mut plan, 10_000, Event::HostDisconnected(holder.clone()));
    feed(&mut plan, 10_500, Event::HostConnected(holder.clone()));
    assert_eq!(
        grants(&feed(&mut plan, 10_500, report(0, 0, Standing::Queued, 0))),
        [],
        "it hasn't read its journal yet"
    );
    let actions = feed(&mut plan, 11_000, report(0, 0, Standing::Staging, 150));
    let again: Vec<Digest> = grants(&actions).into_iter().map(|(_, what)| what).collect();
    assert_eq!(again, [late], "what it flushed long ago isn't doubted");
}

#[test]
fn hosts_that_are_away_are_told_from_a_fleet_without_sessions() {
    let mut plan = fleet(3);
    want(&mut plan, 2_000, wanted(0, [0], Selection::All));
    feed(&mut plan, 3_000, report(0, 0, Standing::Present, 100));
    feed(&mut plan, 3_000, report(1, 0, Standing::Present, 100));
    feed(&mut plan, 4_000, Event::HostDisconnected(host(2)));
    let reason = |plan: &Plan| plan.status(at(5_000)).images[0].reason;
    assert_eq!(reason(&plan), Some(ImageReason::HostsAway));
    feed(&mut plan, 5_000, Event::HostDisconnected(host(0)));
    assert_eq!(reason(&plan), Some(ImageReason::HostsAway));
    feed(&mut plan, 5_000, Event::HostDisconnected(host(1)));
    assert_eq!(reason(&plan), Some(ImageReason::NoHostConnected));
}

#[test]
fn what_rotted_on_the_only_host_that_held_it_is_leased_again_at_once() {
    let mut plan = fleet(1);
    let actions = want(&mut plan, 2_000, wanted(0, [0, 1], Selection::All));
    for (host, content) in grants(&actions) {
        feed(&mut plan, 3_000, ended(&host, content, LeaseEnd::Done));
    }
    for standing in [Standing::Installing, Standing::Present] {
        let actions = feed(&mut plan, 4_000, report(0, 0, standing, 200));
        assert_eq!(grants(&actions), []);
    }
    // an hour later it says that it lacks a chunk of it; which one is its own to say
    let later = 3_600_000;
    let actions = feed(&mut plan, later, report(0, 0, Standing::Staging, 199));
    assert_eq!(grants(&actions).len(), 2);
    for (host, content) in grants(&actions) {
        feed(&mut plan, later, ended(&host, content, LeaseEnd::Done));
    }
    let actions = feed(&mut plan, later + 500, report(0, 0, Standing::Staging, 199));
    assert_eq!(grants(&actions), []);
    // its files were removed, and it begins anew
    feed(&mut plan, later + 1_000, report(0, 0, Standing::Queued, 0));
    let actions = feed(&mut plan, later + 2_000, report(0, 0, Standing::Staging, 0));
    assert_eq!(grants(&actions).len(), 2);
}

#[test]
fn a_host_that_is_away_is_waited_for() {
    let mut plan = fleet(3);
    let (holder, content) =
        grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)))[0].clone();
    feed(&mut plan, 3_000, ended(&holder, content, LeaseEnd::Done));
    feed(&mut plan, 4_000, Event::HostDisconnected(holder));
    assert_eq!(grants(&feed(&mut plan, 18_900, Event::Tick)), []);
    assert_eq!(grants(&feed(&mut plan, 19_500, Event::Tick)).len(), 1);
}

#[test]
fn hosts_that_join_or_are_selected_later_are_told_to_stage() {
    let mut plan = fleet(2);
    want(&mut plan, 2_000, wanted(0, [0], Selection::All));
    feed(
        &mut plan,
        2_500,
        Event::HostKnown {
            host: host(7),
            zone: String::new(),
        },
    );
    let actions = feed(&mut plan, 3_000, Event::HostConnected(host(7)));
    assert!(
        matches!(actions[0], Action::Neighbours { .. }),
        "whom it follows comes first"
    );
    assert!(actions.contains(&Action::Stage {
        host: host(7),
        image: image(0)
    }));
    let actions = want(
        &mut plan,
        4_000,
        wanted(0, [0], Selection::Hosts(vec![host(1)])),
    );
    assert!(actions.contains(&Action::Cancel {
        host: host(7),
        image: image(0)
    }));
    let actions = want(
        &mut plan,
        5_000,
        wanted(0, [0], Selection::Hosts(vec![host(1), host(0)])),
    );
    assert!(actions.contains(&Action::Stage {
        host: host(0),
        image: image(0)
    }));
    assert!(!actions.contains(&Action::Stage {
        host: host(1),
        image: image(0)
    }));
}

#[test]
fn two_accusers_are_needed_to_shun_a_host() {
    let mut plan = fleet(5);
    assert_eq!(feed(&mut plan, 2_000, accused(0, 4)), []);
    assert_eq!(
        feed(&mut plan, 2_100, accused(0, 4)),
        [],
        "the same accuser counts once"
    );
    let actions = feed(&mut plan, 2_200, accused(1, 4));
    assert!(actions.contains(&Action::Quarantine(host(4))));
    feed(&mut plan, 3_000, Event::Tick);
    assert_eq!(plan.status(at(3_000)).quarantined, [host(4)]);
}

/// Bytes that didn't fit their link.
fn accused(by: usize, sender: usize) -> Event {
    Event::Blamed {
        by: host(by),
        host: host(sender),
    }
}

/// A signed link that a verified copy shows to be false.
fn found_false(by: usize, maker: usize, content: usize, vouched: bool) -> Event {
    Event::FalseLink {
        by: host(by),
        maker: host(maker),
        content: digest(content),
        vouched,
    }
}

#[test]
fn a_third_of_the_fleet_cannot_shun_an_honest_host() {
    let mut plan = fleet(20);
    for liar in 0..6 {
        feed(&mut plan, 2_000, accused(liar, 19));
    }
    assert_eq!(plan.status(at(2_000)).quarantined, []);
    feed(&mut plan, 2_100, accused(6, 19));
    assert_eq!(plan.status(at(2_100)).quarantined, [host(19)]);
}

#[test]
fn shunned_hosts_have_no_word() {
    let mut plan = fleet(5);
    feed(&mut plan, 1_900, accused(0, 4));
    for by in [2, 3] {
        feed(&mut plan, 2_000, accused(by, 0));
    }
    assert_eq!(plan.status(at(2_000)).quarantined, [host(0)]);
    feed(&mut plan, 2_100, accused(1, 4));
    assert_eq!(plan.status(at(2_100)).quarantined, [host(0)]);
    feed(&mut plan, 2_200, accused(2, 4));
    assert_eq!(plan.status(at(2_200)).quarantined, [host(0), host(4)]);
}

#[test]
fn accusations_grow_old() {
    let mut plan = fleet(5);
    feed(&mut plan, 2_000, accused(0, 4));
    let hour = 3_600_000;
    feed(&mut plan, 2_000 + hour, accused(1, 4));
    assert_eq!(plan.status(at(2_000 + hour)).quarantined, []);
    feed(&mut plan, 1_999 + 2 * hour, accused(2, 4));
    assert_eq!(plan.status(at(1_999 + 2 * hour)).quarantined, [host(4)]);
}

/// An image of one content is wanted; whom that is leased to.
fn leased(plan: &mut Plan, millis: u64, number: usize) -> HostId {
    let actions = want(plan, millis, wanted(number, [number], Selection::All));
    grants(&actions)[0].0.clone()
}

#[test]
fn whose_links_were_false_is_leased_to_last_and_is_not_shunned() {
    let mut plan = fleet(6);
    let first = leased(&mut plan, 2_000, 0);
    let number = (0..6).find(|at| host(*at) == first).unwrap();
    let others: Vec<usize> = (0..6).filter(|at| *at != number).collect();
    // one host's word does nothing, however often
    for _ in 0..3 {
        feed(&mut plan, 12_000, found_false(others[0], number, 0, false));
        assert!(!plan.hosts[&first].charges.is_last_for_leases(plan.now));
    }
    // nor two of many that can know
    for by in &others {
        feed(&mut plan, 12_000, report(*by, 0, Standing::Present, 8));
    }
    for (count, by) in others.iter().enumerate().take(2) {
        feed(&mut plan, 12_100, found_false(*by, number, 0, false));
        let last = plan.hosts[&first].charges.is_last_for_leases(plan.now);
        assert_eq!(last, count > 0, "a third of five is two");
    }
    assert_eq!(plan.status(at(12_100)).quarantined, []);
    // for an hour others come first, and where there are none it is leased to all the same
    for content in 1..4 {
        let millis = 20_000 + 20_000 * content as u64;
        assert_ne!(leased(&mut plan, millis, content), first);
    }
    for by in others {
        feed(&mut plan, 110_000, Event::HostDisconnected(host(by)));
    }
    assert_eq!(leased(&mut plan, 120_000, 9), first);
    let later = at(12_100) + plan.config.quarantine;
    assert!(!plan.hosts[&first].charges.is_last_for_leases(later));
}

#[test]
fn what_a_host_vouched_for_is_its_own_lie() {
    let mut plan = fleet(6);
    want(&mut plan, 1_500, wanted(0, [0], Selection::All));
    feed(&mut plan, 2_000, found_false(0, 4, 0, true));
    assert_eq!(plan.status(at(2_000)).quarantined, []);
    // with bytes of its that didn't fit
    feed(&mut plan, 2_000, accused(1, 4));
    feed(&mut plan, 2_100, accused(2, 4));
    assert_eq!(plan.status(at(2_100)).quarantined, [host(4)]);
}

#[test]
fn contradictions_need_no_witness() {
    let mut plan = fleet(20);
    let contradicted = |says| Event::Contradicted {
        maker: host(4),
        says,
    };
    // the registry may have given other bytes the second time
    feed(&mut plan, 2_000, contradicted(Contradiction::False));
    assert_eq!(plan.status(at(2_000)).quarantined, []);
    assert!(plan.hosts[&host(4)].charges.is_last_for_leases(plan.now));
    let actions = feed(&mut plan, 2_100, contradicted(Contradiction::Lie));
    assert!(actions.contains(&Action::Quarantine(host(4))));
}

#[test]
fn a_coordinator_that_was_restarted_takes_running_leases_over() {
    let mut plan = fleet(5);
    feed(&mut plan, 2_000, report(2, 0, Standing::Staging, 500));
    let mut seen = grants(&want(&mut plan, 2_000, wanted(0, 0..3, Selection::All)));
    seen.extend(grants(&feed(
        &mut plan,
        2_100,
        report(2, 0, Standing::Staging, 500),
    )));
    let mut plan = Plan::new(Config::default(), 3);
    for number in 0..5 {
        feed(
            &mut plan,
            0,
            Event::HostKnown {
                host: host(number),
                zone: String::new(),
            },
        );
    }
    want(&mut plan, 0, wanted(0, 0..3, Selection::All));
    let first = feed(&mut plan, 0, Event::HostConnected(host(2)));
    let open = grants(&first).len();
    feed(&mut plan, 10, report(2, 0, Standing::Staging, 500));
    feed(
        &mut plan,
        20,
        Event::LeaseProgress {
            host: host(2),
            content: digest(2),
            chunks: 40,
            bytes: 0,
            paced: false,
            trouble: None,
        },
    );
    let leases = plan.status(at(20)).leases;
    assert!(
        leases
            .iter()
            .any(|lease| lease.content == digest(2) && lease.host == host(2)),
        "{open} {leases:?}"
    );
}

#[test]
fn neighbours_are_mutual_bounded_and_stable() {
    let mut plan = Plan::new(Config::default(), 3);
    for number in 0..300 {
        feed(
            &mut plan,
            0,
            Event::HostKnown {
                host: host(number),
                zone: format!("zone-{}", number % 3),
            },
        );
    }
    let graph = |plan: &Plan| -> BTreeMap<HostId, BTreeSet<HostId>> {
        plan.hosts
            .keys()
            .map(|id| (id.clone(), plan.graph.neighbours(id).into_iter().collect()))
            .collect()
    };
    let before = graph(&plan);
    let mut all_far = 0;
    for (id, neighbours) in &before {
        assert!(
            (20..=24).contains(&neighbours.len()),
            "{id}: {}",
            neighbours.len()
        );
        assert!(!neighbours.contains(id));
        assert!(neighbours.iter().all(|other| before[other].contains(id)));
        let zone = |id: &HostId| plan.hosts[id].zone.clone();
        let far = neighbours
            .iter()
            .filter(|other| zone(other) != zone(id))
            .count();
        assert!(far >= 1, "{id} has far neighbours");
        all_far += far;
        // who was there first, when there were few near ones, keeps some more
        assert!(far <= 16, "{id}: {far}");
    }
    assert!(all_far <= 5 * 300, "most have near neighbours: {all_far}");
    feed(
        &mut plan,
        10,
        Event::HostKnown {
            host: host(300),
            zone: "zone-0".into(),
        },
    );
    let after = graph(&plan);
    let moved: usize = before
        .iter()
        .map(|(id, neighbours)| after[id].symmetric_difference(neighbours).count())
        .sum();
    assert!(moved <= 3 * 24, "one join moves few edges: {moved}");
    feed(&mut plan, 20, Event::HostForgotten(host(17)));
    for (id, neighbours) in graph(&plan) {
        assert!(
            (19..=24).contains(&neighbours.len()),
            "{id}: {}",
            neighbours.len()
        );
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let any_host = || (0usize..6).prop_map(host);
    let any_content = || (0usize..7).prop_map(digest);
    let any_image = || (0usize..3).prop_map(image);
    let standing = prop_oneof![
        Just(Standing::Queued),
        Just(Standing::Staging),
        Just(Standing::Installing),
        Just(Standing::Present),
        Just(Standing::Failed),
        Just(Standing::Gone),
    ];
    let selection = prop_oneof![
        Just(Selection::All),
        prop::collection::vec(0usize..8, 0..5)
            .prop_map(|hosts| Selection::Hosts(hosts.into_iter().map(host).collect())),
    ];
    let end = prop_oneof![
        3 => Just(LeaseEnd::Done),
        1 => Just(LeaseEnd::OriginFailed),
        1 => prop_oneof![Just(Fault::Bad), Just(Fault::Missing), Just(Fault::Refused), Just(Fault::Unusable), Just(Fault::CutShort)].prop_map(LeaseEnd::Faulty),
        1 => Just(LeaseEnd::HostUnable),
        1 => Just(LeaseEnd::Released),
    ];
    let trouble = prop_oneof![
        4 => Just(None),
        2 => Just(Some(Trouble::Failing)),
        1 => Just(Some(Trouble::Silent)),
        1 => any::<u64>().prop_map(|millis| Some(Trouble::Throttled(Duration::from_millis(millis)))),
    ];
    prop_oneof![
        3 => (any_host(), 0u32..3).prop_map(|(host, zone)| Event::HostKnown { host, zone: format!("{zone}") }),
        1 => any_host().prop_map(Event::HostForgotten),
        4 => any_host().prop_map(Event::HostConnected),
        2 => any_host().prop_map(Event::HostDisconnected),
        2 => (0usize..3, 0usize..6, selection, prop::collection::vec(0usize..8, 0..4)).prop_map(|(number, from, hosts, held)| {
            let mut event = with_held(wanted(number, from..from + 3, hosts), &held);
            if let (2, Event::Wanted { purpose, .. }) = (number, &mut event) {
                *purpose = Purpose::Mirror;
            }
            event
        }),
        1 => any_image().prop_map(Event::Cancelled),
        1 => any_image().prop_map(Event::Urged),
        5 => (any_host(), any_image(), standing, any::<u64>()).prop_map(|(host, image, standing, held_bytes)| Event::Reported { host, image, standing, held_bytes }),
        4 => (any_host(), any_content(), any::<u32>(), any::<u64>(), any::<bool>(), trouble).prop_map(|(host, content, chunks, bytes, paced, trouble)| Event::LeaseProgress { host, content, chunks, bytes, paced, trouble }),
        4 => (any_host(), any_content(), end).prop_map(|(host, content, end)| Event::LeaseEnded { host, content, end }),
        2 => (any_host(), any_host()).prop_map(|(by, host)| Event::Blamed { by, host }),
        2 => (any_host(), prop::collection::vec(any_content(), 0..3)).prop_map(|(host, contents)| Event::LeasesHeld { host, contents }),
        3 => (any_host(), prop::collection::vec(any_content(), 0..3)).prop_map(|(host, contents)| Event::WithoutSource { host, contents }),
        5 => (any_host(), prop::collection::vec((any_content(), 0u32..120), 0..4)).prop_map(|(host, contents)| Event::Holds { host, contents }),
        2 => (any_host(), any_host(), any_content(), any::<bool>()).prop_map(|(by, maker, content, vouched)| Event::FalseLink { by, maker, content, vouched }),
        1 => (any_host(), any_content(), any::<u32>()).prop_map(|(host, content, from)| Event::Retracted { host, content, from }),
        1 => (any_host(), any::<bool>()).prop_map(|(maker, lie)| Event::Contradicted { maker, says: if lie { Contradiction::Lie } else { Contradiction::False } }),
        3 => Just(Event::Tick),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn any_event_is_legal_in_any_state(seed in any::<u64>(), events in prop::collection::vec((any_event(), 0u64..4_000), 1..200)) {
        let mut plan = Plan::new(Config { origin_streams: 2, ..Config::default() }, seed);
        let mut now = 0;
        let mut leases: BTreeMap<Digest, HostId> = BTreeMap::new();
        for (event, wait) in events {
            now += wait;
            if let Event::LeaseEnded { host, content, .. } = &event
                && leases.get(content) == Some(host)
            {
                leases.remove(content);
            }
            if let Event::HostForgotten(host) = &event {
                leases.retain(|_, holder| holder != host);
            }
            if let Event::LeasesHeld { host, contents } = &event {
                // its program lost them; those of this session stay, and are given back by the checks below
                let lost = |content: &Digest| !contents.contains(content);
                let granted_before = |content: &Digest| plan.contents.get(content).is_some_and(|content| content.lease.as_ref().is_some_and(|lease| lease.granted_at < plan.hosts[host].since));
                if plan.hosts.contains_key(host) {
                    leases.retain(|content, holder| holder != host || !lost(content) || !granted_before(content));
                }
            }
            for action in feed(&mut plan, now, event) {
                match action {
                    Action::Grant { host, content, .. } => {
                        prop_assert!(plan.hosts[&host].connected, "granted to a host that isn't connected");
                        prop_assert!(plan.hosts[&host].quarantined_until.is_none(), "granted to a shunned host");
                        prop_assert!(leases.insert(content, host).is_none(), "leased twice");
                    }
                    Action::Revoke { host, content, .. } => {
                        if leases.get(&content) == Some(&host) {
                            leases.remove(&content);
                        }
                    }
                    Action::Neighbours { host, neighbours } => {
                        prop_assert!(neighbours.len() <= 24);
                        prop_assert!(!neighbours.contains(&host));
                    }
                    Action::Stage { .. }
                    | Action::Cancel { .. }
                    | Action::Hold { .. }
                    | Action::Quarantine(_)
                    | Action::Retract { .. } => {}
                }
            }
            let status = plan.status(at(now));
            let trials = plan.contents.values().filter(|content| content.lease.as_ref().is_some_and(|lease| lease.trial)).count();
            prop_assert!(trials <= 2, "more hosts on trial than streams");
            prop_assert!(status.leases.len() - trials <= 3, "more leases than streams and a mirror's");
            let mirrors = plan.contents.values().filter(|content| content.lease.as_ref().is_some_and(lease::Lease::is_mirrors));
            prop_assert_eq!((plan.leases, plan.mirror_leases), (status.leases.len(), mirrors.count()));
            prop_assert!(status.leases.len() - plan.mirror_leases <= 2, "staging took a mirror's place");
            for lease in &status.leases {
                // leases that were taken over from before a restart aren't granted
                if let Some(holder) = leases.get(&lease.content) {
                    prop_assert_eq!(holder, &lease.host);
                }
            }
            for image in status.images {
                let lacking = image.hosts.iter().any(|host| host.reason.is_some());
                prop_assert_eq!(lacking || image.hosts.is_empty() || matches!(image.reason, Some(ImageReason::ContentFaulty(..) | ImageReason::Contradicts(_))), image.reason.is_some());
                for host in image.hosts {
                    prop_assert_eq!(host.reason.is_none(), host.standing == Some(Standing::Present));
                }
            }
            prop_assert!(plan.next_timeout().is_none_or(|due| due > at(now)));
            for id in plan.hosts.keys() {
                for other in plan.graph.neighbours(id) {
                    prop_assert!(plan.graph.neighbours(&other).contains(id), "neighbours are mutual");
                }
            }
        }
    }
}

fn progress(by: &HostId, content: Digest, chunks: u32) -> Event {
    Event::LeaseProgress {
        host: by.clone(),
        content,
        chunks,
        bytes: 0,
        paced: false,
        trouble: None,
    }
}

#[test]
fn a_mirror_has_a_lease_although_staging_has_them_all_and_then_half() {
    let mut plan = fleet(10);
    let staged = grants(&want(&mut plan, 2_000, wanted(0, 0..12, Selection::All)));
    assert_eq!(staged.len(), 4);
    // the second has to wait, although it was asked for
    let first = grants(&want(&mut plan, 2_100, asked(1, 20, &[1, 2])));
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].1, digest(20));
    assert_eq!(grants(&want(&mut plan, 2_200, asked(2, 21, &[1, 2]))), []);
    assert_eq!(grants(&want(&mut plan, 2_300, asked(3, 22, &[1, 2]))), []);
    // five run: one more has to end than there are places
    let mut next = |by: &HostId, content: Digest| {
        grants(&feed(&mut plan, 2_400, ended(by, content, LeaseEnd::Done)))
    };
    assert_eq!(next(&staged[0].0, digest(0)), []);
    let second = next(&staged[1].0, digest(1));
    assert_eq!(second.len(), 1);
    assert_eq!(second[0].1, digest(21));
    let third = next(&first[0].0, digest(20));
    assert_eq!(third[0].1, digest(22));
    // two each: what ends is followed by its like, and the rest is staging's where no mirror wants more
    assert_eq!(next(&staged[2].0, digest(2))[0].1, digest(4));
    assert_eq!(next(&second[0].0, digest(21))[0].1, digest(5));
}

#[test]
fn staging_has_half_of_the_leases_although_mirrors_want_them_all() {
    let mut plan = fleet(10);
    let mut blobs = Vec::new();
    for number in 1..8 {
        blobs.extend(grants(&want(
            &mut plan,
            2_000,
            asked(number, 20 + number, &[1, 2]),
        )));
    }
    assert_eq!(blobs.len(), 4);
    assert_eq!(
        grants(&want(&mut plan, 2_100, wanted(0, 0..8, Selection::All))),
        []
    );
    let mut next = |at: usize| {
        let (by, content) = &blobs[at];
        let done = ended(by, *content, LeaseEnd::Done);
        grants(&feed(&mut plan, 2_200, done))[0].1
    };
    assert_eq!([next(0), next(1)], [digest(0), digest(1)]);
    assert_eq!(next(2), digest(25));
}

#[test]
fn what_a_mirrors_registry_does_says_nothing_of_staging() {
    for end in [LeaseEnd::Faulty(Fault::Bad), LeaseEnd::OriginFailed] {
        let mut plan = Plan::new(
            Config {
                bad_witnesses: 1,
                ..Config::default()
            },
            3,
        );
        feed(&mut plan, 0, Event::HostConnected(host(0)));
        let first = grants(&want(&mut plan, 2_000, asked(1, 5, &[0])));
        // wanted for staging too, from now on
        want(&mut plan, 2_100, wanted(0, [5, 6], Selection::All));
        let next = grants(&feed(&mut plan, 3_000, ended(&first[0].0, digest(5), end)));
        assert_eq!(next, [(host(0), digest(5))], "{end:?}");
        let status = plan.status(at(3_000));
        assert_eq!(status.images[1].origin_retry_in, None);
        let bad =
            |reason: &Option<ImageReason>| matches!(reason, Some(ImageReason::ContentFaulty(..)));
        assert!(!status.images.iter().any(|image| bad(&image.reason)));
        assert_eq!(plan.hosts[&host(0)].failures, 0);
        // and what staging finds counts as ever
        feed(&mut plan, 3_100, ended(&host(0), digest(5), end));
        let status = plan.status(at(3_100));
        let noted = plan.contents[&digest(5)].away.is_some()
            || status.images.iter().any(|image| bad(&image.reason));
        assert!(noted, "{end:?}");
    }
}

#[test]
fn a_blob_whose_registry_fails_is_leased_again_after_a_pause_that_grows() {
    let mut plan = fleet(2);
    let mut held = grants(&want(&mut plan, 2_000, asked(1, 5, &[0, 1])));
    let (mut millis, mut pauses) = (2_000, Vec::new());
    for _ in 0..4 {
        let failed = ended(&held[0].0, digest(5), LeaseEnd::OriginFailed);
        let since = millis;
        assert_eq!(grants(&feed(&mut plan, since, failed)), []);
        assert!(!plan.is_coming(&host(0), &digest(5)));
        held.clear();
        while held.is_empty() {
            millis += 100;
            held = grants(&feed(&mut plan, millis, Event::Tick));
        }
        pauses.push((millis - since) / 1_000);
    }
    assert_eq!(pauses, [1, 2, 4, 8]);
}

#[test]
fn a_host_waits_for_its_turn_while_anything_comes_of_mirrors_leases() {
    let mut plan = fleet(3);
    feed(&mut plan, 1_500, Event::Limited { origin_streams: 1 });
    let first = grants(&want(&mut plan, 2_000, asked(1, 5, &[0, 1])));
    assert_eq!(grants(&want(&mut plan, 2_000, asked(2, 6, &[0, 1]))), []);
    let waits = |plan: &Plan, content: usize| plan.is_coming(&host(1), &digest(content));
    for second in 0..30 {
        let moved = progress(&first[0].0, digest(5), 1 + second);
        feed(&mut plan, 2_000 + u64::from(second) * 1_000, moved);
        assert!(waits(&plan, 5) && waits(&plan, 6), "{second}");
    }
    assert!(!waits(&plan, 7), "nobody asked for it");
    // nothing more comes: it isn't worth while to wait in the queue
    feed(&mut plan, 31_000 + 9_999, Event::Tick);
    assert!(waits(&plan, 6));
    feed(&mut plan, 31_000 + 10_000, Event::Tick);
    assert!(!waits(&plan, 6));
    // it is somewhere: whoever wants it has it from there
    let mut plan = fleet(3);
    let first = grants(&want(&mut plan, 2_000, asked(1, 5, &[0, 1])));
    let done = ended(&first[0].0, digest(5), LeaseEnd::Done);
    feed(&mut plan, 2_100, done);
    assert!(!waits(&plan, 5));
}

#[test]
fn a_mirror_that_gives_a_lease_back_holds_nothing() {
    let mut plan = fleet(3);
    let first = grants(&want(&mut plan, 2_000, asked(1, 5, &[0, 1])));
    // its client went away
    let back = ended(&first[0].0, digest(5), LeaseEnd::Released);
    let second = grants(&feed(&mut plan, 2_100, back));
    assert_eq!(second.len(), 1);
    assert_ne!(second[0].0, first[0].0);
}

fn told(actions: &[Action]) -> Vec<HostId> {
    let hosts = actions.iter().filter_map(|action| match action {
        Action::Neighbours { host, .. } => Some(host.clone()),
        _ => None,
    });
    hosts.collect()
}

#[test]
fn whose_session_comes_and_goes_is_told_whom_it_follows_and_nobody_else_is() {
    let mut plan = fleet(100);
    for round in 0..5 {
        let now = 2_000 + round * 1_000;
        assert_eq!(
            told(&feed(&mut plan, now, Event::HostDisconnected(host(7)))),
            []
        );
        let back = feed(&mut plan, now + 100, Event::HostConnected(host(7)));
        assert_eq!(told(&back), [host(7)]);
        assert_eq!(told(&feed(&mut plan, now + 900, Event::Tick)), []);
    }
    assert_eq!(plan.next_timeout(), None, "nothing is left to be told");
    // a host that joins changes the neighbours of some, who hear of it
    let known = Event::HostKnown {
        host: host(100),
        zone: "zone-0".into(),
    };
    assert_eq!(told(&feed(&mut plan, 9_000, known)), []);
    let some = told(&feed(&mut plan, 9_200, Event::Tick)).len();
    assert!((10..=60).contains(&some), "{some}");
    // and one that the fleet shuns has none any more
    for by in 0..40 {
        feed(&mut plan, 10_000, accused(by, 50));
    }
    assert_eq!(plan.status(at(10_000)).quarantined, [host(50)]);
    assert_eq!(plan.graph.neighbours(&host(50)), []);
}

/// One content of image 0 that is complete on its lease holder, with others of the same image that go on moving.
fn complete_on_its_holder(hosts: usize) -> (Plan, HostId, Digest) {
    let mut plan = fleet(hosts);
    let open = grants(&want(&mut plan, 2_000, wanted(0, 0..4, Selection::All)));
    let (holder, content) = open[0].clone();
    feed(&mut plan, 3_000, ended(&holder, content, LeaseEnd::Done));
    (plan, holder, content)
}

fn without_source(number: usize, contents: &[Digest]) -> Event {
    Event::WithoutSource {
        host: host(number),
        contents: contents.to_vec(),
    }
}

/// Second by second: what else is leased moves, and these hosts say that they find no source of the content. Returns when it
/// was granted again, and to whom.
fn granted_again(
    plan: &mut Plan,
    from_s: u64,
    content: Digest,
    doubters: &[usize],
) -> Option<(u64, HostId)> {
    for second in from_s..from_s + 60 {
        for number in doubters {
            feed(plan, second * 1_000, without_source(*number, &[content]));
        }
        let leases = plan.status(at(second * 1_000)).leases;
        for lease in leases.iter().filter(|lease| lease.content != content) {
            let step = u32::try_from(second - from_s).unwrap() + 1;
            let event = progress(&lease.host, lease.content, lease.chunks.max(step));
            feed(plan, second * 1_000, event);
        }
        let granted = grants(&feed(plan, second * 1_000 + 600, Event::Tick));
        if let Some((to, _)) = granted.iter().find(|(_, what)| *what == content) {
            return Some((second, to.clone()));
        }
    }
    None
}

#[test]
fn what_hosts_find_no_source_of_is_leased_again_whatever_else_moves() {
    let (mut plan, holder, content) = complete_on_its_holder(5);
    let lacking: Vec<usize> = (0..5).filter(|number| host(*number) != holder).collect();
    let (second, to) = granted_again(&mut plan, 20, content, &lacking[..2]).unwrap();
    assert!((25..=27).contains(&second), "{second}");
    assert_eq!(to, holder, "who is thought to hold it is asked first");
    // it does hold it; the others don't get at it all the same
    feed(&mut plan, 28_000, ended(&holder, content, LeaseEnd::Done));
    let (second, to) = granted_again(&mut plan, 29, content, &lacking[..2]).unwrap();
    assert!((35..=38).contains(&second), "after a pause: {second}");
    assert_ne!(to, holder);
}

#[test]
fn one_hosts_word_has_nothing_leased_again_while_others_lack_it_too() {
    let (mut plan, holder, content) = complete_on_its_holder(5);
    let liar = (0..5).find(|number| host(*number) != holder).unwrap();
    assert_eq!(granted_again(&mut plan, 20, content, &[liar]), None);
    // unless it is the only one that lacks it
    let (mut plan, holder, content) = complete_on_its_holder(2);
    let other = (0..2).find(|number| host(*number) != holder).unwrap();
    let present = match holder == host(0) {
        true => 0,
        false => 1,
    };
    feed(&mut plan, 4_000, report(present, 0, Standing::Present, 400));
    let again = granted_again(&mut plan, 20, content, &[other]).unwrap();
    assert_eq!(again.1, host(other));
}

#[test]
fn a_holder_that_was_away_a_moment_ago_is_not_doubted_yet() {
    let (mut plan, holder, content) = complete_on_its_holder(5);
    let lacking: Vec<usize> = (0..5).filter(|number| host(*number) != holder).collect();
    // killed again and again, and back at once: it brings what it holds each time
    for second in 5..20 {
        for number in &lacking {
            feed(
                &mut plan,
                second * 1_000,
                without_source(*number, &[content]),
            );
        }
        feed(
            &mut plan,
            second * 1_000,
            Event::HostDisconnected(holder.clone()),
        );
        let back = feed(
            &mut plan,
            second * 1_000 + 200,
            Event::HostConnected(holder.clone()),
        );
        let later = feed(&mut plan, second * 1_000 + 600, Event::Tick);
        assert!(
            !grants(&back)
                .iter()
                .chain(&grants(&later))
                .any(|(_, what)| *what == content)
        );
    }
    // what peers have again isn't missed any more
    for number in &lacking {
        feed(&mut plan, 20_000, without_source(*number, &[]));
    }
    assert_eq!(granted_again(&mut plan, 21, content, &[]), None);
}

#[test]
fn what_a_host_with_a_failed_disk_held_is_leased_again_at_once() {
    let (mut plan, holder, content) = complete_on_its_holder(5);
    let number = (0..5).find(|number| host(*number) == holder).unwrap();
    let actions = feed(&mut plan, 4_000, report(number, 0, Standing::Failed, 100));
    let again = grants(&actions);
    assert!(
        again
            .iter()
            .any(|(to, what)| *what == content && *to != holder)
    );
    // it isn't taken from whoever has it now, by a word that is repeated
    let (to, _) = again
        .into_iter()
        .find(|(_, what)| *what == content)
        .unwrap();
    feed(&mut plan, 5_000, ended(&to, content, LeaseEnd::Done));
    let repeated = feed(&mut plan, 6_000, report(number, 0, Standing::Failed, 100));
    assert_eq!(grants(&repeated), []);
}

#[test]
fn what_another_image_of_the_host_shares_is_still_there_when_one_fails() {
    let mut plan = fleet(3);
    want(&mut plan, 2_000, wanted(0, [0, 1], Selection::All));
    want(&mut plan, 2_000, wanted(1, [1, 2], Selection::All));
    for content in 0..3 {
        let leases = plan.status(at(3_000)).leases;
        let lease = leases.iter().find(|lease| lease.content == digest(content));
        let holder = lease.unwrap().host.clone();
        feed(
            &mut plan,
            3_000,
            ended(&holder, digest(content), LeaseEnd::Done),
        );
    }
    for number in 0..3 {
        feed(&mut plan, 4_000, report(number, 1, Standing::Present, 200));
    }
    let mut again = Vec::new();
    for number in 0..2 {
        let failed = report(number, 0, Standing::Failed, 100);
        again.extend(grants(&feed(&mut plan, 5_000, failed)));
    }
    assert!(
        again.iter().all(|(_, what)| *what == digest(0)),
        "{again:?}"
    );
}

#[test]
fn leases_that_went_with_an_earlier_life_are_granted_again_at_once() {
    let mut plan = fleet(3);
    let open = grants(&want(&mut plan, 2_000, wanted(0, 0..4, Selection::All)));
    let (killed, lost) = open[0].clone();
    let theirs = |plan: &Plan| -> Vec<Digest> {
        let leases = plan.status(at(9_000)).leases;
        let mut theirs: Vec<Digest> = leases
            .iter()
            .filter(|lease| lease.host == killed)
            .map(|lease| lease.content)
            .collect();
        theirs.sort_unstable();
        theirs
    };
    let before = theirs(&plan);
    let held = |contents: Vec<Digest>| Event::LeasesHeld {
        host: killed.clone(),
        contents,
    };
    // in the same session it may have been granted while the report was on its way
    assert_eq!(feed(&mut plan, 4_000, held(Vec::new())), []);
    // the session was lost and its program wasn't
    feed(&mut plan, 5_000, Event::HostDisconnected(killed.clone()));
    feed(&mut plan, 5_500, Event::HostConnected(killed.clone()));
    feed(&mut plan, 5_500, held(before.clone()));
    assert_eq!(theirs(&plan), before);
    feed(&mut plan, 6_000, Event::HostDisconnected(killed.clone()));
    feed(&mut plan, 6_500, Event::HostConnected(killed.clone()));
    let again = grants(&feed(&mut plan, 6_500, held(Vec::new())));
    assert!(again.iter().any(|(_, what)| *what == lost), "{again:?}");
}

/// What a registry does to contents in [`run_fleet`].
type Behaviour = fn(usize, usize, Digest) -> Option<LeaseEnd>;

/// Lets a fleet fetch for so many seconds: each lease ends after four seconds with the content, or at once as `behaves`
/// says of the host and the content. Returns when each content came first, and who asked for what.
fn run_fleet(
    plan: &mut Plan,
    orders: &[(u64, Event)],
    seconds: u64,
    behaves: Behaviour,
) -> (BTreeMap<Digest, u64>, Vec<(HostId, Digest)>) {
    let mut leases: BTreeMap<Digest, (HostId, u64)> = BTreeMap::new();
    let (mut came, mut requests) = (BTreeMap::new(), Vec::new());
    let number = |id: &HostId| (0..100).find(|number| host(*number) == *id).unwrap();
    for millis in (2_000..2_000 + seconds * 1_000).step_by(250) {
        let mut actions = Vec::new();
        for (when, order) in orders {
            if *when == millis {
                actions.extend(want(plan, millis, order.clone()));
            }
        }
        let running: Vec<_> = leases.clone().into_iter().collect();
        for (content, (by, since)) in running {
            let (host, past) = (number(&by), usize::try_from(millis - since).unwrap());
            if let Some(end) = behaves(host, past, content) {
                leases.remove(&content);
                actions.extend(feed(plan, millis, ended(&by, content, end)));
            } else if past >= 4_000 {
                leases.remove(&content);
                came.entry(content).or_insert(millis);
                actions.extend(feed(plan, millis, ended(&by, content, LeaseEnd::Done)));
            } else if behaves(host, usize::MAX, content).is_none() {
                let chunks = u32::try_from(past / 250).unwrap();
                actions.extend(feed(plan, millis, progress(&by, content, chunks)));
            }
        }
        actions.extend(feed(plan, millis, Event::Tick));
        for action in actions {
            match action {
                Action::Grant { host, content, .. } => {
                    requests.push((host.clone(), content));
                    leases.insert(content, (host, millis));
                }
                Action::Revoke { content, host, .. }
                    if leases.get(&content).is_some_and(|(by, _)| *by == host) =>
                {
                    leases.remove(&content);
                }
                _ => {}
            }
        }
    }
    (came, requests)
}

#[test]
fn a_content_that_is_missing_fails_its_image_and_holds_up_no_other() {
    for fault in [Fault::Missing, Fault::Refused, Fault::Unusable, Fault::Bad] {
        let behaves: Behaviour = match fault {
            Fault::Missing => {
                |_, _, content| (content == digest(0)).then_some(LeaseEnd::Faulty(Fault::Missing))
            }
            Fault::Refused => {
                |_, _, content| (content == digest(0)).then_some(LeaseEnd::Faulty(Fault::Refused))
            }
            Fault::Unusable => {
                |_, _, content| (content == digest(0)).then_some(LeaseEnd::Faulty(Fault::Unusable))
            }
            Fault::Bad | Fault::CutShort | Fault::Unavailable => {
                |_, _, content| (content == digest(0)).then_some(LeaseEnd::Faulty(Fault::Bad))
            }
        };
        let alone = run_fleet(
            &mut fleet(10),
            &[(7_000, wanted(1, 100..116, Selection::All))],
            60,
            behaves,
        );
        let mut plan = fleet(10);
        let orders = [
            (2_000, wanted(0, 0..16, Selection::All)),
            (7_000, wanted(1, 100..116, Selection::All)),
        ];
        let (came, requests) = run_fleet(&mut plan, &orders, 3_600, behaves);
        let last = |came: &BTreeMap<Digest, u64>| {
            (100..116)
                .map(|content| came[&digest(content)])
                .max()
                .unwrap()
        };
        assert!(
            last(&came) <= last(&alone.0) + 1_000,
            "{fault:?}: {} and {}",
            last(&came),
            last(&alone.0)
        );
        let status = plan.status(plan.now);
        assert_eq!(
            status.images[0].reason,
            Some(ImageReason::ContentFaulty(digest(0), fault))
        );
        assert_eq!(status.images[0].origin_retry_in, None);
        // tried again, and slowly: after 1, 2, 4, 8 and then 10 minutes
        let of_it = requests.iter().filter(|(_, content)| *content == digest(0));
        let of_it = of_it.count();
        assert!((8..=12).contains(&of_it), "{of_it}");
        // whoever stages it anew tries at once, and what was missing is there now
        let now = plan.now.0 / 1_000 + 250;
        let at_once = grants(&feed(&mut plan, now, Event::Urged(image(0))));
        assert!(at_once.iter().any(|(_, content)| *content == digest(0)));
    }
}

/// A registry that gives no parts of contents, and whose connections end: whoever tries gets nearly all of the content, and nothing
/// that wasn't here. Any hour costs at most three times the content, whoever tries.
#[test]
fn what_a_content_costs_that_is_always_cut_short_is_bounded_for_the_whole_fleet() {
    for hosts in [1, 2, 3, 40] {
        let mut plan = fleet(hosts);
        feed(&mut plan, 1_000, wanted(0, [0], Selection::All));
        let mut tries: Vec<u64> = Vec::new();
        let mut running: Option<(HostId, u64)> = None;
        for millis in (2_000..12 * 3_600_000).step_by(1_000) {
            let mut actions = feed(&mut plan, millis, Event::Tick);
            if let Some((holder, since)) = running.clone() {
                // chunks come that others lacked, for a while: that says nothing of the end
                let chunks = u32::try_from((millis - since) / 1_000).unwrap();
                actions.extend(feed(
                    &mut plan,
                    millis,
                    progress(&holder, digest(0), chunks),
                ));
                if chunks == 20 {
                    running = None;
                    let end = LeaseEnd::Faulty(Fault::CutShort);
                    actions.extend(feed(&mut plan, millis, ended(&holder, digest(0), end)));
                }
            }
            for (holder, _) in grants(&actions) {
                assert!(running.is_none());
                running = Some((holder, millis));
                tries.push(millis);
            }
        }
        let most = tries.iter().map(|from| {
            let hour = *from..*from + 3_600_000;
            tries.iter().filter(|at| hour.contains(at)).count()
        });
        assert!(most.max() <= Some(3), "{hosts} hosts: {tries:?}");
        assert!((12..=16).contains(&tries.len()), "{hosts} hosts: {tries:?}");
        let status = plan.status(plan.now);
        let reason = status.images[0].reason;
        assert_eq!(
            reason,
            Some(ImageReason::ContentFaulty(digest(0), Fault::CutShort))
        );
        // who asks anew has a reason to
        assert_eq!(
            grants(&feed(&mut plan, 12 * 3_600_000, Event::Urged(image(0)))).len(),
            1
        );
    }
}

#[test]
fn a_content_that_always_fails_in_a_registry_that_runs_holds_up_no_other() {
    // two hosts at once, and later ones, are answered 500 for one content of image 0
    let behaves: Behaviour = |_, past, content| {
        (content == digest(0) && past >= 3_000).then_some(LeaseEnd::OriginFailed)
    };
    let other = (7_000, wanted(1, 100..116, Selection::All));
    let (alone, _) = run_fleet(&mut fleet(10), core::slice::from_ref(&other), 60, behaves);
    let orders = [(2_000, wanted(0, 0..3, Selection::All)), other];
    let mut plan = fleet(10);
    let (came, _) = run_fleet(&mut plan, &orders, 600, behaves);
    let last = |came: &BTreeMap<Digest, u64>| came[&digest(115)];
    assert!(last(&came) <= last(&alone) + 8_000, "{came:?}");
    assert_eq!(
        plan.status(plan.now).images[0].reason,
        Some(ImageReason::ContentFaulty(digest(0), Fault::Unavailable))
    );
}

#[test]
fn a_registry_in_trouble_is_tried_with_other_contents_images_and_hosts() {
    let mut plan = fleet(6);
    let mut open = grants(&want(&mut plan, 2_000, wanted(0, 0..4, Selection::All)));
    want(&mut plan, 2_100, wanted(1, 10..14, Selection::All));
    let mut tried = Vec::new();
    for millis in (3_000..400_000).step_by(500) {
        for (by, content) in core::mem::take(&mut open) {
            let failed = ended(&by, content, LeaseEnd::OriginFailed);
            open.extend(grants(&feed(&mut plan, millis, failed)));
        }
        open.extend(grants(&feed(&mut plan, millis, Event::Tick)));
        if millis > 10_000 {
            tried.extend(open.iter().cloned());
        }
    }
    let contents: BTreeSet<_> = tried.iter().take(8).map(|(_, content)| *content).collect();
    assert!(contents.len() >= 6, "{tried:?}");
    let of_second = |content: &Digest| (10..14).any(|number| digest(number) == *content);
    for pair in tried.windows(2) {
        assert_ne!(pair[0].0, pair[1].0, "the same host twice");
        assert_ne!(
            of_second(&pair[0].1),
            of_second(&pair[1].1),
            "the same image"
        );
    }
}

#[test]
fn a_host_that_cannot_ask_a_registry_counts_against_itself_alone() {
    // two of ten have a password file that can't be read
    let behaves: Behaviour = |host, _, _| (host < 2).then_some(LeaseEnd::HostUnable);
    let order = [(2_000, wanted(0, 0..30, Selection::All))];
    let (alone, _) = run_fleet(&mut fleet(10), &order, 120, |_, _, _| None);
    let mut plan = fleet(10);
    let (came, requests) = run_fleet(&mut plan, &order, 120, behaves);
    let last = |came: &BTreeMap<Digest, u64>| came.values().max().copied().unwrap();
    assert_eq!(came.len(), 30);
    assert!(
        last(&came) <= last(&alone) + 1_500,
        "{} {}",
        last(&came),
        last(&alone)
    );
    let by_them = requests
        .iter()
        .filter(|(by, _)| [host(0), host(1)].contains(by));
    let by_them = by_them.count();
    assert!((2..=16).contains(&by_them), "{by_them}");
    // where nobody can, the hosts failed, and no registry
    let mut plan = fleet(2);
    run_fleet(&mut plan, &order, 10, |_, _, _| Some(LeaseEnd::HostUnable));
    let status = &plan.status(plan.now).images[0];
    assert_eq!(status.reason, Some(ImageReason::HostsFailed));
    assert_eq!(status.origin_retry_in, None);
}

#[test]
fn a_content_that_one_repository_refuses_is_had_from_another() {
    let mut plan = fleet(4);
    let order = |number: usize, name: &str| {
        let mut event = wanted(number, [5], Selection::All);
        if let Event::Wanted { references, .. } = &mut event {
            *references = vec![format!("registry.example/{name}:1")];
        }
        event
    };
    let mut open = grants(&want(&mut plan, 2_000, order(0, "closed")));
    want(&mut plan, 2_000, order(1, "open"));
    for millis in [3_000, 4_000] {
        let (by, content) = open.pop().unwrap();
        let refused = ended(&by, content, LeaseEnd::Faulty(Fault::Refused));
        let actions = feed(&mut plan, millis, refused);
        open = grants(&actions);
        if millis == 4_000 {
            let asked = |action: &Action| match action {
                Action::Grant { image, .. } => Some(*image),
                _ => None,
            };
            assert_eq!(actions.iter().find_map(asked), Some(image(1)));
        }
    }
    let reasons = |plan: &Plan| {
        let images = plan.status(plan.now).images;
        images
            .into_iter()
            .map(|image| image.reason)
            .collect::<Vec<_>>()
    };
    let refused = Some(ImageReason::ContentFaulty(digest(5), Fault::Refused));
    assert_eq!(reasons(&plan), [refused, Some(ImageReason::Moving)]);
    let (by, content) = open.pop().unwrap();
    feed(&mut plan, 5_000, ended(&by, content, LeaseEnd::Done));
    assert_eq!(reasons(&plan), [Some(ImageReason::Moving); 2]);
}

#[test]
fn an_image_that_contradicts_another_is_refused_by_name_until_that_one_goes() {
    let mut plan = fleet(3);
    want(&mut plan, 2_000, wanted(0, [5, 6], Selection::All));
    let mut other = wanted(1, [5, 7], Selection::All);
    if let Event::Wanted { contents, .. } = &mut other {
        contents[0].size += 1;
        contents[0].chunks = 101;
    }
    let stages = |actions: &[Action]| {
        let stage =
            |action: &&Action| matches!(action, Action::Stage { image: of, .. } if *of == image(1));
        actions.iter().filter(stage).count()
    };
    let actions = want(&mut plan, 3_000, other.clone());
    assert_eq!((stages(&actions), grants(&actions)), (0, vec![]));
    let reason = |plan: &Plan, at: usize| plan.status(plan.now).images[at].reason;
    // until bytes have shown which of them is wrong
    assert_eq!(reason(&plan, 1), Some(ImageReason::AwaitingTurn));
    assert_eq!(reason(&plan, 0), Some(ImageReason::Moving));
    let holder = plan.contents[&digest(5)]
        .lease
        .as_ref()
        .unwrap()
        .host
        .clone();
    feed(&mut plan, 3_050, ended(&holder, digest(5), LeaseEnd::Done));
    assert_eq!(reason(&plan, 1), Some(ImageReason::Contradicts(digest(5))));
    // asked again, and by a host that connects, it is no more
    assert_eq!(stages(&want(&mut plan, 3_100, other)), 0);
    feed(&mut plan, 3_200, Event::HostDisconnected(host(0)));
    assert_eq!(
        stages(&feed(&mut plan, 3_300, Event::HostConnected(host(0)))),
        0
    );
    let actions = feed(&mut plan, 4_000, Event::Cancelled(image(0)));
    assert_eq!(stages(&actions), 3);
    assert_eq!(plan.contents[&digest(5)].size, (100 << 20) + 1);
    assert_ne!(reason(&plan, 0), Some(ImageReason::Contradicts(digest(5))));
}

#[test]
fn of_two_sizes_of_a_content_the_bytes_decide() {
    // image 0 came first, and image 1 gives content 5 another size; these are false
    for (falsehoods, winner) in [
        ([true, false], Some(1)),
        ([false, true], Some(0)),
        ([true, true], None),
    ] {
        let mut plan = fleet(3);
        let mut other = wanted(1, [5, 7], Selection::All);
        if let Event::Wanted { contents, .. } = &mut other {
            contents[0].size += 1;
        }
        let mut actions = want(&mut plan, 2_000, wanted(0, [5, 6], Selection::All));
        actions.extend(want(&mut plan, 3_000, other));
        let (mut ordered, mut tries) = ([true, false], 0);
        for millis in (3_000..900_000).step_by(500) {
            actions.extend(feed(&mut plan, millis, Event::Tick));
            for action in core::mem::take(&mut actions) {
                match action {
                    Action::Stage { host, image: of } => {
                        let number = usize::from(of == image(1));
                        ordered[number] = true;
                        let report = Event::Reported {
                            host,
                            image: of,
                            standing: Standing::Staging,
                            held_bytes: 0,
                        };
                        actions.extend(feed(&mut plan, millis, report));
                    }
                    Action::Cancel { image: of, .. } => {
                        ordered[usize::from(of == image(1))] = false
                    }
                    Action::Grant {
                        host,
                        content,
                        image: of,
                        ..
                    } => {
                        let number = usize::from(of == image(1));
                        assert!(ordered[number], "leased for an image that hosts don't have");
                        let lies = content == digest(5) && falsehoods[number];
                        tries += u32::from(lies);
                        let end = if lies {
                            LeaseEnd::Faulty(Fault::Bad)
                        } else {
                            LeaseEnd::Done
                        };
                        actions.extend(feed(&mut plan, millis, ended(&host, content, end)));
                    }
                    _ => {}
                }
            }
            assert!(ordered != [true, true], "hosts have both");
        }
        let status = plan.status(plan.now);
        let reasons = [0, 1].map(|at| status.images[at].reason);
        let bad = Some(ImageReason::ContentFaulty(digest(5), Fault::Bad));
        let moves = Some(ImageReason::Moving);
        let expected = match winner {
            Some(0) => [moves, Some(ImageReason::Contradicts(digest(5)))],
            Some(_) => [bad, moves],
            None => [bad, bad],
        };
        assert_eq!(reasons, expected, "{falsehoods:?}");
        assert!(tries <= 10, "{tries}");
    }
}

#[test]
fn the_only_host_that_has_said_that_it_stages_looks_again_after_a_second() {
    let mut plan = fleet(2);
    feed(&mut plan, 2_000, wanted(0, [0], Selection::All));
    let mut open = grants(&feed(&mut plan, 2_000, report(0, 0, Standing::Staging, 0)));
    let mut asked = Vec::new();
    for millis in (2_010..6_000).step_by(10) {
        for (by, content) in core::mem::take(&mut open) {
            asked.push(millis);
            let end = LeaseEnd::Faulty(Fault::Missing);
            open.extend(grants(&feed(&mut plan, millis, ended(&by, content, end))));
        }
        open.extend(grants(&feed(&mut plan, millis, Event::Tick)));
    }
    assert!((2..=3).contains(&asked.len()), "{asked:?}");
    let reason = plan.status(plan.now).images[0].reason;
    assert!(!matches!(reason, Some(ImageReason::ContentFaulty(..))));
}

#[test]
fn a_stream_that_is_slow_keeps_its_lease_and_one_that_only_says_so_does_not() {
    for (bytes_per_s, keeps) in [
        (62_000, true),
        (10_000, true),
        (4 << 10, true),
        (1_000, false),
    ] {
        let mut plan = fleet(5);
        let open = grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)));
        let (by, content) = open[0].clone();
        let mut lost_at = None;
        for second in 1..400u64 {
            let bytes = second * bytes_per_s;
            // a chunk of a mebibyte each so many seconds
            let chunks = u32::try_from(bytes >> 20).unwrap();
            let slow = Event::LeaseProgress {
                host: by.clone(),
                content,
                chunks,
                bytes,
                paced: false,
                trouble: None,
            };
            let actions = feed(&mut plan, 2_000 + second * 1_000, slow);
            if !grants(&actions).is_empty() {
                lost_at = Some(second);
                break;
            }
        }
        assert_eq!(lost_at.is_none(), keeps, "{bytes_per_s}: {lost_at:?}");
        if bytes_per_s == 62_000 {
            let said = plan.status(plan.now).leases[0].bytes_per_s;
            assert!((61_000..=62_000).contains(&said), "{said}");
        }
    }
    // bytes without end and no chunk
    let mut plan = fleet(5);
    let (by, content) = grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)))[0].clone();
    let lost = (1..600u64).find(|second| {
        let lie = Event::LeaseProgress {
            host: by.clone(),
            content,
            chunks: 0,
            bytes: second * 62_000,
            paced: false,
            trouble: None,
        };
        !grants(&feed(&mut plan, 2_000 + second * 1_000, lie)).is_empty()
    });
    assert!((33..60).contains(&lost.unwrap()), "{lost:?}");
}

/// A registry that was quick becomes slow. A chunk takes 17 s then, and nobody but the holders can see that bytes come: when
/// all of them say so they are believed, and one alone is not.
#[test]
fn streams_that_become_slow_together_keep_their_leases() {
    for slow in [3, 1] {
        let mut plan = fleet(4);
        let mut order = wanted(0, 0..3, Selection::All);
        if let Event::Wanted { contents, .. } = &mut order {
            for content in contents {
                content.origin_bytes = content.size;
            }
        }
        let mut open = grants(&want(&mut plan, 2_000, order));
        for number in 0..4 {
            let holds = Event::Holds {
                host: host(number),
                contents: Vec::new(),
            };
            open.extend(grants(&feed(&mut plan, 2_000, holds)));
            open.extend(grants(&feed(
                &mut plan,
                2_000,
                report(number, 0, Standing::Staging, 0),
            )));
        }
        assert_eq!(open.len(), 3);
        // for five seconds each stream brings a chunk a second, then one goes on so, or none
        let mut lost_at = BTreeMap::new();
        for second in 1..20u64 {
            let now = 2_000 + second * 1_000;
            for (at, (by, content)) in open.iter().enumerate() {
                if lost_at.contains_key(content) {
                    continue;
                }
                let quick = second <= 5 || at == 0 && slow == 1;
                let bytes = match quick {
                    true => second << 20,
                    false => (5 << 20) + (second - 5) * 62_000,
                };
                let chunks = u32::try_from(bytes >> 20).unwrap();
                let event = Event::LeaseProgress {
                    host: by.clone(),
                    content: *content,
                    chunks,
                    bytes,
                    paced: false,
                    trouble: None,
                };
                feed(&mut plan, now, event);
                for number in (0..4).filter(|number| host(*number) != *by) {
                    let holds = Event::Holds {
                        host: host(number),
                        contents: vec![(*content, chunks)],
                    };
                    feed(&mut plan, now, holds);
                }
            }
            let actions = feed(&mut plan, now + 500, Event::Tick);
            for action in actions {
                if let Action::Revoke { content, .. } = action {
                    lost_at.entry(content).or_insert(second);
                }
            }
        }
        let expected = if slow == 1 { 2 } else { 0 };
        assert_eq!(lost_at.len(), expected, "{lost_at:?}");
    }
}

#[test]
fn what_a_host_takes_back_is_dropped_everywhere_and_forgives_it_nothing() {
    let mut plan = fleet(6);
    let maker = leased(&mut plan, 2_000, 0);
    let number = (0..6).find(|at| host(*at) == maker).unwrap();
    let retracted = |number: usize| Event::Retracted {
        host: host(number),
        content: digest(0),
        from: 3,
    };
    let taken_back = |actions: &[Action]| {
        let retract = |action: &&Action| matches!(action, Action::Retract { from: 3, .. });
        actions.iter().filter(retract).count()
    };
    assert_eq!(taken_back(&feed(&mut plan, 3_000, retracted(number))), 1);
    let others: Vec<usize> = (0..6).filter(|at| *at != number).collect();
    for by in &others {
        feed(&mut plan, 3_100, found_false(*by, number, 0, true));
    }
    assert_eq!(plan.status(at(3_200)).quarantined, [maker]);
    // so often in an hour
    let many = (0..40).map(|_| taken_back(&feed(&mut plan, 4_000, retracted(number))));
    assert_eq!(many.sum::<usize>(), RETRACTIONS_LEFT);
}

/// One of sixteen was heard before.
const RETRACTIONS_LEFT: usize = 15;
