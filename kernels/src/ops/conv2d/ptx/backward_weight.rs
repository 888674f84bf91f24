//! The gradient of the weights: dy, transposed, times the patches, over all pixels.

use super::columns::Columns;
use super::patches::Sizes;
use super::{Forward, TILES, check, label};
use crate::Accum;
use crate::launch::Arch;
use crate::ops::conv2d::Conv2d;
use crate::ops::geometry::{Call, Division, Divisor, linear_grid};
use crate::ops::matmul::Activation;
use crate::ops::matmul::ptx::epilogue::{Epilogue, Operands};
use crate::ops::matmul::ptx::operand::{Dimension, Element, Operand, Side};
use crate::ops::matmul::ptx::parts::{self, InParts, Merge, Parts};
use crate::ops::matmul::ptx::{
    Sums, Tile, Tiling, multiply, output_name, outputs, rasterise, scalar, tensor,
};
use crate::ops::variants::{Refused, Variant};
use crate::ptx::{Assembler, Bf16, F32, IntoValue, Storage, U32, Value};

/// dw (+)= dyᵀ·patches of x. Weights are few and pixels many, so that the sum is cut into parts.
///
/// Launch with `Write(dw)`, or `Update(dw)` under [`Accum::Add`], `Read(dy), Read(x)` and the call's numbers. Where there is
/// a merge, with `Write(partials)` for dw; then [`Merge`] writes dw, with `Null` for pre, bias and residual.
///
/// The gradient of a bias is the sum of dy over pixels, which is [`crate::ops::reduce`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackwardWeight {
    pub storage: Storage,
    pub tile: Tile,
    /// Whether channels come in whole chunks of 16 bytes, in x and in y.
    pub aligned: bool,
    /// How the output is stored: as the operands; or, being partial sums, in f32.
    pub to: Storage,
    pub accum: Accum,
}

/// The launches for the gradient of the weights.
///
/// # Errors
/// If there are no channels, or an operand is larger than kernels count.
pub fn config_backward_weight(
    d: &Conv2d,
    storage: Storage,
    accum: Accum,
    _arch: Arch,
) -> Result<InParts<BackwardWeight>, Refused> {
    check(d)?;
    let chunk = storage.chunk() as usize;
    let aligned = d.c_in.is_multiple_of(chunk) && d.c_out.is_multiple_of(chunk);
    let columns = d.kernel_h * d.kernel_w * d.c_in;
    let pixels = d.n * d.out_h() * d.out_w();
    let tiles = |tile| {
        let [width, height] = Tiling::new(tile, storage).cta;
        d.c_out.div_ceil(width as usize) * columns.div_ceil(height as usize)
    };
    let numbers = |parts: Parts| -> Vec<u32> {
        let [out_w, out_h] = [d.out_w(), d.out_h()].map(|size| Divisor::new(size as u32).numbers());
        let sizes = Forward::sizes(d).into_iter();
        let divisors = out_w.into_iter().chain(out_h);
        sizes.chain(divisors).chain([parts.depth as u32]).collect()
    };
    let call = |tile, parts: Parts, to, accum| {
        let variant = BackwardWeight {
            storage,
            tile,
            aligned,
            to,
            accum,
        };
        let grid = linear_grid(tiles(tile) * parts.count)?;
        Ok(Call::new(variant, grid, numbers(parts)))
    };
    let Some((tile, parts)) = parts::choose(storage, aligned, pixels, tiles) else {
        let tile = match aligned && tiles(Tile::Large) >= parts::FILLING {
            true => Tile::Large,
            false => Tile::Small,
        };
        let all = Parts {
            count: 1,
            depth: pixels,
        };
        return Ok(InParts {
            product: call(tile, all, storage, accum)?,
            merge: None,
            partials: 0,
        });
    };
    let merge = Merge {
        storage,
        aligned,
        accum,
    };
    let weights = d.c_out * columns;
    Ok(InParts {
        product: call(tile, parts, Storage::F32, Accum::Replace)?,
        merge: Some(merge.call(weights, columns, parts.count, Activation::None)?),
        partials: parts.count * weights,
    })
}

impl Variant for BackwardWeight {
    const KERNEL: &'static str = "conv2d/backward_weight";

    fn all() -> Vec<BackwardWeight> {
        let mut all = vec![];
        for storage in Storage::ALL {
            for (tile, aligned) in TILES {
                all.extend(outputs(storage).map(|(to, accum)| BackwardWeight {
                    storage,
                    tile,
                    aligned,
                    to,
                    accum,
                }));
            }
        }
        all
    }

    fn label(&self) -> String {
        let tile = label(self.storage, self.tile, self.aligned);
        format!("{tile}_{}", output_name(self.storage, self.to, self.accum))
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

impl BackwardWeight {
    fn write_as<'k, E: Element, S: Sums<'k, E>>(&self, k: &'k Assembler) {
        let tiling = Tiling::new(self.tile, self.storage);
        let [rows, columns] = tiling.cta;
        k.contract(&format!(
            "dw {} [c_out, pixels] dy times [pixels, taps * c_in] patches of x, {} to {}.\n\
             Grid: parts * ceil(c_out / {rows}) * ceil(taps * c_in / {columns}) CTAs of {} threads; a tile of {rows} x {columns} each\n\
             of the sum over a part's pixels, warps of {} x {}, slices of {} pixels in the stages of a product.\n\
             Registers of a lane: {} sums, and the fragments of two steps.\n\
             Reads dy once a tile of columns and x once a tap and tile of c_out, the first time from global memory, then from\n\
             caches; writes dw [parts, c_out, taps * c_in] once.",
            self.accum.symbol(),
            self.storage.name(),
            self.to.name(),
            tiling.threads(),
            tiling.warp[0],
            tiling.warp[1],
            tiling.depth,
            rows * columns / tiling.threads(),
        ));
        let dw = k.floats(self.to, "dw");
        let dy = k.buffer::<E>("dy");
        let x = k.buffer::<E>("x");
        let sizes = Sizes::new(k);
        let divisions = ["by_out_w", "by_out_h"].map(|name| Division::parameter(k, name));
        let part = k.parameter::<U32>("part");
        // Sums take most of a thread's registers: without this, ptxas would spill to fit more CTAs.
        k.min_ctas(1);
        if self.aligned {
            // What `config_backward_weight` has checked.
            let chunk = self.storage.chunk().into();
            sizes.c_in.assume_multiple_of(chunk);
            sizes.c_out.assume_multiple_of(chunk);
        }

        k.comment("which tile of which part");
        let (pixels, taps_columns) = (sizes.pixels(), sizes.depth());
        let tiles_m = (sizes.c_out + (rows - 1)) / rows;
        let tiles_n = (taps_columns + (columns - 1)) / columns;
        let tiles = tiles_m * tiles_n;
        let index = k.cta_x() / tiles;
        let [tile_m, tile_n] = rasterise(k.cta_x() % tiles, tiles_m, tiles_n);
        let (first_row, first_column) = (tile_m * rows, tile_n * columns);
        let part = parts::range(index, part, pixels);

        let zero: Value<'k, U32> = 0u32.into_value();
        let gradients = Operand::new(
            k,
            Side::A,
            self.aligned,
            tiling,
            Dimension {
                matrix: dy,
                stride: zero,
                batch: zero,
                first: first_row,
                extent: sizes.c_out,
                depth: pixels,
                part,
                k_major: false,
            },
        );
        let patches = Columns::new(
            k,
            self.aligned,
            tiling,
            x,
            sizes,
            divisions,
            first_column,
            part,
        );
        let sums: S = multiply(k, tiling, part, gradients.slices, patches.slices, |stage| {
            gradients.load(stage);
            patches.load(stage);
        });
        let epilogue = Epilogue {
            tiling,
            aligned: self.aligned,
            operands: Operands {
                k,
                accum: self.accum,
                c: dw,
                fused: None,
            },
            first_row,
            first_column,
            rows: sizes.c_out,
            columns: taps_columns,
            batch: index,
        };
        epilogue.write(|slab, to| sums.store(slab, to));
    }
}
