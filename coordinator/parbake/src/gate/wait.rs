//! `parbake gate wait`: asks until a host is ready and has its place, or waiting is over. Whatever ends it, no place
//! stays that its caller doesn't know of.

use std::{cell::Cell, time::Duration};

use anyhow::{Context as _, bail};
use client::{
    CallError, Client,
    gate::{GateDone, GateReply, GateRequest, GateVerdict, GateView},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until},
};

use super::{
    call::{self, ask, never_asked, passes},
    text,
};
use crate::{
    ended::{self, GateEnd, Outcome},
    follow::{self, Touch},
    pauses::Pauses,
    say::{print, tell},
};

/// A place that can't be given back for this long is left to end by itself, and named.
const GIVE_BACK: Duration = Duration::from_secs(10);

/// Whether the caller has the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    /// By the last answer, or because nothing was asked, it hasn't.
    No,
    /// The last answer says so, or no answer has come since an ask.
    Maybe,
}

/// Waits for a host. `keeps`: the caller made the number, so the place stays its own also where waiting is over.
pub(super) async fn run(
    client: &Client,
    request: GateRequest,
    keeps: bool,
    timeout_seconds: Option<u64>,
    json: bool,
) -> anyhow::Result<Outcome> {
    let mut wait = Wait {
        client,
        request,
        keeps,
        holds: Cell::new(Holds::No),
    };
    if wait.request.group.is_none() {
        return wait.until(timeout_seconds, json).await;
    }
    let mut interrupts = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
    let mut terms = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut hangups = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    let mut stopped = async || {
        tokio::select! {
            _ = interrupts.recv() => {}
            _ = terms.recv() => {}
            _ = hangups.recv() => {}
        }
    };
    let waited = tokio::select! {
        biased;
        waited = wait.until(timeout_seconds, json) => waited,
        () = stopped() => Err(anyhow::anyhow!("interrupted")),
    };
    // a second signal ends this too
    tokio::select! {
        biased;
        () = stopped() => tell(&wait.may_have()),
        () = wait.give_back() => {}
    }
    waited
}

/// One wait.
struct Wait<'a> {
    client: &'a Client,
    request: GateRequest,
    keeps: bool,
    holds: Cell<Holds>,
}

impl Wait<'_> {
    async fn until(&mut self, timeout_seconds: Option<u64>, json: bool) -> anyhow::Result<Outcome> {
        let deadline = timeout_seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let first = follow::ask(self.client, deadline, async || self.ask().await).await?;
        let mut view = self.only(first)?;
        // whoever isn't waited for yet was named by mistake
        if let GateEnd::Over(story) = ended::of_gate(&view, &self.request.image)
            && view.verdict == GateVerdict::Refused
        {
            bail!("{}", story.trim_end());
        }
        let mut touch = Touch::new(Instant::now());
        let mut looks = Pauses::between_looks();
        let mut said = None;
        loop {
            match ended::of_gate(&view, &self.request.image) {
                GateEnd::Open => {
                    print(json, &view, || text::view(&view))?;
                    self.holds.set(Holds::No);
                    return Ok(Outcome::Yes);
                }
                GateEnd::Over(story) => {
                    tell(&story);
                    return self.over(view, json).await;
                }
                GateEnd::Waits => {}
            }
            if self.request.digest.is_none() {
                self.request.digest.clone_from(&view.digest);
            }
            if said.as_ref() != Some(&view.reason) {
                tell(&text::view(&view));
                said = Some(view.reason.clone());
                looks.begin_anew();
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                let away = touch.contact(now).words("the host's turn is kept for 30 s");
                tell(&text::late(&view, away));
                return self.over(view, json).await;
            }
            let again = now + looks.next();
            sleep_until(deadline.map_or(again, |deadline| deadline.min(again))).await;
            match self.ask().await {
                Ok(reply) => {
                    touch.heard(Instant::now());
                    view = self.only(reply)?;
                }
                Err(error) if passes(&error) => touch.lost(Instant::now(), error.to_string()),
                Err(error) => return Err(error.into()),
            }
            if let Some(words) = touch.due(Instant::now(), "staging") {
                tell(&words);
            }
        }
    }

    /// Waiting is over, and the host isn't ready.
    async fn over(&self, mut view: GateView, json: bool) -> anyhow::Result<Outcome> {
        self.give_back().await;
        if self.holds.get() == Holds::No {
            view.place = None;
        }
        // where it stays, that was said already
        self.holds.set(Holds::No);
        print(json, &view, || text::view(&view))?;
        Ok(Outcome::No)
    }

    /// Asks once. From here on the host may have the place, unless the coordinator took nothing in.
    async fn ask(&self) -> Result<GateReply, CallError> {
        let before = self.holds.get();
        if self.request.group.is_some() {
            self.holds.set(Holds::Maybe);
        }
        let reply = ask(self.client, &self.request).await;
        if reply.as_ref().is_err_and(never_asked) {
            self.holds.set(before);
        }
        reply
    }

    fn only(&self, reply: GateReply) -> anyhow::Result<GateView> {
        let view = reply.hosts.into_iter().next();
        let view = view.context("the coordinator answers about no host")?;
        self.holds.set(match view.place {
            Some(_) => Holds::Maybe,
            None => Holds::No,
        });
        Ok(view)
    }

    /// Gives the place back that the host may have, unless the caller keeps it. What stays is named.
    async fn give_back(&self) {
        if self.holds.get() == Holds::No {
            return;
        }
        if self.keeps {
            tell(&self.may_have());
            return;
        }
        let body = GateDone {
            host: self.request.hosts.concat(),
            group: self.request.group.clone(),
            place: self.request.place.clone(),
            any: false,
        };
        match call::done(self.client, &body, GIVE_BACK).await {
            Ok(reply) => {
                self.holds.set(Holds::No);
                if !reply.given_back.is_empty() {
                    tell(&text::done(&reply));
                }
            }
            Err(error) => tell(&format!("{error}\n{}", self.may_have())),
        }
    }

    /// That a place may be left, and what to do.
    fn may_have(&self) -> String {
        if self.holds.get() == Holds::No {
            return String::new();
        }
        let host = self.request.hosts.concat();
        let (group, place) = (&self.request.group, &self.request.place);
        let back = text::done_command(&host, group.as_deref(), place.as_deref());
        format!("{host} may have a place, which ends by itself; next: `{back}`\n")
    }
}

#[cfg(test)]
mod tests {
    use client::{Target, gate::PlaceView};
    use proto::{Digest, Reason};

    use super::*;

    #[test]
    fn a_refusal_that_names_the_callers_place_leaves_it_to_be_given_back() {
        let target = Target::without_token("127.0.0.1:1".to_owned(), Digest::of(b"pin"));
        let client = Client::new(target);
        let wait = Wait {
            client: &client,
            request: GateRequest::default(),
            keeps: false,
            holds: Cell::new(Holds::No),
        };
        let place = PlaceView {
            host: "mini-1".into(),
            number: Some("00000000000000ab".into()),
            image: "r.test/image:1".into(),
            digest: "sha256:1".into(),
            cap: 1,
            taken_at: 0,
            ends_in_seconds: 60,
        };
        for (place, holds) in [(Some(place), Holds::Maybe), (None, Holds::No)] {
            let view = GateView {
                host: "mini-1".into(),
                digest: None,
                verdict: GateVerdict::Refused,
                reason: Reason::Revoked.into(),
                message: String::new(),
                next: String::new(),
                failed_seconds: None,
                image_failed: None,
                place,
            };
            wait.only(GateReply { hosts: vec![view] }).unwrap();
            assert_eq!(wait.holds.get(), holds);
        }
    }
}
