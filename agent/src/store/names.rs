//! Where tart finds an image, and where it shall find it: the notes about that, and what the file system says.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use proto::{Digest, image::Blob};
use swarm::event::Entitled;

use super::{
    files::{Body, ImageFiles},
    open_file::OpenFile,
    status::Status,
    tree::{GUARD, IMAGE, Marker, REPLACED, STATUS, TWIN, io_at, marker as marker_of},
};
use crate::{
    lock::lock,
    tart::{Reference, Version, cache},
};

/// The references of one image.
#[derive(Debug)]
pub(super) struct Names {
    home: PathBuf,
    image: Digest,
    /// Our directory of the image.
    directory: PathBuf,
    files: Arc<ImageFiles>,
    /// The notes. Locked while they are changed and written, because the beginning of another image can change what is
    /// wanted of this one.
    status: Mutex<Status>,
}

impl Names {
    pub(super) fn new(
        home: &Path,
        image: Digest,
        directory: &Path,
        files: Arc<ImageFiles>,
        status: Status,
    ) -> Self {
        Self {
            home: home.to_owned(),
            image,
            directory: directory.to_owned(),
            files,
            status: Mutex::new(status),
        }
    }

    /// Writes the notes. They survive a crash after that.
    pub(super) fn write(&self) -> io::Result<()> {
        lock(&self.status).write(&self.directory)
    }

    /// Changes the notes. The change survives a crash. If it can't be written, the notes are as they were: otherwise
    /// memory would say what the disk doesn't, and the next try would find nothing to write.
    fn change(&self, change: impl FnOnce(&mut Status)) -> io::Result<()> {
        let mut status = lock(&self.status);
        let mut new = status.clone();
        change(&mut new);
        if *status != new {
            // the time of the file says when the image was last wanted
            match status.wanted == new.wanted {
                true => new.write_aside(&self.directory)?,
                false => new.write(&self.directory)?,
            }
            *status = new;
        }
        Ok(())
    }

    /// The references that name the image, or shall name it.
    pub(super) fn known(&self) -> Vec<Reference> {
        lock(&self.status).references.clone()
    }

    /// Whether the image was installed, according to the notes.
    pub(super) fn is_installed(&self) -> bool {
        lock(&self.status).installed
    }

    /// Notes that the image is in tart's cache. The note survives a crash.
    pub(super) fn set_installed(&self) -> io::Result<()> {
        self.change(|status| status.installed = true)
    }

    /// Adds another body that is about to move into the cache. Its inode is noted before it moves, so that a start
    /// after a crash knows both directories.
    pub(super) fn adopt(&self, body: Body) -> io::Result<()> {
        self.files.drop_removed_bodies();
        self.change(|status| {
            let mut inodes: Vec<u64> = self.files.bodies().iter().map(|body| body.inode).collect();
            inodes.push(body.inode);
            status.disk_inode = inodes.remove(0);
            status.twin_inodes = inodes;
        })?;
        self.files.add_body(body);
        Ok(())
    }

    /// Notes that these files of the disk are others from now on. The note survives a crash.
    pub(super) fn note_files(&self, files: &[(usize, Arc<OpenFile>)]) -> io::Result<()> {
        self.change(|status| {
            for (at, file) in files {
                if let Some(inode) = status.file_inodes.get_mut(*at) {
                    *inode = file.inode();
                }
            }
        })
    }

    /// Whether some reference names the image by digest in this reference's repository. If so, the marker stays.
    pub(super) fn keeps_marker(&self, reference: &Reference) -> bool {
        let home = &self.home;
        let repository = cache::repository_directory(home, reference);
        let references = lock(&self.status).references.clone();
        references.iter().any(|other| {
            matches!(other.version(), Version::Digest(_))
                && cache::repository_directory(home, other) == repository
        })
    }

    /// Whether tart finds the image by this reference, and the marker is there or not, as it should be. A guard may be
    /// there while the link is young, if an installation came to its end.
    pub(super) fn is_in_place(&self, reference: &Reference, keep_marker: bool) -> bool {
        let home = &self.home;
        let marker = cache::image_directory(home, reference, &self.image);
        let is_fit = match marker_of(&marker.join(cache::MARKER)) {
            Marker::Guard => !keep_marker && self.is_concluded() && self.is_young(reference),
            Marker::Missing => !keep_marker,
            Marker::Ours | Marker::Theirs => true,
        };
        self.names(reference) && is_fit
    }

    /// Whether an installation came to its end, and none has begun since: what stood in the image's places before is
    /// known to have the markers that it had.
    pub(super) fn is_concluded(&self) -> bool {
        let mut rests = [IMAGE, REPLACED, TWIN].into_iter();
        self.is_installed() && !rests.any(|rest| self.directory.join(rest).exists())
    }

    /// Whether the link by which this reference names the image was made so lately that tart's `gc` may have counted
    /// the links before. One from the future may have been made just now.
    pub(super) fn is_young(&self, reference: &Reference) -> bool {
        let target = cache::image_directory(&self.home, reference, &self.image);
        let link = cache::tag_link(&self.home, reference);
        let link = link.filter(|link| fs::read_link(link).is_ok_and(|to| to == target));
        let made = link.and_then(|link| fs::symlink_metadata(link).ok()?.modified().ok());
        let age = made.map(|made| made.elapsed().unwrap_or(Duration::ZERO));
        age.is_some_and(|age| age < self.files.guard())
    }

    /// The references to install the image under: those in `wanted`, and those that were wanted before. If the image is
    /// installed, tags that another image took over since are left out, unless they are in `wanted`. Otherwise
    /// repeating an old installation would take these tags back.
    pub(super) fn own(&self, wanted: &[Reference]) -> Vec<Reference> {
        let lost = if self.is_installed() {
            self.lost()
        } else {
            Vec::new()
        };
        let mut references = lock(&self.status).wanted().to_vec();
        references.retain(|reference| wanted.contains(reference) || !lost.contains(reference));
        references
    }

    /// The references that shall name the image. If an earlier version installed the image, it didn't note which
    /// references are wanted. Then these are all known references that another image hasn't taken over.
    pub(super) fn wanted(&self) -> Vec<Reference> {
        let status = lock(&self.status).clone();
        let lost = match (&status.wanted, status.installed) {
            (None, true) => self.lost(),
            _ => Vec::new(),
        };
        let mut references = status.wanted().to_vec();
        references.retain(|reference| !lost.contains(reference));
        references
    }

    /// Notes that exactly these references shall name the image. The note survives a crash. Other references that name
    /// the image stay, but nobody links them again.
    fn want(&self, references: &[Reference]) -> io::Result<()> {
        loop {
            let before = lock(&self.status).clone();
            if before.wanted.as_deref() == Some(references) {
                return Ok(());
            }
            let kept = self.kept(&before.references, references);
            self.unguard(&kept, references)?;
            let mut is_same = false;
            self.change(|status| {
                // an installation may have added references meanwhile
                is_same = *status == before;
                if is_same {
                    status.references = kept;
                    status.wanted = Some(references.to_vec());
                }
            })?;
            if is_same {
                return Ok(());
            }
        }
    }

    /// The hosts that may have what the image holds.
    pub(super) fn entitled(&self) -> Entitled {
        lock(&self.status).entitled.clone()
    }

    /// Notes that exactly these hosts may have what the image holds. The note survives a crash. Does nothing if our
    /// directory was removed.
    pub(super) fn entitle(&self, entitled: Entitled) -> io::Result<()> {
        match self.change(|status| status.entitled = entitled) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.directory.exists() => {
                Ok(())
            }
            other => other,
        }
    }

    /// The image's recipe.
    pub(super) fn recipe(&self) -> Option<Blob> {
        lock(&self.status).recipe
    }

    /// Notes the recipe by which the image's chunks are proved. The note survives a crash. The caller knows that our
    /// directory is still of this stage.
    pub(super) fn note_recipe(&self, file: Blob) -> io::Result<()> {
        self.change(|status| status.recipe = Some(file))
    }

    /// What [`want`](Self::want) does. Does nothing if our directory was removed.
    pub(super) fn want_if_there(&self, references: &[Reference]) -> io::Result<()> {
        match self.want(references) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.directory.exists() => {
                Ok(())
            }
            other => other,
        }
    }

    /// Whether the image's own files are in the repository of each reference.
    pub(super) fn are_placed(&self, references: &[Reference]) -> bool {
        let placed = |reference: &Reference| {
            self.is_ours(&cache::image_directory(&self.home, reference, &self.image))
        };
        references.iter().all(placed)
    }

    /// The references to remember: those that are wanted, those that name the image, and one for each other repository
    /// that has the image's files. By the latter the files are found again.
    fn kept(&self, known: &[Reference], wanted: &[Reference]) -> Vec<Reference> {
        let home = &self.home;
        let repository = |reference: &Reference| cache::repository_directory(home, reference);
        let mut places: BTreeSet<PathBuf> = wanted.iter().map(repository).collect();
        let mut kept: Vec<Reference> = Vec::new();
        for reference in known.iter().chain(wanted) {
            if kept.contains(reference) {
                continue;
            }
            let target = cache::image_directory(home, reference, &self.image);
            let is_place = !places.contains(&repository(reference)) && self.is_ours(&target);
            if wanted.contains(reference) || self.names(reference) || is_place {
                places.insert(repository(reference));
                kept.push(reference.clone());
            }
        }
        kept
    }

    /// Removes the guard from directories in repositories where no reference is wanted, so that tart may collect them.
    fn unguard(&self, known: &[Reference], wanted: &[Reference]) -> io::Result<()> {
        let home = &self.home;
        let repository = |reference: &Reference| cache::repository_directory(home, reference);
        for reference in known {
            if wanted
                .iter()
                .any(|wanted| repository(wanted) == repository(reference))
            {
                continue;
            }
            let target = cache::image_directory(home, reference, &self.image);
            let marker = target.join(cache::MARKER);
            if self.is_ours(&target) && fs::read(&marker).is_ok_and(|bytes| bytes == GUARD) {
                fs::remove_file(&marker).map_err(|error| io_at("removing", &marker, error))?;
            }
        }
        Ok(())
    }

    /// References by tag that name another image now, which tart has whole. `tart pull` of a moved tag makes the link
    /// anew (tart, Sources/tart/VMStorageOCI.swift: pull, link).
    pub(super) fn lost(&self) -> Vec<Reference> {
        let home = &self.home;
        let references = lock(&self.status).references.clone();
        let lost = references.into_iter().filter(|reference| {
            let ours = cache::image_directory(home, reference, &self.image);
            cache::tag_link(home, reference)
                .and_then(|link| fs::read_link(link).ok())
                .is_some_and(|target| target != ours && cache::is_complete(home, &target))
        });
        lost.collect()
    }

    /// Adds references to the known and the wanted ones. The note survives a crash.
    pub(super) fn add(&self, references: &[Reference]) -> io::Result<()> {
        let mut wanted = self.wanted();
        self.change(|status| {
            for list in [&mut wanted, &mut status.references] {
                for reference in references {
                    if !list.contains(reference) {
                        list.push(reference.clone());
                    }
                }
            }
            status.wanted = Some(wanted);
        })
    }

    /// Whether this directory holds all of the image's own files.
    pub(super) fn is_ours(&self, directory: &Path) -> bool {
        self.files.lie_in(directory)
    }

    /// A directory of tart's cache that holds the image.
    pub(super) fn installed_directory(&self) -> Option<PathBuf> {
        let mut candidates = self.candidates().into_iter();
        candidates.find(|directory| self.is_ours(directory))
    }

    /// All directories of tart's cache that hold the image.
    pub(super) fn installed_directories(&self) -> Vec<PathBuf> {
        let mut directories = self.candidates();
        directories.retain(|directory| self.is_ours(directory));
        directories
    }

    /// The directories where the image could be: one in each reference's repository, without repetition.
    fn candidates(&self) -> Vec<PathBuf> {
        let references = lock(&self.status).references.clone();
        let mut candidates = Vec::new();
        for reference in &references {
            let directory = cache::image_directory(&self.home, reference, &self.image);
            if !candidates.contains(&directory) {
                candidates.push(directory);
            }
        }
        candidates
    }

    /// Whether both the image's files (under construction or in tart's cache) and our notes are still there.
    pub(super) fn is_there(&self) -> bool {
        self.disk_path().is_some() && self.directory.join(STATUS).exists()
    }

    /// The path of the image's disk: of its first file, if it is stacked.
    pub(super) fn disk_path(&self) -> Option<PathBuf> {
        let building = self.directory.join(IMAGE);
        let directory = if self.is_ours(&building) {
            building
        } else {
            self.installed_directory()?
        };
        self.files.disk_paths(&directory).into_iter().next()
    }

    /// The references under which tart finds the image now.
    pub(super) fn present(&self) -> Vec<String> {
        let references = lock(&self.status).references.clone();
        let present = references.iter().filter(|reference| self.names(reference));
        present.map(ToString::to_string).collect()
    }

    /// Whether tart finds the image by this reference now: by a tag, the link has to lead to the image's directory; by
    /// digest, the directory is found without a link, and only the marker keeps it (tart, Sources/tart/
    /// VMStorageOCI.swift: linked, exists, gc).
    pub(super) fn names(&self, reference: &Reference) -> bool {
        let home = &self.home;
        let target = cache::image_directory(home, reference, &self.image);
        let named = match cache::tag_link(home, reference) {
            Some(link) => fs::read_link(link).is_ok_and(|to| to == target),
            None => target.join(cache::MARKER).exists(),
        };
        named && self.is_ours(&target)
    }
}
