//! Fetches from registries that run on this host, at most one for each content.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use proto::{
    ChunkIndex, ChunkRange, Digest, Reason,
    message::{LeaseEnd, OriginFault},
};
use swarm::event::{ContentId, OriginEnd};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::leases::End;
use crate::{
    fetch::{Failure, FetchEnd},
    mirror::is_refusal,
    registries::Access,
};

/// A fetch under way.
#[derive(Debug)]
struct Fetch {
    number: u64,
    /// The image by whose order the fetch asks the registry; `None` for a blob of the mirror.
    image: Option<Digest>,
    until: watch::Sender<u32>,
    access: watch::Sender<Access>,
    moved: Arc<AtomicU64>,
    token: CancellationToken,
}

/// The reins of a fetch: the channels by which the driver leads it.
#[derive(Debug)]
pub(super) struct Reins {
    /// Tells the fetch from an earlier one of the same content.
    pub(super) number: u64,
    /// The chunks to fetch; `None`: all of them.
    pub(super) range: Option<ChunkRange>,
    /// The chunk to pause before.
    pub(super) until: watch::Receiver<u32>,
    pub(super) access: watch::Receiver<Access>,
    /// Counts the bytes of the blob that came and were new.
    pub(super) moved: Arc<AtomicU64>,
    /// Ends the fetch at once.
    pub(super) token: CancellationToken,
}

/// Every fetch that runs.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    running: BTreeMap<ContentId, Fetch>,
    last_number: u64,
}

impl Fetches {
    /// Begins a fetch, for which the caller starts the job.
    pub(super) fn begin(
        &mut self,
        id: ContentId,
        image: Option<Digest>,
        access: Access,
        (range, until): (Option<ChunkRange>, ChunkIndex),
    ) -> Reins {
        self.last_number += 1;
        let (until, until_now) = watch::channel(until.0);
        let (access, access_now) = watch::channel(access);
        let fetch = Fetch {
            number: self.last_number,
            image,
            until,
            access,
            moved: Arc::default(),
            token: CancellationToken::new(),
        };
        let reins = Reins {
            number: fetch.number,
            range,
            until: until_now,
            access: access_now,
            moved: fetch.moved.clone(),
            token: fetch.token.clone(),
        };
        if let Some(before) = self.running.insert(id, fetch) {
            before.token.cancel();
        }
        reins
    }

    /// Lets a running fetch go on as far as this chunk. Returns whether a fetch runs.
    pub(super) fn go_on(&self, id: ContentId, until: ChunkIndex) -> bool {
        let fetch = self.running.get(&id);
        if let Some(fetch) = fetch {
            fetch.until.send_replace(until.0);
        }
        fetch.is_some()
    }

    pub(super) fn is_running(&self, id: ContentId) -> bool {
        self.running.contains_key(&id)
    }

    /// Bytes of the blob that came and were new in the fetch that runs.
    pub(super) fn moved_bytes(&self, id: ContentId) -> u64 {
        let fetch = self.running.get(&id);
        fetch.map_or(0, |fetch| fetch.moved.load(Ordering::Relaxed))
    }

    /// The coordinator handed down a newer token for an image. Fetches by the image's order use the new token from now
    /// on.
    pub(super) fn renew(&self, image: &Digest, access: &Access) {
        for fetch in self.running.values() {
            if fetch.image.as_ref() == Some(image) {
                fetch.access.send_replace(access.clone());
            }
        }
    }

    /// Stops a fetch. Returns whether one ran. Later news of a stopped fetch is ignored.
    pub(super) fn stop(&mut self, id: ContentId) -> bool {
        let fetch = self.running.remove(&id);
        if let Some(fetch) = &fetch {
            fetch.token.cancel();
        }
        fetch.is_some()
    }

    pub(super) fn stop_all(&mut self) {
        for fetch in std::mem::take(&mut self.running).into_values() {
            fetch.token.cancel();
        }
    }

    /// The image by whose order the running fetch asks the registry.
    pub(super) fn image(&self, id: ContentId) -> Option<Digest> {
        self.running.get(&id)?.image
    }

    /// A fetch ended. Returns whether it ran until now: a fetch that was stopped may still tell its end.
    pub(super) fn ended(&mut self, id: ContentId, number: u64) -> bool {
        let running = self.running.get(&id);
        let current = running.is_some_and(|fetch| fetch.number == number);
        if current {
            self.running.remove(&id);
        }
        current
    }
}

/// What the swarm, the coordinator and the images are told of a fetch that ended.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) swarm: OriginEnd,
    pub(super) lease: End,
    /// The trouble of the images that want the content, if any. The lease's message says more.
    pub(super) reason: Option<Reason>,
}

/// Says what others are told of this end.
///
/// # Errors
/// When this host couldn't store what came; the error is a text. Then nothing is said about the registry.
pub(super) fn told(end: &FetchEnd) -> Result<Told, String> {
    let failed = |swarm, (end, fault), reason, message| Told {
        swarm,
        lease: End {
            end,
            fault,
            message,
        },
        reason: Some(reason),
    };
    let plain = |swarm, end| Told {
        swarm,
        lease: End::plain(end),
        reason: None,
    };
    Ok(match end {
        FetchEnd::Done => plain(OriginEnd::Done, LeaseEnd::Done),
        FetchEnd::Unwanted => plain(OriginEnd::Failed, LeaseEnd::Released),
        FetchEnd::Disk(error) => return Err(error.clone()),
        FetchEnd::Bad(message) => {
            let said = (LeaseEnd::ContentBad, OriginFault::Unspecified);
            failed(OriginEnd::Bad, said, Reason::ContentBad, message.clone())
        }
        FetchEnd::Failed(failure) => {
            let said = failure.as_told();
            let reason = match said {
                (LeaseEnd::ContentBad, _) => Reason::ContentBad,
                (_, OriginFault::Host) => Reason::OriginSettings,
                _ => Reason::OriginFailed,
            };
            let swarm = match failure {
                Failure::Origin(error) if is_refusal(error) => OriginEnd::Refused,
                _ => OriginEnd::Failed,
            };
            failed(swarm, said, reason, failure.to_string())
        }
    })
}

#[cfg(test)]
mod tests {
    use proto::message::PullToken;

    use super::*;

    const ID: ContentId = ContentId(3);

    fn access(token: &str) -> Access {
        let token = PullToken {
            authorization: token.into(),
            ..PullToken::default()
        };
        Access::new(Some(&token), false)
    }

    fn image(at: u8) -> Digest {
        Digest::of(&[at])
    }

    #[test]
    fn a_fetch_that_runs_goes_on_as_far_as_it_is_let() {
        let mut fetches = Fetches::default();
        assert!(!fetches.go_on(ID, ChunkIndex(9)));
        let mut reins = fetches.begin(ID, None, Access::default(), (None, ChunkIndex(4)));
        assert_eq!(*reins.until.borrow_and_update(), 4);
        assert!(fetches.go_on(ID, ChunkIndex(9)));
        assert_eq!(*reins.until.borrow_and_update(), 9);
        assert!(!fetches.go_on(ContentId(4), ChunkIndex(9)));
    }

    #[test]
    fn bytes_are_counted_while_the_fetch_runs() {
        let mut fetches = Fetches::default();
        let reins = fetches.begin(ID, None, Access::default(), (None, ChunkIndex(4)));
        reins.moved.fetch_add(7, Ordering::Relaxed);
        assert_eq!(fetches.moved_bytes(ID), 7);
        fetches.stop(ID);
        assert_eq!(fetches.moved_bytes(ID), 0);
    }

    #[test]
    fn a_newer_token_reaches_the_fetches_of_its_image_alone() {
        let mut fetches = Fetches::default();
        let (one, other) = (image(1), image(2));
        let of_one = fetches.begin(
            ContentId(1),
            Some(one),
            access("old"),
            (None, ChunkIndex(4)),
        );
        let of_other = fetches.begin(
            ContentId(2),
            Some(other),
            access("old"),
            (None, ChunkIndex(4)),
        );
        let of_mirror = fetches.begin(ContentId(3), None, access("old"), (None, ChunkIndex(4)));
        fetches.renew(&one, &access("new"));
        assert_eq!(*of_one.access.borrow(), access("new"));
        assert_eq!(*of_other.access.borrow(), access("old"));
        assert_eq!(*of_mirror.access.borrow(), access("old"));
    }

    #[test]
    fn a_fetch_that_is_stopped_ends_without_a_word() {
        let mut fetches = Fetches::default();
        let reins = fetches.begin(ID, Some(image(1)), Access::default(), (None, ChunkIndex(4)));
        assert!(fetches.stop(ID));
        assert!(reins.token.is_cancelled());
        assert!(!fetches.is_running(ID));
        assert!(!fetches.ended(ID, reins.number));
        assert!(!fetches.stop(ID));
    }

    #[test]
    fn the_late_end_of_a_stopped_fetch_does_not_end_the_next() {
        let mut fetches = Fetches::default();
        let before = fetches.begin(ID, Some(image(1)), Access::default(), (None, ChunkIndex(4)));
        fetches.stop(ID);
        let next = fetches.begin(ID, Some(image(2)), Access::default(), (None, ChunkIndex(4)));
        assert!(!fetches.ended(ID, before.number));
        assert!(fetches.is_running(ID));
        assert!(!next.token.is_cancelled());
        assert_eq!(fetches.image(ID), Some(image(2)));
        assert!(fetches.ended(ID, next.number));
        assert!(!fetches.ended(ID, next.number));
    }

    #[test]
    fn all_fetches_stop_with_the_agent() {
        let mut fetches = Fetches::default();
        let tokens = [1, 2, 3].map(|at| {
            let reins = fetches.begin(
                ContentId(at),
                None,
                Access::default(),
                (None, ChunkIndex(1)),
            );
            reins.token
        });
        fetches.stop_all();
        assert!(tokens.iter().all(CancellationToken::is_cancelled));
        assert!(!fetches.is_running(ContentId(1)));
    }

    #[test]
    fn what_a_fetch_ended_in_is_told_of_the_registry_the_content_or_this_host() {
        let failed = |failure| FetchEnd::Failed(failure);
        let settings = failed(Failure::Settings("no password".into()));
        let said = told(&settings).unwrap();
        assert_eq!(said.swarm, OriginEnd::Failed);
        assert_eq!(
            (said.lease.end, said.lease.fault, said.reason),
            (
                LeaseEnd::OriginFailed,
                OriginFault::Host,
                Some(Reason::OriginSettings)
            )
        );
        assert_eq!(said.lease.message, "no password");
        let bad = told(&FetchEnd::Bad("a broken push".into())).unwrap();
        assert_eq!(bad.swarm, OriginEnd::Bad);
        assert_eq!(
            (bad.lease.end, bad.reason),
            (LeaseEnd::ContentBad, Some(Reason::ContentBad))
        );
        let done = told(&FetchEnd::Done).unwrap();
        assert_eq!(
            (done.swarm, done.lease.end, done.reason),
            (OriginEnd::Done, LeaseEnd::Done, None)
        );
        let unwanted = told(&FetchEnd::Unwanted).unwrap();
        assert_eq!(
            (unwanted.swarm, unwanted.lease.end, unwanted.reason),
            (OriginEnd::Failed, LeaseEnd::Released, None)
        );
        let disk = told(&FetchEnd::Disk("no space".into()));
        assert_eq!(disk.unwrap_err(), "no space");
    }
}
