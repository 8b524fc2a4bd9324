//! The parbake agent: driver, store, tart.
pub mod apple_lz4;
pub mod platform;
pub mod store;
pub mod tart;
