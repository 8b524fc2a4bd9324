//! An error with its causes as one line, without repetition.

use alloc::string::{String, ToString as _};
use core::error::Error;

/// The error and its causes, separated by colons. Many errors repeat their cause in their own text, so a cause is left
/// out when the text so far ends with it.
#[must_use]
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use core::fmt;
    use std::boxed::Box;

    use super::*;

    #[derive(Debug)]
    struct Told(&'static str, Option<Box<Self>>);

    impl fmt::Display for Told {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Told {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as &dyn Error)
        }
    }

    #[test]
    fn each_cause_is_said_once() {
        let told = |text, cause| Told(text, cause);
        let boxed = |text, cause| Some(Box::new(Told(text, cause)));
        assert_eq!(causes(&told("lost", None)), "lost");
        let plain = told("reading a", boxed("denied", boxed("os error 13", None)));
        assert_eq!(causes(&plain), "reading a: denied: os error 13");
        let doubled = told(
            "connection lost: timed out: nothing came",
            boxed("timed out: nothing came", None),
        );
        assert_eq!(causes(&doubled), "connection lost: timed out: nothing came");
        let amid = told("a: b", boxed("b", boxed("c", boxed("c", None))));
        assert_eq!(causes(&amid), "a: b: c");
    }
}
