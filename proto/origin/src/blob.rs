//! The bytes of a blob as they arrive, checked against the expected size and range.

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures_util::{Stream, StreamExt as _};
use http::{
    HeaderMap, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE},
};
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, Sleep, sleep};

use crate::error::{OriginError, broken, find, shorten, unexpected};

/// A part of a blob, from the byte that was asked for to the part's end, in pieces as they arrive.
///
/// The stream ends after exactly the expected bytes, or with an error. Pieces that came before an error are good.
/// Dropping the stream before its end ends the connection. A stream that was read to its end leaves the connection to
/// the next request, unless the registry went on behind the part.
#[derive(Debug)]
pub struct BlobStream {
    what: String,
    host: String,
    body: Option<Incoming>,
    /// The offset in the blob of the next byte that arrives.
    next: u64,
    /// The offset at which the wanted part starts. Earlier bytes are skipped.
    start: u64,
    /// Whether the blob arrives from its beginning, although a later part was asked for.
    from_beginning: bool,
    /// The offset behind the last wanted byte.
    end: u64,
    /// Whether the answer goes on behind `end`. What follows isn't read.
    goes_on: bool,
    size: u64,
    received: u64,
    idle_timeout: Duration,
    deadline: Pin<Box<Sleep>>,
}

impl BlobStream {
    pub(crate) fn empty(what: String, (at, size): (u64, u64), idle_timeout: Duration) -> Self {
        Self {
            what,
            host: String::new(),
            body: None,
            next: at,
            start: at,
            from_beginning: false,
            end: at,
            goes_on: false,
            size,
            received: 0,
            idle_timeout,
            deadline: Box::pin(sleep(idle_timeout)),
        }
    }

    /// The answer to a request for the bytes from `asked` on. Bytes before the part are skipped. An answer that is the
    /// whole blob is read to the blob's end.
    pub(crate) fn of(
        what: String,
        host: String,
        response: Response<Incoming>,
        (asked, part, size): (u64, &Range<u64>, u64),
        idle_timeout: Duration,
    ) -> Result<Self, OriginError> {
        let (parts, body) = response.into_parts();
        let given = given(&what, &host, parts.status, &parts.headers, asked, size)?;
        let is_whole = parts.status == StatusCode::OK;
        let end = if is_whole { size } else { part.end };
        Ok(Self {
            what,
            host,
            body: Some(body),
            next: given.start,
            start: part.start,
            from_beginning: is_whole && *part != (0..size),
            end,
            goes_on: given.end > end,
            size,
            received: 0,
            idle_timeout,
            deadline: Box::pin(sleep(idle_timeout)),
        })
    }

    /// Waits for the next piece; `None` after the last. Cancel safe.
    ///
    /// # Errors
    /// When the blob breaks off, nothing arrives for too long, or more bytes arrive than expected. The stream has then
    /// ended.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, OriginError> {
        self.next().await.transpose()
    }

    /// The body's bytes that arrived, with those that were skipped because the server ignored the range.
    #[must_use]
    pub const fn bytes_received(&self) -> u64 {
        self.received
    }

    /// Whether the whole blob comes although a part of it was asked for. Bytes that were fetched before come again, and
    /// the stream goes on to the blob's end.
    #[must_use]
    pub const fn comes_from_beginning(&self) -> bool {
        self.from_beginning
    }

    /// The offset in the blob behind the last piece.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// The offset in the blob of the next piece.
    #[must_use]
    pub const fn position(&self) -> u64 {
        if self.next > self.start {
            self.next
        } else {
            self.start
        }
    }

    /// The bytes of the whole blob.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Returns the wanted bytes of a frame's data; `None` when there are none.
    fn take(&mut self, mut data: Bytes) -> Result<Option<Bytes>, OriginError> {
        let length = data.len() as u64;
        self.received += length;
        let skip = self.start.saturating_sub(self.next).min(length);
        self.next += length;
        if self.next > self.end {
            if !self.goes_on {
                return Err(OriginError::TooLarge {
                    what: self.what.clone(),
                    limit: self.end,
                    found: self.next,
                });
            }
            let beyond = usize::try_from(self.next - self.end).unwrap_or(usize::MAX);
            data.truncate(data.len().saturating_sub(beyond));
            self.next = self.end;
        }
        // A frame fits into memory, and so does a part of it.
        data.advance(usize::try_from(skip).unwrap_or(usize::MAX));
        Ok((!data.is_empty()).then_some(data))
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, OriginError>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        if self.goes_on && self.next == self.end {
            return Poll::Ready(None);
        }
        // Frames without wanted bytes are skipped here, but only one in each poll.
        let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else {
            ready!(self.deadline.as_mut().poll(cx));
            return Poll::Ready(Some(Err(OriginError::Timeout {
                what: self.what.clone(),
                host: self.host.clone(),
                waited: self.idle_timeout,
            })));
        };
        let deadline = Instant::now() + self.idle_timeout;
        self.deadline.as_mut().reset(deadline);
        match frame {
            None if self.next == self.end => Poll::Ready(None),
            None => Poll::Ready(Some(Err(self.truncated()))),
            // A truncated body usually shows as a connection that breaks inside the body.
            Some(Err(error)) => Poll::Ready(Some(Err(if is_early_end(&error) {
                self.truncated()
            } else {
                broken(&self.what, &self.host, &error)
            }))),
            Some(Ok(frame)) => match frame.into_data().map(|data| self.take(data)) {
                Ok(Ok(Some(data))) => Poll::Ready(Some(Ok(data))),
                Ok(Err(error)) => Poll::Ready(Some(Err(error))),
                Ok(Ok(None)) | Err(_) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            },
        }
    }

    fn truncated(&self) -> OriginError {
        OriginError::Truncated {
            what: self.what.clone(),
            received: self.next,
            expected: self.end,
        }
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, OriginError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(self.poll_piece(cx));
        if !matches!(item, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(item)
    }
}

/// Whether the connection was closed in order but too early. hyper reports that in two ways.
fn is_early_end(error: &hyper::Error) -> bool {
    error.is_incomplete_message()
        || find::<io::Error>(error)
            .is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

/// The part of the blob that an answer has: a part from `start` on, or the whole blob.
fn given(
    what: &str,
    host: &str,
    status: StatusCode,
    headers: &HeaderMap,
    start: u64,
    size: u64,
) -> Result<Range<u64>, OriginError> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let malformed = |cause: String| OriginError::Malformed {
        what: what.to_owned(),
        host: host.to_owned(),
        cause,
    };
    let same_size = |found: u64| {
        if found == size {
            Ok(())
        } else {
            Err(OriginError::SizeMismatch {
                what: what.to_owned(),
                expected: size,
                found,
            })
        }
    };
    if let Some(encoding) = text(CONTENT_ENCODING)
        && !encoding.eq_ignore_ascii_case("identity")
    {
        return Err(malformed(format!(
            "it is encoded as {:?} unasked",
            shorten(encoding)
        )));
    }
    let length = text(CONTENT_LENGTH)
        .map(|text| {
            text.parse::<u64>()
                .map_err(|_| malformed(format!("Content-Length {:?}", shorten(text))))
        })
        .transpose()?;
    match status {
        StatusCode::OK => {
            length.map_or(Ok(()), same_size)?;
            Ok(0..size)
        }
        StatusCode::PARTIAL_CONTENT => {
            let range = text(CONTENT_RANGE).unwrap_or_default();
            let (first, last, total) = parse_content_range(range)
                .ok_or_else(|| malformed(format!("Content-Range {:?}", shorten(range))))?;
            if let Some(total) = total {
                same_size(total)?;
            }
            // Fewer bytes than asked for are legal. The stream then ends early, and the caller continues there.
            let fits = first == start && last < size;
            if !fits || length.is_some_and(|length| length != last - first + 1) {
                return Err(OriginError::Range {
                    what: what.to_owned(),
                    start,
                    cause: format!("{host} gave {:?}", shorten(range)),
                });
            }
            Ok(first..last + 1)
        }
        other => Err(unexpected(what, host, other)),
    }
}

/// The first and last byte, and the total unless it is `*` (RFC 9110 §14.4).
fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let number = |text: &str| {
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| text.parse().ok())
            .flatten()
    };
    let rest = text.trim().strip_prefix("bytes")?.trim_start();
    let (range, total) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = match total {
        "*" => None,
        total => Some(number(total)?),
    };
    (first <= last).then_some((first, last, total))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn first(
        status: u16,
        headers: &[(HeaderName, &'static str)],
        start: u64,
    ) -> Result<u64, OriginError> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect();
        let status = StatusCode::from_u16(status).unwrap();
        given("blob", "host", status, &headers, start, 100).map(|given| given.start)
    }

    #[test]
    fn content_ranges_are_read_strictly() {
        assert_eq!(
            parse_content_range("bytes 5-99/100"),
            Some((5, 99, Some(100)))
        );
        assert_eq!(parse_content_range("bytes 0-0/*"), Some((0, 0, None)));
        for bad in [
            "",
            "bytes */100",
            "bytes 5-4/100",
            "bytes -5/100",
            "bytes +5-6/100",
            "items 0-1/2",
            "bytes 0-99999999999999999999999/1",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_whole_blob_instead_of_a_range_starts_at_zero() {
        assert_eq!(first(200, &[(CONTENT_LENGTH, "100")], 40), Ok(0));
        assert_eq!(first(200, &[], 40), Ok(0), "a chunked answer has no length");
    }

    #[test]
    fn a_range_has_to_be_the_one_asked_for() {
        let range = |text| [(CONTENT_RANGE, text)];
        assert_eq!(first(206, &range("bytes 40-99/100"), 40), Ok(40));
        assert_eq!(first(206, &range("bytes 40-99/*"), 40), Ok(40));
        assert_eq!(
            first(206, &range("bytes 40-79/100"), 40),
            Ok(40),
            "fewer bytes are legal"
        );
        for wrong in ["bytes 39-99/100", "bytes 41-99/100", "bytes 40-100/*"] {
            let error = first(206, &range(wrong), 40).unwrap_err();
            assert!(
                matches!(error, OriginError::Range { .. }),
                "{wrong}: {error}"
            );
        }
        let error = first(
            206,
            &[(CONTENT_RANGE, "bytes 40-99/100"), (CONTENT_LENGTH, "59")],
            40,
        );
        assert!(matches!(error, Err(OriginError::Range { .. })));
    }

    #[test]
    fn another_size_is_told() {
        let mismatch = |found| {
            Err(OriginError::SizeMismatch {
                what: "blob".to_owned(),
                expected: 100,
                found,
            })
        };
        assert_eq!(first(200, &[(CONTENT_LENGTH, "99")], 0), mismatch(99));
        assert_eq!(
            first(206, &[(CONTENT_RANGE, "bytes 40-99/101")], 40),
            mismatch(101)
        );
    }

    #[test]
    fn other_answers_are_malformed() {
        for (status, headers) in [
            (204, &[][..]),
            (206, &[]),
            (200, &[(CONTENT_ENCODING, "gzip")]),
            (200, &[(CONTENT_LENGTH, "x")]),
        ] {
            let error = first(status, headers, 40).unwrap_err();
            assert!(matches!(error, OriginError::Malformed { .. }), "{error}");
        }
        assert_eq!(first(200, &[(CONTENT_ENCODING, "identity")], 0), Ok(0));
    }
}
