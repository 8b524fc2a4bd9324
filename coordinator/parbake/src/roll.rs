//! The commands `parbake why`, `roll`, `pause` and `resume`.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use client::{
    CallError, Client,
    view::{HostView, PodView, PoolView},
};
use http::Method;
use tokio::time::{Instant, sleep_until};

use crate::{
    ended::{self, Outcome},
    follow::{self, Touch},
    pauses::Pauses,
    say::{print, tell},
    text,
};

/// While a roll is waited for, a pool that disappears is looked for this long: another coordinator may be taking over.
const PATIENCE: Duration = Duration::from_secs(60);

/// Prints what keeps a host or a Pod.
///
/// # Errors
/// The name fits no host and no Pod, or several Pods, or the coordinator can't be asked.
pub(crate) async fn why(client: &Client, name: &str, json: bool) -> anyhow::Result<Outcome> {
    if let Some((namespace, pod)) = name.split_once('/') {
        let path = format!(
            "/v1/pods/{}/{}",
            client::segment(namespace),
            client::segment(pod)
        );
        let pod: Option<PodView> = client.find(&path).await?;
        let pod = pod.with_context(|| {
            format!("there is no Pod {name}, or the coordinator doesn't watch its namespace or any cluster")
        })?;
        return shown(&pod, json);
    }
    let path = format!("/v1/hosts/{}", client::segment(name));
    let host: Option<HostView> = client.find(&path).await?;
    if let Some(host) = host {
        print(json, &host, || text::why(&host))?;
        return Ok(ended::of_host(&host));
    }
    // outside of a cluster there are no Pods and no pools
    let found: Vec<PodView> = client
        .find::<Vec<PoolView>>("/v1/pools")
        .await?
        .unwrap_or_default()
        .into_iter()
        .flat_map(|pool| pool.pods)
        .filter(|pod| pod.name == name)
        .collect();
    match found.as_slice() {
        [pod] => shown(pod, json),
        [] => bail!(
            "no host and no gated Pod is called `{name}`; `parbake hosts` lists the hosts; write a Pod as namespace/name"
        ),
        _ => bail!("several Pods are called `{name}`; write it as namespace/name"),
    }
}

fn shown(pod: &PodView, json: bool) -> anyhow::Result<Outcome> {
    print(json, pod, || text::pod(pod))?;
    Ok(ended::of_pod(pod))
}

/// The gated pools. A coordinator without a cluster answers with an error that says so.
async fn pools(client: &Client) -> Result<Vec<PoolView>, CallError> {
    client.read(Method::GET, "/v1/pools", None::<&()>).await
}

/// The pool of this name. `None` where there is none.
///
/// # Errors
/// Several pools have the name.
fn pool(pools: Vec<PoolView>, name: &str) -> anyhow::Result<Option<PoolView>> {
    let mut found: Vec<PoolView> = pools
        .into_iter()
        .filter(|pool| pool.name == name || format!("{}/{}", pool.namespace, pool.name) == name)
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(_), false) => bail!("several pools are called `{name}`; write it as namespace/name"),
        (found, _) => Ok(found),
    }
}

fn unknown(name: &str) -> anyhow::Error {
    anyhow!("no gated pool is called `{name}`; `parbake roll` lists them")
}

/// Prints how far rolls are. With `wait`, waits until the roll of the named pool is over.
pub(crate) async fn show(
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
        return Ok(ended::of_pools(&pools));
    };
    let deadline = timeout_seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let first = match wait {
        true => follow::ask(client, deadline, async || pools(client).await).await?,
        false => pools(client).await?,
    };
    let mut shown = pool(first, name)?.ok_or_else(|| unknown(name))?;
    let mut touch = Touch::new(Instant::now());
    let mut missing_since = None;
    let mut looks = Pauses::between_looks();
    while wait && shown.stale > 0 {
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            let away = touch.contact(Instant::now()).words("the roll");
            let goes_on = away.unwrap_or_else(|| "it goes on".to_owned());
            tell(&format!("not rolled in time; {goes_on}\n"));
            print(json, &shown, || text::roll(&shown))?;
            return Ok(ended::TIME_IS_UP);
        }
        let again = Instant::now() + looks.next();
        sleep_until(deadline.map_or(again, |deadline| deadline.min(again))).await;
        match pools(client).await {
            Ok(found) => match pool(found, name)? {
                Some(now) => {
                    (touch, missing_since) = (Touch::new(Instant::now()), None);
                    if (now.stale, now.in_flight) != (shown.stale, shown.in_flight) {
                        tell(&text::pool(&now));
                        looks.begin_anew();
                    }
                    shown = now;
                }
                // a coordinator that has just taken over doesn't know its pools yet
                None => {
                    touch.heard(Instant::now());
                    if missing_since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                        return Err(unknown(name));
                    }
                }
            },
            Err(error) if error.passes() => touch.lost(Instant::now(), error.to_string()),
            Err(error) => return Err(error.into()),
        }
        if let Some(words) = touch.due(Instant::now(), "the roll") {
            tell(&words);
        }
    }
    print(json, &shown, || text::roll(&shown))?;
    Ok(ended::of_pools(std::slice::from_ref(&shown)))
}

/// Pauses or resumes a pool, or an ImagePrePull without a gate.
pub(crate) async fn pause(client: &Client, name: &str, paused: bool) -> anyhow::Result<Outcome> {
    // an ImagePrePull without a gate isn't among the pools, and its staging can be paused
    let found = pool(pools(client).await?, name)?;
    let (namespace, name) = match (found, name.split_once('/')) {
        (Some(pool), _) => (pool.namespace, pool.name),
        (None, Some((namespace, name))) => (namespace.to_owned(), name.to_owned()),
        (None, None) => {
            return Err(unknown(name)
                .context("an ImagePrePull without a gate is written as namespace/name"));
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
