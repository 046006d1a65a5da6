//! The time of day, for templates that write it into the system text.

use std::fmt::Write as _;

use std::time::SystemTime;

use chrono::{DateTime, NaiveDateTime};
use minijinja::{Error, ErrorKind};

/// `strftime_now` of transformers: the current time, in Python's `strftime` format. It is always in UTC.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(since.as_secs()).ok().and_then(|s| DateTime::from_timestamp(s, since.subsec_nanos()));
    strftime(format, now.unwrap_or_default().naive_utc())
}

fn strftime(format: &str, time: NaiveDateTime) -> Result<String, Error> {
    // Python counts microseconds. A time without a zone has an empty zone name.
    let mut own = String::with_capacity(format.len());
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        match (c, if c == '%' { characters.next() } else { None }) {
            ('%', Some('f')) => own.push_str("%6f"),
            ('%', Some('z' | 'Z')) => {}
            ('%', Some(next)) => own.extend(['%', next]),
            ('%', None) => own.push_str("%%"),
            (c, _) => own.push(c),
        }
    }
    let mut text = String::new();
    write!(text, "{}", time.format(&own)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: the format `{format}` is not understood"))
    })?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Python 3.11: `datetime(2026, 2, 3, 4, 5, 6, 78).strftime(format)`.
    #[test]
    fn formats_are_pythons() {
        let time = NaiveDateTime::parse_from_str("2026-02-03 04:05:06.000078", "%Y-%m-%d %H:%M:%S%.f").unwrap();
        for (format, text) in [
            ("%d %b %Y", "03 Feb 2026"),
            ("%B %d, %Y", "February 03, 2026"),
            ("%-d %B %y", "3 February 26"),
            ("%A %a %j %U %W %u %w", "Tuesday Tue 034 05 05 2 2"),
            ("%H:%M:%S.%f%z%Z", "04:05:06.000078"),
            ("%I:%M %p", "04:05 AM"),
            ("%c|%x|%X", "Tue Feb  3 04:05:06 2026|02/03/26|04:05:06"),
            ("%F %T|%D|%e|%%", "2026-02-03 04:05:06|02/03/26| 3|%"),
        ] {
            assert_eq!(strftime(format, time).unwrap(), text);
        }
        assert!(strftime("%Q", time).unwrap_err().to_string().contains("`%Q`"));
    }
}
