//! The words of the HTTP API: what the coordinator shows and what it is asked, as JSON. Both programs of this crate use
//! them. Fields are only ever added; readers ignore those that they don't know.

use proto::ToldReason;
use serde::{Deserialize, Serialize};

/// Where an image stands in the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageState {
    /// Not everywhere yet.
    Staging,
    /// Present on every selected host.
    Present,
    /// No selected host can still get it without somebody's help; each says why.
    Failed,
    /// Not wanted any more.
    Cancelled,
}

/// Where an image stands on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// The host hasn't said anything about it: it isn't connected, or was ordered just now.
    Waiting,
    /// It waits for room or its turn.
    Queued,
    /// Chunks move.
    Staging,
    /// It is being put into tart's cache.
    Installing,
    /// Verified and ready to use.
    Present,
    /// It can't be staged for now.
    Failed,
    /// It was present and isn't any more.
    Gone,
}

impl HostState {
    /// Its name, as in JSON and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Queued => "queued",
            Self::Staging => "staging",
            Self::Installing => "installing",
            Self::Present => "present",
            Self::Failed => "failed",
            Self::Gone => "gone",
        }
    }
}

/// An image and where it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageView {
    /// Manifest digest, `sha256:…`.
    pub digest: String,
    /// What names it.
    pub references: Vec<String>,
    /// Where it stands.
    pub state: ImageState,
    /// Why it isn't everywhere.
    pub reason: Option<ToldReason>,
    /// The same in a holder's words, naming layer and cause, where it was told.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Bytes of its disk, raw; 0 from a coordinator that doesn't say.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Bytes of all its contents, each once, as a host holds them: raw, but for layers whose raw digest the manifest
    /// lacks. Zeros count, and cost nothing on the way.
    pub raw_bytes: u64,
    /// Bytes that leave the registry when each blob is fetched once: compressed.
    pub registry_bytes: u64,
    /// Contents, and how many of them are complete on some host.
    pub contents: u64,
    /// Contents that are complete on some host.
    pub contents_done: u64,
    /// Hosts that shall hold it.
    pub hosts_selected: u64,
    /// Hosts that do.
    pub hosts_present: u64,
    /// Hosts that say that they can't for now.
    pub hosts_failed: u64,
    /// Unix seconds of the first request.
    pub wanted_at: u64,
    /// Seconds from the request that changed what was wanted until it was present everywhere; absent until then.
    pub staged_seconds: Option<f64>,
    /// Each selected host, by id.
    pub hosts: Vec<HostProgress>,
    /// Contents that a host fetches from the registry now.
    pub leases: Vec<LeaseView>,
}

impl ImageView {
    /// Bytes of all hosts by source.
    #[must_use]
    pub fn bytes(&self) -> SourceBytes {
        self.hosts
            .iter()
            .fold(SourceBytes::default(), |sum, host| SourceBytes {
                origin: sum.origin.saturating_add(host.bytes.origin),
                peers: sum.peers.saturating_add(host.bytes.peers),
                local: sum.local.saturating_add(host.bytes.local),
            })
    }

    /// The same without ages, and without the messages that tell them: what grows with time alone says nothing new.
    #[must_use]
    pub fn without_ages(&self) -> Self {
        let mut view = self.clone();
        view.message.clear();
        for host in &mut view.hosts {
            host.message.clear();
            host.presence_age_ms = host.presence_age_ms.map(|_| 0);
            host.failed_seconds = host.failed_seconds.map(|_| 0);
        }
        for lease in &mut view.leases {
            lease.idle_ms = 0;
        }
        view
    }
}

/// Bytes by where they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceBytes {
    /// From the registry, compressed.
    pub origin: u64,
    /// From peers, as on the wire.
    pub peers: u64,
    /// Found on the host's own disk, raw.
    pub local: u64,
}

/// An image on one host. The numbers of bytes never fall while one staging lasts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostProgress {
    /// The host.
    pub host: String,
    /// Where it stands.
    pub state: HostState,
    /// Why it isn't present.
    pub reason: Option<ToldReason>,
    /// The same for people.
    pub message: String,
    /// Whether the host's session is up.
    pub connected: bool,
    /// Raw bytes to hold.
    pub total_bytes: u64,
    /// Raw bytes verified.
    pub held_bytes: u64,
    /// Bytes by source.
    pub bytes: SourceBytes,
    /// Wire bytes sent to peers.
    pub upload_bytes: u64,
    /// Raw bytes per second within the last five; 0 when nothing came, and while the host is away.
    pub bytes_per_second: u64,
    /// Seconds until it is whole at this rate; absent when nothing moves.
    pub eta_seconds: Option<u64>,
    /// Unix seconds when this staging of it began; absent where the host doesn't say. The numbers of another one begin
    /// anew.
    #[serde(default)]
    pub began_at: Option<u64>,
    /// Milliseconds since the host checked on its disk that it is present; absent when it isn't.
    pub presence_age_ms: Option<u64>,
    /// Whether the golden exists.
    pub golden: bool,
    /// Seconds for which it has been failed; absent when it isn't.
    pub failed_seconds: Option<u64>,
}

/// A content that a host fetches from the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    /// The content's digest.
    pub content: String,
    /// The host.
    pub host: String,
    /// Chunks fetched.
    pub chunks: u32,
    /// Milliseconds since the last progress.
    pub idle_ms: u64,
}

/// A host, and why it is as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostView {
    /// The host.
    pub host: String,
    /// Its zone.
    pub zone: String,
    /// Whether the fleet file names it.
    pub named: bool,
    /// Whether its session is up.
    pub connected: bool,
    /// Whether it is known never to have enrolled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub never_enrolled: bool,
    /// Whether it is revoked.
    pub revoked: bool,
    /// When it was revoked (Unix seconds), and the operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<RevocationView>,
    /// How it was last turned away, since its last session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<RefusalView>,
    /// Whether the fleet shuns it because of what other hosts blame it for.
    pub quarantined: bool,
    /// Where peers reach it.
    pub address: Option<String>,
    /// Its agent's version.
    pub version: String,
    /// Its volume, as it reported it.
    pub volume: Option<VolumeView>,
    /// Push work that it hasn't done, in bytes.
    pub backlog_bytes: u64,
    /// Its upload rate.
    pub upload_bytes_per_second: u64,
    /// How often it was blamed since the coordinator's start.
    pub blames: u64,
    /// What it holds or shall hold.
    pub images: Vec<HostImage>,
    /// What keeps it from having everything that it shall hold; empty when nothing does.
    pub why: Vec<String>,
}

/// A host's revocation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationView {
    /// Unix seconds; 0 where the record doesn't say.
    pub at: u64,
    /// Why, in the words of whoever revoked it; may be empty.
    pub reason: String,
}

/// A handshake between a host and the coordinator that failed because one didn't take the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalView {
    /// Seconds since then.
    pub seconds_ago: u64,
    /// Where the host called from.
    pub address: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// A host's volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    /// Where it is mounted, or a directory on it.
    pub path: String,
    /// Its size.
    pub total_bytes: u64,
    /// What is free.
    pub free_bytes: u64,
    /// What staging leaves free.
    pub floor_bytes: u64,
}

/// An image on a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostImage {
    /// Manifest digest.
    pub digest: String,
    /// What names it.
    pub references: Vec<String>,
    /// Whether the fleet wants it on this host.
    pub wanted: bool,
    /// Where it stands.
    #[serde(flatten)]
    pub progress: HostProgress,
}

/// `POST /v1/images`: stage an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRequest {
    /// The image, by tag or digest.
    pub reference: String,
    /// On these hosts only; absent: on all, also those that join later. Adds to what was asked before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
}

/// Answer to `POST /v1/images`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageReply {
    /// The image as it stands.
    pub image: ImageView,
    /// Selected hosts that lack room by the coordinator's figures. They are ordered all the same: what they share with
    /// images at hand needs no room, and they refuse by themselves.
    pub short_of_room: Vec<ShortOfRoom>,
}

/// Answer to `DELETE /v1/images/{image}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelReply {
    /// The image's manifest digest.
    pub digest: String,
    /// References under which operators don't want it any more.
    pub references: Vec<String>,
    /// References under which it is wanted all the same.
    pub still_wanted: Vec<StillWanted>,
}

/// A reference of an image that is wanted, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StillWanted {
    /// The reference.
    pub reference: String,
    /// Operators asked for it.
    pub operators: bool,
    /// ImagePrePulls want it.
    pub cluster: bool,
}

/// A host that lacks room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShortOfRoom {
    /// The host.
    pub host: String,
    /// What it still has to store.
    pub needed_bytes: u64,
    /// What is free.
    pub free_bytes: u64,
    /// What has to stay free.
    pub floor_bytes: u64,
}

/// A pool whose roll is gated, as `GET /v1/pools` lists them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    /// Its namespace.
    pub namespace: String,
    /// The ImagePrePull that gates it.
    pub name: String,
    /// Who labels: `own` or `guard`.
    pub mode: String,
    /// What its Pods shall run.
    pub image: String,
    /// What that was resolved to.
    pub digest: Option<String>,
    /// Whether an operator holds it.
    pub paused: bool,
    /// Pods alive.
    pub alive: u32,
    /// Of these: those that run another image.
    pub stale: u32,
    /// Of these: those that may drain.
    pub labelled: u32,
    /// Pods in flight.
    pub in_flight: u32,
    /// Places taken beyond these, for admissions that don't show yet and successors that aren't there yet.
    pub reserved: u32,
    /// The most that may be in flight.
    pub cap: u32,
    /// Hosts that are Ready and take Pods.
    pub hosts_usable: u32,
    /// Of these: those that hold the image.
    pub hosts_ready: u32,
    /// Its Pods, oldest first.
    pub pods: Vec<PodView>,
}

/// A Pod, and what the gate says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The ImagePrePull that gates it, `namespace/name`.
    pub pool: Option<String>,
    /// What it runs.
    pub image: String,
    /// Where.
    pub node: Option<String>,
    /// Whether that isn't what its pool shall run.
    pub stale: bool,
    /// Whether it counts as in flight.
    pub in_flight: bool,
    /// `open`, or why it is held.
    pub reason: ToldReason,
    /// The same for people.
    pub message: String,
}

/// `POST /v1/plan`: what staging an image would move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanReply {
    /// Manifest digest.
    pub digest: String,
    /// The reference that was asked for.
    pub reference: String,
    /// Bytes that a host with nothing has to receive, raw.
    pub raw_bytes: u64,
    /// Bytes of the registry's blobs.
    pub registry_bytes: u64,
    /// Bytes that would leave the registry.
    pub origin_bytes: u64,
    /// The least seconds in which it can be done at these rates.
    pub predicted_seconds: f64,
    /// What bounds it: `origin`, `download` or `upload`; absent when nothing has to move.
    pub bound_by: Option<String>,
    /// The registry's rate that was assumed.
    pub origin_bytes_per_second: u64,
    /// Each selected host.
    pub hosts: Vec<PlannedHost>,
}

/// What an image would move to one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedHost {
    /// The host.
    pub host: String,
    /// Whether its session is up. A host that isn't connected isn't part of the prediction.
    pub connected: bool,
    /// Whether the image is present.
    pub present: bool,
    /// Raw bytes that it lacks: whole contents that no image on the host has. Changed chunks may be fewer.
    pub missing_bytes: u64,
    /// About the same as compressed bytes, which is what moves.
    pub move_bytes: u64,
    /// The download rate that was assumed.
    pub download_bytes_per_second: u64,
    /// The upload rate that was assumed.
    pub upload_bytes_per_second: u64,
    /// Set when it lacks room.
    pub short_of_room: Option<ShortOfRoom>,
}

/// `POST /v1/enrol`: a host asks for its first certificate. Authenticated by the token, not by the API's.
#[derive(Clone, Deserialize, Serialize)]
pub struct EnrolRequest {
    /// The single-use token.
    pub token: String,
    /// PKCS#10: PEM, or DER as base64.
    pub csr: String,
}

impl std::fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolRequest").finish_non_exhaustive()
    }
}

/// `POST /v1/renew`: a host whose certificate expired asks for another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenewRequest {
    /// The certificate that expired: PEM, or DER as base64.
    pub certificate: String,
    /// PKCS#10 of the same key: PEM, or DER as base64.
    pub csr: String,
}

/// Answer to `POST /v1/enrol` and `POST /v1/renew`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnrolReply {
    /// The id in the certificate.
    pub host: String,
    /// PEM certificates, leaf first; the last one is the authority's.
    pub chain: String,
    /// The authority's certificate, PEM.
    pub authority: String,
    /// The coordinator's QUIC address, `host:port`; an empty host means the one that was asked.
    pub address: String,
    /// When the certificate expires, Unix seconds.
    pub expires_at: u64,
}

/// `POST /v1/tokens`: an enrolment token for a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// The host.
    pub host: String,
    /// Seconds for which it is good; absent: the fleet file's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_seconds: Option<u64>,
}

/// Answer to `POST /v1/tokens`, and what `parbake-coordinator token --json` prints.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenReply {
    /// The host.
    pub host: String,
    /// The token, shown this once.
    pub token: String,
    /// When it expires, Unix seconds.
    pub expires_at: u64,
    /// The authority's pin.
    pub ca_pin: String,
}

impl std::fmt::Debug for TokenReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenReply")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// `POST /v1/hosts/{id}/revoke`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RevokeRequest {
    /// Why, kept with the revocation.
    pub reason: String,
    /// Revoke a host that nothing is known of, too: it has a certificate that the records don't tell of, or will have
    /// one.
    pub force: bool,
}

/// `PUT /v1/bandwidth` and its answer: what each host may use, in bytes per second; 0 for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandwidthRequest {
    /// Up.
    pub upload_bytes_per_second: u64,
    /// Down.
    pub download_bytes_per_second: u64,
}

/// What every failed request is answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What was attempted, why it failed, and what to do.
    pub error: String,
}

/// Where a running coordinator listens: `addresses.json` in its state directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// QUIC, UDP.
    pub quic: std::net::SocketAddr,
    /// HTTPS API, TCP.
    pub api: std::net::SocketAddr,
    /// Health and metrics, plain HTTP.
    pub admin: std::net::SocketAddr,
}
