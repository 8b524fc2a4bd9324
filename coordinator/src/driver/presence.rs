//! What hosts hold, verified and ready to use, as the gate wants to know it: by exact reference, with the time at which
//! the host last looked at its disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{Digest, HostId, Moment, message, reference::MAX_REFERENCE_BYTES};
use rollout::presence::Holdings;

use super::Driver;

/// Ages alone are published this often; a change of what is held at once.
const PUBLISH_AGES: Duration = Duration::from_secs(1);

/// References of one image that a host may say it is ready under: more than may be wanted.
const MAX_READY_REFERENCES: usize = 256;

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
    /// All of it.
    pub(super) said: Holdings,
    /// What of it counts.
    pub(super) holdings: Arc<Holdings>,
    /// None: never, or longer ago than the machine's clock can tell.
    checked_at: Option<Instant>,
}

/// The references that an image is ready under, as far as they are kept: those that are wanted before others, because an agent
/// of an earlier version says all that it ever had, in the order of the alphabet.
fn ready_references(
    image: &message::ImageState,
    wanted: Option<&BTreeSet<String>>,
) -> BTreeSet<String> {
    let usable = || {
        let said = image.ready_references.iter();
        said.filter(|reference| reference.len() <= MAX_REFERENCE_BYTES)
    };
    let is_wanted = |reference: &&String| wanted.is_some_and(|wanted| wanted.contains(*reference));
    let first = usable().filter(is_wanted);
    let first = first.chain(usable().filter(|reference| !is_wanted(reference)));
    first.take(MAX_READY_REFERENCES).cloned().collect()
}

impl Driver {
    /// A session began: what the host said before doesn't count any more.
    pub(super) fn presence_anew(&mut self, host: &HostId) {
        if let Some(known) = self.hosts.get_mut(host) {
            known.word.said = Holdings::new();
            known.word.holdings = Arc::default();
            self.presence_changed = true;
        }
    }

    /// The host spoke of these images; `names` is the newest order about names after which it looked.
    pub(super) fn presence_heard(
        &mut self,
        now: Moment,
        host: &HostId,
        images: &[message::ImageState],
        full: bool,
        names: u64,
    ) {
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        let mut said = if full {
            Holdings::new()
        } else {
            std::mem::take(&mut known.word.said)
        };
        let (mut age, mut looked) = (Duration::ZERO, false);
        for image in images {
            let Ok(digest) = Digest::try_from(image.manifest.as_slice()) else {
                continue;
            };
            let ready = matches!(
                image.state(),
                message::StageState::Present
                    | message::StageState::Installing
                    | message::StageState::Failed
            );
            if !ready || image.ready_references.is_empty() {
                said.remove(&digest);
                continue;
            }
            // a host whose look at its disk hangs ages, however often it reports
            age = age.max(Duration::from_millis(image.presence_age_ms));
            looked = true;
            let wanted = self.wants.get(&digest);
            let references = ready_references(image, wanted.map(|wanted| &wanted.want.references));
            if said.len() < super::MAX_IMAGES || said.contains_key(&digest) {
                said.insert(digest, references);
            }
        }
        known.word.said = said;
        known.word.checked_at = Instant::now().checked_sub(age);
        let looked_at = Moment::START + now.since(Moment::START).saturating_sub(age);
        known.told.heard(names, looked.then_some(looked_at));
        self.presence_heard = true;
        self.count_presence(host);
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
