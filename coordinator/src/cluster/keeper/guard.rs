//! Which labels the API server asks about before they are written: what mode Guard rests on.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::cluster::crd::{Gate, GateMode};

/// What the webhook is asked about.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Guarded {
    /// It wasn't read yet.
    #[default]
    Unknown,
    /// There is no webhook.
    None,
    /// Pods that one of these selects.
    By(Vec<LabelSelector>),
}

impl Guarded {
    /// Why the label of this gate can be put on without a question; nothing when it can't, or that isn't known.
    pub(super) fn misses(&self, gate: &Gate) -> Option<String> {
        if gate.mode != GateMode::Guard {
            return None;
        }
        let label = &gate.drain_label;
        match self {
            Self::Unknown => None,
            Self::None => Some(format!(
                "nobody is asked before {label} is put on: there is no webhook; let the chart's gate.modes have guard"
            )),
            Self::By(selectors) => {
                let asked = selectors
                    .iter()
                    .any(|selector| !is_about_another(selector, label));
                (!asked).then(|| {
                    format!("nobody is asked before {label} is put on: no objectSelector of the webhook selects it")
                })
            }
        }
    }
}

/// Whether a selector is one of the chart's, for another label. Of any other shape it is somebody's who knows the Pods.
fn is_about_another(selector: &LabelSelector, label: &str) -> bool {
    let plain = selector
        .match_labels
        .as_ref()
        .is_none_or(|labels| labels.is_empty());
    match selector.match_expressions.as_deref() {
        Some([only]) => plain && only.operator == "Exists" && only.key != label,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_label_that_no_webhook_is_asked_about_is_told() {
        let gate = |mode, label: &str| Gate {
            mode,
            drain_label: label.to_owned(),
            ..Gate::default()
        };
        let by =
            |selectors: serde_json::Value| Guarded::By(serde_json::from_value(selectors).unwrap());
        let exists =
            |label: &str| json!({ "matchExpressions": [{ "key": label, "operator": "Exists" }] });
        let own = gate(GateMode::Own, "a");
        let guard = gate(GateMode::Guard, "a");
        for (guarded, missed) in [
            (Guarded::Unknown, false),
            (Guarded::None, true),
            (by(json!([])), true),
            (by(json!([exists("a")])), false),
            (by(json!([exists("b")])), true),
            (by(json!([exists("b"), exists("a")])), false),
            (by(json!([{}])), false),
            (by(json!([{ "matchLabels": { "app": "x" } }])), false),
            (
                by(json!([exists("b"), { "matchLabels": { "app": "y" } }])),
                false,
            ),
        ] {
            assert_eq!(guarded.misses(&guard).is_some(), missed, "{guarded:?}");
            assert_eq!(guarded.misses(&own), None);
        }
    }
}
