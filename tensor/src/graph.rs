//! Steps that are recorded once and then replayed: on a GPU as one launch, on the simulated one to show that they could
//! be.
//!
//! A step may be recorded if it asks for the same every time: the same launches on the same memory with the same numbers.
//! What changes from step to step lies in memory, and is uploaded. While a step is recorded or replayed its results are
//! not there yet, so nothing of it can be read on the host. The simulated GPU holds steps to the same rules.

use std::cell::RefCell;

use kernels::cuda::{self, Context};
use kernels::script::{Reader, Request, Script};

use crate::{Device, Error, Result};

/// A recorded step.
#[derive(Debug)]
pub struct Graph(Kind);

#[derive(Debug)]
enum Kind {
    Cuda(cuda::Graph),
    /// Launches run when they are asked for, and are then compared. How many steps were not the one that was recorded.
    Sim(Script, usize),
}

pub use kernels::cuda::Replay;

/// An error of a step, or of whoever records it.
enum Either<E> {
    Step(E),
    Recording(cuda::Error),
}

impl<E> From<cuda::Error> for Either<E> {
    fn from(error: cuda::Error) -> Either<E> {
        Either::Recording(error)
    }
}

impl<E: From<Error>> Either<E> {
    fn unified(self) -> E {
        match self {
            Either::Step(error) => error,
            Either::Recording(error) => of_gpu(error).into(),
        }
    }
}

impl Graph {
    /// Takes `step` once, recording it; without a graph on a device that has none.
    ///
    /// # Errors
    /// Those of the step, which cannot read its results yet; on a GPU nothing of it was done then.
    pub fn record<R, E: From<Error>>(
        device: Device,
        step: impl FnOnce() -> Result<R, E>,
    ) -> Result<(Option<Graph>, R), E> {
        match device {
            Device::Cpu => Ok((None, step()?)),
            Device::Sim { .. } => {
                let (outcome, recorder) = recorded(Recorder::Record(Script::default()), step)?;
                let script = match recorder {
                    Recorder::Record(script) => script,
                    Recorder::Follow { again, .. } => again,
                };
                Ok((Some(Graph(Kind::Sim(script, 0))), outcome))
            }
            Device::Cuda(gpu) => {
                let context = Context::open(gpu).map_err(of_gpu)?;
                let recorded = cuda::Graph::record(context, || step().map_err(Either::Step));
                let (graph, outcome) = recorded.map_err(Either::unified)?;
                Ok((Some(Graph(Kind::Cuda(graph))), outcome))
            }
        }
    }

    /// Replays of steps that were not the one that was recorded, and were done none the less: on the simulated GPU.
    pub fn divergences(&self) -> usize {
        match &self.0 {
            Kind::Cuda(_) => 0,
            Kind::Sim(_, divergences) => *divergences,
        }
    }

    /// Takes the step again.
    ///
    /// A step that is not the one that was recorded is not done, and must be recorded anew. On the simulated GPU it is
    /// done, and the new one has then taken the place of the recorded one.
    ///
    /// # Errors
    /// As [`Graph::record`].
    pub fn replay<R, E: From<Error>>(
        &mut self,
        step: impl FnOnce() -> Result<R, E>,
    ) -> Result<Replay<R>, E> {
        match &mut self.0 {
            Kind::Cuda(graph) => graph
                .replay(|| step().map_err(Either::Step))
                .map_err(Either::unified),
            Kind::Sim(script, divergences) => {
                let follow = Recorder::Follow {
                    script: std::mem::take(script),
                    reader: Reader::default(),
                    again: Script::default(),
                    diverged: None,
                };
                let (outcome, recorder) = recorded(follow, step)?;
                if let Recorder::Follow {
                    script: recorded,
                    reader,
                    again,
                    diverged,
                } = recorder
                {
                    let diverged = diverged.or_else(|| reader.end(&recorded).err());
                    *script = again;
                    *divergences += usize::from(diverged.is_some());
                }
                Ok(Replay::Done(outcome))
            }
        }
    }
}

fn of_gpu(error: cuda::Error) -> Error {
    Error::new("graph", error.to_string(), vec![])
}

/// What the simulated GPU is asked for in this thread.
#[derive(Debug)]
enum Recorder {
    Record(Script),
    Follow {
        script: Script,
        reader: Reader,
        /// What it is asked for this time.
        again: Script,
        diverged: Option<String>,
    },
}

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Runs `step` with a recorder in place, and takes that out however it ends.
fn recorded<R, E>(
    recorder: Recorder,
    step: impl FnOnce() -> Result<R, E>,
) -> Result<(R, Recorder), E>
where
    E: From<Error>,
{
    struct Ends;
    impl Drop for Ends {
        fn drop(&mut self) {
            RECORDER.with_borrow_mut(|recorder| *recorder = None);
        }
    }
    let busy = RECORDER.with_borrow_mut(|held| match held {
        Some(_) => true,
        None => {
            *held = Some(recorder);
            false
        }
    });
    if busy {
        let why = "a step that is recorded cannot record another";
        return Err(Error::new("graph", why, vec![]).into());
    }
    let ends = Ends;
    let outcome = step()?;
    let recorder = RECORDER.with_borrow_mut(Option::take);
    drop(ends);
    match recorder {
        Some(recorder) => Ok((outcome, recorder)),
        None => Err(Error::new("graph", "the recording was lost", vec![]).into()),
    }
}

/// Notes a request to the simulated GPU, where somebody records.
pub(crate) fn note(request: impl FnOnce() -> Request) {
    RECORDER.with_borrow_mut(|recorder| match recorder {
        None => {}
        Some(Recorder::Record(script)) => script.add(request()),
        Some(Recorder::Follow {
            script,
            reader,
            again,
            diverged,
        }) => {
            let request = request();
            if diverged.is_none() {
                *diverged = reader.expect(script, &request).err();
            }
            again.add(request);
        }
    });
}

// The host's addresses say nothing about a GPU's: none are noted.

pub(crate) fn note_allocation(class: usize) {
    note(|| Request::Allocate { class });
}

pub(crate) fn note_upload(bytes: usize) {
    note(|| Request::Upload { to: 0, bytes });
}

pub(crate) fn note_copy(bytes: usize) {
    let request = Request::Copy {
        to: 0,
        from: 0,
        bytes,
    };
    note(|| request);
}

pub(crate) fn note_fill(bytes: usize) {
    let request = Request::Fill {
        to: 0,
        bytes,
        value: 0,
    };
    note(|| request);
}

/// That nobody records what the simulated GPU does: results can be read.
///
/// # Errors
/// If somebody does, why they cannot.
pub(crate) fn refuse_while_recording() -> Result<(), String> {
    match RECORDER.with_borrow(Option::is_some) {
        false => Ok(()),
        true => Err(
            "a step that is recorded cannot read from the GPU: its results are there when the step is over"
                .to_owned(),
        ),
    }
}
