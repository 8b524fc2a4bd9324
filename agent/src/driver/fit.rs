//! Makes reports fit into their message: wanted images and names are said first. What doesn't fit is left out or said
//! later.
//!
//! A report that is too long would end the session. A hello that is too long would end the next one.

use std::collections::BTreeMap;

use prost::Message as _;
use proto::{
    Digest,
    codec::Framed as _,
    limits::{MAX_ENDED_LEASES, MAX_IMAGES, MAX_RETRACTIONS},
    message::{Blame, ImageState, LeaseEnd, LeaseState, Report, Retraction},
};

/// Bytes of all images in one report or hello. The other quarter of the message is for the rest of the report. The
/// coordinator wants at most 64 images with 96 KiB of names: those fit.
const IMAGE_BYTES: usize = Report::MAX_BYTES / 4 * 3;
/// Bytes of names that nobody wants any more: a cancelled tag stays on the disk, and a fleet may see thousands of them.
const UNWANTED_NAME_BYTES: usize = 8 << 10;
/// The most bytes of a text for people. Registries write longer texts.
const TEXT_BYTES: usize = 512;
/// The most bytes that an element of a list costs besides its own: two bytes of tag, and four of length.
const ELEMENT_BYTES: usize = 6;

/// The numbers of images and names on this host that a report leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// Images.
    pub(super) images: usize,
    /// Names that are wanted and are there. The coordinator waits for them.
    pub(super) wanted_names: usize,
    /// Names that nobody wants any more.
    pub(super) names: usize,
}

/// Room in a message.
struct Room(usize);

impl Room {
    /// Takes the room of an element, if there is enough.
    const fn take(&mut self, element_bytes: usize) -> bool {
        match self.0.checked_sub(element_bytes + ELEMENT_BYTES) {
            Some(left) => {
                self.0 = left;
                true
            }
            None => false,
        }
    }
}

/// An image without its names, and its names.
struct Parts {
    image: ImageState,
    digest: Option<Digest>,
    wanted_names: Vec<String>,
    other_names: Vec<String>,
}

impl Parts {
    fn of(mut image: ImageState, desired: &BTreeMap<String, Digest>) -> Self {
        cut(&mut image.message);
        let digest = Digest::try_from(image.manifest.as_slice()).ok();
        let names = std::mem::take(&mut image.ready_references).into_iter();
        let wanted = |name: &String| digest.is_some() && desired.get(name) == digest.as_ref();
        let (wanted_names, other_names) = names.partition(wanted);
        Self {
            image,
            digest,
            wanted_names,
            other_names,
        }
    }

    fn whole(mut self) -> ImageState {
        self.image.ready_references = self.wanted_names;
        self.image.ready_references.append(&mut self.other_names);
        self.image
    }
}

/// Cuts a text for people.
pub(super) fn cut(text: &mut String) {
    if text.len() > TEXT_BYTES {
        text.truncate(text.floor_char_boundary(TEXT_BYTES - '…'.len_utf8()));
        text.push('…');
    }
}

/// Keeps those images and names that fit. First come the images that are `wanted`, then their wanted names, then other
/// images, and last a few other names. `desired` gives the image that each wanted name shall name.
pub(super) fn images(
    images: Vec<ImageState>,
    wanted: impl Fn(&Digest) -> bool,
    desired: &BTreeMap<String, Digest>,
) -> (Vec<ImageState>, LeftOut) {
    let mut left = LeftOut::default();
    let mut room = Room(IMAGE_BYTES);
    let parts = images.into_iter().map(|image| Parts::of(image, desired));
    let (mut said, others): (Vec<Parts>, Vec<Parts>) =
        parts.partition(|parts| parts.digest.is_some_and(|digest| wanted(&digest)));
    let mut places = MAX_IMAGES;
    let mut keep_images = |all: &mut Vec<Parts>, room: &mut Room| {
        all.retain(|parts| {
            let fits = places > 0 && room.take(parts.image.encoded_len());
            places -= usize::from(fits);
            if !fits {
                left.images += 1;
                left.wanted_names += parts.wanted_names.len();
                left.names += parts.other_names.len();
            }
            fits
        });
    };
    keep_images(&mut said, &mut room);
    // images that aren't wanted come after the names of those that are
    let (mut wanted_lost, mut others_lost) = (0, 0);
    for parts in &mut said {
        wanted_lost += keep_names(&mut parts.wanted_names, &mut room);
    }
    let mut others = others;
    keep_images(&mut others, &mut room);
    said.append(&mut others);
    let mut room = Room(room.0.min(UNWANTED_NAME_BYTES));
    for parts in &mut said {
        others_lost += keep_names(&mut parts.other_names, &mut room);
    }
    left.wanted_names += wanted_lost;
    left.names += others_lost;
    (said.into_iter().map(Parts::whole).collect(), left)
}

/// Keeps the names that fit. Returns how many don't fit.
fn keep_names(names: &mut Vec<String>, room: &mut Room) -> usize {
    let before = names.len();
    names.retain(|name| room.take(name.len()));
    before - names.len()
}

/// Parts of a report that are said with a later report.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Later {
    pub(super) ended_leases: Vec<LeaseState>,
    pub(super) blames: Vec<Blame>,
    pub(super) retractions: Vec<Retraction>,
}

impl Later {
    pub(super) const fn is_empty(&self) -> bool {
        self.ended_leases.is_empty() && self.blames.is_empty() && self.retractions.is_empty()
    }
}

/// Takes out of a report what doesn't fit and may be said with the next one.
///
/// Running leases stay: a full report that leaves one out would end that lease.
pub(super) fn events(report: &mut Report) -> Later {
    let leases = std::mem::take(&mut report.leases).into_iter();
    let (running, ended): (Vec<_>, Vec<_>) =
        leases.partition(|lease| lease.end() == LeaseEnd::Unspecified);
    report.leases = running;
    let retractions = std::mem::take(&mut report.retractions);
    let blames = std::mem::take(&mut report.blames);
    let mut room = Room(Report::MAX_BYTES.saturating_sub(report.encoded_len()));
    let mut later = Later::default();
    (report.retractions, later.retractions) = split(retractions, MAX_RETRACTIONS, &mut room);
    let (ended, ended_later) = split(ended, MAX_ENDED_LEASES, &mut room);
    report.leases.extend(ended);
    later.ended_leases = ended_later;
    (report.blames, later.blames) = split(blames, usize::MAX, &mut room);
    later
}

/// The elements that fit, in order and at most `most`, and the rest.
fn split<M: prost::Message>(mut all: Vec<M>, most: usize, room: &mut Room) -> (Vec<M>, Vec<M>) {
    let fit = all.iter().take(most);
    let fit = fit.take_while(|one| room.take(one.encoded_len()));
    let fit = fit.count();
    let rest = all.split_off(fit);
    (all, rest)
}

#[cfg(test)]
mod tests {
    use proto::message::{CoordinatorOpen, Hello, StageState, coordinator_open};

    use super::*;

    fn digest(number: usize) -> Digest {
        Digest::of(number.to_string().as_bytes())
    }

    /// A name of 360 characters.
    fn name(image: usize, number: usize) -> String {
        let path = "a".repeat(340);
        format!("r.test/{path}{image:04}:{number:08}")
    }

    fn image(number: usize, names: impl Iterator<Item = usize>) -> ImageState {
        ImageState {
            manifest: digest(number).as_bytes().to_vec(),
            reference: name(number, 0),
            state: StageState::Present.into(),
            ready_references: names.map(|tag| name(number, tag)).collect(),
            ..ImageState::default()
        }
    }

    /// The bytes that the same images have in the larger of the two messages that carry them.
    fn bytes(images: &[ImageState]) -> usize {
        let hello = CoordinatorOpen {
            kind: Some(coordinator_open::Kind::Session(Hello {
                images: images.to_vec(),
                ..Hello::default()
            })),
        };
        let report = Report {
            images: images.to_vec(),
            ..Report::default()
        };
        hello.encoded_len().max(report.encoded_len())
    }

    #[test]
    fn five_thousand_names_that_nobody_wants_leave_room_for_those_that_are_wanted() {
        let desired = BTreeMap::from([(name(0, 4_999), digest(0))]);
        let all = vec![image(0, 0..5_000), image(1, 0..3)];
        let (said, left) = images(all, |of| *of == digest(0), &desired);
        assert!(bytes(&said) < UNWANTED_NAME_BYTES + 3_000);
        assert_eq!(said[0].ready_references[0], name(0, 4_999));
        let few = said[0].ready_references.len();
        assert!((10..30).contains(&few), "{few} names");
        assert_eq!((said.len(), left.images, left.wanted_names), (2, 0, 0));
        let names: usize = said.iter().map(|of| of.ready_references.len()).sum();
        assert_eq!(left.names + names, 5_003);
    }

    #[test]
    fn as_many_names_as_the_coordinator_may_want_fit_beside_any_number_of_other_images() {
        // 64 images with 96 KiB of names
        let tags = (96 << 10) / name(0, 0).len() / 64;
        let mut all: Vec<_> = (1_000..3_000).map(|number| image(number, 0..1)).collect();
        all.extend((0..64).map(|number| ImageState {
            message: "ö".repeat(5_000),
            ..image(number, 0..tags)
        }));
        let desired = (0..64)
            .flat_map(|number| (0..tags).map(move |tag| (name(number, tag), digest(number))))
            .collect();
        let wanted: Vec<Digest> = (0..64).map(digest).collect();
        let (said, left) = images(all, |of| wanted.contains(of), &desired);
        assert!(bytes(&said) <= IMAGE_BYTES + 100, "{}", bytes(&said));
        assert_eq!(left.wanted_names, 0);
        assert!(said.len() <= MAX_IMAGES && said.len() + left.images == 2_064);
        for (number, said) in said[..64].iter().enumerate() {
            assert_eq!(said.manifest, digest(number).as_bytes());
            assert_eq!(said.ready_references.len(), tags);
            assert!(said.message.len() <= TEXT_BYTES && said.message.ends_with('…'));
        }
    }

    #[test]
    fn more_wanted_names_than_fit_are_left_out_and_counted() {
        let desired = (0..5_000).map(|tag| (name(0, tag), digest(0))).collect();
        let (said, left) = images(vec![image(0, 0..5_000)], |_| true, &desired);
        assert!(bytes(&said) <= IMAGE_BYTES + 100);
        let names = said[0].ready_references.len();
        assert!(names > 500);
        assert_eq!(left.wanted_names, 5_000 - names);
        assert_eq!(left.names, 0);
    }

    #[test]
    fn what_must_not_be_lost_is_said_with_the_next_report_where_it_does_not_fit() {
        let lease = |end: LeaseEnd| LeaseState {
            end: end.into(),
            message: "m".repeat(TEXT_BYTES),
            ..LeaseState::default()
        };
        let mut report = Report {
            leases: vec![lease(LeaseEnd::Unspecified); 64],
            retractions: vec![
                Retraction {
                    content: vec![7; 32],
                    ..Retraction::default()
                };
                MAX_RETRACTIONS + 1
            ],
            blames: vec![
                Blame {
                    host: "h".repeat(1_500),
                    ..Blame::default()
                };
                200
            ],
            ..Report::default()
        };
        report
            .leases
            .extend(vec![lease(LeaseEnd::OriginFailed); 70]);
        let later = events(&mut report);
        assert!(report.encoded_len() <= Report::MAX_BYTES);
        assert!(report.encoded_len() > Report::MAX_BYTES / 20 * 19);
        let runs = |lease: &LeaseState| lease.end() == LeaseEnd::Unspecified;
        assert_eq!(report.leases.iter().filter(|of| runs(of)).count(), 64);
        assert_eq!(report.leases.len(), 64 + MAX_ENDED_LEASES);
        assert_eq!(later.ended_leases.len(), 70 - MAX_ENDED_LEASES);
        assert_eq!(report.retractions.len(), MAX_RETRACTIONS);
        assert_eq!(later.retractions.len(), 1);
        assert_eq!(report.blames.len() + later.blames.len(), 200);
        assert!(!later.is_empty() && !later.blames.is_empty());
        // the next one has the rest
        let mut next = Report {
            leases: later.ended_leases,
            blames: later.blames,
            retractions: later.retractions,
            ..Report::default()
        };
        assert!(events(&mut next).is_empty());
    }
}
