//! The GPU's draws on the simulated GPU: the CPU's, bit for bit.

use super::ptx::{Counters, Distribution, config};
use crate::ptx::Storage;
use crate::random::{self, Draw};
use crate::testing::gpu::encode;
use crate::testing::operands::{Operand, simulate};

#[test]
fn draws_are_the_cpus_bit_for_bit() {
    let draw = Draw {
        step: 17,
        first_sample: 3,
        ..Draw::named(0x1234_5678_9ABC, "decoder.noise", 2)
    };
    for distribution in [Distribution::Normal, Distribution::Uniform] {
        for (samples, per_sample) in [(1, 1), (3, 5), (2, 1024), (5, 407)] {
            let mut want = vec![0.0f32; samples * per_sample];
            match distribution {
                Distribution::Normal => random::normal(&mut want, &draw, per_sample, 0.02),
                Distribution::Uniform => random::uniform(&mut want, &draw, per_sample, -0.5, 0.25),
            }
            let (scale, offset) = match distribution {
                Distribution::Normal => (0.02, 0.0),
                Distribution::Uniform => (0.75, -0.5),
            };
            for storage in Storage::ALL {
                let plan = config(distribution, storage, samples, per_sample).expect("few");
                let operands = [
                    Operand::Out(want.len() * storage.bytes() as usize),
                    Operand::In(bytemuck::bytes_of(&Counters::from(draw)).to_vec()),
                    Operand::U32(draw.key[0]),
                    Operand::U32(draw.key[1]),
                    Operand::U32(draw.stream),
                    Operand::U32(samples as u32),
                    Operand::U32(per_sample as u32),
                    Operand::F32(scale),
                    Operand::F32(offset),
                ];
                let (outputs, _) = simulate(&plan, &operands);
                let case = format!("{distribution:?} {samples} x {per_sample} {storage:?}");
                assert!(outputs[0] == encode(storage, &want), "{case}");
            }
        }
    }
}
