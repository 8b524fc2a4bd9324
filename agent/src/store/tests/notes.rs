//! What memory says of an image's notes is what the disk says.

use super::*;

#[test]
fn a_note_that_could_not_be_written_is_not_claimed_and_written_the_next_time() {
    let home = tempfile::tempdir().unwrap();
    let (sample, other) = (sample(1), sample(2));
    let digest = *sample.layout.digest();
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    let notes = ours(&home, &sample).join(STATUS);
    // a directory in the file's place lets no write through
    let failing = |fails: bool| match fails {
        true => {
            fs::remove_file(&notes).unwrap();
            fs::create_dir(&notes).unwrap();
        }
        false => fs::remove_dir(&notes).unwrap(),
    };
    let second = "ghcr.io/org/image:second";
    let names = |names: &[&str]| -> Vec<String> { names.iter().map(|&name| name.into()).collect() };
    let wanted = || -> Vec<String> {
        let wanted = stage.names().wanted();
        wanted.iter().map(ToString::to_string).collect()
    };
    let hosts = Some(Arc::new([host("mac-1").key()].into()));

    failing(true);
    assert!(store.want(&digest, &names(&[TAG, second])).is_err());
    assert_eq!(wanted(), names(&[TAG]));
    let second = second.parse().unwrap();
    assert!(stage.names().add(std::slice::from_ref(&second)).is_err());
    assert_eq!(
        (wanted(), stage.references()),
        (names(&[TAG]), names(&[TAG]))
    );
    store.entitle(digest, hosts.clone());
    assert!(store.keep_entitled(&digest).is_err());
    assert_eq!(stage.entitled(), None);
    // another image can't take the name
    let taken = store.want(other.layout.digest(), &names(&[TAG]));
    assert!(taken.is_err());
    assert_eq!(wanted(), names(&[TAG]));

    failing(false);
    stage.names().add(std::slice::from_ref(&second)).unwrap();
    store.keep_all_entitled().unwrap();
    drop((stage, store));
    let store = open(&home);
    let stage = store.stage(&digest).unwrap();
    assert_eq!(stage.references(), names(&[TAG, &second.to_string()]));
    assert_eq!(stage.entitled(), hosts);
    store.want(other.layout.digest(), &names(&[TAG])).unwrap();
    drop((stage, store));
    let store = open(&home);
    let stage = store.stage(&digest).unwrap();
    assert_eq!(stage.names().wanted(), [second]);
}

#[test]
fn how_much_a_stage_takes_is_known_after_a_restart() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let digest = *sample.layout.digest();
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    stage.flush().unwrap();
    let taken = stage.files().written_bytes();
    assert!(taken > 2 << 20 && stage.files().taken_bytes() == taken);
    drop((stage, store));
    let of = |store: &Store| {
        let stage = store.stage(&digest).unwrap();
        (stage.files().written_bytes(), stage.files().taken_bytes())
    };
    assert_eq!(of(&open(&home)), (0, taken));
    // a note that is lost or damaged counts for nothing
    let note = ours(&home, &sample).join("taken");
    for bytes in ["", "9 bytes", "99999999999999999999999", "-1"] {
        fs::write(&note, bytes).unwrap();
        assert_eq!(of(&open(&home)), (0, 0), "{bytes}");
    }
    fs::remove_file(&note).unwrap();
    assert_eq!(of(&open(&home)), (0, 0));
    // and it goes with its stage
    let store = open(&home);
    store.abandon(digest).unwrap();
    assert!(!ours(&home, &sample).exists());
}

#[test]
fn who_finds_no_room_hears_what_an_unfinished_image_takes_also_after_a_restart() {
    let (home, one, two) = (tempfile::tempdir().unwrap(), sample(1), sample(2));
    let digest = *one.layout.digest();
    // what others take, as the one that finds no room hears it
    let others = || {
        let full = Options {
            floor_percent: 100,
            ..options()
        };
        let store = Store::open(home.path(), full).unwrap();
        let refused = store.begin(&two.layout, &two.manifest, &[TAG.into()]);
        let Err(BeginError::NoRoom(short)) = refused else {
            panic!("{refused:?}");
        };
        short.taken_by
    };
    assert_eq!(others(), BTreeMap::new());
    let store = open(&home);
    let (stage, _) = begin(&store, &one, &[TAG]);
    let of = |bytes: &Vec<u8>| bytes.len();
    let (largest, bytes) = one
        .contents
        .iter()
        .max_by_key(|(_, bytes)| of(bytes))
        .unwrap();
    let (chunk, link, bytes) = links(bytes).remove(0);
    let statement = (&host("mac-1"), None);
    stage
        .write(*largest, chunk, bytes, link, source("mac-1"), statement)
        .unwrap();
    stage.flush().unwrap();
    let written = stage.files().written_bytes();
    assert!(written >= bytes.len() as u64, "{written}");
    drop((stage, store));
    // what was written at two places counts once
    assert_eq!(others(), BTreeMap::from([(digest, bytes.len() as u64)]));
    // one that is whole gives nothing back to others
    let store = open(&home);
    let (stage, _) = begin(&store, &one, &[TAG]);
    fill(&stage, &one);
    stage.flush().unwrap();
    drop((stage, store));
    assert_eq!(others(), BTreeMap::new());
}
