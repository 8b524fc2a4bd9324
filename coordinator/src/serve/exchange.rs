//! One request and its answer, as they count for the connection's place. While the request arrives, the connection
//! waits for its client and may have to give way. From then until the answer has left, the server works for the
//! connection.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, Bytes};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};
use wire::{Place, Work};

use crate::lock::lock;

/// What the two bodies of an exchange share. The exchange ends when both bodies are gone.
#[derive(Debug)]
pub(super) struct Exchange {
    place: Arc<Place>,
    work: Mutex<Option<Work>>,
    late: AtomicBool,
}

impl Exchange {
    pub(super) fn new(place: Arc<Place>) -> Arc<Self> {
        Arc::new(Self {
            place,
            work: Mutex::default(),
            late: AtomicBool::new(false),
        })
    }

    /// The whole request has arrived.
    fn arrived(&self) {
        let mut work = lock(&self.work);
        work.get_or_insert_with(|| self.place.work());
    }

    /// Whether the request's body took too long.
    pub(super) fn is_late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }
}

/// A request's body, which has to arrive before the deadline.
pub(super) struct Arriving {
    body: Incoming,
    exchange: Arc<Exchange>,
    deadline: Pin<Box<Sleep>>,
}

impl Arriving {
    pub(super) fn new(body: Incoming, exchange: Arc<Exchange>, within: Duration) -> Self {
        if body.is_end_stream() {
            exchange.arrived();
        }
        Self {
            body,
            exchange,
            deadline: Box::pin(sleep(within)),
        }
    }
}

impl hyper::body::Body for Arriving {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            if frame.is_none() || self.body.is_end_stream() {
                self.exchange.arrived();
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)));
        }
        ready!(self.deadline.as_mut().poll(context));
        self.exchange.late.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer. Its exchange lasts until the body is gone.
pub(super) struct Leaving {
    body: Body,
    _exchange: Arc<Exchange>,
}

impl Leaving {
    pub(super) fn new(body: Body, exchange: Arc<Exchange>) -> Self {
        Self {
            body,
            _exchange: exchange,
        }
    }
}

impl hyper::body::Body for Leaving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
