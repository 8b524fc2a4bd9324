//! Retires old images: takes images that nobody wants any more out of tart's cache, with their goldens, so that their
//! space is free again. Off unless the operator sets how many images of a repository stay.
//!
//! [`decide`] is a function of facts. An image stays while
//! - it is wanted under any name, or it is among the newest of its repository that are to stay,
//! - it was wanted, or cloned from, within the last hour ([`REST`]),
//! - one of its goldens runs as a VM,
//! - a local VM was made while the image was in use, or soon after ([`Old::may_have_made`]). A clone carries no note of
//!   its image, so any such VM may be one, and whoever starts it again (a Pod, say) may need the golden.
//!
//! Only files that we made are removed: those with our inodes, and goldens with our marks. What tart pulled itself, and
//! VMs, are never touched.
//!
//! **What a crash leaves**, step by step: links are removed first, so tart may collect what they named; then the
//! directories move into ours, and the next start removes ours, because the image isn't in the cache any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use proto::Digest;
use rustix::fs::FlockOperation;
use tracing::{info, warn};

use super::{
    Store,
    news::News,
    stage::Stage,
    tree::{ROOT, STATUS, remove_any},
};
use crate::{
    lock::lock,
    platform::{self, LockError},
    tart::cache,
};

/// An image rests this long after it was wanted or cloned from. Whoever cancels the wrong image has this long to stage
/// it again.
const REST: Duration = Duration::from_hours(1);

/// What is known of an installed image.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Old {
    image: Digest,
    /// Where tart's cache has it.
    repositories: BTreeSet<PathBuf>,
    wanted: bool,
    /// When its staging began.
    since: SystemTime,
    /// When it was last wanted, or cloned from.
    used: SystemTime,
    /// tart set the note of the last clone back: it pulled another image under the same tag. So clones may be younger
    /// than `used` says.
    outdated: bool,
    /// A golden of it that runs.
    running: Option<String>,
}

impl Old {
    /// Whether a VM that was made at this moment may be a clone of the image.
    ///
    /// The last clone is younger than `used`: tart notes the use first, in whole seconds, and then makes the VM's
    /// directory. Where the times contradict each other, nothing is known of the beginning.
    fn may_have_made(&self, made: SystemTime) -> bool {
        let until = self.used.checked_add(REST).filter(|_| !self.outdated);
        let began = self.since > self.used || made >= self.since;
        began && until.is_none_or(|until| made <= until)
    }
}

/// Why an image stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stays {
    /// It is wanted.
    Wanted,
    /// It is among the newest of a repository.
    Newest,
    /// It was used within the last hour.
    UsedLately,
    /// This golden of it runs.
    Runs(String),
    /// This VM may be a clone of it.
    MayBeCloned(String),
}

/// Decides which images go. `keep` of each repository stay, the wanted ones among them. `machines` are local VMs that
/// aren't goldens of ours, with the times when they were made.
fn decide(
    images: &[Old],
    machines: &[(String, SystemTime)],
    keep: usize,
    now: SystemTime,
) -> BTreeMap<Digest, Option<Stays>> {
    let mut newest: Vec<&Old> = images.iter().collect();
    newest.sort_by_key(|old| (!old.wanted, std::cmp::Reverse((old.used, old.image))));
    let mut kept: BTreeMap<&PathBuf, usize> = BTreeMap::new();
    let mut verdicts = BTreeMap::new();
    for old in newest {
        let places = old.repositories.iter();
        let has_place = places
            .clone()
            .any(|place| kept.get(place).copied().unwrap_or(0) < keep);
        let verdict = if old.wanted {
            Some(Stays::Wanted)
        } else if has_place {
            Some(Stays::Newest)
        } else {
            needed(old, machines, now)
        };
        // what stays for another reason takes no place from a newer image
        if matches!(verdict, Some(Stays::Wanted | Stays::Newest)) {
            for place in places {
                *kept.entry(place).or_default() += 1;
            }
        }
        verdicts.insert(old.image, verdict);
    }
    verdicts
}

/// Why an image stays that isn't wanted and isn't among the newest.
fn needed(old: &Old, machines: &[(String, SystemTime)], now: SystemTime) -> Option<Stays> {
    if let Some(golden) = &old.running {
        return Some(Stays::Runs(golden.clone()));
    }
    // a clock that was set back makes it rest again
    if now
        .duration_since(old.used)
        .is_ok_and(|rested| rested >= REST)
    {
        let clone = machines
            .iter()
            .find(|(_, made)| old.may_have_made(*made));
        return clone.map(|(name, _)| Stays::MayBeCloned(name.clone()));
    }
    Some(Stays::UsedLately)
}

/// Retires the images that may go, if `keep` images of each repository stay. Returns those that went. What can't be
/// looked at, or is locked by tart, is tried again with the next call.
pub(crate) fn retire(store: &Store, keep: usize, now: SystemTime) -> Vec<Digest> {
    let home = store.shared.home();
    let goldens = goldens(home);
    let stages = store.all();
    let stages = stages
        .iter()
        .filter(|stage| stage.is_installed() && !stage.is_gone());
    let images: Vec<Old> = stages
        .filter_map(|stage| look(home, stage, &goldens))
        .collect();
    if images.iter().all(|old| old.wanted) {
        return Vec::new();
    }
    let verdicts = match machines(home, &goldens) {
        Ok(machines) => decide(&images, &machines, keep, now),
        Err(error) => {
            warn!(%error, "old images stay, because local VMs can't be listed");
            return Vec::new();
        }
    };
    let go = verdicts.into_iter().filter(|(_, stays)| stays.is_none());
    let go = go.filter_map(|(image, _)| {
        let names = goldens.get(&image).map_or(&[][..], Vec::as_slice);
        match remove(store, &image, names) {
            Ok(true) => {
                info!(%image, "an old image is retired: nobody wants it, and enough newer ones stay");
                Some(image)
            }
            Ok(false) => None,
            Err(error) => {
                warn!(%image, %error, "an old image couldn't be retired; it is tried again");
                None
            }
        }
    });
    go.collect()
}

/// What is known of an installed image. `None` where the disk doesn't tell all of it, so that the image stays.
fn look(home: &Path, stage: &Stage, goldens: &BTreeMap<Digest, Vec<String>>) -> Option<Old> {
    let image = *stage.layout().digest();
    let directories = stage.names().installed_directories();
    let note = fs::metadata(stage.shared().directory(&image).join(STATUS));
    let mut used = note.and_then(|note| note.modified()).ok()?;
    let names = goldens.get(&image).map_or(&[][..], Vec::as_slice);
    let machines = names.iter().map(|name| cache::vm_directory(home, name));
    let machines: Vec<PathBuf> = machines.filter(|machine| machine.is_dir()).collect();
    let mut outdated = false;
    // tart notes in the directory's access time when it was cloned from
    for path in directories.iter().chain(&machines) {
        let cloned = fs::metadata(path).and_then(|found| found.accessed()).ok()?;
        used = used.max(cloned);
        outdated |= cloned == SystemTime::UNIX_EPOCH;
    }
    let runs = machines.iter().find(|machine| is_running(machine));
    let repositories = directories.iter().filter_map(|found| found.parent());
    Some(Old {
        image,
        repositories: repositories.map(Path::to_owned).collect(),
        wanted: !stage.names().wanted().is_empty(),
        since: stage.begun_at()?,
        used,
        outdated,
        running: runs.map(|machine| machine.display().to_string()),
    })
}

/// Whether tart runs this VM: it then holds a lock on the VM's configuration. What can't be tried counts as running.
fn is_running(machine: &Path) -> bool {
    let config = File::options()
        .read(true)
        .write(true)
        .open(machine.join(cache::CONFIG));
    let exclusive = FlockOperation::NonBlockingLockExclusive;
    // the lock ends with the file
    !config.is_ok_and(|config| rustix::fs::fcntl_lock(&config, exclusive).is_ok())
}

/// The goldens that we made, by their images.
fn goldens(home: &Path) -> BTreeMap<Digest, Vec<String>> {
    let mut goldens: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    let marks = fs::read_dir(home.join(ROOT).join("goldens"));
    for mark in marks.into_iter().flatten().flatten() {
        let image = fs::read_to_string(mark.path());
        if let Some(image) = image.ok().and_then(|image| image.trim().parse().ok())
            && let Ok(name) = mark.file_name().into_string()
        {
            goldens.entry(image).or_default().push(name);
        }
    }
    goldens
}

/// Local VMs that aren't goldens of ours, with the times when they were made.
fn machines(
    home: &Path,
    goldens: &BTreeMap<Digest, Vec<String>>,
) -> io::Result<Vec<(String, SystemTime)>> {
    let ours: BTreeSet<&String> = goldens.values().flatten().collect();
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

/// Takes an image out of tart's cache with these goldens, and removes our notes of it. Returns whether it went: not
/// while tart holds a lock, and not if it is wanted again.
fn remove(store: &Store, image: &Digest, goldens: &[String]) -> io::Result<bool> {
    let _changing = lock(&store.changing);
    let Some(stage) = store.stage(image) else {
        return Ok(false);
    };
    let installing = stage.installing();
    let home = store.shared.home();
    let known = stage.names().known();
    if !stage.names().wanted().is_empty() {
        return Ok(false);
    }
    // tart holds these while it pulls, and while a new VM gets its name
    let mut places: BTreeSet<PathBuf> = known
        .iter()
        .map(|reference| cache::host_directory(home, reference))
        .filter(|place| place.is_dir())
        .collect();
    places.insert(home.to_owned());
    let mut locks = Vec::new();
    for place in &places {
        match platform::lock_directory(place, Duration::ZERO) {
            Ok(locked) => locks.push(locked),
            Err(LockError::Busy { .. }) => return Ok(false),
            Err(LockError::Io { error, .. }) => return Err(error),
        }
    }
    let ours = store.shared.directory(image);
    let machines = goldens.iter().map(|name| cache::vm_directory(home, name));
    let machines: Vec<PathBuf> = machines.filter(|machine| machine.is_dir()).collect();
    if machines.iter().any(|machine| is_running(machine)) {
        return Ok(false);
    }
    let directories = stage.names().installed_directories();
    for reference in &known {
        if let Some(link) = cache::tag_link(home, reference)
            && fs::read_link(&link).is_ok_and(|to| directories.contains(&to))
        {
            fs::remove_file(&link)?;
        }
    }
    for (number, from) in directories.iter().chain(&machines).enumerate() {
        let to = ours.join(format!("retired-{number}"));
        remove_any(&to)?;
        fs::rename(from, &to)?;
    }
    for name in goldens {
        remove_any(&home.join(ROOT).join("goldens").join(name))?;
    }
    drop(locks);
    drop(installing);
    store.drop_stage(image)?;
    store.shared.tell(News::Removed { image: *image });
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_hours(hours)
    }

    fn old(name: &str, wanted: bool, since: u64, used: u64) -> Old {
        Old {
            image: Digest::of(name.as_bytes()),
            repositories: [PathBuf::from("org/image")].into(),
            wanted,
            since: at(since),
            used: at(used),
            outdated: false,
            running: None,
        }
    }

    /// What becomes of each image, in the order in which they are given, at hour 100.
    fn verdicts(images: &[Old], machines: &[(&str, u64)], keep: usize) -> Vec<Option<Stays>> {
        let machines: Vec<_> = machines
            .iter()
            .map(|(name, made)| ((*name).to_owned(), at(*made)))
            .collect();
        let verdicts = decide(images, &machines, keep, at(100));
        let of = images.iter().map(|old| verdicts[&old.image].clone());
        of.collect()
    }

    #[test]
    fn the_wanted_and_the_newest_of_a_repository_stay() {
        let images = [
            old("a", false, 10, 20),
            old("b", false, 20, 30),
            old("c", false, 30, 40),
            old("d", true, 40, 99),
        ];
        use Stays::{Newest, Wanted};
        let of = |keep| verdicts(&images, &[], keep);
        assert_eq!(of(1), [None, None, None, Some(Wanted)]);
        assert_eq!(of(2), [None, None, Some(Newest), Some(Wanted)]);
        assert_eq!(
            of(4),
            [Some(Newest), Some(Newest), Some(Newest), Some(Wanted)]
        );
        // wanted images stay whatever their number
        let wanted = [
            old("a", true, 10, 20),
            old("b", true, 20, 30),
            old("c", false, 30, 40),
        ];
        assert_eq!(
            verdicts(&wanted, &[], 1),
            [Some(Wanted), Some(Wanted), None]
        );
        // each repository has places of its own, and an image that has one in any of them stays
        let mut elsewhere = images.clone();
        elsewhere[0].repositories = [PathBuf::from("org/other")].into();
        elsewhere[1].repositories.insert("org/third".into());
        assert_eq!(
            verdicts(&elsewhere, &[], 1),
            [Some(Newest), Some(Newest), None, Some(Wanted)]
        );
    }

    #[test]
    fn what_may_be_needed_stays_and_takes_no_place() {
        let one = |since, used| [old("old", false, since, used), old("new", true, 50, 99)];
        let of =
            |images: &[Old], machines: &[(&str, u64)]| verdicts(images, machines, 1)[0].clone();
        // it was used an hour ago, or less
        assert_eq!(of(&one(10, 99), &[]), None);
        let mut lately = one(10, 99);
        lately[0].used += Duration::from_secs(1);
        assert_eq!(of(&lately, &[]), Some(Stays::UsedLately));
        // the clock was set back
        assert_eq!(of(&one(10, 101), &[]), Some(Stays::UsedLately));
        // a VM that was made while the image was in use, or within an hour after, may be its clone; others aren't
        let clone = Some(Stays::MayBeCloned("vm".into()));
        for (made, stays) in [(9, false), (10, true), (20, true), (21, true), (22, false)] {
            let expected = clone.clone().filter(|_| stays);
            assert_eq!(of(&one(10, 20), &[("vm", made)]), expected, "{made}");
        }
        // tart set the access time back: how old clones are isn't known
        let mut outdated = one(10, 20);
        outdated[0].outdated = true;
        for (made, stays) in [(9, false), (10, true), (90, true)] {
            let expected = clone.clone().filter(|_| stays);
            assert_eq!(of(&outdated, &[("vm", made)]), expected, "{made}");
        }
        // the times contradict each other
        for (made, stays) in [(1, true), (21, true), (22, false)] {
            let expected = clone.clone().filter(|_| stays);
            assert_eq!(of(&one(30, 20), &[("vm", made)]), expected, "{made}");
        }
        let mut running = one(10, 20);
        running[0].running = Some("golden".into());
        assert_eq!(of(&running, &[]), Some(Stays::Runs("golden".into())));
        // what stays for such a reason leaves the place to the newest
        let images = [
            old("a", false, 10, 20),
            old("b", false, 30, 40),
            old("c", false, 50, 60),
        ];
        let stays = verdicts(&images, &[("vm", 35)], 1);
        let clone = Some(Stays::MayBeCloned("vm".into()));
        assert_eq!(stays, [None, clone, Some(Stays::Newest)]);
    }
}
