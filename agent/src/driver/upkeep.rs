//! The chores beside moving chunks: flushing journals, looking at the disk, measuring the volume, reading verified
//! chunks again, and weighing how busy the host is.
//!
//! [`Upkeep`] knows when each chore is due and which still run. The driver does the chores, and says when they ended.

use std::{
    collections::BTreeSet,
    ops::Range,
    time::{Duration, Instant},
};

use proto::{ChunkIndex, Digest, Reason, figure::Bytes};
use swarm::event::ContentId;

use super::trouble::Trouble;
use crate::store::Volume;

/// Verified chunks are journaled at least this often: `kill -9` may cost this much work.
const FLUSH_EVERY: Duration = Duration::from_millis(500);

/// The disk is looked at this often.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The volume's room is measured this often while something is staged, since others write to the volume too. At 10
/// Gbit/s about a gigabyte comes meanwhile, far less than any floor.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// While there are disks to read that parbake didn't build, 64 MiB are read this often: 140 GB in 73 minutes.
const SURVEY_EVERY: Duration = Duration::from_secs(2);
/// The time between two looks whether there is such a disk, while there is none. Also the time from the start to the
/// first look.
const SURVEY_LOOK_EVERY: Duration = Duration::from_mins(1);

/// Chunks that are read again at a time, every 5 s: 140 GB in a day, at a load that nobody notices.
const SCRUB_CHUNKS: u32 = 8;

/// The most chunks that are looked at at one time because peers blame this host for them. A disk reads thousands in a
/// second.
const MAX_SUSPECTED: usize = 64;

/// Something to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chore {
    /// Write down which chunks were stored.
    Flush,
    /// Look which images and names are on the disk.
    Look,
    /// Measure the volume's room.
    Measure,
    /// Read a part of a disk that parbake didn't build.
    Survey,
}

/// The needs of the other parts of the agent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    /// Images take chunks.
    pub(super) filling: bool,
    /// A stage is being made ready: other disks are searched, and copied from.
    pub(super) beginning: bool,
    /// Only a look at the disk can tell how something ended.
    pub(super) look: bool,
}

/// Chunks of one content that are read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scrub {
    pub(super) content: ContentId,
    pub(super) chunks: Range<u32>,
    /// They are the content's last chunks.
    pub(super) last: bool,
}

/// A chore that is done once in a while. A round that takes longer than its interval isn't begun a second time.
#[derive(Debug)]
struct Round {
    every: Duration,
    last: Instant,
    running: bool,
}

impl Round {
    const fn new(every: Duration, now: Instant) -> Self {
        Self {
            every,
            last: now,
            running: false,
        }
    }

    /// When the next round is to begin; `None` while one runs.
    fn next_due(&self) -> Option<Instant> {
        (!self.running).then(|| self.last + self.every)
    }

    fn is_due(&self, now: Instant) -> bool {
        self.next_due().is_some_and(|due| now >= due)
    }

    const fn begin(&mut self, now: Instant) {
        self.last = now;
        self.running = true;
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Upkeep {
    flush: Round,
    look: Round,
    measure: Round,
    survey: Round,
    /// Chunks were stored that no journal vouches for yet.
    unflushed: bool,
    /// The next look is followed by a measurement, whether or not chunks are taken.
    measure_wanted: bool,
    /// The last measurement: a volume that hangs must not hold up the driver.
    volume: Volume,
    scrubbing: bool,
    /// The chunk at which reading again goes on.
    scrub_at: (ContentId, ChunkIndex),
    /// Chunks that are looked at because peers blame this host for them.
    suspected: BTreeSet<(Digest, ChunkIndex)>,
    /// The load in percent at which this host begins to move less for others, if its operator set one.
    step_back_load_percent: Option<u32>,
    stepped_back: bool,
}

impl Upkeep {
    pub(super) const fn new(
        now: Instant,
        volume: Volume,
        step_back_load_percent: Option<u32>,
    ) -> Self {
        Self {
            flush: Round::new(FLUSH_EVERY, now),
            look: Round::new(LOOK_EVERY, now),
            measure: Round::new(MEASURE_EVERY, now),
            survey: Round::new(SURVEY_LOOK_EVERY, now),
            unflushed: false,
            measure_wanted: false,
            volume,
            scrubbing: false,
            scrub_at: (ContentId(0), ChunkIndex(0)),
            suspected: BTreeSet::new(),
            step_back_load_percent,
            stepped_back: false,
        }
    }

    // ---- when -------------------------------------------------------------------------------------------------------

    /// When [`Upkeep::begin_due`] has a chore next, unless something happens before.
    pub(super) fn next_due(&self, needs: Needs) -> Option<Instant> {
        let flush = self.flush.next_due().filter(|_| self.unflushed);
        let measure = self.measure.next_due().filter(|_| needs.filling);
        let survey = self.survey.next_due().filter(|_| self.may_survey(needs));
        let due = [flush, self.look.next_due(), measure, survey];
        due.into_iter().flatten().min()
    }

    /// The chores that are due. They count as begun, and aren't due again before they have ended.
    pub(super) fn begin_due(&mut self, now: Instant, needs: Needs) -> Vec<Chore> {
        let mut chores = Vec::new();
        if self.unflushed && self.flush.is_due(now) {
            self.unflushed = false;
            self.flush.begin(now);
            chores.push(Chore::Flush);
        }
        if self.look.is_due(now) || needs.look && !self.look.running {
            self.look.begin(now);
            chores.push(Chore::Look);
        }
        let wanted = self.measure_wanted && !self.measure.running;
        if wanted || needs.filling && self.measure.is_due(now) {
            self.measure_wanted = false;
            self.measure.begin(now);
            chores.push(Chore::Measure);
        }
        if self.may_survey(needs) && self.survey.is_due(now) {
            self.survey.begin(now);
            chores.push(Chore::Survey);
        }
        chores
    }

    /// Whether disks may be read: reading gives way to staging, and to the host's guests.
    pub(super) const fn may_survey(&self, needs: Needs) -> bool {
        !needs.filling && !needs.beginning && !self.stepped_back
    }

    // ---- what happened ----------------------------------------------------------------------------------------------

    /// A chunk was stored. A journal has to say so before long.
    pub(super) const fn chunk_stored(&mut self) {
        self.unflushed = true;
    }

    /// The journals were flushed, or couldn't be.
    pub(super) const fn flushed(&mut self) {
        self.flush.running = false;
    }

    /// A look at the disk ended.
    pub(super) const fn looked(&mut self) {
        self.look.running = false;
        self.measure_wanted = true;
    }

    /// A part of a disk was read, or there was none to read. `more`: there is more to read now.
    pub(super) const fn surveyed(&mut self, more: bool) {
        self.survey.running = false;
        self.survey.every = match more {
            true => SURVEY_EVERY,
            false => SURVEY_LOOK_EVERY,
        };
    }

    /// The volume was measured. Returns the reason if no more may be written to the volume. Room is reserved before the
    /// first byte of an image, but others write to the volume as well.
    pub(super) fn measured(&mut self, volume: Volume) -> Option<Trouble> {
        self.measure.running = false;
        self.volume = volume;
        below_floor(volume)
    }

    /// The volume as it was measured last.
    pub(super) const fn volume(&self) -> Volume {
        self.volume
    }

    // ---- reading again ----------------------------------------------------------------------------------------------

    /// The next chunks to read again; `None` while some are still being read. `from` gives the first verified content
    /// at or after an id, or else from the beginning, with its number of chunks.
    pub(super) fn begin_scrub(
        &mut self,
        from: impl FnOnce(ContentId) -> Option<(ContentId, u32)>,
    ) -> Option<Scrub> {
        if self.scrubbing {
            return None;
        }
        let (at, chunk) = self.scrub_at;
        let (content, count) = from(at)?;
        let first = if content == at { chunk.0 } else { 0 };
        let end = first.saturating_add(SCRUB_CHUNKS).min(count);
        let last = end == count;
        self.scrub_at = match last {
            true => (ContentId(content.0.wrapping_add(1)), ChunkIndex(0)),
            false => (content, ChunkIndex(end)),
        };
        self.scrubbing = true;
        Some(Scrub {
            content,
            chunks: first.min(end)..end,
            last,
        })
    }

    /// The chunks of [`Upkeep::begin_scrub`] were read.
    pub(super) const fn scrubbed(&mut self) {
        self.scrubbing = false;
    }

    /// A peer blames this host for a chunk. Returns whether to look at the chunk now: not while that is under way, and
    /// not beyond a bound, since peers could blame without end.
    pub(super) fn suspect(&mut self, content: Digest, chunk: ChunkIndex) -> bool {
        self.suspected.len() < MAX_SUSPECTED && self.suspected.insert((content, chunk))
    }

    /// A chunk for which a peer blamed this host was looked at.
    pub(super) fn cleared(&mut self, content: Digest, chunk: ChunkIndex) {
        self.suspected.remove(&(content, chunk));
    }

    // ---- the host's load --------------------------------------------------------------------------------------------

    /// The host's guests come first: a host that is busier than its operator wants moves less for others. Returns
    /// whether the host steps back from now on, if that changed.
    pub(super) fn weigh(&mut self, load_percent: Option<u32>) -> Option<bool> {
        let back = steps_back(
            self.stepped_back,
            load_percent?,
            self.step_back_load_percent?,
        );
        let changed = back != self.stepped_back;
        self.stepped_back = back;
        changed.then_some(back)
    }
}

/// Whether a host with this load steps back. It comes forward again at three quarters of the limit: otherwise its own
/// work would make it go back and forth.
const fn steps_back(before: bool, load_percent: u32, limit_percent: u32) -> bool {
    let limit = if before {
        limit_percent - limit_percent / 4
    } else {
        limit_percent
    };
    load_percent >= limit
}

/// The reason if no more may be written to the volume. A volume that can't be measured gives none.
fn below_floor(volume: Volume) -> Option<Trouble> {
    (volume.free_bytes < volume.floor_bytes).then(|| Trouble {
        reason: Reason::NoRoom,
        message: format!(
            "the volume has filled up beside the image: {} are free, and {} have to stay free; it goes on where it \
             stands when there is room for the rest",
            Bytes(volume.free_bytes),
            Bytes(volume.floor_bytes)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Needs = Needs {
        filling: false,
        beginning: false,
        look: false,
    };
    const FILLING: Needs = Needs {
        filling: true,
        ..IDLE
    };
    const BEGINNING: Needs = Needs {
        beginning: true,
        ..IDLE
    };
    const UNSURE: Needs = Needs { look: true, ..IDLE };

    fn upkeep(limit: Option<u32>) -> (Upkeep, Instant) {
        let now = Instant::now();
        (Upkeep::new(now, Volume::default(), limit), now)
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_stored_chunk_is_journaled_half_a_second_after_the_last_flush() {
        let (mut upkeep, now) = upkeep(None);
        assert_eq!(upkeep.begin_due(now + ms(500), IDLE), []);
        upkeep.chunk_stored();
        assert_eq!(upkeep.next_due(IDLE), Some(now + ms(500)));
        assert_eq!(upkeep.begin_due(now + ms(499), IDLE), []);
        assert_eq!(upkeep.begin_due(now + ms(500), IDLE), [Chore::Flush]);
    }

    #[test]
    fn a_chunk_that_is_stored_during_a_flush_waits_for_the_next() {
        let (mut upkeep, now) = upkeep(None);
        upkeep.chunk_stored();
        assert_eq!(upkeep.begin_due(now + ms(500), IDLE), [Chore::Flush]);
        upkeep.chunk_stored();
        // the disk is slow: nothing is begun beside what runs, and the loop isn't woken for it
        assert_eq!(upkeep.begin_due(now + ms(1_500), IDLE), []);
        assert_eq!(upkeep.next_due(IDLE), Some(now + LOOK_EVERY));
        upkeep.flushed();
        assert_eq!(upkeep.next_due(IDLE), Some(now + ms(1_000)));
        assert_eq!(upkeep.begin_due(now + ms(1_500), IDLE), [Chore::Flush]);
    }

    #[test]
    fn what_is_flushed_isnt_flushed_again() {
        let (mut upkeep, now) = upkeep(None);
        upkeep.chunk_stored();
        assert_eq!(upkeep.begin_due(now + ms(500), IDLE), [Chore::Flush]);
        upkeep.flushed();
        assert_eq!(upkeep.begin_due(now + ms(2_000), IDLE), []);
    }

    #[test]
    fn the_disk_is_looked_at_every_five_seconds() {
        let (mut upkeep, now) = upkeep(None);
        assert_eq!(upkeep.next_due(IDLE), Some(now + ms(5_000)));
        assert_eq!(upkeep.begin_due(now + ms(4_999), IDLE), []);
        assert_eq!(upkeep.begin_due(now + ms(5_000), IDLE), [Chore::Look]);
    }

    #[test]
    fn a_look_that_is_needed_is_taken_at_once_but_never_beside_another() {
        let (mut upkeep, now) = upkeep(None);
        assert_eq!(upkeep.begin_due(now, UNSURE), [Chore::Look]);
        assert_eq!(upkeep.begin_due(now + ms(1), UNSURE), []);
        upkeep.looked();
        let chores = upkeep.begin_due(now + ms(2), UNSURE);
        assert_eq!(chores, [Chore::Look, Chore::Measure]);
    }

    #[test]
    fn a_look_that_hangs_doesnt_wake_the_loop_again_and_again() {
        let (mut upkeep, now) = upkeep(None);
        assert_eq!(upkeep.begin_due(now + ms(5_000), IDLE), [Chore::Look]);
        assert_eq!(upkeep.next_due(IDLE), Some(now + SURVEY_LOOK_EVERY));
        assert_eq!(upkeep.begin_due(now + ms(59_999), IDLE), []);
        upkeep.looked();
        assert_eq!(upkeep.next_due(IDLE), Some(now + ms(10_000)));
    }

    #[test]
    fn disks_are_read_while_nothing_is_staged_and_one_part_at_a_time() {
        let (mut upkeep, now) = upkeep(Some(100));
        upkeep.look.running = true;
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(upkeep.begin_due(at(59), IDLE), []);
        assert_eq!(upkeep.begin_due(at(60), IDLE), [Chore::Survey]);
        assert_eq!(upkeep.begin_due(at(600), IDLE), [], "one runs");
        upkeep.surveyed(true);
        assert_eq!(upkeep.next_due(IDLE), Some(at(62)));
        // an image comes, and then guests need the host
        assert_eq!(upkeep.next_due(FILLING), Some(now + MEASURE_EVERY));
        assert!(!upkeep.begin_due(at(62), FILLING).contains(&Chore::Survey));
        // what a beginning reads comes first, too
        assert!(!upkeep.may_survey(FILLING) && !upkeep.may_survey(BEGINNING));
        assert!(upkeep.may_survey(IDLE));
        assert_eq!(upkeep.begin_due(at(62), BEGINNING), []);
        assert_eq!(upkeep.next_due(BEGINNING), None);
        assert_eq!(upkeep.weigh(Some(200)), Some(true));
        assert_eq!(upkeep.begin_due(at(63), IDLE), []);
        assert_eq!(upkeep.weigh(Some(10)), Some(false));
        assert_eq!(upkeep.begin_due(at(63), IDLE), [Chore::Survey]);
        upkeep.surveyed(false);
        assert_eq!(upkeep.next_due(IDLE), Some(at(123)));
    }

    #[test]
    fn the_volume_is_measured_every_second_while_chunks_come() {
        let (mut upkeep, now) = upkeep(None);
        assert_eq!(upkeep.next_due(FILLING), Some(now + ms(1_000)));
        assert_eq!(upkeep.begin_due(now + ms(999), FILLING), []);
        assert_eq!(upkeep.begin_due(now + ms(1_000), FILLING), [Chore::Measure]);
        assert_eq!(upkeep.next_due(FILLING), Some(now + LOOK_EVERY));
        upkeep.measured(Volume::default());
        assert_eq!(upkeep.next_due(FILLING), Some(now + ms(2_000)));
    }

    #[test]
    fn the_volume_is_measured_after_each_look_though_nothing_comes() {
        let (mut upkeep, now) = upkeep(None);
        assert_eq!(upkeep.begin_due(now + ms(1_000), IDLE), []);
        upkeep.begin_due(now + ms(5_000), IDLE);
        upkeep.looked();
        assert_eq!(upkeep.begin_due(now + ms(5_001), IDLE), [Chore::Measure]);
        assert_eq!(upkeep.begin_due(now + ms(5_002), IDLE), []);
    }

    #[test]
    fn a_measurement_is_kept_and_says_when_the_floor_is_reached() {
        let (mut upkeep, _) = upkeep(None);
        let volume = |free_bytes| Volume {
            total_bytes: 1_000_000,
            free_bytes,
            floor_bytes: 150_000,
            clones: true,
        };
        assert_eq!(upkeep.measured(volume(150_000)), None);
        let trouble = upkeep.measured(volume(149_999)).unwrap();
        assert_eq!(upkeep.volume(), volume(149_999));
        assert_eq!(trouble.reason, Reason::NoRoom);
        assert!(
            trouble
                .message
                .contains("149.9 kB are free, and 150.0 kB have to stay free")
        );
        // a volume that can't be measured causes no trouble
        assert_eq!(upkeep.measured(Volume::default()), None);
    }

    #[test]
    fn reading_again_goes_through_a_content_and_then_to_the_next_one() {
        let (mut upkeep, _) = upkeep(None);
        let mut read = |at: ContentId, found: (u32, u32)| {
            let scrub = upkeep.begin_scrub(|from| {
                assert_eq!(from, at);
                Some((ContentId(found.0), found.1))
            });
            upkeep.scrubbed();
            let scrub = scrub.unwrap();
            (scrub.content.0, scrub.chunks, scrub.last)
        };
        // content 0 isn't verified; the first verified content has the number 3
        assert_eq!(read(ContentId(0), (3, 17)), (3, 0..8, false));
        assert_eq!(read(ContentId(3), (3, 17)), (3, 8..16, false));
        assert_eq!(read(ContentId(3), (3, 17)), (3, 16..17, true));
        assert_eq!(read(ContentId(4), (9, 8)), (9, 0..8, true));
        // after the last content the first one follows
        assert_eq!(read(ContentId(10), (3, 17)), (3, 0..8, false));
        // the content is gone in the middle: the next one is read from its beginning
        assert_eq!(read(ContentId(3), (5, 9)), (5, 0..8, false));
    }

    #[test]
    fn nothing_is_read_again_beside_what_is_being_read_or_where_nothing_is_verified() {
        let (mut upkeep, _) = upkeep(None);
        assert_eq!(upkeep.begin_scrub(|_| None), None);
        assert!(upkeep.begin_scrub(|_| Some((ContentId(0), 20))).is_some());
        assert_eq!(upkeep.begin_scrub(|_| panic!("not asked")), None);
        upkeep.scrubbed();
        assert!(upkeep.begin_scrub(|_| Some((ContentId(0), 20))).is_some());
    }

    #[test]
    fn peers_cant_have_this_host_look_at_more_than_some_chunks_at_a_time() {
        let (mut upkeep, _) = upkeep(None);
        let content = Digest::of(b"a content");
        for chunk in 0..64 {
            assert!(upkeep.suspect(content, ChunkIndex(chunk)));
            assert!(!upkeep.suspect(content, ChunkIndex(chunk)));
        }
        assert!(!upkeep.suspect(content, ChunkIndex(64)));
        upkeep.cleared(content, ChunkIndex(7));
        assert!(upkeep.suspect(content, ChunkIndex(64)));
    }

    #[test]
    fn a_busy_host_steps_back_until_it_is_clearly_less_busy() {
        let (mut upkeep, _) = upkeep(Some(100));
        assert_eq!(upkeep.weigh(Some(99)), None);
        assert_eq!(upkeep.weigh(Some(100)), Some(true));
        assert_eq!(upkeep.weigh(Some(75)), None);
        assert_eq!(upkeep.weigh(Some(74)), Some(false));
    }

    #[test]
    fn a_host_without_a_limit_or_a_measure_of_its_load_never_steps_back() {
        let (mut free, _) = upkeep(None);
        assert_eq!(free.weigh(Some(1_000)), None);
        let (mut blind, _) = upkeep(Some(100));
        assert_eq!(blind.weigh(None), None);
    }
}
