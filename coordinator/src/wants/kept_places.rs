//! The places under groups' caps, as they are kept over restarts, in two files: `places/places.json`, an object from
//! the group's name to its places, and `places/ended.json`, an array of those that ended last. They lie in a directory
//! of their own, because replicas share whole directories.
//!
//! `ended.json` is written first. A crash between the two leaves a place in both, and then it has ended: whoever gave
//! it back heard no answer, and asks again. Earlier versions read `places.json` alone, and wrote no numbers.
//!
//! No moment is kept by which anything is decided: after a restart each place gets its whole time again.

use std::{collections::BTreeMap, time::Duration};

use proto::{HostId, Moment, millis};
use rollout::places::{Ended, GroupName, Place, PlaceEnd, Places, Purpose};
use serde::{Deserialize, Serialize};
use tracing::warn;

/// The directory of places, below the state directory.
pub(crate) const PLACES: &str = "places";

/// All places, and those that ended last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeptPlaces {
    /// By the group's name.
    pub(super) places: BTreeMap<String, Vec<KeptPlace>>,
    /// The oldest first.
    pub(super) ended: Vec<KeptEnd>,
}

/// A place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptPlace {
    host: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    number: Option<String>,
    image: String,
    reference: String,
    cap: u32,
    lasts_ms: u64,
    /// In Unix milliseconds: only shown.
    taken_ms: u64,
}

/// A place that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptEnd {
    /// Absent: every group. So earlier versions wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    host: String,
    number: String,
    how: KeptHow,
    #[serde(default)]
    again: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeptHow {
    GivenBack,
    ByOperator,
    TimeOver,
    #[serde(other)]
    Unknown,
}

impl From<PlaceEnd> for KeptHow {
    fn from(how: PlaceEnd) -> Self {
        match how {
            PlaceEnd::GivenBack => Self::GivenBack,
            PlaceEnd::ByOperator => Self::ByOperator,
            PlaceEnd::TimeOver => Self::TimeOver,
            PlaceEnd::Unknown => Self::Unknown,
        }
    }
}

impl From<KeptHow> for PlaceEnd {
    fn from(how: KeptHow) -> Self {
        match how {
            KeptHow::GivenBack => Self::GivenBack,
            KeptHow::ByOperator => Self::ByOperator,
            KeptHow::TimeOver => Self::TimeOver,
            KeptHow::Unknown => Self::Unknown,
        }
    }
}

impl KeptPlaces {
    /// The file of the places, below the state directory.
    pub(crate) const FILE: &str = "places/places.json";
    /// The file of those that ended.
    pub(crate) const ENDED: &str = "places/ended.json";

    pub(crate) fn of(places: &Places) -> Self {
        let kept = |(host, place): (&HostId, &Place)| KeptPlace {
            host: host.to_string(),
            number: place.number.map(|number| number.to_string()),
            image: place.purpose.image.to_string(),
            reference: place.purpose.reference.clone(),
            cap: place.cap,
            lasts_ms: millis(place.lasts),
            taken_ms: place.taken_ms,
        };
        let groups = places.groups().filter(|(_, group)| group.taken() > 0);
        let groups = groups.map(|(name, group)| (name.to_string(), group.places().map(kept)));
        let ended = places.ended().map(|ended| KeptEnd {
            group: ended.group.as_ref().map(ToString::to_string),
            host: ended.host.to_string(),
            number: ended.number.to_string(),
            how: ended.how.into(),
            again: ended.again,
        });
        Self {
            places: groups
                .map(|(name, places)| (name, places.collect()))
                .collect(),
            ended: ended.collect(),
        }
    }

    /// The places that ended. One that this version doesn't understand is left out.
    pub(crate) fn ended(&self) -> Vec<Ended> {
        let ended = self.ended.iter().filter_map(|kept| {
            Some(Ended {
                group: kept.group.as_deref().map(str::parse).transpose().ok()?,
                host: kept.host.parse().ok()?,
                number: kept.number.parse().ok()?,
                how: kept.how.into(),
                again: kept.again,
            })
        });
        ended.collect()
    }

    /// The places. One that this version doesn't understand is left out, and the log says so.
    pub(crate) fn parse(self, now: Moment) -> Vec<(GroupName, HostId, Place)> {
        let mut places = Vec::new();
        for (group, kept) in self.places {
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
        // a place whose number can't be read stays: an operator can give it back, and its time ends it
        number: kept.number.and_then(|number| number.parse().ok()),
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
    use rollout::places::{Answer, Ask, Back, Done, PlaceNumber};

    use super::*;

    #[test]
    fn places_come_back_with_their_whole_time_and_odd_ones_are_left_out() {
        let mut places = Places::default();
        let group: GroupName = "ci".parse().unwrap();
        let number: PlaceNumber = "00000000000000ab".parse().unwrap();
        let ask = Ask {
            host: "mini-1".parse().unwrap(),
            number: Some(number),
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
        assert_eq!(place.number, Some(number));
        assert_eq!(place.ends_at, later + Duration::from_secs(60));

        // as earlier versions wrote it
        let path = dir.path().join(KeptPlaces::FILE);
        let before = r#"{"ci":[{"host":"mini-1","image":"IMAGE","reference":"r.test/image:1","cap":2,"lasts_ms":60000,"taken_ms":1}]}"#;
        let image = Digest::of(b"image").to_string();
        std::fs::write(&path, before.replace("IMAGE", &image)).unwrap();
        let [(.., place)] = &kept().parse(later)[..] else {
            panic!("a place without a number stays");
        };
        assert_eq!((place.number, place.cap), (None, 2));

        // what was given back is remembered, also where only the first of the two files was written
        files.keep_places(&KeptPlaces::of(&places)).unwrap();
        let before = std::fs::read(&path).unwrap();
        let host: HostId = "mini-1".parse().unwrap();
        let back = Back::Numbered(number);
        assert!(matches!(places.done(None, &host, back), Done::Now(_)));
        files.keep_places(&KeptPlaces::of(&places)).unwrap();
        std::fs::write(&path, before).unwrap();
        let torn = kept();
        let ended = torn.ended();
        let mut again = Places::default();
        for (group, host, place) in torn.parse(later) {
            again.restore(later, group, host, place);
        }
        for ended in ended {
            again.restore_ended(ended);
        }
        let done = again.done(None, &host, back);
        assert_eq!(done, Done::Before(PlaceEnd::GivenBack));
        // an end has the group in which it was; earlier versions wrote none
        let other = Some(&"other".parse().unwrap());
        assert_eq!(
            again.done(other, &"mini-2".parse().unwrap(), back),
            Done::Before(PlaceEnd::Unknown)
        );
        files.keep_places(&KeptPlaces::of(&again)).unwrap();
        let groups = |kept: &KeptPlaces| {
            kept.ended()
                .into_iter()
                .map(|of| of.group.map(|of| of.to_string()))
                .collect::<Vec<_>>()
        };
        assert_eq!(groups(&kept()), [None, Some("other".to_owned())]);
        let old = r#"[{"host":"mini-1","number":"00000000000000ab","how":"given_back"}]"#;
        std::fs::write(dir.path().join(KeptPlaces::ENDED), old).unwrap();
        assert_eq!(groups(&kept()), [None]);

        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("mini-1", "Mini 1")).unwrap();
        assert_eq!(kept().parse(later), []);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(kept().parse(later), []);
        assert!(dir.path().join("places.json.damaged").exists());
        assert_eq!(kept().ended().len(), 1);
        let path = dir.path().join(KeptPlaces::ENDED);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(kept(), KeptPlaces::default());
    }
}
