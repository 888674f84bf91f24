//! The whole stack in one go: data → CLIP → prior → decoder → upsampler → accuracy table → pictures.
//!
//! Every phase keeps what it finished, so that the same command goes on where it was stopped; what the run will do is
//! decided once, in `plan.json`.

mod page;
pub mod plan;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use models::pipeline::{Given, Pipeline, SeededNoise};
use models::weights::Precision;
use tensor::Device;

use crate::assemble::{Runs, assemble};
use crate::checkpoint::tree_hash;
use crate::config::StageKind;
use crate::data::shapes::shards::{MakeShapes, make_shapes};
use crate::data::shapes::{Split, prompts};
use crate::eval::{Questions, Start, Table, evaluate};
use crate::interrupt::Interrupt;
use crate::picture::Picture;
use crate::progress::{Progress, clock};
use crate::sampling::{self, Sampling};
use crate::stages::{DTYPE, source};
use crate::trainer::{self, Resume, model_dir};
use crate::{Error, Result, files};
use plan::{Plan, Settings};

/// Where the demo lives unless told otherwise.
pub const DEFAULT_DIR: &str = "runs/demo";

/// What a user can change.
#[derive(Clone, Debug)]
pub struct Request {
    pub dir: PathBuf,
    pub minutes: Option<f64>,
    /// Own captioned pictures in place of the shapes.
    pub data: Option<String>,
    /// A plan to follow in place of measuring.
    pub plan: Option<PathBuf>,
    pub seed: u64,
}

/// Runs the demo, or what is left of it.
pub fn run(request: &Request, interrupt: &Interrupt) -> Result<()> {
    let began = Instant::now();
    let dir = &request.dir;
    files::create_dir(dir)?;
    let settings = Settings::embedded()?;
    let (plan, data) = planned(request, &settings, interrupt)?;
    for planned in &plan.stages {
        println!(
            "plan: {} {} steps, about {}",
            planned.stage,
            planned.steps,
            clock(Duration::from_secs_f64(
                planned.steps as f64 * planned.seconds_per_step
            ))
        );
    }
    for stage in StageKind::ALL {
        let config = plan.config(stage, dir, &data)?;
        trainer::train(&config, &Resume::LatestIfAny, Device::Cpu, interrupt)?;
    }
    let model = assembled(dir, &settings.sampling)?;
    let hash = tree_hash(&model)?;
    let pipeline = Pipeline::load(&model, DTYPE, Device::Cpu)?;
    let sampling = Sampling::of_model(&(&model).into())?;
    samples(&plan, dir, &data, &pipeline, &sampling, interrupt)?;
    let table = match plan.data {
        None if plan.eval_prompts > 0 => Some(accuracy(
            &plan, dir, &pipeline, &sampling, &hash, interrupt,
        )?),
        // No program can read what the user's pictures show.
        _ => None,
    };
    page::write(dir, &plan, table.as_ref(), &hash)?;
    if let Some(table) = &table {
        println!("{table}");
    }
    println!("weights {hash} in {}", model.display());
    println!(
        "done in {}: {} and {}",
        clock(began.elapsed()),
        dir.join("samples.png").display(),
        dir.join("index.html").display()
    );
    Ok(())
}

/// The plan, made and written if there is none, and the data that it is for.
fn planned(
    request: &Request,
    settings: &Settings,
    interrupt: &Interrupt,
) -> Result<(Plan, String)> {
    let path = request.dir.join("plan.json");
    let kept = Plan::read(&path)?;
    let given = match &request.plan {
        Some(path) => Some(
            Plan::read(path)?
                .ok_or_else(|| Error::usage(format!("there is no plan at {}", path.display())))?,
        ),
        None => None,
    };
    if let (Some(kept), Some(given)) = (&kept, &given)
        && kept != given
    {
        return Err(Error::usage(format!(
            "{} was started with another plan; leave --plan out to go on, or choose another directory with --output",
            request.dir.display()
        )));
    }
    if let (Some(kept), Some(data)) = (&kept, &request.data)
        && kept.data.as_ref() != Some(data)
    {
        return Err(Error::usage(format!(
            "{} was started with other data; leave --data out to go on, or choose another directory with --output",
            request.dir.display()
        )));
    }
    let known = kept.or(given);
    let own = match &known {
        Some(plan) => plan.data.clone(),
        None => request.data.clone(),
    };
    let pictures = known.as_ref().map_or(settings.pictures, |p| p.pictures);
    let seed = known.as_ref().map_or(request.seed, |p| p.seed);
    let data = match &own {
        Some(data) => data.clone(),
        None => shapes(&request.dir, pictures, seed)?,
    };
    let plan = match known {
        Some(plan) => plan,
        None => plan::measure(
            settings,
            request.minutes.unwrap_or(settings.minutes),
            seed,
            own.as_deref(),
            &data,
            &request.dir.join(".timing"),
            interrupt,
        )?,
    };
    plan.save(&path)?;
    Ok((plan, data))
}

/// Makes the shapes, or finds them made.
fn shapes(dir: &Path, pictures: usize, seed: u64) -> Result<String> {
    let out = dir.join("data");
    let options = MakeShapes {
        seed,
        ..MakeShapes::new(&out, pictures)
    };
    let mut progress = Progress::new("shapes", pictures as u64, 0);
    make_shapes(&options, |done| progress.count(done as u64))?;
    Ok(out.display().to_string())
}

fn assembled(dir: &Path, sampling: &Sampling) -> Result<PathBuf> {
    let target = model_dir(dir);
    let runs = Runs {
        clip: &dir.join(StageKind::Clip.name()),
        prior: &dir.join(StageKind::Prior.name()),
        decoder: &dir.join(StageKind::Decoder.name()),
        upsampler: &dir.join(StageKind::Upsampler.name()),
        second_upsampler: None,
    };
    assemble(&runs, sampling, Precision::Full, &target)?;
    Ok(target)
}

/// Pictures of the first page.
const SAMPLES: usize = 24;
const COLUMNS: usize = 6;

/// Writes `samples.png`: pictures of captions, seen and held out, or of the user's own.
fn samples(
    plan: &Plan,
    dir: &Path,
    data: &str,
    pipeline: &Pipeline,
    sampling: &Sampling,
    interrupt: &Interrupt,
) -> Result<()> {
    let captions: Vec<String> = match &plan.data {
        None => [
            (Split::Seen, 1, 9),
            (Split::HeldOut, 1, 6),
            (Split::Seen, 2, 6),
            (Split::HeldOut, 2, 3),
        ]
        .into_iter()
        .flat_map(|(split, objects, count)| prompts(split, objects, count, plan.seed))
        .map(|scene| scene.caption(0))
        .collect(),
        Some(_) => {
            let config = plan.config(StageKind::Clip, dir, data)?;
            let dataset = source::open(config.common())?;
            dataset.captions(SAMPLES as u64)?
        }
    };
    let noise = SeededNoise {
        seed: plan.seed,
        first_image: 0,
        device: Device::Cpu,
    };
    let fitting: Vec<&str> = captions
        .iter()
        .map(String::as_str)
        .filter(|caption| pipeline.tokenizer.encode(caption).is_ok())
        .collect();
    let made = sampling::generate(
        pipeline,
        &fitting,
        Given::Text,
        sampling,
        &noise,
        interrupt,
        |_| Ok(()),
    )?;
    let pictures: Vec<Picture> = made.pictures.into_iter().map(Picture::from).collect();
    let captions: Vec<String> = fitting.iter().map(|&c| c.to_owned()).collect();
    Picture::grid(&pictures, &captions, COLUMNS, 128).save(&dir.join("samples.png"), &[])
}

/// The accuracy table, kept for as long as the weights are the same.
fn accuracy(
    plan: &Plan,
    dir: &Path,
    pipeline: &Pipeline,
    sampling: &Sampling,
    hash: &str,
    interrupt: &Interrupt,
) -> Result<Table> {
    let path = dir.join("eval.json");
    let of = dir.join("eval.weights");
    let current = std::fs::read_to_string(&of).is_ok_and(|text| text == hash);
    if let (true, Some(table)) = (current, Table::read(&path)?) {
        return Ok(table);
    }
    let questions = Questions {
        prompts: plan.eval_prompts,
        seeds: 1,
        start: Start::Caption,
    };
    let table = evaluate(pipeline, None, sampling, &questions, interrupt)?;
    table.save(&path)?;
    files::replace(&of, hash.as_bytes())?;
    Ok(table)
}
