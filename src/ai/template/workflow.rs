//! A template, understood: what a run needs, and nothing that could still be wrong.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::file::{TemplateFile, read};
use super::locate::{Place, line_of};
use super::node::{Node, Source};
use super::prompts::Prompts;
use super::scope::RESERVED;
use super::step::object;
use super::{Parameter, Problem, Scope, Step};
use crate::text::closest;

/// A template.
#[derive(Debug)]
pub struct Template {
    name: String,
    description: Option<String>,
    path: PathBuf,
    parameters: Vec<Parameter>,
    steps: Vec<Step>,
    output: Option<Node>,
    prompts: Prompts,
}

impl Template {
    /// Reads a template file and checks everything that can be checked without running it.
    ///
    /// # Errors
    /// All problems, with file and line.
    pub fn load(path: &Path) -> Result<Self, Vec<Problem>> {
        let (source, file) = read::<TemplateFile>(path)?;
        let at = |place: &[Place<'_>], text: String| Problem::at(path, &source, place, text);
        let mut problems = Vec::new();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let name = file.name.unwrap_or_else(|| stem.to_owned());
        if name.is_empty() || name.len() > 200 || name.chars().any(|char| char.is_control() || char.is_whitespace()) {
            problems.push(at(
                &["name".into()],
                format!("{name:?} cannot be the name of a template"),
            ));
        }
        let mut parameters = Vec::new();
        for (name, parameter) in file.parameters.0 {
            let place = ["parameters".into(), Place::Key(&name)];
            let line = line_of(&source, &place);
            let letters = |char: char| char.is_alphanumeric() || char == '_';
            if !name.chars().all(letters) || name.starts_with(|char: char| char.is_ascii_digit()) || name.is_empty() {
                problems.push(at(
                    &place,
                    format!("{name:?} cannot be the name of a parameter: letters, digits and _ only"),
                ));
            } else if RESERVED.contains(&name.as_str()) {
                problems.push(at(
                    &place,
                    format!("{name:?} is the name of something else in a template"),
                ));
            }
            match Parameter::new(name.clone(), line, parameter) {
                Ok(parameter) => parameters.push(parameter),
                Err(text) => problems.push(at(&place, format!("parameter {name:?}: {text}"))),
            }
        }
        if file.steps.is_empty() {
            problems.push(at(&["steps".into()], "a template needs at least one step".into()));
        }
        let mut steps: Vec<Step> = Vec::new();
        for (number, step) in file.steps.into_iter().enumerate() {
            match Step::new(&source, number, step) {
                Ok(step) if steps.iter().any(|other| other.id == step.id) => {
                    let place = ["steps".into(), number.into(), "id".into()];
                    problems.push(at(&place, format!("there are two steps with the id {:?}", step.id)));
                }
                Ok(step) => steps.push(step),
                Err((field, text)) => problems.push(at(&["steps".into(), number.into(), field.into()], text)),
            }
        }
        let output = file
            .output
            .map(|output| Node::new("output", line_of(&source, &["output".into()]), output));
        let mut prompts = Prompts::new(path.parent().unwrap_or(Path::new(".")), &mut problems);
        if problems.is_empty() {
            problems = check_texts(path, &mut prompts, &parameters, &steps, output.as_ref());
        }
        if problems.is_empty() {
            Ok(Self {
                name,
                description: file.description,
                path: path.to_owned(),
                parameters,
                steps,
                output,
                prompts,
            })
        } else {
            Err(problems)
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it does.
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its parameters, in the order of the file.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter()
    }

    /// The JSON Schema of its parameters.
    pub fn schema(&self) -> Value {
        let properties: Map<String, Value> = self
            .parameters
            .iter()
            .map(|one| (one.name.clone(), one.schema()))
            .collect();
        let required: Vec<&str> = self
            .parameters
            .iter()
            .filter(|one| one.required)
            .map(|one| one.name.as_str())
            .collect();
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    }

    /// Checks parameters and fills in defaults.
    ///
    /// # Errors
    /// Everything that is wrong with them, in one text that names file, line and parameter.
    pub fn check(&self, mut given: Map<String, Value>) -> Result<Map<String, Value>, String> {
        let mut wrong = self.check_some(&given).err().unwrap_or_default();
        for parameter in &self.parameters {
            match given.get(&parameter.name) {
                None if parameter.required => {
                    wrong.push(format!(
                        "{}: parameter {:?} is missing",
                        self.place(parameter),
                        parameter.name
                    ));
                }
                None | Some(Value::Null) => {
                    given.insert(parameter.name.clone(), parameter.default.clone());
                }
                Some(_) => {}
            }
        }
        if wrong.is_empty() {
            Ok(given)
        } else {
            Err(format!("template {:?}: {}", self.name, wrong.join("; ")))
        }
    }

    /// Checks those parameters that are given.
    pub(crate) fn check_some(&self, given: &Map<String, Value>) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        for (name, value) in given {
            match self.parameters.iter().find(|parameter| parameter.name == *name) {
                Some(parameter) => {
                    wrong.extend(
                        parameter
                            .check(value)
                            .err()
                            .map(|text| format!("{}: {text}", self.place(parameter))),
                    );
                }
                None => {
                    let names = || self.parameters.iter().map(|parameter| parameter.name.as_str());
                    let meant = closest(name, names()).map(|close| format!("; did you mean {close:?}?"));
                    wrong.push(format!(
                        "{}: there is no parameter {name:?}{}",
                        self.path.display(),
                        meant.unwrap_or_default()
                    ));
                }
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    fn place(&self, parameter: &Parameter) -> String {
        format!("{}:{}", self.path.display(), parameter.line)
    }

    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether a step is to run.
    pub(crate) fn wanted(&self, step: &Step, scope: &Scope) -> Result<bool, String> {
        match &step.when {
            None => Ok(true),
            Some(when) => self
                .prompts
                .evaluate(when, scope)
                .map(|value| value.is_true())
                .map_err(|error| self.error(when, error)),
        }
    }

    /// A text, rendered.
    pub(crate) fn text(&self, source: &Source, scope: &Scope) -> Result<String, String> {
        self.prompts
            .render(source, scope)
            .map_err(|error| self.error(source, error))
    }

    /// Fields of a request, rendered.
    pub(crate) fn fields(&self, fields: &[(String, Node)], scope: &Scope) -> Result<Map<String, Value>, String> {
        let rendered = fields
            .iter()
            .map(|(name, node)| Ok((name.clone(), self.value(node, scope)?)));
        rendered.collect::<Result<_, String>>().map(object)
    }

    /// The output, if the file names one.
    pub(crate) fn output(&self, scope: &Scope) -> Result<Option<Value>, String> {
        self.output.as_ref().map(|output| self.value(output, scope)).transpose()
    }

    /// What the texts of each step become; for `orchestra templates render`. Steps that need the answer of an earlier
    /// one say so.
    ///
    /// # Errors
    /// The parameters are wrong.
    pub fn preview(&self, params: Map<String, Value>) -> Result<Vec<(String, String)>, String> {
        let scope = Scope::new(self.check(params)?);
        let mut shown = Vec::new();
        for step in &self.steps {
            for (source, is_expression) in step.sources() {
                let rendered = if is_expression {
                    self.prompts.value(source, &scope).map(|value| value.to_string())
                } else {
                    self.prompts.render(source, &scope)
                };
                shown.push((
                    source.name.clone(),
                    rendered.unwrap_or_else(|(_, text)| format!("({text})")),
                ));
            }
        }
        Ok(shown)
    }

    fn value(&self, node: &Node, scope: &Scope) -> Result<Value, String> {
        Ok(match node {
            Node::Literal(value) => value.clone(),
            Node::Expression(source) => self
                .prompts
                .value(source, scope)
                .map_err(|error| self.error(source, error))?,
            Node::Text(source) => Value::String(self.text(source, scope)?),
            Node::List(items) => items
                .iter()
                .map(|item| self.value(item, scope))
                .collect::<Result<_, _>>()?,
            Node::Object(entries) => Value::Object(self.fields(entries, scope)?),
        })
    }

    fn error(&self, source: &Source, (line, text): (usize, String)) -> String {
        format!("{}:{line}: {}: {text}", self.path.display(), source.name)
    }
}

/// Adds all texts, and checks that what they read will be there.
fn check_texts(
    path: &Path,
    prompts: &mut Prompts,
    parameters: &[Parameter],
    steps: &[Step],
    output: Option<&Node>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let parameters: Vec<&str> = parameters.iter().map(|parameter| parameter.name.as_str()).collect();
    let mut check = |sources: Vec<(&Source, bool)>, earlier: &[&str]| {
        for (source, is_expression) in sources {
            let found = match prompts.add(source, is_expression) {
                Ok(read) => read
                    .iter()
                    .filter_map(|read| Some((source.line_of(read), unknown(read, &parameters, earlier)?)))
                    .collect(),
                Err(error) => vec![error],
            };
            let problem = |(line, text)| Problem::line(path, line, None, format!("{}: {text}", source.name));
            problems.extend(found.into_iter().map(problem));
        }
    };
    let ids: Vec<&str> = steps.iter().map(|step| step.id.as_str()).collect();
    for (at, step) in steps.iter().enumerate() {
        check(step.sources(), &ids[..at]);
    }
    let mut sources = Vec::new();
    output.inspect(|output| output.sources(&mut sources));
    check(sources, &ids);
    problems
}

/// What is wrong with a variable that a text reads, such as `words` or `steps.answer.text`.
fn unknown(read: &str, parameters: &[&str], earlier: &[&str]) -> Option<String> {
    let mut parts = read.split('.');
    let first = parts.next().unwrap_or_default();
    let (name, known, what) = match first {
        "params" => (parts.next()?, parameters, "parameter"),
        "steps" => (parts.next()?, earlier, "earlier step"),
        name => (name, parameters, "parameter"),
    };
    if known.contains(&name) {
        return None;
    }
    let meant = closest(name, known.iter().copied()).map(|close| format!("; did you mean {close:?}?"));
    Some(format!("there is no {what} {name:?}{}", meant.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::super::StepKind;
    use super::*;

    /// Writes a file of its own for each text, and reads it as a template.
    fn load(text: &str) -> Result<Template, String> {
        let folder = std::env::temp_dir().join(format!("orchestra-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("t.yaml");
        std::fs::write(&path, text).unwrap();
        let template = Template::load(&path).map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            lines.join("\n").replace(&format!("{}/", folder.display()), "")
        });
        std::fs::remove_dir_all(&folder).unwrap();
        template
    }

    const STEP: &str =
        "steps:\n- id: one\n  type: ollama_generate\n  model: m\n  prompt: |\n    Hello\n    {{ who }}\n";

    #[test]
    fn problems_are_told_with_their_line() {
        for (text, problem) in [
            ("steps: [", "t.yaml:2:1: did not find expected node content"),
            ("name: x\nstep: []\n", "t.yaml:2:1: unknown field `step`"),
            ("steps: []\n", "t.yaml:1: a template needs at least one step"),
            (STEP, "t.yaml:7: steps.one.prompt: there is no parameter \"who\""),
            (
                &format!("parameters:\n  whom: {{type: string}}\n{STEP}"),
                "did you mean \"whom\"?",
            ),
            (
                &STEP.replace("{{ who }}", "{{ who "),
                "t.yaml:7: steps.one.prompt: syntax error: ",
            ),
            (
                &STEP.replace("who", "steps.one.text"),
                "there is no earlier step \"one\"",
            ),
            (
                &STEP.replace("ollama_generate", "ollama_genrate"),
                "t.yaml:3: unknown type of step \"ollama_genrate\"; did you mean ollama_generate?",
            ),
            (
                &STEP.replace("  model: m\n", ""),
                "a step of type ollama_generate needs model",
            ),
            (
                &STEP.replace("model: m", "model: m\n  text: x"),
                "t.yaml:5: a step of type ollama_generate has no text",
            ),
            (
                &format!("parameters:\n  who: {{type: sting}}\n{STEP}"),
                "t.yaml:2: parameter \"who\": unknown type \"sting\"; did you mean string?",
            ),
            (
                &format!("parameters:\n  who:\n    type: integer\n    default: x\n{STEP}"),
                "t.yaml:2: parameter \"who\": its default does not fit",
            ),
            (
                &format!("parameters:\n  steps: {{}}\n{STEP}"),
                "t.yaml:2: \"steps\" is the name of something else",
            ),
            (
                &format!("parameters:\n  who: {{}}\n  who: {{}}\n{STEP}"),
                "\"who\" is there twice",
            ),
        ] {
            let found = load(text).unwrap_err();
            assert!(found.contains(problem), "{text}\nfound: {found}\nwanted: {problem}");
        }
    }

    #[test]
    fn parameters_are_checked_and_defaults_filled_in() {
        let text = format!(
            "parameters:\n  who:\n    type: string\n    max_length: 5\n  times:\n    type: integer\n    default: 2\n{STEP}"
        );
        let template = load(&text).unwrap();
        let check = |params: Value| template.check(params.as_object().unwrap().clone());
        assert_eq!(check(json!({"who": "a"})).unwrap()["times"], 2);
        let wrong = |params| check(params).unwrap_err();
        assert!(wrong(json!({})).ends_with("t.yaml:2: parameter \"who\" is missing"));
        assert!(wrong(json!({"who": 1})).contains("parameter \"who\": 1 is not of type \"string\""));
        let all = wrong(json!({"whom": "a", "times": "b"}));
        assert!(
            all.contains("did you mean \"who\"?")
                && all.contains("t.yaml:5: parameter \"times\"")
                && all.contains("\"who\" is missing"),
            "{all}"
        );
    }

    #[test]
    fn values_keep_their_types_and_texts_are_texts() {
        let text = "parameters:\n  n: {type: integer}\nsteps:\n- id: a\n  type: render\n  text: \"{{ n }}\"\noutput: {n: \"{{ n }}\", text: \"n={{ n }}\", list: [\"{{ n + 1 }}\"], step: \"{{ steps.a }}\"}\n";
        let template = load(text).unwrap();
        let mut scope = Scope::new(json!({"n": 3}).as_object().unwrap().clone());
        scope.finish("a", "3".into());
        let output = template.output(&scope).unwrap().unwrap();
        assert_eq!(output, json!({"n": 3, "text": "n=3", "list": [4], "step": "3"}));
    }

    #[test]
    fn a_text_without_end_is_stopped() {
        let text = "steps:\n- type: render\n  text: \"{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}\"\n";
        let template = load(text).unwrap();
        let StepKind::Render(source) = &template.steps()[0].kind else {
            panic!("a render step")
        };
        let error = template.text(source, &Scope::new(Map::new())).unwrap_err();
        assert!(error.contains("takes too long"), "{error}");
    }

    #[test]
    fn what_is_shipped_is_right() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let options = crate::ai::Options {
            templates: crate::ai::Folder::Named(root.join("templates")),
            tasks: crate::ai::Folder::Named(root.join("tasks")),
            ..crate::ai::Options::default()
        };
        let engine = crate::ai::Engine::load(&options).unwrap();
        assert!(engine.templates().count() >= 4);
    }
}
