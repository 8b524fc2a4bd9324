//! Old images leave tart's cache with their goldens, and nothing else does.

use std::time::SystemTime;

use super::*;
use crate::store::retire::retire;

/// Beside any image's hour of rest.
const LATER: Duration = Duration::from_hours(3);

/// An image in tart's cache under this tag, with a golden of ours.
fn installed(home: &TempDir, store: &Store, own: u64) -> (Sample, String) {
    let (sample, name) = (sample(own), format!("ghcr.io/org/image:{own}"));
    let (stage, _) = begin(store, &sample, &[&name]);
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    stage.flush().unwrap();
    let digest = sample.layout.digest();
    machine(home, &format!("golden-{own}"));
    let marks = home.path().join(".parbake/goldens");
    fs::create_dir_all(&marks).unwrap();
    fs::write(marks.join(format!("golden-{own}")), digest.to_string()).unwrap();
    (sample, name)
}

/// A local VM.
fn machine(home: &TempDir, name: &str) -> PathBuf {
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
    assert_eq!(retire(&store, 1, now()), [], "all are wanted");
    for sample in [&old, &current] {
        store.want(sample.layout.digest(), &[]).unwrap();
    }
    assert_eq!(
        retire(&store, 2, SystemTime::now()),
        [],
        "they rest for an hour"
    );
    let stays = retire(&store, 2, now());
    // on volumes whose access times aren't exact, the VM may be younger than the last use
    assert_eq!(stays, [], "the VM may be a clone");
    fs::remove_dir_all(&machine).unwrap();
    fs::remove_dir_all(&foreign).unwrap();
    let lock = platform::lock_directory(&home.path().join("cache/OCIs/ghcr.io"), Duration::ZERO);
    assert_eq!(retire(&store, 2, now()), [], "tart pulls from the registry");
    drop(lock);
    let gone = retire(&store, 2, now());
    assert_eq!(gone, [*old.layout.digest()]);
    assert_eq!(store.take_news(), [News::Removed { image: gone[0] }]);

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
    assert_eq!(retire(&store, 1, now()), [*current.layout.digest()]);
    assert!(blocks(home.path()) + before / 2 < two, "{before} {two}");
    assert!(!cache::vm_directory(home.path(), "golden-1").exists());
    assert!(cache::vm_directory(home.path(), "golden-3").exists());
    assert!(pulled.join(cache::DISK).exists());
    assert_eq!(
        retire(&store, 1, now()),
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

/// Makes a VM as tart does: notes the use of its source in whole seconds, and makes the VM's directory then.
fn clone(home: &TempDir, source: &Path, name: &str) -> PathBuf {
    let second = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let second = Duration::from_secs(second.unwrap().as_secs());
    set_accessed(source, SystemTime::UNIX_EPOCH + second);
    machine(home, name)
}

fn set_accessed(directory: &Path, at: SystemTime) {
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
    assert_eq!(retire(&store, 1, later), []);
    fs::remove_dir_all(clone).unwrap();
    assert_eq!(retire(&store, 1, later), [*old.layout.digest()]);
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
    assert_eq!(retire(&store, 1, later), []);
    fs::remove_dir_all(clone).unwrap();
    assert_eq!(retire(&store, 1, later), [*old.layout.digest()]);
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
    assert_eq!(retire(&store, 1, later), []);
    fs::remove_dir_all(clone).unwrap();
    assert_eq!(retire(&store, 1, later), [*old.layout.digest()]);
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

#[test]
fn an_image_whose_golden_runs_stays() {
    // a lock holds between processes only, so this test starts itself once more
    if let Some(config) = std::env::var_os(LOCKED) {
        return run_machine(Path::new(&config));
    }
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (old, _) = installed(&home, &store, 1);
    installed(&home, &store, 2);
    store.want(old.layout.digest(), &[]).unwrap();
    let config = cache::vm_directory(home.path(), "golden-1").join(cache::CONFIG);
    let name = "store::tests::retire::an_image_whose_golden_runs_stays";
    let mut runs = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", name])
        .env(LOCKED, &config)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let said = io::BufReader::new(runs.stdout.take().unwrap());
    let mut said = io::BufRead::lines(said).map_while(Result::ok);
    assert!(said.any(|line| line.contains("locked")));
    let later = SystemTime::now() + LATER;
    assert_eq!(retire(&store, 1, later), []);
    drop(runs.stdin.take());
    assert!(runs.wait().unwrap().success());
    assert_eq!(retire(&store, 1, later), [*old.layout.digest()]);
}
