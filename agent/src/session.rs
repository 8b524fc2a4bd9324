//! The session with the coordinator: reports go up and orders come down until one side ends it. Then the agent tries
//! again.
//!
//! `dial` reaches the coordinator. `pace` says when the next attempt is, and how long the coordinator may be silent.
//! The driver decides what orders mean and what reports say.

mod dial;
mod error;
mod line;
mod pace;

use std::time::{Duration, Instant};

use proto::{
    causes,
    message::{Hello, Order, Report},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};
use tracing::{info, warn};
use wire::Endpoint;

pub(crate) use self::dial::Settings;
use self::{
    dial::Dialler,
    error::SessionError,
    line::{Door, Incoming, Line, Outgoing},
    pace::{Patience, Pauses},
};
use crate::identity::Identity;

/// Reports that wait for the session, a few: the driver keeps what doesn't fit, and sends the newest state later.
const REPORTS: usize = 8;

/// The news that the session tells the driver.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The session is up: reports sent on this channel reach the coordinator. Its first message has to be a full
    /// report.
    Up(mpsc::Sender<Report>),
    /// An order.
    Order(Box<Order>),
    /// The session is lost. The next attempt waits until this is answered, since its first message says the state by
    /// then.
    Down(oneshot::Sender<()>),
}

/// Keeps a session with the coordinator until the driver ends. Each attempt calls `hello` for its first message.
pub(crate) async fn keep(
    endpoint: Endpoint,
    settings: Settings,
    identity: Identity,
    hello: impl Fn() -> Hello + Sync,
    inbox: mpsc::Sender<Heard>,
) {
    let coordinator = settings.address.clone();
    let mut door = Dialler::new(endpoint, settings, identity);
    keep_through(&mut door, &coordinator, Pauses::new(), hello, inbox).await;
}

async fn keep_through(
    door: &mut impl Door,
    coordinator: &str,
    mut pauses: Pauses,
    hello: impl Fn() -> Hello + Sync,
    inbox: mpsc::Sender<Heard>,
) {
    let mut patience = Patience::default();
    let mut last_error = String::new();
    while !inbox.is_closed() {
        let lasted = hold(door, &hello, &inbox, &mut patience).await;
        if let Err(error) = &lasted {
            let error = causes(error);
            // logged once, not at every attempt
            if error != last_error {
                warn!(
                    coordinator,
                    error, "no session with the coordinator; trying again"
                );
                last_error = error;
            }
        }
        sleep(pauses.next(lasted.ok())).await;
    }
}

/// Holds a session, and returns how long it lasted. An error means that no session came about.
async fn hold(
    door: &mut impl Door,
    hello: &(impl Fn() -> Hello + Sync),
    inbox: &mpsc::Sender<Heard>,
    patience: &mut Patience,
) -> Result<Duration, SessionError> {
    let line = door.open(hello, patience.looks()).await?;
    let Line {
        mut sender,
        mut receiver,
        mut care,
    } = line;
    let (reports, outbox) = mpsc::channel(REPORTS);
    drop(inbox.send(Heard::Up(reports)).await);
    let began = Instant::now();
    let ended = tokio::select! {
        ended = send_reports(&mut sender, outbox) => ended,
        ended = receive_orders(&mut receiver, inbox) => ended,
        error = &mut care => Err(error),
    };
    let lasted = began.elapsed();
    patience.ended(lasted, matches!(ended, Err(SessionError::Silent(_))));
    let (taken_in, all) = oneshot::channel();
    drop(inbox.send(Heard::Down(taken_in)).await);
    // a driver that ends answers by ending
    drop(all.await);
    match ended {
        Ok(()) => info!("session with the coordinator ended"),
        Err(error) => warn!(error = causes(&error), "session with the coordinator ended"),
    }
    Ok(lasted)
}

async fn send_reports(
    sender: &mut impl Outgoing,
    mut outbox: mpsc::Receiver<Report>,
) -> Result<(), SessionError> {
    while let Some(report) = outbox.recv().await {
        sender.send(&report).await?;
    }
    Ok(())
}

async fn receive_orders(
    receiver: &mut impl Incoming,
    inbox: &mpsc::Sender<Heard>,
) -> Result<(), SessionError> {
    while let Some(order) = receiver.receive().await? {
        let heard = Heard::Order(Box::new(order));
        let sent = inbox.send(heard).await;
        sent.map_err(|_| SessionError::DriverGone)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
