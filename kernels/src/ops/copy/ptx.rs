//! Copies between memory layouts on GPUs.
//!
//! What elements mean does not matter to a copy, only where they lie: both kernels move units of 1 to 16 bytes, of which
//! an element is one, and neighbours that stay together are one where alignment allows.

use crate::Accum;
use crate::ops::elementwise::{THREADS, for_each_chunk, grid};
use crate::ops::geometry::{Call, Division, Divisor, linear_grid, place};
use crate::ops::spans::for_each_span;
use crate::ops::variants::{Plan, Refused, Variant, count};
use crate::ptx::{
    Assembler, B16, B32, B64, Global, Pointer, Shared, Storage, Type, U8, U32, Value,
};

use super::merge;

/// Rows and columns of what a CTA of [`Copy::Transpose`] turns around.
const TILE: u32 = 32;
/// The most loops that a copy may have: the rank of tensors.
const MAX_LOOPS: u32 = 6;

/// The elements of a strided view in row-major order. Launch with `Write(dst), Read(src)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// A unit a thread, in the order of dst. `loops` walk through src.
    Gather { unit: u32, loops: u32 },
    /// Tiles through shared memory, so that both sides are accessed in their order: for the innermost dimension of dst and
    /// the one that is innermost in src, inside of `loops` others.
    Transpose { unit: u32, loops: u32 },
}

/// One dimension, seen from both sides, in units.
#[derive(Clone, Copy)]
struct Loop {
    extent: usize,
    src: usize,
    dst: usize,
}

impl Copy {
    /// For a view of `dims` with `strides` and `offset`, in elements of `size` bytes. A stride may be zero.
    ///
    /// # Errors
    /// If the view has more elements, or reaches further, than kernels count.
    ///
    /// # Panics
    /// If an element has not 1, 2, 4 or 8 bytes.
    pub fn config(
        size: usize,
        dims: &[usize],
        strides: &[usize],
        offset: usize,
    ) -> Result<Call<Copy>, Refused> {
        assert!(matches!(size, 1 | 2 | 4 | 8), "no element has {size} bytes");
        let elements: usize = dims.iter().product();
        count(elements, "the number of elements")?;
        let reach = dims
            .iter()
            .zip(strides)
            .map(|(d, s)| d.saturating_sub(1) * s);
        count(reach.sum::<usize>() + offset + 1, "the reach of the view")?;

        let mut walk = merge(dims, strides);
        // Neighbours that stay together, and whose every copy is aligned, are one unit.
        let together = match walk.split_last() {
            Some((&(run, 1), outer)) => {
                let starts = outer.iter().map(|&(_, stride)| stride).chain([run, offset]);
                let power = starts.map(usize::trailing_zeros).min().unwrap_or(0);
                (1 << power.min(4)).min(16 / size)
            }
            _ => 1,
        };
        if together > 1 {
            for (_, stride) in &mut walk {
                *stride /= together;
            }
            if let Some(last) = walk.last_mut() {
                *last = (last.0 / together, 1);
            }
            walk.retain(|&(extent, _)| extent != 1);
        }
        let (unit, offset) = ((size * together) as u32, offset / together);

        let mut dst = 1;
        let mut loops: Vec<Loop> = vec![];
        for &(extent, src) in walk.iter().rev() {
            loops.insert(0, Loop { extent, src, dst });
            dst *= extent;
        }
        Copy::transpose(unit, &loops, offset).unwrap_or_else(|| {
            let mut numbers = vec![dst as u32, offset as u32];
            numbers.extend(loops.iter().map(|l| l.src as u32));
            // The outermost index is what the divisions by the others leave.
            for l in loops.iter().skip(1) {
                numbers.extend(Divisor::new(l.extent.max(1) as u32).numbers());
            }
            let variant = Copy::Gather {
                unit,
                loops: loops.len() as u32,
            };
            let grid = linear_grid(dst.div_ceil(THREADS as usize))?;
            Ok(Call::new(variant, grid, numbers))
        })
    }

    /// The call of [`Copy::Transpose`], if src has another order than dst.
    fn transpose(unit: u32, loops: &[Loop], offset: usize) -> Option<Result<Call<Copy>, Refused>> {
        let (&across, outer) = loops.split_last()?;
        let down = outer.iter().position(|l| l.src == 1)?;
        let down = (down, outer[down]);
        // Tiles pay where both sides fill at least a sector of 32 bytes for most of what they touch; 16-byte units are half a
        // sector each way.
        let worth = |l: Loop| l.extent >= 8;
        if across.src <= 1 || unit > 8 || !worth(across) || !worth(down.1) {
            return None;
        }
        let mut others = outer.to_vec();
        others.remove(down.0);
        let tiles = |l: Loop| l.extent.div_ceil(TILE as usize);
        let (wide, high) = (tiles(across), tiles(down.1));
        let mut numbers = vec![
            offset as u32,
            across.extent as u32,
            across.src as u32,
            down.1.extent as u32,
            down.1.dst as u32,
        ];
        numbers.extend(Divisor::new(wide as u32).numbers());
        numbers.extend(Divisor::new(high as u32).numbers());
        for l in &others {
            numbers.extend([l.src as u32, l.dst as u32]);
        }
        for l in others.iter().skip(1) {
            numbers.extend(Divisor::new(l.extent as u32).numbers());
        }
        let variant = Copy::Transpose {
            unit,
            loops: others.len() as u32,
        };
        let batch: usize = others.iter().map(|l| l.extent).product();
        Some(linear_grid(wide * high * batch).map(|grid| Call::new(variant, grid, numbers)))
    }

    /// Units from one row of the tile to the next in shared memory: one more 32-bit word than the row has, so that columns
    /// lie in different banks.
    fn pitch(self) -> u32 {
        TILE + (4 / self.unit()).max(1)
    }

    fn unit(self) -> u32 {
        match self {
            Copy::Gather { unit, .. } | Copy::Transpose { unit, .. } => unit,
        }
    }

    fn write_gather(self, k: &Assembler, loops: u32) {
        let unit = self.unit();
        k.contract(&format!(
            "dst = the elements of a strided view of src in row-major order, units of {unit} bytes.\n\
             Grid: ceil(units / {THREADS}) CTAs, one unit a thread. Reads each unit of the view and writes dst once."
        ));
        let dst = Units::parameter(k, unit, "dst");
        let src = Units::parameter(k, unit, "src").read_only();
        let units = k.parameter::<U32>("units");
        let offset = k.parameter::<U32>("offset");
        let strides: Vec<_> = (0..loops)
            .map(|l| k.parameter::<U32>(&format!("stride_{l}")))
            .collect();
        let extents: Vec<_> = (1..loops)
            .map(|l| Division::parameter(k, &format!("extent_{l}")))
            .collect();
        for_each_span(k, units, |i| {
            k.comment("where it lies in src");
            let at = place(i, &extents, &[&strides])[0];
            dst.at(i).copy_from(src.at(offset + at));
        });
    }

    fn write_transpose<E: Type>(self, k: &Assembler, loops: u32) {
        let unit = self.unit();
        k.contract(&format!(
            "dst = the elements of a strided view of src in row-major order, units of {unit} bytes.\n\
             Of dst the last dimension, `across`, and of src another, `down`, is contiguous.\n\
             Grid: tiles of {TILE} x {TILE} units, those along `across` first, then along `down`, then the other dimensions.\n\
             Shared memory: one tile. Reads each unit of the view and writes dst once."
        ));
        let dst = k.buffer::<E>("dst");
        let src = k.buffer::<E>("src").read_only();
        let offset = k.parameter::<U32>("offset");
        let across = k.parameter::<U32>("across");
        let across_stride = k.parameter::<U32>("across_src_stride");
        let down = k.parameter::<U32>("down");
        let down_stride = k.parameter::<U32>("down_dst_stride");
        let tiles_across = Division::parameter(k, "tiles_across");
        let tiles_down = Division::parameter(k, "tiles_down");
        let [src_strides, dst_strides]: [Vec<_>; 2] = {
            let pairs: Vec<[Value<U32>; 2]> = (0..loops)
                .map(|l| ["src", "dst"].map(|side| k.parameter(&format!("{side}_stride_{l}"))))
                .collect();
            [0, 1].map(|side| pairs.iter().map(|pair| pair[side]).collect())
        };
        let extents: Vec<_> = (1..loops)
            .map(|l| Division::parameter(k, &format!("extent_{l}")))
            .collect();

        k.comment("this CTA's tile");
        let [rest, tile_across] = tiles_across.split(k.cta_x());
        let [batch, tile_down] = tiles_down.split(rest);
        let [first_across, first_down] = [tile_across, tile_down].map(|tile| tile * TILE);
        let [src_at, dst_at] = place(batch, &extents, &[&src_strides, &dst_strides])
            .try_into()
            .expect("a place for each list of strides");
        let tile: Pointer<Shared, E> = k.shared_array(TILE * self.pitch());
        let (lane, warp) = (k.lane(), k.warp());
        const WARPS: u32 = THREADS / 32;

        k.comment("a row of the tile is a run of src");
        let column = first_down + lane;
        k.if_(column.lt(down), || {
            for row in (0..TILE).step_by(WARPS as usize) {
                let i = first_across + warp + row;
                k.if_(i.lt(across), || {
                    let at = src_at + offset + column + i * across_stride;
                    let place = (warp + row) * self.pitch() + lane;
                    tile.at(place).store(src.at(at).load());
                });
            }
        });
        k.barrier();
        k.comment("a column of the tile is a run of dst");
        let column = first_across + lane;
        k.if_(column.lt(across), || {
            for row in (0..TILE).step_by(WARPS as usize) {
                let i = first_down + warp + row;
                k.if_(i.lt(down), || {
                    let at = dst_at + column + i * down_stride;
                    let place = lane * self.pitch() + warp + row;
                    dst.at(at).store(tile.at(place).load());
                });
            }
        });
    }
}

/// The address of a unit of 1, 2, 4, 8 or 16 bytes.
#[derive(Clone, std::marker::Copy)]
enum Units<'k> {
    One(Pointer<'k, Global, U8>),
    Two(Pointer<'k, Global, B16>),
    Four(Pointer<'k, Global, B32>),
    Eight(Pointer<'k, Global, B64>),
    Sixteen(Pointer<'k, Global, B64>),
}

impl<'k> Units<'k> {
    fn parameter(k: &'k Assembler, unit: u32, name: &str) -> Units<'k> {
        match unit {
            1 => Units::One(k.buffer(name)),
            2 => Units::Two(k.buffer(name)),
            4 => Units::Four(k.buffer(name)),
            8 => Units::Eight(k.buffer(name)),
            _ => Units::Sixteen(k.buffer(name)),
        }
    }

    fn read_only(self) -> Self {
        match self {
            Units::One(p) => Units::One(p.read_only()),
            Units::Two(p) => Units::Two(p.read_only()),
            Units::Four(p) => Units::Four(p.read_only()),
            Units::Eight(p) => Units::Eight(p.read_only()),
            Units::Sixteen(p) => Units::Sixteen(p.read_only()),
        }
    }

    fn at(self, index: Value<'k, U32>) -> Self {
        match self {
            Units::One(p) => Units::One(p.at(index)),
            Units::Two(p) => Units::Two(p.at(index)),
            Units::Four(p) => Units::Four(p.at(index)),
            Units::Eight(p) => Units::Eight(p.at(index)),
            Units::Sixteen(p) => Units::Sixteen(p.at(index * 2)),
        }
    }

    /// # Panics
    /// If the units differ.
    fn copy_from(self, src: Units<'k>) {
        match (self, src) {
            (Units::One(dst), Units::One(src)) => dst.store(src.load()),
            (Units::Two(dst), Units::Two(src)) => dst.store(src.load()),
            (Units::Four(dst), Units::Four(src)) => dst.store(src.load()),
            (Units::Eight(dst), Units::Eight(src)) => dst.store(src.load()),
            (Units::Sixteen(dst), Units::Sixteen(src)) => {
                dst.store_vector::<2>(src.load_vector::<2>())
            }
            _ => unreachable!("units of one kernel are alike"),
        }
    }
}

impl Variant for Copy {
    const KERNEL: &'static str = "copy/strided";

    fn all() -> Vec<Copy> {
        let mut all = vec![];
        for unit in [1, 2, 4, 8, 16] {
            all.extend((0..=MAX_LOOPS).map(|loops| Copy::Gather { unit, loops }));
        }
        for unit in [1, 2, 4, 8] {
            all.extend((0..=MAX_LOOPS - 2).map(|loops| Copy::Transpose { unit, loops }));
        }
        all
    }

    fn label(&self) -> String {
        match self {
            Copy::Gather { unit, loops } => format!("gather_b{}_loops{loops}", 8 * unit),
            Copy::Transpose { unit, loops } => format!("transpose_b{}_loops{loops}", 8 * unit),
        }
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        match *self {
            Copy::Gather { loops, .. } => self.write_gather(k, loops),
            Copy::Transpose { unit: 1, loops } => self.write_transpose::<U8>(k, loops),
            Copy::Transpose { unit: 2, loops } => self.write_transpose::<B16>(k, loops),
            Copy::Transpose { unit: 4, loops } => self.write_transpose::<B32>(k, loops),
            Copy::Transpose { loops, .. } => self.write_transpose::<B64>(k, loops),
        }
    }
}

/// `dst += src`. Launch with `Update(dst), Read(src), U32(n)`. Without an addition it would be the driver's copy.
#[derive(Clone, std::marker::Copy, Debug, PartialEq, Eq)]
pub struct Accumulate {
    pub storage: Storage,
}

impl Accumulate {
    /// For `n` elements.
    ///
    /// # Errors
    /// If there are more than kernels count.
    pub fn config(self, n: usize) -> Result<Plan<Self>, Refused> {
        Ok(Plan {
            variant: self,
            grid: grid(self.storage, n)?,
        })
    }
}

impl Variant for Accumulate {
    const KERNEL: &'static str = "copy/accumulate";

    fn all() -> Vec<Accumulate> {
        Storage::ALL.map(|storage| Accumulate { storage }).to_vec()
    }

    fn label(&self) -> String {
        self.storage.name().to_string()
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "dst += src, {}.\nGrid: ceil(n / {}) CTAs. Reads dst and src and writes dst once.",
            self.storage.name(),
            THREADS * self.storage.chunk()
        ));
        let dst = k.floats(self.storage, "dst");
        let src = k.floats(self.storage, "src").read_only();
        let n = k.parameter::<U32>("n");
        for_each_chunk(k, self.storage, n, |i, width| {
            let values = src.at(i).load_span(width);
            dst.at(i).put_span(Accum::Add, &values);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::copy;
    use crate::testing::gpu::{self, assert_moves, assert_same_bits, encode, stored_values};

    /// A view: its dims, strides and offset.
    type View = (Vec<usize>, Vec<usize>, usize);

    /// The view of a contiguous tensor of `dims` with its dimensions in another order.
    fn permuted(dims: &[usize], order: &[usize]) -> View {
        let stride = |d: usize| dims[d + 1..].iter().product();
        let dims_of_view = order.iter().map(|&d| dims[d]).collect();
        (dims_of_view, order.iter().map(|&d| stride(d)).collect(), 0)
    }

    fn run(size: usize, view: &View) -> (Call<Copy>, crate::sim::Profile) {
        let (dims, strides, offset) = view;
        let elements: usize = dims.iter().product();
        let reach: usize = dims.iter().zip(strides).map(|(d, s)| (d - 1) * s).sum();
        let src: Vec<u8> = (0..(reach + offset + 1) * size)
            .map(|i| (i * 7 + i / 251) as u8)
            .collect();
        let mut expected = vec![0; elements * size];
        copy::gather_strided(&mut expected, &src, size, dims, strides, *offset);
        let call = Copy::config(size, dims, strides, *offset).expect("few elements");
        let mut dst = vec![0; elements * size];
        let profile = gpu::run(&call, vec![Argument::Write(&mut dst), Argument::Read(&src)]);
        assert!(
            dst == expected,
            "{size} bytes, {view:?}, {:?}",
            call.plan.variant
        );
        (call, profile)
    }

    #[test]
    fn it_copies_what_cpus_copy() {
        let views = [
            (vec![], vec![], 3),
            (vec![1], vec![1], 0),
            (vec![5, 3], vec![3, 1], 1),
            (vec![4, 6], vec![16, 2], 0),
            // Broadcast.
            (vec![3, 5, 4], vec![0, 4, 1], 4),
            (vec![40, 40], vec![1, 0], 0),
            // Blocks of rows, aligned and not.
            (vec![7, 16], vec![48, 1], 16),
            (vec![7, 16], vec![48, 1], 17),
            permuted(&[3, 7], &[1, 0]),
            permuted(&[33, 70], &[1, 0]),
            permuted(&[2, 3, 4], &[2, 0, 1]),
            permuted(&[2, 1, 5, 3], &[0, 3, 2, 1]),
            permuted(&[2, 3, 2, 4, 2, 3], &[0, 1, 3, 2, 4, 5]),
            permuted(&[2, 3, 10, 3, 9, 2], &[2, 1, 5, 3, 0, 4]),
            permuted(&[3, 12, 2, 16], &[2, 3, 0, 1]),
            permuted(&[2, 8, 3, 8], &[0, 2, 1, 3]),
            permuted(&[9, 8, 10], &[2, 1, 0]),
        ];
        for view in &views {
            for size in [1, 2, 4, 8] {
                run(size, view);
            }
        }
    }

    #[test]
    fn transposes_go_through_tiles_and_runs_move_together() {
        let (call, profile) = run(2, &permuted(&[3, 128, 192], &[0, 2, 1]));
        assert_eq!(call.plan.variant, Copy::Transpose { unit: 2, loops: 1 });
        assert_eq!(call.plan.grid, [3 * 4 * 6, 1, 1]);
        assert_moves("transpose", &profile, 2 * 2 * 3 * 128 * 192);
        for size in [1, 2, 4, 8] {
            let (_, profile) = run(size, &permuted(&[64, 96], &[1, 0]));
            assert_eq!(profile.bank_conflicts(), [], "{size} bytes");
        }
        // Heads: runs of 64 elements.
        let (call, profile) = run(2, &permuted(&[2, 10, 4, 64], &[0, 2, 1, 3]));
        assert_eq!(call.plan.variant, Copy::Gather { unit: 16, loops: 4 });
        assert_moves("heads", &profile, 2 * 2 * 2 * 10 * 4 * 64);
        let (call, _) = run(4, &(vec![300], vec![1], 0));
        assert_eq!(call.plan.variant, Copy::Gather { unit: 16, loops: 1 });
    }

    #[test]
    fn sizes_that_kernels_do_not_count_are_refused() {
        let refused = Copy::config(2, &[1 << 16, 1 << 16], &[1 << 16, 1], 0);
        let refused = refused.expect_err("2^32 elements");
        assert!(refused.to_string().contains("4294967296"), "{refused}");
        assert!(Copy::config(2, &[2, 2], &[1 << 32, 1], 0).is_err());
    }

    #[test]
    fn accumulation_adds_as_cpus_do() {
        for storage in Storage::ALL {
            for n in [1, 9, 5000] {
                let src = stored_values(storage, n, 1);
                let cpu = |dst: &mut [f32]| copy::accumulate(dst, Accum::Add, &src);
                let kernel = |dst: Argument<'_>| {
                    let plan = Accumulate { storage }.config(n).expect("few elements");
                    let src = encode(storage, &src);
                    let n = Argument::U32(n as u32);
                    gpu::run_plan(&plan, vec![dst, Argument::Read(&src), n])
                };
                assert_same_bits("accumulate", storage, Accum::Add, n, cpu, kernel);
            }
        }
    }
}
