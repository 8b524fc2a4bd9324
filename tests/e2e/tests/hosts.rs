//! What the life of a host brings, with the real programs on loopback: a certificate that expired while it was away, a lock that
//! tart holds, goldens.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use e2e::cluster::{Cluster, Options, Place, wait_until};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use tempfile::TempDir;

/// Longer than any of these takes on a busy machine; a wait ends as soon as its condition holds.
const PATIENCE: Duration = Duration::from_secs(120);

fn cluster(dir: &TempDir, registry: &str, agent: &str, coordinator: &str) -> Cluster {
    let cluster = Cluster::start(Options {
        binary: PathBuf::from(env!("CARGO_BIN_EXE_demo")),
        dir: dir.path().to_owned(),
        hosts: vec![Place::default()],
        coordinator: Place::default(),
        registry: registry.into(),
        agent_settings: agent.into(),
        coordinator_settings: coordinator.into(),
        kubeconfig: None,
        run_arguments: Vec::new(),
        log: "info".into(),
    });
    let cluster = cluster.unwrap();
    cluster.wait_sessions(PATIENCE).unwrap();
    cluster
}

/// How often the host's agent logged this.
fn logged(cluster: &Cluster, message: &str) -> usize {
    let log = cluster.agents()[0].log();
    log.iter()
        .filter(|line| line["fields"]["message"] == message)
        .count()
}

/// Gives the host a certificate for its key that expired just now, as the fleet's authority would have signed it.
fn expire(cluster: &Cluster, dir: &TempDir) {
    let authority = dir.path().join("coordinator/state/authority");
    let ca_key = KeyPair::from_pem(&std::fs::read_to_string(authority.join("ca.key")).unwrap());
    let ca = std::fs::read_to_string(authority.join("ca.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&ca, ca_key.unwrap()).unwrap();
    let agent = &cluster.agents()[0];
    let path = agent.dir.join("state/host.pem");
    let pem = std::fs::read_to_string(&path).unwrap();
    let (key, _) = pem.split_at(pem.find("-----BEGIN CERTIFICATE").unwrap());
    let mut params = CertificateParams::new(vec![agent.host.clone()]).unwrap();
    // certificates are dated back by five minutes, and this one isn't older than the enrolment
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
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = cluster(&dir, "127.0.0.1:1", "", "");
    let up = "session with the coordinator is up";
    for life in 1..=2 {
        cluster.kill_agent(0).unwrap();
        expire(&cluster, &dir);
        cluster.start_agent(0).unwrap();
        assert!(wait_until(PATIENCE, || logged(&cluster, up) == life + 1));
        assert_eq!(logged(&cluster, "expired certificate renewed"), life);
    }
    cluster.kill_agent(0).unwrap();
    expire(&cluster, &dir);
    cluster.revoke(0).unwrap();
    cluster.start_agent(0).unwrap();
    let refused = "no session with the coordinator; trying again";
    assert!(wait_until(PATIENCE, || {
        let log = cluster.agents()[0].log();
        log.iter().any(|line| {
            let error = line["fields"]["error"].as_str().unwrap_or_default();
            line["fields"]["message"] == refused && error.contains("revoked")
        })
    }));
    assert_eq!(logged(&cluster, up), 3);
}
