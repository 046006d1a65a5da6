//! Which scheme is best, as far as the records can show it.

use super::{Bootstrap, Interval, mean_of_means};

/// The records of one scheme, per stratum. Their order is the same for every scheme.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// The scheme's label.
    pub scheme: String,
    /// For each stratum, the value of every record. Smaller is better.
    pub strata: Vec<Vec<f64>>,
}

/// A scheme compared with the one that has the smallest mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Best {
    /// The scheme's label.
    pub scheme: String,
    /// The mean over the means of the strata.
    pub mean: f64,
    /// The difference to the scheme with the smallest mean. `None` for that scheme itself, and if no interval can be
    /// computed.
    pub difference: Option<Interval>,
    /// Whether no other scheme is clearly better: either this scheme has the smallest mean, or the interval of the
    /// difference does not exclude the noise floor.
    pub best: bool,
}

impl Bootstrap {
    /// Compares every scheme of `columns` with the one that has the smallest mean. The results are in the given order.
    /// A difference below `floor` does not count. For example, `floor` can be the difference that training with another
    /// seed makes.
    ///
    /// If no interval can be computed, no scheme is clearly worse, and every scheme is called best.
    ///
    /// # Panics
    /// If two columns do not have the same records.
    #[must_use]
    pub fn best(&self, columns: &[Column], floor: f64) -> Vec<Best> {
        let mean = |column: &Column| mean_of_means(&column.strata);
        let Some(leader) = columns.iter().min_by(|a, b| mean(a).total_cmp(&mean(b))) else { return Vec::new() };
        let against_leader = |column: &Column| {
            let difference = if column.scheme == leader.scheme { None } else { self.paired(column, leader) };
            let best = difference.is_none_or(|interval| interval.low <= floor);
            Best { scheme: column.scheme.clone(), mean: mean(column), difference, best }
        };
        columns.iter().map(against_leader).collect()
    }

    /// The interval of `a` minus `b`, record by record.
    ///
    /// # Panics
    /// If the two do not have the same records.
    #[must_use]
    pub fn paired(&self, a: &Column, b: &Column) -> Option<Interval> {
        let shape = |column: &Column| column.strata.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(shape(a), shape(b), "{} and {} have the same records", a.scheme, b.scheme);
        let differences = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a - b).collect();
        self.interval(&a.strata.iter().zip(&b.strata).map(differences).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(scheme: &str, of: impl Fn(f64) -> f64) -> Column {
        let strata = [0, 1].map(|s| (0..12).map(|i| of(f64::from(1 + (i * 5 + s * 3) % 7))).collect()).to_vec();
        Column { scheme: scheme.to_owned(), strata }
    }

    #[test]
    fn only_what_the_paired_interval_tells_apart_is_called_worse() {
        // Records differ by a factor of seven, so means alone would show nothing. Pairing shows the difference.
        let columns =
            [column("low", |x| x), column("ten percent more", |x| 1.1 * x), column("other order", |x| 8.4 - x)];
        let bootstrap = Bootstrap { resamples: 2000, level: 0.95, seed: 3 };
        let found = bootstrap.best(&columns, 0.0);
        assert_eq!(found.iter().map(|b| b.best).collect::<Vec<_>>(), [true, false, true], "{found:?}");
        assert!(found[0].difference.is_none() && found[1].difference.is_some_and(|i| i.low > 0.0));
        // With a floor above the difference, the scheme counts as best again.
        let floored = bootstrap.best(&columns, 0.5);
        assert!(floored.iter().all(|b| b.best), "{floored:?}");
    }

    #[test]
    fn one_record_a_stratum_tells_nothing() {
        let columns = [
            Column { scheme: "a".into(), strata: vec![vec![1.0]] },
            Column { scheme: "b".into(), strata: vec![vec![9.0]] },
        ];
        let found = Bootstrap { resamples: 100, level: 0.95, seed: 1 }.best(&columns, 0.0);
        assert!(found.iter().all(|b| b.best && b.difference.is_none()));
    }
}
