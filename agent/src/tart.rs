//! tart: its names, its places on disk, and running it.

pub mod cache;
mod reference;

pub use reference::{ParseReferenceError, Reference, Version};
