//! Which hosts may have a certificate: single-use tokens, the hosts that enrolled, and the hosts that were revoked.
//!
//! Each fact is a file of its own. So the command line can add a fact beside the running coordinator, and a crash loses
//! or keeps a fact whole. `tokens/<sha256 of the token>` holds the host and the expiry. `enrolled/<host>` and
//! `revoked/<host>` hold the time and the reason.
//!
//! A token is used up by unlinking its file, before the certificate leaves the program. Of two users, one finds the
//! file gone. A crash in between costs a token, but never allows a second use.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use proto::HostId;
use serde::{Deserialize, Serialize};

use crate::{authority::COORDINATOR, secret::Secret};

/// The most tokens that may be outstanding: enough for a fleet of 1,000 hosts, twice over.
const MAX_TOKENS: usize = 2_000;

/// The enrolment records of a state directory.
#[derive(Clone, Debug)]
pub struct Enrolment {
    tokens: PathBuf,
    enrolled: PathBuf,
    revoked: PathBuf,
}

/// A record can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("enrolment record {path}: {error}")]
pub struct RecordError {
    /// The file or directory.
    pub path: PathBuf,
    /// The cause.
    pub error: io::Error,
}

/// Why no token is made.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The name belongs to the coordinator.
    #[error("host id `{COORDINATOR}` is reserved")]
    Reserved,
    /// The host was revoked. Readmit it first.
    #[error("host {0} is revoked; readmit it first with `parbake-coordinator readmit {0}`")]
    Revoked(HostId),
    /// Too many tokens wait to be used. They expire by themselves.
    #[error(
        "{MAX_TOKENS} enrolment tokens are outstanding already; wait until some are used or expire"
    )]
    TooMany,
    /// A file can't be written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Why a token isn't honoured.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// The token was never made, is used already, or expired and was swept. The asker isn't told which.
    #[error(
        "enrolment token is unknown or used already; make a new one with `parbake-coordinator token --host ID`"
    )]
    Unknown,
    /// The token has expired.
    #[error(
        "enrolment token has expired; make a new one with `parbake-coordinator token --host ID`"
    )]
    Expired,
    /// The token's host was revoked after the token was made.
    #[error("host {0} is revoked")]
    Revoked(HostId),
    /// A file can't be read or removed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

#[derive(Debug, Serialize, Deserialize)]
struct TokenRecord {
    host: String,
    expires_unix: u64,
}

/// When a host was revoked, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocation {
    /// Unix seconds; 0 where the record doesn't tell.
    pub at_unix: u64,
    /// The operator's words; may be empty.
    pub reason: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct HostRecord {
    at_unix: u64,
    #[serde(default)]
    reason: String,
}

impl Enrolment {
    /// Opens the records in this state directory, and makes its directories where they are missing. Blocks.
    ///
    /// # Errors
    /// When a directory can't be made.
    pub fn open(state_dir: &Path) -> Result<Self, RecordError> {
        let this = Self {
            tokens: state_dir.join("tokens"),
            enrolled: state_dir.join("enrolled"),
            revoked: state_dir.join("revoked"),
        };
        for dir in [&this.tokens, &this.enrolled, &this.revoked] {
            durable::make_dir(dir).map_err(at(dir))?;
        }
        Ok(this)
    }

    /// Removes what interrupted writes left, and expired tokens. Only the coordinator itself calls it, at its start.
    /// Blocks.
    ///
    /// # Errors
    /// When a file can't be read or removed.
    pub fn sweep(&self, now: SystemTime) -> Result<(), RecordError> {
        for dir in [&self.tokens, &self.enrolled, &self.revoked] {
            durable::sweep(dir).map_err(at(dir))?;
        }
        self.live_tokens(now).map(drop)
    }

    /// Makes a new token for this host. Blocks.
    ///
    /// # Errors
    /// When the host can't enrol, or the token can't be kept.
    pub fn mint(
        &self,
        host: &HostId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Secret, MintError> {
        if host.as_str() == COORDINATOR {
            return Err(MintError::Reserved);
        }
        if self.is_revoked(host)? {
            return Err(MintError::Revoked(host.clone()));
        }
        if self.live_tokens(now)? >= MAX_TOKENS {
            return Err(MintError::TooMany);
        }
        let token = crate::secret::random();
        let record = TokenRecord {
            host: host.to_string(),
            expires_unix: unix(now + lifetime),
        };
        let path = self.tokens.join(token.digest().hex().to_string());
        write(&path, &record)?;
        Ok(token)
    }

    /// The host of this token, if the token may be used now. Doesn't use the token up. Blocks.
    ///
    /// # Errors
    /// When the token isn't good.
    pub fn peek(&self, token: &Secret, now: SystemTime) -> Result<HostId, RedeemError> {
        let path = self.token_path(token);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RedeemError::Unknown);
            }
            Err(error) => return Err(at(&path)(error).into()),
        };
        let record: TokenRecord =
            serde_json::from_slice(&text).map_err(|_| RedeemError::Unknown)?;
        let host: HostId = record.host.parse().map_err(|_| RedeemError::Unknown)?;
        if record.expires_unix <= unix(now) {
            return Err(RedeemError::Expired);
        }
        if self.is_revoked(&host)? {
            return Err(RedeemError::Revoked(host));
        }
        Ok(host)
    }

    /// Uses the token up, for good, even if the machine loses power after this returns. Returns the token's host, and
    /// the time from which the host counts as enrolled, which may be a second ahead. Blocks.
    ///
    /// # Errors
    /// When the token isn't good, also when another call used it in the meantime.
    pub fn redeem(
        &self,
        token: &Secret,
        now: SystemTime,
    ) -> Result<(HostId, SystemTime), RedeemError> {
        let host = self.peek(token, now)?;
        let path = self.token_path(token);
        match durable::remove(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RedeemError::Unknown);
            }
            Err(error) => return Err(at(&path)(error).into()),
        }
        let at = self.enrol(&host, now)?;
        Ok((host, at))
    }

    /// Records an enrolment. The host counts as enrolled from the first second that begins after this returns. So no
    /// certificate that was signed before has that second as its date. Whoever signs a certificate reads the record
    /// after signing, and so notices an enrolment in between.
    fn enrol(&self, host: &HostId, now: SystemTime) -> Result<SystemTime, RecordError> {
        let began = Instant::now();
        let before = self.enrolled_at(host)?.unwrap_or_default();
        loop {
            let seen = unix(now + began.elapsed());
            // Several enrolments may come within a second, so each counts a second later than the last; at most five
            // seconds ahead, because certificates of a minute are dated back by five seconds. A record from before the
            // clock was set back can't be exceeded.
            let again = before > seen && before <= seen + 4;
            let at_unix = if again { before } else { seen } + 1;
            let record = HostRecord {
                at_unix,
                reason: String::new(),
            };
            write(&self.enrolled.join(host.as_str()), &record)?;
            // a slow disk may have taken longer than the second; then try again
            if unix(now + began.elapsed()) < at_unix {
                return Ok(UNIX_EPOCH + Duration::from_secs(at_unix));
            }
        }
    }

    /// The hosts that enrolled, and when (Unix seconds). A record that can't be parsed counts with time 0. Blocks.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn enrolled(&self) -> Result<BTreeMap<HostId, u64>, RecordError> {
        let enrolled = list(&self.enrolled)?.into_iter();
        Ok(enrolled
            .map(|(host, record)| (host, record.at_unix))
            .collect())
    }

    /// When this host last enrolled (Unix seconds). `None` when it never did, or when its record can't be parsed.
    /// Blocks.
    ///
    /// # Errors
    /// When the record can't be read.
    pub fn enrolled_at(&self, host: &HostId) -> Result<Option<u64>, RecordError> {
        let path = self.enrolled.join(host.as_str());
        match fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice::<HostRecord>(&text)
                .ok()
                .map(|record| record.at_unix)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(&path)(error)),
        }
    }

    /// The hosts that are revoked, since when and why. Blocks.
    ///
    /// # Errors
    /// When the directory can't be read. A running coordinator then keeps the last known revocations in force, and a
    /// starting one ends.
    pub fn revoked(&self) -> Result<BTreeMap<HostId, Revocation>, RecordError> {
        let revoked = list(&self.revoked)?.into_iter();
        Ok(revoked
            .map(|(host, record)| {
                let revocation = Revocation {
                    at_unix: record.at_unix,
                    reason: record.reason,
                };
                (host, revocation)
            })
            .collect())
    }

    /// Whether anything is known of a host: it enrolled, was revoked, or a token waits for it. Blocks.
    ///
    /// # Errors
    /// When a directory can't be read.
    pub fn knows(&self, host: &HostId) -> Result<bool, RecordError> {
        let enrolled = self.enrolled.join(host.as_str());
        if enrolled.try_exists().map_err(at(&enrolled))? || self.is_revoked(host)? {
            return Ok(true);
        }
        let names = durable::names(&self.tokens).map_err(at(&self.tokens))?;
        Ok(names.iter().any(|name| {
            let record = fs::read(self.tokens.join(name)).ok();
            let record = record.and_then(|text| serde_json::from_slice::<TokenRecord>(&text).ok());
            record.is_some_and(|record| record.host == host.as_str())
        }))
    }

    /// Revokes a host: its sessions end, it gets no certificate any more, it leaves every roster. Blocks.
    ///
    /// # Errors
    /// When the record can't be written.
    pub fn revoke(&self, host: &HostId, reason: &str, now: SystemTime) -> Result<(), RecordError> {
        let record = HostRecord {
            at_unix: unix(now),
            reason: reason.chars().take(500).collect(),
        };
        write(&self.revoked.join(host.as_str()), &record)
    }

    /// Takes a revocation back. Returns whether there was one. Blocks.
    ///
    /// The host counts as enrolled only from now on, so no earlier certificate is accepted any more: somebody else may
    /// have its key. The host has to enrol with a token.
    ///
    /// # Errors
    /// When a record can't be written or removed.
    pub fn readmit(&self, host: &HostId, now: SystemTime) -> Result<bool, RecordError> {
        let path = self.revoked.join(host.as_str());
        if self.is_revoked(host)? && self.enrolled_at(host)?.is_some() {
            self.enrol(host, now)?;
        }
        match durable::remove(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(at(&path)(error)),
        }
    }

    /// Whether a host is revoked. Blocks for one system call.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub(crate) fn is_revoked(&self, host: &HostId) -> Result<bool, RecordError> {
        let path = self.revoked.join(host.as_str());
        path.try_exists().map_err(at(&path))
    }

    /// When a record of an enrolled, and of a revoked host last came, changed or went, by the times of their
    /// directories. `None` where a time can't be read. Blocks for two system calls.
    pub(crate) fn hosts_changed_at(&self) -> Option<[SystemTime; 2]> {
        let time = |dir: &Path| fs::metadata(dir)?.modified();
        let times = (time(&self.enrolled), time(&self.revoked));
        Some([times.0.ok()?, times.1.ok()?])
    }

    fn token_path(&self, token: &Secret) -> PathBuf {
        // The name is a hash in hex, so it is a plain file name whatever the token holds.
        self.tokens.join(token.digest().hex().to_string())
    }

    /// The number of tokens that are still good. Removes the others.
    fn live_tokens(&self, now: SystemTime) -> Result<usize, RecordError> {
        let mut live = 0;
        for name in durable::names(&self.tokens).map_err(at(&self.tokens))? {
            let path = self.tokens.join(&name);
            let record = fs::read(&path)
                .ok()
                .and_then(|text| serde_json::from_slice::<TokenRecord>(&text).ok());
            if record.is_some_and(|record| record.expires_unix > unix(now)) {
                live += 1;
            } else if let Err(error) = durable::remove(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(at(&path)(error));
            }
        }
        Ok(live)
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_path_buf();
    move |error| RecordError { path, error }
}

fn write(path: &Path, record: &impl Serialize) -> Result<(), RecordError> {
    let text = serde_json::to_vec(record).map_err(|error| at(path)(error.into()))?;
    durable::write(path, &text, durable::SECRET).map_err(at(path))
}

/// The records of a directory. A record that can't be parsed still counts, with an unknown time, because the file's
/// name is the fact.
fn list(dir: &Path) -> Result<BTreeMap<HostId, HostRecord>, RecordError> {
    let mut hosts = BTreeMap::new();
    for name in durable::names(dir).map_err(at(dir))? {
        let Ok(host) = name.parse() else { continue };
        let record = fs::read(dir.join(&name))
            .ok()
            .and_then(|text| serde_json::from_slice::<HostRecord>(&text).ok());
        hosts.insert(host, record.unwrap_or_default());
    }
    Ok(hosts)
}

/// Unix seconds; 0 for a time before 1970.
pub(crate) fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn fresh() -> (tempfile::TempDir, Enrolment, HostId, SystemTime) {
        let dir = tempfile::tempdir().unwrap();
        let enrolment = Enrolment::open(dir.path()).unwrap();
        (dir, enrolment, "mini-1".parse().unwrap(), SystemTime::now())
    }

    #[test]
    fn a_token_works_once() {
        let (_dir, enrolment, host, now) = fresh();
        let token = enrolment.mint(&host, HOUR, now).unwrap();
        assert_eq!(enrolment.peek(&token, now).unwrap(), host);
        assert_eq!(enrolment.redeem(&token, now).unwrap().0, host);
        assert!(matches!(
            enrolment.redeem(&token, now),
            Err(RedeemError::Unknown)
        ));
        assert!(enrolment.enrolled().unwrap().contains_key(&host));
    }

    #[test]
    fn of_many_users_of_one_token_exactly_one_succeeds() {
        let (_dir, enrolment, host, now) = fresh();
        let token = enrolment.mint(&host, HOUR, now).unwrap();
        let redeemed = std::thread::scope(|scope| {
            let users: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| enrolment.redeem(&token, now).is_ok()))
                .collect();
            users
                .into_iter()
                .filter_map(|user| user.join().ok())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(redeemed, 1);
    }

    #[test]
    fn a_token_is_good_until_it_expires_and_not_after() {
        let (_dir, enrolment, host, now) = fresh();
        let token = enrolment.mint(&host, HOUR, now).unwrap();
        let last = now + HOUR - Duration::from_secs(1);
        assert!(enrolment.peek(&token, last).is_ok());
        assert!(matches!(
            enrolment.redeem(&token, now + HOUR),
            Err(RedeemError::Expired)
        ));
    }

    #[test]
    fn nothing_at_rest_holds_the_token() {
        let (dir, enrolment, host, now) = fresh();
        let token = enrolment.mint(&host, HOUR, now).unwrap();
        for entry in fs::read_dir(dir.path().join("tokens")).unwrap() {
            let path = entry.unwrap().path();
            assert!(!path.to_string_lossy().contains(token.expose()));
            assert!(!fs::read_to_string(path).unwrap().contains(token.expose()));
        }
    }

    #[test]
    fn torn_and_hostile_files_are_no_tokens() {
        let (dir, enrolment, host, now) = fresh();
        let token = enrolment.mint(&host, HOUR, now).unwrap();
        let name = token.digest().hex().to_string();
        let path = dir.path().join("tokens").join(name);
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(matches!(
            enrolment.redeem(&token, now),
            Err(RedeemError::Unknown)
        ));
        let hostile = Secret::from_text("../enrolled/mini-1");
        assert!(matches!(
            enrolment.peek(&hostile, now),
            Err(RedeemError::Unknown)
        ));
        fs::write(dir.path().join("tokens/.x.1.1.tmp"), b"torn").unwrap();
        enrolment.sweep(now).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("tokens")).unwrap().count(), 0);
    }

    #[test]
    fn a_revoked_host_gets_no_token_and_its_old_one_is_dead() {
        let (_dir, enrolment, host, now) = fresh();
        let token = enrolment.mint(&host, HOUR, now).unwrap();
        enrolment.revoke(&host, "stolen", now).unwrap();
        assert!(matches!(
            enrolment.redeem(&token, now),
            Err(RedeemError::Revoked(_))
        ));
        assert!(matches!(
            enrolment.mint(&host, HOUR, now),
            Err(MintError::Revoked(_))
        ));
        assert!(enrolment.readmit(&host, now).unwrap());
        assert!(!enrolment.readmit(&host, now).unwrap());
        assert_eq!(enrolment.enrolled_at(&host).unwrap(), None);
        assert!(enrolment.redeem(&token, now).is_ok());
    }

    #[test]
    fn a_readmitted_host_counts_as_enrolled_from_then_on_only() {
        let (_dir, enrolment, host, now) = fresh();
        let token = enrolment.mint(&host, HOUR, now).unwrap();
        // the enrolment counts from the next second on, because a certificate of this second may be from before
        let (_, from) = enrolment.redeem(&token, now).unwrap();
        let enrolled = Some(unix(from));
        assert!(from > now && from <= now + Duration::from_secs(2));
        assert_eq!(enrolment.enrolled_at(&host).unwrap(), enrolled);
        // nothing was revoked, so nothing changes
        assert!(!enrolment.readmit(&host, now + HOUR).unwrap());
        assert_eq!(enrolment.enrolled_at(&host).unwrap(), enrolled);
        enrolment.revoke(&host, "stolen", now).unwrap();
        assert!(enrolment.readmit(&host, now + HOUR).unwrap());
        let since = enrolment.enrolled_at(&host).unwrap();
        assert!(since > Some(unix(now + HOUR)), "{since:?}");
        // two enrolments within a second have different times
        enrolment.revoke(&host, "stolen", now).unwrap();
        assert!(enrolment.readmit(&host, now + HOUR).unwrap());
        assert!(enrolment.enrolled_at(&host).unwrap() > since);
    }

    #[test]
    fn the_coordinators_name_is_reserved() {
        let (_dir, enrolment, _, now) = fresh();
        let host = COORDINATOR.parse().unwrap();
        assert!(matches!(
            enrolment.mint(&host, HOUR, now),
            Err(MintError::Reserved)
        ));
    }
}
