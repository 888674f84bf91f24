//! TensorBoard event files: TFRecord framing around two tiny protocol-buffer messages.
//!
//! A record is: length (u64 LE), masked CRC-32C of those 8 bytes, payload, masked CRC-32C of the payload. An `Event` is
//! { 1: wall_time f64, 2: step i64, 3: file_version string, 5: summary }, a `Summary` { 1: value }, a `Value`
//! { 1: tag string, 2: simple_value f32 }.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::crc::CRC32C;
use crate::{Error, Result};

/// Appends to one event file. TensorBoard reads all event files of a directory, so that each start writes its own.
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// A new event file in `dir`.
    pub fn create(dir: &Path) -> Result<EventWriter> {
        let now = wall_time();
        let name = format!(
            "events.out.tfevents.{:010}.{}",
            now as u64,
            std::process::id()
        );
        let path = dir.join(name);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::io("write", &path))?;
        let mut writer = EventWriter { file, path };
        let mut event = Vec::new();
        put_double(&mut event, 1, now);
        put_bytes(&mut event, 3, b"brain.Event:2");
        writer.append(&event)?;
        Ok(writer)
    }

    /// Writes one scalar per name, in one event.
    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        self.append(&scalar_event(wall_time(), step, scalars))
    }

    fn append(&mut self, event: &[u8]) -> Result<()> {
        self.file
            .write_all(&record(event))
            .map_err(Error::io("write", &self.path))
    }
}

fn wall_time() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}

fn scalar_event(time: f64, step: u64, scalars: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in scalars {
        let mut message = Vec::new();
        put_bytes(&mut message, 1, tag.as_bytes());
        put_key(&mut message, 2, 5);
        message.extend((*value as f32).to_le_bytes());
        put_bytes(&mut summary, 1, &message);
    }
    let mut event = Vec::new();
    put_double(&mut event, 1, time);
    put_key(&mut event, 2, 0);
    put_varint(&mut event, step);
    put_bytes(&mut event, 5, &summary);
    event
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(payload);
    out.extend(masked_crc(payload).to_le_bytes());
    out
}

/// Rotated and offset, so that a checksum of data that holds checksums is not degenerate.
fn masked_crc(bytes: &[u8]) -> u32 {
    CRC32C
        .of(&[bytes])
        .rotate_right(15)
        .wrapping_add(0xA282_EAD8)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field's number and wire type: 0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes.
fn put_key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_varint(out, field << 3 | wire_type);
}

fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_key(out, field, 1);
    out.extend(value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_crc_follows_the_tfrecord_formula() {
        // CRC-32C of "123456789" is e3069283; rotated right by 15 bits it is 2507c60d.
        assert_eq!(masked_crc(b"123456789"), 0xC78A_B0E5);
    }

    #[test]
    fn a_scalar_event_has_the_bytes_that_protobuf_prescribes() {
        let event = scalar_event(1.5, 300, &[("loss", 0.25)]);
        let mut want = vec![0x09];
        want.extend(1.5f64.to_le_bytes());
        want.extend([0x10, 0xAC, 0x02]); // step 300
        want.extend([0x2A, 13, 0x0A, 11]); // summary, value
        want.extend([0x0A, 4, b'l', b'o', b's', b's', 0x15]);
        want.extend(0.25f32.to_le_bytes());
        assert_eq!(event, want);
    }

    #[test]
    fn a_record_frames_its_payload() {
        let out = record(b"abc");
        assert_eq!(out.len(), 8 + 4 + 3 + 4);
        assert_eq!(out[..8], 3u64.to_le_bytes());
        assert_eq!(out[8..12], masked_crc(&3u64.to_le_bytes()).to_le_bytes());
        assert_eq!(&out[12..15], b"abc");
    }
}
