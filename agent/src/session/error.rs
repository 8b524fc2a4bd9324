//! The errors of the session with the coordinator.

use std::io;

use proto::figure::Span;
use wire::{CloseReason, ConnectError, Fault, ReceiveError, RenewError, SendError};

use crate::identity::IdentityError;

/// Why there is no session with the coordinator, or why it ended. The agent tries again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// The coordinator's name can't be looked up.
    #[error("looking up the coordinator's address {name}")]
    Lookup {
        name: String,
        #[source]
        error: io::Error,
    },
    /// The socket can't reach any of the coordinator's addresses.
    #[error(
        "coordinator address {0} has IPv6 addresses only, and this agent listens on IPv4; \
         set listen = \"[::]:7471\", which takes both"
    )]
    Ipv6Only(String),
    /// The endpoint is gone.
    #[error("the UDP socket for other hosts failed: {0}")]
    Socket(io::Error),
    /// The coordinator refused this host. It would say the same at its other addresses.
    #[error(transparent)]
    Refused(ConnectError),
    /// No address of the coordinator answers.
    #[error("{0}")]
    Unreached(String),
    /// The certificate has expired, and isn't renewed.
    #[error("this host's certificate has expired and isn't renewed: {0}")]
    Expired(String),
    /// This host's key or certificates are unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A renewed certificate can't be used.
    #[error(transparent)]
    Renewed(#[from] RenewError),
    /// The coordinator doesn't renew the certificate.
    #[error("the coordinator refused to renew the certificate: {0}")]
    NotRenewed(String),
    /// The coordinator doesn't answer a request for a new certificate.
    #[error("the coordinator doesn't answer the request for a new certificate")]
    NoAnswer,
    /// A report can't be sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// A message from the coordinator isn't an order.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The connection ended.
    #[error(transparent)]
    Closed(#[from] CloseReason),
    /// The connection is up, and nothing comes.
    #[error("nothing came from the coordinator for {0}")]
    Silent(Span),
    /// The driver is gone: the agent ends.
    #[error("the driver takes no more orders")]
    DriverGone,
}

impl SessionError {
    /// Whether the coordinator takes this host's certificate for expired. The coordinator's clock decides.
    pub(super) const fn says_expired(&self) -> bool {
        matches!(
            self,
            Self::Refused(ConnectError::Refused {
                fault: Fault::Expired(_),
                ..
            })
        )
    }
}

#[cfg(test)]
mod tests {
    use proto::HostId;

    use super::*;

    #[test]
    fn only_a_refusal_for_its_age_asks_for_a_late_renewal() {
        let host: HostId = "coordinator".parse().unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        let refused = |fault| {
            SessionError::Refused(ConnectError::Refused {
                host: host.clone(),
                address,
                fault,
                said: String::new(),
            })
        };
        assert!(refused(Fault::Expired(None)).says_expired());
        assert!(!refused(Fault::Unauthorised).says_expired());
        // the coordinator's certificate has expired, so a renewal of ours can't help
        let theirs = ConnectError::PeerUntrusted {
            host,
            address,
            fault: Fault::Expired(None),
        };
        assert!(!SessionError::Refused(theirs).says_expired());
    }
}
