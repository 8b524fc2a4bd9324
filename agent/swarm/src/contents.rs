//! The contents that this host holds or wants.

use alloc::collections::{BTreeMap, BTreeSet};

use proto::{ChunkIndex, HostKey, Moment};

use crate::{
    content::{Content, Lease},
    event::ContentId,
    peer::PeerIndex,
};

#[derive(Debug, Default)]
pub(crate) struct Contents {
    all: BTreeMap<ContentId, Content>,
    /// Contents that lack chunks, by order.
    incomplete: BTreeSet<(u32, ContentId)>,
}

impl Contents {
    pub(crate) fn get(&self, id: ContentId) -> Option<&Content> {
        self.all.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: ContentId) -> Option<&mut Content> {
        self.all.get_mut(&id)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ContentId, &Content)> {
        self.all.iter().map(|(id, content)| (*id, content))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (ContentId, &mut Content)> {
        self.all.iter_mut().map(|(id, content)| (*id, content))
    }

    /// Contents that lack chunks, by order.
    pub(crate) fn incomplete(&self) -> impl Iterator<Item = (u32, ContentId)> + '_ {
        self.incomplete.iter().copied()
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.incomplete.is_empty()
    }

    pub(crate) fn add(&mut self, id: ContentId, content: Content) {
        if !content.held.is_full() {
            self.incomplete.insert((content.order(), id));
        }
        self.all.insert(id, content);
    }

    pub(crate) fn remove(&mut self, id: ContentId) -> bool {
        let Some(content) = self.all.remove(&id) else {
            return false;
        };
        self.incomplete.remove(&(content.order(), id));
        true
    }

    pub(crate) fn set_order(&mut self, id: ContentId, order: u32) {
        self.reorder(id, |content| content.told_order = order);
    }

    /// A client reads the content, or none does any more.
    pub(crate) fn set_read(&mut self, now: Moment, id: ContentId, read: bool) {
        self.reorder(id, |content| content.set_read(now, read));
    }

    fn reorder(&mut self, id: ContentId, change: impl FnOnce(&mut Content)) {
        if let Some(content) = self.all.get_mut(&id) {
            let lacks = self.incomplete.remove(&(content.order(), id));
            change(content);
            if lacks {
                self.incomplete.insert((content.order(), id));
            }
        }
    }

    /// Notes that a chunk is here. Returns `None` if the chunk isn't new, else whether the content is fetched from the
    /// registry.
    pub(crate) fn hold(&mut self, now: Moment, id: ContentId, chunk: ChunkIndex) -> Option<bool> {
        let content = self.all.get_mut(&id)?;
        if !content.hold(now, chunk) {
            return None;
        }
        if content.held.is_full() {
            self.incomplete.remove(&(content.order(), id));
        }
        Some(content.lease.is_some())
    }

    /// Notes that a chunk isn't here any more. Returns whether it was here.
    pub(crate) fn lose(&mut self, now: Moment, id: ContentId, chunk: ChunkIndex) -> bool {
        let Some(content) = self.all.get_mut(&id) else {
            return false;
        };
        let lost = content.lose_own(now, chunk);
        if lost {
            self.incomplete.insert((content.order(), id));
        }
        lost
    }

    pub(crate) fn lease_mut(&mut self, id: ContentId) -> Option<&mut Lease> {
        self.all.get_mut(&id)?.lease.as_mut()
    }

    pub(crate) fn holds(&self, id: ContentId, chunk: ChunkIndex) -> bool {
        self.get(id)
            .is_some_and(|content| content.held.contains(chunk))
    }

    /// Bytes of a chunk; 0 for an unknown content.
    pub(crate) fn len(&self, id: ContentId, chunk: ChunkIndex) -> u64 {
        self.get(id).map_or(0, |content| content.len(chunk))
    }

    /// Whether the peer may have the content. True for a content that isn't known here.
    pub(crate) fn entitles(&self, id: ContentId, key: HostKey) -> bool {
        self.get(id).is_none_or(|content| content.entitles(key))
    }

    /// Forgets the announcements of this slot.
    pub(crate) fn forget_slot(&mut self, slot: usize) {
        for content in self.all.values_mut() {
            content.forget_slot(slot);
        }
    }

    /// Removes every mention of this peer.
    pub(crate) fn forget_peer(&mut self, peer: PeerIndex) {
        for content in self.all.values_mut() {
            content.set_unwanted_by(peer, false);
            content.promises.remove(&peer);
        }
    }

    /// Forgets which peers didn't want which contents: they may have changed their minds.
    pub(crate) fn forget_unwanted(&mut self) {
        for content in self.all.values_mut() {
            content.forget_unwanted();
        }
    }
}
