//! Tests what the API answers to whom: while it starts, while it runs, and when the thing that was asked for doesn't
//! exist.

use super::*;
use client::CallError;

/// The status and the body of a GET.
async fn ask(client: &Client, path: &str) -> (StatusCode, String) {
    match client.call(Method::GET, path, None::<&()>).await {
        Ok(body) => (StatusCode::OK, String::from_utf8_lossy(&body).into_owned()),
        Err(CallError::Refused { status, text }) => (status, text),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_token_isnt_told_what_there_is() {
    let world = World::new("[coordinator]\nopen = true").await;
    let wrong = world.client_with(Secret::from_text("wrong"), world.pin);
    for path in [
        "/v1/hosts",
        "/v1/pools",
        "/v1/pods/ci/runner",
        "/v1/nothing",
        "/nothing",
    ] {
        assert_eq!(
            ask(&wrong, path).await.0,
            StatusCode::UNAUTHORIZED,
            "{path}"
        );
    }
    // outside of a cluster nothing is gated, and the answer says so
    for path in ["/v1/pools", "/v1/pods/ci/runner"] {
        let (status, said) = ask(&world.client(), path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        assert!(said.contains("watches no cluster"), "{said}");
    }
    let (_, said) = ask(&world.client(), "/v1/nothing").await;
    assert!(said.contains("no such route"), "{said}");
    for (client, status) in [
        (world.client(), StatusCode::METHOD_NOT_ALLOWED),
        (wrong, StatusCode::UNAUTHORIZED),
    ] {
        let put = client.call(Method::PUT, "/v1/hosts", None::<&()>).await;
        assert!(put.unwrap_err().is(status));
    }
}

#[tokio::test]
async fn a_coordinator_that_starts_says_so_whatever_it_is_asked() {
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    let answer = async |path: &str| {
        let request = axum::extract::Request::get(path);
        let request = request.body(axum::body::Body::empty()).unwrap();
        let starting = TowerToHyperService::new(api::starting());
        starting.call(request).await.unwrap()
    };
    for path in ["/v1/images", "/v1/pools", "/v1/nothing"] {
        let answer = answer(path).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(answer.headers()["retry-after"], "1");
    }
    assert_eq!(answer("/healthz").await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_nobody_knows_isnt_revoked_and_the_reason_of_one_is_shown() {
    let world = World::new("[coordinator]\nopen = true").await;
    let agent = world.agent("mini-1").await;
    let revoke = async |host: &str, body: Value| {
        let path = format!("/v1/hosts/{host}/revoke");
        world.client().call(Method::POST, &path, Some(&body)).await
    };
    let error = revoke("mini-l", json!({"reason": "stolen"}))
        .await
        .unwrap_err();
    assert!(error.is(StatusCode::NOT_FOUND), "{error}");
    assert!(error.to_string().contains("mini-l isn't in the fleet file"));
    let hosts: Vec<HostView> = world.get("/v1/hosts").await;
    assert!(hosts.iter().all(|host| !host.revoked), "{hosts:?}");
    revoke("mini-l", json!({"force": true})).await.unwrap();

    revoke("mini-1", json!({"reason": "disk died"}))
        .await
        .unwrap();
    drop(agent);
    let host: HostView = world.get("/v1/hosts/mini-1").await;
    assert!(host.revoked);
    assert_eq!(host.revocation.unwrap().reason, "disk died");
    let why = host.why.join("\n");
    assert!(why.contains("it is revoked since 20"), "{why}");
    assert!(
        why.contains("UTC (disk died); `parbake-coordinator readmit mini-1`"),
        "{why}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_it_took_outlives_the_coordinator_and_is_counted_once() {
    let mut world = World::new("[coordinator]\nopen = true").await;
    let digest = world.registry.put("one", &manifest("one", 1, 10 << 20));
    let mut agent = world.agent("mini-1").await;
    let credentials = agent.credentials.clone();
    world
        .until("it is wanted", async || world.stage("one").await.ok())
        .await;
    let reference = world.reference("one");
    let present = || message::ImageState {
        ready_references: vec![reference.clone()],
        ..image_state(&digest, message::StageState::Present, 10 << 20)
    };
    agent
        .image(&digest, message::StageState::Staging, 5 << 20)
        .await;
    agent.look(&digest).await;
    let told = async |world: &World| {
        world
            .until("it is everywhere", async || {
                let image = world.image(&digest).await;
                (image.state == ImageState::Present).then_some(image.staged_seconds)
            })
            .await
    };
    let first = told(&world).await.unwrap();
    // asked for again, the image is there already, so nothing is timed
    let (again, ()) = tokio::join!(world.stage("one"), agent.look(&digest));
    again.unwrap();
    assert_eq!(told(&world).await, Some(first));
    let counted = async |world: &World| {
        let metrics = world.metrics().await;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("parbake_coordinator_stage_seconds_count"));
        line.unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(counted(&world).await, "1");
    for _ in 0..2 {
        world.crash().await;
        world.start().await;
        let quic = world.addresses().quic;
        agent = Agent::connect(quic, credentials.clone(), &[present()]).await;
        agent.look(&digest).await;
        let after = told(&world).await.unwrap();
        assert!(
            (after - first).abs() < 0.002,
            "{after} s, and {first} s before"
        );
        assert_eq!(counted(&world).await, "0");
    }
    // an image that is present when it is asked for has no time
    world.cancel(&digest).await;
    while !agent.names().await.names.is_empty() {}
    let (again, ()) = tokio::join!(world.stage("one"), agent.look(&digest));
    again.unwrap();
    assert_eq!(told(&world).await, None);
    assert_eq!(counted(&world).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_readmitted_by_the_command_line_is_among_those_that_are_staged_next() {
    let world = World::new("[coordinator]\nopen = true").await;
    let _one = world.agent("mini-1").await;
    let _two = world.agent("mini-2").await;
    world.registry.put("one", &manifest("one", 1, 10 << 20));
    let records = Enrolment::open(&world.dir.path().join("state")).unwrap();
    let host: HostId = "mini-2".parse().unwrap();
    let selected = async || world.stage("one").await.unwrap().image.hosts_selected;
    for _ in 0..3 {
        records.revoke(&host, "test", SystemTime::now()).unwrap();
        assert_eq!(selected().await, 1);
        assert!(records.readmit(&host, SystemTime::now()).unwrap());
        assert_eq!(selected().await, 2);
    }
}
