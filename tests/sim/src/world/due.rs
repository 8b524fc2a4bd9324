//! What is to happen, what is said, and what goes wrong.

use rollout::stage;

use crate::network::{Nanos, TransferId};

/// What happens at a moment. An event of an earlier life of its host, or of an earlier coordinator, is void.
#[derive(Debug)]
pub(super) enum Due {
    /// A swarm's timer is due.
    Timer { host: u32, life: u32 },
    /// A line out has sent its piece.
    UplinkFree(u32),
    /// A piece has come in.
    Piece(TransferId),
    /// A transfer with a tar-pit at one end is given up by the other.
    Stuck(TransferId),
    /// The host `a` has dialled `b`, and the handshake is over.
    Handshake { a: u32, b: u32, lives: (u32, u32) },
    /// A host notices that its line to a peer is dead.
    LineDead { host: u32, peer: u32, life: u32 },
    /// A host reports to the coordinator.
    Report { host: u32, life: u32 },
    /// The pause of a refused fetch is over.
    AskAgain { host: u32, life: u32, content: u32 },
    /// The registry has given a whole chunk, slowly.
    Given {
        host: u32,
        life: u32,
        content: u32,
        chunk: u32,
    },
    /// An order to stage takes effect.
    Stage { host: u32, life: u32, image: usize },
    /// A rogue tells its peers something.
    Rogue(u32),
    /// A rogue says that it lacks what it announced.
    Missed(Question),
    /// The plan's timer is due.
    PlanTimer,
    /// The coordinator has time for what it was told.
    Office { term: u32 },
    /// A host that lost its session connects anew.
    Session { host: u32, life: u32 },
    /// The checks look at all hosts.
    Sample,
    /// A client of this host's mirror wants a blob.
    Client { host: u32, content: u32 },
    /// The coordinator says what comes to clients of mirrors.
    Queue,
    /// The planned fault of this number happens.
    Fault(usize),
    /// The images of the beginning are wanted from now on.
    Order,
}

/// What is under way between hosts, or between a host and the coordinator. A message to an earlier life or
/// coordinator is lost.
#[derive(Debug)]
pub(super) enum Message {
    ToHost {
        host: u32,
        life: u32,
        event: swarm::Event,
    },
    Offer(TransferId),
    Ask(Question),
    ToPlan {
        term: u32,
        event: stage::Event,
    },
}

/// A request of one host to another.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) asker: u32,
    pub(super) server: u32,
    pub(super) content: u32,
    pub(super) chunk: u32,
}

/// What goes wrong, or right again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The agent is killed; what its journal didn't vouch for is lost.
    Crash(u32),
    /// A host that crashed comes back.
    Return(u32),
    /// The host joins the fleet.
    Join(u32),
    /// Some lease holder leaves for ever.
    HolderVanishes,
    /// Some host that fetches leaves for ever.
    FetcherVanishes,
    /// The disk of some lease holder fails.
    DiskFails,
    /// The two halves of the fleet don't reach each other.
    Cut,
    /// The halves reach each other again.
    Heal,
    /// The coordinator goes.
    CoordinatorGone,
    /// Another coordinator takes over.
    CoordinatorChanges,
    /// The image isn't wanted any more on the hosts that are away.
    Unwanted,
    /// The registry's line has this rate from now on.
    OriginRate(u64),
    /// The registry breaks all streams off, and answers nothing.
    OriginDown,
    /// An image is wanted from now on, too.
    Order(usize),
    /// The registry answers again.
    OriginUp,
    /// What the registry sends of some content that is being fetched is false from here on.
    OriginCorrupt,
    /// The image is paused everywhere.
    Pause,
    /// What was under way has come in: nothing more moves from here.
    Still,
    /// The image is wanted again.
    Resume,
    /// The registry breaks all streams off, and refuses new ones for so many seconds, which it says.
    OriginThrottles(u64),
    /// The coordinator handles nothing for so long, and then what has come meanwhile.
    CoordinatorStands(Nanos),
    /// Each event takes the coordinator so long from now on.
    CoordinatorWorks(Nanos),
    /// All hosts lose their session with a coordinator that stands still, and get another one after so long.
    SessionsLost(Nanos),
    /// All agents and the coordinator are killed.
    AllDown,
    /// Agents and coordinator start again.
    AllUp,
}
