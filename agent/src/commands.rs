//! The commands that need no coordinator.

mod answer;
pub(crate) mod clean;
pub(crate) mod stage;
pub(crate) mod status;
pub(crate) mod verify;
