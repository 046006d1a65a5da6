//! A report as one HTML file. It has inline drawings and no scripts, loads nothing from the network, and can be read on a phone
//! and on paper.

use std::fmt::Write as _;

use pulldown_cmark::{Event, Options, Parser, html::push_html};

use crate::{
    page::{Block, Page, Section, escaped},
    svg::attribute,
};

const STYLE: &str = include_str!("html.css");

/// The page as a self-contained HTML document.
///
/// Texts are Markdown. HTML inside them is shown as text and not interpreted, because names of models, schemes and files come
/// from outside.
pub fn html(page: &Page) -> String {
    let mut body = String::new();
    for section in &page.sections {
        write_section(&mut body, section);
    }
    let contents: String = page
        .sections
        .iter()
        .map(|section| format!("<li><a href=\"#{}\">{}</a></li>\n", section.anchor(), escaped(&section.title)))
        .collect();
    let title = escaped(&page.title.replace('`', ""));
    let heading = inner(&page.title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{heading}</h1>\n{}</header>\n\
         <nav aria-label=\"Contents\">\n<ol>\n{contents}</ol>\n</nav>\n<main>\n{body}</main>\n</body>\n</html>\n",
        markdown(&page.lead)
    )
}

fn write_section(out: &mut String, section: &Section) {
    // Writing to a string cannot fail.
    let _ = write!(out, "<section id=\"{}\">\n<h2>{}</h2>\n", section.anchor(), escaped(&section.title));
    if !section.command.is_empty() {
        let _ = writeln!(out, "<p class=\"command\"><code>{}</code></p>", escaped(&section.command));
    }
    for block in &section.blocks {
        let _ = match block {
            Block::Markdown(text) => write!(out, "{}", markdown(text)),
            Block::Figure { name, svg, caption } => write!(
                out,
                "<figure>\n<div class=\"drawing\">{}</div>\n<figcaption>{} {}</figcaption>\n</figure>\n",
                inline(svg, caption),
                inner(caption),
                links(&["svg", "png", "csv"].map(|extension| format!("{name}.{extension}")))
            ),
            Block::Folded { summary, text } => {
                write!(out, "<details>\n<summary>{}</summary>\n{}</details>\n", escaped(summary), markdown(text))
            }
            Block::Absent(reason) => writeln!(out, "<p class=\"absent\">{}</p>", inner(reason)),
            Block::Files(names) => writeln!(out, "<p class=\"files\">Data: {}</p>", links(names)),
        };
    }
    out.push_str("</section>\n");
}

/// Links to files in the folder of the page.
fn links(names: &[String]) -> String {
    let link = |name: &String| format!("<a href=\"{0}\">{0}</a>", escaped(name));
    format!("<span class=\"files\">{}</span>", names.iter().map(link).collect::<Vec<_>>().join(" "))
}

/// Converts Markdown to HTML. Each table is in a box that scrolls sideways if the screen is narrow.
pub fn markdown(text: &str) -> String {
    let events = Parser::new_ext(text, Options::ENABLE_TABLES).map(|event| match event {
        Event::Html(html) | Event::InlineHtml(html) => Event::Text(html),
        other => other,
    });
    let mut html = String::new();
    push_html(&mut html, events);
    html.replace("<table>", "<div class=\"table\"><table>").replace("</table>", "</table></div>")
}

/// Converts one paragraph of Markdown to HTML, without the surrounding `<p>` element.
fn inner(text: &str) -> String {
    let html = markdown(text);
    let html = html.trim();
    html.strip_prefix("<p>").and_then(|rest| rest.strip_suffix("</p>")).unwrap_or(html).to_owned()
}

/// Prepares a drawing for a page: it gets a name for screen readers, and the page decides its size.
fn inline(svg: &str, caption: &str) -> String {
    let Some(tag_end) = svg.find('>') else { return String::new() };
    let (head, rest) = svg.split_at(tag_end);
    let width = attribute(head, "width").and_then(|width| width.parse::<f64>().ok()).unwrap_or(880.0);
    let first = caption.split_inclusive(". ").next().unwrap_or_default();
    let kept: String = ["viewBox", "xmlns"]
        .into_iter()
        .filter_map(|name| Some(format!(" {name}=\"{}\"", attribute(head, name)?)))
        .collect();
    format!(
        "<svg{kept} style=\"max-width: {width}px\" role=\"img\" aria-label=\"{}\"{rest}",
        escaped(&first.trim().replace('`', ""))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(blocks: Vec<Block>) -> String {
        let section = Section { title: "A & B".to_owned(), command: "just a \"<b>\"".to_owned(), blocks };
        html(&Page { title: "T <x>".to_owned(), lead: "Lead.".to_owned(), sections: vec![section] })
    }

    #[test]
    fn what_comes_from_outside_is_text() {
        let hostile = "<script>alert(1)</script> `<i>` <img src=x onerror=y> | ok";
        let text = page(vec![
            Block::Markdown(format!("{hostile}\n\n| a |\n|--:|\n| {} |\n", "<script>2</script>")),
            Block::Folded { summary: hostile.to_owned(), text: hostile.to_owned() },
            Block::Absent(hostile.to_owned()),
            Block::Files(vec!["\"><script>.csv".to_owned()]),
        ]);
        assert!(!text.contains("<script") && !text.contains("<img") && !text.contains("<i>"), "{text}");
        assert!(text.contains("T &lt;x&gt;") && text.contains("just a &quot;&lt;b&gt;&quot;"));
        assert!(text.contains("<a href=\"#a-b\">A &amp; B</a>") && text.contains("<section id=\"a-b\">"));
    }

    #[test]
    fn nothing_is_loaded() {
        let svg = "<svg width=\"760\" height=\"470\" viewBox=\"0 0 3040 1880\" xmlns=\"http://www.w3.org/2000/svg\">\n<rect/></svg>";
        let figure =
            Block::Figure { name: "f".to_owned(), svg: svg.to_owned(), caption: "It \"shows\". More.".to_owned() };
        let text = page(vec![figure]);
        for word in ["src=", "<link", "<script", "@import", "url("] {
            assert!(!text.contains(word), "{word} in\n{text}");
        }
        assert!(text.contains("viewBox=\"0 0 3040 1880\"") && text.contains("max-width: 760px"), "{text}");
        assert!(text.contains("aria-label=\"It &quot;shows&quot;.\">\n<rect/></svg>"), "{text}");
    }

    #[test]
    fn tables_keep_their_alignment_and_scroll_alone() {
        let text = markdown("| a | b |\n|---|--:|\n| x | 1 |\n");
        assert!(
            text.starts_with("<div class=\"table\"><table>") && text.trim_end().ends_with("</table></div>"),
            "{text}"
        );
        assert!(text.contains("text-align: right"), "{text}");
    }
}
