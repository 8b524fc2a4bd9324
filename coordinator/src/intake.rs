//! Bounds what one host may cost the coordinator: how much one of its reports may hold, how often the host may connect,
//! and how long it stays away after it exceeded the bounds by far.
//!
//! Each list of a report is cut to what an honest host can need. A host that sends ten times as much isn't a busy host
//! of this fleet. Its session ends with a message that says so, and the host stays away for a minute. How often a
//! host's reports are read is bounded in `session`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Mutex,
    time::{Duration, Instant},
};

use proto::{
    HostId,
    limits::{
        MAX_BLAMES, MAX_ENDED_LEASES, MAX_HELD, MAX_IMAGES, MAX_MIRROR_WANTS, MAX_OLD_IMAGES,
        MAX_RECIPE_DOUBTS, MAX_RETRACTIONS, MAX_WITHOUT_SOURCE,
    },
    message::{Hello, ImageState, LeaseEnd, Report},
};
use tracing::warn;

use crate::{config::MAX_HOSTS, lock::lock};

/// A list that is this many times longer than its limit ends the host's session.
const FAR_BEYOND: usize = 10;
/// How long such a host stays away.
const AWAY: Duration = Duration::from_mins(1);
/// The most streams that a host may open within [`STREAMS_WITHIN`]. A session takes one, and so does a renewal. An
/// agent that loses its session tries again after pauses that grow.
const STREAMS: u32 = 10;
const STREAMS_WITHIN: Duration = Duration::from_secs(10);

/// A host sent far more than any host can need.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message names {count} {of}, and a host may name {most}")]
pub(crate) struct Excess {
    of: List,
    count: usize,
    most: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    Images,
    Leases,
    Blames,
    Retractions,
    RecipeDoubts,
    MirrorWants,
    WithoutSource,
    Held,
    OldImages,
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Images => "images",
            Self::Leases => "leases",
            Self::Blames => "blames",
            Self::Retractions => "retractions",
            Self::RecipeDoubts => "doubts of recipes",
            Self::MirrorWants => "wants of its mirror",
            Self::WithoutSource => "contents without a source",
            Self::Held => "contents that it holds",
            Self::OldImages => "old images",
        })
    }
}

/// The most leases that one report may name, running and ended, when `origin_streams` leases may run in the fleet.
pub(crate) const fn most_leases(origin_streams: usize) -> usize {
    // The running leases, as many that ended since the last report, and one lease of a mirror for each of both. Beyond
    // those: leases that ended while the host had no session, and leases that an earlier coordinator granted.
    MAX_ENDED_LEASES + 2 * (origin_streams + 1)
}

/// Cuts a report's lists to what a host can need. Returns how many entries were left out.
///
/// # Errors
/// [`Excess`] when a list is more than ten times too long. The session must end then.
pub(crate) fn cut(report: &mut Report, most_leases: usize) -> Result<usize, Excess> {
    let mut out = images(&mut report.images)?;
    // a lease that ended is reported once, and a running one in each report, so ended ones come first
    let (count, most) = (report.leases.len(), most_leases);
    within(List::Leases, count, most)?;
    if count > most {
        report
            .leases
            .sort_by_key(|lease| lease.end() == LeaseEnd::Unspecified);
    }
    out += list(List::Leases, &mut report.leases, most)?;
    out += list(List::Blames, &mut report.blames, MAX_BLAMES)?;
    out += list(List::Retractions, &mut report.retractions, MAX_RETRACTIONS)?;
    let doubts = &mut report.recipe_doubts;
    out += list(List::RecipeDoubts, doubts, MAX_RECIPE_DOUBTS)?;
    if let Some(mirror) = &mut report.mirror {
        out += list(List::MirrorWants, &mut mirror.wants, MAX_MIRROR_WANTS)?;
    }
    if let Some(without) = &mut report.without_source {
        let contents = &mut without.contents;
        out += list(List::WithoutSource, contents, MAX_WITHOUT_SOURCE)?;
    }
    if let Some(held) = &mut report.held {
        out += list(List::Held, &mut held.contents, MAX_HELD)?;
    }
    if let Some(old) = &mut report.old_images {
        out += list(List::OldImages, &mut old.images, MAX_OLD_IMAGES)?;
    }
    Ok(out)
}

/// Cuts the list of a hello in the same way.
///
/// # Errors
/// [`Excess`] when the list is more than ten times too long. The session must end then.
pub(crate) fn cut_hello(hello: &mut Hello) -> Result<usize, Excess> {
    images(&mut hello.images)
}

/// Keeps each image once, with its last entry. An honest host names no image twice.
fn images(images: &mut Vec<ImageState>) -> Result<usize, Excess> {
    let before = images.len();
    within(List::Images, before, MAX_IMAGES)?;
    let mut seen = BTreeSet::new();
    let mut last: Vec<bool> = images
        .iter()
        .rev()
        .map(|image| seen.insert(image.manifest.as_slice()))
        .collect();
    images.retain(|_| last.pop().unwrap_or(false));
    images.truncate(MAX_IMAGES);
    Ok(before - images.len())
}

fn list<T>(of: List, entries: &mut Vec<T>, most: usize) -> Result<usize, Excess> {
    let count = entries.len();
    within(of, count, most)?;
    entries.truncate(most);
    Ok(count - entries.len())
}

const fn within(of: List, count: usize, most: usize) -> Result<(), Excess> {
    if count > FAR_BEYOND * most {
        return Err(Excess { of, count, most });
    }
    Ok(())
}

/// Decides whether a host may open a stream now.
///
/// Each connection is a task of its own, and all of them ask here. Hence the lock, which is never held across an await.
#[derive(Debug, Default)]
pub(crate) struct Door {
    hosts: Mutex<BTreeMap<HostId, Came>>,
}

#[derive(Debug)]
struct Came {
    /// When `streams` was last set to 0.
    since: Instant,
    streams: u32,
    away_until: Option<Instant>,
}

/// Why a host has to come again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Wait {
    /// The host sent far too much.
    #[error("this host sent far more than a host can need; it may come again a minute after that")]
    Away,
    /// The host opens too many streams.
    #[error("this host began {STREAMS} sessions or renewals within {} s; it may come again after that", STREAMS_WITHIN.as_secs())]
    Often,
}

impl Door {
    /// A host opened a stream.
    ///
    /// # Errors
    /// [`Wait`] when the stream isn't to be served.
    pub(crate) fn enter(&self, host: &HostId, now: Instant) -> Result<(), Wait> {
        let mut hosts = lock(&self.hosts);
        if hosts.len() >= MAX_HOSTS {
            hosts.retain(|_, came| !came.is_over(now));
        }
        let came = hosts.entry(host.clone()).or_insert_with(|| Came::new(now));
        if came.away_until.is_some_and(|until| now < until) {
            return Err(Wait::Away);
        }
        if now >= came.since + STREAMS_WITHIN {
            *came = Came::new(now);
        }
        came.streams = came.streams.saturating_add(1);
        if came.streams <= STREAMS {
            return Ok(());
        }
        // logged once, until the host may come again
        if came.streams == STREAMS + 1 {
            warn!(%host, reason = %Wait::Often, "host is turned away for a while");
        }
        Err(Wait::Often)
    }

    /// A host sent far too much. It stays away for [`AWAY`].
    pub(crate) fn send_away(&self, host: &HostId, now: Instant) {
        let mut hosts = lock(&self.hosts);
        let came = hosts.entry(host.clone()).or_insert_with(|| Came::new(now));
        came.away_until = Some(now + AWAY);
    }
}

impl Came {
    const fn new(now: Instant) -> Self {
        Self {
            since: now,
            streams: 0,
            away_until: None,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        let away = self.away_until.is_some_and(|until| now < until);
        !away && self.since + STREAMS_WITHIN <= now
    }
}

#[cfg(test)]
mod tests {
    use proto::message::{
        Blame, ContentHeld, Held, LeaseState, MirrorWant, MirrorWants, Retraction, WithoutSource,
    };

    use super::*;

    const LEASES: usize = most_leases(4);

    fn image(at: usize, held_bytes: u64) -> ImageState {
        ImageState {
            manifest: proto::Digest::of(&at.to_le_bytes()).as_bytes().to_vec(),
            held_bytes,
            ..ImageState::default()
        }
    }

    /// A report in which each list is `times` as long as a host can need, plus `more`.
    fn times(times: usize, more: usize) -> Report {
        let of = |most: usize| times * most + more;
        Report {
            images: (0..of(MAX_IMAGES)).map(|at| image(at, 0)).collect(),
            leases: vec![LeaseState::default(); of(LEASES)],
            blames: vec![Blame::default(); of(MAX_BLAMES)],
            retractions: vec![Retraction::default(); of(MAX_RETRACTIONS)],
            mirror: Some(MirrorWants {
                wants: vec![MirrorWant::default(); of(MAX_MIRROR_WANTS)],
            }),
            without_source: Some(WithoutSource {
                contents: vec![Vec::new(); of(MAX_WITHOUT_SOURCE)],
            }),
            held: Some(Held {
                contents: vec![ContentHeld::default(); of(MAX_HELD)],
            }),
            ..Report::default()
        }
    }

    #[test]
    fn what_a_host_can_need_is_taken_whole_and_more_is_left_out() {
        let needed = times(1, 0);
        let mut report = needed.clone();
        assert_eq!(cut(&mut report, LEASES), Ok(0));
        assert_eq!(report, needed);
        for (factor, more, out) in [
            (1, 1, 7),
            (10, 0, 9 * (256 + LEASES + 256 + 64 + 64 + 16 + 256)),
        ] {
            let mut report = times(factor, more);
            assert_eq!(cut(&mut report, LEASES), Ok(out));
            assert_eq!(report, needed);
        }
    }

    #[test]
    fn each_list_that_is_ten_times_too_long_is_named() {
        let long = times(10, 1);
        let one = |pick: fn(&mut Report, Report)| {
            let mut report = Report::default();
            pick(&mut report, long.clone());
            cut(&mut report, LEASES).unwrap_err().to_string()
        };
        for (said, of) in [
            (one(|to, from| to.images = from.images), "2561 images"),
            (one(|to, from| to.leases = from.leases), "741 leases"),
            (one(|to, from| to.blames = from.blames), "2561 blames"),
            (
                one(|to, from| to.retractions = from.retractions),
                "641 retractions",
            ),
            (
                one(|to, from| to.mirror = from.mirror),
                "641 wants of its mirror",
            ),
            (
                one(|to, from| to.without_source = from.without_source),
                "161 contents without",
            ),
            (
                one(|to, from| to.held = from.held),
                "2561 contents that it holds",
            ),
        ] {
            assert!(said.starts_with(&format!("a message names {of}")), "{said}");
        }
        let mut hello = Hello {
            images: long.images,
            ..Hello::default()
        };
        assert!(cut_hello(&mut hello).is_err());
    }

    #[test]
    fn an_image_that_is_named_again_and_again_counts_as_it_is_said_last() {
        let mut report = Report {
            images: (0..2_000).map(|at| image(at % 2, at as u64)).collect(),
            ..Report::default()
        };
        assert_eq!(cut(&mut report, LEASES), Ok(1_998));
        assert_eq!(report.images, [image(0, 1_998), image(1, 1_999)]);
    }

    #[test]
    fn leases_that_ended_are_kept_before_those_that_run() {
        let mut leases = vec![LeaseState::default(); LEASES];
        leases.push(LeaseState {
            end: LeaseEnd::Done.into(),
            ..LeaseState::default()
        });
        let mut report = Report {
            leases,
            ..Report::default()
        };
        assert_eq!(cut(&mut report, LEASES), Ok(1));
        assert_eq!(report.leases[0].end(), LeaseEnd::Done);
    }

    #[test]
    fn a_host_that_sent_far_too_much_stays_away_and_others_come() {
        let door = Door::default();
        let (rogue, other): (HostId, HostId) = ("rogue".parse().unwrap(), "b".parse().unwrap());
        let start = Instant::now();
        assert_eq!(door.enter(&rogue, start), Ok(()));
        door.send_away(&rogue, start);
        let late = AWAY - Duration::from_millis(1);
        assert_eq!(door.enter(&rogue, start + late), Err(Wait::Away));
        assert_eq!(door.enter(&other, start + late), Ok(()));
        assert_eq!(door.enter(&rogue, start + AWAY), Ok(()));
    }

    #[test]
    fn a_host_opens_ten_streams_within_ten_seconds() {
        let door = Door::default();
        let host = "a".parse().unwrap();
        let start = Instant::now();
        for _ in 0..STREAMS {
            assert_eq!(door.enter(&host, start), Ok(()));
        }
        let soon = start + STREAMS_WITHIN - Duration::from_millis(1);
        assert_eq!(door.enter(&host, soon), Err(Wait::Often));
        assert_eq!(door.enter(&host, start + STREAMS_WITHIN), Ok(()));
    }
}
