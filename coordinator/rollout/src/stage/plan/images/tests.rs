use alloc::{format, vec};

use super::*;

const START: Moment = Moment(1_000_000_000);
const MOMENT: Duration = Duration::from_micros(1);

fn host(number: u32) -> HostId {
    format!("host-{number}").parse().unwrap()
}

fn digest(number: u32) -> Digest {
    Digest::of(&number.to_be_bytes())
}

fn content(number: u32, size: u64) -> Content {
    Content {
        digest: digest(number),
        chunks: 4,
        size,
        origin_bytes: 1_000,
    }
}

/// An order of image 100 on the `selected` hosts. The `keepers` keep what they have of the image.
fn order(selected: &[u32], keepers: &[u32]) -> Order {
    let selected = selected.iter().map(|number| host(*number)).collect();
    let keepers = keepers.iter().map(|number| host(*number)).collect();
    Order::new(
        digest(100),
        vec!["registry.example/image:1".into()],
        (vec![content(1, 4), content(2, 4), content(1, 4)], None),
        (Selection::Hosts(selected), keepers),
        Purpose::Stage,
    )
}

/// Hosts 1 to `count`, connected.
fn fleet(count: u32) -> Hosts {
    let mut hosts = Hosts::default();
    for number in 1..=count {
        hosts.know(START, &host(number), String::new());
        hosts.connect(START, &host(number));
    }
    hosts
}

/// An image of one content of this size.
fn sized(images: &mut Images, image: u32, size: u64, purpose: Purpose) {
    let order = Order {
        image: digest(image),
        contents: vec![content(1, size)],
        purpose,
        ..order(&[], &[])
    };
    images.order(START, order, &Hosts::default());
}

#[test]
fn an_order_names_each_host_and_content_once_and_no_selected_host_keeps() {
    let order = order(&[3, 1, 3], &[1, 2]);
    assert_eq!(order.selection, Selection::Hosts(vec![host(1), host(3)]));
    assert_eq!(order.keepers, BTreeSet::from([host(2)]));
    let mut images = Images::default();
    images.order(START, order, &Hosts::default());
    let image = images.get(&digest(100)).unwrap();
    assert_eq!(image.contents(), [digest(1), digest(2)]);
    assert_eq!(image.registry(), "registry.example");
    assert_eq!(image.repository(), "registry.example/image");
}

#[test]
fn an_order_says_what_it_changes() {
    let (mut images, hosts) = (Images::default(), fleet(3));
    assert!(images.order(START, order(&[1, 2], &[]), &hosts).is_new);
    let change = images.order(START, order(&[1], &[2]), &hosts);
    assert!(!change.is_new && !change.renamed && !change.moved);
    assert_eq!(change.selected, [host(1), host(2)]);
    // a second reference after the first moves nothing
    let mut more = order(&[1], &[]);
    more.references.push("registry.example/image:2".into());
    let change = images.order(START, more, &hosts);
    assert_eq!((change.renamed, change.moved), (true, false));
    assert_eq!(change.keepers, BTreeSet::from([host(2)]));
    let mut other = order(&[1], &[]);
    other.references[0] = "other.example/image:1".into();
    assert!(images.order(START, other, &hosts).moved);
    assert_eq!(
        images.get(&digest(100)).unwrap().registry(),
        "other.example"
    );
}

#[test]
fn what_a_host_said_before_it_was_told_to_stop_is_over_unless_it_has_the_image() {
    let (mut images, hosts) = (Images::default(), fleet(3));
    let image = digest(100);
    images.order(START, order(&[1, 2, 3], &[]), &hosts);
    images.report(START, (&host(1), &image), Standing::Staging, 1);
    images.report(START, (&host(2), &image), Standing::Present, 4);
    images.order(START, order(&[3], &[]), &hosts);
    images.order(START, order(&[1, 2, 3], &[]), &hosts);
    let image = images.get(&image).unwrap();
    assert_eq!(image.standing(&host(1)), None);
    assert_eq!(image.standing(&host(2)), Some(Standing::Present));
}

#[test]
fn a_host_that_stages_and_holds_less_than_it_said_has_lost_something() {
    let (mut images, hosts) = (Images::default(), fleet(1));
    images.order(START, order(&[1], &[]), &hosts);
    let mut says = |at: u64, standing, held| {
        let of = (&host(1), &digest(100));
        let news = images.report(Moment(at), of, standing, held);
        news.unwrap().lost_since
    };
    assert_eq!(says(1, Standing::Staging, 5), None);
    assert_eq!(says(2, Standing::Staging, 5), None);
    assert_eq!(says(3, Standing::Staging, 4), Some(Moment(2)));
    assert_eq!(says(4, Standing::Gone, 0), None);
    assert_eq!(says(5, Standing::Staging, 0), None, "that was said");
}

#[test]
fn hosts_that_stage_are_candidates_and_after_five_seconds_those_that_wait() {
    let (mut images, hosts, config) = (Images::default(), fleet(6), Config::default());
    images.order(START, order(&[1, 2, 3, 4, 5], &[6]), &hosts);
    let image = digest(100);
    images.report(START, (&host(2), &image), Standing::Queued, 0);
    images.report(START, (&host(3), &image), Standing::Failed, 0);
    images.report(START, (&host(4), &image), Standing::Present, 0);
    let candidates = |images: &Images, now| -> Vec<HostId> {
        let image = images.get(&image).unwrap();
        let found = image.candidates(now, &hosts, &config);
        found.into_iter().cloned().collect()
    };
    let late = START + config.reports_within;
    assert_eq!(candidates(&images, late - MOMENT), []);
    assert_eq!(candidates(&images, late), [host(1), host(2), host(5)]);
    images.report(START, (&host(5), &image), Standing::Staging, 0);
    assert_eq!(candidates(&images, late), [host(5)]);
}

#[test]
fn half_of_the_hosts_are_waited_for_half_a_second() {
    let (mut images, hosts) = (Images::default(), fleet(4));
    images.order(START, order(&[1, 2, 3, 4], &[]), &hosts);
    images.report(START, (&host(1), &digest(100)), Standing::Queued, 0);
    let early = |images: &Images, now| {
        let image = images.get(&digest(100)).unwrap();
        image.is_early(now, &hosts)
    };
    assert!(early(&images, START + HALF_WITHIN - MOMENT));
    assert!(!early(&images, START + HALF_WITHIN));
    images.report(START, (&host(2), &digest(100)), Standing::Queued, 0);
    assert!(!early(&images, START));
}

#[test]
fn hosts_that_say_nothing_are_waited_for_while_they_are_here() {
    let (mut images, mut hosts) = (Images::default(), fleet(2));
    let config = Config::default();
    images.order(START, order(&[1, 2], &[]), &hosts);
    images.report(START, (&host(1), &digest(100)), Standing::Staging, 0);
    let awaits = |hosts: &Hosts, now| {
        let image = images.get(&digest(100)).unwrap();
        image.awaits_reports(now, hosts, &config)
    };
    let late = START + config.reports_within;
    assert!(awaits(&hosts, late - MOMENT));
    assert!(!awaits(&hosts, late));
    hosts.disconnect(START, &host(2));
    assert!(!awaits(&hosts, START));
}

#[test]
fn of_two_sizes_the_first_image_goes_before_until_it_is_cancelled() {
    let mut images = Images::default();
    sized(&mut images, 100, 4, Purpose::Stage);
    sized(&mut images, 101, 5, Purpose::Stage);
    let settled = images.settle();
    assert_eq!(
        (settled.stopped, settled.freed),
        (vec![digest(101)], vec![])
    );
    assert_eq!(images.settle(), Settled::default());
    images.cancel(&digest(100));
    assert_eq!(images.settle().freed, [digest(101)]);
}

#[test]
fn an_image_whose_size_was_disproved_goes_after_the_other() {
    let mut images = Images::default();
    sized(&mut images, 100, 4, Purpose::Stage);
    assert!(
        !images.disprove(digest(1), &digest(100)),
        "nobody contests it"
    );
    sized(&mut images, 101, 5, Purpose::Stage);
    images.settle();
    assert!(images.disprove(digest(1), &digest(100)));
    let settled = images.settle();
    assert_eq!(settled.stopped, [digest(100)]);
    assert_eq!(settled.freed, [digest(101)]);
}

#[test]
fn a_mirrors_blob_never_goes_before_an_image() {
    let mut images = Images::default();
    sized(&mut images, 100, 4, Purpose::Mirror);
    images.settle();
    sized(&mut images, 101, 5, Purpose::Stage);
    assert_eq!(images.settle().stopped, [digest(100)]);
}

#[test]
fn names_without_a_registry_stand_for_themselves_and_ports_are_no_tags() {
    let image = digest(100);
    let named = |reference: &str| {
        let references = [String::from(reference)];
        asked(image, &references)
    };
    let (port, name) = named("localhost:5000/a/b:1");
    assert_eq!(
        (port.as_str(), name.as_str()),
        ("localhost:5000", "localhost:5000/a/b")
    );
    assert_eq!(named("localhost:5000/a").1, "localhost:5000/a");
    assert_eq!(named(&format!("r.example/a@{image}")).1, "r.example/a");
    // one registry however it is written
    for hub in ["docker.io/a:1", "index.docker.io/library/a:1"] {
        let (registry, name) = named(hub);
        assert_eq!(registry, "docker.io", "{hub}");
        assert_eq!(name, "docker.io/library/a", "{hub}");
    }
    assert_eq!(named("bare"), (image.to_string(), image.to_string()));
    assert_eq!(asked(image, &[]), (image.to_string(), image.to_string()));
}
