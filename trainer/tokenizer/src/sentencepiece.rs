//! A tokenizer from SentencePiece's `tokenizer.model`, where a directory has no tokenizer.json:
//! Llama 2's, Mistral's and ERNIE 4.5's kind, pieces joined by the scores that their order implies.
//! Built as transformers does (`SentencePieceExtractor`, `build_tokenizer_from_spm_proto`).

use std::cmp::Ordering;
use std::path::Path;

use ahash::AHashMap;
use prost::Message;
use serde_json::json;
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, NormalizerWrapper, Tokenizer};

use crate::directory::{metaspace_decoder, read};
use crate::pipeline::Result;

const FILE: &str = "tokenizer.model";

const MODEL_TYPE_UNIGRAM: i32 = 1;
const MODEL_TYPE_BPE: i32 = 2;
const PIECE_CONTROL: i32 = 3;
const PIECE_USER_DEFINED: i32 = 4;

/// What is read of sentencepiece_model.proto (google/sentencepiece); the numbers are its fields'.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    eos_id: Option<i32>,
    #[prost(string, optional, tag = "45")]
    unk_piece: Option<String>,
    #[prost(string, optional, tag = "46")]
    bos_piece: Option<String>,
    #[prost(string, optional, tag = "47")]
    eos_piece: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
}

/// The tokenizer, and its special tokens by their keys.
pub struct Read {
    pub tokenizer: Tokenizer,
    pub special: Vec<(&'static str, String)>,
}

/// The tokenizer of a directory without tokenizer.json; None if it has no such file either. What a
/// class does with the text around the pieces is the caller's.
pub fn open(directory: &Path, class: &str) -> Result<Option<Read>> {
    let path = directory.join(FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let in_file = |error: String| format!("{}: {error}", path.display());
    let model = Model::decode(read(&path)?.as_slice())
        .map_err(|e| in_file(format!("is no SentencePiece model that can be read: {e}")))?;
    build(&model, class).map(Some).map_err(in_file)
}

fn build(model: &Model, class: &str) -> Result<Read> {
    let trainer = model.trainer.clone().unwrap_or_default();
    if model.pieces.is_empty() {
        return Err("is a SentencePiece model without pieces".into());
    }
    if trainer.model_type.unwrap_or(MODEL_TYPE_UNIGRAM) != MODEL_TYPE_BPE {
        return Err("is a SentencePiece model of another kind than BPE; save the tokenizer as \
                    tokenizer.json"
            .into());
    }
    let is_llama = class == "LlamaTokenizer";
    let normalizer = model.normalizer.clone().unwrap_or_default();
    // transformers leaves these out and the class's own code does not: nobody could say which is
    // meant.
    if !is_llama
        && (normalizer.add_dummy_prefix.unwrap_or(true)
            || normalizer.remove_extra_whitespaces.unwrap_or(true)
            || !normalizer.precompiled_charsmap.unwrap_or_default().is_empty()
            || !trainer.byte_fallback.unwrap_or(false))
    {
        return Err(format!(
            "belongs to the class {class:?} of tokenizer_config.json, which changes the text first \
             in ways that are not known; save the tokenizer as tokenizer.json"
        ));
    }

    let pieces: Vec<String> =
        model.pieces.iter().map(|piece| piece.piece.clone().unwrap_or_default()).collect();
    let vocab: AHashMap<String, u32> = pieces.iter().cloned().zip(0u32..).collect();
    let named = |id: Option<i32>, default_id: i32, piece: &Option<String>, default: &str| {
        (id.unwrap_or(default_id) >= 0).then(|| match piece.as_deref() {
            None | Some("") => default.to_string(),
            Some(piece) => piece.to_string(),
        })
    };
    let unk = named(trainer.unk_id, 0, &trainer.unk_piece, "<unk>");
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab, merges(&pieces, None))
        .fuse_unk(true)
        .byte_fallback(true);
    if let Some(unk) = &unk {
        builder = builder.unk_token(unk.clone());
    }
    let mut tokenizer = Tokenizer::new(builder.build().map_err(|e| e.to_string())?);
    let spaces: NormalizerWrapper = serde_json::from_value(
        json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}),
    )
    .map_err(|e| e.to_string())?;
    tokenizer.with_normalizer(Some(spaces)).map_err(|e| e.to_string())?;
    tokenizer.with_decoder(Some(metaspace_decoder(false)?));
    let marked = model.pieces.iter().zip(&pieces).filter_map(|(piece, text)| match piece.kind {
        Some(PIECE_CONTROL) => Some(AddedToken::from(text.as_str(), true).normalized(false)),
        Some(PIECE_USER_DEFINED) => Some(AddedToken::from(text.as_str(), false).normalized(false)),
        _ => None,
    });
    tokenizer.add_tokens(marked).map_err(|e| e.to_string())?;

    let special = [
        ("unk_token", unk),
        ("bos_token", named(trainer.bos_id, 1, &trainer.bos_piece, "<s>")),
        ("eos_token", named(trainer.eos_id, 2, &trainer.eos_piece, "</s>")),
    ];
    let special = special.into_iter().filter_map(|(key, token)| Some((key, token?))).collect();
    Ok(Read { tokenizer, special })
}

/// The merges that a vocabulary implies: every cut of a token into two tokens. With scores the best
/// comes first, then longer pieces first; without, the first token, then shorter pieces first.
/// (transformers' `generate_merges`, whose sort is stable.) scores: one a token, no NaN.
pub fn merges(tokens: &[String], scores: Option<&[f64]>) -> Vec<(String, String)> {
    struct Cut<'a> {
        left: &'a str,
        right: &'a str,
        left_length: usize,
        right_length: usize,
        id: usize,
    }
    // As a Python dict is filled: the first place in the order, the last value.
    let mut ids: AHashMap<&str, usize> = AHashMap::with_capacity(tokens.len());
    let mut order: Vec<&str> = Vec::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if ids.insert(token, id).is_none() {
            order.push(token);
        }
    }
    let mut cuts = Vec::new();
    for token in order {
        let id = ids[token];
        let length = token.chars().count();
        let first = cuts.len();
        for (left_length, (at, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                let right_length = length - left_length;
                cuts.push(Cut { left, right, left_length, right_length, id });
            }
        }
        cuts[first..].sort_by_key(|cut| (ids[cut.left], ids[cut.right]));
    }
    let lengths = |a: &Cut, b: &Cut| {
        a.left_length.cmp(&b.left_length).then(a.right_length.cmp(&b.right_length))
    };
    match scores {
        None => cuts.sort_by(|a, b| a.id.cmp(&b.id).then(lengths(a, b))),
        Some(scores) => cuts.sort_by(|a, b| {
            scores[b.id]
                .partial_cmp(&scores[a.id])
                .unwrap_or(Ordering::Equal)
                .then(lengths(b, a))
        }),
    }
    cuts.into_iter().map(|cut| (cut.left.to_string(), cut.right.to_string())).collect()
}
