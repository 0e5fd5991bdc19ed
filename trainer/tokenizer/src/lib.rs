//! The C ABI of the tokenizer library; tokenizer.cc is its only caller.
//!
//! Every function that can fail returns false (or null) and fills `error` with a sentence. Buffers
//! belong to the caller, who gives them back to `offshoot_buffer_free`. No panic crosses the border.
//! A tokenizer may be used from several threads at once.

mod digest;
mod directory;
mod gguf;
mod pipeline;
mod python;
mod save;
mod sentencepiece;
mod template;
mod tiktoken;

use std::ffi::c_void;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;

use serde_json::{json, Value};

use pipeline::{Pipeline, Result};

/// Bytes owned by this library.
#[repr(C)]
pub struct Buffer {
    data: *mut u8,
    size: usize,
}

/// Bytes owned by the caller; data may be null if size is 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Slice {
    data: *const u8,
    size: usize,
}

impl Slice {
    /// # Safety
    /// data must point to size readable bytes for the time of the call.
    unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.size == 0 {
            return &[];
        }
        std::slice::from_raw_parts(self.data, self.size)
    }

    unsafe fn text<'a>(self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes())
            .map_err(|e| format!("the text is not valid UTF-8 at byte {}", e.valid_up_to()))
    }
}

unsafe fn put(out: *mut Buffer, bytes: Vec<u8>) {
    let boxed = bytes.into_boxed_slice();
    let size = boxed.len();
    *out = Buffer { data: Box::into_raw(boxed).cast(), size };
}

unsafe fn put_numbers<T>(out: *mut Buffer, numbers: &[T], encode: impl Fn(&T, &mut Vec<u8>)) {
    let mut bytes = Vec::with_capacity(std::mem::size_of_val(numbers));
    for number in numbers {
        encode(number, &mut bytes);
    }
    put(out, bytes);
}

/// Runs `body`; an error or a panic becomes the text of `error`.
unsafe fn guard<T>(error: *mut Buffer, body: impl FnOnce() -> Result<T>) -> Option<T> {
    let message = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => return Some(value),
        Ok(Err(message)) => message,
        Err(panic) => {
            let detail = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()))
                .unwrap_or_default();
            format!("the tokenizer library failed inside: {detail}")
        }
    };
    put(error, message.into_bytes());
    None
}

unsafe fn tokenizer<'a>(handle: *const c_void) -> &'a Pipeline {
    &*handle.cast::<Pipeline>()
}

fn boxed(pipeline: Pipeline) -> *mut c_void {
    Box::into_raw(Box::new(pipeline)).cast()
}

/// # Safety
/// `buffer` came from this library and is given back once.
#[no_mangle]
pub unsafe extern "C" fn offshoot_buffer_free(buffer: Buffer) {
    if !buffer.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(buffer.data, buffer.size)));
    }
}

/// # Safety
/// All pointers are valid for the time of the call.
#[no_mangle]
pub unsafe extern "C" fn offshoot_tokenizer_open(path: Slice, error: *mut Buffer) -> *mut c_void {
    guard(error, || directory::open(Path::new(path.text()?)).map(boxed))
        .unwrap_or(std::ptr::null_mut())
}

/// # Safety
/// As above. metadata: a JSON object with the `tokenizer.*` keys.
#[no_mangle]
pub unsafe extern "C" fn offshoot_tokenizer_from_gguf(
    metadata: Slice,
    error: *mut Buffer,
) -> *mut c_void {
    guard(error, || gguf::open(metadata.bytes()).map(boxed)).unwrap_or(std::ptr::null_mut())
}

/// # Safety
/// `handle` came from one of the two functions above and is given back once.
#[no_mangle]
pub unsafe extern "C" fn offshoot_tokenizer_free(handle: *mut c_void) {
    if !handle.is_null() {
        drop(Box::from_raw(handle.cast::<Pipeline>()));
    }
}

/// JSON: bos_id, eos_id, pad_id (or null), vocab_size, special_ids, has_chat_template, has_generation_blocks.
/// # Safety
/// As above.
#[no_mangle]
pub unsafe extern "C" fn offshoot_tokenizer_describe(handle: *const c_void, out: *mut Buffer) {
    put(out, tokenizer(handle).describe().to_string().into_bytes());
}

/// ids: uint32 each. offsets (may be null): begin and end of each token in the text, uint64 each.
/// # Safety
/// As above.
#[no_mangle]
pub unsafe extern "C" fn offshoot_tokenizer_encode(
    handle: *const c_void,
    text: Slice,
    add_special_tokens: bool,
    ids: *mut Buffer,
    offsets: *mut Buffer,
    error: *mut Buffer,
) -> bool {
    let encode = || tokenizer(handle).encode(text.text()?, add_special_tokens);
    let Some(encoded) = guard(error, encode) else { return false };
    put_numbers(ids, &encoded.ids, |id, bytes| bytes.extend(id.to_ne_bytes()));
    if !offsets.is_null() {
        put_numbers(offsets, &encoded.offsets, |(begin, end), bytes| {
            bytes.extend((*begin as u64).to_ne_bytes());
            bytes.extend((*end as u64).to_ne_bytes());
        });
    }
    true
}

/// # Safety
/// As above; ids points to count numbers.
#[no_mangle]
pub unsafe extern "C" fn offshoot_tokenizer_decode(
    handle: *const c_void,
    ids: *const u32,
    count: usize,
    skip_special_tokens: bool,
    text: *mut Buffer,
    error: *mut Buffer,
) -> bool {
    let ids = if count == 0 { &[] } else { std::slice::from_raw_parts(ids, count) };
    let decode = || tokenizer(handle).decode(ids, skip_special_tokens);
    let Some(decoded) = guard(error, decode) else { return false };
    put(text, decoded.into_bytes());
    true
}

/// messages: a JSON array. spans: begin and end of each `{% generation %}` block, uint64 each.
/// # Safety
/// As above.
#[no_mangle]
pub unsafe extern "C" fn offshoot_tokenizer_render(
    handle: *const c_void,
    messages: Slice,
    add_generation_prompt: bool,
    text: *mut Buffer,
    spans: *mut Buffer,
    error: *mut Buffer,
) -> bool {
    let render = || render(tokenizer(handle), messages.text()?, add_generation_prompt);
    let Some(rendering) = guard(error, render) else { return false };
    put(text, rendering.text.into_bytes());
    put_numbers(spans, &rendering.spans, |(begin, end), bytes| {
        bytes.extend((*begin as u64).to_ne_bytes());
        bytes.extend((*end as u64).to_ne_bytes());
    });
    true
}

fn render(pipeline: &Pipeline, messages: &str, generation: bool) -> Result<template::Rendering> {
    let template = pipeline
        .template
        .as_ref()
        .ok_or("the model has no chat template; give one in chat_template.jinja beside tokenizer.json")?;
    if template.has_generation_blocks() && template::has_marks(messages) {
        return Err("a message contains the Unicode noncharacter U+FDD0 or U+FDD1; remove it".into());
    }
    let mut messages: Vec<Value> =
        serde_json::from_str(messages).map_err(|e| format!("the messages are malformed: {e}"))?;
    messages.iter_mut().for_each(alias_reasoning);
    let mut context = json!({
        "messages": messages,
        "tools": null,
        "documents": null,
        "add_generation_prompt": generation,
    });
    for (key, token) in &pipeline.special_tokens {
        context[key] = json!(token);
    }
    template.render(&context)
}

/// transformers fills the names that templates read from the names that data sets use.
fn alias_reasoning(message: &mut Value) {
    let Some(fields) = message.as_object_mut() else { return };
    let reasoning = ["reasoning_content", "thinking", "reasoning"]
        .iter()
        .find_map(|key| fields.get(*key).filter(|value| !value.is_null()).cloned());
    if let Some(reasoning) = reasoning {
        // In the order of Python's {"thinking": ..., **message, "reasoning_content": ...}.
        let message = std::mem::take(fields);
        fields.insert("thinking".into(), reasoning.clone());
        fields.extend(message);
        fields.insert("reasoning_content".into(), reasoning);
    }
}

/// # Safety
/// As above.
#[no_mangle]
pub unsafe extern "C" fn offshoot_tokenizer_save(
    handle: *const c_void,
    directory: Slice,
    error: *mut Buffer,
) -> bool {
    guard(error, || save::save(tokenizer(handle), Path::new(directory.text()?))).is_some()
}

/// What tokenizer.json says, or would say.
/// # Safety
/// As above.
#[no_mangle]
pub unsafe extern "C" fn offshoot_tokenizer_json(
    handle: *const c_void,
    out: *mut Buffer,
    error: *mut Buffer,
) -> bool {
    let Some(text) = guard(error, || tokenizer(handle).tokenizer_json()) else { return false };
    put(out, text.into_bytes());
    true
}

/// The `tokenizer.ggml.pre` of regular expressions (a JSON array); empty if there is none.
/// # Safety
/// As above.
#[no_mangle]
pub unsafe extern "C" fn offshoot_gguf_split_name(
    patterns: Slice,
    out: *mut Buffer,
    error: *mut Buffer,
) -> bool {
    let name = || {
        let patterns: Vec<String> =
            serde_json::from_slice(patterns.bytes()).map_err(|e| e.to_string())?;
        Ok(gguf::name_of_split(&patterns).unwrap_or(""))
    };
    let Some(name) = guard(error, name) else { return false };
    put(out, name.as_bytes().to_vec());
    true
}

/// "sha256:<hex>" of the bytes.
/// # Safety
/// As above.
#[no_mangle]
pub unsafe extern "C" fn offshoot_sha256(data: Slice, out: *mut Buffer) {
    put(out, digest::of_bytes(data.bytes()).into_bytes());
}

/// # Safety
/// As above.
#[no_mangle]
pub unsafe extern "C" fn offshoot_sha256_of_file(
    path: Slice,
    out: *mut Buffer,
    error: *mut Buffer,
) -> bool {
    let Some(text) = guard(error, || digest::of_file(Path::new(path.text()?))) else { return false };
    put(out, text.into_bytes());
    true
}
