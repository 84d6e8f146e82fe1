//! Writing pickles: the handful of protocol-2 opcodes that PyTorch's own files are made of.

use crate::Dtype;

/// Appends opcodes to a pickle. Each method pushes what its name says on the reader's stack or
/// combines what is on top of it; the caller keeps the order, as in an assembler.
///
/// ```
/// use formats::pickle::Emitter;
/// let mut p = Emitter::new();
/// p.empty_dict().mark().str("epoch").int(3).set_items();
/// assert_eq!(p.finish(), b"\x80\x02}(X\x05\0\0\0epochK\x03u.");
/// ```
#[derive(Debug)]
pub struct Emitter {
    out: Vec<u8>,
}

impl Default for Emitter {
    fn default() -> Emitter {
        Emitter::new()
    }
}

impl Emitter {
    /// An empty pickle of protocol 2, what `torch.save` writes.
    pub fn new() -> Emitter {
        Emitter { out: vec![0x80, 2] }
    }

    /// Ends the pickle and returns its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.out.push(b'.');
        self.out
    }

    fn op(&mut self, code: u8) -> &mut Self {
        self.out.push(code);
        self
    }

    /// Appends bytes as they are: opcodes this type has no method for.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    pub fn none(&mut self) -> &mut Self {
        self.op(b'N')
    }

    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.op(if value { 0x88 } else { 0x89 })
    }

    pub fn int(&mut self, value: i64) -> &mut Self {
        match value {
            0..=0xff => self.raw(&[b'K', value as u8]),
            0x100..=0xffff => self.op(b'M').raw(&(value as u16).to_le_bytes()),
            _ => match i32::try_from(value) {
                Ok(value) => self.op(b'J').raw(&value.to_le_bytes()),
                Err(_) => self.raw(&[0x8a, 8]).raw(&value.to_le_bytes()),
            },
        }
    }

    pub fn float(&mut self, value: f64) -> &mut Self {
        self.op(b'G').raw(&value.to_be_bytes())
    }

    /// A `str`. Panics on text of 4 GiB or more, which the opcode can't hold.
    pub fn str(&mut self, value: &str) -> &mut Self {
        let length = u32::try_from(value.len()).expect("text under 4 GiB");
        self.op(b'X').raw(&length.to_le_bytes()).raw(value.as_bytes())
    }

    /// A mark: what [`Emitter::tuple`], [`Emitter::appends`] and [`Emitter::set_items`] gather up to.
    pub fn mark(&mut self) -> &mut Self {
        self.op(b'(')
    }

    /// Turns everything since the mark into a tuple.
    pub fn tuple(&mut self) -> &mut Self {
        self.op(b't')
    }

    pub fn empty_tuple(&mut self) -> &mut Self {
        self.op(b')')
    }

    pub fn empty_list(&mut self) -> &mut Self {
        self.op(b']')
    }

    /// Appends everything since the mark to the list under it.
    pub fn appends(&mut self) -> &mut Self {
        self.op(b'e')
    }

    pub fn empty_dict(&mut self) -> &mut Self {
        self.op(b'}')
    }

    /// Puts the keys and values since the mark, in turn, into the dict under it.
    pub fn set_items(&mut self) -> &mut Self {
        self.op(b'u')
    }

    /// A class or function by name.
    pub fn global(&mut self, module: &str, name: &str) -> &mut Self {
        self.op(b'c').raw(module.as_bytes()).raw(b"\n").raw(name.as_bytes()).raw(b"\n")
    }

    /// Calls the callable under the tuple on top.
    pub fn reduce(&mut self) -> &mut Self {
        self.op(b'R')
    }

    /// `cls.__new__(cls, *args)` with the class under the tuple on top.
    pub fn new_object(&mut self) -> &mut Self {
        self.raw(&[0x81])
    }

    /// Gives the object under the top its state.
    pub fn build(&mut self) -> &mut Self {
        self.op(b'b')
    }

    /// Turns the top into a persistent id, which is how PyTorch refers to a storage.
    pub fn persistent_id(&mut self) -> &mut Self {
        self.op(b'Q')
    }

    /// Stores the top of the stack in a memo slot for [`Emitter::get`].
    pub fn put(&mut self, slot: u32) -> &mut Self {
        self.op(b'r').raw(&slot.to_le_bytes())
    }

    pub fn get(&mut self, slot: u32) -> &mut Self {
        self.op(b'j').raw(&slot.to_le_bytes())
    }

    /// An empty `collections.OrderedDict`, the type of every state dict.
    pub fn ordered_dict(&mut self) -> &mut Self {
        self.global("collections", "OrderedDict").empty_tuple().reduce()
    }

    /// A contiguous tensor as `torch.save` refers to it: a view over the whole of storage `key`.
    pub fn tensor(&mut self, dtype: Dtype, key: &str, shape: &[usize]) -> &mut Self {
        let elements: usize = shape.iter().product();
        // `torch.load(weights_only=True)` doesn't know ComplexHalfStorage; PyTorch doesn't write it either.
        let typed = dtype.torch_storage().filter(|_| dtype != Dtype::Complex32);
        let rebuild = if typed.is_some() { "_rebuild_tensor_v2" } else { "_rebuild_tensor_v3" };
        self.global("torch._utils", rebuild).mark();
        self.mark().str("storage");
        match typed {
            Some(class) => self.global("torch", class).str(key).str("cpu").int(elements as i64),
            // Newer dtypes have no storage class of their own: bytes, and the dtype with the tensor.
            None => {
                self.global("torch.storage", "UntypedStorage").str(key).str("cpu").int((elements * dtype.size()) as i64)
            }
        };
        self.tuple().persistent_id().int(0);
        self.mark();
        shape.iter().for_each(|&d| {
            self.int(d as i64);
        });
        self.tuple().mark();
        for axis in 0..shape.len() {
            self.int(shape[axis + 1..].iter().product::<usize>() as i64);
        }
        self.tuple().bool(false).ordered_dict();
        if typed.is_none() {
            self.global("torch", dtype.torch_name());
        }
        self.tuple().reduce()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_only_what_pytorch_loads_as_weights() {
        let named = |dtype| {
            let mut p = Emitter::new();
            p.tensor(dtype, "0", &[1]);
            String::from_utf8_lossy(&p.finish()).into_owned()
        };
        assert!(named(Dtype::F32).contains("torch\nFloatStorage\n"));
        for dtype in [Dtype::Complex32, Dtype::F8E4M3, Dtype::U16] {
            assert!(named(dtype).contains("torch.storage\nUntypedStorage\n"), "{dtype}");
        }
    }
}
