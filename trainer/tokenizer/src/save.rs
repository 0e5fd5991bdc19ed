//! Writing a tokenizer so that transformers reads the same ids and the same chat template.

use std::fs;
use std::path::Path;

use crate::directory;
use crate::pipeline::{Origin, Pipeline, Result};

pub fn save(pipeline: &Pipeline, target: &Path) -> Result<()> {
    match &pipeline.origin {
        Origin::Directory(source) => copy(source, target),
        Origin::Made => write_all(pipeline, target),
    }
}

fn copy(source: &Path, target: &Path) -> Result<()> {
    for name in directory::FILES {
        let from = source.join(name);
        if !from.is_file() {
            continue;
        }
        let to = target.join(name);
        // Read and write, not fs::copy: a snapshot's read-only mode must not travel.
        let bytes = fs::read(&from).map_err(|e| format!("{} cannot be read: {e}", from.display()))?;
        write(&to, &bytes)?;
    }
    Ok(())
}

fn write_all(pipeline: &Pipeline, target: &Path) -> Result<()> {
    let pretty = |value: serde_json::Value| serde_json::to_string_pretty(&value).map_err(|e| e.to_string());
    write(&target.join("tokenizer.json"), pipeline.tokenizer_json()?.as_bytes())?;
    write(&target.join("tokenizer_config.json"), pretty(pipeline.tokenizer_config())?.as_bytes())?;
    write(
        &target.join("special_tokens_map.json"),
        pretty(pipeline.special_tokens_map())?.as_bytes(),
    )?;
    if let Some(template) = &pipeline.template {
        write(&target.join("chat_template.jinja"), template.source.as_bytes())?;
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|e| format!("{} cannot be written: {e}", path.display()))
}
