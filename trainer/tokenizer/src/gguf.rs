//! A tokenizer from the `tokenizer.*` metadata of a GGUF file, built as transformers builds it
//! (`from_pretrained(..., gguf_file=...)`), with one difference: a control token is matched whole
//! and keeps its own id however it is spelled. (transformers leaves out those that are not spelled
//! in the byte alphabet, such as DeepSeek's, and gives them new ids behind the embedding's end.)

use std::collections::BTreeMap;

use ahash::{AHashMap, AHashSet};
use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, Tokenizer};

use crate::directory::{metaspace, metaspace_decoder, split_then_bytes, QWEN2_SPLIT};
use crate::pipeline::{bos_eos_processor, ensure_special, Origin, Pipeline, Result};
use crate::sentencepiece::merges;
use crate::template::ChatTemplate;
use crate::tiktoken::{byte_spelling, KIMI_SPLIT};

const TOKEN_TYPE_CONTROL: i64 = 3;
const TOKEN_TYPE_USER_DEFINED: i64 = 4;

#[derive(Deserialize)]
struct Metadata {
    #[serde(rename = "tokenizer.ggml.model")]
    model: Option<String>,
    #[serde(rename = "tokenizer.ggml.pre")]
    pre: Option<String>,
    #[serde(rename = "tokenizer.ggml.tokens", default)]
    tokens: Vec<String>,
    #[serde(rename = "tokenizer.ggml.scores", default)]
    scores: Vec<f64>,
    #[serde(rename = "tokenizer.ggml.token_type", default)]
    token_type: Vec<i64>,
    #[serde(rename = "tokenizer.ggml.merges")]
    merges: Option<Vec<String>>,
    #[serde(rename = "tokenizer.ggml.bos_token_id")]
    bos_token_id: Option<u64>,
    #[serde(rename = "tokenizer.ggml.eos_token_id")]
    eos_token_id: Option<u64>,
    #[serde(rename = "tokenizer.ggml.unknown_token_id")]
    unk_token_id: Option<u64>,
    #[serde(rename = "tokenizer.ggml.padding_token_id")]
    pad_token_id: Option<u64>,
    #[serde(rename = "tokenizer.ggml.add_bos_token")]
    add_bos_token: Option<bool>,
    #[serde(rename = "tokenizer.ggml.add_eos_token")]
    add_eos_token: Option<bool>,
    #[serde(rename = "tokenizer.ggml.add_space_prefix")]
    add_space_prefix: Option<bool>,
    #[serde(rename = "tokenizer.chat_template")]
    chat_template: Option<String>,
}

pub fn open(metadata: &[u8]) -> Result<Pipeline> {
    let metadata: Metadata = serde_json::from_slice(metadata)
        .map_err(|e| format!("the tokenizer metadata of the GGUF file is malformed: {e}"))?;
    if metadata.tokens.is_empty() {
        return Err("the GGUF file has no tokenizer (tokenizer.ggml.tokens is missing)".into());
    }
    let kind = metadata.model.as_deref().unwrap_or("");
    let (mut tokenizer, defaults): (Tokenizer, &[&str]) = match kind {
        "gpt2" => (byte_level(&metadata)?, &["<|endoftext|>"]),
        "llama" => (sentencepiece(&metadata)?, &["<unk>", "<s>", "</s>"]),
        other => {
            return Err(format!(
                "the GGUF file's tokenizer is of the kind {other:?}; gpt2 and llama are supported"
            ))
        }
    };
    let defaults: Vec<String> = defaults.iter().map(|token| token.to_string()).collect();
    ensure_special(&mut tokenizer, &defaults)?;
    add_marked_tokens(&mut tokenizer, &metadata)?;

    let mut special = BTreeMap::new();
    for (key, id) in [
        ("bos_token", metadata.bos_token_id),
        ("eos_token", metadata.eos_token_id),
        ("unk_token", metadata.unk_token_id),
        ("pad_token", metadata.pad_token_id),
    ] {
        let Some(id) = id else { continue };
        let token = usize::try_from(id).ok().and_then(|id| metadata.tokens.get(id));
        let token = token.ok_or_else(|| {
            format!("the GGUF file's {key} has the id {id}, but there are {} tokens", metadata.tokens.len())
        })?;
        special.insert(key.to_string(), token.clone());
    }
    let names: Vec<String> = special.values().cloned().collect();
    ensure_special(&mut tokenizer, &names)?;

    // llama.cpp adds BOS to a sentencepiece vocabulary that does not say otherwise.
    let add_bos = metadata.add_bos_token.unwrap_or(kind == "llama");
    let add_eos = metadata.add_eos_token.unwrap_or(false);
    let processor = bos_eos_processor(
        &tokenizer,
        special.get("bos_token").filter(|_| add_bos),
        special.get("eos_token").filter(|_| add_eos),
    )?;
    tokenizer.with_post_processor(Some(processor));
    let template = metadata.chat_template.map(ChatTemplate::new).transpose()?;
    Pipeline::new(tokenizer, special, template, Origin::Made)
}

fn byte_level(metadata: &Metadata) -> Result<Tokenizer> {
    let spelling = byte_spelling();
    let alphabet: AHashSet<char> = spelling.iter().copied().collect();
    let mut vocab: AHashMap<String, u32> = AHashMap::with_capacity(metadata.tokens.len());
    for (id, token) in (0u32..).zip(&metadata.tokens) {
        let marked = matches!(
            metadata.token_type.get(id as usize),
            Some(&TOKEN_TYPE_CONTROL | &TOKEN_TYPE_USER_DEFINED)
        );
        if marked || token.chars().all(|c| alphabet.contains(&c)) {
            vocab.insert(token.clone(), id);
        } else {
            vocab.insert(token.bytes().map(|byte| spelling[byte as usize]).collect(), id);
        }
    }
    let merges = given_merges(metadata).unwrap_or_else(|| merges_by_score(metadata))?;
    let model = BPE::builder().vocab_and_merges(vocab, merges).build().map_err(bad_merges)?;
    let mut tokenizer = Tokenizer::new(model);
    match split_of(metadata.pre.as_deref().unwrap_or("")) {
        Some(patterns) => tokenizer.with_pre_tokenizer(Some(split_then_bytes(patterns)?)),
        None => tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true))),
    };
    tokenizer.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::default())));
    Ok(tokenizer)
}

fn sentencepiece(metadata: &Metadata) -> Result<Tokenizer> {
    let vocab: AHashMap<String, u32> = metadata.tokens.iter().cloned().zip(0u32..).collect();
    let merges = given_merges(metadata).unwrap_or_else(|| merges_by_score(metadata))?;
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .fuse_unk(true)
        .byte_fallback(true)
        .build()
        .map_err(bad_merges)?;
    let mut tokenizer = Tokenizer::new(model);
    let prefix_space = metadata.add_space_prefix.unwrap_or(true);
    tokenizer.with_pre_tokenizer(Some(metaspace(if prefix_space { "first" } else { "never" })?));
    tokenizer.with_decoder(Some(metaspace_decoder(prefix_space)?));
    Ok(tokenizer)
}

fn bad_merges(error: tokenizers::Error) -> String {
    format!("the GGUF file's merges do not fit its tokens: {error}")
}

fn given_merges(metadata: &Metadata) -> Option<Result<Vec<(String, String)>>> {
    let merges = metadata.merges.as_ref()?;
    let split = |merge: &String| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_string(), right.to_string())),
        None => Err(format!("the GGUF file has a merge without a space: {merge:?}")),
    };
    Some(merges.iter().map(split).collect())
}

fn merges_by_score(metadata: &Metadata) -> Result<Vec<(String, String)>> {
    let tokens = &metadata.tokens;
    if metadata.scores.len() != tokens.len() || metadata.scores.iter().any(|score| score.is_nan()) {
        return Err(format!(
            "the GGUF file has no merges and {} usable scores for its {} tokens",
            metadata.scores.len(),
            tokens.len()
        ));
    }
    Ok(merges(tokens, Some(&metadata.scores)))
}

fn add_marked_tokens(tokenizer: &mut Tokenizer, metadata: &Metadata) -> Result<()> {
    let marked = |wanted: i64| {
        metadata
            .tokens
            .iter()
            .zip(&metadata.token_type)
            .filter(move |(_, kind)| **kind == wanted)
            .map(|(token, _)| token.as_str())
    };
    let control: Vec<AddedToken> = marked(TOKEN_TYPE_CONTROL)
        .map(|token| AddedToken::from(token, true).normalized(false))
        .collect();
    tokenizer.add_special_tokens(control).map_err(|e| e.to_string())?;
    let user_defined: Vec<AddedToken> = marked(TOKEN_TYPE_USER_DEFINED)
        .map(|token| AddedToken::from(token, false).normalized(false))
        .collect();
    tokenizer.add_tokens(user_defined).map_err(|e| e.to_string())?;
    Ok(())
}

/// How text is cut into words before BPE: what `tokenizer.ggml.pre` calls it (the first name is the
/// one that is written), and the regular expressions, one after the other.
const SPLITS: [(&[&str], &[&str]); 6] = [
    (
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
          "jina-v5-nano", "dbrx", "smaug-bpe"],
        &[LLAMA3_SPLIT],
    ),
    (&["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "hunyuan"], &[QWEN2_SPLIT]),
    (&["deepseek-v3", "hunyuan-dense"], &DEEPSEEK3_SPLITS),
    (&["kimi-k2"], &[KIMI_SPLIT]),
    (&["tekken"], &[TEKKEN_SPLIT]),
    (&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O_SPLIT]),
];

/// None means GPT-2's way.
fn split_of(pre: &str) -> Option<&'static [&'static str]> {
    SPLITS.iter().find(|(names, _)| names.contains(&pre)).map(|(_, patterns)| *patterns)
}

/// The name of a tokenizer.json's regular expressions, in which a line's end may stand as it is.
pub fn name_of_split(patterns: &[String]) -> Option<&'static str> {
    let spelled: Vec<String> =
        patterns.iter().map(|one| one.replace('\r', "\\r").replace('\n', "\\n")).collect();
    let (names, _) = SPLITS.iter().find(|(_, known)| *known == spelled.as_slice())?;
    names.first().copied()
}

/// One after the other, as DeepSeek-V3's tokenizer.json has them.
const DEEPSEEK3_SPLITS: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN_SPLIT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O_SPLIT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
