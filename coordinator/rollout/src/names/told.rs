//! What one host was told of names, and what it has confirmed. Which names are wanted is decided in `claims`.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
};
use core::time::Duration;

use proto::{Digest, Moment};

/// For a host that repeats no numbers: how long after an order the host must have looked at its disk to be believed
/// about the order's names. Such agents look every 5 s, and say how long ago they looked.
pub const UNCONFIRMED_AFTER: Duration = Duration::from_secs(5);

/// Names that are no longer wanted are remembered only while there are at most this many names in all.
const MAX_NAMES: usize = 4_096;

/// What one host was told of names, over all its sessions.
#[derive(Clone, Debug, Default)]
pub struct Told {
    names: BTreeMap<String, Name>,
    /// The number of the newest order of this session.
    sent: u64,
    /// The newest number that the host repeated in this session.
    heard: u64,
    /// Whether that order said that nothing else is wanted on the host.
    whole: bool,
    /// Whether the host repeats numbers at all.
    confirms: bool,
    /// When the host last looked at its disk, by its own word.
    looked_at: Option<Moment>,
}

/// A reference, and the image that it shall name on the host.
#[derive(Clone, Copy, Debug)]
struct Name {
    image: Digest,
    /// False where the name was wanted before and isn't now. If the name comes back with another image, that is a move.
    wanted: bool,
    /// The newest ask for the name.
    asked: Order,
    /// The order that moved the name from another image to this one, until the host has confirmed the move.
    moved: Option<Order>,
}

#[derive(Clone, Copy, Debug)]
struct Order {
    number: u64,
    at: Moment,
}

impl Told {
    /// A session begins. `confirms` says whether the host repeats numbers.
    pub const fn connected(&mut self, confirms: bool) {
        self.sent = 0;
        self.heard = 0;
        self.confirms = confirms;
    }

    /// Whether this host repeats numbers.
    #[must_use]
    pub const fn confirms(&self) -> bool {
        self.confirms
    }

    /// Sets the names that are wanted on the host from now on: for each its image, and the number of the ask for it.
    /// `number` is the order's number, larger than all before. `whole` says that nothing else is wanted on the host.
    /// Returns whether the host must be told, by an order with that number.
    pub fn tell(
        &mut self,
        now: Moment,
        number: u64,
        whole: bool,
        names: &BTreeMap<String, (Digest, u64)>,
    ) -> bool {
        let mut news = self.sent == 0 || self.whole != whole;
        self.whole = whole;
        for (reference, name) in &mut self.names {
            if name.wanted && !names.contains_key(reference) {
                name.wanted = false;
                news = true;
            }
        }
        for (reference, (image, asked)) in names {
            let asked = Order {
                number: *asked,
                at: now,
            };
            let Some(name) = self.names.get_mut(reference) else {
                let name = Name {
                    image: *image,
                    wanted: true,
                    asked,
                    moved: None,
                };
                self.names.insert(reference.clone(), name);
                news = true;
                continue;
            };
            if name.image != *image {
                name.moved = Some(Order { number, at: now });
            }
            if name.image != *image || !name.wanted || name.asked.number != asked.number {
                (name.image, name.wanted, name.asked) = (*image, true, asked);
                news = true;
            }
        }
        if self.names.len() > MAX_NAMES {
            self.names.retain(|_, name| name.wanted);
        }
        if news {
            self.sent = number;
        }
        news
    }

    /// Takes a report of the host: the number that it repeats (0 for none), and when it last looked at its disk, if
    /// known.
    pub fn heard(&mut self, number: u64, looked_at: Option<Moment>) {
        if number <= self.sent {
            self.heard = self.heard.max(number);
        }
        self.looked_at = looked_at.or(self.looked_at);
        let (heard, confirms, looked_at) = (self.heard, self.confirms, self.looked_at);
        for name in self.names.values_mut() {
            let is_over = |moved: &mut Order| moved.is_confirmed(confirms, heard, looked_at);
            name.moved.take_if(is_over);
        }
    }

    /// The references that shall name this image on the host.
    pub fn references<'a>(&'a self, image: &'a Digest) -> impl Iterator<Item = &'a String> {
        let names = self.names.iter();
        names
            .filter(move |(_, name)| name.wanted && name.image == *image)
            .map(|(reference, _)| reference)
    }

    /// Whether the host's word counts that this reference names this image. It counts if the host was told of no other
    /// image for the reference since.
    #[must_use]
    pub fn counts(&self, reference: &str, image: &Digest) -> bool {
        match self.names.get(reference) {
            None => true,
            Some(name) if name.image != *image => !name.wanted,
            Some(name) => name.moved.is_none(),
        }
    }

    /// Whether the host's latest word about this image's names is younger than the newest ask for each of them.
    #[must_use]
    pub(crate) fn is_confirmed(&self, image: &Digest) -> bool {
        let mut names = self.names.values();
        names.all(|name| {
            let ours = name.wanted && name.image == *image;
            !ours
                || name
                    .asked
                    .is_confirmed(self.confirms, self.heard, self.looked_at)
        })
    }

    /// Whether the host holds this image under each name that is wanted there, by a word that counts. `ready` is the
    /// references under which the host says that tart finds the image.
    #[must_use]
    pub fn is_present(&self, image: &Digest, ready: Option<&BTreeSet<String>>) -> bool {
        let holds = |reference| ready.is_some_and(|ready| ready.contains(reference));
        self.references(image).next().is_some()
            && self.references(image).all(holds)
            && self.is_confirmed(image)
    }
}

impl Order {
    fn is_confirmed(&self, confirms: bool, heard: u64, looked_at: Option<Moment>) -> bool {
        if confirms {
            heard >= self.number
        } else {
            looked_at.is_some_and(|at| at >= self.at + UNCONFIRMED_AFTER)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{string::ToString, vec::Vec};

    use super::*;

    fn second(at: u64) -> Moment {
        Moment::START + Duration::from_secs(at)
    }

    fn names(names: &[(&str, Digest, u64)]) -> BTreeMap<String, (Digest, u64)> {
        let names = names.iter();
        names
            .map(|(name, image, asked)| (name.to_string(), (*image, *asked)))
            .collect()
    }

    fn ready(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn images() -> (Digest, Digest) {
        (Digest::of(b"a"), Digest::of(b"b"))
    }

    #[test]
    fn a_word_from_before_the_newest_ask_is_no_presence() {
        let (a, b) = images();
        let mut told = Told::default();
        told.connected(true);
        let latest = ready(&["latest"]);
        assert!(told.tell(second(1), 11, true, &names(&[("latest", a, 10)])));
        assert!(!told.is_present(&a, Some(&latest)), "not heard yet");
        told.heard(11, None);
        assert!(told.is_present(&a, Some(&latest)));
        assert!(!told.is_present(&a, Some(&ready(&["other"]))));
        assert!(!told.is_present(&a, None));
        assert!(
            !told.tell(second(2), 12, true, &names(&[("latest", a, 10)])),
            "no news"
        );
        // the name moves away and back: the host still says that it names the image
        assert!(told.tell(second(3), 21, true, &names(&[("latest", b, 20)])));
        assert!(!told.counts("latest", &a));
        assert!(told.tell(second(3), 31, true, &names(&[("latest", a, 30)])));
        assert!(!told.is_present(&a, Some(&latest)) && !told.counts("latest", &a));
        told.heard(21, None);
        assert!(!told.is_present(&a, Some(&latest)) && !told.counts("latest", &a));
        told.heard(31, None);
        assert!(told.is_present(&a, Some(&latest)) && told.counts("latest", &a));
        // asked again, and nothing moved: a waiting caller needs a fresh word, and the gate uses the last one
        assert!(told.tell(second(4), 41, true, &names(&[("latest", a, 40)])));
        assert!(!told.is_present(&a, Some(&latest)) && told.counts("latest", &a));
        // a number that wasn't sent confirms nothing
        told.heard(99, None);
        assert!(!told.is_present(&a, Some(&latest)));
    }

    #[test]
    fn a_new_session_confirms_anew_and_what_was_confirmed_still_counts_for_the_gate() {
        let (a, b) = images();
        let mut told = Told::default();
        told.connected(true);
        told.tell(second(1), 11, true, &names(&[("latest", b, 10)]));
        told.tell(second(2), 21, true, &names(&[("latest", a, 20)]));
        told.heard(21, None);
        told.connected(true);
        let latest = ready(&["latest"]);
        assert!(told.counts("latest", &a) && !told.is_present(&a, Some(&latest)));
        assert!(
            told.tell(second(3), 22, true, &names(&[("latest", a, 20)])),
            "a new session"
        );
        told.heard(22, None);
        assert!(told.is_present(&a, Some(&latest)));
        // the name moved while the host was away
        told.tell(second(4), 31, true, &names(&[("latest", b, 30)]));
        told.connected(true);
        assert!(!told.counts("latest", &b) && !told.counts("latest", &a));
    }

    #[test]
    fn a_host_that_repeats_no_numbers_is_believed_after_its_next_look() {
        let (a, b) = images();
        let mut told = Told::default();
        told.connected(false);
        told.tell(second(1), 11, true, &names(&[("latest", b, 10)]));
        told.tell(second(10), 21, true, &names(&[("latest", a, 20)]));
        let latest = ready(&["latest"]);
        for (looked_at, counts) in [(9, false), (14, false), (15, true)] {
            told.heard(0, Some(second(looked_at)));
            assert_eq!(told.is_present(&a, Some(&latest)), counts, "{looked_at}");
            assert_eq!(told.counts("latest", &a), counts, "{looked_at}");
        }
    }

    #[test]
    fn a_name_that_is_not_wanted_any_more_is_left_out_and_its_word_stands() {
        let (a, b) = images();
        let mut told = Told::default();
        told.connected(true);
        told.tell(second(1), 11, true, &names(&[("v1", a, 9), ("v2", a, 10)]));
        told.heard(11, None);
        assert!(told.tell(second(2), 12, true, &names(&[("v2", a, 10)])));
        assert_eq!(told.references(&a).collect::<Vec<_>>(), ["v2"]);
        told.heard(12, None);
        assert!(told.is_present(&a, Some(&ready(&["v2"]))));
        assert!(told.counts("v1", &a), "what is present stays");
        // the name comes back to the same image: nothing moved
        told.tell(second(3), 14, true, &names(&[("v1", a, 13), ("v2", a, 10)]));
        assert!(told.counts("v1", &a));
        // the name comes back to another image: that is a move
        told.tell(second(4), 15, true, &names(&[("v2", a, 10)]));
        told.tell(second(5), 17, true, &names(&[("v1", b, 16), ("v2", a, 10)]));
        assert!(!told.counts("v1", &b) && !told.counts("v1", &a) && told.counts("v2", &a));
        // a name that the host was never told counts by the host's own word
        assert!(told.counts("v3", &b));
        told.heard(17, None);
        assert!(told.is_present(&b, Some(&ready(&["v1"]))));
        let never = Digest::of(b"never told of");
        assert!(!told.is_present(&never, Some(&ready(&["v1"]))));
    }

    #[test]
    fn names_that_are_over_are_not_remembered_without_end() {
        let (a, _) = images();
        let mut told = Told::default();
        for round in 0..3 * u64::try_from(MAX_NAMES).unwrap() {
            let name = round.to_string();
            told.tell(second(1), round + 1, true, &names(&[(&name, a, round)]));
            assert!(told.names.len() <= MAX_NAMES);
        }
    }
}
