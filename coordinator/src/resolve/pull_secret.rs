//! Pull Secrets as Kubernetes keeps them: registries' credentials in the form that docker writes (`.dockerconfigjson`).

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Users and passwords by registry.
pub(super) type Logins = BTreeMap<String, (String, String)>;

/// Why a pull Secret can't be used. The error reveals nothing that the Secret holds.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LearnError {
    /// The Secret isn't the JSON that docker writes.
    #[error(
        "its .dockerconfigjson can't be read; make it with `kubectl create secret docker-registry`"
    )]
    Json,
    /// An entry has neither `auth` nor user and password.
    #[error("its entry for {0} holds no user and password")]
    Auth(String),
}

/// Registries' credentials, in the form that docker writes.
#[derive(serde::Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(serde::Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// The logins that a pull Secret holds.
///
/// # Errors
/// When the Secret isn't of that form, or an entry holds no user and password.
pub(super) fn logins(dockerconfig: &[u8]) -> Result<Logins, LearnError> {
    let config: DockerConfig =
        serde_json::from_slice(dockerconfig).map_err(|_| LearnError::Json)?;
    let mut found = Logins::new();
    for (registry, auth) in config.auths {
        let registry = registry
            .trim_start_matches("https://")
            .trim_end_matches('/')
            .to_owned();
        let pair = match (auth.auth, auth.username, auth.password) {
            (_, Some(user), Some(password)) => Some((user, password)),
            (Some(auth), _, _) => decoded(&auth),
            _ => None,
        };
        let pair = pair.ok_or_else(|| LearnError::Auth(registry.clone()))?;
        found.insert(registry, pair);
    }
    Ok(found)
}

/// User and password, decoded from the base64 of `user:password`.
fn decoded(auth: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_an_entry_are_read_and_a_registry_is_named_without_scheme_and_slash() {
        let secret = br#"{"auths":{
            "https://ghcr.io/":{"auth":"dXNlcjpwYXNz"},
            "r.test:5000":{"username":"robot","password":"a:b","auth":"bm9uc2Vuc2U="}
        }}"#;
        let found = logins(secret).unwrap();
        assert_eq!(found["ghcr.io"], ("user".into(), "pass".into()));
        assert_eq!(found["r.test:5000"], ("robot".into(), "a:b".into()));
        assert!(logins(b"{}").unwrap().is_empty());
    }

    #[test]
    fn what_holds_no_user_and_password_is_refused_by_the_registrys_name() {
        for auth in [
            "{}",
            r#"{"auth":"!"}"#,
            r#"{"auth":"bm9uc2Vuc2U="}"#,
            r#"{"username":"x"}"#,
        ] {
            let secret = format!(r#"{{"auths":{{"r.test":{auth}}}}}"#);
            let refused = logins(secret.as_bytes());
            assert!(
                matches!(refused, Err(LearnError::Auth(of)) if of == "r.test"),
                "{auth}"
            );
        }
        assert!(matches!(logins(b"no JSON"), Err(LearnError::Json)));
    }
}
