//! One folder per op: descriptor and contract in `mod.rs`, CPU code in `cpu.rs`, GPU kernels in
//! `ptx.rs` and in the table of [`variants`].

pub mod affine;
pub mod attention;
pub mod avg_pool2;
pub mod binary;
pub mod concat;
pub mod conv2d;
pub mod copy;
pub mod cross_entropy;
pub mod dropout;
mod elementwise;
pub mod embedding;
mod fragments;
pub mod gather_rows;
pub mod gaussian_blur;
pub mod geometry;
pub mod group_norm;
pub mod l2_normalize;
pub mod layer_norm;
pub mod matmul;
pub mod mse;
pub mod nearest_up2;
pub mod optimizer;
pub mod random;
pub mod reduce;
mod reduction;
pub mod resize;
pub mod rows;
pub mod select_rows;
pub mod softmax;
pub mod spans;
pub mod split;
pub mod timestep_embedding;
pub mod unary;
pub mod variants;
pub mod variational_bound;
