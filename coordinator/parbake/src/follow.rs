//! Waiting for the coordinator and for what it does: a coordinator that is away is waited for, and said to be away;
//! what means something else ends the waiting.

use std::{pin::pin, time::Duration};

use anyhow::{Context as _, bail};
use client::{
    CallError, Client,
    view::{ImageView, StageRequest},
};
use http::{Method, StatusCode};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use crate::{
    bars::Show,
    ended::{Ended, Outcome, settled},
    frame::{Contact, Memory},
    say::tell,
};

/// A coordinator that is away is asked again after this long.
const AGAIN: Duration = Duration::from_secs(1);
/// A coordinator that has never answered may be another address's: without a limit of the operator's own it is waited
/// for for this long, in which one that restarts is back.
const NEVER_HEARD: Duration = Duration::from_secs(30);
/// The absence of a coordinator is mentioned after this long: a connection that is made anew at once is no news.
const MENTIONED: Duration = Duration::from_secs(1);
/// That a coordinator is away is said again after this long.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// The image is asked for this often where the coordinator has too many followers.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// When the coordinator was heard last, and since when it is away.
#[derive(Debug)]
pub(crate) struct Touch {
    heard_at: Instant,
    away: Option<(Instant, String)>,
    said_at: Option<Instant>,
}

impl Touch {
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            heard_at: now,
            away: None,
            said_at: None,
        }
    }

    pub(crate) fn heard(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    pub(crate) fn lost(&mut self, now: Instant, why: String) {
        let since = self.away.take().map_or(now, |(since, _)| since);
        self.away = Some((since, why));
    }

    pub(crate) fn contact(&self, now: Instant) -> Contact {
        let away = self.away.as_ref();
        let away = away.map(|(since, why)| (now.duration_since(*since), why.clone()));
        Contact {
            heard_ago: now.duration_since(self.heard_at),
            away: away.filter(|(since, _)| *since >= MENTIONED),
        }
    }

    /// What is to be said of it now, every few seconds while it is away.
    pub(crate) fn due(&mut self, now: Instant, goes_on: &str) -> Option<String> {
        let words = self.contact(now).words(goes_on)?;
        if self
            .said_at
            .is_some_and(|at| now.duration_since(at) < SAY_EVERY)
        {
            return None;
        }
        self.said_at = Some(now);
        Some(format!("{words}\n"))
    }
}

/// Asks until the coordinator answers, whatever it answers: the first question of a command that waits.
///
/// # Errors
/// When it answers otherwise, when it can't be reached within `deadline`, or, without one, when nobody has ever
/// answered.
pub(crate) async fn ask<T>(
    client: &Client,
    deadline: Option<Instant>,
    question: impl AsyncFn() -> Result<T, CallError>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    let mut heard = false;
    let mut said_at: Option<Instant> = None;
    loop {
        let (cause, unheard) = match question().await {
            Err(CallError::Away { cause, unheard }) => (cause, unheard),
            answered => return Ok(answered?),
        };
        heard |= !unheard;
        let now = Instant::now();
        let limit = match (deadline, heard) {
            (Some(deadline), _) => Some(deadline),
            (None, true) => None,
            (None, false) => Some(began + NEVER_HEARD),
        };
        if limit.is_some_and(|limit| now + AGAIN > limit) {
            bail!("{cause}; nothing was asked of the coordinator yet");
        }
        if said_at.is_none_or(|at| now.duration_since(at) >= SAY_EVERY) {
            said_at = Some(now);
            tell(&format!(
                "the coordinator at {} can't be reached; asking again ({cause})\n",
                client.address()
            ));
        }
        sleep(AGAIN).await;
    }
}

/// Follows an image until it is settled on the selected hosts. A coordinator that is away is waited for: staging goes
/// on without it, and without us.
///
/// # Errors
/// When the coordinator doesn't take us, isn't the pinned one any more, or speaks otherwise.
pub(crate) async fn follow(
    client: &Client,
    first: ImageView,
    request: &StageRequest,
    deadline: Option<Instant>,
) -> anyhow::Result<Ended> {
    let path = format!("/v1/images/{}", client::segment(&first.digest));
    let mut watch = Watch {
        show: Show::new(),
        memory: Memory::default(),
        touch: Touch::new(Instant::now()),
        shown: first.clone(),
        image: first.clone(),
        request,
        deadline,
    };
    if let Some(ended) = watch.heard(first) {
        return Ok(ended);
    }
    loop {
        let events = format!("{path}/events");
        let opened = watch.wait(client.lines(&events)).await;
        let lost = match opened {
            None => return Ok(watch.late()),
            Some(Ok(mut lines)) => loop {
                match watch.wait(lines.next()).await {
                    None => return Ok(watch.late()),
                    Some(Ok(Some(line))) => {
                        if let Some(ended) = watch.heard(line) {
                            return Ok(ended);
                        }
                    }
                    Some(Ok(None)) => break "it ended its answer".to_owned(),
                    Some(Err(error)) => break watch.lost_by(error)?,
                }
            },
            // it serves as many followers as it can: we look now and then
            Some(Err(error)) if error.is(StatusCode::TOO_MANY_REQUESTS) => {
                match watch
                    .wait(client.read(Method::GET, &path, None::<&()>))
                    .await
                {
                    None => return Ok(watch.late()),
                    Some(Ok(line)) => {
                        if let Some(ended) = watch.heard(line) {
                            return Ok(ended);
                        }
                        if watch.wait(sleep(LOOK_EVERY)).await.is_none() {
                            return Ok(watch.late());
                        }
                        continue;
                    }
                    Some(Err(error)) if error.is(StatusCode::NOT_FOUND) => {
                        return Ok(watch.unwanted());
                    }
                    Some(Err(error)) => watch.lost_by(error)?,
                }
            }
            Some(Err(error)) if error.is(StatusCode::NOT_FOUND) => return Ok(watch.unwanted()),
            Some(Err(error)) => watch.lost_by(error)?,
        };
        watch.touch.lost(Instant::now(), lost);
        if watch.wait(sleep(AGAIN)).await.is_none() {
            return Ok(watch.late());
        }
    }
}

/// An image that is waited for.
struct Watch<'a> {
    show: Show,
    memory: Memory,
    touch: Touch,
    /// As it was heard last, and as it is shown.
    image: ImageView,
    shown: ImageView,
    request: &'a StageRequest,
    deadline: Option<Instant>,
}

impl Watch<'_> {
    /// Waits for this while time passes on show; `None` when the operator's time is up.
    async fn wait<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let deadline = self.deadline;
        let late = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let mut late = pin!(late);
        loop {
            tokio::select! {
                biased;
                done = work.as_mut() => return Some(done),
                () = late.as_mut() => return None,
                _ = ticks.tick() => {}
            }
            self.show
                .update(&self.shown, &self.touch.contact(Instant::now()));
        }
    }

    /// The coordinator's word; how it ended, if it did.
    fn heard(&mut self, image: ImageView) -> Option<Ended> {
        self.touch.heard(Instant::now());
        self.shown = self.memory.recall(&image, self.request.hosts.as_deref());
        self.image = image;
        let ended = settled(&self.image, self.request);
        match &ended {
            None => self.show.update(&self.shown, &Contact::default()),
            Some(_) => self.show.finish(&self.shown, &Contact::default()),
        }
        ended
    }

    /// Why the coordinator is away by this error; another one ends the waiting.
    fn lost_by(&mut self, error: CallError) -> anyhow::Result<String> {
        match error {
            error if error.passes() => Ok(error.to_string()),
            CallError::Refused { status, text } if status.is_server_error() => Ok(text),
            error => {
                self.finish();
                Err(error).context("staging goes on, but can't be followed any more")
            }
        }
    }

    fn finish(&mut self) {
        let contact = self.touch.contact(Instant::now());
        self.show.finish(&self.shown, &contact);
    }

    fn late(mut self) -> Ended {
        self.finish();
        let away = self.touch.contact(Instant::now()).words("staging");
        let goes_on = away.unwrap_or_else(|| "it goes on".to_owned());
        Ended {
            story: format!(
                "not staged in time; {goes_on}: parbake status {}\n",
                self.image.digest
            ),
            image: self.image,
            outcome: Outcome::No,
        }
    }

    /// The coordinator doesn't want it any more; it was so when we asked again.
    fn unwanted(mut self) -> Ended {
        self.finish();
        Ended {
            story: format!("{} was cancelled or superseded\n", self.image.digest),
            image: self.image,
            outcome: Outcome::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_that_is_away_is_mentioned_and_mentioned_again() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut touch = Touch::new(start);
        assert_eq!(touch.contact(at(900)).away, None);
        assert_eq!(touch.due(at(900), "staging"), None);
        touch.lost(at(2_000), "connection refused".into());
        // a connection that is made anew at once is no news
        assert_eq!(touch.due(at(2_900), "staging"), None);
        touch.lost(at(3_000), "connection refused again".into());
        let words = touch.due(at(4_000), "staging").unwrap();
        assert_eq!(
            words,
            "the coordinator can't be reached for 2 s; staging goes on; last heard 4 s ago (connection refused again)\n"
        );
        assert_eq!(touch.due(at(8_999), "staging"), None);
        assert!(touch.due(at(9_000), "staging").is_some());
        touch.heard(at(10_000));
        assert_eq!(touch.contact(at(10_500)).away, None);
        assert_eq!(touch.due(at(10_500), "staging"), None);
    }
}
