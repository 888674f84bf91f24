//! The program as its users run it, and what it may say.

use std::path::Path;
use std::process::{Command, Output};

pub fn unclip(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unclip"))
        .args(arguments)
        .current_dir(dir)
        .env("RUST_BACKTRACE", "0")
        // The same on a machine that has a GPU: none is found.
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .unwrap()
}

#[track_caller]
pub fn succeeded(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command fails with.
#[track_caller]
pub fn refused(output: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(
        !said.contains("panicked") && !said.contains("backtrace"),
        "{said}"
    );
    said
}
