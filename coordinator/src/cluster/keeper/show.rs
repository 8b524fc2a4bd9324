//! What the keeper shows: pools and Pods with the gate's own reasons, and gauges.

use std::time::{Duration, SystemTime};

use rollout::gate::{self, Reason, Verdict};

use super::Keeper;
use crate::{
    cluster::{
        crd::GateMode,
        index::{ObjectKey, PodFacts},
    },
    view::{PodView, PoolView},
};

/// A reason for people: what keeps the Pod, and what would change it.
pub(in crate::cluster) fn reason_text(reason: Reason, node: Option<&str>) -> String {
    let node = node.unwrap_or("its node");
    match reason {
        Reason::NotSynced => {
            "the coordinator doesn't know the whole cluster (yet); it tries again by itself".into()
        }
        Reason::NotGated => "no ImagePrePull gates it".into(),
        Reason::NotAlive => "it has ended, or is being deleted".into(),
        Reason::Current => "it runs the pool's image already".into(),
        Reason::Busy => "it works for somebody; busy Pods are never touched".into(),
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
            cap,
        } => format!("{in_flight} Pods are in flight, and the cap is {cap}"),
        Reason::CapReached {
            in_flight,
            away,
            cap,
        } => format!(
            "{} Pods are in flight, {away} are on Nodes that aren't Ready, and the cap is {cap} for both",
            in_flight.saturating_sub(away)
        ),
        Reason::NoSuccessor { missing, cap } => format!(
            "{missing} Pods that were let go have had no successor for more than a minute, and the cap is {cap}: the owner of the pool's Pods makes none; if there shall be fewer, lower the replicas"
        ),
        Reason::RetryWaits => "a write on it was refused; the next try waits a moment".into(),
        Reason::Admitted => "it was admitted a moment ago; the label is being written".into(),
    }
}

impl Keeper {
    /// Who makes Pods of which other image, by which Pod that shows, and what lets the roll go on.
    pub(super) fn lag_text(&self, pool: &gate::PoolId, status: &gate::PoolStatus) -> String {
        let Some(rule) = self.rules.get(pool) else {
            return String::new();
        };
        let wanted = &rule.image;
        let says = self.lagging_owner(pool, wanted);
        // the Pod that showed it, or the youngest that could have
        let shown = status.lag.as_ref().and_then(|lag| lag.pod.as_ref());
        let shown = shown.or_else(|| {
            let mut stale = status.pods.iter().filter(|pod| pod.stale);
            stale.next_back().map(|pod| &pod.pod)
        });
        let pod = shown.and_then(|id| {
            let key = self.pod_keys.get(id)?;
            Some((key, self.index.pods.get(key)?))
        });
        let owner = |facts: &PodFacts| match &facts.owner {
            Some(owner) => owner.to_string(),
            None => "somebody without a name".to_owned(),
        };
        let what = match (&says, pod) {
            (Some((by, made)), Some((key, facts))) => format!(
                "{by} makes Pods of {made} (Pod {key}, of {}, runs {}), and this object says {wanted}",
                owner(facts),
                facts.image
            ),
            (Some((by, made)), None) => {
                format!("{by} makes Pods of {made}, and this object says {wanted}")
            }
            (None, Some((key, facts))) => format!(
                "Pod {key}, which {} made after this object's image was set, runs {}, and this object says {wanted}",
                owner(facts),
                facts.image
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

    /// Whether what the owners of a pool's Pods make is being read.
    pub(super) fn is_owner_unread(&self, pool: &gate::PoolId) -> bool {
        self.rules
            .get(pool)
            .is_some_and(|rule| self.template_of(pool, &rule.image) == gate::Template::Unread)
    }

    pub(super) fn pool_views(&self) -> Vec<PoolView> {
        self.order
            .iter()
            .filter_map(|rule| {
                let facts = self.index.prepulls.get(&rule.key)?;
                let status = self.gate.status(&rule.key.pool())?;
                let lag = self.lag_of(&rule.key.pool(), &status);
                Some(PoolView {
                    namespace: rule.key.namespace.clone(),
                    name: rule.key.name.clone(),
                    mode: match rule.mode {
                        GateMode::Own => "own",
                        GateMode::Guard => "guard",
                        GateMode::None => "none",
                    }
                    .to_owned(),
                    image: rule.image.clone(),
                    digest: self
                        .digest_of(&rule.key, &rule.image)
                        .map(|digest| digest.to_string()),
                    paused: facts.spec.paused,
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
                        .filter_map(|pod| self.pod_shown(pod, lag.as_deref()))
                        .collect(),
                })
            })
            .collect()
    }

    pub(super) fn pod_view(&self, key: &ObjectKey) -> Option<PodView> {
        let facts = self.index.pods.get(key)?;
        let id = gate::PodId(facts.uid.clone());
        let pool = self.rule_of(key).map(|rule| rule.pool());
        let status = pool.as_ref().and_then(|pool| self.gate.status(pool));
        let lag = pool.zip(status.as_ref());
        let lag = lag.and_then(|(pool, status)| self.lag_of(&pool, status));
        let found = status.and_then(|status| status.pods.into_iter().find(|pod| pod.pod == id));
        match found {
            Some(pod) => self.pod_shown(&pod, lag.as_deref()),
            // not gated, or not alive
            None => Some(self.view_of(key, (false, false), self.gate.explain(&id), None)),
        }
    }

    /// What holds a pool whose owner lags.
    fn lag_of(&self, pool: &gate::PoolId, status: &gate::PoolStatus) -> Option<String> {
        status.lag.is_some().then(|| self.lag_text(pool, status))
    }

    fn pod_shown(&self, pod: &gate::PodStatus, lag: Option<&str>) -> Option<PodView> {
        let key = self.pod_keys.get(&pod.pod)?;
        Some(self.view_of(key, (pod.stale, pod.in_flight), pod.verdict, lag))
    }

    fn view_of(
        &self,
        key: &ObjectKey,
        (stale, in_flight): (bool, bool),
        verdict: Verdict,
        lag: Option<&str>,
    ) -> PodView {
        let facts = self.index.pods.get(key);
        let node = facts.and_then(|facts| facts.node.clone());
        let (reason, message) = match verdict {
            Verdict::Open(_) => (proto::Reason::Open, "it may drain".to_owned()),
            Verdict::Blocked(reason) => {
                let lag = lag.filter(|_| reason == Reason::OwnerLags);
                let text = lag.map_or_else(|| reason_text(reason, node.as_deref()), str::to_owned);
                (reason.shown(), text)
            }
        };
        PodView {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            pool: self.rule_of(key).map(|rule| rule.to_string()),
            image: facts.map(|facts| facts.image.clone()).unwrap_or_default(),
            node,
            stale,
            in_flight,
            reason: reason.into(),
            message,
        }
    }

    /// Sets the gauges.
    pub(super) fn measure(&self) {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs();
        for rule in &self.order {
            if let Some(status) = self.gate.status(&rule.key.pool()) {
                let oldest = status.oldest_pending_unix_s.map_or(0, |created| {
                    now.saturating_sub(u64::try_from(created).unwrap_or(0))
                });
                self.metrics.pool(rule, &status, oldest);
            }
        }
    }
}
