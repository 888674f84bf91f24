//! Matrix products on GPUs since Ampere.
//!
//! A CTA computes one tile of the output. Slices of both operands travel through shared memory by `cp.async`, four stages
//! deep, in whichever order they are stored; nothing is transposed in memory. bf16 multiplies on tensor cores
//! ([`tensor`]), f32 with fused multiply-adds ([`scalar`]), never rounded to TF32. The sums leave through the
//! [`epilogue`], which applies bias, activation and residual while they are in f32. A deep product of few tiles is cut
//! along k ([`parts`]), so that it still fills a GPU. What Hopper does otherwise is in [`hopper`].

pub(in crate::ops) mod epilogue;
pub mod hopper;
pub(in crate::ops) mod operand;
pub mod parts;
pub(in crate::ops) mod scalar;
pub(in crate::ops) mod tensor;
#[cfg(test)]
mod tests;

use super::{Activation, Matmul};
use crate::Accum;
use crate::launch::{Arch, Argument};
use crate::ops::geometry::{Call, linear_grid};
use crate::ops::variants::{MAX_ELEMENTS, Plan, Refused, Variant, count};
use crate::ptx::{Assembler, Bf16, F32, Storage, U32, Value};
use operand::{Dimension, Element, Operand, Side, Slices};
use parts::InParts;

/// Stages of the pipeline: three slices under way while one is multiplied.
const STAGES: u32 = 4;

/// CTAs that follow each other down a column of tiles before the next column begins, so that those which run together
/// share slices of both operands in the second cache.
const RASTER_ROWS: u32 = 8;

/// c = act(a·b + bias) + residual, or c += a·b. Launch with [`Product::arguments`]; or, of a product in parts, as [`plan`]
/// says.
///
/// What the epilogue does is an argument: a branch that all threads take alike costs nothing beside a product, and spares
/// four times as many variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    pub storage: Storage,
    pub tile: Tile,
    pub transpose_a: bool,
    pub transpose_b: bool,
    /// Whether every row of every matrix starts at a multiple of 16 bytes, so that whole chunks can be copied.
    pub aligned: bool,
    /// How c is stored: as the operands; or, being partial sums, in f32.
    pub to: Storage,
    pub accum: Accum,
}

/// How the output is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 128 × 128 a CTA.
    Large,
    /// 64 × 64 a CTA.
    Small,
}

/// The numbers of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) struct Tiling {
    /// Rows and columns of a CTA.
    pub cta: [u32; 2],
    /// Rows and columns of a warp.
    pub warp: [u32; 2],
    /// Depth of a slice: rows of it along k are 64 bytes.
    pub depth: u32,
}

impl Tiling {
    pub fn new(tile: Tile, storage: Storage) -> Tiling {
        let depth = 64 / storage.bytes();
        let (cta, warp) = match (tile, storage) {
            (Tile::Small, _) => ([64, 64], [32, 32]),
            // 128 sums a thread: with fewer, ldmatrix could not feed the tensor cores.
            (Tile::Large, Storage::Bf16) => ([128, 128], [64, 64]),
            // 64 sums a thread leave registers for the fragments of four steps along k.
            (Tile::Large, Storage::F32) => ([128, 128], [32, 64]),
        };
        Tiling { cta, warp, depth }
    }

    /// Warps along rows and columns.
    fn warps(self) -> [u32; 2] {
        [self.cta[0] / self.warp[0], self.cta[1] / self.warp[1]]
    }

    /// This warp's row and column of warps.
    fn warp_place<'k>(self, k: &'k Assembler) -> [Value<'k, U32>; 2] {
        let across = self.warps()[1];
        [k.warp() / across, k.warp() % across]
    }

    pub fn threads(self) -> u32 {
        self.warps()[0] * self.warps()[1] * 32
    }
}

/// The buffers of a product, as a launch passes them.
#[derive(Debug)]
pub struct Buffers<'a> {
    /// `Write`, or `Update` under [`Accum::Add`].
    pub c: Argument<'a>,
    /// `Write`, or `Null`: receives a·b + bias.
    pub pre: Argument<'a>,
    pub a: Argument<'a>,
    pub b: Argument<'a>,
    /// `Read` or `Null`, and so the residual.
    pub bias: Argument<'a>,
    pub residual: Argument<'a>,
}

impl Product {
    /// What a launch for `d` passes. Sizes are those that [`config`] has counted.
    pub fn arguments<'a>(d: &Matmul, buffers: Buffers<'a>) -> Vec<Argument<'a>> {
        let Buffers {
            c,
            pre,
            a,
            b,
            bias,
            residual,
        } = buffers;
        let numbers = Product::numbers(d, d.k).map(Argument::U32);
        [c, pre, a, b, bias, residual]
            .into_iter()
            .chain(numbers)
            .collect()
    }

    /// Those that follow the buffers, for parts of k that are at least `part` deep.
    pub(super) fn numbers(d: &Matmul, part: usize) -> [u32; 8] {
        let activation = d.activation as usize;
        // Whole chunks of any storage.
        let part = part.next_multiple_of(8);
        [
            d.m, d.n, d.k, d.a_stride, d.b_stride, d.batch, part, activation,
        ]
        .map(|n| n as u32)
    }
}

/// The launches for a descriptor, which may cut the product into parts. The product takes the buffers in the order of
/// [`Buffers`]; where there are parts, `Write` of their sums for c, and `Null` for pre, bias and residual, which are
/// [`parts::Merge`]'s then.
///
/// # Errors
/// As [`config`].
pub fn plan(
    d: &Matmul,
    storage: Storage,
    accum: Accum,
    arch: Arch,
) -> Result<InParts<Product>, Refused> {
    let whole = config(d, storage, accum, arch)?;
    let choice = parts::choose(storage, whole.variant.aligned, d.k, |tile| {
        tiles(d, Tiling::new(tile, storage))
    });
    let Some((tile, parts)) = choice else {
        return Ok(InParts {
            product: Call {
                plan: whole,
                numbers: Product::numbers(d, d.k).to_vec(),
            },
            merge: None,
            partials: 0,
        });
    };
    let variant = Product {
        tile,
        to: Storage::F32,
        accum: Accum::Replace,
        ..whole.variant
    };
    let grid = tiles(d, Tiling::new(tile, storage)) * parts.count;
    // The merge activates.
    let sums = Matmul {
        activation: Activation::None,
        ..*d
    };
    let outputs = d.batch * d.m * d.n;
    let merge = parts::Merge {
        storage,
        aligned: whole.variant.aligned,
        accum,
    };
    Ok(InParts {
        product: Call::new(
            variant,
            linear_grid(grid)?,
            Product::numbers(&sums, parts.depth).to_vec(),
        ),
        merge: Some(merge.call(outputs, d.n, parts.count, d.activation)?),
        partials: parts.count * outputs,
    })
}

/// CTAs of a product.
fn tiles(d: &Matmul, tiling: Tiling) -> usize {
    let [rows, columns] = tiling.cta;
    let tiles = d.m.div_ceil(rows as usize) * d.n.div_ceil(columns as usize);
    tiles.saturating_mul(d.batch)
}

/// The kernel that computes a descriptor's product by itself.
///
/// # Errors
/// If an extent or an operand is larger than kernels count, or an epilogue comes with [`Accum::Add`].
pub fn config(
    d: &Matmul,
    storage: Storage,
    accum: Accum,
    _arch: Arch,
) -> Result<Plan<Product>, Refused> {
    if accum == Accum::Add && d.activation != Activation::None {
        return Err(Refused("accumulation has no activation".to_string()));
    }
    for (extent, what) in [
        (d.m, "m"),
        (d.n, "n"),
        (d.k, "k"),
        (d.a_stride, "the distance of two matrices of a"),
        (d.b_stride, "the distance of two matrices of b"),
        (d.m.saturating_mul(d.n), "the size of one matrix of c"),
        (d.m.saturating_mul(d.k), "the size of one matrix of a"),
        (d.n.saturating_mul(d.k), "the size of one matrix of b"),
    ] {
        count(extent, what)?;
    }
    let chunk = storage.chunk() as usize;
    let whole = |extent: usize| extent.is_multiple_of(chunk);
    // Rows of c, and those of the operands as they are stored.
    let aligned = whole(d.n)
        && whole(if d.transpose_a { d.m } else { d.k })
        && whole(if d.transpose_b { d.k } else { d.n })
        && whole(d.a_stride)
        && whole(d.b_stride);
    let ctas = |tile| tiles(d, Tiling::new(tile, storage));
    // A large tile reads half as much for each product as a small one, but small ones fill a GPU of some 130
    // multiprocessors with four times fewer outputs. Element-wise copies are bound by their instructions either way.
    let tile = match aligned && ctas(Tile::Large) >= 128 {
        true => Tile::Large,
        false => Tile::Small,
    };
    let grid = ctas(tile);
    if grid >= MAX_ELEMENTS {
        return Err(Refused(format!(
            "the product has {grid} tiles, more than the {MAX_ELEMENTS} CTAs of a grid"
        )));
    }
    Ok(Plan {
        variant: Product {
            storage,
            tile,
            transpose_a: d.transpose_a,
            transpose_b: d.transpose_b,
            aligned,
            to: storage,
            accum,
        },
        grid: [grid as u32, 1, 1],
    })
}

impl Variant for Product {
    const KERNEL: &'static str = "matmul/product";

    fn all() -> Vec<Product> {
        let mut all = vec![];
        for storage in Storage::ALL {
            // As `config` has it, only aligned operands come in large tiles.
            for (tile, aligned) in [
                (Tile::Large, true),
                (Tile::Small, true),
                (Tile::Small, false),
            ] {
                for (transpose_a, transpose_b) in
                    [(false, false), (false, true), (true, false), (true, true)]
                {
                    all.extend(outputs(storage).map(|(to, accum)| Product {
                        storage,
                        tile,
                        transpose_a,
                        transpose_b,
                        aligned,
                        to,
                        accum,
                    }));
                }
            }
        }
        all
    }

    fn label(&self) -> String {
        let letter = |transposed| if transposed { 't' } else { 'n' };
        format!(
            "{}{}_{}_{}_{}_{}",
            letter(self.transpose_a),
            letter(self.transpose_b),
            self.storage.name(),
            match self.tile {
                Tile::Large => "large",
                Tile::Small => "small",
            },
            if self.aligned { "aligned" } else { "any" },
            output_name(self.storage, self.to, self.accum)
        )
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

/// Where products of operands of a storage go, and how: to a tensor like them, or to partial sums.
pub(in crate::ops) fn outputs(storage: Storage) -> impl Iterator<Item = (Storage, Accum)> {
    let partials = (storage != Storage::F32).then_some((Storage::F32, Accum::Replace));
    let whole = Accum::ALL.into_iter().map(move |accum| (storage, accum));
    whole.chain(partials)
}

/// A part of a kernel's name.
pub(in crate::ops) fn output_name(storage: Storage, to: Storage, accum: Accum) -> &'static str {
    match to == storage {
        true => accum.name(),
        false => "parts",
    }
}

/// A CTA's sums, spread over the registers of its threads.
pub(in crate::ops) trait Sums<'k, E: Element>: Sized {
    /// All zero.
    fn new(k: &'k Assembler, tiling: Tiling, a: Slices<'k, E>, b: Slices<'k, E>) -> Self;

    /// Adds the product of the slices in stage `stage`.
    fn multiply(&self, stage: Value<'k, U32>);

    /// Puts rows `16·slab` to `16·slab + 15` of the warp's sums into `to`.
    fn store(&self, slab: u32, to: epilogue::Slab<'k>);
}

impl Product {
    fn write_as<'k, E: Element, S: Sums<'k, E>>(&self, k: &'k Assembler) {
        let tiling = Tiling::new(self.tile, self.storage);
        let [rows, columns] = tiling.cta;
        k.contract(&format!(
            "{}: a {}, b {}, {}.\n\
             Grid: parts * batch * ceil(m / {rows}) * ceil(n / {columns}) CTAs of {} threads; a tile of {rows} x {columns} each, warps of {} x {},\n\
             slices of {} along k in {STAGES} stages. Of the k of a part only; c [parts, batch, m, n].",
            match (self.accum, self.to == self.storage) {
                (Accum::Replace, true) => "c = act(a*b + bias) + residual",
                (Accum::Replace, false) => "c = a*b, in f32",
                (Accum::Add, _) => "c += a*b",
            },
            if self.transpose_a { "[k, m]" } else { "[m, k]" },
            if self.transpose_b { "[n, k]" } else { "[k, n]" },
            self.storage.name(),
            tiling.threads(),
            tiling.warp[0],
            tiling.warp[1],
            tiling.depth,
        ));
        let c = k.floats(self.to, "c");
        let pre = k.floats(self.storage, "pre");
        let a = k.buffer::<E>("a");
        let b = k.buffer::<E>("b");
        let bias = k.floats(self.storage, "bias").read_only();
        let residual = k.floats(self.storage, "residual").read_only();
        let [m, n, depth] = ["m", "n", "k"].map(|name| k.parameter::<U32>(name));
        let [a_stride, b_stride] = ["a_stride", "b_stride"].map(|name| k.parameter::<U32>(name));
        let [batches, part] = ["batch", "part"].map(|name| k.parameter::<U32>(name));
        let activation = k.parameter::<U32>("activation");
        // Sums take most of a thread's registers: without this, ptxas would spill to fit more CTAs.
        k.min_ctas(1);
        if self.aligned {
            // What `config` has checked.
            let chunk = self.storage.chunk().into();
            let a_row = if self.transpose_a { m } else { depth };
            let b_row = if self.transpose_b { depth } else { n };
            for extent in [n, a_row, b_row, a_stride, b_stride, part] {
                extent.assume_multiple_of(chunk);
            }
        }

        k.comment("which tile of which matrix");
        let tiles_m = (m + (rows - 1)) / rows;
        let tiles_n = (n + (columns - 1)) / columns;
        let tiles = tiles_m * tiles_n;
        let matrix = k.cta_x() / tiles;
        let (index, batch) = (matrix / batches, matrix % batches);
        let part = parts::range(index, part, depth);
        let [tile_m, tile_n] = rasterise(k.cta_x() % tiles, tiles_m, tiles_n);
        let (first_row, first_column) = (tile_m * rows, tile_n * columns);

        let a = Operand::new(
            k,
            Side::A,
            self.aligned,
            tiling,
            Dimension {
                matrix: a,
                stride: a_stride,
                batch,
                first: first_row,
                extent: m,
                depth,
                part,
                k_major: !self.transpose_a,
            },
        );
        let b = Operand::new(
            k,
            Side::B,
            self.aligned,
            tiling,
            Dimension {
                matrix: b,
                stride: b_stride,
                batch,
                first: first_column,
                extent: n,
                depth,
                part,
                k_major: self.transpose_b,
            },
        );

        let sums: S = multiply(k, tiling, part, a.slices, b.slices, |stage| {
            a.load(stage);
            b.load(stage);
        });
        let fused = epilogue::Fused {
            activation: Some(activation),
            pre: Some(pre),
            bias,
            residual,
        };
        let epilogue = epilogue::Epilogue {
            tiling,
            aligned: self.aligned,
            operands: epilogue::Operands {
                k,
                accum: self.accum,
                c,
                fused: (self.to == self.storage).then_some(fused),
            },
            first_row,
            first_column,
            rows: m,
            columns: n,
            batch: matrix,
        };
        epilogue.write(|slab, to| sums.store(slab, to));
    }
}

/// The product of all slices from `first` to `end` along k, of which `load(stage)` starts to copy the next one of both operands. Leaves
/// the stages free.
pub(in crate::ops) fn multiply<'k, E: Element, S: Sums<'k, E>>(
    k: &'k Assembler,
    tiling: Tiling,
    [first, end]: [Value<'k, U32>; 2],
    a: Slices<'k, E>,
    b: Slices<'k, E>,
    load: impl Fn(Value<'k, U32>),
) -> S {
    k.comment(format_args!("fill {} stages", STAGES - 1));
    k.for_(0, STAGES - 1, 1, |stage| {
        load(stage);
        k.cp_async_commit();
    });
    let sums = S::new(k, tiling, a, b);
    let slices = (end - first + (tiling.depth - 1)) / tiling.depth;
    k.for_(0, slices, 1, |slice| {
        k.comment("the oldest slice has arrived, and everybody is done with the stage that is filled next");
        k.cp_async_wait(STAGES - 2);
        k.barrier();
        load((slice + (STAGES - 1)) % STAGES);
        k.cp_async_commit();
        sums.multiply(slice % STAGES);
    });
    k.comment("the stages are free for the sums");
    k.cp_async_wait_all();
    k.barrier();
    sums
}

/// The tile's row and column for number `index`: down [`RASTER_ROWS`] rows at a time.
pub(in crate::ops) fn rasterise<'k>(
    index: Value<'k, U32>,
    tiles_m: Value<'k, U32>,
    tiles_n: Value<'k, U32>,
) -> [Value<'k, U32>; 2] {
    let in_group = tiles_n * RASTER_ROWS;
    let first = index / in_group * RASTER_ROWS;
    let height = (tiles_m - first).min(RASTER_ROWS);
    let index = index % in_group;
    [first + index % height, index / height]
}
