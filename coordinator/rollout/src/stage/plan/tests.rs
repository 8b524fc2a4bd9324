use std::{format, vec};

mod anything;
mod faults;
mod leases;
mod liars;
mod loss;
mod mirrors;
mod neighbours;
mod odd_ranges;
mod orders;
mod origins;
mod ranges;
mod recipes;
mod registries;
mod trust;

use alloc::collections::BTreeMap;

use proto::ChunkRange;

use super::*;
use crate::stage::{
    action::RevokeCause,
    event::{Content, Fault, LeaseEnd, Purpose, Selection, Trouble},
    status::{HostReason, ImageReason},
};

fn host(at: usize) -> HostId {
    format!("host-{at}").parse().unwrap()
}

fn digest(at: usize) -> Digest {
    Digest::of(format!("content {at}").as_bytes())
}

fn image(at: usize) -> Digest {
    Digest::of(format!("image {at}").as_bytes())
}

fn at(millis: u64) -> Moment {
    Moment(millis * 1_000)
}

fn wanted(number: usize, contents: impl IntoIterator<Item = usize>, hosts: Selection) -> Event {
    Event::Wanted {
        image: image(number),
        references: vec![format!("registry.example/image:{number}")],
        contents: contents
            .into_iter()
            .map(|content| Content {
                digest: digest(content),
                chunks: 100,
                size: 100 << 20,
                origin_bytes: 1_000,
            })
            .collect(),
        recipe: None,
        hosts,
        paused: Vec::new(),
        purpose: Purpose::Stage,
    }
}

/// The same event, with these hosts held.
fn with_paused(event: Event, hosts: &[usize]) -> Event {
    match event {
        Event::Wanted {
            image,
            references,
            contents,
            recipe,
            hosts: selection,
            purpose,
            ..
        } => Event::Wanted {
            image,
            references,
            contents,
            recipe,
            hosts: selection,
            paused: hosts.iter().map(|number| host(*number)).collect(),
            purpose,
        },
        other => other,
    }
}

/// The same event, with this content as the image's recipe.
fn with_recipe(mut event: Event, content: usize) -> Event {
    if let Event::Wanted { recipe, .. } = &mut event {
        *recipe = Some(Content {
            digest: digest(content),
            chunks: 4,
            size: 4 << 20,
            origin_bytes: 4 << 20,
        });
    }
    event
}

/// A blob that clients of these hosts' mirrors wait for is wanted.
fn asked(number: usize, content: usize, hosts: &[usize]) -> Event {
    let hosts = hosts.iter().map(|number| host(*number)).collect();
    let mut event = wanted(number, [content], Selection::Hosts(hosts));
    if let Event::Wanted { purpose, .. } = &mut event {
        *purpose = Purpose::Mirror;
    }
    event
}

/// Feeds an event by the plan's own clock, so that the caller counts as never held up.
fn feed(plan: &mut Plan, millis: u64, event: Event) -> Vec<Action> {
    plan.note(at(millis), event);
    core::iter::from_fn(|| plan.poll()).collect()
}

/// A plan with this many connected hosts.
fn fleet(count: usize) -> Plan {
    let mut plan = Plan::new(Config::default(), 3);
    for number in 0..count {
        feed(
            &mut plan,
            0,
            Event::HostKnown {
                host: host(number),
                zone: format!("zone-{}", number % 2),
            },
        );
        feed(&mut plan, 0, Event::HostConnected(host(number)));
    }
    feed(&mut plan, 1_000, Event::Tick);
    plan
}

/// Feeds an order. Then every connected host reports that it stages.
fn want(plan: &mut Plan, millis: u64, event: Event) -> Vec<Action> {
    let Event::Wanted { image, .. } = &event else {
        panic!("an order");
    };
    let image = *image;
    let mut actions = feed(plan, millis, event);
    for number in 0..10 {
        let event = Event::Reported {
            host: host(number),
            image,
            standing: Standing::Staging,
            held_bytes: 0,
        };
        actions.extend(feed(plan, millis, event));
    }
    actions
}

fn grants(actions: &[Action]) -> Vec<(HostId, Digest)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Grant { host, content, .. } => Some((host.clone(), *content)),
            _ => None,
        })
        .collect()
}

fn ended(host: &HostId, content: Digest, end: LeaseEnd) -> Event {
    Event::LeaseEnded {
        range: None,
        host: host.clone(),
        content,
        end,
    }
}

fn report(number: usize, of: usize, standing: Standing, held_bytes: u64) -> Event {
    Event::Reported {
        host: host(number),
        image: image(of),
        standing,
        held_bytes,
    }
}

fn running(host: &HostId, content: Digest, chunks: u32, trouble: Option<Trouble>) -> Event {
    Event::LeaseProgress {
        range: None,
        host: host.clone(),
        content,
        chunks,
        bytes: 0,
        paced: false,
        trouble,
    }
}

/// The number of leases that are taken back because the registry fails them. Panics if one is taken back for another
/// reason.
fn revokes(actions: &[Action]) -> usize {
    let revoked = actions.iter().filter_map(|action| match action {
        Action::Revoke { cause, .. } => Some(*cause),
        _ => None,
    });
    let revoked: Vec<RevokeCause> = revoked.collect();
    let failed = |cause: &RevokeCause| *cause == RevokeCause::OriginFailed;
    assert!(revoked.iter().all(failed), "{actions:?}");
    revoked.len()
}

fn progress(by: &HostId, content: Digest, chunks: u32) -> Event {
    Event::LeaseProgress {
        range: None,
        host: by.clone(),
        content,
        chunks,
        bytes: 0,
        paced: false,
        trouble: None,
    }
}

/// A host blames another for bytes that didn't fit their link.
fn accused(by: usize, sender: usize) -> Event {
    Event::Blamed {
        by: host(by),
        host: host(sender),
    }
}

/// Feeds an order for an image of one content. Returns the host that the content is leased to.
fn leased(plan: &mut Plan, millis: u64, number: usize) -> HostId {
    let actions = want(plan, millis, wanted(number, [number], Selection::All));
    grants(&actions)[0].0.clone()
}

/// Whether leases go to other hosts first.
fn is_last(plan: &Plan, id: &HostId, now: Moment) -> bool {
    plan.hosts.get(id).unwrap().is_last_for_leases(now)
}
