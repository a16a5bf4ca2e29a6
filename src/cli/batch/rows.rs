//! Rows of a batch: JSON lines, or CSV with a head.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use serde_json::{Map, Value};

/// The longest line that is read: a message could not carry more either.
const LONGEST: u64 = 64 << 20;

/// The rows of a file, one at a time.
///
/// # Errors
/// A line, with its number, that is no row: an object or a list of JSON.
pub(super) fn rows(
    path: &Path,
    json_columns: &[String],
) -> Result<Box<dyn Iterator<Item = Result<Value, String>> + Send>, String> {
    let shown = path.display().to_string();
    let file = File::open(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    if path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("csv"))
    {
        return table(file, shown, json_columns);
    }
    if !json_columns.is_empty() {
        return Err("--json-column is for CSV; a file of JSON lines has types already".into());
    }
    let mut reader = BufReader::new(file);
    let mut number = 0_u64;
    Ok(Box::new(std::iter::from_fn(move || {
        loop {
            number += 1;
            let mut line = Vec::new();
            match reader.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(length) if length as u64 == LONGEST && line.last() != Some(&b'\n') => {
                    return Some(Err(format!(
                        "{shown}:{number}: the line is longer than a message may be"
                    )));
                }
                Ok(_) if line.trim_ascii().is_empty() => {}
                Ok(_) => return Some(row(&line).map_err(|error| format!("{shown}:{number}: {error}"))),
                Err(error) => return Some(Err(format!("cannot read {shown}: {error}"))),
            }
        }
    })))
}

fn row(line: &[u8]) -> Result<Value, String> {
    match serde_json::from_slice(line) {
        Ok(value @ (Value::Object(_) | Value::Array(_))) => Ok(value),
        Ok(_) => Err("a row is an object (arguments by name) or a list (in order)".into()),
        Err(error) => Err(format!("not JSON: {error}")),
    }
}

/// A cell is a text: whether `007` is a number only its author knows. Columns that are named hold JSON.
fn table(
    file: File,
    shown: String,
    json_columns: &[String],
) -> Result<Box<dyn Iterator<Item = Result<Value, String>> + Send>, String> {
    let mut reader = csv::Reader::from_reader(file);
    let head = reader.headers().map_err(|error| format!("{shown}: {error}"))?.clone();
    if let Some(missing) = json_columns
        .iter()
        .find(|name| !head.iter().any(|column| column == *name))
    {
        return Err(format!("{shown}: there is no column {missing:?}"));
    }
    let json_columns = json_columns.to_vec();
    Ok(Box::new(reader.into_records().map(move |record| {
        let record = record.map_err(|error| format!("{shown}: {error}"))?;
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |(name, text): (&str, &str)| {
            let value = if json_columns.iter().any(|column| column == name) {
                serde_json::from_str(text)
                    .map_err(|error| format!("{shown}:{line}: column {name:?}: not JSON: {error}"))?
            } else {
                Value::String(text.to_owned())
            };
            Ok((name.to_owned(), value))
        };
        let cells: Result<Map<String, Value>, String> = head.iter().zip(record.iter()).map(cell).collect();
        cells.map(Value::Object)
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str, json: &[&str]) -> Vec<Result<Value, String>> {
        let path = std::env::temp_dir().join(format!("{}-{name}", uuid::Uuid::new_v4()));
        std::fs::write(&path, text).unwrap();
        let json: Vec<String> = json.iter().map(|&name| name.to_owned()).collect();
        let found = rows(&path, &json).map(Iterator::collect);
        std::fs::remove_file(&path).unwrap();
        found.unwrap_or_else(|error| vec![Err(error)])
    }

    #[test]
    fn rows_are_json_lines_or_a_table_and_mistakes_have_their_line() {
        let found = read("a.jsonl", "{\"n\": 1}\n\n[2, \"x\"]\n5\nnonsense\n", &[]);
        assert_eq!(found[0], Ok(serde_json::json!({"n": 1})));
        assert_eq!(found[1], Ok(serde_json::json!([2, "x"])));
        assert!(
            found[2]
                .as_ref()
                .unwrap_err()
                .ends_with(":4: a row is an object (arguments by name) or a list (in order)")
        );
        assert!(found[3].as_ref().unwrap_err().contains(":5: not JSON: "));
        let found = read("a.csv", "zip,n\n007,5\n\"a,b\",x\n", &["n"]);
        assert_eq!(found[0], Ok(serde_json::json!({"zip": "007", "n": 5})));
        assert!(found[1].as_ref().unwrap_err().contains(":3: column \"n\": not JSON: "));
        assert!(
            read("b.csv", "a\n1\n", &["c"])[0]
                .as_ref()
                .unwrap_err()
                .ends_with("there is no column \"c\"")
        );
    }

    #[test]
    fn a_line_is_no_longer_than_a_message() {
        let path = std::env::temp_dir().join(format!("{}-long.jsonl", uuid::Uuid::new_v4()));
        // Nothing but zeros, which take no room on the disk.
        File::create(&path).unwrap().set_len(LONGEST + 1).unwrap();
        let first = rows(&path, &[]).unwrap().next().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(
            first
                .unwrap_err()
                .ends_with(":1: the line is longer than a message may be")
        );
    }
}
