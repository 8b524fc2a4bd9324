//! Stacked images: their files are shared, proved, and never seen half, whatever tart does between two steps.

use std::{cell::RefCell, rc::Rc};

use super::*;
use crate::{
    platform::cloning::PRETENDED,
    store::{
        content_files::{lock_content, unreferred},
        retire::preview,
        tree::CONTENT,
    },
};

/// Raw layers of a base that all images here have.
fn base() -> Vec<Vec<u8>> {
    let mut first = noise((2 << 20) + 5000, 500);
    first[1 << 20..(1 << 20) + 4096].fill(0);
    vec![first, vec![0; 1 << 20], noise(70_000, 501)]
}

fn layer(media_type: &str, blob: &[u8], annotations: serde_json::Value) -> serde_json::Value {
    serde_json::json!({
        "mediaType": media_type, "digest": Digest::of(blob).to_string(), "size": blob.len(),
        "annotations": annotations,
    })
}

/// A stacked image with these files, each of which consists of these raw layers.
fn stack_of(own: u64, files: &[Vec<Vec<u8>>]) -> Sample {
    let config = format!("{{\"version\":1,\"own\":{own}}}").into_bytes();
    let nvram = noise(70_000, own + 1);
    let (mut contents, mut layers, mut disk) = (BTreeMap::new(), Vec::new(), Vec::new());
    layers.push(layer(image::CONFIG_TYPE, &config, serde_json::json!({})));
    for (at, raws) in files.iter().enumerate() {
        let whole = raws.concat();
        for (number, raw) in raws.iter().enumerate() {
            let mut annotations = serde_json::json!({
                image::RAW_SIZE_ANNOTATION: raw.len().to_string(),
                image::RAW_DIGEST_ANNOTATION: Digest::of(raw).to_string(),
            });
            if number == 0 {
                annotations[image::FILE_DIGEST_ANNOTATION] = Digest::of(&whole).to_string().into();
                if at > 0 {
                    annotations[image::CHUNK_COUNT_ANNOTATION] = raws.len().to_string().into();
                }
            }
            let of = [image::DISK_TYPE, image::OVERLAY_TYPE][at.min(1)];
            layers.push(layer(of, &apple_lz4::encode(raw), annotations));
            contents.insert(Digest::of(raw), raw.clone());
        }
        disk.extend(whole);
    }
    layers.push(layer(image::NVRAM_TYPE, &nvram, serde_json::json!({})));
    contents.insert(Digest::of(&config), config.clone());
    contents.insert(Digest::of(&nvram), nvram);
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": image::MANIFEST_TYPE, "layers": layers,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:0", "size": 2 },
        "annotations": {
            image::DISK_SIZE_ANNOTATION: (1_u64 << 30).to_string(), image::BLOCK_SIZE_ANNOTATION: "4096",
        },
    }))
    .unwrap();
    Sample {
        layout: Layout::parse(&manifest, &Digest::of(&manifest)).unwrap(),
        manifest,
        contents,
        disk,
        config,
    }
}

/// An image on the common base, with an overlay of two layers of its own and a small one.
pub(crate) fn stack(own: u64) -> Sample {
    let overlay = vec![noise((1 << 20) + 77, own * 10), noise(4096, own * 10 + 1)];
    stack_of(own, &[base(), overlay, vec![noise(5000, own * 10 + 2)]])
}

/// The flat image whose disk is the common base.
fn flat(own: u64) -> Sample {
    let base = base();
    let raws: Vec<&[u8]> = base.iter().map(Vec::as_slice).collect();
    sample_of_layers(own, &raws, None)
}

/// Where tart's cache has the image's files, with their true bytes.
fn files<'a>(home: &TempDir, sample: &'a Sample) -> Vec<(PathBuf, &'a [u8])> {
    let home = fs::canonicalize(home.path()).unwrap();
    let files = sample.layout.files().iter().map(|file| {
        let [from, to] =
            [file.start, file.start + file.bytes].map(|at| usize::try_from(at).unwrap());
        let path = cache::content_file(&home, &file.digest.unwrap());
        (path, &sample.disk[from..to])
    });
    files.collect()
}

fn assert_stacked(home: &TempDir, repository: &str, sample: &Sample) {
    let directory = image_dir(home, repository, sample);
    let mut names: Vec<String> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| name != cache::MARKER);
    names.sort();
    assert_eq!(names, [cache::CONFIG, cache::MANIFEST, cache::NVRAM]);
    let config = fs::read(directory.join(cache::CONFIG)).unwrap();
    assert!(config == sample.config);
    let nvram = fs::read(directory.join(cache::NVRAM)).unwrap();
    assert_eq!(Digest::of(&nvram), sample.layout.nvram().digest);
    assert!(fs::read(directory.join(cache::MANIFEST)).unwrap() == sample.manifest);
    for (path, bytes) in files(home, sample) {
        assert!(fs::read(&path).unwrap() == bytes, "{}", path.display());
        assert_eq!(fs::metadata(&path).unwrap().nlink(), 1);
    }
    let ours = ours(home, sample);
    assert!(!ours.join(CONTENT).exists() && !ours.join(IMAGE).exists());
}

fn is_present(store: &Store, sample: &Sample, reference: &str) -> bool {
    let presence = store.presence();
    let found = presence
        .iter()
        .find(|found| found.digest == *sample.layout.digest());
    found.is_some_and(|found| found.references == [reference])
}

/// Brings an image into tart's cache.
fn stage(store: &Store, sample: &Sample, reference: &str) -> Arc<Stage> {
    let (stage, _) = begin(store, sample, &[reference]);
    fill(&stage, sample);
    install(&stage, &[]).unwrap();
    stage.flush().unwrap();
    stage
}

/// tart from 2.36 on, as far as its cache goes: it never waits for a lock here, because a step that holds it waits for
/// this.
struct Tart {
    home: PathBuf,
}

impl Tart {
    fn of(home: &TempDir) -> Self {
        let home = fs::canonicalize(home.path()).unwrap();
        Self { home }
    }

    /// What tart does after each link, deletion and collection: it drops links that lead nowhere, records without a
    /// name, and then files that nobody refers to. Returns whether it had the locks.
    fn collect(&self) -> bool {
        let Ok(_locked) = lock_content(&self.home, Duration::ZERO) else {
            return false;
        };
        for record in cache::images(&self.home).unwrap() {
            let repository = record.parent().unwrap();
            for entry in fs::read_dir(repository).unwrap() {
                let path = entry.unwrap().path();
                if path.is_symlink() && !path.exists() {
                    fs::remove_file(path).unwrap();
                }
            }
            if cache::links(&record).unwrap().is_empty() && !record.join(cache::MARKER).exists() {
                fs::remove_dir_all(record).unwrap();
            }
        }
        let mut referred = BTreeSet::new();
        let machines = fs::read_dir(self.home.join("vms")).into_iter().flatten();
        let machines = machines.map(|entry| entry.unwrap().path());
        for record in cache::images(&self.home)
            .unwrap()
            .into_iter()
            .chain(machines)
        {
            let layout = cache::manifest(&record);
            let files = layout.iter().flat_map(Layout::files);
            referred.extend(files.filter_map(|file| file.digest));
        }
        let content = cache::content_directory(&self.home).join("sha256");
        for entry in fs::read_dir(content).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let digest = format!("sha256:{name}").parse::<Digest>();
            if digest.is_ok_and(|digest| !referred.contains(&digest)) {
                fs::remove_file(path).unwrap();
            }
        }
        true
    }

    /// What tart takes for an image can be cloned: each record has its files, of their lengths.
    fn assert_no_half_record(&self) {
        for record in cache::images(&self.home).unwrap() {
            assert!(cache::is_complete(&self.home, &record), "{record:?}");
        }
    }
}

#[test]
fn a_stacked_image_lies_as_tart_has_it() {
    let (home, sample) = (tempfile::tempdir().unwrap(), stack(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    let early = install(&stage, &[]).unwrap_err();
    assert!(matches!(early, InstallError::Incomplete(_)), "{early}");
    fill(&stage, &sample);
    assert!(!is_present(&store, &sample, TAG));
    install(&stage, &[]).unwrap();
    assert_stacked(&home, "ghcr.io/org/image", &sample);
    assert!(is_present(&store, &sample, TAG));
    let verified = verify(home.path(), TAG, |_, _| ()).unwrap();
    assert_eq!(verified.digest, *sample.layout.digest());
    assert!(Tart::of(&home).collect());
    assert!(is_present(&store, &sample, TAG));
    // peers are served from the files in tart's cache, also after a restart
    let raw = sample.layout.layers()[3].raw.unwrap();
    let read = |stage: &Stage| stage.read(raw, ChunkIndex(1)).unwrap().unwrap().bytes;
    let expected = sample.contents[&raw][1 << 20..].to_vec();
    assert!(read(&stage) == expected);
    drop((stage, store));
    let store = open(&home);
    assert!(is_present(&store, &sample, TAG));
    let stage = store.stage(sample.layout.digest()).unwrap();
    assert!(read(&stage) == expected);
}

#[test]
fn a_file_that_isnt_what_the_manifest_says_goes_nowhere() {
    let home = tempfile::tempdir().unwrap();
    let mut sample = stack(1);
    let text = String::from_utf8(sample.manifest.clone()).unwrap();
    let wanted = sample.layout.files()[1].digest.unwrap();
    let text = text.replace(&wanted.to_string(), &Digest::of(b"other").to_string());
    sample.manifest = text.into_bytes();
    sample.layout = Layout::parse(&sample.manifest, &Digest::of(&sample.manifest)).unwrap();
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    for _ in 0..2 {
        let error = install(&stage, &[]).unwrap_err();
        assert!(
            matches!(error, InstallError::File(FileError::Digest { file: 1, found, .. }) if found == wanted),
            "{error}"
        );
    }
    assert!(files(&home, &sample).iter().all(|(path, _)| !path.exists()));
    assert!(cache::images(home.path()).unwrap().is_empty());
}

#[test]
fn an_image_isnt_there_without_any_of_its_files() {
    type Harm = fn(&TempDir, &Sample);
    let harms: [Harm; 6] = [
        |home, sample| fs::remove_file(&files(home, sample)[1].0).unwrap(),
        |home, sample| {
            let (path, bytes) = &files(home, sample)[2];
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(bytes.len() as u64 + 1).unwrap();
        },
        |home, sample| {
            let (path, bytes) = &files(home, sample)[0];
            fs::remove_file(path).unwrap();
            fs::write(path, bytes).unwrap();
        },
        |home, sample| {
            let record = image_dir(home, "ghcr.io/org/image", sample);
            fs::remove_file(record.join(cache::MANIFEST)).unwrap();
        },
        // tart parses it to clone the image, and to see which files the image refers to
        |home, sample| {
            let record = image_dir(home, "ghcr.io/org/image", sample);
            fs::write(record.join(cache::MANIFEST), "").unwrap();
        },
        |home, sample| {
            let record = image_dir(home, "ghcr.io/org/image", sample);
            let mut other = sample.manifest.clone();
            *other.last_mut().unwrap() = b' ';
            fs::write(record.join(cache::MANIFEST), other).unwrap();
        },
    ];
    for harm in harms {
        let (home, sample) = (tempfile::tempdir().unwrap(), stack(1));
        let store = open(&home);
        drop(stage(&store, &sample, TAG));
        assert!(is_present(&store, &sample, TAG));
        harm(&home, &sample);
        assert!(!is_present(&store, &sample, TAG));
        // it is staged anew, over what is left
        drop(stage(&store, &sample, TAG));
        assert_stacked(&home, "ghcr.io/org/image", &sample);
        assert!(is_present(&store, &sample, TAG));
    }
}

#[test]
fn a_base_that_is_here_costs_nothing_whatever_has_it() {
    for flat_first in [true, false] {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home);
        let (first, next) = match flat_first {
            true => (flat(1), stack(2)),
            false => (stack(1), flat(2)),
        };
        drop(stage(&store, &first, TAG));
        let (stage, copied) = begin(&store, &next, &["ghcr.io/org/image:two"]);
        let base: u64 = base().iter().map(|raw| raw.len() as u64).sum();
        assert_eq!(copied, base);
        fill(&stage, &next);
        install(&stage, &[]).unwrap();
        match flat_first {
            true => assert_stacked(&home, "ghcr.io/org/image", &next),
            false => assert_installed(&image_dir(&home, "ghcr.io/org/image", &next), &next),
        }
        assert!(is_present(&store, &first, TAG));
    }
}

#[test]
fn a_base_begins_as_a_clone_of_the_disk_that_has_it() {
    PRETENDED.set(true);
    for (first, next) in [
        (flat(1), stack(2)),
        (stack(1), stack(2)),
        (stack(1), flat(2)),
    ] {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home);
        drop(stage(&store, &first, TAG));
        let (stage, copied) = begin(&store, &next, &["ghcr.io/org/image:two"]);
        assert_eq!(copied, base().concat().len() as u64);
        assert_eq!(stage.files().written_bytes(), 0);
        fill(&stage, &next);
        install(&stage, &[]).unwrap();
        verify(home.path(), "ghcr.io/org/image:two", |_, _| ()).unwrap();
        verify(home.path(), TAG, |_, _| ()).unwrap();
    }
    PRETENDED.set(false);
}

#[test]
fn images_share_the_files_that_they_have_in_common() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (one, two) = (stack(1), stack(2));
    drop(stage(&store, &one, TAG));
    let base = &files(&home, &one)[0].0;
    let inode = || fs::metadata(base).unwrap().ino();
    let before = inode();
    let second = stage(&store, &two, "ghcr.io/org/image:two");
    assert_eq!(inode(), before, "the first image's file was replaced");
    for (sample, name) in [(&one, TAG), (&two, "ghcr.io/org/image:two")] {
        assert_stacked(&home, "ghcr.io/org/image", sample);
        assert!(is_present(&store, sample, name));
    }
    // a byte that rots in it is found by both, and mended in both
    let raw = two.layout.layers()[0].raw.unwrap();
    let disk = fs::OpenOptions::new().write(true).open(base).unwrap();
    disk.write_all_at(b"?", 77).unwrap();
    assert!(!second.scrub(raw, ChunkIndex(0)).unwrap());
    fill(&second, &two);
    assert_stacked(&home, "ghcr.io/org/image", &one);
    drop((second, store));
    let store = open(&home);
    assert!(is_present(&store, &one, TAG));
    assert!(is_present(&store, &two, "ghcr.io/org/image:two"));
}

#[test]
fn an_image_that_was_doubted_keeps_its_files_when_another_has_them_too() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (one, two) = (stack(1), stack(2));
    let first = stage(&store, &one, TAG);
    assert!(doubt(home.path(), TAG).unwrap());
    assert!(!is_present(&store, &one, TAG));
    install(&first, &[]).unwrap();
    assert!(is_present(&store, &one, TAG));
    let inode = || fs::metadata(&files(&home, &one)[0].0).unwrap().ino();
    let before = inode();
    drop(stage(&store, &two, "ghcr.io/org/image:two"));
    assert_eq!(inode(), before);
    assert!(is_present(&store, &one, TAG));
    assert!(is_present(&store, &two, "ghcr.io/org/image:two"));
}

#[test]
fn a_file_goes_with_the_last_image_or_machine_that_has_it() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let samples = [stack(1), stack(2), stack(3)];
    for (sample, own) in samples.iter().zip(1..) {
        drop(stage(&store, sample, &format!("ghcr.io/org/image:{own}")));
    }
    for sample in &samples[..2] {
        store.want(sample.layout.digest(), &[]).unwrap();
    }
    let later = SystemTime::now() + Duration::from_hours(3);
    let there = |at: usize| -> Vec<bool> {
        let files = files(&home, &samples[at]);
        files.iter().map(|(path, _)| path.exists()).collect()
    };
    // what the last wanted image has, no other one frees
    let freed = |at: usize| {
        let seen = preview(home.path(), &keep(1), later).unwrap();
        let digest = samples[at].layout.digest();
        let found = seen.images.iter().find(|of| of.image == *digest).unwrap();
        (found.stays.is_none(), found.bytes)
    };
    let base = fs::metadata(&files(&home, &samples[0])[0].0).unwrap();
    assert!(freed(0).0 && freed(0).1 < base.blocks() * 512 + (2 << 20));
    let mut went = retire(&store, &keep(1), later);
    went.sort();
    let mut expected = [&samples[0], &samples[1]].map(|sample| *sample.layout.digest());
    expected.sort();
    assert_eq!(went, expected);
    assert_eq!(there(0), [true, false, false]);
    assert_eq!(there(1), [true, false, false]);
    assert_stacked(&home, "ghcr.io/org/image", &samples[2]);
    assert!(is_present(&store, &samples[2], "ghcr.io/org/image:3"));
}

#[test]
fn a_machine_that_was_stacked_on_a_flat_image_refers_to_the_whole_disk() {
    let (home, sample) = (tempfile::tempdir().unwrap(), stack(1));
    let store = open(&home);
    drop(stage(&store, &sample, TAG));
    let record = [image_dir(&home, "ghcr.io/org/image", &sample)];
    let home_path = fs::canonicalize(home.path()).unwrap();
    let free = || unreferred(&home_path, &sample.layout, &record).unwrap();
    let files: Vec<Digest> = sample
        .layout
        .files()
        .iter()
        .map(|file| file.digest.unwrap())
        .collect();
    assert_eq!(free(), files);
    // `tart clone --stacked` of a flat image whose disk is the base
    let mut manifest: serde_json::Value = serde_json::from_slice(&flat(2).manifest).unwrap();
    let layers = manifest["layers"].as_array_mut().unwrap();
    let first = layers
        .iter_mut()
        .find(|layer| layer["mediaType"] == image::DISK_TYPE);
    first.unwrap()["annotations"][image::FILE_DIGEST_ANNOTATION] = files[0].to_string().into();
    let manifest = serde_json::to_vec(&manifest).unwrap();
    for (of, parts) in [
        (
            "vms/mine",
            &[cache::CONFIG, cache::NVRAM, cache::OVERLAY][..],
        ),
        // it is being made, and tart has begun with the manifest
        ("tmp/half", &[]),
    ] {
        let directory = home_path.join(of);
        fs::create_dir_all(&directory).unwrap();
        for part in parts {
            fs::write(directory.join(part), "?").unwrap();
        }
        fs::write(directory.join(cache::MANIFEST), &manifest).unwrap();
        assert_eq!(free(), files[1..], "{of}");
        fs::remove_dir_all(&directory).unwrap();
    }
    // a VM with a disk of its own needs no other one
    let directory = home_path.join("vms/flat");
    fs::create_dir_all(&directory).unwrap();
    for part in cache::PARTS {
        fs::write(directory.join(part), "?").unwrap();
    }
    fs::write(directory.join(cache::MANIFEST), &manifest).unwrap();
    assert_eq!(free(), files);
}

#[test]
fn what_tart_put_there_itself_is_replaced() {
    let (home, sample) = (tempfile::tempdir().unwrap(), stack(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    // tart pulled the image meanwhile, and verified nothing
    for (path, bytes) in files(&home, &sample) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![9; bytes.len()]).unwrap();
    }
    let record = image_dir(&home, "ghcr.io/org/image", &sample);
    fs::create_dir_all(&record).unwrap();
    for (part, bytes) in [
        (cache::CONFIG, &b"{}"[..]),
        (cache::NVRAM, b"?"),
        (cache::MANIFEST, &sample.manifest),
    ] {
        fs::write(record.join(part), bytes).unwrap();
    }
    install(&stage, &[]).unwrap();
    assert_stacked(&home, "ghcr.io/org/image", &sample);
    assert!(is_present(&store, &sample, TAG));
}

#[test]
fn another_repository_has_the_same_files() {
    let (home, sample) = (tempfile::tempdir().unwrap(), stack(1));
    let store = open(&home);
    let stage = stage(&store, &sample, TAG);
    install(&stage, &["ghcr.io/org/other:one"]).unwrap();
    for repository in ["ghcr.io/org/image", "ghcr.io/org/other"] {
        assert_stacked(&home, repository, &sample);
    }
    let config = |repository: &str| {
        let record = image_dir(&home, repository, &sample);
        fs::metadata(record.join(cache::CONFIG)).unwrap().ino()
    };
    assert_ne!(config("ghcr.io/org/image"), config("ghcr.io/org/other"));
    drop((stage, store));
    let found = open(&home).presence();
    assert_eq!(found[0].references, [TAG, "ghcr.io/org/other:one"]);
}

#[test]
fn an_installation_waits_while_tart_holds_its_locks() {
    let (home, sample) = (tempfile::tempdir().unwrap(), stack(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    let locked = lock_content(home.path(), Duration::ZERO).unwrap();
    let busy = install(&stage, &[]).unwrap_err();
    assert!(matches!(busy, InstallError::Busy(_)), "{busy}");
    assert!(cache::images(home.path()).unwrap().is_empty());
    drop(locked);
    install(&stage, &[]).unwrap();
    assert_stacked(&home, "ghcr.io/org/image", &sample);
}

#[test]
fn tart_collects_nothing_of_ours_at_any_step_and_sees_no_half_record() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home);
    let (one, two) = (stack(1), stack(2));
    let seen: Rc<RefCell<Vec<(&'static str, bool)>>> = Rc::default();
    let (tart, notes) = (Tart::of(&home), seen.clone());
    let watch = at_steps(move |step| {
        let collected = tart.collect();
        tart.assert_no_half_record();
        notes.borrow_mut().push((step, collected));
        Ok(())
    });
    for (sample, name) in [(&one, TAG), (&two, "ghcr.io/org/image:two")] {
        drop(stage(&store, sample, name));
    }
    drop(watch);
    for (sample, name) in [(&one, TAG), (&two, "ghcr.io/org/image:two")] {
        assert_stacked(&home, "ghcr.io/org/image", sample);
        assert!(is_present(&store, sample, name));
    }
    let seen = seen.borrow();
    let of = |step| seen.iter().filter(move |(name, _)| *name == step);
    // tart had its turn before and after, and none between the first file and the link
    assert!(of("sealed").chain(of("placed")).all(|(_, had)| *had));
    for step in ["a file is put", "files are put", "moved", "linked"] {
        assert!(of(step).count() > 0, "{step}");
        assert!(of(step).all(|(_, had)| !*had), "{step}");
    }
    assert_eq!(of("files are shared").count(), 1);
}

/// Lets the process die after so many steps of the second image's installation, tart collect, and the agent start
/// again. Returns whether it died.
fn die_after(steps: usize) -> bool {
    let home = tempfile::tempdir().unwrap();
    let (one, two) = (stack(1), stack(2));
    let store = open(&home);
    drop(stage(&store, &one, TAG));
    let (stage, _) = begin(&store, &two, &["ghcr.io/org/image:two"]);
    fill(&stage, &two);
    stage.flush().unwrap();
    STEPS_LEFT.set(steps);
    let died = install(&stage, &[]).is_err();
    STEPS_LEFT.set(usize::MAX);
    drop((stage, store));
    let tart = Tart::of(&home);
    tart.assert_no_half_record();
    tart.collect();
    let store = open(&home);
    assert!(is_present(&store, &one, TAG));
    let (stage, _) = begin(&store, &two, &["ghcr.io/org/image:two"]);
    assert!(
        stage.is_complete(),
        "a crash after {steps} steps lost bytes"
    );
    install(&stage, &[]).unwrap();
    tart.collect();
    for (sample, name) in [(&one, TAG), (&two, "ghcr.io/org/image:two")] {
        assert_stacked(&home, "ghcr.io/org/image", sample);
        assert!(is_present(&store, sample, name));
    }
    died
}

#[test]
fn a_crash_at_any_step_of_an_installation_loses_nothing() {
    let steps = (0..).take_while(|steps| die_after(*steps)).count();
    assert!(steps >= 8, "{steps}");
}

/// Lets the process die after this step of the second image's installation, before a record refers to its files.
fn die_at(home: &TempDir, last: &'static str) -> [Sample; 2] {
    let (one, two) = (stack(1), stack(2));
    let store = open(home);
    drop(stage(&store, &one, TAG));
    let (stage, _) = begin(&store, &two, &["ghcr.io/org/image:two"]);
    fill(&stage, &two);
    stage.flush().unwrap();
    let dying = at_steps(move |step| match step == last {
        true => Err(io::Error::other("died")),
        false => Ok(()),
    });
    install(&stage, &[]).unwrap_err();
    drop(dying);
    [one, two]
}

/// Which of the image's files lie in tart's cache.
fn lying(home: &TempDir, sample: &Sample) -> Vec<bool> {
    let files = files(home, sample);
    files.iter().map(|(path, _)| path.exists()).collect()
}

#[test]
fn what_a_crash_left_in_tarts_cache_goes_with_the_image_that_is_given_up() {
    for (last, put) in [
        ("a file is put", [true, true, false]),
        ("files are put", [true; 3]),
    ] {
        for at_start in [false, true] {
            let home = tempfile::tempdir().unwrap();
            let [one, two] = die_at(&home, last);
            assert_eq!(lying(&home, &two), put, "{last}");
            let ours = ours(&home, &two);
            if at_start {
                // the process died again, amid the removal
                fs::remove_file(ours.join(STATUS)).unwrap();
            }
            let store = open(&home);
            if !at_start {
                store.abandon(*two.layout.digest()).unwrap();
            }
            assert!(!ours.exists());
            // the base is the first image's, too
            assert_eq!(lying(&home, &two), [true, false, false], "{last}");
            assert_stacked(&home, "ghcr.io/org/image", &one);
            assert!(is_present(&store, &one, TAG));
        }
    }
}

/// Which files of an image lie in tart's cache after a crash amid its installation, this, and its end.
fn left_after(before: fn(&TempDir, &Sample)) -> Vec<bool> {
    let home = tempfile::tempdir().unwrap();
    let [_, two] = die_at(&home, "files are put");
    before(&home, &two);
    open(&home).abandon(*two.layout.digest()).unwrap();
    lying(&home, &two)
}

#[test]
fn of_an_image_that_is_given_up_stays_what_somebody_else_put_or_refers_to() {
    let pulled = left_after(|home, sample| {
        let (path, bytes) = &files(home, sample)[2];
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
    });
    assert_eq!(pulled, [true, false, true]);
    let needed = left_after(|home, sample| {
        let machine = home.path().join("vms/mine");
        fs::create_dir_all(&machine).unwrap();
        fs::write(machine.join(cache::MANIFEST), &sample.manifest).unwrap();
    });
    assert_eq!(needed, [true; 3]);
}

#[test]
fn an_image_is_given_up_while_tart_holds_its_locks_and_tart_collects_what_is_left() {
    let home = tempfile::tempdir().unwrap();
    let [one, two] = die_at(&home, "files are put");
    let store = open(&home);
    let locked = lock_content(home.path(), Duration::ZERO).unwrap();
    store.abandon(*two.layout.digest()).unwrap();
    assert!(!ours(&home, &two).exists());
    assert_eq!(lying(&home, &two), [true; 3]);
    drop(locked);
    assert!(Tart::of(&home).collect());
    assert_eq!(lying(&home, &two), [true, false, false]);
    assert!(is_present(&store, &one, TAG));
}
