//! What staging an image would move, and how fast it can be at best: the facts for a prediction, and the prediction's
//! words. [`prediction`](rollout::prediction) decides.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use proto::{Digest, HostId, image::ContentKind};
use rollout::{
    prediction::{self, Bound, Content, Moved, Prediction},
    stage::sequence::{Urgency, sequence},
};

use super::{
    ask::StageError,
    hosts::Host,
    images::Wanted,
    members::Members,
    paces::registry_of,
    selection::{selected, short_of_room},
    staging::Staging,
};
use crate::{
    config::Rates,
    predicted::{Predicted, PredictedHost},
    progress::Progress,
    view::{
        BandwidthRequest, HostState, PlanReply, PlannedHost, PredictionView, RateView, ShortOfRoom,
        StagingBytes,
    },
    wants::Want,
};

/// The facts from which a prediction is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preview<'a> {
    members: &'a Members,
    staging: &'a Staging,
    rates: Rates,
    /// What each host may use; 0: no limit.
    limits: BandwidthRequest,
}

/// A rate, and how it is known.
type Known = (u64, &'static str);

impl<'a> Preview<'a> {
    /// Predicts by what the driver's parts know, and by the rates and limits that operators set.
    pub(super) const fn new(
        members: &'a Members,
        staging: &'a Staging,
        rates: Rates,
        limits: BandwidthRequest,
    ) -> Self {
        Self {
            members,
            staging,
            rates,
            limits,
        }
    }

    /// What staging this image would move, and how fast it can be at best.
    pub(super) fn of(&self, want: &Want) -> Result<PlanReply, StageError> {
        let selected = selected(
            self.members.hosts(),
            self.members.membership(),
            want.hosts.as_ref(),
        )?;
        let facts = self.facts(want, &selected);
        let registry = self.registry(want);
        let predicted = facts.predict(registry.map(|(rate, _)| rate));
        let short = match self.short(want, &selected, &predicted) {
            Ok(short) => short,
            Err(StageError::NowhereFits { hosts, .. }) => hosts,
            Err(error) => return Err(error),
        };
        // hosts and registries whose rates nobody knows
        let mut assumed = facts.clone();
        let or_assumed = |rate: &mut Option<u64>| *rate.get_or_insert(Rates::ASSUMED_LINK);
        let hosts = assumed
            .hosts
            .iter_mut()
            .zip(&selected)
            .zip(&predicted.hosts);
        let hosts = hosts.map(|((host, id), moved)| PlannedHost {
            host: id.to_string(),
            connected: host.connected,
            present: host.present,
            missing_bytes: moved.missing,
            move_bytes: moved.network(),
            bytes: bytes(*moved),
            download_bytes_per_second: or_assumed(&mut host.link),
            upload_bytes_per_second: or_assumed(&mut host.upload),
            short_of_room: short
                .iter()
                .find(|short| short.host == id.as_str())
                .cloned(),
        });
        let hosts = hosts.collect();
        let origin_rate = registry.map_or(Rates::ASSUMED_ORIGIN, |(rate, _)| rate);
        let assumed = assumed.predict(Some(origin_rate));
        Ok(PlanReply {
            digest: want.digest().to_string(),
            reference: want.references.first().cloned().unwrap_or_default(),
            raw_bytes: want.layout.content_bytes(),
            registry_bytes: want.layout.blob_bytes(),
            origin_bytes: predicted.total.registry,
            recipe: self.recipe(want).recipe_view(),
            predicted_seconds: assumed.time.map_or(0.0, |(time, _)| time.as_secs_f64()),
            bound_by: assumed
                .time
                .map(|(_, bound)| earlier_word(bound).to_owned()),
            origin_bytes_per_second: origin_rate,
            rate: self.binding(&predicted, &selected, registry),
            prediction: Some(shown(0, &predicted)),
            hosts,
        })
    }

    /// The hosts of these that have too little room for what they are predicted to write.
    ///
    /// # Errors
    /// When none of the hosts could ever hold the image.
    pub(super) fn short_of_room(
        &self,
        want: &Want,
        selected: &[HostId],
    ) -> Result<Vec<ShortOfRoom>, StageError> {
        let predicted = self.facts(want, selected).predict(None);
        self.short(want, selected, &predicted)
    }

    fn short(
        &self,
        want: &Want,
        selected: &[HostId],
        predicted: &Prediction,
    ) -> Result<Vec<ShortOfRoom>, StageError> {
        let written = predicted.hosts.iter().map(|moved| moved.written);
        let before = self.before(want, selected);
        let each = selected.iter().zip(written).zip(before);
        let each = each.map(|((host, written), before)| (host, written, before));
        short_of_room(self.members.hosts(), want, each)
    }

    /// What each of these hosts is predicted to write of unfinished images that come before this one there.
    fn before(&self, want: &Want, selected: &[HostId]) -> Vec<u64> {
        let mut before = vec![0_u64; selected.len()];
        let images = self.staging.images();
        for other in images.ids().filter_map(|image| images.get(image)) {
            let numbers = 0..selected.len();
            let numbers = numbers.filter(|at| self.comes_before(other, want, &selected[*at]));
            let numbers: Vec<usize> = numbers.collect();
            let hosts: Vec<HostId> = numbers.iter().map(|at| selected[*at].clone()).collect();
            if hosts.is_empty() {
                continue;
            }
            let predicted = self.facts(other.want(), &hosts).predict(None);
            for (at, moved) in numbers.iter().zip(&predicted.hosts) {
                before[*at] = before[*at].saturating_add(moved.written);
            }
        }
        before
    }

    /// Whether a host is to finish another image before this one, which is asked for now.
    fn comes_before(&self, other: &Wanted, want: &Want, host: &HostId) -> bool {
        let (image, theirs) = (want.digest(), other.want().digest());
        let known = self.members.hosts().get(host);
        let is_there = known.is_some_and(|known| known.is_present(&theirs));
        // an image whose names are all asked for as this one's isn't wanted any more
        let is_over = other.want().references.is_subset(&want.references);
        if theirs == image || is_there || is_over || !other.selects(host) {
            return false;
        }
        let Some(urgency) = other.urgency(host) else {
            return false;
        };
        let wanted = self.staging.images().get(&image);
        let before = wanted.and_then(|wanted| wanted.urgency(host));
        let before = before.unwrap_or(Urgency {
            asked_ms: u64::MAX,
            ..Urgency::default()
        });
        let ours = Urgency {
            priority: want.priority.unwrap_or(before.priority),
            ..before
        };
        sequence([(image, ours), (theirs, urgency)]).first() == Some(&theirs)
    }

    /// What is kept for each want whose staging has just begun.
    pub(super) fn of_new(&self) -> Vec<(Digest, Predicted)> {
        let new = self.staging.images().unpredicted().into_iter();
        let predicted = new.filter_map(|(image, at_ms)| {
            let want = self.staging.images().get(&image)?.want();
            Some((image, self.kept(want, at_ms)?))
        });
        predicted.collect()
    }

    /// What is kept of the prediction for a staging that begins at this time, in Unix milliseconds. `None` while no
    /// host is selected.
    fn kept(&self, want: &Want, at_ms: u64) -> Option<Predicted> {
        let selected = selected(
            self.members.hosts(),
            self.members.membership(),
            want.hosts.as_ref(),
        )
        .ok()?;
        let facts = self.facts(want, &selected);
        let registry = self.registry(want);
        let predicted = facts.predict(registry.map(|(rate, _)| rate));
        let image = want.digest();
        let hosts = selected.iter().zip(&predicted.hosts);
        let hosts = hosts.map(|(id, moved)| {
            let known = self
                .members
                .hosts()
                .get(id)
                .and_then(|known| known.images.get(&image));
            let now = known.map(|progress| progress.view(proto::Moment::START, id.as_str(), true));
            // the counts of an image that is gone are its last life's
            let now = now.filter(|now| now.state != HostState::Gone);
            let host = PredictedHost::new(bytes(*moved), now.as_ref());
            (id.to_string(), host)
        });
        Some(Predicted::new(shown(at_ms, &predicted), hosts.collect()))
    }

    /// What is known of the image and of these hosts.
    fn facts(&self, want: &Want, selected: &[HostId]) -> Facts {
        // a layer whose raw bytes have no digest is held as the registry stores it, and decoded onto the disk beside it
        let mut decoded: BTreeMap<Digest, u64> = BTreeMap::new();
        for layer in want.layout.layers() {
            if layer.raw.is_none() {
                let bytes = decoded.entry(layer.blob.digest).or_default();
                *bytes = layer.raw_bytes.saturating_add(*bytes);
            }
        }
        let contents = want.layout.contents().into_iter();
        let contents = contents.map(|content| Content {
            digest: content.digest,
            raw_bytes: content.geometry.size(),
            packed_bytes: match content.kind {
                ContentKind::RawLayer { blob } => blob.size,
                ContentKind::Blob => content.geometry.size(),
            },
            decoded_bytes: decoded.get(&content.digest).copied().unwrap_or(0),
        });
        let contents: Vec<Content> = contents.collect();
        let ours: BTreeSet<Digest> = contents.iter().map(|content| content.digest).collect();
        let image = want.digest();
        // most hosts hold the same images
        let mut shared = BTreeMap::new();
        let mut available = BTreeSet::new();
        for (_, known) in self
            .members
            .hosts()
            .iter()
            .filter(|(id, _)| self.members.sessions().is_open(id))
        {
            if known.is_present(&image) {
                available.clone_from(&ours);
                break;
            }
            available.extend(self.shared(want, &ours, known, &mut shared).0);
        }
        let hosts = selected.iter().map(|id| {
            let connected = self.members.sessions().is_open(id);
            let Some(known) = self.members.hosts().get(id) else {
                return prediction::Host::default();
            };
            let (here, common) = self.shared(want, &ours, known, &mut shared);
            let clones = known.volume.as_ref().and_then(|volume| volume.clones);
            prediction::Host {
                connected,
                present: known.is_present(&image),
                held_bytes: known.images.get(&image).map_or(0, Progress::held_bytes),
                here,
                in_place_bytes: if clones == Some(true) { common } else { 0 },
                link: self.link(id).map(|(rate, _)| rate),
                upload: self.upload(id, known).map(|(rate, _)| rate),
                // no host measures its disk
                disk: None,
            }
        });
        Facts {
            hosts: hosts.collect(),
            contents,
            available,
        }
    }

    /// The contents of the image that other images on a host have, and the most raw bytes that lie in their place on
    /// the disk of one of those. Images whose manifests the coordinator doesn't know are left out.
    fn shared(
        &self,
        want: &Want,
        ours: &BTreeSet<Digest>,
        known: &Host,
        of: &mut BTreeMap<Digest, (BTreeSet<Digest>, u64)>,
    ) -> (BTreeSet<Digest>, u64) {
        let image = want.digest();
        let (mut here, mut most) = (BTreeSet::new(), 0);
        let others = known.images.keys();
        for other in others.filter(|other| **other != image && known.is_present(other)) {
            let Some(wanted) = self.staging.images().get(other) else {
                continue;
            };
            let (contents, in_place) = of
                .entry(*other)
                .or_insert_with(|| common(want, ours, wanted.want()));
            here.extend(contents.iter().copied());
            most = most.max(*in_place);
        }
        (here, most)
    }

    // ---- rates ------------------------------------------------------------------------------------------------------

    /// The rate of the registry that an image comes from.
    fn registry(&self, want: &Want) -> Option<Known> {
        let set = self.rates.origin_bytes_per_second.map(|rate| (rate, "set"));
        let registry = || registry_of(want.references.first()?);
        let measured = || Some((self.staging.paces().of_registry(&registry()?)?, "measured"));
        set.or_else(measured)
    }

    /// The rate at which a host takes bytes.
    fn link(&self, host: &HostId) -> Option<Known> {
        let named = self.members.membership().fleet.hosts.get(host);
        let set = named.and_then(|entry| entry.download_bytes_per_second);
        let set = set.or(self.rates.download_bytes_per_second);
        let known = match set {
            Some(rate) => Some((rate, "set")),
            None => self
                .staging
                .paces()
                .of_host(host)
                .map(|rate| (rate, "measured")),
        };
        limited(known, self.limits.download_bytes_per_second)
    }

    /// The rate at which a host sends.
    fn upload(&self, host: &HostId, known: &Host) -> Option<Known> {
        let named = self.members.membership().fleet.hosts.get(host);
        let set = named.and_then(|entry| entry.upload_bytes_per_second);
        let reported = Some(known.upload_bytes_per_second).filter(|rate| *rate > 0);
        let known = match (set, reported, self.rates.upload_bytes_per_second) {
            (Some(rate), _, _) | (None, None, Some(rate)) => Some((rate, "set")),
            (None, Some(rate), _) => Some((rate, "reported")),
            (None, None, None) => None,
        };
        limited(known, self.limits.upload_bytes_per_second)
    }

    /// The rate that limits the predicted time. That of all uploads together has many sources, and isn't shown.
    fn binding(
        &self,
        predicted: &Prediction,
        selected: &[HostId],
        registry: Option<Known>,
    ) -> Option<RateView> {
        let known = match predicted.time?.1 {
            Bound::Registry => registry,
            Bound::Link => {
                let hosts = selected.iter().zip(&predicted.hosts);
                let open = hosts.filter(|(host, _)| self.members.sessions().is_open(host));
                let rated = open.filter_map(|(host, moved)| {
                    let (rate, by) = self.link(host)?;
                    Some((moved.network() / rate.max(1), Reverse(rate), by))
                });
                let slowest = rated.max_by_key(|(seconds, rate, _)| (*seconds, *rate));
                slowest.map(|(_, Reverse(rate), by)| (rate, by))
            }
            Bound::Uploads | Bound::Disk => None,
        };
        known.map(|(bytes_per_second, by)| RateView {
            bytes_per_second,
            known_by: by.to_owned(),
        })
    }

    /// The want with the recipe: that of the image where it is wanted already, because it stays. The fleet's own gives
    /// way to what was found in the registry.
    fn recipe<'b>(&'b self, want: &'b Want) -> &'b Want {
        let wanted = self.staging.images().get(&want.digest());
        let stays = |wanted: &&Wanted| {
            wanted.recipe().is_some() && (want.recipe.is_none() || !wanted.may_have_fleets_recipe())
        };
        wanted.filter(stays).map_or(want, Wanted::want)
    }
}

/// The arguments of a prediction.
#[derive(Clone, Debug)]
struct Facts {
    contents: Vec<Content>,
    hosts: Vec<prediction::Host>,
    available: BTreeSet<Digest>,
}

impl Facts {
    fn predict(&self, registry: Option<u64>) -> Prediction {
        prediction::predict(&self.contents, &self.hosts, &self.available, registry)
    }
}

/// The contents that another image has in common with this one, and the raw bytes of those layers that both have at the
/// same offset of their disks.
fn common(want: &Want, ours: &BTreeSet<Digest>, other: &Want) -> (BTreeSet<Digest>, u64) {
    let theirs = other.layout.contents().into_iter();
    let theirs = theirs.map(|content| content.digest);
    let contents = theirs.filter(|content| ours.contains(content)).collect();
    let raw = |want: &Want| -> BTreeMap<u64, Digest> {
        let layers = want.layout.layers().iter();
        layers
            .filter_map(|layer| Some((layer.offset, layer.raw?)))
            .collect()
    };
    let their_layers = raw(other);
    let layers = want.layout.layers().iter();
    let in_place = layers.filter(|layer| {
        let raw = layer.raw.as_ref();
        raw.is_some() && their_layers.get(&layer.offset) == raw
    });
    (contents, in_place.map(|layer| layer.raw_bytes).sum())
}

/// A rate under a limit; 0 is no limit.
fn limited(known: Option<Known>, limit: u64) -> Option<Known> {
    match (known, limit) {
        (known, 0) => known,
        (Some((rate, by)), limit) if rate <= limit => Some((rate, by)),
        (_, limit) => Some((limit, "limited")),
    }
}

fn bytes(moved: Moved) -> StagingBytes {
    StagingBytes {
        origin: moved.registry,
        peers: moved.peers,
        local: moved.local,
        written: moved.written,
    }
}

fn shown(at_ms: u64, predicted: &Prediction) -> PredictionView {
    PredictionView {
        at_ms,
        bytes: bytes(predicted.total),
        milliseconds: predicted.time.map(|(time, _)| proto::millis(time)),
        bound_by: predicted.time.map(|(_, bound)| bound.as_str().to_owned()),
        unknown: predicted
            .unknown
            .iter()
            .map(|bound| bound.as_str().to_owned())
            .collect(),
    }
}

/// The word of an earlier version for what limits the time.
const fn earlier_word(bound: Bound) -> &'static str {
    match bound {
        Bound::Registry => "origin",
        Bound::Link => "download",
        Bound::Uploads => "upload",
        Bound::Disk => "disk",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_counts_where_it_is_less_or_all_that_is_known() {
        let measured = Some((10, "measured"));
        assert_eq!(limited(measured, 0), measured);
        assert_eq!(limited(measured, 10), measured);
        assert_eq!(limited(measured, 9), Some((9, "limited")));
        assert_eq!(limited(None, 9), Some((9, "limited")));
        assert_eq!(limited(None, 0), None);
    }
}
