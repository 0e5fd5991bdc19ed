//! Chat templates, rendered as transformers renders them: `trim_blocks`, `lstrip_blocks`, Python's
//! string methods, its `tojson`, `raise_exception`, `strftime_now`, loop controls, and
//! `{% generation %}` blocks whose place in the text comes out exactly.

use std::fmt::Write as _;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::Value as Json;

use crate::pipeline::Result;
use crate::python;

/// Instructions a template may execute: a bound for templates that loop without end.
const FUEL: u64 = 50_000_000;
const NAME: &str = "chat_template";
/// Unicode noncharacters: never in real text, and checked not to be in the messages.
const GENERATION_BEGIN: char = '\u{FDD0}';
const GENERATION_END: char = '\u{FDD1}';
const GENERATION_FILTER: &str = "offshoot_generation";

pub struct ChatTemplate {
    pub source: String,
    environment: Environment<'static>,
    has_generation_blocks: bool,
}

pub struct Rendering {
    pub text: String,
    pub spans: Vec<(usize, usize)>,
}

impl ChatTemplate {
    pub fn new(source: String) -> Result<Self> {
        let (prepared, has_generation_blocks) = replace_generation_tags(&source);
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(|out, _, value| {
            // Undefined prints as nothing, all else as Python's str() writes it.
            Ok(out.write_str(&python::str(value))?)
        });
        environment.add_filter("string", |value: minijinja::Value| python::str(&value));
        environment.add_filter("join", join);
        environment.add_filter(GENERATION_FILTER, |body: String| {
            format!("{GENERATION_BEGIN}{body}{GENERATION_END}")
        });
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", |message: String| -> std::result::Result<(), Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, prepared)
            .map_err(|e| format!("the chat template cannot be parsed: {}", sentence(&e)))?;
        Ok(Self { source, environment, has_generation_blocks })
    }

    pub fn has_generation_blocks(&self) -> bool {
        self.has_generation_blocks
    }

    /// `context`: messages, add_generation_prompt and the special tokens. tools and documents are
    /// none, as transformers passes them.
    pub fn render(&self, context: &Json) -> Result<Rendering> {
        let template = self.environment.get_template(NAME).map_err(|e| sentence(&e))?;
        let marked = template
            .render(minijinja::Value::from_serialize(context))
            .map_err(|e| format!("the chat template refused the messages: {}", sentence(&e)))?;
        if !self.has_generation_blocks {
            return Ok(Rendering { text: marked, spans: Vec::new() });
        }
        unmark(&marked)
    }
}

/// True if text could be taken for our own marks.
pub fn has_marks(text: &str) -> bool {
    text.contains([GENERATION_BEGIN, GENERATION_END])
}

fn unmark(marked: &str) -> Result<Rendering> {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut begin = None;
    for piece in marked.split_inclusive([GENERATION_BEGIN, GENERATION_END]) {
        let plain = piece.trim_end_matches([GENERATION_BEGIN, GENERATION_END]);
        text.push_str(plain);
        if piece.ends_with(GENERATION_BEGIN) {
            // A block inside a block: the outer one counts.
            begin = begin.or(Some(text.len()));
        } else if piece.ends_with(GENERATION_END) {
            match begin.take() {
                Some(begin) => spans.push((begin, text.len())),
                None => return Err("the chat template moves the text of its {% generation %} blocks, so their place cannot be found".into()),
            }
        }
    }
    if begin.is_some() {
        return Err("the chat template cuts the text of a {% generation %} block, so its place cannot be found".into());
    }
    Ok(Rendering { text, spans })
}

/// Writes `{% generation %}` as a filter block, which is a block tag too, so that whitespace control
/// and block trimming act on it in the same way. Comments, expressions and raw blocks stay as they
/// are.
fn replace_generation_tags(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut found = false;
    let mut raw = false;
    while let Some(position) = rest.find('{') {
        let (before, from) = rest.split_at(position);
        out.push_str(before);
        let close = match from.as_bytes().get(1) {
            Some(b'%') => "%}",
            Some(b'{') if !raw => "}}",
            Some(b'#') if !raw => "#}",
            _ => {
                out.push('{');
                rest = &from[1..];
                continue;
            }
        };
        let Some(length) = find_close(&from[2..], close) else {
            out.push_str(from);
            return (out, found);
        };
        let tag = &from[..2 + length + 2];
        rest = &from[tag.len()..];
        if close != "%}" {
            out.push_str(tag);
            continue;
        }
        let inner = &tag[2..tag.len() - 2];
        let word = inner.trim_matches(['-', '+']).trim();
        match word {
            "raw" => raw = true,
            "endraw" => raw = false,
            _ => {}
        }
        let replacement = match word {
            "generation" if !raw => Some(format!("filter {GENERATION_FILTER}")),
            "endgeneration" if !raw => Some("endfilter".to_string()),
            _ => None,
        };
        match replacement {
            Some(replacement) => {
                found = true;
                let left = if inner.starts_with(['-', '+']) { &inner[..1] } else { "" };
                let right = if inner.ends_with(['-', '+']) { &inner[inner.len() - 1..] } else { "" };
                let _ = write!(out, "{{%{left} {replacement} {right}%}}");
            }
            None => out.push_str(tag),
        }
    }
    out.push_str(rest);
    (out, found)
}

/// Where `close` stands outside string literals.
fn find_close(text: &str, close: &str) -> Option<usize> {
    if close == "#}" {
        return text.find(close);
    }
    let bytes = text.as_bytes();
    let mut quote = None;
    let mut i = 0;
    while i < bytes.len() {
        match quote {
            Some(_) if bytes[i] == b'\\' => i += 1,
            Some(q) if bytes[i] == q => quote = None,
            Some(_) => {}
            None if bytes[i] == b'\'' || bytes[i] == b'"' => quote = Some(bytes[i]),
            None if bytes[i..].starts_with(close.as_bytes()) => return Some(i),
            None => {}
        }
        i += 1;
    }
    None
}

fn join(
    value: minijinja::Value,
    separator: Option<String>,
    kwargs: Kwargs,
) -> std::result::Result<String, Error> {
    let attribute = kwargs.get::<Option<String>>("attribute")?;
    kwargs.assert_all_used()?;
    let mut parts = Vec::new();
    for item in value.try_iter()? {
        parts.push(match &attribute {
            Some(name) => python::str(&item.get_attr(name)?),
            None => python::str(&item),
        });
    }
    Ok(parts.join(separator.as_deref().unwrap_or("")))
}

fn tojson(value: minijinja::Value, kwargs: Kwargs) -> std::result::Result<String, Error> {
    let options = python::JsonOptions {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: kwargs.get::<Option<usize>>("indent")?,
        separators: kwargs.get::<Option<Vec<String>>>("separators")?,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let json = serde_json::to_value(&value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(python::dumps(&json, &options))
}

/// Local time, or SOURCE_DATE_EPOCH's if it is set, so that a rendering can be repeated on another
/// day.
fn strftime_now(format: String) -> std::result::Result<String, Error> {
    let fixed = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|s| s.parse::<i64>().ok());
    let mut text = String::new();
    let written = match fixed.and_then(|seconds| chrono::DateTime::from_timestamp(seconds, 0)) {
        Some(time) => write!(text, "{}", time.format(&format)),
        None => write!(text, "{}", chrono::Local::now().format(&format)),
    };
    written.map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {format:?} is no time format"))
    })?;
    Ok(text)
}

fn sentence(error: &Error) -> String {
    let mut text = match error.detail() {
        Some(detail) => detail.to_string(),
        None => error.kind().to_string(),
    };
    if let Some(line) = error.line() {
        let _ = write!(text, " (template line {line})");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_in_raw_blocks_comments_and_strings_stay() {
        let source = "{# {% generation %} #}{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}";
        assert_eq!(replace_generation_tags(source), (source.to_string(), false));
    }

    #[test]
    fn generation_tags_keep_their_whitespace_control() {
        let (prepared, found) = replace_generation_tags("a {%- generation -%} b {% endgeneration +%}");
        assert!(found);
        assert_eq!(prepared, "a {%- filter offshoot_generation -%} b {% endfilter +%}");
    }
}
