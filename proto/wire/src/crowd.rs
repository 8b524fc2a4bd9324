//! Places for connections of clients that haven't proved yet who they are.
//!
//! Anyone who reaches a port can connect and then say nothing. With one limit for all clients, one machine could keep
//! all others out. With a limit for each address, a fleet behind one translated address would be turned away. So there
//! is one limit, and when it is reached, a connection that waits for its client gives way: see [`Crowd::enter`].

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::lock::lock;

/// The most addresses that are remembered because a host of the fleet was let in from them: enough for two of the
/// largest fleets.
const MAX_MET: usize = 8_192;

/// The places of one server, shared out by address. Clones are the same crowd.
#[derive(Clone, Debug)]
pub struct Crowd(Arc<Mutex<Places>>);

/// One connection's place. Dropping it frees the place.
#[derive(Debug)]
pub struct Place {
    crowd: Crowd,
    number: u64,
    lost: CancellationToken,
}

/// While this lives, the server works for the connection of a place.
#[derive(Debug)]
pub struct Work(Arc<Place>);

/// The unit that gets a fair share of the places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group(IpAddr);

impl Group {
    fn of(address: IpAddr) -> Self {
        Self(network(address))
    }
}

/// The part of the address space that one machine has: an IPv4 address, or an IPv6 network of 64 bits. For counting by
/// address.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() >> 64 << 64;
            Ipv6Addr::from_bits(network).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[derive(Debug)]
struct Places {
    most: usize,
    /// How many of these places only known addresses get.
    reserved: usize,
    /// A connection that has waited for this long also gives way to one from an address with as many places.
    grace: Duration,
    held: BTreeMap<u64, Held>,
    next: u64,
    /// Addresses that the server's owner named.
    expected: BTreeSet<Group>,
    /// Addresses from which hosts were let in, by the order in which that first happened.
    met: BTreeMap<Group, u64>,
}

#[derive(Debug)]
struct Held {
    group: Group,
    known: bool,
    /// Since when the connection waits for its client.
    since: Instant,
    /// The requests that the server works on. A connection with one doesn't wait for its client, and doesn't give way.
    work: usize,
    lost: CancellationToken,
}

impl Crowd {
    /// A crowd of at most `most` places. Only known addresses get the last `reserved` of these.
    #[must_use]
    pub fn new(most: usize, reserved: usize, grace: Duration) -> Self {
        Self(Arc::new(Mutex::new(Places {
            most: most.max(1),
            reserved: reserved.min(most.saturating_sub(1)),
            grace,
            held: BTreeMap::new(),
            next: 0,
            expected: BTreeSet::new(),
            met: BTreeMap::new(),
        })))
    }

    /// A place for a client that comes from this address.
    ///
    /// Where no place is free, a connection that waits for its client gives way: of the address that holds most places,
    /// the one that has waited longest. It gives way at once to an address that holds fewer places, counted with the
    /// new one. After the time of grace, it also gives way to an address that holds as many, or to its own address. A
    /// known address doesn't give way to an unknown one. `None` where no connection gives way: the caller turns the
    /// client away.
    #[must_use]
    pub fn enter(&self, address: IpAddr, now: Instant) -> Option<Place> {
        let (number, lost) = self.lock().enter(Group::of(address), now)?;
        Some(Place {
            crowd: self.clone(),
            number,
            lost,
        })
    }

    /// The number of places that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.lock().held.len()
    }

    /// Makes these addresses known, in place of those that were expected before.
    pub fn expect(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.lock().expected = addresses.into_iter().map(Group::of).collect();
    }

    /// Makes this address known, because a client from there has proved who it is.
    pub fn met(&self, address: IpAddr) {
        self.lock().meet(Group::of(address));
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        lock(&self.0)
    }
}

impl Place {
    /// Waits until the place is given to another client. Cancel safe.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Marks that the server works on a request of this connection, which has come whole. The connection doesn't give
    /// way until the result is dropped.
    #[must_use]
    pub fn work(self: &Arc<Self>) -> Work {
        if let Some(held) = self.crowd.lock().held.get_mut(&self.number) {
            held.work += 1;
        }
        Work(self.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.lock().held.remove(&self.number);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(held) = self.0.crowd.lock().held.get_mut(&self.0.number) {
            held.work -= 1;
            held.since = Instant::now();
        }
    }
}

impl Places {
    fn enter(&mut self, group: Group, now: Instant) -> Option<(u64, CancellationToken)> {
        let known = self.expected.contains(&group) || self.met.contains_key(&group);
        let strangers = self.held.values().filter(|held| !held.known).count();
        let full = self.held.len() >= self.most;
        if full || (!known && strangers >= self.most - self.reserved) {
            let gives_way = self.gives_way(group, known, now)?;
            if let Some(held) = self.held.remove(&gives_way) {
                held.lost.cancel();
            }
        }
        let (number, lost) = (self.next, CancellationToken::new());
        self.next += 1;
        self.held.insert(
            number,
            Held {
                group,
                known,
                since: now,
                work: 0,
                lost: lost.clone(),
            },
        );
        Some((number, lost))
    }

    fn gives_way(&self, group: Group, known: bool, now: Instant) -> Option<u64> {
        let mut counts: BTreeMap<Group, usize> = BTreeMap::new();
        for held in self.held.values() {
            *counts.entry(held.group).or_default() += 1;
        }
        let of = |group: &Group| counts.get(group).copied().unwrap_or_default();
        let mine = of(&group) + 1;
        let may = |held: &Held| {
            let aged = now.saturating_duration_since(held.since) >= self.grace;
            let theirs = of(&held.group);
            // an unknown client takes no place from a known one
            held.work == 0
                && (known || !held.known)
                && (theirs > mine || (aged && (theirs >= mine || held.group == group)))
        };
        self.held
            .iter()
            .filter(|(_, held)| may(held))
            .min_by_key(|(_, held)| (Reverse(of(&held.group)), held.since))
            .map(|(number, _)| *number)
    }

    fn meet(&mut self, group: Group) {
        let order = self.next;
        self.next += 1;
        self.met.entry(group).or_insert(order);
        if self.met.len() > MAX_MET
            && let Some(oldest) = self.met.iter().min_by_key(|(_, order)| **order)
        {
            let oldest = *oldest.0;
            self.met.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(1);

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn lost(places: &[Place]) -> usize {
        places
            .iter()
            .filter(|place| place.lost.is_cancelled())
            .count()
    }

    #[test]
    fn one_address_that_holds_every_place_keeps_no_other_out() {
        let (crowd, now) = (Crowd::new(512, 0, GRACE), Instant::now());
        let silent: Vec<_> = (0..512).map(|_| crowd.enter(ip(1), now).unwrap()).collect();
        assert!(crowd.enter(ip(1), now).is_none(), "its own are young");
        let others: Vec<_> = (2..=200)
            .map(|n| crowd.enter(ip(n), now).unwrap())
            .collect();
        assert_eq!((lost(&silent), lost(&others)), (199, 0));
        assert!(silent[..199].iter().all(|place| place.lost.is_cancelled()));
        assert_eq!(crowd.held(), 512);
        drop(silent);
        assert_eq!(crowd.held(), 199, "who lost its place frees no other's");
    }

    #[test]
    fn of_one_address_the_one_that_waited_longest_gives_way_after_its_grace() {
        let (crowd, now) = (Crowd::new(2, 0, GRACE), Instant::now());
        let first = crowd.enter(ip(1), now).unwrap();
        let second = crowd.enter(ip(1), now + GRACE / 2).unwrap();
        assert!(
            crowd
                .enter(ip(1), now + GRACE - Duration::from_millis(1))
                .is_none()
        );
        let third = crowd.enter(ip(1), now + GRACE).unwrap();
        assert!(first.lost.is_cancelled());
        assert!(!second.lost.is_cancelled() && !third.lost.is_cancelled());
    }

    #[test]
    fn who_comes_from_as_many_addresses_as_there_are_places_waits_for_a_grace_at_most() {
        let (crowd, now) = (Crowd::new(3, 0, GRACE), Instant::now());
        let silent: Vec<_> = (1..=3).map(|n| crowd.enter(ip(n), now).unwrap()).collect();
        assert!(crowd.enter(ip(9), now).is_none());
        let late = crowd.enter(ip(9), now + GRACE).unwrap();
        assert_eq!(lost(&silent), 1);
        // a second connection from there would take its place from an address that holds fewer
        assert!(!late.lost.is_cancelled());
    }

    #[test]
    fn what_the_server_works_on_does_not_give_way() {
        let (crowd, now) = (Crowd::new(2, 0, GRACE), Instant::now());
        let busy = Arc::new(crowd.enter(ip(1), now).unwrap());
        let work = (busy.work(), busy.work());
        let idle = crowd.enter(ip(1), now).unwrap();
        let _other = crowd.enter(ip(2), now).unwrap();
        assert!(idle.lost.is_cancelled() && !busy.lost.is_cancelled());
        drop(work.0);
        assert!(
            crowd.enter(ip(3), now + 2 * GRACE).is_some(),
            "the other is aged"
        );
        drop(work.1);
        assert!(!busy.lost.is_cancelled());
    }

    #[test]
    fn half_of_the_places_are_for_addresses_that_are_known() {
        let (crowd, now) = (Crowd::new(8, 4, GRACE), Instant::now());
        crowd.expect([ip(1)]);
        crowd.met(ip(2));
        let strangers: Vec<_> = (0..4).map(|_| crowd.enter(ip(9), now).unwrap()).collect();
        assert!(crowd.enter(ip(9), now).is_none());
        let stranger = crowd.enter(ip(8), now).unwrap();
        assert_eq!(lost(&strangers), 1, "strangers share what is theirs");
        let known: Vec<_> = (0..4)
            .map(|n| crowd.enter(ip(1 + n % 2), now).unwrap())
            .collect();
        assert_eq!((lost(&strangers), lost(&known)), (1, 0));
        assert!(!stranger.lost.is_cancelled());
        // a stranger takes nothing from them, however old they are
        drop(strangers);
        drop(stranger);
        let more: Vec<_> = (0..4)
            .map(|_| crowd.enter(ip(7), now + 2 * GRACE).unwrap())
            .collect();
        assert!(crowd.enter(ip(7), now + 2 * GRACE).is_none());
        assert_eq!((lost(&known), lost(&more)), (0, 0));
        crowd.expect([]);
        assert!(
            crowd.enter(ip(1), now + 2 * GRACE).is_some(),
            "as a stranger now"
        );
        assert_eq!(lost(&more), 1);
    }

    #[test]
    fn an_ipv6_machine_has_one_share_however_many_addresses_it_has() {
        let (crowd, now) = (Crowd::new(4, 0, GRACE), Instant::now());
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let held: Vec<_> = (0..4)
            .map(|n| crowd.enter(at(&format!("2001:db8::{n}")), now).unwrap())
            .collect();
        assert!(crowd.enter(at("2001:db8::ffff:1"), now).is_none());
        let _other = crowd.enter(at("2001:db8:0:1::1"), now).unwrap();
        let _mapped = crowd.enter(at("::ffff:10.0.0.1"), now).unwrap();
        assert_eq!(lost(&held), 2);
    }

    #[test]
    fn addresses_that_were_met_are_bounded() {
        let crowd = Crowd::new(2, 1, GRACE);
        for n in 0..2 * u32::try_from(MAX_MET).unwrap() {
            crowd.met(IpAddr::V4(n.into()));
        }
        assert_eq!(crowd.lock().met.len(), MAX_MET);
    }
}
