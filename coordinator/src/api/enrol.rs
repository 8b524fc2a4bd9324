//! How hosts get certificates. Operators make tokens, and a host uses a token up to enrol. A host whose certificate has
//! expired renews it by proof of that certificate's key.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};

use axum::{
    Json,
    body::Bytes,
    extract::{Extension, State},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use proto::HostId;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject};
use tokio::time::timeout;
use tracing::{debug, info};
use wire::certificate_pem;

use super::{
    answer::{Answer, Failure, host_id, read},
    state::{Api, blocking, saved},
};
use crate::{
    enrolment::{MintError, RedeemError, unix},
    fleet::Reread,
    metrics::Metrics,
    renewal,
    secret::Secret,
    serve::Remote,
    view::{EnrolReply, EnrolRequest, RenewRequest, TokenReply, TokenRequest},
};

pub(super) async fn token(State(api): State<Api>, body: Bytes) -> Answer<Response> {
    let request: TokenRequest = read(&body)?;
    let host = host_id(&request.host)?;
    if !api.membership.borrow().fleet.admits(&host) {
        let error = format!("host {host} isn't in the fleet file; add it, or set `open = true`");
        return Err(Failure::new(StatusCode::CONFLICT, error));
    }
    let lifetime = request
        .lifetime_seconds
        .map_or(api.token_lifetime, Duration::from_secs);
    if lifetime.is_zero() || lifetime > Duration::from_hours(30 * 24) {
        let error = "`lifetime_seconds` has to be from 1 to 2592000";
        return Err(Failure::new(StatusCode::BAD_REQUEST, error));
    }
    let (enrolment, id) = (api.enrolment.clone(), host.clone());
    let now = SystemTime::now();
    let minted = blocking(move || enrolment.mint(&id, lifetime, now)).await?;
    let token = minted.map_err(|error| {
        let status = match &error {
            MintError::Record(_) => StatusCode::INTERNAL_SERVER_ERROR,
            MintError::Reserved | MintError::Revoked(_) | MintError::TooMany => {
                StatusCode::CONFLICT
            }
        };
        Failure::new(status, error)
    })?;
    saved(&api).await?;
    Metrics::count(&api.metrics.tokens, "made");
    info!(%host, lifetime_s = lifetime.as_secs(), "enrolment token made");
    let made = TokenReply {
        host: host.to_string(),
        token: token.expose().to_owned(),
        expires_at: unix(now + lifetime),
        ca_pin: api.authority.pin().hex().to_string(),
    };
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

fn too_many() -> Failure {
    let error = "too many hosts want certificates at this moment; try again in a second";
    Failure::new(StatusCode::TOO_MANY_REQUESTS, error)
}

/// The address from which a request comes. Where the server doesn't tell it, all requests have one address.
fn address(remote: Option<Extension<Remote>>) -> IpAddr {
    remote.map_or(Ipv4Addr::UNSPECIFIED.into(), |remote| remote.0.0)
}

pub(super) async fn enrol(
    State(api): State<Api>,
    remote: Option<Extension<Remote>>,
    body: Bytes,
) -> Answer<Response> {
    let request: EnrolRequest = read(&body)?;
    let csr = der::<CertificateSigningRequestDer<'static>>("csr", &request.csr)?;
    let token = Secret::from_text(&request.token);
    let work = api.clone();
    let place = api.tries.begin().await.ok_or_else(too_many)?;
    let answer = match blocking(move || enrol_now(&work, &token, &csr)).await? {
        // The certificate isn't sent before the next leader would find that the token is used up.
        Ok(done) => saved(&api).await.map(|()| done),
        Err(failure) => Err(failure),
    };
    drop(place);
    match answer {
        Ok((reply, from)) => {
            Metrics::count(&api.metrics.tokens, "used");
            Metrics::count(&api.metrics.certificates, "issued");
            info!(host = reply.host, "host enrolled");
            // Wait until the enrolment is in force. Then an open fleet knows the host, and nobody can use an earlier
            // key of the host, before the certificate arrives.
            _ = api.reload.try_send(Reread::Records);
            let mut members = api.membership.clone();
            let known = members.wait_for(|members| {
                let since = members.enrolled.iter();
                let mut since = since.filter(|(host, _)| host.as_str() == reply.host);
                since.any(|(_, at)| *at >= from)
            });
            if !matches!(timeout(Duration::from_secs(5), known).await, Ok(Ok(_))) {
                debug!("the new enrolment isn't in force yet");
            }
            Ok(Json(reply).into_response())
        }
        Err(failure) => {
            Metrics::count(&api.metrics.tokens, "refused");
            let from = address(remote);
            api.tries.refused(from, "enrolment", failure.error()).await;
            Err(failure)
        }
    }
}

/// The answer to a host that gets this certificate.
fn reply(
    api: &Api,
    host: &HostId,
    chain: &[CertificateDer<'static>],
    now: SystemTime,
) -> EnrolReply {
    EnrolReply {
        host: host.to_string(),
        chain: chain
            .iter()
            .map(|certificate| certificate_pem(certificate))
            .collect(),
        authority: api.authority.pem().to_owned(),
        address: api.quic.clone(),
        expires_at: unix(now + api.certificate_lifetime),
    }
}

/// Signs the request twice. The first certificate only tests the request, so that a bad request doesn't cost the token.
/// Then the token is used up, and the certificate that is sent is signed after the enrolment. Also returns the Unix
/// second from which the host counts as enrolled.
fn enrol_now(api: &Api, token: &Secret, csr: &[u8]) -> Answer<(EnrolReply, u64)> {
    let denied = |error: RedeemError| {
        let status = match &error {
            RedeemError::Record(_) => StatusCode::INTERNAL_SERVER_ERROR,
            RedeemError::Unknown | RedeemError::Expired | RedeemError::Revoked(_) => {
                StatusCode::FORBIDDEN
            }
        };
        Failure::new(status, error)
    };
    let now = SystemTime::now();
    let host = api.enrolment.peek(token, now).map_err(denied)?;
    if !api.membership.borrow().admits(&host) {
        let error =
            format!("host {host} isn't part of the fleet any more; add it to the fleet file");
        return Err(Failure::new(StatusCode::FORBIDDEN, error));
    }
    let lifetime = api.certificate_lifetime;
    let bad = |error| Failure::new(StatusCode::BAD_REQUEST, error);
    drop(api.authority.issue(&host, csr, lifetime).map_err(bad)?);
    let (redeemed, from) = api.enrolment.redeem(token, now).map_err(denied)?;
    debug_assert_eq!(redeemed, host, "a token's host doesn't change");
    let chain = api.authority.issue_from(&host, csr, from, lifetime);
    Ok((reply(api, &host, &chain.map_err(bad)?, now), unix(from)))
}

/// Renews the certificate of a host whose certificate expired while the host or the coordinator was away. The expired
/// certificate and its key prove which host it is.
pub(super) async fn renew(
    State(api): State<Api>,
    remote: Option<Extension<Remote>>,
    body: Bytes,
) -> Answer<Response> {
    let request: RenewRequest = read(&body)?;
    let certificate = der::<CertificateDer<'static>>("certificate", &request.certificate)?;
    let csr = der::<CertificateSigningRequestDer<'static>>("csr", &request.csr)?;
    let work = api.clone();
    let place = api.tries.begin().await.ok_or_else(too_many)?;
    let renewed = blocking(move || renew_now(&work, &certificate.into(), &csr)).await?;
    drop(place);
    match renewed {
        Ok(reply) => {
            Metrics::count(&api.metrics.certificates, "renewed");
            info!(host = reply.host, "expired certificate renewed");
            Ok(Json(reply).into_response())
        }
        Err(failure) => {
            Metrics::count(&api.metrics.certificates, "refused");
            let from = address(remote);
            api.tries.refused(from, "renewal", failure.error()).await;
            Err(failure)
        }
    }
}

fn renew_now(api: &Api, certificate: &CertificateDer<'_>, csr: &[u8]) -> Answer<EnrolReply> {
    let denied = |error: &dyn std::fmt::Display| Failure::new(StatusCode::FORBIDDEN, error);
    let now = SystemTime::now();
    let before = api
        .authority
        .recognise(certificate)
        .map_err(|error| denied(&error))?;
    let host = &before.host;
    let revoked = api.enrolment.is_revoked(host);
    let members = api.membership.borrow().clone();
    if revoked.map_err(Failure::internal)? || !members.admits(host) {
        return Err(denied(&members.refusal(host)));
    }
    let chain = api
        .authority
        .reissue(&before, csr, api.certificate_lifetime)
        .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, error))?;
    // read after signing; `Enrolment::enrol` explains why
    let enrolled_at = api.enrolment.enrolled_at(host);
    let enrolled_at = enrolled_at.map_err(Failure::internal)?;
    renewal::permit(host, before.validity, enrolled_at, api.renewal_grace, now)
        .map_err(|error| denied(&error))?;
    Ok(reply(api, host, &chain, now))
}

/// The DER of a field that holds PEM of this kind, or DER as base64.
fn der<T: PemObject + AsRef<[u8]>>(field: &str, text: &str) -> Answer<Vec<u8>> {
    let bad =
        |reason: String| Failure::new(StatusCode::BAD_REQUEST, format!("`{field}`: {reason}"));
    if text.contains("-----BEGIN") {
        T::from_pem_slice(text.as_bytes())
            .map(|der| der.as_ref().to_vec())
            .map_err(|error| bad(error.to_string()))
    } else {
        STANDARD
            .decode(text.trim())
            .map_err(|error| bad(format!("neither PEM nor DER as base64: {error}")))
    }
}
