//! The demo's processes: each ends with whoever holds it.

use std::{
    process::Child,
    time::{Duration, Instant},
};

use anyhow::bail;

use crate::{cluster, interrupt};

/// A process that ends with whoever holds this.
pub(super) struct Ended(pub(super) Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // gone already, or ended here; either way nothing of ours is left
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Waits until `parbake stage --wait` has ended: that is when every host has the image, or when it has said why none
/// will. One that is still at it after `patience` is left to whoever looks at the hosts.
pub(super) fn wait_for(child: &mut Child, patience: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + patience;
    loop {
        interrupt::check()?;
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("`parbake stage --wait` ended ({status}); it said why"),
            None if Instant::now() >= until => return Ok(()),
            None => cluster::pause(),
        }
    }
}
