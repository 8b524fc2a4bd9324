//! Who wants an image: operators through the API, and the cluster's objects. What is staged is what either wants.

use std::collections::{BTreeMap, BTreeSet};

use proto::{Digest, HostId, Moment};
use tracing::{error, info};

use super::{Driver, MAX_WANTS, Wanted};
use crate::wants::Want;

/// What one side wants of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) references: BTreeSet<String>,
    /// None: all hosts.
    pub(super) hosts: Option<BTreeSet<HostId>>,
}

impl Claim {
    pub(super) fn of(want: &Want) -> Self {
        Self {
            references: want.references.clone(),
            hosts: want.hosts.clone(),
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
        Self { references, hosts }
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
        !self.want.references.is_empty()
    }

    /// What operators asked for, as it is kept over restarts. The cluster keeps its own.
    pub(super) fn asked_want(&self) -> Option<Want> {
        let asked = self.asked.clone()?;
        Some(Want {
            references: asked.references,
            hosts: asked.hosts,
            ..self.want.clone()
        })
    }
}

impl Driver {
    /// The cluster wants exactly these images.
    pub(super) fn place(&mut self, now: Moment, wants: Vec<Want>) {
        let wants: BTreeMap<Digest, Want> = wants
            .into_iter()
            .map(|want| (want.digest(), want))
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
        for (image, want) in wants {
            let claim = Claim::of(&want);
            let full = self.wants.len() >= MAX_WANTS;
            match self.wants.get_mut(&image) {
                Some(wanted) if wanted.cluster.as_ref() == Some(&claim) => continue,
                Some(wanted) => {
                    wanted.cluster = Some(claim);
                    let before = Claim::of(&wanted.want);
                    wanted.refresh();
                    if Claim::of(&wanted.want) == before {
                        continue;
                    }
                    wanted.order = None;
                    wanted.changed_at = now;
                    wanted.staged = None;
                }
                None if full => {
                    error!(%image, limit = MAX_WANTS, "image isn't staged: too many are wanted already; delete some ImagePrePulls");
                    continue;
                }
                None => {
                    info!(%image, references = ?want.references, "image is wanted by the cluster");
                    let wanted = self.wanted(now, want, None, Some(claim));
                    self.wants.insert(image, wanted);
                }
            }
            self.tell_wanted(now, image);
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
