//! Kernels as the driver compiled them from their text.

use std::ffi::{CStr, CString, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::{result, sys};

use super::context::Context;
use super::{Error, Result, locked};
use crate::launch::Kernel;
use crate::sim;

/// Shared memory that a CTA may have without being allowed more, in bytes.
const SHARED_WITHOUT_ASKING: u32 = 48 * 1024;
/// The most that is read of what the compiler complains about.
const LOG_BYTES: usize = 8 * 1024;

/// A kernel on one GPU.
#[derive(Clone, Debug)]
pub struct Function(Arc<Compiled>);

#[derive(Debug)]
struct Compiled {
    handle: sys::CUfunction,
    name: String,
    /// Bytes of each parameter.
    parameters: Vec<u32>,
    /// Dynamic shared memory that it was allowed so far.
    shared_bytes: AtomicU32,
}

// SAFETY: the handle is the driver's, which takes it from any thread; modules are never unloaded.
unsafe impl Send for Compiled {}
// SAFETY: as above.
unsafe impl Sync for Compiled {}

impl Function {
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Bytes of each parameter, in order.
    pub fn parameters(&self) -> &[u32] {
        &self.0.parameters
    }

    pub(super) fn handle(&self) -> sys::CUfunction {
        self.0.handle
    }

    /// Allows launches so much dynamic shared memory.
    pub(super) fn allow_shared(&self, bytes: u32) -> Result<()> {
        let allowed = self.0.shared_bytes.load(Ordering::Relaxed);
        if bytes <= allowed.max(SHARED_WITHOUT_ASKING) {
            return Ok(());
        }
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // No kernel asks for more than its arch has.
        let value = i32::try_from(bytes).unwrap_or(i32::MAX);
        // SAFETY: the function's module is never unloaded.
        unsafe { result::function::set_function_attribute(self.0.handle, attribute, value) }
            .map_err(Error::of(format!(
                "give {} {bytes} bytes of shared memory",
                self.0.name
            )))?;
        self.0.shared_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Context {
    /// A kernel, compiled by the driver from exactly its text, once for each text.
    ///
    /// # Errors
    /// If the text is no PTX, or the driver's compiler does not take it; with what the compiler says.
    pub fn load(&self, kernel: &Kernel) -> Result<Function> {
        let key = format!("{}\n{}", kernel.name, kernel.text);
        if let Some(function) = locked(&self.modules).get(&key) {
            return Ok(function.clone());
        }
        // The driver does not check arguments against parameters. Whoever launches does, by the simulator's grammar.
        let parameters = sim::parameters(kernel).map_err(|e| Error::new(e.to_string()))?;
        let function = Function(Arc::new(Compiled {
            handle: self.compile(kernel)?,
            name: kernel.name.clone(),
            parameters,
            shared_bytes: AtomicU32::new(0),
        }));
        locked(&self.modules).insert(key, function.clone());
        Ok(function)
    }

    fn compile(&self, kernel: &Kernel) -> Result<sys::CUfunction> {
        let terminated = |text: &str| {
            CString::new(text).map_err(|_| {
                Error::new(format!("the PTX of {} has a zero byte in it", kernel.name))
            })
        };
        let (text, name) = (terminated(&kernel.text)?, terminated(&kernel.name)?);
        self.bind()?;
        let mut log = vec![0u8; LOG_BYTES];
        let mut options = [
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // The driver takes a number where it says pointer.
        let mut values = [
            log.as_mut_ptr().cast::<c_void>(),
            std::ptr::without_provenance_mut(LOG_BYTES - 1),
        ];
        let mut module = std::ptr::null_mut();
        // SAFETY: the text ends in a zero; options and values are as many, and the log is as long as they say.
        let loaded = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                text.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        loaded.result().map_err(|error| {
            let said = CStr::from_bytes_until_nul(&log).unwrap_or_default();
            let said = said.to_string_lossy();
            let said: Vec<&str> = said.lines().map(str::trim).collect();
            let doing = format!("compile {} for {}", kernel.name, self.gpu());
            let error = Error::of(doing)(error);
            match said.join(" ") {
                nothing if nothing.is_empty() => error,
                said => Error::new(format!("{error}; its compiler says: {said}")),
            }
        })?;
        // SAFETY: the module was just loaded, and is never unloaded.
        unsafe { result::module::get_function(module, name) }.map_err(Error::of(format!(
            "find {} in its compiled text",
            kernel.name
        )))
    }
}
