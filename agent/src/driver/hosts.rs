//! The hosts of the roster: their addresses, the connections to them, and the announcements that wait for each.
//!
//! This part opens no socket. It returns [`Effect`]s, which the driver carries out. A connection is a handle of any
//! type `L` here, so that tests use numbers for connections.

mod remembered;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use proto::{
    ChunkSet, Digest, HostId, HostKey,
    chunks::ParseRunsError,
    message::{Have, Load, PeerUpdate, RosterChange, RosterEntry},
};
use swarm::{
    Event,
    event::{ContentId, Peer},
};
use tokio::sync::mpsc;
use tracing::{debug, warn};
use wire::{CloseCode, ConnectError, Connection};

use self::remembered::Remembered;

/// Updates that wait in a peer's stream. Announcements that don't fit are merged here, and go with the next update.
const UPDATES: usize = 4;

/// The most contents in one update. With this many, an update stays far below the message's limit.
const HAVES_PER_UPDATE: usize = 64;

/// The most connections that are kept to one peer. Both sides may dial at once, and a connection of the peer's earlier
/// life may still be there.
const CONNECTIONS: usize = 3;

/// Work for the driver, after this part heard something.
#[derive(Debug)]
pub(super) enum Effect<L = Connection> {
    /// Tell the swarm.
    Tell(Event),
    /// Connect to a host. The end goes to [`Hosts::connected`] or [`Hosts::not_connected`].
    Dial(Dial),
    /// Read what the peer sends on this connection. Its end goes to [`Hosts::ended`].
    Listen {
        peer: HostKey,
        serial: u64,
        connection: L,
    },
    /// Open the stream of this host's announcements on this connection, and send these updates on it.
    Announce {
        connection: L,
        updates: mpsc::Receiver<PeerUpdate>,
    },
    /// Close this connection.
    Close {
        connection: L,
        code: CloseCode,
        reason: &'static str,
    },
    /// Give up the transfers from this peer: they use a connection that is dead.
    Cancel(HostKey),
    /// Tell the coordinator that this peer broke the protocol.
    Blame(HostKey),
}

/// A connection to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dial {
    pub(super) peer: HostKey,
    pub(super) host: HostId,
    pub(super) address: SocketAddr,
}

/// All hosts that this host may talk to.
#[derive(Debug)]
pub(super) struct Hosts<L = Connection> {
    members: BTreeMap<HostKey, Member<L>>,
    /// The number that the coordinator gave this roster; 0 before the first roster.
    epoch: u64,
    /// The hosts that this host follows, whether they are on the roster or not.
    neighbours: BTreeSet<String>,
    next_serial: u64,
}

/// A host of the roster.
#[derive(Debug)]
struct Member<L> {
    host: HostId,
    address: Option<SocketAddr>,
    zone: String,
    /// The host's certificates that were signed before this time aren't accepted any more. Unix seconds; 0: all are
    /// accepted.
    enrolled_at: u64,
    neighbour: bool,
    /// The first connection carries the streams that this host opens. The others are in reserve, oldest first.
    connections: Vec<(u64, L)>,
    /// The life that the peer named last, and the serial of the connection on which it named that life.
    life: Option<(u64, u64)>,
    updates: Option<mpsc::Sender<PeerUpdate>>,
    /// Announcements that wait for the peer, by content. `true`: it replaces earlier announcements.
    have: BTreeMap<Digest, (ChunkSet, bool)>,
    load: Option<Load>,
    /// How dialling the peer ended last, if it failed and no connection came since.
    undialled: Option<Undialled>,
    /// The peer's announcements of contents that aren't known here yet.
    remembered: Remembered,
}

/// Why a peer couldn't be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Undialled {
    /// This host's system sends nothing to the peer, in the system's words.
    NoRoute(String),
    /// Anything else.
    Other,
}

/// This host's system sends nothing to any peer that was dialled, and no peer is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NoRoute {
    /// The number of peers that were dialled.
    pub(super) dialled: usize,
    /// The system's words about one of them.
    pub(super) cause: String,
}

impl<L: Clone> Member<L> {
    fn new(host: HostId) -> Self {
        Self {
            host,
            address: None,
            zone: String::new(),
            enrolled_at: 0,
            neighbour: false,
            connections: Vec::new(),
            life: None,
            updates: None,
            have: BTreeMap::new(),
            load: None,
            undialled: None,
            remembered: Remembered::default(),
        }
    }

    /// Forgets what was announced on a connection that ended: both sides begin anew on the next one.
    fn forget_told(&mut self) {
        self.updates = None;
        self.have.clear();
        self.load = None;
        self.remembered = Remembered::default();
    }

    /// Opens the stream of announcements on a connection.
    fn announce_on(&mut self, connection: L) -> Effect<L> {
        let (sender, updates) = mpsc::channel(UPDATES);
        self.updates = Some(sender);
        Effect::Announce {
            connection,
            updates,
        }
    }

    /// Moves to another connection. The peer forgets what it was told on the earlier connection, so both sides announce
    /// everything anew.
    fn take_over(&mut self, peer: HostKey, connection: L, out: &mut Vec<Effect<L>>) {
        self.forget_told();
        out.push(Effect::Cancel(peer));
        out.push(self.announce_on(connection));
        out.push(Effect::Tell(Event::Disconnected(peer)));
        out.push(Effect::Tell(Event::Connected(peer)));
    }
}

impl<L> Default for Hosts<L> {
    fn default() -> Self {
        Self {
            members: BTreeMap::new(),
            epoch: 0,
            neighbours: BTreeSet::new(),
            next_serial: 0,
        }
    }
}

impl<L: Clone> Hosts<L> {
    // ---- the roster -----------------------------------------------------------------------------------------------

    /// The number of the roster; 0 before the first roster.
    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Takes a new roster and new neighbours. Hosts that aren't on the roster are disconnected. `me` is left out.
    pub(super) fn replace(
        &mut self,
        me: &HostId,
        epoch: u64,
        roster: &[RosterEntry],
        neighbours: &[String],
    ) -> Vec<Effect<L>> {
        self.neighbours = neighbours.iter().cloned().collect();
        self.enter(me, epoch, BTreeMap::new(), roster)
    }

    /// Changes the roster. Returns `None` if the change is of another roster than the one that is here. `me` is left
    /// out.
    pub(super) fn change(&mut self, me: &HostId, change: &RosterChange) -> Option<Vec<Effect<L>>> {
        let kept = match change.from_epoch {
            0 => BTreeMap::new(),
            from if from == self.epoch => {
                let mut kept = std::mem::take(&mut self.members);
                let gone = change.gone.iter().filter_map(|host| host.parse().ok());
                for host in gone.map(|host: HostId| host.key()) {
                    // `enter` finds here which hosts left the roster
                    if let Some(gone) = kept.remove(&host) {
                        self.members.insert(host, gone);
                    }
                }
                kept
            }
            _ => return None,
        };
        Some(self.enter(me, change.epoch, kept, &change.hosts))
    }

    /// Follows these hosts from now on.
    pub(super) fn follow(&mut self, neighbours: Vec<String>) -> Vec<Effect<L>> {
        self.neighbours = neighbours.into_iter().collect();
        for member in self.members.values_mut() {
            member.neighbour = self.neighbours.contains(member.host.as_str());
        }
        vec![Effect::Tell(Event::Roster(self.peers()))]
    }

    /// Makes a roster of the members that are `kept` and of these entries. All other members left the roster.
    fn enter(
        &mut self,
        me: &HostId,
        epoch: u64,
        kept: BTreeMap<HostKey, Member<L>>,
        roster: &[RosterEntry],
    ) -> Vec<Effect<L>> {
        self.epoch = epoch;
        let mut before = std::mem::replace(&mut self.members, kept);
        for entry in roster {
            let Ok(host) = entry.host.parse::<HostId>() else {
                continue;
            };
            if host == *me {
                continue;
            }
            let key = host.key();
            let known = before.remove(&key).or_else(|| self.members.remove(&key));
            let mut member = known.unwrap_or_else(|| Member::new(host));
            member.address = entry.address.parse().ok();
            member.zone.clone_from(&entry.zone);
            member.enrolled_at = entry.enrolled_at;
            member.neighbour = self.neighbours.contains(&entry.host);
            self.members.insert(key, member);
        }
        let gone = before.into_values().flat_map(|gone| gone.connections);
        let mut out: Vec<_> = gone
            .map(|(_, connection)| Effect::Close {
                connection,
                code: CloseCode::Unauthorised,
                reason: "not on this host's roster any more",
            })
            .collect();
        out.push(Effect::Tell(Event::Roster(self.peers())));
        out
    }

    /// The members as the swarm knows them.
    fn peers(&self) -> Vec<Peer> {
        let mut zones = BTreeMap::new();
        self.members
            .iter()
            .map(|(key, member)| {
                let next = u32::try_from(zones.len())
                    .unwrap_or(u32::MAX)
                    .saturating_add(1);
                let zone = if member.zone.is_empty() {
                    0
                } else {
                    *zones.entry(member.zone.as_str()).or_insert(next)
                };
                Peer {
                    key: *key,
                    zone,
                    neighbour: member.neighbour,
                }
            })
            .collect()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &HostId> {
        self.members.values().map(|member| &member.host)
    }

    /// The addresses of the members.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let addresses = self.members.values().filter_map(|member| member.address);
        addresses.map(|address| address.ip())
    }

    /// For each host, the time since which its certificates are accepted.
    pub(super) fn enrolled(&self) -> BTreeMap<HostId, SystemTime> {
        let members = self.members.values();
        // a time beyond the clock's range counts as none
        let at = |member: &Member<L>| {
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(member.enrolled_at))
        };
        members
            .filter_map(|member| Some((member.host.clone(), at(member)?)))
            .collect()
    }

    /// The name of a host of the roster.
    pub(super) fn id(&self, peer: HostKey) -> Option<&HostId> {
        Some(&self.members.get(&peer)?.host)
    }

    // ---- connections ----------------------------------------------------------------------------------------------

    /// The swarm wants a connection to this peer.
    pub(super) fn dial(&self, peer: HostKey) -> Effect<L> {
        let member = self.members.get(&peer);
        let reached = member.and_then(|member| Some((member.host.clone(), member.address?)));
        match reached {
            Some((host, address)) => Effect::Dial(Dial {
                peer,
                host,
                address,
            }),
            None => Effect::Tell(Event::Disconnected(peer)),
        }
    }

    /// Dialling a peer failed. The peer may have dialled this host and connected meanwhile.
    pub(super) fn not_connected(
        &mut self,
        peer: HostKey,
        error: &ConnectError,
    ) -> Option<Effect<L>> {
        debug!(%peer, %error, "dialling failed");
        let member = self.members.get_mut(&peer);
        if let Some(member) = member {
            if !member.connections.is_empty() {
                return None;
            }
            member.undialled = Some(match error {
                ConnectError::NoRoute { cause, .. } => Undialled::NoRoute(cause.clone()),
                _ => Undialled::Other,
            });
        }
        Some(Effect::Tell(Event::Disconnected(peer)))
    }

    /// Whether this host's system keeps this host from all peers. One connection, or one peer that is merely silent,
    /// shows that it doesn't.
    pub(super) fn no_route(&self) -> Option<NoRoute> {
        let mut found: Option<NoRoute> = None;
        for member in self.members.values() {
            match &member.undialled {
                _ if !member.connections.is_empty() => return None,
                Some(Undialled::Other) => return None,
                Some(Undialled::NoRoute(cause)) => {
                    let found = found.get_or_insert_with(|| NoRoute {
                        dialled: 0,
                        cause: cause.clone(),
                    });
                    found.dialled += 1;
                }
                None => {}
            }
        }
        found
    }

    /// A peer connected, or was dialled.
    pub(super) fn connected(&mut self, peer: HostKey, connection: L) -> Vec<Effect<L>> {
        let Some(member) = self.members.get_mut(&peer) else {
            return vec![Effect::Close {
                connection,
                code: CloseCode::Unauthorised,
                reason: "not on this host's roster",
            }];
        };
        self.next_serial += 1;
        let serial = self.next_serial;
        let mut out = Vec::new();
        member.undialled = None;
        member.connections.push((serial, connection.clone()));
        if member.connections.len() > CONNECTIONS {
            // never the first one: the streams of this host would have to begin anew on another
            let (_, oldest) = member.connections.remove(1);
            out.push(Effect::Close {
                connection: oldest,
                code: CloseCode::Replaced,
                reason: "replaced by a newer connection",
            });
        }
        out.push(Effect::Listen {
            peer,
            serial,
            connection: connection.clone(),
        });
        if member.connections.len() == 1 {
            out.push(member.announce_on(connection));
            out.push(Effect::Tell(Event::Connected(peer)));
        }
        out
    }

    /// The peer introduces itself on a connection. If it names another life than before, it was restarted. The
    /// connections of its earlier life are dead, although nobody has noticed that yet. This connection takes over.
    pub(super) fn introduced(&mut self, peer: HostKey, serial: u64, life: u64) -> Vec<Effect<L>> {
        let mut out = Vec::new();
        let Some(member) = self.members.get_mut(&peer) else {
            return out;
        };
        let mut serials = member.connections.iter().map(|(other, _)| *other);
        let Some(at) = serials.position(|other| other == serial) else {
            return out;
        };
        let before = member.life.replace((life, serial));
        let restarted = match before {
            // a version that doesn't name its lives introduces itself once in each life, unless it lost the connection
            Some((0, introduced_on)) if life == 0 => introduced_on != serial,
            Some((known, _)) => known != life,
            None => false,
        };
        if !restarted || at == 0 {
            return out;
        }
        debug!(%peer, "peer was restarted");
        let alive = member.connections.remove(at);
        let connection = alive.1.clone();
        for (_, connection) in std::mem::replace(&mut member.connections, vec![alive]) {
            out.push(Effect::Close {
                connection,
                code: CloseCode::Replaced,
                reason: "the peer was restarted",
            });
        }
        member.take_over(peer, connection, &mut out);
        out
    }

    /// A connection ended.
    pub(super) fn ended(&mut self, peer: HostKey, serial: u64, reason: &str) -> Vec<Effect<L>> {
        debug!(%peer, reason, "connection ended");
        let mut out = Vec::new();
        let Some(member) = self.members.get_mut(&peer) else {
            return out;
        };
        let first = member.connections.first().map(|(first, _)| *first);
        member.connections.retain(|(other, _)| *other != serial);
        match member.connections.first().cloned() {
            None => {
                member.forget_told();
                out.push(Effect::Tell(Event::Disconnected(peer)));
            }
            // the connection carried no streams of this host
            Some(_) if first != Some(serial) => {}
            Some((_, connection)) => member.take_over(peer, connection, &mut out),
        }
        out
    }

    /// The swarm wants no connection to this peer.
    pub(super) fn hang_up(&self, peer: HostKey) -> Vec<Effect<L>> {
        let member = self.members.get(&peer);
        let connections = member.into_iter().flat_map(|member| &member.connections);
        connections
            .map(|(_, connection)| Effect::Close {
                connection: connection.clone(),
                code: CloseCode::Done,
                reason: "hung up",
            })
            .collect()
    }

    /// The connection that carries this host's streams to a peer.
    pub(super) fn connection(&self, peer: HostKey) -> Option<L> {
        Some(self.members.get(&peer)?.connections.first()?.1.clone())
    }

    // ---- what this host announces ---------------------------------------------------------------------------------

    /// Announces chunks of a content to a peer with the next update. `reset`: the chunks replace earlier announcements.
    pub(super) fn announce(
        &mut self,
        peer: HostKey,
        content: Digest,
        chunks: ChunkSet,
        reset: bool,
    ) {
        let Some(member) = self.members.get_mut(&peer) else {
            return;
        };
        match member.have.get_mut(&content) {
            Some((waiting, _)) if !reset && waiting.chunks() == chunks.chunks() => {
                waiting.union_with(&chunks);
            }
            _ => drop(member.have.insert(content, (chunks, reset))),
        }
    }

    /// Announces this host's load to a peer with the next update.
    pub(super) fn announce_load(
        &mut self,
        peer: HostKey,
        backlog_bytes: u64,
        upload_bytes_per_second: u64,
    ) {
        if let Some(member) = self.members.get_mut(&peer) {
            member.load = Some(Load {
                backlog_bytes,
                upload_bytes_per_second,
            });
        }
    }

    /// Hands on the announcements that wait, as far as the peers' streams take them.
    pub(super) fn flush_updates(&mut self) {
        for member in self.members.values_mut() {
            let Some(updates) = &member.updates else {
                continue;
            };
            while !member.have.is_empty() || member.load.is_some() {
                let Ok(place) = updates.try_reserve() else {
                    break;
                };
                let mut have = Vec::new();
                while have.len() < HAVES_PER_UPDATE {
                    let Some((content, (chunks, reset))) = member.have.pop_first() else {
                        break;
                    };
                    have.push(Have {
                        content: content.as_bytes().to_vec(),
                        runs: chunks.to_runs(),
                        reset,
                    });
                }
                place.send(PeerUpdate {
                    have,
                    load: member.load.take(),
                });
            }
        }
    }

    // ---- what peers announce --------------------------------------------------------------------------------------

    /// A peer announced what it holds and how busy it is. `known` finds the chunks of a content that this host knows.
    pub(super) fn updated(
        &mut self,
        peer: HostKey,
        update: PeerUpdate,
        known: impl Fn(&Digest, &[u32]) -> Result<Option<(ContentId, ChunkSet)>, ParseRunsError>,
    ) -> Vec<Effect<L>> {
        let mut out = Vec::new();
        for have in update.have {
            let Ok(digest) = Digest::try_from(have.content.as_slice()) else {
                out.extend(self.nonsense(peer, "announcement of something that isn't a digest"));
                return out;
            };
            let announced = match known(&digest, &have.runs) {
                // the peer won't repeat the announcement when this host comes to know the content
                Ok(None) => self
                    .remember(peer, digest, &have.runs, have.reset)
                    .map(|()| None),
                known => known,
            };
            match announced {
                Ok(Some((id, chunks))) => out.push(Effect::Tell(Event::Announced {
                    peer,
                    id,
                    chunks,
                    reset: have.reset,
                })),
                Ok(None) => {}
                // the peer was told another size than this host was: manifests may differ
                Err(ParseRunsError::PastEnd) => {}
                Err(error @ ParseRunsError::Odd) => {
                    out.extend(self.nonsense(peer, &error.to_string()));
                    return out;
                }
            }
        }
        if let Some(load) = update.load {
            out.push(Effect::Tell(Event::Load {
                peer,
                backlog_bytes: load.backlog_bytes,
                upload_bytes_per_second: load.upload_bytes_per_second,
            }));
        }
        out
    }

    /// Keeps an announcement of a content that this host may come to want.
    ///
    /// # Errors
    /// When the runs can't be those of any content.
    fn remember(
        &mut self,
        peer: HostKey,
        content: Digest,
        runs: &[u32],
        reset: bool,
    ) -> Result<(), ParseRunsError> {
        self.members.get_mut(&peer).map_or(Ok(()), |member| {
            member.remembered.keep(content, runs, reset)
        })
    }

    /// This host came to know a content of `chunks` chunks: earlier announcements of peers count now.
    pub(super) fn recall(
        &mut self,
        id: ContentId,
        content: &Digest,
        chunks: u32,
    ) -> Vec<Effect<L>> {
        let members = self.members.iter_mut();
        let remembered: Vec<_> = members
            .filter_map(|(peer, member)| Some((*peer, member.remembered.take(content)?)))
            .collect();
        let mut out = Vec::new();
        for (peer, (runs, reset)) in remembered {
            match ChunkSet::from_runs(chunks, &runs) {
                Ok(chunks) => out.push(Effect::Tell(Event::Announced {
                    peer,
                    id,
                    chunks,
                    reset,
                })),
                Err(ParseRunsError::PastEnd) => {}
                Err(error @ ParseRunsError::Odd) => {
                    out.extend(self.nonsense(peer, &error.to_string()));
                }
            }
        }
        out
    }

    /// A peer sent something that no correct peer sends.
    pub(super) fn nonsense(&self, peer: HostKey, error: &str) -> [Effect<L>; 2] {
        warn!(%peer, error, "peer broke the protocol");
        [Effect::Blame(peer), Effect::Tell(Event::Blamed(peer))]
    }
}

#[cfg(test)]
mod tests;
