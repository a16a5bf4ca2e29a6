//! `ollama_generate` and `ollama_chat`: a question to a model, with others to fall back on, and tools.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::tools::{Tool, answer_calls, mend};
use super::{Field, Fields, Stop, Type, Wrong, needed, text, value};
use crate::ai::Strategy;
use crate::ai::ask::{Question, REPAIRS, ask};
use crate::ai::call::{Show, cache_time, routing};
use crate::ai::fault::reason;
use crate::ai::ollama::{Answer, Kind, Request};
use crate::ai::schema::Shape;
use crate::ai::site::Site;
use crate::ai::template::Reason;

/// How often a model may ask for tools if the file does not say.
const TURNS: u64 = 8;

pub(super) const GENERATE: Type = Type {
    name: "ollama_generate",
    about: "asks a model to go on from a prompt",
    fields: GENERATE_FIELDS,
    check: |fields, names| check(Kind::Generate, fields, names),
    is_local: false,
};

pub(super) const CHAT: Type = Type {
    name: "ollama_chat",
    about: "asks a model for the next message of a conversation, and runs the tools it asks for",
    fields: CHAT_FIELDS,
    check: |fields, names| check(Kind::Chat, fields, names),
    is_local: false,
};

const MODEL: Field = text("model", "name of the model");
const MODELS: Field = value(
    "models",
    "models that are tried in order, after model if both are there",
);
const SYSTEM: Field = text("system", "how the model should behave");
const FORMAT: Field = value("format", "json, or the JSON Schema that the answer must fit");
const OPTIONS: Field = value("options", "options of Ollama: temperature, num_ctx, num_predict, …");
const KEEP_ALIVE: Field = value("keep_alive", "how long the model stays loaded: 10m, 0, -1");
const THINK: Field = value("think", "true, false, low, medium or high");
const IMAGES: Field = value("images", "pictures in base64");
const TRUNCATE: Field = value("truncate", "true: let the server cut a prompt that is too long (false)");
const REPAIR: Field = value(
    "repairs",
    "how often an answer that does not fit its format is asked for again (2)",
);
const MAX_TOKENS: Field = value(
    "max_tokens",
    "most tokens of the answer; the same as options.num_predict",
);

const CACHE: Field = value(
    "cache",
    "true, or seconds: how long the answer is given again to the same question",
);

pub(super) const ROUTING: Field = text(
    "routing",
    "how its host is chosen: warm-first, least-busy, latency, weighted, sticky(NAME OF A HEADER)",
);

const GENERATE_FIELDS: &[Field] = &[
    MODEL,
    MODELS,
    needed(text("prompt", "what to go on from")),
    SYSTEM,
    FORMAT,
    OPTIONS,
    MAX_TOKENS,
    KEEP_ALIVE,
    THINK,
    IMAGES,
    value("raw", "true: no template of the model around the prompt"),
    text("suffix", "what comes after the answer"),
    TRUNCATE,
    REPAIR,
    CACHE,
    ROUTING,
];

const CHAT_FIELDS: &[Field] = &[
    MODEL,
    MODELS,
    needed(value("messages", "the conversation: role and content")),
    value(
        "tools",
        "tools the model may ask for: with task or http they are run, others are given back",
    ),
    value("max_turns", "how often it may ask for tools (8)"),
    FORMAT,
    OPTIONS,
    MAX_TOKENS,
    KEEP_ALIVE,
    THINK,
    TRUNCATE,
    REPAIR,
    CACHE,
    ROUTING,
];

fn check(kind: Kind, fields: &Map<String, Value>, names: &[&str]) -> Wrong {
    let mut wrong = Vec::new();
    if !names.contains(&"model") && !names.contains(&"models") {
        wrong.push((
            "type",
            format!(
                "a step of type {} needs model or models",
                if kind == Kind::Chat { CHAT.name } else { GENERATE.name }
            ),
        ));
    }
    if let Err(text) = Shape::of(fields.get("format")) {
        wrong.push(("format", text));
    }
    if let Some(tools) = fields.get("tools")
        && let Err(text) = Tool::read_all(tools)
    {
        wrong.push(("tools", text));
    }
    if let Err(text) = routing(fields.get("routing").unwrap_or(&Value::Null)) {
        wrong.push(("routing", text));
    }
    let mut asked: Map<String, Value> = fields.clone();
    for own in [
        "model",
        "models",
        "repairs",
        "max_tokens",
        "max_turns",
        "tools",
        "cache",
        "routing",
    ] {
        asked.remove(own);
    }
    match kind {
        Kind::Generate => drop(asked.entry("prompt").or_insert("x".into())),
        _ => drop(
            asked
                .entry("messages")
                .or_insert(json!([{"role": "user", "content": "x"}])),
        ),
    }
    let model = fields.get("model").and_then(Value::as_str).unwrap_or("m");
    if let Err(text) = Request::new(kind, model.to_owned(), asked, true) {
        let field = text.split(['.', ':', '[']).next().unwrap_or_default();
        let known = GENERATE_FIELDS
            .iter()
            .chain(CHAT_FIELDS)
            .find(|known| known.name == field);
        if field != "format" || wrong.is_empty() {
            wrong.push((known.map_or("type", |known| known.name), text));
        }
    }
    wrong
}

/// What a step asks of whichever model answers.
pub(super) struct Models {
    names: Vec<String>,
    repairs: u32,
    cache: Option<Duration>,
    routing: Option<Strategy>,
    kind: Kind,
    fields: Map<String, Value>,
}

impl Models {
    /// Takes what a step says about its models; the rest of its fields are those of the request.
    pub(super) fn take(kind: Kind, mut fields: Fields) -> Result<Self, Stop> {
        let mut names: Vec<String> = fields
            .text("model")
            .into_iter()
            .filter(|name| !name.is_empty())
            .collect();
        for name in fields.texts("models")? {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        if names.is_empty() {
            return Err(Stop::wrong("model: is empty"));
        }
        let repairs = fields
            .whole("repairs")?
            .map_or(REPAIRS, |repairs| u32::try_from(repairs).unwrap_or(REPAIRS).min(10));
        if let Some(tokens) = fields.whole("max_tokens")? {
            let options = fields.0.entry("options").or_insert_with(|| json!({}));
            if let Value::Object(options) = options {
                options.insert("num_predict".into(), tokens.into());
            }
        }
        if let Some(Value::Object(options)) = fields.0.get_mut("options") {
            options.retain(|_, value| !value.is_null());
        }
        let cache = cache_time(&fields.take("cache").unwrap_or_default()).map_err(Stop::wrong)?;
        let routing = routing(&fields.take("routing").unwrap_or_default()).map_err(Stop::wrong)?;
        Ok(Self {
            names,
            repairs,
            cache,
            routing,
            kind,
            fields: fields.0,
        })
    }

    /// The request's fields.
    pub(super) fn fields(&mut self) -> &mut Map<String, Value> {
        &mut self.fields
    }

    /// Asks the models in order until one answers; why others did not comes with the answer.
    pub(super) async fn ask(&self, site: &Site<'_>) -> Result<(Answer, Vec<Value>), Stop> {
        let mut given_up = Vec::new();
        let key = site.key();
        for (at, name) in self.names.iter().enumerate() {
            let mut question = Question::new(self.kind, name.clone(), self.fields.clone());
            question.repairs = self.repairs;
            let show = Show {
                step: &key,
                stream: true,
                template: Some(site.template),
                cache: self.cache,
                routing: self.routing.as_ref(),
            };
            match ask(site.engine, question, show, site.context).await {
                Ok(answer) => return Ok((answer, given_up)),
                Err(failure) => {
                    let why = reason(&failure);
                    if at + 1 == self.names.len() || why == Reason::Error && !crate::ai::fault::is_missing(&failure) {
                        return Err(failure.into());
                    }
                    let text = crate::ai::fault::words(&failure);
                    let entry = json!({"type": "fallback", "step": key, "model": name, "why": text, "attempt": site.context.retries()});
                    site.context.stream(&entry);
                    given_up.push(json!({"model": name, "why": text}));
                }
            }
        }
        Err(Stop::wrong("model: is empty"))
    }
}

/// An answer as the result of a step.
pub(super) fn result(answer: Answer, given_up: Vec<Value>) -> Result<Value, Stop> {
    let mut value = serde_json::to_value(answer).map_err(crate::task::Failure::from)?;
    if let Value::Object(value) = &mut value
        && !given_up.is_empty()
    {
        value.insert("fallbacks".into(), given_up.into());
    }
    Ok(value)
}

pub(super) async fn generate(fields: Fields, site: &Site<'_>) -> Result<Value, Stop> {
    let (answer, given_up) = Models::take(Kind::Generate, fields)?.ask(site).await?;
    result(answer, given_up)
}

pub(super) async fn chat(mut fields: Fields, site: &Site<'_>) -> Result<Value, Stop> {
    let turns = fields.whole("max_turns")?.unwrap_or(TURNS);
    let tools = match fields.take("tools") {
        Some(tools) => Tool::read_all(&tools).map_err(Stop::wrong)?,
        None => Vec::new(),
    };
    let mut models = Models::take(Kind::Chat, fields)?;
    if !tools.is_empty() {
        let told: Vec<Value> = tools.iter().map(Tool::told).collect();
        models.fields().insert("tools".into(), told.into());
    }
    let mut used: Vec<Value> = Vec::new();
    for turn in 0..=turns {
        // Each turn is kept: a tool may take its time, and the run may be put down meanwhile.
        let asked = async {
            let (answer, given_up) = models.ask(site).await?;
            result(answer, given_up)
        };
        let mut answer = if tools.iter().any(Tool::is_run) {
            site.once(&format!("turn{turn}"), asked).await?
        } else {
            asked.await?
        };
        let calls = answer
            .get("tool_calls")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        // A tool that nobody here runs is the caller's.
        let is_ours = |call: &Value| {
            let name = call.pointer("/function/name").and_then(Value::as_str);
            tools.iter().all(|tool| Some(tool.name()) != name || tool.is_run())
        };
        if calls.is_empty() || !tools.iter().any(Tool::is_run) || !calls.iter().all(is_ours) {
            if let Value::Object(answer) = &mut answer
                && !used.is_empty()
            {
                answer.insert("tools_used".into(), used.into());
            }
            return Ok(answer);
        }
        if turn == turns {
            break;
        }
        let mut said = answer.get("message").cloned().unwrap_or_default();
        mend(&mut said);
        let results = answer_calls(&calls, &tools, turn, site).await?;
        if let Some(Value::Array(messages)) = models.fields().get_mut("messages") {
            messages.push(said);
            for (call, text) in calls.iter().zip(&results) {
                let name = call.pointer("/function/name").cloned().unwrap_or_default();
                messages.push(json!({"role": "tool", "tool_name": name, "content": text}));
                used.push(json!({"name": name, "arguments": call.pointer("/function/arguments"), "result": text}));
            }
        }
    }
    Err(Stop::failed(
        "ToolLoop",
        format!(
            "step {:?} still asks for tools after {turns} turns (max_turns)",
            site.step.id
        ),
    ))
}
