//! Quality against memory: the loss of the far context against measured bits per channel.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::{distinct, listed};
use crate::{
    aggregate::{self, Statistics, compare_heldout, not_better},
    axes::{self, Axis, Panel},
    canvas::{Align, Canvas, Rect},
    error::ReportError,
    evidence::is_reference,
    labels::{self, Cost, Placer, PointLabel},
    records::{
        DictionarySource, HeldoutRow, SchemeSummary,
        heldout::{ALL, REPEAT},
    },
    save::Figure,
    style::{self, BLUE, GREY, LABEL, Stroke, VERMILLION},
    ticks::number,
};

/// Fraction of the far context that is lost (log) against measured bits per channel (log). There is one line per family of
/// schemes. Each scheme has a large dot over all documents, with its name, and a small dot per domain. The uncompressed cache
/// loses nothing and is a vertical line at its bits.
///
/// Drawing fails with [`ReportError::Empty`] unless at least one scheme loses something.
pub struct QualityBits;

impl Figure for QualityBits {
    type Row = HeldoutRow;
    const NAME: &'static str = "quality-bits";
    const SIZE: (u32, u32) = (760, 470);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, data: &[HeldoutRow]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        let (all, domains): (Vec<SchemeSummary>, Vec<SchemeSummary>) =
            aggregate::summarise(data, Statistics::MEANS)?.into_iter().partition(|s| s.domain == ALL);
        let (references, lossy): (Vec<SchemeSummary>, Vec<SchemeSummary>) = all.into_iter().partition(keeps_all);
        let domains: Vec<SchemeSummary> = domains.into_iter().filter(|s| s.domain != REPEAT && !keeps_all(s)).collect();
        if lossy.is_empty() {
            return Err(ReportError::Empty {
                what: "quality against bits",
                expected: "rows of a scheme that loses something",
            });
        }
        let shown = || lossy.iter().chain(&domains);
        // Leave room for labels to the left of the smallest and to the right of the largest value.
        let bits = shown().chain(&references).flat_map(|s| [0.8 * s.measured_bits, 1.1 * s.measured_bits]);
        let x = Axis::log("measured bits per channel of the KV cache, every byte counted (log)", bits)
            .with_ticks([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0]);
        let y = Axis::log("far context lost: 0 as the exact cache, 1 as deletion (log)", shown().map(loss));
        let [plot] = axes::columns(Self::SIZE, 1, axes::TITLE_AND_KEY_ROOM, 20.0, false)[..] else {
            unreachable!("one column was asked for");
        };
        let panel = Panel { plot, x, y };
        axes::title(&canvas, "Quality against memory")?;
        panel.frame(&canvas, "")?;

        let mut placer = Placer::new(plot);
        for (index, reference) in references.iter().enumerate() {
            let (x, _) = panel.at(reference.measured_bits, 1.0);
            canvas.line(&[(x, plot.top), (x, plot.bottom)], Stroke::dashed(GREY))?;
            let label = reference.label();
            let at = (x - 6.0, plot.top + 10.0 + LABEL * index as f64);
            canvas.text(&label, at, LABEL, GREY, Align::Right)?;
            placer.avoid(Rect::of_text(at, canvas.width_of(&label, LABEL)?, LABEL, Align::Right), Cost::LABEL);
            placer.avoid_line(&[(x, plot.top), (x, plot.bottom)], Cost::DATA);
        }
        let families = families(&lossy);
        let mut points: Vec<PointLabel> = Vec::new();
        // Draw k-means first, so that NeuralDict's line is on top where the two meet.
        let (below, above): (Vec<&Family>, Vec<&Family>) =
            families.iter().partition(|f| f.dictionary == DictionarySource::KMeans);
        let drawn: Vec<&Family> = below.into_iter().chain(above).collect();
        for family in &drawn {
            for small in domains.iter().filter(|small| family.members.iter().any(|member| same_scheme(small, member))) {
                let at = panel.at(small.measured_bits, loss(small));
                canvas.dot(at, 2.5, family.stroke.colour, 0.35)?;
                placer.avoid(Rect::around(at, 3.0), Cost::FAINT);
            }
        }
        for family in drawn {
            let colour = family.stroke.colour;
            let values: Vec<(f64, f64)> = family.members.iter().map(|s| (s.measured_bits, loss(s))).collect();
            let path = panel.path(&values);
            canvas.line(&path, family.stroke)?;
            placer.avoid_line(&path, Cost::DATA);
            for member in &family.members {
                let at = panel.at(member.measured_bits, loss(member));
                canvas.dot(at, 5.0, colour, 1.0)?;
                placer.avoid(Rect::around(at, 7.0), Cost::POINT);
                points.push(PointLabel { text: member.scheme.clone(), at, colour, size: LABEL });
            }
        }
        labels::at_points(&canvas, &placer, &points)?;
        // Dots have the name of their scheme. Only schemes measured with two dictionaries need the key.
        let twins = |family: &Family| {
            let scheme = |f: &Family| f.members.first().map(|m| stem(&m.scheme));
            families.iter().filter(|f| scheme(f) == scheme(family)).count() > 1
        };
        let key: Vec<(Stroke, &str)> =
            families.iter().filter(|f| twins(f)).map(|f| (f.stroke, f.label.as_str())).collect();
        canvas.key(axes::KEY_AT, &key)
    }

    fn caption(data: &[HeldoutRow]) -> String {
        let documents = distinct(data.iter().map(|row| (&row.domain, &row.id))).len();
        let contexts = distinct(data.iter().map(|row| row.context));
        let context = match (contexts.iter().min(), contexts.iter().max()) {
            (Some(low), Some(high)) if low == high => format!("{low}"),
            (Some(low), Some(high)) => format!("{low} to {high}"),
            _ => "no".to_owned(),
        };
        let mut text = format!(
            "Share of the far context that is lost, against measured bits per channel of the KV cache, both axes logarithmic: {documents} long \
         documents, {context} tokens compressed. 1 is what deleting all but 4 sinks and the last 256 tokens loses, 0 the exact cache. Large dots: all documents; small dots: single domains. \
         Bits count every byte allocated for a sequence; the offline dictionaries, shared by all sequences, are reported apart."
        );
        if let Ok(summaries) = aggregate::overall(data) {
            let comparisons = compare_heldout(&summaries);
            if !comparisons.is_empty() {
                let lost: Vec<String> = not_better(&comparisons).iter().map(|c| c.scheme.clone()).collect();
                text += &match lost.len() {
                    0 => format!(" NeuralDict's KL is below that of k-means in all {} schemes.", comparisons.len()),
                    _ => format!(
                        " NeuralDict's KL is not below that of k-means in {} of {}: {}.",
                        lost.len(),
                        comparisons.len(),
                        listed(&lost)
                    ),
                };
            }
        }
        if let Some(dense) = aggregate::overall(data).ok().and_then(|all| all.into_iter().find(keeps_all)) {
            text += &format!(
                " The dashed line is the uncompressed cache ({}), at {} bits.",
                dense.scheme,
                number(dense.measured_bits)
            );
        }
        text
    }
}

/// Schemes of one family and dictionary. For example `csr-4` and `csr-8` with NeuralDict are one line.
struct Family {
    dictionary: DictionarySource,
    label: String,
    stroke: Stroke,
    members: Vec<SchemeSummary>,
}

/// True if nothing is lost or the loss is unknown. Such a scheme cannot be shown on a logarithmic axis.
fn keeps_all(summary: &SchemeSummary) -> bool {
    is_reference(summary) || loss(summary) <= 0.0
}

/// The fraction of the far context that is lost, or 0 if no token is far.
fn loss(summary: &SchemeSummary) -> f64 {
    summary.loss().unwrap_or(0.0)
}

fn same_scheme(a: &SchemeSummary, b: &SchemeSummary) -> bool {
    a.scheme == b.scheme && a.dictionary == b.dictionary
}

/// A scheme's name with each number replaced by `#`. It is the same for all levels of the scheme.
fn stem(scheme: &str) -> String {
    let mut stem = String::new();
    for c in scheme.chars() {
        match (c.is_ascii_digit(), stem.ends_with('#')) {
            (true, true) => {}
            (true, false) => stem.push('#'),
            (false, _) => stem.push(c),
        }
    }
    stem
}

fn families(summaries: &[SchemeSummary]) -> Vec<Family> {
    let key = |s: &SchemeSummary| (stem(&s.scheme), s.dictionary);
    let keys = distinct(summaries.iter().map(key));
    let mut spare = style::PALETTE.into_iter().filter(|c| *c != BLUE && *c != VERMILLION).cycle();
    let (mut blue, mut vermillion) = (Some(BLUE), Some(VERMILLION));
    keys.into_iter()
        .map(|(stem, dictionary)| {
            let own = match dictionary {
                DictionarySource::NeuralDict => blue.take(),
                DictionarySource::KMeans => vermillion.take(),
                DictionarySource::Best | DictionarySource::NeuralDictRope | DictionarySource::None => None,
            };
            let colour = own.or_else(|| spare.next()).unwrap_or(GREY);
            let stroke = if dictionary == DictionarySource::KMeans {
                Stroke { width: 2.0, ..Stroke::dashed(colour) }
            } else {
                Stroke::solid(colour)
            };
            let name = stem.replace('#', "").trim_matches(['-', '_', ' ', ':']).to_owned();
            let label = match dictionary {
                DictionarySource::None => name,
                _ => format!("{name}, {}", dictionary.label()),
            };
            let members = summaries.iter().filter(|s| key(s) == (stem.clone(), dictionary)).cloned().collect();
            Family { dictionary, label, stroke, members }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::stem;

    #[test]
    fn levels_of_one_scheme_share_a_stem() {
        assert_eq!(stem("csr-16"), stem("csr-4"));
        assert_ne!(stem("csr-4"), stem("csr-4-window-32"));
    }
}
