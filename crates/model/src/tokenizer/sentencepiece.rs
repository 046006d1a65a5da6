//! SentencePiece models: `tokenizer.model` of Llama 2, Mistral and Baichuan, and the same data in GGUF metadata.
//!
//! The file is a protobuf of pieces with scores. A BPE model repeatedly merges the two neighbours whose union has the
//! highest score. This is byte-pair merging, with the pieces sorted by score as its merge list.
//!
//! Layout: <https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>.

use std::collections::HashMap;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, NormalizerWrapper, Tokenizer};

/// The character that represents a space inside pieces.
const SPACE: &str = "\u{2581}";
/// The length in characters of the longest piece that is split in all possible ways to find its merges. sentencepiece
/// trains pieces of up to 16 characters.
const LONGEST: usize = 256;

/// How a text is cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bpe,
    Unigram,
}

/// The type of a piece, by the number that both file formats use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl PieceType {
    pub(crate) fn numbered(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// Where a space is inserted before text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prefix {
    Never,
    /// Before every text and after every special token, as sentencepiece does for each text that it gets.
    EveryText,
    /// The same, but not if there already is a space.
    EveryTextUnlessSpaced,
    /// Only at the very start, and not if there already is a space. This is the meaning of `legacy: false`.
    StartUnlessSpaced,
}

/// A vocabulary, and how to use it. The id of a piece is its position.
#[derive(Debug, PartialEq)]
pub(crate) struct Model {
    pub kind: Kind,
    pub pieces: Vec<(String, f32, PieceType)>,
    pub prefix: Prefix,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
}

impl Model {
    /// Reads a `tokenizer.model`. The error says what is wrong.
    pub(crate) fn parse(file: &[u8]) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let (mut trainer, mut normalizer): (&[u8], &[u8]) = (&[], &[]);
        for field in Fields(file) {
            match field? {
                (1, Field::Bytes(piece)) => pieces.push(read_piece(piece)?),
                (2, Field::Bytes(message)) => trainer = message,
                (3, Field::Bytes(message)) => normalizer = message,
                _ => {}
            }
        }
        let (mut kind, mut bos, mut eos) = (1, 1, 2);
        for field in Fields(trainer) {
            match field? {
                (3, Field::Number(number)) => kind = number,
                (41, Field::Number(id)) => bos = id,
                (42, Field::Number(id)) => eos = id,
                _ => {}
            }
        }
        let kind = match kind {
            1 => Kind::Unigram,
            2 => Kind::Bpe,
            other => return Err(format!("model type {other} is not supported (supported: 1 unigram, 2 BPE)")),
        };
        let (mut space_prefix, mut trims, mut rules) = (true, true, false);
        for field in Fields(normalizer) {
            match field? {
                (2, Field::Bytes(map)) => rules = !map.is_empty(),
                (3, Field::Number(flag)) => space_prefix = flag != 0,
                (4, Field::Number(flag)) => trims = flag != 0,
                _ => {}
            }
        }
        if rules || trims {
            return Err("it changes characters or drops spaces before cutting; only models that keep the text are \
                        supported"
                .to_owned());
        }
        // If the model does not have a token, its id is negative, which is a huge number here.
        let id = |id: u64| u32::try_from(id).ok().filter(|&id| (id as usize) < pieces.len());
        let (bos, eos) = (id(bos), id(eos));
        let prefix = if space_prefix { Prefix::EveryText } else { Prefix::Never };
        Ok(Self { kind, pieces, prefix, bos, eos })
    }

    /// The tokenizer. The error says what is wrong with the vocabulary.
    pub(crate) fn build(&self) -> Result<Tokenizer, String> {
        let of_type = |kind: PieceType| self.pieces.iter().filter(move |p| p.2 == kind).map(|p| p.0.as_str());
        let vocab: Vocab = self.pieces.iter().map(|piece| piece.0.clone()).zip(0u32..).collect();
        if vocab.len() != self.pieces.len() {
            return Err(format!("{} of {} pieces appear twice", self.pieces.len() - vocab.len(), self.pieces.len()));
        }
        let unknown = of_type(PieceType::Unknown).next().ok_or("no piece for what is unknown")?;
        let bytes = of_type(PieceType::Byte).count() == 256;
        let failed = |e: tokenizers::Error| e.to_string();
        let mut tokenizer = match self.kind {
            Kind::Bpe => {
                let merges = self.merges();
                let builder = BPE::builder().vocab_and_merges(vocab, merges).unk_token(unknown.to_owned());
                Tokenizer::new(builder.fuse_unk(true).byte_fallback(bytes).build().map_err(failed)?)
            }
            Kind::Unigram => {
                let scored = self.pieces.iter().map(|(piece, score, _)| (piece.clone(), f64::from(*score))).collect();
                let unknown = self.pieces.iter().position(|piece| piece.2 == PieceType::Unknown);
                Tokenizer::new(Unigram::from(scored, unknown, bytes).map_err(|e| e.to_string())?)
            }
        };
        let metaspace = |scheme| Metaspace::new('\u{2581}', scheme, false);
        let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
        let mut decoders: Vec<DecoderWrapper> =
            vec![Replace::new(SPACE, " ").map_err(failed)?.into(), ByteFallback::new().into(), Fuse::new().into()];
        match self.prefix {
            Prefix::Never => {}
            Prefix::EveryText => normalizers.push(Prepend::new(SPACE.to_owned()).into()),
            Prefix::EveryTextUnlessSpaced => {
                tokenizer.with_pre_tokenizer(Some(metaspace(PrependScheme::Always)));
            }
            Prefix::StartUnlessSpaced => {
                tokenizer.with_pre_tokenizer(Some(metaspace(PrependScheme::First)));
            }
        }
        if matches!(self.prefix, Prefix::Never | Prefix::EveryText) {
            normalizers.push(Replace::new(" ", SPACE).map_err(failed)?.into());
            tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(failed)?;
        }
        if self.prefix != Prefix::Never {
            decoders.push(Strip::new(' ', 1, 0).into());
        }
        tokenizer.with_decoder(Some(Decoders::new(decoders)));
        let special = of_type(PieceType::Control).chain([unknown]).map(|token| AddedToken::from(token, true));
        tokenizer.add_special_tokens(special).map_err(failed)?;
        let defined = of_type(PieceType::UserDefined).map(|token| AddedToken::from(token, false).normalized(false));
        tokenizer.add_tokens(defined).map_err(failed)?;
        Ok(tokenizer)
    }

    /// All ways to make a piece from two others. The pieces with the highest scores come first.
    fn merges(&self) -> Merges {
        let known: HashMap<&str, u32> = self.pieces.iter().map(|piece| piece.0.as_str()).zip(0u32..).collect();
        let mut scored: Vec<(f32, u32, &str, &str)> = Vec::new();
        for ((piece, score, _), id) in self.pieces.iter().zip(0u32..).filter(|(piece, _)| piece.2 == PieceType::Normal)
        {
            let cuts = piece.char_indices().skip(1).take(LONGEST).map(|(at, _)| piece.split_at(at));
            let halves = cuts.filter(|(left, right)| known.contains_key(left) && known.contains_key(right));
            scored.extend(halves.map(|(left, right)| (*score, id, left, right)));
        }
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        scored.into_iter().map(|(_, _, left, right)| (left.to_owned(), right.to_owned())).collect()
    }
}

fn read_piece(message: &[u8]) -> Result<(String, f32, PieceType), String> {
    let (mut text, mut score, mut kind) = (None, 0.0, PieceType::Normal);
    for field in Fields(message) {
        match field? {
            (1, Field::Bytes(piece)) => {
                text = Some(std::str::from_utf8(piece).map_err(|_| "a piece is not UTF-8")?.to_owned());
            }
            (2, Field::Fixed(bits)) => score = f32::from_bits(bits),
            (3, Field::Number(number)) => {
                kind = PieceType::numbered(number).ok_or_else(|| format!("unknown piece type {number}"))?;
            }
            _ => {}
        }
    }
    Ok((text.ok_or("a piece without text")?, score, kind))
}

/// One value of a protobuf message.
enum Field<'a> {
    Number(u64),
    Fixed(u32),
    Bytes(&'a [u8]),
}

/// The fields of a protobuf message, with their numbers. The iterator ends after the first error.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: u64) -> Result<&'a [u8], String> {
        let all = self.0;
        let bytes = usize::try_from(bytes).ok().filter(|&bytes| bytes <= all.len());
        let (taken, rest) = all.split_at(bytes.ok_or("it ends inside a field")?);
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number of over 64 bits".to_owned())
    }

    fn field(&mut self) -> Result<(u64, Field<'a>), String> {
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => Field::Bytes(self.take(8)?),
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Fixed(u32::from_le_bytes(self.take(4)?.try_into().expect("4 bytes were taken"))),
            other => return Err(format!("unknown wire type {other}")),
        };
        Ok((tag >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}
