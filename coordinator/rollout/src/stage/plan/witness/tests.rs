use super::{
    super::stand::{Stand, content, host, image, repository},
    *,
};
use crate::stage::Action;

const MOMENT: Duration = Duration::from_micros(1);

/// This host says how many chunks it holds of a content.
fn says(stand: &mut Stand, number: u32, of: u32, chunks: u32) {
    let fresh = stand.hosts.counted(&host(number)).unwrap();
    count(
        &mut stand.desk(),
        &host(number),
        fresh,
        &[(content(of), chunks)],
    );
}

/// Six hosts that report what they hold, and an image whose content is leased to the first host.
fn leased() -> Stand {
    let mut stand = Stand::new(6);
    stand.want(0, &[0]);
    for number in 1..=6 {
        says(&mut stand, number, 0, 0);
    }
    stand.lease(1, 0, 0);
    weigh(&mut stand.desk());
    stand
}

/// When other hosts last got something of the leased content.
fn seen_at(stand: &Stand) -> Moment {
    stand.leases.all_of(&content(0)).first().unwrap().seen_at()
}

#[test]
fn a_lease_brings_something_when_a_third_of_those_who_lack_it_got_more() {
    let mut stand = leased();
    let granted = stand.now;
    stand.wait(Duration::from_secs(1));
    // the holder's own word is no receipt, and neither is the word of a shunned host
    says(&mut stand, 1, 0, 9);
    says(&mut stand, 2, 0, 1);
    let (now, config) = (stand.now, stand.config.clone());
    stand.hosts.quarantine(now, &host(2), &config);
    says(&mut stand, 3, 0, 1);
    weigh(&mut stand.desk());
    assert_eq!(seen_at(&stand), granted, "one of four is too few");
    says(&mut stand, 4, 0, 1);
    weigh(&mut stand.desk());
    assert_eq!(seen_at(&stand), now);
    // the same report once more is no news
    stand.wait(Duration::from_secs(1));
    for number in 3..=6 {
        says(&mut stand, number, 0, 1);
    }
    weigh(&mut stand.desk());
    assert_eq!(
        seen_at(&stand),
        stand.now,
        "two hosts got their first chunk"
    );
    stand.wait(Duration::from_secs(1));
    for number in 3..=6 {
        says(&mut stand, number, 0, 1);
    }
    weigh(&mut stand.desk());
    assert_ne!(seen_at(&stand), stand.now);
}

#[test]
fn a_registry_that_gives_is_noted_with_its_pace() {
    let mut stand = leased();
    stand.wait(Duration::from_secs(2));
    let now = stand.now;
    stand
        .leases
        .all_of_mut(&content(0))
        .first_mut()
        .unwrap()
        .fetch(now, 4, 0);
    for number in 2..=6 {
        says(&mut stand, number, 0, 1);
    }
    weigh(&mut stand.desk());
    let origin = stand.origins.get("registry.example").unwrap();
    assert!(origin.gives(now) && origin.gave_since(&repository(0), now - MOMENT));
    // four chunks of a thousand blob bytes each came in two seconds
    assert_eq!(stand.view().pace("registry.example"), Some(2_000));
}

#[test]
fn what_a_few_say_to_hold_whole_is_believed_for_five_seconds() {
    let mut stand = leased();
    stand.end(content(0));
    says(&mut stand, 2, 0, 100);
    weigh(&mut stand.desk());
    let done = |stand: &Stand| {
        let of = stand.contents.get(&content(0)).unwrap();
        stand.view().is_done(of)
    };
    assert!(done(&stand));
    stand.wait(CLAIM_GRACE - MOMENT);
    weigh(&mut stand.desk());
    assert!(done(&stand));
    stand.effects.take_ask_for_grants();
    stand.wait(MOMENT);
    weigh(&mut stand.desk());
    assert!(!done(&stand), "one of six says so");
    assert!(stand.effects.is_asked_for_grants());
    // three of six hosts are believed for good
    for number in [3, 4, 5] {
        says(&mut stand, number, 0, 100);
    }
    weigh(&mut stand.desk());
    stand.wait(CLAIM_GRACE);
    weigh(&mut stand.desk());
    assert!(done(&stand));
}

#[test]
fn the_word_of_a_few_lasts_while_hosts_get_the_content_without_a_lease() {
    let mut stand = leased();
    stand.end(content(0));
    says(&mut stand, 2, 0, 100);
    for chunks in 1..20 {
        weigh(&mut stand.desk());
        stand.wait(CLAIM_GRACE - MOMENT);
        for number in 3..=6 {
            says(&mut stand, number, 0, chunks);
        }
    }
    let of = stand.contents.get(&content(0)).unwrap();
    assert!(stand.view().is_done(of));
}

#[test]
fn a_holder_that_nobody_gets_anything_from_loses_its_lease() {
    // a holder that keeps chunks back has six seconds, and 10 ms for each host; a holder that gets no chunk has five
    // minutes
    for (chunks, patience) in [(2, UNSEEN + 6 * PER_HOST), (0, UNSEEN_MOST)] {
        let mut stand = leased();
        let now = stand.now;
        stand
            .leases
            .all_of_mut(&content(0))
            .first_mut()
            .unwrap()
            .fetch(now, chunks, 0);
        stand.wait(patience - MOMENT);
        expire_unseen(&mut stand.desk());
        assert!(stand.leases.contains(&content(0)), "{chunks}");
        stand.wait(MOMENT);
        expire_unseen(&mut stand.desk());
        assert!(!stand.leases.contains(&content(0)), "{chunks}");
        let cause = RevokeCause::Ended;
        let (host, content) = (host(1), content(0));
        assert!(stand.actions().contains(&Action::Revoke {
            host: host.clone(),
            content,
            cause
        }));
        assert_eq!(stand.records.failures(&host), 1);
    }
}

#[test]
fn a_lease_that_was_taken_over_shows_something_within_half_a_minute() {
    let mut stand = leased();
    stand.end(content(0));
    let ordered = stand.images.get(&image(0)).unwrap();
    let grant = crate::stage::plan::leases::Grant {
        host: host(1),
        content: content(0),
        range: None,
        image: image(0),
        registry: ordered.registry().into(),
        repository: ordered.repository().into(),
        purpose: ordered.purpose(),
    };
    stand.desk().take_over(grant, 0);
    stand.wait(UNSEEN_TAKEN_OVER - MOMENT);
    expire_unseen(&mut stand.desk());
    assert!(stand.leases.contains(&content(0)));
    stand.wait(MOMENT);
    expire_unseen(&mut stand.desk());
    assert!(!stand.leases.contains(&content(0)));
}

#[test]
fn where_nobody_could_say_otherwise_a_holder_keeps_its_lease() {
    let mut stand = Stand::new(1);
    stand.want(0, &[0]);
    stand.lease(1, 0, 0);
    weigh(&mut stand.desk());
    stand.wait(2 * UNSEEN_MOST);
    expire_unseen(&mut stand.desk());
    assert!(stand.leases.contains(&content(0)));
}
