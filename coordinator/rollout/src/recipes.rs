//! The fleet's own recipes: which recipe of an image the fleet has where the registry has none, and which host is to
//! make one.
//!
//! Hosts that hold an image make equal recipes of it, because the bytes are equal. A recipe needs no trust, so one
//! host's is enough. A host that compares a recipe with its own copy of the image and finds it false refuses it. A
//! recipe is the fleet's while more hosts have it than refuse it. So a lying maker is outvoted by the first host that
//! looks, and one that refuses a true recipe by the next maker, whose recipe is the same. A host that names one recipe
//! after the other is believed about the first one, for hours: so each host can mislead the fleet about an image once.

use alloc::{collections::BTreeMap, vec::Vec};
use core::time::Duration;

use proto::{Digest, HostId, HostKey, Moment, image::Blob};

/// The recipes that are made at one time. Each costs a host one pass over an image, and nobody waits for it.
pub const MAX_MAKING: usize = 4;
/// The time that a maker gets for an image of any size, and for each MiB of its raw bytes beside that. Hosts read
/// faster than 20 MB/s, also at low priority.
const PATIENCE: Duration = Duration::from_mins(5);
const PATIENCE_PER_MIB: Duration = Duration::from_millis(50);
/// A host that was asked for an image's recipe and made none isn't asked again before this time has passed.
const ASK_AGAIN: Duration = Duration::from_hours(6);
/// A host that has named a recipe of an image isn't believed about another one before this time has passed. Each lie
/// costs the hosts that begin a wait, and a true recipe doesn't change.
const SAYS_ANOTHER: Duration = Duration::from_hours(6);

/// What is known of a host that has a session, and on which an image is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// The host.
    pub id: &'a HostId,
    /// Whether the image is present there, and the host's version makes recipes.
    pub can_make: bool,
    /// The bytes that the host has yet to send to others.
    pub backlog_bytes: u64,
    /// The recipe that the host has of the image, which is present there: the image's bytes have proved the recipe.
    pub has: Option<Blob>,
    /// The recipe that the host compared with its copy of the image, and found false.
    pub refuses: Option<Digest>,
}

/// What follows for an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The recipe that hosts are to get from each other. `None`: no host that has a session has one.
    pub recipe: Option<Blob>,
    /// The host that is to make one.
    pub ask: Option<HostId>,
}

/// Who makes recipes.
#[derive(Debug, Default)]
pub struct Makers {
    images: BTreeMap<Digest, Asked>,
}

/// Who was asked for the recipe of an image.
#[derive(Debug, Default)]
struct Asked {
    /// The host that makes it now, and until when it may.
    making: Option<(HostId, Moment)>,
    /// When each host was asked.
    at: BTreeMap<HostId, Moment>,
    /// The recipe that each host named first, and when.
    named: BTreeMap<HostKey, (Blob, Moment)>,
}

impl Asked {
    /// The hosts, without what those say that have named another recipe before.
    fn believe<'a>(&mut self, now: Moment, hosts: &[Host<'a>]) -> Vec<Host<'a>> {
        self.named
            .retain(|_, (_, at)| now.since(*at) < SAYS_ANOTHER);
        let believe = |host: &Host<'a>| {
            let has = host.has.filter(|of| {
                let named = self.named.entry(host.id.key());
                named.or_insert((*of, now)).0 == *of
            });
            Host { has, ..*host }
        };
        hosts.iter().map(believe).collect()
    }
}

impl Makers {
    /// Decides about an image that has no recipe from the registry. `before` is the fleet's recipe until now, which
    /// stays where it is as good as another. `raw_bytes` is the image's size.
    pub fn decide(
        &mut self,
        now: Moment,
        (image, raw_bytes): (Digest, u64),
        before: Option<Blob>,
        hosts: &[Host<'_>],
    ) -> Decision {
        let busy: Vec<HostId> = self.making().cloned().collect();
        let asked = self.images.entry(image).or_default();
        let recipe = believed(before, &asked.believe(now, hosts));
        let is_over = |(maker, until): &mut (HostId, Moment)| {
            let mut here = hosts.iter();
            let here = here.find(|host| *host.id == *maker && host.can_make);
            *until <= now || here.is_none_or(|host| host.has.is_some())
        };
        let ended = asked.making.take_if(is_over).is_some();
        if recipe.is_some() || asked.making.is_some() {
            return Decision { recipe, ask: None };
        }
        asked.at.retain(|_, at| now.since(*at) < ASK_AGAIN);
        let running = busy.len() - usize::from(ended);
        let free = hosts.iter().filter(|host| {
            let may = host.can_make && host.has.is_none();
            may && !asked.at.contains_key(host.id) && !busy.contains(host.id)
        });
        // of hosts that are as busy, another one for each image
        let first = |host: &&Host<'_>| (host.backlog_bytes, host.id.key().0 ^ salt(&image));
        let ask = match running < MAX_MAKING {
            true => free.min_by_key(first).map(|host| host.id.clone()),
            false => None,
        };
        if let Some(host) = &ask {
            let mib = u32::try_from(raw_bytes >> 20).unwrap_or(u32::MAX);
            let patience = PATIENCE + PATIENCE_PER_MIB.saturating_mul(mib);
            asked.making = Some((host.clone(), now + patience));
            asked.at.insert(host.clone(), now);
        }
        Decision { recipe, ask }
    }

    /// The image isn't wanted any more, or the registry has a recipe of it.
    pub fn forget(&mut self, image: &Digest) {
        self.images.remove(image);
    }

    /// The hosts that make recipes now.
    fn making(&self) -> impl Iterator<Item = &HostId> {
        let making = self
            .images
            .values()
            .filter_map(|asked| asked.making.as_ref());
        making.map(|(host, _)| host)
    }
}

/// The recipe that more hosts have than refuse.
fn believed(before: Option<Blob>, hosts: &[Host<'_>]) -> Option<Blob> {
    let mut votes: BTreeMap<(Digest, u64), (u32, u32)> = BTreeMap::new();
    for has in hosts.iter().filter_map(|host| host.has) {
        votes.entry((has.digest, has.size)).or_default().0 += 1;
    }
    for refused in hosts.iter().filter_map(|host| host.refuses) {
        let named = votes
            .iter_mut()
            .filter(|((digest, _), _)| *digest == refused);
        named.for_each(|(_, votes)| votes.1 += 1);
    }
    let votes = votes.into_iter().filter(|(_, (has, refuse))| has > refuse);
    let best = votes.max_by_key(|((digest, size), (has, refuse))| {
        let stays = before
            == Some(Blob {
                digest: *digest,
                size: *size,
            });
        (has - refuse, stays, *digest)
    });
    best.map(|((digest, size), _)| Blob { digest, size })
}

/// A number of an image, so that not the same host is the first for each.
fn salt(image: &Digest) -> u64 {
    let first = image.as_bytes().first_chunk();
    first.map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use alloc::{boxed::Box, format, vec::Vec};

    use super::*;

    fn id(number: usize) -> HostId {
        format!("mac-{number}").parse().unwrap()
    }

    fn recipe(name: &str) -> Blob {
        Blob {
            digest: Digest::of(name.as_bytes()),
            size: 100,
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment::START + Duration::from_secs(seconds)
    }

    /// Hosts that hold the image; `has` and `refuses` name recipes, and nothing is named by "".
    fn hosts(said: &[(&str, &str)]) -> Vec<Host<'static>> {
        let named = |name: &str| (!name.is_empty()).then(|| recipe(name));
        let hosts = said.iter().enumerate();
        let hosts = hosts.map(|(number, (has, refuses))| Host {
            id: Box::leak(Box::new(id(number))),
            can_make: true,
            backlog_bytes: 0,
            has: named(has),
            refuses: named(refuses).map(|of| of.digest),
        });
        hosts.collect()
    }

    fn decide(makers: &mut Makers, seconds: u64, image: &str, hosts: &[Host<'_>]) -> Decision {
        let image = (Digest::of(image.as_bytes()), 1 << 30);
        makers.decide(at(seconds), image, None, hosts)
    }

    #[test]
    fn one_host_is_asked_and_the_next_when_it_leaves_or_takes_too_long() {
        let mut makers = Makers::default();
        let mut all = hosts(&[("", ""), ("", ""), ("", "")]);
        all[0].can_make = false;
        let first = decide(&mut makers, 0, "i", &all).ask.unwrap();
        assert_ne!(first, id(0));
        assert_eq!(decide(&mut makers, 1, "i", &all), Decision::default());
        // 5 minutes, and 51 s for a GiB
        assert_eq!(decide(&mut makers, 351, "i", &all).ask, None);
        let second = decide(&mut makers, 352, "i", &all).ask.unwrap();
        assert_ne!(first, second);
        let left: Vec<Host<'_>> = all.iter().filter(|of| *of.id != second).copied().collect();
        // nobody else is there who wasn't asked
        assert_eq!(decide(&mut makers, 353, "i", &left).ask, None);
        let later = 6 * 3_600;
        assert_eq!(decide(&mut makers, later, "i", &left).ask, Some(first));
    }

    #[test]
    fn a_host_that_has_less_to_send_comes_first_and_makes_one_recipe_at_a_time() {
        let mut makers = Makers::default();
        let mut all = hosts(&[("", ""), ("", "")]);
        all[0].backlog_bytes = 1;
        assert_eq!(decide(&mut makers, 0, "i", &all).ask, Some(id(1)));
        assert_eq!(decide(&mut makers, 0, "j", &all).ask, Some(id(0)));
        assert_eq!(decide(&mut makers, 0, "k", &all).ask, None);
        makers.forget(&Digest::of(b"i"));
        assert_eq!(decide(&mut makers, 0, "k", &all).ask, Some(id(1)));
    }

    #[test]
    fn so_many_recipes_are_made_at_one_time_and_no_more() {
        let mut makers = Makers::default();
        let all = hosts(&[("", ""); MAX_MAKING + 1]);
        let asked = (0..=MAX_MAKING).map(|image| {
            let image = format!("{image}");
            decide(&mut makers, 0, &image, &all).ask.is_some()
        });
        let asked: Vec<bool> = asked.collect();
        let fits = asked.iter().filter(|asked| **asked).count();
        assert_eq!((fits, asked[MAX_MAKING]), (MAX_MAKING, false));
    }

    #[test]
    fn a_recipe_is_the_fleets_while_more_hosts_have_it_than_refuse_it() {
        let says = |said: &[(&str, &str)]| decide(&mut Makers::default(), 0, "i", &hosts(said));
        let of = |name| Decision {
            recipe: Some(recipe(name)),
            ask: None,
        };
        assert_eq!(says(&[("r", ""), ("", "")]), of("r"));
        assert_eq!(says(&[("r", ""), ("r", "r"), ("", "")]), of("r"));
        // whoever refuses it may make another
        let refused = says(&[("lie", ""), ("", "lie")]);
        assert_eq!((refused.recipe, refused.ask), (None, Some(id(1))));
        assert_eq!(says(&[("lie", ""), ("r", "lie")]), of("r"));
        // a true one that a liar refuses is made again
        let refused = says(&[("r", ""), ("", "r"), ("", "")]);
        assert_eq!(refused.recipe, None);
        assert_eq!(says(&[("r", ""), ("", "r"), ("r", "")]), of("r"));
    }

    #[test]
    fn a_host_that_names_one_recipe_after_the_other_is_believed_about_the_first() {
        let mut makers = Makers::default();
        let mut says =
            |seconds, said: &[(&str, &str)]| decide(&mut makers, seconds, "i", &hosts(said)).recipe;
        assert_eq!(says(0, &[("lie", ""), ("", "")]), Some(recipe("lie")));
        assert_eq!(says(2, &[("lie", ""), ("", "lie")]), None);
        for (at, lie) in [(4, "lie 1"), (6, "lie 2")] {
            assert_eq!(says(at, &[(lie, ""), ("", "lie")]), None);
        }
        assert_eq!(says(8, &[("lie 3", ""), ("r", "lie")]), Some(recipe("r")));
        // the first one is still its word, also when it was silent between
        assert_eq!(says(10, &[("", ""), ("", "")]), None);
        assert_eq!(says(12, &[("lie", ""), ("", "")]), Some(recipe("lie")));
        let hours = 6 * 3_600;
        let later = says(hours, &[("another", ""), ("", "")]);
        assert_eq!(later, Some(recipe("another")));
    }

    #[test]
    fn the_recipe_before_stays_where_another_is_no_better() {
        let mut makers = Makers::default();
        let image = (Digest::of(b"i"), 1 << 20);
        for before in ["r", "s"].map(recipe) {
            let all = hosts(&[("r", ""), ("s", "")]);
            let decided = makers.decide(at(0), image, Some(before), &all);
            assert_eq!(decided.recipe, Some(before));
            let all = hosts(&[("r", ""), ("s", ""), ("t", ""), ("t", "")]);
            let decided = makers.decide(at(0), image, Some(before), &all);
            assert_eq!(decided.recipe, Some(recipe("t")));
        }
    }
}
