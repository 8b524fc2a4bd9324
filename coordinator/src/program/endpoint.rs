//! Where hosts connect.

use std::{sync::Arc, time::Duration};

use link::{Credentials, Endpoint, Settings};

use super::error::RunError;
use crate::{authority::Authority, config::Config};

/// Listens for hosts, with a certificate of the fleet's authority.
pub(super) fn bind(config: &Config, authority: &Arc<Authority>) -> Result<Endpoint, RunError> {
    let identity = authority.issue_own(config.certificate_lifetime)?;
    let credentials = Credentials::new(
        identity.chain,
        identity.key,
        vec![authority.certificate().clone()],
    )?;
    let settings = Settings {
        reset_secret: Some(authority.reset_secret()),
        ..link_settings()
    };
    Ok(Endpoint::bind(config.listen, credentials, &settings)?)
}

/// Connections that carry messages and no chunks, from every host of the fleet.
fn link_settings() -> Settings {
    Settings {
        // A host that is gone is noticed after this time. It is long, because a coordinator that gets no processor
        // for a while would lose every session at once. Hosts notice a coordinator that was restarted at its reset,
        // and one that is gone by their own look, after 3 s.
        idle_timeout: Duration::from_secs(10),
        keep_alive: Duration::from_millis(750),
        // A large fleet comes at one moment, and half is for hosts that were here before: 10 KiB each.
        max_handshakes: 2_048,
        // The largest message from a host has 256 KiB, the largest to one 4 MiB; there may be thousands of hosts.
        stream_window: 1 << 20,
        connection_window: 2 << 20,
        send_window: 4 << 20,
        max_streams: 16,
        ..Settings::default()
    }
}
