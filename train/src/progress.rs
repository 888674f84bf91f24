//! What a person sees while something runs: a bar with the time left on a terminal, a line every so often elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Progress of one phase.
pub struct Progress {
    bar: Option<ProgressBar>,
    name: String,
    total: u64,
    started: Instant,
    last_line: Instant,
}

/// Time between lines of a phase that has none of its own.
const QUIET: Duration = Duration::from_secs(10);

impl Progress {
    pub fn new(name: &str, total: u64, done: u64) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_position(done);
            let style = ProgressStyle::with_template(
                "{prefix:>10} {wide_bar:.cyan} {pos}/{len} {msg} [{elapsed} < {eta}]",
            );
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(name.to_owned());
            bar.reset_eta();
            bar
        });
        Progress {
            bar,
            name: name.to_owned(),
            total,
            started: Instant::now(),
            last_line: Instant::now(),
        }
    }

    /// Moves on; `message` is shown beside the bar.
    pub fn set(&mut self, done: u64, message: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_message(message());
            bar.set_position(done);
        }
    }

    /// Moves on in a phase without step lines of its own: prints one itself now and then.
    pub fn count(&mut self, done: u64) {
        self.set(done, String::new);
        if self.bar.is_none() && self.last_line.elapsed() > QUIET {
            self.last_line = Instant::now();
            println!("{} {done}/{}", self.name, self.total);
        }
    }

    /// A line that stays.
    pub fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => println!("{line}"),
        }
    }

    /// A line of the phase's own, where there is no bar that says the same.
    pub fn step_line(&self, line: &str) {
        if self.bar.is_none() {
            println!("{line}");
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `1:05:09`, `12:34`, `0:07`.
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if h > 0 {
        format!("{h}:{m:02}:{s:02}")
    } else {
        format!("{m}:{s:02}")
    }
}

/// What a step line says.
#[derive(Clone, Copy, Debug)]
pub struct StepLine {
    /// Steps done.
    pub step: u64,
    pub steps: u64,
    pub loss: f64,
    pub norm: f64,
    pub lr: f64,
    pub seconds_per_step: f64,
    pub samples_per_second: f64,
}

impl StepLine {
    fn left(&self) -> String {
        let seconds = self.seconds_per_step * self.steps.saturating_sub(self.step) as f64;
        clock(Duration::from_secs_f64(seconds.clamp(0.0, 1e9)))
    }

    /// What goes beside a bar, which shows step and time itself.
    pub fn short(&self) -> String {
        format!("loss {:.4} {:.0} img/s", self.loss, self.samples_per_second)
    }
}

impl std::fmt::Display for StepLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "step {}/{} | loss {:.4} | norm {:.3} | lr {:.2e} | {:.1} ms | {:.0} img/s | eta {}",
            self.step,
            self.steps,
            self.loss,
            self.norm,
            self.lr,
            self.seconds_per_step * 1e3,
            self.samples_per_second,
            self.left()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_line_reads_as_documented() {
        let line = StepLine {
            step: 120,
            steps: 3000,
            loss: 0.123_456,
            norm: 0.5,
            lr: 1e-3,
            seconds_per_step: 0.0142,
            samples_per_second: 4507.0,
        };
        assert_eq!(
            line.to_string(),
            "step 120/3000 | loss 0.1235 | norm 0.500 | lr 1.00e-3 | 14.2 ms | 4507 img/s | eta 0:40"
        );
        assert_eq!(clock(Duration::from_secs(3909)), "1:05:09");
    }
}
