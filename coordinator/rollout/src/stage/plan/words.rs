//! What hosts say of one content against the recipes of the content's images. `recipes` decides what follows.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use proto::{Digest, HostId};

/// What hosts say of one content against the recipes of its images.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// The chunk that each host names, by image.
    said: BTreeMap<Digest, BTreeMap<HostId, u32>>,
    /// Images whose recipe isn't used for the content any more.
    left: BTreeSet<Digest>,
}

impl Words {
    /// Whether this host spoke against the image's recipe.
    pub(super) fn spoke(&self, image: &Digest, id: &HostId) -> bool {
        let said = self.said.get(image);
        said.is_some_and(|said| said.contains_key(id))
    }

    /// Notes a host's word. Returns the hosts that name the same chunk, the host among them.
    pub(super) fn hear(&mut self, image: Digest, id: &HostId, chunk: u32) -> Vec<HostId> {
        let said = self.said.entry(image).or_default();
        said.insert(id.clone(), chunk);
        let same = said.iter().filter(|(_, of)| **of == chunk);
        same.map(|(id, _)| id.clone()).collect()
    }

    /// The words were believed: the image's recipe isn't used for the content any more.
    pub(super) fn leave(&mut self, image: &Digest) {
        self.said.remove(image);
        self.left.insert(*image);
    }

    /// Whether the words against the image's recipe were believed.
    pub(super) fn are_heard(&self, image: &Digest) -> bool {
        self.left.contains(image)
    }

    /// So many hosts hold the whole content that the words so far were wrong, or are of no interest any more.
    pub(super) fn settle(&mut self) {
        self.said.clear();
    }

    /// The image isn't wanted any more, or has another recipe.
    pub(super) fn forget_image(&mut self, image: &Digest) {
        self.said.remove(image);
        self.left.remove(image);
    }

    /// The host left the fleet, or is shunned.
    pub(super) fn forget_host(&mut self, id: &HostId) {
        for said in self.said.values_mut() {
            said.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_agree_where_they_name_one_chunk_of_one_image() {
        let (mut words, of) = (Words::default(), Digest::of(b"image"));
        let host = |at: u32| -> HostId { alloc::format!("host-{at}").parse().unwrap() };
        assert_eq!(words.hear(of, &host(1), 3), [host(1)]);
        assert_eq!(words.hear(of, &host(2), 4), [host(2)]);
        assert_eq!(words.hear(Digest::of(b"other"), &host(3), 3), [host(3)]);
        assert_eq!(words.hear(of, &host(1), 4), [host(1), host(2)]);
        words.forget_host(&host(1));
        assert_eq!(words.hear(of, &host(4), 4), [host(2), host(4)]);
        words.settle();
        assert!(!words.spoke(&of, &host(2)));
        words.leave(&of);
        assert!(words.are_heard(&of));
        words.forget_image(&of);
        assert!(!words.are_heard(&of));
    }
}
