//! Every variant of every GPU kernel, in one table.
//!
//! A kernel is a type whose values are its variants: what changes the text, such as tile sizes and fused functions, but
//! no sizes of operands. Only types in the table can implement [`Variant`], and only a [`Variant`] can be planned and
//! launched; so `unclip kernels list`, the lint and the simulated tests miss none.

use std::fmt;

use crate::launch::{Arch, Launch};
use crate::ptx::{Assembled, Assembler};

/// A type in the table of this module.
pub trait Listed {}

/// A GPU kernel of an op.
pub trait Variant: Listed + Copy + fmt::Debug + Send + Sync + 'static {
    /// Op and pass: `unary/forward`.
    const KERNEL: &'static str;

    /// Every variant that a `config` may choose.
    fn all() -> Vec<Self>;

    /// What tells it from the others, as a part of an identifier: `silu_f32`.
    fn label(&self) -> String;

    /// The oldest architecture that runs it: the tier that every op has, unless it needs a newer one.
    fn arch(&self) -> Arch {
        Arch::Sm80
    }

    /// Threads of a CTA along x, y, z.
    fn block(&self) -> [u32; 3];

    /// Writes the body. The parameters that it declares, in order, are what a launch must pass.
    fn write(&self, k: &Assembler);

    /// The entry's name: kernel and label.
    fn name(&self) -> String {
        format!("{}_{}", Self::KERNEL.replace('/', "_"), self.label())
    }

    fn assemble(&self) -> Assembled {
        let k = Assembler::new(self.name(), self.arch(), self.block());
        self.write(&k);
        k.finish()
    }
}

/// A variant and its grid: what `config` makes of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan<V> {
    pub variant: V,
    /// CTAs along x, y, z.
    pub grid: [u32; 3],
}

impl<V: Variant> Plan<V> {
    pub fn assemble(&self) -> (Assembled, Launch) {
        let assembled = self.variant.assemble();
        let launch = assembled.launch(self.grid);
        (assembled, launch)
    }
}

/// Why no kernel takes a descriptor: one clause, for an error that shows the operands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// The largest number of elements that kernels can count: they index with 32 bits, and the last CTA counts beyond the end.
pub const MAX_ELEMENTS: usize = 1 << 31;

/// `n` as kernels count, or why not.
pub fn count(n: usize, what: &str) -> Result<u32, Refused> {
    match u32::try_from(n) {
        Ok(count) if n <= MAX_ELEMENTS => Ok(count),
        _ => Err(Refused(format!(
            "{what} is {n}, more than the {MAX_ELEMENTS} that GPU kernels count"
        ))),
    }
}

/// A variant as the table lists it.
pub struct Listing {
    /// Op and pass.
    pub kernel: &'static str,
    pub name: String,
    pub arch: Arch,
    assemble: Box<dyn Fn() -> Assembled + Send + Sync>,
}

impl Listing {
    fn new<V: Variant>(variant: V) -> Listing {
        Listing {
            kernel: V::KERNEL,
            name: variant.name(),
            arch: variant.arch(),
            assemble: Box::new(move || variant.assemble()),
        }
    }

    pub fn assemble(&self) -> Assembled {
        (self.assemble)()
    }
}

macro_rules! table {
    ($($variant:ty),* $(,)?) => {
        $(impl Listed for $variant {})*

        /// Every variant of every kernel, in the table's order.
        pub fn all() -> Vec<Listing> {
            let mut listings = vec![];
            $(listings.extend(<$variant>::all().into_iter().map(Listing::new));)*
            listings
        }
    };
}

table![
    super::unary::ptx::Forward,
    super::unary::ptx::Backward,
    super::matmul::ptx::Product,
    super::matmul::ptx::parts::Merge,
    super::matmul::ptx::hopper::WarpGroups,
    super::random::ptx::Fill,
    super::attention::ptx::Forward,
    super::attention::ptx::backward::Delta,
    super::attention::ptx::backward::QueryGradient,
    super::attention::ptx::backward::KeyGradients,
    super::attention::ptx::map::Map,
    super::conv2d::ptx::Forward,
    super::conv2d::ptx::BackwardInput,
    super::conv2d::ptx::BackwardWeight,
    super::conv2d::ptx::Flip,
    super::affine::ptx::Forward,
    super::avg_pool2::ptx::SumBlocks,
    super::binary::ptx::Forward,
    super::concat::ptx::Join,
    super::copy::ptx::Accumulate,
    super::copy::ptx::Copy,
    super::cross_entropy::ptx::Forward,
    super::cross_entropy::ptx::Backward,
    super::dropout::ptx::Apply,
    super::embedding::ptx::Forward,
    super::embedding::ptx::Backward,
    super::gather_rows::ptx::Forward,
    super::gather_rows::ptx::Backward,
    super::l2_normalize::ptx::Forward,
    super::l2_normalize::ptx::Backward,
    super::layer_norm::ptx::Forward,
    super::layer_norm::ptx::Backward,
    super::mse::ptx::Forward,
    super::mse::ptx::Backward,
    super::nearest_up2::ptx::RepeatBlocks,
    super::optimizer::ptx::Squares,
    super::optimizer::ptx::Norm,
    super::optimizer::ptx::Update,
    super::optimizer::muon::ptx::Momentum,
    super::optimizer::muon::ptx::Place,
    super::optimizer::muon::ptx::Descend,
    super::reduce::ptx::Sum,
    super::resize::ptx::Apply,
    super::select_rows::ptx::Forward,
    super::select_rows::ptx::Backward,
    super::select_rows::ptx::BackwardShared,
    super::softmax::ptx::Forward,
    super::softmax::ptx::Backward,
    super::split::ptx::Narrow,
    super::timestep_embedding::ptx::Forward,
    super::variational_bound::ptx::Forward,
    super::variational_bound::ptx::Backward,
    super::group_norm::ptx::forward::Moments,
    super::group_norm::ptx::forward::Merge,
    super::group_norm::ptx::forward::Apply,
    super::group_norm::ptx::whole::Whole,
    super::group_norm::ptx::whole_backward::WholeBackward,
    super::group_norm::ptx::backward::Sums,
    super::group_norm::ptx::backward::MergeSums,
    super::group_norm::ptx::backward::Parameters,
    super::group_norm::ptx::backward::InputGradient,
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rayon::prelude::*;

    use super::*;
    use crate::ptxas;

    #[test]
    fn names_are_unique_and_texts_are_always_the_same() {
        let mut names = HashSet::new();
        for listing in all() {
            assert!(names.insert(listing.name.clone()), "{} twice", listing.name);
            let assembled = listing.assemble();
            assert_eq!(assembled, listing.assemble(), "{}", listing.name);
            assert_eq!(assembled.kernel.name, listing.name);
            assert!(
                assembled.kernel.text.contains("\n// "),
                "{} has no contract",
                listing.name
            );
        }
    }

    /// The lint: every variant assembles for its arch without spills, local memory, or notices of ignored instructions.
    #[test]
    fn nvidias_assembler_takes_every_kernel() {
        let Some(ptxas) = ptxas::for_tests() else {
            return;
        };
        // A process for each, as many at once as there are cores; in the table's order again in the end.
        let complaints = all().into_par_iter().flat_map_iter(|listing| {
            let defects = match ptxas.assemble(&listing.assemble().kernel) {
                Ok(report) => report.defects(),
                Err(error) => vec![error.to_string()],
            };
            let of_kernel = move |defect| format!("{}: {defect}", listing.name);
            defects.into_iter().map(of_kernel)
        });
        let complaints: Vec<String> = complaints.collect();
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    }
}
