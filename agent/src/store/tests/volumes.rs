//! Stages on real file systems: XFS, whose files share blocks or don't, mounted from a file.
//!
//! A test starts itself once more in a mount namespace of its own, so that the volume goes with that process.

use std::{
    ops::Range,
    process::{Command, Stdio},
};

use super::{blocks::put, *};
use crate::store::place::Files as _;

/// The directory in which the child process of a test makes its volume.
const DIRECTORY: &str = "PARBAKE_TEST_DIRECTORY";
/// The file that the child process leaves there when it has run.
const RAN: &str = "ran";

const MIB: usize = 1 << 20;
/// Bytes that changed together: 16 pages, at a multiple of them.
const RUN: usize = 64 << 10;

/// A volume that is mounted at a tart home.
struct Volume {
    home: TempDir,
    file: PathBuf,
}

impl Volume {
    fn new(directory: &Path, shares: bool) -> Self {
        let file = directory.join("volume");
        fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
        let program = option_env!("PARBAKE_MKFS_XFS").unwrap_or("mkfs.xfs");
        let reflink = format!("reflink={}", u8::from(shares));
        run(program, &["-q", "-m", &reflink, file.to_str().unwrap()]);
        let home = tempfile::tempdir_in(directory).unwrap();
        let volume = Self { home, file };
        volume.mount();
        volume
    }

    fn mount(&self) {
        let [file, home] = [&self.file, self.home.path()].map(|path: &Path| path.to_str().unwrap());
        run("mount", &["-t", "xfs", "-o", "loop", file, home]);
    }

    /// Bytes that are free when everything is written and nothing is set aside: behind a new mount.
    fn free_bytes(&self) -> u64 {
        run("umount", &[self.home.path().to_str().unwrap()]);
        self.mount();
        let found = rustix::fs::statvfs(self.home.path()).unwrap();
        found.f_bfree * found.f_frsize
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
}

/// Runs the test of this name on a volume whose files share blocks or don't.
fn on_xfs(name: &str, shares: bool, test: impl Fn(&Volume)) {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let directory = Path::new(&directory);
        test(&Volume::new(directory, shares));
        return fs::write(directory.join(RAN), "").unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let again = Command::new("unshare")
        .arg("--mount")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg(format!("store::tests::volumes::{name}"))
        .env(DIRECTORY, directory.path())
        .stdin(Stdio::null())
        .output();
    let again = again.unwrap();
    let [said, failed] = [&again.stdout, &again.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(again.status.success(), "{said}{failed}");
    assert!(directory.path().join(RAN).exists(), "{name}: {said}");
    print!("{said}");
}

/// An image whose disk has two layers, of 40 and of about 24 MiB.
fn image_of(disk: &[u8]) -> Sample {
    let (one, two) = disk.split_at(40 * MIB);
    sample_of_layers(7, &[one, two], None)
}

fn first_disk() -> Vec<u8> {
    let mut disk = noise(64 * MIB + 100_000, 1);
    disk[5 * MIB..9 * MIB].fill(0);
    disk
}

/// The same bytes, of which each tenth run is new.
fn changed(disk: &[u8], seed: u64) -> (Vec<u8>, Vec<Range<usize>>) {
    let mut new = disk.to_vec();
    let runs = (0..disk.len() / RUN).filter(|run| run % 10 == 3);
    let ranges: Vec<Range<usize>> = runs.map(|run| run * RUN..(run + 1) * RUN).collect();
    for (number, range) in (0..).zip(&ranges) {
        new[range.clone()].copy_from_slice(&noise(RUN, seed + number));
    }
    (new, ranges)
}

/// Stages the image here whole and installs it, with its recipe.
fn release(home: &TempDir, store: &Store, sample: &Sample, tag: &str) {
    let by = recipe(sample);
    put(home, &by);
    let (stage, _) = begin_by(store, sample, &by);
    fill(&stage, sample);
    store.flush().unwrap();
    install(&stage, &[tag]).unwrap();
}

/// Brings what a stage lacks: of chunks that are here in part the rest alone. Returns the bytes that were brought.
fn bring(stage: &Stage, sample: &Sample) -> usize {
    let mut brought = 0;
    for (content, bytes) in &sample.contents {
        for (chunk, link, bytes) in links(bytes) {
            if stage.held(*content).contains(chunk) {
                continue;
            }
            let mut whole = None;
            if let Some(mut part) = stage.part(*content, chunk) {
                for range in part.lacking() {
                    let range = range.start as usize..range.end as usize;
                    brought += range.len();
                    let start = u32::try_from(range.start).unwrap();
                    part.fill(start, &bytes[range]).unwrap();
                }
                whole = part.whole().ok();
            } else {
                brought += bytes.len();
            }
            let whole = whole.as_deref().unwrap_or(bytes);
            let from = (&host("mac-1"), None);
            stage
                .write(*content, chunk, whole, link, source("mac-1"), from)
                .unwrap();
        }
        stage.walk(*content).unwrap();
        assert!(stage.is_closed(*content), "{content}");
    }
    brought
}

fn assert_whole(home: &TempDir, sample: &Sample) {
    assert_installed(&image_dir(home, "ghcr.io/org/image", sample), sample);
}

/// Stages a release in which a tenth of the disk changed. Returns what changed, was written, was brought, and is taken.
fn stage_release(volume: &Volume, shares: bool) -> [u64; 4] {
    let home = &volume.home;
    let disk = first_disk();
    let (new, ranges) = changed(&disk, 1_000);
    // an older image has less in common with the new one
    let (older, _) = changed(&noise(64 * MIB + 100_000, 2), 3_000);
    let mut older = older;
    older[..20 * MIB].copy_from_slice(&disk[..20 * MIB]);
    let (older, old, new) = (image_of(&older), image_of(&disk), image_of(&new));
    let store = open(home);
    release(home, &store, &older, "ghcr.io/org/image:zero");
    release(home, &store, &old, TAG);
    drop(store);

    let before = volume.free_bytes();
    let store = open(home);
    let by = recipe(&new);
    put(home, &by);
    assert_eq!(store.volume().clones, shares);
    let (stage, _) = begin_by(&store, &new, &by);
    assert_eq!(stage.files().began_as_clone(), shares);
    let brought = bring(&stage, &new);
    store.flush().unwrap();
    install(&stage, &[]).unwrap();
    let written = stage.files().written_bytes();
    drop((stage, store));
    let taken = before - volume.free_bytes();
    for sample in [&older, &old, &new] {
        assert_whole(home, sample);
    }
    let changed: usize = ranges.iter().map(Range::len).sum();
    println!(
        "shares blocks: {shares}; changed {changed} bytes, brought {brought}, wrote {written}, took {taken} of the volume"
    );
    [changed as u64, written, brought as u64, taken]
}

#[test]
#[cfg_attr(not(xfs), ignore = "needs root and mkfs.xfs (PARBAKE_MKFS_XFS)")]
fn a_disk_begins_as_a_clone_and_takes_what_changed() {
    let name = "a_disk_begins_as_a_clone_and_takes_what_changed";
    on_xfs(name, true, |volume| {
        let [changed, written, brought, taken] = stage_release(volume, true);
        // beside the disk: the config, the nvram
        assert!(written <= changed + changed / 20, "{written} of {changed}");
        // at each end of what changed a block began or ended elsewhere
        assert!(brought <= changed * 2, "{brought} of {changed}");
        // beside what is written: the journal, the recipe, the index of the old disk
        assert!(taken <= changed + changed / 10, "{taken} of {changed}");
    });
}

#[test]
#[cfg_attr(not(xfs), ignore = "needs root and mkfs.xfs (PARBAKE_MKFS_XFS)")]
fn where_files_share_no_blocks_a_disk_is_copied_and_nothing_more_is_moved() {
    let name = "where_files_share_no_blocks_a_disk_is_copied_and_nothing_more_is_moved";
    on_xfs(name, false, |volume| {
        let [changed, written, brought, taken] = stage_release(volume, false);
        assert!(brought <= changed * 2, "{brought} of {changed}");
        let data = 64 * MIB as u64;
        assert!(written >= data && written <= data + MIB as u64, "{written}");
        assert!(taken >= data && taken <= data + 2 * MIB as u64, "{taken}");
    });
}

#[test]
#[cfg_attr(not(xfs), ignore = "needs root and mkfs.xfs (PARBAKE_MKFS_XFS)")]
fn a_base_that_is_shorter_rotten_or_goes_in_mid_stage_costs_bytes_and_no_truth() {
    let name = "a_base_that_is_shorter_rotten_or_goes_in_mid_stage_costs_bytes_and_no_truth";
    on_xfs(name, true, |volume| {
        let home = &volume.home;
        let disk = first_disk();
        let (mut new, _) = changed(&disk, 1_000);
        new.extend(noise(3 * MIB, 5));
        let (old, new) = (image_of(&disk), image_of(&new));
        let store = open(home);
        release(home, &store, &old, TAG);
        // somebody writes over a part of the base, which its notes say is sound
        let directory = image_dir(home, "ghcr.io/org/image", &old);
        let base = fs::File::options()
            .write(true)
            .open(directory.join(cache::DISK));
        base.unwrap()
            .write_all_at(&noise(3 * MIB, 9), 20 * MIB as u64)
            .unwrap();
        let by = recipe(&new);
        put(home, &by);
        let (stage, _) = begin_by(&store, &new, &by);
        assert!(stage.files().began_as_clone());
        let layer = new.layout.layers()[0].raw.unwrap();
        let held = stage.held(layer);
        assert!((20..23).all(|chunk| !held.contains(ChunkIndex(chunk))));
        // tart prunes the base, and the store hears of it
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(store.presence().len(), 0);
        assert!(store.stage(old.layout.digest()).is_none());
        bring(&stage, &new);
        store.flush().unwrap();
        install(&stage, &[]).unwrap();
        assert_whole(home, &new);
    });
}
