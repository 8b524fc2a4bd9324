//! The workloads whose images ImagePrePulls follow (`spec.imageFrom`), and which image that is for each object.

use kube::core::DynamicObject;

use super::facts::{ObjectKey, PrePullFacts, Source};
use crate::{
    cluster::crd::{GateMode, ImageFrom, WorkloadKind},
    progress::clean,
};

/// A workload's name in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WorkloadKey {
    pub(crate) kind: WorkloadKind,
    pub(crate) key: ObjectKey,
}

impl WorkloadKey {
    /// The workload that an ImagePrePull follows, if it follows one.
    pub(crate) fn of(key: &ObjectKey, facts: &PrePullFacts) -> Option<Self> {
        let from = facts.spec.image_from.as_ref()?;
        Some(Self {
            kind: from.kind,
            key: ObjectKey::new(&key.namespace, &from.name),
        })
    }
}

/// What is known of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    /// The containers of its template in their order: name and image.
    Containers(Vec<(String, String)>),
    /// There is no such workload.
    Absent,
    /// The workload can't be watched, for this reason.
    Unseen(String),
}

impl Workload {
    /// What a workload's template says. A container without a name or an image is left out.
    pub(crate) fn of(object: &DynamicObject) -> Self {
        let containers = object.data["spec"]["template"]["spec"]["containers"].as_array();
        let container = |container: &serde_json::Value| {
            let text = |field: &str| Some(container[field].as_str()?.to_owned());
            Some((text("name")?, text("image")?))
        };
        let containers = containers.into_iter().flatten();
        Self::Containers(containers.filter_map(container).collect())
    }
}

/// The image of an ImagePrePull, or why there is none.
pub(super) fn image_of(
    facts: &PrePullFacts,
    workload: Option<&Workload>,
) -> Result<String, Source> {
    let unknown = |why: String| Err(Source::Unknown(why));
    match (&facts.spec.image_from, &facts.said) {
        (None, said) if said.is_empty() => {
            unknown("spec has neither `image` nor `imageFrom`; set one of them".into())
        }
        (None, said) => Ok(said.clone()),
        (Some(_), said) if !said.is_empty() => {
            unknown("spec has both `image` and `imageFrom`; remove one of them".into())
        }
        (Some(from), _) => {
            let gate = facts.spec.gate.as_ref();
            let gated = gate.is_some_and(|gate| gate.mode != GateMode::None);
            template_image(from, gated, workload)
        }
    }
}

fn template_image(
    from: &ImageFrom,
    gated: bool,
    workload: Option<&Workload>,
) -> Result<String, Source> {
    let what = format!("{} {}", from.kind, clean(&from.name));
    let unknown = |why: String| Err(Source::Unknown(why));
    let containers = match workload {
        None => return Err(Source::Awaited),
        Some(Workload::Containers(containers)) => containers,
        Some(Workload::Absent) => {
            return unknown(format!(
                "there is no {what} in this namespace; create it, or correct `imageFrom`"
            ));
        }
        Some(Workload::Unseen(error)) => {
            return unknown(format!(
                "{what} can't be watched ({error}); give the coordinator's role list and watch on it, or name the image \
                 in `image`"
            ));
        }
    };
    let at = match &from.container {
        None => 0,
        Some(name) => match containers.iter().position(|(is, _)| is == name) {
            Some(at) => at,
            None => {
                return unknown(format!(
                    "the template of {what} has no container {}; correct `imageFrom.container`",
                    clean(name)
                ));
            }
        },
    };
    let Some((name, image)) = containers.get(at) else {
        return unknown(format!(
            "the template of {what} names no image; give its container one"
        ));
    };
    if gated && at > 0 {
        return unknown(format!(
            "the gate compares first containers, and {} isn't the first one in the template of {what}; put it first, or \
             remove `gate`",
            clean(name)
        ));
    }
    Ok(image.clone())
}
