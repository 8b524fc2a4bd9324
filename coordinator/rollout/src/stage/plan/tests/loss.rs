//! Tests of contents that a host held and that are gone, or may be.

use super::*;

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
    // the agent is killed before its next flush
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
    // an hour later, the host lacks one chunk of the image; only the host can say which one
    let later = 3_600_000;
    let actions = feed(&mut plan, later, report(0, 0, Standing::Staging, 199));
    assert_eq!(grants(&actions).len(), 2);
    for (host, content) in grants(&actions) {
        feed(&mut plan, later, ended(&host, content, LeaseEnd::Done));
    }
    let actions = feed(&mut plan, later + 500, report(0, 0, Standing::Staging, 199));
    assert_eq!(grants(&actions), []);
    // the host's files were removed, and it begins anew
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

/// A plan with a content of image 0 that is complete on its lease holder. Other contents of the image go on moving.
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

/// Lets time pass second by second: other leases move, and these hosts say that they find no source of the content.
/// Returns when the content was granted again, and to which host.
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
    // the holder has the content, but the others still can't get it
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
    // a single host is believed if no other lacks the content
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
    // the holder is killed again and again, and comes back at once with what it holds
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
    // hosts no longer miss what peers have again
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
    // a repeated word doesn't take the lease from its new holder
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
