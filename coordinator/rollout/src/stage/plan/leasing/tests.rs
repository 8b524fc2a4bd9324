use core::time::Duration;

use super::{
    super::stand::{Stand, content, host, image},
    *,
};
use crate::stage::{Action, event::Standing};

const MOMENT: Duration = Duration::from_micros(1);

/// A report of a lease holder with this many chunks.
const fn chunks(chunks: u32) -> Progress {
    Progress {
        range: None,
        chunks,
        bytes: 0,
        paced: false,
        trouble: None,
    }
}

/// The host, content and cause of each lease that is taken back.
fn revoked(stand: &mut Stand) -> Vec<(HostId, Digest, RevokeCause)> {
    let actions = stand.actions().into_iter();
    actions
        .filter_map(|action| match action {
            Action::Revoke {
                host,
                content,
                cause,
            } => Some((host, content, cause)),
            _ => None,
        })
        .collect()
}

/// Hosts 1 to `count` report what they hold of a content, so that a holder's own word doesn't count.
fn witnesses(stand: &mut Stand, count: u32, of: u32) {
    for number in 1..=count {
        stand.hosts.counted(&host(number));
    }
    stand.contents.each([content(of)], |content| {
        content.receipts_mut().look(count as usize, |_| true);
    });
}

#[test]
fn a_lease_of_before_a_restart_is_taken_over_and_one_that_is_known_is_not() {
    let mut stand = Stand::new(4);
    stand.want(0, &[0, 1]);
    progress(&mut stand.desk(), &host(1), content(0), chunks(7));
    let lease = stand.leases.all_of(&content(0)).first().unwrap();
    assert!(lease.is_taken_over());
    assert_eq!((lease.host(), lease.chunks()), (&host(1), 7));
    assert_eq!(revoked(&mut stand), []);
    // another host has that lease
    progress(&mut stand.desk(), &host(2), content(0), chunks(9));
    let denied = |id, of| (host(id), content(of), RevokeCause::NotHeld);
    assert_eq!(revoked(&mut stand), [denied(2, 0)]);
    // four hosts share four streams, so each host has one
    progress(&mut stand.desk(), &host(1), content(1), chunks(1));
    assert_eq!(revoked(&mut stand), [denied(1, 1)]);
    // this coordinator doesn't take over a lease of a content that it has leased itself
    stand.lease(3, 1, 0);
    stand.end(content(1));
    progress(&mut stand.desk(), &host(3), content(1), chunks(1));
    assert_eq!(revoked(&mut stand), [denied(3, 1)]);
}

#[test]
fn who_fetches_what_nobody_wants_is_told_so_and_strangers_are_not() {
    let mut stand = Stand::new(1);
    progress(&mut stand.desk(), &host(1), content(0), chunks(1));
    progress(&mut stand.desk(), &host(2), content(0), chunks(1));
    let denied = (host(1), content(0), RevokeCause::NotHeld);
    assert_eq!(revoked(&mut stand), [denied]);
}

#[test]
fn a_holders_chunks_count_by_themselves_only_where_nobody_could_say_otherwise() {
    for (alone, moved) in [(true, true), (false, false)] {
        let mut stand = Stand::new(4);
        stand.want(0, &[0]);
        stand.lease(1, 0, 0);
        if !alone {
            witnesses(&mut stand, 4, 0);
        }
        stand.wait(Duration::from_secs(1));
        progress(&mut stand.desk(), &host(1), content(0), chunks(1));
        let now = stand.now;
        let lease = stand.leases.all_of(&content(0)).first().unwrap();
        assert_eq!(lease.chunk_at(), now);
        assert_eq!(lease.has_brought(), moved);
        let of = stand.contents.get(&content(0)).unwrap();
        assert_eq!(of.moved_at() == now, moved);
        let origin = stand.origins.get("registry.example").unwrap();
        assert_eq!(origin.gives(now), moved);
    }
}

#[test]
fn a_lease_without_progress_passes_on_after_ten_seconds_by_whoevers_fault() {
    for (trouble, cause) in [
        (None, RevokeCause::Ended),
        (Some(Trouble::Silent), RevokeCause::OriginFailed),
    ] {
        let mut stand = Stand::new(4);
        stand.want(0, &[0]);
        stand.lease(1, 0, 0);
        let said = Progress {
            trouble,
            ..chunks(0)
        };
        progress(&mut stand.desk(), &host(1), content(0), said);
        stand.wait(stand.config.lease_timeout - MOMENT);
        expire(&mut stand.desk());
        assert_eq!(revoked(&mut stand), []);
        stand.wait(MOMENT);
        expire(&mut stand.desk());
        assert_eq!(revoked(&mut stand), [(host(1), content(0), cause)]);
        let of = stand.contents.get(&content(0)).unwrap();
        assert!(of.tries().has_failed(&host(1)));
        assert_eq!(stand.records.failures(&host(1)), 1);
    }
}

#[test]
fn a_lease_that_anothers_end_has_ended_is_taken_back_once() {
    let mut stand = Stand::new(4);
    stand.want(0, &[0, 1, 2]);
    for of in 0..3 {
        stand.lease(of + 1, of, 0);
        let said = Progress {
            trouble: Some(Trouble::Failing),
            ..chunks(0)
        };
        progress(&mut stand.desk(), &host(of + 1), content(of), said);
    }
    stand.wait(stand.config.lease_timeout);
    expire(&mut stand.desk());
    // after the second failure the repository is left alone, which ends the third lease
    assert_eq!(revoked(&mut stand).len(), 3);
    let failures = (1..=3).map(|number| stand.records.failures(&host(number)));
    assert_eq!(failures.sum::<u32>(), 2);
}

#[test]
fn a_holder_that_has_all_holds_it_and_is_believed_by_others_word() {
    let mut stand = Stand::new(4);
    stand.want(0, &[0]);
    stand.lease(1, 0, 0);
    witnesses(&mut stand, 4, 0);
    stand
        .contents
        .each([content(0)], |of| of.tries_mut().fail(&host(2)));
    ended(
        &mut stand.desk(),
        &host(1),
        (content(0), None),
        LeaseEnd::Done,
    );
    assert!(!stand.leases.contains(&content(0)));
    let of = stand.contents.get_mut(&content(0)).unwrap();
    assert!(of.is_done_on(&host(1)));
    assert!(of.tries().has_failed(&host(2)), "nobody has seen it");
    assert_eq!(of.receipts_mut().take_finished_by(), Some((host(1), false)));
}

#[test]
fn a_holder_that_the_registry_failed_and_that_has_all_has_the_rest_from_peers() {
    for (trouble, gives) in [(None, true), (Some(Trouble::Failing), false)] {
        let mut stand = Stand::new(4);
        stand.want(0, &[0]);
        stand.lease(1, 0, 0);
        let said = Progress {
            trouble,
            ..chunks(0)
        };
        progress(&mut stand.desk(), &host(1), content(0), said);
        ended(
            &mut stand.desk(),
            &host(1),
            (content(0), None),
            LeaseEnd::Done,
        );
        let now = stand.now;
        let origin = stand.origins.get("registry.example").unwrap();
        assert_eq!(origin.gives(now), gives, "{trouble:?}");
        assert!(
            stand
                .contents
                .get(&content(0))
                .unwrap()
                .is_done_on(&host(1))
        );
    }
}

#[test]
fn who_gives_a_lease_back_holds_nothing_and_has_it_again_after_a_second() {
    for standing in [Standing::Staging, Standing::Queued] {
        let mut stand = Stand::new(4);
        stand.want(0, &[0]);
        stand.lease(1, 0, 0);
        stand.report(&host(1), 0, standing);
        ended(
            &mut stand.desk(),
            &host(1),
            (content(0), None),
            LeaseEnd::Released,
        );
        let of = stand.contents.get(&content(0)).unwrap();
        assert!(!of.is_done_on(&host(1)), "{standing:?}");
        assert!(of.tries().was_last(&host(1)));
        let again = stand.now + stand.config.origin_retry;
        assert!(of.tries().has_given_back(&host(1), again - MOMENT));
        assert!(!of.tries().has_given_back(&host(1), again));
    }
}

#[test]
fn who_gives_a_lease_back_that_brought_something_has_it_again_at_once() {
    let mut stand = Stand::new(1);
    stand.want(0, &[0]);
    stand.lease(1, 0, 0);
    stand.wait(Duration::from_secs(1));
    progress(&mut stand.desk(), &host(1), content(0), chunks(1));
    ended(
        &mut stand.desk(),
        &host(1),
        (content(0), None),
        LeaseEnd::Released,
    );
    grant(&mut stand.desk());
    assert_eq!(stand.leases.holder(&content(0)), Some(&host(1)));
}

#[test]
fn a_host_that_says_what_it_holds_ends_no_lease_of_others() {
    let mut stand = Stand::new(4);
    stand.want(0, &[0]);
    stand.lease(1, 0, 0);
    witnesses(&mut stand, 4, 0);
    for end in [
        LeaseEnd::Done,
        LeaseEnd::Released,
        LeaseEnd::OriginFailed,
        LeaseEnd::Faulty(Fault::Bad),
        LeaseEnd::HostUnable,
    ] {
        assert_eq!(
            ended(&mut stand.desk(), &host(2), (content(0), None), end),
            None
        );
    }
    assert_eq!(stand.leases.holder(&content(0)), Some(&host(1)));
    let of = stand.contents.get(&content(0)).unwrap();
    assert!(of.done().is_empty() && of.tries().none_failed());
}

#[test]
fn two_hosts_refute_a_manifest_and_one_does_not() {
    let mut stand = Stand::new(4);
    stand.want(0, &[0]);
    let mut refutes = |number| {
        stand.lease(number, 0, 0);
        let end = LeaseEnd::Faulty(Fault::Bad);
        ended(&mut stand.desk(), &host(number), (content(0), None), end)
    };
    assert_eq!(refutes(1), None);
    let refuted = Refuted {
        content: content(0),
        image: image(0),
    };
    assert_eq!(refutes(2), Some(refuted));
    let ordered = stand.images.get(&image(0)).unwrap();
    let failure = stand.view().failure(ordered);
    assert_eq!(failure, Some((content(0), Fault::Bad)));
}

#[test]
fn what_a_mirrors_registry_does_counts_for_mirrors_alone() {
    for end in [
        LeaseEnd::OriginFailed,
        LeaseEnd::Faulty(Fault::Missing),
        LeaseEnd::HostUnable,
    ] {
        let mut stand = Stand::new(4);
        stand.ask(10, 10);
        stand.lease(1, 10, 10);
        ended(&mut stand.desk(), &host(1), (content(10), None), end);
        let tries = stand.contents.get(&content(10)).unwrap().tries();
        assert!(tries.rests_for_mirrors(stand.now), "{end:?}");
        assert_eq!(tries.fails(&image(10)), None);
        let record = (
            stand.records.barren(&host(1)),
            stand.records.failures(&host(1)),
        );
        assert_eq!(record, (1, 0), "{end:?}");
        assert!(!stand.records.was_unable(&host(1), "mirrored.example"));
    }
}

#[test]
fn leases_of_an_earlier_life_that_a_host_does_not_name_are_over() {
    let mut stand = Stand::new(2);
    stand.want(0, &[0, 1, 2]);
    stand.lease(1, 0, 0);
    stand.lease(1, 1, 0);
    stand.wait(MOMENT);
    let now = stand.now;
    stand.hosts.disconnect(now, &host(1));
    stand.hosts.connect(now, &host(1));
    stand.lease(1, 2, 0);
    drop_lost(&mut stand.desk(), &host(1), &[(content(1), None)]);
    let left: Vec<Digest> = stand.leases.iter().map(|(of, _)| *of).collect();
    let mut expected = [1, 2].map(content);
    expected.sort_unstable();
    assert_eq!(left, expected);
    assert_eq!(revoked(&mut stand), [], "it knows");
    // a host that is shunned loses its other leases too, and is told
    drop_all_of(&mut stand.desk(), &host(1), true);
    assert_eq!(revoked(&mut stand).len(), 2);
    assert!(stand.leases.is_empty());
}

#[test]
fn who_wants_what_a_host_has_on_trial_gets_its_lease() {
    let mut stand = Stand::new(2);
    stand.ask(10, 10);
    let now = stand.now;
    stand.records.mirror_expired(now, &host(1), now);
    stand.lease(1, 10, 10);
    assert!(
        stand
            .leases
            .all_of(&content(10))
            .first()
            .unwrap()
            .is_trial()
    );
    grant(&mut stand.desk());
    assert_eq!(stand.leases.holder(&content(10)), Some(&host(2)));
    let ended = (host(1), content(10), RevokeCause::Ended);
    assert_eq!(revoked(&mut stand), [ended]);
}
