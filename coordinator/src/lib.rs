//! The coordinator: the program that decides, for a whole fleet, which hosts stage which images.

pub mod authority;
pub mod cli;
pub mod config;
mod durable;
pub mod enrolment;
mod random;
pub mod secret;
