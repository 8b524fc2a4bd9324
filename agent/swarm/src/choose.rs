//! The choice of a spreader: the host that is handed a chunk and passes it on to others. Of some candidates, the one
//! with the least to do is chosen.

use alloc::vec::Vec;

use proto::{ChunkIndex, HostKey};

use crate::{
    content::Content,
    event::ContentId,
    ground::Ground,
    pace::micros,
    peer::{Line, PeerIndex},
};

/// The outcome of a choice.
pub(crate) enum Choice {
    Me,
    Peer(PeerIndex),
    /// All candidates are loaded. In this many microseconds the least loaded one is free.
    Wait(u64),
    Nobody,
}

/// Bytes that a host sends when it is handed a chunk for everyone.
pub(crate) fn spread_bytes(ground: &Ground, id: ContentId, chunk: ChunkIndex) -> u64 {
    let content = ground.contents.get(id);
    let unwanted = content.map_or(0, Content::unwanted_count);
    // this host may have the content too, and isn't on its own roster
    let most = content
        .and_then(|content| content.entitled.as_ref())
        .map_or(usize::MAX, |entitled| entitled.len().saturating_sub(1));
    let hosts = ground.fleet.roster().len().min(most);
    let targets = hosts.saturating_sub(unwanted);
    let sends = if hosts > ground.config.direct_targets {
        ground.config.fan_out
    } else {
        targets
    };
    ground.contents.len(id, chunk) * sends as u64
}

/// How much work a host may have when it is handed a chunk for everyone, in bytes, if one spread is `work`.
fn allowed(ground: &Ground, (id, chunk): (ContentId, ChunkIndex), work: u64, percent: u64) -> u64 {
    let slack = ground.contents.len(id, chunk) * ground.config.spread_backlog_chunks;
    work.saturating_mul(percent) / 100 + slack
}

/// How much work a host may have when it takes one more spread over.
fn taken(ground: &Ground, of: (ContentId, ChunkIndex), work: u64) -> u64 {
    let least = ground.contents.len(of.0, of.1) * ground.config.spread_taken_chunks;
    allowed(ground, of, work, ground.config.spread_taken_percent).max(least)
}

/// Whether spreaders reach every host by themselves. Where they don't, spreads are made of parts, and work comes from
/// many hosts: no host knows beforehand how much it will have.
fn is_direct(ground: &Ground) -> bool {
    ground.fleet.roster().len() <= ground.config.direct_targets
}

/// Whether this host has too much work to spread one more chunk to everyone. `work_bytes`: the pushes that this host
/// has yet to send to hosts that take them, also of chunks that are still coming.
pub(crate) fn is_loaded(
    ground: &Ground,
    id: ContentId,
    chunk: ChunkIndex,
    work_bytes: u64,
) -> bool {
    let content = ground.contents.get(id);
    let known = content.is_some_and(|content| content.geometry.contains(chunk));
    let work = spread_bytes(ground, id, chunk);
    known && is_direct(ground) && work_bytes > taken(ground, (id, chunk), work)
}

/// A peer declined to spread a chunk to everyone, because it is busy. It isn't chosen again before it has had time for
/// a chunk, or says something else.
pub(crate) fn declined(ground: &mut Ground, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) {
    let (now, work) = (ground.now, spread_bytes(ground, id, chunk));
    let of = (id, chunk);
    let hoped = allowed(ground, of, work, ground.config.spread_backlog_percent);
    let most = taken(ground, of, work).min(hoped);
    let more = ground.contents.len(id, chunk);
    ground.fleet[peer].is_busy(now, most + more);
}

/// Chooses the spreader of a chunk for everyone: the host with the least to do among some random connected hosts and
/// ourselves. `backlog_bytes`: the pushes that we have yet to send.
pub(crate) fn choose(
    ground: &mut Ground,
    id: ContentId,
    chunk: ChunkIndex,
    backlog_bytes: u64,
) -> Choice {
    if ground.fleet.up().is_empty() {
        let mut roster = ground.fleet.roster().iter();
        let coming = roster.any(|index| ground.fleet[*index].line == Line::Dialling);
        return if coming {
            Choice::Wait(100_000)
        } else {
            Choice::Nobody
        };
    }
    let work = spread_bytes(ground, id, chunk);
    let best = least_loaded(ground, id, work);
    let (length, rate) = (ground.contents.len(id, chunk), ground.pace.rate());
    let own_work = work + length;
    let own_score = micros(backlog_bytes + own_work, rate);
    let of = (id, chunk);
    let hoped = allowed(ground, of, work, ground.config.spread_backlog_percent);
    let taken = taken(ground, of, work);
    match best {
        Some((score, index)) if score <= own_score => {
            let peer = &ground.fleet[index];
            // a host that has just said how much it has to do would decline
            let told = is_direct(ground) && peer.spoke_within(ground.now, ground.config.load_every);
            let most = if told { taken.min(hoped) } else { hoped };
            match peer.excess_us(ground.now, most) {
                0 => Choice::Peer(index),
                excess => Choice::Wait(excess),
            }
        }
        _ => match backlog_bytes.saturating_sub(hoped) {
            0 => Choice::Me,
            excess => Choice::Wait(micros(excess, rate)),
        },
    }
}

/// The peer with the least to do among some connected ones, and how long its work takes with `work` on top, in
/// microseconds.
fn least_loaded(ground: &mut Ground, id: ContentId, work: u64) -> Option<(u64, PeerIndex)> {
    // where few hosts may have the content, random connected hosts would mostly be wrong ones
    let content = ground.contents.get(id);
    let entitled: Option<Vec<PeerIndex>> = content
        .filter(|content| content.entitled.is_some())
        .map(|content| {
            let up = ground.fleet.up().iter().copied();
            up.filter(|index| content.entitles(ground.fleet[*index].key))
                .collect()
        });
    let count = entitled.as_ref().map_or(ground.fleet.up().len(), Vec::len);
    let all = count <= ground.config.candidates;
    let tries = if all { count } else { ground.config.candidates };
    let mut best: Option<(u64, PeerIndex)> = None;
    for at in 0..tries {
        let at = if all { at } else { ground.random(count) };
        let index = entitled
            .as_ref()
            .map_or_else(|| ground.fleet.up()[at], |some| some[at]);
        let peer = &ground.fleet[index];
        let content = ground.contents.get(id);
        let unwanted = content.is_some_and(|content| content.is_unwanted_by(index));
        if !peer.is_up() || !peer.is_pushed_to(ground.now) || unwanted {
            continue;
        }
        let score = peer.outstanding_us(ground.now, work);
        if best.is_none_or(|(least, _)| score < least) {
            best = Some((score, index));
        }
    }
    best
}

/// Chooses the spreader of a chunk among `part`; the spreader has `work_bytes` to send. Only some connected hosts of
/// the part are looked at. While few are connected, some others are dialled for the next time.
pub(crate) fn choose_among(
    ground: &mut Ground,
    id: ContentId,
    part: &[HostKey],
    work_bytes: u64,
) -> Option<PeerIndex> {
    let candidates = ground.config.candidates;
    let mut best: Option<(bool, u64, PeerIndex)> = None;
    let start = ground.random(part.len().max(1));
    for connected in [true, false] {
        let enough = if connected {
            candidates
        } else {
            candidates / 2
        };
        let mut seen = 0;
        for at in 0..part.len() {
            if seen >= enough {
                break;
            }
            let key = part[(start + at) % part.len()];
            let Some(index) = ground.fleet.find(key) else {
                continue;
            };
            let content = ground.contents.get(id);
            let unwanted = content
                .is_none_or(|content| content.is_unwanted_by(index) || !content.entitles(key));
            let peer = &ground.fleet[index];
            let up = peer.is_up();
            if unwanted
                || !peer.is_pushed_to(ground.now)
                || up != connected
                || !(up || ground.may_come_up(index))
            {
                continue;
            }
            if !up && ground.fleet.up().len() < ground.config.connections * 3 / 4 {
                ground.dial(index);
            }
            seen += 1;
            let score = ground.fleet[index].outstanding_us(ground.now, work_bytes);
            if best.is_none_or(|(best_up, least, _)| (!up, score) < (!best_up, least)) {
                best = Some((up, score, index));
            }
        }
        if seen >= candidates / 2 {
            break;
        }
    }
    best.map(|(_, _, index)| index)
}
