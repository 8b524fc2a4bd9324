//! Blobs that no client may resume for a while, because bytes of them that had left turned out false.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use proto::Digest;
use tracing::warn;

use crate::lock::lock;

/// How long resuming a blob is refused after bytes that had left turned out false. It is longer than any client goes on
/// trying. A new attempt from the first byte is served meanwhile.
const TAINT: Duration = Duration::from_hours(1);

/// Blobs of which bytes that left were false, each with the time until which resuming is refused. All blobs share it,
/// because a blob's file may be dropped while clients still have its bytes. It is also in a file, because clients have
/// them across a restart, too. The file has a line with digest and Unix seconds for each blob.
#[derive(Debug)]
pub(crate) struct Taints {
    path: PathBuf,
    until: Mutex<BTreeMap<Digest, Instant>>,
}

impl Taints {
    /// Loads the taints of an earlier process. Skips lines that can't be read. Blocks.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let (now, clock) = (Instant::now(), SystemTime::now());
        let until = String::from_utf8_lossy(&text)
            .lines()
            .filter_map(|line| {
                let (digest, seconds) = line.split_once(' ')?;
                let until = UNIX_EPOCH.checked_add(Duration::from_secs(seconds.parse().ok()?))?;
                // a clock that was set must not make the refusal last for ever
                let left = until.duration_since(clock).ok()?.min(TAINT);
                Some((digest.parse().ok()?, now + left))
            })
            .collect();
        Ok(Self {
            path,
            until: Mutex::new(until),
        })
    }

    /// Bytes of this blob that had left were false. The taint survives a crash. Blocks.
    pub(super) fn add(&self, digest: Digest) {
        let mut taints = lock(&self.until);
        let (now, clock) = (Instant::now(), SystemTime::now());
        taints.retain(|_, until| *until > now);
        taints.insert(digest, now + TAINT);
        let mut text = String::new();
        for (digest, until) in &*taints {
            let until = clock + until.saturating_duration_since(now);
            let seconds = until
                .duration_since(UNIX_EPOCH)
                .map_or(0, |at| at.as_secs());
            text += &format!("{digest} {seconds}\n");
        }
        if let Err(error) = self.write(&text) {
            // this process refuses resuming all the same
            warn!(content = %digest, %error, "that a blob's earlier bytes were false can't be written down");
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        durable::write(&self.path, text.as_bytes(), durable::PUBLIC)
    }

    /// Whether resuming this blob is refused now.
    pub(super) fn covers(&self, digest: &Digest) -> bool {
        lock(&self.until)
            .get(digest)
            .is_some_and(|until| *until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taint_outlives_the_process_and_no_other_blob_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tainted");
        let (false_one, other) = (Digest::of(b"false"), Digest::of(b"other"));
        let taints = Taints::open(path.clone()).unwrap();
        assert!(!taints.covers(&false_one));
        taints.add(false_one);
        for taints in [taints, Taints::open(path).unwrap()] {
            assert!(taints.covers(&false_one) && !taints.covers(&other));
        }
    }

    #[test]
    fn what_ended_or_is_malformed_is_skipped_and_no_taint_is_longer_than_the_longest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tainted");
        let (over, bounded) = (Digest::of(b"over"), Digest::of(b"bounded"));
        // the last one lies too far ahead, because the clock was set
        let text = format!("{over} 1\nnonsense\n{bounded} {}\n", u32::MAX);
        fs::write(&path, text).unwrap();
        let taints = Taints::open(path).unwrap();
        assert!(!taints.covers(&over) && taints.covers(&bounded));
        let left = lock(&taints.until)[&bounded].saturating_duration_since(Instant::now());
        assert!(left <= TAINT);
    }
}
