//! Writes every target's seeds into DIR/TARGET/, where libFuzzer begins.

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let directory = std::env::args_os().nth(1).context("which directory?")?;
    for target in fuzz::TARGETS {
        let directory = std::path::Path::new(&directory).join(target.name);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        for (at, seed) in (target.seeds)().into_iter().enumerate() {
            let path = directory.join(format!("seed-{at}"));
            std::fs::write(&path, seed).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(())
}
