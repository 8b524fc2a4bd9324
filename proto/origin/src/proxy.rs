//! Which registries are reached through which proxy, by the settings and the environment.
//!
//! The rules are those of hyper-util, and so of curl. `HTTPS_PROXY` is for registries with TLS, `HTTP_PROXY` for those
//! without. `ALL_PROXY` is used where the applicable one isn't set. `NO_PROXY` lists hosts that are reached directly.
//! Each name may be written in lower case. Three things differ, because a proxy that isn't used is a mistake that shows
//! late. A value that isn't a proxy is an error. In `NO_PROXY`, a port is ignored, and `*.name` means `.name`. This
//! machine itself is never reached through a proxy.

use std::{fmt, net::IpAddr, path::PathBuf, sync::Arc};

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::{error::ConfigError, location::authority};

/// The proxies in a settings file, under `[origin.proxy]`. Each given value replaces the environment's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxySettings {
    /// The proxy for every registry: `http://host:port`, or `https://host:port` for a proxy that itself speaks TLS.
    /// Empty: no registry is reached through a proxy.
    pub url: Option<String>,
    /// Hosts, domains, addresses and networks that are reached directly.
    pub no_proxy: Option<Vec<String>>,
    /// The user that the proxy at `url` asks for.
    pub username: Option<String>,
    /// The file with the user's password. White space around the password is cut.
    pub password_file: Option<PathBuf>,
}

/// The proxies through which registries are reached. `Debug` shows no password.
#[derive(Clone)]
pub struct Proxies(Arc<Matcher>);

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Default for Proxies {
    fn default() -> Self {
        Self::none()
    }
}

impl Proxies {
    /// No proxies: every registry is reached directly.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::new(Matcher::builder().build()))
    }

    /// The proxies of the settings, and of this process's environment where the settings say nothing. Blocks: it may
    /// read a file.
    ///
    /// # Errors
    /// When a value isn't a proxy, or the password can't be read. The error names the setting or the variable.
    pub fn new(settings: &ProxySettings) -> Result<Self, ConfigError> {
        Self::with_environment(settings, |name| std::env::var(name).ok())
    }

    fn with_environment(
        settings: &ProxySettings,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let variable = |upper: &str| {
            [upper.to_owned(), upper.to_ascii_lowercase()]
                .into_iter()
                .find_map(|name| Some((variable(&name)?, name)))
                .filter(|(value, _)| !value.trim().is_empty())
        };
        let no_proxy = match &settings.no_proxy {
            Some(hosts) => hosts.join(","),
            None => variable("NO_PROXY").map_or_else(String::new, |(value, _)| value),
        };
        let builder = Matcher::builder().no(exempt(&no_proxy));
        let credentials = credentials(settings)?;
        let builder = match &settings.url {
            Some(url) if url.is_empty() => builder,
            Some(url) => builder.all(proxy("origin.proxy.url", url, credentials.as_deref())?),
            None if credentials.is_some() => {
                return Err(ConfigError::Proxy {
                    setting: "origin.proxy.username".to_owned(),
                    cause: "is for the proxy of origin.proxy.url, which isn't set".to_owned(),
                });
            }
            None => {
                let either = |name: &str| {
                    variable(name)
                        .or_else(|| variable("ALL_PROXY"))
                        .map_or_else(|| Ok(String::new()), |(url, name)| proxy(&name, &url, None))
                };
                builder
                    .https(either("HTTPS_PROXY")?)
                    .http(either("HTTP_PROXY")?)
            }
        };
        Ok(Self(Arc::new(builder.build())))
    }

    /// The proxy for this address; `None` where the address is reached directly.
    pub(crate) fn of(&self, uri: &Uri) -> Option<Proxy> {
        let host = uri.host()?;
        let ip = host.trim_start_matches('[').trim_end_matches(']');
        let here = match ip.parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback(),
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        };
        (!here).then(|| self.0.intercept(uri)).flatten().map(Proxy)
    }

    /// The addresses of the proxies for the log, without users and passwords.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        // A reserved name (RFC 2606) stands for any registry that isn't exempted.
        let through = |scheme: &str| {
            let uri: Uri = format!("{scheme}://registry.invalid/").parse().ok()?;
            Some(self.of(&uri)?.name())
        };
        let mut names: Vec<String> = ["https", "http"].into_iter().filter_map(through).collect();
        names.dedup();
        names
    }
}

/// One proxy.
#[derive(Clone, Debug)]
pub(crate) struct Proxy(Intercept);

impl Proxy {
    pub(crate) fn uri(&self) -> &Uri {
        self.0.uri()
    }

    /// The header with the proxy's user and password.
    pub(crate) fn authorization(&self) -> Option<&HeaderValue> {
        self.0.basic_auth()
    }

    /// The host and port, for errors and logs.
    pub(crate) fn name(&self) -> String {
        authority(self.uri())
    }
}

/// `user:password`, encoded as in a URL.
fn credentials(settings: &ProxySettings) -> Result<Option<String>, ConfigError> {
    let problem = |setting: &str, cause: String| ConfigError::Proxy {
        setting: setting.to_owned(),
        cause,
    };
    let (user, file) = match (&settings.username, &settings.password_file) {
        (None, None) => return Ok(None),
        (Some(user), Some(file)) => (user, file),
        _ => {
            let cause = "and origin.proxy.password_file go together".to_owned();
            return Err(problem("origin.proxy.username", cause));
        }
    };
    let password = std::fs::read_to_string(file).map_err(|error| {
        let cause = format!("{} can't be read: {error}", file.display());
        problem("origin.proxy.password_file", cause)
    })?;
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    Ok(Some(format!(
        "{}:{}",
        encode(user),
        encode(password.trim())
    )))
}

/// A proxy's URL in the form that the matcher accepts: the matcher ignores what it doesn't understand. The error
/// doesn't contain the value, which may include a password.
fn proxy(setting: &str, url: &str, credentials: Option<&str>) -> Result<String, ConfigError> {
    let problem = |cause: &str| ConfigError::Proxy {
        setting: setting.to_owned(),
        cause: cause.to_owned(),
    };
    let (scheme, rest) = url.trim().split_once("://").unwrap_or(("http", url.trim()));
    if !["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) {
        return Err(problem(
            "has to begin with http:// or https://; other kinds of proxies aren't known here",
        ));
    }
    if credentials.is_some() && rest.contains('@') {
        return Err(problem(
            "has a user of its own beside origin.proxy.username",
        ));
    }
    let user = credentials.map_or_else(String::new, |pair| format!("{pair}@"));
    let whole = format!("{scheme}://{user}{rest}");
    whole
        .parse::<Uri>()
        .ok()
        .filter(|uri| uri.host().is_some_and(|host| !host.is_empty()))
        .filter(|uri| uri.authority().is_some_and(|all| all.as_str().matches('@').count() <= 1))
        .ok_or_else(|| {
            problem("isn't a proxy's address; write it as http://host:port, and what is special in a password as %40")
        })?;
    Ok(whole)
}

/// `NO_PROXY` as the matcher takes it: names without ports and stars.
fn exempt(hosts: &str) -> String {
    let one = |entry: &str| {
        let entry = entry.trim();
        let name = match entry.rsplit_once(':') {
            Some((name, port))
                if !port.is_empty()
                    && port.bytes().all(|byte| byte.is_ascii_digit())
                    && (name.ends_with(']') || !name.contains(':')) =>
            {
                name
            }
            _ => entry,
        };
        let name = name
            .strip_prefix('*')
            .filter(|rest| rest.starts_with('.'))
            .unwrap_or(name);
        name.trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned()
    };
    // Some programs take spaces between the entries, too.
    let entries: Vec<String> = hosts.split([',', ' ']).map(one).collect();
    entries.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(
        settings: &ProxySettings,
        environment: &[(&str, &str)],
    ) -> Result<Proxies, ConfigError> {
        Proxies::with_environment(settings, |name| {
            let found = environment.iter().find(|(key, _)| *key == name)?;
            Some(found.1.to_owned())
        })
    }

    fn through(proxies: &Proxies, uri: &str) -> Option<String> {
        let uri = uri.parse().unwrap();
        proxies.of(&uri).map(|proxy| proxy.name())
    }

    fn with_url(url: &str) -> ProxySettings {
        ProxySettings {
            url: Some(url.to_owned()),
            ..ProxySettings::default()
        }
    }

    #[test]
    fn the_environment_says_which_proxy_is_for_which_scheme() {
        let none = ProxySettings::default();
        let both = [
            ("HTTPS_PROXY", "http://secure:3128"),
            ("http_proxy", "plain:3129"),
            ("ALL_PROXY", "http://all:1"),
        ];
        let found = proxies(&none, &both).unwrap();
        assert_eq!(
            through(&found, "https://ghcr.io/").as_deref(),
            Some("secure:3128")
        );
        assert_eq!(
            through(&found, "http://ghcr.io/").as_deref(),
            Some("plain:3129")
        );
        assert_eq!(found.names(), ["secure:3128", "plain:3129"]);
        let all = proxies(&none, &[("all_proxy", "http://all:1")]).unwrap();
        assert_eq!(through(&all, "https://ghcr.io/").as_deref(), Some("all:1"));
        assert_eq!(through(&all, "http://ghcr.io/").as_deref(), Some("all:1"));
        assert_eq!(all.names(), ["all:1"]);
        let nothing = proxies(&none, &[("HTTPS_PROXY", " ")]).unwrap();
        assert_eq!(through(&nothing, "https://ghcr.io/"), None);
    }

    #[test]
    fn settings_win_over_the_environment() {
        let environment = [
            ("HTTPS_PROXY", "http://theirs:1"),
            ("NO_PROXY", "exempt.example"),
        ];
        let ours = proxies(&with_url("http://ours:2"), &environment).unwrap();
        assert_eq!(
            through(&ours, "https://ghcr.io/").as_deref(),
            Some("ours:2")
        );
        assert_eq!(through(&ours, "https://exempt.example/"), None);
        let off = proxies(&with_url(""), &environment).unwrap();
        assert_eq!(through(&off, "https://ghcr.io/"), None);
        assert!(off.names().is_empty());
        let others = ProxySettings {
            no_proxy: Some(vec!["ghcr.io".to_owned()]),
            ..ProxySettings::default()
        };
        let others = proxies(&others, &environment).unwrap();
        assert_eq!(through(&others, "https://ghcr.io/"), None);
        assert_eq!(
            through(&others, "https://exempt.example/").as_deref(),
            Some("theirs:1")
        );
    }

    #[test]
    fn what_is_exempt_and_this_machine_are_reached_directly() {
        let environment = [
            ("ALL_PROXY", "http://proxy:1"),
            (
                "NO_PROXY",
                "a.example, *.b.example .c.example,d.example:5000,10.0.0.0/8,[fd00::1]:5000",
            ),
        ];
        let found = proxies(&ProxySettings::default(), &environment).unwrap();
        for direct in [
            "https://a.example/",
            "https://x.a.example:8443/",
            "https://x.b.example/",
            "https://x.c.example/",
            "https://d.example:5000/",
            "http://10.1.2.3/",
            "https://[fd00::1]:5000/",
            "https://localhost:5000/",
            "http://127.0.0.1:5000/",
            "http://[::1]:5000/",
        ] {
            assert_eq!(through(&found, direct), None, "{direct}");
        }
        for not in [
            "https://nota.example/",
            "http://11.0.0.1/",
            "https://[fd00::2]/",
        ] {
            assert_eq!(through(&found, not).as_deref(), Some("proxy:1"), "{not}");
        }
    }

    #[test]
    fn a_password_comes_from_its_file_and_is_shown_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "p@ss:w%rd\n").unwrap();
        let settings = ProxySettings {
            username: Some("rob ot".to_owned()),
            password_file: Some(file),
            ..with_url("proxy:3128")
        };
        let found = proxies(&settings, &[]).unwrap();
        let proxy = found.of(&"https://ghcr.io/".parse().unwrap()).unwrap();
        // base64 of "rob ot:p@ss:w%rd"
        assert_eq!(
            proxy.authorization().unwrap(),
            "Basic cm9iIG90OnBAc3M6dyVyZA=="
        );
        assert_eq!(proxy.name(), "proxy:3128");
        let shown = format!("{found:?} {proxy:?} {settings:?}");
        assert!(
            !shown.contains("ss:w") && !shown.contains("cm9i"),
            "{shown}"
        );
        let in_url = proxies(&with_url("http://u:s3cret@proxy:1"), &[]).unwrap();
        assert!(!format!("{in_url:?}").contains("s3cret"));
    }

    #[test]
    fn what_is_no_proxy_is_an_error_that_names_the_setting_and_no_password() {
        let none = ProxySettings::default();
        for url in [
            "socks5://u:s3cret@proxy:1",
            "http://u:s3cret@",
            "http://u:s3@cret@proxy",
            "http://a b",
        ] {
            let error = proxies(&none, &[("https_proxy", url)])
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("https_proxy") && !error.contains("s3"),
                "{error}"
            );
            let error = proxies(&with_url(url), &[]).unwrap_err().to_string();
            assert!(
                error.contains("origin.proxy.url") && !error.contains("s3"),
                "{error}"
            );
        }
        let half = ProxySettings {
            username: Some("u".to_owned()),
            ..with_url("proxy:1")
        };
        assert!(proxies(&half, &[]).is_err());
        let missing = ProxySettings {
            password_file: Some("/nowhere/password".into()),
            ..half
        };
        let error = proxies(&missing, &[]).unwrap_err().to_string();
        assert!(error.contains("/nowhere/password"), "{error}");
        let without_url = ProxySettings {
            url: None,
            ..missing
        };
        assert!(proxies(&without_url, &[]).is_err());
    }
}
