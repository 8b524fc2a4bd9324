//! The coordinator's HTTP API, as both of its ends know it: what it shows and is asked ([`view`]), the bearer secret,
//! and a client that trusts one authority ([`Client`]).
//!
//! What it deliberately doesn't do: know where operators keep tokens and pins (`parbake`), or serve (`coordinator`).

mod call;
pub mod view;

pub use call::{COORDINATOR, CallError, Client, Lines, Target, segment};
pub use proto::Secret;
