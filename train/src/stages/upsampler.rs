//! The upsampler: predicts a large picture from its noisy version and a small one, on random crops (Ramesh et al.,
//! 2022, section 2.1). The small pictures are worn, because those that the decoder makes are not perfect: blurred (there)
//! and noisy (Ho et al., "Cascaded diffusion models", 2021, section 4.2).

use std::path::Path;
use std::sync::Arc;

use autograd::ops::resize::{self, Filter};
use autograd::ops::{concat, gaussian_blur, randn};
use autograd::{Device, ParamLayout, Params, StepState, Tape, Tensor, Var};
use models::config::Extent;
use models::declare;
use models::diffusion::{
    Schedule, SchedulerConfig, add_noise, respaced, timesteps, uniform_timesteps,
};
use models::unet::{UNet2DConfig, UNet2DModel};

use super::{
    DTYPE, Loss, Stage, bsr, denoise, denoising, draw, given, kept, load_component, save_component,
    source, uniform,
};
use crate::config::Degradation;
use crate::data::{Dataset, Loader};
use crate::interrupt::Interrupt;
use crate::picture::Picture;
use crate::{Error, Result, config};

pub struct Upsampler {
    model: UNet2DModel,
    layout: Arc<ParamLayout>,
    dataset: Arc<Dataset>,
    loader: Loader,
    scheduler: SchedulerConfig,
    schedule: Schedule,
    /// Those that training draws from.
    timesteps: Vec<usize>,
    config: config::Upsampler,
}

pub struct Batch {
    /// [n, resolution, resolution, 3]
    images: Vec<u8>,
}

const PREVIEW: usize = 8;
const PREVIEW_STEPS: usize = 7;

impl Upsampler {
    pub fn new(config: &config::Upsampler, position: u64) -> Result<Upsampler> {
        check(config)?;
        let dataset = source::open(&config.common)?;
        let (model, layout) = declare::<UNet2DModel>(&UNet2DConfig {
            sample_size: Some(Extent::Square(config.sample_size)),
            layers_per_block: config.layers_per_block,
            norm_num_groups: config.norm_num_groups,
            ..UNet2DConfig::upsampler(&config.block_out_channels)
        })?;
        let scheduler = SchedulerConfig {
            prediction_type: config.prediction_type,
            beta_schedule: config.beta_schedule,
            ..SchedulerConfig::upsampler()
        };
        let schedule = scheduler.schedule();
        let all = schedule.steps();
        if config.num_inference_steps > all {
            return Err(Error::usage(format!(
                "num_inference_steps = {} is above the {all} time steps that there are",
                config.num_inference_steps
            )));
        }
        let timesteps = match config.num_inference_steps {
            0 => (0..all).collect(),
            count => respaced(all, count),
        };
        Ok(Upsampler {
            model,
            layout,
            loader: source::loader(&config.common, &dataset, None, position)?,
            dataset,
            schedule,
            scheduler,
            timesteps,
            config: config.clone(),
        })
    }

    /// The small pictures of a batch as the decoder might have made them: some blurred, all a little noisy.
    ///
    /// # Shapes
    /// small [n, low, low, 3] → [n, low, low, 3]
    fn worn(&self, t: &Tape, small: &Tensor) -> Result<Tensor> {
        let n = small.dims()[0];
        let mut rows = Vec::with_capacity(n);
        for (i, sigma) in self.blurs(t.step(), n).into_iter().enumerate() {
            let row = t.constant(small.narrow(0, i, 1)?.contiguous()?); // [1, low, low, 3]
            rows.push(match sigma {
                Some(sigma) => {
                    gaussian_blur::gaussian_blur(t, &row, self.config.blur_kernel, sigma)?
                }
                None => row,
            });
        }
        let rows: Vec<&Var> = rows.iter().collect();
        let mut worn = concat::concat(t, &rows, 0)?.tensor().detach_copy()?;
        // Pictures are prepared on the host, wherever the network is.
        let draw = t.scope("small_noise", || Ok(t.draw()))?;
        let mut noise = Tensor::uninit(small.shape(), DTYPE, Device::Cpu);
        tensor::ops::random::fill_normal(&mut noise, &draw, 1.0)?;
        let pixels = small.len() / n.max(1);
        let pictures = worn.as_mut_slice::<f32>()?.chunks_mut(pixels);
        let noise = noise.as_slice::<f32>()?.chunks(pixels);
        let shares = uniform(t.step(), "upsampler.noise_sigma", n);
        for ((picture, noise), share) in pictures.zip(noise).zip(shares) {
            let sigma = (share * self.config.noise_sigma_max) as f32;
            for (value, noise) in picture.iter_mut().zip(noise) {
                *value += sigma * noise;
            }
        }
        Ok(worn)
    }

    /// # Shapes
    /// small [n, low, low, 3] → [n, side, side, 3]
    fn enlarged(&self, small: Tensor, side: usize) -> Result<Tensor> {
        let t = Tape::inference(None);
        let enlarged =
            resize::resize(&t, &t.constant(small), side, side, Filter::BicubicAntialias)?;
        Ok(enlarged.tensor().clone())
    }

    /// For each picture the deviation of its blur, if it is blurred.
    fn blurs(&self, at: StepState, n: usize) -> Vec<Option<f64>> {
        let config = &self.config;
        let sharp = kept(at, "upsampler.blurs", n, config.blur_probability);
        let where_between = uniform(at, "upsampler.sigma", n);
        sharp
            .into_iter()
            .zip(where_between)
            .map(|(sharp, u)| {
                let span = config.blur_sigma_max - config.blur_sigma_min;
                (!sharp).then_some(config.blur_sigma_min + u * span)
            })
            .collect()
    }

    /// # Shapes
    /// noisy and enlarged [n, h, w, 3] → [n, h, w, 3]
    fn predict(
        &self,
        t: &Tape,
        noisy: &Var,
        enlarged: &Var,
        steps: &[usize],
    ) -> autograd::Result<Var> {
        let input = concat::concat(t, &[noisy, enlarged], 3)?; // [n, h, w, 6]
        let steps = t.constant(timesteps(steps, DTYPE, t.device()));
        self.model.forward(t, &input, &steps, None)
    }
}

fn check(config: &config::Upsampler) -> Result<()> {
    config::check_share("blur_probability", config.blur_probability)?;
    source::check_divides(config.common.resolution, "sample_size", config.sample_size)?;
    source::check_divides(config.sample_size, "low_size", config.low_size)?;
    let reason = if !(1..=config.sample_size).contains(&config.crop_size) {
        format!(
            "crop_size = {} must lie between 1 and sample_size",
            config.crop_size
        )
    } else if config.blur_kernel.is_multiple_of(2) || config.blur_kernel / 2 >= config.low_size {
        format!(
            "blur_kernel = {} must be odd and below twice low_size",
            config.blur_kernel
        )
    } else if !(config.blur_sigma_min > 0.0 && config.blur_sigma_max >= config.blur_sigma_min) {
        "blur_sigma_min must be above zero and blur_sigma_max not below it".to_owned()
    } else if !(config.noise_sigma_max >= 0.0 && config.noise_sigma_max.is_finite()) {
        "noise_sigma_max must not be negative".to_owned()
    } else if config.degradation == Degradation::Bsr
        && !config
            .crop_size
            .is_multiple_of(config.sample_size / config.low_size)
    {
        format!(
            "crop_size = {} must be a multiple of sample_size / low_size where degradation = \"bsr\"",
            config.crop_size
        )
    } else {
        return Ok(());
    };
    Err(Error::usage(reason))
}

/// A square out of each picture, at a place of its own.
///
/// # Shapes
/// x [n, h, w, 3] → [n, side, side, 3]
fn crops(x: &Tensor, corners: &[(usize, usize)], side: usize) -> Result<Tensor> {
    let &[n, height, width, channels] = x.dims() else {
        return Err(Error::failure("pictures to crop must be [n, h, w, c]"));
    };
    let values = x.as_slice::<f32>()?;
    let mut out = Vec::with_capacity(n * side * side * channels);
    for (picture, &(top, left)) in values.chunks(height * width * channels).zip(corners) {
        for y in top..top + side {
            let start = (y * width + left) * channels;
            out.extend_from_slice(&picture[start..start + side * channels]);
        }
    }
    Ok(Tensor::from_slice(
        &out,
        [n, side, side, channels],
        x.device(),
    ))
}

impl Stage for Upsampler {
    type Batch = Batch;

    fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    fn prepare(&mut self, _: &mut Params, _: bool, _: &Interrupt) -> Result<()> {
        Ok(())
    }

    fn batch(&mut self) -> Result<Batch> {
        Ok(Batch {
            images: self.loader.next_batch()?.images,
        })
    }

    fn loss(&self, t: &Tape, batch: &Batch) -> Result<Loss> {
        let config = &self.config;
        let resolution = config.common.resolution;
        let large = source::shrunk(&batch.images, resolution, config.sample_size); // [n, h, w, 3]
        let n = large.dims()[0];
        // Crops that are worn one by one begin where a small pixel does.
        let factor = config.sample_size / config.low_size;
        let stride = match config.degradation {
            Degradation::Plain => 1,
            Degradation::Bsr => factor,
        };
        let places = (config.sample_size - config.crop_size) / stride + 1;
        let place = |u: f64| (u * places as f64) as usize * stride;
        let corners: Vec<(usize, usize)> = uniform(t.step(), "upsampler.top", n)
            .into_iter()
            .zip(uniform(t.step(), "upsampler.left", n))
            .map(|(top, left)| (place(top), place(left)))
            .collect();
        let large = crops(&large, &corners, config.crop_size)?; // [n, crop, crop, 3]
        let enlarged = match config.degradation {
            Degradation::Plain => {
                let small = source::shrunk(&batch.images, resolution, config.low_size);
                let enlarged = self.enlarged(self.worn(t, &small)?, config.sample_size)?;
                crops(&enlarged, &corners, config.crop_size)?
            }
            Degradation::Bsr => {
                self.enlarged(bsr::worn(&large, factor, t.step())?, config.crop_size)?
            }
        }; // [n, crop, crop, 3]
        let (x0, enlarged) = (given(t, &large)?, given(t, &enlarged)?);

        let trained = &self.timesteps;
        let at = uniform_timesteps(&draw(t.step(), "upsampler.timesteps"), n, trained.len());
        let at: Vec<usize> = at.into_iter().map(|i| trained[i]).collect();
        let noise = t.scope("noise", || randn::randn(t, x0.dims(), DTYPE))?;
        let noisy = add_noise(t, &self.schedule, &x0, &noise, &at)?; // [n, crop, crop, 3]
        let output = self.predict(t, &noisy, &enlarged, &at)?; // [n, crop, crop, 3]
        denoising(
            t,
            &self.schedule,
            config.prediction_type,
            &output,
            &x0,
            &noise,
            at,
        )
    }

    fn save(&self, params: &Params, dir: &Path) -> Result<()> {
        save_component(&dir.join("upsampler"), &self.model, params)
    }

    fn load(&self, dir: &Path) -> Result<Params> {
        load_component::<UNet2DModel>(&dir.join("upsampler"), self.layout.clone())
    }

    /// Small pictures of the data, what the network makes of them, and the true ones, from top to bottom.
    fn samples(&self, params: &Params, interrupt: &Interrupt) -> Result<Option<Picture>> {
        let config = &self.config;
        let preview = source::preview(&config.common, &self.dataset, None, PREVIEW)?;
        let resolution = config.common.resolution;
        let large = source::shrunk(&preview.images, resolution, config.sample_size);
        let small = match config.degradation {
            Degradation::Plain => source::shrunk(&preview.images, resolution, config.low_size),
            Degradation::Bsr => {
                let factor = config.sample_size / config.low_size;
                bsr::worn(&large, factor, StepState::default())?
            }
        };
        let enlarged = self.enlarged(small.clone(), config.sample_size)?;
        let made = denoise(
            &self.scheduler,
            match config.num_inference_steps {
                0 => PREVIEW_STEPS,
                count => count,
            },
            large.dims(),
            interrupt,
            |step, x| {
                let t = Tape::inference(Some(params));
                let (x, enlarged) = (given(&t, x)?, given(&t, &enlarged)?);
                let output = self.predict(&t, &x, &enlarged, &[step; PREVIEW])?;
                Ok(output.tensor().to_host()?)
            },
        )?;
        let mut pictures = Picture::from_tensor(&small)?;
        pictures.extend(Picture::from_tensor(&made)?);
        pictures.extend(Picture::from_tensor(&large)?);
        Ok(Some(Picture::grid(&pictures, &[], PREVIEW, 96)))
    }
}
