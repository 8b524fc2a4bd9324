//! Files that are damaged or removed on the disk, one kind at a time: what the damage costs, and how it is reported.

use super::*;
use crate::platform::cloning;

/// Changes a byte of a file.
fn flip(path: &Path, at: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 16], at).unwrap();
}

/// An installed image, and its directory in tart's cache.
fn installed(home: &TempDir, sample: &Sample) -> (Store, Arc<Stage>, PathBuf) {
    let store = open(home);
    let (stage, _) = begin(&store, sample, &[TAG]);
    fill(&stage, sample);
    install(&stage, &[]).unwrap();
    let directory = image_dir(home, "ghcr.io/org/image", sample);
    (store, stage, directory)
}

fn missing_chunks(stage: &Stage, sample: &Sample) -> usize {
    let contents = sample.contents.keys().map(|content| {
        let held = stage.held(*content);
        (held.chunks() - held.count()) as usize
    });
    contents.sum()
}

#[test]
fn a_damaged_journal_of_an_installed_image_costs_a_hash_and_no_download() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("removed", |path| fs::remove_file(path).unwrap()),
        ("emptied", |path| fs::write(path, "").unwrap()),
        ("another's", |path| fs::write(path, vec![7; 5000]).unwrap()),
        ("cut in half", |path| {
            let half = fs::metadata(path).unwrap().len() / 2;
            fs::File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(half)
                .unwrap();
        }),
    ];
    for (what, damage) in damages {
        let (home, sample) = (tempfile::tempdir().unwrap(), sample_with(1, None));
        let (store, stage, directory) = installed(&home, &sample);
        drop((stage, store));
        damage(&ours(&home, &sample).join(JOURNAL));
        let store = open(&home);
        assert!(!store.recovered()[0].present, "{what}");
        let (stage, _) = begin(&store, &sample, &[TAG]);
        assert_eq!(missing_chunks(&stage, &sample), 0, "{what}");
        install(&stage, &[]).unwrap();
        assert_installed(&directory, &sample);
        // and the new links survive a restart
        drop((stage, store));
        assert!(open(&home).recovered()[0].present, "{what}");
    }
}

#[test]
fn what_rotted_beside_a_lost_journal_is_fetched_alone() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample_with(1, None));
    let (store, stage, directory) = installed(&home, &sample);
    drop((stage, store));
    fs::remove_file(ours(&home, &sample).join(JOURNAL)).unwrap();
    let layer = &sample.layout.layers()[1];
    flip(&directory.join(cache::DISK), layer.offset + 9);
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    let rotten = sample.contents[&layer.raw.unwrap()].len().div_ceil(1 << 20);
    assert_eq!(missing_chunks(&stage, &sample), rotten);
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    assert_installed(&directory, &sample);
}

#[test]
fn a_doubted_image_is_not_present_until_it_is_mended() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let (store, stage, directory) = installed(&home, &sample);
    for (file, at) in [
        (cache::DISK, 7),
        (cache::CONFIG, 3),
        (cache::NVRAM, 60_000),
        (cache::MANIFEST, 11),
    ] {
        flip(&directory.join(file), at);
        drop(store.take_news());
        let found = verify(home.path(), TAG, |_, _| {}).unwrap_err();
        assert!(found.is_damage(), "{found}");
        assert!(doubt(home.path(), &sample.layout.digest().to_string()).unwrap());
        drop(store.presence());
        let image = *sample.layout.digest();
        assert_eq!(store.take_news(), [News::Doubted { image }]);
        assert!(stage.is_doubted() && stage.has_to_be_read());
        // the doubt is told once, and the image has no reference meanwhile
        assert_eq!(store.presence()[0].references, [""; 0]);
        assert_eq!(store.take_news(), []);

        stage.read_again().unwrap();
        if file != cache::MANIFEST {
            let news = store.take_news();
            assert!(
                matches!(news[..], [News::Rotted { .. }]),
                "{file}: {news:?}"
            );
            assert!(matches!(
                install(&stage, &[]),
                Err(InstallError::Incomplete(_))
            ));
            assert!(stage.is_doubted());
            fill(&stage, &sample);
        }
        install(&stage, &[]).unwrap();
        assert!(!stage.is_doubted());
        assert_eq!(store.presence()[0].references, [TAG]);
        assert_installed(&directory, &sample);
        verify(home.path(), TAG, |_, _| {}).unwrap();
    }
}

#[test]
fn a_doubt_outlives_a_restart() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let (store, stage, directory) = installed(&home, &sample);
    drop((stage, store));
    flip(&directory.join(cache::DISK), 7);
    assert!(doubt(home.path(), TAG).unwrap());
    let store = open(&home);
    let recovered = store.recovered().remove(0);
    assert!(!recovered.present);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    stage.read_again().unwrap();
    assert_eq!(missing_chunks(&stage, &sample), 1);
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    assert_installed(&directory, &sample);
    drop((recovered, stage, store));
    assert!(open(&home).recovered()[0].present);
}

#[test]
fn a_stage_whose_files_are_removed_is_told_and_begins_anew() {
    type Remove = fn(&TempDir, &Sample);
    let removals: [(&str, Remove); 5] = [
        ("disk", |home, sample| {
            fs::remove_file(ours(home, sample).join("image/disk.img")).unwrap()
        }),
        ("nvram", |home, sample| {
            fs::remove_file(ours(home, sample).join("image/nvram.bin")).unwrap()
        }),
        ("image", |home, sample| {
            fs::remove_dir_all(ours(home, sample).join("image")).unwrap()
        }),
        ("notes", |home, sample| {
            fs::remove_dir_all(ours(home, sample)).unwrap()
        }),
        ("home", |home, _| fs::remove_dir_all(home.path()).unwrap()),
    ];
    for (what, remove) in removals {
        let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
        let store = open(&home);
        let (stage, _) = begin(&store, &sample, &[TAG]);
        fill(&stage, &sample);
        remove(&home, &sample);
        store.flush().unwrap();
        let image = *sample.layout.digest();
        assert_eq!(store.take_news(), [News::Removed { image }], "{what}");
        // no more bytes go into files without a name
        let (content, bytes) = sample.contents.first_key_value().unwrap();
        let (chunk, link, bytes) = links(bytes).remove(0);
        let written = stage.write(
            *content,
            chunk,
            bytes,
            link,
            source("mac-1"),
            (&host("mac-1"), None),
        );
        assert!(
            matches!(written, Err(WriteError::Gone)),
            "{what}: {written:?}"
        );
        assert!(stage.is_gone() && stage.read(*content, chunk).unwrap().is_none());

        let (stage, _) = begin(&store, &sample, &[TAG]);
        assert!(!stage.is_complete());
        fill(&stage, &sample);
        install(&stage, &[]).unwrap();
        assert_installed(&image_dir(&home, "ghcr.io/org/image", &sample), &sample);
        // the new directory is locked
        assert!(
            matches!(
                Store::open(home.path(), options()),
                Err(OpenStoreError::InUse { .. })
            ),
            "{what}"
        );
    }
}

/// tart reads any file with a part's name.
#[test]
fn a_part_that_somebody_replaced_or_resized_ends_the_presence() {
    type Damage<'a> = &'a dyn Fn(&Path);
    let resize = |path: &Path, change: i64| {
        let file = fs::File::options().write(true).open(path).unwrap();
        let size = file.metadata().unwrap().len();
        file.set_len(size.strict_add_signed(change)).unwrap();
    };
    let replace = |path: &Path| {
        let copy = path.with_extension("copy");
        fs::copy(path, &copy).unwrap();
        fs::rename(copy, path).unwrap();
    };
    let link = |path: &Path| {
        let away = path.with_extension("away");
        fs::rename(path, &away).unwrap();
        symlink(away, path).unwrap();
    };
    let damages: [(&str, Damage<'_>); 5] = [
        ("replaced", &replace),
        ("longer", &|path| resize(path, 1)),
        ("shorter", &|path| resize(path, -1)),
        ("a symbolic link", &link),
        ("removed", &|path| fs::remove_file(path).unwrap()),
    ];
    for part in cache::PARTS {
        for (what, damage) in damages {
            let (home, sample) = (tempfile::tempdir().unwrap(), sample_with(1, None));
            let (store, _stage, directory) = installed(&home, &sample);
            assert_eq!(store.presence().len(), 1, "{part}");
            damage(&directory.join(part));
            let present = store.presence();
            assert!(present.is_empty(), "{part} {what}: {present:?}");
            let (stage, _) = begin(&store, &sample, &[TAG]);
            fill(&stage, &sample);
            install(&stage, &[]).unwrap();
            assert_installed(&directory, &sample);
        }
    }
}

#[test]
fn what_a_link_in_a_parts_place_leads_to_is_never_changed() {
    for part in cache::PARTS {
        let (home, sample) = (tempfile::tempdir().unwrap(), sample_with(1, None));
        let (store, stage, directory) = installed(&home, &sample);
        drop((stage, store));
        let elsewhere = home.path().join("elsewhere");
        fs::write(&elsewhere, b"somebody's").unwrap();
        let path = directory.join(part);
        fs::remove_file(&path).unwrap();
        symlink(&elsewhere, &path).unwrap();
        let store = open(&home);
        assert!(
            store.recovered().iter().all(|image| !image.present),
            "{part}"
        );
        let (stage, _) = begin(&store, &sample, &[TAG]);
        fill(&stage, &sample);
        install(&stage, &[]).unwrap();
        assert_installed(&directory, &sample);
        assert_eq!(fs::read(&elsewhere).unwrap(), b"somebody's", "{part}");
    }
}

/// A layer without a raw digest: its blob has links, and the bytes on the disk were decoded from the blob.
#[test]
fn what_rots_in_a_decoded_layer_is_found_and_written_anew() {
    let (home, sample) = (
        tempfile::tempdir().unwrap(),
        sample_with(1, Some(Vec::new())),
    );
    let (store, stage, directory) = installed(&home, &sample);
    install(&stage, &["other.test/a:1"]).unwrap();
    let twin = image_dir(&home, "other.test/a", &sample);
    let is_encoded = |place: &image::Place| matches!(place, image::Place::Encoded { .. });
    let contents = sample.layout.contents();
    let content = contents
        .iter()
        .find(|spec| spec.places.iter().any(is_encoded))
        .unwrap()
        .digest;
    let layers = sample.layout.layers();
    let layer = layers.iter().find(|layer| layer.raw.is_none()).unwrap();
    assert!(!stage.mend_decoded(content).unwrap());
    for disk in [&directory, &twin] {
        for at in [0, 700_000, 1_499_999] {
            flip(&disk.join(cache::DISK), layer.offset + at);
        }
    }
    let before = stage.files().written_bytes();
    assert!(stage.mend_decoded(content).unwrap());
    let written = stage.files().written_bytes() - before;
    // in both directories: the last 300,000 bytes with what is decoded along with them, and zeros are none
    let counted = 2 * 300_000..2 * layer.raw_bytes;
    assert!(
        counted.contains(&written),
        "it counts as written: {written}"
    );
    assert_installed(&directory, &sample);
    assert_installed(&twin, &sample);
    assert!(!stage.mend_decoded(content).unwrap());
    // the same after a restart
    drop((stage, store));
    flip(&directory.join(cache::DISK), layer.offset);
    let store = open(&home);
    let stage = store.stage(sample.layout.digest()).unwrap();
    assert!(stage.mend_decoded(content).unwrap());
    assert_installed(&directory, &sample);
}

#[test]
fn what_is_thrown_away_is_named() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let load = |store: &Store| {
        let found = load(
            &store.shared,
            &ours(&home, &sample),
            *sample.layout.digest(),
        );
        match found.unwrap() {
            Loaded::Damaged { file, reason } => (file, reason),
            other => panic!("{other:?}"),
        }
    };
    let store = open(&home);
    begin(&store, &sample, &[TAG]);
    let manifest = ours(&home, &sample).join(cache::MANIFEST);
    flip(&manifest, 4);
    let (file, reason) = load(&store);
    assert!(file.ends_with(cache::MANIFEST) && !reason.is_empty());
    fs::remove_file(&manifest).unwrap();
    assert_eq!(load(&store).1, "it is missing");
    let status = ours(&home, &sample).join(STATUS);
    fs::write(&status, "{").unwrap();
    let (file, reason) = load(&store);
    assert_eq!(file, fs::canonicalize(&status).unwrap());
    assert!(!reason.is_empty());
}

#[test]
fn what_a_stop_left_is_read_before_it_is_installed() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    store.flush().unwrap();
    drop((stage, store));
    flip(&ours(&home, &sample).join("image/disk.img"), 5);
    flip(&ours(&home, &sample).join("image/nvram.bin"), 66_666);
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    assert!(stage.is_complete() && stage.has_to_be_read());
    assert!(matches!(
        install(&stage, &[]),
        Err(InstallError::Incomplete(_))
    ));
    assert_eq!(store.take_news().len(), 2);
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    assert_installed(&image_dir(&home, "ghcr.io/org/image", &sample), &sample);
}

#[test]
fn a_clone_of_a_rotten_image_is_compared_where_it_lies() {
    for clones in [true, false] {
        cloning::PRETENDED.set(clones);
        let (home, one, two) = (tempfile::tempdir().unwrap(), sample(1), sample(2));
        let (store, old, directory) = installed(&home, &one);
        // in the common layer, which is at two places of the disk: damages one chunk of noise and one of zeros
        flip(&directory.join(cache::DISK), 77);
        flip(&directory.join(cache::DISK), (1 << 20) + 4);
        let (stage, copied) = begin(&store, &two, &["ghcr.io/org/image:two"]);
        let shared = one.layout.layers()[0].raw.unwrap();
        assert!(copied > 0);
        for chunk in [0, 1].map(ChunkIndex) {
            // a clone still has the bytes at the layer's second place; a copy takes only chunks that are sound at every
            // place
            assert_eq!(stage.held(shared).contains(chunk), clones, "{chunk}");
        }
        assert!(!clones || !old.is_closed(shared) || stage.is_closed(shared));
        fill(&stage, &two);
        install(&stage, &[]).unwrap();
        assert_installed(&image_dir(&home, "ghcr.io/org/image", &two), &two);
        cloning::PRETENDED.set(false);
    }
}

#[test]
fn a_clone_is_compared_also_where_its_source_was_mended_since() {
    let (home, one, two) = (tempfile::tempdir().unwrap(), sample(1), sample(2));
    let store = open(&home);
    let shared = one.layout.layers()[0].raw.unwrap();
    // The disk looks like the clone of a rotten disk: one chunk is false at each of its places, and one only at its
    // first place.
    let (clone, copied) = begin(&store, &two, &["ghcr.io/org/image:two"]);
    assert_eq!(copied, 0);
    let path = ours(&home, &two).join("image").join(cache::DISK);
    let disk = fs::File::options().write(true).open(&path).unwrap();
    disk.write_all_at(&one.disk, 0).unwrap();
    let spec = two.layout.contents().into_iter();
    let places = spec.filter(|spec| spec.digest == shared);
    let offsets: Vec<u64> = places
        .flat_map(|spec| spec.places)
        .filter_map(|place| match place {
            image::Place::Disk { offset } => Some(offset),
            _ => None,
        })
        .collect();
    assert!(offsets.len() > 1, "{offsets:?}");
    for offset in &offsets {
        flip(&path, offset + 77);
    }
    flip(&path, offsets[0] + (1 << 20) + 4);
    // the source is whole and sound by now
    let (source, _) = begin(&store, &one, &[TAG]);
    fill(&source, &one);
    let copied = alike::copy_content(&clone, &source, shared, true, &mut || {
        Ok::<_, WriteError>(())
    })
    .unwrap();
    assert_eq!(copied, one.contents[&shared].len() as u64);
    assert!(clone.is_closed(shared) && store.take_news().is_empty());
    fill(&clone, &two);
    install(&clone, &[]).unwrap();
    assert_installed(&image_dir(&home, "ghcr.io/org/image", &two), &two);
}

#[test]
fn damaged_notes_of_an_installed_image_cost_a_look_at_it_and_no_byte() {
    let other = "127.0.0.1:5000/mirror/deep:two";
    for damage in ["status", "manifest", "both"] {
        for rotten in [false, true] {
            let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
            let (store, stage, directory) = installed(&home, &sample);
            begin(&store, &sample, &[other]);
            install(&stage, &[other]).unwrap();
            drop((stage, store));
            let notes = ours(&home, &sample);
            if damage != "manifest" {
                fs::write(notes.join(STATUS), "{").unwrap();
            }
            if damage != "status" {
                flip(&notes.join(cache::MANIFEST), 4);
            }
            if rotten {
                flip(&directory.join(cache::DISK), 5);
            }
            let store = open(&home);
            let stage = store.stage(sample.layout.digest()).unwrap();
            let doubted = damage != "manifest";
            // the image doesn't count before it was read
            assert_eq!(stage.is_doubted(), doubted, "{damage}");
            let named: usize = store
                .presence()
                .iter()
                .map(|found| found.references.len())
                .sum();
            assert_eq!(named, if doubted { 0 } else { 2 }, "{damage}");
            let (stage, copied) = begin(&store, &sample, &[TAG]);
            assert_eq!(copied, 0);
            if doubted && rotten {
                assert!(matches!(
                    install(&stage, &[TAG]),
                    Err(InstallError::Incomplete(_))
                ));
                let lacking = sample.contents.keys().map(|content| {
                    let held = stage.held(*content);
                    held.chunks() - u32::try_from(held.iter().count()).unwrap()
                });
                assert_eq!(lacking.sum::<u32>(), 1, "{damage}");
                fill(&stage, &sample);
            }
            install(&stage, &[TAG, other]).unwrap();
            if doubted || !rotten {
                assert_installed(&directory, &sample);
            }
            assert_installed(
                &image_dir(&home, "127.0.0.1%3A5000/mirror/deep", &sample),
                &sample,
            );
            let mut named: Vec<String> = store.presence().remove(0).references;
            named.sort();
            assert_eq!(named, [other, TAG], "{damage}");
        }
    }
}
