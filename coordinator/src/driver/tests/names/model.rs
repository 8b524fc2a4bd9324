//! Plays random asks, cancels, tag moves and mishaps, over this driver, agents' own decisions, and agents' real stores
//! in directories.
//!
//! Only sockets, threads and the swarm are missing. Orders and reports wait in queues. A host's jobs and looks end when
//! a step says so. A stage's chunks all come at once.

use std::collections::{BTreeMap, BTreeSet};

use agent::store::Stage;
use mac::Mac;
use proptest::prelude::*;
use proto::{CHUNK_BYTES, ChunkIndex, Geometry, Link, Source, State, image};

use super::*;
use crate::wants::Timing;

mod mac;

/// Longer than any pause before a retry, in the coordinator or on a host.
const LONG: Duration = Duration::from_mins(11);
/// Rounds of [`LONG`] in which everything comes to rest.
const ROUNDS: usize = 40;
/// The tags of the model. The last one is the first, in another spelling.
const TAGS: [&str; 4] = [
    "r.test/i:latest",
    "r.test/i:v1",
    "other.test/deep/i:v1",
    "r.test/i",
];

/// The place of a name on the disk.
fn place_of(name: &str) -> String {
    name.parse::<proto::Reference>().unwrap().place()
}
const HOSTS: [&str; 2] = ["mini-1", "mini-2"];

/// An image with its bytes.
struct Sample {
    layout: Arc<image::Layout>,
    manifest: Vec<u8>,
    contents: Vec<Vec<u8>>,
}

impl Sample {
    fn new(seed: u8) -> Self {
        let config = format!("{{\"version\":1,\"seed\":{seed}}}").into_bytes();
        let (disk, nvram) = (vec![seed + 1; 8_192], vec![seed + 101; 64]);
        let layer =
            |media_type: &str, digest: Digest, bytes: &[u8], annotations: serde_json::Value| {
                serde_json::json!({
                    "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len(),
                    "annotations": annotations,
                })
            };
        let small = |media_type: &str, bytes: &[u8]| {
            layer(media_type, Digest::of(bytes), bytes, serde_json::json!({}))
        };
        let raw = serde_json::json!({
            image::RAW_SIZE_ANNOTATION: disk.len().to_string(),
            image::RAW_DIGEST_ANNOTATION: Digest::of(&disk).to_string(),
        });
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": image::MANIFEST_TYPE,
            "layers": [
                small(image::CONFIG_TYPE, &config),
                // the compressed layer's name only; nobody fetches it
                layer(image::DISK_TYPE, Digest::of(&[seed]), &disk, raw),
                small(image::NVRAM_TYPE, &nvram),
            ],
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let layout = image::Layout::parse(&manifest, &Digest::of(&manifest)).unwrap();
        Self {
            layout: Arc::new(layout),
            manifest,
            contents: vec![config, disk, nvram],
        }
    }

    fn digest(&self) -> Digest {
        *self.layout.digest()
    }

    /// The names by which this image may be asked for: tags, and its own digest.
    fn name(&self, number: usize) -> String {
        match TAGS.get(number) {
            Some(tag) => (*tag).to_owned(),
            None => format!("r.test/i@{}", self.digest()),
        }
    }

    fn want(&self, name: String, hosts: Option<BTreeSet<HostId>>) -> Want {
        Want {
            layout: self.layout.clone(),
            manifest: self.manifest.clone().into(),
            references: [name].into(),
            hosts,
            ..want("any", 1, 100)
        }
    }

    /// Writes all chunks that are missing.
    fn fill(&self, stage: &Stage) {
        let maker: HostId = "mini-9".parse().unwrap();
        let source = Source {
            sender: maker.key(),
            maker: maker.key(),
        };
        for bytes in &self.contents {
            let digest = Digest::of(bytes);
            let geometry = Geometry::new(bytes.len() as u64).unwrap();
            let mut state = State::INITIAL;
            let pieces = bytes.chunks(usize::try_from(CHUNK_BYTES).unwrap());
            for (chunk, bytes) in (0..).map(ChunkIndex).zip(pieces) {
                let link = Link::forge(geometry, chunk, state, bytes);
                state = link.after;
                stage
                    .write(digest, chunk, bytes, link, source, (&maker, None))
                    .unwrap();
            }
            assert_eq!(stage.walk(digest).unwrap(), []);
        }
    }
}

/// Somebody's ask, in a plain form that doesn't use the code under test.
#[derive(Clone, Debug)]
struct Asked {
    image: usize,
    hosts: Option<BTreeSet<HostId>>,
    step: u64,
}

impl Asked {
    fn covers(&self, host: &HostId) -> bool {
        self.hosts.as_ref().is_none_or(|hosts| hosts.contains(host))
    }
}

/// What an object of the cluster wants of an image.
#[derive(Clone, Debug)]
struct Object {
    name: String,
    asked: Asked,
    /// The time in the object's status, in Unix milliseconds.
    asked_ms: u64,
}

struct Model {
    world: World,
    samples: Vec<Sample>,
    macs: Vec<Mac>,
    /// The operators' wants by name, and the wants of the cluster's objects by image.
    operators: BTreeMap<String, Asked>,
    objects: BTreeMap<usize, Object>,
    /// Everything that was ever asked for.
    ever: BTreeSet<(String, Digest)>,
    step: u64,
}

/// A want as it is read back after a start.
fn kept_want(want: Want) -> Want {
    Want {
        timing: match want.timing {
            Timing::New => Timing::Unknown,
            known => known,
        },
        ..want
    }
}

impl Model {
    fn new() -> Self {
        let mut model = Self {
            world: World::new(),
            samples: (0..3).map(Sample::new).collect(),
            macs: HOSTS.map(Mac::new).into(),
            operators: BTreeMap::new(),
            objects: BTreeMap::new(),
            ever: BTreeSet::new(),
            step: 0,
        };
        model.connect(0);
        model.connect(1);
        model
    }

    fn connect(&mut self, at: usize) {
        let mac = &mut self.macs[at];
        if mac.session.is_some() {
            return;
        }
        let hello = message::Hello {
            takes_names: true,
            images: mac.states(),
            ..World::hello()
        };
        mac.heard = mac.looked;
        mac.session = Some(self.world.open(mac.id.as_str(), hello));
        mac.reconciler.session();
        mac.report(true);
    }

    /// The session ends. `arrive` orders still arrive, and no report does.
    fn disconnect(&mut self, at: usize, arrive: usize) {
        let mac = &mut self.macs[at];
        mac.take_orders(&self.samples, arrive);
        if let Some((session, _)) = mac.session.take() {
            let host = mac.id.clone();
            self.world.driver.apply(Input::Closed { host, session });
        }
        mac.reports.clear();
    }

    fn deliver(&mut self, at: usize) {
        let mac = &mut self.macs[at];
        let session = mac.session.as_ref().map(|(session, _)| *session);
        if let Some(session) = session
            && let Some((report, looked)) = mac.reports.pop_front()
        {
            mac.heard = looked;
            self.world.report(mac.id.as_str(), session, report);
        }
    }

    fn ask(&mut self, image: usize, name: usize, hosts: Option<BTreeSet<HostId>>) {
        let sample = &self.samples[image];
        let name = sample.name(name);
        self.world
            .ask(sample.want(name.clone(), hosts.clone()))
            .unwrap();
        self.ever.insert((place_of(&name), sample.digest()));
        let before = self
            .operators
            .get(&name)
            .filter(|asked| asked.image == image);
        let hosts = match (before.map(|asked| asked.hosts.clone()), hosts) {
            (None, hosts) => hosts,
            (Some(Some(mut before)), Some(hosts)) => {
                before.extend(hosts);
                Some(before)
            }
            (Some(_), _) => None,
        };
        let step = self.step;
        let place = place_of(&name);
        self.operators
            .retain(|name, asked| asked.image == image || place_of(name) != place);
        self.operators.insert(name, Asked { image, hosts, step });
    }

    fn cancel(&mut self, image: usize, name: usize, all: bool) {
        let sample = &self.samples[image];
        let name = sample.name(name);
        let typed = if all {
            sample.digest().to_string()
        } else {
            name.clone()
        };
        let mut cancelled: Vec<String> = match all {
            true => self
                .operators
                .iter()
                .filter(|(_, asked)| asked.image == image)
                .map(|(name, _)| name.clone())
                .collect(),
            false => self
                .operators
                .get(&name)
                .map(|_| name)
                .into_iter()
                .collect(),
        };
        for name in &cancelled {
            self.operators.remove(name);
        }
        let answer = self.world.cancel(&typed);
        match answer {
            Ok(reply) => {
                cancelled.sort();
                assert_eq!(reply.references, cancelled, "{typed}");
            }
            Err(error) => assert!(cancelled.is_empty(), "{typed}: {error}"),
        }
    }

    /// Objects of the cluster come, change and go.
    fn place(&mut self, image: usize, name: usize, hosts: Option<BTreeSet<HostId>>, gone: bool) {
        let sample = &self.samples[image];
        let name = sample.name(name);
        match gone {
            true => drop(self.objects.remove(&image)),
            false => {
                self.ever.insert((place_of(&name), sample.digest()));
                let before = self.objects.get(&image);
                let before = before.filter(|before| before.name == name);
                let driver = &self.world.driver;
                let (step, asked_ms) = match before {
                    Some(before) => (before.asked.step, before.asked_ms),
                    None => (self.step, driver.staging.images().asked_now(unix_ms())),
                };
                let asked = Asked { image, hosts, step };
                let object = Object {
                    name,
                    asked,
                    asked_ms,
                };
                self.objects.insert(image, object);
            }
        }
        self.place_all();
    }

    /// The cluster says all of its wants.
    fn place_all(&mut self) {
        let wants = self.objects.values().map(|object| {
            let Asked { image, hosts, .. } = &object.asked;
            Want {
                asked_ms: [(object.name.clone(), object.asked_ms)].into(),
                ..self.samples[*image].want(object.name.clone(), hosts.clone())
            }
        });
        place(&mut self.world, wants.collect(), Limits::default());
    }

    /// The coordinator is killed and starts again with what it kept.
    fn restart_coordinator(&mut self) {
        for at in 0..self.macs.len() {
            self.disconnect(at, usize::MAX);
        }
        let driver = &self.world.driver;
        let kept = self.samples.iter();
        let kept = kept.filter_map(|sample| driver.staging.images().asked(&sample.digest()));
        let kept = Kept {
            wants: kept.map(kept_want).collect(),
            ..Kept::default()
        };
        let hosts = self.macs.iter().map(|mac| mac.id.clone()).collect();
        // Numbers of asks begin with the milliseconds of the start. No real coordinator restarts faster than these
        // numbers grow.
        let number = self.world.driver.staging.next_number();
        while unix_ms() <= number {
            std::thread::yield_now();
        }
        self.world = World::after(true, hosts, kept);
        self.place_all();
    }

    fn later(&mut self, by: Duration) {
        for mac in &mut self.macs {
            mac.now += by;
        }
        self.world.driver.started -= by;
        self.world.driver.apply(Input::Tick);
        self.world.driver.flush();
    }

    /// The image that each name is to have on a host: the one that was asked for last.
    fn expected(&self, host: &HostId) -> BTreeMap<String, Digest> {
        let operators = self.operators.iter();
        let objects = self.objects.values();
        let objects = objects.map(|object| (&object.name, &object.asked));
        let asked = operators.chain(objects);
        let here: Vec<_> = asked.filter(|(_, asked)| asked.covers(host)).collect();
        let mut newest: BTreeMap<String, (u64, Digest)> = BTreeMap::new();
        for (name, asked) in &here {
            let ours = (asked.step, self.samples[asked.image].digest());
            let held = newest.entry(place_of(name)).or_insert(ours);
            *held = ours.max(*held);
        }
        let here = here.into_iter();
        let named = here.map(|(name, asked)| (name.clone(), self.samples[asked.image].digest()));
        named
            .filter(|(name, image)| newest[&place_of(name)].1 == *image)
            .collect()
    }

    /// An image that is shown as present is on the host's disk at this moment, under all names that are wanted. So is
    /// everything by which the gate goes. This isn't checked while somebody else has changed the disk and the host
    /// hasn't yet looked and reported.
    fn check(&self) {
        for mac in self.macs.iter().filter(|mac| mac.heard > mac.tampered) {
            let presence = self.world.driver.members.presence();
            for sample in &self.samples {
                let image = sample.digest();
                if !presence.is_present(&mac.id, &image) {
                    continue;
                }
                for (name, wanted) in self.expected(&mac.id) {
                    if wanted == image {
                        let found = mac.resolved(&self.samples, &name);
                        assert_eq!(
                            found,
                            Some(image),
                            "{} has no {name} and is shown as if",
                            mac.id
                        );
                    }
                }
            }
            for (image, names) in presence.holdings(&mac.id) {
                for name in names {
                    let found = mac.resolved(&self.samples, name);
                    assert_eq!(
                        found,
                        Some(*image),
                        "{} has no {name}, and the gate would let go",
                        mac.id
                    );
                }
            }
        }
    }

    fn is_quiet(&self) -> bool {
        let present = |mac: &Mac| {
            let presence = self.world.driver.members.presence();
            let wanted: BTreeSet<Digest> = self.expected(&mac.id).into_values().collect();
            wanted
                .iter()
                .all(|image| presence.is_present(&mac.id, image))
        };
        self.macs.iter().all(|mac| {
            let orders = mac
                .session
                .as_ref()
                .is_some_and(|(_, orders)| orders.is_empty());
            orders
                && mac.running.is_empty()
                && mac.reports.is_empty()
                && !mac.reconciler.look_due()
                && present(mac)
        })
    }

    /// Lets the model come to rest: nobody asks for anything any more, and nothing goes wrong.
    fn rest(&mut self) {
        self.world.driver.apply(Input::Recalled);
        for round in 0.. {
            for at in 0..self.macs.len() {
                self.connect(at);
                let mac = &mut self.macs[at];
                mac.take_orders(&self.samples, usize::MAX);
                mac.fill(&self.samples);
                mac.reconcile();
                while !mac.running.is_empty() {
                    mac.work(&self.samples, 0);
                    mac.fill(&self.samples);
                    mac.reconcile();
                }
                self.step += 1;
                mac.take_in_look();
                mac.look(self.step);
                mac.take_in_look();
                mac.reconcile();
                mac.report(false);
                while !self.macs[at].reports.is_empty() {
                    self.deliver(at);
                }
                self.check();
            }
            if round > 1 && self.is_quiet() {
                return;
            }
            assert!(round < ROUNDS, "it never rests: {}", self.story());
            self.later(LONG);
        }
    }

    fn story(&self) -> String {
        let of = |mac: &Mac| {
            let tags: Vec<_> = mac.tags();
            format!(
                "{}: wants {:?}, has {tags:?}, {:?}",
                mac.id,
                self.expected(&mac.id),
                mac.reconciler
            )
        };
        self.macs.iter().map(of).collect::<Vec<_>>().join("\n")
    }

    /// Checks that each disk has exactly what is wanted.
    fn assert_at_rest(&self) {
        for mac in &self.macs {
            let expected = self.expected(&mac.id);
            for (name, image) in &expected {
                let found = mac.resolved(&self.samples, name);
                assert_eq!(found, Some(*image), "{}: {name}", mac.id);
            }
            for (name, image) in mac.tags() {
                let place = place_of(&name);
                let meant = self.ever.contains(&(place.clone(), image));
                let mut names = expected.iter();
                let wanted =
                    names.all(|(name, wanted)| *wanted == image || place_of(name) != place);
                assert!(
                    meant && wanted || mac.tampered > 0,
                    "{}: {name} names {image}",
                    mac.id
                );
            }
            for image in mac.stages() {
                let wanted = expected.values().any(|wanted| *wanted == image);
                let stage = mac.store().stage(&image);
                let installed = stage.is_some_and(|stage| stage.is_installed());
                assert!(
                    wanted || installed,
                    "{}: a stage of {image} is left",
                    mac.id
                );
            }
        }
    }

    fn go_on(&mut self, (what, image, name, host, flag): (u8, usize, usize, usize, bool)) {
        self.step += 1;
        let hosts = flag.then(|| BTreeSet::from([self.macs[host].id.clone()]));
        let (samples, step) = (&self.samples, self.step);
        let mac = &mut self.macs[host];
        match what {
            0..=4 => self.ask(image, name, hosts),
            5 | 6 => self.cancel(image, name, what == 6 && flag),
            7 => self.place(image, name, hosts, false),
            8 => self.place(image, name, None, true),
            9..=14 => mac.take_orders(samples, if flag { 1 } else { usize::MAX }),
            15..=18 => match mac.looking.is_some() {
                true => mac.take_in_look(),
                false => mac.look(step),
            },
            19..=26 => mac.work(samples, image),
            27..=29 => mac.fill(samples),
            30..=32 => mac.report(flag),
            33..=36 => self.deliver(host),
            37 => self.disconnect(host, if flag { 3 } else { 0 }),
            38..=40 => self.connect(host),
            41 => {
                self.disconnect(host, 0);
                self.macs[host].restart(&self.samples, step);
            }
            42 => self.later(Duration::from_secs(if flag { 1 } else { 20 })),
            // everything that operators wanted before this start is known
            43 => self.world.driver.apply(Input::Recalled),
            44 => self.restart_coordinator(),
            _ => mac.tamper(
                samples,
                step,
                u8::try_from(image).unwrap(),
                &samples[image].name(name % TAGS.len()),
            ),
        }
        let mac = &mut self.macs[host];
        mac.reconcile();
        if mac.reconciler.look_due() && mac.looking.is_none() {
            mac.look(step);
        }
        self.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Whatever is asked for, cancelled, moved, lost and interrupted, in whatever order: no host is ever shown to have
    /// an image that it lacks, and at rest each host has exactly what is wanted there.
    #[test]
    fn at_rest_every_host_has_what_is_wanted_and_never_is_more_shown(
        steps in proptest::collection::vec((0u8..47, 0usize..3, 0usize..5, 0usize..2, any::<bool>()), 1..120),
    ) {
        let mut model = Model::new();
        for step in steps {
            model.go_on(step);
        }
        model.rest();
        model.assert_at_rest();
    }
}
