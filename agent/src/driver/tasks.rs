//! The work of the driver's jobs that runs beside its loop, on threads that may block. Each job ends in an [`Input`].

use std::{ops::Range, path::Path, sync::Arc};

use proto::{ChunkIndex, Digest, image::Layout};
use tracing::{debug, warn};

use super::{input::Input, look::Seen, trouble::Trouble};
use crate::{
    golden::Goldens,
    mirror::blobs::Blobs,
    platform,
    shelf::Shelf,
    store::{BeginError, InstallError, Look, Stage, Store, install_as},
};

/// The place where images are begun: the store, and the mirror's cache, which gives way to them.
pub(super) struct Room<'a> {
    store: &'a Store,
    blobs: Option<&'a Blobs>,
    home: &'a Path,
}

impl<'a> Room<'a> {
    pub(super) const fn new(store: &'a Store, blobs: Option<&'a Blobs>, home: &'a Path) -> Self {
        Self { store, blobs, home }
    }

    /// Reserves room for an image, and takes up its files on the disk. Returns the stage, and how many bytes were
    /// copied.
    pub(super) fn begin(
        &self,
        layout: &Layout,
        manifest: &[u8],
        names: &[String],
    ) -> Result<(Arc<Stage>, u64), Trouble> {
        let image = layout.digest();
        let make_room = |bytes| {
            let blobs = self.blobs;
            blobs.is_some_and(|blobs| blobs.give_way(self.home, bytes))
        };
        let kept = self.store.keep_entitled(image).map_err(BeginError::Io);
        let begun = kept
            .and_then(|()| self.store.want(image, names))
            .and_then(|()| {
                self.store
                    .begin_making_room(layout, manifest, names, make_room)
            });
        if let Some(blobs) = self.blobs {
            blobs.leave(self.home, self.store.outstanding_bytes());
        }
        begun.map_err(|error| Trouble::from(&error))
    }
}

/// Writes down which names are wanted for an image.
pub(super) fn record(store: &Store, image: Digest, names: &[String]) -> Input {
    let result = store.want(&image, names);
    Input::Recorded {
        image,
        result: result.map_err(|error| Trouble::from(&error)),
    }
}

/// Makes tart find an image under these names.
pub(super) fn install(image: Digest, stage: Arc<Stage>, names: &[String]) -> Input {
    let (placed, result) = install_as(&stage, names);
    Input::Installed {
        image,
        stage,
        placed,
        result,
    }
}

/// Makes goldens of the names that were linked, while they are there.
pub(super) async fn make_goldens(
    goldens: Arc<Goldens>,
    image: Digest,
    stage: Arc<Stage>,
    placed: Vec<String>,
    installed: Result<(), InstallError>,
) -> Input {
    let mut made = Ok(());
    for reference in placed {
        let names = || !stage.is_gone() && stage.is_named(&reference);
        made = made.and(goldens.make(&reference, image, names).await);
    }
    Input::Golden {
        image,
        stage,
        result: made.map_err(|error| error.to_string()),
        installed,
    }
}

/// Removes an image's files from the disk.
pub(super) fn abandon(store: &Store, image: Digest) -> Input {
    if let Err(error) = store.abandon(image) {
        warn!(%image, %error, "removing a cancelled stage failed; it is removed at the next start");
    }
    Input::Abandoned(image)
}

/// Reads the bytes that an earlier process left in a stage.
pub(super) fn read_again(image: Digest, stage: Arc<Stage>) -> Input {
    Input::ReadAgain {
        image,
        result: stage.read_again().map_err(|error| error.to_string()),
        stage,
    }
}

/// Writes down which hosts may have an image's contents.
pub(super) fn keep_entitled(store: &Store, image: Digest) -> Input {
    if let Err(error) = store.keep_entitled(&image) {
        warn!(%image, %error, "writing down who may have an image failed; a restart begins with what stood before");
    }
    Input::Nothing
}

/// Writes down which chunks were stored.
pub(super) fn flush(store: &Store, blobs: Option<&Blobs>) -> Input {
    let blobs = blobs.map_or(Ok(()), Blobs::flush);
    Input::Flushed {
        images: store.flush().map_err(|error| error.to_string()),
        blobs: blobs.map_err(|error| error.to_string()),
    }
}

/// Looks which images and names are on the disk, and measures how busy the host is.
pub(super) fn look(store: &Store, goldens: Option<&Goldens>) -> Input {
    Input::Presence {
        seen: Seen::look(store, goldens),
        load_percent: platform::load_percent(),
    }
}

/// Reads chunks of a content again, on every shelf that has the content. `last`: these are the content's last chunks.
pub(super) fn scrub(content: Digest, shelves: &[Shelf], chunks: Range<u32>, last: bool) -> Input {
    for chunk in chunks.map(ChunkIndex) {
        for shelf in shelves {
            // the store tells of rotten chunks; a chunk that can't be read now shows by other means
            if let Err(error) = shelf.look(content, chunk) {
                debug!(%content, %chunk, %error, "a chunk can't be read now");
            }
        }
    }
    for shelf in shelves.iter().filter(|_| last) {
        if let Err(error) = shelf.mend_decoded(content) {
            debug!(%content, %error, "decoded bytes can't be compared now");
        }
    }
    Input::Scrubbed
}

/// Reads a chunk for which a peer blames this host.
pub(super) fn look_at(content: Digest, shelves: &[Shelf], chunk: ChunkIndex) -> Input {
    let mut rotten = false;
    for shelf in shelves {
        match shelf.look(content, chunk) {
            Ok(look) => rotten |= look == Look::Rotten,
            Err(error) => {
                warn!(%content, %chunk, %error, "a chunk for which a peer blames this host can't be read");
            }
        }
    }
    Input::Looked {
        content,
        chunk,
        rotten,
    }
}
