//! The font inside the program: Noto Sans, under the Apache License 2.0.

use ab_glyph::{Font as _, FontRef, PxScale, ScaleFont as _, point};

/// Height of lower-case letters, in parts of the font size.
pub(super) const X_HEIGHT: f64 = 0.536;

fn font() -> FontRef<'static> {
    FontRef::try_from_slice(ttf_noto_sans::REGULAR).expect("the embedded font is tested")
}

/// Width of a text in pixels.
pub(super) fn width(text: &str, size: f64) -> f64 {
    let font = font();
    let scaled = font.as_scaled(px_scale(&font, size));
    let mut before = None;
    let mut width = 0.0;
    for c in text.chars() {
        let glyph = scaled.glyph_id(c);
        width += before.map_or(0.0, |before| scaled.kern(before, glyph)) + scaled.h_advance(glyph);
        before = Some(glyph);
    }
    width.into()
}

/// Calls `paint` with every pixel that the text touches and how much of the pixel it covers, 0 to 1. The text
/// begins at `x` on the line `baseline`.
pub(super) fn paint(text: &str, size: f64, x: f64, baseline: f64, mut paint: impl FnMut(i64, i64, f64)) {
    let font = font();
    let scale = px_scale(&font, size);
    let scaled = font.as_scaled(scale);
    let mut before = None;
    let mut at = x as f32;
    for c in text.chars() {
        let id = scaled.glyph_id(c);
        at += before.map_or(0.0, |before| scaled.kern(before, id));
        let glyph = id.with_scale_and_position(scale, point(at, baseline as f32));
        if let Some(outline) = font.outline_glyph(glyph) {
            let corner = outline.px_bounds().min;
            outline.draw(|dx, dy, coverage| {
                let (x, y) = (corner.x as i64 + i64::from(dx), corner.y as i64 + i64::from(dy));
                paint(x, y, f64::from(coverage).clamp(0.0, 1.0));
            });
        }
        at += scaled.h_advance(id);
        before = Some(id);
    }
}

/// What ab_glyph scales by is the line's height; a font size is the em's.
fn px_scale(font: &FontRef, size: f64) -> PxScale {
    let em = f64::from(font.units_per_em().unwrap_or(1000.0));
    PxScale::from((size * f64::from(font.height_unscaled()) / em) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_every_character_that_figures_use() {
        let font = font();
        for c in "abcxyzABCXYZ0123456789.,:;()%–−·‖…+=/".chars() {
            assert_ne!(font.glyph_id(c).0, 0, "{c}");
        }
    }

    #[test]
    fn widths_add_up() {
        assert!((width("00", 10.0) - 2.0 * width("0", 10.0)).abs() < 1e-3);
        // Digits of Noto Sans are 572 of 1000 wide.
        assert!((width("0", 100.0) - 57.2).abs() < 0.1, "{}", width("0", 100.0));
        let x_height = {
            let mut rows = std::collections::BTreeSet::new();
            paint("x", 1000.0, 0.0, 1000.0, |_, y, coverage| {
                if coverage > 0.5 {
                    rows.insert(y);
                }
            });
            rows.len() as f64 / 1000.0
        };
        assert!((x_height - X_HEIGHT).abs() < 0.01, "{x_height}");
    }
}
