//! One GPU: its stream, its memory, and copies to and from it.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use cudarc::driver::{result, sys};

use super::graph::Mode;
use super::memory::{Memory, View};
use super::module::Function;
use super::pinned::Ring;
use super::pool::{Pool, size_class};
use super::{Error, Gpu, Result, driver, locked};
use crate::buffer::PoolStats;
use crate::script::Request;

/// A GPU that is in use. Contexts stay for as long as the process does.
///
/// Whatever is asked of one, from any thread, happens in the order in which it was asked, on one stream. A recorded step
/// ([`super::Graph`]) takes everything that is asked while it is recorded, so steps are recorded where one thread computes.
#[derive(Debug)]
pub struct Context {
    gpu: Gpu,
    context: sys::CUcontext,
    stream: sys::CUstream,
    pool: Mutex<Pool>,
    /// What uploads go through.
    ring: Mutex<Option<Ring>>,
    /// By text.
    pub(super) modules: Mutex<HashMap<String, Function>>,
    pub(super) mode: Mutex<Mode>,
}

// SAFETY: the handles are the driver's, which takes them from any thread; everything else is behind locks.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The GPU of this number, which counts from 0 in the driver's order.
    ///
    /// # Errors
    /// If there is no driver, no such GPU, or the GPU is too old or taken.
    pub fn open(ordinal: usize) -> Result<&'static Context> {
        static OPEN: Mutex<BTreeMap<usize, &'static Context>> = Mutex::new(BTreeMap::new());
        let mut open = locked(&OPEN);
        if let Some(context) = open.get(&ordinal) {
            return Ok(context);
        }
        let gpus = driver::gpus()?;
        let count = gpus.len();
        let Some(gpu) = gpus.into_iter().nth(ordinal) else {
            return Err(Error::new(format!(
                "there is no GPU {ordinal}: this machine has {count}, counted from 0"
            )));
        };
        let context: &'static Context = Box::leak(Box::new(Context::start(gpu)?));
        open.insert(ordinal, context);
        Ok(context)
    }

    fn start(gpu: Gpu) -> Result<Context> {
        if gpu.arch().is_none() {
            let [major, minor] = gpu.capability;
            return Err(Error::new(format!(
                "{gpu} has compute capability {major}.{minor}, and the kernels need 8.0 (Ampere) or newer: use --device cpu"
            )));
        }
        let failed = |error| Error::of(format!("open {gpu}"))(error);
        let device = driver::device(gpu.ordinal)?;
        // SAFETY: the handle is valid, and the context is never released.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed)?;
        // SAFETY: as above.
        unsafe { result::ctx::set_current(context) }.map_err(failed)?;
        let stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed)?;
        Ok(Context {
            gpu,
            context,
            stream,
            pool: Mutex::default(),
            ring: Mutex::default(),
            modules: Mutex::default(),
            mode: Mutex::default(),
        })
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Makes this the context of the thread's next calls.
    pub(super) fn bind(&self) -> Result<()> {
        thread_local! {
            static CURRENT: Cell<sys::CUcontext> = const { Cell::new(std::ptr::null_mut()) };
        }
        if CURRENT.get() == self.context {
            return Ok(());
        }
        // SAFETY: contexts are never released.
        unsafe { result::ctx::set_current(self.context) }
            .map_err(Error::of(format!("use {}", self.gpu)))?;
        CURRENT.set(self.context);
        Ok(())
    }

    /// Memory with undefined contents, at an address that is a multiple of [`crate::launch::BUFFER_ALIGNMENT`].
    ///
    /// # Errors
    /// If the GPU has not enough; says how much was asked for and what to do.
    pub fn allocate(&'static self, bytes: usize) -> Result<Memory> {
        let class = size_class(bytes);
        let mut mode = locked(&self.mode);
        let (address, owner) = match &mut *mode {
            Mode::Eager => (self.take(class, bytes)?, None),
            Mode::Record(recording) => {
                let private = &recording.private;
                let address = match private.take(class) {
                    Some(address) => address,
                    None => {
                        let address = self.take(class, bytes)?;
                        private.add(class, address);
                        address
                    }
                };
                recording.script.add_allocation(class, address);
                (address, Some(private.clone()))
            }
            Mode::Follow(recording, follower) => {
                let address = follower.allocation(&recording.script, class)?;
                (address, Some(recording.private.clone()))
            }
        };
        Ok(Memory::new(self, address, class, bytes, owner))
    }

    /// An address from the pool, or from the driver.
    fn take(&self, class: usize, asked: usize) -> Result<u64> {
        if let Some(address) = locked(&self.pool).take(class) {
            return Ok(address);
        }
        self.bind()?;
        // SAFETY: whoever gets the memory treats its contents as undefined.
        let allocate = || unsafe { result::malloc_sync(class) };
        let short =
            |error: &result::DriverError| error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        let address = match allocate() {
            // What is free in other classes may be enough.
            Err(error) if short(&error) && self.trim()? => allocate(),
            other => other,
        };
        let address = address.map_err(|error| match short(&error) {
            true => {
                let (free, total) = result::mem_get_info().unwrap_or((0, self.gpu.bytes));
                Error::out_of_memory(&self.gpu.to_string(), asked, free, total)
            }
            false => Error::of(format!("allocate {asked} bytes on {}", self.gpu))(error),
        })?;
        locked(&self.pool).allocated(class);
        Ok(address)
    }

    /// Returns all memory that nobody holds to the driver; whether there was any.
    ///
    /// # Errors
    /// If the GPU failed at what it still had to do.
    pub fn trim(&self) -> Result<bool> {
        if locked(&self.pool).free_bytes() == 0 {
            return Ok(false);
        }
        self.bind()?;
        // While a step is recorded the stream cannot be waited for, nor must memory go that the step may use.
        // SAFETY: the stream lives as long as the context.
        let status = unsafe { result::stream::is_capturing(self.stream) };
        let idle = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        if status.map_err(Error::of("look at the stream"))? != idle {
            return Ok(false);
        }
        self.wait()?;
        let addresses = locked(&self.pool).drain();
        for address in addresses {
            // SAFETY: nobody holds it, and the GPU has done everything that it was asked before.
            unsafe { result::free_sync(address) }.map_err(Error::of("free memory"))?;
        }
        Ok(true)
    }

    /// Takes memory back, of which the GPU may still be using what was asked of it before.
    pub(super) fn give(&self, class: usize, address: u64) {
        locked(&self.pool).give(class, address);
    }

    /// What the pool has done so far.
    pub fn pool_stats(&self) -> PoolStats {
        locked(&self.pool).stats()
    }

    /// Copies from the host.
    ///
    /// # Errors
    /// If the driver refuses, or a recorded step had no such upload here.
    ///
    /// # Panics
    /// If the lengths differ: a mistake of the caller.
    pub fn upload(&self, to: View<'_>, data: &[u8]) -> Result<()> {
        assert_eq!(to.len_bytes(), data.len(), "the upload fills its place");
        if data.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let copy = |to: u64, from: *const std::ffi::c_void, bytes: usize| {
            // SAFETY: `from` points to `bytes` pinned bytes, which stay until the GPU has read them; `to` lies in memory
            // that is alive, and comes back to the pool of this stream.
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes, self.stream) }
                .result()
                .map_err(Error::of(format!("copy {bytes} bytes to {}", self.gpu)))
        };
        match &mut *locked(&self.mode) {
            Mode::Eager => {
                let mut ring = locked(&self.ring);
                let ring = match &mut *ring {
                    Some(ring) => ring,
                    none => none.insert(Ring::allocate()?),
                };
                let mut address = to.address();
                for piece in data.chunks(Ring::PIECE) {
                    copy(address, ring.write(piece, || self.wait())?, piece.len())?;
                    address += piece.len() as u64;
                }
                Ok(())
            }
            Mode::Record(recording) => {
                recording.keep(to.memory());
                recording.script.add(Request::Upload {
                    to: to.address(),
                    bytes: data.len(),
                });
                copy(to.address(), recording.slots.add(data)?, data.len())
            }
            Mode::Follow(recording, follower) => {
                let slot = follower.upload(&recording.script, to.address(), data.len())?;
                recording.slots.rewrite(slot, data);
                Ok(())
            }
        }
    }

    /// Copies to the host, and so waits for everything that was asked before.
    ///
    /// # Errors
    /// If something that was asked before failed, or a step is being recorded: it has no results yet.
    ///
    /// # Panics
    /// If the lengths differ: a mistake of the caller.
    pub fn download(&self, from: View<'_>, data: &mut [u8]) -> Result<()> {
        assert_eq!(from.len_bytes(), data.len(), "the download fills its place");
        if data.is_empty() {
            return Ok(());
        }
        self.require_eager("read from the GPU")?;
        self.bind()?;
        // SAFETY: both sides are alive and as long; the wait below comes before anybody looks at `data`.
        unsafe { result::memcpy_dtoh_async(data, from.address(), self.stream) }.map_err(
            Error::of(format!("copy {} bytes from {}", data.len(), self.gpu)),
        )?;
        self.wait()
    }

    /// Copies within the GPU; the parts do not overlap.
    ///
    /// # Errors
    /// If the driver refuses, or a recorded step had no such copy here.
    ///
    /// # Panics
    /// If the lengths differ: a mistake of the caller.
    pub fn copy(&self, to: View<'_>, from: View<'_>) -> Result<()> {
        assert_eq!(to.len_bytes(), from.len_bytes(), "the copy fills its place");
        let bytes = to.len_bytes();
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        let request = Request::Copy {
            to: to.address(),
            from: from.address(),
            bytes,
        };
        if !self.issues(request, &[to, from])? {
            return Ok(());
        }
        // SAFETY: both sides are alive, as long, and of the pool of this stream.
        unsafe { result::memcpy_dtod_async(to.address(), from.address(), bytes, self.stream) }
            .map_err(Error::of(format!("copy {bytes} bytes on {}", self.gpu)))
    }

    /// Sets every element of `width` bytes (1, 2 or 4) to the low bytes of `value`.
    ///
    /// # Errors
    /// If the driver refuses, or a recorded step had no such fill here.
    ///
    /// # Panics
    /// If the memory is not made of whole elements: a mistake of the caller.
    pub fn fill(&self, to: View<'_>, width: usize, value: u32) -> Result<()> {
        let (address, bytes) = (to.address(), to.len_bytes());
        assert!(matches!(width, 1 | 2 | 4) && bytes.is_multiple_of(width));
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        let request = Request::Fill {
            to: address,
            bytes,
            value,
        };
        if !self.issues(request, &[to])? {
            return Ok(());
        }
        // SAFETY: the memory is alive, of the pool of this stream, and aligned to more than an element where views of
        // tensors begin at elements.
        unsafe {
            match width {
                1 => sys::cuMemsetD8Async(address, value as u8, bytes, self.stream),
                2 => sys::cuMemsetD16Async(address, value as u16, bytes / 2, self.stream),
                _ => sys::cuMemsetD32Async(address, value, bytes / 4, self.stream),
            }
        }
        .result()
        .map_err(Error::of(format!("fill {bytes} bytes on {}", self.gpu)))
    }

    /// Notes a request; whether it is to reach the driver.
    pub(super) fn issues(&self, request: Request, touched: &[View<'_>]) -> Result<bool> {
        match &mut *locked(&self.mode) {
            Mode::Eager => Ok(true),
            Mode::Record(recording) => {
                touched
                    .iter()
                    .for_each(|view| recording.keep(view.memory()));
                recording.script.add(request);
                Ok(true)
            }
            Mode::Follow(recording, follower) => {
                follower.expect(&recording.script, &request)?;
                Ok(false)
            }
        }
    }

    /// Waits until the GPU has done everything that it was asked.
    ///
    /// # Errors
    /// If it failed at some of it, or a step is being recorded.
    pub fn synchronize(&self) -> Result<()> {
        self.require_eager("wait for the GPU")?;
        self.wait()
    }

    fn wait(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as the context.
        unsafe { result::stream::synchronize(self.stream) }
            .map_err(Error::of(format!("finish the work of {}", self.gpu)))
    }

    pub(super) fn require_eager(&self, what: &str) -> Result<()> {
        match &*locked(&self.mode) {
            Mode::Eager => Ok(()),
            _ => Err(Error::new(format!(
                "a step that is recorded cannot {what}: its results are there when the step is over"
            ))),
        }
    }
}

/// Measures what the GPU does between a start and a stop.
#[derive(Debug)]
pub struct Timer {
    context: &'static Context,
    start: sys::CUevent,
}

impl Timer {
    /// Starts when the GPU has done everything that it was asked before.
    pub fn start(context: &'static Context) -> Result<Timer> {
        context.require_eager("be timed in parts")?;
        Ok(Timer {
            context,
            start: Timer::record(context)?,
        })
    }

    /// Seconds from the start until everything asked since was done; waits for it.
    pub fn stop(self) -> Result<f64> {
        let end = Timer::record(self.context)?;
        self.context.synchronize()?;
        // SAFETY: both events are on one stream, and alive.
        let milliseconds = unsafe { result::event::elapsed(self.start, end) };
        // SAFETY: nobody else has it.
        let _ = unsafe { result::event::destroy(end) };
        let milliseconds = milliseconds.map_err(Error::of("read the GPU's clock"))?;
        Ok(f64::from(milliseconds) * 1e-3)
    }

    fn record(context: &Context) -> Result<sys::CUevent> {
        context.bind()?;
        let failed = || Error::of("note the time on the GPU");
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed())?;
        // SAFETY: the event was just made, and the stream lives as long as the context.
        unsafe { result::event::record(event, context.stream) }.map_err(failed())?;
        Ok(event)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the event is ours; there is nobody to tell of a failure.
        let _ = unsafe { result::event::destroy(self.start) };
    }
}
