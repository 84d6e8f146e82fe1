//! Comparing two checkpoints, name by name.

use std::sync::{Mutex, PoisonError};

use formats::write::PIECE;
use formats::{Checkpoint, Dtype, Result, TensorInfo, parallel};
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
    #[serde(serialize_with = "number")]
    pub max_abs: f64,
    /// Largest |a − b| / max(|a|, |b|).
    #[serde(serialize_with = "number")]
    pub max_rel: f64,
    /// Elements that differ at all.
    pub differing: u64,
    pub elements: u64,
}

/// JSON has no infinity: it becomes the text "inf".
fn number<S: serde::Serializer>(value: &f64, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    if value.is_finite() { serializer.serialize_f64(*value) } else { serializer.serialize_str("inf") }
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
    parallel::for_each(threads, a.tensors().len(), |index, buffers: &mut Buffers| -> Result<()> {
        let info = &a.tensors()[index];
        if let Some(kind) = compare(a, index, b, buffers)? {
            let difference = Difference { name: info.name.clone(), kind };
            found.lock().unwrap_or_else(PoisonError::into_inner).push((index, difference));
        }
        progress(info.bytes() as u64);
        Ok(())
    })?;
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
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
        if left.dtype == right.dtype && matches!(left.dtype, Dtype::I64 | Dtype::U64) {
            values.take_integers(bytes_a, bytes_b, left.dtype == Dtype::I64);
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
            if x != y && !(x.is_nan() && y.is_nan()) {
                self.differ(x, y, (x - y).abs());
            }
        }
    }

    /// As [`Values::take`], for 64-bit integers: beyond 2^53 neighbours are one f64.
    fn take_integers(&mut self, a: &[u8], b: &[u8], signed: bool) {
        let value = |&bytes: &[u8; 8]| match signed {
            true => i128::from(i64::from_le_bytes(bytes)),
            false => i128::from(u64::from_le_bytes(bytes)),
        };
        for (x, y) in a.as_chunks().0.iter().map(value).zip(b.as_chunks().0.iter().map(value)) {
            if x != y {
                self.differ(x as f64, y as f64, x.abs_diff(y) as f64);
            }
        }
    }

    fn differ(&mut self, x: f64, y: f64, apart: f64) {
        self.differing += 1;
        let (abs, rel) =
            if apart.is_finite() { (apart, apart / x.abs().max(y.abs())) } else { (f64::INFINITY, f64::INFINITY) };
        self.max_abs = self.max_abs.max(abs);
        self.max_rel = self.max_rel.max(rel);
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
    fn large_integers_are_compared_exactly() {
        let bytes = |n: i64| n.to_le_bytes();
        let mut v = values(&[], &[]);
        v.take_integers(&bytes(1 << 53), &bytes(1 << 53), true);
        assert_eq!(v.differing, 0);
        v.take_integers(&bytes(1 << 53), &bytes((1 << 53) + 1), true);
        assert_eq!((v.differing, v.max_abs), (1, 1.0));
        v.take_integers(&bytes(-1), &bytes(1), true);
        assert_eq!((v.differing, v.max_abs, v.max_rel), (2, 2.0, 2.0));
        v.take_integers(&bytes(-1), &bytes(0), false);
        assert_eq!((v.differing, v.max_abs), (3, u64::MAX as f64));
    }

    #[test]
    fn nan_equals_nan_and_nothing_else() {
        assert_eq!(values(&[f64::NAN], &[f64::NAN]).differing, 0);
        assert_eq!(values(&[f64::NAN], &[0.0]).max_abs, f64::INFINITY);
        assert_eq!(values(&[f64::INFINITY], &[f64::INFINITY]).differing, 0);
        assert_eq!(values(&[f64::INFINITY], &[f64::NEG_INFINITY]).max_abs, f64::INFINITY);
    }
}
