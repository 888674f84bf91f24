//! What a run measures: `metrics.jsonl` is the truth, the TensorBoard events are a copy of it.

pub mod crc;
mod tensorboard;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{Error, Result, files};
use tensorboard::EventWriter;

/// The metrics of one run, one JSON object per line.
pub struct Metrics {
    path: PathBuf,
    file: File,
    events: EventWriter,
}

impl Metrics {
    /// Opens the metrics in `dir`, without the lines of steps from `step` on: a run that resumes writes them again.
    pub fn open(dir: &Path, step: u64) -> Result<Metrics> {
        let path = dir.join("metrics.jsonl");
        let kept: String = read(&path)?
            .iter()
            .filter(|line| line["step"].as_u64().is_some_and(|s| s < step))
            .map(|line| format!("{line}\n"))
            .collect();
        files::replace(&path, kept.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(Error::io("write", &path))?;
        let events = EventWriter::create(dir)?;
        Ok(Metrics { path, file, events })
    }

    /// Appends what step `step` gave.
    pub fn write(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut line = Map::new();
        line.insert("step".into(), step.into());
        for &(name, value) in values {
            // JSON has no NaN: it becomes null.
            line.insert(name.into(), value.into());
        }
        let line = format!("{}\n", Value::Object(line));
        self.file
            .write_all(line.as_bytes())
            .map_err(Error::io("write", &self.path))?;
        self.events.scalars(step, values)
    }
}

/// The lines of a `metrics.jsonl`; none where there is no file. A last line that a kill cut short is left out.
pub fn read(path: &Path) -> Result<Vec<Value>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resuming_rewrites_the_steps_that_are_done_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path(), 0).unwrap();
        for step in [0, 10, 20] {
            metrics.write(step, &[("loss", 1.0 + step as f64)]).unwrap();
        }
        drop(metrics);
        let path = dir.path().join("metrics.jsonl");
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"step\": 30, \"lo");
        std::fs::write(&path, text).unwrap();
        let mut metrics = Metrics::open(dir.path(), 20).unwrap();
        metrics.write(20, &[("loss", f64::NAN)]).unwrap();
        let lines = read(&path).unwrap();
        let steps: Vec<u64> = lines.iter().filter_map(|l| l["step"].as_u64()).collect();
        assert_eq!(steps, [0, 10, 20]);
        assert!(lines[2]["loss"].is_null());
    }
}
