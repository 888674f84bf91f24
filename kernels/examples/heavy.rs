//! Times the heavy kernels beside the machine's measured peak: `cargo run --release -p unclip-kernels --example heavy`,
//! with a part of a name to run only those.

use std::hint::black_box;
use std::time::Instant;

use kernels::ops::conv2d::{self, Conv2d};
use kernels::ops::matmul::{self, Activation, Matmul};
use kernels::{Accum, multiversion};

multiversion! {
    /// 64 independent sums per round: what the machine's multiply-adders can do at best.
    fn peak(rounds: usize, x: &[f32; 128]) -> [f32; 128] {
        let mut sums = *x;
        for _ in 0..rounds {
            for s in &mut sums {
                *s = s.mul_add(0.999, 0.001);
            }
        }
        sums
    }
}

fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

struct Bench {
    filter: String,
}

impl Bench {
    fn run(&self, name: &str, flops: f64, mut f: impl FnMut()) {
        if !name.contains(&self.filter) {
            return;
        }
        let mut times = Vec::new();
        let start = Instant::now();
        while times.len() < 5 || (start.elapsed().as_secs_f64() < 1.0 && times.len() < 2000) {
            let t = Instant::now();
            f();
            times.push(t.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let (median, best) = (times[times.len() / 2], times[0]);
        println!(
            "{name:44} {:9.3} ms  best {:9.3}  {:6.1} GFLOP/s  best {:6.1}",
            median * 1e3,
            best * 1e3,
            flops / median / 1e9,
            flops / best / 1e9
        );
    }
}

fn main() {
    let bench = Bench {
        filter: std::env::args().nth(1).unwrap_or_default(),
    };
    let rounds = 200_000;
    let peak_now = || {
        Bench {
            filter: String::new(),
        }
        .run("peak: FMA loop", 2.0 * 2.0 * 128.0 * rounds as f64, || {
            rayon::join(
                || black_box(peak(rounds, &[1.0; 128])),
                || black_box(peak(rounds, &[1.0; 128])),
            );
        })
    };
    peak_now();
    for (m, k, n, transpose_a, transpose_b) in [
        (1024, 1024, 1024, false, false),
        (1024, 1024, 1024, false, true),
        (1024, 1024, 1024, true, false),
        (2048, 2048, 2048, false, false),
        (4096, 64, 64, false, true),
        (4096, 64, 64, false, false),
        (64, 4096, 64, true, false),
        (1024, 128, 512, false, true),
        (1024, 512, 128, false, false),
        (128, 1024, 512, true, false),
        (16, 256, 512, false, true),
        (16, 512, 256, false, false),
    ] {
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        let mut c = vec![0.0; m * n];
        let d = Matmul {
            batch: 1,
            m,
            n,
            k,
            transpose_a,
            transpose_b,
            a_stride: 0,
            b_stride: 0,
            activation: Activation::None,
        };
        let t = |t| if t { "ᵀ" } else { " " };
        let name = format!(
            "matmul {m}×{k}{} · {k}×{n}{}",
            t(transpose_a),
            t(transpose_b)
        );
        bench.run(&name, 2.0 * (m * n * k) as f64, || {
            matmul::forward(&d, &mut c, Accum::Replace, None, &a, &b, None, None)
        });
    }
    for (n, size, c_in, c_out, stride) in [
        (8, 32, 128, 128, 1),
        (64, 16, 64, 64, 1),
        (64, 8, 128, 128, 1),
        (32, 64, 32, 32, 1),
        (32, 64, 6, 32, 1),
        (32, 64, 3, 32, 1),
        (32, 64, 32, 6, 1),
        (64, 16, 64, 64, 2),
    ] {
        let d = Conv2d {
            n,
            h: size,
            w: size,
            c_in,
            c_out,
            kernel_h: 3,
            kernel_w: 3,
            stride,
            padding: 1,
        };
        let x = values(n * size * size * c_in, 1);
        let weight = values(9 * c_in * c_out, 2);
        let mut y = values(n * d.out_h() * d.out_w() * c_out, 3);
        let dy = y.clone();
        let (mut dx, mut dw) = (x.clone(), weight.clone());
        let flops = 2.0 * (y.len() * 9 * c_in) as f64;
        let name = |pass: &str| format!("conv {n}×{size}²×{c_in}→{c_out} /{stride} {pass}");
        bench.run(&name("forward"), flops, || {
            conv2d::forward(&d, &mut y, &x, &weight, None, None)
        });
        bench.run(&name("backward input"), flops, || {
            conv2d::backward_input(&d, &mut dx, Accum::Replace, &dy, &weight)
        });
        bench.run(&name("backward weight"), flops, || {
            conv2d::backward_weight(&d, &mut dw, Accum::Replace, &dy, &x)
        });
    }
    peak_now();
}
