use std::{cell::RefCell, rc::Rc};

use origin::OriginError;

use super::*;

/// The state of a made-up blob, and what it was told.
#[derive(Debug)]
struct Like {
    digest: Digest,
    whole: bool,
    gone: bool,
    closed: bool,
    readers: (usize, Instant),
    trouble: Option<Trouble>,
    wanted: bool,
    promises: u32,
}

#[derive(Clone, Debug)]
struct Made(Rc<RefCell<Like>>);

impl Wantable for Made {
    fn digest(&self) -> Digest {
        self.0.borrow().digest
    }

    fn size(&self) -> u64 {
        7
    }

    fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    fn is_whole(&self) -> bool {
        self.0.borrow().whole
    }

    fn is_gone(&self) -> bool {
        self.0.borrow().gone
    }

    fn is_closed(&self) -> bool {
        self.0.borrow().closed
    }

    fn readers(&self) -> (usize, Instant) {
        self.0.borrow().readers
    }

    fn trouble(&self) -> Option<Trouble> {
        self.0.borrow().trouble.clone()
    }

    fn set_trouble(&self, trouble: Option<Trouble>) {
        self.0.borrow_mut().trouble = trouble;
    }

    fn set_wanted(&self, wanted: bool) {
        self.0.borrow_mut().wanted = wanted;
    }

    fn promise(&self) {
        self.0.borrow_mut().promises += 1;
    }
}

const STALL: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(30);

fn content(at: u32) -> Digest {
    Digest::of(&at.to_le_bytes())
}

/// A blob that one client reads.
fn blob(at: u32) -> Made {
    Made(Rc::new(RefCell::new(Like {
        digest: content(at),
        whole: false,
        gone: false,
        closed: false,
        readers: (1, Instant::now()),
        trouble: None,
        wanted: false,
        promises: 0,
    })))
}

fn change(blob: &Made, how: impl FnOnce(&mut Like)) {
    how(&mut blob.0.borrow_mut());
}

fn wish(blob: &Made) -> Wish<Made> {
    Wish {
        blob: blob.clone(),
        reference: "registry.example/org/image:1".into(),
        access: Access::default(),
    }
}

fn other_client(blob: &Made) -> Wish<Made> {
    Wish {
        access: Access::of_client(None, false),
        ..wish(blob)
    }
}

fn wants() -> Wants<Made> {
    Wants::new(STALL, GRACE)
}

/// Wants of one blob, which the swarm doesn't know.
fn wanting(blob: &Made) -> Wants<Made> {
    let mut wants = wants();
    wants.wish(Instant::now(), wish(blob), Known::No);
    wants
}

fn refusal() -> OriginError {
    OriginError::NotFound {
        what: "blob".into(),
        said: String::new(),
    }
}

fn leaves(effects: &[Effect<Made>]) -> Vec<Digest> {
    let left = |effect: &Effect<Made>| match effect {
        Effect::Leave(content) => Some(*content),
        _ => None,
    };
    effects.iter().filter_map(left).collect()
}

fn is_admitted(effects: &[Effect<Made>]) -> bool {
    let admitted = |effect: &Effect<Made>| matches!(effect, Effect::Wanted { admitted: true, .. });
    effects.iter().any(admitted)
}

fn reported(wants: &mut Wants<Made>) -> Vec<Vec<u8>> {
    let report = wants.report(true).unwrap();
    report.wants.into_iter().map(|want| want.content).collect()
}

// ---- clients --------------------------------------------------------------------------------------------------------

#[test]
fn a_blob_that_a_client_wants_joins_the_swarm_and_is_reported_at_once() {
    let (mut wants, one) = (wants(), blob(1));
    assert!(wants.next_look().is_none());
    let now = Instant::now();
    let effects = wants.wish(now, wish(&one), Known::No);
    assert!(matches!(
        effects[..],
        [Effect::Join { order: 0, .. }, Effect::ReportNow]
    ));
    assert!(one.0.borrow().wanted);
    assert_eq!(wants.next_look(), Some(now + LOOK_EVERY));
    assert_eq!(wants.alone_after(&content(1)), Some(STALL));
    assert_eq!(wants.alone_after(&content(2)), None);
    let report = wants.report(false).unwrap();
    assert_eq!((report.wants[0].size, report.wants[0].number), (7, 1));
    // the wants are reported once, and again if the report wasn't sent
    assert!(wants.report(false).is_none());
    wants.unsent();
    assert!(wants.report(false).is_some());
}

#[test]
fn a_second_client_of_the_same_blob_adds_nothing() {
    let one = blob(1);
    let mut wants = wanting(&one);
    let effects = wants.wish(Instant::now(), wish(&one), Known::Mirrored);
    assert!(effects.is_empty());
    assert_eq!(reported(&mut wants).len(), 1);
}

#[test]
fn a_blob_that_is_whole_or_gone_is_not_wanted() {
    for known in [Known::No, Known::Mirrored] {
        let (whole, gone) = (blob(1), blob(2));
        change(&whole, |like| like.whole = true);
        change(&gone, |like| like.gone = true);
        let mut wants = wants();
        assert!(wants.wish(Instant::now(), wish(&whole), known).is_empty());
        assert!(wants.wish(Instant::now(), wish(&gone), known).is_empty());
        assert!(reported(&mut wants).is_empty());
    }
}

#[test]
fn more_wants_than_connections_could_have_are_turned_away() {
    let mut wants = wants();
    for at in 0..=u32::try_from(MAX_WANTS).unwrap() {
        let blob = blob(at);
        let effects = wants.wish(Instant::now(), wish(&blob), Known::No);
        let stalled = matches!(blob.trouble(), Some(Trouble::Stalled(_)));
        assert_eq!(stalled, at == u32::try_from(MAX_WANTS).unwrap());
        assert_eq!(effects.is_empty(), stalled);
    }
    assert_eq!(reported(&mut wants).len(), MAX_MIRROR_WANTS);
}

#[test]
fn a_client_that_comes_after_a_refusal_may_be_let_in() {
    let one = blob(1);
    let mut wants = wanting(&one);
    let failed = FetchEnd::Failed(Failure::Origin(refusal()));
    assert!(wants.fetch_ended(&content(1), failed).is_empty());
    assert!(matches!(one.trouble(), Some(Trouble::Refused(_))));
    let effects = wants.wish(Instant::now(), other_client(&one), Known::Mirrored);
    assert!(is_admitted(&effects));
    assert_eq!(one.trouble(), None);
    // the fetch begins with the credentials that the registry accepted last
    let access = wants.access(&content(1)).unwrap().1;
    assert_eq!(access, Access::of_client(None, false));
}

#[test]
fn a_refusal_of_what_an_earlier_client_brought_is_not_the_later_ones() {
    let one = blob(1);
    let mut wants = wanting(&one);
    wants.access(&content(1));
    wants.wish(Instant::now(), other_client(&one), Known::Mirrored);
    let refused = || FetchEnd::Failed(Failure::Origin(refusal()));
    assert!(is_admitted(&wants.fetch_ended(&content(1), refused())));
    assert_eq!(one.trouble(), None);
    // the fetch with the later client's credentials is refused as well
    wants.access(&content(1));
    assert!(wants.fetch_ended(&content(1), refused()).is_empty());
    assert!(matches!(one.trouble(), Some(Trouble::Refused(_))));
}

#[test]
fn a_blob_that_was_evicted_and_is_wanted_again_is_another_one() {
    let old = blob(1);
    let mut wants = wanting(&old);
    let new = blob(1);
    let effects = wants.wish(Instant::now(), wish(&new), Known::Gone);
    assert!(matches!(
        effects[..],
        [
            Effect::Unwanted(_),
            Effect::ReportSoon,
            Effect::Leave(_),
            Effect::Join { .. },
            Effect::ReportNow
        ]
    ));
    assert!(!old.0.borrow().wanted && new.0.borrow().wanted);
    // the coordinator sees that the blob is wanted anew
    assert_eq!(wants.report(true).unwrap().wants[0].number, 2);
}

// ---- time -----------------------------------------------------------------------------------------------------------

#[test]
fn a_whole_blob_is_wanted_no_more_and_served_to_peers() {
    let one = blob(1);
    let mut wants = wanting(&one);
    change(&one, |like| like.whole = true);
    let effects = wants.look(Instant::now());
    assert!(matches!(
        effects[..],
        [Effect::Unwanted(_), Effect::ReportSoon]
    ));
    assert!(!one.0.borrow().wanted);
    assert!(wants.next_look().is_none());
    // the blob is a seed now
    assert_eq!(leaves(&wants.evicted(|_| false)), [content(1)]);
}

#[test]
fn a_blob_that_nobody_reads_any_more_is_given_up_after_the_grace() {
    let one = blob(1);
    let mut wants = wanting(&one);
    let now = Instant::now();
    change(&one, |like| like.readers = (0, now));
    assert!(wants.look(now + GRACE).is_empty());
    let late = now + GRACE + Duration::from_millis(1);
    // a reader came back
    change(&one, |like| like.readers = (1, now));
    assert!(wants.look(late).is_empty());
    change(&one, |like| like.readers = (0, now));
    assert_eq!(leaves(&wants.look(late)), [content(1)]);
    assert!(wants.report(false).unwrap().wants.is_empty());
}

#[test]
fn a_blob_that_is_evicted_while_it_is_wanted_leaves_the_swarm() {
    let one = blob(1);
    let mut wants = wanting(&one);
    change(&one, |like| like.gone = true);
    assert_eq!(leaves(&wants.look(Instant::now())), [content(1)]);
}

#[test]
fn a_verified_blob_that_is_not_in_its_place_is_put_there_again_after_a_while() {
    let one = blob(1);
    let mut wants = wanting(&one);
    change(&one, |like| like.closed = true);
    let now = Instant::now();
    let put = |effects: &[Effect<Made>]| matches!(effects, [Effect::PutInPlace(_)]);
    assert!(!put(&wants.look(now)));
    assert!(!put(&wants.look(now + STALL)));
    let late = now + STALL + Duration::from_millis(1);
    assert!(put(&wants.look(late)));
    // and once more after another while
    assert!(!put(&wants.look(late + STALL)));
    assert!(put(&wants.look(late + STALL + Duration::from_millis(1))));
}

// ---- what happens to a blob -----------------------------------------------------------------------------------------

#[test]
fn what_the_coordinator_queues_is_promised_to_its_clients_alone() {
    let one = blob(1);
    let wants = wanting(&one);
    let queue = MirrorQueue {
        contents: vec![
            content(1).as_bytes().to_vec(),
            content(2).as_bytes().to_vec(),
            b"no digest".to_vec(),
        ],
    };
    let effects = wants.are_coming(&queue);
    assert!(matches!(effects[..], [Effect::Coming(coming)] if coming == content(1)));
    assert_eq!(one.0.borrow().promises, 1);
}

#[test]
fn a_registry_that_is_away_is_waited_for_and_other_failures_are_told() {
    let ended = |failure| {
        let one = blob(1);
        let mut wants = wanting(&one);
        let effects = wants.fetch_ended(&content(1), FetchEnd::Failed(failure));
        assert!(effects.is_empty());
        one.trouble()
    };
    let away = OriginError::Connection {
        what: "blob".into(),
        host: "registry.example".into(),
        cause: "refused".into(),
    };
    assert_eq!(ended(Failure::Origin(away)), None);
    let settings = Failure::Settings("no password".into());
    assert_eq!(
        ended(settings),
        Some(Trouble::Stalled("no password".into()))
    );
    assert!(matches!(
        ended(Failure::CutShort(refusal())),
        Some(Trouble::Stalled(_))
    ));
}

#[test]
fn false_bytes_are_forgotten_and_the_blob_leaves_the_swarm() {
    let one = blob(1);
    let mut wants = wanting(&one);
    let effects = wants.fetch_ended(&content(1), FetchEnd::Bad("a broken push".into()));
    assert!(matches!(
        &effects[..],
        [Effect::Unwanted(_), Effect::ReportSoon, Effect::Leave(_), Effect::ForgetAll { message, .. }]
            if message == "a broken push"
    ));
    // no client wants the blob any more: further news changes nothing
    let again = wants.fetch_ended(&content(1), FetchEnd::Bad("again".into()));
    assert!(again.is_empty());
}

#[test]
fn a_volume_that_fails_ends_what_arrives_and_not_what_is_copied() {
    let (arriving, copied) = (blob(1), blob(2));
    let mut wants = wanting(&arriving);
    wants.wish(Instant::now(), wish(&copied), Known::OfImage);
    let effects = wants.storage_failed("no space");
    assert_eq!(leaves(&effects), [content(1)]);
    assert_eq!(arriving.trouble(), Some(Trouble::Disk("no space".into())));
    assert_eq!(copied.trouble(), None);
}

// ---- blobs that are contents of images too --------------------------------------------------------------------------

#[test]
fn a_content_of_an_image_is_copied_and_not_reported() {
    let (mut wants, one) = (wants(), blob(1));
    let effects = wants.wish(Instant::now(), wish(&one), Known::OfImage);
    assert!(matches!(
        effects[..],
        [
            Effect::Wanted {
                admitted: false,
                ..
            },
            Effect::CopyFromImage(_)
        ]
    ));
    assert!(reported(&mut wants).is_empty());
    // one copy at a time
    assert!(wants.copy(&content(1)).is_some());
    assert!(wants.copy(&content(1)).is_none());
    wants.copied(&content(1));
    assert!(wants.copy(&content(1)).is_some());
    assert!(wants.copy(&content(2)).is_none());
}

#[test]
fn a_wanted_blob_follows_an_image_that_comes_to_have_it() {
    let one = blob(1);
    let mut wants = wanting(&one);
    let effect = wants.follow_image(&content(1));
    assert_eq!(leaves(&[effect]), [content(1)]);
    assert!(wants.report(false).unwrap().wants.is_empty());
    // once it is whole, the image's copy serves peers
    change(&one, |like| like.whole = true);
    wants.look(Instant::now());
    assert!(wants.evicted(|_| false).is_empty());
}

// ---- seeds ----------------------------------------------------------------------------------------------------------

#[test]
fn seeds_are_bounded_and_the_oldest_goes_first() {
    let mut wants = wants();
    let most = u32::try_from(MAX_SEEDS).unwrap();
    let effects = wants.recovered((0..most).map(blob).collect());
    assert_eq!(effects.len(), MAX_SEEDS);
    assert!(leaves(&effects).is_empty());
    let effects = wants.recovered(vec![blob(most)]);
    assert_eq!(leaves(&effects), [content(0)]);
    // the swarm knows the blob already
    let effects = wants.recovered(vec![blob(most)]);
    assert!(leaves(&effects).is_empty());
}

#[test]
fn evicted_seeds_leave_the_swarm_and_the_others_stay() {
    let mut wants = wants();
    wants.recovered(vec![blob(1), blob(2), blob(3)]);
    let effects = wants.evicted(|seed| *seed != content(2));
    assert_eq!(leaves(&effects), [content(2)]);
    assert!(wants.evicted(|_| true).is_empty());
}

#[test]
fn a_rotten_seed_leaves_the_swarm_unless_it_is_another_blob_by_now() {
    for (known, left) in [
        (Known::Gone, vec![content(1)]),
        (Known::Mirrored, Vec::new()),
    ] {
        let mut wants = wants();
        wants.recovered(vec![blob(1)]);
        assert_eq!(leaves(&wants.rotted(&content(1), known)), left);
        assert!(wants.evicted(|_| false).is_empty());
    }
}
