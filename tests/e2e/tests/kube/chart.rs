//! The chart on a real API server: `deploy/test --server` has it check every object, and a release live there.

use std::{path::Path, process::Command};

use e2e::api_server::{self, ApiServer};

#[test]
#[cfg_attr(
    not(all(api_server, chart)),
    ignore = "needs KUBEBUILDER_ASSETS and PARBAKE_DEPLOY_TEST=1"
)]
fn a_release_lives_on_a_real_api_server() {
    let assets = api_server::assets().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(ApiServer::start(&assets)).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/test");
    let output = Command::new(script)
        .arg("--server")
        .arg(server.kubeconfig())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
