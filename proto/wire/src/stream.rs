//! One stream of a connection: messages with a stated maximum, and plain bytes.
//!
//! One task owns each half. A half that is dropped before its end tells the peer so. So a cut-off stream never looks
//! like a complete one.

use std::{fmt, sync::Arc};

use bytes::{Buf as _, Bytes, BytesMut};
use proto::codec::{self, DecodeError, Framed};
use quinn::{ReadError, StoppedError, VarInt, WriteError};

use crate::{close::CloseReason, inner::Inner};

/// Why one side gave up a stream. On the wire, this is the application error code of QUIC's reset and stop (RFC 9000
/// §19.4, §19.5). The users of a stream agree on the meaning of codes; the constants here are for all streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamCode(pub u32);

impl StreamCode {
    /// The half was dropped without a code: its task ended or failed.
    pub const ABANDONED: Self = Self(0);
    /// The stream's purpose is gone.
    pub const CANCELLED: Self = Self(1);
    /// The other side broke the protocol on this stream.
    pub const PROTOCOL: Self = Self(2);
    /// The side's program is stopping.
    pub const STOPPING: Self = Self(3);

    fn from_wire(code: VarInt) -> Self {
        Self(u32::try_from(code.into_inner()).unwrap_or(u32::MAX))
    }

    fn wire(self) -> VarInt {
        VarInt::from_u32(self.0)
    }
}

impl fmt::Display for StreamCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ABANDONED => f.write_str("abandoned"),
            Self::CANCELLED => f.write_str("cancelled"),
            Self::PROTOCOL => f.write_str("protocol broken"),
            Self::STOPPING => f.write_str("stopping"),
            Self(code) => write!(f, "code {code}"),
        }
    }
}

/// Why bytes or a message can't be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The message is over its type's limit, so the peer would refuse it. Nothing was sent.
    #[error("message can't be sent: {0}")]
    Message(DecodeError),
    /// The peer wants no more of this stream.
    #[error("peer stopped the stream: {0}")]
    Stopped(StreamCode),
    /// This side finished or reset the stream before.
    #[error("stream has ended here already")]
    Ended,
    /// The connection has ended.
    #[error("connection lost: {0}")]
    Closed(#[from] CloseReason),
}

/// Why bytes or a message can't be received.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The bytes aren't a message of the expected type, or are over its limit. The stream can't be read further,
    /// because the start of the next message isn't known.
    #[error("peer sent no valid message: {0}")]
    Message(DecodeError),
    /// The stream ended before all expected bytes came.
    #[error("stream ended early, after {received} of the bytes that were due")]
    Truncated {
        /// How many of the expected bytes came.
        received: usize,
    },
    /// The peer gave up the stream.
    #[error("peer reset the stream: {0}")]
    Reset(StreamCode),
    /// This side stopped the stream before.
    #[error("stream has ended here already")]
    Ended,
    /// The connection has ended.
    #[error("connection lost: {0}")]
    Closed(#[from] CloseReason),
}

/// The half of a stream on which this side sends.
///
/// Dropping it without [`Sender::finish`] resets the stream with [`StreamCode::ABANDONED`], so that the peer doesn't
/// take the bytes so far for all bytes.
pub struct Sender {
    quinn: quinn::SendStream,
    connection: Arc<Inner>,
    finished: bool,
    bulk: bool,
}

impl Sender {
    pub(crate) fn new(quinn: quinn::SendStream, connection: Arc<Inner>) -> Self {
        Self {
            quinn,
            connection,
            finished: false,
            bulk: false,
        }
    }

    /// Sends a message with its length before it. Waits while the windows are full.
    ///
    /// Not cancel safe: a part of the message may have been sent, and the stream must be given up.
    ///
    /// # Errors
    /// When the message is over its type's limit, the peer stopped the stream, or the connection has ended.
    pub async fn send<M: Framed>(&mut self, message: &M) -> Result<(), SendError> {
        let bytes = codec::encode(message).map_err(SendError::Message)?;
        self.push(&mut [bytes.into()]).await
    }

    /// Sends bytes as they are, without copying them. Waits while the windows are full. From the first call on, this
    /// stream gives way to streams that carry only messages.
    ///
    /// The whole allocation behind `bytes` stays in memory until all bytes are acknowledged. Not cancel safe: some of
    /// the bytes may have been sent, and the stream must be given up.
    ///
    /// # Errors
    /// When the peer stopped the stream, or the connection has ended.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), SendError> {
        self.give_way()?;
        self.push(&mut [bytes]).await
    }

    /// Ends the stream: nothing follows. Bytes that were sent go on travelling; [`Sender::stopped`] waits for their
    /// arrival.
    ///
    /// # Errors
    /// When the stream was finished or reset before.
    pub fn finish(&mut self) -> Result<(), SendError> {
        self.finished = true;
        self.quinn.finish().map_err(|_| SendError::Ended)
    }

    /// Gives up the stream. Bytes that haven't arrived are dropped, and the peer gets the code. Does nothing to a
    /// stream whose bytes have all arrived.
    pub fn reset(&mut self, code: StreamCode) {
        self.finished = true;
        // an error means that the stream has ended already
        drop(self.quinn.reset(code.wire()));
    }

    /// Waits until the peer stops the stream (with its code), or has acknowledged all of a finished stream (`None`).
    /// Cancel safe.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn stopped(&self) -> Result<Option<StreamCode>, CloseReason> {
        match self.quinn.stopped().await {
            Ok(code) => Ok(code.map(StreamCode::from_wire)),
            Err(StoppedError::ConnectionLost(error)) => Err(self.connection.reason(error)),
            Err(StoppedError::ZeroRttRejected) => Err(CloseReason::Transport(ZERO_RTT.to_owned())),
        }
    }

    /// Lowers the priority of a stream with bulk bytes, below messages of the connection's other streams and below bulk
    /// bytes of earlier streams. So an announcement doesn't wait behind chunks. And chunks, which are useful only
    /// whole, are sent one after the other.
    fn give_way(&mut self) -> Result<(), SendError> {
        if !self.bulk {
            self.bulk = true;
            self.quinn
                .set_priority(self.connection.bulk_priority())
                .map_err(|_| SendError::Ended)?;
        }
        Ok(())
    }

    async fn push(&mut self, pieces: &mut [Bytes]) -> Result<(), SendError> {
        match self.quinn.write_all_chunks(pieces).await {
            Ok(()) => Ok(()),
            Err(WriteError::Stopped(code)) => Err(SendError::Stopped(StreamCode::from_wire(code))),
            Err(WriteError::ClosedStream) => Err(SendError::Ended),
            Err(WriteError::ConnectionLost(error)) => {
                Err(SendError::Closed(self.connection.reason(error)))
            }
            Err(WriteError::ZeroRttRejected) => Err(SendError::Closed(CloseReason::Transport(
                ZERO_RTT.to_owned(),
            ))),
        }
    }
}

/// quinn's error for data that was sent before the handshake. This crate sends none, so the error never occurs.
const ZERO_RTT: &str = "early data was rejected";

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.finished {
            self.reset(StreamCode::ABANDONED);
        }
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&self.quinn.id()).finish()
    }
}

/// The half of a stream on which this side receives.
///
/// Dropping it before the end stops the stream with [`StreamCode::ABANDONED`].
pub struct Receiver {
    quinn: quinn::RecvStream,
    connection: Arc<Inner>,
    /// Bytes that came and that nobody asked for yet: the beginning of a message, or bytes after the last message in
    /// the same packet. At most one message and [`READ_AHEAD_BYTES`].
    ahead: BytesMut,
}

/// How many bytes are read while the length of the next message isn't known. A small message then costs one read, and
/// copying the bytes that follow it costs little.
const READ_AHEAD_BYTES: usize = 2 << 10;

impl Receiver {
    pub(crate) fn new(quinn: quinn::RecvStream, connection: Arc<Inner>) -> Self {
        Self {
            quinn,
            connection,
            ahead: BytesMut::new(),
        }
    }

    /// Waits for the next message; `None` when the stream ended before it.
    ///
    /// Memory grows with the bytes that have arrived, never with the announced length. Cancel safe: bytes that arrived
    /// are kept for the next call, which must ask for the same type.
    ///
    /// # Errors
    /// When the bytes aren't such a message or are over its limit, the stream ends within the message, the peer reset
    /// the stream, or the connection has ended. After [`ReceiveError::Message`], the stream can't be used any more.
    pub async fn receive<M: Framed>(&mut self) -> Result<Option<M>, ReceiveError> {
        loop {
            let want = match codec::prefix::<M>(&self.ahead).map_err(ReceiveError::Message)? {
                Some((length, start)) if self.ahead.len() >= start + length => {
                    let message = codec::decode(&self.ahead[start..start + length])
                        .map_err(ReceiveError::Message)?;
                    self.ahead.advance(start + length);
                    return Ok(Some(message));
                }
                Some((length, start)) => start + length - self.ahead.len(),
                None => READ_AHEAD_BYTES,
            };
            match self.next(want).await? {
                Some(bytes) => self.ahead.extend_from_slice(&bytes),
                None if self.ahead.is_empty() => return Ok(None),
                None => {
                    return Err(ReceiveError::Truncated {
                        received: self.ahead.len(),
                    });
                }
            }
        }
    }

    /// Fills the buffer. Not cancel safe: bytes that were read are lost, and the stream must be given up.
    ///
    /// # Errors
    /// When the stream ends before the buffer is full, the peer reset the stream, or the connection has ended.
    pub async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ReceiveError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let Some(piece) = self.piece(buffer.len() - filled).await? else {
                return Err(ReceiveError::Truncated { received: filled });
            };
            buffer[filled..filled + piece.len()].copy_from_slice(&piece);
            filled += piece.len();
        }
        Ok(())
    }

    /// Waits for the next bytes as they arrived, without copying: at least one byte, at most `max`; `None` at the end
    /// of the stream. A piece is about one packet (1,200 to 6,500 bytes). Cancel safe.
    ///
    /// A piece keeps the memory of the whole packet in which it came.
    ///
    /// # Errors
    /// When the peer reset the stream, or the connection has ended.
    pub async fn piece(&mut self, max: usize) -> Result<Option<Bytes>, ReceiveError> {
        if max == 0 {
            return Ok(Some(Bytes::new()));
        }
        if self.ahead.is_empty() {
            self.next(max).await
        } else {
            let length = max.min(self.ahead.len());
            Ok(Some(self.ahead.split_to(length).freeze()))
        }
    }

    /// Tells the peer to send no more, with a code. Does nothing to a stream that has ended.
    pub fn stop(&mut self, code: StreamCode) {
        self.ahead.clear();
        // an error means that the stream has ended already
        drop(self.quinn.stop(code.wire()));
    }

    async fn next(&mut self, max: usize) -> Result<Option<Bytes>, ReceiveError> {
        match self.quinn.read_chunk(max, true).await {
            Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
            Err(ReadError::Reset(code)) => Err(ReceiveError::Reset(StreamCode::from_wire(code))),
            Err(ReadError::ConnectionLost(error)) => {
                Err(ReceiveError::Closed(self.connection.reason(error)))
            }
            Err(ReadError::ClosedStream | ReadError::IllegalOrderedRead) => {
                Err(ReceiveError::Ended)
            }
            Err(ReadError::ZeroRttRejected) => Err(ReceiveError::Closed(CloseReason::Transport(
                ZERO_RTT.to_owned(),
            ))),
        }
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&self.quinn.id()).finish()
    }
}
