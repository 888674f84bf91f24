//! What a bench keeps of its samples, and where lines of JSON go.

use std::fs::OpenOptions;
use std::io::Write;

use tensor::{DType, Device};

/// Where to compute: what `UNCLIP_DEVICE` names, or the CPU.
///
/// # Panics
/// If there is no such device: a bench has nobody else to tell.
pub fn device() -> Device {
    let Ok(name) = std::env::var("UNCLIP_DEVICE") else {
        return Device::Cpu;
    };
    let device: Result<Device, String> = name.parse();
    let opened = device.and_then(|device| device.open().map(|()| device));
    opened.unwrap_or_else(|why| panic!("UNCLIP_DEVICE={name}: {why}"))
}

/// Seconds.
pub struct Timing {
    pub median: f64,
    pub p20: f64,
    pub p80: f64,
    pub best: f64,
    pub samples: usize,
}

impl Timing {
    /// NaN where there are no samples.
    pub fn of(mut samples: Vec<f64>) -> Timing {
        samples.sort_by(f64::total_cmp);
        let at = |quantile: f64| {
            let index = (samples.len().saturating_sub(1) as f64 * quantile) as usize;
            samples.get(index).copied().unwrap_or(f64::NAN)
        };
        Timing {
            median: at(0.5),
            p20: at(0.2),
            p80: at(0.8),
            best: at(0.0),
            samples: samples.len(),
        }
    }

    /// `fields` with what was computed in and the times, in microseconds, added.
    pub fn json(&self, dtype: DType, mut fields: serde_json::Value) -> serde_json::Value {
        fields["side"] = "unclip".into();
        fields["dtype"] = dtype.to_string().into();
        fields["median_us"] = (self.median * 1e6).into();
        fields["p20_us"] = (self.p20 * 1e6).into();
        fields["p80_us"] = (self.p80 * 1e6).into();
        fields["best_us"] = (self.best * 1e6).into();
        fields["samples"] = self.samples.into();
        fields
    }
}

/// Appends a line to the file that `UNCLIP_BENCH` names.
pub fn record(line: serde_json::Value) {
    let Ok(path) = std::env::var("UNCLIP_BENCH") else {
        return;
    };
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| writeln!(file, "{line}"));
    if let Err(error) = written {
        eprintln!("cannot write the result to {path}: {error}");
    }
}
