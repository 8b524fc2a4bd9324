//! Tests wants of operators and of the cluster, and what follows from them.

use std::sync::Arc;

use proto::ChunkIndex;
use tokio::sync::watch;

use super::*;
use crate::wants::tests::{recipe, want};

/// Wanted images, and hosts that hold nothing.
struct World {
    images: Images,
    hosts: Hosts,
    presence: Presence,
    asks: u64,
}

impl World {
    fn new(hosts: &[&str]) -> Self {
        let mut this = Self {
            images: Images::new(1, true),
            hosts: Hosts::default(),
            presence: Presence::new(watch::channel(Arc::default()).0),
            asks: 1_000,
        };
        for host in hosts {
            this.hosts.know(&host.parse().unwrap(), "");
        }
        this
    }

    /// The wanted images, and the moment of the next change.
    fn next(&mut self) -> (&mut Images, At<'_>) {
        self.asks += 1;
        let at = At {
            now: Moment(self.asks),
            unix_ms: self.asks,
            hosts: &self.hosts,
            presence: &self.presence,
        };
        (&mut self.images, at)
    }

    fn enter(&mut self, want: Want) -> Changes {
        let (images, at) = self.next();
        images.enter(at, want)
    }

    fn place(&mut self, wants: &[Want]) -> Changes {
        let placed = wants.iter().map(|want| Placed {
            want: want.clone(),
            paused: BTreeSet::new(),
            awaited: BTreeSet::new(),
        });
        let (images, at) = self.next();
        images.place(at, placed.collect())
    }

    fn cancel(&mut self, name: &str) -> Result<(Digest, CancelReply, Changes), CancelError> {
        let (images, at) = self.next();
        images.cancel(at, name)
    }
}

fn named(seed: &str, name: &str) -> Want {
    Want {
        references: [name.to_owned()].into(),
        ..want(seed, 1, 1 << 20)
    }
}

/// The events for the plan, in short form.
fn told(changes: &Changes) -> Vec<(&'static str, Digest)> {
    let one = |event: &Event| match event {
        Event::Wanted { image, .. } => Some(("wanted", *image)),
        Event::Cancelled(image) => Some(("cancelled", *image)),
        Event::Ranked { .. } => None,
        other => panic!("{other:?}"),
    };
    changes.events.iter().filter_map(one).collect()
}

const TAG: &str = "r.test/i:latest";

#[test]
fn an_image_is_over_when_the_last_who_wants_it_lets_go() {
    let mut world = World::new(&["a"]);
    let image = named("one", TAG);
    let digest = image.digest();
    let begun = world.enter(image.clone());
    assert_eq!(told(&begun), [("wanted", digest)]);
    assert_eq!(begun.tokens, [(digest, Credentials::Asked)]);
    world.place(&[image]);
    let (cancelled, reply, changes) = world.cancel(TAG).unwrap();
    assert_eq!((cancelled, reply.still_wanted.len()), (digest, 1));
    assert!(told(&changes).is_empty() && changes.over.is_empty());
    assert!(world.images.asked(&digest).is_none());
    assert!(matches!(world.cancel(TAG), Err(CancelError::ByCluster(_))));
    let over = world.place(&[]);
    assert_eq!(told(&over), [("cancelled", digest)]);
    assert_eq!(over.over, [digest]);
    assert!(!world.images.contains(&digest));
    assert!(matches!(
        world.cancel(TAG),
        Err(CancelError::Unwanted { .. })
    ));
}

#[test]
fn a_tag_that_moves_is_told_before_the_image_that_it_left_is_cancelled() {
    let mut world = World::new(&["a"]);
    let (old, new) = (named("old", TAG), named("new", TAG));
    world.enter(old.clone());
    let moved = world.enter(new.clone());
    let expected = [("wanted", new.digest()), ("cancelled", old.digest())];
    assert_eq!(told(&moved), expected);
    assert_eq!(moved.asked, [old.digest()], "it is written down");
    assert_eq!(moved.over, [old.digest()]);
    assert!(moved.names);
}

#[test]
fn an_image_that_is_asked_for_again_is_told_again_and_nothing_else_is() {
    let mut world = World::new(&["a"]);
    let (one, other) = (named("one", "r.test/1:1"), named("other", "r.test/2:1"));
    world.enter(one.clone());
    world.enter(other);
    let again = world.enter(one.clone());
    assert_eq!(told(&again), [("wanted", one.digest())]);
    assert_eq!(again.ordered, [one.digest()]);
    let (images, at) = world.next();
    let nothing = images.fleet_changed(at);
    assert!(told(&nothing).is_empty() && !nothing.names);
}

#[test]
fn what_the_cluster_wants_beyond_the_most_images_waits_for_room() {
    let mut world = World::new(&["a"]);
    let all: Vec<Want> = (0..=MAX_WANTS)
        .map(|number| named(&number.to_string(), &format!("r.test/{number}:1")))
        .collect();
    let placed = world.place(&all);
    assert_eq!(told(&placed).len(), MAX_WANTS);
    let waiting = world.images.waiting();
    assert_eq!(waiting.len(), 1);
    let (images, at) = world.next();
    assert!(images.place_waiting(at).is_none(), "there is no room");
    let first = all.iter().find(|want| !waiting.contains(&want.digest()));
    let first = first.unwrap().digest();
    let fewer: Vec<Want> = all
        .into_iter()
        .filter(|want| want.digest() != first)
        .collect();
    let over = world.place(&fewer);
    assert_eq!(over.over, [first]);
    assert!(world.images.waiting().is_empty());
}

#[test]
fn operators_are_refused_the_first_image_and_the_first_name_too_many() {
    let mut world = World::new(&["a"]);
    let names = |names: usize| Want {
        references: (0..names).map(|name| format!("r.test/i:{name}")).collect(),
        ..want("many", 1, 1 << 20)
    };
    assert!(world.images.admit(&names(MAX_REFERENCES)).is_ok());
    let refused = world.images.admit(&names(MAX_REFERENCES + 1));
    assert!(matches!(refused, Err(StageError::TooManyReferences)));
    let long = |bytes: usize| named("long", &"x".repeat(bytes));
    assert!(world.images.admit(&long(MAX_NAME_BYTES)).is_ok());
    let refused = world.images.admit(&long(MAX_NAME_BYTES + 1));
    assert!(matches!(refused, Err(StageError::TooManyNames)));
    for number in 0..MAX_WANTS {
        let next = named(&number.to_string(), &format!("r.test/{number}:1"));
        assert!(world.images.admit(&next).is_ok(), "{number}");
        world.enter(next);
    }
    let refused = world.images.admit(&named("more", TAG));
    assert!(matches!(refused, Err(StageError::TooManyImages)));
    assert!(world.images.admit(&named("0", "r.test/0:1")).is_ok());
}

#[test]
fn wants_are_known_when_operators_and_the_cluster_have_said_all() {
    let mut images = Images::new(1, false);
    images.recalled();
    assert!(!images.are_known());
    images.placed();
    assert!(images.are_known());
    let mut alone = Images::new(1, true);
    assert!(!alone.are_known());
    alone.recalled();
    assert!(alone.are_known());
}

#[test]
fn other_pull_secrets_are_a_reason_for_another_token() {
    let mut world = World::new(&["a"]);
    let image = named("one", TAG);
    let with = |secret: &str| Want {
        secrets: [(TAG.to_owned(), secret.to_owned())].into(),
        ..image.clone()
    };
    let digest = image.digest();
    let tokens = world.place(&[with("ci/one")]).tokens;
    assert_eq!(tokens, [(digest, Credentials::Asked)]);
    assert!(world.place(&[with("ci/one")]).tokens.is_empty());
    let tokens = world.place(&[with("ci/other")]).tokens;
    assert_eq!(tokens, [(digest, Credentials::Changed)]);
    let wanted = world.images.get(&digest).unwrap();
    assert_eq!(wanted.token_reference().unwrap(), TAG);
}

#[test]
fn images_are_found_by_the_contents_that_they_share() {
    let mut world = World::new(&["a"]);
    let image = named("one", TAG);
    world.enter(image.clone());
    for content in image.layout.contents() {
        assert_eq!(world.images.with(&content.digest), [image.digest()]);
    }
    assert!(world.images.with(&Digest::of(b"another")).is_empty());
}

#[test]
fn a_selection_takes_in_its_own_hosts_alone() {
    let mut world = World::new(&["a", "b"]);
    let one: HostId = "a".parse().unwrap();
    let image = Want {
        hosts: Some([one.clone()].into()),
        ..named("one", TAG)
    };
    let digest = image.digest();
    world.enter(image);
    let wanted = world.images.get(&digest).unwrap();
    assert!(wanted.selects(&one) && !wanted.selects(&"b".parse().unwrap()));
    assert_eq!(wanted.entitled(), Some(&[one].into()));
}

#[test]
fn a_recipe_that_is_there_stays_until_nothing_of_it_is_believed() {
    let mut world = World::new(&["a"]);
    let with = |seed: &str| Want {
        recipe: Some(recipe(seed)),
        ..named("one", TAG)
    };
    let image = named("one", TAG);
    let digest = image.digest();
    let has = |world: &World| world.images.get(&digest).unwrap().want().recipe;
    assert!(world.enter(image.clone()).news.is_empty());
    // it is found when somebody asks again, by whatever name
    assert_eq!(world.enter(with("first")).news, [digest]);
    for again in [with("second"), image.clone()] {
        assert!(world.enter(again).news.is_empty());
        assert_eq!(has(&world), Some(recipe("first")));
    }
    let placed = world.place(&[with("second")]);
    assert!(placed.news.is_empty() && has(&world) == Some(recipe("first")));

    let doubt = |content, chunk| Doubt {
        image: digest,
        recipe: recipe("first").digest,
        content,
        chunk: ChunkIndex(chunk),
    };
    let contents = image.layout.contents();
    for content in &contents[1..] {
        leave(&mut world, &doubt(content.digest, 0)).unwrap();
    }
    world.enter(with("second"));
    assert_eq!(has(&world), Some(recipe("first")), "a content is left");
    let last = doubt(contents[0].digest, 0);
    let changes = leave(&mut world, &last).unwrap();
    assert_eq!(
        (changes.ordered, changes.asked),
        (vec![digest], vec![digest])
    );
    assert_eq!(leave(&mut world, &last).unwrap_err(), Heard::Known);
    // the same one again brings nothing
    world.enter(with("first"));
    assert_eq!(leave(&mut world, &last).unwrap_err(), Heard::Known);
    assert_eq!(world.enter(with("second")).news, [digest]);
    assert_eq!(has(&world), Some(recipe("second")));
    assert!(
        world
            .images
            .get(&digest)
            .unwrap()
            .want()
            .recipe_doubts
            .is_empty()
    );
    assert_eq!(world.images.with(&recipe("second").digest), [digest]);
}

#[test]
fn a_recipe_that_was_lost_comes_back_when_somebody_asks_and_not_because_the_cluster_says_it_again()
{
    let mut world = World::new(&["a"]);
    let image = Want {
        recipe: Some(recipe("one")),
        ..named("one", TAG)
    };
    let (digest, lost) = (image.digest(), recipe("one").digest);
    world.place(std::slice::from_ref(&image));
    assert!(
        world
            .images
            .lose_recipe(&digest, &recipe("two").digest)
            .is_none()
    );
    let changes = world.images.lose_recipe(&digest, &lost).unwrap();
    assert_eq!(told(&changes), [("wanted", digest)]);
    assert_eq!((changes.news, changes.asked), (vec![digest], vec![]));
    assert!(world.images.lose_recipe(&digest, &lost).is_none());
    let has = |world: &World| world.images.get(&digest).unwrap().want().recipe.is_some();
    world.place(std::slice::from_ref(&image));
    assert!(!has(&world));
    world.images.forgive_recipe(&digest);
    assert_eq!(world.place(std::slice::from_ref(&image)).news, [digest]);
    assert!(has(&world));
    world.images.lose_recipe(&digest, &lost).unwrap();
    // operators' asks are kept on disk, with what was found
    let asked = world.enter(image).asked;
    assert_eq!((has(&world), asked), (true, vec![digest]));
}

/// The plan believes a doubt, if it is worth telling the plan.
fn leave(world: &mut World, doubt: &Doubt) -> Result<Changes, Heard> {
    match world.images.may_doubt(doubt) {
        Heard::News => {}
        heard => return Err(heard),
    }
    let left = RecipeLeft {
        image: doubt.image,
        content: doubt.content,
        chunk: doubt.chunk.0,
    };
    let (told, changes) = world.images.leave_recipe(left).ok_or(Heard::Known)?;
    assert_eq!(told, *doubt);
    Ok(changes)
}

#[test]
fn a_recipe_that_is_false_for_a_thousand_contents_is_given_up_with_the_next() {
    let mut world = World::new(&["a"]);
    let image = Want {
        recipe: Some(recipe("one")),
        ..want("one", 1_001, 1 << 20)
    };
    let digest = image.digest();
    world.enter(image.clone());
    let contents = image.layout.contents();
    let mut doubt = |content: usize| {
        let doubt = Doubt {
            image: digest,
            recipe: recipe("one").digest,
            content: contents[content].digest,
            chunk: ChunkIndex(0),
        };
        leave(&mut world, &doubt)
    };
    for content in 0..MAX_DOUBTED {
        assert!(doubt(content).unwrap().news.is_empty());
    }
    assert_eq!(doubt(MAX_DOUBTED).unwrap().news, [digest]);
    assert_eq!(doubt(0).unwrap_err(), Heard::Known);
    assert_eq!(world.images.get(&digest).unwrap().want().recipe, None);
}
