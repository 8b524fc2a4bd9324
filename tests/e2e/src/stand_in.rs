//! A stand-in for tart's commands about its own home, as tart does them since 2.36: `list`, `clone`, `delete`, `prune`
//! and the collection after each of them, with tart's locks. It moves no bytes over a network and hashes nothing, as
//! tart does neither here. Written apart from the agent, so that a mistake there shows here.
//!
//! tart waits for its locks. They are `flock`s of open directories and files, which end with the process that holds
//! them.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use proto::{
    Digest, Layout,
    image::{DiskFile, Format},
};

use crate::tart_home;

/// tart in one home.
#[derive(Clone, Debug)]
pub struct Tart {
    home: PathBuf,
}

/// What `clone` says.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The image isn't in the cache: tart would pull it.
    #[error("it isn't in the cache")]
    Absent,
    /// tart takes it for an image, and lacks a file of it: a half record, of which tart makes nothing and which it
    /// doesn't pull either.
    #[error("{} is a half record", .0.display())]
    Half(PathBuf),
    /// The home can't be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Tart {
    /// tart in this home.
    #[must_use]
    pub const fn new(home: PathBuf) -> Self {
        Self { home }
    }

    /// The directories of the images that tart lists.
    ///
    /// # Errors
    /// When the cache can't be read.
    pub fn list(&self) -> io::Result<Vec<PathBuf>> {
        let mut images = records(&self.home)?;
        images.retain(|record| is_listed(record));
        Ok(images)
    }

    /// The images that tart lists and can't clone. Takes no lock: what tart sees at any moment.
    ///
    /// # Errors
    /// When the cache can't be read.
    pub fn half_records(&self) -> io::Result<Vec<PathBuf>> {
        let mut images = self.list()?;
        // a record that goes while it is looked at is none
        images.retain(|record| !self.is_whole(record) && is_listed(record));
        Ok(images)
    }

    /// `tart clone REFERENCE NAME`: makes a local VM of an image in the cache.
    ///
    /// # Errors
    /// When the image isn't there, or only half.
    pub fn clone_image(&self, reference: &str, name: &str) -> Result<(), CloneError> {
        // what is being made in `tmp` is left alone while its directory is locked
        let making = self.home.join("tmp").join(name);
        fs::create_dir_all(&making)?;
        let _making = locked(&making)?;
        let record = fs::canonicalize(tart_home::directory(&self.home, reference));
        let Some(record) = record.ok().filter(|record| is_listed(record)) else {
            fs::remove_dir_all(&making)?;
            return Err(CloneError::Absent);
        };
        if !self.is_whole(&record) {
            fs::remove_dir_all(&making)?;
            return Err(CloneError::Half(record));
        }
        let stacked = manifest(&record).is_some_and(|of| of.format() == Format::Stacked);
        let parts: &[&str] = match stacked {
            true => &["config.json", "nvram.bin", "manifest.json"],
            false => &["config.json", "nvram.bin", "disk.img"],
        };
        for part in parts {
            fs::copy(record.join(part), making.join(part))?;
        }
        if stacked {
            fs::write(making.join("overlay.asif"), "an empty overlay")?;
        }
        let machines = self.home.join("vms");
        fs::create_dir_all(&machines)?;
        let _home = locked(&self.home)?;
        fs::rename(&making, machines.join(name))?;
        Ok(())
    }

    /// `tart delete NAME` of a local VM.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn delete_machine(&self, name: &str) -> io::Result<()> {
        fs::remove_dir_all(self.home.join("vms").join(name))?;
        self.collect()
    }

    /// `tart prune`, when it picks this image: its record goes, whatever names it. Links to it may stay.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn prune(&self, record: &Path) -> io::Result<()> {
        {
            let _content = self.content()?;
            remove(record)?;
        }
        self.collect()
    }

    /// What tart does after each link, deletion and prune: links that lead nowhere go, records that neither a link nor
    /// a marker names, and then the files of stacked images to which nothing refers.
    ///
    /// # Errors
    /// When the cache can't be read.
    pub fn collect(&self) -> io::Result<()> {
        let _content = self.content()?;
        for record in records(&self.home)? {
            let mut named = record.join(".explicitly-pulled").exists();
            for entry in fs::read_dir(record.parent().unwrap_or(&record))? {
                let path = entry?.path();
                match (path.is_symlink(), fs::canonicalize(&path)) {
                    (true, Err(_)) => fs::remove_file(&path)?,
                    (true, Ok(to)) => named |= Some(to) == fs::canonicalize(&record).ok(),
                    (false, _) => {}
                }
            }
            if !named {
                remove(&record)?;
            }
        }
        let referred = self.referred()?;
        for entry in fs::read_dir(self.home.join("cache/content/sha256"))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            // hidden names, and others that aren't digests, aren't collected
            let digest = name.and_then(|name| format!("sha256:{name}").parse::<Digest>().ok());
            if digest.is_some_and(|digest| !referred.contains(&digest)) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// The files to which records, local VMs and locked directories of `tmp` refer.
    fn referred(&self) -> io::Result<BTreeSet<Digest>> {
        let mut directories = records(&self.home)?;
        for entry in fs::read_dir(self.home.join("vms")).into_iter().flatten() {
            directories.push(entry?.path());
        }
        for entry in fs::read_dir(self.home.join("tmp")).into_iter().flatten() {
            let path = entry?.path();
            let open = File::open(&path);
            if open.is_ok_and(|directory| directory.try_lock().is_err()) {
                directories.push(path);
            }
        }
        let layouts = directories
            .iter()
            .filter_map(|directory| manifest(directory));
        let stacked = layouts.filter(|layout| layout.format() == Format::Stacked);
        let files = stacked.flat_map(|layout| layout.files().to_vec());
        Ok(files.filter_map(|file: DiskFile| file.digest).collect())
    }

    /// Whether an image can be cloned: its files are there, those of a stacked one with exactly their lengths.
    fn is_whole(&self, record: &Path) -> bool {
        if record.join("disk.img").is_file() {
            return true;
        }
        let Some(layout) = manifest(record).filter(|of| of.format() == Format::Stacked) else {
            return false;
        };
        layout.files().iter().all(|file| {
            let path = file
                .digest
                .map(|digest| tart_home::content(&self.home, &digest));
            let found = path.and_then(|path| fs::metadata(path).ok());
            found.is_some_and(|found| found.len() == file.bytes)
        })
    }

    /// The lock that tart holds while it moves, links or removes what has to do with the files of stacked images.
    fn content(&self) -> io::Result<File> {
        let content = self.home.join("cache/content");
        fs::create_dir_all(content.join("sha256"))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(content.join(".gc.lock"))?;
        lock.lock()?;
        Ok(lock)
    }
}

/// Removes a record. Somebody else may put another one there meanwhile, which stays.
fn remove(record: &Path) -> io::Result<()> {
    match fs::remove_dir_all(record) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Ok(())
        }
        removed => removed,
    }
}

fn locked(directory: &Path) -> io::Result<File> {
    let open = File::open(directory)?;
    open.lock()?;
    Ok(open)
}

/// Whether tart takes a record for an image: it has a configuration, an nvram, and a disk or a manifest.
fn is_listed(record: &Path) -> bool {
    let has = |part: &str| record.join(part).is_file();
    has("config.json") && has("nvram.bin") && (has("disk.img") || has("manifest.json"))
}

fn manifest(directory: &Path) -> Option<Layout> {
    let bytes = fs::read(directory.join("manifest.json")).ok()?;
    Layout::parse(&bytes, &Digest::of(&bytes)).ok()
}

/// The directories of all images in the cache.
fn records(home: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![home.join("cache/OCIs")]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            match entry.file_name().to_string_lossy().starts_with("sha256:") {
                true => found.push(entry.path()),
                false => open.push(entry.path()),
            }
        }
    }
    Ok(found)
}
