//! Claims: who wants which image, under which references, and on which hosts. Nothing here is sent to hosts: see
//! `told`.

use alloc::{
    borrow::ToOwned as _,
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};

use proto::{Digest, HostId, Reference};

/// The hosts of a claim. `None` means all hosts, also those that join later.
type Hosts = Option<BTreeSet<HostId>>;

/// The claims of operators and of the cluster, by image.
#[derive(Clone, Debug)]
pub struct Claims {
    images: BTreeMap<Digest, Sides>,
    /// The newest number that was given out.
    number: u64,
}

/// The claims of each side to one image.
#[derive(Clone, Debug, Default)]
struct Sides {
    operators: BTreeMap<String, Claim>,
    cluster: BTreeMap<String, Claim>,
    /// Hosts that keep what they have of the image and get no more for now, by the cluster's wish.
    paused: BTreeSet<HostId>,
}

/// One side's claim to an image under one reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The hosts. `None` means all hosts, also those that join later.
    pub hosts: Option<BTreeSet<HostId>>,
    /// When the claim was last asked for, in Unix milliseconds. This time is kept over restarts: of two claims, the
    /// later one gets the reference.
    pub asked_ms: u64,
    /// The number of the ask. Within one life of the coordinator, later asks have larger numbers.
    pub number: u64,
    /// The reference's place on a host's disk ([`Reference::place`]).
    place: String,
}

/// Decides which of two claims gets a reference: the time of the ask first, then the side (operators win), then the
/// image's digest. A restart changes none of the three.
type Rank = (u64, bool, Digest);

/// The place of a text on a host's disk. Two references with the same place contend for it.
fn place_of(reference: &str) -> String {
    let parsed = reference.parse::<Reference>();
    parsed.map_or_else(|_| reference.to_owned(), |parsed| parsed.place())
}

/// What the cluster wants of one image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The references that shall name the image, and when each was asked for, in Unix milliseconds.
    pub references: BTreeMap<String, u64>,
    /// The hosts. `None` means all hosts.
    pub hosts: Option<BTreeSet<HostId>>,
    /// Hosts that keep what they have of the image, although it isn't wanted there for now.
    pub paused: BTreeSet<HostId>,
}

/// What both sides together want of one image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The references that shall name the image on some host. Empty where other images have all its names: the image is
    /// then wanted nowhere.
    pub references: BTreeSet<String>,
    /// The hosts. `None` means all hosts.
    pub hosts: Option<BTreeSet<HostId>>,
    /// Hosts that keep what they have of the image.
    pub paused: BTreeSet<HostId>,
    /// Hosts that may have what the image holds: every host for which either side asked for the image, whichever image
    /// has the names there. `None` means all hosts.
    pub entitled: Option<BTreeSet<HostId>>,
}

/// A reference under which an image is wanted, and which sides want that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The reference.
    pub reference: String,
    /// Operators asked for it.
    pub operators: bool,
    /// Objects of the cluster want it.
    pub cluster: bool,
}

/// Why operators can't cancel something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAsked {
    /// Nobody wants it.
    Unwanted,
    /// Only objects of the cluster want it.
    ByCluster,
}

impl Claims {
    /// Starts without claims. Numbers begin after `number`, so that a later life of the coordinator gives larger ones.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self {
            images: BTreeMap::new(),
            number,
        }
    }

    /// A number that is larger than all before.
    pub const fn advance(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// The time of an ask that comes now, in Unix milliseconds. It is later than that of every claim so far, even where
    /// the clock was set back.
    #[must_use]
    pub fn asked_now(&self, now_ms: u64) -> u64 {
        let sides = self.images.values();
        let claims = sides.flat_map(|sides| sides.operators.values().chain(sides.cluster.values()));
        let newest = claims.map(|claim| claim.asked_ms).max();
        newest.map_or(now_ms, |newest| now_ms.max(newest.saturating_add(1)))
    }

    /// When this image was first asked for among the claims that stand, in Unix milliseconds.
    #[must_use]
    pub fn first_asked(&self, image: &Digest) -> Option<u64> {
        let sides = self.images.get(image)?;
        let claims = sides.operators.values().chain(sides.cluster.values());
        claims.map(|claim| claim.asked_ms).min()
    }

    /// Operators ask for this image under this reference, at this time, on these hosts and on those where they wanted
    /// it before. Operators' earlier claims of other images to the same place end, however their references are
    /// written. Returns those images. Changes nothing where operators asked for another image at that place later.
    pub fn ask(
        &mut self,
        image: Digest,
        reference: &str,
        hosts: Hosts,
        asked_ms: u64,
    ) -> Vec<Digest> {
        let number = self.advance();
        let place = place_of(reference);
        let mut taken = Vec::new();
        let later = |(other, sides): (&Digest, &Sides)| {
            let mut claims = sides.operators.values();
            *other != image && claims.any(|claim| claim.place == place && claim.asked_ms > asked_ms)
        };
        if self.images.iter().any(later) {
            return taken;
        }
        for (other, sides) in &mut self.images {
            let before = sides.operators.len();
            if *other != image {
                sides.operators.retain(|_, claim| claim.place != place);
            }
            if sides.operators.len() < before {
                taken.push(*other);
            }
        }
        let asked = &mut self.images.entry(image).or_default().operators;
        let hosts = match asked.remove(reference) {
            Some(before) => join(before.hosts, hosts),
            None => hosts,
        };
        let claim = Claim {
            hosts,
            asked_ms,
            number,
            place,
        };
        asked.insert(reference.to_owned(), claim);
        self.tidy();
        taken
    }

    /// Replaces what the cluster wants of an image.
    pub fn place(&mut self, image: Digest, placement: Placement) {
        let number = self.advance();
        let sides = self.images.entry(image).or_default();
        let before = core::mem::take(&mut sides.cluster);
        sides.paused = placement.paused;
        for (reference, asked_ms) in placement.references {
            // a claim that is told again with its old time isn't a new ask
            let known = before.get(&reference);
            let known = known.filter(|claim| claim.asked_ms == asked_ms);
            let claim = Claim {
                hosts: placement.hosts.clone(),
                asked_ms,
                number: known.map_or(number, |claim| claim.number),
                place: place_of(&reference),
            };
            sides.cluster.insert(reference, claim);
        }
        self.tidy();
    }

    /// Ends the cluster's claims to an image.
    pub fn unplace(&mut self, image: &Digest) {
        if let Some(sides) = self.images.get_mut(image) {
            sides.cluster.clear();
            sides.paused.clear();
        }
        self.tidy();
    }

    /// Ends the operators' claims to an image: the one under `reference`, or all. Returns the references of the claims
    /// that ended. The cluster's claims stay.
    ///
    /// # Errors
    /// Where operators have no such claim: whether the cluster has one ([`NotAsked::ByCluster`]) or not
    /// ([`NotAsked::Unwanted`]).
    pub fn cancel(
        &mut self,
        image: &Digest,
        reference: Option<&str>,
    ) -> Result<Vec<String>, NotAsked> {
        let sides = self.images.get_mut(image).ok_or(NotAsked::Unwanted)?;
        let cancelled: Vec<String> = match reference {
            None => core::mem::take(&mut sides.operators).into_keys().collect(),
            Some(reference) => {
                let found = sides.operators.remove_entry(reference);
                found.map(|(reference, _)| reference).into_iter().collect()
            }
        };
        let by_cluster = match reference {
            None => !sides.cluster.is_empty(),
            Some(reference) => sides.cluster.contains_key(reference),
        };
        self.tidy();
        match (cancelled.is_empty(), by_cluster) {
            (false, _) => Ok(cancelled),
            (true, true) => Err(NotAsked::ByCluster),
            (true, false) => Err(NotAsked::Unwanted),
        }
    }

    /// The references under which an image is wanted, and by which sides.
    #[must_use]
    pub fn claimed(&self, image: &Digest) -> Vec<Claimed> {
        let Some(sides) = self.images.get(image) else {
            return Vec::new();
        };
        let references: BTreeSet<&String> =
            sides.operators.keys().chain(sides.cluster.keys()).collect();
        references
            .into_iter()
            .map(|reference| Claimed {
                reference: reference.clone(),
                operators: sides.operators.contains_key(reference),
                cluster: sides.cluster.contains_key(reference),
            })
            .collect()
    }

    /// The operators' claims to an image, by reference; `None` where there are none.
    #[must_use]
    pub fn asked(&self, image: &Digest) -> Option<&BTreeMap<String, Claim>> {
        let sides = self.images.get(image)?;
        (!sides.operators.is_empty()).then_some(&sides.operators)
    }

    /// Whether the cluster wants this image.
    #[must_use]
    pub fn is_placed(&self, image: &Digest) -> bool {
        let sides = self.images.get(image);
        sides.is_some_and(|sides| !sides.cluster.is_empty())
    }

    /// An image that is wanted under this reference: the operators' first, else one of the cluster's.
    #[must_use]
    pub fn find(&self, reference: &str) -> Option<Digest> {
        let of = |side: fn(&Sides) -> &BTreeMap<String, Claim>| {
            let mut images = self.images.iter();
            images.find_map(|(image, sides)| side(sides).contains_key(reference).then_some(*image))
        };
        of(|sides| &sides.operators).or_else(|| of(|sides| &sides.cluster))
    }

    /// What both sides together want of an image; `None` where nobody wants it. `fleet` is the hosts that are known.
    ///
    /// The result leaves out hosts on which later asks gave all of the image's names to other images.
    pub fn wanted<'a>(
        &'a self,
        image: &Digest,
        fleet: impl Iterator<Item = &'a HostId>,
    ) -> Option<Wanted> {
        let sides = self.images.get(image)?;
        let paused = sides.paused.clone();
        let claims = || sides.ranked(*image);
        let asked = claims().map(|(_, claim, _)| claim.hosts.clone());
        let asked = asked.reduce(join)?;
        let entitled = join(asked.clone(), Some(paused.clone()));
        if !claims().any(|(_, claim, rank)| self.rival(claim, rank).is_some()) {
            let references = claims().map(|(reference, ..)| reference.clone()).collect();
            return Some(Wanted {
                references,
                hosts: asked,
                paused,
                entitled,
            });
        }
        let named = claims().flat_map(|(_, claim, _)| claim.hosts.iter().flatten());
        let candidates: BTreeSet<&HostId> = fleet.chain(named).collect();
        let (mut references, mut hosts) = (BTreeSet::new(), BTreeSet::new());
        for host in candidates {
            for (reference, claim, _) in claims() {
                if claim.covers(host) && self.newest(&claim.place, host) == Some(*image) {
                    references.insert(reference.clone());
                    hosts.insert(host.clone());
                }
            }
        }
        Some(Wanted {
            references,
            hosts: Some(hosts),
            paused,
            entitled,
        })
    }

    /// The references that are wanted on this host: the image that each shall name, and the number of its newest ask.
    #[must_use]
    pub fn on(&self, host: &HostId) -> BTreeMap<String, (Digest, u64)> {
        // the winner of each place; a host that is selected counts before one that only keeps what it has
        let mut places: BTreeMap<&str, (bool, Rank)> = BTreeMap::new();
        let mut claims = Vec::new();
        for (image, sides) in &self.images {
            let paused = sides.paused.contains(host);
            for (reference, claim, rank) in sides.ranked(*image) {
                let (_, by_operators, _) = rank;
                let selected = claim.covers(host);
                if selected || paused && !by_operators {
                    let best = places.entry(&claim.place).or_insert((selected, rank));
                    *best = (selected, rank).max(*best);
                    claims.push((reference, claim, *image));
                }
            }
        }
        let mut names = BTreeMap::new();
        for (reference, claim, image) in claims {
            let (_, (_, _, winner)) = places[claim.place.as_str()];
            if winner == image {
                let name = names.entry(reference.clone());
                let (_, number) = name.or_insert((image, claim.number));
                *number = claim.number.max(*number);
            }
        }
        names
    }

    /// The references of this image that a later ask gives to another image on at least one common host, with that
    /// image.
    #[must_use]
    pub fn overruled(&self, image: &Digest) -> Vec<(String, Digest)> {
        let Some(sides) = self.images.get(image) else {
            return Vec::new();
        };
        let claims = sides.ranked(*image);
        claims
            .filter_map(|(reference, claim, rank)| {
                let by = self.rival(claim, rank)?;
                Some((reference.clone(), by))
            })
            .collect()
    }

    /// Another image with a later claim to this claim's place, on a host that both claims cover.
    fn rival(&self, claim: &Claim, rank: Rank) -> Option<Digest> {
        let (_, _, image) = rank;
        let mut others = self.images.iter().filter(|(other, _)| **other != image);
        others.find_map(|(other, sides)| {
            let mut rivals = sides.at(&claim.place, *other);
            rivals
                .any(|(rival, theirs)| theirs > rank && rival.overlaps(claim))
                .then_some(*other)
        })
    }

    /// The image with the latest claim to this place on this host.
    fn newest(&self, place: &str, host: &HostId) -> Option<Digest> {
        let images = self.images.iter();
        let claims = images.flat_map(|(image, sides)| sides.at(place, *image));
        claims
            .filter(|(claim, _)| claim.covers(host))
            .map(|(_, rank)| rank)
            .max()
            .map(|(_, _, image)| image)
    }

    fn tidy(&mut self) {
        self.images
            .retain(|_, sides| !sides.operators.is_empty() || !sides.cluster.is_empty());
    }
}

impl Sides {
    /// All claims to this image, with their ranks.
    fn ranked(&self, image: Digest) -> impl Iterator<Item = (&String, &Claim, Rank)> {
        let sides = [(true, &self.operators), (false, &self.cluster)];
        sides.into_iter().flat_map(move |(operators, claims)| {
            let ranked = move |claim: &Claim| claim.rank(operators, image);
            claims
                .iter()
                .map(move |(reference, claim)| (reference, claim, ranked(claim)))
        })
    }

    /// The claims to this image under references with this place.
    fn at(&self, place: &str, image: Digest) -> impl Iterator<Item = (&Claim, Rank)> {
        let claims = self.ranked(image);
        let claims = claims.filter(move |(_, claim, _)| claim.place == place);
        claims.map(|(_, claim, rank)| (claim, rank))
    }
}

impl Claim {
    const fn rank(&self, operators: bool, image: Digest) -> Rank {
        (self.asked_ms, operators, image)
    }

    fn covers(&self, host: &HostId) -> bool {
        self.hosts.as_ref().is_none_or(|hosts| hosts.contains(host))
    }

    fn overlaps(&self, other: &Self) -> bool {
        match (&self.hosts, &other.hosts) {
            (Some(hosts), Some(others)) => !hosts.is_disjoint(others),
            (Some(hosts), None) | (None, Some(hosts)) => !hosts.is_empty(),
            (None, None) => true,
        }
    }
}

/// The union of two sets of hosts.
fn join(one: Hosts, other: Hosts) -> Hosts {
    let (mut hosts, more) = (one?, other?);
    hosts.extend(more);
    Some(hosts)
}

#[cfg(test)]
mod tests {
    use std::{format, string::ToString as _, vec};

    use proptest::prelude::*;

    use super::*;

    fn image(number: u8) -> Digest {
        Digest::of(&[number])
    }

    fn host(name: &str) -> HostId {
        name.parse().unwrap()
    }

    fn some(names: &[&str]) -> Hosts {
        Some(names.iter().map(|name| host(name)).collect())
    }

    /// An operator asks now.
    fn ask(claims: &mut Claims, image: Digest, reference: &str, hosts: Hosts) -> Vec<Digest> {
        let now = claims.asked_now(0);
        claims.ask(image, reference, hosts, now)
    }

    fn names(claims: &Claims, on: &str) -> Vec<(String, Digest)> {
        let names = claims.on(&host(on)).into_iter();
        names.map(|(name, (image, _))| (name, image)).collect()
    }

    fn wanted(claims: &Claims, number: u8) -> Option<Wanted> {
        let fleet = [host("x"), host("y"), host("z")];
        claims.wanted(&image(number), fleet.iter())
    }

    #[test]
    fn a_reference_names_the_image_that_was_asked_for_last() {
        let mut claims = Claims::new(7);
        let (a, b) = (image(1), image(2));
        assert_eq!(ask(&mut claims, a, "r/i:latest", None), []);
        assert_eq!(ask(&mut claims, a, "r/i:v1", None), []);
        assert_eq!(ask(&mut claims, b, "r/i:latest", None), [a]);
        let expected = [("r/i:latest".to_string(), b), ("r/i:v1".to_string(), a)];
        assert_eq!(names(&claims, "x"), expected);
        assert_eq!(wanted(&claims, 1).unwrap().references.len(), 1);
        // the name moves back, and the image without a name isn't wanted
        assert_eq!(ask(&mut claims, a, "r/i:latest", None), [b]);
        assert_eq!(wanted(&claims, 2), None);
        assert_eq!(wanted(&claims, 1).unwrap().references.len(), 2);
        let number = claims.on(&host("x"))["r/i:latest"].1;
        assert_eq!(ask(&mut claims, a, "r/i:latest", None), []);
        assert!(claims.on(&host("x"))["r/i:latest"].1 > number, "asked anew");
    }

    #[test]
    fn all_hosts_that_anybody_asked_for_may_have_an_image_whoever_has_its_names() {
        let mut claims = Claims::new(7);
        let entitled = |claims: &Claims| wanted(claims, 1).unwrap().entitled;
        ask(&mut claims, image(1), "r/i:v1", some(&["x"]));
        assert_eq!(entitled(&claims), some(&["x"]));
        ask(&mut claims, image(1), "r/i:v2", some(&["y"]));
        assert_eq!(entitled(&claims), some(&["x", "y"]));
        let placement = Placement {
            references: [("r/i:v3".to_string(), 1)].into(),
            hosts: some(&[]),
            paused: [host("z")].into(),
        };
        claims.place(image(1), placement);
        assert_eq!(entitled(&claims), some(&["x", "y", "z"]));
        // an object of the cluster that takes a name on some hosts changes where the image is wanted, but not which
        // hosts may have it
        let other = Placement {
            references: [("r/i:v1".to_string(), u64::MAX)].into(),
            hosts: some(&["x"]),
            ..Placement::default()
        };
        claims.place(image(2), other);
        assert_eq!(entitled(&claims), some(&["x", "y", "z"]));
        // operators that move a tag no longer ask for the image that had it
        ask(&mut claims, image(2), "r/i:v1", some(&["x"]));
        assert_eq!(entitled(&claims), some(&["y", "z"]));
        ask(&mut claims, image(1), "r/i:v4", None);
        assert_eq!(entitled(&claims), None);
    }

    #[test]
    fn a_tag_that_is_spelled_in_another_way_is_the_same_tag() {
        let spellings = [
            "r.test/i",
            "r.test/i:latest",
            "R.test/i:latest",
            "r.test/i:Latest",
        ];
        for first in spellings {
            for second in spellings {
                let mut claims = Claims::new(0);
                let (a, b) = (image(1), image(2));
                ask(&mut claims, a, first, None);
                assert_eq!(ask(&mut claims, b, second, None), [a], "{first} {second}");
                assert_eq!(names(&claims, "x"), [(second.to_string(), b)]);
                let references = [(first.to_string(), u64::MAX)].into();
                let placement = Placement {
                    references,
                    ..Placement::default()
                };
                claims.place(a, placement);
                assert_eq!(names(&claims, "x"), [(first.to_string(), a)]);
                let by = [(second.to_string(), a)];
                assert_eq!(claims.overruled(&b), by, "{first} {second}");
            }
        }
        let mut claims = Claims::new(0);
        for spelling in spellings {
            assert_eq!(ask(&mut claims, image(1), spelling, None), []);
        }
        assert_eq!(
            names(&claims, "x").len(),
            spellings.len(),
            "one image may have all"
        );
        ask(&mut claims, image(2), "r.test/i:other", None);
        assert_eq!(claims.overruled(&image(1)), []);
    }

    #[test]
    fn cancelling_a_reference_leaves_the_others_and_the_clusters() {
        let mut claims = Claims::new(0);
        let a = image(1);
        ask(&mut claims, a, "r/i:v1", some(&["x"]));
        ask(&mut claims, a, "r/i:v2", some(&["y"]));
        ask(&mut claims, a, "r/i:v2", some(&["z"]));
        let placement = Placement {
            references: ["r/i:v1", "r/i:pool"]
                .map(|name| (name.to_string(), 0))
                .into(),
            hosts: some(&["z"]),
            paused: [host("y")].into(),
        };
        claims.place(a, placement.clone());
        assert_eq!(
            claims.cancel(&a, Some("r/i:v1")),
            Ok(vec!["r/i:v1".to_string()])
        );
        let left = wanted(&claims, 1).unwrap();
        assert_eq!(left.references.len(), 3);
        assert_eq!(
            left.hosts,
            some(&["y", "z"]),
            "v1 was all that x was wanted for"
        );
        assert_eq!(names(&claims, "x"), []);
        let on_y = ["r/i:pool", "r/i:v1", "r/i:v2"].map(|name| (name.to_string(), a));
        assert_eq!(names(&claims, "y"), on_y, "what is paused keeps its names");
        assert_eq!(claims.cancel(&a, Some("r/i:v1")), Err(NotAsked::ByCluster));
        assert_eq!(claims.cancel(&a, Some("r/i:v3")), Err(NotAsked::Unwanted));
        let who = |reference: &str| {
            let claimed = claims.claimed(&a).into_iter();
            let mut claimed = claimed.filter(|claimed| claimed.reference == reference);
            claimed
                .next()
                .map(|claimed| (claimed.operators, claimed.cluster))
        };
        assert_eq!(who("r/i:v1"), Some((false, true)));
        assert_eq!(who("r/i:v2"), Some((true, false)));
        assert_eq!(claims.cancel(&a, None), Ok(vec!["r/i:v2".to_string()]));
        assert_eq!(claims.cancel(&a, None), Err(NotAsked::ByCluster));
        assert!(claims.is_placed(&a) && claims.asked(&a).is_none());
        claims.unplace(&a);
        assert_eq!(wanted(&claims, 1), None);
        assert_eq!(claims.cancel(&a, None), Err(NotAsked::Unwanted));
    }

    #[test]
    fn objects_with_one_tag_and_two_digests_share_the_fleet_by_who_came_later() {
        let mut claims = Claims::new(0);
        // the second object was created later
        let place = |claims: &mut Claims, number, hosts: Hosts| {
            let placement = Placement {
                references: [("r/i:latest".to_string(), u64::from(number))].into(),
                hosts,
                paused: BTreeSet::new(),
            };
            claims.place(image(number), placement);
        };
        // on different hosts the objects don't contend
        place(&mut claims, 1, some(&["x", "y"]));
        place(&mut claims, 2, some(&["z"]));
        assert_eq!(wanted(&claims, 1).unwrap().hosts, some(&["x", "y"]));
        assert_eq!(claims.overruled(&image(1)), []);
        // on the same hosts the later object has the name, however often the other one is told again
        place(&mut claims, 2, some(&["y", "z"]));
        place(&mut claims, 1, some(&["x", "y"]));
        assert_eq!(names(&claims, "x"), [("r/i:latest".to_string(), image(1))]);
        assert_eq!(names(&claims, "y"), [("r/i:latest".to_string(), image(2))]);
        assert_eq!(wanted(&claims, 1).unwrap().hosts, some(&["x"]));
        assert_eq!(wanted(&claims, 2).unwrap().hosts, some(&["y", "z"]));
        let by = [("r/i:latest".to_string(), image(2))];
        assert_eq!(claims.overruled(&image(1)), by);
        // an operator asks last, for all hosts: the objects' images are wanted nowhere until that is cancelled
        ask(&mut claims, image(3), "r/i:latest", None);
        let nowhere = wanted(&claims, 1).unwrap();
        assert!(nowhere.references.is_empty() && nowhere.hosts == some(&[]));
        assert_eq!(wanted(&claims, 3).unwrap().hosts, None);
        claims.cancel(&image(3), Some("r/i:latest")).unwrap();
        assert_eq!(wanted(&claims, 1).unwrap().hosts, some(&["x"]));
    }

    proptest! {
        /// The names that hosts are told and the hosts that are planned for images agree.
        #[test]
        fn names_on_hosts_and_hosts_of_images_agree(
            steps in proptest::collection::vec((0u8..4, 0u8..3, 0u8..3, 0u8..8, 0u8..8, 0u8..20), 1..40),
        ) {
            let fleet = [host("x"), host("y"), host("z")];
            let subset = |bits: u8| -> BTreeSet<HostId> {
                let chosen = fleet.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0);
                chosen.map(|(_, host)| host.clone()).collect()
            };
            let mut claims = Claims::new(0);
            for (step, number, name, hosts, paused, made) in steps {
                let reference = format!("r/i:{name}");
                // 7 means all hosts, which a selection writes as `None`
                let selection = (hosts != 7).then(|| subset(hosts));
                match step {
                    0 => drop(ask(&mut claims, image(number), &reference, selection)),
                    1 => drop(claims.cancel(&image(number), Some(&reference))),
                    2 => claims.unplace(&image(number)),
                    _ => claims.place(image(number), Placement {
                        references: [(reference, u64::from(made))].into(),
                        hosts: selection,
                        paused: subset(paused),
                    }),
                }
                for number in 0..3 {
                    let image = image(number);
                    let Some(wanted) = claims.wanted(&image, fleet.iter()) else {
                        for host in &fleet {
                            prop_assert!(claims.on(host).values().all(|(named, _)| *named != image));
                        }
                        continue;
                    };
                    for host in &fleet {
                        let on: BTreeSet<String> = claims
                            .on(host)
                            .into_iter()
                            .filter(|(_, (named, _))| *named == image)
                            .map(|(reference, _)| reference)
                            .collect();
                        let selected = wanted.hosts.as_ref().is_none_or(|hosts| hosts.contains(host));
                        let paused = wanted.paused.contains(host);
                        if selected {
                            prop_assert!(!on.is_empty(), "{host} is to hold an image under no name");
                        } else if !paused {
                            prop_assert!(on.is_empty(), "{host} has names of an image that isn't wanted there");
                        }
                        if !paused {
                            prop_assert!(on.is_subset(&wanted.references));
                        }
                    }
                }
            }
        }

        /// After a start, earlier claims become known again in any order. The order doesn't change which image has a
        /// reference.
        #[test]
        fn a_start_changes_nobodys_names(
            steps in proptest::collection::vec((0u8..3, 0u8..3, 0u8..2, 0u8..8, 0u8..9), 1..12),
            order in proptest::collection::vec(any::<u64>(), 6),
        ) {
            let fleet = [host("x"), host("y"), host("z")];
            let hosts = |bits: u8| {
                let chosen = fleet.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0);
                (bits != 7).then(|| chosen.map(|(_, host)| host.clone()).collect::<BTreeSet<_>>())
            };
            let mut claims = Claims::new(0);
            let mut objects = BTreeMap::new();
            for (step, number, name, on, made) in steps {
                let reference = format!("r/i:{name}");
                if step == 0 {
                    let placement = Placement {
                        references: [(reference, u64::from(made))].into(),
                        hosts: hosts(on),
                        paused: BTreeSet::new(),
                    };
                    claims.place(image(number), placement.clone());
                    objects.insert(number, placement);
                } else {
                    ask(&mut claims, image(number), &reference, hosts(on));
                }
            }
            // two steps for each image, in any order
            let mut again: Vec<(u64, u8, bool)> = (0..3)
                .flat_map(|number| [(number, true), (number, false)])
                .zip(&order)
                .map(|((number, operators), order)| (*order, number, operators))
                .collect();
            again.sort_unstable();
            let mut restarted = Claims::new(100);
            for (_, number, operators) in again {
                let image = image(number);
                if operators {
                    let asked = claims.asked(&image).cloned().unwrap_or_default();
                    for (reference, claim) in asked {
                        restarted.ask(image, &reference, claim.hosts, claim.asked_ms);
                    }
                } else if let Some(placement) = objects.get(&number) {
                    restarted.place(image, placement.clone());
                }
            }
            for host in ["x", "y", "z"] {
                prop_assert_eq!(names(&restarted, host), names(&claims, host));
            }
        }
    }
}
