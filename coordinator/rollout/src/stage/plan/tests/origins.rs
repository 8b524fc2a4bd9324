//! Tests of registries that fail one content, or one repository, and give everything else.

use super::*;

/// A registry's answer to a lease.
enum Answer {
    /// The content comes within four seconds.
    Gives,
    /// The lease ends at once.
    Ends(LeaseEnd),
    /// The holder reports this trouble once a second.
    Says(Trouble),
    /// Nothing comes, and the holder says nothing.
    Nothing,
}

type Answers = dyn Fn(u64, Digest) -> Answer;

/// The name of a kind of answer, and a function that makes one.
type Kind = (&'static str, fn() -> Answer);

/// When each content first came, and which contents were asked for at which moments.
#[derive(Default)]
struct Seen {
    came: BTreeMap<Digest, u64>,
    asked: Vec<(u64, HostId, Digest)>,
}

/// An order of an image of the named repository.
fn of(repository: &str, number: usize, contents: core::ops::Range<usize>) -> Event {
    let mut order = wanted(number, contents, Selection::All);
    if let Event::Wanted { references, .. } = &mut order {
        *references = vec![format!("registry.example/{repository}:{number}")];
    }
    order
}

fn serve(plan: &mut Plan, orders: &[(u64, Event)], seconds: u64, answers: &Answers) -> Seen {
    let mut leases: BTreeMap<Digest, (HostId, u64)> = BTreeMap::new();
    let mut seen = Seen::default();
    for millis in (2_000..2_000 + seconds * 1_000).step_by(250) {
        let mut actions = Vec::new();
        for (_, order) in orders.iter().filter(|(when, _)| *when == millis) {
            actions.extend(want(plan, millis, order.clone()));
        }
        for (content, (by, since)) in leases.clone() {
            // the answer to an earlier lease may have ended this one
            let past = millis - since;
            match answers(millis, content) {
                Answer::Gives if past >= 4_000 => {
                    leases.remove(&content);
                    seen.came.entry(content).or_insert(millis);
                    actions.extend(feed(plan, millis, ended(&by, content, LeaseEnd::Done)));
                }
                Answer::Gives => {
                    let chunks = u32::try_from(past / 250).unwrap();
                    actions.extend(feed(plan, millis, progress(&by, content, chunks)));
                }
                Answer::Ends(end) => {
                    leases.remove(&content);
                    actions.extend(feed(plan, millis, ended(&by, content, end)));
                }
                Answer::Says(trouble) if past > 0 && past % 1_000 == 0 => {
                    let says = running(&by, content, 0, Some(trouble));
                    actions.extend(feed(plan, millis, says));
                }
                Answer::Says(_) | Answer::Nothing => {}
            }
        }
        actions.extend(feed(plan, millis, Event::Tick));
        for action in actions {
            match action {
                Action::Grant { host, content, .. } => {
                    seen.asked.push((millis, host.clone(), content));
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
    seen
}

const WISH: Duration = Duration::from_secs(600);

/// Each kind of answer by which a registry gives nothing.
fn troubles() -> [Kind; 5] {
    [
        ("throttled", || Answer::Says(Trouble::Throttled(WISH))),
        ("failing", || Answer::Says(Trouble::Failing)),
        ("silent", || Answer::Says(Trouble::Silent)),
        ("ends", || Answer::Ends(LeaseEnd::OriginFailed)),
        ("nothing", || Answer::Nothing),
    ]
}

/// The seconds that the four contents of an image took to come. The image is wanted after 20 s.
fn healthy(seen: &Seen) -> u64 {
    let last = (100..104).map(|content| seen.came.get(&digest(content)).copied());
    let last = last.map(|at| at.unwrap_or(u64::MAX)).max().unwrap();
    (last.saturating_sub(20_000)) / 1_000
}

#[test]
fn what_one_content_gets_holds_up_no_other_image_of_its_registry() {
    for (name, trouble) in troubles() {
        for repository in ["bad", "good"] {
            let answers = move |_, content| match content == digest(0) {
                true => trouble(),
                false => Answer::Gives,
            };
            let orders = [
                (2_000, of("bad", 0, 0..3)),
                (20_000, of(repository, 1, 100..104)),
            ];
            let mut plan = fleet(4);
            let seen = serve(&mut plan, &orders, 60, &answers);
            // alone, the image takes four seconds; here three leases are left for it
            let took = healthy(&seen);
            assert!(took <= 4 + 5, "{name}, in {repository}: {took} s");
        }
    }
}

#[test]
fn what_one_repository_gets_holds_up_no_other_of_its_registry() {
    for (name, trouble) in troubles() {
        let answers = move |_, content| match (0..8).any(|number| content == digest(number)) {
            true => trouble(),
            false => Answer::Gives,
        };
        let orders = [
            (2_000, of("bad", 0, 0..8)),
            (20_000, of("good", 1, 100..104)),
        ];
        let seen = serve(&mut fleet(4), &orders, 120, &answers);
        // silent holders may be liars, so their failures don't count for the repository
        let took = healthy(&seen);
        assert!(took <= 4 + 5 || name == "nothing", "{name}: {took} s");
    }
}

#[test]
fn a_registry_that_gives_nothing_of_many_repositories_is_asked_by_few() {
    for (name, trouble) in troubles() {
        let orders: Vec<_> = (0..6)
            .map(|at| (2_000, of(&format!("of-{at}"), at, at * 10..at * 10 + 4)))
            .collect();
        // an outage of ten minutes, and then everything comes
        let answers = move |millis, _| match millis < 602_000 {
            true => trouble(),
            false => Answer::Gives,
        };
        let mut plan = fleet(6);
        let seen = serve(&mut plan, &orders, 700, &answers);
        let asked = |from: u64, to: u64| {
            let within = |at: &&(u64, HostId, Digest)| (from..to).contains(&at.0);
            seen.asked.iter().filter(within).count()
        };
        let (all, late) = (asked(2_000, 602_000), asked(302_000, 602_000));
        std::println!("{name}: {all} requests in ten minutes, {late} in the second five");
        if name != "nothing" {
            assert!(all <= 120 && late <= 40, "{name}: {all}, {late}");
        }
        // 24 contents of four seconds, four at a time, after the pause before the first
        let last = seen.came.values().max().copied().unwrap_or(u64::MAX);
        assert_eq!(seen.came.len(), 24, "{name}");
        assert!(last <= 602_000 + 100_000, "{name}: {last}");
        let failed = |image: &crate::stage::status::ImageStatus| {
            matches!(image.reason, Some(ImageReason::ContentFaulty(..)))
        };
        assert!(
            !plan.status(plan.clock.now()).images.iter().any(failed),
            "{name}"
        );
    }
}

/// One layer of an image hangs, breaks off or is answered with errors. Meanwhile, an image of another repository comes
/// every half minute.
#[test]
fn a_content_that_fails_while_its_registry_gives_others_fails_its_image_by_name() {
    for (name, trouble) in troubles()
        .into_iter()
        .filter(|(name, _)| *name != "throttled")
    {
        for hosts in [1, 2, 10] {
            let answers = move |_, content| match content == digest(0) {
                true => trouble(),
                false => Answer::Gives,
            };
            let others = (1..9).map(|at: usize| {
                let order = of("good", at, at * 100..at * 100 + 2);
                (20_000 * u64::try_from(at).unwrap(), order)
            });
            let mut orders: Vec<_> = others.collect();
            orders.push((2_000, of("bad", 0, 0..3)));
            let mut plan = fleet(hosts);
            let seen = serve(&mut plan, &orders, 3_600, &answers);
            assert_eq!(
                plan.status(plan.clock.now()).images[0].reason,
                Some(ImageReason::ContentFaulty(digest(0), Fault::Unavailable)),
                "{name}, {hosts} hosts"
            );
            // the content is tried again slowly
            let late = seen
                .asked
                .iter()
                .filter(|(at, _, content)| *at > 600_000 && *content == digest(0));
            let late = late.count();
            assert!((4..=7).contains(&late), "{name}, {hosts} hosts: {late}");
            // asking anew tries at once
            let now = plan.clock.now().0 / 1_000 + 250;
            feed(&mut plan, now, Event::Urged(image(0)));
            let failed = plan.status(plan.clock.now()).images[0].reason;
            assert!(!matches!(failed, Some(ImageReason::ContentFaulty(..))));
        }
    }
}

/// A registry gives something, is away for minutes, and gives something for a moment in between.
#[test]
fn an_outage_fails_no_image_by_name() {
    for (name, trouble) in troubles() {
        let answers = move |millis: u64, _| match millis {
            10_000..150_000 | 160_000..400_000 => trouble(),
            _ => Answer::Gives,
        };
        let orders = [
            (2_000, of("one", 0, 0..12)),
            (2_000, of("two", 1, 100..112)),
        ];
        let mut plan = fleet(4);
        let seen = serve(&mut plan, &orders, 398, &answers);
        for image in plan.status(plan.clock.now()).images {
            let failed = matches!(image.reason, Some(ImageReason::ContentFaulty(..)));
            assert!(!failed, "{name}: {image:?}");
        }
        let asked = seen.asked.len();
        assert!(asked <= 80 || name == "nothing", "{name}: {asked} requests");
    }
}
