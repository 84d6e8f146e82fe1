//! Heat maps with their labels, placed on a scene.

use super::font;
use super::scene::{Anchor, Color, Scene};

/// A page of heat maps.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    pub title: String,
    /// Lines under the title.
    pub notes: Vec<String>,
    /// In rows of two.
    pub maps: Vec<Map>,
    /// What the rows of every panel are: the name of the y axis.
    pub y_axis: String,
    /// What the columns of every panel are.
    pub x_axis: String,
    pub rows: Vec<String>,
    pub columns: Vec<String>,
}

/// Panels that share one colour scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    pub title: String,
    /// Over the colour bar.
    pub quantity: String,
    /// What values are possible: the scale of a map whose values are all the same.
    pub range: [f64; 2],
    /// Whether dark means large; else it means small.
    pub dark_is_large: bool,
    pub panels: Vec<Panel>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    pub title: String,
    /// A value, as a number and as it is shown, for each row and column, row by row. Cells without one
    /// stay grey and empty, those whose value is NaN grey.
    pub cells: Vec<Option<(f64, String)>>,
}

const MARGIN: f64 = 24.0;
const CELL: [f64; 2] = [58.0, 19.0];
/// Between panels of one map.
const GAP: f64 = 14.0;
/// Between maps.
const SPACE: [f64; 2] = [44.0, 30.0];
const BAR: f64 = 14.0;
/// Right of the colour bar, for its numbers.
const TICKS: f64 = 52.0;
const MAPS_ACROSS: usize = 2;

const TITLE: f64 = 19.0;
const HEADING: f64 = 14.0;
const TEXT: f64 = 12.0;
const SMALL: f64 = 11.0;

const GREY: Color = Color([90, 90, 90]);
const EMPTY: Color = Color([238, 238, 238]);

impl Figure {
    pub fn draw(&self) -> Scene {
        let mut scene = Scene::new(&self.title);
        let map_size = self.map_size();
        let across = MAPS_ACROSS.min(self.maps.len().max(1));
        let inner = across as f64 * (map_size[0] + SPACE[0]) - SPACE[0];
        let mut y = MARGIN + TITLE / 2.0;
        scene.text([MARGIN, y], TITLE, Anchor::Start, Color::BLACK, &cut(&self.title, TITLE, inner));
        y += TITLE + 4.0;
        for line in self.notes.iter().flat_map(|note| wrapped(note, TEXT, inner)) {
            scene.text([MARGIN, y], TEXT, Anchor::Start, GREY, &line);
            y += TEXT * 1.45;
        }
        y += SPACE[1] / 2.0;
        for maps in self.maps.chunks(across) {
            for (column, map) in maps.iter().enumerate() {
                let x = MARGIN + column as f64 * (map_size[0] + SPACE[0]);
                self.draw_map(&mut scene, map, [x, y]);
            }
            y += map_size[1] + SPACE[1];
        }
        scene.width = (inner + 2.0 * MARGIN).ceil();
        scene.height = (y - SPACE[1] + MARGIN).ceil();
        scene
    }

    /// Width and height of one map, with its labels.
    fn map_size(&self) -> [f64; 2] {
        let panels = self.maps.iter().map(|map| map.panels.len()).max().unwrap_or(0) as f64;
        let width = self.row_labels() + panels * (self.panel_width() + GAP) + BAR + TICKS;
        let titles = self.maps.iter().map(|map| font::width(&map.title, HEADING));
        let height = Figure::above() + self.panel_height() + 2.0 * SMALL * 1.6;
        [titles.fold(width, f64::max), height]
    }

    /// From the top of a map to its cells: its title, its panels' titles.
    fn above() -> f64 {
        HEADING * 1.8 + TEXT * 1.6
    }

    fn panel_width(&self) -> f64 {
        self.columns.len() as f64 * CELL[0]
    }

    fn panel_height(&self) -> f64 {
        self.rows.len() as f64 * CELL[1]
    }

    fn row_labels(&self) -> f64 {
        let labels = self.rows.iter().chain([&self.y_axis]);
        labels.map(|label| font::width(label, SMALL)).fold(0.0, f64::max).ceil() + 8.0
    }

    fn draw_map(&self, scene: &mut Scene, map: &Map, [left, top]: [f64; 2]) {
        let scale = Scale::of(map);
        scene.text([left, top + HEADING / 2.0], HEADING, Anchor::Start, Color::BLACK, &map.title);
        let cells_top = top + Figure::above();
        let labels = left + self.row_labels() - 8.0;
        let heading = cells_top - TEXT * 0.9;
        scene.text([labels, heading], SMALL, Anchor::End, GREY, &self.y_axis);
        for (row, label) in self.rows.iter().enumerate() {
            let y = cells_top + (row as f64 + 0.5) * CELL[1];
            scene.text([labels, y], SMALL, Anchor::End, Color::BLACK, label);
        }
        for (number, panel) in map.panels.iter().enumerate() {
            let x = left + self.row_labels() + number as f64 * (self.panel_width() + GAP);
            let middle = x + self.panel_width() / 2.0;
            let title = cut(&panel.title, TEXT, self.panel_width() + GAP);
            scene.text([middle, heading], TEXT, Anchor::Middle, Color::BLACK, &title);
            self.draw_panel(scene, panel, &scale, [x, cells_top]);
            let below = cells_top + self.panel_height() + SMALL * 0.9;
            for (column, label) in self.columns.iter().enumerate() {
                let middle = x + (column as f64 + 0.5) * CELL[0];
                scene.text([middle, below], SMALL, Anchor::Middle, Color::BLACK, &cut(label, SMALL, CELL[0] - 2.0));
            }
            scene.text([middle, below + SMALL * 1.5], SMALL, Anchor::Middle, GREY, &self.x_axis);
        }
        let bar = left + self.row_labels() + map.panels.len() as f64 * (self.panel_width() + GAP);
        self.draw_bar(scene, map, &scale, [bar, cells_top]);
    }

    fn draw_panel(&self, scene: &mut Scene, panel: &Panel, scale: &Scale, [left, top]: [f64; 2]) {
        let places = (0..self.rows.len()).flat_map(|row| (0..self.columns.len()).map(move |column| (row, column)));
        for ((row, column), cell) in places.zip(&panel.cells) {
            let (x, y) = (left + column as f64 * CELL[0], top + row as f64 * CELL[1]);
            // A pixel is left between cells.
            let place = [x, y, CELL[0] - 1.0, CELL[1] - 1.0];
            let Some((value, shown)) = cell else {
                scene.rectangle(place, EMPTY, String::new());
                continue;
            };
            let fill = if value.is_nan() { EMPTY } else { scale.color(*value) };
            let says =
                format!("{}, {} {}, {}: {shown}", panel.title, self.y_axis, self.rows[row], self.columns[column]);
            scene.rectangle(place, fill, says);
            let middle = [x + (CELL[0] - 1.0) / 2.0, y + (CELL[1] - 1.0) / 2.0];
            scene.text(middle, SMALL, Anchor::Middle, fill.ink(), shown);
        }
    }

    fn draw_bar(&self, scene: &mut Scene, map: &Map, scale: &Scale, [left, top]: [f64; 2]) {
        let height = self.panel_height() - 1.0;
        let steps = height.max(1.0);
        let value_at = |from_top: f64| scale.high - (scale.high - scale.low) * from_top;
        for step in 0..steps as usize {
            let from_top = (step as f64 + 0.5) / steps;
            scene.rectangle([left, top + step as f64, BAR, 1.0], scale.color(value_at(from_top)), String::new());
        }
        scene.text([left, top - TEXT * 0.9], SMALL, Anchor::Start, GREY, &map.quantity);
        let (ticks, step) = scale.ticks(height);
        for tick in ticks {
            let y = top + height * (scale.high - tick) / (scale.high - scale.low);
            scene.rectangle([left + BAR, y - 0.5, 4.0, 1.0], GREY, String::new());
            scene.text([left + BAR + 7.0, y], SMALL, Anchor::Start, Color::BLACK, &tick_label(tick, step));
        }
    }
}

/// Values to colours.
struct Scale {
    low: f64,
    high: f64,
    dark_is_large: bool,
}

impl Scale {
    /// From the smallest to the largest value that is finite.
    fn of(map: &Map) -> Scale {
        let values = map.panels.iter().flat_map(|panel| panel.cells.iter().flatten());
        let finite = values.map(|&(value, _)| value).filter(|value| value.is_finite());
        let [mut low, mut high] = finite.fold([f64::NAN; 2], |[low, high], v| [low.min(v), high.max(v)]);
        // Of one value, or none, the place among all that are possible shows more than a scale of its own.
        if low.is_nan() || high - low <= high.abs().max(low.abs()) * 1e-9 {
            [low, high] = match map.range {
                [low, high] if high.is_finite() => [low, high],
                [low, _] if high > low && high.is_finite() => [low, 2.0 * high - low],
                [low, _] => [low, low + 1.0],
            };
        }
        Scale { low, high, dark_is_large: map.dark_is_large }
    }

    /// Viridis, whose steps look equally large and which survives grey printing and colour blindness.
    fn color(&self, value: f64) -> Color {
        let from_low = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        let light = if self.dark_is_large { 1.0 - from_low } else { from_low };
        let color = colorous::VIRIDIS.eval_continuous(light);
        Color([color.r, color.g, color.b])
    }

    /// Round numbers on the scale, at least two, about one for every 40 pixels of `height` up to eight; and their
    /// step.
    fn ticks(&self, height: f64) -> (Vec<f64>, f64) {
        let mut ticks = Vec::new();
        let mut step = 0.0;
        let fewest = (height / 40.0).clamp(2.0, 8.0) as usize;
        for count in fewest..fewest + 8 {
            step = self.step(count);
            let numbers = (self.low / step).ceil() as i64..=(self.high / step).floor() as i64;
            ticks = numbers.take(20).map(|n| n as f64 * step).collect();
            if ticks.len() > 1 {
                break;
            }
        }
        (ticks, step)
    }

    /// 1, 2 or 5 times a power of ten, of which about `count` fit on the scale.
    fn step(&self, count: usize) -> f64 {
        let rough = (self.high - self.low) / count as f64;
        let power = 10f64.powf(rough.log10().floor());
        let times = [1.0, 2.0, 5.0].into_iter().find(|times| times * power >= rough * 0.999);
        times.unwrap_or(10.0) * power
    }
}

/// A tick's number, with the decimals that its step needs.
fn tick_label(tick: f64, step: f64) -> String {
    let decimals = -(step * 1.001).log10().floor();
    if tick == 0.0 {
        "0".into()
    } else if decimals > 5.0 || tick.abs() >= 1e6 {
        format!("{tick:.1e}").replace('-', "−")
    } else {
        format!("{tick:.*}", decimals.max(0.0) as usize).replace('-', "−")
    }
}

/// A text cut to a width, with `…` where something is missing.
fn cut(text: &str, size: f64, width: f64) -> String {
    if font::width(text, size) <= width {
        return text.into();
    }
    let mut cut: Vec<char> = text.chars().collect();
    while cut.pop().is_some() {
        let shown: String = cut.iter().chain(&['…']).collect();
        if font::width(&shown, size) <= width {
            return shown;
        }
    }
    String::new()
}

/// Lines no wider than `width`, broken at spaces.
fn wrapped(text: &str, size: f64, width: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if font::width(&format!("{line} {word}"), size) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(cut(word, size, width)),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(values: &[f64]) -> Map {
        let cells = values.iter().map(|&value| Some((value, value.to_string()))).collect();
        let panels = vec![Panel { title: "v–l".into(), cells }];
        Map { title: String::new(), quantity: String::new(), range: [0.0, f64::INFINITY], dark_is_large: true, panels }
    }

    #[test]
    fn ticks_are_round_and_on_the_scale() {
        let scale = Scale::of(&map(&[0.013, 0.094, f64::NAN]));
        assert_eq!((scale.low, scale.high), (0.013, 0.094));
        let (ticks, step) = scale.ticks(200.0);
        let labels: Vec<String> = ticks.into_iter().map(|tick| tick_label(tick, step)).collect();
        assert_eq!(labels, ["0.02", "0.04", "0.06", "0.08"]);
        assert_eq!(tick_label(-0.5, 0.5), "−0.5");
        assert_eq!(tick_label(1000.0, 500.0), "1000");
    }

    #[test]
    fn any_values_make_a_scale() {
        for values in
            [&[][..], &[0.0], &[5.0, 5.0], &[-3.0], &[f64::NAN], &[f64::INFINITY], &[1e-300, 2e-300], &[0.9995, 1.0]]
        {
            for range in [[0.0, f64::INFINITY], [-1.0, 1.0]] {
                let scale = Scale::of(&Map { range, ..map(values) });
                assert!(scale.low < scale.high, "{values:?}");
                for height in [20.0, 70.0, 500.0, 20_000.0] {
                    assert!((2..20).contains(&scale.ticks(height).0.len()), "{values:?} {height}");
                }
                for &value in values {
                    scale.color(value);
                }
            }
        }
    }

    #[test]
    fn dark_is_far() {
        let luminance = |color: Color| color.0.iter().map(|&c| u32::from(c)).sum::<u32>();
        let scale = Scale::of(&map(&[0.0, 1.0]));
        assert!(luminance(scale.color(0.0)) > luminance(scale.color(1.0)));
    }

    #[test]
    fn long_texts_are_cut() {
        let text = "a".repeat(300);
        assert!(font::width(&cut(&text, 12.0, 100.0), 12.0) <= 100.0);
        assert_eq!(cut("short", 12.0, 100.0), "short");
        assert!(wrapped("some words that need two lines", 12.0, 100.0).len() > 1);
    }
}
