//! Two coordinators as processes against a real API server: one leads, and the other takes over from one that is killed
//! or paused, with the same authority, tokens and hosts.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and print what failed"
)]

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use e2e::{
    api_server::{self, ApiServer},
    cluster,
};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Pod, Secret},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");
/// What each replica is told; the chart's default is 15.
const LEASE: Duration = Duration::from_secs(5);
/// For what takes a moment on an idle machine; tests run beside builds.
const SOON: Duration = Duration::from_secs(60);

fn free_tcp() -> SocketAddr {
    cluster::free_tcp(Ipv4Addr::LOCALHOST.into()).unwrap()
}

fn free_udp() -> SocketAddr {
    cluster::free_udp(Ipv4Addr::LOCALHOST.into()).unwrap()
}

/// A process that ends with its handle.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process too.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Process {
    fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.0.id().to_string()])
            .status();
        assert!(status.unwrap().success());
    }
}

struct Replica {
    name: &'static str,
    dir: PathBuf,
    kubeconfig: PathBuf,
    quic: SocketAddr,
    api: SocketAddr,
    admin: SocketAddr,
    process: Option<Process>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{} said: {}", self.name, self.log());
        }
    }
}

impl Replica {
    fn new(name: &'static str, root: &Path, kubeconfig: &Path, quic: SocketAddr) -> Self {
        let dir = root.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let mut this = Self {
            name,
            dir,
            kubeconfig: kubeconfig.to_owned(),
            quic,
            api: free_tcp(),
            admin: free_tcp(),
            process: None,
        };
        this.start();
        this
    }

    fn start(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let child = self
            .coordinator()
            .args(["run", "--kubernetes", "--namespace", "default"])
            .args(["--pod-name", self.name])
            .args(["--lease-seconds", &LEASE.as_secs().to_string()])
            .args(["--service-names", "parbake.default.svc"])
            .args(["--listen", &self.quic.to_string()])
            .args(["--api", &self.api.to_string()])
            .args(["--admin", &self.admin.to_string()])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(Process(child));
    }

    fn coordinator(&self) -> Command {
        let mut command = Command::new(DEMO);
        command
            .args(["coordinator", "--log-format", "json", "--state-dir"])
            .arg(self.dir.join("state"))
            .env("KUBECONFIG", &self.kubeconfig);
        command
    }

    fn say(&self, arguments: &[&str]) -> String {
        let output = self.coordinator().args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn parbake(&self, arguments: &[&str]) -> Output {
        Command::new(DEMO)
            .arg("parbake")
            .env("PARBAKE_API", format!("https://{}", self.api))
            .env("PARBAKE_CA_PIN", self.say(&["pin"]))
            .env("PARBAKE_TOKEN_FILE", self.dir.join("state/api.token"))
            .args(arguments)
            .output()
            .unwrap()
    }

    /// The hosts with a session, as the API tells them; none when it isn't the leader.
    fn connected(&self) -> Vec<String> {
        let output = self.parbake(&["hosts", "--json"]);
        let hosts: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let hosts = hosts.iter().filter(|host| host["connected"] == true);
        hosts
            .map(|host| host["host"].as_str().unwrap().to_owned())
            .collect()
    }

    fn ready(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.admin) else {
            return false;
        };
        let mut answer = String::new();
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

/// Waits until `found` finds something.
async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut found: impl FnMut() -> F,
) -> T {
    let until = Instant::now() + SOON;
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(Instant::now() < until, "not in {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What the cluster says.
struct View {
    leases: Api<Lease>,
    secrets: Api<Secret>,
    pods: Api<Pod>,
}

impl View {
    fn new(client: &Client) -> Self {
        Self {
            leases: Api::default_namespaced(client.clone()),
            secrets: Api::default_namespaced(client.clone()),
            pods: Api::default_namespaced(client.clone()),
        }
    }

    async fn leader(&self) -> Option<String> {
        let lease = self.leases.get_opt("parbake-coordinator").await.unwrap()?;
        lease.spec?.holder_identity.filter(|name| !name.is_empty())
    }

    async fn leader_is(&self, name: &str) -> Option<()> {
        (self.leader().await? == name).then_some(())
    }

    async fn secret(&self) -> Secret {
        self.secrets.get("parbake-state").await.unwrap()
    }

    /// The term that wrote the Secret last.
    async fn term(&self) -> Option<u32> {
        let secret = self.secrets.get_opt("parbake-state").await.unwrap()?;
        secret
            .metadata
            .annotations?
            .get("parbake.dev/term")?
            .parse()
            .ok()
    }

    async fn records(&self, key: &str) -> BTreeMap<String, String> {
        let data = self.secret().await.data.unwrap();
        serde_json::from_slice(&data[key].0).unwrap()
    }

    async fn labelled(&self) -> Vec<String> {
        let pods = self.pods.list(&Default::default()).await.unwrap();
        let labelled = pods.items.into_iter().filter(|pod| {
            let labels = pod.metadata.labels.as_ref();
            labels.is_some_and(|labels| labels.get("parbake.dev/role").is_some())
        });
        labelled.filter_map(|pod| pod.metadata.name).collect()
    }

    async fn only_labelled(&self, name: &str) -> Option<()> {
        (self.labelled().await == [name]).then_some(())
    }

    async fn add_pods(&self, names: [&str; 2]) {
        for name in names {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": { "name": name, "labels": { "app": "parbake" } },
                "spec": { "containers": [{ "name": "coordinator", "image": "x" }] },
            }))
            .unwrap();
            self.pods
                .create(&PostParams::default(), &pod)
                .await
                .unwrap();
        }
    }
}

/// Two replicas on an API server, one of which leads and has claimed the state. Tests name the parts in this order,
/// so that the replicas end first.
struct Pair {
    _server: ApiServer,
    root: TempDir,
    view: View,
    replicas: [Replica; 2],
    /// The replica that leads at first, and the other one.
    leading: usize,
    other: usize,
}

impl Pair {
    /// Hosts reach each of them at what `quic` gives.
    async fn start(quic: impl Fn() -> SocketAddr) -> Self {
        let assets = api_server::assets().unwrap();
        let server = ApiServer::start(&assets).await.unwrap();
        let view = View::new(&server.client().await.unwrap());
        view.add_pods(["c-0", "c-1"]).await;
        let root = tempfile::tempdir().unwrap();
        let replicas = ["c-0", "c-1"]
            .map(|name| Replica::new(name, root.path(), &server.kubeconfig(), quic()));
        let leader = eventually("somebody leads and has claimed the state", || async {
            view.term().await?;
            view.leader().await
        })
        .await;
        let leading = replicas.iter().position(|one| one.name == leader).unwrap();
        Self {
            _server: server,
            root,
            view,
            replicas,
            leading,
            other: 1 - leading,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn the_other_replica_takes_over_from_a_killed_leader_with_hosts_tokens_and_authority() {
    // The Service for hosts sends them to whoever leads. Here that is one UDP address, which only a leader binds.
    let quic = free_udp();
    let Pair {
        _server,
        root,
        view,
        mut replicas,
        leading,
        other,
    } = Pair::start(|| quic).await;
    let (leader, follower) = (&replicas[leading], &replicas[other]);

    // both are ready, one is labelled, and the other says who leads
    eventually("both replicas are ready", || async {
        (leader.ready() && follower.ready()).then_some(())
    })
    .await;
    eventually("the leader's Pod is labelled", || {
        view.only_labelled(leader.name)
    })
    .await;
    let turned_away = follower.parbake(&["hosts"]);
    assert_eq!(turned_away.status.code(), Some(2));
    let said = String::from_utf8_lossy(&turned_away.stderr).into_owned();
    assert!(
        said.contains("doesn't lead") && said.contains(leader.name),
        "{said}"
    );
    let pin = leader.say(&["pin"]);
    assert_eq!(follower.say(&["pin"]), pin);

    // a token that the command line makes beside the leader reaches the Secret within a second or so
    let token = leader.say(&["token", "--host", "mac-0"]);
    let made = Instant::now();
    eventually("the token is in the Secret", || async {
        (view.records("tokens.json").await.len() == 1).then_some(())
    })
    .await;
    println!("token made -> in the Secret: {:?}", made.elapsed());

    // by the time that the host has its certificate, the token is used up in the Secret
    let mac = root.path().join("mac-0");
    std::fs::create_dir_all(mac.join("tart")).unwrap();
    std::fs::write(mac.join("token"), &token).unwrap();
    std::fs::write(
        mac.join("agent.toml"),
        format!(
            "state_dir = '{}'\ntart_home = '{}'\nlisten = '{}'\nadmin = '{}'\nfloor_percent = 0\n",
            mac.join("state").display(),
            mac.join("tart").display(),
            free_udp(),
            free_tcp(),
        ),
    )
    .unwrap();
    let agent = || {
        let mut command = Command::new(DEMO);
        command
            .args(["agent", "--config"])
            .arg(mac.join("agent.toml"));
        command
    };
    let enrol = |replica: &Replica| {
        let api = format!("https://{}", replica.api);
        agent()
            .args(["enroll", "--api", &api, "--ca-pin", &pin, "--token-file"])
            .arg(mac.join("token"))
            .output()
            .unwrap()
    };
    assert!(!enrol(follower).status.success());
    let enrolled = enrol(leader);
    assert!(enrolled.status.success(), "{enrolled:?}");
    assert!(view.records("tokens.json").await.is_empty());
    assert!(view.records("enrolled.json").await.contains_key("mac-0"));
    let log = std::fs::File::create(mac.join("log")).unwrap();
    let running = agent().arg("run").stderr(log).stdout(Stdio::null()).spawn();
    let _agent = Process(running.unwrap());
    eventually("the agent is connected to the leader", || async {
        (leader.connected() == ["mac-0"]).then_some(())
    })
    .await;

    // kill -9: the other leads within the lease and a look at it, and hosts come back to it
    let term = view.term().await.unwrap();
    replicas[leading].process = None;
    let killed = Instant::now();
    let leader = &replicas[other];
    eventually("the other leads", || view.leader_is(leader.name)).await;
    let led = killed.elapsed();
    eventually("the new leader has written", || async {
        view.term().await.filter(|now| *now > term)
    })
    .await;
    let written = killed.elapsed();
    eventually("the agent is connected to the new leader", || async {
        (leader.connected() == ["mac-0"]).then_some(())
    })
    .await;
    let connected = killed.elapsed();
    println!(
        "lease of {LEASE:?}: killed -> other leads {led:?}, -> first write {written:?}, -> agent connected {connected:?}"
    );
    // its last renewal may have been a fifth of the lease before the kill
    assert!(
        led + LEASE / 5 + Duration::from_millis(200) >= LEASE,
        "{led:?}"
    );
    assert!(led < LEASE + LEASE / 5 + Duration::from_secs(5), "{led:?}");
    eventually("the label has moved", || view.only_labelled(leader.name)).await;

    // one authority, no second use of a token, and what the new leader is told is kept
    assert_eq!(leader.say(&["pin"]), pin);
    let again = enrol(leader);
    assert!(!again.status.success(), "{again:?}");
    leader.say(&["revoke", "mac-0"]);
    eventually("the revocation is kept", || async {
        let revoked = view.records("revoked.json").await;
        revoked.contains_key("mac-0").then_some(())
    })
    .await;

    // the killed one comes back and follows; asked to end, the leader gives the lease back and it leads at once
    replicas[leading].start();
    let (back, leader) = (&replicas[leading], &replicas[other]);
    eventually("the old leader is back", || async {
        back.ready().then_some(())
    })
    .await;
    assert_eq!(view.leader().await.unwrap(), leader.name);
    leader.process.as_ref().unwrap().signal("TERM");
    let asked = Instant::now();
    eventually("the old leader leads again", || view.leader_is(back.name)).await;
    println!("SIGTERM -> other leads {:?}", asked.elapsed());
    assert!(back.dir.join("state/revoked/mac-0").exists());
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn a_leader_that_was_paused_writes_nothing_when_it_wakes() {
    // The paused one keeps its address: each has its own.
    let Pair {
        _server,
        root: _root,
        view,
        mut replicas,
        leading,
        other,
    } = Pair::start(free_udp).await;
    eventually("the leader's Pod is labelled", || {
        view.only_labelled(replicas[leading].name)
    })
    .await;
    let term = view.term().await.unwrap();

    replicas[leading].process.as_ref().unwrap().signal("STOP");
    let paused = Instant::now();
    // something that it would write as soon as it wakes
    let token = replicas[leading].say(&["token", "--host", "mac-9"]);
    assert!(!token.is_empty());
    let (old, new) = (replicas[leading].name, replicas[other].name);
    eventually("the other leads", || view.leader_is(new)).await;
    eventually("the new leader has written", || async {
        view.term().await.filter(|now| *now > term)
    })
    .await;
    println!(
        "lease of {LEASE:?}: paused -> other's first write {:?}",
        paused.elapsed()
    );
    eventually("the label has moved", || view.only_labelled(new)).await;
    let before = view.secret().await.metadata.resource_version;

    replicas[leading].process.as_ref().unwrap().signal("CONT");
    let mut process = replicas[leading].process.take().unwrap();
    let status = eventually("it ends", || {
        let ended = process.0.try_wait().unwrap();
        async move { ended }
    })
    .await;
    // it ends, to be started again, and nothing of what it had in mind reached the cluster
    assert_eq!(status.code(), Some(2), "{}", replicas[leading].log());
    assert_eq!(view.leader().await.as_deref(), Some(new));
    assert_eq!(view.labelled().await, [new]);
    assert_eq!(view.secret().await.metadata.resource_version, before);
    assert!(view.records("tokens.json").await.is_empty(), "{old} wrote");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn a_deleted_lease_and_a_secret_of_a_later_term_cost_one_lease_time() {
    let Pair {
        _server,
        root: _root,
        view,
        mut replicas,
        ..
    } = Pair::start(free_udp).await;

    // as from a backup of a cluster in which coordinators took over from each other a thousand times
    let later = json!({ "metadata": { "annotations": { "parbake.dev/term": "1000" } } });
    let params = PatchParams::default();
    let later = Patch::Merge(later);
    let restored = view.secrets.patch("parbake-state", &params, &later);
    restored.await.unwrap();
    let name = "parbake-coordinator";
    let now = DeleteParams::default();
    _ = view.leases.delete(name, &now).await.unwrap();
    let began = Instant::now();
    let mut restarts = 0;
    eventually("somebody leads the next term", || {
        for replica in &mut replicas {
            let process = replica.process.as_mut().unwrap();
            if process.0.try_wait().unwrap().is_some() {
                restarts += 1;
                replica.start();
            }
        }
        async { view.term().await.filter(|term| *term == 1001) }
    })
    .await;
    let led = began.elapsed();
    println!(
        "lease of {LEASE:?}: deleted -> first write of the next term {led:?}, {restarts} restarts"
    );
    // four fifths are the fence; noticing takes a fifth, and one leader ends
    assert!(led >= LEASE / 5 * 4, "{led:?}");
    assert!(led < LEASE + Duration::from_secs(5), "{led:?}");
    assert!(restarts <= 1, "{restarts}");
    let leader = view.leader().await.unwrap();
    eventually("the leader's Pod is labelled", || {
        view.only_labelled(&leader)
    })
    .await;
}
