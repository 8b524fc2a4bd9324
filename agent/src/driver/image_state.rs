//! The description of an image for others: its state with a reason, for the coordinator, the status page and metrics.

use proto::{
    Digest, Moment, Reason,
    message::{ImageState, StageState},
};
use swarm::{Stall, Standstill};

use super::{
    image::{Image, OnDisk},
    trouble::Trouble,
};
use crate::{
    admin::state_name,
    reconcile::{Reconciler, Sight},
};

/// The names of all states that an image may have.
pub(super) const NAMES: [&str; 6] = [
    state_name(StageState::Queued),
    state_name(StageState::Staging),
    state_name(StageState::Installing),
    state_name(StageState::Present),
    state_name(StageState::Failed),
    state_name(StageState::Gone),
];

/// The name of the state that an image is in.
pub(super) const fn name<S: OnDisk>(image: &Image<S>) -> &'static str {
    state_name(image.state())
}

/// An image that this version can't stage.
pub(super) fn declined(digest: &Digest, references: &[String], message: &str) -> ImageState {
    ImageState {
        manifest: digest.as_bytes().to_vec(),
        reference: references.first().cloned().unwrap_or_default(),
        state: StageState::Failed.into(),
        reason: Reason::Unsupported.as_str().into(),
        message: message.to_owned(),
        ..ImageState::default()
    }
}

/// Describes an image of this host. `still`: why none of its contents grows, if so. `unnamed`: why tart doesn't find
/// the image, if so. `apart`: why this host reaches no peer, if its own system keeps it from all.
pub(super) fn of<S: OnDisk>(
    now: Moment,
    image: &Image<S>,
    still: Option<Standstill>,
    unnamed: Option<&Trouble>,
    apart: Option<&Trouble>,
) -> ImageState {
    let peerless = still.is_some_and(|still| still.stall == Stall::NoPeers);
    let apart = apart.filter(|_| peerless);
    let trouble = image.trouble.as_ref().or(unnamed).or(apart);
    let (reason, message) = words(image.state(), trouble, still);
    // while another name is being linked, the names that an image has stay good
    let names = matches!(
        image.state(),
        StageState::Present | StageState::Installing | StageState::Failed
    );
    let recipe = image.told_recipe();
    ImageState {
        manifest: image.digest().as_bytes().to_vec(),
        reference: image.reference().to_owned(),
        state: image.state().into(),
        reason: reason.map_or("", Reason::as_str).to_owned(),
        message,
        total_bytes: image.layout.content_bytes(),
        held_bytes: image.counts.held,
        origin_bytes: image.counts.origin,
        peer_bytes: image.counts.peers,
        local_bytes: image.counts.local,
        upload_bytes: image.counts.uploaded,
        presence_age_ms: image.seen.at.map_or(0, |at| proto::millis(now.since(at))),
        golden: image.seen.golden,
        order: Some(image.ordered.number),
        recipe: recipe.map_or_else(Vec::new, |file| file.digest.as_bytes().to_vec()),
        recipe_bytes: recipe.map_or(0, |file| file.size),
        recipe_refused: image
            .refused
            .map_or_else(Vec::new, |of| of.as_bytes().to_vec()),
        ready_references: match names {
            true => image.seen.ready.clone(),
            false => Vec::new(),
        },
        still_ms: still.map_or(0, |still| proto::millis(still.since)),
        begun_at_ms: image.begun_at_ms,
        written_bytes: image.stage().map_or(0, OnDisk::written_bytes),
        // of recipes that are made, others know
        makes_recipe: false,
        recipes_failed: 0,
    }
}

/// Why an image that is whole isn't present, if none of its jobs failed.
pub(super) fn unnamed<S: OnDisk>(
    now: Moment,
    image: &Image<S>,
    reconciler: &Reconciler,
) -> Option<Trouble> {
    let digest = image.digest();
    if let Some((name, sight, again_at)) = reconciler.lost(&digest) {
        let left = again_at.since(now).as_secs();
        let (reason, what) = match sight {
            Sight::Image(other) => (Reason::TagMoved, format!("names {other}")),
            Sight::Other => (Reason::TagMoved, "names another image".to_owned()),
            Sight::Nothing => (Reason::NameLost, "or its golden was removed".to_owned()),
        };
        let message =
            format!("{name} {what}, by tart or somebody else; it is put back in {left} s");
        return Some(Trouble { reason, message });
    }
    if let Some((name, other)) = reconciler.waits_for(&digest) {
        return Some(Trouble {
            reason: Reason::NameBusy,
            message: format!(
                "{name} was wanted for {other} and is being linked to that; this one is next"
            ),
        });
    }
    let unnamed = reconciler.names(&digest).next().is_none();
    (unnamed && image.seen.ready.is_empty()).then(|| Trouble {
        reason: Reason::BadReference,
        message: "no reference is wanted for the image, so tart couldn't find it".to_owned(),
    })
}

/// Why an image isn't present, for machines and for people. An image under way needs no reason. One content's trouble
/// doesn't count while other contents come: it counts when the whole image stands still.
fn words(
    state: StageState,
    trouble: Option<&Trouble>,
    still: Option<Standstill>,
) -> (Option<Reason>, String) {
    match (state, trouble, still) {
        (StageState::Staging, _, None) => Default::default(),
        (_, Some(trouble), _) => (Some(trouble.reason), trouble.message.clone()),
        // the duration has a field of its own: whoever shows it counts on
        (_, None, Some(still)) => (Some(still.stall.reason()), String::new()),
        (StageState::Queued, None, None) => (
            Some(Reason::Preparing),
            "room is reserved, and what other images of this host hold is copied".to_owned(),
        ),
        (_, None, None) => Default::default(),
    }
}
