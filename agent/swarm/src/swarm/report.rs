//! What the swarm says about itself.

use super::*;
use crate::status::{ContentStatus, Stall, Status};

/// A registry that was asked this long ago and has given nothing since is silent. Below that it is being asked: a
/// connection is made, redirects are followed, and a first chunk is decoded.
const SILENT_AFTER: Duration = Duration::from_secs(3);

impl Swarm {
    /// Where everything stands.
    #[must_use]
    pub fn status(&self, now: Moment) -> Status {
        let now = now.max(self.now);
        Status {
            contents: self
                .contents
                .iter()
                .map(|(id, content)| self.content_status(now, *id, content))
                .collect(),
            peers: self.roster.len(),
            connected: self.up.len(),
            quarantined: self
                .roster
                .iter()
                .map(|index| &self.peers[index.at()])
                .filter(|peer| peer.is_quarantined())
                .map(|peer| peer.key)
                .collect(),
            backlog_bytes: self.backlog_bytes,
            upload_bytes_per_second: self.rate_measured.then_some(self.rate),
            uploads: self.uploads.len(),
            headless: self.headless,
        }
    }

    fn content_status(&self, now: Moment, id: ContentId, content: &Content) -> ContentStatus {
        let requested = self
            .requests
            .iter()
            .filter(|request| request.id == id)
            .count()
            + self
                .incoming
                .iter()
                .filter(|incoming| incoming.id == id)
                .count();
        let idle = now.since(content.grown_at);
        let stalled = !content.held.is_full() && idle >= TICK;
        ContentStatus {
            id,
            chunks: content.chunks(),
            held: content.held.count(),
            requested: u32::try_from(requested).unwrap_or(u32::MAX),
            leased: content.lease.is_some(),
            paced: content
                .lease
                .as_ref()
                .is_some_and(|lease| lease.ordered == 0),
            silent: content.lease.as_ref().and_then(|lease| lease.silent(now)),
            idle,
            stall: stalled.then(|| self.stall(now, id, content, requested)),
        }
    }

    fn stall(&self, now: Moment, id: ContentId, content: &Content, requested: usize) -> Stall {
        if content.not_stored {
            return Stall::NotStored;
        }
        if content.is_paused(now) {
            return Stall::LostAgain;
        }
        let mut budget = self.down_bucket;
        let throttled = !budget.allows(now);
        if let Some(lease) = &content.lease {
            return if lease.blocked_since.is_some() {
                Stall::PeersSlow
            } else {
                match lease.silent(now) {
                    // our own limit, and not the registry
                    None if throttled => Stall::Throttled,
                    None => Stall::Paced,
                    Some(silent) if silent < SILENT_AFTER => Stall::Fetching,
                    Some(_) => Stall::OriginSilent,
                }
            };
        }
        if requested > 0 {
            return Stall::PeersSlow;
        }
        if throttled {
            return Stall::Throttled;
        }
        let heard = content.have.iter().flatten().any(|set| {
            let words = set.words().iter().zip(content.held.words());
            words.into_iter().any(|(theirs, ours)| theirs & !ours != 0)
        });
        if heard {
            let first = self.incomplete.iter().next().map(|(_, first)| *first);
            return if self.requests.len() >= self.config.requests && first != Some(id) {
                Stall::AwaitingTurn
            } else if content
                .pushed_at
                .is_some_and(|at| self.now.since(at) < self.grace * 2)
            {
                Stall::AwaitingPush
            } else {
                Stall::PeersBusy
            };
        }
        let quarantined = self
            .roster
            .iter()
            .any(|index| self.peers[index.at()].is_quarantined());
        if content.origin_failed {
            Stall::OriginFailed
        } else if quarantined && self.up.is_empty() {
            Stall::SourcesQuarantined
        } else if self.up.is_empty() && !self.roster.is_empty() {
            Stall::NoPeers
        } else if content.pushed_at.is_some() {
            Stall::NoSource
        } else {
            Stall::AwaitingLease
        }
    }
}
