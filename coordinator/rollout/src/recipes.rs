//! The fleet's own recipes: which recipe of an image the fleet has where the registry has none, and which host is to
//! make one.
//!
//! Hosts that hold an image make equal recipes of it, because the bytes are equal. A recipe needs no trust, so one
//! host's is enough. A host that compares a recipe with its own copy of the image and finds it false refuses it. A
//! recipe is the fleet's while more hosts have it than refuse it. So a lying maker is outvoted by the first host that
//! looks, and one that refuses a true recipe by the next maker, whose recipe is the same. A host that names one recipe
//! after the other is believed about the first one, for hours: so each host can mislead the fleet about an image once.
//!
//! A maker reads the whole image, and the hosts that stage it meanwhile are served more slowly. So a recipe is made
//! when no host stages the image any more. Where the last hosts take long, they aren't waited for.

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
/// A host whose session began anew while it made a recipe, and that makes none any more, isn't asked again before this
/// time has passed: a host whose agent ends with each recipe that it makes leaves time for others.
const ASK_AGAIN_ANEW: Duration = Duration::from_mins(10);
/// No recipe is made for this long after the first host has the image, while others stage it. Staging 60 GB takes nine
/// minutes over lines of 1 Gbit/s, and hosts that began together end together. Who stages for longer waits on a slow
/// line, which a maker elsewhere doesn't slow down.
const WAITS_FOR_STAGING: Duration = Duration::from_mins(10);
/// A host that has named a recipe of an image isn't believed about another one before this time has passed. Each lie
/// costs the hosts that begin a wait, and a true recipe doesn't change.
const SAYS_ANOTHER: Duration = Duration::from_hours(6);

/// What is known of a host that has a session, and on which an image is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// The host.
    pub id: &'a HostId,
    /// The number of its session. Another number: the session began anew.
    pub session: u64,
    /// Where the image stands on the host.
    pub image: At,
    /// Whether the host's version makes recipes.
    pub can_make: bool,
    /// What the host says of the making of the image's recipe.
    pub making: Making,
    /// The bytes that the host has yet to send to others.
    pub backlog_bytes: u64,
    /// The recipe that the host has of the image, which is present there: the image's bytes have proved the recipe.
    pub has: Option<Blob>,
    /// The recipe that the host compared with its copy of the image, and found false.
    pub refuses: Option<Digest>,
}

/// Where an image stands on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// It is present.
    Present,
    /// It comes, or is about to.
    Comes,
    /// It failed, or is gone. The host begins anew later, and then by the recipe that there is.
    Waits,
}

/// What a host says of the making of an image's recipe. A host of an earlier version says nothing: it makes none, and
/// none has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Making {
    /// The host makes the recipe, or does so next.
    pub runs: bool,
    /// How often the host was asked since its agent's start, and made none.
    pub failed: u32,
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
    /// The host that makes it now.
    maker: Option<Maker>,
    /// When each host that was asked may be asked again.
    again: BTreeMap<HostId, Moment>,
    /// Since when the image has been present on a host.
    present: Option<Moment>,
    /// The recipe that each host named first, and when.
    named: BTreeMap<HostKey, (Blob, Moment)>,
}

/// A host that was asked for a recipe.
#[derive(Debug)]
struct Maker {
    id: HostId,
    /// Until when it may make it.
    until: Moment,
    /// Its session when it was asked, or since it said that it makes the recipe.
    session: u64,
    /// What it said of the recipe before it was asked.
    before: Making,
}

/// How the making of a recipe ended.
enum End {
    /// It is made, or the host takes too long, or says that it can't make it.
    Over,
    /// The host is away, or its session began anew and it doesn't say that it makes the recipe: its agent was started
    /// again, or was never told.
    Anew,
}

impl Maker {
    /// Whether the making is over, by what the host says now.
    fn look(&mut self, now: Moment, hosts: &[Host<'_>]) -> Option<End> {
        let Some(host) = hosts.iter().find(|host| *host.id == self.id) else {
            return Some(End::Anew);
        };
        if self.until <= now || host.has.is_some() || !host.makes() {
            return Some(End::Over);
        }
        if host.session != self.session {
            if !host.making.runs {
                return Some(End::Anew);
            }
            // its agent may be another one, which counts from 0
            (self.session, self.before) = (host.session, host.making);
        }
        (host.making.failed != self.before.failed).then_some(End::Over)
    }
}

impl Host<'_> {
    /// Whether the host can make the recipe.
    fn makes(&self) -> bool {
        self.can_make && self.image == At::Present
    }
}

impl Asked {
    /// Looks whether the host that makes the recipe is done with it.
    fn look(&mut self, now: Moment, hosts: &[Host<'_>]) {
        let Some(maker) = &mut self.maker else { return };
        let Some(end) = maker.look(now, hosts) else {
            return;
        };
        if matches!(end, End::Anew) {
            self.again.insert(maker.id.clone(), now + ASK_AGAIN_ANEW);
        }
        self.maker = None;
    }

    /// Whether the staging is far enough for a recipe to be made: it is over, or goes on for long, or so many hosts
    /// wait to begin anew that the recipe helps more hosts than it slows down.
    fn is_time(&mut self, now: Moment, hosts: &[Host<'_>]) -> bool {
        let count = |at: At| hosts.iter().filter(|host| host.image == at).count();
        if count(At::Present) == 0 {
            self.present = None;
            return false;
        }
        let since = *self.present.get_or_insert(now);
        let (come, wait) = (count(At::Comes), count(At::Waits));
        come == 0 || wait > come || now.since(since) >= WAITS_FOR_STAGING
    }

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
        self.images.entry(image).or_default().look(now, hosts);
        let busy: Vec<HostId> = self.makers().cloned().collect();
        let asked = self.images.entry(image).or_default();
        let recipe = believed(before, &asked.believe(now, hosts));
        let is_time = asked.is_time(now, hosts);
        if recipe.is_some() || asked.maker.is_some() {
            return Decision { recipe, ask: None };
        }
        asked.again.retain(|_, again| now < *again);
        let may = |host: &&Host<'_>| {
            let free = host.makes() && host.has.is_none();
            free && !asked.again.contains_key(host.id) && !busy.contains(host.id)
        };
        let free = || hosts.iter().filter(may).filter(|_| busy.len() < MAX_MAKING);
        // an earlier coordinator asked it
        let runs = free().find(|host| host.making.runs);
        // of hosts that are as busy, another one for each image
        let first = |host: &&Host<'_>| (host.backlog_bytes, host.id.key().0 ^ salt(&image));
        let next = free().filter(|_| is_time).min_by_key(first);
        if let Some(host) = runs.or(next) {
            let mib = u32::try_from(raw_bytes >> 20).unwrap_or(u32::MAX);
            asked.again.insert(host.id.clone(), now + ASK_AGAIN);
            asked.maker = Some(Maker {
                id: host.id.clone(),
                until: now + PATIENCE + PATIENCE_PER_MIB.saturating_mul(mib),
                session: host.session,
                before: host.making,
            });
        }
        Decision {
            recipe,
            ask: next.filter(|_| runs.is_none()).map(|host| host.id.clone()),
        }
    }

    /// The image isn't wanted any more, or the registry has a recipe of it.
    pub fn forget(&mut self, image: &Digest) {
        self.images.remove(image);
    }

    /// The hosts that make recipes now.
    fn makers(&self) -> impl Iterator<Item = &HostId> {
        let makers = self.images.values();
        let makers = makers.filter_map(|asked| asked.maker.as_ref());
        makers.map(|maker| &maker.id)
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
    use alloc::{boxed::Box, format, vec, vec::Vec};

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
            session: 1,
            image: At::Present,
            can_make: true,
            making: Making::default(),
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

    /// A host that was asked, and the next one that is asked after the first said this.
    fn after(says: impl FnOnce(&mut Host<'_>)) -> (HostId, Option<HostId>) {
        let mut makers = Makers::default();
        let mut all = hosts(&[("", ""), ("", ""), ("", "")]);
        let first = decide(&mut makers, 0, "i", &all).ask.unwrap();
        says(all.iter_mut().find(|host| *host.id == first).unwrap());
        (first, decide(&mut makers, 2, "i", &all).ask)
    }

    #[test]
    fn a_maker_that_says_that_it_cant_is_followed_at_once_and_one_that_makes_it_isnt() {
        let (first, next) = after(|host| host.making.failed = 1);
        assert!(next.is_some_and(|next| next != first));
        let (_, next) = after(|host| host.making.runs = true);
        assert_eq!(next, None);
        // an earlier version says nothing of it
        assert_eq!(after(|_| ()).1, None);
    }

    #[test]
    fn a_failure_from_before_it_was_asked_says_nothing_of_the_maker() {
        let mut makers = Makers::default();
        let mut all = hosts(&[("", "")]);
        all[0].making.failed = 3;
        assert_eq!(decide(&mut makers, 0, "i", &all).ask, Some(id(0)));
        assert_eq!(decide(&mut makers, 2, "i", &all), Decision::default());
        all[0].making.failed = 4;
        let asked = |makers: &mut Makers, seconds| decide(makers, seconds, "i", &all).ask;
        let hours = 6 * 3_600;
        assert_eq!(asked(&mut makers, 4), None);
        assert_eq!(asked(&mut makers, hours - 1), None);
        assert_eq!(asked(&mut makers, hours), Some(id(0)));
    }

    #[test]
    fn a_session_that_begins_anew_ends_the_making_unless_the_host_still_makes_it() {
        let (first, next) = after(|host| host.session = 2);
        assert!(next.is_some_and(|next| next != first));
        let still = |host: &mut Host<'_>| {
            (host.session, host.making.runs) = (2, true);
        };
        assert_eq!(after(still).1, None);
        // its agent counts from 0, and the host is alone
        let mut makers = Makers::default();
        let mut all = hosts(&[("", "")]);
        all[0].making.failed = 3;
        assert_eq!(decide(&mut makers, 0, "i", &all).ask, Some(id(0)));
        (all[0].session, all[0].making) = (2, Making::default());
        for (seconds, asked) in [(2, None), (601, None), (602, Some(id(0)))] {
            assert_eq!(decide(&mut makers, seconds, "i", &all).ask, asked);
        }
        // the same where it is away for longer than a look
        assert_eq!(decide(&mut makers, 604, "i", &[]).ask, None);
        all[0].session = 3;
        for (seconds, asked) in [(606, None), (1_203, None), (1_204, Some(id(0)))] {
            assert_eq!(decide(&mut makers, seconds, "i", &all).ask, asked);
        }
    }

    #[test]
    fn a_host_that_makes_it_for_an_earlier_coordinator_goes_on_and_not_for_ever() {
        let mut makers = Makers::default();
        let mut all = hosts(&[("", ""), ("", "")]);
        all[0].making.runs = true;
        assert_eq!(decide(&mut makers, 0, "i", &all), Decision::default());
        // it makes one at a time
        let other = hosts(&[("", "")]);
        assert_eq!(decide(&mut makers, 0, "j", &other).ask, None);
        assert_eq!(decide(&mut makers, 351, "i", &all).ask, None);
        assert_eq!(decide(&mut makers, 352, "i", &all).ask, Some(id(1)));
    }

    fn standing(images: &[At]) -> Vec<Host<'static>> {
        let mut all = hosts(&vec![("", ""); images.len()]);
        for (host, image) in all.iter_mut().zip(images) {
            host.image = *image;
        }
        all
    }

    #[test]
    fn a_recipe_is_made_when_the_staging_is_over_or_goes_on_for_long() {
        use At::{Comes, Present, Waits};
        let mut makers = Makers::default();
        let mut asked = |seconds, images: &[At]| {
            decide(&mut makers, seconds, "i", &standing(images))
                .ask
                .is_some()
        };
        assert!(!asked(0, &[Comes, Comes, Comes]));
        assert!(!asked(1_000, &[Present, Comes, Comes]));
        assert!(!asked(1_599, &[Present, Present, Comes]));
        // the first one lost it, and has it again
        assert!(!asked(1_599, &[Waits, Comes, Comes]));
        assert!(!asked(1_600, &[Present, Comes, Comes]));
        assert!(!asked(2_199, &[Present, Comes, Comes]));
        assert!(asked(2_200, &[Present, Comes, Comes]));
        let at_once = |images: &[At]| {
            let all = standing(images);
            decide(&mut Makers::default(), 0, "i", &all).ask.is_some()
        };
        assert!(at_once(&[Present, Present]));
        assert!(at_once(&[Present, Waits]), "it begins anew by the recipe");
        assert!(!at_once(&[Present, Waits, Comes]));
        assert!(at_once(&[Present, Waits, Waits, Comes]));
        assert!(!at_once(&[Waits, Waits]), "nobody has it");
    }
}
