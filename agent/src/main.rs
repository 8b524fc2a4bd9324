//! `parbake-agent`.
fn main() {}
