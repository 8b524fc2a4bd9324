//! Puts a recipe beside its image: an artifact that refers to the image's manifest, pushed by oci-client. Pushing the
//! same recipe again changes nothing.
//!
//! Where the registry doesn't list the artifact by itself, the list is an index under the fallback tag, which clients
//! keep: it is read, added to and written back. There is no lock for that. Whoever writes at the same time may take our
//! entry away, so the list is read again, and the entry added again.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::HeaderValue;
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use origin::{
    Credentials, OriginError,
    recipe::{Listing, fallback_tag, listing},
};
use proto::{Digest, RegistryReference, image::MANIFEST_TYPE, recipe::ARTIFACT_TYPE};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    patience::{MayPass, patiently},
    registry::Registry,
};

const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// The bytes of the empty descriptor (image specification 1.1).
const EMPTY: &[u8] = b"{}";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// How often our entry is added to a list that others write too.
const LIST_TRIES: usize = 5;
/// The longest text of a registry that an error repeats, in characters.
const MAX_SAID_CHARS: usize = 200;
const TIMEOUT: Duration = Duration::from_secs(60);

/// What was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pushed {
    /// The digest of the artifact's manifest.
    pub(super) artifact: Digest,
    /// Where it is listed.
    pub(super) listing: Listing,
    /// Whether it was there already.
    pub(super) was_there: bool,
}

/// Pushes the bytes of a recipe, and sees to it that it is found. `manifest_bytes` is the size of the image's manifest.
pub(super) async fn push(
    registry: &Registry,
    image: &Digest,
    manifest_bytes: u64,
    recipe: Vec<u8>,
) -> anyhow::Result<Pushed> {
    let digest = Digest::of(&recipe);
    let manifest = manifest(image, manifest_bytes, &digest, recipe.len() as u64)?;
    let artifact = Digest::of(&manifest);
    let repository = &registry.repository;
    let listed = || patiently(async || listing(repository, image, &artifact).await);
    let pushed = |listing, was_there| Pushed {
        artifact,
        listing,
        was_there,
    };
    if let Some(listing) = listed().await?
        && is_whole(registry, &artifact, &digest).await?
    {
        return Ok(pushed(listing, true));
    }
    let pusher = Pusher::new(registry)?;
    pusher.allowed().await?;
    pusher.blob(EMPTY.into(), &Digest::of(EMPTY)).await?;
    pusher.blob(recipe.into(), &digest).await?;
    let manifest_size = manifest.len();
    pusher
        .manifest(&artifact.to_string(), manifest, MANIFEST_TYPE)
        .await?;
    let entry = json!({
        "mediaType": MANIFEST_TYPE,
        "digest": artifact.to_string(),
        "size": manifest_size,
        "artifactType": ARTIFACT_TYPE,
    });
    for _ in 0..LIST_TRIES {
        if let Some(listing) = listed().await? {
            return Ok(pushed(listing, false));
        }
        pusher.list(registry, image, &entry).await?;
    }
    bail!(
        "recipe {artifact} was pushed, but the list under tag {} in {} loses it: somebody else writes that list at the same \
         time; push again",
        fallback_tag(image),
        repository.name()
    )
}

/// Whether the artifact's manifest and the recipe's bytes are in the registry.
async fn is_whole(registry: &Registry, artifact: &Digest, recipe: &Digest) -> anyhow::Result<bool> {
    let repository = &registry.repository;
    let version = (*artifact).into();
    let manifest = patiently(async || repository.resolve(&version).await).await;
    let blob = patiently(async || repository.blob_size(recipe).await).await;
    match (manifest.err(), blob.err()) {
        (None, None) => Ok(true),
        (Some(OriginError::NotFound { .. }), _) | (_, Some(OriginError::NotFound { .. })) => {
            Ok(false)
        }
        (Some(error), _) | (None, Some(error)) => Err(error.into()),
    }
}

/// The artifact's manifest. It has no dates, and its fields stand in one order, so that equal recipes have equal
/// manifests.
fn manifest(
    image: &Digest,
    image_bytes: u64,
    recipe: &Digest,
    recipe_bytes: u64,
) -> anyhow::Result<Vec<u8>> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Manifest {
        schema_version: u8,
        media_type: &'static str,
        artifact_type: &'static str,
        config: Descriptor,
        layers: [Descriptor; 1],
        subject: Descriptor,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Descriptor {
        media_type: &'static str,
        digest: String,
        size: u64,
    }
    let descriptor = |media_type, digest: &Digest, size| Descriptor {
        media_type,
        digest: digest.to_string(),
        size,
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE,
        artifact_type: ARTIFACT_TYPE,
        config: descriptor(EMPTY_TYPE, &Digest::of(EMPTY), EMPTY.len() as u64),
        layers: [descriptor(ARTIFACT_TYPE, recipe, recipe_bytes)],
        subject: descriptor(MANIFEST_TYPE, image, image_bytes),
    };
    serde_json::to_vec(&manifest).context("writing a manifest")
}

/// The index with our entry. What others put there stays as it is. `None` when the entry is there already.
fn added(index: Option<&[u8]>, entry: &Value) -> anyhow::Result<Option<Vec<u8>>> {
    let mut index: Value = match index {
        Some(bytes) => serde_json::from_slice(bytes).context("it isn't JSON")?,
        None => json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}),
    };
    let manifests = index.get_mut("manifests").and_then(Value::as_array_mut);
    let manifests = manifests.context("it isn't an index")?;
    if manifests
        .iter()
        .any(|other| other["digest"] == entry["digest"])
    {
        return Ok(None);
    }
    manifests.push(entry.clone());
    Ok(Some(serde_json::to_vec(&index)?))
}

/// A client that writes.
struct Pusher {
    client: Client,
    auth: RegistryAuth,
    repository: RegistryReference,
    /// The repository, under any tag.
    reference: Reference,
    name: String,
}

/// Why something couldn't be pushed. Carries no address, because addresses of uploads may have secrets in them.
#[derive(Debug, thiserror::Error)]
#[error("{what} can't be pushed: {cause}")]
struct PushError {
    what: String,
    cause: String,
    passes: bool,
}

impl MayPass for PushError {
    fn passes(&self) -> bool {
        self.passes
    }

    fn retry_after(&self) -> Option<Duration> {
        None
    }
}

/// What oci-client calls a version of this repository. A digest stands in the tag's place, too: oci-client writes the
/// same address for both. For a reference by digest it panics when the registry's answer has no `Location` (0.18.0,
/// `push_manifest_raw`).
fn tagged(repository: &RegistryReference, version: &str) -> Reference {
    Reference::with_tag(
        repository.registry().to_owned(),
        repository.repository().to_owned(),
        version.to_owned(),
    )
}

impl Pusher {
    fn new(registry: &Registry) -> anyhow::Result<Self> {
        // reqwest takes the process's provider; whoever comes first may have set one, of the same kind
        drop(rustls::crypto::ring::default_provider().install_default());
        let (https_proxy, http_proxy) = (
            variable("HTTPS_PROXY").or_else(|| variable("ALL_PROXY")),
            variable("HTTP_PROXY").or_else(|| variable("ALL_PROXY")),
        );
        let certificate = |root: &[u8]| Certificate {
            encoding: CertificateEncoding::Der,
            data: root.to_vec(),
        };
        let config = ClientConfig {
            protocol: match registry.speaks_plain_http {
                true => ClientProtocol::Http,
                false => ClientProtocol::Https,
            },
            // one request for a blob: a recipe is small, and not every registry takes parts
            use_monolithic_push: true,
            extra_root_certificates: registry
                .extra_roots
                .iter()
                .map(|root| certificate(root))
                .collect(),
            read_timeout: Some(TIMEOUT),
            connect_timeout: Some(TIMEOUT),
            user_agent: concat!("parbake/", env!("CARGO_PKG_VERSION")),
            https_proxy,
            http_proxy,
            no_proxy: Some(exempt(variable("NO_PROXY"))),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config)
            .map_err(|error| refusal("anything", error))
            .context("setting up TLS and proxies for pushing")?;
        let auth = match &registry.credentials {
            Credentials::Anonymous => RegistryAuth::Anonymous,
            Credentials::Basic { user, password } => {
                RegistryAuth::Basic(user.clone(), password.expose().to_owned())
            }
            Credentials::Header(header) => {
                let token = header.expose().trim_start_matches("Bearer ");
                RegistryAuth::Bearer(token.to_owned())
            }
        };
        Ok(Self {
            client,
            auth,
            repository: registry.reference.clone(),
            reference: tagged(
                &registry.reference,
                &registry.reference.version().to_string(),
            ),
            name: registry.repository.name().to_owned(),
        })
    }

    /// Asks for the right to push.
    async fn allowed(&self) -> anyhow::Result<()> {
        let asked = async || {
            let push = RegistryOperation::Push;
            let asked = self.client.auth(&self.reference, &self.auth, push).await;
            asked.map_err(|error| refusal(&format!("anything to {}", self.name), error))
        };
        patiently(asked).await?;
        Ok(())
    }

    /// Pushes a blob that isn't there.
    async fn blob(&self, bytes: Bytes, digest: &Digest) -> anyhow::Result<()> {
        let what = format!("blob {digest} of {}", self.name);
        let name = digest.to_string();
        let pushed = async || {
            let client = &self.client;
            // where the registry can't say, it is pushed
            if client
                .blob_exists(&self.reference, &name)
                .await
                .unwrap_or(false)
            {
                return Ok(());
            }
            let pushed = client
                .push_blob(&self.reference, bytes.clone(), &name)
                .await;
            pushed.map(drop).map_err(|error| refusal(&what, error))
        };
        Ok(patiently(pushed).await?)
    }

    /// Pushes a manifest under a tag or its digest.
    async fn manifest(
        &self,
        version: &str,
        bytes: Vec<u8>,
        media_type: &'static str,
    ) -> anyhow::Result<()> {
        let reference = tagged(&self.repository, version);
        let what = format!("manifest {version} of {}", self.name);
        let bytes = Bytes::from(bytes);
        let pushed = async || {
            let kind = HeaderValue::from_static(media_type);
            let pushed = self
                .client
                .push_manifest_raw(&reference, bytes.clone(), kind)
                .await;
            pushed.map(drop).map_err(|error| refusal(&what, error))
        };
        Ok(patiently(pushed).await?)
    }

    /// Adds an entry to the list under the fallback tag.
    async fn list(&self, registry: &Registry, image: &Digest, entry: &Value) -> anyhow::Result<()> {
        let tag = fallback_tag(image);
        let repository = &registry.repository;
        let version = tag.clone().into();
        let now = patiently(async || match repository.manifest(&version).await {
            Ok(manifest) => Ok(Some(manifest.bytes)),
            Err(OriginError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        });
        let now = now.await?;
        let index = added(now.as_deref(), entry).with_context(|| {
            format!(
                "tag {tag} of {} holds something else than a list of artifacts; remove it, and push again",
                self.name
            )
        })?;
        match index {
            Some(index) => self.manifest(&tag.to_string(), index, INDEX_TYPE).await,
            None => Ok(()),
        }
    }
}

/// A variable that names a proxy, in capitals or not, as `origin` reads it.
fn variable(name: &str) -> Option<String> {
    let names = [name.to_owned(), name.to_ascii_lowercase()];
    let mut values = names.iter().filter_map(|name| std::env::var(name).ok());
    values.find(|value| !value.trim().is_empty())
}

/// The hosts that no proxy is asked for: the environment's, and this machine, as for `origin`.
fn exempt(no_proxy: Option<String>) -> String {
    let here = "localhost,127.0.0.0/8,::1";
    no_proxy.map_or_else(|| here.to_owned(), |others| format!("{others},{here}"))
}

fn refusal(what: &str, error: OciDistributionError) -> PushError {
    use OciDistributionError as Error;
    let passing = |code: u16| matches!(code, 408 | 425 | 429 | 500 | 502..=504);
    let (cause, passes) = match error {
        Error::AuthenticationFailure(_) | Error::UnauthorizedError { .. } => (
            "the registry refuses these credentials; give it some that may push (`docker login`, or \
             PARBAKE_REGISTRY_USERNAME and PARBAKE_REGISTRY_PASSWORD)"
                .to_owned(),
            false,
        ),
        Error::ServerError { code, message, .. } => {
            let next = match code {
                401 | 403 => "; give it credentials that may push",
                404 | 405 => "; check the repository's name, and that it can be written to",
                _ => "",
            };
            let said = shorten(&message);
            (format!("status {code}: {said}{next}"), passing(code))
        }
        Error::RegistryError { envelope, .. } => {
            let busy = |code: &OciErrorCode| matches!(code, OciErrorCode::Toomanyrequests);
            let passes = envelope.errors.iter().any(|error| busy(&error.code));
            (shorten(&envelope.to_string()), passes)
        }
        Error::RequestError(error) => {
            let passes = !error.is_builder() && !error.is_redirect();
            let error = error.without_url();
            (shorten(&proto::causes(&error)), passes)
        }
        other => (shorten(&other.to_string()), false),
    };
    PushError {
        what: what.to_owned(),
        cause,
        passes,
    }
}

fn shorten(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(MAX_SAID_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_recipes_have_equal_manifests_in_the_specifications_form() {
        let (image, recipe) = (Digest::of(b"image"), Digest::of(b"recipe"));
        let bytes = manifest(&image, 300, &recipe, 6).unwrap();
        let wanted = format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"{MANIFEST_TYPE}\",\"artifactType\":\"{ARTIFACT_TYPE}\",\
             \"config\":{{\"mediaType\":\"application/vnd.oci.empty.v1+json\",\
             \"digest\":\"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a\",\"size\":2}},\
             \"layers\":[{{\"mediaType\":\"{ARTIFACT_TYPE}\",\"digest\":\"{recipe}\",\"size\":6}}],\
             \"subject\":{{\"mediaType\":\"{MANIFEST_TYPE}\",\"digest\":\"{image}\",\"size\":300}}}}"
        );
        assert_eq!(String::from_utf8(bytes).unwrap(), wanted);
    }

    #[test]
    fn a_list_keeps_what_others_put_there() {
        let entry = json!({"digest": "sha256:ours", "size": 1});
        let fresh = added(None, &entry).unwrap().unwrap();
        assert_eq!(added(Some(&fresh), &entry).unwrap(), None, "once is enough");
        let others = json!({
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "annotations": {"a": "b"},
            "manifests": [{"digest": "sha256:theirs", "annotations": {"c": "d"}, "unknown": [1]}],
        });
        let both = added(Some(others.to_string().as_bytes()), &entry).unwrap();
        let both: Value = serde_json::from_slice(&both.unwrap()).unwrap();
        let mut wanted = others;
        wanted["manifests"]
            .as_array_mut()
            .unwrap()
            .push(entry.clone());
        assert_eq!(both, wanted);
        for bad in ["", "[]", "{}", r#"{"manifests": {}}"#] {
            assert!(added(Some(bad.as_bytes()), &entry).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn this_machine_is_reached_without_a_proxy() {
        assert_eq!(exempt(None), "localhost,127.0.0.0/8,::1");
        assert_eq!(
            exempt(Some("a.example".to_owned())),
            "a.example,localhost,127.0.0.0/8,::1"
        );
    }

    #[test]
    fn a_refusal_tells_no_address() {
        let url = "https://r.example/upload?signature=s3cret".to_owned();
        let error = |code| {
            refusal(
                "blob",
                OciDistributionError::ServerError {
                    code,
                    url: url.clone(),
                    message: "no\nway".to_owned(),
                },
            )
        };
        assert_eq!(
            error(403).to_string(),
            "blob can't be pushed: status 403: no way; give it credentials that may push"
        );
        assert!(!error(403).passes() && error(503).passes() && error(429).passes());
    }
}
