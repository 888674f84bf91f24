//! Launches: the one way from an op to a kernel on a GPU.
//!
//! Ops choose kernels and name operands; this file alone knows how a device runs them. The simulated GPU runs a launch to
//! its end before the op goes on, in memory of the host. A GPU is only asked to, and what goes wrong there is an error of
//! whoever reads results.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kernels::cuda::{self, Context, Function};
use kernels::launch::{Arch, Argument, Launch};
use kernels::ops::geometry::Call;
use kernels::ops::variants::{Plan, Refused, Variant};
use kernels::ptx::{Assembled, Storage};
use kernels::script::Request;
use kernels::sim::{self, Completion, Options, Profile};

use crate::{Accum, Check, DType, Device, Error, Result, Tensor, graph};

/// Bytes that every buffer's address is a multiple of: the widest access of a kernel. Views that begin elsewhere are
/// copied first.
pub(crate) const ALIGNMENT: usize = 16;

/// What one parameter of a kernel is given. Tensors lie on the device of the launch.
pub(crate) enum Arg<'a> {
    /// Read in row-major order, whatever the view's strides.
    Read(&'a Tensor),
    /// Overwritten: undefined before.
    Write(&'a mut Tensor),
    /// Read and written.
    Update(&'a mut Tensor),
    /// An operand that this launch does not have.
    Absent,
    U32(u32),
    U64(u64),
    F32(f32),
}

impl<'a> Arg<'a> {
    /// An operand that may be absent.
    pub fn optional(operand: Option<&'a Tensor>) -> Arg<'a> {
        operand.map_or(Arg::Absent, Arg::Read)
    }

    /// Where a kernel that replaces or adds puts its result.
    pub fn destination(tensor: &'a mut Tensor, accum: Accum) -> Arg<'a> {
        match accum {
            Accum::Replace => Arg::Write(tensor),
            Accum::Add => Arg::Update(tensor),
        }
    }

    /// A gradient that is wanted and that kernels treat like this; absent where it is not.
    pub fn gradient(gradient: &'a mut Option<(Tensor, Accum)>, accum: Accum) -> Arg<'a> {
        match gradient {
            Some((tensor, its)) if *its == accum => Arg::destination(tensor, accum),
            _ => Arg::Absent,
        }
    }

    /// A size, or another number that kernels count in 32 bits.
    pub fn number(n: usize) -> Arg<'a> {
        Arg::U32(n as u32)
    }
}

/// The dtype of statistics, losses and partial sums beside values of `dtype`: nothing of them is kept in 16 bits.
pub(crate) fn statistics(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// How the gradients that a kernel makes together are treated, each way once: as a rule all alike.
pub(crate) fn treatments(gradients: &[&Option<(Tensor, Accum)>]) -> Vec<Accum> {
    let is = |accum| move |g: &&Option<(Tensor, Accum)>| g.as_ref().is_some_and(|g| g.1 == accum);
    let wanted = |&accum: &Accum| gradients.iter().any(is(accum));
    Accum::ALL.into_iter().filter(wanted).collect()
}

/// The GPU that an op's operands lie on, and how the op's errors begin.
pub(crate) struct Gpu {
    pub arch: Arch,
    device: Device,
    blame: Error,
}

impl Check<'_> {
    /// The GPU that the operands lie on; none where that is the CPU.
    pub(crate) fn gpu(&self) -> Option<Gpu> {
        let device = self.device();
        Some(Gpu {
            arch: device.arch()?,
            device,
            blame: self.error(""),
        })
    }
}

impl Gpu {
    /// How kernels know a dtype that [`Check::floats`] returned.
    pub fn storage(&self, dtype: DType) -> Storage {
        match dtype {
            DType::BF16 => Storage::Bf16,
            _ => Storage::F32,
        }
    }

    /// An error about the operands.
    pub fn error(&self, reason: impl Into<String>) -> Error {
        self.blame.clone().because(reason)
    }

    /// That no kernel was written for this yet.
    pub fn missing(&self, what: &str) -> Error {
        let device = self.device;
        self.error(format!(
            "{what} has no GPU kernel yet, so it cannot run on {device}: use --device cpu"
        ))
        .unsupported()
    }

    /// What an op's `config` chose, or an error that says why it chose nothing.
    pub fn plan<T>(&self, plan: Result<T, Refused>) -> Result<T> {
        plan.map_err(|Refused(why)| {
            let reason = format!("no GPU kernel takes this: {why}");
            self.error(reason).unsupported()
        })
    }

    /// Launches a kernel with the numbers that its call has behind the operands.
    pub fn call<'a, V: Variant>(
        &self,
        call: &Call<V>,
        operands: impl IntoIterator<Item = Arg<'a>>,
    ) -> Result<()> {
        let numbers = call.numbers.iter().map(|&n| Arg::U32(n));
        self.launch(&call.plan, operands.into_iter().chain(numbers))
    }

    /// Launches a kernel.
    ///
    /// # Errors
    /// If a destination cannot be written, or the kernel does not run to its end.
    pub fn launch<'a, V: Variant>(
        &self,
        plan: &Plan<V>,
        operands: impl IntoIterator<Item = Arg<'a>>,
    ) -> Result<()> {
        if plan.grid.contains(&0) {
            return Ok(()); // nothing to write
        }
        let mut operands: Vec<Arg> = operands.into_iter().collect();
        // What is read, as the kernel needs it; kept until the launch was asked for.
        let read: Vec<Option<Tensor>> = operands
            .iter()
            .map(|operand| match operand {
                Arg::Read(tensor) => tensor.packed(ALIGNMENT).map(Some),
                _ => Ok(None),
            })
            .collect::<Result<_>>()?;
        let operands = operands.iter_mut().zip(&read);
        let assembled = assemble(plan.variant);
        match self.device {
            Device::Cuda(gpu) => {
                let arguments = operands.map(|(operand, read)| device_argument(operand, read));
                let arguments: Vec<cuda::Argument> = arguments.collect::<Result<_>>()?;
                self.driven(gpu, &assembled, plan.grid, &arguments)
            }
            Device::Cpu | Device::Sim { .. } => {
                let arguments = operands.map(|(operand, read)| host_argument(operand, read));
                let arguments: Vec<Argument> = arguments.collect::<Result<_>>()?;
                self.simulated(assembled, plan.grid, arguments)
            }
        }
    }

    /// Asks a GPU for a launch.
    fn driven(
        &self,
        gpu: usize,
        assembled: &Assembled,
        grid: [u32; 3],
        arguments: &[cuda::Argument],
    ) -> Result<()> {
        let launched = || {
            let context = Context::open(gpu)?;
            let function = function(context, assembled)?;
            context.launch(&function, &assembled.launch(grid), arguments)
        };
        launched().map_err(|error| self.error(error.to_string()))
    }

    /// Runs a launch on the simulated GPU.
    fn simulated(
        &self,
        assembled: Arc<Assembled>,
        grid: [u32; 3],
        mut arguments: Vec<Argument>,
    ) -> Result<()> {
        let launch = assembled.launch(grid);
        graph::note(|| Request::Launch {
            function: 0,
            name: assembled.kernel.name.clone(),
            grid,
            parameters: arguments.iter().flat_map(constant).collect(),
        });
        let Simulation { seed, completion } = simulation();
        let options = Options {
            seed,
            completion,
            ..Options::default()
        };
        let profile = sim::run(&assembled.kernel, &launch, &mut arguments, &options)
            .map_err(|error| self.error(format!("on the simulated GPU, {error}")))?;
        if let Some(launches) = &mut *locked(&LAUNCHES) {
            launches.push(Launched {
                assembled,
                launch,
                profile,
            });
        }
        Ok(())
    }
}

/// An operand in the host's memory. `read` is what the kernel reads of it.
fn host_argument<'a>(operand: &'a mut Arg, read: &'a Option<Tensor>) -> Result<Argument<'a>> {
    Ok(match operand {
        Arg::Read(tensor) => Argument::Read(read.as_ref().unwrap_or(tensor).bytes()?),
        Arg::Write(tensor) => Argument::Write(tensor.bytes_mut(ALIGNMENT)?),
        Arg::Update(tensor) => Argument::Update(tensor.bytes_mut(ALIGNMENT)?),
        Arg::Absent => Argument::Null,
        Arg::U32(x) => Argument::U32(*x),
        Arg::U64(x) => Argument::U64(*x),
        Arg::F32(x) => Argument::F32(*x),
    })
}

/// An operand in a GPU's memory.
fn device_argument<'a>(
    operand: &'a mut Arg,
    read: &'a Option<Tensor>,
) -> Result<cuda::Argument<'a>> {
    Ok(match operand {
        Arg::Read(tensor) => cuda::Argument::Memory(read.as_ref().unwrap_or(tensor).view()?),
        Arg::Write(tensor) | Arg::Update(tensor) => {
            let bytes = tensor.len() * tensor.dtype().size();
            cuda::Argument::Memory(tensor.writable(ALIGNMENT, 0, bytes)?)
        }
        Arg::Absent => cuda::Argument::Null,
        Arg::U32(x) => cuda::Argument::U32(*x),
        Arg::U64(x) => cuda::Argument::U64(*x),
        Arg::F32(x) => cuda::Argument::F32(*x),
    })
}

/// What of an argument a recorded launch repeats: numbers, and how large buffers are.
fn constant(argument: &Argument) -> Vec<u8> {
    match argument {
        Argument::Read(memory) => memory.len().to_le_bytes().to_vec(),
        Argument::Write(memory) | Argument::Update(memory) => memory.len().to_le_bytes().to_vec(),
        Argument::U32(x) => x.to_le_bytes().to_vec(),
        Argument::I32(x) => x.to_le_bytes().to_vec(),
        Argument::F32(x) => x.to_le_bytes().to_vec(),
        Argument::U64(x) => x.to_le_bytes().to_vec(),
        Argument::Bytes(bytes) => bytes.to_vec(),
        Argument::Null | Argument::TensorMap(_) => vec![],
    }
}

/// The text of a variant, made at its first launch.
fn assemble<V: Variant>(variant: V) -> Arc<Assembled> {
    static TEXTS: Mutex<Option<HashMap<String, Arc<Assembled>>>> = Mutex::new(None);
    let name = variant.name();
    let known = |texts: &mut Option<HashMap<_, _>>| -> Option<Arc<Assembled>> {
        texts.get_or_insert_default().get(&name).cloned()
    };
    if let Some(assembled) = known(&mut locked(&TEXTS)) {
        return assembled;
    }
    let assembled = Arc::new(variant.assemble());
    let mut texts = locked(&TEXTS);
    texts
        .get_or_insert_default()
        .insert(name, assembled.clone());
    assembled
}

/// The kernel as a GPU's driver compiled it, at its first launch there.
fn function(context: &'static Context, assembled: &Assembled) -> cuda::Result<Function> {
    /// By the GPU's number and the kernel's name, which tells one variant from all others.
    type Functions = HashMap<usize, HashMap<String, Function>>;
    static FUNCTIONS: Mutex<Option<Functions>> = Mutex::new(None);
    let name = &assembled.kernel.name;
    let mut functions = locked(&FUNCTIONS);
    let on_gpu = functions
        .get_or_insert_default()
        .entry(context.gpu().ordinal)
        .or_default();
    if let Some(function) = on_gpu.get(name) {
        return Ok(function.clone());
    }
    let function = context.load(&assembled.kernel)?;
    on_gpu.insert(name.clone(), function.clone());
    Ok(function)
}

/// How the simulated GPU runs what it may run in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Simulation {
    /// Chooses the order of warps.
    pub seed: u64,
    /// When asynchronous work takes effect.
    pub completion: Completion,
}

static SIMULATION: Mutex<Simulation> = Mutex::new(Simulation {
    seed: 0,
    completion: Completion::Late,
});

/// How launches are simulated from now on, in the whole process.
pub fn set_simulation(simulation: Simulation) {
    *locked(&SIMULATION) = simulation;
}

pub fn simulation() -> Simulation {
    *locked(&SIMULATION)
}

/// A launch that was simulated.
#[derive(Clone, Debug)]
pub struct Launched {
    pub assembled: Arc<Assembled>,
    pub launch: Launch,
    pub profile: Profile,
}

static LAUNCHES: Mutex<Option<Vec<Launched>>> = Mutex::new(None);

/// Runs `body` and gives what was launched meanwhile, by anybody in the process.
pub fn recorded<R>(body: impl FnOnce() -> R) -> (R, Vec<Launched>) {
    *locked(&LAUNCHES) = Some(vec![]);
    let result = body();
    let launches = locked(&LAUNCHES).take();
    (result, launches.unwrap_or_default())
}

/// What another thread left when it panicked is whole: nothing here is written in steps.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
