//! Errors of starting and running a coordinator.

use std::{io, net::SocketAddr};

use crate::{
    authority::{IssueError, OpenAuthorityError},
    enrolment::RecordError,
    resolve::RegistriesError,
    state_dir::StateDirError,
    wants::StateError,
};

/// Why the coordinator doesn't start, or why it ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state directory can't be used.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The authority can't be used.
    #[error(transparent)]
    Authority(#[from] OpenAuthorityError),
    /// Enrolment records can't be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// State files can't be used.
    #[error(transparent)]
    Kept(#[from] StateError),
    /// The coordinator's own certificate can't be made.
    #[error("making the coordinator's own certificate: {0}")]
    Certificate(#[from] IssueError),
    /// The coordinator's TLS can't be set up.
    #[error("setting up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The coordinator's own credentials can't be used for the link.
    #[error("setting up the link: {0}")]
    Credentials(#[from] wire::CredentialsError),
    /// An address can't be had.
    #[error("listening for hosts on UDP: {0}")]
    Link(#[from] wire::BindError),
    /// An address can't be had.
    #[error("listening on TCP {address} ({purpose}): {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the address is for.
        purpose: &'static str,
        /// The cause.
        error: io::Error,
    },
    /// The registry client can't be made.
    #[error(transparent)]
    Registries(#[from] RegistriesError),
    /// A part of the program ended without being asked to. This is a defect.
    #[error("{0} ended unasked; this is a defect: please report it with the log")]
    Ended(&'static str),
}
