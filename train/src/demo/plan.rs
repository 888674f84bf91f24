//! What a demo run will do: decided once, before its first step, and kept in the run.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{Config, StageKind};
use crate::interrupt::Interrupt;
use crate::{Error, Result, files, trainer};

/// Shares of the training time, and what else the demo fixes.
const SETTINGS: &str = include_str!("../../configs/demo.toml");

/// `configs/demo.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub minutes: f64,
    pub pictures: usize,
    pub share_clip: f64,
    pub share_prior: f64,
    pub share_decoder: f64,
    pub share_upsampler: f64,
    pub eval_prompts: usize,
    pub sampling: crate::sampling::Sampling,
}

impl Settings {
    pub fn embedded() -> Result<Settings> {
        toml::from_str(SETTINGS)
            .map_err(|e| Error::failure(format!("the embedded demo.toml is broken: {e}")))
    }

    fn share(&self, stage: StageKind) -> f64 {
        match stage {
            StageKind::Clip => self.share_clip,
            StageKind::Prior => self.share_prior,
            StageKind::Decoder => self.share_decoder,
            StageKind::Upsampler => self.share_upsampler,
        }
    }
}

/// Everything that decides the outcome of a demo run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub seed: u64,
    /// The user's own data; `None` for shapes.
    pub data: Option<String>,
    /// Shapes to make.
    pub pictures: usize,
    /// Prompts of each kind that the evaluation asks.
    pub eval_prompts: usize,
    pub stages: Vec<Planned>,
}

/// One stage of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    pub stage: StageKind,
    pub steps: u64,
    /// Seconds that a step took when the plan was made.
    pub seconds_per_step: f64,
    /// Keys that differ from the stage's defaults, as `key=value`.
    #[serde(default)]
    pub overrides: Vec<String>,
}

impl Plan {
    pub fn read(path: &Path) -> Result<Option<Plan>> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
                Error::failure(format!(
                    "{}: {e}; remove the file to plan anew, which starts the demo over",
                    path.display()
                ))
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", path)(e)),
        }
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::failure(format!("cannot write the plan: {e}")))?;
        files::replace(path, format!("{text}\n").as_bytes())
    }

    pub fn stage(&self, stage: StageKind) -> Result<&Planned> {
        self.stages
            .iter()
            .find(|p| p.stage == stage)
            .ok_or_else(|| {
                Error::usage(format!("the plan has no {stage} stage; it needs all four"))
            })
    }

    /// The configuration of a stage whose runs lie in `dir`.
    pub fn config(&self, stage: StageKind, dir: &Path, data: &str) -> Result<Config> {
        let planned = self.stage(stage)?;
        let place = |name: &str| dir.join(name).display().to_string();
        let mut overrides = planned.overrides.clone();
        overrides.extend([
            format!("data={data}"),
            format!("output_dir={}", place(stage.name())),
            format!("seed={}", self.seed),
            format!("max_train_steps={}", planned.steps),
        ]);
        if matches!(stage, StageKind::Prior | StageKind::Decoder) {
            overrides.push(format!("clip={}", place(StageKind::Clip.name())));
        }
        Config::defaults(stage, &overrides)
    }
}

/// Turns minutes into step counts, by timing a few steps of every stage on this machine.
pub fn measure(
    settings: &Settings,
    minutes: f64,
    seed: u64,
    own_data: Option<&str>,
    data: &str,
    scratch: &Path,
    interrupt: &Interrupt,
) -> Result<Plan> {
    let mut plan = Plan {
        seed,
        data: own_data.map(str::to_owned),
        pictures: settings.pictures,
        eval_prompts: settings.eval_prompts,
        stages: StageKind::ALL
            .map(|stage| Planned {
                stage,
                steps: 1,
                seconds_per_step: 0.0,
                overrides: Vec::new(),
            })
            .to_vec(),
    };
    for i in 0..plan.stages.len() {
        let stage = plan.stages[i].stage;
        let config = plan.config(stage, scratch, data)?;
        let seconds = trainer::time_steps(&config, interrupt)?;
        let steps = (minutes * 60.0 * settings.share(stage) / seconds).round();
        let planned = &mut plan.stages[i];
        planned.seconds_per_step = seconds;
        planned.steps = (steps as u64).max(1);
    }
    files::remove_dir(scratch)?;
    Ok(plan)
}
