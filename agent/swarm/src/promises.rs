//! Promises that peers break: a chunk was announced and is missing, or was offered and isn't sent. A peer that breaks
//! several promises about one content isn't believed about that content for a minute. The peer isn't shunned: it may
//! have lost its disk.

use proto::{ChunkIndex, ChunkSet};

use crate::{
    Action,
    agenda::TICK,
    event::ContentId,
    ground::Ground,
    peer::PeerIndex,
    promise::{Promises, REMEMBERED},
};

/// The peer says that it doesn't have a chunk that we asked for.
pub(crate) fn missed(ground: &mut Ground, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) {
    let slot = ground.fleet[peer].slot;
    let content = ground.contents.get(id);
    let announced = content.is_some_and(|content| content.peer_has(slot, chunk));
    ground.lacks(peer, id, chunk);
    if announced {
        // the peer's word that it lost more may be on the way
        let again = ground.now + TICK;
        let state = &mut ground.fleet[peer];
        state.not_asked_before = state.not_asked_before.max(again);
        broke(ground, peer, id, chunk);
    }
}

/// The peer broke a promise about this content.
pub(crate) fn broke(ground: &mut Ground, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) {
    let now = ground.now;
    let state = &mut ground.fleet[peer];
    let Some(content) = ground.contents.get_mut(id) else {
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
        ground.agenda.order();
        ground.agenda.pull();
    }
}

/// Whether an announcement of this peer doesn't count, because it broke its promises.
pub(crate) fn is_disbelieved(
    ground: &mut Ground,
    peer: PeerIndex,
    id: ContentId,
    chunks: &ChunkSet,
    reset: bool,
) -> bool {
    let content = ground.contents.get_mut(id);
    let Some(promises) = content.and_then(|content| content.promises.get_mut(&peer)) else {
        return false;
    };
    if reset {
        promises.renewed(chunks);
    }
    promises.are_worthless()
}

/// Forgets broken promises after a while. A peer that wasn't believed is then asked what it holds.
pub(crate) fn forget(ground: &mut Ground) {
    let now = ground.now;
    let (fleet, actions) = (&ground.fleet, &mut ground.actions);
    for (id, content) in ground.contents.iter_mut() {
        let held = &content.held;
        content.promises.retain(|index, promises| {
            let peer = &fleet[*index];
            let forgotten = promises.are_forgotten(now);
            if forgotten && promises.are_worthless() && peer.neighbour && peer.is_up() {
                actions.push_back(Action::Announce {
                    peer: peer.key,
                    id,
                    chunks: held.clone(),
                    reset: true,
                });
            }
            !forgotten
        });
    }
}
