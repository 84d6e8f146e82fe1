//! Comparing two checkpoints, name by name.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use formats::write::PIECE;
use formats::{Checkpoint, Result, TensorInfo};
use serde::Serialize;

/// What comparing one name found.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    pub name: String,
    #[serde(flatten)]
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    OnlyInA,
    OnlyInB,
    Shape {
        a: Vec<usize>,
        b: Vec<usize>,
    },
    /// Values that can't be compared as numbers (complex, 8-bit floats) and aren't the same bytes.
    Bytes {
        a: String,
        b: String,
    },
    Values(Values),
}

/// How far apart two tensors of one shape are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Values {
    pub dtype_a: String,
    pub dtype_b: String,
    /// Largest |a − b|. NaN against a number, or one infinity against anything else, is infinitely far.
    pub max_abs: f64,
    /// Largest |a − b| / max(|a|, |b|).
    pub max_rel: f64,
    /// Elements that differ at all.
    pub differing: u64,
    pub elements: u64,
}

impl Values {
    fn same_dtype(&self) -> bool {
        self.dtype_a == self.dtype_b
    }
}

impl Difference {
    /// Whether this counts: everything but values of one dtype no further apart than `tolerance`.
    pub fn is_beyond(&self, tolerance: f64) -> bool {
        match &self.kind {
            Kind::Values(values) => values.max_abs > tolerance || !values.same_dtype(),
            _ => true,
        }
    }
}

/// Compares all names of both; equal tensors give nothing. In order of A, then B's own.
///
/// Values are compared in f64, NaN equal to NaN. `progress` is told A's bytes as they are compared.
pub fn diff(a: &Checkpoint, b: &Checkpoint, threads: usize, progress: impl Fn(u64) + Sync) -> Result<Vec<Difference>> {
    let found: Mutex<Vec<(usize, Difference)>> = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        let mut buffers = Buffers::default();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(info) = a.tensors().get(index) else { return Ok(()) };
            if let Some(kind) = compare(a, index, b, &mut buffers)? {
                let difference = Difference { name: info.name.clone(), kind };
                found.lock().unwrap_or_else(|e| e.into_inner()).push((index, difference));
            }
            progress(info.bytes() as u64);
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut outcome = work();
        for other in others {
            outcome = outcome.and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        outcome
    })?;
    let mut found = found.into_inner().unwrap_or_else(|e| e.into_inner());
    found.sort_by_key(|(index, _)| *index);
    let mut differences: Vec<Difference> = found.into_iter().map(|(_, difference)| difference).collect();
    let own = b.tensors().iter().filter(|info| a.get(&info.name).is_none());
    differences.extend(own.map(|info| Difference { name: info.name.clone(), kind: Kind::OnlyInB }));
    Ok(differences)
}

/// Buffers of one thread's comparisons.
#[derive(Default)]
pub(crate) struct Buffers {
    bytes: [Vec<u8>; 2],
    values: [Vec<f64>; 2],
}

/// Compares a tensor of `a` with its namesake in `b`; `None` if they are equal in dtype and values.
pub(crate) fn compare(a: &Checkpoint, index: usize, b: &Checkpoint, buffers: &mut Buffers) -> Result<Option<Kind>> {
    let left = &a.tensors()[index];
    let Some(position) = b.position(&left.name) else { return Ok(Some(Kind::OnlyInA)) };
    let right = &b.tensors()[position];
    if left.shape != right.shape {
        return Ok(Some(Kind::Shape { a: left.shape.clone(), b: right.shape.clone() }));
    }
    let mut values = Values {
        dtype_a: left.dtype.to_string(),
        dtype_b: right.dtype.to_string(),
        max_abs: 0.0,
        max_rel: 0.0,
        differing: 0,
        elements: left.elements() as u64,
    };
    let mut comparable = true;
    let elements = left.elements();
    let mut start = 0;
    while start < elements {
        let range = start..elements.min(start + PIECE);
        start = range.end;
        let [bytes_a, bytes_b] = &mut buffers.bytes;
        a.read(index, range.clone(), bytes_a)?;
        b.read(position, range, bytes_b)?;
        if left.dtype == right.dtype && bytes_a == bytes_b {
            continue;
        }
        let [values_a, values_b] = &mut buffers.values;
        let decoded =
            formats::decode_f64(bytes_a, left.dtype, values_a) && formats::decode_f64(bytes_b, right.dtype, values_b);
        if decoded {
            values.take(values_a, values_b);
        } else {
            comparable = false;
        }
    }
    if !comparable {
        return Ok(Some(Kind::Bytes { a: describe(left), b: describe(right) }));
    }
    let same = values.differing == 0 && values.same_dtype();
    Ok((!same).then_some(Kind::Values(values)))
}

fn describe(info: &TensorInfo) -> String {
    info.dtype.to_string()
}

impl Values {
    fn take(&mut self, a: &[f64], b: &[f64]) {
        for (&x, &y) in a.iter().zip(b) {
            if x == y || (x.is_nan() && y.is_nan()) {
                continue;
            }
            self.differing += 1;
            let apart = (x - y).abs();
            let (abs, rel) =
                if apart.is_finite() { (apart, apart / x.abs().max(y.abs())) } else { (f64::INFINITY, f64::INFINITY) };
            self.max_abs = self.max_abs.max(abs);
            self.max_rel = self.max_rel.max(rel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(a: &[f64], b: &[f64]) -> Values {
        let dtype = || "f64".to_string();
        let mut v = Values {
            dtype_a: dtype(),
            dtype_b: dtype(),
            max_abs: 0.0,
            max_rel: 0.0,
            differing: 0,
            elements: a.len() as u64,
        };
        v.take(a, b);
        v
    }

    #[test]
    fn the_largest_difference_counts() {
        let v = values(&[1.0, 2.0, 10.0], &[1.0, 1.0, 10.5]);
        assert_eq!((v.max_abs, v.max_rel, v.differing), (1.0, 0.5, 2));
    }

    #[test]
    fn nan_equals_nan_and_nothing_else() {
        assert_eq!(values(&[f64::NAN], &[f64::NAN]).differing, 0);
        assert_eq!(values(&[f64::NAN], &[0.0]).max_abs, f64::INFINITY);
        assert_eq!(values(&[f64::INFINITY], &[f64::INFINITY]).differing, 0);
        assert_eq!(values(&[f64::INFINITY], &[f64::NEG_INFINITY]).max_abs, f64::INFINITY);
    }
}
