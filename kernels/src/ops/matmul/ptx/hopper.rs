//! Matrix products on Hopper: copies by the tensor memory accelerator, products by warp groups.
//!
//! One warp of the last warp group starts the copies of slices of both operands, four stages deep; the other two groups
//! multiply 64 rows of the tile each, straight from shared memory in whichever order it holds the operands, and finish
//! them in the [`epilogue`]. Barriers in shared memory say when a slice is there and when nobody needs it any more. What
//! lies beyond an operand arrives as zeros, so that no copy knows of tails.

use super::epilogue::{self, Epilogue};
use super::{Buffers, Tiling, rasterise};
use crate::Accum;
use crate::launch::{Arch, Argument, MapElement, Swizzle, TensorMap};
use crate::ops::matmul::{Activation, Matmul};
use crate::ops::variants::{MAX_ELEMENTS, Plan, Refused, Variant, count};
use crate::ptx::{
    Assembler, Bf16, F32, Layout, Mbarriers, Pointer, S32, Shared, Storage, TensorMap as Map,
    Tiles, U32, U64, Value, Variable,
};

/// A CTA's tile, of which each of eight warps finishes 16 rows.
const TILING: Tiling = Tiling {
    cta: [128, 128],
    warp: [16, 128],
    depth: 64,
};
/// Slices under way or being multiplied.
const STAGES: u32 = 4;
/// Warps that multiply: two warp groups. The next group's first one copies.
const CONSUMERS: u32 = 8;
/// Bytes of one operand's slice: 128 rows of a swizzle's span.
const SLICE: u32 = 128 * 128;
/// Bytes of half of it: of a slice along k the 64 rows of a warp group, of others one box.
const HALF: u32 = SLICE / 2;
/// Registers of a thread that copies, and of one that multiplies. Together they are all that a multiprocessor has.
const REGISTERS: [u32; 2] = [40, 232];

/// c = act(a·b + bias) + residual, or c += a·b, in bf16 with f32 sums. Launch with [`WarpGroups::arguments`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarpGroups {
    pub transpose_a: bool,
    pub transpose_b: bool,
    pub accum: Accum,
}

impl WarpGroups {
    /// The kernel for a descriptor.
    ///
    /// # Errors
    /// If an extent or an operand is larger than kernels count, rows do not start at multiples of 16 bytes, an extent is
    /// zero, or an epilogue comes with [`Accum::Add`].
    pub fn config(d: &Matmul, accum: Accum) -> Result<Plan<Self>, Refused> {
        if accum == Accum::Add && d.activation != Activation::None {
            return Err(Refused("accumulation has no activation".to_string()));
        }
        for (extent, what) in [
            (d.m, "m"),
            (d.n, "n"),
            (d.k, "k"),
            (d.m.saturating_mul(d.n), "the size of one matrix of c"),
        ] {
            count(extent, what)?;
            if extent == 0 {
                return Err(Refused(format!("{what} is 0")));
            }
        }
        let a_row = if d.transpose_a { d.m } else { d.k };
        let b_row = if d.transpose_b { d.k } else { d.n };
        let chunk = Storage::Bf16.chunk() as usize;
        if [d.n, a_row, b_row, d.a_stride, d.b_stride]
            .iter()
            .any(|extent| !extent.is_multiple_of(chunk))
        {
            return Err(Refused(format!(
                "tensor maps take rows and matrices that start at multiples of {chunk} elements"
            )));
        }
        let [rows, columns] = TILING.cta.map(|extent| extent as usize);
        let ctas = (d.m.div_ceil(rows) * d.n.div_ceil(columns)).saturating_mul(d.batch);
        if ctas >= MAX_ELEMENTS {
            return Err(Refused(format!(
                "the product has {ctas} tiles, more than the {MAX_ELEMENTS} CTAs of a grid"
            )));
        }
        Ok(Plan {
            variant: WarpGroups {
                transpose_a: d.transpose_a,
                transpose_b: d.transpose_b,
                accum,
            },
            grid: [ctas as u32, 1, 1],
        })
    }

    /// What a launch for `d` passes.
    pub fn arguments<'a>(d: &Matmul, buffers: Buffers<'a>) -> Vec<Argument<'a>> {
        let Buffers {
            c,
            pre,
            a,
            b,
            bias,
            residual,
        } = buffers;
        let [map_a, map_b] = WarpGroups::maps(d);
        [c, pre, a, b, bias, residual]
            .into_iter()
            .chain(WarpGroups::numbers(d).map(Argument::U32))
            .chain([map_a, map_b].map(Argument::TensorMap))
            .collect()
    }

    /// m, n, k, whether a and b have a matrix for each of the batch, and the activation.
    pub(super) fn numbers(d: &Matmul) -> [u32; 6] {
        let own = |stride: usize| u32::from(stride > 0);
        [
            d.m as u32,
            d.n as u32,
            d.k as u32,
            own(d.a_stride),
            own(d.b_stride),
            d.activation as u32,
        ]
    }

    /// Where the boxes of a and b lie.
    pub(super) fn maps(d: &Matmul) -> [TensorMap; 2] {
        let map = |buffer: usize, rows: usize, stride: usize, k_major: bool| {
            let (inner, outer) = if k_major { (d.k, rows) } else { (rows, d.k) };
            let bytes = |elements: usize| elements as u64 * u64::from(Storage::Bf16.bytes());
            TensorMap {
                buffer,
                offset: 0,
                element: MapElement::Bf16,
                dims: vec![
                    inner as u64,
                    outer as u64,
                    if stride > 0 { d.batch as u64 } else { 1 },
                ],
                strides: vec![
                    bytes(inner),
                    bytes(if stride > 0 { stride } else { inner * outer }),
                ],
                tile: vec![64, if k_major { 128 } else { 64 }, 1],
                swizzle: Swizzle::B128,
            }
        };
        // The places of a and b among the arguments.
        [
            map(2, d.m, d.a_stride, !d.transpose_a),
            map(3, d.n, d.b_stride, d.transpose_b),
        ]
    }
}

/// An operand as the kernel sees it.
#[derive(Clone, Copy)]
struct Operand<'k> {
    map: Map<'k>,
    /// Whether k runs along the rows of a slice, which then are one box; else two boxes lie side by side, k downwards.
    k_major: bool,
    slices: Tiles<'k, Bf16>,
    /// The tile's first row of a, or column of b.
    first: Value<'k, U32>,
    /// The number of its matrix.
    matrix: Value<'k, U32>,
}

impl<'k> Operand<'k> {
    /// Starts to copy the slice from `depth` along k on.
    fn load(
        self,
        k: &'k Assembler,
        stage: Value<'k, U32>,
        depth: Value<'k, U32>,
        full: Mbarriers<'k>,
    ) {
        let to = self.slices.tile(stage).base();
        let matrix = self.matrix.cast::<S32>();
        let barrier = full.barrier(stage);
        if self.k_major {
            let at = [depth.cast(), self.first.cast(), matrix];
            return k.tensor_load(to, self.map, &at, barrier, None);
        }
        for half in 0..2 {
            let at = [(self.first + 64 * half).cast(), depth.cast(), matrix];
            k.tensor_load(
                to.byte_offset((HALF * half).into()),
                self.map,
                &at,
                barrier,
                None,
            );
        }
    }

    /// The descriptor of a part of a slice, `bytes` from its start.
    fn descriptor(
        self,
        k: &'k Assembler,
        stage: Value<'k, U32>,
        bytes: Value<'k, U32>,
    ) -> Value<'k, U64> {
        let to: Pointer<'k, Shared, Bf16> = self.slices.tile(stage).base().plus_bytes(bytes);
        // Eight rows of the swizzle's span from one group of rows to the next; along the output from box to box, where
        // the rows of a k-major slice know no second direction.
        let leading = if self.k_major { 16 } else { HALF };
        k.matrix_descriptor(to, leading, 8 * 128, Swizzle::B128)
    }

    /// What leads from a descriptor to the next sixteen along k, in its units of 16 bytes.
    fn step(self) -> u64 {
        match self.k_major {
            true => 16 * 2 / 16,
            false => 16 * 128 / 16,
        }
    }
}

impl Variant for WarpGroups {
    const KERNEL: &'static str = "matmul/warp_groups";

    fn all() -> Vec<WarpGroups> {
        let mut all = vec![];
        for transpose_a in [false, true] {
            for transpose_b in [false, true] {
                all.extend(Accum::ALL.map(|accum| WarpGroups {
                    transpose_a,
                    transpose_b,
                    accum,
                }));
            }
        }
        all
    }

    fn label(&self) -> String {
        let letter = |transposed| if transposed { 't' } else { 'n' };
        format!(
            "{}{}_{}",
            letter(self.transpose_a),
            letter(self.transpose_b),
            self.accum.name()
        )
    }

    fn arch(&self) -> Arch {
        Arch::Sm90a
    }

    fn block(&self) -> [u32; 3] {
        [(CONSUMERS + 4) * 32, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let [rows, columns] = TILING.cta;
        k.contract(&format!(
            "{}: a {}, b {}, bf16.\n\
             Grid: batch * ceil(m / {rows}) * ceil(n / {columns}) CTAs of two warp groups that multiply and one that copies;\n\
             a tile of {rows} x {columns} each, slices of {} along k in {STAGES} stages of {} bytes.\n\
             Registers: 64 sums a thread.",
            match self.accum {
                Accum::Replace => "c = act(a*b + bias) + residual",
                Accum::Add => "c += a*b",
            },
            if self.transpose_a { "[k, m]" } else { "[m, k]" },
            if self.transpose_b { "[n, k]" } else { "[k, n]" },
            TILING.depth,
            2 * SLICE
        ));
        let c = k.floats(Storage::Bf16, "c");
        let pre = k.floats(Storage::Bf16, "pre");
        // Reached through their maps.
        let _ = (k.buffer::<Bf16>("a"), k.buffer::<Bf16>("b"));
        let bias = k.floats(Storage::Bf16, "bias").read_only();
        let residual = k.floats(Storage::Bf16, "residual").read_only();
        let [m, n, depth, a_own, b_own, activation] =
            ["m", "n", "k", "a_own", "b_own", "activation"].map(|name| k.parameter::<U32>(name));
        let [map_a, map_b] = ["map_a", "map_b"].map(|name| k.tensor_map(name));
        // Without it, ptxas cannot tell how many registers setmaxnreg shares out.
        k.min_ctas(1);
        // What `config` has checked.
        n.assume_multiple_of(Storage::Bf16.chunk().into());

        k.comment("which tile of which matrix");
        let tiles_m = (m + (rows - 1)) / rows;
        let tiles_n = (n + (columns - 1)) / columns;
        let tiles = tiles_m * tiles_n;
        let batch = k.cta_x() / tiles;
        let [tile_m, tile_n] = rasterise(k.cta_x() % tiles, tiles_m, tiles_n);
        let (first_row, first_column) = (tile_m * rows, tile_n * columns);
        let slices = Layout::<Bf16>::swizzled(128, 64);
        let a = Operand {
            map: map_a,
            k_major: !self.transpose_a,
            slices: k.shared_tiles(slices, STAGES),
            first: first_row,
            matrix: batch * a_own,
        };
        let b = Operand {
            map: map_b,
            k_major: self.transpose_b,
            slices: k.shared_tiles(slices, STAGES),
            first: first_column,
            matrix: batch * b_own,
        };
        let pipeline = Pipeline {
            k,
            a,
            b,
            slices: (depth + (TILING.depth - 1)) / TILING.depth,
            full: k.shared_mbarriers(STAGES),
            empty: k.shared_mbarriers(STAGES),
        };
        pipeline.prepare();
        k.if_else(
            k.warp().ge(CONSUMERS),
            || pipeline.copy(),
            || {
                let sums = pipeline.multiply(depth);
                k.comment("the stages are free for the sums");
                k.named_barrier_sync(1, CONSUMERS * 32);
                let fused = epilogue::Fused {
                    activation: Some(activation),
                    pre: Some(pre),
                    bias,
                    residual,
                };
                let epilogue = Epilogue {
                    tiling: TILING,
                    aligned: true,
                    operands: epilogue::Operands {
                        k,
                        accum: self.accum,
                        c,
                        fused: Some(fused),
                    },
                    first_row,
                    first_column,
                    rows: m,
                    columns: n,
                    batch,
                };
                epilogue.write(|_, to| store(k, &sums, to));
            },
        );
    }
}

/// The stages, between the warp that fills them and those that multiply.
#[derive(Clone, Copy)]
struct Pipeline<'k> {
    k: &'k Assembler,
    a: Operand<'k>,
    b: Operand<'k>,
    /// Slices along k.
    slices: Value<'k, U32>,
    /// A stage's slices have arrived: one arrival, which says how many bytes are on their way.
    full: Mbarriers<'k>,
    /// Nobody reads a stage any more: one arrival of each warp that multiplies.
    empty: Mbarriers<'k>,
}

impl<'k> Pipeline<'k> {
    /// One thread makes the barriers, for all threads and for the copy engine.
    fn prepare(self) {
        let k = self.k;
        k.if_(k.thread_x().eq(0), || {
            for stage in 0..STAGES {
                self.full.barrier(stage).init(1);
                self.empty.barrier(stage).init(CONSUMERS);
            }
            k.fence_mbarrier_init();
        });
        k.barrier();
    }

    /// The copying warp group: one thread of it works.
    fn copy(self) {
        let k = self.k;
        k.comment("the warp group that copies");
        k.setmaxnreg_dec(REGISTERS[0]);
        k.if_(k.warp().eq(CONSUMERS), || {
            k.if_(k.elect(), || {
                k.for_(0, self.slices, 1, |slice| {
                    let (stage, round) = (slice % STAGES, slice / STAGES);
                    k.comment("everybody is done with the stage; before the first round, at once");
                    self.empty.barrier(stage).wait((round & 1) ^ 1);
                    self.full.barrier(stage).arrive_expect(2 * SLICE);
                    let depth = slice * TILING.depth;
                    self.a.load(k, stage, depth, self.full);
                    self.b.load(k, stage, depth, self.full);
                });
            });
        });
    }

    /// A multiplying warp group: the sums of its 64 rows, four a lane for every 8 columns.
    fn multiply(self, depth: Value<'k, U32>) -> Vec<Variable<'k, F32>> {
        let k = self.k;
        k.comment("the warp groups that multiply");
        k.setmaxnreg_inc(REGISTERS[1]);
        let sums: Vec<Variable<'k, F32>> =
            (0..TILING.cta[1] / 2).map(|_| k.variable(0.0f32)).collect();
        let always = depth.ne(0);
        let group = k.warp() / 4;
        let release = |slice: Value<'k, U32>| {
            let stage = slice % STAGES;
            k.if_(k.lane().eq(0), || {
                self.empty.barrier(stage).arrive();
            });
        };
        k.for_(0, self.slices, 1, |slice| {
            let (stage, round) = (slice % STAGES, slice / STAGES);
            self.full.barrier(stage).wait(round & 1);
            let a = self.a.descriptor(k, stage, group * HALF);
            let b = self.b.descriptor(k, stage, Value::from_bits(0));
            k.wgmma_fence();
            for step in 0..u64::from(TILING.depth / 16) {
                let (a, b) = (a + step * self.a.step(), b + step * self.b.step());
                k.wgmma(&sums, a, b, always, [!self.a.k_major, !self.b.k_major]);
            }
            k.wgmma_commit();
            k.comment("the slice before this one is multiplied: its stage may be filled again");
            k.wgmma_wait(1);
            k.if_(slice.ne(0), || release(slice - 1));
        });
        k.wgmma_wait(0);
        sums
    }
}

/// Puts a warp's 16 rows into its slab.
fn store<'k>(k: &'k Assembler, sums: &[Variable<'k, F32>], to: epilogue::Slab<'k>) {
    let lane = k.lane();
    let place = to.layout.element(lane >> 2, (lane & 3) * 2);
    for (j, sums) in (0..).zip(sums.chunks_exact(4)) {
        let place = place.across(8 * j);
        to.tile
            .at(place)
            .store_vector([sums[0].get(), sums[1].get()]);
        let below = place.down(8);
        to.tile
            .at(below)
            .store_vector([sums[2].get(), sums[3].get()]);
    }
}
