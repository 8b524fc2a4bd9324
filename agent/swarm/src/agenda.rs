//! The swarm's agenda: what the current event may have made possible, and the next moment at which something is due.

use core::time::Duration;

use proto::Moment;

/// How often time-outs, announcements and retries are looked at. Each of their times is much longer.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// How often when nothing is wanted and nobody waits.
const IDLE_TICK: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Agenda {
    tick_at: Moment,
    /// The moment before the next tick at which something can go on.
    soon: Option<Moment>,
    pull: bool,
    assign: bool,
    order: bool,
    upload: bool,
}

impl Agenda {
    pub(crate) const fn new() -> Self {
        Self {
            tick_at: Moment::START,
            soon: None,
            pull: false,
            assign: false,
            order: false,
            upload: false,
        }
    }

    // ---- what has become possible ---------------------------------------------------------------------------------

    /// Chunks may be asked for.
    pub(crate) const fn pull(&mut self) {
        self.pull = true;
    }

    /// Fresh chunks may find a spreader.
    pub(crate) const fn assign(&mut self) {
        self.assign = true;
    }

    /// More may be ordered from the registry.
    pub(crate) const fn order(&mut self) {
        self.order = true;
    }

    /// Uploads may begin.
    pub(crate) const fn upload(&mut self) {
        self.upload = true;
    }

    pub(crate) const fn all(&mut self) {
        self.pull = true;
        self.assign = true;
        self.order = true;
        self.upload = true;
    }

    pub(crate) const fn take_pull(&mut self) -> bool {
        core::mem::replace(&mut self.pull, false)
    }

    pub(crate) const fn take_assign(&mut self) -> bool {
        core::mem::replace(&mut self.assign, false)
    }

    pub(crate) const fn take_order(&mut self) -> bool {
        core::mem::replace(&mut self.order, false)
    }

    pub(crate) const fn take_upload(&mut self) -> bool {
        core::mem::replace(&mut self.upload, false)
    }

    // ---- time -----------------------------------------------------------------------------------------------------

    /// Something new is wanted: the next tick comes soon.
    pub(crate) fn wake(&mut self, now: Moment) {
        self.tick_by(now + TICK);
        self.pull();
        self.order();
    }

    /// Spreaders and uploads are looked for again at this moment, if not before.
    pub(crate) fn wake_at(&mut self, due: Moment) {
        self.soon = Some(self.soon.map_or(due, |soon| soon.min(due)));
    }

    /// The next tick comes at this moment, if not before.
    pub(crate) fn tick_by(&mut self, due: Moment) {
        self.tick_at = self.tick_at.min(due);
    }

    /// The next tick comes at once.
    pub(crate) const fn tick_now(&mut self, now: Moment) {
        self.tick_at = now;
    }

    /// Notes that time passed. Returns whether a tick is due.
    pub(crate) fn pass(&mut self, now: Moment) -> bool {
        if self.soon.is_some_and(|soon| soon <= now) {
            self.soon = None;
            self.assign();
            self.upload();
        }
        now >= self.tick_at
    }

    /// A tick begins. `busy`: something is wanted, or somebody waits.
    pub(crate) fn tick(&mut self, now: Moment, busy: bool) {
        self.tick_at = now + if busy { TICK } else { IDLE_TICK };
    }

    /// The next moment at which the swarm has to hear of the time.
    pub(crate) fn next(&self) -> Moment {
        self.soon.map_or(self.tick_at, |at| at.min(self.tick_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(millis * 1_000)
    }

    #[test]
    fn a_tick_comes_sooner_where_something_is_wanted() {
        let mut agenda = Agenda::new();
        agenda.tick(at(0), true);
        assert!(!agenda.pass(at(249)));
        assert!(agenda.pass(at(250)));
        agenda.tick(at(250), false);
        assert_eq!(agenda.next(), at(2_250));
        agenda.wake(at(300));
        assert_eq!(agenda.next(), at(550));
    }

    #[test]
    fn what_is_due_soon_is_no_tick() {
        let mut agenda = Agenda::new();
        agenda.tick(at(0), false);
        agenda.wake_at(at(7));
        agenda.wake_at(at(9));
        assert_eq!(agenda.next(), at(7));
        assert!(!agenda.pass(at(6)) && !agenda.take_upload());
        assert!(!agenda.pass(at(7)));
        assert!(agenda.take_upload() && agenda.take_assign());
        assert!(!agenda.take_upload() && !agenda.take_pull());
        assert_eq!(agenda.next(), at(2_000));
    }
}
