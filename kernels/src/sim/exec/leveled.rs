//! Two machine codes for the few loops that most of a simulation's time goes to.
//!
//! [`crate::multiversion`] makes three, which for loops over every operation of a kind is minutes of compilation; 32
//! lanes fill AVX2 registers well enough.

/// Compiles a function for AVX2 with FMA and for the baseline, and chooses at run time. The same bits from both: fused
/// multiply-adds are spelled out.
macro_rules! leveled {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) -> $ret:ty $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) -> $ret {
            #[inline(always)]
            fn body($($arg: $ty),*) -> $ret $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) -> $ret { body($($arg),*) }
                if $crate::simd::level() >= $crate::simd::Level::Avx2 {
                    // SAFETY: `level` never exceeds what was detected on this CPU.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}

pub(super) use leveled;
