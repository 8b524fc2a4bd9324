//! How long an image's stage waits for the image's recipe. Pure.
//!
//! A stage that begins without its recipe moves the whole image, so the recipe is waited for as long as it comes. A
//! recipe that comes so slowly that the wait costs more than it is worth isn't.

use std::time::Duration;

use proto::Moment;

/// A stage waits no longer when this host got no chunk of any recipe for so long. Few recipes are leased at one time,
/// so an image's recipe may wait for those of others.
const QUIET: Duration = Duration::from_secs(30);
/// A stage waits at most for this part of the time that its image would take at the rate at which recipes come. A
/// recipe has less than a hundredth of its image's bytes in the registry.
const SHARE: u64 = 10;
/// The longest wait: a recipe of 78 MB, for 140 GB, in this time comes at 87 kB/s.
const MOST: Duration = Duration::from_mins(15);

/// How recipes came since an image's stage began to wait for one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    since: Moment,
    /// When a chunk of a recipe came last.
    heard: Moment,
    /// Bytes of recipes that came.
    came: u64,
    /// Bytes of the image in the registry.
    image_bytes: u64,
}

impl Patience {
    /// A stage of an image with so many bytes in the registry begins to wait.
    pub(super) const fn new(now: Moment, image_bytes: u64) -> Self {
        Self {
            since: now,
            heard: now,
            came: 0,
            image_bytes,
        }
    }

    /// Bytes of a recipe came: of this image's, or of another's.
    pub(super) fn hear(&mut self, now: Moment, bytes: u64) {
        self.heard = self.heard.max(now);
        self.came = self.came.saturating_add(bytes);
    }

    /// The stage begins without its recipe at this moment, if nothing more comes until then.
    pub(super) fn until(&self) -> Moment {
        let most = worth(self.heard.since(self.since), self.came, self.image_bytes);
        (self.heard + QUIET).min(self.since + most.max(QUIET))
    }
}

/// The wait that is worth it where this many bytes came in this time.
fn worth(took: Duration, came: u64, image_bytes: u64) -> Duration {
    let micros = took
        .as_micros()
        .saturating_mul(u128::from(image_bytes / SHARE));
    let micros = micros / u128::from(came.max(1));
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    /// How many seconds a stage waits where a MB of recipes comes each so many milliseconds, `megabytes` in all.
    fn waited(image_megabytes: u64, megabytes: u64, every_ms: u64) -> u64 {
        let mut patience = Patience::new(Moment(0), image_megabytes * MB);
        for at in 1..=megabytes {
            let now = Moment(at * every_ms * 1_000);
            if patience.until() <= now {
                break;
            }
            patience.hear(now, MB);
        }
        patience.until().0 / MB
    }

    #[test]
    fn a_recipe_is_waited_for_as_long_as_it_comes_and_is_worth_it() {
        for (image, recipe, every_ms, seconds, what) in [
            (30_000, 0, 1, 30, "nothing comes"),
            (30_000, 34, 1_000, 34 + 30, "a slow line"),
            (70_000, 78, 500, 39 + 30, "a slow registry"),
            (70_000, 200, 1_000, 200 + 30, "others' recipes come first"),
            (70_000, 20, 29_999, 599 + 30, "it always goes on in time"),
            (70_000, 20, 30_001, 30, "it is late once"),
            (70_000, 78, 29_999, 15 * 60, "the longest wait"),
            (
                100,
                78,
                10_000,
                100,
                "a tenth of the image comes in that time",
            ),
            (20, 78, 10_000, 30, "a small image comes sooner"),
        ] {
            assert_eq!(waited(image, recipe, every_ms), seconds, "{what}");
        }
    }
}
