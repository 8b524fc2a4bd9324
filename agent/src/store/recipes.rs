//! The recipes of images on this host: where their files lie, and what the chunks of an image know of theirs.
//!
//! A recipe lies at `.parbake/recipes/<hex of its digest>`, where it is served to peers from. A stage's status names
//! its recipe, so that a restart goes on with it. A recipe that is lost or damaged costs its use, and nothing else.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use proto::{
    Digest, Layout,
    image::Blob,
    recipe::{ParseRecipeError, Recipe},
};

use super::{held::Held, place::Files, tree::ROOT};

/// The directory of recipes, in our directory in tart's home.
const RECIPES: &str = "recipes";

/// A recipe by its name.
#[derive(Clone, Debug)]
pub(crate) struct NamedRecipe {
    /// The recipe's bytes. Their digest is its name.
    pub(crate) file: Blob,
    pub(crate) recipe: Recipe,
}

/// Why a recipe can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadRecipeError {
    #[error("reading recipe {name}: {error}")]
    Io { name: Digest, error: io::Error },
    #[error("recipe {name} isn't what its digest says: its bytes have the digest {found}")]
    Digest { name: Digest, found: Digest },
    #[error("recipe {name} can't be used: {error}")]
    Parse {
        name: Digest,
        error: ParseRecipeError,
    },
}

/// The directory of all recipes below tart's home.
pub(crate) fn directory(home: &Path) -> PathBuf {
    home.join(ROOT).join(RECIPES)
}

/// Reads the recipe with this digest. It has to be of this image.
///
/// # Errors
/// When it isn't here, its bytes changed, or it is no recipe of the image.
pub(crate) fn read(home: &Path, name: &Digest, layout: &Layout) -> Result<Recipe, ReadRecipeError> {
    let path = directory(home).join(name.hex().to_string());
    let most = Recipe::max_bytes(layout);
    let mut bytes = Vec::new();
    File::open(&path)
        // a byte more than allowed shows that it is too long
        .and_then(|file| file.take(most + 1).read_to_end(&mut bytes))
        .map_err(|error| ReadRecipeError::Io { name: *name, error })?;
    let found = Digest::of(&bytes);
    if found != *name {
        return Err(ReadRecipeError::Digest { name: *name, found });
    }
    Recipe::parse(&bytes, layout).map_err(|error| ReadRecipeError::Parse { name: *name, error })
}

/// Removes every file of a recipe that isn't among these.
///
/// # Errors
/// When the directory can't be read, or a file not removed.
pub(crate) fn keep_only(home: &Path, names: &BTreeSet<Digest>) -> io::Result<()> {
    let directory = directory(home);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        // files on their way have more behind the name of the recipe
        let stem = name.to_str().and_then(|name| name.split('.').next());
        let of = stem.and_then(|stem| format!("sha256:{stem}").parse::<Digest>().ok());
        if of.is_none_or(|of| !names.contains(&of)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes the contents take only the links of this recipe from now on, except those in doubt. A content with a held link
/// that contradicts the recipe goes on without the recipe.
pub(super) fn take<F: Files>(
    held: &Held<F>,
    name: Digest,
    recipe: &Recipe,
    in_doubt: &BTreeSet<Digest>,
) {
    for at in 0..held.len() {
        let content = held.digest(at);
        if in_doubt.contains(&content) {
            continue;
        }
        let Some(of) = recipe.content(&content) else {
            continue;
        };
        if let Err(error) = held.chunks(at).take_recipe(name, of.clone()) {
            tracing::warn!(%content, recipe = %name, %error, "a recipe isn't used for a content");
        }
    }
}

/// Takes the recipe by which an earlier process staged the image, if it is still there.
pub(super) fn go_on_with<F: Files>(held: &Held<F>, file: Blob, home: &Path, layout: &Layout) {
    match read(home, &file.digest, layout) {
        Ok(recipe) => take(held, file.digest, &recipe, &BTreeSet::new()),
        Err(error) => {
            tracing::warn!(image = %layout.digest(), %error, "an image goes on without its recipe");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_recipes_are_kept() {
        let home = tempfile::tempdir().unwrap();
        let (kept, other) = (Digest::of(b"kept"), Digest::of(b"other"));
        keep_only(home.path(), &BTreeSet::new()).unwrap();
        let directory = directory(home.path());
        fs::create_dir_all(&directory).unwrap();
        for name in [
            kept.hex().to_string(),
            format!("{}.part", kept.hex()),
            other.hex().to_string(),
            format!("{}.part.links", other.hex()),
            "stray".into(),
        ] {
            fs::write(directory.join(name), b"x").unwrap();
        }
        keep_only(home.path(), &BTreeSet::from([kept])).unwrap();
        let left = fs::read_dir(&directory).unwrap();
        let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let hex = kept.hex().to_string();
        let wanted = BTreeSet::from([hex.clone(), format!("{hex}.part")]);
        assert_eq!(left.collect::<BTreeSet<_>>(), wanted);
    }

    #[test]
    fn a_recipe_that_is_missing_changed_or_nonsense_is_named() {
        let home = tempfile::tempdir().unwrap();
        let layout = crate::store::tests::sample_of(1, b"raw", 3, None).layout;
        let name = Digest::of(b"nonsense");
        let missing = read(home.path(), &name, &layout).unwrap_err();
        assert!(matches!(missing, ReadRecipeError::Io { .. }), "{missing}");
        fs::create_dir_all(directory(home.path())).unwrap();
        let path = directory(home.path()).join(name.hex().to_string());
        fs::write(&path, b"changed").unwrap();
        let changed = read(home.path(), &name, &layout).unwrap_err();
        assert!(
            matches!(changed, ReadRecipeError::Digest { .. }),
            "{changed}"
        );
        fs::write(&path, b"nonsense").unwrap();
        let nonsense = read(home.path(), &name, &layout).unwrap_err();
        assert!(
            matches!(nonsense, ReadRecipeError::Parse { .. }),
            "{nonsense}"
        );
    }
}
