//! Registries that misbehave, with the real programs: how staging ends, what it says, and what it costs. Each test has
//! one registry and one fleet for a table of cases.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and say what they measured"
)]

use std::{
    process::Output,
    time::{Duration, Instant},
};

use e2e::{
    cluster::{Cluster, Options, said, wait_until},
    image::{GeneratedImage, ImageSpec},
    proxy::{self, Proxy},
    registry::{self, Fault, Misbehaviour, Registry, Target},
    site::{self, PATIENCE, Site},
    tart_home,
};
use proto::Digest;
use serde_json::Value;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

/// A registry, and a fleet that stages from it.
struct World {
    cluster: Cluster,
    // last: everything is kept there
    site: Site,
}

/// An image of the registry.
struct Image {
    generated: GeneratedImage,
    reference: String,
}

impl Image {
    /// The blob of its first layer.
    fn layer(&self) -> Digest {
        self.generated.layout().unwrap().layers()[0].blob.digest
    }

    fn digest(&self) -> String {
        self.generated.digest.to_string()
    }

    fn blob_bytes(&self) -> u64 {
        self.generated.layout().unwrap().blob_bytes()
    }
}

impl World {
    fn new(hosts: usize, options: registry::Options, agent: &str, coordinator: &str) -> Self {
        Self::on(Site::new(options).unwrap(), hosts, agent, coordinator)
    }

    fn on(site: Site, hosts: usize, agent: &str, coordinator: &str) -> Self {
        let cluster = site::start(Options {
            agent_settings: agent.into(),
            coordinator_settings: coordinator.into(),
            ..site.options(DEMO, hosts)
        });
        let cluster = cluster.unwrap();
        Self { cluster, site }
    }

    /// An image of two layers that nothing else shares, in a repository of its own.
    fn image(&self, name: &str, mebibytes: u64) -> Image {
        self.sized_image(name, mebibytes << 20)
    }

    fn sized_image(&self, name: &str, bytes: u64) -> Image {
        let seed = u64::from_be_bytes(
            *Digest::of(name.as_bytes())
                .as_bytes()
                .first_chunk()
                .unwrap(),
        );
        let spec = ImageSpec {
            nvram_bytes: 4 << 10,
            ..ImageSpec::incompressible(bytes, bytes / 2, seed)
        };
        let generated = self.site.image(&spec).unwrap();
        let registry = &self.site.registry;
        let reference = registry.hold(&format!("odd/{name}"), "1", &generated);
        Image {
            generated,
            reference,
        }
    }

    fn stage(&self, image: &Image, more: &[&str]) -> Output {
        let mut arguments = vec!["stage", image.reference.as_str(), "--wait"];
        arguments.extend(more);
        self.cluster.parbake(&arguments).unwrap()
    }

    /// Stages it, and compares every host's disk with the source.
    fn stages(&self, image: &Image, within: Duration, case: &str) {
        let began = Instant::now();
        let staged = self.stage(image, &["--timeout", "100"]);
        let said = said(&staged);
        assert!(
            staged.status.success(),
            "{case}: {said}\n{}",
            self.status(image)
        );
        assert!(began.elapsed() <= within, "{case}: {:?}", began.elapsed());
        let (reference, generated) = (&image.reference, &image.generated);
        let difference = site::difference(&self.cluster, reference, generated);
        assert_eq!(difference.unwrap(), None, "{case}");
    }

    fn status(&self, image: &Image) -> Value {
        self.cluster.status(&image.digest()).unwrap()
    }

    fn requests(&self, blob: &Digest) -> u64 {
        let counters = self.site.registry.counters();
        counters.blobs.get(blob).map_or(0, |blob| blob.requests)
    }
}

#[test]
fn a_layer_that_cannot_be_had_fails_its_image_by_name_and_holds_up_no_other() {
    let status = Misbehaviour::status;
    let elsewhere = Misbehaviour::RedirectTo("http://elsewhere.example/blob".into());
    let cases = [
        ("missing", status(404), "content_missing", "doesn't exist"),
        ("forbidden", status(403), "content_refused", "is forbidden"),
        ("gone", status(410), "content_missing", "status 410"),
        ("nonsense", status(418), "content_unusable", "status 418"),
        ("astray", elsewhere, "content_unusable", "without TLS"),
        (
            "longer",
            Misbehaviour::Overrun(7),
            "content_bad",
            "bytes or more",
        ),
    ];
    // most of it is pauses
    std::thread::scope(|scope| {
        for cases in cases.chunks(2) {
            scope.spawn(|| fail_by_name(cases));
        }
    });
}

fn fail_by_name(cases: &[(&str, Misbehaviour, &str, &str)]) {
    let world = World::new(2, registry::Options::default(), "", "");
    for (name, what, reason, words) in cases {
        let image = world.image(name, 4);
        let fault = Fault::always(Target::Blob(image.layer()), what.clone());
        let fault = world.site.registry.script(fault);
        let began = Instant::now();
        let failed = world.stage(&image, &["--timeout", "60"]);
        let story = said(&failed);
        assert_eq!(failed.status.code(), Some(1), "{name}: {story}");
        assert!(began.elapsed() < Duration::from_secs(20), "{name}: {story}");
        let shown = world.status(&image);
        assert_eq!(shown["state"], "failed", "{name}: {shown}");
        assert_eq!(shown["reason"], *reason, "{name}: {shown}");
        for told in [shown["message"].as_str().unwrap(), &story] {
            assert!(told.contains(words), "{name}: {told}");
            assert!(told.contains(&image.layer().to_string()), "{name}: {told}");
        }
        // another image of the same registry, at once and while this one is wanted still
        let healthy = world.image(&format!("beside-{name}"), 2);
        world.stages(&healthy, Duration::from_secs(10), name);
        // two hosts asked, and perhaps once more each where a token might have been the cause
        let requests = world.requests(&image.layer());
        assert!((2..=6).contains(&requests), "{name}: {requests} requests");
        // the layer is there now: who asks anew needn't wait for the next try
        world.site.registry.clear(fault);
        world.stages(&image, Duration::from_secs(15), name);
    }
}

/// The registry gives everything but one layer: asks for ten minutes of that one, or never answers.
#[test]
fn what_one_layer_gets_holds_up_no_image_beside_it() {
    let world = World::new(3, registry::Options::default(), "", "");
    let wait = Misbehaviour::come_back(503, "600");
    let waits = world.image("told-to-wait", 4);
    let layer = waits.layer();
    world
        .site
        .registry
        .script(Fault::always(Target::Blob(layer), wait));
    world.cluster.stage(&[&waits.reference]).unwrap();
    assert!(wait_until(PATIENCE, || world.requests(&layer) >= 1));
    let beside = world.image("beside-told-to-wait", 2);
    world.stages(&beside, Duration::from_secs(10), "told to wait");
    let throttled = || world.status(&waits)["reason"] == "origin_throttled";
    assert!(wait_until(PATIENCE, throttled), "{}", world.status(&waits));
    assert!(world.requests(&layer) <= 4);

    let hangs = world.image("hangs", 4);
    let layer = hangs.layer();
    world
        .site
        .registry
        .script(Fault::always(Target::Blob(layer), Misbehaviour::Silence));
    let failed = std::thread::scope(|scope| {
        let failed = scope.spawn(|| world.stage(&hangs, &["--timeout", "120"]));
        let mut beside = 0;
        // the registry gives others something all the while
        while !wait_until(Duration::from_secs(4), || failed.is_finished()) {
            let image = world.image(&format!("beside-hangs-{beside}"), 1);
            world.stages(&image, Duration::from_secs(10), "hangs");
            beside += 1;
        }
        failed.join().unwrap()
    });
    let story = said(&failed);
    assert_eq!(failed.status.code(), Some(1), "{story}");
    let shown = world.status(&hangs);
    assert_eq!(shown["state"], "failed", "{shown}");
    assert_eq!(shown["reason"], "content_unavailable", "{shown}");
    for told in [shown["message"].as_str().unwrap(), &story] {
        assert!(told.contains(&layer.to_string()), "{told}");
        assert!(told.contains("which gives others"), "{told}");
    }
}

/// Two images share a part, and one of them says that it is a byte longer.
#[test]
fn of_two_sizes_of_a_part_the_registrys_bytes_decide() {
    let world = World::new(2, registry::Options::default(), "", "");
    for false_first in [true, false] {
        let image = world.image(&format!("sizes-{false_first}"), 2);
        let mut manifest: Value = serde_json::from_slice(&image.generated.manifest).unwrap();
        let nvram = Digest::of(&image.generated.nvram).to_string();
        let layers = manifest["layers"].as_array_mut().unwrap();
        let nvram = layers.iter_mut().find(|layer| layer["digest"] == nvram);
        let size = &mut nvram.unwrap()["size"];
        *size = (size.as_u64().unwrap() + 1).into();
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let (digest, name) = (Digest::of(&manifest), format!("odd/longer-{false_first}"));
        let directory = &image.generated.directory;
        let longer = world
            .site
            .registry
            .hold_directory(&name, "1", directory, manifest.into());
        let shown = || {
            let shown = world.cluster.status(&digest.to_string());
            shown.unwrap()
        };
        let stage = |more: &[&str]| {
            let arguments = [&["stage", longer.as_str()], more].concat();
            world.cluster.parbake(&arguments).unwrap()
        };
        if false_first {
            let ordered = stage(&[]);
            assert!(ordered.status.success(), "{}", said(&ordered));
        }
        world.stages(&image, Duration::from_secs(20), "the true one");
        let failed = stage(&["--wait", "--timeout", "60"]);
        assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
        let reason = if false_first {
            "content_bad"
        } else {
            "contradicts"
        };
        assert!(
            wait_until(PATIENCE, || shown()["reason"] == reason),
            "{}",
            shown()
        );
        assert_eq!(shown()["state"], "failed");
        // no host gives room to what can't be staged
        for agent in world.cluster.agents() {
            let notes = agent
                .tart_home()
                .join(".parbake")
                .join(digest.hex().to_string());
            assert!(
                wait_until(PATIENCE, || !notes.exists()),
                "{}",
                notes.display()
            );
        }
    }
}

#[test]
fn a_host_that_cannot_read_its_password_holds_up_no_other_host_and_no_registry() {
    let options = registry::Options {
        auth: registry::Auth::Basic {
            user: "robot".into(),
            password: "secret".into(),
        },
        ..registry::Options::default()
    };
    let site = Site::new(options).unwrap();
    let login = site.login("robot", "secret").unwrap();
    let World { mut cluster, site } = World::on(site, 3, &login, &login);
    for host in [0, 2] {
        let settings = cluster.agents()[host].dir.join("agent.toml");
        let text = std::fs::read_to_string(&settings).unwrap();
        let text = text.replace("/password'", "/missing'");
        cluster.kill_agent(host).unwrap();
        std::fs::write(&settings, text).unwrap();
        cluster.start_agent(host).unwrap();
    }
    cluster.wait_sessions(PATIENCE).unwrap();
    let image = ImageSpec::incompressible(8 << 20, 1 << 20, 5);
    let image = site.image(&image).unwrap();
    let reference = site.registry.hold("odd/closed", "1", &image);
    let began = Instant::now();
    cluster
        .stage(&[&reference, "--wait", "--timeout", "60"])
        .unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    let unable = cluster.coordinator_log();
    let unable = unable.iter().filter(|line| line["reason"] == "host_unable");
    assert!(
        unable.count() >= 1,
        "nobody was leased what it can't ask for"
    );
    assert!(wait_until(PATIENCE, || {
        cluster
            .agents()
            .iter()
            .all(|agent| tart_home::disk(&agent.tart_home(), &reference).exists())
    }));
}

/// Connections that end, again and again, before a chunk is whole or amid the next one. `PARBAKE_BREAKS` gives another
/// number of them.
#[test]
fn a_chunk_is_kept_however_short_connections_are() {
    let world = World::new(2, registry::Options::default(), "", "");
    let breaks: u64 = std::env::var("PARBAKE_BREAKS").map_or(300, |breaks| breaks.parse().unwrap());
    for (name, bytes, ends_after) in [
        // more than a dozen times for each layer
        ("short", 8 << 20, 300_000),
        // within a part of what a window holds
        ("tiny", 1 << 20, 70_000),
        (
            "many",
            (breaks * 300_000).next_multiple_of(2 << 16),
            300_000,
        ),
    ] {
        world.site.registry.reset_counters();
        let image = world.sized_image(name, bytes);
        let ends = Fault::always(Target::Blobs, Misbehaviour::CloseAfter(ends_after));
        let ends = world.site.registry.script(ends);
        world.stages(&image, Duration::from_secs(60), name);
        assert!(
            world.site.registry.clear(ends) >= bytes / ends_after - 2,
            "{name}"
        );
        let sent = world.site.registry.counters().bytes;
        println!("{name}: {sent} bytes of {}", image.blob_bytes());
        assert!(sent * 10 <= image.blob_bytes() * 11, "{name}: {sent}");
    }
}

/// Streams so slow that a chunk takes longer than a lease lasts without progress: two layers, each a stream.
#[test]
fn a_chunk_may_take_seventeen_seconds() {
    let slow = |name: &'static str, bytes: u64, bytes_per_s: u64| {
        let world = World::new(2, registry::Options::default(), "", "");
        if name == "turns slow" {
            // what was quick before says nothing of now
            let quick = world.image("quick", 4);
            world.stages(&quick, PATIENCE, "quick");
        }
        world.site.registry.reset_counters();
        let image = world.sized_image("slow", bytes);
        world.site.registry.limit_each(Some(bytes_per_s));
        let began = Instant::now();
        let staged = world.cluster.parbake(&["stage", &image.reference]).unwrap();
        assert!(staged.status.success(), "{name}: {}", said(&staged));
        let tells = || {
            let shown = world.status(&image);
            let message = shown["message"].as_str().unwrap_or_default();
            message.contains("the registry gives") && message.contains("kB/s a stream")
        };
        assert!(
            wait_until(PATIENCE, tells),
            "{name}: {}",
            world.status(&image)
        );
        world.stages(&image, PATIENCE, name);
        #[expect(clippy::cast_precision_loss, reason = "for a ratio")]
        let least = image.blob_bytes() as f64 / 2.0 / bytes_per_s as f64;
        let took = began.elapsed().as_secs_f64();
        println!("{name}: {took:.1} s, {:.3} of the least", took / least);
        // a layer's first bytes, the installation and a look at the result come on top
        assert!(took <= least * 1.2 + 2.0, "{name}: {took}, not {least}");
        let sent = world.site.registry.counters().bytes;
        assert!(sent * 10 <= image.blob_bytes() * 11, "{name}: {sent}");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| slow("slow", 2 << 20, 62_000));
        scope.spawn(|| slow("turns slow", 2 << 20, 62_000));
        scope.spawn(|| slow("slowest", 256 << 10, 10_000));
    });
}

#[test]
fn a_registry_that_does_not_give_parts_of_blobs_is_asked_for_the_whole() {
    let world = World::new(2, registry::Options::default(), "", "");
    for (name, what) in [
        ("bad-request", Misbehaviour::RefuseRange(400)),
        ("unsatisfiable", Misbehaviour::RefuseRange(416)),
        ("not-implemented", Misbehaviour::RefuseRange(501)),
        ("no-content-range", Misbehaviour::ContentRange(None)),
        (
            "false-content-range",
            Misbehaviour::ContentRange(Some("bytes 7-9/10".into())),
        ),
        ("ignored", Misbehaviour::IgnoreRange),
    ] {
        world.site.registry.reset_counters();
        let image = world.image(name, 4);
        let blob = Target::Blob(image.layer());
        let odd = world.site.registry.script(Fault::always(blob, what));
        // three connections of the layer end, each further on
        let ends = [700_000, 1_300_000, 1_700_000].map(|after| {
            let ends = Misbehaviour::CloseAfter(after);
            Fault::times(blob, ends, if name == "ignored" { 1 } else { 2 })
        });
        for end in ends.into_iter().rev() {
            world.site.registry.script(end);
        }
        world.stages(&image, Duration::from_secs(30), name);
        world.site.registry.clear(odd);
        world.site.registry.clear_all();
        assert!(world.requests(&image.layer()) <= 16, "{name}");
    }
    // parts are ignored, and every connection ends before what is missing
    world.site.registry.reset_counters();
    let image = world.image("hopeless", 8);
    let blob = Target::Blob(image.layer());
    world
        .site
        .registry
        .script(Fault::always(blob, Misbehaviour::IgnoreRange));
    world
        .site
        .registry
        .script(Fault::always(blob, Misbehaviour::CloseAfter(1_500_000)));
    let failed = world.stage(&image, &["--timeout", "60"]);
    let story = said(&failed);
    assert_eq!(failed.status.code(), Some(1), "{story}");
    assert!(story.contains("connections end after 1.5 MB"), "{story}");
    assert_eq!(world.status(&image)["reason"], "content_unusable");
    let layer = image.generated.layout().unwrap().layers()[0].blob;
    let bytes = world.site.registry.counters().blobs[&layer.digest].bytes;
    assert!(bytes <= 2 * layer.size, "{bytes} of {}", layer.size);
}

#[test]
fn a_dead_token_is_replaced_within_seconds() {
    let options = registry::Options {
        auth: registry::Auth::Bearer {
            account: Some(("robot".into(), "secret".into())),
            life: Duration::from_secs(300),
            announced: Some(Duration::from_secs(300)),
        },
        ..registry::Options::default()
    };
    let site = Site::new(options).unwrap();
    let login = site.login("robot", "secret").unwrap();
    let world = World::on(site, 2, "", &login);
    let registry = &world.site.registry;
    let image = world.image("token", 8);
    registry.limit(Some(1_000_000));
    registry.script(Fault::always(
        Target::Blobs,
        Misbehaviour::CloseAfter(300_000),
    ));
    world.cluster.stage(&[&image.reference]).unwrap();
    let came = |bytes: u64| wait_until(PATIENCE, || registry.counters().bytes >= bytes);
    // old enough to be replaced
    assert!(came(4_000_000));
    registry.revoke_tokens();
    let revoked = Instant::now();
    assert!(came(6_000_000));
    assert!(
        revoked.elapsed() < Duration::from_secs(15),
        "{:?}",
        revoked.elapsed()
    );
    registry.limit(None);
    world.stages(&image, Duration::from_secs(60), "token");
}

/// A layer that another registry has, which wants credentials: it takes the first one's, and mustn't get them.
#[test]
fn a_registry_that_redirects_to_another_with_its_own_demand_is_said_to() {
    let options = || registry::Options {
        auth: registry::Auth::Basic {
            user: "robot".into(),
            password: "secret".into(),
        },
        ..registry::Options::default()
    };
    let site = Site::new(options()).unwrap();
    let other = site.runtime.block_on(Registry::start(options())).unwrap();
    let login = site.login("robot", "secret").unwrap();
    // both may be asked without TLS
    let both = format!("{},{}", site.registry.addr(), other.addr());
    let cluster = site::start(Options {
        agent_settings: login.clone(),
        coordinator_settings: login,
        registry: both,
        ..site.options(DEMO, 2)
    });
    let world = World {
        cluster: cluster.unwrap(),
        site,
    };
    let image = world.image("moved", 2);
    other.hold("odd/moved", "1", &image.generated);
    let layer = image.layer();
    let there = format!("http://{}/v2/odd/moved/blobs/{layer}", other.addr());
    let moved = Fault::always(Target::Blob(layer), Misbehaviour::RedirectTo(there));
    let moved = world.site.registry.script(moved);
    let failed = world.stage(&image, &["--timeout", "60"]);
    let story = said(&failed);
    assert_eq!(failed.status.code(), Some(1), "{story}");
    for word in [
        "which wants credentials of its own",
        &other.addr().to_string(),
    ] {
        assert!(story.contains(word), "{story}");
    }
    assert!(other.counters().refusals >= 2);
    assert_eq!(
        other.counters().bytes,
        0,
        "it was given the other's password"
    );
    world.site.registry.clear(moved);
    world.stages(&image, Duration::from_secs(60), "moved");
}

#[test]
fn a_demand_with_a_placeholder_for_a_scope_is_answered_with_the_repositorys_own() {
    let options = registry::Options {
        auth: registry::Auth::Bearer {
            account: None,
            life: Duration::from_secs(300),
            announced: Some(Duration::from_secs(300)),
        },
        ..registry::Options::default()
    };
    let world = World::new(2, options, "", "");
    let scope = Misbehaviour::NameScope("repository:user/image:pull".into());
    let named = Fault::always(Target::Demands, scope);
    let named = world.site.registry.script(named);
    let image = world.image("scope", 2);
    world.stages(&image, Duration::from_secs(20), "placeholder");
    assert!(world.site.registry.clear(named) >= 2);
    // a host asks for one token with the placeholder and one without, or for fewer
    assert!(world.site.registry.counters().token_requests <= 2 * 3 + 2);
}

#[test]
fn a_manifest_may_have_four_mebibytes() {
    let world = World::new(2, registry::Options::default(), "", "");
    let padded = |image: &Image, bytes: usize| {
        let mut manifest: Value = serde_json::from_slice(&image.generated.manifest).unwrap();
        manifest["annotations"]["padding"] = String::new().into();
        let without = serde_json::to_vec(&manifest).unwrap().len();
        manifest["annotations"]["padding"] = "x".repeat(bytes - without).into();
        let manifest = serde_json::to_vec(&manifest).unwrap();
        assert_eq!(manifest.len(), bytes);
        manifest
    };
    for (name, bytes, fits) in [
        ("more-than-one", (1 << 20) + 1, true),
        ("four", 4 << 20, true),
        ("more-than-four", (4 << 20) + 1, false),
    ] {
        let mut image = world.image(name, 2);
        let manifest = padded(&image, bytes);
        image.generated.digest = Digest::of(&manifest);
        image.generated.manifest = manifest.into();
        image.reference = world
            .site
            .registry
            .hold(&format!("odd/{name}"), "1", &image.generated);
        if fits {
            world.stages(&image, Duration::from_secs(30), name);
        } else {
            let refused = world.stage(&image, &[]);
            let story = said(&refused);
            assert_eq!(refused.status.code(), Some(2), "{story}");
            assert!(story.contains("4194304"), "{story}");
        }
    }
}

/// Neither the coordinator nor an agent has a setting about it: a proxy and a CA that the system trusts are the
/// environment's, as on a Mac whose administrator set them up.
#[test]
fn a_fleet_reaches_its_registry_through_the_environments_proxy_and_nothing_else_goes_there() {
    let options = registry::Options::tls();
    let site = Site::new(options).unwrap();
    let names = [("registry.test:443".to_owned(), site.registry.addr())].into();
    let account = Some(("robot".to_owned(), "s3cret".to_owned()));
    let proxy = site.runtime.block_on(Proxy::start(proxy::Options {
        names,
        account,
        tls: false,
    }));
    let proxy = proxy.unwrap();
    let ca = site.dir().join("ca.pem");
    std::fs::write(&ca, site.registry.certificate_pem().unwrap()).unwrap();
    let spec = ImageSpec::incompressible(8 << 20, 4 << 20, 1);
    let image = site.image(&spec).unwrap();
    site.registry.hold("fleet/macos", "1", &image);
    let url = proxy.url().replace("//", "//robot:s3cret@");
    let cluster = site::start(Options {
        environment: vec![
            ("https_proxy".to_owned(), url.clone()),
            ("ALL_PROXY".to_owned(), url),
            ("SSL_CERT_FILE".to_owned(), ca.display().to_string()),
        ],
        registry: String::new(),
        ..site.options(DEMO, 2)
    });
    let reference = "registry.test/fleet/macos:1";
    cluster
        .unwrap()
        .stage(&[reference, "--wait", "--timeout", "60"])
        .unwrap();
    let counters = proxy.counters();
    let asked: Vec<_> = counters.tunnels.keys().map(String::as_str).collect();
    assert_eq!(asked, ["registry.test:443"]);
    assert!(
        counters.forwarded.is_empty() && counters.refused.is_empty(),
        "{counters:?}"
    );
    let logs = std::fs::read_dir(site.dir())
        .unwrap()
        .map(|entry| entry.unwrap().path().join("log"));
    for log in logs.filter_map(|log| std::fs::read_to_string(log).ok()) {
        assert!(
            log.contains(&proxy.name()) && !log.contains("s3cret"),
            "{log}"
        );
    }
}
