//! The registry mirror of real agents, asked by a client with tart's manners while registries and peers misbehave.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and say what they measured"
)]

mod access;
mod answers;
mod false_bytes;
mod fleet;
mod interrupted;
mod memory;
mod other_client;
mod parts;
mod planted;
mod recipes;
mod trouble;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use e2e::{
    cluster::{Agent, Cluster, Options, wait_until},
    image::{GeneratedImage, ImageSpec},
    registry::{self, Fault, Misbehaviour, Registry, Target},
    site::{self, PATIENCE, Site},
    tart_client::{Pulled, TartClient},
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::{client::legacy, rt::TokioExecutor};
use proto::Digest;
use tokio::task::JoinSet;

const NAME: &str = "fleet/macos";

/// A fleet of mirrors in front of a registry with one image.
struct World {
    cluster: Cluster,
    image: GeneratedImage,
    // last: everything is kept there
    site: Site,
}

impl World {
    /// One host, and an image of one layer.
    fn small() -> Self {
        Self::set("")
    }

    /// The same, with further lines of the agent's settings, where `REGISTRY` stands for the registry's name.
    fn set(settings: &str) -> Self {
        let options = registry::Options::default();
        Self::of(1, &ImageSpec::plain(8, 8), options, settings)
    }

    fn new(hosts: usize, spec: &ImageSpec) -> Self {
        Self::of(hosts, spec, registry::Options::default(), "")
    }

    fn of(hosts: usize, spec: &ImageSpec, options: registry::Options, settings: &str) -> Self {
        Self::beside(&[], hosts, spec, options, settings)
    }

    /// With other registries that agents may ask.
    fn beside(
        others: &[&Registry],
        hosts: usize,
        spec: &ImageSpec,
        options: registry::Options,
        settings: &str,
    ) -> Self {
        let site = Site::new(options).unwrap();
        let image = site.image(spec).unwrap();
        site.registry.hold(NAME, "1", &image);
        let others = others.iter().map(|other| other.addr());
        let all = std::iter::once(site.registry.addr()).chain(others);
        let all: Vec<_> = all.map(|address| address.to_string()).collect();
        let cluster = site::start(Options {
            agent_settings: settings.replace("REGISTRY", &all[0]),
            registry: all.join(","),
            ..site.options(env!("CARGO_BIN_EXE_demo"), hosts)
        });
        Self {
            cluster: cluster.unwrap(),
            image,
            site,
        }
    }

    fn mirror(&self, host: usize) -> SocketAddr {
        let agent = &self.cluster.agents()[host];
        assert!(wait_until(PATIENCE, || agent.mirror().is_some()));
        agent.mirror().unwrap()
    }

    /// The image's name as this mirror's clients write it.
    fn name(&self) -> String {
        format!("{}/{NAME}", self.site.registry.addr())
    }

    /// Where a host's mirror has something of the image's repository.
    fn at(&self, host: usize, path: &str) -> String {
        format!("http://{}/v2/{}/{path}", self.mirror(host), self.name())
    }

    fn blob(&self, host: usize, digest: &Digest) -> String {
        self.at(host, &format!("blobs/{digest}"))
    }

    /// Puts a blob into the registry that no manifest names; its digest.
    fn put(&self, bytes: &Bytes) -> Digest {
        self.site.registry.put_blob(bytes.clone()).unwrap()
    }

    fn client(&self, host: usize) -> TartClient {
        TartClient::new(self.mirror(host))
    }

    /// These hosts pull the image at once; what each got.
    fn pull_at_once(&self, hosts: usize) -> Vec<Pulled> {
        self.run(async {
            let mut pulls = JoinSet::new();
            for host in 0..hosts {
                let (client, name) = (self.client(host), self.name());
                pulls.spawn(async move { client.pull(&name, "1").await.unwrap() });
            }
            pulls.join_all().await
        })
    }

    fn run<T>(&self, what: impl Future<Output = T>) -> T {
        self.site.runtime.block_on(what)
    }

    /// Body bytes of this blob that left the registry.
    fn sent(&self, digest: &Digest) -> u64 {
        let blobs = self.site.registry.counters().blobs;
        blobs.get(digest).map_or(0, |blob| blob.bytes)
    }

    fn check(&self, pulled: &Pulled) {
        assert_eq!(pulled.manifest, self.image.manifest);
        for (digest, bytes) in &pulled.layers {
            assert!(*bytes == self.image.blob(digest).unwrap(), "{digest}");
        }
    }
}

/// Bytes of an image's layers.
fn size(pulled: &Pulled) -> u64 {
    pulled.layers.values().map(|bytes| bytes.len() as u64).sum()
}

/// Bytes of which no two mebibytes are the same, and which differ from another seed's everywhere.
fn noise(seed: u32, bytes: usize) -> Bytes {
    let words = (0u32..).flat_map(|at| {
        at.wrapping_mul(0x9e37_79b9)
            .wrapping_add(seed)
            .to_le_bytes()
    });
    words.take(bytes).collect::<Vec<u8>>().into()
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn code(&self) -> String {
        self.json()["errors"][0]["code"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

/// An answer whose body is still to come. `Err`: there was none.
async fn request(
    method: Method,
    uri: &str,
    headers: &[(&str, &str)],
) -> Result<Response<Incoming>, legacy::Error> {
    let http = legacy::Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    http.request(request.body(Empty::<Bytes>::new()).unwrap())
        .await
}

async fn ask(method: Method, uri: &str, headers: &[(&str, &str)]) -> Answer {
    let response = request(method, uri, headers).await.unwrap();
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

async fn get(uri: &str) -> Answer {
    ask(Method::GET, uri, &[]).await
}

/// Reads a body, or the part of it that a range names, until it ends or breaks. The last word says whether it broke.
async fn read(uri: &str, range: Option<&str>) -> (StatusCode, Vec<u8>, bool) {
    let headers: Vec<_> = range.map(|range| ("range", range)).into_iter().collect();
    let Ok(response) = request(Method::GET, uri, &headers).await else {
        return (StatusCode::IM_A_TEAPOT, Vec::new(), true);
    };
    let (status, mut body, mut bytes) = (response.status(), response.into_body(), Vec::new());
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend_from_slice(frame.data_ref().unwrap()),
            Err(_) => return (status, bytes, true),
        }
    }
    (status, bytes, false)
}

/// Reads a body that has to come whole.
async fn whole(uri: &str) -> Vec<u8> {
    let (status, bytes, broken) = read(uri, None).await;
    assert!(status == StatusCode::OK && !broken, "{uri}: {status}");
    bytes
}

/// Reads the part of a body that a range names, and that has to come whole.
async fn part(uri: &str, range: &str) -> Vec<u8> {
    let (status, bytes, broken) = read(uri, Some(range)).await;
    let came = status == StatusCode::PARTIAL_CONTENT && !broken;
    assert!(came, "{uri}, {range}: {status}");
    bytes
}

/// Reads the beginning of a body, at least so many bytes of it, and goes away.
async fn beginning(uri: &str, bytes: usize) -> Vec<u8> {
    let mut body = request(Method::GET, uri, &[]).await.unwrap().into_body();
    let mut came = Vec::new();
    while came.len() < bytes {
        let frame = body.frame().await.unwrap().unwrap();
        came.extend_from_slice(frame.data_ref().unwrap());
    }
    came
}
