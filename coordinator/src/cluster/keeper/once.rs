//! Complaints that are told once each.

use std::collections::BTreeSet;

/// What was said already, up to a number of texts: above it nothing new is said.
#[derive(Debug)]
pub(super) struct Once {
    most: usize,
    said: BTreeSet<String>,
}

impl Once {
    /// Nothing was said yet; at most so many texts will be.
    pub(super) const fn new(most: usize) -> Self {
        Self {
            most,
            said: BTreeSet::new(),
        }
    }

    /// Whether this is to be said now: it wasn't said yet, and there is room to remember that it was.
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
