//! Endpoints on loopback, through the door that agents and the coordinator use.

#[cfg(test)] // so that the lints know it for a test's
mod fleet;
mod handshake;
mod refusals;
mod streams;
