//! Tests of recipes: contents that come first, and without which an image is staged as well.

use super::*;
use crate::stage::action::RecipeLoss;

const RECIPE: usize = 50;

/// A moment at which hosts aren't heard any more that repeat what they said to an earlier coordinator.
const EARLIER_DOUBTS_MILLIS: u64 = 125_000;

fn order(contents: impl IntoIterator<Item = usize>) -> Event {
    with_recipe(wanted(0, contents, Selection::All), RECIPE)
}

fn dropped(actions: &[Action]) -> Vec<(Digest, Digest, RecipeLoss)> {
    let dropped = actions.iter().filter_map(|action| match action {
        Action::DropRecipe {
            image,
            recipe,
            cause,
        } => Some((*image, *recipe, *cause)),
        _ => None,
    });
    dropped.collect()
}

fn contents(grants: &[(HostId, Digest)]) -> Vec<Digest> {
    grants.iter().map(|(_, content)| *content).collect()
}

/// The host that was granted the recipe's lease.
fn holder(actions: &[Action]) -> Option<HostId> {
    let mut grants = grants(actions).into_iter();
    let found = grants.find(|(_, content)| *content == digest(RECIPE))?;
    Some(found.0)
}

#[test]
fn a_recipe_is_leased_first_and_takes_no_contents_place() {
    let mut plan = fleet(6);
    let granted = contents(&grants(&want(&mut plan, 2_000, order(0..9))));
    assert_eq!(granted, [50, 0, 1, 2, 3].map(digest));
    let status = plan.status(at(2_000));
    assert_eq!(status.images[0].contents, 9, "a recipe isn't counted");
    // nor does one that is found later wait for the contents of an earlier image
    let mut plan = fleet(6);
    want(&mut plan, 2_000, wanted(0, 0..9, Selection::All));
    let later = with_recipe(wanted(1, 20..29, Selection::All), RECIPE);
    let granted = contents(&grants(&want(&mut plan, 3_000, later)));
    assert_eq!(granted, [digest(RECIPE)]);
}

#[test]
fn a_fleet_that_is_about_to_report_gives_its_first_host_the_recipe_and_a_content() {
    let mut plan = fleet(2);
    feed(&mut plan, 2_000, order([0, 1]));
    let granted = grants(&feed(&mut plan, 2_100, report(0, 0, Standing::Staging, 0)));
    assert_eq!(contents(&granted), [50, 0].map(digest));
}

#[test]
fn whatever_is_wrong_with_a_recipe_its_image_goes_on_without_it() {
    for fault in [
        Fault::Bad,
        Fault::Missing,
        Fault::Refused,
        Fault::Unusable,
        Fault::CutShort,
    ] {
        let mut plan = fleet(6);
        let mut actions = want(&mut plan, 2_000, order(0..9));
        let mut millis = 2_000;
        let mut lost = Vec::new();
        while lost.is_empty() {
            millis += 500;
            assert!(millis < 20_000, "{fault:?} isn't found");
            let event = match holder(&actions) {
                Some(by) => ended(&by, digest(RECIPE), LeaseEnd::Faulty(fault)),
                None => Event::Tick,
            };
            actions = feed(&mut plan, millis, event);
            lost = dropped(&actions);
            let reason = plan.status(at(millis)).images[0].reason;
            assert_eq!(reason, Some(ImageReason::Moving), "{fault:?}");
        }
        let cause = RecipeLoss::Faulty(fault);
        assert_eq!(lost, [(image(0), digest(RECIPE), cause)]);
        assert!(!plan.knows(&digest(RECIPE)));
        // one host's word isn't enough, as for any content
        assert!(millis > 2_500, "{fault:?}");
        // the contents' leases run on, and the recipe isn't asked for again
        for number in 0..4 {
            assert!(plan.leases.contains(&digest(number)), "{fault:?}");
        }
        assert_eq!(holder(&feed(&mut plan, 120_000, Event::Tick)), None);
    }
}

#[test]
fn an_only_host_that_finds_a_recipe_missing_twice_goes_on_without_it() {
    let mut plan = fleet(1);
    let mut actions = want(&mut plan, 2_000, order([0]));
    let mut millis = 2_000;
    while dropped(&actions).is_empty() {
        millis += 500;
        assert!(millis < 60_000);
        let event = match holder(&actions) {
            Some(by) => ended(&by, digest(RECIPE), LeaseEnd::Faulty(Fault::Missing)),
            None => Event::Tick,
        };
        actions = feed(&mut plan, millis, event);
    }
    assert!(plan.status(at(millis)).images[0].reason != Some(ImageReason::HostsFailed));
}

#[test]
fn a_recipe_that_a_registry_fails_to_give_says_nothing_of_the_registry() {
    let mut plan = fleet(6);
    let mut actions = want(&mut plan, 2_000, order(0..2));
    let fetches = grants(&actions)[1..].to_vec();
    let mut tries = 0;
    for millis in (2_500..40_000).step_by(500) {
        let by = holder(&actions);
        let mut next = Vec::new();
        if let Some(by) = by {
            tries += 1;
            let failed = ended(&by, digest(RECIPE), LeaseEnd::OriginFailed);
            next.extend(feed(&mut plan, millis, failed));
        }
        for (host, content) in &fetches {
            let chunks = u32::try_from(millis / 500).unwrap();
            next.extend(feed(&mut plan, millis, progress(host, *content, chunks)));
        }
        next.extend(feed(&mut plan, millis, Event::Tick));
        let status = plan.status(at(millis));
        assert_eq!(status.images[0].origin_retry_in, None, "{millis}");
        actions = next;
    }
    assert!((3..20).contains(&tries), "{tries} tries");
}

#[test]
fn another_recipe_takes_the_place_of_the_one_before_and_none_of_both() {
    let mut plan = fleet(6);
    want(&mut plan, 2_000, order([0]));
    let revoked = |actions: &[Action]| {
        let revoked = actions.iter().filter_map(|action| match action {
            Action::Revoke { content, .. } => Some(*content),
            _ => None,
        });
        revoked.collect::<Vec<_>>()
    };
    // the same again changes nothing
    let same = want(&mut plan, 3_000, order([0]));
    assert_eq!((revoked(&same), grants(&same)), (vec![], vec![]));
    let other = with_recipe(wanted(0, [0], Selection::All), 51);
    let other = want(&mut plan, 4_000, other);
    assert_eq!(revoked(&other), [digest(RECIPE)]);
    assert_eq!(contents(&grants(&other)), [digest(51)]);
    assert!(!plan.knows(&digest(RECIPE)));
    let none = want(&mut plan, 5_000, wanted(0, [0], Selection::All));
    assert_eq!(revoked(&none), [digest(51)]);
    assert_eq!(dropped(&none), [], "the shell knows");
    assert!(plan.leases.contains(&digest(0)) && !plan.knows(&digest(51)));
    // an image that isn't wanted any more takes its recipe with it
    want(&mut plan, 6_000, order([0]));
    feed(&mut plan, 7_000, Event::Cancelled(image(0)));
    assert!(!plan.knows(&digest(RECIPE)) && plan.leases.is_empty());
}

#[test]
fn hosts_that_never_want_the_recipe_keep_nobody_from_believing_who_has_it() {
    let mut plan = fleet(6);
    let actions = want(&mut plan, 2_000, order([0]));
    let by = holder(&actions).unwrap();
    for number in 0..6 {
        let held = Event::Holds {
            host: host(number),
            contents: Vec::new(),
        };
        feed(&mut plan, 2_100, held);
    }
    for number in 0..6 {
        let mut contents = vec![(digest(0), 100)];
        if host(number) == by {
            contents.push((digest(RECIPE), 4));
        }
        let host = host(number);
        feed(&mut plan, 3_000, Event::Holds { host, contents });
    }
    feed(&mut plan, 3_000, ended(&by, digest(RECIPE), LeaseEnd::Done));
    for millis in (3_500..30_000).step_by(500) {
        let again = holder(&feed(&mut plan, millis, Event::Tick));
        assert_eq!(again, None, "{millis}");
    }
    assert_eq!(plan.records.failures(&by), 0);
    // a host that has the image has it without the recipe as well
    let done = feed(
        &mut plan,
        31_000,
        report(1, 0, Standing::Present, 100 << 20),
    );
    assert_eq!(dropped(&done), []);
    assert!(plan.contents.get(&digest(0)).unwrap().is_done_on(&host(1)));
    let recipe = plan.contents.get(&digest(RECIPE)).unwrap();
    assert!(!recipe.is_done_on(&host(1)) && recipe.is_done_on(&by));
}

#[test]
fn a_recipe_that_contradicts_what_an_image_needs_is_the_one_to_go() {
    // whichever is wanted first
    for recipe_first in [true, false] {
        let mut plan = fleet(6);
        let needs = wanted(1, [RECIPE, 1], Selection::All);
        let orders = match recipe_first {
            true => [order([0]), needs],
            false => [needs, order([0])],
        };
        let mut actions = Vec::new();
        for (millis, order) in [2_000, 3_000].into_iter().zip(orders) {
            actions = want(&mut plan, millis, order);
        }
        let lost = [(image(0), digest(RECIPE), RecipeLoss::Size)];
        assert_eq!(dropped(&actions), lost, "{recipe_first}");
        let status = plan.status(at(3_000));
        for image in &status.images {
            assert_eq!(image.reason, Some(ImageReason::Moving), "{recipe_first}");
        }
        assert_eq!(plan.size_of(&digest(RECIPE)), Some(100 << 20));
    }
    // a content of the image itself is no recipe of it
    let mut plan = fleet(6);
    let order = with_recipe(wanted(0, [RECIPE, 1], Selection::All), RECIPE);
    let granted = want(&mut plan, 2_000, order);
    assert_eq!(contents(&grants(&granted)), [RECIPE, 1].map(digest));
    assert_eq!(plan.size_of(&digest(RECIPE)), Some(100 << 20));
}

/// The host says that the registry's bytes of content 0 don't fit the recipe.
fn doubts(plan: &mut Plan, millis: u64, by: &HostId, chunk: u32) -> Vec<Action> {
    let event = Event::RecipeDoubted {
        host: by.clone(),
        image: image(0),
        content: digest(0),
        chunk,
    };
    feed(plan, millis, event)
}

/// What hosts are told to leave the recipe for.
fn left(actions: &[Action]) -> Vec<(Digest, Digest, u32)> {
    let left = actions.iter().filter_map(|action| match action {
        Action::LeaveRecipe(of) => Some((of.image, of.content, of.chunk)),
        _ => None,
    });
    left.collect()
}

/// The host that was granted content 0.
fn reader(actions: &[Action]) -> Option<HostId> {
    let mut grants = grants(actions).into_iter();
    let found = grants.find(|(_, content)| *content == digest(0))?;
    Some(found.0)
}

#[test]
fn a_recipe_is_left_when_a_second_host_reads_the_same() {
    let mut plan = fleet(6);
    let late = EARLIER_DOUBTS_MILLIS;
    let first = reader(&want(&mut plan, late, order([0]))).unwrap();
    let asked = doubts(&mut plan, late + 500, &first, 7);
    assert_eq!(left(&asked), []);
    // another host has the lease at once, and who had it is behind others until somebody says the same
    let second = reader(&asked).unwrap();
    assert_ne!(second, first);
    assert_eq!(plan.records.failures(&first), 1);
    // who has no lease isn't heard, nor a word about a chunk that isn't there
    for other in (0..6).map(host).filter(|other| *other != second) {
        assert_eq!(doubts(&mut plan, late + 600, &other, 7), []);
    }
    assert_eq!(doubts(&mut plan, late + 600, &second, 100), []);
    let said = doubts(&mut plan, late + 700, &second, 7);
    assert_eq!(left(&said), [(image(0), digest(0), 7)]);
    // the lease goes on
    assert_eq!(plan.leases.holder(&digest(0)), Some(&second));
    let failures = [&first, &second].map(|id| plan.records.failures(id));
    assert_eq!(failures, [0, 0]);
    // once
    assert_eq!(doubts(&mut plan, late + 800, &second, 8), []);
}

#[test]
fn a_word_from_before_a_start_counts_beside_one_of_a_host_with_the_lease() {
    let mut plan = fleet(6);
    let by = reader(&want(&mut plan, 2_000, order([0]))).unwrap();
    let mut others = (0..6).map(host).filter(|id| *id != by);
    let [same, another] = [(); 2].map(|()| others.next().unwrap());
    // nothing follows from such words, not even from two
    assert_eq!(doubts(&mut plan, 2_100, &same, 7), []);
    assert_eq!(doubts(&mut plan, 2_100, &another, 7), []);
    assert_eq!(plan.leases.holder(&digest(0)), Some(&by));
    let failures = [&same, &another].map(|id| plan.records.failures(id));
    assert_eq!(failures, [0, 0]);
    // nor from one of the holder about another chunk, which another host then reads
    let by = reader(&doubts(&mut plan, 2_500, &by, 3)).unwrap();
    assert!(![&same, &another].contains(&&by));
    let said = doubts(&mut plan, 2_600, &by, 7);
    assert_eq!(left(&said), [(image(0), digest(0), 7)]);
}

#[test]
fn a_word_that_nobody_confirms_takes_the_recipe_from_nobody() {
    let mut plan = fleet(6);
    let liar = reader(&want(&mut plan, 2_000, order(0..6))).unwrap();
    let honest = reader(&doubts(&mut plan, 2_500, &liar, 3)).unwrap();
    for number in 0..6 {
        let contents = vec![(digest(0), 100)];
        let host = host(number);
        feed(&mut plan, 3_000, Event::Holds { host, contents });
    }
    feed(&mut plan, 4_000, Event::Tick);
    let done = ended(&honest, digest(0), LeaseEnd::Done);
    feed(&mut plan, 4_000, done);
    // the word is over, and its speaker is behind the others
    let content = plan.contents.get(&digest(0)).unwrap();
    assert!(!content.words().spoke(&image(0), &liar));
    assert_eq!(plan.records.failures(&liar), 1);
}

#[test]
fn words_about_different_chunks_dont_agree() {
    let mut plan = fleet(6);
    let mut by = reader(&want(&mut plan, 2_000, order([0]))).unwrap();
    let mut spoke = Vec::new();
    for chunk in 0..5 {
        let said = doubts(&mut plan, 2_500, &by, chunk);
        assert_eq!(left(&said), [], "{chunk}");
        assert!(!spoke.contains(&by));
        spoke.push(by);
        by = reader(&said).unwrap();
    }
    // nobody is left who could say anything
    let said = doubts(&mut plan, 2_600, &by, 9);
    assert_eq!(left(&said), [(image(0), digest(0), 9)]);
}

#[test]
fn where_no_other_host_can_read_it_one_word_is_enough() {
    let said = [(image(0), digest(0), 4)];
    // a host alone, and one whose peers hold the content, have the image or are away
    let mut alone = fleet(1);
    let by = reader(&want(&mut alone, 2_000, order([0]))).unwrap();
    assert_eq!(left(&doubts(&mut alone, 2_500, &by, 4)), said);
    let mut plan = fleet(4);
    let by = reader(&want(&mut plan, 2_000, order([0]))).unwrap();
    let mut others = (0..4).filter(|at| host(*at) != by);
    let [holds, has, away] = [(); 3].map(|()| others.next().unwrap());
    let contents = vec![(digest(0), 100)];
    let host = host(holds);
    feed(&mut plan, 2_100, Event::Holds { host, contents });
    feed(
        &mut plan,
        2_100,
        report(has, 0, Standing::Present, 100 << 20),
    );
    feed(&mut plan, 2_100, Event::HostDisconnected(super::host(away)));
    assert_eq!(left(&doubts(&mut plan, 2_500, &by, 4)), said);
}

#[test]
fn another_recipe_is_doubted_anew() {
    let mut plan = fleet(1);
    let by = reader(&want(&mut plan, 2_000, order([0]))).unwrap();
    assert_eq!(left(&doubts(&mut plan, 2_500, &by, 4)).len(), 1);
    assert_eq!(left(&doubts(&mut plan, 2_600, &by, 4)).len(), 0);
    let other = with_recipe(wanted(0, [0], Selection::All), 51);
    want(&mut plan, 3_000, other);
    assert_eq!(left(&doubts(&mut plan, 3_500, &by, 4)).len(), 1);
}
