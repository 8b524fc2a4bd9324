//! Which recipes this host was asked to make: the one that is made now, those that are next, and how often none came of
//! it. The coordinator hears of all three with each image, so it waits for nobody who makes nothing.

use std::collections::{BTreeMap, VecDeque};

use proto::{Digest, limits::MAX_IMAGES, message::ImageState};

/// The most recipes that wait for the one that is made. The coordinator asks for four in the whole fleet at one time,
/// and counts a host that makes one as busy.
const MAX_NEXT: usize = 4;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct RecipeAsks {
    /// The image whose recipe is being made.
    now: Option<Digest>,
    next: VecDeque<Digest>,
    /// How often the host was asked for an image's recipe, and made none.
    failed: BTreeMap<Digest, u32>,
}

impl RecipeAsks {
    /// The coordinator asks for the recipe of an image.
    pub(super) fn ask(&mut self, image: Digest) {
        if self.now == Some(image) || self.next.contains(&image) {
            return;
        }
        match self.next.len() < MAX_NEXT {
            true => self.next.push_back(image),
            false => self.fail(image),
        }
    }

    /// The image whose recipe is to be made now, if none is being made. Who gets it makes the recipe, or says that it
    /// [isn't made](Self::ended).
    pub(super) fn begin(&mut self) -> Option<Digest> {
        if self.now.is_some() {
            return None;
        }
        self.now = self.next.pop_front();
        self.now
    }

    /// The recipe that was being made is made, or can't be.
    pub(super) fn ended(&mut self, is_made: bool) {
        if let Some(image) = self.now.take().filter(|_| !is_made) {
            self.fail(image);
        }
    }

    fn fail(&mut self, image: Digest) {
        if self.failed.len() >= MAX_IMAGES && !self.failed.contains_key(&image) {
            // an image that the host has forgotten long ago, or one about which the coordinator then waits in vain
            self.failed.pop_first();
        }
        *self.failed.entry(image).or_default() += 1;
    }

    /// Says with an image how far its recipe is.
    pub(super) fn tell(&self, state: &mut ImageState) {
        let Ok(image) = Digest::try_from(state.manifest.as_slice()) else {
            return;
        };
        state.makes_recipe = self.now == Some(image) || self.next.contains(&image);
        state.recipes_failed = self.failed.get(&image).copied().unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(number: usize) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    fn told(asks: &RecipeAsks, number: usize) -> (bool, u32) {
        let mut state = ImageState {
            manifest: image(number).as_bytes().to_vec(),
            ..ImageState::default()
        };
        asks.tell(&mut state);
        (state.makes_recipe, state.recipes_failed)
    }

    #[test]
    fn one_recipe_is_made_after_the_other_and_each_is_told_from_the_ask_on() {
        let mut asks = RecipeAsks::default();
        asks.ask(image(0));
        assert_eq!(asks.begin(), Some(image(0)));
        for number in [1, 0, 1] {
            asks.ask(image(number));
        }
        assert_eq!(asks.begin(), None);
        assert_eq!([0, 1].map(|number| told(&asks, number)), [(true, 0); 2]);
        asks.ended(true);
        assert_eq!(asks.begin(), Some(image(1)));
        assert_eq!(told(&asks, 0), (false, 0));
        asks.ended(false);
        assert_eq!((told(&asks, 1), asks.begin()), ((false, 1), None));
        // it is asked again, and fails again
        asks.ask(image(1));
        assert_eq!((told(&asks, 1), asks.begin()), ((true, 1), Some(image(1))));
        asks.ended(false);
        assert_eq!(told(&asks, 1), (false, 2));
    }

    #[test]
    fn a_recipe_for_which_no_place_is_left_counts_as_not_made() {
        let mut asks = RecipeAsks::default();
        asks.ask(image(0));
        asks.begin();
        for number in 1..=MAX_NEXT + 1 {
            asks.ask(image(number));
        }
        assert_eq!(told(&asks, MAX_NEXT), (true, 0));
        assert_eq!(told(&asks, MAX_NEXT + 1), (false, 1));
    }

    #[test]
    fn failures_of_so_many_images_are_known() {
        let mut asks = RecipeAsks::default();
        for number in 0..=2 * MAX_IMAGES {
            asks.ask(image(number));
            asks.begin();
            asks.ended(false);
            assert!(asks.failed.len() <= MAX_IMAGES);
        }
        assert_eq!(told(&asks, 2 * MAX_IMAGES), (false, 1));
    }
}
