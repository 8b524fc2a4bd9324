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

use crate::say::tell;

/// A command that is to end has this long before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// What a command wrote is read for this long after its end. Processes that it left behind may keep its output open.
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
}

/// Runs a command to its end. What it writes appears on stderr, each line with the host's name. `stop` ends it early.
///
/// # Errors
/// It can't be started or waited for.
pub(super) async fn run(
    words: &[String],
    about: &About,
    limit: Duration,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<How> {
    let [program, arguments @ ..] = words else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env("PARBAKE_HOST", &about.host)
        .env("PARBAKE_IMAGE", &about.image)
        .env("PARBAKE_DIGEST", &about.digest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let group = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
    let mut output = JoinSet::new();
    if let Some(stdout) = child.stdout.take() {
        output.spawn(show(about.host.clone(), stdout));
    }
    if let Some(stderr) = child.stderr.take() {
        output.spawn(show(about.host.clone(), stderr));
    }
    let late = sleep_until(Instant::now() + limit);
    // no guard of the channel is kept
    let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
    let early = tokio::select! {
        biased;
        status = child.wait() => return finish(output, status?).await,
        () = late => How::TimedOut,
        () = stopped => How::Stopped,
    };
    end(&mut child, group).await?;
    drop(timeout(LEFTOVERS, output.join_all()).await);
    Ok(early)
}

async fn finish(output: JoinSet<()>, status: ExitStatus) -> std::io::Result<How> {
    drop(timeout(LEFTOVERS, output.join_all()).await);
    Ok(How::Exited(status))
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

/// Shows what a command writes, line by line.
async fn show(host: String, output: impl AsyncRead + Unpin) {
    let mut reader = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        let read = (&mut reader)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
            .await;
        if !matches!(read, Ok(1..)) {
            return;
        }
        let text = String::from_utf8_lossy(&line);
        let plain = text
            .trim_end()
            .replace(|letter: char| letter.is_control() && letter != '\t', " ");
        tell(&format!("{host}: {plain}\n"));
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
        }
    }

    fn sh(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_command_knows_its_host_and_image_and_no_word_of_it_is_interpreted() {
        let (_keep, stop) = watch::channel(false);
        let script = r#"test "$PARBAKE_HOST $PARBAKE_IMAGE $PARBAKE_DIGEST" = "mini-1 r.test/image:1 sha256:1""#;
        let ended = run(&sh(script), &about(), LONG, stop.clone())
            .await
            .unwrap();
        assert!(matches!(ended, How::Exited(status) if status.success()));
        // without a shell
        let words = ["test", "$PARBAKE_HOST", "=", "mini-1"].map(str::to_owned);
        let ended = run(&words, &about(), LONG, stop.clone()).await.unwrap();
        assert!(matches!(ended, How::Exited(status) if status.code() == Some(1)));
        let missing = run(&["/does/not/exist".to_owned()], &about(), LONG, stop).await;
        assert!(missing.is_err());
    }

    #[tokio::test]
    async fn a_command_whose_time_is_over_is_ended_with_all_of_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("child");
        // the child of the shell is what hangs
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let (_keep, stop) = watch::channel(false);
        let ended = run(&sh(&script), &about(), Duration::from_millis(500), stop)
            .await
            .unwrap();
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
        let about = about();
        let ended = run(&words, &about, LONG, stop);
        let press = async { keep.send(true).unwrap() };
        let (ended, ()) = tokio::join!(ended, press);
        assert_eq!(ended.unwrap(), How::Stopped);
    }
}
