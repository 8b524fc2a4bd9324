use proptest::prelude::*;

use super::*;

fn image(number: u8) -> Digest {
    Digest::of(&[number])
}

fn at(milliseconds: u64) -> Moment {
    Moment::START + Duration::from_millis(milliseconds)
}

fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn table(names: &[(&str, Digest)]) -> BTreeMap<String, Digest> {
    let names = names.iter();
    names
        .map(|(name, image)| (name.to_string(), *image))
        .collect()
}

fn look(names: &[(&str, Digest)]) -> Look {
    let names = names.iter();
    Look {
        names: names
            .map(|(name, image)| (name.to_string(), Sight::Image(*image)))
            .collect(),
    }
}

fn begin(names: &[&str]) -> Job {
    Job::Begin(texts(names))
}

/// All jobs that are due.
fn jobs(reconciler: &mut Reconciler, now: Moment) -> Vec<(Digest, Job)> {
    std::iter::from_fn(|| reconciler.next(now)).collect()
}

/// Looks if that is due.
fn glance(reconciler: &mut Reconciler, names: &[(&str, Digest)], now: Moment) {
    assert!(reconciler.look_due());
    reconciler.look_begins();
    reconciler.looked(&look(names), now);
}

/// An image that was installed under these names, as a look has shown.
fn installed(names: &[&str]) -> (Reconciler, Digest) {
    let (mut reconciler, a) = (Reconciler::default(), image(1));
    reconciler.order(a, &texts(names), at(0));
    assert_eq!(
        jobs(&mut reconciler, at(0)),
        [(a, Job::Begin(texts(names)))]
    );
    assert!(reconciler.begun(a));
    reconciler.have(a, Have::Filling);
    let record = Job::Record(texts(names));
    assert_eq!(jobs(&mut reconciler, at(0)), [(a, record)]);
    reconciler.recorded(a, true, at(0));
    reconciler.have(a, Have::Whole);
    assert_eq!(
        jobs(&mut reconciler, at(0)),
        [],
        "what the names name isn't known"
    );
    glance(&mut reconciler, &[], at(0));
    assert_eq!(
        jobs(&mut reconciler, at(0)),
        [(a, Job::Install(texts(names)))]
    );
    reconciler.installed(a, true);
    reconciler.have(a, Have::Installed);
    assert!(!reconciler.is_present(&a), "nobody looked yet");
    let seen: Vec<_> = names.iter().map(|name| (*name, a)).collect();
    glance(&mut reconciler, &seen, at(0));
    assert_eq!(jobs(&mut reconciler, at(0)), []);
    assert!(reconciler.is_present(&a) && !reconciler.look_due());
    (reconciler, a)
}

#[test]
fn what_is_ordered_is_begun_recorded_installed_and_looked_at() {
    let (reconciler, a) = installed(&["v1", "v2"]);
    assert_eq!(reconciler.ready(&a), ["v1", "v2"]);
}

#[test]
fn an_image_that_is_read_again_loses_no_name_and_is_installed_again() {
    let (mut reconciler, a) = installed(&["latest"]);
    // the image is doubted: a look shows no name, and its chunks are compared
    reconciler.have(a, Have::Filling);
    assert!(!reconciler.is_present(&a) && reconciler.ready(&a).is_empty());
    reconciler.look_begins();
    reconciler.looked(&look(&[]), at(1));
    assert_eq!(jobs(&mut reconciler, at(1)), []);
    reconciler.have(a, Have::Whole);
    let install = Job::Install(texts(&["latest"]));
    assert_eq!(jobs(&mut reconciler, at(1)), [(a, install)]);
    assert_eq!(reconciler.lost(&a), None);
    reconciler.installed(a, true);
    reconciler.have(a, Have::Installed);
    glance(&mut reconciler, &[("latest", a)], at(2));
    assert!(reconciler.is_present(&a));
}

#[test]
fn an_order_counts_as_carried_out_after_a_look_that_began_later() {
    let (mut reconciler, a) = installed(&["latest"]);
    let names = || table(&[("latest", a)]);
    // a look that is under way when the order comes doesn't count for it
    reconciler.look_begins();
    reconciler.name(7, true, names(), at(1));
    reconciler.looked(&look(&[("latest", a)]), at(1));
    assert_eq!(reconciler.confirmed(), 0);
    glance(&mut reconciler, &[("latest", a)], at(1));
    assert_eq!(reconciler.confirmed(), 7);
    assert!(!reconciler.look_due());
    // numbers of an earlier session mean nothing
    reconciler.name(8, true, names(), at(2));
    reconciler.look_begins();
    reconciler.session();
    reconciler.name(9, true, names(), at(2));
    reconciler.looked(&look(&[("latest", a)]), at(2));
    assert_eq!(reconciler.confirmed(), 0);
    glance(&mut reconciler, &[("latest", a)], at(2));
    assert_eq!(reconciler.confirmed(), 9);
}

#[test]
fn a_name_that_moves_away_and_back_is_ready_only_when_the_last_job_is_over() {
    let (mut reconciler, a) = installed(&["latest"]);
    let b = image(2);
    reconciler.order(b, &texts(&["latest"]), at(1));
    assert_eq!(
        reconciler.ready(&a),
        [""; 0],
        "it is about to be another image's"
    );
    let due = jobs(&mut reconciler, at(1));
    assert_eq!(
        due,
        [(b, begin(&["latest"])), (a, Job::Record(vec![]))]
            .into_iter()
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .collect::<Vec<_>>()
    );
    reconciler.recorded(a, true, at(1));
    assert!(reconciler.begun(b));
    reconciler.have(b, Have::Whole);
    let record = Job::Record(texts(&["latest"]));
    assert_eq!(jobs(&mut reconciler, at(1)), [(b, record)]);
    reconciler.recorded(b, true, at(1));
    assert_eq!(
        jobs(&mut reconciler, at(1)),
        [(b, Job::Install(texts(&["latest"])))]
    );
    // back, while that runs
    reconciler.order(a, &texts(&["latest"]), at(2));
    reconciler.name(5, false, table(&[("latest", a)]), at(2));
    let due: BTreeMap<_, _> = jobs(&mut reconciler, at(2)).into_iter().collect();
    assert_eq!(due, [(a, Job::Record(texts(&["latest"])))].into());
    reconciler.recorded(a, true, at(2));
    assert_eq!(reconciler.waits_for(&a), Some(("latest".into(), b)));
    glance(&mut reconciler, &[("latest", a)], at(2));
    assert_eq!(reconciler.confirmed(), 5);
    assert!(
        !reconciler.is_present(&a),
        "the other job may still take it"
    );
    assert_eq!(jobs(&mut reconciler, at(2)), []);
    reconciler.installed(b, true);
    reconciler.have(b, Have::Installed);
    let due = jobs(&mut reconciler, at(2));
    assert_eq!(due, [(b, Job::Record(vec![]))]);
    reconciler.recorded(b, true, at(2));
    glance(&mut reconciler, &[("latest", b)], at(2));
    assert_eq!(
        jobs(&mut reconciler, at(2)),
        [(a, Job::Install(texts(&["latest"])))]
    );
    reconciler.installed(a, true);
    glance(&mut reconciler, &[("latest", a)], at(3));
    assert!(reconciler.is_present(&a));
    assert_eq!(jobs(&mut reconciler, at(3)), []);
}

#[test]
fn what_is_not_wanted_any_more_is_abandoned_after_its_job_and_begun_anew_after_that() {
    let (mut reconciler, a) = (Reconciler::default(), image(1));
    reconciler.order(a, &texts(&["v1"]), at(0));
    assert_eq!(jobs(&mut reconciler, at(0)), [(a, begin(&["v1"]))]);
    reconciler.cancel(a);
    assert_eq!(jobs(&mut reconciler, at(0)), [], "one job at a time");
    assert!(!reconciler.begun(a), "nothing of it is taken up");
    assert_eq!(jobs(&mut reconciler, at(0)), [(a, Job::Abandon)]);
    reconciler.order(a, &texts(&["v1"]), at(0));
    assert_eq!(jobs(&mut reconciler, at(0)), []);
    reconciler.abandoned(a);
    assert_eq!(jobs(&mut reconciler, at(0)), [(a, begin(&["v1"]))]);
    assert!(reconciler.begun(a));
    reconciler.have(a, Have::Filling);
    assert_eq!(reconciler.name(1, true, BTreeMap::new(), at(0)), [a]);
    assert_eq!(jobs(&mut reconciler, at(0)), [(a, Job::Abandon)]);
    reconciler.abandoned(a);
    assert!(!reconciler.is_wanted(&a) && reconciler.images.is_empty());
}

#[test]
fn a_cancelled_name_is_not_put_back_and_one_that_is_lost_is_with_growing_pauses() {
    let (mut reconciler, a) = installed(&["v1", "v2"]);
    reconciler.name(1, true, table(&[("v2", a)]), at(0));
    assert_eq!(
        jobs(&mut reconciler, at(0)),
        [(a, Job::Record(texts(&["v2"])))]
    );
    reconciler.recorded(a, true, at(0));
    glance(&mut reconciler, &[("v1", a), ("v2", a)], at(0));
    assert_eq!(reconciler.ready(&a), ["v1", "v2"], "what is present stays");
    // somebody removes both
    let mut now = at(0);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        reconciler.look_begins();
        reconciler.looked(&look(&[]), now);
        let lost = now;
        while jobs(&mut reconciler, now).is_empty() {
            let due = reconciler.due().unwrap();
            assert_eq!(
                reconciler.lost(&a),
                Some(("v2".into(), Sight::Nothing, due))
            );
            now = due;
        }
        pauses.push(now.since(lost).as_secs());
        reconciler.installed(a, true);
        if pauses.len() % 2 == 0 {
            // the name stood for a moment
            glance(&mut reconciler, &[("v2", a)], now);
        }
    }
    assert_eq!(pauses, [0, 5, 10, 20, 40, 80, 160, 300, 300, 300]);
    // an order puts the name back at once
    reconciler.look_begins();
    reconciler.looked(&look(&[]), now);
    assert_eq!(jobs(&mut reconciler, now), []);
    reconciler.name(2, true, table(&[("v2", a)]), now);
    assert_eq!(
        jobs(&mut reconciler, now),
        [(a, Job::Install(texts(&["v2"])))]
    );
    reconciler.installed(a, true);
    glance(&mut reconciler, &[("v2", a)], now);
    // a name that stood for long is put back at once
    now += CALM + RETRY.1 + Duration::from_secs(1);
    reconciler.look_begins();
    reconciler.looked(&look(&[("v2", a)]), now);
    reconciler.look_begins();
    reconciler.looked(&look(&[]), now);
    assert_eq!(jobs(&mut reconciler, now).len(), 1);
}

#[test]
fn what_fails_is_tried_again_after_pauses_and_at_once_when_it_is_ordered() {
    let (mut reconciler, a) = (Reconciler::default(), image(1));
    reconciler.order(a, &texts(&["v1"]), at(0));
    let mut now = at(0);
    for pause in [5, 10, 20] {
        assert_eq!(jobs(&mut reconciler, now), [(a, begin(&["v1"]))]);
        assert!(reconciler.begun(a));
        reconciler.failed(a, now);
        assert_eq!(jobs(&mut reconciler, now), []);
        let due = now + Duration::from_secs(pause);
        assert_eq!(reconciler.due(), Some(due));
        now = due;
    }
    assert_eq!(jobs(&mut reconciler, now), [(a, begin(&["v1"]))]);
    reconciler.begun(a);
    reconciler.failed(a, now);
    reconciler.order(a, &texts(&["v1"]), now);
    assert_eq!(jobs(&mut reconciler, now), [(a, begin(&["v1"]))]);
}

#[test]
fn what_is_paused_keeps_what_is_here_and_goes_on_when_it_is_ordered() {
    let (mut reconciler, a) = (Reconciler::default(), image(1));
    reconciler.order(a, &texts(&["v1"]), at(0));
    jobs(&mut reconciler, at(0));
    reconciler.pause(a);
    assert!(!reconciler.begun(a));
    assert_eq!(jobs(&mut reconciler, at(0)), []);
    reconciler.order(a, &texts(&["v1"]), at(0));
    assert_eq!(jobs(&mut reconciler, at(0)), [(a, begin(&["v1"]))]);
    reconciler.pause(a);
    reconciler.begun(a);
    reconciler.cancel(a);
    assert_eq!(jobs(&mut reconciler, at(0)), [(a, Job::Abandon)]);
}

#[test]
fn what_was_removed_comes_back_when_it_is_ordered() {
    let (mut reconciler, a) = installed(&["v1"]);
    reconciler.have(a, Have::Gone);
    reconciler.look_begins();
    reconciler.looked(&look(&[]), at(1));
    assert_eq!(jobs(&mut reconciler, at(1)), []);
    assert!(!reconciler.look_due());
    reconciler.order(a, &texts(&["v1"]), at(2));
    assert_eq!(jobs(&mut reconciler, at(2)), [(a, begin(&["v1"]))]);
    reconciler.begun(a);
    reconciler.have(a, Have::Gone);
    reconciler.cancel(a);
    assert!(reconciler.images.is_empty());
}

/// A disk of names, and jobs that take a while.
#[derive(Debug, Default)]
struct Disk {
    names: BTreeMap<String, Digest>,
    stages: BTreeSet<Digest>,
    installed: BTreeSet<Digest>,
}

proptest! {
    /// Orders, cancellations and interruptions come in any order. At rest, each wanted name names its image, no
    /// unwanted image is half here, and no name names an image for which it was never wanted.
    #[test]
    fn at_rest_the_disk_is_what_is_wanted(
        steps in proptest::collection::vec((0u8..12, 0u8..3, 0u8..3, any::<bool>()), 1..60),
    ) {
        let mut reconciler = Reconciler::default();
        let mut disk = Disk::default();
        let mut running: Vec<(Digest, Job)> = Vec::new();
        let mut looking: Option<Look> = None;
        let (mut wanted, mut asked) = (BTreeMap::<String, Digest>::new(), BTreeSet::new());
        let (mut now, mut number) = (at(0), 0);
        let sight = |disk: &Disk| Look {
            names: disk
                .names
                .iter()
                .filter(|(_, image)| disk.installed.contains(image))
                .map(|(name, image)| (name.clone(), Sight::Image(*image)))
                .collect(),
        };
        let end = |reconciler: &mut Reconciler, disk: &mut Disk, (image, job): (Digest, Job), fails: bool, now| match job {
            Job::Begin(_) => {
                disk.stages.insert(image);
                if reconciler.begun(image) {
                    if fails {
                        reconciler.failed(image, now);
                    } else if disk.installed.contains(&image) {
                        reconciler.have(image, Have::Installed);
                    } else {
                        reconciler.have(image, Have::Whole);
                    }
                }
            }
            Job::Record(_) => reconciler.recorded(image, !fails, now),
            Job::Install(names) => {
                let done = if fails { names.len() / 2 } else { names.len() };
                for name in &names[..done] {
                    disk.names.insert(name.clone(), image);
                }
                reconciler.installed(image, !fails);
                if done > 0 {
                    disk.installed.insert(image);
                }
                if disk.installed.contains(&image) {
                    reconciler.have(image, Have::Installed);
                }
                if fails {
                    reconciler.failed(image, now);
                }
            }
            Job::Abandon => {
                if !disk.installed.contains(&image) {
                    disk.stages.remove(&image);
                }
                reconciler.abandoned(image);
            }
        };
        for (step, number_of, name, flag) in steps {
            now += Duration::from_millis(100);
            let (image, name) = (image(number_of), format!("n{name}"));
            match step {
                // an operator's order, as a coordinator sends it
                0..=3 => {
                    asked.insert((name.clone(), image));
                    if let Some(before) = wanted.insert(name.clone(), image)
                        && before != image
                        && !wanted.values().any(|named| *named == before)
                    {
                        reconciler.cancel(before);
                    }
                    let names: Vec<String> = wanted
                        .iter()
                        .filter(|(_, named)| **named == image)
                        .map(|(name, _)| name.clone())
                        .collect();
                    reconciler.order(image, &names, now);
                    number += 1;
                    reconciler.name(number, true, wanted.clone(), now);
                }
                4 => {
                    if let Some(before) = wanted.remove(&name) {
                        if flag && !wanted.values().any(|named| *named == before) {
                            reconciler.cancel(before);
                        }
                        number += 1;
                        reconciler.name(number, true, wanted.clone(), now);
                    }
                }
                // somebody else removes a name
                5 => drop(disk.names.remove(&name)),
                // a look begins, and another ends
                6 => match looking.take() {
                    Some(look) => reconciler.looked(&look, now),
                    None => {
                        reconciler.look_begins();
                        looking = Some(sight(&disk));
                    }
                },
                7 if number_of == 0 => reconciler.session(),
                // a job ends
                _ if !running.is_empty() => {
                    let job = running.remove(usize::from(number_of) % running.len());
                    end(&mut reconciler, &mut disk, job, flag && step == 8, now);
                }
                _ => {}
            }
            while let Some((image, job)) = reconciler.next(now) {
                let twice = running.iter().any(|(other, _)| *other == image);
                prop_assert!(!twice, "two jobs of one image");
                if let Job::Install(names) = &job {
                    for (_, other) in &running {
                        let Job::Install(others) = other else { continue };
                        prop_assert!(names.iter().all(|name| !others.contains(name)));
                    }
                }
                running.push((image, job));
            }
            // each ready name is true, except for what others did since the look
            if step != 5 && looking.is_none() {
                for number in 0..3 {
                    for name in reconciler.ready(&self::image(number)) {
                        let named = disk.names.get(&name);
                        prop_assert!(named.is_none_or(|named| *named == self::image(number)));
                    }
                }
            }
        }
        // all comes to rest
        for round in 0..200 {
            prop_assert!(round < 199, "it never rests: {reconciler:?}");
            now += RETRY.1;
            if let Some(look) = looking.take() {
                reconciler.looked(&look, now);
            }
            for job in std::mem::take(&mut running) {
                end(&mut reconciler, &mut disk, job, false, now);
            }
            while let Some(job) = reconciler.next(now) {
                running.push(job);
            }
            let due = reconciler.look_due();
            if due || round < 3 {
                reconciler.look_begins();
                looking = Some(sight(&disk));
            }
            if running.is_empty() && !due && round >= 3 && looking.is_none() {
                break;
            }
        }
        prop_assert_eq!(reconciler.confirmed(), reconciler.ordered);
        for (name, image) in &wanted {
            prop_assert_eq!(disk.names.get(name), Some(image));
            prop_assert!(reconciler.is_present(image));
        }
        for image in &disk.stages {
            let named = wanted.values().any(|named| named == image);
            prop_assert!(named || disk.installed.contains(image), "a stage is left");
        }
        for named in &disk.names {
            prop_assert!(asked.contains(&(named.0.clone(), *named.1)));
        }
    }
}

#[test]
fn nobody_is_begun_behind_an_image_for_which_room_was_made() {
    let mut reconciler = Reconciler::default();
    let (a, b, c) = (image(1), image(2), image(3));
    for (image, name) in [(a, "a"), (b, "b"), (c, "c")] {
        reconciler.order(image, &texts(&[name]), at(0));
    }
    reconciler.take_sequence(vec![a, b, c]);
    reconciler.wait(b, at(0), Duration::from_secs(1));
    reconciler.room_is_made(b, &[(c, true)], at(0));
    assert_eq!(jobs(&mut reconciler, at(0)), [(a, begin(&["a"]))]);
    assert_eq!(jobs(&mut reconciler, at(1_000)), [(b, begin(&["b"]))]);
    // not even while it is being begun
    assert_eq!(jobs(&mut reconciler, at(2_000)), []);
    reconciler.begun(b);
    reconciler.have(b, Have::Filling);
    let due = jobs(&mut reconciler, at(2_000));
    assert!(due.contains(&(c, begin(&["c"]))), "{due:?}");
    // an image that pauses holds nobody up
    let mut reconciler = Reconciler::default();
    reconciler.order(b, &texts(&["b"]), at(0));
    reconciler.order(c, &texts(&["c"]), at(0));
    reconciler.take_sequence(vec![b, c]);
    reconciler.room_is_made(b, &[(c, true)], at(0));
    reconciler.pause(b);
    assert_eq!(jobs(&mut reconciler, at(0)), [(c, begin(&["c"]))]);
}

#[test]
fn jobs_come_in_the_order_in_which_images_are_to_be_finished() {
    let mut reconciler = Reconciler::default();
    let mut images = [image(1), image(2), image(3)];
    images.sort_unstable();
    let [first, second, third] = images;
    for (number, image) in images.into_iter().enumerate() {
        reconciler.order(image, &[number.to_string()], at(0));
    }
    assert_eq!(images.map(|image| reconciler.rank(&image)), [0, 0, 0]);
    let mut moved = reconciler.take_sequence(vec![third, first]);
    moved.sort_unstable();
    assert_eq!(
        moved,
        [first, second],
        "an image that isn't named comes last"
    );
    assert_eq!(images.map(|image| reconciler.rank(&image)), [1, 2, 0]);
    let begun = jobs(&mut reconciler, at(0)).into_iter();
    let begun: Vec<Digest> = begun.map(|(image, _)| image).collect();
    assert_eq!(begun, [third, first, second]);
    assert_eq!(reconciler.take_sequence(vec![third, first]), []);
    assert_eq!(reconciler.take_sequence(vec![first, third]), [first, third]);
}
