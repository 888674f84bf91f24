//! Texts inside PNG files: how a picture says what it was made with (PNG specification, third edition, 11.3.3).

use crate::metrics::crc::CRC32;

const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
/// The header chunk comes first and has a fixed length: length, type, 13 bytes, CRC.
const HEADER: usize = 4 + 4 + 13 + 4;

/// Puts texts behind the header of a PNG file.
pub fn insert(png: &mut Vec<u8>, texts: &[(&str, &str)]) {
    let after_header = SIGNATURE.len() + HEADER;
    let chunks: Vec<u8> = texts.iter().flat_map(|(k, v)| chunk(k, v)).collect();
    png.splice(after_header..after_header, chunks);
}

/// A text chunk: `tEXt` where Latin-1 holds the text, else `iTXt`.
fn chunk(keyword: &str, text: &str) -> Vec<u8> {
    let latin1: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c as u32).ok()).collect();
    let mut body = match latin1 {
        Some(_) => b"tEXt".to_vec(),
        None => b"iTXt".to_vec(),
    };
    body.extend(keyword.bytes());
    body.push(0);
    match latin1 {
        Some(bytes) => body.extend(bytes),
        None => {
            // Not compressed, no language, no translated keyword.
            body.extend([0, 0, 0, 0]);
            body.extend(text.bytes());
        }
    }
    let mut chunk = (body.len() as u32 - 4).to_be_bytes().to_vec();
    chunk.extend(&body);
    chunk.extend(CRC32.of(&[&body]).to_be_bytes());
    chunk
}

/// The text under `keyword` in a PNG file, if it has one that is whole and not compressed.
///
/// # Errors
/// If this is no PNG file, or one that breaks off.
pub fn find(png: &[u8], keyword: &str) -> Result<Option<String>, &'static str> {
    let mut rest = png.strip_prefix(&SIGNATURE).ok_or("it is no PNG file")?;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let body = after.get(..4 + length).ok_or("it breaks off")?;
        let crc = after.get(4 + length..8 + length).ok_or("it breaks off")?;
        rest = &after[8 + length..];
        let (kind, data) = body.split_at(4);
        if kind == b"IEND" {
            break;
        }
        let value = data
            .strip_prefix(keyword.as_bytes())
            .and_then(|data| data.strip_prefix(&[0]));
        if let Some(value) = value.filter(|_| CRC32.of(&[body]).to_be_bytes() == crc) {
            match kind {
                b"tEXt" => return Ok(Some(value.iter().map(|&b| char::from(b)).collect())),
                b"iTXt" => {
                    let text = value.strip_prefix(&[0, 0, 0, 0]);
                    let text = text.and_then(|text| String::from_utf8(text.to_vec()).ok());
                    if text.is_some() {
                        return Ok(text);
                    }
                }
                _ => {}
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn png() -> Vec<u8> {
        let picture = crate::picture::Picture::filled(2, 1, [1, 2, 3]);
        let texts = [
            ("parameters", "a star\nSteps: 3"),
            ("title", "größe 星"),
            ("empty", ""),
        ];
        picture.png(&texts).unwrap()
    }

    #[test]
    fn texts_are_found_again() {
        let png = png();
        let find = |keyword: &str| find(&png, keyword).unwrap();
        assert_eq!(find("parameters").unwrap(), "a star\nSteps: 3");
        assert_eq!(find("title").unwrap(), "größe 星");
        assert_eq!(find("empty").unwrap(), "");
        assert_eq!(find("param"), None);
        assert_eq!(find("IDAT"), None);
        let latin = crate::picture::Picture::filled(1, 1, [0; 3]);
        let latin = latin.png(&[("t", "größe")]).unwrap();
        assert_eq!(super::find(&latin, "t").unwrap().unwrap(), "größe");
    }

    #[test]
    fn a_text_with_a_wrong_checksum_is_none() {
        let mut png = png();
        let at = png.windows(6).position(|w| w == b"a star").unwrap();
        png[at] ^= 1;
        assert_eq!(find(&png, "parameters"), Ok(None));
        assert_eq!(find(b"GIF89a", "parameters"), Err("it is no PNG file"));
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(cut in 0usize..200, at in 0usize..200, value: u8, noise: Vec<u8>) {
            let mut png = png();
            let end = cut.min(png.len());
            png.truncate(end);
            if let Some(byte) = png.get_mut(at) {
                *byte = value;
            }
            png.extend(noise);
            let _ = find(&png, "parameters");
        }
    }
}
