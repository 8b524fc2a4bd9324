//! Who wants an image: operators through the API, and the cluster's objects. What is staged is what either wants.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proto::{Digest, HostId, Moment};
use rollout::stage::Event;
use tracing::{error, info};

use super::{Driver, Limits, MAX_WANTS, Placed, Wanted, orders::bandwidth};
use crate::{
    view::BandwidthRequest,
    wants::{Timing, Want},
};

/// What one side wants of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) references: BTreeSet<String>,
    /// None: all hosts.
    pub(super) hosts: Option<BTreeSet<HostId>>,
    /// Where what is there is kept, though it isn't wanted for now.
    pub(super) held: BTreeSet<HostId>,
}

impl Claim {
    pub(super) fn of(want: &Want) -> Self {
        Self {
            references: want.references.clone(),
            hosts: want.hosts.clone(),
            held: BTreeSet::new(),
        }
    }

    pub(super) fn join(self, other: Self) -> Self {
        let mut references = self.references;
        references.extend(other.references);
        let hosts = match (self.hosts, other.hosts) {
            (Some(mut hosts), Some(more)) => {
                hosts.extend(more);
                Some(hosts)
            }
            _ => None,
        };
        let mut held = self.held;
        held.extend(other.held);
        Self {
            references,
            hosts,
            held,
        }
    }
}

/// The stricter of two limits, of which 0 is none.
pub(crate) const fn stricter(one: u64, other: u64) -> u64 {
    match (one, other) {
        (0, limit) | (limit, 0) => limit,
        (one, other) if one < other => one,
        (_, other) => other,
    }
}

impl Wanted {
    /// What is wanted in all. `false` when nobody wants anything any more.
    pub(super) fn refresh(&mut self) -> bool {
        let claims = [self.asked.clone(), self.cluster.clone()];
        let Some(claim) = claims.into_iter().flatten().reduce(Claim::join) else {
            return false;
        };
        self.want.references = claim.references;
        self.want.hosts = claim.hosts;
        self.held = claim.held;
        !self.want.references.is_empty()
    }

    /// What operators asked for, as it is kept over restarts. The cluster keeps its own.
    pub(super) fn asked_want(&self) -> Option<Want> {
        let asked = self.asked.clone()?;
        Some(Want {
            references: asked.references,
            hosts: asked.hosts,
            timing: self.took.timing(),
            ..self.want.clone()
        })
    }
}

impl Driver {
    /// The cluster wants exactly these images.
    pub(super) fn place(&mut self, now: Moment, wants: Vec<Placed>) {
        let wants: BTreeMap<Digest, Placed> = wants
            .into_iter()
            .map(|placed| (placed.want.digest(), placed))
            .collect();
        let dropped: Vec<Digest> = self
            .wants
            .iter()
            .filter(|(image, wanted)| wanted.cluster.is_some() && !wants.contains_key(image))
            .map(|(image, _)| *image)
            .collect();
        for image in dropped {
            self.release(now, image, |wanted| wanted.cluster = None);
        }
        let mut waiting = BTreeMap::new();
        for (image, Placed { want, held }) in wants {
            let claim = Claim {
                held,
                ..Claim::of(&want)
            };
            if let Some(wanted) = self.wants.get_mut(&image)
                && wanted.want.secrets != want.secrets
            {
                wanted.want.secrets.clone_from(&want.secrets);
                wanted.token_due = self.registries.hands_down(&wanted.want).then_some(now);
            }
            let full = self.wants.len() >= MAX_WANTS;
            match self.wants.get_mut(&image) {
                Some(wanted) if wanted.cluster.as_ref() == Some(&claim) => continue,
                Some(wanted) => {
                    wanted.cluster = Some(claim);
                    let before = (Claim::of(&wanted.want), wanted.held.clone());
                    wanted.refresh();
                    let now_wanted = (Claim::of(&wanted.want), wanted.held.clone());
                    if now_wanted == before {
                        continue;
                    }
                    wanted.order = None;
                    self.time_anew(now, &image);
                }
                None if full => {
                    if !self.waiting.contains_key(&image) {
                        error!(%image, limit = MAX_WANTS, "image isn't staged yet: too many are wanted already; delete some ImagePrePulls");
                    }
                    let held = claim.held;
                    waiting.insert(image, Placed { want, held });
                    continue;
                }
                None => {
                    self.begin_placed(now, want, claim);
                    continue;
                }
            }
            self.tell_wanted(now, image);
        }
        self.waiting = waiting;
    }

    fn begin_placed(&mut self, now: Moment, want: Want, claim: Claim) {
        let image = want.digest();
        info!(%image, references = ?want.references, "image is wanted by the cluster");
        // the first that the cluster says after a start was wanted before it, nobody knows since when
        let timing = match self.placed {
            true => Timing::New,
            false => Timing::Unknown,
        };
        let want = Want { timing, ..want };
        let wanted = self.wanted(now, want, None, Some(claim));
        self.wants.insert(image, wanted);
        self.tell_wanted(now, image);
    }

    /// Takes up what the cluster wants beyond the most images, where there is room by now.
    pub(super) fn place_waiting(&mut self, now: Moment) {
        while self.wants.len() < MAX_WANTS
            && let Some((image, Placed { want, held })) = self.waiting.pop_first()
        {
            let claim = Claim {
                held,
                ..Claim::of(&want)
            };
            match self.wants.get_mut(&image) {
                None => self.begin_placed(now, want, claim),
                // operators asked for it meanwhile
                Some(wanted) => {
                    wanted.cluster = Some(claim);
                    wanted.refresh();
                    wanted.order = None;
                    self.tell_wanted(now, image);
                }
            }
        }
    }

    /// The cluster limits what moves from now on.
    pub(super) fn limit(&mut self, now: Moment, limits: Limits) {
        let before = std::mem::replace(&mut self.limits, limits);
        if before.origin_streams != limits.origin_streams {
            let ours = self.config.plan.origin_streams;
            let origin_streams = limits.origin_streams.unwrap_or(ours);
            info!(
                origin_streams,
                "the cluster changes how many read from the registry"
            );
            self.plan.handle(now, Event::Limited { origin_streams });
        }
        if before.bandwidth != limits.bandwidth {
            self.order_bandwidth();
        }
    }

    /// What every host may move: the stricter of what operators and the cluster say. `None` when neither ever said.
    pub(super) fn effective_bandwidth(&self) -> Option<BandwidthRequest> {
        let cluster = self.limits.bandwidth;
        let said = self.bandwidth.is_some() || cluster != BandwidthRequest::default();
        let asked = self.bandwidth.unwrap_or_default();
        said.then(|| BandwidthRequest {
            upload_bytes_per_second: stricter(
                asked.upload_bytes_per_second,
                cluster.upload_bytes_per_second,
            ),
            download_bytes_per_second: stricter(
                asked.download_bytes_per_second,
                cluster.download_bytes_per_second,
            ),
        })
    }

    /// Tells every host what it may move.
    pub(super) fn order_bandwidth(&mut self) {
        let order = Arc::new(bandwidth(self.effective_bandwidth().unwrap_or_default()));
        let hosts: Vec<HostId> = self.hosts.keys().cloned().collect();
        for host in hosts {
            self.order_shared(&host, &order);
        }
    }

    /// Takes one side's claim away. Whether anybody still wants the image.
    pub(super) fn release(
        &mut self,
        now: Moment,
        image: Digest,
        take: impl FnOnce(&mut Wanted),
    ) -> bool {
        let Some(wanted) = self.wants.get_mut(&image) else {
            return false;
        };
        take(wanted);
        if wanted.refresh() {
            wanted.order = None;
            self.tell_wanted(now, image);
            return true;
        }
        self.cancel(now, image);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stricter_limit_counts_and_none_is_none() {
        for (one, other, expected) in [(0, 0, 0), (0, 5, 5), (5, 0, 5), (3, 5, 3), (5, 3, 3)] {
            assert_eq!(stricter(one, other), expected);
        }
    }

    #[test]
    fn two_claims_want_what_either_wants() {
        let claim = |reference: &str, hosts: Option<&[&str]>| Claim {
            references: [reference.to_owned()].into(),
            hosts: hosts.map(|hosts| hosts.iter().map(|host| host.parse().unwrap()).collect()),
            held: BTreeSet::new(),
        };
        let both = claim("a", Some(&["x"])).join(claim("b", Some(&["y"])));
        assert_eq!(both.references.len(), 2);
        assert_eq!(both.hosts.unwrap().len(), 2);
        let all = claim("a", Some(&["x"])).join(claim("a", None));
        assert_eq!(all, claim("a", None));
    }
}
