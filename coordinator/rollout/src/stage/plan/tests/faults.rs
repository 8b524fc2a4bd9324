//! Tests of contents that can't be had from a registry that answers.

use super::*;

/// How a lease of a content ends in [`run_fleet`], by host and content.
type Behaviour = fn(usize, usize, Digest) -> Option<LeaseEnd>;

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
    // ordering the image for other hosts changes nothing; asking for it anew does
    assert_eq!(
        grants(&want(&mut plan, 5_000, wanted(0, [0], Selection::All))).len(),
        0
    );
    assert_eq!(
        grants(&feed(&mut plan, 6_000, Event::Urged(image(0)))).len(),
        1
    );
}

/// Lets a fleet fetch for `seconds`. Each lease ends after four seconds with the content, or at once as `behaves` says.
/// Returns when each content first came, and which hosts asked for which contents.
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
        let status = plan.status(plan.clock.now());
        assert_eq!(
            status.images[0].reason,
            Some(ImageReason::ContentFaulty(digest(0), fault))
        );
        assert_eq!(status.images[0].origin_retry_in, None);
        // the content is tried again slowly: after 1, 2, 4, 8 and then every 10 minutes
        let of_it = requests.iter().filter(|(_, content)| *content == digest(0));
        let of_it = of_it.count();
        assert!((8..=12).contains(&of_it), "{of_it}");
        // asking for the image anew tries the content at once
        let now = plan.clock.now().0 / 1_000 + 250;
        let at_once = grants(&feed(&mut plan, now, Event::Urged(image(0))));
        assert!(at_once.iter().any(|(_, content)| *content == digest(0)));
    }
}

/// The registry gives no parts of contents, and its connections end early. So each try costs nearly the whole content
/// and brings nothing new. Any hour costs at most three times the content, whichever hosts try.
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
                // for a while, chunks come that other hosts lack; that proves nothing about the content's end
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
        let status = plan.status(plan.clock.now());
        let reason = status.images[0].reason;
        assert_eq!(
            reason,
            Some(ImageReason::ContentFaulty(digest(0), Fault::CutShort))
        );
        // asking anew tries at once
        assert_eq!(
            grants(&feed(&mut plan, 12 * 3_600_000, Event::Urged(image(0)))).len(),
            1
        );
    }
}

#[test]
fn a_content_that_always_fails_in_a_registry_that_runs_holds_up_no_other() {
    // every host gets status 500 for one content of image 0
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
        plan.status(plan.clock.now()).images[0].reason,
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
    // two of ten hosts have an unreadable password file
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
    // where no host can ask, the hosts failed and not the registry
    let mut plan = fleet(2);
    run_fleet(&mut plan, &order, 10, |_, _, _| Some(LeaseEnd::HostUnable));
    let status = &plan.status(plan.clock.now()).images[0];
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
        let images = plan.status(plan.clock.now()).images;
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
