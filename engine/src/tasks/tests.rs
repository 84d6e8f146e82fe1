use super::*;
use crate::data::toy::Toy;
use crate::data::{Broken, Captioned, Target};
use crate::train::fake::{Fake, FakeRunner};
use crate::trainer::Trainer;

const SIZES: Sizes = Sizes { image: 16, text: 16 };

fn toy(task: Task, split: &str) -> Arc<dyn Dataset> {
    let toy = Toy { image_size: 20, train: 10, val: 6, test: 6, seed: 1 };
    Arc::new(toy.open(task, split).expect("a toy data set"))
}

fn training(set: Arc<dyn Dataset>, transform: Transform, workers: usize) -> TrainData {
    let labels = match set.task() {
        Task::Nlvr2 => 2,
        _ => set.labels().len(),
    };
    let tokenizer = Arc::new(Tokenizer::bert());
    TrainData { set, tokenizer, sizes: SIZES, transform, batch_size: 3, labels, seed: 7, workers, once: false }
}

fn some(data: &TrainData, epoch: u64, batch: u64, count: usize) -> Vec<Placed> {
    data.from(epoch, batch).unwrap().take(count).map(|placed| placed.expect("a batch")).collect()
}

fn evaluation(set: Arc<dyn Dataset>) -> Evaluation {
    let labels = set.labels().to_vec().into();
    Evaluation { set, tokenizer: Arc::new(Tokenizer::bert()), batch_size: 4, workers: 2, labels }
}

#[test]
fn batches_follow_from_seed_and_place_alone() {
    for task in Task::ALL {
        let transform = || Transform::Training(Training::new(SIZES.image));
        let all = some(&training(toy(task, "train"), transform(), 1), 0, 0, 8);
        let again = some(&training(toy(task, "train"), transform(), 3), 0, 0, 8);
        assert_eq!(all, again, "{task}: whatever the threads");
        let middle = &all[5];
        let from_middle = some(&training(toy(task, "train"), transform(), 2), middle.epoch, middle.batch, 3);
        assert_eq!(all[5..], from_middle, "{task}: from the middle");
        assert!(all.iter().all(|placed| placed.examples.len() == 3));
    }
}

#[test]
fn epochs_follow_each_other_without_a_smaller_batch() {
    let data = training(toy(Task::ImgCls, "train"), Transform::Evaluation, 1);
    assert_eq!((data.examples(), data.per_epoch()), (10, 3));
    let places: Vec<(u64, u64)> = some(&data, 0, 1, 4).iter().map(|placed| (placed.epoch, placed.batch)).collect();
    assert_eq!(places, [(0, 1), (0, 2), (1, 0), (1, 1)]);
}

#[test]
fn each_task_has_its_batch() {
    let first = |task| some(&training(toy(task, "train"), Transform::Evaluation, 1), 0, 0, 1).remove(0).examples;
    let texts_fit = |texts: &Texts| {
        assert_eq!((texts.count, texts.len, texts.ids.len(), texts.mask.len()), (3, 16, 48, 48));
        assert!(texts.ids.chunks_exact(16).all(|ids| ids[0] == 101 && ids.contains(&102)), "[CLS] … [SEP]");
    };
    let images_fit = |images: &Images| {
        assert_eq!((images.count, images.size, images.pixels.len()), (3, 16, 3 * 3 * 256));
        assert!(images.pixels.iter().all(|pixel| (-1.0..=1.0).contains(pixel)));
    };
    let TrainBatch::Irtr { texts, images } = first(Task::Irtr) else { panic!("irtr") };
    texts_fit(&texts);
    images_fit(&images);
    let TrainBatch::Vqa { texts, images, targets } = first(Task::Vqa) else { panic!("vqa") };
    texts_fit(&texts);
    images_fit(&images);
    assert_eq!((targets.rows, targets.columns), (3, toy(Task::Vqa, "train").labels().len()));
    assert!((0..3).all(|row| targets.row(row).iter().sum::<f32>() == 1.0), "one right answer each");
    let TrainBatch::Nlvr2 { texts, left, right, labels } = first(Task::Nlvr2) else { panic!("nlvr2") };
    texts_fit(&texts);
    images_fit(&left);
    images_fit(&right);
    assert_ne!(left, right);
    assert!(labels.len() == 3 && labels.iter().all(|label| [0, 1].contains(label)));
    let TrainBatch::ImgCls { images, labels } = first(Task::ImgCls) else { panic!("img_cls") };
    images_fit(&images);
    assert_eq!(labels.len(), 3);
}

#[test]
fn training_images_vary_from_epoch_to_epoch_and_evaluation_images_do_not() {
    let pixels = |transform: Transform, epoch| -> Vec<Vec<u32>> {
        let data = TrainData { batch_size: 10, ..training(toy(Task::ImgCls, "train"), transform, 1) };
        let TrainBatch::ImgCls { images, .. } = some(&data, epoch, 0, 1).remove(0).examples else { panic!("images") };
        let mut images: Vec<Vec<u32>> =
            images.pixels.chunks_exact(3 * 256).map(|image| image.iter().map(|x| x.to_bits()).collect()).collect();
        images.sort();
        images
    };
    assert_eq!(pixels(Transform::Evaluation, 0), pixels(Transform::Evaluation, 1));
    let training = || Transform::Training(Training::new(16));
    assert_ne!(pixels(training(), 0), pixels(training(), 1));
}

/// Two images, dark and bright, of which the second may be broken.
struct Two {
    images: [Vec<u8>; 2],
    broken: Broken,
    answered: bool,
    label: u32,
}

fn png(shade: u8) -> Vec<u8> {
    use ::image::ImageEncoder;
    let mut bytes = Vec::new();
    let encoder = ::image::codecs::png::PngEncoder::new(&mut bytes);
    encoder.write_image(&[shade; 12], 2, 2, ::image::ExtendedColorType::Rgb8).expect("a PNG");
    bytes
}

impl Two {
    fn new(rows: usize) -> Two {
        Two {
            images: [png(20), png(240)],
            broken: Broken::new(rows, crate::data::MAX_BROKEN),
            answered: true,
            label: 1,
        }
    }
}

impl Dataset for Two {
    fn name(&self) -> &str {
        "two"
    }

    fn task(&self) -> Task {
        Task::Vqa
    }

    fn len(&self) -> usize {
        2
    }

    fn example(&self, index: usize) -> crate::data::Result<Example<'_>> {
        const TARGETS: [&[Target]; 2] =
            [&[Target { label: 0, score: 0.3 }, Target { label: 1, score: 1.0 }], &[Target { label: 0, score: 0.9 }]];
        const FAR: &[Target] = &[Target { label: 9, score: 1.0 }];
        Ok(Example::Vqa {
            image: Cow::Borrowed(&self.images[index]),
            question: "is it dark?",
            targets: if self.label == 9 { FAR } else { TARGETS[index] },
            answered: self.answered,
            question_id: 40 + index as i64,
            image_id: "image",
        })
    }

    fn images(&self) -> usize {
        2
    }

    fn image(&self, index: usize) -> crate::data::Result<Captioned<'_>> {
        let image = Cow::Borrowed(&self.images[index][..]);
        Ok(Captioned { image, image_id: "image", captions: Vec::new(), first: index })
    }

    fn labels(&self) -> &[String] {
        &[]
    }

    fn broken(&self) -> &Broken {
        &self.broken
    }

    fn skip(&self, index: usize, cause: &str) -> crate::data::Result<()> {
        let row = crate::data::BrokenRow {
            file: "two".into(),
            unit: Default::default(),
            row: index + 1,
            cause: cause.into(),
        };
        self.broken.skip(row)
    }

    fn skip_image(&self, index: usize, cause: &str) -> crate::data::Result<()> {
        self.skip(index, cause)
    }
}

fn in_order(set: Two, labels: usize) -> Result<TrainBatch> {
    let data = TrainData { labels, batch_size: 2, ..training(Arc::new(set), Transform::Evaluation, 1) };
    let placed = data.from(0, 0)?.next().expect("a batch")?;
    Ok(placed.examples)
}

#[test]
fn soft_answers_become_rows_of_targets() {
    let TrainBatch::Vqa { targets, .. } = in_order(Two::new(2), 3).unwrap() else { panic!("vqa") };
    let mut rows = [targets.row(0).to_vec(), targets.row(1).to_vec()];
    rows.sort_by(|a, b| a[0].total_cmp(&b[0]));
    assert_eq!(rows, [[0.3, 1.0, 0.0], [0.9, 0.0, 0.0]]);
}

#[test]
fn what_cannot_be_learned_from_is_refused() {
    let unanswered = in_order(Two { answered: false, ..Two::new(2) }, 3).unwrap_err().to_string();
    assert!(unanswered.starts_with("two example ") && unanswered.contains(": question 4"), "{unanswered}");
    assert!(unanswered.ends_with("has no answer to learn from: is this a test split?"), "{unanswered}");
    let far = in_order(Two { label: 9, ..Two::new(2) }, 3).unwrap_err().to_string();
    assert!(far.ends_with("answer 9 is beyond the head's 3 labels"), "{far}");
}

#[test]
fn a_broken_image_is_skipped_and_counted_until_they_are_too_many() {
    let set = Two { images: [png(20), b"\x89PNG but not really".to_vec()], ..Two::new(1000) };
    let TrainBatch::Vqa { targets, images, texts } = in_order(set, 3).unwrap() else { panic!("vqa") };
    assert_eq!((targets.rows, images.count, texts.count), (1, 1, 1));
    let set = Two { images: [png(20), b"\x89PNG but not really".to_vec()], ..Two::new(2) };
    let error = in_order(set, 3).unwrap_err().to_string();
    assert!(error.contains("1 of 2 rows are broken"), "{error}");
}

#[test]
fn each_task_is_evaluated_over_its_whole_split() {
    let mut weights = vec![0.0; 8];
    weights[0] = 1.0;
    let runner = FakeRunner(weights);
    for (task, examples, details) in [(Task::Irtr, 18, 24), (Task::Nlvr2, 6, 6)] {
        let mut seen = Vec::new();
        let found = evaluate(&runner, &evaluation(toy(task, "val")), &mut |detail| {
            seen.push(serde_json::to_value(detail)?);
            Ok(())
        });
        let outcome = found.unwrap().outcome;
        assert_eq!(outcome.counts()[0].1, examples, "{task}");
        assert!(outcome.headline().is_some_and(|metric| (0.0..=1.0).contains(&metric.value)), "{task}");
        assert_eq!(seen.len(), details, "{task}");
    }
}

#[test]
fn a_trained_model_answers_right() {
    let data = TrainData { batch_size: 2, ..training(Arc::new(Two::new(2)), Transform::Evaluation, 1) };
    let data = TrainData { labels: 2, ..data };
    let mut trainer = Fake::new(1);
    for placed in data.from(0, 0).unwrap().take(200) {
        trainer.accumulate(&placed.unwrap().examples, 1.0, 0).unwrap();
        trainer.update(0.1, None).unwrap();
    }
    let labels: Arc<[String]> = ["yes".to_owned(), "no".to_owned()].into();
    let over = Evaluation { labels, ..evaluation(Arc::new(Two::new(2))) };
    let found = evaluate(trainer.runner().as_ref(), &over, &mut |_| Ok(())).unwrap();
    // Dark: label 1 is worth 1; bright: label 0 is worth 0.9.
    let metric = found.outcome.headline().unwrap();
    assert_eq!((metric.name, (metric.value * 1e6).round()), ("vqa_score", 950_000.0));
    let answers: Vec<(i64, &str)> = found.answers.iter().map(|a| (a.question_id, a.answer.as_str())).collect();
    assert_eq!(answers, [(40, "no"), (41, "yes")]);
    let shown = samples(trainer.runner().as_ref(), &over, 5).unwrap();
    assert_eq!(shown.len(), 2);
    assert_eq!(shown[0].sample.predictions[0].answer, "no");
    assert_eq!(shown[0].sample.truth, ["no", "yes"]);
    assert_eq!(shown[0].images[0][..3], [0xff, 0xd8, 0xff], "a JPEG");
}

#[test]
fn samples_show_images_for_each_task() {
    let runner = FakeRunner(vec![0.1; 8]);
    let shown = samples(&runner, &evaluation(toy(Task::Nlvr2, "val")), 3).unwrap();
    assert_eq!(shown.len(), 3);
    assert!(shown.iter().all(|one| one.images.len() == 2 && one.sample.images.len() == 2));
    assert_eq!(shown[0].sample.images[1].caption, "right");
    let shown = samples(&runner, &evaluation(toy(Task::Irtr, "val")), 3).unwrap();
    assert_eq!(shown.len(), 3);
    assert!(
        shown.iter().all(|one| one.images.len() == 4 && one.sample.images.len() == 4 && !one.sample.text.is_empty())
    );
}

#[test]
fn batches_come_from_even_distances() {
    let spread = |len, count| samples::spread(len, count).collect::<Vec<_>>();
    assert_eq!(spread(10, 2), [2, 7]);
    assert_eq!(spread(3, 5), [0, 1, 2]);
    assert_eq!(spread(0, 5), [0; 0]);
}
