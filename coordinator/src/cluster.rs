//! The Kubernetes side of the coordinator: what it reads from a cluster, what it writes there, and which replica may
//! write.
//!
//! Nothing here decides whether a Pod may drain, which is decided by `rollout`'s gate, or where bytes go, which is
//! decided by the driver's plan. These modules carry facts in and decisions out.

mod access;
mod clock;
pub mod crd;
mod follower;
mod index;
mod keeper;
mod leader_label;
pub mod lease;
pub(crate) mod metrics;
mod prepull_gate;
pub mod program;
mod review;
pub mod shared_secret;
mod term;
mod tokens;
mod trouble;
mod watch;
mod web;
mod webhook;
mod write;

/// The field manager that the API server records for the fields that the coordinator writes.
pub(crate) const MANAGER: &str = "parbake";
