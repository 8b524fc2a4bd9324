//! Rolls: what `parbake why`, `roll`, `pause` and `resume` do with the API's answers.

use std::time::Duration;

use anyhow::{Context as _, bail};
use http::Method;
use tokio::time::Instant;

use super::{
    Outcome,
    client::{self, Client},
    print, tell, text,
};
use crate::view::{HostView, PodView, PoolView};

/// How often a roll that is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A coordinator that can't be reached is asked again so often while a roll is waited for: another may be taking over.
const PATIENCE: u32 = 60;

/// A host's reasons, or a Pod's.
pub(super) async fn why(client: &Client, name: &str, json: bool) -> anyhow::Result<Outcome> {
    if let Some((namespace, pod)) = name.split_once('/') {
        let path = format!(
            "/v1/pods/{}/{}",
            client::segment(namespace),
            client::segment(pod)
        );
        let pod: Option<PodView> = client.find(&path).await?;
        let pod =
            pod.with_context(|| format!("there is no Pod {name}, or no cluster is watched"))?;
        return shown(&pod, json);
    }
    let path = format!("/v1/hosts/{}", client::segment(name));
    let host: Option<HostView> = client.find(&path).await?;
    if let Some(host) = host {
        print(json, &host, || text::why(&host))?;
        return Ok(match host.why.is_empty() {
            true => Outcome::Yes,
            false => Outcome::No,
        });
    }
    let found: Vec<PodView> = pools(client)
        .await?
        .into_iter()
        .flat_map(|pool| pool.pods)
        .filter(|pod| pod.name == name)
        .collect();
    match found.as_slice() {
        [pod] => shown(pod, json),
        [] => bail!(
            "`{name}` is no host that enrolled and no Pod that is gated; see `parbake hosts`, or write the Pod as namespace/name"
        ),
        _ => bail!("several Pods are called `{name}`; write it as namespace/name"),
    }
}

/// Yes when nothing keeps it: it may drain, runs the image already, or no gate is there to keep it.
fn shown(pod: &PodView, json: bool) -> anyhow::Result<Outcome> {
    print(json, pod, || text::pod(pod))?;
    let free = [
        "open",
        "current",
        "already_labelled",
        "admitted",
        "not_gated",
    ];
    Ok(match free.contains(&pod.reason.as_str()) {
        true => Outcome::Yes,
        false => Outcome::No,
    })
}

async fn pools(client: &Client) -> anyhow::Result<Vec<PoolView>> {
    Ok(client.find("/v1/pools").await?.unwrap_or_default())
}

/// The pool that a name means.
async fn pool(client: &Client, name: &str) -> anyhow::Result<PoolView> {
    let mut found: Vec<PoolView> = pools(client)
        .await?
        .into_iter()
        .filter(|pool| pool.name == name || format!("{}/{}", pool.namespace, pool.name) == name)
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(pool), true) => Ok(pool),
        (Some(_), false) => bail!("several pools are called `{name}`; write it as namespace/name"),
        (None, _) => bail!("no pool `{name}` is gated; see `parbake roll`"),
    }
}

/// How far rolls are.
pub(super) async fn show(
    client: &Client,
    name: Option<&str>,
    wait: bool,
    timeout_seconds: Option<u64>,
    json: bool,
) -> anyhow::Result<Outcome> {
    let Some(name) = name else {
        let pools = pools(client).await?;
        print(json, &pools, || match pools.is_empty() {
            true => "no pool is gated\n".to_owned(),
            false => pools.iter().map(text::roll).collect(),
        })?;
        return Ok(outcome(&pools));
    };
    let mut shown = pool(client, name).await?;
    let deadline = timeout_seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut failures = 0;
    while wait && shown.stale > 0 {
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            tell("not rolled in time; it goes on\n");
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        match pool(client, name).await {
            Ok(now) => {
                failures = 0;
                if (now.stale, now.in_flight) != (shown.stale, shown.in_flight) {
                    tell(&text::pool(&now));
                }
                shown = now;
            }
            Err(error) if failures < PATIENCE => {
                failures += 1;
                if failures == 1 {
                    tell(&format!("the roll goes on, but can't be seen: {error:#}\n"));
                }
            }
            Err(error) => return Err(error),
        }
    }
    print(json, &shown, || text::roll(&shown))?;
    Ok(outcome(std::slice::from_ref(&shown)))
}

fn outcome(pools: &[PoolView]) -> Outcome {
    match pools.iter().all(|pool| pool.stale == 0) {
        true => Outcome::Yes,
        false => Outcome::No,
    }
}

/// Holds a pool or an ImagePrePull, or lets it go on.
pub(super) async fn pause(client: &Client, name: &str, paused: bool) -> anyhow::Result<Outcome> {
    // one that gates nothing isn't among the pools, but its staging can be held
    let (namespace, name) = match (pool(client, name).await, name.split_once('/')) {
        (Ok(pool), _) => (pool.namespace, pool.name),
        (Err(_), Some((namespace, name))) => (namespace.to_owned(), name.to_owned()),
        (Err(error), None) => {
            return Err(
                error.context("an ImagePrePull without a gate is written as namespace/name")
            );
        }
    };
    let path = format!(
        "/v1/pools/{}/{}/pause",
        client::segment(&namespace),
        client::segment(&name)
    );
    let method = match paused {
        true => Method::POST,
        false => Method::DELETE,
    };
    client.call(method, &path, None::<&()>).await?;
    let what = match paused {
        true => "paused; `parbake resume` lets it go on",
        false => "goes on",
    };
    print(false, &(), || format!("{namespace}/{name}: {what}\n"))?;
    Ok(Outcome::Yes)
}
