//! What parts want done. The loop carries it out, in the order in which it was noted.

use std::sync::Arc;

use proto::{HostId, message};
use rollout::stage::Event;

use super::{order::Addressed, writer::Write};

/// Something that a part can't do by itself.
#[derive(Debug)]
pub(super) enum Effect {
    /// The plan is told.
    Tell(Event),
    /// A host is ordered something.
    Order(HostId, Arc<message::Order>),
    /// State is written down.
    Write(Write),
    /// What references name on hosts may have changed.
    NamesChanged,
}

/// Effects, first to last.
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
