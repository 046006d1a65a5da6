//! What people see while stages run.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// One line of a stage: `calibrate    up to date`.
pub fn line(stage: &str, text: &str) {
    println!("{stage:<10} {text}");
}

/// A bar with count, rate and time left. Where standard error is no terminal, nothing is drawn.
pub fn bar(stage: &str, total: u64, unit: &str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let template = format!("{stage:<10} {{bar:30}} {{pos}}/{{len}} {unit} ({{per_sec}}, {{eta}} left) {{msg}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
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
