//! Promises: checked at each step where that is cheap, and over all hosts every few seconds.

use proto::{ChunkIndex, ChunkSet, Digest, HostKey};

use crate::{network::Nanos, scenario::Scenario};

use super::{
    contents::ImageKind,
    due::Due,
    state::{REPORT_EVERY, State},
    units::precise,
};

/// Promises that need a look at all hosts are checked this often.
pub(super) const SAMPLE_EVERY: Nanos = 5_000_000_000;
/// One host is leased one content at most so many times within this time: at once, and then after pauses of 1, 2 and 4
/// seconds.
const GRANTS_MOST: usize = 4;
const GRANTS_WITHIN: Nanos = 10_000_000_000;
/// A host that gains nothing for this long has to be able to say why.
const STALL: Nanos = 10_000_000_000;
/// Hosts looked at in one sample.
const SAMPLED: usize = 50;
/// A chunk may be asked of two peers when no more than this are missing.
const NEAR_THE_END: u64 = 8;

/// Whom a swarm talks to has to be on its roster.
pub(super) fn check_peer(world: &mut State, host: u32, key: HostKey) -> Option<u32> {
    let peer = world.find(key);
    let allowed = peer.is_some_and(|peer| world.node(host).roster[peer as usize]);
    if !allowed {
        world
            .findings
            .note("talked to a host that isn't on its roster");
        return None;
    }
    peer
}

/// Only chunks that are held are announced.
pub(super) fn check_announced(world: &mut State, host: u32, content: u32, chunks: &ChunkSet) {
    let held = &world.node(host).held[content as usize];
    let false_news = chunks
        .words()
        .iter()
        .zip(held.words())
        .any(|(said, held)| said & !held != 0);
    if false_news {
        world.findings.note("announced a chunk that isn't held");
    }
}

/// A chunk that is held isn't requested, and one chunk is requested of two peers only near the end.
pub(super) fn check_request(world: &mut State, host: u32, peer: u32, content: u32, chunk: u32) {
    let node = world.node_mut(host);
    let held = node.held[content as usize].contains(ChunkIndex(chunk));
    let asked = node.requested.entry((content, chunk)).or_default();
    asked.push(peer);
    let twice = asked.len() > 1;
    if held {
        world.findings.note("requested a chunk that is held");
    }
    if twice && missing(world, host, content) > NEAR_THE_END {
        world
            .findings
            .note("asked two peers for one chunk before the end");
    }
}

/// Where all hosts finish images in one order, none has a later image before an earlier one.
pub(super) fn check_sequence(world: &mut State, host: u32, image: usize) {
    let node = world.node(host);
    let earlier = node.sequence.iter().take_while(|other| **other != image);
    let lacks = earlier.filter(|other| node.whole_at[**other].is_none());
    if world.setup.scenario == Scenario::Several && lacks.count() > 0 {
        world
            .findings
            .note("finished a later image before an earlier one");
    }
}

/// Chunks that a host lacks of what it knows of and can have. Where it was told an order of images, the end is that of
/// the content's image.
fn missing(world: &State, host: u32, content: u32) -> u64 {
    let node = world.node(host);
    let image = world.specs[content as usize].image;
    let one = !node.sequence.is_empty();
    let known = world.specs.iter().zip(&node.held).filter(|(spec, _)| {
        let counts = !one || spec.image == image;
        counts && node.stages[spec.image] && world.images[spec.image].kind != ImageKind::Hopeless
    });
    let missing = known.map(|(_, held)| u64::from(held.chunks() - held.count()));
    missing.sum()
}

/// What was asked of this peer comes, or won't come.
pub(super) fn settle_request(world: &mut State, host: u32, peer: u32, content: u32, chunk: u32) {
    let node = world.node_mut(host);
    if let Some(asked) = node.requested.get_mut(&(content, chunk)) {
        asked.retain(|other| *other != peer);
        if asked.is_empty() {
            node.requested.remove(&(content, chunk));
        }
    }
}

/// Nothing that was asked of this peer will come.
pub(super) fn settle_requests_of(world: &mut State, host: u32, peer: u32) {
    world.node_mut(host).requested.retain(|_, asked| {
        asked.retain(|other| *other != peer);
        !asked.is_empty()
    });
}

/// Uploads are bounded, and only chunks that are held are sent.
pub(super) fn count_upload(world: &mut State, host: u32, content: u32, chunk: u32) {
    let bound = world.setup.swarm.uploads + world.setup.swarm.slow_uploads;
    let node = world.node_mut(host);
    node.uploads += 1;
    let over = node.uploads > bound && node.pit.is_none();
    let lacks = !node.held[content as usize].contains(ChunkIndex(chunk));
    if over {
        world.findings.note("more uploads than the bound");
    }
    if lacks {
        world.findings.note("sent a chunk that isn't held");
    }
}

/// The registry is only fetched from under a lease, or without a coordinator for long enough.
pub(super) fn check_fetch(world: &mut State, host: u32, content: u32) {
    let node = world.node(host);
    let leased = node.leases.contains_key(&content);
    let grace = u64::try_from(world.setup.swarm.headless_after.as_nanos()).unwrap_or(u64::MAX);
    let headless = node
        .headless_since
        .is_some_and(|since| world.clock.now() >= since + grace)
        || (!node.session && node.headless_since.is_none());
    if !leased
        && !headless
        && !world.mirrors.may_fetch_alone(
            world.clock.now(),
            world.node(host).session,
            (host, content),
        )
    {
        world.findings.note("fetched without a lease");
    }
}

/// That the coordinator was held up takes no lease from a host that fetches.
pub(super) fn check_revoked(world: &mut State, host: u32, content: u32) {
    let grown = world.clock.now().saturating_sub(world.node(host).grown_at);
    let fetches = world.node(host).fetches.contains_key(&content);
    if world.setup.scenario == Scenario::Starved && fetches && grown < REPORT_EVERY {
        world
            .findings
            .note("a lease was taken back that brought chunks");
    }
}

/// No more leases are out than the registry is to have streams.
pub(super) fn check_leases(world: &mut State) {
    // mirrors have one in any case
    let most = world.setup.plan.origin_streams + usize::from(world.mirrors_first());
    if world.office.leases.len() > most {
        world.findings.note("more leases than origin streams");
    }
}

/// A host shuns another by itself: only one that lied to it.
pub(super) fn check_shunned(world: &mut State, by: u32, peer: u32) {
    // what rogues say they shun costs nobody anything
    if world.node(peer).is_honest() && world.node(by).is_honest() {
        world.findings.shun_honest(peer);
        world
            .findings
            .note("an honest host was quarantined by another");
    }
}

/// One host is leased one content a few times, and then after pauses.
pub(super) fn check_granted(world: &mut State, host: u32, content: Digest) {
    let now = world.clock.now();
    let granted = world.office.granted.entry((host, content)).or_default();
    granted.push_back(now);
    granted.retain(|at| now - at < GRANTS_WITHIN);
    if granted.len() > GRANTS_MOST {
        world
            .findings
            .note("one host was leased one content again and again");
    }
}

/// The fleet shuns only liars.
pub(super) fn check_quarantine(world: &mut State, host: u32) {
    if world.node(host).is_honest() {
        world.findings.shun_honest(host);
        world
            .findings
            .note("an honest host was quarantined by the fleet");
    }
}

/// A host is complete only when each chunk is there and true.
pub(super) fn check_installed(world: &mut State, host: u32) {
    let node = world.node(host);
    let held = world.specs.iter().zip(&node.held);
    let mut had = held.filter(|(spec, _)| world.images[spec.image].is_staged());
    let whole = had.all(|(_, held)| held.is_full());
    let lies = node.false_links.values().any(|links| !links.is_empty());
    if !whole || lies {
        world.findings.note("installed before every chunk was true");
    }
}

/// Looks at some hosts: who gains nothing says why.
pub(super) fn sample(world: &mut State) {
    world.at(world.clock.now() + SAMPLE_EVERY, Due::Sample);
    check_clients(world);
    let count = world.nodes.len();
    let start = world.random(count);
    let moment = world.moment();
    for at in 0..count.min(SAMPLED) {
        let node = &world.nodes[(start + at) % count];
        if !node.alive || !node.staged || node.missing == 0 || !node.wanted {
            continue;
        }
        let idle = world
            .clock
            .now()
            .saturating_sub(node.grown_at.max(world.ordered_at));
        if idle < STALL {
            continue;
        }
        let status = node.swarm.status(moment);
        let ids = status.contents.iter().map(|content| content.id);
        let ids: Vec<_> = ids.filter(|id| !world.is_mirrored(id.0)).collect();
        match status.standstill(&ids) {
            Some(still) => {
                world
                    .findings
                    .stall(still.stall.as_str(), precise(idle) / 1e9);
            }
            None => world.findings.note("a stall without a reason"),
        }
    }
    trace(world);
}

/// No client waits for longer than its host's turn takes.
fn check_clients(world: &mut State) {
    let in_vain = |(host, content): (u32, u32)| {
        let node = world.node(host);
        node.alive
            && !node.fetches.contains_key(&content)
            && world
                .mirrors
                .waits_in_vain(world.clock.now(), host, content)
    };
    if world.mirrors.wants().any(in_vain) {
        world
            .findings
            .note("a client waits, and its host does nothing");
    }
}

fn trace(world: &mut State) {
    if !world.setup.trace {
        return;
    }
    let count = world.nodes.len();
    let origin = world.uplinks[count].used;
    let ups: Nanos = world.uplinks[..count].iter().map(|line| line.used).sum();
    let downs: Nanos = world.nodes.iter().map(|node| node.down.used).sum();
    let (at, origin_before, ups_before, downs_before) = world.tally.traced;
    let span = precise((world.clock.now() - at).max(1));
    let hosts = precise(count as u64);
    let least = world
        .nodes
        .iter()
        .filter(|node| node.alive)
        .map(|node| node.missing)
        .max();
    let most = world
        .nodes
        .iter()
        .filter(|node| node.alive)
        .map(|node| node.missing)
        .min();
    #[expect(clippy::print_stderr, reason = "asked for by --trace")]
    {
        eprintln!(
            "{:8.1} s  origin {:.3}  up {:.3}  down {:.3}  missing {}..{}  pulled {}  complete {}",
            precise(world.clock.now()) / 1e9,
            precise(origin - origin_before) / span,
            precise(ups - ups_before) / span / hosts,
            precise(downs - downs_before) / span / hosts,
            most.unwrap_or(0),
            least.unwrap_or(0),
            world.tally.pulled,
            world
                .nodes
                .iter()
                .filter(|node| node.finished_at.is_some())
                .count(),
        );
    }
    world.tally.traced = (world.clock.now(), origin, ups, downs);
}

/// Writes what keeps hosts that aren't complete. Only with `--trace`.
pub(super) fn explain_unfinished(world: &mut State) {
    if !world.setup.trace {
        return;
    }
    let moment = world.moment();
    for node in &world.nodes {
        if node.wanted && node.finished_at.is_none() {
            let status = node.swarm.status(moment);
            #[expect(clippy::print_stderr, reason = "asked for by --trace")]
            {
                eprintln!(
                    "{} alive {} misses {}; connected {} quarantined {:?}; {:?}",
                    node.id,
                    node.alive,
                    node.missing,
                    status.connected,
                    status.quarantined,
                    status
                        .contents
                        .iter()
                        .filter(|content| content.held < content.chunks)
                        .take(3)
                        .collect::<Vec<_>>()
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Setup;

    #[test]
    fn a_host_that_is_leased_a_content_five_times_within_ten_seconds_is_a_broken_promise() {
        for (hosts, promises) in [(&[0, 0, 0, 0, 0][..], 1), (&[0, 0, 0, 0, 1][..], 0)] {
            let mut world = State::new(&Setup::new(Scenario::Fanout, 2, 1 << 20, 1));
            let content = world.specs[0].digest;
            for host in hosts {
                check_granted(&mut world, *host, content);
            }
            assert_eq!(world.findings.violations().len(), promises, "{hosts:?}");
        }
    }
}
