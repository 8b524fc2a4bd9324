//! Grains: the ways in which a disk is cut into blocks, as pure functions of bytes.

use fastcdc::v2020::FastCDC;
use proto::blocks::{Cutter, MAX_BLOCK_PAGES};
use twox_hash::XxHash3_64;

/// The unit in which file systems place files.
pub(crate) const PAGE: usize = 4096;
/// No block of any grain is longer.
pub(crate) const LONGEST: usize = 1 << 20;

/// How a disk is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grain {
    /// At every multiple of so many bytes.
    Fixed(usize),
    /// Where the content says so, at any byte: FastCDC of 2020.
    Gear {
        /// The average that FastCDC is told; random bytes have about 1.4 times that. Blocks are a quarter to four times
        /// as long as the average.
        average: usize,
    },
    /// At multiples of a page only, where the page's content says so.
    Pages {
        /// The average of random bytes. Blocks are a quarter to four times as long.
        average: usize,
        /// Cuts behind each page that ends in zeros too: file systems fill a file's last page with zeros, so that the
        /// next file often begins there.
        ends: bool,
    },
    /// As recipes cut: `Pages` with an average of 16 KiB and `ends`, where pages of zeros are no part of blocks.
    Recipe,
}

/// All that is measured, coarsest first.
pub(crate) const GRAINS: [Grain; 17] = [
    Grain::Fixed(1 << 20),
    Grain::Fixed(256 << 10),
    Grain::Fixed(64 << 10),
    Grain::Fixed(16 << 10),
    Grain::Fixed(4 << 10),
    Grain::Gear { average: 128 << 10 },
    Grain::Gear { average: 64 << 10 },
    Grain::Gear { average: 32 << 10 },
    Grain::Gear { average: 16 << 10 },
    pages(128, false),
    pages(64, false),
    pages(32, false),
    pages(16, false),
    pages(128, true),
    pages(64, true),
    pages(32, true),
    Grain::Recipe,
];

const fn pages(average_kib: usize, ends: bool) -> Grain {
    Grain::Pages {
        average: average_kib << 10,
        ends,
    }
}

impl Grain {
    /// Whether blocks start at multiples of the grain, with zeros around data, and not where data starts.
    pub(crate) fn is_fixed(self) -> bool {
        matches!(self, Self::Fixed(_))
    }

    /// What the table calls the grain.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Fixed(length) => format!("fixed {}", kib(length)),
            Self::Gear { average } => format!("gear {}", kib(average)),
            Self::Pages {
                average,
                ends: false,
            } => format!("pages {}", kib(average)),
            Self::Pages {
                average,
                ends: true,
            } => format!("pages+ends {}", kib(average)),
            Self::Recipe => "recipe".to_owned(),
        }
    }

    /// The grain that the table calls so.
    ///
    /// # Errors
    /// There is none; the message has all names.
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        let all = || GRAINS.map(Self::name).join(", ");
        let found = GRAINS.into_iter().find(|grain| grain.name() == name);
        found.ok_or_else(|| format!("no grain has this name; there are {}", all()))
    }

    /// Bytes of one entry of an index: a fingerprint of 8 bytes, a place, a length.
    pub(crate) fn entry_bytes(self) -> u64 {
        match self {
            // the place in blocks; the grain is the length
            Self::Fixed(_) => 8 + 4,
            // 5 bytes of place are a terabyte
            Self::Gear { .. } => 8 + 5 + 3,
            // both in pages: 4 bytes are 16 terabytes
            Self::Pages { .. } => 8 + 4 + 2,
            // the index that hosts make, and the recipe has the lengths
            Self::Recipe => 5 + 4,
        }
    }

    /// The lengths of the blocks at the start of `bytes`, which begin where a block begins. Without `last` more bytes
    /// follow, and what they could change isn't cut yet.
    pub(crate) fn cut(self, bytes: &[u8], last: bool, lengths: &mut Vec<usize>) {
        match self {
            Self::Fixed(length) => lengths.extend(bytes.chunks(length).map(<[u8]>::len)),
            Self::Gear { average } => cut_gear(average, bytes, last, lengths),
            Self::Pages { average, ends } => cut_pages(average, ends, bytes, last, lengths),
            Self::Recipe => cut_as_recipes(bytes, last, lengths),
        }
    }
}

fn cut_gear(average: usize, bytes: &[u8], last: bool, lengths: &mut Vec<usize>) {
    let longest = average * 4;
    let cutter = FastCDC::new(bytes, average / 4, average, longest);
    let mut start = 0;
    while bytes.len() - start >= longest || (last && start < bytes.len()) {
        let (_, end) = cutter.cut(start, bytes.len() - start);
        // a cut at the block's own start would be no block
        let end = if end > start {
            end
        } else {
            bytes.len().min(start + longest)
        };
        lengths.push(end - start);
        start = end;
    }
}

fn cut_pages(average: usize, ends: bool, bytes: &[u8], last: bool, lengths: &mut Vec<usize>) {
    let (shortest, longest) = (average / 4, average * 4);
    // behind `shortest` each page ends a block with this chance, so that random bytes have the average
    let ends_below = u64::MAX / (((average - shortest) / PAGE) as u64 + 1);
    let mut length = 0;
    for page in bytes.chunks(PAGE) {
        length += page.len();
        // the rule of what cuts looks at one page, and at nothing before it
        let cuts = length >= shortest
            && (length >= longest
                || (ends && ends_in_zeros(page))
                || XxHash3_64::oneshot(page) <= ends_below);
        if cuts {
            lengths.push(length);
            length = 0;
        }
    }
    if last && length > 0 {
        lengths.push(length);
    }
}

fn cut_as_recipes(bytes: &[u8], last: bool, lengths: &mut Vec<usize>) {
    let mut left = bytes.len();
    let mut piece = |piece: proto::blocks::Piece| {
        let length = left.min(piece.pages() as usize * PAGE);
        left -= length;
        lengths.push(length);
    };
    let mut cutter = Cutter::default();
    cutter.take(bytes, &mut piece);
    // what more bytes could change isn't handed over yet
    if last {
        cutter.finish(&mut piece);
    }
    const { assert!(MAX_BLOCK_PAGES as usize * PAGE <= LONGEST) };
}

fn ends_in_zeros(page: &[u8]) -> bool {
    // A file's last page has fewer zeros by a chance of 1 in 256, and most binary content has fewer.
    page.len() == PAGE && page[PAGE - 16..].iter().all(|&byte| byte == 0)
}

fn kib(bytes: usize) -> String {
    match bytes >> 10 {
        1024 => "1 MiB".to_owned(),
        kib => format!("{kib} KiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_come_in_pieces_are_cut_as_in_one() {
        let bytes = crate::made_up::random(7, 3 << 20);
        for grain in GRAINS.into_iter().filter(|grain| !grain.is_fixed()) {
            let mut whole = Vec::new();
            grain.cut(&bytes, true, &mut whole);
            assert_eq!(whole.iter().sum::<usize>(), bytes.len(), "{}", grain.name());

            let (mut pieces, mut start) = (Vec::new(), 0);
            for end in (1..=bytes.len() / (96 << 10)).map(|piece| piece * (96 << 10)) {
                let before = pieces.len();
                grain.cut(&bytes[start..end], false, &mut pieces);
                start += pieces[before..].iter().sum::<usize>();
            }
            grain.cut(&bytes[start..], true, &mut pieces);
            assert_eq!(pieces, whole, "{}", grain.name());
        }
    }

    #[test]
    fn random_bytes_have_about_the_average() {
        let bytes = crate::made_up::random(8, 16 << 20);
        for grain in GRAINS {
            let (Grain::Gear { average } | Grain::Pages { average, .. }) = grain else {
                continue;
            };
            let mut lengths = Vec::new();
            grain.cut(&bytes, true, &mut lengths);
            let mean = bytes.len() / lengths.len();
            // FastCDC's blocks are about 1.4 times as long as what it is told
            let most = match grain {
                Grain::Gear { .. } => average * 3 / 2,
                _ => average * 5 / 4,
            };
            assert!(
                mean > average * 3 / 4 && mean < most,
                "{}: {mean}",
                grain.name()
            );
            assert!(
                lengths.iter().all(|&length| length <= average * 4),
                "{}",
                grain.name()
            );
        }
    }

    #[test]
    fn a_page_that_ends_in_zeros_ends_a_block() {
        let mut bytes = crate::made_up::random(9, 64 << 10);
        bytes[(5 << 12) - 16..5 << 12].fill(0);
        let mut lengths = Vec::new();
        pages(32, true).cut(&bytes, true, &mut lengths);
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        assert!(ends.into_iter().any(|end| end == 5 << 12));
    }
}
