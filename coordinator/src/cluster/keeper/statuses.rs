//! When statuses are written: news at once, mere progress every few seconds. What a status says is decided in `status`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::Value;
use tracing::warn;

use super::writes::Writes;
use crate::cluster::{
    crd::{ByteCounts, GateMemory, ImagePrePullStatus, PredictionStatus},
    index::ObjectKey,
    write::WriteError,
};

/// The pause between two writes of a status in which only bytes, messages and the prediction changed.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// A status that was written and isn't shown by the watch is written again after this pause. Somebody else may have
/// written, or the definition in the cluster is older than this coordinator and drops unknown fields.
const AGAIN_EVERY: Duration = Duration::from_secs(10);
/// The longest pause before a failed status is tried again. The pause is short because the next leader reads from the
/// status how many Pods are awaited.
const RETRY: Duration = Duration::from_secs(10);

/// The last written statuses, and the writes under way.
#[derive(Debug)]
pub(super) struct Statuses {
    written: BTreeMap<ObjectKey, Written>,
    writes: Writes<ObjectKey>,
}

#[derive(Debug)]
struct Written {
    at: Instant,
    /// The status that was written. `None` where the write failed.
    status: Option<ImagePrePullStatus>,
}

impl Statuses {
    pub(super) const fn new() -> Self {
        Self {
            written: BTreeMap::new(),
            writes: Writes::new(RETRY),
        }
    }

    /// The patch from the shown status to this one, if it is to be written now. A returned patch counts as begun.
    pub(super) fn due(
        &mut self,
        now: Instant,
        key: &ObjectKey,
        status: &ImagePrePullStatus,
        shown: &ImagePrePullStatus,
    ) -> Option<Value> {
        let written = self.written.get(key);
        if status == shown || !is_due(now, written, status, shown) || !self.writes.begin(now, key) {
            return None;
        }
        let written = Written {
            at: now,
            status: Some(status.clone()),
        };
        self.written.insert(key.clone(), written);
        Some(patch_of(status))
    }

    /// A write of a status ended.
    pub(super) fn written(
        &mut self,
        now: Instant,
        key: &ObjectKey,
        result: Result<(), WriteError>,
    ) {
        let Err(error) = result else {
            return self.writes.done(key);
        };
        if error.code() == Some(404) {
            self.writes.ended(key);
        } else {
            let error = error.to_string();
            if self.writes.failed(now, key, &error) {
                warn!(prepull = %key, error, "status couldn't be written; it is tried again, after growing pauses");
            }
        }
        if let Some(written) = self.written.get_mut(key) {
            written.status = None;
        }
    }

    /// Forgets ImagePrePulls that are gone.
    pub(super) fn keep(&mut self, is_there: impl Fn(&ObjectKey) -> bool) {
        self.written.retain(|key, _| is_there(key));
        self.writes.keep(is_there);
    }
}

/// Whether a status that differs from the shown one is to be written now.
fn is_due(
    now: Instant,
    written: Option<&Written>,
    status: &ImagePrePullStatus,
    shown: &ImagePrePullStatus,
) -> bool {
    let rested = |least| {
        let since = |written: &Written| now.saturating_duration_since(written.at);
        written.is_none_or(|written| since(written) >= least)
    };
    let before = written.and_then(|written| written.status.as_ref());
    let before = before.unwrap_or(shown);
    if before == status {
        return rested(AGAIN_EVERY);
    }
    rested(PROGRESS_EVERY) || masked(status) != masked(before) || awaited(status) > awaited(before)
}

/// A status without the parts that change all the time.
fn masked(status: &ImagePrePullStatus) -> ImagePrePullStatus {
    let gate = status.gate.map(|gate| GateMemory { awaited: 0, ..gate });
    let mut status = ImagePrePullStatus {
        bytes: ByteCounts::default(),
        prediction: status
            .prediction
            .clone()
            .map(|prediction| PredictionStatus {
                measured: ByteCounts::default(),
                ..prediction
            }),
        eta_seconds: None,
        gate: gate.filter(|gate| *gate != GateMemory::default()),
        ..status.clone()
    };
    for condition in &mut status.conditions {
        condition.message.clear();
    }
    status
}

/// The number of Pods whose successors the gate awaits. When this number grows, the status is written at once, because
/// the next leader relies on it.
fn awaited(status: &ImagePrePullStatus) -> i32 {
    status.gate.map_or(0, |gate| gate.awaited)
}

/// A merge patch that removes the earlier status's fields where this status has none.
fn patch_of(status: &ImagePrePullStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        for field in [
            "state",
            "reason",
            "digest",
            "gate",
            "sizeBytes",
            "diskBytes",
            "recipe",
            "prediction",
            "etaSeconds",
            "failing",
            "startedAt",
            "stagedAt",
        ] {
            fields.entry(field).or_insert(Value::Null);
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ObjectKey {
        ObjectKey::new("ns", "a")
    }

    fn status(origin: i64, staged: i32, awaited: i32) -> ImagePrePullStatus {
        let mut status = ImagePrePullStatus::default();
        status.bytes.origin = origin;
        status.hosts.staged = staged;
        status.gate = Some(GateMemory {
            awaited,
            owner_lags: false,
        });
        status
    }

    /// Whether the second status is written this long after the first one was.
    fn after(wait: Duration, next: &ImagePrePullStatus) -> bool {
        let (mut statuses, now) = (Statuses::new(), Instant::now());
        let (none, first) = (ImagePrePullStatus::default(), status(1, 1, 1));
        assert!(statuses.due(now, &key(), &first, &none).is_some());
        assert!(statuses.due(now, &key(), &first, &none).is_none());
        statuses.written(now, &key(), Ok(()));
        // the cluster doesn't show the first status
        statuses.due(now + wait, &key(), next, &none).is_some()
    }

    #[test]
    fn what_is_new_is_written_at_once_and_what_only_moves_after_five_seconds() {
        let moment = Duration::from_millis(1);
        assert!(after(moment, &status(1, 2, 1)), "a host more");
        assert!(after(moment, &status(1, 1, 2)), "a Pod more is awaited");
        assert!(!after(PROGRESS_EVERY - moment, &status(1, 1, 0)));
        assert!(!after(PROGRESS_EVERY - moment, &status(2, 1, 1)));
        assert!(after(PROGRESS_EVERY, &status(2, 1, 1)));
    }

    #[test]
    fn a_status_that_the_cluster_does_not_show_is_written_again_after_ten_seconds() {
        let same = status(1, 1, 1);
        assert!(!after(AGAIN_EVERY - Duration::from_millis(1), &same));
        assert!(after(AGAIN_EVERY, &same));
        let (mut statuses, now) = (Statuses::new(), Instant::now());
        assert!(
            statuses.due(now, &key(), &same, &same).is_none(),
            "it is shown"
        );
    }

    #[test]
    fn a_write_that_failed_is_tried_again_after_its_pause_whatever_was_written_before() {
        let (mut statuses, now) = (Statuses::new(), Instant::now());
        let (none, same) = (ImagePrePullStatus::default(), status(1, 1, 1));
        assert!(statuses.due(now, &key(), &same, &none).is_some());
        statuses.written(now, &key(), Err(WriteError::Timeout));
        assert!(statuses.due(now, &key(), &same, &none).is_none());
        let later = now + Duration::from_secs(1);
        assert!(statuses.due(later, &key(), &same, &none).is_some());
    }

    #[test]
    fn a_patch_leaves_nothing_of_the_status_before() {
        let patch = patch_of(&ImagePrePullStatus::default());
        assert_eq!(
            (&patch["digest"], &patch["stagedAt"]),
            (&Value::Null, &Value::Null)
        );
        assert!(patch.as_object().unwrap().contains_key("digest"));
    }
}
