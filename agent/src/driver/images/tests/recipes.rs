//! An image's recipe: how it is waited for, and what becomes of it.

use prost::Message as _;
use proto::{
    message::{RecipeContent, RecipeDoubt, RecipeFile, RecipeHeader},
    recipe::Recipe,
};

use super::*;

fn file() -> Blob {
    Blob {
        digest: Digest::of(b"recipe"),
        size: 200,
    }
}

/// A recipe of the image, whose contents have one chunk each.
fn recipe(world: &World) -> Arc<NamedRecipe> {
    let header = RecipeHeader {
        image: world.image.as_bytes().to_vec(),
    };
    let mut bytes = header.encode_length_delimited_to_vec();
    for spec in world.layout.contents() {
        let content = RecipeContent {
            digest: spec.digest.as_bytes().to_vec(),
            size: spec.geometry.size(),
            fingerprints: vec![0; 16],
            ..RecipeContent::default()
        };
        bytes.extend(content.encode_length_delimited_to_vec());
    }
    Arc::new(NamedRecipe {
        file: file(),
        recipe: Recipe::parse(&bytes, &world.layout).unwrap(),
    })
}

fn doubt(world: &World, recipe: &[u8]) -> RecipeDoubt {
    RecipeDoubt {
        manifest: world.image.as_bytes().to_vec(),
        recipe: Digest::of(recipe).as_bytes().to_vec(),
        content: Digest::of(b"content").as_bytes().to_vec(),
        chunk: 3,
    }
}

fn order(world: &mut World, number: u64, recipe: Option<Blob>) -> Vec<&'static str> {
    let doubts = vec![doubt(world, b"recipe"), doubt(world, b"another one")];
    let order = StageOrder {
        manifest_digest: world.image.as_bytes().to_vec(),
        manifest: manifest("a"),
        references: vec![NAME.into()],
        order: number,
        recipe: recipe.map(|file| RecipeFile {
            digest: file.digest.as_bytes().to_vec(),
            size: file.size,
            made_by_hosts: world.made_by_hosts,
        }),
        recipe_doubts: doubts,
        ..StageOrder::default()
    };
    world.take(order);
    world.drain()
}

/// With a recipe ordered, whose bytes come.
fn waiting() -> World {
    let mut world = World::new();
    let effects = order(&mut world, 1, Some(file()));
    assert_eq!(effects, ["entitle", "open the recipe"]);
    world
}

impl World {
    fn read(&mut self, result: Result<Arc<NamedRecipe>, NoRecipe>) -> Vec<&'static str> {
        self.images.recipe_read(self.now, self.image, result);
        self.drain()
    }
}

#[test]
fn a_stage_begins_by_the_recipe_once_that_is_read() {
    let mut world = waiting();
    assert_eq!(world.jobs(), [] as [&str; 0]);
    assert_eq!(world.state(), StageState::Queued);
    let closed = ImageNews::Closed(file().digest);
    world.hear(&[world.image], closed);
    assert_eq!(world.drain(), ["read the recipe"]);
    assert_eq!(world.jobs(), [] as [&str; 0]);
    let recipe = recipe(&world);
    assert_eq!(world.read(Ok(recipe)), [] as [&str; 0]);
    assert_eq!(world.jobs(), ["begin by the recipe"]);
    world.disk.0.recipe.set(Some(file()));
    // peers that lack it get it from this host
    assert_eq!(world.begun(), ["take up", "open the recipe"]);
    assert_eq!(world.told().recipe, file().digest.as_bytes());
}

#[test]
fn a_recipe_that_doesnt_come_or_cant_be_read_holds_nothing_up() {
    let mut late = waiting();
    late.wait(Duration::from_secs(29));
    assert_eq!(late.jobs(), [] as [&str; 0]);
    late.wait(Duration::from_secs(1));
    assert_eq!(late.images.reconciler().due(), Some(late.now));
    // what came of it isn't waited for any longer
    assert_eq!(late.jobs(), ["withdraw", "begin"]);
    assert_eq!(late.begun(), ["take up"]);
    // too late
    let recipe = recipe(&late);
    late.read(Ok(recipe));
    assert_eq!(late.jobs(), ["record"]);

    let mut damaged = waiting();
    damaged.read(Err(NoRecipe::unread(
        "its bytes have another digest".into(),
    )));
    assert_eq!(damaged.jobs(), ["begin"]);
}

#[test]
fn a_recipe_that_comes_slowly_is_waited_for_and_one_behind_others_too() {
    let mut world = waiting();
    for _ in 0..10 {
        world.wait(Duration::from_secs(29));
        assert_eq!(world.jobs(), [] as [&str; 0]);
        // few recipes come at one time, and others may be first
        let (of, bytes) = (Digest::of(b"another image"), ImageNews::OfRecipe(1));
        world.hear(&[of], bytes);
    }
    world.wait(Duration::from_secs(29));
    assert_eq!(world.jobs(), [] as [&str; 0]);
    world.wait(Duration::from_secs(1));
    assert_eq!(world.jobs(), ["withdraw", "begin"]);
}

#[test]
fn a_recipe_that_isnt_ordered_any_more_isnt_waited_for() {
    let mut world = waiting();
    // the same order again changes nothing
    assert_eq!(order(&mut world, 2, Some(file())), [] as [&str; 0]);
    assert_eq!(world.jobs(), [] as [&str; 0]);
    let another = Blob {
        digest: Digest::of(b"another one"),
        ..file()
    };
    let changed = ["leave the recipe", "open the recipe"];
    assert_eq!(order(&mut world, 3, Some(another)), changed);
    assert_eq!(world.jobs(), [] as [&str; 0]);
    assert_eq!(order(&mut world, 4, None), ["leave the recipe"]);
    assert_eq!(world.jobs(), ["begin"]);
}

#[test]
fn recipes_that_are_named_one_after_the_other_are_waited_for_as_long_as_one() {
    let mut world = waiting();
    for number in 2..=10_u64 {
        world.wait(Duration::from_secs(3));
        assert_eq!(world.jobs(), [] as [&str; 0]);
        let another = Blob {
            digest: Digest::of(&number.to_be_bytes()),
            ..file()
        };
        let effects = order(&mut world, number, Some(another));
        assert_eq!(effects, ["leave the recipe", "open the recipe"]);
    }
    world.wait(Duration::from_secs(3));
    assert_eq!(world.jobs(), ["withdraw", "begin"]);
}

#[test]
fn a_host_says_that_it_has_a_recipe_of_hosts_once_the_image_has_proved_it() {
    let mut world = waiting();
    world.made_by_hosts = true;
    order(&mut world, 2, Some(file()));
    let read = recipe(&world);
    world.read(Ok(read));
    assert_eq!(world.jobs(), ["begin by the recipe"]);
    world.disk.0.recipe.set(Some(file()));
    world.begun();
    assert!(world.disk.0.of_hosts.get(), "others' links count as much");
    assert!(world.told().recipe.is_empty(), "nothing has proved it");
    world.made_by_hosts = false;
    order(&mut world, 3, Some(file()));
    assert!(!world.disk.0.of_hosts.get());
    assert_eq!(world.told().recipe, file().digest.as_bytes());
    // nobody has it any more
    order(&mut world, 4, None);
    assert!(world.disk.0.of_hosts.get() && world.told().recipe.is_empty());
}

#[test]
fn an_image_that_was_staged_by_a_false_recipe_compares_and_refuses_it() {
    let mut world = World::present();
    world.made_by_hosts = true;
    world.disk.0.recipe.set(Some(file()));
    assert_eq!(order(&mut world, 8, Some(file())), [] as [&str; 0]);
    assert_eq!(world.told().recipe, file().digest.as_bytes());
    // a content contradicts it
    world.disk.0.misled.set(true);
    assert!(world.told().recipe.is_empty());
    assert_eq!(order(&mut world, 9, Some(file())), ["open the recipe"]);
    world.hear(&[world.image], ImageNews::Closed(file().digest));
    assert_eq!(world.drain(), ["read the recipe"]);
    world.read(Err(NoRecipe {
        error: "chunk 3 has another state".into(),
        is_false: true,
    }));
    assert_eq!(world.told().recipe_refused, file().digest.as_bytes());
    assert!(world.told().recipe.is_empty());
    // another one takes its place
    let another = Blob {
        digest: Digest::of(b"another one"),
        ..file()
    };
    assert_eq!(order(&mut world, 10, Some(another)), ["open the recipe"]);
}

#[test]
fn a_recipe_that_is_larger_than_any_is_left_alone() {
    let mut world = World::new();
    let huge = Blob {
        size: 1 << 40,
        ..file()
    };
    assert_eq!(order(&mut world, 1, Some(huge)), ["entitle"]);
    assert_eq!(world.jobs(), ["begin"]);
}

#[test]
fn an_image_that_is_cancelled_takes_its_recipe_along() {
    let mut world = waiting();
    world.images.cancel(world.now, world.image);
    assert_eq!(world.drain(), ["withdraw", "give up"]);
}

#[test]
fn a_content_in_doubt_goes_on_without_the_recipe() {
    let mut world = waiting();
    let recipe = recipe(&world);
    world.read(Ok(recipe));
    world.images.begin_jobs(world.now);
    let begun = std::iter::from_fn(|| world.images.poll());
    let in_doubt = begun.filter_map(|effect| match effect {
        Effect::Begin { in_doubt, .. } => Some(in_doubt),
        _ => None,
    });
    // the other doubt is about another recipe
    let content = BTreeSet::from([Digest::of(b"content")]);
    assert_eq!(in_doubt.collect::<Vec<_>>(), std::slice::from_ref(&content));
    world.disk.0.recipe.set(Some(file()));
    world.begun();
    // the doubt may have come while the stage began
    assert_eq!(world.disk.0.left.take(), content);
    for (recipe, takes) in [(&b"another one"[..], false), (b"recipe", true)] {
        let doubt = Doubt::parse(&doubt(&world, recipe)).unwrap();
        assert_eq!(world.images.doubt_recipe(&doubt), takes);
        assert_eq!(world.disk.0.left.borrow().is_empty(), !takes);
    }
    assert_eq!(*world.disk.0.left.borrow(), content);
}

#[test]
fn an_order_leaves_the_recipe_of_a_stage_where_it_is_in_doubt() {
    let mut world = World::filling();
    world.disk.0.recipe.set(Some(file()));
    // what is doubted of another recipe says nothing of this one
    let another = Blob {
        digest: Digest::of(b"another one"),
        ..file()
    };
    order(&mut world, 8, Some(another));
    assert_eq!(*world.disk.0.left.borrow(), BTreeSet::new());
    // the doubt was told while the host wasn't connected
    order(&mut world, 9, Some(file()));
    let content = BTreeSet::from([Digest::of(b"content")]);
    assert_eq!(*world.disk.0.left.borrow(), content);
}

#[test]
fn a_stage_goes_on_by_its_recipe_when_another_is_named_and_begins_anew_by_that() {
    const NOTHING: [&str; 0] = [];
    let mut world = World::filling();
    world.disk.0.recipe.set(Some(file()));
    order(&mut world, 8, Some(file()));
    world.disk.0.left.take();
    let another = Blob {
        digest: Digest::of(b"another one"),
        ..file()
    };
    assert_eq!(order(&mut world, 9, Some(another)), NOTHING);
    assert_eq!(world.state(), StageState::Staging);
    // its own one is worth no more than a host's word, and doubts of it count
    assert!(world.disk.0.of_hosts.get() && world.told().recipe.is_empty());
    assert_eq!(*world.disk.0.left.borrow(), BTreeSet::new());
    let doubt = Doubt::parse(&doubt(&world, b"recipe")).unwrap();
    assert!(world.images.doubt_recipe(&doubt));
    assert_eq!(*world.disk.0.left.borrow(), [doubt.content].into());
    // its files go: what begins anew waits for the other one
    world.disk.0.gone.set(true);
    world
        .images
        .removed(world.now, world.image, Reason::Removed);
    assert_eq!(world.drain(), ["withdraw", "open the recipe", "report"]);
    assert_eq!(world.state(), StageState::Queued);
    world.hear(&[world.image], ImageNews::Closed(another.digest));
    assert_eq!(world.drain(), ["read the recipe"]);
    let read = recipe(&world);
    world.read(Ok(read));
    world.disk = Disk::default();
    assert!(world.jobs().contains(&"begin by the recipe"));
}

#[test]
fn an_installed_image_takes_a_recipe_that_another_host_made_and_refuses_a_false_one() {
    const NOTHING: [&str; 0] = [];
    let mut world = World::present();
    // what the registry has is for stages that begin
    assert_eq!(order(&mut world, 8, Some(file())), NOTHING);
    world.made_by_hosts = true;
    assert_eq!(order(&mut world, 9, Some(file())), ["open the recipe"]);
    assert_eq!(order(&mut world, 10, Some(file())), NOTHING);
    let closed = ImageNews::Closed(file().digest);
    world.hear(&[world.image], closed.clone());
    assert_eq!(world.drain(), ["read the recipe"]);
    world.read(Err(NoRecipe {
        error: "chunk 3 has another state".into(),
        is_false: true,
    }));
    assert_eq!(world.told().recipe_refused, file().digest.as_bytes());
    assert_eq!(order(&mut world, 11, Some(file())), NOTHING);

    let another = Blob {
        digest: Digest::of(b"another one"),
        ..file()
    };
    assert_eq!(order(&mut world, 12, Some(another)), ["open the recipe"]);
    // it can't be read now: no word against it
    world.read(Err(NoRecipe::unread("no such file".into())));
    assert_eq!(world.told().recipe_refused, file().digest.as_bytes());
    assert_eq!(order(&mut world, 13, Some(another)), ["open the recipe"]);
    world.disk.0.recipe.set(Some(another));
    let recipe = recipe(&world);
    world.read(Ok(recipe));
    assert_eq!(world.told().recipe, another.digest.as_bytes());
    assert_eq!(order(&mut world, 14, Some(file())), NOTHING);
    assert_eq!(world.state(), StageState::Present);
    assert_eq!(world.jobs(), NOTHING);
}
