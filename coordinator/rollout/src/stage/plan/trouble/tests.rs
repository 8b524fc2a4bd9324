use super::{
    super::stand::{Stand, content, host, image, repository},
    *,
};
use crate::stage::Action;

const MOMENT: Duration = Duration::from_micros(1);

/// The content and cause of each lease that is taken back.
fn revoked(stand: &mut Stand) -> Vec<(Digest, RevokeCause)> {
    let actions = stand.actions().into_iter();
    actions
        .filter_map(|action| match action {
            Action::Revoke { content, cause, .. } => Some((content, cause)),
            _ => None,
        })
        .collect()
}

/// Until when the repository of image 0 is left alone.
fn left_alone(stand: &Stand) -> Option<Moment> {
    let origin = stand.origins.get("registry.example")?;
    origin.left_alone_until(&repository(0), stand.now)
}

/// The holder of a content's lease says what its registry does.
fn hear(desk: &mut Desk<'_>, content: Digest, trouble: Option<Trouble>) {
    let holder = desk.leases.holder(&content).cloned();
    super::hear(desk, &holder.unwrap(), content, trouble);
}

#[test]
fn a_connection_that_breaks_is_made_again_for_three_seconds() {
    let mut stand = Stand::new(4);
    stand.want(0, &[0, 1]);
    stand.lease(1, 0, 0);
    hear(&mut stand.desk(), content(0), Some(Trouble::Failing));
    stand.wait(stand.config.trouble_after - MOMENT);
    judge_all(&mut stand.desk());
    assert_eq!(revoked(&mut stand), []);
    stand.wait(MOMENT);
    judge_all(&mut stand.desk());
    let cause = RevokeCause::OriginFailed;
    assert_eq!(revoked(&mut stand), [(content(0), cause)]);
    // another host may try the content at once, and no host is held up
    let tries = stand.contents.get(&content(0)).unwrap().tries();
    assert!(tries.has_failed(&host(1)) && tries.is_away());
    assert_eq!(tries.away_until(stand.now), None);
    assert_eq!(left_alone(&stand), None);
}

#[test]
fn a_repository_that_fails_two_hosts_with_two_contents_is_left_alone() {
    let mut stand = Stand::new(4);
    stand.want(0, &[0, 1, 2]);
    for (to, of) in [(1, 0), (2, 1), (3, 2)] {
        stand.lease(to, of, 0);
        hear(&mut stand.desk(), content(of), Some(Trouble::Failing));
    }
    stand.wait(stand.config.trouble_after);
    judge_all(&mut stand.desk());
    let all: BTreeSet<Digest> = revoked(&mut stand).into_iter().map(|(of, _)| of).collect();
    assert_eq!(all, BTreeSet::from([0, 1, 2].map(content)));
    // the repository is left alone for a second, and up to a quarter more
    let left = left_alone(&stand).unwrap().since(stand.now).as_millis();
    assert!((1_000..=1_250).contains(&left), "{left}");
    // while the repository is left alone, a holder that reports trouble loses its lease at once
    stand.lease(4, 0, 0);
    hear(&mut stand.desk(), content(0), Some(Trouble::Silent));
    assert_eq!(
        revoked(&mut stand),
        [(content(0), RevokeCause::OriginFailed)]
    );
}

#[test]
fn what_comes_meanwhile_shows_that_a_failure_is_the_contents_alone() {
    let mut stand = Stand::new(4);
    stand.want(0, &[0, 1, 2]);
    for (to, of) in [(1, 0), (2, 1), (3, 2)] {
        stand.lease(to, of, 0);
    }
    for of in [0, 1] {
        hear(&mut stand.desk(), content(of), Some(Trouble::Failing));
    }
    stand.wait(stand.config.trouble_after);
    let now = stand.now;
    came(
        &mut stand.desk(),
        content(2),
        ("registry.example", &repository(0)),
        now,
    );
    judge_all(&mut stand.desk());
    assert_eq!(revoked(&mut stand).len(), 2);
    assert_eq!(left_alone(&stand), None);
}

#[test]
fn contents_that_fail_while_others_come_make_their_image_fail_after_half_a_minute() {
    let mut stand = Stand::new(4);
    stand.want(0, &[0, 1]);
    let registry = ("registry.example", repository(0));
    stand.lease(4, 1, 0);
    let mut failed_after = None;
    for second in 0..60 {
        let now = stand.now;
        came(
            &mut stand.desk(),
            content(1),
            (registry.0, &registry.1),
            now,
        );
        stand.lease(1 + second % 3, 0, 0);
        stand.wait(Duration::from_millis(500));
        came(
            &mut stand.desk(),
            content(1),
            (registry.0, &registry.1),
            now,
        );
        stand.wait(Duration::from_millis(500));
        if let Some(lease) = stand.end(content(0)) {
            lease_over(&mut stand.desk(), content(0), &lease);
        }
        if failed_after.is_none()
            && stand
                .view()
                .failure(stand.images.get(&image(0)).unwrap())
                .is_some()
        {
            failed_after = Some(second + 1);
        }
    }
    let failed_after = failed_after.unwrap();
    assert!((30..=32).contains(&failed_after), "{failed_after}");
    let ordered = stand.images.get(&image(0)).unwrap();
    assert_eq!(
        stand.view().failure(ordered),
        Some((content(0), Fault::Unavailable))
    );
}

#[test]
fn a_wish_takes_its_holders_lease_and_a_false_one_is_held_against_it() {
    let mut stand = Stand::new(6);
    stand.want(0, &[0, 1]);
    stand.lease(1, 0, 0);
    let wish = Trouble::Throttled(Duration::from_mins(5));
    hear(&mut stand.desk(), content(0), Some(wish));
    assert_eq!(
        revoked(&mut stand),
        [(content(0), RevokeCause::OriginFailed)]
    );
    let wait = |stand: &Stand| {
        let ordered = stand.images.get(&image(0)).unwrap();
        stand.view().origin_wait(ordered)
    };
    assert!(wait(&stand).is_some_and(|wait| wait.asked));
    // the content comes to the next lease before the wished time is over
    stand.wait(Duration::from_secs(6));
    stand.lease(2, 0, 0);
    let now = stand.now;
    came(
        &mut stand.desk(),
        content(0),
        ("registry.example", &repository(0)),
        now,
    );
    assert!(stand.records.is_disbelieved(now, &host(1)));
    // the host's next word costs its own lease, and no other host anything
    stand.lease(1, 1, 0);
    hear(&mut stand.desk(), content(1), Some(wish));
    assert_eq!(
        revoked(&mut stand),
        [(content(1), RevokeCause::OriginFailed)]
    );
    assert_eq!(wait(&stand), None);
}

#[test]
fn a_holder_that_lets_an_images_lease_run_out_has_failed_and_a_mirrors_is_on_trial() {
    let mut stand = Stand::new(2);
    stand.want(0, &[0]);
    stand.ask(10, 10);
    stand.lease(1, 0, 0);
    stand.lease(2, 10, 10);
    for of in [0, 10] {
        let lease = stand.end(content(of)).unwrap();
        ran_out(&mut stand.desk(), &lease);
    }
    assert_eq!(
        [1, 2].map(|number| stand.records.failures(&host(number))),
        [1, 0]
    );
    let trials = [1, 2].map(|number| stand.records.is_on_trial(stand.now, &host(number)));
    assert_eq!(trials, [false, true]);
}
