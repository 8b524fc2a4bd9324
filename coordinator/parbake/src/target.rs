//! Which coordinator a command goes to: the one that the options name, or a fleet that `parbake login` remembers.

use anyhow::bail;
use client::Target;

use crate::{
    connection::{Connection, Found, given},
    fleets::Fleets,
};

/// The coordinator that the options name, or the fleet that `parbake login` remembers.
pub(crate) fn target(options: &Connection) -> anyhow::Result<Target> {
    let found = found_with(options, Fleets::at_home)?;
    Ok(Target::new(found.address, found.pin, found.token).with_token_file(found.token_file))
}

/// The coordinator that the options name, or one of the fleets, which are read only where they are needed.
fn found_with(
    options: &Connection,
    fleets: impl FnOnce() -> anyhow::Result<Fleets>,
) -> anyhow::Result<Found> {
    let elsewhere = options.api.is_some() || options.state_dir.is_some();
    match &options.fleet {
        Some(name) if elsewhere => bail!(
            "both fleet {name} (--fleet, PARBAKE_FLEET) and another address (--api, PARBAKE_API, --state-dir, \
             PARBAKE_STATE) are given: leave one out"
        ),
        None if elsewhere => given(options),
        name => match fleets()?.choose(name.as_deref())? {
            None => given(options),
            // what is given besides goes before what is remembered
            Some(fleet) => given(&Connection {
                fleet: None,
                api: Some(fleet.api),
                token_file: options.token_file.clone().or(Some(fleet.token_file)),
                ca_pin: match options.ca {
                    Some(_) => options.ca_pin.clone(),
                    None => options.ca_pin.clone().or(Some(fleet.ca_pin)),
                },
                ca: options.ca.clone(),
                state_dir: None,
            }),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use client::Secret;
    use proto::Digest;

    use super::*;

    fn login(fleets: &mut Fleets, name: &str, address: &str) {
        let found = Found {
            address: address.into(),
            pin: Digest::of(name.as_bytes()),
            token: Secret::new(format!("token of {name}")),
            token_file: PathBuf::new(),
        };
        fleets.remember(name, &found).unwrap();
    }

    #[test]
    fn a_remembered_fleet_is_found_and_what_is_given_besides_goes_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut fleets = Fleets::open(dir.path()).unwrap();
        login(&mut fleets, "berlin", "berlin.example:7470");
        login(&mut fleets, "paris", "paris.example:7470");
        let found = |options: &Connection| found_with(options, || Fleets::open(dir.path()));
        // the last login counts
        let last = found(&Connection::default()).unwrap();
        assert_eq!(last.address, "paris.example:7470");
        assert_eq!(last.pin, Digest::of(b"paris"));
        assert_eq!(last.token.expose(), "token of paris");
        let berlin = Connection {
            fleet: Some("berlin".into()),
            ..Connection::default()
        };
        assert_eq!(found(&berlin).unwrap().address, "berlin.example:7470");
        let pinned = Connection {
            ca_pin: Some("0f".repeat(32)),
            ..berlin.clone()
        };
        assert_eq!(
            found(&pinned).unwrap().pin.to_string(),
            format!("sha256:{}", "0f".repeat(32))
        );
        // a token of one coordinator goes to no other
        let both = Connection {
            api: Some("https://other.example:7470".into()),
            ..berlin
        };
        let error = found(&both).unwrap_err().to_string();
        assert!(error.contains("leave one out"), "{error}");
        let address_alone = Connection {
            api: both.api,
            ..Connection::default()
        };
        let error = found(&address_alone).unwrap_err().to_string();
        assert!(error.contains("--ca-pin"), "{error}");
        let unknown = Connection {
            fleet: Some("rome".into()),
            ..Connection::default()
        };
        let error = found(&unknown).unwrap_err().to_string();
        assert!(error.contains("berlin, paris"), "{error}");
    }
}
