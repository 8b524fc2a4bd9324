//! The parbake agent: driver, store, tart.
pub mod apple_lz4;
