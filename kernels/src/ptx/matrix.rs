//! Matrix instructions of a warp: fragments from and to shared memory, and products of them.
//!
//! With g = lane / 4 and t = lane % 4, a 16×16 fragment of A has four words: columns 2t, 2t + 1 of row g, of row g + 8,
//! then columns 2t + 8, 2t + 9 of both; a 16×8 fragment of B rows 2t, 2t + 1, then 2t + 8, 2t + 9, of column g; and C
//! and D columns 2t, 2t + 1 of row g, then of row g + 8.

use super::assembler::Assembler;
use super::memory::{Pointer, Shared};
use super::text::Operand;
use super::types::*;
use super::value::{Facts, Value, Variable};
use crate::launch::Arch;

fn group<'k, T: Type>(values: &[Value<'k, T>]) -> Operand {
    Operand::Group(values.iter().map(|v| v.operand()).collect())
}

fn accumulators(values: &[Variable<'_, F32>]) -> Operand {
    Operand::Group(values.iter().map(|v| v.operand()).collect())
}

impl Assembler {
    /// `N` (1, 2 or 4) 8×8 matrices of 16-bit elements: matrix i from the rows that lanes 8i to 8i + 7 point to. A lane
    /// gets elements 2t and 2t + 1 of row g of each.
    #[track_caller]
    pub fn ldmatrix<'k, const N: usize>(
        &'k self,
        row: Pointer<'k, Shared, Bf16>,
    ) -> [Value<'k, Bf16x2>; N] {
        self.ldmatrix_as("", row)
    }

    /// [`Assembler::ldmatrix`] of the transposed matrices: elements 2t and 2t + 1 of column g.
    #[track_caller]
    pub fn ldmatrix_transposed<'k, const N: usize>(
        &'k self,
        row: Pointer<'k, Shared, Bf16>,
    ) -> [Value<'k, Bf16x2>; N] {
        self.ldmatrix_as(".trans", row)
    }

    #[track_caller]
    fn ldmatrix_as<'k, const N: usize>(
        &'k self,
        transposed: &str,
        row: Pointer<'k, Shared, Bf16>,
    ) -> [Value<'k, Bf16x2>; N] {
        const {
            assert!(
                N == 1 || N == 2 || N == 4,
                "ldmatrix loads 1, 2 or 4 matrices"
            )
        };
        row.check_aligned(16, "ldmatrix");
        let words = [(); N].map(|()| self.define(Facts::NONE));
        let opcode = format!("ldmatrix.sync.aligned.m8n8.x{N}{transposed}.shared.b16");
        self.emit(&opcode, vec![group(&words)], vec![row.operand()]);
        words
    }

    /// The reverse of [`Assembler::ldmatrix`].
    #[track_caller]
    pub fn stmatrix<'k, const N: usize>(
        &'k self,
        row: Pointer<'k, Shared, Bf16>,
        words: [Value<'k, Bf16x2>; N],
    ) {
        self.stmatrix_as("", row, words);
    }

    /// The reverse of [`Assembler::ldmatrix_transposed`].
    #[track_caller]
    pub fn stmatrix_transposed<'k, const N: usize>(
        &'k self,
        row: Pointer<'k, Shared, Bf16>,
        words: [Value<'k, Bf16x2>; N],
    ) {
        self.stmatrix_as(".trans", row, words);
    }

    #[track_caller]
    fn stmatrix_as<'k, const N: usize>(
        &'k self,
        transposed: &str,
        row: Pointer<'k, Shared, Bf16>,
        words: [Value<'k, Bf16x2>; N],
    ) {
        const {
            assert!(
                N == 1 || N == 2 || N == 4,
                "stmatrix stores 1, 2 or 4 matrices"
            )
        };
        self.require(Arch::Sm90a, "stmatrix");
        row.check_aligned(16, "stmatrix");
        let opcode = format!("stmatrix.sync.aligned.m8n8.x{N}{transposed}.shared.b16");
        self.emit(&opcode, vec![row.operand()], vec![group(&words)]);
    }

    /// An 8×8 matrix, one word a lane, transposed between the lanes.
    #[track_caller]
    pub fn movmatrix<'k>(&'k self, words: Value<'k, Bf16x2>) -> Value<'k, Bf16x2> {
        let opcode = "movmatrix.sync.aligned.m8n8.trans.b16";
        self.compute(opcode, vec![words.operand()], Facts::NONE)
    }

    /// d += a·b for a 16×16 a, row by row, and a 16×8 b, column by column.
    #[track_caller]
    pub fn mma_m16n8k16<'k>(
        &'k self,
        d: [Variable<'k, F32>; 4],
        a: [Value<'k, Bf16x2>; 4],
        b: [Value<'k, Bf16x2>; 2],
    ) {
        self.mma("m16n8k16", d, &a, &b);
    }

    /// d += a·b for a 16×8 a and an 8×8 b.
    #[track_caller]
    pub fn mma_m16n8k8<'k>(
        &'k self,
        d: [Variable<'k, F32>; 4],
        a: [Value<'k, Bf16x2>; 2],
        b: [Value<'k, Bf16x2>; 1],
    ) {
        self.mma("m16n8k8", d, &a, &b);
    }

    #[track_caller]
    fn mma<'k>(
        &'k self,
        shape: &str,
        d: [Variable<'k, F32>; 4],
        a: &[Value<'k, Bf16x2>],
        b: &[Value<'k, Bf16x2>],
    ) {
        let opcode = format!("mma.sync.aligned.{shape}.row.col.f32.bf16.bf16.f32");
        let sources = vec![group(a), group(b), accumulators(&d)];
        self.emit(&opcode, vec![accumulators(&d)], sources);
    }
}

/// Products of a warp group, four warps, read from shared memory by the matrix unit itself.
impl Assembler {
    /// Where a tile lies, for `wgmma`: its start, the bytes between neighbouring 8-row groups along the leading and the
    /// strided dimension, and the swizzle.
    #[track_caller]
    pub fn matrix_descriptor<'k>(
        &'k self,
        tile: Pointer<'k, Shared, Bf16>,
        leading_bytes: u32,
        stride_bytes: u32,
        swizzle: crate::launch::Swizzle,
    ) -> Value<'k, U64> {
        use crate::launch::Swizzle;
        self.require(Arch::Sm90a, "wgmma");
        tile.check_aligned(16, "a matrix descriptor");
        let layout: u64 = match swizzle {
            Swizzle::None => 0,
            Swizzle::B128 => 1,
            Swizzle::B64 => 2,
            Swizzle::B32 => 3,
        };
        let field = |bytes: u32| u64::from(bytes >> 4 & 0x3FFF);
        let fixed = field(leading_bytes) << 16 | field(stride_bytes) << 32 | layout << 62;
        let start = tile.address().bit_field(4, 14).widen();
        start | fixed
    }

    /// d = a·b, or d += a·b where `accumulate`: 64×16 by 16×N, N = 2·d.len(), both from shared memory.
    ///
    /// A and B are K-major (rows of 16 along k) unless `transposed`. `d` may not be touched before [`Assembler::wgmma_wait`].
    #[track_caller]
    pub fn wgmma<'k>(
        &'k self,
        d: &[Variable<'k, F32>],
        a: Value<'k, U64>,
        b: Value<'k, U64>,
        accumulate: Value<'k, Pred>,
        transposed: [bool; 2],
    ) {
        let transposed = transposed.map(|t| Operand::text(u32::from(t).to_string()));
        self.wgmma_with(d, a.operand(), b, accumulate, transposed.to_vec());
    }

    /// [`Assembler::wgmma`] with a from registers: the fragment of each warp's 16 rows.
    #[track_caller]
    pub fn wgmma_from_registers<'k>(
        &'k self,
        d: &[Variable<'k, F32>],
        a: [Value<'k, Bf16x2>; 4],
        b: Value<'k, U64>,
        accumulate: Value<'k, Pred>,
        b_transposed: bool,
    ) {
        let transposed = vec![Operand::text(u32::from(b_transposed).to_string())];
        self.wgmma_with(d, group(&a), b, accumulate, transposed);
    }

    #[track_caller]
    fn wgmma_with<'k>(
        &'k self,
        d: &[Variable<'k, F32>],
        a: Operand,
        b: Value<'k, U64>,
        accumulate: Value<'k, Pred>,
        transposed: Vec<Operand>,
    ) {
        self.require(Arch::Sm90a, "wgmma");
        let n = 2 * d.len();
        if !(8..=256).contains(&n) || !n.is_multiple_of(8) {
            self.misuse(format_args!(
                "wgmma with N = {n}; it has multiples of 8 up to 256"
            ));
        }
        let opcode = format!("wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16");
        // Neither operand is negated.
        let positive = || Operand::text("1");
        let mut sources = vec![a, b.operand(), accumulate.operand(), positive(), positive()];
        sources.extend(transposed);
        self.emit(&opcode, vec![accumulators(d)], sources);
    }

    /// Orders the warp group's registers and shared memory before the products that follow.
    pub fn wgmma_fence(&self) {
        self.require(Arch::Sm90a, "wgmma");
        self.emit("wgmma.fence.sync.aligned", vec![], vec![]);
    }

    /// Closes the group of the products issued so far.
    pub fn wgmma_commit(&self) {
        self.require(Arch::Sm90a, "wgmma");
        self.emit("wgmma.commit_group.sync.aligned", vec![], vec![]);
    }

    /// Waits until at most `pending` groups are under way.
    pub fn wgmma_wait(&self, pending: u32) {
        self.require(Arch::Sm90a, "wgmma");
        let pending = Operand::text(pending.to_string());
        self.emit("wgmma.wait_group.sync.aligned", vec![], vec![pending]);
    }
}
