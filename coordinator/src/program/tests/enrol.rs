//! Tests how hosts get and lose certificates, and which callers get nothing from the API.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_for_the_hosts_own_name_until_it_is_revoked() {
    let world = World::new(two_hosts()).await;
    let mut agent = world.agent("mini-1").await;
    let renew = async |agent: &Agent| {
        let key = KeyPair::generate().unwrap();
        let mut hostile = rcgen::CertificateParams::new(vec!["mini-2".to_owned()]).unwrap();
        hostile.is_ca = rcgen::IsCa::NoCa;
        let csr = hostile.serialize_request(&key).unwrap().der().to_vec();
        let (mut sender, mut receiver) = agent.connection.open().await.ok()?;
        let renewal = message::Renewal { csr };
        let open = CoordinatorOpen {
            kind: Some(coordinator_open::Kind::Renewal(renewal)),
        };
        sender.send(&open).await.ok()?;
        let renewed: message::Renewed = timeout(PATIENCE, receiver.receive())
            .await
            .unwrap()
            .ok()??;
        Some((renewed, key))
    };
    let (renewed, key) = renew(&agent).await.unwrap();
    assert_eq!(renewed.error, "");
    let chain: Vec<_> = renewed.certificates.into_iter().map(Into::into).collect();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let fresh = Credentials::new(chain.clone(), key, vec![chain[1].clone()]).unwrap();
    assert_eq!(fresh.host().as_str(), "mini-1");

    let body = json!({"reason": "stolen"});
    world
        .client()
        .call(Method::POST, "/v1/hosts/mini-1/revoke", Some(&body))
        .await
        .unwrap();
    agent.ended().await;
    assert!(
        renew(&agent)
            .await
            .is_none_or(|(renewed, _)| !renewed.error.is_empty())
    );
    let host: HostView = world.get("/v1/hosts/mini-1").await;
    assert!(host.revoked && !host.connected);
    // The host's certificate is still valid, but doesn't help.
    let endpoint =
        Endpoint::bind("127.0.0.1:0".parse().unwrap(), fresh, &Settings::default()).unwrap();
    let again = endpoint
        .connect(world.addresses().quic, &COORDINATOR.parse().unwrap())
        .await;
    let refused = match again {
        Err(_) => true,
        Ok(connection) => timeout(PATIENCE, connection.closed()).await.is_ok(),
    };
    assert!(refused);
    assert!(
        world
            .post::<TokenReply>("/v1/tokens", json!({"host": "mini-1"}))
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_renewed_by_its_key_until_its_host_enrols_anew_or_is_revoked() {
    let world = World::new(two_hosts()).await;
    let (reply, key) = world.enrol("mini-1").await;
    let authority = Authority::open(&world.dir.path().join("state/authority")).unwrap();
    let csr = csr_der(&key);
    let issue = |host: &str, lifetime| {
        let chain = authority.issue(&host.parse().unwrap(), &csr, lifetime);
        base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            &chain.unwrap()[0],
        )
    };
    let renew = async |certificate: &str, key: &KeyPair| {
        let body = json!({"certificate": certificate, "csr": csr_pem(key)});
        world.post::<EnrolReply>("/v1/renew", body).await
    };
    // the certificate was signed no earlier than the enrolment, which counts from the next second on
    let record = world.dir.path().join("state/enrolled/mini-1");
    let enrolled: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    world
        .until("the next second", async || {
            let now = crate::enrolment::unix(SystemTime::now());
            (Some(now) >= enrolled["at_unix"].as_u64()).then_some(())
        })
        .await;
    let expired = issue("mini-1", Duration::ZERO);
    let renewed = renew(&expired, &key).await.unwrap();
    let credentials =
        Credentials::from_pem(&renewed.chain, &key.serialize_pem(), &reply.authority).unwrap();
    drop(Agent::connect(world.addresses().quic, credentials, &[]).await);

    let refused = async |certificate: &str, key: &KeyPair, part: &str| {
        let error = renew(certificate, key).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(&expired, &KeyPair::generate().unwrap(), "key").await;
    // one host is in the fleet file but never enrolled; another one isn't in the fleet file
    refused(&issue("mini-2", Duration::ZERO), &key, "enrolled").await;
    refused(&issue("mini-9", Duration::ZERO), &key, "part of the fleet").await;
    refused("AAAA", &key, "X.509").await;

    // a certificate from before a new enrolment is void
    let later = crate::enrolment::unix(SystemTime::now() + Duration::from_hours(1));
    std::fs::write(&record, json!({"at_unix": later}).to_string()).unwrap();
    refused(&expired, &key, "enrolled anew").await;
    std::fs::write(&record, json!({"at_unix": 1}).to_string()).unwrap();
    renew(&expired, &key).await.unwrap();
    world
        .client()
        .call(Method::POST, "/v1/hosts/mini-1/revoke", None::<&()>)
        .await
        .unwrap();
    refused(&expired, &key, "revoked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_outlives_the_next_enrolment_or_readmission_of_its_host() {
    let world = World::new(two_hosts()).await;
    let refused = async |agent: &Agent| {
        let endpoint = Endpoint::bind(
            "127.0.0.1:0".parse().unwrap(),
            agent.credentials.clone(),
            &Settings::default(),
        );
        let (endpoint, id) = (endpoint.unwrap(), COORDINATOR.parse().unwrap());
        world
            .until("the refusal of an earlier key", async || {
                let again = endpoint.connect(world.addresses().quic, &id).await;
                let error = again.map(drop).err()?.to_string();
                error.contains("enrolled anew").then_some(())
            })
            .await;
    };
    let renewal = |agent: &Agent| {
        let csr = csr_der(&KeyPair::generate().unwrap());
        let connection = agent.connection.clone();
        async move {
            let (mut sender, mut receiver) = connection.open().await.ok()?;
            let open = CoordinatorOpen {
                kind: Some(coordinator_open::Kind::Renewal(message::Renewal { csr })),
            };
            sender.send(&open).await.ok()?;
            receiver.receive::<message::Renewed>().await.ok()?
        }
    };

    // a thief has the host's key, and a session with it
    let mut thief = world.agent("mini-1").await;
    let renewed = renewal(&thief).await.unwrap();
    assert_eq!(renewed.error, "");
    // the record counts even before the coordinator notices that it changed
    let record = world.dir.path().join("state/enrolled/mini-1");
    let before = std::fs::read(&record).unwrap();
    let now = crate::enrolment::unix(SystemTime::now());
    std::fs::write(&record, json!({"at_unix": now + 60}).to_string()).unwrap();
    let late = renewal(&thief).await;
    assert!(late.is_none_or(|renewed| !renewed.error.is_empty()));
    std::fs::write(&record, before).unwrap();

    // the host enrols anew: the session with the other key ends, and the thief can neither connect nor renew any more
    let mut thief_again = world.agent("mini-1").await;
    thief.ended().await;
    refused(&thief).await;
    let certificate = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        &renewed.certificates[0],
    );
    let body = json!({"certificate": certificate, "csr": csr_pem(&KeyPair::generate().unwrap())});
    assert!(world.post::<EnrolReply>("/v1/renew", body).await.is_err());

    // after a revocation and a readmission, only a token brings the host back
    for method in [Method::POST, Method::DELETE] {
        let path = "/v1/hosts/mini-1/revoke";
        let done = world.client().call(method, path, None::<&()>).await;
        done.unwrap();
    }
    thief_again.ended().await;
    refused(&thief_again).await;
    let back = world.agent("mini-1").await;
    let roster = async |agent: &mut Agent| {
        let entry = agent.order("a roster", |kind| match kind {
            Kind::Roster(roster) => Some(roster.hosts),
            _ => None,
        });
        entry.await
    };
    // the host's peers are told of it
    let mut other = world.agent("mini-2").await;
    let kept = std::fs::read(&record).unwrap();
    let at: Value = serde_json::from_slice(&kept).unwrap();
    let told = loop {
        let hosts = roster(&mut other).await;
        if let Some(entry) = hosts.into_iter().find(|entry| entry.host == "mini-1") {
            break entry.enrolled_at;
        }
    };
    assert_eq!(Some(told), at["at_unix"].as_u64());
    drop(back);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_isnt_of_the_fleet_gets_nothing_and_the_fleet_file_is_read_again() {
    let world = World::new(two_hosts()).await;
    let error = world
        .post::<TokenReply>("/v1/tokens", json!({"host": "mini-3"}))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("fleet file"), "{error}");
    let text = std::fs::read_to_string(&world.fleet).unwrap();
    std::fs::write(&world.fleet, format!("{text}[[hosts]]\nid = 'mini-3'\n")).unwrap();
    world
        .until("mini-3 is known", async || {
            let hosts: Vec<HostView> = world.get("/v1/hosts").await;
            (hosts.len() == 3).then_some(())
        })
        .await;
    let mut agent = world.agent("mini-3").await;
    std::fs::write(&world.fleet, text).unwrap();
    agent.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_wants_its_token_its_pin_and_sound_requests() {
    let world = World::new(two_hosts()).await;
    let wrong = world.client_with(crate::secret::random(), world.pin);
    for (method, path) in [
        (Method::GET, "/v1/hosts"),
        (Method::GET, "/v1/images"),
        (Method::POST, "/v1/images"),
        (Method::POST, "/v1/tokens"),
        (Method::PUT, "/v1/bandwidth"),
        (Method::POST, "/v1/hosts/mini-1/revoke"),
    ] {
        let error = wrong
            .call(method, path, None::<&()>)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("token"), "{path}: {error}");
    }
    let other = world.client_with(world.token.clone(), Digest::of(b"another authority"));
    let error = other
        .call(Method::GET, "/v1/hosts", None::<&()>)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("pin"), "{error}");

    for (path, body, part) in [
        ("/v1/images", json!({"reference": "image"}), "registry"),
        (
            "/v1/images",
            json!({"reference": world.reference("none")}),
            "isn't in its registry",
        ),
        (
            "/v1/images",
            json!({"reference": world.reference("x"), "hosts": []}),
            "hosts",
        ),
        ("/v1/images", json!({"refrence": "x"}), "refrence"),
        ("/v1/images", json!([1]), "request body"),
        ("/v1/tokens", json!({"host": "../x"}), "host id"),
        ("/v1/tokens", json!({"host": COORDINATOR}), "fleet file"),
        ("/v1/enrol", json!({"token": "x", "csr": "AA=="}), "token"),
        ("/v1/nothing", json!({}), "no such route"),
    ] {
        let error = world
            .post::<Value>(path, body)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "{path}: {error}");
    }
    let overlay = "application/vnd.cirruslabs.tart.disk.asif.overlay.v1";
    for (kind, parts) in [
        ("application/vnd.example.disk.v9", ["disk.v9", "layer"]),
        (overlay, ["stacked", "block-size"]),
    ] {
        let refused = world.registry.put("odd", &of_layers(kind));
        let error = world.stage("odd").await.unwrap_err().to_string();
        assert!(
            parts.iter().all(|part| error.contains(part)),
            "{refused}: {error}"
        );
    }
    let named = json!({"reference": world.reference("one"), "hosts": ["mini-9"]});
    world.registry.put("one", &manifest("one", 1, 1 << 20));
    let error = world
        .post::<Value>("/v1/images", named)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("mini-9"), "{error}");
}

/// A manifest whose disk's layers are of this type.
fn of_layers(kind: &str) -> Vec<u8> {
    let text = String::from_utf8(manifest("odd", 1, 9)).unwrap();
    text.replace(proto::image::DISK_TYPE, kind).into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_for_a_certificate_doesnt_cost_the_token_and_a_good_one_does() {
    let world = World::new(two_hosts()).await;
    let token: TokenReply = world
        .post("/v1/tokens", json!({"host": "mini-1"}))
        .await
        .unwrap();
    assert_eq!(token.ca_pin, world.pin.hex().to_string());
    let enrol = async |csr: String| {
        world
            .post::<EnrolReply>("/v1/enrol", json!({"token": token.token, "csr": csr}))
            .await
    };
    assert!(enrol("nonsense".into()).await.is_err());
    let weak = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    assert!(enrol(csr_pem(&weak)).await.is_err());
    let key = KeyPair::generate().unwrap();
    assert_eq!(enrol(csr_pem(&key)).await.unwrap().host, "mini-1");
    let error = enrol(csr_pem(&key)).await.unwrap_err().to_string();
    assert!(error.contains("used already"), "{error}");
}
