//! What people see while stages run.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle, WeakProgressBar};

/// The time between two lines of progress if standard error is no terminal.
const QUIET_INTERVAL: Duration = Duration::from_secs(30);

/// One line of a stage: `calibrate  up to date`.
pub fn line(stage: &str, text: &str) {
    println!("{stage:<10} {text}");
}

/// Bars that may be on the terminal now.
static BARS: Mutex<Vec<WeakProgressBar>> = Mutex::new(Vec::new());

/// Clears every bar from the terminal, when the program is about to end.
pub fn clear_bars() {
    for bar in BARS.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(WeakProgressBar::upgrade) {
        bar.finish_and_clear();
    }
}

/// Count, rate and time left: a bar on a terminal, a line every half minute in a log.
pub struct Bar {
    bar: ProgressBar,
    stage: &'static str,
    unit: &'static str,
    /// When the last line was printed; none on a terminal.
    log: Option<Mutex<Instant>>,
}

/// A bar over `total` units of work.
pub fn bar(stage: &'static str, total: u64, unit: &'static str) -> Bar {
    let bar = ProgressBar::new(total);
    let template = format!("{stage:<10} {{bar:30}} {{pos}}/{{len}} {unit} ({{per_sec}}, {{eta}} left) {{msg}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    let mut bars = BARS.lock().unwrap_or_else(PoisonError::into_inner);
    bars.retain(|bar| bar.upgrade().is_some());
    bars.push(bar.downgrade());
    let log = (!std::io::stderr().is_terminal()).then(|| Mutex::new(Instant::now()));
    Bar { bar, stage, unit, log }
}

impl Bar {
    /// Adds `by` units of work that are done.
    pub fn inc(&self, by: u64) {
        self.bar.inc(by);
        let Some(Ok(mut last)) = self.log.as_ref().map(Mutex::lock) else { return };
        if last.elapsed() >= QUIET_INTERVAL {
            *last = Instant::now();
            let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
            let rate = done as f64 / self.bar.elapsed().as_secs_f64();
            let left = duration(Duration::from_secs_f64((total - done.min(total)) as f64 / rate.max(1e-9)));
            eprintln!(
                "{:<10} {done}/{total} {} ({rate:.1}/s, {left} left) {}",
                self.stage,
                self.unit,
                self.bar.message()
            );
        }
    }

    /// Sets the text that says what is being worked on.
    pub fn set_message(&self, message: String) {
        self.bar.set_message(message);
    }

    /// Ends the bar when the work is done.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// `1 h 02 min`, `3 min 20 s` or `4.2 s`.
pub fn duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        3600.. => format!("{} h {:02} min", s / 3600, s / 60 % 60),
        60.. => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{:.1} s", d.as_secs_f64()),
    }
}

/// `1.2 GB`, `35 MB` or `0.4 MB`.
pub fn bytes(n: u64) -> String {
    match n {
        1_000_000_000.. => format!("{:.1} GB", n as f64 / 1e9),
        10_000_000.. => format!("{:.0} MB", n as f64 / 1e6),
        _ => format!("{:.1} MB", n as f64 / 1e6),
    }
}
