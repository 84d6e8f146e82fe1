//! A run as one HTML page: how it went, what came out, what it was made of.

use std::fmt::Write;

use formats::shell_path;
use indexmap::IndexMap;
use serde_json::Value;

use super::chart::{self, Chart, Series};
use super::metrics_log::{BROKEN_ROWS, DATA_WAIT, EPOCH, GRADIENT_NORM, IMAGES_PER_SECOND, LOSS, LR, Line, VALIDATION};
use super::page::{data_uri, document, escape, number};
use super::progress::duration;
use super::run_files::{RunFiles, RunResult, Sample, Status};

/// The page. It needs nothing but itself: curves, images and style are inside.
pub fn report(run: &RunFiles) -> String {
    let mut notes = run.notes.clone();
    let samples = samples(run, &mut notes);
    let curves = Curves::of(&run.lines);
    let mut body = header(run, &curves);
    if !notes.is_empty() {
        body += "<div class=\"note small\" role=\"note\"><ul>";
        for note in &notes {
            let _ = write!(body, "<li>{}</li>", escape(note));
        }
        body += "</ul></div>";
    }
    body += "</header>\n<main>";
    section(&mut body, "Metrics", &metrics(run, &curves));
    section(&mut body, "Curves", &charts(&curves));
    section(&mut body, "What the model says", &samples);
    section(&mut body, "Broken rows", &run.result.as_ref().map_or(String::new(), broken_rows));
    section(
        &mut body,
        "What was merged",
        &run.result.as_ref().and_then(|r| r.recipe.as_ref()).map_or(String::new(), recipe),
    );
    section(&mut body, "Configuration", &run.config.as_deref().map_or(String::new(), configuration));
    body += "</main>\n";
    let version = run.result.as_ref().map_or("", |result| result.version.as_str());
    let version = if version.is_empty() { String::new() } else { format!(" {}", escape(version)) };
    let _ = write!(
        body,
        "<footer><p>Trained with engine{version}. This page loads nothing and works offline.</p></footer>"
    );
    document(&format!("{} · training report", run.name), &body, chart::SCRIPT)
}

fn section(body: &mut String, title: &str, content: &str) {
    if !content.is_empty() {
        let _ = write!(body, "\n<section><h2>{}</h2>\n{content}</section>", escape(title));
    }
}

/// The lines of `metrics.jsonl` by what they measure.
struct Curves(IndexMap<String, Vec<(f64, f64)>>);

impl Curves {
    fn of(lines: &[Line]) -> Curves {
        let mut curves: IndexMap<String, Vec<(f64, f64)>> = IndexMap::new();
        for line in lines {
            for (name, &value) in &line.values {
                // Steps go up; of a step that is there twice the later counts.
                let curve = curves.entry(name.clone()).or_default();
                while curve.last().is_some_and(|(step, _)| *step >= line.step as f64) {
                    curve.pop();
                }
                curve.push((line.step as f64, value));
            }
        }
        Curves(curves)
    }

    fn get(&self, name: &str) -> &[(f64, f64)] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    fn last(&self, name: &str) -> Option<f64> {
        self.get(name).last().map(|(_, value)| *value)
    }

    /// Names of what evaluations measured.
    fn validation(&self) -> impl Iterator<Item = &str> {
        self.0.keys().filter_map(|name| name.strip_prefix(VALIDATION))
    }

    /// The largest value and its step.
    fn best(&self, name: &str) -> Option<(f64, f64)> {
        let finite = self.get(name).iter().filter(|(_, value)| value.is_finite());
        finite.copied().reduce(|best, next| if next.1 > best.1 { next } else { best })
    }
}

fn header(run: &RunFiles, curves: &Curves) -> String {
    let result = run.result.clone().unwrap_or_default();
    let mut out = format!("<header><h1>{}", escape(&run.name));
    if run.result.is_some() {
        let (class, text) = match result.status {
            // Nobody had the time to write down how it ended.
            Status::Running if run.training == Some(false) => ("bad", "stopped"),
            Status::Running if run.training == Some(true) => ("", "running"),
            Status::Running => ("", "running or stopped"),
            Status::Finished => ("good", "finished"),
            Status::Interrupted => ("", "interrupted"),
            Status::Failed => ("bad", "failed"),
        };
        let _ = write!(out, " <span class=\"tag {class}\">{text}</span>");
    }
    out += "</h1>";
    let mut about = Vec::new();
    about.extend((!result.task.is_empty()).then(|| format!("Fine-tuned for {}", task_title(&result.task))));
    about.extend((!result.train_data.is_empty()).then(|| {
        let noun = if result.train_examples == 1 { "example" } else { "examples" };
        let examples = format!("{} {noun}", number(result.train_examples as f64));
        format!("on {} ({examples})", result.train_data)
    }));
    about.extend((!result.validation_data.is_empty()).then(|| format!("validated on {}", result.validation_data)));
    about.extend((!result.device.is_empty()).then(|| result.device.clone()));
    if !about.is_empty() {
        let _ = write!(out, "<p class=\"soft\">{}</p>", escape(&about.join(", ")));
    }
    if run.result.is_some() && run.can_be_resumed() {
        let command = format!("engine finetune --resume {}", shell_path(&run.folder));
        let _ = write!(out, "<p class=\"note\">To continue this run: <code>{}</code></p>", escape(&command));
    }
    if let Some(protocol) = &result.protocol {
        let _ = write!(out, "<p class=\"soft\">{}</p>", escape(protocol));
    }
    if let Some(message) = &result.message {
        let _ = write!(out, "<p class=\"note\">{}</p>", escape(message));
    }
    out += &tiles(run, &result, curves);
    out
}

/// The few numbers that one looks for first.
fn tiles(run: &RunFiles, result: &RunResult, curves: &Curves) -> String {
    let mut tiles: Vec<(String, String, String)> = Vec::new();
    let headline = curves.validation().next().map(str::to_owned);
    if let Some(best) = &result.best {
        let at = format!("best, at step {}", number(best.step as f64));
        tiles.push((metric_title(&best.metric), percent(best.value), at));
    } else if let Some((name, (step, value))) =
        headline.and_then(|name| curves.best(&format!("{VALIDATION}{name}")).map(|best| (name, best)))
    {
        tiles.push((metric_title(&name), percent(value), format!("best, at step {}", number(step))));
    }
    if let Some(loss) = curves.last(LOSS) {
        let first = curves.get(LOSS).first().map_or(f64::NAN, |(_, loss)| *loss);
        tiles.push(("Last loss".into(), number(loss), format!("from {}", number(first))));
    }
    let step = result.step.max(run.lines.iter().map(|line| line.step).max().unwrap_or(0));
    if step > 0 {
        let of = if result.steps > 0 { format!("of {}", number(result.steps as f64)) } else { String::new() };
        let epoch = curves.last(EPOCH).map(|epoch| format!("epoch {}", number(epoch)));
        let small = [of, epoch.unwrap_or_default()].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>();
        tiles.push(("Updates".into(), number(step as f64), small.join(", ")));
    }
    let seconds = result.seconds.max(run.lines.iter().map(|line| line.seconds).fold(0.0, f64::max));
    if seconds > 0.0 {
        let wait = curves.get(DATA_WAIT);
        let finite: Vec<f64> = wait.iter().map(|(_, share)| *share).filter(|share| share.is_finite()).collect();
        let mean = finite.iter().sum::<f64>() / finite.len() as f64;
        let small = if finite.is_empty() { String::new() } else { format!("{} waiting for data", percent(mean)) };
        tiles.push(("Training time".into(), duration(seconds), small));
    }
    let speed = curves.get(IMAGES_PER_SECOND).iter().map(|(_, speed)| *speed).filter(|speed| speed.is_finite());
    let mut speed: Vec<f64> = speed.collect();
    if !speed.is_empty() {
        speed.sort_unstable_by(f64::total_cmp);
        tiles.push(("Images per second".into(), number(speed[speed.len() / 2]), "median".into()));
    }
    if result.parameters > 0 {
        let millions = result.parameters as f64 / 1e6;
        tiles.push(("Parameters".into(), format!("{} M", number(millions)), "trained".into()));
    }
    if tiles.is_empty() {
        return String::new();
    }
    let mut out = String::from("<dl class=\"tiles\">");
    for (title, value, small) in tiles {
        let (title, value, small) = (escape(&title), escape(&value), escape(&small));
        let _ = write!(out, "<div class=\"card\"><dt>{title}</dt><dd>{value}<small>{small}</small></dd></div>");
    }
    out + "</dl>"
}

/// What was left out of the data, and why.
fn broken_rows(result: &RunResult) -> String {
    if result.skipped.is_empty() {
        return String::new();
    }
    let rows: Vec<String> = result.skipped.iter().map(|row| format!("<li>{}</li>", escape(row))).collect();
    format!(
        "<div class=\"card small\"><p class=\"soft\">These rows could not be used and were skipped.</p><ul class=\"rows\">{}</ul></div>",
        rows.join("")
    )
}

/// Every metric, last and best.
fn metrics(run: &RunFiles, curves: &Curves) -> String {
    let mut names: Vec<String> = curves.validation().map(str::to_owned).collect();
    let of_result = run.result.as_ref().map(|result| &result.metrics);
    for name in of_result.into_iter().flat_map(IndexMap::keys) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    if names.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<div class=\"card scroll narrow\"><table><thead><tr><th scope=\"col\">On the validation split</th>\
         <th scope=\"col\" class=\"n\">last</th><th scope=\"col\" class=\"n\">best</th>\
         <th scope=\"col\" class=\"n\">at step</th></tr></thead><tbody>",
    );
    for name in names {
        let curve = format!("{VALIDATION}{name}");
        let last = curves.last(&curve).or_else(|| of_result?.get(&name).copied());
        let best = curves.best(&curve);
        let _ = write!(
            out,
            "<tr><th scope=\"row\">{}</th><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            escape(&metric_title(&name)),
            last.map_or("–".into(), percent),
            best.map_or("–".into(), |(_, value)| percent(value)),
            best.map_or("–".into(), |(step, _)| number(step)),
        );
    }
    out + "</tbody></table></div>"
}

/// Curves that share a scale and are read together: title and what each shows.
const TOGETHER: [(&str, &[(&str, &str)]); 4] = [
    ("Text → image recall", &[("ir_recall_at_1", "R@1"), ("ir_recall_at_5", "R@5"), ("ir_recall_at_10", "R@10")]),
    ("Image → text recall", &[("tr_recall_at_1", "R@1"), ("tr_recall_at_5", "R@5"), ("tr_recall_at_10", "R@10")]),
    ("Accuracy and consistency", &[("accuracy", "accuracy"), ("consistency", "consistency")]),
    ("Accuracy", &[("top_1", "top-1"), ("top_5", "top-5")]),
];

fn charts(curves: &Curves) -> String {
    let mut charts = Vec::new();
    let mut done = vec![EPOCH.to_owned()];
    let series = |name: &str, shown: &str| Series { name: shown.into(), points: curves.get(name).to_vec() };
    let single =
        |name: &str, title: &str| Chart { title: title.into(), series: vec![series(name, title)], ..Chart::default() };
    let mut add = |chart: Chart, names: Vec<String>| {
        done.extend(names);
        if chart.series.iter().any(|series| !series.points.is_empty()) {
            charts.push(chart);
        }
    };
    add(Chart { noisy: true, ..single(LOSS, "Loss") }, vec![LOSS.into()]);
    for (title, group) in TOGETHER {
        let name = |name: &str| format!("{VALIDATION}{name}");
        if group.iter().any(|(of, _)| !curves.get(&name(of)).is_empty()) {
            let series = group.iter().map(|(of, shown)| series(&name(of), shown)).collect();
            let chart = Chart { title: title.into(), percent: true, series, ..Chart::default() };
            add(chart, group.iter().map(|(of, _)| name(of)).collect());
        }
    }
    let rest: Vec<String> = curves.validation().map(|name| format!("{VALIDATION}{name}")).collect();
    for name in rest
        .into_iter()
        .filter(|name| !TOGETHER.iter().any(|(_, group)| group.iter().any(|(of, _)| name[VALIDATION.len()..] == **of)))
    {
        let title = metric_title(&name[VALIDATION.len()..]);
        add(Chart { percent: true, ..single(&name, &title) }, vec![name]);
    }
    add(single(LR, "Learning rate"), vec![LR.into()]);
    add(Chart { noisy: true, ..single(GRADIENT_NORM, "Gradient norm") }, vec![GRADIENT_NORM.into()]);
    let speed = Chart { noisy: true, from_zero: true, ..single(IMAGES_PER_SECOND, "Images per second") };
    add(speed, vec![IMAGES_PER_SECOND.into()]);
    let wait = single(DATA_WAIT, "Share of time waiting for data");
    add(Chart { noisy: true, from_zero: true, percent: true, ..wait }, vec![DATA_WAIT.into()]);
    add(Chart { from_zero: true, ..single(BROKEN_ROWS, "Broken rows") }, vec![BROKEN_ROWS.into()]);
    let others: Vec<&String> = curves.0.keys().filter(|name| !done.contains(name)).collect();
    charts.extend(others.into_iter().map(|name| Chart { noisy: true, ..single(name, name) }));

    if charts.is_empty() {
        return String::new();
    }
    let figures: Vec<String> = charts.iter().map(chart::figure).collect();
    format!("<div class=\"charts\">\n{}\n</div>", figures.join("\n"))
}

/// No more samples and bytes of images than this go into the page.
const SAMPLES: usize = 60;
const IMAGE_BYTES: usize = 24 << 20;

fn samples(run: &RunFiles, notes: &mut Vec<String>) -> String {
    if run.samples.is_empty() {
        return String::new();
    }
    let (mut bytes, mut lost) = (0, 0);
    let wide = if run.samples.iter().any(|sample| sample.images.len() > 2) { " wide" } else { "" };
    let mut out = format!("<ul class=\"samples{wide}\">");
    for sample in run.samples.iter().take(SAMPLES) {
        let images = sample_images(run, sample, &mut bytes, &mut lost);
        let text = if sample.text.is_empty() {
            String::new()
        } else {
            format!("<p><strong>{}</strong></p>", escape(&sample.text))
        };
        // A query stands above what it found, a question below what it is about.
        let [first, second] = if sample.predictions.is_empty() { [text, images] } else { [images, text] };
        let _ = write!(out, "<li class=\"card\">{first}{second}{}</li>", sample_answers(sample));
    }
    if run.samples.len() > SAMPLES {
        notes.push(format!("{SAMPLES} of {} samples are shown.", run.samples.len()));
    }
    if lost > 0 {
        notes.push(format!("{lost} images of samples are not shown: missing, of an unknown kind, or too large."));
    }
    out + "</ul>"
}

fn sample_images(run: &RunFiles, sample: &Sample, bytes: &mut usize, lost: &mut usize) -> String {
    let several = if sample.images.len() > 1 { " several" } else { "" };
    let mut out = format!("<div class=\"images{several}\">");
    for (at, image) in sample.images.iter().enumerate() {
        let found = run.image(image).filter(|found| *bytes + found.len() <= IMAGE_BYTES);
        let Some(uri) = found.as_deref().and_then(data_uri) else {
            *lost += 1;
            continue;
        };
        *bytes += found.map_or(0, |found| found.len());
        let right = if image.right { " class=\"right\"" } else { "" };
        let sought = if image.right { ", the one sought" } else { "" };
        let description = match sample.images.len() {
            1 => "image of the example".to_owned(),
            _ => format!("image {} {}{sought}", at + 1, image.caption),
        };
        let _ = write!(
            out,
            "<span{right}><img src=\"{uri}\" alt=\"{}\" loading=\"lazy\">{}</span>",
            escape(&description),
            escape(&image.caption)
        );
    }
    out + "</div>"
}

fn sample_answers(sample: &Sample) -> String {
    let mut out = String::new();
    if !sample.truth.is_empty() || sample.score.is_some() {
        let tag = sample.score.map(|score| {
            let (class, text) = if score >= 0.999 {
                ("good", "right".into())
            } else if score <= 0.0 {
                ("bad", "wrong".into())
            } else {
                ("", format!("{} right", percent(score)))
            };
            format!(" <span class=\"tag {class}\">{text}</span>")
        });
        let truth = match sample.truth.is_empty() {
            true => String::new(),
            false => format!("truth: {}", sample.truth.join(" · ")),
        };
        let _ = write!(out, "<p class=\"small soft\">{}{}</p>", escape(&truth), tag.unwrap_or_default());
    }
    if !sample.predictions.is_empty() {
        out += "<ol class=\"small\">";
        for prediction in &sample.predictions {
            let share = if prediction.score.is_finite() { prediction.score.clamp(0.0, 1.0) } else { 0.0 };
            let _ = write!(
                out,
                "<li><i style=\"width:{:.1}%\"></i><span>{}</span><span>{}</span></li>",
                100.0 * share,
                escape(&prediction.answer),
                percent(prediction.score)
            );
        }
        out += "</ol>";
    }
    out
}

/// A `vlmerge.recipe`: method, parameters, inputs, rules; whatever else it has stays readable as JSON.
fn recipe(recipe: &Value) -> String {
    let text = |name: &str| recipe.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut out = String::from("<div class=\"card\">");
    if !text("method").is_empty() {
        let tool = [text("tool"), text("version")].join(" ");
        let _ = write!(
            out,
            "<p><strong>{}</strong> <span class=\"soft\">{}</span></p>",
            escape(text("method")),
            escape(&tool)
        );
    }
    if let Some(Value::Object(parameters)) =
        recipe.get("parameters").filter(|found| found.as_object().is_some_and(|p| !p.is_empty()))
    {
        out += &pairs(parameters.iter().map(|(name, value)| (name.clone(), value_text(value))));
    }
    let inputs = recipe.get("inputs").and_then(Value::as_array).filter(|inputs| !inputs.is_empty());
    if let Some(inputs) = inputs {
        out += "<div class=\"scroll\"><table><caption>Inputs</caption><thead><tr><th scope=\"col\">role</th>\
                <th scope=\"col\">file</th><th scope=\"col\">content digest</th></tr></thead><tbody>";
        for input in inputs {
            let text = |name: &str| escape(&input.get(name).map(value_text).unwrap_or_default());
            let (role, name, digest) = (text("role"), text("name"), text("content_digest"));
            let _ = write!(out, "<tr><th scope=\"row\">{role}</th><td>{name}</td><td><code>{digest}</code></td></tr>");
        }
        out += "</tbody></table></div>";
    }
    let json = serde_json::to_string_pretty(recipe).unwrap_or_default();
    let _ = write!(out, "<details><summary>As JSON</summary><pre>{}</pre></details></div>", escape(&json));
    out
}

fn configuration(text: &str) -> String {
    let source = format!("<details><summary>config.toml</summary><pre>{}</pre></details>", escape(text));
    match text.parse::<toml::Table>() {
        Ok(table) => {
            let mut values = Vec::new();
            flatten("", &table, &mut values);
            format!("<div class=\"card\">{}{source}</div>", pairs(values.into_iter()))
        }
        // Shown all the same: it is what there is.
        Err(_) => format!("<div class=\"card\"><p>This is no valid TOML.</p><pre>{}</pre></div>", escape(text)),
    }
}

fn flatten(before: &str, table: &toml::Table, values: &mut Vec<(String, String)>) {
    for (name, value) in table {
        let name = format!("{before}{name}");
        match value {
            toml::Value::Table(table) => flatten(&format!("{name}."), table, values),
            toml::Value::String(text) => values.push((name, text.clone())),
            // 2e-5, as people write it.
            toml::Value::Float(value) if *value != 0.0 && value.abs() < 1e-3 => {
                values.push((name, format!("{value:e}")))
            }
            other => values.push((name, other.to_string())),
        }
    }
}

fn pairs(values: impl Iterator<Item = (String, String)>) -> String {
    let mut out = String::from("<dl class=\"pairs small\">");
    for (name, value) in values {
        let _ = write!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escape(&name), escape(&value));
    }
    out + "</dl>"
}

fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn percent(value: f64) -> String {
    if value.is_finite() { format!("{:.2}%", 100.0 * value) } else { number(value) }
}

fn task_title(task: &str) -> &str {
    match task {
        "irtr" => "image–text retrieval",
        "vqa" => "visual question answering",
        "nlvr2" => "NLVR2",
        "img_cls" => "image classification",
        other => other,
    }
}

/// For people; a name that isn't known here is shown as it is.
fn metric_title(name: &str) -> String {
    let title = match name {
        "recall_mean" => "Mean recall",
        "ir_recall_at_1" => "Text → image recall@1",
        "ir_recall_at_5" => "Text → image recall@5",
        "ir_recall_at_10" => "Text → image recall@10",
        "tr_recall_at_1" => "Image → text recall@1",
        "tr_recall_at_5" => "Image → text recall@5",
        "tr_recall_at_10" => "Image → text recall@10",
        "vqa_score" => "VQA score",
        "accuracy" => "Accuracy",
        "consistency" => "Consistency",
        "top_1" => "Top-1 accuracy",
        "top_5" => "Top-5 accuracy",
        "loss" => "Validation loss",
        other => other,
    };
    title.into()
}

#[cfg(test)]
mod tests {
    use super::super::run_files::{Best, Prediction, SampleImage};
    use super::*;

    fn lines(count: u64) -> Vec<Line> {
        let line = |step: u64| {
            let line = Line::new(step, step as f64 * 0.5).with(EPOCH, step as f64 / 10.0);
            line.with(LOSS, 3.0 / step as f64).with(LR, 1e-5).with(IMAGES_PER_SECOND, 12.0).with(DATA_WAIT, 0.02)
        };
        (1..=count).map(line).collect()
    }

    #[test]
    fn a_run_with_everything() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("samples")).unwrap();
        std::fs::write(folder.path().join("samples/0.png"), b"\x89PNG\r\n\x1a\n").unwrap();
        let mut lines = lines(30);
        lines.push(Line::new(30, 15.0).with("val/vqa_score", 0.25));
        lines.push(Line::new(40, 20.0).with("val/vqa_score", 0.2));
        let sample = Sample {
            images: vec![SampleImage { file: "samples/0.png".into(), ..SampleImage::default() }],
            text: "is <it> red?".into(),
            predictions: vec![Prediction { answer: "no & yes".into(), score: 0.75 }],
            truth: vec!["yes".into()],
            score: Some(0.0),
        };
        let recipe = serde_json::json!({"tool": "vlmerge", "version": "0.1.0", "method": "interpolate",
            "parameters": {"ratio": 0.5}, "inputs": [{"role": "checkpoint", "name": "ms.ckpt", "content_digest": "abc"}]});
        let result = RunResult {
            task: "vqa".into(),
            status: Status::Finished,
            step: 40,
            steps: 40,
            parameters: 87_000_000,
            best: Some(Best { step: 30, metric: "vqa_score".into(), value: 0.25 }),
            recipe: Some(recipe),
            skipped: vec!["easy-VQA train: skipped a.arrow row 3: no <image>".into()],
            ..RunResult::default()
        };
        let run = RunFiles {
            training: Some(false),
            folder: folder.path().to_owned(),
            name: "my <run>".into(),
            config: Some("lr = 1.5e-5\n[model]\nwidth = 192\n".into()),
            lines,
            result: Some(result),
            samples: vec![sample],
            notes: Vec::new(),
        };
        let html = report(&run);
        for part in [
            "<title>my &lt;run&gt; · training report</title>",
            "<span class=\"tag good\">finished</span>",
            "<dt>VQA score</dt><dd>25.00%<small>best, at step 30</small>",
            "<th scope=\"row\">VQA score</th><td class=\"n\">20.00%</td><td class=\"n\">25.00%</td><td class=\"n\">30</td>",
            "<dd>87 M<small>",
            "<img src=\"data:image/png;base64,iVBORw0KGgo=\"",
            "is &lt;it&gt; red?",
            "<span>no &amp; yes</span><span>75.00%</span>",
            "truth: yes <span class=\"tag bad\">wrong</span>",
            "<li>easy-VQA train: skipped a.arrow row 3: no &lt;image&gt;</li>",
            "<dt>lr</dt><dd>1.5e-5</dd>",
            "<dt>model.width</dt><dd>192</dd>",
            "<strong>interpolate</strong> <span class=\"soft\">vlmerge 0.1.0</span>",
            "<dt>ratio</dt><dd>0.5</dd>",
            "<td><code>abc</code></td>",
            "2.00% waiting for data",
        ] {
            assert!(html.contains(part), "{part} is not in\n{html}");
        }
        assert_eq!(html.matches("<figure").count(), 5);
        // Words of the program's source.
        for word in ["sitting", "stepline", "runresult", "recorder", "some("] {
            let text = html.split("<main>").nth(1).unwrap().split("<script>").next().unwrap().to_lowercase();
            assert!(!text.contains(word), "{word} is in\n{text}");
        }
        // Nothing from elsewhere.
        assert!(!html.contains("://") && !html.contains("<link") && !html.contains("@import"));
    }

    #[test]
    fn a_dead_run_is_not_running() {
        let page = |status: Status, training: Option<bool>| {
            let result = Some(RunResult { status, ..RunResult::default() });
            report(&RunFiles { folder: "my run".into(), result, training, ..RunFiles::default() })
        };
        let resume = "engine finetune --resume &#39;my run&#39;";
        for (status, training, tag, resumable) in [
            (Status::Running, Some(true), "running", false),
            (Status::Running, Some(false), "stopped", true),
            (Status::Running, None, "running or stopped", false),
            (Status::Interrupted, Some(false), "interrupted", true),
            (Status::Failed, Some(false), "failed", true),
            (Status::Finished, Some(false), "finished", false),
        ] {
            let html = page(status, training);
            assert!(html.contains(&format!("\">{tag}</span>")), "{status:?} {training:?}: {html}");
            assert_eq!(html.contains(resume), resumable, "{status:?} {training:?}");
        }
    }

    #[test]
    fn broken_rows_and_an_unusual_protocol_are_on_the_page() {
        let result = RunResult {
            skipped: vec!["pets train: train.jsonl line 3: \"caption\" is <5>".into()],
            protocol: Some("protocol paper: validated on test".into()),
            ..RunResult::default()
        };
        let page = report(&RunFiles { name: "run".into(), result: Some(result), ..RunFiles::default() });
        assert!(page.contains("<h2>Broken rows</h2>"), "{page}");
        assert!(page.contains("<li>pets train: train.jsonl line 3: &quot;caption&quot; is &lt;5&gt;</li>"), "{page}");
        assert!(page.contains("protocol paper: validated on test"), "{page}");
        let page = report(&RunFiles { name: "run".into(), result: Some(RunResult::default()), ..RunFiles::default() });
        assert!(!page.contains("Broken rows"));
    }

    #[test]
    fn a_run_with_nothing_still_makes_a_page() {
        let notes = vec!["There is no config.toml.".into()];
        let html = report(&RunFiles { name: "run".into(), notes, ..RunFiles::default() });
        assert!(html.contains("<h1>run</h1>") && html.contains("<li>There is no config.toml.</li>"));
        assert!(!html.contains("<h2>"));
        let run = RunFiles { config: Some("lr = ".into()), lines: lines(1), ..RunFiles::default() };
        assert!(report(&run).contains("This is no valid TOML."));
    }

    #[test]
    fn a_long_run_is_a_small_page() {
        let html = report(&RunFiles { lines: lines(50_000), ..RunFiles::default() });
        assert!(html.len() < 400_000, "{}", html.len());
    }

    #[test]
    fn retrieval_curves_share_their_figures() {
        let metrics =
            ["recall_mean", "ir_recall_at_1", "ir_recall_at_5", "ir_recall_at_10", "tr_recall_at_1", "unknown"];
        let line = metrics.iter().fold(Line::new(5, 1.0), |line, name| line.with(format!("{VALIDATION}{name}"), 0.5));
        let html = report(&RunFiles { lines: vec![line.with("temperature", 0.07)], ..RunFiles::default() });
        let titles: Vec<&str> =
            html.split("<figcaption><h3>").skip(1).map(|rest| rest.split('<').next().unwrap()).collect();
        assert_eq!(titles, ["Text → image recall", "Image → text recall", "Mean recall", "unknown", "temperature"]);
    }

    #[test]
    fn of_a_step_that_is_there_twice_the_later_counts() {
        let line = |step, loss| Line::new(step, 0.0).with(LOSS, loss);
        let curves = Curves::of(&[line(1, 1.0), line(2, 2.0), line(3, 3.0), line(2, 9.0)]);
        assert_eq!(curves.get(LOSS), [(1.0, 1.0), (2.0, 9.0)]);
    }
}
