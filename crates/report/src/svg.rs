//! Adds what plotters' SVG lacks: a nominal size, and texts that keep their width if the viewer has another font.

use crate::{error::ReportError, style};

/// plotters writes a font of height `h` with the size `h / 1.24`.
const HEIGHT_OF_SIZE: f64 = 1.24;

/// Displays `drawn`, an SVG of `drawn_size` pixels, at the size `size`.
pub fn of_size(drawn: &str, drawn_size: (u32, u32), size: (u32, u32)) -> String {
    let head = |(width, height)| format!("<svg width=\"{width}\" height=\"{height}\"");
    drawn.replacen(&head(drawn_size), &head(size), 1)
}

/// Gives every text the width with which it was placed. The places of labels use the metrics of the included font. A viewer
/// without a font of these metrics would draw them wider, over each other and over the edge.
pub fn with_text_widths(drawn: &str) -> Result<String, ReportError> {
    const OPEN: &str = "<text";
    let mut out = String::with_capacity(drawn.len() + drawn.len() / 8);
    let mut rest = drawn;
    while let Some(at) = rest.find(OPEN) {
        let (before, element) = rest.split_at(at + OPEN.len());
        out.push_str(before);
        rest = element;
        let Some((attributes, content)) = element.split_once('>') else { break };
        let size = attribute(attributes, "font-size").and_then(|size| size.parse::<f64>().ok());
        let text = content.split("</text>").next().unwrap_or_default().trim();
        if let Some(size) = size.filter(|_| text.chars().nth(1).is_some()) {
            let width = style::width_of(&unescaped(text), size * HEIGHT_OF_SIZE)?;
            out.push_str(&format!(" textLength=\"{width:.0}\" lengthAdjust=\"spacingAndGlyphs\""));
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// The value of an attribute. `tag` is the text between an element's name (starting with the space after it) and its `>`.
pub fn attribute<'t>(tag: &'t str, name: &str) -> Option<&'t str> {
    let from = tag.find(&format!(" {name}=\""))? + name.len() + 3;
    tag[from..].split('"').next()
}

fn unescaped(text: &str) -> String {
    let pairs = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    pairs.into_iter().fold(text.to_owned(), |text, (entity, character)| text.replace(entity, character))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn texts_get_their_widths_and_nothing_else_changes() {
        style::register().unwrap();
        let drawn = "<svg>\n<text x=\"1\" font-size=\"50\" fill=\"#000\">\na &lt; b\n</text>\n<line/>\n\
                     <text font-size=\"50\">\n3\n</text>\n</svg>";
        let fitted = with_text_widths(drawn).unwrap();
        let width = style::width_of("a < b", 62.0).unwrap().round();
        assert!(width > 80.0 && width < 140.0, "{width}");
        let expected =
            drawn.replacen("<text x", &format!("<text textLength=\"{width}\" lengthAdjust=\"spacingAndGlyphs\" x"), 1);
        assert_eq!(fitted, expected);
    }

    #[test]
    fn only_the_outer_size_changes() {
        assert_eq!(
            of_size("<svg width=\"8\" height=\"4\" viewBox=\"0 0 8 4\">", (8, 4), (2, 1)),
            "<svg width=\"2\" height=\"1\" viewBox=\"0 0 8 4\">"
        );
    }
}
