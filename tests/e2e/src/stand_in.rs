//! A stand-in for tart's commands about its own home, as tart does them since 2.36: `list`, `clone`, `delete`, `prune`
//! and their collections, with tart's locks. It moves no bytes over a network and hashes nothing, as tart does neither
//! here. Written apart from the agent, so that a mistake there shows here.
//!
//! tart waits for its locks. They are `flock`s of open directories and files, which end with the process that holds
//! them. What is cited is openai/tart's main branch of August 2026, under Sources/tart.

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

    /// The directories of the images that tart lists (VMStorageOCI.swift: list).
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

    /// `tart clone REFERENCE NAME`: makes a local VM of an image in the cache (Commands/Clone.swift: run;
    /// VMDirectory+DiskImageStack.swift: cloneStacked; VMStorageLocal.swift: move).
    ///
    /// # Errors
    /// When the image isn't there, or only half.
    pub fn clone_image(&self, reference: &str, name: &str) -> Result<(), CloneError> {
        let record = fs::canonicalize(tart_home::directory(&self.home, reference));
        let Some(record) = record.ok().filter(|record| is_listed(record)) else {
            return Err(CloneError::Absent);
        };
        if !self.is_whole(&record) {
            return Err(CloneError::Half(record));
        }
        // what is being made in `tmp` is left alone while its directory is locked
        let making = self.home.join("tmp").join(name);
        fs::create_dir_all(&making)?;
        let _making = locked(&making)?;
        let _home = locked(&self.home)?;
        let copied = self.copy(&record, &making);
        if copied.is_err() {
            fs::remove_dir_all(&making)?;
        }
        copied?;
        let machines = self.home.join("vms");
        fs::create_dir_all(&machines)?;
        let _content = match making.join("manifest.json").exists() {
            true => Some(self.content()?),
            false => None,
        };
        fs::rename(&making, machines.join(name))?;
        Ok(())
    }

    /// Copies what a VM has of its image. The new overlay of a stacked one needs all files below it.
    fn copy(&self, record: &Path, making: &Path) -> Result<(), CloneError> {
        let stacked = is_stacked(record);
        let copy = |parts: &[&str]| -> io::Result<()> {
            for part in parts {
                fs::copy(record.join(part), making.join(part))?;
            }
            Ok(())
        };
        if stacked {
            {
                let _content = self.content()?;
                copy(&["config.json", "nvram.bin", "manifest.json"])?;
            }
            if !self.has_files(making) {
                return Err(CloneError::Half(record.to_owned()));
            }
            fs::write(making.join("overlay.asif"), "an empty overlay")?;
        } else {
            copy(&["config.json", "nvram.bin", "disk.img"])?;
        }
        Ok(())
    }

    /// `tart delete NAME` of a local VM, after which nothing is collected (VMDirectory.swift: delete, removeFromDisk).
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn delete_machine(&self, name: &str) -> io::Result<()> {
        self.sweep()?;
        self.remove(&self.home.join("vms").join(name))
    }

    /// `tart delete REFERENCE` of a tag: its link goes, and what nothing else names is collected (VMStorageOCI.swift:
    /// delete, removeRecord).
    ///
    /// # Errors
    /// When the link can't be removed.
    pub fn delete_tag(&self, reference: &str) -> io::Result<()> {
        self.sweep()?;
        let link = tart_home::directory(&self.home, reference);
        {
            let _content = self.content()?;
            match fs::remove_file(link) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.collect()
    }

    /// `tart prune`, when it picks this image: its record goes, whatever names it, and then the files of stacked images
    /// to which nothing refers. Links to it stay (VMStorageOCI.swift: CachedImagePrunable.delete, gcContent).
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn prune(&self, record: &Path) -> io::Result<()> {
        self.sweep()?;
        self.remove(record)?;
        self.collect_files()
    }

    /// `tart prune --gc`, and what tart does after each link and deletion of an image: links that lead nowhere go,
    /// records that neither a link nor a marker names, and then the files of stacked images to which nothing refers.
    /// What names a record is found out without a lock, and not again (VMStorageOCI.swift: gc).
    ///
    /// # Errors
    /// When the cache can't be read.
    pub fn collect(&self) -> io::Result<()> {
        let mut unnamed = Vec::new();
        for record in records(&self.home)? {
            let mut named = false;
            for entry in fs::read_dir(record.parent().unwrap_or(&record))? {
                let path = entry?.path();
                match (path.is_symlink(), fs::canonicalize(&path)) {
                    (true, Err(_)) => absent(fs::remove_file(&path))?,
                    (true, Ok(to)) => named |= Some(to) == fs::canonicalize(&record).ok(),
                    (false, _) => {}
                }
            }
            // what tart takes for no image is left alone
            if !named && is_listed(&record) {
                unnamed.push(record);
            }
        }
        for record in unnamed {
            if !record.join(".explicitly-pulled").exists() {
                let _content = self.content()?;
                absent(fs::remove_dir_all(&record))?;
            }
        }
        self.collect_files()
    }

    /// Removes the files of stacked images to which nothing refers (VMStorageOCI.swift: gcContent; ContentStore.swift:
    /// prunables).
    fn collect_files(&self) -> io::Result<()> {
        let _content = self.content()?;
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

    /// The files to which stacked records and local VMs refer, and what is being made in `tmp`
    /// (VMStorageOCI.swift: referencedContentDigests). A VM that was stacked on a flat image has a flat manifest.
    fn referred(&self) -> io::Result<BTreeSet<Digest>> {
        let mut directories = records(&self.home)?;
        directories.retain(|record| is_stacked(record));
        for entry in fs::read_dir(self.home.join("vms")).into_iter().flatten() {
            let machine = entry?.path();
            if machine.join("overlay.asif").exists() && !machine.join("disk.img").exists() {
                directories.push(machine);
            }
        }
        for entry in fs::read_dir(self.home.join("tmp")).into_iter().flatten() {
            let entry = entry?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                directories.push(entry.path());
            }
        }
        let layouts = directories.iter().filter_map(|of| manifest(of));
        let files = layouts.flat_map(|layout| layout.files().to_vec());
        Ok(files.filter_map(|file: DiskFile| file.digest).collect())
    }

    /// What almost every command begins with: what is in `tmp` and isn't locked goes (Root.swift: runGarbageCollection;
    /// Config.swift: gc).
    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.home.join("tmp")).into_iter().flatten() {
            let path = entry?.path();
            let open = File::open(&path)?;
            if open.try_lock().is_ok() {
                let _content = self.content()?;
                absent(match path.is_dir() {
                    true => fs::remove_dir_all(&path),
                    false => fs::remove_file(&path),
                })?;
            }
        }
        Ok(())
    }

    /// Removes a record or a VM. Those with a disk of their own go without a lock (VMDirectory.swift: delete).
    fn remove(&self, directory: &Path) -> io::Result<()> {
        if directory.join("disk.img").exists() {
            return absent(fs::remove_dir_all(directory));
        }
        let _content = self.content()?;
        absent(fs::remove_dir_all(directory))
    }

    /// Whether an image can be cloned: its files are there, those of a stacked one with exactly their lengths
    /// (VMStorageOCI.swift: hasUsableCachedImageForClone).
    fn is_whole(&self, record: &Path) -> bool {
        record.join("disk.img").is_file() || self.has_files(record)
    }

    /// Whether all files to which a stacked image's or VM's manifest refers are there, with their lengths.
    fn has_files(&self, directory: &Path) -> bool {
        let Some(layout) = manifest(directory).filter(|of| of.format() == Format::Stacked) else {
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

    /// The lock that tart holds while it moves, links or removes what has to do with the files of stacked images
    /// (ContentStore.swift: withPruneLock).
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

/// The same, where what should be removed may be gone, or somebody else may put another there meanwhile, which stays.
fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
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

/// Whether tart takes a record for an image: it has a configuration, an nvram, and a disk or a manifest
/// (VMDirectory.swift: isCachedImage).
fn is_listed(record: &Path) -> bool {
    let has = |part: &str| record.join(part).is_file();
    let metadata = has("config.json") && has("nvram.bin") && !has("overlay.asif");
    metadata && (has("disk.img") || has("manifest.json"))
}

/// Whether tart takes a record for a stacked image (VMDirectory.swift: isStackedCachedImage).
fn is_stacked(record: &Path) -> bool {
    is_listed(record) && !record.join("disk.img").exists()
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
