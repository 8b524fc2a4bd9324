//! What the coordinator says, carried out.

use std::collections::BTreeSet;

use link::Authorised;
use proto::{
    ChunkIndex, Digest,
    message::{Order, order},
};
use swarm::Event;
use tracing::{debug, info, warn};

use super::{Driver, Input, hosts};
use crate::session::Heard;

impl Driver {
    pub(super) fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Up(reports) => {
                self.session = Some(reports);
                self.notary.set_connected(true);
                self.reconciler.session();
                // a session begins with nothing said
                self.without_source = Some(Vec::new());
                self.held_said = None;
                self.report(true);
                self.tell(Event::Coordinator(true));
            }
            Heard::Down(taken_in) => {
                self.session = None;
                self.notary.set_connected(false);
                self.tell(Event::Coordinator(false));
                // the next session begins with what is so after all orders of this one
                self.report(false);
                _ = taken_in.send(());
            }
            Heard::Order(order) => self.order(*order),
        }
    }

    fn order(&mut self, order: Order) {
        match order.kind {
            Some(order::Kind::Roster(roster)) => {
                let effects =
                    self.hosts
                        .replace(&self.me, roster.epoch, &roster.hosts, &roster.neighbours);
                self.roster(effects);
            }
            Some(order::Kind::RosterChange(change)) => match self.hosts.change(&self.me, &change) {
                Some(effects) => self.roster(effects),
                None => {
                    debug!(epoch = change.epoch, "change of a roster that isn't here");
                    self.roster_wanted = true;
                    self.report(false);
                }
            },
            Some(order::Kind::Neighbours(neighbours)) => {
                let effects = self.hosts.follow(neighbours.hosts);
                self.follow_hosts(effects);
            }
            Some(order::Kind::Stage(order)) => self.order_stage(order),
            Some(order::Kind::Cancel(order)) => {
                self.with_digest(&order.manifest_digest, |driver, digest| {
                    if order.keep {
                        driver.hold_stage(digest);
                    } else {
                        driver.cancel_stage(digest);
                    }
                });
            }
            Some(order::Kind::Lease(grant)) => {
                let image = Digest::try_from(grant.manifest_digest.as_slice()).ok();
                self.with_digest(&grant.content, |driver, digest| {
                    match driver.notary.lease(digest, grant.ticket.as_ref()) {
                        Ok(()) => driver.leased(digest, image),
                        Err(error) => driver.give_lease_back(digest, &error.to_string()),
                    }
                });
            }
            Some(order::Kind::Ticket(ticket)) => match self.notary.stand(Some(&ticket)) {
                Ok(()) => {
                    let notary = self.notary.clone();
                    self.spawn_blocking(move || {
                        notary.keep();
                        Input::Nothing
                    });
                }
                Err(error) => warn!(%error, "ticket of the coordinator isn't taken"),
            },
            Some(order::Kind::Revoke(revoke)) => {
                self.with_digest(&revoke.content, |driver, digest| driver.lease_lost(&digest));
            }
            Some(order::Kind::Limits(limits)) => {
                for host in limits.revoked_hosts {
                    if let Ok(host) = host.parse::<proto::HostId>() {
                        warn!(%host, "the fleet quarantined a host");
                        self.tell(Event::Blamed(host.key()));
                    }
                }
            }
            Some(order::Kind::Retraction(retraction)) => {
                if let Ok(maker) = retraction.maker.parse::<proto::HostId>() {
                    let from = ChunkIndex(retraction.from_chunk);
                    self.with_digest(&retraction.content, |driver, digest| {
                        driver.drop_made(&digest, maker.key(), from);
                    });
                }
            }
            Some(order::Kind::Bandwidth(bandwidth)) => {
                info!(
                    upload_bytes_per_second = bandwidth.upload_bytes_per_second,
                    download_bytes_per_second = bandwidth.download_bytes_per_second,
                    "bandwidth is set"
                );
                self.tell(Event::Bandwidth {
                    upload_bytes_per_second: bandwidth.upload_bytes_per_second,
                    download_bytes_per_second: bandwidth.download_bytes_per_second,
                });
            }
            Some(order::Kind::Queue(queue)) => self.wants_are_coming(&queue),
            Some(order::Kind::Recheck(recheck)) => {
                for suspect in recheck.chunks {
                    let chunk = ChunkIndex(suspect.chunk);
                    self.with_digest(&suspect.content, |driver, digest| {
                        driver.look_at(&digest, chunk);
                    });
                }
            }
            Some(order::Kind::Names(names)) => self.order_names(&names),
            None => debug!("order of a kind that this version doesn't know"),
        }
    }

    fn with_digest(&mut self, bytes: &[u8], act: impl FnOnce(&mut Self, Digest)) {
        match Digest::try_from(bytes) {
            Ok(digest) => act(self, digest),
            Err(error) => warn!(%error, "order without a digest"),
        }
    }

    /// The roster changed.
    fn roster(&mut self, effects: Vec<hosts::Effect>) {
        let epoch = self.hosts.epoch();
        debug!(hosts = self.hosts.ids().count(), epoch, "roster");
        // what the next session says first
        self.hello
            .send_modify(|hello| hello.roster_epoch = Some(epoch));
        let hosts: BTreeSet<_> = self
            .hosts
            .ids()
            .cloned()
            .chain([self.coordinator.clone()])
            .collect();
        self.endpoint.authorise(Authorised::Only(hosts));
        self.endpoint.supersede(self.hosts.enrolled());
        self.endpoint.expect(self.hosts.addresses());
        self.follow_hosts(effects);
    }
}
