//! What staging an image will move, write and take, and in which time at best. A function of the facts that a
//! coordinator has: which contents lie on which hosts, and the rates that somebody set or measured.
//!
//! The coordinator knows of whole contents only. A host looks closer: it also finds chunks that another image has in
//! common, and it doesn't write zeros. So bytes from the network and bytes to write are predicted *at most*, and local
//! bytes *at least*. A rate that nobody knows isn't made up: the prediction names what it couldn't take into account.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::time::Duration;

use proto::Digest;

/// A content of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes on a host's disk.
    pub raw_bytes: u64,
    /// Its bytes in the registry. Peers send about as many.
    pub packed_bytes: u64,
    /// Bytes of the disk into which a host decodes the content, where it holds the content as the registry stores it.
    pub decoded_bytes: u64,
}

/// What is known of a selected host. Rates are in bytes a second; `None`: nobody knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// The host has a session. A host without one takes no part in the prediction of the time, and gets all bytes from
    /// peers, where others are connected.
    pub connected: bool,
    /// The host has the whole image.
    pub present: bool,
    /// Raw bytes of this image that an unfinished stage on the host holds.
    pub held_bytes: u64,
    /// Contents of this image that other images on the host have.
    pub here: BTreeSet<Digest>,
    /// Raw bytes of `here` that lie in their place if the disk begins as a clone: they aren't written again.
    pub in_place_bytes: u64,
    /// How fast the host takes bytes from the network.
    pub link: Option<u64>,
    /// How fast the host sends to peers.
    pub upload: Option<u64>,
    /// How fast the host writes to its disk.
    pub disk: Option<u64>,
}

/// Bytes that a staging moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From the registry, packed. For a host: its share, because nobody knows yet who will get which lease.
    pub registry: u64,
    /// From peers, packed.
    pub peers: u64,
    /// Raw bytes that these two become. With `local` and what a stage holds they are the whole image.
    pub missing: u64,
    /// Raw bytes that are on the host already, in other images.
    pub local: u64,
    /// Raw bytes that are written to the disk. They are also the space that is taken: what a clone shares isn't
    /// written.
    pub written: u64,
}

impl Moved {
    /// Bytes from the network.
    #[must_use]
    pub const fn network(self) -> u64 {
        self.registry.saturating_add(self.peers)
    }

    const fn and(self, other: Self) -> Self {
        Self {
            registry: self.registry.saturating_add(other.registry),
            peers: self.peers.saturating_add(other.peers),
            missing: self.missing.saturating_add(other.missing),
            local: self.local.saturating_add(other.local),
            written: self.written.saturating_add(other.written),
        }
    }
}

/// What limits the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bound {
    /// The registry's rate to the whole fleet.
    Registry,
    /// The rate of the slowest host's network.
    Link,
    /// The rate at which all hosts together send.
    Uploads,
    /// The rate of the slowest host's disk.
    Disk,
}

impl Bound {
    /// Its name, as in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Link => "link",
            Self::Uploads => "uploads",
            Self::Disk => "disk",
        }
    }
}

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prediction {
    /// Each host, in the order in which they were given.
    pub hosts: Vec<Moved>,
    /// The sum of all hosts.
    pub total: Moved,
    /// The least time, by the known rates, and what limits it. `None` when no rate is known, or nothing moves.
    pub time: Option<(Duration, Bound)>,
    /// What may take longer, and whose rate nobody knows.
    pub unknown: Vec<Bound>,
}

/// Predicts the staging of these contents onto these hosts. `available` are contents that some connected host of the
/// fleet has whole. `registry` is the registry's rate to the whole fleet in bytes a second.
#[must_use]
pub fn predict(
    contents: &[Content],
    hosts: &[Host],
    available: &BTreeSet<Digest>,
    registry: Option<u64>,
) -> Prediction {
    let shares = Shares::of(contents, hosts, available);
    let each = hosts.iter().enumerate();
    let each: Vec<Moved> = each
        .map(|(number, host)| moved(contents, host, |content| shares.of_host(number, content)))
        .collect();
    let total = each.iter().fold(Moved::default(), |sum, of| sum.and(*of));
    let (time, unknown) = time(hosts, &each, registry);
    Prediction {
        hosts: each,
        total,
        time,
        unknown,
    }
}

/// Who fetches the contents that no host has: those that lack a content, in equal shares.
struct Shares {
    /// The hosts of each such content, by their numbers.
    sharers: BTreeMap<Digest, Vec<usize>>,
}

impl Shares {
    fn of(contents: &[Content], hosts: &[Host], available: &BTreeSet<Digest>) -> Self {
        let fetched = contents
            .iter()
            .filter(|content| !available.contains(&content.digest));
        let sharers = fetched.map(|content| {
            let lacks = |host: &Host| !host.present && !host.here.contains(&content.digest);
            let lacking = || (0..hosts.len()).filter(|host| lacks(&hosts[*host]));
            let connected: Vec<usize> = lacking().filter(|host| hosts[*host].connected).collect();
            let sharers = match connected.is_empty() {
                true => lacking().collect(),
                false => connected,
            };
            (content.digest, sharers)
        });
        Self {
            sharers: sharers.collect(),
        }
    }

    /// The packed bytes of a content that this host fetches from the registry. All shares of a content add up to it.
    fn of_host(&self, host: usize, content: &Content) -> u64 {
        let Some(sharers) = self.sharers.get(&content.digest) else {
            return 0;
        };
        let Ok(place) = sharers.binary_search(&host) else {
            return 0;
        };
        let (count, place) = (sharers.len() as u64, place as u64);
        // the first hosts take what doesn't divide
        content.packed_bytes / count + u64::from(place < content.packed_bytes % count)
    }
}

fn moved(contents: &[Content], host: &Host, share: impl Fn(&Content) -> u64) -> Moved {
    if host.present {
        return Moved::default();
    }
    let mut of = Moved::default();
    let (mut missing, mut packed, mut decoded) = (0u64, 0u64, 0u64);
    for content in contents {
        decoded = decoded.saturating_add(content.decoded_bytes);
        if host.here.contains(&content.digest) {
            of.local = of.local.saturating_add(content.raw_bytes);
            continue;
        }
        missing = missing.saturating_add(content.raw_bytes);
        packed = packed.saturating_add(content.packed_bytes);
        of.registry = of.registry.saturating_add(share(content));
    }
    // A stage copies what is local first. What it holds beyond that is spread evenly over the contents that the host
    // lacks, because only the host knows which chunks those are.
    let copied = of.local.saturating_sub(host.in_place_bytes);
    let held_local = host.held_bytes.min(of.local);
    let left = missing - (host.held_bytes - held_local).min(missing);
    of.registry = scale(of.registry, left, missing);
    of.peers = scale(packed, left, missing) - of.registry;
    of.local -= held_local;
    of.missing = left;
    let copied = copied.min(of.local);
    of.written = left.saturating_add(copied).saturating_add(decoded);
    of
}

/// `bytes × part / whole`, cut.
fn scale(bytes: u64, part: u64, whole: u64) -> u64 {
    let scaled = (u128::from(bytes) * u128::from(part)).checked_div(u128::from(whole));
    u64::try_from(scaled.unwrap_or(0)).unwrap_or(u64::MAX)
}

/// The least time by the rates that are known, and what else may take longer.
fn time(
    hosts: &[Host],
    each: &[Moved],
    registry: Option<u64>,
) -> (Option<(Duration, Bound)>, Vec<Bound>) {
    let connected = || {
        let pairs = hosts.iter().zip(each);
        pairs.filter(|(host, _)| host.connected)
    };
    let sum = |of: fn(&Moved) -> u64| {
        let all = connected().map(|(_, moved)| of(moved));
        all.fold(0, u64::saturating_add)
    };
    let slowest = |bytes: fn(&Moved) -> u64, rate: fn(&Host) -> Option<u64>| {
        let mut times = connected().map(|(host, moved)| seconds(bytes(moved), rate(host)));
        times.try_fold(Duration::ZERO, |longest, one| Some(longest.max(one?)))
    };
    let uploads = registry.and_then(|registry| {
        connected().try_fold(registry, |sum, (host, _)| {
            Some(sum.saturating_add(host.upload?))
        })
    });
    let bounds = [
        (Bound::Registry, seconds(sum(|of| of.registry), registry)),
        (Bound::Link, slowest(|of| of.network(), |host| host.link)),
        // a registry that sends all leaves the uploads nothing to do
        (
            Bound::Uploads,
            match sum(|of| of.peers) {
                0 => Some(Duration::ZERO),
                _ => seconds(sum(|of| of.network()), uploads),
            },
        ),
        (Bound::Disk, slowest(|of| of.written, |host| host.disk)),
    ];
    let unknown = bounds.iter().filter(|(_, time)| time.is_none());
    let unknown = unknown.map(|(bound, _)| *bound).collect();
    let mut longest: Option<(Duration, Bound)> = None;
    for (bound, time) in bounds {
        if let Some(time) = time.filter(|time| !time.is_zero())
            && longest.is_none_or(|(before, _)| time > before)
        {
            longest = Some((time, bound));
        }
    }
    (longest, unknown)
}

/// How long these bytes take; `None` when the rate isn't known. No bytes take no time at any rate.
fn seconds(bytes: u64, rate: Option<u64>) -> Option<Duration> {
    if bytes == 0 {
        return Some(Duration::ZERO);
    }
    let millis = u128::from(bytes) * 1_000 / u128::from(rate?.max(1));
    Some(Duration::from_millis(
        u64::try_from(millis).unwrap_or(u64::MAX),
    ))
}

#[cfg(test)]
mod tests;
