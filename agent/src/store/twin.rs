//! A second directory of an installed image, for another repository of tart's cache: a clone where the volume can clone files, else a
//! copy. It shares no inode with the first, because what edits one must not edit the other.
//!
//! A clone is compared with the links where it lies; of a copy each chunk is compared before it is written. A byte that rotted in the
//! first directory so never reaches the second: the chunk is dropped, told as [`News::Rotted`](super::News), and the
//! installation ends in [`InstallError::Incomplete`] until the chunk is here again.

use std::{fs, io, os::unix::fs::FileExt as _, path::PathBuf, sync::atomic::Ordering};

use proto::ChunkIndex;

use super::{
    InstallError, Stage,
    files::{Body, Where},
    held::{Look, hold, is_zero, put},
    install::{GUARD, remove_any, step, write_new},
    io_at,
};
use crate::{
    platform::{self, CloneError},
    tart::cache,
};

/// A second directory of the image, on its way to another repository.
pub(super) const TWIN: &str = "twin";

/// A promise of room on the volume, for as long as a copy is made.
struct Promise<'a>(&'a Stage);

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.0.copying_bytes.store(0, Ordering::Release);
    }
}

impl Stage {
    /// Makes the twin, whole and synced; one that was made before and isn't in its place yet is taken.
    ///
    /// # Errors
    /// [`InstallError::Incomplete`] where a chunk turned out to have rotted.
    pub(super) fn twin(&self) -> Result<PathBuf, InstallError> {
        let twin = self.directory.join(TWIN);
        if self.is_ours(&twin) {
            return Ok(twin);
        }
        let from = self.installed_directory().ok_or(InstallError::Removed)?;
        remove_any(&twin)?;
        fs::create_dir(&twin).map_err(|error| io_at("creating", &twin, error))?;
        let clone = |part: &str| platform::clone_file(&from.join(part), &twin.join(part));
        let cloned = match cache::PARTS.iter().try_for_each(|part| clone(part)) {
            Ok(()) => true,
            Err(CloneError::Unsupported) => false,
            Err(CloneError::Io(error)) => return Err(io_at("cloning into", &twin, error).into()),
        };
        if !cloned {
            self.promise_room()?;
        }
        let promise = Promise(self);
        let body = Body::create(&twin, &self.layout)?;
        self.fill_twin(&body, cloned)?;
        body.sync()?;
        drop(promise);
        write_new(&twin.join(cache::MANIFEST), &self.manifest)?;
        write_new(&twin.join(cache::MARKER), GUARD)?;
        platform::sync_directory(&twin)?;
        self.adopt_body(body)?;
        step("twinned")?;
        Ok(twin)
    }

    /// Known by its inode before it moves into the cache: a start after a crash finds both directories.
    fn adopt_body(&self, body: Body) -> io::Result<()> {
        let files = self.held.files();
        files.drop_removed_bodies();
        // held while it is written: other images' beginnings change what is wanted of this one
        let mut current = hold(&self.status);
        let mut status = current.clone();
        let mut inodes: Vec<u64> = files.bodies().iter().map(|body| body.inode).collect();
        inodes.push(body.inode);
        status.disk_inode = inodes.remove(0);
        status.twin_inodes = inodes;
        status.write(&self.directory)?;
        *current = status;
        drop(current);
        files.add_body(body);
        Ok(())
    }

    /// A copy takes as much as the image does.
    fn promise_room(&self) -> Result<(), InstallError> {
        let bodies = self.held.files().bodies();
        let need_bytes = bodies.first().map_or(0, |body| body.taken_bytes());
        self.shared.reserve(need_bytes, self.layout.digest())?;
        self.copying_bytes.store(need_bytes, Ordering::Release);
        Ok(())
    }

    /// Writes what the twin lacks, and compares what it has.
    fn fill_twin(&self, body: &Body, cloned: bool) -> Result<(), InstallError> {
        for at in 0..self.held.len() {
            let geometry = self.held.geometry(at);
            let content = self.held.digest(at);
            for chunk in (0..geometry.chunks()).map(ChunkIndex) {
                let places = self.held.files().places(at);
                if places.iter().all(|place| *place == Where::Blob) {
                    continue;
                }
                if cloned && self.is_in(body, at, chunk)? {
                    continue;
                }
                let Look::Sound(held) = self.held.look(at, chunk)? else {
                    self.flush()?;
                    return Err(InstallError::Incomplete(content));
                };
                let zero = is_zero(&held.bytes);
                for place in places {
                    let Some((file, base)) = body.place(*place) else {
                        continue;
                    };
                    put(file, base + geometry.offset(chunk), &held.bytes, zero)
                        .map_err(|error| io_at("writing", &self.directory.join(TWIN), error))?;
                }
            }
        }
        self.decode_into(body)?;
        Ok(())
    }

    /// Whether a clone has the chunk's bytes at each of its places.
    fn is_in(&self, body: &Body, at: usize, chunk: ChunkIndex) -> io::Result<bool> {
        let Some(claim) = self.held.claim(at, chunk) else {
            return Ok(false);
        };
        let geometry = self.held.geometry(at);
        let mut first: Option<Vec<u8>> = None;
        for place in self.held.files().places(at) {
            let Some((file, base)) = body.place(*place) else {
                continue;
            };
            let mut bytes = vec![0; geometry.len(chunk) as usize];
            file.read_exact_at(&mut bytes, base + geometry.offset(chunk))?;
            let sound = match &first {
                None => claim.fits(geometry, chunk, &bytes),
                Some(first) => *first == bytes,
            };
            if !sound {
                return Ok(false);
            }
            first.get_or_insert(bytes);
        }
        Ok(true)
    }
}
