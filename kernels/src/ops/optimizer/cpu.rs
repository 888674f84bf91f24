//! The optimiser on the CPU.

use super::step::Step;
use super::{Decay, Run, StepScalars};
use crate::parallel::{self, Disjoint};
use crate::simd::{LANES, fold_lanes};
use crate::{Float, multiversion};

/// Elements of the arenas that one part treats, whatever the runs.
const PART: usize = 16 * 1024;

/// √Σg², with squares and partial sums in f64 so that neither overflows; the sums of fixed parts are added in order.
pub fn gradient_norm<T: Float>(gradient: &[T]) -> f64 {
    let parts = parallel::map(gradient.len().div_ceil(PART), gradient.len(), |i| {
        sum_squares_leaf(&gradient[i * PART..gradient.len().min((i + 1) * PART)])
    });
    parts.iter().sum::<f64>().sqrt()
}

/// What an update reads and writes: arenas of one layout.
pub struct Arenas<'a, T> {
    pub parameters: &'a mut [T],
    pub gradient: &'a [T],
    /// First moment.
    pub m: &'a mut [T],
    /// Second moment.
    pub v: &'a mut [T],
    /// Moving average of the parameters.
    pub ema: Option<&'a mut [T]>,
}

/// One step of AdamW as PyTorch defines it, then one of the moving average, in one pass:
///
/// ```text
/// g ← gradient_scale·g          p ← p − lr·weight_decay·p   (where the run says so)
/// m ← m + (1 − β₁)·(g − m)      v ← β₂·v + (1 − β₂)·g²
/// p ← p − lr / bias₁ · m / (√v / √bias₂ + eps)
/// ema ← ema + (1 − ema_decay)·(p − ema)
/// ```
///
/// Frozen runs, and elements outside every run, stay as they are.
///
/// # Panics
/// If the arenas' lengths differ, or runs overlap, are out of order or leave the arenas.
pub fn update<T: Float>(arenas: Arenas<T>, scalars: &StepScalars, runs: &[Run]) {
    let Arenas {
        parameters,
        gradient,
        m,
        v,
        ema,
    } = arenas;
    let len = parameters.len();
    assert!(gradient.len() == len && m.len() == len && v.len() == len);
    assert!(ema.as_ref().is_none_or(|ema| ema.len() == len));
    assert!(runs.iter().all(|r| r.start <= r.end && r.end <= len));
    assert!(runs.windows(2).all(|w| w[0].end <= w[1].start));
    let (parameters, m, v) = (
        Disjoint::new(parameters),
        Disjoint::new(m),
        Disjoint::new(v),
    );
    let ema = ema.map(Disjoint::new);
    parallel::for_each(len.div_ceil(PART), len, |part| {
        let (from, to) = (part * PART, len.min((part + 1) * PART));
        let first = runs.partition_point(|run| run.end <= from);
        for run in runs[first..].iter().take_while(|run| run.start < to) {
            if run.decay == Decay::Frozen {
                continue;
            }
            let start = run.start.max(from);
            let n = run.end.min(to) - start;
            // SAFETY: parts do not overlap, nor do the runs within one, and the arenas outlive the call.
            let (parameters, m, v, ema) = unsafe {
                (
                    parameters.range(start, n),
                    m.range(start, n),
                    v.range(start, n),
                    ema.as_ref().map(|ema| ema.range(start, n)),
                )
            };
            let arenas = Arenas {
                parameters,
                gradient: &gradient[start..start + n],
                m,
                v,
                ema,
            };
            update_leaf(arenas, Step::new(scalars, run.decay));
        }
    });
}

multiversion! {
    fn sum_squares_leaf<T: Float>(x: &[T]) -> f64 {
        let mut lanes = [0.0; LANES];
        let mut blocks = x.chunks_exact(LANES);
        for block in &mut blocks {
            for l in 0..LANES {
                let x = block[l].to_f64();
                lanes[l] = f64::mul_add(x, x, lanes[l]);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(blocks.remainder()) {
            let x = x.to_f64();
            *lane = f64::mul_add(x, x, *lane);
        }
        fold_lanes(lanes)
    }
}

multiversion! {
    fn update_leaf<T: Float>(arenas: Arenas<'_, T>, step: Step<T>) {
        let Arenas { parameters, gradient, m, v, ema } = arenas;
        let moments = gradient.iter().zip(m).zip(v);
        let elements = parameters.iter_mut().zip(moments);
        match ema {
            Some(ema) => {
                for ((p, ((&g, m), v)), ema) in elements.zip(ema) {
                    [*p, *m, *v] = step.element(*p, g, *m, *v);
                    *ema = step.average(*ema, *p);
                }
            }
            None => {
                for (p, ((&g, m), v)) in elements {
                    [*p, *m, *v] = step.element(*p, g, *m, *v);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AdamW, clip_factor};
    use super::*;

    /// Three steps of torch 2.15: `clip_grad_norm_(…, 2)`, `AdamW` with one decayed and one plain group, `lerp_`.
    #[test]
    fn three_steps_are_those_of_pytorch() {
        let want_norm = [3.40266439720405, 6.8053287944081, 10.207993191612148];
        let want_p = [
            0.967033090891437,
            -1.964036021906473,
            2.961039190868306,
            0.47000001692716,
            -0.220000408228109,
        ];
        let want_ema = [
            0.993833307964195,
            -1.99327268514713,
            2.992712106839686,
            0.494390003170062,
            -0.244390076343341,
        ];
        let mut p = [1.0, -2.0, 3.0, 0.5, -0.25];
        let mut ema = p;
        let (mut m, mut v) = ([0.0; 5], [0.0; 5]);
        let adamw = AdamW {
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-6,
            weight_decay: 0.1,
        };
        let runs = [(0, 3, Decay::Yes), (3, 5, Decay::No)];
        let runs = runs.map(|(start, end, decay)| Run { start, end, decay });
        for step in 1..=3 {
            let g = [0.5, -1.5, 0.25, 3.0, -0.125].map(|g| g * step as f64);
            let norm = gradient_norm(&g);
            assert!((norm - want_norm[step - 1]).abs() < 1e-14 * norm);
            let arenas = Arenas {
                parameters: &mut p,
                gradient: &g,
                m: &mut m,
                v: &mut v,
                ema: Some(&mut ema),
            };
            let scalars = adamw.at(step as u64, 0.01, clip_factor(norm, 2.0), 0.9);
            update(arenas, &scalars, &runs);
        }
        for (got, want) in p.iter().chain(&ema).zip(want_p.iter().chain(&want_ema)) {
            assert!((got - want).abs() < 2e-15, "{got} {want}");
        }
    }

    /// Runs that begin and end inside parts, at one thread and at several: every element as if it were alone.
    #[test]
    fn bits_do_not_depend_on_threads_or_on_where_parts_end() {
        let len = 3 * PART + 17;
        let value =
            |i: usize, k: usize| ((i * 2_654_435_761 + k * 97) % 10_007) as f32 / 10_007.0 - 0.5;
        let start: Vec<f32> = (0..len).map(|i| value(i, 0)).collect();
        let gradient: Vec<f32> = (0..len).map(|i| value(i, 1)).collect();
        let decay = |i: usize| match i {
            0..=4 => Decay::Frozen,
            5..=20_000 => Decay::Yes,
            _ => Decay::No,
        };
        let run = |start, end| Run {
            start,
            end,
            decay: decay(start),
        };
        let runs = [run(0, 5), run(5, 20_001), run(20_001, len)];
        let scalars = AdamW {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
        }
        .at(1, 1e-3, 0.5, 0.99);
        let step = |runs: &[Run], p: &mut [f32], gradient: &[f32]| {
            let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
            let mut ema = p.to_vec();
            let arenas = Arenas {
                parameters: p,
                gradient,
                m: &mut m,
                v: &mut v,
                ema: Some(&mut ema),
            };
            update(arenas, &scalars, runs);
            ema
        };
        let mut results = vec![];
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let mut p = start.clone();
            let (ema, norm) = pool
                .expect("a thread pool")
                .install(|| (step(&runs, &mut p, &gradient), gradient_norm(&gradient)));
            results.push((p, ema, norm));
        }
        assert_eq!(results[0], results[1]);
        for i in (0..len).step_by(101) {
            let mut alone = [start[i]];
            let run = Run {
                start: 0,
                end: 1,
                decay: decay(i),
            };
            let ema = step(&[run], &mut alone, &gradient[i..i + 1]);
            assert_eq!((alone[0], ema[0]), (results[0].0[i], results[0].1[i]));
        }
        assert_eq!(results[0].0[..5], start[..5]);
        let exact: f64 = gradient
            .iter()
            .map(|&g| (g as f64) * (g as f64))
            .sum::<f64>()
            .sqrt();
        assert!((results[0].2 - exact).abs() < 1e-13 * exact);
    }

    #[test]
    fn clipping_scales_down_only_and_shows_nan() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert!(clip_factor(f64::NAN, 1.0).is_nan());
        assert_eq!(gradient_norm(&[1e30f32; 4]), 2.0 * 1e30f32 as f64);
    }
}
