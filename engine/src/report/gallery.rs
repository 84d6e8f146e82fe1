//! What a search found, as one HTML page of thumbnails.

use std::fmt::Write;

use super::page::{data_uri, document, escape};

/// One image that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit<'a> {
    /// Its path or name.
    pub title: &'a str,
    /// The similarity, −1 to 1.
    pub score: f32,
    /// JPEG, PNG, WebP or GIF; best small, since the page holds it. Anything else shows as "no picture".
    pub image: &'a [u8],
}

/// The length of the lowest score's bar.
const LEAST: f32 = 0.05;

fn shown(score: f32) -> String {
    format!("{score:.3}").replace('-', "−")
}

/// The page: the query and what was found for it, best first as given. Loads nothing, works offline.
pub fn gallery(query: &str, hits: &[Hit]) -> String {
    let mut body = format!("<header><h1>{}</h1><p class=\"soft\">", escape(query));
    body += &match hits.len() {
        0 => "Nothing was found.".into(),
        1 => "1 image".into(),
        many => format!("{many} images, the most similar first"),
    };
    // Cosines of images and texts are small and close to each other: a bar shows where its score stands among these.
    let scores = || hits.iter().map(|hit| hit.score).filter(|score| score.is_finite());
    let (low, high) = (scores().fold(f32::INFINITY, f32::min), scores().fold(f32::NEG_INFINITY, f32::max));
    if high > low {
        let _ = write!(body, "; bars span the scores from {} to {}", shown(low), shown(high));
    }
    body += "</p></header>\n<main>";
    if !hits.is_empty() {
        body += "<ol class=\"hits\">";
    }
    for hit in hits {
        let image = match data_uri(hit.image) {
            Some(uri) => format!("<img src=\"{uri}\" alt=\"\" loading=\"lazy\">"),
            None => "<span class=\"none\">no picture</span>".into(),
        };
        let share = match hit.score {
            score if !score.is_finite() => 0.0,
            // The lowest still has a bar.
            score if high > low => LEAST + (1.0 - LEAST) * (score - low) / (high - low),
            _ => 1.0,
        };
        let _ = write!(
            body,
            "\n<li class=\"card\">{image}<span class=\"name\">{}</span><span class=\"score\"><span>{}</span>\
             <span class=\"bar\" aria-hidden=\"true\"><i style=\"width:{:.1}%\"></i></span></span></li>",
            escape(hit.title),
            shown(hit.score),
            100.0 * share
        );
    }
    if !hits.is_empty() {
        body += "</ol>";
    }
    body += "</main>";
    document(&format!("{query} · search"), &body, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_shown_in_order_and_names_are_text() {
        let hits = [
            Hit { title: "a/<b>.jpg", score: 0.5, image: &[0xff, 0xd8, 0xff, 0] },
            Hit { title: "c\".png", score: -0.25, image: b"\x89PNG" },
            Hit { title: "d", score: f32::NAN, image: b"<svg>" },
        ];
        let html = gallery("a \"dog\" & <i>", &hits);
        for part in [
            "<title>a &quot;dog&quot; &amp; &lt;i&gt; · search</title>",
            "3 images, the most similar first",
            "src=\"data:image/jpeg;base64,/9j/AA==\"",
            "<span class=\"name\">a/&lt;b&gt;.jpg</span><span class=\"score\"><span>0.500</span>",
            "width:100.0%",
            "c&quot;.png</span><span class=\"score\"><span>−0.250</span>",
            "no picture",
        ] {
            assert!(html.contains(part), "{part} is not in\n{html}");
        }
        let place = |text: &str| html.find(text).unwrap();
        assert!(place("a/&lt;b") < place("c&quot;.png") && place("c&quot;.png") < place(">d<"));
        assert!(!html.contains("<svg") && !html.contains("://"));
    }

    #[test]
    fn bars_span_the_range_of_the_scores() {
        let hit = |score| Hit { title: "a", score, image: b"" };
        let html = gallery("x", &[hit(0.31), hit(0.30), hit(0.29)]);
        let widths: Vec<&str> = html.split("style=\"width:").skip(1).map(|at| at.split('%').next().unwrap()).collect();
        assert_eq!(widths, ["100.0", "52.5", "5.0"]);
        assert!(html.contains("bars span the scores from 0.290 to 0.310"));
        let html = gallery("x", &[hit(0.3)]);
        assert!(html.contains("width:100.0%") && !html.contains("span the scores"), "{html}");
    }

    #[test]
    fn nothing_found() {
        let html = gallery("x", &[]);
        assert!(html.contains("Nothing was found.") && !html.contains("<ol"));
    }
}
