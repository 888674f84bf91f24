//! Classifier-free guidance (Ho and Salimans, 2021), and what keeps it from overdoing.

use tensor::{Check, Result, Tensor};

use crate::Error;

/// How a network is guided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// 1 switches guidance off.
    pub scale: f64,
    /// The part of the time from 0, clean, to 1, noise, in which it acts, both ends included (Kynkäänniemi et al.,
    /// "Applying guidance in a limited interval improves sample and distribution quality in diffusion models", 2024).
    pub interval: [f64; 2],
    /// How far the guided output is brought back to the spread of the unguided one, from 0 to 1; see [`rescale`].
    pub rescale: f64,
}

impl Guidance {
    /// Plain guidance all the way.
    pub fn new(scale: f64) -> Guidance {
        Guidance {
            scale,
            interval: [0.0, 1.0],
            rescale: 0.0,
        }
    }

    /// # Errors
    /// If the scale is not a finite number, the interval not within 0 to 1 and rising, or `rescale` not from 0 to 1.
    pub fn check(&self) -> crate::Result<()> {
        let [low, high] = self.interval;
        let reason = if !self.scale.is_finite() {
            format!("the guidance scale must be a number, it is {}", self.scale)
        } else if !(0.0 <= low && low <= high && high <= 1.0) {
            format!("the guidance interval must rise within 0 to 1, it is {low} to {high}")
        } else if !(0.0..=1.0).contains(&self.rescale) {
            format!(
                "guidance rescale must be from 0 to 1, it is {}",
                self.rescale
            )
        } else {
            return Ok(());
        };
        Err(Error::Request(reason))
    }

    /// Whether the network has to be asked without the condition too, at time step `t` of `steps`.
    pub fn acts_at(&self, t: usize, steps: usize) -> bool {
        let time = t as f64 / steps.saturating_sub(1).max(1) as f64;
        self.scale != 1.0 && (self.interval[0]..=self.interval[1]).contains(&time)
    }

    /// The guided output at a time step at which guidance acts.
    ///
    /// # Shapes
    /// As [`guide`].
    pub fn combine(
        &self,
        unconditional: &Tensor,
        conditional: &Tensor,
        channels: usize,
    ) -> Result<Tensor> {
        let guided = guide(unconditional, conditional, self.scale, channels)?;
        match self.rescale == 0.0 {
            true => Ok(guided),
            false => rescale(&guided, conditional, self.rescale, channels),
        }
    }
}

/// unconditional + scale·(conditional − unconditional).
///
/// Of outputs that hold a learned variance after their `channels`, the variance is the conditional one.
///
/// # Shapes
/// both [.., channels] or [.., 2·channels] → the same
pub fn guide(
    unconditional: &Tensor,
    conditional: &Tensor,
    scale: f64,
    channels: usize,
) -> Result<Tensor> {
    let width = check("unconditional", unconditional, conditional, channels)?;
    let mut guided = conditional.to_f64_vec()?;
    let unconditional = unconditional.to_f64_vec()?;
    for (guided, unconditional) in guided.chunks_mut(width).zip(unconditional.chunks(width)) {
        for (g, u) in guided.iter_mut().zip(unconditional).take(channels) {
            *g = u + scale * (*g - u);
        }
    }
    Ok(like(conditional, &guided))
}

/// Brings the spread of each sample's guided output back to that of the conditional one, by the share `strength` (Lin et
/// al., "Common diffusion noise schedules and sample steps are flawed", 2023, equations 15 and 16): a strong guidance
/// makes it wider, and pictures too bright and too saturated. A learned variance is left alone.
///
/// # Shapes
/// both [n, .., channels] or [n, .., 2·channels] → the same
pub fn rescale(
    guided: &Tensor,
    conditional: &Tensor,
    strength: f64,
    channels: usize,
) -> Result<Tensor> {
    let width = check("guided", guided, conditional, channels)?;
    let mut out = guided.to_f64_vec()?;
    let conditional_values = conditional.to_f64_vec()?;
    let samples = guided.dims()[0].max(1);
    let per_sample = (out.len() / samples).max(1);
    for (guided, conditional) in out
        .chunks_mut(per_sample)
        .zip(conditional_values.chunks(per_sample))
    {
        let ratio = deviation(conditional, width, channels) / deviation(guided, width, channels);
        // A sample without any spread has none to bring back.
        if ratio.is_finite() {
            let factor = strength * ratio + (1.0 - strength);
            let rows = guided.chunks_mut(width);
            rows.flat_map(|row| &mut row[..channels])
                .for_each(|g| *g *= factor);
        }
    }
    Ok(like(guided, &out))
}

/// The standard deviation over the first `channels` of rows of `width`.
fn deviation(values: &[f64], width: usize, channels: usize) -> f64 {
    let kept = || values.chunks(width).flat_map(|row| &row[..channels]);
    let n = kept().count() as f64;
    let mean = kept().sum::<f64>() / n;
    (kept().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt()
}

/// The last dimension of two outputs of one shape.
fn check(name: &'static str, x: &Tensor, conditional: &Tensor, channels: usize) -> Result<usize> {
    let check = Check::new("guidance", &[(name, x), ("conditional", conditional)]);
    check.shape(name, x, conditional.dims())?;
    let width = conditional.shape().last_dim();
    check.require(width == channels || width == 2 * channels, || {
        format!("the last dimension must be {channels} or twice that")
    })?;
    Ok(width)
}

fn like(x: &Tensor, values: &[f64]) -> Tensor {
    Tensor::from_f64(values, x.shape(), x.dtype(), x.device())
}

#[cfg(test)]
mod tests {
    use tensor::{DType, Device};

    use super::*;

    fn tensor(data: &[f64], shape: &[usize]) -> Tensor {
        Tensor::from_f64(data, shape, DType::F64, Device::Cpu)
    }

    #[test]
    fn the_variance_is_the_conditional_one() {
        let make = |data: &[f64]| tensor(data, &[1, 4]);
        let guided = guide(
            &make(&[1.0, 2.0, 3.0, 4.0]),
            &make(&[2.0, 0.0, 7.0, 8.0]),
            3.0,
            2,
        )
        .unwrap();
        assert_eq!(guided.to_f64_vec().unwrap(), [4.0, -4.0, 7.0, 8.0]);
    }

    #[test]
    fn rescaling_brings_back_the_spread_of_each_sample_and_no_variance() {
        // Two samples of two pixels, two channels and their variance.
        let unconditional: Vec<f64> = (0..16).map(|i| f64::from(i * i % 7) - 3.0).collect();
        let conditional: Vec<f64> = (0..16).map(|i| f64::from(i * 5 % 11) - 4.0).collect();
        let [unconditional, conditional] =
            [unconditional, conditional].map(|x| tensor(&x, &[2, 2, 4]));
        let spread = |x: &Tensor| -> Vec<f64> {
            let x = x.to_f64_vec().unwrap();
            x.chunks(8).map(|x| deviation(x, 4, 2)).collect()
        };
        let guided = |rescale: f64| {
            let guidance = Guidance {
                rescale,
                ..Guidance::new(6.0)
            };
            guidance.combine(&unconditional, &conditional, 2).unwrap()
        };
        let (plain, half, full) = (guided(0.0), guided(0.5), guided(1.0));
        for i in 0..2 {
            let [want, wide] = [spread(&conditional)[i], spread(&plain)[i]];
            assert!(wide > 2.0 * want);
            assert!((spread(&full)[i] - want).abs() < 1e-12);
            assert!((spread(&half)[i] - 0.5 * (want + wide)).abs() < 1e-12);
        }
        let variance = |x: &Tensor| -> Vec<f64> {
            let x = x.to_f64_vec().unwrap();
            x.chunks(4).flat_map(|row| row[2..].to_vec()).collect()
        };
        assert_eq!(variance(&full), variance(&conditional));
        // Nothing to divide by: nothing happens.
        let flat = tensor(&[2.0; 4], &[1, 4]);
        assert!(rescale(&flat, &flat, 1.0, 2).unwrap().bit_equal(&flat));
    }

    #[test]
    fn guidance_acts_in_its_interval_only() {
        let guidance = Guidance {
            interval: [0.25, 0.5],
            ..Guidance::new(2.0)
        };
        let acting: Vec<usize> = (0..9).filter(|&t| guidance.acts_at(t, 9)).collect();
        assert_eq!(acting, [2, 3, 4]);
        assert!((0..9).all(|t| Guidance::new(2.0).acts_at(t, 9)));
        assert!(!(0..9).any(|t| Guidance::new(1.0).acts_at(t, 9)));
        assert!(Guidance::new(2.0).acts_at(0, 1));
    }

    #[test]
    fn guidance_that_makes_no_sense_is_refused_in_words() {
        let plain = Guidance::new(2.0);
        let said = |guidance: Guidance| guidance.check().unwrap_err().to_string();
        assert!(plain.check().is_ok());
        assert!(said(Guidance::new(f64::NAN)).contains("must be a number"));
        for interval in [[0.5, 0.2], [-0.1, 1.0], [0.0, 1.5], [f64::NAN, 1.0]] {
            assert!(said(Guidance { interval, ..plain }).contains("rise within 0 to 1"));
        }
        let rescale = 1.5;
        assert!(said(Guidance { rescale, ..plain }).contains("from 0 to 1"));
    }
}
