//! Chooses the places of labels at points. Each label is near its own point, and away from drawn elements and other labels.

use crate::canvas::{Align, Rect};

/// The cost of covering an element, as the distance that the label would rather move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost(pub f64);

impl Cost {
    /// Another label, which would become unreadable.
    pub const LABEL: Self = Self(1000.0);
    /// The point of another label.
    pub const POINT: Self = Self(200.0);
    /// A main line.
    pub const DATA: Self = Self(60.0);
    /// A small, faint point.
    pub const FAINT: Self = Self(8.0);
}

/// The size of a text, and its point.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The point.
    pub at: (f64, f64),
    /// Width in units.
    pub width: f64,
    /// Height in units.
    pub height: f64,
}

/// Chooses places for labels next to points, away from drawn elements and from each other.
pub struct Placer {
    within: Rect,
    taken: Vec<(Rect, Cost)>,
}

type Segment = [(f64, f64); 2];

/// A possible place of one label.
#[derive(Clone, Copy)]
struct Place {
    rect: Rect,
    /// See [`leader`].
    leader: Option<Segment>,
    /// The part of the cost that does not depend on the other labels.
    own: f64,
}

/// A label farther than this from its point has a leader line.
const LEADER_FROM: f64 = 13.0;
/// A leader line starts at this distance from its point: half of a dot and a gap.
const DOT: f64 = 7.0;

impl Placer {
    /// A placer for labels inside `within`.
    pub fn new(within: Rect) -> Self {
        Self { within, taken: Vec::new() }
    }

    /// Adds a rectangle that labels should not cover.
    pub fn avoid(&mut self, rect: Rect, cost: Cost) {
        self.taken.push((rect, cost));
    }

    /// Adds a line that labels should not cover.
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

    /// Returns places for `texts`. Each text starts at the place with the lowest cost. Then the texts move in turn, as long as a
    /// text finds a place with a lower cost given the places of the others.
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

    /// All possible places for a text: in sixteen directions, near and far.
    fn choices(&self, &Extent { at, width, height }: &Extent, texts: &[Extent]) -> Vec<Place> {
        const REACHES: [f64; 8] = [9.0, 12.0, 17.0, 24.0, 33.0, 45.0, 60.0, 80.0];
        const DIRECTIONS: usize = 16;
        let mut places = Vec::new();
        for reach in REACHES {
            for direction in 0..DIRECTIONS {
                // The first direction is to the right. Among equal costs the first place is taken.
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
                // A reader would assign a text to another point if that point is nearer than its own.
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
    /// The cost of two labels for each other.
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

/// The leader line from the edge of the dot at `at` to the nearest point of its text, if the text is too far away to do without
/// one.
pub(super) fn leader(at: (f64, f64), text: &Rect) -> Option<Segment> {
    let (near, distance) = (text.nearest(at), text.distance(at));
    let start = DOT / distance;
    (distance > LEADER_FROM).then_some([(at.0 + start * (near.0 - at.0), at.1 + start * (near.1 - at.1)), near])
}

/// Whether a part of a segment is inside a rectangle.
fn crosses([from, to]: Segment, rect: &Rect) -> bool {
    // Compute the part of the segment inside the rectangle, for one pair of edges after the other (Liang and Barsky).
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

/// Whether two segments intersect.
fn cut(a: Segment, b: Segment) -> bool {
    let side =
        |[from, to]: Segment, at: (f64, f64)| (to.0 - from.0) * (at.1 - from.1) - (to.1 - from.1) * (at.0 - from.0);
    side(a, b[0]) * side(a, b[1]) < 0.0 && side(b, a[0]) * side(b, a[1]) < 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

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
