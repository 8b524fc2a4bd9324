//! Enrolment: this host makes a key, shows the coordinator a single-use token, and gets a certificate. A host whose
//! certificate expired while it couldn't renew it shows that certificate and its key instead, and gets another.
//!
//! This host recognises the coordinator by the pin of the fleet's authority, which the operator brings along with the
//! token. Nothing is sent before the pin is found in the chain that the server presents.

use std::{io::Read as _, path::Path, time::Duration};

use anyhow::{Context as _, anyhow, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use client::{
    CallError, Client, Target,
    view::{EnrolReply, EnrolRequest, RenewRequest},
};
use hyper::Method;
use proto::Digest;
use serde::Serialize;
use tokio::time::timeout;
use tracing::info;

use crate::{
    cli::Enroll,
    identity::{self, Identity},
};

/// The time within which the whole exchange has to end.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Enrols this host and keeps its identity in `state_dir`.
pub(crate) async fn enrol(options: &Enroll, state_dir: &Path) -> anyhow::Result<()> {
    if identity::enrolled(state_dir) && !options.force {
        bail!(
            "this host is enrolled already: its certificate is in {}; to enrol it anew, add --force",
            state_dir.display()
        );
    }
    let pin = wire::parse_pin(&options.ca_pin)
        .context("--ca-pin has to be the 64 hex digits that `parbake-coordinator pin` prints")?;
    let token = read_token(&options.token_file)?;
    let (request, key_pem) = identity::request()?;
    let question = EnrolRequest {
        token,
        csr: STANDARD.encode(request),
    };
    let answer = ask(&options.api, pin, "/v1/enrol", &question).await?;
    ensure!(
        identity::fingerprint(&answer.authority)? == pin,
        "the coordinator answered with the certificate of another authority than --ca-pin names; compare it with `parbake-coordinator pin`"
    );
    let api = wire::api_address(&options.api)?;
    let address = coordinator_address(api, &answer.address);
    let identity = Identity::new(&key_pem, &answer.chain, &answer.authority, &address, api);
    let host = identity.host()?;
    identity.save(state_dir)?;
    info!(%host, coordinator = address, state_dir = %state_dir.display(), "enrolled");
    Ok(())
}

/// Renews a certificate that has expired, or that the coordinator takes for expired. The host proves its identity by
/// that certificate's key. The key stays until the next ordinary renewal.
pub(crate) async fn renew_late(identity: &Identity) -> anyhow::Result<Identity> {
    let (certificate, request) = identity.proof()?;
    let question = RenewRequest {
        certificate: STANDARD.encode(certificate),
        csr: STANDARD.encode(request),
    };
    let answer = ask(identity.api(), identity.pin()?, "/v1/renew", &question).await?;
    Ok(identity.renewed(&answer.chain, None)?)
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

/// The coordinator's address for QUIC, as the coordinator told it. A port alone belongs to the host that was asked.
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
) -> anyhow::Result<EnrolReply> {
    let address = wire::api_address(api)?.to_owned();
    let client = Client::new(Target::without_token(address, pin));
    let answer = timeout(TIMEOUT, client.read(Method::POST, path, Some(question))).await;
    let answer =
        answer.with_context(|| format!("{api} didn't answer within {} s", TIMEOUT.as_secs()))?;
    answer.map_err(|error| match error {
        CallError::Refused { text, .. } => anyhow!("{api} refused: {text}"),
        error => anyhow!(error).context(format!("reaching {api} (--api, --ca-pin)")),
    })
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::SystemTime};

    use client::COORDINATOR;
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

    /// Asks a server of this authority. The server gives this answer to any question.
    async fn answer(
        authority: &Authority,
        pin: Digest,
        answer: &str,
    ) -> anyhow::Result<EnrolReply> {
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
        let question = EnrolRequest {
            token: "t".into(),
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
        let good = http(
            "200 OK",
            r#"{"host":"mini-1","chain":"c","authority":"a","address":":1","expires_at":1}"#,
        );
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

        // another fleet's coordinator gets nothing, the token least of all
        let stranger = answer(&Authority::new(), pin, &good).await.unwrap_err();
        let stranger = proto::causes(&*stranger);
        assert!(
            stranger.contains("isn't the coordinator with this pin"),
            "{stranger}"
        );
    }
}
