//! How the kernels between two walks through the pixels merge what the blocks of the first one left.
//!
//! A CTA has some groups of an image, whose channels fill whole sectors and at least a warp. It goes through them 32 channels
//! at a time, one a lane; each warp has every eighth block of pixels.

use super::*;
use crate::ptx::{F32, Pred};

/// Groups of `width` channels that a CTA has: 32 at most.
pub(super) fn beside(width: usize) -> usize {
    // f32 of a sector.
    let whole = least_common_multiple(width, 8);
    whole * 32usize.div_ceil(whole) / width
}

/// What grids say of it in a kernel's contract.
pub(super) const GRID: &str =
    "Grid: ceil(groups / beside), n CTAs; lanes have channels, warps have blocks.";

/// A CTA's groups.
#[derive(Clone, Copy)]
pub(super) struct Merging<'k> {
    k: &'k Assembler,
    pub extents: Extents<'k>,
    pub image: Value<'k, U32>,
    /// Channels of a group.
    pub width: Value<'k, U32>,
    /// The CTA's first channel, and the one behind its last.
    first: Value<'k, U32>,
    end: Value<'k, U32>,
    first_group: Value<'k, U32>,
}

impl<'k> Merging<'k> {
    /// Declares how many groups a CTA has.
    pub fn new(k: &'k Assembler, extents: Extents<'k>) -> Merging<'k> {
        let beside = k.parameter::<U32>("beside");
        k.comment("the CTA's groups and their channels");
        let width = extents.width();
        let first_group = k.cta_x() * beside;
        let first = first_group * width;
        Merging {
            k,
            extents,
            image: k.cta_y(),
            width,
            first,
            end: (first + beside * width).min(extents.c),
            first_group,
        }
    }

    /// For each of the CTA's channels: `of_blocks` gives what a warp's blocks make of it, `of_channel`, once for each
    /// channel, what those of all warps make of it, and `add` adds that to what a lane of the first warp keeps of its group.
    /// All warps take part, and meet at barriers.
    pub fn for_each_channel<const N: usize, const M: usize>(
        self,
        of_blocks: impl FnOnce(Value<'k, U32>) -> [Value<'k, F32>; N],
        of_channel: impl FnOnce(Value<'k, U32>, Vec<[Value<'k, F32>; N]>) -> [Value<'k, F32>; M],
        add: impl FnOnce([Value<'k, F32>; M]),
    ) {
        let Merging { k, first, end, .. } = self;
        let of_warps = [(); N].map(|()| k.shared_array::<F32>(THREADS));
        let of_channels = [(); M].map(|()| k.shared_array::<F32>(32));
        let own_first = first + k.lane() * self.width;
        let own_end = own_first + self.width;
        k.for_(first, end, 32, |piece| {
            let channel = piece + k.lane();
            k.if_(channel.lt(end), || {
                for (array, number) in of_warps.iter().zip(of_blocks(channel)) {
                    array.at(k.thread_x()).store(number);
                }
            });
            k.barrier();
            k.if_(k.warp().eq(0), || {
                k.if_(channel.lt(end), || {
                    let of_warp =
                        |warp: u32| of_warps.map(|array| array.at(k.lane()).at(warp * 32).load());
                    let all = (0..WARPS).map(of_warp).collect();
                    for (array, number) in of_channels.iter().zip(of_channel(channel, all)) {
                        array.at(k.lane()).store(number);
                    }
                });
                k.warp_barrier();
                k.comment("a lane a group: its channels among these");
                let from = own_first.max(piece);
                let to = own_end.min(piece + 32).min(end);
                k.for_(from, to, 1, |channel| {
                    add(of_channels.map(|array| array.at(channel - piece).load()));
                });
            });
            k.barrier();
        });
    }

    /// Whether this thread keeps something of a group, and the group's number among all images' groups.
    pub fn own_group(self) -> (Value<'k, Pred>, Value<'k, U32>) {
        let k = self.k;
        let group = self.image * self.extents.groups + self.first_group + k.lane();
        let exists = (self.first + k.lane() * self.width).lt(self.end);
        (k.warp().eq(0) & exists, group)
    }

    /// Calls `body` with the number of each block that this warp has.
    pub fn for_each_block(self, body: impl FnOnce(Value<'k, U32>)) {
        self.k
            .for_(self.k.warp(), self.extents.blocks(), WARPS, body);
    }
}
