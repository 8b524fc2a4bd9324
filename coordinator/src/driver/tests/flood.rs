//! Tests a host that says as much as it can, again and again. It must cost other hosts nothing, and the log little.

use std::{
    io::Write,
    sync::{Arc, Mutex, MutexGuard},
};

use proto::message::{
    ChunkRange, ImageState, LeaseEnd, LeaseState, OriginFault, OriginTrouble, Report, Retraction,
    StageState,
};
use tracing::Level;

use super::*;

/// The log, from `INFO` on.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap()
    }

    /// Runs `run`, and returns the log lines that it wrote.
    fn of(run: impl FnOnce()) -> Vec<String> {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::INFO)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, run);
        let bytes = log.lock();
        let text = std::str::from_utf8(&bytes).unwrap();
        text.lines().map(ToOwned::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.lock().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An image is being staged on `a`, which has a lease of its content. `rogue` is connected, and has no order.
fn staging() -> (World, u64, Vec<u8>, Vec<u8>) {
    let mut world = World::new();
    let (a, mut orders) = world.open("a", World::hello());
    let (reply, _answer) = oneshot::channel();
    let mut image = want("one", 1, 1 << 20);
    image.hosts = Some(BTreeSet::from(["a".parse().unwrap()]));
    let manifest = image.digest().as_bytes().to_vec();
    world.driver.apply(Input::Asked(Ask::Stage {
        want: Box::new(image),
        reply,
    }));
    let staging = ImageState {
        manifest: manifest.clone(),
        state: StageState::Staging.into(),
        ..ImageState::default()
    };
    let report = Report {
        images: vec![staging],
        ..Report::default()
    };
    world.report("a", a, report);
    let leases = taken(&mut orders, |kind| match kind {
        Kind::Lease(grant) => Some(grant.content.clone()),
        _ => None,
    });
    let content = leases.first().unwrap().clone();
    let (rogue, _orders) = world.open("rogue", World::hello());
    (world, rogue, manifest, content)
}

fn ends(world: &World, outcome: &'static str) -> u64 {
    let ends = &world.driver.metrics.lease_ends;
    ends.get_or_create(&crate::metrics::OutcomeLabel { outcome })
        .get()
}

#[tokio::test]
async fn leases_that_a_host_never_had_are_neither_logged_nor_counted_nor_remembered() {
    let (mut world, rogue, _, content) = staging();
    let ended = |fault: OriginFault| LeaseState {
        content: content.clone(),
        end: LeaseEnd::OriginFailed.into(),
        fault: fault.into(),
        message: "gone".into(),
        ..LeaseState::default()
    };
    let runs = LeaseState {
        content: content.clone(),
        trouble: OriginTrouble::Failing.into(),
        message: "kittens".into(),
        ..LeaseState::default()
    };
    let mut leases = vec![ended(OriginFault::Missing); 500];
    leases.extend(vec![ended(OriginFault::Refused); 100]);
    leases.push(runs.clone());
    let log = Log::of(|| {
        for _ in 0..20 {
            let report = Report {
                leases: leases.clone(),
                ..Report::default()
            };
            world.report("rogue", rogue, report);
        }
    });
    assert_eq!(log, Vec::<String>::new());
    assert_eq!(ends(&world, "content_missing"), 0);
    assert!(world.driver.staging.leases().bad_contents() == 0);
    let said = |world: &World| world.driver.staging.leases().says_anything();
    assert!(!said(&world));
    // nor those of the holder about chunks that it wasn't leased
    let a = world
        .driver
        .members
        .sessions()
        .number(&"a".parse().unwrap())
        .unwrap();
    let of_range = |lease: &LeaseState, (from, until)| LeaseState {
        range: Some(ChunkRange { from, until }),
        ..lease.clone()
    };
    let log = Log::of(|| {
        for range in [(0, 1), (0, u32::MAX), (1, 0)] {
            let words = [ended(OriginFault::Missing), runs.clone()];
            let report = Report {
                leases: words.iter().map(|of| of_range(of, range)).collect(),
                ..Report::default()
            };
            world.report("a", a, report);
        }
    });
    assert_eq!(log, Vec::<String>::new());
    assert!(ends(&world, "content_missing") == 0 && !said(&world));
    assert_eq!(world.driver.staging.leases().bad_contents(), 0);
    // the same words count when they come from the holder of the lease
    let log = Log::of(|| {
        let of = |lease: LeaseState| Report {
            leases: vec![lease],
            ..Report::default()
        };
        world.report("a", a, of(runs));
        world.report("a", a, of(ended(OriginFault::Missing)));
    });
    assert!(said(&world));
    assert_eq!(ends(&world, "content_missing"), 1);
    assert_eq!(world.driver.staging.leases().bad_contents(), 1);
    let failed = |line: &&String| line.contains("lease failed on its holder");
    assert_eq!(log.iter().filter(failed).count(), 1, "{log:?}");
}

#[tokio::test]
async fn a_host_that_takes_back_the_same_again_and_again_fills_no_log_and_no_queue() {
    let (mut world, rogue, _, content) = staging();
    // a coordinator that has just started believes any host, because the host may have had a lease of the earlier
    // coordinator
    let (_b, mut to_b) = world.open("b", World::hello());
    let log = Log::of(|| {
        for at in 0..100 {
            let retraction = Retraction {
                content: content.clone(),
                from_chunk: at,
                ..Retraction::default()
            };
            let report = Report {
                retractions: vec![retraction; 640],
                ..Report::default()
            };
            world.report("rogue", rogue, report);
        }
    });
    assert_eq!(log.len(), 10, "{log:?}");
    assert!(log.iter().all(|line| line.contains("takes back")));
    let told = taken(&mut to_b, |kind| {
        matches!(kind, Kind::Retraction(_)).then_some(())
    });
    assert_eq!(told.len(), 16);
}

#[tokio::test]
async fn a_host_that_names_one_image_thousands_of_times_is_heard_once() {
    let (mut world, rogue, manifest, _) = staging();
    let gone = |held_bytes| ImageState {
        manifest: manifest.clone(),
        state: StageState::Gone.into(),
        held_bytes,
        ..ImageState::default()
    };
    let mut report = Report {
        images: (0..2_560).map(gone).collect(),
        ..Report::default()
    };
    assert_eq!(intake::cut(&mut report, intake::most_leases(4)), Ok(2_559));
    assert_eq!(report.images, [gone(2_559)]);
    let log = Log::of(|| world.report("rogue", rogue, report.clone()));
    assert_eq!(log, Vec::<String>::new());
    // 5,000 images end the host's session
    report.images = (0..5_000).map(gone).collect();
    let excess = intake::cut(&mut report, intake::most_leases(4)).unwrap_err();
    let said = excess.to_string();
    assert_eq!(said, "a message names 5000 images, and a host may name 256");
}

#[tokio::test]
async fn a_report_tells_its_session_when_it_was_handled() {
    let (mut world, rogue, ..) = staging();
    for session in [rogue, rogue + 1] {
        let (handled, mut took) = oneshot::channel();
        world.driver.apply(Input::Reported {
            host: "rogue".parse().unwrap(),
            session,
            report: Box::default(),
            handled,
        });
        assert!(took.try_recv().is_ok());
    }
}
