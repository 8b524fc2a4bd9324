//! Operators' requests about images: stage, plan, list, show, cancel.

use std::{collections::BTreeSet, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use http::StatusCode;
use proto::{Digest, HostId, Reason, ToldReason};
use tokio::{sync::oneshot, time::timeout};
use tracing::warn;

use super::{
    answer::{Answer, Failure, read},
    state::{Api, ask},
};
use crate::{
    driver::{Ask, View},
    fleet::Reread,
    view::{HostProgress, HostState, ImageState, ImageView, StageRequest},
    wants::Want,
};

/// How long an answer waits for hosts that check whether they still hold an image. A check takes milliseconds.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

/// The hosts that a request names; `None`: all.
pub(super) fn selection(hosts: Option<Vec<String>>) -> Answer<Option<BTreeSet<HostId>>> {
    let Some(hosts) = hosts else { return Ok(None) };
    if hosts.is_empty() {
        let error = "`hosts` is empty; leave it out to choose all hosts";
        return Err(Failure::new(StatusCode::BAD_REQUEST, error));
    }
    let parse = |host: String| {
        host.parse::<HostId>().map_err(|error| {
            Failure::new(
                StatusCode::BAD_REQUEST,
                format!("host `{}`: {error}", crate::progress::clean(&host)),
            )
        })
    };
    hosts
        .into_iter()
        .map(parse)
        .collect::<Answer<_>>()
        .map(Some)
}

/// What a request wants, after the registry was asked for the image.
async fn wanted(api: &Api, body: &Bytes) -> Answer<Want> {
    let request: StageRequest = read(body)?;
    let hosts = selection(request.hosts)?;
    let resolved = api.registries.resolve(&request.reference, hosts, None);
    let want = resolved.await?;
    take_in_records(api).await;
    Ok(Want {
        priority: request.priority,
        ..want
    })
}

pub(super) async fn stage(State(api): State<Api>, body: Bytes) -> Answer<Response> {
    let want = wanted(&api, &body).await?;
    let reply = ask(&api, |reply| Ask::Stage {
        want: Box::new(want),
        reply,
    });
    let mut reply = reply.await??;
    if let Some(image) = confirmed(&api, &reply.image).await {
        reply.image = image;
    }
    let status = if reply.image.state == ImageState::Present {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    Ok((status, Json(reply)).into_response())
}

/// Hosts that hold an image check it again when somebody asks for the image again. Waits for these checks, and returns
/// the image after them. `None` when anything else keeps the image from being present, or when the checks take too
/// long.
async fn confirmed(api: &Api, image: &ImageView) -> Option<ImageView> {
    let is_confirming = |image: &ImageView| {
        let confirming = |host: &&HostProgress| {
            let reason = host.reason.as_ref().and_then(ToldReason::known);
            reason == Some(Reason::Confirming)
        };
        let hosts = || {
            let hosts = image.hosts.iter();
            hosts.filter(|host| host.state != HostState::Present)
        };
        hosts().next().is_some() && hosts().all(|host| confirming(&host))
    };
    let digest: Digest = image.digest.parse().ok()?;
    if !is_confirming(image) {
        return None;
    }
    let mut view = api.view.clone();
    let settled = view.wait_for(|view| {
        let image = view.images.get(&digest);
        image.is_none_or(|image| !is_confirming(image))
    });
    let view = timeout(CONFIRM_TIMEOUT, settled).await.ok()?.ok()?;
    view.images.get(&digest).map(|image| image.as_ref().clone())
}

pub(super) async fn plan(State(api): State<Api>, body: Bytes) -> Answer<Response> {
    let want = wanted(&api, &body).await?;
    let reply = ask(&api, |reply| Ask::Preview {
        want: Box::new(want),
        reply,
    });
    Ok(Json(reply.await??).into_response())
}

pub(super) async fn images(State(api): State<Api>) -> Response {
    let view = api.view.borrow().clone();
    let images: Vec<&ImageView> = view.images.values().map(AsRef::as_ref).collect();
    Json(images).into_response()
}

/// The image that a path names by its digest or by one of its references (percent-encoded).
pub(super) fn find(view: &View, name: &str) -> Answer<Digest> {
    if let Ok(digest) = name.parse::<Digest>()
        && view.images.contains_key(&digest)
    {
        return Ok(digest);
    }
    view.images
        .iter()
        .find(|(_, image)| image.references.iter().any(|reference| reference == name))
        .map(|(digest, _)| *digest)
        .ok_or_else(|| {
            let name = crate::progress::clean(name);
            // After a start, some wants of before aren't known yet. A client that waits for such an image mustn't hear
            // that nobody wants it.
            if !view.whole {
                let error = format!(
                    "image `{name}` isn't among what the coordinator knows to be wanted since it started; it is still finding out: ask again"
                );
                return Failure::new(StatusCode::SERVICE_UNAVAILABLE, error);
            }
            Failure::new(
                StatusCode::NOT_FOUND,
                format!("image `{name}` isn't wanted; see `parbake status`"),
            )
        })
}

pub(super) async fn image(State(api): State<Api>, Path(name): Path<String>) -> Answer<Response> {
    let view = api.view.borrow().clone();
    let digest = find(&view, &name)?;
    Ok(Json(view.images[&digest].as_ref()).into_response())
}

pub(super) async fn cancel(State(api): State<Api>, Path(name): Path<String>) -> Answer<Response> {
    let reply = ask(&api, |reply| Ask::Cancel { name, reply });
    Ok(Json(reply.await??).into_response())
}

/// Has the records read again before hosts are chosen. So an operator who readmits a host on the command line and then
/// stages an image reaches that host too.
async fn take_in_records(api: &Api) {
    let (answer, read) = oneshot::channel();
    let taken_in = async {
        if api.reload.send(Reread::Answer(answer)).await.is_ok() {
            _ = read.await;
        }
    };
    if timeout(Duration::from_secs(2), taken_in).await.is_err() {
        warn!("enrolment records take long to read; hosts are chosen by what was known before");
    }
}
