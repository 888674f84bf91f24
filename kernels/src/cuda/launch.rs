//! Launches: arguments as the driver takes them.

use std::ffi::c_void;

use cudarc::driver::{result, sys};

use super::context::{Context, Timer};
use super::memory::{Memory, View};
use super::module::Function;
use super::{Error, Result};
use crate::launch::{self, Kernel, Launch, MapElement, Swizzle, TensorMap};
use crate::script::Request;

/// What one parameter of a kernel is given: [`launch::Argument`] with memory of the GPU.
#[derive(Clone, Debug)]
pub enum Argument<'a> {
    Memory(View<'a>),
    Null,
    U32(u32),
    I32(i32),
    F32(f32),
    U64(u64),
    Bytes(&'a [u8]),
    TensorMap(TensorMap),
}

/// Alignment of a parameter among the others, in bytes: of the driver's widest.
const ALIGNMENT: usize = 64;

impl Context {
    /// Launches a kernel that [`Context::load`] gave.
    ///
    /// # Errors
    /// If the arguments are not what the kernel declares, the driver refuses, or a recorded step had no such launch here.
    /// What goes wrong while the kernel runs is an error of whoever waits for it.
    pub fn launch(
        &self,
        function: &Function,
        launch: &Launch,
        arguments: &[Argument<'_>],
    ) -> Result<()> {
        self.bind()?;
        let packed = Packed::new(self, function, arguments)?;
        let touched: Vec<View<'_>> = arguments
            .iter()
            .filter_map(|argument| match argument {
                Argument::Memory(view) => Some(*view),
                _ => None,
            })
            .collect();
        let request = Request::Launch {
            function: function.handle().addr(),
            name: function.name().to_owned(),
            grid: launch.grid,
            parameters: packed.bytes.clone(),
        };
        function.allow_shared(launch.shared_bytes)?;
        if !self.issues(request, &touched)? {
            return Ok(());
        }
        let mut pointers = packed.pointers();
        let [x, y, z] = launch.grid;
        let [block_x, block_y, block_z] = launch.block;
        // Clusters are the text's (`.reqnctapercluster`).
        // SAFETY: the function is alive, the parameters are as many and as long as it declares. That it stays within the
        // buffers is the kernel's: the simulator has checked it, the driver does not.
        unsafe {
            result::launch_kernel(
                function.handle(),
                (x, y, z),
                (block_x, block_y, block_z),
                launch.shared_bytes,
                self.stream(),
                &mut pointers,
            )
        }
        .map_err(Error::of(format!(
            "launch {} on {:?} CTAs of {:?} threads with {} bytes of shared memory",
            function.name(),
            launch.grid,
            launch.block,
            launch.shared_bytes
        )))
    }
}

/// Parameters one after another.
struct Packed {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Packed {
    fn new(context: &Context, function: &Function, arguments: &[Argument<'_>]) -> Result<Packed> {
        let declared = function.parameters();
        if declared.len() != arguments.len() {
            return Err(Error::new(format!(
                "{} has {} parameters, and {} arguments are given",
                function.name(),
                declared.len(),
                arguments.len()
            )));
        }
        let mut packed = Packed {
            bytes: Vec::with_capacity(arguments.len() * ALIGNMENT),
            starts: Vec::with_capacity(arguments.len()),
        };
        for (i, (argument, &wanted)) in arguments.iter().zip(declared).enumerate() {
            let start = packed.bytes.len();
            packed.starts.push(start);
            match argument {
                Argument::Memory(view) => {
                    if !std::ptr::eq(view.memory().context(), context) {
                        return Err(Error::new(format!(
                            "argument {i} of {} lies on {}, not on {}",
                            function.name(),
                            view.memory().context().gpu(),
                            context.gpu()
                        )));
                    }
                    packed.bytes.extend(view.address().to_le_bytes());
                }
                Argument::Null => packed.bytes.extend(0u64.to_le_bytes()),
                Argument::U64(x) => packed.bytes.extend(x.to_le_bytes()),
                Argument::U32(x) => packed.bytes.extend(x.to_le_bytes()),
                Argument::I32(x) => packed.bytes.extend(x.to_le_bytes()),
                Argument::F32(x) => packed.bytes.extend(x.to_le_bytes()),
                Argument::Bytes(bytes) => packed.bytes.extend(*bytes),
                Argument::TensorMap(map) => packed.bytes.extend(encode(map, arguments)?),
            }
            let given = packed.bytes.len() - start;
            if given != wanted as usize {
                return Err(Error::new(format!(
                    "parameter {i} of {} has {wanted} bytes, and {given} are given",
                    function.name()
                )));
            }
            let end = packed.bytes.len().next_multiple_of(ALIGNMENT);
            packed.bytes.resize(end, 0);
        }
        Ok(packed)
    }

    /// Where each parameter lies. The driver reads them before the launch returns.
    fn pointers(&self) -> Vec<*mut c_void> {
        let of = |&start: &usize| self.bytes[start..].as_ptr().cast_mut().cast();
        self.starts.iter().map(of).collect()
    }
}

/// A tensor map as the hardware reads it.
fn encode(map: &TensorMap, arguments: &[Argument<'_>]) -> Result<[u8; 128]> {
    let Some(Argument::Memory(view)) = arguments.get(map.buffer) else {
        return Err(Error::new(format!(
            "a tensor map names argument {}, which is no buffer",
            map.buffer
        )));
    };
    let rank = map.dims.len();
    if !(1..=5).contains(&rank) || map.strides.len() + 1 != rank || map.tile.len() != rank {
        return Err(Error::new(
            "a tensor map has 1 to 5 dimensions, a stride less, and a tile of as many",
        ));
    }
    use sys::{CUtensorMapDataType as Type, CUtensorMapSwizzle as Pattern};
    let element = match map.element {
        MapElement::U8 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        MapElement::U16 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT16,
        MapElement::U32 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT32,
        MapElement::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        MapElement::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        MapElement::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    };
    let swizzle = match map.swizzle {
        Swizzle::None => Pattern::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::B32 => Pattern::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::B64 => Pattern::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::B128 => Pattern::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: dims and tile have `rank` elements, strides one less, by the check above; the driver checks their values
    // and keeps none of the pointers but the address, which the launch keeps alive.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut encoded,
            element,
            rank as u32,
            std::ptr::without_provenance_mut((view.address() + map.offset) as usize),
            map.dims.as_ptr(),
            map.strides.as_ptr(),
            map.tile.as_ptr(),
            [1u32; 5].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
    .map_err(Error::of("encode a tensor map"))?;
    let mut bytes = [0; 128];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(encoded.opaque) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    Ok(bytes)
}

/// Runs a kernel on buffers of the host's, as [`crate::sim::run`] does: copies them there and, of those that it may write,
/// back. Returns the seconds that the kernel took.
///
/// # Errors
/// If the driver refuses something, or the kernel fails.
pub fn run(
    context: &'static Context,
    kernel: &Kernel,
    launch: &Launch,
    arguments: &mut [launch::Argument<'_>],
) -> Result<f64> {
    let function = context.load(kernel)?;
    let mut memories: Vec<Option<Memory>> = Vec::with_capacity(arguments.len());
    for argument in arguments.iter() {
        let (bytes, contents): (usize, Option<&[u8]>) = match argument {
            launch::Argument::Read(bytes) => (bytes.len(), Some(bytes)),
            launch::Argument::Update(bytes) => (bytes.len(), Some(bytes)),
            launch::Argument::Write(bytes) => (bytes.len(), None),
            _ => {
                memories.push(None);
                continue;
            }
        };
        let memory = context.allocate(bytes)?;
        match contents {
            Some(contents) => context.upload(memory.whole(), contents)?,
            // What nobody writes is NaN, as in the simulator.
            None => context.fill(memory.whole(), 1, 0xFF)?,
        }
        memories.push(Some(memory));
    }
    let given: Vec<Argument<'_>> = arguments
        .iter()
        .zip(&memories)
        .map(|(argument, memory)| match (argument, memory) {
            (_, Some(memory)) => Argument::Memory(memory.whole()),
            (launch::Argument::U32(x), _) => Argument::U32(*x),
            (launch::Argument::I32(x), _) => Argument::I32(*x),
            (launch::Argument::F32(x), _) => Argument::F32(*x),
            (launch::Argument::U64(x), _) => Argument::U64(*x),
            (launch::Argument::Bytes(x), _) => Argument::Bytes(x),
            (launch::Argument::TensorMap(map), _) => Argument::TensorMap(map.clone()),
            _ => Argument::Null,
        })
        .collect();
    let timer = Timer::start(context)?;
    context.launch(&function, launch, &given)?;
    let seconds = timer.stop()?;
    for (argument, memory) in arguments.iter_mut().zip(&memories) {
        if let (launch::Argument::Write(bytes) | launch::Argument::Update(bytes), Some(memory)) =
            (argument, memory)
        {
            context.download(memory.whole(), bytes)?;
        }
    }
    Ok(seconds)
}
