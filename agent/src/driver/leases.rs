//! Leases of this host: the right to fetch a content from the registry, and what is said of it.

use std::time::{Duration, Instant};

use proto::{
    Digest,
    figure::{Bytes, Span},
    message::{LeaseEnd, LeaseState, OriginFault, OriginTrouble},
};

use super::fit;

/// A registry that was asked and gives nothing for this long is reported as silent: half of the time after which the
/// coordinator lets a lease pass on, so that it knows why by then.
pub(super) const SILENT_AFTER: Duration = Duration::from_secs(5);

/// Connections of one fetch that broke after they had brought something.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Breaks {
    count: u32,
    bytes: u64,
}

/// Connections that broke before it is said that they do.
const BREAKS_SAID: u32 = 3;

impl Breaks {
    pub(super) const fn note(&mut self, after_bytes: u64) {
        self.count = self.count.saturating_add(1);
        self.bytes = self.bytes.saturating_add(after_bytes);
    }

    fn words(self) -> String {
        match self.count {
            0..BREAKS_SAID => String::new(),
            count => format!(
                "connections end after {}",
                Bytes(self.bytes / u64::from(count))
            ),
        }
    }
}

/// A lease that this host holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Lease {
    /// The image under whose name the content is to be fetched, where the coordinator says so.
    pub(super) image: Option<Digest>,
    /// Chunks fetched under it.
    pub(super) chunks: u32,
    /// Bytes that had come under it at an earlier report, and when more had come last.
    pub(super) seen: Option<(u64, Instant)>,
    pub(super) breaks: Breaks,
    /// What the registry did to the last attempt, until a chunk comes.
    pub(super) trouble: Option<OriginWords>,
}

/// What a registry says, or what is said of it.
#[derive(Clone, Debug)]
pub(super) struct OriginWords {
    pub(super) error: String,
    /// It wants to be left alone until then.
    pub(super) retry_at: Option<Instant>,
    /// It refuses the token that was handed down.
    pub(super) refused: bool,
}

impl Lease {
    /// This lease as it runs; `silent` is how long nothing has come that the registry owes, where that is long.
    pub(super) fn state(
        &mut self,
        content: Digest,
        bytes: u64,
        paced: bool,
        silent: Option<Duration>,
    ) -> LeaseState {
        let now = Instant::now();
        let (seen, at) = *self.seen.get_or_insert((0, now));
        let moves = bytes > 0 && (bytes > seen || now.duration_since(at) < SILENT_AFTER);
        if bytes > seen {
            self.seen = Some((bytes, now));
        }
        let silent = silent.filter(|_| !moves);
        if bytes > seen {
            self.trouble = None;
        }
        let (trouble, message, retry_after) = match &self.trouble {
            Some(words) => {
                let left = words
                    .retry_at
                    .map(|at| at.saturating_duration_since(Instant::now()));
                let trouble = match left {
                    Some(_) => OriginTrouble::Throttled,
                    None if words.refused => OriginTrouble::Unauthorised,
                    None => OriginTrouble::Failing,
                };
                (trouble, words.error.clone(), left.unwrap_or_default())
            }
            None => silent.map_or_else(
                || {
                    (
                        OriginTrouble::Unspecified,
                        self.breaks.words(),
                        Duration::ZERO,
                    )
                },
                |silent| {
                    let message = format!(
                        "no whole chunk has come from the registry for {}",
                        Span(silent)
                    );
                    (OriginTrouble::Silent, message, Duration::ZERO)
                },
            ),
        };
        let mut message = message;
        fit::cut(&mut message);
        LeaseState {
            content: content.as_bytes().to_vec(),
            chunks: self.chunks,
            bytes,
            end: LeaseEnd::Unspecified.into(),
            message,
            paced,
            trouble: trouble.into(),
            retry_after_ms: u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX),
            fault: OriginFault::Unspecified.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_called_silent_only_when_it_owes_something_for_long() {
        let mut lease = Lease::default();
        let mut state = |silent| lease.state(Digest::of(b"x"), 0, false, silent);
        assert_eq!(state(None).trouble(), OriginTrouble::Unspecified);
        let silent = state(Some(Duration::from_secs(7)));
        assert_eq!(silent.trouble(), OriginTrouble::Silent);
        assert_eq!(
            silent.message,
            "no whole chunk has come from the registry for 7 s"
        );
        // bytes of a chunk come: that is slow, and not silent
        let slow = lease.state(Digest::of(b"x"), 9_000, false, Some(Duration::from_secs(9)));
        assert_eq!(slow.trouble(), OriginTrouble::Unspecified);
        assert_eq!(slow.bytes, 9_000);
    }
}
