//! From a kernel, a launch and arguments to a profile: everything that is checked before the first instruction, and
//! how CTAs are spread over the host's threads.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use rayon::prelude::*;

use super::error::{Error, Fault, Outcome, Rule};
use super::exec::{Context, ResolvedMap};
use super::memory::global::{Access, Global, Location, MAX_TEAMS};
use super::memory::shared::SharedMemory;
use super::parse;
use super::parse::types::Type;
use super::profile::{BufferProfile, Counts, Profile};
use super::program::{self, ParamPlace, Program, SHARED_BASE};
use super::team::{Order, Team};
use super::{Grid, Options, SM_COUNT};
use crate::Buffer;
use crate::launch::{Argument, Kernel, Launch, TensorMap};

/// Runs `kernel` to its end.
///
/// Buffers that the kernel may write hold its results afterwards; after an error their contents mean nothing.
/// [`Argument::Write`] buffers are filled with NaN patterns first.
///
/// # Errors
/// Text that is no PTX or that the kernel's arch does not run, a launch that does not fit the entry, or anything that
/// the kernel did wrong; the same error for the same seed, on any number of threads.
pub fn run(
    kernel: &Kernel,
    launch: &Launch,
    arguments: &mut [Argument<'_>],
    options: &Options,
) -> Result<Profile, Error> {
    attempts(kernel, launch, arguments, options)
        .map_err(|fault| fault.in_kernel(&kernel.name, &kernel.text))
}

/// Bytes of each parameter of the kernel, in order, for a driver's launches: drivers do not check.
///
/// # Errors
/// Text that is no PTX, or has no such entry.
pub fn parameters(kernel: &Kernel) -> Result<Vec<u32>, Error> {
    let read = || {
        let module = parse::parse(&kernel.text)?;
        let params = &find_entry(&module, kernel)?.params;
        let bytes = params
            .iter()
            .map(|p| p.kind.bytes().saturating_mul(p.array.unwrap_or(1)));
        Ok(bytes.collect())
    };
    read().map_err(|fault: Box<Fault>| fault.in_kernel(&kernel.name, &kernel.text))
}

fn find_entry<'m, 't>(
    module: &'m parse::Module<'t>,
    kernel: &Kernel,
) -> Outcome<&'m parse::Entry<'t>> {
    let found = module.entries.iter().find(|e| e.name == kernel.name);
    found.ok_or_else(|| {
        let names: Vec<&str> = module.entries.iter().map(|e| e.name).collect();
        let why = format!(
            "the text has no entry {:?}; it has {}",
            kernel.name,
            names.join(", ")
        );
        Fault::new(Rule::Launch, why)
    })
}

fn attempts(
    kernel: &Kernel,
    launch: &Launch,
    arguments: &mut [Argument<'_>],
    options: &Options,
) -> Outcome<Profile> {
    let module = parse::parse(&kernel.text)?;
    let entry = find_entry(&module, kernel)?;
    let buffers = arguments.iter().filter(|a| is_buffer(a)).count();
    let program = program::decode(&module, entry, kernel.arch, buffers)?;
    let grid = check_launch(kernel, launch, &program)?;
    let (params, maps) = bind(&program, arguments)?;
    let mut job = Job {
        program,
        grid,
        params,
        maps,
        options: *options,
    };
    let parallel = !job.program.cross_cta && job.grid.teams() > 1;
    if !parallel {
        return job.attempt(arguments, false);
    }
    let before: Vec<Vec<u8>> = arguments
        .iter()
        .map(|argument| match argument {
            Argument::Update(memory) => memory.to_vec(),
            _ => Vec::new(),
        })
        .collect();
    job.attempt(arguments, true).or_else(|fault| {
        // CTAs that conflict meet in any order on several threads: once more in theirs, for an error that is always
        // the same.
        for (argument, before) in arguments.iter_mut().zip(&before) {
            if let Argument::Update(memory) = argument {
                memory.copy_from_slice(before);
            }
        }
        job.attempt(arguments, false).and(Err(fault))
    })
}

fn is_buffer(argument: &Argument<'_>) -> bool {
    matches!(
        argument,
        Argument::Read(_) | Argument::Write(_) | Argument::Update(_)
    )
}

fn refuse<T>(why: String) -> Outcome<T> {
    Err(Fault::new(Rule::Launch, why))
}

fn check_launch(kernel: &Kernel, launch: &Launch, program: &Program) -> Outcome<Grid> {
    let Launch {
        grid,
        block,
        cluster,
        shared_bytes,
    } = *launch;
    let threads = launch.threads();
    if threads == 0 || threads > 1024 || block[2] > 64 {
        return refuse(format!(
            "a block of {block:?} threads: 1 to 1024 are possible, 64 along z"
        ));
    }
    if grid.contains(&0) || grid[1] > 65535 || grid[2] > 65535 || launch.ctas() > MAX_TEAMS {
        return refuse(format!(
            "a grid of {grid:?} CTAs: 1 to {MAX_TEAMS} are possible, 65535 along y and z"
        ));
    }
    if let Some(required) = program.required_threads
        && required != block
    {
        return refuse(format!(
            "the entry requires blocks of {required:?} threads (.reqntid), not {block:?}"
        ));
    }
    if let Some(most) = program.max_threads {
        let most: u64 = most.iter().map(|&n| u64::from(n)).product();
        if threads > most {
            return refuse(format!(
                "the entry allows blocks of {most} threads (.maxntid), not {threads}"
            ));
        }
    }
    if let Some(required) = program.cluster
        && required != cluster
    {
        return refuse(format!(
            "the entry requires clusters of {required:?} CTAs, not {cluster:?}"
        ));
    }
    let ctas: u64 = cluster.iter().map(|&n| u64::from(n)).product();
    let whole = (0..3).all(|axis| cluster[axis] > 0 && grid[axis] % cluster[axis] == 0);
    if ctas > 16 || !whole || (ctas > 1 && kernel.arch == crate::launch::Arch::Sm80) {
        return refuse(format!(
            "clusters of {cluster:?} CTAs in a grid of {grid:?}: up to 16 that divide the grid, from sm_90 on"
        ));
    }
    let all = u64::from(program.shared_end - SHARED_BASE) + u64::from(shared_bytes);
    let most = kernel.arch.max_shared_bytes();
    if all > u64::from(most) {
        return refuse(format!(
            "a CTA needs {all} bytes of shared memory, {} has {most}",
            kernel.arch
        ));
    }
    let threads = threads as u32;
    Ok(Grid {
        arch: kernel.arch,
        ctas: grid,
        block,
        cluster,
        threads,
        warps: threads.div_ceil(32),
        shared_bytes: all as u32,
        dynamic_shared: shared_bytes,
    })
}

type Bound = (Vec<u8>, HashMap<u32, ResolvedMap>);

/// The parameter block, and the tensor maps in it.
fn bind(program: &Program, arguments: &[Argument<'_>]) -> Outcome<Bound> {
    if arguments.len() != program.params.len() {
        return refuse(format!(
            "the entry has {} parameters, {} arguments are given",
            program.params.len(),
            arguments.len()
        ));
    }
    let mut block = vec![0; program.param_bytes as usize];
    let mut maps = HashMap::new();
    let mut object = 0;
    // The object of every argument that is a buffer.
    let objects: Vec<Option<usize>> = arguments
        .iter()
        .map(|argument| {
            let this = is_buffer(argument).then_some(object);
            object += usize::from(this.is_some());
            this
        })
        .collect();
    for (i, (param, argument)) in program.params.iter().zip(arguments).enumerate() {
        let scalar = |kinds: &[Type], value: u64| {
            if param.array || !kinds.contains(&param.kind) {
                return mismatch(param, i, argument);
            }
            Ok(value.to_le_bytes()[..param.bytes as usize].to_vec())
        };
        let address = [Type::U64, Type::B64, Type::S64];
        let bytes = match argument {
            Argument::Read(_) | Argument::Write(_) | Argument::Update(_) => {
                scalar(&address, Global::address(objects[i].unwrap_or(0)))?
            }
            Argument::Null => scalar(&address, 0)?,
            Argument::U64(value) => scalar(&address, *value)?,
            Argument::U32(value) => scalar(&[Type::U32, Type::B32, Type::S32], u64::from(*value))?,
            Argument::I32(value) => {
                scalar(&[Type::S32, Type::B32, Type::U32], u64::from(*value as u32))?
            }
            Argument::F32(value) => scalar(&[Type::F32, Type::B32], u64::from(value.to_bits()))?,
            Argument::Bytes(bytes) if param.array && bytes.len() == param.bytes as usize => {
                bytes.to_vec()
            }
            Argument::TensorMap(map) if param.array && param.bytes == 128 => {
                if !param.offset.is_multiple_of(64) {
                    return refuse(format!("tensor map {} must be .align 64", param.name));
                }
                let map = resolve(map, arguments, &objects)
                    .map_err(|why| Fault::new(Rule::Launch, format!("{}: {why}", param.name)))?;
                maps.insert(param.offset, map);
                vec![0; 128]
            }
            Argument::Bytes(_) | Argument::TensorMap(_) => return mismatch(param, i, argument),
        };
        let at = param.offset as usize;
        block[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    Ok((block, maps))
}

fn mismatch<T>(param: &ParamPlace, index: usize, argument: &Argument<'_>) -> Outcome<T> {
    let given = match argument {
        Argument::Read(_) | Argument::Write(_) | Argument::Update(_) => "a buffer's address",
        Argument::Null => "a null address",
        Argument::U32(_) => "a u32",
        Argument::I32(_) => "an i32",
        Argument::F32(_) => "an f32",
        Argument::U64(_) => "a u64",
        Argument::Bytes(_) => "bytes of another length",
        Argument::TensorMap(_) => "a tensor map of 128 bytes",
    };
    refuse(format!(
        "parameter {index} ({}) has {} bytes of .{}, and {given} is given",
        param.name,
        param.bytes,
        format!("{:?}", param.kind).to_lowercase()
    ))
}

/// Checks a tensor map as the driver's encoder would.
fn resolve(
    map: &TensorMap,
    arguments: &[Argument<'_>],
    objects: &[Option<usize>],
) -> Result<ResolvedMap, String> {
    let Some(Some(object)) = objects.get(map.buffer).copied() else {
        return Err(format!("argument {} is no buffer", map.buffer));
    };
    let len = match &arguments[map.buffer] {
        Argument::Read(memory) => memory.len(),
        Argument::Write(memory) | Argument::Update(memory) => memory.len(),
        _ => 0,
    } as u64;
    let rank = map.dims.len();
    if !(1..=5).contains(&rank) || map.strides.len() + 1 != rank || map.tile.len() != rank {
        return Err(
            "a tensor map has 1 to 5 dimensions, a stride less, and a tile of as many".into(),
        );
    }
    if map.tile.iter().any(|t| !(1..=256).contains(t)) || map.dims.contains(&0) {
        return Err("boxes have 1 to 256 elements along a dimension, tensors at least one".into());
    }
    let element = map.element.bytes();
    if map.strides.iter().any(|s| s % 16 != 0) || !map.offset.is_multiple_of(16) {
        return Err("strides and the offset must be multiples of 16 bytes".into());
    }
    let inner = u64::from(map.tile[0]) * element;
    if !inner.is_multiple_of(16)
        || map
            .swizzle
            .span()
            .is_some_and(|span| inner > u64::from(span))
    {
        return Err(format!(
            "the box is {inner} bytes along the innermost dimension: a multiple of 16, up to the swizzle's span"
        ));
    }
    let mut strides = vec![element];
    strides.extend(&map.strides);
    let mut last = Some(map.offset);
    for (dim, stride) in map.dims.iter().zip(&strides) {
        let step = (dim - 1).checked_mul(*stride);
        last = last
            .zip(step)
            .and_then(|(last, step)| last.checked_add(step));
    }
    if last
        .and_then(|last| last.checked_add(element))
        .is_none_or(|end| end > len)
    {
        return Err(format!("the tensor leaves its buffer of {len} bytes"));
    }
    Ok(ResolvedMap {
        base: Location {
            object,
            offset: map.offset as usize,
        },
        element,
        dims: map.dims.clone(),
        strides,
        tile: map.tile.clone(),
        swizzle: map.swizzle,
    })
}

/// A launch that has been checked.
struct Job {
    program: Program,
    grid: Grid,
    params: Vec<u8>,
    maps: HashMap<u32, ResolvedMap>,
    options: Options,
}

/// Memory that a kernel may write, aligned as its accesses need.
enum Writable<'a> {
    InPlace(&'a mut [u8]),
    Copied(&'a mut [u8], Buffer),
}

impl Job {
    fn attempt(&mut self, arguments: &mut [Argument<'_>], parallel: bool) -> Outcome<Profile> {
        let mut read: Vec<(usize, &[u8])> = Vec::new();
        let mut written: Vec<(usize, Access, Writable<'_>)> = Vec::new();
        for (i, argument) in arguments.iter_mut().enumerate() {
            let (memory, access): (&mut [u8], Access) = match argument {
                Argument::Read(memory) => {
                    read.push((i, memory));
                    continue;
                }
                Argument::Write(memory) => {
                    memory.fill(0xFF);
                    (memory, Access::Write)
                }
                Argument::Update(memory) => (memory, Access::Update),
                _ => continue,
            };
            let writable = if memory.as_ptr().addr().is_multiple_of(16) {
                Writable::InPlace(memory)
            } else {
                let mut copy = Buffer::uninit(memory.len());
                copy.as_bytes_mut().copy_from_slice(memory);
                Writable::Copied(memory, copy)
            };
            written.push((i, access, writable));
        }
        let mut variables: Vec<Buffer> = Vec::new();
        for variable in &self.program.globals {
            let mut memory = Buffer::uninit(variable.bytes as usize);
            let bytes = memory.as_bytes_mut();
            bytes.fill(0);
            bytes[..variable.contents.len()].copy_from_slice(&variable.contents);
            variables.push(memory);
        }
        let profile = {
            let mut global = Global::new(self.program.global_granule);
            let mut reads = read.iter().peekable();
            let mut writes = written.iter_mut().peekable();
            // Objects are numbered in the order of the arguments.
            loop {
                let next_read = reads.peek().map(|(i, _)| *i);
                let next_write = writes.peek().map(|(i, ..)| *i);
                match (next_read, next_write) {
                    (Some(i), w) if w.is_none_or(|w| i < w) => {
                        if let Some((i, memory)) = reads.next() {
                            global.add_read(format!("argument {i}"), memory);
                        }
                    }
                    (_, Some(_)) => {
                        if let Some((i, access, writable)) = writes.next() {
                            let memory: &mut [u8] = match writable {
                                Writable::InPlace(memory) => memory,
                                Writable::Copied(_, copy) => copy.as_bytes_mut(),
                            };
                            global.add_write(format!("argument {i}"), memory, *access);
                        }
                    }
                    _ => break,
                }
            }
            for (i, (memory, variable)) in
                variables.iter_mut().zip(&self.program.globals).enumerate()
            {
                let name = format!("variable {i}");
                if variable.writable {
                    global.add_write(name, memory.as_bytes_mut(), Access::Update);
                } else {
                    global.add_read(name, memory.as_bytes());
                }
            }
            self.simulate(&global, parallel)
        };
        for (.., writable) in written {
            if let Writable::Copied(memory, copy) = writable {
                memory.copy_from_slice(copy.as_bytes());
            }
        }
        profile
    }

    fn simulate(&self, global: &Global<'_>, parallel: bool) -> Outcome<Profile> {
        let context = Context {
            program: &self.program,
            global,
            grid: &self.grid,
            params: self.params.clone(),
            maps: self.maps.clone(),
            completion: self.options.completion,
            budget: self.options.max_warp_instructions,
        };
        let counts = if parallel {
            self.in_parallel(&context)?
        } else if self.program.cross_cta {
            self.interleaved(&context)?
        } else {
            let mut worker = Worker::new(&context);
            for team in 0..self.grid.teams() {
                worker.run(&context, team, self.options.seed)?;
            }
            worker.counts
        };
        let mut profile = Profile::new(&self.program, &counts);
        profile.shared_bytes = self.grid.shared_bytes;
        profile.ctas = u64::from(self.grid.teams()) * u64::from(self.grid.cluster_ctas());
        for (i, [read, written, bytes]) in global.unique().into_iter().enumerate() {
            profile.buffers.push(BufferProfile {
                name: global.name(i).to_string(),
                bytes,
                read,
                written,
            });
        }
        Ok(profile)
    }

    /// CTAs that cannot wait for one another, over the host's threads.
    fn in_parallel(&self, context: &Context<'_>) -> Outcome<Vec<Counts>> {
        let seed = self.options.seed;
        let failed = AtomicU32::new(u32::MAX);
        let fault: Mutex<Option<Box<Fault>>> = Mutex::new(None);
        let counts = (0..self.grid.teams())
            .into_par_iter()
            .fold(
                || Worker::new(context),
                |mut worker, team| {
                    if failed.load(Ordering::Relaxed) == u32::MAX
                        && let Err(found) = worker.run(context, team, seed)
                    {
                        failed.store(team, Ordering::Relaxed);
                        *fault.lock().unwrap_or_else(|e| e.into_inner()) = Some(found);
                    }
                    worker
                },
            )
            .map(|worker| worker.counts)
            .reduce(
                || vec![Counts::default(); self.program.instructions.len()],
                |mut a, b| {
                    a.iter_mut().zip(&b).for_each(|(a, b)| a.add(b));
                    a
                },
            );
        match fault.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some(fault) => Err(fault),
            None => Ok(counts),
        }
    }

    /// CTAs that may wait for one another through global memory: as many at a time as there are SMs, taking turns.
    fn interleaved(&self, context: &Context<'_>) -> Outcome<Vec<Counts>> {
        let sync = Rc::new(RefCell::new(HashMap::new()));
        let mut order = Order::new(self.options.seed, 0);
        let mut worker = Worker::new(context);
        let mut waiting = 0..self.grid.teams();
        let mut resident: Vec<Team<'_>> = Vec::new();
        loop {
            while resident.len() < SM_COUNT as usize
                && let Some(team) = waiting.next()
            {
                let memory = || worker.memory(context);
                let sync = Rc::clone(&sync);
                resident.push(Team::new(context, team, self.options.seed, sync, memory));
            }
            if resident.is_empty() {
                return Ok(worker.counts);
            }
            let chosen = order.below(resident.len());
            for _ in 0..16 {
                if !resident[chosen].turn()? {
                    let team = resident.swap_remove(chosen);
                    worker.keep(team);
                    break;
                }
            }
        }
    }
}

/// What one host thread keeps between teams.
struct Worker {
    counts: Vec<Counts>,
    memory: Vec<SharedMemory>,
}

impl Worker {
    fn new(context: &Context<'_>) -> Worker {
        Worker {
            counts: vec![Counts::default(); context.program.instructions.len()],
            memory: Vec::new(),
        }
    }

    fn memory(&mut self, context: &Context<'_>) -> SharedMemory {
        match self.memory.pop() {
            Some(mut memory) => {
                memory.clear();
                memory
            }
            None => {
                let grid = context.grid;
                let granule = context.program.shared_granule;
                SharedMemory::new(grid.shared_bytes as usize, granule, grid.team_clock_warps())
            }
        }
    }

    fn run(&mut self, context: &Context<'_>, team: u32, seed: u64) -> Outcome {
        let sync = Rc::default();
        let mut team = Team::new(context, team, seed, sync, || self.memory(context));
        team.finish()?;
        self.keep(team);
        Ok(())
    }

    fn keep(&mut self, team: Team<'_>) {
        let (counts, memory) = team.into_parts();
        self.counts
            .iter_mut()
            .zip(&counts)
            .for_each(|(a, b)| a.add(b));
        self.memory.extend(memory);
    }
}
