use core::time::Duration;

use super::{
    super::stand::{Stand, content, host, image},
    *,
};

/// The host, content and image of each lease that would be granted now.
fn granted(stand: &Stand) -> Vec<(HostId, Digest, Digest)> {
    let grants = next(stand.view()).into_iter();
    grants
        .map(|grant| (grant.host, grant.content, grant.image))
        .collect()
}

#[test]
fn contents_are_granted_in_order_to_different_hosts_while_there_is_room() {
    let mut stand = Stand::new(8);
    stand.want(0, &[0, 1, 2, 3, 4, 5]);
    let grants = granted(&stand);
    let contents: Vec<Digest> = grants.iter().map(|(_, of, _)| *of).collect();
    assert_eq!(contents, [0, 1, 2, 3].map(content));
    let hosts: BTreeSet<&HostId> = grants.iter().map(|(id, ..)| id).collect();
    assert_eq!(hosts.len(), 4);
}

#[test]
fn what_is_leased_held_or_resting_is_not_granted() {
    let mut stand = Stand::new(4);
    stand.want(0, &[0, 1, 2, 3]);
    stand.lease(1, 0, 0);
    let now = stand.now;
    stand
        .contents
        .each([content(1)], |of| of.claim(now, &host(2)));
    let config = stand.config.clone();
    stand.contents.each([content(2)], |of| {
        of.tries_mut()
            .leave_alone(now, (&host(3), now), false, &config);
    });
    let contents: Vec<Digest> = granted(&stand).iter().map(|(_, of, _)| *of).collect();
    assert_eq!(contents, [content(3)]);
}

#[test]
fn of_images_and_mirrors_each_has_half_and_a_mirror_has_one_lease_in_any_case() {
    let mut stand = Stand::new(8);
    stand.want(0, &[0, 1, 2, 3, 4]);
    for blob in 10..15 {
        stand.ask(blob, blob);
    }
    let of_images = |stand: &Stand| {
        let grants = granted(stand);
        let images = grants.iter().filter(|(_, _, of)| *of == image(0));
        (images.count(), grants.len())
    };
    assert_eq!(of_images(&stand), (2, 4));
    // images had all leases before a mirror asked
    for lease in 0..4 {
        stand.lease(lease + 1, lease, 0);
    }
    assert_eq!(of_images(&stand), (0, 1));
}

#[test]
fn a_host_on_trial_has_one_blob_at_a_time_that_nobody_else_wants() {
    let mut stand = Stand::new(2);
    stand.ask(10, 10);
    stand.ask(11, 11);
    let now = stand.now;
    stand.records.mirror_expired(now, &host(1), now);
    // the other host gets half of the leases, and the host on trial none of them
    let hosts =
        |stand: &Stand| -> Vec<HostId> { granted(stand).into_iter().map(|(id, ..)| id).collect() };
    assert_eq!(hosts(&stand), [host(2), host(2)]);
    stand.records.mirror_expired(now, &host(2), now);
    let mut both = hosts(&stand);
    both.sort_unstable();
    assert_eq!(both, [host(1), host(2)]);
}

#[test]
fn leases_whose_trial_is_over_keep_the_places_of_trials() {
    let mut stand = Stand::new(20);
    let now = stand.now;
    for number in 1..=20 {
        stand.ask(number + 100, number + 100);
        stand.records.mirror_expired(now, &host(number), now);
    }
    let streams = stand.config.origin_streams;
    let mut counts = Vec::new();
    for _ in 0..4 {
        for (id, of, _) in granted(&stand) {
            let number = (1..=20).find(|number| host(*number) == id).unwrap();
            let blob = (101..=120).find(|blob| content(*blob) == of).unwrap();
            stand.lease(number, blob, blob);
            // others got something of it, but the blob isn't whole
            stand.leases.of_mut(&of, &id).unwrap().see(now, 1 << 20);
        }
        counts.push(stand.leases.len());
    }
    assert_eq!(
        counts,
        [streams, 2 * streams, 2 * streams + 1, 2 * streams + 1]
    );
}

#[test]
fn who_failed_was_false_or_cannot_ask_comes_after_the_others() {
    let config = crate::stage::Config::default();
    type Spoil = fn(&mut Stand, &HostId, &crate::stage::Config);
    let spoils: [(&str, Spoil); 5] = [
        ("its link was false", |stand, id, config| {
            stand.hosts.put_last(stand.now, id, config);
        }),
        ("its lease failed", |stand, id, _| {
            stand
                .contents
                .each([content(0)], |of| of.tries_mut().fail(id));
        }),
        ("its other leases failed", |stand, id, _| {
            stand.records.fail(id)
        }),
        ("it can't ask", |stand, id, config| {
            let now = stand.now;
            stand.records.unable(now, id, "registry.example", config);
        }),
        ("it came just now", |stand, id, _| {
            stand.hosts.disconnect(stand.now, id);
            stand.hosts.connect(stand.now, id);
        }),
    ];
    for (why, spoil) in spoils {
        let mut stand = Stand::new(4);
        stand.want(0, &[0]);
        let first = granted(&stand)[0].0.clone();
        spoil(&mut stand, &first, &config);
        let second = granted(&stand)[0].0.clone();
        assert_ne!(second, first, "{why}");
        // where all hosts are alike, the spoiled host is as good as any, unless it can't ask the registry
        let others: Vec<HostId> = stand
            .hosts
            .ids()
            .filter(|id| **id != first)
            .cloned()
            .collect();
        for id in &others {
            spoil(&mut stand, id, &config);
        }
        let left = granted(&stand).first().map(|(id, ..)| id.clone());
        let expected = (why != "it can't ask").then_some(first);
        assert_eq!(left, expected, "{why}");
    }
}

#[test]
fn after_a_failure_one_lease_tries_a_repository_and_others_are_asked_all_the_same() {
    let mut stand = Stand::new(8);
    stand.want(0, &[0, 1, 2]);
    stand.want(1, &[3, 4]);
    stand.lease(1, 0, 0);
    stand.end(content(0));
    let now = stand.now;
    let repository = super::super::stand::repository(0);
    let origin = stand.origins.get_mut("registry.example").unwrap();
    let until = now + Duration::from_secs(1);
    origin.leave_alone(now, &repository, Some(until));
    let images = |stand: &Stand| -> Vec<Digest> {
        granted(stand).into_iter().map(|(_, _, of)| of).collect()
    };
    assert_eq!(images(&stand), [image(1), image(1)]);
    stand.now = until;
    assert_eq!(images(&stand), [image(0), image(1), image(1)]);
    // the probe asks for the content that wasn't asked for yet
    let probe = granted(&stand)[0].1;
    assert_eq!(probe, content(1));
}

#[test]
fn a_second_lease_for_one_host_waits_while_others_are_about_to_say_that_they_stage() {
    let mut stand = Stand::new(3);
    stand.want(0, &[0, 1]);
    // the image was wanted 30 s ago; a moment before the hosts' time is over, one of them hasn't reported
    let late = stand.now - Duration::from_secs(30) + stand.config.reports_within;
    let early = late - Duration::from_micros(1);
    for number in [2, 3] {
        stand.hosts.disconnect(early, &host(number));
    }
    stand
        .hosts
        .know(early, &host(4), alloc::string::String::new());
    stand.hosts.connect(early, &host(4));
    stand.now = early;
    assert_eq!(granted(&stand).len(), 1);
    stand.now = late;
    assert_eq!(granted(&stand).len(), 2);
}

#[test]
fn the_image_that_hosts_finish_first_gets_all_leases_while_it_has_something_to_lease() {
    let mut stand = Stand::new(8);
    stand.want(0, &[0, 1, 2, 3, 4]);
    stand.want(1, &[10, 11, 12, 13, 14]);
    stand.rank(0, 0, &[]);
    stand.rank(1, 1, &[]);
    let of = |stand: &Stand| -> Vec<Digest> { granted(stand).into_iter().map(|of| of.2).collect() };
    assert_eq!(of(&stand), [1, 1, 1, 1].map(image));
    // hosts hold all but one of its contents
    let now = stand.now;
    for held in 11..15 {
        let claim = |of: &mut ContentState| of.claim(now, &host(2));
        stand.contents.each([content(held)], claim);
    }
    assert_eq!(of(&stand), [1, 0, 0, 0].map(image), "no stream is idle");
    // the order changes
    stand.rank(0, 2, &[]);
    assert_eq!(of(&stand), [0, 0, 0, 0].map(image));
}

#[test]
fn images_that_are_first_on_different_hosts_share_the_leases() {
    let mut stand = Stand::new(8);
    stand.want(0, &[0, 1, 2, 3, 4]);
    stand.want(1, &[10, 11, 12, 13, 14]);
    stand.want(2, &[20, 21, 22, 23, 24]);
    for number in 0..3 {
        stand.rank(number, 0, &[]);
    }
    stand.rank(2, 0, &[5]);
    let of = |stand: &Stand| -> Vec<Digest> { granted(stand).into_iter().map(|of| of.2).collect() };
    assert_eq!(of(&stand), [0, 2, 0, 2].map(image));
    // a lease that runs counts
    stand.lease(1, 0, 0);
    stand.lease(2, 1, 0);
    assert_eq!(of(&stand), [2, 2].map(image));
}

#[test]
fn a_later_image_waits_while_hosts_are_about_to_say_that_they_stage_the_first() {
    let mut stand = Stand::new(2);
    stand.want(1, &[10, 11]);
    stand.want(0, &[0, 1]);
    stand.rank(0, 1, &[]);
    stand.rank(1, 0, &[]);
    let of = |stand: &Stand| -> Vec<Digest> { granted(stand).into_iter().map(|of| of.2).collect() };
    let before = of(&stand);
    assert_eq!(before, [0, 0, 1, 1].map(image));
    stand.want_now(0, &host(1));
    assert_eq!(
        of(&stand),
        [0].map(image),
        "the other host may take the next one"
    );
}
