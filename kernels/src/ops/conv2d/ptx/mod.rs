//! Convolution on GPUs since Ampere, as a matrix product of patches that never exist in global memory with the weights.
//!
//! Tiles, pipeline, products and epilogue are those of [`crate::ops::matmul::ptx`]; only the left operand comes another
//! way ([`patches`]).

mod patches;

use super::Conv2d;
use crate::Accum;
use crate::launch::Arch;
use crate::ops::matmul::ptx::epilogue::Epilogue;
use crate::ops::matmul::ptx::operand::{Dimension, Element, Operand, Side};
use crate::ops::matmul::ptx::{Sums, Tile, Tiling, multiply, rasterise, scalar, tensor};
use crate::ops::variants::{Plan, Refused, Variant, count};
use crate::ptx::{Assembler, Bf16, F32, IntoValue, Storage, U32, Value};
use patches::{Patches, Sizes};

/// y = conv(x, weight) + bias + residual.
///
/// Launch with `Write(y), Read(x), Read(weight)`, `Read(bias)` or `Null`, `Read(residual)` or `Null`, then `U32` of n, h, w,
/// c_in, c_out, kernel_h, kernel_w, stride, padding, out_h and out_w.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub storage: Storage,
    pub tile: Tile,
    /// Whether channels come in whole chunks of 16 bytes, in x and in y.
    pub aligned: bool,
}

/// The kernel for a descriptor.
///
/// # Errors
/// If there are no input channels, or an operand is larger than kernels count.
pub fn config(d: &Conv2d, storage: Storage, _arch: Arch) -> Result<Plan<Forward>, Refused> {
    if d.c_in == 0 {
        return Err(Refused("there are no input channels".to_string()));
    }
    let product = |factors: &[usize]| factors.iter().fold(1usize, |p, &f| p.saturating_mul(f));
    let pixels = product(&[d.n, d.out_h(), d.out_w()]);
    let depth = product(&[d.kernel_h, d.kernel_w, d.c_in]);
    for (elements, what) in [
        (product(&[d.n, d.h, d.w, d.c_in]), "the size of x"),
        (product(&[pixels, d.c_out]), "the size of y"),
        (product(&[depth, d.c_out]), "the size of the weights"),
        (d.stride, "the stride"),
        (d.padding, "the padding"),
    ] {
        count(elements, what)?;
    }
    let chunk = storage.chunk() as usize;
    let aligned = d.c_in.is_multiple_of(chunk) && d.c_out.is_multiple_of(chunk);
    let ctas = |tile| {
        let [rows, columns] = Tiling::new(tile, storage).cta;
        pixels.div_ceil(rows as usize) * d.c_out.div_ceil(columns as usize)
    };
    // As for matrix products: a large tile reads half as much for each product as a small one, but small ones fill a GPU
    // of some 130 multiprocessors with four times fewer outputs. Element-wise copies are bound by their instructions.
    let tile = match aligned && ctas(Tile::Large) >= 128 {
        true => Tile::Large,
        false => Tile::Small,
    };
    Ok(Plan {
        variant: Forward {
            storage,
            tile,
            aligned,
        },
        grid: [ctas(tile) as u32, 1, 1],
    })
}

impl Variant for Forward {
    const KERNEL: &'static str = "conv2d/forward";

    fn all() -> Vec<Forward> {
        // As `config` has it, only whole chunks come in large tiles.
        let tiles = [
            (Tile::Large, true),
            (Tile::Small, true),
            (Tile::Small, false),
        ];
        let of = |storage| {
            tiles.map(|(tile, aligned)| Forward {
                storage,
                tile,
                aligned,
            })
        };
        Storage::ALL.into_iter().flat_map(of).collect()
    }

    fn label(&self) -> String {
        format!(
            "{}_{}_{}",
            self.storage.name(),
            match self.tile {
                Tile::Large => "large",
                Tile::Small => "small",
            },
            if self.aligned { "aligned" } else { "any" },
        )
    }

    fn arch(&self) -> Arch {
        Arch::Sm80
    }

    fn block(&self) -> [u32; 3] {
        [Tiling::new(self.tile, self.storage).threads(), 1, 1]
    }

    fn write(&self, k: &Assembler) {
        match self.storage {
            Storage::F32 => self.write_as::<F32, scalar::Sums>(k),
            Storage::Bf16 => self.write_as::<Bf16, tensor::Sums>(k),
        }
    }
}

impl Forward {
    fn write_as<'k, E: Element, S: Sums<'k, E>>(&self, k: &'k Assembler) {
        let tiling = Tiling::new(self.tile, self.storage);
        let [rows, columns] = tiling.cta;
        k.contract(&format!(
            "y = conv(x, weight) + bias + residual, {}: [pixels, taps * c_in] patches times [c_out, taps * c_in] weights.\n\
             Grid: ceil(n * out_h * out_w / {rows}) * ceil(c_out / {columns}) CTAs of {} threads; a tile of {rows} x {columns} each,\n\
             warps of {} x {}, slices of {} columns of the patches in the stages of a product.\n\
             Reads every pixel of x once a tap (the first time from global memory, then from caches) and each tile of c_out,\n\
             weights once a tile of pixels, bias and residual once; writes y once.",
            self.storage.name(),
            tiling.threads(),
            tiling.warp[0],
            tiling.warp[1],
            tiling.depth,
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
        let patches = Patches::new(k, self.aligned, tiling, x, sizes, first_row);
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
                k_major: true,
            },
        );
        let sums: S = multiply(k, tiling, depth, patches.slices, weights.slices, |stage| {
            patches.load(stage);
            weights.load(stage);
        });
        let epilogue = Epilogue {
            k,
            tiling,
            accum: Accum::Replace,
            activation: None,
            aligned: self.aligned,
            c: y,
            pre: None,
            bias,
            residual,
            first_row,
            first_column,
            rows: pixels,
            columns: sizes.c_out,
            batch: zero,
        };
        epilogue.write(|slab, to| sums.store(slab, to));
    }
}
