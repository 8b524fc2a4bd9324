//! A generated image on its way into a registry.

use std::io;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use origin::{OriginError, Repository, Version};
use proto::{Digest, image::MANIFEST_TYPE};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use super::GeneratedImage;

/// Bytes that are read at a time.
const READ_BYTES: usize = 256 << 10;
/// Blobs that are pushed at a time.
const AT_ONCE: usize = 2;

impl GeneratedImage {
    /// Pushes the image over the distribution API: the blobs that the registry lacks, then the manifest under the version
    /// that the repository's reference names.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn push(&self, repository: &Repository) -> Result<(), OriginError> {
        stream::iter(&self.blobs)
            .map(|(digest, size)| self.push_blob(repository, *digest, *size))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        let version: &Version = repository.version();
        repository
            .push_manifest(version, MANIFEST_TYPE, self.manifest.clone())
            .await?;
        Ok(())
    }

    async fn push_blob(
        &self,
        repository: &Repository,
        digest: Digest,
        size: u64,
    ) -> Result<(), OriginError> {
        if repository.has_blob(&digest).await? {
            return Ok(());
        }
        let path = self.directory.join(digest.hex().to_string());
        let bytes = stream::once(async move {
            let file = File::open(path).await?;
            Ok::<_, io::Error>(ReaderStream::with_capacity(file, READ_BYTES))
        })
        .try_flatten();
        repository.push_blob(&digest, size, bytes).await
    }

    /// A blob's bytes, from the directory.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn blob(&self, digest: &Digest) -> io::Result<Bytes> {
        let bytes = std::fs::read(self.directory.join(digest.hex().to_string()))?;
        Ok(BytesMut::from(&bytes[..]).freeze())
    }
}
