//! What stands between parbake and a registry: the registry client, the mirror, odd registries, and third-party
//! programs (docker-registry as a registry, skopeo as a client).

mod docker_registry;
mod mirror;
mod odd;
mod origin;
mod recipe;
mod skopeo;
