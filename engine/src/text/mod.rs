//! Word pieces: texts as the numbers a BERT vocabulary gives them.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, TokenizerImpl};

use crate::batch::Texts;

/// The vocabulary of bert-base-uncased, 30,522 word pieces, one a line (Apache-2.0).
static BERT_BASE_UNCASED: &str = include_str!("../../assets/bert-base-uncased.txt");

/// A vocabulary longer than this is none.
const MAX_VOCABULARY: u64 = 64 << 20;

/// Fewer texts than this aren't worth handing to other threads.
const TEXTS_A_THREAD: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: cannot read: {error}", formats::show_path(path))]
    Io { path: PathBuf, error: std::io::Error },
    #[error("{}: not a WordPiece vocabulary: {reason}", formats::show_path(path))]
    Vocabulary { path: PathBuf, reason: String },
    #[error("a text length of {len} tokens has no room for [CLS] and [SEP]; at least 2 are needed")]
    TooShort { len: usize },
    /// Counted from 0.
    #[error("text {index}: {}", formats::show_name(reason))]
    Text { index: usize, reason: String },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// BERT's uncased tokenizer.
pub struct Tokenizer {
    inner: TokenizerImpl<
        WordPiece,
        BertNormalizer,
        BertPreTokenizer,
        BertProcessing,
        tokenizers::decoders::wordpiece::WordPiece,
    >,
    cls: i32,
    sep: i32,
}

impl Tokenizer {
    /// With the vocabulary of bert-base-uncased, which is part of the program.
    pub fn bert() -> Tokenizer {
        match Tokenizer::new(BERT_BASE_UNCASED) {
            Ok(tokenizer) => tokenizer,
            Err(reason) => unreachable!("the built-in vocabulary: {reason}"),
        }
    }

    /// With another vocabulary: a text file, one word piece a line, its number the line's, counted from 0. The first
    /// is `[PAD]`; `[UNK]`, `[CLS]` and `[SEP]` are among the others.
    pub fn from_vocab(path: impl AsRef<Path>) -> Result<Tokenizer> {
        let path = path.as_ref();
        let invalid = |reason: &str| Error::Vocabulary { path: path.into(), reason: reason.into() };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_VOCABULARY + 1).read_to_end(&mut bytes))
            .map_err(|error| Error::Io { path: path.into(), error })?;
        if bytes.len() as u64 > MAX_VOCABULARY {
            return Err(invalid(&format!("longer than {} MiB", MAX_VOCABULARY >> 20)));
        }
        let text = String::from_utf8(bytes).map_err(|_| invalid("not UTF-8"))?;
        Tokenizer::new(&text).map_err(|reason| invalid(&reason))
    }

    fn new(vocabulary: &str) -> Result<Tokenizer, String> {
        let pieces = WordPiece::read_bytes(vocabulary.as_bytes()).map_err(|error| error.to_string())?;
        let model = WordPiece::builder().vocab(pieces).build().map_err(|error| error.to_string())?;
        let mut inner = TokenizerImpl::new(model);
        // As HF's: a special token written out in a text is that token.
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
        let [pad, unk, cls, sep, _] = special.map(|name| inner.token_to_id(name));
        match (pad, unk, cls, sep) {
            (Some(0), Some(_), Some(cls), Some(sep)) => {
                let known = special.iter().filter(|name| inner.token_to_id(name).is_some());
                let known: Vec<AddedToken> = known.map(|&name| AddedToken::from(name, true)).collect();
                inner.add_special_tokens(&known);
                inner
                    .with_normalizer(Some(BertNormalizer::new(true, true, None, true)))
                    .with_pre_tokenizer(Some(BertPreTokenizer));
                Ok(Tokenizer { inner, cls: cls as i32, sep: sep as i32 })
            }
            (Some(0), ..) => Err("[UNK], [CLS] or [SEP] is missing".into()),
            _ => Err("its first line is not [PAD]".into()),
        }
    }

    /// Word pieces in the vocabulary, the special ones included.
    pub fn vocabulary_len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The texts as `[CLS] … [SEP]`, each exactly `len` long: padded with 0, or cut with `[SEP]` kept. As HF's
    /// `BertTokenizer`: lower case, accents stripped, Chinese characters apart.
    ///
    /// # Errors
    /// [`Error::TooShort`] when `len` is below 2.
    pub fn encode(&self, texts: &[impl AsRef<str> + Sync], len: usize) -> Result<Texts> {
        if len < 2 {
            return Err(Error::TooShort { len });
        }
        let mut ids = vec![0; texts.len() * len];
        let mut mask = vec![0; texts.len() * len];
        texts
            .par_iter()
            .zip(ids.par_chunks_exact_mut(len).zip(mask.par_chunks_exact_mut(len)))
            .with_min_len(TEXTS_A_THREAD)
            .enumerate()
            .try_for_each(|(index, (text, (ids, mask)))| {
                let encoding = self
                    .inner
                    .encode_fast(without_private_use(text.as_ref()), false)
                    .map_err(|error| Error::Text { index, reason: error.to_string() })?;
                let pieces = encoding.get_ids();
                let pieces = &pieces[..pieces.len().min(len - 2)];
                ids[0] = self.cls;
                for (id, &piece) in ids[1..].iter_mut().zip(pieces) {
                    *id = piece as i32;
                }
                ids[pieces.len() + 1] = self.sep;
                mask[..pieces.len() + 2].fill(1);
                Ok(())
            })?;
        Ok(Texts { count: texts.len(), len, ids, mask })
    }
}

/// The text without characters of private use and non-characters, which the Python tokenizer drops with the control
/// characters and the `tokenizers` crate turns into `[UNK]`.
fn without_private_use(text: &str) -> Cow<'_, str> {
    let is_private = |c: char| {
        matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{fdd0}'..='\u{fdef}' | '\u{f0000}'..)
            || u32::from(c) & 0xfffe == 0xfffe
    };
    if text.contains(is_private) { text.replace(is_private, "").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn bert() -> &'static Tokenizer {
        static BERT: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(Tokenizer::bert);
        &BERT
    }

    #[test]
    fn encodes_as_the_python_tokenizer() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/text/expected.json");
        let rows: Vec<(Value, usize, Vec<i32>)> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(rows.len() >= 200);
        let mut wrong = Vec::new();
        for (text, len, mut expected) in rows {
            let text = match text.as_str() {
                Some(text) => text.to_string(),
                None => text[0].as_str().unwrap().repeat(text[1].as_u64().unwrap() as usize),
            };
            let texts = bert().encode(&[&text], len).unwrap();
            let tokens = expected.len();
            expected.resize(len, 0);
            let mask: Vec<u8> = (0..len).map(|at| u8::from(at < tokens)).collect();
            assert_eq!((texts.count, texts.len, texts.ids.len()), (1, len, len));
            if texts.ids != expected || texts.mask != mask {
                wrong.push(format!("{text:?}\n  {:?}\n  {expected:?}", texts.ids));
            }
        }
        assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    }

    #[test]
    fn many_texts_keep_their_order() {
        let texts: Vec<String> = (0..500).map(|at| format!("number {at}")).collect();
        let together = bert().encode(&texts, 8).unwrap();
        assert_eq!((together.count, together.len, together.ids.len(), together.mask.len()), (500, 8, 4000, 4000));
        for at in [0, 17, 255, 499] {
            let alone = bert().encode(&texts[at..=at], 8).unwrap();
            assert_eq!(together.ids[at * 8..at * 8 + 8], alone.ids);
            assert_eq!(together.mask[at * 8..at * 8 + 8], alone.mask);
        }
        assert_eq!(bert().encode(&[""; 0], 8).unwrap(), Texts { count: 0, len: 8, ids: vec![], mask: vec![] });
    }

    #[test]
    fn lengths_below_two_are_refused() {
        for len in [0, 1] {
            assert!(matches!(bert().encode(&["a"], len), Err(Error::TooShort { len: wrong }) if wrong == len));
        }
        assert_eq!(bert().encode(&["a b c"], 2).unwrap().ids, [101, 102]);
        assert_eq!(bert().vocabulary_len(), 30_522);
    }

    #[test]
    fn other_vocabularies() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vocab.txt");
        let load = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Tokenizer::from_vocab(&path)
        };
        let small = load(b"[PAD]\n[UNK]\n[CLS]\n[SEP]\ncat\n##s\n").unwrap();
        assert_eq!(small.vocabulary_len(), 6);
        assert_eq!(small.encode(&["Cats [MASK] dog"], 10).unwrap().ids, [2, 4, 5, 1, 1, 1, 1, 3, 0, 0]);
        let refused = |bytes: &[u8]| load(bytes).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused(b"").ends_with("vocab.txt: not a WordPiece vocabulary: its first line is not [PAD]"));
        assert!(refused(b"[PAD]\n[UNK]\n[CLS]\n").ends_with("[UNK], [CLS] or [SEP] is missing"));
        assert!(refused(b"[PAD]\n\xff\n").ends_with("not UTF-8"));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(Tokenizer::from_vocab(&path), Err(Error::Io { .. })));
    }
}
