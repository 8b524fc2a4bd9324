//! The signed links of one content that are false, and what isn't taken of their makers any more.
//!
//! A link that a host made can be false through the registry's fault, or because it went on from another host's false
//! link. So one false run costs its maker that run. A liar can sign each invention as a run of its own, and gets a new
//! ticket with every lease: so false runs are counted by ticket and by maker too. What a maker *vouches* for is taken
//! all the same: an honest host that made false links vouches once its own copy is verified.

use std::{collections::BTreeMap, sync::Arc};

use proto::{HostKey, Signed, statement::Run};

/// False runs under one ticket, from which on nothing under that ticket is taken. An honest host makes a second run
/// where the registry's bytes were false the first time.
const RUNS_OF_TICKET: usize = 3;

/// False runs of one maker, from which on nothing that it made of the content is taken. More than two leases' worth: an
/// honest host is misled once by each lease that goes on behind a liar's link.
const RUNS_OF_MAKER: usize = 8;

/// The false links of a content that isn't verified yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Suspects {
    /// By maker, the last false link of each run. The authority signs tickets, so there are no more makers than hosts,
    /// and each has [`RUNS_OF_MAKER`] made runs and a vouched one at most.
    by_maker: BTreeMap<HostKey, Vec<Signed>>,
}

impl Suspects {
    /// Notes a signed link that is false. Whether nothing that its maker made is taken from now on: what is held of it
    /// is dropped then, or each ticket under which it lies would cost a walk.
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

    /// Whether no link of this run is taken.
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

    /// The false links, to be judged: the content is verified.
    pub(crate) fn take(self: &mut Arc<Self>) -> Vec<Signed> {
        let all = std::mem::take(self);
        all.by_maker.values().flatten().cloned().collect()
    }
}

fn made(known: &[Signed]) -> usize {
    let made = |signed: &&Signed| !signed.statement.run.is_vouched();
    known.iter().filter(made).count()
}
