//! Finds out which image each ImagePrePull wants: the registry resolves its reference to a digest.
//!
//! A known digest stays: a moved tag means another image only when somebody asks for it. A coordinator that takes over
//! keeps the digest in the status, and asks the registry for that digest.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use origin::Backoff;
use proto::Digest;
use tracing::{info, warn};

use super::conditions::{Type, Unresolved, UnresolvedReason};
use crate::{
    cluster::{
        clock::Now,
        crd::{ImagePrePullSpec, ImagePrePullStatus},
        index::{Index, ObjectKey, PrePullFacts, Source},
    },
    wants::Want,
};

/// The first wait after a reference couldn't be resolved. It doubles with each failure.
const RETRY: Duration = Duration::from_secs(5);
/// The longest wait.
const RETRY_MOST: Duration = Duration::from_mins(5);

/// The images of all ImagePrePulls.
#[derive(Debug, Default)]
pub(super) struct Resolving {
    images: BTreeMap<ObjectKey, Image>,
}

/// The image that one ImagePrePull wants, as far as it is known.
#[derive(Debug)]
pub(super) struct Image {
    /// The reference, as the object names it.
    reference: String,
    state: State,
    /// The digest that the reference was resolved to, by this coordinator or an earlier one.
    digest: Option<Digest>,
    /// The image that the object wanted before its reference changed, until the new reference is resolved. Most often
    /// both are the same image by another name, or share most of their bytes.
    previous: Option<Box<Want>>,
    /// The object's fields when the image was last asked for. When any of them changes, the image is asked for anew.
    asked: AskedBy,
    started_at: SystemTime,
    staged_at: Option<SystemTime>,
}

/// The parts of an ImagePrePull by which somebody asks for its image.
#[derive(Debug, PartialEq)]
struct AskedBy {
    /// The spec without the gate: a pool that grows doesn't ask for the image anew.
    spec: ImagePrePullSpec,
    /// The value of the annotation that asks for another try.
    retry: Option<String>,
}

impl AskedBy {
    fn of(facts: &PrePullFacts) -> Self {
        Self {
            spec: ImagePrePullSpec {
                gate: None,
                priority: 0,
                ..facts.spec.clone()
            },
            retry: facts.retry.clone(),
        }
    }
}

#[derive(Debug)]
enum State {
    /// The registry is being asked.
    Asking {
        backoff: Backoff,
        /// The failure of the last try. It counts until this try ends.
        last: Option<Unresolved>,
    },
    /// The registry answered.
    Known(Box<Want>),
    /// The reference couldn't be resolved, and is tried again.
    Failed {
        why: Unresolved,
        backoff: Backoff,
        retry_at: Instant,
    },
}

/// A question for the registry about a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    /// The ImagePrePull that wants the image.
    pub(super) key: ObjectKey,
    /// The reference, as the object names it.
    pub(super) reference: String,
    /// The digest that the reference was resolved to before.
    pub(super) digest: Option<Digest>,
    /// The pull Secret that the object names.
    pub(super) secret: Option<ObjectKey>,
}

/// The result of a question to the registry.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(super) key: ObjectKey,
    pub(super) reference: String,
    pub(super) result: Result<Want, Unresolved>,
}

/// The changes that a [`Resolving::look`] found.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// References that the registry is to be asked about.
    pub(super) ask: Vec<Ask>,
    /// ImagePrePulls that are gone.
    pub(super) gone: Vec<ObjectKey>,
    /// Some digests are known from an earlier coordinator. Hosts that hold these images can be counted even if the
    /// registry can't be asked.
    pub(super) known: bool,
}

impl Image {
    /// The image of an object that was just seen. A coordinator that takes over continues from the object's status.
    fn new(now: Now, facts: &PrePullFacts, status: Option<&ImagePrePullStatus>) -> Self {
        let time = |time: &Option<Time>| time.as_ref().map(|time| SystemTime::from(time.0));
        Self {
            reference: facts.spec.image.clone(),
            state: State::Asking {
                backoff: Backoff::seeded(RETRY, RETRY_MOST),
                last: status.and_then(unresolved_before),
            },
            digest: status.and_then(|status| status.digest.as_ref()?.parse().ok()),
            previous: None,
            asked: AskedBy::of(facts),
            started_at: status
                .and_then(|status| time(&status.started_at))
                .unwrap_or(now.time),
            staged_at: status.and_then(|status| time(&status.staged_at)),
        }
    }

    /// The reference, as the object named it when the image was asked for.
    pub(super) fn reference(&self) -> &str {
        &self.reference
    }

    /// The digest that the reference was resolved to, by this coordinator or an earlier one.
    pub(super) const fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// When the image was first asked for.
    pub(super) const fn started_at(&self) -> SystemTime {
        self.started_at
    }

    /// When every usable host first held the image.
    pub(super) const fn staged_at(&self) -> Option<SystemTime> {
        self.staged_at
    }

    /// Why the image isn't known, by the registry's last answer.
    pub(super) const fn trouble(&self) -> Option<&Unresolved> {
        match &self.state {
            State::Asking { last, .. } => last.as_ref(),
            State::Known(_) => None,
            State::Failed { why, .. } => Some(why),
        }
    }

    /// The registry's answer, once there is one.
    pub(super) const fn known(&self) -> Option<&Want> {
        match &self.state {
            State::Known(want) => Some(want),
            State::Asking { .. } | State::Failed { .. } => None,
        }
    }

    /// The wanted image, and whether hosts stage it now. Hosts only keep what they have of a previous image.
    pub(super) fn want(&self) -> Option<(&Want, bool)> {
        match &self.state {
            State::Known(want) => Some((want, true)),
            State::Asking { .. } | State::Failed { .. } => {
                self.previous.as_deref().map(|want| (want, false))
            }
        }
    }

    /// Whether hosts may be staging an image for the object that this coordinator doesn't know yet. After a restart the
    /// registry has to be asked again, and may be unreachable.
    pub(super) fn may_be_staging(&self, facts: &PrePullFacts) -> bool {
        match self.state {
            State::Asking { .. } => true,
            State::Known(_) => false,
            State::Failed { .. } => {
                let status = facts.standing_status();
                status.is_some_and(|status| status.digest.is_some())
            }
        }
    }

    /// When the object's deadline passes. `None` where the object has none.
    pub(super) fn deadline(&self, facts: &PrePullFacts) -> Option<SystemTime> {
        self.started_at.checked_add(facts.spec.deadline?.0)
    }

    /// Whether the registry is asked now.
    #[cfg(test)]
    pub(super) const fn is_asking(&self) -> bool {
        matches!(self.state, State::Asking { .. })
    }

    /// The image that stays wanted when the reference changes.
    fn into_previous(self) -> Option<Box<Want>> {
        match self.state {
            State::Known(want) => Some(want),
            State::Asking { .. } | State::Failed { .. } => self.previous,
        }
    }

    /// Nobody can say which image is meant.
    fn cannot_be_named(&mut self, now: Instant, why: &str) {
        self.state = State::Failed {
            why: Unresolved {
                reason: UnresolvedReason::ImageFrom,
                message: why.to_owned(),
            },
            backoff: Backoff::seeded(RETRY, RETRY_MOST),
            retry_at: now,
        };
    }

    /// Whether the object was changed or annotated since its image was last asked for.
    fn is_asked_anew(&self, facts: &PrePullFacts) -> bool {
        self.asked != AskedBy::of(facts)
    }

    /// Begins another try, if one is due. Returns whether a try began.
    fn retry(&mut self, now: Instant, facts: &PrePullFacts) -> bool {
        let asked_anew = self.is_asked_anew(facts);
        let State::Failed {
            why,
            backoff,
            retry_at,
        } = &self.state
        else {
            return false;
        };
        if now < *retry_at && !asked_anew {
            return false;
        }
        self.state = State::Asking {
            backoff: backoff.clone(),
            last: Some(why.clone()),
        };
        self.asked = AskedBy::of(facts);
        true
    }
}

impl Resolving {
    /// The image of an ImagePrePull.
    pub(super) fn get(&self, key: &ObjectKey) -> Option<&Image> {
        self.images.get(key)
    }

    /// The digest that an ImagePrePull's image was resolved to. `None` where the image has another reference.
    pub(super) fn digest_of(&self, key: &ObjectKey, reference: &str) -> Option<Digest> {
        let image = self.images.get(key)?;
        image.digest.filter(|_| image.reference == reference)
    }

    /// Compares the objects with what was asked for. Returns the questions that are due.
    pub(super) fn look(&mut self, now: Now, index: &Index) -> Looked {
        let mut looked = Looked::default();
        self.images.retain(|key, _| {
            let is_there = index.prepulls.contains_key(key);
            if !is_there {
                looked.gone.push(key.clone());
            }
            is_there
        });
        for (key, facts) in &index.prepulls {
            // nothing new is asked for an ImagePrePull that can't be read, and what is known of it stays
            if facts.unread {
                continue;
            }
            match &facts.source {
                Source::Known => {}
                // what was known of the image before goes on
                _ if !facts.spec.image.is_empty() => {}
                Source::Awaited => continue,
                Source::Unknown(why) => {
                    let image = self.images.entry(key.clone());
                    let image = image.or_insert_with(|| Image::new(now, facts, None));
                    image.cannot_be_named(now.instant, why);
                    continue;
                }
            }
            let ask = |image: &Image| Ask {
                key: key.clone(),
                reference: image.reference.clone(),
                digest: image.digest,
                secret: facts.secret(key),
            };
            if let Some(image) = self.images.get_mut(key)
                && image.reference == facts.spec.image
            {
                if image.retry(now.instant, facts) {
                    looked.ask.push(ask(image));
                }
                continue;
            }
            let before = self.images.remove(key);
            // a coordinator that took over continues with the digest that was resolved before
            let status = facts.standing_status().filter(|_| before.is_none());
            let mut image = Image::new(now, facts, status);
            image.previous = before.and_then(Image::into_previous);
            looked.known |= image.digest.is_some();
            looked.ask.push(ask(&image));
            self.images.insert(key.clone(), image);
        }
        looked
    }

    /// Takes in the registry's answer or failure. Returns whether the image is still wanted.
    pub(super) fn answered(&mut self, now: Instant, resolved: Resolved) -> bool {
        let Resolved {
            key,
            reference,
            result,
        } = resolved;
        let Some(image) = self
            .images
            .get_mut(&key)
            .filter(|image| image.reference == reference)
        else {
            return false;
        };
        match result {
            Ok(want) => {
                let digest = want.digest();
                info!(prepull = %key, image = reference, %digest, "image is resolved");
                image.digest = Some(digest);
                image.state = State::Known(Box::new(want));
                image.previous = None;
            }
            Err(why) => {
                let (reason, error) = (why.reason.as_str(), &why.message);
                warn!(prepull = %key, image = reference, reason, error, "image can't be resolved; it is tried again");
                let mut backoff = match &image.state {
                    State::Asking { backoff, .. } | State::Failed { backoff, .. } => {
                        backoff.clone()
                    }
                    State::Known(_) => Backoff::seeded(RETRY, RETRY_MOST),
                };
                image.state = State::Failed {
                    why,
                    retry_at: now + backoff.delay(None),
                    backoff,
                };
            }
        }
        true
    }

    /// Images whose objects were changed or annotated since their image was last asked for. Failures of these images
    /// are to be tried again at once.
    pub(super) fn urged(&self, index: &Index) -> Vec<(ObjectKey, Digest)> {
        let images = self.images.iter();
        images
            .filter_map(|(key, image)| {
                let facts = index.prepulls.get(key)?;
                let want = image.known()?;
                let urged = image.is_asked_anew(facts);
                urged.then(|| (key.clone(), want.digest()))
            })
            .collect()
    }

    /// The driver was told of an urged image.
    pub(super) fn heeded(&mut self, key: &ObjectKey, facts: &PrePullFacts) {
        if let Some(image) = self.images.get_mut(key) {
            image.asked = AskedBy::of(facts);
        }
    }

    /// Every usable host holds an ImagePrePull's image at this time. The first such time is kept.
    pub(super) fn staged(&mut self, key: &ObjectKey, time: SystemTime) {
        if let Some(image) = self.images.get_mut(key) {
            image.staged_at.get_or_insert(time);
        }
    }

    /// As if the waits after references that couldn't be resolved were over.
    #[cfg(test)]
    pub(super) fn retry_now(&mut self, now: Instant) {
        for image in self.images.values_mut() {
            if let State::Failed { retry_at, .. } = &mut image.state {
                *retry_at = now;
            }
        }
    }

    /// As if everything had been resolved to this digest, and the registry hadn't been asked.
    #[cfg(test)]
    pub(super) fn resolve_all(&mut self, digest: Digest) {
        for image in self.images.values_mut() {
            image.digest = Some(digest);
        }
    }
}

/// The failure to resolve the image that an earlier coordinator wrote into the status.
fn unresolved_before(status: &ImagePrePullStatus) -> Option<Unresolved> {
    let before = Type::Resolved.of(status)?;
    (before.status == "False").then(|| Unresolved {
        reason: UnresolvedReason::read(&before.reason),
        message: before.message.clone(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        cluster::index::{Kind, made_up::prepull},
        wants::tests::want,
    };

    fn key() -> ObjectKey {
        ObjectKey::new("ns", "a")
    }

    fn show(index: &mut Index, image: &str, more: &Value) {
        let mut object = prepull("a", image, more);
        let generation = &mut object["metadata"]["generation"];
        if generation.is_null() {
            *generation = json!(1);
        }
        index.show(Kind::PrePulls, object);
    }

    fn index(image: &str) -> Index {
        let mut index = Index::default();
        show(&mut index, image, &json!({}));
        index
    }

    fn answer(resolving: &mut Resolving, now: Now, reference: &str, seed: Option<&str>) -> bool {
        let result = seed.map(|seed| want(seed, 1, 1 << 20));
        let resolved = Resolved {
            key: key(),
            reference: reference.to_owned(),
            result: result.ok_or_else(|| Unresolved {
                reason: UnresolvedReason::NotFound,
                message: "no such image".into(),
            }),
        };
        resolving.answered(now.instant, resolved)
    }

    #[test]
    fn an_image_is_asked_for_once_and_again_after_growing_pauses_while_it_fails() {
        let (mut resolving, index, start) = (Resolving::default(), index("r/i:1"), Now::start());
        let asked = resolving.look(start, &index).ask;
        assert_eq!(asked.len(), 1);
        assert_eq!(
            (asked[0].reference.as_str(), asked[0].digest),
            ("r/i:1", None)
        );
        let (mut tries, mut second) = (0, 0);
        answer(&mut resolving, start, "r/i:1", None);
        while second < 3_600 {
            second += 1;
            let now = start.after(Duration::from_secs(second));
            if !resolving.look(now, &index).ask.is_empty() {
                tries += 1;
                assert!(answer(&mut resolving, now, "r/i:1", None));
            }
        }
        // the pauses start at 5 s, double up to 5 min, and are each shortened by up to a half
        assert!((12..40).contains(&tries), "{tries}");
        let now = start.after(Duration::from_hours(2));
        assert_eq!(resolving.look(now, &index).ask.len(), 1);
        answer(&mut resolving, now, "r/i:1", Some("image"));
        let digest = want("image", 1, 1 << 20).digest();
        assert_eq!(resolving.digest_of(&key(), "r/i:1"), Some(digest));
        assert_eq!(resolving.digest_of(&key(), "r/i:2"), None);
        let later = now.after(Duration::from_hours(1));
        assert!(resolving.look(later, &index).ask.is_empty());
    }

    #[test]
    fn an_answer_about_an_image_that_is_not_wanted_any_more_is_dropped() {
        let (mut resolving, mut index, now) = (Resolving::default(), index("r/i:1"), Now::start());
        resolving.look(now, &index);
        show(&mut index, "r/i:2", &json!({}));
        assert_eq!(resolving.look(now, &index).ask[0].reference, "r/i:2");
        assert!(!answer(&mut resolving, now, "r/i:1", Some("image")));
        assert_eq!(resolving.digest_of(&key(), "r/i:2"), None);
        let gone = Index::default();
        assert_eq!(resolving.look(now, &gone).gone, [key()]);
        assert!(!answer(&mut resolving, now, "r/i:2", Some("image")));
    }

    #[test]
    fn what_was_wanted_before_is_kept_until_the_new_image_is_resolved() {
        let (mut resolving, mut index, now) = (Resolving::default(), index("r/i:1"), Now::start());
        resolving.look(now, &index);
        let image = |resolving: &Resolving| {
            let image = resolving.get(&key()).unwrap();
            image.want().map(|(want, moves)| (want.digest(), moves))
        };
        assert_eq!(image(&resolving), None);
        answer(&mut resolving, now, "r/i:1", Some("one"));
        let one = want("one", 1, 1 << 20).digest();
        assert_eq!(image(&resolving), Some((one, true)));
        for reference in ["r/i:2", "r/i:3"] {
            show(&mut index, reference, &json!({}));
            resolving.look(now, &index);
            assert_eq!(image(&resolving), Some((one, false)));
        }
        answer(&mut resolving, now, "r/i:3", None);
        assert_eq!(image(&resolving), Some((one, false)));
        answer(&mut resolving, now, "r/i:3", Some("two"));
        assert_eq!(
            image(&resolving),
            Some((want("two", 1, 1 << 20).digest(), true))
        );
    }

    #[test]
    fn a_coordinator_that_takes_over_goes_on_by_a_status_of_the_same_generation() {
        let now = Now::start();
        let digest = Digest::of(b"before");
        for (generation, goes_on) in [(1, true), (2, false)] {
            let (mut resolving, mut index) = (Resolving::default(), Index::default());
            let status = json!({
                "observedGeneration": 1,
                "digest": digest.to_string(),
                "startedAt": "2020-01-01T00:00:00Z",
                "stagedAt": "2020-01-02T00:00:00Z",
            });
            let more = json!({ "metadata": { "generation": generation }, "status": status });
            show(&mut index, "r/i:1", &more);
            let looked = resolving.look(now, &index);
            assert_eq!(looked.known, goes_on);
            assert_eq!(looked.ask[0].digest, Some(digest).filter(|_| goes_on));
            let image = resolving.get(&key()).unwrap();
            assert_eq!(image.started_at() == now.time, !goes_on);
            assert_eq!(image.staged_at().is_some(), goes_on);
            let facts = &index.prepulls[&key()];
            assert!(image.may_be_staging(facts));
            answer(&mut resolving, now, "r/i:1", None);
            // the registry is unreachable, and hosts may be staging the image of its earlier answer
            let image = resolving.get(&key()).unwrap();
            assert_eq!(image.may_be_staging(facts), goes_on);
        }
    }

    #[test]
    fn an_object_that_is_changed_or_annotated_is_asked_for_at_once_and_a_gate_asks_for_nothing() {
        let (mut resolving, mut index, now) = (Resolving::default(), index("r/i:1"), Now::start());
        resolving.look(now, &index);
        answer(&mut resolving, now, "r/i:1", None);
        let gate = json!({ "spec": { "gate": { "mode": "Own", "replicas": 7 } } });
        show(&mut index, "r/i:1", &gate);
        assert!(resolving.look(now, &index).ask.is_empty());
        let annotated = json!({ "metadata": { "annotations": { "parbake.dev/retry-at": "now" } } });
        show(&mut index, "r/i:1", &annotated);
        assert_eq!(resolving.look(now, &index).ask.len(), 1);
        // once the image is known, hosts are urged instead
        answer(&mut resolving, now, "r/i:1", Some("image"));
        assert_eq!(resolving.urged(&index), []);
        show(&mut index, "r/i:1", &json!({ "spec": { "paused": true } }));
        assert_eq!(resolving.urged(&index).len(), 1);
        assert_eq!(resolving.urged(&index).len(), 1, "until somebody heeds it");
        resolving.heeded(&key(), &index.prepulls[&key()]);
        assert_eq!(resolving.urged(&index), []);
    }

    #[test]
    fn when_it_was_staged_first_stays() {
        let (mut resolving, index, now) = (Resolving::default(), index("r/i:1"), Now::start());
        resolving.look(now, &index);
        resolving.staged(&key(), now.time);
        resolving.staged(&key(), now.time + Duration::from_secs(1));
        assert_eq!(resolving.get(&key()).unwrap().staged_at(), Some(now.time));
    }
}
