//! The coordinator: the program that decides, for a whole fleet, which hosts stage which images.
//!
//! [`program`] starts the coordinator. `driver` owns the plan (`rollout::stage`) and the fleet's state. `session`
//! carries the driver's orders to hosts, and hosts' reports to the driver. `api` answers operators. [`authority`] and
//! [`enrolment`] say which hosts may take part. The program on each host is `parbake-agent`, and the operators' program
//! is `parbake`: each is a crate of its own.
//!
//! The coordinator deliberately doesn't touch the bytes of an image, and doesn't trust one host about another without
//! proof. The pure plan decides about staging; nothing around the plan repeats or overrides such a decision.

mod admin;
mod allowance;
mod api;
pub mod authority;
pub mod cli;
pub mod cluster;
pub mod command;
pub mod config;
mod driver;
pub mod enrolment;
mod fleet;
mod intake;
mod metrics;
pub mod network;
mod predicted;
pub mod program;
mod progress;
mod random;
mod renewal;
mod resolve;
mod saver;
pub mod secret;
mod seldom;
mod serve;
mod session;
mod state_dir;
mod wants;

pub use client::view;
pub use program::{Coordinator, RunError, run};
pub use state_dir::StateDirError;
use wire::lock;
