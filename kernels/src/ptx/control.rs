//! Control flow: blocks, loops and predicated instructions, as closures that write their bodies. Labels exist inside of
//! these only, so that none can be forgotten.

use super::assembler::Assembler;
use super::types::U32;
use super::value::{Condition, Facts, IntoValue, Value};

impl Assembler {
    /// Every instruction that `body` writes under `@condition`, without a branch.
    ///
    /// What `body` computes stays inside: a variable that it sets keeps its former value where the condition is false.
    pub fn when<'k>(&'k self, condition: impl Into<Condition<'k>>, body: impl FnOnce()) {
        self.guarded(condition.into(), body);
    }

    /// A branch around `body`.
    pub fn if_<'k>(&'k self, condition: impl Into<Condition<'k>>, body: impl FnOnce()) {
        let end = self.label("IF_END");
        self.branch(Some(condition.into().opposite()), &end);
        self.scope(body);
        self.place(&end);
    }

    pub fn if_else<'k>(
        &'k self,
        condition: impl Into<Condition<'k>>,
        then: impl FnOnce(),
        otherwise: impl FnOnce(),
    ) {
        let (middle, end) = (self.label("ELSE"), self.label("IF_END"));
        self.branch(Some(condition.into().opposite()), &middle);
        self.scope(then);
        self.branch(None, &end);
        self.place(&middle);
        self.scope(otherwise);
        self.place(&end);
    }

    /// Tests `condition`, written anew each time, before each run of `body`.
    pub fn while_<'k, C: Into<Condition<'k>>>(
        &'k self,
        condition: impl FnOnce() -> C,
        body: impl FnOnce(),
    ) {
        let (start, end) = (self.label("LOOP"), self.label("LOOP_END"));
        self.loop_scope(|| {
            self.place(&start);
            self.branch(Some(condition().into().opposite()), &end);
            body();
            self.branch(None, &start);
        });
        self.place(&end);
    }

    /// Runs `body` until `condition`, which follows it, is false; at least once.
    pub fn do_while<'k, C: Into<Condition<'k>>>(&'k self, body: impl FnOnce() -> C) {
        let start = self.label("LOOP");
        self.loop_scope(|| {
            self.place(&start);
            let condition = body().into();
            self.branch(Some(condition), &start);
        });
    }

    /// `for (i = start; i < end; i += step)`, unsigned. `end + step` must not exceed 2³².
    ///
    /// A loop that is to be unrolled is a Rust loop.
    pub fn for_<'k>(
        &'k self,
        start: impl IntoValue<'k, U32>,
        end: impl IntoValue<'k, U32>,
        step: impl IntoValue<'k, U32>,
        body: impl FnOnce(Value<'k, U32>),
    ) {
        let (start, end, step) = (start.into_value(), end.into_value(), step.into_value());
        let multiple = start.facts().multiple().min(step.facts().multiple());
        let facts = Facts::multiple_of(multiple);
        self.scope(|| {
            let i = self.variable_with(start, facts);
            let (first, done) = (self.label("LOOP"), self.label("LOOP_END"));
            self.loop_scope(|| {
                self.place(&first);
                self.branch(Some(!i.lt(end)), &done);
                // i < end, whose largest value is one less than its bound.
                let below = match end.facts().below {
                    u64::MAX => Facts::NONE,
                    bound => Facts::below(bound - 1),
                };
                self.learn(i.id, |facts| *facts = facts.and(below));
                body(i.get());
                i.set(i.get() + step);
                self.branch(None, &first);
            });
            self.place(&done);
        });
    }

    /// Ends the thread where the condition holds.
    pub fn exit_if<'k>(&'k self, condition: impl Into<Condition<'k>>) {
        self.under(Some(condition.into()), "ret", vec![]);
    }

    /// `trap`: stops the whole grid with an error.
    pub fn trap(&self) {
        self.emit("trap", vec![], vec![]);
    }

    /// `nanosleep`: a hint for a thread that waits.
    pub fn nanosleep<'k>(&'k self, nanoseconds: impl IntoValue<'k, U32>) {
        let nanoseconds = nanoseconds.into_value().operand();
        self.emit("nanosleep.u32", vec![], vec![nanoseconds]);
    }

    /// `setmaxnreg.inc`: takes registers from the CTA's pool; all warps of a warp group together.
    pub fn setmaxnreg_inc(&self, count: u32) {
        self.setmaxnreg("inc", count);
    }

    /// `setmaxnreg.dec`: gives registers back to the CTA's pool; all warps of a warp group together.
    pub fn setmaxnreg_dec(&self, count: u32) {
        self.setmaxnreg("dec", count);
    }

    fn setmaxnreg(&self, direction: &str, count: u32) {
        self.require(crate::launch::Arch::Sm90a, "setmaxnreg");
        if !(24..=256).contains(&count) || !count.is_multiple_of(8) {
            self.misuse(format_args!(
                "setmaxnreg takes multiples of 8 from 24 to 256, not {count}"
            ));
        }
        let opcode = format!("setmaxnreg.{direction}.sync.aligned.u32");
        self.emit(
            &opcode,
            vec![],
            vec![super::Operand::text(count.to_string())],
        );
    }

    /// `griddepcontrol.wait`: until the grids that this one was launched behind have finished and flushed.
    pub fn griddepcontrol_wait(&self) {
        self.require(crate::launch::Arch::Sm90a, "griddepcontrol");
        self.emit("griddepcontrol.wait", vec![], vec![]);
    }

    /// `griddepcontrol.launch_dependents`: lets the next grid start.
    pub fn griddepcontrol_launch_dependents(&self) {
        self.require(crate::launch::Arch::Sm90a, "griddepcontrol");
        self.emit("griddepcontrol.launch_dependents", vec![], vec![]);
    }
}
