//! A blob that lies outside of the mirror's cache, in a directory of its own: the bytes of a recipe.

use std::{fs, io, path::Path, sync::Arc};

use proto::{Digest, Geometry, HostId};

use super::{
    blob::{Blob, Common, Paths},
    taints::Taints,
};

/// The blob with this digest in a directory: whole, or with what an earlier process left of it. A whole blob without
/// its links begins anew. Blocks.
///
/// # Errors
/// When the directory can't be read or written.
pub(crate) fn open(
    digest: Digest,
    geometry: Geometry,
    directory: &Path,
    me: &HostId,
) -> io::Result<Blob> {
    fs::create_dir_all(directory)?;
    let common = Arc::new(Common {
        me: me.clone(),
        hosts: Arc::default(),
        taints: Taints::open(directory.join("tainted"))?,
    });
    let name = digest.hex().to_string();
    let paths = || Paths {
        arriving: directory.join(format!("{name}.part")),
        resting: directory.join(&name),
    };
    if paths().resting.exists() {
        let whole = Blob::resting(digest, geometry, paths(), &common);
        if whole.load_links()? {
            return Ok(whole);
        }
    }
    Blob::begin(digest, geometry, paths(), &common)
}

#[cfg(test)]
mod tests {
    use proto::{ChunkIndex, Link, Source, State};

    use super::*;

    #[test]
    fn it_is_there_again_after_a_restart_and_a_lost_file_begins_anew() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("recipes");
        let bytes = vec![7; 1_000];
        let (digest, me) = (Digest::of(&bytes), "mac-1".parse::<HostId>().unwrap());
        let geometry = Geometry::new(1_000).unwrap();
        let again = || open(digest, geometry, &directory, &me).unwrap();
        let blob = again();
        assert!(!blob.is_whole());
        let link = Link::forge(geometry, ChunkIndex(0), State::INITIAL, &bytes);
        let source = Source {
            sender: me.key(),
            maker: me.key(),
        };
        blob.write(ChunkIndex(0), &bytes, link, source, (&me, None))
            .unwrap();
        blob.walk().unwrap();
        assert!(blob.is_whole());
        let path = directory.join(digest.hex().to_string());
        assert_eq!(fs::read(&path).unwrap(), bytes);
        drop(blob);
        let whole = again();
        assert!(whole.is_whole());
        assert_eq!(whole.read(ChunkIndex(0)).unwrap().unwrap().bytes, bytes);
        drop(whole);
        fs::remove_file(path).unwrap();
        assert!(!again().is_whole());
    }
}
