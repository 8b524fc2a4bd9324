//! What operators ask: stage, cancel, limit, and what staging would move.

use std::collections::{BTreeMap, BTreeSet};

use proto::{Digest, HostId, Moment};
use rollout::{
    names::NotAsked,
    stage::{Event, event as word},
};
use tracing::{error, info, warn};

use super::{
    Ask, CancelError, Driver, MAX_REFERENCES, MAX_WANTS, StageError, Wanted, Write, took::Took,
    words, writer,
};
use crate::{
    progress::Progress,
    view::{CancelReply, HostState, ShortOfRoom, StageReply, StillWanted},
    wants::Want,
};

impl Wanted {
    /// An image that is wanted from now on, and that the plan doesn't know yet.
    pub(super) fn new(want: Want, took: Took) -> Self {
        Self {
            entitled: want.hosts.clone(),
            want,
            held: BTreeSet::new(),
            planned: false,
            orders: Vec::new(),
            ordered: BTreeSet::new(),
            token: None,
            token_due: None,
            token_refused: false,
            took,
            origin_said: None,
            origin_remark: None,
            restage: BTreeMap::new(),
        }
    }
}

impl Driver {
    pub(super) fn answer(&mut self, now: Moment, ask: Ask) {
        match ask {
            Ask::Stage { want, reply } => match self.stage(now, *want) {
                Ok((image, short_of_room)) => {
                    self.act(now);
                    self.tell_names(now);
                    let Some(view) = self.show_image(now, &image) else {
                        return;
                    };
                    self.show(now);
                    let reply = writer::Answer::new(
                        reply,
                        StageReply {
                            image: view,
                            short_of_room,
                        },
                    );
                    if let Some(want) = self.asked_want(&image) {
                        self.keep(Write::Want(Box::new(want), reply));
                    }
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Ask::Cancel { name, reply } => match self.cancel_name(now, &name) {
                Ok((image, answer)) => {
                    self.act(now);
                    self.tell_names(now);
                    self.show(now);
                    let answer = writer::Answer::new(reply, answer);
                    self.keep(match self.asked_want(&image) {
                        Some(want) => Write::Less(Box::new(want), answer),
                        None => Write::Drop(image, answer),
                    });
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Ask::Bandwidth { limits, reply } => {
                self.bandwidth = Some(limits);
                self.order_bandwidth();
                info!(
                    upload = limits.upload_bytes_per_second,
                    download = limits.download_bytes_per_second,
                    "bandwidth limits changed"
                );
                self.keep(Write::Bandwidth(limits, writer::Answer::new(reply, ())));
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
            Ask::Urge(image) => {
                info!(%image, "the cluster asks for an image anew");
                self.urge(now, &image);
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
        let before = self.wants.get(&image).map(|wanted| &wanted.want.references);
        let mut names = before.cloned().unwrap_or_default();
        names.extend(want.references.iter().cloned());
        if names.len() > MAX_REFERENCES {
            return Err(StageError::TooManyReferences);
        }
        // those that it has are in hosts' reports already
        if before.is_none_or(|before| *before != names) && !self.has_room_for(&image, &names) {
            return Err(StageError::TooManyNames);
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
        let reference = want.references.first().map_or("", String::as_str);
        info!(%image, reference, hosts = selected.len(), "image is wanted");
        self.enter(now, want);
        self.urge(now, &image);
        Ok((image, short))
    }

    /// What `name` is for isn't wanted by operators any more: a reference, or an image by its bare digest.
    fn cancel_name(
        &mut self,
        now: Moment,
        name: &str,
    ) -> Result<(Digest, CancelReply), CancelError> {
        let unwanted = |others| CancelError::new(name, NotAsked::Unwanted, others);
        let (image, reference) = match name.parse::<Digest>() {
            Ok(image) => (image, None),
            Err(_) => match self.claims.find(name) {
                Some(image) => (image, Some(name)),
                None => return Err(unwanted(self.other_names(name))),
            },
        };
        let cancelled = self.claims.cancel(&image, reference);
        let references = cancelled.map_err(|why| CancelError::new(name, why, Vec::new()))?;
        info!(%image, ?references, "operators don't want this any more");
        self.follow_claims(now, None);
        self.names_changed();
        let still_wanted = self.claims.claimed(&image).into_iter();
        let still_wanted = still_wanted.map(|claimed| StillWanted {
            reference: claimed.reference,
            operators: claimed.operators,
            cluster: claimed.cluster,
        });
        let reply = CancelReply {
            digest: image.to_string(),
            references,
            still_wanted: still_wanted.collect(),
        };
        Ok((image, reply))
    }

    /// The references of the image that this one names by its digest.
    fn other_names(&self, name: &str) -> Vec<String> {
        let digest = name
            .split_once('@')
            .and_then(|(_, digest)| digest.parse().ok());
        let claimed = digest.map(|image| self.claims.claimed(&image));
        let claimed = claimed.unwrap_or_default().into_iter();
        claimed.map(|claimed| claimed.reference).collect()
    }

    /// An operator asks again: hosts that failed or lost the image try at once, and their pauses start anew.
    fn urge(&mut self, now: Moment, image: &Digest) {
        let Some(wanted) = self.wants.get_mut(image) else {
            return;
        };
        wanted.restage.clear();
        self.plan.handle(now, Event::Urged(*image));
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
                    let host = unknown.clone();
                    return Err(match self.membership.revoked.get(unknown) {
                        Some(revocation) => StageError::Revoked {
                            what: words::revocation(&host, revocation),
                            host,
                        },
                        None => StageError::UnknownHost(host),
                    });
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
    pub(super) fn is_everywhere(&self, want: &Want) -> bool {
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
                size: content.geometry.size(),
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

    pub(super) fn cancel(&mut self, now: Moment, image: Digest) {
        if let Some(wanted) = self.wants.remove(&image) {
            info!(%image, "image isn't wanted any more");
            if wanted.planned {
                self.plan.handle(now, Event::Cancelled(image));
            }
        }
    }

    pub(super) fn keep(&self, keep: Write) {
        if let Err(error) = self.writer.try_send(keep) {
            // The answer that it carried is dropped with it: whoever asked hears of it.
            error!(%error, "state couldn't be queued for writing; a restart may forget the last changes");
        }
    }
}
