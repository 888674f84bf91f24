//! What hardware makes of single instructions, where the simulator's own answer is a tolerance or a published model.
//!
//! A [`Probe`] is one instruction on many operands. It runs on the simulator and, where there is a GPU, on that; what the
//! GPU gave is kept as text in `truth/`, and from then on tests hold the simulator to it on any machine. Instructions that
//! are exact by the PTX ISA are here too where a rounding is easily got wrong.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Options, run};
use crate::cuda::{self, Context};
use crate::launch::{Arch, Argument, Kernel, Launch};
use crate::philox::philox4x32_10;

/// Operands of each kind that a probe runs on.
const CASES: u32 = 1024;
/// Threads of a CTA of a probe without matrices.
const THREADS: u32 = 128;
/// Products that a matrix probe makes.
const PRODUCTS: u32 = 32;

/// One instruction on many operands.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The instruction, as PTX has it.
    pub instruction: &'static str,
    pub agreement: Agreement,
    kernel: Kernel,
    launch: Launch,
    operands: Vec<u32>,
    results: usize,
}

/// How far simulator and hardware may be apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Agreement {
    /// In no bit; one NaN is as good as another.
    Bits,
    /// f32 results, by this share of the larger.
    Relative(f64),
    /// f32 results, by this much.
    Absolute(f64),
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Agreement::Bits => f.write_str("the same bits"),
            Agreement::Relative(limit) => write!(f, "within {limit:.1e} of the value"),
            Agreement::Absolute(limit) => write!(f, "within {limit:.1e}"),
        }
    }
}

/// A kind of probe: the instruction, its operands and result, and the agreement.
struct Kind {
    instruction: &'static str,
    form: Form,
    agreement: Agreement,
}

/// What an instruction takes and gives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// f32 → f32.
    Unary,
    /// f32, f32 → f32.
    Binary,
    /// f32, f32, f32 → f32.
    Ternary,
    /// f32 → 16 bits.
    Narrow,
    /// f32, f32 → two times 16 bits.
    Pair,
    /// f32 → s32.
    ToInteger,
    /// s32 → f32.
    FromInteger,
    /// Fragments of A (as many registers), B and C → D.
    Matrix { a: u32, b: u32, half: Half },
}

/// A format of 16 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Bf16,
    F16,
}

const KINDS: [Kind; 23] = {
    use Agreement::{Absolute, Bits, Relative};
    const fn kind(instruction: &'static str, form: Form, agreement: Agreement) -> Kind {
        Kind {
            instruction,
            form,
            agreement,
        }
    }
    const TO_11_BITS: f64 = 1.0 / 2048.0;
    const TO_22_BITS: f64 = 1.0 / 4_194_304.0;
    const TO_23_BITS: f64 = 1.0 / 8_388_608.0;
    [
        // The PTX ISA bounds these; results of two units of the last place are common.
        kind("ex2.approx.f32", Form::Unary, Relative(TO_22_BITS)),
        kind("ex2.approx.ftz.f32", Form::Unary, Relative(TO_22_BITS)),
        kind("lg2.approx.f32", Form::Unary, Absolute(4.0 * TO_22_BITS)),
        kind("rcp.approx.ftz.f32", Form::Unary, Relative(TO_23_BITS)),
        kind("rsqrt.approx.ftz.f32", Form::Unary, Relative(TO_22_BITS)),
        kind("sqrt.approx.ftz.f32", Form::Unary, Relative(TO_22_BITS)),
        kind("tanh.approx.f32", Form::Unary, Relative(TO_11_BITS)),
        kind("sin.approx.f32", Form::Unary, Absolute(2.0 * TO_22_BITS)),
        kind("cos.approx.f32", Form::Unary, Absolute(2.0 * TO_22_BITS)),
        kind("div.full.f32", Form::Binary, Relative(TO_22_BITS)),
        // Exact.
        kind("rcp.rn.f32", Form::Unary, Bits),
        kind("sqrt.rn.f32", Form::Unary, Bits),
        kind("div.rn.f32", Form::Binary, Bits),
        kind("fma.rn.f32", Form::Ternary, Bits),
        kind("fma.rn.ftz.f32", Form::Ternary, Bits),
        kind("cvt.rn.bf16.f32", Form::Narrow, Bits),
        kind("cvt.rn.f16.f32", Form::Narrow, Bits),
        kind("cvt.rn.bf16x2.f32", Form::Pair, Bits),
        kind("cvt.rni.s32.f32", Form::ToInteger, Bits),
        kind("cvt.rzi.s32.f32", Form::ToInteger, Bits),
        kind("cvt.rn.f32.s32", Form::FromInteger, Bits),
        // Order and rounding of sums: measured by others, not documented.
        kind(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
            Form::Matrix {
                a: 4,
                b: 2,
                half: Half::Bf16,
            },
            Bits,
        ),
        kind(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
            Form::Matrix {
                a: 4,
                b: 2,
                half: Half::F16,
            },
            Bits,
        ),
    ]
};

/// Every probe, for GPUs of an arch.
pub fn probes(arch: Arch) -> Vec<Probe> {
    KINDS.iter().map(|kind| Probe::new(kind, arch)).collect()
}

/// Operands at the edges of f32, then all over it, then where kernels have them.
fn floats(stream: u32, n: u32) -> Vec<u32> {
    const EDGES: [f32; 14] = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        2.0,
        1.5,
        f32::MIN_POSITIVE,
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1e-40,
        -1e-45,
    ];
    let drawn = |i: u32| philox4x32_10([stream, 0x7275_7468], [i, 0, 0, 0]);
    let small = |word: u32| (f64::from(word) / 2f64.powi(28) - 8.0) as f32;
    let value = |i: u32| match EDGES.get((i / (1 + stream * 3)) as usize) {
        Some(edge) if i < 14 * (1 + stream * 3) => edge.to_bits(),
        _ if i < n / 2 => drawn(i)[0],
        _ => small(drawn(i)[1]).to_bits(),
    };
    (0..n).map(value).collect()
}

/// Two halves a word, of magnitudes so different that the order of a sum is seen.
fn halves(half: Half, stream: u32, words: u32) -> Vec<u32> {
    let value = |word: u32| {
        let exponent = (word >> 24) % 12;
        let mantissa = f64::from(word & 0xFFFF) / 32768.0 - 1.0;
        let value = mantissa * 2f64.powi(exponent as i32 - 6);
        let bits = match half {
            Half::Bf16 => half::bf16::from_f64(value).to_bits(),
            Half::F16 => half::f16::from_f64(value).to_bits(),
        };
        u32::from(bits)
    };
    let word = |i: u32| {
        let drawn = philox4x32_10([stream, 0x6861_6c66], [i, 0, 0, 0]);
        value(drawn[0]) | value(drawn[1]) << 16
    };
    (0..words).map(word).collect()
}

impl Probe {
    fn new(kind: &Kind, arch: Arch) -> Probe {
        let (body, operands, threads, results) = match kind.form {
            Form::Matrix { a, b, half } => {
                let lanes = PRODUCTS * 32;
                let mut operands = halves(half, 1, lanes * a);
                operands.extend(halves(half, 2, lanes * b));
                let addends = |i: u32| {
                    let drawn = philox4x32_10([3, 0x6d6d_6163], [i, 0, 0, 0])[0];
                    ((f64::from(drawn) / 2f64.powi(31) - 1.0) as f32 * 8.0).to_bits()
                };
                operands.extend((0..lanes * 4).map(addends));
                let body = matrix(kind.instruction, a, b, lanes);
                (body, operands, 32, lanes * 4)
            }
            form => {
                let count = match form {
                    Form::Binary | Form::Pair => 2,
                    Form::Ternary => 3,
                    _ => 1,
                };
                let operands = (0..count)
                    .flat_map(|stream| floats(stream, CASES))
                    .collect();
                let body = elementwise(kind.instruction, form, count);
                (body, operands, THREADS, CASES)
            }
        };
        let name = "probe".to_owned();
        let text = format!(
            ".version {}\n.target {}\n.address_size 64\n\n.visible .entry {name}(.param .u64 out, .param .u64 in)\n\
             .reqntid {threads}, 1, 1\n{{\n{body}}}\n",
            arch.ptx_version(),
            arch.target()
        );
        let ctas = match kind.form {
            Form::Matrix { .. } => PRODUCTS,
            _ => CASES / THREADS,
        };
        Probe {
            instruction: kind.instruction,
            agreement: kind.agreement,
            kernel: Kernel { name, arch, text },
            launch: Launch::linear(ctas, threads),
            operands,
            results: results as usize,
        }
    }

    /// What the simulator makes of it.
    ///
    /// # Errors
    /// If the simulator refuses the instruction: a mistake here or there.
    pub fn simulated(&self) -> Result<Vec<u32>, super::Error> {
        let mut results = vec![0u32; self.results];
        let mut arguments = self.arguments(&mut results);
        run(
            &self.kernel,
            &self.launch,
            &mut arguments,
            &Options::default(),
        )?;
        Ok(results)
    }

    /// What a GPU makes of it.
    ///
    /// # Errors
    /// If the GPU does not run it.
    pub fn on_gpu(&self, context: &'static Context) -> cuda::Result<Vec<u32>> {
        let mut results = vec![0u32; self.results];
        let mut arguments = self.arguments(&mut results);
        cuda::run(context, &self.kernel, &self.launch, &mut arguments)?;
        Ok(results)
    }

    fn arguments<'a>(&'a self, results: &'a mut [u32]) -> [Argument<'a>; 2] {
        [
            Argument::Write(bytemuck::cast_slice_mut(results)),
            Argument::Read(bytemuck::cast_slice(&self.operands)),
        ]
    }

    /// How far what the simulator gave is from the truth.
    pub fn compare(&self, truth: &[u32], simulated: &[u32]) -> Comparison {
        let mut comparison = Comparison {
            cases: truth.len(),
            ..Comparison::default()
        };
        for (&truth, &simulated) in truth.iter().zip(simulated) {
            let [t, s] = [truth, simulated].map(|bits| f64::from(f32::from_bits(bits)));
            let narrow = matches!(self.agreement, Agreement::Bits);
            if truth == simulated
                || !narrow && t.is_nan() && s.is_nan()
                || self.same_nan(truth, simulated)
            {
                continue;
            }
            comparison.different += 1;
            let off = match self.agreement {
                Agreement::Bits => f64::INFINITY,
                // Flushed or not, what is below the smallest normal number is nothing.
                _ if t.abs().max(s.abs()) < f64::from(f32::MIN_POSITIVE) => 0.0,
                Agreement::Relative(limit) => (t - s).abs() / t.abs().max(s.abs()) / limit,
                Agreement::Absolute(limit) => (t - s).abs() / t.abs().max(1.0) / limit,
            };
            let off = if off.is_nan() { f64::INFINITY } else { off };
            comparison.worst = comparison.worst.max(off);
        }
        comparison
    }

    /// Whether both are NaN in the format of an exact probe's results.
    fn same_nan(&self, a: u32, b: u32) -> bool {
        let nan = |bits: u32| match self.instruction {
            "cvt.rn.bf16.f32" => half::bf16::from_bits(bits as u16).is_nan(),
            "cvt.rn.f16.f32" => half::f16::from_bits(bits as u16).is_nan(),
            "cvt.rni.s32.f32" | "cvt.rzi.s32.f32" | "cvt.rn.bf16x2.f32" => false,
            _ => f32::from_bits(bits).is_nan(),
        };
        nan(a) && nan(b)
    }

    /// The file in which the truth about it is kept, for GPUs of its arch.
    pub fn file(&self, dir: &Path) -> PathBuf {
        dir.join(self.kernel.arch.target())
            .join(format!("{}.txt", self.instruction))
    }

    /// Keeps what a GPU gave; `gpu` says which.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn record(&self, dir: &Path, gpu: &str, truth: &[u32]) -> io::Result<()> {
        let path = self.file(dir);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let lines = truth.chunks(16).map(|line| {
            let words: Vec<String> = line.iter().map(|word| format!("{word:08x}")).collect();
            words.join(" ") + "\n"
        });
        let text = format!(
            "# {} on {gpu}\n# operands {:016x}\n{}",
            self.instruction,
            self.operands_hash(),
            lines.collect::<String>()
        );
        fs::write(path, text)
    }

    /// What was recorded on these operands; `None` where nothing was.
    ///
    /// # Errors
    /// If the file is none, or was recorded on other operands.
    pub fn recorded(&self, dir: &Path) -> Result<Option<Vec<u32>>, String> {
        let path = self.file(dir);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        let of_these = format!("# operands {:016x}", self.operands_hash());
        if !text.lines().any(|line| line == of_these) {
            let why = "was recorded on other operands: record it again";
            return Err(format!("{} {why}", path.display()));
        }
        let words = text.lines().filter(|line| !line.starts_with('#'));
        let words = words.flat_map(str::split_whitespace);
        let words: Result<Vec<u32>, _> = words.map(|word| u32::from_str_radix(word, 16)).collect();
        match words {
            Ok(words) if words.len() == self.results => Ok(Some(words)),
            _ => Err(format!("{} is no record", path.display())),
        }
    }

    /// FNV-1a.
    fn operands_hash(&self) -> u64 {
        let bytes: &[u8] = bytemuck::cast_slice(&self.operands);
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }
}

/// What a comparison found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparison {
    pub cases: usize,
    /// Results that are not the same bits.
    pub different: usize,
    /// The largest difference, in units of the one that is allowed.
    pub worst: f64,
}

impl Comparison {
    pub fn agrees(&self) -> bool {
        self.worst <= 1.0
    }
}

/// Where the truth is kept, in a checkout.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sim/truth")
}

/// One case a thread.
fn elementwise(instruction: &str, form: Form, operands: u32) -> String {
    let mut body = String::from(
        "    .reg .b32 %r<8>;\n    .reg .f32 %f<4>;\n    .reg .b16 %h<1>;\n    .reg .b64 %rd<4>;\n    \
         ld.param.u64 %rd0, [out];\n    ld.param.u64 %rd1, [in];\n    mov.u32 %r0, %ctaid.x;\n    \
         mov.u32 %r1, %tid.x;\n",
    );
    body += &format!(
        "    mad.lo.u32 %r2, %r0, {THREADS}, %r1;\n    mul.wide.u32 %rd2, %r2, 4;\n    \
         add.u64 %rd0, %rd0, %rd2;\n    add.u64 %rd1, %rd1, %rd2;\n"
    );
    for i in 0..operands {
        let at = i * CASES * 4;
        body += &format!("    ld.global.b32 %r{}, [%rd1+{at}];\n", 3 + i);
        if form != Form::FromInteger {
            body += &format!("    mov.b32 %f{}, %r{};\n", 1 + i, 3 + i);
        }
    }
    body += &match form {
        Form::Unary => format!("    {instruction} %f0, %f1;\n    mov.b32 %r6, %f0;\n"),
        Form::Binary => format!("    {instruction} %f0, %f1, %f2;\n    mov.b32 %r6, %f0;\n"),
        Form::Ternary => {
            format!("    {instruction} %f0, %f1, %f2, %f3;\n    mov.b32 %r6, %f0;\n")
        }
        Form::Narrow => format!("    {instruction} %h0, %f1;\n    cvt.u32.u16 %r6, %h0;\n"),
        Form::Pair => format!("    {instruction} %r6, %f1, %f2;\n"),
        Form::ToInteger => format!("    {instruction} %r6, %f1;\n"),
        _ => format!("    {instruction} %f0, %r3;\n    mov.b32 %r6, %f0;\n"),
    };
    body + "    st.global.b32 [%rd0], %r6;\n    ret;\n"
}

/// One product a warp: lanes hold fragments as they lie in memory.
fn matrix(instruction: &str, a: u32, b: u32, lanes: u32) -> String {
    let mut body = String::from(
        "    .reg .b32 %r<4>;\n    .reg .b32 %a<4>;\n    .reg .b32 %b<4>;\n    .reg .f32 %c<4>;\n    \
         .reg .f32 %d<4>;\n    .reg .b64 %rd<8>;\n    ld.param.u64 %rd0, [out];\n    ld.param.u64 %rd1, [in];\n    \
         mov.u32 %r0, %ctaid.x;\n    mov.u32 %r1, %tid.x;\n    mad.lo.u32 %r2, %r0, 32, %r1;\n",
    );
    let mut load = |name: &str, kind: &str, count: u32, start: u32| {
        body += &format!(
            "    mul.wide.u32 %rd2, %r2, {};\n    add.u64 %rd3, %rd1, %rd2;\n",
            count * 4
        );
        for i in 0..count {
            let at = start * 4 + i * 4;
            body += &format!("    ld.global.{kind} %{name}{i}, [%rd3+{at}];\n");
        }
    };
    load("a", "b32", a, 0);
    load("b", "b32", b, lanes * a);
    load("c", "f32", 4, lanes * (a + b));
    let list = |name: &str, count: u32| {
        let registers: Vec<String> = (0..count).map(|i| format!("%{name}{i}")).collect();
        format!("{{{}}}", registers.join(", "))
    };
    body += &format!(
        "    {instruction} {}, {}, {}, {};\n    mul.wide.u32 %rd2, %r2, 16;\n    add.u64 %rd3, %rd0, %rd2;\n",
        list("d", 4),
        list("a", a),
        list("b", b),
        list("c", 4)
    );
    for i in 0..4 {
        body += &format!("    st.global.f32 [%rd3+{}], %d{i};\n", i * 4);
    }
    body + "    ret;\n"
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_simulator_runs_every_probe_and_agrees_with_itself() {
        for arch in [Arch::Sm80, Arch::Sm90a] {
            for probe in probes(arch) {
                let results = probe.simulated().unwrap_or_else(|error| {
                    panic!("{}: {error}\n{}", probe.instruction, probe.kernel.text)
                });
                let comparison = probe.compare(&results, &results);
                assert_eq!((comparison.different, comparison.cases), (0, results.len()));
                // A result off by a part in a thousand is found everywhere.
                let mut wrong = results.clone();
                let one = wrong.iter().position(|&bits| {
                    let value = f32::from_bits(bits).abs();
                    (0.1..1e3).contains(&value) || probe.agreement == Agreement::Bits && bits == 1
                });
                if let Some(one) = one {
                    wrong[one] = (f32::from_bits(wrong[one]) * 1.001).to_bits() ^ 1;
                    let comparison = probe.compare(&results, &wrong);
                    assert!(!comparison.agrees(), "{}", probe.instruction);
                }
            }
        }
    }

    #[test]
    fn what_is_recorded_is_read_again_and_only_on_its_operands() {
        let dir = std::env::temp_dir().join(format!("unclip-truth-{}", std::process::id()));
        let probe = &probes(Arch::Sm80)[0];
        assert_eq!(probe.recorded(&dir), Ok(None));
        let truth = probe.simulated().unwrap();
        probe.record(&dir, "a test", &truth).unwrap();
        assert_eq!(probe.recorded(&dir), Ok(Some(truth)));
        let other = Probe {
            operands: vec![1, 2, 3],
            ..probe.clone()
        };
        let why = other.recorded(&dir).unwrap_err();
        assert!(why.contains("other operands"), "{why}");
        fs::remove_dir_all(&dir).unwrap();
    }

    /// Says loudly how much of the truth is known.
    #[test]
    fn the_simulator_agrees_with_what_hardware_gave() {
        let mut known = 0;
        let mut wrong = vec![];
        for probe in [Arch::Sm80, Arch::Sm90a].into_iter().flat_map(probes) {
            let Some(truth) = probe.recorded(&folder()).unwrap() else {
                continue;
            };
            known += 1;
            let comparison = probe.compare(&truth, &probe.simulated().unwrap());
            if !comparison.agrees() {
                wrong.push(format!("{}: {comparison:?}", probe.instruction));
            }
        }
        let mut out = std::io::stderr();
        // Nothing can be done where standard error is closed.
        let _ = writeln!(
            out,
            "the simulator is held to hardware in {known} of {} instructions (tools/gpu-suite records them)",
            2 * KINDS.len()
        );
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
