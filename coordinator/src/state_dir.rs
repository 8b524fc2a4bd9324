//! The state directory as a whole: its lock, the API's token, and the addresses on which its coordinator listens.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use tracing::error;

use crate::{secret::Secret, view::Addresses};

/// What an operator can do to make a state directory usable again.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "its volume is full: make room there, a few megabytes will do, and start the coordinator again"
        }
        io::ErrorKind::ReadOnlyFilesystem => "its volume is mounted read-only: mount it writable",
        _ => "give the coordinator's user a directory that it may write (--state-dir)",
    }
}

/// Why the state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// A file or directory of the state can't be used.
    #[error("state directory {path}: {error}; {}", remedy(.error))]
    State {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// Another coordinator runs on this state.
    #[error("another coordinator runs on {0}; stop it first, or choose another --state-dir")]
    Locked(PathBuf),
}

/// An error of this file or directory.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> StateDirError {
    let path = path.to_path_buf();
    move |error| StateDirError::State { path, error }
}

/// Takes the lock that keeps a second coordinator off this state. The lock lasts as long as the returned file. Blocks.
pub(crate) fn lock(dir: &Path) -> Result<File, StateDirError> {
    durable::make_dir(dir).map_err(at(dir))?;
    let path = dir.join("lock");
    let file = File::create(&path).map_err(at(&path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StateDirError::Locked(dir.to_path_buf())),
        Err(error) => Err(at(&path)(error.into())),
    }
}

/// The API's token. It is made at the first start, and only the coordinator's user can read it. Blocks.
pub(crate) fn api_token(dir: &Path) -> Result<Secret, StateDirError> {
    let path = dir.join("api.token");
    match std::fs::read_to_string(&path) {
        Ok(text) if is_token(&text) => return Ok(Secret::from_text(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // a torn file, or bytes that aren't text, hold no usable token
        Ok(_) => set_aside(&path)?,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => set_aside(&path)?,
        Err(error) => return Err(at(&path)(error)),
    }
    let token = crate::secret::random();
    let text = format!("{}\n", token.expose());
    durable::write(&path, text.as_bytes(), durable::SECRET).map_err(at(&path))?;
    Ok(token)
}

/// Whether the text is one line of printable characters, which an HTTP header can carry, and long enough not to be
/// guessed.
fn is_token(text: &str) -> bool {
    let token = text.trim();
    token.len() >= 32 && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Renames a token's file that can't be used, so that a new token is made. Clients with the old token are then refused.
fn set_aside(path: &Path) -> Result<(), StateDirError> {
    let aside = path.with_extension("token.damaged");
    error!(
        file = %path.display(),
        aside = %aside.display(),
        "the API's token is damaged; it is set aside and a new one is made: give it to operators and pipelines"
    );
    std::fs::rename(path, &aside).map_err(at(path))
}

/// Writes the addresses on which the coordinator listens to a file, for programs on this machine. Blocks.
pub(crate) fn write_addresses(dir: &Path, addresses: &Addresses) -> Result<(), StateDirError> {
    let path = dir.join("addresses.json");
    let mut text = serde_json::to_vec(addresses).unwrap_or_default();
    text.push(b'\n');
    durable::write(&path, &text, durable::PUBLIC).map_err(at(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_token_is_set_aside_and_made_anew() {
        for damaged in [&b"torn"[..], b"", &[0xff; 64], &[b'a', 0, b'b'].repeat(20)] {
            let dir = tempfile::tempdir().unwrap();
            let first = api_token(dir.path()).unwrap();
            assert_eq!(api_token(dir.path()).unwrap().expose(), first.expose());
            std::fs::write(dir.path().join("api.token"), damaged).unwrap();
            let second = api_token(dir.path()).unwrap();
            assert_ne!(second.expose(), first.expose());
            assert_eq!(api_token(dir.path()).unwrap().expose(), second.expose());
            let aside = std::fs::read(dir.path().join("api.token.damaged")).unwrap();
            assert_eq!(aside, damaged);
        }
    }

    #[test]
    fn a_directory_has_one_lock_which_ends_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        let second = lock(dir.path());
        assert!(matches!(second, Err(StateDirError::Locked(_))));
        drop(first);
        assert!(lock(dir.path()).is_ok());
    }
}
