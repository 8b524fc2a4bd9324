//! The numbers that shape an endpoint and its connections, each with its reason.

use std::{sync::Arc, time::Duration};

use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::reset::ResetSecret;

/// The application protocol that both ends must offer (RFC 7301), with its major version.
///
/// A change needs a new name if version n can't ignore it, as it ignores an unknown field of a message.
pub const ALPN: &[u8] = b"parbake/1";

/// The largest limit of MTU discovery that is safe with segmentation offload.
///
/// quinn hands the kernel batches of 10 segments, whatever the MTU. Above about 6,500 bytes, a batch is larger than 64
/// KiB and `sendmsg` fails with `EMSGSIZE`. quinn takes that for loss, and the MTU falls to 1,200 bytes for good.
/// Measured: 3.2 instead of 11.3 Gbit/s.
const MAX_MTU_WITH_OFFLOAD: u16 = 6_500;

/// The numbers of an endpoint and its connections. The endpoint clamps the MTU limit when it is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The time from the first packet to the peer's acceptance, with repeats. 10 s: a lossy path with a round trip of
    /// 100 ms needs less than 3.
    pub handshake_timeout: Duration,
    /// A connection on which nothing arrives for this long is dead. 15 s: three lost keep-alives, and short compared to
    /// the time that a fleet needs to act on a missing host.
    pub idle_timeout: Duration,
    /// The interval of keep-alives on a quiet connection. 5 s: 0.2 packets per second and peer.
    pub keep_alive: Duration,
    /// The most bytes that one stream may have in flight or unread. 8 MiB is 1 Gbit/s × 67 ms, or 10 Gbit/s × 6.7 ms.
    /// A larger window didn't help (measured).
    pub stream_window: u32,
    /// The most bytes that all streams of a connection may have in flight or unread. This limits the memory that one
    /// hostile peer can make a program use. 8 MiB: the users of a connection read as fast as they can, so only the path
    /// needs the window.
    pub connection_window: u32,
    /// The most bytes that are written to a connection and not yet acknowledged. 16 MiB, twice the peer's window, so
    /// that the next chunk is ready when an acknowledgement opens the window.
    pub send_window: u64,
    /// The most streams that the peer may have open towards this side. 256: a push of one chunk to each target that has
    /// one in flight (up to about 200), and announcements.
    pub max_streams: u32,
    /// The upper limit of MTU discovery (RFC 8899), in bytes of UDP payload. 6,400: quinn's batches stay below 64 KiB,
    /// and a path of 9,000 bytes is as fast as TCP with TLS. Values above 6,500 count as 6,500: larger batches fail
    /// with segmentation offload.
    pub mtu_bound: u16,
    /// How many packets may arrive before they must be acknowledged (ack-frequency extension). 0 keeps QUIC's own rule,
    /// every second packet.
    pub ack_threshold: u32,
    /// The longest time that an acknowledgement may be delayed. 25 ms, QUIC's own default (RFC 9000 §18.2).
    pub max_ack_delay: Duration,
    /// The most handshakes under way with hosts that connect to this side. Beyond it, the address that has most of them
    /// gives way ([`crate::Crowd`]). 64: each costs about 1 ms of CPU and 10 KiB. Half are kept for addresses from
    /// which hosts were let in, or that [`crate::Endpoint::expect`] named.
    pub max_handshakes: usize,
    /// From this many handshakes under way on, a host that connects must first prove its address by a retry (RFC 9000
    /// §8.1.2).
    pub retry_above: usize,
    /// The most connections at a time, in both directions. 4,096: a coordinator of 1,000 hosts, with room for
    /// reconnects.
    pub max_connections: usize,
    /// The most accepted connections of one host. A further one replaces the oldest. 4: a restarted host comes back
    /// before its old connection has timed out.
    pub max_connections_per_host: usize,
    /// The bytes of unread datagrams that the system shall keep. 4 MiB: the system also counts its bookkeeping, at
    /// least 0.8 KiB for each datagram, so this holds a burst of 5,000 small ones. Where the system's own limit is
    /// lower, the endpoint gets less and logs that.
    pub receive_buffer: usize,
    /// The secret by which this endpoint proves, after a restart, that it has lost its earlier connections. Every life
    /// of one endpoint uses the same secret, and no other endpoint does. Without a secret, peers notice a restart only
    /// when they hear nothing for the idle timeout.
    pub reset_secret: Option<ResetSecret>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(15),
            keep_alive: Duration::from_secs(5),
            stream_window: 8 << 20,
            connection_window: 8 << 20,
            send_window: 16 << 20,
            max_streams: 256,
            mtu_bound: 6_400,
            ack_threshold: 20,
            max_ack_delay: Duration::from_millis(25),
            max_handshakes: 64,
            retry_above: 16,
            max_connections: 4_096,
            max_connections_per_host: 4,
            receive_buffer: 4 << 20,
            reset_secret: None,
        }
    }
}

impl Settings {
    /// The MTU limit that is used: at least QUIC's minimum of 1,200, and safe with segmentation offload.
    pub(crate) fn mtu(&self) -> u16 {
        self.mtu_bound.clamp(1_200, MAX_MTU_WITH_OFFLOAD)
    }

    /// quinn's configuration of these settings, for a side that lets the peer open this many one-way streams.
    pub(crate) fn transport(&self, one_way_streams: u32) -> Arc<TransportConfig> {
        let mut transport = TransportConfig::default();
        let idle = u32::try_from(self.idle_timeout.as_millis()).unwrap_or(u32::MAX);
        transport
            .max_concurrent_bidi_streams(self.max_streams.into())
            .max_concurrent_uni_streams(one_way_streams.into())
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle))))
            .keep_alive_interval(Some(self.keep_alive))
            .stream_receive_window(self.stream_window.into())
            .receive_window(self.connection_window.into())
            .send_window(self.send_window)
            // Without fairness, quinn finishes a stream that it has begun before it looks at priorities: a message
            // would wait behind a chunk. `stream::Sender` sets priorities so that chunks still go one after the other.
            .send_fairness(true)
            .mtu_discovery_config(Some({
                let mut discovery = MtuDiscoveryConfig::default();
                discovery.upper_bound(self.mtu());
                discovery
            }))
            .ack_frequency_config((self.ack_threshold > 0).then(|| {
                let mut acks = AckFrequencyConfig::default();
                acks.ack_eliciting_threshold(self.ack_threshold.into())
                    .max_ack_delay(Some(self.max_ack_delay));
                acks
            }))
            // no unreliable datagrams: nothing here sends them
            .datagram_receive_buffer_size(None)
            .enable_segmentation_offload(true);
        Arc::new(transport)
    }
}
