//! Which hosts stage what and when, who may fetch from the registry, who are neighbours: every decision of the
//! coordinator, without I/O.
//!
//! The shell (the coordinator's driver, or the simulator) feeds [`stage::Event`]s and carries out [`stage::Action`]s.
//! Any event is legal in any state; time and the seed are arguments.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod stage;
