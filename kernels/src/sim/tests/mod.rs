//! The simulator held to Rust references, to the errors it promises, and to itself.

mod determinism;
mod grammar;
mod instructions;
mod kernels;
mod mutants;
mod pipelines;
mod speed;
mod strict;

use super::{Completion, Error, Options, Profile, run};
use crate::launch::{Arch, Argument, Kernel, Launch};

/// Registers that every test's body may use.
const REGISTERS: &str = "
    .reg .pred %p<16>;
    .reg .b16 %h<16>;
    .reg .b32 %r<64>;
    .reg .b64 %d<32>;
    .reg .f32 %f<64>;
    .reg .f64 %g<16>;
";

/// A kernel of `params` (without `.param`) around `body`.
fn kernel(arch: Arch, params: &[&str], body: &str) -> Kernel {
    let params: Vec<String> = params.iter().map(|p| format!(".param {p}")).collect();
    let text = format!(
        ".version {}\n.target {}\n.address_size 64\n.visible .entry test({})\n{{{REGISTERS}{body}\n}}\n",
        arch.ptx_version(),
        arch.target(),
        params.join(", ")
    );
    Kernel {
        name: "test".to_string(),
        arch,
        text,
    }
}

/// Every option that must not matter to a correct kernel.
fn all_options() -> Vec<Options> {
    let mut all = Vec::new();
    for seed in 0..3 {
        for completion in [Completion::Late, Completion::Early] {
            all.push(Options {
                seed,
                completion,
                ..Options::default()
            });
        }
    }
    all
}

/// Runs a kernel whose parameters are an output, then inputs, one CTA of `threads`.
fn run_block(
    arch: Arch,
    threads: u32,
    body: &str,
    out: &mut [u8],
    inputs: &[&[u8]],
    options: &Options,
) -> Result<Profile, Error> {
    let names = ["out", "a", "b", "c"].map(|n| format!(".u64 {n}"));
    let params: Vec<&str> = names[..inputs.len() + 1].iter().map(|n| &**n).collect();
    let kernel = kernel(arch, &params, body);
    let mut arguments = vec![Argument::Write(out)];
    arguments.extend(inputs.iter().map(|i| Argument::Read(i)));
    run(
        &kernel,
        &Launch::linear(1, threads),
        &mut arguments,
        options,
    )
}

/// The rule that `body` breaks, and its message; panics if it breaks none. One CTA of `threads` with an output of 4 KiB.
fn breaks(arch: Arch, threads: u32, body: &str) -> Error {
    let mut out = vec![0u8; 4096];
    let input: Vec<u8> = (0..4096u32).map(|i| i as u8).collect();
    match run_block(
        arch,
        threads,
        body,
        &mut out,
        &[&input],
        &Options::default(),
    ) {
        Err(error) => error,
        Ok(_) => panic!("nothing is wrong with\n{body}"),
    }
}

/// The output words of `body`, the same under every option.
fn passes(arch: Arch, threads: u32, body: &str) -> Vec<u32> {
    let input: Vec<u8> = (0..4096u32).map(|i| i as u8).collect();
    let mut results = all_options().into_iter().map(|options| {
        let mut out = vec![0u8; 4096];
        match run_block(arch, threads, body, &mut out, &[&input], &options) {
            Ok(_) => words(&out),
            Err(error) => panic!("{options:?}: {error}\n{body}"),
        }
    });
    let first = results.next().unwrap_or_default();
    for other in results {
        assert_eq!(other, first, "{body}");
    }
    first
}

/// Little-endian words.
fn words(bytes: &[u8]) -> Vec<u32> {
    let word = |w: &[u8]| u32::from_le_bytes([w[0], w[1], w[2], w[3]]);
    bytes.chunks_exact(4).map(word).collect()
}
