//! Names of groups.

use alloc::string::String;
use core::{fmt, str::FromStr};

/// The most bytes of a group's name.
pub const MAX_GROUP_BYTES: usize = 64;

/// The name of a group: 1 to 64 letters, digits, `.`, `_` and `-`, a letter or digit first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupName(String);

/// The text isn't the name of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoGroupName;

impl fmt::Display for NoGroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not the name of a group (1 to {MAX_GROUP_BYTES} letters, digits, '.', '_' and '-', a letter or digit first)"
        )
    }
}

impl core::error::Error for NoGroupName {}

impl GroupName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GroupName {
    type Err = NoGroupName;

    fn from_str(text: &str) -> Result<Self, NoGroupName> {
        let usual = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let begins = text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric());
        match begins && text.len() <= MAX_GROUP_BYTES && text.bytes().all(usual) {
            true => Ok(Self(text.into())),
            false => Err(NoGroupName),
        }
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
