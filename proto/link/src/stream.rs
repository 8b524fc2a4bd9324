//! One stream of a connection: messages with a stated maximum, and plain bytes.
//!
//! Each half is owned by one task. A half that is dropped without having come to its end tells the peer so: a cut-off
//! stream never looks like a complete one.

use std::{fmt, sync::Arc};

use bytes::{Buf as _, Bytes, BytesMut};
use proto::codec::{self, DecodeError, Framed};
use quinn::{ReadError, StoppedError, VarInt, WriteError};

use crate::{close::CloseReason, inner::Inner};

/// Why one side gave up a stream, as it travels: the application error code of QUIC's reset and stop
/// (RFC 9000 §19.4, §19.5). What a code means is agreed by the users of the stream; the constants here are for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamCode(pub u32);

impl StreamCode {
    /// The half was dropped without a word: its task ended or failed.
    pub const ABANDONED: Self = Self(0);
    /// What the stream was for isn't needed any more.
    pub const CANCELLED: Self = Self(1);
    /// The other side broke the protocol on this stream.
    pub const PROTOCOL: Self = Self(2);
    /// The program is stopping.
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

/// Bytes or a message that can't be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The message is over its type's limit; the peer would refuse it. Nothing was sent.
    #[error("message can't be sent: {0}")]
    Message(DecodeError),
    /// The peer doesn't want any more of this stream.
    #[error("peer stopped the stream: {0}")]
    Stopped(StreamCode),
    /// The stream was finished or reset before.
    #[error("stream has ended here already")]
    Ended,
    /// The connection has ended.
    #[error("connection lost: {0}")]
    Closed(#[from] CloseReason),
}

/// Bytes or a message that don't come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// What came isn't a message of the expected type, or over its limit. The stream can't be read further:
    /// where the next message begins isn't known.
    #[error("peer sent no valid message: {0}")]
    Message(DecodeError),
    /// The stream ended where more was due.
    #[error("stream ended early, after {received} of the bytes that were due")]
    Truncated {
        /// How many of them came.
        received: usize,
    },
    /// More came than was allowed for.
    #[error("stream is longer than the {limit} bytes that were allowed")]
    TooLong {
        /// How many were allowed.
        limit: usize,
    },
    /// The peer gave the stream up.
    #[error("peer reset the stream: {0}")]
    Reset(StreamCode),
    /// The stream was stopped here before.
    #[error("stream has ended here already")]
    Ended,
    /// The connection has ended.
    #[error("connection lost: {0}")]
    Closed(#[from] CloseReason),
}

/// The half of a stream on which we send.
///
/// Dropped without [`Sender::finish`], it resets the stream with [`StreamCode::ABANDONED`], so that the peer doesn't
/// take what came so far for everything.
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

    /// Sends a message with its length prefix; waits while the windows are full.
    ///
    /// Not cancel safe: a part of the message may have been sent, and the stream has to be given up.
    ///
    /// # Errors
    /// When it is over its type's limit, the peer stopped the stream, or the connection has ended.
    pub async fn send<M: Framed>(&mut self, message: &M) -> Result<(), SendError> {
        let bytes = codec::encode(message).map_err(SendError::Message)?;
        self.push(&mut [bytes.into()]).await
    }

    /// As [`Sender::send`] and then [`Sender::write`], in one go: the message doesn't take a packet of its own.
    ///
    /// # Errors
    /// As for [`Sender::send`].
    pub async fn send_with<M: Framed>(
        &mut self,
        message: &M,
        bytes: Bytes,
    ) -> Result<(), SendError> {
        let message = codec::encode(message).map_err(SendError::Message)?;
        self.give_way()?;
        self.push(&mut [message.into(), bytes]).await
    }

    /// Sends bytes as they are, without copying them; waits while the windows are full. From the first call on, this
    /// stream gives way to streams that carry messages only.
    ///
    /// The whole allocation behind `bytes` is held until all of it is acknowledged. Not cancel safe: any number of the
    /// bytes may have been sent, and the stream has to be given up.
    ///
    /// # Errors
    /// When the peer stopped the stream, or the connection has ended.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), SendError> {
        self.give_way()?;
        self.push(&mut [bytes]).await
    }

    /// Says that nothing follows. What was sent goes on travelling; [`Sender::stopped`] waits for its arrival.
    ///
    /// # Errors
    /// When the stream was finished or reset before.
    pub fn finish(&mut self) -> Result<(), SendError> {
        self.finished = true;
        self.quinn.finish().map_err(|_| SendError::Ended)
    }

    /// Gives the stream up: what hasn't arrived yet is dropped, and the peer gets the code. Does nothing to a stream
    /// whose bytes have all arrived.
    pub fn reset(&mut self, code: StreamCode) {
        self.finished = true;
        // an error says that the stream has ended already
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

    /// Bulk bytes give way to the messages of the connection's other streams, and to the bulk bytes of streams that had some
    /// before: an announcement doesn't wait behind chunks, and chunks, which are of use when they are whole, come one
    /// after the other.
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

/// What quinn says about data sent before the handshake; we never send any, so this is never seen.
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

/// The half of a stream on which we receive.
///
/// Dropped before its end was reached, it stops the stream with [`StreamCode::ABANDONED`].
pub struct Receiver {
    quinn: quinn::RecvStream,
    connection: Arc<Inner>,
    /// Bytes that came and weren't asked for yet: the beginning of a message, or what followed the last one in the same
    /// packet. At most one message and [`READ_AHEAD_BYTES`].
    ahead: BytesMut,
}

/// How much is read when the length of what follows isn't known yet. Small messages then cost one read, and copying what
/// belongs to the bytes after the message costs nothing to speak of.
const READ_AHEAD_BYTES: usize = 2 << 10;

impl Receiver {
    pub(crate) fn new(quinn: quinn::RecvStream, connection: Arc<Inner>) -> Self {
        Self {
            quinn,
            connection,
            ahead: BytesMut::new(),
        }
    }

    /// The next message; `None` when the stream ended before it.
    ///
    /// Memory grows with what has arrived, never with what was announced. Cancel safe: what arrived is kept for the next
    /// call, which has to ask for the same type.
    ///
    /// # Errors
    /// When the bytes aren't such a message or are over its limit, the stream ends within it, the peer reset the
    /// stream, or the connection has ended. After [`ReceiveError::Message`] the stream can't be used further.
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

    /// Fills the buffer. Not cancel safe: bytes that were read are lost, and the stream has to be given up.
    ///
    /// # Errors
    /// When the stream ends before, the peer reset it, or the connection has ended.
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

    /// Exactly `length` bytes, appended to a buffer of the caller's. The caller bounds `length`: room for it is reserved
    /// at once. Not cancel safe, but what came is in the buffer.
    ///
    /// # Errors
    /// When the stream ends before, the peer reset it, or the connection has ended.
    pub async fn read_into(
        &mut self,
        buffer: &mut Vec<u8>,
        length: usize,
    ) -> Result<(), ReceiveError> {
        buffer.reserve(length);
        let mut received = 0;
        while received < length {
            let Some(piece) = self.piece(length - received).await? else {
                return Err(ReceiveError::Truncated { received });
            };
            buffer.extend_from_slice(&piece);
            received += piece.len();
        }
        Ok(())
    }

    /// All that follows, when it is at most `limit` bytes. Not cancel safe.
    ///
    /// # Errors
    /// When more follows than allowed, the peer reset the stream, or the connection has ended.
    pub async fn read_to_end(&mut self, limit: usize) -> Result<Vec<u8>, ReceiveError> {
        let mut bytes = Vec::new();
        // one more than allowed, to tell a stream that is too long from one that just fits
        while let Some(piece) = self.piece((limit - bytes.len()).saturating_add(1)).await? {
            if bytes.len() + piece.len() > limit {
                return Err(ReceiveError::TooLong { limit });
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// The next bytes as they arrived, without copying: at least one, at most `max`; `None` at the end of the stream.
    /// About a packet each (1,200 to 6,500 bytes). Cancel safe.
    ///
    /// A piece keeps the whole packet that it came in alive.
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

    /// Tells the peer not to send any more, and why. Does nothing to a stream that has ended.
    pub fn stop(&mut self, code: StreamCode) {
        self.ahead.clear();
        // an error says that the stream has ended already
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
