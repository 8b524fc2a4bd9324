//! What a registry does wrong, to what, and how often.

use std::collections::BTreeMap;

use proto::Digest;

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// On which requests.
    pub on: Target,
    /// What happens.
    pub what: Misbehaviour,
    /// How often; `None` is until it is cleared.
    pub times: Option<u64>,
}

impl Fault {
    /// A fault on the next such request.
    #[must_use]
    pub const fn once(on: Target, what: Misbehaviour) -> Self {
        Self::times(on, what, 1)
    }

    /// A fault on the next so many requests.
    #[must_use]
    pub const fn times(on: Target, what: Misbehaviour, times: u64) -> Self {
        Self {
            on,
            what,
            times: Some(times),
        }
    }

    /// A fault on every such request until it is cleared.
    #[must_use]
    pub const fn always(on: Target, what: Misbehaviour) -> Self {
        Self {
            on,
            what,
            times: None,
        }
    }
}

/// Which requests that read are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// All requests, those for tokens included.
    Everything,
    /// Requests for manifests.
    Manifests,
    /// Requests for bytes of any blob.
    Blobs,
    /// Requests for bytes of this blob.
    Blob(Digest),
    /// Requests for what is known of this blob, without its bytes.
    BlobHead(Digest),
    /// Requests for tokens.
    Tokens,
    /// Requests that are answered with a demand for credentials.
    Demands,
    /// Requests for lists of the artifacts that refer to a manifest.
    Referrers,
}

/// What happens to a request. Several may happen to one, where that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// The request is answered with this status, and perhaps a `Retry-After`.
    Status {
        /// The status.
        status: u16,
        /// The header's text.
        retry_after: Option<String>,
    },
    /// The connection closes instead of an answer.
    Hangup,
    /// No answer ever comes.
    Silence,
    /// The connection closes after so many body bytes.
    CloseAfter(u64),
    /// No more comes after so many body bytes, but the connection stays.
    StallAfter(u64),
    /// The byte at this offset of the blob or manifest is another.
    CorruptAt(u64),
    /// So many bytes too many follow, in an answer without a length.
    Overrun(u64),
    /// The answer has no length.
    Chunked,
    /// The whole blob comes instead of the range.
    IgnoreRange,
    /// The range goes on to the blob's end.
    IgnoreEnd,
    /// The range ends after so many bytes, and says so.
    ShortRange(u64),
    /// A request for a range is refused with this status.
    RefuseRange(u16),
    /// A range is answered with this `Content-Range`, or none.
    ContentRange(Option<String>),
    /// The range starts so many bytes later than asked for.
    ShiftRange(u64),
    /// The registry redirects to another host, which has the blob.
    RedirectElsewhere,
    /// The registry redirects to itself, for ever.
    RedirectLoop,
    /// The registry redirects to this address.
    RedirectTo(String),
    /// A manifest's digest is announced as this one.
    AnnounceDigest(Digest),
    /// A demand for a token names this scope.
    NameScope(String),
    /// A list of artifacts has those of every type, whatever was asked for.
    IgnoreFilter,
    /// A list of artifacts comes in pages of so many.
    Pages(usize),
    /// A list of artifacts is this text.
    Say(String),
}

impl Misbehaviour {
    /// An answer with this status that doesn't say when to come back.
    #[must_use]
    pub const fn status(status: u16) -> Self {
        Self::Status {
            status,
            retry_after: None,
        }
    }

    /// An answer with this status that says when to come back, in seconds or as a date.
    #[must_use]
    pub fn come_back(status: u16, retry_after: impl ToString) -> Self {
        Self::Status {
            status,
            retry_after: Some(retry_after.to_string()),
        }
    }
}

/// Names a fault that is scripted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultId(u64);

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Manifest,
    Blob(Digest),
    BlobHead(Digest),
    Token,
    Demand,
    Referrers,
}

#[derive(Debug, Default)]
pub(super) struct Script {
    faults: BTreeMap<FaultId, (Fault, u64)>,
    added: u64,
}

impl Script {
    pub(super) fn add(&mut self, fault: Fault) -> FaultId {
        let id = FaultId(self.added);
        self.added += 1;
        self.faults.insert(id, (fault, 0));
        id
    }

    pub(super) fn clear(&mut self, id: FaultId) -> u64 {
        self.faults.remove(&id).map_or(0, |(_, hits)| hits)
    }

    pub(super) fn clear_all(&mut self) {
        self.faults.clear();
    }

    /// What happens to a request for this. Used-up faults stay, for their count.
    pub(super) fn strike(&mut self, subject: Subject) -> Vec<Misbehaviour> {
        let mut happens = Vec::new();
        for (fault, hits) in self.faults.values_mut() {
            let meant = match (fault.on, subject) {
                (Target::Everything, _)
                | (Target::Manifests, Subject::Manifest)
                | (Target::Blobs, Subject::Blob(_))
                | (Target::Tokens, Subject::Token)
                | (Target::Demands, Subject::Demand)
                | (Target::Referrers, Subject::Referrers) => true,
                (Target::Blob(wanted), Subject::Blob(digest))
                | (Target::BlobHead(wanted), Subject::BlobHead(digest)) => wanted == digest,
                _ => false,
            };
            if meant && fault.times.is_none_or(|times| *hits < times) {
                *hits += 1;
                happens.push(fault.what.clone());
            }
        }
        happens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_as_often_as_it_says() {
        let digest = Digest::of(b"a");
        let other = Subject::Blob(Digest::of(b"b"));
        let mut script = Script::default();
        let twice = script.add(Fault::times(Target::Blob(digest), Misbehaviour::Silence, 2));
        let always = script.add(Fault::always(Target::Blobs, Misbehaviour::Chunked));
        assert_eq!(script.strike(Subject::Manifest), []);
        assert_eq!(script.strike(other), [Misbehaviour::Chunked]);
        for _ in 0..2 {
            assert_eq!(script.strike(Subject::Blob(digest)).len(), 2);
        }
        assert_eq!(
            script.strike(Subject::Blob(digest)),
            [Misbehaviour::Chunked]
        );
        let head = script.add(Fault::always(
            Target::BlobHead(digest),
            Misbehaviour::Hangup,
        ));
        assert_eq!(
            script.strike(Subject::BlobHead(digest)),
            [Misbehaviour::Hangup]
        );
        assert_eq!(script.clear(head), 1);
        assert_eq!(script.clear(twice), 2);
        assert_eq!(script.clear(always), 4);
        assert_eq!(script.strike(other), []);
    }
}
