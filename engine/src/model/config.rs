//! The shape of a model, every number known.

use formats::config::{Detected, ModelConfig, Positions, Variant};
use formats::layout::Part;
use formats::show_name;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use formats::config::Attends;

/// What one vision-language transformer is made of. The variants differ in these values only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Architecture {
    pub attention_experts: bool,
    pub mlp_experts: bool,
    pub norm1_experts: bool,
    pub norm2_experts: bool,
    pub attends: Attends,
    pub layers: usize,
    /// First layer that processes text and image together, with a `vl` expert where there are experts.
    pub vl_start: usize,
    /// D
    pub hidden_size: usize,
    pub heads: usize,
    pub mlp_hidden: usize,
    /// Pixels along the side of an image, and of a patch.
    pub image_size: usize,
    pub patch_size: usize,
    pub vocab_size: usize,
    /// Tokens of a text, padding included.
    pub text_len: usize,
    /// T0: tokens of the longest text the relative position table has distances for.
    pub table_text_len: usize,
    /// Rows of `token_type_embeddings`.
    pub token_types: usize,
    /// Relative positions, one table for all layers; else absolute ones (VLMo's base_plus).
    pub relative_positions: bool,
    /// Whether what attention and MLP add is scaled by a vector of its own in each layer; not in VLMo's base_plus.
    pub layer_scale: bool,
}

/// A model that can't be run.
#[derive(Debug, Error)]
pub enum ArchitectureError {
    #[error("its weights don't show the model's {0}, and its metadata doesn't say")]
    Unknown(&'static str),
    #[error("models like this aren't run: {0}")]
    Unusual(String),
    #[error("{0}")]
    Unfit(String),
}

/// The sizes that models of this family come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Size {
    /// 192 wide, 3 heads, 12 layers
    Tiny,
    /// 768 wide, 12 heads, 12 layers
    Base,
    /// 1024 wide, 16 heads, 24 layers
    Large,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Size::Tiny => "tiny",
            Size::Base => "base",
            Size::Large => "large",
        })
    }
}

impl Architecture {
    /// A model of a usual size, with patches of 16 pixels, BERT's vocabulary and texts of 40 tokens.
    pub fn sized(size: Size, variant: Variant, image_size: usize) -> Architecture {
        let (hidden_size, heads, layers, vl_start) = match size {
            Size::Tiny => (192, 3, 12, 10),
            Size::Base => (768, 12, 12, 10),
            Size::Large => (1024, 16, 24, 21),
        };
        Architecture {
            attention_experts: variant.has_experts(Part::Attention),
            mlp_experts: variant.has_experts(Part::Mlp),
            norm1_experts: variant.has_experts(Part::Norm1),
            norm2_experts: variant.has_experts(Part::Norm2),
            attends: if variant == Variant::LnMoe { Attends::ToAll } else { Attends::WithinModality },
            layers,
            vl_start,
            hidden_size,
            heads,
            mlp_hidden: 4 * hidden_size,
            image_size,
            patch_size: 16,
            vocab_size: 30522,
            text_len: 40,
            table_text_len: 196,
            token_types: 2,
            relative_positions: true,
            layer_scale: true,
        }
    }

    /// Multiplications and additions of a forward pass of one sequence through `layers` layers: 2 for each product.
    pub fn flops(&self, tokens: usize, layers: usize) -> f64 {
        let (n, d, h) = (tokens as f64, self.hidden_size as f64, self.mlp_hidden as f64);
        // qkv and proj, both MLP layers, and the two products of attention
        layers as f64 * (2.0 * n * d * (4.0 * d) + 2.0 * n * d * h * 2.0 + 4.0 * n * n * d)
    }

    /// w: patches along the side of an image.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Tokens of an image: its patches and the class token.
    pub fn image_tokens(&self) -> usize {
        self.grid() * self.grid() + 1
    }

    /// Rows of the relative position table.
    pub fn table_rows(&self) -> usize {
        let side = 2 * self.grid() - 1;
        side * side + 3 + 2 * self.table_text_len + 2
    }

    /// The architecture that a checkpoint's names, shapes and metadata show.
    ///
    /// - table_rows: rows of its relative position table, if it has one
    /// - image_size: pixels along a side, for a checkpoint that doesn't say
    ///
    /// # Errors
    /// A size that nothing shows, sizes that fit no transformer, or a forward pass that isn't ours.
    pub fn of(
        detected: &Detected,
        table_rows: Option<usize>,
        image_size: Option<usize>,
    ) -> Result<Architecture, ArchitectureError> {
        let c = &detected.config;
        let need = |value: Option<usize>, what| value.ok_or(ArchitectureError::Unknown(what));
        if !c.unusual.is_empty() {
            let reasons: Vec<String> = c.unusual.iter().map(|reason| show_name(reason)).collect();
            return Err(ArchitectureError::Unusual(reasons.join("; ")));
        }
        let has = |part| detected.experts.contains(&part);
        let layers = need(c.layers, "number of layers")?;
        let text_len = c.max_text_len.unwrap_or(40);
        let mut architecture = Architecture {
            attention_experts: has(Part::Attention),
            mlp_experts: has(Part::Mlp),
            norm1_experts: has(Part::Norm1),
            norm2_experts: has(Part::Norm2),
            attends: c.attends.ok_or(ArchitectureError::Unknown(
                "attention pattern (whether text and image attend to each other below vl start)",
            ))?,
            layers,
            // Experts without any vl among them are for layers below it.
            vl_start: match c.vl_start {
                None if detected.experts.is_empty() => return Err(ArchitectureError::Unknown("vl start")),
                start => start.unwrap_or(layers),
            },
            hidden_size: need(c.hidden_size, "width")?,
            heads: need(c.heads, "number of attention heads")?,
            mlp_hidden: need(c.mlp_hidden, "MLP width")?,
            image_size: need(c.image_size.or(image_size), "image size (--image-size says it)")?,
            patch_size: need(c.patch_size, "patch size")?,
            vocab_size: need(c.vocab_size, "vocabulary size")?,
            text_len,
            table_text_len: c.max_text_len_of_initckpt.unwrap_or(text_len),
            token_types: c.token_types.unwrap_or(2),
            relative_positions: match c.positions {
                Some(positions) => positions == Positions::Relative,
                None => return Err(ArchitectureError::Unknown("positions, relative or absolute")),
            },
            layer_scale: c.layer_scale.ok_or(ArchitectureError::Unknown("layer scale"))?,
        };
        if let Some(rows) = table_rows {
            // Nothing tells T0 better than the rows that the image leaves.
            let side = (2 * architecture.grid()).saturating_sub(1);
            match rows.checked_sub(side * side + 5) {
                Some(left) if left % 2 == 0 => architecture.table_text_len = left / 2,
                _ => {
                    let size = architecture.image_size;
                    let reason = format!("a position table of {rows} rows fits no image of {size} pixels");
                    return Err(ArchitectureError::Unfit(reason));
                }
            }
        }
        architecture.check()?;
        Ok(architecture)
    }

    /// # Errors
    /// Sizes that fit no transformer.
    pub fn check(&self) -> Result<(), ArchitectureError> {
        let unfit = |text: String| Err(ArchitectureError::Unfit(text));
        let Architecture { hidden_size, heads, image_size, patch_size, .. } = *self;
        if [self.layers, hidden_size, heads, self.mlp_hidden, image_size, patch_size, self.vocab_size].contains(&0) {
            return unfit("a size of it is 0".into());
        }
        if hidden_size % heads != 0 {
            return unfit(format!("its width {hidden_size} can't be shared by {heads} heads"));
        }
        if image_size % patch_size != 0 {
            return unfit(format!("an image size of {image_size} is no multiple of the patch size {patch_size}"));
        }
        if self.vl_start > self.layers {
            return unfit(format!("vl start {} is beyond its {} layers", self.vl_start, self.layers));
        }
        if self.text_len < 2 {
            return unfit(format!("a text length of {} leaves no room for [CLS] and [SEP]", self.text_len));
        }
        if self.relative_positions && self.text_len > self.table_text_len {
            return unfit(format!(
                "a text length of {} is beyond the {} tokens that its position table has distances for",
                self.text_len, self.table_text_len
            ));
        }
        Ok(())
    }

    /// The variant's name, as DESIGN has it; `None` for a mixture that has none.
    pub fn variant(&self) -> Option<Variant> {
        Variant::ALL.into_iter().find(|variant| {
            let has = |part| variant.has_experts(part);
            (has(Part::Attention), has(Part::Mlp), has(Part::Norm1), has(Part::Norm2))
                == (self.attention_experts, self.mlp_experts, self.norm1_experts, self.norm2_experts)
        })
    }

    /// For a written checkpoint's metadata.
    pub fn record(&self) -> ModelConfig {
        ModelConfig {
            layout: Some("vl-merging".into()),
            variant: self.variant(),
            layers: Some(self.layers),
            vl_start: Some(self.vl_start),
            attends: Some(self.attends),
            hidden_size: Some(self.hidden_size),
            heads: Some(self.heads),
            mlp_hidden: Some(self.mlp_hidden),
            layer_scale: Some(self.layer_scale),
            positions: Some(if self.relative_positions { Positions::Relative } else { Positions::Absolute }),
            image_size: Some(self.image_size),
            patch_size: Some(self.patch_size),
            image_grid: Some(self.grid()),
            vocab_size: Some(self.vocab_size),
            max_text_len: Some(self.text_len),
            max_text_len_of_initckpt: self.relative_positions.then_some(self.table_text_len),
            token_types: Some(self.token_types),
            tasks: Default::default(),
            // Models that are aren't run.
            unusual: Vec::new(),
        }
    }
}
