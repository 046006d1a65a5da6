//! Reads comma-separated values as defined in RFC 4180, to the extent that one file of the suite needs.

/// The rows of a CSV text. Quoted fields may contain commas, line breaks and doubled quotes.
pub(super) fn rows(text: &str) -> Vec<Vec<String>> {
    let mut rows = vec![vec![String::new()]];
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let row = rows.last_mut().expect("there is always a row");
        let field = row.last_mut().expect("a row has a field");
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(String::new()),
            '\r' if !quoted && chars.peek() == Some(&'\n') => {}
            '\n' if !quoted => rows.push(vec![String::new()]),
            c => field.push(c),
        }
    }
    rows.retain(|row| row.iter().any(|field| !field.is_empty()));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_commas_and_line_breaks() {
        let found = rows("a,b\r\n\"x, \"\"y\"\"\n z\",2\n\n3,\n");
        assert_eq!(found, [vec!["a", "b"], vec!["x, \"y\"\n z", "2"], vec!["3", ""]]);
    }
}
