//! Names on hosts: what each reference shall name there, told by numbered orders, and what of a host's words counts.

use std::collections::{BTreeMap, BTreeSet};

use proto::{Digest, HostId, Moment, message};
use rollout::presence::Holdings;

use super::{Driver, Host, orders::kind};

impl Driver {
    /// What is wanted somewhere under some name may have changed.
    pub(super) fn names_changed(&mut self) {
        self.names_due.extend(self.hosts.keys().cloned());
    }

    /// Tells hosts what their names are, where that changed, after the orders to stage what is named.
    pub(super) fn tell_names(&mut self, now: Moment) {
        if self.names_due.is_empty() {
            return;
        }
        let number = self.claims.advance();
        let whole = self.wants_are_known();
        for host in std::mem::take(&mut self.names_due) {
            let names = self.claims.on(&host);
            let Some(known) = self.hosts.get_mut(&host) else {
                continue;
            };
            let news = known.told.tell(now, number, whole, &names);
            let takes_names = known.told.confirms();
            if let Some(session) = known.session.as_mut().filter(|_| whole) {
                // an image that isn't named is dropped there: it is to be ordered again when it is wanted again
                let named = |image: &Digest| names.values().any(|(named, _)| named == image);
                session
                    .has
                    .retain(|image, order| named(image) || *order == 0);
            }
            self.count_presence(&host);
            // an earlier agent doesn't know the order, and takes its names from those to stage
            if news && takes_names {
                self.order(&host, names_order(number, whole, &names));
            }
        }
    }

    /// Whether the host has the image, whole, under every name that is wanted there, by a word that is younger than the last
    /// ask for it.
    pub(super) fn is_present(known: &Host, image: &Digest) -> bool {
        known.told.is_present(image, known.word.said.get(image))
    }

    /// Publishes what of a host's word counts: not that a reference names an image there, where the host was told of another
    /// since.
    pub(super) fn count_presence(&mut self, host: &HostId) {
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        let mut holdings = Holdings::new();
        for (image, said) in &known.word.said {
            let counted = said
                .iter()
                .filter(|reference| known.told.counts(reference, image));
            let counted: BTreeSet<String> = counted.cloned().collect();
            if !counted.is_empty() {
                holdings.insert(*image, counted);
            }
        }
        if *known.word.holdings != holdings {
            known.word.holdings = holdings.into();
            self.presence_changed = true;
        }
    }
}

fn names_order(
    number: u64,
    whole: bool,
    names: &BTreeMap<String, (Digest, u64)>,
) -> message::Order {
    let names = names.iter().map(|(reference, (image, _))| message::Name {
        reference: reference.clone(),
        manifest_digest: image.as_bytes().to_vec(),
    });
    kind(message::order::Kind::Names(message::Names {
        number,
        names: names.collect(),
        whole,
    }))
}
