//! Who doesn't get in, and what each side is told.

use std::{sync::Arc, time::Duration};

use rcgen::ExtendedKeyUsagePurpose;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use time::OffsetDateTime;
use wire::{
    ALPN, AcceptError, Bound, CloseCode, CloseReason, ConnectError, Credentials, CredentialsError,
    Endpoint, Fault, IdentityError, Settings,
};

use crate::fleet::{Authority, Leaf, address, bind, host, join, only};

/// The faults that the connecting and the accepting side see.
async fn faults(from: &Endpoint, to: &Endpoint, name: &str) -> (Fault, Fault) {
    let (there, here) = join(from, to, name).await;
    let (there, here) = (there.unwrap_err(), here.unwrap_err());
    for (message, ours) in [
        (
            there.to_string(),
            matches!(there, ConnectError::PeerUntrusted { .. }),
        ),
        (
            here.to_string(),
            matches!(here, AcceptError::PeerUntrusted { .. }),
        ),
    ] {
        // thing (who, where), cause and next step
        assert!(message.contains("127.0.0.1:"), "{message}");
        assert!(message.contains("refused"), "{message}");
        assert!(message.contains(';'), "{message}");
        assert_eq!(message.contains("refused us"), !ours, "{message}");
    }
    let there = match there {
        ConnectError::PeerUntrusted { fault, .. } | ConnectError::Refused { fault, .. } => fault,
        other => panic!("{other}"),
    };
    let here = match here {
        AcceptError::PeerUntrusted { fault, .. } | AcceptError::Refused { fault, .. } => fault,
        other => panic!("{other}"),
    };
    (there, here)
}

fn endpoint(fleet: &Authority, leaf: &Leaf) -> Endpoint {
    bind(fleet.credentials(leaf), &Settings::default())
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_either_side() {
    let fleet = Authority::new();
    let good = fleet.endpoint("good");
    let late = endpoint(&fleet, &Leaf::expired("late"));
    let expired = |(there, here): (Fault, Fault)| {
        let (Fault::Expired(Some(there)), Fault::Expired(Some(here))) = (there, here) else {
            panic!("times are missing");
        };
        // both sides know what the clock showed that refused it, and what the certificate says
        assert_eq!(there, here);
        assert!(matches!(there.bound, Bound::Ended(at) if at < there.clock));
    };
    expired(faults(&late, &good, "good").await);
    expired(faults(&good, &late, "late").await);
}

#[tokio::test]
async fn a_host_whose_certificate_has_expired_is_named_if_the_certificate_is_the_fleets() {
    let (fleet, other) = (Authority::new(), Authority::new());
    let good = fleet.endpoint("good");
    let name = async |from: &Endpoint| match join(from, &good, "good").await.1.unwrap_err() {
        AcceptError::PeerUntrusted { host, .. } => host,
        other => panic!("{other}"),
    };
    let late = endpoint(&fleet, &Leaf::expired("late"));
    assert_eq!(name(&late).await, Some(host("late")));
    // anybody can write a name into a certificate
    let issued = other.issue(&Leaf::expired("late"));
    let liar = bind(
        Credentials::from_pem(&issued.chain, &issued.key, &fleet.pem).unwrap(),
        &Settings::default(),
    );
    assert_eq!(name(&liar).await, None);
}

#[tokio::test]
async fn a_host_that_is_turned_away_hears_why_and_what_to_do() {
    let fleet = Authority::new();
    let (a, b) = (fleet.endpoint("a"), fleet.endpoint("b"));
    let (there, _here) = join(&a, &b, "b").await;
    let there = there.unwrap();
    let words = "a is revoked; the coordinator's operator takes that back";
    b.turn_away([(host("a"), words.to_owned())].into());
    assert_eq!(
        there.closed().await,
        CloseReason::Peer {
            code: CloseCode::Unauthorised,
            reason: words.to_owned()
        }
    );
    let (there, here) = join(&a, &b, "b").await;
    let there = there.unwrap_err().to_string();
    assert!(there.ends_with(words), "{there}");
    let AcceptError::PeerUntrusted {
        host: Some(refused),
        fault: Fault::Unauthorised,
        ..
    } = here.unwrap_err()
    else {
        panic!("refused for something else");
    };
    assert_eq!(refused, host("a"));
    b.turn_away([].into());
    let (there, _here) = join(&a, &b, "b").await;
    there.unwrap();
}

#[tokio::test]
async fn a_certificate_from_before_the_host_enrolled_last_is_refused_on_either_side() {
    let fleet = Authority::new();
    let (a, b) = (fleet.endpoint("a"), fleet.endpoint("b"));
    let (there, here) = join(&a, &b, "b").await;
    let (there, here) = (there.unwrap(), here.unwrap());
    let signed = here.certificate_signed();
    let later = signed + Duration::from_secs(1);
    // of another host, or no later than it was signed
    b.supersede([(host("a"), signed), (host("c"), later)].into());
    let (again, _kept) = join(&a, &b, "b").await;
    again.unwrap();
    b.supersede([(host("a"), later)].into());
    let CloseReason::Peer { code, reason } = there.closed().await else {
        panic!("closed by itself");
    };
    assert_eq!(code, CloseCode::Unauthorised);
    assert!(reason.contains("enrolled anew"), "{reason}");
    assert_eq!(
        faults(&a, &b, "b").await,
        (Fault::Unauthorised, Fault::Superseded)
    );
    // nor is one believed that answers at the host's address
    let refused = join(&b, &a, "a").await.0.unwrap_err();
    let ConnectError::PeerUntrusted { fault, .. } = &refused else {
        panic!("{refused}");
    };
    assert_eq!(fault, &Fault::Superseded);
    assert!(refused.to_string().contains("token"), "{refused}");
    b.supersede([].into());
    let (there, _here) = join(&a, &b, "b").await;
    there.unwrap();
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_refused() {
    let fleet = Authority::new();
    let good = fleet.endpoint("good");
    let early = endpoint(
        &fleet,
        &Leaf {
            from: OffsetDateTime::now_utc() + Duration::from_secs(600),
            ..Leaf::of("early")
        },
    );
    let (there, here) = faults(&early, &good, "good").await;
    let Fault::Expired(Some(times)) = &here else {
        panic!("{here:?}");
    };
    assert!(matches!(times.bound, Bound::Begins(at) if at > times.clock));
    assert_eq!(there, here);
}

#[tokio::test]
async fn a_foreign_authority_is_refused_by_either_side() {
    let (fleet, other) = (Authority::new(), Authority::new());
    let ours = fleet.endpoint("ours");
    // trusts our authority, but is certified by another: only our side has a reason to refuse
    let issued = other.issue(&Leaf::of("theirs"));
    let theirs = bind(
        Credentials::from_pem(&issued.chain, &issued.key, &fleet.pem).unwrap(),
        &Settings::default(),
    );
    let foreign = (Fault::ForeignAuthority, Fault::ForeignAuthority);
    assert_eq!(faults(&theirs, &ours, "ours").await, foreign);
    assert_eq!(faults(&ours, &theirs, "theirs").await, foreign);
    // two fleets
    let stranger = other.endpoint("stranger");
    assert_eq!(faults(&stranger, &ours, "ours").await, foreign);
}

#[tokio::test]
async fn a_certificate_for_another_use_is_refused() {
    let fleet = Authority::new();
    let good = fleet.endpoint("good");
    for usage in [
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::CodeSigning,
    ] {
        let odd = endpoint(
            &fleet,
            &Leaf {
                usages: vec![usage],
                ..Leaf::of("odd")
            },
        );
        assert_eq!(
            faults(&odd, &good, "good").await,
            (Fault::Certificate, Fault::Certificate)
        );
    }
}

#[tokio::test]
async fn another_host_than_the_expected_is_refused_by_name() {
    let fleet = Authority::new();
    let (a, b) = (fleet.endpoint("a"), fleet.endpoint("b"));
    let (there, here) = faults(&a, &b, "c").await;
    assert_eq!(there, Fault::WrongHost(Some(host("b"))));
    assert_eq!(here, Fault::WrongHost(None));
}

#[tokio::test]
async fn a_host_that_is_not_on_the_list_is_refused_and_told_so() {
    let fleet = Authority::new();
    let (a, b) = (fleet.endpoint("a"), fleet.endpoint("b"));
    b.authorise(only(&["c"]));
    let (there, here) = join(&a, &b, "b").await;
    let (there, here) = (there.unwrap_err(), here.unwrap_err());
    let ConnectError::Refused {
        fault: Fault::Unauthorised,
        said,
        ..
    } = &there
    else {
        panic!("{there}");
    };
    assert_eq!(
        said,
        "a isn't on the list of authorised hosts; add it to the fleet, and wait for the coordinator's next roster"
    );
    assert!(there.to_string().ends_with(said), "{there}");
    let AcceptError::PeerUntrusted {
        host: Some(refused),
        fault: Fault::Unauthorised,
        ..
    } = &here
    else {
        panic!("{here}");
    };
    assert_eq!(refused, &host("a"));
}

#[tokio::test]
async fn nobody_is_let_in_before_the_first_list() {
    let fleet = Authority::new();
    let a = fleet.endpoint("a");
    let b = Endpoint::bind(
        "127.0.0.1:0".parse().unwrap(),
        fleet.credentials(&Leaf::of("b")),
        &Settings::default(),
    )
    .unwrap();
    assert_eq!(
        faults(&a, &b, "b").await,
        (Fault::Unauthorised, Fault::Unauthorised)
    );
}

#[tokio::test]
async fn a_certificate_of_two_hosts_is_refused() {
    let fleet = Authority::new();
    let issued = fleet.issue(&Leaf {
        names: vec!["a", "b"],
        ..Leaf::of("a")
    });
    let error = Credentials::from_pem(&issued.chain, &issued.key, &fleet.pem).unwrap_err();
    assert!(matches!(
        error,
        CredentialsError::Identity(IdentityError::Names(2))
    ));

    // as the peer of an endpoint that doesn't check itself
    let good = fleet.endpoint("good");
    let raw = Raw::new(&fleet, Some(&issued), ALPN);
    let (there, here) = raw.knock(&good).await;
    assert!(there.contains("one host"), "{there}");
    let AcceptError::PeerUntrusted {
        fault: Fault::Identity(Some(IdentityError::Names(2))),
        ..
    } = here
    else {
        panic!("{here}");
    };
}

#[tokio::test]
async fn no_certificate_is_refused() {
    let fleet = Authority::new();
    let good = fleet.endpoint("good");
    let (_, here) = Raw::new(&fleet, None, ALPN).knock(&good).await;
    let AcceptError::PeerUntrusted {
        fault: Fault::NoCertificate,
        ..
    } = here
    else {
        panic!("{here}");
    };
}

#[tokio::test]
async fn another_protocol_is_refused_by_either_side() {
    let fleet = Authority::new();
    let good = fleet.endpoint("good");
    let issued = fleet.issue(&Leaf::of("odd"));
    let raw = Raw::new(&fleet, Some(&issued), b"h3");
    let (_, here) = raw.knock(&good).await;
    let AcceptError::PeerUntrusted {
        fault: Fault::Protocol,
        ..
    } = here
    else {
        panic!("{here}");
    };

    let server = Raw::server(&issued, b"h3");
    let name = host("odd");
    let (there, _) = tokio::join!(good.connect(server.local_addr().unwrap(), &name), async {
        server.accept().await.unwrap().await
    });
    let there = there.unwrap_err();
    let (ConnectError::Refused {
        fault: Fault::Protocol,
        ..
    }
    | ConnectError::PeerUntrusted {
        fault: Fault::Protocol,
        ..
    }) = there
    else {
        panic!("{there}");
    };
}

#[tokio::test]
async fn a_host_that_does_not_answer_times_out() {
    let fleet = Authority::new();
    let short = Settings {
        handshake_timeout: Duration::from_millis(100),
        ..Settings::default()
    };
    let a = fleet.endpoint_with("a", &short);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = a
        .connect(silent.local_addr().unwrap(), &host("b"))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error}");

    // what a dial sends to an address where nobody is, which a lying host can name for itself, is small: with the empty
    // datagram that asks the system for a way
    silent.set_nonblocking(true).unwrap();
    let (mut packets, mut bytes, mut room) = (0, 0, [0; 2_048]);
    while let Ok(length) = silent.recv(&mut room) {
        (packets, bytes) = (packets + 1, bytes + length);
    }
    assert!(
        (1..=3).contains(&packets) && bytes <= 2 * 1_500,
        "{packets} of {bytes} bytes"
    );

    // and one that is at home but never accepts
    let b = fleet.endpoint("b");
    let error = a.connect(address(&b), &host("b")).await.unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn a_slow_handshake_is_broken_off() {
    let fleet = Authority::new();
    let short = Settings {
        handshake_timeout: Duration::from_millis(100),
        ..Settings::default()
    };
    let b = fleet.endpoint_with("b", &short);
    // a client whose first packet arrives and nothing more: its socket is gone
    let issued = fleet.issue(&Leaf::of("slow"));
    let raw = Raw::new(&fleet, Some(&issued), ALPN);
    let connecting = raw.endpoint.connect(address(&b), "b").unwrap();
    let incoming = b.accept().await.unwrap();
    let elsewhere = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    raw.endpoint.rebind(elsewhere).unwrap();
    raw.endpoint.close(0u32.into(), b"");
    drop(connecting);
    let error = incoming.establish().await.unwrap_err();
    assert!(
        matches!(
            error,
            AcceptError::TimedOut { .. } | AcceptError::Broken { .. }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn over_the_limit_of_handshakes_hosts_are_turned_away() {
    let fleet = Authority::new();
    let narrow = Settings {
        max_handshakes: 1,
        retry_above: 1,
        ..Settings::default()
    };
    let b = fleet.endpoint_with("b", &narrow);
    let (a, c) = (fleet.endpoint("a"), fleet.endpoint("c"));
    let name = host("b");
    let mut first = Box::pin(a.connect(address(&b), &name));
    // the first handshake is under way and holds the only place
    let held = tokio::select! {
        held = b.accept() => held.unwrap(),
        _ = &mut first => panic!("nobody accepted"),
    };
    let error = tokio::select! {
        result = c.connect(address(&b), &name) => result.unwrap_err(),
        _ = b.accept() => panic!("there is no place"),
    };
    let ConnectError::Refused {
        fault: Fault::Busy, ..
    } = error
    else {
        panic!("{error}");
    };
    let (first, held) = tokio::join!(first, held.establish());
    first.unwrap();
    held.unwrap();
    // and then there is room again
    let (there, here) = join(&c, &b, "b").await;
    there.unwrap();
    here.unwrap();
}

/// A client whose first packet arrives and nothing more: from then on it speaks from elsewhere.
#[cfg(target_os = "linux")]
fn stall(fleet: &Authority, to: &Endpoint) -> (Raw, quinn::Connecting) {
    let raw = Raw::new(fleet, Some(&fleet.issue(&Leaf::of("slow"))), ALPN);
    let connecting = raw.endpoint.connect(address(to), "b").unwrap();
    (raw, connecting)
}

/// Only Linux has more than one address on loopback by itself.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn handshakes_that_stall_keep_no_host_out() {
    const PLACES: usize = 8;
    let fleet = Authority::new();
    let narrow = Settings {
        max_handshakes: PLACES,
        retry_above: 2 * PLACES,
        ..Settings::default()
    };
    let b = fleet.endpoint_with("b", &narrow);
    let mut under_way = tokio::task::JoinSet::new();
    let mut stalled = Vec::new();
    for _ in 0..PLACES / 2 {
        let (raw, connecting) = stall(&fleet, &b);
        let incoming = b.accept().await.unwrap();
        let elsewhere = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        raw.endpoint.rebind(elsewhere).unwrap();
        under_way.spawn(incoming.establish());
        stalled.push((raw, connecting));
    }
    // another address gets in at once: one of those gives way
    let name = host("b");
    let other = Endpoint::bind(
        "127.0.0.2:0".parse().unwrap(),
        fleet.credentials(&Leaf::of("c")),
        &Settings::default(),
    )
    .unwrap();
    let began = std::time::Instant::now();
    let (there, here) = tokio::join!(other.connect(address(&b), &name), async {
        b.accept().await.unwrap().establish().await
    });
    there.unwrap();
    here.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    let ended = under_way.join_next().await.unwrap().unwrap().unwrap_err();
    assert!(matches!(ended, AcceptError::GaveWay { .. }), "{ended}");
    // and so does a host at the very address that stalls, where the fleet knows it
    b.expect([[127, 0, 0, 1].into()]);
    let same = fleet.endpoint("d");
    let (there, here) = tokio::join!(same.connect(address(&b), &name), async {
        b.accept().await.unwrap().establish().await
    });
    there.unwrap();
    here.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn under_load_addresses_are_validated_and_hosts_still_get_in() {
    let fleet = Authority::new();
    let wary = Settings {
        retry_above: 0,
        ..Settings::default()
    };
    let (a, b) = (fleet.endpoint("a"), fleet.endpoint_with("b", &wary));
    let (there, here) = join(&a, &b, "b").await;
    assert_eq!(there.unwrap().host(), &host("b"));
    assert_eq!(here.unwrap().host(), &host("a"));
}

#[test]
fn credentials_that_do_not_fit_together_are_refused() {
    let fleet = Authority::new();
    let (a, b) = (fleet.issue(&Leaf::of("a")), fleet.issue(&Leaf::of("b")));
    let error = |chain: &str, key: &str, authority: &str| {
        Credentials::from_pem(chain, key, authority).unwrap_err()
    };
    assert!(matches!(
        error(&a.chain, &b.key, &fleet.pem),
        CredentialsError::Key(_)
    ));
    assert!(matches!(
        error("", &a.key, &fleet.pem),
        CredentialsError::Empty("certificate chain")
    ));
    assert!(matches!(
        error(&a.chain, &a.key, ""),
        CredentialsError::Empty("authority")
    ));
    assert!(matches!(
        error(&a.chain, "nonsense", &fleet.pem),
        CredentialsError::Pem {
            part: "private key",
            ..
        }
    ));
    let damaged = a.chain.replace("END CERTIFICATE", "END");
    assert!(matches!(
        error(&damaged, &a.key, &fleet.pem),
        CredentialsError::Pem { .. } | CredentialsError::Empty(_)
    ));
}

#[test]
fn credentials_do_not_show_their_key() {
    let credentials = Authority::new().credentials(&Leaf::of("a"));
    let shown = format!("{credentials:?}");
    assert!(shown.contains("redacted") && shown.len() < 200, "{shown}");
    assert_eq!(credentials.host(), &host("a"));
    let validity = credentials.leaf().validity;
    let now = std::time::SystemTime::now();
    assert!(validity.issued < now && !validity.expired(now));
}

/// A QUIC client that keeps none of our rules.
struct Raw {
    endpoint: quinn::Endpoint,
}

impl Raw {
    fn new(fleet: &Authority, issued: Option<&crate::fleet::Issued>, alpn: &[u8]) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(fleet.pem.as_bytes()).unwrap())
            .unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut tls = match issued {
            Some(issued) => builder
                .with_client_auth_cert(vec![leaf(issued)], key(issued))
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![alpn.to_vec()];
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
        Self { endpoint }
    }

    fn server(issued: &crate::fleet::Issued, alpn: &[u8]) -> quinn::Endpoint {
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf(issued)], key(issued))
            .unwrap();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap()
    }

    /// Connects to the host `good`; how it ended for the client, and for the endpoint.
    async fn knock(&self, to: &Endpoint) -> (String, AcceptError) {
        let connecting = self.endpoint.connect(address(to), "good").unwrap();
        let (there, here) = tokio::join!(
            async {
                match connecting.await {
                    Ok(connection) => connection.closed().await,
                    Err(error) => error,
                }
            },
            async { to.accept().await.unwrap().establish().await.unwrap_err() }
        );
        (there.to_string(), here)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn leaf(issued: &crate::fleet::Issued) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(issued.chain.as_bytes()).unwrap()
}

fn key(issued: &crate::fleet::Issued) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap()
}
