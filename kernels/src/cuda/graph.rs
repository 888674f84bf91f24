//! Steps that are recorded once and replayed as one launch.
//!
//! While a step is recorded the driver captures the stream: kernels, copies and uploads become the nodes of a CUDA graph
//! in place of running. Replaying it goes through the step again on the host, which reaches nothing but the pinned memory
//! that the graph uploads from, and holds every request to the recorded one ([`crate::script`]); then the graph is
//! launched. So what is replayed is the step, or is not replayed.

use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::context::Context;
use super::memory::{Block, Memory, Private};
use super::pinned::Slots;
use super::{Error, Result, locked};
use crate::script::{Reader, Request, Script};

/// What happens to the requests to a GPU.
#[derive(Debug, Default)]
pub(super) enum Mode {
    /// They reach it.
    #[default]
    Eager,
    /// They become a graph, and a script.
    Record(Recording),
    /// They are held to a script.
    Follow(Recording, Follower),
}

/// What a recorded step needs beside its graph.
#[derive(Debug)]
pub(super) struct Recording {
    pub script: Script,
    pub slots: Slots,
    pub private: Arc<Private>,
    /// Memory of others that the step touches, by address.
    outside: BTreeMap<u64, Arc<Block>>,
}

impl Recording {
    fn new(context: &'static Context) -> Recording {
        Recording {
            script: Script::default(),
            slots: Slots::default(),
            private: Arc::new(Private::new(context)),
            outside: BTreeMap::new(),
        }
    }

    /// Keeps what the step touches for as long as it may be replayed.
    pub fn keep(&mut self, memory: &Memory) {
        let block = memory.block();
        if !block.is_of(&self.private) {
            self.outside
                .entry(memory.whole().address())
                .or_insert_with(|| block.clone());
        }
    }
}

/// Goes through a script; remembers where a step left it.
#[derive(Debug, Default)]
pub(super) struct Follower {
    reader: Reader,
    diverged: Option<String>,
}

impl Follower {
    fn passed<T>(&mut self, outcome: Result<T, String>) -> Result<T> {
        // Once it has left the script, nothing that follows can be right.
        let outcome = match &self.diverged {
            Some(why) => Err(why.clone()),
            None => outcome,
        };
        outcome.map_err(|why| {
            let error = Error::new(format!("the step is not the one that was recorded: {why}"));
            self.diverged = Some(why);
            error
        })
    }

    pub fn expect(&mut self, script: &Script, request: &Request) -> Result<()> {
        let outcome = self.reader.expect(script, request);
        self.passed(outcome)
    }

    pub fn allocation(&mut self, script: &Script, class: usize) -> Result<u64> {
        let outcome = self.reader.allocation(script, class);
        self.passed(outcome)
    }

    pub fn upload(&mut self, script: &Script, to: u64, bytes: usize) -> Result<usize> {
        let outcome = self.reader.upload(script, to, bytes);
        self.passed(outcome)
    }

    fn end(&mut self, script: &Script) -> Result<()> {
        let outcome = self.reader.end(script);
        self.passed(outcome)
    }
}

/// A step as one launch.
#[derive(Debug)]
pub struct Graph {
    context: &'static Context,
    executable: sys::CUgraphExec,
    /// `None` only while it is followed.
    recording: Option<Recording>,
}

// SAFETY: the handle is the driver's, which takes it from any thread, and is reached through `&mut` alone.
unsafe impl Send for Graph {}

/// How a replay ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replay<R> {
    /// The step was done, and gave this.
    Done(R),
    /// The step is another one than was recorded, for this reason, and nothing of it was done.
    Diverged(String),
}

impl Graph {
    /// Records `step` and runs it once.
    ///
    /// # Errors
    /// Those of the step, which cannot read from the GPU while it is recorded; none of it was done then.
    pub fn record<R, E: From<Error>>(
        context: &'static Context,
        step: impl FnOnce() -> Result<R, E>,
    ) -> Result<(Graph, R), E> {
        let capture = Capture::begin(context)?;
        // Where the step fails, the recording ends as it is dropped.
        let outcome = step()?;
        let (graph, recording) = capture.end()?;
        recording.private.close();
        // Its memory is its own already: with the flag the driver would free what graphs allocate, which is nothing.
        // SAFETY: the graph is valid, and no longer needed once it was instantiated.
        let executable = unsafe {
            let mut executable = std::ptr::null_mut();
            let made = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0).result();
            let _ = result::graph::destroy(graph);
            made.map(|()| executable)
        };
        let graph = Graph {
            context,
            executable: executable.map_err(Error::of("make a graph of the recorded step"))?,
            recording: Some(recording),
        };
        graph.launch()?;
        Ok((graph, outcome))
    }

    /// Takes the step again: `step` must ask for what it asked for when it was recorded.
    ///
    /// # Errors
    /// Those of the step, and of the driver.
    pub fn replay<R, E: From<Error>>(
        &mut self,
        step: impl FnOnce() -> Result<R, E>,
    ) -> Result<Replay<R>, E> {
        // The replay before may still be uploading from the pinned memory that this one writes to.
        self.context.synchronize()?;
        let following = Following::begin(self)?;
        let outcome = step();
        let diverged = following.end();
        if let Some(why) = diverged {
            return Ok(Replay::Diverged(why));
        }
        let outcome = outcome?;
        self.launch()?;
        Ok(Replay::Done(outcome))
    }

    fn launch(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the graph is alive; what it touches is its own, or kept by the recording.
        unsafe { result::graph::launch(self.executable, self.context.stream()) }
            .map_err(Error::of("launch the recorded step"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // A launch that is under way goes on, on memory that everything after it waits for in the stream's order.
        // SAFETY: the graph is ours; there is nobody to tell of a failure.
        let _ = unsafe { result::graph::exec_destroy(self.executable) };
    }
}

/// The time in which a context is recorded; ends it however the step ends.
struct Capture {
    context: &'static Context,
    ended: bool,
}

impl Capture {
    fn begin(context: &'static Context) -> Result<Capture> {
        context.require_eager("record another")?;
        context.bind()?;
        // Relaxed: the pool may have to allocate, which nothing in the graph depends on.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as the context.
        unsafe { result::stream::begin_capture(context.stream(), mode) }
            .map_err(Error::of("record a step"))?;
        *locked(&context.mode) = Mode::Record(Recording::new(context));
        Ok(Capture {
            context,
            ended: false,
        })
    }

    fn end(mut self) -> Result<(sys::CUgraph, Recording)> {
        self.ended = true;
        self.stop()
    }

    fn stop(&self) -> Result<(sys::CUgraph, Recording)> {
        let mode = std::mem::take(&mut *locked(&self.context.mode));
        // SAFETY: the stream is being captured since `begin`.
        let graph = unsafe { result::stream::end_capture(self.context.stream()) };
        let graph = graph.map_err(Error::of("end the recording of a step"))?;
        match mode {
            Mode::Record(recording) => Ok((graph, recording)),
            _ => Err(Error::new("the recording of a step was ended by another")),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if !self.ended
            && let Ok((graph, _)) = self.stop()
        {
            // SAFETY: the graph is ours; there is nobody to tell of a failure.
            let _ = unsafe { result::graph::destroy(graph) };
        }
    }
}

/// The time in which a context is held to a recording; gives it back however the step ends.
struct Following<'g> {
    graph: &'g mut Graph,
    diverged: Option<String>,
}

impl<'g> Following<'g> {
    fn begin(graph: &'g mut Graph) -> Result<Following<'g>> {
        graph.context.require_eager("replay another")?;
        let Some(recording) = graph.recording.take() else {
            return Err(Error::new("the recorded step was lost in an earlier error"));
        };
        *locked(&graph.context.mode) = Mode::Follow(recording, Follower::default());
        Ok(Following {
            graph,
            diverged: None,
        })
    }

    fn end(mut self) -> Option<String> {
        self.stop();
        self.diverged.take()
    }

    fn stop(&mut self) {
        let mode = std::mem::take(&mut *locked(&self.graph.context.mode));
        if let Mode::Follow(recording, mut follower) = mode {
            // What it says is kept in the follower.
            let _ = follower.end(&recording.script);
            self.diverged = follower.diverged;
            self.graph.recording = Some(recording);
        }
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        if self.graph.recording.is_none() {
            self.stop();
        }
    }
}
