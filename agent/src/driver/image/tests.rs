//! Tests of one image's life without a disk: what a look at it and its chunks make of it.

use super::*;
use crate::driver::images::tests::{Disk, manifest};

const START: Moment = Moment::START;
const SECOND: Duration = Duration::from_secs(1);

fn layout() -> Arc<Layout> {
    let manifest = manifest("a");
    Arc::new(Layout::parse(&manifest, &Digest::of(&manifest)).unwrap())
}

fn queued() -> Image<Disk> {
    Image::new(layout(), Arc::default(), Ordered::default(), START)
}

/// An image whose stage is taken up and holds nothing.
fn empty() -> (Image<Disk>, Disk) {
    let (mut image, disk) = (queued(), Disk::default());
    image.take_up(disk.clone());
    (image, disk)
}

fn contents(image: &Image<Disk>) -> Vec<Digest> {
    let contents = image.layout.contents();
    contents.iter().map(|content| content.digest).collect()
}

/// An image all of whose contents are verified.
fn whole() -> (Image<Disk>, Disk) {
    let (mut image, disk) = empty();
    for content in contents(&image) {
        image.close(&content);
    }
    (image, disk)
}

fn present() -> (Image<Disk>, Disk) {
    let (mut image, disk) = whole();
    disk.0.installed.set(true);
    image.become_present(START);
    image.seen.ready = vec!["r.test/a:1".to_owned()];
    (image, disk)
}

fn reason(image: &Image<Disk>) -> Option<Reason> {
    image.trouble.as_ref().map(|trouble| trouble.reason)
}

// ---- how much is here -----------------------------------------------------------------------------------------------

#[test]
fn an_image_is_whole_when_its_last_content_is_verified() {
    let mut image = queued();
    let all = contents(&image);
    assert!(all.len() > 1);
    assert!(!image.close(&all[0]), "nothing of it is taken up");
    assert_eq!(
        (image.state(), image.have()),
        (StageState::Queued, Have::Filling)
    );
    // the first content was verified by an earlier process
    let disk = Disk::default();
    disk.0.closed.borrow_mut().insert(all[0]);
    image.take_up(disk);
    assert_eq!(image.state(), StageState::Staging);
    let (last, others) = all[1..].split_last().unwrap();
    for content in others {
        assert!(!image.close(content) && image.is_filling());
    }
    assert!(image.close(last) && image.has_all() && !image.is_filling());
    assert!(!image.close(last), "only one content is the last");
    assert_eq!(image.have(), Have::Whole);
    // one of them rotted
    image.open(all[0]);
    assert_eq!(image.have(), Have::Filling);
    assert!(image.close(&all[0]));
}

#[test]
fn what_an_earlier_process_left_counts_after_one_job_has_read_it() {
    let (mut image, disk) = whole();
    assert!(image.begin_reading().is_none(), "nothing is left to read");
    disk.0.unread.set(true);
    assert!(
        image
            .begin_reading()
            .is_some_and(|stage| stage.is_same(&disk))
    );
    assert!(image.begin_reading().is_none(), "a job reads already");
    assert!(image.has_all() && !image.is_whole());
    assert_eq!(image.have(), Have::Filling);
    image.reading = false;
    assert_eq!(image.have(), Have::Whole);
}

#[test]
fn an_installed_image_counts_as_installed_until_it_is_doubted() {
    let (image, disk) = whole();
    assert_eq!(image.have(), Have::Whole);
    disk.0.installed.set(true);
    assert_eq!(image.have(), Have::Installed);
    disk.0.doubted.set(true);
    assert_eq!(image.have(), Have::Whole);
}

#[test]
fn an_image_goes_by_its_own_stage_while_that_is_there() {
    let (image, disk) = empty();
    assert!(image.goes_by(&disk));
    assert!(
        !image.goes_by(&Disk::default()),
        "a later stage of the image"
    );
    disk.0.gone.set(true);
    assert!(!image.goes_by(&disk));
    assert!(!queued().goes_by(&disk));
}

#[test]
fn counts_last_over_a_restart_and_begin_anew_with_another_stage() {
    let mut image = queued();
    let at = |seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    let stage = |seconds| {
        let disk = Disk::default();
        disk.0.begun_at.set(at(seconds));
        disk
    };
    image.adopt(&stage(5));
    assert_eq!(image.begun_at_ms, 5_000);
    image.counts.origin = 7;
    let same = stage(5);
    let first = image.layout.contents()[0].clone();
    same.0.closed.borrow_mut().insert(first.digest);
    image.adopt(&same);
    assert_eq!(
        (image.counts.origin, image.counts.held),
        (7, first.geometry.size())
    );
    image.adopt(&stage(6));
    assert_eq!(
        (image.counts, image.begun_at_ms),
        (Counts::default(), 6_000)
    );
}

// ---- presence and troubles ------------------------------------------------------------------------------------------

#[test]
fn staging_is_measured_from_the_order_and_installing_from_the_first_moment_with_all_chunks() {
    let (mut image, _) = whole();
    image.note_whole(START + 3 * SECOND);
    image.note_whole(START + 4 * SECOND);
    let took = image.become_present(START + 10 * SECOND);
    assert_eq!(took, (10 * SECOND, 7 * SECOND));
    assert_eq!(image.state(), StageState::Present);
    // mending has a time of its own
    assert!(image.leave_presence(START + 20 * SECOND));
    let took = image.become_present(START + 21 * SECOND);
    assert_eq!(took, (SECOND, Duration::ZERO));
}

#[test]
fn a_damaged_image_isnt_present_until_it_is_mended() {
    let (mut image, _) = present();
    image.doubt(START + SECOND);
    assert_eq!(image.state(), StageState::Staging);
    assert_eq!(reason(&image), Some(Reason::Checking));
    assert!(image.seen.ready.is_empty(), "no name of it is ready");
    // what was found later stays while it is mended
    image.trouble(Reason::NoRoom, "");
    image.doubt(START + 2 * SECOND);
    assert_eq!(
        (reason(&image), image.since),
        (Some(Reason::NoRoom), START + SECOND)
    );
    image.become_present(START + 3 * SECOND);
    assert_eq!((image.state(), reason(&image)), (StageState::Present, None));
    // and one that isn't taken up can't be damaged
    let mut image = queued();
    image.doubt(START);
    assert_eq!((image.state(), reason(&image)), (StageState::Queued, None));
}

#[test]
fn a_failure_keeps_the_stage_if_there_is_one() {
    let trouble = || Trouble::not_stored("read-only".to_owned());
    let mut image = queued();
    image.fail(trouble());
    assert_eq!(image.state(), StageState::Failed);
    assert!(image.stage().is_none());
    let (mut image, disk) = whole();
    image.fail(trouble());
    assert_eq!(image.state(), StageState::Failed);
    assert!(image.goes_by(&disk) && image.has_all());
    image.clear_trouble_of(&[Reason::NoRoom, Reason::Checking]);
    assert_eq!(reason(&image), Some(Reason::NotStored));
    image.clear_trouble_of(&[Reason::NotStored]);
    assert_eq!(reason(&image), None);
}

#[test]
fn an_image_that_is_lost_twice_before_it_is_present_says_so() {
    let (mut image, _) = whole();
    assert!(!image.restage());
    image.counts.peers = 1;
    assert!(image.restage());
    assert_eq!(image.counts, Counts::default());
    image.become_present(START);
    assert!(!image.restage(), "it was present in between");
}

#[test]
fn an_image_that_vanished_has_no_stage_and_no_ready_name() {
    let (mut image, disk) = present();
    image.vanish(Reason::NameLost);
    assert_eq!(image.state(), StageState::Gone);
    assert!(!image.goes_by(&disk) && image.seen.ready.is_empty());
    assert_eq!(reason(&image), Some(Reason::NameLost));
}

#[test]
fn an_order_that_names_hosts_keeps_the_image_among_them() {
    let of = |hosts: &[u64]| {
        Ordered::from(StageOrder {
            entitled_hosts: hosts.to_vec(),
            ..StageOrder::default()
        })
    };
    let entitled = of(&[3, 5]).entitled.unwrap();
    assert!(entitled.contains(&HostKey(3)) && !entitled.contains(&HostKey(4)));
    assert!(
        of(&[]).entitled.is_none(),
        "a coordinator of an earlier version"
    );
}
