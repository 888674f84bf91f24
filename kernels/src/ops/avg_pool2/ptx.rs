//! 2×2 block sums on GPUs.

use crate::Accum;
use crate::ops::elementwise::THREADS;
use crate::ops::geometry::Call;
use crate::ops::nearest_up2::ptx::Blocks;
use crate::ops::spans::{Access, for_each_span};
use crate::ops::variants::{Refused, Variant};
use crate::ptx::{Assembler, F32, Storage};

/// `dst (+)= scale · sums of src's 2×2 blocks`, for src [n, 2h, 2w, c] and dst [n, h, w, c]. Launch with `Write(dst)`, or
/// `Update(dst)` under [`Accum::Add`], then `Read(src), F32(scale)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumBlocks {
    pub access: Access,
    pub accum: Accum,
}

impl SumBlocks {
    /// For `n` images of `h` × `w` pixels, as they are in dst.
    ///
    /// # Errors
    /// If src has more elements than kernels count.
    pub fn config(
        storage: Storage,
        accum: Accum,
        [n, h, w, c]: [usize; 4],
    ) -> Result<Call<Self>, Refused> {
        let (access, numbers, grid) = Blocks::config(storage, [n, h, w, c])?;
        Ok(Call::new(SumBlocks { access, accum }, grid, numbers))
    }
}

impl Variant for SumBlocks {
    const KERNEL: &'static str = "avg_pool2/sum_blocks";

    fn all() -> Vec<SumBlocks> {
        let pair = |access| Accum::ALL.map(|accum| SumBlocks { access, accum });
        Access::all().into_iter().flat_map(pair).collect()
    }

    fn label(&self) -> String {
        format!("{}_{}", self.access.name(), self.accum.name())
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let Access { storage, span } = self.access;
        k.contract(&format!(
            "dst {} scale * ((a + b) + (c + d)) over the 2 x 2 blocks of src, for dst [n, h, w, c], {}.\n\
             Grid: ceil(elements of dst / {}) CTAs, {span} elements a thread. Reads src and writes dst once.",
            self.accum.symbol(),
            storage.name(),
            THREADS * span
        ));
        let dst = k.floats(storage, "dst");
        let src = k.floats(storage, "src").read_only();
        let scale = k.parameter::<F32>("scale");
        let blocks = Blocks::parameters(k, span);
        for_each_span(k, blocks.spans, |i| {
            let corners = blocks.elements(i).map(|at| src.at(at).load_span(span));
            let [a, b, c, d] = corners;
            let means: Vec<_> = (0..span as usize)
                .map(|e| ((a[e] + b[e]) + (c[e] + d[e])) * scale)
                .collect();
            dst.at(i * span).put_span(self.accum, &means);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::nearest_up2::ptx::RepeatBlocks;
    use crate::ops::{avg_pool2, nearest_up2};
    use crate::testing::gpu::{self, assert_moves, assert_same_bits, encode, stored_values};

    const SHAPES: [[usize; 4]; 7] = [
        [1, 1, 1, 1],
        [2, 1, 3, 5],
        [1, 5, 1, 6],
        [3, 2, 7, 4],
        [2, 3, 3, 8],
        [1, 3, 5, 33],
        [2, 5, 7, 64],
    ];

    /// Both directions, forward and backward, between small images of each shape and large ones.
    #[test]
    fn they_compute_what_cpus_compute() {
        let scale = 0.3;
        for storage in Storage::ALL {
            for accum in Accum::ALL {
                for shape in SHAPES {
                    let [_, _, w, c] = shape;
                    let small: usize = shape.iter().product();
                    let case = format!("{shape:?}");
                    let tensors = 5 + match accum {
                        Accum::Replace => 0,
                        Accum::Add => 1,
                    };
                    let least = tensors * small * storage.bytes() as usize;

                    let src = stored_values(storage, 4 * small, 1);
                    let cpu =
                        |dst: &mut [f32]| avg_pool2::sum_blocks(dst, accum, &src, w, c, scale);
                    let kernel = |dst: Argument<'_>| {
                        let call = SumBlocks::config(storage, accum, shape).expect("few elements");
                        let src = encode(storage, &src);
                        let scale = Argument::F32(scale as f32);
                        gpu::run(&call, vec![dst, Argument::Read(&src), scale])
                    };
                    let profile = assert_same_bits(&case, storage, accum, small, cpu, kernel);
                    if c == 64 {
                        assert_moves(&case, &profile, least);
                    }

                    let src = stored_values(storage, small, 1);
                    let cpu =
                        |dst: &mut [f32]| nearest_up2::repeat_blocks(dst, accum, &src, w, c, scale);
                    let kernel = |dst: Argument<'_>| {
                        let call =
                            RepeatBlocks::config(storage, accum, shape).expect("few elements");
                        let src = encode(storage, &src);
                        let scale = Argument::F32(scale as f32);
                        gpu::run(&call, vec![dst, Argument::Read(&src), scale])
                    };
                    let profile = assert_same_bits(&case, storage, accum, 4 * small, cpu, kernel);
                    if c == 64 && accum == Accum::Replace {
                        assert_moves(&case, &profile, least);
                    }
                }
            }
        }
    }
}
