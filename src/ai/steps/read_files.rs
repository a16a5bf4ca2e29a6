//! `read_files`: files that the operator allows, as texts or base64.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::{Field, Fields, Stop, Type, Wrong, needed, text, value};
use crate::ai::site::Site;

pub(super) const TYPE: Type = Type {
    name: "read_files",
    about: "reads files in the folders of ai_read_paths",
    fields: FIELDS,
    check,
    is_local: false,
};

const FIELDS: &[Field] = &[
    needed(value(
        "files",
        "a path or a list of paths; the last part of a path may have *",
    )),
    text("as", "text (the default) or base64, for pictures"),
];

fn check(fields: &Map<String, Value>, _: &[&str]) -> Wrong {
    match fields.get("as").and_then(Value::as_str) {
        Some(kind) if !["text", "base64"].contains(&kind) => vec![("as", "must be text or base64".into())],
        _ => Vec::new(),
    }
}

pub(super) async fn run(mut fields: Fields, site: &Site<'_>) -> Result<Value, Stop> {
    let paths = fields.texts("files")?;
    let as_base64 = fields.text("as").as_deref() == Some("base64");
    let permits = site.engine.permits().clone();
    let own = site.workspace.existing().map(Path::to_owned);
    let read = crate::ai::site::blocking(move || read_all(&permits, &paths, own.as_deref(), as_base64)).await?;
    read.map_err(|text| Stop::failed("FileError", text))
}

fn read_all(
    permits: &crate::ai::Permits,
    paths: &[String],
    own: Option<&Path>,
    as_base64: bool,
) -> Result<Value, String> {
    let (largest, most) = (permits.sizes.file, permits.sizes.files);
    let all = largest.saturating_mul(4);
    let mut files = Vec::new();
    let mut size = 0;
    for path in paths {
        for path in expand(permits, path, own)? {
            let bytes = permits.read(&path, own, largest as u64)?;
            size += bytes.len();
            if size > all || files.len() >= most {
                return Err(format!(
                    "the files are more than {most} (ai_max_files), or larger than {all} bytes together \
                     (four times ai_max_file_bytes)"
                ));
            }
            let content = if as_base64 {
                STANDARD.encode(&bytes)
            } else {
                let wrong = |_| format!("{}: is no text in UTF-8; read it as: base64", path.display());
                String::from_utf8(bytes).map_err(wrong)?
            };
            files.push(json!({"path": path.display().to_string(), "content": content}));
        }
    }
    Ok(Value::Array(files))
}

/// The files that a pattern stands for.
fn expand(permits: &crate::ai::Permits, path: &str, own: Option<&Path>) -> Result<Vec<PathBuf>, String> {
    let whole = Path::new(path);
    let name = whole.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !name.contains('*') {
        return Ok(vec![whole.to_owned()]);
    }
    let folder = whole.parent().filter(|folder| !folder.as_os_str().is_empty());
    // What is in a folder is told of those alone that may be read.
    let folder = permits.folder(folder.unwrap_or(Path::new(".")), own)?;
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{path}: {error}"))?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|entry| entry.is_file())
        .filter(|entry| {
            entry
                .file_name()
                .and_then(|other| other.to_str())
                .is_some_and(|other| fits(name, other))
        })
        .take(permits.sizes.files.saturating_add(1))
        .collect();
    found.sort();
    if found.is_empty() {
        return Err(format!("{path}: no file fits"));
    }
    Ok(found)
}

/// Whether a name fits a pattern with `*`. Each part is looked for once, at its first place: what comes after it has
/// the most room there.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut name) = name.strip_prefix(start) else {
        return false;
    };
    for part in middle.split('*') {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn patterns_fit_names() {
        assert!(fits("*.txt", "a.txt") && fits("a*b*c", "aXbYc") && fits("*", ""));
        assert!(fits("ab*b", "abb") && fits("*a*a", "aa") && fits("a**b", "ab") && fits("*ß*", "größe"));
        assert!(!fits("*.txt", "a.md") && !fits("a*", "b") && !fits("ab*b", "ab") && !fits("*a*a", "a"));
        // In no time, where trying all places for each star would take longer than the world is old.
        let (pattern, name) = ("*a".repeat(60), "a".repeat(200));
        assert!(fits(&pattern, &name) && !fits(&format!("{pattern}b*"), &name));
    }
}
