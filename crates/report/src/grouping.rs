//! Groups of rows. The groups are in order of first appearance and keep the order of their rows, so sums over them have the same
//! bits for equal files. The grouping of a data frame guarantees neither order, and would make notebooks build polars.

use kvcsr_records::Kind;

/// The rows of each key. The keys are in order of first appearance.
pub(crate) fn grouped<'r, R, K: PartialEq>(
    rows: impl IntoIterator<Item = &'r R>,
    key: impl Fn(&'r R) -> K,
) -> Vec<(K, Vec<&'r R>)> {
    let mut groups: Vec<(K, Vec<&R>)> = Vec::new();
    for row in rows {
        let own = key(row);
        match groups.iter_mut().find(|(key, _)| *key == own) {
            Some((_, group)) => group.push(row),
            None => groups.push((own, vec![row])),
        }
    }
    groups
}

/// The distinct values, in order of first appearance.
pub(crate) fn distinct<T: PartialEq>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

/// The distinct values, smallest first.
pub(crate) fn sorted<T: Ord>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    values.into_iter().collect::<std::collections::BTreeSet<T>>().into_iter().collect()
}

/// The kinds that occur, keys first.
pub(crate) fn kinds<R>(rows: &[R], kind: impl Fn(&R) -> Kind) -> Vec<Kind> {
    sorted(rows.iter().map(kind))
}

/// The mean, or `None` if there are no values.
pub(crate) fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.into_iter().collect();
    if values.is_empty() { None } else { Some(values.iter().sum::<f64>() / values.len() as f64) }
}

/// The median, or `None` if there are no values. For an even count it is the mean of the two middle values.
pub(crate) fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[middle - 1] + upper) / 2.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_their_rows_keep_their_order() {
        let rows = [3, 10, 1, 20, 5];
        assert_eq!(grouped(&rows, |row| *row >= 10), [(false, vec![&3, &1, &5]), (true, vec![&10, &20])]);
        assert_eq!((distinct([2, 1, 2]), sorted([2, 1, 2])), (vec![2, 1], vec![1, 2]));
        assert_eq!((mean([1.0, 2.0]), mean([])), (Some(1.5), None));
    }

    #[test]
    fn medians_of_odd_even_and_no_values() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&mut []), None);
    }
}
