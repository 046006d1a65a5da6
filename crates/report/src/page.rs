//! A report as a list of sections. The same blocks are written as Markdown for repositories and as HTML for browsers.
//!
//! Texts are GitHub's Markdown, including tables. [`crate::html`] writes the HTML.

use std::fmt::Write as _;

/// A whole report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The heading.
    pub title: String,
    /// The subject of the report, in Markdown.
    pub lead: String,
    /// The sections, in order.
    pub sections: Vec<Section>,
}

/// One section: what it shows, and the command that makes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Section {
    /// The heading.
    pub title: String,
    /// The command that makes the content. Empty if there is none.
    pub command: String,
    /// Texts, tables and figures, in order.
    pub blocks: Vec<Block>,
}

/// A piece of a section.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// Markdown: paragraphs and tables.
    Markdown(String),
    /// A drawing with its caption.
    Figure {
        /// The stem of the names of its files.
        name: String,
        /// The drawing as the text of an SVG file.
        svg: String,
        /// What the figure shows, in plain sentences.
        caption: String,
    },
    /// Markdown that is hidden until the reader opens it: long tables, configurations.
    Folded {
        /// The line that is always visible.
        summary: String,
        /// The hidden text.
        text: String,
    },
    /// The reason why the section has nothing to show.
    Absent(String),
    /// Names of data files in the folder of the page.
    Files(Vec<String>),
}

impl Section {
    /// The name that links inside the page use: lower-case letters, digits and dashes.
    pub fn anchor(&self) -> String {
        let mut anchor = String::new();
        for c in self.title.chars() {
            if c.is_alphanumeric() {
                anchor.extend(c.to_lowercase());
            } else if !anchor.is_empty() && !anchor.ends_with('-') {
                anchor.push('-');
            }
        }
        anchor.trim_end_matches('-').to_owned()
    }
}

impl Section {
    /// True if there is nothing to show because the command was not run.
    pub fn is_absent(&self) -> bool {
        self.blocks.iter().all(|block| matches!(block, Block::Absent(_)))
    }

    fn markdown(&self) -> String {
        let mut text = format!("## {}\n", self.title);
        if !self.command.is_empty() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n`{}`\n", self.command);
        }
        for block in &self.blocks {
            let _ = match block {
                Block::Markdown(markdown) => write!(text, "\n{}\n", markdown.trim()),
                Block::Figure { name, caption, .. } => write!(text, "\n![{name}]({name}.svg)\n\n{caption}\n"),
                Block::Folded { summary, text: folded } => {
                    write!(
                        text,
                        "\n<details><summary>{}</summary>\n\n{}\n\n</details>\n",
                        escaped(summary),
                        folded.trim()
                    )
                }
                Block::Absent(reason) => write!(text, "\n*{reason}*\n"),
                Block::Files(names) => {
                    let links: Vec<String> = names.iter().map(|name| format!("[{name}]({name})")).collect();
                    write!(text, "\nData: {}\n", links.join(", "))
                }
            };
        }
        text
    }
}

impl Page {
    /// The page as Markdown. Figures are links to their SVG files in the folder of the page.
    pub fn markdown(&self) -> String {
        self.markdown_over("")
    }

    /// The page as Markdown. If a section of this page has nothing to show, the section of a page published earlier replaces it.
    pub fn markdown_over(&self, published: &str) -> String {
        let before: Vec<&str> = published.split("\n## ").skip(1).collect();
        let mut text = format!("# {}\n\n{}\n", self.title, self.lead.trim());
        for section in &self.sections {
            let heading = format!("{}\n", section.title);
            let kept = before.iter().find(|old| section.is_absent() && old.starts_with(&heading));
            text += "\n";
            match kept {
                Some(old) => text += &format!("## {}\n", old.trim_end()),
                None => text += &section.markdown(),
            }
        }
        text
    }
}

/// Escapes a text for HTML elements and quoted attributes.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_plain_words() {
        let anchor = |title: &str| Section { title: title.to_owned(), ..Section::default() }.anchor();
        assert_eq!(anchor("After compression, all texts"), "after-compression-all-texts");
        assert_eq!(anchor("\"Figure 3\" <b>"), "figure-3-b");
    }

    #[test]
    fn markdown_names_the_command_and_what_is_absent() {
        let page = Page {
            title: "Results".to_owned(),
            lead: "Lead.".to_owned(),
            sections: vec![Section {
                title: "Part".to_owned(),
                command: "just part".to_owned(),
                blocks: vec![Block::Absent("Not run.".to_owned()), Block::Files(vec!["a.csv".to_owned()])],
            }],
        };
        let expected = "# Results\n\nLead.\n\n## Part\n\n`just part`\n\n*Not run.*\n\nData: [a.csv](a.csv)\n";
        assert_eq!(page.markdown(), expected);
    }

    #[test]
    fn what_was_not_run_keeps_what_was_published() {
        let section = |title: &str, block: Block| Section {
            title: title.to_owned(),
            command: String::new(),
            blocks: vec![block],
        };
        let text = |text: &str| Block::Markdown(text.to_owned());
        let page = |sections: Vec<Section>| Page { title: "R".to_owned(), lead: "L".to_owned(), sections };
        let old = page(vec![section("One", text("old one")), section("Two", text("old two\n\n### Part\n\nmore"))]);
        let absent = || Block::Absent("Not run.".to_owned());
        let new = page(vec![section("One", text("new one")), section("Two", absent()), section("Three", absent())]);
        let expected =
            "# R\n\nL\n\n## One\n\nnew one\n\n## Two\n\nold two\n\n### Part\n\nmore\n\n## Three\n\n*Not run.*\n";
        assert_eq!(new.markdown_over(&old.markdown()), expected);
    }
}
