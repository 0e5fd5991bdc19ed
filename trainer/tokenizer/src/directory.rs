//! A tokenizer from a Hugging Face directory, built as transformers' AutoTokenizer builds it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{json, Value};
use tokenizers::models::ModelWrapper;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use crate::pipeline::{bos_eos_processor, ensure_special, Origin, Pipeline, Result, SPECIAL_TOKEN_KEYS};
use crate::sentencepiece;
use crate::template::ChatTemplate;
use crate::tiktoken;

/// Largest tokenizer.json or config that is read, in bytes; the largest known ones have 35 MB.
const MAX_FILE_BYTES: u64 = 512 << 20;

pub fn open(directory: &Path) -> Result<Pipeline> {
    let name = directory.display();
    let config = read_json(&directory.join("tokenizer_config.json"))?.unwrap_or(json!({}));
    let model_config = read_json(&directory.join("config.json"))?.unwrap_or(json!({}));
    let map = read_json(&directory.join("special_tokens_map.json"))?.unwrap_or(json!({}));

    let class = class_name(&config, &model_config);
    let path = directory.join("tokenizer.json");
    let vocab_size = model_config.get("vocab_size").and_then(Value::as_u64);
    let mut special = default_special_tokens(class);
    let (mut tokenizer, origin) = if path.is_file() {
        let tokenizer = Tokenizer::from_bytes(read(&path)?)
            .map_err(|e| format!("{} is no tokenizer that can be read: {e}", path.display()))?;
        (tokenizer, Origin::Directory(directory.to_path_buf()))
    } else if let Some(tokenizer) = tiktoken::open(directory, class, &config, vocab_size)? {
        (tokenizer, Origin::Made)
    } else if let Some(read) = sentencepiece::open(directory, class)? {
        special.extend(read.special.into_iter().map(|(key, token)| (key.to_string(), token)));
        (read.tokenizer, Origin::Made)
    } else {
        return Err(format!(
            "{name} has no tokenizer.json; save the tokenizer there with \
             AutoTokenizer.from_pretrained(...).save_pretrained(directory)"
        ));
    };
    let in_file = |error: String| format!("{name}: {error}");
    match class {
        "Qwen2Tokenizer" => as_qwen2(&mut tokenizer).map_err(in_file)?,
        "LlamaTokenizer" if !is_byte_level(&tokenizer) => {
            as_llama(&mut tokenizer, &config).map_err(in_file)?
        }
        _ => {}
    }
    add_decoder_tokens(&mut tokenizer, &config).map_err(in_file)?;

    for key in SPECIAL_TOKEN_KEYS {
        for source in [&map, &config] {
            match source.get(key) {
                Some(Value::Null) if source.get(key).is_some() => {
                    special.remove(key);
                }
                Some(value) => {
                    if let Some(token) = token_text(value) {
                        special.insert(key.to_string(), token);
                    }
                }
                None => {}
            }
        }
    }
    let names: Vec<String> = special.values().cloned().collect();
    ensure_special(&mut tokenizer, &names).map_err(in_file)?;

    let flag = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
    if config.get("add_bos_token").is_some()
        || config.get("add_eos_token").is_some()
        || tokenizer.get_post_processor().is_none()
    {
        let bos = special.get("bos_token").filter(|_| flag("add_bos_token"));
        let eos = special.get("eos_token").filter(|_| flag("add_eos_token"));
        let processor = bos_eos_processor(&tokenizer, bos, eos).map_err(in_file)?;
        tokenizer.with_post_processor(Some(processor));
    }
    let template = match template_source(directory, &config)? {
        Some(source) => Some(ChatTemplate::new(source).map_err(in_file)?),
        None => None,
    };
    Pipeline::new(tokenizer, special, template, origin)
}

/// The files that make up a tokenizer; those that exist are copied by `save`.
pub const FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

pub fn read(path: &Path) -> Result<Vec<u8>> {
    let fail = |e: std::io::Error| format!("{} cannot be read: {e}", path.display());
    let size = fs::metadata(path).map_err(fail)?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("{} has {size} bytes, more than any tokenizer file", path.display()));
    }
    fs::read(path).map_err(fail)
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let value: Value = serde_json::from_slice(&read(path)?)
        .map_err(|e| format!("{} is not valid JSON: {e}", path.display()))?;
    if !value.is_object() {
        return Err(format!("{} is not a JSON object", path.display()));
    }
    Ok(Some(value))
}

/// The class that AutoTokenizer would take, without "Fast". Some classes rebuild the pipeline from
/// the vocabulary; all others take tokenizer.json as it stands.
fn class_name<'a>(config: &'a Value, model_config: &Value) -> &'a str {
    let declared = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("");
    let declared = declared.strip_suffix("Fast").unwrap_or(declared);
    let model_type = model_config.get("model_type").and_then(Value::as_str).unwrap_or("");
    match (model_type, declared) {
        // transformers distrusts what such directories declare.
        ("qwen2", _) => "Qwen2Tokenizer",
        ("qwen3", "") => "Qwen2Tokenizer",
        _ => declared,
    }
}

fn is_byte_level(tokenizer: &Tokenizer) -> bool {
    let names_it = |value: serde_json::Result<Value>| {
        value.is_ok_and(|value| value.to_string().contains("\"ByteLevel\""))
    };
    names_it(serde_json::to_value(tokenizer.get_pre_tokenizer()))
        || names_it(serde_json::to_value(tokenizer.get_decoder()))
}

fn as_qwen2(tokenizer: &mut Tokenizer) -> Result<()> {
    compose_text(tokenizer)?;
    tokenizer.with_pre_tokenizer(Some(split_then_bytes(&[QWEN2_SPLIT])?));
    Ok(())
}

/// Llama 2's kind: pieces joined by U+2581, bytes as a fallback.
fn as_llama(tokenizer: &mut Tokenizer, config: &Value) -> Result<()> {
    let ModelWrapper::BPE(bpe) = tokenizer.get_model() else {
        return Ok(());
    };
    let mut bpe = bpe.clone();
    bpe.fuse_unk = true;
    bpe.byte_fallback = true;
    bpe.unk_token = None;
    bpe.dropout = None;
    tokenizer.with_model(bpe);
    tokenizer.with_normalizer(None::<NormalizerWrapper>).map_err(|e| e.to_string())?;
    let flag = |key: &str| config.get(key).and_then(Value::as_bool);
    let prefix_space = flag("add_prefix_space").unwrap_or(true);
    let scheme = match (prefix_space, flag("legacy").unwrap_or(false)) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    tokenizer.with_pre_tokenizer(Some(metaspace(scheme)?));
    tokenizer.with_decoder(Some(metaspace_decoder(prefix_space)?));
    Ok(())
}

/// Unicode's NFC before anything else.
pub fn compose_text(tokenizer: &mut Tokenizer) -> Result<()> {
    let normalizer: NormalizerWrapper =
        serde_json::from_value(json!({"type": "NFC"})).map_err(|e| e.to_string())?;
    tokenizer.with_normalizer(Some(normalizer)).map_err(|e| e.to_string())?;
    Ok(())
}

pub const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub fn split_then_bytes(patterns: &[&str]) -> Result<PreTokenizerWrapper> {
    let split = |pattern: &&str| {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
               "invert": false})
    };
    let mut steps: Vec<Value> = patterns.iter().map(split).collect();
    steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                      "use_regex": false}));
    serde_json::from_value(json!({"type": "Sequence", "pretokenizers": steps}))
        .map_err(|e| e.to_string())
}

pub fn metaspace(scheme: &str) -> Result<PreTokenizerWrapper> {
    serde_json::from_value(json!({
        "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false,
    }))
    .map_err(|e| e.to_string())
}

pub fn metaspace_decoder(strip: bool) -> Result<DecoderWrapper> {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if strip {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    serde_json::from_value(json!({"type": "Sequence", "decoders": decoders}))
        .map_err(|e| e.to_string())
}

/// Tokens that only tokenizer_config.json knows.
fn add_decoder_tokens(tokenizer: &mut Tokenizer, config: &Value) -> Result<()> {
    let Some(entries) = config.get("added_tokens_decoder").and_then(Value::as_object) else {
        return Ok(());
    };
    let mut tokens: Vec<(u64, AddedToken)> = Vec::new();
    for (id, entry) in entries {
        let (Ok(id), Some(content)) = (id.parse(), entry.get("content").and_then(Value::as_str))
        else {
            return Err("added_tokens_decoder of tokenizer_config.json has an entry that is no token".into());
        };
        let flag = |key: &str| entry.get(key).and_then(Value::as_bool).unwrap_or(false);
        tokens.push((
            id,
            AddedToken::from(content, flag("special"))
                .single_word(flag("single_word"))
                .lstrip(flag("lstrip"))
                .rstrip(flag("rstrip"))
                .normalized(flag("normalized")),
        ));
    }
    tokens.sort_by_key(|(id, _)| *id);
    tokenizer
        .add_tokens(tokens.into_iter().map(|(_, token)| token))
        .map_err(|e| e.to_string())?;
    Ok(())
}

fn default_special_tokens(class: &str) -> BTreeMap<String, String> {
    let pairs: &[(&str, &str)] = match class {
        "Qwen2Tokenizer" => &[
            ("unk_token", "<|endoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("pad_token", "<|endoftext|>"),
        ],
        "LlamaTokenizer" => {
            &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")]
        }
        _ => &[],
    };
    pairs.iter().map(|(key, token)| (key.to_string(), token.to_string())).collect()
}

fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content").and_then(Value::as_str)).map(str::to_string)
}

fn template_source(directory: &Path, config: &Value) -> Result<Option<String>> {
    let path = directory.join("chat_template.jinja");
    if path.is_file() {
        return String::from_utf8(read(&path)?)
            .map(Some)
            .map_err(|_| format!("{} is not valid UTF-8", path.display()));
    }
    let file = read_json(&directory.join("chat_template.json"))?;
    let value = match &file {
        Some(file) => file.get("chat_template"),
        None => config.get("chat_template"),
    };
    Ok(value.and_then(|value| match value {
        Value::String(source) => Some(source.clone()),
        // Several named templates: the default one is for chats without tools.
        Value::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template"))
            .and_then(Value::as_str)
            .map(str::to_string),
        _ => None,
    }))
}
