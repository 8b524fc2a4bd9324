//! Operators' requests about hosts: list, show, revoke, readmit, the bandwidth limits, and which old images would go.

use std::time::{Duration, SystemTime};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use http::StatusCode;
use proto::{HostId, retention::Rule};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{
    answer::{Answer, Failure, host_id, read},
    images::selection,
    state::{Api, ask, blocking, saved},
};
use crate::{
    driver::Ask,
    fleet::Reread,
    view::{BandwidthRequest, OldImagesRequest, RevokeRequest},
};

pub(super) async fn hosts(State(api): State<Api>) -> Response {
    let view = api.view.borrow().clone();
    let hosts: Vec<_> = view.hosts.values().map(AsRef::as_ref).collect();
    Json(hosts).into_response()
}

pub(super) async fn host(State(api): State<Api>, Path(name): Path<String>) -> Answer<Response> {
    let host = host_id(&name)?;
    let view = api.view.borrow().clone();
    match view.hosts.get(&host) {
        Some(host) => Ok(Json(host.as_ref()).into_response()),
        None => {
            let error = format!(
                "host {host} isn't part of the fleet; add it to the fleet file and enrol it"
            );
            Err(Failure::new(StatusCode::NOT_FOUND, error))
        }
    }
}

pub(super) async fn revoke(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Response> {
    let host = host_id(&name)?;
    let request: RevokeRequest = if body.is_empty() {
        RevokeRequest::default()
    } else {
        read(&body)?
    };
    let named = api.membership.borrow().fleet.hosts.contains_key(&host);
    let (enrolment, id) = (api.enrolment.clone(), host.clone());
    let known = blocking(move || enrolment.knows(&id)).await?;
    if !named && !request.force && !known.map_err(Failure::internal)? {
        let error = format!(
            "host {host} isn't in the fleet file and never enrolled; see `parbake hosts`. `\"force\": true` revokes it all the same"
        );
        return Err(Failure::new(StatusCode::NOT_FOUND, error));
    }
    let (enrolment, id) = (api.enrolment.clone(), host.clone());
    let revoked = blocking(move || enrolment.revoke(&id, &request.reason, SystemTime::now()));
    revoked.await?.map_err(Failure::internal)?;
    saved(&api).await?;
    warn!(%host, "host is revoked");
    reread(&api, &host, true).await;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn readmit(State(api): State<Api>, Path(name): Path<String>) -> Answer<Response> {
    let host = host_id(&name)?;
    let (enrolment, id) = (api.enrolment.clone(), host.clone());
    let readmitted = blocking(move || enrolment.readmit(&id, SystemTime::now()));
    if !readmitted.await?.map_err(Failure::internal)? {
        return Err(Failure::new(
            StatusCode::NOT_FOUND,
            format!("host {host} isn't revoked"),
        ));
    }
    saved(&api).await?;
    warn!(%host, "host is readmitted");
    reread(&api, &host, false).await;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Has the records read again now, and waits until the driver has acted on them, at most 5 s.
async fn reread(api: &Api, host: &HostId, revoked: bool) {
    // The queue is full: another reading is due anyway.
    _ = api.reload.try_send(Reread::Records);
    let mut view = api.view.clone();
    let seen =
        view.wait_for(|view| view.hosts.get(host).is_some_and(|host| host.revoked) == revoked);
    if !matches!(timeout(Duration::from_secs(5), seen).await, Ok(Ok(_))) {
        debug!("changed enrolment records aren't in force yet");
    }
}

pub(super) async fn bandwidth(State(api): State<Api>, body: Bytes) -> Answer<Response> {
    let limits: BandwidthRequest = read(&body)?;
    let kept = ask(&api, |reply| Ask::Bandwidth { limits, reply });
    kept.await?.map_err(Failure::internal)?;
    Ok(Json(limits).into_response())
}

/// Says which old images would go. Removes nothing.
pub(super) async fn old_images(State(api): State<Api>, body: Bytes) -> Answer<Response> {
    let request: OldImagesRequest = match body.is_empty() {
        true => OldImagesRequest::default(),
        false => read(&body)?,
    };
    let hosts = selection(request.hosts)?;
    let rule = request.rule.unwrap_or_default();
    let rule = Rule::new(rule.keep_images, rule.keep_days);
    let rule = rule.map_err(|error| Failure::new(StatusCode::BAD_REQUEST, error))?;
    let answer = ask(&api, |reply| Ask::OldImages { hosts, rule, reply });
    Ok(Json(answer.await??).into_response())
}
