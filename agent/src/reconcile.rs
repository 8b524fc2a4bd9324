//! Decides what each image of this host needs next: from the orders, the last look at the disk, and the jobs that run.
//!
//! Orders say which image each reference shall name. Looks say what each reference names. Jobs make the names follow
//! the orders: beginning a stage, linking names, writing down which names are wanted, abandoning a stage. An image has
//! one job at a time. A reference is in one image's job at a time, because otherwise the job that ends last would win.
//!
//! A name counts as ready only if a look shows it that began after the last order and the last job that touched the
//! name.
//!
//! No I/O and no clock: the driver carries jobs out and says how they ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::{Digest, Moment, pause::doubled};

/// A job that failed is tried again after this long. The pause doubles up to the longest: a full disk may be emptied.
pub const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(5));

/// If a name stood for this long before somebody took it, it is put back at once, as after a first loss.
const CALM: Duration = Duration::from_mins(10);

/// Whether an image is to be here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// The image is wanted here.
    Staged,
    /// The image is paused: it doesn't go on for now, and its files stay.
    Paused,
    /// The image isn't wanted. An installed image stays; anything less is removed.
    Dropped,
}

/// How much of an image is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Have {
    /// Nothing is known to be here.
    Nothing,
    /// There may be files on the disk, and they aren't taken up: nothing comes, and nothing is served.
    Kept,
    /// Chunks come.
    Filling,
    /// All chunks are here, and tart doesn't find the image yet.
    Whole,
    /// The image is in tart's cache.
    Installed,
    /// The image was installed, and somebody removed it or its last name. It comes back when it is ordered.
    Gone,
}

/// A job for an image. An image has one at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// Reserve room, and take up the files on the disk. The job also writes down that exactly these names are wanted
    /// for the image, and that no other image is wanted under them.
    Begin(Vec<String>),
    /// Only write down these names, as [`Begin`](Self::Begin) does.
    Record(Vec<String>),
    /// Make tart find the image under these names.
    Install(Vec<String>),
    /// Remove the image's files from the disk. An installed image stays.
    Abandon,
}

/// The image that a reference names on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// This image. It is whole, and has its golden if goldens are made.
    Image(Digest),
    /// An image that the agent didn't stage.
    Other,
    /// Nothing that tart could use.
    Nothing,
}

/// The findings of a look at the disk.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// What each reference names. A reference that isn't here names nothing.
    pub names: BTreeMap<String, Sight>,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Reconciler {
    /// The image that each reference shall name, by the newest order.
    desired: BTreeMap<String, Digest>,
    /// What each reference names. Absent: not known since a job touched the reference.
    seen: BTreeMap<String, Sight>,
    images: BTreeMap<Digest, Item>,
    /// The order in which images are to be finished, by the coordinator's word. Others come after these.
    sequence: Vec<Digest>,
    /// Images to which later ones gave way, until they were begun with the room that this made.
    awaited: BTreeSet<Digest>,
    /// The names that we linked, until a look has shown them.
    linked: BTreeMap<String, Digest>,
    /// Names that somebody else removed or moved.
    losses: BTreeMap<String, Loss>,
    /// The look that is under way: its order's number, and the names that were touched since it began.
    looking: Option<(u64, BTreeSet<String>)>,
    /// A job ended, and only a look can tell its outcome.
    look_wanted: bool,
    /// Something happened since `next` last found no job (`stirred`), and the moment at which a pause ends (`due`).
    stirred: bool,
    due: Option<Moment>,
    /// The number of the newest order, and of the newest order after which a look began that has ended.
    ordered: u64,
    confirmed: u64,
}

#[derive(Debug)]
struct Item {
    want: Want,
    have: Have,
    running: Option<Job>,
    /// The names that are written down as wanted.
    recorded: Option<BTreeSet<String>>,
    /// No job begins before this moment; and the length of the next pause.
    paused_until: Moment,
    pause: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Loss {
    /// When the loss was noticed.
    at: Moment,
    /// When the name is put back.
    again_at: Moment,
    pause: Duration,
}

impl Item {
    const fn new(have: Have) -> Self {
        Self {
            want: Want::Staged,
            have,
            running: None,
            recorded: None,
            paused_until: Moment::START,
            pause: RETRY.0,
        }
    }
}

impl Reconciler {
    // ---- orders -----------------------------------------------------------------------------------------------------

    /// An earlier process left this image here, with these names.
    pub fn recovered(&mut self, image: Digest, names: &[String]) {
        self.stirred = true;
        let item = Item {
            recorded: Some(names.iter().cloned().collect()),
            ..Item::new(Have::Kept)
        };
        self.images.insert(image, item);
        self.set_names(image, names);
    }

    /// The image is ordered, under exactly these names. A failed or removed image is tried at once.
    pub fn order(&mut self, image: Digest, names: &[String], now: Moment) {
        self.stirred = true;
        let item = self
            .images
            .entry(image)
            .or_insert_with(|| Item::new(Have::Nothing));
        item.want = Want::Staged;
        item.paused_until = now;
        if item.have == Have::Gone {
            item.have = Have::Nothing;
        }
        self.set_names(image, names);
        self.put_back_now(now, names);
        self.doubt_records();
    }

    /// These names are wanted, of all images. `whole`: no others are wanted, and an image without any isn't wanted.
    /// Returns the images that aren't wanted any more.
    pub fn name(
        &mut self,
        number: u64,
        whole: bool,
        names: BTreeMap<String, Digest>,
        now: Moment,
    ) -> Vec<Digest> {
        self.stirred = true;
        self.ordered = number;
        let all: Vec<String> = names.keys().cloned().collect();
        let mut dropped = Vec::new();
        if whole {
            self.desired = names;
            let named: BTreeSet<Digest> = self.desired.values().copied().collect();
            let unnamed = |(image, item): &(&Digest, &mut Item)| {
                !named.contains(*image) && item.want != Want::Dropped
            };
            for (image, item) in self.images.iter_mut().filter(unnamed) {
                item.want = Want::Dropped;
                dropped.push(*image);
            }
        } else {
            self.desired.extend(names);
        }
        self.put_back_now(now, &all);
        self.doubt_records();
        self.tidy();
        dropped
    }

    /// A session with the coordinator began, and has its own numbers of orders.
    pub fn session(&mut self) {
        self.ordered = 0;
        self.confirmed = 0;
        if let Some((number, _)) = &mut self.looking {
            *number = 0;
        }
    }

    /// Takes the order in which images are to be finished. Returns the images whose ranks changed.
    pub(crate) fn take_sequence(&mut self, sequence: Vec<Digest>) -> Vec<Digest> {
        self.stirred = true;
        let images = self.images.keys().copied();
        let before: Vec<(Digest, u16)> = images.map(|image| (image, self.rank(&image))).collect();
        self.sequence = sequence;
        let moved = before
            .into_iter()
            .filter(|(image, rank)| self.rank(image) != *rank);
        moved.map(|(image, _)| image).collect()
    }

    /// The image's place among those that are to be finished here, from 0 on. Images of one rank come at once.
    #[must_use]
    pub(crate) fn rank(&self, image: &Digest) -> u16 {
        let mut sequence = self.sequence.iter();
        let rank = sequence.position(|other| other == image);
        u16::try_from(rank.unwrap_or(self.sequence.len())).unwrap_or(u16::MAX)
    }

    /// The image isn't wanted under any name.
    pub fn cancel(&mut self, image: Digest) {
        self.stirred = true;
        self.desired.retain(|_, named| *named != image);
        if let Some(item) = self.images.get_mut(&image) {
            item.want = Want::Dropped;
        }
        self.tidy();
    }

    /// The image is paused. A whole image is installed all the same.
    pub fn pause(&mut self, image: Digest) {
        self.stirred = true;
        if let Some(item) = self.images.get_mut(&image) {
            item.want = Want::Paused;
        }
    }

    fn set_names(&mut self, image: Digest, names: &[String]) {
        self.desired
            .retain(|name, named| *named != image || names.contains(name));
        for name in names {
            self.desired.insert(name.clone(), image);
        }
    }

    /// After an order, lost names are put back without a pause.
    fn put_back_now(&mut self, now: Moment, names: &[String]) {
        for name in names {
            if let Some(loss) = self.losses.get_mut(name) {
                loss.again_at = loss.again_at.min(now);
            }
        }
    }

    // ---- what happened ----------------------------------------------------------------------------------------------

    /// Notes how much of the image is here now.
    pub fn have(&mut self, image: Digest, have: Have) {
        self.stirred = true;
        if let Some(item) = self.images.get_mut(&image) {
            item.have = have;
        }
        self.tidy();
    }

    /// A stage was begun, or couldn't be. Returns whether the image is still to be staged; otherwise the caller takes
    /// nothing of it up.
    pub fn begun(&mut self, image: Digest) -> bool {
        self.stirred = true;
        self.awaited.remove(&image);
        let Some(item) = self.images.get_mut(&image) else {
            return false;
        };
        let job = item.running.take();
        item.have = Have::Kept;
        item.recorded = None;
        let goes_on = item.want == Want::Staged;
        if let Some(Job::Begin(names)) = job {
            self.took(&image, &names);
        }
        goes_on
    }

    /// Names were written down, or weren't.
    pub fn recorded(&mut self, image: Digest, written: bool, now: Moment) {
        self.stirred = true;
        let Some(item) = self.images.get_mut(&image) else {
            return;
        };
        if let Some(Job::Record(names)) = item.running.take() {
            match written {
                true => item.recorded = Some(names.iter().cloned().collect()),
                false => item.fail(now),
            }
            self.took(&image, &names);
        }
        self.tidy();
    }

    /// A running job may write down names for an image that are another image's again. These names are then written
    /// down again for the other image.
    fn doubt_records(&mut self) {
        let running = self.images.iter().filter_map(|(image, item)| {
            let names = match &item.running {
                Some(Job::Begin(names) | Job::Record(names)) => names.clone(),
                _ => return None,
            };
            Some((*image, names))
        });
        for (image, names) in running.collect::<Vec<_>>() {
            self.took(&image, &names);
        }
    }

    /// A job may have written down that no other image is wanted under these names. If one of the names is another
    /// image's now, that image's names are written down again.
    fn took(&mut self, image: &Digest, names: &[String]) {
        let others = self.images.iter_mut().filter(|(other, _)| *other != image);
        for (_, other) in others {
            let is_taken =
                |recorded: &mut BTreeSet<String>| names.iter().any(|name| recorded.contains(name));
            other.recorded.take_if(is_taken);
        }
    }

    /// An installation ended, well or not. Only a look can tell which names stand.
    pub fn installed(&mut self, image: Digest, done: bool) {
        self.stirred = true;
        let Some(item) = self.images.get_mut(&image) else {
            return;
        };
        let Some(Job::Install(names)) = item.running.take() else {
            return;
        };
        if done {
            item.pause = RETRY.0;
        }
        self.look_wanted = true;
        for name in names {
            if done {
                self.linked.insert(name.clone(), image);
            }
            self.touch(name);
        }
        self.tidy();
    }

    /// The image's files are being removed, although the image is wanted: it is begun anew when its pause is over.
    pub(crate) fn abandon(&mut self, image: Digest) {
        self.stirred = true;
        if let Some(item) = self.images.get_mut(&image) {
            item.running = Some(Job::Abandon);
        }
    }

    /// These images gave way to this one, each with whether its files are removed for it. None that comes after this
    /// one is begun before it: that one would take the room instead.
    pub(crate) fn room_is_made(&mut self, image: Digest, way: &[(Digest, bool)], now: Moment) {
        if way.is_empty() {
            return;
        }
        self.awaited.insert(image);
        // a removal takes a while, and says when it has ended
        if way.iter().all(|(_, removed)| !removed) {
            self.wait(image, now, Duration::ZERO);
        }
    }

    /// Whether room was made for an image that comes before this one, and that one wasn't begun since.
    fn is_behind(&self, image: &Digest) -> bool {
        let wanted = |first: &&Digest| {
            let item = self.images.get(*first);
            item.is_some_and(|item| item.want == Want::Staged)
        };
        let mut awaited = self.awaited.iter().filter(wanted);
        awaited.any(|first| self.rank(first) < self.rank(image))
    }

    /// Whether files of an image that comes after this one are being removed. At the end of the removal
    /// [`hurry_before`](Self::hurry_before) has this one tried again.
    pub(crate) fn is_room_coming(&self, image: &Digest) -> bool {
        let rank = self.rank(image);
        let mut others = self.images.iter();
        others.any(|(other, item)| {
            matches!(item.running, Some(Job::Abandon)) && self.rank(other) > rank
        })
    }

    /// Of these images, those that are to be finished before this one are tried without a pause.
    pub(crate) fn hurry_before(&mut self, later: &Digest, images: Vec<Digest>, now: Moment) {
        let rank = self.rank(later);
        let before = images.into_iter().filter(|image| self.rank(image) < rank);
        for image in before.collect::<Vec<_>>() {
            self.wait(image, now, Duration::ZERO);
        }
    }

    /// A stage was removed.
    pub fn abandoned(&mut self, image: Digest) {
        self.stirred = true;
        if let Some(item) = self.images.get_mut(&image) {
            item.running = None;
            item.have = Have::Nothing;
            item.recorded = None;
        }
        self.tidy();
    }

    /// A job of the image failed: the next one waits for a pause, which grows.
    pub fn failed(&mut self, image: Digest, now: Moment) {
        self.stirred = true;
        if let Some(item) = self.images.get_mut(&image) {
            item.fail(now);
        }
    }

    /// A job of the image has to wait for something that isn't a failure.
    pub fn wait(&mut self, image: Digest, now: Moment, pause: Duration) {
        self.stirred = true;
        if let Some(item) = self.images.get_mut(&image) {
            item.paused_until = now + pause;
        }
    }

    fn touch(&mut self, name: String) {
        self.seen.remove(&name);
        if let Some((_, touched)) = &mut self.looking {
            touched.insert(name);
        }
    }

    // ---- looks ------------------------------------------------------------------------------------------------------

    /// Whether the disk has to be looked at now, besides the regular looks.
    #[must_use]
    pub fn look_due(&self) -> bool {
        if self.looking.is_some() {
            return false;
        }
        let unknown = |(name, image): (&String, &Digest)| {
            !self.seen.contains_key(name) && self.is_whole(image) && !self.is_in_job(name)
        };
        self.look_wanted || self.ordered > self.confirmed || self.desired.iter().any(unknown)
    }

    /// A look begins.
    pub fn look_begins(&mut self) {
        self.look_wanted = false;
        self.looking = Some((self.ordered, BTreeSet::new()));
    }

    /// A look ended, with these findings.
    pub fn looked(&mut self, look: &Look, now: Moment) {
        self.stirred = true;
        let Some((number, touched)) = self.looking.take() else {
            return;
        };
        let names: BTreeSet<String> = self
            .desired
            .keys()
            .chain(look.names.keys())
            .filter(|name| !touched.contains(*name))
            .cloned()
            .collect();
        let before = std::mem::take(&mut self.seen);
        for name in names {
            let sight = look.names.get(&name).copied().unwrap_or(Sight::Nothing);
            if let Some(image) = self.desired.get(&name) {
                let ours = Sight::Image(*image);
                let stood = before.get(&name) == Some(&ours);
                self.watch(&name, *image, stood, sight == ours, now);
            }
            self.seen.insert(name, sight);
        }
        self.linked
            .retain(|name, image| self.desired.get(name) == Some(image));
        self.losses
            .retain(|name, loss| self.desired.contains_key(name) && !loss.is_over(now));
        // a session may have begun meanwhile, with other numbers
        if number <= self.ordered {
            self.confirmed = self.confirmed.max(number);
        }
    }

    /// Takes note of a lost name: a name that stood, or that we linked, and that doesn't stand now.
    fn watch(&mut self, name: &str, image: Digest, stood: bool, stands: bool, now: Moment) {
        let linked = self.linked.get(name) == Some(&image);
        // an image that isn't whole, or is read again, has no names that somebody could take
        let whole = self.is_whole(&image);
        if stands || !whole {
            self.linked.remove(name);
        }
        if stands || !whole || !(stood || linked) {
            return;
        }
        self.linked.remove(name);
        let pause = match self.losses.get(name).map(|loss| loss.pause) {
            None => Duration::ZERO,
            Some(Duration::ZERO) => RETRY.0,
            Some(pause) => doubled(pause, RETRY.1, 1),
        };
        let loss = Loss {
            at: now,
            again_at: now + pause,
            pause,
        };
        self.losses.insert(name.to_owned(), loss);
    }

    // ---- what follows -----------------------------------------------------------------------------------------------

    /// The next job, which counts as running from now on. Call this until it returns `None`.
    pub fn next(&mut self, now: Moment) -> Option<(Digest, Job)> {
        if !self.stirred && self.due.is_none_or(|due| due > now) {
            return None;
        }
        let mut images: Vec<_> = self.images.iter().collect();
        images.sort_by_key(|(image, _)| self.rank(image));
        let mut images = images.into_iter();
        let needed = images.find_map(|(image, item)| Some((*image, self.need(image, item, now)?)));
        let Some((image, job)) = needed else {
            self.stirred = false;
            let pauses = self.images.values().map(|item| item.paused_until);
            let losses = self.losses.values().map(|loss| loss.again_at);
            self.due = pauses.chain(losses).filter(|at| *at > now).min();
            return None;
        };
        if let Job::Install(names) = &job {
            for name in names.clone() {
                self.touch(name);
            }
        }
        self.images.get_mut(&image)?.running = Some(job.clone());
        Some((image, job))
    }

    /// When a pause ends, and there may be a job.
    #[must_use]
    pub const fn due(&self) -> Option<Moment> {
        self.due
    }

    fn need(&self, image: &Digest, item: &Item, now: Moment) -> Option<Job> {
        if item.running.is_some() {
            return None;
        }
        let paused = item.paused_until > now;
        match (item.want, item.have) {
            (_, Have::Gone) => return None,
            (Want::Dropped, Have::Kept | Have::Filling | Have::Whole) => {
                return (!paused).then_some(Job::Abandon);
            }
            (Want::Staged, Have::Nothing | Have::Kept) => {
                // with the room of one removal alone, more images would give way than have to
                let waits = self.awaited.contains(image) && self.is_room_coming(image);
                let may = !paused && !waits && !self.is_behind(image);
                return may.then(|| Job::Begin(self.names(image).cloned().collect()));
            }
            (_, Have::Nothing | Have::Kept) => return None,
            (_, Have::Filling | Have::Whole | Have::Installed) => {}
        }
        if paused {
            return None;
        }
        let names: Vec<String> = self.names(image).cloned().collect();
        if !self.is_recorded(image, item) {
            return Some(Job::Record(names));
        }
        if item.have == Have::Filling {
            return None;
        }
        let lacking: Vec<String> = names
            .into_iter()
            .filter(|name| self.is_lacking(name, image) && !self.is_in_job(name))
            .filter(|name| {
                self.losses
                    .get(name)
                    .is_none_or(|loss| loss.again_at <= now)
            })
            .collect();
        (!lacking.is_empty()).then_some(Job::Install(lacking))
    }

    // ---- what is known ----------------------------------------------------------------------------------------------

    /// The names that are wanted for an image.
    pub fn names<'a>(&'a self, image: &'a Digest) -> impl Iterator<Item = &'a String> {
        let names = self.desired.iter();
        names
            .filter(move |(_, named)| *named == image)
            .map(|(name, _)| name)
    }

    /// The image that each wanted name shall name.
    #[must_use]
    pub(crate) const fn desired(&self) -> &BTreeMap<String, Digest> {
        &self.desired
    }

    /// The names by which tart finds the image now, whether they are wanted or not, in order. Names that are about to
    /// be another image's are left out.
    #[must_use]
    pub fn ready(&self, image: &Digest) -> Vec<String> {
        let installed = self
            .images
            .get(image)
            .is_some_and(|item| item.have == Have::Installed);
        let ours = |(name, sight): &(&String, &Sight)| {
            **sight == Sight::Image(*image)
                && self.desired.get(*name).is_none_or(|named| named == image)
                && !self.is_in_job(name)
        };
        let seen = self.seen.iter().filter(|_| installed);
        seen.filter(ours).map(|(name, _)| name.clone()).collect()
    }

    /// Whether tart finds the image under every wanted name, and would go on to if this process were killed now.
    #[must_use]
    pub fn is_present(&self, image: &Digest) -> bool {
        let ready = self.ready(image);
        let mut names = self.names(image).peekable();
        let item = self.images.get(image);
        names.peek().is_some()
            && names.all(|name| ready.binary_search(name).is_ok())
            && item.is_some_and(|item| self.is_recorded(image, item))
    }

    /// Whether the names that are wanted for an image are written down.
    fn is_recorded(&self, image: &Digest, item: &Item) -> bool {
        let recorded = item.recorded.as_ref();
        recorded.is_some_and(|recorded| self.names(image).eq(recorded))
    }

    /// Whether anybody wants the image.
    #[must_use]
    pub fn is_wanted(&self, image: &Digest) -> bool {
        let item = self.images.get(image);
        item.is_some_and(|item| item.want != Want::Dropped)
    }

    /// Whether the image is installed or about to be: such an image isn't given up.
    #[must_use]
    pub fn is_installed(&self, image: &Digest) -> bool {
        self.images.get(image).is_some_and(|item| {
            item.have == Have::Installed || matches!(item.running, Some(Job::Install(_)))
        })
    }

    /// Whether a job of the image is under way.
    #[must_use]
    pub fn is_running(&self, image: &Digest) -> bool {
        let item = self.images.get(image);
        item.is_some_and(|item| item.running.is_some())
    }

    /// Whether a stage of any image is being made ready.
    #[must_use]
    pub fn is_beginning(&self) -> bool {
        let mut items = self.images.values();
        items.any(|item| matches!(item.running, Some(Job::Begin(_))))
    }

    /// A wanted name that somebody else took, the image that the name names now, and when the name is put back.
    #[must_use]
    pub fn lost(&self, image: &Digest) -> Option<(String, Sight, Moment)> {
        self.names(image).find_map(|name| {
            let loss = self.losses.get(name)?;
            let sight = *self.seen.get(name)?;
            self.is_lacking(name, image)
                .then(|| (name.clone(), sight, loss.again_at))
        })
    }

    /// A wanted name that is in another image's job, and that image.
    #[must_use]
    pub(crate) fn waits_for(&self, image: &Digest) -> Option<(String, Digest)> {
        self.names(image).find_map(|name| {
            let (other, _) = self.job_of(name)?;
            (other != image).then(|| (name.clone(), *other))
        })
    }

    /// The newest order after which the disk was looked at.
    #[must_use]
    pub const fn confirmed(&self) -> u64 {
        self.confirmed
    }

    fn is_whole(&self, image: &Digest) -> bool {
        let item = self.images.get(image);
        item.is_some_and(|item| matches!(item.have, Have::Whole | Have::Installed))
    }

    /// Whether the name is known not to name the image.
    fn is_lacking(&self, name: &str, image: &Digest) -> bool {
        let seen = self.seen.get(name);
        seen.is_some_and(|sight| *sight != Sight::Image(*image))
    }

    fn is_in_job(&self, name: &str) -> bool {
        self.job_of(name).is_some()
    }

    /// The installation that a name is in.
    fn job_of(&self, name: &str) -> Option<(&Digest, &Item)> {
        let mut images = self.images.iter();
        images.find(|(_, item)| match &item.running {
            Some(Job::Install(names)) => names.iter().any(|running| running == name),
            _ => false,
        })
    }

    /// Forgets images that aren't wanted and aren't here.
    fn tidy(&mut self) {
        self.images.retain(|_, item| {
            item.want != Want::Dropped
                || item.running.is_some()
                || !matches!(item.have, Have::Nothing | Have::Gone)
        });
        self.awaited.retain(|image| self.images.contains_key(image));
    }
}

impl Item {
    fn fail(&mut self, now: Moment) {
        self.paused_until = now + self.pause;
        self.pause = doubled(self.pause, RETRY.1, 1);
    }
}

impl Loss {
    fn is_over(&self, now: Moment) -> bool {
        self.at + self.pause + CALM < now
    }
}

#[cfg(test)]
mod tests;
