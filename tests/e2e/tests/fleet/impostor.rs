//! Somebody who has the key of an enrolled host and isn't its agent.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::path::Path;

use proto::HostId;
use wire::{Authorised, Credentials, Endpoint, Settings};

/// Who the agent with this state directory is, and an endpoint in its name that lets everybody in. Needs a runtime.
pub(crate) fn endpoint(state: &Path) -> (HostId, Endpoint) {
    let read = |name: &str| std::fs::read_to_string(state.join(name)).unwrap();
    let host = read("host.pem");
    let (key, chain) = host.split_at(host.find("-----BEGIN CERTIFICATE").unwrap());
    let credentials = Credentials::from_pem(chain, key, &read("authority.pem")).unwrap();
    let host = credentials.host().clone();
    let address = "127.0.0.1:0".parse().unwrap();
    let endpoint = Endpoint::bind(address, credentials, &Settings::default()).unwrap();
    endpoint.authorise(Authorised::Anyone);
    (host, endpoint)
}
