use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::{Dtype, TensorInfo};

fn layout(name: &str) -> &'static Layout {
    Layout::by_name(name).unwrap()
}

fn tensor(name: &str, shape: &[usize]) -> TensorInfo {
    TensorInfo { name: name.to_string(), dtype: Dtype::F32, shape: shape.to_vec() }
}

fn tensors(names: &[&str]) -> Vec<TensorInfo> {
    names.iter().map(|name| tensor(name, &[2])).collect()
}

fn expert(slot: &str, layer: Option<usize>, part: Part, modality: Modality) -> Option<ExpertName> {
    Some(ExpertName { slot: slot.to_string(), layer, part, modality })
}

#[test]
fn modalities_read_write_and_order() {
    assert_eq!(Modality::ALL.map(|m| m.to_string()), ["v", "l", "vl"]);
    assert_eq!("vl".parse(), Ok(Modality::VisionLanguage));
    assert_eq!("V".parse::<Modality>(), Err("no modality 'V': it is v, l or vl".to_string()));
    assert!(Modality::Vision < Modality::Language && Modality::Language < Modality::VisionLanguage);
    assert_eq!(Part::ALL.map(|part| part.to_string().parse()), Part::ALL.map(Ok));
    assert!("norm".parse::<Part>().is_err());
}

#[test]
fn vl_merging_names() {
    use {Modality::*, Part::*};
    let vl = layout("vl-merging");
    let block = "transformer.blocks.3";
    for (name, slot, part, modality) in [
        ("attn.v.qkv.weight", "attn.qkv.weight", Attention, Vision),
        ("attn.l.q_bias", "attn.q_bias", Attention, Language),
        ("attn.vl.proj.bias", "attn.proj.bias", Attention, VisionLanguage),
        ("mlp.v.fc1.weight", "mlp.fc1.weight", Mlp, Vision),
        ("norm1.l.weight", "norm1.weight", Norm1, Language),
        ("norm2.vl.bias", "norm2.bias", Norm2, VisionLanguage),
    ] {
        let found = vl.parse_name(&format!("{block}.{name}"));
        assert_eq!(found, expert(&format!("{block}.{slot}"), Some(3), part, modality), "{name}");
        assert_eq!(vl.parse_slot(&format!("{block}.{slot}")), Some(SlotPlace { layer: Some(3), part }));
        assert_eq!(vl.expert_name(&format!("{block}.{slot}"), modality), Some(format!("{block}.{name}")));
    }
    for name in [
        "transformer.blocks.3.attn.qkv.weight",
        "transformer.blocks.3.gamma_1",
        "transformer.norm.weight",
        "relative_position_bias_table",
        "text_embeddings.word_embeddings.weight",
        // A gram matrix, not a weight.
        "transformer.blocks.3.attn.v.proj",
        "transformer.blocks.3.attn.v",
    ] {
        assert_eq!(vl.parse_name(name), None, "{name}");
    }
    assert_eq!(vl.parse_slot("transformer.norm.weight"), None);
    assert_eq!(vl.parse_slot("transformer.blocks.3.attn.v.qkv.weight"), None);
}

#[test]
fn vlmo_names_with_and_without_prefix() {
    use {Modality::*, Part::*};
    let vlmo = layout("vlmo");
    for prefix in ["", "transformer.", "module.transformer."] {
        for (spelling, modality) in [("imag", Vision), ("text", Language), ("vl", VisionLanguage)] {
            let name = format!("{prefix}blocks.10.mlp_{spelling}.fc2.bias");
            let slot = format!("{prefix}blocks.10.mlp.fc2.bias");
            assert_eq!(vlmo.parse_name(&name), expert(&slot, Some(10), Mlp, modality));
            assert_eq!(vlmo.expert_name(&slot, modality), Some(name));
            let name = format!("{prefix}blocks.0.norm2_{spelling}.weight");
            let slot = format!("{prefix}blocks.0.norm2.weight");
            assert_eq!(vlmo.parse_name(&name), expert(&slot, Some(0), Norm2, modality));
        }
        assert_eq!(vlmo.parse_name(&format!("{prefix}blocks.0.attn.qkv.weight")), None);
    }
    let slot = "transformer.blocks.3.mlp.fc1.weight";
    assert_eq!(vlmo.gram_name(slot, Language).as_deref(), Some("transformer.blocks.3.mlp_text.fc1"));
    assert_eq!(vlmo.gram_name("module.blocks.3.mlp.fc2.weight", Vision).as_deref(), Some("blocks.3.mlp_imag.fc2"));
}

#[test]
fn beit3_names_with_and_without_prefix() {
    use {Modality::*, Part::*};
    let beit3 = layout("beit3");
    for prefix in ["", "beit3.", "module.beit3."] {
        for (name, slot, layer, part) in [
            ("layers.11.self_attn.q_proj.#.weight", "layers.11.self_attn.q_proj.weight", Some(11), Attention),
            ("layers.0.self_attn.out_proj.#.bias", "layers.0.self_attn.out_proj.bias", Some(0), Attention),
            ("layers.0.self_attn.inner_attn_ln.#.bias", "layers.0.self_attn.inner_attn_ln.bias", Some(0), Attention),
            ("layers.1.self_attn_layer_norm.#.bias", "layers.1.self_attn_layer_norm.bias", Some(1), Norm1),
            ("layers.1.ffn.#.fc1.weight", "layers.1.ffn.fc1.weight", Some(1), Mlp),
            ("layers.1.ffn.#.ffn_layernorm.bias", "layers.1.ffn.ffn_layernorm.bias", Some(1), Mlp),
            ("layers.1.final_layer_norm.#.weight", "layers.1.final_layer_norm.weight", Some(1), Norm2),
            ("layers.1.some_new_norm.#.weight", "layers.1.some_new_norm.weight", Some(1), Other),
            ("layer_norm.#.weight", "layer_norm.weight", None, Other),
            ("layernorm_embedding.#.bias", "layernorm_embedding.bias", None, Other),
        ] {
            for (spelling, modality) in [("A", Vision), ("B", Language)] {
                let name = format!("{prefix}encoder.{}", name.replace('#', spelling));
                let slot = format!("{prefix}encoder.{slot}");
                assert_eq!(beit3.parse_name(&name), expert(&slot, layer, part, modality), "{name}");
                assert_eq!(beit3.expert_name(&slot, modality), Some(name));
            }
            assert_eq!(beit3.expert_name(&format!("{prefix}encoder.{slot}"), VisionLanguage), None);
        }
        for name in ["encoder.embed_positions.A.weight", "encoder.embed_positions.B.weight", "vision_embed.cls_token"] {
            let name = format!("{prefix}{name}");
            assert_eq!(beit3.parse_name(&name), None);
            assert_eq!(beit3.parse_slot(&name), None);
        }
    }
    assert_eq!(
        beit3.gram_name("beit3.encoder.layers.2.self_attn.k_proj.weight", Language).as_deref(),
        Some("beit3.encoder.layers.2.self_attn.k_proj.B")
    );
    assert_eq!(beit3.gram_name("beit3.encoder.layers.2.self_attn.inner_attn_ln.weight", Language), None);
    assert_eq!(
        beit3.gram_name("encoder.layers.2.ffn.fc2.weight", Vision).as_deref(),
        Some("encoder.layers.2.ffn.A.fc2")
    );
}

#[test]
fn gram_names_are_pytorchs() {
    let vl = layout("vl-merging");
    let gram = |slot: &str| vl.gram_name(&format!("transformer.blocks.7.{slot}"), Modality::VisionLanguage);
    assert_eq!(gram("attn.qkv.weight").as_deref(), Some("transformer.blocks.7.attn.vl"));
    assert_eq!(gram("attn.proj.weight").as_deref(), Some("transformer.blocks.7.attn.vl.proj"));
    assert_eq!(gram("mlp.fc1.weight").as_deref(), Some("transformer.blocks.7.mlp.vl.fc1"));
    assert_eq!(gram("mlp.fc2.weight").as_deref(), Some("transformer.blocks.7.mlp.vl.fc2"));
    for slot in ["attn.q_bias", "attn.proj.bias", "norm1.weight", "gamma_1"] {
        assert_eq!(gram(slot), None, "{slot}");
        assert!(!vl.is_linear(&format!("transformer.blocks.7.{slot}")));
    }
    assert!(vl.is_linear("transformer.blocks.7.mlp.fc2.weight"));
}

#[test]
fn siblings_differ_in_the_modality_alone() {
    let vl = layout("vl-merging");
    let name = "transformer.blocks.3.attn.v.v_bias";
    assert_eq!(vl.sibling(name, Modality::Language).as_deref(), Some("transformer.blocks.3.attn.l.v_bias"));
    assert_eq!(vl.sibling(name, Modality::Vision).as_deref(), Some(name));
    assert_eq!(vl.sibling("transformer.norm.weight", Modality::Vision), None);
    assert_eq!(layout("beit3").sibling("encoder.layer_norm.A.weight", Modality::VisionLanguage), None);
}

#[test]
fn positions_and_buffers() {
    let vl = layout("vl-merging");
    let joint = PositionTable::Relative { per_layer: true, text: true };
    assert_eq!(vl.position_table("relative_position_bias_table"), Some(joint));
    assert_eq!(vl.position_table("temporal_relative_position_bias_table"), None);
    for name in ["relative_position_index", "text_imag_relative_position_index", "temporal_relative_position_index"] {
        assert_eq!(vl.buffer(name), Some(Buffer::Image), "{name}");
    }
    assert_eq!(vl.buffer("mask_for_combining_temporal"), Some(Buffer::Image));
    assert_eq!(vl.buffer("text_embeddings.position_ids"), Some(Buffer::Fixed));
    assert_eq!(vl.buffer("relative_position_bias_table"), None);

    let beit3 = layout("beit3");
    let table = beit3.position_table("beit3.encoder.embed_positions.A.weight");
    assert_eq!(table, Some(PositionTable::Absolute { lead: 3 }));
    assert_eq!(beit3.position_table("beit3.encoder.embed_positions.B.weight"), None);
    assert_eq!(layout("vlmo").position_table("transformer.pos_embed"), Some(PositionTable::Absolute { lead: 1 }));
    assert_eq!(
        layout("beit").position_table("blocks.3.attn.relative_position_bias_table"),
        Some(PositionTable::Relative { per_layer: false, text: false })
    );
    assert_eq!(layout("beit").position_layer("blocks.3.attn.relative_position_bias_table"), Some(3));
    assert_eq!(layout("beit").position_layer("rel_pos_bias.relative_position_bias_table"), None);
    assert_eq!(layout("beit").position_table("pos_embed"), Some(PositionTable::Absolute { lead: 1 }));
}

#[test]
fn a_beit_becomes_a_vl_merging_model() {
    let becomes = layout("beit").becomes().unwrap();
    let target = layout(becomes.layout());
    assert_eq!(
        target.position_table(becomes.positions()),
        Some(PositionTable::Relative { per_layer: true, text: true })
    );
    for prefix in ["", "transformer.", "module."] {
        for (from, to) in [
            ("cls_token", "transformer.cls_token"),
            ("patch_embed.proj.bias", "transformer.patch_embed.proj.bias"),
            ("blocks.3.gamma_1", "transformer.blocks.3.gamma_1"),
            ("blocks.11.attn.q_bias", "transformer.blocks.11.attn.q_bias"),
            ("fc_norm.weight", "transformer.norm.weight"),
            ("norm.weight", "transformer.norm.weight"),
        ] {
            let (_, name) = becomes.rename(&format!("{prefix}{from}")).unwrap();
            assert_eq!(name, to);
        }
        let rank = |name: &str| becomes.rename(&format!("{prefix}{name}")).unwrap().0;
        assert!(rank("fc_norm.bias") < rank("norm.bias"));
        for name in ["head.weight", "lm_head.bias", "pos_embed", "fc_norm.running_mean", "cls_token2"] {
            assert_eq!(becomes.rename(&format!("{prefix}{name}")), None);
        }
    }
    let becoming: Vec<&str> =
        Layout::builtin().iter().filter(|layout| layout.becomes().is_some()).map(Layout::name).collect();
    assert_eq!(becoming, ["beit", "vlmo"]);
    assert_eq!(
        (target.usual_vl_start(24), target.usual_vl_start(13), target.usual_text_len()),
        (Some(21), None, Some(196))
    );
}

#[test]
fn rows_of_position_tables() {
    // 224/16 = 14 patches, T0 = 196: 27² + 3 + 392 + 2.
    let joint = PositionTable::Relative { per_layer: true, text: true };
    assert_eq!(joint.rows(14, 196), Some(1126));
    assert_eq!(joint.patches(1126, 196), Some(14));
    assert_eq!(joint.text_len(1126, 14), Some(196));
    assert_eq!(joint.grid(14), Some(Grid { start: 0, side: 27 }));
    // BEiT: 27² + 3. BEiT-3: 14² + 3.
    let image = PositionTable::Relative { per_layer: false, text: false };
    assert_eq!((image.rows(14, 0), image.patches(732, 0)), (Some(732), Some(14)));
    let absolute = PositionTable::Absolute { lead: 3 };
    assert_eq!((absolute.rows(14, 0), absolute.patches(199, 0)), (Some(199), Some(14)));
    assert_eq!(absolute.grid(24), Some(Grid { start: 3, side: 24 }));
    assert_eq!((absolute.text_len(199, 14), image.text_len(732, 14)), (None, None));

    for table in [joint, image, absolute] {
        for w in [0, 1 << 31, 1 << 32, usize::MAX] {
            let _ = (table.rows(w, usize::MAX), table.grid(w), table.text_len(usize::MAX, w));
            let _ = table.patches(usize::MAX, w);
        }
        assert_eq!(table.grid(0), None);
        assert_eq!(table.grid(1 << 32), None);
        assert_eq!(table.patches(0, 0), None);
        assert_eq!(table.patches(2, 0), None);
    }
    // An even square is no (2w−1)², an odd remainder no pair of text rows.
    assert_eq!(image.patches(4 + 3, 0), None);
    assert_eq!(joint.text_len(1127, 14), None);
    assert_eq!(joint.text_len(27 * 27 + 5, 14), None);
}

#[test]
fn detects_layouts_from_names() {
    let found = |names: &[&str]| Layout::detect(names.iter().copied()).map(|d| (d.layout.name(), d.experts));
    assert_eq!(found(&["logit_scale", "transformer.blocks.0.mlp.v.fc1.weight"]), Some(("vl-merging", 1)));
    assert_eq!(found(&["logit_scale", "transformer.blocks.0.attn.qkv.weight"]), Some(("vl-merging", 0)));
    assert_eq!(found(&["transformer.blocks.0.attn.qkv.weight", "blocks.0.mlp_imag.fc1.bias"]), Some(("vlmo", 1)));
    assert_eq!(found(&["transformer.blocks.0.attn.qkv.weight", "itc_text_proj.fc.weight"]), Some(("vlmo", 0)));
    assert_eq!(found(&["beit3.encoder.layer_norm.A.weight"]), Some(("beit3", 1)));
    let merged = ["beit3.encoder.embed_positions.A.weight", "beit3.encoder.layers.0.ffn.fc1.weight"];
    assert_eq!(found(&merged), Some(("beit3", 0)));
    let beit = ["transformer.blocks.0.attn.qkv.weight", "transformer.rel_pos_bias.relative_position_bias_table"];
    assert_eq!(found(&beit), Some(("beit", 0)));
    assert_eq!(found(&["blocks.11.attn.relative_position_bias_table"]), Some(("beit", 0)));
    assert_eq!(found(&["pos_embed", "blocks.0.attn.q_bias"]), Some(("beit", 0)));
    assert_eq!(found(&["itc_text_proj.fc.weight", "blocks.0.attn.q_bias"]), Some(("vlmo", 0)));
    assert_eq!(found(&["encoder.layers.0.self_attn.q_proj.weight", "conv1.weight"]), None);
    assert_eq!(found(&["transformer.blocks.0.attn.v.proj", "transformer.blocks.0.attn.v"]), None);
    assert_eq!(found(&[]), None);

    let found = Layout::detect(["a", "transformer.blocks.0.mlp.l.fc1.bias", "transformer.blocks.0.mlp.v.fc1.bias"]);
    assert_eq!(found.unwrap().example, "transformer.blocks.0.mlp.l.fc1.bias");
}

#[test]
fn groups_in_file_order() {
    let names = [
        "transformer.blocks.1.norm1.vl.weight",
        "logit_scale",
        "transformer.blocks.0.norm1.l.weight",
        "transformer.blocks.1.norm1.l.weight",
        "transformer.blocks.0.norm1.v.weight",
        "transformer.blocks.1.norm1.v.weight",
    ];
    let tensors = tensors(&names);
    let experts = group(layout("vl-merging"), &tensors, Path::new("ms.ckpt")).unwrap();
    let slot = |layer: usize, experts: Vec<(Modality, usize)>, first| Slot {
        slot: format!("transformer.blocks.{layer}.norm1.weight"),
        layer: Some(layer),
        part: Part::Norm1,
        experts,
        first,
    };
    use Modality::*;
    let expected = [
        slot(1, vec![(Vision, 5), (Language, 3), (VisionLanguage, 0)], 0),
        slot(0, vec![(Vision, 4), (Language, 2)], 2),
    ];
    assert_eq!(experts.slots, expected);
    assert_eq!(experts.vl_start(), Some(1));
    assert_eq!(experts.parts().into_iter().collect::<Vec<_>>(), [Part::Norm1]);
    assert_eq!(experts.missing(&tensors), Vec::<String>::new());
    assert_eq!(experts.slots[1].expert(VisionLanguage), None);
    experts.check_shapes(&tensors, Path::new("ms.ckpt")).unwrap();
}

#[test]
fn an_agnostic_checkpoint_has_no_slots() {
    let tensors = tensors(&["transformer.blocks.0.attn.qkv.weight", "transformer.blocks.0.gamma_1"]);
    let experts = group(layout("vl-merging"), &tensors, Path::new("seed.ckpt")).unwrap();
    assert!(experts.is_empty() && experts.vl_start().is_none());
}

#[test]
fn missing_experts_are_named() {
    // Layer 1 is deep: its mlp has a vl expert, its norm2 lacks one. BEiT-3 for image classification has A alone.
    let names = [
        "blocks.0.mlp_imag.fc1.bias",
        "blocks.1.mlp_imag.fc1.bias",
        "blocks.1.mlp_text.fc1.bias",
        "blocks.1.mlp_vl.fc1.bias",
        "blocks.1.norm2_text.bias",
        "blocks.1.norm2_imag.bias",
    ];
    let vlmo = tensors(&names);
    let experts = group(layout("vlmo"), &vlmo, Path::new("f")).unwrap();
    assert_eq!(experts.missing(&vlmo), ["blocks.0.mlp_text.fc1.bias", "blocks.1.norm2_vl.bias"]);
    let beit3 = tensors(&["beit3.encoder.layer_norm.A.weight"]);
    let experts = group(layout("beit3"), &beit3, Path::new("f")).unwrap();
    assert_eq!(experts.missing(&beit3), ["beit3.encoder.layer_norm.B.weight"]);
}

#[test]
fn grouping_refuses_clashes() {
    let error = |names: &[&str]| group(layout("vl-merging"), &tensors(names), Path::new("f")).unwrap_err().to_string();
    assert_eq!(
        error(&["transformer.blocks.0.mlp.fc1.bias", "transformer.blocks.0.mlp.l.fc1.bias"]),
        "f: tensor 'transformer.blocks.0.mlp.fc1.bias': it has the name that 'transformer.blocks.0.mlp.l.fc1.bias' and \
         its siblings merge into"
    );
    let name = "transformer.blocks.0.mlp.l.fc1.bias";
    assert_eq!(error(&[name, name]), format!("f: tensor '{name}': it is the same expert as '{name}'"));
}

#[test]
fn shapes_of_experts_must_agree() {
    let tensors = [
        tensor("transformer.blocks.3.attn.v.qkv.weight", &[576, 192]),
        tensor("transformer.blocks.3.attn.l.qkv.weight", &[576, 96]),
    ];
    let experts = group(layout("vl-merging"), &tensors, Path::new("ms.ckpt")).unwrap();
    let error = experts.check_shapes(&tensors, Path::new("ms.ckpt")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ms.ckpt: layer 3: transformer.blocks.3.attn.v.qkv.weight is [576, 192], \
         transformer.blocks.3.attn.l.qkv.weight is [576, 96]: experts must have one shape"
    );
}

#[test]
fn hostile_names_are_no_experts() {
    let vl = layout("vl-merging");
    for name in [
        "transformer.blocks.10000.mlp.v.fc1.weight",
        "transformer.blocks.99999999999999999999999.mlp.v.fc1.weight",
        "transformer.blocks.-1.mlp.v.fc1.weight",
        "transformer.blocks.01.mlp.v.fc1.weight",
        "transformer.blocks..mlp.v.fc1.weight",
        "transformer.blocks.0.mlp.v.",
        "transformer.blocks.0.mlp.v",
        "transformer.blocks.0.mlp.V.fc1.weight",
        "transformer.blocks.0.mlp.v.fc1\n.weight",
        "transformer.blocks.0.mlp.v.fc1.weight\n",
        "transformer.blocks.0.mlp.v.fc1.weight\0",
        " transformer.blocks.0.mlp.v.fc1.weight",
        "transformer.blocks.٣.mlp.v.fc1.weight",
        "transformer.blocks.0.mlp.v.é\u{202e}.weight",
        // Its slot would be an expert again.
        "transformer.blocks.0.mlp.v.l.fc1.weight",
        "{layer}",
        "",
    ] {
        assert_eq!(vl.parse_name(name), None, "{name:?}");
    }
    let long = format!("transformer.blocks.0.mlp.v.{}weight", "x.".repeat(1_000_000));
    assert_eq!((vl.parse_name(&long), vl.parse_slot(&long), vl.sibling(&long, Modality::Vision)), (None, None, None));
    assert!(vl.parse_name("transformer.blocks.9999.mlp.v.x.weight").is_some());
}

proptest! {
    #[test]
    fn any_name_is_read_without_panic_and_experts_come_back(
        name in "(module\\.)?(beit3\\.|transformer\\.)?(encoder\\.layers\\.|blocks\\.)[0-9]{1,5}\\.\
                 (attn|mlp|norm1|norm2_|mlp_|ffn|self_attn|x)[._]?(v|l|vl|imag|text|A|B|)\\.?\
                 (A\\.|B\\.|v\\.)?(fc1|qkv|A|v|\\PC{0,3})?\\.?(weight|bias|A|)"
    ) {
        for layout in Layout::builtin() {
            let _ = (layout.parse_slot(&name), layout.position_table(&name), layout.buffer(&name));
            if let Some(expert) = layout.parse_name(&name) {
                prop_assert!(layout.parse_name(&expert.slot).is_none());
                // Backwards a slot may read in another way, but never as another slot.
                if let Some(back) = layout.expert_name(&expert.slot, expert.modality) {
                    let back = layout.parse_name(&back).unwrap();
                    prop_assert_eq!((back.slot, back.modality), (expert.slot.clone(), expert.modality));
                }
                prop_assert_eq!(layout.sibling(&name, expert.modality), Some(name.clone()));
                for other in layout.modalities() {
                    let sibling = layout.sibling(&name, other).unwrap();
                    let read = layout.parse_name(&sibling).unwrap();
                    prop_assert_eq!((read.slot, read.modality), (expert.slot.clone(), other));
                }
            }
        }
    }
}

const OWN: &str = r#"
name = "mine"
[modalities]
v = "image"
l = "text"
[placeholders]
leaf = 'weight|bias'
[[rule]]
part = "mlp"
expert = "h.{layer}.{modality}_ffn.{leaf}"
slot = "h.{layer}.ffn.{leaf}"
"#;

#[test]
fn a_users_layout() {
    let own = Layout::from_toml(OWN, "own.toml").unwrap();
    assert_eq!(own.name(), "mine");
    assert_eq!(own.modalities().collect::<Vec<_>>(), [Modality::Vision, Modality::Language]);
    let found = own.parse_name("h.4.text_ffn.bias");
    assert_eq!(found, expert("h.4.ffn.bias", Some(4), Part::Mlp, Modality::Language));
    assert_eq!(own.expert_name("h.4.ffn.bias", Modality::Vision).as_deref(), Some("h.4.image_ffn.bias"));
}

#[test]
fn errors_in_a_users_layout_name_file_and_line() {
    let error = |from: &str, to: &str| {
        assert!(OWN.contains(from));
        Layout::from_toml(&OWN.replacen(from, to, 1), "own.toml").unwrap_err().to_string()
    };
    for (from, to, expected) in [
        ("name = \"mine\"", "name = \"\"", "line 2: a layout's name can't be empty"),
        ("v = \"image\"", "w = \"image\"", "line 4: no modality 'w': it is v, l or vl"),
        ("\"text\"", "\"image\"", "line 4: modalities l and v are both spelled 'image'"),
        ("\"text\"", "\"\"", "line 5: modality l needs a spelling"),
        ("leaf = ", "Leaf = ", "line 7: placeholder 'Leaf': use lower-case letters, digits and '_'"),
        ("leaf = ", "layer = ", "line 7: placeholder 'layer': it is built in"),
        ("weight|bias", "(weight", "line 7: placeholder 'leaf': unclosed group"),
        (
            "weight|bias",
            "a{1000}{1000}{1000}",
            "line 7: placeholder 'leaf': Compiled regex exceeds size limit of 1048576 bytes.",
        ),
        ("{modality}_ffn", "ffn", "line 10: an expert's template needs {modality}"),
        ("ffn.{leaf}\"\nslot", "ffn.{leef}\"\nslot", "line 10: placeholder {leef} is not defined under [placeholders]"),
        (
            "h.{layer}.ffn.{leaf}",
            "h.ffn.{leaf}",
            "line 11: {layer} of the expert is not in its slot: different experts would be merged",
        ),
        ("h.{layer}.ffn", "h.{layer}.{modality}.ffn", "line 11: {modality} has no meaning here"),
        (
            "h.{layer}.ffn",
            "h.{layer.ffn",
            "line 11: '{layer.ffn.{leaf}' is no placeholder: use lower-case letters, digits and '_'",
        ),
    ] {
        assert_eq!(error(from, to), format!("own.toml: {expected}"), "{from} → {to}");
    }
    for (from, to, line, said) in [
        ("\"mlp\"", "\"mpl\"", 9, "unknown variant `mpl`"),
        ("slot = ", "slott = ", 11, "unknown field `slott`"),
        ("[[rule]]", "[[rule]", 8, "unclosed array table"),
        ("slot = \"h.{layer}.ffn.{leaf}\"", "", 8, "missing field `slot`"),
    ] {
        let text = error(from, to);
        assert!(text.starts_with(&format!("own.toml: line {line}: ")) && text.contains(said), "{text}");
        assert_eq!(text.lines().count(), 1);
    }
}

#[test]
fn the_other_sections_are_checked_too() {
    let error = |more: &str| Layout::from_toml(&format!("{OWN}{more}"), "own.toml").unwrap_err().to_string();
    for (more, expected) in [
        ("exclude = ['{nosuch}']", "line 12: placeholder {nosuch} is not defined under [placeholders]"),
        ("[[linear]]\nslot = 'w'\ngram = 'g'", "line 14: a gram's template needs {modality}"),
        (
            "[[linear]]\nslot = 'w'\ngram = '{modality}{layer}'",
            "line 14: {layer} of the gram is not in the slot's template",
        ),
        (
            "[[position]]\nname = 'p'\nkind = 'relative'",
            "line 13: a relative position table has `columns`, may have `text`, and has no `lead`",
        ),
        (
            "[[position]]\nname = 'p'\nkind = 'absolute'\nlead = 1\ntext = true",
            "line 13: an absolute position table has `lead` and neither `columns` nor `text`",
        ),
        (
            "[becomes]\nlayout = 'vl-merging'\npositions = 't'\nnames = [{ from = 'a', to = 'b.{leaf}' }]",
            "line 15: {leaf} is not in `from`",
        ),
        ("[shapes]\nlayers = [\n'a',\n]", "line 14: it needs {layer}"),
        ("[shapes]\nvocab_size = [{ name = 'a', axis = 8 }]", "line 13: axis 8: tensors have axes 0 to 7"),
        ("[tasks]\nvqa = { name = '{modality}' }", "line 13: {modality} has no meaning here"),
        ("[assume]\nheads_by_hidden_size = { big = 16 }", "line 13: 'big' is no number"),
    ] {
        assert_eq!(error(more), format!("own.toml: {expected}"), "{more}");
    }
    let error = |text: &str| Layout::from_toml(text, "own.toml").unwrap_err().to_string();
    assert_eq!(error("name = 'n'\n[modalities]\nv = 'v'"), "own.toml: there are [modalities] but no [[rule]]");
    let rule = "name = 'n'\n[[rule]]\npart = 'mlp'\nexpert = 'a'\nslot = 'b'";
    assert_eq!(error(rule), "own.toml: there are rules but no [modalities]");
    let big = format!("name = 'n'{}", " ".repeat(1 << 20));
    assert_eq!(error(&big), "own.toml: it has 1048586 bytes: a layout has at most 1048576");
}

proptest! {
    #[test]
    fn a_mutated_layout_file_never_panics(at in 0usize..OWN.len(), byte in 1u8..127) {
        let mut text = OWN.as_bytes().to_vec();
        text[at] = byte;
        let _ = Layout::from_toml(&String::from_utf8_lossy(&text), "own.toml").map(|own| own.parse_name("h.0.text_ffn.bias"));
    }
}
