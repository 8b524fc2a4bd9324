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
