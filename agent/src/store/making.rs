//! Makes the recipe of an image that is whole on this host, of the bytes that lie on its disk.
//!
//! The recipe has the columns that follow from the image's raw bytes alone: states, fingerprints and blocks. So hosts
//! that make one of the same image make the same. It lacks places to go on from: those are places in compressed blobs,
//! which aren't here.
//!
//! The recipe is written content by content, with one content's columns in memory. A crash leaves a file that the next
//! start removes.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use proto::{
    ChunkIndex, Digest,
    image::{Blob, ContentSpec},
    recipe::{Maker, NotTheContentError, Recipe},
};
use sha2::{Digest as _, Sha256};

use super::{recipes, stage::Stage};

/// The file in the directory of recipes into which one is written. One recipe is made at a time.
const MAKING: &str = "making";

/// A recipe that is being made.
#[derive(Debug)]
pub(crate) struct Making {
    stage: Arc<Stage>,
    path: PathBuf,
    out: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
    /// The contents that are to come, the next one last.
    contents: Vec<ContentSpec>,
    /// The content that is read now, and the chunk that comes next of it.
    current: Option<(ContentSpec, Maker, ChunkIndex)>,
}

/// Why no recipe can be made of an image on this disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeRecipeError {
    /// The volume failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The image was removed, or is mended now.
    #[error("chunk {chunk} of content {content} isn't here any more")]
    Lacking {
        /// The content.
        content: Digest,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// The image was changed on the disk.
    #[error(transparent)]
    Damaged(#[from] NotTheContentError),
}

impl Making {
    /// Begins a recipe of the stage's image, in tart's home. Blocks.
    ///
    /// # Errors
    /// When the file can't be made, or the volume has no room above its floor for the recipe.
    pub(crate) fn begin(stage: Arc<Stage>, home: &Path) -> io::Result<Self> {
        // once while it is made, and once where it is kept
        let bytes = 2 * Recipe::max_bytes(stage.layout());
        let room = stage.shared().room().admit(bytes, stage.layout().digest());
        room.map_err(|error| io::Error::new(io::ErrorKind::StorageFull, error))?;
        let directory = recipes::directory(home);
        fs::create_dir_all(&directory)?;
        let path = directory.join(MAKING);
        let mut contents = stage.layout().contents();
        contents.reverse();
        let mut this = Self {
            out: BufWriter::new(File::create(&path)?),
            path,
            hash: Sha256::new(),
            bytes: 0,
            contents,
            current: None,
            stage,
        };
        let header = Recipe::encode_header(this.stage.layout().digest());
        this.write(&header)?;
        Ok(this)
    }

    /// Reads so many more chunks. Returns the recipe's name and size when it is written. Blocks.
    ///
    /// # Errors
    /// When the image isn't whole any more, or the volume fails. The recipe isn't made then.
    pub(crate) fn go_on(&mut self, chunks: usize) -> Result<Option<Blob>, MakeRecipeError> {
        for _ in 0..chunks {
            let Some((spec, maker, chunk)) = &mut self.current else {
                match self.contents.pop() {
                    Some(spec) => {
                        let maker = Maker::of(&spec);
                        self.current = Some((spec, maker, ChunkIndex(0)));
                        continue;
                    }
                    None => return self.finish().map(Some),
                }
            };
            if spec.geometry.contains(*chunk) {
                let (content, chunk_now) = (spec.digest, *chunk);
                let held = self.stage.read(content, chunk_now)?;
                let held = held.ok_or(MakeRecipeError::Lacking {
                    content,
                    chunk: chunk_now,
                })?;
                maker.take(&held.bytes)?;
                chunk.0 += 1;
            } else if let Some((_, maker, _)) = self.current.take() {
                let part = maker.finish()?.encode();
                self.write(&part)?;
            }
        }
        Ok(None)
    }

    /// The file with the recipe's bytes, once they are written.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, part: &[u8]) -> io::Result<()> {
        self.hash.update(part);
        self.bytes += part.len() as u64;
        self.out.write_all(part)
    }

    fn finish(&mut self) -> Result<Blob, MakeRecipeError> {
        self.out.flush()?;
        Ok(Blob {
            digest: Digest::from_bytes(self.hash.clone().finalize().into()),
            size: self.bytes,
        })
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // at the latest the next start removes it
        fs::remove_file(&self.path).ok();
    }
}
