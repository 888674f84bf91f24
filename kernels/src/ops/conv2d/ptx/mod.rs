//! Convolution on GPUs since Ampere, as a matrix product of patches that never exist in global memory with the weights.
//!
//! Tiles, pipeline, products and epilogue are those of [`crate::ops::matmul::ptx`]; only the left operand comes another
//! way ([`patches`]); and for the gradient of the weights, where k runs over pixels, the right one ([`columns`]).

mod backward_weight;
mod columns;
mod flip;
mod patches;
#[cfg(test)]
mod tests;

pub use backward_weight::{BackwardWeight, config_backward_weight};
pub use flip::Flip;

use super::Conv2d;
use crate::Accum;
use crate::launch::Arch;
use crate::ops::matmul::ptx::epilogue::{Epilogue, Fused, Operands};
use crate::ops::matmul::ptx::operand::{Dimension, Element, Operand, Side};
use crate::ops::matmul::ptx::{Sums, Tile, Tiling, multiply, rasterise, scalar, tensor};
use crate::ops::variants::{Plan, Refused, Variant, count};
use crate::ptx::{Assembler, Bf16, F32, IntoValue, Storage, U32, Value};
use patches::{Patches, Sizes};

/// y = conv(x, weight) + bias + residual.
///
/// Launch with `Write(y), Read(x), Read(weight)`, `Read(bias)` or `Null`, `Read(residual)` or `Null`, then `U32` of each of
/// [`Forward::sizes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub storage: Storage,
    pub tile: Tile,
    /// Whether channels come in whole chunks of 16 bytes, in x and in y.
    pub aligned: bool,
}

/// dx (+)= the gradient of [`Forward`] for dy: a convolution of dy, spread by the stride, with flipped weights.
///
/// Launch [`Flip`] first; then with `Write(dx)`, or `Update(dx)` under [`Accum::Add`], `Read(dy), Read(flipped), Null, Null`,
/// and `U32` of each of [`BackwardInput::sizes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackwardInput {
    pub storage: Storage,
    pub tile: Tile,
    pub aligned: bool,
    /// Whether the stride is more than 1.
    pub spread: bool,
    pub accum: Accum,
}

/// The numbers of a launch, in the order of [`Sizes`].
pub type Numbers = [u32; 13];

impl Forward {
    pub fn sizes(d: &Conv2d) -> Numbers {
        [
            d.n,
            d.h,
            d.w,
            d.c_in,
            d.c_out,
            d.kernel_h,
            d.kernel_w,
            d.stride,
            d.padding,
            d.padding,
            1,
            d.out_h(),
            d.out_w(),
        ]
        .map(|size| size as u32)
    }
}

impl BackwardInput {
    /// Tap u of pixel i reached pixel i·stride + u − padding: from there, mirrored tap u reaches back to
    /// (i + u − (kernel − 1 − padding)) / stride. A padding below zero wraps, as coordinates do.
    pub fn sizes(d: &Conv2d) -> Numbers {
        let padding = |kernel: usize| (kernel as u32).wrapping_sub(1 + d.padding as u32) as usize;
        [
            d.n,
            d.out_h(),
            d.out_w(),
            d.c_out,
            d.c_in,
            d.kernel_h,
            d.kernel_w,
            1,
            padding(d.kernel_h),
            padding(d.kernel_w),
            d.stride,
            d.h,
            d.w,
        ]
        .map(|size| size as u32)
    }
}

/// The forward kernel for a descriptor.
///
/// # Errors
/// If there are no input channels, or an operand is larger than kernels count.
pub fn config(d: &Conv2d, storage: Storage, _arch: Arch) -> Result<Plan<Forward>, Refused> {
    check(d)?;
    let pixels = d.n * d.out_h() * d.out_w();
    let (tile, aligned, grid) = tiles(storage, pixels, [d.c_in, d.c_out]);
    Ok(Plan {
        variant: Forward {
            storage,
            tile,
            aligned,
        },
        grid,
    })
}

/// The kernels for the gradient of x.
///
/// # Errors
/// If there are no channels, or an operand is larger than kernels count.
pub fn config_backward_input(
    d: &Conv2d,
    storage: Storage,
    accum: Accum,
    _arch: Arch,
) -> Result<(Plan<Flip>, Plan<BackwardInput>), Refused> {
    check(d)?;
    let (tile, aligned, grid) = tiles(storage, d.n * d.h * d.w, [d.c_out, d.c_in]);
    let variant = BackwardInput {
        storage,
        tile,
        aligned,
        spread: d.stride > 1,
        accum,
    };
    Ok((Flip::plan(d, storage), Plan { variant, grid }))
}

/// Refuses what kernels cannot count.
fn check(d: &Conv2d) -> Result<(), Refused> {
    if d.c_in == 0 || d.c_out == 0 {
        return Err(Refused("there are no channels".to_string()));
    }
    let product = |factors: &[usize]| factors.iter().fold(1usize, |p, &f| p.saturating_mul(f));
    let pixels = product(&[d.n, d.out_h(), d.out_w()]);
    let weights = product(&[d.c_out, d.kernel_h, d.kernel_w, d.c_in]);
    for (elements, what) in [
        (product(&[d.n, d.h, d.w, d.c_in]), "the size of x"),
        (product(&[pixels, d.c_out]), "the size of y"),
        (weights, "the size of the weights"),
        (
            product(&[d.h.max(d.w), d.stride]),
            "the image times the stride",
        ),
        (d.padding, "the padding"),
    ] {
        count(elements, what)?;
    }
    Ok(())
}

/// Tile, whether channels come in whole chunks, and grid, for so many output pixels and channels on either side.
fn tiles(storage: Storage, pixels: usize, channels: [usize; 2]) -> (Tile, bool, [u32; 3]) {
    let chunk = storage.chunk() as usize;
    let aligned = channels.iter().all(|c| c.is_multiple_of(chunk));
    let ctas = |tile| {
        let [rows, columns] = Tiling::new(tile, storage).cta;
        pixels.div_ceil(rows as usize) * channels[1].div_ceil(columns as usize)
    };
    // As for matrix products: a large tile reads half as much for each product as a small one, but small ones fill a GPU
    // of some 130 multiprocessors with four times fewer outputs. Element-wise copies are bound by their instructions.
    let tile = match aligned && ctas(Tile::Large) >= 128 {
        true => Tile::Large,
        false => Tile::Small,
    };
    (tile, aligned, [ctas(tile) as u32, 1, 1])
}

/// As the configs have it, only whole chunks come in large tiles.
const TILES: [(Tile, bool); 3] = [
    (Tile::Large, true),
    (Tile::Small, true),
    (Tile::Small, false),
];

fn label(storage: Storage, tile: Tile, aligned: bool) -> String {
    format!(
        "{}_{}_{}",
        storage.name(),
        match tile {
            Tile::Large => "large",
            Tile::Small => "small",
        },
        if aligned { "aligned" } else { "any" },
    )
}

impl Variant for Forward {
    const KERNEL: &'static str = "conv2d/forward";

    fn all() -> Vec<Forward> {
        let of = |storage| {
            TILES.map(|(tile, aligned)| Forward {
                storage,
                tile,
                aligned,
            })
        };
        Storage::ALL.into_iter().flat_map(of).collect()
    }

    fn label(&self) -> String {
        label(self.storage, self.tile, self.aligned)
    }

    fn block(&self) -> [u32; 3] {
        [Tiling::new(self.tile, self.storage).threads(), 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract("y = conv(x, weight) + bias + residual.");
        let product = Product {
            storage: self.storage,
            tile: self.tile,
            aligned: self.aligned,
            spread: false,
            accum: Accum::Replace,
        };
        product.write(k);
    }
}

impl Variant for BackwardInput {
    const KERNEL: &'static str = "conv2d/backward_input";

    fn all() -> Vec<BackwardInput> {
        let mut all = vec![];
        for storage in Storage::ALL {
            for (tile, aligned) in TILES {
                for spread in [false, true] {
                    all.extend(Accum::ALL.map(|accum| BackwardInput {
                        storage,
                        tile,
                        aligned,
                        spread,
                        accum,
                    }));
                }
            }
        }
        all
    }

    fn label(&self) -> String {
        let tile = label(self.storage, self.tile, self.aligned);
        let stride = if self.spread { "spread" } else { "dense" };
        format!("{tile}_{stride}_{}", self.accum.name())
    }

    fn block(&self) -> [u32; 3] {
        [Tiling::new(self.tile, self.storage).threads(), 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "dx {} conv(dy, flipped weights): y is dx here, and x is dy.",
            self.accum.symbol()
        ));
        let product = Product {
            storage: self.storage,
            tile: self.tile,
            aligned: self.aligned,
            spread: self.spread,
            accum: self.accum,
        };
        product.write(k);
    }
}

/// What both passes are: y = patches of x times weights.
struct Product {
    storage: Storage,
    tile: Tile,
    aligned: bool,
    spread: bool,
    accum: Accum,
}

impl Product {
    fn write(&self, k: &Assembler) {
        match self.storage {
            Storage::F32 => self.write_as::<F32, scalar::Sums>(k),
            Storage::Bf16 => self.write_as::<Bf16, tensor::Sums>(k),
        }
    }

    fn write_as<'k, E: Element, S: Sums<'k, E>>(&self, k: &'k Assembler) {
        let tiling = Tiling::new(self.tile, self.storage);
        let [rows, columns] = tiling.cta;
        k.contract(&format!(
            "{}: [pixels, taps * c_in] patches times [c_out, taps * c_in] weights.\n\
             Grid: ceil(n * out_h * out_w / {rows}) * ceil(c_out / {columns}) CTAs of {} threads; a tile of {rows} x {columns} each,\n\
             warps of {} x {}, slices of {} columns of the patches in the stages of a product.\n\
             Registers of a lane: {} sums, and the fragments of two steps.\n\
             Reads every pixel of x once a tap (the first time from global memory, then from caches) and each tile of c_out,\n\
             weights once a tile of pixels, bias and residual once; writes y once.",
            self.storage.name(),
            tiling.threads(),
            tiling.warp[0],
            tiling.warp[1],
            tiling.depth,
            rows * columns / tiling.threads(),
        ));
        let y = k.floats(self.storage, "y");
        let x = k.buffer::<E>("x");
        let weight = k.buffer::<E>("weight");
        let bias = k.floats(self.storage, "bias").read_only();
        let residual = k.floats(self.storage, "residual").read_only();
        let sizes = Sizes::new(k);
        // Sums take most of a thread's registers: without this, ptxas would spill to fit more CTAs.
        k.min_ctas(1);
        if self.aligned {
            // What `config` has checked.
            let chunk = self.storage.chunk().into();
            sizes.c_in.assume_multiple_of(chunk);
            sizes.c_out.assume_multiple_of(chunk);
        }

        k.comment("which tile");
        let (pixels, depth) = (sizes.pixels(), sizes.depth());
        let tiles_m = (pixels + (rows - 1)) / rows;
        let tiles_n = (sizes.c_out + (columns - 1)) / columns;
        let [tile_m, tile_n] = rasterise(k.cta_x(), tiles_m, tiles_n);
        let (first_row, first_column) = (tile_m * rows, tile_n * columns);
        let patches = Patches::new(k, [self.aligned, self.spread], tiling, x, sizes, first_row);
        let zero: Value<'k, U32> = 0u32.into_value();
        let weights = Operand::new(
            k,
            Side::B,
            self.aligned,
            tiling,
            Dimension {
                matrix: weight,
                stride: zero,
                batch: zero,
                first: first_column,
                extent: sizes.c_out,
                depth,
                part: [zero, depth],
                k_major: true,
            },
        );
        let sums: S = multiply(
            k,
            tiling,
            [zero, depth],
            patches.slices,
            weights.slices,
            |stage| {
                patches.load(stage);
                weights.load(stage);
            },
        );
        let fused = Fused {
            activation: None,
            pre: None,
            bias,
            residual,
        };
        let epilogue = Epilogue {
            tiling,
            aligned: self.aligned,
            operands: Operands {
                k,
                accum: self.accum,
                c: y,
                fused: Some(fused),
            },
            first_row,
            first_column,
            rows: pixels,
            columns: sizes.c_out,
            batch: zero,
        };
        epilogue.write(|slab, to| sums.store(slab, to));
    }
}
