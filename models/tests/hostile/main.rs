//! Files that mean harm: whatever they hold, reading them ends with a sentence or a model, never with a panic, and takes
//! no more memory than they justify.
//!
//! `corpus` holds what is known to break readers, by the kind of file. Each is read as it is, then changed at random for a
//! bounded time (`UNCLIP_FUZZ_SECONDS` for each kind, 2 unless set). All of it happens in a process of its own, whose
//! memory is limited; the file that it died of stays where the failure says.

mod mutate;
mod targets;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use targets::{TARGETS, Target};

/// Set in the process that reads the files: where they are written.
const CHILD: &str = "UNCLIP_FUZZ_DIR";
/// Address space of that process, in KiB. The largest file here is a thousandth of it.
const MEMORY: u64 = 3 << 20;

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/corpus");
    let files = std::fs::read_dir(dir.join(target.name)).unwrap();
    let mut seeds: Vec<(String, Vec<u8>)> = files
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    seeds.sort();
    seeds.extend((target.made)());
    seeds
}

fn seconds() -> u64 {
    let set = std::env::var("UNCLIP_FUZZ_SECONDS").ok();
    set.map_or(2, |seconds| seconds.parse().unwrap())
}

/// Every seed, then changed seeds until the time is over.
fn attack(target: &Target, dir: &Path) {
    let seeds = corpus(target);
    let read = |name: &str, bytes: &[u8]| {
        // On the disk before it is read, so that it outlives this process.
        std::fs::write(dir.join("input"), bytes).unwrap();
        std::fs::write(dir.join("input.name"), format!("{} {name}", target.name)).unwrap();
        // Whatever is said: what counts is that something is.
        drop((target.read)(dir, name, bytes));
    };
    for (name, bytes) in &seeds {
        read(name, bytes);
    }
    let end = Instant::now() + Duration::from_secs(seconds());
    let mut count = 0u64;
    while Instant::now() < end {
        let mut random = mutate::Random::new(target.name, count);
        let (name, bytes) = &seeds[random.below(seeds.len())];
        let (_, other) = &seeds[random.below(seeds.len())];
        read(name, &mutate::changed(bytes, other, &mut random));
        count += 1;
    }
    println!(
        "{}: {} files, {count} changed ones",
        target.name,
        seeds.len()
    );
}

#[test]
fn hostile_files_end_with_a_sentence() {
    if let Ok(dir) = std::env::var(CHILD) {
        TARGETS
            .iter()
            .for_each(|target| attack(target, Path::new(&dir)));
        return;
    }
    let dir =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("hostile-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let this = std::env::current_exe().unwrap();
    let limited = format!(
        "ulimit -v {MEMORY}; exec \"$0\" --exact hostile_files_end_with_a_sentence --nocapture"
    );
    let output = Command::new("sh")
        .args(["-c", &limited])
        .arg(this)
        .env(CHILD, &dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(
        output.status.success(),
        "{} is the file, {} what it stands for\n{}",
        dir.join("input").display(),
        std::fs::read_to_string(dir.join("input.name")).unwrap_or_default(),
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Known files, with the words that must be in what is said of them.
#[test]
fn known_files_are_refused_in_words() {
    for target in TARGETS {
        for (name, bytes) in corpus(target) {
            let dir = tempfile::tempdir().unwrap();
            let outcome = (target.read)(dir.path(), &name, &bytes);
            match (outcome, name.starts_with("good")) {
                (Ok(()), true) => {}
                (Err(said), false) => {
                    let short = !said.trim().is_empty() && !said.contains("panicked");
                    assert!(short, "{} {name}: {said}", target.name);
                }
                (Ok(()), false) => panic!("{} {name} was accepted", target.name),
                (Err(said), true) => panic!("{} {name}: {said}", target.name),
            }
        }
    }
}
