//! Turns the coordinator's answers into exit statuses: the contract of `stage --wait`, `roll` and `why`.

use client::{
    gate::{GateVerdict, GateView},
    view::{
        HostProgress, HostState, HostView, ImageState, ImageView, PodView, PoolView, StageRequest,
    },
};
use proto::{Reason, ToldReason};

use crate::text;

/// `stage --wait` doesn't wait for a host that has been failed for this long. Agents retry passing failures sooner.
const GIVE_UP_AFTER_SECONDS: u64 = 10;

/// The exit status of a command that failed with an error, and so has no answer.
pub(crate) const NO_ANSWER: u8 = 2;

/// The answer of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, or yes.
    Yes,
    /// No, for example not staged.
    No,
}

/// The answer when the time of `--timeout` is up before what is waited for has come: for `stage --wait`, `roll --wait`
/// and `gate wait`.
pub(crate) const TIME_IS_UP: Outcome = Outcome::No;

impl Outcome {
    /// The exit status for this answer. A command without an answer exits with [`NO_ANSWER`].
    pub(crate) const fn status(self) -> u8 {
        match self {
            Self::Yes => 0,
            Self::No => 1,
        }
    }

    const fn of(yes: bool) -> Self {
        match yes {
            true => Self::Yes,
            false => Self::No,
        }
    }
}

/// The answer of `why` for a Pod: yes when nothing blocks the Pod. Then the Pod may drain, already runs its pool's
/// image, or isn't gated. A reason of a later version counts as a block.
pub(crate) fn of_pod(pod: &PodView) -> Outcome {
    Outcome::of(matches!(
        pod.reason.known(),
        Some(
            Reason::Open
                | Reason::Current
                | Reason::AlreadyLabelled
                | Reason::Admitted
                | Reason::NotGated
        )
    ))
}

/// The answer of `why` for a host: yes when nothing is missing on the host.
pub(crate) fn of_host(host: &HostView) -> Outcome {
    Outcome::of(host.why.is_empty())
}

/// The answer of `roll`: yes when no Pod of these pools still runs another image than its pool's.
pub(crate) fn of_pools(pools: &[PoolView]) -> Outcome {
    Outcome::of(pools.iter().all(|pool| pool.stale == 0))
}

/// The result of waiting for an image.
pub(crate) struct Ended {
    pub(crate) image: ImageView,
    pub(crate) outcome: Outcome,
    /// Why the wait ended although the image isn't staged.
    pub(crate) story: String,
}

/// The result, if the wait is over: every selected host has the image, or no host can still get it.
pub(crate) fn settled(image: &ImageView, request: &StageRequest) -> Option<Ended> {
    let hosts = request.hosts.as_deref();
    let ended = |outcome, story: String| {
        Some(Ended {
            image: image.clone(),
            outcome,
            story,
        })
    };
    // this counts even where the image stays wanted under other names
    if image.state == ImageState::Cancelled || !image.references.contains(&request.reference) {
        return ended(
            Outcome::No,
            format!(
                "{} isn't wanted as {} any more: it was cancelled, or staged anew after the tag had moved\n",
                request.reference, image.digest
            ),
        );
    }
    let selected = || {
        image
            .hosts
            .iter()
            .filter(|host| hosts.is_none_or(|hosts| hosts.contains(&host.host)))
    };
    if selected().next().is_some() && selected().all(|host| host.state == HostState::Present) {
        return ended(Outcome::Yes, String::new());
    }
    // several hosts say that the registry doesn't give what the manifest names, so waiting doesn't help
    if image.state == ImageState::Failed
        && let Some(story) = known(image.reason.as_ref()).and_then(failed_image)
    {
        return ended(
            Outcome::No,
            format!("{}: {story}\n{}\n", image.digest, image.message),
        );
    }
    let hopeless = selected().all(|host| {
        host.state == HostState::Present
            || (!waits_for_tart(host)
                && host
                    .failed_seconds
                    .is_some_and(|seconds| seconds >= GIVE_UP_AFTER_SECONDS))
    });
    (hopeless && selected().next().is_some())
        .then(|| ended(Outcome::No, text::failures(image)))
        .flatten()
}

/// What is wrong with an image that failed as a whole, and what to do. `None` for other reasons. A reason of a later
/// version doesn't end the wait.
const fn failed_image(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::ContentBad => {
            "the registry's bytes don't match the manifest; push the image anew, and stage it again"
        }
        Reason::ContentMissing => {
            "the registry lacks a part of the image; push the image anew, and stage it again"
        }
        Reason::ContentRefused => {
            "the registry refuses a part of the image to the hosts; look at the credentials, and stage it again"
        }
        Reason::ContentUnusable => {
            "the registry answers for a part of the image with something that can't be used; look at the registry"
        }
        Reason::ContentUnavailable => {
            "the registry gives other content and not this one, whichever host asks; look at the registry. It is tried again by itself"
        }
        Reason::Contradicts => "it can't be staged beside another image",
        _ => return None,
    })
}

/// Whether waiting for a host at the gate is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GateEnd {
    /// The host is ready, and has its place.
    Open,
    /// It isn't over.
    Waits,
    /// It is over, and the host isn't ready. The story has the reason, the cause and the next step.
    Over(String),
}

/// The end of waiting for a host at the gate, by what ends `stage --wait` too: the image failed as a whole, or has been
/// failed on the host for long. What the gate refuses doesn't come by waiting.
pub(crate) fn of_gate(view: &GateView, image: &str) -> GateEnd {
    let host = &view.host;
    let story = |cause: &str, next: &str| {
        let next = match next.is_empty() {
            true => String::new(),
            false => format!("; next: {next}"),
        };
        GateEnd::Over(format!("{host}: {}: {cause}{next}\n", view.reason))
    };
    match view.verdict {
        GateVerdict::Open => GateEnd::Open,
        GateVerdict::Refused => story(&view.message, &view.next),
        GateVerdict::Waits => {
            if let Some(failed) = known(view.image_failed.as_ref()).and_then(failed_image) {
                let next = format!("{failed} (`parbake status {image}`)");
                return story(&view.message, &next);
            }
            let busy = known(Some(&view.reason)) == Some(Reason::TartBusy);
            let failed = view
                .failed_seconds
                .is_some_and(|seconds| seconds >= GIVE_UP_AFTER_SECONDS);
            match failed && !busy {
                true => story(&view.message, &view.next),
                false => GateEnd::Waits,
            }
        }
    }
}

/// Whether the host waits for tart. tart holds its lock while it pulls, and releases the lock by itself. Agents report
/// this state as an install under way, and older agents as a failure.
fn waits_for_tart(host: &HostProgress) -> bool {
    known(host.reason.as_ref()) == Some(Reason::TartBusy)
}

fn known(told: Option<&ToldReason>) -> Option<Reason> {
    told.and_then(ToldReason::known)
}

#[cfg(test)]
mod tests;
