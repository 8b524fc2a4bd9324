//! The messages of the gate without a cluster: whether hosts hold an image, and places under the cap of a group. As all
//! messages, they are JSON; fields are only ever added, and readers of answers ignore unknown fields.

use std::{fmt, str::FromStr};

use proto::ToldReason;
use serde::{Deserialize, Serialize};

/// The most hosts of one request.
pub const MAX_GATE_HOSTS: usize = 512;

/// How many hosts of a group may have a place: a number, or a share of the hosts that the image was asked for on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AtMost {
    /// So many hosts, 1 or more.
    Hosts(u32),
    /// So many percent, 1 to 100, rounded down, and at least one host.
    Percent(u32),
}

/// The text isn't a cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cap is a number of hosts, 1 or more, or a percentage from 1% to 100%")]
pub struct NoCap;

impl FromStr for AtMost {
    type Err = NoCap;

    fn from_str(text: &str) -> Result<Self, NoCap> {
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| digits).ok_or(NoCap)
        };
        let (cap, most) = match text.strip_suffix('%') {
            Some(percent) => (Self::Percent(number(percent)?), 100),
            None => (Self::Hosts(number(text)?), u32::MAX),
        };
        let (Self::Hosts(value) | Self::Percent(value)) = cap;
        match (1..=most).contains(&value) {
            true => Ok(cap),
            false => Err(NoCap),
        }
    }
}

impl fmt::Display for AtMost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hosts(hosts) => write!(f, "{hosts}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl TryFrom<String> for AtMost {
    type Error = NoCap;

    fn try_from(text: String) -> Result<Self, NoCap> {
        text.parse()
    }
}

impl From<AtMost> for String {
    fn from(cap: AtMost) -> Self {
        cap.to_string()
    }
}

/// `POST /v1/gate`: which of these hosts hold an image, and may be worked on? With a group, each host whose answer is
/// `open` has a place in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateRequest {
    /// The image, by a reference under which it is wanted, or by its bare digest.
    pub image: String,
    /// The hosts, at most [`MAX_GATE_HOSTS`].
    pub hosts: Vec<String>,
    /// The digest that the reference had when the caller first asked. A reference that has moved is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The group in which each host takes a place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// How many hosts of the group may have a place, by this caller. The strictest of those that have a place or wait
    /// holds. Absent: as many as the others say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<AtMost>,
    /// Seconds after which a place that nobody gives back ends by itself, at most a day. Absent: half an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// The number of the places: 16 digits 0-9 and a-f that the caller makes at random, once, and sends with each try.
    /// Who asks again with it gets its own place again, and no other caller does. It is used once: a place that was
    /// given back isn't taken again under its number. Absent: the caller is of a version that knows none, and shares
    /// its places with others of that kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// The answer about one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateVerdict {
    /// The host holds the image, and has a place where a group was named.
    Open,
    /// Not now. Whoever asks again within 30 s keeps the host's turn.
    Waits,
    /// Not by waiting.
    Refused,
}

/// The answer about one host, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateView {
    /// The host.
    pub host: String,
    /// The image's manifest digest. Absent where the image isn't wanted on the host.
    pub digest: Option<String>,
    /// The answer.
    pub verdict: GateVerdict,
    /// The reason: of the closed set.
    pub reason: ToldReason,
    /// The same as text for people: the cause.
    pub message: String,
    /// What to do about it. Empty where nothing is to be done.
    pub next: String,
    /// Seconds for which the image has been failed on this host. Absent when it isn't failed.
    pub failed_seconds: Option<u64>,
    /// Why the image failed as a whole, where it did.
    #[serde(default)]
    pub image_failed: Option<ToldReason>,
    /// The caller's place on the host, where it has one in the group.
    pub place: Option<PlaceView>,
}

/// Answer to `POST /v1/gate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateReply {
    /// Each host, in the order of the request.
    pub hosts: Vec<GateView>,
}

/// Answer to `GET /v1/gate`: the groups in which a host has a place or waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateList {
    /// The groups, by name.
    pub groups: Vec<GroupView>,
}

/// A group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// Its name.
    pub group: String,
    /// The most hosts that may have a place: the strictest cap of those that have one, or wait. Absent where hosts wait
    /// without a cap.
    pub cap: Option<u32>,
    /// The hosts that have a place.
    pub places: Vec<PlaceView>,
    /// The hosts that wait, those first that come first.
    pub waits: Vec<WaitView>,
}

/// A place that a host has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceView {
    /// The host.
    pub host: String,
    /// Its number. Absent where its caller named none.
    #[serde(default)]
    pub number: Option<String>,
    /// The image's reference, as it was asked for.
    pub image: String,
    /// The image's manifest digest.
    pub digest: String,
    /// The most hosts that may have a place, by the caller who took this one, or by the others if it didn't say.
    pub cap: u32,
    /// When it was taken, in Unix seconds.
    pub taken_at: u64,
    /// Seconds until it ends by itself.
    pub ends_in_seconds: u64,
}

/// A host that waits for a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitView {
    /// The host.
    pub host: String,
    /// The image's reference, as it was asked for.
    pub image: String,
    /// The image's manifest digest.
    pub digest: String,
    /// Seconds for which it has waited. A new leader counts anew.
    pub waits_seconds: u64,
    /// What it waits for.
    pub reason: ToldReason,
}

/// `POST /v1/gate/done`: the work on a host is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateDone {
    /// The host.
    pub host: String,
    /// The group. Absent: every group in which the host has a place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The number of the place: only that one is given back. Absent: one whose caller named none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Whatever place the host has is given back: for operators. Not together with `place`.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub any: bool,
}

/// How a place ended before it was given back by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaceEnd {
    /// By an earlier call with its number.
    GivenBack,
    /// An operator gave back whatever place the host had.
    ByOperator,
    /// Its time was over before anybody gave it back.
    TimeOver,
    /// The host never had it, or so long ago that it is forgotten. Or it ended in a way that this version doesn't know.
    #[serde(other)]
    Unknown,
}

/// Answer to `POST /v1/gate/done`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateDoneReply {
    /// The groups in which the host gave a place back. Empty where it had none that the call is about.
    pub given_back: Vec<String>,
    /// How the place of this number had ended before, where it isn't given back now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<PlaceEnd>,
    /// The same as text for people.
    #[serde(default)]
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_is_a_number_of_hosts_or_a_percentage() {
        for good in ["1", "4000", "1%", "100%"] {
            let cap: AtMost = good.parse().unwrap();
            assert_eq!(cap.to_string(), good);
        }
        for bad in [
            "",
            "0",
            "-1",
            "+1",
            "0%",
            "101%",
            "5 %",
            "%",
            "1.5",
            "4294967296",
        ] {
            assert!(bad.parse::<AtMost>().is_err(), "{bad}");
        }
        let request = GateRequest {
            at_most: Some(AtMost::Percent(5)),
            ..GateRequest::default()
        };
        let text = serde_json::to_string(&request).unwrap();
        assert!(text.contains(r#""at_most":"5%""#), "{text}");
        assert_eq!(serde_json::from_str::<GateRequest>(&text).unwrap(), request);
    }
}
