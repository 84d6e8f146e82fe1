//! The distances between the experts of a checkpoint, streamed from the file.
//!
//! The file is read once for the sums of [`Sums`] and the first digit of TSSD's thresholds, once for every further
//! digit, and once for the truncated sums. Pieces of tensors are worked on by all threads; their sums are added
//! in the order of the file, so the result doesn't depend on the number of threads.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use formats::write::PIECE;
use formats::{Checkpoint, Dtype, Error, Result, parallel};

use super::metrics::{Sums, add_truncated};
use super::scope::{Distance, Pair, PartGroup, Scope, Space};
use super::threshold::{Counter, Pass, Real, Search, Tally};
use crate::jobs::{Job, Merge, Role, Source};

/// Distances to be measured.
pub struct Measurement<'a> {
    checkpoints: Vec<&'a Checkpoint>,
    top_k: f64,
    spaces: &'static [Space],
    slots: Vec<Slot>,
    cells: Vec<Cell>,
    groups: Vec<Group>,
    pieces: Vec<Piece>,
}

/// The tensors of one slot, by modality; each is a checkpoint's number and the tensor's in it.
#[derive(Debug, Default)]
struct Slot {
    cell: usize,
    elements: usize,
    experts: [Option<(usize, usize)>; 3],
    bases: [Option<(usize, usize)>; 3],
    /// Bytes of one element in all of these.
    element_bytes: usize,
}

/// The slots of one part of one layer that have the same modalities: the smallest union that is worked with.
#[derive(Debug)]
struct Cell {
    layer: Option<usize>,
    part: PartGroup,
    has: [bool; 3],
    elements: u64,
    /// The groups this cell belongs to.
    groups: [usize; 4],
}

#[derive(Debug)]
struct Group {
    scope: Scope,
    cells: Vec<usize>,
}

#[derive(Debug)]
struct Piece {
    slot: usize,
    elements: Range<usize>,
}

/// Something for each space and each of three modalities or pairs.
type Each<V> = [[V; 3]; 2];

/// Positions in [`Modality::ALL`] of each of [`Pair::ALL`].
const PAIRS: [[usize; 2]; 3] = [[0, 1], [0, 2], [1, 2]];

/// Elements worked on at a time, so that all vectors of a slot stay in a core's cache.
const CHUNK: usize = 1 << 15;

impl<'a> Measurement<'a> {
    /// Plans to measure the merges among `jobs`, whose inputs are numbers in `checkpoints`. Modality vectors are
    /// measured too if the merges have bases. `top_k`, in percent, is TSSD's.
    pub fn new(jobs: &[Job], checkpoints: Vec<&'a Checkpoint>, top_k: f64) -> Measurement<'a> {
        let merges: Vec<(&Job, &Merge)> = jobs
            .iter()
            .filter_map(|job| match &job.source {
                Source::Merge(merge) => Some((job, merge)),
                Source::Copy { .. } | Source::Computed(_) | Source::New(_) => None,
            })
            .collect();
        let mut cells: BTreeMap<(Option<usize>, PartGroup, [bool; 3]), Cell> = BTreeMap::new();
        let mut slots = Vec::new();
        for (job, merge) in merges {
            let mut slot = Slot { elements: job.info.elements(), ..Slot::default() };
            for input in &merge.inputs {
                let tensor = Some((input.checkpoint, input.tensor));
                match input.role {
                    Role::Expert(modality) => slot.experts[modality as usize] = tensor,
                    Role::Base => slot.bases = [tensor; 3],
                    Role::BaseExpert(modality) => slot.bases[modality as usize] = tensor,
                    Role::Model(_) => {}
                }
            }
            let tensors: BTreeSet<(usize, usize)> = slot.experts.iter().chain(&slot.bases).flatten().copied().collect();
            let size = |&(number, tensor): &(usize, usize)| checkpoints[number].tensors()[tensor].dtype.size();
            slot.element_bytes = tensors.iter().map(size).sum();
            let (layer, part) = (merge.layer, PartGroup::from(merge.part));
            let has = slot.experts.map(|expert| expert.is_some());
            let cell = Cell { layer, part, has, elements: 0, groups: [0; 4] };
            cells.entry((layer, part, has)).or_insert(cell).elements += slot.elements as u64;
            slots.push(((layer, part, has), slot));
        }
        let numbers: Vec<_> = cells.keys().copied().collect();
        let place = |(key, slot)| Slot { cell: numbers.partition_point(|other| *other < key), ..slot };
        let slots: Vec<Slot> = slots.into_iter().map(place).collect();
        let mut cells: Vec<Cell> = cells.into_values().collect();
        let pieces = slots.iter().enumerate().flat_map(|(number, slot)| {
            let end = move |start: usize| slot.elements.min(start + PIECE);
            (0..slot.elements).step_by(PIECE).map(move |start| Piece { slot: number, elements: start..end(start) })
        });
        let pieces = pieces.collect();
        let has_bases =
            |slot: &Slot| slot.experts.iter().zip(&slot.bases).all(|(e, base)| e.is_none() || base.is_some());
        let spaces: &[Space] = match slots.iter().all(has_bases) {
            true => &[Space::Weights, Space::ModalityVectors],
            false => &[Space::Weights],
        };
        let groups = group(&mut cells);
        Measurement { checkpoints, top_k, spaces, slots, cells, groups, pieces }
    }

    /// Bytes that measuring reads, counting every pass; what `progress` is told adds up to this.
    pub fn bytes(&self) -> u64 {
        let passes = if self.is_f64() { Pass::all::<f64>() } else { Pass::all::<f32>() }.len() + 1;
        let passes = if self.truncates() { passes } else { 1 };
        passes as u64 * self.slots.iter().map(|slot| (slot.elements * slot.element_bytes) as u64).sum::<u64>()
    }

    /// Measures: for each space and pair, overall, by part, by layer, and by layer and part, in this order.
    ///
    /// # Errors
    /// A tensor can't be read, or holds NaN or infinity.
    pub fn measure(&self, threads: usize, progress: impl Fn(u64) + Sync) -> Result<Vec<Distance>> {
        if self.is_f64() {
            self.measure_as::<f64>(threads, &progress)
        } else {
            self.measure_as::<f32>(threads, &progress)
        }
    }

    fn is_f64(&self) -> bool {
        let tensors = self.slots.iter().flat_map(|slot| slot.experts.iter().chain(&slot.bases).flatten());
        tensors.into_iter().any(|&(number, tensor)| self.checkpoints[number].tensors()[tensor].dtype == Dtype::F64)
    }

    /// At 100 % TSSD is SSD, and thresholds need not be looked for.
    fn truncates(&self) -> bool {
        self.top_k < 100.0
    }

    fn measure_as<T: Element>(&self, threads: usize, progress: &(impl Fn(u64) + Sync)) -> Result<Vec<Distance>> {
        let mut searches = self.searches();
        let mut passes = Pass::all::<T>().into_iter();
        let first = passes.next().filter(|_| self.truncates());
        let sums = self.pass::<T, _>(first, &mut searches, threads, progress, true)?;
        if !self.truncates() {
            return Ok(self.report(&sums, None));
        }
        for pass in passes {
            self.pass::<T, _>(Some(pass), &mut searches, threads, progress, false)?;
        }
        let truncated = self.truncated::<T>(&searches, threads, progress)?;
        Ok(self.report(&sums, Some(&truncated)))
    }

    /// Reads everything once. Settles the next digit of every search if `pass` says which, and returns each
    /// group's sums if they are `wanted`, else zeros.
    fn pass<T: Element, P: Fn(u64) + Sync>(
        &self,
        pass: Option<Pass>,
        searches: &mut [Each<[Search; 2]>],
        threads: usize,
        progress: &P,
        wanted: bool,
    ) -> Result<Vec<Each<Sums>>> {
        let prefixes = self.prefixes(searches);
        let tallies: Vec<Mutex<Each<Tally>>> = self.cells.iter().map(|_| Mutex::default()).collect();
        let found = in_parallel(self.pieces.len(), threads, |piece, buffers: &mut Buffers<T>| {
            let piece = &self.pieces[piece];
            let cell = self.slots[piece.slot].cell;
            let mut sums = Each::<Sums>::default();
            let mut counters = std::mem::take(&mut buffers.counters);
            self.each_chunk(piece, buffers, progress, |vectors| {
                if let Some(pass) = pass {
                    self.each_vector(cell, |space, side| {
                        counters[space][side].count(pass, &prefixes[cell][space][side], &vectors[space][side]);
                    });
                }
                let mut finite = true;
                if wanted {
                    self.each_pair(cell, |space, pair, [x, y]| {
                        let found = Sums::of(&vectors[space][x], &vectors[space][y]);
                        finite &= found.xx.is_finite() && found.yy.is_finite();
                        sums[space][pair].add(&found);
                    });
                }
                finite
            })?;
            if let Some(pass) = pass {
                let mut tally = lock(&tallies[cell]);
                self.each_vector(cell, |space, side| {
                    tally[space][side].take(pass, &prefixes[cell][space][side], &mut counters[space][side]);
                });
            }
            buffers.counters = counters;
            Ok(sums)
        })?;
        if let Some(pass) = pass {
            let tallies: Vec<Each<Tally>> =
                tallies.into_iter().map(|tally| tally.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
            self.narrow(searches, pass, &tallies);
        }
        let mut by_group: Vec<Each<Sums>> = vec![Each::default(); self.groups.len()];
        for (piece, sums) in self.pieces.iter().zip(&found) {
            for group in self.cells[self.slots[piece.slot].cell].groups {
                for (totals, sums) in by_group[group].iter_mut().flatten().zip(sums.iter().flatten()) {
                    totals.add(sums);
                }
            }
        }
        Ok(by_group)
    }

    /// A search for each group's, space's and pair's two thresholds.
    fn searches(&self) -> Vec<Each<[Search; 2]>> {
        let of_group = |group: &Group| {
            let cells =
                |pair| group.cells.iter().map(|&cell| &self.cells[cell]).filter(move |cell| cell.has_pair(pair));
            let elements = |pair| cells(pair).map(|cell| cell.elements).sum();
            let searches = [0, 1, 2].map(|pair| [Search::new(elements(pair), self.top_k); 2]);
            [searches; 2]
        };
        self.groups.iter().map(of_group).collect()
    }

    /// For each cell, what the searches of the groups it belongs to ask about, sorted.
    fn prefixes(&self, searches: &[Each<[Search; 2]>]) -> Vec<Each<Vec<u64>>> {
        let of_cell = |(number, cell): (usize, &Cell)| {
            let mut prefixes = Each::<BTreeSet<u64>>::default();
            for group in cell.groups {
                self.each_pair(number, |space, pair, sides| {
                    for (search, side) in searches[group][space][pair].iter().zip(sides) {
                        prefixes[space][side].insert(search.prefix);
                    }
                });
            }
            prefixes.map(|sides| sides.map(|prefixes| prefixes.into_iter().collect()))
        };
        self.cells.iter().enumerate().map(of_cell).collect()
    }

    fn narrow(&self, searches: &mut [Each<[Search; 2]>], pass: Pass, tallies: &[Each<Tally>]) {
        for (group, searches) in self.groups.iter().zip(searches) {
            for (space, searches) in searches.iter_mut().enumerate() {
                for (pair, searches) in searches.iter_mut().enumerate() {
                    for (search, side) in searches.iter_mut().zip(PAIRS[pair]) {
                        let cells = group.cells.iter().filter(|&&cell| self.cells[cell].has_pair(pair));
                        search.narrow(pass, cells.map(|&cell| &tallies[cell][space][side]));
                    }
                }
            }
        }
    }

    /// For each group, the sums that are left after truncation by the thresholds found.
    fn truncated<T: Element>(
        &self,
        searches: &[Each<[Search; 2]>],
        threads: usize,
        progress: &(impl Fn(u64) + Sync),
    ) -> Result<Vec<Each<f64>>> {
        let found = in_parallel(self.pieces.len(), threads, |piece, buffers: &mut Buffers<T>| {
            let piece = &self.pieces[piece];
            let cell = self.slots[piece.slot].cell;
            let groups = self.cells[cell].groups;
            let thresholds = |space: usize, pair: usize| {
                groups.map(|group| searches[group][space][pair].map(|search| T::from_key(search.prefix)))
            };
            let mut sums = Each::<[f64; 4]>::default();
            self.each_chunk(piece, buffers, progress, |vectors| {
                self.each_pair(cell, |space, pair, [x, y]| {
                    let thresholds = thresholds(space, pair);
                    add_truncated(&vectors[space][x], &vectors[space][y], &thresholds, &mut sums[space][pair]);
                });
                true
            })?;
            Ok(sums)
        })?;
        let mut by_group: Vec<Each<f64>> = vec![Each::default(); self.groups.len()];
        for (piece, sums) in self.pieces.iter().zip(&found) {
            for (at, group) in self.cells[self.slots[piece.slot].cell].groups.into_iter().enumerate() {
                for (total, sums) in by_group[group].iter_mut().flatten().zip(sums.iter().flatten()) {
                    *total += sums[at];
                }
            }
        }
        Ok(by_group)
    }

    fn report(&self, sums: &[Each<Sums>], truncated: Option<&[Each<f64>]>) -> Vec<Distance> {
        let mut distances = Vec::new();
        for (at, &space) in self.spaces.iter().enumerate() {
            for (number, &pair) in Pair::ALL.iter().enumerate() {
                for (index, group) in self.groups.iter().enumerate() {
                    if group.cells.iter().any(|&cell| self.cells[cell].has_pair(number)) {
                        let sums = &sums[index][at][number];
                        let truncated = truncated.map_or(sums.soft_sign, |sums| sums[index][at][number]);
                        let metrics = sums.metrics(truncated);
                        distances.push(Distance { space, pair, scope: group.scope, elements: sums.elements, metrics });
                    }
                }
            }
        }
        distances
    }

    /// Reads a piece, chunk by chunk, as vectors by space and modality, and hands them to `take`, which says
    /// whether they gave finite sums.
    fn each_chunk<T: Element>(
        &self,
        piece: &Piece,
        buffers: &mut Buffers<T>,
        progress: &(impl Fn(u64) + Sync),
        mut take: impl FnMut(&Each<Vec<T>>) -> bool,
    ) -> Result<()> {
        let slot = &self.slots[piece.slot];
        let Buffers { vectors, bases, .. } = buffers;
        for start in piece.elements.clone().step_by(CHUNK) {
            let range = start..piece.elements.end.min(start + CHUNK);
            let [weights, modality_vectors] = &mut *vectors;
            for (side, expert) in slot.experts.iter().enumerate() {
                let Some((number, tensor)) = *expert else { continue };
                T::read(self.checkpoints[number], tensor, range.clone(), &mut weights[side])?;
                let Some((number, tensor)) = slot.bases[side] else { continue };
                // A base of one set of weights is the same for every side.
                let shared = (0..side).find(|&other| slot.bases[other] == slot.bases[side]);
                let held = shared.unwrap_or(side);
                if shared.is_none() {
                    T::read(self.checkpoints[number], tensor, range.clone(), &mut bases[side])?;
                }
                modality_vectors[side].clear();
                let differences = weights[side].iter().zip(&bases[held]).map(|(&expert, &base)| expert.minus(base));
                modality_vectors[side].extend(differences);
            }
            if !take(vectors) {
                self.check_finite(slot, &vectors[0], bases)?;
            }
            progress((range.len() * slot.element_bytes) as u64);
        }
        Ok(())
    }

    /// Names the first tensor that holds NaN or infinity; sums may also overflow without any.
    fn check_finite<T: Element>(&self, slot: &Slot, weights: &[Vec<T>; 3], bases: &[Vec<T>; 3]) -> Result<()> {
        let experts = slot.experts.iter().zip(weights);
        for (tensor, values) in experts.chain(slot.bases.iter().zip(bases)) {
            let Some((number, tensor)) = *tensor else { continue };
            if values.iter().any(|value| !value.to_f64().is_finite()) {
                let checkpoint = self.checkpoints[number];
                let name = &checkpoint.tensors()[tensor].name;
                return Err(Error::tensor(
                    checkpoint.path(),
                    name,
                    "it holds NaN or infinity: no distance to it exists",
                ));
            }
        }
        Ok(())
    }

    fn each_vector(&self, cell: usize, mut visit: impl FnMut(usize, usize)) {
        for space in 0..self.spaces.len() {
            for side in (0..3).filter(|&side| self.cells[cell].has[side]) {
                visit(space, side);
            }
        }
    }

    fn each_pair(&self, cell: usize, mut visit: impl FnMut(usize, usize, [usize; 2])) {
        for space in 0..self.spaces.len() {
            for (pair, sides) in PAIRS.into_iter().enumerate() {
                if self.cells[cell].has_pair(pair) {
                    visit(space, pair, sides);
                }
            }
        }
    }
}

impl Cell {
    fn has_pair(&self, pair: usize) -> bool {
        PAIRS[pair].iter().all(|&side| self.has[side])
    }
}

/// The unions of cells that are reported, in their order; every cell learns which it belongs to.
fn group(cells: &mut [Cell]) -> Vec<Group> {
    let scopes = |cell: &Cell| {
        let (layer, part) = (cell.layer, cell.part);
        [Scope::Overall, Scope::Part { part }, Scope::Layer { layer }, Scope::LayerPart { layer, part }]
    };
    let all: BTreeSet<Scope> = cells.iter().flat_map(scopes).collect();
    let mut groups: Vec<Group> = all.into_iter().map(|scope| Group { scope, cells: Vec::new() }).collect();
    for (number, cell) in cells.iter_mut().enumerate() {
        cell.groups = scopes(cell).map(|scope| groups.partition_point(|group| group.scope < scope));
        for group in cell.groups {
            groups[group].cells.push(number);
        }
    }
    groups
}

/// One thread's memory, kept from piece to piece.
#[derive(Default)]
struct Buffers<T> {
    vectors: Each<Vec<T>>,
    bases: [Vec<T>; 3],
    counters: Each<Counter>,
}

/// A type that tensors are read as.
trait Element: Real {
    fn read(checkpoint: &Checkpoint, tensor: usize, range: Range<usize>, out: &mut Vec<Self>) -> Result<()>;
}

impl Element for f32 {
    fn read(checkpoint: &Checkpoint, tensor: usize, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        checkpoint.read_f32(tensor, range, out)
    }
}

impl Element for f64 {
    fn read(checkpoint: &Checkpoint, tensor: usize, range: Range<usize>, out: &mut Vec<f64>) -> Result<()> {
        checkpoint.read_f64(tensor, range, out)
    }
}

/// What `work` makes of each number below `count`, in order. Each thread has its own `S`.
fn in_parallel<S: Default, R: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize, &mut S) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let done = Mutex::new(Vec::with_capacity(count));
    parallel::for_each(threads, count, |number, state: &mut S| {
        let result = work(number, state)?;
        lock(&done).push((number, result));
        Ok::<(), Error>(())
    })?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|&(number, _)| number);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
