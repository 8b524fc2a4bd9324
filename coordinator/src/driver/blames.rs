//! Blames: what hosts hold against each other. This file decides which blames are heard, which of them are new, and
//! what the plan is told of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proto::{
    ChunkIndex, Digest, HostId, Moment, Signed, message,
    statement::{Contradiction, contradiction},
};
use rollout::stage::Event;
use tracing::{debug, error, warn};
use wire::Signatures;

use super::{
    hosts::Hosts,
    lines::{Line, Lines},
    mirror::Mirrored,
    order::{Addressed, order},
};
use crate::metrics::{BlameKind, KindLabel, Metrics};

/// The most blames that are heard of one report; further ones are ignored.
pub(super) const MAX_BLAMES: usize = 16;
/// The most blames that are heard of one host within [`WITHIN`].
const MAX_HEARD: usize = 4 * MAX_BLAMES;
const WITHIN: Duration = Duration::from_mins(1);
/// The most chunks that one order asks a host to check on its disk; the host checks no more at one time.
const MAX_SUSPECT: usize = 64;

/// What is known of accusers and of accused hosts.
#[derive(Debug)]
pub(super) struct Blames {
    /// Checks the signatures of the links that hosts show against others.
    signatures: Signatures,
    accusers: BTreeMap<HostId, Accuser>,
    accused: BTreeMap<HostId, Accused>,
    metrics: Metrics,
}

/// What was heard from one accuser within the current [`WITHIN`].
#[derive(Debug, Default)]
struct Accuser {
    since: Moment,
    count: usize,
    /// Each blame: the number of links that it showed, the blamed host, and the content.
    said: BTreeSet<(usize, HostId, Option<Digest>)>,
    lines: Lines,
}

impl Accuser {
    /// How many more blames of this host are heard now.
    fn room(&mut self, now: Moment) -> usize {
        if now.since(self.since) >= WITHIN {
            (self.since, self.count) = (now, 0);
            self.said.clear();
        }
        MAX_HEARD.saturating_sub(self.count)
    }
}

#[derive(Debug, Default)]
struct Accused {
    count: u64,
    /// Chunks for whose bytes others blame the host. The host is asked to check them on its disk.
    suspect: BTreeSet<(Digest, u32)>,
}

impl Blames {
    pub(super) const fn new(signatures: Signatures, metrics: Metrics) -> Self {
        Self {
            signatures,
            accusers: BTreeMap::new(),
            accused: BTreeMap::new(),
            metrics,
        }
    }

    /// Takes in the blames of a host's report, as far as they are heard. An honest host shuns a liar after a few lies,
    /// and has no more to say of that liar. `hosts` are the hosts that can be blamed. Returns what the plan is told.
    pub(super) fn heard(
        &mut self,
        now: Moment,
        by: &HostId,
        blames: &[message::Blame],
        hosts: &Hosts,
        mirror: &Mirrored,
    ) -> Vec<Event> {
        if blames.is_empty() || !hosts.contains(by) {
            return Vec::new();
        }
        let accuser = self.accusers.entry(by.clone()).or_default();
        let room = accuser.room(now).min(MAX_BLAMES);
        let heard = blames.len().min(room);
        accuser.count += heard;
        if blames.len() > room {
            debug!(%by, blames = blames.len(), heard = room, "host blames others too often to be heard");
        }
        let mut events = Vec::new();
        for blame in &blames[..heard] {
            events.extend(match blame.kind() {
                message::BlameKind::Link => self.false_link(now, by, blame, hosts, mirror),
                _ => self.blame(now, by, blame, hosts),
            });
        }
        events
    }

    fn blame(
        &mut self,
        now: Moment,
        by: &HostId,
        blame: &message::Blame,
        hosts: &Hosts,
    ) -> Option<Event> {
        let kind = match blame.kind() {
            message::BlameKind::Unspecified | message::BlameKind::Link => BlameKind::Other,
            message::BlameKind::Bytes => BlameKind::Bytes,
            message::BlameKind::Silence => BlameKind::Silence,
            message::BlameKind::Protocol => BlameKind::Protocol,
        };
        self.count(kind);
        let host = blame.host.parse::<HostId>().ok()?;
        if host == *by || !hosts.contains(&host) {
            return None;
        }
        let accused = self.accused.entry(host.clone()).or_default();
        accused.count = accused.count.saturating_add(1);
        // the blamed host's disk may have rotted; that host then checks the chunk at once, and mends it
        if blame.kind() == message::BlameKind::Bytes
            && accused.suspect.len() < MAX_SUSPECT
            && let Ok(content) = message::digest(&blame.content)
        {
            accused.suspect.insert((content, blame.chunk));
        }
        if let Some(left_out) = self.line(now, by, Line::Blames) {
            warn!(%by, %host, kind = kind.as_str(), chunk = blame.chunk, left_out, "host is blamed");
        }
        // Silence and breaches of protocol are faults, not lies. The accuser shuns such a host by itself.
        let lie = blame.kind() == message::BlameKind::Bytes && self.is_news(by, 0, &host, None);
        lie.then(|| Event::Blamed {
            by: by.clone(),
            host,
        })
    }

    /// A host shows one false link that another host signed, or two links that contradict each other. The host that the
    /// blame names doesn't count: the signatures say which host made the links.
    ///
    /// A false link that its host made from the registry's bytes may be the registry's fault. Such a link is told
    /// apart, and nobody is blamed for it.
    fn false_link(
        &mut self,
        now: Moment,
        by: &HostId,
        blame: &message::Blame,
        hosts: &Hosts,
        mirror: &Mirrored,
    ) -> Option<Event> {
        let Some(evidence) = evidence(blame) else {
            debug!(%by, "a host blames another and shows no signed link");
            return None;
        };
        let (maker, content) = (evidence[0].maker().clone(), evidence[0].content);
        if maker == *by || !hosts.contains(&maker) {
            return None;
        }
        let signed = |signed: &Signed| signed.verify_signed(true, &self.signatures).is_ok();
        if !evidence.iter().all(signed) {
            debug!(%by, "a host blames another and shows links that nobody signed");
            return None;
        }
        let (chunk, vouched) = (evidence[0].chunk, evidence[0].statement.run.is_vouched());
        let event = match &evidence[..] {
            [one, other] => Event::Contradicted {
                maker: maker.clone(),
                says: contradiction(one, other)?,
            },
            _ => Event::FalseLink {
                by: by.clone(),
                maker: maker.clone(),
                content: mirror.meant(by, content),
                vouched,
            },
        };
        if !self.is_news(by, evidence.len(), &maker, Some(content)) {
            return None;
        }
        let left_out = self.line(now, by, Line::FalseLinks);
        let lied = match &event {
            Event::Contradicted {
                says: Contradiction::Lie,
                ..
            } => {
                if let Some(left_out) = left_out {
                    error!(%by, %maker, %content, %chunk, left_out, "two links that a host signed contradict each other");
                }
                true
            }
            Event::FalseLink { vouched: true, .. } => {
                if let Some(left_out) = left_out {
                    warn!(%by, %maker, %content, %chunk, left_out, "a host says that a link which another vouched for is false");
                }
                true
            }
            _ => {
                debug!(%by, %content, %chunk, "what was made of the registry's bytes is false, as a host says");
                false
            }
        };
        self.count(match lied {
            true => BlameKind::Link,
            false => BlameKind::Made,
        });
        if lied {
            let accused = self.accused.entry(maker).or_default();
            accused.count = accused.count.saturating_add(1);
        }
        Some(event)
    }

    /// Whether this blame says something new: the accuser hasn't blamed this host within the current [`WITHIN`], nor,
    /// where it shows links, for this content.
    fn is_news(&mut self, by: &HostId, links: usize, of: &HostId, content: Option<Digest>) -> bool {
        let accuser = self.accusers.entry(by.clone()).or_default();
        accuser.said.insert((links, of.clone(), content))
    }

    /// `Some` when a line about what this host says may be written now, with the number of lines that were left out
    /// before it.
    fn line(&mut self, now: Moment, by: &HostId, line: Line) -> Option<u64> {
        let accuser = self.accusers.entry(by.clone()).or_default();
        accuser.lines.due(now, line)
    }

    fn count(&self, kind: BlameKind) {
        let kind = kind.as_str();
        self.metrics.blames.get_or_create(&KindLabel { kind }).inc();
    }

    /// Orders to hosts to check the chunks for which others blame them. The caller sends these orders at intervals, so
    /// that no accuser can fill a host's queue of orders.
    pub(super) fn take_suspects(&mut self) -> Vec<Addressed> {
        let mut orders = Vec::new();
        for (host, accused) in &mut self.accused {
            if accused.suspect.is_empty() {
                continue;
            }
            let chunks = std::mem::take(&mut accused.suspect).into_iter();
            let chunks = chunks.map(|(content, chunk)| message::Suspect {
                content: content.as_bytes().to_vec(),
                chunk,
            });
            let recheck = order(message::order::Kind::Recheck(message::Recheck {
                chunks: chunks.collect(),
            }));
            orders.push((host.clone(), Arc::new(recheck)));
        }
        orders
    }

    /// How often a host was blamed.
    pub(super) fn against(&self, host: &HostId) -> u64 {
        self.accused.get(host).map_or(0, |accused| accused.count)
    }

    /// The host isn't part of the fleet any more.
    pub(super) fn left(&mut self, host: &HostId) {
        self.accusers.remove(host);
        self.accused.remove(host);
    }
}

/// The evidence of a blame: one or two signed links of one content. Their signatures aren't checked yet.
fn evidence(blame: &message::Blame) -> Option<Vec<Signed>> {
    let content = message::digest(&blame.content).ok()?;
    if !(1..=2).contains(&blame.evidence.len()) {
        return None;
    }
    let shown = blame.evidence.iter().map(|shown| {
        let chunk = ChunkIndex(shown.chunk);
        Signed::parse(content, chunk, shown.link.as_ref()?).ok()
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use message::{Blame, BlameKind};

    use super::*;
    use crate::authority::Authority;

    /// Blames among these hosts.
    fn fleet(names: &[&str]) -> (Blames, Hosts, Mirrored) {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(&dir.path().join("authority")).unwrap();
        let mut hosts = Hosts::default();
        for name in names {
            hosts.know(&name.parse().unwrap(), "");
        }
        let blames = Blames::new(authority.signatures(), Metrics::new().0);
        (blames, hosts, Mirrored::default())
    }

    fn blame(host: &str, kind: BlameKind, chunk: u32) -> Blame {
        Blame {
            host: host.into(),
            kind: kind.into(),
            content: Digest::of(b"content").as_bytes().to_vec(),
            chunk,
            ..Blame::default()
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment::START + Duration::from_secs(seconds)
    }

    fn id(name: &str) -> HostId {
        name.parse().unwrap()
    }

    #[test]
    fn a_lie_is_told_once_a_minute_and_counted_each_time() {
        let (mut blames, hosts, mirror) = fleet(&["a", "b"]);
        let lie = [blame("b", BlameKind::Bytes, 1)];
        let mut hear = |seconds| {
            let events = blames.heard(at(seconds), &id("a"), &lie, &hosts, &mirror);
            events.len()
        };
        assert_eq!([hear(0), hear(1), hear(59)], [1, 0, 0]);
        assert_eq!(hear(60), 1);
        assert_eq!(blames.against(&id("b")), 4);
        assert_eq!(blames.against(&id("a")), 0);
        blames.left(&id("b"));
        assert_eq!(blames.against(&id("b")), 0);
    }

    #[test]
    fn faults_are_counted_and_are_no_lies() {
        let (mut blames, hosts, mirror) = fleet(&["a", "b"]);
        for kind in [
            BlameKind::Silence,
            BlameKind::Protocol,
            BlameKind::Unspecified,
        ] {
            let fault = [blame("b", kind, 1)];
            let events = blames.heard(at(0), &id("a"), &fault, &hosts, &mirror);
            assert!(events.is_empty(), "{kind:?}");
        }
        assert_eq!(blames.against(&id("b")), 3);
        assert!(blames.take_suspects().is_empty());
    }

    #[test]
    fn nobody_blames_itself_or_a_host_that_isnt_there() {
        let (mut blames, hosts, mirror) = fleet(&["a"]);
        let said = ["a", "x", "not a host"].map(|host| blame(host, BlameKind::Bytes, 1));
        let events = blames.heard(at(0), &id("a"), &said, &hosts, &mirror);
        assert!(events.is_empty() && blames.take_suspects().is_empty());
        let events = blames.heard(at(0), &id("x"), &said, &hosts, &mirror);
        assert!(
            events.is_empty(),
            "nor does one that isn't there blame anybody"
        );
    }

    #[test]
    fn a_report_is_heard_up_to_sixteen_blames_and_a_minute_up_to_four_times_that() {
        let (mut blames, hosts, mirror) = fleet(&["a", "b"]);
        let many: Vec<Blame> = (0..100)
            .map(|chunk| blame("b", BlameKind::Silence, chunk))
            .collect();
        let mut hear = |seconds| {
            blames.heard(at(seconds), &id("a"), &many, &hosts, &mirror);
            blames.against(&id("b"))
        };
        let counts = [0, 1, 2, 3, 4, 59].map(&mut hear);
        assert_eq!(counts, [16, 32, 48, 64, 64, 64]);
        assert_eq!(hear(60), 80);
    }

    #[test]
    fn suspect_chunks_are_ordered_to_be_looked_at_once_and_no_more_than_a_host_looks_at() {
        let (mut blames, hosts, mirror) = fleet(&["a", "b", "c", "d", "e", "f"]);
        for (round, by) in ["a", "c", "d", "e", "f"].into_iter().enumerate() {
            let first = u32::try_from(round * MAX_BLAMES).unwrap();
            let chunks = first..first + u32::try_from(MAX_BLAMES).unwrap();
            let said: Vec<Blame> = chunks
                .map(|chunk| blame("b", BlameKind::Bytes, chunk))
                .collect();
            blames.heard(at(0), &id(by), &said, &hosts, &mirror);
        }
        let orders = blames.take_suspects();
        let [(host, order)] = &orders[..] else {
            panic!("{orders:?}");
        };
        let Some(message::order::Kind::Recheck(recheck)) = &order.kind else {
            panic!("{order:?}");
        };
        assert_eq!((host, recheck.chunks.len()), (&id("b"), MAX_SUSPECT));
        assert!(blames.take_suspects().is_empty());
    }

    #[test]
    fn a_blame_for_links_that_shows_none_is_nothing() {
        let (mut blames, hosts, mirror) = fleet(&["a", "b"]);
        let said = [blame("b", BlameKind::Link, 1)];
        let events = blames.heard(at(0), &id("a"), &said, &hosts, &mirror);
        assert!(events.is_empty());
        assert_eq!(blames.against(&id("b")), 0);
    }
}
