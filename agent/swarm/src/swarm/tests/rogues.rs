//! Peers that promise and don't keep it: what that costs is bounded, and costs honest hosts nothing.

use std::collections::BTreeMap;

use super::*;

const CHUNKS: u32 = 512;
const ID: ContentId = ContentId(0);

/// A neighbour that claims to hold everything.
#[derive(Clone, Copy)]
enum Rogue {
    /// It claims so again and again, and has none of the chunks that it is asked for. It says so after this many
    /// milliseconds.
    Misses(u64),
    /// It takes everything back before it claims so again.
    TakesBack(u64),
    /// It answers one request in this many, and none of the others.
    Answers(u32),
}

enum Due {
    Tick,
    Origin,
    Reannounce,
    Fed(Event),
}

/// The holder of a lease on a content of 512 chunks, and one neighbour. The registry takes 9 ms for each chunk.
struct Holder {
    swarm: Swarm,
    due: BTreeMap<(u64, u64), Due>,
    sequence: u64,
    now: u64,
    held: BTreeSet<u32>,
    until: u32,
    fetching: bool,
    asked: u32,
    shunned: u32,
}

impl Holder {
    fn schedule(&mut self, after: u64, due: Due) {
        self.sequence += 1;
        self.due.insert((self.now + after, self.sequence), due);
    }

    fn fetch(&mut self) {
        let next = (0..self.until).any(|chunk| !self.held.contains(&chunk));
        if next && !self.fetching {
            self.fetching = true;
            self.schedule(9, Due::Origin);
        }
    }

    fn feed(&mut self, rogue: Option<Rogue>, event: Event) {
        for action in feed(&mut self.swarm, self.now, event) {
            match action {
                Action::Fetch { until, .. } => {
                    self.until = until.0;
                    self.fetch();
                }
                Action::Request { chunk, .. } => {
                    self.asked += 1;
                    match rogue {
                        Some(Rogue::Misses(after) | Rogue::TakesBack(after)) => {
                            self.schedule(after, Due::Fed(missing(chunk.0)));
                        }
                        Some(Rogue::Answers(one_in)) if self.asked.is_multiple_of(one_in) => {
                            self.held.insert(chunk.0);
                            self.schedule(9, Due::Fed(arrived(0, chunk.0)));
                        }
                        _ => {}
                    }
                }
                Action::Push { peer, chunk, .. } => {
                    self.schedule(1, Due::Fed(sent(peer, chunk.0, Delivery::Already)));
                }
                Action::Report { .. } => self.shunned += 1,
                _ => {}
            }
        }
    }

    fn happen(&mut self, rogue: Option<Rogue>, due: Due) {
        match due {
            Due::Tick => {
                self.schedule(50, Due::Tick);
                self.feed(rogue, Event::Tick);
            }
            Due::Origin => {
                self.fetching = false;
                let next = (0..self.until).find(|chunk| !self.held.contains(chunk));
                if let Some(chunk) = next {
                    self.held.insert(chunk);
                    let event = Event::OriginChunk {
                        id: ID,
                        chunk: ChunkIndex(chunk),
                        wire_bytes: CHUNK,
                    };
                    self.feed(rogue, event);
                }
                self.fetch();
            }
            Due::Reannounce => {
                if let Some(Rogue::TakesBack(_)) = rogue {
                    self.feed(rogue, announced(0, 0, ChunkSet::empty(CHUNKS)));
                }
                if rogue.is_some() {
                    self.feed(rogue, announced(0, 0, ChunkSet::full(CHUNKS)));
                    self.schedule(250, Due::Reannounce);
                }
            }
            Due::Fed(event) => self.feed(rogue, event),
        }
    }
}

/// The seconds until the lease holder has everything, and the number of requests that it sent its neighbour.
fn fetched_beside(rogue: Option<Rogue>) -> (f64, u32) {
    let mut holder = Holder {
        swarm: among(1, Config::default()),
        due: BTreeMap::new(),
        sequence: 0,
        now: 0,
        held: BTreeSet::new(),
        until: 0,
        fetching: false,
        asked: 0,
        shunned: 0,
    };
    holder.feed(rogue, content(0, CHUNKS, ChunkSet::empty(CHUNKS)));
    holder.happen(rogue, Due::Reannounce);
    holder.feed(rogue, Event::Leased(ID));
    holder.schedule(250, Due::Tick);
    while holder.held.len() < CHUNKS as usize && holder.now < 36_000_000 {
        let ((at, _), due) = holder.due.pop_first().expect("ticks go on");
        holder.now = at.max(holder.now);
        holder.happen(rogue, due);
    }
    assert_eq!(holder.shunned, 0, "who breaks promises isn't accused");
    let seconds = Duration::from_millis(holder.now).as_secs_f64();
    (seconds, holder.asked)
}

#[test]
fn who_announces_everything_and_has_nothing_holds_up_a_content_for_seconds() {
    let (alone, _) = fetched_beside(None);
    assert!(alone < 5.0, "{alone}");
    for after in [1, 100, 900, 3_000, 9_500] {
        let (missing, asked) = fetched_beside(Some(Rogue::Misses(after)));
        assert!(
            missing < alone + 12.0,
            "missing after {after} ms: {missing}"
        );
        assert!(asked < 40, "missing after {after} ms: asked {asked} times");
        let (back, _) = fetched_beside(Some(Rogue::TakesBack(after)));
        assert!(back < alone + 12.0, "taken back, {after} ms: {back}");
    }
}

#[test]
fn who_delivers_now_and_then_holds_up_a_content_no_longer_than_that_is_worth() {
    for one_in in [2, 5, 20] {
        let (seconds, asked) = fetched_beside(Some(Rogue::Answers(one_in)));
        let delivered = f64::from(asked / one_in);
        assert!(
            seconds < 5.0 + 12.0 + 0.5 * delivered,
            "one in {one_in}: {seconds} s, delivered {delivered}"
        );
    }
}

fn missing(chunk: u32) -> Event {
    Event::NotArrived {
        peer: key(0),
        id: ID,
        chunk: ChunkIndex(chunk),
        failure: Failure::Missing,
    }
}

/// A swarm whose neighbour was asked for eight chunks and has none of them.
fn disappointed() -> (Swarm, u64) {
    let mut swarm = among(1, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    feed(&mut swarm, 0, announced(0, 0, ChunkSet::full(64)));
    let (mut now, mut missed) = (0, 0);
    while missed < 8 {
        now += 50;
        assert!(now < 60_000, "asked for chunks");
        for (_, chunk) in requests(&feed(&mut swarm, now, Event::Tick)) {
            feed(&mut swarm, now, missing(chunk));
            missed += 1;
        }
    }
    (swarm, now)
}

/// The number of requests within this many milliseconds, and whether any peer was told everything anew.
fn asked_within(swarm: &mut Swarm, from: u64, millis: u64) -> (usize, bool) {
    let (mut asked, mut told_anew) = (0, false);
    for now in (from..from + millis).step_by(50) {
        let actions = feed(swarm, now, Event::Tick);
        asked += requests(&actions).len();
        told_anew |= actions
            .iter()
            .any(|action| matches!(action, Action::Announce { reset: true, .. }));
    }
    (asked, told_anew)
}

#[test]
fn who_broke_its_promises_is_believed_again_after_a_minute_and_asked_what_it_holds() {
    let (mut swarm, now) = disappointed();
    feed(&mut swarm, now, announced(0, 0, ChunkSet::full(64)));
    assert_eq!(asked_within(&mut swarm, now, 59_000), (0, false));
    assert_eq!(asked_within(&mut swarm, now + 59_000, 2_000), (0, true));
    let again = announced(0, 0, ChunkSet::full(64));
    assert!(!requests(&feed(&mut swarm, now + 61_000, again)).is_empty());
}

/// The peer is a host that lost its disk, or evicted the content, and stages it again.
#[test]
fn who_takes_its_word_back_is_believed_at_once() {
    let (mut swarm, now) = disappointed();
    feed(&mut swarm, now, announced(0, 0, ChunkSet::empty(64)));
    let news = Event::Announced {
        peer: key(0),
        id: ID,
        chunks: set(64, 0..4),
        reset: false,
    };
    feed(&mut swarm, now, news);
    let (asked, _) = asked_within(&mut swarm, now, 10_000);
    assert!(asked > 0);
}

/// The peer's process is killed again and again: the requested chunks don't come, and the peer comes back with all that
/// it had.
#[test]
fn who_comes_back_after_a_kill_is_asked_again() {
    let mut swarm = among(1, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    let mut now = 0;
    for _ in 0..10 {
        feed(&mut swarm, now, Event::Connected(key(0)));
        let actions = feed(&mut swarm, now, announced(0, 0, ChunkSet::full(64)));
        let (back, mut asked) = (now, requests(&actions));
        while asked.is_empty() {
            now += 50;
            assert!(now < back + 3_000, "asked again");
            asked = requests(&feed(&mut swarm, now, Event::Tick));
        }
        for (peer, chunk) in asked {
            let broken = Event::NotArrived {
                peer,
                id: ID,
                chunk: ChunkIndex(chunk),
                failure: Failure::Broken,
            };
            feed(&mut swarm, now, broken);
        }
        feed(&mut swarm, now, Event::Disconnected(key(0)));
    }
}

#[test]
fn who_offers_and_sends_nothing_finds_no_room_for_more() {
    let mut swarm = among(1, Config::default());
    feed(&mut swarm, 0, content(0, 512, ChunkSet::empty(512)));
    let (mut accepted, mut chunk) = (0, 0);
    for now in (0..300_000).step_by(50) {
        feed(&mut swarm, now, Event::Tick);
        // a chunk that comes makes the others believed
        if chunk % 5 == 4 {
            feed(&mut swarm, now, arrived(0, chunk));
        }
        let actions = feed(&mut swarm, now, offered(1, 0, chunk % 512, None));
        if actions.contains(&Action::Accept(Ticket(1))) {
            accepted += 1;
            chunk += 1;
        }
    }
    assert!(accepted <= 60, "{accepted} accepted in five minutes");
}

#[test]
fn who_sends_parts_that_fit_nothing_is_listened_to_ever_more_rarely() {
    let mut swarm = among(1, Config::default());
    feed(&mut swarm, 0, content(0, 512, ChunkSet::empty(512)));
    let mut accepted = 0;
    for now in (0..60_000).step_by(50) {
        feed(&mut swarm, now, Event::Tick);
        let actions = feed(&mut swarm, now, offered(1, 0, accepted, None));
        if actions.contains(&Action::Accept(Ticket(1))) {
            let unfit = Event::NotArrived {
                peer: key(0),
                id: ID,
                chunk: ChunkIndex(accepted),
                failure: Failure::Unfit,
            };
            feed(&mut swarm, now, unfit);
            accepted += 1;
        }
    }
    assert!(
        (2..=7).contains(&accepted),
        "{accepted} accepted in a minute"
    );
    assert!(swarm.status(at(60_000)).quarantined.is_empty());
}

#[test]
fn who_takes_nothing_of_what_it_is_sent_takes_no_place_from_others() {
    let mut swarm = among(30, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::full(64)));
    let mut to = BTreeSet::new();
    let first = feed(&mut swarm, 0, offered(1, 0, 0, Some(Spread::Everyone)));
    to.extend(pushes(&first).iter().map(|(peer, ..)| *peer));
    assert_eq!(to.len(), 6);
    // until then the pushes may be slow because all are
    let early = feed(&mut swarm, 4_500, Event::Tick);
    assert_eq!(pushes(&early), []);
    for tick in 1..40 {
        let now = 4_500 + tick * 250;
        let mut pushed = pushes(&feed(&mut swarm, now, Event::Tick));
        while let Some((peer, chunk, _)) = pushed.pop() {
            assert!(to.insert(peer), "sent again to one that takes nothing");
            if to.len() > 12 {
                let stored = sent(peer, chunk, Delivery::Stored);
                pushed.extend(pushes(&feed(&mut swarm, now, stored)));
            }
        }
    }
    assert_eq!(to.len(), 29, "everybody but who asked for the spread");
}

#[test]
fn who_asks_to_spread_what_is_held_is_given_a_bounded_part_of_the_queue() {
    let mut swarm = among(30, Config::default());
    feed(&mut swarm, 0, content(0, 512, ChunkSet::full(512)));
    for chunk in 0..512 {
        for _ in 0..2 {
            let offer = offered(1, 0, chunk, Some(Spread::Everyone));
            let actions = feed(&mut swarm, 0, offer);
            assert!(actions.contains(&Action::Decline(Ticket(1), Declined::Already)));
        }
    }
    assert_eq!(swarm.pushes.jobs().len(), 16);
    feed(&mut swarm, 0, offered(1, 1, 0, Some(Spread::Everyone)));
    assert_eq!(swarm.pushes.jobs().len(), 16, "it is being spread already");
    feed(&mut swarm, 0, offered(1, 1, 100, Some(Spread::Everyone)));
    assert_eq!(
        swarm.pushes.jobs().len(),
        17,
        "another host's wish counts for itself"
    );
}

fn from_origin(chunk: u32) -> Event {
    Event::OriginChunk {
        id: ID,
        chunk: ChunkIndex(chunk),
        wire_bytes: CHUNK,
    }
}

fn asked(ticket: u64, peer: u64, chunk: u32) -> Event {
    Event::Requested {
        ticket: Ticket(ticket),
        peer: key(peer),
        id: ID,
        chunk: ChunkIndex(chunk),
    }
}

fn served(actions: &[Action]) -> Vec<u64> {
    let served = actions.iter().filter_map(|action| match action {
        Action::Serve(ticket) => Some(ticket.0),
        _ => None,
    });
    served.collect()
}

#[test]
fn who_takes_what_it_asks_for_and_no_push_is_answered_when_nobody_else_waits() {
    let one = Config {
        uploads: 1,
        ..Config::default()
    };
    let mut swarm = among(3, one);
    feed(&mut swarm, 0, content(0, 64, ChunkSet::full(64)));
    // peer 0 lets a push expire
    let to_all = Some(Spread::To(vec![key(0)]));
    let pushed = pushes(&feed(&mut swarm, 0, offered(1, 1, 0, to_all)));
    assert_eq!(
        pushed.iter().map(|(to, ..)| *to).collect::<Vec<_>>(),
        [key(0)]
    );
    feed(&mut swarm, 6_000, Event::Tick);
    feed(&mut swarm, 10_000, sent(key(0), 0, Delivery::Broken));
    // an upload is under way; then both peers ask, peer 0 first
    assert_eq!(served(&feed(&mut swarm, 20_000, asked(2, 1, 5))), [2]);
    assert!(served(&feed(&mut swarm, 20_001, asked(3, 0, 6))).is_empty());
    assert!(served(&feed(&mut swarm, 20_002, asked(4, 2, 6))).is_empty());
    let answered = |ticket, peer, chunk| Event::Sent {
        peer: key(peer),
        id: ID,
        chunk: ChunkIndex(chunk),
        ticket: Some(Ticket(ticket)),
        delivery: Delivery::Stored,
        wire_bytes: CHUNK,
        work_bytes: CHUNK,
    };
    assert_eq!(served(&feed(&mut swarm, 20_010, answered(2, 1, 5))), [4]);
    assert_eq!(served(&feed(&mut swarm, 20_020, answered(4, 2, 6))), [3]);
    // the peer took a chunk that it asked for, which doesn't show that it passes chunks on
    feed(&mut swarm, 20_030, answered(3, 0, 6));
    assert_eq!(served(&feed(&mut swarm, 20_031, asked(5, 0, 7))), [5]);
    feed(&mut swarm, 20_032, asked(6, 0, 8));
    feed(&mut swarm, 20_033, asked(7, 1, 8));
    assert_eq!(served(&feed(&mut swarm, 20_040, answered(5, 0, 7))), [7]);
}

#[test]
fn a_chunk_does_not_wait_for_a_spreader_that_keeps_an_upload_waiting() {
    let mut swarm = among(3, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    feed(&mut swarm, 0, Event::Leased(ID));
    let mut silent = None;
    let mut handed_on = BTreeSet::new();
    let mut chunks = 0..40;
    for step in 0..400_u64 {
        let now = step * 25;
        let event = match (step % 8 == 0).then(|| chunks.next()).flatten() {
            Some(chunk) => from_origin(chunk),
            None => Event::Tick,
        };
        let mut under_way = pushes(&feed(&mut swarm, now, event));
        while let Some((to, chunk, _)) = under_way.pop() {
            if to == *silent.get_or_insert(to) {
                continue;
            }
            handed_on.insert(chunk);
            let stored = sent(to, chunk, Delivery::Stored);
            under_way.extend(pushes(&feed(&mut swarm, now, stored)));
        }
    }
    assert_eq!(handed_on.len(), 40, "{handed_on:?}");
    assert!(swarm.pushes.handovers() == 0 && swarm.pushes.unassigned() == 0);
}
