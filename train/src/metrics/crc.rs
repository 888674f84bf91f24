//! Cyclic redundancy checks, reflected, 32 bits: PNG chunks and TensorBoard records carry one.

/// The table of one polynomial.
pub struct Crc32([u32; 256]);

/// ISO-HDLC, of PNG and zip.
pub const CRC32: Crc32 = Crc32::new(0xEDB8_8320);
/// Castagnoli, of TensorFlow records.
pub const CRC32C: Crc32 = Crc32::new(0x82F6_3B78);

impl Crc32 {
    const fn new(polynomial: u32) -> Crc32 {
        let mut table = [0u32; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut remainder = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                remainder = (remainder >> 1) ^ if remainder & 1 == 1 { polynomial } else { 0 };
                bit += 1;
            }
            table[byte] = remainder;
            byte += 1;
        }
        Crc32(table)
    }

    pub fn of(&self, parts: &[&[u8]]) -> u32 {
        !parts
            .iter()
            .flat_map(|part| part.iter())
            .fold(!0, |crc, &byte| {
                (crc >> 8) ^ self.0[(crc as u8 ^ byte) as usize]
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of the catalogue of parametrised CRC algorithms, and those of RFC 3720, appendix B.4.
    #[test]
    fn known_answers() {
        assert_eq!(CRC32.of(&[b"123456789"]), 0xCBF4_3926);
        assert_eq!(CRC32.of(&[b"IEND"]), 0xAE42_6082);
        assert_eq!(CRC32C.of(&[b"1234", b"56789"]), 0xE306_9283);
        assert_eq!(CRC32C.of(&[&[0; 32]]), 0x8A91_36AA);
        assert_eq!(CRC32C.of(&[&[0xFF; 32]]), 0x62A8_AB43);
    }
}
