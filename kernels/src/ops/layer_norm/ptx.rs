//! Layer normalisation on GPUs: every row is read once, and the backward pass sums the parameters' gradients meanwhile.

use super::LayerNorm;
use crate::Accum;
use crate::ops::geometry::Call;
use crate::ops::reduction::Fold;
use crate::ops::rows::{self, Rows};
use crate::ops::variants::{Refused, Variant};
use crate::ptx::{Assembler, F32, IntoValue, Storage, Value};

/// The least rows of a block in the forward pass: gain and offset, which each block reads, are 3 % of its x and y.
const LEAST_ROWS: usize = 32;
/// And in the backward pass, where a block writes two f32 for each column, which are read again for the parameters' gradients:
/// under bf16 together 6 % of its dy, x and dx.
const LEAST_ROWS_BACKWARD: usize = 48;

/// `y = (x − mean)·rstd·γ + β` for each row; mean and rstd in f32. Launch with `Write(y), Write(mean), Write(rstd), Read(x),
/// Read(gamma), Read(beta), F32(eps)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub rows: Rows,
}

/// `dx (+)= rstd·(g − mean(g) − x̂·mean(g·x̂))` with g = γ·dy, and each block's Σ dy·x̂ and Σ dy by column, [blocks, c] in f32
/// each. Launch with `Write(dx)` (`Update` under [`Accum::Add`], or `Null`), `Write(partial_gamma), Write(partial_beta)` (or
/// either `Null`), `Read(dy), Read(x), Read(mean), Read(rstd), Read(gamma)` and the call's numbers.
///
/// dγ and dβ are sums of [`reduce`](crate::ops::reduce) over the first dimension of the partial sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backward {
    pub rows: Rows,
    pub accum: Accum,
}

impl Forward {
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn config(storage: Storage, d: &LayerNorm) -> Result<Call<Self>, Refused> {
        let shape = [d.rows, d.c];
        let call = Rows::call_blocks(storage, shape, LEAST_ROWS, |rows| Forward { rows });
        call.map(|(call, _)| call)
    }
}

impl Backward {
    /// The call, and the blocks whose sums it writes.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn config(
        storage: Storage,
        accum: Accum,
        d: &LayerNorm,
    ) -> Result<(Call<Self>, usize), Refused> {
        let variant = |rows| Backward { rows, accum };
        Rows::call_blocks(storage, [d.rows, d.c], LEAST_ROWS_BACKWARD, variant)
    }
}

impl Variant for Forward {
    const KERNEL: &'static str = "layer_norm/forward";

    rows::variants!(rows: Rows);

    fn write(&self, k: &Assembler) {
        let storage = self.rows.access.storage;
        k.contract(&format!(
            "y = (x - mean) * rstd * gamma + beta for each row, {}; mean and rstd are f32.\n{}\n\
             Reads x and writes y, mean and rstd.",
            storage.name(),
            self.rows.describe_blocks()
        ));
        let y = k.floats(storage, "y");
        let means = k.buffer::<F32>("mean");
        let rstds = k.buffer::<F32>("rstd");
        let x = k.floats(storage, "x").read_only();
        let gamma = k.floats(storage, "gamma").read_only();
        let beta = k.floats(storage, "beta").read_only();
        let eps = k.parameter::<F32>("eps");
        // Registers for gain and offset: ptxas would rather spill some to fit more CTAs.
        k.min_ctas(2);
        let block = self.rows.block(k);
        let c = block.shared().length().to_f32();
        let [gamma, beta] = [gamma, beta].map(|vector| block.read_shared(vector));
        let statistics = [means, rstds].map(|numbers| block.numbers_written(numbers));
        block.for_each_row(&statistics, |row| {
            let x = row.read(x);
            k.comment(
                "the mean, and again the mean of what is left: the first sum may be far from zero",
            );
            let rough = row.fold(Fold::Sum, &[&x], |sum, x| sum + x[0]) / c;
            let near = row.map(x, move |x| x - rough);
            let rest = row.fold(Fold::Sum, &[&near], |sum, x| sum + x[0]) / c;
            let centred = row.map(near, move |x| x - rest);
            k.comment("squared distances from it");
            let squares = row.fold(Fold::Sum, &[&centred], |sum, x| x[0].mul_add(x[0], sum));
            let one: Value<F32> = 1.0f32.into_value();
            let rstd = one / k.sqrt_rn(squares / c + eps);
            let [its_mean, its_rstd] = statistics;
            its_mean.set(row, rough + rest);
            its_rstd.set(row, rstd);
            row.for_each_span(&[&centred, &gamma, &beta], |at, operands| {
                let results: Vec<_> = operands[0]
                    .iter()
                    .zip(&operands[1])
                    .zip(&operands[2])
                    .map(|((x, gamma), beta)| (*x * rstd).mul_add(*gamma, *beta))
                    .collect();
                y.at(at).store_span(&results);
            });
        });
    }
}

impl Variant for Backward {
    const KERNEL: &'static str = "layer_norm/backward";

    rows::variants!(rows: Rows, accum);

    fn write(&self, k: &Assembler) {
        let storage = self.rows.access.storage;
        k.contract(&format!(
            "With g = gamma * dy: dx {} rstd * (g - mean g - xhat * mean(g * xhat)) for each row, {};\n\
             partial_gamma[block] = sum dy * xhat, partial_beta[block] = sum dy over the block's rows, f32.\n{}\n\
             Reads dy and x and writes dx. The warps' sums meet in shared memory.",
            self.accum.symbol(),
            storage.name(),
            self.rows.describe_blocks()
        ));
        let dx = k.floats(storage, "dx");
        let partial_gamma = k.buffer::<F32>("partial_gamma");
        let partial_beta = k.buffer::<F32>("partial_beta");
        let dy = k.floats(storage, "dy").read_only();
        let x = k.floats(storage, "x").read_only();
        let means = k.buffer::<F32>("mean").read_only();
        let rstds = k.buffer::<F32>("rstd").read_only();
        let gamma = k.floats(storage, "gamma").read_only();
        let block = self.rows.block(k);
        let c = block.shared().length().to_f32();
        let gamma = block.read_shared(gamma);
        let statistics = [means, rstds].map(|numbers| block.numbers_read(numbers));
        let sums = [partial_gamma, partial_beta].map(|partial| block.sums(partial));
        block.for_each_row(&statistics, |row| {
            let (dy, x) = (row.read(dy), row.read(x));
            let [mean, rstd] = statistics.map(|numbers| numbers.get(row));
            let operands = [&dy, &x, &gamma];
            k.comment("what dx subtracts");
            let offset = row.fold(Fold::Sum, &[&dy, &gamma], |sum, x| x[0].mul_add(x[1], sum)) / c;
            let along = row.fold(Fold::Sum, &operands, |sum, x| {
                let [dy, x, gamma] = [x[0], x[1], x[2]];
                (dy * gamma).mul_add(x - mean, sum)
            });
            let slope = rstd * rstd * along / c;
            k.if_(dx.is_present(), || {
                row.for_each_span(&operands, |at, operands| {
                    let results: Vec<_> = operands[0]
                        .iter()
                        .zip(&operands[1])
                        .zip(&operands[2])
                        .map(|((dy, x), gamma)| {
                            rstd * (*gamma * *dy - offset - (*x - mean) * slope)
                        })
                        .collect();
                    dx.at(at).put_span(self.accum, &results);
                });
            });
            k.comment("the parameters' gradients");
            row.add([&sums[0], &sums[1]], &[&dy, &x], |x| {
                let [dy, x] = [x[0], x[1]];
                [dy * ((x - mean) * rstd), dy]
            });
        });
        block.finish(&sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Float;
    use crate::ops::layer_norm::{LayerNormGradients, backward, forward};
    use crate::ops::reduce;
    use crate::sim::Profile;
    use crate::testing::gpu::{assert_moves, decode, encode, stored_values};
    use crate::testing::operands::{Operand, assert_within_budget, rounded, simulate};
    use crate::testing::to_f64;

    /// Every team, whole chunks or not, one block or several.
    const SHAPES: [[usize; 2]; 9] = [
        [1, 1],
        [9, 5],
        [67, 77],
        [3, 256],
        [20, 1000],
        [33, 1027],
        [2, 4096],
        [64, 2048],
        [17, 8200],
    ];

    struct Case {
        d: LayerNorm,
        storage: Storage,
        accum: Accum,
        /// x beside whose mean the differences are small, dy, gamma, beta.
        operands: [Vec<f32>; 4],
    }

    impl Case {
        fn new(storage: Storage, accum: Accum, [rows, c]: [usize; 2]) -> Case {
            let n = rows * c;
            let mut operands =
                [(n, 1), (n, 2), (c, 3), (c, 4)].map(|(n, seed)| stored_values(storage, n, seed));
            operands[0].iter_mut().for_each(|x| *x += 8.0);
            operands[0] = rounded(storage, &operands[0]);
            Case {
                d: LayerNorm { rows, c, eps: 1e-5 },
                storage,
                accum,
                operands,
            }
        }

        /// What gradients are added to.
        fn old(&self, n: usize) -> Vec<f32> {
            stored_values(self.storage, n, 99)
        }

        /// y, mean, rstd, dx, dgamma and dbeta on the CPU.
        fn on_cpu<T: Float>(
            &self,
            operands: [&[T]; 4],
            old: impl Fn(usize) -> Vec<T>,
        ) -> [Vec<T>; 6] {
            let [x, dy, gamma, beta] = operands;
            let LayerNorm { rows, c, .. } = self.d;
            let [mut y, mut mean, mut rstd] = [rows * c, rows, rows].map(|n| vec![T::ZERO; n]);
            forward(&self.d, &mut y, &mut mean, &mut rstd, x, gamma, beta);
            let [mut dx, mut dgamma, mut dbeta] = [rows * c, c, c].map(old);
            let gradients = LayerNormGradients {
                dx: Some((&mut dx, self.accum)),
                dgamma: Some((&mut dgamma, self.accum)),
                dbeta: Some((&mut dbeta, self.accum)),
            };
            backward(&self.d, gradients, dy, x, &mean, &rstd, gamma);
            [y, mean, rstd, dx, dgamma, dbeta]
        }

        fn destination(&self, n: usize) -> Operand {
            match self.accum {
                Accum::Replace => Operand::Out(n * self.storage.bytes() as usize),
                Accum::Add => Operand::InOut(encode(self.storage, &self.old(n))),
            }
        }

        /// The same by the kernels, and the profiles of both.
        fn on_gpu(&self) -> ([Vec<f32>; 6], [Profile; 2]) {
            let LayerNorm { rows, c, eps } = self.d;
            let n = rows * c;
            let [x, dy, gamma, beta] = &self.operands;
            let read = |x: &Vec<f32>| Operand::In(encode(self.storage, x));
            let numbers = |numbers: &[u32]| numbers.iter().map(|&n| Operand::U32(n)).collect();
            let call = Forward::config(self.storage, &self.d).expect("few elements");
            let y = Operand::Out(n * self.storage.bytes() as usize);
            let statistics = [(); 2].map(|()| Operand::Out(4 * rows));
            let operands: [Vec<Operand>; 5] = [
                vec![y],
                statistics.to_vec(),
                [x, gamma, beta].map(read).to_vec(),
                vec![Operand::F32(eps as f32)],
                numbers(&call.numbers),
            ];
            let (outputs, forward) = simulate(&call.plan, &operands.concat());
            let [y, mean, rstd] = outputs.try_into().expect("three outputs");

            let (mut call, mut blocks) =
                Backward::config(self.storage, self.accum, &self.d).expect("few elements");
            if rows == 64 {
                // A block as it is in a tensor of 264 times as many rows.
                (call.numbers[2], call.plan.grid, blocks) = (64, [1; 3], 1);
            }
            let operands: [Vec<Operand>; 5] = [
                vec![self.destination(n)],
                vec![Operand::Out(4 * blocks * c); 2],
                [dy, x].map(read).to_vec(),
                vec![
                    Operand::In(mean.clone()),
                    Operand::In(rstd.clone()),
                    read(gamma),
                ],
                numbers(&call.numbers),
            ];
            let mut operands = operands.concat();
            let (outputs, backward) = simulate(&call.plan, &operands);
            let [dx, partial_gamma, partial_beta] = outputs.try_into().expect("three outputs");
            let [dgamma, dbeta] = [&partial_gamma, &partial_beta].map(|partial| {
                let passes = reduce::ptx::config(
                    Storage::F32,
                    self.storage,
                    self.accum,
                    &[blocks, c],
                    &[true, false],
                );
                let passes = passes.expect("few elements");
                assert_eq!(passes.len(), 1);
                let call = &passes[0].call;
                let first = [
                    self.destination(c),
                    Operand::In(partial.clone()),
                    Operand::F32(1.0),
                ];
                let operands = [first.to_vec(), numbers(&call.numbers)].concat();
                let (mut outputs, _) = simulate(&call.plan, &operands);
                outputs.remove(0)
            });

            // Gradients that nobody wants change none of the others.
            operands[1] = Operand::Absent;
            let (alone, _) = simulate(&call.plan, &operands);
            assert!(alone == [dx.clone(), partial_beta.clone()]);
            operands[0] = Operand::Absent;
            let (alone, _) = simulate(&call.plan, &operands);
            assert!(alone == [partial_beta]);

            let stored = [y, dx, dgamma, dbeta].map(|x| decode(self.storage, &x));
            let [y, dx, dgamma, dbeta] = stored;
            let [mean, rstd] = [mean, rstd].map(|x| decode(Storage::F32, &x));
            ([y, mean, rstd, dx, dgamma, dbeta], [forward, backward])
        }
    }

    #[test]
    fn it_is_that_of_cpus() {
        const NAMES: [&str; 6] = ["y", "mean", "rstd", "dx", "dgamma", "dbeta"];
        for storage in Storage::ALL {
            for shape in SHAPES {
                for accum in Accum::ALL {
                    let case = Case::new(storage, accum, shape);
                    let single = case.operands.each_ref().map(Vec::as_slice);
                    let wide = case.operands.each_ref().map(|x| to_f64(x));
                    let wide = wide.each_ref().map(Vec::as_slice);
                    let naive = case.on_cpu(single, |n| case.old(n));
                    let exact = case.on_cpu(wide, |n| to_f64(&case.old(n)));
                    let (got, profiles) = case.on_gpu();
                    for i in 0..6 {
                        let statistics = i == 1 || i == 2;
                        let storage = if statistics { Storage::F32 } else { storage };
                        let name = format!("{} of {shape:?} {storage:?} {accum:?}", NAMES[i]);
                        assert_within_budget(&name, storage, &got[i], &naive[i], &exact[i]);
                    }
                    for profile in &profiles {
                        assert_eq!(profile.bank_conflicts(), [], "{shape:?} {storage:?}");
                    }
                    if shape == [64, 2048] && accum == Accum::Replace {
                        let n = 64 * 2048 * storage.bytes() as usize;
                        assert_moves("forward", &profiles[0], 2 * n);
                        assert_moves("backward", &profiles[1], 3 * n);
                    }
                }
            }
        }
    }

    /// The second statistic is not E[x²] − m², of which nothing would be left.
    #[test]
    fn a_mean_far_from_zero_costs_nothing() {
        let d = LayerNorm {
            rows: 2,
            c: 300,
            eps: 1e-5,
        };
        let x: Vec<f32> = stored_values(Storage::F32, 600, 1)
            .iter()
            .map(|x| x + 1000.0)
            .collect();
        let [gamma, beta] = [vec![1.0f32; 300], vec![0.0; 300]];
        let call = Forward::config(Storage::F32, &d).expect("few elements");
        let mut operands = vec![Operand::Out(2400), Operand::Out(8), Operand::Out(8)];
        operands.extend([&x, &gamma, &beta].map(|x| Operand::In(encode(Storage::F32, x))));
        operands.push(Operand::F32(1e-5));
        operands.extend(call.numbers.iter().map(|&n| Operand::U32(n)));
        let (outputs, _) = simulate(&call.plan, &operands);
        let got = decode(Storage::F32, &outputs[0]);
        let [mut y, mut mean, mut rstd] = [600, 2, 2].map(|n| vec![0.0f32; n]);
        forward(&d, &mut y, &mut mean, &mut rstd, &x, &gamma, &beta);
        let [mut exact, mut mean, mut rstd] = [600, 2, 2].map(|n| vec![0.0f64; n]);
        let wide = [&x, &gamma, &beta].map(|x| to_f64(x));
        forward(
            &d, &mut exact, &mut mean, &mut rstd, &wide[0], &wide[1], &wide[2],
        );
        assert_within_budget("y", Storage::F32, &got, &y, &exact);
    }
}
