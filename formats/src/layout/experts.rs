//! The experts of one checkpoint, slot by slot.

use std::collections::BTreeSet;
use std::path::Path;

use indexmap::IndexMap;

use super::{Layout, Modality, Part};
use crate::{Error, Result, TensorInfo, show_name};

/// What a checkpoint's tensors are, by a layout's rules.
#[derive(Clone, Debug)]
pub struct Experts<'l> {
    pub layout: &'l Layout,
    /// In file order: a slot stands where its first expert stands.
    pub slots: Vec<Slot>,
}

/// The experts that merge into one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The merged tensor's name.
    pub slot: String,
    pub layer: Option<usize>,
    pub part: Part,
    /// Modality and index into the checkpoint's tensors, in the order v, l, vl; never empty.
    pub experts: Vec<(Modality, usize)>,
    /// Index of the expert that comes first in the file.
    pub first: usize,
}

/// Sorts a checkpoint's tensors into slots. `file` is named in errors.
///
/// Errors: a merged name that is also another tensor's name; two tensors that are the same expert.
pub fn group<'l>(layout: &'l Layout, tensors: &[TensorInfo], file: &Path) -> Result<Experts<'l>> {
    let mut slots: IndexMap<String, Slot> = IndexMap::new();
    for (index, tensor) in tensors.iter().enumerate() {
        let Some(expert) = layout.parse_name(&tensor.name) else { continue };
        let slot = slots.entry(expert.slot).or_insert_with_key(|name| Slot {
            slot: name.clone(),
            layer: expert.layer,
            part: expert.part,
            experts: Vec::new(),
            first: index,
        });
        if let Some(&(_, other)) = slot.experts.iter().find(|&&(modality, _)| modality == expert.modality) {
            let other = show_name(&tensors[other].name);
            return Err(Error::tensor(file, &tensor.name, format!("it is the same expert as '{other}'")));
        }
        slot.experts.push((expert.modality, index));
    }
    for tensor in tensors {
        if let Some(slot) = slots.get(&tensor.name) {
            let expert = show_name(&tensors[slot.first].name);
            let reason = format!("it has the name that '{expert}' and its siblings merge into");
            return Err(Error::tensor(file, &tensor.name, reason));
        }
    }
    let mut slots: Vec<Slot> = slots.into_values().collect();
    slots.iter_mut().for_each(|slot| slot.experts.sort_unstable());
    Ok(Experts { layout, slots })
}

impl Slot {
    /// Index into the checkpoint's tensors of a modality's expert.
    pub fn expert(&self, modality: Modality) -> Option<usize> {
        self.experts.iter().find(|&&(known, _)| known == modality).map(|&(_, index)| index)
    }
}

impl Experts<'_> {
    /// No experts: the checkpoint is modality-agnostic already.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The first layer with a `vl` expert.
    pub fn vl_start(&self) -> Option<usize> {
        let deep = self.slots.iter().filter(|slot| slot.expert(Modality::VisionLanguage).is_some());
        deep.filter_map(|slot| slot.layer).min()
    }

    /// The parts that have experts.
    pub fn parts(&self) -> BTreeSet<Part> {
        self.slots.iter().map(|slot| slot.part).collect()
    }

    /// Names of the experts that are not there though their siblings are: every slot has one for each
    /// modality of the layout but `vl`, and a `vl` one if any slot of its layer has.
    pub fn missing(&self, tensors: &[TensorInfo]) -> Vec<String> {
        let deep: BTreeSet<Option<usize>> = self
            .slots
            .iter()
            .filter(|slot| slot.expert(Modality::VisionLanguage).is_some())
            .map(|slot| slot.layer)
            .collect();
        let wanted = |slot: &Slot, modality: Modality| {
            slot.expert(modality).is_none() && (modality != Modality::VisionLanguage || deep.contains(&slot.layer))
        };
        let mut names = Vec::new();
        for slot in &self.slots {
            for modality in self.layout.modalities().filter(|&modality| wanted(slot, modality)) {
                let sibling = tensors.get(slot.first).and_then(|tensor| self.layout.sibling(&tensor.name, modality));
                names.extend(sibling);
            }
        }
        names
    }

    /// Checks that the experts of each slot have one shape. `file` is named in errors.
    pub fn check_shapes(&self, tensors: &[TensorInfo], file: &Path) -> Result<()> {
        for slot in &self.slots {
            let first = &tensors[slot.first];
            for other in slot.experts.iter().map(|&(_, index)| &tensors[index]) {
                if other.shape != first.shape {
                    let layer = slot.layer.map(|layer| format!("layer {layer}: ")).unwrap_or_default();
                    return Err(Error::file(
                        file,
                        format!(
                            "{layer}{} is {:?}, {} is {:?}: experts must have one shape",
                            show_name(&first.name),
                            first.shape,
                            show_name(&other.name),
                            other.shape
                        ),
                    ));
                }
            }
        }
        Ok(())
    }
}
