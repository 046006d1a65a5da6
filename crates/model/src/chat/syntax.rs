//! Rewrites those parts of a template that Jinja2 and transformers understand and minijinja does not.
//!
//! - Line ends: Jinja2 reads `\r\n` and `\r` as `\n`.
//! - `{% generation %}` ... `{% endgeneration %}`: transformers uses it to mark the assistant's words. It renders the
//!   body in a separate scope, as `{% with %}` does.
//! - `a % b`: Python formats if `a` is a string, so the operator becomes the filter [`PERCENT`].

/// The filter that stands for the operator `%`.
pub(super) const PERCENT: &str = "percent_operator";

/// The template in a form that minijinja can read. Line numbers do not change, so errors name the right lines.
pub(super) fn rewritten(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = next_opening(rest) {
        out.push_str(&rest[..at]);
        let tag = &rest[at..];
        let length = match &tag[..2] {
            "{#" => tag.find("#}").map_or(tag.len(), |end| end + 2),
            _ => code_length(tag),
        };
        let code = &tag[..length];
        if tag.starts_with("{%") && tag_name(code) == "raw" {
            let whole = length + raw_length(&tag[length..]);
            out.push_str(&tag[..whole]);
            rest = &tag[whole..];
            continue;
        }
        match tag_name(code) {
            _ if tag.starts_with("{#") => out.push_str(code),
            name @ ("generation" | "endgeneration") if tag.starts_with("{%") => {
                let with = if name == "generation" { "with" } else { "endwith" };
                out.push_str(&code.replacen(name, with, 1));
            }
            _ => out.push_str(&percent_as_filter(code)),
        }
        rest = &tag[length..];
    }
    out.push_str(rest);
    out
}

/// The index where the next comment, block or expression begins.
fn next_opening(text: &str) -> Option<usize> {
    text.match_indices('{').map(|(at, _)| at).find(|at| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')))
}

/// The first word of a block.
fn tag_name(code: &str) -> &str {
    let inner = code.get(2..).unwrap_or_default().trim_start_matches(['-', '+']).trim_start();
    let end = inner.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inner.len());
    &inner[..end]
}

/// The length of what follows `{% raw %}`, including its end tag.
fn raw_length(text: &str) -> usize {
    let ends = text.match_indices("{%").map(|(at, _)| at);
    let end = ends.into_iter().find(|at| tag_name(&text[*at..]) == "endraw");
    end.map_or(text.len(), |at| at + code_length(&text[at..]))
}

/// The length of a block or expression at the start of `text`, including its delimiters. An end inside a string does
/// not count.
fn code_length(text: &str) -> usize {
    let end = if text.starts_with("{{") { "}}" } else { "%}" };
    let mut at = 2;
    // A map may end directly before the expression ends, so the braces of maps are counted.
    let mut braces = 0usize;
    while at < text.len() {
        let here = &text[at..];
        match here.as_bytes()[0] {
            quote @ (b'\'' | b'"') => {
                at += string_length(here, quote);
                continue;
            }
            b'{' => braces += 1,
            b'}' if braces > 0 => braces -= 1,
            _ if here.starts_with(end) => return at + 2,
            _ => {}
        }
        at += here.chars().next().map_or(1, char::len_utf8);
    }
    text.len()
}

/// The length of a string literal at the start of `text`, including its quotes.
fn string_length(text: &str, quote: u8) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            byte if byte == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Rewrites `a % b` as `a|percent_operator(b)`. A filter binds to the operand before it as tightly as `%` does. After
/// `*` and `/` this is not so. There, only numbers make sense, and the operator stays.
fn percent_as_filter(code: &str) -> String {
    // If a tag has no end, it may end inside a character.
    let inside = code.floor_char_boundary(code.len().saturating_sub(2));
    let mut out = String::with_capacity(code.len());
    // A sign directly after the delimiter controls the white space before it.
    let mut at = if matches!(code.as_bytes().get(2), Some(b'-' | b'+')) { 3.min(inside) } else { 2.min(inside) };
    out.push_str(&code[..at]);
    // The last byte of code that is not white space.
    let mut before = b'(';
    // For each depth of brackets, whether the operand before `%` must not take a filter.
    let mut multiplied = vec![false];
    while at < inside {
        let here = &code[at..inside];
        let byte = here.as_bytes()[0];
        let mut length = here.chars().next().map_or(1, char::len_utf8);
        match byte {
            b'\'' | b'"' => length = string_length(here, byte).min(here.len()),
            b'(' | b'[' | b'{' => multiplied.push(false),
            b')' | b']' | b'}' if multiplied.len() > 1 => drop(multiplied.pop()),
            b'*' | b'/' => set(&mut multiplied, true),
            // A sign binds less tightly than a filter, and more tightly than `%`.
            b'-' | b'+' if b"([{,=<>!:~+-*/%".contains(&before) => set(&mut multiplied, true),
            b'+' | b'-' | b'~' | b',' | b'=' | b'<' | b'>' | b'!' | b':' => set(&mut multiplied, false),
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                length = here.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(here.len());
                let word = &here[..length];
                if ["in", "not", "and", "or", "if", "else", "elif", "is", "set"].contains(&word) {
                    set(&mut multiplied, false);
                }
            }
            b'%' if multiplied.last() == Some(&false) && !matches!(here.as_bytes().get(1), Some(b'}')) => {
                let after = here[1..].trim_start();
                let operand = operand_length(after);
                if operand > 0 {
                    let begins = at + here.len() - after.len();
                    let right = percent_as_filter(&format!("{{{{{}}}}}", &code[begins..begins + operand]));
                    // White space before the operator is kept, so that line numbers do not change.
                    out.push_str(&format!("|{PERCENT}({})", &right[2..right.len() - 2]));
                    at = begins + operand;
                    before = b')';
                    continue;
                }
            }
            _ => {}
        }
        out.push_str(&here[..length]);
        at += length;
        if !byte.is_ascii_whitespace() {
            before = byte;
        }
    }
    out.push_str(&code[at.min(code.len())..]);
    out
}

fn set(multiplied: &mut [bool], value: bool) {
    if let Some(last) = multiplied.last_mut() {
        *last = value;
    }
}

/// The length of one operand at the start of `text`: a literal, name or bracket, with its attributes, items, calls and
/// filters. 0 if there is none.
fn operand_length(text: &str) -> usize {
    let mut at = text.len() - text.trim_start_matches(['+', '-']).len();
    let mut first = true;
    loop {
        let here = &text[at..];
        let Some(byte) = here.bytes().next() else { break };
        let length = match byte {
            b'\'' | b'"' if first => string_length(here, byte),
            b'(' | b'[' | b'{' if first || byte != b'{' => bracket_length(here),
            b'.' | b'|' if !first => {
                let name = here[1..].trim_start();
                let word = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
                here.len() - name.len() + word
            }
            _ if first && (byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()) => {
                here.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(here.len())
            }
            // There may be white space before a filter of the operand.
            b' ' | b'\n' | b'\t' if !first && here.trim_start().starts_with('|') => {
                here.len() - here.trim_start().len()
            }
            _ => break,
        };
        if length == 0 {
            break;
        }
        at += length;
        first = false;
    }
    if first { 0 } else { at }
}

/// The length of a bracket at the start of `text`, including its end.
fn bracket_length(text: &str) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < text.len() {
        let here = &text[at..];
        match here.as_bytes()[0] {
            quote @ (b'\'' | b'"') => {
                at += string_length(here, quote);
                continue;
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
        at += here.chars().next().map_or(1, char::len_utf8);
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_and_marks_are_jinja2s() {
        assert_eq!(rewritten("a\r\nb\rc\n"), "a\nb\nc\n");
        assert_eq!(rewritten("{%- generation -%}{{ m }}{% endgeneration +%}"), "{%- with -%}{{ m }}{% endwith +%}");
        let untouched = "{# {% generation %} a % b #}{% raw %}{% generation %}{{ a % b }}{% endraw %}";
        assert_eq!(rewritten(untouched), untouched);
    }

    #[test]
    fn the_operator_becomes_a_filter_and_blocks_stay_blocks() {
        for (from, to) in [
            ("{{ '%s' % a }}", "{{ '%s' |percent_operator(a) }}"),
            ("{{ '%s %s' % (a, '%}') }}", "{{ '%s %s' |percent_operator((a, '%}')) }}"),
            ("{{ f % m.x[0]|upper ~ 1 }}", "{{ f |percent_operator(m.x[0]|upper) ~ 1 }}"),
            ("{% if i % 2 == 0 %}", "{% if i |percent_operator(2) == 0 %}"),
            ("{% if (i % 2) %}", "{% if (i |percent_operator(2)) %}"),
            ("{{ a * 2 % 3 }}", "{{ a * 2 % 3 }}"),
            ("{{ f(a * 2, b % 3) }}", "{{ f(a * 2, b |percent_operator(3)) }}"),
            ("{{ f % a % b }}", "{{ f |percent_operator(a) |percent_operator(b) }}"),
            ("{{ f % ('%s' % a) }}", "{{ f |percent_operator(('%s' |percent_operator(a))) }}"),
            ("{{ {'a': {'b': 1}} }}", "{{ {'a': {'b': 1}} }}"),
            ("{%- set x = '%d' % 7 -%}", "{%- set x = '%d' |percent_operator(7) -%}"),
            ("100 % {{ x }} %", "100 % {{ x }} %"),
            ("{{ 'it\\'s' % é }}", "{{ 'it\\'s' |percent_operator(é) }}"),
            ("{{ -7 % 3 - 8 % 3 }}", "{{ -7 % 3 - 8 |percent_operator(3) }}"),
            ("{{- a % b -}}", "{{- a |percent_operator(b) -}}"),
            ("{{ unfinished % ", "{{ unfinished % "),
            ("{% unfinished \u{fffd}", "{% unfinished \u{fffd}"),
        ] {
            assert_eq!(rewritten(from), to);
        }
    }
}
