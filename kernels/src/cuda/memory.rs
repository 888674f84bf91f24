//! Device memory that belongs to somebody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::context::Context;
use super::locked;

/// Memory of a GPU, exclusively owned. Dropping it gives it back to the pool, without waiting for the GPU.
#[derive(Debug)]
pub struct Memory {
    block: Arc<Block>,
    bytes: usize,
}

/// An allocation. Launches of a recorded step keep those of others alive.
#[derive(Debug)]
pub(super) struct Block {
    context: &'static Context,
    address: u64,
    class: usize,
    /// The recorded step that it is a part of.
    owner: Option<Arc<Private>>,
}

impl Memory {
    pub(super) fn new(
        context: &'static Context,
        address: u64,
        class: usize,
        bytes: usize,
        owner: Option<Arc<Private>>,
    ) -> Memory {
        let block = Block {
            context,
            address,
            class,
            owner,
        };
        Memory {
            block: Arc::new(block),
            bytes,
        }
    }

    /// The GPU that it is on.
    pub fn context(&self) -> &'static Context {
        self.block.context
    }

    /// Bytes asked for, which may be less than are held.
    pub fn len_bytes(&self) -> usize {
        self.bytes
    }

    /// A part of it.
    ///
    /// # Panics
    /// If the part is not inside.
    pub fn view(&self, start: usize, bytes: usize) -> View<'_> {
        assert!(
            start <= self.bytes && bytes <= self.bytes - start,
            "{bytes} bytes from {start} on of {}",
            self.bytes
        );
        View {
            memory: self,
            start,
            bytes,
        }
    }

    /// All of it.
    pub fn whole(&self) -> View<'_> {
        self.view(0, self.bytes)
    }

    pub(super) fn block(&self) -> &Arc<Block> {
        &self.block
    }
}

impl Block {
    /// Whether it is a part of that recorded step.
    pub fn is_of(&self, owner: &Arc<Private>) -> bool {
        self.owner
            .as_ref()
            .is_some_and(|own| Arc::ptr_eq(own, owner))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        match &self.owner {
            None => self.context.give(self.class, self.address),
            Some(owner) => owner.give(self.class, self.address),
        }
    }
}

/// A part of a [`Memory`].
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    memory: &'a Memory,
    start: usize,
    bytes: usize,
}

impl<'a> View<'a> {
    pub fn memory(self) -> &'a Memory {
        self.memory
    }

    pub fn len_bytes(self) -> usize {
        self.bytes
    }

    /// Where the GPU finds it.
    pub fn address(self) -> u64 {
        self.memory.block.address + self.start as u64
    }
}

/// The memory of a recorded step. Its launches go to the same addresses for ever, so nobody else may have them while the
/// step, or anything that came out of it, is there.
#[derive(Debug)]
pub(super) struct Private {
    context: &'static Context,
    state: Mutex<PrivateState>,
}

#[derive(Debug, Default)]
struct PrivateState {
    /// Classes and addresses of all blocks.
    blocks: Vec<(usize, u64)>,
    /// Those that the step gave back and may take again: while it is recorded.
    free: BTreeMap<usize, Vec<u64>>,
    recorded: bool,
}

impl Private {
    pub fn new(context: &'static Context) -> Private {
        Private {
            context,
            state: Mutex::default(),
        }
    }

    /// A block of the step's that is free again.
    pub fn take(&self, class: usize) -> Option<u64> {
        locked(&self.state).free.get_mut(&class)?.pop()
    }

    /// Adds a block.
    pub fn add(&self, class: usize, address: u64) {
        locked(&self.state).blocks.push((class, address));
    }

    /// Ends the recording: from now on the recorded step says which block is whose.
    pub fn close(&self) {
        let mut state = locked(&self.state);
        state.recorded = true;
        state.free.clear();
    }

    fn give(&self, class: usize, address: u64) {
        let mut state = locked(&self.state);
        if !state.recorded {
            state.free.entry(class).or_default().push(address);
        }
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        for (class, address) in std::mem::take(&mut locked(&self.state).blocks) {
            self.context.give(class, address);
        }
    }
}
