//! Servers that speak OpenAI's API: what is asked of them, and their chunks as frames.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::frame::Frame;
use super::{Kind, Request};

/// Options that have a name there. The others of Ollama's say how a model is loaded, which such a server decides.
const OPTIONS: &[(&str, &str)] = &[
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("min_p", "min_p"),
    ("seed", "seed"),
    ("stop", "stop"),
    ("num_predict", "max_tokens"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
    ("repeat_penalty", "repeat_penalty"),
];

/// Fields of Ollama's that have no counterpart there.
const UNKNOWN: &[&str] = &["raw", "template", "suffix", "context"];

/// The body for `/v1/chat/completions`.
pub(super) fn body(request: &Request) -> Result<Map<String, Value>, String> {
    let fields = request.body();
    if let Some(name) = UNKNOWN.iter().find(|name| fields.contains_key(**name)) {
        return Err(format!("{name}: an OpenAI-compatible server does not know it"));
    }
    let mut body = Map::new();
    body.insert("model".into(), request.model().into());
    body.insert("stream".into(), true.into());
    body.insert("stream_options".into(), json!({"include_usage": true}));
    let messages = match request.kind() {
        Kind::Generate => prompt(fields),
        Kind::Chat => {
            let messages = fields.get("messages").and_then(Value::as_array);
            let mut asked = Asked::default();
            messages
                .into_iter()
                .flatten()
                .map(|given| message(given, &mut asked))
                .collect()
        }
    };
    body.insert("messages".into(), messages);
    if let Some(Value::Object(options)) = fields.get("options") {
        for (ours, theirs) in OPTIONS {
            match options.get(*ours) {
                None | Some(Value::Null) => {}
                // Without an end, in Ollama's way of saying it.
                Some(count) if *ours == "num_predict" && count.as_i64().is_some_and(|count| count < 0) => {}
                Some(value) => {
                    body.insert((*theirs).into(), value.clone());
                }
            }
        }
    }
    match fields.get("format") {
        Some(schema @ Value::Object(_)) => {
            let schema = json!({"name": "answer", "strict": true, "schema": schema});
            body.insert(
                "response_format".into(),
                json!({"type": "json_schema", "json_schema": schema}),
            );
        }
        Some(_) => {
            body.insert("response_format".into(), json!({"type": "json_object"}));
        }
        None => {}
    }
    for name in ["tools", "logprobs", "top_logprobs"] {
        if let Some(value) = fields.get(name) {
            body.insert(name.into(), value.clone());
        }
    }
    if let Some(Value::String(level)) = fields.get("think") {
        body.insert("reasoning_effort".into(), level.clone().into());
    }
    Ok(body)
}

fn prompt(fields: &Map<String, Value>) -> Value {
    let mut user = Map::new();
    user.insert("role".into(), "user".into());
    user.insert("content".into(), fields.get("prompt").cloned().unwrap_or_default());
    if let Some(images) = fields.get("images") {
        user.insert("images".into(), images.clone());
    }
    let mut messages = Vec::new();
    if let Some(system) = fields.get("system").filter(|system| *system != "") {
        messages.push(json!({"role": "system", "content": system}));
    }
    messages.push(message(&Value::Object(user), &mut Asked::default()));
    messages.into()
}

/// Calls of tools that have no result yet. Ollama tells results by the tool's name and their order; there each names
/// its call.
#[derive(Default)]
struct Asked {
    /// Name of the tool and id of the call.
    open: Vec<(Value, Value)>,
    /// How many there were, for ids of those that came without.
    count: usize,
}

impl Asked {
    /// The id of a call, which waits for its result from now on.
    fn call(&mut self, call: &Value) -> Value {
        let given = call.get("id").filter(|id| id.as_str().is_some_and(|id| !id.is_empty()));
        let id = given.cloned().unwrap_or_else(|| format!("call_{}", self.count).into());
        self.count += 1;
        let name = call.pointer("/function/name").cloned().unwrap_or_default();
        self.open.push((name, id.clone()));
        id
    }

    /// The id of the call whose result this is: the first of that name, or else the first.
    fn result(&mut self, name: Option<&Value>) -> Option<Value> {
        let named = self.open.iter().position(|(other, _)| Some(other) == name);
        let at = named.unwrap_or(0);
        (at < self.open.len()).then(|| self.open.remove(at).1)
    }
}

/// A message of Ollama's as one of OpenAI's: pictures become parts, arguments of tools become text, and results of
/// tools name the call they belong to.
fn message(message: &Value, asked: &mut Asked) -> Value {
    let mut message = message.as_object().cloned().unwrap_or_default();
    message.remove("thinking");
    if let Some(Value::Array(images)) = message.remove("images")
        && !images.is_empty()
    {
        let text = message.get("content").cloned().unwrap_or_default();
        let mut parts = vec![json!({"type": "text", "text": text})];
        for image in images {
            let url = format!("data:{};base64,{}", media(&image), image.as_str().unwrap_or_default());
            parts.push(json!({"type": "image_url", "image_url": {"url": url}}));
        }
        message.insert("content".into(), parts.into());
    }
    if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
        asked.open.clear();
        for call in calls {
            let arguments = call.pointer("/function/arguments").cloned().unwrap_or_default();
            let function = json!({"name": call.pointer("/function/name"), "arguments": arguments.to_string()});
            let id = asked.call(call);
            *call = json!({"id": id, "type": "function", "function": function});
        }
    }
    if message.get("role").is_some_and(|role| role == "tool") {
        let name = message.remove("tool_name");
        let given = message.get("tool_call_id").is_some_and(|id| !id.is_null());
        let id = asked.result(name.as_ref());
        if let (false, Some(id)) = (given, id) {
            message.insert("tool_call_id".into(), id);
        }
    }
    message.into()
}

/// The type of a picture, by how its base64 begins.
fn media(image: &Value) -> &'static str {
    let text = image.as_str().unwrap_or_default();
    match () {
        () if text.starts_with("/9j/") => "image/jpeg",
        () if text.starts_with("R0lGOD") => "image/gif",
        () if text.starts_with("UklGR") => "image/webp",
        () => "image/png",
    }
}

/// Reads the lines of an event stream, as servers send it that speak as OpenAI does, as Ollama's frames; puts together
/// what comes in several chunks.
#[derive(Debug, Default)]
pub struct Chunks {
    reason: Option<String>,
    calls: Vec<Call>,
    usage: Usage,
    first: Option<Duration>,
}

#[derive(Debug, Default)]
struct Call {
    index: u64,
    id: Option<String>,
    name: String,
    arguments: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Chunk {
    error: Option<Value>,
    model: Option<String>,
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Choice {
    delta: Delta,
    finish_reason: Option<String>,
    logprobs: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Delta {
    content: Option<String>,
    reasoning: Option<String>,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<Part>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Part {
    index: u64,
    id: Option<String>,
    function: Function,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Function {
    name: Option<String>,
    arguments: Option<String>,
}

impl Chunks {
    /// The frame of one line; `None` for lines that say nothing. `passed` is the time since the request.
    ///
    /// # Errors
    /// It is no chunk.
    pub fn frame(&mut self, line: &[u8], passed: Duration) -> Result<Option<Frame>, serde_json::Error> {
        let line = line.trim_ascii();
        let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else {
            // An error that came instead of a stream is a line of JSON; comments and names of events are not.
            return if line.starts_with(b"{") {
                self.chunk(line, passed).map(Some)
            } else {
                Ok(None)
            };
        };
        if data == b"[DONE]" {
            return Ok(Some(self.end(passed)));
        }
        self.chunk(data, passed).map(Some)
    }

    fn chunk(&mut self, data: &[u8], passed: Duration) -> Result<Frame, serde_json::Error> {
        let chunk: Chunk = serde_json::from_slice(data)?;
        let mut frame = Frame {
            error: chunk.error,
            ..Frame::default()
        };
        if let Some(usage) = chunk.usage {
            self.usage = usage;
        }
        // O-096: a gateway that hides an error sends a chunk of nobody.
        let says = |choice: &Choice| choice.finish_reason.is_some() || choice.delta.content.as_deref() != Some("");
        if chunk.model.as_deref() == Some("") && chunk.choices.first().is_some_and(|choice| !says(choice)) {
            frame.error = Some("the server hid an error: a chunk without a model".into());
        }
        if let Some(choice) = chunk.choices.into_iter().next() {
            let delta = choice.delta;
            frame.response = delta.content;
            frame.thinking = delta.reasoning.or(delta.reasoning_content);
            self.reason = choice.finish_reason.or(self.reason.take());
            if let Some(Value::Object(mut logprobs)) = choice.logprobs
                && let Some(Value::Array(content)) = logprobs.remove("content")
            {
                frame.logprobs = content;
            }
            let mut says = self.reason.is_some();
            for part in delta.tool_calls.into_iter().flatten() {
                says = true;
                self.add(part);
            }
            let speaks = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
            if says || speaks(&frame.response) || speaks(&frame.thinking) {
                self.first.get_or_insert(passed);
            }
        }
        Ok(frame)
    }

    /// Adds a part of a call of a tool. Some servers give all calls the index 0: another id is another call.
    fn add(&mut self, part: Part) {
        let id = part.id.filter(|id| !id.is_empty());
        let same = |call: &Call| call.index == part.index && (id.is_none() || call.id.is_none() || call.id == id);
        let at = self.calls.iter().rposition(same).unwrap_or_else(|| {
            self.calls.push(Call::default());
            self.calls.len() - 1
        });
        let found = &mut self.calls[at];
        found.index = part.index;
        found.id = id.or(found.id.take());
        found.name.push_str(part.function.name.as_deref().unwrap_or_default());
        found
            .arguments
            .push_str(part.function.arguments.as_deref().unwrap_or_default());
    }

    /// Whether the answer has begun: a chunk that says no more than who speaks is none of it.
    pub(super) fn has_begun(&self) -> bool {
        self.first.is_some()
    }

    /// The last frame. The server tells no times, so they are ours.
    fn end(&mut self, passed: Duration) -> Frame {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let first = self.first.unwrap_or(passed);
        let calls = std::mem::take(&mut self.calls);
        let tool_calls = calls.into_iter().enumerate().map(|(index, call)| {
            let arguments = serde_json::from_str(&call.arguments).unwrap_or(Value::String(call.arguments));
            json!({"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}})
        });
        Frame {
            done: true,
            done_reason: self.reason.take(),
            tool_calls: tool_calls.collect(),
            total_duration: nanoseconds(passed),
            prompt_eval_count: self.usage.prompt_tokens,
            prompt_eval_duration: nanoseconds(first),
            eval_count: self.usage.completion_tokens,
            eval_duration: nanoseconds(passed.saturating_sub(first)),
            ..Frame::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(kind: Kind, fields: Value) -> Value {
        let Value::Object(fields) = fields else {
            panic!("an object")
        };
        Value::Object(body(&Request::new(kind, "m".into(), fields, false).unwrap()).unwrap())
    }

    #[test]
    fn a_prompt_becomes_messages_and_options_get_their_names() {
        let body = asked(
            Kind::Generate,
            json!({"prompt": "hi", "system": "be brief", "options": {"num_predict": 5, "num_ctx": 9, "stop": ["x"]},
                   "format": {"type": "object"}, "keep_alive": "5m", "images": ["/9j/4A"]}),
        );
        assert_eq!(body["messages"][0], json!({"role": "system", "content": "be brief"}));
        assert_eq!(body["messages"][1]["content"][0]["text"], "hi");
        assert_eq!(
            body["messages"][1]["content"][1]["image_url"]["url"],
            "data:image/jpeg;base64,/9j/4A"
        );
        assert_eq!((&body["max_tokens"], &body["stop"]), (&json!(5), &json!(["x"])));
        assert_eq!(
            body["response_format"]["json_schema"]["schema"],
            json!({"type": "object"})
        );
        assert!(body.get("num_ctx").is_none() && body.get("keep_alive").is_none());
    }

    #[test]
    fn o_073_arguments_of_tools_are_texts_there_and_objects_here() {
        let call = json!({"function": {"name": "f", "arguments": {"x": 1}}});
        let body = asked(
            Kind::Chat,
            json!({"messages": [{"role": "assistant", "tool_calls": [call]}, {"role": "user", "content": "go"}]}),
        );
        assert_eq!(
            body["messages"][0]["tool_calls"][0]["function"]["arguments"],
            "{\"x\":1}"
        );
        let mut chunks = Chunks::default();
        let mut say = |line: &str| chunks.frame(line.as_bytes(), Duration::from_millis(5)).unwrap();
        assert!(say(": a comment").is_none());
        say(
            r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\""}}]}}]}"#,
        );
        say(
            r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]},"finish_reason":"tool_calls"}]}"#,
        );
        let last = say("data: [DONE]").unwrap();
        assert!(last.done);
        assert_eq!(
            last.tool_calls,
            [json!({"id": "a", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}})]
        );
    }

    #[test]
    fn results_of_tools_name_their_calls() {
        let call = |id: Value, name: &str| json!({"id": id, "function": {"name": name, "arguments": {}}});
        let result = |name: &str| json!({"role": "tool", "tool_name": name, "content": name});
        let messages = json!([
            {"role": "assistant", "tool_calls": [call(Value::Null, "f"), call("x".into(), "g"), call(Value::Null, "f")]},
            result("g"), result("f"), result("f"),
            {"role": "assistant", "tool_calls": [call("".into(), "f")]},
            {"role": "tool", "content": "unnamed"},
            {"role": "tool", "tool_call_id": "own", "content": "of nobody"},
        ]);
        let body = asked(Kind::Chat, json!({"messages": messages}));
        let ids: Vec<&Value> = [0, 4]
            .iter()
            .flat_map(|at| body["messages"][at]["tool_calls"].as_array().unwrap())
            .collect();
        let ids: Vec<&Value> = ids.iter().map(|call| &call["id"]).collect();
        assert_eq!(ids, ["call_0", "x", "call_2", "call_3"]);
        let of = |at: usize| body["messages"][at]["tool_call_id"].as_str().unwrap();
        assert_eq!(
            [of(1), of(2), of(3), of(5), of(6)],
            ["x", "call_0", "call_2", "call_3", "own"]
        );
        assert!(body["messages"][1].get("tool_name").is_none());
    }

    #[test]
    fn another_id_is_another_call_and_who_speaks_is_no_beginning() {
        let mut chunks = Chunks::default();
        let mut say = |line: &str| {
            chunks
                .frame(line.as_bytes(), Duration::from_millis(5))
                .unwrap()
                .unwrap()
        };
        let part = |id: &str, name: &str, arguments: &str| {
            let call = json!({"index": 0, "id": id, "function": {"name": name, "arguments": arguments}});
            format!("data: {}", json!({"choices": [{"delta": {"tool_calls": [call]}}]}))
        };
        for line in [
            part("a", "f", "{\"x\":1}"),
            part("b", "g", "{\"y\""),
            part("b", "", ":2}"),
        ] {
            say(&line);
        }
        let calls = say("data: [DONE]").tool_calls;
        let told: Vec<_> = calls
            .iter()
            .map(|call| (&call["id"], &call["function"]["arguments"]))
            .collect();
        assert_eq!(told, [(&json!("a"), &json!({"x": 1})), (&json!("b"), &json!({"y": 2}))]);
        let mut chunks = Chunks::default();
        let mut begins = |delta: Value| {
            let line = format!("data: {}", json!({"choices": [{"delta": delta}]}));
            chunks.frame(line.as_bytes(), Duration::ZERO).unwrap();
            chunks.has_begun()
        };
        assert!(!begins(json!({"role": "assistant", "content": ""})));
        assert!(begins(json!({"content": "one"})));
    }

    #[test]
    fn o_096_a_chunk_of_nobody_is_an_error() {
        let hidden = br#"data: {"model":"","choices":[{"delta":{"content":""}}]}"#;
        let frame = Chunks::default().frame(hidden, Duration::ZERO).unwrap().unwrap();
        assert!(frame.error.is_some());
    }
}
