//! Randomness of the data room: draws and shuffles as pure functions of seed and index, with nothing stored.

use kernels::philox::philox4x32_10;

/// Keeps the uses of one seed apart: a word of the Philox counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// What a procedural scene holds.
    Scene = 1,
    /// Where its objects stand.
    Place = 2,
    /// The order of samples in an epoch.
    Order = 3,
    /// What takes the place of an unusable sample.
    Replacement = 5,
    /// Which evaluation prompts are asked.
    Prompt = 4,
    /// How a picture wears.
    Degradation = 6,
}

fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// A sequence of draws that belongs to (seed, stream, index).
pub struct Draws {
    key: [u32; 2],
    counter: [u32; 4],
    words: [u32; 4],
    used: usize,
}

impl Draws {
    pub fn new(seed: u64, stream: Stream, index: u64) -> Self {
        Draws {
            key: key(seed),
            counter: [0, stream as u32, index as u32, (index >> 32) as u32],
            words: [0; 4],
            used: 4,
        }
    }

    fn word(&mut self) -> u32 {
        if self.used == 4 {
            self.words = philox4x32_10(self.key, self.counter);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// An integer in `0..n`; its bias, n / 2³², is far below anything a data set shows.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.word()) * n as u64) >> 32) as usize
    }

    /// A number in [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (f64::from(self.word()) / 4_294_967_296.0)
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A shuffle of `0..len` that answers for any position in constant time and memory.
///
/// A balanced Feistel network on the smallest even number of bits that holds `len`, with Philox as its round function;
/// results outside `0..len` are fed back in until one falls inside (cycle walking, Black and Rogaway, "Ciphers with
/// arbitrary finite domains", 2002), which takes fewer than four passes on average.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    key: [u32; 2],
    stream: u32,
    epoch: u32,
}

impl Permutation {
    const ROUNDS: u32 = 6;

    /// # Panics
    /// If `len` is 0.
    pub fn new(seed: u64, stream: Stream, epoch: u64, len: u64) -> Self {
        assert!(len > 0, "a permutation of nothing");
        let bits = u64::BITS - (len - 1).leading_zeros();
        Permutation {
            len,
            half_bits: bits.div_ceil(2).max(1),
            key: key(seed),
            stream: stream as u32,
            // An epoch beyond 2³² would take longer than any run; the order would then repeat.
            epoch: epoch as u32,
        }
    }

    /// The element at `position`, which must be below `len`.
    pub fn at(&self, position: u64) -> u64 {
        debug_assert!(position < self.len);
        let mask = (1u64 << self.half_bits) - 1;
        let mut x = position;
        loop {
            let (mut left, mut right) = (x >> self.half_bits, x & mask);
            for round in 0..Self::ROUNDS {
                let counter = [right as u32, self.stream, self.epoch, round];
                let mixed = u64::from(philox4x32_10(self.key, counter)[0]);
                (left, right) = (right, left ^ (mixed & mask));
            }
            x = (left << self.half_bits) | right;
            if x < self.len {
                return x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutation_is_a_bijection_for_every_small_length() {
        for len in (1..70).chain([255, 256, 257, 1000, 4097]) {
            let shuffle = Permutation::new(7, Stream::Order, 3, len);
            let mut seen = vec![false; len as usize];
            for i in 0..len {
                let j = shuffle.at(i) as usize;
                assert!(!std::mem::replace(&mut seen[j], true), "{len}: {j} twice");
            }
        }
    }

    #[test]
    fn permutation_mixes_and_depends_on_seed_and_epoch() {
        let order = |seed, epoch| -> Vec<u64> {
            let shuffle = Permutation::new(seed, Stream::Order, epoch, 1000);
            (0..1000).map(|i| shuffle.at(i)).collect()
        };
        let (a, b, c) = (order(1, 0), order(1, 1), order(2, 0));
        // A random permutation has one fixed point on average, and two agree in one place.
        let agree = |x: &[u64], y: &[u64]| x.iter().zip(y).filter(|(p, q)| p == q).count();
        let identity: Vec<u64> = (0..1000).collect();
        for (x, y) in [(&a, &identity), (&a, &b), (&a, &c), (&b, &c)] {
            assert!(agree(x, y) < 8);
        }
        // Neighbours land far apart: the mean distance of two random places is n / 3.
        let distance: f64 = a.windows(2).map(|w| w[0].abs_diff(w[1]) as f64).sum();
        assert!((distance / 999.0 - 333.0).abs() < 40.0);
    }

    #[test]
    fn draws_cover_their_range() {
        let mut counts = [0u32; 6];
        for index in 0..6000 {
            counts[Draws::new(5, Stream::Scene, index).below(6)] += 1;
        }
        // Six cells of 1000 ± 29; five deviations.
        assert!(counts.iter().all(|&c| c.abs_diff(1000) < 145), "{counts:?}");
        let mut draws = Draws::new(5, Stream::Place, 1);
        assert!((0..1000).all(|_| (-1.0..2.0).contains(&draws.between(-1.0, 2.0))));
    }
}
