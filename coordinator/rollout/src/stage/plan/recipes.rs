//! Whose word against a recipe counts.
//!
//! The holder of a content's lease reads the registry's bytes, and may say from which chunk on they don't fit the
//! recipe. A liar with a lease could say the same, so one word changes nothing for others: the content's lease goes to
//! another host, which reads the same chunk. When two hosts name the same chunk, all hosts leave the recipe for that
//! content. Where no other host can say anything, one word is enough.
//!
//! A coordinator that has just started doesn't know the words of before. Hosts say them again, without the lease. Such
//! a word alone does nothing: it counts as the first one, beside that of a host that has the lease.
//!
//! Whoever speaks goes behind other hosts for leases, as a host does that lets a lease fail, until another host says
//! the same.

use proto::{Digest, HostId};

use super::{contents::ContentState, desk::Desk, leases::Lease, view::View};
use crate::stage::{
    Action,
    action::{RecipeLeft, RevokeCause},
    event::{Purpose, Standing},
};

/// The hosts that have to name the same chunk.
const WORDS: usize = 2;

/// A host says that the registry's bytes don't fit the recipe of this image from a chunk on. It has the content's
/// lease, or is heard because it had one from an earlier coordinator (`told_again`).
pub(super) fn doubted(
    desk: &mut Desk<'_>,
    (id, told_again): (&HostId, bool),
    image: Digest,
    digest: Digest,
    chunk: u32,
) {
    let leased = desk.leases.holds(&digest, id);
    if !leased && !told_again {
        return;
    }
    let others = others(desk.view(), &image, &digest, id);
    let Some(content) = doubtable(desk, &image, &digest) else {
        return;
    };
    if chunk >= content.chunks() {
        return;
    }
    let words = content.words_mut();
    if !leased {
        if !words.spoke(&image, id) {
            words.hear(image, id, chunk);
            // of its reading again, no second word would come
            desk.note_failed(digest, id);
        }
        return;
    }
    let again = words.spoke(&image, id);
    let same = words.hear(image, id, chunk);
    if others && same.len() < WORDS {
        if !again {
            desk.records.fail(id);
        }
        desk.note_failed(digest, id);
        desk.revoke(digest, id, RevokeCause::Ended);
        return;
    }
    words.leave(&image);
    // without the recipe no fetch can begin amid the content
    content.parts_mut().give_up();
    for id in same.iter().filter(|of| again || *of != id) {
        desk.records.excuse(id);
    }
    let ranges = |of: &Digest, lease: &Lease| *of == digest && lease.range().is_some();
    for (id, _) in desk.leases.that(ranges) {
        desk.revoke(digest, &id, RevokeCause::Ended);
    }
    desk.effects.push(Action::LeaveRecipe(RecipeLeft {
        image,
        content: digest,
        chunk,
    }));
}

/// The content, if this image has it and its recipe wasn't left for it.
fn doubtable<'a>(
    desk: &'a mut Desk<'_>,
    image: &Digest,
    digest: &Digest,
) -> Option<&'a mut ContentState> {
    let of = desk.images.get(image)?;
    let content = desk.contents.get_mut(digest);
    let content = content.filter(|_| of.contents().contains(digest))?;
    (!content.words().are_heard(image)).then_some(content)
}

/// Whether a host that hasn't spoken could read the content under a lease.
fn others(view: View<'_>, image: &Digest, content: &Digest, speaker: &HostId) -> bool {
    let (Some(of), Some(content)) = (view.images.get(image), view.contents.get(content)) else {
        return false;
    };
    let could = |id: &HostId| {
        let stages = matches!(
            of.standing(id),
            None | Some(Standing::Staging | Standing::Queued)
        );
        id != speaker
            && stages
            && of.purpose() == Purpose::Stage
            && view.hosts.is_here(id)
            && !content.is_done_on(id)
            && !content.words().spoke(image, id)
            && !view.records.is_unable(view.now, id, of.registry())
    };
    of.selected(view.hosts).iter().any(could)
}
