//! Samplers step by step.

use autograd::Tensor;
use models::diffusion::{Prediction, SamplerKind, SchedulerConfig, VarianceType};
use serde::Deserialize;

use crate::files::{Report, json, largest, tensors};
use crate::formula::{inward, outward, values};

#[derive(Deserialize)]
struct Golden {
    walks: Vec<Walk>,
}

#[derive(Deserialize)]
struct Walk {
    name: String,
    sampler: String,
    prediction_type: Prediction,
    steps: usize,
    clip_sample_range: f64,
    clip_sample: Option<bool>,
    num_train_timesteps: Option<usize>,
    variance_type: Option<VarianceType>,
    eta: Option<f64>,
    /// [n, c, h, w]
    shape: [usize; 4],
    timesteps: Vec<usize>,
}

#[test]
fn every_step_is_that_of_diffusers() {
    for walk in json::<Golden>("schedulers.json").walks {
        let name = &walk.name;
        let config = SchedulerConfig {
            num_train_timesteps: walk.num_train_timesteps.unwrap_or(1000),
            variance_type: walk.variance_type.unwrap_or(VarianceType::FixedSmallLog),
            clip_sample: walk.clip_sample.unwrap_or(true),
            clip_sample_range: walk.clip_sample_range,
            prediction_type: walk.prediction_type,
            ..SchedulerConfig::default()
        };
        let kind = match &*walk.sampler {
            "ancestral" => SamplerKind::Ancestral,
            "ddim" => SamplerKind::Ddim {
                eta: walk.eta.unwrap(),
            },
            "dpm" => SamplerKind::DpmSolver,
            other => panic!("{other} is no sampler of ours"),
        };
        let mut sampler = kind.sampler(&config, walk.steps).unwrap();
        assert_eq!(sampler.timesteps(), walk.timesteps, "{name}");
        let [n, c, h, w] = walk.shape;
        let learned = walk.variance_type == Some(VarianceType::LearnedRange);
        let channels = if learned { 2 * c } else { c };
        let draw =
            |what: String, shape: &[usize]| inward(&values(&format!("{name}/{what}"), shape));
        let mut x = draw("start".into(), &walk.shape);
        let (mut samples, mut clean): (Vec<f64>, Vec<f64>) = Default::default();
        for i in 0..walk.steps {
            let output = draw(format!("output.{i}"), &[n, channels, h, w]);
            let mut noise = || Ok(draw(format!("noise.{i}"), &walk.shape));
            let denoised = sampler.step(i, &output, &x, &mut noise).unwrap();
            x = denoised.sample;
            let seen = |x: &Tensor| outward(x).to_f64_vec().unwrap();
            samples.extend(seen(&x));
            clean.extend(seen(&denoised.x0));
        }
        let want = tensors(&format!("schedulers/{name}.safetensors"));
        let mut report = Report::default();
        let wanted = &want["samples"];
        report.compare(
            "samples",
            "samples",
            (&samples, wanted),
            largest(wanted),
            1e-10,
        );
        if let Some(wanted) = want.get("clean") {
            report.compare(
                "clean",
                "clean samples",
                (&clean, wanted),
                largest(wanted),
                1e-10,
            );
        }
        report.finish(name);
    }
}
