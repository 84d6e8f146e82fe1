//! Examples prepared on worker threads, handed out in batches, in order.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use crossbeam_channel::{Receiver, Sender, unbounded};
use rand_chacha::ChaCha8Rng;

use super::order::{item_rng, permutation};
use super::{Error, Result};

/// A batch's place in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub epoch: u64,
    /// Within the epoch, from 0.
    pub batch: u64,
}

/// How to go through a data set.
#[derive(Clone, Debug)]
pub struct Options {
    pub batch_size: usize,
    /// Leave out an epoch's last batch where it would be smaller than the others.
    pub drop_last: bool,
    /// Another order each epoch, as [`permutation`] says; else 0, 1, 2, …
    pub shuffle: bool,
    pub seed: u64,
    /// Worker threads; 0 for one a core.
    pub threads: usize,
    /// Batches that may be under way or ready at once.
    pub ahead: usize,
    /// The first batch: a run is resumed with the position after its last batch.
    pub start: Position,
    /// The first epoch not to go through; `None` to go on for ever.
    pub end_epoch: Option<u64>,
}

impl Default for Options {
    /// One epoch in order.
    fn default() -> Options {
        Options {
            batch_size: 1,
            drop_last: false,
            shuffle: false,
            seed: 0,
            threads: 0,
            ahead: 3,
            start: Position::default(),
            end_epoch: Some(1),
        }
    }
}

/// Examples that follow each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch<T> {
    pub position: Position,
    /// Whether the epoch ends with it.
    pub last: bool,
    /// In order; fewer than the batch size where examples were skipped.
    pub items: Vec<T>,
}

/// Prepares examples ahead of whoever iterates over the batches.
///
/// Which examples a batch holds, and the random numbers that each may draw, follow from the options alone: not from
/// the number of threads, and not from where the run was started. At most `ahead` batches of results are held. Threads
/// end when the loader is dropped, each after the example that it is at.
pub struct Loader<T> {
    plan: Plan,
    /// `None` once no more is to be done.
    orders: Option<Sender<Order>>,
    pending: Receiver<Order>,
    results: Receiver<Finished<T>>,
    /// The batches under way, the next to hand out first.
    batches: BTreeMap<u64, Open<T>>,
    next: u64,
    /// Whether the epoch of the next batch has been gone through from its start without an example.
    barren: bool,
    waited: Duration,
    threads: Vec<JoinHandle<()>>,
}

/// One example to prepare.
#[derive(Clone, Copy, Debug)]
struct Order {
    /// Counted over the whole run of the loader.
    batch: u64,
    place: usize,
    index: usize,
    epoch: u64,
}

struct Finished<T> {
    order: Order,
    result: anyhow::Result<Option<T>>,
}

/// A batch that is being filled.
struct Open<T> {
    position: Position,
    last: bool,
    missing: usize,
    slots: Vec<Option<anyhow::Result<Option<T>>>>,
}

/// Walks through the positions of a run.
struct Plan {
    len: usize,
    options: Options,
    at: Position,
    /// The epoch that `order` belongs to.
    order_of: Option<u64>,
    order: Vec<u32>,
    batches: u64,
    issued: u64,
}

/// Batches in an epoch of `len` examples.
pub fn batches_per_epoch(len: usize, batch_size: usize, drop_last: bool) -> usize {
    match drop_last {
        true => len / batch_size.max(1),
        false => len.div_ceil(batch_size.max(1)),
    }
}

impl<T: Send + 'static> Loader<T> {
    /// Starts the threads. `load` prepares the example at an index; it answers `None` for one that is to be skipped.
    ///
    /// # Errors
    /// The batch size is 0, there is no batch in an epoch, the start is beyond the epoch's end, or no thread can be
    /// started. An error or panic of `load` comes out of the iterator, which then ends. So does [`Error::NoExample`],
    /// where the epochs have no end and one of them has given no example.
    pub fn start<F>(len: usize, options: Options, load: F) -> Result<Loader<T>>
    where
        F: Fn(usize, &mut ChaCha8Rng) -> anyhow::Result<Option<T>> + Send + Sync + 'static,
    {
        let wrong = |reason: String| Err(Error::Argument(reason));
        if options.batch_size == 0 {
            return wrong("the batch size is 0; it is at least 1".into());
        }
        let batches = batches_per_epoch(len, options.batch_size, options.drop_last) as u64;
        if batches == 0 && len > 0 {
            return wrong(format!("no batch of {} in {len} examples: choose a smaller batch size", options.batch_size));
        }
        if batches == 0 {
            return wrong("there are no examples".into());
        }
        if u32::try_from(len).is_err() {
            return wrong(format!("{len} examples are more than can be shuffled"));
        }
        let mut options = options;
        if options.start.batch == batches {
            options.start = Position { epoch: options.start.epoch + 1, batch: 0 };
        }
        if options.start.batch > batches {
            let start = options.start.batch;
            return wrong(format!("batch {start} is beyond an epoch of {batches}: is it the data of the same run?"));
        }
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let (orders, pending) = unbounded::<Order>();
        // Never blocks: there are no more results than orders, and those are bounded.
        let (done, results) = unbounded::<Finished<T>>();
        let load = Arc::new(load);
        let seed = options.seed;
        let mut loader = Loader {
            plan: Plan { len, at: options.start, options, order_of: None, order: Vec::new(), batches, issued: 0 },
            orders: Some(orders),
            pending: pending.clone(),
            results,
            batches: BTreeMap::new(),
            next: 0,
            barren: false,
            waited: Duration::ZERO,
            threads: Vec::with_capacity(threads),
        };
        for number in 0..threads {
            let (pending, done, load) = (pending.clone(), done.clone(), load.clone());
            let thread = std::thread::Builder::new().name(format!("loader {number}")).spawn(move || {
                for order in pending {
                    let mut random = item_rng(seed, order.epoch, order.index);
                    let result = catch_unwind(AssertUnwindSafe(|| load(order.index, &mut random)))
                        .unwrap_or_else(|panic| Err(anyhow!("example {}: {}", order.index, message(&*panic))));
                    if done.send(Finished { order, result }).is_err() {
                        return;
                    }
                }
            });
            match thread {
                Ok(thread) => loader.threads.push(thread),
                Err(e) if loader.threads.is_empty() => return wrong(format!("cannot start a thread: {e}")),
                Err(_) => break,
            }
        }
        for _ in 0..loader.plan.options.ahead.max(1) {
            loader.issue();
        }
        Ok(loader)
    }

    /// Batches in an epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.plan.batches
    }

    /// How long [`Iterator::next`] has waited for examples so far: the time that the data made the model wait.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Orders the next batch's examples.
    fn issue(&mut self) {
        let Some(orders) = &self.orders else { return };
        let Some((position, last, indices)) = self.plan.next_batch() else { return };
        let batch = self.plan.issued;
        self.plan.issued += 1;
        let slots = indices.iter().map(|_| None).collect();
        self.batches.insert(batch, Open { position, last, missing: indices.len(), slots });
        for (place, index) in indices.into_iter().enumerate() {
            if orders.send(Order { batch, place, index, epoch: position.epoch }).is_err() {
                return;
            }
        }
    }

    /// Ends the work: no batch follows.
    fn stop(&mut self) {
        self.orders = None;
        while self.pending.try_recv().is_ok() {}
        self.batches.clear();
    }
}

impl<T: Send + 'static> Iterator for Loader<T> {
    type Item = anyhow::Result<Batch<T>>;

    /// The next batch. Batches without any example left, as all were skipped, are passed over.
    fn next(&mut self) -> Option<anyhow::Result<Batch<T>>> {
        loop {
            while self.batches.get(&self.next)?.missing > 0 {
                let started = Instant::now();
                let finished = self.results.recv();
                self.waited += started.elapsed();
                let Ok(Finished { order, result }) = finished else {
                    self.stop();
                    return Some(Err(anyhow!("the threads that prepare examples have ended")));
                };
                if let Some(open) = self.batches.get_mut(&order.batch) {
                    open.slots[order.place] = Some(result);
                    open.missing -= 1;
                }
            }
            let open = self.batches.remove(&self.next)?;
            self.next += 1;
            self.issue();
            let mut items = Vec::with_capacity(open.slots.len());
            // The error that counts is the first in order, whichever came up first.
            for slot in open.slots.into_iter().flatten() {
                match slot {
                    Ok(Some(item)) => items.push(item),
                    Ok(None) => {}
                    Err(e) => {
                        self.stop();
                        return Some(Err(e));
                    }
                }
            }
            self.barren = items.is_empty() && (self.barren || open.position.batch == 0);
            if self.barren && open.last && self.plan.options.end_epoch.is_none() {
                // It would be so for ever.
                self.stop();
                return Some(Err(Error::NoExample(self.plan.len).into()));
            }
            if !items.is_empty() {
                return Some(Ok(Batch { position: open.position, last: open.last, items }));
            }
        }
    }
}

impl<T> Drop for Loader<T> {
    fn drop(&mut self) {
        self.orders = None;
        while self.pending.try_recv().is_ok() {}
        for thread in self.threads.drain(..) {
            // A worker catches the panics of its closure; there is nothing to tell here.
            let _ = thread.join();
        }
    }
}

impl Plan {
    /// The next batch: where it is, whether it is its epoch's last, and the examples in it.
    fn next_batch(&mut self) -> Option<(Position, bool, Vec<usize>)> {
        let position = self.at;
        if self.options.end_epoch.is_some_and(|end| position.epoch >= end) {
            return None;
        }
        if self.options.shuffle && self.order_of != Some(position.epoch) {
            self.order = permutation(self.len, self.options.seed, position.epoch);
            self.order_of = Some(position.epoch);
        }
        let start = position.batch as usize * self.options.batch_size;
        let end = (start + self.options.batch_size).min(self.len);
        let indices = match self.options.shuffle {
            true => self.order[start..end].iter().map(|index| *index as usize).collect(),
            false => (start..end).collect(),
        };
        let last = position.batch + 1 == self.batches;
        self.at = match last {
            true => Position { epoch: position.epoch + 1, batch: 0 },
            false => Position { batch: position.batch + 1, ..position },
        };
        Some((position, last, indices))
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    format!("preparing it failed unexpectedly: {}", text.unwrap_or("no reason known"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use anyhow::bail;
    use rand_chacha::rand_core::RngCore;

    use super::*;

    fn run(options: Options, len: usize) -> Vec<Batch<(usize, u64)>> {
        let loader = Loader::start(len, options, |index, random| Ok(Some((index, random.next_u64()))));
        loader.unwrap().collect::<anyhow::Result<_>>().unwrap()
    }

    fn options() -> Options {
        Options { batch_size: 8, shuffle: true, seed: 3, end_epoch: Some(3), ..Options::default() }
    }

    #[test]
    fn in_order_with_a_short_last_batch() {
        let batches = run(Options { batch_size: 4, threads: 3, ..Options::default() }, 10);
        let indices: Vec<Vec<usize>> =
            batches.iter().map(|batch| batch.items.iter().map(|(index, _)| *index).collect()).collect();
        assert_eq!(indices, [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
        assert_eq!(batches.iter().map(|batch| batch.last).collect::<Vec<_>>(), [false, false, true]);
        let dropped = run(Options { batch_size: 4, drop_last: true, ..Options::default() }, 10);
        assert_eq!(dropped.len(), 2);
        assert!(dropped[1].last);
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let one = run(Options { threads: 1, ahead: 1, ..options() }, 50);
        let four = run(Options { threads: 4, ahead: 5, ..options() }, 50);
        assert_eq!(one, four);
        assert_eq!(one.len(), 21);
        let mut first: Vec<usize> = one[..7].iter().flat_map(|batch| &batch.items).map(|(index, _)| *index).collect();
        assert_ne!(first[..8], [0, 1, 2, 3, 4, 5, 6, 7]);
        first.sort_unstable();
        assert!(first.into_iter().eq(0..50));
        // Another epoch, other random numbers for the same example.
        let draw = |batches: &[Batch<(usize, u64)>]| {
            batches.iter().flat_map(|batch| batch.items.clone()).find(|(index, _)| *index == 9).unwrap().1
        };
        assert_ne!(draw(&one[..7]), draw(&one[7..14]));
    }

    #[test]
    fn resuming_anywhere_gives_the_same_batches() {
        let whole = run(options(), 50);
        for (done, batch) in whole.iter().enumerate() {
            let rest = run(Options { start: batch.position, ..options() }, 50);
            assert_eq!(rest, whole[done..], "from {:?}", batch.position);
        }
        // The position after an epoch's last batch, counted on.
        let rest = run(Options { start: Position { epoch: 1, batch: 7 }, ..options() }, 50);
        assert_eq!(rest, whole[14..]);
    }

    #[test]
    fn skipped_examples_are_missing_and_empty_batches_pass() {
        let loader = Loader::start(9, Options { batch_size: 3, ..Options::default() }, |index, _| {
            Ok((index == 1 || index > 5).then_some(index))
        });
        let batches: Vec<_> = loader.unwrap().map(Result::unwrap).collect();
        let items: Vec<_> = batches.iter().map(|batch| (batch.position.batch, batch.items.clone())).collect();
        assert_eq!(items, [(0, vec![1]), (2, vec![6, 7, 8])]);
    }

    #[test]
    fn epochs_without_an_example_do_not_go_on_for_ever() {
        let usable = Arc::new(AtomicUsize::new(usize::MAX));
        let start = |start: Position| {
            let usable = usable.clone();
            let options = Options { batch_size: 2, threads: 2, shuffle: true, end_epoch: None, start, ..options() };
            Loader::start(5, options, move |index, _| Ok((usable.load(Ordering::SeqCst) == index).then_some(index)))
                .unwrap()
        };
        for (epoch, batch) in [(0, 0), (0, 1), (3, 2)] {
            let mut loader = start(Position { epoch, batch });
            let error = loader.next().unwrap().unwrap_err().to_string();
            assert_eq!(error, "none of its 5 examples can be used");
            assert!(loader.next().is_none());
        }
        // One is enough, wherever it comes in its epoch.
        usable.store(4, Ordering::SeqCst);
        let batches: Vec<_> = start(Position::default()).take(4).map(|batch| batch.unwrap()).collect();
        assert!(batches.iter().all(|batch| batch.items == [4]));
        assert!(batches.iter().map(|batch| batch.position.epoch).eq(0..4));
    }

    #[test]
    fn errors_and_panics_come_out_in_order_and_end_it() {
        let loader =
            Loader::start(100, Options { batch_size: 2, threads: 4, ..Options::default() }, |index, _| match index {
                3 => bail!("bad image"),
                7 => panic!("index {index}"),
                _ => Ok(Some(index)),
            });
        let mut loader = loader.unwrap();
        assert_eq!(loader.next().unwrap().unwrap().items, [0, 1]);
        assert_eq!(loader.next().unwrap().unwrap_err().to_string(), "bad image");
        assert!(loader.next().is_none());

        let mut loader = Loader::<()>::start(1, Options::default(), |_, _| panic!("on {}", "purpose")).unwrap();
        let error = loader.next().unwrap().unwrap_err().to_string();
        assert_eq!(error, "example 0: preparing it failed unexpectedly: on purpose");
    }

    /// Example 0 waits until the rest of its batch is done, and comes first all the same.
    #[test]
    fn examples_that_are_ready_early_wait_for_those_before_them() {
        let (tell, told) = mpsc::channel();
        let told = std::sync::Mutex::new(told);
        let options = Options { batch_size: 4, threads: 2, ..Options::default() };
        let loader = Loader::start(4, options, move |index, _| {
            match index {
                0 => (1..4).for_each(|_| told.lock().unwrap().recv().unwrap()),
                _ => tell.send(()).unwrap(),
            }
            Ok(Some(index))
        });
        let batches: Vec<_> = loader.unwrap().map(|batch| batch.unwrap().items).collect();
        assert_eq!(batches, [[0, 1, 2, 3]]);
    }

    #[test]
    fn memory_is_bounded_while_nobody_takes_anything() {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = made.clone();
        let options = Options { batch_size: 5, threads: 4, ahead: 2, end_epoch: None, ..Options::default() };
        let mut loader = Loader::start(1000, options, move |index, _| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(Some(index))
        })
        .unwrap();
        // Only `next` orders more, so that what is ordered now bounds what is ever made until it is called again,
        // however fast the threads are.
        for taken in 0..4 {
            let ordered = 5 * (2 + taken);
            assert_eq!(loader.plan.issued, 2 + taken as u64);
            assert_eq!(loader.batches.values().map(|open| open.slots.len()).sum::<usize>(), 10);
            assert!(made.load(Ordering::SeqCst) <= ordered);
            loader.next().unwrap().unwrap();
        }
        // Without a way to order more, the threads end when they have done what is pending.
        loader.orders = None;
        loader.threads.drain(..).for_each(|thread| thread.join().unwrap());
        assert_eq!(made.load(Ordering::SeqCst), 5 * 6, "all that was ordered, and nothing else");
    }

    #[test]
    fn dropping_it_ends_the_threads() {
        struct Watch(mpsc::Sender<()>);
        impl Drop for Watch {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        let (tell, told) = mpsc::channel();
        let watch = Watch(tell);
        let options = Options { batch_size: 4, threads: 3, end_epoch: None, ..Options::default() };
        let mut loader = Loader::start(100, options, move |index, _| {
            let _ = &watch;
            Ok(Some(index))
        })
        .unwrap();
        loader.next().unwrap().unwrap();
        drop(loader);
        // The closure lives as long as a thread does.
        told.try_recv().unwrap();
    }

    #[test]
    fn wrong_options_are_refused() {
        let start = |len, options| Loader::start(len, options, |_, _| Ok(Some(()))).err().unwrap().to_string();
        assert!(start(5, Options { batch_size: 0, ..Options::default() }).contains("batch size is 0"));
        assert!(start(5, Options { batch_size: 6, drop_last: true, ..Options::default() }).contains("no batch of 6"));
        assert!(start(0, Options::default()).contains("no examples"));
        let beyond = Options { start: Position { epoch: 0, batch: 6 }, ..Options::default() };
        assert!(start(5, beyond).contains("beyond an epoch of 5"));
    }
}
