//! The files of recipes that come from others, or are served to them: which of them are needed still.
//!
//! A file is needed while it is open, because its bytes come or are served, and while a stage goes by its recipe. A
//! recipe that is refused or gives way to another one is neither, and its files are removed.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
};

use proto::{Digest, Geometry, HostId, image};

use crate::{
    lock::lock,
    mirror::{blob::Blob, outside},
    store::{Store, recipes},
};

/// The files of recipes in tart's home.
#[derive(Debug)]
pub(super) struct RecipeFiles {
    home: PathBuf,
    /// The files that were opened. Locked while one is opened, and while others are removed.
    open: Mutex<Vec<(Digest, Weak<Blob>)>>,
}

impl RecipeFiles {
    pub(super) const fn new(home: PathBuf) -> Self {
        Self {
            home,
            open: Mutex::new(Vec::new()),
        }
    }

    /// tart's home.
    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    /// Opens the file of a recipe, or makes it. The file stays while what this returns is there. Blocks.
    ///
    /// A file that is open isn't opened a second time, as where a host makes a recipe while the same one comes from
    /// another host. Two blobs would write one journal, and the one that is whole last wouldn't find its files.
    ///
    /// # Errors
    /// When the directory can't be read or written.
    pub(super) fn open(&self, file: image::Blob, me: &HostId) -> io::Result<Arc<Blob>> {
        let geometry = Geometry::new(file.size).map_err(io::Error::other)?;
        let mut open = lock(&self.open);
        open.retain(|(_, blob)| blob.strong_count() > 0);
        let of_file = |(name, blob): &(Digest, Weak<Blob>)| {
            let blob = blob.upgrade().filter(|_| *name == file.digest);
            blob.filter(|blob| blob.geometry() == geometry)
        };
        if let Some(blob) = open.iter().find_map(of_file) {
            return Ok(blob);
        }
        let blob = outside::open(file.digest, geometry, &recipes::directory(&self.home), me)?;
        let blob = Arc::new(blob);
        open.push((file.digest, Arc::downgrade(&blob)));
        Ok(blob)
    }

    /// As [`open`](Self::open), for a recipe of this image. One that isn't here yet has to have room on the volume,
    /// above its floor.
    ///
    /// # Errors
    /// When the directory can't be read or written, or there is no room. The text names the directory.
    pub(super) fn open_above_floor(
        &self,
        file: image::Blob,
        of: &Digest,
        store: &Store,
    ) -> Result<Arc<Blob>, String> {
        let directory = recipes::directory(&self.home);
        let path = directory.join(file.digest.hex().to_string());
        let is_here = fs::metadata(path).is_ok_and(|found| found.len() == file.size);
        let room = match is_here {
            true => Ok(()),
            false => store.admit_recipe(of, file.size).map_err(io::Error::other),
        };
        let opened = room.and_then(|()| self.open(file, &store.host()));
        opened.map_err(|error| format!("{}: {error}", directory.display()))
    }

    /// Removes files of recipes that are needed no more. Blocks.
    ///
    /// # Errors
    /// When the directory can't be read, or a file not removed.
    pub(super) fn sweep(&self, store: &Store) -> io::Result<()> {
        let mut open = lock(&self.open);
        open.retain(|(_, blob)| blob.strong_count() > 0);
        let mut needed: BTreeSet<Digest> = open.iter().map(|(name, _)| *name).collect();
        needed.extend(store.recipes());
        recipes::remove_others(&self.home, &needed)
    }
}

#[cfg(test)]
mod tests {
    use proto::{ChunkIndex, Link, Source, State};

    use super::*;
    use crate::{
        platform::Space,
        store::{
            Options,
            tests::{begin, begin_by, noise, open, ours, recipe, sample_of},
        },
    };

    #[test]
    fn a_recipe_that_has_no_room_above_the_floor_isnt_begun_and_one_that_is_here_is_opened() {
        let none = |_: &Path| {
            Ok(Space {
                total_bytes: 1 << 30,
                free_bytes: 0,
            })
        };
        let home = tempfile::tempdir().unwrap();
        let options = Options {
            space: none,
            ..Options::default()
        };
        let store = Store::open(home.path(), options).unwrap();
        let sample = sample_of(1, &noise(9_000, 7), 500, None);
        let by = recipe(&sample);
        let files = RecipeFiles::new(home.path().into());
        let open = || files.open_above_floor(by.file, sample.layout.digest(), &store);
        let error = open().unwrap_err();
        assert!(error.contains("have to stay free"), "{error}");
        let directory = recipes::directory(home.path());
        assert!(!directory.exists(), "nothing is written");
        fs::create_dir(&directory).unwrap();
        let path = directory.join(by.file.digest.hex().to_string());
        fs::write(path, by.recipe.encode()).unwrap();
        drop(open().unwrap());
    }

    /// Two blobs of one file ended in an error for the one that was whole last, and all images stopped filling.
    #[test]
    fn a_recipe_that_is_made_while_it_comes_from_another_host_is_one_blob() {
        let home = tempfile::tempdir().unwrap();
        let files = RecipeFiles::new(home.path().into());
        let bytes = noise(9_000, 7);
        let file = image::Blob {
            digest: Digest::of(&bytes),
            size: 9_000,
        };
        let me: HostId = "mac-1".parse().unwrap();
        let [comes, made] = [(); 2].map(|()| files.open(file, &me).unwrap());
        let link = Link::forge(comes.geometry(), ChunkIndex(0), State::INITIAL, &bytes);
        let source = Source {
            sender: me.key(),
            maker: me.key(),
        };
        for blob in [made, comes] {
            let written = blob.write(ChunkIndex(0), &bytes, link, source, (&me, None));
            written.unwrap();
            assert!(blob.walk().unwrap().is_empty());
            assert!(blob.is_whole());
        }
        // nobody has it open any more: it is read from the disk
        assert!(files.open(file, &me).unwrap().is_whole());
    }

    #[test]
    fn files_of_a_recipe_stay_while_it_comes_or_a_stage_goes_by_it() {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home);
        let (me, sample) = (
            "mac-1".parse().unwrap(),
            sample_of(1, &noise(9_000, 7), 500, None),
        );
        let by = recipe(&sample);
        let files = RecipeFiles::new(home.path().into());
        let directory = recipes::directory(home.path());
        let there = || -> Vec<String> {
            let entries = fs::read_dir(&directory).unwrap().flatten();
            let mut names: Vec<_> = entries
                .filter_map(|entry| entry.file_name().into_string().ok())
                .filter(|name| name.starts_with(&by.file.digest.hex().to_string()))
                .collect();
            names.sort();
            names
        };
        // it comes, and is refused
        let comes = files.open(by.file, &me).unwrap();
        files.sweep(&store).unwrap();
        assert!(!there().is_empty());
        drop(comes);
        files.sweep(&store).unwrap();
        assert_eq!(there(), [] as [&str; 0]);
        // a recipe that is being made here has no name yet
        let making = directory.join("making");
        fs::write(&making, "half").unwrap();
        // a stage goes by it
        let (stage, _) = begin_by(&store, &sample, &by);
        let path = directory.join(by.file.digest.hex().to_string());
        fs::write(&path, by.recipe.encode()).unwrap();
        files.sweep(&store).unwrap();
        assert!(path.exists() && making.exists());
        // the image is staged anew without it
        let image = *stage.layout().digest();
        drop(stage);
        fs::remove_dir_all(ours(&home, &sample)).unwrap();
        begin(&store, &sample, &["ghcr.io/org/image:two"]);
        assert_eq!(store.stage(&image).unwrap().recipe(), None);
        files.sweep(&store).unwrap();
        assert!(!path.exists() && making.exists());
    }
}
