//! Shapes in pixels, y downwards, and the SVG they make.

use std::fmt::Write as _;

/// Red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Color(pub [u8; 3]);

impl Color {
    pub const WHITE: Color = Color([255, 255, 255]);
    pub const BLACK: Color = Color([0, 0, 0]);

    /// Black or white, whichever reads better on this colour.
    pub fn ink(self) -> Color {
        // The luminance at which black and white have the same contrast (WCAG 2).
        if self.luminance() > 0.179 { Color::BLACK } else { Color::WHITE }
    }

    fn luminance(self) -> f64 {
        let linear = self.0.map(|channel| {
            let channel = f64::from(channel) / 255.0;
            if channel <= 0.04045 { channel / 12.92 } else { ((channel + 0.055) / 1.055).powf(2.4) }
        });
        0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    }
}

/// Which point of a text its x is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shape {
    Rectangle {
        x: f64,
        y: f64,
        width: f64,
        height: f64,
        fill: Color,
        says: String,
    },
    /// `y` is the middle of the lower-case letters, so that a text can be centred on a line or a cell.
    Text {
        x: f64,
        y: f64,
        size: f64,
        anchor: Anchor,
        fill: Color,
        text: String,
    },
}

/// A picture on white.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    pub width: f64,
    pub height: f64,
    /// What the picture is, for programs that read it aloud.
    pub title: String,
    pub(super) shapes: Vec<Shape>,
}

impl Scene {
    pub fn new(title: &str) -> Scene {
        Scene { width: 0.0, height: 0.0, title: title.into(), shapes: Vec::new() }
    }

    /// `says` is shown by viewers of the SVG when pointed at; empty for nothing.
    pub fn rectangle(&mut self, [x, y, width, height]: [f64; 4], fill: Color, says: String) {
        self.shapes.push(Shape::Rectangle { x, y, width, height, fill, says });
    }

    pub fn text(&mut self, [x, y]: [f64; 2], size: f64, anchor: Anchor, fill: Color, text: &str) {
        self.shapes.push(Shape::Text { x, y, size, anchor, fill, text: text.into() });
    }

    pub fn svg(&self) -> String {
        let (width, height) = (self.width, self.height);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\" font-family=\"{FONTS}\">\n<title>{}</title>\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"{}\"/>\n",
            escaped(&self.title),
            hex(Color::WHITE),
        );
        for shape in &self.shapes {
            // Writing to a string can't fail.
            let _ = match shape {
                Shape::Rectangle { x, y, width, height, fill, says } => {
                    let fill = hex(*fill);
                    let _ = write!(
                        out,
                        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\""
                    );
                    match says.as_str() {
                        "" => writeln!(out, "/>"),
                        says => writeln!(out, "><title>{}</title></rect>", escaped(says)),
                    }
                }
                Shape::Text { x, y, size, anchor, fill, text } => {
                    let anchor = match anchor {
                        Anchor::Start => "start",
                        Anchor::Middle => "middle",
                        Anchor::End => "end",
                    };
                    let baseline = y + size * super::font::X_HEIGHT / 2.0;
                    writeln!(
                        out,
                        "<text x=\"{x:.1}\" y=\"{baseline:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\" \
                         fill=\"{}\" pointer-events=\"none\">{}</text>",
                        hex(*fill),
                        escaped(text)
                    )
                }
            };
        }
        out.push_str("</svg>\n");
        out
    }
}

/// The font of the PNG first, then others of about its width.
const FONTS: &str = "Noto Sans, Segoe UI, Helvetica, Arial, sans-serif";

fn hex(color: Color) -> String {
    let [r, g, b] = color.0;
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Text as it stands in XML, which has no place for most control characters.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svg_escapes_what_it_is_given() {
        let mut scene = Scene::new("a<b&\"c\"\u{1}");
        scene.text([1.0, 2.0], 10.0, Anchor::End, Color::BLACK, "</text>");
        let svg = scene.svg();
        assert!(svg.contains("<title>a&lt;b&amp;&quot;c&quot;\u{fffd}</title>"), "{svg}");
        assert!(svg.contains(">&lt;/text&gt;</text>"), "{svg}");
    }

    #[test]
    fn ink_contrasts() {
        assert_eq!(Color([253, 231, 37]).ink(), Color::BLACK);
        assert_eq!(Color([68, 1, 84]).ink(), Color::WHITE);
    }
}
