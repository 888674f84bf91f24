//! Texts, and as many empty ones where guidance compares the two.

use autograd::{Tape, Tensor, Var};

use super::TextConditioning;
use crate::Result;
use crate::diffusion::Guidance;

/// Texts, behind as many empty ones where guidance compares the two: one evaluation does both.
pub(super) struct Guided {
    /// [n, ..], or [2n, ..] with the empty ones first.
    pub text: TextConditioning,
    guidance: Guidance,
    /// Training steps of the schedule.
    steps: usize,
    n: usize,
}

impl Guided {
    pub fn new(
        text: &TextConditioning,
        unconditional: &TextConditioning,
        guidance: Guidance,
        steps: usize,
    ) -> Result<Guided> {
        let n = text.embeds.dims()[0];
        let text = match guidance.scale == 1.0 {
            true => text.clone(),
            false => TextConditioning {
                embeds: stack(&unconditional.embeds, &text.embeds)?,
                states: stack(&unconditional.states, &text.states)?,
                mask: stack_masks(&unconditional.mask, &text.mask)?,
            },
        };
        Ok(Guided {
            text,
            guidance,
            steps,
            n,
        })
    }

    /// Whether there are two rows for each sample.
    pub fn doubled(&self) -> bool {
        self.guidance.scale != 1.0
    }

    fn acts_at(&self, step: usize) -> bool {
        self.guidance.acts_at(step, self.steps)
    }

    /// What of a conditioning is used at a time step: all of it, or, where guidance rests, the part of the texts.
    ///
    /// # Shapes
    /// [n, ..] or [2n, ..] → the same or [n, ..]
    pub fn rows(&self, conditioning: &Tensor, step: usize) -> tensor::Result<Tensor> {
        match self.doubled() && !self.acts_at(step) {
            true => conditioning.narrow(0, self.n, self.n)?.contiguous(),
            false => Ok(conditioning.clone()),
        }
    }

    /// # Shapes
    /// [n, ..] → [n, ..] or [2n, ..]
    pub fn repeat(&self, x: &Tensor, step: usize) -> tensor::Result<Tensor> {
        match self.acts_at(step) {
            true => stack(x, x),
            false => Ok(x.clone()),
        }
    }

    /// One number for each row of the evaluation.
    pub fn timestep(&self, t: &Tape, step: usize, x: &Tensor) -> Var {
        let rows = if self.acts_at(step) {
            2 * self.n
        } else {
            self.n
        };
        t.constant(Tensor::full([rows], step as f64, x.dtype(), x.device()))
    }

    /// # Shapes
    /// [n, ..] or [2n, ..] → [n, ..]
    pub fn guide(&self, output: &Tensor, step: usize, channels: usize) -> tensor::Result<Tensor> {
        if !self.acts_at(step) {
            return Ok(output.clone());
        }
        let n = self.n;
        self.guidance
            .combine(&output.narrow(0, 0, n)?, &output.narrow(0, n, n)?, channels)
    }
}

/// # Shapes
/// [n, ..] and [m, ..] → [n + m, ..]
fn stack(a: &Tensor, b: &Tensor) -> tensor::Result<Tensor> {
    tensor::ops::concat::forward(&[a, b], 0)
}

fn stack_masks(a: &Tensor, b: &Tensor) -> tensor::Result<Tensor> {
    let rows = a.to_vec::<u8>()?.into_iter().chain(b.to_vec::<u8>()?);
    let rows: Vec<bool> = rows.map(|v| v != 0).collect();
    Ok(Tensor::from_bools(
        &rows,
        [a.dims()[0] + b.dims()[0], a.dims()[1]],
        a.device(),
    ))
}
