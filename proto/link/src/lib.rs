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
mod close;
mod connection;
mod credentials;
mod crowd;
mod endpoint;
mod fault;
mod identity;
mod inner;
mod locals;
mod pinned;
mod registry;
mod reset;
mod settings;
mod signing;
mod stream;
mod verify;

pub use clock::{Bound, Untimely, utc};
pub use close::{CloseCode, CloseReason};
pub use connection::{Connection, Stats};
pub use credentials::{Credentials, CredentialsError};
pub use crowd::{Crowd, Place, Work, network};
pub use endpoint::{AcceptError, BindError, ConnectError, Endpoint, Incoming, RenewError};
pub use fault::Fault;
pub use identity::{IdentityError, Leaf, Validity, dated_back};
pub use locals::LocalNames;
pub use pinned::{ApiAddressError, HandshakeError, api_address, parse_pin, pinned};
pub use registry::Authorised;
pub use reset::ResetSecret;
pub use settings::{ALPN, Settings};
pub use signing::{LinkSigner, Signatures};
pub use stream::{ReceiveError, Receiver, SendError, Sender, StreamCode};
