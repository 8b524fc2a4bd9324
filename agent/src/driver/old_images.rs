//! The answer to the coordinator's question which old images would go: what was seen on the disk, cut to what a report
//! may hold.

use std::io;

use proto::{
    limits::{MAX_OLD_IMAGES, MAX_OLD_REFERENCES},
    message::{OldImage, OldImages},
};

use crate::store::retire::{Preview, Previewed};

/// Completes an answer that has the question's number and the rule. `seen` is absent where no rule says what goes.
pub(super) fn answer(begun: OldImages, seen: Option<io::Result<Preview>>) -> OldImages {
    let preview = match seen {
        None => return begun,
        Some(Ok(preview)) => preview,
        Some(Err(error)) => {
            return OldImages {
                note: format!("the images on this host can't be looked at: {error}"),
                ..begun
            };
        }
    };
    let going = preview.images.iter().filter(|of| of.stays.is_none());
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    OldImages {
        going: count(going.count()),
        freed_bytes: preview.freed_bytes(),
        left_bytes: preview.left_bytes,
        more: count(preview.images.len().saturating_sub(MAX_OLD_IMAGES)),
        images: preview
            .images
            .iter()
            .take(MAX_OLD_IMAGES)
            .map(one)
            .collect(),
        ..begun
    }
}

fn one(image: &Previewed) -> OldImage {
    let references = image.references.iter().take(MAX_OLD_REFERENCES);
    let why = image.stays.as_ref().map(ToString::to_string);
    OldImage {
        manifest: image.image.as_bytes().to_vec(),
        references: references.cloned().collect(),
        bytes: image.bytes,
        goes: image.stays.is_none(),
        why: why.unwrap_or_default(),
        goldens: u32::try_from(image.goldens.len()).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use proto::{
        Digest,
        codec::{self, Framed},
        message::Report,
        reference::MAX_REFERENCE_BYTES,
    };

    use super::*;
    use crate::store::retire::Stays;

    #[test]
    fn an_answer_names_what_goes_first_and_fits_into_a_report() {
        let image = |number: usize, stays: Option<Stays>| Previewed {
            image: Digest::of(&number.to_le_bytes()),
            references: vec!["a".repeat(MAX_REFERENCE_BYTES); 5],
            goldens: vec!["golden".to_owned(); 2],
            stays,
            bytes: 1_000,
        };
        let stays = Some(Stays::InUse("b".repeat(MAX_REFERENCE_BYTES)));
        let mut images: Vec<Previewed> = (0..40).map(|n| image(n, None)).collect();
        images.extend((40..100).map(|n| image(n, stays.clone())));
        let preview = Preview {
            images,
            left_bytes: 7,
        };
        let begun = OldImages {
            number: 3,
            ..OldImages::default()
        };
        let answer = answer(begun.clone(), Some(Ok(preview)));
        assert_eq!((answer.number, answer.going, answer.more), (3, 40, 68));
        assert_eq!((answer.freed_bytes, answer.left_bytes), (40_000, 7));
        assert_eq!(answer.images.len(), MAX_OLD_IMAGES);
        let first = &answer.images[0];
        assert_eq!((first.references.len(), first.goldens), (2, 2));
        let report = Report {
            old_images: Some(answer),
            ..Report::default()
        };
        let length = codec::encode(&report).unwrap().len();
        assert!(length < Report::MAX_BYTES / 2, "{length}");
        assert_eq!(super::answer(begun.clone(), None), begun);
        let failed = super::answer(begun, Some(Err(io::Error::other("worn out"))));
        assert!(failed.note.ends_with("looked at: worn out"));
    }
}
