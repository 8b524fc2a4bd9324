//! How logs and conditions describe the API server's errors, in one sentence each.

use std::{
    error::Error,
    time::{Duration, Instant},
};

/// Missing rights are reported only after this long: a release that is removed loses its roles a moment before its Pods
/// are told to end.
const DENIED_FOR: Duration = Duration::from_secs(3);

/// What went wrong, for people: the API server's own sentence and its status, or kube's message with its causes. By
/// itself kube prints a whole status object, twice.
pub(crate) fn plain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => of_status(&status.message, status.code),
        other => chain(other),
    }
}

/// What went wrong with a watch, for people.
pub(crate) fn watching(error: &kube::runtime::watcher::Error) -> String {
    use kube::runtime::watcher::Error as Watching;
    match error {
        Watching::InitialListFailed(error)
        | Watching::WatchStartFailed(error)
        | Watching::WatchFailed(error) => plain(error),
        Watching::WatchError(status) => of_status(&status.message, status.code),
        other => chain(other),
    }
}

/// Tracks requests that are repeated. A failure is reported once, until a request succeeds.
#[derive(Debug, Default)]
pub(crate) struct Failing {
    since: Option<Instant>,
    told: bool,
}

impl Failing {
    /// A request succeeded. Returns whether a failure had been reported.
    pub(crate) fn over(&mut self) -> bool {
        std::mem::take(self).told
    }

    /// A request failed. Without an error, no answer came. Returns the text to report, if it is to be reported now.
    pub(crate) fn failed(&mut self, error: Option<&kube::Error>) -> Option<String> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let denied =
            matches!(error, Some(kube::Error::Api(status)) if [401, 403].contains(&status.code));
        if self.told || (denied && since.elapsed() < DENIED_FOR) {
            return None;
        }
        self.told = true;
        Some(error.map_or_else(|| "no answer in time".to_owned(), plain))
    }
}

fn of_status(message: &str, code: u16) -> String {
    // where a proxy answers instead of the API server, the message is a page of text
    let line = message.lines().map(str::trim).find(|line| !line.is_empty());
    match line {
        Some(line) => format!("{} (status {code})", crate::progress::clean(line)),
        None => format!("status {code}"),
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // many errors already include the text of their cause
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn a_failure_is_told_once_and_missing_rights_only_when_they_stay_missing() {
        let api = |code| {
            let status = Status::failure("no", "Test").with_code(code);
            kube::Error::Api(Box::new(status))
        };
        let mut failing = Failing::default();
        assert_eq!(
            failing.failed(Some(&api(500))).as_deref(),
            Some("no (status 500)")
        );
        assert_eq!(failing.failed(None), None);
        assert!(failing.over());
        assert_eq!(failing.failed(None).as_deref(), Some("no answer in time"));
        let mut failing = Failing::default();
        for code in [403, 401] {
            assert_eq!(failing.failed(Some(&api(code))), None);
        }
        failing.since = Instant::now().checked_sub(DENIED_FOR);
        assert!(failing.failed(Some(&api(403))).is_some());
        // a failure other than missing rights is reported at once
        let mut failing = Failing::default();
        assert_eq!(failing.failed(Some(&api(403))), None);
        assert!(failing.failed(Some(&api(500))).is_some());
        assert!(!Failing::default().over());
    }

    #[test]
    fn an_error_of_the_api_server_is_one_sentence() {
        let api = |message: &str, reason: &str, code| {
            let status = Status::failure(message, reason).with_code(code);
            plain(&kube::Error::Api(Box::new(status)))
        };
        assert_eq!(
            api("pods \"a\" is forbidden: no", "Forbidden", 403),
            "pods \"a\" is forbidden: no (status 403)"
        );
        // the API server answers so for a kind that isn't installed
        assert_eq!(
            api("404 page not found\n", "Failed to parse error data", 404),
            "404 page not found (status 404)"
        );
        assert_eq!(
            api("\n<html>\n<body>", "Failed to parse error data", 502),
            "<html> (status 502)"
        );
        assert_eq!(api("", "", 500), "status 500");
        let bad = serde_json::from_str::<i32>("x").unwrap_err();
        let text = plain(&kube::Error::SerdeError(bad));
        assert!(
            text.contains("expected value") && text.matches("expected value").count() == 1,
            "{text}"
        );
    }
}
