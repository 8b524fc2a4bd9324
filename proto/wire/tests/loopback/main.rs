//! Endpoints on loopback, through the door that agents and the coordinator use.

// said once more, so that the lints take helpers for tests too
#[cfg(test)]
mod fleet;
#[cfg(test)]
mod handshake;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod streams;
