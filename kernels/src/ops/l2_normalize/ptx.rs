//! Normalisation to unit length on GPUs.

use crate::Accum;
use crate::ops::geometry::Call;
use crate::ops::reduction::Fold;
use crate::ops::rows::{self, Numbers, Row, Rows};
use crate::ops::variants::{Refused, Variant};
use crate::ptx::{Assembler, F32, IntoValue, Storage, Value};

/// `y = x / max(‖x‖, eps)` for each row. Launch with `Write(y), Read(x), F32(eps)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub rows: Rows,
}

/// `dx (+)= (dy − x·(x·dy) / ‖x‖²) / ‖x‖` where ‖x‖ exceeds eps, else `dy / eps`. Launch with `Write(dx)`, or `Update(dx)`
/// under [`Accum::Add`], then `Read(dy), Read(x), F32(eps)` and the call's numbers.
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

/// ‖x‖, and 1 / max(‖x‖, eps).
fn norm<'k>(
    k: &'k Assembler,
    row: Row<'k>,
    x: &Numbers<'k>,
    eps: Value<'k, F32>,
) -> [Value<'k, F32>; 2] {
    let squares = row.fold(Fold::Sum, &[x], |sum, x| x[0].mul_add(x[0], sum));
    let norm = k.sqrt_rn(squares);
    // A norm that is NaN stays NaN, which `max` would drop.
    let divisor = norm.lt(eps).select(eps, norm);
    let one: Value<F32> = 1.0f32.into_value();
    [norm, one / divisor]
}

impl Variant for Forward {
    const KERNEL: &'static str = "l2_normalize/forward";

    rows::variants!(rows: Rows);

    fn write(&self, k: &Assembler) {
        let storage = self.rows.access.storage;
        k.contract(&format!(
            "y = x / max(|x|, eps) for each row, {}.\n{}\nReads x and writes y.",
            storage.name(),
            self.rows.describe()
        ));
        let y = k.floats(storage, "y");
        let x = k.floats(storage, "x").read_only();
        let eps = k.parameter::<F32>("eps");
        self.rows.for_each(k, |row| {
            let x = row.read(x);
            let [_, inverse] = norm(k, row, &x, eps);
            row.for_each_span(&[&x], |at, x| {
                let results: Vec<_> = x[0].iter().map(|x| *x * inverse).collect();
                y.at(at).store_span(&results);
            });
        });
    }
}

impl Variant for Backward {
    const KERNEL: &'static str = "l2_normalize/backward";

    rows::variants!(rows: Rows, accum);

    fn write(&self, k: &Assembler) {
        let storage = self.rows.access.storage;
        k.contract(&format!(
            "dx {} (dy - x * (x . dy) / |x|^2) / |x| where |x| exceeds eps, else dy / eps, for each row, {}.\n{}\n\
             Reads dy and x and writes dx.",
            self.accum.symbol(),
            storage.name(),
            self.rows.describe()
        ));
        let dx = k.floats(storage, "dx");
        let dy = k.floats(storage, "dy").read_only();
        let x = k.floats(storage, "x").read_only();
        let eps = k.parameter::<F32>("eps");
        self.rows.for_each(k, |row| {
            let (dy, x) = (row.read(dy), row.read(x));
            let [norm, inverse] = norm(k, row, &x, eps);
            k.comment("x against dy");
            let dot = row.fold(Fold::Sum, &[&x, &dy], |sum, x| x[0].mul_add(x[1], sum));
            let along = norm.gt(eps).select(dot * inverse * inverse, 0.0f32);
            let back: Value<F32> = -along;
            row.for_each_span(&[&x, &dy], |at, operands| {
                let pairs = operands[0].iter().zip(&operands[1]);
                let results: Vec<_> = pairs
                    .map(|(x, dy)| x.mul_add(back, *dy) * inverse)
                    .collect();
                dx.at(at).put_span(self.accum, &results);
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::l2_normalize;
    use crate::testing::gpu::{self, assert_close, assert_moves, encode, stored_values};
    use crate::testing::to_f64;

    #[test]
    fn it_is_that_of_cpus() {
        let eps = 0.5;
        for storage in Storage::ALL {
            for shape in [[1, 1], [9, 5], [3, 256], [2, 1027], [2, 4096], [1, 8200]] {
                let [n, c] = shape;
                let case = format!("{shape:?}");
                let mut x = stored_values(storage, n * c, 1);
                // A row shorter than eps.
                x[..c].fill(0.0);
                let dy = stored_values(storage, n * c, 2);
                let x_bytes = encode(storage, &x);
                let profile = assert_close(
                    &case,
                    storage,
                    Accum::Replace,
                    n * c,
                    |y: &mut [f32]| l2_normalize::forward(y, &x, c, eps),
                    |y: &mut [f64]| l2_normalize::forward(y, &to_f64(&x), c, eps),
                    |y| {
                        let call = Forward::config(storage, shape).expect("few elements");
                        let eps = Argument::F32(eps as f32);
                        gpu::run(&call, vec![y, Argument::Read(&x_bytes), eps])
                    },
                );
                if c == 256 {
                    assert_moves(&case, &profile, 2 * n * c * storage.bytes() as usize);
                }
                for accum in Accum::ALL {
                    assert_close(
                        &case,
                        storage,
                        accum,
                        n * c,
                        |dx: &mut [f32]| l2_normalize::backward(dx, accum, &dy, &x, c, eps),
                        |dx: &mut [f64]| {
                            let (dy, x) = (to_f64(&dy), to_f64(&x));
                            l2_normalize::backward(dx, accum, &dy, &x, c, eps)
                        },
                        |dx| {
                            let call = Backward::config(storage, accum, shape);
                            let dy = encode(storage, &dy);
                            let read = [&*dy, &*x_bytes].map(Argument::Read);
                            let operands = [dx].into_iter().chain(read);
                            let operands = operands.chain([Argument::F32(eps as f32)]);
                            gpu::run(&call.expect("few elements"), operands.collect())
                        },
                    );
                }
            }
        }
    }
}
