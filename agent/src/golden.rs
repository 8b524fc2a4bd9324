//! Goldens: local tart VMs cloned from a staged image, under the name by which the fleet's node agent looks for them.
//!
//! A golden's name follows from the reference alone, so a tag that moved leaves a golden of the old image under it. A mark
//! beside the store says which image a golden of ours was made from: `TART_HOME/.parbake/goldens/<name>`, the digest.

use std::{fs, io, path::PathBuf};

use anyhow::Context as _;
use proto::{Digest, image::golden_name};
use tracing::info;

use crate::{
    config::Config,
    metrics::{Metrics, OperationLabel},
    tart::{Tart, TartError, cache},
};

/// Makes goldens, where the agent is configured to.
#[derive(Debug)]
pub(crate) struct Goldens {
    prefix: String,
    home: PathBuf,
    tart: Tart,
    metrics: Metrics,
}

impl Goldens {
    pub(crate) fn new(config: &Config, prefix: String, metrics: Metrics) -> Self {
        let tart = Tart::new(config.tart_binary.clone(), config.tart_home.clone());
        Self {
            prefix,
            home: config.tart_home.clone(),
            tart,
            metrics,
        }
    }

    /// Makes the golden of this reference from this image, unless it is there. One of another image is replaced.
    pub(crate) async fn make(&self, reference: &str, image: Digest) -> anyhow::Result<()> {
        if self.exists(reference, image) {
            return Ok(());
        }
        let name = golden_name(&self.prefix, reference);
        if cache::vm_directory(&self.home, &name).exists() {
            self.counted("delete", self.tart.delete(&name).await)?;
        }
        self.counted("clone", self.tart.clone(reference, &name).await)?;
        // a crash before this makes the golden anew at the next start
        self.mark(&name, image)
            .with_context(|| format!("marking golden {name}"))?;
        info!(reference, golden = name, "golden is made");
        Ok(())
    }

    /// Whether the golden of this reference is there and of this image: presence counts only with it.
    pub(crate) fn exists(&self, reference: &str, image: Digest) -> bool {
        let name = golden_name(&self.prefix, reference);
        if !cache::is_complete(&cache::vm_directory(&self.home, &name)) {
            return false;
        }
        match fs::read_to_string(self.mark_path(&name)) {
            Ok(mark) => mark.trim().parse() == Ok(image),
            // not ours: of a reference by digest it can only be this image's
            Err(_) => reference.ends_with(&image.to_string()),
        }
    }

    fn counted(
        &self,
        operation: &'static str,
        result: Result<(), TartError>,
    ) -> Result<(), TartError> {
        let outcome = match &result {
            Ok(()) => "ok",
            Err(error) => error.outcome(),
        };
        let label = OperationLabel { operation, outcome };
        self.metrics.tart_operations.get_or_create(&label).inc();
        result
    }

    fn mark_path(&self, name: &str) -> PathBuf {
        self.home.join(".parbake/goldens").join(name)
    }

    fn mark(&self, name: &str, image: Digest) -> io::Result<()> {
        let path = self.mark_path(name);
        fs::create_dir_all(self.home.join(".parbake/goldens"))?;
        fs::write(path, image.to_string())
    }
}
