//! Philox4x32-10: randomness as a function of a key and a counter, so that no generator state is ever stored.
//!
//! Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3 and table 2.

use crate::real::Word;

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Added to the key between rounds: the golden ratio and √3 − 1 as 32-bit fractions.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four independent uniform 32-bit words for one (key, counter): ten rounds of the paper's bijection.
#[inline(always)]
pub fn philox4x32_10<W: Word>(mut key: [W; 2], mut counter: [W; 4]) -> [W; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [
                key[0].add(W::from_u32(WEYL[0])),
                key[1].add(W::from_u32(WEYL[1])),
            ];
        }
        let [high0, low0] = counter[0].mul_wide(MULTIPLIER[0]);
        let [high1, low1] = counter[2].mul_wide(MULTIPLIER[1]);
        counter = [
            high1.xor(counter[1]).xor(key[0]),
            low1,
            high0.xor(counter[3]).xor(key[1]),
            low0,
        ];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the paper's authors publish with their library.
    #[test]
    fn known_answers() {
        let table = [
            (
                [0; 2],
                [0; 4],
                [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8],
            ),
            (
                [u32::MAX; 2],
                [u32::MAX; 4],
                [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD],
            ),
            (
                [0xA409_3822, 0x299F_31D0],
                [0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344],
                [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1],
            ),
        ];
        for (key, counter, want) in table {
            assert_eq!(philox4x32_10(key, counter), want);
        }
    }
}
