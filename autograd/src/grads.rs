//! Gradients while the tape is consumed: the one place that they are written through.

use tensor::{Accum, Error, Result, Tensor};

use crate::{ParamGrads, Var, VarId};

/// The gradients of a node's outputs, in their order; `None` for an output that nothing used.
pub struct Upstream(pub(crate) Vec<Option<Tensor>>);

impl Upstream {
    /// The gradient of the only output.
    ///
    /// # Errors
    /// If the node has several outputs, which is a mistake in the op's code.
    pub fn single(mut self) -> Result<Tensor> {
        match (self.0.len(), self.0.pop()) {
            (1, Some(Some(dy))) => Ok(dy),
            _ => Err(Error::new(
                "backward",
                "an op with several outputs asked for a single gradient",
                vec![],
            )),
        }
    }

    /// The gradients of all outputs.
    pub fn all(self) -> Vec<Option<Tensor>> {
        self.0
    }
}

/// The slots that backward kernels write to.
#[derive(Debug)]
pub struct Grads {
    slots: Vec<Option<Tensor>>,
    pub(crate) params: ParamGrads,
}

impl Grads {
    pub(crate) fn new(params: ParamGrads) -> Grads {
        Grads {
            slots: Vec::new(),
            params,
        }
    }

    /// Runs `kernel` on the gradient of `id`, telling it whether to overwrite or to add. Runs nothing for a constant.
    ///
    /// `like` gives the shape, dtype and device of a gradient that is written for the first time.
    pub fn sink(
        &mut self,
        id: Option<VarId>,
        like: &Tensor,
        kernel: impl FnOnce(&mut Tensor, Accum) -> Result<()>,
    ) -> Result<()> {
        match id {
            None => Ok(()),
            Some(VarId::Param(id)) => self.params.sink(id, kernel),
            Some(VarId::Node(slot)) => {
                let slot = self.slot(slot);
                match slot.take() {
                    Some(dst) => {
                        let mut dst = writable(dst)?;
                        kernel(&mut dst, Accum::Add)?;
                        *slot = Some(dst);
                    }
                    None => {
                        let mut dst = Tensor::uninit(like.shape(), like.dtype(), like.device());
                        kernel(&mut dst, Accum::Replace)?;
                        *slot = Some(dst);
                    }
                }
                Ok(())
            }
        }
    }

    /// Hands over a gradient that is already computed: moved in where it is the first, added where it is not.
    ///
    /// For views of an upstream gradient (reshape, permute, identity) and for kernels whose outputs come together.
    pub fn give(&mut self, id: Option<VarId>, gradient: Tensor) -> Result<()> {
        if let Some(VarId::Node(index)) = id {
            let slot = self.slot(index);
            if slot.is_none() {
                *slot = Some(gradient);
                return Ok(());
            }
        }
        let like = gradient.clone();
        self.sink(id, &like, |dst, accum| {
            tensor::ops::copy::accumulate(dst, accum, &gradient)
        })
    }

    /// Runs one kernel on several gradients at once; a constant's destination is `None`.
    ///
    /// For kernels that make several gradients from one pass over their inputs. A destination that cannot be borrowed
    /// beside the others (a parameter, or the same variable twice) is written to a temporary first.
    pub fn sink_many<const N: usize>(
        &mut self,
        targets: [(Option<VarId>, &Tensor); N],
        kernel: impl FnOnce(&mut [Option<(Tensor, Accum)>; N]) -> Result<()>,
    ) -> Result<()> {
        let mut destinations = [const { None }; N];
        for (destination, (id, like)) in destinations.iter_mut().zip(targets) {
            let held = match id {
                None => continue,
                Some(VarId::Node(index)) => self.slot(index).take(),
                Some(VarId::Param(_)) => None,
            };
            *destination = Some(match held {
                Some(dst) => (writable(dst)?, Accum::Add),
                None => (
                    Tensor::uninit(like.shape(), like.dtype(), like.device()),
                    Accum::Replace,
                ),
            });
        }
        kernel(&mut destinations)?;
        for ((id, _), destination) in targets.iter().zip(destinations) {
            if let Some((gradient, _)) = destination {
                self.give(*id, gradient)?;
            }
        }
        Ok(())
    }

    /// Takes the gradient of a leaf out, after the backward pass.
    pub fn take(&mut self, var: &Var) -> Option<Tensor> {
        match var.id {
            Some(VarId::Node(index)) => self.slot(index).take(),
            _ => None,
        }
    }

    pub(crate) fn slot(&mut self, index: u32) -> &mut Option<Tensor> {
        let index = index as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        &mut self.slots[index]
    }
}

/// A gradient that a kernel may add to: one that [`Grads::give`] moved in may be a view, or shared.
fn writable(mut gradient: Tensor) -> Result<Tensor> {
    match gradient.is_writable() {
        true => Ok(gradient),
        false => gradient.detach_copy(),
    }
}
