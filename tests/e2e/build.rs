//! Looks for the programs that some tests need, so that a test whose program is missing is `ignored` with a reason.
//! Each program that is here sets a `cfg`, and such a test has `#[cfg_attr(not(that), ignore = "needs ...")]`.

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    found("api_server", "KUBEBUILDER_ASSETS", |folder| {
        let folder = Path::new(folder);
        folder.join("kube-apiserver").exists() && folder.join("etcd").exists()
    });
    found("docker_registry", "PARBAKE_DOCKER_REGISTRY", |program| {
        Path::new(program).exists()
    });
    found("skopeo", "PARBAKE_SKOPEO", |program| {
        Path::new(program).exists()
    });
    found("prometheus", "PARBAKE_PROMETHEUS", |program| {
        Path::new(program).exists()
    });
    // `1` says that `deploy/test` may install what it needs (helm, kubectl).
    found("chart", "PARBAKE_DEPLOY_TEST", |value| value == "1");
    let volume = ["--mount", "mount", "-t", "tmpfs", "parbake-test", "/mnt"];
    sets("mount", may_unshare(&volume));
    let network =
        "ip link add near type veth peer name far && ip route add unreachable 10.77.0.3/32";
    sets(
        "network",
        may_unshare(&["--net", "--mount", "sh", "-c", network]),
    );
}

/// Sets `cfg` where the environment's variable has a value that `is_fit`.
fn found(cfg: &str, variable: &str, is_fit: impl Fn(&str) -> bool) {
    println!("cargo::rerun-if-env-changed={variable}");
    sets(cfg, env::var(variable).is_ok_and(|value| is_fit(&value)));
}

fn sets(cfg: &str, is_set: bool) {
    println!("cargo::rustc-check-cfg=cfg({cfg})");
    if is_set {
        println!("cargo::rustc-cfg={cfg}");
    }
}

/// Whether something works in a namespace of its own: with root, util-linux and what it names.
fn may_unshare(arguments: &[&str]) -> bool {
    let tried = Command::new("unshare")
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}
