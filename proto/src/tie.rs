//! Choices that have to repeat: what is equal in all that counts is told apart by a hash.

/// A hash for breaking ties: splitmix64's finaliser over the sum of odd multiples. It spreads well and costs nothing.
/// Nothing rests on its strength.
#[must_use]
pub const fn mix(a: u64, b: u64) -> u64 {
    let mut x = a
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(b.wrapping_mul(0xd1b5_4a32_d192_ed03));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ties_break_the_same_way_each_time_and_evenly() {
        assert_eq!(mix(1, 2), mix(1, 2));
        assert_ne!(mix(1, 2), mix(2, 1));
        let all: BTreeSet<u64> = (0..100)
            .flat_map(|a| (0..100).map(move |b| mix(a, b)))
            .collect();
        assert_eq!(all.len(), 10_000);
        // neighbours win about as often as they lose
        let wins = (0..10_000)
            .filter(|key| mix(1, *key) > mix(2, *key))
            .count();
        assert!((4_500..5_500).contains(&wins), "{wins}");
    }
}
