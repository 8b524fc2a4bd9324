//! Two network namespaces joined by a virtual cable of a given MTU; gone when dropped.

use std::{net::Ipv4Addr, process::Command};

use anyhow::{Context as _, bail};

/// Where the serving end listens; nobody else is on that cable.
pub(crate) const SERVE: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 1);

pub(crate) struct Namespaces {
    serve: String,
    fetch: String,
}

impl Namespaces {
    pub(crate) fn new(mtu: u32) -> anyhow::Result<Self> {
        let id = std::process::id();
        let both = Self {
            serve: format!("link{id}s"),
            fetch: format!("link{id}f"),
        };
        ip(&["netns", "add", &both.serve])?;
        ip(&["netns", "add", &both.fetch])?;
        let mtu = mtu.to_string();
        ip(&[
            "link",
            "add",
            "cable",
            "mtu",
            &mtu,
            "netns",
            &both.serve,
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "mtu",
            &mtu,
            "netns",
            &both.fetch,
        ])?;
        for (name, address) in [
            (&both.serve, "10.213.0.1/30"),
            (&both.fetch, "10.213.0.2/30"),
        ] {
            ip(&["-n", name, "address", "add", address, "dev", "cable"])?;
            ip(&["-n", name, "link", "set", "cable", "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(both)
    }

    pub(crate) fn serve(&self) -> &str {
        &self.serve
    }

    pub(crate) fn fetch(&self) -> &str {
        &self.fetch
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in [&self.serve, &self.fetch] {
            // it may not have come to be
            drop(ip(&["netns", "delete", name]));
        }
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("can't run ip (iproute2)")?;
    if output.status.success() {
        Ok(())
    } else {
        bail!(
            "ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
}
