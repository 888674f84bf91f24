//! Training through [`Step`] on the simulated GPU, or on the one that `UNCLIP_DEVICE=cuda:0` names: held to the CPU, and shown to be a step that a GPU can record. The first
//! step runs op by op, the second is recorded, the others must ask for what it asked for: nothing that changes from step
//! to step is an argument of a kernel, and nothing is read before the step is over.

use std::path::Path;

use autograd::harness::budget::{F64, Precision, largest, moved_array};
use autograd::harness::device::gpu;
use autograd::harness::values::Random;
use autograd::ops::{mse, randn};
use autograd::spec::Array;
use autograd::{DType, Device, Draw, Params, Tape, Tensor, Var};
use models::unet::{UNet2DConfig, UNet2DModel};
use models::{Loaded, Model};
use train::Result;
use train::config::{Common, Config, StageKind};
use train::data::shapes::shards::{MakeShapes, make_shapes};
use train::interrupt::Interrupt;
use train::stages::autoregressive::Autoregressive;
use train::stages::clip::Clip;
use train::stages::decoder::Decoder;
use train::stages::prior::Prior;
use train::stages::upsampler::Upsampler;
use train::stages::{DTYPE, Stage};
use train::step::Step;
use train::trainer::{self, Resume};

const STEPS: u64 = 10;
const F32_ULP: f64 = 1.0 / 8_388_608.0;

fn config(stage: StageKind, root: &Path, run: &str, more: &[&str]) -> Config {
    let of_all = ["optimizer=adamw", "resolution=16", "train_batch_size=2"];
    let mut overrides: Vec<String> = of_all.iter().chain(more).map(|s| s.to_string()).collect();
    overrides.extend(["lr_warmup_steps=2", "gradient_accumulation_steps=2"].map(String::from));
    overrides.push(format!("data={}", root.join("data").display()));
    overrides.push(format!("output_dir={}", root.join(run).display()));
    if matches!(stage, StageKind::Prior | StageKind::Decoder) {
        overrides.push(format!("clip={}", root.join("clip").display()));
    }
    Config::defaults(stage, &overrides).unwrap()
}

/// Keys of networks that the simulated GPU takes a step of in seconds, with head dims that GPU kernels have.
fn tiny(stage: StageKind) -> Vec<&'static str> {
    match stage {
        StageKind::Clip => vec![
            "vocab_size=560",
            "image_size=16",
            "patch_size=8",
            "projection_dim=32",
            "text_layers=1",
            "text_heads=1",
            "vision_hidden_size=32",
            "vision_layers=1",
            "vision_heads=1",
        ],
        StageKind::Prior => vec![
            "num_layers=1",
            "num_attention_heads=1",
            "attention_head_dim=32",
            "whitening_samples=8",
        ],
        StageKind::Decoder => vec![
            "sample_size=8",
            "block_out_channels=[8, 32]",
            "layers_per_block=1",
            "attention_levels=1",
            "attention_head_dim=32",
            "cross_attention_dim=8",
            "extra_context_tokens=2",
            "norm_num_groups=4",
        ],
        StageKind::Upsampler => vec![
            "sample_size=16",
            "low_size=4",
            "crop_size=8",
            "block_out_channels=[8, 8]",
            "layers_per_block=1",
            "norm_num_groups=4",
            "blur_kernel=3",
        ],
    }
}

/// A folder with a few shapes, and a CLIP that was hardly trained.
fn prepared() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let shapes = MakeShapes {
        size: 16,
        ..MakeShapes::new(root.path().join("data"), 12)
    };
    make_shapes(&shapes, |_| {}).unwrap();
    let mut keys = tiny(StageKind::Clip);
    keys.push("max_train_steps=2");
    let clip = config(StageKind::Clip, root.path(), "clip", &keys);
    trainer::train(&clip, &Resume::No, Device::Cpu, &Interrupt::default()).unwrap();
    root
}

/// The losses of ten steps, and the weights and their average after them.
fn trained(
    params: Params,
    common: &Common,
    loss: impl Fn(&Tape) -> Result<Var>,
) -> Result<[Vec<f64>; 3]> {
    let mut training = Step::new(params, common)?;
    let mut losses = Vec::new();
    for step in 0..STEPS {
        let outcome = training.take(step, 1e-3 * (step + 1) as f64, |t, _| loss(t))?;
        losses.push(outcome.loss);
    }
    assert_eq!(training.divergences(), 0, "a step asked for something else");
    let weights = training.params.arena().to_f64_vec()?;
    Ok([losses, weights, training.ema.to_f64_vec()?])
}

#[test]
fn ten_steps_of_adamw_are_within_the_cpus_budget() {
    ten_steps_are_within_the_cpus_budget("optimizer=adamw", &[8, 16]);
}

/// Muon's matrices are those between at least 32 channels; AdamW has the others.
#[test]
fn ten_steps_of_muon_are_within_the_cpus_budget() {
    ten_steps_are_within_the_cpus_budget("optimizer=muon", &[8, 32]);
}

fn ten_steps_are_within_the_cpus_budget(optimizer: &str, channels: &[usize]) {
    let root = tempfile::tempdir().unwrap();
    let mut keys = tiny(StageKind::Upsampler);
    keys.push(optimizer);
    let settings = config(StageKind::Upsampler, root.path(), "run", &keys);
    let net = UNet2DConfig {
        layers_per_block: 1,
        norm_num_groups: 4,
        dropout: 0.1,
        ..UNet2DConfig::upsampler(channels)
    };
    let Loaded { model, params } =
        Loaded::<UNet2DModel>::init(&net, 3, DType::F32, Device::Cpu).unwrap();
    let channels = [model.config().in_channels, model.config().out_channels];
    let drawn = |name: &str, channels: usize| {
        let mut x = Tensor::uninit([2, 8, 8, channels], DType::F32, Device::Cpu);
        tensor::ops::random::fill_normal(&mut x, &Draw::named(5, name, 0), 1.0).unwrap();
        x
    };
    let (x, target) = (drawn("x", channels[0]), drawn("target", channels[1]));
    // Noise of its own in every step, and dropout.
    let train = |params: Params, dtype: DType| {
        trained(params, settings.common(), |t| {
            let given = |x: &Tensor| x.cast(dtype).and_then(|x| x.to_device(t.device()));
            let steps = given(&Tensor::full([2], 17.0, DType::F32, Device::Cpu))?;
            let noise = t.scope("noise", || randn::randn(t, x.shape(), dtype))?;
            let x = autograd::ops::binary::add(t, &t.constant(given(&x)?), &noise)?;
            let y = model.forward(t, &x, &t.constant(steps), None)?;
            Ok(mse::mse(t, &y, &t.constant(given(&target)?), None)?)
        })
        .unwrap()
    };
    let own = |params: &Params| {
        let arena = params.arena().detach_copy().unwrap();
        Params::from_arena(params.layout().clone(), arena).unwrap()
    };
    let wide = params.cast(DType::F64).unwrap();
    let exact = train(own(&wide), DType::F64);
    let mut random = Random::new("training");
    let mut naive = vec![train(own(&params), DType::F32)];
    for _ in 0..2 {
        let values = Array {
            shape: wide.arena().dims().to_vec(),
            data: wide.arena().to_f64_vec().unwrap(),
        };
        let moved = moved_array(Precision::F32, &values, &mut random);
        let arena = Tensor::from_f64(&moved.data, wide.arena().shape(), DType::F64, Device::Cpu);
        let moved = Params::from_arena(wide.layout().clone(), arena).unwrap();
        naive.push(train(moved, DType::F64));
    }
    let got = train(params.to_device(gpu()).unwrap(), DType::F32);
    let worst = |a: &[f64], b: &[f64]| {
        let off = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        off.fold(0.0, |m, d| if d <= m { m } else { d })
    };
    for (i, what) in ["losses", "weights", "averages"].into_iter().enumerate() {
        let errors = naive.iter().map(|n| worst(&n[i], &exact[i]));
        let budget = 2.0 * errors.fold(0.0, f64::max) + 2.0 * F32_ULP * largest(&exact[i]);
        let used = worst(&got[i], &exact[i]) / budget.max(F64);
        eprintln!("{what}: {used:.2} of the budget");
        assert!(used <= 1.0, "{what} are {used:.2} of their budget off");
    }
}

/// A gradient that is not finite leaves weights, moments and average as they were, whatever the optimiser.
#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    for optimizer in ["optimizer=adamw", "optimizer=muon"] {
        let keys = [&tiny(StageKind::Upsampler)[..], &[optimizer]].concat();
        let settings = config(StageKind::Upsampler, root.path(), "run", &keys);
        let net = UNet2DConfig {
            layers_per_block: 1,
            norm_num_groups: 4,
            ..UNet2DConfig::upsampler(&[8, 32])
        };
        let Loaded { model, params } =
            Loaded::<UNet2DModel>::init(&net, 3, DType::F32, gpu()).unwrap();
        let mut training = Step::new(params, settings.common()).unwrap();
        let channels = model.config().in_channels;
        let arenas = |training: &Step| {
            let arenas = [
                training.params.arena(),
                &training.ema,
                &training.exp_avg,
                &training.exp_avg_sq,
            ];
            arenas.map(|arena| arena.to_f64_vec().unwrap())
        };
        let mut before = arenas(&training);
        for (step, factor) in [1.0, f64::INFINITY].into_iter().enumerate() {
            let outcome = training.take(step as u64, 1e-3, |t, _| {
                let given = |x: f64, shape: &[usize]| Tensor::full(shape, x, DTYPE, t.device());
                let x = t.constant(given(0.5, &[1, 8, 8, channels]));
                let y = model.forward(t, &x, &t.constant(given(17.0, &[1])), None)?;
                let y = autograd::ops::affine::affine(t, &y, factor, 0.0)?;
                let shape = y.tensor().dims().to_vec();
                Ok(mse::mse(t, &y, &t.constant(given(1.0, &shape)), None)?)
            });
            let after = arenas(&training);
            assert_eq!(outcome.is_ok(), factor.is_finite(), "{optimizer}");
            assert_eq!(after != before, factor.is_finite(), "{optimizer}");
            before = after;
        }
    }
}

/// What five steps of a stage lose, on a device.
fn losses<S: Stage>(mut stage: S, settings: &Config, device: Device) -> Vec<f64> {
    let mut params = Params::init(stage.layout().clone(), 0, DTYPE, device).unwrap();
    let never = Interrupt::default();
    stage.prepare(&mut params, true, &never).unwrap();
    let mut training = Step::new(params, settings.common()).unwrap();
    let mut losses = Vec::new();
    for step in 0..5 {
        let batches = [stage.batch().unwrap(), stage.batch().unwrap()];
        let mut numbers = Vec::new();
        let outcome = training
            .take(step, 1e-3, |t, pass| {
                let loss = stage.loss(t, &batches[pass.micro_step])?;
                numbers.push(loss.numbers);
                Ok(loss.total)
            })
            .unwrap();
        stage.constrain(&mut training.params).unwrap();
        for read in numbers {
            let numbers = read().unwrap();
            assert!(numbers.parts.iter().all(|(_, value)| value.is_finite()));
        }
        losses.push(outcome.loss);
    }
    assert_eq!(training.divergences(), 0, "a step asked for something else");
    losses
}

#[test]
fn every_stage_trains() {
    let root = prepared();
    for stage in StageKind::ALL {
        let settings = config(stage, root.path(), "run", &tiny(stage));
        let on = |device| match &settings {
            Config::Clip(c) => losses(Clip::new(c, 0).unwrap(), &settings, device),
            Config::Prior(c) => losses(Prior::new(c, 0, device).unwrap(), &settings, device),
            Config::Decoder(c) => losses(Decoder::new(c, 0, device).unwrap(), &settings, device),
            Config::Upsampler(c) => losses(Upsampler::new(c, 0).unwrap(), &settings, device),
        };
        let (cpu, sim) = (on(Device::Cpu), on(gpu()));
        let off = cpu.iter().zip(&sim).map(|(c, s)| ((c - s) / c).abs());
        let off = off.fold(0.0, f64::max);
        eprintln!("{stage}: losses {off:.1e} of themselves off");
        // Measured on the simulated GPU: CLIP 7e-7, prior 5e-6, decoder 7e-8, upsampler 4e-8. AdamW's first steps are as large
        // for a gradient of rounding errors as for any other, and hardware's special functions round otherwise.
        assert!(off < 1e-4, "{stage}: {cpu:?} on the CPU, {sim:?} on sim");
    }
    let mut keys = tiny(StageKind::Prior);
    keys.extend(["prior=autoregressive", "num_components=6", "num_buckets=8"]);
    let settings = config(StageKind::Prior, root.path(), "run", &keys);
    let Config::Prior(c) = &settings else {
        panic!("a prior stage has a prior configuration");
    };
    let on = |device| {
        losses(
            Autoregressive::new(c, 0, device).unwrap(),
            &settings,
            device,
        )
    };
    let (cpu, sim) = (on(Device::Cpu), on(gpu()));
    let off = cpu.iter().zip(&sim).map(|(c, s)| ((c - s) / c).abs());
    let off = off.fold(0.0, f64::max);
    eprintln!("autoregressive: losses {off:.1e} of themselves off");
    assert!(
        off < 1e-4,
        "autoregressive: {cpu:?} on the CPU, {sim:?} on sim"
    );
}

#[test]
fn a_run_on_the_simulated_gpu_stops_and_goes_on_with_the_same_bits() {
    let root = prepared();
    for sharpness in ["sam_rho=0", "sam_rho=0.05"] {
        let train = |run: &str, steps: &str, resume: Resume| {
            let run = format!("{sharpness}-{run}");
            let mut keys = tiny(StageKind::Clip);
            keys.extend(["checkpointing_steps=2", "logging_steps=1", steps, sharpness]);
            let settings = config(StageKind::Clip, root.path(), &run, &keys);
            trainer::train(&settings, &resume, gpu(), &Interrupt::default()).unwrap()
        };
        let whole = train("whole", "max_train_steps=4", Resume::No);
        train("parts", "max_train_steps=2", Resume::No);
        let parts = train("parts", "max_train_steps=4", Resume::Latest);
        let read = |model: &Path| std::fs::read(model.join("clip/model.safetensors")).unwrap();
        assert!(read(&whole) == read(&parts), "{sharpness}");
    }
}
