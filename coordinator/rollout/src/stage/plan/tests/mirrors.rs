//! A host that wants blobs for its mirror's clients and brings nothing: what that costs the others.

use super::*;

/// The blobs that host 0 wants, each alone or with others.
fn wants(plan: &mut Plan, millis: u64, blobs: core::ops::Range<usize>, hosts: &[usize]) {
    for blob in blobs {
        asks(plan, millis, blob, hosts);
    }
}

/// These hosts' clients wait for a blob; returns who is leased it now.
fn asks(plan: &mut Plan, millis: u64, blob: usize, hosts: &[usize]) -> Vec<(HostId, Digest)> {
    let mut actions = feed(plan, millis, asked(blob, blob, hosts));
    for number in hosts {
        let said = report(*number, blob, Standing::Staging, 0);
        actions.extend(feed(plan, millis, said));
    }
    grants(&actions)
}

fn held_by(plan: &Plan, number: usize) -> usize {
    let status = plan.status(plan.now);
    let leases = status.leases.iter();
    leases.filter(|lease| lease.host == host(number)).count()
}

/// A plan of four hosts that say what they hold. The first one wants 16 blobs, and has let its leases run out.
fn on_trial() -> (Plan, u64) {
    let mut plan = fleet(4);
    for number in 0..4 {
        let contents = Vec::new();
        let host = host(number);
        feed(&mut plan, 1_500, Event::Holds { host, contents });
    }
    wants(&mut plan, 2_000, 100..116, &[0]);
    assert_eq!(held_by(&plan, 0), 2, "half of the leases");
    for millis in (2_500..12_500).step_by(500) {
        feed(&mut plan, millis, Event::Tick);
    }
    (plan, 12_500)
}

#[test]
fn one_hosts_wants_have_half_of_the_leases_and_one_when_they_bring_nothing() {
    let mut plan = fleet(4);
    wants(&mut plan, 2_000, 100..164, &[0]);
    assert_eq!(held_by(&plan, 0), 2);
    // others don't wait for those
    assert_eq!(asks(&mut plan, 2_100, 1, &[1]), [(host(1), digest(1))]);
    assert_eq!(asks(&mut plan, 2_200, 2, &[2]), [(host(2), digest(2))]);
    let mut most = 0;
    for millis in (2_500..60_000).step_by(500) {
        feed(&mut plan, millis, Event::Tick);
        if millis > 12_500 {
            most = most.max(held_by(&plan, 0));
        }
    }
    assert_eq!(most, 1);
}

#[test]
fn what_others_want_too_goes_to_them_and_a_host_on_trial_takes_nobodys_place() {
    let (mut plan, now) = on_trial();
    assert_eq!(held_by(&plan, 0), 1);
    let first = asks(&mut plan, now, 1, &[0, 1]);
    assert_eq!(first, [(host(1), digest(1))]);
    for (blob, other) in [(2, 2), (3, 3), (4, 1)] {
        let next = asks(&mut plan, now, blob, &[0, other]);
        assert_eq!(next, [(host(other), digest(blob))]);
    }
    // four run beside the one on trial: the next blob waits for one of them, and isn't given to whoever is on trial
    assert_eq!(asks(&mut plan, now, 5, &[0, 2]), []);
    assert_eq!((plan.leases, held_by(&plan, 0)), (5, 1));
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
    assert_eq!(held_by(&plan, 0), 1);
}

#[test]
fn a_trial_ends_with_time_and_each_one_lasts_longer() {
    let (mut plan, now) = on_trial();
    for blob in 100..116 {
        feed(&mut plan, now, Event::Cancelled(image(blob)));
    }
    feed(&mut plan, now + 59_000, Event::Tick);
    assert!(plan.is_on_trial(&host(0)));
    feed(&mut plan, now + 60_000, Event::Tick);
    assert!(!plan.is_on_trial(&host(0)));
    // that two leases ran out beside each other counts once
    wants(&mut plan, now + 61_000, 100..116, &[0]);
    feed(&mut plan, now + 71_000, Event::Tick);
    feed(&mut plan, now + 71_000 + 4 * 60_000, Event::Tick);
    assert!(plan.is_on_trial(&host(0)));
}

#[test]
fn what_a_host_brought_nothing_of_is_forgotten_when_others_get_something() {
    let (mut plan, now) = on_trial();
    feed(&mut plan, now, Event::HostForgotten(host(3)));
    // two on trial are all that want it
    let record = |plan: &mut Plan, number: usize| {
        let host = plan.hosts.get_mut(&host(number)).unwrap();
        host.mirror_yield.is_on_trial(at(now))
    };
    wants(&mut plan, now, 200..202, &[1]);
    feed(&mut plan, now + 10_500, Event::Tick);
    assert!(record(&mut plan, 0) && record(&mut plan, 1));
    let lease = plan.status(plan.now).leases;
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
    assert!(!record(&mut plan, 0) && record(&mut plan, 1));
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
    assert!(!plan.is_on_trial(&host(0)));
    // for images it is as good as any
    assert_eq!(plan.hosts[&host(0)].failures, 0);
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
    assert!(plan.is_on_trial(&host(liar)));
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
    assert_eq!(plan.contents[&digest(5)].size, 100 << 20);
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
        assert!(!plan.grant_wanted && plan.contents[&digest(1)].tried.is_empty());
    }
    // and takes back what it made of a content only a few times
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
