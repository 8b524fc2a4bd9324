//! The election's decisions, as one candidate takes them. This file does no I/O, and the time is an argument.

use std::time::Duration;

use k8s_openapi::{api::coordination::v1::Lease, jiff};

use crate::cluster::term::LAST_TERM;

/// The Lease's name.
pub const NAME: &str = "parbake-coordinator";
/// Marks a Lease that was made where there was none. The Lease carries the annotation until its holder leads.
pub(super) const NEW: &str = "parbake.dev/new";

/// The settings of a candidate in the election.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The holder's name in the Lease: the Pod's name. A container that restarts in the same Pod takes its own lease
    /// back at once.
    pub(crate) identity: String,
    /// How long the lease lasts without a renewal.
    pub(crate) duration: Duration,
}

/// Why an election ended although nobody stopped it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LostError {
    /// No renewal succeeded in time. Another coordinator takes over.
    #[error("lease {NAME} couldn't be renewed in time; another coordinator takes over")]
    Expired,
    /// Somebody else holds the lease.
    #[error("lease {NAME} was taken by {0}")]
    Taken(String),
    /// Somebody removed the Lease, so anybody may make a new one.
    #[error("lease {NAME} was deleted while this coordinator led")]
    Deleted,
}

/// The lease as the server has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) holder: Option<String>,
    pub(super) transitions: u32,
    pub(super) duration: Duration,
    /// Compared only with other values of this field, never with a clock.
    pub(super) renewed: Option<jiff::Timestamp>,
    /// When the holder acquired the lease. For people only; nothing is decided by this time.
    pub(super) acquired: Option<jiff::Timestamp>,
    /// Nobody has led by this Lease yet, and the holder of a deleted Lease may still lead.
    pub(super) new: bool,
    pub(super) version: Option<String>,
    /// Tells a Lease from a deleted one of the same name.
    pub(super) uid: Option<String>,
}

impl Record {
    pub(super) fn read(lease: &Lease) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        let annotations = lease.metadata.annotations.as_ref();
        let seconds = spec.lease_duration_seconds.unwrap_or_default();
        Self {
            holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
            transitions: spec
                .lease_transitions
                .and_then(|number| number.try_into().ok())
                .unwrap_or_default(),
            duration: Duration::from_secs(seconds.try_into().unwrap_or_default()),
            renewed: spec.renew_time.map(|time| time.0),
            acquired: spec.acquire_time.map(|time| time.0),
            new: annotations.is_some_and(|all| all.contains_key(NEW)),
            version: lease.metadata.resource_version.clone(),
            uid: lease.metadata.uid.clone(),
        }
    }

    /// Whether both records show the same term and the same renewal: the holder gave no sign of life between them.
    fn same_term(&self, other: &Self) -> bool {
        (&self.holder, self.transitions, self.renewed)
            == (&other.holder, other.transitions, other.renewed)
    }
}

/// The next step of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask for the lease.
    Look,
    /// Write the lease with ourselves as its holder.
    Take,
    /// Write the lease again.
    Renew,
    /// Do nothing for now. The next step is due at this time at the latest.
    Wait(Duration),
    /// We don't lead any more.
    Lose(LostError),
}

/// The election, as one candidate sees it. All times are times of [`clock`].
#[derive(Clone, Debug)]
pub(super) struct Election {
    settings: Settings,
    /// The record that was seen last, and since when it has been unchanged. The inner `None` means that there is no
    /// lease.
    seen: Option<(Option<Record>, Duration)>,
    /// The longest duration of any lease that was seen with a holder.
    longest: Option<Duration>,
    /// The term in the Secret when the Secret was last read. 0 where nobody has led yet.
    claimed: u32,
    /// When the lease was last looked at.
    looked: Duration,
    /// When the last renewal that succeeded was sent, while we hold the lease.
    renewed: Option<Duration>,
    /// Whoever holds the lease leads only from this time on.
    from: Duration,
}

impl Election {
    pub(super) const fn new(settings: Settings) -> Self {
        Self {
            settings,
            seen: None,
            longest: None,
            claimed: 0,
            looked: Duration::ZERO,
            renewed: None,
            from: Duration::ZERO,
        }
    }

    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Tells the election that the Secret has this term.
    pub(super) const fn claimed(&mut self, term: u32) {
        self.claimed = term;
    }

    /// Whether this candidate holds the lease and may not lead yet.
    pub(super) fn waits(&self, now: Duration) -> bool {
        self.renewed.is_some() && self.leads(now).is_none()
    }

    /// The time between two renewals, and between two looks at another's lease.
    fn pace(&self) -> Duration {
        self.settings.duration / 5
    }

    /// When a leader must have stopped.
    pub(super) fn end(&self) -> Option<Duration> {
        Some(self.renewed? + self.settings.duration / 3 * 2)
    }

    /// The server had this record at a time before `now`.
    pub(super) fn see(&mut self, record: Option<Record>, now: Duration) {
        let since = match (&self.seen, &record) {
            (Some((Some(before), since)), Some(record)) if before.same_term(record) => *since,
            (Some((None, since)), None) => *since,
            _ => now,
        };
        if let Some(record) = record.as_ref().filter(|record| record.holder.is_some()) {
            self.longest = self.longest.max(Some(record.duration));
        }
        self.seen = Some((record, since));
        self.looked = now;
    }

    /// The lease as it was seen last.
    pub(super) fn record(&self) -> Option<&Record> {
        self.seen.as_ref()?.0.as_ref()
    }

    /// The number of the term that begins if we take the lease now. The number is greater than that of every term
    /// before, up to [`LAST_TERM`].
    pub(super) fn next_number(&self) -> u32 {
        let last = self.record().map_or(0, |record| record.transitions);
        last.max(self.claimed).saturating_add(1).min(LAST_TERM)
    }

    /// Whether the lease that we write now carries the [`NEW`] mark.
    pub(super) fn is_new(&self, step: &Step, now: Duration) -> bool {
        match step {
            Step::Take => self.record().is_none_or(|record| record.new),
            _ => now < self.from,
        }
    }

    /// How long the holder of a new lease waits before it leads. An earlier holder stops two thirds of the duration
    /// after its last renewal, and that renewal happened before the new lease was made.
    fn fence(&self) -> Duration {
        let duration = match self.longest {
            // Another version of this program, or another setting, may have written a longer duration.
            Some(longest) => longest.max(self.settings.duration),
            None if self.claimed > 0 => self.settings.duration,
            None => Duration::ZERO,
        };
        duration / 5 * 4
    }

    /// We wrote this record, in a request sent at `sent`.
    pub(super) fn won(&mut self, record: Record, sent: Duration, now: Duration) {
        if self.renewed.is_none() {
            let fence = if record.new {
                self.fence()
            } else {
                Duration::ZERO
            };
            self.from = now + fence;
        }
        self.see(Some(record), now);
        self.renewed = Some(sent);
    }

    /// The time until which we lead. `None` while we don't lead.
    pub(super) fn leads(&self, now: Duration) -> Option<Duration> {
        self.end().filter(|_| now >= self.from)
    }

    pub(super) fn step(&mut self, now: Duration) -> Step {
        if let (Some(renewed), Some(end)) = (self.renewed, self.end()) {
            let lost = match self.record() {
                _ if now >= end => Some(LostError::Expired),
                None => Some(LostError::Deleted),
                Some(record) if record.holder.as_ref() != Some(&self.settings.identity) => {
                    let holder = record.holder.clone();
                    Some(LostError::Taken(holder.unwrap_or_else(|| "nobody".into())))
                }
                Some(_) => None,
            };
            match lost {
                Some(error) if now >= self.from => return Step::Lose(error),
                // we didn't lead yet
                Some(_) => self.renewed = None,
                None if now >= renewed + self.pace() => return Step::Renew,
                None if now < self.from => return Step::Wait(self.from.min(renewed + self.pace())),
                None => return Step::Wait(renewed + self.pace()),
            }
        }
        let Some((record, since)) = &self.seen else {
            return Step::Look;
        };
        let Some(record) = record else {
            return Step::Take;
        };
        let free = match &record.holder {
            None => now,
            Some(holder) if *holder == self.settings.identity => now,
            // Another version of this program, or another setting, may have written a longer duration.
            Some(_) => *since + record.duration.max(self.settings.duration),
        };
        if now >= free {
            Step::Take
        } else if now >= self.looked + self.pace() {
            Step::Look
        } else {
            Step::Wait(free.min(self.looked + self.pace()))
        }
    }
}

#[cfg(test)]
mod tests;
