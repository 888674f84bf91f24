//! What follows a product: bias, activation, residual.

use std::slice;

use super::Activation;
use crate::gemm::Destination;
use crate::parallel::Disjoint;
use crate::{Float, multiversion};

/// What happens to a row of sums once it is complete and still in cache.
pub struct Epilogue<'a, T> {
    pub pre: Option<Disjoint<T>>,
    pub bias: Option<&'a [T]>,
    pub activation: Activation,
    pub residual: Option<&'a [T]>,
}

impl<T: Float> Epilogue<'_, T> {
    pub fn is_empty(&self) -> bool {
        self.pre.is_none()
            && self.bias.is_none()
            && self.activation == Activation::None
            && self.residual.is_none()
    }

    /// Completes a block of `rows` × `columns` sums, whose first element is element `start` of the output [.., n] and
    /// lies in column `column`.
    ///
    /// # Safety
    /// The block belongs to the caller alone.
    pub unsafe fn apply(
        &self,
        block: Destination<T>,
        rows: usize,
        columns: usize,
        start: usize,
        column: usize,
    ) {
        if self.is_empty() {
            return;
        }
        for i in 0..rows {
            // SAFETY: one row of the caller's block.
            let row =
                unsafe { slice::from_raw_parts_mut(block.data.add(i * block.stride), columns) };
            let start = start + i * block.stride;
            if let Some(bias) = self.bias {
                add(row, &bias[column..]);
            }
            if let Some(pre) = &self.pre {
                // SAFETY: the same range as `row`.
                unsafe { pre.range(start, columns) }.copy_from_slice(row);
            }
            activate(row, self.activation);
            if let Some(residual) = self.residual {
                add(row, &residual[start..]);
            }
        }
    }
}

multiversion! {
    fn add<T: Float>(row: &mut [T], other: &[T]) {
        for (x, &y) in row.iter_mut().zip(other) {
            *x = *x + y;
        }
    }
}

multiversion! {
    fn activate<T: Float>(row: &mut [T], activation: Activation) {
        // One loop per function: a match inside would keep them from vectorising.
        match activation {
            Activation::None => {}
            Activation::Gelu => row.iter_mut().for_each(|x| *x = Activation::Gelu.apply(*x)),
            Activation::QuickGelu => row.iter_mut().for_each(|x| *x = Activation::QuickGelu.apply(*x)),
            Activation::Silu => row.iter_mut().for_each(|x| *x = Activation::Silu.apply(*x)),
        }
    }
}
