//! `unclip doctor`: what this machine has and what will be used.

use std::path::Path;

use kernels::cuda;
use kernels::ptxas::Ptxas;
use tensor::{Arch, Device};

use super::device::Choice;
use crate::Result;

/// Show what this machine has and what will be used.
#[derive(clap::Args)]
pub struct Doctor;

impl Doctor {
    pub fn run(self, device: Choice) -> Result<()> {
        let device = device.device()?;
        println!("unclip {}", env!("CARGO_PKG_VERSION"));
        println!("device    {device}");
        println!(
            "          {} and {} simulate a GPU (PTX kernels on the processor: exact, strict, slow)",
            Device::SIM,
            Device::Sim { arch: Arch::Sm90a }
        );
        gpus();
        match Ptxas::find(Path::new(".")) {
            Some(ptxas) => println!("ptxas     {}", ptxas.path().display()),
            None => println!(
                "ptxas     none ($PTXAS, PATH, .venv): only the lint of kernels needs it; tools/get-ptxas installs it"
            ),
        }
        println!("processor {}", processor());
        println!("features  {}", features());
        println!(
            "kernels   {:?} (results are the same on every level)",
            kernels::simd::level()
        );
        println!(
            "threads   {} of {} processors (RAYON_NUM_THREADS changes it; results do not depend on it)",
            rayon::current_num_threads(),
            std::thread::available_parallelism().map_or(1, usize::from)
        );
        match memory("MemTotal").zip(memory("MemAvailable")) {
            Some((total, available)) => {
                println!("memory    {available:.1} GiB available of {total:.1} GiB");
                // What the demo is held to, with room for the rest of the system.
                if available < 2.0 {
                    println!("          `unclip demo` needs up to 1.5 GiB: close something first");
                }
            }
            None => println!("memory    unknown"),
        }
        Ok(())
    }
}

/// The driver, its GPUs, and the kernels that each would be given.
fn gpus() {
    let version = match cuda::version() {
        Ok(version) => version,
        Err(why) => return println!("driver    none: {why}"),
    };
    let release = cuda::release().unwrap_or_else(|| "of an unknown release".to_owned());
    println!("driver    {release}, CUDA {version}");
    let gpus = match cuda::gpus() {
        Ok(gpus) => gpus,
        Err(why) => return println!("gpu       none: {why}"),
    };
    for gpu in gpus {
        let [major, minor] = gpu.capability;
        let kernels = match gpu.arch() {
            Some(arch) => format!("runs the {arch} kernels"),
            None => "too old for the kernels, which need 8.0".to_owned(),
        };
        println!(
            "gpu       {} (cuda:{}), {:.1} GiB, {} multiprocessors, compute capability {major}.{minor}: {kernels}",
            gpu.name,
            gpu.ordinal,
            gpu.bytes as f64 / f64::from(1 << 30),
            gpu.multiprocessors
        );
    }
}

fn processor() -> String {
    field(Path::new("/proc/cpuinfo"), "model name")
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// GiB under `key` in `/proc/meminfo`.
fn memory(key: &str) -> Option<f64> {
    let value = field(Path::new("/proc/meminfo"), key)?;
    let kib: f64 = value.split_whitespace().next()?.parse().ok()?;
    Some(kib / f64::from(1 << 20))
}

/// The first `key: value` of a file in /proc; `None` where there is no such file.
fn field(path: &Path, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    })
}

#[cfg(target_arch = "x86_64")]
fn features() -> String {
    let known = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    let present: Vec<&str> = known.iter().filter(|k| k.1).map(|k| k.0).collect();
    match present.is_empty() {
        true => "none that the kernels use: expect a tenth of the speed".to_owned(),
        false => present.join(" "),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> String {
    "portable code only".to_owned()
}
