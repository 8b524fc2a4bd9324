//! What the keeper shows through the API: rolls and Pods, with the gate's own reasons.

use rollout::gate::{PodId, PodStatus, PoolStatus, Reason, Template, Verdict};

use super::{gating::Gating, owners::Owners, resolving::Resolving, status::Roll};
use crate::{
    cluster::{
        clock::Now,
        crd::GateMode,
        index::{Index, ObjectKey, PodFacts},
        prepull_gate::PrePullGate,
    },
    view::{PodView, PoolView},
};

/// The facts that a view is made of.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) now: Now,
    pub(super) index: &'a Index,
    pub(super) gating: &'a Gating,
    pub(super) owners: &'a Owners,
    pub(super) images: &'a Resolving,
}

/// All rolls, in the order of their gates: where several gates select a Pod, the first counts.
pub(super) fn pools(facts: Facts<'_>) -> Vec<PoolView> {
    let gates = facts.gating.gates().iter();
    gates.filter_map(|gate| pool(facts, gate)).collect()
}

fn pool(facts: Facts<'_>, gate: &PrePullGate) -> Option<PoolView> {
    let prepull = facts.index.prepulls.get(&gate.key)?;
    let status = facts.gating.status(&gate.key)?;
    let lag = lag_of(facts, gate, &status);
    let digest = facts.images.digest_of(&gate.key, &gate.image);
    Some(PoolView {
        namespace: gate.key.namespace.clone(),
        name: gate.key.name.clone(),
        mode: match gate.mode {
            GateMode::Own => "own",
            GateMode::Guard => "guard",
            GateMode::None => "none",
        }
        .to_owned(),
        image: gate.image.clone(),
        digest: digest.map(|digest| digest.to_string()),
        paused: prepull.spec.paused,
        alive: status.alive,
        stale: status.stale,
        labelled: status.labelled,
        in_flight: status.in_flight,
        reserved: status.reserved,
        cap: status.cap,
        hosts_usable: status.hosts_usable,
        hosts_ready: status.hosts_ready,
        pods: status
            .pods
            .iter()
            .filter_map(|pod| {
                let key = facts.gating.key(&pod.pod)?;
                Some(pod_of(facts, key, Some(pod), pod.verdict, &lag))
            })
            .collect(),
    })
}

/// One Pod. `None` where no Pod has this name.
pub(super) fn pod(facts: Facts<'_>, key: &ObjectKey) -> Option<PodView> {
    let pod = facts.index.pods.get(key)?;
    let id = PodId(pod.uid.clone());
    let gate = facts.gating.gate_of(facts.index, key);
    let roll = gate.and_then(|gate| Some((gate, facts.gating.status(&gate.key)?)));
    if let Some((gate, status)) = &roll
        && let Some(found) = status.pods.iter().find(|pod| pod.pod == id)
    {
        let lag = lag_of(facts, gate, status);
        return Some(pod_of(facts, key, Some(found), found.verdict, &lag));
    }
    // the Pod isn't gated, or isn't alive
    Some(pod_of(facts, key, None, facts.gating.explain(&id), ""))
}

fn pod_of(
    facts: Facts<'_>,
    key: &ObjectKey,
    status: Option<&PodStatus>,
    verdict: Verdict,
    lag: &str,
) -> PodView {
    let pod = facts.index.pods.get(key);
    let node = pod.and_then(|pod| pod.node.clone());
    let (reason, message) = match verdict {
        Verdict::Open(_) => (proto::Reason::Open, "it may drain".to_owned()),
        Verdict::Blocked(reason) => {
            let text = match reason {
                Reason::OwnerLags if !lag.is_empty() => lag.to_owned(),
                reason => reason_text(reason, node.as_deref()),
            };
            (reason.shown(), text)
        }
    };
    let gate = facts.gating.gate_of(facts.index, key);
    PodView {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        pool: gate.map(|gate| gate.key.to_string()),
        image: pod.map(|pod| pod.image.clone()).unwrap_or_default(),
        node,
        stale: status.is_some_and(|status| status.stale),
        in_flight: status.is_some_and(|status| status.in_flight),
        reason: reason.into(),
        message,
    }
}

/// The state of a roll, with the text about a lagging owner.
pub(super) fn roll(facts: Facts<'_>, prepull: &ObjectKey) -> Option<Roll> {
    let status = facts.gating.status(prepull)?;
    let gate = facts.gating.gate(prepull);
    let template = gate.map(|gate| facts.owners.template(facts.now, facts.index, gate));
    Some(Roll {
        lag: gate.map_or_else(String::new, |gate| lag_of(facts, gate, &status)),
        is_owner_unread: template == Some(Template::Unread),
        status,
    })
}

/// A text about an owner that makes another image: which owner, which image, which Pod shows it, and what lets the roll
/// go on. Empty while no owner lags.
fn lag_of(facts: Facts<'_>, gate: &PrePullGate, status: &PoolStatus) -> String {
    let Some(lag) = &status.lag else {
        return String::new();
    };
    let wanted = &gate.image;
    let says = facts.owners.lagging(facts.index, gate);
    // the Pod that showed the lag, or the youngest stale Pod, which could have
    let shown = lag.pod.as_ref().or_else(|| {
        let mut stale = status.pods.iter().filter(|pod| pod.stale);
        stale.next_back().map(|pod| &pod.pod)
    });
    let pod = shown.and_then(|id| {
        let key = facts.gating.key(id)?;
        Some((key, facts.index.pods.get(key)?))
    });
    let owner = |pod: &PodFacts| match &pod.owner {
        Some(owner) => owner.to_string(),
        None => "somebody without a name".to_owned(),
    };
    let what = match (&says, pod) {
        (Some(makes), Some((key, pod))) => format!(
            "{} makes Pods of {} (Pod {key}, of {}, runs {}), and this object says {wanted}",
            makes.by,
            makes.image,
            owner(pod),
            pod.image
        ),
        (Some(makes), None) => format!(
            "{} makes Pods of {}, and this object says {wanted}",
            makes.by, makes.image
        ),
        (None, Some((key, pod))) => format!(
            "Pod {key}, which {} made after this object's image was set, runs {}, and this object says {wanted}",
            owner(pod),
            pod.image
        ),
        (None, None) => format!("the Pods' owner makes another image than {wanted}"),
    };
    let next = match says {
        Some(_) => "when they agree, the roll goes on by itself",
        None => {
            "it goes on with the first Pod of this object's image: mend the owner and delete one idle stale Pod, or \
             `parbake pause` and `resume` to try again"
        }
    };
    format!(
        "{what}. Nothing drains meanwhile; {next}. Images are compared as text: one digest spelled in two ways is two"
    )
}

/// A reason as text for people: what blocks the Pod, and what would change that.
pub(super) fn reason_text(reason: Reason, node: Option<&str>) -> String {
    let node = node.unwrap_or("its node");
    match reason {
        Reason::NotSynced => {
            "the coordinator doesn't know the whole cluster (yet); it tries again by itself".into()
        }
        Reason::NotGated => "no ImagePrePull gates it".into(),
        Reason::NotAlive => "it has ended, or is being deleted".into(),
        Reason::Current => "it runs the pool's image already".into(),
        Reason::Busy => "it works for somebody; busy Pods are never touched".into(),
        Reason::OperatorDrain => {
            "an operator drains it: it leaves before it takes work again, and the gate leaves it alone".into()
        }
        Reason::AlreadyLabelled => "it may drain: it carries the label".into(),
        Reason::NotRunning => "it isn't Running, and its pool isn't the coordinator's own".into(),
        Reason::Paused => "the roll is paused; `parbake resume` lets it go on".into(),
        Reason::OwnerUnread => "what the owner of the pool's Pods makes is being read".into(),
        Reason::OwnerLags => {
            "the owner of the pool's Pods makes Pods of another image; see the ImagePrePull's Degraded condition".into()
        }
        Reason::ImageUnresolved => {
            "the pool's image isn't resolved; see the ImagePrePull's Resolved condition".into()
        }
        Reason::NodeUnknown => format!("{node} isn't known as a Node of the cluster"),
        Reason::NodeNotReady => format!("{node} isn't Ready"),
        Reason::NodeCordoned => {
            format!("{node} is cordoned: the Pod's successor couldn't return there")
        }
        Reason::NodePressure => {
            format!("{node} lacks memory, disk or process ids: the Pod's successor couldn't return there")
        }
        Reason::NodeReserved => {
            format!("{node} is reserved for another pool: the Pod's successor couldn't return there")
        }
        Reason::ImageMissing => {
            format!("{node} doesn't hold the pool's image yet; see `parbake why {node}`")
        }
        Reason::PresenceOld(age) => format!(
            "the agent on {node} has been silent for {} s; is it running?",
            age.as_secs()
        ),
        Reason::HostUnheard => format!(
            "the agent on {node} hasn't spoken since the coordinator started; is it running and enrolled?"
        ),
        Reason::TooFewHosts { have, need } => format!(
            "it has no node, and {have} hosts hold the image; {need} have to before it is replaced"
        ),
        Reason::CapReached {
            in_flight,
            away: 0,
            giving_way: 0,
            cap,
        } => format!("{in_flight} Pods are in flight, and the cap is {cap}"),
        Reason::CapReached {
            in_flight,
            away,
            giving_way,
            cap,
        } => format!(
            "{} Pods are in flight, {away} are on Nodes that aren't Ready, {giving_way} on Nodes that were reserved \
             for another pool or cordoned a moment ago, and the cap is {cap} for all of them",
            in_flight.saturating_sub(away + giving_way)
        ),
        Reason::FleetCapReached { in_flight, cap } => format!(
            "{in_flight} Pods are in flight in the pools of its fleet together, and the fleet's cap is {cap} \
             (spec.provisioning.maxConcurrentPerFleetSelector of its RunnerPools; the lowest counts)"
        ),
        Reason::NoSuccessor { missing, cap } => format!(
            "{missing} Pods that were let go have had no successor for more than a minute, and the cap is {cap}: the owner of the pool's Pods makes none; if there shall be fewer, lower the replicas"
        ),
        Reason::RetryWaits => "a write on it was refused; the next try waits a moment".into(),
        Reason::Admitted => "it was admitted a moment ago; the label is being written".into(),
    }
}
