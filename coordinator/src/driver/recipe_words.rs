//! What the log says of recipes: which can't be had, and which are doubted.

use proto::{Digest, HostId, recipe::Doubt};
use rollout::stage::{RecipeLoss, event::Fault};
use tracing::{debug, info, warn};

/// An image goes on without its recipe. `said` is what a holder of the recipe's lease found wrong.
pub(super) fn lost(image: Digest, recipe: Digest, cause: RecipeLoss, said: Option<&str>) {
    let why = match cause {
        RecipeLoss::Faulty(Fault::Bad) => "its bytes in the registry aren't what its digest says",
        RecipeLoss::Faulty(Fault::Missing) => "the registry that hosts ask doesn't have it",
        RecipeLoss::Faulty(Fault::Refused) => "the registry refuses it to hosts",
        RecipeLoss::Faulty(Fault::Unusable | Fault::CutShort) => {
            "the registry gives nothing of which it can be made"
        }
        RecipeLoss::Faulty(Fault::Unavailable) => "the registry gives other contents and not this",
        RecipeLoss::Size => "another wanted image gives the same bytes another size",
    };
    warn!(
        %image,
        %recipe,
        why,
        said = said.unwrap_or_default(),
        next = "the image is staged without it; make and push it again: parbake recipe --push",
        "recipe can't be had"
    );
}

/// What became of a host's word that a recipe doesn't fit the registry's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It is new: the plan decides whether it is enough.
    News,
    /// It was known, or the recipe isn't the image's any more.
    Known,
    /// The host doesn't have the lease of that content.
    NotLeased,
    /// The image isn't wanted, or has no such content or chunk.
    Nonsense,
}

/// A host says that a recipe doesn't fit the registry's bytes.
pub(super) fn doubted(host: &HostId, doubt: &Doubt, heard: Heard) {
    let Doubt {
        image,
        recipe,
        content,
        chunk,
    } = doubt;
    if heard != Heard::News {
        debug!(%host, %image, %recipe, %content, ?heard, "word about a recipe changes nothing");
        return;
    }
    info!(
        %host,
        %image,
        %recipe,
        %content,
        chunk = chunk.0,
        "a host says that a recipe doesn't fit the registry's bytes of a content; unless nobody else can, another host \
         reads them before it is believed"
    );
}

/// Enough hosts say so: the recipe isn't used for the content any more.
pub(super) fn left(doubt: &Doubt) {
    let Doubt {
        image,
        recipe,
        content,
        chunk,
    } = doubt;
    warn!(
        %image,
        %recipe,
        %content,
        chunk = chunk.0,
        next = "check it: parbake recipe IMAGE --verify",
        "recipe doesn't fit the registry's bytes of a content from this chunk on, so one of the two is false; the content \
         is staged without the recipe"
    );
}
