//! tart: its references, its paths on disk, and running it.

pub(crate) mod cache;
mod operation;

pub(crate) use operation::{Tart, TartError};
pub(crate) use proto::reference::{ParseReferenceError, Reference, Version};
