//! A generated image on its way into a registry.

use std::{collections::BTreeMap, io, path::Path};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::HeaderValue;
use oci_client::{
    Client, Reference, RegistryOperation,
    errors::{OciDistributionError, Result},
};
use proto::{Digest, RegistryReference, image::MANIFEST_TYPE};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use crate::oci;

/// Bytes that are read at a time.
const READ_BYTES: usize = 256 << 10;
/// Blobs that are pushed at a time.
const AT_ONCE: usize = 2;

/// Pushes an image whose blobs lie in `directory`: the blobs that the registry lacks, then the manifest under the
/// reference's tag.
///
/// # Errors
/// When the registry refuses something, or a blob can't be read.
pub(super) async fn push(
    directory: &Path,
    blobs: &BTreeMap<Digest, u64>,
    manifest: Bytes,
    reference: &RegistryReference,
    credentials: &origin::Credentials,
) -> Result<()> {
    let reference = &oci::reference(reference);
    let client = oci::client();
    let auth = oci::auth(credentials);
    client
        .auth(reference, &auth, RegistryOperation::Push)
        .await?;
    stream::iter(blobs)
        .map(|(digest, size)| push_blob(&client, reference, directory, *digest, *size))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    let kind = HeaderValue::from_static(MANIFEST_TYPE);
    client.push_manifest_raw(reference, manifest, kind).await?;
    Ok(())
}

async fn push_blob(
    client: &Client,
    reference: &Reference,
    directory: &Path,
    digest: Digest,
    size: u64,
) -> Result<()> {
    let name = digest.to_string();
    if client.blob_exists(reference, &name).await? {
        return Ok(());
    }
    let path = directory.join(digest.hex().to_string());
    let bytes = stream::once(async move {
        let file = File::open(path).await?;
        Ok::<_, io::Error>(ReaderStream::with_capacity(file, READ_BYTES))
    })
    .try_flatten()
    .map_err(OciDistributionError::from);
    client
        .push_blob_stream(reference, bytes, &name, Some(size))
        .await?;
    Ok(())
}
