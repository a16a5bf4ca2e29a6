//! What the pages say of themselves: figures that stand in two places are the same, headlines count right, links lead
//! somewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the README says, `{}` for a cell of the table in `docs/measurements.md`, and the row and column of that cell.
const FIGURES: &[(&str, &str, usize)] = &[
    ("answers its first task in {}", "start to first result", 1),
    ("takes {} when it is idle", "RSS when idle", 1),
    ("processes takes {} and", "start to first result", 2),
    ("and {} on the same machine", "RSS when idle", 2),
    ("drains {} times as many tasks", "with results", 3),
    ("1/{} of the worker's CPU", "with results", 4),
    ("1/{} of Redis'", "with results", 5),
    ("drains {} times as many. Those", "arguments of 100 kB", 3),
];

#[test]
fn the_figures_of_the_readme_are_those_of_the_table() {
    let readme = words(&page("README.md"));
    let table = page("docs/measurements.md");
    for (phrase, row, column) in FIGURES {
        let cells = table
            .lines()
            .map(cells)
            .find(|cells| cells.first() == Some(row))
            .unwrap_or_else(|| panic!("docs/measurements.md has no row {row:?}"));
        // A ratio behind two times stands in parentheses.
        let cell = cells[*column];
        let figure = cell
            .split_once('(')
            .map_or(cell, |(_, ratio)| ratio.trim_end_matches(')'));
        let said = phrase.replace("{}", figure);
        assert!(readme.contains(&said), "README.md does not say {said:?}");
    }
}

#[test]
fn the_compatibility_page_counts_its_rows_and_names_tests_that_exist() {
    let page = page("docs/compatibility.md");
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for row in page.lines().map(cells) {
        let [name, _, state, shown] = row[..] else { continue };
        if !name.starts_with("P-") && !name.starts_with("N-") {
            continue;
        }
        let state = ["done", "different on purpose", "not there"]
            .into_iter()
            .find(|known| state.starts_with(known))
            .unwrap_or_else(|| panic!("{name}: {state:?} is no state"));
        *states.entry(state).or_default() += 1;
        if name.starts_with("P-") {
            tests_exist(name, shown);
        }
    }
    let headline = format!(
        "in {} rows, and what orchestra does: {} done, {} different on purpose, {} not there.",
        states.values().sum::<usize>(),
        states["done"],
        states["different on purpose"],
        states["not there"]
    );
    assert!(words(&page).contains(&headline), "the page does not say {headline:?}");
}

/// Each limit has a test, and its settings are there.
#[test]
fn the_page_of_limits_names_settings_and_tests_that_exist() {
    let page = page("docs/limits.md");
    let mut limits = 0;
    for row in page.lines().map(cells) {
        let [limit, _, setting, _, test] = row[..] else {
            continue;
        };
        if limit == "limit" || limit.starts_with("---") {
            continue;
        }
        tests_exist(limit, test);
        let of_a_message = ["idempotency_period", "max_turns", "window"];
        for name in setting.split('`').skip(1).step_by(2) {
            let name = name.split('.').next().unwrap_or_default();
            let is_setting = orchestra::config::SETTINGS.iter().any(|setting| setting.name == name);
            assert!(
                is_setting || of_a_message.contains(&name),
                "{limit}: there is no setting {name}"
            );
        }
        assert!(
            setting.contains('`') || setting.starts_with("fixed"),
            "{limit}: {setting:?}"
        );
        limits += 1;
    }
    assert!(limits > 50, "{limits}");
    // A setting that is a limit by its name has a row.
    let is_limit = |name: &str| {
        ["_bytes", "_timeout", "_limit", "max_"]
            .iter()
            .any(|part| name.contains(part))
    };
    for setting in orchestra::config::SETTINGS
        .iter()
        .filter(|setting| is_limit(setting.name))
    {
        let is_listed = page.contains(&format!("`{}`", setting.name));
        assert!(
            is_listed || NO_SIZES.contains(&setting.name),
            "{} has no row",
            setting.name
        );
    }
}

/// Settings that sound like limits, and are no sizes of what comes from outside.
const NO_SIZES: &[&str] = &[
    "worker_soft_shutdown_timeout",
    "worker_disable_rate_limits",
    "task_acks_on_failure_or_timeout",
    "task_acks_on_timeout",
    "task_default_rate_limit",
    "result_chord_join_timeout",
    "beat_lock_timeout",
];

/// `it/cli` is `tests/it/cli.rs`, `src/wire/body` is `src/wire/body.rs`; behind it stand names of its tests.
fn tests_exist(row: &str, shown: &str) {
    let mut text = String::new();
    let mut tests = 0;
    for name in shown.split('`').skip(1).step_by(2) {
        if name.contains('/') {
            let path = name
                .strip_prefix("it/")
                .map_or(name.to_owned(), |it| format!("tests/it/{it}"));
            text = ["", "/mod", "/tests"]
                .iter()
                .filter_map(|end| std::fs::read_to_string(root().join(format!("{path}{end}.rs"))).ok())
                .collect();
        } else {
            assert!(text.contains(&format!("fn {name}(")), "{row}: there is no test {name}");
            tests += 1;
        }
    }
    assert!(tests > 0, "{row} names no test");
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut pages = vec![root().join("deploy/README.md"), root().join("python-client/README.md")];
    for folder in ["", "docs", "docs/decisions"] {
        let files = std::fs::read_dir(root().join(folder))
            .unwrap()
            .map(|file| file.unwrap().path());
        pages.extend(files.filter(|path| path.extension().is_some_and(|end| end == "md")));
    }
    let mut wrong = Vec::new();
    for from in pages {
        let text = std::fs::read_to_string(&from).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            if link.contains("://") {
                continue;
            }
            let to = if file.is_empty() {
                from.clone()
            } else {
                from.with_file_name(file)
            };
            let missing = !to.exists()
                || !anchor.is_empty() && !headings(&std::fs::read_to_string(&to).unwrap()).any(|it| it == anchor);
            if missing {
                wrong.push(format!("{}: {link}", from.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The anchors of a page, as GitHub makes them.
fn headings(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter(|line| line.starts_with('#')).map(|line| {
        line.trim_start_matches('#')
            .trim()
            .to_lowercase()
            .chars()
            .filter(|char| char.is_alphanumeric() || " -_".contains(*char))
            .map(|char| if char == ' ' { '-' } else { char })
            .collect()
    })
}

fn cells(line: &str) -> Vec<&str> {
    match line.strip_prefix("| ").and_then(|line| line.strip_suffix('|')) {
        Some(line) => line.split(" | ").map(str::trim).collect(),
        None => Vec::new(),
    }
}

/// The text with one blank between words, however its lines are broken.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}
