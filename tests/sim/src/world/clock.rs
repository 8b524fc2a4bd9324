//! Time, and what is to happen in it.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use crate::{entry::Entry, network::Nanos};

use super::due::{Due, Message};

/// The time, the events to come and the messages under way.
///
/// Events lie in a heap by time. Messages all take the same delay, so they lie in a queue.
#[derive(Debug)]
pub(super) struct Clock {
    now: Nanos,
    /// How long each message is under way.
    delay: Nanos,
    sequence: u64,
    due: BinaryHeap<Reverse<Entry<Nanos, Due>>>,
    wire: VecDeque<(Nanos, Message)>,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Next {
    /// An event happens.
    Due(Due),
    /// A message comes in.
    Message(Message),
}

impl Clock {
    /// Nothing is to come. The delay is that of each message.
    pub(super) const fn new(delay: Nanos) -> Self {
        Self {
            now: 0,
            delay,
            sequence: 0,
            due: BinaryHeap::new(),
            wire: VecDeque::new(),
        }
    }

    /// Nanoseconds since the beginning.
    pub(super) const fn now(&self) -> Nanos {
        self.now
    }

    /// Plans an event. Of two events at the same moment the one that was planned first comes first.
    pub(super) fn at(&mut self, at: Nanos, due: Due) {
        self.sequence += 1;
        self.due.push(Reverse(Entry {
            at,
            sequence: self.sequence,
            due,
        }));
    }

    /// Sends a message.
    pub(super) fn send(&mut self, message: Message) {
        self.wire.push_back((self.now + self.delay, message));
    }

    /// Goes on to what comes next, a message before an event at the same moment. `None`: nothing is to come.
    pub(super) fn next(&mut self) -> Option<Next> {
        let wire_at = self.wire.front().map_or(u64::MAX, |(at, _)| *at);
        let due_at = self.due.peek().map_or(u64::MAX, |Reverse(entry)| entry.at);
        if wire_at <= due_at {
            let (at, message) = self.wire.pop_front()?;
            self.now = at;
            Some(Next::Message(message))
        } else {
            let Reverse(entry) = self.due.pop()?;
            self.now = entry.at;
            Some(Next::Due(entry.due))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Nanos = 100;

    /// What comes next, and when.
    fn next(clock: &mut Clock) -> Option<(Nanos, String)> {
        let next = clock.next()?;
        Some((clock.now(), format!("{next:?}")))
    }

    fn offer(at: u32) -> Message {
        Message::Offer(crate::network::TransferId { at, use_: 0 })
    }

    #[test]
    fn events_come_by_time_and_in_the_order_of_planning_at_one_moment() {
        let mut clock = Clock::new(DELAY);
        clock.at(20, Due::Rogue(3));
        clock.at(10, Due::Rogue(1));
        clock.at(20, Due::Rogue(2));
        assert_eq!(next(&mut clock), Some((10, "Due(Rogue(1))".into())));
        assert_eq!(next(&mut clock), Some((20, "Due(Rogue(3))".into())));
        assert_eq!(next(&mut clock), Some((20, "Due(Rogue(2))".into())));
        assert_eq!(next(&mut clock), None);
        assert_eq!(clock.now(), 20, "time stands when nothing is to come");
    }

    #[test]
    fn a_message_comes_after_the_delay_and_before_an_event_of_that_moment() {
        let mut clock = Clock::new(DELAY);
        clock.at(DELAY - 1, Due::Rogue(1));
        clock.at(DELAY, Due::Rogue(2));
        clock.send(offer(7));
        assert_eq!(next(&mut clock), Some((99, "Due(Rogue(1))".into())));
        let (at, what) = next(&mut clock).expect("the message");
        assert!(at == DELAY && what.starts_with("Message(Offer"), "{what}");
        assert_eq!(next(&mut clock), Some((100, "Due(Rogue(2))".into())));
        clock.send(offer(8));
        assert!(next(&mut clock).is_some_and(|(at, _)| at == 2 * DELAY));
    }
}
