//! Compiles the wire schema with protox: no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/parbake.proto");
    let files = protox::compile(["parbake.proto"], ["proto"])?;
    prost_build::Config::new()
        .btree_map(["."])
        // `message` has one that doesn't show the token
        .skip_debug([".parbake.PullToken"])
        .compile_fds(files)?;
    Ok(())
}
