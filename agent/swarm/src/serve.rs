//! Requests of peers that wait for an upload.

use alloc::vec::Vec;

use proto::{ChunkIndex, HostKey, Moment};

use crate::{
    Action,
    action::Declined,
    event::{ContentId, Ticket},
    ground::Ground,
    peer::PeerIndex,
    push::{Purpose, Upload},
};

#[derive(Clone, Copy, Debug)]
struct Waiting {
    ticket: Ticket,
    peer: PeerIndex,
    id: ContentId,
    chunk: ChunkIndex,
    since: Moment,
}

/// The peers whose requests are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Askers {
    /// Peers that keep their promises and take what they are sent.
    Reliable,
    /// All peers, the reliable ones first.
    All,
}

/// The outcome of looking for a request to answer.
#[derive(Debug)]
pub(crate) enum Next {
    /// The chunk is sent.
    Answered(Upload),
    /// The request was turned away.
    Refused,
    Nothing,
}

#[derive(Debug, Default)]
pub(crate) struct Serve {
    waiting: Vec<Waiting>,
}

impl Serve {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// A peer requests a chunk. Returns whether the request waits; otherwise the request is turned away.
    pub(crate) fn requested(
        &mut self,
        ground: &mut Ground,
        ticket: Ticket,
        key: HostKey,
        id: ContentId,
        chunk: ChunkIndex,
    ) -> bool {
        match self.judge(ground, key, id, chunk) {
            Ok(peer) => {
                self.waiting.push(Waiting {
                    ticket,
                    peer,
                    id,
                    chunk,
                    since: ground.now,
                });
                ground.agenda.upload();
                true
            }
            Err(reason) => {
                ground.act(Action::Refuse(ticket, reason));
                false
            }
        }
    }

    fn judge(
        &self,
        ground: &Ground,
        key: HostKey,
        id: ContentId,
        chunk: ChunkIndex,
    ) -> Result<PeerIndex, Declined> {
        let index = ground.fleet.find(key).ok_or(Declined::Quarantined)?;
        let peer = &ground.fleet[index];
        if peer.is_quarantined() {
            return Err(Declined::Quarantined);
        }
        if !ground.contents.entitles(id, key) {
            return Err(Declined::NotEntitled);
        }
        if !ground.contents.holds(id, chunk) {
            return Err(Declined::Missing);
        }
        let bound = if ground.step_back {
            ground.config.waiting / 4
        } else {
            ground.config.waiting
        };
        // no peer may fill the queue alone
        let own = self.waiting.iter().filter(|other| other.peer == index);
        if !peer.is_up()
            || peer.rests(ground.now)
            || self.waiting.len() >= bound
            || own.count() >= 2 * ground.config.requests_per_peer
        {
            return Err(Declined::Busy);
        }
        Ok(index)
    }

    pub(crate) fn withdrawn(&mut self, ticket: Ticket) {
        self.waiting.retain(|waiting| waiting.ticket != ticket);
    }

    /// The content is dropped.
    pub(crate) fn drop_content(&mut self, ground: &mut Ground, id: ContentId) {
        self.refuse(ground, Declined::Missing, |waiting| waiting.id == id);
    }

    /// The connection to a peer is gone. Its requests are refused, since the shell holds a stream for each.
    pub(crate) fn drop_peer(&mut self, ground: &mut Ground, peer: PeerIndex) {
        self.refuse(ground, Declined::Busy, |waiting| waiting.peer == peer);
    }

    fn refuse(&mut self, ground: &mut Ground, reason: Declined, which: impl Fn(&Waiting) -> bool) {
        let (gone, kept): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(which);
        self.waiting = kept;
        for waiting in gone {
            ground.act(Action::Refuse(waiting.ticket, reason));
        }
    }

    /// Answers the request whose chunk we have sent least often. Among equals, the request that waited longest comes
    /// first.
    ///
    /// A peer that isn't reliable is answered only when nothing else is to be sent: what such a peer takes, others
    /// miss.
    pub(crate) fn next(&mut self, ground: &mut Ground, askers: Askers) -> Next {
        let now = ground.now;
        let ready = self.waiting.iter().enumerate().filter(|(_, waiting)| {
            let peer = &ground.fleet[waiting.peer];
            peer.is_up()
                && peer.answered_from() <= now
                && peer.uploads < ground.config.uploads_per_peer.max(1)
                && (askers == Askers::All || peer.is_reliable(now))
        });
        let best = ready.min_by_key(|(_, waiting)| {
            let content = ground.contents.get(waiting.id);
            let times = content.map_or(0, |content| content.times_sent(waiting.chunk));
            let unreliable = !ground.fleet[waiting.peer].is_reliable(now);
            (unreliable, times, waiting.since, waiting.ticket)
        });
        let Some(at) = best.map(|(at, _)| at) else {
            let waiting = self.waiting.iter();
            let owing = waiting.map(|waiting| ground.fleet[waiting.peer].answered_from());
            if let Some(due) = owing.filter(|from| *from > now).min() {
                ground.agenda.wake_at(due);
            }
            return Next::Nothing;
        };
        let waiting = self.waiting.swap_remove(at);
        let key = ground.fleet[waiting.peer].key;
        // either answer may have changed while the request waited
        let refused = if !ground.contents.entitles(waiting.id, key) {
            Some(Declined::NotEntitled)
        } else if !ground.contents.holds(waiting.id, waiting.chunk) {
            Some(Declined::Missing)
        } else {
            None
        };
        if let Some(reason) = refused {
            ground.act(Action::Refuse(waiting.ticket, reason));
            return Next::Refused;
        }
        if let Some(content) = ground.contents.get_mut(waiting.id) {
            content.count_sent(waiting.chunk);
        }
        ground.act(Action::Serve(waiting.ticket));
        Next::Answered(Upload {
            peer: waiting.peer,
            id: waiting.id,
            chunk: waiting.chunk,
            ticket: Some(waiting.ticket),
            purpose: Purpose::Answer,
            since: now,
            slow: false,
        })
    }
}
