//! Retires old images: takes images that nobody wants any more out of tart's cache, with their goldens, so that their
//! space is free again. Off unless the operator sets a rule.
//!
//! [`decide`] is a function of facts. An image stays while
//! - it is wanted under any name, or it is among the newest of its repository that are to stay,
//! - it was used within the days that the rule says,
//! - a Pod or a pool of the cluster refers to it, as far as the coordinator told,
//! - it was wanted, or cloned from, within the last hour,
//! - somebody else named it, too: by a tag, or by a marker,
//! - one of its goldens runs as a VM,
//! - a local VM was made while the image was in use, or soon after. A clone of a flat image carries no note of it
//!   (tart, Sources/tart/VMDirectory.swift: clone), so any such VM may be one, and whoever starts it again (a Pod, say)
//!   may need the golden.
//!
//! A file of a stacked image goes with the last image or VM that refers to it.
//!
//! Only files that we made are removed: those with our inodes, and goldens with our marks, in the directory that the
//! mark names. What tart pulled itself, and VMs, are never touched. Where somebody else named our files, by a tag or a
//! marker, the image stays, too.
//!
//! A golden of ours goes by the same rule if its image isn't here any more, because tart or somebody else removed it,
//! and if its image is wanted under other names only, as after a release that only renames it.
//!
//! **What a crash leaves**, step by step: goldens are moved away first, and their marks removed. The image is still
//! installed, and the next call goes on with it. Then the tags are removed, so tart may collect what they named. The
//! image's directories are moved away next, and then files that no image refers to any more; tart collects those that a
//! crash leaves. From then on the next start removes our notes, because the image isn't in
//! the cache any more. What was moved away is removed last, outside of all locks ([`empty`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use proto::{Digest, image::Format};
use rustix::process::{Flock, FlockType, fcntl_getlk};
use tracing::{info, warn};

use super::{
    Store,
    content_files::{freed, lock_content, unreferred},
    news::News,
    stage::Stage,
    status::Status,
    steps::step,
    tree::{Marker, RETIRED, ROOT, STATUS, begun_at, io_at, marker, remove_any},
};
use crate::{
    golden::{self, Lies},
    lock::lock,
    platform::{self, DirectoryLock, LockError},
    retention::Terms,
    tart::{Reference, cache},
};

mod decide;

pub(crate) use decide::Stays;
use decide::{Old, decide, decide_outlived};

/// An installed image, as its notes and tart's cache say.
#[derive(Clone, Debug)]
struct Installed {
    image: Digest,
    /// The references that name it, or shall.
    known: Vec<Reference>,
    /// The directories in tart's cache that are ours.
    directories: Vec<PathBuf>,
    /// The references that it is wanted by.
    wanted: Vec<Reference>,
    /// Our directory of it.
    notes: PathBuf,
}

impl Installed {
    fn of(stage: &Stage) -> Self {
        let image = *stage.layout().digest();
        Self {
            image,
            known: stage.names().known(),
            directories: stage.names().installed_directories(),
            wanted: stage.names().wanted(),
            notes: stage.shared().directory(&image),
        }
    }

    /// What the notes in this directory say, without a store. `None` if the image isn't installed.
    fn noted(home: &Path, image: Digest, notes: PathBuf) -> Option<Self> {
        let status = Status::read(&notes).ok()??;
        let places = status.references.iter();
        let mut directories: Vec<PathBuf> = places
            .map(|reference| cache::image_directory(home, reference, &image))
            .filter(|directory| status.is_of(directory))
            .collect();
        directories.sort();
        directories.dedup();
        status.installed.then(|| Self {
            image,
            // notes of an earlier version don't say which names are wanted: such an image may be
            wanted: status.wanted().to_vec(),
            known: status.references,
            directories,
            notes,
        })
    }
}

/// The terms at this moment. `None`: all images stay.
type Asked<'a> = &'a dyn Fn() -> Option<Terms>;

/// Retires the images that may go, by these terms, which are asked for anew before each image goes: another order may
/// have come since, or a Pod. Returns those that went. Their files are
/// only moved away; [`empty`] removes them. What can't be looked at, or is locked by tart, is tried again with the next
/// call.
pub(crate) fn retire(store: &Store, terms: Asked<'_>, now: SystemTime) -> Vec<Digest> {
    let Some(first) = terms() else {
        return Vec::new();
    };
    // without any lock: nearly always there is nothing to retire, and nobody is kept waiting
    let verdicts = match verdicts(store, &first, now) {
        Ok((verdicts, _)) => verdicts,
        Err(error) => {
            warn!(%error, "old images stay, because local VMs can't be listed");
            return Vec::new();
        }
    };
    retire_goldens(store, terms, now);
    let go = verdicts.into_iter().filter(|(_, stays)| stays.is_none());
    let go = go.filter_map(|(image, _)| match remove(store, &image, terms, now) {
        Ok(true) => {
            info!(%image, "an old image is retired: nobody wants it, and enough newer ones stay");
            Some(image)
        }
        Ok(false) => None,
        Err(error) => {
            warn!(%image, %error, "an old image couldn't be retired; it is tried again");
            None
        }
    });
    go.collect()
}

/// What [`retire`] would do, and what it would free.
#[derive(Clone, Debug)]
pub(crate) struct Preview {
    /// Each installed image, each image of which only goldens are left, and each golden of a name that its image lost.
    pub(crate) images: Vec<Previewed>,
    /// Bytes that files of images take that were retired before.
    pub(crate) left_bytes: u64,
}

impl Preview {
    /// Bytes of the images that would go.
    pub(crate) fn freed_bytes(&self) -> u64 {
        let go = self.images.iter().filter(|image| image.stays.is_none());
        go.map(|image| image.bytes).sum()
    }
}

/// What would become of an image.
#[derive(Clone, Debug)]
pub(crate) struct Previewed {
    pub(crate) image: Digest,
    /// The references that name it, or shall.
    pub(crate) references: Vec<String>,
    /// Its goldens that parbake made, which go with it.
    pub(crate) goldens: Vec<String>,
    /// Why it stays. `None`: it would go.
    pub(crate) stays: Option<Stays>,
    /// Bytes that its files take. What they share with other files of this host counts, too. Goldens share their
    /// image's blocks, so they count only where the image isn't here.
    pub(crate) bytes: u64,
}

/// What [`retire`] would do in this home of tart now, by these terms. Changes nothing, and
/// takes no lock. Leaves out images of which the disk doesn't tell enough: they stay.
///
/// # Errors
/// When our directory or the local VMs can't be listed.
pub(crate) fn preview(home: &Path, terms: &Terms, now: SystemTime) -> io::Result<Preview> {
    let home = &fs::canonicalize(home)?;
    let root = home.join(ROOT);
    let (mut installed, mut here) = (Vec::new(), BTreeSet::new());
    let entries = match fs::read_dir(&root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        entries => Some(entries.map_err(|error| io_at("reading", &root, error))?),
    };
    for entry in entries.into_iter().flatten() {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(image) = name.and_then(|name| format!("sha256:{name}").parse().ok()) {
            here.insert(image);
            installed.extend(Installed::noted(home, image, path));
        }
    }
    let goldens = goldens(home);
    let images = look_at_all(home, &installed, &here, &goldens);
    let verdicts = decide(&images, &machines(home, &goldens)?, terms, now);
    // what several images share goes with the last of them
    let mut gone: Vec<PathBuf> = Vec::new();
    let previewed = verdicts.into_iter().map(|(image, stays)| {
        let installed = installed.iter().find(|of| of.image == image);
        let goldens = goldens.get(&image).map_or(&[][..], Vec::as_slice);
        let machines = machines_of(home, goldens);
        let directories = installed.map_or(machines.clone(), |of| of.directories.clone());
        let mut without = [&directories[..], &machines].concat();
        if stays.is_none() {
            gone.append(&mut without);
            without.clone_from(&gone);
        }
        let shared = installed.map_or_else(Vec::new, |of| freed(home, &of.directories, &without));
        let notes = installed.map(|of| of.notes.clone());
        let known = installed.map_or(&[][..], |of| &of.known);
        let marked = goldens
            .iter()
            .filter_map(|(_, reference)| reference.as_ref());
        let named = known.iter().chain(marked.filter(|_| known.is_empty()));
        let there = |name: &&String| cache::vm_directory(home, name).is_dir();
        let goldens = goldens.iter().map(|(name, _)| name).filter(there);
        Previewed {
            image,
            references: named.map(ToString::to_string).collect(),
            goldens: goldens.cloned().collect(),
            stays,
            bytes: directories
                .iter()
                .flat_map(|directory| parts(directory))
                .chain(shared)
                .chain(notes)
                .map(|path| taken_bytes(&path))
                .sum(),
        }
    });
    let mut images: Vec<Previewed> = previewed.collect();
    // marks of goldens that are gone name nothing that takes room
    images.retain(|of| of.bytes > 0);
    let old = going_goldens(home, &installed, &goldens, terms, now)?;
    images.extend(old.into_iter().map(|old| Previewed {
        image: old.image,
        references: vec![old.reference.to_string()],
        goldens: vec![old.golden],
        stays: None,
        bytes: 0,
    }));
    images.sort_by_key(|of| (of.stays.is_some(), std::cmp::Reverse(of.bytes), of.image));
    Ok(Preview {
        images,
        left_bytes: taken_bytes(&root.join(RETIRED)),
    })
}

/// The files that tart has in an image's or a VM's directory. The directory isn't listed, because that could be noted
/// as the time of its last use.
fn parts(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let names = cache::PARTS.into_iter();
    let names = names.chain([cache::MANIFEST, cache::OVERLAY]);
    names.map(|name| directory.join(name))
}

/// Bytes that a file, or a directory's files, take on the volume. What can't be read counts as none.
fn taken_bytes(directory: &Path) -> u64 {
    /// `st_blocks` counts units of so many bytes.
    const BLOCK_BYTES: u64 = 512;
    if let Ok(found) = fs::symlink_metadata(directory)
        && found.is_file()
    {
        return found.blocks() * BLOCK_BYTES;
    }
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => taken_bytes(&entry.path()),
        _ => entry
            .metadata()
            .map_or(0, |found| found.blocks() * BLOCK_BYTES),
    });
    sizes.sum()
}

/// Removes the files of what was retired, also by a process before this one. Blocks for as long as the volume takes for
/// whole disks.
pub(crate) fn empty(store: &Store) {
    let retired = store.shared.home().join(ROOT).join(RETIRED);
    for entry in fs::read_dir(retired).into_iter().flatten().flatten() {
        if let Err(error) = remove_any(&entry.path()) {
            warn!(%error, "files of a retired image can't be removed; it is tried again");
        }
    }
}

type Goldens = BTreeMap<Digest, Vec<(String, Option<Reference>)>>;
type Verdicts = BTreeMap<Digest, Option<Stays>>;

/// Looks at everything, and decides.
fn verdicts(store: &Store, terms: &Terms, now: SystemTime) -> io::Result<(Verdicts, Goldens)> {
    let home = store.shared.home();
    let (goldens, installed) = goldens_and_installed(store);
    let stages = store.all();
    let here = stages.iter().map(|stage| *stage.layout().digest());
    let images = look_at_all(home, &installed, &here.collect(), &goldens);
    if images.iter().all(|old| old.wanted) {
        return Ok((Verdicts::new(), goldens));
    }
    let machines = machines(home, &goldens)?;
    Ok((decide(&images, &machines, terms, now), goldens))
}

/// Our goldens, and the images that are installed.
fn goldens_and_installed(store: &Store) -> (Goldens, Vec<Installed>) {
    let goldens = goldens(store.shared.home());
    let stages = store.all();
    let installed = stages
        .iter()
        .filter(|stage| stage.is_installed() && !stage.is_gone());
    let installed = installed.map(|stage| Installed::of(stage)).collect();
    (goldens, installed)
}

/// What is known of installed images, and of goldens whose images aren't here.
fn look_at_all(
    home: &Path,
    installed: &[Installed],
    here: &BTreeSet<Digest>,
    goldens: &Goldens,
) -> Vec<Old> {
    let images = installed.iter();
    let images = images.filter_map(|installed| look(home, installed, goldens));
    let orphans = goldens.iter().filter(|(image, _)| !here.contains(image));
    let orphans = orphans.filter_map(|(image, of)| look_at_orphans(home, *image, of));
    images.chain(orphans).collect()
}

/// What is known of an installed image. `None` where the disk doesn't tell all of it, so that the image stays.
fn look(home: &Path, installed: &Installed, goldens: &Goldens) -> Option<Old> {
    let (image, directories) = (installed.image, &installed.directories);
    if directories.is_empty() {
        // somebody removed it, as the next look at the disk will find; what is left of it are orphans then
        return None;
    }
    let note = fs::metadata(installed.notes.join(STATUS));
    let noted = note.and_then(|note| note.modified()).ok()?;
    let machines = machines_of(home, goldens.get(&image).map_or(&[][..], Vec::as_slice));
    let repositories = directories.iter().filter_map(|found| found.parent());
    let old = Old {
        image,
        names: names_of(home, installed),
        repositories: repositories.map(Path::to_owned).collect(),
        wanted: !installed.wanted.is_empty(),
        since: begun_at(&installed.notes)?,
        used: noted,
        outdated: false,
        elsewhere: named_elsewhere(home, &installed.known, directories).ok()?,
        running: running(&machines),
    };
    used_by(old, directories.iter().chain(&machines))
}

/// The places of the references that name an image, or may again: but for tags that lead to another image now.
fn names_of(home: &Path, installed: &Installed) -> BTreeSet<String> {
    let leads_away = |reference: &&Reference| {
        let to = cache::tag_link(home, reference).and_then(|link| fs::read_link(link).ok());
        to.is_some_and(|to| !installed.directories.contains(&to))
    };
    let known = installed.known.iter();
    let known = known.filter(|reference| !leads_away(reference));
    known.map(Reference::place).collect()
}

/// What is known of goldens of ours alone: their image isn't here any more, because tart or somebody else removed it,
/// or it is here under other names.
fn look_at_orphans(
    home: &Path,
    image: Digest,
    goldens: &[(String, Option<Reference>)],
) -> Option<Old> {
    let machines = machines_of(home, goldens);
    let mut times = Vec::new();
    for (name, _) in goldens {
        let mark = fs::metadata(golden::mark_path(home, name)).and_then(|mark| mark.modified());
        times.push(mark.ok()?);
    }
    let made = machines.iter().map(|path| fs::metadata(path)?.created());
    let since = times.iter().copied().chain(made.flatten()).min()?;
    // marks of an earlier version don't name the repository: these goldens have their places among themselves
    let repository = |reference: &Option<Reference>| match reference {
        Some(reference) => cache::repository_directory(home, reference),
        None => home.join("vms"),
    };
    // a mark whose golden was removed takes no place from an image
    let there = goldens
        .iter()
        .filter(|(name, _)| cache::vm_directory(home, name).is_dir());
    let named = goldens
        .iter()
        .filter_map(|(_, reference)| reference.as_ref());
    let old = Old {
        image,
        names: named.map(Reference::place).collect(),
        repositories: there.map(|(_, of)| repository(of)).collect(),
        wanted: false,
        since,
        used: times.into_iter().max()?,
        outdated: false,
        elsewhere: None,
        running: running(&machines),
    };
    used_by(old, machines.iter())
}

/// The image with the clones of these directories that tart noted in their access times. `None` if one can't be looked
/// at.
fn used_by<'a>(mut old: Old, directories: impl Iterator<Item = &'a PathBuf>) -> Option<Old> {
    for path in directories {
        let found = fs::metadata(path).and_then(|found| found.accessed());
        old.cloned(found.ok()?);
    }
    Some(old)
}

/// A link or a marker in tart's cache by which somebody else named the image.
///
/// # Errors
/// When the cache can't be read.
fn named_elsewhere(
    home: &Path,
    known: &[Reference],
    directories: &[PathBuf],
) -> io::Result<Option<String>> {
    let known: BTreeSet<PathBuf> = known
        .iter()
        .filter_map(|reference| cache::tag_link(home, reference))
        .collect();
    for directory in directories {
        let links = cache::links(directory)?;
        let path = directory.join(cache::MARKER);
        let theirs = (marker(&path) == Marker::Theirs).then_some(path);
        let mut others = links.into_iter().filter(|link| !known.contains(link));
        if let Some(other) = others.next().or(theirs) {
            return Ok(Some(other.display().to_string()));
        }
    }
    Ok(None)
}

/// A golden of a name that its image, which is wanted, has lost.
#[derive(Clone, Debug)]
struct Outlived {
    image: Digest,
    reference: Reference,
    golden: String,
    old: Old,
}

/// The goldens of names that their images lost, and that go by these terms.
///
/// # Errors
/// When the local VMs can't be listed.
fn going_goldens(
    home: &Path,
    installed: &[Installed],
    goldens: &Goldens,
    terms: &Terms,
    now: SystemTime,
) -> io::Result<Vec<Outlived>> {
    let all = outlived(home, installed, goldens);
    if all.is_empty() {
        return Ok(all);
    }
    let machines = machines(home, goldens)?;
    let facts: Vec<Old> = all.iter().map(|golden| golden.old.clone()).collect();
    let go = decide_outlived(&facts, &machines, terms, now);
    let going = all.into_iter().zip(go).filter(|(_, goes)| *goes);
    Ok(going.map(|(golden, _)| golden).collect())
}

fn outlived(home: &Path, installed: &[Installed], goldens: &Goldens) -> Vec<Outlived> {
    let mut wanted: BTreeMap<Digest, BTreeSet<String>> = BTreeMap::new();
    for of in installed.iter().filter(|of| !of.wanted.is_empty()) {
        let places = of.wanted.iter().map(Reference::place);
        wanted.entry(of.image).or_default().extend(places);
    }
    let mut all = Vec::new();
    for (image, wanted) in wanted {
        for golden in goldens.get(&image).into_iter().flatten() {
            let (name, Some(reference)) = golden else {
                // the mark of an earlier version names no reference
                continue;
            };
            let is_old = !wanted.contains(&reference.place());
            if is_old
                && cache::vm_directory(home, name).is_dir()
                && let Some(old) = look_at_orphans(home, image, std::slice::from_ref(golden))
            {
                all.push(Outlived {
                    image,
                    reference: reference.clone(),
                    golden: name.clone(),
                    old,
                });
            }
        }
    }
    all
}

/// Retires goldens of names that their images lost. What can't be looked at, or is locked by tart, is tried again with
/// the next call.
fn retire_goldens(store: &Store, terms: Asked<'_>, now: SystemTime) {
    let home = store.shared.home();
    let look = || {
        let Some(terms) = terms() else {
            return Ok(Vec::new());
        };
        let (goldens, installed) = goldens_and_installed(store);
        going_goldens(home, &installed, &goldens, &terms, now)
    };
    let remove = || -> io::Result<()> {
        if look()?.is_empty() {
            return Ok(());
        }
        let _changing = lock(&store.changing);
        let Some(_locks) = lock_places(home, &[])? else {
            return Ok(());
        };
        // somebody may have cloned a golden, run it or wanted its name since it was looked at without the locks
        for Outlived {
            image,
            reference,
            golden,
            ..
        } in look()?
        {
            move_out(home, &cache::vm_directory(home, &golden))?;
            step("golden moved")?;
            remove_any(&golden::mark_path(home, &golden))?;
            info!(%image, %reference, golden, "an old golden is retired: its image is wanted under other names only");
        }
        Ok(())
    };
    if let Err(error) = remove() {
        warn!(%error, "goldens of old names couldn't be retired; it is tried again");
    }
}

/// The directories of these goldens that are there.
fn machines_of(home: &Path, goldens: &[(String, Option<Reference>)]) -> Vec<PathBuf> {
    let machines = goldens
        .iter()
        .map(|(name, _)| cache::vm_directory(home, name));
    machines.filter(|machine| machine.is_dir()).collect()
}

/// The first of these VMs that runs.
fn running(machines: &[PathBuf]) -> Option<String> {
    let runs = machines.iter().find(|machine| is_running(machine));
    runs.map(|machine| machine.display().to_string())
}

/// Whether tart runs this VM: it then holds a lock on the VM's configuration. The lock is only asked for, as tart does
/// (tart, Sources/tart/VMDirectory.swift: running; PIDLock.swift: pid): to hold it for an instant would end a `tart
/// run` that begins in that instant. What can't be tried counts as running.
pub(super) fn is_running(machine: &Path) -> bool {
    let config = match File::open(machine.join(cache::CONFIG)) {
        // nobody can run it
        Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
        Err(_) => return true,
        Ok(config) => config,
    };
    !matches!(
        fcntl_getlk(&config, &Flock::from(FlockType::WriteLock)),
        Ok(None)
    )
}

/// The goldens that we made, by their images, and marks of goldens that are gone. Not where another VM has the name by
/// now, or where an earlier version made the golden and its mark doesn't say which VM it is.
fn goldens(home: &Path) -> Goldens {
    let mut goldens = Goldens::new();
    for (name, mark) in golden::marks(home) {
        let lies = mark.lies(&cache::vm_directory(home, &name));
        if !matches!(lies, Lies::Ours | Lies::Nothing) {
            continue;
        }
        goldens
            .entry(mark.image)
            .or_default()
            .push((name, mark.reference));
    }
    goldens
}

/// Local VMs that aren't goldens of ours, with the times when they were made.
fn machines(home: &Path, goldens: &Goldens) -> io::Result<Vec<(String, SystemTime)>> {
    let ours: BTreeSet<&String> = goldens.values().flatten().map(|(name, _)| name).collect();
    let entries = match fs::read_dir(home.join("vms")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut machines = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if ours.contains(&name) {
            continue;
        }
        let found = entry.metadata()?;
        let made = found.created().or_else(|_| found.modified())?;
        machines.push((name, made));
    }
    Ok(machines)
}

/// Takes an image out of tart's cache with its goldens, and drops our notes of it. Returns whether it went: not while
/// tart holds a lock, and not if what is seen under the locks keeps it.
///
/// Goldens go first: while the image is there, the next call finds what is left of them.
pub(super) fn remove(
    store: &Store,
    image: &Digest,
    terms: Asked<'_>,
    now: SystemTime,
) -> io::Result<bool> {
    let _changing = lock(&store.changing);
    let stage = store.stage(image);
    // an installation may take minutes
    let installing = match stage.as_deref().map(Stage::try_installing) {
        Some(None) => return Ok(false),
        Some(Some(installing)) => Some(installing),
        None => None,
    };
    let home = store.shared.home();
    let known = stage
        .as_ref()
        .map_or(Vec::new(), |stage| stage.names().known());
    let Some(_locks) = lock_places(home, &known)? else {
        return Ok(false);
    };
    let is_stacked = |stage: &&Arc<Stage>| stage.layout().format() == Format::Stacked;
    let _content = match stage.as_ref().filter(is_stacked) {
        None => None,
        Some(_) => match lock_content(home, Duration::ZERO) {
            Ok(locked) => Some(locked),
            Err(LockError::Busy { .. }) => return Ok(false),
            Err(LockError::Io { error, .. }) => return Err(error),
        },
    };
    // somebody may have cloned it, run a golden or wanted it since it was looked at without the locks
    let Some(terms) = terms() else {
        return Ok(false);
    };
    let (verdicts, goldens) = verdicts(store, &terms, now)?;
    if verdicts.get(image) != Some(&None) {
        return Ok(false);
    }
    let goldens = goldens.get(image).map_or(&[][..], Vec::as_slice);
    step("looked under locks")?;
    for (name, _) in goldens {
        move_out(home, &cache::vm_directory(home, name))?;
        step("golden moved")?;
        remove_any(&golden::mark_path(home, name))?;
    }
    step("goldens retired")?;
    let Some(stage) = &stage else {
        return Ok(true);
    };
    let directories = stage.names().installed_directories();
    for reference in &known {
        if let Some(link) = cache::tag_link(home, reference)
            && fs::read_link(&link).is_ok_and(|to| directories.contains(&to))
        {
            fs::remove_file(&link)?;
        }
    }
    step("unlinked")?;
    for directory in &directories {
        move_out(home, directory)?;
        step("image moved")?;
    }
    if is_stacked(&stage) {
        move_out_files(home, stage)?;
    }
    store.let_go(image);
    stage.set_gone();
    drop(installing);
    store.forget_recipe(stage);
    store.shared.tell(News::Retired { image: *image });
    move_out(home, &store.shared.directory(image))?;
    Ok(true)
}

/// Moves away the files of a stacked image that nobody refers to any more. The caller holds tart's locks round them.
fn move_out_files(home: &Path, stage: &Stage) -> io::Result<()> {
    let files = unreferred(home, stage.layout(), &[]).unwrap_or_else(|error| {
        let image = stage.layout().digest();
        warn!(%image, %error, "files of a retired image are left for tart to collect");
        Vec::new()
    });
    for file in files {
        move_out(home, &cache::content_file(home, &file))?;
        step("file moved")?;
    }
    Ok(())
}

/// Takes the locks that tart holds while it pulls, while a new VM gets its name, and until a VM that begins to run is
/// locked itself (tart, Sources/tart/VMStorageOCI.swift: pull; Commands/Clone.swift: run; Commands/Run.swift:
/// runOnMainThread). `None` if tart has one of them.
fn lock_places(home: &Path, known: &[Reference]) -> io::Result<Option<Vec<DirectoryLock>>> {
    let hosts = known
        .iter()
        .map(|reference| cache::host_directory(home, reference));
    let mut places: BTreeSet<PathBuf> = hosts.filter(|place| place.is_dir()).collect();
    places.insert(home.to_owned());
    let mut locks = Vec::new();
    for place in &places {
        match platform::lock_directory(place, Duration::ZERO) {
            Ok(locked) => locks.push(locked),
            Err(LockError::Busy { .. }) => return Ok(None),
            Err(LockError::Io { error, .. }) => return Err(error),
        }
    }
    Ok(Some(locks))
}

/// Moves a directory to where [`empty`] removes it, if it is there. The caller holds `changing`.
fn move_out(home: &Path, directory: &Path) -> io::Result<()> {
    let retired = home.join(ROOT).join(RETIRED);
    match fs::create_dir(&retired) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    let mut free = (0_u64..).map(|number| retired.join(number.to_string()));
    let to = free.find(|to| fs::symlink_metadata(to).is_err());
    match fs::rename(directory, to.unwrap_or(retired)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed.map_err(|error| io_at("retiring", directory, error)),
    }
}
