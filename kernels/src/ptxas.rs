//! NVIDIA's assembler as a lint: whether a kernel's text assembles for its arch, and with which registers and memory.
//!
//! Nothing runs, and no GPU is needed. It is found by `$PTXAS`, on the `PATH`, or in the environment that
//! `tools/get-ptxas` makes; where it is not found, whoever asked decides what that means.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::launch::Kernel;

/// An installed ptxas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ptxas {
    path: PathBuf,
}

/// What ptxas says of a kernel that assembles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Registers of a thread.
    pub registers: u32,
    /// Local memory of a thread, in bytes: its stack.
    pub stack_bytes: u32,
    pub spill_store_bytes: u32,
    pub spill_load_bytes: u32,
    /// Static shared memory of a CTA, in bytes.
    pub shared_bytes: u32,
    /// Everything that it printed.
    pub text: String,
}

/// Notices by which ptxas says that it ignored or undid what the kernel asks for, though it succeeds: `setmaxnreg` ignored,
/// `wgmma` serialised across a call, for lack of registers, by a foreign write to an accumulator, or by a wait of its own.
const NOTICES: [&str; 5] = ["C7508", "C7510", "C7511", "C7515", "C7517"];

impl Report {
    /// What is wrong with the kernel although it assembles.
    pub fn defects(&self) -> Vec<String> {
        let mut defects = vec![];
        for (bytes, what) in [
            (self.stack_bytes, "local memory"),
            (self.spill_store_bytes, "spill stores"),
            (self.spill_load_bytes, "spill loads"),
        ] {
            if bytes > 0 {
                defects.push(format!("{bytes} bytes of {what}"));
            }
        }
        let noticed = |line: &&str| NOTICES.iter().any(|notice| line.contains(notice));
        defects.extend(self.text.lines().filter(noticed).map(str::to_string));
        defects
    }
}

/// Why a kernel does not assemble.
#[derive(Debug)]
pub enum Error {
    Start(PathBuf, io::Error),
    /// ptxas refused the text, for the reasons that it printed.
    Refused(String),
    /// ptxas printed something else than what this module reads.
    Unreadable(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Start(path, error) => write!(f, "cannot run {}: {error}", path.display()),
            Error::Refused(text) => write!(f, "ptxas refuses the kernel:\n{text}"),
            Error::Unreadable(text) => write!(f, "ptxas prints no register count:\n{text}"),
        }
    }
}

impl std::error::Error for Error {}

impl Ptxas {
    /// The ptxas that `$PTXAS` names, else the first on the `PATH`, else that of `repository`'s own environment.
    pub fn find(repository: &Path) -> Option<Ptxas> {
        if let Some(path) = std::env::var_os("PTXAS") {
            return Some(Ptxas { path: path.into() });
        }
        let on_path = std::env::var_os("PATH").into_iter().flat_map(|path| {
            std::env::split_paths(&path)
                .map(|folder| folder.join("ptxas"))
                .collect::<Vec<_>>()
        });
        // Which Python made the environment does not matter.
        let versions = std::fs::read_dir(repository.join(".venv/lib"));
        let installed = versions
            .into_iter()
            .flatten()
            .flatten()
            .map(|version| version.path().join("site-packages/nvidia/cu13/bin/ptxas"));
        let path = on_path.chain(installed).find(|path| path.is_file())?;
        Some(Ptxas { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Assembles a kernel for its arch.
    ///
    /// # Errors
    /// If ptxas cannot be run, or refuses the text.
    pub fn assemble(&self, kernel: &Kernel) -> Result<Report, Error> {
        let start = |error| Error::Start(self.path.clone(), error);
        let mut child = Command::new(&self.path)
            .arg("-v")
            .arg(format!("-arch={}", kernel.arch.target()))
            .args(["-o", "/dev/null", "/dev/stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(start)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A ptxas that stops reading says why on its own.
            let _ = stdin.write_all(kernel.text.as_bytes());
        }
        let output = child.wait_with_output().map_err(start)?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            return Err(Error::Refused(text));
        }
        read_report(&text).ok_or(Error::Unreadable(text))
    }
}

/// The numbers in what `ptxas -v` prints.
fn read_report(text: &str) -> Option<Report> {
    let before = |what: &str| -> Option<u32> {
        let (head, _) = text.split_once(what)?;
        head.split_whitespace().last()?.parse().ok()
    };
    let registers = text
        .split_once("Used ")
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())?;
    Some(Report {
        registers,
        stack_bytes: before(" bytes stack frame")?,
        spill_store_bytes: before(" bytes spill stores")?,
        spill_load_bytes: before(" bytes spill loads")?,
        shared_bytes: before(" bytes smem").unwrap_or(0),
        text: text.to_string(),
    })
}

/// The ptxas of this repository's tests. Where there is none, says so once and loudly, or fails under
/// `UNCLIP_REQUIRE_PTXAS=1`, which CI sets.
#[cfg(test)]
pub fn for_tests() -> Option<Ptxas> {
    static ONCE: std::sync::Once = std::sync::Once::new();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let found = Ptxas::find(&repository);
    if found.is_none() {
        assert!(
            std::env::var_os("UNCLIP_REQUIRE_PTXAS").is_none_or(|v| v != "1"),
            "UNCLIP_REQUIRE_PTXAS=1, but there is no ptxas: run tools/get-ptxas, or set PTXAS to its path"
        );
        ONCE.call_once(|| {
            // Standard error itself, which the test harness does not capture.
            let _ = writeln!(
                io::stderr(),
                "\nNOT CHECKED: no ptxas found, so no kernel was assembled. Run tools/get-ptxas once."
            );
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_and_judged() {
        let text = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized\n\
            ptxas info    : Compiling entry function 'k' for 'sm_90a'\n\
            ptxas info    : Function properties for k\n    \
            16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 380 bytes cmem[0]\n";
        let report = read_report(text).expect("the format that ptxas has");
        assert_eq!(report.registers, 40);
        assert_eq!(report.shared_bytes, 2048);
        let defects = report.defects();
        assert_eq!(defects.len(), 4, "{defects:?}");
        assert_eq!(defects[0], "16 bytes of local memory");
        assert_eq!(defects[1], "8 bytes of spill stores");
        assert_eq!(defects[2], "12 bytes of spill loads");
        assert!(defects[3].contains("C7511"));
        assert_eq!(read_report("ptxas fatal"), None);
    }
}
