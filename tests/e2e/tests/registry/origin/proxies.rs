//! Registries behind a proxy, by names that only the proxy knows.

use e2e::proxy::{self, Proxy};
use origin::{Proxies, ProxySettings};

use super::*;

/// A name in every generated certificate, and in no resolver (RFC 6761).
const HOST: &str = "registry.test";

struct Behind {
    world: World,
    proxy: Proxy,
}

async fn behind(tls: bool, options: proxy::Options) -> Behind {
    let world = world_with(Options {
        tls,
        ..Options::default()
    })
    .await;
    let port = if tls { 443 } else { 80 };
    let names = [(format!("{HOST}:{port}"), world.registry.addr())].into();
    let proxy = Proxy::start(proxy::Options { names, ..options })
        .await
        .unwrap();
    Behind { world, proxy }
}

impl Behind {
    fn repository(&self, settings: ProxySettings) -> Repository {
        let dir = tempfile::tempdir().unwrap();
        let certificates = [
            self.world.registry.certificate_pem(),
            self.proxy.certificate_pem(),
        ];
        let roots = certificates.into_iter().flatten().flat_map(|pem| {
            let path = dir.path().join("ca.pem");
            std::fs::write(&path, pem).unwrap();
            origin::roots_from_pem(&path).unwrap()
        });
        let client = Client::new(Config {
            extra_roots: roots.collect(),
            plain_http: PlainHttp::Hosts([HOST.to_owned()].into()),
            proxies: Proxies::new(&settings).unwrap(),
            connect_timeout: Duration::from_millis(500),
            ..Config::default()
        })
        .unwrap();
        let client = if self.world.registry.certificate_pem().is_some() {
            client.with_plain_http(PlainHttp::Nowhere)
        } else {
            client
        };
        let reference = format!("{HOST}/{NAME}:1").parse().unwrap();
        client
            .repository(&reference, Credentials::Anonymous)
            .unwrap()
    }

    fn through(&self) -> ProxySettings {
        ProxySettings {
            url: Some(self.proxy.url()),
            no_proxy: Some(Vec::new()),
            ..ProxySettings::default()
        }
    }

    async fn fetch(&self, settings: ProxySettings) -> Result<(), OriginError> {
        let repository = self.repository(settings);
        let manifest = repository.manifest(repository.version()).await?;
        assert_eq!(manifest.digest, self.world.manifest);
        let stream = repository.blob(&self.world.digest, 0, SIZE as u64).await?;
        let (bytes, error) = rest(stream).await;
        assert_eq!(error, None);
        assert_eq!(bytes, self.world.blob);
        Ok(())
    }

    /// Why it can't be fetched, and whether that may pass.
    async fn refused(&self, settings: ProxySettings) -> (String, bool) {
        let error = self.fetch(settings).await.unwrap_err();
        assert!(matches!(error, OriginError::Proxy { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains(&format!("proxy {} ", self.proxy.name())),
            "{text}"
        );
        (text, error.is_retryable())
    }
}

fn account() -> proxy::Options {
    proxy::Options {
        account: Some(("robot".to_owned(), "s3cret".to_owned())),
        ..proxy::Options::default()
    }
}

#[tokio::test]
async fn a_registry_is_reached_through_a_tunnel_and_answers_for_itself() {
    for tls in [false, true] {
        let to_proxy = proxy::Options { tls, ..account() };
        let behind = behind(true, to_proxy).await;
        let dir = tempfile::tempdir().unwrap();
        let password_file = dir.path().join("password");
        std::fs::write(&password_file, "s3cret\n").unwrap();
        let settings = ProxySettings {
            username: Some("robot".to_owned()),
            password_file: Some(password_file),
            ..behind.through()
        };
        behind.fetch(settings).await.unwrap();
        let counters = behind.proxy.counters();
        // One connection is used for both requests.
        assert_eq!(counters.tunnels, [(format!("{HOST}:443"), 1)].into());
        assert!(counters.forwarded.is_empty() && counters.refused.is_empty());
        assert_eq!(behind.world.registry.counters().bytes, SIZE as u64);
    }
}

#[tokio::test]
async fn requests_to_a_registry_without_tls_are_forwarded() {
    let behind = behind(false, account()).await;
    let mut settings = behind.through();
    settings.url = Some(behind.proxy.url().replace("//", "//robot:s3cret@"));
    behind.fetch(settings).await.unwrap();
    let counters = behind.proxy.counters();
    assert_eq!(counters.forwarded, [(format!("{HOST}:80"), 2)].into());
    assert!(counters.tunnels.is_empty());
    let (text, is_retryable) = behind.refused(behind.through()).await;
    assert!(
        text.contains(&format!("refused a request to {HOST}:80: 407")),
        "{text}"
    );
    assert!(!is_retryable);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_with_the_registry_and_the_status() {
    let behind = behind(true, account()).await;
    let (text, is_retryable) = behind.refused(behind.through()).await;
    assert!(
        text.contains(&format!("refused CONNECT to {HOST}:443: 407")),
        "{text}"
    );
    assert!(!is_retryable);
    let mut wrong = behind.through();
    wrong.url = Some(behind.proxy.url().replace("//", "//robot:wr0ng@"));
    let (text, _) = behind.refused(wrong).await;
    assert!(text.contains("407") && !text.contains("wr0ng"), "{text}");
    for (status, may_pass) in [(403, false), (429, true), (503, true)] {
        behind.proxy.refuse(Some(status));
        let (text, is_retryable) = behind.refused(behind.through()).await;
        assert!(
            text.contains(&format!("refused CONNECT to {HOST}:443: {status}")),
            "{text}"
        );
        assert_eq!(is_retryable, may_pass, "{status}");
    }
    assert_eq!(behind.world.registry.counters().connections, 0);
}

#[tokio::test]
async fn a_proxy_that_is_silent_away_or_not_trusted_is_named_within_the_time_for_a_connection() {
    let behind = behind(true, proxy::Options::default()).await;
    behind.proxy.fall_silent();
    let started = Instant::now();
    let (text, is_retryable) = behind.refused(behind.through()).await;
    assert!(
        text.contains(&format!("gave no connection to {HOST}:443")),
        "{text}"
    );
    assert!(is_retryable && started.elapsed() < Duration::from_secs(5));

    let mut nobody = behind.through();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    nobody.url = Some(format!("http://{free}"));
    let error = behind.fetch(nobody).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("proxy {free} can't be reached")),
        "{error}"
    );
    assert!(error.is_retryable());

    // It speaks TLS with a certificate that nobody vouches for.
    let stranger = Proxy::start(proxy::Options {
        tls: true,
        ..proxy::Options::default()
    })
    .await
    .unwrap();
    let mut untrusted = behind.through();
    untrusted.url = Some(stranger.url());
    let error = behind.fetch(untrusted).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("proxy {} can't be reached", stranger.name())),
        "{error}"
    );
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn the_tunnels_end_is_the_registry_and_nobody_else() {
    // The proxy leads the name to a server with another certificate.
    let behind = behind(true, proxy::Options::default()).await;
    let other = Registry::start(Options::tls()).await.unwrap();
    let names = [(format!("{HOST}:443"), other.addr())].into();
    let liar = Proxy::start(proxy::Options {
        names,
        ..proxy::Options::default()
    })
    .await
    .unwrap();
    let mut settings = behind.through();
    settings.url = Some(liar.url());
    let error = behind.fetch(settings).await.unwrap_err();
    assert!(matches!(error, OriginError::Tls { .. }), "{error}");
    assert_eq!(other.counters().requests, 0);
}
