//! Images whose recipe the fleet makes, because the registry has none, with the real programs on loopback.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{fs, time::Duration};

use e2e::{
    cluster::{Cluster, said, wait_until},
    image::{GeneratedImage, ImageSpec},
    registry,
    site::{Site, difference},
};
use proto::Digest;
use serde_json::Value;

const REPOSITORY: &str = "fleet/macos";
const PATIENCE: &str = "120";

/// 48 MiB that no packing makes smaller, in three layers.
fn spec() -> ImageSpec {
    ImageSpec::incompressible(48 << 20, 16 << 20, 5)
}

/// A fleet of three hosts, of which the first two hold an image without a recipe.
struct World {
    cluster: Cluster,
    reference: String,
    image: GeneratedImage,
    // last: everything is kept there
    site: Site,
}

impl World {
    fn new(settings: &str) -> Self {
        let site = Site::new(registry::Options::default()).unwrap();
        let image = site.image(&spec()).unwrap();
        let cluster = site.fleet(env!("CARGO_BIN_EXE_demo"), 3, "", settings);
        let world = Self {
            reference: site.registry.hold(REPOSITORY, "1", &image),
            cluster: cluster.unwrap(),
            image,
            site,
        };
        let first = |host: usize| world.cluster.agents()[host].host.clone();
        let hosts = format!("{},{}", first(0), first(1));
        world.stage(&["--hosts", &hosts]);
        world
    }

    fn stage(&self, arguments: &[&str]) {
        let all = [&self.reference, "--wait", "--timeout", PATIENCE];
        let ended = self.cluster.stage(&[&all[..], arguments].concat()).unwrap();
        assert!(ended.status.success(), "{}", said(&ended));
    }

    /// Stages the image on the third host too, while others may be away.
    fn stage_on_third(&self) {
        let ended = self.cluster.stage(&[&self.reference]).unwrap();
        assert!(ended.status.success(), "{}", said(&ended));
        let hosts = || self.status()["hosts"].as_array().cloned();
        let third = || hosts().and_then(|hosts| hosts.get(2)?["state"].as_str().map(str::to_owned));
        let is_present = || third().as_deref() == Some("present");
        let patience = Duration::from_secs(120);
        assert!(wait_until(patience, is_present), "{}", self.status());
    }

    fn status(&self) -> Value {
        self.cluster.status(&self.reference).unwrap()
    }

    /// Waits for the recipe that a host makes. Its digest.
    fn made(&self) -> String {
        let made = || self.status()["recipe"]["made_by_fleet"] == true;
        let is_made = wait_until(Duration::from_secs(60), made);
        assert!(is_made, "{}", self.status());
        self.status()["recipe"]["digest"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// The digest of the recipe that each host has.
    fn recipes(&self) -> Vec<Option<String>> {
        let status = self.status();
        let hosts = status["hosts"].as_array().unwrap().iter();
        let recipes = hosts.map(|host| host["recipe"].as_str().map(str::to_owned));
        recipes.collect()
    }

    /// The recipe that `parbake recipe` makes of a host's disk.
    fn by_hand(&self, host: usize) -> String {
        let path = self.site.dir().join(format!("recipe-{host}"));
        let home = self.cluster.agents()[host].tart_home();
        let registry = self.site.registry.addr().to_string();
        let ended = self.cluster.parbake(&[
            "recipe",
            &self.reference,
            "--plain-http",
            &registry,
            "--tart-home",
            home.to_str().unwrap(),
            "--out",
            path.to_str().unwrap(),
        ]);
        let ended = ended.unwrap();
        assert!(ended.status.success(), "{}", said(&ended));
        Digest::of(&fs::read(path).unwrap()).to_string()
    }

    fn assert_holds(&self) {
        let differs = difference(&self.cluster, &self.reference, &self.image);
        assert_eq!(differs.unwrap(), None);
    }
}

#[test]
fn a_host_that_joins_later_stages_by_the_recipe_that_another_made() {
    let world = World::new("");
    let made = world.made();
    assert_eq!(made, world.by_hand(0), "equal images have equal recipes");
    assert_eq!(made, world.by_hand(1));
    world.site.registry.reset_counters();
    world.stage(&[]);
    world.assert_holds();
    assert_eq!(world.recipes()[2], Some(made.clone()));
    assert_eq!(world.site.served(), 0, "its peers have all of it");
    let text = world.cluster.parbake(&["status", &world.reference]);
    let text = said(&text.unwrap());
    assert!(text.contains(&format!("recipe {made}")), "{text}");
    assert!(text.contains("made by the fleet"), "{text}");
    assert_eq!(
        world
            .cluster
            .metric("parbake_coordinator_recipes_asked_total"),
        Some(1.0)
    );
}

#[test]
fn a_coordinator_that_starts_again_hears_of_the_recipe_from_hosts() {
    let mut world = World::new("");
    let made = world.made();
    world.cluster.kill_coordinator().unwrap();
    world.cluster.start_coordinator().unwrap();
    assert_eq!(world.made(), made);
    world.stage(&[]);
    world.assert_holds();
    assert_eq!(world.recipes()[2], Some(made));
}

#[test]
fn a_recipe_that_nobody_has_any_more_isnt_named() {
    let mut world = World::new("");
    world.made();
    for host in [0, 1] {
        world.cluster.kill_agent(host).unwrap();
    }
    world.stage_on_third();
    assert_eq!(world.recipes()[2], None);
    let status = world.status();
    assert!(status["recipe"].is_null(), "{status}");
}

#[test]
fn hosts_that_hold_the_image_compare_the_recipe_with_it_and_keep_it_too() {
    let mut world = World::new("");
    let made = world.made();
    let has = |of: &Option<String>| *of == Some(made.clone());
    let both = || world.recipes()[..2].iter().all(has);
    let patience = Duration::from_secs(60);
    assert!(wait_until(patience, both), "{:?}", world.recipes());
    // the maker goes, and a restart of the other one forgets nothing
    let made_by = |host: usize| {
        let agent = &world.cluster.agents()[host];
        agent.logged("the image's recipe is made")
    };
    let (maker, other) = match made_by(0) {
        true => (0, 1),
        false => (1, 0),
    };
    world.cluster.kill_agent(maker).unwrap();
    world.cluster.kill_agent(other).unwrap();
    world.cluster.start_agent(other).unwrap();
    let is_back = || world.status()["hosts"][other]["connected"] == true;
    assert!(wait_until(patience, is_back), "{}", world.status());
    world.stage_on_third();
    assert_eq!(world.recipes()[2], Some(made));
}

#[test]
fn the_next_release_finds_what_moved_by_the_fleets_recipe_of_this_one() {
    let world = World::new("");
    world.stage(&[]);
    let made = Some(world.made());
    let all = || world.recipes().iter().all(|of| *of == made);
    let patience = Duration::from_secs(60);
    assert!(wait_until(patience, all), "{:?}", world.recipes());
    // a page is inserted near the beginning, and all behind it moves
    let next = spec().with_inserted((1 << 20) + 8192, 4096);
    let next = world.site.image(&next).unwrap();
    let reference = world.site.registry.hold(REPOSITORY, "2", &next);
    let registry = world.site.registry.addr().to_string();
    let push = ["recipe", &reference, "--plain-http", &registry, "--push"];
    let pushed = world.cluster.parbake(&push).unwrap();
    assert!(pushed.status.success(), "{}", said(&pushed));
    let staged = world
        .cluster
        .stage(&[&reference, "--wait", "--timeout", PATIENCE]);
    assert!(staged.as_ref().unwrap().status.success(), "{staged:?}");
    let differs = difference(&world.cluster, &reference, &next);
    assert_eq!(differs.unwrap(), None);
    let present = world
        .cluster
        .wait_present(&next.digest.to_string(), patience)
        .unwrap();
    let local: u64 = present.iter().map(|host| host.bytes[2]).sum();
    // on each host the chunk with the page, and two for each layer, whose first and last blocks are cut by its ends
    let lacking = 3 * (1 + 2 * 3) * (1 << 20);
    assert!(local >= 3 * spec().disk_bytes - lacking, "{local}");
}

#[test]
fn where_it_is_switched_off_no_recipe_is_made() {
    let world = World::new("make_recipes = false");
    world.stage(&[]);
    world.assert_holds();
    let status = world.status();
    assert!(status["recipe"].is_null(), "{status}");
    assert_eq!(world.recipes(), [None, None, None]);
}
