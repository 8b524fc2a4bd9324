//! Seeded changes to good bytes, of the kinds that break parsers: flipped bits, odd numbers, cuts, repeats, grafts.

/// Makes inputs of others. The same seed makes the same inputs.
#[derive(Clone, Debug)]
pub struct Mutator {
    state: u64,
}

/// Values at which lengths and counts go wrong.
const ODD: [u64; 8] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff_ffff_ffff,
];

impl Mutator {
    /// A mutator of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// One of the inputs, changed one to eight times.
    pub fn next_input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let Some(mut input) = self.pick(corpus).cloned() else {
            return Vec::new();
        };
        for _ in 0..=self.below(8) {
            self.change(&mut input, corpus);
        }
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let few = self.below(16).min(input.len() - at);
        match self.below(9) {
            0 | 1 => {
                let bit = self.below(8);
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
            2 => {
                let any = self.next().to_le_bytes();
                if let Some(byte) = input.get_mut(at) {
                    *byte = any[0];
                }
            }
            3 => {
                let odd = ODD[self.below(ODD.len())].to_le_bytes();
                let width = [1, 2, 4, 8][self.below(4)].min(input.len() - at);
                input[at..at + width].copy_from_slice(&odd[..width]);
            }
            4 => {
                let any = self.next().to_le_bytes();
                let more = self.below(any.len() + 1);
                input.splice(at..at, any[..more].iter().copied());
            }
            5 => drop(input.drain(at..at + few)),
            6 => {
                let again = input[at..at + few].to_vec();
                let to = self.below(input.len() + 1);
                input.splice(to..to, again);
            }
            7 => input.truncate(at),
            _ => {
                if let Some(other) = self.pick(corpus) {
                    let from = self.below(other.len() + 1);
                    input.truncate(at);
                    input.extend_from_slice(&other[from..]);
                }
            }
        }
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        (!of.is_empty()).then(|| &of[self.below(of.len())])
    }

    /// A number from 0 to `bound - 1`; `bound` isn't 0.
    fn below(&mut self, bound: usize) -> usize {
        // evenly enough for bounds that fit in memory
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }

    /// SplitMix64 (Steele, Lea and Flood 2014): any seed will do, and a generator of its own keeps runs the same when
    /// dependencies change.
    const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
