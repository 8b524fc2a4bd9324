//! The hosts of the roster: their addresses, connections, and what waits to be told to each.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use link::Connection;
use proto::{
    ChunkSet, Digest, HostId, HostKey,
    chunks::ParseRunsError,
    message::{Have, Load, PeerUpdate, RosterChange, RosterEntry},
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

/// The most connections that are kept to one peer: both sides may dial at once, and one of its earlier life may still be
/// there.
const CONNECTIONS: usize = 3;

/// Every host that may be talked to.
#[derive(Debug, Default)]
pub(super) struct Members {
    members: BTreeMap<HostKey, Member>,
    /// Names this roster, as the coordinator did; 0 before the first.
    epoch: u64,
    /// Whom this host follows, where they are on the roster.
    neighbours: BTreeSet<String>,
    /// Of all that were on a roster, those that fell off it too.
    names: BTreeMap<HostKey, HostId>,
    next_serial: u64,
}

#[derive(Debug)]
struct Member {
    host: HostId,
    address: Option<SocketAddr>,
    zone: String,
    /// Certificates that were signed before aren't the host's any more. Unix seconds, 0 where any is.
    enrolled_at: u64,
    neighbour: bool,
    /// The first carries our streams; the others are in reserve, oldest first.
    connections: Vec<(u64, Connection)>,
    /// The life that the peer named last, and the connection on which it did.
    life: Option<(u64, u64)>,
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
    Other(Takeover),
    /// It carried nothing of ours.
    Unused,
}

/// A connection that carries our streams from now on. Everything begins anew on it: what we announced before is to be
/// announced again, and the peer does the same.
#[derive(Debug)]
pub(super) struct Takeover {
    pub(super) connection: Connection,
    /// What is to be told on it.
    pub(super) updates: mpsc::Receiver<PeerUpdate>,
}

/// Names that are remembered, a few fleets' worth.
const MAX_NAMES: usize = 4096;

impl Member {
    /// What was told on a connection is void: both sides begin anew on the next.
    fn forget_told(&mut self) {
        self.updates = None;
        self.have.clear();
        self.load = None;
        self.remembered = Remembered::default();
    }

    fn take_over(&mut self, connection: Connection) -> Takeover {
        self.forget_told();
        let (sender, updates) = mpsc::channel(UPDATES);
        self.updates = Some(sender);
        Takeover {
            connection,
            updates,
        }
    }
}

impl Members {
    /// Names the roster; 0 before the first.
    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Takes over a new roster and new neighbours; the hosts that fell off the roster are disconnected. `me` is left out.
    pub(super) fn replace(
        &mut self,
        me: &HostId,
        epoch: u64,
        roster: &[RosterEntry],
        neighbours: &[String],
    ) -> Vec<swarm::event::Peer> {
        self.neighbours = neighbours.iter().cloned().collect();
        self.enter(me, epoch, BTreeMap::new(), roster)
    }

    /// Changes the roster; `None` where the change is of another roster than this one. `me` is left out.
    pub(super) fn change(
        &mut self,
        me: &HostId,
        change: &RosterChange,
    ) -> Option<Vec<swarm::event::Peer>> {
        let kept = match change.from_epoch {
            0 => BTreeMap::new(),
            from if from == self.epoch => {
                let mut kept = std::mem::take(&mut self.members);
                let gone = change.gone.iter().filter_map(|host| host.parse().ok());
                for host in gone.map(|host: HostId| host.key()) {
                    // put back, for `enter` to find that it fell off
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
    pub(super) fn follow(&mut self, neighbours: Vec<String>) -> Vec<swarm::event::Peer> {
        self.neighbours = neighbours.into_iter().collect();
        for member in self.members.values_mut() {
            member.neighbour = self.neighbours.contains(member.host.as_str());
        }
        self.peers()
    }

    /// Makes a roster of the members that are `kept` and of these entries; all other members fell off it.
    fn enter(
        &mut self,
        me: &HostId,
        epoch: u64,
        kept: BTreeMap<HostKey, Member>,
        roster: &[RosterEntry],
    ) -> Vec<swarm::event::Peer> {
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
            let mut member = known.unwrap_or_else(|| Member {
                neighbour: self.neighbours.contains(host.as_str()),
                host,
                address: None,
                zone: String::new(),
                enrolled_at: 0,
                connections: Vec::new(),
                life: None,
                updates: None,
                have: BTreeMap::new(),
                load: None,
                remembered: Remembered::default(),
            });
            member.address = entry.address.parse().ok();
            member.zone.clone_from(&entry.zone);
            member.enrolled_at = entry.enrolled_at;
            member.neighbour = self.neighbours.contains(&entry.host);
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
        self.peers()
    }

    /// The members as the swarm knows them.
    fn peers(&self) -> Vec<swarm::event::Peer> {
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

    /// Where the members are reached.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let addresses = self.members.values().filter_map(|member| member.address);
        addresses.map(|address| address.ip())
    }

    /// Since when certificates of each host are accepted.
    pub(super) fn enrolled(&self) -> BTreeMap<HostId, SystemTime> {
        let members = self.members.values();
        // a time beyond what the clock can say counts as none
        let at = |member: &Member| {
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(member.enrolled_at))
        };
        members
            .filter_map(|member| Some((member.host.clone(), at(member)?)))
            .collect()
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
            // never the first: who gave our streams another connection would have to begin anew on it
            let (_, oldest) = member.connections.remove(1);
            oldest.close(link::CloseCode::Replaced, "replaced by a newer connection");
        }
        let updates = (member.connections.len() == 1).then(|| {
            let (sender, receiver) = mpsc::channel(UPDATES);
            member.updates = Some(sender);
            receiver
        });
        Some((self.next_serial, updates))
    }

    /// The peer introduces itself on a connection. Where it lives another life than before, it was restarted: the
    /// connections of its earlier life are dead, although nobody has noticed that yet, and this one takes over.
    pub(super) fn introduced(&mut self, peer: HostKey, serial: u64, life: u64) -> Option<Takeover> {
        let member = self.members.get_mut(&peer)?;
        let at = member
            .connections
            .iter()
            .position(|(other, _)| *other == serial)?;
        let before = member.life.replace((life, serial));
        let restarted = match before {
            // a version that doesn't name its lives introduces itself once in each, unless it lost the connection
            Some((0, introduced_on)) if life == 0 => introduced_on != serial,
            Some((known, _)) => known != life,
            None => false,
        };
        if !restarted || at == 0 {
            return None;
        }
        let (_, connection) = member.connections[at].clone();
        for (other, dead) in std::mem::take(&mut member.connections) {
            if other == serial {
                member.connections.push((other, dead));
            } else {
                dead.close(link::CloseCode::Replaced, "the peer was restarted");
            }
        }
        Some(member.take_over(connection))
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
        match member.connections.first().cloned() {
            None => {
                member.forget_told();
                Ended::Last
            }
            Some((_, connection)) => Ended::Other(member.take_over(connection)),
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
    use std::time::{Duration, SystemTime};

    use link::{Authorised, Endpoint, Settings};

    use super::*;
    use crate::identity::tests::Authority;

    /// Two hosts on loopback, and connections from the first to the second.
    struct Line {
        from: Endpoint,
        to: Endpoint,
        there: HostId,
        /// The other ends: a connection lives as long as both.
        kept: Vec<Connection>,
    }

    impl Line {
        fn new() -> Self {
            let authority = Authority::new();
            let later = SystemTime::now() + Duration::from_hours(1);
            let open = |name| {
                let credentials = authority.identity(name, later).credentials().unwrap();
                let settings = Settings::default();
                Endpoint::bind(([127, 0, 0, 1], 0).into(), credentials, &settings).unwrap()
            };
            let (from, to) = (open("me"), open("peer"));
            to.authorise(Authorised::Anyone);
            Self {
                from,
                to,
                there: "peer".parse().unwrap(),
                kept: Vec::new(),
            }
        }

        async fn connect(&mut self) -> Connection {
            let address = self.to.local_addr().unwrap();
            let (ours, theirs) = tokio::join!(self.from.connect(address, &self.there), async {
                self.to.accept().await.unwrap().establish().await
            });
            self.kept.push(theirs.unwrap());
            ours.unwrap()
        }
    }

    #[tokio::test]
    async fn a_peer_that_was_restarted_is_talked_to_on_its_new_connection() {
        let mut line = Line::new();
        let mut members = Members::default();
        let me: HostId = "me".parse().unwrap();
        let entry = RosterEntry {
            host: "peer".into(),
            ..RosterEntry::default()
        };
        members.replace(&me, 1, &[entry], &[]);
        let peer = line.there.key();
        let dead = line.connect().await;
        let (old, _updates) = members.connected(peer, dead.clone()).unwrap();
        assert!(members.introduced(peer, old, 5).is_none());
        // both sides dialled: the peer introduces itself on the other connection, and lives the same life
        let (second, updates) = members.connected(peer, line.connect().await).unwrap();
        assert!(updates.is_none());
        assert!(members.introduced(peer, second, 5).is_none());
        // it was killed, and comes back
        let fresh = line.connect().await;
        let (third, updates) = members.connected(peer, fresh.clone()).unwrap();
        assert!(updates.is_none());
        members.announce(peer, digest(1), ChunkSet::full(3), true);
        assert!(members.introduced(peer, third, 6).is_some());
        let carries = members.connection(peer).unwrap();
        assert_eq!(carries.close_reason(), None);
        assert!(dead.close_reason().is_some());
        // what was told on the dead connection isn't told on the new one: everything is announced anew
        assert!(members.members[&peer].have.is_empty());
        assert!(matches!(members.ended(peer, old), Ended::Unused));
        assert!(matches!(members.ended(peer, second), Ended::Unused));
        assert!(members.introduced(peer, third, 6).is_none());
        assert!(matches!(members.ended(peer, third), Ended::Last));
    }

    #[tokio::test]
    async fn a_version_that_names_no_life_was_restarted_when_it_introduces_itself_again() {
        let mut line = Line::new();
        let mut members = Members::default();
        let me: HostId = "me".parse().unwrap();
        let entry = RosterEntry {
            host: "peer".into(),
            ..RosterEntry::default()
        };
        members.replace(&me, 1, &[entry], &[]);
        let peer = line.there.key();
        let (first, _) = members.connected(peer, line.connect().await).unwrap();
        let (second, _) = members.connected(peer, line.connect().await).unwrap();
        assert!(members.introduced(peer, first, 0).is_none());
        assert!(members.introduced(peer, second, 0).is_some());
    }

    #[tokio::test]
    async fn however_often_a_peer_connects_our_streams_have_a_connection_that_is_told() {
        let mut line = Line::new();
        let mut members = Members::default();
        let me: HostId = "me".parse().unwrap();
        let entry = RosterEntry {
            host: "peer".into(),
            ..RosterEntry::default()
        };
        members.replace(&me, 1, &[entry], &[]);
        let peer = line.there.key();
        let first = line.connect().await;
        let (serial, updates) = members.connected(peer, first.clone()).unwrap();
        for _ in 0..2 * CONNECTIONS {
            let (_, more) = members.connected(peer, line.connect().await).unwrap();
            assert!(more.is_none());
        }
        assert_eq!(members.members[&peer].connections.len(), CONNECTIONS);
        assert_eq!(members.members[&peer].connections[0].0, serial);
        assert_eq!(first.close_reason(), None);
        members.announce(peer, digest(1), ChunkSet::full(3), true);
        members.flush_updates();
        assert_eq!(updates.unwrap().try_recv().unwrap().have.len(), 1);
    }

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
        members.replace(&host("me"), 1, &roster(&["me", "a", "liar"]), &[]);
        members.replace(&host("me"), 1, &roster(&["me", "a"]), &[]);
        let liar = host("liar");
        assert_eq!(members.host(liar.key()), None);
        assert_eq!(members.name(liar.key()), Some(liar));
        assert_eq!(members.name(host("invented").key()), None);
        for at in 0..3 * MAX_NAMES {
            let name = format!("h{at}");
            members.replace(&host("me"), 1, &roster(&[&name]), &[]);
            assert!(members.names.len() <= MAX_NAMES + 1);
            assert_eq!(members.name(host(&name).key()), Some(host(&name)));
        }
    }

    #[test]
    fn a_change_is_of_the_roster_that_is_here_or_of_none() {
        let entry = |host: &str, address: &str| RosterEntry {
            host: host.into(),
            address: address.into(),
            zone: String::new(),
            enrolled_at: 5,
        };
        let me: HostId = "me".parse().unwrap();
        let key = |host: &str| host.parse::<HostId>().unwrap().key();
        let mut members = Members::default();
        let first = RosterChange {
            from_epoch: 0,
            epoch: 7,
            hosts: vec![
                entry("me", "10.0.0.9:1"),
                entry("a", "10.0.0.1:1"),
                entry("b", "10.0.0.2:1"),
            ],
            gone: Vec::new(),
        };
        assert_eq!(members.change(&me, &first).unwrap().len(), 2);
        // a neighbour counts once it is on the roster
        members.follow(vec!["b".into(), "c".into()]);
        let second = RosterChange {
            from_epoch: 7,
            epoch: 8,
            hosts: vec![entry("b", "10.0.0.2:2"), entry("c", "10.0.0.3:1")],
            gone: vec!["a".into(), "nobody".into()],
        };
        let peers = members.change(&me, &second).unwrap();
        let mut follows: Vec<_> = peers
            .iter()
            .map(|peer| (peer.key, peer.neighbour))
            .collect();
        follows.sort_unstable();
        let mut expected = [(key("b"), true), (key("c"), true)];
        expected.sort_unstable();
        assert_eq!(follows, expected);
        let address = members.address(key("b")).unwrap().1;
        assert_eq!(address, "10.0.0.2:2".parse().unwrap());
        let five = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        let host = |id: &str| id.parse::<HostId>().unwrap();
        assert_eq!(
            members.enrolled(),
            [(host("b"), five), (host("c"), five)].into()
        );
        assert_eq!(members.epoch(), 8);
        // of another roster: nothing changes
        assert!(members.change(&me, &second).is_none());
        assert_eq!((members.epoch(), members.hosts().count()), (8, 2));
        let whole = RosterChange {
            from_epoch: 0,
            epoch: 9,
            hosts: vec![entry("c", "10.0.0.3:1")],
            gone: Vec::new(),
        };
        assert!(members.change(&me, &whole).unwrap()[0].neighbour);
        assert_eq!(members.hosts().count(), 1);
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
