//! Access to registries: the client that all fetches and the mirror share, and the credentials that each registry is
//! shown.

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use base64::Engine as _;
use origin::{
    Client, ConfigError, Credentials, OriginError, PlainHttp, Proxies, Repository, Secret,
};
use proto::{
    message::PullToken,
    reference::{ParseRegistryReferenceError, RegistryReference},
};
use tracing::info;

use crate::{config::OriginConfig, lock::lock};

/// The most repositories whose tokens are kept. A host stages a handful of images at one time.
const REPOSITORIES: usize = 64;

/// The registry client and this host's own credentials.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    config: Arc<OriginConfig>,
    client: Client,
    /// The handles, oldest first. They share connections and tokens. The lock is held for look-ups.
    repositories: Arc<Mutex<Vec<Kept>>>,
}

/// A handle to a repository, and the values from which it was made.
#[derive(Debug)]
struct Kept {
    reference: String,
    access: Access,
    /// This host's own password, if it is used. If the password's file changes, a new handle is made.
    password: Option<Secret>,
    repository: Repository,
}

/// Why a repository can't be asked: this host's settings or the order are unusable. Another host's settings may do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RepositoryError {
    /// The reference names no repository.
    #[error("{reference} isn't an image reference")]
    Malformed {
        reference: String,
        #[source]
        error: ParseRegistryReferenceError,
    },
    /// The file of this host's own password can't be read (`origin.credentials`).
    #[error("reading the password of {registry} from {}", path.display())]
    Password {
        registry: String,
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    /// The registry's name can't be asked.
    #[error(transparent)]
    Refused(#[from] OriginError),
}

/// The credentials and settings for a registry, from the coordinator's order or from a client of the mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Access {
    authorization: Option<Secret>,
    /// The user and password that a mirror's client gave.
    basic: Option<(String, Secret)>,
    /// This host's own credentials must not be used.
    not_ours: bool,
    plain_http: bool,
}

impl Access {
    /// The access that the coordinator gives with an order.
    pub(crate) fn new(token: Option<&PullToken>, plain_http: bool) -> Self {
        let authorization = token.filter(|token| !token.authorization.is_empty());
        Self {
            authorization: authorization.map(|token| Secret::new(token.authorization.clone())),
            plain_http,
            ..Self::default()
        }
    }

    /// Whether the access has a token that was handed to this host, so that a newer one may come when the registry
    /// refuses it.
    pub(crate) const fn has_token(&self) -> bool {
        self.authorization.is_some()
    }

    /// The access of a mirror's client: its own `Authorization`. Without one, the client has anonymous access, or this
    /// host's own credentials if `lend`.
    pub(crate) fn of_client(authorization: Option<&Secret>, lend: bool) -> Self {
        let Some(header) = authorization else {
            return Self {
                not_ours: !lend,
                ..Self::default()
            };
        };
        // user and password can be exchanged for tokens if the registry wants tokens
        let basic = header.expose().split_once(' ').and_then(|(scheme, text)| {
            let text = scheme.eq_ignore_ascii_case("basic").then_some(text)?;
            let pair = base64::engine::general_purpose::STANDARD.decode(text.trim());
            let pair = String::from_utf8(pair.ok()?).ok()?;
            let (user, password) = pair.split_once(':')?;
            Some((user.to_owned(), Secret::new(password.to_owned())))
        });
        Self {
            authorization: basic.is_none().then(|| header.clone()),
            basic,
            not_ours: true,
            plain_http: false,
        }
    }
}

impl Origin {
    /// # Errors
    /// When a file of certificates can't be read, or a proxy can't be used as it is set.
    pub(crate) fn new(config: &OriginConfig) -> Result<Self, ConfigError> {
        let roots = config
            .ca_file
            .as_deref()
            .map(origin::roots_from_pem)
            .transpose()?;
        let proxies = Proxies::new(&config.proxy)?;
        if !proxies.names().is_empty() {
            info!(proxies = ?proxies.names(), "registries are reached through a proxy");
        }
        let system_roots = config.system_roots.then(origin::system_roots);
        let client = Client::new(origin::Config {
            extra_roots: roots.unwrap_or_default(),
            system_roots: system_roots.unwrap_or_default(),
            proxies,
            idle_timeout: config.idle_timeout,
            ..origin::Config::default()
        })?;
        Ok(Self {
            config: Arc::new(config.clone()),
            client,
            repositories: Arc::default(),
        })
    }

    /// The repository of this reference, asked with the coordinator's token or this host's own credentials.
    ///
    /// # Errors
    /// When this host's settings are unusable for that repository.
    pub(crate) fn repository(
        &self,
        reference: &str,
        access: &Access,
    ) -> Result<Repository, RepositoryError> {
        let parsed: RegistryReference =
            reference
                .parse()
                .map_err(|error| RepositoryError::Malformed {
                    reference: reference.to_owned(),
                    error,
                })?;
        let password = self.password(parsed.registry(), access)?;
        let mut all = lock(&self.repositories);
        let asked = |kept: &Kept| kept.reference == reference && kept.access == *access;
        if let Some(kept) = all
            .iter()
            .find(|kept| asked(kept) && kept.password == password)
        {
            return Ok(kept.repository.clone());
        }
        let mut plain: BTreeSet<_> = self.config.plain_http.iter().cloned().collect();
        if access.plain_http {
            plain.insert(parsed.registry().to_owned());
        }
        let client = self.client.with_plain_http(PlainHttp::Hosts(plain));
        let credentials = self.credentials(parsed.registry(), access, password.as_ref());
        let repository = client.repository(&parsed, credentials)?;
        all.retain(|kept| !asked(kept));
        if all.len() >= REPOSITORIES {
            all.remove(0);
        }
        all.push(Kept {
            reference: reference.to_owned(),
            access: access.clone(),
            password,
            repository: repository.clone(),
        });
        Ok(repository)
    }

    /// This host's own password for a registry, if it is to be used. The file is small and read each time: a changed
    /// password holds at once, and the old one isn't kept.
    fn password(&self, registry: &str, access: &Access) -> Result<Option<Secret>, RepositoryError> {
        let lent = access.authorization.is_none() && access.basic.is_none() && !access.not_ours;
        let Some(own) = self.config.credentials.get(registry).filter(|_| lent) else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(&own.password_file).map_err(|error| {
            RepositoryError::Password {
                registry: registry.to_owned(),
                path: own.password_file.clone(),
                error,
            }
        })?;
        Ok(Some(Secret::new(text.trim_end().to_owned())))
    }

    fn credentials(
        &self,
        registry: &str,
        access: &Access,
        password: Option<&Secret>,
    ) -> Credentials {
        match (&access.authorization, &access.basic) {
            (Some(header), _) => Credentials::Header(header.clone()),
            (None, Some((user, password))) => Credentials::Basic {
                user: user.clone(),
                password: password.clone(),
            },
            (None, None) => match (self.config.credentials.get(registry), password) {
                (Some(own), Some(password)) => Credentials::Basic {
                    user: own.username.clone(),
                    password: password.clone(),
                },
                _ => Credentials::Anonymous,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::BasicCredentials;

    #[test]
    fn the_first_part_of_a_reference_is_the_registry_whatever_it_looks_like() {
        let origin = Origin::new(&OriginConfig {
            ca_file: None,
            plain_http: Vec::new(),
            idle_timeout: Duration::from_secs(1),
            proxy: origin::ProxySettings::default(),
            system_roots: false,
            credentials: std::collections::BTreeMap::new(),
        })
        .unwrap();
        // a client's credentials for a host of the fleet's own network never go to Docker Hub
        let client = Access::of_client(Some(&Secret::from("Bearer x")), false);
        for (reference, name) in [
            ("registry/org/image", "registry/org/image"),
            ("index.docker.io/macos", "docker.io/library/macos"),
        ] {
            let asked = origin.repository(reference, &client).unwrap();
            assert_eq!(asked.name(), name);
        }
        let nameless = origin.repository("image", &client);
        assert!(matches!(nameless, Err(RepositoryError::Malformed { .. })));
    }

    #[test]
    fn a_password_that_was_changed_is_used_at_once_and_the_old_one_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let password_file = dir.path().join("password");
        std::fs::write(&password_file, "first\n").unwrap();
        let own = BasicCredentials {
            username: "robot".into(),
            password_file: password_file.clone(),
        };
        let origin = Origin::new(&OriginConfig {
            ca_file: None,
            plain_http: Vec::new(),
            idle_timeout: Duration::from_secs(1),
            proxy: origin::ProxySettings::default(),
            system_roots: false,
            credentials: [("registry.example".to_owned(), own)].into(),
        })
        .unwrap();
        let kept = || {
            origin
                .repository("registry.example/org/image:1", &Access::default())
                .unwrap();
            let all = lock(&origin.repositories);
            let passwords = all.iter().map(|kept| kept.password.clone());
            passwords.collect::<Vec<_>>()
        };
        let secret = |text: &str| vec![Some(Secret::new(text.to_owned()))];
        assert_eq!(kept(), secret("first"));
        std::fs::write(&password_file, "second\n").unwrap();
        assert_eq!(kept(), secret("second"));
        assert_eq!(kept(), secret("second"));
    }
}
