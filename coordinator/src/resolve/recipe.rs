//! Looks for an image's recipe beside the image in its registry. An image is staged with or without a recipe: whatever
//! the registry answers, the look ends soon, and a failure is a line in the log.

use std::time::Duration;

use origin::{
    Repository,
    recipe::{FindRecipeError, find},
};
use proto::{Digest, image::Blob, image::Layout};
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::attempts::patiently;

/// The time within which a registry has to say whether an image has a recipe, including retries.
const RECIPE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why an image is staged without a recipe although it may have one.
#[derive(Debug, thiserror::Error)]
enum LookError {
    /// The registry can't be asked, or lists only recipes that can't be used.
    #[error(transparent)]
    Find(#[from] FindRecipeError),
    /// The registry took too long.
    #[error("the registry didn't say within {} s whether there is one", RECIPE_TIMEOUT.as_secs())]
    Timeout,
    /// Hosts couldn't tell the recipe's bytes from the image's own.
    #[error("its artifact names {0}, which is a content of the image")]
    Content(Digest),
}

/// The image's recipe, if one is found beside the image.
pub(super) async fn look(
    repository: &Repository,
    layout: &Layout,
    reference: &str,
) -> Option<Blob> {
    let found = ask(repository, layout).await;
    found.unwrap_or_else(|error| {
        warn!(
            image = %layout.digest(),
            reference,
            %error,
            next = "the image is staged without a recipe; staging it again looks again",
            "recipe can't be found"
        );
        None
    })
}

async fn ask(repository: &Repository, layout: &Layout) -> Result<Option<Blob>, LookError> {
    // an error of the registry may pass, and a list of unsound recipes stays
    let ask = || async {
        match find(repository, layout).await {
            Err(FindRecipeError::Origin(error)) => Err(error),
            other => Ok(other),
        }
    };
    let until = Instant::now() + RECIPE_TIMEOUT;
    let asked = timeout(RECIPE_TIMEOUT, patiently(until, ask)).await;
    let found = asked.map_err(|_| LookError::Timeout)?;
    let found = found.map_err(FindRecipeError::Origin)??;
    let Some(recipe) = found.map(|found| found.recipe) else {
        return Ok(None);
    };
    let contents = layout.contents();
    if contents.iter().any(|of| of.digest == recipe.digest) {
        return Err(LookError::Content(recipe.digest));
    }
    Ok(Some(recipe))
}
