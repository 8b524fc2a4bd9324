//! Old images leave tart's cache with their goldens, and nothing else does.

use std::{cell::RefCell, rc::Rc};

use super::*;
use crate::{
    golden::{GoldenError, Goldens},
    metrics::Metrics,
    retention::InUse,
    store::{
        retire::{empty, is_running, preview},
        tree::RETIRED,
    },
    tart::{Tart, tests::program},
};

/// Beside any image's hour of rest.
const LATER: Duration = Duration::from_hours(3);

/// An image in tart's cache under this tag, with a golden of ours.
pub(super) fn installed(home: &TempDir, store: &Store, own: u64) -> (Sample, String) {
    let (sample, name) = (sample(own), format!("ghcr.io/org/image:{own}"));
    let (stage, _) = begin(store, &sample, &[&name]);
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    stage.flush().unwrap();
    let digest = sample.layout.digest();
    make_golden(home, digest, &name, &format!("golden-{own}"));
    (sample, name)
}

/// A golden of ours, of this reference to an image.
pub(super) fn make_golden(home: &TempDir, image: &Digest, reference: &str, golden: &str) {
    let made = machine(home, golden);
    fs::create_dir_all(marks(home)).unwrap();
    fs::write(marks(home).join(golden), mark(image, reference, &made)).unwrap();
}

/// What a golden's mark says of this VM.
fn mark(image: &Digest, reference: &str, golden: &Path) -> String {
    let found = fs::metadata(golden).unwrap();
    let made = found.created().unwrap();
    let made = made.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let (seconds, nanos) = (made.as_secs(), made.subsec_nanos());
    format!(
        "{image}\n{reference}\n{} {seconds}.{nanos:09}\n",
        found.ino()
    )
}

pub(super) fn marks(home: &TempDir) -> PathBuf {
    home.path().join(".parbake/goldens")
}

/// A local VM.
pub(super) fn machine(home: &TempDir, name: &str) -> PathBuf {
    let machine = cache::vm_directory(home.path(), name);
    fs::create_dir_all(&machine).unwrap();
    for part in cache::PARTS {
        fs::write(machine.join(part), name).unwrap();
    }
    machine
}

/// Every file below a directory, with its blocks.
fn blocks(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => blocks(&entry.path()),
        _ => entry.metadata().map_or(0, |found| found.blocks()),
    });
    sizes.sum()
}

#[test]
fn an_old_image_goes_with_its_golden_and_its_space_is_back() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (old, _) = installed(&home, &store, 1);
    let before = blocks(home.path());
    let (current, name) = installed(&home, &store, 2);
    let (next, _) = installed(&home, &store, 3);
    // tart pulled another image of the repository itself
    let pulled = image_dir(&home, "ghcr.io/org/image", &sample(9));
    fs::create_dir_all(&pulled).unwrap();
    fs::write(pulled.join(cache::DISK), "theirs").unwrap();
    let foreign = machine(&home, "golden-of-somebody");
    // the VM is younger than any use of the images
    let machine = machine(&home, "vm");
    let disk = image_dir(&home, "ghcr.io/org/image", &old).join(cache::DISK);
    let open_disk = fs::File::open(&disk).unwrap();

    let now = || SystemTime::now() + LATER;
    assert_eq!(retire(&store, &keep(1), now()), [], "all are wanted");
    for sample in [&old, &current] {
        store.want(sample.layout.digest(), &[]).unwrap();
    }
    assert_eq!(
        retire(&store, &keep(2), SystemTime::now()),
        [],
        "they rest for an hour"
    );
    let stays = retire(&store, &keep(2), now());
    // on volumes whose access times aren't exact, the VM may be younger than the last use
    assert_eq!(stays, [], "the VM may be a clone");
    fs::remove_dir_all(&machine).unwrap();
    fs::remove_dir_all(&foreign).unwrap();
    let lock = platform::lock_directory(&home.path().join("cache/OCIs/ghcr.io"), Duration::ZERO);
    assert_eq!(
        retire(&store, &keep(2), now()),
        [],
        "tart pulls from the registry"
    );
    drop(lock);
    let gone = retire(&store, &keep(2), now());
    assert_eq!(gone, [*old.layout.digest()]);
    assert_eq!(store.take_news(), [News::Retired { image: gone[0] }]);
    // the files are removed by a job of their own
    assert!(!disk.exists() && open_disk.metadata().unwrap().nlink() == 1);
    empty(&store);
    assert!(!marks(&home).join("golden-1").exists());

    // the disk has no name, and nobody but this test has it open
    assert!(!disk.exists() && open_disk.metadata().unwrap().nlink() == 0);
    let own = std::process::id();
    let open_files = fs::read_dir(format!("/proc/{own}/fd")).unwrap().flatten();
    let inode = open_disk.metadata().unwrap().ino();
    let open_disks = open_files.filter(|file| {
        let found = fs::metadata(file.path());
        found.is_ok_and(|found| found.ino() == inode)
    });
    assert_eq!(open_disks.count(), 1);
    let two = blocks(home.path());
    assert!(two > before, "two images take more than one");
    store.want(next.layout.digest(), &[]).unwrap();
    assert_eq!(retire(&store, &keep(1), now()), [*current.layout.digest()]);
    empty(&store);
    assert!(blocks(home.path()) + before / 2 < two, "{before} {two}");
    assert!(!cache::vm_directory(home.path(), "golden-1").exists());
    assert!(cache::vm_directory(home.path(), "golden-3").exists());
    assert!(pulled.join(cache::DISK).exists());
    assert_eq!(
        retire(&store, &keep(1), now()),
        [],
        "the newest stays, although nobody wants it"
    );
    let link = image_dir(&home, "ghcr.io/org/image", &current).with_file_name("2");
    assert!(fs::symlink_metadata(link).is_err());
    // it can be staged again, and nothing is left of it after a start
    drop(store);
    let store = open(&home);
    assert_eq!(store.recovered().len(), 1);
    let (stage, _) = begin(&store, &current, &[&name]);
    assert!(!stage.is_installed());
}

#[test]
fn a_preview_says_what_retiring_then_does_and_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (old, _) = installed(&home, &store, 1);
    let (current, _) = installed(&home, &store, 2);
    store.want(old.layout.digest(), &[]).unwrap();
    fs::create_dir_all(home.path().join(ROOT).join(RETIRED).join("0")).unwrap();
    fs::write(home.path().join(ROOT).join(RETIRED).join("0/disk"), "left").unwrap();
    let now = || SystemTime::now() + LATER;
    let before = blocks(home.path());
    // beside a store that is open: no lock is taken
    let of = |keep| preview(home.path(), &super::keep(keep), now()).unwrap();
    let [goes, stays] = &of(1).images[..] else {
        panic!("{:?}", of(1));
    };
    assert_eq!(
        (goes.image, &goes.stays),
        (*old.layout.digest(), &None),
        "it is first"
    );
    assert_eq!(goes.references, ["ghcr.io/org/image:1"]);
    assert_eq!(goes.goldens, ["golden-1"]);
    assert_eq!(stays.image, *current.layout.digest());
    assert!(stays.stays.is_some() && of(1).left_bytes > 0);
    let directory = image_dir(&home, "ghcr.io/org/image", &old);
    let notes = ours(&home, &old);
    assert_eq!(goes.bytes, (blocks(&directory) + blocks(&notes)) * 512);
    assert!(of(2).images.iter().all(|image| image.stays.is_some()));
    assert_eq!(blocks(home.path()), before);
    assert!(directory.exists() && store.take_news().is_empty());

    assert_eq!(retire(&store, &keep(1), now()), [goes.image]);
    empty(&store);
    let left = of(1);
    assert_eq!((left.images.len(), left.left_bytes), (1, 0));
    // a golden whose image tart pruned
    let golden = image_dir(&home, "ghcr.io/org/image", &current);
    fs::remove_dir_all(golden).unwrap();
    fs::remove_dir_all(ours(&home, &current)).unwrap();
    let orphan = &of(1).images[0];
    assert_eq!(orphan.goldens, ["golden-2"]);
    assert_eq!(orphan.references, ["ghcr.io/org/image:2"]);
    assert!(orphan.bytes > 0);
    assert!(preview(&home.path().join("none"), &keep(1), now()).is_err());
    let empty_home = tempfile::tempdir().unwrap();
    assert!(
        preview(empty_home.path(), &keep(1), now())
            .unwrap()
            .images
            .is_empty()
    );
}

#[test]
fn an_image_that_somebody_else_named_stays() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (old, _) = installed(&home, &store, 1);
    installed(&home, &store, 2);
    let image = *old.layout.digest();
    store.want(&image, &[]).unwrap();
    let later = || SystemTime::now() + LATER;
    let directory = image_dir(&home, "ghcr.io/org/image", &old);
    // `tart pull` of another tag of a cached image makes a link, and nothing else
    let stable = directory.with_file_name("stable");
    symlink(&directory, &stable).unwrap();
    assert_eq!(retire(&store, &keep(1), later()), []);
    fs::remove_file(&stable).unwrap();
    // and `tart pull` by digest makes a marker
    fs::write(directory.join(cache::MARKER), b"").unwrap();
    assert_eq!(retire(&store, &keep(1), later()), []);
    assert!(directory.join(cache::DISK).exists());
    fs::remove_file(directory.join(cache::MARKER)).unwrap();
    assert_eq!(retire(&store, &keep(1), later()), [image]);
}

#[test]
fn an_image_by_digest_goes_unless_tart_pulled_it_too() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let old = sample(1);
    let digest = *old.layout.digest();
    let name = format!("ghcr.io/org/image@{digest}");
    let (stage, _) = begin(&store, &old, &[&name]);
    fill(&stage, &old);
    let directory = image_dir(&home, "ghcr.io/org/image", &old);
    let marker = directory.join(cache::MARKER);
    // what tart pulled by digest is exchanged for ours, and stays tart's
    fs::create_dir_all(&directory).unwrap();
    for part in cache::PARTS.iter().chain(&[cache::MARKER]) {
        fs::write(directory.join(part), "").unwrap();
    }
    install(&stage, &[]).unwrap();
    installed(&home, &store, 2);
    store.want(&digest, &[]).unwrap();
    let later = || SystemTime::now() + LATER;
    assert_eq!(retire(&store, &keep(1), later()), []);
    // without that the marker is ours
    fs::remove_file(&marker).unwrap();
    store.want(&digest, std::slice::from_ref(&name)).unwrap();
    install(&stage, &[&name]).unwrap();
    assert!(marker.exists() && store.presence().len() == 2);
    store.want(&digest, &[]).unwrap();
    assert_eq!(retire(&store, &keep(1), later()), [digest]);
}

#[test]
fn a_crash_amid_retiring_leaves_neither_a_golden_nor_half_an_image() {
    for steps in 0.. {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home);
        let (old, _) = installed(&home, &store, 1);
        installed(&home, &store, 2);
        let image = *old.layout.digest();
        store.want(&image, &[]).unwrap();
        let later = SystemTime::now() + LATER;
        STEPS_LEFT.set(steps);
        let died = retire(&store, &keep(1), later).is_empty();
        STEPS_LEFT.set(usize::MAX);
        drop(store);
        let store = open(&home);
        retire(&store, &keep(1), later);
        empty(&store);
        let directory = image_dir(&home, "ghcr.io/org/image", &old);
        let gone = [
            cache::vm_directory(home.path(), "golden-1"),
            marks(&home).join("golden-1"),
            directory.with_file_name("1"),
            directory,
            ours(&home, &old),
        ];
        for path in gone {
            let left = fs::symlink_metadata(&path).is_ok();
            assert!(!left, "step {steps}: {}", path.display());
        }
        let retired = fs::read_dir(home.path().join(ROOT).join(RETIRED));
        assert_eq!(retired.map_or(0, Iterator::count), 0);
        assert!(store.stage(&image).is_none());
        assert!(cache::vm_directory(home.path(), "golden-2").exists());
        if !died {
            assert!(steps >= 4, "{steps} steps");
            break;
        }
    }
}

#[test]
fn a_golden_whose_image_tart_pruned_goes_by_the_same_rule() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (old, _) = installed(&home, &store, 1);
    let (pruned, _) = installed(&home, &store, 2);
    installed(&home, &store, 3);
    for sample in [&old, &pruned] {
        store.want(sample.layout.digest(), &[]).unwrap();
        fs::remove_dir_all(image_dir(&home, "ghcr.io/org/image", sample)).unwrap();
    }
    assert_eq!(store.presence().len(), 1);
    let golden = |number: u32| cache::vm_directory(home.path(), &format!("golden-{number}"));
    let now = SystemTime::now();
    assert_eq!(retire(&store, &keep(1), now), [], "they rest for an hour");
    // an older clone than any of the others
    set_accessed(&golden(1), now - LATER);
    for (number, age) in [(1, 3), (2, 2)] {
        let mark = marks(&home).join(format!("golden-{number}"));
        let mark = fs::File::options().write(true).open(mark).unwrap();
        mark.set_modified(now - age * LATER).unwrap();
    }
    let later = now + LATER;
    // the wanted one and the newest of the others
    let clone = clone(&home, &golden(1), "vm");
    assert_eq!(retire(&store, &keep(1), later), [], "the VM may be a clone");
    fs::remove_dir_all(clone).unwrap();
    set_accessed(&golden(1), now - 3 * LATER);
    set_accessed(&golden(2), now - 2 * LATER);
    assert_eq!(retire(&store, &keep(2), later), [*old.layout.digest()]);
    assert!(!golden(1).exists() && !marks(&home).join("golden-1").exists());
    assert!(golden(2).exists() && golden(3).exists());
    assert_eq!(retire(&store, &keep(1), later), [*pruned.layout.digest()]);
    assert!(!golden(2).exists() && golden(3).exists());
}

#[test]
fn a_vm_that_somebody_made_under_a_golden_s_name_stays() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (old, _) = installed(&home, &store, 1);
    installed(&home, &store, 2);
    let golden = cache::vm_directory(home.path(), "golden-1");
    // a node agent drops our golden, and somebody makes a VM of its name
    let ours = home.path().join("ours");
    fs::rename(&golden, &ours).unwrap();
    machine(&home, "golden-1");
    fs::remove_dir_all(ours).unwrap();
    store.want(old.layout.digest(), &[]).unwrap();
    let later = SystemTime::now() + LATER;
    assert_eq!(retire(&store, &keep(1), later), [], "it may be a clone");
    // nor does it go when the image was pruned
    fs::remove_dir_all(image_dir(&home, "ghcr.io/org/image", &old)).unwrap();
    assert_eq!(store.presence().len(), 1);
    assert_eq!(retire(&store, &keep(1), later), []);
    empty(&store);
    assert!(
        golden.join(cache::DISK).exists(),
        "somebody's VM is deleted"
    );
}

#[test]
fn a_golden_of_an_earlier_version_whose_vm_is_not_noted_stays_with_its_image() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (old, _) = installed(&home, &store, 1);
    installed(&home, &store, 2);
    let path = marks(&home).join("golden-1");
    let text = fs::read_to_string(&path).unwrap();
    let earlier: Vec<&str> = text.lines().take(2).collect();
    fs::write(&path, earlier.join("\n")).unwrap();
    let digest = *old.layout.digest();
    store.want(&digest, &[]).unwrap();
    let later = || SystemTime::now() + LATER;
    assert_eq!(retire(&store, &keep(1), later()), []);
    assert!(cache::vm_directory(home.path(), "golden-1").exists());
    // its VM was noted since
    fs::write(&path, text).unwrap();
    assert_eq!(retire(&store, &keep(1), later()), [digest]);
    assert!(!cache::vm_directory(home.path(), "golden-1").exists());
}

#[test]
fn a_mark_without_a_golden_takes_no_place_from_an_image() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (previous, _) = installed(&home, &store, 1);
    let (pruned, _) = installed(&home, &store, 2);
    installed(&home, &store, 3);
    for sample in [&previous, &pruned] {
        store.want(sample.layout.digest(), &[]).unwrap();
    }
    // somebody removes an image with its golden
    fs::remove_dir_all(image_dir(&home, "ghcr.io/org/image", &pruned)).unwrap();
    fs::remove_dir_all(cache::vm_directory(home.path(), "golden-2")).unwrap();
    let later = SystemTime::now() + LATER;
    assert_eq!(
        retire(&store, &keep(2), later),
        [],
        "no look has found that"
    );
    assert_eq!(store.presence().len(), 2);
    assert_eq!(retire(&store, &keep(2), later), [*pruned.layout.digest()]);
    assert!(!marks(&home).join("golden-2").exists());
    assert!(store.stage(previous.layout.digest()).is_some());
    assert!(cache::vm_directory(home.path(), "golden-1").exists());
}

#[test]
fn what_keeps_an_image_is_looked_for_again_under_the_locks() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (old, _) = installed(&home, &store, 1);
    installed(&home, &store, 2);
    let image = *old.layout.digest();
    store.want(&image, &[]).unwrap();
    let later = SystemTime::now() + LATER;
    let remove = |store: &Store, image: &Digest, now| {
        crate::store::retire::remove(store, image, &|| Some(keep(1)), now)
    };
    // a VM was made after the look by which the image was to go
    let golden = cache::vm_directory(home.path(), "golden-1");
    let clone = clone(&home, &golden, "vm");
    assert!(!remove(&store, &image, later).unwrap());
    fs::remove_dir_all(clone).unwrap();
    // a pull by tart
    let host = home.path().join("cache/OCIs/ghcr.io");
    let lock = platform::lock_directory(&host, Duration::ZERO).unwrap();
    assert!(!remove(&store, &image, later).unwrap());
    drop(lock);
    // an installation
    let stage = store.stage(&image).unwrap();
    let installing = stage.installing();
    assert!(!remove(&store, &image, later).unwrap());
    drop(installing);
    assert!(golden.exists() && stage.is_named("ghcr.io/org/image:1"));
    assert!(remove(&store, &image, later).unwrap());
}

/// Makes a VM as tart does: notes the use of its source in whole seconds, and makes the VM's directory then.
fn clone(home: &TempDir, source: &Path, name: &str) -> PathBuf {
    let second = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let second = Duration::from_secs(second.unwrap().as_secs());
    set_accessed(source, SystemTime::UNIX_EPOCH + second);
    machine(home, name)
}

pub(super) fn set_accessed(directory: &Path, at: SystemTime) {
    let times = fs::FileTimes::new().set_accessed(at);
    let directory = fs::File::open(directory).unwrap();
    directory.set_times(times).unwrap();
}

#[test]
fn the_last_clone_of_a_golden_keeps_its_image() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (old, _) = installed(&home, &store, 1);
    installed(&home, &store, 2);
    store.want(old.layout.digest(), &[]).unwrap();
    let golden = cache::vm_directory(home.path(), "golden-1");
    let clone = clone(&home, &golden, "vm");
    let later = SystemTime::now() + LATER;
    assert_eq!(retire(&store, &keep(1), later), []);
    fs::remove_dir_all(clone).unwrap();
    assert_eq!(retire(&store, &keep(1), later), [*old.layout.digest()]);
    assert!(!golden.exists());
}

#[test]
fn a_clone_keeps_its_image_whose_access_time_tart_set_back() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (old, _) = installed(&home, &store, 1);
    installed(&home, &store, 2);
    store.want(old.layout.digest(), &[]).unwrap();
    let directory = image_dir(&home, "ghcr.io/org/image", &old);
    // long after the image was last wanted
    let status = ours(&home, &old).join(STATUS);
    let long_ago = SystemTime::now() - 2 * LATER;
    let status = fs::File::options().write(true).open(status).unwrap();
    status.set_modified(long_ago).unwrap();
    set_accessed(&cache::vm_directory(home.path(), "golden-1"), long_ago);
    let clone = clone(&home, &directory, "vm");
    // tart pulls another image under the tag
    set_accessed(&directory, SystemTime::UNIX_EPOCH);
    let later = SystemTime::now() + LATER;
    assert_eq!(retire(&store, &keep(1), later), []);
    fs::remove_dir_all(clone).unwrap();
    assert_eq!(retire(&store, &keep(1), later), [*old.layout.digest()]);
}

#[test]
fn what_else_is_noted_of_an_image_is_no_use_of_it() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (old, _) = installed(&home, &store, 1);
    installed(&home, &store, 2);
    let image = *old.layout.digest();
    store.want(&image, &[]).unwrap();
    let long_ago = SystemTime::now() - 2 * LATER;
    let path = ours(&home, &old).join(STATUS);
    let status = fs::File::options().write(true).open(&path).unwrap();
    status.set_modified(long_ago).unwrap();
    let before = fs::read(&path).unwrap();
    let stage = store.stage(&image).unwrap();
    stage.names().entitle(Some(Arc::default())).unwrap();
    assert_ne!(fs::read(&path).unwrap(), before);
    let noted = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(noted, long_ago);
    // to be wanted is
    store
        .want(&image, &["ghcr.io/org/image:1".to_owned()])
        .unwrap();
    store.want(&image, &[]).unwrap();
    let noted = fs::metadata(&path).unwrap().modified().unwrap();
    assert!(noted > long_ago + LATER);
}

#[test]
fn a_manifest_that_is_made_again_forgets_no_clone() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (old, _) = installed(&home, &store, 1);
    installed(&home, &store, 2);
    let clone = machine(&home, "vm");
    store.want(old.layout.digest(), &[]).unwrap();
    drop(store);
    let manifest = ours(&home, &old).join(cache::MANIFEST);
    fs::write(manifest, b"damaged").unwrap();
    let store = open(&home);
    let later = SystemTime::now() + LATER;
    assert_eq!(retire(&store, &keep(1), later), []);
    fs::remove_dir_all(clone).unwrap();
    assert_eq!(retire(&store, &keep(1), later), [*old.layout.digest()]);
}

/// The file that the child process of a test locks.
const LOCKED: &str = "PARBAKE_TEST_LOCKED";

/// Locks the configuration of a VM as tart does while the VM runs, until the input ends.
fn run_machine(config: &Path) {
    let config = fs::File::options().read(true).write(true).open(config);
    // the lock ends with the file
    let config = config.unwrap();
    let exclusive = rustix::fs::FlockOperation::LockExclusive;
    rustix::fs::fcntl_lock(&config, exclusive).unwrap();
    println!("locked");
    io::stdin().read_line(&mut String::new()).unwrap();
}

/// Runs a VM again and again as `tart run` does: tries its lock, which nobody else may hold.
fn run_again_and_again(config: &Path) {
    println!("locked");
    for _ in 0..20_000 {
        let config = fs::File::options().read(true).write(true).open(config);
        let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::fcntl_lock(config.unwrap(), exclusive).unwrap();
    }
}

/// Starts the test of this name once more, with a file to lock, and returns when that has locked it: a lock holds
/// between processes only.
fn start_again(name: &str, config: &Path) -> std::process::Child {
    let name = format!("store::tests::retire::{name}");
    let mut runs = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &name])
        .env(LOCKED, config)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // read to the line, and kept open: the rest of the output goes there
    let mut said = io::BufReader::new(runs.stdout.as_mut().unwrap());
    let mut line = String::new();
    while !line.contains("locked") {
        line.clear();
        let read = io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert!(read > 0, "it ended before it locked the file");
    }
    runs
}

#[test]
fn a_look_at_a_golden_refuses_no_run() {
    if let Some(config) = std::env::var_os(LOCKED) {
        return run_again_and_again(Path::new(&config));
    }
    let home = tempfile::tempdir().unwrap();
    let golden = machine(&home, "golden-1");
    let config = golden.join(cache::CONFIG);
    let mut runs = start_again("a_look_at_a_golden_refuses_no_run", &config);
    let mut looks = 0_u32;
    while runs.try_wait().unwrap().is_none() {
        is_running(&golden);
        looks = looks.saturating_add(1);
    }
    assert!(runs.wait().unwrap().success() && looks > 0);
}

#[test]
fn an_image_whose_golden_runs_stays() {
    if let Some(config) = std::env::var_os(LOCKED) {
        return run_machine(Path::new(&config));
    }
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (old, _) = installed(&home, &store, 1);
    installed(&home, &store, 2);
    store.want(old.layout.digest(), &[]).unwrap();
    let config = cache::vm_directory(home.path(), "golden-1").join(cache::CONFIG);
    let mut runs = start_again("an_image_whose_golden_runs_stays", &config);
    let later = SystemTime::now() + LATER;
    assert_eq!(retire(&store, &keep(1), later), []);
    drop(runs.stdin.take());
    assert!(runs.wait().unwrap().success());
    assert_eq!(retire(&store, &keep(1), later), [*old.layout.digest()]);
}

#[test]
fn an_order_that_comes_while_images_are_retired_decides_about_those_that_are_left() {
    // the fleet's rule is taken back, or Pods come that refer to the image, or to more than is told here
    let pods = |references: &[&str], more| {
        let references = references.iter().map(|name| (*name).to_owned());
        Some(Terms {
            in_use: InUse::new(references, more),
            ..keep(1)
        })
    };
    let names = ["ghcr.io/org/image:1", "ghcr.io/org/image:2"];
    for later in [None, pods(&names, false), pods(&[], true)] {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home);
        let old = [1, 2].map(|own| installed(&home, &store, own).0);
        installed(&home, &store, 3);
        for sample in &old {
            store.want(sample.layout.digest(), &[]).unwrap();
        }
        let in_force = Rc::new(RefCell::new(Some(keep(1))));
        let hook = at_steps({
            let in_force = in_force.clone();
            move |name| {
                if name == "unlinked" {
                    in_force.borrow_mut().clone_from(&later);
                }
                Ok(())
            }
        });
        let now = SystemTime::now() + LATER;
        let gone = crate::store::retire::retire(&store, &|| in_force.borrow().clone(), now);
        drop(hook);
        assert_eq!(gone.len(), 1, "{gone:?}");
        let left = old.iter().map(|sample| *sample.layout.digest());
        let left: Vec<_> = left.filter(|image| !gone.contains(image)).collect();
        assert!(store.stage(&left[0]).unwrap().is_installed());
        // and by terms that nobody took back, it goes
        assert_eq!(retire(&store, &keep(1), now), left);
    }
}

#[test]
fn a_golden_that_is_made_under_the_name_while_the_old_one_goes_keeps_its_mark() {
    for amid in ["looked under locks", "golden moved"] {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home);
        let [(old, _), (new, _)] = [1, 2].map(|own| installed(&home, &store, own));
        let (name, new) = ("ghcr.io/org/image:moving", *new.layout.digest());
        let binary = home.path().join("tart");
        let clones = "#!/bin/sh\ncd \"$TART_HOME\" && mkdir -p vms/$3 \
            && touch vms/$3/disk.img vms/$3/config.json vms/$3/nvram.bin\n";
        program(&binary, clones);
        let tart = Tart::new(binary, home.path());
        let goldens = Goldens::new("g-".to_owned(), home.path().into(), tart, Metrics::new().0);
        let goldens = goldens.with_naming_wait(Duration::ZERO);
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        let make = move |of| runtime.block_on(goldens.make(name, of, || true));
        make(*old.layout.digest()).unwrap();
        // the tag moves: the old golden is removed, and its mark is still there
        let golden = cache::vm_directory(home.path(), &image::golden_name("g-", name));
        fs::remove_dir_all(&golden).unwrap();
        store.want(old.layout.digest(), &[]).unwrap();
        let make = Rc::new(make);
        let amid_made = Rc::new(RefCell::new(None));
        let hook = at_steps({
            let (make, amid_made) = (make.clone(), amid_made.clone());
            move |step| {
                if step == amid {
                    amid_made.replace(Some(make(new)));
                }
                Ok(())
            }
        });
        let now = SystemTime::now() + LATER;
        assert_eq!(retire(&store, &keep(1), now), [*old.layout.digest()]);
        drop(hook);
        make(new).unwrap();
        let marked = fs::read_to_string(marks(&home).join(image::golden_name("g-", name)));
        assert!(marked.unwrap().starts_with(&new.to_string()) && golden.is_dir());
        let made = amid_made.take();
        assert!(matches!(made, Some(Err(GoldenError::Lock(_)))), "{made:?}");
    }
}

#[test]
fn the_golden_of_a_name_that_its_image_lost_goes_by_the_rule_and_the_image_stays() {
    let now = || SystemTime::now() + LATER;
    let world = || {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home);
        let (image, _) = installed(&home, &store, 1);
        // a release that only renames the image
        let renamed = "ghcr.io/org/image:2".to_owned();
        store
            .want(image.layout.digest(), std::slice::from_ref(&renamed))
            .unwrap();
        make_golden(&home, image.layout.digest(), &renamed, "golden-2");
        (home, store, image)
    };
    let golden = |home: &TempDir, own: u64| {
        cache::vm_directory(home.path(), &format!("golden-{own}")).is_dir()
    };
    let left = |home: &TempDir| (golden(home, 1), golden(home, 2));

    let (home, store, image) = world();
    let going = |keep: u32| {
        let seen = preview(home.path(), &super::keep(keep), now()).unwrap();
        let going = seen.images.into_iter().filter(|of| of.stays.is_none());
        going.map(|of| (of.goldens, of.bytes)).collect::<Vec<_>>()
    };
    assert_eq!(retire(&store, &keep(1), SystemTime::now()), []);
    assert_eq!(left(&home), (true, true), "it rests for an hour");
    assert_eq!(retire(&store, &keep(2), now()), []);
    assert_eq!(left(&home), (true, true), "one stays beside the current");
    assert_eq!(going(2), []);
    // a VM that may be its clone
    let vm = machine(&home, "vm");
    assert_eq!(retire(&store, &keep(1), now()), []);
    assert_eq!(left(&home), (true, true));
    fs::remove_dir_all(&vm).unwrap();
    assert_eq!(going(1), [(vec!["golden-1".to_owned()], 0)]);
    assert_eq!(retire(&store, &keep(1), now()), []);
    assert_eq!(left(&home), (false, true));
    assert!(!marks(&home).join("golden-1").exists());
    assert_eq!(going(1), []);
    let directory = image_dir(&home, "ghcr.io/org/image", &image);
    assert!(directory.join(cache::DISK).exists(), "the image is wanted");

    // a Pod that refers to the old name keeps its golden
    let (home, store, _) = world();
    let pod = Terms {
        in_use: InUse::new(["ghcr.io/org/image:1".to_owned()], false),
        ..keep(1)
    };
    assert_eq!(retire(&store, &pod, now()), []);
    assert_eq!(left(&home), (true, true));

    // the Pod goes
    assert_eq!(retire(&store, &keep(1), now()), []);
    assert_eq!(left(&home), (false, true));
}
