//! Heat maps, as SVG and as PNG.
//!
//! A [`Figure`] says what is shown; [`Figure::draw`] places it on a [`Scene`], which knows rectangles, lines and
//! text and writes itself in either format. The font is inside the program, so a PNG needs none on the machine.

mod figure;
mod font;
mod png;
mod scene;

pub use figure::{Figure, Map, Panel};
pub use png::Oversized;
pub use scene::{Anchor, Color, Scene};
