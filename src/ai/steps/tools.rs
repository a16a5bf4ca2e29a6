//! Tools of `ollama_chat`: a Celery task, or a request to an allowed server. What goes wrong in a tool is told to the
//! model, which may know better.

use serde_json::{Map, Value, json};

use super::Stop;
use super::http_request::{Ask, add_query, answer, headers, json_type, method, parse};
use crate::ai::schema::{ending, misfits};
use crate::ai::site::Site;
use crate::task::Failure;
use crate::wire::Signature;

/// Longest answer of a tool that a model is told, in bytes.
const LONGEST: usize = 64 << 10;

/// A tool.
#[derive(Debug)]
pub(super) struct Tool {
    name: String,
    /// As Ollama is told.
    told: Value,
    parameters: Value,
    runs: Runs,
}

/// What runs it.
#[derive(Debug)]
enum Runs {
    /// Nobody here: the caller gets the call.
    Caller,
    /// A Celery task; the arguments become its keyword arguments.
    Task { name: String, queue: Option<String> },
    /// A request; the arguments become its query, or its JSON.
    Http {
        url: String,
        method: String,
        headers: Option<Value>,
    },
}

impl Tool {
    /// The tools of a step.
    ///
    /// # Errors
    /// A text for people: which tool is none, and why.
    pub(super) fn read_all(value: &Value) -> Result<Vec<Self>, String> {
        let Value::Array(items) = value else {
            return Err("tools must be a list".into());
        };
        items
            .iter()
            .enumerate()
            .map(|(at, item)| Self::read(item).map_err(|text| format!("tools[{at}]: {text}")))
            .collect()
    }

    fn read(value: &Value) -> Result<Self, String> {
        let Value::Object(given) = value else {
            return Err("must be a mapping".into());
        };
        if let Some(function) = given.get("function") {
            let name = function
                .get("name")
                .and_then(Value::as_str)
                .ok_or("function needs name")?;
            return Ok(Self {
                name: name.to_owned(),
                told: value.clone(),
                parameters: function.get("parameters").cloned().unwrap_or_else(|| json!({})),
                runs: Runs::Caller,
            });
        }
        const KNOWN: &[&str] = &["name", "description", "parameters", "task", "queue", "http"];
        if let Some(odd) = given.keys().find(|name| !KNOWN.contains(&name.as_str())) {
            return Err(format!("a tool has no {odd}; there are {}", KNOWN.join(", ")));
        }
        let text = |name: &str| given.get(name).and_then(Value::as_str).map(str::to_owned);
        let name = text("name").ok_or("needs name")?;
        let parameters = given
            .get("parameters")
            .cloned()
            .unwrap_or_else(|| json!({"type": "object", "properties": {}}));
        jsonschema::validator_for(&parameters).map_err(|error| format!("parameters is no JSON Schema: {error}"))?;
        let runs = match (text("task"), given.get("http")) {
            (Some(task), None) => Runs::Task {
                name: task,
                queue: text("queue"),
            },
            (None, Some(Value::Object(http))) => Runs::Http {
                url: http
                    .get("url")
                    .and_then(Value::as_str)
                    .ok_or("http needs url")?
                    .to_owned(),
                method: http.get("method").and_then(Value::as_str).unwrap_or("GET").to_owned(),
                headers: http.get("headers").cloned(),
            },
            _ => return Err("needs task, or http with url".into()),
        };
        let description = text("description").unwrap_or_default();
        let told = json!({"type": "function", "function": {"name": name, "description": description, "parameters": parameters}});
        Ok(Self {
            name,
            told,
            parameters,
            runs,
        })
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What the model is told of it.
    pub(super) fn told(&self) -> Value {
        self.told.clone()
    }

    /// Whether we run it.
    pub(super) fn is_run(&self) -> bool {
        !matches!(self.runs, Runs::Caller)
    }

    async fn run(&self, arguments: Map<String, Value>, part: &str, site: &Site<'_>) -> Result<String, Stop> {
        let value = match &self.runs {
            Runs::Caller => return Err(Stop::wrong("nobody runs this tool")),
            Runs::Task { name, queue } => {
                let mut call = Signature::new(name);
                for (name, value) in arguments {
                    call = call.kwarg(name, value);
                }
                if let Some(queue) = queue {
                    call = call.option("queue", queue);
                }
                site.call(part, call, None).await?
            }
            Runs::Http {
                url,
                method: name,
                headers: given,
            } => {
                site.once(part, async {
                    let mut url = parse(url)?;
                    let method = method(name).ok_or_else(|| Stop::wrong(format!("method: there is no {name:?}")))?;
                    let mut headers = headers(given.clone())?;
                    let mut body = None;
                    if method == "GET" || method == "HEAD" || method == "DELETE" {
                        add_query(&mut url, &Value::Object(arguments))?;
                    } else {
                        headers.insert("content-type", json_type());
                        body = Some(Value::Object(arguments).to_string().into_bytes());
                    }
                    let ask = Ask {
                        method,
                        url,
                        headers,
                        body,
                    };
                    let (status, headers, body) = site.engine.web().ask(ask).await?;
                    let answer = answer(status, &headers, &body);
                    let json = answer.get("json").filter(|json| !json.is_null());
                    Ok(json.or_else(|| answer.get("text")).cloned().unwrap_or_default())
                })
                .await?
            }
        };
        let text = match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        Ok(told(text))
    }
}

/// As much of an answer as a model is told.
fn told(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(LONGEST));
    text
}

/// Runs what a model asked for, at once, and gives the answers in order.
pub(super) async fn answer_calls(
    calls: &[Value],
    tools: &[Tool],
    turn: u64,
    site: &Site<'_>,
) -> Result<Vec<String>, Stop> {
    let runs = calls.iter().enumerate().map(|(at, call)| async move {
        let part = format!("turn{turn}.tool{at}");
        match run_one(call, tools, &part, site).await {
            Ok(text) => Ok(text),
            Err(waits @ (Stop::Waits(_) | Stop::Later(_))) => Err(waits),
            // To be tried again with the whole step.
            Err(Stop::Failed(failure @ Failure::Retry { .. })) => Err(Stop::Failed(failure)),
            Err(Stop::Failed(failure)) => Ok(json!({"error": crate::ai::fault::words(&failure)}).to_string()),
        }
    });
    // All of them, so that tasks are sent at once even if each has to be waited for.
    let answers = futures_util::future::join_all(runs).await;
    let mut waits = Vec::new();
    let mut texts = Vec::new();
    for answer in answers {
        match answer {
            Ok(text) => texts.push(text),
            Err(Stop::Waits(names)) => waits.extend(names),
            Err(failed) => return Err(failed),
        }
    }
    if waits.is_empty() {
        Ok(texts)
    } else {
        Err(Stop::Waits(waits))
    }
}

/// The arguments of a call; some models write theirs as a text.
///
/// # Errors
/// What they are instead: a call that was cut off, or made up, must not be run without them.
fn arguments(call: &Value) -> Result<Map<String, Value>, String> {
    match call.pointer("/function/arguments") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(arguments)) => Ok(arguments.clone()),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(Map::new()),
        Some(Value::String(text)) => {
            serde_json::from_str(text).map_err(|error| format!("no JSON object ({error}): {}", ending(text)))
        }
        Some(other) => Err(format!("no JSON object: {}", ending(&other.to_string()))),
    }
}

/// Makes a message with calls fit for the history: no server takes arguments there that are no object.
pub(super) fn mend(message: &mut Value) {
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let read = arguments(call).unwrap_or_default();
        if let Some(Value::Object(function)) = call.get_mut("function") {
            function.insert("arguments".into(), read.into());
        }
    }
}

async fn run_one(call: &Value, tools: &[Tool], part: &str, site: &Site<'_>) -> Result<String, Stop> {
    let name = call
        .pointer("/function/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let tool = tools.iter().find(|tool| tool.name == name);
    let tool = tool.ok_or_else(|| {
        let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
        Stop::wrong(format!("there is no tool {name:?}; there are {}", names.join(", ")))
    })?;
    let arguments = arguments(call).map_err(|wrong| Stop::wrong(format!("the arguments of {name} are {wrong}")))?;
    if let Ok(validator) = jsonschema::validator_for(&tool.parameters) {
        let wrong = misfits(&validator, &Value::Object(arguments.clone()));
        if !wrong.is_empty() {
            return Err(Stop::wrong(format!(
                "the arguments of {name} do not fit: {}",
                wrong.join("; ")
            )));
        }
    }
    tool.run(arguments, part, site).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_of_a_tool_is_cut() {
        assert_eq!(told("é".repeat(LONGEST / 2)).len(), LONGEST);
        assert_eq!(told(format!("x{}", "é".repeat(LONGEST))).len(), LONGEST - 1);
    }
}
