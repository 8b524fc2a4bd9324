//! What operators are told: conditions that don't flap, Events that are true, and a change of leader that retracts
//! nothing.

use super::*;

/// Shows the object with the last written status, as the watch would.
fn show(stand: &mut Stand, status: &ImagePrePullStatus, spec: &Value, generation: i64) {
    let mut prepull = the_prepull();
    for (field, value) in spec.as_object().unwrap() {
        prepull["spec"][field] = value.clone();
    }
    prepull["metadata"]["generation"] = generation.into();
    prepull["status"] = serde_json::to_value(status).unwrap();
    stand.see(Kind::PrePulls, Seen::Applied(Box::new(dynamic(&prepull))));
}

/// Reports that the host holds this image, as the driver does.
fn presence(stand: &mut Stand, digest: Digest, image: &str) {
    let word = driver::HostPresence {
        holdings: Arc::new([(digest, [image.to_owned()].into())].into()),
        checked_at: Instant::now(),
    };
    let view: PresenceView = [("mac-0".parse().unwrap(), word)].into();
    stand.keeper.apply(Input::Presence(Arc::new(view)));
}

/// A keeper whose only host holds the image, and the status that the keeper would write.
fn staged() -> (Stand, ImagePrePullStatus, Digest) {
    let mut stand = Stand::new("Running", &[]);
    stand.keeper.jobs.detach();
    stand.enrol();
    stand.edit(&json!({}), 1);
    let want = crate::wants::tests::want("image", 1, 1 << 20);
    let digest = want.digest();
    stand.answer("r.test/i:2", want);
    presence(&mut stand, digest, "r.test/i:2");
    let status = stand.status();
    assert_eq!(status.state.as_deref(), Some("Rolling"));
    assert_eq!(status.hosts.staged, 1);
    (stand, status, digest)
}

/// Another coordinator that takes over. It has listed the cluster, and no host has reported.
fn next(before: &ImagePrePullStatus) -> Stand {
    let mut stand = Stand::new("Running", &[]);
    stand.keeper.jobs.detach();
    stand.enrol();
    stand.forget();
    show(&mut stand, before, &json!({}), 1);
    stand.keep_up();
    stand
}

#[tokio::test]
async fn a_change_of_leader_unsays_nothing_and_tells_nothing_again() {
    let (_, before, digest) = staged();
    let mut stand = next(&before);
    let same = |stand: &mut Stand, when: &str| {
        let now = stand.status();
        assert_eq!(now.hosts, before.hosts, "{when}");
        assert_eq!(now.digest, before.digest, "{when}");
        for before in before.conditions.iter().filter(|c| c.type_ != "Rolling") {
            let found = now
                .conditions
                .iter()
                .find(|c| c.type_ == before.type_)
                .unwrap();
            assert_eq!(found, before, "{when}");
        }
    };
    same(&mut stand, "nobody has spoken");
    // the registry is unreachable, and then reachable again
    let failed = resolved("r.test/i:2", Err(UnresolvedReason::RegistryFailed));
    stand.keeper.apply(failed);
    assert_eq!(stand.condition("Resolved").0, "True");
    stand.answer("r.test/i:2", crate::wants::tests::want("image", 1, 1 << 20));
    same(&mut stand, "the image is resolved again");
    presence(&mut stand, digest, "r.test/i:2");
    same(&mut stand, "the host has spoken");
    // a host that has had time to report and hasn't doesn't count as holding the image
    let mut stand = next(&before);
    stand
        .keeper
        .clock
        .skip(rollout::presence::MAX_AGE + Duration::from_secs(1));
    let now = stand.status();
    assert_eq!(now.hosts.staged, 0);
    assert_eq!(stand.condition("Staged").0, "False");
    // no Event says what isn't true, or what was said before
    let mut stand = next(&before);
    stand.settle().await;
    stand.tick(Duration::from_secs(2)).await;
    assert_eq!(stand.events(), []);
}

#[tokio::test]
async fn conditions_do_not_flap_while_an_image_cannot_be_resolved() {
    let mut stand = Stand::new("Running", &[]);
    stand.keeper.jobs.detach();
    stand.enrol();
    let spec = json!({ "image": "r.test/i:nope" });
    stand.edit(&spec, 1);
    assert_eq!(stand.condition("Resolved").0, "Unknown");
    let key = ObjectKey::new("ns", "pool");
    let fail = |stand: &mut Stand| {
        let failed = resolved("r.test/i:nope", Err(UnresolvedReason::NotFound));
        stand.keeper.jobs.detach();
        stand.keeper.apply(failed);
    };
    fail(&mut stand);
    let mut before = stand.status();
    for condition in &mut before.conditions {
        // the condition has had this status for a long time
        let long_ago = Timestamp::from_second(1_000_000).unwrap();
        condition.last_transition_time.0 = long_ago;
    }
    let is_same = |stand: &mut Stand, when: &str| {
        assert_eq!(stand.status().conditions, before.conditions, "{when}");
    };
    show(&mut stand, &before, &spec, 1);
    is_same(&mut stand, "it failed");
    for _ in 0..3 {
        // the image is tried again
        let now = stand.now();
        stand.keeper.images.retry_now(now.instant);
        stand.keeper.stage(now);
        assert!(stand.keeper.images.get(&key).unwrap().is_asking());
        is_same(&mut stand, "it is asked again");
        fail(&mut stand);
        is_same(&mut stand, "it failed again");
    }
    // the next leader's conditions don't flap either
    let mut next = Stand::new("Running", &[]);
    next.keeper.jobs.detach();
    next.enrol();
    next.forget();
    show(&mut next, &before, &spec, 1);
    next.keep_up();
    is_same(&mut next, "another coordinator took over");
    next.settle().await;
    let told = next.events();
    assert!(
        told.iter().all(|(reason, _)| reason != "StageFailed"),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_second_roll_within_minutes_has_its_own_events_which_name_the_image() {
    let (mut stand, ..) = staged();
    stand.settle().await;
    stand.keep_up();
    stand.settle().await;
    for (generation, seed) in [(2, "second"), (3, "third")] {
        let image = format!("r.test/i:{seed}");
        stand.edit(&json!({ "image": image }), generation);
        stand.keeper.jobs.detach();
        let want = crate::wants::tests::want(seed, 1, 1 << 20);
        let digest = want.digest();
        stand.answer(&image, want);
        stand.settle().await;
        presence(&mut stand, digest, &image);
        stand.keep_up();
        stand.settle().await;
        let told = stand.events();
        for reason in ["Staging", "Staged"] {
            let own = told
                .iter()
                .filter(|(told, note)| told == reason && note.contains(&image))
                .count();
            assert_eq!(own, 1, "{reason} of {image}: {told:?}");
        }
    }
    // the Event about the first image isn't repeated within minutes
    let before = stand.events().len();
    stand.edit(&json!({ "image": "r.test/i:second" }), 4);
    stand.keeper.jobs.detach();
    let want = crate::wants::tests::want("second", 1, 1 << 20);
    stand.answer("r.test/i:second", want);
    stand.settle().await;
    let fresh: Vec<_> = stand.events().split_off(before);
    assert!(
        fresh.iter().all(|(reason, _)| reason != "Staging"),
        "{fresh:?}"
    );
}

#[tokio::test]
async fn a_pod_is_told_why_it_is_held_when_that_lasts_and_not_what_passes_by_itself() {
    // the label is refused at first, so the Pod stays
    let mut stand = Stand::new("Running", &[Answer::Status(429)]);
    stand.settle().await;
    stand.enrol();
    // the image is new: first it isn't resolved, and then the host doesn't hold it
    stand.edit(&json!({ "image": "r.test/i:3" }), 2);
    stand.keeper.jobs.detach();
    // the wait after the refusal is over
    stand.keeper.clock.skip(Duration::from_secs(2));
    stand.keeper.apply(Input::Tick);
    assert_eq!(stand.pod().reason, proto::Reason::ImageUnresolved.into());
    stand.tick(Duration::from_millis(80)).await;
    stand.answer("r.test/i:3", crate::wants::tests::want("third", 1, 1 << 20));
    stand.hold();
    stand.tick(Duration::from_secs(1)).await;
    assert!(
        stand
            .events()
            .iter()
            .all(|(reason, _)| reason != "GateHeld")
    );
    for _ in 0..10 {
        stand.hold();
        stand.tick(Duration::from_secs(2)).await;
    }
    let held: Vec<_> = stand
        .events()
        .into_iter()
        .filter(|(reason, _)| reason == "GateHeld")
        .collect();
    assert_eq!(held.len(), 1, "{held:?}");
    assert!(
        held[0].1.contains("r.test/i:3") && held[0].1.contains("doesn't hold"),
        "{held:?}"
    );
    // another true reason gets an Event after its own wait, whatever was said before
    stand.edit(&json!({ "image": "r.test/i:3", "paused": true }), 3);
    for _ in 0..5 {
        stand.hold();
        stand.tick(Duration::from_secs(2)).await;
    }
    let held = stand.events();
    let held = held
        .iter()
        .filter(|(reason, note)| reason == "GateHeld" && note.contains("paused"));
    assert_eq!(held.count(), 1);
}

#[tokio::test]
async fn a_status_that_the_cluster_does_not_keep_is_not_written_all_the_time() {
    let mut stand = Stand::new("Running", &[]);
    stand.keeper.jobs.detach();
    stand.enrol();
    stand.edit(&json!({ "paused": true }), 1);
    stand.keeper.jobs.detach();
    stand.keeper.statuses = Statuses::new();
    stand.answer("r.test/i:2", crate::wants::tests::want("image", 1, 1 << 20));
    for _ in 0..20 {
        stand.settle().await;
        stand.keep_up();
    }
    let written = stand.shared.lock().unwrap().statuses;
    assert!((1..=2).contains(&written), "{written}");
    // news is written at once nevertheless
    stand.edit(&json!({ "image": "r.test/i:nope" }), 2);
    stand.keeper.jobs.detach();
    stand.keeper.statuses = Statuses::new();
    let failed = resolved("r.test/i:nope", Err(UnresolvedReason::NotFound));
    stand.keeper.apply(failed);
    stand.keep_up();
    stand.settle().await;
    assert!(stand.shared.lock().unwrap().statuses > written);
}

#[tokio::test]
async fn every_write_names_its_manager_and_its_program() {
    let stop = CancellationToken::new();
    let shared = shared("Running", &[]);
    let (client, mut server) = served(&shared, &stop).await;
    let mut stand = Stand::with("Running", shared, client, Duration::from_mins(1));
    stand.settle().await;
    let (reply, answer) = tokio::sync::oneshot::channel();
    let question = Question::Pause {
        key: ObjectKey::new("ns", "pool"),
        paused: true,
        reply,
    };
    stand.keeper.apply(Input::Asked(question));
    stand.settle().await;
    assert!(
        answer.await.unwrap().is_err(),
        "there is no such object there"
    );
    let (writers, agents) = {
        let fake = stand.shared.lock().unwrap();
        (fake.writers.clone(), fake.agents.clone())
    };
    for query in &writers {
        // the API server names an Event's manager by the writer's User-Agent
        assert!(
            query.contains("fieldManager=parbake") || query.is_empty(),
            "{query}"
        );
    }
    assert!(
        writers
            .iter()
            .any(|query| query.contains("fieldManager=parbake"))
    );
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        agents.iter().collect::<Vec<_>>(),
        [&format!("parbake/{version} (parbake-coordinator)")]
    );
    stop.cancel();
    server.join_next().await;
}

#[tokio::test]
async fn no_message_only_repeats_its_reason() {
    let (mut stand, status, _) = staged();
    let mut all = vec![status];
    stand.edit(&json!({ "image": "r.test/i:9" }), 2);
    stand.keeper.jobs.detach();
    all.push(stand.status());
    let failed = resolved("r.test/i:9", Err(UnresolvedReason::NotFound));
    stand.keeper.apply(failed);
    all.push(stand.status());
    for (state, status) in ["Rolling", "Resolving", "Unresolved"].iter().zip(&all) {
        assert_eq!(status.state.as_deref(), Some(*state));
    }
    for condition in all.iter().flat_map(|status| &status.conditions) {
        // the registry's message is this test's own text
        let own = ["Resolved", "Degraded"].contains(&condition.type_.as_str())
            && condition.reason == "NotFound";
        assert!(
            own || condition.message != condition.reason,
            "{condition:?}"
        );
    }
}

#[tokio::test]
async fn an_image_that_is_asked_for_anew_is_tried_at_once() {
    let (mut stand, ..) = staged();
    let urged = |stand: &mut Stand| {
        let mut urged = 0;
        while let Ok(input) = stand.driver.try_recv() {
            urged += usize::from(matches!(input, driver::Input::Asked(Ask::Urge(_))));
        }
        urged
    };
    stand.keep_up();
    assert_eq!(urged(&mut stand), 0);
    let annotate = |stand: &mut Stand, value: &str, replicas: u32| {
        let mut prepull = the_prepull();
        prepull["metadata"]["annotations"] = json!({ "parbake.dev/retry-at": value });
        prepull["metadata"]["generation"] = replicas.into();
        prepull["spec"]["gate"]["replicas"] = replicas.into();
        stand.see(Kind::PrePulls, Seen::Applied(Box::new(dynamic(&prepull))));
        stand.keep_up();
        stand.keep_up();
    };
    annotate(&mut stand, "now", 1);
    assert_eq!(urged(&mut stand), 1);
    // the pool grows, which asks for nothing
    annotate(&mut stand, "now", 7);
    assert_eq!(urged(&mut stand), 0);
    annotate(&mut stand, "and now", 7);
    assert_eq!(urged(&mut stand), 1);
}
