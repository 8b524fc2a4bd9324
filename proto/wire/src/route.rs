//! Whether this host's system sends anything to an address.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

/// Why the system sends nothing to this address; `None` if it sends. One empty datagram is sent to find out.
///
/// QUIC takes a datagram that can't be sent for a lost one. So a program that macOS keeps from the local network would
/// see handshakes time out, as if the peers were silent. There the system refuses each datagram with `EHOSTUNREACH`
/// (Apple's technical note TN3179).
pub(crate) fn missing(address: SocketAddr) -> Option<String> {
    let error = send(address).err()?;
    is_refusal(error.kind()).then(|| error.to_string())
}

fn send(address: SocketAddr) -> io::Result<()> {
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(address)?;
    socket.send(&[]).map(drop)
}

/// Whether the system says so of a way that it hasn't or doesn't give. Other errors say nothing of the way: no file
/// descriptor is left, a buffer is full.
const fn is_refusal(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_that_is_there_is_not_missing_whether_anybody_listens_or_not() {
        let listens = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = listens.local_addr().unwrap();
        assert_eq!(missing(address), None);
        assert_eq!(listens.recv(&mut [0; 8]).unwrap(), 0, "one empty datagram");
        drop(listens);
        assert_eq!(missing(address), None);
    }

    #[test]
    fn only_a_refusal_of_the_way_counts() {
        for kind in [
            io::ErrorKind::HostUnreachable,
            io::ErrorKind::NetworkUnreachable,
        ] {
            assert!(is_refusal(kind), "{kind:?}");
        }
        for kind in [
            io::ErrorKind::ConnectionRefused,
            io::ErrorKind::WouldBlock,
            io::ErrorKind::PermissionDenied,
            io::ErrorKind::TimedOut,
        ] {
            assert!(!is_refusal(kind), "{kind:?}");
        }
        for refusal in [
            rustix::io::Errno::HOSTUNREACH,
            rustix::io::Errno::NETUNREACH,
        ] {
            assert!(is_refusal(io::Error::from(refusal).kind()), "{refusal}");
        }
    }
}
