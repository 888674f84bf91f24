//! Every stage, tiny: it can learn a batch by heart, and a run that stops and goes on ends with the bits of one that
//! did not.

use std::path::Path;

use autograd::{Device, Params};
use models::diffusion::SchedulerConfig;
use models::unet::{UNet2DConfig, UNet2DModel};
use models::{Folder, declare, weights};
use train::config::{Config, StageKind};
use train::data::shapes::shards::{MakeShapes, make_shapes};
use train::files;
use train::interrupt::Interrupt;
use train::stages::autoregressive::Autoregressive;
use train::stages::clip::Clip;
use train::stages::decoder::Decoder;
use train::stages::prior::Prior;
use train::stages::upsampler::Upsampler;
use train::stages::{DTYPE, Stage};
use train::step::Step;
use train::trainer::{self, Resume};

/// Keys of networks that take a step in milliseconds.
fn tiny(stage: StageKind) -> Vec<&'static str> {
    let mut keys = vec![
        "resolution=16",
        "train_batch_size=4",
        "lr_warmup_steps=2",
        "checkpointing_steps=5",
        "logging_steps=1",
        "validation_steps=1000",
    ];
    keys.extend(match stage {
        StageKind::Clip => vec![
            "vocab_size=560",
            "image_size=16",
            "patch_size=4",
            "projection_dim=16",
            "text_layers=1",
            "text_heads=2",
            "vision_hidden_size=16",
            "vision_layers=1",
            "vision_heads=2",
        ],
        StageKind::Prior => vec![
            "num_layers=1",
            "num_attention_heads=2",
            "attention_head_dim=8",
            "whitening_samples=8",
        ],
        StageKind::Decoder => vec![
            "sample_size=8",
            "block_out_channels=[8, 16]",
            "attention_levels=1",
            "attention_head_dim=8",
            "cross_attention_dim=8",
            "extra_context_tokens=2",
            "norm_num_groups=4",
        ],
        StageKind::Upsampler => vec![
            "sample_size=16",
            "low_size=4",
            "crop_size=8",
            "block_out_channels=[8, 8]",
            "norm_num_groups=4",
        ],
    });
    keys
}

fn config(stage: StageKind, root: &Path, run: &str, more: &[&str]) -> Config {
    let mut overrides: Vec<String> = tiny(stage).into_iter().map(String::from).collect();
    overrides.push(format!("data={}", root.join("data").display()));
    overrides.push(format!("output_dir={}", root.join(run).display()));
    if matches!(stage, StageKind::Prior | StageKind::Decoder) {
        overrides.push(format!("clip={}", root.join("clip").display()));
    }
    overrides.extend(more.iter().map(|s| s.to_string()));
    Config::defaults(stage, &overrides).unwrap()
}

/// The other prior, tiny too.
const AUTOREGRESSIVE: [&str; 4] = [
    "prior=autoregressive",
    "num_components=6",
    "num_buckets=8",
    "evaluation_samples=5",
];

/// The second upsampler.
const BSR: [&str; 2] = ["degradation=bsr", "beta_schedule=linear"];

/// A folder with a few shapes and a CLIP that was hardly trained.
fn prepared() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let shapes = MakeShapes {
        size: 16,
        ..MakeShapes::new(root.path().join("data"), 12)
    };
    make_shapes(&shapes, |_| {}).unwrap();
    let clip = config(StageKind::Clip, root.path(), "clip", &["max_train_steps=2"]);
    trainer::train(&clip, &Resume::No, Device::Cpu, &Interrupt::default()).unwrap();
    root
}

/// The losses of the first and the last of `steps` steps that all see one batch under the same noise.
fn by_heart<S: Stage>(mut stage: S, config: &Config, steps: usize) -> (f64, f64) {
    let layout = stage.layout().clone();
    let mut params = Params::init(layout, 0, DTYPE, Device::Cpu).unwrap();
    stage
        .prepare(&mut params, true, &Interrupt::default())
        .unwrap();
    let batch = stage.batch().unwrap();
    let mut training = Step::new(params, config.common()).unwrap();
    let mut losses = Vec::new();
    for _ in 0..steps {
        // Step 0 each time: the same counters, so the same noise.
        let outcome = training
            .take(0, 3e-3, |t, _| Ok(stage.loss(t, &batch)?.total))
            .unwrap();
        stage.constrain(&mut training.params).unwrap();
        losses.push(outcome.loss);
    }
    (losses[0], losses[steps - 1])
}

#[test]
fn every_stage_learns_one_batch_by_heart() {
    let root = prepared();
    for stage in StageKind::ALL {
        let config = config(stage, root.path(), "heart", &[]);
        let (first, last) = match &config {
            Config::Clip(c) => by_heart(Clip::new(c, 0).unwrap(), &config, 150),
            Config::Prior(c) => by_heart(Prior::new(c, 0, Device::Cpu).unwrap(), &config, 150),
            Config::Decoder(c) => by_heart(Decoder::new(c, 0, Device::Cpu).unwrap(), &config, 300),
            Config::Upsampler(c) => by_heart(Upsampler::new(c, 0).unwrap(), &config, 300),
        };
        assert!(last < 0.2 * first, "{stage}: {first} → {last}");
    }
    let config = config(StageKind::Prior, root.path(), "heart", &AUTOREGRESSIVE);
    let Config::Prior(c) = &config else {
        panic!("a prior stage has a prior configuration");
    };
    let stage = Autoregressive::new(c, 0, Device::Cpu).unwrap();
    let (first, last) = by_heart(stage, &config, 150);
    assert!(last < 0.2 * first, "autoregressive: {first} → {last}");
}

#[test]
fn resume_is_bit_equal_over_ten_steps() {
    let root = prepared();
    let variants = StageKind::ALL.map(|stage| (stage, "plain", &[][..]));
    // What stages can do beyond their defaults.
    let more = [
        (StageKind::Clip, "sam", &["sam_rho=0.05"][..]),
        (StageKind::Prior, "autoregressive", &AUTOREGRESSIVE[..]),
        (StageKind::Upsampler, "bsr", &BSR[..]),
    ];
    for (stage, variant, keys) in variants.into_iter().chain(more) {
        let train = |run: &str, steps: &str, resume: Resume| {
            let steps = format!("max_train_steps={steps}");
            // A constant rate: the cosine would depend on where a run is told to end.
            let common = [
                steps.as_str(),
                "lr_scheduler=constant",
                "gradient_accumulation_steps=2",
            ];
            let config = config(stage, root.path(), run, &[&common, keys].concat());
            trainer::train(&config, &resume, Device::Cpu, &Interrupt::default()).unwrap()
        };
        let [whole, parts] = ["whole", "parts"].map(|run| format!("{stage}-{variant}-{run}"));
        train(&whole, "15", Resume::No);
        train(&parts, "5", Resume::No);
        train(&parts, "15", Resume::Latest);
        let last = |run: &str| root.path().join(run).join("checkpoints/step-00000015");
        let (a, b) = (last(&whole), last(&parts));
        let names = files::walk(&a).unwrap();
        assert_eq!(names, files::walk(&b).unwrap());
        for name in names {
            let read = |dir: &Path| std::fs::read(dir.join(&name)).unwrap();
            let differs = format!("{stage}, {variant}: {} differs", name.display());
            assert!(read(&a) == read(&b), "{differs}");
        }
    }
}

#[test]
fn a_finished_prior_measures_the_variance_of_its_steps() {
    let root = prepared();
    let scheduler = |run: &str, samples: &str| {
        let keys = ["max_train_steps=3", samples];
        let config = config(StageKind::Prior, root.path(), run, &keys);
        let model =
            trainer::train(&config, &Resume::No, Device::Cpu, &Interrupt::default()).unwrap();
        let dir = Folder::from(&model).join("prior_scheduler");
        weights::load_scheduler(&dir).unwrap()
    };
    let measured = scheduler("measured", "variance_samples=5");
    let error = measured.analytic_variance.as_ref().unwrap().x0_error();
    assert_eq!(error.len(), 1000);
    // Of whitened embeddings every guess within their range errs by less than 4, and none is right.
    assert!(error.iter().all(|e| *e > 0.0 && *e < 4.0), "{error:?}");
    assert_eq!(measured, scheduler("again", "variance_samples=5"));
    assert_eq!(
        scheduler("plain", "variance_samples=0"),
        SchedulerConfig::prior()
    );
}

/// What was trained on worn pictures is another network than what was not, and a crop that begins inside a small pixel is
/// refused.
#[test]
fn an_upsampler_learns_from_worn_pictures() {
    let root = prepared();
    let loss = |keys: &[&str]| {
        let config = config(StageKind::Upsampler, root.path(), "worn", keys);
        let Config::Upsampler(c) = &config else {
            panic!("an upsampler stage has an upsampler configuration");
        };
        Ok::<_, train::Error>(by_heart(Upsampler::new(c, 0)?, &config, 300))
    };
    let (first, last) = loss(&BSR).unwrap();
    assert!(last < 0.2 * first, "{first} → {last}");
    assert_ne!((first, last), loss(&[]).unwrap());
    let said = loss(&["degradation=bsr", "crop_size=7"])
        .unwrap_err()
        .to_string();
    assert!(said.contains("must be a multiple of"), "{said}");
}

/// The paper's second upsampler: the size that its table says.
#[test]
fn the_configuration_of_the_second_upsampler_is_the_papers() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/upsampler_1024.toml");
    let config = Config::load(&file, &[]).unwrap();
    assert_eq!(config.common().samples_per_step(), 512);
    let Config::Upsampler(c) = &config else {
        panic!("it is an upsampler");
    };
    let (_, layout) = declare::<UNet2DModel>(&UNet2DConfig {
        layers_per_block: c.layers_per_block,
        ..UNet2DConfig::upsampler(&c.block_out_channels)
    })
    .unwrap();
    // The paper says 300 million.
    assert_eq!(layout.parameters() / 1_000_000, 267);
}

#[test]
fn a_run_is_not_overwritten_and_not_resumed_from_nothing() {
    let root = prepared();
    let config = config(StageKind::Clip, root.path(), "clip", &["max_train_steps=9"]);
    let said = |resume: Resume, config: &Config| {
        trainer::train(config, &resume, Device::Cpu, &Interrupt::default())
            .unwrap_err()
            .to_string()
    };
    assert!(said(Resume::No, &config).contains("add --resume latest"));
    let mut elsewhere = config.clone();
    elsewhere.common_mut().output_dir = root.path().join("new").display().to_string();
    assert!(said(Resume::Latest, &elsewhere).contains("no complete checkpoint"));
    let mut reseeded = config.clone();
    reseeded.common_mut().seed = 5;
    assert!(said(Resume::Latest, &reseeded).contains("seed 0"));
    let missing = root.path().join("clip/checkpoints/step-00000099");
    assert!(said(Resume::From(missing), &config).contains("no complete checkpoint"));
}

#[test]
fn a_loss_that_is_not_finite_names_op_and_module_and_keeps_the_weights() {
    let root = prepared();
    let config = config(StageKind::Clip, root.path(), "nan", &[]);
    let Config::Clip(clip) = &config else {
        panic!("a clip stage has a clip configuration");
    };
    let mut stage = Clip::new(clip, 0).unwrap();
    let mut params = Params::init(stage.layout().clone(), 0, DTYPE, Device::Cpu).unwrap();
    let name = "vision_model.encoder.layers.0.mlp.fc1.weight";
    let broken = params.layout().find(name).unwrap();
    let mut value = params.get(broken).unwrap().detach_copy().unwrap();
    value.as_mut_slice::<f32>().unwrap()[3] = f32::NAN;
    params.set(broken, &value).unwrap();
    let batch = stage.batch().unwrap();
    let mut training = Step::new(params, config.common()).unwrap();
    let before = training.params.arena().detach_copy().unwrap();
    let said = training
        .take(7, 1e-3, |t, _| Ok(stage.loss(t, &batch)?.total))
        .unwrap_err()
        .to_string();
    assert!(said.contains("not finite at step 7"), "{said}");
    assert!(said.contains("matmul") || said.contains("linear"), "{said}");
    assert!(said.contains("vision_model.encoder.layers.0"), "{said}");
    assert!(training.params.arena().bit_equal(&before));
}
