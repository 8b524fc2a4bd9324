//! `parbake gate run`: a command for each host, as soon as the host holds the image, under the cap of a group.
//!
//! [`Batch`] says for which hosts the gate is asked, which commands begin, and when it is over; it does nothing by
//! itself. The loop asks, runs commands and gives places back, each as a task of its own: none holds up another.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use client::{
    CallError, Client,
    gate::{
        AtMost, GateDone, GateDoneReply, GateReply, GateRequest, GateView, MAX_GATE_HOSTS, PlaceEnd,
    },
    patience::ANSWER_AWAITED,
    view::{HostView, ImageView},
};
use http::{Method, StatusCode};
use proto::ToldReason;
use serde::Serialize;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    call::{self, Number, ask, never_asked, passes},
    command::{self, About, How, Output},
    story::{FLUSH, Story},
    text,
};
use crate::{
    ended::{self, GateEnd, Outcome},
    follow::{self, Touch},
    say::{self, print},
};

/// How often the gate is asked while hosts are left.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// A command whose time is over has ended after this long: [`command::GRACE`], and what the system needs then.
const ENDS_WITHIN: Duration = Duration::from_secs(command::GRACE.as_secs() + 10);
/// A place lasts this much longer than its command may. Its time begins when the coordinator gives it, after the ask
/// was sent and up to [`ANSWER_AWAITED`] before its answer comes. An answer that comes later begins no command. So no
/// place ends before its command does.
const SLACK_SECONDS: u64 = ANSWER_AWAITED.as_secs() + ENDS_WITHIN.as_secs();
/// The longest time of a command.
const MAX_COMMAND_SECONDS: u64 = 86_400 - SLACK_SECONDS;
/// A place that can't be given back for this long is left to end by itself.
const GIVE_BACK: Duration = Duration::from_secs(60);

/// What is run, for which hosts.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The image: a reference under which it was staged, or its bare digest.
    image: String,
    /// Names of the hosts, separated by commas. [default: all hosts that the image was staged on]
    #[arg(long, value_delimiter = ',')]
    hosts: Option<Vec<String>>,
    /// Only hosts of this zone. [default: all zones]
    #[arg(long)]
    zone: Option<String>,
    /// The group in which each host takes a place: letters, digits, '.', '_' and '-'.
    #[arg(long, value_name = "NAME")]
    group: String,
    /// Most hosts of the group that may have a place: a number, or a percentage of the hosts that the image was staged
    /// on. The strictest of those that have a place or wait holds.
    #[arg(long, value_name = "N|P%")]
    at_most: AtMost,
    /// Seconds after which a command is ended, with all of its process group, and counts as failed.
    #[arg(long, value_name = "SECONDS", default_value_t = 1_800, value_parser = clap::value_parser!(u64).range(1..=MAX_COMMAND_SECONDS))]
    command_timeout: u64,
    /// Seconds after which no more commands begin. Those that run go on to their end. [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Go on with further hosts when a command fails.
    #[arg(long)]
    keep_going: bool,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
    /// The command and its arguments, behind `--`.
    #[arg(last = true, required = true, num_args = 1.., value_name = "COMMAND")]
    words: Vec<String>,
}

/// Where a host stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// The host waits for its image or for a place.
    Waiting,
    /// Its command runs.
    Running,
    /// Its command succeeded.
    Done,
    /// Its command failed, or couldn't be started.
    Failed,
    /// Its command's time was over.
    TimedOut,
    /// The operator ended its command.
    Stopped,
    /// The host didn't get ready; no command was run.
    NotReady,
    /// No command was run, because it was over before.
    NotStarted,
}

/// A host, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Line {
    host: String,
    state: State,
    /// The gate's last reason, where the host's command hasn't begun.
    reason: Option<ToldReason>,
    /// What happened, for people.
    message: String,
    exit_status: Option<i32>,
    seconds: Option<f64>,
    #[serde(skip)]
    began: Option<Instant>,
}

/// The hosts of one run.
#[derive(Debug)]
struct Batch {
    image: String,
    lines: BTreeMap<String, Line>,
    keep_going: bool,
    /// Why no more commands begin.
    over: Option<String>,
    /// Hosts that may have a place although no command began for them: an answer about them was lost, or came too late,
    /// or they have a place and aren't ready. The next answer says what is to be done.
    unsure: BTreeSet<String>,
    story: Story,
    /// The last host that the gate was asked about, where there are too many hosts for one ask.
    asked_to: Option<String>,
}

impl Batch {
    fn new(image: &str, hosts: BTreeSet<String>, keep_going: bool, story: Story) -> Self {
        let line = |host: String| Line {
            host,
            state: State::Waiting,
            reason: None,
            message: String::new(),
            exit_status: None,
            seconds: None,
            began: None,
        };
        Self {
            image: image.to_owned(),
            lines: hosts
                .into_iter()
                .map(|host| (host.clone(), line(host)))
                .collect(),
            keep_going,
            over: None,
            unsure: BTreeSet::new(),
            story,
            asked_to: None,
        }
    }

    fn count(&self, state: State) -> usize {
        self.lines
            .values()
            .filter(|line| line.state == state)
            .count()
    }

    /// The hosts to ask the gate about next: those that wait, a request's worth at a time.
    fn next_asked(&mut self) -> Vec<String> {
        if self.over.is_some() {
            return Vec::new();
        }
        let waiting = self
            .lines
            .values()
            .filter(|line| line.state == State::Waiting);
        let (before, behind): (Vec<_>, Vec<_>) =
            waiting.map(|line| line.host.clone()).partition(|host| {
                self.asked_to
                    .as_ref()
                    .is_some_and(|asked_to| host <= asked_to)
            });
        let mut hosts: Vec<String> = behind.into_iter().chain(before).collect();
        hosts.truncate(MAX_GATE_HOSTS);
        self.asked_to = hosts.last().cloned();
        hosts
    }

    /// The answer about these hosts was lost.
    fn lost(&mut self, hosts: Vec<String>) {
        self.unsure.extend(hosts);
    }

    /// When it is over: the hosts that may have a place, and about which nobody asks any more.
    fn left(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.unsure)
    }

    /// Takes the gate's answer to an ask that was sent at `asked_at`. Returns the hosts whose commands begin, and those
    /// whose places go back unused.
    fn answered(
        &mut self,
        now: Instant,
        asked_at: Instant,
        reply: GateReply,
    ) -> (Vec<GateView>, Vec<String>) {
        let (mut begin, mut unused) = (Vec::new(), Vec::new());
        let late = now.duration_since(asked_at) > ANSWER_AWAITED;
        for view in reply.hosts {
            let end = ended::of_gate(&view, &self.image);
            let over = self.over.is_some();
            let Some(line) = self.lines.get_mut(&view.host) else {
                continue;
            };
            let waits = line.state == State::Waiting;
            self.unsure.remove(&view.host);
            match end {
                GateEnd::Open if over || !waits => {
                    if line.state != State::Running {
                        unused.push(view.host);
                    }
                }
                // too little may be left of the place's time; the next ask gives it its whole time again
                GateEnd::Open if late => _ = self.unsure.insert(view.host),
                GateEnd::Open => {
                    line.state = State::Running;
                    line.began = Some(now);
                    (line.reason, line.message) = (None, String::new());
                    begin.push(view);
                }
                GateEnd::Over(story) if waits && !over => {
                    // the host has a place from an ask whose answer was lost
                    if view.place.is_some() {
                        unused.push(view.host.clone());
                    }
                    line.state = State::NotReady;
                    line.reason = Some(view.reason);
                    line.message = story.trim_end().to_owned();
                    self.story.tell(&format!("{}\n", line.message));
                }
                GateEnd::Waits if waits && !over => {
                    if line.reason.as_ref() != Some(&view.reason) {
                        self.story.tell(&text::view(&view));
                    }
                    line.message = view.message;
                    line.reason = Some(view.reason);
                    if view.place.is_some() {
                        self.unsure.insert(view.host);
                    }
                }
                GateEnd::Over(_) | GateEnd::Waits => {
                    if view.place.is_some() && line.began.is_none() {
                        unused.push(view.host);
                    }
                }
            }
        }
        (begin, unused)
    }

    /// A command ended.
    fn ended(&mut self, now: Instant, host: &str, how: std::io::Result<How>) {
        let Some(line) = self.lines.get_mut(host) else {
            return;
        };
        let took = line
            .began
            .map(|began| now.duration_since(began).as_secs_f64());
        line.seconds = took;
        let took = took.unwrap_or_default();
        (line.state, line.message) = match how {
            Ok(How::Exited(status)) => {
                line.exit_status = status.code();
                match status.success() {
                    true => (State::Done, format!("done in {took:.1} s")),
                    false => (
                        State::Failed,
                        format!("failed after {took:.1} s: {}", words(status)),
                    ),
                }
            }
            Ok(How::TimedOut) => (
                State::TimedOut,
                format!(
                    "ended after {took:.1} s, with its process group: its time was over (--command-timeout)"
                ),
            ),
            Ok(How::Stopped) => (
                State::Stopped,
                format!("ended after {took:.1} s, as asked for"),
            ),
            Err(error) => (
                State::Failed,
                format!("the command can't be started: {error}"),
            ),
        };
        self.story.tell(&format!("{host}: {}\n", line.message));
        if matches!(line.state, State::Failed | State::TimedOut) && !self.keep_going {
            self.stop(format!(
                "the command for {host} failed; --keep-going goes on"
            ));
        }
    }

    /// No more commands begin.
    fn stop(&mut self, why: String) {
        if self.over.is_none() && self.count(State::Waiting) > 0 {
            let words = format!("no more commands begin: {why}\n");
            self.story.tell(&words);
        }
        self.over.get_or_insert(why);
    }

    fn is_over(&self) -> bool {
        let waiting = self.over.is_none() && self.count(State::Waiting) > 0;
        !waiting && self.count(State::Running) == 0
    }

    /// What became of each host.
    fn finish(mut self) -> Vec<Line> {
        let over = self.over.take().unwrap_or_default();
        let mut lines: Vec<Line> = self.lines.into_values().collect();
        for line in &mut lines {
            if line.state != State::Waiting {
                continue;
            }
            // a host that only waited for others was ready
            let ready = line.reason.as_ref().and_then(ToldReason::known);
            let ready = ready.is_none_or(|reason| {
                matches!(
                    reason,
                    proto::Reason::CapReached
                        | proto::Reason::AwaitingPlace
                        | proto::Reason::PlaceTaken
                )
            });
            let (state, what) = match ready {
                true => (State::NotStarted, "not started"),
                false => (State::NotReady, "not ready"),
            };
            let last = match line.message.is_empty() {
                true => String::new(),
                false => format!(" (last: {})", line.message),
            };
            line.state = state;
            line.message = format!("{what}: {over}{last}");
        }
        lines
    }
}

fn words(status: ExitStatus) -> String {
    status.to_string()
}

/// What is printed at the end.
#[derive(Debug, Serialize)]
struct Report {
    image: String,
    digest: String,
    group: String,
    at_most: AtMost,
    /// The number of the places that were taken.
    place: String,
    hosts_done: usize,
    hosts: Vec<Line>,
    /// Some of what was to be written to stderr wasn't: nobody read it at the end.
    output_lost: bool,
}

impl Report {
    fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.hosts {
            text.push_str(&format!("{}: {}\n", line.host, line.message));
        }
        text.push_str(&format!(
            "{} of {} hosts are done\n",
            self.hosts_done,
            self.hosts.len()
        ));
        if self.output_lost {
            text.push_str("not all was shown that commands wrote: nobody read stderr\n");
        }
        text
    }
}

/// What the loop waits for.
enum Input {
    Answered(Asked, Result<GateReply, CallError>),
    /// A command ended; what it wrote may still be on its way.
    Ended(String, std::io::Result<How>, Output),
    /// A place was given back, or left to end by itself.
    GivenBack(String, Result<GateDoneReply, CallError>),
    Tick,
    Late,
    /// Ctrl-C.
    Interrupted,
    /// SIGTERM: a pipeline is cancelled.
    Terminated,
    /// A task of ours died.
    Died(String),
}

/// An ask that was sent.
struct Asked {
    at: Instant,
    hosts: Vec<String>,
}

/// Runs the command for each host, and prints what became of them.
pub(super) async fn run(client: Client, options: Options) -> anyhow::Result<Outcome> {
    let deadline = options
        .timeout
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let (image, hosts) = selected(&client, &options, deadline).await?;
    let (story, writer) = Story::start(say::tell).context("starting a thread for stderr")?;
    let batch = Batch::new(&options.image, hosts, options.keep_going, story.clone());
    let number = Number::fresh();
    let request = GateRequest {
        image: options.image.clone(),
        hosts: Vec::new(),
        digest: Some(image.digest.clone()),
        group: Some(options.group.clone()),
        at_most: Some(options.at_most),
        seconds: Some(options.command_timeout + SLACK_SECONDS),
        place: Some(number.as_str().to_owned()),
    };
    let runner = Runner {
        client: Arc::new(client),
        request,
        words: options.words.into(),
        limit: Duration::from_secs(options.command_timeout),
        batch,
        tasks: JoinSet::new(),
        output: Output::new(),
        failed: None,
        story,
        stop: watch::channel(false).0,
        asking: false,
        interrupted: false,
        leaves: false,
        touch: Touch::new(Instant::now()),
    };
    let (lines, output) = match runner.run(deadline).await {
        Ok(ended) => ended,
        Err(error) => {
            writer.finish(FLUSH, async {}).await;
            return Err(error);
        }
    };
    let shown = writer.finish(FLUSH, async { drop(output.join_all().await) });
    let output_lost = !shown.await;
    let done = lines
        .iter()
        .filter(|line| line.state == State::Done)
        .count();
    let report = Report {
        image: options.image,
        digest: image.digest,
        group: options.group,
        at_most: options.at_most,
        place: number.as_str().to_owned(),
        hosts_done: done,
        hosts: lines,
        output_lost,
    };
    print(options.json, &report, || report.text())?;
    Ok(match done == report.hosts.len() {
        true => Outcome::Yes,
        false => Outcome::No,
    })
}

/// The image, and the hosts that are meant.
async fn selected(
    client: &Client,
    options: &Options,
    deadline: Option<Instant>,
) -> anyhow::Result<(ImageView, BTreeSet<String>)> {
    let path = format!("/v1/images/{}", client::segment(&options.image));
    let find = async || {
        client
            .read::<ImageView>(Method::GET, &path, None::<&()>)
            .await
    };
    let found = follow::ask(client, deadline, async || match find().await {
        Ok(image) => Ok(Some(image)),
        Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    });
    let image = found.await?.with_context(|| {
        format!(
            "nobody asked for {0}; `parbake stage {0} --wait` brings it to the hosts",
            options.image
        )
    })?;
    let staged = image.hosts.iter().map(|on| on.host.clone());
    let mut hosts: BTreeSet<String> = match &options.hosts {
        Some(hosts) => hosts.iter().cloned().collect(),
        None => staged.collect(),
    };
    if let Some(zone) = &options.zone {
        let fleet: Vec<HostView> = client.read(Method::GET, "/v1/hosts", None::<&()>).await?;
        let there: BTreeSet<String> = fleet
            .into_iter()
            .filter(|host| host.zone == *zone)
            .map(|host| host.host)
            .collect();
        hosts.retain(|host| there.contains(host));
    }
    if hosts.is_empty() {
        bail!("no host is selected; `parbake hosts` lists the hosts and their zones");
    }
    Ok((image, hosts))
}

/// The loop's state.
struct Runner {
    client: Arc<Client>,
    request: GateRequest,
    words: Arc<[String]>,
    limit: Duration,
    batch: Batch,
    tasks: JoinSet<Input>,
    /// What commands wrote that have ended.
    output: Output,
    /// Why nothing is asked any more: it is said at the end.
    failed: Option<CallError>,
    story: Story,
    /// Ends all commands.
    stop: watch::Sender<bool>,
    asking: bool,
    /// Ctrl-C was pressed once.
    interrupted: bool,
    /// It was pressed again when no command ran any more: nothing is waited for.
    leaves: bool,
    touch: Touch,
}

impl Runner {
    /// Runs to the end. Returns what became of the hosts, and what their commands wrote that isn't shown yet.
    async fn run(mut self, deadline: Option<Instant>) -> anyhow::Result<(Vec<Line>, Output)> {
        let mut ticks = interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut interrupts = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
        let mut terms = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        // the terminal is gone: commands mustn't outlive the one who watches their time
        let mut hangups = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
        let mut deadline = deadline;
        loop {
            if self.batch.is_over() && self.tasks.is_empty() {
                for host in self.batch.left() {
                    self.give_back(host);
                }
            }
            if self.batch.is_over() && self.tasks.is_empty() {
                if let Some(error) = self.failed {
                    return Err(error.into());
                }
                return Ok((self.batch.finish(), self.output));
            }
            if self.leaves {
                let place = self.request.place.as_deref().unwrap_or_default();
                self.story.tell(&format!(
                    "places with the number {place} may be left, and end by themselves; next: `parbake gate list`\n"
                ));
                return Ok((self.batch.finish(), self.output));
            }
            let input = self
                .next(
                    &mut ticks,
                    deadline,
                    (&mut interrupts, &mut terms, &mut hangups),
                )
                .await;
            if matches!(input, Input::Late) {
                deadline = None;
            }
            self.apply(input)?;
        }
    }

    async fn next(
        &mut self,
        ticks: &mut tokio::time::Interval,
        deadline: Option<Instant>,
        (interrupts, terms, hangups): (&mut Signal, &mut Signal, &mut Signal),
    ) -> Input {
        let late = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = interrupts.recv() => Input::Interrupted,
            _ = terms.recv() => Input::Terminated,
            _ = hangups.recv() => Input::Terminated,
            Some(task) = self.tasks.join_next() => match task {
                Ok(input) => input,
                Err(error) => Input::Died(error.to_string()),
            },
            () = late => Input::Late,
            _ = ticks.tick() => Input::Tick,
        }
    }

    fn apply(&mut self, input: Input) -> anyhow::Result<()> {
        let now = Instant::now();
        match input {
            Input::Tick => self.ask(),
            Input::Answered(asked, Ok(reply)) => {
                self.asking = false;
                self.touch.heard(now);
                let (begin, unused) = self.batch.answered(now, asked.at, reply);
                for view in begin {
                    self.begin(view);
                }
                for host in unused {
                    self.give_back(host);
                }
            }
            Input::Answered(asked, Err(error)) if passes(&error) => {
                self.asking = false;
                if !never_asked(&error) {
                    self.batch.lost(asked.hosts);
                }
                self.touch.lost(now, error.to_string());
            }
            // commands that run are to end by themselves; no place is taken any more
            Input::Answered(asked, Err(error)) => {
                self.asking = false;
                if !never_asked(&error) {
                    self.batch.lost(asked.hosts);
                }
                if self.batch.count(State::Running) > 0 {
                    self.batch.stop(error.to_string());
                } else {
                    self.batch.over.get_or_insert(error.to_string());
                    self.failed = Some(error);
                }
            }
            Input::Ended(host, how, output) => {
                self.output.spawn(async { drop(output.join_all().await) });
                self.batch.ended(now, &host, how);
                self.give_back(host);
            }
            Input::GivenBack(host, reply) => {
                self.given_back(&host, reply);
                self.ask();
            }
            Input::Late => self.batch.stop("the time is up (--timeout)".to_owned()),
            Input::Interrupted => self.interrupted(false),
            Input::Terminated => self.interrupted(true),
            Input::Died(error) => bail!("a task of this command died: {error}"),
        }
        if let Some(words) = self.touch.due(now, "commands that run") {
            self.story.tell(&words);
        }
        Ok(())
    }

    /// Asks the gate about the hosts that wait, unless it is being asked.
    fn ask(&mut self) {
        if self.asking {
            return;
        }
        let hosts = self.batch.next_asked();
        if hosts.is_empty() {
            return;
        }
        self.asking = true;
        let request = GateRequest {
            hosts,
            ..self.request.clone()
        };
        let client = self.client.clone();
        let asked = Asked {
            at: Instant::now(),
            hosts: request.hosts.clone(),
        };
        self.tasks
            .spawn(async move { Input::Answered(asked, ask(&client, &request).await) });
    }

    fn begin(&mut self, view: GateView) {
        let words = format!("{}: ready; its command begins\n", view.host);
        self.story.tell(&words);
        let about = About {
            host: view.host,
            image: self.request.image.clone(),
            digest: view.digest.unwrap_or_default(),
            group: self.request.group.clone().unwrap_or_default(),
            place: self.request.place.clone().unwrap_or_default(),
        };
        let story = self.story.clone();
        let (words, limit, stop) = (self.words.clone(), self.limit, self.stop.subscribe());
        self.tasks.spawn(async move {
            let mut output = Output::new();
            let how = command::run(&words, &about, limit, stop, (&story, &mut output)).await;
            Input::Ended(about.host, how, output)
        });
    }

    /// Gives a host's place back, and tries again while the coordinator is away.
    fn give_back(&mut self, host: String) {
        let body = GateDone {
            host,
            group: self.request.group.clone(),
            place: self.request.place.clone(),
            any: false,
        };
        let client = self.client.clone();
        self.tasks.spawn(async move {
            let reply = call::done(&client, &body, GIVE_BACK).await;
            Input::GivenBack(body.host, reply)
        });
    }

    /// What became of a place that was given back: it may have ended before its command did.
    fn given_back(&self, host: &str, reply: Result<GateDoneReply, CallError>) {
        match reply {
            Ok(reply) => {
                if matches!(
                    reply.before,
                    Some(PlaceEnd::TimeOver | PlaceEnd::ByOperator)
                ) {
                    self.story.tell(&format!("{}\n", reply.message));
                }
            }
            Err(error) => {
                let (group, place) = (&self.request.group, &self.request.place);
                let back = text::done_command(host, group.as_deref(), place.as_deref());
                self.story.tell(&format!(
                    "{host}: its place can't be given back, and ends by itself: {error}; next: `{back}`\n"
                ));
            }
        }
    }

    /// Ctrl-C: no more commands begin. Again, or where a pipeline is cancelled: those that run are ended. Where none
    /// runs, and only answers are waited for, the second one ends that.
    fn interrupted(&mut self, at_once: bool) {
        let again = std::mem::replace(&mut self.interrupted, true);
        self.batch.stop("interrupted".to_owned());
        let running = self.batch.count(State::Running);
        if running == 0 {
            self.leaves = again;
            return;
        }
        if again || at_once {
            self.story.tell(&format!("{running} commands are ended\n"));
            self.stop.send_replace(true);
        } else {
            self.story.tell(&format!(
                "{running} commands run, and are waited for; press Ctrl-C again to end them\n"
            ));
        }
    }
}

#[cfg(test)]
mod tests;
