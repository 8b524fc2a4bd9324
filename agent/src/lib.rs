//! The parbake agent: puts images into a Mac's tart cache before they are needed, and shares their chunks with the
//! fleet.
//!
//! [`program`] runs the command that was typed; [`config`] has the settings. `node` wires the running agent's parts
//! together: `driver` owns all state, `reconcile` says what images need next, `transfer` and `fetch` move bytes.
//! [`store`] is the disk. `tart` has tart's names, its places on disk, and its program. [`mirror`] is a registry for
//! this host's own clients. `platform` has the differences between macOS and Linux.

mod admin;
pub mod cli;
mod commands;
pub mod config;
mod driver;
mod enrol;
mod fetch;
mod golden;
mod identity;
mod install;
mod log_file;
mod metrics;
pub mod mirror;
mod node;
mod notary;
mod peer;
mod platform;
pub mod program;
mod purgeable;
pub mod reconcile;
mod registries;
mod retention;
mod session;
mod shelf;
pub mod store;
mod suspects;
mod tart;
mod transfer;
mod zero;

use wire::lock;
