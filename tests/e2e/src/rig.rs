//! What most tests of the real programs begin with: a site whose registry has one image, clusters that stage it, and
//! the comparison of every host's disk with the source.

use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::{
    cluster::{Cluster, Present},
    image::{GeneratedImage, ImageSpec},
    registry,
    site::{self, PATIENCE, Site},
    tart_home,
};

/// An image in a registry.
#[derive(Debug)]
pub struct Rig {
    /// The registry, and where everything is kept.
    pub site: Site,
    /// The image.
    pub image: GeneratedImage,
    /// Its reference there.
    pub reference: String,
}

impl Rig {
    /// Makes the image and starts the registry.
    ///
    /// # Errors
    /// When the image can't be made or no port is to be had.
    pub fn new(spec: &ImageSpec, options: registry::Options) -> anyhow::Result<Self> {
        let site = Site::new(options)?;
        let image = site.image(spec)?;
        let reference = site.registry.hold("fleet/macos", "1", &image);
        Ok(Self {
            site,
            image,
            reference,
        })
    }

    /// With a registry that sends at most so many bytes per second.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn paced(
        spec: &ImageSpec,
        rate_bytes_per_s: impl Into<Option<u64>>,
    ) -> anyhow::Result<Self> {
        let rate_bytes_per_s = rate_bytes_per_s.into();
        let options = registry::Options {
            rate_bytes_per_s,
            ..registry::Options::default()
        };
        Self::new(spec, options)
    }

    /// Where the image's disk lies in a tart home.
    #[must_use]
    pub fn disk(&self, tart_home: &Path) -> PathBuf {
        tart_home::disk(tart_home, &self.reference)
    }

    /// What of the installed image isn't the source's, bit by bit, in this tart home.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn difference(&self, tart_home: &Path) -> anyhow::Result<Option<String>> {
        tart_home::difference(tart_home, &self.reference, &self.image)
    }

    /// The same on every host.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn difference_anywhere(&self, cluster: &Cluster) -> anyhow::Result<Option<String>> {
        site::difference(cluster, &self.reference, &self.image)
    }

    /// Waits until the image is present on every host, and compares every disk with the source; what each host logged.
    ///
    /// # Errors
    /// When a host hasn't got it in time, or has something else.
    pub fn arrives(&self, cluster: &Cluster) -> anyhow::Result<Vec<Present>> {
        let present = cluster.wait_present(&self.image.digest.to_string(), PATIENCE)?;
        if let Some(difference) = self.difference_anywhere(cluster)? {
            bail!("not the source's bytes: {difference}");
        }
        Ok(present)
    }
}
