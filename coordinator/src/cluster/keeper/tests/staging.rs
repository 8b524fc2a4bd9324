//! Staging: what the driver is told, and what stays after a change of leader.

use super::*;

#[tokio::test]
async fn what_was_staged_is_kept_while_it_is_paused_resolved_anew_or_unselected_for_a_while() {
    let mut stand = Stand::new("Running", &[]);
    let image = || crate::wants::tests::want("image", 1, 1 << 20);
    stand.enrol();
    stand.edit(&json!({}), 1);
    stand.answer("r.test/i:2", image());
    assert_eq!(stand.placed(), Some((1, 0)));
    stand.edit(&json!({ "paused": true }), 2);
    assert_eq!(stand.placed(), Some((0, 1)));
    stand.edit(&json!({}), 3);
    assert_eq!(stand.placed(), Some((1, 0)));

    // another name of the same image
    let renamed = json!({ "image": "r.test/i:3" });
    stand.edit(&renamed, 4);
    assert_eq!(stand.placed(), Some((0, 1)));
    stand.answer("r.test/i:3", image());
    assert_eq!(stand.placed(), Some((1, 0)));

    // the Node is created anew
    stand.see(Kind::Nodes, Seen::Gone(Box::new(dynamic(&the_node()))));
    stand.keep_up();
    assert_eq!(stand.placed(), Some((0, 1)));
    stand.see(Kind::Nodes, Seen::Applied(Box::new(dynamic(&the_node()))));
    stand.keep_up();
    assert_eq!(stand.placed(), Some((1, 0)));

    // another image takes the place of the first, which is given up when the other is resolved
    stand.edit(&json!({ "image": "r.test/i:4" }), 5);
    assert_eq!(stand.placed(), Some((0, 1)));
    stand.answer("r.test/i:4", crate::wants::tests::want("other", 1, 1 << 20));
    assert_eq!(stand.placed(), Some((1, 0)));

    // not selected for a long time
    stand.edit(
        &json!({ "image": "r.test/i:4", "nodeSelector": { "matchLabels": { "a": "c" } } }),
        6,
    );
    assert_eq!(stand.placed(), Some((0, 1)));
    stand.keeper.placing.age(placing::KEPT_FOR);
    stand.keep_up();
    assert_eq!(stand.placed(), Some((0, 0)));
    stand.keep_up();
    assert_eq!(stand.placed(), None, "and it stays so");
}

#[tokio::test]
async fn what_is_staged_once_is_staged_again_where_a_roll_needs_it() {
    for (image, wanted) in [("r.test/i:2", 1), ("r.test/i:1", 0)] {
        let mut stand = Stand::new("Running", &[]);
        stand.enrol();
        // a Node joined later, or its image was pruned
        let mut prepull = the_prepull();
        prepull["metadata"]["generation"] = 1.into();
        prepull["spec"]["completionPolicy"] = "Once".into();
        prepull["spec"]["image"] = image.into();
        prepull["status"] = json!({
            "observedGeneration": 1,
            "digest": crate::wants::tests::want("image", 1, 1 << 20).digest().to_string(),
            "stagedAt": "2020-01-01T00:00:00Z",
            "startedAt": "2020-01-01T00:00:00Z",
        });
        stand.forget();
        stand.see(Kind::PrePulls, Seen::Applied(Box::new(dynamic(&prepull))));
        stand.keep_up();
        stand.answer(image, crate::wants::tests::want("image", 1, 1 << 20));
        let rolls = stand.keeper.gating.rolls(&ObjectKey::new("ns", "pool"));
        assert_eq!(rolls, wanted == 1);
        assert_eq!(stand.placed(), Some((wanted, 0)), "{image}");
    }
}

#[tokio::test]
async fn a_new_leader_goes_on_by_the_digest_of_the_one_before_while_the_registry_is_away() {
    let mut stand = Stand::new("Running", &[Answer::Status(429)]);
    stand.settle().await;
    stand.enrol();
    let key = ObjectKey::new("ns", "pool");
    let mut prepull = the_prepull();
    prepull["metadata"]["generation"] = 3.into();
    prepull["status"] = json!({
        "observedGeneration": 3,
        "digest": digest().to_string(),
        "sizeBytes": 7,
        "startedAt": "2020-01-01T00:00:00Z",
    });
    // this coordinator forgets the facts that it learned itself
    stand.forget();
    stand.see(Kind::PrePulls, Seen::Applied(Box::new(dynamic(&prepull))));
    stand.keep_up();
    let facts = |stand: &Stand| stand.keeper.images.digest_of(&key, "r.test/i:2");
    assert_eq!(facts(&stand), Some(digest()));
    for _ in 0..3 {
        let failed = resolved("r.test/i:2", Err(UnresolvedReason::RegistryFailed));
        stand.keeper.apply(failed);
        stand.keep_up();
        assert_eq!(facts(&stand), Some(digest()));
    }
    let status = stand.status();
    let text = digest().to_string();
    assert_eq!(status.digest.as_ref(), Some(&text));
    assert_eq!(status.size_bytes, Some(7));
    // Pods drain from hosts that hold the image
    stand.keeper.jobs.detach();
    stand.pass(Duration::from_secs(40)).await;
    assert!(stand.is_labelled());
    assert_eq!(stand.writes().len(), 2);
    // another reference means another digest
    stand.edit(&json!({ "image": "r.test/i:3" }), 4);
    assert_eq!(stand.keeper.images.digest_of(&key, "r.test/i:3"), None);
}

#[tokio::test]
async fn a_pull_secret_is_read_again_and_its_trouble_told_until_it_is_over() {
    let mut stand = Stand::new("Running", &[]);
    stand.enrol();
    let named = "ns/pull".to_owned();
    let config = |password: &str| {
        Ok(format!(
            r#"{{"auths":{{"r.test":{{"username":"u","password":"{password}"}}}}}}"#
        ))
    };
    stand.shared.lock().unwrap().secret = Some(config("one"));
    stand.edit(&json!({ "pullSecretRef": { "name": "pull" } }), 1);
    stand.answer("r.test/i:2", crate::wants::tests::want("image", 1, 1 << 20));
    let look = async |stand: &mut Stand, secret| {
        // the registry takes no part in this test
        stand.keeper.jobs.detach();
        stand.shared.lock().unwrap().secret = secret;
        stand.keeper.secrets = Secrets::default();
        let now = stand.now();
        stand.keeper.read_secrets(now);
        stand.settle().await;
        let known = stand.keeper.jobs.knows_secret(&named);
        let status = stand.status();
        let degraded = status.conditions.iter().find(|c| c.type_ == "Degraded");
        (known, degraded.unwrap().reason == "PullSecret")
    };
    assert_eq!(look(&mut stand, Some(config("one"))).await, (true, false));
    // after a failed read, the earlier content stays
    assert_eq!(look(&mut stand, Some(Err(503))).await, (true, true));
    assert_eq!(look(&mut stand, Some(config("two"))).await, (true, false));
    assert_eq!(look(&mut stand, Some(Ok("{".into()))).await, (false, true));
    assert_eq!(look(&mut stand, Some(config("two"))).await, (true, false));
    assert_eq!(look(&mut stand, None).await, (false, true));
    assert_eq!(look(&mut stand, Some(config("two"))).await, (true, false));
    // no ImagePrePull names the Secret any more
    stand.edit(&json!({}), 2);
    assert!(!stand.keeper.jobs.knows_secret(&named));
}
