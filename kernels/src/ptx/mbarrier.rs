//! Barriers in shared memory that count arrivals and, on Hopper, bytes: a phase ends when both are complete.

use super::assembler::Assembler;
use super::memory::{Cluster, Pointer, Shared};
use super::text::Operand;
use super::types::*;
use super::value::{Facts, IntoValue, Value};
use crate::launch::Arch;

/// An mbarrier, 8 bytes of shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Mbarrier<'k>(Pointer<'k, Shared, B64>);

/// `count` mbarriers, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Mbarriers<'k> {
    base: Pointer<'k, Shared, B64>,
}

impl Assembler {
    /// Shared memory for `count` barriers, which one thread must initialise.
    pub fn shared_mbarriers(&self, count: u32) -> Mbarriers<'_> {
        Mbarriers {
            base: self.shared_array(count),
        }
    }
}

impl<'k> Mbarriers<'k> {
    #[track_caller]
    pub fn barrier(self, index: impl IntoValue<'k, U32>) -> Mbarrier<'k> {
        Mbarrier(self.base.at(index))
    }
}

impl<'k> Mbarrier<'k> {
    pub fn pointer(self) -> Pointer<'k, Shared, B64> {
        self.0
    }

    fn assembler(self) -> &'k Assembler {
        self.0.assembler()
    }

    /// Expects `count` arrivals in every phase. By one thread, before anybody else touches the barrier.
    pub fn init(self, count: u32) {
        let count = Operand::text(count.to_string());
        let sources = vec![self.0.operand(), count];
        self.assembler()
            .emit("mbarrier.init.shared.b64", vec![], sources);
    }

    /// Ends the barrier's life, so that its memory can be used otherwise.
    pub fn invalidate(self) {
        let sources = vec![self.0.operand()];
        self.assembler()
            .emit("mbarrier.inval.shared.b64", vec![], sources);
    }

    /// Arrives, and gives the phase to wait for.
    pub fn arrive(self) -> Value<'k, B64> {
        self.assembler().compute(
            "mbarrier.arrive.shared.b64",
            vec![self.0.operand()],
            Facts::NONE,
        )
    }

    /// Arrives, after expecting `bytes` more of the phase.
    pub fn arrive_expect(self, bytes: impl IntoValue<'k, U32>) {
        let k = self.assembler();
        k.require(Arch::Sm90a, "mbarrier.arrive.expect_tx");
        let sources = vec![self.0.operand(), bytes.into_value().operand()];
        k.emit(
            "mbarrier.arrive.expect_tx.shared.b64",
            vec![Operand::text("_")],
            sources,
        );
    }

    /// Expects `bytes` more of the phase, without arriving.
    pub fn expect(self, bytes: impl IntoValue<'k, U32>) {
        let k = self.assembler();
        k.require(Arch::Sm90a, "mbarrier.expect_tx");
        let sources = vec![self.0.operand(), bytes.into_value().operand()];
        k.emit("mbarrier.expect_tx.relaxed.cta.shared.b64", vec![], sources);
    }

    /// Whether the phase that [`Mbarrier::arrive`] gave is over.
    pub fn test(self, phase: Value<'k, B64>) -> Value<'k, Pred> {
        let sources = vec![self.0.operand(), phase.operand()];
        self.assembler()
            .compute("mbarrier.test_wait.shared.b64", sources, Facts::NONE)
    }

    /// Whether the phase of this parity is over: 0 for the first one, then 1, then 0.
    pub fn test_parity(self, parity: impl IntoValue<'k, U32>) -> Value<'k, Pred> {
        let sources = vec![self.0.operand(), parity.into_value().operand()];
        self.assembler()
            .compute("mbarrier.test_wait.parity.shared.b64", sources, Facts::NONE)
    }

    /// [`Mbarrier::test_parity`], which may sleep a while before it says no.
    pub fn try_parity(self, parity: impl IntoValue<'k, U32>) -> Value<'k, Pred> {
        let k = self.assembler();
        k.require(Arch::Sm90a, "mbarrier.try_wait");
        let sources = vec![self.0.operand(), parity.into_value().operand()];
        k.compute("mbarrier.try_wait.parity.shared.b64", sources, Facts::NONE)
    }

    /// Waits until the phase of this parity is over.
    pub fn wait(self, parity: impl IntoValue<'k, U32>) {
        let parity = parity.into_value();
        let k = self.assembler();
        k.do_while(|| match k.arch() {
            Arch::Sm80 => !self.test_parity(parity),
            Arch::Sm90a => !self.try_parity(parity),
        });
    }
}

impl Assembler {
    /// Arrives at a barrier of any CTA of the cluster.
    pub fn mbarrier_arrive_remote<'k>(&'k self, barrier: Pointer<'k, Cluster, B64>) {
        self.require(Arch::Sm90a, "mbarrier.arrive.shared::cluster");
        self.emit(
            "mbarrier.arrive.release.cluster.shared::cluster.b64",
            vec![Operand::text("_")],
            vec![barrier.operand()],
        );
    }
}
