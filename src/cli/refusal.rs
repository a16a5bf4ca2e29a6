//! A command line that is wrong, in one line that says what to do.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::out::end_unless;
use crate::text::closest;

/// Prints help, or one line that says what is wrong with the command line.
pub(super) fn refuse(program: &str, error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let printed = error.print();
        if !error.use_stderr() {
            end_unless(program, printed);
        }
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim);
    let first = lines.next().unwrap_or_default().trim_start_matches("error: ");
    let more = lines
        .by_ref()
        .take_while(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    // Its own idea of what is alike is a wide one: `--eta` is no `--result-backend`.
    let tip = lines
        .filter_map(|line| line.strip_prefix("tip: "))
        .find(|tip| !tip.contains("similar") && !tip.contains("'-- --"))
        .map(str::to_owned);
    let meant = meant(error).map(|meant| format!("did you mean '{meant}'"));
    let hint = meant.or(tip).map(|hint| format!("; {hint}")).unwrap_or_default();
    let space = if more.is_empty() { "" } else { " " };
    eprintln!("{program}: {first}{space}{more}{hint}; --help lists what there is");
    ExitCode::from(2)
}

/// What somebody probably wanted to write.
fn meant(error: &clap::Error) -> Option<&str> {
    use ContextKind::{InvalidArg, InvalidSubcommand, InvalidValue, SuggestedArg, SuggestedSubcommand, SuggestedValue};
    let kinds = [
        (InvalidSubcommand, SuggestedSubcommand),
        (InvalidValue, SuggestedValue),
        (InvalidArg, SuggestedArg),
    ];
    kinds.into_iter().find_map(|(wrong, suggested)| {
        let bare = |word: &'_ str| word.trim_start_matches('-').to_owned();
        let written = bare(words(error.get(wrong)?).first()?);
        let names = words(error.get(suggested)?);
        let bares: Vec<String> = names.iter().map(|name| bare(name)).collect();
        let close = closest(&written, bares.iter().map(String::as_str))?;
        names.into_iter().find(|name| bare(name) == close)
    })
}

fn words(value: &ContextValue) -> Vec<&str> {
    match value {
        ContextValue::String(word) => vec![word],
        ContextValue::Strings(words) => words.iter().map(String::as_str).collect(),
        _ => Vec::new(),
    }
}
