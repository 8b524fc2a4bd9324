//! The buffer for datagrams that arrived and weren't read yet.
//!
//! All connections of an endpoint use one socket. Datagrams that arrive while its buffer is full are lost, and a
//! handshake that lost a packet waits for seconds. Systems start with about 200 KB, which the acknowledgements of a few
//! hundred hosts fill.

use std::net::UdpSocket;

use rustix::net::sockopt;
use tracing::{debug, warn};

/// Linux reports twice the size that it gives. Half of that is for its own bookkeeping (socket(7), `SO_RCVBUF`).
const REPORTED: usize = if cfg!(target_os = "linux") { 2 } else { 1 };

/// Asks for a receive buffer of this many bytes. Logs a warning where the system gives less.
pub(crate) fn widen(socket: &UdpSocket, wanted: usize) {
    let granted = || sockopt::socket_recv_buffer_size(socket).unwrap_or(0) / REPORTED;
    if granted() >= wanted {
        return;
    }
    // Linux reduces a size over its limit; macOS refuses it
    let mut asked = wanted;
    while sockopt::set_socket_recv_buffer_size(socket, asked).is_err() && asked > granted() {
        asked /= 2;
    }
    let bytes = granted();
    if bytes < wanted {
        warn!(
            bytes,
            wanted,
            "the system gives this program a smaller UDP receive buffer than it asked for: bursts may lose packets; \
             raise net.core.rmem_max (Linux) or kern.ipc.maxsockbuf (macOS)"
        );
    } else {
        debug!(bytes, "UDP receive buffer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_gets_what_the_system_allows() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let before = sockopt::socket_recv_buffer_size(&socket).unwrap();
        // more than any system gives
        widen(&socket, usize::try_from(u32::MAX >> 1).unwrap());
        let most = sockopt::socket_recv_buffer_size(&socket).unwrap();
        assert!(most >= before, "{before} {most}");
        // a wish that is met already changes nothing
        widen(&socket, 1);
        assert_eq!(sockopt::socket_recv_buffer_size(&socket).unwrap(), most);
    }
}
