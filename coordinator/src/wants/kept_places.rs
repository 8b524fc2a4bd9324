//! The places under groups' caps, as they are kept over restarts: one file, `places/places.json`, an object from the
//! group's name to its places. It lies in a directory of its own, because replicas share whole directories.
//!
//! No moment is kept by which anything is decided: after a restart each place gets its whole time again.

use std::{collections::BTreeMap, time::Duration};

use proto::{HostId, Moment, millis};
use rollout::places::{GroupName, Place, Places, Purpose};
use serde::{Deserialize, Serialize};
use tracing::warn;

/// The directory of places, below the state directory.
pub(crate) const PLACES: &str = "places";

/// All places.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct KeptPlaces(BTreeMap<String, Vec<KeptPlace>>);

/// A place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeptPlace {
    host: String,
    image: String,
    reference: String,
    cap: u32,
    lasts_ms: u64,
    /// In Unix milliseconds: only shown.
    taken_ms: u64,
}

impl KeptPlaces {
    /// The file, below the state directory.
    pub(crate) const FILE: &str = "places/places.json";

    pub(crate) fn of(places: &Places) -> Self {
        let kept = |(host, place): (&HostId, &Place)| KeptPlace {
            host: host.to_string(),
            image: place.purpose.image.to_string(),
            reference: place.purpose.reference.clone(),
            cap: place.cap,
            lasts_ms: millis(place.lasts),
            taken_ms: place.taken_ms,
        };
        let groups = places.groups().filter(|(_, group)| group.taken() > 0);
        let groups = groups.map(|(name, group)| (name.to_string(), group.places().map(kept)));
        Self(
            groups
                .map(|(name, places)| (name, places.collect()))
                .collect(),
        )
    }

    /// The places. One that this version doesn't understand is left out, and the log says so.
    pub(crate) fn parse(self, now: Moment) -> Vec<(GroupName, HostId, Place)> {
        let mut places = Vec::new();
        for (group, kept) in self.0 {
            for kept in kept {
                match place(now, &group, kept) {
                    Ok(place) => places.push(place),
                    Err(error) => warn!(group, error, "a place that was kept isn't understood"),
                }
            }
        }
        places
    }
}

fn place(now: Moment, group: &str, kept: KeptPlace) -> Result<(GroupName, HostId, Place), String> {
    let group = group
        .parse::<GroupName>()
        .map_err(|error| error.to_string())?;
    let host = kept
        .host
        .parse::<HostId>()
        .map_err(|error| error.to_string())?;
    let image = kept.image.parse();
    let purpose = Purpose {
        image: image.map_err(|error: proto::digest::ParseDigestError| error.to_string())?,
        reference: kept.reference,
    };
    let lasts = Duration::from_millis(kept.lasts_ms);
    let place = Place {
        purpose,
        cap: kept.cap,
        lasts,
        taken_ms: kept.taken_ms,
        ends_at: now + lasts,
    };
    Ok((group, host, place))
}

#[cfg(test)]
mod tests {
    use proto::Digest;
    use rollout::places::{Answer, Ask};

    use super::*;

    #[test]
    fn places_come_back_with_their_whole_time_and_odd_ones_are_left_out() {
        let mut places = Places::default();
        let group: GroupName = "ci".parse().unwrap();
        let ask = Ask {
            host: "mini-1".parse().unwrap(),
            purpose: Purpose {
                image: Digest::of(b"image"),
                reference: "r.test/image:1".into(),
            },
            ready: Ok(()),
            cap: Some(2),
            lasts: Duration::from_secs(60),
        };
        let answer = places.ask(Moment::START, 1_000, &group, ask);
        assert_eq!(answer, Ok(Answer::Open { again: false }));
        let dir = tempfile::tempdir().unwrap();
        let files = crate::wants::Files::open(dir.path()).unwrap();
        files.keep_places(&KeptPlaces::of(&places)).unwrap();
        let kept = || {
            let files = crate::wants::Files::open(dir.path()).unwrap();
            files.load().unwrap().places
        };
        let later = Moment::START + Duration::from_secs(5);
        let found = kept().parse(later);
        let [(name, host, place)] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!((name, host.as_str(), place.cap), (&group, "mini-1", 2));
        assert_eq!(place.ends_at, later + Duration::from_secs(60));

        let path = dir.path().join(KeptPlaces::FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("mini-1", "Mini 1")).unwrap();
        assert_eq!(kept().parse(later), []);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(kept(), KeptPlaces::default());
        assert!(dir.path().join("places.json.damaged").exists());
    }
}
