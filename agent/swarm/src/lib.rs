//! What this host asks of whom, and whom it serves: every decision of an agent about moving chunks, without I/O.
//!
//! The shell (the agent's driver, or the simulator) feeds [`Event`]s and carries out [`Action`]s. Any event is legal in
//! any state; time and the seed are arguments. The shell proves chunks and keeps them; the swarm only knows which ones
//! are held, by whom, and what is under way.
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
