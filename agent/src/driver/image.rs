//! Images on this host: from the order to presence.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use proto::{
    ChunkIndex, Digest, HostKey, Reason,
    figure::Bytes,
    image::{ContentSpec, Layout},
    message::{LeaseEnd, StageOrder, StageState},
};
use swarm::{Event, event::Entitled};
use tracing::{error, info, warn};

use super::{Driver, Input, Long, leases::End, trouble::Trouble};
use crate::{
    metrics::{OutcomeLabel, SourceLabel},
    reconcile::Have,
    registries::Access,
    shelf::Shelf,
    store::{BeginError, News, Stage, Volume},
};

/// Why nothing more may be written to the volume, if so.
fn below_floor(volume: Volume) -> Option<Trouble> {
    (volume.free_bytes < volume.floor_bytes).then(|| Trouble {
        reason: Reason::NoRoom,
        message: format!(
            "the volume has filled up beside the image: {} are free, and {} have to stay free; it goes on where it \
             stands when there is room for the rest",
            Bytes(volume.free_bytes),
            Bytes(volume.floor_bytes)
        ),
    })
}

/// The hosts that may have what the image holds. An order of an earlier version names none.
fn entitled(order: &StageOrder) -> Entitled {
    let hosts = order.entitled_hosts.iter().copied().map(HostKey);
    (!order.entitled_hosts.is_empty()).then(|| Arc::new(hosts.collect()))
}

/// Whole milliseconds, as a number that JSON logs keep one.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// One image.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) digest: Digest,
    pub(super) layout: Arc<Layout>,
    manifest: Arc<[u8]>,
    /// Names the coordinator's last order of it in this life; 0 before the first.
    pub(super) order: u64,
    /// As they were ordered last: the registry is asked by the first.
    pub(super) references: Vec<String>,
    pub(super) access: Access,
    /// The hosts that may have what it holds.
    pub(super) entitled: Entitled,
    pub(super) state: StageState,
    pub(super) stage: Option<Arc<Stage>>,
    /// When this staging of it began, over restarts of the agent, in Unix milliseconds; 0 before it did.
    pub(super) begun_at_ms: u64,
    /// Contents whose chain isn't closed yet.
    pub(super) open: BTreeSet<Digest>,
    pub(super) held_bytes: u64,
    pub(super) origin_bytes: u64,
    pub(super) peer_bytes: u64,
    pub(super) local_bytes: u64,
    pub(super) upload_bytes: u64,
    pub(super) trouble: Option<Trouble>,
    pub(super) ordered: Instant,
    pub(super) whole: Option<Instant>,
    /// When the last look that found it began.
    pub(super) checked: Option<Instant>,
    pub(super) golden: bool,
    /// References whose tag, and golden where one is made, were there at the last look.
    pub(super) ready: Vec<String>,
    /// What an earlier process left is being read.
    pub(super) reading: bool,
    /// Its files were removed, and it began anew at once. The next time waits.
    pub(super) restaged: bool,
}

impl Image {
    /// An image that was ordered just now.
    fn new(
        layout: Arc<Layout>,
        manifest: Arc<[u8]>,
        references: Vec<String>,
        access: Access,
    ) -> Self {
        Self {
            digest: *layout.digest(),
            layout,
            manifest,
            order: 0,
            references,
            access,
            entitled: None,
            state: StageState::Queued,
            stage: None,
            begun_at_ms: 0,
            open: BTreeSet::new(),
            held_bytes: 0,
            origin_bytes: 0,
            peer_bytes: 0,
            local_bytes: 0,
            upload_bytes: 0,
            trouble: None,
            ordered: Instant::now(),
            whole: None,
            checked: None,
            golden: false,
            ready: Vec::new(),
            reading: false,
            restaged: false,
        }
    }

    /// The reference under which the image was ordered first.
    pub(super) fn reference(&self) -> &str {
        self.references.first().map_or("", String::as_str)
    }

    /// What is told of it belongs to this stage: where it is another one than before, nothing is counted of the one that
    /// is gone. What the stage holds is counted.
    fn adopt(&mut self, stage: &Stage) {
        let begun = stage.begun_at();
        let since_1970 = begun.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let begun_at_ms = since_1970.map_or(0, millis);
        if begun_at_ms != self.begun_at_ms {
            self.forget_counts();
        }
        self.begun_at_ms = begun_at_ms;
        let held = |spec: &ContentSpec| {
            let chunks = stage.held(spec.digest);
            let bytes = chunks.iter().map(|chunk| spec.geometry.len(chunk));
            bytes.map(u64::from).sum::<u64>()
        };
        self.held_bytes = self.layout.contents().iter().map(held).sum();
    }

    pub(super) fn forget_counts(&mut self) {
        self.held_bytes = 0;
        self.origin_bytes = 0;
        self.peer_bytes = 0;
        self.local_bytes = 0;
        self.upload_bytes = 0;
    }

    /// It isn't what it was when it was installed: nothing of it counts until it is again. Whether that changes anything.
    fn leave_presence(&mut self) -> bool {
        let installed = matches!(
            self.state,
            StageState::Present | StageState::Installing | StageState::Failed
        );
        if installed {
            self.state = StageState::Staging;
            self.ready.clear();
            // what it takes to mend it isn't what it took to stage it
            self.ordered = Instant::now();
            self.whole = None;
        }
        installed
    }

    /// Whether this is the stage that it goes by now, and it is still there.
    pub(super) fn goes_by(&self, stage: &Arc<Stage>) -> bool {
        let own = self.stage.as_ref();
        own.is_some_and(|own| Arc::ptr_eq(own, stage)) && !stage.is_gone()
    }

    /// Whether chunks of it are still to come.
    fn is_filling(&self) -> bool {
        self.state == StageState::Staging && !self.open.is_empty()
    }

    pub(super) fn trouble(&mut self, reason: Reason, message: String) {
        self.trouble = Some(Trouble { reason, message });
    }

    pub(super) fn clear_trouble(&mut self) {
        self.trouble = None;
    }

    /// Clears a trouble of one of these reasons.
    pub(super) fn clear_trouble_of(&mut self, reasons: &[Reason]) {
        self.trouble
            .take_if(|trouble| reasons.contains(&trouble.reason));
    }

    pub(super) fn total_bytes(&self) -> u64 {
        self.layout.content_bytes()
    }
}

impl Driver {
    /// Takes over what the store knows from before.
    pub(super) fn recover(&mut self) {
        for recovered in self.store.recovered() {
            let digest = *recovered.layout.digest();
            info!(image = %digest, references = ?recovered.references, present = recovered.present, "found an image of this host");
            self.reconciler.recovered(digest, &recovered.references);
            let references = match recovered.references.is_empty() {
                true => recovered.stage.references(),
                false => recovered.references,
            };
            let mut image = Image::new(
                recovered.layout.into(),
                recovered.manifest.into(),
                references,
                Access::default(),
            );
            // told at once: where there is no room to go on, what is here is here all the same
            image.adopt(&recovered.stage);
            image.entitled = recovered.stage.entitled();
            // for a stage that begins anew because its files were removed
            self.store.entitle(digest, image.entitled.clone());
            self.images.insert(digest, image);
            // anything less needs room first, or has to be read
            let stage = &recovered.stage;
            if stage.is_installed() && stage.is_complete() && !stage.is_doubted() {
                self.take_up(digest, recovered.stage, 0);
                self.filled(digest);
            }
        }
    }

    pub(super) fn order_stage(&mut self, order: StageOrder) {
        let digest = match Digest::try_from(order.manifest_digest.as_slice()) {
            Ok(digest) => digest,
            Err(error) => {
                warn!(%error, "stage order without a digest");
                return;
            }
        };
        let access = Access::new(order.token.as_ref(), order.plain_http);
        let entitled = entitled(&order);
        // a token that is handed down anew is for the fetches that run, too
        self.fetches.renew(&digest, &access);
        let now = self.now();
        if let Some(image) = self.images.get_mut(&digest) {
            image.access = access;
            image.order = order.order;
            if image.state == StageState::Gone {
                image.ordered = Instant::now();
            }
            self.reconciler.order(digest, &order.references, now);
            image.references = order.references;
            self.report_due = true;
            self.entitle(digest, entitled);
            self.refresh();
            return;
        }
        if order.manifest.is_empty() {
            // it was here when the order was made; a full report says that it isn't, and brings another order
            info!(image = %digest, "order without a manifest for an image that isn't here");
            self.report(true);
            return;
        }
        let layout = match Layout::parse(&order.manifest, &digest) {
            Ok(layout) => Arc::new(layout),
            Err(error) => {
                warn!(image = %digest, %error, "declining to stage");
                self.declined
                    .insert(digest, (order.references, error.to_string()));
                self.report_due = true;
                return;
            }
        };
        info!(image = %digest, references = ?order.references, bytes = layout.content_bytes(), "staging");
        self.declined.remove(&digest);
        self.reconciler.order(digest, &order.references, now);
        let mut image = Image::new(layout, order.manifest.into(), order.references, access);
        image.order = order.order;
        image.entitled = entitled.clone();
        self.store.entitle(digest, entitled);
        self.images.insert(digest, image);
        self.report_due = true;
        // names of other images may be its own now
        self.refresh();
    }

    /// The coordinator says which hosts may have what an image holds.
    fn entitle(&mut self, digest: Digest, entitled: Entitled) {
        let Some(image) = self.images.get_mut(&digest) else {
            return;
        };
        if image.entitled == entitled {
            return;
        }
        image.entitled = entitled.clone();
        let layout = image.layout.clone();
        self.store.entitle(digest, entitled);
        self.retell(&layout);
        let store = self.store.clone();
        self.spawn_blocking(move || {
            if let Err(error) = store.keep_entitled(&digest) {
                warn!(image = %digest, %error, "writing down who may have an image failed; a restart begins with what stood before");
            }
            Input::Nothing
        });
    }

    pub(super) fn begin(&mut self, digest: Digest, names: Vec<String>) {
        // what is known of a stage before this one leads nowhere
        if self
            .images
            .get(&digest)
            .is_some_and(|image| image.stage.is_some())
        {
            self.withdraw(digest);
        }
        let Some(image) = self.images.get_mut(&digest) else {
            // nobody speaks of it any more
            self.reconciler.cancel(digest);
            self.reconciler.begun(digest);
            return;
        };
        image.state = StageState::Queued;
        let (store, layout) = (self.store.clone(), image.layout.clone());
        let manifest = image.manifest.clone();
        let blobs = self.mirror.blobs().cloned();
        let home = self.config.tart_home.clone();
        self.spawn_long(Long::Read, move || {
            let make_room = |bytes| {
                blobs
                    .as_ref()
                    .is_some_and(|blobs| blobs.give_way(&home, bytes))
            };
            let begun = store
                .keep_entitled(&digest)
                .map_err(BeginError::Io)
                .and_then(|()| store.want(&digest, &names))
                .and_then(|()| store.begin_making_room(&layout, &manifest, &names, make_room));
            if let Some(blobs) = &blobs {
                blobs.leave(&home, store.outstanding_bytes());
            }
            Input::Begun {
                image: digest,
                result: begun.map_err(|error| Trouble::from(&error)),
            }
        });
    }

    pub(super) fn begun(&mut self, digest: Digest, result: Result<(Arc<Stage>, u64), Trouble>) {
        let goes_on = self.reconciler.begun(digest);
        match result {
            Ok((stage, local_bytes)) if goes_on => {
                self.take_up(digest, stage, local_bytes);
                self.filled(digest);
            }
            Err(trouble) if goes_on => self.failed(digest, trouble),
            // cancelled or held meanwhile
            Ok(_) | Err(_) => {}
        }
    }

    /// Makes what a stage holds and lacks known to the swarm.
    fn take_up(&mut self, digest: Digest, stage: Arc<Stage>, local_bytes: u64) {
        let Some(image) = self.images.get_mut(&digest) else {
            return;
        };
        image.clear_trouble();
        image.adopt(&stage);
        image.local_bytes += local_bytes;
        self.metrics
            .received_bytes
            .get_or_create(&SourceLabel {
                source: crate::metrics::From::Local,
            })
            .inc_by(local_bytes);
        image.state = StageState::Staging;
        image.stage = Some(stage.clone());
        image.open.clear();
        let contents = image.layout.contents();
        // of two sizes one is wrong, and this can't tell which: nobody is blamed, and what is here stays
        let other_size = contents.iter().find(|spec| {
            let known = self.contents.by_digest(&spec.digest);
            known.is_some_and(|known| {
                !known.is_mirrored() && known.geometry().size() != spec.geometry.size()
            })
        });
        if let Some(spec) = other_size {
            let message = format!(
                "its manifest gives content {} another size than an image that is here; one of the two is wrong",
                spec.digest
            );
            self.withdraw(digest);
            self.reconciler.have(digest, Have::Kept);
            self.failed(
                digest,
                Trouble {
                    reason: Reason::Contradicts,
                    message,
                },
            );
            return;
        }
        let mut known = Vec::new();
        for (order, spec) in (0u32..).zip(&contents) {
            self.yield_to_image(&spec.digest);
            let held = stage.held(spec.digest);
            let closed = stage.is_closed(spec.digest);
            if let Some(image) = self.images.get_mut(&digest)
                && !closed
            {
                image.open.insert(spec.digest);
            }
            let (id, new) =
                self.contents
                    .add(spec, (digest, Shelf::Stage(stage.clone())), held, closed);
            known.push((id, new, order));
        }
        for (id, new, order) in known {
            if new {
                self.introduce(id, order);
            }
            self.walk_if_whole(id);
        }
        // who may have what it shares with other images
        let layout = self.images.get(&digest).map(|image| image.layout.clone());
        if let Some(layout) = layout {
            self.retell(&layout);
        }
        for (content, image) in self.leases.take_early() {
            self.leased(content, image);
        }
        self.read_again(digest);
        self.report_due = true;
    }

    /// Reads what an earlier process left of an image, while chunks come: it isn't installed before.
    fn read_again(&mut self, digest: Digest) {
        let Some(image) = self.images.get_mut(&digest) else {
            return;
        };
        let Some(stage) = image.stage.clone().filter(|stage| stage.has_to_be_read()) else {
            return;
        };
        if image.reading {
            return;
        }
        image.reading = true;
        self.spawn_long(Long::Read, move || Input::ReadAgain {
            image: digest,
            result: stage.read_again().map_err(|error| error.to_string()),
            stage,
        });
    }

    pub(super) fn was_read(
        &mut self,
        digest: Digest,
        stage: &Arc<Stage>,
        result: Result<(), String>,
    ) {
        let Some(image) = self.images.get_mut(&digest) else {
            return;
        };
        image.reading = false;
        // another stage has taken its place, and is read for itself
        if !image.goes_by(stage) {
            self.read_again(digest);
            self.filled(digest);
            return;
        }
        image.clear_trouble_of(&[Reason::Checking]);
        match result {
            Ok(()) => self.filled(digest),
            Err(message) => {
                // it is begun, and read, again
                self.withdraw(digest);
                self.reconciler.have(digest, Have::Kept);
                self.failed(
                    digest,
                    Trouble {
                        reason: Reason::NotStored,
                        message: format!("reading what is here: {message}"),
                    },
                );
            }
        }
    }

    /// What the store found on the disk by itself.
    pub(super) fn hear_store(&mut self) {
        let mut rotted: BTreeMap<(Digest, Digest), Vec<ChunkIndex>> = BTreeMap::new();
        for news in self.store.take_news() {
            match news {
                News::Rotted {
                    image,
                    content,
                    chunk,
                } => rotted.entry((image, content)).or_default().push(chunk),
                News::Doubted { image } => self.doubted(image),
                News::Removed { image } => self.removed(image),
            }
        }
        for ((image, content), chunks) in rotted {
            let effects = self.contents.rotted(image, content, &chunks);
            self.follow_contents(effects);
        }
    }

    /// Somebody found the image damaged: no presence until all of it was read and mended.
    fn doubted(&mut self, digest: Digest) {
        let taken_up = |image: &&mut Image| image.stage.is_some();
        let Some(image) = self.images.get_mut(&digest).filter(taken_up) else {
            return;
        };
        warn!(image = %digest, "an image was found damaged on disk; it is read again, and isn't present until it is mended");
        if image.leave_presence() {
            image.trouble(
                Reason::Checking,
                "it was found damaged on disk; all of it is read again and mended".into(),
            );
        }
        self.read_again(digest);
        self.filled(digest);
        self.report(false);
    }

    /// The files of an image aren't there any more.
    fn removed(&mut self, digest: Digest) {
        let Some(image) = self.images.get(&digest) else {
            return;
        };
        // this may be about a stage before
        if !image.stage.as_ref().is_some_and(|stage| stage.is_gone()) {
            return;
        }
        match image.state {
            StageState::Present => {
                warn!(image = %digest, "image was removed; presence is withdrawn");
                self.gone(
                    digest,
                    Reason::Removed,
                    "image was removed from tart's cache by tart or somebody else".into(),
                );
            }
            StageState::Staging | StageState::Installing => self.restage(digest),
            // it begins anew when its pause is over
            _ => {
                self.withdraw(digest);
                self.reconciler.have(digest, Have::Kept);
            }
        }
    }

    /// Begins an image anew whose files went while it was staged: at once the first time, and after a growing pause when they went
    /// again before it was present.
    pub(super) fn restage(&mut self, digest: Digest) {
        self.withdraw(digest);
        self.reconciler.have(digest, Have::Kept);
        let Some(image) = self.images.get_mut(&digest) else {
            return;
        };
        image.ready.clear();
        image.forget_counts();
        let message = "its files were removed from the disk while it was staged";
        if std::mem::replace(&mut image.restaged, true) {
            self.failed(
                digest,
                Trouble {
                    reason: Reason::Removed,
                    message: format!("{message}, again; it is staged anew after a pause"),
                },
            );
            return;
        }
        warn!(image = %digest, "the files of an image were removed while it was staged; staging it anew");
        image.state = StageState::Queued;
        self.report(false);
    }

    /// The files of one image can't be written, and others take the same chunks: that one waits alone.
    pub(super) fn image_unwritable(&mut self, digest: Digest, message: String) {
        let filling = |image: &Image| image.state == StageState::Staging;
        if self.images.get(&digest).is_some_and(filling) {
            self.withdraw(digest);
            self.reconciler.have(digest, Have::Kept);
            self.failed(
                digest,
                Trouble {
                    reason: Reason::NotStored,
                    message,
                },
            );
        }
    }

    /// A content of this image is verified.
    pub(super) fn content_closed(&mut self, digest: Digest, content: Digest) {
        self.copy_from_image(&content);
        if let Some(image) = self.images.get_mut(&digest)
            && image.open.remove(&content)
            && image.open.is_empty()
        {
            self.filled(digest);
        }
    }

    /// A content of this image turned out not to be what was verified: no presence until it is again.
    pub(super) fn content_opened(&mut self, digest: Digest, content: Digest) {
        let Some(image) = self.images.get_mut(&digest) else {
            return;
        };
        image.open.insert(content);
        let left = image.leave_presence();
        self.reconciler.have(digest, Have::Filling);
        if left {
            self.report(false);
        }
    }

    pub(super) fn failed(&mut self, digest: Digest, trouble: Trouble) {
        let now = self.now();
        self.reconciler.failed(digest, now);
        let Some(image) = self.images.get_mut(&digest) else {
            return;
        };
        error!(image = %digest, reason = trouble.reason.as_str(), error = trouble.message, "staging failed; trying again later");
        self.metrics
            .stage_seconds
            .get_or_create(&OutcomeLabel { outcome: "failed" })
            .observe(image.ordered.elapsed().as_secs_f64());
        image.state = StageState::Failed;
        image.trouble = Some(trouble);
        self.report(false);
    }

    /// The volume failed us while chunks of images arrived: nothing more is taken until it is tried again.
    pub(super) fn storage_failed(&mut self, message: &str) {
        self.hold_staging(&Trouble {
            reason: Reason::NotStored,
            message: message.to_owned(),
        });
    }

    /// Whether chunks of images are taken.
    pub(super) fn stages(&self) -> bool {
        self.images.values().any(Image::is_filling)
    }

    /// Room was reserved before the first byte, but others write to the volume as well: below the floor nothing more is
    /// taken, until a later beginning finds room for the rest.
    pub(super) fn keep_floor(&mut self) {
        if let Some(trouble) = below_floor(self.volume) {
            self.hold_staging(&trouble);
        }
    }

    fn hold_staging(&mut self, trouble: &Trouble) {
        let staging: Vec<_> = self
            .images
            .values()
            .filter(|image| image.is_filling())
            .map(|image| image.digest)
            .collect();
        for digest in staging {
            self.withdraw(digest);
            self.reconciler.have(digest, Have::Kept);
            self.failed(digest, trouble.clone());
        }
    }

    /// Takes the image's contents out of the swarm; what is on disk stays.
    pub(super) fn withdraw(&mut self, digest: Digest) {
        for (id, content) in self.contents.remove_image(&digest) {
            self.fetches.stop(id);
            // told with the image's new state, in the next report: who gives a lease back while it stages is thought to
            // hold the content
            self.close_lease(id, content, End::plain(LeaseEnd::Released));
            self.tell(Event::Dropped(id));
        }
        if let Some(image) = self.images.get_mut(&digest) {
            image.stage = None;
            image.open.clear();
            let layout = image.layout.clone();
            // what other images have of it is for their hosts alone
            self.retell(&layout);
        }
    }

    /// The image isn't wanted here any more, under any name.
    pub(super) fn cancel_stage(&mut self, digest: Digest) {
        self.declined.remove(&digest);
        self.reconciler.cancel(digest);
        self.give_up(digest);
        self.refresh();
    }

    /// What isn't installed goes. What is stays: tart's user may need it.
    pub(super) fn give_up(&mut self, digest: Digest) {
        self.forget_order(digest);
        if self.reconciler.is_installed(&digest) || !self.images.contains_key(&digest) {
            return;
        }
        info!(image = %digest, "staging is cancelled");
        self.withdraw(digest);
        self.reconciler.have(digest, Have::Kept);
        self.images.remove(&digest);
        self.report(true);
    }

    /// The order to stage it doesn't hold any more: where it is wanted again, this host has to be told again.
    fn forget_order(&mut self, digest: Digest) {
        if let Some(image) = self.images.get_mut(&digest) {
            image.order = 0;
        }
    }

    /// Staging stops, and what is on the disk stays: it is ordered again, or cancelled.
    pub(super) fn hold_stage(&mut self, digest: Digest) {
        self.declined.remove(&digest);
        self.reconciler.hold(digest);
        self.forget_order(digest);
        let Some(image) = self.images.get(&digest) else {
            return;
        };
        if matches!(image.state, StageState::Present | StageState::Installing) {
            return;
        }
        info!(image = %digest, held_bytes = image.held_bytes, "staging is held; what is here is kept");
        self.withdraw(digest);
        self.reconciler.have(digest, Have::Kept);
        self.images.remove(&digest);
        self.report(true);
    }

    pub(super) fn flush(&mut self) {
        self.flushing = true;
        self.last_flush = Instant::now();
        self.contents.flushed();
        let (store, blobs) = (self.store.clone(), self.mirror.blobs().cloned());
        self.spawn_blocking(move || {
            let blobs = blobs.map_or(Ok(()), |blobs| blobs.flush());
            Input::Flushed {
                images: store.flush().map_err(|error| error.to_string()),
                blobs: blobs.map_err(|error| error.to_string()),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_stops_below_the_floor_and_not_at_it() {
        let volume = |free_bytes| Volume {
            total_bytes: 1_000_000,
            free_bytes,
            floor_bytes: 150_000,
        };
        assert_eq!(below_floor(volume(150_000)), None);
        let trouble = below_floor(volume(149_999)).unwrap();
        assert_eq!(trouble.reason, Reason::NoRoom);
        assert!(
            trouble
                .message
                .contains("149.9 kB are free, and 150.0 kB have to stay free")
        );
        // a volume that can't be measured says nothing
        assert_eq!(below_floor(Volume::default()), None);
    }
}
