//! Answers a registry's demands for credentials: Basic, and Bearer tokens from the endpoint that the registry names.
//!
//! Credentials are sent to two places only: the registry, and the token endpoint that the registry itself names. That
//! endpoint must speak HTTPS, unless it is allowed plain HTTP. Tokens are kept for each realm, service and scope. A
//! token is replaced before it expires, and when the registry refuses it. It is fetched once, however many requests
//! wait for it.

mod challenge;

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderValue, Method, Uri};
use proto::Secret;
use tokio::{sync::Mutex, time::Instant};

use self::challenge::Challenge;
pub(crate) use self::challenge::{Bearer, challenges};
use crate::{
    error::{OriginError, shorten},
    location::{authority, escape, resolve},
    transport::{Authorization, Transport},
};

/// The longest token. The registries of the distribution specification issue tokens of a few KiB at most.
const MAX_TOKEN_BYTES: usize = 16 << 10;
/// The longest answer of a token endpoint: the token under both of its names, and room for the rest.
const MAX_ANSWER_BYTES: usize = 2 * MAX_TOKEN_BYTES + (8 << 10);
/// How long a token lives when its endpoint doesn't say (distribution specification, token authentication).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// The longest life of a token that counts.
const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A token is replaced this long before it expires, or after three quarters of its life if that is later.
const MARGIN: Duration = Duration::from_secs(10);
/// The most tokens kept for one repository. Two would suffice: for the scope that the registry names, and for ours.
const MAX_TOKENS: usize = 8;

/// The credentials with which a registry is asked.
#[derive(Clone, Debug, Default)]
pub enum Credentials {
    /// No credentials. A registry that demands a token anyway is asked for an anonymous one.
    #[default]
    Anonymous,
    /// A user with a password, or a robot with a long-lived token instead.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A complete `Authorization` header, such as one from [`Repository::authorization_for`]. It can't be renewed here:
    /// when the registry refuses it, the call ends with [`OriginError::Unauthorised`].
    ///
    /// [`Repository::authorization_for`]: crate::Repository::authorization_for
    Header(Secret),
}

/// What may be given to another program, so that it can ask the registry itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// The registry asks for no credentials.
    Open,
    /// A token for this repository that expires by itself.
    Token {
        /// The complete `Authorization` header.
        header: Secret,
        /// How long the token lives.
        life: Duration,
    },
    /// The registry accepts only user and password. This header is as powerful as they are, and never expires. Where
    /// the credentials are a complete header, this is that header.
    Password {
        /// The complete `Authorization` header.
        header: Secret,
    },
}

/// The credentials for one repository, and the tokens that were fetched with them.
#[derive(Debug)]
pub(crate) struct Authenticator {
    credentials: Credentials,
    /// The repository's host, port and name.
    repository: String,
    /// The name of the repository in scopes.
    name: String,
    /// Deliberately held while a token is fetched: other requests that need the token wait for it instead of fetching
    /// their own. Dropping the call that fetches lets the next one try.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    demand: Option<Demand>,
    tokens: BTreeMap<Bearer, Token>,
}

/// What the registry last demanded.
#[derive(Clone, Debug)]
enum Demand {
    Basic,
    Bearer(Bearer),
}

#[derive(Clone, Debug)]
struct Token {
    header: HeaderValue,
    secret: Secret,
    life: Duration,
    fetched: Instant,
}

/// How long a token lives, in any form in which endpoints write it; `None` where the endpoint doesn't say.
fn lasts(value: &serde_json::Value) -> Option<Duration> {
    let seconds = value
        .as_f64()
        .or_else(|| value.as_str()?.trim().parse().ok())?;
    // a negative number, or a text that isn't a number, counts as none
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|life| !life.is_zero())
}

impl Token {
    fn is_fresh(&self) -> bool {
        let margin = MARGIN.min(self.life / 4);
        self.fetched.elapsed() < self.life.saturating_sub(margin)
    }
}

impl Authenticator {
    pub(crate) fn new(credentials: Credentials, host: &str, name: &str) -> Self {
        Self {
            credentials,
            repository: format!("{host}/{name}"),
            name: name.to_owned(),
            state: Mutex::default(),
        }
    }

    /// The header for a request, as far as earlier answers show which one is needed.
    pub(crate) async fn ready(
        &self,
        transport: &Transport,
    ) -> Result<Option<HeaderValue>, OriginError> {
        if let Credentials::Header(header) = &self.credentials {
            return self.header(header).map(Some);
        }
        let mut state = self.state.lock().await;
        match state.demand.clone() {
            None => Ok(None),
            Some(Demand::Basic) => self.basic().map(Some),
            Some(Demand::Bearer(bearer)) => {
                let token = self.token(transport, &mut state, &bearer).await?;
                Ok(Some(token.header))
            }
        }
    }

    /// Whether the registry demands a token for another scope than this repository's: a proxy's own name for the
    /// repository, or a placeholder.
    pub(crate) fn wants_another_scope(&self, headers: &HeaderMap) -> bool {
        let demand = self.demand(headers);
        matches!(demand, Ok(Demand::Bearer(bearer)) if bearer.scope != Some(self.scope()))
    }

    /// The header with a token for this repository's own scope. Used when the registry refuses a token for the scope
    /// that it named.
    pub(crate) async fn answer_in_own_scope(
        &self,
        transport: &Transport,
        headers: &HeaderMap,
    ) -> Result<HeaderValue, OriginError> {
        let Demand::Bearer(mut bearer) = self.demand(headers)? else {
            return Err(self.unauthorised("user or password is wrong"));
        };
        bearer.scope = Some(self.scope());
        let mut state = self.state.lock().await;
        state.demand = Some(Demand::Bearer(bearer.clone()));
        let token = self.token(transport, &mut state, &bearer).await?;
        Ok(token.header)
    }

    /// The header that answers a 401 to a request with the header `refused`.
    pub(crate) async fn answer(
        &self,
        transport: &Transport,
        headers: &HeaderMap,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, OriginError> {
        if matches!(self.credentials, Credentials::Header(_)) {
            return Err(self.unauthorised(
                "the token that was handed out is refused or has expired; get another one",
            ));
        }
        let demand = self.demand(headers)?;
        let mut state = self.state.lock().await;
        state.demand = Some(demand.clone());
        match demand {
            Demand::Basic => {
                let header = self.basic()?;
                if refused == Some(&header) {
                    return Err(self.unauthorised("user or password is wrong"));
                }
                Ok(header)
            }
            Demand::Bearer(bearer) => {
                // Another request may have replaced the refused token by now.
                if state
                    .tokens
                    .get(&bearer)
                    .is_some_and(|token| Some(&token.header) == refused)
                {
                    state.tokens.remove(&bearer);
                }
                let token = self.token(transport, &mut state, &bearer).await?;
                Ok(token.header)
            }
        }
    }

    /// A grant for another program, from the registry's answer to a request without credentials.
    pub(crate) async fn grant(
        &self,
        transport: &Transport,
        headers: &HeaderMap,
    ) -> Result<Grant, OriginError> {
        if let Credentials::Header(header) = &self.credentials {
            return Ok(Grant::Password {
                header: header.clone(),
            });
        }
        match self.demand(headers)? {
            Demand::Basic => {
                self.basic()?;
                Ok(Grant::Password {
                    header: self.basic_secret()?,
                })
            }
            Demand::Bearer(mut bearer) => {
                // A registry that is asked in general names no scope, or another scope than the one needed here.
                bearer.scope = Some(self.scope());
                let token = self.fetch(transport, &bearer).await?;
                Ok(Grant::Token {
                    header: token.secret,
                    life: token.life,
                })
            }
        }
    }

    /// The strongest demand that can be met: a token, where the registry accepts one.
    fn demand(&self, headers: &HeaderMap) -> Result<Demand, OriginError> {
        let all = challenges(headers);
        let bearer = all.iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer.clone()),
            Challenge::Basic => None,
        });
        if let Some(mut bearer) = bearer {
            bearer.scope.get_or_insert_with(|| self.scope());
            return Ok(Demand::Bearer(bearer));
        }
        match (all.contains(&Challenge::Basic), &self.credentials) {
            (true, Credentials::Basic { .. }) => Ok(Demand::Basic),
            (true, _) => Err(self.unauthorised("the registry wants user and password")),
            (false, _) => {
                Err(self.unauthorised("the registry wants them in a way that isn't known here"))
            }
        }
    }

    fn scope(&self) -> String {
        format!("repository:{}:pull", self.name)
    }

    async fn token(
        &self,
        transport: &Transport,
        state: &mut State,
        bearer: &Bearer,
    ) -> Result<Token, OriginError> {
        if let Some(token) = state.tokens.get(bearer).filter(|token| token.is_fresh()) {
            return Ok(token.clone());
        }
        let token = self.fetch(transport, bearer).await?;
        state.tokens.retain(|_, token| token.is_fresh());
        while state.tokens.len() >= MAX_TOKENS {
            state.tokens.pop_first();
        }
        state.tokens.insert(bearer.clone(), token.clone());
        Ok(token)
    }

    async fn fetch(&self, transport: &Transport, bearer: &Bearer) -> Result<Token, OriginError> {
        #[derive(serde::Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
            /// A number by the specification. Some endpoints write it as text, with a fraction, or as -1.
            expires_in: Option<serde_json::Value>,
        }

        let realm = self.realm(transport, bearer)?;
        let host = authority(&realm);
        let what = format!("token from {host} for {}", self.repository);
        let authorization = match &self.credentials {
            Credentials::Basic { .. } => Some(self.basic()?),
            Credentials::Anonymous | Credentials::Header(_) => None,
        };
        // The life counts from the request for the token, so that a slow answer is on the safe side.
        let fetched = Instant::now();
        let malformed = |cause: &str| OriginError::Malformed {
            what: what.clone(),
            host: host.clone(),
            cause: cause.to_owned(),
        };
        let answer = transport
            .once(
                &what,
                Method::GET,
                &realm,
                &HeaderMap::new(),
                authorization.map(Authorization),
            )
            .await;
        let answer = match answer {
            // says that the endpoint is missing, not the thing that the token is for
            Err(OriginError::NotFound { said, .. }) => {
                return Err(malformed(&format!("it has no tokens there{said}")));
            }
            answer => answer?,
        };
        let body = transport
            .whole(&what, &host, answer.into_body(), MAX_ANSWER_BYTES)
            .await?;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|error| malformed(&format!("the answer isn't a token: {error}")))?;
        let token = answer
            .token
            .into_iter()
            .chain(answer.access_token)
            .find(|token| !token.is_empty())
            .map(Secret::new)
            .ok_or_else(|| malformed("the answer has no token"))?;
        if token.expose().len() > MAX_TOKEN_BYTES {
            return Err(malformed("the token is too long"));
        }
        let secret = Secret::new(format!("Bearer {}", token.expose()));
        let header = header(&secret)
            .ok_or_else(|| malformed("the token has characters that a header can't hold"))?;
        let life = answer
            .expires_in
            .as_ref()
            .and_then(lasts)
            .unwrap_or(DEFAULT_LIFE)
            .min(MAX_LIFE);
        tracing::debug!(repository = %self.repository, realm = %host, life_s = life.as_secs(), "token fetched");
        Ok(Token {
            header,
            secret,
            life,
            fetched,
        })
    }

    /// The token endpoint's URL with its query, if credentials may be sent there.
    fn realm(&self, transport: &Transport, bearer: &Bearer) -> Result<Uri, OriginError> {
        let refuse = |cause: &str| {
            let realm = shorten(&bearer.realm);
            self.unauthorised(&format!("its token endpoint {realm:?} {cause}"))
        };
        let mut query = String::new();
        for (name, value) in [("service", &bearer.service), ("scope", &bearer.scope)] {
            // Several scopes are separated by spaces in a challenge, and are repeated in the query.
            let values: Vec<&str> = match (name, value) {
                (_, None) => Vec::new(),
                ("scope", Some(value)) => value.split_ascii_whitespace().collect(),
                (_, Some(value)) => vec![value],
            };
            for value in values {
                query.push_str(&format!("&{name}={}", escape(value)));
            }
        }
        let joint = if bearer.realm.contains('?') { "&" } else { "?" };
        let url = match query.strip_prefix('&') {
            Some(query) => format!("{}{joint}{query}", bearer.realm),
            None => bearer.realm.clone(),
        };
        // The specification requires an absolute URL. The base only serves the parser.
        if !(url.starts_with("https://") || url.starts_with("http://")) {
            return Err(refuse("isn't an HTTPS address"));
        }
        let uri = resolve(&Uri::from_static("https://realm.invalid/"), &url)
            .ok_or_else(|| refuse("isn't an HTTPS address"))?;
        if uri.scheme_str() == Some("http") && !transport.plain_http().allows(&authority(&uri)) {
            return Err(refuse("doesn't use HTTPS, so credentials don't go there"));
        }
        Ok(uri)
    }

    fn basic_secret(&self) -> Result<Secret, OriginError> {
        let Credentials::Basic { user, password } = &self.credentials else {
            return Err(self.unauthorised("the registry wants user and password"));
        };
        let pair = Secret::new(format!("{user}:{}", password.expose()));
        let encoded = Secret::new(BASE64_STANDARD.encode(pair.expose()));
        Ok(Secret::new(format!("Basic {}", encoded.expose())))
    }

    fn basic(&self) -> Result<HeaderValue, OriginError> {
        self.header(&self.basic_secret()?)
    }

    fn header(&self, secret: &Secret) -> Result<HeaderValue, OriginError> {
        header(secret)
            .ok_or_else(|| self.unauthorised("these have characters that a header can't hold"))
    }

    fn unauthorised(&self, cause: &str) -> OriginError {
        OriginError::Unauthorised {
            what: self.repository.clone(),
            cause: cause.to_owned(),
        }
    }
}

/// A secret as a header value that hyper doesn't print either; `None` when a header can't contain it.
fn header(secret: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(secret.expose()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_token_lives_is_read_in_every_form_that_is_written() {
        let read = |text: &str| lasts(&serde_json::from_str(text).unwrap());
        let seconds = |seconds: u64| Some(Duration::from_secs(seconds));
        assert_eq!(read("300"), seconds(300));
        assert_eq!(read("\"300\""), seconds(300));
        assert_eq!(read("300.5"), Some(Duration::from_millis(300_500)));
        for nothing in ["-1", "0", "null", "\"soon\"", "1e300", "[]"] {
            assert_eq!(read(nothing), None, "{nothing}");
        }
    }
}
