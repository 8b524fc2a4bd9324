//! The Kubernetes side of the coordinator: what it reads from a cluster, what it writes there, and who may write.
//!
//! Nothing here decides whether a Pod may drain (that is `rollout`'s gate) or where bytes go (that is the driver's
//! plan): these modules carry facts in and decisions out.

pub mod crd;
mod follower;
mod index;
mod keeper;
pub mod lease;
pub(crate) mod metrics;
pub mod program;
pub mod state;
mod watch;
mod web;
mod write;
