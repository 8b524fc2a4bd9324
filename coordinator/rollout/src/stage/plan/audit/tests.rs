use super::{
    super::stand::{Stand, content, host},
    *,
};
use crate::stage::event::Standing;

const MOMENT: Duration = Duration::from_micros(1);

/// Five hosts stage a content that host 6 has just said to hold whole. The five hosts don't say yet that they find no
/// source of the content.
fn thought_complete() -> Stand {
    let mut stand = Stand::new(6);
    stand.want(0, &[0]);
    let now = stand.now;
    stand
        .contents
        .each([content(0)], |of| of.claim(now, &host(6)));
    stand.report(&host(6), 0, Standing::Present);
    stand.contents.moved(now);
    stand
}

/// This host finds no source of the content from now on.
fn lacks(stand: &mut Stand, number: u32) {
    let contents = core::iter::once(content(0));
    stand.hosts.lack_source(stand.now, &host(number), contents);
}

fn patience() -> Duration {
    DOUBT_AFTER + 6 * DOUBT_PER_HOST
}

#[test]
fn what_two_hosts_find_no_source_of_for_seconds_is_doubted() {
    let mut stand = thought_complete();
    lacks(&mut stand, 1);
    stand.wait(patience());
    assert_eq!(
        without_source(stand.view()),
        [],
        "one host's word is too little"
    );
    lacks(&mut stand, 2);
    stand.wait(patience() - MOMENT);
    assert_eq!(without_source(stand.view()), []);
    stand.wait(MOMENT);
    assert_eq!(without_source(stand.view()), [content(0)]);
    // the content isn't doubted again within ten seconds
    let now = stand.now;
    stand.contents.each([content(0)], |of| {
        of.doubt(now);
        of.believe();
    });
    stand.wait(Duration::from_secs(10) - MOMENT);
    assert_eq!(without_source(stand.view()), []);
    stand.wait(MOMENT);
    assert_eq!(without_source(stand.view()), [content(0)]);
}

#[test]
fn a_holder_that_is_away_or_back_for_a_moment_is_not_doubted() {
    let mut stand = thought_complete();
    for number in 1..=5 {
        lacks(&mut stand, number);
    }
    stand.wait(patience());
    let now = stand.now;
    stand.hosts.disconnect(now, &host(6));
    stand.hosts.connect(now, &host(6));
    assert_eq!(without_source(stand.view()), []);
    stand.wait(patience());
    assert_eq!(without_source(stand.view()), [content(0)]);
    // a leased content isn't doubted: it comes
    stand.lease(1, 0, 0);
    assert_eq!(without_source(stand.view()), []);
}

#[test]
fn where_nothing_moves_for_twenty_seconds_what_hosts_lack_is_looked_for() {
    let mut stand = thought_complete();
    stand.wait(AUDIT_AFTER - MOMENT);
    assert!(!is_still(stand.view()));
    stand.wait(MOMENT);
    assert!(is_still(stand.view()));
    assert_eq!(lacking(stand.view()), BTreeSet::from([content(0)]));
    stand.lease(1, 0, 0);
    assert!(!is_still(stand.view()));
    stand.end(content(0));
    // no host lacks the content any more
    for number in 1..=5 {
        stand.report(&host(number), 0, Standing::Present);
    }
    assert_eq!(lacking(stand.view()), BTreeSet::new());
}
