//! Tests of sessions with a made-up coordinator: without sockets, certificates or real clocks.

use std::{
    collections::VecDeque,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use proto::{
    figure::Span,
    message::{Names, order},
};
use wire::ReceiveError;

use super::*;
use crate::lock::lock;

/// How a session goes on once the coordinator's orders are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Stays,
    Ends,
    /// The next message from the coordinator is garbled.
    Garbles,
    /// The connection is up, and nothing comes.
    IsSilent,
    /// The coordinator takes no report, and doesn't say so.
    TakesNothing,
    /// It refuses reports.
    TakesNone,
}

/// What the coordinator does when it is reached.
enum Act {
    Refuse(&'static str),
    Session(Vec<Order>, Then),
}

/// A coordinator that acts by a script, and then stays.
#[derive(Default)]
struct Coordinator {
    script: VecDeque<Act>,
    opened: Arc<AtomicUsize>,
    /// The number of looks for which the coordinator might be silent, at each attempt.
    looks: Arc<Mutex<Vec<u32>>>,
    greeted: Arc<Mutex<Vec<Hello>>>,
    reported: Arc<Mutex<Vec<Report>>>,
}

struct Up {
    then: Then,
    reported: Arc<Mutex<Vec<Report>>>,
}

struct Down {
    orders: VecDeque<Order>,
    then: Then,
    /// Signalled when the orders are given.
    given: Option<oneshot::Sender<()>>,
}

impl Door for Coordinator {
    type Sender = Up;
    type Receiver = Down;

    async fn open(
        &mut self,
        hello: &(impl Fn() -> Hello + Sync),
        looks: u32,
    ) -> Result<Line<'_, Up, Down>, SessionError> {
        self.opened.fetch_add(1, Ordering::AcqRel);
        lock(&self.looks).push(looks);
        let act = self.script.pop_front();
        let (orders, then) = match act.unwrap_or(Act::Session(Vec::new(), Then::Stays)) {
            Act::Refuse(why) => return Err(SessionError::Unreached(why.into())),
            Act::Session(orders, then) => (orders, then),
        };
        lock(&self.greeted).push(hello());
        let (given, all_given) = oneshot::channel();
        let care = async move {
            if then == Then::IsSilent {
                drop(all_given.await);
                return SessionError::Silent(Span(Duration::from_secs(3)));
            }
            pending().await
        };
        Ok(Line {
            sender: Up {
                then,
                reported: self.reported.clone(),
            },
            receiver: Down {
                orders: orders.into(),
                then,
                given: Some(given),
            },
            care: Box::pin(care),
        })
    }
}

impl Outgoing for Up {
    async fn send(&mut self, report: &Report) -> Result<(), SessionError> {
        match self.then {
            Then::TakesNothing => pending().await,
            Then::TakesNone => Err(wire::SendError::Ended.into()),
            _ => {
                lock(&self.reported).push(report.clone());
                Ok(())
            }
        }
    }
}

impl Incoming for Down {
    async fn receive(&mut self) -> Result<Option<Order>, SessionError> {
        if let Some(order) = self.orders.pop_front() {
            return Ok(Some(order));
        }
        drop(self.given.take());
        match self.then {
            Then::Ends => Ok(None),
            Then::Garbles => Err(ReceiveError::Truncated { received: 3 }.into()),
            _ => pending().await,
        }
    }
}

/// Keeps sessions with this coordinator as long as the driver runs.
async fn with<T>(
    mut coordinator: Coordinator,
    inbox: usize,
    driver: impl AsyncFnOnce(mpsc::Receiver<Heard>) -> T,
) -> T {
    let is_stuck = |act: &Act| matches!(act, Act::Session(_, Then::TakesNothing));
    let stuck = coordinator.script.iter().any(is_stuck);
    let (inbox, heard) = mpsc::channel(inbox);
    let pauses = Pauses::between(Duration::from_millis(1), Duration::from_millis(4));
    let asked = AtomicUsize::new(0);
    let hello = || Hello {
        version: format!("{}", asked.fetch_add(1, Ordering::AcqRel)),
        ..Hello::default()
    };
    let keeping = keep_through(&mut coordinator, "coordinator:1", pauses, hello, inbox);
    tokio::pin!(keeping);
    let both = async {
        let answer = tokio::select! {
            answer = driver(heard) => answer,
            () = &mut keeping => panic!("it ended before the driver"),
        };
        // a session that can't send is cancelled when the agent stops; any other ends with the driver
        if !stuck {
            keeping.await;
        }
        answer
    };
    let limit = tokio::time::timeout(Duration::from_secs(30), both);
    limit.await.expect("the session ends with the driver")
}

fn session(orders: Vec<Order>, then: Then) -> Act {
    Act::Session(orders, then)
}

fn script(acts: impl IntoIterator<Item = Act>) -> Coordinator {
    Coordinator {
        script: acts.into_iter().collect(),
        ..Coordinator::default()
    }
}

/// An order with a number, to tell it from others.
fn order(number: u64) -> Order {
    let names = Names {
        number,
        ..Names::default()
    };
    Order {
        kind: Some(order::Kind::Names(names)),
    }
}

/// A report with a number, to tell it from others.
fn report(names: u64) -> Report {
    Report {
        names,
        ..Report::default()
    }
}

async fn up(heard: &mut mpsc::Receiver<Heard>) -> mpsc::Sender<Report> {
    match heard.recv().await {
        Some(Heard::Up(reports)) => reports,
        other => panic!("{other:?}"),
    }
}

async fn down(heard: &mut mpsc::Receiver<Heard>) -> oneshot::Sender<()> {
    match heard.recv().await {
        Some(Heard::Down(taken_in)) => taken_in,
        other => panic!("{other:?}"),
    }
}

/// Lets the session do all that it can do now.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn orders_come_one_after_another_between_up_and_down() {
    let orders: Vec<_> = (0..100).map(order).collect();
    let coordinator = script([session(orders.clone(), Then::Ends)]);
    // a driver that is behind slows the coordinator down, and loses nothing
    let heard = with(coordinator, 1, async |mut heard| {
        let _reports = up(&mut heard).await;
        let mut all = Vec::new();
        loop {
            settle().await;
            match heard.recv().await {
                Some(Heard::Order(order)) => all.push(*order),
                Some(Heard::Down(_)) => return all,
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(heard.await, orders);
}

#[tokio::test]
async fn reports_go_up_in_the_order_in_which_they_were_given() {
    let coordinator = script([]);
    let reported = coordinator.reported.clone();
    with(coordinator, 4, async |mut heard| {
        let reports = up(&mut heard).await;
        for number in 0..20 {
            reports.send(report(number)).await.unwrap();
        }
        // the session ends with its reports, and all of them have left by then
        drop(reports);
        drop(down(&mut heard).await);
    })
    .await;
    let numbers: Vec<_> = lock(&reported).iter().map(|report| report.names).collect();
    assert_eq!(numbers, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_coordinator_that_takes_nothing_lets_a_few_reports_wait_and_no_more() {
    let coordinator = script([session(Vec::new(), Then::TakesNothing)]);
    with(coordinator, 4, async |mut heard| {
        let reports = up(&mut heard).await;
        reports.send(report(0)).await.unwrap();
        // that report is on its way
        settle().await;
        for number in 0..REPORTS as u64 {
            reports.try_send(report(number)).unwrap();
        }
        // the driver keeps what doesn't fit, and says the newest later
        assert!(reports.try_send(report(99)).is_err());
    })
    .await;
}

#[tokio::test]
async fn a_coordinator_that_refuses_a_report_ends_the_session_and_not_the_agent() {
    let coordinator = script([session(Vec::new(), Then::TakesNone)]);
    let opened = coordinator.opened.clone();
    with(coordinator, 4, async |mut heard| {
        let reports = up(&mut heard).await;
        reports.send(report(0)).await.unwrap();
        drop(down(&mut heard).await);
        let _reports = up(&mut heard).await;
    })
    .await;
    assert_eq!(opened.load(Ordering::Acquire), 2);
}

#[tokio::test]
async fn what_is_no_order_ends_the_session_behind_the_orders_before_it() {
    let coordinator = script([session(vec![order(1)], Then::Garbles)]);
    with(coordinator, 4, async |mut heard| {
        let _reports = up(&mut heard).await;
        let first = heard.recv().await;
        assert!(matches!(first, Some(Heard::Order(first)) if *first == order(1)));
        drop(down(&mut heard).await);
        let _reports = up(&mut heard).await;
    })
    .await;
}

#[tokio::test]
async fn the_next_attempt_waits_until_the_driver_has_taken_the_end_in() {
    let coordinator = script([session(Vec::new(), Then::Ends)]);
    let opened = coordinator.opened.clone();
    with(coordinator, 4, async |mut heard| {
        let _reports = up(&mut heard).await;
        let taken_in = down(&mut heard).await;
        settle().await;
        assert_eq!(opened.load(Ordering::Acquire), 1);
        assert!(!taken_in.is_closed(), "it waits for that");
        drop(taken_in);
        let _reports = up(&mut heard).await;
        assert_eq!(opened.load(Ordering::Acquire), 2);
    })
    .await;
}

#[tokio::test]
async fn a_coordinator_that_is_not_reached_is_tried_again_and_the_driver_hears_nothing_of_it() {
    let refusals = (0..5).map(|_| Act::Refuse("no answer"));
    let coordinator = script(refusals);
    let opened = coordinator.opened.clone();
    with(coordinator, 4, async |mut heard| {
        let _reports = up(&mut heard).await;
    })
    .await;
    assert_eq!(opened.load(Ordering::Acquire), 6);
}

#[tokio::test]
async fn each_session_begins_with_what_is_so_by_then() {
    let ends = || session(Vec::new(), Then::Ends);
    let coordinator = script([Act::Refuse("no answer"), ends(), ends()]);
    let greeted = coordinator.greeted.clone();
    with(coordinator, 4, async |mut heard| {
        for _ in 0..2 {
            let _reports = up(&mut heard).await;
            drop(down(&mut heard).await);
        }
        let _reports = up(&mut heard).await;
    })
    .await;
    let versions: Vec<_> = lock(&greeted)
        .iter()
        .map(|hello| hello.version.clone())
        .collect();
    // a coordinator that isn't reached isn't greeted
    assert_eq!(versions, ["0", "1", "2"]);
}

#[tokio::test]
async fn silence_makes_the_agent_more_patient_and_other_ends_do_not() {
    let silent = || session(Vec::new(), Then::IsSilent);
    let ends = session(Vec::new(), Then::Ends);
    let coordinator = script([silent(), ends, silent(), silent(), silent()]);
    let looks = coordinator.looks.clone();
    with(coordinator, 4, async |mut heard| {
        for _ in 0..5 {
            let _reports = up(&mut heard).await;
            drop(down(&mut heard).await);
        }
        let _reports = up(&mut heard).await;
    })
    .await;
    assert_eq!(*lock(&looks), [6, 12, 12, 20, 20, 20]);
}

#[tokio::test]
async fn a_driver_that_ends_is_not_waited_for() {
    let coordinator = script([session(vec![order(1)], Then::IsSilent)]);
    // an order and the end wait for it, and nobody takes them
    with(coordinator, 1, async |mut heard| {
        let _reports = up(&mut heard).await;
        settle().await;
    })
    .await;
}
