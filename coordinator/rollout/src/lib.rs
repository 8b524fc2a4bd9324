//! Which hosts stage what and when, who may fetch from the registry, who are neighbours, and which Pods may drain:
//! every decision of the coordinator, without I/O.
//!
//! [`names`] is who wants what, [`stage`] plans what moves, [`presence`] remembers what is where, [`gate`] lets Pods
//! drain. The shell (the coordinator's drivers, or the simulator) feeds events and carries out actions. Any event is
//! legal in any state; time and the seed are arguments.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod gate;
pub mod names;
pub mod presence;
pub mod stage;
