//! The source of a fetch's bytes, as an interface, so that tests can make one up.

use bytes::Bytes;
use origin::{BlobStream, OriginError};
use proto::{Digest, causes};

use crate::registries::{Access, Origin};

/// A part of a blob.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    /// A reference to the repository.
    pub(crate) reference: &'a str,
    pub(crate) blob: &'a Digest,
    /// The first byte that is wanted.
    pub(crate) from: u64,
    /// The byte behind the last wanted byte.
    pub(crate) end: u64,
    /// Bytes of the whole blob.
    pub(crate) size: u64,
}

/// Why a blob doesn't begin to come.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// This host's settings for the registry are unusable.
    Settings(String),
    /// The registry's answer, or why the registry can't be reached.
    Origin(OriginError),
}

/// A registry.
pub(crate) trait Source: Sync {
    type Pieces: Pieces;

    /// Opens a connection that reads the part.
    fn open(
        &self,
        part: &Part<'_>,
        access: &Access,
    ) -> impl Future<Output = Result<Self::Pieces, OpenError>> + Send;

    /// The blob, as errors name it.
    fn name(&self, part: &Part<'_>, access: &Access) -> String;
}

/// The bytes of a blob on one connection.
pub(crate) trait Pieces: Send {
    /// The next piece; `None` after the last.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, OriginError>> + Send;

    /// Whether the whole blob comes, from its beginning to its end, although a part was asked for. Bytes that came
    /// earlier come again, and are left out.
    fn come_from_beginning(&self) -> bool;

    /// The byte of the blob behind the last piece. A registry that gives no parts with an end goes on to the blob's
    /// end.
    fn end(&self) -> u64;

    /// Bytes that came off the network, including those that were left out.
    fn bytes_received(&self) -> u64;
}

impl Source for Origin {
    type Pieces = BlobStream;

    async fn open(&self, part: &Part<'_>, access: &Access) -> Result<BlobStream, OpenError> {
        let repository = self
            .repository(part.reference, access)
            .map_err(|error| OpenError::Settings(causes(&error)))?;
        let opened = repository.blob_part(part.blob, part.from..part.end, part.size);
        opened.await.map_err(OpenError::Origin)
    }

    fn name(&self, part: &Part<'_>, access: &Access) -> String {
        let Part {
            reference, blob, ..
        } = part;
        match self.repository(reference, access) {
            Ok(repository) => repository.what_blob(blob),
            Err(_) => format!("blob {blob} of {reference}"),
        }
    }
}

impl Pieces for BlobStream {
    async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        self.piece().await
    }

    fn come_from_beginning(&self) -> bool {
        self.comes_from_beginning()
    }

    fn end(&self) -> u64 {
        Self::end(self)
    }

    fn bytes_received(&self) -> u64 {
        Self::bytes_received(self)
    }
}
