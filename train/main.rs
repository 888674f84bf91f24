//! The `unclip` program.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    train::cli::main()
}
