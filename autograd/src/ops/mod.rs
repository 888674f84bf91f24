//! Every differentiable op: forward on [`Var`](crate::Var)s, backward, and spec, one file an op.

use crate::spec::OpSpec;

/// Declares the ops' modules and the list that tests and benches iterate over, so that an op cannot exist outside it.
macro_rules! ops {
    ($($stem:ident),* $(,)?) => {
        $(pub mod $stem;)*
        /// The spec of every op.
        pub const ALL: &[&dyn OpSpec] = &[$(&$stem::Spec),*];
    };
}

ops! {
    affine,
    attention,
    attention_map,
    avg_pool2,
    binary,
    concat,
    conv2d,
    cross_entropy,
    dropout,
    embedding,
    gather_rows,
    gaussian_blur,
    group_norm,
    l2_normalize,
    layer_norm,
    matmul,
    mse,
    muon,
    nearest_up2,
    optimizer,
    permute,
    randn,
    reduce,
    reshape,
    resize,
    select_rows,
    softmax,
    split,
    timestep_embedding,
    unary,
    variational_bound,
}
