//! Recompute: a block stores its inputs and the position of its randomness instead of its activations.

use tensor::Result;

use crate::tape::RecomputeState;
use crate::{Backward, Grads, Tape, Upstream, Var};

impl Tape {
    /// Runs `block` without keeping what its ops save; its backward pass runs it again.
    ///
    /// Gradients have the same bits as without: the second run draws the same random numbers and writes into the same
    /// slots in the same order.
    pub fn checkpoint(
        &self,
        inputs: &[&Var],
        block: impl Fn(&Tape, &[Var]) -> Result<Vec<Var>> + 'static,
    ) -> Result<Vec<Var>> {
        let inputs: Vec<Var> = inputs.iter().map(|&v| v.clone()).collect();
        if !self.is_recording() {
            return block(self, &inputs);
        }
        let state = self.recompute_state();
        let inner = self.nested(false, state.clone());
        let outputs = block(&inner, &inputs.iter().map(Var::detach).collect::<Vec<_>>())?;
        self.adopt_draws(&inner);
        let outputs: Vec<_> = outputs.into_iter().map(|v| v.tensor).collect();
        // A block may use parameters, which only its second run shows: it always counts as needing a gradient.
        let anchor = self.leaf(outputs[0].clone());
        let saved = inputs.clone();
        let template = self.template();
        self.record_many("checkpoint", &[&anchor], outputs, || Recompute {
            block,
            inputs: saved,
            template,
            state,
        })
    }
}

/// Saves the block's inputs and where its randomness stood.
struct Recompute<F> {
    block: F,
    inputs: Vec<Var>,
    template: Tape,
    state: RecomputeState,
}

impl<F: Fn(&Tape, &[Var]) -> Result<Vec<Var>>> Backward for Recompute<F> {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let tape = self.template.nested(true, self.state);
        let outputs = (self.block)(&tape, &self.inputs)?;
        for (output, gradient) in outputs.iter().zip(upstream.all()) {
            if let Some(gradient) = gradient {
                grads.give(output.id, gradient)?;
            }
        }
        tape.consume(grads)
    }
}
