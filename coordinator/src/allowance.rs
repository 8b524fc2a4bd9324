//! Allowances of tries: how often each address may try before it has to wait. They are for tries that nobody vouches
//! for, such as tokens that turn out to be made up.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

/// The most addresses whose allowances are kept. All other addresses share one allowance.
const ADDRESSES: usize = 4_096;

/// Allowances by address. An address stands for the part of the address space that one machine may have: see
/// [`wire::network`].
#[derive(Debug)]
pub(crate) struct Allowances {
    /// The most tries that an address has at hand, and the time until it has one more.
    most: u32,
    every: Duration,
    by_address: BTreeMap<IpAddr, Allowance>,
}

#[derive(Clone, Copy, Debug)]
struct Allowance {
    left: u32,
    /// The moment for which `left` is true.
    at: Instant,
}

impl Allowances {
    pub(crate) const fn new(most: u32, every: Duration) -> Self {
        Self {
            most,
            every,
            by_address: BTreeMap::new(),
        }
    }

    /// Takes a try off the address's allowance. Returns whether there was one.
    pub(crate) fn take(&mut self, from: IpAddr, now: Instant) -> bool {
        let (most, every) = (self.most, self.every);
        if self.by_address.len() >= ADDRESSES && !self.by_address.contains_key(&from) {
            self.by_address
                .retain(|_, allowance| allowance.counted(most, every, now).left < most);
        }
        let others = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        let room = self.by_address.len() < ADDRESSES || self.by_address.contains_key(&from);
        let from = if room { from } else { others };
        let full = Allowance {
            left: most,
            at: now,
        };
        let allowance = self.by_address.entry(from).or_insert(full);
        *allowance = allowance.counted(most, every, now);
        let may = allowance.left > 0;
        allowance.left = allowance.left.saturating_sub(1);
        may
    }

    /// A try turned out good, so it costs nothing.
    pub(crate) fn give_back(&mut self, from: IpAddr) {
        if let Some(allowance) = self.by_address.get_mut(&from) {
            allowance.left = (allowance.left + 1).min(self.most);
        }
    }
}

impl Allowance {
    /// The same allowance, with the tries that came back until `now`.
    fn counted(self, most: u32, every: Duration, now: Instant) -> Self {
        let since = now.saturating_duration_since(self.at);
        let more = since.as_millis() / every.as_millis();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let left = self.left.saturating_add(more).min(most);
        // the rest of an interval counts towards the next try
        let at = match left == most {
            true => now,
            false => self.at + every * more,
        };
        Self { left, at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowances_grow_back_and_are_bounded() {
        const MOST: u32 = 20;
        const EVERY: Duration = Duration::from_secs(2);
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let (mut allowances, now) = (Allowances::new(MOST, EVERY), Instant::now());
        for _ in 0..MOST {
            assert!(allowances.take(ip(1), now));
        }
        assert!(!allowances.take(ip(1), now));
        assert!(!allowances.take(ip(1), now + EVERY - Duration::from_millis(1)));
        assert!(allowances.take(ip(1), now + EVERY));
        assert!(!allowances.take(ip(1), now + EVERY));
        allowances.give_back(ip(1));
        assert!(allowances.take(ip(1), now + EVERY));
        let later = now + EVERY * (MOST + 1);
        let taken = (0..2 * MOST)
            .filter(|_| allowances.take(ip(1), later))
            .count();
        assert_eq!(taken, 20);
        for address in 0..3 * u32::try_from(ADDRESSES).unwrap() {
            allowances.take(IpAddr::V4((address + 1).into()), later);
            assert!(allowances.by_address.len() <= ADDRESSES + 1);
        }
    }
}
