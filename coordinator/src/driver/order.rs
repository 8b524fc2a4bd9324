//! Orders to hosts: the queue of a session, and the making of orders that several parts need.

use std::sync::Arc;

use proto::{ChunkRange, Digest, HostId, message, recipe::Doubt};
use tokio::sync::mpsc;

use crate::view::BandwidthRequest;

/// The most orders that wait for a session: one for each image and lease of a host. A session whose queue is full is
/// given up.
pub(crate) const ORDERS: usize = 256;

/// The queue of a session's orders. An order is shared, because the order of one image goes to every host.
pub(crate) type Orders = mpsc::Sender<Arc<message::Order>>;

/// An order, with the host to which it goes.
pub(super) type Addressed = (HostId, Arc<message::Order>);

pub(super) fn order(kind: message::order::Kind) -> message::Order {
    message::Order { kind: Some(kind) }
}

/// The order that limits a host's bandwidth, in bytes per second; 0 means no limit.
pub(super) fn bandwidth(limits: BandwidthRequest) -> message::Order {
    order(message::order::Kind::Bandwidth(message::Bandwidth {
        upload_bytes_per_second: limits.upload_bytes_per_second,
        download_bytes_per_second: limits.download_bytes_per_second,
    }))
}

/// Grants a lease: the host may fetch a content of an image, or a range of it, from the registry. With the ticket the
/// host may sign links of that content.
pub(super) fn grant(
    content: Digest,
    range: Option<ChunkRange>,
    image: Digest,
    ticket: Option<message::Ticket>,
) -> message::Order {
    order(message::order::Kind::Lease(message::LeaseGrant {
        content: content.as_bytes().to_vec(),
        manifest_digest: image.as_bytes().to_vec(),
        range: range.map(Into::into),
        ticket,
    }))
}

/// Revokes a lease: the host may not fetch this content from the registry any more.
pub(super) fn revoke(content: Digest) -> message::Order {
    order(message::order::Kind::Revoke(message::LeaseRevoke {
        content: content.as_bytes().to_vec(),
    }))
}

/// Tells hosts that an image's recipe isn't to be used for one content.
pub(super) fn recipe_doubt(doubt: &Doubt) -> message::Order {
    order(message::order::Kind::RecipeDoubt(doubt.to_message()))
}

/// Tells a host in which order it is to finish its images.
pub(super) fn sequence(images: &[Digest]) -> message::Order {
    let images = images.iter().map(|image| image.as_bytes().to_vec());
    order(message::order::Kind::Sequence(message::Sequence {
        manifest_digests: images.collect(),
    }))
}

/// Has a host make the recipe of an image that it holds.
pub(super) fn make_recipe(image: Digest) -> message::Order {
    order(message::order::Kind::MakeRecipe(message::MakeRecipe {
        manifest_digest: image.as_bytes().to_vec(),
    }))
}

/// Tells hosts to drop the links that `maker` made of a content, from chunk `from` on.
pub(super) fn retraction(maker: &HostId, content: Digest, from: u32) -> message::Order {
    order(message::order::Kind::Retraction(message::Retraction {
        content: content.as_bytes().to_vec(),
        from_chunk: from,
        maker: maker.to_string(),
    }))
}
