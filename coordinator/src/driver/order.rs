//! Orders to hosts: the queue of a session, and how orders are made that more than one part makes.

use std::sync::Arc;

use proto::{Digest, HostId, message};
use tokio::sync::mpsc;

use crate::view::BandwidthRequest;

/// Orders that wait for a session: a whole roll of images and leases. A host that doesn't take them is let go.
pub(crate) const ORDERS: usize = 256;

/// The queue of a session. Orders are shared: the order of one image goes to every host.
pub(crate) type Orders = mpsc::Sender<Arc<message::Order>>;

/// An order and the host that it is for.
pub(super) type Addressed = (HostId, Arc<message::Order>);

pub(super) fn order(kind: message::order::Kind) -> message::Order {
    message::Order { kind: Some(kind) }
}

/// What a host may move; 0 is without a limit.
pub(super) fn bandwidth(limits: BandwidthRequest) -> message::Order {
    order(message::order::Kind::Bandwidth(message::Bandwidth {
        upload_bytes_per_second: limits.upload_bytes_per_second,
        download_bytes_per_second: limits.download_bytes_per_second,
    }))
}

/// A host may fetch a content of an image from the registry, and make links of it with the ticket.
pub(super) fn grant(
    content: Digest,
    image: Digest,
    ticket: Option<message::Ticket>,
) -> message::Order {
    order(message::order::Kind::Lease(message::LeaseGrant {
        content: content.as_bytes().to_vec(),
        manifest_digest: image.as_bytes().to_vec(),
        ticket,
    }))
}

/// A host may fetch a content no more.
pub(super) fn revoke(content: Digest) -> message::Order {
    order(message::order::Kind::Revoke(message::LeaseRevoke {
        content: content.as_bytes().to_vec(),
    }))
}

/// What this host made of a content, from a chunk on, is to be dropped.
pub(super) fn retraction(maker: &HostId, content: Digest, from: u32) -> message::Order {
    order(message::order::Kind::Retraction(message::Retraction {
        content: content.as_bytes().to_vec(),
        from_chunk: from,
        maker: maker.to_string(),
    }))
}
