//! The checkpoint's name of every parameter: the path of fields that leads to it.

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend as BurnBackend;

use super::transformer::VlModel;

/// Where a walk over a module stands.
#[derive(Clone, Debug, Default)]
pub struct Path(Vec<String>);

impl Path {
    pub fn enter(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    pub fn exit(&mut self) {
        self.0.pop();
    }

    /// `shared` is no part of a checkpoint's name; a number is a field with a `_` before it; BERT's norms are `LayerNorm`.
    pub fn name(&self) -> String {
        let pieces = self.0.iter().filter(|piece| *piece != "shared");
        let spelled = pieces.map(|piece| match piece.as_str() {
            "layer_norm" => "LayerNorm",
            piece => piece.strip_prefix('_').unwrap_or(piece),
        });
        spelled.collect::<Vec<_>>().join(".")
    }
}

/// What a checkpoint says of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub name: String,
    pub id: ParamId,
    pub shape: Vec<usize>,
}

/// Every parameter, in the model's order.
pub fn parameters<B: BurnBackend>(model: &VlModel<B>) -> Vec<Named> {
    struct Walk {
        path: Path,
        found: Vec<Named>,
    }
    impl<B: BurnBackend> ModuleVisitor<B> for Walk {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.enter(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let name = self.path.name();
            let shape = stored_shape(&name, &param.val().dims());
            self.found.push(Named { name, id: param.id, shape });
        }
    }
    let mut walk = Walk { path: Path::default(), found: Vec::new() };
    model.visit(&mut walk);
    walk.found
}

/// A parameter's shape in a file: burn has no tensors of rank 0, PyTorch keeps these two as such.
pub fn stored_shape(name: &str, dims: &[usize]) -> Vec<usize> {
    match name {
        "logit_scale" | "logit_vl_scale" => Vec::new(),
        _ => dims.to_vec(),
    }
}

/// Weight decay applies to it: not a bias, not a norm's weight, nor the relative position tables.
pub fn decays(name: &str) -> bool {
    let norm = name.contains("norm") || name.contains("LayerNorm") || name.ends_with("_classifier.1.weight");
    !norm && !name.contains("bias")
}

/// Weight decay applies to it in the Python code, which spells the norms it leaves out as a model without experts has
/// them: the norms of experts and of heads do decay.
pub fn decays_in_reference(name: &str) -> bool {
    const SPARED: [&str; 5] = ["bias", "LayerNorm.weight", "norm.weight", "norm1.weight", "norm2.weight"];
    !SPARED.iter().any(|part| name.contains(part))
}

/// It belongs to a task's own head, which learns at a multiple of the learning rate.
pub fn is_head(name: &str) -> bool {
    name.split('.').next().is_some_and(|part| part.ends_with("_classifier"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_checkpoint_names() {
        let name = |pieces: &[&str]| Path(pieces.iter().map(|&piece| piece.to_owned()).collect()).name();
        assert_eq!(name(&["transformer", "blocks", "3", "attn", "v", "q_bias"]), "transformer.blocks.3.attn.v.q_bias");
        assert_eq!(
            name(&["transformer", "blocks", "0", "mlp", "shared", "fc1", "weight"]),
            "transformer.blocks.0.mlp.fc1.weight"
        );
        assert_eq!(name(&["vqa_classifier", "_3", "bias"]), "vqa_classifier.3.bias");
        assert_eq!(name(&["text_embeddings", "layer_norm", "weight"]), "text_embeddings.LayerNorm.weight");
    }

    #[test]
    fn what_decays() {
        for name in [
            "transformer.blocks.0.attn.v.qkv.weight",
            "transformer.blocks.0.gamma_1",
            "vqa_classifier.0.weight",
            "transformer.cls_token",
        ] {
            assert!(decays(name), "{name}");
        }
        for name in [
            "transformer.blocks.0.attn.v.q_bias",
            "transformer.blocks.0.norm1.v.weight",
            "transformer.norm.weight",
            "text_embeddings.LayerNorm.weight",
            "relative_position_bias_table",
            "vqa_classifier.1.weight",
        ] {
            assert!(!decays(name), "{name}");
        }
    }

    #[test]
    fn the_python_code_spares_only_the_norms_without_experts() {
        for name in [
            "transformer.blocks.0.norm1.v.weight",
            "transformer.blocks.11.norm2.vl.weight",
            "vqa_classifier.1.weight",
            "transformer.blocks.0.gamma_1",
            "transformer.cls_token",
            "logit_scale",
            "text_embeddings.word_embeddings.weight",
        ] {
            assert!(decays_in_reference(name), "{name}");
        }
        for name in [
            "transformer.blocks.0.norm1.weight",
            "transformer.blocks.0.norm2.weight",
            "transformer.norm.weight",
            "text_embeddings.LayerNorm.weight",
            "mlm_score.transform.LayerNorm.weight",
            "relative_position_bias_table",
            "transformer.blocks.0.norm1.v.bias",
            "vqa_classifier.3.bias",
        ] {
            assert!(!decays_in_reference(name), "{name}");
        }
    }

    #[test]
    fn heads() {
        assert!(is_head("img_cls_classifier.weight") && is_head("nlvr2_classifier.0.bias"));
        assert!(!is_head("ifm_text_proj.fc.weight") && !is_head("transformer.norm.weight"));
    }
}
