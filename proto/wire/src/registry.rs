//! Which hosts may connect to an endpoint, and which connections stand.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::SystemTime,
};

use proto::HostId;

use crate::{
    connection::Connection,
    fault::Fault,
    identity::Leaf,
    inner::{Inner, Listing},
    lock::lock,
};

/// Which hosts may connect to an endpoint. Each also needs a valid certificate of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorised {
    /// Any host with a valid certificate. For the coordinator, which decides on each stream.
    Anyone,
    /// These hosts alone. For agents.
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

/// The hosts that may connect, and the connections that stand, which a change of those hosts may close.
///
/// This is a lock and not a task. It is held only for a look at a set, and never across an await. A connection must be
/// checked and listed in one step, so that no change of the hosts comes in between.
pub(crate) struct Registry(Mutex<Listed>);

struct Listed {
    authorised: Authorised,
    /// Hosts that are refused even if `authorised` allows them, and the words that each is told.
    turned_away: BTreeMap<HostId, String>,
    /// For each host: certificates that were signed before this time aren't accepted.
    oldest: BTreeMap<HostId, SystemTime>,
    /// By number. Numbers grow, so the first connection of a host is its oldest.
    connections: BTreeMap<u64, Entry>,
    next: u64,
}

struct Entry {
    connection: Weak<Inner>,
    host: HostId,
    signed: SystemTime,
    /// Whether the other side opened the connection.
    accepted: bool,
}

impl Listed {
    /// Whether a certificate that was signed at this time is too old for the host.
    fn supersedes(&self, host: &HostId, signed: SystemTime) -> bool {
        self.oldest.get(host).is_some_and(|oldest| signed < *oldest)
    }
}

/// The answer to a connection that is to be listed.
pub(crate) enum Admission {
    Listed {
        connection: Connection,
        /// Older connections of the same host beyond its limit. The caller closes them.
        replaced: Vec<Arc<Inner>>,
    },
    /// Why the connection is refused, and the words that the host is told.
    Refused(quinn::Connection, Fault, String),
}

impl Registry {
    /// Starts with no authorised host and no connection.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Listed {
            authorised: Authorised::Only(BTreeSet::new()),
            turned_away: BTreeMap::new(),
            oldest: BTreeMap::new(),
            connections: BTreeMap::new(),
            next: 0,
        }))
    }

    /// Checks the host's certificate, and for an accepted connection also whether the host may connect. Then lists the
    /// connection. All of this is one step under one lock.
    pub(crate) fn list(
        self: &Arc<Self>,
        quinn: quinn::Connection,
        leaf: &Leaf,
        accepted: bool,
        limit: usize,
    ) -> Admission {
        let (host, signed) = (&leaf.host, leaf.validity.signed());
        // Declared before the lock, so that it is dropped after the lock: dropping a connection's last handle takes the
        // lock.
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

    /// Replaces the list of authorised hosts. Returns the connections to close. The caller closes and drops them after
    /// this call, because dropping a connection takes the lock again.
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

    /// Replaces the hosts that are turned away. Returns their connections, and the words for each. As for
    /// [`Self::authorise`], the caller closes and drops the connections.
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

    /// Replaces the times before which certificates are too old. Returns the connections of older certificates. As for
    /// [`Self::authorise`], the caller closes and drops them.
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
        lock(&self.0)
    }
}

impl Listing for Registry {
    fn forget(&self, number: u64) {
        self.lock().connections.remove(&number);
    }
}

/// The reason that a connection is told when its certificate is no longer the host's.
pub(crate) fn superseded(host: &HostId) -> String {
    format!(
        "{host} has enrolled anew since this certificate was signed, or was readmitted; enrol it with a token"
    )
}
