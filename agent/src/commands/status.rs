//! `parbake-agent status`: what the running agent holds and does.

use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use proto::{
    causes,
    figure::{Bytes, percent},
};
use tokio::net::TcpStream;

use super::answer::print;
use crate::{admin::Snapshot, config::Config};

/// The most bytes of a status answer: some hundred images.
const MAX_STATUS_BYTES: usize = 4 << 20;

/// Shows what the running agent holds. An error when it isn't running.
pub(crate) async fn status(config: &Config, json: bool) -> anyhow::Result<bool> {
    let snapshot = match ask(config).await {
        Ok(snapshot) => snapshot,
        Err(error) => bail!(
            "no agent answers on {}: {}; start the agent, or give its own address by --admin",
            config.admin,
            causes(&*error)
        ),
    };
    if json {
        return print(&serde_json::to_string(&snapshot)?);
    }
    print(text(&snapshot).trim_end())
}

/// A snapshot as people read it.
fn text(snapshot: &Snapshot) -> String {
    let session = if snapshot.coordinator { "up" } else { "down" };
    let mut text = format!(
        "host {}  coordinator {session}  peers {}/{} connected\n",
        snapshot.host, snapshot.connected, snapshot.peers
    );
    for image in &snapshot.images {
        text += &format!(
            "{:<10} {:>3} %  {}  {} of {} verified",
            image.state,
            percent(image.held_bytes, image.total_bytes),
            image.reference,
            Bytes(image.held_bytes),
            Bytes(image.total_bytes),
        );
        let (origin, peers) = (image.origin_bytes, image.peer_bytes);
        // what came before the agent's start isn't counted
        if origin + peers > 0 {
            text += &format!(
                "; received since the agent's start {} (registry {}, peers {})",
                Bytes(origin + peers),
                Bytes(origin),
                Bytes(peers)
            );
        }
        if image.local_bytes > 0 {
            text += &format!("; {} were here already", Bytes(image.local_bytes));
        }
        for words in [&image.reason, &image.message] {
            if !words.is_empty() {
                text += &format!("; {words}");
            }
        }
        text.push('\n');
    }
    if snapshot.found_disks > 0 || snapshot.found_left_bytes > 0 {
        text += &format!(
            "{} disks that others made were read ({})",
            snapshot.found_disks,
            Bytes(snapshot.found_bytes)
        );
        if snapshot.found_left_bytes > 0 {
            text += &format!(
                "; {} of the next are left",
                Bytes(snapshot.found_left_bytes)
            );
        }
        text.push('\n');
    }
    text
}

async fn ask(config: &Config) -> anyhow::Result<Snapshot> {
    let exchange = async {
        let stream = TcpStream::connect(config.admin).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get("/v1/status")
            .header(header::HOST, config.admin.to_string())
            .body(Empty::<bytes::Bytes>::new())?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let body = Limited::new(response.into_body(), MAX_STATUS_BYTES)
                .collect()
                .await;
            let body = body
                .map_err(|error| anyhow::anyhow!("reading the answer: {error}"))?
                .to_bytes();
            anyhow::Ok(serde_json::from_slice(&body)?)
        };
        tokio::select! {
            answer = answer => answer,
            Err(error) = connection => Err(error.into()),
        }
    };
    tokio::time::timeout(Duration::from_secs(5), exchange)
        .await
        .context("no answer within 5 s")?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::ImageStatus;

    #[test]
    fn every_figure_has_a_name_and_what_was_not_counted_is_not_shown() {
        let image = ImageStatus {
            reference: "ghcr.io/org/image:v1".into(),
            state: "staging".into(),
            reason: "throttled".into(),
            message: "no progress for 5 s".into(),
            total_bytes: 536_873_124,
            held_bytes: 231_737_508,
            origin_bytes: 85_663_537,
            peer_bytes: 163_971_816,
            local_bytes: 1_000,
            ..ImageStatus::default()
        };
        let restarted = ImageStatus {
            state: "present".into(),
            reason: String::new(),
            message: String::new(),
            held_bytes: image.total_bytes,
            origin_bytes: 0,
            peer_bytes: 0,
            local_bytes: 0,
            ..image.clone()
        };
        let snapshot = Snapshot {
            host: "mini-1".into(),
            coordinator: true,
            peers: 2,
            connected: 2,
            images: vec![image, restarted],
            found_disks: 2,
            found_bytes: 280_000_000_000,
            found_left_bytes: 12_300_000_000,
            ..Snapshot::default()
        };
        assert_eq!(
            text(&snapshot),
            "host mini-1  coordinator up  peers 2/2 connected\n\
             staging     43 %  ghcr.io/org/image:v1  231.7 MB of 536.8 MB verified; \
             received since the agent's start 249.6 MB (registry 85.6 MB, peers 163.9 MB); 1.0 kB were here already; \
             throttled; no progress for 5 s\n\
             present    100 %  ghcr.io/org/image:v1  536.8 MB of 536.8 MB verified\n\
             2 disks that others made were read (280.0 GB); 12.3 GB of the next are left\n"
        );
    }
}
