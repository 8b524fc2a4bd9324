//! Which labels the webhook guards. Mode Guard works only where the API server asks the webhook before a label is
//! written.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::cluster::crd::{Gate, GateMode};

/// Which Pods the webhook's configuration selects.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Guarded {
    /// The configuration wasn't read yet.
    #[default]
    Unknown,
    /// There is no webhook.
    None,
    /// The webhook is asked about Pods that one of these selectors selects.
    By(Vec<LabelSelector>),
}

impl Guarded {
    /// Why this gate's label can be put on without a question to the webhook. `None` where it can't, or where that
    /// isn't known.
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

/// Whether a selector is one of the chart's, for another label. A selector of any other shape was written by an
/// operator who knows the Pods, and counts as guarding.
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
