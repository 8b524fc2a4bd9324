//! What the driver shows of itself: views for the API, gauges for metrics, and the prediction of a plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proto::{Digest, HostId, Moment, Reason, image::ContentKind};
use rollout::stage::{
    event::Fault,
    status::{HostReason, HostStatus, ImageReason, ImageStatus, Status},
};
use tracing::info;

use super::{Driver, Host, StageError, Wanted, Write, words, writer};
use crate::{
    metrics::{self, SourceLabel, StateLabel},
    progress::Progress,
    view::{
        HostImage, HostProgress, HostState, HostView, ImageState, ImageView, LeaseView, PlanReply,
        PlannedHost, SourceBytes,
    },
    wants::Want,
};

/// What a holder says about its registry is shown for so long.
const REMARK_HOLDS: Duration = Duration::from_secs(30);
/// What is said of a host that is quarantined.
const SHUNNED: &str = "the fleet shuns it: several hosts proved that it sent false data";

/// What the driver shows: a snapshot that readers share.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Wanted images, by digest.
    pub(crate) images: BTreeMap<Digest, Arc<ImageView>>,
    /// Hosts, by id.
    pub(crate) hosts: BTreeMap<HostId, Arc<HostView>>,
    /// What the cluster wants and waits until fewer images are wanted.
    pub(crate) waiting: BTreeSet<Digest>,
    /// Whether all that was wanted before this start is among the images, as far as it is wanted still.
    pub(crate) whole: bool,
    /// Images of the cluster whose references were asked for later with other images, and those images.
    pub(crate) overruled: BTreeMap<Digest, Vec<(String, Digest)>>,
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
        view.whole = self.wants_are_known();
        for image in self.wants.keys() {
            let overruled = self.claims.overruled(image);
            if !overruled.is_empty() {
                view.overruled.insert(*image, overruled);
            }
        }
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
        for (host, revocation) in &self.membership.revoked {
            let named = self.membership.fleet.hosts.contains_key(host);
            let refusal = self.refusals.of(now, host);
            let shown = words::revoked(host, named, revocation, refusal);
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
            Some(
                ImageReason::ContentFaulty(..)
                | ImageReason::Contradicts(_)
                | ImageReason::HostsFailed,
            ) => ImageState::Failed,
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
                .map(|reason| reason.reason().into()),
            message: match image.reason {
                Some(ImageReason::ContentFaulty(content, Fault::Unavailable)) => {
                    let said = wanted.origin_said.as_ref().map(|(_, said)| said.as_str());
                    words::unavailable(layout, content, said)
                }
                Some(ImageReason::ContentFaulty(content, _)) => {
                    self.bad_contents.get(&content).cloned().unwrap_or_default()
                }
                _ if state == ImageState::Present => String::new(),
                Some(ImageReason::Moving) => {
                    let rates = status.leases.iter();
                    let rates = rates.filter(|lease| contents.contains(&lease.content));
                    let rates: Vec<u64> = rates.map(|lease| lease.bytes_per_s).collect();
                    let remark = wanted.origin_remark.as_ref();
                    let remark = remark.filter(|(at, _)| now.since(*at) < REMARK_HOLDS);
                    words::limits(&rates, remark.map(|(_, said)| said.as_str()))
                }
                _ => self.image_words(now, wanted, image),
            },
            disk_bytes: layout.disk_bytes(),
            raw_bytes: layout.content_bytes(),
            registry_bytes: layout.blob_bytes(),
            contents: image.contents as u64,
            contents_done: image.contents_done as u64,
            hosts_selected: hosts.len() as u64,
            hosts_present,
            hosts_failed: count(HostState::Failed),
            wanted_at: wanted.want.wanted_at,
            staged_seconds: wanted.took.told().map(|took| took.as_secs_f64()),
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

    fn image_words(&self, now: Moment, wanted: &Wanted, image: &ImageStatus) -> String {
        let lacking = image.hosts.iter().filter(|host| {
            matches!(
                host.reason,
                Some(HostReason::Disconnected | HostReason::Quarantined)
            )
        });
        let away: Vec<_> = lacking
            .map(|host| {
                let known = self.hosts.get(&host.host);
                let lost_at = known.and_then(|known| known.lost_at);
                (host.host.clone(), words::since(now, lost_at))
            })
            .collect();
        let said = wanted.origin_said.as_ref().map(|(_, said)| said.as_str());
        words::image(image, said.filter(|said| !said.is_empty()), &away)
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
        let present = known.is_some_and(|known| Self::is_present(known, image));
        match status.reason {
            None if present => shown.state = HostState::Present,
            // it holds the image, and not yet under a name that was asked for later, or it hasn't looked since
            None if connected => {
                shown.state = HostState::Installing;
                let named = known.is_some_and(|known| {
                    let ready = known.word.said.get(image);
                    let mut names = known.told.references(image);
                    names.all(|name| ready.is_some_and(|ready| ready.contains(name)))
                });
                let reason = match named {
                    true => Reason::Confirming,
                    false => Reason::Installing,
                };
                shown.reason.get_or_insert_with(|| reason.into());
            }
            // it did before it was asked for again, and can't say whether it does
            None => {
                shown.state = HostState::Waiting;
                shown.presence_age_ms = None;
                shown.reason = Some(Reason::Disconnected.into());
            }
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
                    shown.reason = Some(reason.reason().into());
                }
                if reason == HostReason::Quarantined {
                    shown.message = SHUNNED.to_owned();
                }
            }
        }
        if !connected {
            let lost_at = known.and_then(|known| known.lost_at);
            let enrolled = self.membership.enrolled.contains_key(&status.host);
            shown.message = words::away(words::since(now, lost_at), enrolled);
        }
        shown
    }

    /// Notes when an image has come to be everywhere.
    fn note_staged(&mut self, now: Moment, view: &mut View) {
        // a restart neither counts it again nor forgets how long it took
        let mut staged = Vec::new();
        for (image, shown) in &mut view.images {
            let Some(wanted) = self.wants.get_mut(image) else {
                continue;
            };
            if shown.state != ImageState::Present {
                continue;
            }
            let Some(took) = wanted.took.everywhere(now) else {
                continue;
            };
            self.metrics.stage_seconds.observe(took.as_secs_f64());
            let reference = wanted.want.references.first().map_or("", String::as_str);
            info!(%image, reference, hosts = shown.hosts_present, elapsed_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX), "image is staged everywhere");
            Arc::make_mut(shown).staged_seconds = Some(took.as_secs_f64());
            staged.push(*image);
        }
        for want in staged.iter().filter_map(|image| self.asked_want(image)) {
            self.keep(Write::Want(Box::new(want), writer::Answer::none()));
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
            let registry = matches!(
                image.reason,
                Some(ImageReason::OriginDown | ImageReason::OriginThrottled)
            );
            if shown.progress.state != HostState::Present
                && registry
                && let Some(wanted) = found
            {
                let words = self.image_words(now, wanted, image);
                origins.push(format!("{}: {words}", words::name(&shown)));
            }
            images.insert(image.image, shown);
        }
        let mut why = Vec::new();
        let refusal = self.refusals.of(now, host);
        if known.session.is_none() {
            let since = words::since(now, known.lost_at);
            let enrolled = self.membership.enrolled.contains_key(host);
            why.extend(words::no_session(host, since, enrolled, refusal.as_ref()));
        }
        if known.session.is_some() && !self.signs_links(host) {
            why.push(words::old_version(&known.version));
        }
        if quarantined {
            why.push(SHUNNED.to_owned());
        }
        for image in images.values().filter(|image| image.wanted) {
            if image.progress.state != HostState::Present {
                why.push(words::not_present(image));
            }
        }
        why.extend(origins);
        HostView {
            host: host.to_string(),
            zone: known.zone.clone(),
            named: self.membership.fleet.hosts.contains_key(host),
            connected: known.session.is_some(),
            never_enrolled: known.session.is_none()
                && known.lost_at.is_none()
                && !self.membership.enrolled.contains_key(host),
            revoked: false,
            revocation: None,
            refusal,
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
            .fold(0, u64::saturating_add)
    }
}

/// The least time in which the hosts can have what they lack, and what bounds it.
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
        // what hosts and registries say may be anything
        let most = vec![planned(u64::MAX, u64::MAX, u64::MAX); 3];
        assert_eq!(bound(u64::MAX, u64::MAX, &most).0, Duration::from_secs(1));
        let mut gone = planned(100, 1, 1);
        gone.connected = false;
        assert_eq!(bound(0, 10, &[gone]).1, None);
    }
}
