//! Values that are shown under a cell.

use std::fmt::Write as _;

use kvcsr_codec::{DictionaryGroup, DictionarySet, Footprint, SparseCodes};

use crate::{html, page::escaped};

/// A value that is shown as HTML under a notebook's cell if it is the last value of the cell.
pub trait Shown {
    /// The HTML.
    fn html(&self) -> String;

    /// The HTML as a new value for the end of a cell. The kernel shows nothing if the last value of a cell consumes a variable.
    fn shown(&self) -> Html {
        Html(self.html())
    }

    /// Called by the evcxr kernel.
    fn evcxr_display(&self) {
        println!("EVCXR_BEGIN_CONTENT text/html\n{}\nEVCXR_END_CONTENT", self.html());
    }
}

/// HTML for the last line of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Html(pub String);

impl Shown for Html {
    fn html(&self) -> String {
        self.0.clone()
    }
}

/// A Markdown table or text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Markdown(String);

impl Markdown {
    /// Shows `text`, which is only borrowed. The kernel shows nothing if the last value of a cell consumes a variable.
    pub fn of(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl Shown for Markdown {
    fn html(&self) -> String {
        markdown(&self.0)
    }
}

/// Converts Markdown to HTML with left-aligned columns, unless a column says otherwise. Jupyter's own style aligns all to the
/// right.
fn markdown(text: &str) -> String {
    let html = html::markdown(text);
    html.replace("<th>", "<th style=\"text-align: left\">").replace("<td>", "<td style=\"text-align: left\">")
}

/// One line per dictionary. Neighbouring layers that each have their own dictionary share a line if it has the same text.
impl Shown for DictionarySet {
    fn html(&self) -> String {
        let mut text = format!(
            "{} dictionaries for heads of {} channels\n\n| kind | layers | atoms | width | chunks | trained at | bytes each |\n|---|---|--:|--:|--:|--:|--:|\n",
            self.groups.len(),
            self.head_dim
        );
        let same = |a: &DictionaryGroup, b: &DictionaryGroup| {
            let next = matches!((&a.layers[..], &b.layers[..]), (&[a], &[b]) if b == a + 1);
            next && columns(a) == columns(b) && a.kind == b.kind
        };
        for run in self.groups.chunk_by(same) {
            let layers = match (&run[0].layers[..], &run[run.len() - 1].layers[..]) {
                (&[first], &[last]) if first != last => format!("{first} to {last}, one each"),
                (layers, _) => crate::records::spaced(layers),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {} | {layers} | {} |", run[0].kind, columns(&run[0]));
        }
        markdown(&text)
    }
}

fn columns(group: &DictionaryGroup) -> String {
    let d = &group.dictionary;
    format!("{} | {} | {} | s = {} | {}", d.len(), d.width(), group.chunks, group.sparsity, d.bytes())
}

impl Shown for Footprint {
    fn html(&self) -> String {
        let mut text = String::from("| part | bytes | share |\n|---|--:|--:|\n");
        for (part, bytes) in self.parts().filter(|(_, bytes)| *bytes > 0) {
            let _ = writeln!(text, "| {part} | {bytes} | {:.1} % |", 100.0 * bytes as f64 / self.total() as f64);
        }
        let _ = writeln!(text, "| **all** | {} | |", self.total());
        markdown(&text)
    }
}

impl Shown for SparseCodes {
    fn html(&self) -> String {
        const ROWS: usize = 8;
        let mut text =
            format!("{} rows of {} atoms\n\n| row | coefficient × atom |\n|--:|---|\n", self.rows(), self.sparsity());
        for row in 0..self.rows().min(ROWS) {
            let (atoms, coefficients) = self.row(row);
            let terms: Vec<String> =
                atoms.iter().zip(coefficients).map(|(atom, c)| format!("{:+.3} × {atom}", c.to_f32())).collect();
            let _ = writeln!(text, "| {row} | {} |", terms.join(", "));
        }
        markdown(&text)
    }
}

/// The figures and tables of a report's page, under a cell.
impl Shown for crate::page::Page {
    fn html(&self) -> String {
        format!(
            "<iframe style=\"width:100%;height:40rem;border:0\" srcdoc=\"{}\"></iframe>",
            escaped(&html::html(self))
        )
    }
}

/// A polars table with at most 20 rows. Numbers are right-aligned.
#[cfg(feature = "tables")]
impl Shown for polars::prelude::DataFrame {
    fn html(&self) -> String {
        const ROWS: usize = 20;
        let names: Vec<String> = self.get_column_names().iter().map(|name| name.to_string()).collect();
        let columns: Vec<crate::tables::MarkdownColumn<'_>> =
            names.iter().map(|name| crate::tables::MarkdownColumn { name, heading: name, decimals: None }).collect();
        let rows = self.height();
        match crate::tables::markdown(&self.head(Some(ROWS)), &columns) {
            Ok(table) if rows > ROWS => markdown(&format!("{table}\n{ROWS} of {rows} rows\n")),
            Ok(table) => markdown(&table),
            Err(error) => markdown(&error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_as_tables() {
        let mut codes = SparseCodes::new(2);
        codes.append(&[0, 1], &[1.0, -2.0]);
        let html = codes.html();
        assert!(
            html.contains("<table>") && html.contains("<td style=\"text-align: left\">") && html.contains("-2.000 × 1"),
            "{html}"
        );
        let footprint = Footprint { indices: 30, coefficients: 10, ..Footprint::default() };
        assert!(footprint.html().contains("75.0 %"), "{}", footprint.html());
    }

    #[cfg(feature = "tables")]
    #[test]
    fn a_polars_table_is_shown_up_to_a_length() -> Result<(), Box<dyn std::error::Error>> {
        let numbers: Vec<f64> = (0..50).map(f64::from).collect();
        let frame = polars::df!["scheme" => vec!["a|b"; 50], "kl" => numbers]?;
        let html = frame.html();
        assert_eq!(html.matches("<tr>").count(), 21, "{html}");
        assert!(html.contains("a|b") && html.contains("20 of 50 rows") && html.contains("text-align: right"), "{html}");
        Ok(())
    }
}
