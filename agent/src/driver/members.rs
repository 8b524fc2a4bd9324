//! The hosts of the roster: their addresses, connections, and what waits to be told to each.

use std::{collections::BTreeMap, net::SocketAddr};

use link::Connection;
use proto::{
    ChunkSet, Digest, HostId, HostKey,
    message::{Have, Load, PeerUpdate, RosterEntry},
};
use tokio::sync::mpsc;

/// Updates that wait in a peer's stream. What doesn't fit is merged here and goes with the next.
const UPDATES: usize = 4;

/// Contents in one update: keeps it far below the message's limit.
const HAVES_PER_UPDATE: usize = 64;

/// Announcements of contents that we don't know yet, per peer. An image has some hundred contents.
const REMEMBERED: usize = 4096;

/// The most connections that are kept to one peer: both sides may dial at once.
const CONNECTIONS: usize = 2;

/// Every host that may be talked to.
#[derive(Debug, Default)]
pub(super) struct Members {
    members: BTreeMap<HostKey, Member>,
    next_serial: u64,
}

#[derive(Debug)]
struct Member {
    host: HostId,
    address: Option<SocketAddr>,
    zone: String,
    neighbour: bool,
    /// Oldest first; the first carries our streams.
    connections: Vec<(u64, Connection)>,
    updates: Option<mpsc::Sender<PeerUpdate>>,
    have: BTreeMap<Digest, (ChunkSet, bool)>,
    load: Option<Load>,
    /// What it announced of contents that we don't know yet.
    remembered: BTreeMap<Digest, Vec<(Vec<u32>, bool)>>,
}

/// What is left after a connection ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// It was the only one.
    Last,
    /// Another one takes over.
    Other {
        connection: Connection,
        updates: mpsc::Receiver<PeerUpdate>,
    },
    /// It carried nothing of ours.
    Unused,
}

impl Members {
    /// Takes over a new roster; the hosts that fell off it are disconnected. `me` is left out.
    pub(super) fn replace(
        &mut self,
        me: &HostId,
        roster: &[RosterEntry],
        neighbours: &[String],
    ) -> Vec<swarm::event::Peer> {
        let mut before = std::mem::take(&mut self.members);
        for entry in roster {
            let Ok(host) = entry.host.parse::<HostId>() else {
                continue;
            };
            if host == *me {
                continue;
            }
            let key = host.key();
            let mut member = before.remove(&key).unwrap_or_else(|| Member {
                host,
                address: None,
                zone: String::new(),
                neighbour: false,
                connections: Vec::new(),
                updates: None,
                have: BTreeMap::new(),
                load: None,
                remembered: BTreeMap::new(),
            });
            member.address = entry.address.parse().ok();
            member.zone.clone_from(&entry.zone);
            member.neighbour = neighbours.contains(&entry.host);
            self.members.insert(key, member);
        }
        for gone in before.into_values() {
            for (_, connection) in gone.connections {
                connection.close(
                    link::CloseCode::Unauthorised,
                    "not on this host's roster any more",
                );
            }
        }
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
                    *zones.entry(member.zone.clone()).or_insert(next)
                };
                swarm::event::Peer {
                    key: *key,
                    zone,
                    neighbour: member.neighbour,
                }
            })
            .collect()
    }

    pub(super) fn hosts(&self) -> impl Iterator<Item = &HostId> {
        self.members.values().map(|member| &member.host)
    }

    pub(super) fn host(&self, peer: HostKey) -> Option<HostId> {
        Some(self.members.get(&peer)?.host.clone())
    }

    pub(super) fn address(&self, peer: HostKey) -> Option<(HostId, SocketAddr)> {
        let member = self.members.get(&peer)?;
        Some((member.host.clone(), member.address?))
    }

    pub(super) fn connection(&self, peer: HostKey) -> Option<Connection> {
        Some(self.members.get(&peer)?.connections.first()?.1.clone())
    }

    pub(super) fn is_connected(&self, peer: HostKey) -> bool {
        self.members
            .get(&peer)
            .is_some_and(|member| !member.connections.is_empty())
    }

    /// Keeps a new connection: its serial, and the updates to send where it is the first. `None` for a stranger.
    pub(super) fn connected(
        &mut self,
        peer: HostKey,
        connection: Connection,
    ) -> Option<(u64, Option<mpsc::Receiver<PeerUpdate>>)> {
        let member = self.members.get_mut(&peer)?;
        self.next_serial += 1;
        member.connections.push((self.next_serial, connection));
        if member.connections.len() > CONNECTIONS {
            // a peer that restarted dials again before we notice that the old connection is dead
            let (_, oldest) = member.connections.remove(0);
            oldest.close(link::CloseCode::Replaced, "replaced by a newer connection");
        }
        let updates = (member.connections.len() == 1).then(|| {
            let (sender, receiver) = mpsc::channel(UPDATES);
            member.updates = Some(sender);
            receiver
        });
        Some((self.next_serial, updates))
    }

    /// Forgets a connection that ended.
    pub(super) fn ended(&mut self, peer: HostKey, serial: u64) -> Ended {
        let Some(member) = self.members.get_mut(&peer) else {
            return Ended::Unused;
        };
        let first = member.connections.first().map(|(first, _)| *first);
        member.connections.retain(|(other, _)| *other != serial);
        if first != Some(serial) && !member.connections.is_empty() {
            return Ended::Unused;
        }
        member.updates = None;
        member.have.clear();
        member.remembered.clear();
        match member.connections.first() {
            None => Ended::Last,
            Some((_, connection)) => {
                let (sender, updates) = mpsc::channel(UPDATES);
                member.updates = Some(sender);
                Ended::Other {
                    connection: connection.clone(),
                    updates,
                }
            }
        }
    }

    pub(super) fn hang_up(&mut self, peer: HostKey) {
        for (_, connection) in self
            .members
            .get(&peer)
            .into_iter()
            .flat_map(|member| &member.connections)
        {
            connection.close(link::CloseCode::Done, "hung up");
        }
    }

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
                waiting.union_with(&chunks)
            }
            _ => drop(member.have.insert(content, (chunks, reset))),
        }
    }

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

    /// Hands on what waits, as far as the peers' streams take it.
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

    /// Keeps an announcement of a content that we may come to want.
    pub(super) fn remember(&mut self, peer: HostKey, content: Digest, runs: &[u32], reset: bool) {
        let Some(member) = self.members.get_mut(&peer) else {
            return;
        };
        if member.remembered.len() >= REMEMBERED && !member.remembered.contains_key(&content) {
            return;
        }
        let kept = member.remembered.entry(content).or_default();
        if reset {
            kept.clear();
        }
        // increments of one content are a few a second; beyond this the peer's reset on reconnection has to do
        if kept.len() < 1024 {
            kept.push((runs.to_vec(), reset));
        }
    }

    /// What peers announced of this content before we knew it.
    pub(super) fn recall(&mut self, content: &Digest) -> Vec<(HostKey, Vec<u32>, bool)> {
        let mut all = Vec::new();
        for (key, member) in &mut self.members {
            let kept = member.remembered.remove(content).unwrap_or_default();
            all.extend(kept.into_iter().map(|(runs, reset)| (*key, runs, reset)));
        }
        all
    }
}
