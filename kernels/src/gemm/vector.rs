//! Registers as values: what the micro-kernel needs of AVX-512, of AVX2 + FMA, and of arrays on any other machine.

use crate::Float;

/// One register of elements, and the tile that suits its instruction set.
///
/// # Safety
/// Every method must run inside a function compiled for the register's instruction set, on a CPU that has it, and
/// pointers must be valid for `LANES` elements.
pub trait Vector: Copy {
    type Element: Float;
    const LANES: usize;
    unsafe fn splat(x: Self::Element) -> Self;
    unsafe fn load(from: *const Self::Element) -> Self;
    unsafe fn store(self, to: *mut Self::Element);
    unsafe fn add(self, other: Self) -> Self;
    /// `self · b + c`, rounded once.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// Writes the transpose of a [`TRANSPOSE`]² tile; both sides have a row stride and need only be valid for the tile.
    unsafe fn transpose(
        from: *const Self::Element,
        from_stride: usize,
        to: *mut Self::Element,
        to_stride: usize,
    ) {
        for i in 0..TRANSPOSE {
            for j in 0..TRANSPOSE {
                // SAFETY: inside the tile.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) };
            }
        }
    }
}

/// Side of the tiles that [`Vector::transpose`] moves.
pub const TRANSPOSE: usize = 8;

/// The registers that hold an element type. Part of [`Float`], so that every kernel can ask for them.
pub trait Registers: Sized {
    #[cfg(target_arch = "x86_64")]
    type Avx512: Vector<Element = Self>;
    #[cfg(target_arch = "x86_64")]
    type Avx2: Vector<Element = Self>;
    type Portable: Vector<Element = Self>;
}

impl Registers for f32 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = std::arch::x86_64::__m512;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = std::arch::x86_64::__m256;
    type Portable = [f32; 4];
}

impl Registers for f64 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = std::arch::x86_64::__m512d;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = std::arch::x86_64::__m256d;
    type Portable = [f64; 4];
}

impl<T: Float> Vector for [T; 4] {
    type Element = T;
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: T) -> Self {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const T) -> Self {
        // SAFETY: valid for `LANES` elements by the trait's contract.
        unsafe { from.cast::<Self>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut T) {
        // SAFETY: valid for `LANES` elements by the trait's contract.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        std::array::from_fn(|i| self[i].mul_add(b[i], c[i]))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use std::arch::x86_64::*;

    macro_rules! vector {
        ($register:ident of $element:ident, $lanes:literal: $splat:ident, $load:ident, $store:ident, $add:ident, $fma:ident $(, $transpose:ident)?) => {
            impl Vector for $register {
                type Element = $element;
                const LANES: usize = $lanes;
                #[inline(always)]
                unsafe fn splat(x: $element) -> Self {
                    // SAFETY: the instruction set is there by the trait's contract.
                    unsafe { $splat(x) }
                }
                #[inline(always)]
                unsafe fn load(from: *const $element) -> Self {
                    // SAFETY: instruction set and pointer are valid by the trait's contract.
                    unsafe { $load(from) }
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut $element) {
                    // SAFETY: instruction set and pointer are valid by the trait's contract.
                    unsafe { $store(to, self) }
                }
                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    // SAFETY: the instruction set is there by the trait's contract.
                    unsafe { $add(self, other) }
                }
                #[inline(always)]
                unsafe fn mul_add(self, b: Self, c: Self) -> Self {
                    // SAFETY: the instruction set is there by the trait's contract.
                    unsafe { $fma(self, b, c) }
                }
                $(
                #[inline(always)]
                unsafe fn transpose(from: *const $element, from_stride: usize, to: *mut $element, to_stride: usize) {
                    // SAFETY: instruction set and tile are valid by the trait's contract.
                    unsafe { $transpose(from, from_stride, to, to_stride) }
                }
                )?
            }
        };
    }
    vector!(__m512 of f32, 16: _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps);
    vector!(__m512d of f64, 8: _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_add_pd, _mm512_fmadd_pd);
    vector!(__m256 of f32, 8: _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_fmadd_ps, transpose_8x8);
    vector!(__m256d of f64, 4: _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_add_pd, _mm256_fmadd_pd);

    /// Three rounds of shuffles: pairs, quadruples, halves of registers.
    #[target_feature(enable = "avx2")]
    unsafe fn transpose_8x8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller vouches for eight rows of eight elements on both sides.
        unsafe {
            let row: [__m256; 8] =
                std::array::from_fn(|i| _mm256_loadu_ps(from.add(i * from_stride)));
            let pairs: [__m256; 8] = std::array::from_fn(|i| {
                let (a, b) = (row[i / 2 * 2], row[i / 2 * 2 + 1]);
                if i % 2 == 0 {
                    _mm256_unpacklo_ps(a, b)
                } else {
                    _mm256_unpackhi_ps(a, b)
                }
            });
            // Column c of each half-register, from rows 0..4 (`quads[c]`) and 4..8 (`quads[4 + c]`).
            let quads: [__m256; 8] = std::array::from_fn(|i| {
                let (a, b) = (
                    pairs[i / 4 * 4 + i % 4 / 2],
                    pairs[i / 4 * 4 + 2 + i % 4 / 2],
                );
                if i % 2 == 0 {
                    _mm256_shuffle_ps::<0x44>(a, b)
                } else {
                    _mm256_shuffle_ps::<0xEE>(a, b)
                }
            });
            for c in 0..4 {
                let (a, b) = (quads[c], quads[4 + c]);
                _mm256_storeu_ps(to.add(c * to_stride), _mm256_permute2f128_ps::<0x20>(a, b));
                _mm256_storeu_ps(
                    to.add((c + 4) * to_stride),
                    _mm256_permute2f128_ps::<0x31>(a, b),
                );
            }
        }
    }
}
