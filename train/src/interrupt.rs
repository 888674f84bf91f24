//! Ctrl-C, SIGTERM and SIGUSR1: noted at once, acted on at the next safe point of whatever phase is running.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

use crate::{Error, Result};

/// The first signal that asked for an end, 0 while none has.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicUsize>);

impl Interrupt {
    /// Catches the signals of this process. A second Ctrl-C still ends the program at once.
    pub fn catch() -> Result<Interrupt> {
        let interrupt = Interrupt::default();
        let hooked = || -> std::io::Result<()> {
            let armed = Arc::new(std::sync::atomic::AtomicBool::new(false));
            // Order matters: the conditional shutdown is looked at before the first signal arms it.
            signal_hook::flag::register_conditional_shutdown(SIGINT, 128 + SIGINT, armed.clone())?;
            signal_hook::flag::register(SIGINT, armed)?;
            for signal in [SIGINT, SIGTERM, SIGUSR1] {
                signal_hook::flag::register_usize(signal, interrupt.0.clone(), signal as usize)?;
            }
            Ok(())
        };
        hooked().map_err(|e| {
            Error::failure(format!("cannot listen for signals: {e}; run it in a shell"))
        })?;
        Ok(interrupt)
    }

    /// The signal that arrived, if one did.
    pub fn signal(&self) -> Option<i32> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal as i32),
        }
    }

    /// An error if a signal arrived; for phases that have nothing to save.
    pub fn check(&self) -> Result<()> {
        match self.signal() {
            None => Ok(()),
            Some(signal) => Err(Error::Interrupted {
                signal,
                saved: format!(
                    "stopped by {}; the same command goes on from here",
                    name(signal)
                ),
            }),
        }
    }
}

pub fn name(signal: i32) -> &'static str {
    match signal {
        SIGINT => "Ctrl-C",
        SIGTERM => "SIGTERM",
        SIGUSR1 => "SIGUSR1",
        _ => "a signal",
    }
}
