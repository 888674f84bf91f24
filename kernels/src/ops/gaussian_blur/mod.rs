//! Gaussian blur as a separable resampling.

use crate::ops::resize::Taps;

/// torchvision's `gaussian_blur` along one dimension: `size` taps at whole pixels, normalised to sum 1, over a border
/// mirrored without repeating the edge. `size` is odd and `size / 2 < extent`.
pub fn taps(extent: usize, size: usize, sigma: f64) -> Taps {
    let radius = size / 2;
    let density = |k: usize| (-0.5 * ((k as f64 - radius as f64) / sigma).powi(2)).exp();
    let sum: f64 = (0..size).map(density).sum();
    let row = |i: usize| {
        let start = i.saturating_sub(radius);
        let end = (i + radius + 1).min(extent);
        let mut weights = vec![0.0; end - start];
        for k in 0..size {
            let at = (i + k).abs_diff(radius);
            let at = at.min((2 * (extent - 1)).abs_diff(at));
            weights[at - start] += density(k) / sum;
        }
        (start, weights)
    };
    Taps::new(extent, (0..extent).map(row).collect())
}
