//! One image on this host: the coordinator's order, and how far the image is.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    sync::Arc,
    time::{Duration, SystemTime},
};

use proto::{
    Digest, HostKey, Moment, Reason,
    image::{Blob, Layout},
    message::{StageOrder, StageState},
    recipe::{Doubt, Recipe},
};
use swarm::event::Entitled;
use tracing::{info, warn};

use super::{patience::Patience, trouble::Trouble};
use crate::{
    reconcile::Have,
    registries::Access,
    store::{Stage, recipes::NamedRecipe},
};

/// The questions that an image asks its stage directory. The store has the directory; tests have a made-up one.
pub(super) trait OnDisk: Clone + Debug {
    /// Whether both are the same directory, and not two directories of the same image one after the other.
    fn is_same(&self, other: &Self) -> bool;
    /// Whether the files were removed.
    fn is_gone(&self) -> bool;
    /// Whether the image is in tart's cache.
    fn is_installed(&self) -> bool;
    /// Whether every chunk is there and verified.
    fn is_complete(&self) -> bool;
    /// Whether the image was found damaged.
    fn is_doubted(&self) -> bool;
    /// Whether this content is verified.
    fn is_closed(&self, content: Digest) -> bool;
    /// Whether an earlier process left something here that has to be compared before it counts.
    fn has_to_be_read(&self) -> bool;
    /// Bytes of an image that are there.
    fn held_bytes(&self, layout: &Layout) -> u64;
    /// Bytes that this process wrote to the image's files, without zeros.
    fn written_bytes(&self) -> u64;
    /// When the staging began; a restart of the agent doesn't change that.
    fn begun_at(&self) -> Option<SystemTime>;
    /// The recipe by which the image's chunks are proved.
    fn recipe(&self) -> Option<Blob>;
    /// The image's recipe, unless a content was left by it, or contradicts it.
    fn proved_recipe(&self) -> Option<Blob>;
    /// Whether hosts made the recipe: then the word of any other host who answers for a link is worth as much.
    fn set_of_hosts(&self, of_hosts: bool);
    /// Proves this content's chunks without the recipe from now on.
    fn leave_recipe(&self, content: Digest);
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

    fn written_bytes(&self) -> u64 {
        self.files().written_bytes()
    }

    fn begun_at(&self) -> Option<SystemTime> {
        Stage::begun_at(self)
    }

    fn recipe(&self) -> Option<Blob> {
        Stage::recipe(self)
    }

    fn proved_recipe(&self) -> Option<Blob> {
        Stage::proved_recipe(self)
    }

    fn set_of_hosts(&self, of_hosts: bool) {
        self.standing().set_of_hosts(of_hosts);
    }

    fn leave_recipe(&self, content: Digest) {
        if let Some(mut known) = self.known(content) {
            known.leave_recipe();
        }
    }
}

/// The coordinator's last order for an image.
#[derive(Clone, Debug, Default)]
pub(super) struct Ordered {
    /// The coordinator's number of the order in this life; 0 before the first order, and after it was taken back.
    pub(super) number: u64,
    /// The references. The registry is asked by the first one.
    pub(super) references: Vec<String>,
    pub(super) access: Access,
    /// The hosts that may have the image's contents.
    pub(super) entitled: Entitled,
    /// The bytes of the image's recipe.
    pub(super) recipe: Option<Blob>,
    /// Whether no registry has the recipe, because hosts made it.
    pub(super) made_by_hosts: bool,
    /// The contents for which the recipe isn't used, because it may be false there.
    pub(super) in_doubt: BTreeSet<Digest>,
}

impl Ordered {
    /// What is known of an image that an earlier process left, before the coordinator orders it.
    pub(super) fn before_any_order(references: Vec<String>, entitled: Entitled) -> Self {
        Self {
            references,
            entitled,
            ..Self::default()
        }
    }
}

impl From<StageOrder> for Ordered {
    fn from(order: StageOrder) -> Self {
        let hosts = order.entitled_hosts.iter().copied().map(HostKey);
        let recipe = order.recipe.as_ref().and_then(|file| {
            let digest = Digest::try_from(file.digest.as_slice()).ok()?;
            (file.size > 0).then_some(Blob {
                digest,
                size: file.size,
            })
        });
        let doubts = order.recipe_doubts.iter();
        let doubts = doubts.filter_map(|doubt| Doubt::parse(doubt).ok());
        let of_recipe = |doubt: &Doubt| recipe.is_some_and(|file| file.digest == doubt.recipe);
        Self {
            number: order.order,
            access: Access::new(order.token.as_ref(), order.plain_http),
            references: order.references,
            // an order of an earlier version names no hosts
            entitled: (!order.entitled_hosts.is_empty()).then(|| Arc::new(hosts.collect())),
            in_doubt: doubts
                .filter(of_recipe)
                .map(|doubt| doubt.content)
                .collect(),
            made_by_hosts: order.recipe.is_some_and(|file| file.made_by_hosts),
            recipe,
        }
    }
}

/// The most names of one image in one line of the log: thousands of names may be left that were wanted once.
const NAMES_SAID: usize = 16;

/// Why an image goes without a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoRecipe {
    pub(super) error: String,
    /// Whether what was read isn't the recipe of the image. Otherwise the recipe can't be read now.
    pub(super) is_false: bool,
}

impl NoRecipe {
    /// The recipe can't be read now.
    pub(super) const fn unread(error: String) -> Self {
        Self {
            error,
            is_false: false,
        }
    }
}

/// How far the recipe is that an image's stage is to begin by.
#[derive(Debug, Default)]
pub(super) enum RecipeAt {
    /// There is no recipe, or the stage begins without it.
    #[default]
    Nowhere,
    /// The recipe's bytes come, and the stage waits for them.
    Coming(Blob),
    /// The recipe was read.
    Here(Arc<NamedRecipe>),
    /// The image is installed, and has no recipe. A recipe's bytes come, and nothing waits for them.
    Sought(Blob),
}

/// How far an image is.
#[derive(Debug)]
pub(super) enum Life<S> {
    /// Waits for its turn, or for room. The swarm doesn't know the image's stage yet.
    Queued,
    /// The image's stage is known to the swarm.
    TakenUp(TakenUp<S>),
    /// The last try failed, and the swarm doesn't know the image's stage. Another try follows after a pause.
    Failed,
    /// The image was installed, and somebody removed it or its last name. It comes back when it is ordered.
    Gone,
}

/// An image whose stage is known to the swarm.
#[derive(Debug)]
pub(super) struct TakenUp<S> {
    pub(super) stage: S,
    /// Contents that aren't verified yet.
    open: BTreeSet<Digest>,
    pub(super) step: Step,
    /// The moment since which every chunk is here.
    whole_since: Option<Moment>,
}

/// The current step of an image with a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Chunks come, or the bytes of an earlier process are read.
    Filling,
    /// Every chunk is here, and names of the image are being linked.
    Installing,
    /// tart finds the image under every name that is wanted.
    Present,
    /// Linking names of the image failed. Another try follows after a pause.
    Failed,
}

/// Bytes of an image, by their source and destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Raw bytes that are here and verified.
    pub(super) held: u64,
    /// Bytes from the registry, compressed.
    pub(super) origin: u64,
    /// Bytes from peers, as on the wire.
    pub(super) peers: u64,
    /// Raw bytes that were on this host already.
    pub(super) local: u64,
    /// Bytes to peers, as on the wire.
    pub(super) uploaded: u64,
}

/// The findings about an image from looks at the disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Sighting {
    /// When the last look began that found the image.
    pub(super) at: Option<Moment>,
    /// References whose tag was there, and whose golden too, if goldens are made. In order.
    pub(super) ready: Vec<String>,
    /// A golden of the image was made in this life of the agent.
    pub(super) golden: bool,
}

/// One image.
#[derive(Debug)]
pub(super) struct Image<S> {
    pub(super) layout: Arc<Layout>,
    pub(super) manifest: Arc<[u8]>,
    pub(super) ordered: Ordered,
    pub(super) life: Life<S>,
    /// The moment since which the image is on its way; its duration is measured from here.
    pub(super) since: Moment,
    /// When this staging began, in Unix milliseconds; 0 before it did. A restart of the agent doesn't change it.
    pub(super) begun_at_ms: u64,
    pub(super) counts: Counts,
    pub(super) trouble: Option<Trouble>,
    pub(super) seen: Sighting,
    /// A job reads the image's stage, or an earlier stage of the image.
    pub(super) reading: bool,
    /// The image's files were removed once, and its staging began anew at once. The next time there is a pause.
    pub(super) restaged: bool,
    /// The recipe for the stage's beginning, or for the installed image.
    recipe: RecipeAt,
    /// How long the stage's beginning waits for a recipe, whichever is ordered: a host that names one after the other
    /// makes it wait no longer.
    patience: Option<Patience>,
    /// The last recipe that was compared with the installed image, and found false.
    pub(super) refused: Option<Digest>,
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
            recipe: RecipeAt::Nowhere,
            patience: None,
            refused: None,
        }
    }

    // ---- what it is -------------------------------------------------------------------------------------------------

    pub(super) fn digest(&self) -> Digest {
        *self.layout.digest()
    }

    /// The reference under which the image was ordered first.
    pub(super) fn reference(&self) -> &str {
        self.ordered.references.first().map_or("", String::as_str)
    }

    /// The stage that the image uses, if one is taken up.
    pub(super) const fn stage(&self) -> Option<&S> {
        match &self.life {
            Life::TakenUp(taken) => Some(&taken.stage),
            Life::Queued | Life::Failed | Life::Gone => None,
        }
    }

    /// Whether the image uses this stage now, and the stage is still there.
    pub(super) fn goes_by(&self, stage: &S) -> bool {
        self.stage().is_some_and(|own| own.is_same(stage)) && !stage.is_gone()
    }

    pub(super) fn is_at(&self, step: Step) -> bool {
        matches!(&self.life, Life::TakenUp(taken) if taken.step == step)
    }

    /// Whether chunks of the image are still to come.
    pub(super) fn is_filling(&self) -> bool {
        self.is_at(Step::Filling) && !self.has_all()
    }

    /// Whether every content of the image is verified.
    pub(super) fn has_all(&self) -> bool {
        matches!(&self.life, Life::TakenUp(taken) if taken.open.is_empty())
    }

    /// Whether every chunk is here, and none still has to be compared because an earlier process left it.
    pub(super) fn is_whole(&self) -> bool {
        self.has_all() && !self.reading
    }

    /// Whether the image is in tart's cache, and isn't suspected to be damaged.
    pub(super) fn is_installed(&self) -> bool {
        let installed = |stage: &S| stage.is_installed() && !stage.is_doubted();
        self.is_whole() && self.stage().is_some_and(installed)
    }

    /// How much of the image is here, if its stage is taken up.
    pub(super) fn have(&self) -> Have {
        match (self.is_whole(), self.is_installed()) {
            (_, true) => Have::Installed,
            (true, false) => Have::Whole,
            (false, _) => Have::Filling,
        }
    }

    /// The image's state, as others are told.
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

    // ---- its recipe -------------------------------------------------------------------------------------------------

    /// The recipe whose bytes came until now, if it isn't wanted any more. Then the bytes of the recipe that is to be
    /// had before the image's stage begins, if they have to be asked for now. An image that is installed without a
    /// recipe takes one that hosts made.
    pub(super) fn seek_recipe(&mut self, now: Moment) -> (Option<Digest>, Option<Blob>) {
        let begins = self.stage().is_none();
        let wanted = self
            .ordered
            .recipe
            .filter(|file| begins || self.lacks(file));
        let left = self.superseded(wanted);
        match &self.recipe {
            RecipeAt::Coming(file) if begins && wanted == Some(*file) => return (None, None),
            RecipeAt::Here(recipe) if begins && wanted == Some(recipe.file) => return (None, None),
            RecipeAt::Sought(file) if !begins && wanted == Some(*file) => return (None, None),
            _ => self.recipe = RecipeAt::Nowhere,
        }
        let Some(file) = wanted.filter(|file| file.size <= Recipe::max_bytes(&self.layout)) else {
            return (left, None);
        };
        let patience = || Patience::new(now, self.layout.blob_bytes());
        self.recipe = match begins {
            true => {
                self.patience.get_or_insert_with(patience);
                RecipeAt::Coming(file)
            }
            false => RecipeAt::Sought(file),
        };
        (left, Some(file))
    }

    /// Whether the image is installed without a recipe that its bytes have proved, and may take this one.
    fn lacks(&self, file: &Blob) -> bool {
        let has_none = || {
            let stage = self.stage();
            stage.is_some_and(|stage| stage.proved_recipe().is_none())
        };
        let refused = self.refused == Some(file.digest);
        self.ordered.made_by_hosts && !refused && self.is_installed() && has_none()
    }

    /// Whether orders say that the registry has this recipe.
    fn is_of_registry(&self, file: &Blob) -> bool {
        self.ordered.recipe == Some(*file) && !self.ordered.made_by_hosts
    }

    /// Tells the stage whether hosts made its recipe, as the last order says.
    fn tell_of_hosts(&self) {
        if let Some(stage) = self.stage()
            && let Some(file) = stage.recipe()
            && self.ordered.number > 0
        {
            stage.set_of_hosts(!self.is_of_registry(&file));
        }
    }

    /// The stage's contents that are in doubt go on without its recipe. The notes of the stage don't name them, and a
    /// host that isn't connected isn't told when a doubt comes up.
    fn leave_in_doubt(&self) {
        let ordered = self.ordered.recipe.map(|file| file.digest);
        let goes_by = |stage: &&S| stage.recipe().map(|file| file.digest) == ordered;
        if let Some(stage) = self.stage().filter(goes_by) {
            for content in &self.ordered.in_doubt {
                stage.leave_recipe(*content);
            }
        }
    }

    /// The recipe that this host says it has. One that hosts made is named once the image's bytes have proved it, so
    /// that nobody gives a voice to what he only believed.
    pub(super) fn told_recipe(&self) -> Option<Blob> {
        let file = self.stage()?.recipe()?;
        if self.is_of_registry(&file) {
            return Some(file);
        }
        let stage = self.stage().filter(|_| self.is_whole());
        stage.and_then(OnDisk::proved_recipe)
    }

    /// Bytes of a recipe came: of this image's, or of another's.
    pub(super) fn recipe_comes(&mut self, now: Moment, bytes: u64) {
        if let Some(patience) = &mut self.patience {
            patience.hear(now, bytes);
        }
    }

    /// How much longer the stage waits for the recipe; `None` when it doesn't wait.
    pub(super) fn waits_for_recipe(&self, now: Moment) -> Option<Duration> {
        let until = self.patience.as_ref().map(Patience::until);
        let until = until.filter(|_| matches!(self.recipe, RecipeAt::Coming(_)));
        let wait = until.map(|until| until.since(now));
        wait.filter(|wait| !wait.is_zero())
    }

    /// Whether these are the bytes of the recipe that the stage waits for, or that the installed image lacks.
    pub(super) fn awaits(&self, content: &Digest) -> Option<Blob> {
        match &self.recipe {
            RecipeAt::Coming(file) | RecipeAt::Sought(file) if file.digest == *content => {
                Some(*file)
            }
            _ => None,
        }
    }

    /// Whether hosts made this recipe; `None` if the image doesn't use the recipe: another one was ordered meanwhile.
    pub(super) fn takes_recipe(&self, recipe: &Digest) -> Option<bool> {
        let named = |file: Option<Blob>| file.is_some_and(|file| file.digest == *recipe);
        let staged = self.stage().and_then(OnDisk::recipe);
        let takes = named(staged) || self.awaits(recipe).is_some();
        takes.then(|| named(self.ordered.recipe) && self.ordered.made_by_hosts)
    }

    /// The recipe whose bytes come, if `wanted` is another one, and the stage doesn't go by it.
    fn superseded(&self, wanted: Option<Blob>) -> Option<Digest> {
        let (RecipeAt::Coming(file) | RecipeAt::Sought(file)) = &self.recipe else {
            return None;
        };
        let staged = self.stage().and_then(OnDisk::recipe);
        (wanted != Some(*file) && staged != Some(*file)).then_some(file.digest)
    }

    /// Whether the swarm may know the recipe's bytes as a content of the image.
    pub(super) const fn has_recipe(&self) -> bool {
        !matches!(self.recipe, RecipeAt::Nowhere)
    }

    /// Whether the stage begins by a recipe.
    pub(super) const fn is_by_recipe(&self) -> bool {
        matches!(self.recipe, RecipeAt::Here(_))
    }

    /// The recipe was read, or can't be: the stage begins by it, or without one. Returns the recipe, if it is none of
    /// the image, and whether the stage waited for it.
    pub(super) fn found_recipe(
        &mut self,
        result: Result<Arc<NamedRecipe>, NoRecipe>,
    ) -> (Option<Digest>, bool) {
        let image = self.digest();
        let is_false = result.as_ref().is_err_and(|error| error.is_false);
        let left = self.superseded(None).filter(|_| is_false);
        if let RecipeAt::Sought(file) = &self.recipe {
            if let Err(NoRecipe { error, is_false }) = result {
                self.refused = is_false.then_some(file.digest).or(self.refused);
                warn!(%image, recipe = %file.digest, error, "a recipe that another host made isn't kept");
            }
            self.recipe = RecipeAt::Nowhere;
            return (left, false);
        }
        if let Err(NoRecipe { error, .. }) = &result {
            warn!(%image, error, "an image is staged without its recipe");
        }
        let waited = self.has_recipe() && self.stage().is_none();
        if waited {
            self.recipe = result.map_or(RecipeAt::Nowhere, RecipeAt::Here);
        }
        (left, waited)
    }

    /// The recipe by which the stage begins now. A recipe that hasn't come isn't waited for any longer.
    pub(super) fn take_recipe(&mut self) -> Option<Arc<NamedRecipe>> {
        self.patience = None;
        match &self.recipe {
            RecipeAt::Here(recipe) => Some(recipe.clone()),
            RecipeAt::Coming(_) | RecipeAt::Sought(_) | RecipeAt::Nowhere => {
                self.recipe = RecipeAt::Nowhere;
                None
            }
        }
    }

    /// The recipe isn't used for a content any more, because it may be false there. Returns whether the image has this
    /// recipe.
    pub(super) fn doubt_recipe(&mut self, doubt: &Doubt) -> bool {
        let staged = self.stage().and_then(OnDisk::recipe);
        let recipe = staged.or(self.ordered.recipe);
        if recipe.is_none_or(|file| file.digest != doubt.recipe) {
            return false;
        }
        warn!(image = %doubt.image, recipe = %doubt.recipe, content = %doubt.content, chunk = doubt.chunk.0, "a recipe doesn't fit the registry's bytes; a content goes on without it");
        self.ordered.in_doubt.insert(doubt.content);
        if let Some(stage) = self.stage() {
            stage.leave_recipe(doubt.content);
        }
        true
    }

    // ---- what becomes of it -----------------------------------------------------------------------------------------

    /// Takes a newer order. Returns whether other hosts may have the image's contents than before.
    pub(super) fn take_order(&mut self, now: Moment, ordered: Ordered) -> bool {
        if matches!(self.life, Life::Gone) {
            self.since = now;
        }
        let before = std::mem::replace(&mut self.ordered, ordered);
        self.tell_of_hosts();
        self.leave_in_doubt();
        before.entitled != self.ordered.entitled
    }

    /// Uses this stage from now on.
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
        self.tell_of_hosts();
        self.leave_in_doubt();
    }

    /// Reports about the image are about this stage from now on. If it is another stage than before, the counts begin
    /// anew. The bytes that the stage holds are counted.
    pub(super) fn adopt(&mut self, stage: &S) {
        let since_1970 = stage
            .begun_at()
            .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let begun_at_ms = since_1970.map_or(0, proto::millis);
        if begun_at_ms != self.begun_at_ms {
            self.counts = Counts::default();
        }
        self.begun_at_ms = begun_at_ms;
        self.counts.held = stage.held_bytes(&self.layout);
    }

    /// Notes that a content of the image is verified. Returns whether it was the last one.
    pub(super) fn close(&mut self, content: &Digest) -> bool {
        match &mut self.life {
            Life::TakenUp(taken) => taken.open.remove(content) && taken.open.is_empty(),
            Life::Queued | Life::Failed | Life::Gone => false,
        }
    }

    /// Notes that a content of the image isn't verified any more.
    pub(super) fn open(&mut self, content: Digest) {
        if let Life::TakenUp(taken) = &mut self.life {
            taken.open.insert(content);
        }
    }

    /// The image on disk differs from the installed image. So the image isn't present until it is mended. Returns
    /// whether that changes anything.
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
        // the time for mending doesn't count as time for staging
        self.since = now;
        true
    }

    /// The image was found damaged: it isn't present until it is mended.
    pub(super) fn doubt(&mut self, now: Moment) {
        if self.leave_presence(now) {
            self.trouble(
                Reason::Checking,
                "it was found damaged on disk; all of it is read again and mended",
            );
        }
    }

    /// Returns the stage, if the bytes that an earlier process left in it have to be read, and no job reads already.
    pub(super) fn begin_reading(&mut self) -> Option<S> {
        let stage = self.stage().filter(|stage| stage.has_to_be_read());
        let stage = stage.filter(|_| !self.reading).cloned()?;
        self.reading = true;
        Some(stage)
    }

    /// Goes to this step, if the image has a stage.
    pub(super) fn go_to(&mut self, step: Step) {
        if let Life::TakenUp(taken) = &mut self.life {
            taken.step = step;
        }
    }

    /// Notes that every chunk of the image is here. The first such moment counts.
    pub(super) fn note_whole(&mut self, now: Moment) {
        if let Life::TakenUp(taken) = &mut self.life {
            taken.whole_since.get_or_insert(now);
        }
    }

    /// tart finds the image under every name that is wanted. Returns the time since the image was ordered or lost, and
    /// the time since its last chunk came.
    pub(super) fn become_present(&mut self, now: Moment) -> (Duration, Duration) {
        let whole_since = match &mut self.life {
            Life::TakenUp(taken) => taken.whole_since.take(),
            Life::Queued | Life::Failed | Life::Gone => None,
        };
        self.go_to(Step::Present);
        self.restaged = false;
        self.trouble = None;
        let staged_in = now.since(self.since);
        let installed_in = now.since(whole_since.unwrap_or(now));
        info!(
            image = %self.digest(),
            references = ?self.seen.ready.iter().take(NAMES_SAID).collect::<Vec<_>>(),
            elapsed_ms = proto::millis(staged_in),
            install_ms = proto::millis(installed_in),
            origin_bytes = self.counts.origin,
            peer_bytes = self.counts.peers,
            local_bytes = self.counts.local,
            "image is present"
        );
        (staged_in, installed_in)
    }

    /// Logs the names of an installed image that a look found, and the last one doesn't.
    pub(super) fn say_lost(&self, before: &[String]) {
        let gone = |name: &&String| self.seen.ready.binary_search(*name).is_err();
        let lost: Vec<&String> = before.iter().filter(gone).take(NAMES_SAID).collect();
        if !lost.is_empty() && self.is_installed() {
            warn!(image = %self.digest(), references = ?lost, "image's tag or its golden was removed or moved; presence is withdrawn");
        }
    }

    /// The image's files were removed while it was staged, and its staging begins anew. Returns whether that happened
    /// before, since the image was last present.
    pub(super) fn restage(&mut self) -> bool {
        self.seen.ready.clear();
        self.counts = Counts::default();
        std::mem::replace(&mut self.restaged, true)
    }

    /// The image was installed, and its files or its last name are gone.
    pub(super) fn vanish(&mut self, reason: Reason) {
        let image = self.digest();
        let message = match reason {
            Reason::Superseded => {
                info!(%image, "nothing names the image any more, and nobody wants it");
                "no name of it is wanted, and none is left"
            }
            // the store has logged it
            Reason::Retired => "nobody wants it, and the rule about old images had it removed",
            _ => {
                warn!(%image, "image was removed; presence is withdrawn");
                "image was removed from tart's cache by tart or somebody else"
            }
        };
        self.life = Life::Gone;
        self.counts = Counts::default();
        self.seen.ready.clear();
        self.trouble(reason, message);
    }

    /// A try failed.
    pub(super) fn fail(&mut self, trouble: Trouble) {
        match self.stage() {
            Some(_) => self.go_to(Step::Failed),
            None => self.life = Life::Failed,
        }
        self.trouble = Some(trouble);
    }

    /// tart has the lock that the installation needs.
    pub(super) fn wait_for_tart(&mut self, trouble: Trouble) {
        if self.trouble.is_none() {
            warn!(image = %self.digest(), reason = trouble.reason.as_str(), error = trouble.message, "installing waits for tart");
        }
        self.trouble = Some(trouble);
    }

    pub(super) fn trouble(&mut self, reason: Reason, message: impl Into<String>) {
        self.trouble = Some(Trouble {
            reason,
            message: message.into(),
        });
    }

    /// Clears the trouble, if it has one of these reasons.
    pub(super) fn clear_trouble_of(&mut self, reasons: &[Reason]) {
        self.trouble
            .take_if(|trouble| reasons.contains(&trouble.reason));
    }
}

#[cfg(test)]
mod tests;
