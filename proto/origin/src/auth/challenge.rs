//! Reads `WWW-Authenticate` headers as registries write them (RFC 9110 §11.6.1).

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// The most bytes that are read of all challenges together.
const MAX_HEADER_BYTES: usize = 8 << 10;
/// The most challenges that are read.
const MAX_CHALLENGES: usize = 16;

/// One demand of a registry for credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// The user and the password with each request.
    Basic,
    /// A token from a token endpoint.
    Bearer(Bearer),
}

/// Where a token comes from, and what it is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bearer {
    /// The token endpoint.
    pub(crate) realm: String,
    /// The service that the token is for.
    pub(crate) service: Option<String>,
    /// What the token permits.
    pub(crate) scope: Option<String>,
}

/// Every challenge of a known kind in these headers, in their order.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut left = MAX_HEADER_BYTES;
    let mut all = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Some(rest) = left.checked_sub(value.len()) else {
            break;
        };
        left = rest;
        // Bytes beyond ASCII are legal in quoted strings, but no realm has any.
        if let Ok(text) = value.to_str() {
            parse(text, &mut all);
        }
    }
    all
}

fn parse(text: &str, all: &mut Vec<Challenge>) {
    let mut rest = Cursor(text);
    let mut open: Option<Raw> = None;
    while all.len() < MAX_CHALLENGES {
        rest.skip(|c| c == ',' || c.is_ascii_whitespace());
        let word = rest.token();
        if word.is_empty() {
            // The end, or text that isn't a challenge. The challenges before it still count.
            break;
        }
        let before = rest;
        rest.skip(|c| c.is_ascii_whitespace());
        let parameter = if rest.eat('=') {
            rest.skip(|c| c.is_ascii_whitespace());
            rest.value()
        } else {
            None
        };
        match (parameter, &mut open) {
            (Some(value), Some(raw)) => raw.set(word, value),
            (Some(_), None) => {}
            (None, _) => {
                rest = before;
                all.extend(open.replace(Raw::new(word)).and_then(Raw::finish));
                rest.token68();
            }
        }
    }
    all.extend(open.and_then(Raw::finish));
}

/// A challenge while its parameters are being read.
struct Raw {
    scheme: String,
    realm: Option<String>,
    service: Option<String>,
    scope: Option<String>,
}

impl Raw {
    fn new(scheme: &str) -> Self {
        Self {
            scheme: scheme.to_ascii_lowercase(),
            realm: None,
            service: None,
            scope: None,
        }
    }

    fn set(&mut self, name: &str, value: String) {
        match name.to_ascii_lowercase().as_str() {
            "realm" => self.realm = Some(value),
            "service" => self.service = Some(value),
            "scope" => self.scope = Some(value),
            _ => {}
        }
    }

    fn finish(self) -> Option<Challenge> {
        match self.scheme.as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => Some(Challenge::Bearer(Bearer {
                realm: self.realm?,
                service: self.service,
                scope: self.scope,
            })),
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn skip(&mut self, which: impl Fn(char) -> bool) {
        self.0 = self.0.trim_start_matches(which);
    }

    fn eat(&mut self, wanted: char) -> bool {
        match self.0.strip_prefix(wanted) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn take(&mut self, which: impl Fn(char) -> bool) -> &'a str {
        let end = self.0.find(|c| !which(c)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(end);
        self.0 = rest;
        taken
    }

    fn token(&mut self) -> &'a str {
        self.take(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))
    }

    /// A token or a quoted string; `None` when there is neither, as after the padding of a token68.
    fn value(&mut self) -> Option<String> {
        if !self.eat('"') {
            // Some registries leave out the quotes around a URL.
            let bare = self.take(|c| !c.is_ascii_whitespace() && !",\"=".contains(c));
            return (!bare.is_empty()).then(|| bare.to_owned());
        }
        let mut value = String::new();
        let mut chars = self.0.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.0 = &self.0[at + 1..];
                    return Some(value);
                }
                '\\' => value.extend(chars.next().map(|(_, c)| c)),
                c => value.push(c),
            }
        }
        // There is no closing quote.
        self.0 = "";
        None
    }

    /// Skips the token68 that may stand instead of parameters (`Negotiate YII=`).
    fn token68(&mut self) {
        let mut ahead = *self;
        ahead.skip(|c| c.is_ascii_whitespace());
        ahead.take(|c| c.is_ascii_alphanumeric() || "-._~+/".contains(c));
        ahead.take(|c| c == '=');
        ahead.skip(|c| c.is_ascii_whitespace());
        if ahead.0.is_empty() || ahead.0.starts_with(',') {
            *self = ahead;
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn of(lines: &[&str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(line).unwrap());
        }
        challenges(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer(Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        })
    }

    #[test]
    fn a_bearer_challenge_with_commas_in_its_scope_is_read() {
        assert_eq!(
            of(&[
                r#"Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:a/b:pull,push""#
            ]),
            [bearer(
                "https://ghcr.io/token",
                Some("ghcr.io"),
                Some("repository:a/b:pull,push")
            )]
        );
    }

    #[test]
    fn several_challenges_are_told_apart_in_one_line_and_in_many() {
        let both = [Challenge::Basic, bearer("https://t/", None, Some("x"))];
        assert_eq!(
            of(&[r#"Basic realm="a, b", charset="UTF-8", Bearer realm="https://t/", scope=x"#]),
            both
        );
        assert_eq!(
            of(&[
                r#"Basic realm="a""#,
                r#"bearer  Realm = "https://t/" ,scope="x""#
            ]),
            both
        );
        assert_eq!(
            of(&[
                r#"Negotiate YIIabc==, Basic, Digest realm="q", nonce="n", BEARER realm="https://t/",scope=x"#
            ]),
            both
        );
    }

    #[test]
    fn quoted_pairs_are_unescaped() {
        assert_eq!(
            of(&[r#"Bearer realm="https://t/\"q\"\\",service="s""#]),
            [bearer(r#"https://t/"q"\"#, Some("s"), None)]
        );
    }

    #[test]
    fn a_bare_url_and_a_missing_realm() {
        assert_eq!(
            of(&["Bearer realm=https://t/token,service=s"]),
            [bearer("https://t/token", Some("s"), None)]
        );
        assert_eq!(of(&[r#"Bearer service="s""#]), []);
        assert_eq!(of(&[r#"Bearer realm="never closed"#]), []);
        assert_eq!(of(&["", "=", "Basic"]), [Challenge::Basic]);
    }

    #[test]
    fn too_long_headers_are_left_alone() {
        let long = format!("Bearer realm=\"{}\"", "x".repeat(MAX_HEADER_BYTES));
        assert_eq!(of(&[&long]), []);
        let many = "Basic,".repeat(1000);
        assert!(of(&[&many]).len() <= MAX_CHALLENGES + 1);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "[ -~]{0,200}") {
            of(&[&text]);
        }

        #[test]
        fn any_challenge_like_text_is_read_without_panic(
            text in r#"(Basic|Bearer|realm|scope|=|"|\\|,| |x)*"#
        ) {
            of(&[&text]);
        }
    }
}
