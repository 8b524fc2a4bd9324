//! Reads admission reviews, which ask whether labels may be put on a Pod. The sender of a review isn't authenticated
//! here.
//!
//! Only a few fields of a review's two Pods matter. The reader skips everything else without keeping it: a body of 4
//! MiB that is kept as JSON values takes 64 MiB and more.

use std::{
    collections::BTreeSet,
    fmt,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::Request,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::SerializeMap as _,
};
use serde_json::{Value, json};
use wire::Crowd;

use super::index::ObjectKey;
use crate::{secret::Secret, serve::Remote, view::Problem};

/// The path to which reviews are sent. The webhook's key may follow as one more segment.
pub(super) const PATH: &str = "/v1/webhook/pods";
/// The same path with a key, as a route.
pub(super) const KEYED_PATH: &str = "/v1/webhook/pods/{key}";
/// The most reviews that are read at one time, each of at most [`MAX_BYTES`]. When one more comes, the review that has
/// been arriving longest gives way, among those of the address with the most reviews. So others can't keep the API
/// server from asking.
const AT_ONCE: usize = 64;
/// A review that has been arriving for this long gives way to another review from its own address.
const GRACE: Duration = Duration::from_millis(500);
/// A review arrives whole within this time, because the API server waits 2 s for the answer.
const BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// The keeper answers within this time, and so does the leader whom a follower asks. The limit is below the 2 s that
/// the API server waits for a webhook.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_millis(1_500);
/// The largest review that is read, in bytes. Runner Pods have about 20 kB, and a review has two of them.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// The longest name of a label: a DNS name, a slash and 63 characters.
const MAX_LABEL: usize = 253 + 1 + 63;
/// The most labels of one Pod with the value `true`. Labels with longer names or other values aren't kept.
const MAX_LABELS: usize = 256;
/// The longest other text, in bytes: a name of a Pod or namespace has at most 253 characters, a uid 36.
const MAX_TEXT: usize = 253;

/// A review that isn't read, and why.
#[derive(Debug)]
pub(super) struct Unread(StatusCode, String);

impl IntoResponse for Unread {
    fn into_response(self) -> Response {
        (self.0, Json(Problem { error: self.1 })).into_response()
    }
}

/// Reads reviews, with a limit on how many arrive at one time.
#[derive(Clone, Debug)]
pub(super) struct Intake(Crowd);

impl Intake {
    pub(super) fn new() -> Self {
        Self(Crowd::new(AT_ONCE, 0, GRACE))
    }

    /// The review in a request, and the key in the request's path.
    ///
    /// # Errors
    /// Too many reviews arrive, or the review is too large, too slow, or can't be parsed.
    pub(super) async fn read(&self, request: Request) -> Result<(Review, Option<Secret>), Unread> {
        let refuse = |status, error: String| Err(Unread(status, error));
        let remote = request.extensions().get::<Remote>();
        let remote = remote.map_or(Ipv4Addr::UNSPECIFIED.into(), |remote| remote.0);
        let crowded = || {
            let error = "too many reviews come at this moment; ask again";
            refuse(StatusCode::SERVICE_UNAVAILABLE, error.to_owned())
        };
        let Some(place) = self.0.enter(remote, Instant::now()) else {
            return crowded();
        };
        let key = request.uri().path().strip_prefix(PATH);
        let key = key.and_then(|key| key.strip_prefix('/'));
        let key = key.map(Secret::from_text);
        let body = axum::body::to_bytes(request.into_body(), MAX_BYTES);
        let body = tokio::select! {
            body = tokio::time::timeout(BODY_TIMEOUT, body) => body,
            () = place.lost() => return crowded(),
        };
        let body = match body {
            Ok(Ok(body)) => body,
            Ok(Err(_)) => {
                let error = format!("a review has at most {MAX_BYTES} bytes");
                return refuse(StatusCode::PAYLOAD_TOO_LARGE, error);
            }
            Err(_) => {
                let error = format!("no whole review within {} s", BODY_TIMEOUT.as_secs());
                return refuse(StatusCode::REQUEST_TIMEOUT, error);
            }
        };
        match serde_json::from_slice(&body) {
            Ok(review) => Ok((review, key)),
            Err(error) => refuse(
                StatusCode::BAD_REQUEST,
                format!("admission review: {error}"),
            ),
        }
    }
}

/// The key at the end of the webhook's path, which tells the API server from other callers. The key is derived from the
/// API's token, so that all replicas have the same key. The key reveals nothing about the token.
pub(super) fn key(token: &Secret) -> Secret {
    let text = format!("parbake admission webhook {}", token.expose());
    let digest = Secret::from_text(&text).digest().hex().to_string();
    Secret::from_text(&digest[..32])
}

/// A review.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Review {
    #[serde(default)]
    api_version: Text,
    #[serde(default)]
    kind: Text,
    #[serde(default)]
    request: Asked,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    #[serde(default)]
    uid: Text,
    #[serde(default)]
    operation: Text,
    #[serde(default)]
    dry_run: Option<bool>,
    #[serde(default)]
    old_object: Option<Object>,
    #[serde(default)]
    object: Option<Object>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct Object {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct Metadata {
    #[serde(default)]
    name: Text,
    #[serde(default)]
    namespace: Text,
    #[serde(default)]
    uid: Text,
    #[serde(default)]
    labels: Option<Labels>,
}

/// The labels that a review asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) pod: ObjectKey,
    pub(crate) uid: String,
    /// Labels that have the value `true` after the change, and didn't have it before.
    pub(crate) adds: BTreeSet<String>,
    /// The request is a dry run: nothing is written, whatever the answer.
    pub(crate) dry_run: bool,
}

impl Review {
    /// The change that is asked about. `None` where no label newly has the value `true`.
    pub(super) fn change(&self) -> Option<Change> {
        let request = &self.request;
        let (before, after) = (request.old_object.as_ref()?, request.object.as_ref()?);
        if request.operation.0 != "UPDATE" {
            return None;
        }
        let of = |object: &Object| object.metadata.labels.clone().unwrap_or_default().0;
        let (had, has) = (of(before), of(after));
        let adds: BTreeSet<String> = has.difference(&had).cloned().collect();
        let meta = &before.metadata;
        (!adds.is_empty()).then(|| Change {
            pod: ObjectKey::new(&meta.namespace.0, &meta.name.0),
            uid: meta.uid.0.clone(),
            adds,
            dry_run: request.dry_run == Some(true),
        })
    }

    /// The answer: allowed for `None`, otherwise refused with this reason.
    pub(super) fn answer(&self, refused: Option<&str>) -> Value {
        let mut response = json!({ "uid": self.request.uid, "allowed": refused.is_none() });
        if let Some(reason) = refused {
            response["status"] = json!({ "code": 403, "message": format!("parbake: {reason}") });
        }
        json!({
            "apiVersion": self.api_version,
            "kind": "AdmissionReview",
            "response": response,
        })
    }
}

/// A text of at most [`MAX_TEXT`] bytes. `null` is read as an empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        if text.len() > MAX_TEXT {
            return Err(serde::de::Error::custom("a name is too long"));
        }
        Ok(Self(text))
    }
}

/// The labels of a Pod that have the value `true`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Labels(BTreeSet<String>);

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("labels")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Labels, M::Error> {
                let mut labels = BTreeSet::new();
                while let Some((label, value)) = map.next_entry::<String, String>()? {
                    if value != "true" || label.len() > MAX_LABEL {
                        continue;
                    }
                    labels.insert(label);
                    if labels.len() > MAX_LABELS {
                        return Err(serde::de::Error::custom("too many labels"));
                    }
                }
                Ok(Labels(labels))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for label in &self.0 {
            map.serialize_entry(label, "true")?;
        }
        map.end()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cluster) fn review(operation: &str, before: &Value, after: &Value) -> Value {
        json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "u",
                "operation": operation,
                "userInfo": { "username": "somebody", "extra": { "a": [1, null, {}] } },
                "oldObject": {
                    "metadata": { "name": "p", "namespace": "ns", "uid": "pod", "labels": before },
                    "spec": { "containers": [{ "name": "c" }] },
                },
                "object": { "metadata": { "labels": after } },
            },
        })
    }

    fn read(value: &Value) -> Review {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[test]
    fn a_review_asks_about_labels_that_become_true() {
        let drain = json!({ "drain": "true", "app": "x" });
        let adds = |value: &Value| read(value).change().map(|change| change.adds);
        let new: BTreeSet<String> = ["drain".to_owned()].into();
        for (operation, before, after, expected) in [
            ("UPDATE", json!({ "a": "b" }), drain.clone(), Some(&new)),
            ("UPDATE", Value::Null, drain.clone(), Some(&new)),
            (
                "UPDATE",
                json!({ "drain": "false" }),
                drain.clone(),
                Some(&new),
            ),
            ("UPDATE", drain.clone(), drain.clone(), None),
            ("UPDATE", drain.clone(), Value::Null, None),
            ("DELETE", Value::Null, drain.clone(), None),
        ] {
            let review = review(operation, &before, &after);
            assert_eq!(adds(&review).as_ref(), expected, "{review}");
            // a review that a replica passes on asks for the same labels
            let passed = serde_json::to_value(read(&review)).unwrap();
            assert_eq!(adds(&passed).as_ref(), expected, "{passed}");
        }
        let asked = read(&review("UPDATE", &Value::Null, &drain))
            .change()
            .unwrap();
        assert_eq!(
            (asked.pod, asked.uid),
            (ObjectKey::new("ns", "p"), "pod".into())
        );
        assert!(!asked.dry_run);
        assert!(read(&json!({})).change().is_none());
        assert!(
            read(&json!({ "request": { "object": null } }))
                .change()
                .is_none()
        );
    }

    #[test]
    fn the_answer_names_the_question() {
        let review = read(&review("UPDATE", &Value::Null, &Value::Null));
        let allowed = review.answer(None);
        assert_eq!(allowed["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(allowed["response"], json!({ "uid": "u", "allowed": true }));
        let refused = review.answer(Some("no"));
        assert_eq!(refused["response"]["allowed"], false);
        assert_eq!(refused["response"]["status"]["message"], "parbake: no");
    }

    #[test]
    fn what_is_kept_of_a_review_is_bounded() {
        let long = |length: usize| "x".repeat(length);
        let read = |value: Value| serde_json::from_value::<Review>(value);
        let named =
            |name: &str| json!({ "request": { "object": { "metadata": { "name": name } } } });
        assert!(read(named(&long(MAX_TEXT))).is_ok());
        assert!(read(named(&long(MAX_TEXT + 1))).is_err());
        let labelled = |labels: Value| read(review("UPDATE", &Value::Null, &labels));
        let most: serde_json::Map<_, _> = (0..MAX_LABELS)
            .map(|n| (format!("l{n}"), json!("true")))
            .collect();
        let mut more = most.clone();
        more.insert(long(MAX_LABEL + 1), json!("true"));
        more.insert("other".into(), json!("false"));
        let kept = labelled(more.clone().into()).unwrap().change().unwrap();
        assert_eq!(kept.adds.len(), MAX_LABELS);
        more.insert(long(MAX_LABEL), json!("true"));
        assert!(labelled(more.into()).is_err());
    }

    /// The body that costs most as JSON values: `0,` becomes 32 bytes, twice with a clone.
    #[test]
    fn a_review_of_zeros_costs_nothing_beyond_its_bytes() {
        let mut body = String::from("{\"request\":{\"operation\":\"UPDATE\",\"oldObject\":[");
        let half = MAX_BYTES / 2;
        while body.len() < half {
            body.push_str("0,");
        }
        body.push_str("0],\"x\":{\"metadata\":[");
        while body.len() < MAX_BYTES - 8 {
            body.push_str("0,");
        }
        body.push_str("0]}}}");
        // an object that is a list is none
        assert!(serde_json::from_str::<Review>(&body).is_err());
        let elsewhere = body.replacen("oldObject", "old", 1);
        let before = resident();
        let reviews: Vec<Review> = (0..64)
            .map(|_| serde_json::from_str(&elsewhere).unwrap())
            .collect();
        let grown = resident().saturating_sub(before);
        // other tests run at the same time, and as JSON values the reviews take more than 1 GiB
        assert!(
            grown < 128 << 20,
            "{} reviews keep {grown} bytes",
            reviews.len()
        );
    }

    /// Bytes of this process in memory. Where the system doesn't say, none.
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or_default() << 10
    }
}
