//! Generated text inside hand-written Markdown, between `<!-- BEGIN name -->` and `<!-- END name -->`.

use std::{fs, path::Path};

use kvcsr_records::{RecordsError, files};

use crate::error::ReportError;

/// Replaces the text between the markers `name` in `document` by `text`, on separate lines. The markers stay.
///
/// # Errors
/// [`ReportError::Marker`] if a marker is missing, occurs twice, or END comes before BEGIN. A generated table is therefore never
/// written to the wrong place.
pub fn splice(document: &str, name: &str, text: &str) -> Result<String, ReportError> {
    let begin = format!("<!-- BEGIN {name} -->");
    let end = format!("<!-- END {name} -->");
    let from = only(document, &begin)? + begin.len();
    let to = only(document, &end)?;
    if to < from {
        return Err(ReportError::Marker { marker: end, found: "found before its BEGIN".to_owned() });
    }
    Ok(format!("{}\n{}\n{}", &document[..from], text.trim_matches('\n'), &document[to..]))
}

/// Whether `document` has markers with this name.
#[must_use]
pub fn has(document: &str, name: &str) -> bool {
    document.contains(&format!("<!-- BEGIN {name} -->"))
}

/// Does the same as [`splice`] for a file, through a temporary file. Returns whether the file changed. An unchanged file is not
/// written.
pub fn splice_file(path: &Path, name: &str, text: &str) -> Result<bool, ReportError> {
    let document = fs::read_to_string(path).map_err(RecordsError::io(path))?;
    let spliced = splice(&document, name, text)?;
    if spliced == document {
        return Ok(false);
    }
    files::write_text(path, &spliced)?;
    Ok(true)
}

fn only(document: &str, marker: &str) -> Result<usize, ReportError> {
    let mut places = document.match_indices(marker).map(|(at, _)| at);
    match (places.next(), places.count()) {
        (Some(at), 0) => Ok(at),
        (None, _) => Err(ReportError::Marker { marker: marker.to_owned(), found: "found nowhere".to_owned() }),
        (Some(_), more) => {
            Err(ReportError::Marker { marker: marker.to_owned(), found: format!("found {} times", more + 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const README: &str = "# A\n<!-- BEGIN results -->\nold\n<!-- END results -->\n<!-- BEGIN results-2 -->\nkept\n<!-- END results-2 -->\n";

    #[test]
    fn only_the_named_part_changes_and_twice_is_the_same() {
        let once = splice(README, "results", "\n| a |\n| b |\n").unwrap();
        assert_eq!(
            once,
            "# A\n<!-- BEGIN results -->\n| a |\n| b |\n<!-- END results -->\n<!-- BEGIN results-2 -->\nkept\n<!-- END results-2 -->\n"
        );
        assert_eq!(splice(&once, "results", "| a |\n| b |").unwrap(), once);
        assert!(has(README, "results-2") && !has(README, "result"));
    }

    #[test]
    fn missing_doubled_and_crossed_markers_are_errors() {
        let found = |document: &str| match splice(document, "x", "") {
            Err(ReportError::Marker { found, .. }) => found,
            other => panic!("expected a marker error, got {other:?}"),
        };
        assert_eq!(found("<!-- BEGIN x -->"), "found nowhere");
        assert_eq!(found("<!-- END x -->"), "found nowhere");
        assert_eq!(found("<!-- BEGIN x --><!-- BEGIN x --><!-- END x -->"), "found 2 times");
        assert_eq!(found("<!-- END x --><!-- BEGIN x -->"), "found before its BEGIN");
    }

    #[test]
    fn a_file_is_written_only_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("README.md");
        fs::write(&path, README).unwrap();
        assert!(splice_file(&path, "results", "new").unwrap());
        assert!(!splice_file(&path, "results", "new").unwrap());
        assert!(fs::read_to_string(&path).unwrap().contains("-->\nnew\n<!--"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left behind");
    }
}
