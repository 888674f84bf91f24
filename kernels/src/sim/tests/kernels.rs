//! The repository's own kernels, as the assembler writes them.

use crate::ops::variants;
use crate::sim::parse;
use crate::sim::program;

#[test]
fn every_variant_decodes() {
    for listing in variants::all() {
        let assembled = listing.assemble();
        let text = &assembled.kernel.text;
        let decoded = parse::parse(text).and_then(|module| {
            let entry = &module.entries[0];
            program::decode(&module, entry, listing.arch, 8)
        });
        if let Err(fault) = decoded {
            panic!("{}", fault.in_kernel(&listing.name, text));
        }
    }
}
