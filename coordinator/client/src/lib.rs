//! The coordinator's HTTP API, as both of its ends know it: the messages ([`view`]), the bearer secret, and a client
//! that trusts one authority ([`Client`]).
//!
//! This crate deliberately doesn't know where operators keep tokens and pins (`parbake` does), and doesn't serve
//! (`coordinator` does).

mod call;
pub mod gate;
pub mod patience;
pub mod view;

pub use call::{COORDINATOR, CallError, Client, Lines, Target, segment};
pub use proto::Secret;
