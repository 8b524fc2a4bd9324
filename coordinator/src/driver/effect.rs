//! Effects: what a part wants done outside of itself. The driver's loop carries effects out in the order in which the
//! part noted them.

use std::sync::Arc;

use proto::{HostId, message};
use rollout::stage::Event;

use super::{order::Addressed, writer::Write};

/// One thing that a part can't do by itself.
#[derive(Debug)]
pub(super) enum Effect {
    /// Tell the plan of an event.
    Tell(Event),
    /// Send an order to a host.
    Order(HostId, Arc<message::Order>),
    /// Write state to disk.
    Write(Write),
    /// The names of images on hosts may have changed.
    NamesChanged,
}

/// Effects, in the order in which they are carried out.
#[derive(Debug, Default)]
pub(super) struct Effects(Vec<Effect>);

impl Effects {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.0.push(Effect::Tell(event));
    }

    pub(super) fn order(&mut self, host: &HostId, order: message::Order) {
        self.0.push(Effect::Order(host.clone(), Arc::new(order)));
    }

    pub(super) fn send(&mut self, orders: impl IntoIterator<Item = Addressed>) {
        let orders = orders.into_iter();
        let orders = orders.map(|(host, order)| Effect::Order(host, order));
        self.0.extend(orders);
    }

    /// Adds these effects behind those that are there.
    pub(super) fn append(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    pub(super) fn write(&mut self, write: Write) {
        self.0.push(Effect::Write(write));
    }

    pub(super) fn names_changed(&mut self) {
        self.0.push(Effect::NamesChanged);
    }
}

impl IntoIterator for Effects {
    type Item = Effect;
    type IntoIter = std::vec::IntoIter<Effect>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
