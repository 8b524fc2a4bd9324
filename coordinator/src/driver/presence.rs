//! What hosts hold, verified and ready to use, by their own word, and which names each host was told.
//!
//! The gate needs this by exact reference, with the time at which the host last looked at its disk. A host's word about
//! a name counts only where the word is younger than the last order about that name: the host may have renamed the
//! image since it was told otherwise.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{Digest, HostId, Moment, limits::MAX_IMAGES, message, reference::MAX_REFERENCE_BYTES};
use rollout::{
    names::Told,
    presence::{Held, Holdings, MAX_AGE},
};
use tokio::sync::watch;

use super::order::order;

/// When only ages change, they are published this often. A change of what is held is published at once.
const PUBLISH_AGES: Duration = Duration::from_secs(1);

/// The most references of one image that are kept from a host's report; more than may be wanted.
const MAX_READY_REFERENCES: usize = 256;

/// What one host holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPresence {
    /// The images that are ready on the host, by digest, with the references under which they are ready.
    pub(crate) holdings: Arc<Holdings>,
    /// When the host last looked at its disk.
    pub(crate) checked_at: Instant,
}

/// What each host holds that has reported since the coordinator started.
pub(crate) type PresenceView = BTreeMap<HostId, HostPresence>;

/// The image that each reference shall name on a host, and the number of the ask that says so.
pub(super) type Names = BTreeMap<String, (Digest, u64)>;

/// A host's own word, and what it was told.
#[derive(Debug, Default)]
struct Word {
    /// All that the host said.
    said: Holdings,
    /// The part of `said` that counts.
    counted: Arc<Holdings>,
    /// When the host last looked at its disk; `None`: never, or longer ago than the machine's clock can tell.
    checked_at: Option<Instant>,
    told: Told,
}

impl Word {
    fn count(&self) -> Holdings {
        let mut counted = Holdings::new();
        for (image, said) in &self.said {
            let names = said.iter();
            let names = names.filter(|reference| self.told.counts(reference, image));
            let names: BTreeSet<String> = names.cloned().collect();
            if !names.is_empty() {
                counted.insert(*image, names);
            }
        }
        counted
    }
}

/// What all hosts hold.
#[derive(Debug)]
pub(super) struct Presence {
    hosts: BTreeMap<HostId, Word>,
    /// Hosts whose names may have changed.
    names_due: BTreeSet<HostId>,
    publish: watch::Sender<Arc<PresenceView>>,
    /// Whether anything that counts has changed since the last publication.
    changed: bool,
    /// Whether any host has reported since the last publication.
    heard: bool,
    due: Moment,
}

impl Presence {
    pub(super) const fn new(publish: watch::Sender<Arc<PresenceView>>) -> Self {
        Self {
            hosts: BTreeMap::new(),
            names_due: BTreeSet::new(),
            publish,
            changed: true,
            heard: false,
            due: Moment::START,
        }
    }

    /// Publishes to another channel from now on.
    #[cfg(test)]
    pub(super) fn publish_to(&mut self, publish: watch::Sender<Arc<PresenceView>>) {
        self.publish = publish;
    }

    /// The host is part of the fleet.
    pub(super) fn joined(&mut self, host: &HostId) {
        self.hosts.entry(host.clone()).or_default();
        self.names_due.insert(host.clone());
    }

    /// The host isn't part of the fleet any more.
    pub(super) fn left(&mut self, host: &HostId) {
        self.hosts.remove(host);
        self.names_due.remove(host);
        self.changed = true;
    }

    /// A session began, so what the host said before doesn't count any more. `confirms`: in its reports, the host
    /// repeats the number of the order about names that it had when it looked at its disk.
    pub(super) fn connected(&mut self, host: &HostId, confirms: bool) {
        let Some(word) = self.hosts.get_mut(host) else {
            return;
        };
        word.said = Holdings::new();
        word.counted = Arc::default();
        word.told.connected(confirms);
        self.changed = true;
        self.names_due.insert(host.clone());
    }

    /// The host reported these images; `full`: it has no others. `names` is the number of the newest order about names
    /// that the host had when it looked at its disk. `wanted` returns the references under which an image is wanted.
    /// `clock` is the same moment as `now`.
    pub(super) fn heard<'a>(
        &mut self,
        (now, clock): (Moment, Instant),
        host: &HostId,
        (images, full): (&[message::ImageState], bool),
        names: u64,
        wanted: impl Fn(&Digest) -> Option<&'a BTreeSet<String>>,
    ) {
        let Some(word) = self.hosts.get_mut(host) else {
            return;
        };
        if full {
            word.said = Holdings::new();
        }
        let (mut age, mut looked) = (Duration::ZERO, false);
        for image in images {
            let Ok(digest) = Digest::try_from(image.manifest.as_slice()) else {
                continue;
            };
            let ready = matches!(
                image.state(),
                message::StageState::Present
                    | message::StageState::Installing
                    | message::StageState::Failed
            );
            if !ready || image.ready_references.is_empty() {
                word.said.remove(&digest);
                continue;
            }
            // where a host's look at its disk hangs, the age grows, however often the host reports
            age = age.max(Duration::from_millis(image.presence_age_ms));
            looked = true;
            let references = ready_references(image, wanted(&digest));
            if word.said.len() < MAX_IMAGES || word.said.contains_key(&digest) {
                word.said.insert(digest, references);
            }
        }
        word.checked_at = clock.checked_sub(age);
        let looked_at = Moment::START + now.since(Moment::START).saturating_sub(age);
        word.told.heard(names, looked.then_some(looked_at));
        self.heard = true;
        self.recount(host);
    }

    /// The names of images on any host may have changed.
    pub(super) fn names_changed(&mut self) {
        self.names_due.extend(self.hosts.keys().cloned());
    }

    /// Hosts whose names may have changed, to be told with [`tell`](Self::tell).
    pub(super) fn take_names_due(&mut self) -> BTreeSet<HostId> {
        std::mem::take(&mut self.names_due)
    }

    /// Makes these the host's names, by the order with this number. `whole` says that nothing else is wanted on the
    /// host. Returns the order, where the host is to be sent it.
    pub(super) fn tell(
        &mut self,
        now: Moment,
        host: &HostId,
        (number, whole): (u64, bool),
        names: &Names,
    ) -> Option<message::Order> {
        let word = self.hosts.get_mut(host)?;
        let news = word.told.tell(now, number, whole, names);
        // an agent of an earlier version doesn't know this order, and takes its names from the orders to stage
        let news = news && word.told.confirms();
        self.recount(host);
        news.then(|| names_order(number, whole, names))
    }

    /// Computes anew which part of the host's word counts. That a reference names an image doesn't count where the host
    /// was told another image for this reference since.
    fn recount(&mut self, host: &HostId) {
        if let Some(word) = self.hosts.get_mut(host) {
            let counted = word.count();
            if *word.counted != counted {
                word.counted = counted.into();
                self.changed = true;
            }
        }
    }

    /// Whether the host has the whole image under every name that is wanted there, by a word that is younger than the
    /// last ask for the image.
    pub(super) fn is_present(&self, host: &HostId, image: &Digest) -> bool {
        let word = self.hosts.get(host);
        word.is_some_and(|word| word.told.is_present(image, word.said.get(image)))
    }

    /// Whether the host's last word says that the image is ready under every name that the host was told, even if that
    /// word is older than the last ask.
    pub(super) fn is_named(&self, host: &HostId, image: &Digest) -> bool {
        self.hosts.get(host).is_some_and(|word| {
            let ready = word.said.get(image);
            let mut names = word.told.references(image);
            names.all(|name| ready.is_some_and(|ready| ready.contains(name)))
        })
    }

    /// The references under which a host has an image, as far as its word counts.
    pub(super) fn names(&self, host: &HostId, image: &Digest) -> Option<&BTreeSet<String>> {
        self.hosts.get(host)?.counted.get(image)
    }

    /// What is known of the image with this digest under `reference` on a host, as far as the host's word counts.
    /// `clock` is now.
    pub(super) fn held(
        &self,
        clock: Instant,
        host: &HostId,
        reference: &str,
        image: &Digest,
    ) -> Held {
        let Some(age) = self.age(clock, host) else {
            return Held::Unheard;
        };
        let names = self.names(host, image);
        match names.is_some_and(|names| names.contains(reference)) {
            true if age <= MAX_AGE => Held::Fresh,
            true => Held::Old(age),
            false => Held::Missing,
        }
    }

    /// How long ago a host last looked at its disk. `None` where it hasn't reported.
    pub(super) fn age(&self, clock: Instant, host: &HostId) -> Option<Duration> {
        let checked_at = self.hosts.get(host)?.checked_at?;
        Some(clock.saturating_duration_since(checked_at))
    }

    /// All that counts of a host's word.
    #[cfg(test)]
    pub(super) fn holdings(&self, host: &HostId) -> &Holdings {
        &self.hosts[host].counted
    }

    /// Publishes what hosts hold, where that has changed or ages are due.
    pub(super) fn show(&mut self, now: Moment) -> bool {
        let changed = self.changed;
        let due = changed || (self.heard && self.due <= now);
        if !due {
            return false;
        }
        self.changed = false;
        self.heard = false;
        self.due = now + PUBLISH_AGES;
        let hosts = self.hosts.iter();
        let view = hosts.filter_map(|(host, word)| {
            let presence = HostPresence {
                holdings: word.counted.clone(),
                checked_at: word.checked_at?,
            };
            Some((host.clone(), presence))
        });
        self.publish.send_replace(Arc::new(view.collect()));
        changed
    }
}

/// The references under which an image is ready, as far as they are kept. Wanted ones come first, because an agent of
/// an earlier version reports all that it ever had, in alphabetical order.
fn ready_references(
    image: &message::ImageState,
    wanted: Option<&BTreeSet<String>>,
) -> BTreeSet<String> {
    let usable = || {
        let said = image.ready_references.iter();
        said.filter(|reference| reference.len() <= MAX_REFERENCE_BYTES)
    };
    let is_wanted = |reference: &&String| wanted.is_some_and(|wanted| wanted.contains(*reference));
    let first = usable().filter(is_wanted);
    let first = first.chain(usable().filter(|reference| !is_wanted(reference)));
    first.take(MAX_READY_REFERENCES).cloned().collect()
}

fn names_order(number: u64, whole: bool, names: &Names) -> message::Order {
    let names = names.iter().map(|(reference, (image, _))| message::Name {
        reference: reference.clone(),
        manifest_digest: image.as_bytes().to_vec(),
    });
    order(message::order::Kind::Names(message::Names {
        number,
        names: names.collect(),
        whole,
    }))
}

#[cfg(test)]
mod tests {
    use message::StageState;

    use super::*;

    const TAG: &str = "r.test/i:latest";

    struct Watched {
        presence: Presence,
        seen: watch::Receiver<Arc<PresenceView>>,
        clock: Instant,
        host: HostId,
    }

    impl Watched {
        fn new() -> Self {
            let (publish, seen) = watch::channel(Arc::default());
            let mut this = Self {
                presence: Presence::new(publish),
                seen,
                clock: Instant::now() + Duration::from_hours(1),
                host: "mini-1".parse().unwrap(),
            };
            this.presence.joined(&this.host);
            this.presence.connected(&this.host, true);
            this.presence.show(at(0));
            this.seen.borrow_and_update();
            this
        }

        fn hears(&mut self, millis: u64, image: &Digest, names: &[&str], number: u64, age_ms: u64) {
            let image = message::ImageState {
                manifest: image.as_bytes().to_vec(),
                state: StageState::Present.into(),
                ready_references: names.iter().map(ToString::to_string).collect(),
                presence_age_ms: age_ms,
                ..message::ImageState::default()
            };
            let clock = self.clock + Duration::from_millis(millis);
            let images = ([image], false);
            let images = (&images.0[..], images.1);
            let host = self.host.clone();
            self.presence
                .heard((at(millis), clock), &host, images, number, |_| None);
        }

        fn tells(&mut self, number: u64, image: &Digest) -> Option<message::Order> {
            let names = Names::from([(TAG.to_owned(), (*image, number))]);
            let host = self.host.clone();
            self.presence.tell(at(0), &host, (number, true), &names)
        }

        fn published(&mut self) -> Option<HostPresence> {
            let changed = self.seen.has_changed().unwrap();
            changed.then(|| self.seen.borrow_and_update()[&self.host].clone())
        }
    }

    fn at(millis: u64) -> Moment {
        Moment::START + Duration::from_millis(millis)
    }

    fn image(seed: &str) -> Digest {
        Digest::of(seed.as_bytes())
    }

    #[test]
    fn a_name_counts_until_the_host_is_told_that_it_names_another_image() {
        let mut watched = Watched::new();
        let (a, b) = (image("a"), image("b"));
        assert!(watched.tells(1, &a).is_some());
        watched.hears(10, &a, &[TAG], 1, 0);
        let host = watched.host.clone();
        assert!(watched.presence.is_present(&host, &a));
        assert!(watched.presence.names(&host, &a).unwrap().contains(TAG));
        watched.tells(2, &b);
        assert!(!watched.presence.is_present(&host, &a));
        assert_eq!(watched.presence.names(&host, &a), None);
    }

    #[test]
    fn a_word_from_before_the_newest_ask_is_named_and_not_present() {
        let mut watched = Watched::new();
        let a = image("a");
        watched.tells(1, &a);
        watched.hears(10, &a, &[TAG], 0, 0);
        let host = watched.host.clone();
        assert!(watched.presence.is_named(&host, &a));
        assert!(!watched.presence.is_present(&host, &a));
        watched.hears(20, &a, &[TAG], 1, 0);
        assert!(watched.presence.is_present(&host, &a));
        watched.hears(30, &a, &["r.test/other:1"], 1, 0);
        assert!(!watched.presence.is_named(&host, &a) && !watched.presence.is_present(&host, &a));
    }

    #[test]
    fn a_change_is_published_at_once_and_ages_alone_once_a_second() {
        let mut watched = Watched::new();
        let a = image("a");
        watched.tells(1, &a);
        watched.hears(10, &a, &[TAG], 1, 0);
        watched.presence.show(at(10));
        let first = watched.published().unwrap();
        assert_eq!(first.holdings.len(), 1);
        watched.hears(500, &a, &[TAG], 1, 0);
        watched.presence.show(at(1_009));
        assert_eq!(watched.published(), None);
        watched.presence.show(at(1_010));
        let aged = watched.published().unwrap();
        assert_eq!(
            aged.checked_at - first.checked_at,
            Duration::from_millis(490)
        );
        // nothing is published when no host has reported
        watched.presence.show(at(9_000));
        assert_eq!(watched.published(), None);
        watched.hears(9_100, &a, &[], 1, 0);
        watched.presence.show(at(9_100));
        assert!(watched.published().unwrap().holdings.is_empty());
    }

    #[test]
    fn a_host_that_hasnt_looked_for_a_while_is_as_old_as_its_oldest_look() {
        let mut watched = Watched::new();
        watched.hears(5_000, &image("a"), &[TAG], 0, 3_000);
        watched.presence.show(at(5_000));
        let checked_at = watched.published().unwrap().checked_at;
        assert_eq!(checked_at, watched.clock + Duration::from_secs(2));
    }

    #[test]
    fn a_new_session_begins_without_a_word_and_a_host_that_left_is_gone() {
        let mut watched = Watched::new();
        watched.hears(10, &image("a"), &[TAG], 0, 0);
        let host = watched.host.clone();
        assert!(!watched.presence.holdings(&host).is_empty());
        watched.presence.take_names_due();
        watched.presence.connected(&host, true);
        assert!(watched.presence.holdings(&host).is_empty());
        assert_eq!(watched.presence.take_names_due(), [host.clone()].into());
        watched.presence.left(&host);
        watched.presence.names_changed();
        assert!(watched.presence.take_names_due().is_empty());
        watched.presence.show(at(20));
        assert!(watched.seen.borrow_and_update().is_empty());
    }

    #[test]
    fn an_agent_that_doesnt_repeat_numbers_gets_no_order_about_names() {
        let mut watched = Watched::new();
        let host = watched.host.clone();
        watched.presence.connected(&host, false);
        assert_eq!(watched.tells(1, &image("a")), None);
        watched.presence.connected(&host, true);
        assert!(watched.tells(2, &image("a")).is_some());
    }
}
