//! Readers that go away, and programs that die, amid a blob: the rest comes later, and what is here isn't fetched
//! again.

use super::*;

/// A mirror that ends a fetch one second after its last reader.
const GRACE: &str = "[mirror]\nlisten = '127.0.0.1:0'\ngrace_seconds = 1\n";

#[test]
fn readers_share_a_fetch_and_one_who_goes_away_ends_it_for_nobody() {
    let options = registry::Options::default();
    let world = World::of(1, &ImageSpec::plain(16, 16), options, GRACE);
    let (digest, size) = world.image.largest_blob();
    let good = world.image.blob(&digest).unwrap();
    let blob = world.blob(0, &digest);
    world.site.registry.limit_each(Some(8 << 20));
    world.run(async {
        let mut readers = JoinSet::new();
        for _ in 0..8 {
            let blob = blob.clone();
            readers.spawn(async move { whole(&blob).await });
        }
        beginning(&blob, 1).await;
        for bytes in readers.join_all().await {
            assert!(bytes == good);
        }
    });
    assert_eq!(world.sent(&digest), size);
}

#[test]
fn a_fetch_ends_a_while_after_its_last_reader_and_the_next_one_goes_on_from_what_is_held() {
    let world = World::set(GRACE);
    let good = noise(7, 24 << 20);
    let digest = world.put(&good);
    let blob = world.blob(0, &digest);
    world.site.registry.limit_each(Some(2 << 20));
    let held = world.run(beginning(&blob, 3 << 20));
    let ends = "nobody reads a blob any more; its fetch ends";
    let ended = || world.cluster.agents()[0].logged(ends);
    assert!(wait_until(PATIENCE, ended));
    let stopped = world.sent(&digest);
    assert!(stopped < 24 << 20, "{stopped}");
    world.site.registry.limit_each(None);
    let rest = world.run(part(&blob, &format!("bytes={}-", held.len())));
    assert!([held, rest].concat() == good);
    let total = world.sent(&digest);
    assert!(total < (24 << 20) + (3 << 20), "{total}");
}

/// Starts the killed agent, and waits until its mirror listens anew: the log has the old address until then.
fn start(world: &mut World) {
    let starts = |agent: &Agent| {
        let log = agent.log();
        log.iter().filter(|line| line["mirror"].is_string()).count()
    };
    let before = starts(&world.cluster.agents()[0]);
    world.cluster.start_agent(0).unwrap();
    let anew = || starts(&world.cluster.agents()[0]) > before;
    assert!(wait_until(PATIENCE, anew));
}

#[test]
fn a_killed_agent_goes_on_where_it_stood_and_serves_what_it_had() {
    let mut world = World::new(1, &ImageSpec::plain(32, 16));
    let (digest, size) = world.image.largest_blob();
    let good = world.image.blob(&digest).unwrap();
    world.site.registry.limit_each(Some(4 << 20));
    let held = world.run(beginning(&world.blob(0, &digest), 5 << 20));
    world.cluster.kill_agent(0).unwrap();
    let served = world.sent(&digest);
    world.site.registry.limit_each(None);
    start(&mut world);
    let range = format!("bytes={}-", held.len());
    let rest = world.run(part(&world.blob(0, &digest), &range));
    assert!([held, rest].concat() == good);
    // half a second of a rate of 4 MiB, and the chunk that was under way
    let twice = world.sent(&digest) - size;
    assert!(twice <= 4 << 20, "{twice} of {served}");

    let sent = world.site.served();
    world.cluster.kill_agent(0).unwrap();
    start(&mut world);
    assert!(world.run(whole(&world.blob(0, &digest))) == good);
    // what the registry showed before is forgotten: it shows a sample again
    assert_eq!(world.site.served(), sent + 512);
}

#[test]
fn pulls_end_whole_although_the_coordinator_and_the_host_that_fetches_die() {
    let mut world = World::new(3, &ImageSpec::plain(48, 16));
    world.site.registry.limit_each(Some(3 << 20));
    let name = world.name();
    let clients: Vec<_> = (0..3).map(|host| world.client(host)).collect();
    let World { cluster, site, .. } = &mut world;
    let (killed, pulled) = site.runtime.block_on(async {
        let mut pulls = JoinSet::new();
        for (host, client) in clients.into_iter().enumerate() {
            let name = name.clone();
            pulls.spawn(async move { (host, client.pull(&name, "1").await) });
        }
        while site.registry.counters().bytes < 3 << 20 {
            tokio::task::yield_now().await;
        }
        let fetches = |host: &usize| cluster.agents()[*host].logged("fetching from the registry");
        let killed = (0..3).find(fetches).unwrap();
        cluster.kill_agent(killed).unwrap();
        cluster.kill_coordinator().unwrap();
        site.registry.limit_each(None);
        (killed, pulls.join_all().await)
    });
    for (host, pull) in pulled {
        if host == killed {
            println!("its own client: {:?}", pull.map(|_| ()));
        } else {
            world.check(&pull.unwrap());
        }
    }
}
