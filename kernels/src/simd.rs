//! One source, three machine codes: a leaf loop is compiled for AVX-512, for AVX2 + FMA and for the baseline, and the
//! best that this CPU runs is chosen at run time.
//!
//! The level never changes a bit of any result: bodies spell out every fused multiply-add (`mul_add`), the compiler
//! contracts nothing by itself, and sums run over [`LANES`] virtual lanes whatever the registers' width.

use std::sync::atomic::{AtomicU8, Ordering};

/// Number of partial sums in every reduction, at every SIMD level. Element `i` belongs to lane `i % LANES`.
pub const LANES: usize = 16;

/// An instruction set that the leaf loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// What every x86-64 (or other) CPU runs; fused multiply-adds are emulated and slow.
    Baseline = 1,
    /// AVX2 and FMA.
    Avx2 = 2,
    /// AVX-512 F, VL, DQ and BW.
    Avx512 = 3,
}

static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The best level that this CPU supports.
pub fn supported() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        if avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
        {
            return Level::Avx512;
        }
        if avx2 {
            return Level::Avx2;
        }
    }
    Level::Baseline
}

/// The level in use: [`supported`], unless `UNCLIP_SIMD` (`avx512`, `avx2`, `baseline`) or [`set_level`] lowered it.
#[inline]
pub fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        3 => Level::Avx512,
        2 => Level::Avx2,
        1 => Level::Baseline,
        _ => {
            let wanted = match std::env::var("UNCLIP_SIMD").as_deref() {
                Ok("baseline") => Level::Baseline,
                Ok("avx2") => Level::Avx2,
                _ => Level::Avx512,
            };
            set_level(wanted)
        }
    }
}

/// Lowers the level for the whole process (never above what the CPU supports) and returns the one now in use.
///
/// For tests that compare levels and for benches; results are the same at every level.
pub fn set_level(wanted: Level) -> Level {
    let level = wanted.min(supported());
    LEVEL.store(level as u8, Ordering::Relaxed);
    level
}

/// Declares a leaf function once and compiles it for every [`Level`].
///
/// The body must not call rayon: a closure that runs on another thread is compiled outside the target-feature wrapper.
/// Split the work first (see [`crate::parallel`]), then call a multiversioned leaf on each part.
///
/// ```
/// use kernels::Float;
/// kernels::multiversion! {
///     /// y = a·x + y
///     pub fn axpy<T: Float>(y: &mut [T], a: T, x: &[T]) {
///         for (y, &x) in y.iter_mut().zip(x) {
///             *y = a.mul_add(x, *y);
///         }
///     }
/// }
/// let mut y = [1.0f32, 2.0];
/// axpy(&mut y, 2.0, &[10.0, 20.0]);
/// assert_eq!(y, [21.0, 42.0]);
/// ```
#[macro_export]
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($g:ident : $bound:path),+>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        // One argument per operand and size: a leaf is the inside of a loop, not an interface.
        #[allow(clippy::too_many_arguments)]
        #[inline]
        $vis fn $name $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512 $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2 $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                match $crate::simd::level() {
                    // SAFETY: `level` never exceeds what `supported` detected on this CPU.
                    $crate::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::simd::Level::Baseline => {}
                }
            }
            body($($arg),*)
        }
    };
}

/// Adds the virtual lanes in one fixed tree.
#[inline(always)]
pub fn fold_lanes<T: crate::Float>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = lanes[i] + lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Σ f(xᵢ) over the virtual lanes; inline it into a [`multiversion!`] body.
#[inline(always)]
pub fn sum_map<T: crate::Float>(x: &[T], f: impl Fn(T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let mut blocks = x.chunks_exact(LANES);
    for block in &mut blocks {
        for l in 0..LANES {
            lanes[l] = lanes[l] + f(block[l]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(blocks.remainder()) {
        *lane = *lane + f(x);
    }
    fold_lanes(lanes)
}

/// Σ xᵢ·yᵢ over the virtual lanes; inline it into a [`multiversion!`] body.
#[inline(always)]
pub fn dot<T: crate::Float>(x: &[T], y: &[T]) -> T {
    let mut lanes = [T::ZERO; LANES];
    let mut xs = x.chunks_exact(LANES);
    let mut ys = y.chunks_exact(LANES);
    for (x, y) in (&mut xs).zip(&mut ys) {
        for l in 0..LANES {
            lanes[l] = x[l].mul_add(y[l], lanes[l]);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(xs.remainder()).zip(ys.remainder()) {
        *lane = x.mul_add(y, *lane);
    }
    fold_lanes(lanes)
}
