//! Hosts: which hosts are known, where each is reached, and what each says of itself and of its images.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use proto::{Digest, HostId, HostKey, Moment, limits::MAX_IMAGES, message};
use rollout::stage::event::Standing;
use tracing::{debug, error, warn};

use crate::{
    config::MAX_HOSTS,
    network::Network,
    progress::{self, Progress},
    view::{HostState, VolumeView},
    wants::Place,
};

/// Places are written to disk at most this long after one of them changed.
const KEEP_PLACES_AFTER: Duration = Duration::from_secs(1);

/// The greatest rate that a host may claim, in bytes a second. No line is faster, and a false claim would spoil
/// predictions.
const MAX_RATE: u64 = 1_000_000_000_000;

/// What is known of a host. Only [`Hosts`] changes it.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) zone: String,
    /// Where peers reach the host.
    pub(super) place: Option<Place>,
    pub(super) version: String,
    /// Whether the host's version makes recipes of images that it holds.
    pub(super) makes_recipes: bool,
    /// Whether the host's version stages stacked images.
    pub(super) stages_stacked: bool,
    pub(super) volume: Option<VolumeView>,
    /// The bytes that wait to be uploaded, by the host's own word.
    pub(super) backlog_bytes: u64,
    pub(super) upload_bytes_per_second: u64,
    /// The progress of each image, from the host's reports.
    pub(super) images: BTreeMap<Digest, Progress>,
    /// The reference by which the host calls each image.
    pub(super) references: BTreeMap<Digest, String>,
}

impl Host {
    const fn new(zone: String) -> Self {
        Self {
            zone,
            place: None,
            version: String::new(),
            makes_recipes: false,
            stages_stacked: false,
            volume: None,
            backlog_bytes: 0,
            upload_bytes_per_second: 0,
            images: BTreeMap::new(),
            references: BTreeMap::new(),
        }
    }

    /// The state of an image, by the host's last report.
    pub(super) fn state(&self, image: &Digest) -> Option<HostState> {
        self.images.get(image).map(|progress| progress.state)
    }

    pub(super) fn is_present(&self, image: &Digest) -> bool {
        self.state(image) == Some(HostState::Present)
    }
}

/// The outcome of making a host known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The host is new.
    New,
    /// The host was known in another zone.
    Moved,
    /// The host was known, in the same zone.
    Same,
    /// The host isn't taken in: the fleet is full, or another host has the same key.
    Refused,
}

/// The hosts of the fleet.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    hosts: BTreeMap<HostId, Host>,
    keys: BTreeMap<HostKey, HostId>,
    /// When changed places are to be written to disk.
    places_due: Option<Moment>,
}

impl Hosts {
    /// Makes a host known. An empty zone doesn't change the zone of a host that is known already.
    pub(super) fn know(&mut self, host: &HostId, zone: &str) -> Known {
        if let Some(known) = self.hosts.get_mut(host) {
            if zone.is_empty() || known.zone == zone {
                return Known::Same;
            }
            zone.clone_into(&mut known.zone);
            return Known::Moved;
        }
        if self.hosts.len() >= MAX_HOSTS {
            error!(%host, limit = MAX_HOSTS, "fleet is full; the host isn't taken in");
            return Known::Refused;
        }
        if let Some(other) = self.keys.get(&host.key()) {
            error!(%host, %other, "host has the same key as another; rename one of them");
            return Known::Refused;
        }
        self.keys.insert(host.key(), host.clone());
        self.hosts.insert(host.clone(), Host::new(zone.to_owned()));
        Known::New
    }

    /// The host isn't part of the fleet any more.
    pub(super) fn left(&mut self, host: &HostId) {
        self.hosts.remove(host);
        self.keys.remove(&host.key());
    }

    /// Sets the place where a host was reached before this start.
    pub(super) fn was_at(&mut self, host: &HostId, place: Place) {
        if let Some(known) = self.hosts.get_mut(host) {
            known.place = Some(place);
        }
    }

    /// A host says hello from `remote`. `networks` are the networks in which a host may name an address other than the
    /// one from which its connection comes. Returns whether the host's place has changed.
    pub(super) fn greet(
        &mut self,
        now: Moment,
        host: &HostId,
        hello: &message::Hello,
        remote: SocketAddr,
        networks: &[Network],
    ) -> bool {
        let Some(known) = self.hosts.get_mut(host) else {
            return false;
        };
        known.version = progress::clean(&hello.version);
        known.makes_recipes = hello.makes_recipes;
        known.stages_stacked = hello.stages_stacked;
        known.volume = hello.volume.as_ref().map(volume);
        let advertised = peer_address(remote, hello, networks);
        match &advertised {
            None => {
                warn!(%host, address = progress::clean(&hello.peer_address), "host's address for peers can't be used");
            }
            Some((used, true)) => {
                warn!(
                    %host,
                    address = progress::clean(&hello.peer_address),
                    %used,
                    "host names an address for peers that is of none of coordinator.peer_networks; the one that it comes from is used"
                );
            }
            Some((_, false)) => {}
        }
        let place = advertised.map(|(address, _)| Place {
            address,
            zone: known.zone.clone(),
        });
        let moved = known.place != place;
        if moved {
            known.place = place;
            self.places_due.get_or_insert(now + KEEP_PLACES_AFTER);
        }
        moved
    }

    /// Takes in what a host reports of its disk and its line.
    pub(super) fn report(&mut self, host: &HostId, report: &message::Report) {
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        if let Some(reported) = &report.volume {
            known.volume = Some(volume(reported));
        }
        if let Some(load) = &report.load {
            known.backlog_bytes = load.backlog_bytes;
            known.upload_bytes_per_second = load.upload_bytes_per_second.min(MAX_RATE);
        }
    }

    /// Whether a report of an image repeats the one before, but for numbers that are shown once a second.
    pub(super) fn confirms(
        &self,
        host: &HostId,
        image: &Digest,
        report: &message::ImageState,
    ) -> bool {
        let known = self.hosts.get(host);
        let progress = known.and_then(|known| known.images.get(image));
        progress.is_some_and(|progress| progress.confirms(report))
    }

    /// Takes in what a host reports of one image. `total` is the size of the image's contents in bytes, where it is
    /// known. Returns where the image stands on the host, if the plan can act on it.
    pub(super) fn image(
        &mut self,
        now: Moment,
        host: &HostId,
        image: Digest,
        report: &message::ImageState,
        total: Option<u64>,
    ) -> Option<Standing> {
        let known = self.hosts.get_mut(host)?;
        if !known.images.contains_key(&image) && known.images.len() >= MAX_IMAGES {
            debug!(%host, "host reports more images than are kept track of");
            return None;
        }
        let progress = known.images.entry(image).or_insert_with(Progress::new);
        progress.report(now, report, total);
        if !report.reference.is_empty() {
            let reference = progress::clean(&report.reference);
            known.references.insert(image, reference);
        }
        match progress::state(report.state) {
            HostState::Queued => Some(Standing::Queued),
            HostState::Staging => Some(Standing::Staging),
            HostState::Installing => Some(Standing::Installing),
            HostState::Present => Some(Standing::Present),
            HostState::Failed => Some(Standing::Failed),
            HostState::Gone => Some(Standing::Gone),
            // The plan can't act on a state that this version doesn't know.
            HostState::Waiting => None,
        }
    }

    /// Forgets the images that a full report leaves out, because they aren't on the host any more. Returns these
    /// images.
    pub(super) fn forget_unreported(
        &mut self,
        host: &HostId,
        reported: &BTreeSet<Digest>,
    ) -> Vec<Digest> {
        let Some(known) = self.hosts.get_mut(host) else {
            return Vec::new();
        };
        let images = known.images.keys();
        let gone: Vec<Digest> = images
            .filter(|image| !reported.contains(image))
            .copied()
            .collect();
        for image in &gone {
            known.images.remove(image);
            known.references.remove(image);
        }
        gone
    }

    /// The host's session is over.
    pub(super) fn disconnected(&mut self, host: &HostId) {
        if let Some(known) = self.hosts.get_mut(host) {
            known.images.values_mut().for_each(Progress::disconnected);
        }
    }

    /// Somebody asks for an image again. Returns the image's state on the host, where the host reported one.
    pub(super) fn urged(
        &mut self,
        now: Moment,
        host: &HostId,
        image: &Digest,
    ) -> Option<HostState> {
        let progress = self.hosts.get_mut(host)?.images.get_mut(image)?;
        progress.urged(now);
        Some(progress.state)
    }

    /// When changed places are to be written to disk.
    pub(super) const fn due(&self) -> Option<Moment> {
        self.places_due
    }

    /// All places, if they are to be written to disk now.
    pub(super) fn take_places_due(&mut self, now: Moment) -> Option<BTreeMap<HostId, Place>> {
        self.places_due.take_if(|due| *due <= now)?;
        let hosts = self.hosts.iter();
        let places = hosts.filter_map(|(host, known)| Some((host.clone(), known.place.clone()?)));
        Some(places.collect())
    }

    /// The host that peers reach at this address, or else the only host at this IP address. It serves for refused
    /// connections, where the other side doesn't say which host it is.
    pub(super) fn at(&self, address: SocketAddr) -> Option<HostId> {
        let places = || {
            let hosts = self.hosts.iter();
            hosts.filter_map(|(host, known)| Some((host, known.place.as_ref()?.address)))
        };
        if let Some((host, _)) = places().find(|(_, place)| *place == address) {
            return Some(host.clone());
        }
        let mut there = places().filter(|(_, place)| place.ip() == address.ip());
        match (there.next(), there.next()) {
            (Some((host, _)), None) => Some(host.clone()),
            _ => None,
        }
    }

    pub(super) fn get(&self, host: &HostId) -> Option<&Host> {
        self.hosts.get(host)
    }

    pub(super) fn contains(&self, host: &HostId) -> bool {
        self.hosts.contains_key(host)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&HostId, &Host)> {
        self.hosts.iter()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &HostId> {
        self.hosts.keys()
    }

    pub(super) fn len(&self) -> usize {
        self.hosts.len()
    }
}

fn volume(volume: &message::Volume) -> VolumeView {
    VolumeView {
        path: progress::clean(&volume.path),
        total_bytes: volume.total_bytes,
        free_bytes: volume.free_bytes.min(volume.total_bytes),
        floor_bytes: volume.floor_bytes,
        clones: volume.clones,
    }
}

/// The address at which peers reach a host: the address that the host advertises, or else the address of its connection
/// with the port that the host names. The whole fleet sends packets to this address. So an advertised IP address counts
/// only if it is the host's own or lies in one of `networks`. Otherwise the connection's IP address is used with the
/// advertised port, and the second value is true.
fn peer_address(
    remote: SocketAddr,
    hello: &message::Hello,
    networks: &[Network],
) -> Option<(SocketAddr, bool)> {
    let own = remote.ip().to_canonical();
    let address = if hello.peer_address.is_empty() {
        let port = u16::try_from(hello.peer_port).ok()?;
        SocketAddr::new(own, port)
    } else {
        hello.peer_address.parse().ok()?
    };
    let ip = address.ip();
    let usable = address.port() != 0
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && ip != IpAddr::V4(Ipv4Addr::BROADCAST);
    let foreign = ip.to_canonical() != own && !networks.iter().any(|network| network.contains(ip));
    let used = match foreign {
        true => SocketAddr::new(own, address.port()),
        false => address,
    };
    usable.then_some((used, foreign))
}

/// The zone that a host names for itself, cut to 63 characters, because every roster carries it.
pub(super) fn zone(text: &str) -> String {
    const MAX_CHARS: usize = 63;
    progress::clean(text).chars().take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::START + Duration::from_millis(millis)
    }

    fn id(name: &str) -> HostId {
        name.parse().unwrap()
    }

    fn hello(port: u32) -> message::Hello {
        message::Hello {
            peer_port: port,
            ..message::Hello::default()
        }
    }

    fn remote(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 40_000).into()
    }

    #[test]
    fn a_host_is_new_once_and_an_empty_zone_moves_nobody() {
        let mut hosts = Hosts::default();
        assert_eq!(hosts.know(&id("a"), "rack 1"), Known::New);
        assert_eq!(hosts.know(&id("a"), ""), Known::Same);
        assert_eq!(hosts.know(&id("a"), "rack 1"), Known::Same);
        assert_eq!(hosts.know(&id("a"), "rack 2"), Known::Moved);
        assert_eq!(hosts.get(&id("a")).unwrap().zone, "rack 2");
        hosts.left(&id("a"));
        assert_eq!(hosts.know(&id("a"), ""), Known::New);
    }

    #[test]
    fn the_largest_fleet_takes_no_more_hosts_in() {
        let mut hosts = Hosts::default();
        for number in 0..MAX_HOSTS {
            assert_eq!(hosts.know(&id(&format!("h{number}")), ""), Known::New);
        }
        assert_eq!(hosts.know(&id("one-more"), ""), Known::Refused);
        assert_eq!(hosts.know(&id("h0"), ""), Known::Same);
        hosts.left(&id("h0"));
        assert_eq!(hosts.know(&id("one-more"), ""), Known::New);
    }

    #[test]
    fn changed_places_are_written_down_together_a_second_after_the_first() {
        let mut hosts = Hosts::default();
        for name in ["a", "b", "c"] {
            hosts.know(&id(name), "z");
        }
        assert!(hosts.greet(at(0), &id("a"), &hello(7471), remote(1), &[]));
        assert!(hosts.greet(at(900), &id("b"), &hello(7471), remote(2), &[]));
        // a hello from the same place changes nothing
        assert!(!hosts.greet(at(950), &id("a"), &hello(7471), remote(1), &[]));
        assert_eq!(hosts.due(), Some(at(1_000)));
        assert_eq!(hosts.take_places_due(at(999)), None);
        let places = hosts.take_places_due(at(1_000)).unwrap();
        assert_eq!(places.len(), 2);
        assert_eq!(places[&id("b")].address, "10.0.0.2:7471".parse().unwrap());
        assert_eq!(hosts.take_places_due(at(9_000)), None);
    }

    #[test]
    fn an_address_is_somebodys_where_it_is_exact_or_the_machine_has_one_host() {
        let mut hosts = Hosts::default();
        for (name, port, last) in [("a", 1, 1), ("b", 1, 2), ("c", 2, 2)] {
            hosts.know(&id(name), "z");
            hosts.greet(at(0), &id(name), &hello(port), remote(last), &[]);
        }
        let at = |text: &str| hosts.at(text.parse().unwrap());
        assert_eq!(at("10.0.0.1:9"), Some(id("a")));
        assert_eq!(at("10.0.0.2:2"), Some(id("c")));
        assert_eq!(at("10.0.0.2:9"), None, "two hosts are there");
        assert_eq!(at("10.0.0.3:1"), None);
    }

    #[test]
    fn no_more_images_of_a_host_are_kept_track_of_than_it_may_report() {
        let (mut hosts, host) = (Hosts::default(), id("a"));
        hosts.know(&host, "");
        let report = message::ImageState {
            state: message::StageState::Staging.into(),
            ..message::ImageState::default()
        };
        let image = |number: usize| Digest::of(&number.to_be_bytes());
        let mut hear = |number| hosts.image(at(0), &host, image(number), &report, None);
        assert!((0..MAX_IMAGES).all(|number| hear(number) == Some(Standing::Staging)));
        assert_eq!(hear(MAX_IMAGES), None);
        assert_eq!(hear(0), Some(Standing::Staging));
        // a full report that leaves images out makes room
        let gone = hosts.forget_unreported(&host, &[image(0)].into());
        assert_eq!(gone.len(), MAX_IMAGES - 1);
        let mut hear = |number| hosts.image(at(0), &host, image(number), &report, None);
        assert_eq!(hear(MAX_IMAGES), Some(Standing::Staging));
        assert_eq!(hosts.image(at(0), &id("b"), image(0), &report, None), None);
    }
}
