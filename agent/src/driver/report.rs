//! What the coordinator, the status page and the metrics are told about this host.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{
    ChunkIndex, Digest, HostId, Reason, Signed,
    message::{
        Blame, BlameKind, ContentHeld, Held, Hello, ImageState, Load, Report, Retraction,
        SignedLink, StageState, Volume, WithoutSource,
    },
};
use swarm::{Event, Stall, event::ContentId};
use tokio::sync::mpsc::error::TrySendError;
use tracing::{debug, info, warn};

use super::{Driver, Input, MAX_BLAMES, fit, leases::Progress, trouble::Trouble};
use crate::{
    admin::{Snapshot, state_name},
    metrics::{PartLabel, ReasonLabel, StateLabel},
};

/// A content that nothing came of for this long, and that no peer has more of, is reported to have no source here.
const NO_SOURCE: Duration = Duration::from_secs(2);

/// Contents without a source in one report: the first ones, which are leased first.
const MAX_WITHOUT_SOURCE: usize = 16;
/// Contents whose count of chunks one report has; the others follow with the next.
const MAX_HELD: usize = 256;

/// Accusations with evidence in one report: 1.5 KiB each. More are dropped: one is enough against a host.
const MAX_EVIDENCE: usize = 32;

/// Why an image isn't present, for machines and for people. What is under way needs no reason, and what troubles one
/// content is none while the others come: it stands beside a host that stands still.
fn words(
    state: StageState,
    trouble: Option<&Trouble>,
    still: Option<swarm::Standstill>,
) -> (Option<Reason>, String) {
    match (state, trouble, still) {
        (StageState::Staging, _, None) => Default::default(),
        (_, Some(trouble), _) => (Some(trouble.reason), trouble.message.clone()),
        // for how long is said beside it: whoever shows it counts on
        (_, None, Some(still)) => (Some(still.stall.reason()), String::new()),
        (StageState::Queued, None, None) => (
            Some(Reason::Preparing),
            "room is reserved, and what other images of this host hold is copied".to_owned(),
        ),
        (_, None, None) => Default::default(),
    }
}

/// Whether a host of this load steps back. It comes forward again at three quarters of the limit, or it would go back and
/// forth with its own work.
const fn steps_back(before: bool, load_percent: u32, limit_percent: u32) -> bool {
    let limit = if before {
        limit_percent - limit_percent / 4
    } else {
        limit_percent
    };
    load_percent >= limit
}

impl Driver {
    /// Sends the coordinator where everything stands, and keeps the status page current.
    pub(super) fn report(&mut self, full: bool) {
        self.last_report = Instant::now();
        self.report_due = false;
        let status = self.swarm.status(self.now());
        let images: Vec<_> = self.image_states(&status);
        self.snapshot.send_replace(Arc::new(Snapshot::new(
            &self.me,
            self.session.is_some(),
            &images,
            &status,
        )));
        let images = self.fit(images);
        let volume = self.volume();
        self.hello.send_replace(Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            peer_port: self
                .endpoint
                .local_addr()
                .map_or(0, |address| address.port().into()),
            zone: self.config.zone.clone(),
            volume: Some(volume.clone()),
            images: images.clone(),
            peer_address: self
                .address()
                .map(|address| address.to_string())
                .unwrap_or_default(),
            takes_names: true,
            roster_epoch: Some(self.hosts.epoch()),
            link_key: self.notary.key().to_vec(),
        });
        let progress = |id| {
            let content = status.content(id);
            Some(Progress {
                content: self.contents.find(id)?.digest(),
                bytes: self.fetches.moved_bytes(id),
                paced: content.is_some_and(|content| content.paced),
                silent: content.and_then(|content| content.silent),
            })
        };
        let leases = self.leases.report(Instant::now(), progress);
        self.count_states(&status);
        let mut report = Report {
            images,
            full,
            volume: Some(volume),
            leases,
            blames: std::mem::take(&mut self.blames),
            retractions: std::mem::take(&mut self.retractions)
                .into_iter()
                .map(|(content, from)| Retraction {
                    content: content.as_bytes().to_vec(),
                    from_chunk: from.0,
                    maker: String::new(),
                })
                .collect(),
            // a rate that is only assumed is the coordinator's to assume
            load: Some(Load {
                backlog_bytes: status.backlog_bytes,
                upload_bytes_per_second: status.upload_bytes_per_second.unwrap_or(0),
            }),
            mirror: self.mirror.wants(full),
            names: self.reconciler.confirmed(),
            roster_wanted: std::mem::take(&mut self.roster_wanted),
            without_source: self.without_source(&status),
            held: self.held(&status),
        };
        let later = fit::events(&mut report);
        self.report_due |= !later.is_empty();
        self.leases.unsent(later.ended_leases);
        self.say_later(later.blames, &later.retractions);
        let Some(session) = &self.session else {
            self.keep_unsent(report);
            return;
        };
        match session.try_send(report) {
            Ok(()) => {}
            Err(TrySendError::Full(report)) => {
                self.report_due = true;
                self.keep_unsent(report);
            }
            Err(TrySendError::Closed(report)) => self.keep_unsent(report),
        }
    }

    /// The first contents that this host wants and finds no source of, where they are others than those that it last said.
    fn without_source(&mut self, status: &swarm::Status) -> Option<WithoutSource> {
        let lacking = status.contents.iter().filter(|content| {
            let waits = content.stall.is_some_and(Stall::is_for_want_of_a_source);
            waits && content.idle >= NO_SOURCE
        });
        let found: Vec<Digest> = lacking
            .filter_map(|content| Some(self.contents.find(content.id)?.digest()))
            .take(MAX_WITHOUT_SOURCE)
            .collect();
        let said = self.without_source.as_ref() == Some(&found);
        let message = (!said).then(|| WithoutSource {
            contents: found
                .iter()
                .map(|content| content.as_bytes().to_vec())
                .collect(),
        });
        self.without_source = Some(found);
        message
    }

    /// How much this host holds of contents where that changed since it last said so. Who fetches a content is believed by what
    /// others say here.
    fn held(&mut self, status: &swarm::Status) -> Option<Held> {
        let first = self.held_said.is_none();
        let said = self.held_said.get_or_insert_default();
        let mut news = Vec::new();
        for of in &status.contents {
            let Some(content) = self.contents.find(of.id) else {
                continue;
            };
            // what isn't verified may turn out false
            let most = of.chunks.saturating_sub(u32::from(!content.is_closed()));
            let held = of.held.min(most);
            if said.get(&of.id).copied().unwrap_or(0) == held {
                continue;
            }
            if news.len() >= MAX_HELD {
                break;
            }
            said.insert(of.id, held);
            news.push(ContentHeld {
                content: content.digest().as_bytes().to_vec(),
                chunks: held,
            });
        }
        said.retain(|id, _| self.contents.find(*id).is_some());
        (first || !news.is_empty()).then_some(Held { contents: news })
    }

    /// What must not be lost with a report that couldn't be sent: ends of leases, accusations, and what we took back.
    fn keep_unsent(&mut self, report: Report) {
        self.roster_wanted |= report.roster_wanted;
        if report.without_source.is_some() {
            // said anew when it can be
            self.without_source = None;
        }
        if report.held.is_some() {
            self.held_said = None;
        }
        if report.mirror.is_some() {
            self.mirror.unsent();
        }
        self.leases.unsent(report.leases);
        self.say_later(report.blames, &report.retractions);
    }

    /// The next report has this before anything else of its kind.
    fn say_later(&mut self, mut blames: Vec<Blame>, retractions: &[Retraction]) {
        blames.append(&mut self.blames);
        self.blames = blames;
        let retractions = retractions.iter().filter_map(|kept| {
            let content = Digest::try_from(kept.content.as_slice()).ok()?;
            Some((content, ChunkIndex(kept.from_chunk)))
        });
        self.retractions.extend(retractions);
    }

    /// What of the images fits into a report. Says it when something that the coordinator waits for doesn't.
    fn fit(&mut self, images: Vec<ImageState>) -> Vec<ImageState> {
        let reconciler = &self.reconciler;
        let wanted =
            |image: &Digest| reconciler.is_wanted(image) || self.declined.contains_key(image);
        let (images, left_out) = fit::images(images, wanted, reconciler.desired());
        if left_out.wanted_names > 0 && self.left_out.wanted_names == 0 {
            warn!(
                names = left_out.wanted_names,
                "more names are wanted than a report can hold: the coordinator won't hear of all of them; \
                 cancel those that aren't needed (`parbake cancel IMAGE`)"
            );
        }
        if left_out != self.left_out {
            debug!(?left_out, "reports leave out some of what is here");
        }
        self.left_out = left_out;
        images
    }

    fn image_states(&self, status: &swarm::Status) -> Vec<ImageState> {
        let declined = self
            .declined
            .iter()
            .map(|(digest, (references, message))| ImageState {
                manifest: digest.as_bytes().to_vec(),
                reference: references.first().cloned().unwrap_or_default(),
                state: StageState::Failed.into(),
                reason: Reason::Unsupported.as_str().into(),
                message: message.clone(),
                ..ImageState::default()
            });
        let images = self.images.values().map(|image| {
            let contents = image.layout.contents();
            let ids = contents
                .iter()
                .filter_map(|spec| Some(self.contents.by_digest(&spec.digest)?.id()));
            let still = match image.state {
                StageState::Staging => status.standstill(&ids.collect::<Vec<_>>()),
                _ => None,
            };
            let unnamed = match (&image.trouble, image.state) {
                (None, StageState::Installing) => self.unnamed(image),
                _ => None,
            };
            let trouble = image.trouble.as_ref().or(unnamed.as_ref());
            let (reason, message) = words(image.state, trouble, still);
            ImageState {
                manifest: image.digest.as_bytes().to_vec(),
                reference: image.reference().to_owned(),
                state: image.state.into(),
                reason: reason.map_or("", Reason::as_str).to_owned(),
                message,
                total_bytes: image.total_bytes(),
                held_bytes: image.held_bytes,
                origin_bytes: image.origin_bytes,
                peer_bytes: image.peer_bytes,
                local_bytes: image.local_bytes,
                upload_bytes: image.upload_bytes,
                presence_age_ms: image.checked.map_or(0, |checked| {
                    u64::try_from(checked.elapsed().as_millis()).unwrap_or(u64::MAX)
                }),
                golden: image.golden,
                order: Some(image.order),
                // another name for what is present takes nothing from the names that it has
                ready_references: match image.state {
                    StageState::Present | StageState::Installing | StageState::Failed => {
                        image.ready.clone()
                    }
                    _ => Vec::new(),
                },
                still_ms: still.map_or(0, |still| {
                    u64::try_from(still.since.as_millis()).unwrap_or(u64::MAX)
                }),
                begun_at_ms: image.begun_at_ms,
            }
        });
        declined.chain(images).collect()
    }

    fn volume(&self) -> Volume {
        Volume {
            total_bytes: self.volume.total_bytes,
            free_bytes: self.volume.free_bytes,
            floor_bytes: self.volume.floor_bytes,
            path: self.config.tart_home.display().to_string(),
        }
    }

    /// Guests come first: a host that is busier than its operator wants moves less for others.
    pub(super) fn weigh_load(&mut self, load_percent: Option<u32>) {
        let (Some(limit), Some(load)) = (self.config.step_back_load_percent, load_percent) else {
            return;
        };
        let back = steps_back(self.stepped_back, load, limit);
        if back != self.stepped_back {
            self.stepped_back = back;
            info!(
                load_percent = load,
                stepped_back = back,
                "the host's load decides how much it moves for others"
            );
            self.tell(Event::StepBack(back));
        }
    }

    /// A peer sent something that only the two of us saw.
    pub(super) fn blame(
        &mut self,
        host: &HostId,
        id: Option<ContentId>,
        chunk: ChunkIndex,
        kind: BlameKind,
    ) {
        let content = id.and_then(|id| self.contents.find(id));
        let content = content.map(|content| content.digest().as_bytes().to_vec());
        let content = content.unwrap_or_default();
        self.accuse(Blame {
            host: host.to_string(),
            content,
            chunk: chunk.0,
            kind: kind.into(),
            ..Blame::default()
        });
    }

    /// A host signed a link that is false, or two that contradict each other: the links are the evidence.
    pub(super) fn show(&mut self, links: &[Signed]) {
        let Some(first) = links.first() else { return };
        let shown = self.blames.iter();
        let shown = shown.filter(|blame| !blame.evidence.is_empty()).count();
        if shown >= MAX_EVIDENCE {
            return;
        }
        let evidence = links.iter().map(|signed| SignedLink {
            chunk: signed.chunk.0,
            link: Some(signed.to_message()),
        });
        self.accuse(Blame {
            host: first.maker().to_string(),
            maker: first.maker().to_string(),
            content: first.content.as_bytes().to_vec(),
            chunk: first.chunk.0,
            kind: BlameKind::Link.into(),
            evidence: evidence.collect(),
        });
    }

    fn accuse(&mut self, blame: Blame) {
        if self.blames.len() < MAX_BLAMES {
            self.blames.push(blame);
            self.report_due = true;
        }
    }

    pub(super) fn count_received(&mut self, id: ContentId, wire_bytes: u64) {
        self.count(id, |image| image.peer_bytes += wire_bytes);
    }

    pub(super) fn count_upload(&mut self, id: ContentId, wire_bytes: u64) {
        self.count(id, |image| image.upload_bytes += wire_bytes);
    }

    fn count(&mut self, id: ContentId, add: impl Fn(&mut super::Image)) {
        let first = self
            .contents
            .find(id)
            .and_then(|content| content.images().first().copied());
        if let Some(image) = first.and_then(|first| self.images.get_mut(&first)) {
            add(image);
        }
    }

    fn count_states(&self, status: &swarm::Status) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for reason in Stall::ALL {
            let count = status
                .contents
                .iter()
                .filter(|content| content.stall == Some(reason))
                .count();
            self.metrics
                .stalled
                .get_or_create(&ReasonLabel {
                    reason: reason.as_str(),
                })
                .set(gauge(count));
        }
        for state in [
            StageState::Queued,
            StageState::Staging,
            StageState::Installing,
            StageState::Present,
            StageState::Failed,
            StageState::Gone,
        ] {
            let count = self
                .images
                .values()
                .filter(|image| image.state == state)
                .count();
            self.metrics
                .images
                .get_or_create(&StateLabel {
                    state: state_name(state),
                })
                .set(gauge(count));
        }
        let peers = [
            ("known", status.peers),
            ("connected", status.connected),
            ("quarantined", status.quarantined.len()),
        ];
        for (state, count) in peers {
            self.metrics
                .peers
                .get_or_create(&StateLabel { state })
                .set(gauge(count));
        }
    }

    /// Measures the volume.
    pub(super) fn measure(&mut self) {
        if self.measuring {
            return;
        }
        self.measuring = true;
        self.last_measure = Instant::now();
        let store = self.store.clone();
        self.spawn_blocking(move || Input::Measured(store.volume()));
    }

    pub(super) fn measured(&mut self, volume: crate::store::Volume) {
        self.measuring = false;
        self.volume = volume;
        self.keep_floor();
        let parts = [
            ("total", volume.total_bytes),
            ("free", volume.free_bytes),
            ("floor", volume.floor_bytes),
        ];
        for (part, bytes) in parts {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.metrics
                .volume_bytes
                .get_or_create(&PartLabel { part })
                .set(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_has_no_reason_and_what_stands_has_the_hosts_own() {
        let trouble = Trouble {
            reason: Reason::OriginTrouble,
            message: "connection refused".into(),
        };
        let still = Some(swarm::Standstill {
            stall: Stall::Throttled,
            since: Duration::from_secs(65),
        });
        let (troubled, throttled) = (Some(Reason::OriginTrouble), Some(Reason::Throttled));
        let reason = |state, trouble, still| words(state, trouble, still).0;
        // the registry fails one content, and others come
        assert_eq!(reason(StageState::Staging, Some(&trouble), None), None);
        assert_eq!(reason(StageState::Staging, Some(&trouble), still), troubled);
        assert_eq!(
            words(StageState::Staging, None, still),
            (throttled, String::new())
        );
        assert_eq!(reason(StageState::Failed, Some(&trouble), None), troubled);
        assert_eq!(
            reason(StageState::Queued, None, None),
            Some(Reason::Preparing)
        );
        assert_eq!(reason(StageState::Present, None, None), None);
    }

    #[test]
    fn a_busy_host_steps_back_until_it_is_clearly_less_busy() {
        assert!(!steps_back(false, 99, 100));
        assert!(steps_back(false, 100, 100));
        assert!(steps_back(true, 75, 100));
        assert!(!steps_back(true, 74, 100));
    }
}
