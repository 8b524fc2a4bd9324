//! What staging an image would move, and how fast it can be at best.

use std::{collections::BTreeSet, time::Duration};

use proto::{Digest, image::ContentKind};

use super::{
    ask::StageError,
    hosts::{Host, Hosts},
    images::{Images, Wanted},
    selection::{selected, short_of_room},
    sessions::Sessions,
};
use crate::{
    config::Config,
    fleet::Membership,
    progress::Progress,
    view::{PlanReply, PlannedHost},
    wants::Want,
};

/// The facts from which a prediction is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preview<'a> {
    pub(super) membership: &'a Membership,
    pub(super) hosts: &'a Hosts,
    pub(super) sessions: &'a Sessions,
    pub(super) images: &'a Images,
}

impl Preview<'_> {
    /// What staging this image would move, and how fast it can be at best. The least time is max(F / origin, F /
    /// slowest download, N·F / (origin + Σ uploads)), where each host counts only the bytes that it lacks in place of
    /// F.
    pub(super) fn of(&self, config: &Config, want: &Want) -> Result<PlanReply, StageError> {
        let selected = selected(self.hosts, self.membership, want.hosts.as_ref())?;
        let short = match short_of_room(self.hosts, want, &selected) {
            Ok(short) => short,
            Err(StageError::NowhereFits { hosts, .. }) => hosts,
            Err(error) => return Err(error),
        };
        let origin_rate = config.rates.origin_bytes_per_second;
        let hosts: Vec<PlannedHost> = selected
            .iter()
            .filter_map(|host| {
                let known = self.hosts.get(host)?;
                let (missing_bytes, move_bytes, present) = self.missing(want, known);
                let named = self.membership.fleet.hosts.get(host);
                let rates = config.rates;
                let reported = Some(known.upload_bytes_per_second).filter(|rate| *rate > 0);
                Some(PlannedHost {
                    host: host.to_string(),
                    connected: self.sessions.is_open(host),
                    present,
                    missing_bytes,
                    move_bytes,
                    download_bytes_per_second: named
                        .and_then(|entry| entry.download_bytes_per_second)
                        .unwrap_or(rates.download_bytes_per_second),
                    upload_bytes_per_second: named
                        .and_then(|entry| entry.upload_bytes_per_second)
                        .or(reported)
                        .unwrap_or(rates.upload_bytes_per_second),
                    short_of_room: short
                        .iter()
                        .find(|short| short.host == host.as_str())
                        .cloned(),
                })
            })
            .collect();
        let origin_bytes = self.origin_bytes(want);
        let (predicted, bound_by) = bound(origin_bytes, origin_rate, &hosts);
        Ok(PlanReply {
            digest: want.digest().to_string(),
            reference: want.references.first().cloned().unwrap_or_default(),
            raw_bytes: want.layout.content_bytes(),
            registry_bytes: want.layout.blob_bytes(),
            origin_bytes,
            recipe: self.recipe(want).recipe_view(),
            predicted_seconds: predicted.as_secs_f64(),
            bound_by: bound_by.map(ToOwned::to_owned),
            origin_bytes_per_second: origin_rate,
            hosts,
        })
    }

    /// The want with the recipe: that of the image where it is wanted already, because it stays.
    fn recipe<'b>(&'b self, want: &'b Want) -> &'b Want {
        let wanted = self.images.get(&want.digest());
        let wanted = wanted.map(Wanted::want);
        wanted
            .filter(|wanted| wanted.recipe.is_some())
            .unwrap_or(want)
    }

    /// The raw and the compressed bytes of the contents that no image on the host has, and whether the image is
    /// present.
    fn missing(&self, want: &Want, known: &Host) -> (u64, u64, bool) {
        if known.is_present(&want.digest()) {
            return (0, 0, true);
        }
        let here = self.contents_on(known);
        let mut sums = (0u64, 0u64);
        for content in want.layout.contents() {
            if here.contains(&content.digest) {
                continue;
            }
            sums.0 = sums.0.saturating_add(content.geometry.size());
            sums.1 = sums.1.saturating_add(match content.kind {
                ContentKind::RawLayer { blob } => blob.size,
                ContentKind::Blob => content.geometry.size(),
            });
        }
        // Subtract what the host holds of the image already. Only the host knows which chunks those are, so the bytes
        // are spread evenly over the contents.
        let held = known.images.get(&want.digest());
        let held = held.map_or(0, Progress::held_bytes).min(sums.0);
        let left = sums.0 - held;
        let moved = u128::from(sums.1) * u128::from(left) / u128::from(sums.0.max(1));
        (left, u64::try_from(moved).unwrap_or(u64::MAX), false)
    }

    /// The contents of the images that are present on a host. Images whose manifests the coordinator doesn't know are
    /// left out.
    fn contents_on(&self, known: &Host) -> BTreeSet<Digest> {
        let present = known.images.keys().filter(|image| known.is_present(image));
        present
            .filter_map(|image| self.images.get(image))
            .flat_map(|wanted| wanted.want().layout.contents())
            .map(|content| content.digest)
            .collect()
    }

    /// The compressed bytes of the contents that no connected host has: these have to come from the registry.
    fn origin_bytes(&self, want: &Want) -> u64 {
        let hosts = self.hosts.iter();
        let connected = hosts.filter(|(host, _)| self.sessions.is_open(host));
        let mut here = BTreeSet::new();
        for (_, known) in connected {
            if known.is_present(&want.digest()) {
                return 0;
            }
            here.extend(self.contents_on(known));
        }
        let contents = want.layout.contents();
        let missing = contents
            .iter()
            .filter(|content| !here.contains(&content.digest));
        missing
            .map(|content| match content.kind {
                ContentKind::RawLayer { blob } => blob.size,
                ContentKind::Blob => content.geometry.size(),
            })
            .fold(0, u64::saturating_add)
    }
}

/// The least time in which the connected hosts can get what they lack, and the name of what bounds it.
fn bound(
    origin_bytes: u64,
    origin_rate: u64,
    hosts: &[PlannedHost],
) -> (Duration, Option<&'static str>) {
    let lacking = hosts.iter().filter(|host| host.connected);
    let sum = |of: fn(&PlannedHost) -> u64| lacking.clone().map(of).fold(0, u64::saturating_add);
    let moved = sum(|host| host.move_bytes);
    let uploads = sum(|host| host.upload_bytes_per_second);
    let seconds = |bytes: u64, rate: u64| {
        let millis = u128::from(bytes) * 1_000 / u128::from(rate.max(1));
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    };
    let download = lacking
        .map(|host| seconds(host.move_bytes, host.download_bytes_per_second))
        .max()
        .unwrap_or_default();
    let bounds = [
        (seconds(origin_bytes.min(moved), origin_rate), "origin"),
        (download, "download"),
        (
            seconds(moved, origin_rate.saturating_add(uploads)),
            "upload",
        ),
    ];
    let (longest, name) = bounds
        .into_iter()
        .max_by_key(|(time, _)| *time)
        .unwrap_or_default();
    (longest, (!longest.is_zero()).then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(move_bytes: u64, download: u64, upload: u64) -> PlannedHost {
        PlannedHost {
            host: "h".into(),
            connected: true,
            present: false,
            missing_bytes: move_bytes,
            move_bytes,
            download_bytes_per_second: download,
            upload_bytes_per_second: upload,
            short_of_room: None,
        }
    }

    #[test]
    fn the_bound_is_the_slowest_of_origin_download_and_all_uploads() {
        let equal = vec![planned(100, 10, 10); 4];
        assert_eq!(
            bound(100, 10, &equal),
            (Duration::from_secs(10), Some("download"))
        );
        assert_eq!(
            bound(100, 5, &equal),
            (Duration::from_secs(20), Some("origin"))
        );
        let weak = vec![planned(100, 10, 1); 4];
        assert_eq!(bound(100, 12, &weak).1, Some("upload"));
        assert_eq!(bound(0, 10, &[planned(0, 10, 10)]), (Duration::ZERO, None));
        // hosts and registries may say any number
        let most = vec![planned(u64::MAX, u64::MAX, u64::MAX); 3];
        assert_eq!(bound(u64::MAX, u64::MAX, &most).0, Duration::from_secs(1));
        let mut gone = planned(100, 1, 1);
        gone.connected = false;
        assert_eq!(bound(0, 10, &[gone]).1, None);
    }
}
