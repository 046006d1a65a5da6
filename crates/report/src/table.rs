//! Tables in Markdown, row by row.

use std::fmt::{self, Write as _};

/// Alignment of a column's cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cells {
    /// Texts, aligned to the left.
    Text,
    /// Numbers, aligned to the right.
    Number,
}

/// A table that is being built.
#[derive(Clone, Debug)]
pub struct Table(String);

impl Table {
    /// A table without rows.
    pub fn new<H: fmt::Display>(columns: impl IntoIterator<Item = (H, Cells)>) -> Self {
        let (headings, cells): (Vec<H>, Vec<Cells>) = columns.into_iter().unzip();
        let mut table = Self(String::new());
        table.row(headings);
        table.0.push('|');
        for cells in cells {
            table.0 += if cells == Cells::Text { "---|" } else { "--:|" };
        }
        table.0.push('\n');
        table
    }

    /// A table with columns of texts, then columns of numbers.
    pub fn of<'h>(texts: impl IntoIterator<Item = &'h str>, numbers: impl IntoIterator<Item = &'h str>) -> Self {
        let texts = texts.into_iter().map(|heading| (heading, Cells::Text));
        Self::new(texts.chain(numbers.into_iter().map(|heading| (heading, Cells::Number))))
    }

    /// Adds a row.
    pub fn row<C: fmt::Display>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.0.push('|');
        for cell in cells {
            // Writing to a string cannot fail.
            let _ = write!(self.0, " {cell} |");
        }
        self.0.push('\n');
    }

    /// The text of the table. Each line ends with a line break.
    pub fn into_text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stand_left_and_numbers_right() {
        let mut table = Table::of(["scheme"], ["bits", "KL"]);
        table.row(["csr-4".to_owned(), format!("{:.2}", 1.0), String::new()]);
        assert_eq!(table.into_text(), "| scheme | bits | KL |\n|---|--:|--:|\n| csr-4 | 1.00 |  |\n");
    }
}
