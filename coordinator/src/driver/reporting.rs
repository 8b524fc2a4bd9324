//! Takes in a host's report, part by part: where images stand on the host, what the host holds, how its leases go, and
//! which hosts it blames.

use std::{collections::BTreeSet, time::Instant};

use proto::{Digest, HostId, Moment, limits::MAX_RECIPE_DOUBTS, message, recipe::Doubt};
use rollout::stage::{Event, Plan, event::Standing};
use tracing::debug;

use super::{
    blames::Blames, effect::Effects, leases::range, members::Members, mirror::Mirrored,
    staging::Staging,
};

/// The host that reports, and the parts that its report changes.
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
    /// Takes in a report of the host's session. Returns what follows from it at once.
    pub(super) fn take(&mut self, report: &message::Report) -> Effects {
        let (now, host) = (self.now, self.host);
        // before the leases: a host that says at the same time that its lease has ended had it when it read the bytes
        let doubts = self.doubts(report);
        self.members.hosts_mut().report(host, report);
        self.images((&report.images, report.full), report.names);
        if report.full {
            self.all(report);
        }
        let mut effects = Effects::default();
        if report.roster_wanted {
            debug!(%host, "host needs a whole roster");
            effects.send(self.members.rosters_mut().lost(now, host));
        }
        if let Some(answer) = &report.old_images {
            self.members.retention_mut().answered(host, answer);
        }
        self.contents(report);
        // Leases that ended come first: they ended before any new want. Leases that run come after the wants, because
        // such a lease may be for a new want.
        let runs = |lease: &&message::LeaseState| lease.end() == message::LeaseEnd::Unspecified;
        // the plan hears of a recipe while the host has the lease by which it read the bytes
        let (known, other): (Vec<_>, Vec<_>) = doubts.into_iter().partition(|(_, leased)| *leased);
        self.doubted(known);
        for lease in report.leases.iter().filter(|lease| !runs(lease)) {
            self.lease(lease);
        }
        if let Some(wants) = &report.mirror {
            self.mirror.wants(now, host, wants, self.plan);
        }
        for lease in report.leases.iter().filter(runs) {
            self.lease(lease);
        }
        // after a start of the coordinator, a lease is known only from the host's report
        self.doubted(other);
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
        effects
    }

    /// What the host doubts of recipes, each with whether the host has the lease of that content.
    fn doubts(&self, report: &message::Report) -> Vec<(Doubt, bool)> {
        let doubts = report.recipe_doubts.iter().take(MAX_RECIPE_DOUBTS);
        let doubts = doubts.filter_map(|doubt| Doubt::parse(doubt).ok());
        doubts
            .map(|doubt| (doubt, self.holds_lease(&doubt.content)))
            .collect()
    }

    /// Tells the plan what the host doubts of recipes.
    fn doubted(&mut self, doubts: Vec<(Doubt, bool)>) {
        for (doubt, leased) in doubts {
            let leased =
                leased || self.holds_lease(&doubt.content) || self.plan.hears_of_earlier_doubts();
            let event = self.staging.doubt((self.host, &doubt), leased);
            if let Some(event) = event {
                self.plan.handle(self.now, event);
            }
        }
    }

    fn holds_lease(&self, content: &Digest) -> bool {
        let content = self.mirror.meant(self.host, *content);
        self.plan.holds_lease(self.host, &content)
    }

    /// Takes in where images stand on the host; `full`: the host has no others. `names` is the number of the newest
    /// order about names that the host had when it looked at its disk.
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
        // The plan gets the number as the host says it. The number that is shown never falls, and a fall is news for
        // the plan.
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

    /// A full report names everything: an image that the report leaves out isn't on the host any more, and a lease that
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
        let leases = leases.filter_map(|lease| Some((self.meant(&lease.content)?, range(lease))));
        let event = Event::LeasesClaimed {
            host: self.host.clone(),
            leases: leases.collect(),
        };
        self.plan.handle(self.now, event);
    }

    /// Takes in the contents for which the host finds no source, and how much the host holds of contents.
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

    /// The plan's name for the content that the host means by this digest.
    fn meant(&self, digest: &[u8]) -> Option<Digest> {
        let digest = message::digest(digest).ok()?;
        Some(self.mirror.meant(self.host, digest))
    }
}
