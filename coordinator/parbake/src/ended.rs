//! When waiting for an image ends, and how: the contract of `parbake stage --wait`.

use client::view::{HostProgress, HostState, ImageState, ImageView, StageRequest};

use crate::text;

/// A host that has been failed for this long isn't waited for any more: agents retry what passes by itself sooner.
const GIVE_UP_AFTER_SECONDS: u64 = 10;

/// How a command came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, or yes.
    Yes,
    /// No: not staged.
    No,
}

/// The end of waiting for an image.
pub(crate) struct Ended {
    pub(crate) image: ImageView,
    pub(crate) outcome: Outcome,
    /// Why it ended when it isn't staged.
    pub(crate) story: String,
}

/// The end, if this is one: all present, or nobody left who may still get it.
pub(crate) fn settled(image: &ImageView, request: &StageRequest) -> Option<Ended> {
    let hosts = request.hosts.as_deref();
    let ended = |outcome, story: String| {
        Some(Ended {
            image: image.clone(),
            outcome,
            story,
        })
    };
    // also where the image stays wanted under other names
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
    // The registry doesn't give what the manifest names, say several hosts: waiting doesn't help.
    if image.state == ImageState::Failed
        && let Some(story) = image.reason.as_deref().and_then(failed_image)
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

/// What is wrong with an image that failed as such, and what to do; `None` for other reasons.
fn failed_image(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "content_bad" => {
            "the registry's bytes don't match the manifest; push the image anew, and stage it again"
        }
        "content_missing" => {
            "the registry lacks a part of the image; push the image anew, and stage it again"
        }
        "content_refused" => {
            "the registry refuses a part of the image to the hosts; look at the credentials, and stage it again"
        }
        "content_unusable" => {
            "the registry answers for a part of the image with something that can't be used; look at the registry"
        }
        "content_unavailable" => {
            "the registry gives other content and not this one, whichever host asks; look at the registry. It is tried again by itself"
        }
        "contradicts" => "it can't be staged beside another image",
        _ => return None,
    })
}

/// tart holds its lock for as long as it pulls, and gives it back by itself. Agents say so of an install under way; earlier ones called
/// it a failure.
fn waits_for_tart(host: &HostProgress) -> bool {
    host.reason.as_deref() == Some("tart_busy")
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::view::SourceBytes;

    fn host(name: &str, state: HostState, failed_seconds: Option<u64>) -> HostProgress {
        HostProgress {
            host: name.into(),
            state,
            reason: None,
            message: String::new(),
            connected: true,
            total_bytes: 10,
            held_bytes: 0,
            bytes: SourceBytes::default(),
            upload_bytes: 0,
            bytes_per_second: 0,
            eta_seconds: None,
            began_at: None,
            presence_age_ms: None,
            golden: false,
            failed_seconds,
        }
    }

    fn image(hosts: Vec<HostProgress>) -> ImageView {
        ImageView {
            digest: "sha256:x".into(),
            references: vec!["r.test/image:1".into()],
            state: ImageState::Staging,
            reason: None,
            message: String::new(),
            disk_bytes: 10,
            raw_bytes: 10,
            registry_bytes: 5,
            contents: 1,
            contents_done: 0,
            hosts_selected: hosts.len() as u64,
            hosts_present: 0,
            hosts_failed: 0,
            wanted_at: 0,
            staged_seconds: None,
            hosts,
            leases: Vec::new(),
        }
    }

    #[test]
    fn waiting_ends_when_all_selected_hosts_have_it_or_the_rest_has_failed_for_long() {
        let outcome = |hosts: Vec<HostProgress>, selected: Option<&[String]>| {
            let request = StageRequest {
                reference: "r.test/image:1".into(),
                hosts: selected.map(<[String]>::to_vec),
            };
            settled(&image(hosts), &request).map(|ended| ended.outcome)
        };
        let present = || host("a", HostState::Present, None);
        assert_eq!(outcome(vec![present()], None), Some(Outcome::Yes));
        assert_eq!(
            outcome(vec![present(), host("b", HostState::Staging, None)], None),
            None
        );
        let failed = |seconds| host("b", HostState::Failed, Some(seconds));
        assert_eq!(
            outcome(vec![present(), failed(GIVE_UP_AFTER_SECONDS - 1)], None),
            None
        );
        assert_eq!(
            outcome(vec![present(), failed(GIVE_UP_AFTER_SECONDS)], None),
            Some(Outcome::No)
        );
        let mut busy = failed(10 * GIVE_UP_AFTER_SECONDS);
        busy.reason = Some("tart_busy".into());
        assert_eq!(outcome(vec![present(), busy], None), None);
        let only = ["a".to_owned()];
        assert_eq!(
            outcome(vec![present(), failed(0)], Some(&only)),
            Some(Outcome::Yes)
        );
        assert_eq!(outcome(vec![], None), None);
    }
}
