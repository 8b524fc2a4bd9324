//! Finds and fetches an image's recipe, which stands beside the image in its registry: an artifact whose subject is the
//! image's manifest (OCI image and distribution specification 1.1).
//!
//! A registry lists such artifacts under `referrers/…`. Where the registry has no such list, or its list lacks the
//! artifact, whoever pushes keeps the list as an index under the tag `sha256-…` ([`fallback_tag`]). Everything that a
//! registry says here is bounded and checked. Each call is one attempt. Nothing is pushed here.

use std::{borrow::Cow, collections::BTreeMap};

use http::{HeaderMap, HeaderValue, header::LINK};
use proto::{
    Digest, Layout,
    image::{Blob, MANIFEST_TYPE},
    recipe::{ARTIFACT_TYPE, ParseRecipeError, Recipe},
    reference::Tag,
};
use serde::Deserialize;

use crate::{
    error::{OriginError, shorten},
    repository::Repository,
};

/// The most pages of a list that are read. Each is at most as long as a manifest. A registry that filters by type, as
/// the specification asks for, needs one.
const MAX_PAGES: usize = 10;
/// The most listed recipes that are looked at. More than one is there only when recipes were made in different ways.
const MAX_EXAMINED: usize = 16;
/// The longest manifest of an artifact. A recipe's manifest has about 700 bytes.
const MAX_ARTIFACT_BYTES: u64 = 64 << 10;

/// Where a registry's list of an image's artifacts stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// The registry makes the list itself.
    Referrers,
    /// Clients keep the list under a tag.
    Tag,
}

impl Listing {
    /// The word for it in answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Referrers => "referrers",
            Self::Tag => "tag",
        }
    }
}

/// A recipe that was found. Its artifact was checked, its bytes weren't fetched yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The digest of the artifact's manifest.
    pub artifact: Digest,
    /// The recipe's bytes.
    pub recipe: Blob,
    /// Where it is listed.
    pub listing: Listing,
    /// How many other recipes are listed. They weren't all looked at.
    pub others: usize,
}

/// Why a listed artifact isn't a recipe of the image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactError {
    /// The artifact's manifest has more bytes than that of any recipe.
    #[error("its manifest has {0} bytes, more than {MAX_ARTIFACT_BYTES}")]
    TooLarge(u64),
    /// The manifest isn't one of an artifact.
    #[error("its manifest doesn't parse: {0}")]
    Json(String),
    /// The artifact is of another type.
    #[error("it is of type {0:?}")]
    Type(String),
    /// The artifact refers to another manifest, or to none.
    #[error("it refers to {0}, not to the image")]
    Subject(String),
    /// The artifact hasn't exactly one layer.
    #[error("it has {0} layers instead of one")]
    Layers(usize),
    /// The layer's digest isn't a SHA-256 digest.
    #[error("its layer has no SHA-256 digest")]
    Digest,
    /// The layer has no bytes, or more than a recipe of this image may have.
    #[error("its layer has {bytes} bytes; a recipe of this image has from 1 to {most}")]
    Size {
        /// The layer's bytes.
        bytes: u64,
        /// The most that are read.
        most: u64,
    },
    /// The artifact's manifest can't be had.
    #[error(transparent)]
    Origin(OriginError),
}

/// Why no recipe was found although there may be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindRecipeError {
    /// The registry can't be asked.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// Recipes are listed, and none of those that were looked at is one.
    #[error(
        "none of the {listed} recipes that are listed beside image {image} can be used; {artifact}: {cause}; make and push \
         one by `parbake recipe`"
    )]
    Unsound {
        /// The image.
        image: Digest,
        /// How many are listed.
        listed: usize,
        /// The first artifact that is listed.
        artifact: Digest,
        /// What is wrong with that artifact.
        cause: ArtifactError,
    },
}

/// Why a recipe that was found couldn't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchRecipeError {
    /// The registry doesn't give the recipe's bytes.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The bytes aren't a recipe of the image.
    #[error(transparent)]
    Parse(#[from] ParseRecipeError),
}

/// Finds the recipe of an image: the first sound one by the order of their artifacts' digests. `None` when the registry
/// lists none. A registry that can't list artifacts at all, or answers something else, lists none.
///
/// # Errors
/// When the registry can't be asked, or lists only recipes that can't be used.
pub async fn find(
    repository: &Repository,
    layout: &Layout,
) -> Result<Option<Found>, FindRecipeError> {
    let image = *layout.digest();
    let Some((listing, listed)) = listed(repository, &image).await? else {
        return Ok(None);
    };
    let mut first = None;
    for (artifact, bytes) in listed.iter().take(MAX_EXAMINED) {
        match examine(repository, layout, *artifact, *bytes).await {
            Ok(recipe) => {
                return Ok(Some(Found {
                    artifact: *artifact,
                    recipe,
                    listing,
                    others: listed.len() - 1,
                }));
            }
            Err(ArtifactError::Origin(error)) if error.is_retryable() => return Err(error.into()),
            Err(cause) => {
                first.get_or_insert((*artifact, cause));
            }
        }
    }
    let unsound = first.map(|(artifact, cause)| FindRecipeError::Unsound {
        image,
        listed: listed.len(),
        artifact,
        cause,
    });
    unsound.map_or(Ok(None), Err)
}

/// Fetches a recipe that was found, and reads it. What it says of the image's bytes isn't proved by that.
///
/// # Errors
/// When the registry doesn't give the bytes, or they aren't a recipe of the image.
pub async fn fetch(
    repository: &Repository,
    layout: &Layout,
    found: &Found,
) -> Result<Recipe, FetchRecipeError> {
    let Blob { digest, size } = found.recipe;
    let mut stream = repository.blob(&digest, 0, size).await?;
    // grows with what comes: `size` is only the artifact's word
    let mut bytes = Vec::new();
    while let Some(piece) = stream.piece().await? {
        bytes.extend_from_slice(&piece);
    }
    let came = Digest::of(&bytes);
    if came != digest {
        return Err(FetchRecipeError::Origin(OriginError::DigestMismatch {
            what: repository.what_blob(&digest),
            wanted: digest,
            found: came,
        }));
    }
    Ok(Recipe::parse(&bytes, layout)?)
}

/// Where the registry lists this artifact beside the image; `None` where it doesn't.
///
/// # Errors
/// When the registry can't be asked.
pub async fn listing(
    repository: &Repository,
    image: &Digest,
    artifact: &Digest,
) -> Result<Option<Listing>, OriginError> {
    match referrers(repository, image).await {
        Ok(found) if found.contains_key(artifact) => return Ok(Some(Listing::Referrers)),
        Err(error) if error.is_retryable() => return Err(error),
        // a registry without the list answers in many ways: the tag counts then
        Ok(_) | Err(_) => {}
    }
    match tagged(repository, image).await {
        Ok(found) => Ok(found.contains_key(artifact).then_some(Listing::Tag)),
        // something else than a list stands under the tag
        Err(OriginError::Malformed { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The tag under which clients keep an image's list of artifacts (distribution specification 1.1, "Referrers Tag
/// Schema").
///
/// # Panics
/// Never: a digest's hex digits make a tag.
#[must_use]
pub fn fallback_tag(image: &Digest) -> Tag {
    let tag = format!("sha256-{}", image.hex());
    tag.parse().expect("hex digits make a tag")
}

/// The digests and sizes of the manifests that the registry lists as recipes, and where.
async fn listed(
    repository: &Repository,
    image: &Digest,
) -> Result<Option<(Listing, BTreeMap<Digest, u64>)>, OriginError> {
    let refusal = match referrers(repository, image).await {
        Ok(found) if !found.is_empty() => return Ok(Some((Listing::Referrers, found))),
        Ok(_) => None,
        Err(error) if error.is_retryable() => return Err(error),
        Err(error) => Some(error),
    };
    let found = tagged(repository, image).await?;
    if !found.is_empty() {
        return Ok(Some((Listing::Tag, found)));
    }
    match refusal {
        Some(error) if !is_no_list(&error) => Err(error),
        _ => Ok(None),
    }
}

/// Whether a registry says by this that it has no such list.
const fn is_no_list(error: &OriginError) -> bool {
    matches!(
        error,
        OriginError::NotFound { .. }
            | OriginError::Status { .. }
            | OriginError::Malformed { .. }
            | OriginError::TooLarge { .. }
    )
}

/// What the registry's own list has. It is asked for recipes alone, and may list everything all the same.
async fn referrers(
    repository: &Repository,
    image: &Digest,
) -> Result<BTreeMap<Digest, u64>, OriginError> {
    let what = format!("referrers of {image} in {}", repository.name());
    let mut query = format!("artifactType={ARTIFACT_TYPE}");
    let mut found = BTreeMap::new();
    for _ in 0..MAX_PAGES {
        let (bytes, headers) = repository.referrers(image, &query).await?;
        found.extend(recipes(&bytes).map_err(|cause| not_a_list(repository, &what, cause))?);
        match next_page(&headers) {
            Some(next) => query = next,
            None => break,
        }
    }
    Ok(found)
}

/// What the index under the fallback tag has; nothing where there is no such tag.
async fn tagged(
    repository: &Repository,
    image: &Digest,
) -> Result<BTreeMap<Digest, u64>, OriginError> {
    let tag = fallback_tag(image);
    match repository.manifest(&tag.clone().into()).await {
        Ok(manifest) => {
            let what = format!("image {}:{tag}", repository.name());
            recipes(&manifest.bytes).map_err(|cause| not_a_list(repository, &what, cause))
        }
        Err(OriginError::NotFound { .. }) => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

fn not_a_list(repository: &Repository, what: &str, cause: serde_json::Error) -> OriginError {
    let host = repository.name().split('/').next().unwrap_or_default();
    OriginError::Malformed {
        what: what.to_owned(),
        host: host.to_owned(),
        cause: format!("it isn't an index: {}", shorten(&cause.to_string())),
    }
}

/// The recipes in an index. Entries of other types, and entries without a SHA-256 digest, are left out.
fn recipes(index: &[u8]) -> Result<BTreeMap<Digest, u64>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Index<'a> {
        #[serde(borrow)]
        manifests: Vec<Entry<'a>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Entry<'a> {
        #[serde(borrow)]
        media_type: Cow<'a, str>,
        #[serde(borrow)]
        digest: Cow<'a, str>,
        size: u64,
        #[serde(borrow, default)]
        artifact_type: Option<Cow<'a, str>>,
    }
    let index: Index<'_> = serde_json::from_slice(index)?;
    let recipe = |entry: Entry<'_>| {
        let is_one = entry.media_type == MANIFEST_TYPE
            && entry.artifact_type.as_deref() == Some(ARTIFACT_TYPE);
        let digest = is_one.then(|| entry.digest.parse().ok())?;
        Some((digest?, entry.size))
    };
    Ok(index.manifests.into_iter().filter_map(recipe).collect())
}

/// The query of the next page (RFC 8288). Only the query is taken, so that no answer leads credentials elsewhere.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get_all(LINK).iter();
    let mut links = links
        .filter_map(|value: &HeaderValue| value.to_str().ok())
        .flat_map(|text| text.split(','));
    links.find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters
            .split(';')
            .any(|parameter| matches!(parameter.trim(), "rel=\"next\"" | "rel=next"));
        let (_, query) = target.split_once('?')?;
        (is_next && !query.is_empty()).then(|| query.to_owned())
    })
}

/// Fetches the manifest of an artifact and checks that it is a recipe of the image.
async fn examine(
    repository: &Repository,
    layout: &Layout,
    artifact: Digest,
    bytes: u64,
) -> Result<Blob, ArtifactError> {
    if bytes > MAX_ARTIFACT_BYTES {
        return Err(ArtifactError::TooLarge(bytes));
    }
    let manifest = repository.manifest(&artifact.into()).await;
    check(&manifest.map_err(ArtifactError::Origin)?.bytes, layout)
}

/// The recipe's blob, if this is the manifest of an artifact that is a recipe of the image.
fn check(manifest: &[u8], layout: &Layout) -> Result<Blob, ArtifactError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Artifact {
        #[serde(default)]
        artifact_type: String,
        subject: Option<Subject>,
        layers: Vec<Layer>,
    }
    #[derive(Deserialize)]
    struct Subject {
        digest: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layer {
        media_type: String,
        digest: String,
        size: u64,
    }
    if manifest.len() as u64 > MAX_ARTIFACT_BYTES {
        return Err(ArtifactError::TooLarge(manifest.len() as u64));
    }
    let artifact: Artifact = serde_json::from_slice(manifest)
        .map_err(|error| ArtifactError::Json(shorten(&error.to_string())))?;
    if artifact.artifact_type != ARTIFACT_TYPE {
        return Err(ArtifactError::Type(shorten(&artifact.artifact_type)));
    }
    let subject = artifact.subject.map(|subject| subject.digest);
    let subject = subject.unwrap_or_else(|| "no manifest".to_owned());
    if subject.parse().as_ref() != Ok(layout.digest()) {
        return Err(ArtifactError::Subject(shorten(&subject)));
    }
    let [layer] = artifact.layers.as_slice() else {
        return Err(ArtifactError::Layers(artifact.layers.len()));
    };
    if layer.media_type != ARTIFACT_TYPE {
        return Err(ArtifactError::Type(shorten(&layer.media_type)));
    }
    let most = Recipe::max_bytes(layout);
    if layer.size == 0 || layer.size > most {
        return Err(ArtifactError::Size {
            bytes: layer.size,
            most,
        });
    }
    let digest = layer.digest.parse().map_err(|_| ArtifactError::Digest)?;
    Ok(Blob {
        digest,
        size: layer.size,
    })
}

#[cfg(test)]
mod tests {
    use proto::image::{CONFIG_TYPE, DISK_TYPE, NVRAM_TYPE, RAW_SIZE_ANNOTATION};
    use serde_json::{Value, json};

    use super::*;

    fn layout() -> Layout {
        let layer = |kind: &str, size: u64| {
            let digest = Digest::of(kind.as_bytes()).to_string();
            json!({"mediaType": kind, "digest": digest, "size": size, "annotations": {RAW_SIZE_ANNOTATION: "9"}})
        };
        let layers = [
            layer(CONFIG_TYPE, 1),
            layer(DISK_TYPE, 2),
            layer(NVRAM_TYPE, 3),
        ];
        let manifest = json!({"schemaVersion": 2, "layers": layers}).to_string();
        Layout::parse(manifest.as_bytes(), &Digest::of(manifest.as_bytes())).unwrap()
    }

    /// The manifest of a recipe, with one part replaced.
    fn artifact(pointer: &str, by: Value) -> Vec<u8> {
        let mut manifest = json!({
            "schemaVersion": 2,
            "artifactType": ARTIFACT_TYPE,
            "subject": {"digest": layout().digest().to_string()},
            "layers": [{"mediaType": ARTIFACT_TYPE, "digest": Digest::of(b"recipe").to_string(), "size": 60}],
        });
        *manifest.pointer_mut(pointer).unwrap() = by;
        manifest.to_string().into_bytes()
    }

    #[test]
    fn an_artifact_is_the_recipe_of_this_image_or_refused_by_name() {
        let layout = layout();
        let checked = |pointer: &str, by: Value| check(&artifact(pointer, by), &layout);
        let whole = Blob {
            digest: Digest::of(b"recipe"),
            size: 60,
        };
        assert_eq!(checked("/schemaVersion", json!(2)), Ok(whole));
        let most = Recipe::max_bytes(&layout);
        assert!(checked("/layers/0/size", json!(most)).is_ok());
        let size = |bytes| Err(ArtifactError::Size { bytes, most });
        assert_eq!(checked("/layers/0/size", json!(most + 1)), size(most + 1));
        assert_eq!(checked("/layers/0/size", json!(0)), size(0));
        let kind = |text: &str| Err(ArtifactError::Type(text.to_owned()));
        assert_eq!(checked("/artifactType", json!("a/b")), kind("a/b"));
        assert_eq!(checked("/layers/0/mediaType", json!("a/b")), kind("a/b"));
        let subject = |text: &str| Err(ArtifactError::Subject(text.to_owned()));
        assert_eq!(checked("/subject", Value::Null), subject("no manifest"));
        let other = Digest::of(b"another").to_string();
        assert_eq!(checked("/subject/digest", json!(&other)), subject(&other));
        assert_eq!(checked("/layers", json!([])), Err(ArtifactError::Layers(0)));
        assert_eq!(
            checked("/layers/0/digest", json!("sha512:00")),
            Err(ArtifactError::Digest)
        );
        let refused = check(b"<html>", &layout).unwrap_err();
        assert!(matches!(refused, ArtifactError::Json(_)), "{refused}");
        let long = vec![b' '; usize::try_from(MAX_ARTIFACT_BYTES).unwrap() + 1];
        assert_eq!(
            check(&long, &layout),
            Err(ArtifactError::TooLarge(MAX_ARTIFACT_BYTES + 1))
        );
    }

    #[test]
    fn only_recipes_are_taken_from_an_index() {
        let entry = |media_type: &str, digest: &str, kind: Value| json!({"mediaType": media_type, "digest": digest, "size": 7, "artifactType": kind});
        let digest = |text: &str| Digest::of(text.as_bytes()).to_string();
        let index = json!({"manifests": [
            entry(MANIFEST_TYPE, &digest("signature"), json!("application/vnd.dev.sigstore")),
            entry(MANIFEST_TYPE, &digest("recipe"), json!(ARTIFACT_TYPE)),
            entry("application/vnd.oci.image.index.v1+json", &digest("index"), json!(ARTIFACT_TYPE)),
            entry(MANIFEST_TYPE, "sha512:00", json!(ARTIFACT_TYPE)),
            entry(MANIFEST_TYPE, &digest("without a type"), Value::Null),
            entry(MANIFEST_TYPE, &digest("recipe"), json!(ARTIFACT_TYPE)),
        ]});
        let found = recipes(index.to_string().as_bytes()).unwrap();
        assert_eq!(found, BTreeMap::from([(Digest::of(b"recipe"), 7)]));
        assert!(recipes(b"{}").is_err());
        assert!(recipes(b"").is_err());
    }

    #[test]
    fn the_next_page_is_a_query_of_the_same_address() {
        let next = |text: &'static str| {
            let headers = [(LINK, HeaderValue::from_static(text))];
            next_page(&headers.into_iter().collect())
        };
        let found = |query: &str| Some(query.to_owned());
        assert_eq!(
            next("</v2/a/referrers/x?n=1&last=2>; rel=\"next\""),
            found("n=1&last=2")
        );
        assert_eq!(
            next("<https://evil.example/?n=1>; rel=next; a=b"),
            found("n=1")
        );
        assert_eq!(
            next("</p?n=0>; rel=\"prev\", </n?n=2>; rel=\"next\""),
            found("n=2")
        );
        for none in [
            "",
            "</v2/a>; rel=\"next\"",
            "</v2/a?>; rel=\"next\"",
            "</v2/a?n=1>",
            "n=1; rel=next",
        ] {
            assert_eq!(next(none), None, "{none}");
        }
    }

    #[test]
    fn the_fallback_tag_is_the_specifications() {
        let image = Digest::of(b"");
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(fallback_tag(&image).to_string(), format!("sha256-{hex}"));
    }
}
