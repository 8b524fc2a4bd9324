//! Makes an image that can be staged of what an operator typed: checks the reference, resolves its tag once, fetches
//! its manifest, computes its layout, and looks for its recipe. Also gets pull tokens for hosts, so that hosts need no
//! credentials.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use origin::{Client, Credentials, Grant, OriginError, PlainHttp, Proxies, Repository, Secret};
use proto::{
    Digest, HostId, RegistryReference, Version,
    image::{Layout, ParseImageError},
};
use tokio::time::{Instant, timeout};
use tracing::info;

use self::{attempts::patiently, pull_secret::Logins};
use crate::{
    config::Origin,
    enrolment::unix,
    lock::lock,
    wants::{Timing, Want},
};

mod attempts;
mod pull_secret;
mod recipe;

pub(crate) use self::pull_secret::LearnError;

/// The time within which a registry has to answer for a manifest, including retries.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(60);
/// The lifetime that hosts are told for a password's header. Hosts get the header anew before that.
const PASSWORD_LIFE: Duration = Duration::from_hours(1);
/// The most characters of the typed text that a refusal repeats.
const MAX_QUOTE: usize = 120;
/// The most manifests that are kept by digest, so that a known image needs no fetch.
const MAX_MANIFESTS: usize = 64;

/// The most askers that are remembered of each manifest.
const MAX_GIVEN_TO: usize = 64;

/// A manifest's bytes and media type.
type Found = (Bytes, String);

/// A manifest that some registry gave.
#[derive(Debug)]
struct Known {
    found: Found,
    given_to: BTreeSet<Asked>,
}

/// An asker: a repository, and the pull Secret whose credentials were used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Asked {
    registry: String,
    repository: String,
    secret: Option<String>,
}

impl Asked {
    fn of(parsed: &RegistryReference, secret: Option<&String>) -> Self {
        Self {
            registry: parsed.registry().to_owned(),
            repository: parsed.repository().to_owned(),
            secret: secret.cloned(),
        }
    }
}

/// A short-lived right to pull from a repository, as hosts get it.
#[derive(Clone, Debug)]
pub(crate) struct PullToken {
    /// A whole `Authorization` header value.
    pub(crate) authorization: Secret,
    pub(crate) expires_in: Duration,
}

/// What hosts may be given for a repository.
#[derive(Debug)]
pub(crate) enum Granted {
    /// The registry needs no credentials.
    Unneeded,
    /// This token.
    Token(PullToken),
    /// The registry takes only user and password, and the fleet file doesn't allow to hand these down.
    PasswordOnly,
}

/// The registries of a fleet and how to reach them.
pub(crate) struct Registries {
    config: Origin,
    client: Client,
    /// Locked only briefly, never across an await.
    manifests: Mutex<BTreeMap<Digest, Known>>,
    /// The logins of each pull Secret, by the Secret's name. They are used only for askers that name that Secret.
    /// Locked only briefly, too.
    learned: Mutex<BTreeMap<String, Logins>>,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").finish_non_exhaustive()
    }
}

/// Why a reference can't be staged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    /// The text isn't a reference, or isn't one that tart can say.
    #[error("image reference `{reference}` is refused: {reason}")]
    Reference {
        /// What was typed, cut short.
        reference: String,
        /// What is wrong, and what is right.
        reason: String,
    },
    /// Credentials can't be read.
    #[error("reading the password for {registry} from {path}: {error}")]
    Password {
        /// The registry.
        registry: String,
        /// The file that `password_file` in the fleet file names.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// The registry has no such image.
    #[error("{reference} isn't in its registry; check the name and the tag")]
    NotFound {
        /// The reference.
        reference: String,
    },
    /// The registry refuses, is down, or sends an impossible answer.
    #[error("asking the registry for {reference}: {error}")]
    Registry {
        /// The reference.
        reference: String,
        /// The cause.
        error: OriginError,
    },
    /// The registry took too long.
    #[error("the registry didn't answer for {reference} within {} s", RESOLVE_TIMEOUT.as_secs())]
    Timeout {
        /// The reference.
        reference: String,
    },
    /// What the registry gave isn't a manifest of any kind.
    #[error(
        "the registry gave {what} for {reference}, which isn't a manifest; check the registry's address, and that no \
         sign-in page or proxy answers in its place"
    )]
    NoManifest {
        /// The reference.
        reference: String,
        /// The type of what the registry gave, and how it begins.
        what: String,
    },
    /// The manifest isn't one that can be staged.
    #[error("{reference} can't be staged: {error}")]
    Image {
        /// The reference.
        reference: String,
        /// The cause; it names the layer.
        error: ParseImageError,
    },
}

impl ResolveError {
    /// How long the registry wants to be left alone, where it says so.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Registry { error, .. } => error.retry_after(),
            _ => None,
        }
    }
}

/// Why the registry client can't be made.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    /// The client can't be made from these settings. The error names the file when `origin.ca_bundle` is at fault.
    #[error("registry client: {0}")]
    Client(#[from] origin::ConfigError),
}

impl Registries {
    /// Makes the client of the registries. Reads the CA bundle and the proxy's password, where these are set, and the
    /// system's trusted roots. Blocks.
    pub(crate) fn new(config: Origin) -> Result<Self, RegistriesError> {
        let proxies = Proxies::new(&config.proxy)?;
        if !proxies.names().is_empty() {
            info!(proxies = ?proxies.names(), "registries are reached through a proxy");
        }
        let system_roots = config.system_roots.then(origin::system_roots);
        let mut settings = origin::Config {
            proxies,
            system_roots: system_roots.unwrap_or_default(),
            plain_http: PlainHttp::Hosts(config.plain_http.clone()),
            ..origin::Config::default()
        };
        if let Some(path) = &config.ca_bundle {
            settings.extra_roots.extend(origin::roots_from_pem(path)?);
        }
        Ok(Self {
            client: Client::new(settings)?,
            config,
            manifests: Mutex::default(),
            learned: Mutex::default(),
        })
    }

    /// Remembers what a pull Secret holds now (`.dockerconfigjson`).
    ///
    /// # Errors
    /// When the Secret's text can't be used.
    pub(crate) fn learn(&self, secret: &str, dockerconfig: &[u8]) -> Result<(), LearnError> {
        let found = pull_secret::logins(dockerconfig)?;
        let mut learned = lock(&self.learned);
        learned.insert(secret.to_owned(), found);
        Ok(())
    }

    /// Forgets the pull Secrets for which `keep` returns false: nobody names them any more, or they are gone.
    pub(crate) fn keep_secrets(&self, keep: impl Fn(&str) -> bool) {
        let mut learned = lock(&self.learned);
        learned.retain(|secret, _| keep(secret));
    }

    /// Whether anything is remembered of a pull Secret.
    #[cfg(test)]
    pub(crate) fn knows(&self, secret: &String) -> bool {
        let learned = lock(&self.learned);
        learned.contains_key(secret)
    }

    fn learned(&self, secret: Option<&String>, registry: &str) -> Option<(String, String)> {
        let learned = lock(&self.learned);
        learned.get(secret?)?.get(registry).cloned()
    }

    /// Remembers the manifests of images that are wanted already.
    pub(crate) fn remember(&self, wants: &[Want]) {
        for want in wants {
            let references = want.references.iter();
            let asked = references.filter_map(|reference| {
                Some(Asked::of(
                    &parse(reference).ok()?,
                    want.secrets.get(reference),
                ))
            });
            let found = (want.manifest.clone(), want.media_type.clone());
            self.enter(want.digest(), found, asked);
        }
    }

    /// The image that `reference` names now, ready to be wanted on `hosts`. The tag is resolved once; it may move
    /// afterwards.
    ///
    /// A known manifest isn't fetched again. But knowing a digest gives nobody an image: unless the repository has
    /// given the image to these credentials before, it is asked whether it does. The registry is asked with the login
    /// that `secret` holds for it, where that pull Secret was learned; otherwise with the fleet file's credentials.
    pub(crate) async fn resolve(
        &self,
        reference: &str,
        hosts: Option<BTreeSet<HostId>>,
        secret: Option<&String>,
    ) -> Result<Want, ResolveError> {
        let parsed = parse(reference)?;
        let asked = Asked::of(&parsed, secret);
        let known = match parsed.version() {
            Version::Digest(digest) => self.known(digest, &asked),
            Version::Tag(_) => None,
        };
        let until = Instant::now() + RESOLVE_TIMEOUT;
        let asking = async {
            match known {
                Some((found, true)) => Ok(found),
                Some((found, false)) => {
                    self.may_have(reference, &parsed, secret, until).await?;
                    Ok(found)
                }
                None => self.fetch(reference, &parsed, secret, until).await,
            }
        };
        let (digest, (manifest, media_type)) =
            timeout(RESOLVE_TIMEOUT, asking)
                .await
                .map_err(|_| ResolveError::Timeout {
                    reference: reference.to_owned(),
                })??;
        let layout = Layout::parse(&manifest, &digest).map_err(|error| {
            let reference = reference.to_owned();
            match unlike_json(&media_type, &manifest) {
                Some(what) => ResolveError::NoManifest { reference, what },
                None => ResolveError::Image { reference, error },
            }
        })?;
        self.enter(digest, (manifest.clone(), media_type.clone()), [asked]);
        // the manifest came by the same credentials a moment ago
        let recipe = match self.repository(reference, &parsed, secret) {
            Ok(repository) => recipe::look(&repository, &layout, reference).await,
            Err(_) => None,
        };
        Ok(Want {
            layout: Arc::new(layout),
            manifest,
            media_type,
            references: [reference.to_owned()].into(),
            secrets: BTreeMap::new(),
            hosts,
            narrowed: BTreeMap::new(),
            asked_ms: BTreeMap::new(),
            priority: None,
            plain_http: self.speaks_plainly(parsed.registry()),
            recipe,
            recipe_of_fleet: false,
            recipe_doubts: BTreeMap::new(),
            wanted_at: unix(SystemTime::now()),
            predicted: None,
            timing: Timing::New,
        })
    }

    /// Whether hosts get pull tokens for this image.
    pub(crate) fn hands_down(&self, want: &Want) -> bool {
        self.config.hand_down_tokens
            && want.references.iter().any(|reference| {
                parse(reference).is_ok_and(|parsed| {
                    self.config.credentials.contains_key(parsed.registry())
                        || want.secrets.contains_key(reference)
                })
            })
    }

    /// What hosts may be given for this reference's repository. The credentials are chosen as in
    /// [`resolve`](Self::resolve).
    pub(crate) async fn pull_token(
        &self,
        reference: &str,
        secret: Option<&String>,
    ) -> Result<Granted, ResolveError> {
        let repository = self.repository(reference, &parse(reference)?, secret)?;
        let granted = timeout(RESOLVE_TIMEOUT, repository.authorization_for()).await;
        let granted = granted
            .map_err(|_| ResolveError::Timeout {
                reference: reference.to_owned(),
            })?
            .map_err(|error| ResolveError::Registry {
                reference: reference.to_owned(),
                error,
            })?;
        Ok(match granted {
            Grant::Open => Granted::Unneeded,
            Grant::Token { header, life } => Granted::Token(PullToken {
                authorization: header,
                expires_in: life,
            }),
            Grant::Password { header } if self.config.hand_down_passwords => {
                Granted::Token(PullToken {
                    authorization: header,
                    expires_in: PASSWORD_LIFE,
                })
            }
            Grant::Password { .. } => Granted::PasswordOnly,
        })
    }

    fn speaks_plainly(&self, registry: &str) -> bool {
        PlainHttp::Hosts(self.config.plain_http.clone()).allows(registry)
    }

    fn repository(
        &self,
        reference: &str,
        parsed: &RegistryReference,
        secret: Option<&String>,
    ) -> Result<Repository, ResolveError> {
        let registry = parsed.registry();
        let credentials = match (
            self.learned(secret, registry),
            self.config.credentials.get(registry),
        ) {
            (Some((user, password)), _) => Credentials::Basic {
                user,
                password: Secret::new(password),
            },
            (None, None) => Credentials::Anonymous,
            (None, Some(found)) => {
                // The file is small and is read at each use, so an operator can replace it without a restart.
                let password = std::fs::read_to_string(&found.password_file);
                let password = password.map_err(|error| ResolveError::Password {
                    registry: registry.to_owned(),
                    path: found.password_file.clone(),
                    error,
                })?;
                Credentials::Basic {
                    user: found.username.clone(),
                    password: Secret::new(password.trim().to_owned()),
                }
            }
        };
        self.client
            .repository(parsed, credentials)
            .map_err(|error| ResolveError::Registry {
                reference: reference.to_owned(),
                error,
            })
    }

    async fn fetch(
        &self,
        reference: &str,
        parsed: &RegistryReference,
        secret: Option<&String>,
        until: Instant,
    ) -> Result<(Digest, Found), ResolveError> {
        let repository = self.repository(reference, parsed, secret)?;
        let found = patiently(until, || repository.manifest(repository.version())).await;
        let manifest = found.map_err(|error| failed(reference, error))?;
        Ok((manifest.digest, (manifest.bytes, manifest.media_type)))
    }

    /// Whether the registry gives these credentials what the reference names.
    async fn may_have(
        &self,
        reference: &str,
        parsed: &RegistryReference,
        secret: Option<&String>,
        until: Instant,
    ) -> Result<(), ResolveError> {
        let repository = self.repository(reference, parsed, secret)?;
        let found = patiently(until, || repository.resolve(repository.version())).await;
        found.map(drop).map_err(|error| failed(reference, error))
    }

    /// A known manifest, and whether this asker was given it before.
    fn known(&self, digest: &Digest, asked: &Asked) -> Option<((Digest, Found), bool)> {
        let manifests = lock(&self.manifests);
        let known = manifests.get(digest)?;
        Some((
            (*digest, known.found.clone()),
            known.given_to.contains(asked),
        ))
    }

    fn enter(&self, digest: Digest, found: Found, asked: impl IntoIterator<Item = Asked>) {
        let mut manifests = lock(&self.manifests);
        if manifests.len() >= MAX_MANIFESTS && !manifests.contains_key(&digest) {
            // Any manifest may go: getting one again costs one request to the registry.
            manifests.pop_first();
        }
        let known = manifests.entry(digest).or_insert_with(|| Known {
            found,
            given_to: BTreeSet::new(),
        });
        for asked in asked {
            if known.given_to.len() >= MAX_GIVEN_TO {
                known.given_to.clear();
            }
            known.given_to.insert(asked);
        }
    }
}

/// What the registry gave in place of a manifest, when it isn't JSON at all: its type and how it begins.
fn unlike_json(media_type: &str, given: &[u8]) -> Option<String> {
    if serde_json::from_slice::<serde::de::IgnoredAny>(given).is_ok() {
        return None;
    }
    let media_type = match media_type {
        "" => "no type".to_owned(),
        named => format!("type {named}"),
    };
    let kind = match given {
        [] => return Some(format!("nothing ({media_type})")),
        [0x1f, 0x8b, ..] => "gzip".to_owned(),
        given => match std::str::from_utf8(given.get(..MAX_QUOTE).unwrap_or(given)) {
            Ok(text) => format!("{:?}", crate::progress::clean(text).trim()),
            // the text was cut within a character
            Err(error) if error.error_len().is_none() => {
                let text = String::from_utf8_lossy(&given[..error.valid_up_to()]);
                format!("{:?}", crate::progress::clean(&text).trim())
            }
            Err(_) => "bytes that aren't text".to_owned(),
        },
    };
    Some(format!("{kind} ({media_type}, {} bytes)", given.len()))
}

fn failed(reference: &str, error: OriginError) -> ResolveError {
    let reference = reference.to_owned();
    if matches!(error, OriginError::NotFound { .. }) {
        ResolveError::NotFound { reference }
    } else {
        ResolveError::Registry { reference, error }
    }
}

/// The reference `image` with this digest instead of its tag. A text that isn't a reference is returned as it is;
/// resolving it gives the error.
pub(crate) fn by_digest(image: &str, digest: &Digest) -> String {
    match image.parse::<proto::Reference>() {
        Ok(reference) => reference.at(digest),
        Err(_) => image.to_owned(),
    }
}

/// Checks a reference, because hosts make paths of it, and tart has to find the image by it. The text stays as it was
/// typed, because goldens are named by a hash of it. Returns what the registry is asked for.
fn parse(reference: &str) -> Result<RegistryReference, ResolveError> {
    let parsed = reference.parse::<proto::Reference>();
    let parsed = parsed.map_err(|error| ResolveError::Reference {
        reference: crate::progress::clean(reference)
            .chars()
            .take(MAX_QUOTE)
            .collect(),
        reason: error.to_string(),
    })?;
    Ok(parsed.at_registry().clone())
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;

    #[test]
    fn pull_secrets_are_learned_and_bad_ones_named_without_their_content() {
        let registries = Registries::new(Origin::default()).unwrap();
        let auth = STANDARD.encode("user:pass:word");
        let config = format!(
            r#"{{"auths":{{"https://r.test/":{{"auth":"{auth}"}},"s.test":{{"username":"u","password":"p"}}}}}}"#
        );
        let (one, two) = ("one/ghcr".to_owned(), "two/ghcr".to_owned());
        registries.learn(&one, config.as_bytes()).unwrap();
        assert_eq!(
            registries.learned(Some(&one), "r.test"),
            Some(("user".into(), "pass:word".into()))
        );
        let plain = Some(("u".into(), "p".into()));
        assert_eq!(registries.learned(Some(&one), "s.test"), plain);
        assert!(registries.learn(&one, b"{").is_err());
        let error = registries.learn(&one, br#"{"auths":{"t.test":{"auth":"c2VjcmV0"}}}"#);
        assert_eq!(
            error.unwrap_err().to_string(),
            "its entry for t.test holds no user and password"
        );

        // a login of one Secret isn't used for another Secret or for none, and isn't changed by them
        assert_eq!(registries.learned(None, "s.test"), None);
        assert_eq!(registries.learned(Some(&two), "s.test"), None);
        let other = br#"{"auths":{"s.test":{"username":"v","password":"q"}}}"#;
        registries.learn(&two, other).unwrap();
        assert_eq!(registries.learned(Some(&one), "s.test"), plain);
        // the Secret's current content counts; nothing is used of a Secret that is gone
        registries.learn(&one, other).unwrap();
        assert_eq!(registries.learned(Some(&one), "r.test"), None);
        registries.keep_secrets(|secret| secret == two);
        assert_eq!(registries.learned(Some(&one), "s.test"), None);
        assert!(registries.learned(Some(&two), "s.test").is_some());
    }

    #[tokio::test]
    async fn a_registry_that_wants_more_patience_than_there_is_has_its_words_told_at_once() {
        let asked = std::cell::Cell::new(0);
        let throttled = |wait: u64| OriginError::Throttled {
            what: "manifest v1".to_owned(),
            status: 429,
            retry_after: Some(Duration::from_secs(wait)),
            said: ": You have reached your pull rate limit".to_owned(),
        };
        let begun = Instant::now();
        let until = begun + Duration::from_secs(60);
        let ask = |wait: u64| {
            let asked = &asked;
            let throttled = &throttled;
            move || {
                asked.set(asked.get() + 1);
                std::future::ready(Err::<(), _>(throttled(wait)))
            }
        };
        let error = patiently(until, ask(3_600)).await.unwrap_err();
        assert_eq!(asked.get(), 1);
        let told = failed("r.test/a:1", error);
        assert_eq!(told.retry_after(), Some(Duration::from_hours(1)));
        let told = told.to_string();
        assert!(
            told.contains("You have reached your pull rate limit")
                && told.contains("try again in 3600 s"),
            "{told}"
        );
        // an attempt that may still succeed is waited for
        assert!(patiently(until, ask(0)).await.is_err());
        assert_eq!(asked.get(), 1 + attempts::ATTEMPTS);
        assert!(begun.elapsed() < Duration::from_secs(50));
    }

    #[test]
    fn what_is_no_manifest_is_shown_by_its_type_and_how_it_begins() {
        let page = format!("<html><title>Sign in</title>{}", "ä".repeat(500));
        let shown = unlike_json("text/html", page.as_bytes()).unwrap();
        assert!(
            shown.starts_with("\"<html><title>Sign in</title>ä") && shown.contains("text/html"),
            "{shown}"
        );
        assert!(shown.len() < 2 * MAX_QUOTE);
        let gzip = unlike_json("", &[0x1f, 0x8b, 8, 0]);
        assert_eq!(gzip.unwrap(), "gzip (no type, 4 bytes)");
        let other = unlike_json("a/b", &[0xff, 0xfe]);
        assert_eq!(other.unwrap(), "bytes that aren't text (type a/b, 2 bytes)");
        assert_eq!(unlike_json("a/b", b"").unwrap(), "nothing (type a/b)");
        // for JSON that lacks something there is a better error
        assert_eq!(unlike_json("a/b", b"{}"), None);
    }

    #[test]
    fn a_digest_takes_the_place_of_the_tag() {
        let (digest, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let by_other = format!("r.test/a/b@{other}");
        for (image, expected) in [
            ("r.test/a/b:1", "r.test/a/b"),
            ("r.test:5000/a/b", "r.test:5000/a/b"),
            ("r.test:5000/a/b:x", "r.test:5000/a/b"),
            (by_other.as_str(), "r.test/a/b"),
        ] {
            assert_eq!(by_digest(image, &digest), format!("{expected}@{digest}"));
        }
        assert_eq!(by_digest("nonsense", &digest), "nonsense");
    }

    #[test]
    fn references_need_a_registry_and_have_no_hostile_parts() {
        let digest = Digest::of(b"x");
        for good in [
            "ghcr.io/org/image:tag".to_owned(),
            "127.0.0.1:5000/image".to_owned(),
            "localhost/image:1".to_owned(),
            format!("ghcr.io/org/image@{digest}"),
        ] {
            assert!(parse(&good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "image",
            "org/image:tag",
            "ghcr.io/../etc:tag",
            "ghcr.io//image",
            "ghcr.io/image/",
            "ghcr.io/im age",
            "ghcr.io/image:tag\n",
            "ghcr.io/Image:tag",
            "ghcr.io/image@sha256:beef",
            "ghcr.io/image@md5:00000000000000000000000000000000",
            "ghcr.io/..\\image",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&format!("ghcr.io/{}", "a".repeat(600))).is_err());
    }
}
