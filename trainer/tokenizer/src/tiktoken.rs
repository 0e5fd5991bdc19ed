//! Tokenizers that a hub holds as a tiktoken file and a Python class: Kimi K2's and Hunyuan's. Of
//! tokens in the order of their ranks, the text of which two neighbours make the token of the
//! lowest rank is joined first; what is a token as it stands is not cut at all. Built as
//! transformers' TikTokenConverter does.

use std::path::Path;

use ahash::AHashMap;
use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, Tokenizer};

use crate::directory::{compose_text, read, split_then_bytes, QWEN2_SPLIT};
use crate::pipeline::Result;

/// As Kimi K2's tokenization_kimi.py has it.
pub const KIMI_SPLIT: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A class of such tokenizers: the file that belongs to it, and what its code says.
struct Kind {
    file: &'static str,
    class: &'static str,
    split: &'static str,
    nfc: bool,
    /// Ids are the lines' places, of lines that repeat a token the first; else those in the file.
    ids_by_line: bool,
    /// The special tokens behind the ranked ones, from the first free id.
    special: fn(first: u32) -> Vec<String>,
}

const KINDS: [Kind; 2] = [
    Kind {
        file: "tiktoken.model",
        class: "TikTokenTokenizer",
        split: KIMI_SPLIT,
        nfc: false,
        ids_by_line: false,
        special: |first| (first..first + 258).map(|id| format!("<|reserved_token_{id}|>")).collect(),
    },
    Kind {
        file: "hy.tiktoken",
        class: "HYTokenizer",
        split: QWEN2_SPLIT,
        nfc: true,
        ids_by_line: true,
        special: |_| {
            let named = ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"];
            let extra = (0..205).map(|i| format!("<|extra_{i}|>"));
            named.iter().map(|name| name.to_string()).chain(extra).collect()
        },
    },
];

/// The tokenizer of a directory without tokenizer.json; None if it has no such file either.
pub fn open(
    directory: &Path,
    class: &str,
    config: &Value,
    vocab_size: Option<u64>,
) -> Result<Option<Tokenizer>> {
    let Some(kind) = KINDS.iter().find(|kind| directory.join(kind.file).is_file()) else {
        return Ok(None);
    };
    let path = directory.join(kind.file);
    if class != kind.class {
        return Err(format!(
            "{} belongs to the class {class:?} of tokenizer_config.json, and only {:?} is known to read it; \
             save the tokenizer as tokenizer.json",
            path.display(),
            kind.class
        ));
    }
    let in_file = |error: String| format!("{}: {error}", path.display());
    let ranks = ranks_of(&read(&path)?, kind.ids_by_line).map_err(in_file)?;
    build(kind, ranks, config, vocab_size).map(Some).map_err(in_file)
}

fn ranks_of(bytes: &[u8], ids_by_line: bool) -> Result<AHashMap<Vec<u8>, u32>> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not valid UTF-8")?;
    let mut ranks = AHashMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fault = || format!("line {} is no token in base64 and its rank", number + 1);
        let (token, rank) = line.trim().split_once(' ').ok_or_else(fault)?;
        let token = base64::decode(token).map_err(|_| fault())?;
        let rank: u32 = rank.trim().parse().map_err(|_| fault())?;
        if token.is_empty() {
            return Err(fault());
        }
        let next = ranks.len() as u32;
        if ids_by_line {
            ranks.entry(token).or_insert(next);
        } else {
            ranks.insert(token, rank);
        }
    }
    if (0..=255u8).any(|byte| !ranks.contains_key(&vec![byte])) {
        return Err("lacks the token of some byte, so not every text can be written".into());
    }
    Ok(ranks)
}

fn build(
    kind: &Kind,
    ranks: AHashMap<Vec<u8>, u32>,
    config: &Value,
    vocab_size: Option<u64>,
) -> Result<Tokenizer> {
    let spelling = byte_spelling();
    let spell =
        |token: &[u8]| -> String { token.iter().map(|byte| spelling[*byte as usize]).collect() };
    let mut cuts: Vec<(u32, u32, u32, &[u8], &[u8])> = Vec::new();
    for (token, rank) in &ranks {
        for at in 1..token.len() {
            let (left, right) = token.split_at(at);
            if let (Some(first), Some(second)) = (ranks.get(left), ranks.get(right)) {
                cuts.push((*rank, *first, *second, left, right));
            }
        }
    }
    cuts.sort_unstable();
    let merges = cuts.iter().map(|(_, _, _, left, right)| (spell(left), spell(right))).collect();
    let mut vocab: AHashMap<String, u32> =
        ranks.iter().map(|(token, rank)| (spell(token), *rank)).collect();

    // Those that tokenizer_config.json names have that name; behind the model's last there is none.
    let first = ranks.len() as u32;
    let named = |id: u32| {
        config.get("added_tokens_decoder")?.get(id.to_string())?.get("content")?.as_str()
    };
    let mut unnamed = Vec::new();
    for (id, default) in (first..).zip((kind.special)(first)) {
        if vocab_size.is_some_and(|size| u64::from(id) >= size) {
            break;
        }
        match named(id) {
            Some(name) => {
                vocab.insert(name.to_string(), id);
            }
            None => {
                vocab.insert(default.clone(), id);
                unnamed.push(AddedToken::from(default, true).normalized(false));
            }
        }
    }
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(true)
        .build()
        .map_err(|e| e.to_string())?;
    let mut tokenizer = Tokenizer::new(model);
    if kind.nfc {
        compose_text(&mut tokenizer)?;
    }
    tokenizer.with_pre_tokenizer(Some(split_then_bytes(&[kind.split])?));
    tokenizer.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::default())));
    tokenizer.add_special_tokens(unnamed).map_err(|e| e.to_string())?;
    Ok(tokenizer)
}

/// GPT-2's spelling of bytes: printable Latin-1 as itself, the others from U+0100 on.
pub fn byte_spelling() -> [char; 256] {
    let mut spelling = ['\0'; 256];
    let mut next = 0x100u32;
    for byte in 0u8..=255 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        spelling[byte as usize] = if printable {
            byte as char
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or('\0')
        };
    }
    spelling
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_spelled_as_gpt2_does() {
        let spelling = byte_spelling();
        assert_eq!(spelling[b' ' as usize], '\u{120}');
        assert_eq!(spelling[b'\n' as usize], '\u{10A}');
        assert_eq!(spelling[0xAD], '\u{143}');
        assert_eq!(spelling[b'a' as usize], 'a');
    }
}
