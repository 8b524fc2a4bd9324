//! What the driver shows of itself: views for the API, and gauges for metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proto::{Digest, HostId, Moment, Reason};
use rollout::stage::{
    event::Fault,
    status::{HostReason, HostStatus, ImageReason, ImageStatus, LeaseStatus, Status},
};
use tokio::sync::watch;

use super::{
    blames::Blames,
    hosts::{Host, Hosts},
    images::Images,
    leases::Leases,
    presence::Presence,
    refusals::Refusals,
    rosters::Rosters,
    sessions::Sessions,
    words,
};
use crate::{
    fleet::Membership,
    metrics::{HOST_STATES, KindLabel, Metrics, SourceLabel, StateLabel, image_state},
    progress::Progress,
    view::{
        HostImage, HostProgress, HostState, HostView, ImageState, ImageView, LeaseView, RangeView,
        SourceBytes, StagingBytes,
    },
};

/// The shortest time between two views, except those that are published at once after an ask.
const PUBLISH_EVERY: Duration = Duration::from_millis(250);
/// The time between two views when nothing happens: ages and rates change with time alone.
const PUBLISH_AGES: Duration = Duration::from_secs(1);
/// The sentence about a quarantined host. The accusers' words or the host's own signatures convict it.
const SHUNNED: &str = "the fleet shuns it for an hour: it sent false data, by the word of several hosts or by two proofs of \
                       its own that contradict each other; check its disk and memory";

/// What the driver shows: a snapshot that readers share.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Wanted images, by digest.
    pub(crate) images: BTreeMap<Digest, Arc<ImageView>>,
    /// Hosts, by id.
    pub(crate) hosts: BTreeMap<HostId, Arc<HostView>>,
    /// Images that the cluster wants and that wait until fewer images are wanted, or shorter names.
    pub(crate) waiting: BTreeSet<Digest>,
    /// Whether `images` has everything that was wanted before this start and is still wanted.
    pub(crate) whole: bool,
    /// The references of an image that a later ask wants for another image, and that other image.
    pub(crate) overruled: BTreeMap<Digest, Vec<(String, Digest)>>,
}

/// The channel to which views are published, and when the next one is due.
#[derive(Debug)]
pub(super) struct Views {
    publish: watch::Sender<Arc<View>>,
    /// Whether anything has happened since the view was last published.
    stale: bool,
    next: Moment,
}

impl Views {
    pub(super) const fn new(publish: watch::Sender<Arc<View>>) -> Self {
        Self {
            publish,
            stale: true,
            next: Moment::START,
        }
    }

    /// Where something happened, the next view will differ.
    pub(super) const fn outdate_if(&mut self, happened: bool) {
        self.stale |= happened;
    }

    /// The next view may be published at once.
    #[cfg(test)]
    pub(super) const fn hurry(&mut self) {
        self.next = Moment::START;
    }

    /// When a view is due.
    pub(super) fn due(&self) -> Moment {
        match self.stale {
            true => self.next,
            false => self.next + PUBLISH_AGES,
        }
    }

    /// Whether a view may be published now. After `true`, the view counts as published.
    pub(super) fn take_due(&mut self, now: Moment) -> bool {
        let due = self.due() <= now;
        if due {
            self.next = now + PUBLISH_EVERY;
            self.stale = false;
        }
        due
    }

    pub(super) fn publish(&self, view: View) {
        self.publish.send_replace(Arc::new(view));
    }
}

/// Everything that is known, for reading.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) now: Moment,
    pub(super) membership: &'a Membership,
    pub(super) hosts: &'a Hosts,
    pub(super) sessions: &'a Sessions,
    pub(super) presence: &'a Presence,
    pub(super) images: &'a Images,
    pub(super) leases: &'a Leases,
    pub(super) rosters: &'a Rosters,
    pub(super) blames: &'a Blames,
    pub(super) refusals: &'a Refusals,
}

impl Facts<'_> {
    /// A fresh view. `status` is the plan's.
    pub(super) fn view(&self, status: &Status) -> View {
        let mut view = View {
            waiting: self.images.waiting(),
            whole: self.images.are_known(),
            ..View::default()
        };
        // the blobs of mirrors are images in the plan only; they aren't shown
        let images = status.images.iter();
        let images = images.filter(|image| self.images.contains(&image.image));
        let mut by_host: BTreeMap<&HostId, Vec<(&ImageStatus, &HostStatus)>> = BTreeMap::new();
        for image in images {
            if let Some(shown) = self.image(image, status) {
                view.images.insert(image.image, Arc::new(shown));
            }
            for host in &image.hosts {
                by_host.entry(&host.host).or_default().push((image, host));
            }
        }
        for image in self.images.ids() {
            let overruled = self.images.overruled(image);
            if !overruled.is_empty() {
                view.overruled.insert(*image, overruled);
            }
        }
        for (host, known) in self.hosts.iter() {
            let wanted = by_host.remove(host).unwrap_or_default();
            let shown = self.host(host, known, &wanted);
            view.hosts.insert(host.clone(), Arc::new(shown));
        }
        for (host, revocation) in &self.membership.revoked {
            let named = self.membership.fleet.hosts.contains_key(host);
            let refusal = self.refusals.of(self.now, host);
            let shown = words::revoked(host, named, revocation, refusal);
            view.hosts.insert(host.clone(), Arc::new(shown));
        }
        view
    }

    /// One image as it stands now, by the plan's status.
    pub(super) fn image_by(&self, image: &Digest, status: &Status) -> Option<ImageView> {
        let found = status.images.iter().find(|found| found.image == *image)?;
        self.image(found, status)
    }

    fn image(&self, image: &ImageStatus, status: &Status) -> Option<ImageView> {
        let wanted = self.images.get(&image.image)?;
        let (want, layout) = (wanted.want(), &wanted.want().layout);
        let hosts: Vec<HostProgress> = image
            .hosts
            .iter()
            .map(|host| {
                let mut shown = self.placement(&image.image, host);
                if let Some(predicted) = &want.predicted {
                    let of = predicted.hosts.get(&shown.host);
                    shown.predicted = of.map(|of| of.bytes);
                    shown.measured = predicted.measured(&shown);
                }
                shown
            })
            .collect();
        let predicted = want.predicted.as_deref();
        let measured = predicted.map(|predicted| {
            let each = hosts.iter().filter_map(|host| host.measured);
            predicted.measured_by_all(each.fold(StagingBytes::default(), StagingBytes::and))
        });
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
        let recipe = wanted.recipe().map(|recipe| recipe.digest);
        let contents: BTreeSet<Digest> = layout
            .contents()
            .iter()
            .map(|content| content.digest)
            .chain(recipe)
            .collect();
        let leases = status.leases.iter();
        let leases = leases.filter(|lease| contents.contains(&lease.content));
        Some(ImageView {
            digest: image.image.to_string(),
            references: want.references.iter().cloned().collect(),
            state,
            reason: image
                .reason
                .filter(|_| state != ImageState::Present)
                .map(|reason| reason.reason().into()),
            message: match image.reason {
                Some(ImageReason::ContentFaulty(content, Fault::Unavailable)) => {
                    words::unavailable(layout, content, self.leases.said(&image.image))
                }
                Some(ImageReason::ContentFaulty(content, _)) => {
                    self.leases.bad(&content).unwrap_or_default().to_owned()
                }
                _ if state == ImageState::Present => String::new(),
                Some(ImageReason::Moving) => {
                    let rates = status.leases.iter();
                    let rates = rates.filter(|lease| contents.contains(&lease.content));
                    let rates: Vec<u64> = rates.map(|lease| lease.bytes_per_s).collect();
                    words::limits(&rates, self.leases.remark(self.now, &image.image))
                }
                _ => self.image_words(image),
            },
            disk_bytes: layout.disk_bytes(),
            raw_bytes: layout.content_bytes(),
            registry_bytes: layout.blob_bytes(),
            recipe: want.recipe_view().filter(|_| recipe.is_some()),
            contents: image.contents as u64,
            contents_done: image.contents_done as u64,
            hosts_selected: hosts.len() as u64,
            hosts_present,
            hosts_failed: count(HostState::Failed),
            wanted_at: want.wanted_at,
            priority: wanted.priority(),
            staged_seconds: wanted.took().map(|took| took.as_secs_f64()),
            prediction: predicted.map(|predicted| predicted.view.clone()),
            measured,
            hosts,
            leases: leases.map(lease_view).collect(),
        })
    }

    fn image_words(&self, image: &ImageStatus) -> String {
        let lacking = image.hosts.iter().filter(|host| {
            matches!(
                host.reason,
                Some(HostReason::Disconnected | HostReason::Quarantined)
            )
        });
        let away: Vec<_> = lacking
            .map(|host| {
                let away_for = self.sessions.away_for(self.now, &host.host);
                (host.host.clone(), away_for)
            })
            .collect();
        let said = self.leases.said(&image.image);
        words::image(image, said.filter(|said| !said.is_empty()), &away)
    }

    fn placement(&self, image: &Digest, status: &HostStatus) -> HostProgress {
        let known = self.hosts.get(&status.host);
        let connected = self.sessions.is_open(&status.host);
        let now = self.now;
        let mut shown = known.and_then(|known| known.images.get(image)).map_or_else(
            || Progress::new().view(now, status.host.as_str(), connected),
            |progress| progress.view(now, status.host.as_str(), connected),
        );
        if shown.total_bytes == 0 {
            let wanted = self.images.get(image);
            shown.total_bytes = wanted.map_or(0, |wanted| wanted.want().layout.content_bytes());
        }
        let present = self.presence.is_present(&status.host, image);
        match status.reason {
            None if present => shown.state = HostState::Present,
            // the host holds the image, but not yet under a name that was asked for later, or it hasn't looked at its
            // disk since
            None if connected => {
                shown.state = HostState::Installing;
                let reason = match self.presence.is_named(&status.host, image) {
                    true => Reason::Confirming,
                    false => Reason::Installing,
                };
                shown.reason.get_or_insert_with(|| reason.into());
            }
            // the host had the image before the image was asked for again; without a session the host can't confirm it
            None => {
                shown.state = HostState::Waiting;
                shown.presence_age_ms = None;
                shown.reason = Some(Reason::Disconnected.into());
            }
            Some(reason) => {
                // An image that the plan doesn't count as present isn't shown as present: the host said so in a session
                // that is lost.
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
            let enrolled = self.membership.enrolled.contains_key(&status.host);
            let away_for = self.sessions.away_for(now, &status.host);
            shown.message = words::away(away_for, enrolled);
        }
        shown
    }

    fn host(
        &self,
        host: &HostId,
        known: &Host,
        wanted: &[(&ImageStatus, &HostStatus)],
    ) -> HostView {
        let connected = self.sessions.is_open(host);
        let quarantined = self.rosters.quarantined().contains(host);
        let mut images: BTreeMap<Digest, HostImage> = known
            .images
            .iter()
            .map(|(image, progress)| {
                let shown = HostImage {
                    digest: image.to_string(),
                    references: known.references.get(image).cloned().into_iter().collect(),
                    wanted: false,
                    progress: progress.view(self.now, host.as_str(), connected),
                };
                (*image, shown)
            })
            .collect();
        let mut origins = Vec::new();
        for (image, status) in wanted {
            let found = self.images.get(&image.image);
            let references = found.map(|wanted| &wanted.want().references);
            let shown = HostImage {
                digest: image.image.to_string(),
                references: references.into_iter().flatten().cloned().collect(),
                wanted: true,
                progress: self.placement(&image.image, status),
            };
            let registry = matches!(
                image.reason,
                Some(ImageReason::OriginDown | ImageReason::OriginThrottled)
            );
            if shown.progress.state != HostState::Present && registry && found.is_some() {
                let words = self.image_words(image);
                origins.push(format!("{}: {words}", words::name(&shown)));
            }
            images.insert(image.image, shown);
        }
        let mut why = Vec::new();
        let refusal = self.refusals.of(self.now, host);
        let enrolled = self.membership.enrolled.contains_key(host);
        let away_for = self.sessions.away_for(self.now, host);
        if !connected {
            why.extend(words::no_session(
                host,
                away_for,
                enrolled,
                refusal.as_ref(),
            ));
        }
        if self.sessions.is_old(host) {
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
            connected,
            never_enrolled: !connected && away_for.is_none() && !enrolled,
            revoked: false,
            revocation: None,
            refusal,
            quarantined,
            address: known.place.as_ref().map(|place| place.address.to_string()),
            version: known.version.clone(),
            volume: known.volume.clone(),
            backlog_bytes: known.backlog_bytes,
            upload_bytes_per_second: known.upload_bytes_per_second,
            blames: self.blames.against(host),
            images: images.into_values().collect(),
            why,
        }
    }

    /// Sets the gauges from the view.
    pub(super) fn measure(&self, metrics: &Metrics, view: &View, status: &Status) {
        let gauge = |family: &prometheus_client::metrics::family::Family<StateLabel, _>,
                     state,
                     value: usize| {
            let gauge: &prometheus_client::metrics::gauge::Gauge =
                &family.get_or_create(&StateLabel { state });
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        let connected = self.sessions.count();
        gauge(&metrics.hosts, "connected", connected);
        gauge(&metrics.hosts, "disconnected", self.hosts.len() - connected);
        gauge(
            &metrics.hosts,
            "quarantined",
            self.rosters.quarantined().len(),
        );
        gauge(&metrics.hosts, "revoked", self.membership.revoked.len());
        for state in [ImageState::Staging, ImageState::Present, ImageState::Failed] {
            let images = view.images.values().filter(|image| image.state == state);
            gauge(&metrics.images, image_state(state), images.count());
        }
        let placements = || view.images.values().flat_map(|image| &image.hosts);
        for state in HOST_STATES {
            let count = placements().filter(|host| host.state == state).count();
            gauge(&metrics.placements, state.as_str(), count);
        }
        let leases = i64::try_from(status.leases.len()).unwrap_or(i64::MAX);
        metrics.leases.set(leases);
        let wanted = view.images.values().map(|image| image.registry_bytes).sum();
        metrics.wanted_bytes.set(wanted);
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
            metrics
                .bytes
                .get_or_create(&SourceLabel { source })
                .set(value);
        }
        let predictions = view.images.values().filter_map(|image| {
            let predicted = image.prediction.as_ref()?.bytes;
            Some((predicted, image.measured.unwrap_or_default()))
        });
        let sums = predictions.fold(<(StagingBytes, StagingBytes)>::default(), |sums, of| {
            (sums.0.and(of.0), sums.1.and(of.1))
        });
        for (family, bytes) in [(&metrics.predicted, sums.0), (&metrics.measured, sums.1)] {
            for (kind, value) in bytes.parts() {
                family.get_or_create(&KindLabel { kind }).set(value);
            }
        }
    }
}

/// A lease, as the API shows it.
fn lease_view(lease: &LeaseStatus) -> LeaseView {
    LeaseView {
        content: lease.content.to_string(),
        host: lease.host.to_string(),
        range: lease.range.map(|range| RangeView {
            from: range.from(),
            until: range.until(),
        }),
        chunks: lease.chunks,
        idle_ms: proto::millis(lease.idle),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_comes_four_times_a_second_while_something_happens_and_once_while_nothing_does() {
        let at = |millis: u64| Moment::START + Duration::from_millis(millis);
        let (publish, mut seen) = watch::channel(Arc::default());
        let mut views = Views::new(publish);
        assert!(views.take_due(at(0)));
        assert!(!views.take_due(at(249)));
        assert_eq!(views.due(), at(1_250));
        views.outdate_if(true);
        assert_eq!(views.due(), at(250));
        assert!(views.take_due(at(250)));
        assert_eq!(views.due(), at(1_500));
        seen.borrow_and_update();
        views.publish(View::default());
        assert!(seen.has_changed().unwrap());
    }

    #[test]
    fn a_lease_is_shown_with_the_chunks_that_it_is_for() {
        let mut lease = LeaseStatus {
            content: Digest::of(b"a content"),
            range: proto::ChunkRange::new(128, 256),
            host: "mini-2".parse().unwrap(),
            chunks: 17,
            bytes_per_s: 0,
            idle: Duration::from_millis(120),
        };
        let content = lease.content;
        let shown = |lease: &LeaseStatus| serde_json::to_value(lease_view(lease)).unwrap();
        let expected = serde_json::json!({
            "content": content.to_string(),
            "host": "mini-2",
            "range": {"from": 128, "until": 256},
            "chunks": 17,
            "idle_ms": 120,
        });
        assert_eq!(shown(&lease), expected);
        lease.range = None;
        assert!(shown(&lease).get("range").is_none());
        // a coordinator of an earlier version doesn't say it
        let mut earlier = expected;
        earlier.as_object_mut().unwrap().remove("range");
        let read: LeaseView = serde_json::from_value(earlier).unwrap();
        assert_eq!(read.range, None);
    }
}
