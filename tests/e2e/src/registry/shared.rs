//! What all connections of a registry share: its content, its script and its counts.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, atomic::AtomicU64},
    time::{Duration, Instant},
};

use proto::Digest;

use super::{pace::Pace, script::Script, store::Store, tokens::Tokens};

/// What a registry asks of clients.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    /// Nothing.
    #[default]
    Open,
    /// User and password with each request.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token of its own endpoint.
    Bearer {
        /// User and password that the endpoint asks for; `None` gives tokens to anybody.
        account: Option<(String, String)>,
        /// How long tokens are good for.
        life: Duration,
        /// How long it *says* that they are, in whole seconds; `None` says nothing.
        announced: Option<Duration>,
    },
}

/// What a registry has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections accepted, on both listeners.
    pub connections: u64,
    /// Requests, of all kinds.
    pub requests: u64,
    /// GETs and HEADs of manifests.
    pub manifest_requests: u64,
    /// GETs of blobs.
    pub blob_requests: u64,
    /// Body bytes of blobs that were sent.
    pub bytes: u64,
    /// The most blobs that were being sent at a time.
    pub most_at_once: u64,
    /// Requests to the token endpoint.
    pub token_requests: u64,
    /// Requests answered with 401.
    pub refusals: u64,
    /// Requests with an `Authorization` that reached the host which redirects lead to: each is a leak.
    pub leaks: u64,
    /// The same by blob.
    pub blobs: BTreeMap<Digest, BlobCounters>,
    /// Answers with a blob's bytes, in the order in which they began.
    pub answers: Vec<Answer>,
}

/// One answer with bytes of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The blob.
    pub digest: Digest,
    /// The offset in the blob that it begins with.
    pub from: u64,
    /// Bytes that were sent so far.
    pub bytes: u64,
    /// When it began.
    pub began: Instant,
    /// When the last of the bytes were sent.
    pub sent: Instant,
}

/// What was sent of a blob.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlobCounters {
    /// GETs.
    pub requests: u64,
    /// Body bytes.
    pub bytes: u64,
}

/// What all connections share. The locks are held for moments and never across a wait.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) auth: Auth,
    /// Where it listens, and where redirects lead.
    pub(super) addr: SocketAddr,
    pub(super) elsewhere: SocketAddr,
    pub(super) tls: bool,
    pub(super) store: Store,
    pub(super) tokens: Mutex<Tokens>,
    pub(super) script: Mutex<Script>,
    pub(super) counters: Mutex<Counters>,
    pub(super) sending: AtomicU64,
    pub(super) pace: Pace,
    /// Body bytes per second of one answer; 0 is no limit.
    pub(super) answer_rate: AtomicU64,
}
