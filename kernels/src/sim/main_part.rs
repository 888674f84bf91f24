//! Where a kernel spends its time: what must be free of bank conflicts and half-used sectors.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use super::profile::{LineProfile, Profile};

/// The loops of a text, outermost ones only: from a label to the last branch back to it.
fn loops(text: &str) -> Vec<RangeInclusive<u32>> {
    let mut labels = HashMap::new();
    let mut ends: HashMap<&str, u32> = HashMap::new();
    for (line, number) in text.lines().zip(1u32..) {
        let line = line.trim();
        if let Some(label) = line.strip_suffix(':') {
            labels.insert(label, number);
        }
        let target = line.strip_suffix(';').and_then(|l| l.rsplit_once("bra "));
        if let Some((_, label)) = target.filter(|(_, label)| labels.contains_key(label)) {
            ends.insert(label, number);
        }
    }
    let mut loops: Vec<_> = ends
        .iter()
        .map(|(label, end)| labels[label]..=*end)
        .collect();
    loops.sort_by_key(|l| *l.start());
    let mut outermost: Vec<RangeInclusive<u32>> = vec![];
    for next in loops {
        if outermost
            .last()
            .is_none_or(|last| next.start() > last.end())
        {
            outermost.push(next);
        }
    }
    outermost
}

impl Profile {
    /// The lines of the kernel's main loop: the outermost one that issues at least half of all instructions. Where none
    /// does, as when everything meets at once, the lines outside of all loops.
    pub fn main_part(&self, text: &str) -> Vec<&LineProfile> {
        let loops = loops(text);
        let within = |l: &LineProfile, range: &RangeInclusive<u32>| range.contains(&l.line);
        let issued = |range: &RangeInclusive<u32>| -> u64 {
            let lines = self.lines.iter().filter(|l| within(l, range));
            lines.map(|l| l.counts.warps).sum()
        };
        let all: u64 = self.lines.iter().map(|l| l.counts.warps).sum();
        let main = loops.iter().find(|range| 2 * issued(range) >= all);
        let inside = |l: &&LineProfile| match main {
            Some(main) => within(l, main),
            None => !loops.iter().any(|range| within(l, range)),
        };
        self.lines.iter().filter(inside).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Class, Counts};
    use super::*;

    fn profile(warps: &[u64]) -> Profile {
        let line = |(&warps, line)| LineProfile {
            line,
            class: Class::Integer,
            counts: Counts {
                warps,
                ..Counts::default()
            },
        };
        Profile {
            lines: warps.iter().zip(1..).map(line).collect(),
            ..Profile::default()
        }
    }

    #[test]
    fn the_main_loop_is_the_outermost_one_that_does_the_work() {
        let text = "start;\nLOOP_1:\ninner;\nLOOP_2:\nmore;\n@%p1 bra LOOP_2;\nbra LOOP_1;\nLOOP_1_END:\nend;\nLOOP_3:\n@%p2 bra LOOP_3;";
        let lines = |warps: &[u64]| -> Vec<u32> {
            let profile = profile(warps);
            profile.main_part(text).iter().map(|l| l.line).collect()
        };
        let busy = [1, 0, 10, 0, 40, 40, 10, 0, 1, 0, 20];
        assert_eq!(lines(&busy), [2, 3, 4, 5, 6, 7]);
        let idle = [90, 0, 1, 0, 4, 4, 1, 0, 50, 0, 2];
        assert_eq!(lines(&idle), [1, 8, 9]);
    }
}
