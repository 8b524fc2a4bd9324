//! Authenticated QUIC connections that carry parbake's messages. Only this crate uses quinn.
//!
//! Three helpers for clients and servers over TLS or HTTP are here too. [`pinned()`] recognises the coordinator's API.
//! [`Crowd`] decides which connection gives way when a server is crowded. [`LocalNames`] says by which names a server
//! on loopback may be asked. And the programs, which both stand on this crate, have from here how a mutex is locked
//! ([`lock`]).
//!
//! Both ends of a connection show a certificate of the fleet's own authority. A host's identity is the single DNS name
//! in its leaf certificate ([`proto::HostId`]). The users of a connection decide what it carries: this crate gives them
//! streams for messages with a stated maximum ([`proto::codec::Framed`]) and for plain bytes.
//!
//! This crate deliberately doesn't issue certificates, which the coordinator's authority does. It doesn't decide which
//! hosts are authorised: the owner of the [`Endpoint`] tells it. It doesn't reconnect, queue or schedule anything, and
//! it keeps no metrics beyond [`Connection::stats`].

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
pub mod lock;
mod pinned;
mod registry;
mod reset;
mod route;
mod settings;
mod signing;
mod stream;
mod verify;

pub use clock::{Bound, Untimely, utc};
pub use close::{CloseCode, CloseReason};
pub use connection::{Connection, Stats};
pub use credentials::{Credentials, CredentialsError, certificate_pem};
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
