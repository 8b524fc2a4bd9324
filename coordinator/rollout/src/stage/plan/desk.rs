//! The desk: the parts that leases and registries change, with the parts that such a change reads. The plan lends it
//! for one event.

use proto::{Digest, HostId, Moment};
use rand_chacha::ChaCha8Rng;

use super::{
    contents::Contents,
    effects::Effects,
    hosts::Hosts,
    images::Images,
    leases::{Grant, Lease, Leases, Start},
    origins::Origins,
    records::Records,
    view::View,
};
use crate::stage::{Action, Config, action::RevokeCause, event::Purpose};

/// Hosts and images are read only; leases and registries may change the other parts.
pub(super) struct Desk<'a> {
    pub(super) now: Moment,
    pub(super) config: &'a Config,
    pub(super) seed: u64,
    pub(super) hosts: &'a Hosts,
    pub(super) images: &'a Images,
    pub(super) contents: &'a mut Contents,
    pub(super) leases: &'a mut Leases,
    pub(super) origins: &'a mut Origins,
    pub(super) records: &'a mut Records,
    pub(super) rng: &'a mut ChaCha8Rng,
    pub(super) effects: &'a mut Effects,
}

impl Desk<'_> {
    pub(super) const fn view(&self) -> View<'_> {
        View {
            now: self.now,
            config: self.config,
            seed: self.seed,
            hosts: self.hosts,
            images: self.images,
            contents: self.contents,
            leases: self.leases,
            origins: self.origins,
            records: self.records,
        }
    }

    /// Leases a content, and tells the host.
    pub(super) fn grant(&mut self, grant: Grant) {
        self.effects.push(Action::Grant {
            host: grant.host.clone(),
            content: grant.content,
            range: grant.range,
            image: grant.image,
        });
        self.begin(grant, None);
    }

    /// Takes over a lease that its holder reports, with the number of chunks that it has fetched.
    pub(super) fn take_over(&mut self, grant: Grant, chunks: u32) {
        self.begin(grant, Some(chunks));
    }

    fn begin(&mut self, grant: Grant, taken_over: Option<u32>) {
        let now = self.now;
        let mirror = grant.purpose == Purpose::Mirror;
        let origin = self.origins.get(&grant.registry);
        let start = Start {
            chunks: taken_over.unwrap_or(0),
            gives: origin.is_some_and(|origin| origin.gives(now)),
            trial: mirror && self.records.is_on_trial(now, &grant.host),
            taken_over: taken_over.is_some(),
        };
        if let Some(content) = self.contents.get_mut(&grant.content) {
            content.tries_mut().lease(now, &grant.host);
            self.origins
                .lease(&grant.registry, &grant.repository, &grant.host);
            if let Some(range) = grant.range {
                content.parts_mut().lease(now, range, start.taken_over);
            }
            self.leases.begin(now, grant, start);
        }
    }

    /// Ends the lease that a host has of a content. Sends nothing.
    pub(super) fn end(&mut self, content: Digest, id: &HostId) -> Option<Lease> {
        let lease = self.leases.end(&content, id)?;
        self.effects.ask_for_grants();
        Some(lease)
    }

    /// Ends the lease that a host has of a content, and tells the host.
    pub(super) fn revoke(
        &mut self,
        content: Digest,
        id: &HostId,
        cause: RevokeCause,
    ) -> Option<Lease> {
        let lease = self.end(content, id)?;
        self.effects.revoke(lease.host(), content, cause);
        Some(lease)
    }

    /// Ends all leases of a content, and tells their holders.
    pub(super) fn revoke_all(&mut self, content: Digest, cause: RevokeCause) {
        for (id, _) in self.leases.that(|of, _| *of == content) {
            self.revoke(content, &id, cause);
        }
    }

    /// Notes that this host's lease of the content came to nothing.
    pub(super) fn note_failed(&mut self, content: Digest, id: &HostId) {
        if let Some(content) = self.contents.get_mut(&content) {
            content.tries_mut().fail(id);
        }
    }

    /// Ends leases of contents that no live image wants any more, and leases whose holder is to hold its images. A
    /// holder that isn't selected any more gives its lease back by itself, so that the chunks it fetched last still
    /// count.
    pub(super) fn revoke_pointless(&mut self) {
        let view = self.view();
        let wanted = |host: &HostId, content: &Digest| {
            let images = || {
                view.images
                    .iter()
                    .filter(|image| view.wants(image, content))
            };
            let keeps = images().any(|image| image.is_kept_on(host));
            images().any(|image| !keeps || image.selects(host, view.hosts))
        };
        let over = self
            .leases
            .that(|content, lease| !wanted(lease.host(), content));
        for (id, content) in over {
            self.revoke(content, &id, RevokeCause::Ended);
        }
    }
}
