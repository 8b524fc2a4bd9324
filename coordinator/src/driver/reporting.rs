//! What a host reports, part by part: where images stand on it, what it holds, how its leases go, whom it blames.

use std::{collections::BTreeSet, time::Instant};

use proto::{Digest, HostId, Moment, message};
use rollout::stage::{Event, Plan, event::Standing};
use tracing::debug;

use super::{
    blames::Blames, members::Members, mirror::Mirrored, order::Addressed, staging::Staging,
};

/// The host that speaks, and the parts that it has news for.
#[derive(Debug)]
pub(super) struct Reporting<'a> {
    pub(super) now: Moment,
    pub(super) host: &'a HostId,
    pub(super) plan: &'a mut Plan,
    pub(super) members: &'a mut Members,
    pub(super) staging: &'a mut Staging,
    pub(super) mirror: &'a mut Mirrored,
    pub(super) blames: &'a mut Blames,
}

impl Reporting<'_> {
    /// Takes a report of the host's session. What the host is told at once.
    pub(super) fn take(&mut self, report: &message::Report) -> Vec<Addressed> {
        let (now, host) = (self.now, self.host);
        self.members.hosts_mut().report(host, report);
        self.images((&report.images, report.full), report.names);
        if report.full {
            self.all(report);
        }
        let mut orders = Vec::new();
        if report.roster_wanted {
            debug!(%host, "host needs a whole roster");
            orders = self.members.rosters_mut().lost(now, host);
        }
        self.contents(report);
        // what is over was before a want that is new, and what runs may be for one
        let runs = |lease: &&message::LeaseState| lease.end() == message::LeaseEnd::Unspecified;
        for lease in report.leases.iter().filter(|lease| !runs(lease)) {
            self.lease(lease);
        }
        if let Some(wants) = &report.mirror {
            self.mirror.wants(now, host, wants, self.plan);
        }
        for lease in report.leases.iter().filter(runs) {
            self.lease(lease);
        }
        for retraction in &report.retractions {
            if let Some(content) = self.meant(&retraction.content) {
                let from = retraction.from_chunk;
                self.staging
                    .retracted(now, (host, content), from, self.plan);
            }
        }
        let hosts = self.members.hosts();
        let blames = self
            .blames
            .heard(now, host, &report.blames, hosts, self.mirror);
        for event in blames {
            self.plan.handle(now, event);
        }
        orders
    }

    /// Where images stand on the host; `full`: it has no others. `names` is the newest order about names after which it
    /// looked.
    pub(super) fn images(&mut self, (images, full): (&[message::ImageState], bool), names: u64) {
        for image in images {
            self.image(image);
        }
        let wanted = |image: &Digest| {
            let wanted = self.staging.images().get(image)?;
            Some(&wanted.want().references)
        };
        let at = (self.now, Instant::now());
        let presence = self.members.presence_mut();
        presence.heard(at, self.host, (images, full), names, wanted);
    }

    fn image(&mut self, report: &message::ImageState) {
        let (now, host) = (self.now, self.host);
        let Ok(image) = message::digest(&report.manifest) else {
            debug!(%host, "report names an image by no digest");
            return;
        };
        let wanted = self.staging.images().get(&image);
        let total = wanted.map(|wanted| wanted.want().layout.content_bytes());
        let hosts = self.members.hosts_mut();
        let Some(standing) = hosts.image(now, host, image, report, total) else {
            return;
        };
        if standing == Standing::Gone {
            self.staging.lost(now, host, image);
        }
        // as the host says, not as it is shown: that it holds less than before is news
        self.standing(image, standing, report.held_bytes);
    }

    fn standing(&mut self, image: Digest, standing: Standing, held_bytes: u64) {
        let event = Event::Reported {
            host: self.host.clone(),
            image,
            standing,
            held_bytes,
        };
        self.plan.handle(self.now, event);
    }

    /// A full report is all that there is: an image that it leaves out isn't on the host any more, and a lease that
    /// it leaves out is lost.
    fn all(&mut self, report: &message::Report) {
        let images = report.images.iter();
        let images = images.filter_map(|image| message::digest(&image.manifest).ok());
        let images: BTreeSet<Digest> = images.collect();
        self.staging.reported(self.host, &images);
        let hosts = self.members.hosts_mut();
        for image in hosts.forget_unreported(self.host, &images) {
            self.standing(image, Standing::Gone, 0);
        }
        let leases = report.leases.iter();
        let contents = leases.filter_map(|lease| self.meant(&lease.content));
        let event = Event::LeasesHeld {
            host: self.host.clone(),
            contents: contents.collect(),
        };
        self.plan.handle(self.now, event);
    }

    /// What the host holds of contents, and what it finds no source of.
    fn contents(&mut self, report: &message::Report) {
        if let Some(without) = &report.without_source {
            let contents = without.contents.iter();
            let contents = contents.filter_map(|content| self.meant(content));
            let event = Event::WithoutSource {
                host: self.host.clone(),
                contents: contents.collect(),
            };
            self.plan.handle(self.now, event);
        }
        if let Some(held) = &report.held {
            let contents = held.contents.iter();
            let contents = contents.filter_map(|of| Some((self.meant(&of.content)?, of.chunks)));
            let event = Event::Holds {
                host: self.host.clone(),
                contents: contents.collect(),
            };
            self.plan.handle(self.now, event);
        }
    }

    fn lease(&mut self, lease: &message::LeaseState) {
        if let Some(content) = self.meant(&lease.content) {
            self.staging
                .lease(self.now, (self.host, content), lease, self.plan);
        }
    }

    /// The content that the host means by this digest, as the plan knows it.
    fn meant(&self, digest: &[u8]) -> Option<Digest> {
        let digest = message::digest(digest).ok()?;
        Some(self.mirror.meant(self.host, digest))
    }
}
