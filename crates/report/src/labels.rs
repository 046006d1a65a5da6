//! Labels that stand at the data instead of in a legend, without running into each other.

use plotters::{prelude::DrawingBackend, style::RGBColor};

use crate::{
    axes::Panel,
    canvas::{Align, Canvas, Rect},
    error::ReportError,
    style::{GREY, LABEL, Stroke},
};

/// Moves wanted positions apart so that neighbours are at least `gap` from each other and all lie in `low..=high`, in the order they came in,
/// moving as little as possible: positions that collide become a block, and a block stands centred on the mean of what its members wanted.
/// If `low..=high` is too short for all, the gap shrinks.
pub fn spread(wanted: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let Some(intervals) = wanted.len().checked_sub(1) else {
        return Vec::new();
    };
    let gap = if intervals == 0 { gap } else { gap.min((high - low).max(0.0) / intervals as f64) };
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]));

    // (sum of the members' wanted positions, members, top of the block)
    let mut blocks: Vec<(f64, usize, f64)> = Vec::new();
    let extent = |count: usize| gap * (count as f64 - 1.0);
    for &index in &order {
        let mut block = (wanted[index], 1, wanted[index].clamp(low, high));
        while let Some(&(sum, count, top)) = blocks.last() {
            if top + extent(count) + gap <= block.2 {
                break;
            }
            blocks.pop();
            // A block's members sit `gap` apart, so its top wants to be the mean of (wanted - offset), i.e. mean - extent / 2.
            let (sum, count) = (sum + block.0, count + block.1);
            let top = sum / count as f64 - extent(count) / 2.0;
            block = (sum, count, top.clamp(low, (high - extent(count)).max(low)));
        }
        blocks.push(block);
    }

    let mut placed = vec![0.0; wanted.len()];
    let mut members = order.into_iter();
    for (_, count, top) in blocks {
        for (rank, index) in members.by_ref().take(count).enumerate() {
            placed[index] = top + gap * rank as f64;
        }
    }
    placed
}

/// A label for the right end of a line.
pub struct EndLabel {
    /// What to write.
    pub text: String,
    /// The line's last point, in units.
    pub end: (f64, f64),
    /// The line's colour.
    pub colour: RGBColor,
}

/// Writes the labels right of the panel, each as near to its line's end as the others allow. A label that had to move gets a thin leader.
pub fn at_line_ends<DB: DrawingBackend>(
    canvas: &Canvas<'_, DB>,
    panel: &Panel,
    labels: &[EndLabel],
) -> Result<(), ReportError> {
    const LEADER: f64 = 12.0;
    let wanted: Vec<f64> = labels.iter().map(|label| label.end.1).collect();
    let placed = spread(&wanted, LABEL, panel.plot.top, panel.plot.bottom);
    for (label, y) in labels.iter().zip(placed) {
        let x = panel.plot.right + 4.0;
        let leader = Stroke { width: 1.0, alpha: 0.6, ..Stroke::solid(label.colour) };
        canvas.line(&[(label.end.0 + 3.0, label.end.1), (x, label.end.1), (x + LEADER - 3.0, y)], leader)?;
        canvas.text(&label.text, (x + LEADER, y), LABEL, label.colour, Align::Left)?;
    }
    Ok(())
}

/// The room that [`at_line_ends`] needs right of a panel for these texts.
pub fn end_room<'t, DB: DrawingBackend>(
    canvas: &Canvas<'_, DB>,
    texts: impl IntoIterator<Item = &'t str>,
) -> Result<f64, ReportError> {
    let mut widest = 0.0_f64;
    for text in texts {
        widest = widest.max(canvas.width_of(text, LABEL)?);
    }
    Ok(widest + 22.0)
}

/// What it costs a label to cover something, in units of distance that the label would rather move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost(pub f64);

impl Cost {
    /// Another label: unreadable.
    pub const LABEL: Self = Self(1000.0);
    /// A point that another label belongs to.
    pub const POINT: Self = Self(200.0);
    /// A main line.
    pub const DATA: Self = Self(60.0);
    /// A small, faint point.
    pub const FAINT: Self = Self(8.0);
}

/// A text that stands beside its point.
#[derive(Clone, Debug)]
pub struct PointLabel {
    /// What to write.
    pub text: String,
    /// The point.
    pub at: (f64, f64),
    /// Colour of the text.
    pub colour: RGBColor,
    /// Height of the text in units.
    pub size: f64,
}

/// The size of a text, and the point that it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The point.
    pub at: (f64, f64),
    /// In units.
    pub width: f64,
    /// In units.
    pub height: f64,
}

/// Places labels beside points, away from what is already there and from each other.
pub struct Placer {
    within: Rect,
    taken: Vec<(Rect, Cost)>,
}

type Segment = [(f64, f64); 2];

/// Where one label could stand.
#[derive(Clone, Copy)]
struct Place {
    rect: Rect,
    /// See [`leader`].
    leader: Option<Segment>,
    /// What this place costs whatever the other labels do.
    own: f64,
}

/// Labels farther than this from their point have a leader.
const LEADER_FROM: f64 = 13.0;
/// Nearest points that a leader does not touch: half of a dot and a gap.
const DOT: f64 = 7.0;

impl Placer {
    /// A placer for the inside of `within`.
    pub fn new(within: Rect) -> Self {
        Self { within, taken: Vec::new() }
    }

    /// Keeps labels off a rectangle.
    pub fn avoid(&mut self, rect: Rect, cost: Cost) {
        self.taken.push((rect, cost));
    }

    /// Keeps labels off a line.
    pub fn avoid_line(&mut self, points: &[(f64, f64)], cost: Cost) {
        const STEP: f64 = 5.0;
        for pair in points.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let steps = ((to.0 - from.0).hypot(to.1 - from.1) / STEP).ceil().max(1.0);
            for step in 0..=steps as usize {
                let t = step as f64 / steps;
                let at = (from.0 + t * (to.0 - from.0), from.1 + t * (to.1 - from.1));
                self.avoid(Rect::around(at, 2.0), cost);
            }
        }
    }

    /// Places for `texts`: each starts at the place that costs least, and then all move in turn as long as some place costs less
    /// where the others stand.
    pub fn place(&self, texts: &[Extent]) -> Vec<Rect> {
        const ROUNDS: usize = 12;
        let choices: Vec<Vec<Place>> = texts.iter().map(|text| self.choices(text, texts)).collect();
        let mut chosen: Vec<Option<Place>> = vec![None; texts.len()];
        for _ in 0..ROUNDS {
            let mut moved = false;
            for (index, choices) in choices.iter().enumerate() {
                let cost = |place: &Place| {
                    let others = chosen.iter().enumerate().filter(|(other, _)| *other != index);
                    place.own + others.filter_map(|(_, o)| o.as_ref()).map(|other| place.beside(other)).sum::<f64>()
                };
                let held = chosen[index].as_ref().map_or(f64::INFINITY, &cost);
                let best = choices.iter().map(|place| (cost(place), place)).min_by(|a, b| a.0.total_cmp(&b.0));
                if let Some((_, place)) = best.filter(|(cost, _)| *cost < held - 1e-9) {
                    chosen[index] = Some(*place);
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
        let standing = |(place, text): (Option<Place>, &Extent)| {
            place.map_or_else(|| Rect::of_text(text.at, text.width, text.height, Align::Left), |place| place.rect)
        };
        chosen.into_iter().zip(texts).map(standing).collect()
    }

    /// Every place for a text: in sixteen directions, near and far.
    fn choices(&self, &Extent { at, width, height }: &Extent, texts: &[Extent]) -> Vec<Place> {
        const REACHES: [f64; 8] = [9.0, 12.0, 17.0, 24.0, 33.0, 45.0, 60.0, 80.0];
        const DIRECTIONS: usize = 16;
        let mut places = Vec::new();
        for reach in REACHES {
            for direction in 0..DIRECTIONS {
                // To the right first: among equals the first is taken.
                let (down, across) = (std::f64::consts::TAU * direction as f64 / DIRECTIONS as f64).sin_cos();
                let half = |along: f64, extent: f64| (1.6 * along).clamp(-1.0, 1.0) * extent / 2.0;
                let centre = (at.0 + across * reach + half(across, width), at.1 + down * reach + half(down, height));
                let rect = Rect::of_text(centre, width, height, Align::Centre);
                if !self.within.contains(&rect) {
                    continue;
                }
                let (distance, leader) = (rect.distance(at), leader(at, &rect));
                let over = |(taken, cost): &(Rect, Cost)| {
                    let covered = if taken.overlaps(&rect) { cost.0 } else { 0.0 };
                    covered + if leader.is_some_and(|leader| crosses(leader, taken)) { 0.5 * cost.0 } else { 0.0 }
                };
                // A text that is nearer to another point than to its own would be read as that point's.
                let misleading =
                    texts.iter().filter(|other| other.at != at && rect.distance(other.at) < distance + 2.0);
                let own = self.taken.iter().map(over).sum::<f64>()
                    + reach
                    + if leader.is_some() { 12.0 } else { 0.0 }
                    + 25.0 * misleading.count() as f64;
                places.push(Place { rect, leader, own });
            }
        }
        places
    }
}

impl Place {
    /// What two labels cost each other.
    fn beside(&self, other: &Self) -> f64 {
        const GAP: f64 = 1.5;
        let room = Rect {
            left: self.rect.left - GAP,
            top: self.rect.top,
            right: self.rect.right + GAP,
            bottom: self.rect.bottom,
        };
        let covers = if room.overlaps(&other.rect) { Cost::LABEL.0 } else { 0.0 };
        let over = |leader: Option<Segment>, rect: &Rect| {
            if leader.is_some_and(|leader| crosses(leader, rect)) { 0.3 * Cost::LABEL.0 } else { 0.0 }
        };
        let cross = match (self.leader, other.leader) {
            (Some(own), Some(other)) if cut(own, other) => Cost::DATA.0,
            _ => 0.0,
        };
        covers + over(self.leader, &other.rect) + over(other.leader, &self.rect) + cross
    }
}

/// From beside the dot at `at` to the nearest point of its text, where that is too far away to do without.
fn leader(at: (f64, f64), text: &Rect) -> Option<Segment> {
    let (near, distance) = (text.nearest(at), text.distance(at));
    let start = DOT / distance;
    (distance > LEADER_FROM).then_some([(at.0 + start * (near.0 - at.0), at.1 + start * (near.1 - at.1)), near])
}

/// Whether a segment has a point inside a rectangle.
fn crosses([from, to]: Segment, rect: &Rect) -> bool {
    // The part of the segment inside, cut by one pair of edges after the other (Liang and Barsky).
    let (mut enters, mut leaves) = (0.0_f64, 1.0_f64);
    for (start, step, low, high) in
        [(from.0, to.0 - from.0, rect.left, rect.right), (from.1, to.1 - from.1, rect.top, rect.bottom)]
    {
        if step == 0.0 {
            if start <= low || start >= high {
                return false;
            }
            continue;
        }
        let (a, b) = ((low - start) / step, (high - start) / step);
        (enters, leaves) = (enters.max(a.min(b)), leaves.min(a.max(b)));
    }
    enters < leaves
}

/// Whether two segments cut each other.
fn cut(a: Segment, b: Segment) -> bool {
    let side =
        |[from, to]: Segment, at: (f64, f64)| (to.0 - from.0) * (at.1 - from.1) - (to.1 - from.1) * (at.0 - from.0);
    side(a, b[0]) * side(a, b[1]) < 0.0 && side(b, a[0]) * side(b, a[1]) < 0.0
}

/// Writes one label beside each point, with a thin leader where it had to move away.
pub fn at_points<DB: DrawingBackend>(
    canvas: &Canvas<'_, DB>,
    placer: &Placer,
    labels: &[PointLabel],
) -> Result<(), ReportError> {
    let texts = labels
        .iter()
        .map(|label| {
            let width = canvas.width_of(&label.text, label.size)?;
            Ok(Extent { at: label.at, width, height: 0.8 * label.size })
        })
        .collect::<Result<Vec<_>, ReportError>>()?;
    for (label, rect) in labels.iter().zip(placer.place(&texts)) {
        if let Some(leader) = leader(label.at, &rect) {
            canvas.line(&leader, Stroke { width: 0.8, alpha: 0.55, ..Stroke::solid(GREY) })?;
        }
        let at = (rect.left, (rect.top + rect.bottom) / 2.0);
        canvas.text(&label.text, at, label.size, label.colour, Align::Left)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_positions_stay_where_they_are() {
        assert_eq!(spread(&[50.0, 10.0, 90.0], 12.0, 0.0, 100.0), [50.0, 10.0, 90.0]);
    }

    #[test]
    fn colliding_positions_are_centred_on_their_mean() {
        assert_eq!(spread(&[50.0, 50.0, 50.0], 10.0, 0.0, 100.0), [40.0, 50.0, 60.0]);
        // The pair at 20 and 24 moves by 3 each way; 80 is left alone.
        assert_eq!(spread(&[24.0, 80.0, 20.0], 10.0, 0.0, 100.0), [27.0, 80.0, 17.0]);
    }

    #[test]
    fn bounds_hold_and_order_is_kept_when_there_is_too_little_room() {
        let placed = spread(&[99.0, 98.0, 100.0, 97.0], 10.0, 0.0, 100.0);
        assert_eq!(placed, [90.0, 80.0, 100.0, 70.0]);
        assert_eq!(spread(&[5.0, 5.0, 5.0], 10.0, 0.0, 10.0), [0.0, 5.0, 10.0]);
        assert!(spread(&[], 10.0, 0.0, 1.0).is_empty());
    }

    #[test]
    fn crowded_labels_stand_apart_inside_and_near() {
        let within = Rect { left: 0.0, top: 0.0, right: 400.0, bottom: 300.0 };
        let mut placer = Placer::new(within);
        // Twelve points in a cluster and one in a corner.
        let mut points: Vec<(f64, f64)> =
            (0..12).map(|i| (180.0 + 24.0 * (i % 4) as f64, 130.0 + 22.0 * (i / 4) as f64)).collect();
        points.push((397.0, 3.0));
        for &at in &points {
            placer.avoid(Rect::around(at, 6.0), Cost::POINT);
        }
        let texts: Vec<_> = points.iter().map(|&at| Extent { at, width: 60.0, height: 11.0 }).collect();
        let rects = placer.place(&texts);
        for (index, rect) in rects.iter().enumerate() {
            assert!(within.contains(rect), "label {index}");
            assert!(rects[..index].iter().all(|other| !other.overlaps(rect)), "label {index} overlaps another");
            assert!(points.iter().all(|&at| !Rect::around(at, 5.0).overlaps(rect)), "label {index} covers a point");
            let at = points[index];
            let near = (at.0.clamp(rect.left, rect.right), at.1.clamp(rect.top, rect.bottom));
            assert!((near.0 - at.0).hypot(near.1 - at.1) < 85.0, "label {index} is far from its point");
        }
        assert_eq!(rects, placer.place(&texts), "the same input gives the same places");
    }

    #[test]
    fn a_lone_label_stands_right_of_its_point() {
        let placer = Placer::new(Rect { left: 0.0, top: 0.0, right: 200.0, bottom: 200.0 });
        let rect = placer.place(&[Extent { at: (100.0, 100.0), width: 40.0, height: 12.0 }])[0];
        assert!(rect.left > 100.0 && rect.left < 112.0 && (rect.top + rect.bottom) / 2.0 == 100.0, "{rect:?}");
    }

    #[test]
    fn segments_meet_rectangles_and_each_other() {
        let rect = Rect { left: 10.0, top: 10.0, right: 20.0, bottom: 20.0 };
        assert!(crosses([(0.0, 0.0), (30.0, 30.0)], &rect) && crosses([(15.0, 12.0), (15.0, 40.0)], &rect));
        assert!(!crosses([(0.0, 0.0), (9.0, 30.0)], &rect) && !crosses([(0.0, 25.0), (30.0, 25.0)], &rect));
        assert!(cut([(0.0, 0.0), (2.0, 2.0)], [(0.0, 2.0), (2.0, 0.0)]));
        assert!(!cut([(0.0, 0.0), (2.0, 2.0)], [(3.0, 0.0), (5.0, 9.0)]));
    }
}
