//! Two-dimensional convolution of NHWC images with weights [out, kernel_h, kernel_w, in], and its gradients.

mod cpu;
pub mod ptx;
#[cfg(test)]
mod tests;

pub use cpu::{backward_input, backward_weight, forward};

/// y[n, i, j, o] = bias[o] + Σ x[n, i·stride + u − padding, j·stride + v − padding, c] · weight[o, u, v, c] + residual,
/// with x zero outside the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2d {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c_in: usize,
    pub c_out: usize,
    pub kernel_h: usize,
    pub kernel_w: usize,
    pub stride: usize,
    pub padding: usize,
}

impl Conv2d {
    pub fn out_h(&self) -> usize {
        (self.h + 2 * self.padding - self.kernel_h) / self.stride + 1
    }

    pub fn out_w(&self) -> usize {
        (self.w + 2 * self.padding - self.kernel_w) / self.stride + 1
    }
}
