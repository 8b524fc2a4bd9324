//! Which hosts belong to the fleet: follows the fleet file, the records of enrolled hosts, and those of revoked hosts,
//! as they change.
//!
//! The driver knows only [`Membership`]. So a cluster's Nodes can become another source of members without a change of
//! the driver.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use proto::HostId;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    cli::{Run, Shared},
    config::{Config, Fleet, HostEntry},
    enrolment::{Enrolment, RecordError, Revocation},
};

/// How often the files are checked. A revocation by the command line takes effect after this time.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The records are read at least this often, whatever their directories' times say.
const READ_EVERY: Duration = Duration::from_mins(1);

/// A change in the same instant as another one may leave a directory's time as it is. So records that changed less than
/// this long before they were read are read again.
const SAME_INSTANT: Duration = Duration::from_secs(2);

/// The fleet at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Membership {
    pub(crate) fleet: Fleet,
    /// The enrolled hosts, and since when, in Unix seconds. A certificate that was signed before isn't accepted. 0
    /// where the record doesn't say.
    pub(crate) enrolled: BTreeMap<HostId, u64>,
    pub(crate) revoked: BTreeMap<HostId, Revocation>,
}

impl Membership {
    /// Reads the records. Blocks.
    pub(crate) fn read(fleet: Fleet, enrolment: &Enrolment) -> Result<Self, RecordError> {
        Ok(Self {
            fleet,
            enrolled: enrolment.enrolled()?,
            revoked: enrolment.revoked()?,
        })
    }

    /// Whether this host may have a session now.
    pub(crate) fn admits(&self, host: &HostId) -> bool {
        self.fleet.admits(host) && !self.revoked.contains_key(host)
    }

    /// The message to a host that isn't admitted. The message doesn't say why the host was revoked: that is the
    /// operators' own business, because the host may have been stolen.
    pub(crate) fn refusal(&self, host: &HostId) -> String {
        match self.revoked.contains_key(host) {
            true => {
                format!("{host} is revoked; `parbake-coordinator readmit {host}` takes that back")
            }
            false => {
                format!("{host} isn't part of the fleet; add it to [[hosts]] of the fleet file")
            }
        }
    }

    /// The hosts of the fleet: those that the fleet file names, and in an open fleet also those that enrolled. Revoked
    /// hosts are left out.
    pub(crate) fn members(&self) -> BTreeMap<&HostId, Option<&HostEntry>> {
        let named = self.fleet.hosts.iter().map(|(id, entry)| (id, Some(entry)));
        let mut members: BTreeMap<_, _> = named.collect();
        if self.fleet.open {
            for host in self.enrolled.keys() {
                members.entry(host).or_insert(None);
            }
        }
        members.retain(|host, _| self.admits(host));
        members
    }
}

/// When the records were last read, and the times of their directories just before.
#[derive(Clone, Copy, Debug)]
struct Looked {
    at: SystemTime,
    changed: Option<[SystemTime; 2]>,
}

impl Looked {
    /// Whether the records may be other ones than those that were read. `changed` has the times of their
    /// directories now.
    fn is_old(&self, now: SystemTime, changed: Option<[SystemTime; 2]>) -> bool {
        let settled = |changed: SystemTime| {
            // a clock that was set back makes the difference an error
            let before = self.at.duration_since(changed);
            before.is_ok_and(|before| before >= SAME_INSTANT)
        };
        let age = now.duration_since(self.at);
        self.changed != changed
            || !changed.is_some_and(|times| times.into_iter().all(settled))
            || !age.is_ok_and(|age| age < READ_EVERY)
    }
}

/// What to read again at once.
#[derive(Debug)]
pub(crate) enum Reread {
    /// The records, and the fleet file whether it changed or not: an operator asks (SIGHUP).
    Everything,
    /// The records, because one of them was just written.
    Records,
    /// The records. The sender is answered once what they say is in force.
    Answer(oneshot::Sender<()>),
}

/// Follows the fleet file and the records until `shutdown`, and publishes changes of the membership. A message in
/// `reload` makes it read at once.
///
/// When the fleet file can't be used, the error is logged and the last good settings stay in force. When the records
/// can't be read, the last known ones stay in force. Returns before `shutdown` only when a reading task dies.
pub(crate) async fn follow(
    config: Config,
    shared: Option<(Shared, Run)>,
    enrolment: Enrolment,
    membership: watch::Sender<Arc<Membership>>,
    mut reload: mpsc::Receiver<Reread>,
    shutdown: CancellationToken,
) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = config.file.as_deref().and_then(stamp);
    let mut current = config;
    let mut failing = false;
    let mut looked: Option<Looked> = None;
    loop {
        let asked = tokio::select! {
            () = shutdown.cancelled() => return,
            Some(reread) = reload.recv() => Some(reread),
            _ = look.tick() => None,
        };
        let by_request = asked.is_some();
        let (asked, waiting) = match asked {
            Some(Reread::Everything) => (true, None),
            Some(Reread::Answer(waiting)) => (false, Some(waiting)),
            Some(Reread::Records) | None => (false, None),
        };
        let seen = current.file.as_deref().and_then(stamp);
        if let Some((shared, run)) = &shared
            && (asked || seen != known)
        {
            known = seen;
            let Some(fresh) = read_again(current, shared, run).await else {
                return;
            };
            current = fresh;
            looked = None;
        }
        let now = SystemTime::now();
        let changed = enrolment.hosts_changed_at();
        if !by_request && looked.is_some_and(|looked| !looked.is_old(now, changed)) {
            continue;
        }
        looked = None;
        let (fleet, records) = (current.fleet.clone(), enrolment.clone());
        let read = tokio::task::spawn_blocking(move || Membership::read(fleet, &records)).await;
        match read {
            Ok(Ok(fresh)) => {
                failing = false;
                looked = Some(Looked { at: now, changed });
                membership.send_if_modified(|before| {
                    let changed = **before != fresh;
                    if changed {
                        *before = Arc::new(fresh);
                    }
                    changed
                });
            }
            Ok(Err(error)) if !failing => {
                failing = true;
                error!(%error, "enrolment records can't be read; the last known ones stay in force");
            }
            Ok(Err(_)) => {}
            // Later revocations would have no effect. The coordinator ends, and a new start reads everything.
            Err(error) => {
                error!(%error, "reading enrolment records died; the coordinator ends");
                return;
            }
        }
        if let Some(waiting) = waiting {
            // the sender may have given up
            _ = waiting.send(());
        }
    }
}

/// The settings, with the fleet from the file as it is now; `None` when the reading task died.
async fn read_again(current: Config, shared: &Shared, run: &Run) -> Option<Config> {
    let (shared, run) = (shared.clone(), run.clone());
    match tokio::task::spawn_blocking(move || Config::load(&shared, &run)).await {
        Ok(Ok(fresh)) => {
            let fixed = Config {
                fleet: fresh.fleet.clone(),
                ..current.clone()
            };
            if fixed != fresh {
                warn!(
                    "fleet file changed beyond [[hosts]] and `open`; the rest counts after a restart"
                );
            }
            info!(
                hosts = fresh.fleet.hosts.len(),
                open = fresh.fleet.open,
                "fleet file read again"
            );
            Some(fixed)
        }
        Ok(Err(error)) => {
            error!(%error, "fleet file can't be used; the one before stays in force");
            Some(current)
        }
        Err(error) => {
            error!(%error, "reading the fleet file died; the coordinator ends");
            None
        }
    }
}

/// A file's time and size, to tell two versions of the file apart.
fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(id: &str) -> HostId {
        id.parse().unwrap()
    }

    #[test]
    fn records_are_read_again_when_a_directory_changed_or_may_have_and_once_a_minute() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let changed = Some([at(5), at(8)]);
        let looked = Looked {
            at: at(10),
            changed,
        };
        assert!(!looked.is_old(at(69), changed));
        assert!(looked.is_old(at(70), changed));
        assert!(looked.is_old(at(11), Some([at(5), at(11)])));
        assert!(
            looked.is_old(at(11), Some([at(4), at(8)])),
            "a clock was set back"
        );
        assert!(looked.is_old(at(11), None));
        // a second change within the same instant would have left the time as it was
        let at_once = Looked { at: at(9), changed };
        assert!(at_once.is_old(at(11), changed));
        assert!(
            looked.is_old(at(9), changed),
            "the system's clock was set back"
        );
    }

    #[test]
    fn members_are_the_named_and_in_an_open_fleet_the_enrolled_but_never_the_revoked() {
        let mut membership = Membership {
            fleet: Fleet {
                open: false,
                hosts: [
                    (host("a"), HostEntry::default()),
                    (host("b"), HostEntry::default()),
                ]
                .into(),
            },
            enrolled: [(host("a"), 1), (host("c"), 2)].into(),
            revoked: [(host("b"), Revocation::default())].into(),
        };
        let names = |membership: &Membership| -> Vec<String> {
            membership
                .members()
                .keys()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(names(&membership), ["a"]);
        membership.fleet.open = true;
        assert_eq!(names(&membership), ["a", "c"]);
        assert!(membership.admits(&host("new")) && !membership.admits(&host("b")));
    }
}
