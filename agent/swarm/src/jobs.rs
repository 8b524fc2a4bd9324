//! Jobs: chunks that this host passes on to many targets, one target after the other.

use alloc::{collections::VecDeque, vec::Vec};
use core::time::Duration;

use proto::{ChunkIndex, HostKey, Moment};

use crate::{
    agenda::TICK,
    event::{ContentId, Delivery},
    ground::Ground,
    pace::micros,
    peer::{Line, PeerIndex},
    push::Wisher,
    uploads::is_received,
};

/// A push that a receiver declined as busy is tried again this many times. Then the receiver has to ask for the chunk.
const BUSY_TRIES: u8 = 24;
/// The longest wait before such a push is tried again.
const BUSY_WAIT_MOST: Duration = Duration::from_secs(1);
/// Jobs that are searched for a ready target, from the oldest on. More than are ever under way at one time, since
/// several may wait for the same dead host.
const AHEAD: usize = 16;
/// Targets of one job that are tried again in one pass.
const RETRIES_AHEAD: usize = 16;
/// The shortest time between two looks for the same thing.
pub(crate) const LOOK_LEAST: Duration = Duration::from_millis(1);

#[derive(Clone, Debug)]
struct Job {
    seq: u64,
    id: ContentId,
    chunk: ChunkIndex,
    targets: Targets,
    /// No target is ready before this moment.
    quiet_until: Moment,
    /// Targets that weren't ready: the peer, the number of tries, and the moment before which it isn't tried again.
    retry: VecDeque<(PeerIndex, u8, Moment)>,
    in_flight: usize,
    /// The number of targets that aren't settled.
    left: usize,
    wisher: Wisher,
}

impl Job {
    /// The work of one target, in bytes.
    fn work(&self, ground: &Ground) -> u64 {
        match self.wisher.makes_work() {
            true => ground.contents.len(self.id, self.chunk),
            false => 0,
        }
    }
}

#[derive(Clone, Debug)]
enum Targets {
    /// The roster from a random start with a random stride, so that spreaders don't all hit the same hosts.
    Everyone {
        at: usize,
        stride: usize,
        left: usize,
        except: Option<PeerIndex>,
    },
    List(Vec<PeerIndex>),
}

impl Targets {
    /// Targets that weren't tried yet.
    const fn len(&self) -> usize {
        match self {
            Self::Everyone { left, .. } => *left,
            Self::List(list) => list.len(),
        }
    }
}

enum Fitness {
    Ready,
    Later,
    Never,
}

/// The next push of a job.
pub(crate) struct Target {
    pub(crate) job: u64,
    pub(crate) tries: u8,
    pub(crate) peer: PeerIndex,
    pub(crate) id: ContentId,
    pub(crate) chunk: ChunkIndex,
}

/// The jobs, oldest first, and the number of bytes that they have yet to send.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    queue: VecDeque<Job>,
    next: u64,
    backlog_bytes: u64,
}

impl Jobs {
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes of pushes that we have yet to send.
    pub(crate) const fn backlog_bytes(&self) -> u64 {
        self.backlog_bytes
    }

    /// Bytes of pushes to targets that take what they are sent. The others hold up nobody's next chunk.
    pub(crate) fn ready_bytes(&self, ground: &Ground) -> u64 {
        let ready = |job: &Job| {
            let takes = |(peer, ..): &&(PeerIndex, u8, Moment)| ground.fleet[*peer].stuck == 0;
            job.targets.len() + job.retry.iter().filter(takes).count()
        };
        let jobs = self.queue.iter();
        jobs.map(|job| job.work(ground) * ready(job) as u64).sum()
    }

    /// The chunks that are passed on, and who wishes it.
    pub(crate) fn wishers(&self) -> impl Iterator<Item = (ContentId, ChunkIndex, Wisher)> + '_ {
        self.queue.iter().map(|job| (job.id, job.chunk, job.wisher))
    }

    /// Passes a chunk on to the whole roster.
    pub(crate) fn add_everyone(
        &mut self,
        ground: &mut Ground,
        id: ContentId,
        chunk: ChunkIndex,
        except: Option<PeerIndex>,
        wisher: Wisher,
    ) {
        let count = ground.fleet.roster().len();
        let at = ground.random(count.max(1));
        let mut stride = 1 + ground.random(count.max(1));
        while gcd(stride, count.max(1)) != 1 {
            stride += 1;
        }
        let targets = Targets::Everyone {
            at,
            stride,
            left: count,
            except,
        };
        self.add(ground, (id, chunk), targets, count, wisher);
    }

    /// Passes a chunk on to those of these hosts that are on the roster.
    pub(crate) fn add_list(
        &mut self,
        ground: &mut Ground,
        id: ContentId,
        chunk: ChunkIndex,
        keys: &[HostKey],
        (except, wisher): (Option<PeerIndex>, Wisher),
    ) {
        let most = ground.fleet.roster().len();
        let mut list: Vec<PeerIndex> = keys
            .iter()
            .take(most)
            .filter_map(|key| ground.fleet.find(*key))
            .filter(|index| Some(*index) != except)
            .collect();
        for at in (1..list.len()).rev() {
            let other = ground.random(at + 1);
            list.swap(at, other);
        }
        let left = list.len();
        self.add(ground, (id, chunk), Targets::List(list), left, wisher);
    }

    fn add(
        &mut self,
        ground: &mut Ground,
        (id, chunk): (ContentId, ChunkIndex),
        targets: Targets,
        left: usize,
        wisher: Wisher,
    ) {
        let known = ground.contents.get(id).is_some();
        if left == 0 || self.queue.len() >= ground.config.jobs || !known {
            if wisher.is_ours() {
                ground.handed_on(id);
            }
            return;
        }
        self.next += 1;
        ground.agenda.upload();
        let job = Job {
            seq: self.next,
            id,
            chunk,
            targets,
            quiet_until: Moment::START,
            retry: VecDeque::new(),
            in_flight: 0,
            left,
            wisher,
        };
        self.backlog_bytes += job.work(ground) * left as u64;
        self.queue.push_back(job);
    }

    /// The next target that can be pushed to now.
    pub(crate) fn next(&mut self, ground: &mut Ground) -> Option<Target> {
        let mut at = 0;
        while at < self.queue.len().min(AHEAD) {
            if self.queue[at].quiet_until > ground.now {
                at += 1;
                continue;
            }
            if let Some((peer, tries)) = self.next_target(ground, at) {
                let job = &mut self.queue[at];
                job.in_flight += 1;
                return Some(Target {
                    job: job.seq,
                    tries,
                    peer,
                    id: job.id,
                    chunk: job.chunk,
                });
            }
            if self.queue[at].left == 0 {
                self.remove(ground, at);
            } else {
                let job = &mut self.queue[at];
                let takes = micros(ground.contents.len(job.id, job.chunk), ground.pace.rate());
                let pause = Duration::from_micros(takes / 4);
                job.quiet_until = ground.now + pause.clamp(LOOK_LEAST, TICK);
                at += 1;
            }
        }
        None
    }

    /// When a receiver that was busy is tried again, if no job goes on before that.
    pub(crate) fn quiet_until(&self, now: Moment) -> Option<Moment> {
        let jobs = self.queue.iter().take(AHEAD);
        let later = jobs.map(|job| job.quiet_until);
        later.filter(|quiet_until| *quiet_until > now).min()
    }

    fn remove(&mut self, ground: &mut Ground, at: usize) {
        if let Some(job) = self.queue.remove(at) {
            let bytes = job.work(ground) * job.left as u64;
            self.backlog_bytes = self.backlog_bytes.saturating_sub(bytes);
            if job.wisher.is_ours() {
                ground.handed_on(job.id);
            }
        }
    }

    /// The next target of a job that can be pushed to now, and the number of tries so far.
    fn next_target(&mut self, ground: &mut Ground, at: usize) -> Option<(PeerIndex, u8)> {
        loop {
            let roster = ground.fleet.roster();
            let (next, except) = match &mut self.queue[at].targets {
                Targets::Everyone {
                    at,
                    stride,
                    left,
                    except,
                } if *left > 0 && !roster.is_empty() => {
                    *left -= 1;
                    *at %= roster.len();
                    let index = roster[*at];
                    *at += *stride;
                    (Some(index), *except)
                }
                Targets::Everyone { .. } => (None, None),
                Targets::List(list) => (list.pop(), None),
            };
            let Some(index) = next else {
                break;
            };
            if except == Some(index) {
                self.settle_target(ground, at);
                continue;
            }
            match self.fitness(ground, at, index) {
                Fitness::Ready => return Some((index, 0)),
                Fitness::Later => self.queue[at].retry.push_back((index, 0, ground.now)),
                Fitness::Never => self.settle_target(ground, at),
            }
        }
        for _ in 0..self.queue[at].retry.len().min(RETRIES_AHEAD) {
            let Some((index, tries, not_before)) = self.queue[at].retry.pop_front() else {
                break;
            };
            let later = (index, tries, not_before);
            if not_before > ground.now {
                self.queue[at].retry.push_back(later);
                continue;
            }
            match self.fitness(ground, at, index) {
                Fitness::Ready => return Some((index, tries)),
                Fitness::Later => self.queue[at].retry.push_back(later),
                Fitness::Never => self.settle_target(ground, at),
            }
        }
        None
    }

    /// Settles one target of a job, whether it received the chunk or not.
    fn settle_target(&mut self, ground: &Ground, at: usize) {
        let job = &mut self.queue[at];
        job.left = job.left.saturating_sub(1);
        self.backlog_bytes = self.backlog_bytes.saturating_sub(job.work(ground));
    }

    fn fitness(&self, ground: &mut Ground, at: usize, index: PeerIndex) -> Fitness {
        let (id, chunk) = (self.queue[at].id, self.queue[at].chunk);
        let peer = &ground.fleet[index];
        let content = ground.contents.get(id);
        let Some(content) = content.filter(|content| content.held.contains(chunk)) else {
            return Fitness::Never;
        };
        if peer.is_quarantined()
            || content.is_unwanted_by(index)
            || !content.entitles(peer.key)
            // a peer that takes nothing would hold an upload that others wait for; a peer that gives nothing has to ask
            || !peer.is_pushed_to(ground.now)
            || content.peer_has(peer.slot, chunk)
        {
            return Fitness::Never;
        }
        match peer.line {
            Line::Up if peer.uploads > 0 => Fitness::Later,
            Line::Up => Fitness::Ready,
            // a peer that was connected and went away has to ask later: waiting for it would hold up the others' chunks
            Line::Dialling | Line::Down if peer.dial_failures > 0 => Fitness::Never,
            Line::Dialling => Fitness::Later,
            Line::Down => {
                if ground.dial(index) || ground.may_come_up(index) {
                    Fitness::Later
                } else {
                    Fitness::Never
                }
            }
        }
    }

    /// A push of a job ended.
    pub(crate) fn settle(&mut self, ground: &mut Ground, target: &Target, delivery: Delivery) {
        let mut jobs = self.queue.iter();
        let Some(at) = jobs.position(|other| other.seq == target.job) else {
            return;
        };
        let job = &mut self.queue[at];
        job.in_flight -= 1;
        if is_received(delivery) && job.wisher.is_ours() {
            job.wisher = Wisher::Nobody;
            ground.handed_on(target.id);
        }
        if delivery == Delivery::Busy && target.tries < BUSY_TRIES {
            let chunks = ground.config.busy_wait_chunks * (u64::from(target.tries) / 4 + 1);
            let takes = micros(
                ground.contents.len(target.id, target.chunk),
                ground.pace.rate(),
            );
            let wait = Duration::from_micros(takes.saturating_mul(chunks)).min(BUSY_WAIT_MOST);
            let again = (target.peer, target.tries + 1, ground.now + wait);
            self.queue[at].retry.push_back(again);
        } else {
            self.settle_target(ground, at);
            if self.queue[at].left == 0 {
                self.remove(ground, at);
            }
        }
    }

    /// The content is dropped. The caller counts the backlog anew.
    pub(crate) fn drop_content(&mut self, id: ContentId) {
        self.queue.retain(|job| job.id != id);
    }

    /// The peer is forgotten: nothing may mention it. The caller counts the backlog anew.
    pub(crate) fn forget_peer(&mut self, index: PeerIndex) {
        for job in &mut self.queue {
            if job.wisher.peer() == Some(index) {
                job.wisher = Wisher::Nobody;
            }
            let before = job.retry.len();
            job.retry.retain(|(other, _, _)| *other != index);
            let mut gone = before - job.retry.len();
            match &mut job.targets {
                Targets::List(list) => {
                    let before = list.len();
                    list.retain(|other| *other != index);
                    gone += before - list.len();
                }
                Targets::Everyone { except, .. } => {
                    if *except == Some(index) {
                        *except = None;
                    }
                }
            }
            job.left = job.left.saturating_sub(gone);
        }
    }

    /// Adds bytes to the backlog that don't belong to jobs.
    pub(crate) const fn add_backlog(&mut self, bytes: u64) {
        self.backlog_bytes += bytes;
    }

    /// Takes bytes from the backlog that don't belong to jobs.
    pub(crate) const fn take_backlog(&mut self, bytes: u64) {
        self.backlog_bytes = self.backlog_bytes.saturating_sub(bytes);
    }

    /// Counts the backlog from scratch, after a rare event. `others`: bytes that don't belong to jobs.
    pub(crate) fn recount(&mut self, ground: &Ground, others: u64) {
        let jobs = self.queue.iter();
        let jobs: u64 = jobs.map(|job| job.work(ground) * job.left as u64).sum();
        self.backlog_bytes = jobs + others;
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
