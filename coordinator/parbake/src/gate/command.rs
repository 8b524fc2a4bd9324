//! One command for one host: started without a shell, in a process group of its own, and ended with all of its group.

use std::{
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    process::{Child, Command},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::story::Story;

/// A command that is to end has this long before it is killed.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// What a command wrote is waited for so long after its end. Processes that it left behind may keep its output open.
const LEFTOVERS: Duration = Duration::from_secs(1);
/// The longest line of a command's output that is shown as one.
const MAX_LINE_BYTES: u64 = 4_096;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// By itself.
    Exited(ExitStatus),
    /// Its time was over, and its process group was ended.
    TimedOut,
    /// The operator ended it.
    Stopped,
}

/// What a command is run for.
#[derive(Clone, Debug)]
pub(super) struct About {
    pub(super) host: String,
    pub(super) image: String,
    pub(super) digest: String,
    pub(super) group: String,
    /// The number of its place.
    pub(super) place: String,
}

/// What commands wrote, on its way to stderr. Each task ends by itself once its command has ended and all is shown.
pub(super) type Output = JoinSet<()>;

/// Runs a command to its end. What it writes appears on stderr, each line with the host's name. `stop` ends it early.
/// What isn't shown yet at its end goes on in `output`.
///
/// # Errors
/// It can't be started or waited for.
pub(super) async fn run(
    words: &[String],
    about: &About,
    limit: Duration,
    mut stop: watch::Receiver<bool>,
    (story, output): (&Story, &mut Output),
) -> std::io::Result<How> {
    let [program, arguments @ ..] = words else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env("PARBAKE_HOST", &about.host)
        .env("PARBAKE_IMAGE", &about.image)
        .env("PARBAKE_DIGEST", &about.digest)
        .env("PARBAKE_GROUP", &about.group)
        .env("PARBAKE_PLACE", &about.place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let group = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
    // dropped at the end, which tells the tasks
    let (_runs, ended) = watch::channel(());
    if let Some(stdout) = child.stdout.take() {
        output.spawn(show(
            about.host.clone(),
            stdout,
            story.clone(),
            ended.clone(),
        ));
    }
    if let Some(stderr) = child.stderr.take() {
        output.spawn(show(about.host.clone(), stderr, story.clone(), ended));
    }
    let late = sleep_until(Instant::now() + limit);
    // no guard of the channel is kept
    let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
    let early = tokio::select! {
        biased;
        status = child.wait() => return status.map(How::Exited),
        () = late => How::TimedOut,
        () = stopped => How::Stopped,
    };
    end(&mut child, group).await?;
    Ok(early)
}

/// Asks the whole group to end, and kills what is left of it after a while.
async fn end(child: &mut Child, group: Option<Pid>) -> std::io::Result<()> {
    let signal = |signal| {
        if let Some(group) = group {
            // the group may be gone already
            _ = kill_process_group(group, signal);
        }
    };
    signal(Signal::TERM);
    let ended = timeout(GRACE, child.wait()).await;
    // also where the first process has ended: others of its group may go on
    signal(Signal::KILL);
    match ended {
        Ok(status) => status.map(drop),
        Err(_) => child.wait().await.map(drop),
    }
}

/// Shows what a command writes, line by line. Once `ended` is closed, it waits [`LEFTOVERS`] for more, all in all; how
/// long the lines wait until they are shown isn't counted.
async fn show(
    host: String,
    output: impl AsyncRead + Unpin,
    story: Story,
    mut ended: watch::Receiver<()>,
) {
    let mut reader = BufReader::new(output);
    let mut left = None;
    let mut line = Vec::new();
    loop {
        // what is in `line` stays there when this is dropped
        let room = MAX_LINE_BYTES.saturating_sub(u64::try_from(line.len()).unwrap_or(u64::MAX));
        let mut limited = (&mut reader).take(room);
        let read = limited.read_until(b'\n', &mut line);
        let whole = match left {
            None => tokio::select! {
                biased;
                read = read => Some(read),
                _ = ended.changed() => {
                    left = Some(LEFTOVERS);
                    continue;
                }
            },
            Some(wait) => {
                let began = Instant::now();
                let read = timeout(wait, read).await;
                left = Some(wait.saturating_sub(began.elapsed()));
                read.ok()
            }
        };
        let over = !matches!(whole, Some(Ok(1..)));
        if !line.is_empty() {
            let text = String::from_utf8_lossy(&line);
            let plain = text
                .trim_end()
                .replace(|letter: char| letter.is_control() && letter != '\t', " ");
            story.show(format!("{host}: {plain}\n")).await;
            line.clear();
        }
        if over {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About {
            host: "mini-1".into(),
            image: "r.test/image:1".into(),
            digest: "sha256:1".into(),
            group: "ci".into(),
            place: "00000000000000ab".into(),
        }
    }

    /// What it does when nobody cares what the command writes.
    async fn run_it(
        words: &[String],
        limit: Duration,
        stop: watch::Receiver<bool>,
    ) -> std::io::Result<How> {
        let (story, _writer) = Story::start(|_| {}).unwrap();
        run(words, &about(), limit, stop, (&story, &mut Output::new())).await
    }

    fn sh(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_command_knows_its_host_and_image_and_no_word_of_it_is_interpreted() {
        let (_keep, stop) = watch::channel(false);
        let script = r#"test "$PARBAKE_HOST $PARBAKE_IMAGE $PARBAKE_DIGEST $PARBAKE_GROUP $PARBAKE_PLACE" = \
            "mini-1 r.test/image:1 sha256:1 ci 00000000000000ab""#;
        let ended = run_it(&sh(script), LONG, stop.clone()).await.unwrap();
        assert!(matches!(ended, How::Exited(status) if status.success()));
        // without a shell
        let words = ["test", "$PARBAKE_HOST", "=", "mini-1"].map(str::to_owned);
        let ended = run_it(&words, LONG, stop.clone()).await.unwrap();
        assert!(matches!(ended, How::Exited(status) if status.code() == Some(1)));
        let missing = run_it(&["/does/not/exist".to_owned()], LONG, stop).await;
        assert!(missing.is_err());
    }

    #[tokio::test]
    async fn a_command_whose_time_is_over_is_ended_with_all_of_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("child");
        // the child of the shell is what hangs
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let (_keep, stop) = watch::channel(false);
        let limit = Duration::from_millis(500);
        let ended = run_it(&sh(&script), limit, stop).await.unwrap();
        assert_eq!(ended, How::TimedOut);
        let child: i32 = std::fs::read_to_string(&file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        let until = Instant::now() + Duration::from_secs(20);
        while !gone() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(gone(), "the child of the command goes on");
    }

    #[tokio::test]
    async fn an_operator_ends_a_command() {
        let (keep, stop) = watch::channel(false);
        let words = sh("sleep 600");
        let ended = run_it(&words, LONG, stop);
        let press = async { keep.send(true).unwrap() };
        let (ended, ()) = tokio::join!(ended, press);
        assert_eq!(ended.unwrap(), How::Stopped);
    }

    /// The command ends at once, while nobody reads what it wrote; then somebody does.
    #[tokio::test]
    async fn all_that_a_command_wrote_is_shown_once_somebody_reads() {
        let (read, pipe) = std::sync::mpsc::sync_channel::<String>(0);
        let (story, writer) =
            Story::start(move |text| read.send(text.to_owned()).unwrap()).unwrap();
        let (_keep, stop) = watch::channel(false);
        let mut output = Output::new();
        // more lines than wait to be written, and less than a pipe takes; a process that is left behind keeps it open
        let words =
            sh("i=0; while [ $i -lt 600 ]; do echo $i; i=$((i+1)); done; printf end; sleep 60 &");
        let ended = run(&words, &about(), LONG, stop, (&story, &mut output)).await;
        assert!(matches!(ended.unwrap(), How::Exited(status) if status.success()));
        let reader = std::thread::spawn(move || pipe.iter().collect::<Vec<String>>());
        drop(story);
        let shown = async { drop(output.join_all().await) };
        assert!(writer.finish(LONG, shown).await);
        let lines = reader.join().unwrap();
        assert_eq!(lines.len(), 601);
        assert_eq!((&*lines[0], &*lines[600]), ("mini-1: 0\n", "mini-1: end\n"));
    }
}
