//! The origin: a client for OCI registries, for both programs.
//!
//! It fetches manifests and ranges of blobs, answers a registry's demands for credentials, and follows redirects
//! without passing the credentials on. Each call is one attempt. The caller decides whether and when to try again;
//! [`OriginError::is_retryable`], [`OriginError::retry_after`] and [`Backoff`] help with that.
//!
//! Everything that a registry sends is limited and checked: manifests against their digest, blobs against their size. A
//! blob's digest isn't checked here, because the caller that stores the bytes computes it anyway.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use futures_util::StreamExt as _;
//! use origin::{Client, Config, Credentials};
//!
//! let client = Client::new(Config::default())?;
//! let reference: proto::RegistryReference = "ghcr.io/cirruslabs/macos-runner:sonoma".parse()?;
//! let repository = client.repository(&reference, Credentials::Anonymous)?;
//! let manifest = repository.manifest(repository.version()).await?;
//! let layout = proto::Layout::parse(&manifest.bytes, &manifest.digest)?;
//! let config = layout.config();
//! let mut stream = repository.blob(&config.digest, 0, config.size).await?;
//! while let Some(piece) = stream.next().await {
//!     println!("{} bytes", piece?.len());
//! }
//! # Ok(())
//! # }
//! ```

mod auth;
mod backoff;
mod blob;
mod client;
mod config;
mod dial;
mod error;
mod location;
mod proxy;
pub mod recipe;
mod repository;
mod transport;

pub use auth::{Credentials, Grant};
pub use backoff::Backoff;
pub use blob::BlobStream;
pub use client::Client;
pub use config::{Config, roots_from_pem, system_roots};
pub use error::{ConfigError, OriginError};
pub use location::PlainHttp;
pub use proto::Secret;
pub use proto::image::MAX_MANIFEST_BYTES;
pub use proxy::{Proxies, ProxySettings};
pub use repository::{Manifest, Repository};
