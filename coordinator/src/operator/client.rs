//! A client of the coordinator's API that trusts one authority: the pinned one, under the name `coordinator`, whatever
//! address it is reached at.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use proto::Digest;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tokio_rustls::TlsConnector;

use super::Connection;
use crate::{
    authority::COORDINATOR,
    secret::Secret,
    view::{Addresses, Problem},
};

/// The coordinator is reached within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// It answers within this time; it may have to ask a registry.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(100);
/// A line of progress comes within this time: the coordinator sends one every 5 s at least.
const LINE_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest answer and the longest line: every host of the largest fleet with all its images.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Where the coordinator is, how it is recognised, and what it wants to see.
#[derive(Debug)]
pub(crate) struct Target {
    /// `host:port`.
    address: String,
    pin: Digest,
    token: Secret,
}

impl Target {
    pub(crate) const fn new(address: String, pin: Digest, token: Secret) -> Self {
        Self {
            address,
            pin,
            token,
        }
    }

    /// What the options say; a state directory gives what they leave out.
    pub(crate) fn of(options: &Connection) -> anyhow::Result<Self> {
        let in_state = |name: &str| options.state_dir.as_ref().map(|dir| dir.join(name));
        let address = match (&options.api, in_state("addresses.json")) {
            (Some(api), _) => api
                .strip_prefix("https://")
                .unwrap_or(api)
                .trim_end_matches('/')
                .to_owned(),
            (None, Some(path)) => {
                let addresses: Addresses =
                    serde_json::from_str(&read(&path)?).with_context(|| {
                        format!("{} isn't what a coordinator writes", path.display())
                    })?;
                let mut api = addresses.api;
                if api.ip().is_unspecified() {
                    api.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
                }
                api.to_string()
            }
            (None, None) => bail!(
                "no coordinator given: set --api (PARBAKE_API), --token-file and --ca-pin, \
                 or --state-dir on the coordinator's own machine"
            ),
        };
        if !address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        {
            bail!("--api has to be https://host:port, not {address}");
        }
        let pin = match (
            &options.ca_pin,
            options.ca.clone().or(in_state("authority/ca.pem")),
        ) {
            (Some(pin), _) => format!("sha256:{}", pin.trim().trim_start_matches("sha256:"))
                .parse()
                .context(
                    "--ca-pin has to be the 64 hex digits that `parbake-coordinator pin` prints",
                )?,
            (None, Some(path)) => {
                let certificate = CertificateDer::from_pem_slice(read(&path)?.as_bytes())
                    .map_err(|error| anyhow!("{}: {error}", path.display()))?;
                Digest::of(&certificate)
            }
            (None, None) => bail!(
                "nothing to recognise the coordinator by: set --ca-pin (PARBAKE_CA_PIN) or --ca"
            ),
        };
        let path = options.token_file.clone().or(in_state("api.token"));
        let path = path.context("no API token: set --token-file (PARBAKE_TOKEN_FILE) to a copy of the coordinator's api.token")?;
        Ok(Self {
            address,
            pin,
            token: Secret::from_text(&read(&path)?),
        })
    }
}

fn read(path: &PathBuf) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// A name as one segment of a path: all but unreserved characters are percent-encoded (RFC 3986, 2.3).
pub(crate) fn segment(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// The client. Each call is a connection of its own: there are few.
pub(crate) struct Client {
    target: Target,
    tls: TlsConnector,
}

/// An answer that is still coming, with the task that drives its connection.
struct Exchange {
    response: Response<Incoming>,
    _connection: JoinSet<()>,
}

impl Client {
    pub(crate) fn new(target: Target) -> anyhow::Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let verifier = Pinned {
            pin: target.pin,
            provider: provider.clone(),
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .context("setting up TLS")?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            target,
            tls: Arc::new(config).into(),
        })
    }

    /// Calls, and reads the JSON that comes back.
    pub(crate) async fn read<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<T> {
        let answer = self.call(method, path, body).await?;
        serde_json::from_slice(&answer).with_context(|| {
            format!(
                "{} answers in words that this version doesn't know",
                self.target.address
            )
        })
    }

    /// What stands at this path, if anything does.
    pub(crate) async fn find<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Option<T>> {
        match self.read(Method::GET, path, None::<&()>).await {
            Ok(found) => Ok(Some(found)),
            Err(error) => match error.downcast_ref::<Refusal>() {
                Some(refusal) if refusal.status == StatusCode::NOT_FOUND => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Calls, and returns the whole answer.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<Bytes> {
        let whole = async {
            let exchange = self.exchange(method, path, body).await?;
            let body = Limited::new(exchange.response.into_body(), MAX_ANSWER_BYTES);
            let body = body.collect().await;
            Ok(body
                .map_err(|error| anyhow!("reading the answer of {}: {error}", self.target.address))?
                .to_bytes())
        };
        timeout(ANSWER_TIMEOUT, whole).await.with_context(|| {
            format!(
                "{} didn't answer within {} s",
                self.target.address,
                ANSWER_TIMEOUT.as_secs()
            )
        })?
    }

    /// Calls, and returns the answer line by line as it comes.
    pub(crate) async fn lines(&self, path: &str) -> anyhow::Result<Lines> {
        let exchange = timeout(
            ANSWER_TIMEOUT,
            self.exchange(Method::GET, path, None::<&()>),
        )
        .await;
        let exchange =
            exchange.with_context(|| format!("{} didn't answer", self.target.address))??;
        Ok(Lines {
            exchange,
            buffer: BytesMut::new(),
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<Exchange> {
        let address = &self.target.address;
        let connect = async {
            let stream = TcpStream::connect(address.as_str())
                .await
                .with_context(|| {
                    format!("connecting to the coordinator at {address}; does it run?")
                })?;
            let name = ServerName::try_from(COORDINATOR).context("the coordinator's name")?;
            let stream = self.tls.connect(name, stream).await.with_context(|| {
                format!("{address} isn't the coordinator with this pin; compare with `parbake-coordinator pin`")
            })?;
            anyhow::Ok(http1::handshake(TokioIo::new(stream)).await?)
        };
        let (mut sender, connection) =
            timeout(CONNECT_TIMEOUT, connect).await.with_context(|| {
                format!(
                    "{address} didn't take the connection within {} s",
                    CONNECT_TIMEOUT.as_secs()
                )
            })??;
        let mut driving = JoinSet::new();
        driving.spawn(async move {
            // Its error reaches the request and the body too.
            drop(connection.await);
        });
        let body = match body {
            Some(body) => serde_json::to_vec(body).context("writing the request")?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, address.as_str())
            .header(header::CONTENT_TYPE, "application/json")
            .header(
                header::AUTHORIZATION,
                format!("Bearer {}", self.target.token.expose()),
            )
            .body(Full::new(Bytes::from(body)))
            .context("making the request (is the token file a token?)")?;
        let response = sender
            .send_request(request)
            .await
            .with_context(|| format!("asking {address}"))?;
        let status = response.status();
        let exchange = Exchange {
            response,
            _connection: driving,
        };
        if status.is_success() {
            return Ok(exchange);
        }
        let body = Limited::new(exchange.response.into_body(), 64 << 10)
            .collect()
            .await;
        let body = body
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        Err(refusal(status, &body))
    }
}

/// The coordinator answered, but not with what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    text: String,
}

fn refusal(status: StatusCode, body: &[u8]) -> anyhow::Error {
    let text = match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => problem.error,
        Err(_) => format!("the coordinator answers {status}"),
    };
    Refusal { status, text }.into()
}

/// An answer of lines of JSON.
pub(crate) struct Lines {
    exchange: Exchange,
    buffer: BytesMut,
}

impl Lines {
    /// The next line; `None` at the end. Not cancel safe only in what a broken line would cost: the next one.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> anyhow::Result<Option<T>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return Ok(Some(
                    serde_json::from_slice(&line).context("a line of progress")?,
                ));
            }
            if self.buffer.len() > MAX_ANSWER_BYTES {
                bail!("a line of progress is too long");
            }
            let frame = timeout(LINE_TIMEOUT, self.exchange.response.body_mut().frame()).await;
            match frame.context("the coordinator went silent")? {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.context("following progress")?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// Accepts a chain that leads by the ordinary rules to the one authority with this pin, which it has to contain.
#[derive(Debug)]
struct Pinned {
    pin: Digest,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates
            .iter()
            .find(|certificate| Digest::of(certificate) == self.pin)
            .ok_or_else(|| {
                rustls::Error::General(
                    "the pinned authority isn't in the server's chain".to_owned(),
                )
            })?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 isn't spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_become_one_segment() {
        assert_eq!(
            segment("ghcr.io/a/b:c@sha256:0"),
            "ghcr.io%2Fa%2Fb%3Ac%40sha256%3A0"
        );
    }

    #[test]
    fn what_is_missing_to_reach_a_coordinator_is_named() {
        let error = Target::of(&Connection::default()).unwrap_err().to_string();
        assert!(
            error.contains("PARBAKE_API") && error.contains("--state-dir"),
            "{error}"
        );
        let no_port = Connection {
            api: Some("https://parbake.example.com".into()),
            ..Connection::default()
        };
        assert!(
            Target::of(&no_port)
                .unwrap_err()
                .to_string()
                .contains("host:port")
        );
    }
}
