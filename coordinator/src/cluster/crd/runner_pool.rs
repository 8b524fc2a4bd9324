//! `RunnerPool`, a kind of another project: the fields that we read, however old or new its definition is.

use kube::CustomResource;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error as _},
};
use serde_json::Value;

/// The share of a pool's replicas that may be in flight, in per cent, unless the gate or the pool says otherwise
/// (tuist/tuist of autumn 2026, infra/runners-controller/controllers/runnerpool_controller.go:
/// defaultRollMaxConcurrentPercent).
pub const DEFAULT_PERCENT: i32 = 5;

/// A pool of runners, as `runnerpools.tuist.dev` defines it. Only the fields that the gate uses are read, and we never
/// write them.
///
/// The definition belongs to another project and may be older or newer than this program. So unknown fields are
/// ignored. Fields that are absent or null have the defaults of the pools' own controller, and so have odd values of
/// fields that have a default there. A pool whose image, replicas or fleet can't be read isn't read at all.
///
/// The names of the fields are those of tuist/tuist, infra/runners-controller/api/v1alpha1/runnerpool_types.go:
/// RunnerPoolSpec, and of its use in controllers/runnerpool_controller.go: Reconcile.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[kube(
    group = "tuist.dev",
    version = "v1alpha1",
    kind = "RunnerPool",
    plural = "runnerpools",
    namespaced,
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct RunnerPoolSpec {
    /// The image that the pool's Pods shall run. It is compared with the Pods' images as text.
    pub image: String,
    /// How many Pods there are meant to be. An autoscaler changes this number every few seconds.
    #[serde(deserialize_with = "whole")]
    pub replicas: i32,
    /// The value of the label `tuist.dev/fleet` on the pool's Nodes.
    #[serde(deserialize_with = "text")]
    pub fleet_selector: String,
    /// `darwin` or `linux`. The coordinator follows only pools of `darwin`.
    #[serde(default = "darwin", deserialize_with = "text_or_darwin")]
    pub os: String,
    /// The settings of the pool's rolls.
    #[serde(deserialize_with = "part")]
    pub rollout: RunnerPoolRollout,
    /// How the pool's Pods are started.
    #[serde(deserialize_with = "part")]
    pub provisioning: RunnerPoolProvisioning,
}

/// The settings of a pool's rolls.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunnerPoolRollout {
    /// The share of the replicas that may be in flight. A number below 1 counts as absent (the same Reconcile).
    #[serde(deserialize_with = "percentage")]
    pub max_concurrent_percent: i32,
}

/// How a pool's Pods are started.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunnerPoolProvisioning {
    /// The most Pods that may be started at one time in all pools with the same `fleetSelector`.
    #[serde(deserialize_with = "number")]
    pub max_concurrent_per_fleet_selector: Option<i32>,
}

impl Default for RunnerPoolRollout {
    fn default() -> Self {
        Self {
            max_concurrent_percent: DEFAULT_PERCENT,
        }
    }
}

fn darwin() -> String {
    "darwin".to_owned()
}

/// A whole number, however it is written: `3`, `3.0` or `"3"`.
fn read(value: &Value) -> Option<i32> {
    let text = match value {
        Value::String(text) => text.trim().to_owned(),
        value => value.to_string(),
    };
    text.strip_suffix(".0").unwrap_or(&text).parse().ok()
}

/// A whole number that isn't needed. Anything else is none.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    Ok(read(&Value::deserialize(deserializer)?))
}

fn percentage<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    let number = number(deserializer)?.filter(|percent| *percent > 0);
    Ok(number.unwrap_or(DEFAULT_PERCENT))
}

/// A whole number that is needed. Null is 0.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(0),
        value => {
            read(&value).ok_or_else(|| D::Error::custom(format!("{value} isn't a whole number")))
        }
    }
}

/// A text that is needed. Null is empty.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A system of any name. An absent one is `darwin`; one that can't be read isn't.
fn text_or_darwin<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(match value {
        Value::Null => darwin(),
        Value::String(text) => text,
        other => other.to_string(),
    })
}

/// A group of fields. One that isn't a group counts as absent.
fn part<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + DeserializeOwned,
{
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pool_from_a_newer_or_older_definition_is_read() {
        let pool: RunnerPool = serde_json::from_value(json!({
            "apiVersion": "tuist.dev/v1alpha1",
            "kind": "RunnerPool",
            "metadata": { "name": "p", "namespace": "n" },
            "spec": { "image": "i", "future": { "x": 1 }, "rollout": {} },
            "status": { "anything": true },
        }))
        .unwrap();
        assert_eq!((pool.spec.os.as_str(), pool.spec.replicas), ("darwin", 0));
        assert_eq!(pool.spec.rollout.max_concurrent_percent, DEFAULT_PERCENT);
    }

    #[test]
    fn odd_fields_lose_no_pool_unless_they_are_needed() {
        let spec = |more: Value| {
            let mut spec = json!({ "image": "i", "fleetSelector": "m4", "replicas": 3 });
            for (field, value) in more.as_object().unwrap() {
                spec[field] = value.clone();
            }
            serde_json::from_value::<RunnerPoolSpec>(spec)
        };
        let read = |more| spec(more).unwrap();
        for replicas in [json!(3), json!(3.0), json!("3")] {
            assert_eq!(read(json!({ "replicas": replicas })).replicas, 3);
        }
        assert_eq!(read(json!({ "replicas": null })).replicas, 0);
        for replicas in [json!("many"), json!(1.5), json!([3])] {
            assert!(spec(json!({ "replicas": replicas })).is_err());
        }
        for rollout in [
            json!(null),
            json!([]),
            json!("fast"),
            json!({ "maxConcurrentPercent": null }),
            json!({ "maxConcurrentPercent": {}, "new": 1 }),
            json!({ "maxConcurrentPercent": 0 }),
            json!({ "maxConcurrentPercent": -20 }),
        ] {
            let percent = read(json!({ "rollout": rollout })).rollout;
            assert_eq!(percent, RunnerPoolRollout::default());
        }
        let twenty = read(json!({ "rollout": { "maxConcurrentPercent": "20" } }));
        assert_eq!(twenty.rollout.max_concurrent_percent, 20);
        for provisioning in [json!(null), json!(3), json!({ "delay": { "x": [] } })] {
            let read = read(json!({ "provisioning": provisioning }));
            assert_eq!(read.provisioning, RunnerPoolProvisioning::default());
        }
        let three = json!({ "maxConcurrentPerFleetSelector": 3, "other": "x" });
        let read_three = read(json!({ "provisioning": three }));
        let most = read_three.provisioning.max_concurrent_per_fleet_selector;
        assert_eq!(most, Some(3));
        assert_eq!(read(json!({ "os": null })).os, "darwin");
        assert_ne!(read(json!({ "os": ["darwin"] })).os, "darwin");
        assert_eq!(read(json!({ "fleetSelector": null })).fleet_selector, "");
        assert!(spec(json!({ "fleetSelector": 4 })).is_err());
        assert!(spec(json!({ "image": null })).is_err());
        assert!(spec(json!({ "image": { "name": "i" } })).is_err());
    }
}
