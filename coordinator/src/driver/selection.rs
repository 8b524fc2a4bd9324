//! The hosts that a selection means: whether they belong to the fleet, have room for an image, and have the image
//! already.

use std::collections::BTreeSet;

use proto::HostId;

use super::{ask::StageError, hosts::Hosts, presence::Presence, words};
use crate::{fleet::Membership, view::ShortOfRoom, wants::Want};

/// The hosts that a selection means now; `None` selects all.
///
/// # Errors
/// When a selected host isn't part of the fleet, or when the selection is empty.
pub(super) fn selected(
    hosts: &Hosts,
    membership: &Membership,
    selection: Option<&BTreeSet<HostId>>,
) -> Result<Vec<HostId>, StageError> {
    let selected: Vec<HostId> = match selection {
        None => hosts.ids().cloned().collect(),
        Some(selection) => {
            if let Some(unknown) = selection.iter().find(|host| !hosts.contains(host)) {
                let host = unknown.clone();
                return Err(match membership.revoked.get(unknown) {
                    Some(revocation) => StageError::Revoked {
                        what: words::revocation(&host, revocation),
                        host,
                    },
                    None => StageError::UnknownHost(host),
                });
            }
            selection.iter().cloned().collect()
        }
    };
    if selected.is_empty() {
        return Err(StageError::NoHosts);
    }
    Ok(selected)
}

/// The selected hosts that, by their own reports, have too little room for an image. Each of them is given with the
/// bytes that it is predicted to write, which is the space that it takes: of this image, and of unfinished ones that
/// come before this one. A host that has reported no volume yet isn't among the answer.
///
/// # Errors
/// When none of the hosts could ever hold the image.
pub(super) fn short_of_room<'a>(
    hosts: &Hosts,
    want: &Want,
    selected: impl ExactSizeIterator<Item = (&'a HostId, u64, u64)>,
) -> Result<Vec<ShortOfRoom>, StageError> {
    let image = want.digest();
    let whole = want.layout.disk_bytes();
    let (mut short, mut hopeless, count) = (Vec::new(), 0, selected.len());
    for (host, needed_bytes, before_bytes) in selected {
        let Some(known) = hosts.get(host) else {
            continue;
        };
        let Some(volume) = &known.volume else {
            continue;
        };
        if known.is_present(&image) {
            continue;
        }
        let free_bytes = volume.free_bytes.saturating_sub(volume.floor_bytes);
        if free_bytes.saturating_sub(before_bytes) < needed_bytes {
            short.push(ShortOfRoom {
                host: host.to_string(),
                needed_bytes,
                before_bytes,
                free_bytes: volume.free_bytes,
                floor_bytes: volume.floor_bytes,
            });
        }
        if volume.total_bytes.saturating_sub(volume.floor_bytes) < whole {
            hopeless += 1;
        }
    }
    if hopeless == count {
        return Err(StageError::NowhereFits {
            needed_bytes: whole,
            hosts: short,
        });
    }
    Ok(short)
}

/// Whether every selected host has the image under all names of the want, by the host's own last word. The answer is no
/// when the selection means no host, or names a host outside the fleet.
pub(super) fn is_everywhere(hosts: &Hosts, presence: &Presence, want: &Want) -> bool {
    let image = want.digest();
    let has = |host: &HostId| {
        let names = presence.names(host, &image);
        hosts
            .get(host)
            .is_some_and(|known| known.is_present(&image))
            && names.is_some_and(|names| want.references.is_subset(names))
    };
    match &want.hosts {
        None => hosts.len() > 0 && hosts.ids().all(has),
        Some(selection) => !selection.is_empty() && selection.iter().all(has),
    }
}

#[cfg(test)]
mod tests {
    use proto::{Moment, message};

    use super::*;
    use crate::{enrolment::Revocation, wants::tests::want};

    fn id(name: &str) -> HostId {
        name.parse().unwrap()
    }

    /// Hosts with a volume of this size, of which this much is free and this much must stay free, in bytes.
    fn fleet(volumes: &[(&str, u64, u64, u64)]) -> Hosts {
        let mut hosts = Hosts::default();
        for (name, total_bytes, free_bytes, floor_bytes) in volumes {
            hosts.know(&id(name), "");
            let report = message::Report {
                volume: Some(message::Volume {
                    total_bytes: *total_bytes,
                    free_bytes: *free_bytes,
                    floor_bytes: *floor_bytes,
                    path: "/".into(),
                    clones: None,
                }),
                ..message::Report::default()
            };
            hosts.report(&id(name), &report);
        }
        hosts
    }

    #[test]
    fn a_selection_of_a_host_that_isnt_there_is_refused_with_the_cause() {
        let hosts = fleet(&[("a", 1, 1, 0), ("b", 1, 1, 0)]);
        let mut membership = Membership::default();
        membership.revoked.insert(id("r"), Revocation::default());
        let of = |names: &[&str]| {
            let selection = names.iter().map(|name| id(name)).collect();
            selected(&hosts, &membership, Some(&selection))
        };
        assert_eq!(of(&["b"]).unwrap(), [id("b")]);
        assert!(matches!(of(&["a", "x"]), Err(StageError::UnknownHost(host)) if host == id("x")));
        assert!(matches!(of(&["r"]), Err(StageError::Revoked { .. })));
        assert!(matches!(of(&[]), Err(StageError::NoHosts)));
        assert_eq!(selected(&hosts, &membership, None).unwrap().len(), 2);
        let empty = selected(&Hosts::default(), &membership, None);
        assert!(matches!(empty, Err(StageError::NoHosts)));
    }

    #[test]
    fn room_counts_above_the_floor_and_to_the_byte() {
        let image = want("image", 1, 1 << 20);
        let needs = image.layout.disk_bytes();
        let hosts = fleet(&[
            ("exact", 2 * needs, needs + 7, 7),
            ("short", 2 * needs, needs + 6, 7),
            ("small", needs + 6, 0, 7),
        ]);
        let short = |names: &[&str]| {
            let selected: Vec<HostId> = names.iter().map(|name| id(name)).collect();
            let each = selected.iter().map(|host| (host, needs, 0));
            let short = short_of_room(&hosts, &image, each);
            short.map(|short| short.into_iter().map(|one| one.host).collect::<Vec<_>>())
        };
        assert_eq!(short(&["exact"]).unwrap(), Vec::<String>::new());
        assert_eq!(short(&["exact", "short"]).unwrap(), ["short"]);
        // a host that can never hold the image is only short of room, as long as another host can hold it
        assert_eq!(short(&["short", "small"]).unwrap(), ["short", "small"]);
        assert!(matches!(
            short(&["small"]),
            Err(StageError::NowhereFits { .. })
        ));
    }

    #[test]
    fn what_images_before_it_will_write_is_no_room() {
        let image = want("image", 1, 1 << 20);
        let needs = image.layout.disk_bytes();
        let (hosts, host) = (fleet(&[("a", 9 * needs, 2 * needs + 7, 7)]), id("a"));
        let short = |before| {
            let each = [(&host, needs, before)].into_iter();
            short_of_room(&hosts, &image, each).unwrap().pop()
        };
        assert_eq!(short(needs), None);
        for before in [needs + 1, u64::MAX] {
            assert_eq!(short(before).unwrap().before_bytes, before);
        }
    }

    #[test]
    fn an_image_is_everywhere_when_each_selected_host_has_all_its_names() {
        let image = want("image", 1, 1 << 20);
        let digest = image.digest();
        let mut hosts = fleet(&[("a", 1, 1, 0), ("b", 1, 1, 0)]);
        let mut presence = Presence::new(tokio::sync::watch::channel(std::sync::Arc::default()).0);
        presence.joined(&id("a"));
        let mut says = |hosts: &mut Hosts, names: Vec<String>| {
            let state = message::ImageState {
                manifest: digest.as_bytes().to_vec(),
                state: message::StageState::Present.into(),
                ready_references: names,
                ..message::ImageState::default()
            };
            hosts.image(Moment::START, &id("a"), digest, &state, None);
            let at = (Moment::START, std::time::Instant::now());
            presence.heard(at, &id("a"), (&[state], true), 0, |_| None);
            let of = |names: &[&str]| Want {
                hosts: Some(names.iter().map(|name| id(name)).collect()),
                ..image.clone()
            };
            [of(&["a"]), of(&["a", "b"]), of(&[]), image.clone()]
                .map(|want| is_everywhere(hosts, &presence, &want))
        };
        let all = image.references.iter().cloned().collect();
        assert_eq!(says(&mut hosts, all), [true, false, false, false]);
        let other = vec!["r.test/other:1".to_owned()];
        assert_eq!(says(&mut hosts, other), [false; 4]);
    }
}
