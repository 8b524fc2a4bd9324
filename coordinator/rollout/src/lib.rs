//! Every decision of the coordinator, without I/O: which hosts stage what and when, who may fetch from the registry,
//! who are neighbours, and which Pods may drain.
//!
//! [`names`] keeps who wants what, [`stage`] plans what moves, [`presence`] remembers what is where, and [`gate`] lets
//! Pods drain. [`places`] lets hosts be worked on in racks without a cluster. [`prediction`] says what a staging will
//! move, [`recipes`] who makes the recipes that registries lack.
//! The shell (the coordinator's drivers, or the simulator) feeds events and carries out actions. Any event is legal in
//! any state. Time and the seed are arguments.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod gate;
pub mod names;
pub mod places;
pub mod prediction;
pub mod presence;
pub mod recipes;
pub mod stage;
