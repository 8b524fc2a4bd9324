//! The QUIC endpoint to which hosts connect.

use std::{sync::Arc, time::Duration};

use wire::{Credentials, Endpoint, Settings};

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
        ..session_settings()
    };
    Ok(Endpoint::bind(config.listen, credentials, &settings)?)
}

/// Settings for the connections of every host of the fleet. These connections carry messages and no chunks.
fn session_settings() -> Settings {
    Settings {
        // After this time without a packet, a host counts as gone. The time is long, because a coordinator that gets no
        // processor for a while would otherwise lose every session at once. Hosts notice a restart of the coordinator
        // by its reset, and a coordinator that is gone by their own checks, after 3 s.
        idle_timeout: Duration::from_secs(10),
        keep_alive: Duration::from_millis(750),
        // A large fleet connects at one moment. Half of the handshakes are reserved for hosts that were here before. A
        // handshake costs about 10 KiB.
        max_handshakes: 2_048,
        // The largest message from a host has 256 KiB, the largest message to a host 4 MiB. There may be thousands of
        // hosts.
        stream_window: 1 << 20,
        connection_window: 2 << 20,
        send_window: 4 << 20,
        max_streams: 16,
        ..Settings::default()
    }
}
