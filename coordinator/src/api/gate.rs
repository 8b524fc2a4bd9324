//! The gate without a cluster: which hosts hold an image, and places under the cap of a group.

use std::time::Duration;

use axum::{
    Json,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
};
use client::gate::{GateDone, GateRequest, GateVerdict, GateView, MAX_GATE_HOSTS};
use http::StatusCode;
use proto::{
    Digest, Reason,
    figure::{Bytes as Figure, percent},
    reference::MAX_REFERENCE_BYTES,
};
use rollout::places::{Back, GroupName, MAX_LASTS, PlaceNumber};

use super::{
    answer::{Answer, Failure, host_id, read},
    state::{Api, ask, saved},
};
use crate::{
    driver::{Ask, DoneAsk, GateAsk, GroupAsk, PlaceAsk, View},
    view::{HostState, ImageState},
};

/// How long a place lasts where the caller doesn't say.
const LASTS: Duration = Duration::from_mins(30);

pub(super) async fn open(State(api): State<Api>, body: Bytes) -> Answer<Response> {
    let asked = Box::new(parse(read(&body)?)?);
    let grouped = asked.group.is_some();
    let image = asked.image.clone();
    let reply = ask(&api, |reply| Ask::Places(PlaceAsk::Open(asked, reply)));
    let mut reply = reply.await??;
    let opened = |host: &GateView| host.verdict == GateVerdict::Open;
    if grouped && reply.hosts.iter().any(opened) {
        // the next leader has to know of the place before the caller does
        saved(&api).await?;
    }
    let view = api.view.borrow().clone();
    for host in &mut reply.hosts {
        explain(&view, &image, host);
    }
    Ok(Json(reply).into_response())
}

pub(super) async fn done(State(api): State<Api>, body: Bytes) -> Answer<Response> {
    let about = parse_done(&read(&body)?)?;
    let reply = ask(&api, |reply| Ask::Places(PlaceAsk::Done(about, reply)));
    let reply = reply.await??;
    saved(&api).await?;
    Ok(Json(reply).into_response())
}

pub(super) async fn list(State(api): State<Api>) -> Answer<Response> {
    let list = ask(&api, |reply| Ask::Places(PlaceAsk::List(reply)));
    Ok(Json(list.await?).into_response())
}

fn bad(error: impl ToString) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, error)
}

fn group(name: &str) -> Answer<GroupName> {
    name.parse().map_err(|error| {
        let name = crate::progress::clean(name);
        bad(format!("group `{name}`: {error}"))
    })
}

fn number(text: &str) -> Answer<PlaceNumber> {
    text.parse().map_err(|error| {
        let text = crate::progress::clean(text);
        bad(format!("`place` {text}: {error}"))
    })
}

fn parse_done(request: &GateDone) -> Answer<DoneAsk> {
    let place = request.place.as_deref().map(number).transpose()?;
    Ok(DoneAsk {
        host: host_id(&request.host)?,
        group: request.group.as_deref().map(group).transpose()?,
        back: match (place, request.any) {
            (Some(_), true) => return Err(bad("`place` and `any` can't both be meant")),
            (Some(number), false) => Back::Numbered(number),
            (None, true) => Back::Any,
            (None, false) => Back::Unnumbered,
        },
    })
}

fn parse(request: GateRequest) -> Answer<GateAsk> {
    if request.image.len() > MAX_REFERENCE_BYTES {
        return Err(bad(format!(
            "`image` is longer than {MAX_REFERENCE_BYTES} bytes"
        )));
    }
    if request.hosts.is_empty() || request.hosts.len() > MAX_GATE_HOSTS {
        return Err(bad(format!(
            "`hosts` has to name 1 to {MAX_GATE_HOSTS} hosts"
        )));
    }
    let digest = request.digest.as_deref().map(str::parse::<Digest>);
    let digest = digest
        .transpose()
        .map_err(|error| bad(format!("`digest`: {error}")))?;
    let hosts = request.hosts.iter().map(|host| host_id(host));
    let group = match request.group.as_deref() {
        Some(name) => Some(GroupAsk {
            name: group(name)?,
            at_most: request.at_most,
            lasts: match request.seconds.map(Duration::from_secs) {
                None => LASTS,
                Some(lasts) if !lasts.is_zero() && lasts <= MAX_LASTS => lasts,
                Some(_) => {
                    let most = MAX_LASTS.as_secs();
                    return Err(bad(format!("`seconds` has to be 1 to {most}")));
                }
            },
            number: request.place.as_deref().map(number).transpose()?,
        }),
        None if request.at_most.is_some()
            || request.seconds.is_some()
            || request.place.is_some() =>
        {
            return Err(bad(
                "`at_most`, `seconds` and `place` are about a `group`, and none is named",
            ));
        }
        None => None,
    };
    Ok(GateAsk {
        hosts: hosts.collect::<Answer<_>>()?,
        image: request.image,
        digest,
        group,
    })
}

/// Adds what the fleet knows of an image that the host doesn't hold yet.
fn explain(view: &View, image: &str, host: &mut GateView) {
    let digest = host
        .digest
        .as_deref()
        .and_then(|digest| digest.parse::<Digest>().ok());
    let (Some(digest), Some(Reason::ImageMissing)) = (digest, host.reason.known()) else {
        return;
    };
    let Some(whole) = view.images.get(&digest) else {
        return;
    };
    if whole.state == ImageState::Failed {
        host.image_failed.clone_from(&whole.reason);
    }
    let Some(on) = whole.hosts.iter().find(|on| on.host == host.host) else {
        return;
    };
    host.failed_seconds = on.failed_seconds;
    if on.state == HostState::Present {
        return;
    }
    if let Some(reason) = &on.reason {
        host.reason = reason.clone();
    }
    let mut message = format!(
        "it doesn't hold {image} yet: {}, {}% of {}",
        on.state.as_str(),
        percent(on.held_bytes, on.total_bytes),
        Figure(on.total_bytes)
    );
    for words in [&on.message, &whole.message] {
        if !words.is_empty() {
            message = format!("{message}; {words}");
        }
    }
    host.message = message;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> GateRequest {
        GateRequest {
            image: "r.test/image:1".into(),
            hosts: vec!["mini-1".into()],
            group: Some("ci".into()),
            ..GateRequest::default()
        }
    }

    #[test]
    fn a_request_is_bounded_and_says_what_is_wrong() {
        let asked = parse(request()).unwrap();
        assert_eq!(asked.group.unwrap().lasts, LASTS);
        let most = MAX_LASTS.as_secs();
        let good = GateRequest {
            seconds: Some(most),
            hosts: vec!["mini-1".into(); MAX_GATE_HOSTS],
            ..request()
        };
        assert_eq!(parse(good).unwrap().group.unwrap().lasts, MAX_LASTS);
        type Change = fn(&mut GateRequest);
        let changes: [(&str, Change); 10] = [
            ("1 to 512 hosts", |of| of.hosts.clear()),
            ("1 to 512 hosts", |of| {
                of.hosts = vec!["a".into(); MAX_GATE_HOSTS + 1]
            }),
            ("not a host id", |of| of.hosts = vec!["Mini 1".into()]),
            ("longer than", |of| {
                of.image = "x".repeat(MAX_REFERENCE_BYTES + 1)
            }),
            ("`digest`", |of| of.digest = Some("sha256:1".into())),
            ("not the name of a group", |of| {
                of.group = Some("../a".into())
            }),
            ("`seconds` has to be", |of| {
                of.seconds = Some(MAX_LASTS.as_secs() + 1)
            }),
            ("none is named", |of| {
                (of.group, of.seconds) = (None, Some(1))
            }),
            ("none is named", |of| {
                (of.group, of.place) = (None, Some("0".repeat(16)))
            }),
            ("not the number of a place", |of| {
                of.place = Some("7".into())
            }),
        ];
        for (words, change) in changes {
            let mut request = request();
            change(&mut request);
            let error = parse(request).unwrap_err();
            assert!(error.error().contains(words), "{}", error.error());
        }
    }

    #[test]
    fn who_gives_a_place_back_says_which_one() {
        let done = |place: Option<&str>, any| {
            let place = place.map(str::to_owned);
            let request = GateDone {
                host: "mini-1".into(),
                group: None,
                place,
                any,
            };
            parse_done(&request).map(|of| of.back)
        };
        let number = "00000000000000ab";
        let numbered = Back::Numbered(number.parse().unwrap());
        assert_eq!(done(Some(number), false).unwrap(), numbered);
        assert_eq!(done(None, true).unwrap(), Back::Any);
        assert_eq!(done(None, false).unwrap(), Back::Unnumbered);
        assert!(done(Some(number), true).is_err() && done(Some("7"), false).is_err());
    }
}
