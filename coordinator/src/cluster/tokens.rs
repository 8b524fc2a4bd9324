//! Finds out whose token a runner shows, by asking the API server.
//!
//! Each unknown token costs a question to the API server, and anybody who reaches the coordinator can invent tokens. So
//! a text that can't be a token isn't asked about. Good and bad answers are remembered in separate tables, so that bad
//! ones don't displace good ones. Each address has an allowance of questions, and a good token gives its question back.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::{Api, Client, api::PostParams};
use proto::Digest;
use tokio::{sync::Semaphore, time::timeout};
use tracing::warn;

use crate::{allowance::Allowances, lock::lock, secret::Secret};

/// The API server answers for a token within this time.
const REVIEW: Duration = Duration::from_secs(5);
/// A question waits at most this long for a free slot.
const WAIT: Duration = Duration::from_secs(1);
/// An answer about a good token counts for this long. An answer about a bad token counts for about one polling interval
/// of a runner.
const GOOD_FOR: Duration = Duration::from_secs(60);
const BAD_FOR: Duration = Duration::from_secs(10);
/// The most good tokens that are remembered: twice the runners of a fleet.
const GOOD: usize = 4_096;
/// The most bad tokens that are remembered.
const BAD: usize = 1_024;
/// The most questions that are under way at one time.
const REVIEWS: usize = 16;
/// The longest token that is asked about, in bytes. A ServiceAccount's token has about a kilobyte.
const MAX_TOKEN: usize = 8 << 10;
/// How many questions an address has in reserve, and how long it takes to gain one more. A Mac has a few runners, each
/// with one token at a time.
const ALLOWANCE: u32 = 20;
const ALLOWED_EVERY: Duration = Duration::from_secs(2);

/// The owners of tokens, by recent answers of the API server.
pub(super) struct Tokens {
    client: Client,
    audiences: Vec<String>,
    slots: Semaphore,
    /// Locked for a moment only, never across an await.
    known: Mutex<Known>,
}

/// Answers, by the token's digest.
#[derive(Debug)]
struct Known {
    good: BTreeMap<Digest, (Caller, Instant)>,
    bad: BTreeMap<Digest, Instant>,
    allowances: Allowances,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            good: BTreeMap::new(),
            bad: BTreeMap::new(),
            allowances: Allowances::new(ALLOWANCE, ALLOWED_EVERY),
        }
    }
}

/// A ServiceAccount that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    namespace: String,
    account: String,
    /// The Pod that the token is bound to, where it is bound to one.
    pod: Option<String>,
}

/// Why the owner of a token isn't known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenError {
    /// Too many bad tokens came from the address.
    #[error("too many unknown tokens come from this address; ask again in some seconds")]
    TooMany,
    /// The API server doesn't answer, or too many questions are under way.
    #[error("the API server doesn't say whose this token is; ask again in a moment")]
    Unanswered,
}

impl Tokens {
    /// Accepts tokens that were made for one of these audiences. Without audiences, accepts tokens for the API server
    /// itself.
    pub(super) fn new(client: Client, audiences: Vec<String>) -> Self {
        Self {
            client,
            audiences,
            slots: Semaphore::new(REVIEWS),
            known: Mutex::default(),
        }
    }

    /// The ServiceAccount that this token belongs to. `from` is the address that showed the token. `None` when the API
    /// server doesn't know the token, or the token isn't a ServiceAccount's.
    ///
    /// # Errors
    /// The address has used up its allowance, or the API server gave no answer.
    pub(super) async fn caller(
        &self,
        token: &Secret,
        from: IpAddr,
    ) -> Result<Option<Caller>, TokenError> {
        if !is_token(token.expose()) {
            return Ok(None);
        }
        let (digest, from) = (token.digest(), wire::network(from));
        {
            let (mut known, now) = (self.known(), Instant::now());
            if let Some(answer) = known.answer(&digest, now) {
                return Ok(answer);
            }
            if !known.allowances.take(from, now) {
                return Err(TokenError::TooMany);
            }
        }
        let Ok(Ok(_slot)) = timeout(WAIT, self.slots.acquire()).await else {
            return Err(TokenError::Unanswered);
        };
        let caller = self.ask(token).await?;
        self.known()
            .learn(digest, from, caller.as_ref(), Instant::now());
        Ok(caller)
    }

    async fn ask(&self, token: &Secret) -> Result<Option<Caller>, TokenError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.expose().to_owned()),
                audiences: (!self.audiences.is_empty()).then(|| self.audiences.clone()),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = timeout(REVIEW, api.create(&PostParams::default(), &review)).await;
        let status = match answer {
            Ok(Ok(review)) => review.status.unwrap_or_default(),
            Ok(Err(error)) => {
                warn!(%error, "a token can't be reviewed");
                return Err(TokenError::Unanswered);
            }
            Err(_) => return Err(TokenError::Unanswered),
        };
        // an API server that names no audience took the token for one of its own
        let meant = self.audiences.is_empty()
            || status
                .audiences
                .iter()
                .flatten()
                .any(|audience| self.audiences.contains(audience));
        Ok(match (status.authenticated, &status.user) {
            (Some(true), Some(user)) if meant => Caller::of(user),
            _ => None,
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }
}

/// Whether a text can be a ServiceAccount's token: a JSON Web Token (RFC 7519) in its compact form.
fn is_token(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(4, '.').collect();
    let is_part = |part: &&str| {
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        !part.is_empty() && part.bytes().all(sound)
    };
    text.len() <= MAX_TOKEN && parts.len() == 3 && parts.iter().all(is_part)
}

impl Known {
    fn answer(&self, token: &Digest, now: Instant) -> Option<Option<Caller>> {
        if let Some((caller, until)) = self.good.get(token)
            && *until > now
        {
            return Some(Some(caller.clone()));
        }
        let until = self.bad.get(token)?;
        (*until > now).then_some(None)
    }

    fn learn(&mut self, token: Digest, from: IpAddr, caller: Option<&Caller>, now: Instant) {
        let Some(caller) = caller else {
            if self.bad.len() >= BAD {
                self.bad.retain(|_, until| *until > now);
            }
            if self.bad.len() < BAD {
                self.bad.insert(token, now + BAD_FOR);
            }
            return;
        };
        if self.good.len() >= GOOD {
            self.good.retain(|_, (_, until)| *until > now);
        }
        if self.good.len() < GOOD {
            self.good.insert(token, (caller.clone(), now + GOOD_FOR));
        }
        self.allowances.give_back(from);
    }
}

impl Caller {
    /// The ServiceAccount that a reviewed token belongs to. `None` when the token isn't a ServiceAccount's.
    fn of(user: &UserInfo) -> Option<Self> {
        let name = user.username.as_ref()?;
        let rest = name.strip_prefix("system:serviceaccount:")?;
        let (namespace, account) = rest.split_once(':')?;
        let pod = user
            .extra
            .as_ref()
            .and_then(|extra| extra.get("authentication.kubernetes.io/pod-name"))
            .and_then(|names| names.first().cloned());
        Some(Self {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            pod,
        })
    }

    /// Whether the caller speaks for this Pod. A token that is bound to a Pod speaks for that Pod. Any other token
    /// speaks for the Pod that has its account's name.
    pub(super) fn is(&self, namespace: &str, pod: &str) -> bool {
        self.namespace == namespace && self.pod.as_ref().unwrap_or(&self.account) == pod
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use axum::{Json, Router, routing::post};
    use serde_json::{Value, json};

    use super::*;

    const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

    /// An API server that knows every token that begins with `good.`, each as one for this audience. The server counts
    /// the questions.
    fn server(audience: Option<&'static str>) -> (Client, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let answer = move |Json(review): Json<Value>| {
            let counted = counted.clone();
            async move {
                counted.fetch_add(1, Ordering::Relaxed);
                let good = review["spec"]["token"]
                    .as_str()
                    .unwrap()
                    .starts_with("good.");
                let user = json!({ "username": "system:serviceaccount:ns:pod-1" });
                let audiences = match (audience, review["spec"]["audiences"].as_array()) {
                    (Some(known), Some(asked)) if asked.iter().any(|asked| asked == known) => {
                        json!([known])
                    }
                    _ => Value::Null,
                };
                Json(json!({
                    "apiVersion": "authentication.k8s.io/v1",
                    "kind": "TokenReview",
                    "metadata": {},
                    "spec": {},
                    "status": { "authenticated": good, "user": user, "audiences": audiences },
                }))
            }
        };
        let router = Router::new().route(PATH, post(answer));
        (Client::new(router, "default"), count)
    }

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[tokio::test]
    async fn made_up_tokens_cost_the_api_server_little_and_others_nothing() {
        let (client, count) = server(None);
        let tokens = Tokens::new(client, Vec::new());
        let mut turned_away = 0;
        for number in 0..1_000 {
            let token = Secret::from_text(&format!("bad.{number}.x"));
            match tokens.caller(&token, ip(1)).await {
                Ok(caller) => assert_eq!(caller, None),
                Err(error) => {
                    assert_eq!(error, TokenError::TooMany);
                    turned_away += 1;
                }
            }
        }
        // the machine may be slow, and an address gains one question every two seconds
        let asked = count.load(Ordering::Relaxed);
        assert!((20..40).contains(&asked), "{asked}");
        assert_eq!(asked + turned_away, 1_000);
        let good = Secret::from_text("good.a.b");
        let caller = tokens.caller(&good, ip(2)).await.unwrap().unwrap();
        assert!(caller.is("ns", "pod-1"));
        // the token is known by now, whichever address shows it
        assert!(tokens.caller(&good, ip(1)).await.unwrap().is_some());
        assert_eq!(count.load(Ordering::Relaxed), asked + 1);
    }

    #[tokio::test]
    async fn a_fleet_of_runners_behind_one_address_is_answered() {
        let (client, count) = server(None);
        let tokens = Tokens::new(client, Vec::new());
        for number in 0..1_000 {
            let token = Secret::from_text(&format!("good.{number}.x"));
            assert!(tokens.caller(&token, ip(1)).await.unwrap().is_some());
        }
        assert_eq!(count.load(Ordering::Relaxed), 1_000);
    }

    #[tokio::test]
    async fn what_cannot_be_a_token_is_not_asked_about() {
        let (client, count) = server(None);
        let tokens = Tokens::new(client, Vec::new());
        let long = format!("good.{}.x", "x".repeat(MAX_TOKEN));
        for text in [
            "",
            "good",
            "good.a",
            "good.a.b.c",
            "good..b",
            "good.a.b c",
            &long,
        ] {
            let token = Secret::from_text(text);
            assert_eq!(tokens.caller(&token, ip(1)).await, Ok(None), "{text}");
        }
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn where_audiences_are_set_a_token_for_another_is_none() {
        let good = Secret::from_text("good.a.b");
        for (server_knows, wanted, known) in [
            (Some("parbake.dev"), "parbake.dev", true),
            (Some("parbake.dev"), "another", false),
            // an API server that doesn't know audiences
            (None, "parbake.dev", false),
        ] {
            let (client, _) = server(server_knows);
            let tokens = Tokens::new(client, vec![wanted.to_owned()]);
            let caller = tokens.caller(&good, ip(1)).await.unwrap();
            assert_eq!(caller.is_some(), known, "{server_knows:?} {wanted}");
        }
    }

    #[test]
    fn bad_tokens_are_bounded() {
        let (mut known, now) = (Known::default(), Instant::now());
        // bad tokens leave room for good ones, however many there are
        let caller = Caller {
            namespace: "ns".into(),
            account: "a".into(),
            pod: None,
        };
        for number in 0..10_000_u32 {
            known.learn(Digest::of(&number.to_be_bytes()), ip(1), None, now);
        }
        assert_eq!(known.bad.len(), BAD);
        let token = Digest::of(b"good");
        known.learn(token, ip(1), Some(&caller), now);
        assert_eq!(known.answer(&token, now), Some(Some(caller)));
        assert_eq!(known.answer(&token, now + GOOD_FOR), None);
    }

    fn user(name: &str, pod: Option<&str>) -> UserInfo {
        UserInfo {
            username: Some(name.into()),
            extra: pod.map(|pod| {
                let key = "authentication.kubernetes.io/pod-name".to_owned();
                [(key, vec![pod.to_owned()])].into()
            }),
            ..UserInfo::default()
        }
    }

    #[test]
    fn a_token_speaks_for_its_own_pod_only() {
        let of = |name, pod| Caller::of(&user(name, pod));
        let plain = of("system:serviceaccount:ns:pod-1", None).unwrap();
        assert!(plain.is("ns", "pod-1"));
        assert!(!plain.is("ns", "pod-2") && !plain.is("other", "pod-1"));
        let bound = of("system:serviceaccount:ns:shared", Some("pod-2")).unwrap();
        assert!(bound.is("ns", "pod-2"));
        assert!(!bound.is("ns", "shared"));
        assert_eq!(of("admin", None), None);
        assert_eq!(of("system:node:mini-1", Some("pod-1")), None);
    }
}
