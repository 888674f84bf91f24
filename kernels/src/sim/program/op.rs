//! Decoded instructions: what the executor dispatches on. Registers are slots, modifiers are enums, and every immediate
//! has become a register of its own, so that no instruction looks at text again.

use super::super::parse::types::Type;

/// A 32-bit register by its place in a warp's register file; a 64-bit one takes this place and the next.
pub type Slot = u32;
/// A predicate register.
pub type Pred = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    W16,
    W32,
    W64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int1 {
    Not,
    Neg,
    Abs,
    Popc,
    Clz,
    Brev,
    FindUnsigned,
    FindSigned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int2 {
    Add,
    Sub,
    MulLo,
    MulHiSigned,
    MulHiUnsigned,
    MinSigned,
    MinUnsigned,
    MaxSigned,
    MaxUnsigned,
    And,
    Or,
    Xor,
    Shl,
    ShrSigned,
    ShrUnsigned,
    DivSigned,
    DivUnsigned,
    RemSigned,
    RemUnsigned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int3 {
    Lop3(u8),
    BfeSigned,
    BfeUnsigned,
    Prmt,
    ShfLeftWrap,
    ShfLeftClamp,
    ShfRightWrap,
    ShfRightClamp,
    SadSigned,
    SadUnsigned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float1 {
    Neg,
    Abs,
    Rcp,
    Sqrt,
    Rsqrt,
    Sin,
    Cos,
    Ex2,
    Lg2,
    Tanh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float2 {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
}

/// Rounding of a conversion or an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

/// What happens to a float result besides the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloatMode {
    /// Subnormal operands and results become zeros of their sign.
    pub ftz: bool,
    /// The result is clamped to [0, 1], NaN to 0.
    pub saturate: bool,
    /// Negative results (and NaN kept) become 0.
    pub relu: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// The unordered forms hold for NaN too.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logic {
    And,
    Or,
    Xor,
}

/// A predicate operand, possibly negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PredSource {
    pub pred: Pred,
    pub negate: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySpace {
    Generic,
    Global,
    Shared,
    /// Shared memory of the whole cluster.
    Cluster,
    /// Constant variables; addressed like global memory.
    Const,
}

/// Whether an access takes part in synchronisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Weak,
    Relaxed,
    Acquire,
    Release,
    AcquireRelease,
}

impl Order {
    pub fn acquires(self) -> bool {
        matches!(self, Order::Acquire | Order::AcquireRelease)
    }

    pub fn releases(self) -> bool {
        matches!(self, Order::Release | Order::AcquireRelease)
    }
}

/// `[slot + offset]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub space: MemorySpace,
    /// The base, 64-bit where `wide`.
    pub base: Slot,
    pub wide: bool,
    pub offset: i64,
}

/// What a load or store moves per thread: up to four elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    pub kind: Type,
    pub count: u8,
    /// Registers, [`SINK`] where `_` stands.
    pub registers: [Slot; 4],
    /// Width of the registers, at least the element's.
    pub width: Width,
}

/// Stands for `_`.
pub const SINK: Slot = Slot::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomicOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Inc,
    Dec,
    Exchange,
    CompareSwap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

/// Element type of a matrix instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixElement {
    Bf16,
    F16,
}

/// Where a wgmma's A operand comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WgmmaA {
    Descriptor(Slot),
    Registers([Slot; 4]),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Wgmma {
    pub element: MatrixElement,
    pub n: u32,
    pub d: Vec<Slot>,
    pub a: WgmmaA,
    pub b: Slot,
    /// Whether D is added to; overwritten where it is false.
    pub scale_d: PredSource,
    pub negate_a: bool,
    pub negate_b: bool,
    /// Whether the operand lies MN-major in shared memory.
    pub transpose_a: bool,
    pub transpose_b: bool,
}

/// Copies by the bulk engine.
#[derive(Clone, Debug, PartialEq)]
pub enum Bulk {
    /// `cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes`.
    GlobalToShared {
        to: Address,
        from: Address,
        bytes: Slot,
        barrier: Address,
        multicast: Option<Slot>,
    },
    /// `cp.async.bulk.global.shared::cta.bulk_group`.
    SharedToGlobal {
        to: Address,
        from: Address,
        bytes: Slot,
    },
    /// `cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes`.
    SharedToCluster {
        to: Address,
        from: Address,
        bytes: Slot,
        barrier: Address,
    },
    /// `cp.async.bulk.tensor.Nd.shared::cluster.global.tile`.
    TensorLoad {
        to: Address,
        map: Address,
        coordinates: Vec<Slot>,
        barrier: Address,
        multicast: Option<Slot>,
    },
    /// `cp.async.bulk.tensor.Nd.global.shared::cta.tile.bulk_group`.
    TensorStore {
        map: Address,
        coordinates: Vec<Slot>,
        from: Address,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MbarrierOp {
    Init {
        count: Slot,
    },
    Invalidate,
    /// Phase token in `state` unless [`SINK`].
    Arrive {
        state: Slot,
        count: Option<Slot>,
        expect: Option<Slot>,
        drop: bool,
        no_complete: bool,
    },
    ExpectTx {
        bytes: Slot,
    },
    CompleteTx {
        bytes: Slot,
    },
    /// Parity in a 32-bit register, or a phase token in a 64-bit one.
    Wait {
        done: Pred,
        phase: Slot,
        parity: bool,
        blocking: bool,
    },
    /// `cp.async.mbarrier.arrive[.noinc]`.
    CopyArrive {
        no_increment: bool,
    },
}

/// Which accesses a fence orders, as far as the simulator tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// `fence.acq_rel`, `fence.sc`, `membar`.
    Memory,
    /// `fence.proxy.async`.
    AsyncProxy,
    /// `fence.mbarrier_init.release.cluster`.
    MbarrierInit,
}

/// One decoded instruction.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Hints and what the simulator has no use for.
    Nop,
    Exit,
    Trap,
    Branch {
        target: u32,
        uniform: bool,
    },

    Move {
        width: Width,
        d: Slot,
        a: Slot,
    },
    /// Two 16-bit registers into one of 32 bits, low half first.
    Pack16 {
        d: Slot,
        a: [Slot; 2],
    },
    Unpack16 {
        d: [Slot; 2],
        a: Slot,
    },
    /// Two 32-bit registers into one of 64 bits.
    Pack32 {
        d: Slot,
        a: [Slot; 2],
    },
    Unpack32 {
        d: [Slot; 2],
        a: Slot,
    },
    /// Four 16-bit registers and one of 64 bits.
    Pack4x16 {
        d: Slot,
        a: [Slot; 4],
    },
    Unpack4x16 {
        d: [Slot; 4],
        a: Slot,
    },
    Select {
        width: Width,
        d: Slot,
        a: Slot,
        b: Slot,
        p: PredSource,
    },
    /// `mov.pred`, `not.pred`.
    MovePred {
        d: Pred,
        a: PredSource,
    },
    LogicPred {
        logic: Logic,
        d: Pred,
        a: PredSource,
        b: PredSource,
    },
    /// A generic address to or from one of the space that starts at `window`.
    AddressAdd {
        d: Slot,
        a: Slot,
        wide: bool,
        window: u64,
    },
    AddressSub {
        d: Slot,
        a: Slot,
        wide: bool,
        window: u64,
    },
    IsSpace {
        d: Pred,
        a: Slot,
        space: MemorySpace,
    },

    Int1 {
        op: Int1,
        width: Width,
        d: Slot,
        a: Slot,
    },
    Int2 {
        op: Int2,
        width: Width,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Int3 {
        op: Int3,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// `bfi`.
    Insert {
        d: Slot,
        a: Slot,
        b: Slot,
        start: Slot,
        length: Slot,
    },
    /// d = (a·b's low or high half) + c.
    Mad {
        high: bool,
        signed: bool,
        width: Width,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// d of `from`'s double width = a·b (+ c).
    MulWide {
        from: Width,
        signed: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Option<Slot>,
    },
    /// Sums with the condition code: `add.cc`, `addc`, `sub.cc`, `subc`.
    Carry {
        subtract: bool,
        carry_in: bool,
        carry_out: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Setp {
        compare: Compare,
        kind: Type,
        ftz: bool,
        d: Pred,
        not_d: Option<Pred>,
        a: Slot,
        b: Slot,
        combine: Option<(Logic, PredSource)>,
    },
    /// A comparison into a register: all ones (or 1.0 where `float`) if it holds.
    Set {
        compare: Compare,
        kind: Type,
        ftz: bool,
        float: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },

    Float1 {
        op: Float1,
        kind: Type,
        mode: FloatMode,
        approximate: bool,
        d: Slot,
        a: Slot,
    },
    Float2 {
        op: Float2,
        kind: Type,
        mode: FloatMode,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Fma {
        kind: Type,
        mode: FloatMode,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Convert {
        from: Type,
        to: Type,
        round: Round,
        integer_round: bool,
        mode: FloatMode,
        d: Slot,
        a: Slot,
    },
    /// Two f32 to a pair of 16-bit floats; `high` is the first operand in the text.
    ConvertPair {
        to: Type,
        round: Round,
        relu: bool,
        d: Slot,
        high: Slot,
        low: Slot,
    },

    Load {
        address: Address,
        transfer: Transfer,
        order: Order,
    },
    Store {
        address: Address,
        transfer: Transfer,
        order: Order,
    },
    Atomic {
        op: AtomicOp,
        kind: Type,
        address: Address,
        order: Order,
        d: Slot,
        a: Slot,
        b: Slot,
    },

    Shfl {
        mode: ShflMode,
        d: Slot,
        p: Option<Pred>,
        a: Slot,
        b: Slot,
        c: Slot,
        members: Slot,
    },
    Vote {
        mode: VoteMode,
        d: u32,
        a: PredSource,
        members: Slot,
    },
    ActiveMask {
        d: Slot,
    },
    Redux {
        op: Int2,
        d: Slot,
        a: Slot,
        members: Slot,
    },
    Match {
        all: bool,
        width: Width,
        d: Slot,
        p: Option<Pred>,
        a: Slot,
        members: Slot,
    },
    Elect {
        d: Slot,
        p: Pred,
        members: Slot,
    },
    WarpSync {
        members: Slot,
    },

    Barrier {
        id: Slot,
        threads: Option<Slot>,
        wait: bool,
        aligned: bool,
    },
    ClusterArrive {
        release: bool,
    },
    ClusterWait,
    Fence(Fence),
    MapRank {
        d: Slot,
        a: Slot,
        wide: bool,
        rank: Slot,
    },
    GetRank {
        d: Slot,
        a: Slot,
        wide: bool,
    },

    CopyAsync {
        to: Address,
        from: Address,
        bytes: u32,
        source_bytes: Option<Slot>,
        ignore: Option<PredSource>,
    },
    CopyCommit,
    /// Waits until at most this many groups are pending.
    CopyWait {
        pending: u32,
    },
    CopyWaitAll,

    LoadMatrix {
        d: [Slot; 4],
        count: u8,
        transpose: bool,
        address: Address,
    },
    StoreMatrix {
        a: [Slot; 4],
        count: u8,
        transpose: bool,
        address: Address,
    },
    MoveMatrix {
        d: Slot,
        a: Slot,
    },
    /// m16n8 with k 16 (four registers of A, two of B) or 8 (two and one).
    Mma {
        element: MatrixElement,
        k: u8,
        d: [Slot; 4],
        a: [Slot; 4],
        b: [Slot; 2],
        c: [Slot; 4],
    },

    Mbarrier {
        op: MbarrierOp,
        address: Address,
    },
    Bulk(Box<Bulk>),
    BulkCommit,
    BulkWait {
        pending: u32,
        read: bool,
    },
    Wgmma(Box<Wgmma>),
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait {
        pending: u32,
    },
    /// Registers per thread, checked for form only.
    SetMaxRegisters,
}
