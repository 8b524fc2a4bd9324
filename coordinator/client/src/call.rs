//! A client of the coordinator's API. It trusts one authority, the pinned one, and expects the name `coordinator` at
//! every address.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use proto::{Digest, Secret, causes};
use rustls_pki_types::ServerName;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tokio_rustls::TlsConnector;
use wire::HandshakeError;

use crate::{
    patience::{ANSWER_AWAITED, LINE_AWAITED},
    view::Problem,
};

/// The name in the coordinator's certificate, at every address. No host may have this name.
pub const COORDINATOR: &str = "coordinator";

/// The coordinator is reached within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of an answer or a line: room for every host of the largest fleet with all its images.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Where the coordinator is, how it is recognised, and which token it accepts.
#[derive(Debug)]
pub struct Target {
    /// `host:port`.
    address: String,
    pin: Digest,
    /// The token that lets the caller in. A host that enrols has none.
    token: Option<Secret>,
    /// The file that the token was read from.
    token_file: Option<PathBuf>,
}

impl Target {
    /// The coordinator at `host:port`, recognised by the SHA-256 of its authority's certificate.
    #[must_use]
    pub const fn new(address: String, pin: Digest, token: Secret) -> Self {
        Self {
            address,
            pin,
            token: Some(token),
            token_file: None,
        }
    }

    /// The coordinator without an API token, for the calls that need none: enrolment and late renewal.
    #[must_use]
    pub const fn without_token(address: String, pin: Digest) -> Self {
        Self {
            address,
            pin,
            token: None,
            token_file: None,
        }
    }

    /// Adds the token's file, which errors name.
    #[must_use]
    pub fn with_token_file(mut self, file: PathBuf) -> Self {
        self.token_file = Some(file);
        self
    }
}

/// All characters but the unreserved ones (RFC 3986, 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Encodes a name as one segment of a path: all but unreserved characters are percent-encoded.
pub fn segment(name: &str) -> String {
    utf8_percent_encode(name, RESERVED).to_string()
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody answered, the connection broke, or the server doesn't serve yet. Another try may succeed.
    #[error("{cause}")]
    Away {
        /// What happened.
        cause: String,
        /// Whether nobody has proved to be the coordinator yet. If so, the address may be wrong.
        unheard: bool,
    },
    /// Another server than the pinned one answers, or a clock is wrong.
    #[error("{address}: {cause}")]
    Stranger {
        /// The address that was asked.
        address: String,
        /// What is wrong.
        cause: HandshakeError,
    },
    /// The coordinator answered with an error.
    #[error("{text}")]
    Refused {
        /// The status of the answer.
        status: StatusCode,
        /// The text of the answer.
        text: String,
    },
    /// The request can't be sent, or the answer isn't understood.
    #[error("{0}")]
    Odd(String),
}

impl CallError {
    /// Whether another try may succeed.
    pub const fn passes(&self) -> bool {
        matches!(self, Self::Away { .. })
    }

    /// Whether the coordinator answered with this status.
    pub fn is(&self, wanted: StatusCode) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == wanted)
    }
}

/// The client. Each call opens a connection of its own, because calls are rare.
pub struct Client {
    target: Target,
    tls: TlsConnector,
}

/// An answer that is still coming, with the task that drives its connection.
struct Exchange {
    response: Response<Incoming>,
    _connection: JoinSet<()>,
}

impl Client {
    /// A client of this coordinator.
    #[must_use]
    pub fn new(target: Target) -> Self {
        let tls = Arc::new(wire::pinned(target.pin)).into();
        Self { target, tls }
    }

    /// The address of the coordinator, `host:port`.
    pub fn address(&self) -> &str {
        &self.target.address
    }

    /// Calls, and parses the JSON of the answer.
    ///
    /// # Errors
    /// The coordinator is unreachable, is another one, refuses, or answers in unknown words.
    pub async fn read<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, CallError> {
        let answer = self.call(method, path, body).await?;
        serde_json::from_slice(&answer).map_err(|error| {
            let address = &self.target.address;
            CallError::Odd(format!(
                "{address} answers in words that this version doesn't know: {error}"
            ))
        })
    }

    /// What the path leads to. `None` where the coordinator answers 404.
    ///
    /// # Errors
    /// Those of [`Client::read`].
    pub async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, CallError> {
        match self.read(Method::GET, path, None::<&()>).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Calls, and returns the whole answer.
    ///
    /// # Errors
    /// The coordinator is unreachable, is another one, or refuses.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Bytes, CallError> {
        let whole = async {
            let exchange = self.exchange(method, path, body).await?;
            let body = Limited::new(exchange.response.into_body(), MAX_ANSWER_BYTES);
            let body = body.collect().await;
            Ok(body
                .map_err(|error| self.away(&format!("reading its answer: {}", causes(&*error))))?
                .to_bytes())
        };
        timeout(ANSWER_AWAITED, whole)
            .await
            .map_err(|_| self.away(&format!("no answer within {} s", ANSWER_AWAITED.as_secs())))?
    }

    /// Calls, and returns the answer line by line as it comes.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn lines(&self, path: &str) -> Result<Lines, CallError> {
        let exchange = self.exchange(Method::GET, path, None::<&()>);
        let exchange = timeout(ANSWER_AWAITED, exchange).await.map_err(|_| {
            self.away(&format!("no answer within {} s", ANSWER_AWAITED.as_secs()))
        })??;
        Ok(Lines {
            exchange,
            buffer: BytesMut::new(),
        })
    }

    /// The error for a broken connection, or for no answer in time.
    fn away(&self, cause: &str) -> CallError {
        CallError::Away {
            cause: format!("{}: {cause}", self.target.address),
            unheard: false,
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Exchange, CallError> {
        let address = &self.target.address;
        let connect = async {
            let stream = TcpStream::connect(address.as_str()).await;
            let stream = stream.map_err(|error| CallError::Away {
                cause: format!("connecting to the coordinator at {address}; does it run?: {error}"),
                unheard: true,
            })?;
            let name = ServerName::try_from(COORDINATOR)
                .map_err(|error| CallError::Odd(error.to_string()))?;
            let tls = self.tls.connect(name, stream).await;
            let stream = tls.map_err(|error| match HandshakeError::of(error) {
                // the server may be no coordinator at all
                broken @ HandshakeError::Broken(_) => CallError::Away {
                    cause: format!("{address}: {broken}"),
                    unheard: true,
                },
                cause => CallError::Stranger {
                    address: address.clone(),
                    cause,
                },
            })?;
            http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| self.away(&causes(&error)))
        };
        let (mut sender, connection) =
            timeout(CONNECT_TIMEOUT, connect)
                .await
                .map_err(|_| CallError::Away {
                    cause: format!(
                        "{address} didn't take the connection within {} s",
                        CONNECT_TIMEOUT.as_secs()
                    ),
                    unheard: true,
                })??;
        let mut driving = JoinSet::new();
        driving.spawn(async move {
            // the connection's error also reaches the request and the body
            drop(connection.await);
        });
        let body = match body {
            Some(body) => {
                serde_json::to_vec(body).map_err(|error| CallError::Odd(error.to_string()))?
            }
            None => Vec::new(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, address.as_str())
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.target.token {
            let bearer = format!("Bearer {}", token.expose());
            request = request.header(header::AUTHORIZATION, bearer);
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| {
                CallError::Odd(format!(
                    "making the request (is the token file a token?): {error}"
                ))
            })?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.away(&causes(&error)))?;
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
        Err(self.refusal(status, &body))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> CallError {
        let said = serde_json::from_slice::<Problem>(body).map(|problem| problem.error);
        match (status, &self.target.token_file) {
            // the coordinator starts, stops, or doesn't lead
            (StatusCode::SERVICE_UNAVAILABLE, _) => CallError::Away {
                cause: said.unwrap_or_else(|_| "the coordinator isn't ready".to_owned()),
                unheard: false,
            },
            (StatusCode::UNAUTHORIZED, Some(file)) => CallError::Refused {
                status,
                text: format!(
                    "the coordinator doesn't accept the token in {}; it has to be what api.token of its state directory holds",
                    file.display()
                ),
            },
            _ => CallError::Refused {
                status,
                text: said.unwrap_or_else(|_| format!("the coordinator answers {status}")),
            },
        }
    }
}

/// An answer that consists of lines of JSON.
pub struct Lines {
    exchange: Exchange,
    buffer: BytesMut,
}

impl Lines {
    /// The next line. `None` at the end. Not cancel safe: when the future is dropped in the middle of a line, the line
    /// can be lost.
    ///
    /// # Errors
    /// The connection broke, was silent for too long, or the line isn't understood.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CallError> {
        let away = |cause: String| CallError::Away {
            cause,
            unheard: false,
        };
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return serde_json::from_slice(&line).map(Some).map_err(|error| {
                    CallError::Odd(format!("a line of progress isn't understood: {error}"))
                });
            }
            if self.buffer.len() > MAX_ANSWER_BYTES {
                return Err(CallError::Odd("a line of progress is too long".to_owned()));
            }
            let frame = timeout(LINE_AWAITED, self.exchange.response.body_mut().frame()).await;
            match frame {
                Err(_) => {
                    let silent = LINE_AWAITED.as_secs();
                    return Err(away(format!("nothing has come for {silent} s")));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(away(causes(&error))),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
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

    #[tokio::test]
    async fn what_answers_without_tls_may_be_the_wrong_address() {
        use tokio::io::AsyncWriteExt as _;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let client = Client::new(Target::new(
            address,
            Digest::of(b"a"),
            Secret::from_text("a token"),
        ));
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
            stream
        };
        let asked = client.call(Method::GET, "/v1/images", None::<&()>);
        let (asked, _stream) = tokio::join!(asked, answer);
        let error = asked.unwrap_err();
        assert!(
            matches!(&error, CallError::Away { unheard: true, cause } if cause.contains("the TLS handshake broke off")),
            "{error}"
        );
    }
}
