//! How the gate is asked, and which failures of that pass by themselves.

use client::{
    CallError, Client,
    gate::{GateReply, GateRequest},
};
use http::Method;

/// Whether another try of a call may succeed. Asking again is safe: a place is the host's.
pub(super) fn passes(error: &CallError) -> bool {
    match error {
        CallError::Refused { status, .. } => status.is_server_error(),
        error => error.passes(),
    }
}

/// Asks the gate once.
pub(super) async fn ask(client: &Client, request: &GateRequest) -> Result<GateReply, CallError> {
    client.read(Method::POST, "/v1/gate", Some(request)).await
}
