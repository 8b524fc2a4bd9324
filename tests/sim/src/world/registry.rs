//! The registry's bad days: what it refuses, what it asks for, and how agents take that.

use super::*;
use stage::event::{Fault, LeaseEnd, Trouble};
use swarm::event::OriginEnd;

/// Pauses of an agent between attempts, first and longest.
const RETRY: (Nanos, Nanos) = (500_000_000, 10_000_000_000);
/// An agent that got nothing for so long gives a fetch up.
const GIVE_UP_AFTER: Nanos = 60_000_000_000;
/// Requests that are on their way when the first is told to stay away, and reports of it.
const WORD_SPREADS: Nanos = 1_000_000_000;

/// What a stream gets in a slow registry, and after how many bytes connections end in one where they are short.
const STREAM_RATE: u64 = 62_000;
const CONNECTION_BYTES: u64 = 300_000;

/// Whether it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Registry {
    #[default]
    Up,
    Down,
    /// New requests are refused until then, with a `Retry-After`; the first was refused at `told_at`.
    Throttles {
        until: Nanos,
        told_at: Option<Nanos>,
    },
}

/// What the registry did to a fetch since it last gave it something.
#[derive(Debug)]
pub(super) struct Refused {
    since: Nanos,
    tries: u32,
    again_at: Nanos,
    wish_until: Option<Nanos>,
}

impl Refused {
    /// Whether its next attempt is still to come.
    pub(super) const fn waits(&self, now: Nanos) -> bool {
        self.again_at > now
    }

    /// As it is reported.
    pub(super) fn trouble(&self, now: Nanos) -> Trouble {
        let left = self.wish_until.map(|until| until.saturating_sub(now));
        match left.filter(|left| *left > 0) {
            Some(left) => Trouble::Throttled(core::time::Duration::from_nanos(left)),
            None => Trouble::Failing,
        }
    }
}

impl World {
    /// A fetch asks for its blob. Whether it is answered; else it tries again later.
    pub(super) fn asks_registry(&mut self, host: u32, content: u32) -> bool {
        let now = self.now;
        if let Registry::Throttles { until, .. } = self.registry
            && until <= now
        {
            self.registry = Registry::Up;
        }
        if self.registry == Registry::Up && self.lacking == Some(content) {
            self.refused += 1;
            let life = self.node(host).life;
            // its answer is on the way
            let again_at = now + 2 * self.setup.delay;
            if let Some(fetching) = self.node_mut(host).fetches.get_mut(&content) {
                fetching.refused = Some(Refused {
                    since: now,
                    tries: 0,
                    again_at,
                    wish_until: None,
                });
            }
            self.at(
                again_at,
                Due::AskAgain {
                    host,
                    life,
                    content,
                },
            );
            return false;
        }
        let wish_until = match &mut self.registry {
            Registry::Up => return true,
            Registry::Down => None,
            Registry::Throttles { until, told_at } => {
                let first = *told_at.get_or_insert(now);
                if now > first + WORD_SPREADS {
                    self.checks
                        .note("asked a registry that wants to be left alone");
                }
                Some(*until)
            }
        };
        self.refused += 1;
        let jitter = self.random(1_000) as u64;
        let life = self.node(host).life;
        let Some(fetching) = self.node_mut(host).fetches.get_mut(&content) else {
            return false;
        };
        let refused = fetching.refused.get_or_insert(Refused {
            since: now,
            tries: 0,
            again_at: 0,
            wish_until: None,
        });
        let whole = (RETRY.0 << refused.tries.min(16)).min(RETRY.1);
        let pause = whole / 2 + whole / 2_000 * jitter;
        refused.tries += 1;
        refused.wish_until = wish_until;
        refused.again_at = wish_until.unwrap_or(0).max(now + pause);
        let (again_at, trouble) = (refused.again_at, refused.trouble(now));
        self.at(
            again_at,
            Due::AskAgain {
                host,
                life,
                content,
            },
        );
        // an agent says so at once
        if let Some(chunks) = self.node(host).leases.get(&content).copied() {
            self.tell_plan_from(host, |world| stage::Event::LeaseProgress {
                host: world.node(host).id.clone(),
                content: world.specs[content as usize].digest,
                chunks,
                bytes: 0,
                paced: false,
                trouble: Some(trouble),
            });
        }
        false
    }

    /// The registry answers that it doesn't have this.
    fn lacks(&mut self, host: u32, content: u32) {
        let node = self.node_mut(host);
        node.fetches.remove(&content);
        node.leases.remove(&content);
        self.feed(
            host,
            swarm::Event::OriginEnded {
                id: ContentId(content),
                end: OriginEnd::Failed,
            },
        );
        self.tell_lease_ended(host, content, LeaseEnd::Faulty(Fault::Missing));
    }

    /// The pause of a refused fetch is over, if it still runs.
    pub(super) fn ask_again(&mut self, host: u32, life: u32, content: u32) {
        let now = self.now;
        let lacks = self.registry == Registry::Up && self.lacking == Some(content);
        let node = self.node_mut(host);
        if node.life != life || !node.alive {
            return;
        }
        let Some(refused) = node
            .fetches
            .get(&content)
            .and_then(|fetching| fetching.refused.as_ref())
            .filter(|refused| refused.again_at <= now)
        else {
            return;
        };
        let (since, wishes) = (refused.since, refused.wish_until.is_some());
        if lacks {
            self.lacks(host, content);
            return;
        }
        if now < since + GIVE_UP_AFTER || wishes {
            self.pump_origin(host, content);
            return;
        }
        let node = self.node_mut(host);
        node.fetches.remove(&content);
        node.leases.remove(&content);
        self.feed(
            host,
            swarm::Event::OriginEnded {
                id: ContentId(content),
                end: OriginEnd::Failed,
            },
        );
        self.tell_lease_ended(host, content, LeaseEnd::OriginFailed);
    }

    /// What the registry gives each stream, where that is little.
    pub(super) fn stream_rate(&self) -> Option<u64> {
        let slow = matches!(
            self.setup.scenario,
            Scenario::SlowRegistry | Scenario::MirrorSlow
        );
        slow.then(|| (STREAM_RATE / self.scale).max(1))
    }

    /// How long a chunk takes longer than the lines do: at the pace of a stream, or for connections that end.
    pub(super) fn slowness(&self, content: u32, chunk: u32) -> Option<Nanos> {
        let bytes = u64::from(self.specs[content as usize].geometry.len(ChunkIndex(chunk)));
        if let Some(rate) = self.stream_rate() {
            return Some(takes(bytes, rate));
        }
        let short = self.setup.scenario == Scenario::ShortConnections;
        let connections = (bytes * self.scale).div_ceil(CONNECTION_BYTES);
        let each = self.setup.delay * (HANDSHAKE_DELAYS + 2) + HANDSHAKE_WORK;
        short.then_some(connections * each)
    }

    pub(super) fn give_slowly(&mut self, host: u32, content: u32, chunk: u32, takes: Nanos) {
        let (now, node) = (self.now, self.node_mut(host));
        let life = node.life;
        if let Some(fetching) = node.fetches.get_mut(&content) {
            fetching.slow = Some((chunk, now));
        }
        self.at(
            now + takes,
            Due::Given {
                host,
                life,
                content,
                chunk,
            },
        );
    }

    /// A chunk has come, slowly: its last bytes take the lines like any other's.
    pub(super) fn given(&mut self, host: u32, life: u32, content: u32, chunk: u32) {
        let node = self.node_mut(host);
        let fetching = node.fetches.get_mut(&content).filter(|_| node.life == life);
        let Some(fetching) = fetching.filter(|fetching| {
            let of_it = fetching.slow.is_some_and(|(of, _)| of == chunk);
            of_it && fetching.next == chunk
        }) else {
            return;
        };
        fetching.slow = None;
        fetching.next += 1;
        fetching.under_way += 1;
        let origin = index(self.nodes.len());
        let id = self.new_transfer(origin, host, content, chunk, Kind::Origin, None);
        self.begin_transfer(id);
        self.pump_origin(host, content);
    }

    /// Bytes of the chunk that comes slowly.
    pub(super) fn part(&self, fetching: &Fetching) -> u64 {
        let Some((rate, (_, since))) = self.stream_rate().zip(fetching.slow) else {
            return 0;
        };
        u64::try_from(u128::from(rate) * u128::from(self.now - since) / 1_000_000_000).unwrap_or(0)
    }

    /// A fetch ends amid a chunk: what came of it comes again, to somebody else.
    pub(super) fn lose_part(&mut self, content: u32, fetching: Option<&Fetching>) {
        let part = fetching.map_or(0, |fetching| self.part(fetching));
        let most = self.specs[content as usize].geometry.len(ChunkIndex(0));
        self.origin_bytes += part.min(most.into());
    }

    /// Every stream breaks off.
    pub(super) fn break_fetches(&mut self) {
        for host in 0..self.nodes.len() {
            let host = index(host);
            let contents: Vec<u32> = self.node(host).fetches.keys().copied().collect();
            for content in contents {
                self.abort_origin(host, content);
                if let Some(fetching) = self.node_mut(host).fetches.get_mut(&content) {
                    // what was under way is fetched again, if the registry comes back in time
                    fetching.next = 0;
                    fetching.under_way = 0;
                    fetching.open = false;
                    fetching.false_from = None;
                }
                self.pump_origin(host, content);
            }
        }
    }
}
