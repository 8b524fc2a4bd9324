//! Watches, jobs and questions: what the keeper knows, and what it answers while it doesn't know.

use super::*;

#[tokio::test]
async fn a_watch_that_is_told_to_come_later_is_blind_until_it_sees() {
    for code in [429, 503, 504] {
        let stop = CancellationToken::new();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let busy = Router::new().fallback(move || async move { failure(code) });
        let mut tasks = JoinSet::new();
        tasks.spawn(crate::serve::serve(listener, None, busy, stop.clone()));
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        let client = crate::cluster::access::client(config).unwrap();
        let (seen, mut sights) = mpsc::channel(8);
        let scope = Scope::everywhere(Kind::Pods);
        tasks.spawn(follow(client, scope, seen, stop.clone()));
        let mut sight = async || sights.recv().await.map(|(_, sight)| sight);
        assert!(matches!(sight().await, Some(Seen::Listing)));
        assert!(
            matches!(sight().await, Some(Seen::Blind { absent: false, .. })),
            "{code}"
        );
        stop.cancel();
        while tasks.join_next().await.is_some() {}
    }
}

#[tokio::test]
async fn a_start_counts_as_staged_by_what_the_pod_met_on_its_node() {
    for (there, expected) in [(true, (1, 0)), (false, (0, 1))] {
        let mut stand = Stand::new("Running", &[]);
        let pod = |version: &str, node: Option<&str>, phase: &str| {
            let mut pod = the_pod(phase);
            pod["metadata"]["name"] = "q".into();
            pod["metadata"]["uid"] = "q".into();
            pod["metadata"]["resourceVersion"] = version.into();
            pod["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z".into();
            pod["spec"]["containers"][0]["image"] = "r.test/i:2".into();
            pod["spec"]["nodeName"] = json!(node);
            Seen::Applied(Box::new(dynamic(&pod)))
        };
        let holds = |stand: &mut Stand, there: bool| {
            let holdings = match there {
                true => [(digest(), ["r.test/i:2".to_owned()].into())].into(),
                false => BTreeMap::new(),
            };
            let event = gate::Event::Holds("mac-0".parse().unwrap(), holdings, Duration::ZERO);
            stand.tell(event);
        };
        holds(&mut stand, there);
        stand.see(Kind::Pods, pod("20", None, "Pending"));
        stand.see(Kind::Pods, pod("21", Some("mac-0"), "Pending"));
        // the Pod pulls the image, or somebody prunes it: neither changes what the Pod found at first
        holds(&mut stand, !there);
        stand.see(Kind::Pods, pod("22", Some("mac-0"), "Pending"));
        stand.see(Kind::Pods, pod("23", Some("mac-0"), "Running"));
        assert_eq!(stand.keeper.metrics.provisions(), expected);
        stand.see(Kind::Pods, pod("24", Some("mac-0"), "Running"));
        assert_eq!(stand.keeper.metrics.provisions(), expected, "once");
    }
}

#[tokio::test]
async fn a_pod_is_told_to_ask_again_while_the_cluster_is_not_known() {
    let mut stand = Stand::new("Running", &[]);
    stand.settle().await;
    stand.watch();
    let drain = |stand: &mut Stand, name: &str| {
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        let key = ObjectKey::new("ns", name);
        let question = Question::Drain { key, reply };
        stand.keeper.apply(Input::Asked(question));
        answer.try_recv().unwrap()
    };
    assert_eq!(drain(&mut stand, "p"), Drain::Leave);
    assert_eq!(drain(&mut stand, "q"), Drain::NoSuchPod);
    let scope = Scope::everywhere(Kind::Pods);
    // like a coordinator that has just begun to lead
    stand.keeper.watches.unlist(&scope);
    for name in ["p", "q"] {
        assert_eq!(drain(&mut stand, name), Drain::Unknown, "{name}");
    }
}

#[tokio::test]
async fn a_watch_that_sees_nothing_for_long_shuts_the_gate_until_everything_is_listed_anew() {
    let mut stand = Stand::new("Running", &[Answer::Status(429)]);
    stand.settle().await;
    let blind = |error: &str| Seen::Blind {
        error: error.into(),
        absent: false,
    };
    // like a watch with a version that is too old: 410 Gone
    stand.see(Kind::Pods, blind("too old resource version"));
    assert!(stand.keeper.watches.synced(), "a moment is no harm");
    let scope = Scope::everywhere(Kind::Pods);
    stand.keeper.watches.blind(Instant::now(), &scope);
    stand.pass(Duration::from_secs(5)).await;
    assert!(!stand.keeper.watches.synced());
    assert_eq!(stand.writes().len(), 1);
    // the Pod went while the watch was blind
    stand.see(Kind::Pods, Seen::Listing);
    stand.see(Kind::Pods, Seen::Listed);
    assert!(stand.keeper.watches.synced());
    stand.pass(Duration::from_secs(5)).await;
    assert_eq!(stand.writes().len(), 1);
    assert!(stand.keeper.gating.knows_no_pod());
}

#[tokio::test]
async fn a_job_that_panics_ends_the_keeper_and_nothing_waits_for_its_answer() {
    let mut stand = Stand::new("Running", &[]);
    stand.settle().await;
    let (waits, mut answer) = tokio::sync::oneshot::channel::<()>();
    stand.keeper.jobs.spawn(async move {
        let _waits = waits;
        panic!("injected");
    });
    let (_questions, asked) = mpsc::channel(1);
    let (_view, viewed) = watch::channel(Arc::default());
    let (_presence, seen) = watch::channel(Arc::default());
    let shutdown = CancellationToken::new();
    let run = stand.keeper.run(asked, viewed, seen, shutdown.clone());
    let ended = tokio::time::timeout(Duration::from_secs(10), run).await;
    assert!(ended.is_ok(), "it goes on without the answer");
    assert!(!shutdown.is_cancelled());
    assert!(answer.try_recv().is_err());
}
