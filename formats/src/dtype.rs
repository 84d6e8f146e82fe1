//! Element types of tensors, under the names PyTorch and safetensors give them.

use half::{bf16, f16};

/// An element type a PyTorch or safetensors file can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    /// Complex numbers of two f16, f32 or f64.
    Complex32,
    Complex64,
    Complex128,
    F8E4M3,
    F8E5M2,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    F8E8M0,
}

/// Every dtype with its size in bytes and its short, PyTorch, PyTorch-storage and safetensors names.
const TABLE: &[(Dtype, usize, &str, &str, &str, &str)] = &[
    (Dtype::F64, 8, "f64", "float64", "DoubleStorage", "F64"),
    (Dtype::F32, 4, "f32", "float32", "FloatStorage", "F32"),
    (Dtype::F16, 2, "f16", "float16", "HalfStorage", "F16"),
    (Dtype::Bf16, 2, "bf16", "bfloat16", "BFloat16Storage", "BF16"),
    (Dtype::I64, 8, "i64", "int64", "LongStorage", "I64"),
    (Dtype::I32, 4, "i32", "int32", "IntStorage", "I32"),
    (Dtype::I16, 2, "i16", "int16", "ShortStorage", "I16"),
    (Dtype::I8, 1, "i8", "int8", "CharStorage", "I8"),
    (Dtype::U64, 8, "u64", "uint64", "", "U64"),
    (Dtype::U32, 4, "u32", "uint32", "", "U32"),
    (Dtype::U16, 2, "u16", "uint16", "", "U16"),
    (Dtype::U8, 1, "u8", "uint8", "ByteStorage", "U8"),
    (Dtype::Bool, 1, "bool", "bool", "BoolStorage", "BOOL"),
    (Dtype::Complex32, 4, "complex32", "complex32", "ComplexHalfStorage", ""),
    (Dtype::Complex64, 8, "complex64", "complex64", "ComplexFloatStorage", "C64"),
    (Dtype::Complex128, 16, "complex128", "complex128", "ComplexDoubleStorage", ""),
    (Dtype::F8E4M3, 1, "f8_e4m3", "float8_e4m3fn", "", "F8_E4M3"),
    (Dtype::F8E5M2, 1, "f8_e5m2", "float8_e5m2", "", "F8_E5M2"),
    (Dtype::F8E4M3Fnuz, 1, "f8_e4m3fnuz", "float8_e4m3fnuz", "", "F8_E4M3FNUZ"),
    (Dtype::F8E5M2Fnuz, 1, "f8_e5m2fnuz", "float8_e5m2fnuz", "", "F8_E5M2FNUZ"),
    (Dtype::F8E8M0, 1, "f8_e8m0", "float8_e8m0fnu", "", "F8_E8M0"),
];

impl Dtype {
    fn row(self) -> &'static (Dtype, usize, &'static str, &'static str, &'static str, &'static str) {
        TABLE.iter().find(|row| row.0 == self).expect("every dtype has a row")
    }

    /// Size of one element in bytes.
    pub fn size(self) -> usize {
        self.row().1
    }

    /// Short name: `f32`, `bf16`, `i64`, …
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// PyTorch's name without the `torch.` prefix: `float32`, `bfloat16`, …
    pub fn torch_name(self) -> &'static str {
        self.row().3
    }

    /// PyTorch's typed storage class (`FloatStorage`), for the dtypes that have one.
    pub fn torch_storage(self) -> Option<&'static str> {
        Some(self.row().4).filter(|name| !name.is_empty())
    }

    /// The dtype's name in a safetensors header, for those the format can hold.
    pub fn safetensors_name(self) -> Option<&'static str> {
        Some(self.row().5).filter(|name| !name.is_empty())
    }

    pub fn from_name(name: &str) -> Option<Dtype> {
        TABLE.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// From PyTorch's name without the `torch.` prefix. `torch.half` and its like are accepted too.
    pub fn from_torch_name(name: &str) -> Option<Dtype> {
        let name = match name {
            "double" => "float64",
            "float" => "float32",
            "half" => "float16",
            "long" => "int64",
            "int" => "int32",
            "short" => "int16",
            "chalf" => "complex32",
            "cfloat" => "complex64",
            "cdouble" => "complex128",
            other => other,
        };
        TABLE.iter().find(|row| row.3 == name).map(|row| row.0)
    }

    /// From a typed storage class of PyTorch, e.g. `FloatStorage`.
    pub fn from_torch_storage(class: &str) -> Option<Dtype> {
        TABLE.iter().find(|row| !row.4.is_empty() && row.4 == class).map(|row| row.0)
    }

    pub fn from_safetensors_name(name: &str) -> Option<Dtype> {
        TABLE.iter().find(|row| !row.5.is_empty() && row.5 == name).map(|row| row.0)
    }

    /// Whether values are real floating-point numbers that merging can compute with.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16)
    }

    /// Bytes that are swapped together when a file of the other endianness is read: the size
    /// of the element, or of one part of a complex number.
    pub fn swap_width(self) -> usize {
        match self {
            Dtype::Complex32 | Dtype::Complex64 | Dtype::Complex128 => self.size() / 2,
            _ => self.size(),
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

macro_rules! for_each_real {
    ($bytes:expr, $dtype:expr, $out:expr, $to:ty) => {{
        let bytes: &[u8] = $bytes;
        let out: &mut Vec<$to> = $out;
        out.clear();
        macro_rules! go {
            ($t:ty, $convert:expr) => {{
                out.extend(bytes.chunks_exact(size_of::<$t>()).map(|chunk| {
                    let value = <$t>::from_le_bytes(chunk.try_into().expect("chunks_exact"));
                    $convert(value)
                }));
                true
            }};
        }
        match $dtype {
            Dtype::F64 => go!(f64, |v| v as $to),
            Dtype::F32 => go!(f32, |v| v as $to),
            Dtype::F16 => go!(f16, |v: f16| v.to_f32() as $to),
            Dtype::Bf16 => go!(bf16, |v: bf16| v.to_f32() as $to),
            Dtype::I64 => go!(i64, |v| v as $to),
            Dtype::I32 => go!(i32, |v| v as $to),
            Dtype::I16 => go!(i16, |v| v as $to),
            Dtype::I8 => go!(i8, |v| v as $to),
            Dtype::U64 => go!(u64, |v| v as $to),
            Dtype::U32 => go!(u32, |v| v as $to),
            Dtype::U16 => go!(u16, |v| v as $to),
            Dtype::U8 => go!(u8, |v| v as $to),
            Dtype::Bool => go!(u8, |v| (v != 0) as u8 as $to),
            _ => false,
        }
    }};
}

/// Decodes little-endian elements to f64, replacing what `out` holds. Integers beyond 2^53 round.
/// Returns false, with `out` empty, for dtypes that are listed but not computed with (complex, 8-bit floats).
#[must_use]
pub fn decode_f64(bytes: &[u8], dtype: Dtype, out: &mut Vec<f64>) -> bool {
    for_each_real!(bytes, dtype, out, f64)
}

/// Decodes little-endian elements to f32, rounding to nearest; otherwise as [`decode_f64`].
#[must_use]
pub fn decode_f32(bytes: &[u8], dtype: Dtype, out: &mut Vec<f32>) -> bool {
    for_each_real!(bytes, dtype, out, f32)
}

/// Appends `values` to `out` as little-endian elements of a floating dtype, rounding to nearest even.
/// Returns false, leaving `out` as it was, when `dtype` is not f64, f32, f16 or bf16.
#[must_use]
pub fn encode_f64(values: &[f64], dtype: Dtype, out: &mut Vec<u8>) -> bool {
    out.reserve(values.len() * dtype.size());
    match dtype {
        Dtype::F64 => values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Dtype::F32 => values.iter().for_each(|&v| out.extend_from_slice(&(v as f32).to_le_bytes())),
        Dtype::F16 => values.iter().for_each(|&v| out.extend_from_slice(&f16::from_f32(to_odd(v)).to_le_bytes())),
        Dtype::Bf16 => values.iter().for_each(|&v| out.extend_from_slice(&bf16::from_f32(to_odd(v)).to_le_bytes())),
        _ => return false,
    }
    true
}

/// An f32 that rounds to f16 and bf16 as `value` does: cut short, with the last bit set if anything was cut off
/// (rounding to odd). The half crate's own `from_f64` looks at the upper half of the bits only and is off by one
/// near ties; a cast to f32 would round twice.
fn to_odd(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) == value || value.is_nan() {
        return near;
    }
    let beyond = f64::from(near).abs() > value.abs();
    f32::from_bits((near.to_bits() - u32::from(beyond)) | 1)
}

/// Appends `values` to `out` as little-endian elements of a floating dtype; otherwise as [`encode_f64`].
#[must_use]
pub fn encode_f32(values: &[f32], dtype: Dtype, out: &mut Vec<u8>) -> bool {
    out.reserve(values.len() * dtype.size());
    match dtype {
        Dtype::F64 => values.iter().for_each(|&v| out.extend_from_slice(&(v as f64).to_le_bytes())),
        Dtype::F32 => values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Dtype::F16 => values.iter().for_each(|&v| out.extend_from_slice(&f16::from_f32(v).to_le_bytes())),
        Dtype::Bf16 => values.iter().for_each(|&v| out.extend_from_slice(&bf16::from_f32(v).to_le_bytes())),
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(value: f64, dtype: Dtype) -> u16 {
        let mut out = Vec::new();
        assert!(encode_f64(&[value], dtype, &mut out));
        u16::from_le_bytes(out.try_into().expect("two bytes"))
    }

    /// Between each two neighbours: the tie goes to the even one, and the smallest step off the tie decides.
    #[test]
    fn narrowing_rounds_once_to_nearest_even() {
        let decode = |bits: u16, dtype| match dtype {
            Dtype::F16 => f16::from_bits(bits).to_f64(),
            _ => bf16::from_bits(bits).to_f64(),
        };
        for (dtype, infinity) in [(Dtype::F16, 0x7c00u16), (Dtype::Bf16, 0x7f80)] {
            for low in 0..infinity - 1 {
                let (below, above) = (decode(low, dtype), decode(low + 1, dtype));
                let tie = below + (above - below) / 2.0;
                for (value, expected) in [
                    (below, low),
                    (tie.next_down(), low),
                    (tie, low + (low & 1)),
                    (tie.next_up(), low + 1),
                    (above, low + 1),
                ] {
                    assert_eq!(encoded(value, dtype), expected, "{value:e} as {dtype}");
                    assert_eq!(encoded(-value, dtype), expected | 0x8000, "{:e} as {dtype}", -value);
                }
            }
            assert_eq!(encoded(f64::MAX, dtype), infinity);
            assert_eq!(encoded(f64::INFINITY, dtype), infinity);
            assert_eq!(encoded(f64::from_bits(1), dtype), 0);
            assert!(decode(encoded(f64::NAN, dtype), dtype).is_nan());
        }
    }
}
