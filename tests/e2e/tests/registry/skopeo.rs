//! skopeo copies through a mirror with Debian's docker-registry behind it: what arrives is what a direct copy gives.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and say whether they ran"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use bytes::Bytes;
use e2e::{
    cluster::{Cluster, Options, wait_until},
    docker_registry::{Auth, DockerRegistry},
    oci,
    site::{self, PATIENCE},
};
use http::HeaderValue;
use oci_client::{Client, Reference, RegistryOperation};
use proto::Digest;
use serde_json::{Value, json};
use tempfile::TempDir;

const SKOPEO: &str = "PARBAKE_SKOPEO";
const NAME: &str = "library/tool";

fn skopeo_program() -> PathBuf {
    std::env::var_os(SKOPEO)
        .map(PathBuf::from)
        .expect("the variable that this suite was built with")
}

/// A client that may push there.
async fn pusher(registry: &DockerRegistry, reference: &Reference) -> Client {
    let (client, auth) = (oci::client(), oci::auth(&registry.credentials()));
    let allowed = client.auth(reference, &auth, RegistryOperation::Push);
    allowed.await.unwrap();
    client
}

/// Pushes an image for one platform; its descriptor in an index.
async fn push(client: &Client, reference: &Reference, architecture: &str) -> Value {
    let config = json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
    let config = Bytes::from(config.to_string());
    let seed = Digest::of(architecture.as_bytes());
    let layer = seed.as_bytes().repeat(100_000);
    let mut parts = Vec::new();
    for (kind, bytes) in [
        ("application/vnd.oci.image.config.v1+json", config),
        ("application/vnd.oci.image.layer.v1.tar", layer.into()),
    ] {
        let digest = Digest::of(&bytes);
        client
            .push_blob(reference, bytes.clone(), &digest.to_string())
            .await
            .unwrap();
        parts.push(json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()}));
    }
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": kind, "config": parts[0], "layers": [parts[1]]});
    let manifest = Bytes::from(manifest.to_string());
    let digest = Digest::of(&manifest);
    let size = manifest.len();
    client
        .push_manifest_raw(reference, manifest, HeaderValue::from_static(kind))
        .await
        .unwrap();
    json!({"mediaType": kind, "digest": digest.to_string(), "size": size, "platform": {"architecture": architecture, "os": "linux"}})
}

fn skopeo(skopeo: &Path, arguments: &[&str]) {
    let output = Command::new(skopeo)
        .args(["--insecure-policy", "copy", "--src-tls-verify=false"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Every file below a directory, by its path.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(directory).unwrap().to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

fn mirror(dir: &TempDir, registry: &DockerRegistry, settings: &str) -> (Cluster, String) {
    let cluster = site::start(Options {
        agent_settings: format!("[mirror]\nlisten = '127.0.0.1:0'\n{settings}"),
        ..Options::on_loopback(env!("CARGO_BIN_EXE_demo"), dir.path(), 1, registry.addr())
    })
    .unwrap();
    let agent = &cluster.agents()[0];
    assert!(wait_until(PATIENCE, || agent.mirror().is_some()));
    let address = agent.mirror().unwrap().to_string();
    (cluster, address)
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(
    not(all(docker_registry, skopeo)),
    ignore = "needs PARBAKE_DOCKER_REGISTRY and PARBAKE_SKOPEO"
)]
async fn what_skopeo_copies_through_a_mirror_is_what_it_copies_directly() {
    let program = skopeo_program();
    for auth in [Auth::Anonymous, Auth::Htpasswd] {
        let registry = DockerRegistry::start(auth).await.unwrap();
        println!("run against {} with {auth:?}", program.display());
        let reference = oci::reference(&registry.reference(NAME, "one"));
        let other = oci::reference(&registry.reference(NAME, "other"));
        let client = pusher(&registry, &reference).await;
        let platforms = [
            push(&client, &reference, "amd64").await,
            push(&client, &other, "arm64").await,
        ];
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": platforms});
        let reference = oci::reference(&registry.reference(NAME, "index"));
        client
            .push_manifest_raw(
                &reference,
                index.to_string(),
                HeaderValue::from_static(kind),
            )
            .await
            .unwrap();

        let dir = tempfile::tempdir().unwrap();
        // skopeo learns from /v2/ alone that credentials are wanted, so the mirror has to know of whom it speaks there
        let (_cluster, address) = mirror(
            &dir,
            &registry,
            &format!("upstream = '{}'\n", registry.addr()),
        );
        let account = registry
            .account()
            .map(|(user, password)| format!("{user}:{password}"));
        let credentials = |arguments: &mut Vec<String>| {
            if let Some(account) = &account {
                arguments.extend(["--src-creds".to_owned(), account.clone()]);
            }
        };
        let named = registry.addr().to_string().replace(':', "_");
        for (tag, all) in [("one", false), ("other", false), ("index", true)] {
            for form in ["oci", "dir"] {
                let mut copies = Vec::new();
                for (from, source) in [
                    ("direct", format!("{}/{NAME}:{tag}", registry.addr())),
                    ("default", format!("{address}/{NAME}:{tag}")),
                    ("named", format!("{address}/{named}/{NAME}:{tag}")),
                ] {
                    let to = dir.path().join(format!("{form}-{tag}-{from}"));
                    let mut arguments = vec![
                        format!("docker://{source}"),
                        format!("{form}:{}", to.display()),
                    ];
                    if form == "oci" {
                        arguments[1].push_str(":x");
                    }
                    if all {
                        arguments.insert(0, "--all".into());
                    }
                    credentials(&mut arguments);
                    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
                    skopeo(&program, &arguments);
                    copies.push(files(&to));
                }
                assert!(!copies[0].is_empty());
                assert!(
                    copies[0] == copies[1] && copies[0] == copies[2],
                    "{form} {tag}"
                );
            }
        }
        if auth == Auth::Htpasswd {
            let to = dir.path().join("nobody");
            let output = Command::new(&program)
                .args([
                    "--insecure-policy",
                    "copy",
                    "--src-tls-verify=false",
                    "--src-no-creds",
                ])
                .args([
                    format!("docker://{address}/{NAME}:one"),
                    format!("dir:{}", to.display()),
                ])
                .output()
                .unwrap();
            assert!(
                !output.status.success(),
                "a private image was served to nobody"
            );
        }
    }
}

/// This host's own credentials stand in for a client that has none, where that is configured.
#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(
    not(all(docker_registry, skopeo)),
    ignore = "needs PARBAKE_DOCKER_REGISTRY and PARBAKE_SKOPEO"
)]
async fn skopeo_without_credentials_is_lent_the_hosts() {
    let program = skopeo_program();
    let registry = DockerRegistry::start(Auth::Htpasswd).await.unwrap();
    let reference = oci::reference(&registry.reference(NAME, "one"));
    let client = pusher(&registry, &reference).await;
    push(&client, &reference, "amd64").await;
    let dir = tempfile::tempdir().unwrap();
    let (user, password) = registry.account().unwrap();
    let secret = dir.path().join("password");
    fs::write(&secret, password).unwrap();
    let settings = format!(
        "lend_credentials = true\n[origin.credentials.'{}']\nusername = '{user}'\npassword_file = '{}'\n",
        registry.addr(),
        secret.display()
    );
    let (_cluster, address) = mirror(&dir, &registry, &settings);
    let named = registry.addr().to_string().replace(':', "_");
    let to = dir.path().join("copy");
    skopeo(
        &program,
        &[
            "--src-no-creds",
            &format!("docker://{address}/{named}/{NAME}:one"),
            &format!("dir:{}", to.display()),
        ],
    );
    assert!(files(&to).len() >= 4);
}
