//! Changes of bytes, a function of the kind of file and a number.

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(name: &str, number: u64) -> Random {
        let start = name
            .bytes()
            .fold(number, |h, b| h.rotate_left(9) ^ u64::from(b));
        let mut random = Random(start);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not zero.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// What readers trip over.
const WORDS: [&str; 24] = [
    "0",
    "-1",
    "1e400",
    "-0.0",
    "NaN",
    "Infinity",
    "null",
    "true",
    "[]",
    "{}",
    "[[[[",
    "\"\"",
    "18446744073709551615",
    "9223372036854775808",
    "4294967296",
    "2147483647",
    "1048576",
    "1e-320",
    "\"F16\"",
    "\"I64\"",
    "\"../../../etc/passwd\"",
    "\\u0000",
    "\u{FFFD}",
    ",",
];

/// `bytes` after a few changes; some take a part of `other`.
pub fn changed(bytes: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(33)).min(bytes.len());
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let again = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, again));
            }
            5 => replace_number(&mut bytes, at, random),
            6 => {
                let from = random.below(other.len() + 1);
                let part = other[from..(from + random.below(65)).min(other.len())].to_vec();
                drop(bytes.splice(at..end, part));
            }
            _ => {
                let word = WORDS[random.below(WORDS.len())];
                drop(bytes.splice(at..end, word.bytes()));
            }
        }
    }
    bytes
}

/// Puts a word in the place of the first number from `at` on: the change that gets past a parser most often.
fn replace_number(bytes: &mut Vec<u8>, at: usize, random: &mut Random) {
    let digit = |b: &u8| b.is_ascii_digit();
    let Some(first) = bytes[at..].iter().position(digit) else {
        return;
    };
    let first = at + first;
    let len = bytes[first..].iter().take_while(|b| digit(b)).count();
    let word = WORDS[random.below(WORDS.len())];
    drop(bytes.splice(first..first + len, word.bytes()));
}
