//! The way to the coordinator, as an interface, so that tests can make one up.

use std::pin::Pin;

use proto::message::{Hello, Order, Report};

use super::error::SessionError;

/// The way to the coordinator.
pub(super) trait Door: Send {
    type Sender: Outgoing;
    type Receiver: Incoming;

    /// Reaches the coordinator, and sends the current `hello`. The session ends by itself when nothing came for this
    /// many looks.
    fn open(
        &mut self,
        hello: &(impl Fn() -> Hello + Sync),
        looks: u32,
    ) -> impl Future<Output = Result<Line<'_, Self::Sender, Self::Receiver>, SessionError>> + Send;
}

/// A session that is up.
pub(super) struct Line<'a, S, R> {
    pub(super) sender: S,
    pub(super) receiver: R,
    /// Takes care of the session meanwhile. When this ends, the session ends.
    pub(super) care: Pin<Box<dyn Future<Output = SessionError> + Send + 'a>>,
}

/// The half of the session on which reports go.
pub(super) trait Outgoing: Send {
    fn send(&mut self, report: &Report) -> impl Future<Output = Result<(), SessionError>> + Send;
}

/// The half of the session on which orders come. `None` at its end.
pub(super) trait Incoming: Send {
    fn receive(&mut self) -> impl Future<Output = Result<Option<Order>, SessionError>> + Send;
}

impl Outgoing for wire::Sender {
    async fn send(&mut self, report: &Report) -> Result<(), SessionError> {
        Ok(Self::send(self, report).await?)
    }
}

impl Incoming for wire::Receiver {
    async fn receive(&mut self) -> Result<Option<Order>, SessionError> {
        Ok(Self::receive(self).await?)
    }
}
