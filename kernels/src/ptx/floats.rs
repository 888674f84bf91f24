//! Tensors of floats as kernels see them: stored as f32 or bf16, computed in f32.

use super::assembler::Assembler;
use super::memory::{Global, Pointer};
use super::types::{Bf16, Bf16x2, F32, Pred, U32, U64};
use super::value::{IntoValue, Value};
use crate::{Accum, DType};

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    F32,
    Bf16,
}

impl Storage {
    pub const ALL: [Storage; 2] = [Storage::F32, Storage::Bf16];

    /// The storage of a dtype that GPU kernels compute on; none for the others.
    pub fn of(dtype: DType) -> Option<Storage> {
        match dtype {
            DType::F32 => Some(Storage::F32),
            DType::BF16 => Some(Storage::Bf16),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Storage::F32 => "f32",
            Storage::Bf16 => "bf16",
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> u32 {
        match self {
            Storage::F32 => 4,
            Storage::Bf16 => 2,
        }
    }

    /// Elements of 16 bytes: what a thread loads at once.
    pub fn chunk(self) -> u32 {
        16 / self.bytes()
    }
}

/// The address of a float of either storage.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'k> {
    F32(Pointer<'k, Global, F32>),
    Bf16(Pointer<'k, Global, Bf16>),
}

impl Assembler {
    /// A buffer of floats among the parameters.
    pub fn floats(&self, storage: Storage, name: &str) -> Floats<'_> {
        match storage {
            Storage::F32 => Floats::F32(self.buffer(name)),
            Storage::Bf16 => Floats::Bf16(self.buffer(name)),
        }
    }
}

impl<'k> Floats<'k> {
    /// Loads through it are those of data that nobody writes while the kernel runs.
    pub fn read_only(self) -> Self {
        match self {
            Floats::F32(p) => Floats::F32(p.read_only()),
            Floats::Bf16(p) => Floats::Bf16(p.read_only()),
        }
    }

    pub fn storage(self) -> Storage {
        match self {
            Floats::F32(_) => Storage::F32,
            Floats::Bf16(_) => Storage::Bf16,
        }
    }

    /// The float `index` further on.
    #[track_caller]
    pub fn at(self, index: impl IntoValue<'k, U32>) -> Self {
        match self {
            Floats::F32(p) => Floats::F32(p.at(index)),
            Floats::Bf16(p) => Floats::Bf16(p.at(index)),
        }
    }

    /// The float `index` further on, where 32 bits do not count them.
    #[track_caller]
    pub fn at_wide(self, index: Value<'k, U64>) -> Self {
        match self {
            Floats::F32(p) => Floats::F32(p.at_wide(index)),
            Floats::Bf16(p) => Floats::Bf16(p.at_wide(index)),
        }
    }

    /// Whether the launch has this operand: its address is not null.
    #[track_caller]
    pub fn is_present(self) -> Value<'k, Pred> {
        match self {
            Floats::F32(p) => p.is_present(),
            Floats::Bf16(p) => p.is_present(),
        }
    }

    #[track_caller]
    pub fn load(self) -> Value<'k, F32> {
        match self {
            Floats::F32(p) => p.load(),
            Floats::Bf16(p) => p.load().to_f32(),
        }
    }

    /// Rounds to the storage.
    #[track_caller]
    pub fn store(self, x: impl IntoValue<'k, F32>) {
        let x = x.into_value();
        match self {
            Floats::F32(p) => p.store(x),
            Floats::Bf16(p) => p.store(x.to_bf16()),
        }
    }

    /// The [`Storage::chunk`] floats from here on, by one instruction.
    #[track_caller]
    pub fn load_chunk(self) -> Vec<Value<'k, F32>> {
        match self {
            Floats::F32(p) => p.load_vector::<4>().to_vec(),
            Floats::Bf16(p) => {
                let pairs = p.cast::<Bf16x2>().load_vector::<4>();
                pairs.into_iter().flat_map(|pair| pair.to_f32()).collect()
            }
        }
    }

    /// Stores [`Storage::chunk`] floats by one instruction.
    ///
    /// # Panics
    /// If there are not as many.
    #[track_caller]
    pub fn store_chunk(self, values: &[Value<'k, F32>]) {
        assert_eq!(values.len() as u32, self.storage().chunk());
        match self {
            Floats::F32(p) => p.store_vector([0, 1, 2, 3].map(|i| values[i])),
            Floats::Bf16(p) => {
                let k = p.assembler();
                let pair = |i: usize| k.pack_bf16(values[2 * i], values[2 * i + 1]);
                p.cast::<Bf16x2>().store_vector([0, 1, 2, 3].map(pair));
            }
        }
    }

    /// The `width` floats from here on by one instruction: a power of two of them, a chunk at most.
    #[track_caller]
    pub fn load_span(self, width: u32) -> Vec<Value<'k, F32>> {
        match (self, width) {
            (_, 1) => vec![self.load()],
            (Floats::F32(p), 2) => p.load_vector::<2>().to_vec(),
            (Floats::Bf16(p), 2) => p.cast::<Bf16x2>().load().to_f32().to_vec(),
            (Floats::Bf16(p), 4) => {
                let pairs = p.cast::<Bf16x2>().load_vector::<2>();
                pairs.into_iter().flat_map(|pair| pair.to_f32()).collect()
            }
            _ => {
                assert_eq!(width, self.storage().chunk(), "no instruction's width");
                self.load_chunk()
            }
        }
    }

    /// Stores these floats by one instruction: a power of two of them, a chunk at most.
    #[track_caller]
    pub fn store_span(self, values: &[Value<'k, F32>]) {
        match (self, values) {
            (_, &[x]) => self.store(x),
            (Floats::F32(p), &[a, b]) => p.store_vector([a, b]),
            (Floats::Bf16(p), &[a, b]) => {
                let k = p.assembler();
                p.cast::<Bf16x2>().store(k.pack_bf16(a, b));
            }
            (Floats::Bf16(p), &[a, b, c, d]) => {
                let k = p.assembler();
                let pairs = [k.pack_bf16(a, b), k.pack_bf16(c, d)];
                p.cast::<Bf16x2>().store_vector(pairs);
            }
            _ => self.store_chunk(values),
        }
    }

    /// [`Floats::store_span`], or adds to what is there.
    #[track_caller]
    pub fn put_span(self, accum: Accum, values: &[Value<'k, F32>]) {
        match accum {
            Accum::Replace => self.store_span(values),
            Accum::Add => {
                let old = self.load_span(values.len() as u32);
                let sums: Vec<_> = old.iter().zip(values).map(|(old, x)| *old + *x).collect();
                self.store_span(&sums);
            }
        }
    }
}
