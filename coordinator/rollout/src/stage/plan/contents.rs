//! The contents of the wanted images: which hosts hold each of them, and how attempts to fetch it ended.

use alloc::collections::{BTreeMap, BTreeSet};
use core::time::Duration;

use proto::{Digest, HostId, Moment, pause::doubled};

use super::{parts::Parts, receipts::Receipts, tries::Tries, words::Words};
use crate::stage::event::Content;

/// A killed agent may lose chunks that it verified within this time before its last report. It flushes every half
/// second, and the disk takes some time to sync.
const FORGETFUL: Duration = Duration::from_secs(2);
/// The shortest wait between two doubts of one content. The wait doubles with each doubt, unless a chunk came in
/// between, up to `DOUBT_AGAIN_MOST`.
const DOUBT_AGAIN: Duration = Duration::from_secs(10);
const DOUBT_AGAIN_MOST: Duration = Duration::from_mins(2);

/// What is known of one content.
#[derive(Debug)]
pub(super) struct ContentState {
    chunks: u32,
    /// Raw bytes.
    size: u64,
    /// Whether no image needs the content: it is a recipe. Hosts of some versions don't want it, so none is expected to
    /// get it, and how its fetch goes says nothing about its registry.
    recipe: bool,
    /// Hosts that say that they hold all of the content, and since when.
    done: BTreeMap<HostId, Moment>,
    /// Hosts that say that they hold all of the content and aren't believed, because other hosts found no source of it
    /// or got nothing. They are believed again when other hosts get the content without a lease.
    doubted: BTreeSet<HostId>,
    /// The number of doubts since a chunk came.
    doubts: u32,
    /// The content isn't doubted again before this moment.
    doubt_not_before: Moment,
    /// When a chunk of the content last came, or else when the content was first wanted.
    moved_at: Moment,
    parts: Parts,
    receipts: Receipts,
    tries: Tries,
    words: Words,
}

impl ContentState {
    fn new(now: Moment, content: &Content) -> Self {
        Self {
            chunks: content.chunks,
            size: content.size,
            recipe: false,
            done: BTreeMap::new(),
            doubted: BTreeSet::new(),
            doubts: 0,
            doubt_not_before: now,
            moved_at: now,
            parts: Parts::new(now),
            receipts: Receipts::new(now, content),
            tries: Tries::default(),
            words: Words::default(),
        }
    }

    pub(super) const fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Raw bytes.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// Whether no image needs the content, because it is only a recipe.
    pub(super) const fn is_recipe(&self) -> bool {
        self.recipe
    }

    /// When a chunk of the content last came, or else when the content was first wanted.
    pub(super) const fn moved_at(&self) -> Moment {
        self.moved_at
    }

    /// What was leased of the content in ranges.
    pub(super) const fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(super) const fn parts_mut(&mut self) -> &mut Parts {
        &mut self.parts
    }

    /// What the hosts that receive the content say of it.
    pub(super) const fn receipts(&self) -> &Receipts {
        &self.receipts
    }

    pub(super) const fn receipts_mut(&mut self) -> &mut Receipts {
        &mut self.receipts
    }

    /// How attempts to fetch the content ended.
    pub(super) const fn tries(&self) -> &Tries {
        &self.tries
    }

    pub(super) const fn tries_mut(&mut self) -> &mut Tries {
        &mut self.tries
    }

    /// What hosts say against the recipes of the content's images.
    pub(super) const fn words(&self) -> &Words {
        &self.words
    }

    pub(super) const fn words_mut(&mut self) -> &mut Words {
        &mut self.words
    }

    /// Hosts that say that they hold all of the content, and since when.
    pub(super) const fn done(&self) -> &BTreeMap<HostId, Moment> {
        &self.done
    }

    /// Whether this host says that it holds all of the content.
    pub(super) fn is_done_on(&self, id: &HostId) -> bool {
        self.done.contains_key(id)
    }

    /// Hosts that say that they hold all of the content and are believed, connected or not.
    pub(super) fn believed(&self) -> impl Iterator<Item = &HostId> {
        let all = self.done.keys();
        all.filter(|id| !self.doubted.contains(*id))
    }

    /// Whether this host said that it holds all of the content, and isn't believed.
    pub(super) fn is_doubted(&self, id: &HostId) -> bool {
        self.doubted.contains(id)
    }

    /// Notes that the host says that it holds all of the content.
    pub(super) fn claim(&mut self, now: Moment, id: &HostId) {
        self.done.insert(id.clone(), now);
        self.receipts.claimed(now);
        if self.receipts.own_word() {
            self.tries.forget_failed();
        }
    }

    /// Notes how many chunks the host says that it holds. Returns how many it held before, and whether it held all of
    /// the content before and doesn't any more.
    pub(super) fn count(&mut self, now: Moment, id: &HostId, chunks: u32) -> (u32, bool) {
        let whole = chunks == self.chunks;
        let held = self.receipts.count(id, if whole { 0 } else { chunks });
        let before = match self.is_done_on(id) {
            true => self.chunks,
            false => held,
        };
        if whole {
            self.claim(now, id);
            return (before, false);
        }
        if chunks < before {
            self.parts.lose(id);
        }
        (before, self.drop_from(id))
    }

    /// Notes that the host lost chunks that it had reported at `heard_at`. If it had completed the content just before,
    /// the loss may include the content's last chunks.
    pub(super) fn lose_latest(&mut self, id: &HostId, heard_at: Moment) {
        if let Some(done_at) = self.done.get(id)
            && *done_at + FORGETFUL >= heard_at
        {
            self.done.remove(id);
        }
    }

    /// Notes that the host doesn't hold all of the content. Returns whether it had said so.
    pub(super) fn drop_from(&mut self, id: &HostId) -> bool {
        self.done.remove(id).is_some()
    }

    /// Notes that no other host gets anything of the content from this host: neither all of it, nor a range that it
    /// fetched.
    pub(super) fn serves_none(&mut self, id: &HostId) {
        self.drop_from(id);
        self.parts.lose(id);
    }

    /// Forgets what the host said: it left the fleet, is shunned, or lost all.
    pub(super) fn forget_host(&mut self, id: &HostId) {
        self.done.remove(id);
        self.doubted.remove(id);
        self.parts.forget_host(id);
        self.tries.forget_host(id);
        self.words.forget_host(id);
        self.receipts.forget_host(id);
    }

    /// Notes that a chunk of the content came.
    pub(super) const fn moved(&mut self, now: Moment) {
        self.moved_at = now;
    }

    /// Chunks come: the next doubt counts as the first.
    pub(super) const fn forget_doubts(&mut self) {
        self.doubts = 0;
    }

    /// Believes the hosts that say that they hold all of the content.
    pub(super) fn believe(&mut self) {
        self.doubted.clear();
    }

    /// Stops believing the hosts that say that they hold all of the content.
    pub(super) fn disbelieve(&mut self) {
        self.doubted.extend(self.done.keys().cloned());
    }

    /// Whether the content may be doubted now.
    pub(super) fn may_be_doubted(&self, now: Moment) -> bool {
        self.doubt_not_before <= now
    }

    /// Doubts that any host holds the content, so that it is leased again.
    pub(super) fn doubt(&mut self, now: Moment) {
        let again = doubled(DOUBT_AGAIN, DOUBT_AGAIN_MOST, self.doubts);
        // the first doubt goes to the host that is thought to hold the content, even if that host fetched it last
        if self.doubts == 0 {
            self.tries.forget_last();
        }
        self.parts.give_up();
        self.doubts = self.doubts.saturating_add(1);
        self.doubt_not_before = now + again;
        self.doubted = self.done.keys().cloned().collect();
    }
}

/// The contents of the wanted images, by digest.
#[derive(Debug)]
pub(super) struct Contents {
    by_digest: BTreeMap<Digest, ContentState>,
    /// When something last moved anywhere in the fleet.
    moved_at: Moment,
    /// When a chunk last came under a mirror's lease.
    mirror_moved_at: Moment,
    /// When hosts last got something of a content that was never leased. Such a content comes from a host that says
    /// that it holds it.
    unleased_moved_at: Moment,
}

impl Contents {
    pub(super) const fn new() -> Self {
        Self {
            by_digest: BTreeMap::new(),
            moved_at: Moment::START,
            mirror_moved_at: Moment::START,
            unleased_moved_at: Moment::START,
        }
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<&ContentState> {
        self.by_digest.get(digest)
    }

    pub(super) fn get_mut(&mut self, digest: &Digest) -> Option<&mut ContentState> {
        self.by_digest.get_mut(digest)
    }

    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.by_digest.contains_key(digest)
    }

    /// Adds contents that are wanted. Contents that are known stay as they are.
    pub(super) fn want(&mut self, now: Moment, contents: &[Content]) {
        for content in contents {
            self.by_digest
                .entry(content.digest)
                .or_insert_with(|| ContentState::new(now, content))
                .recipe = false;
        }
    }

    /// Adds a recipe that is wanted. A content that is known stays as it is.
    pub(super) fn want_recipe(&mut self, now: Moment, recipe: &Content) {
        self.by_digest.entry(recipe.digest).or_insert_with(|| {
            let recipe = ContentState::new(now, recipe);
            ContentState {
                recipe: true,
                ..recipe
            }
        });
    }

    /// Replaces a content whose size turned out different: everything known of the old one belongs to other bytes.
    pub(super) fn replace(&mut self, now: Moment, content: &Content) {
        let state = ContentState::new(now, content);
        self.by_digest.insert(content.digest, state);
    }

    /// Forgets all contents except `used`, and for those, the failures that were met under the image `without`.
    pub(super) fn keep(&mut self, used: &BTreeSet<Digest>, without: &Digest) {
        self.by_digest.retain(|digest, _| used.contains(digest));
        for content in self.by_digest.values_mut() {
            content.tries.forgive(without);
            content.words.forget_image(without);
        }
    }

    /// Forgets what was a recipe of this image, unless it is still `used`.
    pub(super) fn forget_recipe(&mut self, recipe: &Digest, used: bool, image: &Digest) {
        if !used {
            self.by_digest.remove(recipe);
        } else if let Some(content) = self.by_digest.get_mut(recipe) {
            content.tries.forgive(image);
        }
    }

    /// Calls `change` for each of these contents that is known.
    pub(super) fn each(
        &mut self,
        digests: impl IntoIterator<Item = Digest>,
        mut change: impl FnMut(&mut ContentState),
    ) {
        for digest in digests {
            if let Some(content) = self.by_digest.get_mut(&digest) {
                change(content);
            }
        }
    }

    /// Forgets what this host said of any content.
    pub(super) fn forget_host(&mut self, id: &HostId) {
        for content in self.by_digest.values_mut() {
            content.forget_host(id);
        }
    }

    /// When something last moved anywhere in the fleet.
    pub(super) const fn moved_at(&self) -> Moment {
        self.moved_at
    }

    /// Notes that something moves somewhere.
    pub(super) const fn moved(&mut self, now: Moment) {
        self.moved_at = now;
    }

    /// When a chunk last came under a mirror's lease.
    pub(super) const fn mirror_moved_at(&self) -> Moment {
        self.mirror_moved_at
    }

    /// Notes that a chunk came under a mirror's lease.
    pub(super) const fn mirror_moved(&mut self, now: Moment) {
        self.mirror_moved_at = now;
    }

    /// When hosts last got something of a content that was never leased.
    pub(super) const fn unleased_moved_at(&self) -> Moment {
        self.unleased_moved_at
    }

    /// Notes that hosts got something of a content that was never leased.
    pub(super) const fn unleased_moved(&mut self, now: Moment) {
        self.unleased_moved_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment(1_000_000_000);
    const MOMENT: Duration = Duration::from_micros(1);

    fn host(number: u32) -> HostId {
        alloc::format!("host-{number}").parse().unwrap()
    }

    fn spec() -> Content {
        Content {
            digest: Digest::of(b"content"),
            chunks: 4,
            size: 4 << 20,
            origin_bytes: 1_000,
        }
    }

    fn content() -> ContentState {
        ContentState::new(START, &spec())
    }

    #[test]
    fn a_host_that_counts_all_chunks_holds_the_content_until_it_counts_fewer() {
        let mut content = content();
        assert_eq!(content.count(START, &host(1), 3), (0, false));
        assert!(!content.is_done_on(&host(1)));
        assert_eq!(content.count(START, &host(1), 4), (3, false));
        assert!(content.is_done_on(&host(1)));
        assert_eq!(content.count(START, &host(1), 2), (4, true));
        assert_eq!(content.count(START, &host(1), 2), (2, false));
        assert!(!content.is_done_on(&host(1)));
    }

    #[test]
    fn what_a_host_completed_up_to_two_seconds_before_its_last_word_goes_with_what_it_lost() {
        for (heard_after, kept) in [(FORGETFUL, false), (FORGETFUL + MOMENT, true)] {
            let mut content = content();
            content.claim(START, &host(1));
            content.lose_latest(&host(1), START + heard_after);
            assert_eq!(content.is_done_on(&host(1)), kept, "{heard_after:?}");
        }
    }

    #[test]
    fn doubts_of_one_content_come_less_and_less_often_until_chunks_come() {
        let mut content = content();
        content.claim(START, &host(1));
        let mut now = START;
        for seconds in [10, 20, 40, 80, 120, 120] {
            content.doubt(now);
            assert_eq!(content.believed().count(), 0);
            now += Duration::from_secs(seconds);
            assert!(!content.may_be_doubted(now - MOMENT), "{seconds}");
            assert!(content.may_be_doubted(now), "{seconds}");
        }
        content.believe();
        assert_eq!(content.believed().count(), 1);
        content.forget_doubts();
        content.doubt(now);
        assert!(content.may_be_doubted(now + DOUBT_AGAIN));
    }

    #[test]
    fn the_first_doubt_asks_the_latest_holder_again() {
        let mut content = content();
        content.tries_mut().lease(START, &host(1));
        content.doubt(START);
        assert!(!content.tries().was_last(&host(1)));
        content.tries_mut().lease(START, &host(1));
        content.doubt(START);
        assert!(content.tries().was_last(&host(1)));
    }

    #[test]
    fn who_disbelieves_all_doubts_those_who_claim_now_and_nobody_later() {
        let mut content = content();
        content.claim(START, &host(1));
        content.disbelieve();
        content.claim(START, &host(2));
        assert_eq!(
            content.believed().collect::<alloc::vec::Vec<_>>(),
            [&host(2)]
        );
        content.forget_host(&host(1));
        content.claim(START, &host(1));
        assert_eq!(content.believed().count(), 2);
    }

    #[test]
    fn a_content_is_known_while_an_image_uses_it_and_anew_when_its_size_changes() {
        let mut contents = Contents::new();
        contents.want(START, &[spec()]);
        let digest = spec().digest;
        contents.each([digest], |content| content.claim(START, &host(1)));
        contents.want(START, &[spec()]);
        assert!(contents.get(&digest).unwrap().is_done_on(&host(1)));
        contents.replace(START, &Content { size: 5, ..spec() });
        let content = contents.get(&digest).unwrap();
        assert_eq!((content.size(), content.done().len()), (5, 0));
        contents.keep(&BTreeSet::from([digest]), &Digest::of(b"image"));
        assert!(contents.contains(&digest));
        contents.keep(&BTreeSet::new(), &Digest::of(b"image"));
        assert!(!contents.contains(&digest));
    }
}
