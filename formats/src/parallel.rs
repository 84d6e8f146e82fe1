//! Work on all cores.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Calls `work` with every number below `count`, on `threads` threads and in increasing order of
/// starting. Each thread has its own `S`, which keeps buffers from one call to the next.
///
/// # Errors
/// The error of the lowest number that failed; after an error no new number is started.
pub fn for_each<S: Default, E: Send>(
    threads: usize,
    count: usize,
    work: impl Fn(usize, &mut S) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let stopped = AtomicBool::new(false);
    let first: Mutex<Option<(usize, E)>> = Mutex::new(None);
    let run = || {
        let mut state = S::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count || stopped.load(Ordering::Relaxed) {
                return;
            }
            if let Err(e) = work(number, &mut state) {
                stopped.store(true, Ordering::Relaxed);
                let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                if first.as_ref().is_none_or(|(earlier, _)| number < *earlier) {
                    *first = Some((number, e));
                }
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(count)).map(|_| scope.spawn(run)).collect();
        run();
        for other in others {
            other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, e)) => Err(e),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_worked_on_once() {
        for threads in [1, 2, 5] {
            let seen = Mutex::new(Vec::new());
            for_each(threads, 100, |number, (): &mut ()| {
                seen.lock().unwrap().push(number);
                Ok::<(), ()>(())
            })
            .unwrap();
            let mut seen = seen.into_inner().unwrap();
            seen.sort_unstable();
            assert_eq!(seen, (0..100).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_error_stops_the_rest() {
        let failed = for_each(1, 1000, |number, (): &mut ()| if number == 7 { Err(number) } else { Ok(()) });
        assert_eq!(failed, Err(7));
    }
}
