//! What tests and the demo run the real programs against: a registry that counts bytes and misbehaves on demand, a host
//! of the fleet that does what a test says, and images that look like tart's.
//!
//! Everything here is on loopback, and gone when its handle is dropped.

pub mod api_server;
pub mod cluster;
pub mod demo;
pub mod docker_registry;
pub mod image;
pub mod impostor;
mod interrupt;
pub mod oci;
pub mod prometheus;
pub mod proxy;
pub mod registry;
pub mod rig;
pub mod runners;
pub mod site;
pub mod stand_in;
pub mod tart_client;
pub mod tart_home;
pub mod tart_script;
pub mod world;
