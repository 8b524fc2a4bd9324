//! The coordinator: the program that decides, for a whole fleet, which hosts stage which images.
//!
//! [`program`] starts it. `driver` owns the plan (`rollout::stage`) and the fleet's state; `session` carries its
//! orders to hosts and their reports to it; `api` answers operators; [`authority`] and [`enrolment`] say who may take
//! part. The other end is `parbake`, a crate of its own.
//!
//! What it deliberately doesn't do: touch the bytes of an image, trust one host about another without proof, or decide
//! inside the shell what the pure plan decides.

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
