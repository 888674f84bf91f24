//! Asynchronous copies between global and shared memory: `cp.async` of every GPU since Ampere, and the bulk copies and
//! tensor maps (TMA) of Hopper.
//!
//! `cp.reduce.async.bulk` is left out: floats that are added in the order in which copies arrive differ from run to run.

use super::assembler::Assembler;
use super::mbarrier::Mbarrier;
use super::memory::{Cluster, Global, Pointer, Shared, TensorMap};
use super::text::Operand;
use super::types::*;
use super::value::{IntoValue, Value};
use crate::launch::Arch;

/// Copies of a thread, in groups.
impl Assembler {
    /// Copies 16 bytes past the first cache. Of the source only the first `valid` bytes are read, where given; the rest
    /// becomes zero.
    #[track_caller]
    pub fn cp_async_16<'k, E: Type>(
        &'k self,
        destination: Pointer<'k, Shared, E>,
        source: Pointer<'k, Global, E>,
        valid: Option<Value<'k, U32>>,
    ) {
        self.cp_async("cg", 16, ".L2::128B", destination, source, valid);
    }

    /// [`Assembler::cp_async_16`] of 8 bytes, through the first cache.
    #[track_caller]
    pub fn cp_async_8<'k, E: Type>(
        &'k self,
        destination: Pointer<'k, Shared, E>,
        source: Pointer<'k, Global, E>,
        valid: Option<Value<'k, U32>>,
    ) {
        self.cp_async("ca", 8, "", destination, source, valid);
    }

    /// [`Assembler::cp_async_16`] of 4 bytes, through the first cache.
    #[track_caller]
    pub fn cp_async_4<'k, E: Type>(
        &'k self,
        destination: Pointer<'k, Shared, E>,
        source: Pointer<'k, Global, E>,
        valid: Option<Value<'k, U32>>,
    ) {
        self.cp_async("ca", 4, "", destination, source, valid);
    }

    #[track_caller]
    fn cp_async<'k, E: Type>(
        &'k self,
        cache: &str,
        bytes: u32,
        prefetch: &str,
        destination: Pointer<'k, Shared, E>,
        source: Pointer<'k, Global, E>,
        valid: Option<Value<'k, U32>>,
    ) {
        destination.check_aligned(bytes, "the destination of cp.async");
        source.check_aligned(bytes, "the source of cp.async");
        let opcode = format!("cp.async.{cache}.shared.global{prefetch}");
        let mut sources = vec![source.operand(), Operand::text(bytes.to_string())];
        sources.extend(valid.map(Value::operand));
        self.emit(&opcode, vec![destination.operand()], sources);
    }

    /// Closes the group of the copies issued so far.
    pub fn cp_async_commit(&self) {
        self.emit("cp.async.commit_group", vec![], vec![]);
    }

    /// Waits until at most `pending` of this thread's groups are under way.
    pub fn cp_async_wait(&self, pending: u32) {
        let pending = Operand::text(pending.to_string());
        self.emit("cp.async.wait_group", vec![], vec![pending]);
    }

    /// Waits for all copies of this thread.
    pub fn cp_async_wait_all(&self) {
        self.emit("cp.async.wait_all", vec![], vec![]);
    }

    /// Lets this thread's copies so far arrive at `barrier` once they are done, as one of its expected arrivals.
    pub fn cp_async_mbarrier_arrive(&self, barrier: Mbarrier<'_>) {
        let sources = vec![barrier.pointer().operand()];
        self.emit("cp.async.mbarrier.arrive.noinc.shared.b64", vec![], sources);
    }
}

/// Bulk copies: issued by one thread, done by the copy engine.
impl Assembler {
    /// Copies `bytes`, a multiple of 16, and completes as many bytes of `barrier`'s transaction.
    #[track_caller]
    pub fn bulk_load<'k, E: Type>(
        &'k self,
        destination: Pointer<'k, Shared, E>,
        source: Pointer<'k, Global, E>,
        bytes: impl IntoValue<'k, U32>,
        barrier: Mbarrier<'k>,
    ) {
        self.require(Arch::Sm90a, "cp.async.bulk");
        destination.check_aligned(16, "the destination of a bulk copy");
        source.check_aligned(16, "the source of a bulk copy");
        self.emit(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes",
            vec![destination.operand()],
            vec![
                source.operand(),
                bytes.into_value().operand(),
                barrier.pointer().operand(),
            ],
        );
    }

    /// Copies `bytes` to the shared memory of another CTA of the cluster, and completes its `barrier`'s transaction.
    #[track_caller]
    pub fn bulk_send<'k, E: Type>(
        &'k self,
        destination: Pointer<'k, Cluster, E>,
        source: Pointer<'k, Shared, E>,
        bytes: impl IntoValue<'k, U32>,
        barrier: Pointer<'k, Cluster, B64>,
    ) {
        self.require(Arch::Sm90a, "cp.async.bulk");
        destination.check_aligned(16, "the destination of a bulk copy");
        source.check_aligned(16, "the source of a bulk copy");
        self.emit(
            "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes",
            vec![destination.operand()],
            vec![
                source.operand(),
                bytes.into_value().operand(),
                barrier.operand(),
            ],
        );
    }

    /// Copies `bytes` out, as part of the thread's next bulk group.
    #[track_caller]
    pub fn bulk_store<'k, E: Type>(
        &'k self,
        destination: Pointer<'k, Global, E>,
        source: Pointer<'k, Shared, E>,
        bytes: impl IntoValue<'k, U32>,
    ) {
        self.require(Arch::Sm90a, "cp.async.bulk");
        destination.check_aligned(16, "the destination of a bulk copy");
        source.check_aligned(16, "the source of a bulk copy");
        self.emit(
            "cp.async.bulk.global.shared::cta.bulk_group",
            vec![destination.operand()],
            vec![source.operand(), bytes.into_value().operand()],
        );
    }

    /// Closes the group of the bulk stores issued so far.
    pub fn bulk_commit(&self) {
        self.require(Arch::Sm90a, "cp.async.bulk");
        self.emit("cp.async.bulk.commit_group", vec![], vec![]);
    }

    /// Waits until at most `pending` bulk groups have still to write.
    pub fn bulk_wait(&self, pending: u32) {
        self.bulk_wait_group("", pending);
    }

    /// Waits until at most `pending` bulk groups have still to read their source, which may be reused then.
    pub fn bulk_wait_read(&self, pending: u32) {
        self.bulk_wait_group(".read", pending);
    }

    fn bulk_wait_group(&self, read: &str, pending: u32) {
        self.require(Arch::Sm90a, "cp.async.bulk");
        let pending = Operand::text(pending.to_string());
        let opcode = format!("cp.async.bulk.wait_group{read}");
        self.emit(&opcode, vec![], vec![pending]);
    }
}

/// Boxes of tensors.
impl Assembler {
    /// Fetches the map itself into its cache.
    pub fn prefetch_tensor_map(&self, map: TensorMap<'_>) {
        let address = Pointer::<Global, B64>::new(map.address).operand();
        self.emit("prefetch.tensormap", vec![], vec![address]);
    }

    /// Copies the box at `coordinates` (innermost first) in, and completes its bytes, zeros outside of the tensor
    /// included, of `barrier`'s transaction. With `ctas`, to the same place in every CTA of that mask.
    #[track_caller]
    pub fn tensor_load<'k, E: Type>(
        &'k self,
        destination: Pointer<'k, Shared, E>,
        map: TensorMap<'k>,
        coordinates: &[Value<'k, S32>],
        barrier: Mbarrier<'k>,
        ctas: Option<Value<'k, B16>>,
    ) {
        let rank = self.check_box(destination, coordinates);
        let multicast = if ctas.is_some() {
            ".multicast::cluster"
        } else {
            ""
        };
        let opcode = format!(
            "cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes{multicast}"
        );
        let mut sources = vec![map.bracket(coordinates), barrier.pointer().operand()];
        sources.extend(ctas.map(Value::operand));
        self.emit(&opcode, vec![destination.operand()], sources);
    }

    /// The same under an im2col map: the box's pixels, shifted by `offsets` (innermost first) of the filter.
    #[track_caller]
    pub fn tensor_load_im2col<'k, E: Type>(
        &'k self,
        destination: Pointer<'k, Shared, E>,
        map: TensorMap<'k>,
        coordinates: &[Value<'k, S32>],
        barrier: Mbarrier<'k>,
        offsets: &[Value<'k, B16>],
    ) {
        let rank = self.check_box(destination, coordinates);
        if rank < 3 || offsets.len() + 2 != rank {
            self.misuse(format_args!(
                "an im2col copy of rank {rank} with {} offsets; rank 3 to 5 has two fewer",
                offsets.len()
            ));
        }
        let opcode = format!(
            "cp.async.bulk.tensor.{rank}d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
        );
        let offsets = Operand::Group(offsets.iter().map(|o| o.operand()).collect());
        let sources = vec![
            map.bracket(coordinates),
            barrier.pointer().operand(),
            offsets,
        ];
        self.emit(&opcode, vec![destination.operand()], sources);
    }

    /// Copies a box out to `coordinates`, clipped to the tensor, as part of the thread's next bulk group.
    #[track_caller]
    pub fn tensor_store<'k, E: Type>(
        &'k self,
        map: TensorMap<'k>,
        coordinates: &[Value<'k, S32>],
        source: Pointer<'k, Shared, E>,
    ) {
        let rank = self.check_box(source, coordinates);
        let opcode = format!("cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group");
        self.emit(
            &opcode,
            vec![map.bracket(coordinates)],
            vec![source.operand()],
        );
    }

    #[track_caller]
    fn check_box<E: Type>(
        &self,
        shared: Pointer<'_, Shared, E>,
        coordinates: &[Value<'_, S32>],
    ) -> usize {
        self.require(Arch::Sm90a, "cp.async.bulk.tensor");
        shared.check_aligned(128, "a box in shared memory");
        let rank = coordinates.len();
        if !(1..=5).contains(&rank) {
            self.misuse(format_args!(
                "a box of rank {rank}; tensor maps have 1 to 5"
            ));
        }
        rank
    }
}

impl<'k> TensorMap<'k> {
    fn bracket(self, coordinates: &[Value<'k, S32>]) -> Operand {
        let coordinates = coordinates.iter().map(|c| c.operand()).collect();
        Operand::Bracket(vec![self.address.operand(), Operand::Group(coordinates)])
    }
}
