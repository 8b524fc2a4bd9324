//! The recipes of blobs that the mirror knows, by the repositories beside whose images they stand and the blobs'
//! digests. They are in memory only: a client that pulls an image asks for its manifest first, and that brings the
//! image's recipe again.
//!
//! A recipe is the word of somebody who may push to its repository. Anybody may push a manifest that lists another
//! repository's blobs, so a recipe is good for those alone whom its own repository gives the blob.

use std::{collections::BTreeMap, sync::Arc};

use proto::{
    ContentRecipe, Digest, Layout, Recipe,
    image::{ContentKind, ContentSpec},
};

/// The most blobs whose recipes are known: those of four images of 2 TiB, or of a hundred of 60 GB. When there are
/// more, those of the repository with the most chunks are forgotten. Blobs under way keep theirs.
const MAX_BLOBS: usize = 1 << 14;
/// The most chunks of all of these blobs: 16 MiB of states.
pub(super) const MAX_CHUNKS: u64 = 1 << 19;

/// The recipes of blobs.
#[derive(Debug, Default)]
pub(super) struct Recipes {
    repositories: BTreeMap<String, OfRepository>,
}

/// The recipes that stand beside the images of one repository.
#[derive(Debug, Default)]
struct OfRepository {
    /// The digest of the whole recipe, and its part about the blob.
    blobs: BTreeMap<Digest, (Digest, Arc<ContentRecipe>)>,
    chunks: u64,
}

impl Recipes {
    /// Learns parts of a recipe, whose digest is `name` and which stands beside an image of this repository. Returns
    /// the blobs that it proves. It takes the place of another recipe of these blobs, which was found earlier in the
    /// same repository.
    pub(super) fn learn(
        &mut self,
        repository: &str,
        name: Digest,
        parts: impl IntoIterator<Item = Arc<ContentRecipe>>,
    ) -> Vec<Digest> {
        let mut learnt = Vec::new();
        for part in parts {
            let (digest, chunks) = (*part.digest(), chunks(&part));
            if chunks > MAX_CHUNKS {
                continue;
            }
            self.forget(repository, &digest);
            self.make_room(chunks);
            let of = self.repositories.entry(repository.to_owned()).or_default();
            of.chunks += chunks;
            of.blobs.insert(digest, (name, part));
            learnt.push(digest);
        }
        learnt
    }

    fn forget(&mut self, repository: &str, blob: &Digest) {
        if let Some(of) = self.repositories.get_mut(repository)
            && let Some((_, before)) = of.blobs.remove(blob)
        {
            of.chunks -= chunks(&before);
        }
    }

    /// Forgets recipes until those of one more blob fit. Who fills this with a repository of its own loses these first.
    fn make_room(&mut self, more: u64) {
        loop {
            let all = self.repositories.values();
            let (blobs, chunks) = all.fold((0, 0), |(blobs, chunks), of| {
                (blobs + of.blobs.len(), chunks + of.chunks)
            });
            if blobs < MAX_BLOBS && chunks + more <= MAX_CHUNKS {
                return;
            }
            let all = self.repositories.iter();
            let most = all.max_by_key(|(_, of)| (of.chunks, of.blobs.len()));
            let Some(most) = most.map(|(name, _)| name.clone()) else {
                return;
            };
            self.repositories.remove(&most);
        }
    }

    /// The recipe that this repository has of a blob, with the digest of the whole recipe.
    pub(super) fn of(
        &self,
        repository: &str,
        blob: &Digest,
    ) -> Option<(Digest, Arc<ContentRecipe>)> {
        self.repositories.get(repository)?.blobs.get(blob).cloned()
    }
}

/// The parts of a recipe that prove an image's blobs.
pub(super) fn parts(layout: &Layout, recipe: &Recipe) -> Vec<Arc<ContentRecipe>> {
    let contents = layout.contents();
    let parts = contents.iter().map(|spec| recipe.blob(&blob(spec)));
    parts.flatten().collect()
}

fn chunks(of: &ContentRecipe) -> u64 {
    of.geometry().chunks().into()
}

/// The digest of a content as registries have it.
fn blob(spec: &ContentSpec) -> Digest {
    match spec.kind {
        ContentKind::RawLayer { blob } => blob.digest,
        ContentKind::Blob => spec.digest,
    }
}

#[cfg(test)]
mod tests {
    use proto::{Geometry, recipe::Maker};

    use super::*;

    /// The recipe of a blob of this many chunks, which nobody reads.
    fn part(seed: u8, chunks: usize) -> Arc<ContentRecipe> {
        let content = vec![seed; chunks << 20];
        let geometry = Geometry::new(content.len() as u64).unwrap();
        let mut maker = Maker::new(Digest::of(&content), geometry);
        maker.take(&content).unwrap();
        Arc::new(maker.finish().unwrap())
    }

    #[test]
    fn a_repository_has_its_own_recipes_alone() {
        let mut recipes = Recipes::default();
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let part = part(1, 2);
        let blob = *part.digest();
        assert_eq!(recipes.learn("r.test/one", one, [part.clone()]), [blob]);
        assert_eq!(recipes.of("r.test/other", &blob), None);
        recipes.learn("r.test/other", other, [part.clone()]);
        assert_eq!(recipes.of("r.test/one", &blob).unwrap().0, one);
        assert_eq!(recipes.of("r.test/other", &blob).unwrap().0, other);
        // the same repository's next recipe counts
        recipes.learn("r.test/one", other, [part]);
        assert_eq!(recipes.of("r.test/one", &blob).unwrap().0, other);
        assert_eq!(recipes.repositories["r.test/one"].chunks, 2);
    }

    #[test]
    fn who_fills_the_room_is_forgotten_and_others_are_not() {
        let mut recipes = Recipes::default();
        let name = Digest::of(b"name");
        let part = part(1, 2);
        recipes.learn("r.test/honest", name, [part.clone()]);
        let full = OfRepository {
            blobs: BTreeMap::new(),
            chunks: MAX_CHUNKS - 2,
        };
        recipes.repositories.insert("r.test/filler".into(), full);
        recipes.learn("r.test/next", name, [part.clone()]);
        let left: Vec<_> = recipes.repositories.keys().cloned().collect();
        assert_eq!(left, ["r.test/honest", "r.test/next"]);
        assert!(recipes.of("r.test/honest", part.digest()).is_some());
    }
}
