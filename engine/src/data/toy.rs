//! A data set that needs no download: drawings of one coloured shape, for every task.
//!
//! Each image shows one of 432 things, as a text can say it: a circle, square or triangle, in one of eight colours,
//! small or large, in one of nine places. Shades, sizes and places vary a little. Everything is a function of the
//! [`Toy`]'s fields, on any machine.

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use rand_chacha::rand_core::RngCore;
use rayon::prelude::*;

use super::broken::Unit;
use super::order::{self, permutation, stream};
use super::records::{At, Builder, Numbering, Question, Texts};
use super::{Error, Records, Result, Target, Task};

/// What to draw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toy {
    /// Pixels along a side.
    pub image_size: usize,
    /// Images in each split; as many pairs for NLVR2.
    pub train: usize,
    pub val: usize,
    pub test: usize,
    pub seed: u64,
}

impl Default for Toy {
    fn default() -> Toy {
        Toy { image_size: 64, train: 1024, val: 256, test: 256, seed: 0 }
    }
}

/// The splits.
pub const SPLITS: [&str; 3] = ["train", "val", "test"];

const SHAPES: [&str; 3] = ["circle", "square", "triangle"];
const COLOURS: [(&str, [u8; 3]); 8] = [
    ("red", [215, 45, 40]),
    ("green", [45, 160, 60]),
    ("blue", [50, 80, 220]),
    ("yellow", [235, 210, 50]),
    ("black", [30, 30, 30]),
    ("gray", [135, 135, 135]),
    ("brown", [130, 80, 40]),
    ("teal", [25, 155, 155]),
];
const SIZES: [&str; 2] = ["small", "large"];
const PLACES: [&str; 9] =
    ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"];
const THINGS: usize = SHAPES.len() * COLOURS.len() * SIZES.len() * PLACES.len();

/// What an image shows, each a position in the lists above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Thing {
    shape: usize,
    colour: usize,
    size: usize,
    place: usize,
}

impl Thing {
    fn of(number: usize) -> Thing {
        let (rest, place) = (number / PLACES.len(), number % PLACES.len());
        let (rest, size) = (rest / SIZES.len(), rest % SIZES.len());
        Thing { shape: rest / COLOURS.len() % SHAPES.len(), colour: rest % COLOURS.len(), size, place }
    }

    fn captions(self) -> [String; 3] {
        let (shape, colour, size, place) = self.words();
        [
            format!("a {size} {colour} {shape} at the {place}"),
            format!("the {shape} at the {place} is {size} and {colour}"),
            format!("there is a {size} {colour} {shape}, placed at the {place}"),
        ]
    }

    fn words(self) -> (&'static str, &'static str, &'static str, &'static str) {
        (SHAPES[self.shape], COLOURS[self.colour].0, SIZES[self.size], PLACES[self.place])
    }
}

/// Random numbers for one image.
struct Draw<R>(R);

impl<R: RngCore> Draw<R> {
    /// Below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.0.next_u64()) * limit as u128) >> 64) as usize
    }

    /// In [low, high).
    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * ((self.0.next_u32() >> 8) as f32 / (1 << 24) as f32)
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 1
    }
}

impl Toy {
    /// Draws a split.
    ///
    /// # Errors
    /// There is no such split, it has no image, or the image size is 0 or above 4096.
    pub fn open(&self, task: Task, split: &str) -> Result<Records> {
        let number = SPLITS.iter().position(|name| *name == split).ok_or_else(|| Error::Missing {
            path: super::TOY.into(),
            wanted: format!("split '{split}'"),
            found: format!("there are {}", SPLITS.join(", ")),
        })?;
        let count = [self.train, self.val, self.test][number];
        if count == 0 || !(1..=4096).contains(&self.image_size) {
            let (size, reason) = (self.image_size, "the toy data set needs images, of 1 to 4096 pixels");
            return Err(Error::Argument(format!("{reason}: {count} of {size} pixels asked for")));
        }
        let things = self.things(number as u64, count);
        let draw = |index: usize| Draw(stream(self.seed, number as u64, order::TOY, index as u64));
        let images = things
            .par_iter()
            .enumerate()
            .map(|(index, thing)| encode(&paint(*thing, self.image_size, &mut draw(index)), self.image_size))
            .collect::<Result<Vec<_>>>()?;
        // Texts draw from streams of their own, so that images are the same for every task.
        let draw_text = |index: usize| Draw(stream(self.seed, number as u64, order::TOY, (count + index) as u64));
        let mut into = Builder::new(format!("toy {split}"), task);
        into.file(format!("toy {split}"), Unit::Row);
        let source = into.pictures(Box::new(images));
        if task == Task::Nlvr2 {
            self.pairs(split, &things, source, &mut draw_text(0), &mut into)?;
            return into.finish(Vec::new(), Numbering::Listed);
        }
        let labels = labels(task);
        let label = |name: &str| labels.iter().position(|label| label == name).unwrap_or(0) as u32;
        for (row, thing) in things.iter().enumerate() {
            let id = format!("{split}-{row}");
            let at = [At { source, index: row as u32 }];
            match task {
                Task::Vqa => {
                    let asked = questions(*thing, &mut draw_text(row));
                    let questions = asked.iter().enumerate().map(|(place, (question, answer))| Question {
                        text: question,
                        id: (row * 10 + place) as i64,
                        targets: vec![Target { label: label(answer), score: 1.0 }],
                        outside: 0,
                        answered: true,
                    });
                    into.row(row, &at, &id, Texts::Questions(questions.collect()))?;
                }
                Task::ImgCls => {
                    into.row(row, &at, &id, Texts::Class((thing.colour * SHAPES.len() + thing.shape) as u32))?;
                }
                _ => {
                    let captions = thing.captions();
                    into.row(row, &at, &id, Texts::Captions(captions.iter().map(String::as_str).collect()))?;
                }
            }
        }
        into.finish(labels, Numbering::Listed)
    }

    /// What each image shows: all things once in some order, then again in another.
    fn things(&self, split: u64, count: usize) -> Vec<Thing> {
        let rounds = (0..count.div_ceil(THINGS) as u64).flat_map(|round| {
            permutation(THINGS, self.seed, split * 1000 + round).into_iter().map(|number| Thing::of(number as usize))
        });
        rounds.take(count).collect()
    }

    /// Pairs of images: each sentence is true of one and false of another.
    fn pairs(
        &self,
        split: &str,
        things: &[Thing],
        source: u32,
        draw: &mut Draw<impl RngCore>,
        into: &mut Builder,
    ) -> Result<()> {
        for row in 0..things.len() {
            // Both of a sentence's pairs come from the same draws: the odd one repeats those of the even one.
            if row % 2 == 1 {
                continue;
            }
            let claim = Claim::draw(draw);
            let sentence = claim.sentence();
            for (pair, wanted) in [true, false].into_iter().enumerate() {
                let mut images = [0, 0];
                // A few hundred draws find a pair that fits, but for sets of a handful of images.
                for _ in 0..400 {
                    images = [draw.below(things.len()), draw.below(things.len())];
                    if claim.holds(things[images[0]], things[images[1]]) == wanted {
                        break;
                    }
                }
                let label = claim.holds(things[images[0]], things[images[1]]);
                let images = images.map(|index| At { source, index: index as u32 });
                let id = format!("{split}-{}-{pair}", row / 2);
                into.row(row + pair, &images, &id, Texts::Sentences(vec![(&sentence, Some(label))]))?;
            }
        }
        Ok(())
    }
}

/// The labels of a task, in order; empty where it has none.
fn labels(task: Task) -> Vec<String> {
    let colours = || COLOURS.iter().map(|(name, _)| *name);
    match task {
        Task::Vqa => ["yes", "no"]
            .into_iter()
            .chain(SHAPES)
            .chain(colours())
            .chain(SIZES)
            .chain(PLACES)
            .map(String::from)
            .collect(),
        Task::ImgCls => colours().flat_map(|colour| SHAPES.map(|shape| format!("{colour} {shape}"))).collect(),
        _ => Vec::new(),
    }
}

/// Questions with their answers.
fn questions(thing: Thing, draw: &mut Draw<impl RngCore>) -> Vec<(String, &'static str)> {
    let (shape, colour, size, place) = thing.words();
    let yes = |truth: bool| if truth { "yes" } else { "no" };
    // As many questions are answered with yes as with no.
    let mut one_of = |right: usize, count: usize| match draw.coin() {
        true => right,
        false => (right + 1 + draw.below(count - 1)) % count,
    };
    let asked_colour = one_of(thing.colour, COLOURS.len());
    let asked_shape = one_of(thing.shape, SHAPES.len());
    let asked_size = one_of(thing.size, SIZES.len());
    vec![
        ("what color is the shape?".into(), colour),
        ("what shape is in the image?".into(), shape),
        ("how large is the shape?".into(), size),
        ("where is the shape?".into(), place),
        (format!("is there a {} shape?", COLOURS[asked_colour].0), yes(asked_colour == thing.colour)),
        (format!("does the image contain a {}?", SHAPES[asked_shape]), yes(asked_shape == thing.shape)),
        (format!("is the {shape} {}?", SIZES[asked_size]), yes(asked_size == thing.size)),
    ]
}

/// A sentence about two images.
#[derive(Clone, Copy, Debug)]
enum Claim {
    BothShape(usize),
    LeftShape(usize),
    RightColour(usize),
    SameColour,
    SameShape,
    OneShape(usize),
    LeftLarger,
    BothSize(usize),
}

impl Claim {
    fn draw(draw: &mut Draw<impl RngCore>) -> Claim {
        match draw.below(8) {
            0 => Claim::BothShape(draw.below(SHAPES.len())),
            1 => Claim::LeftShape(draw.below(SHAPES.len())),
            2 => Claim::RightColour(draw.below(COLOURS.len())),
            3 => Claim::SameColour,
            4 => Claim::SameShape,
            5 => Claim::OneShape(draw.below(SHAPES.len())),
            6 => Claim::LeftLarger,
            _ => Claim::BothSize(draw.below(SIZES.len())),
        }
    }

    fn sentence(self) -> String {
        match self {
            Claim::BothShape(shape) => format!("both images contain a {}", SHAPES[shape]),
            Claim::LeftShape(shape) => format!("the left image contains a {}", SHAPES[shape]),
            Claim::RightColour(colour) => format!("the right image contains a {} shape", COLOURS[colour].0),
            Claim::SameColour => "the two shapes have the same color".into(),
            Claim::SameShape => "the two shapes are of the same kind".into(),
            Claim::OneShape(shape) => format!("exactly one image contains a {}", SHAPES[shape]),
            Claim::LeftLarger => "the shape in the left image is larger".into(),
            Claim::BothSize(size) => format!("both shapes are {}", SIZES[size]),
        }
    }

    fn holds(self, left: Thing, right: Thing) -> bool {
        match self {
            Claim::BothShape(shape) => left.shape == shape && right.shape == shape,
            Claim::LeftShape(shape) => left.shape == shape,
            Claim::RightColour(colour) => right.colour == colour,
            Claim::SameColour => left.colour == right.colour,
            Claim::SameShape => left.shape == right.shape,
            Claim::OneShape(shape) => (left.shape == shape) != (right.shape == shape),
            Claim::LeftLarger => left.size > right.size,
            Claim::BothSize(size) => left.size == size && right.size == size,
        }
    }
}

/// [size, size, 3], the shape's edge smoothed over a pixel.
fn paint(thing: Thing, size: usize, draw: &mut Draw<impl RngCore>) -> Vec<u8> {
    let side = size as f32;
    let mut channel = |value: u8, by: f32| (f32::from(value) + draw.between(-by, by)).clamp(0.0, 255.0);
    let colour = COLOURS[thing.colour].1.map(|value| channel(value, 12.0));
    let ground = [245; 3].map(|value| channel(value, 10.0));
    let radius = side
        * match SIZES[thing.size] {
            "small" => draw.between(0.07, 0.09),
            _ => draw.between(0.135, 0.16),
        };
    let mut along = |cell: usize| side * ((cell as f32 + 0.5) / 3.0 + draw.between(-0.02, 0.02));
    let (centre_x, centre_y) = (along(thing.place % 3), along(thing.place / 3));
    let mut pixels = Vec::with_capacity(size * size * 3);
    for row in 0..size {
        for column in 0..size {
            let (x, y) = (column as f32 + 0.5 - centre_x, row as f32 + 0.5 - centre_y);
            let inside = (0.5 - distance(thing.shape, x, y, radius)).clamp(0.0, 1.0);
            for (ground, colour) in ground.iter().zip(colour) {
                pixels.push((ground + (colour - ground) * inside + 0.5) as u8);
            }
        }
    }
    pixels
}

/// How far outside the shape a point is, in pixels; negative inside.
fn distance(shape: usize, x: f32, y: f32, radius: f32) -> f32 {
    match SHAPES[shape] {
        "circle" => (x * x + y * y).sqrt() - radius,
        "square" => x.abs().max(y.abs()) - radius * 0.9,
        // Isosceles, as high as wide: two sides with slope 2 and the base.
        _ => ((2.0 * x.abs() - y - radius) / 5.0f32.sqrt()).max(y - radius),
    }
}

fn encode(pixels: &[u8], size: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(pixels, size as u32, size as u32, ExtendedColorType::Rgb8)
        .map_err(|e| Error::Argument(format!("an image of the toy data set can't be encoded: {e}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::super::{Dataset, Example};
    use super::*;

    fn toy() -> Toy {
        Toy { image_size: 32, train: 500, val: 40, test: 40, seed: 5 }
    }

    fn decode(bytes: &[u8]) -> image::RgbImage {
        image::load_from_memory(bytes).unwrap().into_rgb8()
    }

    #[test]
    fn the_same_each_time_and_another_for_each_split_and_seed() {
        let bytes = |toy: Toy, split| toy.open(Task::Irtr, split).unwrap().image(3).unwrap().image.into_owned();
        assert_eq!(bytes(toy(), "val"), bytes(toy(), "val"));
        assert_ne!(bytes(toy(), "val"), bytes(toy(), "test"));
        assert_ne!(bytes(toy(), "val"), bytes(Toy { seed: 6, ..toy() }, "val"));
    }

    /// What an image shows can be seen in it: the middle of the named place has the named colour.
    #[test]
    fn images_show_what_captions_say() {
        let set = Toy { image_size: 64, ..toy() }.open(Task::Irtr, "train").unwrap();
        assert_eq!((set.len(), set.images()), (1500, 500));
        for index in 0..100 {
            let image = set.image(index).unwrap();
            let caption = image.captions[0];
            let pixels = decode(&image.image);
            let place = PLACES.iter().position(|place| caption.ends_with(&format!("at the {place}"))).unwrap();
            let colour = COLOURS.iter().find(|(name, _)| caption.split(' ').any(|word| word == *name)).unwrap().1;
            let at = |cell: usize| ((cell as f32 + 0.5) * 64.0 / 3.0) as u32;
            let seen = pixels.get_pixel(at(place % 3), at(place / 3)).0;
            let apart = seen.iter().zip(colour).map(|(a, b)| a.abs_diff(b)).max().unwrap();
            assert!(apart <= 13, "{caption}: {seen:?}");
            // The opposite corner's cell, or for the centre a corner, is ground.
            let other = if place == 4 { 0 } else { 8 - place };
            assert!(pixels.get_pixel(at(other % 3), at(other / 3)).0.iter().all(|value| *value >= 230), "{caption}");
        }
    }

    #[test]
    fn the_first_432_captions_are_different() {
        let set = toy().open(Task::Irtr, "train").unwrap();
        let captions: HashSet<&str> = (0..432).map(|index| set.image(index).unwrap().captions[0]).collect();
        assert_eq!(captions.len(), 432);
    }

    #[test]
    fn answers_fit_the_captions_and_yes_is_as_frequent_as_no() {
        let (texts, questions) = (toy().open(Task::Irtr, "train").unwrap(), toy().open(Task::Vqa, "train").unwrap());
        assert_eq!(questions.len(), 7 * 500);
        let mut answers: HashMap<&str, usize> = HashMap::new();
        for index in 0..questions.len() {
            let Example::Vqa { image, question, targets, question_id, answered, .. } =
                questions.example(index).unwrap()
            else {
                panic!()
            };
            assert!(answered);
            let answer = questions.labels()[targets[0].label as usize].as_str();
            *answers.entry(answer).or_default() += 1;
            let captioned = texts.image(index / 7).unwrap();
            assert_eq!(image, captioned.image);
            assert_eq!(question_id as usize, index / 7 * 10 + index % 7);
            let said = |word: &str| captioned.captions[0].split([' ', ',']).any(|other| other == word);
            let words = question.trim_end_matches('?');
            match index % 7 {
                0..=3 => assert!(captioned.captions[0].contains(answer), "{question} {answer}"),
                4 => assert_eq!(answer == "yes", said(words.split(' ').nth(3).unwrap())),
                _ => assert_eq!(answer == "yes", said(words.split(' ').next_back().unwrap())),
            }
        }
        assert!(answers["yes"].abs_diff(answers["no"]) < 200, "{answers:?}");
        assert!(answers.keys().all(|answer| questions.labels().iter().any(|label| label == answer)));
    }

    #[test]
    fn sentences_are_true_of_one_pair_and_false_of_another() {
        let set = toy().open(Task::Nlvr2, "val").unwrap();
        assert_eq!(set.len(), 40);
        for row in (0..40).step_by(2) {
            let pair = |row| match set.example(row).unwrap() {
                Example::Nlvr2 { sentence, label, identifier, .. } => (sentence, label.unwrap(), identifier),
                _ => panic!(),
            };
            let (first, second) = (pair(row), pair(row + 1));
            assert_eq!(first.0, second.0);
            assert_eq!((first.1, second.1), (true, false), "{}", first.0);
            assert_eq!((first.2, second.2), (&*format!("val-{}-0", row / 2), &*format!("val-{}-1", row / 2)));
        }
    }

    #[test]
    fn claims_by_hand() {
        let [red_circle, red_square] = [0, 1].map(|shape| Thing { shape, colour: 0, size: shape, place: 4 });
        assert!(Claim::SameColour.holds(red_circle, red_square) && !Claim::SameShape.holds(red_circle, red_square));
        assert!(Claim::OneShape(0).holds(red_circle, red_square) && !Claim::OneShape(2).holds(red_circle, red_square));
        assert!(Claim::LeftLarger.holds(red_square, red_circle) && !Claim::LeftLarger.holds(red_circle, red_square));
        assert!(!Claim::OneShape(0).holds(red_circle, red_circle));
    }

    #[test]
    fn classes_and_their_names() {
        let set = toy().open(Task::ImgCls, "test").unwrap();
        let texts = toy().open(Task::Irtr, "test").unwrap();
        assert_eq!(set.labels().len(), 24);
        for index in 0..set.len() {
            let Example::ImgCls { label, .. } = set.example(index).unwrap() else { panic!() };
            assert!(texts.image(index).unwrap().captions[0].contains(&set.labels()[label as usize]));
        }
    }

    #[test]
    fn wrong_sizes_and_splits() {
        assert!(toy().open(Task::Vqa, "dev").unwrap_err().to_string().contains("train, val, test"));
        assert!(Toy { image_size: 0, ..toy() }.open(Task::Vqa, "val").is_err());
        assert!(Toy { val: 0, ..toy() }.open(Task::Vqa, "val").is_err());
        assert!(Toy { image_size: 1, ..toy() }.open(Task::Vqa, "val").is_ok());
    }
}
