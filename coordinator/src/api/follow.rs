//! The progress of one image, as a stream of lines.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use client::patience::LINE_EVERY;
use http::{StatusCode, header};
use proto::Digest;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, sleep_until},
};

use super::{
    answer::{Answer, Failure},
    images::find,
    state::{Api, FOLLOWERS},
};
use crate::{
    driver::View,
    view::{ImageState, ImageView},
};

/// The shortest time between two lines.
const LINE_PAUSE: Duration = Duration::from_millis(250);

/// The progress of one image: each line is an [`ImageView`]. When the image isn't wanted any more, the stream ends with
/// a line whose state is `cancelled`.
pub(super) async fn events(State(api): State<Api>, Path(name): Path<String>) -> Answer<Response> {
    let digest = find(&api.view.borrow().clone(), &name)?;
    let Ok(slot) = api.followers.clone().try_acquire_owned() else {
        let error = format!(
            "{FOLLOWERS} followers are served already; ask `GET /v1/images/{digest}` now and then"
        );
        return Err(Failure::new(StatusCode::TOO_MANY_REQUESTS, error));
    };
    let follow = Follow {
        view: api.view.clone(),
        digest,
        last: None,
        sent_at: None,
        ended: false,
        _slot: slot,
    };
    let lines = futures_util::stream::unfold(follow, |mut follow| async move {
        let line = follow.next().await?;
        Some((Ok::<_, std::convert::Infallible>(line), follow))
    });
    Ok((
        [
            (header::CONTENT_TYPE, "application/x-ndjson"),
            (header::CACHE_CONTROL, "no-store"),
        ],
        Body::from_stream(lines),
    )
        .into_response())
}

/// A follower of one image. It always sends the newest view, and never queues views.
struct Follow {
    view: watch::Receiver<Arc<View>>,
    digest: Digest,
    /// The view that was last sent, and the same view without ages. A change of ages alone isn't news.
    last: Option<(Arc<ImageView>, ImageView)>,
    sent_at: Option<Instant>,
    ended: bool,
    _slot: OwnedSemaphorePermit,
}

impl Follow {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if let Some(sent_at) = self.sent_at {
            sleep_until(sent_at + LINE_PAUSE).await;
        }
        loop {
            let now = self
                .view
                .borrow_and_update()
                .images
                .get(&self.digest)
                .cloned();
            match (&now, &self.last) {
                // The image was cancelled or superseded. Send what was last shown, with the state `cancelled`.
                (None, last) => {
                    let mut over = last.as_ref()?.0.as_ref().clone();
                    over.state = ImageState::Cancelled;
                    self.ended = true;
                    return line(&over);
                }
                (Some(now), Some((_, last))) if now.without_ages() == *last => {
                    let quiet_until = self.sent_at.unwrap_or_else(Instant::now) + LINE_EVERY;
                    tokio::select! {
                        changed = self.view.changed() => {
                            // The coordinator is stopping.
                            changed.ok()?;
                            continue;
                        }
                        () = sleep_until(quiet_until) => {}
                    }
                }
                (Some(_), _) => {}
            }
            let now = now?;
            let line = line(&now);
            let ageless = now.without_ages();
            self.last = Some((now, ageless));
            self.sent_at = Some(Instant::now());
            return line;
        }
    }
}

fn line(image: &ImageView) -> Option<Bytes> {
    let mut text = serde_json::to_vec(image).ok()?;
    text.push(b'\n');
    Some(text.into())
}
