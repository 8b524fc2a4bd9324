//! Who wants an image: operators through the API, and the cluster's objects. What is staged is what either wants.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proto::{Digest, HostId, Moment};
use rollout::{
    names::{Placement, Wanted as Sum},
    stage::Event,
};
use tracing::{error, info, warn};

use super::{
    Driver, Limits, MAX_NAME_BYTES, MAX_WANTS, Placed, Wanted, Write, orders::bandwidth,
    took::Took, writer,
};
use crate::{
    view::BandwidthRequest,
    wants::{Timing, Want},
};

/// The stricter of two limits, of which 0 is none.
pub(crate) const fn stricter(one: u64, other: u64) -> u64 {
    match (one, other) {
        (0, limit) | (limit, 0) => limit,
        (one, other) if one < other => one,
        (_, other) => other,
    }
}

impl Wanted {
    /// Takes what is wanted of the image in all. Whether anything was added to it, and whether anything changed.
    fn take(&mut self, sum: Sum) -> (bool, bool) {
        let Sum {
            references,
            hosts,
            held,
            entitled,
        } = sum;
        self.entitled = entitled;
        let more_hosts = match (&self.want.hosts, &hosts) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(before), Some(hosts)) => !hosts.is_subset(before),
        };
        let more = more_hosts || !references.is_subset(&self.want.references);
        let changed =
            (&references, &hosts, &held) != (&self.want.references, &self.want.hosts, &self.held);
        (self.want.references, self.want.hosts, self.held) = (references, hosts, held);
        (more, changed)
    }
}

impl Driver {
    /// An image is wanted that wasn't. The plan is told later.
    fn begin(&mut self, now: Moment, want: Want) {
        let everywhere = self.is_everywhere(&want);
        let took = Took::of(want.timing, now, Self::unix_ms(), everywhere);
        self.wants.insert(want.digest(), Wanted::new(want, took));
    }

    /// Operators want this, each of its references where it says.
    pub(super) fn enter(&mut self, now: Moment, want: Want) {
        let image = want.digest();
        for reference in &want.references {
            let asked_ms = match want.timing {
                Timing::New => self.claims.asked_now(Self::unix_ms()),
                Timing::Known(_) | Timing::Unknown => want.asked_ms_of(reference),
            };
            let hosts = want.hosts_of(reference);
            let taken = self.claims.ask(image, reference, hosts, asked_ms);
            for other in taken {
                info!(image = %other, by = %image, reference, "a tag moved to another image");
                self.keep_asked(other);
            }
        }
        let timing = want.timing;
        let kept = match self.wants.get(&image) {
            None => {
                self.begin(now, want);
                None
            }
            // the cluster wanted it first after a start, and knows no time
            Some(wanted) if matches!((wanted.took, timing), (Took::Untold, Timing::Known(_))) => {
                Some(Took::of(timing, now, Self::unix_ms(), false))
            }
            Some(_) => None,
        };
        self.token_due_if_handed_down(now, &image);
        self.follow_claims(now, Some(image));
        if let (Some(took), Some(wanted)) = (kept, self.wants.get_mut(&image)) {
            wanted.took = took;
        }
        // also where nothing changed: hosts are to look again
        self.names_changed();
    }

    /// What operators want of an image is written down, or that it is nothing any more.
    pub(super) fn keep_asked(&self, image: Digest) {
        match self.asked_want(&image) {
            Some(want) => self.keep(Write::Want(Box::new(want), writer::Answer::none())),
            None => self.keep(Write::Drop(image, writer::Answer::none())),
        }
    }

    /// What operators asked for, as it is kept over restarts. The cluster keeps its own.
    pub(super) fn asked_want(&self, image: &Digest) -> Option<Want> {
        let asked = self.claims.asked(image)?;
        let wanted = self.wants.get(image)?;
        let all = asked.values().any(|claim| claim.hosts.is_none());
        let hosts: BTreeSet<HostId> = asked
            .values()
            .flat_map(|claim| claim.hosts.iter().flatten().cloned())
            .collect();
        let hosts = (!all).then_some(hosts);
        let narrowed = asked
            .iter()
            .filter(|(_, claim)| claim.hosts != hosts)
            .filter_map(|(reference, claim)| Some((reference.clone(), claim.hosts.clone()?)));
        Some(Want {
            references: asked.keys().cloned().collect(),
            narrowed: narrowed.collect(),
            asked_ms: asked
                .iter()
                .map(|(reference, claim)| (reference.clone(), claim.asked_ms))
                .collect(),
            hosts,
            timing: wanted.took.timing(),
            ..wanted.want.clone()
        })
    }

    /// Brings what is planned up to what is claimed. `asked`: operators asked for this image just now.
    ///
    /// What is wanted more is told first, and what isn't wanted any more last: contents that both have stay where they are.
    pub(super) fn follow_claims(&mut self, now: Moment, asked: Option<Digest>) {
        let (mut over, mut news) = (Vec::new(), false);
        let images: Vec<Digest> = self.wants.keys().copied().collect();
        for image in images {
            let sum = self.claims.wanted(&image, self.hosts.keys());
            let (Some(sum), Some(wanted)) = (sum, self.wants.get_mut(&image)) else {
                over.push(image);
                continue;
            };
            if sum.references.is_empty() {
                over.push(image);
                continue;
            }
            let anew = asked == Some(image) || !wanted.planned;
            let entitled = wanted.entitled != sum.entitled;
            let (more, changed) = wanted.take(sum);
            if entitled {
                wanted.orders.clear();
                self.entitled_due.insert(image);
            }
            if !changed && !anew {
                continue;
            }
            news = true;
            wanted.planned = true;
            wanted.orders.clear();
            // what the cluster wants becomes known only after a start, and was wanted before it
            if more && (asked == Some(image) || self.placed) {
                self.time_anew(now, &image);
            }
            self.tell_wanted(now, image);
        }
        let news = news || !over.is_empty();
        for image in over {
            if self.claims.claimed(&image).is_empty() {
                self.cancel(now, image);
                continue;
            }
            let Some(wanted) = self.wants.get_mut(&image) else {
                continue;
            };
            if std::mem::take(&mut wanted.planned) {
                warn!(%image, "image is staged nowhere: later asks want other images under all its names");
                self.plan.handle(now, Event::Cancelled(image));
            }
        }
        if news {
            self.names_changed();
        }
    }

    fn token_due_if_handed_down(&mut self, now: Moment, image: &Digest) {
        if let Some(wanted) = self.wants.get_mut(image)
            && wanted.token.is_none()
            && wanted.token_due.is_none()
        {
            wanted.token_due = self.registries.hands_down(&wanted.want).then_some(now);
        }
    }

    /// The cluster wants exactly these images.
    pub(super) fn place(&mut self, now: Moment, wants: Vec<Placed>) {
        let wants: BTreeMap<Digest, Placed> = wants
            .into_iter()
            .map(|placed| (placed.want.digest(), placed))
            .collect();
        for image in self.wants.keys().copied().collect::<Vec<_>>() {
            if self.claims.is_placed(&image) && !wants.contains_key(&image) {
                self.claims.unplace(&image);
            }
        }
        self.follow_claims(now, None);
        let mut waiting = BTreeMap::new();
        for (image, placed) in wants {
            if !self.may_be_placed(&image, &placed) {
                if !self.waiting.contains_key(&image) {
                    error!(%image, limit = MAX_WANTS, limit_name_bytes = MAX_NAME_BYTES, "image isn't staged yet: too many are wanted already, or with too long names; delete some ImagePrePulls");
                }
                waiting.insert(image, placed);
                continue;
            }
            self.place_one(now, image, placed);
        }
        self.waiting = waiting;
        self.follow_claims(now, None);
        self.names_changed();
    }

    /// Whether there is room for what the cluster wants of an image.
    fn may_be_placed(&self, image: &Digest, placed: &Placed) -> bool {
        let wanted = self.wants.get(image);
        match wanted.map(|wanted| &wanted.want.references) {
            None if self.wants.len() >= MAX_WANTS => false,
            Some(before) if placed.want.references.is_subset(before) => true,
            before => {
                let mut names = before.cloned().unwrap_or_default();
                names.extend(placed.want.references.iter().cloned());
                self.has_room_for(image, &names)
            }
        }
    }

    /// Whether hosts can report all names, where the image has these.
    pub(super) fn has_room_for(&self, image: &Digest, names: &BTreeSet<String>) -> bool {
        let others = self.wants.iter().filter(|(other, _)| *other != image);
        let others = others.flat_map(|(_, wanted)| &wanted.want.references);
        let bytes: usize = others.chain(names).map(String::len).sum();
        bytes <= MAX_NAME_BYTES
    }

    fn place_one(&mut self, now: Moment, image: Digest, placed: Placed) {
        let Placed { want, held } = placed;
        let references = want.references.iter();
        let placement = Placement {
            references: references
                .map(|reference| (reference.clone(), want.asked_ms_of(reference)))
                .collect(),
            hosts: want.hosts.clone(),
            held,
        };
        self.claims.place(image, placement);
        match self.wants.get_mut(&image) {
            None => {
                info!(%image, references = ?want.references, "image is wanted by the cluster");
                // the first that the cluster says after a start was wanted before it, nobody knows since when
                let timing = match self.placed {
                    true => Timing::New,
                    false => Timing::Unknown,
                };
                self.begin(now, Want { timing, ..want });
                self.token_due_if_handed_down(now, &image);
            }
            Some(wanted) if wanted.want.secrets != want.secrets => {
                wanted.want.secrets = want.secrets;
                wanted.token_due = self.registries.hands_down(&wanted.want).then_some(now);
            }
            Some(_) => {}
        }
    }

    /// Takes up what the cluster wants beyond the most images, where there is room by now.
    pub(super) fn place_waiting(&mut self, now: Moment) {
        let mut placed = false;
        while let Some((image, waiting)) = self.waiting.first_key_value()
            && self.may_be_placed(image, waiting)
            && let Some((image, waiting)) = self.waiting.pop_first()
        {
            self.place_one(now, image, waiting);
            placed = true;
        }
        if placed {
            self.follow_claims(now, None);
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
}
