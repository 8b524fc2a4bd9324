//! Lies of hosts: how they are told, how receivers see through them, and who is held to have told them.

use std::collections::BTreeSet;

use proto::{ChunkIndex, statement::Contradiction};
use rollout::stage;
use swarm::event::Failure;

use super::{
    act::{drop_chunk, drop_made_by, feed},
    links::{FalseLink, Lie, Run},
    node::Manner,
    origin::new_run,
    rogue::blame,
    state::State,
    units::index,
};

/// How often a liar lies, in percent of its uploads; half of them are bytes that don't fit, half are invented links.
const LIES_PERCENT: usize = 20;
/// False runs of one host from which on nothing that it made of the content is taken, as in the agent.
const RUNS_OF_MAKER: usize = 8;

/// Whether this upload is a lie.
pub(super) fn chosen_lie(world: &mut State, from: u32, to: u32, content: u32, chunk: u32) -> Lie {
    if !world.node(from).liar || world.node(to).liar {
        return Lie::None;
    }
    if world.random(100) >= LIES_PERCENT {
        return Lie::None;
    }
    let last = chunk + 1 == world.specs[content as usize].geometry.chunks();
    // Links are signed: only a host that was leased the content makes any, and in its own name. An invented link of the
    // last chunk doesn't end in the digest, so it is seen at once, like false bytes.
    let manner = world.node(from).manner;
    let may = world.node(from).tickets.contains_key(&content);
    if manner == Manner::Perjured {
        let victim = index(world.random(world.nodes.len()));
        blame(world, from, victim);
        if victim != from && world.node(victim).tickets.contains_key(&content) {
            show_maker(world, from, victim, content);
        }
    }
    if last || !may || world.random(2) == 0 {
        return Lie::Bytes;
    }
    let fetching = world.node(from).fetches.get(&content);
    let run = fetching.filter(|_| manner == Manner::Plain);
    let run = run.map(|fetching| fetching.run);
    Lie::Link(run.unwrap_or_else(|| new_run(world, from, content)))
}

/// Under which run the link of a chunk comes, and whether it is false. `None`: its sender vouches for it.
pub(super) fn signed(
    world: &State,
    from: u32,
    content: u32,
    chunk: u32,
    lie: Lie,
) -> (Option<u32>, Option<FalseLink>) {
    if let Lie::Link(run) = lie {
        let link = FalseLink {
            run,
            guilty: Some(from),
            registry: false,
        };
        return (Some(run), Some(link));
    }
    let sender = world.node(from);
    if sender
        .proved_from
        .get(content as usize)
        .is_none_or(|from| *from <= chunk)
    {
        return (None, None);
    }
    let links = sender.false_links.get(&content);
    let link = links.and_then(|links| links.get(&chunk)).copied();
    (sender.sources[content as usize][chunk as usize], link)
}

/// Whether the receiver sees at once that a chunk is false, or doesn't take its run any more.
pub(super) fn refuted(
    world: &mut State,
    to: u32,
    content: u32,
    chunk: u32,
    lie: Lie,
    run: Option<u32>,
    false_link: Option<FalseLink>,
) -> Option<Failure> {
    if lie == Lie::Bytes {
        return Some(Failure::Bad);
    }
    // a link that isn't the recipe's; its sender doesn't say that it is, and so isn't blamed
    if world.has_recipe(to, content) && (lie != Lie::None || false_link.is_some()) {
        return Some(Failure::Disproved);
    }
    let run = run.filter(|_| world.lies)?;
    let Run { maker, ticket } = world.runs[run as usize];
    let node = world.node(to);
    // nothing more is taken of a run of which a link was false, of a ticket with three such runs, or of a host
    // with eight; a false link of this host's own is one that it has just dropped
    let suspects = node.suspects.get(&content).map_or(&[][..], Vec::as_slice);
    let of_ticket = suspects.iter().filter(|link| {
        let other = world.runs[link.run as usize];
        (other.maker, other.ticket) == (maker, ticket)
    });
    let refused = suspects.iter().any(|link| link.run == run)
        || of_ticket.count() >= 3
        || false_runs(world, to, content, maker) >= RUNS_OF_MAKER;
    if refused || (maker == to && false_link.is_some()) {
        return Some(Failure::Disproved);
    }
    // a link that should end where a proved one starts
    let proved = node.proved_from.get(content as usize).copied();
    if let Some(link) = false_link
        && proved.is_some_and(|from| chunk + 1 >= from)
    {
        suspect(world, to, content, link);
        return Some(Failure::Disproved);
    }
    contradicts(world, to, content, chunk, run, false_link).then(|| {
        let event = stage::Event::Contradicted {
            maker: world.node(maker).id.clone(),
            says: Contradiction::Lie,
        };
        world.tell_plan_from(to, |_| event);
        feed(world, to, swarm::Event::Blamed(world.node(maker).key));
        Failure::Disproved
    })
}

/// Whether a link doesn't join what is held beside it of the same run: one of the two was invented.
fn contradicts(
    world: &State,
    host: u32,
    content: u32,
    chunk: u32,
    run: u32,
    false_link: Option<FalseLink>,
) -> bool {
    let node = world.node(host);
    if !world.node(world.runs[run as usize].maker).liar {
        return false;
    }
    let runs = &node.sources[content as usize];
    let held = &node.held[content as usize];
    let links = node.false_links.get(&content);
    [chunk.checked_sub(1), Some(chunk + 1)]
        .into_iter()
        .flatten()
        .any(|near| {
            let same = (near as usize) < runs.len()
                && held.contains(ChunkIndex(near))
                && runs[near as usize] == Some(run);
            let invented = links.is_some_and(|links| links.contains_key(&near));
            same && (invented || false_link.is_some())
        })
}

/// The registry's bytes come a second time: where they differ from what was made of them the first time, that is
/// taken back.
pub(super) fn take_back(world: &mut State, host: u32, content: u32, chunk: u32) {
    let false_link = world
        .node(host)
        .false_links
        .get(&content)
        .is_some_and(|links| links.contains_key(&chunk));
    if !false_link {
        return;
    }
    // what it made after it rests on it
    let made = |link: &FalseLink| world.runs[link.run as usize].maker == host;
    let links = world.node(host).false_links.get(&content);
    if links.is_some_and(|links| links.range(chunk..).any(|(_, link)| made(link))) {
        world.tell_plan_from(host, |world| stage::Event::Retracted {
            host: world.node(host).id.clone(),
            content: world.specs[content as usize].digest,
            from: chunk,
        });
    }
    drop_made_by(world, host, content, host, chunk);
    // another's lie is replaced where it lies
    drop_chunk(world, host, content, chunk);
}

/// A link was proved false: nothing more of its run is taken, and after so many runs nothing that its maker made.
pub(super) fn suspect(world: &mut State, host: u32, content: u32, link: FalseLink) {
    let maker = world.runs[link.run as usize].maker;
    let before = false_runs(world, host, content, maker);
    let suspects = &mut world.node_mut(host).suspects;
    suspects.entry(content).or_default().push(link);
    let now = false_runs(world, host, content, maker);
    if before < RUNS_OF_MAKER && now >= RUNS_OF_MAKER && maker != host {
        drop_made_by(world, host, content, maker, 0);
    }
}

/// Runs of one maker of which a host knows false links.
fn false_runs(world: &State, host: u32, content: u32, maker: u32) -> usize {
    let suspects = world.node(host).suspects.get(&content);
    let runs = suspects.into_iter().flatten().map(|link| link.run);
    let made = runs.filter(|run| world.runs[*run as usize].maker == maker);
    made.collect::<BTreeSet<_>>().len()
}

/// The content is whole: who made what was false in it is known.
pub(super) fn show_makers(world: &mut State, host: u32, content: u32) {
    let suspects = world.node_mut(host).suspects.remove(&content);
    let mut shown = BTreeSet::new();
    for link in suspects.into_iter().flatten() {
        let Some(guilty) = link.guilty.filter(|guilty| *guilty != host) else {
            continue;
        };
        if !world.node(guilty).liar && !link.registry {
            world
                .findings
                .note("an honest host is held to have made a false link");
        }
        if shown.insert(guilty) {
            show_maker(world, host, guilty, content);
        }
    }
}

fn show_maker(world: &mut State, by: u32, maker: u32, content: u32) {
    let digest = world.specs[content as usize].digest;
    world.tell_plan_from(by, |world| stage::Event::FalseLink {
        by: world.node(by).id.clone(),
        maker: world.node(maker).id.clone(),
        content: digest,
        vouched: false,
    });
}
