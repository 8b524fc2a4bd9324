//! The order in which a host is to finish its images: a function of what is known of each of them.
//!
//! First comes what a Pod waits for, then what operators prefer, then what was asked for first. The image's digest
//! breaks ties, so that the order doesn't depend on who computes it.

use alloc::vec::Vec;
use core::cmp::Reverse;

use proto::Digest;

/// How urgent an image is on one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Urgency {
    /// Whether a Pod waits for the image on this host, or the host is reserved for Pods that need the image.
    pub awaited: bool,
    /// The operators' preference: higher comes first.
    pub priority: i32,
    /// When the image was first asked for, in milliseconds of one clock.
    pub asked_ms: u64,
}

/// One host's images in the order in which they are to be finished: the first one first.
pub fn sequence(images: impl IntoIterator<Item = (Digest, Urgency)>) -> Vec<Digest> {
    let mut images: Vec<(Digest, Urgency)> = images.into_iter().collect();
    images.sort_unstable_by_key(|(image, urgency)| urgency.key(*image));
    images.into_iter().map(|(image, _)| image).collect()
}

impl Urgency {
    /// Sorts by urgency: the least comes first.
    const fn key(self, image: Digest) -> (bool, Reverse<i32>, u64, Digest) {
        (!self.awaited, Reverse(self.priority), self.asked_ms, image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn urgency(awaited: bool, priority: i32, asked_ms: u64) -> Urgency {
        Urgency {
            awaited,
            priority,
            asked_ms,
        }
    }

    #[test]
    fn what_a_pod_waits_for_comes_before_what_operators_prefer_and_that_before_what_is_older() {
        let [old, preferred, awaited, both] = ["old", "preferred", "awaited", "both"].map(image);
        let of = [
            (old, urgency(false, 0, 1)),
            (preferred, urgency(false, 7, 3)),
            (awaited, urgency(true, -7, 4)),
            (both, urgency(true, 1, 9)),
        ];
        assert_eq!(sequence(of), [both, awaited, preferred, old]);
    }

    #[test]
    fn of_images_that_are_equally_urgent_the_one_asked_for_first_comes_first() {
        let (one, two) = (image("one"), image("two"));
        for (first, second) in [(one, two), (two, one)] {
            let of = [
                (second, urgency(false, 3, 8)),
                (first, urgency(false, 3, 7)),
            ];
            assert_eq!(sequence(of), [first, second]);
        }
    }

    #[test]
    fn the_digest_breaks_a_tie_however_the_images_are_given() {
        let mut images = ["one", "two", "three"].map(image);
        images.sort_unstable();
        for turned in 0..images.len() {
            let mut given = images;
            given.rotate_left(turned);
            let given = given.map(|image| (image, Urgency::default()));
            assert_eq!(sequence(given), images);
        }
    }

    #[test]
    fn a_priority_below_zero_comes_last() {
        let (low, plain) = (image("low"), image("plain"));
        let of = [(low, urgency(false, -1, 1)), (plain, urgency(false, 0, 2))];
        assert_eq!(sequence(of), [plain, low]);
        let most = [
            (low, urgency(false, i32::MIN, 1)),
            (plain, urgency(false, i32::MAX, 2)),
        ];
        assert_eq!(sequence(most), [plain, low]);
    }
}
