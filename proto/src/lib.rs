//! The vocabulary that parbake's programs share: digests, chunks, the SHA-256 chain, messages and their limits.
//!
//! No I/O, no async, no clock, no randomness: everything here is a value or a function of its arguments.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod blocks;
pub mod causes;
pub mod chain;
pub mod chunks;
pub mod codec;
pub mod digest;
pub mod figure;
pub mod fingerprint;
pub mod host;
pub mod image;
pub mod ledger;
pub mod limits;
pub mod message;
pub mod moment;
pub mod pause;
pub mod reason;
pub mod recipe;
pub mod reference;
pub mod retention;
pub mod secret;
pub mod statement;
pub mod tie;

pub use blocks::BlockPrint;
pub use causes::causes;
pub use chain::{Link, Resume, State};
pub use chunks::{CHUNK_BYTES, ChunkIndex, ChunkRange, ChunkSet, Geometry};
pub use digest::Digest;
pub use fingerprint::Fingerprint;
pub use host::{HostId, HostKey};
pub use image::Layout;
pub use ledger::{Answer, Ledger, Source};
pub use moment::{Moment, millis};
pub use reason::{Reason, ToldReason};
pub use recipe::{ContentRecipe, Recipe};
pub use reference::{ParseReferenceError, Reference, RegistryReference, Version};
pub use secret::Secret;
pub use statement::{Signed, Statement, Ticket};
