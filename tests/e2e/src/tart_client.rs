//! A registry client with tart's manners, as far as a mirror can tell: what it asks, what it takes for an answer, and
//! what makes it try again or give up.
//!
//! Four layers at a time; 200 for a whole blob and 206 for the rest of one, and nothing else; again, up to five times a
//! layer, only when the connection breaks; 60 s without a byte is such a break. It checks no digest: whoever feeds it
//! is the only one who does.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, RANGE, WWW_AUTHENTICATE},
};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use proto::{Digest, image::MANIFEST_TYPE};
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinSet,
    time::{Instant, timeout},
};

/// Layers at one time.
const PARALLEL: usize = 4;
/// Attempts at one layer after the first.
const RETRIES: usize = 5;
/// Nothing for so long is a broken connection.
const IDLE: Duration = Duration::from_secs(60);

/// Why a pull ended without the image.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// An answer that it doesn't take: the pull is over.
    #[error("{what} was answered with {status}: {said}")]
    Status {
        /// What was asked for.
        what: String,
        /// The answer.
        status: StatusCode,
        /// Its body.
        said: String,
    },
    /// The connection broke once more than it tries again.
    #[error("{what}: {cause}")]
    Broken {
        /// What was asked for.
        what: String,
        /// The last cause.
        cause: String,
    },
    /// The manifest isn't one.
    #[error("manifest: {0}")]
    Manifest(String),
}

/// What was pulled.
#[derive(Debug)]
pub struct Pulled {
    /// The manifest's bytes.
    pub manifest: Bytes,
    /// The layers' bytes as they came, by the digest that the manifest names.
    pub layers: BTreeMap<Digest, Bytes>,
    /// From the pull's start to the first byte of a layer.
    pub first_byte: Duration,
    /// How often a layer's connection broke.
    pub breaks: usize,
}

/// tart, as a mirror sees it.
#[derive(Clone, Debug)]
pub struct TartClient {
    http: legacy::Client<HttpConnector, Empty<Bytes>>,
    /// `http://host:port`.
    base: String,
    /// Name and password, where it has some for this host.
    account: Option<(String, String)>,
    /// The header that the registry took last.
    authorization: Arc<Mutex<Option<HeaderValue>>>,
    idle: Duration,
}

impl TartClient {
    /// A client of what listens at `host:port`, over plain HTTP (`tart pull --insecure`).
    #[must_use]
    pub fn new(address: impl std::fmt::Display) -> Self {
        Self {
            http: legacy::Client::builder(TokioExecutor::new()).build_http(),
            base: format!("http://{address}"),
            account: None,
            authorization: Arc::default(),
            idle: IDLE,
        }
    }

    /// With these credentials for it.
    #[must_use]
    pub fn with_account(mut self, user: &str, password: &str) -> Self {
        self.account = Some((user.into(), password.into()));
        self
    }

    /// Pulls an image; layers in parallel.
    ///
    /// # Errors
    /// As tart would: at the first answer that it doesn't take, or when a layer broke off too often.
    pub async fn pull(&self, name: &str, reference: &str) -> Result<Pulled, PullError> {
        let began = Instant::now();
        let what = format!("manifest of {name}:{reference}");
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(MANIFEST_TYPE));
        let path = format!("/v2/{name}/manifests/{reference}");
        let response = self.ask(&what, &path, headers).await?;
        let response = expect(&what, response, StatusCode::OK).await?;
        let manifest = collect(&what, response).await?;
        let wanted = layers(&manifest)?;
        let slots = Arc::new(Semaphore::new(PARALLEL));
        let mut tasks = JoinSet::new();
        for digest in wanted {
            let (this, name, slots) = (self.clone(), name.to_owned(), slots.clone());
            tasks.spawn(async move {
                let slot = slots.acquire().await;
                let layer = this.layer(&name, digest).await;
                drop(slot);
                layer.map(|layer| (digest, layer))
            });
        }
        let mut pulled = Pulled {
            manifest,
            layers: BTreeMap::new(),
            first_byte: Duration::MAX,
            breaks: 0,
        };
        while let Some(done) = tasks.join_next().await {
            // the set is dropped at the first error, and the other layers end with it
            let (digest, layer) = done.map_err(|error| PullError::Broken {
                what: "a layer".into(),
                cause: error.to_string(),
            })??;
            pulled.breaks += layer.breaks;
            if let Some(at) = layer.first_byte {
                pulled.first_byte = pulled.first_byte.min(at.duration_since(began));
            }
            pulled.layers.insert(digest, layer.bytes.freeze());
        }
        Ok(pulled)
    }

    async fn layer(&self, name: &str, digest: Digest) -> Result<Layer, PullError> {
        let what = format!("layer {digest}");
        let path = format!("/v2/{name}/blobs/{digest}");
        let mut layer = Layer::default();
        loop {
            let held = layer.bytes.len();
            let mut headers = HeaderMap::new();
            let mut wanted = StatusCode::OK;
            if held > 0 {
                let range = format!("bytes={held}-");
                headers.insert(RANGE, range.parse().expect("digits are a header"));
                wanted = StatusCode::PARTIAL_CONTENT;
            }
            let cause = match self.ask(&what, &path, headers).await {
                Ok(response) => {
                    let response = expect(&what, response, wanted).await?;
                    match self.stream(response, &mut layer).await {
                        Ok(()) => return Ok(layer),
                        Err(cause) => cause,
                    }
                }
                Err(PullError::Broken { cause, .. }) => cause,
                Err(error) => return Err(error),
            };
            layer.breaks += 1;
            if layer.breaks > RETRIES {
                return Err(PullError::Broken { what, cause });
            }
        }
    }

    async fn stream(&self, response: Response<Incoming>, layer: &mut Layer) -> Result<(), String> {
        let mut body = response.into_body();
        loop {
            match timeout(self.idle, body.frame()).await {
                Err(_) => return Err("nothing came for too long".into()),
                Ok(None) => return Ok(()),
                Ok(Some(Err(error))) => return Err(error.to_string()),
                Ok(Some(Ok(frame))) => {
                    layer.first_byte.get_or_insert_with(Instant::now);
                    layer
                        .bytes
                        .extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
                }
            }
        }
    }

    /// A GET, and another one with credentials where the first is answered with 401.
    async fn ask(
        &self,
        what: &str,
        path: &str,
        mut headers: HeaderMap,
    ) -> Result<Response<Incoming>, PullError> {
        if let Some(header) = self.authorization.lock().await.clone() {
            headers.insert(AUTHORIZATION, header);
        }
        let response = self
            .get(what, &format!("{}{path}", self.base), &headers)
            .await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let Some(header) = self.answer(&response).await? else {
            return Ok(response);
        };
        *self.authorization.lock().await = Some(header.clone());
        headers.insert(AUTHORIZATION, header);
        self.get(what, &format!("{}{path}", self.base), &headers)
            .await
    }

    async fn get(
        &self,
        what: &str,
        uri: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, PullError> {
        let broken = |cause: String| PullError::Broken {
            what: what.into(),
            cause,
        };
        let mut request = Request::get(uri)
            .body(Empty::new())
            .map_err(|error| broken(error.to_string()))?;
        *request.headers_mut() = headers.clone();
        match timeout(self.idle, self.http.request(request)).await {
            Err(_) => Err(broken("no answer came".into())),
            Ok(Err(error)) => Err(broken(format!("{error:?}"))),
            Ok(Ok(response)) => Ok(response),
        }
    }

    /// The header for a challenge: user and password, or a token that they are changed into.
    async fn answer(
        &self,
        response: &Response<Incoming>,
    ) -> Result<Option<HeaderValue>, PullError> {
        let basic = self.account.as_ref().and_then(|(user, password)| {
            let pair = BASE64_STANDARD.encode(format!("{user}:{password}"));
            format!("Basic {pair}").parse::<HeaderValue>().ok()
        });
        let challenge = response.headers().get(WWW_AUTHENTICATE);
        let Some(challenge) = challenge.and_then(|value| value.to_str().ok()) else {
            return Ok(None);
        };
        let Some(parameters) = challenge.strip_prefix("Bearer ") else {
            return Ok(basic);
        };
        let field = |name: &str| {
            let (_, rest) = parameters.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        let Some(realm) = field("realm") else {
            return Ok(None);
        };
        let mut query = Vec::new();
        for name in ["service", "scope"] {
            query.extend(field(name).map(|value| format!("{name}={}", escape(&value))));
        }
        let mut headers = HeaderMap::new();
        headers.extend(basic.map(|basic| (AUTHORIZATION, basic)));
        let uri = format!("{realm}?{}", query.join("&"));
        let response = self.get("token", &uri, &headers).await?;
        let response = expect("token", response, StatusCode::OK).await?;
        let body = collect("token", response).await?;
        let body: serde_json::Value = serde_json::from_slice(&body)
            .map_err(|error| PullError::Manifest(error.to_string()))?;
        let token = body["token"].as_str().or(body["access_token"].as_str());
        Ok(token.and_then(|token| format!("Bearer {token}").parse().ok()))
    }
}

#[derive(Debug, Default)]
struct Layer {
    bytes: BytesMut,
    first_byte: Option<Instant>,
    breaks: usize,
}

async fn expect(
    what: &str,
    response: Response<Incoming>,
    wanted: StatusCode,
) -> Result<Response<Incoming>, PullError> {
    let status = response.status();
    if status == wanted {
        return Ok(response);
    }
    let said = collect(what, response).await.unwrap_or_default();
    Err(PullError::Status {
        what: what.into(),
        status,
        said: String::from_utf8_lossy(&said).into_owned(),
    })
}

async fn collect(what: &str, response: Response<Incoming>) -> Result<Bytes, PullError> {
    let collected = response.into_body().collect().await;
    collected
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| PullError::Broken {
            what: what.into(),
            cause: error.to_string(),
        })
}

/// A value as a query may hold it.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte);
    text.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

fn layers(manifest: &[u8]) -> Result<Vec<Digest>, PullError> {
    let manifest: serde_json::Value =
        serde_json::from_slice(manifest).map_err(|error| PullError::Manifest(error.to_string()))?;
    let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
    layers
        .iter()
        .map(|layer| {
            let text = layer["digest"].as_str().unwrap_or_default();
            text.parse()
                .map_err(|_| PullError::Manifest(format!("{text:?} isn't a digest")))
        })
        .collect()
}
