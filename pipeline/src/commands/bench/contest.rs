//! Contenders that do the same work in turn.

use std::time::Instant;

use anyhow::{Context, Result};
use kvcsr_records::BenchRow;

use crate::machine::Machine;
use crate::ui;

/// What one turn did.
pub struct Turn {
    /// Number of vectors or tokens.
    pub units: f64,
    pub seconds: f64,
    /// Relative squared error of the restored vectors, if the work codes vectors.
    pub error: Option<f64>,
}

/// The largest rate that the machine allows, and what sets it.
#[derive(Clone)]
pub struct Limit {
    pub what: String,
    pub per_s: f64,
}

/// An implementation that does the work.
pub struct Contender<'a> {
    pub name: String,
    /// Whether it is ours.
    pub ours: bool,
    /// Bytes of a coded vector, or of a cache.
    pub bytes: Option<f64>,
    pub limit: Option<Limit>,
    pub turn: Box<dyn FnMut() -> Result<Turn> + 'a>,
}

impl<'a> Contender<'a> {
    /// An implementation of ours.
    pub fn ours(name: impl Into<String>, turn: impl FnMut() -> Result<Turn> + 'a) -> Self {
        Self { name: name.into(), ours: true, bytes: None, limit: None, turn: Box::new(turn) }
    }

    /// A peer.
    pub fn peer(name: impl Into<String>, turn: impl FnMut() -> Result<Turn> + 'a) -> Self {
        Self { ours: false, ..Self::ours(name, turn) }
    }
}

/// A contender's fastest turn.
struct Best {
    per_s: f64,
    error: Option<f64>,
}

/// The work of a contest, as its rows name it.
pub struct Work<'a> {
    pub name: &'static str,
    pub shape: String,
    pub unit: &'static str,
    pub machine: &'a Machine,
}

/// Lets all contenders work in turn, `rounds` times: if the machine slows down, it slows all of them. The fastest turn of each
/// counts. Returns a row for each pair of ours and a peer.
///
/// # Errors
/// If a contender fails.
pub fn rows(work: &Work<'_>, mut contenders: Vec<Contender<'_>>, rounds: usize) -> Result<Vec<BenchRow>> {
    let bar = ui::bar("bench", (rounds * contenders.len()) as u64, "turns");
    let mut best: Vec<Best> = contenders.iter().map(|_| Best { per_s: 0.0, error: None }).collect();
    for _ in 0..rounds {
        for (contender, best) in contenders.iter_mut().zip(&mut best) {
            bar.set_message(format!("{}, {}: {}", work.name, work.shape, contender.name));
            let turn = (contender.turn)().with_context(|| format!("{}, {}", work.shape, contender.name))?;
            best.per_s = best.per_s.max(turn.units / turn.seconds);
            best.error = turn.error;
            bar.inc(1);
        }
    }
    bar.finish();
    let all = || contenders.iter().zip(&best);
    let mut rows = Vec::new();
    for (ours, own) in all().filter(|(contender, _)| contender.ours) {
        for (peer, other) in all().filter(|(contender, _)| !contender.ours) {
            rows.push(BenchRow {
                work: work.name.to_owned(),
                shape: work.shape.clone(),
                ours: ours.name.clone(),
                peer: peer.name.clone(),
                unit: work.unit.to_owned(),
                ours_per_s: own.per_s,
                peer_per_s: other.per_s,
                ratio: own.per_s / other.per_s,
                limit: ours.limit.as_ref().map_or_else(String::new, |limit| limit.what.clone()),
                limit_share: ours.limit.as_ref().map(|limit| own.per_s / limit.per_s),
                ours_bytes: ours.bytes,
                peer_bytes: peer.bytes,
                ours_error: own.error,
                peer_error: other.error,
                machine: format!("{}, {} threads", work.machine.cpu, work.machine.threads),
                commit: work.machine.git.clone(),
            });
        }
    }
    Ok(rows)
}

/// A turn that does `units` of work and has no reconstruction error. Its result is dropped after the time is taken.
pub fn timed<R>(units: f64, run: impl FnOnce() -> Result<R>) -> Result<Turn> {
    let begun = Instant::now();
    let made = run()?;
    let seconds = begun.elapsed().as_secs_f64();
    drop(made);
    Ok(Turn { units, seconds, error: None })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_fastest_turn_counts_and_each_of_ours_meets_each_peer() {
        let mut seconds = [4.0, 1.0, 2.0].into_iter();
        let ours = Contender {
            bytes: Some(7.0),
            limit: Some(Limit { what: "the sun".into(), per_s: 20.0 }),
            ..Contender::ours("ours", move || {
                Ok(Turn { units: 10.0, seconds: seconds.next().unwrap(), error: Some(0.5) })
            })
        };
        let peer = |name, seconds| Contender::peer(name, move || Ok(Turn { units: 10.0, seconds, error: None }));
        let machine = Machine { cpu: "an abacus".into(), threads: 3, ..Machine::default() };
        let work = Work { name: "encode", shape: "d = 2".into(), unit: "vectors", machine: &machine };
        let rows = rows(&work, vec![ours, peer("a", 5.0), peer("b", 0.5)], 3).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].ours_per_s, rows[0].peer_per_s, rows[0].ratio), (10.0, 2.0, 5.0));
        assert_eq!((rows[1].peer.as_str(), rows[1].ratio, rows[1].limit_share), ("b", 0.5, Some(0.5)));
        assert_eq!((rows[0].ours_error, rows[0].peer_error, rows[0].ours_bytes), (Some(0.5), None, Some(7.0)));
        assert_eq!(rows[0].machine, "an abacus, 3 threads");
    }
}
