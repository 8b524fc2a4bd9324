//! tart: its names, its places on disk, and running it.

pub mod cache;
mod operation;

pub use operation::{
    Operation, ParseListError, Tart, TartError, Vm, VmDetails, parse_get, parse_list,
};
pub use proto::reference::{ParseReferenceError, Reference, Version};
