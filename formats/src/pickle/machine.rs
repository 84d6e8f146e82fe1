//! The stack machine that reads a pickle, protocols 0 to 5, and runs nothing.

use std::collections::HashMap;
use std::io::Read;

use super::{Document, Id, Node, Object, Span};

/// What a pickle may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the stream that may be read.
    pub bytes: u64,
    /// Values that may be made.
    pub nodes: usize,
    /// Bytes of memory that values may take beyond [`MEMORY_PER_BYTE`] for each byte read.
    pub memory: u64,
}

/// Opcodes of one byte make values of many: a pickle of nothing else is an attack. Text, numbers
/// and tensors take less than this.
const MEMORY_PER_BYTE: u64 = 16;

impl Default for Limits {
    /// 256 MiB and 16 million values: a Lightning checkpoint has some thousands of both.
    fn default() -> Limits {
        Limits { bytes: 256 << 20, nodes: 16 << 20, memory: 16 << 20 }
    }
}

/// Why a pickle can't be read, and where in it.
#[derive(Debug)]
pub struct Fault {
    /// Bytes from the start of the pickle.
    pub position: u64,
    pub reason: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pickle: byte {}: {}", self.position, self.reason)
    }
}

/// Reads one pickle, up to and including its `STOP`, and returns it with its length in bytes.
///
/// `input` must be buffered; `available` is how many bytes it can give at the most, so that a
/// length written in the pickle is judged before anything is allocated for it.
pub fn read(input: &mut impl Read, available: u64, limits: Limits) -> Result<(Document, u64), Fault> {
    let mut machine = Machine {
        input,
        position: 0,
        available,
        limits,
        document: Document::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        memory: 0,
    };
    match machine.run() {
        Ok(root) => {
            machine.document.root = root.0;
            machine.document.len = machine.position;
            Ok((machine.document, machine.position))
        }
        Err(reason) => Err(Fault { position: machine.position, reason }),
    }
}

struct Machine<'a, R> {
    input: &'a mut R,
    position: u64,
    available: u64,
    limits: Limits,
    document: Document,
    stack: Vec<Id>,
    /// Heights of the stack at each open mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// What the values take by [`Machine::charge`]'s count.
    memory: u64,
}

type Step<T> = Result<T, String>;

/// The longest line an opcode of protocol 0 may carry.
const MAX_LINE: usize = 1 << 16;
/// The longest name of a module or class.
const MAX_GLOBAL: usize = 1024;

impl<R: Read> Machine<'_, R> {
    fn run(&mut self) -> Step<Id> {
        loop {
            let op = self.byte()?;
            match op {
                b'.' => {
                    let root = self.pop()?;
                    return if self.stack.is_empty() && self.marks.is_empty() {
                        Ok(root)
                    } else {
                        Err("it ends with values left on the stack".into())
                    };
                }
                0x80 => {
                    let protocol = self.byte()?;
                    if protocol > 5 {
                        return Err(format!("protocol {protocol} is not known (0 to 5 are)"));
                    }
                }
                // FRAME: a hint for buffering.
                0x95 => {
                    self.array::<8>()?;
                }

                b'N' => self.push(Node::None)?,
                0x88 => self.push(Node::Bool(true))?,
                0x89 => self.push(Node::Bool(false))?,
                b'K' => {
                    let value = self.byte()?;
                    self.push(Node::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                0x8a => {
                    let length = self.byte()?;
                    self.long(length.into())?;
                }
                0x8b => {
                    let length = self.length4()?;
                    self.long(length)?;
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(value))?;
                }
                b'I' | b'L' => self.text_int(op)?,
                b'F' => {
                    let line = self.line()?;
                    let value = String::from_utf8_lossy(&line).trim().parse();
                    self.push(Node::Float(value.map_err(|_| "a float that is no number")?))?;
                }

                b'X' | b'T' | b'B' => {
                    let length = self.length4()?;
                    self.text(op, length)?;
                }
                0x8c | b'U' | b'C' => {
                    let length = self.byte()?;
                    self.text(op, length.into())?;
                }
                0x8d | 0x8e | 0x96 => {
                    let length = u64::from_le_bytes(self.array()?);
                    self.text(op, length)?;
                }
                b'V' => {
                    let line = self.line()?;
                    let span = self.store_text(unescape_unicode(&String::from_utf8_lossy(&line)).as_bytes())?;
                    self.push(Node::Str(span))?;
                }
                b'S' => {
                    let line = self.line()?;
                    let text = unquote(&line).ok_or("a quoted string without its quotes")?;
                    self.push_python2_str(&text)?;
                }

                b'(' => {
                    self.charge(size_of::<usize>())?;
                    self.marks.push(self.stack.len());
                }
                b'0' => {
                    // POP takes a mark where one is on top.
                    if self.marks.last() == Some(&self.stack.len()) {
                        self.marks.pop();
                    } else {
                        self.pop()?;
                    }
                }
                b'1' => {
                    self.pop_to_mark()?;
                }
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }

                b')' => self.push(Node::Tuple(Vec::new()))?,
                b']' => self.push(Node::List(Vec::new()))?,
                b'}' => self.push(Node::Dict(Vec::new()))?,
                0x8f => self.push(Node::Set(Vec::new()))?,
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::Tuple(items))?;
                }
                b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::List(items))?;
                }
                b'd' => {
                    let items = self.pop_to_mark()?;
                    let entries = pairs(&items)?;
                    self.push(Node::Dict(entries))?;
                }
                0x91 => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::Set(items))?;
                }
                0x85..=0x87 => {
                    let count = usize::from(op - 0x84);
                    let floor = self.floor();
                    if self.stack.len() < floor + count {
                        return Err("a tuple of more values than are on the stack".into());
                    }
                    let items = self.stack.split_off(self.stack.len() - count);
                    self.push(Node::Tuple(items))?;
                }

                b'a' => {
                    let item = self.pop()?;
                    self.append(&[item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_to_mark()?;
                    self.append(&items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set_items(&[(key, value)])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(&pairs(&items)?)?;
                }

                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    let global = self.global(&module, &name)?;
                    self.push(global)?;
                }
                0x93 => {
                    let name = self.pop()?;
                    let module = self.pop()?;
                    match (self.document.node(module), self.document.node(name)) {
                        (&Node::Str(module), &Node::Str(name)) => {
                            let global = self.global_of(module, name)?;
                            self.push(global)?;
                        }
                        _ => return Err("a class whose name is not text".into()),
                    }
                }
                b'R' => {
                    let args = self.pop()?;
                    let callable = self.pop()?;
                    self.object(callable, args, false)?;
                }
                0x81 => {
                    let args = self.pop()?;
                    let class = self.pop()?;
                    self.object(class, args, true)?;
                }
                // NEWOBJ_EX: keyword arguments are kept as the object's entries would be lost; they
                // only matter to whoever would call the class.
                0x92 => {
                    let _keywords = self.pop()?;
                    let args = self.pop()?;
                    let class = self.pop()?;
                    self.object(class, args, true)?;
                }
                b'i' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    let global = self.global(&module, &name)?;
                    let items = self.pop_to_mark()?;
                    let class = self.add(global)?;
                    let args = self.add(Node::Tuple(items))?;
                    self.object(class, args, true)?;
                }
                b'o' => {
                    let mut items = self.pop_to_mark()?;
                    if items.is_empty() {
                        return Err("an object without a class".into());
                    }
                    let class = items.remove(0);
                    let args = self.add(Node::Tuple(items))?;
                    self.object(class, args, true)?;
                }
                b'b' => {
                    let state = self.pop()?;
                    let target = self.top()?;
                    // BUILD on anything but an object would call a method that isn't there.
                    match self.document.nodes.get_mut(target.0 as usize) {
                        Some(Node::Object(object)) => object.state = Some(state),
                        _ => return Err("state given to a value that is no object".into()),
                    }
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Node::Persistent(id))?;
                }
                b'P' => {
                    let line = self.line()?;
                    let span = self.store_text(&line)?;
                    let id = self.add(Node::Str(span))?;
                    self.push(Node::Persistent(id))?;
                }

                b'q' => {
                    let slot = self.byte()?;
                    self.remember(slot.into())?;
                }
                b'r' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.remember(slot)?;
                }
                b'p' => {
                    let slot = self.line_number()?;
                    self.remember(slot)?;
                }
                0x94 => {
                    let slot = self.memo.len() as u32;
                    self.remember(slot)?;
                }
                b'h' => {
                    let slot = self.byte()?;
                    self.recall(slot.into())?;
                }
                b'j' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.recall(slot)?;
                }
                b'g' => {
                    let slot = self.line_number()?;
                    self.recall(slot)?;
                }

                0x82..=0x84 => {
                    return Err("extension registry codes mean nothing outside the program that wrote them".into());
                }
                0x97 | 0x98 => return Err("out-of-band buffers are not in the file".into()),
                _ => return Err(format!("opcode 0x{op:02x} is not known")),
            }
        }
    }

    fn add(&mut self, node: Node) -> Step<Id> {
        if self.document.nodes.len() >= self.limits.nodes {
            return Err(format!("more than {} values", self.limits.nodes));
        }
        self.charge(size_of::<Node>() + size_of::<Id>())?;
        let id = Id(self.document.nodes.len() as u32);
        self.document.nodes.push(node);
        Ok(id)
    }

    /// Counts memory about to be taken, and refuses what is out of proportion to the bytes read.
    fn charge(&mut self, bytes: usize) -> Step<()> {
        self.memory += bytes as u64;
        if self.memory > self.limits.memory.saturating_add(MEMORY_PER_BYTE * self.position) {
            return Err(format!("its values take more memory than {MEMORY_PER_BYTE} times its length"));
        }
        Ok(())
    }

    fn push(&mut self, node: Node) -> Step<()> {
        let id = self.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    fn global(&mut self, module: &[u8], name: &[u8]) -> Step<Node> {
        let (module, name) = (self.store_text(module)?, self.store_text(name)?);
        self.global_of(module, name)
    }

    fn global_of(&mut self, module: Span, name: Span) -> Step<Node> {
        if module.len as usize > MAX_GLOBAL || name.len as usize > MAX_GLOBAL {
            return Err(format!("a class whose name has more than {MAX_GLOBAL} bytes"));
        }
        // Two shared texts make a new name each time, which a list of all names spells out.
        self.charge(module.len as usize + name.len as usize)?;
        Ok(Node::Global(module, name))
    }

    fn object(&mut self, callable: Id, args: Id, is_new: bool) -> Step<()> {
        self.charge(size_of::<Object>())?;
        let object = Object { callable, args, is_new, state: None, items: Vec::new(), entries: Vec::new() };
        self.push(Node::Object(Box::new(object)))
    }

    /// The height below which values belong to an outer mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Step<Id> {
        if self.stack.len() <= self.floor() {
            return Err("a value is taken from an empty stack".into());
        }
        self.stack.pop().ok_or_else(|| "a value is taken from an empty stack".into())
    }

    fn top(&self) -> Step<Id> {
        match self.stack.last() {
            Some(&top) if self.stack.len() > self.floor() => Ok(top),
            _ => Err("a value is taken from an empty stack".into()),
        }
    }

    fn pop_to_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, new: &[Id]) -> Step<()> {
        let target = self.top()?;
        match &mut self.document.nodes[target.0 as usize] {
            Node::List(items) | Node::Set(items) => items.extend_from_slice(new),
            Node::Object(object) => object.items.extend_from_slice(new),
            _ => return Err("values appended to something that is no list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, new: &[(Id, Id)]) -> Step<()> {
        let target = self.top()?;
        match &mut self.document.nodes[target.0 as usize] {
            Node::Dict(entries) => entries.extend_from_slice(new),
            Node::Object(object) => object.entries.extend_from_slice(new),
            _ => return Err("keys set in something that is no dict".into()),
        }
        Ok(())
    }

    fn remember(&mut self, slot: u32) -> Step<()> {
        let top = self.top()?;
        if self.memo.insert(slot, top).is_none() {
            self.charge(2 * size_of::<(u32, Id)>())?;
        }
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Step<()> {
        let id = *self.memo.get(&slot).ok_or_else(|| format!("memo slot {slot} is read before it is written"))?;
        self.stack.push(id);
        Ok(())
    }

    fn long(&mut self, length: u64) -> Step<()> {
        let span = self.take(length)?;
        let bytes = &self.document.bytes[span.range()];
        if bytes.len() <= 8 {
            let negative = bytes.last().is_some_and(|&b| b & 0x80 != 0);
            let mut wide = [if negative { 0xff } else { 0 }; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            self.push(Node::Int(i64::from_le_bytes(wide)))
        } else {
            self.push(Node::BigInt(span))
        }
    }

    fn text_int(&mut self, op: u8) -> Step<()> {
        let line = self.line()?;
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        match (op, text) {
            (b'I', "00") => return self.push(Node::Bool(false)),
            (b'I', "01") => return self.push(Node::Bool(true)),
            _ => {}
        }
        let digits = text.strip_suffix('L').unwrap_or(text);
        if let Ok(value) = digits.parse::<i64>() {
            return self.push(Node::Int(value));
        }
        let body = digits.strip_prefix('-').unwrap_or(digits);
        if body.is_empty() || !body.bytes().all(|b| b.is_ascii_digit()) {
            return Err("an integer that is no number".into());
        }
        let span = self.store_bytes(digits.as_bytes())?;
        self.push(Node::BigInt(span))
    }

    fn text(&mut self, op: u8, length: u64) -> Step<()> {
        let span = self.take(length)?;
        if matches!(op, b'B' | b'C' | 0x8e | 0x96) {
            return self.push(Node::Bytes(span));
        }
        let taken = self.document.bytes.split_off(span.start as usize);
        match op {
            b'T' | b'U' => self.push_python2_str(&taken),
            _ => {
                let span = self.store_text(&taken)?;
                self.push(Node::Str(span))
            }
        }
    }

    /// Python 2's `str` is text where it reads as text, bytes elsewhere.
    fn push_python2_str(&mut self, bytes: &[u8]) -> Step<()> {
        if std::str::from_utf8(bytes).is_ok() {
            let span = self.store_text(bytes)?;
            return self.push(Node::Str(span));
        }
        let span = self.store_bytes(bytes)?;
        self.push(Node::Bytes(span))
    }

    fn spend(&mut self, count: u64) -> Step<()> {
        let left = self.available - self.position;
        if count > left {
            return Err(format!("{count} bytes are asked for where {left} are left: the file is cut short or damaged"));
        }
        if self.position + count > self.limits.bytes {
            return Err(format!("longer than {} MiB", self.limits.bytes >> 20));
        }
        self.position += count;
        Ok(())
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        self.spend(N as u64)?;
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|e| format!("cannot read: {e}"))?;
        Ok(bytes)
    }

    fn length4(&mut self) -> Step<u64> {
        Ok(u32::from_le_bytes(self.array()?).into())
    }

    /// Moves `length` bytes of the stream to the document's bytes.
    fn take(&mut self, length: u64) -> Step<Span> {
        self.spend(length)?;
        let start = self.document.bytes.len();
        let copied = self.input.take(length).read_to_end(&mut self.document.bytes);
        match copied {
            Ok(count) if count as u64 == length => {}
            Ok(_) => return Err("the file ends inside it".into()),
            Err(e) => return Err(format!("cannot read: {e}")),
        }
        span(start, self.document.bytes.len())
    }

    fn store_bytes(&mut self, bytes: &[u8]) -> Step<Span> {
        let start = self.document.bytes.len();
        self.document.bytes.extend_from_slice(bytes);
        span(start, self.document.bytes.len())
    }

    /// Adds text to the document, broken parts replaced.
    fn store_text(&mut self, bytes: &[u8]) -> Step<Span> {
        let start = self.document.text.len();
        self.document.text.push_str(&String::from_utf8_lossy(bytes));
        span(start, self.document.text.len())
    }

    fn line(&mut self) -> Step<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return Ok(line),
                byte if line.len() < MAX_LINE => line.push(byte),
                _ => return Err(format!("a line of more than {MAX_LINE} bytes")),
            }
        }
    }

    fn line_number(&mut self) -> Step<u32> {
        let line = self.line()?;
        let text = String::from_utf8_lossy(&line);
        text.trim().parse().map_err(|_| "a memo slot that is no number".into())
    }
}

fn span(start: usize, end: usize) -> Step<Span> {
    match (u32::try_from(start), u32::try_from(end)) {
        (Ok(start), Ok(end)) => Ok(Span { start, len: end - start }),
        _ => Err("more than 4 GiB of text".into()),
    }
}

fn pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    if !items.len().is_multiple_of(2) {
        return Err("a key without a value".into());
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// Python's `raw-unicode-escape`: `\uXXXX` and `\UXXXXXXXX`, everything else as it is.
fn unescape_unicode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let digits = match rest.as_bytes().get(1) {
            Some(b'u') => 4,
            Some(b'U') => 8,
            _ => 0,
        };
        let code = rest.get(2..2 + digits).filter(|_| digits > 0).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        match code.and_then(char::from_u32) {
            Some(c) => {
                out.push(c);
                rest = &rest[2 + digits..];
            }
            None => {
                out.push('\\');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Python 2's `repr` of a str: quotes off, the common escapes undone.
fn unquote(line: &[u8]) -> Option<Vec<u8>> {
    let line = line.trim_ascii();
    let quote = *line.first()?;
    if line.len() < 2 || !matches!(quote, b'\'' | b'"') || line.last() != Some(&quote) {
        return None;
    }
    let mut out = Vec::with_capacity(line.len());
    let mut bytes = line[1..line.len() - 1].iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match bytes.next()? {
            b'n' => out.push(b'\n'),
            b't' => out.push(b'\t'),
            b'r' => out.push(b'\r'),
            b'x' => {
                let hex = [bytes.next()?, bytes.next()?];
                out.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
            }
            other => out.push(other),
        }
    }
    Some(out)
}
