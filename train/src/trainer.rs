//! The training loop of one stage: steps, metrics, sample pictures, checkpoints, signals.
//!
//! A run is one directory: `config.toml` (resolved), `metrics.jsonl`, TensorBoard events, `samples/`, `checkpoints/`,
//! and, when it is finished, `model/` with the averaged weights.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use autograd::{Params, Tape};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use tensor::Device;

use crate::checkpoint::{Checkpoint, Store};
use crate::config::{Common, Config, PriorKind, StageKind};
use crate::interrupt::{self, Interrupt};
use crate::metrics::Metrics;
use crate::progress::{Progress, StepLine};
use crate::stages::autoregressive::Autoregressive;
use crate::stages::clip::Clip;
use crate::stages::decoder::Decoder;
use crate::stages::prior::Prior;
use crate::stages::upsampler::Upsampler;
use crate::stages::{DTYPE, Loss, Numbers, Stage};
use crate::step::{self, Step};
use crate::{Error, Result, files};

/// What to do where the run directory already holds checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Refuse: nothing is overwritten that was not asked for.
    No,
    /// Go on from the newest complete checkpoint.
    Latest,
    /// Go on from the newest complete checkpoint, or start where there is none.
    LatestIfAny,
    /// Go on from this checkpoint.
    From(PathBuf),
}

/// Position of a run: all that randomness and data order are functions of.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct State {
    stage: StageKind,
    /// Steps done.
    step: u64,
    seed: u64,
    /// Samples consumed.
    samples: u64,
}

/// The resolved configuration of a run.
pub const CONFIG: &str = "config.toml";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const AVERAGED: &str = "ema";

/// Trains the stage that `config` describes, from its beginning or from a checkpoint, to its last step; returns the
/// directory of the finished model. The network lives on `device`.
///
/// # Errors
/// Anything that goes wrong; a signal is an [`Error::Interrupted`] after a checkpoint was written.
pub fn train(
    config: &Config,
    resume: &Resume,
    device: Device,
    interrupt: &Interrupt,
) -> Result<PathBuf> {
    let run = Run::open(config, resume, device)?;
    if let Some(model) = run.finished()? {
        return Ok(model);
    }
    let position = run.start() * config.common().samples_per_step();
    match config {
        Config::Clip(c) => run.train(Clip::new(c, position)?, interrupt),
        Config::Prior(c) => match c.prior {
            PriorKind::Diffusion => run.train(Prior::new(c, position, device)?, interrupt),
            PriorKind::Autoregressive => {
                run.train(Autoregressive::new(c, position, device)?, interrupt)
            }
        },
        Config::Decoder(c) => run.train(Decoder::new(c, position, device)?, interrupt),
        Config::Upsampler(c) => run.train(Upsampler::new(c, position)?, interrupt),
    }
}

/// Seconds that one step of a stage takes on this machine, the median of a few steps that leave no trace but the model that
/// later stages need to be timed.
pub fn time_steps(config: &Config, interrupt: &Interrupt) -> Result<f64> {
    fn time<S: Stage>(mut stage: S, config: &Config, interrupt: &Interrupt) -> Result<f64> {
        let common = config.common();
        let params = Params::init(stage.layout().clone(), common.seed, DTYPE, Device::Cpu)?;
        let mut training = step_of(params, config)?;
        let batch = stage.batch()?;
        let mut seconds = Vec::new();
        for at in 0..TIMED_STEPS {
            interrupt.check()?;
            let began = Instant::now();
            training.take(at, 0.0, |t, _| Ok(stage.loss(t, &batch)?.total))?;
            // The first step allocates what the others reuse.
            if at > 0 {
                seconds.push(began.elapsed().as_secs_f64());
            }
        }
        let model = model_dir(Path::new(&common.output_dir));
        files::replace_dir(&model, |dir| stage.save(&training.params, dir))?;
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    }
    match config {
        Config::Clip(c) => time(Clip::new(c, 0)?, config, interrupt),
        Config::Prior(c) => match c.prior {
            PriorKind::Diffusion => time(Prior::new(c, 0, Device::Cpu)?, config, interrupt),
            PriorKind::Autoregressive => Err(Error::usage(
                "a plan is made for prior = \"diffusion\" only: `unclip train` trains the autoregressive one",
            )),
        },
        Config::Decoder(c) => time(Decoder::new(c, 0, Device::Cpu)?, config, interrupt),
        Config::Upsampler(c) => time(Upsampler::new(c, 0)?, config, interrupt),
    }
}

const TIMED_STEPS: u64 = 10;

fn step_of(params: Params, config: &Config) -> Result<Step> {
    Ok(Step::new(params, config.common())?.with_sharpness(config.sam_rho()))
}

/// Where a run's finished model lies.
pub fn model_dir(run: &Path) -> PathBuf {
    run.join("model")
}

struct Run<'a> {
    config: &'a Config,
    common: &'a Common,
    /// Where the network is trained.
    device: Device,
    dir: PathBuf,
    store: Store,
    from: Option<Checkpoint>,
    /// Held for as long as the run is worked on, by the operating system: a kill releases it.
    _lock: File,
}

impl<'a> Run<'a> {
    fn open(config: &'a Config, resume: &Resume, device: Device) -> Result<Run<'a>> {
        let common = config.common();
        let dir = PathBuf::from(&common.output_dir);
        files::create_dir(&dir)?;
        let lock = lock(&dir)?;
        let store = Store::new(dir.join("checkpoints"), common.checkpoints_total_limit);
        let warn = |warning: String| eprintln!("warning: {warning}");
        let from = match resume {
            Resume::From(path) => Some(Checkpoint::open(path)?),
            _ => store.latest(warn)?,
        };
        let again = format!(
            "add --resume latest to go on, or choose another output_dir than {}",
            dir.display()
        );
        match (resume, &from) {
            (Resume::No, Some(found)) => {
                return Err(Error::usage(format!(
                    "a run at step {} is already there; {again}",
                    found.step
                )));
            }
            (Resume::Latest, None) => {
                return Err(Error::usage(format!(
                    "{} holds no complete checkpoint to resume from: leave --resume out to start",
                    store.dir().display()
                )));
            }
            _ => {}
        }
        let resolved = config.to_toml()?;
        let kept = dir.join(CONFIG);
        if from.is_some() && kept.exists() {
            let before = Config::load(&kept, &[])?;
            for difference in before.differences(config)? {
                println!("changed since the last start: {difference}");
            }
        }
        files::replace(&kept, resolved.as_bytes())?;
        Ok(Run {
            config,
            common,
            device,
            store,
            from,
            dir,
            _lock: lock,
        })
    }

    /// The model of a run that has done all its steps.
    fn finished(&self) -> Result<Option<PathBuf>> {
        let (start, steps) = (self.start(), self.common.max_train_steps);
        if start > steps {
            return Err(Error::usage(format!(
                "{} is at step {start} already, beyond max_train_steps = {steps}: raise it or choose another output_dir",
                self.dir.display()
            )));
        }
        let model = model_dir(&self.dir);
        Ok((start == steps && model.is_dir()).then_some(model))
    }

    /// Steps done so far.
    fn start(&self) -> u64 {
        self.from.as_ref().map_or(0, |c| c.step)
    }

    fn train<S: Stage>(&self, mut stage: S, interrupt: &Interrupt) -> Result<PathBuf> {
        let Common {
            max_train_steps: steps,
            seed,
            ..
        } = *self.common;
        let start = self.start();
        println!(
            "{}: {} parameters, steps {start} to {steps}, {} samples a step, into {}",
            self.config.stage(),
            stage.layout().parameters(),
            self.common.samples_per_step(),
            self.dir.display()
        );
        let mut training = match &self.from {
            Some(checkpoint) => self.resumed(&mut stage, checkpoint, interrupt)?,
            None => {
                let mut params = Params::init(stage.layout().clone(), seed, DTYPE, self.device)?;
                stage.prepare(&mut params, true, interrupt)?;
                step_of(params, self.config)?
            }
        };
        let rate = self.common.learning_rate();
        let mut metrics = Metrics::open(&self.dir, start)?;
        let mut progress = Progress::new(self.config.stage().name(), steps, start);
        let mut window = Window::default();
        let mut saved = start;
        for at in start..steps {
            if let Some(signal) = interrupt.signal() {
                self.save(&stage, &training, at, &mut saved)?;
                return Err(self.interrupted(signal, at));
            }
            let began = Instant::now();
            let mut batches = Vec::new();
            for _ in 0..self.common.gradient_accumulation_steps {
                batches.push(stage.batch()?);
            }
            let waited = began.elapsed().as_secs_f64();
            let mut numbers = Vec::new();
            let outcome = training.take(at, rate.at(at), |t: &Tape, pass| {
                let Loss { total, numbers: of } = stage.loss(t, &batches[pass.micro_step])?;
                // What is shown is of the weights as they are.
                if !pass.moved {
                    // A step may be taken again.
                    numbers.truncate(pass.micro_step);
                    numbers.push(of);
                }
                Ok(total)
            })?;
            let numbers = numbers
                .into_iter()
                .map(|numbers| numbers())
                .collect::<Result<_>>()?;
            stage.constrain(&mut training.params)?;
            window.add(outcome, numbers, began.elapsed().as_secs_f64(), waited);

            let done = at + 1;
            let logs = done % self.common.logging_steps == 0 || done == steps;
            let line = window.line(done, steps, rate.at(at), self.common.samples_per_step());
            progress.set(done, || line.short());
            if logs {
                progress.step_line(&line.to_string());
                metrics.write(done, &window.scalars(&line))?;
                window = Window::default();
            }
            if done % self.common.validation_steps == 0 || done == steps {
                match self.sample(&stage, &training, done, interrupt) {
                    // The signal is met at the top of the loop, where the step is saved.
                    Err(Error::Interrupted { .. }) => {}
                    other => other?,
                }
            }
            if done % self.common.checkpointing_steps == 0 || done == steps {
                self.save(&stage, &training, done, &mut saved)?;
            }
        }
        drop(progress);
        self.finish(&stage, &training, interrupt)
    }

    fn interrupted(&self, signal: i32, at: u64) -> Error {
        Error::Interrupted {
            signal,
            saved: format!(
                "stopped by {} at step {at} of {}; everything is saved under {}, and --resume latest (or the same \
                 demo command) goes on",
                interrupt::name(signal),
                self.common.max_train_steps,
                self.dir.display()
            ),
        }
    }

    fn sample<S: Stage>(
        &self,
        stage: &S,
        training: &Step,
        done: u64,
        interrupt: &Interrupt,
    ) -> Result<()> {
        if let Some(picture) = stage.samples(&training.averaged()?, interrupt)? {
            let path = self.dir.join(format!("samples/step-{done:08}.png"));
            picture.save(&path, &[])?;
        }
        Ok(())
    }

    /// Writes a checkpoint of `done` steps, unless there is one.
    fn save<S: Stage>(&self, stage: &S, training: &Step, done: u64, saved: &mut u64) -> Result<()> {
        if *saved == done {
            return Ok(());
        }
        let state = State {
            stage: self.config.stage(),
            step: done,
            seed: self.common.seed,
            samples: done * self.common.samples_per_step(),
        };
        self.store.save(done, |dir| {
            stage.save(&training.params, dir)?;
            stage.save(&training.averaged()?, &dir.join(AVERAGED))?;
            write_moments(training, &dir.join(OPTIMIZER))?;
            let text = serde_json::to_string_pretty(&state)
                .map_err(|e| Error::failure(format!("cannot write {STATE}: {e}")))?;
            files::replace(&dir.join(STATE), text.as_bytes())
        })?;
        *saved = done;
        Ok(())
    }

    fn resumed<S: Stage>(
        &self,
        stage: &mut S,
        checkpoint: &Checkpoint,
        interrupt: &Interrupt,
    ) -> Result<Step> {
        let dir = &checkpoint.dir;
        let path = dir.join(STATE);
        let text = fs::read(&path).map_err(Error::io("read", &path))?;
        let state: State = serde_json::from_slice(&text)
            .map_err(|e| Error::failure(format!("{}: {e}", path.display())))?;
        let expected = State {
            stage: self.config.stage(),
            step: checkpoint.step,
            seed: self.common.seed,
            samples: checkpoint.step * self.common.samples_per_step(),
        };
        if state != expected {
            return Err(Error::usage(format!(
                "{} is of stage {}, seed {} and {} samples; this configuration is of stage {}, seed {} and {} samples \
                 at that step: go on with the configuration it was trained with",
                dir.display(),
                state.stage,
                state.seed,
                state.samples,
                expected.stage,
                expected.seed,
                expected.samples
            )));
        }
        let mut params = stage.load(dir)?.to_device(self.device)?;
        stage.prepare(&mut params, false, interrupt)?;
        let mut training = step_of(params, self.config)?;
        let averaged = stage.load(&dir.join(AVERAGED))?.to_device(self.device)?;
        training.ema = averaged.arena().detach_copy()?;
        read_moments(&mut training, &dir.join(OPTIMIZER))?;
        println!("goes on from {}", dir.display());
        Ok(training)
    }

    /// Puts the averaged weights where the next stage looks for them.
    fn finish<S: Stage>(
        &self,
        stage: &S,
        training: &Step,
        interrupt: &Interrupt,
    ) -> Result<PathBuf> {
        let target = model_dir(&self.dir);
        let averaged = training.averaged()?;
        files::replace_dir(&target, |dir| {
            stage.save(&averaged, dir)?;
            stage.conclude(&averaged, dir, interrupt)
        })?;
        Ok(target)
    }
}

/// Claims a run directory for this process.
fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(".lock");
    let file = File::create(&path).map_err(Error::io("write", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::usage(format!(
            "another process is training in {}: stop it or choose another output_dir",
            dir.display()
        ))),
        // Some network file systems have no locks; that is no reason not to train on them.
        Err(fs::TryLockError::Error(_)) => Ok(file),
    }
}

fn write_moments(training: &Step, path: &Path) -> Result<()> {
    let len = [training.exp_avg.len()];
    let view = |values: &'static str, tensor: &tensor::Tensor| -> Result<(&'static str, Vec<u8>)> {
        let host = tensor.to_host()?;
        Ok((
            values,
            bytemuck::cast_slice(host.as_slice::<f32>()?).to_vec(),
        ))
    };
    let arenas = [
        view("exp_avg", &training.exp_avg)?,
        view("exp_avg_sq", &training.exp_avg_sq)?,
    ];
    let bad = |e: safetensors::SafeTensorError| Error::failure(format!("{}: {e}", path.display()));
    let views: Vec<(&str, TensorView)> = arenas
        .iter()
        .map(|(name, bytes)| Ok((*name, TensorView::new(Dtype::F32, len.to_vec(), bytes)?)))
        .collect::<Result<_, _>>()
        .map_err(bad)?;
    let bytes = safetensors::serialize(views, None).map_err(bad)?;
    files::replace(path, &bytes)
}

fn read_moments(training: &mut Step, path: &Path) -> Result<()> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let bad = |e: safetensors::SafeTensorError| Error::failure(format!("{}: {e}", path.display()));
    let stored = SafeTensors::deserialize(&bytes).map_err(bad)?;
    for (name, arena) in [
        ("exp_avg", &mut training.exp_avg),
        ("exp_avg_sq", &mut training.exp_avg_sq),
    ] {
        let view = stored.tensor(name).map_err(bad)?;
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(view.data());
        *arena = step::arena(&values, arena.len(), arena.device()).ok_or_else(|| {
            Error::failure(format!(
                "{}: {name} has {} numbers, this network needs {}",
                path.display(),
                values.len(),
                arena.len()
            ))
        })?;
    }
    Ok(())
}

/// What happened since the last line of metrics.
#[derive(Default)]
struct Window {
    steps: f64,
    loss: f64,
    norm: f64,
    seconds: f64,
    waited: f64,
    parts: Vec<(&'static str, f64, f64)>,
    /// Sum and count for each quarter of the time steps.
    quartiles: [(f64, f64); 4],
}

/// Time steps of every stage's schedule.
const TIME_STEPS: usize = 1000;

impl Window {
    fn add(&mut self, outcome: step::Outcome, numbers: Vec<Numbers>, seconds: f64, waited: f64) {
        self.steps += 1.0;
        self.loss += outcome.loss;
        self.norm += outcome.norm;
        self.seconds += seconds;
        self.waited += waited;
        for Numbers { parts, by_time } in numbers {
            for (name, value) in parts {
                match self.parts.iter_mut().find(|p| p.0 == name) {
                    Some((_, sum, count)) => {
                        *sum += value;
                        *count += 1.0;
                    }
                    None => self.parts.push((name, value, 1.0)),
                }
            }
            for (time, error) in by_time {
                let (sum, count) = &mut self.quartiles[(time * 4 / TIME_STEPS).min(3)];
                *sum += error;
                *count += 1.0;
            }
        }
    }

    fn line(&self, step: u64, steps: u64, lr: f64, samples_per_step: u64) -> StepLine {
        let seconds = self.seconds / self.steps;
        StepLine {
            step,
            steps,
            loss: self.loss / self.steps,
            norm: self.norm / self.steps,
            lr,
            seconds_per_step: seconds,
            samples_per_second: samples_per_step as f64 / seconds,
        }
    }

    fn scalars(&self, line: &StepLine) -> Vec<(&'static str, f64)> {
        let mut scalars = vec![
            ("loss", line.loss),
            ("grad_norm", line.norm),
            ("lr", line.lr),
            ("step_seconds", line.seconds_per_step),
            ("samples_per_second", line.samples_per_second),
            ("data_wait_share", self.waited / self.seconds),
        ];
        scalars.extend(
            self.parts
                .iter()
                .map(|(name, sum, count)| (*name, sum / count)),
        );
        for (name, (sum, count)) in ["loss_q0", "loss_q1", "loss_q2", "loss_q3"]
            .into_iter()
            .zip(self.quartiles)
        {
            if count > 0.0 {
                scalars.push((name, sum / count));
            }
        }
        scalars
    }
}
