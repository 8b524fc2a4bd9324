//! The signed links of one content that are false, and the runs that aren't taken any more because of them.
//!
//! A link that a host made can be false through the registry's fault, or because it went on from another host's false
//! link. So a false run only costs its maker that run. A liar can sign each invention as a run of its own, and gets a
//! new ticket with each lease. So false runs are counted by ticket and by maker too. Links that a maker *vouches* for
//! are taken all the same: an honest host that made false links vouches once its own copy is verified.

use std::{collections::BTreeMap, sync::Arc};

use proto::{HostKey, Signed, statement::Run};

/// After this many false runs under one ticket, nothing under that ticket is taken. An honest host makes a second run
/// if the registry's bytes were false the first time.
const RUNS_OF_TICKET: usize = 3;

/// After this many false runs of one maker, no link of the content that it made is taken. This is more than two leases'
/// worth: each lease that goes on behind a liar's link misleads an honest host once.
const RUNS_OF_MAKER: usize = 8;

/// The false links of a content that isn't verified yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Suspects {
    /// The last false link of each run, by maker. The authority signs tickets, so there are no more makers than hosts.
    /// Each maker has at most [`RUNS_OF_MAKER`] made runs and a vouched one.
    by_maker: BTreeMap<HostKey, Vec<Signed>>,
}

impl Suspects {
    /// Notes a signed link that is false. Returns whether no more links that its maker made are taken from now on. The
    /// caller then drops the maker's links that are held: otherwise each of the maker's tickets would cost a walk.
    pub(crate) fn note(&mut self, signed: Signed) -> bool {
        let maker = signed.maker().key();
        let known = self.by_maker.entry(maker).or_default();
        let run = &signed.statement.run;
        let same = |other: &&mut Signed| other.statement.run.is_same(run);
        if let Some(known) = known.iter_mut().find(same) {
            if known.chunk < signed.chunk {
                *known = signed;
            }
            return false;
        }
        let (made, vouched) = (made(known), run.is_vouched());
        if vouched || made < RUNS_OF_MAKER {
            known.push(signed);
        }
        !vouched && made + 1 == RUNS_OF_MAKER
    }

    /// Whether links of this run are refused.
    pub(crate) fn refuse(&self, run: &Run) -> bool {
        let Some(known) = self.by_maker.get(&run.ticket().maker().key()) else {
            return false;
        };
        let runs = || known.iter().map(|signed| &signed.statement.run);
        let of_ticket = runs().filter(|other| other.shares_ticket(run)).count();
        runs().any(|other| other.is_same(run))
            || of_ticket >= RUNS_OF_TICKET
            || !run.is_vouched() && made(known) >= RUNS_OF_MAKER
    }

    /// Takes out the false links, which are judged once the content is verified.
    pub(crate) fn take(self: &mut Arc<Self>) -> Vec<Signed> {
        let all = std::mem::take(self);
        all.by_maker.values().flatten().cloned().collect()
    }
}

fn made(known: &[Signed]) -> usize {
    let made = |signed: &&Signed| !signed.statement.run.is_vouched();
    known.iter().filter(made).count()
}
