//! The gate: which Pods may drain now, and why the others may not.
//!
//! A Pod of a pool that rolls gets the drain label only if it is alive, stale and idle, its node holds *its pool's*
//! image, verified and fresh, and fewer Pods are in flight than the cap allows. Pending stale Pods are reaped under the
//! same budget. Where presence is lost before the Pod drained, the label is withdrawn.
//!
//! [`Gate::admit`] decides and takes a slot that expires; [`Gate::explain`] is the same rule without the slot. In
//! [`Mode::Own`] the gate admits by itself and asks the shell to write; in [`Mode::Guard`] another controller writes
//! and asks. There is never a second writer: what isn't owned is never withdrawn either.

pub mod action;
pub mod config;
mod decide;
pub mod event;
mod hosts;
mod pool;
mod slots;
pub mod status;
#[cfg(test)]
mod tests;
mod writes;

pub use action::{Action, Withdrawal};
pub use config::Config;
pub use decide::{Gate, cap};
pub use event::{
    Before, Event, Heartbeat, Mode, OnDeadline, Outcome, Phase, Place, Pod, PodId, PodName, Pool,
    PoolId, Template,
};
pub use status::{Admission, Lag, PodStatus, PoolStatus, Reason, Verdict};
