//! Goldens: local tart VMs cloned from a staged image, under the name by which the fleet's node agent looks for them.

use std::path::PathBuf;

use proto::image::golden_name;
use tracing::info;

use crate::{
    config::Config,
    metrics::{Metrics, OperationLabel},
    tart::Tart,
};

/// Makes goldens, where the agent is configured to.
#[derive(Debug)]
pub(crate) struct Goldens {
    prefix: String,
    vms: PathBuf,
    tart: Tart,
    metrics: Metrics,
}

impl Goldens {
    pub(crate) fn new(config: &Config, prefix: String, metrics: Metrics) -> Self {
        let tart = Tart::new(config.tart_binary.clone(), config.tart_home.clone());
        Self {
            prefix,
            vms: config.tart_home.join("vms"),
            tart,
            metrics,
        }
    }

    /// Makes the golden of this reference, unless it is there.
    pub(crate) async fn make(&self, reference: &str) -> anyhow::Result<()> {
        let name = golden_name(&self.prefix, reference);
        if self.exists(reference) {
            return Ok(());
        }
        let result = self.tart.clone(reference, &name).await;
        let outcome = match &result {
            Ok(()) => "ok",
            Err(error) => error.outcome(),
        };
        self.metrics
            .tart_operations
            .get_or_create(&OperationLabel {
                operation: "clone",
                outcome,
            })
            .inc();
        result?;
        info!(reference, golden = name, "golden is made");
        Ok(())
    }

    /// Whether the golden of this reference is there: presence counts only with it.
    pub(crate) fn exists(&self, reference: &str) -> bool {
        self.vms
            .join(golden_name(&self.prefix, reference))
            .join("disk.img")
            .exists()
    }
}
