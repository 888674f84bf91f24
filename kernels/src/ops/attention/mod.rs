//! Scaled dot-product attention with causal and key masks and added context keys, and its gradients.

mod cpu;
pub mod ptx;
#[cfg(test)]
mod tests;

pub use cpu::{Gradients, backward, forward, probabilities};

/// out = softmax(scale · q·[context_k; k]ᵀ) · [context_v; v] per image and head.
///
/// q and out are [n, queries, heads·head_dim]; k and v [n, keys, heads·head_dim]; the context's keys and values
/// [n, context, heads·head_dim] come before the own keys in one joint softmax, as in the decoder of unCLIP.
/// A mask [n, context + keys] holds 1 where a key may be attended. Under `causal`, query i sees the own keys 0..=i and
/// the whole context. A query that sees no key gives zeros.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub n: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub queries: usize,
    /// Own keys.
    pub keys: usize,
    /// Context keys; 0 where there is no context.
    pub context: usize,
    pub causal: bool,
    pub scale: f64,
}
