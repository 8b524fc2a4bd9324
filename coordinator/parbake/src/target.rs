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
            // one fleet's token must not go to another
            Some(_)
                if options.token_file.is_some()
                    || options.ca_pin.is_some()
                    || options.ca.is_some() =>
            {
                bail!(
                    "--token-file, --ca-pin and --ca (PARBAKE_TOKEN_FILE, PARBAKE_CA_PIN, PARBAKE_CA) go with --api or \
                 --state-dir: a fleet that `parbake login` remembers has its own token and pin; leave them out, or log \
                 in again to change them"
                )
            }
            Some(fleet) => given(&Connection {
                api: Some(fleet.api),
                token_file: Some(fleet.token_file),
                ca_pin: Some(fleet.ca_pin),
                ..Connection::default()
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
    fn a_remembered_fleet_is_found_and_nothing_of_another_goes_to_it() {
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
        for (name, other) in [
            (
                "a token",
                Connection {
                    token_file: Some("other.token".into()),
                    ..Connection::default()
                },
            ),
            (
                "a pin",
                Connection {
                    ca_pin: Some("0f".repeat(32)),
                    ..Connection::default()
                },
            ),
            (
                "an authority",
                Connection {
                    ca: Some("ca.pem".into()),
                    ..berlin.clone()
                },
            ),
        ] {
            let error = found(&other).unwrap_err().to_string();
            assert!(error.contains("leave them out"), "{name}: {error}");
        }
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
