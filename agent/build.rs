//! Looks for the program that some tests need, so that a test whose program is missing is `ignored` with a reason. What
//! is built is the same with and without it.

use std::{env, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PARBAKE_MKFS_XFS");
    println!("cargo::rustc-check-cfg=cfg(xfs)");
    if env::var("PARBAKE_MKFS_XFS").is_ok_and(|program| Path::new(&program).exists()) {
        println!("cargo::rustc-cfg=xfs");
    }
}
