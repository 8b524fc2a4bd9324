//! The short way for blobs: a GET of one over plain TCP is answered here, and its bytes leave by `sendfile`, which is half
//! the copying and none of our memory. Everything else is hyper's: the first request that isn't plainly such a GET hands
//! its connection over, with what was read of it.
//!
//! Only for Linux; elsewhere every connection is hyper's from its start.

use std::{
    fmt::Write as _,
    future::pending,
    io,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::{Buf as _, BytesMut};
use hyper::{
    Method, Request, Response,
    header::{
        CONNECTION, CONTENT_LENGTH, EXPECT, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE,
    },
};
use link::Place;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::TcpStream,
    time::timeout,
};

use super::serve::{Content, Pulse, Service, Stream};

/// The next request has to come within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Heads beyond this, or with more fields, are hyper's to judge.
const MAX_HEAD: usize = 16 << 10;
const MAX_FIELDS: usize = 48;
/// What a blocking thread sends before it is given back: a few milliseconds on loopback.
const TURN: u64 = 8 << 20;

/// Answers GETs of blobs until the client or the connection ends (`None`), or something else is asked for: then the
/// connection and what was read from it.
pub(super) async fn talk(
    service: &Service,
    mut stream: TcpStream,
    pulse: &Arc<Pulse>,
    place: &Arc<Place>,
) -> Option<(TcpStream, BytesMut)> {
    let mut read = BytesMut::new();
    loop {
        let (request, length, last) = loop {
            match parse(&read) {
                Parsed::Get {
                    request,
                    length,
                    last,
                } => break (request, length, last),
                Parsed::Other => return Some((stream, read)),
                Parsed::Partial => {}
            }
            match timeout(HEAD_TIMEOUT, stream.read_buf(&mut read)).await {
                Ok(Ok(bytes)) if bytes > 0 => pulse.beat(),
                _ => return None,
            }
        };
        read.advance(length);
        let _work = place.work();
        let answered = tokio::select! {
            answered = service.answer(&request, pulse) => answered,
            () = gone(&stream) => return None,
        };
        // a connection that is dropped here is broken: the client tries again
        let sent = match answered {
            Ok(response) => send(&mut stream, response, last).await,
            Err(_) => return None,
        };
        if sent.is_err() || last {
            return None;
        }
    }
}

/// Returns when the client closed its side.
async fn gone(stream: &TcpStream) {
    let mut next = [0];
    if let Ok(1..) = stream.peek(&mut next).await {
        // it sent its next request ahead
        pending::<()>().await;
    }
}

enum Parsed {
    /// A GET of a blob.
    Get {
        request: Box<Request<()>>,
        /// Bytes of its head.
        length: usize,
        /// Whether the client wants the connection closed after it.
        last: bool,
    },
    Other,
    Partial,
}

fn parse(read: &[u8]) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let length = match head.parse(read) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(httparse::Status::Partial) if read.len() < MAX_HEAD => return Parsed::Partial,
        _ => return Parsed::Other,
    };
    request(&head, length).unwrap_or(Parsed::Other)
}

fn request(head: &httparse::Request<'_, '_>, length: usize) -> Option<Parsed> {
    let path = head.path.filter(|path| path.contains("/blobs/"))?;
    if head.method != Some("GET") || head.version != Some(1) {
        return None;
    }
    let mut request = Box::new(Request::new(()));
    *request.method_mut() = Method::GET;
    *request.uri_mut() = path.parse().ok()?;
    let mut last = false;
    for field in &*head.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        let value = HeaderValue::from_bytes(field.value).ok()?;
        // a body, or anything else that changes how the connection goes on
        if [CONTENT_LENGTH, TRANSFER_ENCODING, EXPECT, UPGRADE].contains(&name) {
            return None;
        }
        if name == CONNECTION {
            let text = value.to_str().ok()?.trim();
            last |= text.eq_ignore_ascii_case("close");
            if !last && !text.eq_ignore_ascii_case("keep-alive") {
                return None;
            }
        }
        request.headers_mut().append(name, value);
    }
    Some(Parsed::Get {
        request,
        length,
        last,
    })
}

async fn send(stream: &mut TcpStream, response: Response<Content>, last: bool) -> io::Result<()> {
    let (parts, content) = response.into_parts();
    let mut head = format!("HTTP/1.1 {}\r\n", parts.status);
    let date = httpdate::fmt_http_date(SystemTime::now());
    // writing to a string can't fail
    write!(head, "date: {date}\r\n").map_err(io::Error::other)?;
    if last {
        head.push_str("connection: close\r\n");
    }
    let mut head = head.into_bytes();
    for (name, value) in &parts.headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    match content {
        Content::Bytes(bytes) => {
            head.extend_from_slice(&bytes);
            stream.write_all(&head).await
        }
        Content::Blob(mut blob) => {
            stream.write_all(&head).await?;
            send_file(stream, &mut blob).await
        }
    }
}

async fn send_file(stream: &TcpStream, blob: &mut Stream) -> io::Result<()> {
    // the socket for blocking threads, which outlive this future when it is dropped
    let socket = Arc::new(stream.as_fd().try_clone_to_owned()?);
    while blob.at < blob.end {
        let ready = tokio::select! {
            ready = blob.wait() => ready?,
            () = gone(stream) => return Err(io::ErrorKind::ConnectionReset.into()),
        };
        stream.writable().await?;
        let (at, end) = (blob.at, ready.min(blob.at + TURN));
        if !blob.reading.blob.offer(at, end) {
            continue;
        }
        let (out, file) = (socket.clone(), blob.file.clone());
        // the disk may have to be waited for
        let sent = tokio::task::spawn_blocking(move || {
            let mut offset = at;
            while offset < end {
                let count = usize::try_from(end - offset).unwrap_or(usize::MAX);
                match rustix::fs::sendfile(&*out, &*file, Some(&mut offset), count) {
                    // the file is shorter than it was: somebody cut it
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(error) => return Err(io::Error::from(error)),
                }
            }
            Ok(offset)
        });
        let reached = sent.await.map_err(io::Error::other)??;
        if reached < end {
            // the runtime didn't see that the socket was full; asked again, because it may have room by now, and then no
            // news would come of it
            stream
                .try_io(Interest::WRITABLE, || has_room(&*socket))
                .ok();
        }
        // the last byte of a false part mustn't leave as if all were well: the next turn ends with an error, and so does this
        blob.still_true()?;
        blob.passed(reached - at);
    }
    Ok(())
}

/// Whether a socket takes bytes now; an error of the kind that the runtime waits after, where it doesn't.
fn has_room(socket: impl AsFd) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let mut asked = [PollFd::new(&socket, PollFlags::OUT)];
    match poll(&mut asked, Some(&Timespec::default()))? {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind(text: &str) -> &'static str {
        match parse(text.as_bytes()) {
            Parsed::Get { last: true, .. } => "last",
            Parsed::Get { .. } => "get",
            Parsed::Other => "other",
            Parsed::Partial => "partial",
        }
    }

    #[test]
    fn only_a_plain_get_of_a_blob_is_answered_here() {
        let cases = [
            (
                "GET /v2/a/b/blobs/x HTTP/1.1\r\nHost: h\r\nRange: bytes=1-\r\n\r\n",
                "get",
            ),
            (
                "GET /v2/a/b/blobs/x HTTP/1.1\r\nConnection: Keep-Alive\r\n\r\nGET",
                "get",
            ),
            (
                "GET /v2/a/b/blobs/x HTTP/1.1\r\nconnection: close\r\n\r\n",
                "last",
            ),
            (
                "GET /v2/a/b/blobs/x HTTP/1.1\r\nConnection: upgrade\r\n\r\n",
                "other",
            ),
            ("GET /v2/a/b/blobs/x HTTP/1.0\r\n\r\n", "other"),
            ("HEAD /v2/a/b/blobs/x HTTP/1.1\r\n\r\n", "other"),
            ("GET /v2/a/manifests/x HTTP/1.1\r\n\r\n", "other"),
            (
                "GET /v2/a/blobs/x HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
                "other",
            ),
            (
                "GET /v2/a/blobs/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "other",
            ),
            (
                "GET /v2/a/blobs/x HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
                "other",
            ),
            ("GET /v2/a/blobs/x HTTP/1.1\r\nHost: h\r\n", "partial"),
            ("", "partial"),
            ("\u{0}GET", "other"),
        ];
        for (text, wanted) in cases {
            assert_eq!(kind(text), wanted, "{text:?}");
        }
        let long = format!("GET /v2/a/blobs/x HTTP/1.1\r\na: {}", "x".repeat(MAX_HEAD));
        assert_eq!(kind(&long), "other");
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_left_to_hyper(bytes in prop::collection::vec(any::<u8>(), 0..200), head in "(GET|HEAD|[A-Z]{1,5}) /[a-z/]{0,9}/blobs/.{0,20} HTTP/1.[01]\r\n") {
            drop(parse(&bytes));
            let mut both = head.into_bytes();
            both.extend_from_slice(&bytes);
            both.extend_from_slice(b"\r\n\r\n");
            if let Parsed::Get { length, .. } = parse(&both) {
                prop_assert!(length <= both.len());
            }
        }
    }
}
