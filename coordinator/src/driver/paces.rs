//! How fast bytes came so far: from each registry to the whole fleet, and from the network to each host. Predictions
//! are made by the most that was seen, because a rate that was seen is no guess. A host's word counts up to what the
//! fastest network interface of a Mac carries, so that no host makes a registry look faster for all.

use std::collections::BTreeMap;

use proto::{Digest, HostId, Moment, Reference};

use super::{hosts::Hosts, images::Images};

/// The most registries whose rates are remembered.
const MAX_REGISTRIES: usize = 64;
/// The most bytes a second that one host is believed to get: 10 Gbit/s.
const MAX_HOST_RATE: u64 = 1_250_000_000;

/// The most that was seen, in bytes a second. See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Paces {
    registries: BTreeMap<String, u64>,
    hosts: BTreeMap<HostId, u64>,
}

impl Paces {
    /// Looks at what comes now.
    pub(super) fn look(&mut self, now: Moment, hosts: &Hosts, images: &Images) {
        self.hosts.retain(|host, _| hosts.contains(host));
        let mut registries: BTreeMap<String, u64> = BTreeMap::new();
        for (host, known) in hosts.iter() {
            let mut network = 0u64;
            let mut origins: BTreeMap<String, u64> = BTreeMap::new();
            for (image, progress) in &known.images {
                let Some((from_origin, from_network)) = progress.network_rates(now) else {
                    continue;
                };
                network = network.saturating_add(from_network);
                if from_origin > 0
                    && let Some(registry) = registry(images, image)
                {
                    let of_host = origins.entry(registry).or_default();
                    *of_host = from_origin.saturating_add(*of_host);
                }
            }
            network = network.min(MAX_HOST_RATE);
            for (registry, of_host) in origins {
                let sum = registries.entry(registry).or_default();
                *sum = sum.saturating_add(of_host.min(MAX_HOST_RATE));
            }
            if network > 0 {
                let most = self.hosts.entry(host.clone()).or_default();
                *most = network.max(*most);
            }
        }
        for (registry, rate) in registries {
            if self.registries.contains_key(&registry) || self.registries.len() < MAX_REGISTRIES {
                let most = self.registries.entry(registry).or_default();
                *most = rate.max(*most);
            }
        }
    }

    /// The most that came from a registry to the whole fleet.
    pub(super) fn of_registry(&self, registry: &str) -> Option<u64> {
        self.registries.get(registry).copied()
    }

    /// The most that a host took from the network.
    pub(super) fn of_host(&self, host: &HostId) -> Option<u64> {
        self.hosts.get(host).copied()
    }
}

/// The registry that an image comes from.
fn registry(images: &Images, image: &Digest) -> Option<String> {
    registry_of(images.get(image)?.want().references.first()?)
}

/// The registry that a reference names.
pub(super) fn registry_of(reference: &str) -> Option<String> {
    let reference: Reference = reference.parse().ok()?;
    Some(reference.host().to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::message;

    use super::*;
    use crate::wants::tests::want;

    #[test]
    fn the_most_that_came_over_five_seconds_is_remembered() {
        let (mut hosts, images) = (Hosts::default(), Images::new(0, true));
        let host: HostId = "mini-1".parse().unwrap();
        hosts.know(&host, "");
        let image = want("one", 1, 1 << 20).digest();
        let mut paces = Paces::default();
        let mut at = |second: u64, peer_bytes: u64| {
            let now = Moment::START + Duration::from_secs(second);
            let report = message::ImageState {
                manifest: image.as_bytes().to_vec(),
                state: message::StageState::Staging.into(),
                peer_bytes,
                ..message::ImageState::default()
            };
            hosts.image(now, &host, image, &report, None);
            paces.look(now, &hosts, &images);
            paces.of_host(&host)
        };
        assert_eq!(at(0, 0), None);
        assert_eq!(at(4, 400), None, "too early to tell");
        assert_eq!(at(5, 500), Some(100));
        assert_eq!(at(10, 1_500), Some(200));
        assert_eq!(at(20, 1_600), Some(200), "less comes now");
        // a host that says what no network carries
        assert_eq!(at(26, u64::MAX), Some(MAX_HOST_RATE));
        // the registry of an image that nobody wants isn't known
        assert_eq!(paces.of_registry("127.0.0.1:5000"), None);
        let gone = Hosts::default();
        paces.look(Moment::START, &gone, &images);
        assert_eq!(paces.of_host(&host), None);
    }

    #[test]
    fn a_reference_names_its_registry() {
        let of = registry_of("ghcr.io/org/image:1");
        assert_eq!(of.as_deref(), Some("ghcr.io"));
        assert_eq!(registry_of("nonsense:"), None);
    }
}
