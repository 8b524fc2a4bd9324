//! Old images in words: the answer to the coordinator's question which would go, cut to what a report may hold, and
//! what a full disk says of them.

use std::io;

use proto::{
    figure::Bytes,
    limits::{MAX_OLD_IMAGES, MAX_OLD_REFERENCES},
    message::{OldImage, OldImages},
};

use crate::store::retire::{Preview, Previewed};

/// A full disk names so many of the images that could go.
const MAX_NAMED: usize = 3;

/// What could go where an image has no room, as the end of a sentence. `seen` is by the strictest rule that there is.
pub(super) fn room_words(seen: io::Result<Preview>) -> String {
    let preview = match seen {
        Ok(preview) => preview,
        Err(error) => return format!("; old images can't be looked at: {error}"),
    };
    let going: Vec<&Previewed> = preview
        .images
        .iter()
        .filter(|of| of.stays.is_none() && of.bytes > 0)
        .collect();
    if going.is_empty() {
        return "; no old image here could go".to_owned();
    }
    let name = |of: &&Previewed| match of.references.first() {
        Some(reference) => reference.clone(),
        None => of.image.to_string(),
    };
    let names: Vec<String> = going.iter().take(MAX_NAMED).map(name).collect();
    let further = match going.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        further => format!(" and {further} more"),
    };
    format!(
        "; old images that could go take {}: {}{further}; keep_images = 1 in this host's settings has them removed",
        Bytes(preview.freed_bytes()),
        names.join(", ")
    )
}

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

    #[test]
    fn a_full_disk_names_what_could_go_and_what_has_it_removed() {
        let image = |number: u8, stays| Previewed {
            image: Digest::of(&[number]),
            references: vec![format!("r.io/o/i:{number}")],
            goldens: Vec::new(),
            stays,
            bytes: 10_000_000_000,
        };
        let words = |going: u8| {
            let mut images: Vec<_> = (0..going).map(|number| image(number, None)).collect();
            images.push(image(9, Some(Stays::Wanted)));
            room_words(Ok(Preview {
                images,
                left_bytes: 0,
            }))
        };
        assert_eq!(words(0), "; no old image here could go");
        assert_eq!(
            words(1),
            "; old images that could go take 10.0 GB: r.io/o/i:0; keep_images = 1 in this host's settings has them removed"
        );
        assert!(words(5).contains("50.0 GB: r.io/o/i:0, r.io/o/i:1, r.io/o/i:2 and 2 more; keep"));
    }
}
