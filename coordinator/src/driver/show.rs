//! What the driver shows of itself: views for the API, gauges for metrics, and the prediction of a plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proto::{Digest, HostId, Moment, image::ContentKind};
use rollout::stage::status::{HostReason, HostStatus, ImageReason, ImageStatus, Status};
use tracing::info;

use super::{Driver, Host, StageError, Wanted};
use crate::{
    metrics::{self, SourceLabel, StateLabel},
    progress::Progress,
    view::{
        HostImage, HostProgress, HostState, HostView, ImageState, ImageView, LeaseView, PlanReply,
        PlannedHost, SourceBytes,
    },
    wants::Want,
};

/// What the driver shows: a snapshot that readers share.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Wanted images, by digest.
    pub(crate) images: BTreeMap<Digest, Arc<ImageView>>,
    /// Hosts, by id.
    pub(crate) hosts: BTreeMap<HostId, Arc<HostView>>,
    /// What the cluster wants and waits until fewer images are wanted.
    pub(crate) waiting: BTreeSet<Digest>,
}

impl Driver {
    /// Publishes a fresh view and sets the gauges.
    pub(super) fn show(&mut self, now: Moment) {
        let status = self.plan.status(now);
        self.shun(status.quarantined.iter().cloned().collect());
        let mut view = View::default();
        for image in &status.images {
            if let Some(shown) = self.image_view(now, image, &status) {
                view.images.insert(image.image, Arc::new(shown));
            }
        }
        view.waiting = self.waiting.keys().copied().collect();
        self.note_staged(now, &mut view);
        let mut by_host: BTreeMap<&HostId, Vec<(&ImageStatus, &HostStatus)>> = BTreeMap::new();
        // what clients of mirrors wait for isn't an image
        let images = status.images.iter();
        for image in images.filter(|image| self.wants.contains_key(&image.image)) {
            for host in &image.hosts {
                by_host.entry(&host.host).or_default().push((image, host));
            }
        }
        for (host, known) in &self.hosts {
            let wanted = by_host.remove(host).unwrap_or_default();
            let shown = self.host_view(now, host, known, &wanted);
            view.hosts.insert(host.clone(), Arc::new(shown));
        }
        for host in &self.membership.revoked {
            let shown = revoked_view(host, self.membership.fleet.hosts.contains_key(host));
            view.hosts.insert(host.clone(), Arc::new(shown));
        }
        self.measure(&view, &status);
        self.publish.send_replace(Arc::new(view));
    }

    /// One image as it stands at this moment.
    pub(super) fn show_image(&mut self, now: Moment, image: &Digest) -> Option<ImageView> {
        let status = self.plan.status(now);
        let found = status.images.iter().find(|found| found.image == *image)?;
        self.image_view(now, found, &status)
    }

    fn image_view(&self, now: Moment, image: &ImageStatus, status: &Status) -> Option<ImageView> {
        let wanted = self.wants.get(&image.image)?;
        let layout = &wanted.want.layout;
        let hosts: Vec<HostProgress> = image
            .hosts
            .iter()
            .map(|host| self.placement(now, &image.image, host))
            .collect();
        let count = |state| hosts.iter().filter(|host| host.state == state).count() as u64;
        let hosts_present = count(HostState::Present);
        let state = match image.reason {
            _ if !hosts.is_empty() && hosts_present == hosts.len() as u64 => ImageState::Present,
            Some(ImageReason::ContentBad(_) | ImageReason::HostsFailed) => ImageState::Failed,
            _ => ImageState::Staging,
        };
        let contents: BTreeSet<Digest> = layout
            .contents()
            .iter()
            .map(|content| content.digest)
            .collect();
        let leases = status.leases.iter();
        let leases = leases.filter(|lease| contents.contains(&lease.content));
        Some(ImageView {
            digest: image.image.to_string(),
            references: wanted.want.references.iter().cloned().collect(),
            state,
            reason: image
                .reason
                .filter(|_| state != ImageState::Present)
                .map(|reason| reason.as_str().to_owned()),
            message: match image.reason {
                Some(ImageReason::ContentBad(content)) => {
                    self.bad_contents.get(&content).cloned().unwrap_or_default()
                }
                _ => origin_message(wanted, image).unwrap_or_default(),
            },
            raw_bytes: layout.content_bytes(),
            registry_bytes: layout.blob_bytes(),
            contents: image.contents as u64,
            contents_done: image.contents_done as u64,
            hosts_selected: hosts.len() as u64,
            hosts_present,
            hosts_failed: count(HostState::Failed),
            wanted_at: wanted.want.wanted_at,
            staged_seconds: wanted.staged.map(|took| took.as_secs_f64()),
            hosts,
            leases: leases
                .map(|lease| LeaseView {
                    content: lease.content.to_string(),
                    host: lease.host.to_string(),
                    chunks: lease.chunks,
                    idle_ms: u64::try_from(lease.idle.as_millis()).unwrap_or(u64::MAX),
                })
                .collect(),
        })
    }

    fn placement(&self, now: Moment, image: &Digest, status: &HostStatus) -> HostProgress {
        let known = self.hosts.get(&status.host);
        let connected = known.is_some_and(|known| known.session.is_some());
        let mut shown = known.and_then(|known| known.images.get(image)).map_or_else(
            || Progress::new().view(now, status.host.as_str(), connected),
            |progress| progress.view(now, status.host.as_str(), connected),
        );
        if shown.total_bytes == 0 {
            let wanted = self.wants.get(image);
            shown.total_bytes = wanted.map_or(0, |wanted| wanted.want.layout.content_bytes());
        }
        let named = self.wants.get(image).is_none_or(|wanted| {
            let ready = known.and_then(|known| known.word.holdings.get(image));
            ready.is_none_or(|ready| wanted.want.references.is_subset(ready))
        });
        match status.reason {
            // it holds the image, and not yet under a name that was asked for later
            None if connected && !named => {
                shown.state = HostState::Installing;
                let reason = HostReason::Installing.as_str();
                shown.reason.get_or_insert_with(|| reason.to_owned());
            }
            None => shown.state = HostState::Present,
            Some(reason) => {
                // What the plan doesn't count as present isn't shown as present: its word came from a lost session.
                if shown.state == HostState::Present || !connected {
                    shown.state = HostState::Waiting;
                    shown.presence_age_ms = None;
                    shown.eta_seconds = None;
                }
                let own = matches!(
                    reason,
                    HostReason::Failed
                        | HostReason::Staging
                        | HostReason::Queued
                        | HostReason::Installing
                );
                if !own || shown.reason.is_none() {
                    shown.reason = Some(reason.as_str().to_owned());
                }
            }
        }
        shown
    }

    /// Notes when an image has come to be everywhere.
    fn note_staged(&mut self, now: Moment, view: &mut View) {
        for (image, shown) in &mut view.images {
            let Some(wanted) = self.wants.get_mut(image) else {
                continue;
            };
            if shown.state == ImageState::Present && wanted.staged.is_none() {
                let took = now.since(wanted.changed_at);
                wanted.staged = Some(took);
                self.metrics.stage_seconds.observe(took.as_secs_f64());
                info!(%image, hosts = shown.hosts_present, elapsed_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX), "image is staged everywhere");
                Arc::make_mut(shown).staged_seconds = Some(took.as_secs_f64());
            }
        }
    }

    fn host_view(
        &self,
        now: Moment,
        host: &HostId,
        known: &Host,
        wanted: &[(&ImageStatus, &HostStatus)],
    ) -> HostView {
        let quarantined = self.quarantined.contains(host);
        let mut images: BTreeMap<Digest, HostImage> = known
            .images
            .iter()
            .map(|(image, progress)| {
                let shown = HostImage {
                    digest: image.to_string(),
                    references: known.references.get(image).cloned().into_iter().collect(),
                    wanted: false,
                    progress: progress.view(now, host.as_str(), known.session.is_some()),
                };
                (*image, shown)
            })
            .collect();
        let mut origins = Vec::new();
        for (image, status) in wanted {
            let found = self.wants.get(&image.image);
            let references = found.map(|wanted| &wanted.want.references);
            let shown = HostImage {
                digest: image.image.to_string(),
                references: references.into_iter().flatten().cloned().collect(),
                wanted: true,
                progress: self.placement(now, &image.image, status),
            };
            if shown.progress.state != HostState::Present
                && let Some(words) = found.and_then(|wanted| origin_message(wanted, image))
            {
                origins.push(format!("{}: {words}", name(&shown)));
            }
            images.insert(image.image, shown);
        }
        let mut why = Vec::new();
        if known.session.is_none() {
            why.push(known.lost_at.map_or_else(
                || "has had no session since the coordinator started; is its agent running and enrolled?".to_owned(),
                |lost| format!("its session was lost {} s ago", now.since(lost).as_secs()),
            ));
        }
        if quarantined {
            why.push("the fleet shuns it: several hosts proved that it sent false data".to_owned());
        }
        for image in images.values().filter(|image| image.wanted) {
            if image.progress.state != HostState::Present {
                why.push(why_not(image));
            }
        }
        why.extend(origins);
        HostView {
            host: host.to_string(),
            zone: known.zone.clone(),
            named: self.membership.fleet.hosts.contains_key(host),
            connected: known.session.is_some(),
            revoked: false,
            quarantined,
            address: known.place.as_ref().map(|place| place.address.to_string()),
            version: known.version.clone(),
            volume: known.volume.clone(),
            backlog_bytes: known.backlog_bytes,
            upload_bytes_per_second: known.upload_bytes_per_second,
            blames: known.blames,
            images: images.into_values().collect(),
            why,
        }
    }

    fn measure(&self, view: &View, status: &Status) {
        let gauge = |family: &prometheus_client::metrics::family::Family<StateLabel, _>,
                     state,
                     value: usize| {
            let gauge: &prometheus_client::metrics::gauge::Gauge =
                &family.get_or_create(&StateLabel { state });
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        let connected = self.hosts.values().filter(|known| known.session.is_some());
        let connected = connected.count();
        gauge(&self.metrics.hosts, "connected", connected);
        gauge(
            &self.metrics.hosts,
            "disconnected",
            self.hosts.len() - connected,
        );
        gauge(&self.metrics.hosts, "quarantined", self.quarantined.len());
        gauge(
            &self.metrics.hosts,
            "revoked",
            self.membership.revoked.len(),
        );
        for state in [ImageState::Staging, ImageState::Present, ImageState::Failed] {
            let images = view.images.values().filter(|image| image.state == state);
            gauge(
                &self.metrics.images,
                metrics::image_state(state),
                images.count(),
            );
        }
        let placements = || view.images.values().flat_map(|image| &image.hosts);
        for state in metrics::HOST_STATES {
            let count = placements().filter(|host| host.state == state).count();
            gauge(&self.metrics.placements, state.as_str(), count);
        }
        let leases = i64::try_from(status.leases.len()).unwrap_or(i64::MAX);
        self.metrics.leases.set(leases);
        let wanted = view.images.values().map(|image| image.registry_bytes).sum();
        self.metrics.wanted_bytes.set(wanted);
        let bytes = view.images.values().map(|image| image.bytes());
        let bytes = bytes.fold(SourceBytes::default(), |sum, bytes| SourceBytes {
            origin: sum.origin.saturating_add(bytes.origin),
            peers: sum.peers.saturating_add(bytes.peers),
            local: sum.local.saturating_add(bytes.local),
        });
        for (source, value) in [
            ("origin", bytes.origin),
            ("peers", bytes.peers),
            ("local", bytes.local),
        ] {
            self.metrics
                .bytes
                .get_or_create(&SourceLabel { source })
                .set(value);
        }
    }

    /// What staging this would move, and how fast it can be at best: max(F / origin, F / slowest download,
    /// N·F / (origin + Σ uploads)), with the bytes that each host lacks in the place of F.
    pub(super) fn preview(&self, want: &Want) -> Result<PlanReply, StageError> {
        let selected = self.selected(want.hosts.as_ref())?;
        let short = match self.short_of_room(want, &selected) {
            Ok(short) => short,
            Err(StageError::NowhereFits { hosts, .. }) => hosts,
            Err(error) => return Err(error),
        };
        let origin_rate = self.config.rates.origin_bytes_per_second;
        let hosts: Vec<PlannedHost> = selected
            .iter()
            .filter_map(|host| {
                let known = self.hosts.get(host)?;
                let (missing_bytes, move_bytes, present) = self.missing(want, known);
                let named = self.membership.fleet.hosts.get(host);
                let rates = self.config.rates;
                let reported = Some(known.upload_bytes_per_second).filter(|rate| *rate > 0);
                Some(PlannedHost {
                    host: host.to_string(),
                    connected: known.session.is_some(),
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
            predicted_seconds: predicted.as_secs_f64(),
            bound_by: bound_by.map(ToOwned::to_owned),
            origin_bytes_per_second: origin_rate,
            hosts,
        })
    }

    /// Raw and compressed bytes of the contents that no image on the host has, and whether the image is present.
    fn missing(&self, want: &Want, known: &Host) -> (u64, u64, bool) {
        let progress = known.images.get(&want.digest());
        if progress.is_some_and(|progress| progress.state == HostState::Present) {
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
        // What was staged of it already, spread evenly: which chunks those are only the host knows.
        let held = progress.map_or(0, Progress::held_bytes).min(sums.0);
        let left = sums.0 - held;
        let moved = u128::from(sums.1) * u128::from(left) / u128::from(sums.0.max(1));
        (left, u64::try_from(moved).unwrap_or(u64::MAX), false)
    }

    /// Contents of the images that are present on a host, as far as their manifests are known here.
    fn contents_on(&self, known: &Host) -> BTreeSet<Digest> {
        let present = known.images.iter();
        let present = present.filter(|(_, progress)| progress.state == HostState::Present);
        present
            .filter_map(|(image, _)| self.wants.get(image))
            .flat_map(|wanted: &Wanted| wanted.want.layout.contents())
            .map(|content| content.digest)
            .collect()
    }

    /// Compressed bytes of the contents that no connected host has.
    fn origin_bytes(&self, want: &Want) -> u64 {
        let connected = self.hosts.values().filter(|known| known.session.is_some());
        let mut here = BTreeSet::new();
        for known in connected {
            let progress = known.images.get(&want.digest());
            if progress.is_some_and(|progress| progress.state == HostState::Present) {
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
            .sum()
    }
}

/// What is to be said about an image's registry while it is left alone: the last holder's words, and until when.
fn origin_message(wanted: &Wanted, image: &ImageStatus) -> Option<String> {
    let reason = image.reason?;
    if !matches!(
        reason,
        ImageReason::OriginDown | ImageReason::OriginThrottled
    ) {
        return None;
    }
    let words = if wanted.origin_words.is_empty() {
        "the registry fails"
    } else {
        wanted.origin_words.as_str()
    };
    Some(match image.origin_retry_in {
        Some(left) => format!(
            "{} ({words}); it is asked again in {} s",
            reason.as_str(),
            left.as_millis().div_ceil(1_000)
        ),
        None => format!(
            "{} ({words}); one host tries whether it is back",
            reason.as_str()
        ),
    })
}

fn name(image: &HostImage) -> &str {
    image.references.first().unwrap_or(&image.digest)
}

fn why_not(image: &HostImage) -> String {
    let name = name(image);
    let progress = &image.progress;
    let reason = progress.reason.as_deref().unwrap_or("unknown");
    let mut text = format!("{name}: {} ({reason})", progress.state.as_str());
    if progress.total_bytes > 0 && progress.held_bytes > 0 {
        text.push_str(&format!(
            ", {} of {} bytes",
            progress.held_bytes, progress.total_bytes
        ));
    }
    if !progress.message.is_empty() {
        text.push_str(": ");
        text.push_str(&progress.message);
    }
    text
}

fn revoked_view(host: &HostId, named: bool) -> HostView {
    HostView {
        host: host.to_string(),
        zone: String::new(),
        named,
        connected: false,
        revoked: true,
        quarantined: false,
        address: None,
        version: String::new(),
        volume: None,
        backlog_bytes: 0,
        upload_bytes_per_second: 0,
        blames: 0,
        images: Vec::new(),
        why: vec![format!(
            "it is revoked; `parbake-coordinator readmit {host}` takes that back"
        )],
    }
}

/// The least time in which the hosts can have what they lack, and what bounds it.
fn bound(
    origin_bytes: u64,
    origin_rate: u64,
    hosts: &[PlannedHost],
) -> (Duration, Option<&'static str>) {
    let lacking = hosts.iter().filter(|host| host.connected);
    let moved: u64 = lacking.clone().map(|host| host.move_bytes).sum();
    let uploads: u64 = lacking
        .clone()
        .map(|host| host.upload_bytes_per_second)
        .sum();
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
        let mut gone = planned(100, 1, 1);
        gone.connected = false;
        assert_eq!(bound(0, 10, &[gone]).1, None);
    }
}
