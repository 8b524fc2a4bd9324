//! Answering requests.

use super::*;
use crate::action::Declined;

/// A request of a peer that waits for an upload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) ticket: Ticket,
    pub(super) peer: PeerIndex,
    pub(super) id: ContentId,
    pub(super) chunk: ChunkIndex,
    since: Moment,
}

/// Whose requests are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Askers {
    /// Those of peers that keep their promises and take what they are sent.
    Reliable,
    /// Everybody's, theirs first.
    All,
}

impl Swarm {
    pub(super) fn requested(
        &mut self,
        ticket: Ticket,
        key: HostKey,
        id: ContentId,
        chunk: ChunkIndex,
    ) {
        let refused = match self.find(key) {
            None => Some(Declined::Quarantined),
            Some(index) if self.peers[index.at()].is_quarantined() => Some(Declined::Quarantined),
            Some(_) if !self.entitles(id, key) => Some(Declined::NotEntitled),
            Some(_) if !self.holds(id, chunk) => Some(Declined::Missing),
            Some(index)
                if !self.peers[index.at()].is_up() || self.peers[index.at()].rests(self.now) =>
            {
                Some(Declined::Busy)
            }
            Some(index) => {
                let bound = if self.step_back {
                    self.config.waiting / 4
                } else {
                    self.config.waiting
                };
                // nobody may fill the queue alone
                let own = self
                    .waiting
                    .iter()
                    .filter(|other| other.peer == index)
                    .count();
                if self.waiting.len() >= bound || own >= 2 * self.config.requests_per_peer {
                    Some(Declined::Busy)
                } else {
                    self.waiting.push(Waiting {
                        ticket,
                        peer: index,
                        id,
                        chunk,
                        since: self.now,
                    });
                    self.upload_wanted = true;
                    self.served_at = Some(self.now);
                    None
                }
            }
        };
        if let Some(reason) = refused {
            self.actions.push_back(Action::Refuse(ticket, reason));
        }
    }

    /// Whether the peer may have the content, where that is known here.
    fn entitles(&self, id: ContentId, key: HostKey) -> bool {
        let content = self.contents.get(&id);
        content.is_none_or(|content| content.entitles(key))
    }

    pub(super) fn holds(&self, id: ContentId, chunk: ChunkIndex) -> bool {
        self.contents
            .get(&id)
            .is_some_and(|content| content.held.contains(chunk))
    }

    /// Begins to answer the request whose chunk we have sent least often, then the one that waited longest.
    ///
    /// Who gives the fleet nothing is answered when there is nothing else to send: what it takes is missing to others.
    pub(super) fn serve_next(&mut self, askers: Askers) -> bool {
        let now = self.now;
        let best = self
            .waiting
            .iter()
            .enumerate()
            .filter(|(_, waiting)| {
                let peer = &self.peers[waiting.peer.at()];
                peer.is_up()
                    && peer.uploads < self.config.uploads_per_peer.max(1)
                    && (askers == Askers::All || peer.is_reliable(now))
            })
            .min_by_key(|(_, waiting)| {
                let times = self
                    .contents
                    .get(&waiting.id)
                    .map_or(0, |content| content.times_sent(waiting.chunk));
                let unreliable = !self.peers[waiting.peer.at()].is_reliable(now);
                (unreliable, times, waiting.since, waiting.ticket)
            })
            .map(|(at, _)| at);
        let Some(at) = best else {
            return false;
        };
        let waiting = self.waiting.swap_remove(at);
        // either may have changed while it waited
        let refused = if !self.entitles(waiting.id, self.peers[waiting.peer.at()].key) {
            Some(Declined::NotEntitled)
        } else if !self.holds(waiting.id, waiting.chunk) {
            Some(Declined::Missing)
        } else {
            None
        };
        if let Some(reason) = refused {
            self.actions
                .push_back(Action::Refuse(waiting.ticket, reason));
            return true;
        }
        if let Some(content) = self.contents.get_mut(&waiting.id) {
            content.count_sent(waiting.chunk);
        }
        self.actions.push_back(Action::Serve(waiting.ticket));
        self.begin_upload(Upload {
            peer: waiting.peer,
            id: waiting.id,
            chunk: waiting.chunk,
            ticket: Some(waiting.ticket),
            purpose: Purpose::Answer,
            since: self.now,
            slow: false,
        });
        true
    }
}
