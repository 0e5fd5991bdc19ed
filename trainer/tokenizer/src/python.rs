//! Python's way of writing values, as JSON and as text, because chat templates were tuned on it.

use std::fmt::Write as _;

use minijinja::value::ValueKind;
use serde_json::Value;

#[derive(Default)]
pub struct JsonOptions {
    pub ensure_ascii: bool,
    pub indent: Option<usize>,
    pub separators: Option<Vec<String>>,
    pub sort_keys: bool,
}

/// `json.dumps(value, ...)`.
pub fn dumps(value: &Value, options: &JsonOptions) -> String {
    let default_item = if options.indent.is_some() { "," } else { ", " };
    let (item, key) = match options.separators.as_deref() {
        Some([item, key]) => (item.as_str(), key.as_str()),
        _ => (default_item, ": "),
    };
    let mut out = String::new();
    Writer { out: &mut out, options, item, key }.value(value, 0);
    out
}

struct Writer<'a> {
    out: &'a mut String,
    options: &'a JsonOptions,
    item: &'a str,
    key: &'a str,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(b) => self.out.push_str(if *b { "true" } else { "false" }),
            Value::Number(n) => self.out.push_str(&number(n)),
            Value::String(s) => self.string(s),
            Value::Array(items) if items.is_empty() => self.out.push_str("[]"),
            Value::Array(items) => {
                self.out.push('[');
                for (i, item) in items.iter().enumerate() {
                    self.separate(i, depth + 1);
                    self.value(item, depth + 1);
                }
                self.end(depth);
                self.out.push(']');
            }
            Value::Object(map) if map.is_empty() => self.out.push_str("{}"),
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.options.sort_keys {
                    entries.sort_by(|a, b| a.0.cmp(b.0));
                }
                self.out.push('{');
                for (i, (name, item)) in entries.into_iter().enumerate() {
                    self.separate(i, depth + 1);
                    self.string(name);
                    self.out.push_str(self.key);
                    self.value(item, depth + 1);
                }
                self.end(depth);
                self.out.push('}');
            }
        }
    }

    fn separate(&mut self, index: usize, depth: usize) {
        if index > 0 {
            self.out.push_str(self.item);
        }
        self.line(depth);
    }

    fn end(&mut self, depth: usize) {
        self.line(depth);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.options.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth)));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 => {
                    let _ = write!(self.out, "\\u{:04x}", c as u32);
                }
                c if self.options.ensure_ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

fn number(n: &serde_json::Number) -> String {
    match n.as_f64().filter(|_| n.is_f64()) {
        Some(f) => float(f),
        None => n.to_string(),
    }
}

/// As Python's repr: the shortest digits that read back, an exponent below 1e-4 and from 1e16 on.
fn float(f: f64) -> String {
    let magnitude = f.abs();
    if !f.is_finite() {
        return if f.is_nan() { "nan" } else if f > 0.0 { "inf" } else { "-inf" }.to_string();
    }
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{f:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let value: i32 = exponent.parse().unwrap_or(0);
        let sign = if value < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", value.abs());
    }
    let text = format!("{f}");
    if text.contains('.') {
        text
    } else {
        text + ".0"
    }
}

/// `str(value)`: what a template prints.
pub fn str(value: &minijinja::Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().unwrap_or_default().to_string(),
        _ => repr(value),
    }
}

/// `repr(value)`: what a template prints of what is inside a list or a dict.
fn repr(value: &minijinja::Value) -> String {
    let items = |value: &minijinja::Value| -> Vec<minijinja::Value> {
        value.try_iter().map(Iterator::collect).unwrap_or_default()
    };
    match value.kind() {
        ValueKind::Undefined => "Undefined".into(),
        ValueKind::None => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
        }
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            let parts: Vec<String> = items(value).iter().map(repr).collect();
            format!("[{}]", parts.join(", "))
        }
        ValueKind::Map => {
            let part = |key: minijinja::Value| {
                let item = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", repr(&key), repr(&item))
            };
            let parts: Vec<String> = items(value).into_iter().map(part).collect();
            format!("{{{}}}", parts.join(", "))
        }
        _ => value.to_string(),
    }
}

fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dumps_writes_as_python_does() {
        let value = json!({"b": [1, 2.0, 1e16, 1e-5, null, true], "a": "\u{1F600}\u{1}/\""});
        assert_eq!(
            dumps(&value, &JsonOptions::default()),
            "{\"b\": [1, 2.0, 1e+16, 1e-05, null, true], \"a\": \"\u{1F600}\\u0001/\\\"\"}"
        );
        let options = JsonOptions { indent: Some(2), sort_keys: true, ensure_ascii: true, ..Default::default() };
        assert_eq!(
            dumps(&json!({"b": [], "a": ["\u{1F600}"]}), &options),
            "{\n  \"a\": [\n    \"\\ud83d\\ude00\"\n  ],\n  \"b\": []\n}"
        );
    }
}
