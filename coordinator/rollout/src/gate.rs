//! The gate: which Pods may drain now, and why the others may not.
//!
//! A Pod of a pre-pull that rolls gets the drain label only under these conditions. The Pod is alive, stale and idle.
//! Its node holds the pre-pull's image, verified, by a recent report. Fewer Pods are in flight than the cap allows.
//! Stale Pods that are Pending are deleted under the same cap. If the node loses the image before the Pod has drained,
//! the label is withdrawn.
//!
//! [`Gate::admit`] decides and takes a slot that expires. [`Gate::explain`] applies the same rule and takes no slot. In
//! [`Mode::Own`], the gate admits by itself and asks the shell to write. In [`Mode::Guard`], another controller asks
//! the gate and writes. A pre-pull never has two writers: the gate withdraws labels only from Pods of pre-pulls that
//! it owns.

pub mod action;
mod budget;
pub mod config;
mod decide;
pub mod event;
mod hosts;
mod prepull;
mod slots;
pub mod status;
#[cfg(test)]
mod tests;
mod writes;

pub use action::{Action, Withdrawal};
pub use budget::cap;
pub use config::Config;
pub use decide::Gate;
pub use event::{
    Before, Event, Fleet, Heartbeat, Mode, OnDeadline, Outcome, Phase, Place, Pod, PodId, PodName,
    PrePull, PrePullId, Takes, Template,
};
pub use status::{Admission, Lag, PodStatus, PoolStatus, Reason, Verdict};
