//! How kernels find their way in tensors of any size: numbers that a launch passes, and division by them.

use crate::launch::{Argument, Launch};
use crate::ops::variants::{MAX_ELEMENTS, Plan, Refused, Variant};
use crate::ptx::{Assembled, Assembler, U32, Value};

/// A plan, and the numbers that its kernel takes after everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<V> {
    pub plan: Plan<V>,
    pub numbers: Vec<u32>,
}

impl<V: Variant> Call<V> {
    pub fn new(variant: V, grid: [u32; 3], numbers: Vec<u32>) -> Call<V> {
        Call {
            plan: Plan { variant, grid },
            numbers,
        }
    }

    pub fn assemble(&self) -> (Assembled, Launch) {
        self.plan.assemble()
    }

    /// All arguments of the launch: `operands` in the order that the kernel's description gives, then the numbers.
    pub fn arguments<'a>(&self, operands: Vec<Argument<'a>>) -> Vec<Argument<'a>> {
        let numbers = self.numbers.iter().map(|&n| Argument::U32(n));
        operands.into_iter().chain(numbers).collect()
    }
}

/// A grid of `ctas` along x.
///
/// # Errors
/// If there are more than a grid holds.
pub fn linear_grid(ctas: usize) -> Result<[u32; 3], Refused> {
    match u32::try_from(ctas) {
        Ok(ctas) if (ctas as usize) < MAX_ELEMENTS => Ok([ctas, 1, 1]),
        _ => Err(Refused(format!(
            "it takes {ctas} CTAs, and a grid has fewer than {MAX_ELEMENTS}"
        ))),
    }
}

/// A divisor that is known at launch. GPUs have no instruction for division: by this it is a multiplication, an
/// addition and a shift (Granlund & Montgomery, PLDI 1994, figure 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divisor {
    divisor: u32,
    multiplier: u32,
    shift: u32,
}

impl Divisor {
    /// `divisor` is 1 to 2³¹.
    pub fn new(divisor: u32) -> Divisor {
        debug_assert!((1..=1 << 31).contains(&divisor));
        let shift = divisor.next_power_of_two().trailing_zeros();
        let excess = (1u64 << shift) - u64::from(divisor);
        Divisor {
            divisor,
            multiplier: ((excess << 32) / u64::from(divisor) + 1) as u32,
            shift,
        }
    }

    /// What the kernel's [`Division`] takes.
    pub fn numbers(self) -> [u32; 3] {
        [self.divisor, self.multiplier, self.shift]
    }
}

/// The registers of a [`Divisor`].
#[derive(Clone, Copy, Debug)]
pub struct Division<'k> {
    divisor: Value<'k, U32>,
    multiplier: Value<'k, U32>,
    shift: Value<'k, U32>,
}

impl<'k> Division<'k> {
    /// Declares the next three parameters.
    pub fn parameter(k: &'k Assembler, name: &str) -> Division<'k> {
        Division {
            divisor: k.parameter(name),
            multiplier: k.parameter(&format!("{name}_multiplier")),
            shift: k.parameter(&format!("{name}_shift")),
        }
    }

    pub fn divisor(self) -> Value<'k, U32> {
        self.divisor
    }

    /// The quotient of `n` < 2³¹.
    pub fn quotient(self, n: Value<'k, U32>) -> Value<'k, U32> {
        (n.mul_hi(self.multiplier) + n).shift_right_by(self.shift)
    }

    /// Quotient and remainder of `n` < 2³¹.
    pub fn split(self, n: Value<'k, U32>) -> [Value<'k, U32>; 2] {
        let quotient = self.quotient(n);
        [quotient, n - quotient * self.divisor]
    }
}

/// Where the combination number `index` of some loops lies, for each list of their strides. `extents` are those of all
/// loops but the outermost.
pub fn place<'k>(
    index: Value<'k, U32>,
    extents: &[Division<'k>],
    strides: &[&[Value<'k, U32>]],
) -> Vec<Value<'k, U32>> {
    let zero = Value::from_bits(0);
    let mut at = vec![zero; strides.len()];
    let mut rest = index;
    let loops = strides[0].len();
    for l in (0..loops).rev() {
        let index = match l {
            0 => rest,
            _ => {
                let [quotient, remainder] = extents[l - 1].split(rest);
                rest = quotient;
                remainder
            }
        };
        for (at, strides) in at.iter_mut().zip(strides) {
            *at = index.mul_add(strides[l], *at);
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_is_exact_below_two_to_the_31() {
        let edges = |d: u32| {
            let last = (1u32 << 31) - 1;
            let multiples = [1, 2, 3, last / d].map(|m| d.saturating_mul(m).min(last));
            let around = move |m: u32| [m.saturating_sub(1), m, (m + 1).min(last)];
            multiples.into_iter().flat_map(around).chain([0, last])
        };
        let powers = (0..32).map(|p| 1u32 << p);
        let divisors = (1..3000).chain(powers.flat_map(|p| [p, (p + 1).min(1 << 31)]));
        for d in divisors.chain((1..500).map(|i| i * 4_294_967)) {
            let [divisor, multiplier, shift] = Divisor::new(d).numbers();
            for n in edges(d) {
                let high = (u64::from(n) * u64::from(multiplier)) >> 32;
                let quotient = (high as u32 + n) >> shift;
                assert_eq!(quotient, n / divisor, "{n} / {d}");
            }
        }
    }
}
