//! The number of a place: what its caller knows it by.

use core::{fmt, str::FromStr};

/// The digits of a number, as text.
const DIGITS: usize = 16;

/// The number of a place. The caller makes it at random and keeps it through all tries of one ask, so that the caller
/// knows it even where every answer was lost. A counter of the coordinator's would have to outlive damaged files and
/// backups; a number that nobody else makes is never given twice. As text it has 16 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlaceNumber(u64);

/// The text isn't the number of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPlaceNumber;

impl fmt::Display for NoPlaceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not the number of a place ({DIGITS} digits 0-9 and a-f)")
    }
}

impl core::error::Error for NoPlaceNumber {}

impl FromStr for PlaceNumber {
    type Err = NoPlaceNumber;

    fn from_str(text: &str) -> Result<Self, NoPlaceNumber> {
        let usual = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != DIGITS || !text.bytes().all(usual) {
            return Err(NoPlaceNumber);
        }
        let number = u64::from_str_radix(text, 16);
        number.map(Self).map_err(|_| NoPlaceNumber)
    }
}

impl fmt::Display for PlaceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
