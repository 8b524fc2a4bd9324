//! Complaints that are logged once each.

use std::collections::BTreeSet;

/// The texts that were said already. When `most` texts were said, no new text is said.
#[derive(Debug)]
pub(super) struct Once {
    most: usize,
    said: BTreeSet<String>,
}

impl Once {
    /// Nothing was said yet. At most this many texts will be.
    pub(super) const fn new(most: usize) -> Self {
        Self {
            most,
            said: BTreeSet::new(),
        }
    }

    /// Whether this text is to be said now: it is new, and there is room to remember it.
    pub(super) fn is_new(&mut self, text: &str) -> bool {
        self.said.len() < self.most && self.said.insert(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_is_said_once_and_no_more_texts_than_can_be_remembered() {
        let mut once = Once::new(2);
        assert!(once.is_new("a"));
        assert!(!once.is_new("a"));
        assert!(once.is_new("b"));
        assert!(!once.is_new("c") && !once.is_new("b"));
    }
}
