//! What the life of a host brings, with the real programs on loopback: a certificate that expired while it was away, a
//! lock that tart holds, goldens.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    fs::File,
    os::unix::fs::PermissionsExt as _,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use e2e::{
    cluster::{Agent, Cluster, wait_until},
    image::ImageSpec,
    impostor::Impostor,
    registry,
    rig::Rig,
    site::{self, PATIENCE, Site},
};
use proto::{
    Digest,
    message::{
        ChunkReply, ChunkRequest, PeerOpen, PeerUpdate, Refusal, chunk_reply::Kind, peer_open,
    },
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use serde_json::Value;
use tokio::{runtime::Runtime, task::JoinSet};
use wire::Connection;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

/// A small image, and the two tags under which the registry has it.
fn rig() -> (Rig, [String; 2]) {
    let rig = Rig::paced(&ImageSpec::plain(8, 4), None).unwrap();
    let second = rig.site.registry.hold("fleet/macos", "2", &rig.image);
    let references = [rig.reference.clone(), second];
    (rig, references)
}

/// What the key of a host is good for in other hands.
struct Stolen {
    runtime: Runtime,
    host: Impostor,
}

/// What peers said and pushed unasked on a connection.
#[derive(Default)]
struct Heard {
    streams: AtomicUsize,
    contents: AtomicUsize,
    pushes: AtomicUsize,
}

impl Stolen {
    fn from(agent: &Agent) -> Self {
        let runtime = site::runtime().unwrap();
        let state = agent.dir.join("state");
        let host = runtime.block_on(async { Impostor::of(&state).unwrap() });
        Self { runtime, host }
    }

    fn connect(&self, agent: &Agent) -> Option<Connection> {
        let host = agent.host.parse().unwrap();
        let connecting = self.host.endpoint().connect(agent.listen(), &host);
        self.runtime.block_on(connecting).ok()
    }

    /// Asks for a content's first chunk. `None`: no answer.
    fn ask(&self, agent: &Agent, content: Digest) -> Option<Kind> {
        let connection = self.connect(agent)?;
        self.runtime.block_on(async {
            let (mut sender, mut receiver) = connection.open().await.ok()?;
            let request = ChunkRequest {
                content: content.as_bytes().to_vec(),
                index: 0,
                lacking: None,
            };
            let open = PeerOpen {
                kind: Some(peer_open::Kind::Request(request)),
            };
            sender.send(&open).await.ok()?;
            let reply: Option<ChunkReply> = receiver.receive().await.ok()?;
            reply?.kind
        })
    }

    /// Listens to what a host says and pushes of its own accord.
    fn listen(&self, agent: &Agent) -> Arc<Heard> {
        let heard = Arc::new(Heard::default());
        // it is on the other's roster a moment after its session began
        let deadline = Instant::now() + PATIENCE;
        let connection = loop {
            match self.connect(agent) {
                Some(connection) => break connection,
                None => assert!(Instant::now() < deadline, "not let in"),
            }
        };
        let all = heard.clone();
        drop(self.runtime.spawn(async move {
            let mut streams = JoinSet::new();
            while let Ok((_sender, mut receiver)) = connection.accept().await {
                let heard = all.clone();
                streams.spawn(async move {
                    heard.streams.fetch_add(1, Ordering::Relaxed);
                    match receiver.receive::<PeerOpen>().await {
                        Ok(Some(PeerOpen {
                            kind: Some(peer_open::Kind::Push(_)),
                        })) => drop(heard.pushes.fetch_add(1, Ordering::Relaxed)),
                        Ok(_) => {
                            while let Ok(Some(update)) = receiver.receive::<PeerUpdate>().await {
                                let contents = update.have.len();
                                heard.contents.fetch_add(contents, Ordering::Relaxed);
                            }
                        }
                        Err(_) => {}
                    }
                });
            }
        }));
        heard
    }
}

fn is_refusal(answer: Option<Kind>) -> bool {
    answer == Some(Kind::Refusal(Refusal::Unauthorised.into()))
}

fn is_chunk(answer: Option<Kind>) -> bool {
    matches!(answer, Some(Kind::Chunk(_)))
}

/// Stages the image and waits until it is present, by the command that operators use.
fn stage(cluster: &Cluster, reference: &str) -> bool {
    let output = cluster.parbake(&["stage", reference, "--wait"]);
    output.unwrap().status.success()
}

/// What the running agent says about its only image.
fn image_status(cluster: &Cluster) -> Value {
    let status = cluster.agent_status(0).unwrap_or_default();
    status["images"][0].clone()
}

/// The names under which the image is ready.
fn ready(cluster: &Cluster) -> Vec<String> {
    let names = image_status(cluster)["ready_references"].clone();
    serde_json::from_value(names).unwrap_or_default()
}

/// How often the host's agent logged this.
fn logged(cluster: &Cluster, message: &str) -> usize {
    let log = cluster.agents()[0].log();
    log.iter().filter(|line| line["message"] == message).count()
}

/// Gives the host a certificate for its key that expired just now, as the fleet's authority would have signed it.
fn expire(cluster: &Cluster, site: &Site) {
    let authority = site.dir().join("coordinator/state/authority");
    let ca_key = KeyPair::from_pem(&std::fs::read_to_string(authority.join("ca.key")).unwrap());
    let ca = std::fs::read_to_string(authority.join("ca.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&ca, ca_key.unwrap()).unwrap();
    let agent = &cluster.agents()[0];
    let path = agent.dir.join("state/host.pem");
    let pem = std::fs::read_to_string(&path).unwrap();
    let (key, _) = pem.split_at(pem.find("-----BEGIN CERTIFICATE").unwrap());
    let mut params = CertificateParams::new(vec![agent.host.clone()]).unwrap();
    // as if the host had enrolled before that
    let record = site
        .dir()
        .join("coordinator/state/enrolled")
        .join(&agent.host);
    std::fs::write(record, r#"{"at_unix": 1}"#).unwrap();
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(200)).into();
    params.not_after = (now - Duration::from_secs(100)).into();
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    let leaf = params.signed_by(&KeyPair::from_pem(key).unwrap(), &issuer);
    std::fs::write(&path, format!("{key}{}", leaf.unwrap().pem())).unwrap();
}

#[test]
fn a_host_whose_certificate_expired_comes_back_by_its_key_unless_it_is_revoked() {
    let site = Site::new(registry::Options::default()).unwrap();
    let mut cluster = site.fleet(DEMO, 1, "", "").unwrap();
    let up = "session with the coordinator is up";
    for life in 1..=2 {
        cluster.kill_agent(0).unwrap();
        expire(&cluster, &site);
        cluster.start_agent(0).unwrap();
        assert!(wait_until(PATIENCE, || logged(&cluster, up) == life + 1));
        assert_eq!(logged(&cluster, "expired certificate renewed"), life);
    }
    cluster.kill_agent(0).unwrap();
    expire(&cluster, &site);
    cluster.revoke(0).unwrap();
    cluster.start_agent(0).unwrap();
    let refused = "no session with the coordinator; trying again";
    assert!(wait_until(PATIENCE, || {
        let log = cluster.agents()[0].log();
        log.iter().any(|line| {
            let error = line["error"].as_str().unwrap_or_default();
            line["message"] == refused && error.contains("revoked")
        })
    }));
    assert_eq!(logged(&cluster, up), 3);
}

#[test]
fn a_lock_that_tart_holds_for_long_takes_no_presence_and_is_waited_for() {
    let (rig, [one, two]) = rig();
    let host = rig.site.registry.addr().to_string();
    let mut cluster = rig.site.fleet(DEMO, 1, "", "").unwrap();
    assert!(stage(&cluster, &one));
    let cache = cluster.agents()[0].tart_home().join("cache/OCIs");
    let lock = File::open(cache.join(host.replace(':', "%3A"))).unwrap();
    // as tart does while it pulls from the same registry, for an hour if need be
    lock.lock().unwrap();

    cluster.kill_agent(0).unwrap();
    cluster.start_agent(0).unwrap();
    assert!(wait_until(PATIENCE, || logged(
        &cluster,
        "image is present"
    ) == 2));
    assert_eq!(ready(&cluster), std::slice::from_ref(&one));

    let mut waiting = cluster
        .spawn_parbake(&["stage", &two, "--wait", "--json"], Stdio::null())
        .unwrap();
    assert!(wait_until(PATIENCE, || image_status(&cluster)["reason"] == "tart_busy"));
    let status = image_status(&cluster);
    assert_eq!(status["state"], "installing", "{status}");
    assert_eq!(ready(&cluster), std::slice::from_ref(&one));
    assert!(waiting.try_wait().unwrap().is_none(), "it doesn't give up");
    lock.unlock().unwrap();
    assert!(waiting.wait().unwrap().success());
    assert!(wait_until(PATIENCE, || ready(&cluster) == [one.clone(), two.clone()]));
}

/// A tart that clones from its cache without network, as the real one does. A file `hold` in its directory keeps a
/// clone from going on, a file `fail` makes one fail; `calls` has what it was asked.
const TART: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$@" >> "$here/calls"
case "$1" in
list) echo "[]" ;;
delete) rm -r "$TART_HOME/vms/$2" ;;
get) [ -d "$TART_HOME/vms/$2" ] && echo "{}" ;;
clone)
    while [ -e "$here/hold" ]; do sleep 0.02; done
    if [ -e "$here/fail" ]; then rm "$here/fail"; echo "no luck" >&2; exit 1; fi
    host=$(echo "${2%%/*}" | sed s/:/%3A/)
    path=${2#*/}
    case "$path" in
    *@*) image=${path%@*}/${path#*@} ;;
    *) image=${path%:*}/${path##*:} ;;
    esac
    mkdir -p "$TART_HOME/vms"
    cp -R "$TART_HOME/cache/OCIs/$host/$image/." "$TART_HOME/tmp-$$" && mv "$TART_HOME/tmp-$$" "$TART_HOME/vms/$3"
    ;;
*) exit 64 ;;
esac
"#;

#[test]
fn presence_comes_and_goes_with_the_golden_of_that_very_reference() {
    let (rig, [one, two]) = rig();
    let fake = rig.site.dir().join("fake");
    std::fs::create_dir(&fake).unwrap();
    let tart = fake.join("tart");
    std::fs::write(&tart, TART).unwrap();
    std::fs::set_permissions(&tart, std::fs::Permissions::from_mode(0o755)).unwrap();
    let settings = format!(
        "golden_prefix = 'tuist-golden-'\ntart_binary = '{}'",
        tart.display()
    );
    let cluster = rig.site.fleet(DEMO, 1, &settings, "").unwrap();
    let clones = |reference: &str| {
        let calls = std::fs::read_to_string(fake.join("calls")).unwrap_or_default();
        let clone = format!("clone {reference} ");
        calls
            .lines()
            .filter(|call| call.starts_with(&clone))
            .count()
    };
    let hold = || drop(File::create(fake.join("hold")).unwrap());
    let go_on = || std::fs::remove_file(fake.join("hold")).unwrap();
    let golden = |reference: &str| {
        let name = proto::image::golden_name("tuist-golden-", reference);
        cluster.agents()[0].tart_home().join("vms").join(name)
    };

    // installed, and not present before the golden is made; an attempt that fails is followed by another
    hold();
    drop(File::create(fake.join("fail")).unwrap());
    let mut waiting = cluster
        .spawn_parbake(&["stage", &one, "--wait", "--json"], Stdio::null())
        .unwrap();
    assert!(wait_until(PATIENCE, || clones(&one) == 1));
    assert!(wait_until(PATIENCE, || image_status(&cluster)["state"] == "installing"));
    assert_eq!(logged(&cluster, "image is present"), 0);
    assert_eq!(ready(&cluster), [] as [String; 0]);
    assert!(waiting.try_wait().unwrap().is_none());
    go_on();
    assert!(waiting.wait().unwrap().success());
    assert_eq!(clones(&one), 2);
    let disk = golden(&one).join("disk.img");
    assert_eq!(rig.image.compare(&disk).unwrap(), None);
    assert!(wait_until(PATIENCE, || ready(&cluster) == std::slice::from_ref(&one)));

    // another name of the same image has a golden of its own
    hold();
    assert!(cluster.parbake(&["stage", &two]).unwrap().status.success());
    assert!(wait_until(PATIENCE, || clones(&two) == 1));
    assert_eq!(ready(&cluster), std::slice::from_ref(&one));
    go_on();
    let both = [one.clone(), two.clone()];
    assert!(wait_until(PATIENCE, || ready(&cluster) == both));

    // whoever removes a golden takes presence under its name, and only that, within the agent's five seconds; it is
    // made again
    hold();
    std::fs::remove_dir_all(golden(&one)).unwrap();
    let removed = Instant::now();
    assert!(wait_until(PATIENCE, || ready(&cluster) == [two.clone()]));
    let noticed = removed.elapsed();
    assert!(noticed < Duration::from_secs(10), "{noticed:?}");
    go_on();
    assert!(wait_until(PATIENCE, || ready(&cluster) == both));
    assert!(golden(&one).join("disk.img").exists());
}

#[test]
fn a_host_that_isnt_selected_gets_nothing_of_an_image_from_its_peers() {
    let (rig, [reference, _]) = rig();
    let mut cluster = rig.site.fleet(DEMO, 3, "", "").unwrap();
    let content = rig.image.layout().unwrap().contents()[0].digest;
    let hosts: Vec<String> = cluster
        .agents()
        .iter()
        .map(|agent| agent.host.clone())
        .collect();

    // the third host's key is in other hands; it listens to both others while they stage an image that isn't for it
    cluster.kill_agent(2).unwrap();
    let outside = Stolen::from(&cluster.agents()[2]);
    let heard = [0, 1].map(|at| outside.listen(&cluster.agents()[at]));
    let streams = |heard: &Arc<Heard>| heard.streams.load(Ordering::Relaxed) > 0;
    assert!(wait_until(PATIENCE, || heard.iter().all(streams)));
    let both = hosts[..2].join(",");
    cluster
        .stage(&[&reference, "--hosts", &both, "--wait"])
        .unwrap();
    for heard in &heard {
        assert_eq!(
            heard.contents.load(Ordering::Relaxed),
            0,
            "told of a content"
        );
        assert_eq!(
            heard.pushes.load(Ordering::Relaxed),
            0,
            "was pushed a chunk"
        );
    }
    assert!(is_refusal(outside.ask(&cluster.agents()[0], content)));
    // a selected host gets it
    cluster.kill_agent(1).unwrap();
    let inside = Stolen::from(&cluster.agents()[1]);
    assert!(is_chunk(inside.ask(&cluster.agents()[0], content)));

    // where hosts are is written down a moment after they came, and a coordinator that starts again knows them by that
    let roster = rig.site.dir().join("coordinator/state/roster.json");
    let kept = || std::fs::read_to_string(&roster).unwrap_or_default();
    assert!(wait_until(PATIENCE, || hosts
        .iter()
        .all(|host| kept().contains(host))));

    // without a coordinator it is the same
    cluster.kill_coordinator().unwrap();
    assert!(is_refusal(outside.ask(&cluster.agents()[0], content)));
    assert!(is_chunk(inside.ask(&cluster.agents()[0], content)));

    // and after a restart: until the coordinator has said again who the peers are nobody gets anything, then who may
    cluster.kill_agent(0).unwrap();
    cluster.start_agent(0).unwrap();
    cluster.start_coordinator().unwrap();
    assert!(wait_until(PATIENCE, || {
        let first = &cluster.agents()[0];
        assert!(
            !is_chunk(outside.ask(first, content)),
            "given away after a restart"
        );
        is_chunk(inside.ask(first, content))
    }));
    assert!(is_refusal(outside.ask(&cluster.agents()[0], content)));

    // asked for on all hosts, it is for all
    cluster.stage(&[&reference]).unwrap();
    assert!(wait_until(PATIENCE, || is_chunk(
        outside.ask(&cluster.agents()[0], content)
    )));
}
