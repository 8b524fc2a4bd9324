//! Where the coordinator is, by options, the environment, or the coordinator's own state directory.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use client::{Secret, view::Addresses};
use proto::Digest;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

/// How to reach the coordinator.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Connection")]
pub struct Connection {
    /// Name of a fleet that `parbake login` remembers. It takes the place of --api, --token-file and --ca-pin.
    /// [default: the fleet of the last login, if neither --api nor --state-dir is given]
    #[arg(long, env = "PARBAKE_FLEET", global = true, value_name = "NAME")]
    pub fleet: Option<String>,
    /// Address of the coordinator's API, such as `https://parbake.example.com:7470`. [default: of the fleet, or from
    /// --state-dir]
    #[arg(long, env = "PARBAKE_API", global = true, value_name = "URL")]
    pub api: Option<String>,
    /// File that holds the API's token, a secret: a copy of `api.token` in the coordinator's state directory. [default:
    /// of the fleet, or from --state-dir]
    #[arg(long, env = "PARBAKE_TOKEN_FILE", global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Pin of the fleet's authority, by which the coordinator is recognised: the 64 hex digits that
    /// `parbake-coordinator pin` prints. [default: of the fleet, or computed from --ca or --state-dir]
    #[arg(long, env = "PARBAKE_CA_PIN", global = true, value_name = "HEX")]
    pub ca_pin: Option<String>,
    /// File that holds the certificate of the fleet's authority (PEM). It takes the place of --ca-pin. [default: from
    /// --state-dir]
    #[arg(long, env = "PARBAKE_CA", global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// State directory of the coordinator. On the coordinator's machine it takes the place of --api, --token-file and
    /// --ca-pin. [default: none]
    #[arg(long, env = "PARBAKE_STATE", global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// A coordinator as the options name it.
#[derive(Debug)]
pub(crate) struct Found {
    /// `host:port`.
    pub(crate) address: String,
    pub(crate) pin: Digest,
    pub(crate) token: Secret,
    pub(crate) token_file: PathBuf,
}

/// The coordinator that the options name. A state directory supplies what the options leave out.
pub(crate) fn given(options: &Connection) -> anyhow::Result<Found> {
    let in_state = |name: &str| options.state_dir.as_ref().map(|dir| dir.join(name));
    let address = match (&options.api, in_state("addresses.json")) {
        (Some(api), _) => wire::api_address(api)?.to_owned(),
        (None, Some(path)) => {
            if let Some(state) = &options.state_dir
                && !path.exists()
            {
                bail!(
                    "no coordinator ever ran on {}: name its own directory (--state-dir), or start it",
                    state.display()
                );
            }
            let addresses: Addresses = serde_json::from_str(&read(&path)?)
                .with_context(|| format!("{} isn't what a coordinator writes", path.display()))?;
            let mut api = addresses.api;
            if api.ip().is_unspecified() {
                api.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
            }
            api.to_string()
        }
        (None, None) => bail!(
            "no coordinator given: use `parbake login`, or set --api (PARBAKE_API), --token-file and --ca-pin, or \
             --state-dir on the coordinator's own machine"
        ),
    };
    let pin = match (
        &options.ca_pin,
        options.ca.clone().or(in_state("authority/ca.pem")),
    ) {
        (Some(pin), _) => wire::parse_pin(pin).context(
            "--ca-pin has to be the 64 hex digits that `parbake-coordinator pin` prints",
        )?,
        (None, Some(path)) => {
            let certificate =
                CertificateDer::from_pem_slice(read(&path)?.as_bytes()).map_err(|error| {
                    anyhow!("{} holds no certificate (PEM): {error}", path.display())
                })?;
            Digest::of(&certificate)
        }
        (None, None) => {
            bail!("nothing to recognise the coordinator by: set --ca-pin (PARBAKE_CA_PIN) or --ca")
        }
    };
    let path = options.token_file.clone().or(in_state("api.token"));
    let path = path.context("no API token: set --token-file (PARBAKE_TOKEN_FILE) to a copy of the coordinator's api.token")?;
    let token = Secret::from_text(&read(&path)?);
    Ok(Found {
        address,
        pin,
        token,
        token_file: path,
    })
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_to_reach_a_coordinator_is_named() {
        let error = given(&Connection::default()).unwrap_err().to_string();
        assert!(
            error.contains("PARBAKE_API") && error.contains("--state-dir"),
            "{error}"
        );
        let empty = tempfile::tempdir().unwrap();
        let elsewhere = Connection {
            state_dir: Some(empty.path().to_owned()),
            ..Connection::default()
        };
        let error = given(&elsewhere).unwrap_err().to_string();
        assert!(error.starts_with("no coordinator ever ran on "), "{error}");
        let no_port = Connection {
            api: Some("https://parbake.example.com".into()),
            ..Connection::default()
        };
        assert!(
            given(&no_port)
                .unwrap_err()
                .to_string()
                .contains("host:port")
        );
        let plain = Connection {
            api: Some("http://parbake.example.com:7470".into()),
            ..Connection::default()
        };
        let error = given(&plain).unwrap_err().to_string();
        assert!(error.contains("use https://"), "{error}");
    }
}
