//! Ready configurations, inside the binary as the TOML that `engine presets NAME` prints.

/// A named configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    pub name: &'static str,
    /// TOML, with comments.
    pub text: &'static str,
}

impl Preset {
    /// The first line of its comment.
    pub fn about(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches('#').trim()
    }
}

macro_rules! presets {
    ($($name:literal),* $(,)?) => {
        /// All of them, in the order they are listed to people.
        pub const PRESETS: &[Preset] =
            &[$(Preset { name: $name, text: include_str!(concat!("../../presets/", $name, ".toml")) }),*];
    };
}

presets![
    "default",
    "toy",
    "easy-vqa",
    "irtr-coco-base-384",
    "irtr-f30k-base-384",
    "irtr-f30k-base-224",
    "irtr-f30k-large-384",
    "vqa-base-480",
    "vqa-large-224",
    "nlvr2-base-384",
    "nlvr2-base-224",
    "imagenet-base-224",
    "imagenet-base-384",
    "pretrain-base-224",
];

/// The preset of a name, or words for the user who mistyped it.
///
/// # Errors
/// There is none, with the nearest or all names.
pub fn preset(name: &str) -> Result<Preset, String> {
    let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
    let found = PRESETS.iter().find(|preset| preset.name == name);
    found.copied().ok_or_else(|| super::resolve::unknown("preset", name, &names))
}

#[cfg(test)]
mod tests {
    use super::super::config::{Config, Warmup};
    use super::super::resolve::Layers;
    use super::*;
    use crate::tasks::Task;

    fn read(name: &str) -> Config {
        let mut layers = Layers::default();
        layers.preset(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        layers.config().unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    #[test]
    fn every_preset_is_sound_and_says_what_it_is() {
        for preset in PRESETS {
            let config = read(preset.name);
            assert_eq!(config.check(), Ok(()), "{}", preset.name);
            assert!(preset.about().len() > 20, "{}", preset.name);
        }
    }

    #[test]
    fn default_is_what_holds_without_a_preset() {
        assert_eq!(read("default"), Config { preset: Some("default".into()), ..Config::default() });
    }

    #[test]
    fn published_values_are_kept() {
        let row = |name: &str| {
            let c = read(name);
            (c.task, c.image_size, c.lr, c.epochs, c.batch_size)
        };
        assert_eq!(row("irtr-coco-base-384"), (Some(Task::Irtr), Some(384), 6.25e-6, Some(20), 640));
        assert_eq!(row("irtr-f30k-base-384"), (Some(Task::Irtr), Some(384), 6.25e-7, Some(40), 128));
        assert_eq!(row("irtr-f30k-base-224"), (Some(Task::Irtr), Some(224), 5e-5, Some(10), 1024));
        assert_eq!(row("irtr-f30k-large-384"), (Some(Task::Irtr), Some(384), 5e-5, Some(10), 1024));
        assert_eq!(row("vqa-base-480"), (Some(Task::Vqa), Some(480), 3e-5, Some(10), 128));
        assert_eq!(row("vqa-large-224"), (Some(Task::Vqa), Some(224), 3e-5, Some(10), 512));
        assert_eq!(row("nlvr2-base-384"), (Some(Task::Nlvr2), Some(384), 5e-5, Some(10), 128));
        assert_eq!(row("nlvr2-base-224"), (Some(Task::Nlvr2), Some(224), 1e-4, Some(10), 128));
        assert_eq!(row("imagenet-base-224"), (Some(Task::ImgCls), Some(224), 3e-3, Some(100), 512));
        assert_eq!(row("imagenet-base-384"), (Some(Task::ImgCls), Some(384), 1e-3, Some(100), 512));
        assert_eq!(row("pretrain-base-224"), (None, Some(224), 2e-4, None, 1056));
        let vqa = read("vqa-base-480");
        assert_eq!((vqa.lr_mult, vqa.drop_rate, vqa.text_dropout()), (10.0, 0.15, 0.15));
        assert_eq!(read("vqa-large-224").lr_mult, 10.0);
        let imagenet = read("imagenet-base-224");
        assert_eq!((imagenet.weight_decay, imagenet.warmup), (0.05, Warmup::Fraction(0.2)));
        assert_eq!(read("imagenet-base-384").lr_mult, 10.0);
        let pretrain = read("pretrain-base-224");
        assert_eq!(
            (pretrain.steps, pretrain.warmup, pretrain.text_len),
            (Some(200_000), Warmup::Steps(2500), Some(40))
        );
        let objectives = pretrain.pretrain.unwrap();
        assert_eq!((objectives.mlm_probability, objectives.whole_word), (0.25, true));
    }

    /// The published commands change some of the configuration's values: both are there to read.
    #[test]
    fn values_of_the_configuration_file_stand_beside_the_published_ones() {
        for (name, said) in [
            ("irtr-coco-base-384", ["lr = 6.25e-6        # 2e-5 in", "batch_size = 640    # 1024 in"]),
            ("irtr-f30k-base-384", ["lr = 6.25e-7        # 5e-5 in", "batch_size = 128    # 1024 in"]),
            ("vqa-base-480", ["image_size = 480    # 224 in", "batch_size = 128    # 512 in"]),
        ] {
            let text = preset(name).unwrap().text;
            assert!(said.iter().all(|said| text.contains(said)), "{name}: {text}");
        }
    }

    #[test]
    fn a_mistyped_name_gets_the_nearest() {
        assert_eq!(preset("vqa-base-840").unwrap_err(), "unknown preset 'vqa-base-840': did you mean 'vqa-base-480'?");
        assert!(preset("zzz").unwrap_err().starts_with("unknown preset 'zzz': it is one of default, toy, "));
    }
}
