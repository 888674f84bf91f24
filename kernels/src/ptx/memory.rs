//! Parameters, addresses, loads and stores.
//!
//! A [`Pointer`] knows its space, its element type and what divides it. Each access checks that the address is proved to
//! be a multiple of the access's size, so that a misaligned vector access does not assemble.

use std::marker::PhantomData;

use super::assembler::Assembler;
use super::text::{Operand, SHARED};
use super::types::*;
use super::value::{Facts, IntoValue, Value};
use crate::launch::{Arch, BUFFER_ALIGNMENT};

/// A state space.
pub trait Space: Copy + 'static {
    /// The type of addresses.
    type Address: Integer + Bits;
    /// As in `ld` and `st`.
    const NAME: &'static str;

    /// `base + index · size`, in bytes.
    fn offset<'k>(
        base: Value<'k, Self::Address>,
        index: Value<'k, U32>,
        size: u32,
    ) -> Value<'k, Self::Address>;
}

/// Memory of the device.
#[derive(Clone, Copy, Debug)]
pub struct Global;

/// Memory of the CTA.
#[derive(Clone, Copy, Debug)]
pub struct Shared;

/// Shared memory of any CTA of the cluster.
#[derive(Clone, Copy, Debug)]
pub struct Cluster;

impl Space for Global {
    type Address = U64;
    const NAME: &'static str = "global";

    #[track_caller]
    fn offset<'k>(base: Value<'k, U64>, index: Value<'k, U32>, size: u32) -> Value<'k, U64> {
        let k = base.assembler().expect("addresses are registers");
        let bytes = index.facts().mul(Facts::of(size.into()), Some(size.into()));
        let facts = bytes.add(base.facts());
        let size = Operand::text(size.to_string());
        k.compute(
            "mad.wide.u32",
            vec![index.operand(), size, base.operand()],
            facts,
        )
    }
}

#[track_caller]
fn offset_32<'k>(base: Value<'k, U32>, index: Value<'k, U32>, size: u32) -> Value<'k, U32> {
    match size {
        1 => base + index,
        _ => index.mul_add(size, base),
    }
}

impl Space for Shared {
    type Address = U32;
    const NAME: &'static str = "shared";

    #[track_caller]
    fn offset<'k>(base: Value<'k, U32>, index: Value<'k, U32>, size: u32) -> Value<'k, U32> {
        offset_32(base, index, size)
    }
}

impl Space for Cluster {
    type Address = U32;
    const NAME: &'static str = "shared::cluster";

    #[track_caller]
    fn offset<'k>(base: Value<'k, U32>, index: Value<'k, U32>, size: u32) -> Value<'k, U32> {
        offset_32(base, index, size)
    }
}

/// The address of an element of type `E` in space `S`: a register and a constant number of bytes.
#[derive(Debug)]
pub struct Pointer<'k, S: Space, E> {
    base: Value<'k, S::Address>,
    offset: i64,
    /// Qualifiers of its loads.
    cache: &'static str,
    element: PhantomData<E>,
}

impl<S: Space, E> Clone for Pointer<'_, S, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Space, E> Copy for Pointer<'_, S, E> {}

impl<'k, S: Space, E: Type> Pointer<'k, S, E> {
    pub fn new(address: Value<'k, S::Address>) -> Self {
        Pointer {
            base: address,
            offset: 0,
            cache: "",
            element: PhantomData,
        }
    }

    /// The element `index` elements further on; a constant index costs nothing.
    #[track_caller]
    pub fn at(self, index: impl IntoValue<'k, U32>) -> Self {
        let index = index.into_value();
        match index.constant() {
            Some(constant) => self.byte_offset(constant as i64 * i64::from(E::SIZE)),
            None => Pointer {
                base: S::offset(self.base, index, E::SIZE),
                ..self
            },
        }
    }

    /// The element `bytes` further on; a constant costs nothing.
    #[track_caller]
    pub fn plus_bytes(self, bytes: Value<'k, S::Address>) -> Self {
        match bytes.constant() {
            Some(constant) => self.byte_offset(constant as i64),
            None => Pointer {
                base: self.base + bytes,
                ..self
            },
        }
    }

    /// The element `bytes` further on or back.
    pub fn byte_offset(self, bytes: i64) -> Self {
        Pointer {
            offset: self.offset + bytes,
            ..self
        }
    }

    /// The same address, seen as elements of another type.
    pub fn cast<F: Type>(self) -> Pointer<'k, S, F> {
        Pointer {
            base: self.base,
            offset: self.offset,
            cache: self.cache,
            element: PhantomData,
        }
    }

    /// The address itself, in a register.
    #[track_caller]
    pub fn address(self) -> Value<'k, S::Address> {
        match self.offset {
            0 => self.base,
            offset => self.base + Value::from_bits(offset as u64 & mask::<S>()),
        }
    }

    /// Loads through it may be kept in the non-coherent cache: nobody writes this memory while the kernel runs.
    pub fn read_only(self) -> Self {
        Pointer {
            cache: ".nc",
            ..self
        }
    }

    /// [`Pointer::read_only`], of data that is read once: it should not push other data out of the first cache.
    pub fn streaming(self) -> Self {
        Pointer {
            cache: ".nc.L1::no_allocate",
            ..self
        }
    }

    /// Bytes that the address is proved to be a multiple of.
    pub fn alignment(self) -> u64 {
        let offset = Facts::of(self.offset.unsigned_abs());
        self.base.facts().multiple().min(offset.multiple())
    }

    pub(super) fn operand(self) -> Operand {
        Operand::Address {
            base: Box::new(self.base.operand()),
            offset: self.offset,
        }
    }

    #[track_caller]
    pub(super) fn assembler(self) -> &'k Assembler {
        self.base.assembler().expect("addresses are registers")
    }

    /// Refuses an access of `bytes` that is not proved to be aligned.
    #[track_caller]
    pub(super) fn check_aligned(self, bytes: u32, what: &str) {
        let known = self.alignment();
        if known < u64::from(bytes) {
            self.assembler().misuse(format_args!(
                "{what} needs an address that is a multiple of {bytes}; this one is only known to be one of {known} \
                 (assume_multiple_of() adds what config has checked)"
            ));
        }
    }

    #[track_caller]
    pub fn load(self) -> Value<'k, E> {
        let k = self.assembler();
        self.check_aligned(E::SIZE, "a load");
        let opcode = format!("ld.{}{}.{}", S::NAME, self.cache, E::NAME);
        k.compute(&opcode, vec![self.operand()], Facts::NONE)
    }

    /// N consecutive elements by one instruction: 2 or 4 of them, 16 bytes at most.
    #[track_caller]
    pub fn load_vector<const N: usize>(self) -> [Value<'k, E>; N] {
        self.check_vector::<N>("a vector load");
        let k = self.assembler();
        let values = [(); N].map(|()| k.define(Facts::NONE));
        let group = Operand::Group(values.iter().map(|v| v.operand()).collect());
        let opcode = format!("ld.{}{}.v{N}.{}", S::NAME, self.cache, E::NAME);
        k.emit(&opcode, vec![group], vec![self.operand()]);
        values
    }

    #[track_caller]
    pub fn store(self, value: impl IntoValue<'k, E>) {
        self.check_aligned(E::SIZE, "a store");
        let opcode = format!("st.{}.{}", S::NAME, E::NAME);
        let value = value.into_value().operand();
        self.assembler()
            .emit(&opcode, vec![self.operand()], vec![value]);
    }

    /// N consecutive elements by one instruction: 2 or 4 of them, 16 bytes at most.
    #[track_caller]
    pub fn store_vector<const N: usize>(self, values: [Value<'k, E>; N]) {
        self.check_vector::<N>("a vector store");
        let group = Operand::Group(values.iter().map(|v| v.operand()).collect());
        let opcode = format!("st.{}.v{N}.{}", S::NAME, E::NAME);
        self.assembler()
            .emit(&opcode, vec![self.operand()], vec![group]);
    }

    #[track_caller]
    fn check_vector<const N: usize>(self, what: &str) {
        const { assert!(N == 2 || N == 4, "vectors have 2 or 4 elements") };
        const { assert!(N as u32 * E::SIZE <= 16, "vectors have 16 bytes at most") };
        self.check_aligned(N as u32 * E::SIZE, what);
    }
}

impl<'k, E: Type> Pointer<'k, Global, E> {
    /// The element `index` elements further on, where 32 bits do not count them.
    #[track_caller]
    pub fn at_wide(self, index: Value<'k, U64>) -> Self {
        Pointer {
            base: index.mul_add(u64::from(E::SIZE), self.base),
            ..self
        }
    }

    /// Whether the launch has this operand: its address is not null.
    #[track_caller]
    pub fn is_present(self) -> Value<'k, Pred> {
        self.base.ne(0u64)
    }
}

/// The bits of an address.
fn mask<S: Space>() -> u64 {
    u64::MAX >> (64 - 8 * S::Address::SIZE)
}

/// Communication between CTAs. Integers only: the order of atomics is not the same twice, so that floats added by them
/// would not be either.
impl<'k, S: Space, E: Integer + Bits> Pointer<'k, S, E> {
    /// `ld.acquire.gpu`: what the writer wrote before its release is visible afterwards.
    #[track_caller]
    pub fn load_acquire(self) -> Value<'k, E> {
        let opcode = format!("ld.acquire.gpu.{}.{}", S::NAME, E::NAME);
        self.assembler()
            .compute(&opcode, vec![self.operand()], Facts::NONE)
    }

    /// `st.release.gpu`: what this thread wrote before is visible to whoever acquires this.
    #[track_caller]
    pub fn store_release(self, value: impl IntoValue<'k, E>) {
        let opcode = format!("st.release.gpu.{}.{}", S::NAME, E::NAME);
        let value = value.into_value().operand();
        self.assembler()
            .emit(&opcode, vec![self.operand()], vec![value]);
    }

    /// `atom.add.acq_rel.gpu`: adds, and gives what was there.
    #[track_caller]
    pub fn atomic_add(self, value: impl IntoValue<'k, E>) -> Value<'k, E> {
        self.atomic("add", E::NAME, &[value.into_value()])
    }

    #[track_caller]
    pub fn atomic_min(self, value: impl IntoValue<'k, E>) -> Value<'k, E> {
        self.atomic("min", E::NAME, &[value.into_value()])
    }

    #[track_caller]
    pub fn atomic_max(self, value: impl IntoValue<'k, E>) -> Value<'k, E> {
        self.atomic("max", E::NAME, &[value.into_value()])
    }

    /// Puts `value` there, and gives what was there.
    #[track_caller]
    pub fn atomic_exchange(self, value: impl IntoValue<'k, E>) -> Value<'k, E> {
        self.atomic("exch", E::BITS, &[value.into_value()])
    }

    /// Puts `value` where `expected` is, and gives what was there.
    #[track_caller]
    pub fn atomic_compare_exchange(
        self,
        expected: impl IntoValue<'k, E>,
        value: impl IntoValue<'k, E>,
    ) -> Value<'k, E> {
        let operands = [expected.into_value(), value.into_value()];
        self.atomic("cas", E::BITS, &operands)
    }

    #[track_caller]
    fn atomic(self, operation: &str, suffix: &str, values: &[Value<'k, E>]) -> Value<'k, E> {
        self.check_aligned(E::SIZE, "an atomic");
        let opcode = format!("atom.acq_rel.gpu.{}.{operation}.{suffix}", S::NAME);
        let values = values.iter().map(|v| v.operand());
        let sources = std::iter::once(self.operand()).chain(values).collect();
        self.assembler().compute(&opcode, sources, Facts::NONE)
    }

    /// `red.add`: [`Pointer::atomic_add`] that gives nothing.
    #[track_caller]
    pub fn reduce_add(self, value: impl IntoValue<'k, E>) {
        self.check_aligned(E::SIZE, "a reduction");
        let opcode = format!("red.release.gpu.{}.add.{}", S::NAME, E::NAME);
        let value = value.into_value().operand();
        self.assembler()
            .emit(&opcode, vec![self.operand()], vec![value]);
    }
}

/// A tensor map among the parameters: how TMA finds the boxes of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct TensorMap<'k> {
    pub(super) address: Value<'k, U64>,
}

/// Parameters. Each call declares the next one, and loads it.
impl Assembler {
    /// A buffer of elements of type `E`, aligned as every buffer argument is.
    pub fn buffer<E: Type>(&self, name: &str) -> Pointer<'_, Global, E> {
        let declaration = format!(".u64 .ptr .global .align {BUFFER_ALIGNMENT}");
        self.declare_parameter(&declaration, name, "");
        let generic: Value<U64> = self.load_parameter(name);
        Pointer::new(self.compute(
            "cvta.to.global.u64",
            vec![generic.operand()],
            Facts::multiple_of(BUFFER_ALIGNMENT),
        ))
    }

    /// A number of type `T`.
    pub fn parameter<T: Type>(&self, name: &str) -> Value<'_, T> {
        self.declare_parameter(&format!(".{}", T::NAME), name, "");
        self.load_parameter(name)
    }

    fn load_parameter<T: Type>(&self, name: &str) -> Value<'_, T> {
        let source = Operand::text(format!("[{name}]"));
        self.compute(&format!("ld.param.{}", T::NAME), vec![source], Facts::NONE)
    }

    /// A tensor map, passed by value.
    pub fn tensor_map(&self, name: &str) -> TensorMap<'_> {
        self.require(Arch::Sm90a, "a tensor map");
        self.declare_parameter(".align 64 .b8", name, "[128]");
        let place: Value<U64> = self.compute("mov.b64", vec![Operand::text(name)], Facts::NONE);
        let address = self.compute("cvta.param.u64", vec![place.operand()], Facts::NONE);
        TensorMap { address }
    }

    /// The address of the kernel's shared memory, `offset` bytes in.
    pub(super) fn shared_base<E: Type>(&self, offset: u32) -> Pointer<'_, Shared, E> {
        let facts = Facts::multiple_of(super::assembler::SHARED_ALIGNMENT.into());
        let base = self.compute("mov.u32", vec![Operand::text(SHARED)], facts);
        Pointer::new(base).byte_offset(offset.into())
    }
}

macro_rules! special_registers {
    ($($(#[$doc:meta])* $method:ident: $name:literal;)*) => {
        impl Assembler { $(
            $(#[$doc])*
            pub fn $method(&self) -> Value<'_, U32> {
                self.compute("mov.u32", vec![Operand::text($name)], Facts::NONE)
            }
        )* }
    };
}
special_registers! {
    /// `%ctaid.x`: the CTA's place in the grid.
    cta_x: "%ctaid.x";
    cta_y: "%ctaid.y";
    cta_z: "%ctaid.z";
    /// `%nctaid.x`: the CTAs of the grid.
    grid_x: "%nctaid.x";
    grid_y: "%nctaid.y";
    grid_z: "%nctaid.z";
    /// `%cluster_ctarank`: the CTA's number within its cluster.
    cluster_cta_rank: "%cluster_ctarank";
    /// `%clusterid.x`: the cluster's place in the grid.
    cluster_x: "%clusterid.x";
    /// `%smid`: the multiprocessor, for measurements.
    multiprocessor: "%smid";
}

impl Assembler {
    /// `%tid.x`: the thread's place in its CTA.
    pub fn thread_x(&self) -> Value<'_, U32> {
        self.thread("%tid.x", self.block()[0])
    }

    pub fn thread_y(&self) -> Value<'_, U32> {
        self.thread("%tid.y", self.block()[1])
    }

    pub fn thread_z(&self) -> Value<'_, U32> {
        self.thread("%tid.z", self.block()[2])
    }

    fn thread(&self, name: &str, extent: u32) -> Value<'_, U32> {
        let facts = Facts::below(extent.into());
        self.compute("mov.u32", vec![Operand::text(name)], facts)
    }

    /// The thread's place in its warp, in a CTA along x.
    pub fn lane(&self) -> Value<'_, U32> {
        self.compute("mov.u32", vec![Operand::text("%laneid")], Facts::below(32))
    }

    /// The warp's number within its CTA, in a CTA along x: `%tid.x / 32`.
    pub fn warp(&self) -> Value<'_, U32> {
        self.thread_x() >> 5
    }
}
