//! What staging says about itself.

use super::*;
use crate::stage::{
    event::Fault,
    status::{HostReason, HostStatus, ImageReason, ImageStatus, LeaseStatus, Status},
};

impl Plan {
    /// Where everything stands.
    #[must_use]
    pub fn status(&self, now: Moment) -> Status {
        let now = (now - self.missed).max(self.now);
        Status {
            images: self
                .images
                .iter()
                .map(|image| self.image_status(now, image))
                .collect(),
            leases: self
                .contents
                .iter()
                .filter_map(|(digest, content)| {
                    let lease = content.lease.as_ref()?;
                    Some(LeaseStatus {
                        content: *digest,
                        host: lease.host.clone(),
                        chunks: lease.chunks,
                        bytes_per_s: lease.bytes_per_s(now),
                        idle: now.since(lease.progress_at),
                    })
                })
                .collect(),
            quarantined: self
                .hosts
                .iter()
                .filter(|(_, host)| host.quarantined_until.is_some())
                .map(|(id, _)| id.clone())
                .collect(),
        }
    }

    fn image_status(&self, now: Moment, image: &Image) -> ImageStatus {
        let hosts: Vec<HostStatus> = self
            .selected(image)
            .into_iter()
            .map(|id| {
                let standing = image.standings.get(&id).copied();
                HostStatus {
                    standing: standing.map(|(standing, _)| standing),
                    held_bytes: standing.map_or(0, |(_, held)| held),
                    reason: self.host_reason(image, &id),
                    host: id,
                }
            })
            .collect();
        ImageStatus {
            image: image.digest,
            contents_done: image
                .contents
                .iter()
                .filter_map(|digest| self.contents.get(digest))
                .filter(|content| self.is_done(content))
                .count(),
            contents: image.contents.len(),
            origin_retry_in: self
                .origin_held(now, image)
                .or_else(|| self.contents_held(now, image))
                .map(|(left, _)| left),
            reason: self.image_reason(now, image, &hosts),
            hosts,
        }
    }

    fn host_reason(&self, image: &Image, id: &HostId) -> Option<HostReason> {
        let standing = image.standings.get(id).map(|(standing, _)| *standing);
        if standing == Some(Standing::Present) {
            return None;
        }
        let Some(host) = self.hosts.get(id) else {
            return Some(HostReason::Disconnected);
        };
        Some(if host.quarantined_until.is_some() {
            HostReason::Quarantined
        } else if !host.connected {
            HostReason::Disconnected
        } else if self.is_undecided(image) {
            HostReason::Queued
        } else if !self.is_live(image) {
            HostReason::ImageFailed
        } else {
            match standing {
                None | Some(Standing::Present) => HostReason::AwaitingReport,
                Some(Standing::Queued) => HostReason::Queued,
                Some(Standing::Staging) => HostReason::Staging,
                Some(Standing::Installing) => HostReason::Installing,
                Some(Standing::Failed) => HostReason::Failed,
                Some(Standing::Gone) => HostReason::Gone,
            }
        })
    }

    fn image_reason(
        &self,
        now: Moment,
        image: &Image,
        hosts: &[HostStatus],
    ) -> Option<ImageReason> {
        if let (Some(_), Some(content)) = (image.contradicts, image.disproved) {
            return Some(ImageReason::ContentFaulty(content, Fault::Bad));
        }
        if image.contradicts.is_some() && self.is_undecided(image) {
            return Some(ImageReason::AwaitingTurn);
        }
        if let Some(content) = image.contradicts {
            return Some(ImageReason::Contradicts(content));
        }
        if let Some((content, fault)) = self.failure(image) {
            return Some(ImageReason::ContentFaulty(content, fault));
        }
        if hosts.is_empty() {
            return Some(match image.held.is_empty() {
                true => ImageReason::NoHosts,
                false => ImageReason::Held,
            });
        }
        let lacking: Vec<HostReason> = hosts.iter().filter_map(|host| host.reason).collect();
        if lacking.is_empty() {
            return None;
        }
        let away = |reason: &HostReason| {
            matches!(reason, HostReason::Disconnected | HostReason::Quarantined)
        };
        if lacking.iter().all(away) {
            let connected = |host: &HostStatus| {
                self.hosts
                    .get(&host.host)
                    .is_some_and(|host| host.connected)
            };
            return Some(match hosts.iter().any(connected) {
                true => ImageReason::HostsAway,
                false => ImageReason::NoHostConnected,
            });
        }
        if lacking
            .iter()
            .all(|reason| away(reason) || *reason == HostReason::Failed)
        {
            return Some(ImageReason::HostsFailed);
        }
        let open = image
            .contents
            .iter()
            .filter_map(|digest| self.contents.get(digest))
            .filter(|content| !self.is_done(content));
        let (mut any, mut leased, mut away) = (false, false, false);
        for content in open {
            any = true;
            leased |= content.lease.is_some();
            away |= content.away.is_some();
        }
        if !any {
            return Some(ImageReason::Moving);
        }
        let held = self.origin_held(now, image);
        Some(match held.or_else(|| self.contents_held(now, image)) {
            Some((_, true)) => ImageReason::OriginThrottled,
            Some((_, false)) => ImageReason::OriginDown,
            // one lease tries whether it is back
            None if self.origin_fails(image) => ImageReason::OriginDown,
            None if leased => ImageReason::Moving,
            None if away => ImageReason::OriginDown,
            None if self.nobody_can_ask(image) => ImageReason::HostsFailed,
            None if self.contents.values().any(|other| other.lease.is_some()) => {
                ImageReason::AwaitingTurn
            }
            // nothing is ahead of it: hosts are about to say what they hold
            None => ImageReason::Moving,
        })
    }
}
