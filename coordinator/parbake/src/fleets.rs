//! The fleets that `parbake login` remembers, so that no command needs to be told where the coordinator is.
//!
//! They are in `$XDG_CONFIG_HOME/parbake` (else `~/.config/parbake`): `fleets.toml` says where each coordinator is and
//! by which pin it is recognised, and `NAME.token` holds the fleet's token, which nobody but its owner may read.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use client::{Client, Target, view::HostView};
use http::Method;
use serde::{Deserialize, Serialize};

use crate::{
    connection::{self, Connection, Found},
    ended::Outcome,
    say::print,
};

/// The file with the fleets, within its directory.
const FILE: &str = "fleets.toml";
/// The most letters of a fleet's name.
const MAX_NAME: usize = 63;

/// Options of `login`.
#[derive(Args, Debug)]
pub struct Login {
    /// Name for the fleet: letters, digits, '.', '_' and '-'. [default: the host name of --api]
    name: Option<String>,
}

/// Options of `logout`.
#[derive(Args, Debug)]
pub struct Logout {
    /// Name of the fleet.
    name: String,
}

/// Options of `fleets`.
#[derive(Args, Debug)]
pub struct List {
    /// Print a JSON array with one object for each fleet.
    #[arg(long)]
    json: bool,
}

/// Where a fleet's coordinator is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fleet {
    /// `https://host:port`.
    pub(crate) api: String,
    /// 64 hex digits.
    pub(crate) ca_pin: String,
    pub(crate) token_file: PathBuf,
}

/// What `fleets.toml` holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct File {
    /// The fleet of the last login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    #[serde(default)]
    fleets: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    api: String,
    ca_pin: String,
}

/// A fleet as `parbake fleets` shows it.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    fleet: &'a str,
    api: &'a str,
    ca_pin: &'a str,
    current: bool,
}

/// The fleets that are remembered in a directory.
#[derive(Debug, Default)]
pub(crate) struct Fleets {
    /// `None` for a user without a home, for whom nothing is remembered.
    directory: Option<PathBuf>,
    file: File,
}

impl Fleets {
    /// The user's fleets.
    pub(crate) fn at_home() -> anyhow::Result<Self> {
        match directory(|name| std::env::var_os(name).map(PathBuf::from)) {
            Some(directory) => Self::open(&directory),
            None => Ok(Self::default()),
        }
    }

    /// The fleets in a directory, which needn't be there.
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        let file = match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text)
                .with_context(|| format!("{} isn't what `parbake login` writes", path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => File::default(),
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", path.display()));
            }
        };
        Ok(Self {
            directory: Some(directory.to_owned()),
            file,
        })
    }

    /// The fleet with this name, or the one of the last login; `None` if no name is given and there was no login.
    pub(crate) fn choose(&self, name: Option<&str>) -> anyhow::Result<Option<Fleet>> {
        let Some(name) = name.or(self.file.current.as_deref()) else {
            return Ok(None);
        };
        let Some(entry) = self.file.fleets.get(name) else {
            let known: Vec<_> = self.file.fleets.keys().map(String::as_str).collect();
            match known.as_slice() {
                [] => bail!("fleet {name} isn't known: no fleet is; see `parbake login --help`"),
                known => bail!(
                    "fleet {name} isn't known: `parbake login` remembers {}",
                    known.join(", ")
                ),
            }
        };
        Ok(Some(Fleet {
            api: entry.api.clone(),
            ca_pin: entry.ca_pin.clone(),
            token_file: token_file(self.directory()?, name),
        }))
    }

    /// Remembers a fleet, which is the one of the last login from now on.
    pub(crate) fn remember(&mut self, name: &str, found: &Found) -> anyhow::Result<()> {
        checked(name)?;
        let directory = self.directory()?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("making {}", directory.display()))?;
        let token = format!("{}\n", found.token.expose());
        let path = token_file(directory, name);
        durable::write(&path, token.as_bytes(), 0o600)
            .with_context(|| format!("writing {}", path.display()))?;
        let entry = Entry {
            api: format!("https://{}", found.address),
            ca_pin: found.pin.hex().to_string(),
        };
        self.file.fleets.insert(name.to_owned(), entry);
        self.file.current = Some(name.to_owned());
        self.write()
    }

    /// Forgets a fleet and its token.
    fn forget(&mut self, name: &str) -> anyhow::Result<()> {
        if self.file.fleets.remove(name).is_none() {
            self.choose(Some(name))?;
        }
        if self.file.current.as_deref() == Some(name) {
            self.file.current = None;
        }
        self.write()?;
        let path = token_file(self.directory()?, name);
        match durable::remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn directory(&self) -> anyhow::Result<&Path> {
        self.directory.as_deref().context(
            "this user has no home, so no fleet is remembered: set HOME, or say with each command where the \
             coordinator is (--api, --ca-pin, --token-file)",
        )
    }

    fn write(&self) -> anyhow::Result<()> {
        let path = self.directory()?.join(FILE);
        let text = toml::to_string(&self.file).context("writing TOML")?;
        durable::write(&path, text.as_bytes(), 0o600)
            .with_context(|| format!("writing {}", path.display()))
    }

    fn shown(&self) -> Vec<Shown<'_>> {
        self.file
            .fleets
            .iter()
            .map(|(name, entry)| Shown {
                fleet: name,
                api: &entry.api,
                ca_pin: &entry.ca_pin,
                current: self.file.current.as_ref() == Some(name),
            })
            .collect()
    }
}

/// The file with a fleet's token.
fn token_file(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.token"))
}

/// The directory of a user's fleets, by the variables of the environment. `None` for a user without a home. A path that
/// isn't absolute doesn't count (XDG base directory specification): whoever owns the working directory could name a
/// fleet in it.
fn directory(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |name| variable(name).filter(|path| path.is_absolute());
    let config = absolute("XDG_CONFIG_HOME");
    let config = config.or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(config.join("parbake"))
}

/// An error if this can't be a fleet's name, which names a file.
fn checked(name: &str) -> anyhow::Result<()> {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    if name.is_empty() || name.len() > MAX_NAME || name.starts_with('.') || !name.chars().all(fits)
    {
        bail!(
            "`{name}` can't be a fleet's name: use 1 to {MAX_NAME} letters, digits, '.', '_' and '-', and no '.' first"
        );
    }
    Ok(())
}

/// Asks the coordinator for its hosts, and remembers the fleet if the coordinator answers.
pub(crate) async fn login(options: &Login, connection: &Connection) -> anyhow::Result<Outcome> {
    if connection.fleet.is_some() {
        bail!(
            "`login` makes a fleet known: write its name without --fleet (or PARBAKE_FLEET), and say where it is with --api or --state-dir"
        );
    }
    let found = connection::given(connection)?;
    let name = match &options.name {
        Some(name) => name.clone(),
        None => host_of(&found.address).to_owned(),
    };
    checked(&name)?;
    let target = Target::new(found.address.clone(), found.pin, found.token.clone())
        .with_token_file(found.token_file.clone());
    let hosts: Vec<HostView> = Client::new(target)
        .read(Method::GET, "/v1/hosts", None::<&()>)
        .await?;
    let mut fleets = Fleets::at_home()?;
    fleets.remember(&name, &found)?;
    let goes_before = ["PARBAKE_API", "PARBAKE_STATE"];
    let goes_before = goes_before
        .into_iter()
        .find(|name| std::env::var_os(name).is_some());
    let next = match goes_before {
        Some(name) => format!("commands go to it where {name} isn't set, as it is here"),
        None => "commands go to it from now on, unless --fleet names another".to_owned(),
    };
    let (hosts, address) = (hosts.len(), found.address);
    print(false, &(), || {
        format!("fleet {name}: {hosts} hosts, at {address}; {next}\n")
    })?;
    Ok(Outcome::Yes)
}

/// The host name of `host:port`.
fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

/// Forgets a fleet and its token.
pub(crate) fn logout(options: &Logout) -> anyhow::Result<Outcome> {
    Fleets::at_home()?.forget(&options.name)?;
    let text = format!(
        "fleet {} is forgotten, and its token with it\n",
        options.name
    );
    print(false, &(), || text)?;
    Ok(Outcome::Yes)
}

/// Shows the fleets that are remembered.
pub(crate) fn list(options: &List) -> anyhow::Result<Outcome> {
    let fleets = Fleets::at_home()?;
    let shown = fleets.shown();
    print(options.json, &shown, || text(&shown))?;
    Ok(Outcome::Yes)
}

fn text(fleets: &[Shown<'_>]) -> String {
    if fleets.is_empty() {
        return "no fleet is known; see `parbake login --help`\n".to_owned();
    }
    let width = fleets.iter().map(|fleet| fleet.fleet.len()).max();
    let mut text = String::new();
    for fleet in fleets {
        let mark = if fleet.current { '*' } else { ' ' };
        let width = width.unwrap_or(0);
        _ = writeln!(text, "{mark} {:<width$}  {}", fleet.fleet, fleet.api);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use client::Secret;
    use proto::Digest;

    use super::*;

    fn found(address: &str) -> Found {
        Found {
            address: address.into(),
            pin: Digest::of(address.as_bytes()),
            token: Secret::new("a token".into()),
            token_file: PathBuf::new(),
        }
    }

    #[test]
    fn a_fleet_is_remembered_with_a_token_that_its_owner_alone_may_read() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("config/parbake");
        let mut fleets = Fleets::open(&home).unwrap();
        assert_eq!(fleets.choose(None).unwrap(), None);
        fleets
            .remember("berlin", &found("berlin.example:7470"))
            .unwrap();
        let again = Fleets::open(&home).unwrap();
        let berlin = again.choose(None).unwrap().unwrap();
        assert_eq!(berlin.api, "https://berlin.example:7470");
        assert_eq!(berlin.ca_pin.len(), 64);
        assert_eq!(fs::read_to_string(&berlin.token_file).unwrap(), "a token\n");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&berlin.token_file), mode(&home)), (0o600, 0o700));
    }

    #[test]
    fn a_forgotten_fleet_leaves_no_token_and_an_unknown_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut fleets = Fleets::open(dir.path()).unwrap();
        fleets
            .remember("berlin", &found("berlin.example:7470"))
            .unwrap();
        fleets
            .remember("paris", &found("paris.example:7470"))
            .unwrap();
        fleets.forget("paris").unwrap();
        assert!(!dir.path().join("paris.token").exists());
        let mut fleets = Fleets::open(dir.path()).unwrap();
        // none is the last one then, rather than one that nobody chose
        assert_eq!(fleets.choose(None).unwrap(), None);
        assert!(fleets.choose(Some("berlin")).unwrap().is_some());
        let error = fleets.forget("paris").unwrap_err().to_string();
        assert!(error.contains("remembers berlin"), "{error}");
    }

    #[test]
    fn without_a_home_nothing_is_remembered_and_nothing_is_read() {
        let mut nowhere = Fleets::default();
        assert_eq!(nowhere.choose(None).unwrap(), None);
        let error = nowhere.remember("berlin", &found("berlin.example:7470"));
        assert!(error.unwrap_err().to_string().contains("set HOME"));
    }

    #[test]
    fn a_name_that_could_leave_its_directory_is_refused() {
        let long = "x".repeat(MAX_NAME + 1);
        for name in ["", ".", "..", "../x", "a/b", "a b", &long] {
            checked(name).unwrap_err();
        }
        for name in ["berlin", "mac-1.example", &long[1..]] {
            checked(name).unwrap();
        }
    }

    #[test]
    fn fleets_are_where_other_programs_keep_their_settings() {
        let with = |config: Option<&str>, home: Option<&str>| {
            directory(|name| match name {
                "HOME" => home.map(PathBuf::from),
                _ => config.map(PathBuf::from),
            })
        };
        let at = |path: &str| Some(PathBuf::from(path));
        assert_eq!(with(Some("/c"), Some("/h")), at("/c/parbake"));
        assert_eq!(with(None, Some("/h")), at("/h/.config/parbake"));
        assert_eq!(with(Some("c"), Some("/h")), at("/h/.config/parbake"));
        assert_eq!(with(None, None), None);
        assert_eq!(with(None, Some("")), None);
    }

    #[test]
    fn a_file_that_somebody_broke_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "fleets = 3").unwrap();
        let error = Fleets::open(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(FILE) && error.contains("parbake login"),
            "{error}"
        );
    }
}
