//! Affine maps on GPUs: 16 bytes of each operand a thread.

use crate::Accum;
use crate::ops::elementwise::{THREADS, for_each_chunk, grid};
use crate::ops::variants::{Plan, Refused, Variant};
use crate::ptx::{Assembler, F32, Storage, U32};

/// `y (+)= scale·x + shift`. Launch with `Write(y)`, or `Update(y)` under [`Accum::Add`], then
/// `Read(x), F32(scale), F32(shift), U32(n)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub storage: Storage,
    pub accum: Accum,
}

impl Forward {
    /// For `n` elements.
    ///
    /// # Errors
    /// If there are more than kernels count.
    pub fn config(self, n: usize) -> Result<Plan<Self>, Refused> {
        Ok(Plan {
            variant: self,
            grid: grid(self.storage, n)?,
        })
    }
}

impl Variant for Forward {
    const KERNEL: &'static str = "affine/forward";

    fn all() -> Vec<Forward> {
        let pair = |storage| Accum::ALL.map(|accum| Forward { storage, accum });
        Storage::ALL.into_iter().flat_map(pair).collect()
    }

    fn label(&self) -> String {
        format!("{}_{}", self.storage.name(), self.accum.name())
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "y {} scale * x + shift, rounded once, {}.\nGrid: ceil(n / {}) CTAs. Reads x and writes y once.",
            self.accum.symbol(),
            self.storage.name(),
            THREADS * self.storage.chunk()
        ));
        let y = k.floats(self.storage, "y");
        let x = k.floats(self.storage, "x").read_only();
        let scale = k.parameter::<F32>("scale");
        let shift = k.parameter::<F32>("shift");
        let n = k.parameter::<U32>("n");
        for_each_chunk(k, self.storage, n, |i, width| {
            let x = x.at(i).load_span(width);
            let results: Vec<_> = x.into_iter().map(|x| scale.mul_add(x, shift)).collect();
            y.at(i).put_span(self.accum, &results);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::affine;
    use crate::testing::gpu::{self, assert_moves, assert_same_bits, encode, stored_values};

    #[test]
    fn it_computes_what_cpus_compute() {
        let (scale, shift) = (0.7, -0.3);
        for storage in Storage::ALL {
            for accum in Accum::ALL {
                for n in [1, 7, 8, 2047, 40_003] {
                    let x = stored_values(storage, n, 1);
                    let cpu = |y: &mut [f32]| affine::forward(y, accum, &x, scale, shift);
                    let kernel = |y: Argument<'_>| {
                        let plan = Forward { storage, accum }.config(n).expect("few elements");
                        let x = encode(storage, &x);
                        let numbers = [scale as f32, shift as f32].map(Argument::F32);
                        let [scale, shift] = numbers;
                        let n = Argument::U32(n as u32);
                        gpu::run_plan(&plan, vec![y, Argument::Read(&x), scale, shift, n])
                    };
                    let profile = assert_same_bits("affine", storage, accum, n, cpu, kernel);
                    if n > 10_000 {
                        let tensors = 2 + usize::from(accum == Accum::Add);
                        let least = tensors * n * storage.bytes() as usize;
                        assert_moves("affine", &profile, least);
                    }
                }
            }
        }
    }
}
