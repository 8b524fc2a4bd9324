//! Waits for the coordinator and for its work. An unreachable coordinator is waited for, with a message. Any other
//! error ends the wait.

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
    ended::{Ended, Outcome, TIME_IS_UP, settled},
    frame::{Contact, Memory},
    pauses::Pauses,
    say::tell,
};

/// How long to wait for a coordinator that has never answered, where the operator set no limit. Such a coordinator may
/// have another address. A coordinator that restarts is back within this time.
const NEVER_HEARD: Duration = Duration::from_secs(30);
/// An absence of the coordinator is mentioned after this long. A connection that is restored at once is no news.
const MENTIONED: Duration = Duration::from_secs(1);
/// The message that the coordinator is unreachable is repeated after this long.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// When the coordinator was last heard, and since when it is unreachable.
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

    /// The message about an unreachable coordinator, if one is due now. It is due every few seconds.
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

/// Asks until the coordinator answers, whatever the answer. This is the first question of a command that waits.
///
/// # Errors
/// The coordinator's answer is an error. Or it can't be reached before `deadline`. Without a deadline, it has never
/// answered within [`NEVER_HEARD`].
pub(crate) async fn ask<T>(
    client: &Client,
    deadline: Option<Instant>,
    question: impl AsyncFn() -> Result<T, CallError>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    let mut heard = false;
    let mut said_at: Option<Instant> = None;
    let mut pauses = Pauses::unreachable();
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
        if limit.is_some_and(|limit| now >= limit) {
            let asked = match heard {
                true => "its answer didn't come, and what was asked may be done",
                false => "nothing was asked of the coordinator yet",
            };
            bail!("{cause}; {asked}");
        }
        if said_at.is_none_or(|at| now.duration_since(at) >= SAY_EVERY) {
            said_at = Some(now);
            tell(&format!(
                "the coordinator at {} can't be reached; asking again ({cause})\n",
                client.address()
            ));
        }
        let again = now + pauses.next();
        sleep_until(limit.map_or(again, |limit| limit.min(again))).await;
    }
}

/// Follows an image until it is settled on the selected hosts. An unreachable coordinator is waited for, because
/// staging goes on without the coordinator and without this command.
///
/// # Errors
/// The coordinator refuses us, isn't the pinned one any more, or answers in unknown words.
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
    let mut absences = Pauses::unreachable();
    let mut looks = Pauses::between_looks();
    loop {
        let events = format!("{path}/events");
        let opened = watch.wait(client.lines(&events)).await;
        let lost = match opened {
            None => return Ok(watch.late()),
            Some(Ok(mut lines)) => loop {
                match watch.wait(lines.next()).await {
                    None => return Ok(watch.late()),
                    Some(Ok(Some(line))) => {
                        absences.begin_anew();
                        if let Some(ended) = watch.heard(line) {
                            return Ok(ended);
                        }
                    }
                    Some(Ok(None)) => break "it ended its answer".to_owned(),
                    Some(Err(error)) => break watch.lost_by(error)?,
                }
            },
            // the coordinator serves no more followers, so we ask now and then: often while something moves
            Some(Err(error)) if error.is(StatusCode::TOO_MANY_REQUESTS) => {
                match watch
                    .wait(client.read(Method::GET, &path, None::<&()>))
                    .await
                {
                    None => return Ok(watch.late()),
                    Some(Ok(line)) => {
                        absences.begin_anew();
                        let before = watch.image.without_ages();
                        if let Some(ended) = watch.heard(line) {
                            return Ok(ended);
                        }
                        if watch.image.without_ages() != before {
                            looks.begin_anew();
                        }
                        if watch.wait(sleep(looks.next())).await.is_none() {
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
        if watch.wait(sleep(absences.next())).await.is_none() {
            return Ok(watch.late());
        }
    }
}

/// An image that is waited for.
struct Watch<'a> {
    show: Show,
    memory: Memory,
    touch: Touch,
    /// The image as it was last heard, and as it is shown.
    image: ImageView,
    shown: ImageView,
    request: &'a StageRequest,
    deadline: Option<Instant>,
}

impl Watch<'_> {
    /// Waits for `work` while the display is updated. `None` when the operator's time limit is over.
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

    /// Takes in the coordinator's view of the image. Returns the result, if the wait is over.
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

    /// Why the coordinator is unreachable, by this error. Any other error ends the wait.
    ///
    /// # Errors
    /// The error doesn't mean that the coordinator is unreachable.
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

    /// The result when the operator's time limit is over.
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
            outcome: TIME_IS_UP,
        }
    }

    /// The result when the coordinator doesn't want the image any more: it was cancelled or superseded.
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
    use client::view::HostState;

    use super::*;
    use crate::frame::tests as made_up;

    #[tokio::test]
    async fn a_wait_whose_time_is_up_ends_with_the_status_of_a_no_and_says_that_staging_goes_on() {
        let mut image = made_up::image(vec![made_up::host("a", HostState::Staging, 0)]);
        image.references = vec!["r.test/image:1".into()];
        let request = StageRequest {
            reference: "r.test/image:1".into(),
            hosts: None,
            priority: None,
        };
        let mut watch = Watch {
            show: Show::new(),
            memory: Memory::default(),
            touch: Touch::new(Instant::now()),
            shown: image.clone(),
            image: image.clone(),
            request: &request,
            deadline: Some(Instant::now()),
        };
        assert!(watch.heard(image).is_none(), "a host still stages it");
        let never = std::future::pending::<()>();
        assert_eq!(watch.wait(never).await, None, "the time is up");
        let ended = watch.late();
        assert_eq!(ended.outcome.status(), 1);
        let story = &ended.story;
        assert!(
            story.starts_with("not staged in time; it goes on"),
            "{story}"
        );
    }

    #[test]
    fn a_coordinator_that_is_away_is_mentioned_and_mentioned_again() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut touch = Touch::new(start);
        assert_eq!(touch.contact(at(900)).away, None);
        assert_eq!(touch.due(at(900), "staging"), None);
        touch.lost(at(2_000), "connection refused".into());
        // a connection that is restored at once is no news
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
