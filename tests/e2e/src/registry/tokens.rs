//! The tokens that a registry's endpoint has given out.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use proto::Digest;

/// What a token permits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    name: String,
    actions: Vec<String>,
}

impl Scope {
    /// Reads `repository:NAME:ACTION,ACTION`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("repository:")?;
        let (name, actions) = rest.rsplit_once(':')?;
        Some(Self {
            name: name.to_owned(),
            actions: actions.split(',').map(str::to_owned).collect(),
        })
    }

    pub(super) fn permits(&self, name: &str, action: &str) -> bool {
        self.name == name && self.actions.iter().any(|own| own == action)
    }
}

#[derive(Debug, Default)]
pub(super) struct Tokens {
    given: BTreeMap<String, (Vec<Scope>, Instant)>,
    count: u64,
}

impl Tokens {
    pub(super) fn give(&mut self, scopes: Vec<Scope>, life: Duration) -> String {
        let now = Instant::now();
        self.given.retain(|_, (_, end)| *end > now);
        self.count += 1;
        // Recognisable in logs, and as long as real ones begin to be; nobody guesses inside a test.
        let token = format!(
            "token-{}-{}",
            self.count,
            Digest::of(&self.count.to_le_bytes()).hex()
        );
        self.given.insert(token.clone(), (scopes, now + life));
        token
    }

    /// Whether the token permits an action on a repository; `None` asks for any valid token.
    pub(super) fn permits(&self, token: &str, action: Option<(&str, &str)>) -> bool {
        self.given.get(token).is_some_and(|(scopes, end)| {
            *end > Instant::now()
                && action.is_none_or(|(name, action)| {
                    scopes.iter().any(|scope| scope.permits(name, action))
                })
        })
    }

    pub(super) fn revoke_all(&mut self) {
        self.given.clear();
    }
}
