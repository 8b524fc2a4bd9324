//! Whose token a runner shows, as the API server says.
//!
//! Each token that isn't known yet costs a question to the API server, and anybody who reaches the coordinator can make
//! tokens up. So a text that can't be a token isn't asked about. Answers are remembered, good ones apart from the
//! others. Each address has an allowance of questions, and a good token gives its question back.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::{Api, Client, api::PostParams};
use proto::Digest;
use tokio::{sync::Semaphore, time::timeout};
use tracing::warn;

use crate::{allowance::Allowances, secret::Secret};

/// The API server answers for a token within this time.
const REVIEW: Duration = Duration::from_secs(5);
/// A question waits so long for others to be answered.
const WAIT: Duration = Duration::from_secs(1);
/// A token that was found good counts for so long, and one that wasn't for as long as a runner's poll.
const GOOD_FOR: Duration = Duration::from_secs(60);
const BAD_FOR: Duration = Duration::from_secs(10);
/// Good tokens that are remembered: a fleet's runners twice over.
const GOOD: usize = 4_096;
/// Others that are remembered.
const BAD: usize = 1_024;
/// Questions under way at one time.
const REVIEWS: usize = 16;
/// The longest token that is asked about. A ServiceAccount's has about a kilobyte.
const MAX_TOKEN: usize = 8 << 10;
/// Questions that an address has at hand, and how long it takes until it has one more. A Mac has a few runners, each of
/// which has one token at a time.
const ALLOWANCE: u32 = 20;
const ALLOWED_EVERY: Duration = Duration::from_secs(2);

/// Who holds which token, as the API server said lately.
pub(super) struct Tokens {
    client: Client,
    audiences: Vec<String>,
    slots: Semaphore,
    /// For a moment only, never across an await.
    known: Mutex<Known>,
}

/// By the token's digest.
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
    /// The Pod that the token is bound to, where it is.
    pod: Option<String>,
}

/// Why it isn't known whose a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenError {
    /// Too many tokens that aren't good came from the address.
    #[error("too many unknown tokens come from this address; ask again in some seconds")]
    TooMany,
    /// The API server doesn't answer, or has too many questions.
    #[error("the API server doesn't say whose this token is; ask again in a moment")]
    Unanswered,
}

impl Tokens {
    /// Tokens are to be made for one of these audiences; none: for the API server itself.
    pub(super) fn new(client: Client, audiences: Vec<String>) -> Self {
        Self {
            client,
            audiences,
            slots: Semaphore::new(REVIEWS),
            known: Mutex::default(),
        }
    }

    /// Whose token this is, shown by who comes from this address; `None` when the API server doesn't know it, or it
    /// isn't a ServiceAccount's.
    pub(super) async fn caller(
        &self,
        token: &Secret,
        from: IpAddr,
    ) -> Result<Option<Caller>, TokenError> {
        if !is_token(token.expose()) {
            return Ok(None);
        }
        let (digest, from) = (token.digest(), link::network(from));
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
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Who a reviewed token belongs to; `None` when it isn't a ServiceAccount's.
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

    /// A token that is bound to a Pod speaks for that Pod; another for the Pod that has its account's name.
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

    /// An API server that knows the tokens that begin with `good.`, each as one for this audience, and counts
    /// questions.
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
        // the machine may be slow: an address gets one more every two seconds
        let asked = count.load(Ordering::Relaxed);
        assert!((20..40).contains(&asked), "{asked}");
        assert_eq!(asked + turned_away, 1_000);
        let good = Secret::from_text("good.a.b");
        let caller = tokens.caller(&good, ip(2)).await.unwrap().unwrap();
        assert!(caller.is("ns", "pod-1"));
        // known by now, wherever it comes from
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
            // one that doesn't know audiences
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
        // bad tokens, however many, leave room for the good ones
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
