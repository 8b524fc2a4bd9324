//! Answers to requests that fail: a status and a sentence. Each error of the program has one status.

use axum::{
    Json,
    body::Bytes,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use proto::HostId;
use serde::de::DeserializeOwned;

use crate::{
    driver::{CancelError, OldImagesError, PlaceError, StageError},
    resolve::ResolveError,
    view::Problem,
};

/// The answer when the server can't serve now, and the client may ask again at once: a leader is being chosen, or the
/// coordinator starts or stops.
pub(crate) fn unavailable(error: impl ToString) -> Response {
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, error).into_response()
}

/// A failed request: its status, and the sentence for the [`Problem`].
#[derive(Debug)]
pub(super) struct Failure(StatusCode, String);

impl Failure {
    pub(super) fn new(status: StatusCode, error: impl ToString) -> Self {
        Self(status, error.to_string())
    }

    pub(super) fn internal(error: impl ToString) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error)
    }

    pub(super) fn stopping() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "coordinator is stopping; ask again in a moment",
        )
    }

    /// What went wrong, for people.
    pub(super) fn error(&self) -> &str {
        &self.1
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.0, Json(Problem { error: self.1 })).into_response();
        if self.0 == StatusCode::SERVICE_UNAVAILABLE {
            let second = http::HeaderValue::from_static("1");
            response.headers_mut().insert(header::RETRY_AFTER, second);
        }
        response
    }
}

impl From<ResolveError> for Failure {
    fn from(error: ResolveError) -> Self {
        let status = match &error {
            ResolveError::Reference { .. } => StatusCode::BAD_REQUEST,
            ResolveError::NotFound { .. } => StatusCode::NOT_FOUND,
            ResolveError::Image { .. } | ResolveError::NoManifest { .. } => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            ResolveError::Password { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            ResolveError::Registry { .. } => StatusCode::BAD_GATEWAY,
            ResolveError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        };
        Self::new(status, error)
    }
}

impl From<StageError> for Failure {
    fn from(error: StageError) -> Self {
        let status = match &error {
            StageError::UnknownHost(_) => StatusCode::NOT_FOUND,
            StageError::Revoked { .. } => StatusCode::CONFLICT,
            StageError::NotKept(_) => StatusCode::INTERNAL_SERVER_ERROR,
            StageError::NoHosts
            | StageError::TooManyImages
            | StageError::TooManyReferences
            | StageError::TooManyNames
            | StageError::NowhereFits { .. } => StatusCode::CONFLICT,
        };
        Self::new(status, error)
    }
}

impl From<CancelError> for Failure {
    fn from(error: CancelError) -> Self {
        let status = match &error {
            CancelError::Unwanted { .. } => StatusCode::NOT_FOUND,
            CancelError::ByCluster(_) => StatusCode::CONFLICT,
            CancelError::NotKept(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error)
    }
}

impl From<PlaceError> for Failure {
    fn from(error: PlaceError) -> Self {
        let status = match &error {
            PlaceError::NoCap(_) | PlaceError::TooManyGroups | PlaceError::Numbered(_) => {
                StatusCode::CONFLICT
            }
            PlaceError::NotKept(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error)
    }
}

impl From<OldImagesError> for Failure {
    fn from(error: OldImagesError) -> Self {
        match error {
            OldImagesError::Hosts(error) => error.into(),
            OldImagesError::Busy => Self::new(StatusCode::TOO_MANY_REQUESTS, error),
        }
    }
}

pub(super) type Answer<T> = Result<T, Failure>;

/// Reads a JSON body. The content type isn't checked, because all bodies are JSON.
pub(super) fn read<T: DeserializeOwned>(body: &Bytes) -> Answer<T> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("request body: {error}")))
}

/// Parses the name of a host from a path or a body.
pub(super) fn host_id(name: &str) -> Answer<HostId> {
    name.parse().map_err(|error| {
        let name = crate::progress::clean(name);
        Failure::new(StatusCode::BAD_REQUEST, format!("host `{name}`: {error}"))
    })
}
