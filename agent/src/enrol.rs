//! Enrolment: this host makes a key, shows the coordinator a single-use token, and gets a certificate. A host whose certificate
//! expired while it couldn't renew it shows that certificate and its key instead, and gets another.
//!
//! The coordinator is recognised by the pin of the fleet's authority, which the operator brings along with the token;
//! nothing is sent before the pin is found in the chain that the server presents.

use std::{io::Read as _, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use proto::Digest;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tracing::info;

use crate::{
    cli::Enroll,
    identity::{self, Identity},
};

/// The whole exchange has to be over within this time.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The most bytes of an answer: two certificates and an address.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// The name in the coordinator's certificate; no host can have it.
pub(crate) const COORDINATOR: &str = "coordinator";

/// An enrolment.
#[derive(Serialize)]
struct Enrolment<'a> {
    token: &'a str,
    csr: String,
}

/// A late renewal.
#[derive(Serialize)]
struct LateRenewal {
    certificate: String,
    csr: String,
}

/// The coordinator's answer to both.
#[derive(Debug, Deserialize)]
struct Answer {
    /// PEM, leaf first.
    chain: String,
    /// PEM.
    authority: String,
    /// `host:port` for QUIC; an empty host means the one that was asked.
    address: String,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// Enrols this host and keeps its identity in `state_dir`.
pub(crate) async fn enrol(options: &Enroll, state_dir: &Path) -> anyhow::Result<()> {
    if identity::enrolled(state_dir) && !options.force {
        bail!(
            "this host is enrolled already ({}); --force enrols it anew",
            state_dir.display()
        );
    }
    let pin = link::parse_pin(&options.ca_pin)
        .context("--ca-pin has to be the 64 hex digits that `parbake-coordinator pin` prints")?;
    let token = read_token(&options.token_file)?;
    let (request, key_pem) = identity::request()?;
    let question = Enrolment {
        token: &token,
        csr: STANDARD.encode(request),
    };
    let answer = ask(&options.api, pin, "/v1/enrol", &question).await?;
    ensure!(
        identity::fingerprint(&answer.authority)? == pin,
        "the coordinator answered with another authority than the pinned one"
    );
    let api = link::api_address(&options.api)?;
    let address = coordinator_address(api, &answer.address);
    let identity = Identity::new(&key_pem, &answer.chain, &answer.authority, &address, api);
    let host = identity.host()?;
    identity.save(state_dir)?;
    info!(%host, coordinator = address, state_dir = %state_dir.display(), "enrolled");
    Ok(())
}

/// Renews a certificate that has expired, or that the coordinator takes for expired: the host proves who it is by the key of that
/// certificate, which stays its key until the next ordinary renewal.
pub(crate) async fn renew_late(identity: &Identity) -> anyhow::Result<Identity> {
    let (certificate, request) = identity.proof()?;
    let question = LateRenewal {
        certificate: STANDARD.encode(certificate),
        csr: STANDARD.encode(request),
    };
    let answer = ask(identity.api(), identity.pin()?, "/v1/renew", &question).await?;
    identity.renewed(&answer.chain, None)
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let mut token = String::new();
    if path.as_os_str() == "-" {
        std::io::stdin()
            .take(4096)
            .read_to_string(&mut token)
            .context("reading the token from stdin")?;
    } else {
        token = std::fs::read_to_string(path)
            .with_context(|| format!("reading the token from {}", path.display()))?;
    }
    Ok(token.trim().to_owned())
}

/// Where QUIC is, as the coordinator told it: a port alone is one of the host that was asked.
fn coordinator_address(api: &str, told: &str) -> String {
    match told.strip_prefix(':') {
        Some(port) => {
            let host = api.rsplit_once(':').map_or(api, |(host, _)| host);
            format!("{host}:{port}")
        }
        None => told.to_owned(),
    }
}

async fn ask(
    api: &str,
    pin: Digest,
    path: &str,
    question: &impl Serialize,
) -> anyhow::Result<Answer> {
    let question = serde_json::to_vec(question)?;
    let answer = timeout(TIMEOUT, exchange(api, pin, path, question)).await;
    answer.with_context(|| format!("{api} didn't answer within {} s", TIMEOUT.as_secs()))?
}

async fn exchange(api: &str, pin: Digest, path: &str, question: Vec<u8>) -> anyhow::Result<Answer> {
    let authority = link::api_address(api)?;
    let stream = TcpStream::connect(authority)
        .await
        .with_context(|| format!("connecting to {api}"))?;
    let connector = TlsConnector::from(Arc::new(link::pinned(pin)));
    let stream = connector
        .connect(ServerName::try_from(COORDINATOR)?, stream)
        .await
        .map_err(link::HandshakeError::of)
        .with_context(|| format!("reaching {api} (--api, --ca-pin)"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::post(path)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(question)))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await;
        let body = body
            .map_err(|error| anyhow::anyhow!("reading the answer: {error}"))?
            .to_bytes();
        if !status.is_success() {
            let reason = serde_json::from_slice::<Refusal>(&body).map(|refusal| refusal.error);
            bail!(
                "{api} refused: {}",
                reason.unwrap_or_else(|_| status.to_string())
            );
        }
        serde_json::from_slice(&body).context("the answer isn't what this version expects")
    };
    tokio::select! {
        answer = exchange => answer,
        Err(error) = connection => Err(error).context("the connection broke"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::identity::tests::Authority;

    #[test]
    fn a_port_alone_is_one_of_the_host_that_was_asked() {
        assert_eq!(coordinator_address("a:1", ":2"), "a:2");
        assert_eq!(coordinator_address("[::1]:1", ":2"), "[::1]:2");
        assert_eq!(coordinator_address("a:1", "b:2"), "b:2");
    }

    /// Asks a server of this authority, which gives this answer whatever it is asked.
    async fn answer(authority: &Authority, pin: Digest, answer: &str) -> anyhow::Result<Answer> {
        let (chain, key) = authority.server(COORDINATOR);
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::Pkcs8(key))?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let api = listener.local_addr()?.to_string();
        let serve = async {
            let (stream, _) = listener.accept().await?;
            let mut stream = TlsAcceptor::from(Arc::new(tls)).accept(stream).await?;
            let mut request = [0; 4096];
            let length = stream.read(&mut request).await?;
            let text = String::from_utf8_lossy(&request[..length]).into_owned();
            stream.write_all(answer.as_bytes()).await?;
            stream.shutdown().await?;
            anyhow::Ok(text)
        };
        let question = Enrolment {
            token: "t",
            csr: String::new(),
        };
        let (answer, served) = tokio::join!(ask(&api, pin, "/v1/enrol", &question), serve);
        if answer.is_ok() {
            assert!(served?.starts_with("POST /v1/enrol HTTP/1.1"));
        }
        answer
    }

    fn http(status: &str, body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
    }

    #[tokio::test]
    async fn the_pinned_coordinator_is_asked_and_no_other() {
        let authority = Authority::new();
        let pin = authority
            .identity("mini-1", SystemTime::now())
            .pin()
            .unwrap();
        let good = http("200 OK", r#"{"chain":"c","authority":"a","address":":1"}"#);
        let told = answer(&authority, pin, &good).await.unwrap();
        assert_eq!((told.chain.as_str(), told.address.as_str()), ("c", ":1"));

        let refusal = http("403 Forbidden", r#"{"error":"token has expired"}"#);
        let refused = answer(&authority, pin, &refusal).await.unwrap_err();
        assert!(
            refused.to_string().ends_with("token has expired"),
            "{refused}"
        );
        let proxy = http("502 Bad Gateway", "<html>");
        let refused = answer(&authority, pin, &proxy).await.unwrap_err();
        assert!(refused.to_string().contains("502"), "{refused}");

        // another fleet's coordinator: it gets nothing, the token least of all
        let stranger = answer(&Authority::new(), pin, &good).await.unwrap_err();
        let stranger = proto::causes(&*stranger);
        assert!(
            stranger.contains("isn't the coordinator with this pin"),
            "{stranger}"
        );
    }
}
