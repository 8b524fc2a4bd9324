//! Reads the coordinator's orders: digests and host names are checked, or there is no order.

use std::collections::BTreeMap;

use proto::{
    ChunkIndex, ChunkRange, Digest, HostId,
    digest::ParseDigestError,
    limits::MAX_IMAGES,
    message::{self, FieldError, order::Kind},
    recipe::Doubt,
};

use super::image::Ordered;

/// The image that each reference shall name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// The coordinator's number of the order.
    pub(super) number: u64,
    /// Whatever the order doesn't name isn't wanted.
    pub(super) whole: bool,
    pub(super) names: BTreeMap<String, Digest>,
}

/// An order of the coordinator.
#[derive(Debug)]
pub(super) enum Order {
    /// This host may talk to these hosts, and to no others.
    Roster(message::Roster),
    /// The same, as a change of the earlier roster.
    RosterChange(message::RosterChange),
    /// This host follows these hosts, which become its neighbours.
    Neighbours(Vec<String>),
    /// An image is to be here.
    Stage {
        image: Digest,
        ordered: Ordered,
        /// Empty if the image was here when the order was made.
        manifest: Vec<u8>,
    },
    /// Staging an image stops for now. Its files stay.
    Pause(Digest),
    /// An image isn't wanted any more.
    Cancel(Digest),
    /// The image that each reference shall name.
    Names(Names),
    /// The order in which this host is to finish its images. Images that aren't named come last.
    Sequence(Vec<Digest>),
    /// A content may be fetched from the registry, under an image's name if one is given.
    Lease {
        content: Digest,
        image: Option<Digest>,
        /// The chunks to fetch; `None`: all of them.
        range: Option<ChunkRange>,
        ticket: Option<message::Ticket>,
    },
    /// A ticket for links that are made without a lease.
    Stand(message::Ticket),
    /// A lease is taken back.
    Revoke(Digest),
    /// The fleet trusts these hosts no longer.
    Quarantine(Vec<HostId>),
    /// A host takes back the links that it made of a content, from a chunk on.
    Retraction {
        content: Digest,
        maker: HostId,
        from: ChunkIndex,
    },
    /// How many bytes a second this host may move.
    Bandwidth(message::Bandwidth),
    /// These wants of the mirror are coming, or have their place in the queue.
    Queue(message::MirrorQueue),
    /// The registry's bytes don't fit a recipe: the content goes on without it.
    Doubt(Doubt),
    /// The recipe of this image is to be made here.
    MakeRecipe(Digest),
    /// The fleet's rule about old images, and what Pods refer to.
    Retention(message::Retention),
    /// Which old images would go?
    OldImagesAsked(message::OldImagesAsked),
    /// Peers blame this host for these chunks.
    Recheck(Vec<(Digest, ChunkIndex)>),
}

/// Why an order isn't followed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReadOrderError {
    /// A field that names an image or a content isn't a digest.
    #[error("order without a digest: {0}")]
    Digest(#[from] ParseDigestError),
    /// The order takes back a host's links, and names no host.
    #[error("order about {0:?}, which isn't a host")]
    Host(String),
    /// A lease is for chunks that no content has.
    #[error("order without chunks: {0}")]
    Range(#[from] FieldError),
    /// The order comes from a later version.
    #[error("order of a kind that this version doesn't know")]
    Unknown,
}

/// Reads an order. Malformed hosts, names and chunks in a list are left out.
///
/// # Errors
/// When the order has no meaning for this version.
pub(super) fn read(order: message::Order) -> Result<Order, ReadOrderError> {
    let digest = |bytes: &[u8]| Digest::try_from(bytes);
    Ok(match order.kind.ok_or(ReadOrderError::Unknown)? {
        Kind::Roster(roster) => Order::Roster(roster),
        Kind::RosterChange(change) => Order::RosterChange(change),
        Kind::Neighbours(neighbours) => Order::Neighbours(neighbours.hosts),
        Kind::Stage(mut order) => Order::Stage {
            image: digest(&order.manifest_digest)?,
            manifest: std::mem::take(&mut order.manifest),
            ordered: Ordered::from(order),
        },
        Kind::Cancel(order) => {
            let image = digest(&order.manifest_digest)?;
            match order.keep {
                true => Order::Pause(image),
                false => Order::Cancel(image),
            }
        }
        Kind::Names(order) => {
            let names = order.names.into_iter();
            let names = names.filter_map(|name| {
                let image = digest(&name.manifest_digest).ok()?;
                Some((name.reference, image))
            });
            Order::Names(Names {
                number: order.number,
                whole: order.whole,
                names: names.collect(),
            })
        }
        Kind::Sequence(order) => {
            let images = order.manifest_digests.iter().take(MAX_IMAGES);
            Order::Sequence(images.filter_map(|image| digest(image).ok()).collect())
        }
        Kind::Lease(grant) => Order::Lease {
            content: digest(&grant.content)?,
            image: digest(&grant.manifest_digest).ok(),
            range: grant
                .range
                .as_ref()
                .map(message::ChunkRange::parse)
                .transpose()?,
            ticket: grant.ticket,
        },
        Kind::Ticket(ticket) => Order::Stand(ticket),
        Kind::Revoke(revoke) => Order::Revoke(digest(&revoke.content)?),
        Kind::Limits(limits) => {
            let hosts = limits.revoked_hosts.iter();
            Order::Quarantine(hosts.filter_map(|host| host.parse().ok()).collect())
        }
        Kind::Retraction(retraction) => {
            let maker = retraction.maker.parse();
            Order::Retraction {
                content: digest(&retraction.content)?,
                maker: maker.map_err(|_| ReadOrderError::Host(retraction.maker))?,
                from: ChunkIndex(retraction.from_chunk),
            }
        }
        Kind::Bandwidth(bandwidth) => Order::Bandwidth(bandwidth),
        Kind::Queue(queue) => Order::Queue(queue),
        Kind::RecipeDoubt(doubt) => Order::Doubt(Doubt::parse(&doubt)?),
        Kind::MakeRecipe(order) => Order::MakeRecipe(digest(&order.manifest_digest)?),
        Kind::Retention(retention) => Order::Retention(retention),
        Kind::OldImagesAsked(asked) => Order::OldImagesAsked(asked),
        Kind::Recheck(recheck) => {
            let chunks = recheck.chunks.iter();
            let chunks = chunks.filter_map(|one| {
                let content = digest(&one.content).ok()?;
                Some((content, ChunkIndex(one.chunk)))
            });
            Order::Recheck(chunks.collect())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: Kind) -> Result<Order, ReadOrderError> {
        read(message::Order { kind: Some(kind) })
    }

    fn bytes() -> Vec<u8> {
        Digest::of(b"x").as_bytes().to_vec()
    }

    #[test]
    fn an_order_of_a_later_version_is_refused_by_name() {
        let error = read(message::Order { kind: None }).unwrap_err();
        assert_eq!(error, ReadOrderError::Unknown);
    }

    #[test]
    fn a_cancel_that_keeps_what_is_here_is_a_pause() {
        let order = |keep| {
            of(Kind::Cancel(message::CancelOrder {
                manifest_digest: bytes(),
                keep,
            }))
        };
        assert!(matches!(order(true), Ok(Order::Pause(_))));
        assert!(matches!(order(false), Ok(Order::Cancel(_))));
    }

    #[test]
    fn what_isnt_a_digest_is_no_order() {
        let short = message::LeaseRevoke {
            content: vec![7; 31],
        };
        let nameless = message::StageOrder::default();
        for kind in [Kind::Revoke(short), Kind::Stage(nameless)] {
            let error = of(kind).unwrap_err();
            assert!(matches!(error, ReadOrderError::Digest(_)));
        }
    }

    #[test]
    fn a_lease_may_name_no_image() {
        let grant = message::LeaseGrant {
            content: bytes(),
            ..message::LeaseGrant::default()
        };
        let Ok(Order::Lease { image, ticket, .. }) = of(Kind::Lease(grant)) else {
            panic!("no lease");
        };
        assert!(image.is_none() && ticket.is_none());
    }

    #[test]
    fn a_lease_may_be_for_a_range_that_a_content_can_have() {
        let order = |from, until| {
            of(Kind::Lease(message::LeaseGrant {
                content: bytes(),
                range: Some(message::ChunkRange { from, until }),
                ..message::LeaseGrant::default()
            }))
        };
        let Ok(Order::Lease { range, .. }) = order(16, 32) else {
            panic!("no lease");
        };
        assert_eq!(range, ChunkRange::new(16, 32));
        for (from, until) in [(0, 0), (32, 16), (7, u32::MAX)] {
            let error = order(from, until).unwrap_err();
            assert_eq!(error, ReadOrderError::Range(FieldError::ChunkRange));
        }
    }

    #[test]
    fn a_retraction_names_its_host() {
        let order = |maker: &str| {
            of(Kind::Retraction(message::Retraction {
                content: bytes(),
                from_chunk: 4,
                maker: maker.into(),
            }))
        };
        let Ok(Order::Retraction { maker, from, .. }) = order("mini-1") else {
            panic!("no retraction");
        };
        assert_eq!((maker.as_str(), from), ("mini-1", ChunkIndex(4)));
        let nobody = order("").unwrap_err();
        assert_eq!(nobody, ReadOrderError::Host(String::new()));
    }

    #[test]
    fn of_a_list_what_has_no_meaning_is_left_out() {
        let suspect = |content: Vec<u8>, chunk| message::Suspect { content, chunk };
        let recheck = message::Recheck {
            chunks: vec![suspect(vec![1], 1), suspect(bytes(), 2)],
        };
        let Ok(Order::Recheck(chunks)) = of(Kind::Recheck(recheck)) else {
            panic!("no recheck");
        };
        assert_eq!(chunks, [(Digest::of(b"x"), ChunkIndex(2))]);
        let name = |reference: &str, manifest_digest| message::Name {
            reference: reference.into(),
            manifest_digest,
        };
        let names = message::Names {
            number: 3,
            names: vec![name("a", bytes()), name("b", vec![1])],
            whole: true,
        };
        let Ok(Order::Names(names)) = of(Kind::Names(names)) else {
            panic!("no names");
        };
        assert_eq!(
            names.names,
            BTreeMap::from([("a".into(), Digest::of(b"x"))])
        );
        assert_eq!((names.number, names.whole), (3, true));
        let sequence = message::Sequence {
            manifest_digests: vec![vec![1], bytes()],
        };
        let Ok(Order::Sequence(images)) = of(Kind::Sequence(sequence)) else {
            panic!("no sequence");
        };
        assert_eq!(images, [Digest::of(b"x")]);
        let limits = message::Limits {
            revoked_hosts: vec!["".into(), "mini-9".into()],
        };
        let Ok(Order::Quarantine(hosts)) = of(Kind::Limits(limits)) else {
            panic!("no limits");
        };
        assert_eq!(hosts.len(), 1);
    }
}
