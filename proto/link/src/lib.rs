//! An authenticated QUIC connection that speaks parbake's messages; the only user of quinn. Beside it, how the coordinator's
//! API is recognised over TLS, and what guards the front doors of all servers: who gives way when one is crowded ([`Crowd`]),
//! and by which names a server on loopback is asked ([`LocalNames`]).
//!
//! Both ends show a certificate of the fleet's own authority; a host's identity is the single DNS name in its leaf
//! certificate ([`proto::HostId`]). What a connection carries is up to its users: this crate gives them streams on which
//! they send and receive messages with a stated maximum ([`proto::codec::Framed`]) and plain bytes.
//!
//! What it deliberately doesn't do: issue certificates (the coordinator's authority does), decide who is authorised (the
//! owner of the [`Endpoint`] tells it), reconnect, queue or schedule anything, and keep metrics beyond
//! [`Connection::stats`].

mod buffer;
mod clock;
mod connection;
mod credentials;
mod crowd;
mod endpoint;
mod fault;
mod identity;
mod locals;
mod pinned;
mod reset;
mod settings;
mod signing;
mod stream;
mod verify;

pub use clock::{Bound, Untimely, utc};
pub use connection::{CloseCode, CloseReason, Connection, Stats};
pub use credentials::{Credentials, CredentialsError};
pub use crowd::{Crowd, Place, Work, network};
pub use endpoint::{
    AcceptError, Authorised, BindError, ConnectError, Endpoint, Incoming, RenewError,
};
pub use fault::Fault;
pub use identity::{IdentityError, Leaf, Validity, dated_back};
pub use locals::LocalNames;
pub use pinned::{ApiAddressError, HandshakeError, api_address, parse_pin, pinned};
pub use reset::ResetSecret;
pub use settings::Settings;
pub use signing::{LinkSigner, Signatures};
pub use stream::{ReceiveError, Receiver, SendError, Sender, StreamCode};

/// The application protocol that both ends must offer (RFC 7301), with its major version.
///
/// A change that version n + 1 can't hide from version n (an unknown message field is ignored) needs a new name.
pub const ALPN: &[u8] = b"parbake/1";
