//! Arguments of a kernel as they are written on a command line.

use std::path::PathBuf;

use half::{bf16, f16};
use tensor::ops::random::{self, Draw};
use tensor::{DType, Device, Tensor};

use crate::{Error, Result};

/// A kernel's argument.
#[derive(Debug)]
pub enum Argument {
    Scalar(Scalar),
    Null,
    Buffer(Buffer),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Update,
}

/// Device memory with its contents.
#[derive(Debug)]
pub struct Buffer {
    pub access: Access,
    pub element: Element,
    pub bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F32,
    Bf16,
    F16,
    I32,
    U32,
    U8,
}

/// What the text of an argument looks like, for messages and help.
pub const FORMS: &str = "u32:7, i32:-7, u64:7, f32:0.5, null, or a buffer: read, write or update, an element type (f32, \
                         bf16, f16, i32, u32, u8) with a count, and contents unless it is write: read:f32[1000]=normal, \
                         write:f32[1000], update:i32[16]=iota; contents are zeros, ones, iota, normal, a number, or @FILE \
                         of raw bytes";

/// More than a scratchpad needs, and less than what a typing error would ask for.
const LARGEST: usize = 1 << 32;

impl Element {
    const ALL: [(&'static str, Element); 6] = [
        ("f32", Element::F32),
        ("bf16", Element::Bf16),
        ("f16", Element::F16),
        ("i32", Element::I32),
        ("u32", Element::U32),
        ("u8", Element::U8),
    ];

    pub fn name(self) -> &'static str {
        let found = Element::ALL.iter().find(|(_, element)| *element == self);
        found.map_or("", |(name, _)| name)
    }

    fn size(self) -> usize {
        match self {
            Element::F32 | Element::I32 | Element::U32 => 4,
            Element::Bf16 | Element::F16 => 2,
            Element::U8 => 1,
        }
    }

    fn put(self, value: f64, out: &mut Vec<u8>) {
        match self {
            Element::F32 => out.extend((value as f32).to_le_bytes()),
            Element::Bf16 => out.extend(bf16::from_f64(value).to_le_bytes()),
            Element::F16 => out.extend(f16::from_f64(value).to_le_bytes()),
            Element::I32 => out.extend((value as i32).to_le_bytes()),
            Element::U32 => out.extend((value as u32).to_le_bytes()),
            Element::U8 => out.push(value as u8),
        }
    }

    fn get(self, bytes: &[u8]) -> f64 {
        let word = |n: usize| {
            let mut word = [0; 4];
            word[..n].copy_from_slice(&bytes[..n]);
            word
        };
        let half = || [bytes[0], bytes[1]];
        match self {
            Element::F32 => f32::from_le_bytes(word(4)).into(),
            Element::Bf16 => bf16::from_le_bytes(half()).to_f64(),
            Element::F16 => f16::from_le_bytes(half()).to_f64(),
            Element::I32 => i32::from_le_bytes(word(4)).into(),
            Element::U32 => u32::from_le_bytes(word(4)).into(),
            Element::U8 => bytes[0].into(),
        }
    }
}

impl Buffer {
    /// The elements as numbers.
    pub fn values(&self) -> Vec<f64> {
        let chunks = self.bytes.chunks_exact(self.element.size());
        chunks.map(|bytes| self.element.get(bytes)).collect()
    }
}

impl Argument {
    /// Reads one argument; `number` is its place in the list, which random contents are a function of.
    ///
    /// # Errors
    /// If the text has none of the [`FORMS`], or a file cannot be read or has another size.
    pub fn parse(text: &str, number: usize) -> Result<Argument> {
        let wrong = || Error::usage(format!("\"{text}\" is no argument: write {FORMS}"));
        if text == "null" {
            return Ok(Argument::Null);
        }
        let (kind, rest) = text.split_once(':').ok_or_else(wrong)?;
        let scalar = match kind {
            "u32" => rest.parse().ok().map(Scalar::U32),
            "i32" => rest.parse().ok().map(Scalar::I32),
            "u64" => rest.parse().ok().map(Scalar::U64),
            "f32" => rest.parse().ok().map(Scalar::F32),
            _ => None,
        };
        if let Some(scalar) = scalar {
            return Ok(Argument::Scalar(scalar));
        }
        let access = match kind {
            "read" => Access::Read,
            "write" => Access::Write,
            "update" => Access::Update,
            _ => return Err(wrong()),
        };
        let (shape, contents) = match rest.split_once('=') {
            Some((shape, contents)) => (shape, Some(contents)),
            None => (rest, None),
        };
        let (name, count) = shape.split_once('[').ok_or_else(wrong)?;
        let count = count.strip_suffix(']').ok_or_else(wrong)?;
        let count: usize = count.parse().map_err(|_| wrong())?;
        let element = Element::ALL.iter().find(|(known, _)| *known == name);
        let &(_, element) = element.ok_or_else(wrong)?;
        if contents.is_none() != (access == Access::Write) {
            return Err(wrong());
        }
        let bytes = count.checked_mul(element.size());
        let bytes = bytes.filter(|&bytes| bytes <= LARGEST).ok_or_else(|| {
            Error::usage(format!("\"{text}\" asks for more than {LARGEST} bytes"))
        })?;
        let bytes = match contents {
            None => vec![0; bytes],
            Some(contents) => filled(contents, element, count, number).ok_or_else(wrong)??,
        };
        Ok(Argument::Buffer(Buffer {
            access,
            element,
            bytes,
        }))
    }
}

/// The bytes that `contents` stands for; `None` if it is none of the forms.
fn filled(
    contents: &str,
    element: Element,
    count: usize,
    number: usize,
) -> Option<Result<Vec<u8>>> {
    if let Some(path) = contents.strip_prefix('@') {
        let path = PathBuf::from(path);
        return Some(match std::fs::read(&path) {
            Ok(bytes) if bytes.len() == count * element.size() => Ok(bytes),
            Ok(bytes) => Err(Error::usage(format!(
                "{} holds {} bytes, {count} elements of {} are {}",
                path.display(),
                bytes.len(),
                element.name(),
                count * element.size()
            ))),
            Err(error) => Err(Error::io("read", &path)(error)),
        });
    }
    let values: Vec<f64> = match contents {
        "zeros" => vec![0.0; count],
        "ones" => vec![1.0; count],
        "iota" => (0..count).map(|i| i as f64).collect(),
        "normal" => {
            let mut x = Tensor::uninit([count], DType::F32, Device::Cpu);
            let draw = Draw::named(0, "kernels run", number as u32);
            let drawn = random::fill_normal(&mut x, &draw, 1.0).and_then(|()| x.to_f64_vec());
            match drawn {
                Ok(drawn) => drawn,
                Err(error) => return Some(Err(error.into())),
            }
        }
        number => vec![number.parse().ok()?; count],
    };
    let mut bytes = Vec::with_capacity(count * element.size());
    values.iter().for_each(|&v| element.put(v, &mut bytes));
    Some(Ok(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(text: &str) -> Buffer {
        match Argument::parse(text, 0) {
            Ok(Argument::Buffer(buffer)) => buffer,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_form_is_read() {
        assert!(matches!(
            Argument::parse("i32:-7", 0),
            Ok(Argument::Scalar(Scalar::I32(-7)))
        ));
        assert!(matches!(Argument::parse("null", 0), Ok(Argument::Null)));
        assert_eq!(buffer("update:bf16[3]=iota").values(), [0.0, 1.0, 2.0]);
        assert_eq!(buffer("read:u8[2]=200").values(), [200.0, 200.0]);
        let output = buffer("write:f16[5]");
        assert_eq!((output.access, output.bytes.len()), (Access::Write, 10));
        let normal = buffer("read:f32[1000]=normal").values();
        assert!(normal.iter().sum::<f64>().abs() < 150.0 && normal[0] != normal[1]);
    }

    #[test]
    fn what_is_none_of_the_forms_is_an_error() {
        for text in [
            "",
            "f32",
            "u32:-1",
            "read:f32[4]",
            "write:f32[4]=ones",
            "read:f33[4]=ones",
            "read:f32[4=ones",
            "read:f32[-4]=ones",
            "read:f32[4]=many",
            "read:f32[99999999999999999999]=ones",
            "read:f32[9999999999999]=ones",
            "read:f32[1]=@nowhere",
        ] {
            assert!(Argument::parse(text, 0).is_err(), "{text}");
        }
    }
}
