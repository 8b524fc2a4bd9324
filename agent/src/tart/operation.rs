//! Runs tart. Each attempt has a time limit and a process group of its own. A failed attempt is repeated after a
//! growing pause.
//!
//! A hung tart once wedged a whole node. So an attempt that exceeds its time limit is killed, with its children.

use std::{
    ffi::OsStr,
    io,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use proto::pause::doubled;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
    time::{sleep, timeout},
};

/// Bytes of an operation's stderr that are kept for the error message.
const MAX_COMPLAINT_BYTES: usize = 2 << 10;

/// The tart commands that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Makes a VM from an image or another VM.
    Clone,
    /// Removes a VM or an image.
    Delete,
}

impl Operation {
    /// tart's word for it, also for metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Clone => "clone",
            Self::Delete => "delete",
        }
    }
}

/// The time limit of one attempt. Existing fleets need a small part of it, even on a loaded host; their node agent has
/// the same limit for both (tuist/tuist of autumn 2026, infra/tart-kubelet/internal/tart/tart.go: cloneTimeout,
/// deleteTimeout).
const TIME_LIMIT: Duration = Duration::from_mins(5);
/// How many attempts an operation gets in all.
const ATTEMPTS: u32 = 3;
/// The longest pause between two attempts.
const PAUSE_MOST: Duration = Duration::from_mins(1);

/// Why an operation didn't succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TartError {
    /// The binary can't be run: it isn't installed, or the setting is wrong.
    #[error("running {binary}: {error}")]
    NotStarted {
        /// The binary.
        binary: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// tart ended with an error.
    #[error("tart {} failed ({status}): {complaint}", operation.name())]
    Failed {
        /// The operation.
        operation: Operation,
        /// How it ended.
        status: ExitStatus,
        /// The first bytes of its stderr.
        complaint: String,
    },
    /// tart took too long, and was killed with its children.
    #[error("tart {} hung for {after:?} and was killed", operation.name())]
    TimedOut {
        /// The operation.
        operation: Operation,
        /// Its time limit.
        after: Duration,
    },
    /// The pipe to the process, or waiting for the process, failed.
    #[error("reading from tart {}: {error}", operation.name())]
    Io {
        /// The operation.
        operation: Operation,
        /// The cause.
        error: io::Error,
    },
}

impl TartError {
    /// The outcome for metrics: `not_started`, `failed`, `timed_out` or `broken`. Callers count a success as `ok`.
    pub(crate) const fn outcome(&self) -> &'static str {
        match self {
            Self::NotStarted { .. } => "not_started",
            Self::Failed { .. } => "failed",
            Self::TimedOut { .. } => "timed_out",
            Self::Io { .. } => "broken",
        }
    }
}

/// Runs tart in one home. Every call is cancel-safe: dropping its future kills the process group.
#[derive(Debug)]
pub(crate) struct Tart {
    binary: PathBuf,
    home: PathBuf,
    /// The time limit of one attempt.
    time_limit: Duration,
    pause: Duration,
}

impl Tart {
    /// tart at this path, working in this home.
    pub(crate) fn new(binary: impl Into<PathBuf>, home: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            home: home.into(),
            time_limit: TIME_LIMIT,
            pause: Duration::from_secs(1),
        }
    }

    /// Changes the time limit of one attempt.
    #[cfg(test)]
    pub(crate) const fn with_time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Changes the pause after the first failed attempt. It doubles after each further one.
    #[cfg(test)]
    pub(crate) const fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Makes a VM from an image or another VM. Uses no network if the image is in the cache. A VM of that name is
    /// replaced, if there is one (tart of August 2026, Sources/tart/Commands/Clone.swift: run; VMStorageLocal.swift:
    /// move).
    ///
    /// # Errors
    /// See [`TartError`].
    pub(crate) async fn clone(&self, source: &str, name: &str) -> Result<(), TartError> {
        self.run(Operation::Clone, &[source, name]).await
    }

    /// Removes a VM or an image.
    ///
    /// # Errors
    /// See [`TartError`].
    pub(crate) async fn delete(&self, name: &str) -> Result<(), TartError> {
        self.run(Operation::Delete, &[name]).await
    }

    async fn run(&self, operation: Operation, arguments: &[&str]) -> Result<(), TartError> {
        for attempt in 1.. {
            let error = match self.attempt(operation, arguments).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let hopeless = matches!(error, TartError::NotStarted { .. });
            if hopeless || attempt >= ATTEMPTS {
                return Err(error);
            }
            tracing::debug!(operation = operation.name(), attempt, %error, "trying again");
            sleep(doubled(self.pause, PAUSE_MOST, attempt - 1)).await;
        }
        unreachable!("attempts are counted")
    }

    async fn attempt(&self, operation: Operation, arguments: &[&str]) -> Result<(), TartError> {
        let mut child = Command::new(&self.binary)
            .arg(operation.name())
            .args(arguments.iter().map(OsStr::new))
            .env("TART_HOME", &self.home)
            // otherwise a clone would remove other images to make room, ours first (tart of August 2026,
            // Sources/tart/Commands/Prune.swift: reclaimIfNeeded)
            .env("TART_NO_AUTO_PRUNE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| TartError::NotStarted {
                binary: self.binary.clone(),
                error,
            })?;
        let mut group = Group::of(&child);
        let stderr = child.stderr.take();
        let limit = self.time_limit;
        let ended = timeout(limit, async {
            let (complaint, status) =
                tokio::join!(drain(stderr, MAX_COMPLAINT_BYTES), child.wait());
            Ok::<_, io::Error>((complaint?, status?))
        })
        .await;
        if ended.is_ok() {
            // The process is reaped, so its id may belong to another process by now.
            group.0 = None;
        }
        drop(group);
        match ended {
            Ok(Ok((_, status))) if status.success() => Ok(()),
            Ok(Ok((complaint, status))) => Err(TartError::Failed {
                operation,
                status,
                complaint: String::from_utf8_lossy(&complaint)
                    .trim()
                    .replace(char::is_control, " "),
            }),
            Ok(Err(error)) => Err(TartError::Io { operation, error }),
            Err(_) => {
                // The process was killed a moment ago. Taking its exit status leaves no zombie.
                if let Err(error) = child.wait().await {
                    tracing::debug!(%error, "waiting for a killed tart failed");
                }
                Err(TartError::TimedOut {
                    operation,
                    after: limit,
                })
            }
        }
    }
}

/// A process group of ours. Dropping it kills the group: at the time limit, or when nobody waits for the result any
/// more.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.and_then(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0
            && let Err(errno) = kill_process_group(pid, Signal::KILL)
            && errno != rustix::io::Errno::SRCH
            // macOS returns this for a group that only has zombies
            && errno != rustix::io::Errno::PERM
        {
            tracing::warn!(group = pid.as_raw_nonzero(), error = %errno, "killing tart's process group failed");
        }
    }
}

/// Reads to the end and keeps the first `limit` bytes, so that a talkative process never blocks on a full pipe.
async fn drain(pipe: Option<impl AsyncRead + Unpin>, limit: usize) -> io::Result<Vec<u8>> {
    let Some(mut pipe) = pipe else {
        return Ok(Vec::new());
    };
    let (mut kept, mut piece) = (Vec::new(), vec![0; 8 << 10]);
    loop {
        match pipe.read(&mut piece).await? {
            0 => return Ok(kept),
            read => kept.extend_from_slice(&piece[..read.min(limit - kept.len())]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Instant};

    use super::*;
    use crate::tart::tests::program;

    fn fake(directory: &Path, script: &str) -> Tart {
        let path = directory.join("tart");
        program(&path, &format!("#!/bin/sh\n{script}\n"));
        Tart::new(path, directory).with_pause(Duration::from_millis(1))
    }

    fn is_alive(pid: i32) -> bool {
        // A zombie whose parent hasn't looked is dead for us.
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("").starts_with('Z'))
    }

    #[tokio::test]
    async fn tart_runs_with_its_home_and_without_pruning() {
        let dir = tempfile::tempdir().unwrap();
        let tart = fake(
            dir.path(),
            "echo \"$TART_HOME $TART_NO_AUTO_PRUNE $*\" > \"$TART_HOME/ran\"",
        );
        tart.clone("ghcr.io/a/b:c", "golden-1").await.unwrap();
        assert_eq!(
            fs::read_to_string(dir.path().join("ran")).unwrap(),
            format!("{} 1 clone ghcr.io/a/b:c golden-1\n", dir.path().display())
        );
    }

    #[tokio::test]
    async fn a_failure_is_tried_again_and_then_told() {
        let dir = tempfile::tempdir().unwrap();
        let script = "echo x >> \"$TART_HOME/tries\"\necho 'no such\x07image' >&2\nexit 7";
        let error = fake(dir.path(), script).delete("vm").await.unwrap_err();
        assert_eq!(
            fs::read_to_string(dir.path().join("tries"))
                .unwrap()
                .lines()
                .count(),
            3
        );
        assert_eq!(error.outcome(), "failed");
        let text = error.to_string();
        assert!(
            text.contains("tart delete failed") && text.contains("no such image"),
            "{text}"
        );
        let script = "[ -e \"$TART_HOME/once\" ] || { : > \"$TART_HOME/once\"; exit 1; }";
        fake(dir.path(), script).delete("vm").await.unwrap();
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_hung_tart_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let script = "sleep 600 &\necho $! $$ >> \"$TART_HOME/pids\"\nwait";
        let tart = fake(dir.path(), script).with_time_limit(Duration::from_millis(300));
        let start = Instant::now();
        let error = tart.clone("ghcr.io/a/b:c", "golden").await.unwrap_err();
        assert_eq!(error.outcome(), "timed_out");
        assert!(start.elapsed() < Duration::from_secs(20));
        let pids = fs::read_to_string(dir.path().join("pids")).unwrap();
        for pid in pids.split_whitespace() {
            let pid = pid.parse().unwrap();
            while is_alive(pid) {
                assert!(start.elapsed() < Duration::from_secs(20), "{pid} lives");
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn a_talkative_tart_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let script = "head -c 9000000 /dev/zero\nhead -c 200000 /dev/zero >&2\nexit 3";
        let error = fake(dir.path(), script).delete("x").await.unwrap_err();
        assert!(error.to_string().len() < 3000);
    }

    #[tokio::test]
    async fn a_missing_binary_is_named() {
        let error = Tart::new("/no/such/tart", "/tmp")
            .delete("x")
            .await
            .unwrap_err();
        assert_eq!(error.outcome(), "not_started");
        assert!(error.to_string().contains("/no/such/tart"));
    }
}
