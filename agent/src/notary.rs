//! This host's signature under links, and its check of other hosts' signatures (`proto::statement`).
//!
//! The key is made at the first start, and kept beside the certificates with the last standing ticket. Thus a host that
//! was restarted without a coordinator still vouches for its contents.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use proto::{
    Answer, ChunkIndex, Digest, HostId, Link, Signed, Ticket,
    message::{self, FieldError},
    statement::{LinkKey, Run, StatementError, Verify as _},
};
use tracing::warn;
use wire::{Credentials, LinkSigner, Signatures};

use crate::{identity, lock::lock};

/// Links that were made without a coordinator are accepted for this long after the coordinator came back, since they
/// may be on their way.
const ALONE_FOR: Duration = Duration::from_secs(30);

/// The notary of this host. The driver and all jobs that move chunks share it.
#[derive(Debug)]
pub(crate) struct Notary {
    me: HostId,
    signer: LinkSigner,
    signatures: Signatures,
    /// The file of the standing ticket.
    kept: Option<PathBuf>,
    /// Held while the file is written.
    turn: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The run under which this host vouches.
    standing: Option<Arc<Run>>,
    /// The tickets that came with leases, by content.
    leases: BTreeMap<Digest, Arc<Ticket>>,
    /// The number of the last run.
    last_run: u64,
    connected: bool,
    /// When the session came up.
    since: Option<Instant>,
}

/// Why a ticket isn't taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RefuseTicketError {
    /// No ticket came.
    #[error(
        "the coordinator sent no ticket: upgrade it if its version is older than this agent's, or look at its log, \
         which says why it can't sign one"
    )]
    Missing,
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("the ticket is for another host, key or content")]
    Other,
    #[error("the ticket isn't signed by the fleet's authority")]
    Authority,
}

impl Notary {
    /// A notary with the key and the standing ticket that are kept in `dir`.
    pub(crate) fn open(credentials: &Credentials, dir: &Path) -> Self {
        let kept = dir.join("standing.ticket");
        let seed = identity::kept_secret(dir, "links.key");
        let mut this = Self::new(credentials, &seed);
        if let Ok(bytes) = std::fs::read(&kept) {
            let taken = Ticket::from_bytes(&bytes).map_err(RefuseTicketError::from);
            if let Err(error) = taken.and_then(|ticket| this.stand(Some(&ticket.to_message()))) {
                warn!(path = %kept.display(), %error, "the kept ticket is of no use; the coordinator gives another one");
            }
        }
        this.kept = Some(kept);
        this
    }

    /// A notary with this key. Nothing outlives the process.
    pub(crate) fn new(credentials: &Credentials, seed: &[u8; 32]) -> Self {
        Self {
            me: credentials.host().clone(),
            signer: LinkSigner::from_seed(seed),
            signatures: Signatures::of(credentials),
            kept: None,
            turn: Mutex::default(),
            state: Mutex::default(),
        }
    }

    /// The key that the coordinator is to know.
    pub(crate) fn key(&self) -> LinkKey {
        self.signer.public()
    }

    /// The session with the coordinator is up, or down.
    pub(crate) fn set_connected(&self, connected: bool) {
        let mut state = self.state();
        state.connected = connected;
        state.since = connected.then(Instant::now);
    }

    /// Takes a standing ticket. The caller then calls [`keep`](Self::keep).
    pub(crate) fn stand(&self, ticket: Option<&message::Ticket>) -> Result<(), RefuseTicketError> {
        let ticket = self.take(None, ticket)?;
        self.state().standing = Some(Arc::new(Run::vouched(Arc::new(ticket))));
        Ok(())
    }

    /// Writes the standing ticket to its file. Blocks for as long as the volume takes.
    pub(crate) fn keep(&self) {
        let Some(path) = &self.kept else {
            return;
        };
        // the last writer writes the newest ticket
        let _turn = lock(&self.turn);
        let standing = self.state().standing.clone();
        let Some(bytes) = standing.map(|run| run.ticket().to_bytes()) else {
            return;
        };
        if let Err(error) = durable::write(path, &bytes, durable::SECRET) {
            warn!(path = %path.display(), %error, "the ticket isn't kept: after a restart without a coordinator this host serves nothing");
        }
    }

    /// Takes the ticket of a lease.
    pub(crate) fn lease(
        &self,
        content: Digest,
        ticket: Option<&message::Ticket>,
    ) -> Result<(), RefuseTicketError> {
        let ticket = self.take(Some(content), ticket)?;
        self.state().leases.insert(content, Arc::new(ticket));
        Ok(())
    }

    /// The lease is over.
    pub(crate) fn forget_lease(&self, content: &Digest) {
        self.state().leases.remove(content);
    }

    fn take(
        &self,
        content: Option<Digest>,
        ticket: Option<&message::Ticket>,
    ) -> Result<Ticket, RefuseTicketError> {
        let ticket = Ticket::parse(ticket.ok_or(RefuseTicketError::Missing)?)?;
        let ours = *ticket.maker() == self.me && *ticket.key() == self.key();
        if !ours || ticket.content() != content {
            return Err(RefuseTicketError::Other);
        }
        if !self.signatures.ticket(&ticket) {
            return Err(RefuseTicketError::Authority);
        }
        Ok(ticket)
    }

    /// A new run over the registry's bytes of a content, from its beginning or behind `base`. Without a lease the run
    /// is under the standing ticket; only hosts that have no coordinator themselves accept such a run. `None` without
    /// any ticket.
    pub(crate) fn run(&self, content: &Digest, base: Option<Signed>) -> Option<Arc<Run>> {
        let mut state = self.state();
        let lease = state.leases.get(content);
        let standing = state.standing.as_ref().map(|run| run.ticket());
        let ticket = lease.or(standing)?.clone();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = u64::try_from(now.unwrap_or_default().as_micros()).unwrap_or(1);
        // no two runs have the same number, not even over restarts of the program
        state.last_run = now.max(state.last_run.saturating_add(1));
        Some(Arc::new(Run::made(ticket, state.last_run, base)))
    }

    /// Signs a link that this host made.
    pub(crate) fn sign(
        &self,
        content: Digest,
        chunk: ChunkIndex,
        link: Link,
        run: &Arc<Run>,
    ) -> Signed {
        Signed::new(content, chunk, link, run.clone(), |bytes| {
            self.signer.sign(bytes)
        })
    }

    /// Vouches for a link of a content that this host has verified. `None` while it has no ticket.
    pub(crate) fn vouch(&self, content: Digest, chunk: ChunkIndex, link: Link) -> Option<Signed> {
        let run = self.state().standing.clone()?;
        Some(self.sign(content, chunk, link, &run))
    }

    /// The link of a held chunk, with the host that answers for it: this host if it knows that the link is true, else
    /// the link's maker. `None` if no host answers: such a chunk isn't passed on, and no link goes on from it.
    pub(crate) fn answered(
        &self,
        content: Digest,
        chunk: ChunkIndex,
        link: Link,
        answer: &Answer,
    ) -> Option<Signed> {
        match answer {
            Answer::Holder => self.vouch(content, chunk, link),
            Answer::Maker(statement) => Some(Signed {
                content,
                chunk,
                link,
                statement: statement.clone(),
            }),
            Answer::Recipe | Answer::Nobody => None,
        }
    }

    /// Checks that the signer answers for this link, and is allowed to.
    pub(crate) fn check(&self, signed: &Signed) -> Result<(), StatementError> {
        let alone = {
            let state = self.state();
            !state.connected || state.since.is_none_or(|since| since.elapsed() < ALONE_FOR)
        };
        signed.verify(unix_now(), alone, &self.signatures)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn unix_now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

#[cfg(test)]
pub(crate) mod tests {
    use proto::State;

    use super::*;
    use crate::identity::tests::Authority;

    const LONG: u64 = u64::MAX;

    /// A notary with a standing ticket and a ticket for this content, and without a session.
    pub(crate) fn notary(authority: &Authority, host: &str, content: Digest) -> Notary {
        let notary = Notary::new(&authority.credentials(host), &[host.as_bytes()[0]; 32]);
        let standing = authority.ticket(None, host, notary.key(), 1, LONG);
        notary.stand(Some(&standing)).unwrap();
        let lease = authority.ticket(Some(content), host, notary.key(), 2, LONG);
        notary.lease(content, Some(&lease)).unwrap();
        notary
    }

    fn link() -> Link {
        Link {
            before: State::INITIAL,
            after: State::from_bytes(&[9; 32]),
            fingerprint: proto::Fingerprint([0; 16]),
            resume: None,
        }
    }

    #[test]
    fn what_a_host_signs_is_believed_by_others_of_its_fleet() {
        let (fleet, other_fleet) = (Authority::new(), Authority::new());
        let (content, chunk) = (Digest::of(b"x"), ChunkIndex(0));
        let one = notary(&fleet, "one", content);
        let two = notary(&fleet, "two", content);
        let made = one.sign(content, chunk, link(), &one.run(&content, None).unwrap());
        let vouched = one.vouch(content, chunk, link()).unwrap();
        for signed in [&made, &vouched] {
            assert_eq!(two.check(signed), Ok(()));
            let stranger = notary(&other_fleet, "stranger", content);
            assert_eq!(stranger.check(signed), Err(StatementError::Ticket));
        }
        // two passes over the same bytes aren't the same run
        let again = one.run(&content, None).unwrap();
        assert!(again.number() > made.statement.run.number());
    }

    #[test]
    fn links_made_without_a_lease_are_believed_without_a_coordinator_only() {
        let fleet = Authority::new();
        let (content, chunk) = (Digest::of(b"x"), ChunkIndex(0));
        let one = notary(&fleet, "one", Digest::of(b"another"));
        let two = notary(&fleet, "two", content);
        let made = one.sign(content, chunk, link(), &one.run(&content, None).unwrap());
        assert_eq!(two.check(&made), Ok(()));
        // the coordinator came back a moment ago, and then a while ago
        two.set_connected(true);
        assert_eq!(two.check(&made), Ok(()));
        two.state().since = Instant::now().checked_sub(ALONE_FOR);
        assert_eq!(two.check(&made), Err(StatementError::Unleased));
        let lease = fleet.ticket(Some(content), "one", one.key(), 3, LONG);
        one.lease(content, Some(&lease)).unwrap();
        let made = one.sign(content, chunk, link(), &one.run(&content, None).unwrap());
        assert_eq!(two.check(&made), Ok(()));
        one.forget_lease(&content);
        let made = one.sign(content, chunk, link(), &one.run(&content, None).unwrap());
        assert_eq!(two.check(&made), Err(StatementError::Unleased));
    }

    #[test]
    fn tickets_for_others_are_refused_and_a_coordinator_without_is_named() {
        let fleet = Authority::new();
        let content = Digest::of(b"x");
        let one = Notary::new(&fleet.credentials("one"), &[1; 32]);
        let lease = |host, key| fleet.ticket(Some(content), host, key, 1, LONG);
        let refused = one.lease(content, None).unwrap_err();
        assert!(refused.to_string().contains("upgrade it"), "{refused}");
        let others = [
            lease("two", one.key()),
            lease("one", [7; 32]),
            fleet.ticket(None, "one", one.key(), 1, LONG),
        ];
        for other in &others {
            let refused = one.lease(content, Some(other));
            assert_eq!(refused, Err(RefuseTicketError::Other));
        }
        let foreign = Authority::new().ticket(Some(content), "one", one.key(), 1, LONG);
        let refused = one.lease(content, Some(&foreign));
        assert_eq!(refused, Err(RefuseTicketError::Authority));
        assert!(one.run(&content, None).is_none());
        assert_eq!(one.lease(content, Some(&lease("one", one.key()))), Ok(()));
        assert!(one.run(&content, None).is_some());
    }

    #[test]
    fn key_and_standing_ticket_outlive_the_process() {
        let fleet = Authority::new();
        let dir = tempfile::tempdir().unwrap();
        let credentials = fleet.credentials("one");
        let first = Notary::open(&credentials, dir.path());
        let content = Digest::of(b"x");
        assert!(first.vouch(content, ChunkIndex(0), link()).is_none());
        let ticket = fleet.ticket(None, "one", first.key(), 1, LONG);
        first.stand(Some(&ticket)).unwrap();
        first.keep();
        let again = Notary::open(&credentials, dir.path());
        assert_eq!(again.key(), first.key());
        let vouched = again.vouch(content, ChunkIndex(0), link()).unwrap();
        assert_eq!(first.check(&vouched), Ok(()));
        // a damaged ticket is left out
        std::fs::write(dir.path().join("standing.ticket"), b"?").unwrap();
        let again = Notary::open(&credentials, dir.path());
        assert!(again.vouch(content, ChunkIndex(0), link()).is_none());
    }
}
