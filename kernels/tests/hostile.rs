//! PTX text is hostile input: whatever it says, the simulated GPU refuses it or runs it, without a panic, in bounded memory
//! and time.
//!
//! Texts are those of `hostile/`, each with one way to hurt, and the repository's own kernels, both as they are and mutated.
//! A text that once did harm belongs into the folder. `UNCLIP_TESTS=full` mutates fifty times as many.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kernels::launch::{Arch, Argument, Kernel, Launch};
use kernels::ops::variants;
use kernels::sim::{self, Options};

/// The system's allocator, and how much of it is in use.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn taken(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: every call is passed on as it is; counting touches no memory that was handed out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller's promise is the one that System asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Memory that any launch may take: registers, variables and shared memory up to the simulator's limits, and what it keeps
/// of every byte to find races.
const MEMORY: usize = 512 << 20;
/// And for each byte of text: tokens, instructions, errors.
const MEMORY_OF_A_BYTE: usize = 100;
/// Far above what any text takes in an optimised build on a busy machine.
const TIME: Duration = Duration::from_secs(20);

/// SplitMix64 (Steele, Lea & Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }

    fn choose<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// A text with the launch that it is run by.
struct Subject {
    label: String,
    entry: String,
    arch: Arch,
    text: String,
    block: [u32; 3],
    cluster: [u32; 3],
    shared_bytes: u32,
}

/// What the entry's parameters might want, by what stands before its body; arguments that do not fit are refused.
fn arguments<'a>(text: &str, memory: &'a mut [Vec<u8>]) -> Vec<Argument<'a>> {
    let entry = text.find(".entry").unwrap_or(0);
    let header = text[entry..].split('{').next().unwrap_or("");
    let mut memory = memory.iter_mut();
    let declared = header.split(".param").skip(1);
    let argument = |declaration: &str| match declaration {
        d if d.contains(".ptr") => memory
            .next()
            .map_or(Argument::Null, |m| Argument::Update(m)),
        d if d.contains("[128]") => Argument::Bytes(&[0; 128]),
        d if d.contains(".u64") => Argument::U64(70),
        d if d.contains(".f32") => Argument::F32(0.5),
        _ => Argument::U32(7),
    };
    declared.map(argument).collect()
}

impl Subject {
    /// Parses, decodes and runs it for a while; what comes out does not matter.
    fn attempt(&self) {
        let kernel = Kernel {
            name: self.entry.clone(),
            arch: self.arch,
            text: self.text.clone(),
        };
        let launch = Launch {
            grid: self.cluster,
            block: self.block,
            cluster: self.cluster,
            shared_bytes: self.shared_bytes,
        };
        let options = Options {
            max_warp_instructions: 2000,
            ..Options::default()
        };
        let mut memory = vec![vec![1; 4096]; 16];
        let mut arguments = arguments(&self.text, &mut memory);
        let _ = sim::run(&kernel, &launch, &mut arguments, &options);
    }

    /// What it did that no text may do.
    fn harm(&self) -> Option<String> {
        let start = Instant::now();
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let survived = catch_unwind(AssertUnwindSafe(|| self.attempt())).is_ok();
        let memory = PEAK.load(Ordering::Relaxed).saturating_sub(before);
        let allowed = MEMORY + MEMORY_OF_A_BYTE * self.text.len();
        if !survived {
            Some("panics".to_string())
        } else if memory > allowed {
            Some(format!("takes {memory} bytes of memory, allowed {allowed}"))
        } else if start.elapsed() > TIME {
            Some(format!("takes {:?}", start.elapsed()))
        } else {
            None
        }
    }
}

/// The committed texts, for both archs.
fn corpus() -> Vec<Subject> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile");
    let entries = std::fs::read_dir(&folder).expect("the folder is in the repository");
    let mut paths: Vec<_> = entries
        .map(|e| e.expect("a readable folder").path())
        .collect();
    paths.sort();
    let mut subjects = vec![];
    for path in paths {
        let bytes = std::fs::read(&path).expect("a readable file");
        for arch in [Arch::Sm80, Arch::Sm90a] {
            subjects.push(Subject {
                label: format!("{} for {arch}", path.display()),
                entry: "test".to_string(),
                arch,
                text: String::from_utf8_lossy(&bytes).into_owned(),
                block: [64, 1, 1],
                cluster: [1; 3],
                shared_bytes: 1024,
            });
        }
    }
    subjects
}

/// Every `step`th kernel of the repository.
fn own_kernels(step: usize) -> Vec<Subject> {
    let listings = variants::all().into_iter().step_by(step);
    let subject = |listing: variants::Listing| {
        let assembled = listing.assemble();
        Subject {
            label: listing.name,
            entry: assembled.kernel.name,
            arch: assembled.kernel.arch,
            text: assembled.kernel.text,
            block: assembled.block,
            cluster: assembled.cluster,
            shared_bytes: assembled.shared_bytes,
        }
    };
    listings.map(subject).collect()
}

/// Where words, numbers and modifiers begin and end.
fn tokens(text: &str) -> Vec<std::ops::Range<usize>> {
    let part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'%' | b'$');
    let mut found = vec![];
    let mut start = None;
    for (at, byte) in text.bytes().enumerate() {
        match (start, part(byte)) {
            (None, true) => start = Some(at),
            (Some(first), false) => {
                found.push(first..at);
                start = None;
            }
            _ => {}
        }
    }
    found
}

const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "4294967295",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "0xFFFFFFFFFFFFFFFFFFFFFFFF",
    "1e999999999",
    "0f7FC00000",
    "0dFFFFFFFFFFFFFFFF",
    "08",
];
const BRACKETS: [&str; 8] = ["{", "}", "[", "]", "(", "<", "|", "@"];

/// One change of the text, which stays ASCII where it was.
fn mutate(text: &mut String, donor: &str, random: &mut Random) {
    let places = tokens(text);
    if places.is_empty() {
        text.push_str(donor);
        return;
    }
    let place = places[random.below(places.len())].clone();
    let other = places[random.below(places.len())].clone();
    let line = |text: &str, at: usize| {
        let first = text[..at].rfind('\n').map_or(0, |i| i + 1);
        let last = text[at..].find('\n').map_or(text.len(), |i| at + i);
        first..last
    };
    match random.below(10) {
        0 => text.truncate(place.start),
        1 => {
            let mut bytes = std::mem::take(text).into_bytes();
            for _ in 0..=random.below(8) {
                let at = random.below(bytes.len());
                bytes[at] = random.below(256) as u8;
            }
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        2 => {
            let copy = text[other].to_string();
            text.replace_range(place, &copy);
        }
        3 => text.replace_range(place, random.choose(&NUMBERS)),
        4 => {
            let count = [1, 50, 20_000][random.below(3)];
            text.insert_str(place.start, &random.choose(&BRACKETS).repeat(count));
        }
        5 => {
            let long = random.choose(&["x", " ", ".f32", "%r1,", "-", "::"]);
            text.insert_str(place.start, &long.repeat(50_000));
        }
        6 => {
            let copy = text[line(text, other.start)].to_string() + "\n";
            let count = [1, 2, 3000][random.below(3)];
            text.insert_str(line(text, place.start).start, &copy.repeat(count));
        }
        7 => text.replace_range(line(text, place.start), ""),
        8 => {
            let foreign = tokens(donor);
            if let Some(from) = foreign.get(random.below(foreign.len())) {
                let copy = donor[line(donor, from.start)].to_string() + "\n";
                text.insert_str(line(text, place.start).start, &copy);
            }
        }
        _ => text.replace_range(place, ""),
    }
}

/// Everything in one test: memory is counted for the whole process.
#[test]
fn no_text_does_harm() {
    let full = std::env::var("UNCLIP_TESTS").is_ok_and(|tests| tests == "full");
    let mut harmful = vec![];
    let mut report = |subject: &Subject, what: Option<String>| {
        harmful.extend(what.map(|what| format!("{}: {what}", subject.label)));
    };
    let corpus = corpus();
    assert!(corpus.len() >= 40, "the folder of texts is there");
    for subject in &corpus {
        report(subject, subject.harm());
    }
    let own = own_kernels(if full { 1 } else { 16 });
    for subject in &own {
        report(subject, subject.harm());
    }
    let (everyday, all) = (300, 15_000);
    let count = if full { all } else { everyday };
    let bases: Vec<&Subject> = corpus.iter().chain(&own).collect();
    for seed in 0..count {
        let mut random = Random(seed);
        let base = bases[random.below(bases.len())];
        let donor = bases[random.below(bases.len())];
        let mut text = base.text.clone();
        for _ in 0..=random.below(4) {
            mutate(&mut text, &donor.text, &mut random);
        }
        let subject = Subject {
            label: format!("mutant {seed} of {}", base.label),
            entry: base.entry.clone(),
            text,
            ..*base
        };
        let harm = subject.harm();
        if harm.is_some() {
            // What did harm is kept, to become a file of the folder.
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mutant_{seed}.ptx"));
            std::fs::write(&kept, &subject.text).expect("cargo's folder can be written");
        }
        report(&subject, harm);
    }
    // Nothing can be done where standard error is closed.
    let _ = writeln!(
        std::io::stderr(),
        "hostile texts: {} of the folder, {} kernels, {count} mutants; {} mutants skipped (UNCLIP_TESTS=full runs them)",
        corpus.len(),
        own.len(),
        all - count
    );
    assert!(harmful.is_empty(), "{}", harmful.join("\n"));
}
