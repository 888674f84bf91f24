//! Unary functions on GPUs: 16 bytes of each operand a thread.

use super::{Unary, derivative, value};
use crate::Accum;
use crate::ops::elementwise::{THREADS, for_each_chunk, grid};
use crate::ops::variants::{Plan, Refused, Variant};
use crate::ptx::{Assembler, Fast, Storage, U32};

/// `y = f(x)`. Launch with `Write(y), Read(x), U32(n)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub function: Unary,
    pub storage: Storage,
}

/// `dx (+)= dy · f′(x)`. Launch with `Write(dx)`, or `Update(dx)` under [`Accum::Add`], then `Read(dy), Read(x), U32(n)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backward {
    pub function: Unary,
    pub storage: Storage,
    pub accum: Accum,
}

impl Forward {
    /// For `n` elements.
    ///
    /// # Errors
    /// If there are more than kernels count.
    pub fn config(self, n: usize) -> Result<Plan<Self>, Refused> {
        let grid = grid(self.storage, n)?;
        Ok(Plan {
            variant: self,
            grid,
        })
    }
}

impl Backward {
    /// For `n` elements.
    ///
    /// # Errors
    /// If there are more than kernels count.
    pub fn config(self, n: usize) -> Result<Plan<Self>, Refused> {
        let grid = grid(self.storage, n)?;
        Ok(Plan {
            variant: self,
            grid,
        })
    }
}

impl Variant for Forward {
    const KERNEL: &'static str = "unary/forward";

    fn all() -> Vec<Forward> {
        let functions = Unary::ALL.into_iter();
        functions
            .flat_map(|function| Storage::ALL.map(|storage| Forward { function, storage }))
            .collect()
    }

    fn label(&self) -> String {
        format!("{}_{}", self.function.name(), self.storage.name())
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "y = {}(x), {}.\nGrid: ceil(n / {}) CTAs. Reads x and writes y once.",
            self.function.name(),
            self.storage.name(),
            THREADS * self.storage.chunk()
        ));
        let y = k.floats(self.storage, "y");
        let x = k.floats(self.storage, "x").read_only();
        let n = k.parameter::<U32>("n");
        for_each_chunk(k, self.storage, n, |i, width| {
            let x = x.at(i).load_span(width);
            let results: Vec<_> = x
                .into_iter()
                .map(|x| match self.storage {
                    Storage::F32 => value(self.function, x),
                    Storage::Bf16 => value(self.function, Fast(x)).0,
                })
                .collect();
            y.at(i).store_span(&results);
        });
    }
}

impl Variant for Backward {
    const KERNEL: &'static str = "unary/backward";

    fn all() -> Vec<Backward> {
        let mut all = vec![];
        for function in Unary::ALL {
            for storage in Storage::ALL {
                all.extend(Accum::ALL.map(|accum| Backward {
                    function,
                    storage,
                    accum,
                }));
            }
        }
        all
    }

    fn label(&self) -> String {
        let (function, storage) = (self.function.name(), self.storage.name());
        format!("{function}_{storage}_{}", self.accum.name())
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "dx {} dy {}'(x), {}.\nGrid: ceil(n / {}) CTAs. Reads dy and x and writes dx once.",
            self.accum.symbol(),
            self.function.name(),
            self.storage.name(),
            THREADS * self.storage.chunk()
        ));
        let dx = k.floats(self.storage, "dx");
        let dy = k.floats(self.storage, "dy").read_only();
        let x = k.floats(self.storage, "x").read_only();
        let n = k.parameter::<U32>("n");
        for_each_chunk(k, self.storage, n, |i, width| {
            let x = x.at(i).load_span(width);
            let dy = dy.at(i).load_span(width);
            let gradients: Vec<_> = x
                .iter()
                .zip(dy)
                .map(|(x, dy)| match self.storage {
                    Storage::F32 => dy * derivative(self.function, *x),
                    Storage::Bf16 => dy * derivative(self.function, Fast(*x)).0,
                })
                .collect();
            dx.at(i).put_span(self.accum, &gradients);
        });
    }
}
