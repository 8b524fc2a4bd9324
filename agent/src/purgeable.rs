//! Bytes that macOS could purge (snapshots, caches), asked at intervals if the settings count them.
//!
//! The command may hang, as anything that asks a daemon may. So it runs beside the driver and has a time limit, and its
//! answer counts for minutes.

use std::{
    io,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{platform, store::Store};

/// Between two questions. Snapshots come by the hour.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// An answer takes well under a second on an idle Mac.
const TIME_LIMIT: Duration = Duration::from_secs(20);

/// Keeps the store's knowledge of what is purgeable fresh, until `stop`.
pub(crate) async fn follow(store: Arc<Store>, home: PathBuf, stop: CancellationToken) {
    let mut failing = false;
    loop {
        let Some(command) = platform::capacity_command(&home) else {
            debug!("nothing is purgeable on this system");
            stop.cancelled().await;
            return;
        };
        match ask(command, TIME_LIMIT).await {
            Ok(capacity_bytes) => {
                failing = false;
                store.set_capacity(capacity_bytes);
            }
            Err(error) if !failing => {
                failing = true;
                warn!(
                    error = proto::causes(&error),
                    "what macOS would purge isn't known; it doesn't count"
                );
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(ASK_EVERY) => {}
        }
    }
}

/// Why the system doesn't say what is purgeable.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("no answer within {} s", limit.as_secs())]
    Late { limit: Duration },
    #[error("running the command: {0}")]
    Run(#[from] io::Error),
    #[error("{status}: {complaint}")]
    Failed {
        status: ExitStatus,
        complaint: String,
    },
    #[error("{0:?} isn't a number of bytes")]
    NoNumber(String),
}

/// The number that the command writes.
async fn ask(command: Command, limit: Duration) -> Result<u64, AskError> {
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(limit, command.output()).await;
    let output = output.map_err(|_| AskError::Late { limit })??;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(AskError::Failed {
            status: output.status,
            complaint: complaint.trim().to_owned(),
        });
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let text = text.trim();
    text.parse()
        .map_err(|_| AskError::NoNumber(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn an_answer_is_a_number_in_time() {
        let limit = Duration::from_secs(20);
        assert_eq!(
            ask(shell("echo 42000000000"), limit).await.unwrap(),
            42_000_000_000
        );
        for (script, part) in [
            ("echo undefined", "undefined"),
            ("echo -1", "-1"),
            ("echo 7; echo no daemon >&2; exit 1", "no daemon"),
        ] {
            let error = ask(shell(script), limit).await.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let hung = ask(shell("exec sleep 600"), Duration::from_millis(100)).await;
        assert!(hung.unwrap_err().to_string().contains("no answer"));
    }
}
