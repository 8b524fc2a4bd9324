//! Leases for clients of mirrors: how many one host has, and who goes last.
//!
//! Any host may ask for any blob, so a want says nothing, and a registry that a client named says nothing about the host: a
//! client may ask for what a dead registry has. So what comes of a host's leases for mirrors counts for those leases alone,
//! never for images, and it counts by two degrees:
//! - a host whose last leases brought nothing is leased a blob only after those that want it too;
//! - one that let a lease expire and nobody got anything of it is on trial for a minute, and twice as long each time: one lease at
//!   a time, of what nobody else wants, and beside the others' leases. Whatever it does with that one, others don't wait for
//!   it: whoever wants the same gets the lease.
//!
//! Both end when others get something of one of its leases. Beside that, no host has more than half of the leases.

use super::*;
use crate::stage::action::RevokeCause;

/// The first trial; doubled each time.
const TRIAL: Duration = Duration::from_mins(1);
/// The longest one.
const TRIAL_MOST: Duration = Duration::from_hours(1);

/// What came of one host's leases for mirrors since others last got something of one.
#[derive(Debug, Default)]
pub(super) struct Yield {
    /// Leases that brought nothing.
    barren: u32,
    /// Trials, since when the last one counts, and until when it lasts.
    trials: u32,
    trial_since: Moment,
    trial_until: Option<Moment>,
}

impl Yield {
    /// How far it goes behind others that want the same blob.
    pub(super) fn barren(&self) -> u32 {
        self.barren.min(8)
    }

    pub(super) fn is_on_trial(&self, now: Moment) -> bool {
        self.trial_until.is_some_and(|until| now < until)
    }

    /// Others got something of a lease of its.
    pub(super) fn brought(&mut self) {
        *self = Self::default();
    }

    /// A lease of its ended, as the holder says.
    pub(super) fn failed(&mut self) {
        self.barren = self.barren.saturating_add(1);
    }

    /// A lease of its ran out. Those that were granted before a trial and run out amid it are part of what that one is for.
    fn expired(&mut self, now: Moment, granted_at: Moment) {
        self.failed();
        if self.is_on_trial(now) && granted_at < self.trial_since {
            return;
        }
        self.trial_since = now;
        self.trial_until = Some(now + fault::growing(TRIAL, TRIAL_MOST, self.trials));
        self.trials = self.trials.saturating_add(1);
    }
}

impl Plan {
    /// Leases for mirrors that one host may have, unless it is on trial.
    pub(super) const fn mirror_share(&self) -> usize {
        self.config.origin_streams.div_ceil(2)
    }

    /// Whether this host is to be leased blobs of mirrors one by one, beside the others.
    pub(super) fn is_on_trial(&self, id: &HostId) -> bool {
        let host = self.hosts.get(id);
        host.is_some_and(|host| host.mirror_yield.is_on_trial(self.now))
    }

    /// What a host has on trial passes on as soon as another wants it that isn't: so nobody waits for it.
    pub(super) fn pass_on_trials(&mut self) {
        let wanted = |digest: &Digest| {
            let images = self.images.iter();
            let mut images = images.filter(|image| image.contents.contains(digest));
            images.any(|image| {
                let candidates = self.candidates(image);
                candidates.into_iter().any(|id| !self.is_on_trial(id))
            })
        };
        let over: Vec<(HostId, Digest)> = self
            .contents
            .iter()
            .filter_map(|(digest, content)| {
                let lease = content.lease.as_ref()?;
                let trial = lease.trial && !lease.has_brought();
                trial.then(|| (lease.host.clone(), *digest))
            })
            .filter(|(_, digest)| wanted(digest))
            .collect();
        for (id, digest) in over {
            self.end(digest);
            self.revoke(&id, digest, RevokeCause::Ended);
        }
    }

    /// A mirror's registry failed one host, refused its client or gave it something false: the next one tries after a while.
    pub(super) fn mirror_failed(&mut self, id: &HostId, digest: Digest) {
        let failures = self
            .contents
            .get(&digest)
            .map_or(0, |content| content.mirror_failures);
        let wait = self.retry_wait(failures);
        let now = self.now;
        if let Some(content) = self.contents.get_mut(&digest) {
            content.tried.insert(id.clone());
            content.mirror_failures = failures.saturating_add(1);
            content.mirror_retry_at = Some(now + wait);
        }
        if let Some(host) = self.hosts.get_mut(id) {
            host.mirror_yield.failed();
        }
    }

    /// A lease passes on that its holder let run out. For an image that makes others the better holders of any content. For a
    /// mirror it says so of mirrors' leases, and only where nobody got anything of this one.
    pub(super) fn ran_out(&mut self, id: &HostId, lease: Option<&lease::Lease>) {
        let mirror = lease.is_some_and(|lease| lease.mirror);
        if !mirror || lease.is_some_and(|lease| !lease.has_brought()) {
            let granted_at = lease.map_or(self.now, |lease| lease.granted_at);
            self.brought_nothing(id, mirror.then_some(granted_at));
        }
    }

    /// Nobody got anything of what this host had leased, for a mirror since then, and it didn't say that it can't fetch it.
    pub(super) fn brought_nothing(&mut self, id: &HostId, mirror: Option<Moment>) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        if let Some(granted_at) = mirror {
            host.mirror_yield.expired(now, granted_at);
        } else {
            host.failures = host.failures.saturating_add(1);
        }
    }
}
