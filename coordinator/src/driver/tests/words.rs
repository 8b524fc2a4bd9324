//! Tests the sentences about hosts that are away, turned away or revoked, and about registries.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use wire::{Bound, Fault, Untimely};

use super::*;
use crate::{
    config::HostEntry,
    driver::{Cause, Refused},
    enrolment::Revocation,
    metrics::encode,
};

fn refused(host: Option<&str>, address: &str, cause: Cause) -> Input {
    Input::Refused(Refused {
        host: host.map(|host| host.parse().unwrap()),
        address: address.parse().unwrap(),
        cause,
    })
}

/// What a clock finds that is 40 days late.
fn expired() -> Fault {
    let ended = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_874_712);
    Fault::Expired(Some(Untimely {
        clock: ended + Duration::from_hours(40 * 24),
        bound: Bound::Ended(ended),
    }))
}

fn why(world: &mut World, host: &str) -> String {
    world.settle();
    world.host(host).why.join("\n")
}

/// A host that had a session and lost it.
fn lost(world: &mut World, host: &str, remote: &str) {
    let at: SocketAddr = remote.parse().unwrap();
    let hello = message::Hello {
        peer_port: at.port().into(),
        ..World::hello()
    };
    let (session, _queue) = world.open_from(host, hello, remote);
    world.driver.apply(Input::Closed {
        host: host.parse().unwrap(),
        session,
    });
}

#[tokio::test]
async fn a_host_that_was_turned_away_says_why_by_its_name_or_its_address() {
    let mut world = World::new();
    lost(&mut world, "mini-1", "10.0.0.1:7471");
    lost(&mut world, "mini-2", "10.0.0.2:7471");
    lost(&mut world, "mini-3", "10.0.0.2:7472");
    let before = why(&mut world, "mini-1");
    assert!(before.contains("its session was lost"), "{before}");
    assert!(before.contains("parbake-agent status"), "{before}");
    // known by its certificate, from whatever address it connects
    let clock =
        "its certificate ended 2026-11-28 14:05:12 UTC, and by the clock here it is 2027-01-07";
    world.driver.apply(refused(
        Some("mini-1"),
        "192.0.2.9:1",
        Cause::Host(expired()),
    ));
    let now = why(&mut world, "mini-1");
    assert!(
        now.contains(clock) && now.contains("from 192.0.2.9:1"),
        "{now}"
    );
    // a host that refuses the coordinator doesn't say which host it is, but its address is the one that peers use
    world.driver.apply(refused(
        None,
        "10.0.0.2:7472",
        Cause::Coordinator(expired()),
    ));
    let said = why(&mut world, "mini-3");
    assert!(said.contains("it doesn't take this coordinator"), "{said}");
    assert!(said.contains("by its clock it is 2027-01-07"), "{said}");
    assert!(!why(&mut world, "mini-2").contains("by its clock"));
    // two hosts share the first IP address, so neither is meant; the second one is one host's alone
    world.driver.apply(refused(
        None,
        "10.0.0.2:50000",
        Cause::Coordinator(Fault::Protocol),
    ));
    world.driver.apply(refused(
        None,
        "10.0.0.1:50000",
        Cause::Coordinator(Fault::ForeignAuthority),
    ));
    let (protocol, foreign) = (Fault::Protocol, Fault::ForeignAuthority);
    let (protocol, foreign) = (protocol.of_us().to_string(), foreign.of_us().to_string());
    assert!(!why(&mut world, "mini-2").contains(&protocol));
    assert!(!why(&mut world, "mini-3").contains(&protocol));
    assert!(why(&mut world, "mini-1").contains(&foreign));
    // a session clears the refusal
    let (_, _queue) = world.open_from("mini-1", World::hello(), "10.0.0.1:7471");
    assert_eq!(why(&mut world, "mini-1"), "");
    assert_eq!(world.host("mini-1").refusal, None);
}

#[tokio::test]
async fn a_revoked_host_shows_when_and_why_and_what_takes_it_back() {
    let mut world = World::new();
    let mut membership = world.driver.members.membership().clone();
    let revocation = Revocation {
        at_unix: 1_795_874_712,
        reason: "disk died\u{1b}[2J".into(),
    };
    membership
        .revoked
        .insert("mini-3".parse().unwrap(), revocation);
    let now = world.driver.now();
    world.driver.join(now, Arc::new(membership));
    world.driver.apply(refused(
        Some("mini-3"),
        "10.0.0.3:7471",
        Cause::Host(Fault::Unauthorised),
    ));
    let said = why(&mut world, "mini-3");
    // the first line has the host's remedy; the other remedy wouldn't help
    assert!(!said.contains("add it to the fleet"), "{said}");
    assert!(
        said.starts_with(
            "it is revoked since 2026-11-28 14:05:12 UTC (disk died [2J); \
             `parbake-coordinator readmit mini-3` takes that back\n"
        ),
        "{said}"
    );
    assert!(
        said.contains("from 10.0.0.3:7471: it was turned away, because it is revoked"),
        "{said}"
    );
}

#[tokio::test]
async fn a_registry_that_fails_is_counted_as_that_and_ends_in_nobodys_revocation() {
    let mut world = World::new();
    let (session, mut queue) = world.open("a", World::hello());
    world.stage("one").unwrap();
    let image = want("one", 1, 1 << 20);
    let staging = message::ImageState {
        manifest: image.digest().as_bytes().to_vec(),
        state: message::StageState::Staging.into(),
        ..message::ImageState::default()
    };
    let lease = |content: &[u8]| message::LeaseState {
        content: content.to_vec(),
        trouble: message::OriginTrouble::Failing.into(),
        message: "connection refused".into(),
        ..message::LeaseState::default()
    };
    let mut leases: Vec<Vec<u8>> = Vec::new();
    for second in 0..8 {
        world.driver.frozen = Some(Moment::START + Duration::from_secs(10 + second));
        for order in taken(&mut queue, |kind| match kind {
            Kind::Lease(grant) => Some(grant.content.clone()),
            _ => None,
        }) {
            leases.push(order);
        }
        let report = message::Report {
            images: vec![staging.clone()],
            leases: leases.iter().map(|content| lease(content)).collect(),
            ..message::Report::default()
        };
        world.report("a", session, report);
        world.driver.apply(Input::Tick);
    }
    assert!(!leases.is_empty());
    let now = world.driver.now();
    let status = world.driver.plan.status(now);
    let shown = world.driver.facts(now).image_by(&image.digest(), &status);
    let shown = shown.unwrap();
    assert_eq!(shown.reason.as_deref(), Some("origin_down"));
    assert!(
        shown
            .message
            .starts_with("the registry fails: connection refused; it is asked again in"),
        "{}",
        shown.message
    );
    let text = encode(&world.registry).unwrap();
    let count = |outcome: &str| -> u64 {
        let line = format!("parbake_coordinator_lease_ends_total{{outcome=\"{outcome}\"}} ");
        let line = text.lines().find_map(|found| found.strip_prefix(&line));
        line.unwrap().parse().unwrap()
    };
    assert!(count("origin_failed") > 0, "{text}");
    assert_eq!(count("revoked"), 0);
}

#[tokio::test]
async fn an_image_that_lacks_only_hosts_that_are_away_names_them() {
    let mut world = World::new();
    let image = want("one", 1, 1 << 20);
    let name = image.references.first().unwrap().clone();
    let hello = message::Hello {
        takes_names: true,
        ..World::hello()
    };
    let (a, mut queue) = world.open("a", hello);
    lost(&mut world, "b", "10.0.0.2:7471");
    world.stage("one").unwrap();
    let numbers = taken(&mut queue, |kind| match kind {
        Kind::Names(names) => Some(names.number),
        _ => None,
    });
    let present = message::ImageState {
        manifest: image.digest().as_bytes().to_vec(),
        state: message::StageState::Present.into(),
        ready_references: vec![name],
        ..message::ImageState::default()
    };
    let report = message::Report {
        images: vec![present],
        names: numbers.last().copied().unwrap(),
        ..message::Report::default()
    };
    world.report("a", a, report);
    world.settle();
    let shown = world.view.borrow().images[&image.digest()].clone();
    assert_eq!(shown.reason.as_deref(), Some("hosts_away"));
    assert!(
        shown.message.starts_with("1 host is away or shunned: b (")
            && shown.message.ends_with("); it goes on when it is back"),
        "{}",
        shown.message
    );
    let host = &shown.hosts[1];
    assert!(
        host.message.starts_with("no session for "),
        "{}",
        host.message
    );
}

#[tokio::test]
async fn a_host_that_is_revoked_or_never_enrolled_is_said_to_be() {
    let mut world = World::new();
    let mut membership = world.driver.members.membership().clone();
    let [there, revoked] = ["mini-1", "mini-2"].map(|host| host.parse::<HostId>().unwrap());
    let never: HostId = "mini-4".parse().unwrap();
    for host in [&there, &revoked, &never] {
        membership
            .fleet
            .hosts
            .insert(host.clone(), HostEntry::default());
    }
    membership.enrolled = [(there.clone(), 0), (revoked.clone(), 0)].into();
    let revocation = Revocation {
        at_unix: 1_795_874_712,
        reason: "disk smells".into(),
    };
    membership.revoked.insert(revoked.clone(), revocation);
    let now = world.driver.now();
    world.driver.join(now, Arc::new(membership));
    let choose = |world: &mut World, host: &HostId| {
        let hosts = [host.clone()].into();
        let members = &world.driver.members;
        selected(members.hosts(), members.membership(), Some(&hosts))
            .map_err(|error| error.to_string())
    };
    assert_eq!(
        choose(&mut world, &revoked).unwrap_err(),
        "host mini-2 can't be chosen: it is revoked since 2026-11-28 14:05:12 UTC (disk smells); \
         `parbake-coordinator readmit mini-2` takes that back"
    );
    let stranger = "mini-9".parse().unwrap();
    assert!(
        choose(&mut world, &stranger)
            .unwrap_err()
            .contains("isn't part of the fleet")
    );

    world.stage("image").unwrap();
    let said = why(&mut world, "mini-4");
    assert!(said.starts_with("it never enrolled; "), "{said}");
    assert!(
        said.contains("parbake-coordinator token --host mini-4"),
        "{said}"
    );
    let said = why(&mut world, "mini-1");
    assert!(
        said.contains("has had no session since the coordinator started"),
        "{said}"
    );
    let listed = ["mini-1", "mini-4"].map(|host| (*world.host(host)).clone());
    let listed = parbake::hosts::listed(&listed);
    // after the total and the header
    let mut lines = listed.lines().skip(2);
    assert!(lines.next().unwrap().contains("away "), "{listed}");
    assert!(lines.next().unwrap().contains("never enrolled"), "{listed}");
    // nor once the host has had a session
    let (_, queue) = world.open("mini-4", World::hello());
    drop(queue);
    world.settle();
    assert!(!world.host("mini-4").never_enrolled);
}
