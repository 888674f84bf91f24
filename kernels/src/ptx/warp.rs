//! What the threads of a warp, a CTA or a cluster do together: shuffles, votes, barriers and fences.

use super::assembler::Assembler;
use super::memory::{Cluster, Pointer, Shared};
use super::text::Operand;
use super::types::*;
use super::value::{Facts, IntoValue, Value};
use crate::launch::Arch;

/// All lanes of a warp.
const ALL_LANES: &str = "0xffffffff";

/// How far a fence or an atomic reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Cta,
    Cluster,
    Gpu,
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Scope::Cta => "cta",
            Scope::Cluster => "cluster",
            Scope::Gpu => "gpu",
        }
    }
}

/// Warps. All lanes must be there.
impl Assembler {
    /// The value of the lane whose number differs by the bits of `mask`.
    #[track_caller]
    pub fn shuffle_xor<'k, T: Type>(&'k self, x: impl IntoValue<'k, T>, mask: u32) -> Value<'k, T> {
        self.shuffle("bfly", x.into_value(), mask.into_value(), 0x1F)
    }

    /// The value of the lane `by` below; one's own in the lowest lanes.
    #[track_caller]
    pub fn shuffle_up<'k, T: Type>(&'k self, x: impl IntoValue<'k, T>, by: u32) -> Value<'k, T> {
        self.shuffle("up", x.into_value(), by.into_value(), 0)
    }

    /// The value of the lane `by` above; one's own in the highest lanes.
    #[track_caller]
    pub fn shuffle_down<'k, T: Type>(&'k self, x: impl IntoValue<'k, T>, by: u32) -> Value<'k, T> {
        self.shuffle("down", x.into_value(), by.into_value(), 0x1F)
    }

    #[track_caller]
    fn shuffle<'k, T: Type>(
        &'k self,
        mode: &str,
        x: Value<'k, T>,
        lane: Value<'k, U32>,
        clamp: u32,
    ) -> Value<'k, T> {
        const { assert!(T::SIZE == 4, "shuffles move 32 bits") };
        let opcode = format!("shfl.sync.{mode}.b32");
        let clamp = Operand::text(clamp.to_string());
        let lanes = Operand::text(ALL_LANES);
        self.compute(
            &opcode,
            vec![x.operand(), lane.operand(), clamp, lanes],
            x.facts(),
        )
    }

    /// The value of lane `lane`.
    #[track_caller]
    pub fn shuffle_index<'k, T: Type>(
        &'k self,
        x: impl IntoValue<'k, T>,
        lane: impl IntoValue<'k, U32>,
    ) -> Value<'k, T> {
        self.shuffle("idx", x.into_value(), lane.into_value(), 0x1F)
    }

    /// Whether any lane's condition holds.
    #[track_caller]
    pub fn vote_any<'k>(&'k self, condition: Value<'k, Pred>) -> Value<'k, Pred> {
        self.vote("any.pred", condition)
    }

    /// Whether every lane's condition holds.
    #[track_caller]
    pub fn vote_all<'k>(&'k self, condition: Value<'k, Pred>) -> Value<'k, Pred> {
        self.vote("all.pred", condition)
    }

    /// One bit for every lane whose condition holds.
    #[track_caller]
    pub fn ballot<'k>(&'k self, condition: Value<'k, Pred>) -> Value<'k, B32> {
        self.vote("ballot.b32", condition)
    }

    #[track_caller]
    fn vote<'k, R: Type>(&'k self, mode: &str, condition: Value<'k, Pred>) -> Value<'k, R> {
        let sources = vec![condition.operand(), Operand::text(ALL_LANES)];
        self.compute(&format!("vote.sync.{mode}"), sources, Facts::NONE)
    }

    /// One bit for every lane that executes this.
    pub fn active_lanes(&self) -> Value<'_, B32> {
        self.compute("activemask.b32", vec![], Facts::NONE)
    }

    /// `redux.sync.add`: the sum over all lanes.
    #[track_caller]
    pub fn redux_add<'k>(&'k self, x: impl IntoValue<'k, U32>) -> Value<'k, U32> {
        self.redux("add", x.into_value())
    }

    #[track_caller]
    pub fn redux_min<'k>(&'k self, x: impl IntoValue<'k, U32>) -> Value<'k, U32> {
        self.redux("min", x.into_value())
    }

    #[track_caller]
    pub fn redux_max<'k>(&'k self, x: impl IntoValue<'k, U32>) -> Value<'k, U32> {
        self.redux("max", x.into_value())
    }

    #[track_caller]
    fn redux<'k>(&'k self, operation: &str, x: Value<'k, U32>) -> Value<'k, U32> {
        let sources = vec![x.operand(), Operand::text(ALL_LANES)];
        self.compute(&format!("redux.sync.{operation}.u32"), sources, Facts::NONE)
    }

    /// `match.any`: one bit for every lane that has the same value.
    #[track_caller]
    pub fn match_any<'k>(&'k self, x: impl IntoValue<'k, U32>) -> Value<'k, B32> {
        let sources = vec![x.into_value().operand(), Operand::text(ALL_LANES)];
        self.compute("match.any.sync.b32", sources, Facts::NONE)
    }

    /// `elect.sync`: true in one lane of the warp.
    pub fn elect(&self) -> Value<'_, Pred> {
        self.require(Arch::Sm90a, "elect.sync");
        let elected = self.define::<Pred>(Facts::NONE);
        // The other result, which lane it is, goes to the sink.
        let sources = vec![Operand::text(ALL_LANES)];
        self.emit(
            "elect.sync",
            vec![Operand::sink_and(elected.operand())],
            sources,
        );
        elected
    }

    /// Waits for the lanes of the warp, and makes their writes to memory visible to each other.
    pub fn warp_barrier(&self) {
        let lanes = Operand::text(ALL_LANES);
        self.emit("bar.warp.sync", vec![], vec![lanes]);
    }
}

/// CTAs.
impl Assembler {
    /// Waits for every thread of the CTA, and makes their writes visible to each other: CUDA's `__syncthreads`.
    pub fn barrier(&self) {
        self.refuse_guard("a barrier");
        self.emit("bar.sync", vec![], vec![Operand::text("0")]);
    }

    /// Waits at barrier `id` until `threads` threads have arrived there.
    #[track_caller]
    pub fn named_barrier_sync(&self, id: u32, threads: u32) {
        self.named_barrier("bar.sync", id, threads);
    }

    /// Arrives at barrier `id` without waiting.
    #[track_caller]
    pub fn named_barrier_arrive(&self, id: u32, threads: u32) {
        self.named_barrier("bar.arrive", id, threads);
    }

    #[track_caller]
    fn named_barrier(&self, opcode: &str, id: u32, threads: u32) {
        self.refuse_guard("a barrier");
        if id > 15 {
            self.misuse(format_args!("barrier {id}; a CTA has barriers 0 to 15"));
        }
        if threads == 0 || !threads.is_multiple_of(32) {
            self.misuse(format_args!(
                "a barrier of {threads} threads; whole warps arrive"
            ));
        }
        let operands = [id, threads].map(|n| Operand::text(n.to_string()));
        self.emit(opcode, vec![], operands.to_vec());
    }

    /// `fence.acq_rel`: orders this thread's accesses before and after, for observers within `scope`.
    pub fn fence(&self, scope: Scope) {
        if scope == Scope::Cluster {
            self.require(Arch::Sm90a, "a fence over the cluster");
        }
        self.emit(&format!("fence.acq_rel.{}", scope.name()), vec![], vec![]);
    }

    /// `fence.sc`: [`Assembler::fence`] in one order that all observers agree on.
    pub fn fence_sc(&self, scope: Scope) {
        if scope == Scope::Cluster {
            self.require(Arch::Sm90a, "a fence over the cluster");
        }
        self.emit(&format!("fence.sc.{}", scope.name()), vec![], vec![]);
    }

    /// Makes what this thread wrote to shared memory visible to asynchronous copies and matrix instructions.
    pub fn fence_proxy_async_shared(&self) {
        self.require(Arch::Sm90a, "fence.proxy.async");
        self.emit("fence.proxy.async.shared::cta", vec![], vec![]);
    }

    /// The same for global memory.
    pub fn fence_proxy_async_global(&self) {
        self.require(Arch::Sm90a, "fence.proxy.async");
        self.emit("fence.proxy.async.global", vec![], vec![]);
    }

    /// Makes initialised mbarriers visible to the cluster.
    pub fn fence_mbarrier_init(&self) {
        self.require(Arch::Sm90a, "fence.mbarrier_init");
        self.emit("fence.mbarrier_init.release.cluster", vec![], vec![]);
    }
}

/// Clusters.
impl Assembler {
    /// Arrives at the cluster's barrier; what was written before is visible after the wait.
    pub fn cluster_arrive(&self) {
        self.require(Arch::Sm90a, "barrier.cluster");
        self.emit("barrier.cluster.arrive.release.aligned", vec![], vec![]);
    }

    /// Arrives at the cluster's barrier without making anything visible.
    pub fn cluster_arrive_relaxed(&self) {
        self.require(Arch::Sm90a, "barrier.cluster");
        self.emit("barrier.cluster.arrive.relaxed.aligned", vec![], vec![]);
    }

    /// Waits until every thread of the cluster has arrived.
    pub fn cluster_wait(&self) {
        self.require(Arch::Sm90a, "barrier.cluster");
        self.emit("barrier.cluster.wait.acquire.aligned", vec![], vec![]);
    }

    /// `mapa`: the same place in the shared memory of CTA `rank` of the cluster.
    #[track_caller]
    pub fn map_to_cta<'k, E: Type>(
        &'k self,
        pointer: Pointer<'k, Shared, E>,
        rank: impl IntoValue<'k, U32>,
    ) -> Pointer<'k, Cluster, E> {
        self.require(Arch::Sm90a, "mapa");
        let alignment = pointer.alignment();
        let sources = vec![pointer.address().operand(), rank.into_value().operand()];
        let facts = Facts::multiple_of(alignment);
        Pointer::new(self.compute("mapa.shared::cluster.u32", sources, facts))
    }
}
