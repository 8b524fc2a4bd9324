//! What a new stage takes from the disks that are here: the disk of which its own begins as a clone, and the chunks
//! that are copied. What comes from another disk is compared with its link before it counts.

use std::{
    cell::Cell,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{Digest, Layout};

use super::{
    alike::{self, Copied, Lacking, Offsets},
    blocks::{Disk, MAX_DISKS},
    claim::WriteError,
    files::needed_bytes,
    found::FoundDisk,
    prints::Prints,
    recipes::NamedRecipe,
    reuse::{self, Samples, Term},
    shared::Shared,
    stage::Stage,
    steps::step,
};

/// While chunks are copied from other disks, the journal is flushed this often: a large image takes minutes, and after
/// a restart the copy goes on instead of starting over.
const FLUSH_EVERY: Duration = Duration::from_millis(500);

/// Why what is here can't be taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum SeedError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The disk of which a new one begins as a clone.
#[derive(Clone, Debug)]
pub(super) enum Base {
    /// That of another image.
    Image(Arc<Stage>),
    /// One that was found.
    Found(FoundDisk),
}

impl Base {
    /// Where it lies.
    pub(super) fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Image(stage) => stage.names().disk_path(),
            Self::Found(disk) => Some(disk.path().to_owned()),
        }
    }

    fn is_image(&self, image: &Digest) -> bool {
        matches!(self, Self::Image(stage) if stage.layout().digest() == image)
    }

    fn is_found(&self, found: &FoundDisk) -> bool {
        matches!(self, Self::Found(disk) if disk == found)
    }
}

/// How a new image begins.
#[derive(Clone, Debug, Default)]
pub(super) struct Beginning {
    /// The disk that has the most bytes in common with the image's at the same offsets.
    pub(super) base: Option<Base>,
    /// How many these are: they take no room in a clone.
    pub(super) common_bytes: u64,
    /// Bytes of zeros, as far as they are known: holes take no room.
    pub(super) zero_bytes: u64,
    /// The time that the search for blocks took by then.
    pub(super) searched: Duration,
}

impl Beginning {
    /// Bytes that an image takes that begins so, as a copy and, where the volume can clone, as a clone. Zeros take
    /// none. Neither do bytes that a clone has in common with its base.
    pub(super) fn need(&self, layout: &Layout, clones: bool) -> (u64, u64) {
        let copy = needed_bytes(layout).saturating_sub(self.zero_bytes);
        match clones {
            true => (copy, copy.saturating_sub(self.common_bytes)),
            false => (copy, copy),
        }
    }
}

/// The disks from which a new image may take its bytes.
#[derive(Debug)]
pub(super) struct Seeds {
    shared: Arc<Shared>,
    images: Vec<Arc<Stage>>,
    found: Vec<FoundDisk>,
}

impl Seeds {
    /// These images, and the disks in tart's home that were found and read.
    pub(super) fn here(shared: Arc<Shared>, images: Vec<Arc<Stage>>) -> Self {
        let mut found = FoundDisk::known(shared.home());
        found.retain(FoundDisk::is_read);
        Self {
            shared,
            images,
            found,
        }
    }

    /// What the images here hold, for a stage that begins without a recipe.
    pub(super) fn prints(&self) -> Prints {
        let images = self.images.iter();
        Prints::of(images.map(|image| image.clone() as _).collect())
    }

    /// Says how an image begins. A clone of a disk saves the copying of the bytes that both have at the same offsets.
    /// Without a recipe those are whole layers of other images. With one they are chunks, also of disks that were
    /// found. Of two disks that one is better that has more blocks in place, because in a chunk that differs only the
    /// pages that differ are written.
    pub(super) fn beginning(&self, layout: &Layout, by: Option<&NamedRecipe>) -> Beginning {
        let images = self.images.iter().filter(|stage| !stage.is_gone());
        let Some(by) = by else {
            let common = images.map(|stage| (stage, alike::common_layers(layout, stage)));
            let best = common.max_by_key(|(_, common)| *common);
            let best = best.filter(|(_, common)| *common > 0);
            return Beginning {
                common_bytes: best.map_or(0, |(_, common)| common),
                base: best.map(|(stage, _)| Base::Image(stage.clone())),
                ..Beginning::default()
            };
        };
        let term = Term::begin(&self.shared, layout.digest(), Duration::ZERO);
        let offsets = Offsets::of(layout, &by.recipe);
        let samples = Samples::of(self.shared.home(), &by.file.digest, layout, &term);
        let looked = Cell::new(0);
        let in_place = |disk: &dyn Fn() -> Option<Disk>| {
            // an index that is lacking takes a while to make
            let samples = samples.as_ref().filter(|_| looked.get() < MAX_DISKS);
            let found = samples.and_then(|samples| Some((samples, disk()?)));
            found.map_or(0, |(samples, disk)| {
                looked.update(|looked| looked + 1);
                samples.in_place(&disk)
            })
        };
        let images = images.map(|stage| {
            let common = offsets.in_image(stage);
            let alike = common.max(in_place(&|| reuse::disk(stage, &term)));
            (alike, common, Base::Image(stage.clone()))
        });
        let found = self.found.iter().map(|disk| {
            let common = offsets.in_found(disk);
            let alike = common.max(in_place(&|| Disk::found(disk).ok().flatten()));
            (alike, common, Base::Found(disk.clone()))
        });
        let best = images
            .chain(found)
            .max_by_key(|(alike, common, _)| (*alike, *common));
        let best = best.filter(|(alike, _, _)| *alike > 0);
        Beginning {
            common_bytes: best.as_ref().map_or(0, |(_, common, _)| *common),
            base: best.map(|(_, _, base)| base),
            zero_bytes: offsets.zeros(),
            searched: term.spent(),
        }
    }

    /// Copies the chunks that are here. A clone of `base` has the bytes of `base` already. `searched` is the time that
    /// the search for blocks took by now. Returns the bytes that needn't come from elsewhere.
    ///
    /// # Errors
    /// When the stage can't be written, or the program stops.
    pub(super) fn copy(
        &self,
        stage: &Stage,
        base: Option<&Base>,
        searched: Duration,
    ) -> Result<u64, SeedError> {
        let mut flushed_at = Instant::now();
        let mut go_on = || -> Result<(), SeedError> {
            stage.shared().go_on()?;
            step("before a chunk is copied")?;
            if flushed_at.elapsed() >= FLUSH_EVERY {
                stage.flush()?;
                flushed_at = Instant::now();
            }
            Ok(())
        };
        let mut copied = 0;
        for other in &self.images {
            let cloned = base.is_some_and(|base| base.is_image(other.layout().digest()));
            for content in stage.layout().contents() {
                if stage.is_closed(content.digest) || !other.is_closed(content.digest) {
                    continue;
                }
                let content = content.digest;
                copied += alike::copy_content(stage, other, content, cloned, &mut go_on)?;
            }
        }
        Ok(copied + self.copy_by_recipe(stage, base, searched, &mut go_on)?)
    }

    /// Copies the chunks that the stage's recipe has in common with what is here.
    fn copy_by_recipe(
        &self,
        stage: &Stage,
        base: Option<&Base>,
        searched: Duration,
        go_on: &mut dyn FnMut() -> Result<(), SeedError>,
    ) -> Result<u64, SeedError> {
        let mut lacking = Lacking::of(stage);
        if lacking.is_empty() {
            return Ok(0);
        }
        // zeros lie on no disk, and need none
        let zeros = alike::punch(stage, &mut lacking, go_on)?;
        let mut all = Copied::default();
        let is_base =
            |other: &Arc<Stage>| base.is_some_and(|base| base.is_image(other.layout().digest()));
        let is_found_base = |disk: &FoundDisk| base.is_some_and(|base| base.is_found(disk));
        // what lies in its place is found before a copy of it is made
        let (mut images, mut found) = (self.images.clone(), self.found.clone());
        images.sort_by_key(|other| !is_base(other));
        found.sort_by_key(|disk| !is_found_base(disk));
        for disk in found.iter().filter(|disk| is_found_base(disk)) {
            all.add(alike::copy_found(stage, &mut lacking, disk, true, go_on)?);
        }
        for other in &images {
            all.add(alike::copy(
                stage,
                &mut lacking,
                other,
                is_base(other),
                go_on,
            )?);
        }
        for disk in found.iter().filter(|disk| !is_found_base(disk)) {
            all.add(alike::copy_found(stage, &mut lacking, disk, false, go_on)?);
        }
        let by_blocks = reuse::copy(stage, &images, &found, searched, go_on)?;
        all.bytes += by_blocks;
        for content in stage.layout().contents() {
            stage.walk(content.digest)?;
        }
        tracing::info!(image = %stage.layout().digest(), bytes = all.bytes, in_place = all.in_place, by_blocks, zeros, "chunks of the image were on this host already");
        Ok(all.bytes)
    }
}
