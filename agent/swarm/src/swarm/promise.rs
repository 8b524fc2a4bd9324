//! Promises that peers break: a chunk that was announced and is missing, or was offered and isn't sent. A peer that breaks
//! several of one content isn't believed about that content for a minute. It isn't shunned: it may have lost its disk.

use super::*;
use crate::promise::{Promises, REMEMBERED};

impl Swarm {
    /// The peer says that it doesn't have a chunk which it was asked for.
    pub(super) fn missed(&mut self, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) {
        let slot = self.peers[peer.at()].slot;
        let announced = self
            .contents
            .get(&id)
            .is_some_and(|content| content.peer_has(slot, chunk));
        self.lacks(peer, id, chunk);
        if announced {
            // its word that it lost more may be on the way
            let again = self.now + TICK;
            let state = &mut self.peers[peer.at()];
            state.not_asked_before = state.not_asked_before.max(again);
            self.broke_promise(peer, id, chunk);
        }
    }

    pub(super) fn broke_promise(&mut self, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) {
        let now = self.now;
        let state = &mut self.peers[peer.at()];
        let Some(content) = self.contents.get_mut(&id) else {
            return;
        };
        let promises = content
            .promises
            .entry(peer)
            .or_insert_with(|| Promises::new(now));
        promises.broke(now, chunk, state.is_distrusted(now));
        if promises.are_worthless() {
            state.distrusted_until = now + REMEMBERED;
            if let Some(slot) = state.slot {
                content.forget_slot(slot);
            }
            self.order_wanted = true;
            self.pull_wanted = true;
        }
    }

    /// Whether an announcement of this peer doesn't count, because it broke its promises.
    pub(super) fn is_disbelieved(
        &mut self,
        peer: PeerIndex,
        id: ContentId,
        chunks: &ChunkSet,
        reset: bool,
    ) -> bool {
        let content = self.contents.get_mut(&id);
        let Some(promises) = content.and_then(|content| content.promises.get_mut(&peer)) else {
            return false;
        };
        if reset {
            promises.renewed(chunks);
        }
        promises.are_worthless()
    }

    /// Broken promises are forgotten after a while. Who wasn't believed is asked what it holds.
    pub(super) fn forget_promises(&mut self) {
        let now = self.now;
        for (id, content) in &mut self.contents {
            let (held, peers, actions) = (&content.held, &self.peers, &mut self.actions);
            content.promises.retain(|index, promises| {
                let peer = &peers[index.at()];
                let forgotten = promises.are_forgotten(now);
                if forgotten && promises.are_worthless() && peer.neighbour && peer.is_up() {
                    actions.push_back(Action::Announce {
                        peer: peer.key,
                        id: *id,
                        chunks: held.clone(),
                        reset: true,
                    });
                }
                !forgotten
            });
        }
    }
}
