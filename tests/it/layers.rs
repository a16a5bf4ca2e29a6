//! The architecture as a test: modules are layers, and imports point down (docs/architecture.md).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Module, and the modules it may name.
const LAYERS: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("backoff", &[]),
    ("text", &[]),
    ("trace", &[]),
    ("conn", &["backoff", "clock"]),
    ("wire", &["clock"]),
    ("canvas", &["wire"]),
    ("broker", &["wire", "conn", "clock", "backoff"]),
    ("backend", &["wire", "conn", "clock"]),
    (
        "client",
        &["broker", "backend", "canvas", "wire", "conn", "clock", "trace"],
    ),
    ("task", &["client", "canvas", "wire", "clock", "backoff", "trace"]),
    // Behind the feature of that name.
    ("rusty_celery", &["task", "clock"]),
    (
        "worker",
        &[
            "task", "client", "broker", "backend", "canvas", "wire", "conn", "clock", "backoff", "trace",
        ],
    ),
    ("beat", &["client", "broker", "wire", "conn", "clock"]),
    ("ai", &["task", "wire", "conn", "clock", "backoff", "text", "trace"]),
    (
        "config",
        &[
            "ai", "beat", "worker", "broker", "backend", "client", "canvas", "wire", "conn", "text",
        ],
    ),
    (
        "cli",
        &[
            "config", "ai", "beat", "worker", "task", "client", "broker", "backend", "wire", "conn", "clock", "text",
            "trace",
        ],
    ),
    ("bin", &["cli"]),
];

#[test]
fn imports_point_down() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for file in rust_files(&source) {
        let relative = file.strip_prefix(&source).unwrap();
        let module = relative
            .iter()
            .next()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs")
            .to_owned();
        if module == "lib" {
            continue;
        }
        let (_, allowed) = LAYERS
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("{module} has no layer"));
        seen.insert(module.clone());
        let text = std::fs::read_to_string(&file).unwrap();
        for (at, line) in text.lines().enumerate() {
            for path in line.split("crate::").skip(1) {
                let target: String = path
                    .chars()
                    .take_while(|char| char.is_alphanumeric() || *char == '_')
                    .collect();
                if target != module && !allowed.contains(&target.as_str()) && !target.is_empty() {
                    wrong.push(format!("{}:{}: {module} names {target}", relative.display(), at + 1));
                }
            }
            for group in line.split("use crate::{").skip(1) {
                for name in group.split(',').map(|name| {
                    name.split("::")
                        .next()
                        .unwrap_or_default()
                        .trim_matches([' ', '}', ';'])
                }) {
                    if !name.is_empty()
                        && name != module
                        && !allowed.contains(&name)
                        && LAYERS.iter().any(|(known, _)| *known == name)
                    {
                        wrong.push(format!("{}:{}: {module} names {name}", relative.display(), at + 1));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen.len(), LAYERS.len(), "a layer has no files");
}

#[test]
fn only_one_place_reads_the_clock_and_one_starts_tasks() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rules: &[(&str, &[&str])] = &[
        ("SystemTime::now", &["clock.rs"]),
        ("Instant::now", &["clock.rs"]),
        ("jiff::Timestamp::now", &["clock.rs"]),
        ("reqwest::", &["ai/ollama/http.rs", "ai/steps/http_request.rs"]),
        ("saphyr_parser::", &["ai/template/yaml.rs", "wire/yaml.rs"]),
        ("tokio::signal", &["cli/batch/run.rs", "cli/signals.rs", "cli/up.rs"]),
    ];
    for file in rust_files(&source) {
        let text = std::fs::read_to_string(&file).unwrap();
        let relative = file.strip_prefix(&source).unwrap().display().to_string();
        for (word, places) in rules {
            assert!(
                places.contains(&relative.as_str()) || !text.contains(word),
                "{relative} uses {word}"
            );
        }
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
    files
}
