//! `orchestra templates new`: a template and a first case to begin with.

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::program::{Common, Stopped, usage, world};

/// Writes a template and its first case.
#[derive(Debug, Args)]
pub(super) struct New {
    /// Name of the template
    name: String,
    /// What it is like
    #[arg(long, value_enum, default_value_t = Kind::Answer)]
    kind: Kind,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// A text from a model
    Answer,
    /// JSON that fits a schema
    Extract,
    /// A question about a long text, piece by piece
    Analyze,
}

const ANSWER: (&str, &str) = (
    "description: Say in one line what it does
parameters:
  text: {type: string, min_length: 1}
  model: {type: string, default: llama3.2}
steps:
  - id: answer
    type: ollama_generate
    model: \"{{ model }}\"
    prompt: |
      Say the following in other words:
      {{ text }}
output: \"{{ steps.answer.text | trim }}\"
",
    "cases:
  - name: says it
    params: {text: \"It rains.\"}
    answers: {answer: \"Rain is falling.\"}
    expect:
      contains: Rain
",
);

const EXTRACT: (&str, &str) = (
    "description: Find facts in a text
parameters:
  text: {type: string, min_length: 1}
  model: {type: string, default: llama3.2}
steps:
  - id: facts
    type: ollama_generate
    model: \"{{ model }}\"
    prompt: |
      Who and where? Answer as JSON with person and place.
      {{ text }}
    format:
      type: object
      properties:
        person: {type: string}
        place: {type: string}
      required: [person, place]
    options: {temperature: 0}
output: \"{{ steps.facts.json }}\"
",
    "cases:
  - name: finds both
    params: {text: \"Ada was born in London.\"}
    answers: {facts: {person: Ada, place: London}}
    expect:
      json: {$.person: Ada, $.place: London}
",
);

const ANALYZE: (&str, &str) = (
    "description: Answer a question about a long text
parameters:
  text: {type: string, min_length: 1}
  question: {type: string, min_length: 1}
  model: {type: string, default: llama3.2}
steps:
  - id: answer
    type: ollama_analyze
    model: \"{{ model }}\"
    input: \"{{ text }}\"
    prompt: \"What does this text say about: {{ question }} Answer briefly.\"
    window: 4096
output: \"{{ steps.answer.text }}\"
",
    "cases:
  - name: answers
    params: {text: \"The sky is blue.\", question: \"the sky?\"}
    answers: {answer: \"It is blue.\"}
    expect:
      contains: blue
",
);

impl New {
    pub(super) fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let letters = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.');
        if self.name.is_empty() || !self.name.chars().all(letters) || self.name.starts_with('.') {
            return Err(usage(format!("{:?} cannot be the name of a template", self.name)));
        }
        let (template, cases) = match self.kind {
            Kind::Answer => ANSWER,
            Kind::Extract => EXTRACT,
            Kind::Analyze => ANALYZE,
        };
        let settings = common.settings()?;
        let folder = settings.ai.templates.path();
        std::fs::create_dir_all(folder).map_err(|error| world(format!("{}: {error}", folder.display())))?;
        write(&folder.join(format!("{}.yaml", self.name)), template)?;
        write(&folder.join(format!("{}.test.yaml", self.name)), cases)?;
        println!("try it: orchestra templates test {}", self.name);
        Ok(ExitCode::SUCCESS)
    }
}

fn write(path: &Path, text: &str) -> Result<(), Stopped> {
    let made =
        std::fs::File::create_new(path).and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
    made.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => usage(format!("{} is there already", path.display())),
        _ => world(format!("{}: {error}", path.display())),
    })?;
    println!("wrote {}", path.display());
    Ok(())
}
