//! A tokenizer with all that goes with it: special tokens, chat template, and what is needed to
//! write it down again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{json, Map, Value};
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, PostProcessor, Tokenizer};

use crate::template::ChatTemplate;

pub type Result<T> = std::result::Result<T, String>;

/// The named special tokens that chat templates see, in transformers' order.
pub const SPECIAL_TOKEN_KEYS: [&str; 7] = [
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
];

/// Where a tokenizer came from decides how it is written down: files are copied; one that was made
/// here, of a GGUF file or a tiktoken file, is written as tokenizer.json.
pub enum Origin {
    Directory(PathBuf),
    Made,
}

pub struct Pipeline {
    /// Without post-processor, so that the offsets of `encode` are never trimmed.
    tokenizer: Tokenizer,
    post_processor: Option<PostProcessorWrapper>,
    pub special_tokens: BTreeMap<String, String>,
    pub template: Option<ChatTemplate>,
    pub origin: Origin,
    vocab_size: usize,
}

pub struct Encoded {
    pub ids: Vec<u32>,
    pub offsets: Vec<(usize, usize)>,
}

impl Pipeline {
    pub fn new(
        mut tokenizer: Tokenizer,
        special_tokens: BTreeMap<String, String>,
        template: Option<ChatTemplate>,
        origin: Origin,
    ) -> Result<Self> {
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        let post_processor = tokenizer.get_post_processor().cloned();
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        let vocab_size = tokenizer.get_vocab_size(true);
        Ok(Self { tokenizer, post_processor, special_tokens, template, origin, vocab_size })
    }

    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Encoded> {
        let plain = self.tokenizer.encode(text, false).map_err(|e| e.to_string())?;
        let (ids, offsets) = (plain.get_ids().to_vec(), plain.get_offsets().to_vec());
        let Some(post_processor) = self.post_processor.as_ref().filter(|_| add_special_tokens)
        else {
            return Ok(Encoded { ids, offsets });
        };
        // The post-processor adds tokens in front and behind and may trim offsets; the offsets wanted
        // are the untrimmed ones.
        let whole = post_processor.process(plain, None, true).map_err(|e| e.to_string())?;
        let mut untrimmed = offsets.into_iter();
        let offsets = whole
            .get_special_tokens_mask()
            .iter()
            .map(|&special| if special == 1 { (0, 0) } else { untrimmed.next().unwrap_or((0, 0)) })
            .collect();
        Ok(Encoded { ids: whole.get_ids().to_vec(), offsets })
    }

    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.tokenizer.decode(ids, skip_special_tokens).map_err(|e| e.to_string())
    }

    pub fn special_id(&self, key: &str) -> Option<u32> {
        self.special_tokens.get(key).and_then(|token| self.tokenizer.token_to_id(token))
    }

    /// Ids of all added tokens that are marked special.
    fn special_ids(&self) -> Vec<u32> {
        let added = self.tokenizer.get_added_tokens_decoder();
        let mut ids: Vec<u32> =
            added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    pub fn describe(&self) -> Value {
        json!({
            "bos_id": self.special_id("bos_token"),
            "eos_id": self.special_id("eos_token"),
            "pad_id": self.special_id("pad_token"),
            "vocab_size": self.vocab_size,
            "special_ids": self.special_ids(),
            "has_chat_template": self.template.is_some(),
            "has_generation_blocks":
                self.template.as_ref().is_some_and(ChatTemplate::has_generation_blocks),
        })
    }

    /// tokenizer.json's text, with the post-processor back in its place.
    pub fn tokenizer_json(&self) -> Result<String> {
        let text = self.tokenizer.to_string(false).map_err(|e| e.to_string())?;
        let mut document: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        document["post_processor"] =
            serde_json::to_value(&self.post_processor).map_err(|e| e.to_string())?;
        serde_json::to_string_pretty(&document).map_err(|e| e.to_string())
    }

    pub fn tokenizer_config(&self) -> Value {
        let mut config = Map::new();
        for (key, token) in &self.special_tokens {
            config.insert(key.clone(), json!(token));
        }
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        // Known to transformers 4 and 5 alike; it takes tokenizer.json as it stands.
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        Value::Object(config)
    }

    pub fn special_tokens_map(&self) -> Value {
        json!(self.special_tokens)
    }
}

/// Makes `tokens` special added tokens unless they already are; those outside the vocabulary are
/// left out, because a model has no embedding for them.
pub fn ensure_special(tokenizer: &mut Tokenizer, tokens: &[String]) -> Result<()> {
    let known = tokenizer.get_added_tokens_decoder();
    let missing: Vec<AddedToken> = tokens
        .iter()
        .filter(|token| !known.values().any(|added| &added.content == *token))
        .filter(|token| tokenizer.token_to_id(token).is_some())
        .map(|token| AddedToken::from(token.as_str(), true))
        .collect();
    tokenizer.add_special_tokens(missing).map_err(|e| e.to_string())?;
    Ok(())
}

/// The post-processor that transformers builds from `add_bos_token` and `add_eos_token`.
pub fn bos_eos_processor(
    tokenizer: &Tokenizer,
    bos: Option<&String>,
    eos: Option<&String>,
) -> Result<PostProcessorWrapper> {
    let mut single = Vec::new();
    let mut pair = Vec::new();
    let mut special = Map::new();
    let mut part = |token: &String, type_id: u32| -> Value {
        let id = tokenizer.token_to_id(token);
        special.insert(token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}));
        json!({"SpecialToken": {"id": token, "type_id": type_id}})
    };
    for (sequence, type_id) in [("A", 0), ("B", 1)] {
        let mut parts = Vec::new();
        if let Some(token) = bos.filter(|token| tokenizer.token_to_id(token).is_some()) {
            parts.push(part(token, type_id));
        }
        parts.push(json!({"Sequence": {"id": sequence, "type_id": type_id}}));
        if let Some(token) = eos.filter(|token| tokenizer.token_to_id(token).is_some()) {
            parts.push(part(token, type_id));
        }
        if type_id == 0 {
            single = parts.clone();
        }
        pair.extend(parts);
    }
    serde_json::from_value(json!({
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special,
    }))
    .map_err(|e| e.to_string())
}
