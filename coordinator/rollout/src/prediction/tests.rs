use std::{format, vec};

use proptest::prelude::*;

use super::*;

fn content(name: u8, raw_bytes: u64, packed_bytes: u64) -> Content {
    Content {
        digest: Digest::of(&[name]),
        raw_bytes,
        packed_bytes,
        decoded_bytes: 0,
    }
}

/// Contents a (100 raw, 40 packed), b (200, 100) and c (50, 10).
fn image() -> [Content; 3] {
    [
        content(b'a', 100, 40),
        content(b'b', 200, 100),
        content(b'c', 50, 10),
    ]
}

fn digests(names: &[u8]) -> BTreeSet<Digest> {
    names.iter().map(|name| Digest::of(&[*name])).collect()
}

/// A connected host with these contents in other images.
fn host(here: &[u8]) -> Host {
    Host {
        connected: true,
        here: digests(here),
        ..Host::default()
    }
}

fn present() -> Host {
    Host {
        present: true,
        ..host(b"")
    }
}

fn each(hosts: &[Host], available: &[u8]) -> Vec<(u64, u64, u64, u64)> {
    let predicted = predict(&image(), hosts, &digests(available), None);
    let hosts = predicted.hosts.iter();
    hosts
        .map(|of| (of.registry, of.peers, of.local, of.written))
        .collect()
}

#[test]
fn a_layer_that_is_held_packed_is_also_written_unpacked() {
    let packed = Content {
        decoded_bytes: 90,
        ..content(b'a', 40, 40)
    };
    let contents = [packed, content(b'b', 200, 100)];
    let written = |host: Host| {
        let of = predict(&contents, &[host], &BTreeSet::new(), None).total;
        (of.local, of.missing, of.written)
    };
    assert_eq!(written(host(b"")), (0, 240, 40 + 90 + 200));
    assert_eq!(written(host(b"a")), (40, 200, 40 + 90 + 200));
    assert_eq!(written(present()), (0, 0, 0));
}

#[test]
fn bytes_come_from_the_registry_once_from_peers_or_were_here() {
    let held = |held_bytes, here: &[u8]| Host {
        held_bytes,
        ..host(here)
    };
    let in_place = |in_place_bytes, here: &[u8]| Host {
        in_place_bytes,
        ..host(here)
    };
    let away = |here: &[u8]| Host {
        connected: false,
        ..host(here)
    };
    // what a host is expected to move: registry, peers, local, written
    type Row = (
        &'static str,
        Vec<Host>,
        &'static [u8],
        Vec<(u64, u64, u64, u64)>,
    );
    let table: Vec<Row> = vec![
        (
            "one empty host",
            vec![host(b"")],
            b"",
            vec![(150, 0, 0, 350)],
        ),
        (
            "two share the registry's bytes",
            vec![host(b""); 2],
            b"",
            vec![(75, 75, 0, 350); 2],
        ),
        (
            "the first of three takes what doesn't divide",
            vec![host(b""); 3],
            b"b",
            vec![
                (14 + 4, 132, 0, 350),
                (13 + 3, 134, 0, 350),
                (13 + 3, 134, 0, 350),
            ],
        ),
        (
            "nothing leaves the registry that a host of the fleet has",
            vec![host(b"")],
            b"abc",
            vec![(0, 150, 0, 350)],
        ),
        (
            "a host that has the image",
            vec![present(), host(b"")],
            b"abc",
            vec![(0, 0, 0, 0), (0, 150, 0, 350)],
        ),
        (
            "a host with layers of another image copies them",
            vec![host(b"ac")],
            b"ac",
            vec![(100, 0, 150, 350)],
        ),
        (
            "a clone has most of them in place",
            vec![in_place(120, b"ac")],
            b"ac",
            vec![(100, 0, 150, 230)],
        ),
        (
            "more in place than is local is nonsense, and writes what is missing",
            vec![in_place(1_000, b"ac")],
            b"ac",
            vec![(100, 0, 150, 200)],
        ),
        (
            "a stage holds some of what is local",
            vec![held(100, b"ac")],
            b"ac",
            vec![(100, 0, 50, 250)],
        ),
        (
            "a stage holds all that is local, and half of the rest",
            vec![held(250, b"ac")],
            b"ac",
            vec![(50, 0, 0, 100)],
        ),
        (
            "a host that claims more than there is",
            vec![held(u64::MAX, b"ac")],
            b"ac",
            vec![(0, 0, 0, 0)],
        ),
        (
            "a host without a session is left to peers",
            vec![away(b""), host(b"")],
            b"",
            vec![(0, 150, 0, 350), (150, 0, 0, 350)],
        ),
        (
            "without any session, somebody has to fetch all the same",
            vec![away(b"")],
            b"",
            vec![(150, 0, 0, 350)],
        ),
        ("no host", vec![], b"", vec![]),
    ];
    for (case, hosts, available, expected) in table {
        assert_eq!(each(&hosts, available), expected, "{case}");
    }
}

#[test]
fn the_time_is_that_of_the_slowest_known_rate_and_what_isnt_known_is_named() {
    let rated = |link, upload, disk| Host {
        link,
        upload,
        disk,
        ..host(b"")
    };
    let time = |hosts: &[Host], registry| {
        let predicted = predict(&image(), hosts, &BTreeSet::new(), registry);
        let time = predicted.time.map(|(time, bound)| (time.as_secs(), bound));
        (time, predicted.unknown)
    };
    let four = |link, upload, disk| vec![rated(link, upload, disk); 4];
    use Bound::{Disk, Link, Registry, Uploads};
    let all = four(Some(10), Some(10), Some(70));
    assert_eq!(time(&all, Some(10)), (Some((15, Registry)), vec![]));
    assert_eq!(time(&all, Some(20)), (Some((15, Link)), vec![]));
    let weak = four(Some(10), Some(1), Some(70));
    assert_eq!(time(&weak, Some(12)), (Some((37, Uploads)), vec![]));
    let slow = four(Some(10), Some(10), Some(7));
    assert_eq!(time(&slow, Some(20)), (Some((50, Disk)), vec![]));
    // one host whose link nobody knows may be the slowest
    let mut one = all.clone();
    one[2].link = None;
    assert_eq!(time(&one, Some(10)), (Some((15, Registry)), vec![Link]));
    one[2].connected = false;
    assert_eq!(time(&one, Some(10)), (Some((15, Registry)), vec![]));
    let nothing = four(None, None, None);
    let unknown = vec![Registry, Link, Uploads, Disk];
    assert_eq!(time(&nothing, None), (None, unknown));
    // a lone host gets nothing from peers, so no upload can hold it up
    let lone = [rated(Some(10), None, None)];
    assert_eq!(time(&lone, Some(30)), (Some((15, Link)), vec![Disk]));
    // nothing moves: nothing is unknown
    assert_eq!(time(&[present()], None), (None, vec![]));
}

#[test]
fn any_figures_of_hosts_and_registries_are_taken() {
    let huge = [
        content(b'a', u64::MAX, u64::MAX),
        content(b'b', u64::MAX, 1),
    ];
    let hosts = vec![
        Host {
            held_bytes: 3,
            link: Some(u64::MAX),
            upload: Some(u64::MAX),
            disk: Some(0),
            ..host(b"")
        };
        3
    ];
    let predicted = predict(&huge, &hosts, &BTreeSet::new(), Some(0));
    assert_eq!(predicted.total.written, u64::MAX);
}

prop_compose! {
    fn any_host()(
        connected in any::<bool>(),
        present in prop::bool::weighted(0.2),
        held_bytes in prop_oneof![Just(0), 0..2_000u64, Just(u64::MAX)],
        here in prop::collection::btree_set(0..8u8, 0..6),
        in_place_bytes in 0..2_000u64,
        rates in any::<[Option<u16>; 3]>(),
    ) -> Host {
        let here: Vec<u8> = here.into_iter().collect();
        let [link, upload, disk] = rates.map(|rate| rate.map(u64::from));
        Host { connected, present, held_bytes, here: digests(&here), in_place_bytes, link, upload, disk }
    }
}

proptest! {
    #[test]
    fn the_parts_add_up_and_never_pass_the_image(
        // no content is empty
        sizes in prop::collection::vec((1..1_000u64, 0..1_000u64), 0..8),
        hosts in prop::collection::vec(any_host(), 0..7),
        available in prop::collection::btree_set(0..8u8, 0..8),
        registry in any::<Option<u16>>(),
    ) {
        let contents: Vec<Content> = sizes.iter().zip(0..).map(|((raw, packed), name)| content(name, *raw, *packed)).collect();
        let raw: u64 = contents.iter().map(|of| of.raw_bytes).sum();
        let packed: u64 = contents.iter().map(|of| of.packed_bytes).sum();
        let available = digests(&available.into_iter().collect::<Vec<_>>());
        let predicted = predict(&contents, &hosts, &available, registry.map(u64::from));
        prop_assert_eq!(predicted.hosts.len(), hosts.len());
        let sum = predicted.hosts.iter().fold(Moved::default(), |sum, of| sum.and(*of));
        prop_assert_eq!(sum, predicted.total);
        for (host, of) in hosts.iter().zip(&predicted.hosts) {
            prop_assert!(of.network() <= packed && of.written <= raw && of.local <= raw, "{}", format!("{of:?}"));
            if !host.present {
                prop_assert_eq!(of.missing + of.local + host.held_bytes.min(raw), raw);
            }
            let here = |content: &&Content| host.here.contains(&content.digest);
            let local: u64 = contents.iter().filter(here).map(|of| of.raw_bytes).sum();
            if host.present {
                prop_assert_eq!(*of, Moved::default());
            } else if host.held_bytes == 0 {
                prop_assert_eq!(of.local, local);
                // what isn't local is written, and so is what doesn't lie in its place
                prop_assert_eq!(of.written, raw - local.min(host.in_place_bytes));
                let lacking: u64 = contents.iter().filter(|of| !here(of)).map(|of| of.packed_bytes).sum();
                prop_assert_eq!(of.network(), lacking);
            } else if host.held_bytes >= raw {
                prop_assert_eq!(*of, Moved::default());
            }
        }
        // each byte leaves the registry once at most
        let nowhere: u64 = contents.iter().filter(|of| !available.contains(&of.digest)).map(|of| of.packed_bytes).sum();
        prop_assert!(predicted.total.registry <= nowhere);
        if hosts.iter().any(|host| !host.present && host.held_bytes == 0 && host.here.is_empty() && host.connected)
            && hosts.iter().all(|host| host.held_bytes == 0) {
            prop_assert_eq!(predicted.total.registry, nowhere);
        }
        if let Some((time, bound)) = predicted.time {
            prop_assert!(!time.is_zero() && !predicted.unknown.contains(&bound));
        }
    }
}
