//! Who may connect to an endpoint, and the connections that stand.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::SystemTime,
};

use proto::HostId;

use crate::{
    connection::Connection,
    fault::Fault,
    identity::Leaf,
    inner::{Inner, Listing},
};

/// Who may connect to this endpoint. Every one needs a valid certificate of the fleet besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorised {
    /// Any host with a valid certificate: for the coordinator, which decides on the streams.
    Anyone,
    /// These hosts: for agents.
    Only(BTreeSet<HostId>),
}

impl Authorised {
    fn allows(&self, host: &HostId) -> bool {
        match self {
            Self::Anyone => true,
            Self::Only(hosts) => hosts.contains(host),
        }
    }
}

/// Who may connect, and the connections that stand: what a change of the former needs.
///
/// A lock rather than a task: it is held for a look at a set, never across an await, and a connection must be checked and
/// listed in one step, so that no change of the list can slip between.
pub(crate) struct Registry(Mutex<Listed>);

struct Listed {
    authorised: Authorised,
    /// Hosts that aren't let in whatever the list says, and what they are told.
    turned_away: BTreeMap<HostId, String>,
    /// Certificates of these hosts that were signed earlier aren't accepted.
    oldest: BTreeMap<HostId, SystemTime>,
    /// By number, ascending with age: the first of a host is its oldest.
    connections: BTreeMap<u64, Entry>,
    next: u64,
}

struct Entry {
    connection: Weak<Inner>,
    host: HostId,
    signed: SystemTime,
    /// They connected to us.
    accepted: bool,
}

impl Listed {
    /// Whether the host has had another certificate since this time.
    fn supersedes(&self, host: &HostId, signed: SystemTime) -> bool {
        self.oldest.get(host).is_some_and(|oldest| signed < *oldest)
    }
}

/// What became of a connection that asked to be listed.
pub(crate) enum Admission {
    Listed {
        connection: Connection,
        /// Older connections of the same host, over its limit: to be closed.
        replaced: Vec<Arc<Inner>>,
    },
    /// Why, and what it is told.
    Refused(quinn::Connection, Fault, String),
}

impl Registry {
    /// With nobody authorised and no connection.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Listed {
            authorised: Authorised::Only(BTreeSet::new()),
            turned_away: BTreeMap::new(),
            oldest: BTreeMap::new(),
            connections: BTreeMap::new(),
            next: 0,
        }))
    }

    /// Checks the host, if it came to us, and its certificate, and lists its connection: one step under one lock.
    pub(crate) fn list(
        self: &Arc<Self>,
        quinn: quinn::Connection,
        leaf: &Leaf,
        accepted: bool,
        limit: usize,
    ) -> Admission {
        let (host, signed) = (&leaf.host, leaf.validity.signed());
        // Declared before the lock, so that it is dropped after it: the drop of a connection's last handle takes the lock.
        let mut standing = Vec::new();
        let mut listed = self.lock();
        if accepted && let Some(words) = listed.turned_away.get(host) {
            return Admission::Refused(quinn, Fault::Unauthorised, words.clone());
        }
        if accepted && !listed.authorised.allows(host) {
            let words = format!(
                "{host} isn't on the list of authorised hosts; add it to the fleet, and wait for the coordinator's next roster"
            );
            return Admission::Refused(quinn, Fault::Unauthorised, words);
        }
        if listed.supersedes(host, signed) {
            return Admission::Refused(quinn, Fault::Superseded, superseded(host));
        }
        let mut replaced = Vec::new();
        if accepted {
            standing.extend(
                listed
                    .connections
                    .values()
                    .filter(|entry| entry.accepted && entry.host == *host)
                    .filter_map(|entry| entry.connection.upgrade()),
            );
            let open = |connection: &&Arc<Inner>| connection.quinn.close_reason().is_none();
            let over = (standing.iter().filter(open).count() + 1).saturating_sub(limit.max(1));
            replaced.extend(standing.iter().filter(open).take(over).cloned());
        }
        let number = listed.next;
        listed.next += 1;
        let registry: Weak<dyn Listing> = Arc::<Self>::downgrade(self);
        let connection = Connection::new(quinn, (host.clone(), signed), registry, number);
        listed.connections.insert(
            number,
            Entry {
                connection: Arc::downgrade(&connection.0),
                host: host.clone(),
                signed,
                accepted,
            },
        );
        Admission::Listed {
            connection,
            replaced,
        }
    }

    /// Replaces the list; returns the connections that have to be closed. The caller closes and drops them, after the
    /// lock is given back: the drop of a connection takes it again.
    pub(crate) fn authorise(&self, hosts: Authorised) -> Vec<Arc<Inner>> {
        let mut listed = self.lock();
        let before = std::mem::replace(&mut listed.authorised, hosts);
        let named = |host| matches!(&before, Authorised::Only(hosts) if hosts.contains(host));
        listed
            .connections
            .values()
            .filter(|entry| !listed.authorised.allows(&entry.host))
            .filter(|entry| entry.accepted || named(&entry.host))
            .filter_map(|entry| entry.connection.upgrade())
            .collect()
    }

    /// Replaces those who are turned away; returns their connections, and what each is told. As for [`Self::authorise`], the
    /// caller closes and drops them.
    pub(crate) fn turn_away(&self, hosts: BTreeMap<HostId, String>) -> Vec<(Arc<Inner>, String)> {
        let mut listed = self.lock();
        listed.turned_away = hosts;
        let theirs = listed.connections.values().filter(|entry| entry.accepted);
        theirs
            .filter_map(|entry| {
                let words = listed.turned_away.get(&entry.host)?;
                Some((entry.connection.upgrade()?, words.clone()))
            })
            .collect()
    }

    /// Replaces the oldest times; returns the connections of older certificates. As for [`Self::authorise`], the caller
    /// closes and drops them.
    pub(crate) fn supersede(&self, oldest: BTreeMap<HostId, SystemTime>) -> Vec<Connection> {
        let mut listed = self.lock();
        listed.oldest = oldest;
        let entries = listed.connections.values();
        entries
            .filter(|entry| listed.supersedes(&entry.host, entry.signed))
            .filter_map(|entry| entry.connection.upgrade().map(Connection))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Listed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listing for Registry {
    fn forget(&self, number: u64) {
        self.lock().connections.remove(&number);
    }
}

/// The reason that a connection gets whose certificate isn't the host's any more.
pub(crate) fn superseded(host: &HostId) -> String {
    format!(
        "{host} has enrolled anew since this certificate was signed, or was readmitted; enrol it with a token"
    )
}
