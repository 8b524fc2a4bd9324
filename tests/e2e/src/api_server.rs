//! A real Kubernetes API server for tests: etcd and kube-apiserver on loopback, from the folder that
//! `KUBEBUILDER_ASSETS` names (envtest's convention; `tests/kube/assets` prints one).
//!
//! What a bare API server doesn't have: controllers, a scheduler, kubelets. A test that needs what they do does it.
//! Authorization is by Node and RBAC, webhooks are called, a service account's tokens can be made and reviewed.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

use crate::cluster::{free_tcp, tail};

/// An API server on a machine whose cores are all taken needs about 20 s to come up.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two looks at a server that comes up.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// An API server with an etcd of its own. Both end, by their pids, when it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    assets: PathBuf,
    dir: TempDir,
    address: SocketAddr,
    etcd_address: SocketAddr,
    flags: Vec<String>,
    etcd: Process,
    server: Option<Process>,
}

/// A process that ends with its handle.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Neither keeps anything that outlives the test: no time is lost with a graceful end.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Names the environment variable that names the folder with the programs: envtest's convention.
const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// The folder with kube-apiserver and etcd.
///
/// # Errors
/// `KUBEBUILDER_ASSETS` isn't set, or names a folder without one of the two programs.
pub fn assets() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os(ASSETS).map(PathBuf::from);
    named
        .filter(|dir| dir.join("kube-apiserver").exists() && dir.join("etcd").exists())
        .with_context(|| {
            format!("{ASSETS} names no folder with kube-apiserver and etcd: set it to $(tests/kube/assets)")
        })
}

impl ApiServer {
    /// Starts etcd and kube-apiserver, and waits until the latter is ready.
    ///
    /// # Errors
    /// When one of them doesn't come up; the error ends with its last log lines.
    pub async fn start(assets: &Path) -> anyhow::Result<Self> {
        Self::start_with(assets, &[]).await
    }

    /// [`start`](Self::start) with further flags of kube-apiserver.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(assets: &Path, flags: &[String]) -> anyhow::Result<Self> {
        let mut tries = 0;
        loop {
            tries += 1;
            match Self::start_once(assets, flags).await {
                // a port that was free a moment ago
                Err(error) if tries < 5 && error.to_string().contains(TAKEN) => {}
                started => return started,
            }
        }
    }

    async fn start_once(assets: &Path, flags: &[String]) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("parbake-kube")
            .tempdir()
            .context("making a directory for the API server")?;
        let (etcd_address, peer) = (free_tcp(LOOPBACK.into())?, free_tcp(LOOPBACK.into())?);
        let address = free_tcp(LOOPBACK.into())?;
        write_keys(dir.path(), address)?;
        let urls = (format!("http://{etcd_address}"), format!("http://{peer}"));
        let mut command = Command::new(assets.join("etcd"));
        command
            .args(["--name", "default", "--data-dir"])
            .arg(dir.path().join("etcd"))
            .args(["--listen-client-urls", &urls.0])
            .args(["--advertise-client-urls", &urls.0])
            .args(["--listen-peer-urls", &urls.1])
            .args(["--initial-advertise-peer-urls", &urls.1])
            .args(["--initial-cluster", &format!("default={}", urls.1)]);
        // Since 3.5. Its data doesn't outlive the test.
        let help = Command::new(assets.join("etcd")).arg("--help").output()?;
        let help = [help.stdout, help.stderr].concat();
        if String::from_utf8_lossy(&help).contains("--unsafe-no-fsync") {
            command.arg("--unsafe-no-fsync");
        }
        let etcd = Process(spawn(command, &dir.path().join("etcd.log"))?);
        let mut this = Self {
            assets: assets.to_owned(),
            dir,
            address,
            etcd_address,
            flags: flags.to_vec(),
            etcd,
            server: None,
        };
        this.start_server().await?;
        Ok(this)
    }

    /// Starts kube-apiserver, again on the same data and port if it ran before.
    ///
    /// # Errors
    /// When it doesn't come up.
    pub async fn start_server(&mut self) -> anyhow::Result<()> {
        ensure!(self.server.is_none(), "the API server runs already");
        let path = |name: &str| self.dir.path().join(name);
        let flag = |name: &str, file: &str| format!("--{name}={}", path(file).display());
        let mut command = Command::new(self.assets.join("kube-apiserver"));
        command
            .arg(format!("--etcd-servers=http://{}", self.etcd_address))
            .args([
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                // Nobody else announces this server, and a second one on the machine would be taken for it.
                "--endpoint-reconciler-type=none",
                "--service-cluster-ip-range=10.0.0.0/24",
                "--authorization-mode=Node,RBAC",
                // No controller makes the default accounts that this plugin insists on.
                "--disable-admission-plugins=ServiceAccount",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--allow-privileged=true",
                "--v=1",
            ])
            .arg(format!("--secure-port={}", self.address.port()))
            .arg(flag("cert-dir", "run"))
            .arg(flag("tls-cert-file", "server.crt"))
            .arg(flag("tls-private-key-file", "server.key"))
            .arg(flag("client-ca-file", "ca.crt"))
            .arg(flag("token-auth-file", "tokens.csv"))
            .arg(flag("service-account-key-file", "accounts.pub"))
            .arg(flag("service-account-signing-key-file", "accounts.key"))
            .arg(flag("audit-policy-file", "audit.json"))
            .arg(flag("audit-log-path", "audit.log"))
            .args(&self.flags);
        let log = path("server.log");
        self.server = Some(Process(spawn(command, &log)?));
        let client = self.client().await?;
        let until = Instant::now() + READY_TIMEOUT;
        loop {
            if let Some(Process(server)) = &mut self.server
                && let Some(status) = server.try_wait()?
            {
                bail!("kube-apiserver ended at once ({status}): {}", tail(&log));
            }
            if let Some(status) = self.etcd.0.try_wait()? {
                bail!("etcd ended ({status}): {}", tail(&path("etcd.log")));
            }
            let answers = async |path: &str| {
                let request = http::Request::get(path).body(Vec::new()).ok()?;
                let answer = client.request_text(request);
                let answer = tokio::time::timeout(Duration::from_secs(5), answer);
                answer.await.ok()?.ok()
            };
            // the namespace is made after the server calls itself ready
            if answers("/readyz").await.as_deref() == Some("ok")
                && answers("/api/v1/namespaces/default").await.is_some()
            {
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "kube-apiserver isn't ready after {READY_TIMEOUT:?}: {}",
                tail(&log)
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Ends kube-apiserver by `kill -9`; etcd and its data stay.
    ///
    /// # Errors
    /// When it isn't running.
    pub fn stop_server(&mut self) -> anyhow::Result<()> {
        drop(self.server.take().context("the API server isn't running")?);
        Ok(())
    }

    /// A kubeconfig file for a user who may do everything.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("admin.kubeconfig")
    }

    /// Writes a kubeconfig file for whoever has this bearer token, such as a service account.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn kubeconfig_for(&self, token: &str, path: &Path) -> anyhow::Result<()> {
        write_kubeconfig(self.dir.path(), self.address, token, path)
    }

    /// A client for a user who may do everything.
    ///
    /// # Errors
    /// When the kubeconfig can't be used.
    pub async fn client(&self) -> anyhow::Result<Client> {
        client(&self.kubeconfig()).await
    }

    /// What service accounts asked for so far, and how it was answered: audit events, one for each request.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn audited(&self) -> anyhow::Result<Vec<serde_json::Value>> {
        let log = std::fs::read_to_string(self.dir.path().join("audit.log"))
            .context("reading the audit log")?;
        // the last line may be half written
        let events = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        Ok(events.collect())
    }

    /// Its address.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A client with what a kubeconfig file says.
///
/// # Errors
/// When the file can't be used.
pub async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    // The only one that is compiled in; named all the same, so that another dependency can't make the choice ambiguous.
    _ = rustls::crypto::ring::default_provider().install_default();
    let read = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// What both say of a port that somebody else has.
const TAKEN: &str = "address already in use";
/// Service accounts are what a test asks about; the tests' own user does everything.
const AUDIT_POLICY: &str = r#"{
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{ "level": "Metadata", "userGroups": ["system:serviceaccounts"] }, { "level": "None" }]
}"#;
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn spawn(mut command: Command, log: &Path) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {:?}", command.get_program()))
}

/// The server's certificate and its authority, the accounts' keys, the administrator's token and kubeconfig.
fn write_keys(dir: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let mut authority = CertificateParams::default();
    authority
        .distinguished_name
        .push(DnType::CommonName, "parbake test cluster");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let authority_key = KeyPair::generate()?;
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);
    let mut server = CertificateParams::new(vec![
        "localhost".into(),
        "127.0.0.1".into(),
        "kubernetes.default.svc".into(),
    ])?;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let server_key = KeyPair::generate()?;
    let server_pem = server.signed_by(&server_key, &issuer)?.pem();
    let accounts = KeyPair::generate()?;
    let token = KeyPair::generate()?;
    // Any 32 random bytes do; a fresh public key's are at hand.
    let token: String = token.public_key_raw()[1..33]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    for (name, text) in [
        ("ca.crt", authority_pem),
        ("server.crt", server_pem),
        ("server.key", server_key.serialize_pem()),
        ("accounts.key", accounts.serialize_pem()),
        ("accounts.pub", accounts.public_key_pem()),
        (
            "tokens.csv",
            format!("{token},admin,1,\"system:masters\"\n"),
        ),
        ("audit.json", AUDIT_POLICY.to_owned()),
    ] {
        std::fs::write(dir.join(name), text)?;
    }
    write_kubeconfig(dir, address, &token, &dir.join("admin.kubeconfig"))
}

fn write_kubeconfig(
    dir: &Path,
    address: SocketAddr,
    token: &str,
    path: &Path,
) -> anyhow::Result<()> {
    // JSON is YAML too.
    let text = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{ "name": "test", "cluster": {
            "server": format!("https://{address}"),
            "certificate-authority": dir.join("ca.crt"),
        }}],
        "users": [{ "name": "test", "user": { "token": token } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
    });
    std::fs::write(path, text.to_string())
        .with_context(|| format!("writing kubeconfig {}", path.display()))
}
