//! Python's `json.dumps`, `%` and string methods, for templates. transformers runs templates in Python.

use std::fmt::Write as _;

use minijinja::formatting::{self, FormatStyle};
use minijinja::value::{Kwargs, Rest, StringInput, Value, ValueKind, ValueOrKwargs};
use minijinja::{Error, ErrorKind, State, context};

type Result<T> = std::result::Result<T, Error>;

/// The largest width that a template may request.
const MOST_WIDTH: usize = 10_000;
/// The largest number of bytes that a template may write, and that a single filter may produce.
pub(super) const MOST_TEXT: usize = 1 << 24;

fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}

/// `a % b`. If `a` is a string, it is a format, and `b` is its value or a tuple of its values. For numbers it is the
/// remainder.
pub(super) fn percent(state: &State, left: &Value, right: Value) -> Result<Value> {
    let Some(text) = left.as_str() else {
        return state.env().compile_expression("left % right")?.eval(context! { left, right });
    };
    let mapping = right.kind() == ValueKind::Map;
    let mut values: Vec<Value> = if right.is_tuple() { right.try_iter()?.collect() } else { vec![right] };
    let (format, used) = printf(text, &mut values)?;
    if used < values.len() && !mapping {
        return Err(invalid("not all arguments were used in formatting the string"));
    }
    formatting::format(FormatStyle::Printf, &format, &values).map(Value::from)
}

/// Rewrites the conversions of a format that minijinja does not have (`%i`, `%u`, `%r`, `%a`) as conversions that it
/// has. Returns the format and the number of values that it uses. A value shown by `%r` is replaced by its text.
///
/// # Errors
/// If a width or precision is above [`MOST_WIDTH`]: it alone would decide how much memory is used.
fn printf(format: &str, values: &mut [Value]) -> Result<(String, usize)> {
    let (mut out, mut used) = (String::with_capacity(format.len()), 0);
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..=at]);
        rest = &rest[at + 1..];
        let keyed = rest.starts_with('(');
        let key = if keyed { rest.find(')').map_or(rest.len(), |end| end + 1) } else { 0 };
        let flags = rest[key..].find(|c: char| !"#0- +.*123456789hlL".contains(c)).map_or(rest.len(), |end| key + end);
        let conversion = rest[flags..].chars().next();
        widths(&rest[key..flags], values.get(used..).unwrap_or_default())?;
        if conversion == Some('%') || conversion.is_none() {
            out.push_str(&rest[..flags + conversion.map_or(0, char::len_utf8)]);
            rest = &rest[flags + conversion.map_or(0, char::len_utf8)..];
            continue;
        }
        used += rest[key..flags].matches('*').count();
        out.push_str(&rest[..flags]);
        out.push(match conversion {
            Some('i' | 'u') => 'd',
            Some('r' | 'a') => {
                if let Some(value) = values.get_mut(used).filter(|_| !keyed) {
                    *value = format!("{value:?}").into();
                }
                's'
            }
            other => other.unwrap_or_default(),
        });
        used += usize::from(!keyed);
        rest = &rest[flags + conversion.map_or(0, char::len_utf8)..];
    }
    out.push_str(rest);
    Ok((out, used))
}

/// Refuses widths and precisions above [`MOST_WIDTH`]. Each `*` takes its width from the next value.
fn widths(flags: &str, values: &[Value]) -> Result<()> {
    let written = flags.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let written = written.map(|digits| digits.parse().unwrap_or(usize::MAX));
    let stars = flags.matches('*').count();
    let given = values.iter().take(stars).filter_map(|value| i64::try_from(value.clone()).ok());
    let given = given.map(|width| usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX));
    match written.chain(given).find(|&width| width > MOST_WIDTH) {
        Some(width) => Err(invalid(format!("a width of {width} in a format; at most {MOST_WIDTH} are allowed"))),
        None => Ok(()),
    }
}

/// The same as [`widths`], for `str.format`. Its fields may take widths from other values: `{:{}}`.
fn braces(format: &str, values: &[Value]) -> Result<()> {
    let fields = format.split('{').skip(1).map(|field| field.split('}').next().unwrap_or_default());
    let specs = fields.filter_map(|field| field.split_once(':').map(|(_, spec)| spec));
    let nested = format.contains(":{") || format.split('{').any(|field| field.contains(':') && !field.contains('}'));
    widths(&"*".repeat(if nested { values.len() } else { 0 }), values)?;
    specs.into_iter().try_for_each(|spec| widths(&spec.replace('*', ""), &[]))
}

/// The filter `format` of minijinja, with a limit on widths.
pub(super) fn format(state: &mut State, text: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value> {
    if let Some(text) = text.as_str() {
        // Named values are not used as widths.
        let mut values: Vec<Value> = arguments.0.iter().map(|value| value.clone().into_value()).collect();
        printf(text, &mut values)?;
    }
    minijinja::filters::format(state, text, arguments)
}

/// The filter `indent` of minijinja, with a limit on the length of its result.
pub(super) fn indent(
    text: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<Value> {
    let asked = width.or(named.get::<Option<usize>>("width")?).unwrap_or(4);
    let lines = text.as_str().lines().count().max(1);
    if asked > MOST_WIDTH || asked.saturating_mul(lines) > MOST_TEXT {
        return Err(invalid(format!("indent: {asked} spaces before each of {lines} lines are too many")));
    }
    minijinja::filters::indent(text, width, first, blank, named)
}

/// Checks the number of lists that a filter makes, or the number of items that it puts in each list.
fn count(filter: &str, count: usize) -> Result<usize> {
    if count > MOST_WIDTH {
        return Err(invalid(format!("{filter}: {count} are too many; at most {MOST_WIDTH} are allowed")));
    }
    Ok(count)
}

/// The filter `batch` of minijinja, with a limit on the size of a batch.
pub(super) fn batch(state: &State, list: Value, each: usize, fill: Option<Value>) -> Result<Value> {
    minijinja::filters::batch(state, list, count("batch", each)?, fill)
}

/// The filter `slice` of minijinja, with a limit on the number of slices.
pub(super) fn slice(state: &State, list: Value, slices: usize, fill: Option<Value>) -> Result<Value> {
    minijinja::filters::slice(state, list, count("slice", slices)?, fill)
}

/// The settings of `json.dumps`.
struct Dumps {
    ascii: bool,
    indent: Option<String>,
    between_items: String,
    after_key: String,
    sorted: bool,
}

/// The filter `tojson` as transformers defines it: `json.dumps`, with `ensure_ascii` false by default, no escaping for
/// HTML, and keys in their original order.
pub(super) fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String> {
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    if positional.len() > NAMES.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut arguments: [Option<Value>; 4] = [None, None, None, None];
    for ((at, name), slot) in NAMES.iter().enumerate().zip(&mut arguments) {
        *slot = match positional.get(at) {
            Some(value) => Some(value.clone()),
            None => named.get(name)?,
        };
        *slot = slot.take().filter(|value| !value.is_none() && !value.is_undefined());
    }
    named.assert_all_used()?;
    let [ascii, indent, separators, sorted] = arguments;
    let indent = match indent {
        None => None,
        Some(value) => Some(match value.as_str() {
            Some(text) => text.to_owned(),
            None if value.kind() == ValueKind::Bool => " ".repeat(usize::from(value.is_true())),
            None => {
                let spaces = i64::try_from(value).map_err(|_| invalid("tojson: indent is a number or a string"))?;
                let spaces = usize::try_from(spaces).unwrap_or(0);
                if spaces > MOST_WIDTH {
                    return Err(invalid(format!("tojson: an indent of {spaces}; at most {MOST_WIDTH} are allowed")));
                }
                " ".repeat(spaces)
            }
        }),
    };
    let (between_items, after_key) = match separators {
        Some(pair) => {
            let both: Vec<Value> = pair.try_iter()?.collect();
            match both.as_slice() {
                [items, keys] => (items.to_string(), keys.to_string()),
                _ => return Err(invalid("tojson: separators is a pair")),
            }
        }
        None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
    };
    let dumps = Dumps {
        ascii: ascii.is_some_and(|value| value.is_true()),
        indent,
        between_items,
        after_key,
        sorted: sorted.is_some_and(|value| value.is_true()),
    };
    let mut out = String::new();
    dumps.write(value, 0, &mut out)?;
    Ok(out)
}

/// The largest nesting depth of lists and maps that is written. Python's own limit is of a similar size.
const DEEPEST: usize = 500;

impl Dumps {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<()> {
        if depth > DEEPEST {
            return Err(invalid("tojson: lists and maps are nested too deeply"));
        }
        if out.len() > MOST_TEXT {
            return Err(invalid(format!("tojson: it writes over {MOST_TEXT} bytes")));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.between(['[', ']'], &items, depth, out, |dumps, item, out| dumps.write(item, depth + 1, out))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.between(['{', '}'], &keys, depth, out, |dumps, key, out| {
                    dumps.key(key, out)?;
                    out.push_str(&dumps.after_key);
                    dumps.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            other => return Err(invalid(format!("tojson: {other} is not JSON serializable"))),
        }
        Ok(())
    }

    /// Writes items in brackets, with separators and indentation between them.
    fn between(
        &self,
        brackets: [char; 2],
        items: &[Value],
        depth: usize,
        out: &mut String,
        write: impl Fn(&Self, &Value, &mut String) -> Result<()>,
    ) -> Result<()> {
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(brackets[0]);
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                out.push_str(&self.between_items);
            }
            line(depth + 1, out);
            write(self, item, out)?;
        }
        if !items.is_empty() {
            line(depth, out);
        }
        out.push(brackets[1]);
        Ok(())
    }

    fn key(&self, key: &Value, out: &mut String) -> Result<()> {
        let text = match key.kind() {
            ValueKind::String => key.to_string(),
            ValueKind::None => "null".to_owned(),
            ValueKind::Bool => (if key.is_true() { "true" } else { "false" }).to_owned(),
            ValueKind::Number => number(key),
            other => return Err(invalid(format!("tojson: keys are strings or numbers, not {other}"))),
        };
        self.string(&text, out);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// A number as Python writes it: the shortest digits, with an exponent from 1e16 on and below 1e-4.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else { return value.to_string() };
    if float.is_nan() {
        return "NaN".to_owned();
    }
    if float.is_infinite() {
        return (if float > 0.0 { "Infinity" } else { "-Infinity" }).to_owned();
    }
    if float == 0.0 || (1e-4..1e16).contains(&float.abs()) {
        return format!("{float:?}");
    }
    let text = format!("{float:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, size) = match exponent.strip_prefix('-') {
                Some(size) => ('-', size),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{size:0>2}")
        }
        None => text,
    }
}

/// Jinja2's filter `wordcount`. A word is a run of letters, digits and underscores.
pub(super) fn wordcount(text: &str) -> usize {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
}

/// The first argument of a method that pads text, limited to [`MOST_WIDTH`].
fn width(args: &[Value]) -> Result<usize> {
    let width = args.first().cloned().and_then(|width| i64::try_from(width).ok());
    let width = width.ok_or_else(|| invalid("a width is a number"))?;
    Ok(usize::try_from(width).unwrap_or(0).min(MOST_WIDTH))
}

/// Methods of Python's strings that minijinja's own set does not have.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    if let Some(text) = value.as_str() {
        let argument = |at: usize| args.get(at).and_then(|value| value.as_str());
        let parts = |parts: [&str; 3]| Value::from(minijinja::value::Tuple::from(parts.map(Value::from)));
        match (name, argument(0)) {
            ("format", _) => braces(text, args)?,
            ("removeprefix", Some(prefix)) => return Ok(text.strip_prefix(prefix).unwrap_or(text).into()),
            ("removesuffix", Some(suffix)) => return Ok(text.strip_suffix(suffix).unwrap_or(text).into()),
            ("partition", Some(by)) if !by.is_empty() => {
                return Ok(match text.split_once(by) {
                    Some((before, after)) => parts([before, by, after]),
                    None => parts([text, "", ""]),
                });
            }
            ("rpartition", Some(by)) if !by.is_empty() => {
                return Ok(match text.rsplit_once(by) {
                    Some((before, after)) => parts([before, by, after]),
                    None => parts(["", "", text]),
                });
            }
            ("rsplit", Some(by)) if !by.is_empty() => {
                let most = match args.get(1) {
                    Some(most) => usize::try_from(i64::try_from(most.clone())?).unwrap_or(usize::MAX),
                    None => usize::MAX,
                };
                let mut pieces: Vec<&str> = text.rsplitn(most.saturating_add(1), by).collect();
                pieces.reverse();
                return Ok(Value::from_iter(pieces));
            }
            ("zfill", None) => {
                let (sign, digits) = match text.strip_prefix(['-', '+']) {
                    Some(digits) => text.split_at(text.len() - digits.len()),
                    None => ("", text),
                };
                let zeros = width(args)?.saturating_sub(text.chars().count());
                return Ok(format!("{sign}{}{digits}", "0".repeat(zeros)).into());
            }
            ("ljust" | "rjust" | "center", None) => {
                let fill = argument(1).unwrap_or(" ");
                let (width, length) = (width(args)?, text.chars().count());
                let missing = width.saturating_sub(length);
                let before = match name {
                    "ljust" => 0,
                    "rjust" => missing,
                    // Python rounds in this way.
                    _ => missing / 2 + (missing & width & 1),
                };
                return Ok(format!("{}{text}{}", fill.repeat(before), fill.repeat(missing - before)).into());
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}
