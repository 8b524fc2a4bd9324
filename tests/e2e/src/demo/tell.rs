//! How the demo tells its story, and the numbers in it.

#[expect(clippy::print_stderr, reason = "the story goes to stderr")]
pub(super) fn say(text: &str) {
    eprintln!("{text}");
}

pub(super) fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

pub(super) fn round4(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}
