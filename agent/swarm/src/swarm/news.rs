//! Announcements: what we hold and how busy we are, and what others say of themselves.

use super::*;

/// Whoever handed us a chunk to spread within this time chooses among us again: it hears of our load often.
const CHOSEN_LATELY: Duration = Duration::from_secs(10);
/// All others now and then, for they may become lease holders: a hundred small messages a second in all.
const LOAD_TO_EACH: Duration = Duration::from_millis(10);
/// A quarter of that where chunks are spread in parts: whoever chooses among us does so often, and hears of us anyway.
const LOAD_TO_EACH_IN_PARTS: Duration = Duration::from_millis(40);
/// Both ends of a new connection tell all they hold at once; what is announced anew later is a question. That a peer holds nothing of
/// a content is one at any time: no introduction says so.
const INTRODUCED: Duration = Duration::from_secs(2);
/// Choosers remembered at one time.
const CHOOSERS: usize = 64;
/// While pushes bring everything, announcements only serve healing, which waits for seconds anyway.
const LAZY: Duration = Duration::from_secs(1);
/// Who offered a link that isn't taken is asked again what it has after this long.
const DISPROVED_FOR: Duration = Duration::from_secs(2);
/// Whoever was asked for chunks within this time announces eagerly.
const ASKED_LATELY: Duration = Duration::from_secs(5);

impl Swarm {
    pub(super) fn hear(&mut self, key: HostKey, id: ContentId, chunks: &ChunkSet, reset: bool) {
        let Some(index) = self.find(key) else {
            return;
        };
        if !self.peers[index.at()].is_up() {
            return;
        }
        let fits = self
            .contents
            .get(&id)
            .is_some_and(|content| content.chunks() == chunks.chunks());
        if !fits {
            return;
        }
        let Some(slot) = self.slot(index) else {
            return;
        };
        if self.is_disbelieved(index, id, chunks, reset) {
            return;
        }
        if let Some(content) = self.contents.get_mut(&id) {
            content.set_unwanted_by(index, false);
            content.hear(self.now, slot, chunks, reset);
            self.pull_wanted |= content.pushed_at.is_none() && content.is_complete_elsewhere();
        }
        let introduced = self.now.since(self.peers[index.at()].up_since) >= INTRODUCED;
        if reset && (introduced || chunks.is_empty()) {
            self.answer_news(index, id);
        }
    }

    /// A peer announces a content anew, and not because it has just connected: it may have learnt of it only now, and what
    /// we announced before was lost on it. It is told again; not as a reset, so that it doesn't answer in turn.
    fn answer_news(&mut self, index: PeerIndex, id: ContentId) {
        let peer = &self.peers[index.at()];
        if let Some(content) = self.contents.get(&id)
            && peer.neighbour
            && content.entitles(peer.key)
            && !content.held.is_empty()
        {
            self.actions.push_back(Action::Announce {
                peer: peer.key,
                id,
                chunks: content.held.clone(),
                reset: false,
            });
        }
    }

    pub(super) fn hear_load(&mut self, key: HostKey, backlog_bytes: u64, rate: u64) {
        if let Some(index) = self.find(key) {
            // whoever claims more would be chosen to spread every chunk, whatever lies before it
            let ours = self.rate.max(self.config.assumed_rate_bytes_per_second);
            let rate = rate.min(ours.saturating_mul(self.config.believed_rate));
            let now = self.now;
            self.peers[index.at()].set_load(now, backlog_bytes, rate);
            self.assign_wanted = !self.unassigned.is_empty();
        }
    }

    /// Tells a peer that has just come everything that it should know: also what we hold nothing of and want. Who was here
    /// before may have missed what we said then, and that it is asked shows it that it has to say what it holds.
    pub(super) fn introduce(&mut self, index: PeerIndex) {
        let peer = &self.peers[index.at()];
        let key = peer.key;
        self.actions.push_back(Action::AnnounceLoad {
            peer: key,
            backlog_bytes: self.backlog_bytes,
            upload_bytes_per_second: self.rate,
        });
        if !peer.neighbour {
            return;
        }
        for (id, content) in &self.contents {
            if !content.entitles(key) {
                continue;
            }
            self.actions.push_back(Action::Announce {
                peer: key,
                id: *id,
                chunks: content.held.clone(),
                reset: true,
            });
        }
    }

    /// Tells all neighbours all of one content.
    pub(super) fn announce_all_of(&mut self, id: ContentId) {
        let Some(content) = self.contents.get(&id) else {
            return;
        };
        for index in &self.neighbours {
            let peer = &self.peers[index.at()];
            if peer.is_up() && content.entitles(peer.key) {
                self.actions.push_back(Action::Announce {
                    peer: peer.key,
                    id,
                    chunks: content.held.clone(),
                    reset: true,
                });
            }
        }
    }

    /// Whose links weren't taken may have verified its copy since, and vouches for it: what neighbours have is asked anew.
    pub(super) fn ask_for_vouchers(&mut self) {
        let now = self.now;
        let due = |at: &Moment| now.since(*at) >= DISPROVED_FOR;
        let over: Vec<ContentId> = self
            .disproved
            .iter()
            .filter_map(|(id, at)| due(at).then_some(*id))
            .collect();
        for id in over {
            self.disproved.remove(&id);
            let Some(content) = self.contents.get_mut(&id) else {
                continue;
            };
            if !content.held.is_full() {
                content.announce_anew = true;
                self.unannounced.insert(id);
                self.announce_at.get_or_insert(now);
            }
        }
    }

    pub(super) fn announce_every(&self) -> Duration {
        let asked = self
            .served_at
            .is_some_and(|at| self.now.since(at) < ASKED_LATELY);
        let pushed = self.pushes > 0 || self.late_pushes > 0;
        if asked || !pushed {
            self.config.announce_every
        } else {
            self.config.announce_every.max(LAZY)
        }
    }

    pub(super) fn announce(&mut self) {
        if self.announce_at.is_some_and(|at| at <= self.now) {
            self.announce_at = None;
            for id in core::mem::take(&mut self.unannounced) {
                let Some(content) = self.contents.get_mut(&id) else {
                    continue;
                };
                let empty = ChunkSet::empty(content.chunks());
                if core::mem::take(&mut content.announce_anew) {
                    content.unannounced = empty;
                    self.announce_all_of(id);
                    continue;
                }
                let news = core::mem::replace(&mut content.unannounced, empty);
                if news.is_empty() {
                    continue;
                }
                for index in &self.neighbours {
                    let peer = &self.peers[index.at()];
                    // who has it all needs no news
                    let complete = peer
                        .slot
                        .and_then(|slot| content.have.get(slot))
                        .and_then(Option::as_ref)
                        .is_some_and(ChunkSet::is_full);
                    if peer.is_up() && !complete && content.entitles(peer.key) {
                        self.actions.push_back(Action::Announce {
                            peer: peer.key,
                            id,
                            chunks: news.clone(),
                            reset: false,
                        });
                    }
                }
            }
        }
        self.announce_load();
    }

    fn announce_load(&mut self) {
        let moved = self.backlog_bytes != self.announced_backlog
            || self.rate.abs_diff(self.announced_rate) > self.rate / 8;
        if !moved || self.load_at > self.now {
            return;
        }
        self.load_at = self.now + self.config.load_every;
        let all = self.load_to_all_at <= self.now || self.up.len() <= self.config.candidates;
        let each = if self.roster.len() > self.config.direct_targets {
            LOAD_TO_EACH_IN_PARTS
        } else {
            LOAD_TO_EACH
        };
        if all {
            self.load_to_all_at =
                self.now + each * u32::try_from(self.up.len()).unwrap_or(u32::MAX);
            self.announced_backlog = self.backlog_bytes;
            self.announced_rate = self.rate;
        }
        let now = self.now;
        let peers = &self.peers;
        self.choosers
            .retain(|(index, at)| now.since(*at) < CHOSEN_LATELY && peers[index.at()].is_up());
        let choosers = self.choosers.iter().map(|(index, _)| index);
        let to: Vec<PeerIndex> = if all {
            self.up.clone()
        } else {
            choosers.copied().collect()
        };
        for index in to {
            self.actions.push_back(Action::AnnounceLoad {
                peer: self.peers[index.at()].key,
                backlog_bytes: self.backlog_bytes,
                upload_bytes_per_second: self.rate,
            });
        }
    }

    /// The peer chose us to spread something.
    pub(super) fn chosen_by(&mut self, index: PeerIndex) {
        let now = self.now;
        if let Some(entry) = self.choosers.iter_mut().find(|(peer, _)| *peer == index) {
            entry.1 = now;
        } else if self.choosers.len() < CHOOSERS {
            self.choosers.push((index, now));
        }
    }
}
