//! What the name of an Arrow file says: data set, split, shard.

/// Splits as file names end, longer names first where one ends with another.
const SPLITS: [&str; 16] = [
    "trainable_val",
    "rest_val",
    "restval",
    "balanced_dev",
    "unbalanced_dev",
    "balanced_test1",
    "unbalanced_test1",
    "distinct",
    "test-dev",
    "test_dev",
    "validation",
    "test1",
    "train",
    "test",
    "val",
    "dev",
];

/// `conceptual_caption_train_12` → `conceptual_caption`, `train`, 12.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub set: String,
    /// `train` where the name says nothing, as in `vg` and `sbu_3`.
    pub split: String,
    pub shard: u32,
}

impl Named {
    /// Reads a file name without its ending.
    pub fn parse(stem: &str) -> Named {
        let (rest, shard) = match stem.rsplit_once('_').map(|(rest, number)| (rest, number.parse())) {
            Some((rest, Ok(number))) => (rest, number),
            _ => (stem, 0),
        };
        let found = SPLITS.iter().filter_map(|split| {
            let set = rest.strip_suffix(split)?;
            match set.strip_suffix('_') {
                Some(set) => Some((set, *split)),
                None if set.is_empty() => Some(("", *split)),
                None => None,
            }
        });
        // The longest: `unbalanced_dev`, not `dev` of a set `x_unbalanced`.
        let (set, split) = found.max_by_key(|(_, split)| split.len()).unwrap_or((rest, "train"));
        Named { set: set.into(), split: split.into(), shard }
    }
}

/// Splits that are read for `wanted`, of those that are there, as the Python code reads them: VQAv2's `train` takes in
/// `trainable_val`, and its `val` is then what remains, `rest_val`. `a+b` is both, as in COCO's `train+restval`.
pub fn splits_for(wanted: &str, have: &[&str]) -> Vec<String> {
    wanted.split('+').flat_map(|wanted| one_split(wanted.trim(), have)).collect()
}

fn one_split(wanted: &str, have: &[&str]) -> Vec<String> {
    let there = |splits: &[&str]| -> Vec<String> {
        splits.iter().filter(|split| have.contains(split)).map(|split| split.to_string()).collect()
    };
    let first = |splits: &[&str]| there(splits).into_iter().take(1).collect();
    match wanted {
        "train" => match there(&["train", "trainable_val"]) {
            // What only fills up a training split is none by itself.
            splits if splits.first().is_some_and(|split| split != "train") => Vec::new(),
            splits => splits,
        },
        "val" => first(&["rest_val", "val", "validation", "dev"]),
        "test" => first(&["test", "test1"]),
        other => there(&[other]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_python_code() {
        let parse = |stem| {
            let Named { set, split, shard } = Named::parse(stem);
            (set, split, shard)
        };
        let cases = [
            ("coco_caption_karpathy_restval", ("coco_caption_karpathy", "restval", 0)),
            ("vqav2_trainable_val", ("vqav2", "trainable_val", 0)),
            ("vqav2_val", ("vqav2", "val", 0)),
            ("vqav2_test-dev", ("vqav2", "test-dev", 0)),
            ("nlvr2_unbalanced_test1", ("nlvr2", "unbalanced_test1", 0)),
            ("conceptual_caption_train_12", ("conceptual_caption", "train", 12)),
            ("sbu_3", ("sbu", "train", 3)),
            ("vg", ("vg", "train", 0)),
            ("train", ("", "train", 0)),
            ("retrain", ("retrain", "train", 0)),
        ];
        for (stem, (set, split, shard)) in cases {
            assert_eq!(parse(stem), (set.to_string(), split.to_string(), shard), "{stem}");
        }
    }

    #[test]
    fn a_split_may_be_several_files() {
        let coco = ["train", "restval", "val", "test"];
        assert_eq!(splits_for("train", &coco), ["train"]);
        assert_eq!(splits_for("train+restval", &coco), ["train", "restval"]);
        assert_eq!(splits_for("val", &coco), ["val"]);
        let vqa = ["train", "val", "trainable_val", "rest_val", "test", "test-dev"];
        assert_eq!(splits_for("train", &vqa), ["train", "trainable_val"]);
        assert_eq!(splits_for("val", &vqa), ["rest_val"]);
        assert_eq!(splits_for("test-dev", &vqa), ["test-dev"]);
        assert_eq!(splits_for("train + rest_val", &vqa), ["train", "trainable_val", "rest_val"]);
        assert_eq!(splits_for("val", &["train", "dev", "test1"]), ["dev"]);
        assert_eq!(splits_for("test", &["train", "dev", "test1"]), ["test1"]);
        assert!(splits_for("train", &["restval", "val"]).is_empty());
        assert!(splits_for("", &coco).is_empty());
    }
}
