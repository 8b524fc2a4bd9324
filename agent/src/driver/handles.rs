//! The handles of connections, streams and shelves that parts of the driver pass on.
//!
//! The parts keep the handles and never read or write through them, so tests use plain values for handles.

use std::fmt::Debug;

use wire::{CloseCode, Connection, Receiver, Sender};

use super::contents::Proving;
use crate::shelf::Shelf;

/// The types of handles.
pub(super) trait Handles {
    /// A connection to a peer.
    type Line: Line;
    /// The stream on which a peer's request or offer is answered.
    type Answer: Debug;
    /// The stream on which the bytes of an offered chunk come.
    type Bytes: Debug;
    /// A place of a content's bytes.
    type Shelf: Proving + Debug;
}

/// A connection to a peer.
pub(super) trait Line: Clone + Debug {
    /// Closes the connection. Both sides see why.
    fn close(&self, code: CloseCode, reason: &'static str);
}

impl Line for Connection {
    fn close(&self, code: CloseCode, reason: &'static str) {
        Self::close(self, code, reason);
    }
}

/// The handles of the program: QUIC connections, and the disk.
#[derive(Debug)]
pub(super) struct Real;

impl Handles for Real {
    type Line = Connection;
    type Answer = Sender;
    type Bytes = Receiver;
    type Shelf = Shelf;
}
