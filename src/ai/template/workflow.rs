//! A template, understood: what a run needs, and nothing that could still be wrong.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::fields::Fields;
use super::graph::ancestors;
use super::node::{Node, Source};
use super::problem::meant;
use super::prompts::{Prompts, Wrong};
use super::step::Read;
use super::yaml::{Data, Yaml};
use super::{Parameter, Problem, Problems, Scope, Step};
use crate::ai::TextLimits;
use crate::text::closest;

/// A template.
#[derive(Debug)]
pub struct Template {
    name: String,
    version: u64,
    content: String,
    description: Option<String>,
    path: PathBuf,
    parameters: Vec<Parameter>,
    steps: Vec<Step>,
    output: Option<Node>,
    returns: Option<(Value, jsonschema::Validator)>,
    prompts: Prompts,
}

impl Template {
    /// Reads a template file and checks everything that can be checked without running it.
    ///
    /// # Errors
    /// All problems, with file, line and column.
    pub fn load(path: &Path) -> Result<Self, Vec<Problem>> {
        Self::load_within(path, TextLimits::default())
    }

    /// The same; its texts are rendered within other bounds than the usual ones.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn load_within(path: &Path, limits: TextLimits) -> Result<Self, Vec<Problem>> {
        let mut problems = Problems::of(path);
        let template = Self::read(path, limits, &mut problems);
        match template {
            Some(template) if problems.is_empty() => Ok(template),
            _ => Err(problems.into_vec()),
        }
    }

    fn read(path: &Path, limits: TextLimits, problems: &mut Problems) -> Option<Self> {
        let whole = super::read(problems)?;
        let mut fields = Fields::of("a template", &whole, problems)?;
        let (name, version) = name_and_version(path, &mut fields, problems);
        let description = fields.text("description", problems);
        let parameters = fields
            .take("parameters")
            .map(|value| Parameter::read_all(value, problems));
        let parameters = parameters.unwrap_or_default();
        let steps = fields
            .need("steps", problems)
            .map(|value| read_steps(value, problems))
            .unwrap_or_default();
        let output = fields.take("output").map(|output| Node::new("output", output));
        let returns = fields.take("returns").and_then(|schema| read_returns(schema, problems));
        fields.finish(problems);
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut template = Self {
            name,
            version,
            content: String::new(),
            description,
            path: path.to_owned(),
            parameters,
            steps,
            output,
            returns,
            prompts: Prompts::new(folder, limits, problems),
        };
        template.check_texts(problems);
        template.sign();
        template.content = template.fingerprint(problems.source());
        Some(template)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its version; 1 if the file does not say.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What it is made of, in twelve hexadecimal digits: another one when its file or a shared part of it changes.
    pub fn content(&self) -> &str {
        &self.content
    }

    /// Name, version and content: `summarize@3 (9a1f…)`.
    pub fn title(&self) -> String {
        format!("{}@{} ({})", self.name, self.version, self.content)
    }

    fn fingerprint(&self, source: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(source);
        let parts = self.prompts.parts();
        let mut texts = vec![source];
        let mut seen = BTreeSet::new();
        while let Some(text) = texts.pop() {
            for (name, part) in parts.iter().filter(|(name, _)| text.contains(name.as_str())) {
                if seen.insert(name) {
                    texts.push(part);
                }
            }
        }
        for (name, part) in parts.iter().filter(|(name, _)| seen.contains(name)) {
            hash.update([0]);
            hash.update(name);
            hash.update([0]);
            hash.update(part);
        }
        let bytes = hash.finalize();
        bytes[..6].iter().map(|byte| format!("{byte:02x}")).collect()
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

    /// The JSON Schema of its output, if the file has one.
    pub fn returns(&self) -> Option<&Value> {
        self.returns.as_ref().map(|(schema, _)| schema)
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
            Err(format!("template {:?}: {}", self.name, crate::text::sentences(&wrong)))
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

    /// The model that a run asks first, where its parameters say it.
    pub(crate) fn first_model(&self, given: Map<String, Value>) -> Option<String> {
        let params = self.check(given).ok()?;
        let asks = self.steps.iter().find(|step| step.kind.name.starts_with("ollama"))?;
        let (_, node) = asks.fields.iter().find(|(name, _)| name == "model")?;
        match self.value(node, &Scope::new(&params)).ok()? {
            Value::String(model) if !model.is_empty() => Some(model),
            _ => None,
        }
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

    /// The fields of a step, rendered. What is nothing is not there.
    pub(crate) fn fields(&self, step: &Step, scope: &Scope) -> Result<Map<String, Value>, String> {
        let mut rendered = Map::new();
        for (name, node) in &step.fields {
            let value = match (self.value(node, scope)?, step.is_text(name)) {
                (Value::Null, _) => continue,
                (Value::String(text), true) => Value::String(text),
                // A prompt is a text even where it is one expression.
                (other, true) => Value::String(other.to_string()),
                (other, false) => other,
            };
            rendered.insert(name.clone(), value);
        }
        Ok(rendered)
    }

    /// The output, if the file names one.
    pub(crate) fn output(&self, scope: &Scope) -> Result<Option<Value>, String> {
        self.output.as_ref().map(|output| self.value(output, scope)).transpose()
    }

    /// What does not fit the schema of the output.
    pub(crate) fn misfits(&self, output: &Value) -> Vec<String> {
        let validator = self.returns.as_ref().map(|(_, validator)| validator);
        validator.map_or_else(Vec::new, |validator| crate::ai::schema::misfits(validator, output))
    }

    /// What the texts of each step become; for `orchestra templates render`. Steps that need the answer of an earlier
    /// one say so.
    ///
    /// # Errors
    /// The parameters are wrong.
    pub fn preview(&self, params: Map<String, Value>) -> Result<Vec<(String, String)>, String> {
        let scope = Scope::new(&self.check(params)?);
        let mut shown = Vec::new();
        for step in &self.steps {
            for (source, _) in step.sources() {
                let rendered = if source.is_expression {
                    self.prompts.value(source, &scope).map(|value| value.to_string())
                } else {
                    self.prompts.render(source, &scope)
                };
                shown.push((
                    source.name.clone(),
                    rendered.unwrap_or_else(|wrong| format!("({})", wrong.text)),
                ));
            }
        }
        Ok(shown)
    }

    /// A value with expressions in it, for a run.
    pub(crate) fn value(&self, node: &Node, scope: &Scope) -> Result<Value, String> {
        Ok(match node {
            Node::Literal(value) => value.clone(),
            Node::Expression(source) => self
                .prompts
                .value(source, scope)
                .map_err(|error| self.error(source, error))?,
            Node::Text(source) => Value::String(
                self.prompts
                    .render(source, scope)
                    .map_err(|error| self.error(source, error))?,
            ),
            Node::List(items) => items
                .iter()
                .map(|item| self.value(item, scope))
                .collect::<Result<_, _>>()?,
            Node::Object(entries) => {
                let entries = entries
                    .iter()
                    .map(|(name, node)| Ok((name.clone(), self.value(node, scope)?)));
                Value::Object(entries.collect::<Result<_, String>>()?)
            }
        })
    }

    fn error(&self, source: &Source, wrong: Wrong) -> String {
        format!(
            "{}:{}: {}: {}",
            self.path.display(),
            wrong.line,
            source.name,
            wrong.text
        )
    }

    /// Adds all texts, and checks that what they read will be there.
    fn check_texts(&mut self, problems: &mut Problems) {
        let parameters: Vec<&str> = self
            .parameters
            .iter()
            .map(|parameter| parameter.name.as_str())
            .collect();
        let ids: Vec<&str> = self.steps.iter().map(|step| step.id.as_str()).collect();
        let prompts = &mut self.prompts;
        let mut check = |source: &Source, known: &Known<'_>| {
            for read in prompts.add(source, problems) {
                let Some((what, hint)) = unknown(&read, known) else {
                    continue;
                };
                let variable = read.split('.').take(2).collect::<Vec<_>>().join(".");
                let place = source.place_of(if source.text.contains(&variable) {
                    &variable
                } else {
                    &read
                });
                source.tell(place, &what, hint, problems);
            }
        };
        for step in &self.steps {
            let earlier: Vec<&str> = step.after.iter().map(|number| ids[*number]).collect();
            for (source, in_loop) in step.sources() {
                let known = Known {
                    parameters: &parameters,
                    earlier: &earlier,
                    all: &ids,
                    in_loop,
                };
                check(source, &known);
            }
        }
        let known = Known {
            parameters: &parameters,
            earlier: &ids,
            all: &ids,
            in_loop: false,
        };
        let mut sources = Vec::new();
        self.output.iter().for_each(|output| output.sources(&mut sources));
        for source in sources {
            check(source, &known);
        }
    }

    /// Lets the digest of a step change with those before it and with the parts it may use.
    fn sign(&mut self) {
        let own: Vec<u64> = self.steps.iter().map(|step| step.digest).collect();
        let parts = self.prompts.parts();
        for step in &mut self.steps {
            let mut digest = DefaultHasher::new();
            step.digest.hash(&mut digest);
            for before in &step.after {
                own[*before].hash(&mut digest);
            }
            let mut sources = Vec::new();
            step.fields.iter().for_each(|(_, node)| node.sources(&mut sources));
            if sources.iter().any(|source| source.text.contains("{%")) {
                parts.hash(&mut digest);
            }
            step.digest = digest.finish();
        }
    }
}

/// Name and version: from the file, or from its name (`summarize@2.yaml`).
fn name_and_version(path: &Path, fields: &mut Fields<'_>, problems: &mut Problems) -> (String, u64) {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let (stem, in_name) = match stem.rsplit_once('@') {
        Some((name, version)) => match version.parse::<u64>() {
            Ok(version) if version > 0 => (name, Some(version)),
            _ => {
                let hint = Some("write NAME@2.yaml".to_owned());
                problems.add_with(fields.at(), format!("{version:?} is no version"), hint);
                (name, None)
            }
        },
        None => (stem, None),
    };
    let name = fields.text("name", problems).unwrap_or_else(|| stem.to_owned());
    let odd = |char: char| char.is_control() || char.is_whitespace() || char == '@';
    if name.is_empty() || name.len() > 200 || name.chars().any(odd) {
        problems.add(
            fields.place("name"),
            format!("{name:?} cannot be the name of a template"),
        );
    }
    let version = fields.whole("version", 1, problems);
    if let (Some(version), Some(in_name)) = (version, in_name)
        && version != in_name
    {
        let text = format!("version is {version}, and the name of the file says {in_name}");
        problems.add(fields.place("version"), text);
    }
    (name, version.or(in_name).unwrap_or(1))
}

fn read_steps(value: &Yaml, problems: &mut Problems) -> Vec<Step> {
    let Data::List(items) = &value.data else {
        problems.add(value.at, format!("steps must be a list, not {}", value.what()));
        return Vec::new();
    };
    if items.is_empty() {
        problems.add(value.at, "a template needs at least one step");
    }
    let mut read: Vec<Read> = Vec::new();
    let mut lost: BTreeSet<String> = BTreeSet::new();
    for (number, item) in items.iter().enumerate() {
        match Step::read(number, item, problems) {
            Some(found) if read.iter().any(|other| other.step.id == found.step.id) => {
                problems.add(item.at, format!("there are two steps with the id {:?}", found.step.id));
            }
            Some(found) => read.push(found),
            None => {
                let entries = item.as_map().unwrap_or_default();
                let id = entries
                    .iter()
                    .find(|(key, _)| key.name == "id")
                    .and_then(|(_, id)| id.as_str());
                lost.insert(id.map_or_else(|| format!("step{}", number + 1), str::to_owned));
            }
        }
    }
    let ids: Vec<String> = read.iter().map(|read| read.step.id.clone()).collect();
    let mut needs: Vec<Vec<usize>> = Vec::new();
    for (number, found) in read.iter().enumerate() {
        needs.push(match &found.needs {
            None => number.checked_sub(1).into_iter().collect(),
            Some(names) => {
                let mut numbers = Vec::new();
                for (name, at) in names {
                    match ids.iter().position(|id| id == name) {
                        Some(other) => numbers.push(other),
                        // What is wrong with that one is told already.
                        None if lost.contains(name) => {}
                        None => {
                            let hint = meant(name, ids.iter().map(String::as_str));
                            problems.add_with(*at, format!("there is no step {name:?}"), hint);
                        }
                    }
                }
                numbers
            }
        });
    }
    let after = match ancestors(&needs) {
        Ok(after) => after,
        Err(circle) => {
            let names: Vec<&str> = circle
                .iter()
                .chain(circle.first())
                .map(|number| ids[*number].as_str())
                .collect();
            let at = read[circle[0]]
                .needs
                .as_ref()
                .and_then(|needs| needs.first())
                .map(|(_, at)| *at);
            let text = format!("these steps wait for each other: {}", names.join(" needs "));
            let hint = Some("take one of the needs out".to_owned());
            problems.add_with(at.unwrap_or(read[circle[0]].step.at), text, hint);
            // Everything may be read, so that one mistake is one message.
            needs.iter().map(|_| (0..read.len()).collect()).collect()
        }
    };
    let mut steps: Vec<Step> = read.into_iter().map(|read| read.step).collect();
    for ((step, needs), after) in steps.iter_mut().zip(needs).zip(after) {
        step.needs = needs;
        step.after = after;
    }
    steps
}

fn read_returns(schema: &Yaml, problems: &mut Problems) -> Option<(Value, jsonschema::Validator)> {
    let value = schema.to_value();
    match jsonschema::validator_for(&value) {
        Ok(validator) if value.is_object() => Some((value, validator)),
        Ok(_) => {
            problems.add(schema.at, "returns must be a JSON Schema");
            None
        }
        Err(error) => {
            problems.add(schema.at, format!("returns is no JSON Schema: {error}"));
            None
        }
    }
}

/// What a text may read.
struct Known<'a> {
    parameters: &'a [&'a str],
    earlier: &'a [&'a str],
    all: &'a [&'a str],
    in_loop: bool,
}

/// What is wrong with a variable that a text reads, such as `words` or `steps.answer.text`, and what to do.
fn unknown(read: &str, known: &Known<'_>) -> Option<(String, Option<String>)> {
    let mut parts = read.split('.');
    let first = parts.next().unwrap_or_default();
    let name = match first {
        "item" | "index" if known.in_loop => return None,
        "item" | "index" => {
            let hint = Some("give the step a foreach".to_owned());
            return Some((format!("there is no {first} here"), hint));
        }
        "steps" => {
            let name = parts.next()?;
            if known.earlier.contains(&name) {
                return None;
            }
            if known.all.contains(&name) {
                let hint = Some("add it to needs".to_owned());
                return Some((format!("the step {name:?} does not come before this one"), hint));
            }
            let hint = meant(name, known.all.iter().copied());
            return Some((format!("there is no step {name:?}"), hint));
        }
        "params" => parts.next()?,
        name => name,
    };
    if known.parameters.contains(&name) {
        return None;
    }
    let hint = meant(name, known.parameters.iter().copied());
    Some((format!("there is no parameter {name:?}"), hint))
}

#[cfg(test)]
mod tests;
