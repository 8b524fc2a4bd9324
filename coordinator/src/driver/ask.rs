//! What operators ask: stage, cancel, limit, and what staging would move.

use std::collections::{BTreeMap, BTreeSet};

use proto::{Digest, HostId, Moment};
use rollout::stage::{Event, event as word};
use tracing::{error, info, warn};

use super::{
    Ask, Driver, Keep, MAX_REFERENCES, MAX_WANTS, StageError, Wanted, claims::Claim, keeper,
    took::Took,
};
use crate::{
    progress::Progress,
    view::{HostState, ShortOfRoom, StageReply},
    wants::{Timing, Want},
};

impl Driver {
    pub(super) fn answer(&mut self, now: Moment, ask: Ask) {
        match ask {
            Ask::Stage { want, reply } => match self.stage(now, *want) {
                Ok((image, short_of_room)) => {
                    self.act(now);
                    let Some(view) = self.show_image(now, &image) else {
                        return;
                    };
                    self.show(now);
                    let reply = keeper::Answer::new(
                        reply,
                        StageReply {
                            image: view,
                            short_of_room,
                        },
                    );
                    if let Some(want) = self.wants.get(&image).and_then(Wanted::asked_want) {
                        self.keep(Keep::Want(Box::new(want), reply));
                    }
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Ask::Cancel { image, reply } => {
                let wanted = self.wants.get(&image);
                let wanted = wanted.is_some_and(|wanted| wanted.asked.is_some());
                if wanted {
                    self.release(now, image, |wanted| wanted.asked = None);
                    self.act(now);
                }
                self.show(now);
                self.keep(Keep::Drop(image, Some(keeper::Answer::new(reply, wanted))));
            }
            Ask::Bandwidth { limits, reply } => {
                self.bandwidth = Some(limits);
                self.order_bandwidth();
                info!(
                    upload = limits.upload_bytes_per_second,
                    download = limits.download_bytes_per_second,
                    "bandwidth limits changed"
                );
                self.keep(Keep::Bandwidth(limits, keeper::Answer::new(reply, ())));
            }
            Ask::Place {
                wants,
                limits,
                whole,
            } => {
                self.limit(now, limits);
                self.place(now, wants);
                self.placed |= whole;
                self.wants_may_be_known(now);
                self.act(now);
                self.show(now);
            }
            Ask::Preview { want, reply } => drop(reply.send(self.preview(&want))),
        }
    }

    pub(super) fn stage(
        &mut self,
        now: Moment,
        want: Want,
    ) -> Result<(Digest, Vec<ShortOfRoom>), StageError> {
        let image = want.digest();
        let selected = self.selected(want.hosts.as_ref())?;
        if !self.wants.contains_key(&image) && self.wants.len() >= MAX_WANTS {
            return Err(StageError::TooManyImages);
        }
        let before = self.wants.get(&image).map(|wanted| &wanted.want);
        let names = before.map_or(0, |want| want.references.len());
        if names >= MAX_REFERENCES {
            return Err(StageError::TooManyReferences);
        }
        let short = self.short_of_room(&want, &selected)?;
        for host in &short {
            warn!(
                host = host.host,
                %image,
                needed_bytes = host.needed_bytes,
                free_bytes = host.free_bytes,
                floor_bytes = host.floor_bytes,
                "host lacks room by the coordinator's figures"
            );
        }
        self.supersede(now, &want);
        let reference = want.references.first().map_or("", String::as_str);
        info!(%image, reference, hosts = selected.len(), "image is wanted");
        self.enter(now, want);
        self.tell_wanted(now, image);
        self.urge(now, &image);
        Ok((image, short))
    }

    /// An operator asks again: hosts that failed or lost the image try at once, and their pauses start anew.
    fn urge(&mut self, now: Moment, image: &Digest) {
        let Some(wanted) = self.wants.get_mut(image) else {
            return;
        };
        wanted.restage.clear();
        for host in wanted.ordered.clone() {
            let known = self.hosts.get_mut(&host);
            let Some(progress) = known.and_then(|known| known.images.get_mut(image)) else {
                continue;
            };
            progress.urged(now);
            if matches!(progress.state, HostState::Failed | HostState::Gone) {
                self.order_stage(&host, *image);
            }
        }
    }

    /// The hosts that a selection means now.
    pub(super) fn selected(
        &self,
        hosts: Option<&BTreeSet<HostId>>,
    ) -> Result<Vec<HostId>, StageError> {
        let selected: Vec<HostId> = match hosts {
            None => self.hosts.keys().cloned().collect(),
            Some(hosts) => {
                if let Some(unknown) = hosts.iter().find(|host| !self.hosts.contains_key(host)) {
                    return Err(StageError::UnknownHost(unknown.clone()));
                }
                hosts.iter().cloned().collect()
            }
        };
        if selected.is_empty() {
            return Err(StageError::NoHosts);
        }
        Ok(selected)
    }

    /// The selected hosts whose reported room isn't enough; an error when none could ever hold the image.
    pub(super) fn short_of_room(
        &self,
        want: &Want,
        selected: &[HostId],
    ) -> Result<Vec<ShortOfRoom>, StageError> {
        let image = want.digest();
        let whole = want.layout.disk_bytes();
        let mut short = Vec::new();
        let mut hopeless = 0;
        for host in selected {
            let Some(known) = self.hosts.get(host) else {
                continue;
            };
            let Some(volume) = &known.volume else {
                continue;
            };
            let progress = known.images.get(&image);
            if progress.is_some_and(|progress| progress.state == HostState::Present) {
                continue;
            }
            let held = progress.map_or(0, Progress::held_bytes);
            let needed_bytes = whole.saturating_sub(held);
            if volume.free_bytes.saturating_sub(volume.floor_bytes) < needed_bytes {
                short.push(ShortOfRoom {
                    host: host.to_string(),
                    needed_bytes,
                    free_bytes: volume.free_bytes,
                    floor_bytes: volume.floor_bytes,
                });
            }
            if volume.total_bytes.saturating_sub(volume.floor_bytes) < whole {
                hopeless += 1;
            }
        }
        if hopeless == selected.len() {
            return Err(StageError::NowhereFits {
                needed_bytes: whole,
                hosts: short,
            });
        }
        Ok(short)
    }

    /// A tag names one image: where it moved, the image that it named before loses it, and with its last name the want.
    pub(super) fn supersede(&mut self, now: Moment, want: &Want) {
        let image = want.digest();
        let moved: Vec<Digest> = self
            .wants
            .iter()
            .filter(|(other, wanted)| {
                **other != image && !wanted.want.references.is_disjoint(&want.references)
            })
            .map(|(other, _)| *other)
            .collect();
        for other in moved {
            let Some(wanted) = self.wants.get_mut(&other) else {
                continue;
            };
            for claim in [&mut wanted.asked, &mut wanted.cluster] {
                if let Some(claim) = claim {
                    claim
                        .references
                        .retain(|reference| !want.references.contains(reference));
                }
                if claim
                    .as_ref()
                    .is_some_and(|claim| claim.references.is_empty())
                {
                    *claim = None;
                }
            }
            wanted.order = None;
            if !wanted.refresh() {
                info!(image = %other, by = %image, "image is superseded: its last tag moved");
                self.cancel(now, other);
                self.keep(Keep::Drop(other, None));
            } else {
                if let Some(want) = wanted.asked_want() {
                    self.keep(Keep::Want(Box::new(want), keeper::Answer::none()));
                }
                self.tell_wanted(now, other);
            }
        }
    }

    pub(super) fn enter(&mut self, now: Moment, want: Want) {
        let image = want.digest();
        let claim = Claim::of(&want);
        let timing = want.timing;
        match self.wants.get_mut(&image) {
            None => {
                let wanted = self.wanted(now, want, Some(claim), None);
                self.wants.insert(image, wanted);
            }
            Some(wanted) => {
                wanted.asked = Some(match wanted.asked.take() {
                    Some(before) => before.join(claim),
                    None => claim,
                });
                let before = Claim::of(&wanted.want);
                wanted.refresh();
                wanted.order = None;
                if let (Took::Untold, Timing::Known(_)) = (wanted.took, timing) {
                    // the cluster wanted it first after a start, and knows no time
                    wanted.took = Took::of(timing, now, Self::unix_ms(), false);
                } else if Claim::of(&wanted.want) != before {
                    self.time_anew(now, &image);
                }
            }
        }
    }

    /// What is wanted of an image has changed.
    pub(super) fn time_anew(&mut self, now: Moment, image: &Digest) {
        let Some(wanted) = self.wants.get(image) else {
            return;
        };
        let everywhere = self.is_everywhere(&wanted.want);
        if let Some(wanted) = self.wants.get_mut(image) {
            wanted.took.anew(now, Self::unix_ms(), everywhere);
        }
    }

    /// Whether every host that shall hold this has it by its own last word, under all its names.
    fn is_everywhere(&self, want: &Want) -> bool {
        let image = want.digest();
        let has = |host: &HostId| {
            self.hosts.get(host).is_some_and(|known| {
                let progress = known.images.get(&image);
                let names = known.word.holdings.get(&image);
                progress.is_some_and(|progress| progress.state == HostState::Present)
                    && names.is_some_and(|names| want.references.is_subset(names))
            })
        };
        self.selected(want.hosts.as_ref())
            .is_ok_and(|selected| selected.iter().all(has))
    }

    pub(super) fn wanted(
        &self,
        now: Moment,
        want: Want,
        asked: Option<Claim>,
        cluster: Option<Claim>,
    ) -> Wanted {
        let token_due = self.registries.hands_down(&want).then_some(now);
        let everywhere = self.is_everywhere(&want);
        let took = Took::of(want.timing, now, Self::unix_ms(), everywhere);
        let held = cluster
            .iter()
            .flat_map(|claim| claim.held.clone())
            .collect();
        Wanted {
            want,
            asked,
            cluster,
            held,
            order: None,
            ordered: BTreeSet::new(),
            token: None,
            token_due,
            took,
            origin_said: None,
            restage: BTreeMap::new(),
        }
    }

    pub(super) fn tell_wanted(&mut self, now: Moment, image: Digest) {
        let Some(wanted) = self.wants.get(&image) else {
            return;
        };
        let want = &wanted.want;
        let contents = want
            .layout
            .contents()
            .into_iter()
            .map(|content| word::Content {
                digest: content.digest,
                chunks: content.geometry.chunks(),
                origin_bytes: match content.kind {
                    proto::image::ContentKind::RawLayer { blob } => blob.size,
                    proto::image::ContentKind::Blob => content.geometry.size(),
                },
            })
            .collect();
        let hosts = want.hosts.as_ref().map_or(word::Selection::All, |hosts| {
            word::Selection::Hosts(hosts.iter().cloned().collect())
        });
        self.plan.handle(
            now,
            Event::Wanted {
                image,
                references: want.references.iter().cloned().collect(),
                contents,
                hosts,
                held: wanted.held.iter().cloned().collect(),
                purpose: word::Purpose::Stage,
            },
        );
    }

    /// Whether it was wanted.
    pub(super) fn cancel(&mut self, now: Moment, image: Digest) -> bool {
        if self.wants.remove(&image).is_none() {
            return false;
        }
        info!(%image, "image isn't wanted any more");
        self.plan.handle(now, Event::Cancelled(image));
        true
    }

    pub(super) fn keep(&self, keep: Keep) {
        if let Err(error) = self.keeper.try_send(keep) {
            // The answer that it carried is dropped with it: whoever asked hears of it.
            error!(%error, "state couldn't be queued for writing; a restart may forget the last changes");
        }
    }
}
