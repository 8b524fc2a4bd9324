//! The hosts of the roster: their addresses, connections, and what waits to be told to each.

use std::{collections::BTreeMap, net::SocketAddr};

use link::Connection;
use proto::{
    ChunkSet, Digest, HostId, HostKey,
    chunks::ParseRunsError,
    message::{Have, Load, PeerUpdate, RosterEntry},
};
use tokio::sync::mpsc;

/// Updates that wait in a peer's stream. What doesn't fit is merged here and goes with the next.
const UPDATES: usize = 4;

/// Contents in one update: keeps it far below the message's limit.
const HAVES_PER_UPDATE: usize = 64;

/// Bytes of announcements of contents that we don't know yet, per peer. An image has some hundred contents of 512 chunks,
/// each in a few runs: ten kilobytes. What doesn't fit is asked for when we announce the content ourselves.
const REMEMBERED_BYTES: usize = 256 << 10;

/// What a content takes there besides its runs: digest, lengths, the map's own.
const ENTRY_BYTES: usize = 96;

/// The most connections that are kept to one peer: both sides may dial at once.
const CONNECTIONS: usize = 2;

/// Every host that may be talked to.
#[derive(Debug, Default)]
pub(super) struct Members {
    members: BTreeMap<HostKey, Member>,
    /// Of all that were on a roster, those that fell off it too.
    names: BTreeMap<HostKey, HostId>,
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
    remembered: Remembered,
}

/// What a peer announced of contents that we don't know yet, merged by content.
#[derive(Debug, Default)]
struct Remembered {
    by_content: BTreeMap<Digest, (Vec<u32>, bool)>,
    bytes: usize,
}

impl Remembered {
    /// Keeps an announcement, as far as there is room.
    fn keep(&mut self, content: Digest, runs: &[u32], reset: bool) -> Result<(), ParseRunsError> {
        let before = self.take(&content);
        let (runs, reset) = match &before {
            Some((kept, was_reset)) if !reset => (ChunkSet::merge_runs(kept, runs)?, *was_reset),
            _ => (ChunkSet::merge_runs(&[], runs)?, reset),
        };
        let entry = if self.bytes + size(&runs) <= REMEMBERED_BYTES {
            Some((runs, reset))
        } else {
            before
        };
        if let Some(entry) = entry {
            self.bytes += size(&entry.0);
            self.by_content.insert(content, entry);
        }
        Ok(())
    }

    fn take(&mut self, content: &Digest) -> Option<(Vec<u32>, bool)> {
        let entry = self.by_content.remove(content)?;
        self.bytes -= size(&entry.0);
        Some(entry)
    }
}

fn size(runs: &[u32]) -> usize {
    ENTRY_BYTES + size_of_val(runs)
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

/// Names that are remembered, a few fleets' worth.
const MAX_NAMES: usize = 4096;

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
                remembered: Remembered::default(),
            });
            member.address = entry.address.parse().ok();
            member.zone.clone_from(&entry.zone);
            member.neighbour = neighbours.contains(&entry.host);
            self.members.insert(key, member);
        }
        if self.names.len() > MAX_NAMES {
            self.names.clear();
        }
        let names = self.members.values().map(|member| &member.host);
        self.names
            .extend(names.map(|host| (host.key(), host.clone())));
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

    /// The name of a host that is or was on the roster. A liar whose lies are found out after it fell off isn't to be
    /// mistaken for whoever passed them on.
    pub(super) fn name(&self, peer: HostKey) -> Option<HostId> {
        self.names.get(&peer).cloned()
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
        member.remembered = Remembered::default();
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
    ///
    /// # Errors
    /// When it can't be one of any content.
    pub(super) fn remember(
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

    /// What peers announced of this content before we knew it.
    pub(super) fn recall(&mut self, content: &Digest) -> Vec<(HostKey, Vec<u32>, bool)> {
        let members = self.members.iter_mut();
        members
            .filter_map(|(key, member)| {
                let (runs, reset) = member.remembered.take(content)?;
                Some((*key, runs, reset))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(at: u32) -> Digest {
        Digest::of(&at.to_le_bytes())
    }

    #[test]
    fn a_host_that_fell_off_the_roster_keeps_its_name() {
        let roster = |hosts: &[&str]| -> Vec<RosterEntry> {
            let entry = |host: &&str| RosterEntry {
                host: (*host).into(),
                ..RosterEntry::default()
            };
            hosts.iter().map(entry).collect()
        };
        let host = |name: &str| name.parse::<HostId>().unwrap();
        let mut members = Members::default();
        members.replace(&host("me"), &roster(&["me", "a", "liar"]), &[]);
        members.replace(&host("me"), &roster(&["me", "a"]), &[]);
        let liar = host("liar");
        assert_eq!(members.host(liar.key()), None);
        assert_eq!(members.name(liar.key()), Some(liar));
        assert_eq!(members.name(host("invented").key()), None);
        for at in 0..3 * MAX_NAMES {
            let name = format!("h{at}");
            members.replace(&host("me"), &roster(&[&name]), &[]);
            assert!(members.names.len() <= MAX_NAMES + 1);
            assert_eq!(members.name(host(&name).key()), Some(host(&name)));
        }
    }

    #[test]
    fn announcements_of_an_unknown_content_add_up() {
        let mut remembered = Remembered::default();
        let mut keep = |runs: &[u32], reset| remembered.keep(digest(0), runs, reset).unwrap();
        keep(&[3, 1], true);
        keep(&[0, 2], false);
        keep(&[2, 1], false);
        assert_eq!(remembered.take(&digest(0)), Some((vec![0, 4], true)));
        assert_eq!((remembered.take(&digest(0)), remembered.bytes), (None, 0));
        remembered.keep(digest(0), &[0, 9], false).unwrap();
        remembered.keep(digest(0), &[5, 1], true).unwrap();
        assert_eq!(remembered.take(&digest(0)), Some((vec![5, 1], true)));
        assert!(remembered.keep(digest(0), &[u32::MAX, 1], false).is_err());
        assert!(remembered.keep(digest(0), &[1], false).is_err());
    }

    #[test]
    fn a_peer_fills_its_room_and_no_more() {
        let mut remembered = Remembered::default();
        let comb = vec![1; 10_000];
        for round in 0..100 {
            for content in 0..50 {
                remembered.keep(digest(content), &comb, round == 0).unwrap();
                assert!(remembered.bytes <= REMEMBERED_BYTES);
            }
        }
        // the first ones are kept, and small ones still find room
        assert_eq!(remembered.take(&digest(0)), Some((comb, true)));
        remembered.keep(digest(99), &[0, 5], true).unwrap();
        assert_eq!(remembered.take(&digest(99)), Some((vec![0, 5], true)));
        for content in 0..100_000 {
            remembered.keep(digest(content), &[], true).unwrap();
        }
        assert!(remembered.by_content.len() * ENTRY_BYTES <= REMEMBERED_BYTES);
        let bytes: usize = remembered
            .by_content
            .values()
            .map(|(runs, _)| size(runs))
            .sum();
        assert_eq!(bytes, remembered.bytes);
    }
}
