//! The recipes of blobs that the mirror knows, by the blobs' digests. They are in memory only: a client that pulls an
//! image asks for its manifest first, and that brings the image's recipe again.

use std::{collections::BTreeMap, sync::Arc};

use proto::{
    ContentRecipe, Digest, Layout, Recipe,
    image::{ContentKind, ContentSpec},
};

/// The most blobs whose recipes are known: those of four images of 2 TiB, or of a hundred of 60 GB. When there are
/// more, all are forgotten. Blobs under way keep theirs.
const MAX_BLOBS: usize = 1 << 14;
/// The most chunks of all of these blobs: 16 MiB of states.
const MAX_CHUNKS: u64 = 1 << 19;

/// The recipes of blobs.
#[derive(Debug, Default)]
pub(super) struct Recipes {
    /// The digest of the whole recipe, and its part about the blob.
    blobs: BTreeMap<Digest, (Digest, Arc<ContentRecipe>)>,
    chunks: u64,
}

impl Recipes {
    /// Learns a recipe, whose digest is `name`. Returns the blobs that it proves. It takes the place of another recipe
    /// of these blobs, which was found earlier.
    pub(super) fn learn(
        &mut self,
        layout: &Layout,
        (name, recipe): (Digest, &Recipe),
    ) -> Vec<Digest> {
        let mut learnt = Vec::new();
        for spec in layout.contents() {
            let digest = blob(&spec);
            let Some(of) = recipe.blob(&digest) else {
                continue;
            };
            learnt.push(digest);
            let chunks = |of: &ContentRecipe| u64::from(of.geometry().chunks());
            if let Some((_, before)) = self.blobs.remove(&digest) {
                self.chunks -= chunks(&before);
            }
            if self.blobs.len() >= MAX_BLOBS || self.chunks + chunks(&of) > MAX_CHUNKS {
                (self.blobs, self.chunks) = (BTreeMap::new(), 0);
            }
            self.chunks += chunks(&of);
            self.blobs.insert(digest, (name, of));
        }
        learnt
    }

    /// The recipe of a blob, with the digest of the whole recipe.
    pub(super) fn of(&self, blob: &Digest) -> Option<(Digest, Arc<ContentRecipe>)> {
        self.blobs.get(blob).cloned()
    }
}

/// The digest of a content as registries have it.
fn blob(spec: &ContentSpec) -> Digest {
    match spec.kind {
        ContentKind::RawLayer { blob } => blob.digest,
        ContentKind::Blob => spec.digest,
    }
}
