//! Where a registry keeps blobs and manifests: a directory or memory; manifests always in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write as _},
    mem,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use proto::Digest;
use sha2::{Digest as _, Sha256};

use super::lock::lock;

/// A manifest and its type.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
}

/// A blob that can be read.
#[derive(Clone, Debug)]
pub(super) enum Blob {
    Memory(Bytes),
    File { file: Arc<File>, size: u64 },
}

impl Blob {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }

    /// Some bytes, all inside the blob.
    pub(super) fn read(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => {
                let from = usize::try_from(offset).map_err(io::Error::other)?;
                Ok(bytes.slice(from..from + length))
            }
            Self::File { file, .. } => {
                let mut buffer = vec![0; length];
                file.read_exact_at(&mut buffer, offset)?;
                Ok(buffer.into())
            }
        }
    }
}

/// A blob that is being pushed.
#[derive(Debug)]
pub(super) struct Upload {
    hash: Sha256,
    size: u64,
    to: Sink,
}

#[derive(Debug)]
enum Sink {
    Memory(Vec<u8>),
    File(tempfile::NamedTempFile),
}

impl Upload {
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        match &mut self.to {
            Sink::Memory(all) => {
                all.extend_from_slice(bytes);
                Ok(())
            }
            Sink::File(file) => file.write_all(bytes),
        }
    }

    pub(super) const fn size(&self) -> u64 {
        self.size
    }
}

#[derive(Debug)]
pub(super) struct Store {
    /// `<64 hex digits>` for each blob, and uploads under other names.
    directory: Option<PathBuf>,
    /// Other people's directories with blobs, which are only read.
    borrowed: Mutex<Vec<PathBuf>>,
    blobs: Mutex<BTreeMap<Digest, Bytes>>,
    manifests: Mutex<BTreeMap<(String, String), Manifest>>,
    uploads: Mutex<BTreeMap<u64, Upload>>,
    started: Mutex<u64>,
}

impl Store {
    pub(super) fn new(directory: Option<PathBuf>) -> io::Result<Self> {
        if let Some(directory) = &directory {
            fs::create_dir_all(directory)?;
        }
        Ok(Self {
            directory,
            borrowed: Mutex::default(),
            blobs: Mutex::default(),
            manifests: Mutex::default(),
            uploads: Mutex::default(),
            started: Mutex::default(),
        })
    }

    pub(super) fn manifest(&self, name: &str, version: &str) -> Option<Manifest> {
        let key = (name.to_owned(), version.to_owned());
        lock(&self.manifests).get(&key).cloned()
    }

    pub(super) fn put_manifest(&self, name: &str, version: &str, media_type: &str, bytes: Bytes) {
        let manifest = Manifest {
            media_type: media_type.to_owned(),
            bytes,
        };
        let key = (name.to_owned(), version.to_owned());
        lock(&self.manifests).insert(key, manifest);
    }

    pub(super) fn tags(&self, name: &str) -> Vec<String> {
        lock(&self.manifests)
            .keys()
            .filter(|(of, version)| of == name && !version.contains(':'))
            .map(|(_, version)| version.clone())
            .collect()
    }

    /// The repositories that have manifests.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let manifests = lock(&self.manifests);
        manifests.keys().map(|(name, _)| name.clone()).collect()
    }

    /// Descriptors of the repository's manifests whose subject has this digest.
    pub(super) fn referrers(&self, name: &str, digest: &str) -> Vec<serde_json::Value> {
        let manifests = lock(&self.manifests);
        let own = manifests
            .iter()
            .filter(|((of, version), _)| of == name && version.contains(':'));
        let describe = |((_, version), manifest): (&(String, String), &Manifest)| {
            let json: serde_json::Value = serde_json::from_slice(&manifest.bytes).ok()?;
            (json["subject"]["digest"] == digest).then(|| {
                serde_json::json!({
                    "mediaType": manifest.media_type,
                    "digest": version,
                    "size": manifest.bytes.len(),
                    "artifactType": json["artifactType"],
                })
            })
        };
        own.filter_map(describe).collect()
    }

    pub(super) fn also_look_in(&self, directory: &Path) {
        lock(&self.borrowed).push(directory.to_owned());
    }

    pub(super) fn blob(&self, digest: &Digest) -> io::Result<Option<Blob>> {
        if let Some(bytes) = lock(&self.blobs).get(digest) {
            return Ok(Some(Blob::Memory(bytes.clone())));
        }
        let borrowed = lock(&self.borrowed).clone();
        for directory in self.directory.iter().chain(&borrowed) {
            match File::open(place(directory, digest)) {
                Ok(file) => {
                    return Ok(Some(Blob::File {
                        size: file.metadata()?.len(),
                        file: Arc::new(file),
                    }));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    pub(super) fn put_blob(&self, digest: Digest, bytes: Bytes) -> io::Result<()> {
        let Some(directory) = &self.directory else {
            lock(&self.blobs).insert(digest, bytes);
            return Ok(());
        };
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&bytes)?;
        file.persist(place(directory, &digest))?;
        Ok(())
    }

    pub(super) fn remove_blob(&self, digest: &Digest) -> io::Result<bool> {
        let Some(directory) = &self.directory else {
            return Ok(lock(&self.blobs).remove(digest).is_some());
        };
        match fs::remove_file(place(directory, digest)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn blobs(&self) -> io::Result<BTreeMap<Digest, u64>> {
        let Some(directory) = &self.directory else {
            return Ok(lock(&self.blobs)
                .iter()
                .map(|(digest, bytes)| (*digest, bytes.len() as u64))
                .collect());
        };
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if let Some(digest) = entry
                .file_name()
                .to_str()
                .and_then(|name| format!("sha256:{name}").parse().ok())
            {
                all.insert(digest, entry.metadata()?.len());
            }
        }
        Ok(all)
    }

    pub(super) fn start_upload(&self) -> io::Result<u64> {
        let to = match &self.directory {
            None => Sink::Memory(Vec::new()),
            Some(directory) => Sink::File(tempfile::NamedTempFile::new_in(directory)?),
        };
        let upload = Upload {
            hash: Sha256::new(),
            size: 0,
            to,
        };
        let id = {
            let mut started = lock(&self.started);
            *started += 1;
            *started
        };
        lock(&self.uploads).insert(id, upload);
        Ok(id)
    }

    /// Takes an upload out, to write to it; nobody else sees it until it is put back.
    pub(super) fn take_upload(&self, id: u64) -> Option<Upload> {
        lock(&self.uploads).remove(&id)
    }

    pub(super) fn put_back(&self, id: u64, upload: Upload) {
        lock(&self.uploads).insert(id, upload);
    }

    /// Makes a blob of an upload, if its bytes have this digest; otherwise they are gone.
    pub(super) fn finish_upload(&self, mut upload: Upload, digest: Digest) -> io::Result<bool> {
        let hash: [u8; 32] = mem::take(&mut upload.hash).finalize().into();
        if Digest::from_bytes(hash) != digest {
            return Ok(false);
        }
        match (upload.to, &self.directory) {
            (Sink::File(file), Some(directory)) => {
                file.persist(place(directory, &digest))?;
            }
            (Sink::Memory(bytes), _) => {
                lock(&self.blobs).insert(digest, bytes.into());
            }
            (Sink::File(_), None) => {
                return Err(io::Error::other("an upload in a file, but no directory"));
            }
        }
        Ok(true)
    }
}

fn place(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join(digest.hex().to_string())
}
