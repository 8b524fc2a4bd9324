//! One image on this host: what was ordered, and how far it is.

use std::{collections::BTreeSet, fmt::Debug, sync::Arc, time::SystemTime};

use proto::{Digest, Moment, Reason, image::Layout, message::StageState};
use swarm::event::Entitled;

use super::trouble::Trouble;
use crate::{registries::Access, store::Stage};

/// What an image asks of its stage directory. The store has the directory; tests have a made-up one.
pub(super) trait OnDisk: Clone + Debug {
    /// Whether both are the same directory, and not one after the other of the same image.
    fn is_same(&self, other: &Self) -> bool;
    /// Its files were removed.
    fn is_gone(&self) -> bool;
    /// It is in tart's cache.
    fn is_installed(&self) -> bool;
    /// Every chunk is there and verified.
    fn is_complete(&self) -> bool;
    /// Somebody found it damaged.
    fn is_doubted(&self) -> bool;
    /// A content of it is verified.
    fn is_closed(&self, content: Digest) -> bool;
    /// An earlier process left something in it, which is compared before it counts.
    fn has_to_be_read(&self) -> bool;
    /// Bytes of an image that are there.
    fn held_bytes(&self, layout: &Layout) -> u64;
    /// When it was begun, over restarts of the agent.
    fn begun_at(&self) -> Option<SystemTime>;
}

impl OnDisk for Arc<Stage> {
    fn is_same(&self, other: &Self) -> bool {
        Self::ptr_eq(self, other)
    }

    fn is_gone(&self) -> bool {
        Stage::is_gone(self)
    }

    fn is_installed(&self) -> bool {
        Stage::is_installed(self)
    }

    fn is_complete(&self) -> bool {
        Stage::is_complete(self)
    }

    fn is_doubted(&self) -> bool {
        Stage::is_doubted(self)
    }

    fn is_closed(&self, content: Digest) -> bool {
        Stage::is_closed(self, content)
    }

    fn has_to_be_read(&self) -> bool {
        Stage::has_to_be_read(self)
    }

    fn held_bytes(&self, layout: &Layout) -> u64 {
        let held = |content: &proto::image::ContentSpec| {
            let chunks = self.held(content.digest);
            let bytes = chunks.iter().map(|chunk| content.geometry.len(chunk));
            bytes.map(u64::from).sum::<u64>()
        };
        layout.contents().iter().map(held).sum()
    }

    fn begun_at(&self) -> Option<SystemTime> {
        Stage::begun_at(self)
    }
}

/// What the coordinator ordered of an image, last.
#[derive(Clone, Debug, Default)]
pub(super) struct Ordered {
    /// The coordinator's number of the order in this life; 0 before the first, and after it was taken back.
    pub(super) number: u64,
    /// The registry is asked by the first one.
    pub(super) references: Vec<String>,
    pub(super) access: Access,
    /// The hosts that may have what the image holds.
    pub(super) entitled: Entitled,
}

/// How far an image is.
#[derive(Debug)]
pub(super) enum Life<S> {
    /// Nothing of it is taken up: room is reserved for it, or will be.
    Queued,
    /// Its stage is known to the swarm.
    TakenUp(TakenUp<S>),
    /// The last try failed before its stage was taken up, or with it. There is another one after a pause.
    Failed,
    /// It was installed, and somebody removed it, or its last name. It comes back when it is ordered.
    Gone,
}

/// An image whose stage is known to the swarm.
#[derive(Debug)]
pub(super) struct TakenUp<S> {
    pub(super) stage: S,
    /// Contents that aren't verified yet.
    open: BTreeSet<Digest>,
    pub(super) step: Step,
    /// Since when every chunk is here.
    whole_since: Option<Moment>,
}

/// What an image with a stage is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Chunks come, or what an earlier process left is read.
    Filling,
    /// Every chunk is here, and names of it are linked.
    Installing,
    /// tart finds it under every name that is wanted.
    Present,
    /// Linking names of it failed. There is another try after a pause.
    Failed,
}

/// Bytes of an image, by where they came from and went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Raw bytes that are here and verified.
    pub(super) held: u64,
    /// From the registry, compressed.
    pub(super) origin: u64,
    /// From peers, as on the wire.
    pub(super) peers: u64,
    /// That were here already, raw.
    pub(super) local: u64,
    /// To peers, as on the wire.
    pub(super) uploaded: u64,
}

/// What looks at the disk showed of an image.
#[derive(Clone, Debug, Default)]
pub(super) struct Sighting {
    /// When the last look that found it began.
    pub(super) at: Option<Moment>,
    /// References whose tag, and golden where one is made, were there. In order.
    pub(super) ready: Vec<String>,
    /// A golden of it was made in this life of the agent.
    pub(super) golden: bool,
}

/// One image.
#[derive(Debug)]
pub(super) struct Image<S> {
    pub(super) layout: Arc<Layout>,
    pub(super) manifest: Arc<[u8]>,
    pub(super) ordered: Ordered,
    pub(super) life: Life<S>,
    /// Since when it is on its way, for how long that took.
    pub(super) since: Moment,
    /// When this staging of it began, over restarts of the agent, in Unix milliseconds; 0 before it did.
    pub(super) begun_at_ms: u64,
    pub(super) counts: Counts,
    pub(super) trouble: Option<Trouble>,
    pub(super) seen: Sighting,
    /// A job reads its stage, or one that it had before.
    pub(super) reading: bool,
    /// Its files were removed, and it began anew at once. The next time waits.
    pub(super) restaged: bool,
}

impl<S: OnDisk> Image<S> {
    /// An image that was ordered just now.
    pub(super) fn new(
        layout: Arc<Layout>,
        manifest: Arc<[u8]>,
        ordered: Ordered,
        now: Moment,
    ) -> Self {
        Self {
            layout,
            manifest,
            ordered,
            life: Life::Queued,
            since: now,
            begun_at_ms: 0,
            counts: Counts::default(),
            trouble: None,
            seen: Sighting::default(),
            reading: false,
            restaged: false,
        }
    }

    // ---- what it is -----------------------------------------------------------------------------------------------------

    pub(super) fn digest(&self) -> Digest {
        *self.layout.digest()
    }

    /// The reference under which the image was ordered first.
    pub(super) fn reference(&self) -> &str {
        self.ordered.references.first().map_or("", String::as_str)
    }

    /// The stage that it goes by, where one is taken up.
    pub(super) const fn stage(&self) -> Option<&S> {
        match &self.life {
            Life::TakenUp(taken) => Some(&taken.stage),
            Life::Queued | Life::Failed | Life::Gone => None,
        }
    }

    /// Whether this is the stage that it goes by now, and it is still there.
    pub(super) fn goes_by(&self, stage: &S) -> bool {
        self.stage().is_some_and(|own| own.is_same(stage)) && !stage.is_gone()
    }

    pub(super) fn is_at(&self, step: Step) -> bool {
        matches!(&self.life, Life::TakenUp(taken) if taken.step == step)
    }

    /// Whether chunks of it are still to come.
    pub(super) fn is_filling(&self) -> bool {
        self.is_at(Step::Filling) && !self.has_all()
    }

    /// Whether every content of it is verified.
    pub(super) fn has_all(&self) -> bool {
        matches!(&self.life, Life::TakenUp(taken) if taken.open.is_empty())
    }

    /// Whether every chunk is here, and none is believed by the word of an earlier process alone.
    pub(super) fn is_whole(&self) -> bool {
        self.has_all() && !self.reading
    }

    /// Whether it is in tart's cache, and nobody doubts it.
    pub(super) fn is_installed(&self) -> bool {
        let installed = |stage: &S| stage.is_installed() && !stage.is_doubted();
        self.is_whole() && self.stage().is_some_and(installed)
    }

    /// Its state, as others are told of it.
    pub(super) const fn state(&self) -> StageState {
        match &self.life {
            Life::Queued => StageState::Queued,
            Life::TakenUp(taken) => match taken.step {
                Step::Filling => StageState::Staging,
                Step::Installing => StageState::Installing,
                Step::Present => StageState::Present,
                Step::Failed => StageState::Failed,
            },
            Life::Failed => StageState::Failed,
            Life::Gone => StageState::Gone,
        }
    }

    // ---- what becomes of it ---------------------------------------------------------------------------------------------

    /// Goes by this stage from now on.
    pub(super) fn take_up(&mut self, stage: S) {
        self.adopt(&stage);
        let contents = self.layout.contents();
        let open = contents.iter().map(|content| content.digest);
        self.life = Life::TakenUp(TakenUp {
            open: open.filter(|content| !stage.is_closed(*content)).collect(),
            stage,
            step: Step::Filling,
            whole_since: None,
        });
    }

    /// What is told of the image belongs to this stage. Where that is another one than before, nothing is counted of the one
    /// that is gone; what the stage holds is counted.
    pub(super) fn adopt(&mut self, stage: &S) {
        let since_1970 = stage
            .begun_at()
            .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let begun_at_ms = since_1970.map_or(0, |time| {
            u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
        });
        if begun_at_ms != self.begun_at_ms {
            self.counts = Counts::default();
        }
        self.begun_at_ms = begun_at_ms;
        self.counts.held = stage.held_bytes(&self.layout);
    }

    /// A content of it is verified. Whether it was the last one.
    pub(super) fn close(&mut self, content: &Digest) -> bool {
        match &mut self.life {
            Life::TakenUp(taken) => taken.open.remove(content) && taken.open.is_empty(),
            Life::Queued | Life::Failed | Life::Gone => false,
        }
    }

    /// A content of it isn't verified any more.
    pub(super) fn open(&mut self, content: Digest) {
        if let Life::TakenUp(taken) = &mut self.life {
            taken.open.insert(content);
        }
    }

    /// It isn't what it was when it was installed: nothing of it counts until it is again. Whether that changes anything.
    pub(super) fn leave_presence(&mut self, now: Moment) -> bool {
        let Life::TakenUp(taken) = &mut self.life else {
            return false;
        };
        if taken.step == Step::Filling {
            return false;
        }
        taken.step = Step::Filling;
        taken.whole_since = None;
        self.seen.ready.clear();
        // what it takes to mend it isn't what it took to stage it
        self.since = now;
        true
    }

    /// Takes the next step, where it has a stage.
    pub(super) fn go_to(&mut self, step: Step) {
        if let Life::TakenUp(taken) = &mut self.life {
            taken.step = step;
        }
    }

    /// Every chunk of it is here, since now where it wasn't said before.
    pub(super) fn note_whole(&mut self, now: Moment) {
        if let Life::TakenUp(taken) = &mut self.life {
            taken.whole_since.get_or_insert(now);
        }
    }

    /// Since when every chunk was here. Says it once.
    pub(super) fn take_whole_since(&mut self) -> Option<Moment> {
        match &mut self.life {
            Life::TakenUp(taken) => taken.whole_since.take(),
            Life::Queued | Life::Failed | Life::Gone => None,
        }
    }

    pub(super) fn trouble(&mut self, reason: Reason, message: impl Into<String>) {
        self.trouble = Some(Trouble {
            reason,
            message: message.into(),
        });
    }

    /// Clears a trouble of one of these reasons.
    pub(super) fn clear_trouble_of(&mut self, reasons: &[Reason]) {
        self.trouble
            .take_if(|trouble| reasons.contains(&trouble.reason));
    }
}
