//! Writes on Pods that are cut off between decision and answer.

use super::*;

#[tokio::test]
async fn a_label_is_written_once_and_its_answer_is_believed_before_the_watch() {
    let mut stand = Stand::new("Running", &[]);
    stand.settle().await;
    assert_eq!(stand.writes(), ["PATCH Done"]);
    assert!(stand.is_labelled());
    // the watch lags: it shows an older Pod than the answer
    stand.see(
        Kind::Pods,
        Seen::Applied(Box::new(dynamic(&the_pod("Running")))),
    );
    stand.pass(Duration::from_secs(5)).await;
    stand.watch();
    stand.pass(Duration::from_secs(90)).await;
    assert_eq!(stand.writes(), ["PATCH Done"]);
}

#[tokio::test]
async fn a_label_that_is_refused_is_decided_anew_after_a_moment() {
    for code in [400, 403, 404, 409, 422, 429] {
        let mut stand = Stand::new("Running", &[Answer::Status(code)]);
        stand.settle().await;
        assert!(!stand.is_labelled());
        stand.pass(Duration::from_millis(200)).await;
        assert_eq!(stand.writes().len(), 1, "{code}: it waits");
        stand.pass(Duration::from_secs(2)).await;
        stand.settle().await;
        assert!(stand.is_labelled(), "{code}: {:?}", stand.writes());
        assert_eq!(stand.writes().len(), 2);
    }
}

#[tokio::test]
async fn a_label_whose_answer_is_lost_keeps_its_room_until_what_is_seen_tells() {
    for answer in [Answer::Unheard, Answer::Status(500), Answer::Status(504)] {
        let mut stand = Stand::new("Running", &[answer]);
        stand.settle().await;
        // the write may be done, so no second Pod takes the place, and this Pod isn't written to again
        stand.pass(Duration::from_secs(20)).await;
        assert_eq!(stand.writes().len(), 1, "{answer:?}");
        stand.pass(Duration::from_secs(20)).await;
        assert!(stand.is_labelled(), "{answer:?}: {:?}", stand.writes());
        assert_eq!(stand.writes().len(), 2);
    }
    let mut stand = Stand::new("Running", &[Answer::DoneUnheard]);
    stand.settle().await;
    stand.watch();
    stand.pass(Duration::from_secs(90)).await;
    assert!(stand.is_labelled());
    assert_eq!(stand.writes().len(), 1);
}

#[tokio::test]
async fn a_label_that_was_put_on_and_answered_badly_is_sent_once_and_keeps_its_room() {
    for code in [503, 504] {
        let stop = CancellationToken::new();
        let shared = shared("Running", &[Answer::DoneStatus(code)]);
        let (client, mut server) = served(&shared, &stop).await;
        let mut stand = Stand::with("Running", shared, client, Duration::from_mins(1));
        stand.settle().await;
        // a repeated write would be refused as old, and its place would go to another Pod before the label is seen
        assert_eq!(stand.writes().len(), 1, "{:?}", stand.writes());
        let pool = ObjectKey::new("ns", "pool");
        let status = stand.keeper.gating.status(&pool).unwrap();
        assert_eq!((status.in_flight, status.reserved), (0, 1));
        stand.watch();
        let status = stand.keeper.gating.status(&pool).unwrap();
        assert_eq!((status.in_flight, status.reserved), (1, 0));
        stand.pass(Duration::from_secs(90)).await;
        assert_eq!(stand.writes().len(), 1);
        stop.cancel();
        server.join_next().await;
    }
}

#[tokio::test]
async fn no_write_is_waited_for_beyond_the_term() {
    let shared = shared("Running", &[Answer::Silence]);
    let client = fake(&shared);
    let mut stand = Stand::with("Running", shared, client, Duration::from_millis(20));
    let begun = Instant::now();
    stand.settle().await;
    assert!(begun.elapsed() < Duration::from_secs(4));
    // the write may be done
    let pool = ObjectKey::new("ns", "pool");
    let status = stand.keeper.gating.status(&pool).unwrap();
    assert_eq!((status.in_flight, status.reserved), (0, 1));
}

#[tokio::test]
async fn a_pod_that_is_gone_or_made_anew_under_the_write_is_let_go() {
    let mut stand = Stand::new("Running", &[Answer::Status(404)]);
    stand.settle().await;
    stand.shared.lock().unwrap().pod = None;
    stand.watch();
    stand.pass(Duration::from_secs(90)).await;
    assert_eq!(stand.writes().len(), 1);
    assert!(stand.keeper.gating.knows_no_pod());
}

#[tokio::test]
async fn a_pending_pod_is_reaped_whatever_becomes_of_the_answer() {
    for answer in [
        Answer::Done,
        Answer::DoneUnheard,
        Answer::Unheard,
        Answer::Status(404),
        Answer::Status(409),
        Answer::Status(429),
        Answer::Status(500),
    ] {
        let mut stand = Stand::new("Pending", &[answer]);
        stand.settle().await;
        if answer == Answer::Status(404) {
            // the Pod that was to be deleted is gone, so nobody asks for it again
            assert!(stand.keeper.index.pods.is_empty());
            continue;
        }
        stand.watch();
        stand.pass(Duration::from_secs(40)).await;
        stand.watch();
        assert!(stand.shared.lock().unwrap().pod.is_none(), "{answer:?}");
        let tries = stand.writes().len();
        let once = matches!(answer, Answer::Done | Answer::DoneUnheard);
        assert_eq!(tries, if once { 1 } else { 2 }, "{answer:?}");
        stand.pass(Duration::from_secs(90)).await;
        assert_eq!(stand.writes().len(), tries);
    }
}

#[tokio::test]
async fn who_does_not_lead_any_more_writes_nothing() {
    let mut stand = Stand::new("Running", &[]);
    // the lease is lost between the decision and the write
    stand
        .leads
        .store(false, std::sync::atomic::Ordering::Relaxed);
    stand.settle().await;
    stand.pass(Duration::from_secs(90)).await;
    assert_eq!(stand.writes(), Vec::<String>::new());
    assert!(!stand.is_labelled());
}

/// The README's main promise, as the test's name.
#[tokio::test]
async fn a_pod_gets_the_drain_label_only_when_its_node_holds_its_pools_image_verified_by_a_word_at_most_30_s_old_and_fewer_pods_than_the_cap_are_in_flight_and_the_label_is_taken_back_when_presence_is_lost_first()
 {
    let holds = |stand: &mut Stand, holdings: &[(Digest, &str)], age: u64| {
        let holdings = holdings
            .iter()
            .map(|(digest, image)| (*digest, [(*image).to_owned()].into()))
            .collect();
        let age = Duration::from_secs(age);
        let event = gate::Event::Holds("mac-0".parse().unwrap(), holdings, age);
        stand.tell(event);
        stand.act();
    };
    let other = Digest::of(b"other");
    let whole = [(digest(), "r.test/i:2")];
    // the label isn't given for another digest under the image's name, for another name, for an old report, or without
    // a report
    let wrong: [(&[(Digest, &str)], u64); 5] = [
        (&[(other, "r.test/i:2")], 0),
        (&[(digest(), "r.test/i:1")], 0),
        (&whole, 31),
        (&[], 0),
        (&whole, 3_600),
    ];
    for (holdings, age) in wrong {
        let mut stand = Stand::new("Pending", &[Answer::Status(429)]);
        stand.settle().await;
        holds(&mut stand, holdings, age);
        let running = the_pod("Running");
        stand.shared.lock().unwrap().pod = Some(running.clone());
        stand.see(Kind::Pods, Seen::Applied(Box::new(dynamic(&running))));
        for _ in 0..40 {
            stand.keeper.clock.skip(Duration::from_secs(2));
            holds(&mut stand, holdings, age);
            stand.settle().await;
        }
        assert_eq!(stand.writes().len(), 1, "{holdings:?} {age}");
        assert!(!stand.is_labelled());
        // the report stays younger than 30 s while the test looks
        holds(&mut stand, &whole, 28);
        stand.settle().await;
        let view = stand.pod();
        assert!(stand.is_labelled(), "{view:?} {:?}", stand.writes());
        // the image is lost before the Pod drains, so the label is taken back
        stand.watch();
        holds(&mut stand, &[(other, "r.test/i:2")], 0);
        stand.settle().await;
        assert!(!stand.is_labelled());
        assert_eq!(
            stand
                .events()
                .iter()
                .filter(|(reason, _)| reason == "DrainWithdrawn")
                .count(),
            1
        );
    }
    // the cap is one, so only one of two Pods that could go does
    let mut stand = Stand::new("Running", &[]);
    let mut second = the_pod("Running");
    second["metadata"]["name"] = "q".into();
    second["metadata"]["uid"] = "q".into();
    stand.see(Kind::Pods, Seen::Applied(Box::new(dynamic(&second))));
    stand.settle().await;
    stand.watch();
    stand.pass(Duration::from_secs(90)).await;
    assert_eq!(stand.writes(), ["PATCH Done"]);
    let pool = ObjectKey::new("ns", "pool");
    let status = stand.keeper.gating.status(&pool).unwrap();
    assert_eq!((status.labelled, status.in_flight, status.cap), (1, 1, 1));
}

/// The API server answers Events and Node labels slowly, and there are more of each than may be under way at one time.
#[tokio::test]
async fn a_drain_label_waits_for_no_other_write() {
    let mut stand = Stand::new("Running", &[Answer::Done]);
    // the write that the gate wants by itself doesn't disturb the test
    stand.keeper.jobs.stop().await;
    stand.shared.lock().unwrap().slow = true;
    let key = ObjectKey::new("ns", "p");
    let write = PodWrite::Label("drain".into());
    for _ in 0..64 {
        let pod = stand.keeper.index.pods.get(&key);
        let note = stand.keeper.notes.written(&key, pod, "i", &write, None);
        stand.keeper.jobs.publish(note.unwrap());
        stand.keeper.jobs.write_for_ever();
    }
    // as many of these writes as possible have begun
    tokio::task::yield_now().await;
    let before = stand.shared.lock().unwrap().writes.len();
    stand.keeper.jobs.write_pod(Order {
        id: gate::PodId("uid".into()),
        target: Target {
            key,
            uid: "uid".into(),
            resource_version: "10".into(),
            owner: None,
        },
        write,
        why: None,
    });
    let first = tokio::time::timeout(Duration::from_secs(2), stand.keeper.jobs.next());
    let first = first.await.expect("a write on a Pod went through").unwrap();
    assert!(matches!(first, Ok(Input::PodWritten(..))), "{first:?}");
    assert_eq!(stand.shared.lock().unwrap().writes.len(), before + 1);
}
