//! Identity, renewal, the list of authorised hosts, and the ends of connections.

use std::time::Duration;

use wire::{CloseCode, CloseReason, ConnectError, Credentials, Endpoint, Settings};

use crate::fleet::{Authority, Leaf, address, bind, host, join, only, pair};

#[tokio::test]
async fn each_side_learns_the_other_s_name() {
    let pair = pair().await;
    let (a, b) = &pair.connections;
    assert_eq!(a.host(), &host("b"));
    assert_eq!(b.host(), &host("a"));
    assert_eq!(a.remote_address(), address(&pair.endpoints.1));
    assert_eq!(b.remote_address(), address(&pair.endpoints.0));
    assert!(a.stats().received_bytes > 0 && a.stats().mtu >= 1_200);
}

#[tokio::test]
async fn names_that_dns_verifiers_dislike_are_names() {
    let fleet = Authority::new();
    let a = fleet.endpoint("mini7.rack2.0");
    let b = fleet.endpoint("0");
    let (there, here) = join(&a, &b, "0").await;
    assert_eq!(there.unwrap().host(), &host("0"));
    assert_eq!(here.unwrap().host(), &host("mini7.rack2.0"));
}

#[tokio::test]
async fn an_ipv4_host_reaches_a_socket_of_both_families() {
    let fleet = Authority::new();
    let a = fleet.endpoint("a");
    let Ok(b) = Endpoint::bind(
        "[::]:0".parse().unwrap(),
        fleet.credentials(&Leaf::of("b")),
        &Settings::default(),
    ) else {
        return; // a machine without IPv6
    };
    b.authorise(only(&["a"]));
    let to = ([127, 0, 0, 1], address(&b).port()).into();
    let name = host("b");
    let (there, here) = tokio::join!(a.connect(to, &name), async {
        b.accept().await.unwrap().establish().await
    });
    there.unwrap();
    assert_eq!(here.unwrap().remote_address(), address(&a));
}

#[tokio::test]
async fn a_close_reaches_the_peer_with_its_reason() {
    let pair = pair().await;
    let (a, b) = &pair.connections;
    assert_eq!(a.close_reason(), None);
    a.close(CloseCode::Protocol, "said\nnonsense");
    a.close(CloseCode::Done, "too late");
    assert_eq!(
        a.closed().await,
        CloseReason::Local {
            code: CloseCode::Protocol,
            reason: "said\nnonsense".to_owned()
        }
    );
    let there = CloseReason::Peer {
        code: CloseCode::Protocol,
        reason: "said nonsense".to_owned(),
    };
    assert_eq!(b.closed().await, there);
    assert_eq!(b.close_reason(), Some(there.clone()));
    assert_eq!(b.open().await.unwrap_err(), there);
}

#[tokio::test]
async fn an_endpoint_that_stops_says_so() {
    let pair = pair().await;
    pair.endpoints.1.close("upgrade");
    assert_eq!(
        pair.connections.0.closed().await,
        CloseReason::Peer {
            code: CloseCode::Stopping,
            reason: "upgrade".to_owned()
        }
    );
    assert!(matches!(
        pair.connections.1.closed().await,
        CloseReason::Local {
            code: CloseCode::Stopping,
            ..
        }
    ));
    pair.endpoints.1.drained().await;
    assert!(pair.endpoints.1.accept().await.is_none());
    let error = pair
        .endpoints
        .1
        .connect(address(&pair.endpoints.0), &host("a"))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Endpoint { .. }), "{error}");
}

#[tokio::test]
async fn a_peer_that_falls_silent_times_out() {
    let fleet = Authority::new();
    let brief = Settings {
        idle_timeout: Duration::from_millis(300),
        keep_alive: Duration::from_millis(100),
        ..Settings::default()
    };
    let a = fleet.endpoint_with("a", &brief);
    // b lives in a runtime of its own, which stops dead: no close is sent
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let b = fleet.credentials(&Leaf::of("b"));
    let silent = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let b = bind(b, &Settings::default());
            sender.send(address(&b)).unwrap();
            let connection = b.accept().await.unwrap().establish().await.unwrap();
            let (_sender, mut receiver) = connection.accept().await.unwrap();
            receiver.read_exact(&mut [0; 4]).await.unwrap();
            std::mem::forget((connection, b, _sender, receiver));
        });
        std::mem::forget(runtime);
    });
    let connection = a
        .connect(receiver.await.unwrap(), &host("b"))
        .await
        .unwrap();
    let (mut sender, _receiver) = connection.open().await.unwrap();
    sender
        .write(bytes::Bytes::from_static(b"stop"))
        .await
        .unwrap();
    assert_eq!(connection.closed().await, CloseReason::TimedOut);
    silent.join().unwrap();
}

#[tokio::test]
async fn a_host_that_leaves_the_list_is_cut_off() {
    let fleet = Authority::new();
    let (a, b, c) = (
        fleet.endpoint("a"),
        fleet.endpoint("b"),
        fleet.endpoint("c"),
    );
    b.authorise(only(&["a", "c"]));
    let (from_a, _held_a) = join(&a, &b, "b").await;
    let (from_c, held_c) = join(&c, &b, "b").await;
    let (from_a, from_c, held_c) = (from_a.unwrap(), from_c.unwrap(), held_c.unwrap());
    // an outgoing one to a host of the list, and one to a host that no list names
    let (to_a, _there) = join(&b, &a, "a").await;
    let to_a = to_a.unwrap();
    let coordinator = fleet.endpoint("coordinator");
    let (to_coordinator, _there) = join(&b, &coordinator, "coordinator").await;
    let to_coordinator = to_coordinator.unwrap();

    b.authorise(only(&["c"]));
    assert_eq!(
        from_a.closed().await,
        CloseReason::Peer {
            code: CloseCode::Unauthorised,
            reason: "no longer on the authorised list".to_owned()
        }
    );
    assert!(matches!(
        to_a.closed().await,
        CloseReason::Local {
            code: CloseCode::Unauthorised,
            ..
        }
    ));
    for stays in [&from_c, &held_c, &to_coordinator] {
        assert_eq!(stays.close_reason(), None);
    }
    let (there, _) = join(&a, &b, "b").await;
    assert!(there.is_err());
}

#[tokio::test]
async fn a_stream_keeps_its_connection_listed() {
    let fleet = Authority::new();
    let (a, b) = (fleet.endpoint("a"), fleet.endpoint("b"));
    b.authorise(only(&["a"]));
    let (there, here) = join(&a, &b, "b").await;
    let (there, here) = (there.unwrap(), here.unwrap());
    let (mut sender, _receiver) = there.open().await.unwrap();
    sender.write(bytes::Bytes::from_static(b"x")).await.unwrap();
    let streams = here.accept().await.unwrap();
    drop(here);
    b.authorise(only(&[]));
    assert!(matches!(
        there.closed().await,
        CloseReason::Peer {
            code: CloseCode::Unauthorised,
            ..
        }
    ));
    drop(streams);
}

#[tokio::test]
async fn the_newest_connections_of_a_host_win() {
    let fleet = Authority::new();
    let two = Settings {
        max_connections_per_host: 2,
        ..Settings::default()
    };
    let (a, b) = (fleet.endpoint("a"), fleet.endpoint_with("b", &two));
    let mut connections = Vec::new();
    for _ in 0..3 {
        let (there, here) = join(&a, &b, "b").await;
        connections.push((there.unwrap(), here.unwrap()));
    }
    assert!(matches!(
        connections[0].0.closed().await,
        CloseReason::Peer {
            code: CloseCode::Replaced,
            ..
        }
    ));
    for (there, here) in &connections[1..] {
        assert_eq!((there.close_reason(), here.close_reason()), (None, None));
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_used_from_the_next_handshake_on() {
    let fleet = Authority::new();
    let a = fleet.endpoint("a");
    let b = bind(fleet.credentials(&Leaf::expired("b")), &Settings::default());
    assert!(join(&a, &b, "b").await.0.is_err());
    assert!(join(&b, &a, "a").await.0.is_err());
    b.renew(fleet.credentials(&Leaf::of("b"))).unwrap();
    let (there, here) = join(&a, &b, "b").await;
    let standing = (there.unwrap(), here.unwrap());
    let (there, here) = join(&b, &a, "a").await;
    there.unwrap();
    here.unwrap();
    // a renewal doesn't touch what stands
    b.renew(fleet.credentials(&Leaf::expired("b"))).unwrap();
    assert!(join(&a, &b, "b").await.0.is_err());
    assert_eq!(standing.0.close_reason(), None);
}

#[tokio::test]
async fn while_authorities_change_hosts_of_both_meet() {
    let (old, new) = (Authority::new(), Authority::new());
    let both = format!("{}{}", old.pem, new.pem);
    let endpoint = |authority: &Authority, name| {
        let issued = authority.issue(&Leaf::of(name));
        bind(
            Credentials::from_pem(&issued.chain, &issued.key, &both).unwrap(),
            &Settings::default(),
        )
    };
    let (a, b) = (endpoint(&old, "a"), endpoint(&new, "b"));
    for (from, to, name) in [(&a, &b, "b"), (&b, &a, "a")] {
        let (there, here) = join(from, to, name).await;
        there.unwrap();
        here.unwrap();
    }
}
