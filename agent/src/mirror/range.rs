//! The `Range` header of a request: which bytes of a blob are asked for.

/// The bytes that are asked for, of something with a known size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All bytes: there is no range, or one that isn't understood here, which may be ignored (RFC 9110, 14.2).
    Whole,
    /// The bytes from the first offset up to the second one, without the byte at the second.
    Part(u64, u64),
    /// No byte. The answer is 416.
    Nothing,
}

/// Reads a `Range` header. A single range of bytes is understood: `bytes=N-`, `bytes=N-M`, `bytes=-N`.
pub(crate) fn parse(header: Option<&str>, size: u64) -> Wanted {
    let Some((unit, range)) = header.and_then(|text| text.trim().split_once('=')) else {
        return Wanted::Whole;
    };
    let Some((first, last)) = range.trim().split_once('-') else {
        return Wanted::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::Whole;
    }
    match (number(first), number(last)) {
        // the last `count` bytes
        (None, Some(count)) if first.is_empty() => {
            if count == 0 || size == 0 {
                Wanted::Nothing
            } else {
                Wanted::Part(size.saturating_sub(count), size)
            }
        }
        (Some(start), None) if last.is_empty() => from(start, size, size),
        (Some(start), Some(last)) if start <= last => from(start, last.saturating_add(1), size),
        _ => Wanted::Whole,
    }
}

const fn from(start: u64, end: u64, size: u64) -> Wanted {
    if start >= size {
        Wanted::Nothing
    } else if end < size {
        Wanted::Part(start, end)
    } else {
        Wanted::Part(start, size)
    }
}

/// Reads a number of digits only. A number that doesn't fit counts as the largest one.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_forms_of_a_range() {
        let cases = [
            (None, Wanted::Whole),
            (Some("bytes=0-"), Wanted::Part(0, 10)),
            (Some("bytes=9-"), Wanted::Part(9, 10)),
            (Some("bytes=10-"), Wanted::Nothing),
            (Some("bytes=0-0"), Wanted::Part(0, 1)),
            (
                Some("bytes=3-99999999999999999999999999"),
                Wanted::Part(3, 10),
            ),
            (Some("bytes=99999999999999999999999999-"), Wanted::Nothing),
            (Some("bytes=-3"), Wanted::Part(7, 10)),
            (Some("bytes=-30"), Wanted::Part(0, 10)),
            (Some("bytes=-0"), Wanted::Nothing),
            (Some("BYTES = 1-2"), Wanted::Part(1, 3)),
            (Some("bytes=5-4"), Wanted::Whole),
            (Some("bytes=0-1,3-4"), Wanted::Whole),
            (Some("bytes=-"), Wanted::Whole),
            (Some("bytes=+1-2"), Wanted::Whole),
            (Some("lines=1-2"), Wanted::Whole),
            (Some("bytes"), Wanted::Whole),
        ];
        for (header, wanted) in cases {
            assert_eq!(parse(header, 10), wanted, "{header:?}");
        }
        assert_eq!(parse(Some("bytes=0-"), 0), Wanted::Nothing);
        assert_eq!(parse(Some("bytes=-1"), 0), Wanted::Nothing);
    }

    proptest! {
        #[test]
        fn a_part_is_never_empty_nor_beyond_the_end(header in "(bytes=)?[0-9]{0,21}-[0-9]{0,21}|.{0,20}", size in any::<u64>()) {
            if let Wanted::Part(start, end) = parse(Some(&header), size) {
                prop_assert!(start < end && end <= size);
            }
        }

        #[test]
        fn what_is_asked_for_is_what_is_given(size in 1u64..1 << 40, a in any::<u64>(), b in any::<u64>()) {
            let (first, last) = (a % size, b % (2 * size));
            let text = format!("bytes={first}-{last}");
            let wanted = if last < first { Wanted::Whole } else { Wanted::Part(first, (last + 1).min(size)) };
            prop_assert_eq!(parse(Some(&text), size), wanted);
            let from = Wanted::Part(first, size);
            prop_assert_eq!(parse(Some(&format!("bytes={first}-")), size), from);
            let suffix = b % (2 * size) + 1;
            prop_assert_eq!(parse(Some(&format!("bytes=-{suffix}")), size), Wanted::Part(size.saturating_sub(suffix), size));
        }
    }
}
