//! Our directory in tart's home, and the lock on it: one agent at a time works there.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use super::tree::{ROOT, io_at};
use crate::{
    lock::lock,
    platform::{self, DirectoryLock, LockError},
};

/// Why the store isn't open.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// tart's home doesn't exist: tart never ran here, or the setting is wrong.
    #[error("tart's home {path} doesn't exist; run tart once, or set TART_HOME")]
    NoHome {
        /// The directory.
        path: PathBuf,
    },
    /// The volume is mounted read-only.
    #[error("the volume of {path} is read-only; nothing can be staged there")]
    ReadOnly {
        /// Our directory.
        path: PathBuf,
    },
    /// Another agent works here and has to be stopped first.
    #[error("another agent ({owner}) works in {path}")]
    InUse {
        /// Our directory.
        path: PathBuf,
        /// The other agent's process, from its `pid` file.
        owner: String,
    },
    /// Anything else about our directory.
    #[error("{action} {path}: {error}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
}

impl OpenStoreError {
    /// The error of this action on this path.
    pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |error| match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path },
            _ => Self::Io {
                action,
                path,
                error,
            },
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Root {
    /// A beginning takes a new lock if the directory was removed.
    lock: Mutex<DirectoryLock>,
}

impl Root {
    /// Makes and locks our directory. Returns tart's home with it, without symlinks: the cache's need absolute targets.
    ///
    /// # Errors
    /// When the home isn't usable, or another agent works there.
    pub(super) fn open(home: &Path) -> Result<(Self, PathBuf), OpenStoreError> {
        let failed = OpenStoreError::at;
        if !home.is_dir() {
            return Err(OpenStoreError::NoHome { path: home.into() });
        }
        let home = fs::canonicalize(home).map_err(failed("resolving", home))?;
        let root = home.join(ROOT);
        match fs::create_dir(&root) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed("creating", &root))?,
        }
        let pid = root.join("pid");
        let locked = match platform::lock_directory(&root, Duration::ZERO) {
            Ok(lock) => lock,
            Err(LockError::Busy { path, .. }) => {
                let owner = fs::read_to_string(&pid).unwrap_or_default();
                let owner = match owner.trim() {
                    "" => "process unknown".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(OpenStoreError::InUse { path, owner });
            }
            Err(LockError::Io { path, error }) => return Err(failed("locking", &path)(error)),
        };
        fs::write(&pid, std::process::id().to_string()).map_err(failed("writing", &pid))?;
        let lock = Mutex::new(locked);
        Ok((Self { lock }, home))
    }

    /// Makes our directory again if it was removed, and tart's home with it, as tart itself would (tart,
    /// Sources/tart/Config.swift: init). The parent of tart's home has to exist. Otherwise images would fill the system
    /// disk below the mount point of a volume that isn't mounted.
    ///
    /// # Errors
    /// When it can't be made or locked.
    pub(super) fn keep(&self, home: &Path) -> io::Result<()> {
        let root = home.join(ROOT);
        let mut locked = lock(&self.lock);
        if locked.is_on(&root) {
            return Ok(());
        }
        for directory in [home, &root] {
            match fs::create_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.map_err(|error| io_at("creating", directory, error))?,
            }
        }
        *locked = platform::lock_directory(&root, Duration::ZERO).map_err(io::Error::other)?;
        let pid = root.join("pid");
        fs::write(&pid, std::process::id().to_string())
            .map_err(|error| io_at("writing", &pid, error))?;
        tracing::warn!(directory = %root.display(), "our directory in tart's home was removed; it is made again");
        Ok(())
    }
}
