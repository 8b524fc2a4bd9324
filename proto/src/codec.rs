//! Framing: the length of each message comes before the message, as a varint. Each type of message has a longest
//! length.

use alloc::vec::Vec;

use prost::Message;

use crate::message;

/// A message that may be sent on the wire, with its longest length.
///
/// The limits bound the memory that a peer can make a program allocate. They leave room for the largest legal message
/// in a fleet of 1,000 hosts and for an image of 512 layers.
pub trait Framed: Message + Default {
    /// The most bytes of an encoded message, without the length before it.
    const MAX_BYTES: usize;
}

macro_rules! framed {
    ($($message:ident: $max:expr, $why:literal;)*) => {
        $(#[doc = $why] impl Framed for message::$message { const MAX_BYTES: usize = $max; })*
    };
}

framed! {
    PeerOpen: 32 << 10, "A push to 1,000 targets names each by eight bytes.";
    PeerUpdate: 1 << 20, "Runs of every content of several images.";
    ChunkReply: 4 << 10, "One link, with its ticket, and the link that its maker went on from.";
    PushReply: 1 << 10, "One outcome, and 128 ranges of a chunk.";
    PartHeader: 64, "Two numbers.";
    CoordinatorOpen: 256 << 10, "The state of every image on the host.";
    Report: 256 << 10, "The state of every image on the host.";
    Order: (4 << 20) + (256 << 10), "A manifest of 4 MiB with its references, or a roster of 1,000 hosts with long names.";
    Renewed: 64 << 10, "A short certificate chain.";
}

/// Bytes that aren't a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The announced length is over the limit of the message's type.
    #[error("message of {length} bytes is over its limit of {limit}")]
    TooLong {
        /// The announced length.
        length: u64,
        /// The limit of the message's type.
        limit: usize,
    },
    /// The length prefix isn't a varint of at most ten bytes.
    #[error("message length isn't a varint")]
    Length,
    /// The body isn't the protobuf message that was expected.
    #[error("message body doesn't decode: {0}")]
    Body(prost::DecodeError),
}

/// The message with its length before it, ready to send.
///
/// # Errors
/// When the message is over the limit of its type: the receiver would refuse it.
pub fn encode<M: Framed>(message: &M) -> Result<Vec<u8>, DecodeError> {
    let length = message.encoded_len();
    if length > M::MAX_BYTES {
        return Err(DecodeError::TooLong {
            length: length as u64,
            limit: M::MAX_BYTES,
        });
    }
    Ok(message.encode_length_delimited_to_vec())
}

/// Reads a length at the start of `bytes`. Returns the length of the message, and that of the length itself; `None`
/// while the length is incomplete.
///
/// # Errors
/// When the length isn't a varint, or is over the limit of the message's type.
pub fn prefix<M: Framed>(bytes: &[u8]) -> Result<Option<(usize, usize)>, DecodeError> {
    let mut length = 0u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        if at == 9 && bits > 1 {
            return Err(DecodeError::Length);
        }
        length |= bits << (7 * at);
        if byte & 0x80 == 0 {
            return match usize::try_from(length) {
                Ok(body) if body <= M::MAX_BYTES => Ok(Some((body, at + 1))),
                _ => Err(DecodeError::TooLong {
                    length,
                    limit: M::MAX_BYTES,
                }),
            };
        }
    }
    if bytes.len() >= 10 {
        Err(DecodeError::Length)
    } else {
        Ok(None)
    }
}

/// Decodes a message without a length before it.
///
/// # Errors
/// When the bytes aren't such a message, or are over the limit of its type.
pub fn decode<M: Framed>(body: &[u8]) -> Result<M, DecodeError> {
    if body.len() > M::MAX_BYTES {
        return Err(DecodeError::TooLong {
            length: body.len() as u64,
            limit: M::MAX_BYTES,
        });
    }
    M::decode(body).map_err(DecodeError::Body)
}

#[cfg(test)]
mod tests {
    use std::vec;

    use proptest::prelude::*;

    use super::*;

    fn total<M: Framed + PartialEq + core::fmt::Debug>(bytes: &[u8]) {
        if let Ok(message) = decode::<M>(bytes) {
            let again = encode(&message).unwrap();
            let (body, start) = prefix::<M>(&again).unwrap().unwrap();
            assert_eq!(body + start, again.len());
            assert_eq!(decode::<M>(&again[start..]).unwrap(), message);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            total::<message::PeerOpen>(&bytes);
            total::<message::PeerUpdate>(&bytes);
            total::<message::ChunkReply>(&bytes);
            total::<message::PushReply>(&bytes);
            total::<message::CoordinatorOpen>(&bytes);
            total::<message::Report>(&bytes);
            total::<message::Order>(&bytes);
            total::<message::Renewed>(&bytes);
            if let Ok(Some((body, start))) = prefix::<message::PeerOpen>(&bytes) {
                prop_assert!(body <= message::PeerOpen::MAX_BYTES && start <= 10);
            }
        }

        #[test]
        fn any_link_field_lengths_parse_or_fail(before in prop::collection::vec(any::<u8>(), 30..34), maker in ".{0,8}") {
            let link = message::Link { before: before.clone(), after: vec![0; 32], fingerprint: vec![0; 16], maker, ..Default::default() };
            if let Ok((parsed, _)) = link.parse() {
                prop_assert_eq!(parsed.before.to_bytes().to_vec(), before);
            }
        }
    }

    #[test]
    fn a_message_at_its_limit_passes_and_one_byte_more_does_not() {
        let limit = message::PartHeader::MAX_BYTES;
        assert_eq!(prefix::<message::PartHeader>(&[64]), Ok(Some((limit, 1))));
        assert_eq!(
            prefix::<message::PartHeader>(&[65]),
            Err(DecodeError::TooLong { length: 65, limit })
        );
        assert_eq!(prefix::<message::PartHeader>(&[0x80]), Ok(None));
        assert_eq!(
            prefix::<message::PartHeader>(&[0xff; 10]),
            Err(DecodeError::Length)
        );
    }
}
