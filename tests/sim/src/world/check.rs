//! Promises: checked at each step where that is cheap, and over all hosts every few seconds.

use std::collections::BTreeSet;

use super::*;

/// A host that gains nothing for this long has to be able to say why.
const STALL: Nanos = 10_000_000_000;
/// Hosts looked at in one sample.
const SAMPLED: usize = 50;
/// A chunk may be asked of two peers when no more than this are missing.
const NEAR_THE_END: u64 = 8;

#[derive(Debug, Default)]
pub(super) struct Checks {
    broken: BTreeMap<String, u64>,
    stalls: BTreeMap<&'static str, f64>,
    shunned_honest: BTreeSet<u32>,
}

impl Checks {
    pub(super) fn note(&mut self, kind: &str) {
        *self.broken.entry(kind.to_owned()).or_default() += 1;
    }

    pub(super) fn violations(&self) -> Vec<(String, u64)> {
        self.broken
            .iter()
            .map(|(kind, times)| (kind.clone(), *times))
            .collect()
    }

    pub(super) fn shunned_honest(&self) -> usize {
        self.shunned_honest.len()
    }

    pub(super) fn stalls(&self) -> Vec<(String, f64)> {
        self.stalls
            .iter()
            .map(|(reason, longest)| ((*reason).to_owned(), *longest))
            .collect()
    }
}

impl World {
    /// Whom a swarm talks to has to be on its roster.
    pub(super) fn check_peer(&mut self, host: u32, key: HostKey) -> Option<u32> {
        let peer = self.find(key);
        let allowed = peer.is_some_and(|peer| self.node(host).roster[peer as usize]);
        if !allowed {
            self.checks
                .note("talked to a host that isn't on its roster");
            return None;
        }
        peer
    }

    pub(super) fn check_announced(&mut self, host: u32, content: u32, chunks: &ChunkSet) {
        let held = &self.node(host).held[content as usize];
        let false_news = chunks
            .words()
            .iter()
            .zip(held.words())
            .any(|(said, held)| said & !held != 0);
        if false_news {
            self.checks.note("announced a chunk that isn't held");
        }
    }

    pub(super) fn check_request(&mut self, host: u32, peer: u32, content: u32, chunk: u32) {
        let node = self.node_mut(host);
        let held = node.held[content as usize].contains(ChunkIndex(chunk));
        let asked = node.requested.entry((content, chunk)).or_default();
        asked.push(peer);
        let twice = asked.len() > 1;
        if held {
            self.checks.note("requested a chunk that is held");
        }
        if twice && self.missing(host) > NEAR_THE_END {
            self.checks
                .note("asked two peers for one chunk before the end");
        }
    }

    /// Chunks that a host lacks of what it knows of and can have.
    fn missing(&self, host: u32) -> u64 {
        let node = self.node(host);
        let known = self.specs.iter().zip(&node.held).filter(|(spec, _)| {
            node.stages[spec.image] && self.images[spec.image].kind != ImageKind::Hopeless
        });
        let missing = known.map(|(_, held)| u64::from(held.chunks() - held.count()));
        missing.sum()
    }

    pub(super) fn settle_request(&mut self, host: u32, peer: u32, content: u32, chunk: u32) {
        let node = self.node_mut(host);
        if let Some(asked) = node.requested.get_mut(&(content, chunk)) {
            asked.retain(|other| *other != peer);
            if asked.is_empty() {
                node.requested.remove(&(content, chunk));
            }
        }
    }

    /// Nothing that was asked of this peer will come.
    pub(super) fn settle_requests_of(&mut self, host: u32, peer: u32) {
        self.node_mut(host).requested.retain(|_, asked| {
            asked.retain(|other| *other != peer);
            !asked.is_empty()
        });
    }

    pub(super) fn count_upload(&mut self, host: u32, content: u32, chunk: u32) {
        let bound = self.setup.swarm.uploads + self.setup.swarm.slow_uploads;
        let node = self.node_mut(host);
        node.uploads += 1;
        let over = node.uploads > bound && node.pit.is_none();
        let lacks = !node.held[content as usize].contains(ChunkIndex(chunk));
        if over {
            self.checks.note("more uploads than the bound");
        }
        if lacks {
            self.checks.note("sent a chunk that isn't held");
        }
    }

    /// The registry is only fetched from under a lease, or without a coordinator for long enough.
    pub(super) fn check_fetch(&mut self, host: u32, content: u32) {
        let node = self.node(host);
        let leased = node.leases.contains_key(&content);
        let grace = u64::try_from(self.setup.swarm.headless_after.as_nanos()).unwrap_or(u64::MAX);
        let headless = node
            .headless_since
            .is_some_and(|since| self.now >= since + grace)
            || (!node.session && node.headless_since.is_none());
        if !leased && !headless && !self.may_fetch_alone(host, content) {
            self.checks.note("fetched without a lease");
        }
    }

    /// That the coordinator was held up takes no lease from a host that fetches.
    pub(super) fn check_revoked(&mut self, host: u32, content: u32) {
        let grown = self.now.saturating_sub(self.node(host).grown_at);
        let fetches = self.node(host).fetches.contains_key(&content);
        if self.setup.scenario == Scenario::Starved && fetches && grown < REPORT_EVERY {
            self.checks
                .note("a lease was taken back that brought chunks");
        }
    }

    pub(super) fn check_leases(&mut self) {
        // mirrors have one in any case
        let most = self.setup.plan.origin_streams + usize::from(self.mirrors_first());
        if self.office.leases.len() > most {
            self.checks.note("more leases than origin streams");
        }
    }

    /// A host shuns another by itself: only one that lied to it.
    pub(super) fn check_shunned(&mut self, by: u32, peer: u32) {
        // what rogues say they shun costs nobody anything
        if self.node(peer).is_honest() && self.node(by).is_honest() {
            self.checks.shunned_honest.insert(peer);
            self.checks
                .note("an honest host was quarantined by another");
        }
    }

    /// The fleet shuns only liars.
    pub(super) fn check_quarantine(&mut self, host: u32) {
        if self.node(host).is_honest() {
            self.checks.shunned_honest.insert(host);
            self.checks
                .note("an honest host was quarantined by the fleet");
        }
    }

    pub(super) fn check_installed(&mut self, host: u32) {
        let node = self.node(host);
        let held = self.specs.iter().zip(&node.held);
        let mut had = held.filter(|(spec, _)| self.images[spec.image].is_staged());
        let whole = had.all(|(_, held)| held.is_full());
        let lies = node.false_links.values().any(|links| !links.is_empty());
        if !whole || lies {
            self.checks.note("installed before every chunk was true");
        }
    }

    /// Looks at some hosts: who gains nothing says why.
    pub(super) fn sample(&mut self) {
        self.at(self.now + SAMPLE_EVERY, Due::Sample);
        self.check_clients();
        let count = self.nodes.len();
        let start = self.random(count);
        let moment = self.moment();
        for at in 0..count.min(SAMPLED) {
            let node = &self.nodes[(start + at) % count];
            if !node.alive || !node.staged || node.missing == 0 || !node.wanted {
                continue;
            }
            let idle = self.now.saturating_sub(node.grown_at.max(self.ordered_at));
            if idle < STALL {
                continue;
            }
            let status = node.swarm.status(moment);
            let ids = status.contents.iter().map(|content| content.id);
            let ids: Vec<_> = ids.filter(|id| !self.is_mirrored(id.0)).collect();
            match status.standstill(&ids) {
                Some(still) => {
                    let longest = self.checks.stalls.entry(still.stall.as_str()).or_default();
                    *longest = longest.max(precise(idle) / 1e9);
                }
                None => self.checks.note("a stall without a reason"),
            }
        }
        self.trace();
    }

    fn trace(&mut self) {
        if !self.setup.trace {
            return;
        }
        let count = self.nodes.len();
        let origin = self.uplinks[count].used;
        let ups: Nanos = self.uplinks[..count].iter().map(|line| line.used).sum();
        let downs: Nanos = self.nodes.iter().map(|node| node.down.used).sum();
        let (at, origin_before, ups_before, downs_before) = self.traced;
        let span = precise((self.now - at).max(1));
        let hosts = precise(count as u64);
        let least = self
            .nodes
            .iter()
            .filter(|node| node.alive)
            .map(|node| node.missing)
            .max();
        let most = self
            .nodes
            .iter()
            .filter(|node| node.alive)
            .map(|node| node.missing)
            .min();
        #[expect(clippy::print_stderr, reason = "asked for by --trace")]
        {
            eprintln!(
                "{:8.1} s  origin {:.3}  up {:.3}  down {:.3}  missing {}..{}  pulled {}  complete {}",
                precise(self.now) / 1e9,
                precise(origin - origin_before) / span,
                precise(ups - ups_before) / span / hosts,
                precise(downs - downs_before) / span / hosts,
                most.unwrap_or(0),
                least.unwrap_or(0),
                self.pulled,
                self.nodes
                    .iter()
                    .filter(|node| node.finished_at.is_some())
                    .count(),
            );
        }
        self.traced = (self.now, origin, ups, downs);
    }

    pub(super) fn explain_unfinished(&mut self) {
        if !self.setup.trace {
            return;
        }
        let moment = self.moment();
        for node in &self.nodes {
            if node.wanted && node.finished_at.is_none() {
                let status = node.swarm.status(moment);
                #[expect(clippy::print_stderr, reason = "asked for by --trace")]
                {
                    eprintln!(
                        "{} alive {} misses {}; connected {} quarantined {:?}; {:?}",
                        node.id,
                        node.alive,
                        node.missing,
                        status.connected,
                        status.quarantined,
                        status
                            .contents
                            .iter()
                            .filter(|content| content.held < content.chunks)
                            .take(3)
                            .collect::<Vec<_>>()
                    );
                }
            }
        }
    }
}
