//! Clients of hosts' mirrors: which blobs they want, and how long they wait.

use std::collections::BTreeMap;

use proto::ChunkSet;

use crate::{network::Nanos, scenario::Scenario};

use super::{
    contents::{Image, ImageKind, Spec},
    units::precise,
};

/// Blobs that clients want; none is part of the image that is staged.
const BLOBS: usize = 12;
/// One byte of so many of the image is a blob's instead.
const SHARE: u64 = 4;
/// The image is ordered so long after the first clients came.
pub(super) const ORDERED_AFTER: Nanos = 5_000_000_000;
/// The agent's default, and what it waits where nothing led by a coordinator is to be expected.
pub(super) const ALONE_AFTER: Nanos = 10_000_000_000;
const UNLED: Nanos = 500_000_000;
/// The clock of a swarm has microseconds.
const ROUNDING: Nanos = 1_000;
/// Ticks of a swarm, and messages that are on their way.
pub(super) const LATE: Nanos = 1_000_000_000;

/// All clients.
#[derive(Debug, Default)]
pub(super) struct Mirrors {
    /// Fetches that began without a lease.
    alone: usize,
    /// By host and content; those that have what they wanted too.
    clients: BTreeMap<(u32, u32), Client>,
    /// Clients that are still to come.
    coming: usize,
    /// What hosts were told of blobs that they didn't know, by receiver, content and sender.
    early: BTreeMap<(u32, u32), BTreeMap<u32, ChunkSet>>,
}

#[derive(Debug)]
struct Client {
    since: Nanos,
    /// When its host last heard of a chunk, or last went to the registry.
    heard_at: Nanos,
    heard: bool,
    /// Nothing was heard for so long once that its host may fetch alone from then on.
    neglected: bool,
    /// When the first byte left for it: of what comes from peers, with the last one.
    first_byte_at: Option<Nanos>,
    whole_at: Option<Nanos>,
}

impl Client {
    const fn new(now: Nanos) -> Self {
        Self {
            since: now,
            heard_at: now,
            heard: false,
            neglected: false,
            first_byte_at: None,
            whole_at: None,
        }
    }

    /// Whether nothing has been heard for so long that its host may fetch alone.
    fn is_neglected(&self, now: Nanos, session: bool) -> bool {
        let patience = if session || self.heard {
            ALONE_AFTER
        } else {
            UNLED
        };
        self.neglected || now + ROUNDING >= self.heard_at + patience
    }
}

/// How long clients waited, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Waits {
    /// Clients that have what they wanted.
    pub clients: usize,
    /// Fetches without a lease that this took.
    pub alone: usize,
    /// For the first byte: median and worst.
    pub first_byte_s: (f64, f64),
    /// For the last byte: median and worst.
    pub last_byte_s: (f64, f64),
}

/// Bytes of the image that is staged, and of each blob.
pub(super) fn shares(scenario: Scenario, image_bytes: u64) -> (u64, u64) {
    match scenario {
        Scenario::Mirror | Scenario::MirrorSlow => {
            let blobs = image_bytes / SHARE;
            (image_bytes - blobs, blobs / BLOBS as u64)
        }
        Scenario::MirrorAlone => (0, image_bytes / BLOBS as u64),
        _ => (image_bytes, 0),
    }
}

/// The blobs, each of which is an image to the coordinator.
pub(super) fn blobs(size: u64, specs: &mut Vec<Spec>, images: &mut Vec<Image>) {
    for at in 0..BLOBS {
        let name = format!("blob {at}");
        specs.push(Spec::new(&name, size, images.len()));
        images.push(Image::new(&format!("mirror {name}"), ImageKind::Mirrored));
    }
}

impl Mirrors {
    /// The client of this host that still waits for this content.
    fn waiting(&mut self, host: u32, content: u32) -> Option<&mut Client> {
        let client = self.clients.get_mut(&(host, content))?;
        client.whole_at.is_none().then_some(client)
    }

    /// One more client is to come.
    pub(super) fn expect(&mut self) {
        self.coming += 1;
    }

    /// A client that was to come is there, or isn't coming any more because its host is away.
    pub(super) fn expected(&mut self) {
        self.coming -= 1;
    }

    /// A client wants a content of its host.
    pub(super) fn begin(&mut self, now: Nanos, host: u32, content: u32) {
        self.clients.insert((host, content), Client::new(now));
    }

    /// All of a content is at a host. Whether a client waited for it there.
    pub(super) fn serve(&mut self, now: Nanos, host: u32, content: u32) -> bool {
        let client = self.waiting(host, content);
        client.map(|client| client.whole_at = Some(now)).is_some()
    }

    /// Host and content of each client that waits.
    pub(super) fn wants(&self) -> impl Iterator<Item = (u32, u32)> {
        let clients = self.clients.iter();
        let waiting = clients.filter(|(_, client)| client.whole_at.is_none());
        waiting.map(|(want, _)| *want)
    }

    /// Clients that are still to come.
    pub(super) const fn coming(&self) -> usize {
        self.coming
    }

    /// Takes what peers said of a content before the host knew of it, by sender.
    pub(super) fn take_early(&mut self, host: u32, content: u32) -> BTreeMap<u32, ChunkSet> {
        self.early.remove(&(host, content)).unwrap_or_default()
    }

    /// A host begins to fetch a content, under a lease or without one.
    pub(super) fn fetches(&mut self, leased: bool) {
        self.alone += usize::from(!leased);
    }

    /// Whether a host may fetch a content without a lease because a client of its has waited for long enough.
    pub(super) fn may_fetch_alone(
        &self,
        now: Nanos,
        session: bool,
        (host, content): (u32, u32),
    ) -> bool {
        let client = self.clients.get(&(host, content));
        client.is_some_and(|client| client.whole_at.is_none() && client.is_neglected(now, session))
    }

    /// Whether a client waits for longer without a word than its host's turn takes.
    pub(super) fn waits_in_vain(&self, now: Nanos, host: u32, content: u32) -> bool {
        let turns = self.hosts(content).len() as u64;
        let client = self.clients.get(&(host, content));
        client.is_some_and(|client| now > client.heard_at + ALONE_AFTER * turns + LATE)
    }

    /// A host hears that something will come of a content, or does something for it itself.
    pub(super) fn hear(&mut self, now: Nanos, session: bool, host: u32, content: u32) {
        if let Some(client) = self.waiting(host, content) {
            client.neglected |= client.is_neglected(now, session);
            client.heard_at = now;
            client.heard = true;
        }
    }

    /// The hosts whose clients wait for a content.
    pub(super) fn hosts(&self, content: u32) -> Vec<u32> {
        let waiting = self
            .clients
            .iter()
            .filter(|(_, client)| client.whole_at.is_none());
        let of_it = waiting.filter(|((_, of), _)| *of == content);
        of_it.map(|((host, _), _)| *host).collect()
    }

    /// The first byte of a content came from this host's own connection to the registry.
    pub(super) fn began(&mut self, now: Nanos, host: u32, content: u32) {
        if let Some(client) = self.waiting(host, content) {
            client.first_byte_at.get_or_insert(now);
        }
    }

    /// What a peer said of a blob that this host doesn't know is remembered, as in the agent.
    pub(super) fn remember(&mut self, (from, to): (u32, u32), content: u32, chunks: &ChunkSet) {
        let said = self.early.entry((to, content)).or_default();
        let said = said
            .entry(from)
            .or_insert_with(|| ChunkSet::empty(chunks.chunks()));
        said.union_with(chunks);
    }

    /// How long those waited who have what they wanted. `None` without clients.
    pub(super) fn waits(&self) -> Option<Waits> {
        let spans = |at: fn(&Client) -> Option<Nanos>| -> (f64, f64) {
            let waits = self.clients.values();
            let waits = waits.filter_map(|client| Some(at(client)? - client.since));
            let mut waits: Vec<Nanos> = waits.collect();
            waits.sort_unstable();
            let of = |at: usize| waits.get(at).map_or(0.0, |wait| precise(*wait) / 1e9);
            (of(waits.len() / 2), of(waits.len().saturating_sub(1)))
        };
        let done = self
            .clients
            .values()
            .filter(|client| client.whole_at.is_some());
        let clients = done.count();
        (clients > 0).then(|| Waits {
            clients,
            alone: self.alone,
            first_byte_s: spans(|client| client.first_byte_at.or(client.whole_at)),
            last_byte_s: spans(|client| client.whole_at),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    /// A client of this host wants this content.
    const HOST: u32 = 4;
    const CONTENT: u32 = 2;

    fn waiting_since(begin: Nanos) -> Mirrors {
        let mut mirrors = Mirrors::default();
        mirrors.begin(begin, HOST, CONTENT);
        mirrors
    }

    fn may(mirrors: &Mirrors, now: Nanos, session: bool) -> bool {
        mirrors.may_fetch_alone(now, session, (HOST, CONTENT))
    }

    #[test]
    fn a_host_with_a_session_fetches_alone_only_after_it_heard_nothing_for_ten_seconds() {
        let mut mirrors = waiting_since(SECOND);
        assert!(!may(&mirrors, SECOND + ALONE_AFTER - ROUNDING - 1, true));
        assert!(may(&mirrors, SECOND + ALONE_AFTER - ROUNDING, true));
        mirrors.hear(5 * SECOND, true, HOST, CONTENT);
        assert!(!may(&mirrors, SECOND + ALONE_AFTER, true));
        assert!(may(&mirrors, 5 * SECOND + ALONE_AFTER, true));
    }

    #[test]
    fn a_host_without_a_session_waits_half_a_second_unless_it_has_heard_something() {
        let mut mirrors = waiting_since(0);
        assert!(!may(&mirrors, UNLED - ROUNDING - 1, false));
        assert!(may(&mirrors, UNLED - ROUNDING, false));
        mirrors.hear(UNLED / 2, false, HOST, CONTENT);
        assert!(!may(&mirrors, UNLED, false));
    }

    #[test]
    fn a_host_that_was_neglected_once_may_go_on_alone_whatever_it_hears() {
        let mut mirrors = waiting_since(0);
        mirrors.hear(ALONE_AFTER, true, HOST, CONTENT);
        assert!(may(&mirrors, ALONE_AFTER + 1, true));
    }

    #[test]
    fn a_client_is_served_once_and_then_its_host_may_not_fetch_for_it() {
        let mut mirrors = waiting_since(SECOND);
        assert!(!mirrors.serve(2 * SECOND, HOST + 1, CONTENT));
        assert!(mirrors.serve(3 * SECOND, HOST, CONTENT));
        assert!(!mirrors.serve(4 * SECOND, HOST, CONTENT));
        assert_eq!(mirrors.wants().count(), 0);
        assert!(!may(&mirrors, 60 * SECOND, true));
        let waits = mirrors.waits().expect("a client that was served");
        assert_eq!(waits.clients, 1);
        assert_eq!(waits.last_byte_s, (2.0, 2.0));
        assert_eq!(waits.first_byte_s, (2.0, 2.0), "both bytes came at once");
    }

    #[test]
    fn a_client_waits_in_vain_when_its_hosts_turn_is_long_over() {
        let mut mirrors = waiting_since(0);
        mirrors.begin(0, HOST + 1, CONTENT);
        let most = 2 * ALONE_AFTER + LATE;
        assert!(!mirrors.waits_in_vain(most, HOST, CONTENT));
        assert!(mirrors.waits_in_vain(most + 1, HOST, CONTENT));
    }

    #[test]
    fn what_peers_said_early_is_joined_by_sender_and_taken_once() {
        let mut mirrors = Mirrors::default();
        let chunk = |at| {
            let mut chunks = ChunkSet::empty(3);
            chunks.insert(proto::ChunkIndex(at));
            chunks
        };
        mirrors.remember((1, HOST), CONTENT, &chunk(0));
        mirrors.remember((1, HOST), CONTENT, &chunk(2));
        mirrors.remember((2, HOST), CONTENT, &chunk(1));
        let early = mirrors.take_early(HOST, CONTENT);
        let counts: Vec<(u32, u32)> = early
            .iter()
            .map(|(from, chunks)| (*from, chunks.count()))
            .collect();
        assert_eq!(counts, [(1, 2), (2, 1)]);
        assert!(mirrors.take_early(HOST, CONTENT).is_empty());
    }
}
