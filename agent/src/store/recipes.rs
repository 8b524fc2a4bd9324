//! The recipes of images on this host: where their files lie, and what the chunks of an image know of theirs.
//!
//! A recipe lies at `.parbake/recipes/<hex of its digest>`, where it is served to peers from. A stage's status names
//! its recipe, so that a restart goes on with it. A recipe that is lost or damaged costs its use, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _},
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use proto::{
    BlockPrint, ChunkIndex, ContentRecipe, Digest, Layout,
    blocks::Blocks,
    image::Blob,
    recipe::{ParseRecipeError, Reader, Recipe},
};
use sha2::{Digest as _, Sha256};

use super::{held::Held, place::Files, tree::ROOT};
use crate::lock::lock;

/// The directory of recipes, in our directory in tart's home.
const RECIPES: &str = "recipes";

/// A recipe by its name.
#[derive(Clone, Debug)]
pub(crate) struct NamedRecipe {
    /// The recipe's bytes. Their digest is its name.
    pub(crate) file: Blob,
    pub(crate) recipe: Recipe,
}

/// Why a recipe can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadRecipeError {
    #[error("reading recipe {name}: {error}")]
    Io { name: Digest, error: io::Error },
    #[error("recipe {name} isn't what its digest says: its bytes have the digest {found}")]
    Digest { name: Digest, found: Digest },
    #[error("recipe {name} can't be used: {error}")]
    Parse {
        name: Digest,
        error: ParseRecipeError,
    },
    #[error(
        "recipe {name} is false: chunk {chunk} of content {content} of the image has another state"
    )]
    Contradicts {
        name: Digest,
        content: Digest,
        chunk: ChunkIndex,
    },
}

impl ReadRecipeError {
    /// Whether the recipe isn't the image's. Otherwise it can't be read now.
    pub(crate) const fn is_false(&self) -> bool {
        matches!(self, Self::Parse { .. } | Self::Contradicts { .. })
    }
}

/// The directory of all recipes below tart's home.
pub(crate) fn directory(home: &Path) -> PathBuf {
    home.join(ROOT).join(RECIPES)
}

/// Reads the recipe with this digest. It has to be of this image. Its blocks are left out: they are most of its bytes,
/// and [`Columns`] reads them where they are needed.
///
/// # Errors
/// When it isn't here, its bytes changed, or it is no recipe of the image.
pub(crate) fn read(home: &Path, name: &Digest, layout: &Layout) -> Result<Recipe, ReadRecipeError> {
    let file = open(home, name)?;
    let mut contents = Vec::new();
    each((&file, u64::MAX), name, layout, &mut |_, mut content| {
        drop(content.take_blocks());
        contents.push(content);
    })?;
    Recipe::new(layout, contents).map_err(|error| ReadRecipeError::Parse { name: *name, error })
}

/// As [`read`], from a file that lies elsewhere, and only what proves the image's blobs. No more is in memory than one
/// content's part, which may have `max_part_bytes`, and the states of `max_chunks` chunks: blobs beyond have no recipe.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_blobs(
    file: &File,
    name: &Digest,
    layout: &Layout,
    (max_part_bytes, max_chunks): (u64, u64),
) -> Result<Vec<Arc<ContentRecipe>>, ReadRecipeError> {
    let contents = layout.contents().into_iter();
    let mut lacking: BTreeMap<_, _> = contents.map(|spec| (spec.digest, spec)).collect();
    let (mut parts, mut chunks, mut fault) = (Vec::new(), 0, None);
    each((file, max_part_bytes), name, layout, &mut |_, content| {
        let digest = *content.digest();
        let part = match lacking.remove(&digest) {
            Some(spec) => content.into_blob(&spec),
            None => Err(ParseRecipeError::Unexpected(digest)),
        };
        match part {
            Ok(Some(part)) if chunks + u64::from(part.geometry().chunks()) <= max_chunks => {
                chunks += u64::from(part.geometry().chunks());
                parts.push(Arc::new(part));
            }
            Ok(_) => {}
            Err(error) => {
                fault.get_or_insert(error);
            }
        }
    })?;
    let lacks = lacking.into_keys().next().map(ParseRecipeError::Lacks);
    match fault.or(lacks) {
        Some(error) => Err(ReadRecipeError::Parse { name: *name, error }),
        None => Ok(parts),
    }
}

fn open(home: &Path, name: &Digest) -> Result<File, ReadRecipeError> {
    let path = directory(home).join(name.hex().to_string());
    File::open(path).map_err(|error| ReadRecipeError::Io { name: *name, error })
}

/// Reads the recipe of one content after the other, with one content in memory at a time, which may have so many bytes.
/// Hands each over with the place of its bytes in the file.
///
/// # Errors
/// As [`read`]. What was handed over before an error doesn't count.
fn each(
    (file, max_part_bytes): (&File, u64),
    name: &Digest,
    layout: &Layout,
    take: &mut dyn FnMut(Range<u64>, ContentRecipe),
) -> Result<(), ReadRecipeError> {
    let failed = |error| ReadRecipeError::Io { name: *name, error };
    let bytes = file.metadata().map_err(failed)?.len();
    // an open file may have been read before
    let mut start = file;
    start.rewind().map_err(failed)?;
    let mut from = Hashing {
        file: BufReader::new(file),
        hash: Sha256::new(),
        at: 0,
    };
    let parsed = parts((&mut from, max_part_bytes), bytes, layout, take).map_err(failed)?;
    from.rest(Recipe::max_bytes(layout)).map_err(failed)?;
    let found = Digest::from_bytes(from.hash.finalize().into());
    if found != *name {
        return Err(ReadRecipeError::Digest { name: *name, found });
    }
    parsed.map_err(|error| ReadRecipeError::Parse { name: *name, error })
}

fn parts(
    (from, max_part_bytes): (&mut Hashing<'_>, u64),
    bytes: u64,
    layout: &Layout,
    take: &mut dyn FnMut(Range<u64>, ContentRecipe),
) -> io::Result<Result<(), ParseRecipeError>> {
    let most = Recipe::max_bytes(layout);
    if bytes > most {
        return Ok(Err(ParseRecipeError::TooLarge { bytes, most }));
    }
    let mut reader = Reader::new(layout);
    let max_part_bytes = max_part_bytes.min(reader.max_part_bytes());
    let mut part = Vec::new();
    while from.at < bytes {
        let length = match from.length()? {
            Ok(length) => length,
            Err(error) => return Ok(Err(ParseRecipeError::Protobuf(error))),
        };
        // checked before anything of this length is allocated
        if length > bytes - from.at || length > max_part_bytes {
            return Ok(Err(ParseRecipeError::Truncated));
        }
        let start = from.at;
        part.clear();
        from.read(length, &mut part)?;
        match reader.take(&part) {
            Ok(content) => {
                if let Some(content) = content {
                    take(start..from.at, content);
                }
            }
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
}

/// A file that is hashed while it is read.
struct Hashing<'a> {
    file: BufReader<&'a File>,
    hash: Sha256,
    /// The bytes that were read.
    at: u64,
}

impl Hashing<'_> {
    fn read(&mut self, length: u64, into: &mut Vec<u8>) -> io::Result<()> {
        let before = into.len();
        let read = (&mut self.file).take(length).read_to_end(into)? as u64;
        self.hash.update(&into[before..]);
        self.at += read;
        match read == length {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The length that stands before a part.
    fn length(&mut self) -> io::Result<Result<u64, prost::DecodeError>> {
        /// The bytes of the longest varint.
        const LONGEST: usize = 10;
        let mut bytes = Vec::with_capacity(LONGEST);
        loop {
            let is_there = !self.file.fill_buf()?.is_empty();
            if is_there {
                self.read(1, &mut bytes)?;
            }
            let ends = bytes.last().is_some_and(|last| last & 0x80 == 0);
            if ends || !is_there || bytes.len() == LONGEST {
                let length = prost::decode_length_delimiter(&bytes[..]);
                return Ok(length.map(|length| length as u64));
            }
        }
    }

    /// Reads what is left, but not more than this: the digest of a longer file can't be the right one.
    fn rest(&mut self, most: u64) -> io::Result<()> {
        let mut piece = Vec::new();
        while self.at <= most {
            piece.clear();
            let left = (&mut self.file).take(1 << 16).read_to_end(&mut piece)?;
            self.hash.update(&piece);
            self.at += left as u64;
            if left == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// The columns of blocks in the file of a recipe, which stay there: for an image of 140 GB they are 80 MB.
#[derive(Debug)]
pub(super) struct Columns {
    file: File,
    /// Where the recipe of each of the layout's contents stands, if it has blocks.
    places: Vec<Option<Range<u64>>>,
}

impl Columns {
    /// Finds the columns of a recipe of this image.
    ///
    /// # Errors
    /// As [`read`].
    pub(super) fn open(
        home: &Path,
        name: &Digest,
        layout: &Layout,
    ) -> Result<Self, ReadRecipeError> {
        let contents = layout.contents();
        let mut places = vec![None; contents.len()];
        let file = open(home, name)?;
        each((&file, u64::MAX), name, layout, &mut |place, content| {
            let fits = |spec: &proto::image::ContentSpec| {
                spec.digest == *content.digest() && spec.geometry == content.geometry()
            };
            if let Some(at) = contents.iter().position(fits)
                && !content.blocks().is_empty()
            {
                places[at] = Some(place);
            }
        })?;
        Ok(Self { file, places })
    }

    /// The most blocks that they may name.
    pub(super) fn max_blocks(&self) -> u64 {
        let places = self.places.iter().flatten();
        let bytes: u64 = places.map(|place| place.end - place.start).sum();
        bytes / BlockPrint::BYTES as u64
    }

    /// Whether no content has blocks.
    pub(super) fn is_empty(&self) -> bool {
        self.places.iter().all(Option::is_none)
    }

    /// The blocks of a content, by its number in the layout; none where the recipe has none.
    ///
    /// # Errors
    /// When the file can't be read, or was changed since.
    pub(super) fn blocks(&self, at: usize) -> io::Result<Blocks> {
        let Some(place) = self.places.get(at).and_then(Option::as_ref) else {
            return Ok(Blocks::EMPTY);
        };
        let length = usize::try_from(place.end - place.start).map_err(io::Error::other)?;
        let mut part = vec![0; length];
        self.file.read_exact_at(&mut part, place.start)?;
        let mut content = ContentRecipe::parse(&part).map_err(io::Error::other)?;
        Ok(content.take_blocks())
    }
}

/// Tells a recipe's file from another one that has its name later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    bytes: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// That of the file of this recipe; `None` if there is none.
    pub(super) fn of(home: &Path, name: &Digest) -> Option<Self> {
        let path = directory(home).join(name.hex().to_string());
        let found = fs::metadata(path).ok()?;
        Some(Self {
            bytes: found.len(),
            changed: (found.mtime(), found.mtime_nsec()),
        })
    }
}

/// Removes the files of this recipe, if there are any.
///
/// # Errors
/// When the directory can't be read, or a file not removed.
pub(super) fn remove(home: &Path, name: &Digest) -> io::Result<()> {
    remove_where(home, |of| of == Some(*name))
}

/// Removes every file of a recipe that isn't among these.
///
/// # Errors
/// When the directory can't be read, or a file not removed.
pub(crate) fn keep_only(home: &Path, names: &BTreeSet<Digest>) -> io::Result<()> {
    remove_where(home, |of| of.is_none_or(|of| !names.contains(&of)))
}

/// Removes every file of a recipe that isn't among these. What isn't a recipe's stays, as one that is being made.
///
/// # Errors
/// When the directory can't be read, or a file not removed.
pub(crate) fn remove_others(home: &Path, names: &BTreeSet<Digest>) -> io::Result<()> {
    remove_where(home, |of| of.is_some_and(|of| !names.contains(&of)))
}

/// Removes files by the recipe that they belong to.
fn remove_where(home: &Path, goes: impl Fn(Option<Digest>) -> bool) -> io::Result<()> {
    let directory = directory(home);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        // files on their way have more behind the name of the recipe
        let stem = name.to_str().and_then(|name| name.split('.').next());
        let of = stem.and_then(|stem| format!("sha256:{stem}").parse::<Digest>().ok());
        if goes(of) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// How an image's recipe stands, beside what the chunks know of it.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// The recipe that the image's own bytes have proved, by a comparison with all of them.
    proved: Mutex<Option<Digest>>,
    /// Whether hosts made the recipe, and no registry has it.
    of_hosts: AtomicBool,
}

impl Standing {
    /// The image's own bytes have proved this recipe.
    pub(crate) fn prove(&self, name: Digest) {
        *lock(&self.proved) = Some(name);
    }

    /// Notes whether hosts made the recipe.
    pub(crate) fn set_of_hosts(&self, of_hosts: bool) {
        self.of_hosts.store(of_hosts, Ordering::Relaxed);
    }

    pub(crate) fn is_of_hosts(&self) -> bool {
        self.of_hosts.load(Ordering::Relaxed)
    }

    /// Whether this recipe is proved, or each content goes by it. A closed content that goes by it has proved it.
    pub(super) fn holds<F: Files>(&self, name: &Digest, held: &Held<F>) -> bool {
        let by = |at| held.chunks(at).recipe() == Some(*name);
        *lock(&self.proved) == Some(*name) || (0..held.len()).all(by)
    }
}

/// Compares a recipe with the links of all chunks that are held.
///
/// # Errors
/// [`ReadRecipeError::Contradicts`] with the first chunk whose link is another one.
pub(super) fn compare<F: Files>(
    held: &Held<F>,
    name: &Digest,
    recipe: &Recipe,
) -> Result<(), ReadRecipeError> {
    for at in 0..held.len() {
        let content = held.digest(at);
        let of = recipe.content(&content);
        for chunk in held.held(at).iter() {
            let link = held.link(at, chunk).map(|(link, _)| link);
            let says = of.and_then(|of| of.link(chunk));
            let alike = link
                .zip(says)
                .is_some_and(|(link, says)| link.is_alike(&says));
            if !alike {
                return Err(ReadRecipeError::Contradicts {
                    name: *name,
                    content,
                    chunk,
                });
            }
        }
    }
    Ok(())
}

/// Makes the contents take only the links of this recipe from now on. A content in doubt, or with a held link that
/// contradicts the recipe, goes on without any: also without the one that it went by before.
pub(super) fn take<F: Files>(
    held: &Held<F>,
    name: Digest,
    recipe: &Recipe,
    in_doubt: &BTreeSet<Digest>,
) {
    for at in 0..held.len() {
        let content = held.digest(at);
        let of = recipe.content(&content);
        let Some(of) = of.filter(|_| !in_doubt.contains(&content)) else {
            held.chunks(at).leave_recipe();
            continue;
        };
        let mut known = held.chunks(at);
        if let Err(error) = known.take_recipe(name, of.clone()) {
            known.leave_recipe();
            tracing::warn!(%content, recipe = %name, %error, "a recipe isn't used for a content");
        }
    }
}

/// Takes the recipe by which an earlier process staged the image, if it is still there.
pub(super) fn go_on_with<F: Files>(held: &Held<F>, file: Blob, home: &Path, layout: &Layout) {
    match read(home, &file.digest, layout) {
        Ok(recipe) => take(held, file.digest, &recipe, &BTreeSet::new()),
        Err(error) => {
            tracing::warn!(image = %layout.digest(), %error, "an image goes on without its recipe");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_recipes_are_kept() {
        let home = tempfile::tempdir().unwrap();
        let (kept, other) = (Digest::of(b"kept"), Digest::of(b"other"));
        keep_only(home.path(), &BTreeSet::new()).unwrap();
        let directory = directory(home.path());
        fs::create_dir_all(&directory).unwrap();
        for name in [
            kept.hex().to_string(),
            format!("{}.part", kept.hex()),
            other.hex().to_string(),
            format!("{}.part.links", other.hex()),
            "stray".into(),
        ] {
            fs::write(directory.join(name), b"x").unwrap();
        }
        keep_only(home.path(), &BTreeSet::from([kept])).unwrap();
        let left = fs::read_dir(&directory).unwrap();
        let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let hex = kept.hex().to_string();
        let wanted = BTreeSet::from([hex.clone(), format!("{hex}.part")]);
        assert_eq!(left.collect::<BTreeSet<_>>(), wanted);
    }

    #[test]
    fn a_recipe_that_is_missing_changed_or_nonsense_is_named() {
        let home = tempfile::tempdir().unwrap();
        let layout = crate::store::tests::sample_of(1, b"raw", 3, None).layout;
        let name = Digest::of(b"nonsense");
        let missing = read(home.path(), &name, &layout).unwrap_err();
        assert!(matches!(missing, ReadRecipeError::Io { .. }), "{missing}");
        fs::create_dir_all(directory(home.path())).unwrap();
        let path = directory(home.path()).join(name.hex().to_string());
        fs::write(&path, b"changed").unwrap();
        let changed = read(home.path(), &name, &layout).unwrap_err();
        assert!(
            matches!(changed, ReadRecipeError::Digest { .. }),
            "{changed}"
        );
        assert!(
            !missing.is_false() && !changed.is_false(),
            "the file may be at fault"
        );
        fs::write(&path, b"nonsense").unwrap();
        let nonsense = read(home.path(), &name, &layout).unwrap_err();
        assert!(
            matches!(nonsense, ReadRecipeError::Parse { .. }),
            "{nonsense}"
        );
        assert!(nonsense.is_false());
    }

    #[test]
    fn of_a_recipe_for_the_mirror_a_bounded_part_is_in_memory() {
        let home = tempfile::tempdir().unwrap();
        let sample = crate::store::tests::sample_of(1, b"raw", 70_000, None);
        let layout = &sample.layout;
        let by = crate::store::tests::recipe(&sample);
        let path = home.path().join("recipe");
        let write = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            (File::open(&path).unwrap(), Digest::of(bytes))
        };
        let (file, name) = write(&by.recipe.encode());
        let read = |most| read_blobs(&file, &name, layout, most);
        let all = read((u64::MAX, u64::MAX)).unwrap();
        let blobs = layout.contents().into_iter().map(|spec| match spec.kind {
            proto::image::ContentKind::RawLayer { blob } => blob.digest,
            proto::image::ContentKind::Blob => spec.digest,
        });
        // each has one chunk, so that it needs no states
        assert_eq!(all.len(), layout.contents().len());
        assert!(all.iter().map(|part| *part.digest()).eq(blobs));
        assert_eq!(read((u64::MAX, 2)).unwrap().len(), 2);
        assert_eq!(read((u64::MAX, 0)).unwrap().len(), 0);
        let large = read((9, u64::MAX)).unwrap_err();
        assert!(matches!(
            large,
            ReadRecipeError::Parse {
                error: ParseRecipeError::Truncated,
                ..
            }
        ));
        // no recipe of the image
        let (file, name) = write(&Recipe::encode_header(layout.digest()));
        let lacks = read_blobs(&file, &name, layout, (u64::MAX, u64::MAX)).unwrap_err();
        assert!(lacks.is_false(), "{lacks}");
    }
}
