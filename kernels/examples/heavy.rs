//! Times the heavy kernels beside the machine's measured peak: `cargo run --release -p unclip-kernels --example heavy`,
//! with a part of a name to run only those.

use std::hint::black_box;
use std::time::Instant;

use kernels::ops::attention::{self, Attention, Gradients};
use kernels::ops::conv2d::{self, Conv2d};
use kernels::ops::group_norm::{self, GroupNorm, GroupNormGradients};
use kernels::ops::layer_norm::{self, LayerNorm, LayerNormGradients};
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
    for (n, heads, head_dim, tokens, context) in [
        (8, 4, 64, 256, 0),
        (64, 4, 32, 64, 10),
        (1, 4, 64, 1024, 77),
    ] {
        let d = Attention {
            n,
            heads,
            head_dim,
            queries: tokens,
            keys: tokens,
            context,
            causal: false,
            scale: (head_dim as f64).powf(-0.5),
        };
        let own = |seed| values(n * tokens * heads * head_dim, seed);
        let added = |seed| values(n * context * heads * head_dim, seed);
        let (q, k, v, context_k, context_v) = (own(1), own(2), own(3), added(4), added(5));
        let context_pair = (context > 0).then_some((&context_k[..], &context_v[..]));
        let mut out = own(6);
        let dout = own(7);
        let mut lse = vec![0.0; n * heads * tokens];
        let flops = 4.0 * (n * heads * tokens * (tokens + context) * head_dim) as f64;
        let name =
            |pass: &str| format!("attention {n}×{heads}×{tokens}+{context}×{head_dim} {pass}");
        bench.run(&name("forward"), flops, || {
            attention::forward(&d, &mut out, &mut lse, &q, &k, &v, context_pair, None)
        });
        let (mut dq, mut dk, mut dv) = (own(8), own(8), own(8));
        let (mut dcontext_k, mut dcontext_v) = (added(8), added(8));
        bench.run(&name("backward"), 2.5 * flops, || {
            let gradients = Gradients {
                dq: Some((&mut dq, Accum::Replace)),
                dk: Some((&mut dk, Accum::Replace)),
                dv: Some((&mut dv, Accum::Replace)),
                dcontext_k: Some((&mut dcontext_k, Accum::Replace)),
                dcontext_v: Some((&mut dcontext_v, Accum::Replace)),
            };
            attention::backward(
                &d,
                gradients,
                &dout,
                &out,
                &lse,
                &q,
                &k,
                &v,
                context_pair,
                None,
            )
        });
    }
    {
        let d = GroupNorm {
            n: 8,
            pixels: 1024,
            c: 128,
            groups: 32,
            eps: 1e-5,
            silu: true,
        };
        let (x, dy) = (values(8 * 1024 * 128, 1), values(8 * 1024 * 128, 2));
        let (gamma, beta) = (values(128, 3), values(128, 4));
        let (mut y, mut dx) = (x.clone(), x.clone());
        let (mut mean, mut rstd) = (vec![0.0; 256], vec![0.0; 256]);
        let (mut dgamma, mut dbeta) = (gamma.clone(), beta.clone());
        // "GFLOP/s" of the norms are ideal GB/s.
        bench.run(
            "group_norm 8×1024×128 silu forward",
            8.0 * x.len() as f64,
            || group_norm::forward(&d, &mut y, &mut mean, &mut rstd, &x, &gamma, &beta, None),
        );
        bench.run(
            "group_norm 8×1024×128 silu backward",
            12.0 * x.len() as f64,
            || {
                let gradients = GroupNormGradients {
                    dx: Some((&mut dx, Accum::Replace)),
                    dgamma: Some((&mut dgamma, Accum::Replace)),
                    dbeta: Some((&mut dbeta, Accum::Replace)),
                    dscale_shift: None,
                };
                group_norm::backward(&d, gradients, &dy, &x, &mean, &rstd, &gamma, &beta, None)
            },
        );
        let d = LayerNorm {
            rows: 8192,
            c: 128,
            eps: 1e-5,
        };
        let (mut mean, mut rstd) = (vec![0.0; 8192], vec![0.0; 8192]);
        bench.run("layer_norm 8192×128 forward", 8.0 * x.len() as f64, || {
            layer_norm::forward(&d, &mut y, &mut mean, &mut rstd, &x, &gamma, &beta)
        });
        bench.run(
            "layer_norm 8192×128 backward",
            12.0 * x.len() as f64,
            || {
                let gradients = LayerNormGradients {
                    dx: Some((&mut dx, Accum::Replace)),
                    dgamma: Some((&mut dgamma, Accum::Replace)),
                    dbeta: Some((&mut dbeta, Accum::Replace)),
                };
                layer_norm::backward(&d, gradients, &dy, &x, &mean, &rstd, &gamma)
            },
        );
    }
    peak_now();
}
