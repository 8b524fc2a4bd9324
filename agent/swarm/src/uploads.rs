//! Uploads under way: pushes, and answers to requests.

use alloc::vec::Vec;

use proto::ChunkIndex;

use crate::{
    event::{ContentId, Delivery, Ticket},
    ground::Ground,
    peer::PeerIndex,
    push::{Purpose, Upload},
};

#[derive(Debug, Default)]
pub(crate) struct Uploads {
    under_way: Vec<Upload>,
}

impl Uploads {
    pub(crate) fn len(&self) -> usize {
        self.under_way.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// The number of uploads that count against the bound.
    pub(crate) fn quick(&self) -> usize {
        self.under_way.iter().filter(|upload| !upload.slow).count()
    }

    /// The number of answers to requests.
    pub(crate) fn answers(&self) -> usize {
        let answers = self.under_way.iter();
        answers.filter(|upload| upload.ticket.is_some()).count()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Upload> {
        self.under_way.iter()
    }

    pub(crate) fn begin(&mut self, ground: &mut Ground, upload: Upload) {
        let bytes = ground.contents.len(upload.id, upload.chunk);
        ground.pace.charge(bytes);
        ground.fleet[upload.peer].uploads += 1;
        self.under_way.push(upload);
    }

    /// An upload ended, and its receiver said how. So many bytes went out, and sending so many is as much work. The
    /// caller settles what depended on the upload.
    pub(crate) fn sent(
        &mut self,
        ground: &mut Ground,
        (peer, id, chunk, ticket): (PeerIndex, ContentId, ChunkIndex, Option<Ticket>),
        delivery: Delivery,
        (wire_bytes, work_bytes): (u64, u64),
    ) -> Option<Upload> {
        let at = self.under_way.iter().position(|upload| {
            upload.peer == peer
                && upload.id == id
                && upload.chunk == chunk
                && upload.ticket == ticket
        })?;
        let (now, least) = (ground.now, ground.config.timeout_least);
        let push = ticket.is_none();
        if is_received(delivery) {
            ground.fleet[peer].took(now, push);
            if delivery == Delivery::Stored {
                let since = self.under_way[at].since;
                ground.pace.sent_took(now.0 - since.0);
            }
            ground.pace.sent_bytes(now, wire_bytes);
        } else if delivery == Delivery::Broken {
            ground.fleet[peer].took_nothing(now, least, push);
        }
        // the whole chunk was charged when the upload began: zeros, packed chunks and declined pushes cost less
        let charged = ground.contents.len(id, chunk);
        ground.pace.refund(charged.saturating_sub(wire_bytes));
        if ticket.is_some() && work_bytes > wire_bytes {
            // its bytes held the peer up for less than the work was worth
            let worth = ground.pace.worth_us(work_bytes);
            let since = self.under_way[at].since;
            ground.fleet[peer].owes(since, worth);
        }
        Some(self.end(ground, at, delivery))
    }

    /// Ends one upload, the last one first, to a peer whose connection is gone. The caller settles what depended on the
    /// upload.
    pub(crate) fn drop_peer(&mut self, ground: &mut Ground, peer: PeerIndex) -> Option<Upload> {
        let at = self
            .under_way
            .iter()
            .rposition(|upload| upload.peer == peer)?;
        Some(self.end(ground, at, Delivery::Broken))
    }

    fn end(&mut self, ground: &mut Ground, at: usize, delivery: Delivery) -> Upload {
        let upload = self.under_way.swap_remove(at);
        ground.agenda.upload();
        ground.agenda.assign();
        let state = &mut ground.fleet[upload.peer];
        state.uploads = state.uploads.saturating_sub(1);
        state.slow_uploads -= usize::from(upload.slow).min(state.slow_uploads);
        if delivery == Delivery::Unwanted
            && let Some(content) = ground.contents.get_mut(upload.id)
        {
            content.set_unwanted_by(upload.peer, true);
        }
        upload
    }

    /// The next upload from `from` on that takes far longer than others. It holds up nobody else: what depended on it
    /// goes on as if the upload were over. The caller settles that.
    pub(crate) fn next_slow(&mut self, ground: &mut Ground, from: &mut usize) -> Option<Upload> {
        let (now, least) = (ground.now, ground.config.timeout_least);
        let after = ground.pace.slow_upload();
        let slow = self.under_way.iter().filter(|upload| upload.slow).count();
        if slow >= ground.config.slow_uploads {
            return None;
        }
        let mut rest = self.under_way.iter().skip(*from);
        let next = rest.position(|upload| !upload.slow && now.since(upload.since) >= after)?;
        let at = *from + next;
        *from = at + 1;
        let upload = &mut self.under_way[at];
        upload.slow = true;
        let settled = Upload {
            purpose: core::mem::replace(&mut upload.purpose, Purpose::Answer),
            ..upload.clone()
        };
        let push = settled.ticket.is_none();
        ground.fleet[settled.peer].takes_slowly(now, least, push);
        ground.agenda.upload();
        Some(settled)
    }
}

pub(crate) const fn is_received(delivery: Delivery) -> bool {
    matches!(delivery, Delivery::Stored | Delivery::Already)
}
