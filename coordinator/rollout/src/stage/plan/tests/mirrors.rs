//! Tests of what a host costs the others that wants blobs for its mirror's clients and brings nothing.

use super::*;

/// Feeds wants for these blobs, by these hosts.
fn wants(plan: &mut Plan, millis: u64, blobs: core::ops::Range<usize>, hosts: &[usize]) {
    for blob in blobs {
        asks(plan, millis, blob, hosts);
    }
}

/// Feeds that these hosts' clients wait for a blob. Returns the leases that are granted now.
fn asks(plan: &mut Plan, millis: u64, blob: usize, hosts: &[usize]) -> Vec<(HostId, Digest)> {
    let mut actions = feed(plan, millis, asked(blob, blob, hosts));
    for number in hosts {
        let said = report(*number, blob, Standing::Staging, 0);
        actions.extend(feed(plan, millis, said));
    }
    grants(&actions)
}

fn leases_of(plan: &Plan, number: usize) -> usize {
    let status = plan.status(plan.clock.now());
    let leases = status.leases.iter();
    leases.filter(|lease| lease.host == host(number)).count()
}

/// Whether a host is on trial at `now`.
fn on_trial_at(plan: &Plan, now: Moment, number: usize) -> bool {
    plan.records.is_on_trial(now, &host(number))
}

/// A plan of four hosts that report what they hold. The first host wants 16 blobs, and has let its leases run out.
fn on_trial() -> (Plan, u64) {
    let mut plan = fleet(4);
    for number in 0..4 {
        let contents = Vec::new();
        let host = host(number);
        feed(&mut plan, 1_500, Event::Holds { host, contents });
    }
    wants(&mut plan, 2_000, 100..116, &[0]);
    assert_eq!(leases_of(&plan, 0), 2, "half of the leases");
    for millis in (2_500..12_500).step_by(500) {
        feed(&mut plan, millis, Event::Tick);
    }
    (plan, 12_500)
}

#[test]
fn one_hosts_wants_have_half_of_the_leases_and_one_when_they_bring_nothing() {
    let mut plan = fleet(4);
    wants(&mut plan, 2_000, 100..164, &[0]);
    assert_eq!(leases_of(&plan, 0), 2);
    // other hosts don't wait for these leases
    assert_eq!(asks(&mut plan, 2_100, 1, &[1]), [(host(1), digest(1))]);
    assert_eq!(asks(&mut plan, 2_200, 2, &[2]), [(host(2), digest(2))]);
    let mut most = 0;
    for millis in (2_500..60_000).step_by(500) {
        feed(&mut plan, millis, Event::Tick);
        if millis > 12_500 {
            most = most.max(leases_of(&plan, 0));
        }
    }
    assert_eq!(most, 1);
}

#[test]
fn what_others_want_too_goes_to_them_and_a_host_on_trial_takes_nobodys_place() {
    let (mut plan, now) = on_trial();
    assert_eq!(leases_of(&plan, 0), 1);
    let first = asks(&mut plan, now, 1, &[0, 1]);
    assert_eq!(first, [(host(1), digest(1))]);
    for (blob, other) in [(2, 2), (3, 3), (4, 1)] {
        let next = asks(&mut plan, now, blob, &[0, other]);
        assert_eq!(next, [(host(other), digest(blob))]);
    }
    // four leases run beside the one on trial: the next blob waits for one of the four, and the host on trial doesn't
    // get it
    assert_eq!(asks(&mut plan, now, 5, &[0, 2]), []);
    assert_eq!((plan.leases.len(), leases_of(&plan, 0)), (5, 1));
    let done = ended(&host(1), digest(1), LeaseEnd::Done);
    assert_eq!(grants(&feed(&mut plan, now, done)), [(host(2), digest(5))]);
}

#[test]
fn who_wants_what_a_host_has_on_trial_gets_its_lease_at_once() {
    let (mut plan, now) = on_trial();
    let lease = plan.status(at(now)).leases[0].content;
    let blob = (100..116).find(|blob| digest(*blob) == lease).unwrap();
    let next = asks(&mut plan, now, blob, &[0, 3]);
    assert!(next.contains(&(host(3), lease)), "{next:?}");
    assert_eq!(leases_of(&plan, 0), 1);
}

#[test]
fn a_trial_ends_with_time_and_each_one_lasts_longer() {
    let (mut plan, now) = on_trial();
    for blob in 100..116 {
        feed(&mut plan, now, Event::Cancelled(image(blob)));
    }
    feed(&mut plan, now + 59_000, Event::Tick);
    assert!(on_trial_at(&plan, plan.clock.now(), 0));
    feed(&mut plan, now + 60_000, Event::Tick);
    assert!(!on_trial_at(&plan, plan.clock.now(), 0));
    // two leases that run out at the same time count once
    wants(&mut plan, now + 61_000, 100..116, &[0]);
    feed(&mut plan, now + 71_000, Event::Tick);
    feed(&mut plan, now + 71_000 + 4 * 60_000, Event::Tick);
    assert!(on_trial_at(&plan, plan.clock.now(), 0));
}

#[test]
fn what_a_host_brought_nothing_of_is_forgotten_when_others_get_something() {
    let (mut plan, now) = on_trial();
    feed(&mut plan, now, Event::HostForgotten(host(3)));
    // only two hosts on trial want the blob
    let record = |plan: &Plan, number: usize| on_trial_at(plan, at(now), number);
    wants(&mut plan, now, 200..202, &[1]);
    feed(&mut plan, now + 10_500, Event::Tick);
    assert!(record(&plan, 0) && record(&plan, 1));
    let lease = plan.status(plan.clock.now()).leases;
    let lease = lease.iter().find(|lease| lease.host == host(0)).unwrap();
    let lease = lease.content;
    let blob = (100..116).find(|blob| digest(*blob) == lease).unwrap();
    asks(&mut plan, now + 10_600, blob, &[0, 1]);
    feed(&mut plan, now + 11_000, progress(&host(0), lease, 3));
    let holds = Event::Holds {
        host: host(1),
        contents: vec![(lease, 2)],
    };
    feed(&mut plan, now + 11_100, holds);
    feed(&mut plan, now + 11_600, Event::Tick);
    assert!(!record(&plan, 0) && record(&plan, 1));
}

#[test]
fn a_client_whose_registry_is_dead_puts_its_host_behind_others_and_not_on_trial() {
    let mut plan = fleet(2);
    let held = asks(&mut plan, 2_000, 1, &[0]);
    let failed = ended(&held[0].0, digest(1), LeaseEnd::OriginFailed);
    feed(&mut plan, 2_100, failed);
    for blob in 2..8 {
        let next = asks(&mut plan, 2_200, blob, &[1, 0]);
        if let Some((holder, content)) = next.first() {
            assert_eq!(*holder, host(1));
            feed(&mut plan, 2_300, ended(holder, *content, LeaseEnd::Done));
        }
    }
    assert!(!on_trial_at(&plan, plan.clock.now(), 0));
    // for images, the host is as good as any other
    assert_eq!(plan.records.failures(&host(0)), 0);
}

#[test]
fn a_host_that_says_it_fetched_what_nobody_gets_is_on_trial() {
    let (mut plan, now) = on_trial();
    let first = asks(&mut plan, now, 1, &[1, 2, 3]);
    let liar = (1..4).find(|number| host(*number) == first[0].0).unwrap();
    feed(&mut plan, now, Event::Tick);
    feed(
        &mut plan,
        now + 500,
        ended(&host(liar), digest(1), LeaseEnd::Done),
    );
    let mut next = Vec::new();
    for step in 1..20 {
        next.extend(grants(&feed(
            &mut plan,
            now + 500 + step * 500,
            Event::Tick,
        )));
    }
    let others = next
        .iter()
        .filter(|(id, of)| *id != host(liar) && *of == digest(1));
    assert_eq!(others.count(), 1, "{next:?}");
    assert!(on_trial_at(&plan, plan.clock.now(), liar));
}

#[test]
fn a_mirrors_word_about_a_size_holds_up_no_image() {
    let mut plan = fleet(4);
    let mut lie = asked(9, 5, &[0]);
    if let Event::Wanted { contents, .. } = &mut lie {
        (contents[0].size, contents[0].chunks) = (1, 1);
    }
    feed(&mut plan, 2_000, lie);
    let held = grants(&feed(&mut plan, 2_000, report(0, 9, Standing::Staging, 0)));
    assert_eq!(held, [(host(0), digest(5))]);
    let next = want(&mut plan, 3_000, wanted(1, [5], Selection::All));
    let revoked =
        |action: &Action| matches!(action, Action::Revoke { host: of, .. } if *of == host(0));
    assert!(next.iter().any(revoked), "{next:?}");
    assert_eq!(grants(&next).len(), 1);
    assert_eq!(plan.size_of(&digest(5)).unwrap(), 100 << 20);
    assert!(!plan.status(at(3_000)).images.iter().any(|image| {
        image.image == super::image(1)
            && matches!(
                image.reason,
                Some(ImageReason::Contradicts(_) | ImageReason::AwaitingTurn)
            )
    }));
}

#[test]
fn what_a_host_says_of_leases_that_it_never_had_moves_nothing() {
    let mut plan = fleet(4);
    let first = grants(&want(&mut plan, 2_000, wanted(0, [1], Selection::All)));
    let holder = &first[0].0;
    let other = (0..4).map(host).find(|id| id != holder).unwrap();
    assert!(plan.holds_lease(holder, &digest(1)) && !plan.holds_lease(&other, &digest(1)));
    feed(
        &mut plan,
        2_100,
        Event::Holds {
            host: other.clone(),
            contents: Vec::new(),
        },
    );
    for end in [
        LeaseEnd::Released,
        LeaseEnd::HostUnable,
        LeaseEnd::Done,
        LeaseEnd::Faulty(Fault::Missing),
    ] {
        assert_eq!(feed(&mut plan, 2_200, ended(&other, digest(1), end)), []);
        assert!(
            !plan.effects.is_asked_for_grants()
                && plan.contents.get(&digest(1)).unwrap().tries().none_failed()
        );
    }
    // a host may take back what it made of a content only a few times
    assert!(plan.takes_retraction(at(2_300), &other, &digest(1)));
    assert!(!plan.takes_retraction(at(2_300), &other, &digest(2)));
    let retraction = || Event::Retracted {
        host: other.clone(),
        content: digest(1),
        from: 0,
    };
    let told: usize = (0..40)
        .map(|_| feed(&mut plan, 2_400, retraction()).len())
        .sum();
    assert_eq!(told, 16);
    assert!(!plan.takes_retraction(at(2_500), &other, &digest(1)));
    let later = at(2_400) + Duration::from_hours(1);
    assert!(plan.takes_retraction(later, &other, &digest(1)));
}

#[test]
fn a_mirror_has_a_lease_although_staging_has_them_all_and_then_half() {
    let mut plan = fleet(10);
    let staged = grants(&want(&mut plan, 2_000, wanted(0, 0..12, Selection::All)));
    assert_eq!(staged.len(), 4);
    // the second blob has to wait
    let first = grants(&want(&mut plan, 2_100, asked(1, 20, &[1, 2])));
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].1, digest(20));
    assert_eq!(grants(&want(&mut plan, 2_200, asked(2, 21, &[1, 2]))), []);
    assert_eq!(grants(&want(&mut plan, 2_300, asked(3, 22, &[1, 2]))), []);
    // five leases run, so two must end before one can begin
    let mut next = |by: &HostId, content: Digest| {
        grants(&feed(&mut plan, 2_400, ended(by, content, LeaseEnd::Done)))
    };
    assert_eq!(next(&staged[0].0, digest(0)), []);
    let second = next(&staged[1].0, digest(1));
    assert_eq!(second.len(), 1);
    assert_eq!(second[0].1, digest(21));
    let third = next(&first[0].0, digest(20));
    assert_eq!(third[0].1, digest(22));
    // images and mirrors have two leases each; where no mirror wants more, images get the rest
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
        // from now on, the content is wanted for an image too
        want(&mut plan, 2_100, wanted(0, [5, 6], Selection::All));
        let next = grants(&feed(&mut plan, 3_000, ended(&first[0].0, digest(5), end)));
        assert_eq!(next, [(host(0), digest(5))], "{end:?}");
        let status = plan.status(at(3_000));
        assert_eq!(status.images[1].origin_retry_in, None);
        let bad =
            |reason: &Option<ImageReason>| matches!(reason, Some(ImageReason::ContentFaulty(..)));
        assert!(!status.images.iter().any(|image| bad(&image.reason)));
        assert_eq!(plan.records.failures(&host(0)), 0);
        // a fault that a lease for an image finds counts as usual
        feed(&mut plan, 3_100, ended(&host(0), digest(5), end));
        let status = plan.status(at(3_100));
        let noted = plan.contents.get(&digest(5)).unwrap().tries().is_away()
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
    // nothing more comes, so waiting in the queue is no longer worth it
    feed(&mut plan, 31_000 + 9_999, Event::Tick);
    assert!(waits(&plan, 6));
    feed(&mut plan, 31_000 + 10_000, Event::Tick);
    assert!(!waits(&plan, 6));
    // the content is complete on some host: other hosts get it from there
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
    // the mirror's client went away
    let back = ended(&first[0].0, digest(5), LeaseEnd::Released);
    let second = grants(&feed(&mut plan, 2_100, back));
    assert_eq!(second.len(), 1);
    assert_ne!(second[0].0, first[0].0);
}

#[test]
fn hosts_that_give_every_lease_back_at_once_have_few_and_hold_up_nobody_else() {
    for purpose in [Purpose::Mirror, Purpose::Stage] {
        let mut plan = fleet(3);
        let mut order = asked(1, 5, &[0, 1]);
        if let Event::Wanted { purpose: of, .. } = &mut order {
            *of = purpose;
        }
        let mut next = grants(&want(&mut plan, 2_000, order));
        let mut had = 0;
        for millis in 2_000..12_000 {
            had += next.len();
            let back = next.into_iter();
            let back = back.map(|(id, of)| ended(&id, of, LeaseEnd::Released));
            let actions = back.flat_map(|end| feed(&mut plan, millis, end));
            next = grants(&actions.collect::<Vec<_>>());
            next.extend(grants(&feed(&mut plan, millis, Event::Tick)));
        }
        // each of the two at once, and after one, two and four seconds
        assert_eq!(had, 8, "{purpose:?}");
        // another host has it at once
        let mut order = asked(1, 5, &[0, 1, 2]);
        if let Event::Wanted { purpose: of, .. } = &mut order {
            *of = purpose;
        }
        let other = grants(&want(&mut plan, 12_000, order));
        assert_eq!(other, [(host(2), digest(5))], "{purpose:?}");
    }
}
