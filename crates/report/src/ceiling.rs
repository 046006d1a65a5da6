//! Tables of the lower bound on the bits that keys and values need.

use kvcsr_records::CeilingRow;

use crate::grouping::distinct;
use crate::table::Table;

/// Each channel separately.
pub const CHANNEL: &str = "a channel";
/// All channels of a head.
pub const HEAD: &str = "a head";
/// All heads of a layer.
pub const LAYER: &str = "a layer";
/// All heads of two consecutive layers.
pub const TWO_LAYERS: &str = "two layers";
/// All heads of a layer, after the nearest atom was subtracted.
pub const ATOM: &str = "a layer, after an atom";
/// Keys and values in one vector.
pub const BOTH: &str = "keys and values";

/// One row per set of channels that is transformed together, with means over layers, and one column per error.
pub fn markdown(rows: &[CeilingRow]) -> String {
    let errors = distinct(rows.iter().map(|row| row.error));
    let headings: Vec<String> = errors.iter().map(|error| format!("bits at {:.0} % error", 100.0 * error)).collect();
    let mut table = Table::of(["vectors", "together"], headings.iter().map(String::as_str));
    for (vectors, together) in places(rows) {
        let cells = errors.iter().map(|&error| {
            let bits = mean(rows, (vectors, together), error);
            bits.map_or_else(String::new, |bits| format!("{bits:.2}"))
        });
        table.row([vectors, together].into_iter().map(str::to_owned).chain(cells));
    }
    table.into_text()
}

/// One line per set of channels that is transformed together, at the middle error.
pub fn lines(rows: &[CeilingRow]) -> Vec<String> {
    let errors = distinct(rows.iter().map(|row| row.error));
    let Some(&error) = errors.get(errors.len() / 2) else { return Vec::new() };
    places(rows)
        .into_iter()
        .filter_map(|place| {
            let bits = mean(rows, place, error)?;
            Some(format!(
                "{} of {} together: {bits:.2} bits a channel at {:.0} % error",
                place.0,
                place.1,
                100.0 * error
            ))
        })
        .collect()
}

/// What a row measures: the vectors, and the channels that are transformed together.
type Place<'r> = (&'r str, &'r str);

fn place(row: &CeilingRow) -> Place<'_> {
    (&row.vectors, &row.together)
}

/// Keys, values and both. For each, the sets of channels that are transformed together grow.
fn places(rows: &[CeilingRow]) -> Vec<Place<'_>> {
    let mut places = distinct(rows.iter().map(place));
    let order = [CHANNEL, HEAD, LAYER, TWO_LAYERS, ATOM];
    let rank = |(vectors, together): &Place<'_>| {
        let vectors = ["keys", "values", BOTH].iter().position(|known| known == vectors);
        (vectors, order.iter().position(|known| known == together))
    };
    places.sort_by_key(rank);
    places
}

/// The mean over layers.
fn mean(rows: &[CeilingRow], of: Place<'_>, error: f64) -> Option<f64> {
    let bits: Vec<f64> = rows.iter().filter(|row| place(row) == of && row.error == error).map(|row| row.bits).collect();
    (!bits.is_empty()).then(|| bits.iter().sum::<f64>() / bits.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_means_over_layers_in_the_order_of_what_is_together() {
        let row = |layer: usize, vectors: &str, together: &str, bits: f64| CeilingRow {
            layer,
            vectors: vectors.to_owned(),
            together: together.to_owned(),
            error: 0.1,
            bits,
        };
        let rows = [
            row(0, BOTH, ATOM, 0.5),
            row(0, "keys", HEAD, 1.0),
            row(1, "keys", HEAD, 2.0),
            row(0, "keys", CHANNEL, 3.0),
        ];
        let text = markdown(&rows);
        let cells: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(cells[0], "| keys | a channel | 3.00 |", "{text}");
        assert_eq!(cells[1], "| keys | a head | 1.50 |", "{text}");
        assert_eq!(cells[2], "| keys and values | a layer, after an atom | 0.50 |", "{text}");
        assert_eq!(lines(&rows).len(), 3);
        assert!(lines(&[]).is_empty());
    }
}
