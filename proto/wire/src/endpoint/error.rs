//! Why an endpoint can't be opened or renewed, and why a connection wasn't made.

use std::{io, net::SocketAddr, time::Duration};

use proto::HostId;

use crate::{close::CloseReason, fault::Fault};

/// Why an endpoint can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address isn't available. Remedy: choose a free port, or an address of this machine.
    #[error("can't bind UDP {address}: {cause}")]
    Socket {
        /// The address to bind to.
        address: SocketAddr,
        /// The system's error.
        cause: io::Error,
    },
    /// The credentials can't be used for TLS.
    #[error("can't use the credentials: {0}")]
    Credentials(#[from] RenewError),
}

/// Why credentials can't be used for TLS.
#[derive(Debug, thiserror::Error)]
#[error("authorities can't verify anybody: {0}")]
pub struct RenewError(pub(super) String);

/// Why a connection couldn't be made, for the side that asked for it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// This side doesn't accept the peer.
    #[error("refused {host} at {address}: {}", fault.of_peer())]
    PeerUntrusted {
        /// The host that was meant.
        host: HostId,
        /// The address.
        address: SocketAddr,
        /// What is wrong with the host that answered.
        fault: Fault,
    },
    /// The peer doesn't accept this side.
    #[error("{host} at {address} refused us: {}", refusal(fault, said))]
    Refused {
        /// The host that was meant.
        host: HostId,
        /// The address.
        address: SocketAddr,
        /// What the peer has against this side.
        fault: Fault,
        /// The peer's own words; may be empty.
        said: String,
    },
    /// No answer came in time. Remedy: check that the host runs, its address and port, and firewalls (UDP).
    #[error("no answer from {host} at {address} within {}; check that it runs and that UDP reaches it", seconds(*after))]
    TimedOut {
        /// The host that was meant.
        host: HostId,
        /// The address.
        address: SocketAddr,
        /// How long this side waited.
        after: Duration,
    },
    /// This host's system sends nothing to the address. Remedy: look at the host's routes. On a Mac, look whether macOS
    /// keeps the program from the local network.
    #[error("nothing can be sent to {host} at {address}: {cause}")]
    NoRoute {
        /// The host that was meant.
        host: HostId,
        /// The address.
        address: SocketAddr,
        /// The system's words.
        cause: String,
    },
    /// The connection broke during the handshake for another reason. Remedy: try again.
    #[error("connection to {host} at {address} broke during the handshake: {reason}")]
    Broken {
        /// The host that was meant.
        host: HostId,
        /// The address.
        address: SocketAddr,
        /// How the connection broke.
        reason: CloseReason,
    },
    /// The address can't be reached from this socket: port 0, or IPv6 from an IPv4 socket.
    #[error("can't reach {host} at {address} from this socket: {cause}")]
    Address {
        /// The host that was meant.
        host: HostId,
        /// The address.
        address: SocketAddr,
        /// Why the address can't be reached.
        cause: String,
    },
    /// The endpoint has been closed, or has as many connections as it allows.
    #[error("can't connect to {host}: the endpoint {cause}")]
    Endpoint {
        /// The host that was meant.
        host: HostId,
        /// What is wrong with the endpoint.
        cause: &'static str,
    },
}

/// Why a connection couldn't be made, for the side that was asked for it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AcceptError {
    /// This side doesn't accept the peer.
    #[error("refused {} at {address}: {}", name(host.as_ref()), fault.of_peer())]
    PeerUntrusted {
        /// The peer, if its certificate could be read.
        host: Option<HostId>,
        /// The address.
        address: SocketAddr,
        /// What is wrong with the peer.
        fault: Fault,
    },
    /// The peer doesn't accept this side.
    #[error("a host at {address} refused us: {}", refusal(fault, said))]
    Refused {
        /// The address.
        address: SocketAddr,
        /// What the peer has against this side.
        fault: Fault,
        /// The peer's own words; may be empty.
        said: String,
    },
    /// The handshake took too long. The peer went away, or delays on purpose.
    #[error("handshake with a host at {address} wasn't done within {}", seconds(*after))]
    TimedOut {
        /// The address.
        address: SocketAddr,
        /// How long this side waited.
        after: Duration,
    },
    /// The handshake was broken off in favour of another one. The limit of handshakes was reached, and this address had
    /// most of them, or this handshake had taken longest.
    #[error(
        "handshake with a host at {address} wasn't done yet when others needed its place; too many come from there at once"
    )]
    GaveWay {
        /// The address.
        address: SocketAddr,
    },
    /// The connection broke during the handshake for another reason.
    #[error("connection from {address} broke during the handshake: {reason}")]
    Broken {
        /// The address.
        address: SocketAddr,
        /// How the connection broke.
        reason: CloseReason,
    },
}

/// The text about what the other side has against this side. Only the other side knows why a host isn't authorised, so
/// its words take precedence there. Times that the text already has aren't repeated.
fn refusal(fault: &Fault, said: &str) -> String {
    match fault {
        Fault::Unauthorised if !said.is_empty() => said.to_owned(),
        Fault::Expired(Some(_)) => fault.of_us().to_string(),
        _ if said.is_empty() => fault.of_us().to_string(),
        _ => format!("{} (it says: {said})", fault.of_us()),
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn name(host: Option<&HostId>) -> String {
    host.map_or_else(|| "a host".to_owned(), ToString::to_string)
}
