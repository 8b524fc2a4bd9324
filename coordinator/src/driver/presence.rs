//! What hosts hold, verified and ready to use, as the gate wants to know it: by exact reference, with the time at which
//! the host last looked at its disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{Digest, HostId, Moment, message};
use rollout::presence::Holdings;

use super::{Driver, MAX_REFERENCES};

/// Ages alone are published this often; a change of what is held at once.
const PUBLISH_AGES: Duration = Duration::from_secs(1);
/// Longest reference: as in [`crate::resolve`].
const MAX_REFERENCE_BYTES: usize = 512;

/// What one host holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPresence {
    /// Images that are ready there, by digest, with the references under which they are.
    pub(crate) holdings: Arc<Holdings>,
    /// When the host last looked.
    pub(crate) checked_at: Instant,
}

/// What every host holds that spoke since the coordinator started.
pub(crate) type PresenceView = BTreeMap<HostId, HostPresence>;

/// A host's own word.
#[derive(Debug, Default)]
pub(super) struct Word {
    pub(super) holdings: Arc<Holdings>,
    /// None: never, or longer ago than the machine's clock can tell.
    checked_at: Option<Instant>,
}

impl Driver {
    /// A session began: what the host said before doesn't count any more.
    pub(super) fn presence_anew(&mut self, host: &HostId) {
        if let Some(known) = self.hosts.get_mut(host) {
            known.word.holdings = Arc::default();
            self.presence_changed = true;
        }
    }

    /// The host spoke of these images.
    pub(super) fn presence_heard(
        &mut self,
        host: &HostId,
        images: &[message::ImageState],
        full: bool,
    ) {
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        let mut holdings = if full {
            Holdings::new()
        } else {
            (*known.word.holdings).clone()
        };
        let mut age = Duration::ZERO;
        for image in images {
            let Ok(digest) = Digest::try_from(image.manifest.as_slice()) else {
                continue;
            };
            let ready = matches!(
                image.state(),
                message::StageState::Present | message::StageState::Installing
            );
            if !ready || image.ready_references.is_empty() {
                holdings.remove(&digest);
                continue;
            }
            // a host whose look at its disk hangs ages, however often it reports
            age = age.max(Duration::from_millis(image.presence_age_ms));
            let references: BTreeSet<String> = image
                .ready_references
                .iter()
                .filter(|reference| reference.len() <= MAX_REFERENCE_BYTES)
                .take(MAX_REFERENCES)
                .cloned()
                .collect();
            if holdings.len() < super::MAX_IMAGES_PER_HOST || holdings.contains_key(&digest) {
                holdings.insert(digest, references);
            }
        }
        if *known.word.holdings != holdings {
            known.word.holdings = Arc::new(holdings);
            self.presence_changed = true;
        }
        known.word.checked_at = Instant::now().checked_sub(age);
        self.presence_heard = true;
    }

    /// Publishes what changed.
    pub(super) fn show_presence(&mut self, now: Moment) {
        let due = self.presence_changed || (self.presence_heard && self.presence_due <= now);
        if !due {
            return;
        }
        self.presence_changed = false;
        self.presence_heard = false;
        self.presence_due = now + PUBLISH_AGES;
        let view = self
            .hosts
            .iter()
            .filter_map(|(host, known)| {
                let checked_at = known.word.checked_at?;
                let presence = HostPresence {
                    holdings: known.word.holdings.clone(),
                    checked_at,
                };
                Some((host.clone(), presence))
            })
            .collect();
        self.presence.send_replace(Arc::new(view));
    }
}
