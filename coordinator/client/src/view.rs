//! The API's messages, as JSON, for both ends. Fields are only ever added, and readers of answers ignore unknown ones.

use proto::ToldReason;
use serde::{Deserialize, Serialize};

/// The state of an image in the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageState {
    /// The image isn't on every selected host yet.
    Staging,
    /// The image is present on every selected host.
    Present,
    /// No selected host can still get the image without help. Each host says why.
    Failed,
    /// The image isn't wanted any more.
    Cancelled,
}

/// The state of an image on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// The host hasn't reported on the image: it isn't connected, or it was ordered just now.
    Waiting,
    /// The host waits for room or for its turn.
    Queued,
    /// Chunks are moving.
    Staging,
    /// The image is being put into tart's cache.
    Installing,
    /// The image is verified and ready to use.
    Present,
    /// The image can't be staged for now.
    Failed,
    /// The image was present and isn't any more.
    Gone,
}

impl HostState {
    /// The state's name, as in JSON and metrics.
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

/// An image and its state in the fleet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageView {
    /// Manifest digest, `sha256:…`.
    pub digest: String,
    /// The references that name the image.
    pub references: Vec<String>,
    /// The image's state.
    pub state: ImageState,
    /// Why the image isn't present everywhere.
    pub reason: Option<ToldReason>,
    /// The same reason in a host's words, naming layer and cause. Empty where no host has said so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Bytes of the image's disk, raw. 0 from a coordinator that doesn't say.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Bytes of all the image's contents, each counted once, as a host holds them. They are counted raw, except for
    /// layers whose raw digest the manifest lacks. Zeros count here, although moving them costs nothing.
    pub raw_bytes: u64,
    /// Bytes that leave the registry when each blob is fetched once. They are compressed.
    pub registry_bytes: u64,
    /// The image's recipe, if there is one: beside the image in the registry, or on hosts that made it.
    #[serde(default)]
    pub recipe: Option<RecipeView>,
    /// The number of contents.
    pub contents: u64,
    /// The number of contents that are complete on some host.
    pub contents_done: u64,
    /// The number of hosts that shall hold the image.
    pub hosts_selected: u64,
    /// The number of hosts that hold the image.
    pub hosts_present: u64,
    /// The number of hosts that report a failure for now.
    pub hosts_failed: u64,
    /// The time of the first request, in Unix seconds.
    pub wanted_at: u64,
    /// How urgent the image is beside others: the highest priority that operators or objects give it. 0 from a
    /// coordinator that knows no priorities.
    #[serde(default)]
    pub priority: i32,
    /// Seconds from the last change of what was wanted until the image was present everywhere. `null` until then.
    pub staged_seconds: Option<f64>,
    /// What was predicted when the staging began. Absent where nobody knows when that was, and from a coordinator that
    /// predicts nothing.
    #[serde(default)]
    pub prediction: Option<PredictionView>,
    /// What all hosts moved since the prediction.
    #[serde(default)]
    pub measured: Option<StagingBytes>,
    /// Each selected host, in the order of ids.
    pub hosts: Vec<HostProgress>,
    /// Contents that a host is fetching from the registry now.
    pub leases: Vec<LeaseView>,
}

impl ImageView {
    /// The bytes of all hosts, summed by source.
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

    /// The view without ages, and without the messages that contain them. Two views that differ only in age say nothing
    /// new.
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

/// The recipe of an image: what proves each of its chunks before any of them arrives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeView {
    /// Digest of the recipe's bytes, `sha256:…`.
    pub digest: String,
    /// The recipe's bytes.
    pub size: u64,
    /// Whether hosts made it. Else it was found beside the image in the registry.
    #[serde(default)]
    pub made_by_fleet: bool,
    /// Contents that are staged without the recipe, because the registry's bytes didn't fit it.
    #[serde(default)]
    pub doubted_contents: Vec<String>,
}

/// Bytes, by source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceBytes {
    /// From the registry, compressed.
    pub origin: u64,
    /// From peers, as on the wire.
    pub peers: u64,
    /// From the host's own disk, raw.
    pub local: u64,
}

/// Bytes that a staging moves, on one host or on all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StagingBytes {
    /// From the registry, compressed.
    pub origin: u64,
    /// From peers, as on the wire.
    pub peers: u64,
    /// From the host's own disk, raw.
    pub local: u64,
    /// Written to the disk, raw. Zeros aren't written, nor is what a clone shares with another image: so this is also
    /// the space that is taken.
    pub written: u64,
}

impl StagingBytes {
    /// The sum of both, part by part.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            origin: self.origin.saturating_add(other.origin),
            peers: self.peers.saturating_add(other.peers),
            local: self.local.saturating_add(other.local),
            written: self.written.saturating_add(other.written),
        }
    }

    /// The parts by their names in JSON and metrics.
    #[must_use]
    pub const fn parts(self) -> [(&'static str, u64); 4] {
        [
            ("origin", self.origin),
            ("peers", self.peers),
            ("local", self.local),
            ("written", self.written),
        ]
    }

    /// The difference, part by part; 0 where the other is more.
    #[must_use]
    pub const fn less(self, other: Self) -> Self {
        Self {
            origin: self.origin.saturating_sub(other.origin),
            peers: self.peers.saturating_sub(other.peers),
            local: self.local.saturating_sub(other.local),
            written: self.written.saturating_sub(other.written),
        }
    }
}

/// What staging an image was predicted to move. Bytes from the network and bytes to write are predicted at most, local
/// bytes at least: hosts find more on their disks than the coordinator knows of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PredictionView {
    /// When the prediction was made, in Unix milliseconds.
    pub at_ms: u64,
    /// The bytes of all selected hosts.
    pub bytes: StagingBytes,
    /// The least time by the rates that are known. Absent when none is known, or nothing has to move.
    pub milliseconds: Option<u64>,
    /// What limits that time: `registry`, `link` (the slowest host's network), `uploads` (of all hosts together) or
    /// `disk`.
    pub bound_by: Option<String>,
    /// What may take longer, because nobody knows its rate: of the same words.
    pub unknown: Vec<String>,
}

/// An image on one host. The counts of bytes never fall while one staging lasts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostProgress {
    /// The host.
    pub host: String,
    /// The state of the image on this host.
    pub state: HostState,
    /// Why the image isn't present.
    pub reason: Option<ToldReason>,
    /// The same reason as text for people.
    pub message: String,
    /// Whether the host's session is up.
    pub connected: bool,
    /// Raw bytes of the image.
    pub total_bytes: u64,
    /// Raw bytes that the host holds, verified.
    pub held_bytes: u64,
    /// Bytes that the host received, by source.
    pub bytes: SourceBytes,
    /// Raw bytes that the host wrote to the image's files, which is also the space that the image took. 0 from a host
    /// that doesn't say.
    #[serde(default)]
    pub written_bytes: u64,
    /// What was predicted for this host when the staging began.
    #[serde(default)]
    pub predicted: Option<StagingBytes>,
    /// What this host moved since the prediction.
    #[serde(default)]
    pub measured: Option<StagingBytes>,
    /// Bytes that the host sent to peers, as on the wire.
    pub upload_bytes: u64,
    /// Raw bytes per second, averaged over the last five seconds. 0 when nothing came, and while the host is away.
    pub bytes_per_second: u64,
    /// Seconds until the image is whole at this rate. Absent when nothing moves.
    pub eta_seconds: Option<u64>,
    /// When this staging began, in Unix seconds. Absent where the host doesn't say. Another staging starts its counts
    /// anew.
    #[serde(default)]
    pub began_at: Option<u64>,
    /// Milliseconds since the host last checked on its disk that the image is present. Absent when the image isn't
    /// present.
    pub presence_age_ms: Option<u64>,
    /// Whether the host has the image's golden.
    pub golden: bool,
    /// Digest of the recipe by which the host proves the image's chunks. Absent where it has none.
    #[serde(default)]
    pub recipe: Option<String>,
    /// Seconds for which the image has been failed on this host. Absent when it isn't failed.
    pub failed_seconds: Option<u64>,
}

/// A content that a host is fetching from the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    /// The content's digest.
    pub content: String,
    /// The host.
    pub host: String,
    /// The chunks that the host fetches, where others may fetch the others. Absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<RangeView>,
    /// The number of chunks that were fetched.
    pub chunks: u32,
    /// Milliseconds since the last progress.
    pub idle_ms: u64,
}

/// Chunks of a content, each of 1 MiB, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeView {
    /// The first chunk.
    pub from: u32,
    /// The chunk behind the last one.
    pub until: u32,
}

/// A host, and the reasons for its state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostView {
    /// The host.
    pub host: String,
    /// The host's zone.
    pub zone: String,
    /// Whether the fleet file names it.
    pub named: bool,
    /// Whether the host's session is up.
    pub connected: bool,
    /// Whether the host is known never to have enrolled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub never_enrolled: bool,
    /// Whether the host is revoked.
    pub revoked: bool,
    /// The revocation, where the host is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<RevocationView>,
    /// The last refused handshake since the host's last session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<RefusalView>,
    /// Whether the fleet avoids the host for a while: other hosts said that it sent false data, or it signed links that
    /// contradict each other.
    pub quarantined: bool,
    /// The address at which peers reach the host.
    pub address: Option<String>,
    /// The version of the host's agent.
    pub version: String,
    /// The host's volume, as the host reported it.
    pub volume: Option<VolumeView>,
    /// Bytes that the host was asked to push and hasn't pushed yet.
    pub backlog_bytes: u64,
    /// The host's upload rate.
    pub upload_bytes_per_second: u64,
    /// How often the host was blamed since the coordinator started.
    pub blames: u64,
    /// The images that the host holds or shall hold.
    pub images: Vec<HostImage>,
    /// What keeps the host from having every image that it shall hold. Empty when nothing does.
    pub why: Vec<String>,
}

/// A question which old images would go from hosts. Nothing is removed for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OldImagesRequest {
    /// The hosts; `null` for all.
    #[serde(default)]
    pub hosts: Option<Vec<String>>,
    /// The rule to go by. `null`: each host's own, or the fleet's.
    #[serde(default)]
    pub rule: Option<RuleView>,
}

/// A rule about old images. An image stays if either number says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleView {
    /// How many images of each repository stay, the wanted ones among them, 1 to 1,000. `null`: none for its number.
    #[serde(default)]
    pub keep_images: Option<u32>,
    /// For how many days after its last use an image stays, 1 to 3,650. `null`: none for its age.
    #[serde(default)]
    pub keep_days: Option<u32>,
}

/// The answer to [`OldImagesRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldImagesReply {
    /// The fleet's rule. `null`: there is none.
    pub fleet_rule: Option<RuleView>,
    /// Each host, in the order of ids.
    pub hosts: Vec<HostOldImages>,
}

/// What would become of the images on one host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostOldImages {
    /// The host.
    pub host: String,
    /// Whether the host answered.
    pub answered: bool,
    /// Why the host gave no answer, why its rule isn't in force yet, or why it has none. Empty where there is nothing
    /// to say.
    #[serde(default)]
    pub note: String,
    /// The rule that the host goes by. `null`: none is in force, so all stay.
    pub rule: Option<RuleView>,
    /// Whose rule that is.
    #[serde(default)]
    pub source: RuleSource,
    /// The number of images that would go.
    pub going: u32,
    /// The bytes that these take. What they share with files that stay isn't freed.
    pub freed_bytes: u64,
    /// Bytes of images that went before, and that are still to be removed.
    pub left_bytes: u64,
    /// The images, those that would go first.
    pub images: Vec<OldImageView>,
    /// The number of further images.
    pub more: u32,
}

/// Whose rule a host goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleSource {
    /// No rule is in force.
    #[default]
    None,
    /// The host's own settings.
    Host,
    /// The fleet's rule.
    Fleet,
    /// The question's.
    Asked,
}

/// What would become of an image on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldImageView {
    /// Manifest digest, `sha256:…`.
    pub digest: String,
    /// References that name the image, at most two.
    pub references: Vec<String>,
    /// Bytes that its files take.
    pub bytes: u64,
    /// Whether it would go.
    pub goes: bool,
    /// Why it stays.
    #[serde(default)]
    pub why: String,
    /// Its goldens that parbake made, which go with it.
    pub goldens: u32,
}

/// A host's revocation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationView {
    /// The time of the revocation, in Unix seconds. 0 where the record doesn't say.
    pub at: u64,
    /// The reason, in the words of the operator who revoked the host. May be empty.
    pub reason: String,
}

/// A failed handshake between a host and the coordinator, where one side refused the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalView {
    /// Seconds since the handshake.
    pub seconds_ago: u64,
    /// The address that the host called from.
    pub address: String,
    /// What is wrong, and what to do about it.
    pub message: String,
}

/// A host's volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    /// The mount point, or a directory on the volume.
    pub path: String,
    /// The volume's size.
    pub total_bytes: u64,
    /// The bytes that are free.
    pub free_bytes: u64,
    /// The bytes that staging leaves free.
    pub floor_bytes: u64,
    /// Whether files there can share blocks. Absent where the host doesn't say.
    #[serde(default)]
    pub clones: Option<bool>,
}

/// An image on a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostImage {
    /// Manifest digest.
    pub digest: String,
    /// The references that name the image.
    pub references: Vec<String>,
    /// Whether the fleet wants it on this host.
    pub wanted: bool,
    /// The state of the image on this host.
    #[serde(flatten)]
    pub progress: HostProgress,
}

/// `POST /v1/images`: stage an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRequest {
    /// The image's reference, by tag or digest.
    pub reference: String,
    /// The hosts that shall hold the image, in addition to those of earlier requests. Absent means all hosts, including
    /// those that join later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    /// How urgent the image is beside others that the same hosts shall hold: hosts finish images of higher priority
    /// first. Absent leaves the priority of an earlier request; the first one is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
}

/// Answer to `POST /v1/images`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageReply {
    /// The image and its state.
    pub image: ImageView,
    /// Selected hosts that lack room by the coordinator's figures. They get the order all the same: a host may find
    /// more of the image on its disks than the coordinator knows of, and one without room refuses by itself.
    pub short_of_room: Vec<ShortOfRoom>,
}

/// Answer to `DELETE /v1/images/{image}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelReply {
    /// The image's manifest digest.
    pub digest: String,
    /// The references under which operators don't want the image any more.
    pub references: Vec<String>,
    /// The references under which the image stays wanted.
    pub still_wanted: Vec<StillWanted>,
}

/// A reference under which an image stays wanted, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StillWanted {
    /// The reference.
    pub reference: String,
    /// Whether operators want the image.
    pub operators: bool,
    /// Whether ImagePrePulls want the image.
    pub cluster: bool,
}

/// A host that lacks room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShortOfRoom {
    /// The host.
    pub host: String,
    /// The bytes that the host is predicted to write, at most.
    pub needed_bytes: u64,
    /// The same of unfinished images that come before this one. 0 from earlier versions, which don't count them.
    #[serde(default)]
    pub before_bytes: u64,
    /// The bytes that are free.
    pub free_bytes: u64,
    /// The bytes that have to stay free.
    pub floor_bytes: u64,
}

/// A pool whose roll is gated, as `GET /v1/pools` lists it. A pool here is the set of Pods that one ImagePrePull gates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    /// The pool's namespace.
    pub namespace: String,
    /// The name of the ImagePrePull that gates the pool.
    pub name: String,
    /// Who labels the Pods: `own` or `guard`.
    pub mode: String,
    /// The image that the pool's Pods shall run.
    pub image: String,
    /// The digest that the image was resolved to.
    pub digest: Option<String>,
    /// Whether an operator paused the pool.
    pub paused: bool,
    /// The number of Pods that are alive.
    pub alive: u32,
    /// The number of these Pods that run another image.
    pub stale: u32,
    /// The number of these Pods that may drain.
    pub labelled: u32,
    /// The number of Pods in flight.
    pub in_flight: u32,
    /// Places under the cap that are taken beyond the Pods in flight: for admissions that don't show yet, and for
    /// successors that don't exist yet.
    pub reserved: u32,
    /// The most Pods that may be in flight.
    pub cap: u32,
    /// The number of hosts that are Ready and take Pods.
    pub hosts_usable: u32,
    /// The number of these hosts that hold the image.
    pub hosts_ready: u32,
    /// The pool's Pods, oldest first.
    pub pods: Vec<PodView>,
}

/// A Pod, and the gate's verdict about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodView {
    /// The Pod's namespace.
    pub namespace: String,
    /// The Pod's name.
    pub name: String,
    /// The ImagePrePull that gates the Pod, as `namespace/name`. Absent where no gate selects the Pod.
    pub pool: Option<String>,
    /// The image that the Pod runs.
    pub image: String,
    /// The Node that the Pod is on. Absent where the Pod isn't scheduled.
    pub node: Option<String>,
    /// Whether the Pod runs another image than its pool shall run.
    pub stale: bool,
    /// Whether the Pod counts as in flight.
    pub in_flight: bool,
    /// `open`, or why the Pod is blocked.
    pub reason: ToldReason,
    /// The same as text for people.
    pub message: String,
}

/// `POST /v1/plan`: what staging an image would move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanReply {
    /// Manifest digest.
    pub digest: String,
    /// The reference that was asked for.
    pub reference: String,
    /// Raw bytes that a host without any of the image has to receive.
    pub raw_bytes: u64,
    /// Bytes of the image's blobs in the registry, compressed.
    pub registry_bytes: u64,
    /// Bytes that would leave the registry.
    pub origin_bytes: u64,
    /// The image's recipe, if there is one: beside the image in the registry, or on hosts that made it.
    #[serde(default)]
    pub recipe: Option<RecipeView>,
    /// The least time in seconds in which staging can be done at these rates.
    pub predicted_seconds: f64,
    /// What limits the time: `origin`, `download` or `upload`. Absent when nothing has to move.
    pub bound_by: Option<String>,
    /// The rate of the registry that was assumed.
    pub origin_bytes_per_second: u64,
    /// What the whole staging is predicted to move, and its time by the rates that are known. Absent from a coordinator
    /// that doesn't say. `predicted_seconds` and `bound_by` assume the rates that nobody knows.
    #[serde(default)]
    pub prediction: Option<PredictionView>,
    /// The rate that limits the predicted time.
    #[serde(default)]
    pub rate: Option<RateView>,
    /// Each selected host.
    pub hosts: Vec<PlannedHost>,
}

/// A rate, and how it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateView {
    /// The rate.
    pub bytes_per_second: u64,
    /// How it is known: `set` (in the fleet file), `limited` (by an operator or an ImagePrePull), `measured` (the most
    /// that was seen) or `reported` (by the host).
    pub known_by: String,
}

/// What an image would move to one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedHost {
    /// The host.
    pub host: String,
    /// Whether the host's session is up. The prediction leaves out hosts that aren't connected.
    pub connected: bool,
    /// Whether the image is present.
    pub present: bool,
    /// Raw bytes that the host lacks: the whole contents that no image on the host has. The chunks that really differ
    /// may be fewer.
    pub missing_bytes: u64,
    /// The same in compressed bytes, approximately. Compressed bytes are what moves.
    pub move_bytes: u64,
    /// What the host is predicted to move.
    #[serde(default)]
    pub bytes: StagingBytes,
    /// The download rate that was assumed.
    pub download_bytes_per_second: u64,
    /// The upload rate that was assumed.
    pub upload_bytes_per_second: u64,
    /// Set when the host lacks room.
    pub short_of_room: Option<ShortOfRoom>,
}

/// `POST /v1/enrol`: a host asks for its first certificate. The request is authenticated by the enrolment token in it,
/// not by the API's token.
#[derive(Clone, Deserialize, Serialize)]
pub struct EnrolRequest {
    /// The single-use enrolment token.
    pub token: String,
    /// The certificate request (PKCS#10), as PEM, or as DER in base64.
    pub csr: String,
}

impl std::fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolRequest").finish_non_exhaustive()
    }
}

/// `POST /v1/renew`: a host whose certificate expired asks for a new one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenewRequest {
    /// The certificate that expired, as PEM, or as DER in base64.
    pub certificate: String,
    /// A certificate request (PKCS#10) with the same key, as PEM, or as DER in base64.
    pub csr: String,
}

/// Answer to `POST /v1/enrol` and `POST /v1/renew`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnrolReply {
    /// The host's id in the certificate.
    pub host: String,
    /// Certificates as PEM, the host's first and the authority's last.
    pub chain: String,
    /// The authority's certificate, as PEM.
    pub authority: String,
    /// The coordinator's QUIC address, as `host:port`. An empty host means the host that was asked.
    pub address: String,
    /// The time when the certificate expires, in Unix seconds.
    pub expires_at: u64,
}

/// `POST /v1/tokens`: an enrolment token for a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// The host.
    pub host: String,
    /// Seconds for which the token is valid. Absent means the fleet file's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_seconds: Option<u64>,
}

/// Answer to `POST /v1/tokens`, and what `parbake-coordinator token --json` prints.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenReply {
    /// The host.
    pub host: String,
    /// The token. It is shown only this once.
    pub token: String,
    /// The time when the token expires, in Unix seconds.
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

/// `POST /v1/hosts/{id}/revoke`: the host's certificate isn't accepted any more.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RevokeRequest {
    /// The reason, which is kept with the revocation.
    pub reason: String,
    /// Revoke the host even if the records don't know it. Such a host may have a certificate that the records don't
    /// tell of, or may get one later.
    pub force: bool,
}

/// `PUT /v1/bandwidth` and its answer: the most bytes per second that each host may use. 0 means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandwidthRequest {
    /// To other hosts.
    pub upload_bytes_per_second: u64,
    /// From other hosts and the registry together.
    pub download_bytes_per_second: u64,
}

/// The body of every answer to a failed request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What was attempted, why it failed, and what to do.
    pub error: String,
}

/// Where a running coordinator listens: `addresses.json` in its state directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The QUIC port (UDP).
    pub quic: std::net::SocketAddr,
    /// The port of the HTTPS API (TCP).
    pub api: std::net::SocketAddr,
    /// The port for health and metrics (plain HTTP).
    pub admin: std::net::SocketAddr,
}
