//! The engine under a small network: recompute, randomness, memory, errors.
//!
//! What the design promises about reproducibility on the CPU, and the test that holds it:
//!
//! | promise | test |
//! | --- | --- |
//! | two runs give the same bits | `ops`: `Check::Repeat` of every op; here `training_has_the_same_bits_in_two_runs_at_any_thread_count_and_simd_level` |
//! | results do not depend on the thread count | `ops`: `Check::Threads` of every op, large cases too; here the same test |
//! | results do not depend on the SIMD level | `ops`: `Check::Simd` of every op; here the same test |
//! | randomness is a counter: nothing is stored | `kernels::random`: `a_draw_depends_on_its_counters_alone`; here `recompute_…`, `two_half_batches_draw_what_one_batch_draws` |
//! | normals come from IEEE-exact operations, so that every device draws the same bits | `kernels::random`: `box_muller_follows_the_exact_formula`; `ops`: `Check::Simd` of randn |
//! | recompute on and off is bit-equal, dropout on, also for a skip used inside and outside the block | here `recompute_on_and_off_has_the_same_bits` |
//!
//! That a resumed run and a run cut short give the same bits is tested where runs are: in `train`.

use std::sync::{Arc, Mutex, MutexGuard};

use autograd::ops::{binary, dropout, matmul, mse, reduce, unary};
use autograd::{
    DType, Decay, Device, Init, ParamGrads, ParamId, ParamLayout, Params, ParamsBuilder, Result,
    StepState, Tape, Tensor, Var,
};
use kernels::buffer::pool_stats;
use kernels::simd::{self, Level};
use tensor::ops::matmul::Activation;

/// Memory statistics and SIMD levels belong to the process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed while it held the lock must not fail the others.
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

const WIDTH: usize = 24;
const BATCH: usize = 6;
const BLOCKS: usize = 3;
const STEP: StepState = StepState {
    seed: 11,
    step: 5,
    first_sample: 30,
};

/// Which parts of the network are computed twice instead of kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recompute {
    Nothing,
    EachBlock,
    /// Everything, and each block again inside of it.
    Nested,
}

/// Residual blocks with dropout: h + W₂·dropout(gelu(W₁·h + b₁)) + skip·h, where the skip is used by all of them.
#[derive(Clone)]
struct Net {
    blocks: Vec<[ParamId; 3]>,
}

impl Net {
    fn declare() -> (Net, Arc<ParamLayout>) {
        let mut layout = ParamLayout::default();
        let mut builder = ParamsBuilder::new(&mut layout);
        let blocks = (0..BLOCKS)
            .map(|i| {
                let mut block = builder.at(i);
                let init = Init::Normal { std: 0.2 };
                [
                    block.declare("up.weight", [2 * WIDTH, WIDTH], init, Decay::Yes),
                    block.declare("up.bias", [2 * WIDTH], init, Decay::No),
                    block.declare("down.weight", [WIDTH, 2 * WIDTH], init, Decay::Yes),
                ]
            })
            .collect();
        (Net { blocks }, Arc::new(layout))
    }

    fn block(&self, t: &Tape, i: usize, h: &Var, skip: &Var) -> Result<Var> {
        t.module(&format!("blocks.{i}"), || {
            let [up, bias, down] = self.blocks[i];
            let (up, bias, down) = (t.param(up)?, t.param(bias)?, t.param(down)?);
            let y = matmul::linear(t, h, &up, Some(&bias), Activation::Gelu, None)?;
            let y = dropout::dropout(t, &y, 0.3)?;
            let y = matmul::linear(t, &y, &down, None, Activation::None, Some(h))?;
            binary::add(t, &y, &binary::mul(t, skip, h)?)
        })
    }

    fn blocks(&self, t: &Tape, x: &Var, skip: &Var, recompute: Recompute) -> Result<Var> {
        let mut h = x.clone();
        for i in 0..BLOCKS {
            h = match recompute {
                Recompute::Nothing => self.block(t, i, &h, skip)?,
                Recompute::EachBlock | Recompute::Nested => {
                    let net = self.clone();
                    let block = move |t: &Tape, v: &[Var]| Ok(vec![net.block(t, i, &v[0], &v[1])?]);
                    t.checkpoint(&[&h, skip], block)?.remove(0)
                }
            };
        }
        Ok(h)
    }

    fn loss(&self, t: &Tape, x: &Var, recompute: Recompute) -> Result<Var> {
        let skip = t.module("skip", || unary::silu(t, x))?;
        let h = if recompute == Recompute::Nested {
            let net = self.clone();
            let all = move |t: &Tape, v: &[Var]| Ok(vec![net.blocks(t, &v[0], &v[1], recompute)?]);
            t.checkpoint(&[x, &skip], all)?.remove(0)
        } else {
            self.blocks(t, x, &skip, recompute)?
        };
        // The skip outside of all blocks too, and randomness after them.
        let h = binary::add(t, &h, &dropout::dropout(t, &skip, 0.5)?)?;
        reduce::mean(t, &unary::apply(t, tensor::ops::unary::Unary::Square, &h)?)
    }
}

fn input(rows: usize) -> Tensor {
    let data: Vec<f64> = (0..rows * WIDTH).map(|i| (i as f64 * 0.7).sin()).collect();
    Tensor::from_f64(&data, [rows, WIDTH], DType::F32, Device::Cpu)
}

fn params(layout: &Arc<ParamLayout>) -> Params {
    Params::init(layout.clone(), 3, DType::F32, Device::Cpu).expect("the arena can be had")
}

/// Loss, gradient of the input, gradients of the parameters.
fn gradients(net: &Net, params: &Params, recompute: Recompute) -> Result<[Tensor; 3]> {
    let t = Tape::training(params, STEP);
    let x = t.leaf(input(BATCH));
    let loss = net.loss(&t, &x, recompute)?;
    let mut grads = t.backward(&loss, ParamGrads::new(params))?;
    let dx = grads.take(&x).expect("the input has a gradient");
    let mut arena = grads.into_params();
    Ok([loss.tensor().clone(), dx, arena.finish()?.detach_copy()?])
}

#[test]
fn recompute_on_and_off_has_the_same_bits() -> Result<()> {
    let _alone = alone();
    let (net, layout) = Net::declare();
    let params = params(&layout);
    let kept = gradients(&net, &params, Recompute::Nothing)?;
    for recompute in [Recompute::EachBlock, Recompute::Nested] {
        let again = gradients(&net, &params, recompute)?;
        for (what, (a, b)) in ["loss", "dx", "parameters"]
            .iter()
            .zip(kept.iter().zip(&again))
        {
            assert!(a.bit_equal(b), "{recompute:?}: other bits in {what}");
        }
    }
    // Dropout is on: another step draws other numbers, and the loss shows it.
    let t = Tape::training(&params, StepState { step: 6, ..STEP });
    let other = net.loss(&t, &t.leaf(input(BATCH)), Recompute::Nothing)?;
    assert!(!other.tensor().bit_equal(&kept[0]));
    Ok(())
}

#[test]
fn recompute_keeps_less() -> Result<()> {
    let _alone = alone();
    let (net, layout) = Net::declare();
    let params = params(&layout);
    let held = |recompute| -> Result<u64> {
        let before = pool_stats().live_bytes;
        let t = Tape::training(&params, STEP);
        let _loss = net.loss(&t, &t.leaf(input(BATCH)), recompute)?;
        Ok(pool_stats().live_bytes - before)
    };
    let (kept, recomputed) = (held(Recompute::Nothing)?, held(Recompute::Nested)?);
    assert!(recomputed * 2 < kept, "{recomputed} of {kept} bytes");
    Ok(())
}

#[test]
fn two_half_batches_draw_what_one_batch_draws() -> Result<()> {
    let _alone = alone();
    let params = Params::zeros(Arc::default(), DType::F32, Device::Cpu);
    let drawn = |first_sample, rows| -> Result<Vec<f32>> {
        let t = Tape::training(
            &params,
            StepState {
                first_sample,
                ..STEP
            },
        );
        let x = t.constant(Tensor::full([rows, 50], 1.0, DType::F32, Device::Cpu));
        t.scope("decoder.mid_block", || {
            let _first = dropout::dropout(&t, &x, 0.4)?;
            dropout::dropout(&t, &x, 0.4)?.tensor().to_vec::<f32>()
        })
    };
    let whole = drawn(30, 8)?;
    let halves = [drawn(30, 4)?, drawn(34, 4)?].concat();
    assert_eq!(whole, halves);
    assert!(whole.contains(&0.0) && whole[..200] != whole[200..]);
    Ok(())
}

#[test]
fn a_consumed_tape_has_freed_what_its_nodes_saved() -> Result<()> {
    let _alone = alone();
    let (net, layout) = Net::declare();
    let params = params(&layout);
    let grads = ParamGrads::new(&params);
    let before = pool_stats().live_bytes;
    let t = Tape::training(&params, STEP);
    let loss = net.loss(&t, &t.constant(input(BATCH)), Recompute::Nothing)?;
    let recorded = pool_stats().live_bytes;
    assert!(recorded > before);
    let grads = t.backward(&loss, grads)?;
    drop(loss);
    assert_eq!(
        pool_stats().live_bytes,
        before,
        "live after the backward pass"
    );
    drop(grads);
    Ok(())
}

/// `steps` steps of plain gradient descent, and the parameters after them.
fn train(
    net: &Net,
    layout: &Arc<ParamLayout>,
    steps: u32,
    mut warm: impl FnMut(u32),
) -> Result<Tensor> {
    let mut params = params(layout);
    let mut grads = ParamGrads::new(&params);
    for step in 0..steps {
        let t = Tape::training(&params, StepState { step, ..STEP });
        let x = t.constant(input(BATCH));
        let loss = net.loss(&t, &x, Recompute::EachBlock)?;
        grads = t.backward(&loss, grads)?.into_params();
        drop((x, loss));
        let gradient = grads.finish()?.to_vec::<f32>()?;
        for (value, g) in params
            .arena_mut()
            .as_mut_slice::<f32>()?
            .iter_mut()
            .zip(gradient)
        {
            *value -= 0.05 * g;
        }
        grads.clear();
        warm(step);
    }
    params.arena().detach_copy()
}

#[test]
fn a_warm_step_allocates_no_tensor_memory() -> Result<()> {
    let _alone = alone();
    let (net, layout) = Net::declare();
    let mut fresh = vec![];
    train(&net, &layout, 8, |_| {
        fresh.push(pool_stats().fresh_allocations)
    })?;
    assert_eq!(fresh[2], fresh[7], "allocations after each step: {fresh:?}");
    Ok(())
}

#[test]
fn training_has_the_same_bits_in_two_runs_at_any_thread_count_and_simd_level() -> Result<()> {
    let _alone = alone();
    let (net, layout) = Net::declare();
    let reference = train(&net, &layout, 3, |_| {})?;
    assert!(
        train(&net, &layout, 3, |_| {})?.bit_equal(&reference),
        "a second run"
    );
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.expect("a few threads can be had");
        let trained = pool.install(|| train(&net, &layout, 3, |_| {}))?;
        assert!(trained.bit_equal(&reference), "{threads} threads");
    }
    let usual = simd::level();
    for level in [Level::Avx2, Level::Baseline] {
        simd::set_level(level);
        let trained = train(&net, &layout, 3, |_| {});
        simd::set_level(usual);
        assert!(trained?.bit_equal(&reference), "{level:?}");
    }
    Ok(())
}

#[test]
fn an_error_names_the_innermost_module_and_shows_the_operands() {
    let _alone = alone();
    let t = Tape::inference(None);
    let zeros = |shape: [usize; 2]| t.constant(Tensor::zeros(shape, DType::F32, Device::Cpu));
    let outcome = t.scope("decoder", || {
        t.scope("down_blocks.1", || {
            matmul::linear(
                &t,
                &zeros([2, 5]),
                &zeros([3, 4]),
                None,
                Activation::None,
                None,
            )
        })
    });
    let error = outcome.expect_err("5 columns do not fit 4");
    assert_eq!(error.module(), Some("decoder.down_blocks.1"));
    let text = error.to_string();
    for part in ["[2, 5]", "[3, 4]", "f32", "cpu", "decoder.down_blocks.1"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn an_error_in_a_backward_pass_names_the_module_too() -> Result<()> {
    let _alone = alone();
    let params = Params::zeros(Arc::default(), DType::F32, Device::Cpu);
    let t = Tape::training(&params, STEP);
    let x = t.leaf(input(2));
    let y = t.scope("head", || unary::silu(&t, &x))?;
    let misshapen = Tensor::zeros([3, 1], DType::F32, Device::Cpu);
    let outcome = t.backward_from(vec![(y, misshapen)], ParamGrads::new(&params));
    let error = outcome.expect_err("the gradient has another shape");
    assert_eq!(error.module(), Some("head"));
    Ok(())
}

#[test]
fn finite_checks_name_the_first_op_that_overflows() -> Result<()> {
    let _alone = alone();
    let t = Tape::inference(None).with_finite_checks();
    let large = t.constant(Tensor::full([2, 2], 1000.0, DType::F32, Device::Cpu));
    let outcome = t.scope("prior.blocks.7", || {
        let fine = binary::add(&t, &large, &large)?;
        let infinite = unary::exp(&t, &fine)?;
        mse::mse(&t, &infinite, &large, None)
    });
    let error = outcome.expect_err("exp(2000) is not finite");
    assert_eq!(
        (error.op(), error.module()),
        ("exp", Some("prior.blocks.7"))
    );
    Ok(())
}
