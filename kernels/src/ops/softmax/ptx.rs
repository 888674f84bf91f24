//! Softmax on GPUs.

use crate::Accum;
use crate::ops::geometry::Call;
use crate::ops::reduction::Fold;
use crate::ops::rows::{self, Rows, exp};
use crate::ops::variants::{Refused, Variant};
use crate::ptx::{Assembler, F32, IntoValue, Storage, Value};

/// `y = exp(x − max x) / Σ exp(x − max x)` for each row. Launch with `Write(y), Read(x)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub rows: Rows,
}

/// `dx (+)= y·(dy − Σ y·dy)` for each row. Launch with `Write(dx)`, or `Update(dx)` under [`Accum::Add`], then
/// `Read(dy), Read(y)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backward {
    pub rows: Rows,
    pub accum: Accum,
}

impl Forward {
    /// For `[n, c]`: n rows of c elements.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn config(storage: Storage, shape: [usize; 2]) -> Result<Call<Self>, Refused> {
        Rows::call(storage, shape, |rows| Forward { rows })
    }
}

impl Backward {
    /// For `[n, c]`: n rows of c elements.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn config(
        storage: Storage,
        accum: Accum,
        shape: [usize; 2],
    ) -> Result<Call<Self>, Refused> {
        Rows::call(storage, shape, |rows| Backward { rows, accum })
    }
}

impl Variant for Forward {
    const KERNEL: &'static str = "softmax/forward";

    rows::variants!(rows: Rows);

    fn write(&self, k: &Assembler) {
        let storage = self.rows.access.storage;
        k.contract(&format!(
            "y = exp(x - max x) / sum exp(x - max x) for each row, {}.\n{}\nReads x and writes y.",
            storage.name(),
            self.rows.describe()
        ));
        let y = k.floats(storage, "y");
        let x = k.floats(storage, "x").read_only();
        self.rows.for_each(k, |row| {
            let x = row.read(x);
            k.comment("the largest element");
            let max = row.fold(Fold::Max, &[&x], |max, x| max.max(x[0]));
            k.comment("exponentials and their sum");
            let powers = row.map(x, move |x| exp(storage, x - max));
            let sum = row.fold(Fold::Sum, &[&powers], |sum, e| sum + e[0]);
            let one: Value<F32> = 1.0f32.into_value();
            let inverse = one / sum;
            row.for_each_span(&[&powers], |at, powers| {
                let results: Vec<_> = powers[0].iter().map(|e| *e * inverse).collect();
                y.at(at).store_span(&results);
            });
        });
    }
}

impl Variant for Backward {
    const KERNEL: &'static str = "softmax/backward";

    rows::variants!(rows: Rows, accum);

    fn write(&self, k: &Assembler) {
        let storage = self.rows.access.storage;
        k.contract(&format!(
            "dx {} y * (dy - sum y * dy) for each row, {}.\n{}\nReads dy and y and writes dx.",
            self.accum.symbol(),
            storage.name(),
            self.rows.describe()
        ));
        let dx = k.floats(storage, "dx");
        let dy = k.floats(storage, "dy").read_only();
        let y = k.floats(storage, "y").read_only();
        self.rows.for_each(k, |row| {
            let (dy, y) = (row.read(dy), row.read(y));
            k.comment("y against dy");
            let mean = row.fold(Fold::Sum, &[&y, &dy], |sum, x| x[0].mul_add(x[1], sum));
            row.for_each_span(&[&y, &dy], |at, operands| {
                let pairs = operands[0].iter().zip(&operands[1]);
                let results: Vec<_> = pairs.map(|(y, dy)| *y * (*dy - mean)).collect();
                dx.at(at).put_span(self.accum, &results);
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::softmax;
    use crate::testing::gpu::{self, assert_close, assert_moves, encode, stored_values};
    use crate::testing::to_f64;

    const SHAPES: [[usize; 2]; 8] = [
        [1, 1],
        [9, 5],
        [17, 77],
        [3, 256],
        [2, 1000],
        [2, 1027],
        [2, 4096],
        [1, 8200],
    ];

    #[test]
    fn it_is_that_of_cpus() {
        for storage in Storage::ALL {
            for shape in SHAPES {
                let [n, c] = shape;
                let case = format!("{shape:?}");
                // A large common part, as logits have one.
                let x = stored_values(storage, n * c, 1);
                let x: Vec<f32> = x.iter().map(|x| 8.0 * x + 16.0).collect();
                let x = gpu::decode(storage, &encode(storage, &x));
                let kernel = |y: Argument<'_>| {
                    let call = Forward::config(storage, shape).expect("few elements");
                    let x = encode(storage, &x);
                    gpu::run(&call, vec![y, Argument::Read(&x)])
                };
                let profile = assert_close(
                    &case,
                    storage,
                    Accum::Replace,
                    n * c,
                    |y: &mut [f32]| softmax::forward(y, &x, c),
                    |y: &mut [f64]| softmax::forward(y, &to_f64(&x), c),
                    kernel,
                );
                if c == 256 || c == 4096 {
                    assert_moves(&case, &profile, 2 * n * c * storage.bytes() as usize);
                }
                let (y, dy) = (
                    stored_values(storage, n * c, 1),
                    stored_values(storage, n * c, 2),
                );
                for accum in Accum::ALL {
                    let kernel = |dx: Argument<'_>| {
                        let call = Backward::config(storage, accum, shape).expect("few elements");
                        let (dy, y) = (encode(storage, &dy), encode(storage, &y));
                        let operands = vec![dx, Argument::Read(&dy), Argument::Read(&y)];
                        gpu::run(&call, operands)
                    };
                    assert_close(
                        &case,
                        storage,
                        accum,
                        n * c,
                        |dx: &mut [f32]| softmax::backward(dx, accum, &dy, &y, c),
                        |dx: &mut [f64]| softmax::backward(dx, accum, &to_f64(&dy), &to_f64(&y), c),
                        kernel,
                    );
                }
            }
        }
    }
}
