//! The registry of an image: how it is reached, and with which credentials. The credentials are the environment's, else
//! those of `docker login`, else none. No credential is printed.

use std::{collections::BTreeSet, fs::File, path::PathBuf};

use anyhow::{Context as _, bail};
use docker_credential::{CredentialRetrievalError, DockerCredential};
use origin::{Client, Config, Credentials, PlainHttp, Proxies, ProxySettings, Repository};
use proto::RegistryReference;
use rustls_pki_types::CertificateDer;

const USERNAME: &str = "PARBAKE_REGISTRY_USERNAME";
const PASSWORD: &str = "PARBAKE_REGISTRY_PASSWORD";

/// What was typed about registries.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct Reach {
    /// A registry that speaks plain HTTP: `host` or `host:port`. May be repeated. [default: none]
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<String>,
    /// Certificates (PEM) to trust in addition to the system's. [default: none]
    #[arg(long, env = "PARBAKE_REGISTRY_CA_FILE", value_name = "PEM")]
    ca_file: Option<PathBuf>,
}

/// A registry that can be asked.
#[derive(Clone, Debug)]
pub(super) struct Registry {
    /// Reads.
    pub(super) repository: Repository,
    pub(super) reference: RegistryReference,
    pub(super) credentials: Credentials,
    pub(super) speaks_plain_http: bool,
    pub(super) extra_roots: Vec<CertificateDer<'static>>,
}

impl Registry {
    /// Finds out how the image's registry is reached. Sends nothing. Blocks: it may read files, and ask a credential
    /// helper of docker's.
    pub(super) fn new(image: &proto::Reference, reach: &Reach) -> anyhow::Result<Self> {
        let reference = image.at_registry();
        let extra_roots = match &reach.ca_file {
            Some(path) => origin::roots_from_pem(path)?,
            None => Vec::new(),
        };
        let hosts: BTreeSet<String> = reach.plain_http.iter().cloned().collect();
        let plain_http = PlainHttp::Hosts(hosts);
        let speaks_plain_http = plain_http.allows(reference.server());
        let client = Client::new(Config {
            extra_roots: extra_roots.clone(),
            system_roots: origin::system_roots(),
            proxies: Proxies::new(&ProxySettings::default())?,
            plain_http,
            ..Config::default()
        })?;
        let credentials = credentials(reference, |name| std::env::var(name).ok())?;
        Ok(Self {
            repository: client.repository(reference, credentials.clone())?,
            reference: reference.clone(),
            credentials,
            speaks_plain_http,
            extra_roots,
        })
    }
}

/// The credentials for a registry, by the environment that `variable` reads.
fn credentials(
    reference: &RegistryReference,
    variable: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<Credentials> {
    match (variable(USERNAME), variable(PASSWORD)) {
        (Some(user), Some(password)) => Ok(Credentials::Basic {
            user,
            password: password.into(),
        }),
        (None, None) => of_docker(reference.registry(), variable),
        _ => bail!("one of {USERNAME} and {PASSWORD} isn't set; set both, or none"),
    }
}

/// What `docker login` left for a registry.
fn of_docker(
    registry: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<Credentials> {
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".docker"));
    let directory = variable("DOCKER_CONFIG").map(PathBuf::from).or_else(home);
    let Some(path) = directory.map(|directory| directory.join("config.json")) else {
        return Ok(Credentials::Anonymous);
    };
    let file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Credentials::Anonymous);
        }
        file => file.with_context(|| format!("reading {}", path.display()))?,
    };
    // docker files its own registry under another name
    let server = match registry {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => "https://index.docker.io/v1/",
        other => other,
    };
    let instead = format!("run `docker login {registry}`, or set {USERNAME} and {PASSWORD}");
    match docker_credential::get_credential_from_reader(file, server) {
        Ok(DockerCredential::UsernamePassword(user, password)) if !user.is_empty() => {
            Ok(Credentials::Basic {
                user,
                password: password.into(),
            })
        }
        Ok(DockerCredential::UsernamePassword(..))
        | Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(Credentials::Anonymous),
        Ok(DockerCredential::IdentityToken(_)) => bail!(
            "{} has only an identity token for {registry}, which can't be used here; set {USERNAME} and {PASSWORD}",
            path.display()
        ),
        // what a helper wrote may hold a secret: only its name is told
        Err(CredentialRetrievalError::HelperFailure { stdout, .. })
            if stdout.contains("credentials not found") =>
        {
            Ok(Credentials::Anonymous)
        }
        Err(CredentialRetrievalError::HelperFailure { helper, .. }) => bail!(
            "docker-credential-{helper}, which {} names, failed for {registry}; {instead}",
            path.display()
        ),
        Err(error) => bail!(
            "{} gives no credentials for {registry}: {error}; {instead}",
            path.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn found(registry: &str, variables: &[(&str, &str)]) -> anyhow::Result<Credentials> {
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        let reference = format!("{registry}/org/image:1").parse().unwrap();
        credentials(&reference, |name| {
            variables.get(name).map(ToString::to_string)
        })
    }

    fn account(found: anyhow::Result<Credentials>) -> Option<(String, String)> {
        match found.unwrap() {
            Credentials::Basic { user, password } => Some((user, password.expose().to_owned())),
            _ => None,
        }
    }

    fn pair(user: &str, password: &str) -> Option<(String, String)> {
        Some((user.to_owned(), password.to_owned()))
    }

    #[test]
    fn the_environment_comes_before_dockers_login() {
        let directory = tempfile::tempdir().unwrap();
        let docker = directory.path().to_str().unwrap();
        // "docker:secret", for one registry
        let config = r#"{"auths": {"ghcr.io": {"auth": "ZG9ja2VyOnNlY3JldA=="}, "127.0.0.1:5000": {"auth": "ZG9ja2VyOnNlY3JldA=="}}}"#;
        std::fs::write(directory.path().join("config.json"), config).unwrap();
        let docker = ("DOCKER_CONFIG", docker);
        let own = [(USERNAME, "ci"), (PASSWORD, "token"), docker];
        assert_eq!(account(found("ghcr.io", &own)), pair("ci", "token"));
        assert_eq!(
            account(found("ghcr.io", &[docker])),
            pair("docker", "secret")
        );
        assert_eq!(
            account(found("127.0.0.1:5000", &[docker])),
            pair("docker", "secret")
        );
        assert_eq!(account(found("quay.io", &[docker])), None);
        let error = found("ghcr.io", &[(USERNAME, "ci"), docker]).unwrap_err();
        assert!(error.to_string().contains("set both"), "{error}");
    }

    #[test]
    fn without_any_login_a_registry_is_asked_anonymously() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(account(found("ghcr.io", &[])), None);
        let home = directory.path().to_str().unwrap();
        assert_eq!(account(found("ghcr.io", &[("HOME", home)])), None);
    }

    #[test]
    fn a_login_that_cannot_be_used_is_named_without_its_secret() {
        let directory = tempfile::tempdir().unwrap();
        let docker = ("DOCKER_CONFIG", directory.path().to_str().unwrap());
        for (config, named) in [
            ("{", "config.json"),
            (
                r#"{"auths": {"ghcr.io": {"identitytoken": "s3cret"}}}"#,
                "identity token",
            ),
            (
                r#"{"credHelpers": {"ghcr.io": "not-there"}}"#,
                "docker login ghcr.io",
            ),
        ] {
            std::fs::write(directory.path().join("config.json"), config).unwrap();
            let error = found("ghcr.io", &[docker]).unwrap_err().to_string();
            assert!(
                error.contains(named) && !error.contains("s3cret"),
                "{error}"
            );
        }
    }
}
