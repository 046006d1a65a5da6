//! An SVG drawing that is readable in light and in dark mode.

use std::fmt::{Display, Write as _};

/// Colours by class, for light and for dark mode. Text uses the viewer's own fonts.
const STYLE: &str = "<style>\
text{font-family:system-ui,sans-serif;font-size:14px;fill:#24292f}\
.small{font-size:12px;fill:#57606a}.mono{font-family:ui-monospace,monospace;font-size:12px}.strong{font-weight:600}\
.box{fill:#eef4ff;stroke:#3b6fd4}.file{fill:#f6f8fa;stroke:#d0d7de}.code{fill:#fff4e5;stroke:#c77700}\
.line{stroke:#57606a;fill:none;stroke-width:1.5}.axis{stroke:#d0d7de}\
.a{fill:#3b6fd4}.b{fill:#c77700}.c{fill:#2a8a4a}.d{fill:#8a4fbf}\
@media (prefers-color-scheme: dark){text{fill:#e6edf3}.small{fill:#9da7b3}\
.box{fill:#16243d;stroke:#6ea0ff}.file{fill:#1b2027;stroke:#3d444d}.code{fill:#33240d;stroke:#e8a33d}\
.line{stroke:#9da7b3}.axis{stroke:#3d444d}.a{fill:#6ea0ff}.b{fill:#e8a33d}.c{fill:#56c27a}.d{fill:#b98be8}}\
</style>";

/// An unfinished drawing.
pub(super) struct Sheet {
    size: (u32, u32),
    title: String,
    body: String,
}

/// Which point of a text lies at its position.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Sheet {
    /// An empty sheet. `title` describes the drawing to people who cannot see it.
    pub(super) fn new(size: (u32, u32), title: &str) -> Self {
        Self { size, title: title.to_owned(), body: String::new() }
    }

    pub(super) fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64), round: f64) {
        let _ = writeln!(
            self.body,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"{round}\"/>"
        );
    }

    pub(super) fn text(&mut self, class: &str, anchor: Anchor, (x, y): (f64, f64), text: impl Display) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
        };
        let text = escaped(&text.to_string());
        let _ = writeln!(
            self.body,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    /// A line through `points` with an arrowhead at its end.
    pub(super) fn arrow(&mut self, points: &[(f64, f64)]) {
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ =
            writeln!(self.body, "<polyline class=\"line\" marker-end=\"url(#head)\" points=\"{}\"/>", path.join(" "));
    }

    pub(super) fn line(&mut self, (x, y): (f64, f64), length: f64) {
        let _ = writeln!(
            self.body,
            "<line class=\"axis\" x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/>",
            x + length
        );
    }

    /// Bars up and down from a line, one for each number; `scale` is the height of 1.
    pub(super) fn bars(&mut self, class: &str, (x, y): (f64, f64), numbers: &[f32], step: f64, scale: f64) {
        self.line((x, y), step * numbers.len() as f64);
        for (at, number) in numbers.iter().enumerate() {
            let height = f64::from(*number) * scale;
            let top = if height > 0.0 { y - height } else { y };
            self.rect(class, (x + at as f64 * step, top), (step - 1.0, height.abs()), 0.0);
        }
    }

    pub(super) fn finish(self) -> String {
        let (width, height) = self.size;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             role=\"img\">\n<title>{}</title>\n{STYLE}\n<defs><marker id=\"head\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" \
             markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\"><path class=\"line\" d=\"M0,0 L7,4 L0,8\"/></marker></defs>\n{}</svg>\n",
            escaped(&self.title),
            self.body
        )
    }
}
