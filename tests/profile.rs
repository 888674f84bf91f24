//! The committed table of what kernels do on the simulated GPU keeps what the kernels promise: no bank conflicts in the main
//! loops of products, convolution and attention, and whole sectors in their loads; streaming kernels that move what they must;
//! no spills. `unclip kernels profile > benches/runs/<date>-sim-profile-<commit>/summary.md` makes a new one.

use std::path::PathBuf;

use autograd::harness::profile::Row;
use autograd::ops::ALL;

/// The latest table: folders are named by their dates.
fn table() -> String {
    let runs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/runs");
    let folders = std::fs::read_dir(&runs).expect("runs are kept in the repository");
    let names = folders.map(|folder| folder.expect("a readable folder").file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    let latest = names.filter(|name| name.contains("-sim-profile")).max();
    let path = runs.join(latest.expect("a table")).join("summary.md");
    std::fs::read_to_string(path).expect("a table")
}

#[test]
fn the_committed_table_keeps_what_kernels_promise() {
    let table = table();
    let rows: Vec<Row> = table.lines().filter_map(Row::parse).collect();
    let of_rows = rows.iter().flat_map(|row| {
        let of_kernel = |what| format!("{} {what}", row.kernel);
        row.broken().into_iter().map(of_kernel)
    });
    let of_passes = table.lines().filter_map(|l| l.strip_prefix("BROKEN: "));
    let broken: Vec<String> = of_rows.chain(of_passes.map(str::to_string)).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(
        rows.iter().all(|row| row.assembled.is_some()),
        "the table was made without ptxas"
    );
    for op in ALL {
        let heading = format!("### {}/", op.name());
        assert!(
            table.contains(&heading),
            "no {} in the table: make it anew",
            op.name()
        );
    }
    for kernel in [
        "matmul_product",
        "conv2d_backward_weight",
        "attention_key_gradients",
    ] {
        let there = |row: &Row| row.kernel.starts_with(kernel) && row.sectors > 0;
        assert!(rows.iter().any(there), "no {kernel} in the table");
    }
}
