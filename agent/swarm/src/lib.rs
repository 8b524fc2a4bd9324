//! The decisions of an agent about moving chunks: which chunks this host asks for, which peer it asks, and which peers
//! it serves. The crate does no I/O.
//!
//! The shell (the agent's driver, or the simulator) feeds [`Event`]s and carries out [`Action`]s. Any event is legal in
//! any state. Time and the seed are arguments. The shell verifies and stores chunks. The swarm only knows which chunks
//! are held, which host holds them, and which transfers are under way.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod action;
mod agenda;
mod bucket;
mod choose;
pub mod config;
mod content;
mod contents;
mod downloads;
pub mod event;
mod fleet;
mod grace;
mod ground;
mod jobs;
mod leases;
mod news;
mod pace;
mod peer;
mod promise;
mod promises;
mod push;
mod pushes;
mod report;
mod serve;
pub mod status;
mod swarm;
mod uploads;
mod want;

pub use action::Action;
pub use config::Config;
pub use event::Event;
pub use status::{Stall, Standstill, Status};
pub use swarm::Swarm;
