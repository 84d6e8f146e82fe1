//! Curves over training steps, as SVG inside a page.

use std::fmt::Write;

use super::page::{escape, number};

/// One figure.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    pub title: String,
    /// Values are shares, shown in percent.
    pub percent: bool,
    /// The scale starts at 0.
    pub from_zero: bool,
    /// Single values say little: a moving average is drawn over them, and a wide range gets a logarithmic scale.
    pub noisy: bool,
    pub series: Vec<Series>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    pub name: String,
    /// Step and value, in the order of steps. Values that are not finite break the curve and are marked.
    pub points: Vec<(f64, f64)>,
}

// In the units of the view box; text is 12 high.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 26.0;

/// Columns that many points are gathered in: finer than a screen shows, coarse enough for a small page.
const COLUMNS: usize = 360;
/// Colours in the page's style.
const COLOURS: usize = 4;

/// A `<figure>`: caption, legend where there are several series, the curves, and a table of some values.
pub fn figure(chart: &Chart) -> String {
    let mut out = format!("<figure class=\"card chart\"><figcaption><h3>{}</h3>", escape(&chart.title));
    let drawn: Vec<&Series> = chart.series.iter().filter(|series| !series.points.is_empty()).collect();
    if drawn.len() > 1 {
        out += "<ul class=\"legend\">";
        for (at, series) in drawn.iter().enumerate() {
            let _ = write!(
                out,
                "<li><span style=\"background:var(--s{})\"></span>{}</li>",
                at % COLOURS,
                escape(&series.name)
            );
        }
        out += "</ul>";
    }
    let finite = drawn.iter().flat_map(|series| &series.points).filter(|(_, value)| value.is_finite());
    let range = finite.clone().fold(None, |range: Option<(f64, f64)>, &(_, value)| {
        Some(range.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
    });
    let Some((low, high)) = range else {
        out += "</figcaption><p class=\"soft\">No finite value.</p></figure>";
        return out;
    };
    let smooth = chart.noisy && drawn.iter().any(|series| series.points.len() >= SMOOTHED);
    // From zero and logarithmic don't go together.
    let log = chart.noisy && !chart.from_zero && low > 0.0 && high / low >= 100.0;
    let mut remarks: Vec<&str> = Vec::new();
    remarks.extend(smooth.then_some("moving average over single values"));
    remarks.extend(log.then_some("logarithmic"));
    if !remarks.is_empty() {
        let _ = write!(out, "<span class=\"soft small\">{}</span>", remarks.join(", "));
    }
    out += "</figcaption>";

    let steps = drawn.iter().flat_map(|series| &series.points).map(|(step, _)| *step);
    let (first, last) = steps.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    // A run that starts at step 10 of 1,000 is shown from 0.
    let first = if first > 0.0 && first < 0.2 * last { 0.0 } else { first };
    let x = Scale::new((first, last), (LEFT, WIDTH - RIGHT), false);
    let (low, high) = if chart.from_zero { (low.min(0.0), high) } else { (low, high) };
    let y = Scale::new(padded(low, high, log, chart.from_zero), (HEIGHT - BOTTOM, TOP), log);

    let shown: Vec<Vec<(f64, f64)>> = drawn.iter().map(|series| hovered(series, smooth)).collect();
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" tabindex=\"0\" aria-label=\"{}\" data-plot=\"{}\">",
        escape(&summary(chart, &drawn)),
        escape(&plot_data(chart, &drawn, &shown, &x, &y)),
    );
    axes(&mut out, chart, &x, &y);
    for (at, series) in drawn.iter().enumerate() {
        let colour = format!("style=\"stroke:var(--s{})\"", at % COLOURS);
        let few = series.points.len() <= 40;
        if smooth && series.points.len() >= SMOOTHED {
            if series.points.len() <= 2 * COLUMNS {
                path(&mut out, "raw", &colour, &series.points, &x, &y);
            } else {
                band(&mut out, at, &series.points, &x, &y);
            }
            path(&mut out, "curve", &colour, &extremes(&average(&series.points)), &x, &y);
        } else {
            path(&mut out, "curve", &colour, &extremes(&series.points), &x, &y);
        }
        if few {
            for (step, value) in series.points.iter().filter(|(_, value)| value.is_finite()) {
                let (cx, cy) = (x.at(*step), y.at(*value));
                let _ = write!(
                    out,
                    "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\" style=\"fill:var(--s{})\"/>",
                    at % COLOURS
                );
            }
        }
        broken_marks(&mut out, series, &x);
    }
    out += "<line class=\"cursor\" hidden/></svg>";
    broken_note(&mut out, &drawn);
    values_table(&mut out, chart, &drawn, &shown);
    out += "</figure>";
    out
}

/// From so many points on a moving average is worth drawing.
const SMOOTHED: usize = 60;

/// A linear or logarithmic map from values to places.
struct Scale {
    from: (f64, f64),
    to: (f64, f64),
    log: bool,
}

impl Scale {
    fn new(from: (f64, f64), to: (f64, f64), log: bool) -> Scale {
        // One step only: in the middle.
        let from = if from.0 < from.1 { from } else { (from.0 - 0.5, from.1 + 0.5) };
        Scale { from, to, log }
    }

    fn at(&self, value: f64) -> f64 {
        let place = |value: f64| if self.log { value.max(f64::MIN_POSITIVE).ln() } else { value };
        let (low, high) = (place(self.from.0), place(self.from.1));
        self.to.0 + (place(value) - low) / (high - low) * (self.to.1 - self.to.0)
    }

    /// Round values within the scale.
    fn ticks(&self, about: usize) -> Vec<f64> {
        let (low, high) = self.from;
        let inside = |value: &f64| *value >= low && *value <= high;
        if self.log {
            let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
            let all = |within: &[f64]| -> Vec<f64> {
                let of =
                    |exponent: i32| within.iter().map(move |digit| digit * 10f64.powi(exponent)).collect::<Vec<_>>();
                decades.clone().flat_map(of).filter(inside).collect()
            };
            let tens = all(&[1.0]);
            let every = tens.len().div_ceil(6).max(1);
            return if tens.len() < 3 { all(&[1.0, 2.0, 5.0]) } else { tens.into_iter().step_by(every).collect() };
        }
        let rough = (high - low) / about as f64;
        let unit = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * unit).find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * unit);
        if !step.is_finite() || step <= 0.0 {
            return vec![low, high];
        }
        let from = (low / step).ceil();
        // Multiples, not sums: 3 × 0.1 rounds once.
        (0..=about * 3).map(|at| (from + at as f64) * step).filter(inside).collect()
    }
}

fn padded(low: f64, high: f64, log: bool, from_zero: bool) -> (f64, f64) {
    if log {
        return (low / 1.15, high * 1.15);
    }
    let room = match high - low {
        0.0 => {
            if low == 0.0 {
                1.0
            } else {
                0.1 * low.abs()
            }
        }
        range => 0.06 * range,
    };
    (if from_zero && low == 0.0 { 0.0 } else { low - room }, high + room)
}

/// No more than two points a column: its least and its largest value, in their order. Gaps stay.
fn extremes(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= 2 * COLUMNS {
        return points.to_vec();
    }
    let mut out = Vec::with_capacity(3 * COLUMNS);
    for column in columns(points) {
        match least_and_largest(column) {
            Some((least, largest)) => {
                let (a, b) = if least.0 <= largest.0 { (least, largest) } else { (largest, least) };
                out.push(a);
                if a != b {
                    out.push(b);
                }
            }
            // Nothing in it is finite.
            None => out.extend(column.first().copied()),
        }
    }
    out
}

/// The finite ones; `None` where there are none.
fn least_and_largest(column: &[(f64, f64)]) -> Option<((f64, f64), (f64, f64))> {
    let finite = || column.iter().copied().filter(|(_, value)| value.is_finite());
    let least = finite().reduce(|best, next| if next.1 < best.1 { next } else { best })?;
    let largest = finite().reduce(|best, next| if next.1 > best.1 { next } else { best })?;
    Some((least, largest))
}

/// Points by equal shares of the steps they span.
fn columns(points: &[(f64, f64)]) -> impl Iterator<Item = &[(f64, f64)]> {
    let (first, last) = (points.first().map_or(0.0, |p| p.0), points.last().map_or(0.0, |p| p.0));
    let column = move |step: f64| ((step - first) / (last - first).max(1e-9) * (COLUMNS as f64 - 1e-6)) as usize;
    points.chunk_by(move |a, b| column(a.0) == column(b.0))
}

/// Centred, over about a fortieth of the points and fewer towards the ends, so that the curve neither lags nor leads;
/// at the very ends a little off centre, as one value alone would stick out. Values that are not finite are left out,
/// and stay.
fn average(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut sums = vec![(0.0, 0.0)];
    for (at, (_, value)) in points.iter().enumerate() {
        let (sum, count) = sums[at];
        sums.push(if value.is_finite() { (sum + value, count + 1.0) } else { (sum, count) });
    }
    let reach = points.len() / 80 + 1;
    let mean = |(at, &(step, value)): (usize, &(f64, f64))| {
        let last = points.len() - 1;
        let reach = reach.min(at.min(last - at).max(reach / 6));
        let (from, to) = (sums[at.saturating_sub(reach)], sums[(at + reach).min(last) + 1]);
        (step, if value.is_finite() { (to.0 - from.0) / (to.1 - from.1) } else { value })
    };
    points.iter().enumerate().map(mean).collect()
}

/// What a pointer over the curve reads: as drawn, one point a column.
fn hovered(series: &Series, smooth: bool) -> Vec<(f64, f64)> {
    let averaged;
    let points = if smooth && series.points.len() >= SMOOTHED {
        averaged = average(&series.points);
        &averaged
    } else {
        &series.points
    };
    if points.len() <= COLUMNS {
        return points.clone();
    }
    columns(points).filter_map(|column| column.last().copied()).collect()
}

fn axes(out: &mut String, chart: &Chart, x: &Scale, y: &Scale) {
    for tick in y.ticks(5) {
        let at = y.at(tick);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 7.0,
            at + 4.0,
            value_text(chart, tick),
        );
    }
    let base = HEIGHT - BOTTOM;
    let _ = write!(out, "<line class=\"base\" x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{base}\" y2=\"{base}\"/>", WIDTH - RIGHT);
    for tick in x.ticks(6).into_iter().filter(|tick| tick.fract() == 0.0) {
        let at = x.at(tick);
        // A number at the edge would be cut.
        let anchor = if at > WIDTH - RIGHT - 16.0 { "end" } else { "middle" };
        let _ = write!(
            out,
            "<text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"{anchor}\">{}</text>",
            HEIGHT - 8.0,
            step_text(tick)
        );
    }
}

fn path(out: &mut String, class: &str, colour: &str, points: &[(f64, f64)], x: &Scale, y: &Scale) {
    let mut d = String::new();
    for piece in points.split(|(_, value)| !value.is_finite()) {
        let mut pen = 'M';
        for (step, value) in piece {
            let _ = write!(d, "{pen}{:.1} {:.1}", x.at(*step), y.at(*value));
            pen = 'L';
        }
        // A line of no length: its round ends are a point, where a move alone draws nothing.
        if piece.len() == 1 {
            d += "h0";
        }
    }
    let _ = write!(out, "<path class=\"{class}\" {colour} d=\"{d}\"/>");
}

/// The area between the least and the largest value of each column.
fn band(out: &mut String, series: usize, points: &[(f64, f64)], x: &Scale, y: &Scale) {
    let mut d = String::new();
    let mut piece: Vec<(f64, f64, f64)> = Vec::new();
    let mut close = |piece: &mut Vec<(f64, f64, f64)>| {
        let upper = piece.iter().map(|&(x, _, upper)| (x, upper));
        let lower = piece.iter().rev().map(|&(x, lower, _)| (x, lower));
        for (at, (x, y)) in upper.chain(lower).enumerate() {
            let _ = write!(d, "{}{x:.1} {y:.1}", if at == 0 { 'M' } else { 'L' });
        }
        if !piece.is_empty() {
            d.push('Z');
        }
        piece.clear();
    };
    for column in columns(points) {
        match least_and_largest(column) {
            Some((least, largest)) => piece.push((x.at(column[0].0), y.at(least.1), y.at(largest.1))),
            None => close(&mut piece),
        }
    }
    close(&mut piece);
    let _ = write!(out, "<path class=\"band\" style=\"fill:var(--s{})\" d=\"{d}\"/>", series % COLOURS);
}

/// Triangles on the axis where values are not finite, no two in one place.
fn broken_marks(out: &mut String, series: &Series, x: &Scale) {
    let mut before = f64::NEG_INFINITY;
    for (step, _) in series.points.iter().filter(|(_, value)| !value.is_finite()) {
        let at = x.at(*step);
        if at - before >= 4.0 {
            before = at;
            let base = HEIGHT - BOTTOM;
            let _ = write!(
                out,
                "<path class=\"broken\" d=\"M{at:.1} {:.1}l-5 9h10z\"><title>not finite at step {}</title></path>",
                base - 9.0,
                number(*step)
            );
        }
    }
}

fn broken_note(out: &mut String, drawn: &[&Series]) {
    for series in drawn {
        let mut broken = series.points.iter().filter(|(_, value)| !value.is_finite());
        let Some((first, _)) = broken.next() else { continue };
        let (count, of) =
            (1 + broken.count(), if drawn.len() > 1 { format!(" of {}", series.name) } else { String::new() });
        let values = if count == 1 { "1 value" } else { &format!("{} values", number(count as f64)) };
        let _ = write!(
            out,
            "<p class=\"small soft\">▲ {values}{} not finite, the first at step {}.</p>",
            escape(&of),
            number(*first)
        );
    }
}

/// A dozen rows for those who can't see the curve, or want numbers.
fn values_table(out: &mut String, chart: &Chart, drawn: &[&Series], shown: &[Vec<(f64, f64)>]) {
    const ROWS: usize = 12;
    let longest = shown.iter().max_by_key(|points| points.len());
    let Some(steps) = longest.filter(|points| !points.is_empty()) else { return };
    *out += "<details><summary>Values</summary><div class=\"scroll\"><table><thead><tr><th scope=\"col\">step</th>";
    for series in drawn {
        let _ = write!(out, "<th scope=\"col\" class=\"n\">{}</th>", escape(&series.name));
    }
    *out += "</tr></thead><tbody>";
    let rows = steps.len().min(ROWS);
    for row in 0..rows {
        let at = if rows == 1 { 0 } else { row * (steps.len() - 1) / (rows - 1) };
        let step = steps[at].0;
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>", number(step));
        for points in shown {
            let found = points.iter().find(|(other, _)| *other == step);
            let _ = write!(
                out,
                "<td class=\"n\">{}</td>",
                found.map_or("–".into(), |(_, value)| value_text(chart, *value))
            );
        }
        *out += "</tr>";
    }
    *out += "</tbody></table></div></details>";
}

/// A sentence for a screen reader.
fn summary(chart: &Chart, drawn: &[&Series]) -> String {
    let mut text = format!("{} over training steps.", chart.title);
    for series in drawn {
        let finite = || series.points.iter().filter(|(_, value)| value.is_finite());
        let (Some(first), Some(last)) = (finite().next(), finite().next_back()) else { continue };
        let _ = write!(
            text,
            " {}: from {} at step {} to {} at step {}.",
            series.name,
            value_text(chart, first.1),
            number(first.0),
            value_text(chart, last.1),
            number(last.0),
        );
    }
    text
}

/// What the page's script needs to show a value under the pointer.
fn plot_data(chart: &Chart, drawn: &[&Series], shown: &[Vec<(f64, f64)>], x: &Scale, y: &Scale) -> String {
    let series: Vec<serde_json::Value> = drawn
        .iter()
        .zip(shown)
        .map(|(series, points)| {
            let place = |(step, value): &(f64, f64)| {
                let at = |place: f64| (place * 10.0).round() / 10.0;
                let y = if value.is_finite() { at(y.at(*value)) } else { HEIGHT - BOTTOM };
                serde_json::json!([at(x.at(*step)), y, number(*step), value_text(chart, *value)])
            };
            serde_json::json!({"name": series.name, "points": points.iter().map(place).collect::<Vec<_>>()})
        })
        .collect();
    serde_json::json!({"top": TOP, "bottom": HEIGHT - BOTTOM, "series": series}).to_string()
}

fn value_text(chart: &Chart, value: f64) -> String {
    if chart.percent && value.is_finite() { format!("{}%", number((value * 1e6).round() / 1e4)) } else { number(value) }
}

/// `500`, `12k`, `1.5M`
fn step_text(step: f64) -> String {
    let size = step.abs();
    if size >= 1e6 {
        format!("{}M", step / 1e6)
    } else if size >= 1e4 {
        format!("{}k", step / 1e3)
    } else {
        number(step)
    }
}

/// Shows the values at the pointer, or step by step with the arrow keys.
pub const SCRIPT: &str = r#"
for (const svg of document.querySelectorAll('svg[data-plot]')) {
  const plot = JSON.parse(svg.dataset.plot), figure = svg.closest('figure'), cursor = svg.querySelector('.cursor');
  const longest = plot.series.reduce((a, b) => b.points.length > a.points.length ? b : a).points;
  let tip = null, at = -1;
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (low < high) { const mid = (low + high) >> 1; if (points[mid][0] < x) low = mid + 1; else high = mid; }
    return low > 0 && x - points[low - 1][0] < points[low][0] - x ? low - 1 : low;
  };
  const hide = () => { if (tip) tip.remove(); tip = null; cursor.setAttribute('hidden', ''); };
  const show = index => {
    at = Math.max(0, Math.min(longest.length - 1, index));
    const [x, , step] = longest[at];
    if (!tip) { tip = document.createElement('div'); tip.className = 'tip'; tip.setAttribute('role', 'status'); figure.append(tip); }
    const values = plot.series.map(s => { const p = s.points[nearest(s.points, x)];
      return (plot.series.length > 1 ? s.name + ' ' : '') + p[3]; });
    tip.textContent = 'step ' + step + ' · ' + values.join(' · ');
    for (const [k, v] of [['x1', x], ['x2', x], ['y1', plot.top], ['y2', plot.bottom]]) cursor.setAttribute(k, v);
    cursor.removeAttribute('hidden');
    const box = svg.getBoundingClientRect(), outer = figure.getBoundingClientRect(), view = svg.viewBox.baseVal;
    const left = box.left - outer.left + x / view.width * box.width;
    tip.style.left = Math.max(4, Math.min(outer.width - tip.offsetWidth - 4, left - tip.offsetWidth / 2)) + 'px';
    tip.style.top = (box.top - outer.top - tip.offsetHeight + 4) + 'px';
  };
  svg.addEventListener('pointermove', e => {
    const box = svg.getBoundingClientRect();
    show(nearest(longest, (e.clientX - box.left) / box.width * svg.viewBox.baseVal.width));
  });
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('blur', hide);
  svg.addEventListener('keydown', e => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[e.key];
    if (e.key === 'Escape') hide();
    else if (move) { e.preventDefault(); show(at + move); }
  });
}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let series = vec![Series { name: "loss".into(), points }];
        Chart { title: "Loss".into(), noisy: true, series, ..Chart::default() }
    }

    fn count(text: &str, what: &str) -> usize {
        text.matches(what).count()
    }

    #[test]
    fn ticks_by_hand() {
        let ticks = |low: f64, high: f64, log| Scale::new((low, high), (0.0, 1.0), log).ticks(4);
        assert_eq!(ticks(0.0, 1.0, false), [0.0, 0.5, 1.0]);
        assert_eq!(ticks(0.13, 0.47, false), [0.2, 0.30000000000000004, 0.4]);
        assert_eq!(ticks(0.0, 20_000.0, false), [0.0, 5000.0, 10_000.0, 15_000.0, 20_000.0]);
        assert_eq!(ticks(0.009, 1.2, true), [0.01, 0.1, 1.0]);
        assert_eq!(ticks(1.5, 90.0, true), [2.0, 5.0, 10.0, 20.0, 50.0]);
        // One value: half a unit to each side.
        assert_eq!(ticks(7.0, 7.0, false), [6.5, 7.0, 7.5]);
    }

    #[test]
    fn from_zero_is_never_logarithmic() {
        let waits = vec![(1.0, 1e-5), (2.0, 0.3), (3.0, 0.2)];
        let svg = figure(&Chart { from_zero: true, percent: true, ..chart(waits.clone()) });
        assert!(!svg.contains("logarithmic"));
        assert!(figure(&chart(waits)).contains("logarithmic"));
    }

    #[test]
    fn few_points_are_dots_on_a_line() {
        let svg = figure(&chart(vec![(10.0, 3.0), (20.0, 2.0), (30.0, 1.0)]));
        assert_eq!(count(&svg, "<circle"), 3);
        assert_eq!(count(&svg, "class=\"raw\""), 0);
        assert!(svg.contains("Loss over training steps. loss: from 3 at step 10 to 1 at step 30."));
        assert!(!svg.contains("legend") && !svg.contains("NaN"));
    }

    #[test]
    fn a_single_point_is_drawn() {
        let svg = figure(&chart(vec![(5.0, 3.0)]));
        assert!(count(&svg, "<circle") == 1 && !svg.contains("NaN"), "{svg}");
        let curve = |svg: &str| {
            let curve = svg.split("class=\"curve\"").nth(1).unwrap().split(" d=\"").nth(1).unwrap();
            curve.split('"').next().unwrap().to_owned()
        };
        assert!(curve(&svg).ends_with("h0"), "{svg}");
        // One between values that are not finite, of many.
        let mut points: Vec<(f64, f64)> = (1..=50).map(|step| (f64::from(step), 1.0)).collect();
        points[24].1 = f64::NAN;
        points[26].1 = f64::NAN;
        assert_eq!(count(&curve(&figure(&chart(points))), "h0"), 1);
    }

    #[test]
    fn many_points_keep_their_extremes_and_a_small_size() {
        let mut points: Vec<(f64, f64)> = (1..=100_000).map(|step| (f64::from(step), 2.0)).collect();
        points[54_321].1 = 1e9;
        points[77_777].1 = f64::NAN;
        let kept = extremes(&points);
        assert!(kept.len() <= 2 * COLUMNS && kept.contains(&(54_322.0, 1e9)));
        let svg = figure(&chart(points));
        assert!(svg.len() < 60_000, "{}", svg.len());
        assert_eq!((count(&svg, "class=\"band\""), count(&svg, "class=\"curve\"")), (1, 1));
        assert!(svg.contains("1 value not finite, the first at step 77,778."));
    }

    #[test]
    fn the_average_is_centred_and_leaves_out_what_is_not_finite() {
        // 100 points: two neighbours to each side.
        let mut points: Vec<(f64, f64)> = (0..100).map(|step| (f64::from(step), f64::from(step))).collect();
        assert_eq!(average(&points), points);
        points[50].1 = f64::NAN;
        points[53].1 = 56.0;
        let averaged = average(&points);
        assert!(averaged[50].1.is_nan());
        // 49, 51, 52 and 56 instead of 53; 47, 48, 49 and 51 stay as they were.
        assert_eq!((averaged[51].1, averaged[49].1), (52.0, 48.75));
        assert_eq!(averaged[99].1, 99.0);
    }

    #[test]
    fn what_is_not_finite_breaks_the_curve() {
        let svg = figure(&chart(vec![(1.0, 1.0), (2.0, 2.0), (3.0, f64::NAN), (4.0, f64::INFINITY), (5.0, 2.0)]));
        let curve = svg.split("class=\"curve\"").nth(1).unwrap().split("/>").next().unwrap();
        assert_eq!((count(curve, "M"), count(curve, "L")), (2, 1));
        assert_eq!(count(&svg, "class=\"broken\""), 2);
        assert!(svg.contains("2 values not finite, the first at step 3."));
        assert!(figure(&chart(vec![(1.0, f64::NAN)])).contains("No finite value."));
    }

    #[test]
    fn several_series_have_a_legend_and_names_are_text() {
        let series = |name: &str| Series { name: name.into(), points: vec![(1.0, 0.25), (2.0, 0.5)] };
        let chart =
            Chart { title: "a<b".into(), percent: true, series: vec![series("x&y"), series("z")], ..Chart::default() };
        let html = figure(&chart);
        assert!(html.contains("<h3>a&lt;b</h3>") && html.contains("</span>x&amp;y</li>") && !html.contains("x&y"));
        assert!(html.contains("25%") && html.contains("50%"));
    }

    #[test]
    fn a_wide_range_is_logarithmic() {
        let html = figure(&chart(vec![(1.0, 100.0), (2.0, 0.5)]));
        assert!(html.contains("logarithmic"));
        assert!(!figure(&chart(vec![(1.0, 100.0), (2.0, 0.0)])).contains("logarithmic"));
    }
}
