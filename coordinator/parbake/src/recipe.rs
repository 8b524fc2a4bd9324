//! `parbake recipe`: makes the recipe of an image in a release's pipeline, keeps it in a file, pushes it beside the
//! image, and checks one against the image's bytes. It needs a registry, or tart's cache, and no coordinator.
//!
//! What a recipe is stands in [`proto::recipe`], how one is found in [`origin::recipe`].

mod making;
mod patience;
mod progress;
mod publish;
mod registry;
mod tart;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context as _;
use clap::ArgGroup;
use origin::recipe::{FetchRecipeError, FindRecipeError, fetch, find};
use proto::{
    Digest, Layout,
    figure::{Bytes, Span},
    recipe::{ParseRecipeError, Recipe},
};
use serde::Serialize;
use tokio::task::spawn_blocking;

use self::{
    making::{Source, make},
    patience::patiently,
    progress::Progress,
    registry::Registry,
    tart::Installed,
};
use crate::{
    ended::Outcome,
    say::{print, tell},
};

/// What was typed after `parbake recipe`.
#[derive(clap::Args, Clone, Debug)]
#[command(group(ArgGroup::new("what").args(["out", "push", "verify"]).required(true).multiple(true)))]
pub struct Options {
    /// The image, as in ghcr.io/org/image:tag or …@sha256:….
    image: String,
    /// Write the recipe to this file. [default: none, so that no file is written]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Push the recipe into the registry, beside the image.
    #[arg(long)]
    push: bool,
    /// Compare the recipe in FILE with the registry's bytes. Exit status 1 when it is false. [default: the recipe
    /// beside the image]
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    verify: Option<Option<PathBuf>>,
    /// Read the image from tart's cache instead of the registry. DIR is tart's home [default: $TART_HOME, or ~/.tart].
    /// Such a recipe lacks what only the registry's blobs tell: the places from which a fetch can go on, and what
    /// proves a blob to mirrors.
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with = "verify")]
    tart_home: Option<Option<PathBuf>>,
    /// How many contents are read at a time.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    streams: u16,
    #[command(flatten)]
    reach: registry::Reach,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// An image whose manifest was read.
struct Image {
    layout: Layout,
    manifest_bytes: u64,
    source: Source,
}

/// A recipe that somebody made.
enum Claim {
    Recipe {
        recipe: Box<Recipe>,
        from: String,
    },
    /// There is none, or it isn't the recipe of the image.
    No(String),
}

/// The answer.
#[derive(Debug, Default, Serialize)]
struct Answer {
    image: String,
    /// The digest of the image's manifest.
    digest: String,
    contents: usize,
    chunks: u64,
    /// The size of the recipe that was made, and its digest; nothing when none was made.
    recipe_bytes: Option<u64>,
    recipe_digest: Option<String>,
    read_bytes: u64,
    seconds: f64,
    /// The file that was written.
    out: Option<PathBuf>,
    /// The digest of the artifact's manifest.
    pushed: Option<String>,
    was_there: Option<bool>,
    /// Where others find it: `referrers` or `tag`.
    found_by: Option<&'static str>,
    /// Whether the recipe that was compared is true.
    verified: Option<bool>,
    /// Why it isn't.
    why: Option<String>,
}

/// Carries out the command.
///
/// # Errors
/// The image can't be read, or the recipe not written or pushed.
pub(crate) async fn run(options: Options) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let reference: proto::Reference = options
        .image
        .parse()
        .with_context(|| format!("{:?} isn't an image's reference", options.image))?;
    let registry = {
        let (reference, reach) = (reference.clone(), options.reach.clone());
        // certificates and credentials are read from disk, and by other programs
        let reached = spawn_blocking(move || Registry::new(&reference, &reach));
        reached.await.context("reaching the registry")??
    };
    let image = open(&reference, &registry, options.tart_home.as_ref()).await?;
    let layout = &image.layout;
    let contents = layout.contents();
    let mut answer = Answer {
        image: options.image.clone(),
        digest: layout.digest().to_string(),
        contents: contents.len(),
        chunks: contents
            .iter()
            .map(|content| u64::from(content.geometry.chunks()))
            .sum(),
        ..Answer::default()
    };
    // what is known to be false is told before everything is read
    let file = options.verify.as_ref().map(Option::as_deref);
    let mut claim = match file {
        Some(Some(path)) => Some(read(path, layout)?),
        Some(None) if !options.push => Some(beside(&registry, layout).await?),
        _ => None,
    };
    let alone = options.out.is_none() && !options.push;
    if !(alone && matches!(claim, Some(Claim::No(_)))) {
        let mut progress = Progress::new(image.source.bytes(layout));
        let recipe = make(&image.source, layout, options.streams.into(), &mut progress).await?;
        answer.read_bytes = progress.read_bytes();
        let bytes = recipe.encode();
        answer.recipe_bytes = Some(bytes.len() as u64);
        answer.recipe_digest = Some(Digest::of(&bytes).to_string());
        if let Some(path) = &options.out {
            durable::write(path, &bytes, durable::PUBLIC).with_context(|| {
                format!("writing {}; choose another file by --out", path.display())
            })?;
            answer.out = Some(path.clone());
        }
        if options.push {
            let size = image.manifest_bytes;
            let pushed = publish::push(&registry, layout.digest(), size, bytes).await?;
            answer.pushed = Some(pushed.artifact.to_string());
            answer.was_there = Some(pushed.was_there);
            answer.found_by = Some(pushed.listing.as_str());
        }
        if file.is_some() && claim.is_none() {
            claim = Some(beside(&registry, layout).await?);
        }
        if let Some(claim) = &claim {
            answer.why = falsehood(claim, &recipe);
        }
    } else if let Some(Claim::No(why)) = &claim {
        answer.why = Some(why.clone());
    }
    answer.verified = claim.map(|_| answer.why.is_none());
    answer.seconds = began.elapsed().as_secs_f64();
    if let Some(why) = &answer.why {
        tell(&format!("{why}\n"));
    }
    print(options.json, &answer, || text(&answer))?;
    Ok(match answer.verified {
        Some(false) => Outcome::No,
        _ => Outcome::Yes,
    })
}

/// Reads the image's manifest, and says where its bytes come from.
async fn open(
    reference: &proto::Reference,
    registry: &Registry,
    tart_home: Option<&Option<PathBuf>>,
) -> anyhow::Result<Image> {
    let repository = &registry.repository;
    let Some(home) = tart_home else {
        let version = repository.version();
        let manifest = patiently(async || repository.manifest(version).await).await?;
        return Ok(Image {
            layout: Layout::parse(&manifest.bytes, &manifest.digest)?,
            manifest_bytes: manifest.bytes.len() as u64,
            source: Source::Registry(repository.clone()),
        });
    };
    let installed = Installed::find(home.as_deref(), reference)?;
    let digest = *installed.digest();
    let manifest = match installed.manifest() {
        Some(manifest) => manifest,
        None => {
            let version = digest.into();
            let manifest = patiently(async || repository.manifest(&version).await).await;
            let manifest = manifest.context(
                "tart kept no copy of the manifest with its digest, and the registry doesn't give it",
            )?;
            manifest.bytes.to_vec()
        }
    };
    let layout = Layout::parse(&manifest, &digest)?;
    Installed::has_all(&layout)?;
    Ok(Image {
        layout,
        manifest_bytes: manifest.len() as u64,
        source: Source::Tart(installed),
    })
}

/// The recipe in a file.
fn read(path: &Path, layout: &Layout) -> anyhow::Result<Claim> {
    let from = path.display().to_string();
    let reading = || format!("reading {from}");
    // not read into memory before its size is known to be a recipe's
    let bytes = fs::metadata(path).with_context(reading)?.len();
    let most = Recipe::max_bytes(layout);
    if bytes > most {
        let error = ParseRecipeError::TooLarge { bytes, most };
        return Ok(Claim::No(format!("{from}: {error}")));
    }
    let bytes = fs::read(path).with_context(reading)?;
    Ok(match Recipe::parse(&bytes, layout) {
        Ok(recipe) => Claim::Recipe {
            recipe: Box::new(recipe),
            from,
        },
        Err(error) => Claim::No(format!("{from}: {error}")),
    })
}

/// The recipe beside the image.
async fn beside(registry: &Registry, layout: &Layout) -> anyhow::Result<Claim> {
    let repository = &registry.repository;
    let found = match patiently(async || find(repository, layout).await).await {
        Ok(Some(found)) => found,
        Ok(None) => {
            let image = layout.digest();
            return Ok(Claim::No(format!(
                "no recipe stands beside image {image} in {}; push one with --push",
                repository.name()
            )));
        }
        Err(error @ FindRecipeError::Unsound { .. }) => return Ok(Claim::No(error.to_string())),
        Err(FindRecipeError::Origin(error)) => return Err(error.into()),
    };
    let from = format!("recipe {} in {}", found.artifact, repository.name());
    if found.others > 0 {
        let others = found.others;
        tell(&format!(
            "{others} other recipes stand beside the image; {from} is the first\n"
        ));
    }
    match patiently(async || fetch(repository, layout, &found).await).await {
        Ok(recipe) => Ok(Claim::Recipe {
            recipe: Box::new(recipe),
            from,
        }),
        Err(FetchRecipeError::Parse(error)) => Ok(Claim::No(format!("{from}: {error}"))),
        Err(FetchRecipeError::Origin(error)) => Err(error.into()),
    }
}

/// What is false in a recipe, by one that was made of the image's bytes.
fn falsehood(claim: &Claim, true_one: &Recipe) -> Option<String> {
    match claim {
        Claim::No(why) => Some(why.clone()),
        Claim::Recipe { recipe, from } => {
            let difference = recipe.first_difference(true_one)?;
            Some(format!(
                "{from} is false: {difference} isn't that of the image's bytes"
            ))
        }
    }
}

fn text(answer: &Answer) -> String {
    let Answer {
        image,
        digest,
        contents,
        chunks,
        ..
    } = answer;
    let mut text = format!("{image} ({digest}): {contents} contents, {chunks} chunks");
    if let Some(bytes) = answer.recipe_bytes {
        let seconds = Span(std::time::Duration::from_secs_f64(answer.seconds));
        let read = Bytes(answer.read_bytes);
        text += &format!("; recipe of {} made of {read} in {seconds}", Bytes(bytes));
    }
    if let Some(path) = &answer.out {
        text += &format!("; written to {}", path.display());
    }
    if let (Some(pushed), Some(found_by)) = (&answer.pushed, answer.found_by) {
        let verb = match answer.was_there {
            Some(true) => "was there as",
            _ => "pushed as",
        };
        text += &format!("; {verb} {pushed}, found by {found_by}");
    }
    match answer.verified {
        Some(true) => text += "; the recipe is true",
        Some(false) => text += "; the recipe is not true",
        None => {}
    }
    text + "\n"
}
